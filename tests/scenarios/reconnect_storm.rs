//! 10,000 handshakes at once, all dropped, all back, five times and more: no failure, and everything is given back each time.

use std::time::Duration;

use crate::common::swarm::{State, Swarm};
use crate::common::{Gateway, eventually, gateway, now, raise_nofile};
use crate::{CLIENTS, kib, settled_pss};

const CYCLES: usize = 5;
/// A reading differs from the next by a percent or two, either way; what is left behind adds up, and is still there three cycles later.
const CYCLES_MAX: usize = 8;
/// The last cycle against cycle 2: the first one still grows pools.
const GROWTH_PERCENT_MAX: f64 = 2.0;

#[test]
fn five_storms_of_ten_thousand_leave_nothing_behind() {
    raise_nofile();
    let gateway = gateway().limit("history_messages", 0).start();
    let descriptors = gateway.descriptors();
    let (mut open, mut empty) = (Vec::new(), Vec::new());
    println!(
        "reconnect storm ({} driver): {CLIENTS} handshakes at once, {CYCLES} times; {descriptors} descriptors when empty",
        gateway.driver
    );
    for cycle in 1..=CYCLES_MAX {
        let mut swarm = Swarm::new(gateway.port);
        let begun = now();
        for id in 0..CLIENTS {
            swarm.connect(&format!("/ws?room=room-{}", id % 1000));
        }
        swarm.run(Duration::from_secs(60), "all open", &mut |_, _| {}, |swarm| swarm.count(&State::Opening) == 0);
        let opened = begun.elapsed();
        assert_eq!(swarm.count(&State::Open), CLIENTS, "cycle {cycle}: {}", swarm.summary());
        gateway.wait_for_connections(CLIENTS as u64);
        descriptors_become(&gateway, descriptors + CLIENTS, "with all clients in");
        open.push(settled_pss(&gateway, &mut swarm));

        let begun = now();
        for id in 0..CLIENTS {
            swarm.drop_client(id, id % 2 == 0);
        }
        gateway.wait_for_connections(0);
        descriptors_become(&gateway, descriptors, "when everybody is gone");
        let dropped = begun.elapsed();
        let metrics = gateway.metrics();
        for gauge in ["shardcast_outbound_bytes", "shardcast_topics"] {
            if metrics.has(gauge) {
                assert_eq!(metrics.sum(gauge, &[]), 0.0, "cycle {cycle}: {gauge} when everybody is gone");
            }
        }
        empty.push(settled_pss(&gateway, &mut swarm));
        println!(
            "  cycle {cycle}: open after {:.2} s, gone after {:.2} s; Pss {} KiB with all in, {} KiB when empty",
            opened.as_secs_f64(),
            dropped.as_secs_f64(),
            kib(open[cycle - 1]),
            kib(empty[cycle - 1])
        );
        if cycle >= CYCLES && [&open, &empty].into_iter().all(|samples| growth(samples) <= GROWTH_PERCENT_MAX) {
            break;
        }
    }
    for (about, samples) in [("with all in", &open), ("when empty", &empty)] {
        let growth = growth(samples);
        println!("  Pss {about}: cycle {} against cycle 2 {growth:+.2} % (bound {GROWTH_PERCENT_MAX} %)", samples.len());
        assert!(growth <= GROWTH_PERCENT_MAX, "Pss {about} grew by {growth:.2} % from cycle 2 to cycle {}", samples.len());
    }
}

/// From the second cycle, when all memory has been needed once, to the last, in percent.
fn growth(samples: &[u64]) -> f64 {
    let [.., last] = samples else { return 0.0 };
    100.0 * (*last as f64 - samples[1] as f64) / samples[1] as f64
}

/// Exactly so many, once the connection of the last scrape is gone too.
fn descriptors_become(gateway: &Gateway, expected: usize, when: &str) {
    eventually(Duration::from_secs(10), || match gateway.descriptors() {
        open if open == expected => Ok(()),
        open => Err(format!("{open} descriptors are open {when}, {expected} were expected")),
    });
}
