//! Rates with bursts: the generic cell rate algorithm (ITU-T I.371), one time instead of a bucket of tokens.
//!
//! A [`Rate`] is the time at which everything taken so far would have been due, had it come evenly. Taking is allowed while that lies at most
//! `limits.rate_burst_ms` ahead. So a rate that was not used for that long may be used up at once, and never more than that.

use std::time::Duration;

use super::Gateway;
use crate::engine::driver::Driver;
use crate::ids::ConnKey;
use crate::limits::Limits;
use crate::time::Time;

/// How much of a rate was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate(Time);

impl Default for Rate {
    fn default() -> Self {
        Self(Time::ZERO)
    }
}

impl Rate {
    /// Takes `count` at a rate of so many per second, or says how long to wait until that is possible. More than a whole burst is possible when nothing of
    /// it is used, and is made up for afterwards.
    pub(super) fn take(&mut self, now: Time, count: u64, per_second: f64, burst: Duration) -> Result<(), Duration> {
        let due = self.0.max(now);
        let cost = Duration::try_from_secs_f64(count as f64 / per_second).unwrap_or(Duration::from_secs(3600));
        let wait = due.since(now).saturating_add(cost.min(burst)).saturating_sub(burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.0 = due + cost;
        Ok(())
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_over(self, now: Time) -> bool {
        self.0 <= now
    }

    /// Whether one more could be taken.
    pub(super) fn has_room(mut self, now: Time, per_second: f64, burst: Duration) -> bool {
        self.take(now, 1, per_second, burst).is_ok()
    }
}

/// What one connection has said.
#[derive(Clone, Copy, Default)]
pub(super) struct Said {
    messages: Rate,
    bytes: Rate,
}

/// Why a connection may not say more now, and for how long.
pub(super) struct OverRate {
    /// The key of the bound.
    pub(super) limit: &'static str,
    pub(super) wait: Duration,
}

/// What may be used at once after a quiet time, as a time.
pub(super) fn burst(limits: &Limits) -> Duration {
    Duration::from_millis(limits.rate_burst_ms)
}

impl<D: Driver> Gateway<D> {
    /// Counts messages that a connection publishes against its rates.
    pub(super) fn take_said(&mut self, key: ConnKey, messages: u64, bytes: u64) -> Result<(), OverRate> {
        let limits = &self.limits;
        if limits.messages_per_second == 0 && limits.message_bytes_per_second == 0 {
            return Ok(());
        }
        let (now, burst) = (self.now, burst(limits));
        if self.said.get(key).is_none() {
            self.said.insert(key, Said::default());
        }
        let Some(said) = self.said.get_mut(key) else { return Ok(()) };
        let both = [
            ("limits.messages_per_second", &mut said.messages, messages, limits.messages_per_second),
            ("limits.message_bytes_per_second", &mut said.bytes, bytes, limits.message_bytes_per_second),
        ];
        for (limit, rate, count, per_second) in both {
            if per_second > 0
                && let Err(wait) = rate.take(now, count, per_second as f64, burst)
            {
                return Err(OverRate { limit, wait });
            }
        }
        Ok(())
    }

    /// Whether one more client may open a WebSocket or a stream now. The rate is the process's; each shard has an even part of it, as it has of the clients.
    pub(super) fn may_open(&self) -> bool {
        let per_second = self.limits.handshakes_per_second as f64 / f64::from(self.placement.shards());
        self.limits.handshakes_per_second == 0 || self.opened.has_room(self.now, per_second, burst(&self.limits))
    }

    /// Counts one that does.
    pub(super) fn take_opened(&mut self, key: ConnKey) {
        self.take_opened_for_address(key);
        if self.limits.handshakes_per_second > 0 {
            let per_second = self.limits.handshakes_per_second as f64 / f64::from(self.placement.shards());
            // Whoever got this far was let in by `may_open` in the same step.
            let _ = self.opened.take(self.now, 1, per_second, burst(&self.limits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_allowed_and_then_the_rate_holds() {
        let mut rate = Rate::default();
        let mut now = Time::from_millis(5_000);
        let taken = (0..100).filter(|_| rate.take(now, 1, 10.0, BURST).is_ok()).count();
        assert_eq!(taken, 10);
        assert_eq!(rate.take(now, 1, 10.0, BURST), Err(Duration::from_millis(100)));
        for _ in 0..5 {
            now = now + Duration::from_millis(100);
            assert_eq!((rate.take(now, 1, 10.0, BURST), rate.has_room(now, 10.0, BURST)), (Ok(()), false));
        }
        now = now + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| rate.take(now, 1, 10.0, BURST).is_ok()).count(), 10, "quiet times do not add up");
    }

    #[test]
    fn more_than_a_burst_at_once_is_made_up_for() {
        let mut rate = Rate::default();
        let now = Time::from_millis(5_000);
        assert_eq!(rate.take(now, 50, 10.0, BURST), Ok(()));
        assert_eq!(rate.take(now, 1, 10.0, BURST), Err(Duration::from_millis(4_100)));
        assert_eq!(rate.take(now + Duration::from_millis(4_100), 1, 10.0, BURST), Ok(()));
        assert_eq!(rate.take(now, u64::MAX, 0.001, BURST).map_err(|wait| wait > BURST), Err(true));
    }
}
