//! The places of a topic: how many are in it over all shards, where there is a bound to that (`limits.topic_subscribers_max`).
//!
//! A topic's home makes them; every other shard gets a handle with the answer to its subscription, before anybody of its own joins. So each shard gives out
//! places by itself, at once, and all of them together never one too many. Without a bound there are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::Limits;

/// A handle on the count of one topic.
#[derive(Clone, Debug)]
pub struct Places(Arc<Count>);

#[derive(Debug)]
struct Count {
    taken: AtomicU64,
    max: u64,
}

impl Places {
    /// Of a topic in which nobody is; none without a bound.
    pub(super) fn new(limits: &Limits) -> Option<Self> {
        (limits.topic_subscribers_max > 0).then(|| Self(Arc::new(Count { taken: AtomicU64::new(0), max: limits.topic_subscribers_max })))
    }

    /// Takes one, if one is left.
    pub(super) fn take(&self) -> bool {
        let one_more = |taken| (taken < self.0.max).then_some(taken + 1);
        self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives one back.
    pub(super) fn give_back(&self) {
        let before = self.0.taken.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "who gives a place back has had one");
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// What somebody is told who finds none left.
pub(super) fn full(limits: &Limits) -> String {
    format!("the topic has as many members as it may (limits.topic_subscribers_max is {})", limits.topic_subscribers_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_give_out_as_many_places_together_as_there_are() {
        let limits = Limits { topic_subscribers_max: 3, ..Limits::default() };
        let home = Places::new(&limits).expect("a bound");
        let away = home.clone();
        assert!(home.take() && away.take() && home.take() && !away.take() && !home.take());
        away.give_back();
        assert!(home.take() && !away.take());
        assert_eq!(away.taken(), 3);
        assert!(Places::new(&Limits::default()).is_none());
    }

    #[test]
    fn what_is_said_fits_a_close_frame() {
        let limits = Limits { topic_subscribers_max: 16_000_000, ..Limits::default() };
        assert!(format!("retry=3600000 {}", full(&limits)).len() <= 123, "{}", full(&limits));
    }
}
