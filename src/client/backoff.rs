//! When to come back after a loss. Pure: the random number is an argument.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(20);
/// The longest hint that is obeyed.
const HINT_MAX: Duration = Duration::from_secs(3600);
/// How long a connection has to last for the failures before it to be forgotten.
pub(super) const LASTED: Duration = Duration::from_secs(10);
/// Whoever is told to come back at once (0 ms), again and again, waits this long.
const FLOOR: Duration = Duration::from_millis(100);
const FLOOR_FROM: u32 = 3;

/// What is known when a connection is lost, or a try has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outlook {
    /// What the server said: in its goodbye, or as it refused.
    pub(super) hint: Option<Duration>,
    /// The window over which all clients spread their return (`welcome.retry_ms`); zero before the first welcome.
    pub(super) window: Duration,
    /// Failures in a row: tries that did not lead to a connection of [`LASTED`].
    pub(super) fails: u32,
}

impl Outlook {
    /// How long to wait. `random` is from 0 to 1.
    ///
    /// A hint is obeyed to the millisecond: those who get one get different ones. Without one all may have been lost at once, so everybody takes a
    /// random point of the window; and each failure doubles a wait with full jitter (Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
    pub(super) fn wait(self, random: f64) -> Duration {
        match self.hint {
            Some(hint) => {
                if hint.is_zero() && self.fails > FLOOR_FROM {
                    FLOOR
                } else {
                    hint.min(HINT_MAX)
                }
            }
            None if self.fails == 0 => self.window.mul_f64(random),
            None => {
                let longest = (FIRST * 2_u32.pow((self.fails - 1).min(16))).min(LONGEST);
                longest.max(self.window).mul_f64(random)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(hint_ms: Option<u64>, window_ms: u64, fails: u32) -> Outlook {
        Outlook { hint: hint_ms.map(Duration::from_millis), window: Duration::from_millis(window_ms), fails }
    }

    #[test]
    fn waits_double_from_half_a_second_to_20_s_each_a_random_part() {
        let millis = |fails| outlook(None, 0, fails).wait(1.0).as_millis();
        assert_eq!([1, 2, 3, 6, 7, u32::MAX].map(millis), [500, 1000, 2000, 16_000, 20_000, 20_000]);
        assert_eq!(outlook(None, 0, 4).wait(0.25), Duration::from_secs(1));
    }

    #[test]
    fn the_first_wait_after_a_loss_is_a_random_point_of_the_window_and_later_ones_are_no_shorter_spread() {
        assert_eq!([0.0, 0.5, 1.0].map(|random| outlook(None, 8000, 0).wait(random).as_millis()), [0, 4000, 8000]);
        assert_eq!(
            outlook(None, 8000, 1).wait(0.5),
            Duration::from_secs(4),
            "a gateway that is still away is not met by the crowd at once"
        );
        assert_eq!(outlook(None, 8000, 9).wait(1.0), Duration::from_secs(20));
    }

    #[test]
    fn a_hint_wins_as_it_is_but_for_one_of_hours_and_for_nothing_again_and_again() {
        for fails in [0, 3, 9] {
            assert_eq!(outlook(Some(8200), 10_000, fails).wait(0.3), Duration::from_millis(8200));
        }
        assert_eq!(outlook(Some(u64::MAX), 0, 0).wait(0.3), HINT_MAX);
        assert_eq!([0, 3, 4].map(|fails| outlook(Some(0), 0, fails).wait(1.0).as_millis()), [0, 0, 100]);
        assert_eq!(outlook(Some(1), 0, 9).wait(1.0), Duration::from_millis(1));
    }
}
