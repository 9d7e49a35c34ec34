//! 10,000 clients are drained over 10 s: goodbyes are even over it, and each says when to come back.

use std::time::Duration;

use crate::common::swarm::{Event, State, Swarm};
use crate::common::{SOON, gateway, now, raise_nofile};
use crate::{CLIENTS, full};

const PACE_MS: u64 = 10_000;
const VARIATION_MAX: f64 = 0.3;

#[test]
fn ten_thousand_goodbyes_are_even_over_ten_seconds() {
    raise_nofile();
    let gateway = gateway().limit("history_messages", 0).limit("drain_pace_ms", PACE_MS).start();
    let mut swarm = Swarm::new(gateway.port);
    for id in 0..CLIENTS {
        swarm.connect(&format!("/ws?room=room-{}", id % 1000));
    }
    swarm.run(Duration::from_secs(60), "all open", &mut |_, _| {}, |swarm| swarm.count(&State::Opening) == 0);
    assert_eq!(swarm.count(&State::Open), CLIENTS, "{}", swarm.summary());

    let begun = now();
    gateway.signal(libc::SIGTERM);
    let (mut times, mut hints) = (Vec::new(), Vec::new());
    let on = &mut |_, event: Event<'_>| {
        if let Event::Close(code, reason) = event {
            let hint = reason.strip_prefix("retry=").and_then(|ms| ms.parse::<u64>().ok());
            assert_eq!((code, hint.is_some()), (Some(1012), true), "{reason}");
            times.push(begun.elapsed().as_millis() as u64);
            hints.extend(hint);
        }
    };
    let limit = Duration::from_millis(PACE_MS) + SOON;
    // To ask the swarm for its states means to look at all of them: not in every turn.
    let mut looks = 0_u32;
    swarm.run(limit, "goodbyes", on, |swarm| {
        looks += 1;
        looks.is_multiple_of(50) && swarm.count(&State::Gone) == CLIENTS
    });

    let first = times[0];
    let closings = |slot_ms: u64| variation(times.iter().map(|time| (time - first) / slot_ms), PACE_MS / slot_ms);
    let back: Vec<u64> = times.iter().zip(&hints).map(|(time, hint)| time - first + hint).collect();
    let window_ms = PACE_MS + 10_000;
    // Two windows over each other make a triangle: its middle half is what is looked at.
    let in_second = |second: u64| back.iter().filter(|back| (second * 1000..second * 1000 + 1000).contains(*back)).count();
    println!(
        "paced drain ({} driver): {CLIENTS} clients over {PACE_MS} ms; the last after {} ms",
        gateway.driver,
        times[CLIENTS - 1] - first
    );
    println!(
        "  closings: coefficient of variation {:.3} in slots of 100 ms (bound {VARIATION_MAX}), {:.3} in seconds",
        closings(100),
        closings(1000)
    );
    println!("  they come back within {window_ms} ms, at most {} in a second", (0..20).map(in_second).max().unwrap_or(0));
    assert_eq!(hints.len(), CLIENTS, "each is told when to come back");
    assert!(back.iter().all(|back| *back <= window_ms + 2000), "a hint is beyond its window");
    assert!(closings(1000) < VARIATION_MAX, "coefficient of variation {:.3} in seconds", closings(1000));
    if full() {
        // A machine with other work to do stops for a tenth of a second now and then.
        assert!(closings(100) < VARIATION_MAX, "coefficient of variation {:.3} in slots of 100 ms", closings(100));
    }
}

/// Standard deviation over mean of how many fall into each slot.
fn variation(slots: impl Iterator<Item = u64>, count: u64) -> f64 {
    let mut counts = vec![0_f64; count as usize];
    slots.for_each(|slot| counts[slot.min(count - 1) as usize] += 1.0);
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    variance.sqrt() / mean
}
