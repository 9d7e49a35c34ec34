//! Where everything arbitrary in a simulation comes from: a seed, or bytes that a fuzzer chose.

use std::ops::RangeInclusive;

/// A source of decisions. The same seed, or the same script, decides the same.
#[derive(Debug)]
pub struct Choices {
    random: fastrand::Rng,
    script: Vec<u8>,
    at: usize,
}

impl Choices {
    /// Decisions drawn from a seed.
    pub fn seeded(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), script: Vec::new(), at: 0 }
    }

    /// Decisions read from a script; when it has ended, drawn from a fixed seed.
    pub fn scripted(script: &[u8]) -> Self {
        Self { random: fastrand::Rng::with_seed(0), script: script.to_vec(), at: 0 }
    }

    /// Whether decisions still come from a script.
    pub fn is_scripted(&self) -> bool {
        self.at < self.script.len()
    }

    /// A number below `count`.
    ///
    /// # Panics
    /// If `count` is zero.
    pub fn below(&mut self, count: usize) -> usize {
        assert!(count > 0, "a choice among nothing");
        if !self.is_scripted() {
            return self.random.usize(0..count);
        }
        // As few bytes of the script as can tell all the possibilities apart.
        let width = (usize::BITS - (count - 1).leading_zeros()).div_ceil(8);
        let mut number = 0_usize;
        for _ in 0..width {
            number = number << 8 | usize::from(self.script.get(self.at).copied().unwrap_or(0));
            self.at += 1;
        }
        number % count
    }

    /// A number in `range`.
    pub fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// Yes, so many times in a thousand. A zero decides nothing.
    pub fn chance(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.below(1000) < usize::from(per_mille)
    }

    /// One of `options`.
    pub fn of<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_script_decide_the_same_again() {
        let draw = |mut choices: Choices| (0..100).map(|n| choices.below(n + 1)).collect::<Vec<_>>();
        assert_eq!(draw(Choices::seeded(7)), draw(Choices::seeded(7)));
        assert_ne!(draw(Choices::seeded(7)), draw(Choices::seeded(8)));
        assert_eq!(draw(Choices::scripted(b"some bytes")), draw(Choices::scripted(b"some bytes")));
        let mut choices = Choices::scripted(&[3, 1, 2, 250]);
        assert_eq!((choices.below(10), choices.below(1000), choices.below(100)), (3, 258, 50));
        assert!(!choices.is_scripted());
    }
}
