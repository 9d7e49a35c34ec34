//! 10,000 clients in rooms that talk, handed over to a new process again and again: nobody is disconnected, nothing is lost or doubled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::swarm::{Event, State, Swarm};
use crate::common::{gateway, now, raise_nofile};
use crate::{CLIENTS, full};

const ROOMS: usize = 100;
/// A message of every room in so long.
const ROUND: Duration = Duration::from_millis(500);

/// What a client has heard, and how late.
struct Heard {
    /// The next number that is to come, of each client.
    next: Vec<u32>,
    /// From the moment when a message was said to the moment when it was heard, in microseconds.
    late_us: Vec<u32>,
    messages: u64,
}

impl Heard {
    fn text(&mut self, id: usize, begun: Instant, text: &[u8]) {
        let text = str::from_utf8(text).expect("text");
        let (number, at) = text.split_once(' ').expect("a number and a time");
        assert_eq!(number.parse(), Ok(self.next[id]), "client {id} hears everything of its room once, in order");
        self.next[id] += 1;
        self.messages += 1;
        let said_us: u64 = at.parse().expect("a time");
        self.late_us.push((begun.elapsed().as_micros() as u64 - said_us) as u32);
    }
}

fn percentile(sorted: &[u32], percent: usize) -> f64 {
    f64::from(sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()) / 1000.0
}

#[test]
fn ten_thousand_who_talk_are_handed_over_and_nobody_notices() {
    raise_nofile();
    let handovers = if full() { 50 } else { 5 };
    let mut gateway = gateway().start();
    let mut swarm = Swarm::new(gateway.port);
    for id in 0..CLIENTS {
        swarm.connect(&format!("/ws?room=room-{}", id % ROOMS));
    }
    swarm.run(Duration::from_secs(60), "all open", &mut |_, _| {}, |swarm| swarm.count(&State::Opening) == 0);
    assert_eq!(swarm.count(&State::Open), CLIENTS, "{}", swarm.summary());

    let begun = now();
    let mut heard = Heard { next: vec![0; CLIENTS], late_us: Vec::new(), messages: 0 };
    let mut said = vec![0_u32; ROOMS];
    let mut next_room = 0;
    let mut talk = |swarm: &mut Swarm, heard: &mut Heard, said: &mut [u32], goes_on: &mut dyn FnMut() -> bool| {
        let (first, first_room) = (now(), next_room);
        while goes_on() {
            let due = first_room + (first.elapsed().as_micros() * ROOMS as u128 / ROUND.as_micros()) as usize;
            while next_room < due {
                let room = next_room % ROOMS;
                swarm.send_text(room, format!("{} {}", said[room], begun.elapsed().as_micros()).as_bytes());
                said[room] += 1;
                next_room += 1;
            }
            swarm.turn(Duration::from_millis(2), &mut |id, event| match event {
                Event::Text(text) => heard.text(id, begun, text),
                other => panic!("client {id} is not left alone: {other:?}"),
            });
        }
    };
    let for_a = |time: Duration| {
        let end = now() + time;
        move || now() < end
    };
    talk(&mut swarm, &mut heard, &mut said, &mut for_a(Duration::from_secs(2)));
    let mut usual = std::mem::take(&mut heard.late_us);
    for _ in 0..handovers {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gateway.hand_over();
                over.store(true, Ordering::Relaxed);
            });
            talk(&mut swarm, &mut heard, &mut said, &mut || !over.load(Ordering::Relaxed));
        });
        talk(&mut swarm, &mut heard, &mut said, &mut for_a(Duration::from_millis(300)));
    }
    let mut meanwhile = std::mem::take(&mut heard.late_us);
    // Whatever was said is heard.
    let end = now() + Duration::from_secs(20);
    while (0..CLIENTS).any(|id| heard.next[id] < said[id % ROOMS]) {
        assert!(now() < end, "not everything that was said is heard");
        swarm.turn(Duration::from_millis(20), &mut |id, event| match event {
            Event::Text(text) => heard.text(id, begun, text),
            other => panic!("client {id} is not left alone: {other:?}"),
        });
    }
    assert_eq!(swarm.count(&State::Open), CLIENTS, "{}", swarm.summary());
    assert_eq!(gateway.connections(), CLIENTS as u64);

    let mut pauses: Vec<u32> = gateway
        .log()
        .lines()
        .filter_map(|line| line.split("pause_ms=").nth(1)?.parse::<f64>().ok())
        .map(|ms| (ms * 1000.0) as u32)
        .collect();
    assert_eq!(pauses.len(), handovers);
    [&mut usual, &mut meanwhile, &mut pauses].into_iter().for_each(|sample| sample.sort_unstable());
    println!(
        "hand-over ({} driver): {CLIENTS} clients in {ROOMS} rooms, {handovers} times; {} messages heard, none lost or doubled",
        gateway.driver, heard.messages
    );
    for (what, sample) in [("pause", &pauses), ("a message, usually", &usual), ("a message, meanwhile", &meanwhile)] {
        let [p50, p99, most] = [50, 99, 100].map(|percent| percentile(sample, percent));
        println!("  {what}: p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms");
    }
}
