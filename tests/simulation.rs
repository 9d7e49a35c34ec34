//! Whole simulated gateways in the debug build: the first seeds break no rule, and a seed is one run.

use shardcast::engine::sim::Choices;
use shardcast::sim::run;

#[test]
fn the_first_seeds_break_no_rule() {
    for seed in 0..50 {
        println!("seed {seed}");
        run(Choices::seeded(seed));
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let mut digests = Vec::new();
    for seed in 100..110 {
        let report = run(Choices::seeded(seed));
        assert_eq!(report, run(Choices::seeded(seed)), "seed {seed}");
        digests.push(report.digest);
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 10, "different seeds are different runs");
}
