//! The durable bus (`events::EventBus`) against a real nats-server: what is acknowledged is there, what is handled is in order, and who dies is
//! replaced.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests stand outside: real time, real threads")]

#[path = "../common/basics.rs"]
mod basics;
// Not `common`: none of this needs a gateway, and it is built without one.
#[path = "../common/nats.rs"]
mod nats;
#[path = "../../examples/orders.rs"]
mod orders;
mod outages;
mod processes;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use basics::{SOON, Scratch, now};
use futures_core::Stream;
use nats::NatsServer;
use shardcast::events::EventBus;
use shardcast::events::event_bus::{ConnectError, Event, Options, PublishError, Received, Start, SubscribeError, Terms};
use shardcast::events::nats::jetstream::{self, consumer::PullConsumer};
use tokio::time::sleep;

/// A server with a stream's directory of its own.
fn server() -> (NatsServer, Scratch) {
    let store = Scratch::new();
    let server = NatsServer::start_with(&format!("jetstream {{ store_dir: \"{}\" }}", store.path().display()));
    (server, store)
}

/// Short leases and waits, so that tests are short.
fn options() -> Options {
    Options { partitions: 4, lease: Duration::from_secs(1), reconnect_wait: Duration::from_millis(50), ..Options::default() }
}

fn terms() -> Terms {
    Terms {
        ack_wait: Duration::from_secs(1),
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_millis(200),
        attempts_max: 3,
        ..Terms::default()
    }
}

async fn connect(server: &NatsServer) -> EventBus {
    EventBus::connect(&server.url(), options()).await.expect("the server is there")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

/// Asks again until the answer is `Ok`, and lets tasks run meanwhile.
async fn eventually<T>(ask: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(2 * SOON, ask).await
}

async fn eventually_within<T>(limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(reason) => assert!(now() < deadline, "after {limit:?}: {reason}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// What handlers have seen.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u64>>>);

impl Seen {
    fn note(&self, value: u64) {
        self.0.lock().expect("no panic holds it").push(value);
    }

    fn now(&self) -> Vec<u64> {
        self.0.lock().expect("no panic holds it").clone()
    }

    async fn wait_for(&self, expected: &[u64]) {
        eventually(|| match self.now() {
            seen if seen == expected => Ok(()),
            seen => Err(format!("{seen:?} were handled, {expected:?} were expected")),
        })
        .await;
    }
}

type Outcome = Result<(), String>;

/// A handler that notes what it gets, and takes all for good.
fn noting(seen: &Seen) -> impl Fn(Received<u64>) -> std::future::Ready<Outcome> + Send + Sync + 'static {
    let seen = seen.clone();
    move |received| {
        seen.note(received.event.payload);
        std::future::ready(Ok(()))
    }
}

fn event(payload: u64) -> Event<u64> {
    Event::new("test.number", "tests", payload).with_key("one")
}

async fn publish(bus: &EventBus, subject: &str, payloads: impl IntoIterator<Item = u64>) {
    for payload in payloads {
        bus.publish(subject, &event(payload)).await.expect("it is stored");
    }
}

#[test]
fn what_is_published_is_acknowledged_once() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let first = event(1);
        let receipt = bus.publish("a.b", &first).await.expect("it is stored");
        assert_eq!((receipt.sequence, receipt.is_duplicate), (1, false));
        let again = bus.publish("a.b", &first).await.expect("it is there");
        assert_eq!((again.sequence, again.is_duplicate), (1, true));
        assert!(matches!(bus.publish("a.*", &first).await, Err(PublishError::Subject(_))));
        let large = Event::new("t", "s", "x".repeat(2 << 20));
        assert!(matches!(bus.publish("a.b", &large).await, Err(PublishError::TooLarge { .. })));
        let odd = Event::new("t", "s", BTreeMap::from([((1, 2), 3)]));
        assert!(matches!(bus.publish("a.b", &odd).await, Err(PublishError::Payload { .. })));
        assert_eq!(bus.publish("a.b", &event(2)).await.expect("it is stored").sequence, 2);
    });
}

#[test]
fn a_durable_goes_on_where_it_was() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let seen = Seen::default();
        publish(&bus, "a.b", 1..=3).await;
        let first = bus.subscribe("a.*", "reader", terms(), noting(&seen)).await.expect("a new durable");
        seen.wait_for(&[1, 2, 3]).await;
        first.stop().await;
        publish(&bus, "a.c", 4..=5).await;
        publish(&bus, "other", 9..=9).await;
        // Where it begins counts once.
        let from = Terms { start: Start::New, ..terms() };
        let second = bus.subscribe("a.*", "reader", from, noting(&seen)).await.expect("the same durable");
        seen.wait_for(&[1, 2, 3, 4, 5]).await;
        assert_eq!((second.stats().handled, second.stats().redelivered), (2, 0));
        second.stop().await;
    });
}

#[test]
fn a_durable_begins_where_it_is_told_to() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        publish(&bus, "t", 1..=3).await;
        sleep(Duration::from_millis(20)).await;
        let time = SystemTime::now();
        sleep(Duration::from_millis(20)).await;
        publish(&bus, "t", 4..=4).await;
        for (name, start, expect) in [
            ("all", Start::All, vec![1, 2, 3, 4, 5]),
            ("new", Start::New, vec![5]),
            ("sequence", Start::Sequence(3), vec![3, 4, 5]),
            ("time", Start::Time(time), vec![4, 5]),
        ] {
            // Subscribed before the last is published, both ways.
            let (seen, shared) = (Seen::default(), Seen::default());
            let from = || Terms { start, ..terms() };
            let own = bus.subscribe("t", name, from(), noting(&seen)).await.expect("a new durable");
            let group = bus.subscribe_group("t", &format!("group-{name}"), from(), noting(&shared)).await.expect("a new group");
            if name == "all" {
                // The others find it there, but for `new`.
                seen.wait_for(&[1, 2, 3, 4]).await;
            }
            if name == "new" {
                publish(&bus, "t", 5..=5).await;
            }
            if name != "all" {
                seen.wait_for(&expect).await;
                shared.wait_for(&expect).await;
            }
            own.stop().await;
            group.stop().await;
        }
    });
}

#[test]
fn a_failure_comes_again_and_holds_back_its_own_key_only() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let (seen, tries) = (Seen::default(), Arc::new(Mutex::new(HashMap::<u64, u64>::new())));
        let subscription = {
            let (seen, tries) = (seen.clone(), Arc::clone(&tries));
            let handler = move |received: Received<u64>| {
                let (seen, tries) = (seen.clone(), Arc::clone(&tries));
                async move {
                    let number = received.event.payload;
                    *tries.lock().expect("no panic holds it").entry(number).or_default() += 1;
                    match (number, received.attempt) {
                        (1, 1) => Err("not yet".to_owned()),
                        (1, 2) => panic!("not yet either"),
                        _ => {
                            seen.note(number);
                            Ok(())
                        }
                    }
                }
            };
            bus.subscribe("t", "reader", terms(), handler).await.expect("a new durable")
        };
        let publish = |number: u64, key: &'static str| {
            let bus = bus.clone();
            async move { bus.publish("t", &Event::new("n", "tests", number).with_key(key)).await.expect("it is stored") }
        };
        for (number, key) in [(1, "bad"), (2, "bad"), (10, "good"), (3, "bad"), (11, "good")] {
            publish(number, key).await;
        }
        seen.wait_for(&[10, 11, 1, 2, 3]).await;
        let tries = tries.lock().expect("no panic holds it").clone();
        assert_eq!(tries, HashMap::from([(1, 3), (2, 1), (3, 1), (10, 1), (11, 1)]));
        eventually(|| match subscription.stats() {
            stats if (stats.handled, stats.failed, stats.redelivered, stats.dead) == (5, 2, 2, 0) => Ok(()),
            stats => Err(format!("{stats:?}")),
        })
        .await;
        subscription.stop().await;
    });
}

#[test]
fn what_cannot_be_handled_is_dead_with_the_reason_and_can_live_again() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let seen = Seen::default();
        let is_cured = Arc::new(AtomicU64::new(0));
        let subscription = {
            let (seen, is_cured) = (seen.clone(), Arc::clone(&is_cured));
            let handler = move |received: Received<u64>| {
                let (seen, is_cured) = (seen.clone(), Arc::clone(&is_cured));
                async move {
                    if received.event.payload == 1 && is_cured.load(Ordering::Relaxed) == 0 {
                        return Err("no\r\nForged: header");
                    }
                    seen.note(received.event.payload);
                    Ok(())
                }
            };
            bus.subscribe_group("t.>", "readers", terms(), handler).await.expect("a new group")
        };
        publish(&bus, "t.a", 1..=2).await;
        // Bytes that are no envelope, from a program that does not know better; and a payload that is no number.
        let mut other = server.client();
        other.publish("events.0.t.a", "{\"hello\":");
        other.settle();
        bus.publish("t.b", &Event::new("t", "s", "no number")).await.expect("it is stored");
        seen.wait_for(&[2]).await;
        eventually(|| if subscription.stats().dead == 3 { Ok(()) } else { Err(format!("{:?}", subscription.stats())) }).await;
        assert_eq!(subscription.stats().redelivered, 2, "what cannot be read is not tried again");
        let mut letters = bus.dead_letters("readers", 0, 10).await.expect("the server answers");
        letters.sort_by_key(|letter| letter.event_sequence);
        let told: Vec<_> = letters.iter().map(|letter| (letter.subject.as_str(), letter.event_sequence, letter.deliveries)).collect();
        assert_eq!(told, [("t.a", 1, 3), ("t.a", 3, 1), ("t.b", 4, 1)]);
        assert_eq!(letters[0].reason, "no  Forged: header");
        assert!(letters[1].reason.starts_with("the envelope cannot be read: EOF"), "{}", letters[1].reason);
        assert_eq!(&letters[1].envelope[..], b"{\"hello\":");
        assert!(letters[2].reason.starts_with("the payload cannot be read: invalid type: string"), "{}", letters[2].reason);
        assert_eq!(bus.dead_letters("readers", 0, 1).await.expect("the server answers").len(), 1);
        is_cured.store(1, Ordering::Relaxed);
        bus.redrive(&letters[0]).await.expect("it is stored again");
        seen.wait_for(&[2, 1]).await;
        assert_eq!(bus.dead_letters("readers", 0, 10).await.expect("the server answers").len(), 2);
        subscription.stop().await;
    });
}

/// Taken from the server, and nothing said of it: as by a process that it takes with it.
#[test]
fn an_event_that_nobody_survives_is_dead_too() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let seen = Seen::default();
        bus.subscribe("t", "reader", terms(), noting(&seen)).await.expect("a new durable").stop().await;
        publish(&bus, "t", 1..=1).await;
        let other = jetstream::new(shardcast::events::nats::connect(server.url()).await.expect("the server is there"));
        let consumer: PullConsumer = other.get_consumer_from_stream("reader", "EVENTS").await.expect("it was made");
        let mut taken = consumer.fetch().max_messages(1).messages().await.expect("the server answers");
        std::future::poll_fn(|context| Pin::new(&mut taken).poll_next(context)).await.expect("it is there").expect("a message");
        publish(&bus, "t", 2..=2).await;
        let once = Terms { deliveries_max: 1, ..terms() };
        let subscription = bus.subscribe("t", "reader", once, noting(&seen)).await.expect("the same durable");
        seen.wait_for(&[2]).await;
        subscription.stop().await;
        let letters = bus.dead_letters("reader", 0, 10).await.expect("the server answers");
        let told: Vec<_> = letters.iter().map(|letter| (letter.event_sequence, letter.reason.as_str())).collect();
        assert_eq!(told, [(1, "delivered 1 times, and nothing was heard of it")]);
    });
}

#[test]
fn a_long_handler_is_let_be_and_a_stop_waits_for_it() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let (begun, done) = (Seen::default(), Seen::default());
        let subscription = {
            let (begun, done) = (begun.clone(), done.clone());
            let handler = move |received: Received<u64>| {
                let (begun, done) = (begun.clone(), done.clone());
                async move {
                    begun.note(received.event.payload);
                    // Much longer than the ack wait.
                    sleep(Duration::from_millis(2500)).await;
                    done.note(received.event.payload);
                    Ok::<(), String>(())
                }
            };
            bus.subscribe("t", "reader", terms(), handler).await.expect("a new durable")
        };
        publish(&bus, "t", 1..=3).await;
        begun.wait_for(&[1]).await;
        subscription.stop().await;
        assert_eq!((begun.now(), done.now()), (vec![1], vec![1]), "what was begun is done, and nothing else was begun");
        // The rest is for who comes next, at once and in order; the first was acknowledged.
        let seen = Seen::default();
        let next = bus.subscribe("t", "reader", terms(), noting(&seen)).await.expect("the same durable");
        seen.wait_for(&[2, 3]).await;
        next.stop().await;
    });
}

#[test]
fn a_group_shares_the_work_and_hands_it_over_when_members_come_and_go() {
    let (server, _store) = server();
    run(async {
        let (one, two) = (connect(&server).await, connect(&server).await);
        let (first_seen, second_seen) = (Seen::default(), Seen::default());
        let first = one.subscribe_group("t", "g", terms(), noting(&first_seen)).await.expect("a new group");
        let partitions = |subscription: &shardcast::events::event_bus::Subscription| subscription.stats().partitions;
        eventually(|| if partitions(&first) == 4 { Ok(()) } else { Err(format!("{first:?}")) }).await;
        let second = two.subscribe_group("t", "g", terms(), noting(&second_seen)).await.expect("the same group");
        eventually(|| match (partitions(&first), partitions(&second)) {
            (2, 2) => Ok(()),
            shares => Err(format!("shares of {shares:?}")),
        })
        .await;
        for number in 0..40_u64 {
            one.publish("t", &Event::new("n", "tests", number).with_key(number.to_string())).await.expect("it is stored");
        }
        eventually(|| match (first_seen.now().len(), second_seen.now().len()) {
            (own, other) if own + other == 40 && own > 0 && other > 0 => Ok(()),
            shares => Err(format!("{shares:?} were handled")),
        })
        .await;
        first.stop().await;
        eventually(|| if partitions(&second) == 4 { Ok(()) } else { Err(format!("{second:?}")) }).await;
        publish(&one, "t", 100..=100).await;
        eventually(|| if second_seen.now().contains(&100) { Ok(()) } else { Err("not handled".to_owned()) }).await;
        let mut all = [first_seen.now(), second_seen.now()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..40).chain([100]).collect::<Vec<_>>(), "each once");
        second.stop().await;
    });
}

#[test]
fn a_bus_that_is_another_one_is_refused_with_the_field() {
    let (server, _store) = server();
    run(async {
        let bus = connect(&server).await;
        let refused =
            |options: Options| async { EventBus::connect(&server.url(), options).await.expect_err("it is another one").to_string() };
        let said = refused(Options { partitions: 8, ..options() }).await;
        assert_eq!(
            said,
            "the stream EVENTS is not as asked for: description is \"shardcast events in 4 partitions\", \"shardcast events in 8 partitions\" is asked for; change one or the other"
        );
        let said = refused(Options { lease: Duration::from_secs(2), ..options() }).await;
        assert!(said.starts_with("the stream EVENTS_LEASES is not as asked for: max_age is 1s, 2s (Options::age, or lease)"), "{said}");
        assert!(matches!(EventBus::connect("nats://127.0.0.1:1", options()).await, Err(ConnectError::Unreachable { .. })));
        let seen = Seen::default();
        let own = bus.subscribe("a", "reader", terms(), noting(&seen)).await.expect("a new durable");
        let other = bus.subscribe("b", "reader", terms(), noting(&seen)).await.expect_err("it reads something else");
        assert_eq!(
            other.to_string(),
            "the consumer reader reads \"events.*.a\", \"events.*.b\" is asked for; take another name, or delete it"
        );
        assert!(matches!(bus.subscribe("a", "no name", terms(), noting(&seen)).await, Err(SubscribeError::Subject(_))));
        own.stop().await;
        // What can be changed without losing the place is changed.
        let longer = Terms { ack_wait: Duration::from_secs(3), held_max: 50, ..terms() };
        bus.subscribe("a", "reader", longer, noting(&seen)).await.expect("the same durable").stop().await;
        let info = server.client().request("$JS.API.CONSUMER.INFO.EVENTS.reader", "");
        assert_eq!((&info["config"]["ack_wait"], &info["config"]["max_ack_pending"]), (&3_000_000_000_u64.into(), &50.into()), "{info}");
    });
}

#[test]
fn the_example_of_orders_bills_what_can_be_billed() {
    let (server, _store) = server();
    let (orders, dead) = run(orders::run(&server.url(), options(), terms())).expect("it comes to its end");
    let expected = [
        ("order-1", vec!["invoice written", "invoice closed"]),
        ("order-2", vec!["invoice written", "invoice withdrawn"]),
        ("order-3", vec!["invoice withdrawn"]),
    ];
    assert_eq!(orders, expected.into_iter().map(|(order, done)| (order.to_owned(), done)).collect());
    let told: Vec<_> = dead.iter().map(|letter| (letter.subject.as_str(), letter.deliveries, letter.reason.as_str())).collect();
    assert_eq!(told, [("orders.created", 3, "an order of -1 cents cannot be billed")]);
}
