//! On which terms a subscription reads: where it begins, how often and how long it tries, how much it holds. And what it has done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Where a durable begins. It counts when the durable is made; later it goes on where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// With the oldest event that is kept.
    #[default]
    All,
    /// With what is published from now on.
    New,
    /// With the event of this number in the stream, or the next that is kept.
    Sequence(u64),
    /// With the first that was stored at this time or later.
    Time(SystemTime),
}

/// On which terms a subscription reads. The defaults are for handlers of milliseconds to minutes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Where the durable begins: [`Start::All`].
    pub start: Start,
    /// How long the server waits for a sign of life before it has an event handled elsewhere: 10 s. The bus gives that sign itself, three times in this time, so a handler may
    /// take longer; one that blocks its runtime's threads for longer gives none.
    pub ack_wait: Duration,
    /// How often a process tries to handle an event before it is dead: 5.
    pub attempts_max: u64,
    /// How often an event is delivered before it is dead without a try: 20. So ends one that takes its process with it each time. An event is delivered once more too when a
    /// partition changes hands before its turn has come.
    pub deliveries_max: u64,
    /// How long a failed event waits before it comes again: 1 s, doubled each time.
    pub backoff_min: Duration,
    /// What it waits at most: 30 s.
    pub backoff_max: Duration,
    /// Handlers of one partition that run at the same time, each for another key: 16. With 1 everything is handled in the order of the stream.
    pub handlers_max: usize,
    /// Events of one partition that are delivered and not yet answered for: 1,000. They are in memory, those behind a failed event of their key among them.
    pub held_max: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            start: Start::All,
            ack_wait: Duration::from_secs(10),
            attempts_max: 5,
            deliveries_max: 20,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            handlers_max: 16,
            held_max: 1_000,
        }
    }
}

impl Terms {
    /// What does not go together, and what to change.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.ack_wait < Duration::from_millis(300) {
            return Err(format!("ack_wait is {:?}, below 300ms; a sign of life would come too late", self.ack_wait));
        }
        if [self.attempts_max, self.deliveries_max].contains(&0) || [self.handlers_max, self.held_max].contains(&0) {
            return Err("attempts_max, deliveries_max, handlers_max and held_max are at least 1".to_owned());
        }
        if self.handlers_max > self.held_max {
            return Err(format!("handlers_max is {}, over held_max, {}: who is handled is held", self.handlers_max, self.held_max));
        }
        if self.backoff_min > self.backoff_max {
            return Err(format!("backoff_min is {:?}, over backoff_max, {:?}", self.backoff_min, self.backoff_max));
        }
        Ok(())
    }

    /// How long an event waits that has failed for the `attempt`th time.
    pub(super) fn backoff(&self, attempt: u64) -> Duration {
        let doubled = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(31);
        self.backoff_min.saturating_mul(1 << doubled).min(self.backoff_max)
    }
}

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a subscription counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) handled: Count,
    pub(super) failed: Count,
    pub(super) redelivered: Count,
    pub(super) dead: Count,
    pub(super) partitions: Count,
}

impl Counts {
    pub(super) fn stats(&self) -> Stats {
        Stats {
            handled: self.handled.now(),
            failed: self.failed.now(),
            redelivered: self.redelivered.now(),
            dead: self.dead.now(),
            partitions: self.partitions.now(),
        }
    }
}

/// What a subscription has done in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Events whose handler said `Ok`.
    pub handled: u64,
    /// Times that a handler failed or panicked, or an event could not be read.
    pub failed: u64,
    /// Deliveries that were not the first of their event.
    pub redelivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
    /// Partitions that this process has now; 1 or 0 where there is no group.
    pub partitions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_event_waits_longer_each_time_and_never_too_long() {
        let terms = Terms::default();
        let seconds: Vec<u64> = (1..=8).map(|attempt| terms.backoff(attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(terms.backoff(u64::MAX), terms.backoff_max);
        assert_eq!(terms.check(), Ok(()));
        for terms in [
            Terms { ack_wait: Duration::from_millis(299), ..Terms::default() },
            Terms { attempts_max: 0, ..Terms::default() },
            Terms { deliveries_max: 0, ..Terms::default() },
            Terms { held_max: 15, ..Terms::default() },
            Terms { backoff_min: Duration::from_secs(31), ..Terms::default() },
        ] {
            assert!(terms.check().is_err(), "{terms:?}");
        }
    }
}
