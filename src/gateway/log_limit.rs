//! How many lines about single connections a shard may log: a flood of clients must not become a flood of lines.

use crate::time::Time;

/// A token bucket of one second's worth, and a count of what it left out.
#[derive(Debug)]
pub struct LogLimit {
    per_second: u64,
    tokens: u64,
    refilled: Time,
    suppressed: u64,
}

impl LogLimit {
    /// A full bucket.
    pub fn new(per_second: u64, now: Time) -> Self {
        Self { per_second, tokens: per_second, refilled: now, suppressed: 0 }
    }

    /// Whether one more line may be written now.
    pub fn allow(&mut self, now: Time) -> bool {
        self.refill(now);
        if self.tokens == 0 {
            self.suppressed += 1;
            return false;
        }
        self.tokens -= 1;
        true
    }

    /// Whether lines were left out since the last [`take_suppressed`](Self::take_suppressed).
    pub fn has_suppressed(&self) -> bool {
        self.suppressed > 0
    }

    /// How many lines were left out.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    fn refill(&mut self, now: Time) {
        let whole = now.since(self.refilled).as_millis() as u64 * self.per_second / 1000;
        if whole > 0 {
            self.tokens = (self.tokens + whole).min(self.per_second);
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate_and_counted() {
        let mut limit = LogLimit::new(10, Time::ZERO);
        let allowed = (0..1000).filter(|&n| limit.allow(Time::from_millis(n))).count();
        assert!((10..=20).contains(&allowed), "{allowed}");
        assert_eq!(limit.take_suppressed(), 1000 - allowed as u64);
        assert!(limit.allow(Time::from_millis(5000)));
    }
}
