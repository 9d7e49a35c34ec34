//! The bus of a process: nobody sleeps with a message in the queue or with the bus gone, nothing is lost uncounted, and behind a cut comes nothing.
//!
//! The channel, the swap and the waker are parts that loom sees through (src/events/bus/parts.rs); what is under test is what the bus does with them.
//!
//! What was broken on purpose, and what loom said:
//!
//! - `poll_recv` that looks only before it registers: a deadlock in both models of sleepers;
//! - `WakeLast` in front of the sender: a deadlock when the bus goes;
//! - an oldest message thrown away and not counted: "got 1, missed 0, of 2";
//! - an `offer` that does not ask whether the subscriber was cut off: "3 behind a hole".

use loom::future::block_on;
use loom::thread;
use shardcast::events::{Bus, Lag, RecvError, SubscribeOptions};

use crate::search::{assert_among, outcomes};

fn with(queue_messages: usize, lag: Lag) -> SubscribeOptions {
    SubscribeOptions { queue_messages, lag, name: None }
}

#[test]
fn a_task_that_goes_to_sleep_is_woken_by_messages_and_by_the_end() {
    outcomes(Some(3), || {
        let bus = Bus::new();
        let mut subscription = bus.subscribe_with("t", with(2, Lag::DropNewest)).expect("room");
        let publisher = thread::spawn(move || {
            bus.publish("t", 1);
            bus.publish("t", 2);
        });
        let got = block_on(async { [subscription.recv().await, subscription.recv().await, subscription.recv().await] });
        assert_eq!(got, [Ok(1), Ok(2), Err(RecvError::Closed)]);
        publisher.join().expect("no panic");
    });
}

#[test]
fn of_two_handles_the_last_ends_the_bus() {
    outcomes(Some(3), || {
        let bus: Bus<u8> = Bus::new();
        let mut subscription = bus.subscribe_with("t", with(1, Lag::DropNewest)).expect("room");
        let handles = [bus.clone(), bus].map(|bus| thread::spawn(move || drop(bus)));
        assert_eq!(block_on(subscription.recv()), Err(RecvError::Closed));
        handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
    });
}

#[test]
fn what_publishers_throw_away_at_once_is_counted() {
    let outcomes = outcomes(Some(3), || {
        let bus = Bus::new();
        let mut subscription = bus.subscribe_with("t", with(1, Lag::DropOldest)).expect("room");
        let publishers = [1, 2].map(|n| {
            let bus = bus.clone();
            thread::spawn(move || bus.publish("t", n).delivered)
        });
        drop(bus);
        let mut got = 0;
        while block_on(subscription.recv()).is_ok() {
            got += 1;
        }
        assert_eq!(publishers.map(|publisher| publisher.join().expect("no panic")), [1, 1]);
        let missed = subscription.missed();
        assert_eq!(got + missed, 2, "got {got}, missed {missed}, of 2");
        got
    });
    assert_among(&outcomes, [1, 2]);
}

#[test]
fn behind_a_cut_comes_nothing() {
    let outcomes = outcomes(Some(3), || {
        let bus = Bus::new();
        let mut subscription = bus.subscribe_with("t", with(1, Lag::Disconnect)).expect("room");
        let other = {
            let bus = bus.clone();
            thread::spawn(move || bus.publish("t", 9).lagged.len())
        };
        let publisher = thread::spawn(move || (1..=3).map(|n| bus.publish("t", n).lagged.len()).sum::<usize>());
        let mut own = 0;
        let end = loop {
            match block_on(subscription.recv()) {
                Ok(9) => {}
                Ok(n) => {
                    assert_eq!(n, own + 1, "{n} behind a hole");
                    own = n;
                }
                Err(end) => break end,
            }
        };
        let cuts = publisher.join().expect("no panic") + other.join().expect("no panic");
        assert_eq!(cuts, usize::from(end == RecvError::CutOff), "cut off once, and told of once");
        (own, cuts)
    });
    assert_among(&outcomes, [(3, 0), (1, 1), (0, 1)]);
}

#[test]
fn who_goes_while_others_come_and_publish_leaves_nothing() {
    outcomes(Some(3), || {
        let bus = Bus::new();
        let first = bus.subscribe_with("t", with(1, Lag::DropNewest)).expect("room");
        let second = {
            let bus = bus.clone();
            thread::spawn(move || bus.subscribe_with("t", with(1, Lag::DropNewest)).expect("room"))
        };
        let going = thread::spawn(move || drop(first));
        bus.publish("t", 1);
        let second = second.join().expect("no panic");
        going.join().expect("no panic");
        assert_eq!((bus.subscribers("t"), bus.topics()), (1, 1));
        drop(second);
        assert_eq!(bus.topics(), 0);
    });
}
