//! The course of a storm in slots of 100 ms: who was lost, who came, who was let in and who was turned away.

use std::time::Duration;

use serde_json::{Value, json};

/// What happens to a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    Lost,
    Came,
    LetIn,
    TurnedAway,
}

impl Deed {
    /// All of them, and what they are called in reports.
    pub(super) const ALL: [(Self, &'static str); 4] =
        [(Self::Lost, "lost"), (Self::Came, "arrivals"), (Self::LetIn, "handshakes"), (Self::TurnedAway, "refusals")];
}

/// How long a slot is.
pub(super) const SLOT: Duration = Duration::from_millis(100);

/// Counts of each slot.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Curve([Vec<u64>; 4]);

impl Curve {
    /// It happened so long after the beginning.
    pub(super) fn count(&mut self, deed: Deed, after: Duration) {
        self.add_to(deed, (after.as_millis() / SLOT.as_millis()) as usize, 1);
    }

    fn add_to(&mut self, deed: Deed, slot: usize, count: u64) {
        let slots = &mut self.0[deed as usize];
        if slots.len() <= slot {
            slots.resize(slot + 1, 0);
        }
        slots[slot] += count;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (deed, _) in Deed::ALL {
            for (slot, count) in other.of(deed).iter().enumerate() {
                self.add_to(deed, slot, *count);
            }
        }
    }

    /// The slots of one kind, up to the last that has any.
    pub(super) fn of(&self, deed: Deed) -> &[u64] {
        &self.0[deed as usize]
    }

    /// Begins it with the first slot in which something happened.
    pub(super) fn trim(&mut self) {
        let first = self.0.iter().filter_map(|slots| slots.iter().position(|count| *count > 0)).min().unwrap_or(0);
        for slots in &mut self.0 {
            slots.drain(..first.min(slots.len()));
        }
    }

    /// From the beginning to the end of the slot in which the last one was let in.
    pub(super) fn all_in(&self) -> Duration {
        SLOT * self.of(Deed::LetIn).len() as u32
    }

    /// The most in a slot, and that over the mean up to the last one; 1 is even.
    pub(super) fn peak(&self, deed: Deed) -> (u64, f64) {
        let slots = self.of(deed);
        let (most, all) = (slots.iter().copied().max().unwrap_or(0), slots.iter().sum::<u64>());
        (most, if all == 0 { 0.0 } else { most as f64 * slots.len() as f64 / all as f64 })
    }

    pub(super) fn json(&self) -> Value {
        let mut object = json!({ "slot_ms": SLOT.as_millis() as u64 });
        for (deed, name) in Deed::ALL {
            object[name] = json!(self.of(deed));
        }
        let (most, over_mean) = self.peak(Deed::Came);
        object["arrivals_max"] = json!(most);
        object["arrivals_max_over_mean"] = json!(over_mean);
        object["all_back_seconds"] = json!(self.all_in().as_secs_f64());
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_begins_where_something_happens_and_knows_its_peak() {
        let mut curve = Curve::default();
        for (deed, millis) in [(Deed::Lost, 250), (Deed::Came, 399), (Deed::Came, 300), (Deed::TurnedAway, 310), (Deed::Came, 500)] {
            curve.count(deed, Duration::from_millis(millis));
        }
        let mut other = Curve::default();
        other.count(Deed::LetIn, Duration::from_millis(600));
        other.count(Deed::Came, Duration::from_millis(400));
        curve.add(&other);
        curve.trim();
        assert_eq!(Deed::ALL.map(|(deed, _)| curve.of(deed).to_vec()), [vec![1], vec![0, 2, 1, 1], vec![0, 0, 0, 0, 1], vec![0, 1]]);
        assert_eq!((curve.all_in(), curve.peak(Deed::Came)), (Duration::from_millis(500), (2, 2.0)));
        assert_eq!((Curve::default().peak(Deed::Came), Curve::default().all_in()), ((0, 0.0), Duration::ZERO));
        assert_eq!((&curve.json()["refusals"], &curve.json()["arrivals_max"]), (&json!([0, 1]), &json!(2)));
    }
}
