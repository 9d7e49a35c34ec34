//! Rules of the bus, one by one; then many threads at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use super::*;

fn with(queue_messages: usize, lag: Lag) -> SubscribeOptions {
    SubscribeOptions { queue_messages, lag, name: Some(format!("{lag:?}").into()) }
}

fn everything<T>(subscription: &mut Subscription<T>) -> Vec<T> {
    std::iter::from_fn(|| subscription.try_recv().ok()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    // Its clock moves when nothing else is to be done.
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

#[test]
fn a_message_comes_to_each_subscriber_of_its_topic_and_to_nobody_else() {
    let bus = Bus::new();
    let mut subscribers = ["a", "b", "a"].map(|topic| bus.subscribe(topic).expect("room"));
    assert_eq!((bus.subscribers("a"), bus.subscribers("c"), bus.topics()), (2, 0, 2));
    assert_eq!(bus.publish("a", 1), Published { delivered: 2, lagged: vec![] });
    assert_eq!(bus.publish("b", 2).delivered, 1);
    assert_eq!(bus.publish("c", 3).delivered, 0);
    assert_eq!(subscribers.each_mut().map(everything), [vec![1], vec![2], vec![1]]);
}

#[test]
fn a_full_queue_is_treated_as_its_owner_wants_and_the_publisher_is_told() {
    for (lag, kept, missed, delivered) in [
        (Lag::DropNewest, vec![0, 1], 3, [1, 1, 0, 0, 0]),
        (Lag::DropOldest, vec![3, 4], 3, [1, 1, 1, 1, 1]),
        (Lag::Disconnect, vec![0, 1], 1, [1, 1, 0, 0, 0]),
        (Lag::Wait, vec![0, 1], 3, [1, 1, 0, 0, 0]),
    ] {
        let bus = Bus::new();
        let mut other = bus.subscribe("t").expect("room");
        let mut slow = bus.subscribe_with("t", with(2, lag)).expect("room");
        let published: Vec<Published> = (0..5).map(|n| bus.publish("t", n)).collect();
        // The other one is always served.
        assert_eq!(published.iter().map(|one| one.delivered - 1).collect::<Vec<_>>(), delivered, "{lag:?}");
        let lagged: Vec<&Lagged> = published.iter().flat_map(|one| &one.lagged).collect();
        assert!(lagged.iter().all(|one| one.subscriber == slow.id() && one.policy == lag), "{lag:?}");
        assert_eq!(lagged.last().map(|one| (one.missed, one.name.clone())), Some((missed, Some(format!("{lag:?}").into()))));
        assert_eq!((everything(&mut slow), slow.missed(), slow.queued()), (kept, missed, 0), "{lag:?}");
        assert_eq!(everything(&mut other), [0, 1, 2, 3, 4]);
        let expect = if lag == Lag::Disconnect { TryRecvError::Ended(RecvError::CutOff) } else { TryRecvError::Empty };
        assert_eq!(slow.try_recv(), Err(expect));
        assert_eq!(bus.publish("t", 5).delivered, if lag == Lag::Disconnect { 1 } else { 2 }, "{lag:?}: there is room again");
    }
}

#[test]
fn a_dropped_subscription_leaves_nothing_behind() {
    let bus = Bus::with(BusOptions { subscribers_max: 2 });
    let payload = Arc::new(());
    let (first, second) = (bus.subscribe("t").expect("room"), bus.subscribe("t").expect("room"));
    assert_eq!(bus.subscribe("u").map(drop), Err(SubscribeError::Full(2)));
    bus.publish("t", Arc::clone(&payload));
    assert_eq!(Arc::strong_count(&payload), 3);
    drop(first);
    assert_eq!((Arc::strong_count(&payload), bus.subscribers("t")), (2, 1));
    drop(second);
    assert_eq!((Arc::strong_count(&payload), bus.topics()), (1, 0));
    // Cut off and then dropped: counted once.
    let cut = bus.subscribe_with("t", with(1, Lag::Disconnect)).expect("room");
    (0..3).for_each(|_| drop(bus.publish("t", Arc::clone(&payload))));
    drop(cut);
    let both = [(); 2].map(|()| bus.subscribe("t").expect("two may be there"));
    assert_eq!(bus.subscribe("t").map(drop), Err(SubscribeError::Full(2)));
    drop(both);
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_bound() {
    let bus: Bus<()> = Bus::new();
    for (topic, queue, expect) in [
        ("", 1, SubscribeError::Topic(0)),
        (&"x".repeat(256)[..], 1, SubscribeError::Topic(256)),
        ("t", 0, SubscribeError::Queue(0)),
        ("t", QUEUE_MESSAGES_MAX + 1, SubscribeError::Queue(QUEUE_MESSAGES_MAX + 1)),
    ] {
        assert_eq!(bus.subscribe_with(topic, with(queue, Lag::Wait)).map(drop), Err(expect));
    }
    assert_eq!(SubscribeError::Topic(256).to_string(), "a topic's name has 1 to 255 bytes, this one 256");
}

#[test]
fn the_end_of_the_bus_comes_after_what_is_queued_and_wakes_who_waits() {
    let bus = Bus::new();
    let [mut blocking, mut sleeping, mut timed] = [(); 3].map(|()| bus.subscribe("t").expect("room"));
    bus.clone().publish("t", 1);
    let blocked = thread::spawn(move || [blocking.recv_blocking(), blocking.recv_blocking()]);
    let slept = thread::spawn(move || runtime().block_on(async { [sleeping.recv().await, sleeping.recv().await] }));
    assert_eq!(timed.recv_timeout(Duration::from_secs(10)), Ok(1));
    assert_eq!(timed.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    drop(bus);
    let expect = [Ok(1), Err(RecvError::Closed)];
    assert_eq!((blocked.join().expect("no panic"), slept.join().expect("no panic")), (expect, expect));
    assert_eq!(timed.recv_timeout(Duration::from_secs(10)), Err(RecvError::Closed.into()));
}

/// A waker that counts.
#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_task_is_woken_by_a_message_by_a_cut_and_by_the_end() {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut context = Context::from_waker(&waker);
    let count = || wakes.0.load(Ordering::Relaxed);
    let bus = Bus::new();
    let mut cut = bus.subscribe_with("t", with(1, Lag::Disconnect)).expect("room");
    assert_eq!(cut.poll_recv(&mut context), Poll::Pending);
    bus.publish("t", 1);
    assert_eq!(count(), 1);
    assert_eq!(cut.poll_recv(&mut context), Poll::Ready(Ok(1)));
    assert_eq!(cut.poll_recv(&mut context), Poll::Pending);
    // The second does not fit, the first wakes, and so does the end.
    (2..4).for_each(|n| drop(bus.publish("t", n)));
    assert_eq!(count(), 2);
    assert_eq!(cut.poll_recv(&mut context), Poll::Ready(Ok(2)));
    assert_eq!(cut.poll_recv(&mut context), Poll::Ready(Err(RecvError::CutOff)));
    let mut last = bus.subscribe("t").expect("room");
    assert_eq!(last.poll_recv(&mut context), Poll::Pending);
    drop(bus);
    assert_eq!(count(), 3);
    assert_eq!(last.poll_recv(&mut context), Poll::Ready(Err(RecvError::Closed)));
}

#[test]
fn who_wants_to_be_waited_for_is_until_the_deadline_and_holds_up_nobody() {
    runtime().block_on(async {
        let bus = Bus::new();
        let mut quick = bus.subscribe_with("t", with(1, Lag::Wait)).expect("room");
        let mut stuck = bus.subscribe_with("t", with(1, Lag::Wait)).expect("room");
        assert_eq!(bus.publish_async("t", 0, Duration::from_secs(1)).await.delivered, 2);
        let began = tokio::time::Instant::now();
        let (published, got) =
            tokio::join!(bus.publish_async("t", 1, Duration::from_secs(1)), async { [quick.recv().await, quick.recv().await] });
        assert_eq!(got, [Ok(0), Ok(1)]);
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert_eq!((published.delivered, published.lagged.len()), (1, 1));
        assert_eq!((published.lagged[0].subscriber, published.lagged[0].missed), (stuck.id(), 1));
        // Its place in the queue of waiters is given up with the deadline, and with a call that is dropped.
        drop(tokio::time::timeout(Duration::from_millis(1), bus.publish_async("t", 2, Duration::from_secs(9))).await);
        assert_eq!(stuck.recv().await, Ok(0));
        assert_eq!(bus.publish("t", 3).delivered, 1, "quick has 2 in its queue, stuck has room");
        assert_eq!(everything(&mut stuck), [3]);
    });
}

#[test]
fn publishers_that_wait_come_in_the_order_of_their_calls() {
    runtime().block_on(async {
        let bus = Bus::new();
        let mut slow = bus.subscribe_with("t", with(1, Lag::Wait)).expect("room");
        bus.publish("t", 0);
        let publish = |n| bus.publish_async("t", n, Duration::from_secs(1));
        let receive = async {
            let mut got = vec![];
            for _ in 0..5 {
                // Nobody overtakes who waits, not even with room in sight.
                assert_eq!(bus.publish("t", 99).delivered, 0);
                got.push(slow.recv().await.expect("five come"));
            }
            got
        };
        let (.., got) = tokio::join!(publish(1), publish(2), publish(3), publish(4), receive);
        assert_eq!(got, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_subscriber_that_goes_lets_its_publishers_go() {
    runtime().block_on(async {
        let bus = Bus::new();
        let slow = bus.subscribe_with("t", with(1, Lag::Wait)).expect("room");
        bus.publish("t", 0);
        let (published, ()) = tokio::join!(bus.publish_async("t", 1, Duration::from_secs(3600)), async { drop(slow) });
        assert_eq!(published, Published::default());
    });
}

#[test]
fn a_delivery_keeps_its_place_until_it_is_dropped() {
    let bus = Bus::new();
    let slow = bus.subscribe_with("t", with(1, Lag::Wait)).expect("room");
    bus.publish("t", 1);
    let delivery = slow.receiver().recv().expect("it is there");
    assert_eq!((*delivery, format!("{delivery:?}"), bus.publish("t", 2).delivered), (1, "Delivery(1)".to_owned(), 0));
    drop(delivery);
    assert_eq!(bus.publish("t", 3).delivered, 1);
}

/// Publishers on threads of their own, subscribers of each policy, some in tasks and some blocking: each sees the messages of each publisher in their order, and what
/// it has got and what it has missed is all there was.
#[test]
fn many_threads_at_once_lose_nothing_that_is_not_counted() {
    const PUBLISHERS: u32 = 4;
    const EACH: u32 = if cfg!(miri) { 50 } else { 5_000 };
    let bus = Bus::new();
    let subscribers: Vec<_> = [Lag::DropNewest, Lag::DropOldest, Lag::Wait]
        .into_iter()
        .flat_map(|lag| [(lag, false), (lag, true)])
        .map(|(lag, is_async)| {
            let mut subscription = bus.subscribe_with("t", with(16, lag)).expect("room");
            thread::spawn(move || {
                let mut newest: BTreeMap<u32, u32> = BTreeMap::new();
                let mut got = 0;
                let runtime = runtime();
                loop {
                    let message = if is_async { runtime.block_on(subscription.recv()) } else { subscription.recv_blocking() };
                    let Ok((publisher, n)) = message else { break };
                    got += 1;
                    let before = newest.insert(publisher, n);
                    assert!(before.is_none_or(|before| before < n), "{lag:?}: {n} of {publisher} behind {before:?}");
                }
                assert_eq!(got + subscription.missed(), u64::from(PUBLISHERS * EACH), "{lag:?}");
                (lag, subscription.missed())
            })
        })
        .collect();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let bus = bus.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                for n in 0..EACH {
                    runtime.block_on(bus.publish_async("t", (publisher, n), Duration::from_secs(60)));
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().expect("no panic"));
    drop(bus);
    for subscriber in subscribers {
        let (lag, missed) = subscriber.join().expect("no panic");
        assert!(lag != Lag::Wait || missed == 0, "who is waited for misses nothing");
    }
}

/// Who comes and goes while others publish gets a part without holes of each publisher's messages.
#[test]
fn who_comes_and_goes_sees_no_holes() {
    let bus = Bus::new();
    let publisher = {
        let bus = bus.clone();
        thread::spawn(move || {
            let mut n = 0;
            // Until everybody has gone for good.
            while bus.subscribers("end") == 0 {
                bus.publish("t", n);
                n += 1;
            }
        })
    };
    let comers: Vec<_> = (0..3)
        .map(|_| {
            let bus = bus.clone();
            thread::spawn(move || {
                for _ in 0..200 {
                    let mut subscription = bus.subscribe_with("t", with(64, Lag::Disconnect)).expect("room");
                    let mut before = None;
                    for _ in 0..20 {
                        match subscription.recv_timeout(Duration::from_secs(60)) {
                            Ok(n) => assert_eq!(n, before.replace(n).map_or(n, |before| before + 1)),
                            Err(error) => {
                                assert_eq!(error, RecvError::CutOff.into());
                                break;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    comers.into_iter().for_each(|comer| comer.join().expect("no panic"));
    let end = bus.subscribe("end").expect("room");
    publisher.join().expect("no panic");
    assert_eq!((bus.subscribers("t"), bus.topics()), (0, 1));
    drop(end);
}
