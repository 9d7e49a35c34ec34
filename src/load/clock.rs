//! The load generator's clock: the one file here that reads time or sleeps. It is a process of its own, so it does not share the gateway's.

use std::time::{Duration, Instant};

use crate::time::Time;

/// Monotonic time since the run began. Its copies share one zero, so that the times of different threads compare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    zero: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
    pub(super) fn new() -> Self {
        Self { zero: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
    pub(super) fn now(self) -> Time {
        Time::ZERO + Instant::now().saturating_duration_since(self.zero)
    }

    /// Blocks this thread until then; at once when it has passed.
    pub(super) fn sleep_until(self, then: Time) {
        let left = then.since(self.now());
        if !left.is_zero() {
            sleep(left);
        }
    }

    /// Has a task wait until then, to the millisecond.
    pub(super) async fn wait_until(self, then: Time) {
        let left = then.since(self.now());
        if !left.is_zero() {
            monoio::time::sleep(left).await;
        }
    }
}

/// Blocks this thread.
#[expect(clippy::disallowed_methods, reason = "the threads of a load generator may sleep, they are no shards")]
pub(super) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
