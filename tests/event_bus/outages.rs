//! The server stands still, or dies, under a bus that publishes and handles: callers get their deadline's error, it recovers by itself, and nothing
//! that was acknowledged is lost. `SHARDCAST_SCENARIO_FULL=1` has it stand still for 30 s.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shardcast::events::EventBus;
use shardcast::events::event_bus::{Event, PublishError, Received};
use tokio::time::sleep;

use super::{Seen, eventually, noting, options, run, server, terms};
use crate::nats::NatsServer;

/// A connection that notices soon when nobody answers.
async fn alert(server: &NatsServer) -> EventBus {
    let connect = shardcast::events::nats::ConnectOptions::new()
        .ping_interval(Duration::from_millis(200))
        .connection_timeout(Duration::from_millis(500))
        .reconnect_delay_callback(|_| Duration::from_millis(50));
    EventBus::connect_with(&server.url(), connect, options()).await.expect("the server is there")
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
        // Five keys: a number's key is its last digit, by five.
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
        let seen = seen.now();
        for key in 0..5 {
            let mut next = key;
            for number in seen.iter().copied().filter(|number| number % 5 == key) {
                assert!(number <= next, "{number} before {next}, of {seen:?}");
                next = next.max(number + 5);
            }
        }
        println!("{} of 500 were handled again", seen.len() - 500);
        subscription.stop().await;
    });
}
