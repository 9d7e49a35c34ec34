//! 20 of 200 subscribers never read while 64 MiB are published to them: memory stays bounded, they are ended with 4508, nobody else loses anything.

use std::time::Duration;

use crate::common::swarm::{Event, State, Swarm};
use crate::common::{SLOW_CONSUMER, eventually, gateway, now};
use crate::{kib, settled_pss};

const SUBSCRIBERS: usize = 200;
const SLOW: usize = 20;
const MESSAGE_BYTES: usize = 16 * 1024;
const MESSAGES: u32 = 4096;
/// The publisher is at most this far ahead of the last healthy reader.
const WINDOW_BYTES: usize = 256 * 1024;
const HARD_LIMIT_BYTES: u64 = 1024 * 1024;
const SLACK_BYTES: u64 = 16 * 1024 * 1024;

#[test]
fn twenty_readers_that_never_read_cost_the_others_nothing() {
    let gateway = gateway().limit("history_messages", 0).limit("queue_bytes_max", HARD_LIMIT_BYTES).start();
    let mut swarm = Swarm::new(gateway.port);
    for _ in 0..SUBSCRIBERS {
        swarm.connect("/ws?room=broadcast");
    }
    swarm.run(Duration::from_secs(20), "the subscribers open", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == SUBSCRIBERS);
    // The first of them are the slow ones. All of them hear one text first, so that all are members when it begins.
    let publisher = swarm.connect_and_open("/ws?room=broadcast&echo=0", &mut |_, _| {});
    let deadline = now() + Duration::from_secs(20);
    while (0..SUBSCRIBERS).any(|id| swarm.client(id).messages == 0) {
        assert!(now() < deadline, "a subscriber hears nothing");
        swarm.send_text(publisher, b"is everybody here?");
        swarm.run_for(Duration::from_millis(100), &mut |_, _| {});
    }
    for id in 0..SLOW {
        swarm.set_reading(id, false);
    }
    let start = settled_pss(&gateway, &mut swarm);

    let begun = now();
    let mut heard = vec![0_u32; SUBSCRIBERS];
    let (mut sent, mut most, mut sampled) = (0_u32, start, now());
    while heard[SLOW..].iter().any(|heard| *heard < MESSAGES) {
        assert!(
            begun.elapsed() < Duration::from_secs(180),
            "{} of {MESSAGES} messages after 180 s ({})",
            heard[SLOW..].iter().min().expect("readers"),
            swarm.summary()
        );
        let slowest = *heard[SLOW..].iter().min().expect("there are healthy readers");
        while sent < MESSAGES && (sent - slowest) as usize * MESSAGE_BYTES < WINDOW_BYTES {
            let mut payload = vec![b'x'; MESSAGE_BYTES];
            payload[..4].copy_from_slice(&sent.to_be_bytes());
            swarm.send_binary(publisher, &payload);
            sent += 1;
        }
        swarm.turn(Duration::from_millis(20), &mut |id, event| match event {
            Event::Binary(payload) => {
                assert_eq!(payload.len(), MESSAGE_BYTES);
                assert_eq!(payload[..4], heard[id].to_be_bytes(), "healthy reader {id} lost a message or its order");
                heard[id] += 1;
            }
            Event::Close(code, reason) => panic!("healthy client {id} was closed: {code:?} {reason}"),
            _ => {}
        });
        if sampled.elapsed() > Duration::from_millis(50) {
            most = most.max(gateway.pss_bytes());
            sampled = now();
        }
    }
    let took = begun.elapsed();
    eventually(Duration::from_secs(20), || match gateway.closes(SLOW_CONSUMER) {
        closed if closed == SLOW as u64 => Ok(()),
        closed => Err(format!("{closed} slow readers are ended, {SLOW} should be")),
    });
    gateway.wait_for_connections((SUBSCRIBERS - SLOW + 1) as u64);
    let end = settled_pss(&gateway, &mut swarm);
    let bound = start + SLOW as u64 * HARD_LIMIT_BYTES + SLACK_BYTES;
    let published = u64::from(MESSAGES) * MESSAGE_BYTES as u64;

    println!("slow readers ({} driver): {SLOW} of {SUBSCRIBERS} never read while {} MiB are published", gateway.driver, published >> 20);
    println!("  Pss: start {} KiB, at most {} KiB (bound {} KiB), end {} KiB", kib(start), kib(most), kib(bound), kib(end));
    println!(
        "  {} healthy readers got {} GiB in {:.1} s, none lost a message; {SLOW} ended as slow_consumer",
        SUBSCRIBERS - SLOW,
        (published * (SUBSCRIBERS - SLOW) as u64) >> 30,
        took.as_secs_f64()
    );
    for id in (SLOW..SUBSCRIBERS).chain([publisher]) {
        assert_eq!(swarm.client(id).state(), &State::Open, "client {id}: {:?}", swarm.client(id).end());
    }
    assert!(most <= bound, "{most} bytes of Pss, the bound is {bound}");
}
