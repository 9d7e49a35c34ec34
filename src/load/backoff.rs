//! When a client that lost its connection tries again.

use std::time::Duration;

use clap::ValueEnum;

/// What a client does that was lost or refused.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backoff {
    /// At once, and after a refusal again in 100 ms
    None,
    /// After a random part of 0.5 s, which doubles with each refusal up to 20 s
    Full,
    /// The same, but when the server says when, then
    Hints,
}

const FIXED: Duration = Duration::from_millis(100);
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(20);

impl Backoff {
    /// How long to wait before a try, of which the first is number 0. `hint` is what the server said last, `random` is from 0 to 1.
    pub(super) fn wait(self, number: u32, hint: Option<Duration>, random: f64) -> Duration {
        match (self, hint) {
            (Self::None, _) if number == 0 => Duration::ZERO,
            (Self::None, _) => FIXED,
            (Self::Hints, Some(hint)) => hint,
            // Full jitter: Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
            (Self::Full | Self::Hints, _) => (FIRST * 2_u32.pow(number.min(16))).min(LONGEST).mul_f64(random),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Hints => "hints",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_20_s_and_a_hint_wins_where_it_is_heard() {
        let millis = |backoff: Backoff, number, hint: Option<u64>| backoff.wait(number, hint.map(Duration::from_millis), 1.0).as_millis();
        for backoff in [Backoff::Full, Backoff::Hints] {
            let waits = [0, 1, 2, 5, 6, u32::MAX].map(|number| millis(backoff, number, None));
            assert_eq!(waits, [500, 1000, 2000, 16_000, 20_000, 20_000]);
            assert_eq!(backoff.wait(3, None, 0.25), Duration::from_secs(1));
        }
        assert_eq!([0, 1, 9].map(|number| millis(Backoff::None, number, Some(7))), [0, 100, 100]);
        assert_eq!((millis(Backoff::Full, 0, Some(7)), millis(Backoff::Hints, 4, Some(7))), (500, 7));
    }
}
