//! The subscribers of one topic on one shard, and the laps in which fan-out visits them.
//!
//! A lap visits everyone who was a member when it began and still is; it may take many turns. Each lap begins one member further, so that
//! nobody is always served last. While a lap is under way a leaver becomes a hole, so that nobody is skipped or visited twice; holes are filled when it ends.

const HOLE: u32 = u32::MAX;

/// Connection slots of the subscribers.
#[derive(Debug, Default)]
pub struct Members {
    slots: Vec<u32>,
    holes: Vec<u32>,
    /// Where the next lap begins.
    start: u32,
    /// The next place to visit, and how many places are left to visit; the lap goes around `lap_len` places.
    next: u32,
    left: u32,
    lap_len: u32,
    on_lap: bool,
}

impl Members {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.holes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it has allocated.
    pub fn heap_bytes(&self) -> u64 {
        ((self.slots.capacity() + self.holes.capacity()) * size_of::<u32>()) as u64
    }

    /// Adds a connection; the place is for [`leave`](Self::leave).
    pub fn join(&mut self, slot: u32) -> u32 {
        debug_assert_ne!(slot, HOLE);
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("a shard has fewer than 2^32 connections")
    }

    /// Removes the connection at `place`. Another one may move into the place: then its slot is returned.
    pub fn leave(&mut self, place: u32) -> Option<u32> {
        debug_assert_ne!(self.slots[place as usize], HOLE, "a member leaves once");
        if self.on_lap {
            self.slots[place as usize] = HOLE;
            self.holes.push(place);
            return None;
        }
        self.slots.swap_remove(place as usize);
        self.shrink();
        self.slots.get(place as usize).copied()
    }

    /// Begins a lap over everyone who is a member now.
    ///
    /// # Panics
    /// If one is under way.
    pub fn begin_lap(&mut self) {
        assert!(!self.on_lap, "one lap at a time");
        self.on_lap = true;
        self.lap_len = self.slots.len() as u32;
        self.left = self.lap_len;
        self.next = if self.start < self.lap_len { self.start } else { 0 };
        self.start = self.next + 1;
    }

    /// The next member of the lap; none when everyone was visited. Then [`end_lap`](Self::end_lap) must follow.
    pub fn visit(&mut self) -> Option<u32> {
        while self.left > 0 {
            let slot = self.slots[self.next as usize];
            self.left -= 1;
            self.next = if self.next + 1 == self.lap_len { 0 } else { self.next + 1 };
            if slot != HOLE {
                return Some(slot);
            }
        }
        None
    }

    /// Ends the lap and fills the holes; `moved(slot, place)` is told of each member that has a new place.
    pub fn end_lap(&mut self, mut moved: impl FnMut(u32, u32)) {
        debug_assert!(self.on_lap && self.left == 0, "a lap ends when everyone was visited");
        self.on_lap = false;
        self.holes.sort_unstable();
        while let Some(place) = self.holes.pop() {
            // Places above this hole are filled already, so the last one is a member or the hole itself.
            self.slots.swap_remove(place as usize);
            if let Some(&slot) = self.slots.get(place as usize) {
                moved(slot, place);
            }
        }
        self.shrink();
    }

    /// Every member, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().copied().filter(|&slot| slot != HOLE)
    }

    /// Gives back what a crowd that has left needed: its places, and the holes when it left during a lap.
    fn shrink(&mut self) {
        for list in [&mut self.slots, &mut self.holes] {
            if list.capacity() > 64 && list.len() < list.capacity() / 4 {
                list.shrink_to(list.len() * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use std::collections::{BTreeMap, BTreeSet};

    fn lap(members: &mut Members) -> Vec<u32> {
        members.begin_lap();
        let visited = std::iter::from_fn(|| members.visit()).collect();
        members.end_lap(|_, _| {});
        visited
    }

    #[test]
    fn each_lap_begins_one_member_further() {
        let mut members = Members::default();
        for slot in 0..3 {
            members.join(slot);
        }
        let firsts: Vec<u32> = (0..4).map(|_| lap(&mut members)[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0]);
    }

    #[test]
    fn a_lap_over_nobody_ends_at_once() {
        assert!(lap(&mut Members::default()).is_empty());
    }

    #[test]
    fn who_joins_during_a_lap_is_visited_from_the_next_one_on() {
        let mut members = Members::default();
        members.join(7);
        members.begin_lap();
        members.join(8);
        assert_eq!((members.visit(), members.visit()), (Some(7), None));
        members.end_lap(|_, _| panic!("nobody left, nobody moves"));
        assert_eq!(lap(&mut members).len(), 2);
    }

    #[test]
    fn a_member_who_has_left_is_no_member_even_while_its_hole_is_open() {
        let mut members = Members::default();
        let place = members.join(7);
        members.begin_lap();
        assert_eq!((members.leave(place), members.len(), members.is_empty(), members.iter().next()), (None, 0, true, None));
        assert_eq!(members.visit(), None);
        members.end_lap(|_, _| panic!("nobody is left to move"));
    }

    #[test]
    #[should_panic(expected = "one lap at a time")]
    fn a_second_lap_at_once_is_a_bug_of_ours() {
        let mut members = Members::default();
        members.begin_lap();
        members.begin_lap();
    }

    /// A topic outlives its rush hour: 10,000 who left at once, during a lap or not, must not cost it anything for good.
    #[test]
    fn a_crowd_that_has_left_leaves_no_memory_behind() {
        for during_a_lap in [false, true] {
            let mut members = Members::default();
            for slot in 0..10_000 {
                members.join(slot);
            }
            if during_a_lap {
                members.begin_lap();
            }
            for place in (10..10_000).rev() {
                members.leave(place);
            }
            if during_a_lap {
                while members.visit().is_some() {}
                members.end_lap(|_, _| panic!("the last ones left, nobody moves"));
            }
            assert_eq!((members.len(), lap(&mut members).len()), (10, 10));
            let kept = (members.slots.capacity(), members.holes.capacity());
            assert!(kept.0 <= 64 && kept.1 <= 64, "room for {kept:?} slots and holes, during a lap: {during_a_lap}");
        }
    }

    #[test]
    fn random_joins_and_leaves_never_skip_or_double_a_member() {
        for seed in 0..200 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut members = Members::default();
            let mut places: BTreeMap<u32, u32> = BTreeMap::new();
            let mut expected: Option<BTreeSet<u32>> = None;
            for slot in 0..300 {
                match random.random_range(0..10) {
                    0..4 => {
                        places.insert(slot, members.join(slot));
                    }
                    4..7 => {
                        let Some((&leaver, &place)) = places.iter().nth(random.random_range(0..places.len().max(1))) else { continue };
                        places.remove(&leaver);
                        if let Some(moved) = members.leave(place) {
                            places.insert(moved, place);
                        }
                        if let Some(expected) = &mut expected {
                            expected.remove(&leaver);
                        }
                    }
                    _ => {
                        let lap = expected.get_or_insert_with(|| {
                            members.begin_lap();
                            places.keys().copied().collect()
                        });
                        match members.visit() {
                            Some(visited) => assert!(lap.remove(&visited), "seed {seed}: {visited} visited but not expected"),
                            None => {
                                assert!(lap.is_empty(), "seed {seed}: {lap:?} skipped");
                                expected = None;
                                members.end_lap(|slot, place| {
                                    places.insert(slot, place);
                                });
                            }
                        }
                    }
                }
                assert_eq!(members.len(), places.len(), "seed {seed}");
                assert_eq!(members.iter().collect::<BTreeSet<_>>(), places.keys().copied().collect(), "seed {seed}");
                for (&slot, &place) in &places {
                    assert_eq!(members.slots[place as usize], slot, "seed {seed}: place of {slot}");
                }
            }
        }
    }
}
