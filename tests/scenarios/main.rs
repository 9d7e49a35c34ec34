//! What the gateway must show, with figures: `tests/run scenarios`.
//!
//! 10,000 clients on one thread against the gateway as its own process. What depends on memory, counts and order passes or fails; what depends on time
//! is printed. SHARDCAST_SCENARIO_FULL=1 runs with the true defaults, over minutes, and then judges CPU too.

#[path = "../common/mod.rs"]
mod common;

mod floods;
mod forms;
mod handover;
mod idle;
#[cfg(feature = "nats")]
mod nats;
mod paced_drain;
mod reconnect_storm;
mod reset_crowd;
mod slow_quotes;
mod slow_readers;
mod watchers;

/// How many clients the scenarios hold: what 20,000 descriptors of one process allow with room to spare.
const CLIENTS: usize = 10_000;

/// Whether to take minutes.
fn full() -> bool {
    std::env::var_os("SHARDCAST_SCENARIO_FULL").is_some_and(|value| value != "0")
}

/// The middle of five samples over a second: a reading may catch a buffer in use.
fn settled_pss(gateway: &common::Gateway, swarm: &mut common::swarm::Swarm) -> u64 {
    let mut samples: Vec<u64> = (0..5)
        .map(|_| {
            swarm.run_for(std::time::Duration::from_millis(200), &mut |_, _| {});
            gateway.pss_bytes()
        })
        .collect();
    samples.sort_unstable();
    samples[2]
}

fn kib(bytes: u64) -> u64 {
    bytes / 1024
}
