//! Models of what threads of the gateway do to each other: loom runs each in every interleaving, and with every stale value a load may see.
//!
//! The code under test is the gateway's own, on loom's atomics (src/sync.rs, and for the bus src/events/bus/parts.rs). `tests/run loom` is how to run them.
//!
//! What they do not show: rtrb itself, in whose place a ring with the same orderings stands; and a mistake in code that publishes data by SeqCst
//! fences alone, because loom's fences do that and the language's do not.
#![forbid(unsafe_code)]

#[cfg(not(shardcast_loom))]
compile_error!("without loom's atomics below it a model proves nothing: run `tests/run loom`, which passes --cfg shardcast_loom");

#[cfg(all(test, shardcast_loom))]
mod bus;
#[cfg(all(test, shardcast_loom))]
mod mailbox;
#[cfg(all(test, shardcast_loom))]
mod segment;

#[cfg(all(test, shardcast_loom))]
#[expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "no shard: this gathers what many runs came to, and how long they took"
)]
mod search {
    //! How the interleavings of a model are gone through.

    use std::collections::BTreeSet;
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    /// Runs `model` in all its interleavings, or in those with at most so many preemptions, and returns every outcome that it had. With a larger
    /// LOOM_MAX_PREEMPTIONS in the environment the bounded ones go deeper.
    pub fn outcomes<T: Ord + Debug + Send + 'static>(
        preemptions: Option<usize>,
        model: impl Fn() -> T + Send + Sync + 'static,
    ) -> BTreeSet<T> {
        let began = std::time::Instant::now();
        let seen = Arc::new(Mutex::new((BTreeSet::new(), 0_u64)));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions.map(|least| least.max(builder.preemption_bound.unwrap_or(0)));
        builder.check({
            let seen = Arc::clone(&seen);
            move || {
                let outcome = model();
                let mut seen = seen.lock().expect("no panic with the lock held");
                seen.0.insert(outcome);
                seen.1 += 1;
            }
        });
        let (outcomes, runs) = std::mem::take(&mut *seen.lock().expect("no panic with the lock held"));
        println!("{runs} interleavings in {:?}: {outcomes:?}", began.elapsed());
        outcomes
    }

    /// A model that never comes where it matters proves nothing: these outcomes are among those it had.
    pub fn assert_among<T: Ord + Debug>(outcomes: &BTreeSet<T>, expected: impl IntoIterator<Item = T>) {
        for outcome in expected {
            assert!(outcomes.contains(&outcome), "no interleaving ended with {outcome:?}");
        }
    }
}
