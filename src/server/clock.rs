//! The one place that reads the clock. Everything else is told the time.

use std::time::{Duration, Instant, SystemTime};

use crate::time::Time;

/// The process's monotonic clock. Made once at start; its copies share one zero, so that times of different shards compare.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    /// What it showed then.
    begin: Time,
}

impl Clock {
    /// A clock that begins at [`Time::ZERO`].
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
    #[expect(clippy::new_without_default, reason = "a second clock has a second zero; making one should be seen")]
    pub fn new() -> Self {
        Self { started: Instant::now(), begin: Time::ZERO }
    }

    /// The same clock, gone on by so much: what was so long ago has a time on it too.
    pub fn ahead(self, by: Duration) -> Self {
        Self { begin: self.begin + by, ..self }
    }

    /// The time now.
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
    pub fn now(self) -> Time {
        self.begin + Instant::now().saturating_duration_since(self.started)
    }
}

/// The wall clock, as time since 1970 in UTC; zero when it is set before that. For people and metrics only, never to measure with.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_clock_never_run_backwards_against_each_other() {
        let clock = Clock::new();
        let copy = clock;
        let earlier = clock.now();
        assert!(copy.now() >= earlier);
    }

    #[test]
    fn a_clock_that_is_ahead_has_a_time_for_what_was_before_it() {
        let hour = Duration::from_secs(3600);
        let now = Clock::new().ahead(hour).now();
        assert!((now - hour).since(Time::ZERO) < hour && now.since(now - hour) == hour);
    }
}
