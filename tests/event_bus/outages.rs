//! The server stands still, or dies, under a bus that publishes and handles: callers get their deadline's error, it recovers by itself, and nothing
//! that was acknowledged is lost. `SHARDCAST_SCENARIO_FULL=1` has it stand still for 30 s.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shardcast::events::EventBus;
use shardcast::events::event_bus::{Event, PublishError, Received, Terms};
use tokio::time::sleep;

use super::{Seen, eventually, noting, options, run, server, terms};
use crate::nats::NatsServer;

/// A way to the server that swallows what the server says, and then breaks: what was under way is lost, and nobody is told what it was.
struct Swallower {
    port: u16,
    swallows: Arc<AtomicBool>,
}

impl Swallower {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let swallows = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&swallows);
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.expect("a client"), TcpStream::connect(("127.0.0.1", server)).expect("the server is there"));
                let ends = || (client.try_clone().expect("a descriptor"), server.try_clone().expect("a descriptor"));
                let (from_client, to_server) = ends();
                thread::spawn(move || carry(from_client, to_server, None));
                let (to_client, from_server) = ends();
                let swallows = Arc::clone(&own);
                thread::spawn(move || carry(from_server, to_client, Some(&swallows)));
            }
        });
        Self { port, swallows }
    }

    /// Swallows for a while, and breaks all connections.
    async fn swallow(&self, time: Duration) {
        self.swallows.store(true, Ordering::SeqCst);
        sleep(time).await;
        // The next byte ends it.
        self.swallows.store(false, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, swallows: Option<&AtomicBool>) {
    let (mut buffer, mut has_swallowed) = ([0; 16384], false);
    while let Ok(count) = from.read(&mut buffer) {
        let swallows = swallows.is_some_and(|swallows| swallows.load(Ordering::SeqCst));
        if count == 0 || (has_swallowed && !swallows) || (!swallows && to.write_all(&buffer[..count]).is_err()) {
            break;
        }
        has_swallowed |= swallows;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A connection that notices soon when nobody answers.
async fn alert(server: &NatsServer) -> EventBus {
    alert_at(&server.url()).await
}

async fn alert_at(url: &str) -> EventBus {
    let connect = shardcast::events::nats::ConnectOptions::new()
        .ping_interval(Duration::from_millis(200))
        .connection_timeout(Duration::from_millis(500))
        .reconnect_delay_callback(|_| Duration::from_millis(50));
    EventBus::connect_with(url, connect, options()).await.expect("the server is there")
}

/// Each key's numbers in their order: a number's key is its last digit, by five. Who comes again may; who is left out may not.
fn assert_in_order(seen: &[u64]) {
    for key in 0..5 {
        let mut next = key;
        for number in seen.iter().copied().filter(|number| number % 5 == key) {
            assert!(number <= next, "{number} before {next}, of {seen:?}");
            next = next.max(number + 5);
        }
    }
}

async fn all_are_handled(seen: &Seen, acknowledged: &BTreeSet<u64>) {
    eventually(|| {
        let handled: BTreeSet<u64> = seen.now().into_iter().collect();
        match acknowledged.difference(&handled).count() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} that were acknowledged were not handled", acknowledged.len())),
        }
    })
    .await;
}

#[test]
fn a_server_that_stands_still_costs_callers_their_deadline_and_nothing_else() {
    let frozen_for = Duration::from_secs(if std::env::var_os("SHARDCAST_SCENARIO_FULL").is_some() { 30 } else { 3 });
    let within = Duration::from_millis(300);
    let (server, _store) = server();
    run(async {
        let bus = alert(&server).await;
        let seen = Seen::default();
        let subscription = bus.subscribe_group("t", "g", terms(), noting(&seen)).await.expect("a new group");
        let mut acknowledged = BTreeSet::new();
        let mut publish = async |number: u64| {
            // The same event until it is there: tried again it is stored once.
            let event = Event::new("n", "tests", number).with_key((number % 10).to_string());
            let published = bus.publish_within("t", &event, within).await;
            if published.is_ok() {
                acknowledged.insert(number);
            }
            published
        };
        for number in 0..50 {
            publish(number).await.expect("all is well");
        }
        server.freeze();
        let began = Instant::now();
        let (mut number, mut refused) = (50, 0);
        while began.elapsed() < frozen_for {
            match publish(number).await {
                Err(PublishError::Deadline { .. }) => refused += 1,
                // It takes a moment until all of its threads stand.
                Ok(_) if refused == 0 => {}
                answer => panic!("a server that stands still has answered {answer:?}"),
            }
            number += 1;
        }
        assert!(refused > 0);
        server.thaw();
        let began = Instant::now();
        while let Err(error) = publish(number).await {
            assert!(matches!(error, PublishError::Deadline { .. } | PublishError::Refused { .. }), "{error}");
            assert!(began.elapsed() < 2 * super::SOON, "it does not recover: {error}");
            number += 1;
            sleep(Duration::from_millis(20)).await;
        }
        for number in number + 1..number + 50 {
            let began = Instant::now();
            while let Err(error) = publish(number).await {
                assert!(began.elapsed() < 2 * super::SOON, "it has not recovered: {error}");
            }
        }
        println!("{refused} publishes ended with their deadline, the first was acknowledged {:?} after the thaw", began.elapsed());
        all_are_handled(&seen, &acknowledged).await;
        subscription.stop().await;
    });
}

#[test]
fn a_server_that_dies_again_and_again_loses_nothing_and_mixes_up_no_key() {
    let (mut server, _store) = server();
    run(async {
        let bus = alert(&server).await;
        let seen = Seen::default();
        let handler = {
            let seen = seen.clone();
            move |received: Received<u64>| {
                let seen = seen.clone();
                async move {
                    sleep(Duration::from_millis(2)).await;
                    seen.note(received.event.payload);
                    Ok::<(), String>(())
                }
            }
        };
        let subscription = bus.subscribe_group("t", "g", terms(), handler).await.expect("a new group");
        let publisher = {
            let bus = bus.clone();
            tokio::spawn(async move {
                for number in 0..500_u64 {
                    let event = Event::new("n", "tests", number).with_key((number % 5).to_string());
                    while bus.publish_within("t", &event, Duration::from_millis(500)).await.is_err() {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        };
        for third in 1..=3 {
            eventually(|| match seen.now().len() {
                handled if handled >= third * 100 => Ok(()),
                handled => Err(format!("{handled} were handled")),
            })
            .await;
            server.kill();
            sleep(Duration::from_millis(200)).await;
            server.restart();
        }
        publisher.await.expect("all are stored in the end");
        all_are_handled(&seen, &(0..500).collect()).await;
        assert_in_order(&seen.now());
        println!("{} of 500 were handled again", seen.now().len() - 500);
        subscription.stop().await;
    });
}

#[test]
fn what_a_broken_connection_has_swallowed_is_not_overtaken() {
    let (server, _store) = server();
    let way = Swallower::start(server.port);
    run(async {
        let publisher = alert(&server).await;
        let bus = alert_at(&format!("nats://127.0.0.1:{}", way.port)).await;
        let seen = Seen::default();
        // What was swallowed comes again long after what is new.
        let terms = Terms { ack_wait: Duration::from_secs(3), ..terms() };
        let subscription = bus.subscribe_group("t", "g", terms, noting(&seen)).await.expect("a new group");
        let mut number = 0;
        for _ in 0..2 {
            let mut publish = async |count: u64| {
                for _ in 0..count {
                    let event = Event::new("n", "tests", number).with_key((number % 5).to_string());
                    publisher.publish("t", &event).await.expect("it is stored");
                    number += 1;
                }
            };
            publish(50).await;
            tokio::join!(way.swallow(Duration::from_millis(100)), publish(20));
            publish(30).await;
            all_are_handled(&seen, &(0..number).collect()).await;
        }
        assert_in_order(&seen.now());
        assert!(subscription.stats().redelivered > 0, "something was swallowed");
        println!("{} of {number} were handled again", seen.now().len() as u64 - number);
        subscription.stop().await;
    });
}
