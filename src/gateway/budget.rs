//! The storm budget: all clients may be lost at once and come back at once. One rate, at which they may ([`Limits::return_rate`]), gives every time to
//! come back that a client is told.
//!
//! - **The window** is as long as all clients need that there are, or were of late. Each client is told a time in it while all is well: in an event
//!   stream, in the answer to a poll, in a close frame. The times are even: each lies a golden section of the window behind the one before.
//! - **The line** is for those who come and are refused because more come than may (`limits.handshakes_per_second`): each is told a time behind the one
//!   before, so that they come back one after the other.

use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use crate::engine::driver::Driver;
use crate::limits::Limits;
use crate::time::Time;

/// How long clients that are gone are still reckoned with; then half of them, and so on.
const REMEMBERED: Duration = Duration::from_secs(60);
/// No line is longer, unless the window is: who does not obey makes it longer for those who do.
const LINE_MAX_MS: u64 = 300_000;
/// The golden section of 2^64: its multiples fill a circle more evenly than those of any other number.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What one shard remembers of the clients of the process and of the times that it has given out.
pub(super) struct Budget {
    /// Clients at once, the most of late.
    most: u64,
    /// Since when there are fewer.
    fewer_since: Option<Time>,
    /// Where in the window the last time was, in parts of 2^64.
    place: u64,
    /// The last time that was given to somebody in line.
    line_end: Time,
}

impl Budget {
    pub(super) fn new(place: u64, now: Time) -> Self {
        Self { most: 0, fewer_since: None, place, line_end: now }
    }

    /// There are so many clients now.
    fn see(&mut self, now: Time, clients: u64) {
        if clients >= self.most {
            (self.most, self.fewer_since) = (clients, None);
            return;
        }
        let since = *self.fewer_since.get_or_insert(now);
        if now.since(since) >= REMEMBERED {
            self.most = clients.max(self.most / 2);
            self.fewer_since = Some(now);
        }
    }

    /// Another time within so long.
    fn spread(&mut self, window_ms: u64) -> u64 {
        self.place = self.place.wrapping_add(GOLDEN);
        let parts = u128::from(self.place) * (u128::from(window_ms) + 1);
        (parts >> 64) as u64
    }

    /// How long the next one in line is to wait, if the line is not too long; `slot` is the time for one.
    fn line(&self, now: Time, slot: Duration, longest_ms: u64) -> Option<Duration> {
        let wait = self.line_end.max(now).since(now) + slot;
        (wait.as_millis() < u128::from(longest_ms)).then_some(wait)
    }
}

impl<D: Driver> Gateway<D> {
    /// Looks how many clients there are.
    pub(super) fn see_clients(&mut self) {
        self.budget.see(self.now, self.shared.connections() as u64);
    }

    /// Over how long all clients are asked to come back.
    pub(super) fn return_window_ms(&mut self) -> u64 {
        self.see_clients();
        self.limits.return_window_ms(self.budget.most, self.placement.shards())
    }

    /// When one more client should come back, in milliseconds.
    pub(super) fn retry_ms(&mut self) -> u64 {
        let window_ms = self.return_window_ms();
        self.budget.spread(window_ms)
    }

    /// When somebody should come back who is turned away because too many come. The same for everybody until [`stand_in_line`](Self::stand_in_line).
    pub(super) fn line_ms(&mut self) -> u64 {
        let window_ms = self.return_window_ms();
        let longest_ms = longest_line_ms(&self.limits, window_ms, self.shared.connections_max, self.placement.shards());
        match self.budget.line(self.now, self.line_slot(), longest_ms) {
            Some(wait) => wait.as_millis() as u64,
            None => self.budget.spread(longest_ms),
        }
    }

    /// Somebody was told [`line_ms`](Self::line_ms): the next one comes behind.
    pub(super) fn stand_in_line(&mut self) {
        let window_ms = self.return_window_ms();
        let longest_ms = longest_line_ms(&self.limits, window_ms, self.shared.connections_max, self.placement.shards());
        if let Some(wait) = self.budget.line(self.now, self.line_slot(), longest_ms) {
            self.budget.line_end = self.now + wait;
        }
    }

    /// When to come back, for whoever is ended for this cause.
    pub(super) fn retry_ms_after(&mut self, cause: CloseCause) -> u64 {
        if cause != CloseCause::Busy {
            return self.retry_ms();
        }
        let wait = self.line_ms();
        self.stand_in_line();
        wait
    }

    /// The time that one of a shard's line takes: the shard has an even part of the rate, as it has of the clients.
    fn line_slot(&self) -> Duration {
        let shards = self.placement.shards();
        Duration::from_secs_f64(f64::from(shards) / self.limits.return_rate(shards) as f64)
    }
}

/// A full gateway's clients can all be in line.
fn longest_line_ms(limits: &Limits, window_ms: u64, connections_max: u64, shards: u16) -> u64 {
    limits.return_window_ms(connections_max, shards).min(LINE_MAX_MS).max(window_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Time {
        Time::from_millis(second * 1000)
    }

    #[test]
    fn clients_are_reckoned_with_for_a_while_after_they_are_gone() {
        let mut budget = Budget::new(7, second(0));
        budget.see(second(0), 1000);
        // Nothing was looked at for an hour: the minute counts from when they were missed.
        budget.see(second(3600), 0);
        budget.see(second(3659), 10);
        assert_eq!(budget.most, 1000);
        budget.see(second(3660), 10);
        assert_eq!(budget.most, 500);
        budget.see(second(3719), 10);
        assert_eq!(budget.most, 500);
        for minute in 62..72 {
            budget.see(second(minute * 60), 10);
        }
        assert_eq!(budget.most, 10);
        budget.see(second(4321), 11);
        assert_eq!((budget.most, budget.fewer_since), (11, None));
    }

    #[test]
    fn times_fill_the_window_evenly_from_any_one_on() {
        for seed in [0, 7, u64::MAX] {
            let mut budget = Budget::new(seed, second(0));
            for count in [10_usize, 100, 1000, 5000] {
                let mut tenths = [0_usize; 10];
                for _ in 0..count {
                    let time = budget.spread(9_999);
                    tenths[time as usize / 1000] += 1;
                }
                for of_tenth in tenths {
                    assert!(of_tenth.abs_diff(count / 10) <= 3, "{count} times: {tenths:?}");
                }
            }
            assert_eq!(budget.spread(0), 0);
        }
    }

    #[test]
    fn each_one_in_line_comes_behind_the_one_before_until_it_is_too_long() {
        let mut budget = Budget::new(7, second(0));
        let (now, slot) = (second(100), Duration::from_millis(50));
        for place in 1..200 {
            let wait = budget.line(now, slot, 10_000).expect("there is room");
            assert_eq!(wait, slot * place);
            budget.line_end = now + wait;
        }
        assert_eq!(budget.line(now, slot, 10_000), None, "10 s are not below 10 s");
        assert_eq!(budget.line(second(102), slot, 10_000), Some(Duration::from_millis(8000)), "it moves on");
        assert_eq!(budget.line(second(200), slot, 10_000), Some(slot));
    }

    #[test]
    fn a_line_is_as_long_as_a_full_gateway_needs_and_no_longer_than_five_minutes() {
        let limits = Limits { handshakes_per_second: 1000, ..Limits::default() };
        assert_eq!(longest_line_ms(&limits, 10_000, 20_000, 2), 25_000);
        assert_eq!(longest_line_ms(&limits, 10_000, u64::MAX, 2), 300_000);
        assert_eq!(longest_line_ms(&limits, 400_000, u64::MAX, 2), 400_000);
    }
}
