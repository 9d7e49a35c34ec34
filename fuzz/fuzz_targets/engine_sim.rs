//! Whole shards over the simulated kernel: the bytes decide bounds, faults, clients and schedule, and the oracle of the simulations judges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::engine::sim::Choices;
use shardcast::sim::run;

fuzz_target!(|data: &[u8]| {
    run(Choices::scripted(data));
});
