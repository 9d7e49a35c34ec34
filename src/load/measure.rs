//! What is counted: each thread has a tally of its own, and they are added up at the end.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(300);
/// Digits of a latency that are kept: 3 are 0.1 %.
const LATENCY_DIGITS: u8 = 3;
/// Missing messages that are remembered one by one, to tell late ones from repeated ones. Beyond it late ones count as repeated.
const MISSING_MAX: usize = 1 << 20;

/// Times, from a nanosecond up.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, LATENCY_DIGITS).expect("the bounds are in order"))
    }
}

/// The percentiles that reports name.
pub(super) const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99), ("max", 100.0)];

impl Latencies {
    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(super) fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }

    /// `None` when nothing was recorded.
    pub(super) fn percentile(&self, percent: f64) -> Option<Duration> {
        // The histogram's buckets round up: nothing is above the largest value.
        (!self.0.is_empty()).then(|| Duration::from_nanos(self.0.value_at_percentile(percent).min(self.0.max())))
    }
}

/// One second of a run.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Second {
    pub(super) published: u64,
    pub(super) deliveries: u64,
    pub(super) bytes: u64,
    /// The longest latency of a delivery that came in it.
    pub(super) worst: Duration,
}

impl Second {
    fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
        self.worst = self.worst.max(other.worst);
    }
}

/// What a thread has counted.
#[derive(Default, Debug)]
pub(super) struct Tally {
    /// Within the window.
    pub(super) published: u64,
    pub(super) deliveries: u64,
    pub(super) delivered_bytes: u64,
    pub(super) latencies: Latencies,
    /// Over the whole run, from its start on.
    pub(super) seconds: Vec<Second>,
    pub(super) faults: Faults,
    /// Of readers that were made slow.
    pub(super) slow_faults: Faults,
    pub(super) slow_deliveries: u64,
    /// Messages that were due, and for which there was no room before the end.
    pub(super) unsent: u64,
    /// Messages of a closed loop that were given up so that it goes on.
    pub(super) stalls: u64,
    /// Messages of somebody else.
    pub(super) foreign: u64,
    /// Messages that came compressed.
    pub(super) compressed: u64,
    pub(super) pings: u64,
    /// Receivers that left and came back, within the window.
    pub(super) churned: u64,
    /// Connections that ended while they should have stayed, by how.
    pub(super) ends: BTreeMap<String, u64>,
    /// How the slow ones fared.
    pub(super) slow_ends: BTreeMap<String, u64>,
    /// Of each room: fingerprint and count of its receivers so far, and whether they differ.
    pub(super) orders: BTreeMap<u32, RoomOrder>,
    missing: HashSet<(u32, u32, u32)>,
}

/// What went wrong between publishers and receivers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Faults {
    /// Messages that did not come.
    pub(super) lost: u64,
    /// That came again.
    pub(super) repeated: u64,
    /// That came behind a newer one.
    pub(super) reordered: u64,
    /// Of another room.
    pub(super) strayed: u64,
}

impl Faults {
    pub(super) fn is_clean(self) -> bool {
        self == Self::default()
    }

    fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.strayed += other.strayed;
    }
}

/// Whether the receivers of a room saw one order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RoomOrder {
    Same((u64, u64)),
    Different,
}

impl RoomOrder {
    fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Different }
    }
}

impl Tally {
    pub(super) fn second(&mut self, second: usize) -> &mut Second {
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }

    pub(super) fn faults_of(&mut self, slow: bool) -> &mut Faults {
        if slow { &mut self.slow_faults } else { &mut self.faults }
    }

    /// These did not come, so far.
    pub(super) fn skipped(&mut self, slow: bool, client: u32, publisher: u32, sequences: std::ops::Range<u32>) {
        self.faults_of(slow).lost += u64::from(sequences.end - sequences.start);
        for sequence in sequences {
            if self.missing.len() >= MISSING_MAX {
                break;
            }
            self.missing.insert((client, publisher, sequence));
        }
    }

    /// An old one came.
    pub(super) fn old(&mut self, slow: bool, client: u32, publisher: u32, sequence: u32) {
        let late = self.missing.remove(&(client, publisher, sequence));
        let faults = self.faults_of(slow);
        if late {
            faults.lost -= 1;
            faults.reordered += 1;
        } else {
            faults.repeated += 1;
        }
    }

    /// A receiver's view of its room.
    pub(super) fn order(&mut self, room: u32, total: (u64, u64)) {
        let seen = RoomOrder::Same(total);
        self.orders.entry(room).and_modify(|order| *order = order.and(seen)).or_insert(seen);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.published += other.published;
        self.deliveries += other.deliveries;
        self.delivered_bytes += other.delivered_bytes;
        self.latencies.add(&other.latencies);
        for (at, second) in other.seconds.iter().enumerate() {
            self.second(at).add(second);
        }
        self.faults.add(other.faults);
        self.slow_faults.add(other.slow_faults);
        self.slow_deliveries += other.slow_deliveries;
        self.unsent += other.unsent;
        self.stalls += other.stalls;
        self.foreign += other.foreign;
        self.compressed += other.compressed;
        self.pings += other.pings;
        self.churned += other.churned;
        for (into, from) in [(&mut self.ends, other.ends), (&mut self.slow_ends, other.slow_ends)] {
            for (how, count) in from {
                *into.entry(how).or_default() += count;
            }
        }
        for (room, order) in other.orders {
            self.orders.entry(room).and_modify(|own| *own = own.and(order)).or_insert(order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut one = Latencies::default();
        let mut two = Latencies::default();
        for millis in 1..=500 {
            one.record(Duration::from_millis(millis));
            two.record(Duration::from_millis(millis + 500));
        }
        one.add(&two);
        let near = |percent: f64, millis: f64| {
            let found = one.percentile(percent).expect("there are values").as_secs_f64() * 1000.0;
            assert!((found - millis).abs() <= millis * 0.002, "p{percent}: {found} ms, {millis} expected");
        };
        near(50.0, 500.0);
        near(99.0, 990.0);
        near(99.9, 999.0);
        near(100.0, 1000.0);
        assert_eq!((one.count(), Latencies::default().percentile(50.0)), (1000, None));
        one.record(Duration::from_secs(100_000));
        assert!(one.percentile(100.0).is_some_and(|worst| worst >= LATENCY_MAX), "a latency out of range counts as the longest");
    }

    #[test]
    fn a_late_message_is_not_lost_and_a_repeated_one_is_told_from_it() {
        let mut tally = Tally::default();
        tally.skipped(false, 7, 1, 3..6);
        assert_eq!(tally.faults.lost, 3);
        tally.old(false, 7, 1, 4);
        tally.old(false, 7, 1, 4);
        tally.old(false, 8, 1, 5);
        assert_eq!(tally.faults, Faults { lost: 2, repeated: 2, reordered: 1, strayed: 0 });
        assert!(tally.slow_faults.is_clean());
    }

    #[test]
    fn tallies_add_up() {
        let mut all = Tally::default();
        for thread in 1..=2 {
            let mut tally = Tally { deliveries: thread, ..Tally::default() };
            tally.second(thread as usize).deliveries = thread;
            tally.ends.insert("gone".to_owned(), thread);
            tally.order(5, (9, 9));
            tally.order(6, (thread, 1));
            all.add(tally);
        }
        assert_eq!((all.deliveries, all.ends["gone"], all.seconds.len()), (3, 3, 3));
        assert_eq!(all.seconds.iter().map(|second| second.deliveries).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((all.orders[&5], all.orders[&6]), (RoomOrder::Same((9, 9)), RoomOrder::Different));
    }
}
