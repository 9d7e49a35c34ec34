//! Who is in a topic, as its home knows it, and what has changed since those who watch were told.

use std::collections::BTreeMap;

use crate::ids::{ConnId, ShardId};

/// The members of one topic on all shards. `W` is what is known of each.
///
/// Those who watch were told at different times: some when changes were told last, others when they came, by the roster as it was then. What changes is
/// told to all of them alike. So of each who has come or gone since it is kept what any of them may believe.
#[derive(Debug)]
pub struct Roster<W> {
    members: BTreeMap<ConnId, W>,
    /// Of those who have come or gone since changes were told: what watchers believe.
    changed: BTreeMap<ConnId, Believed<W>>,
    /// Those of them who have since the roster was shown last.
    fresh: Vec<ConnId>,
}

/// What watchers believe of somebody.
#[derive(Debug)]
struct Believed<W> {
    /// As what it is there, to some of them.
    there: Option<W>,
    /// It is not there, or as something else, to some of them.
    otherwise: bool,
}

/// What has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes<W> {
    /// Who has come.
    pub joined: Vec<(ConnId, W)>,
    /// Who has gone.
    pub left: Vec<(ConnId, W)>,
}

impl<W> Default for Roster<W> {
    fn default() -> Self {
        Self { members: BTreeMap::new(), changed: BTreeMap::new(), fresh: Vec::new() }
    }
}

impl<W: Clone + PartialEq> Roster<W> {
    /// Somebody has come.
    pub fn came(&mut self, who: ConnId, what: W) {
        let before = self.members.insert(who, what);
        self.note(who, before);
    }

    /// Somebody has gone. One who was not there changes nothing.
    pub fn went(&mut self, who: ConnId) {
        if let Some(before) = self.members.remove(&who) {
            self.note(who, Some(before));
        }
    }

    fn note(&mut self, who: ConnId, before: Option<W>) {
        self.changed.entry(who).or_insert_with(|| Believed { otherwise: before.is_none(), there: before });
        self.fresh.push(who);
    }

    /// Somebody begins to watch, and is shown who is there now.
    pub fn show(&mut self) {
        for who in std::mem::take(&mut self.fresh) {
            let Some(believed) = self.changed.get_mut(&who) else { continue };
            match self.members.get(&who) {
                Some(what) => {
                    believed.otherwise |= believed.there.as_ref().is_some_and(|there| there != what);
                    believed.there = Some(what.clone());
                }
                None => believed.otherwise = true,
            }
        }
    }

    /// A shard has nobody in it any more.
    pub fn all_went(&mut self, shard: ShardId) {
        let gone: Vec<ConnId> = self.members.keys().filter(|who| who.shard == shard).copied().collect();
        gone.into_iter().for_each(|who| self.went(who));
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Everybody, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &W)> {
        self.members.iter().map(|(&who, what)| (who, what))
    }

    /// Whether somebody has come or gone since the last [`take_changes`](Self::take_changes).
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What is different from when this was asked last, and from what was shown since. Who came and went in between, and nobody knows of, is not mentioned.
    pub fn take_changes(&mut self) -> Changes<W> {
        let mut changes = Changes { joined: Vec::new(), left: Vec::new() };
        self.fresh.clear();
        for (who, believed) in std::mem::take(&mut self.changed) {
            match (believed.there, self.members.get(&who)) {
                (there, Some(what)) if believed.otherwise || there.as_ref() != Some(what) => changes.joined.push((who, what.clone())),
                (Some(there), None) => changes.left.push((who, there)),
                _ => {}
            }
        }
        changes
    }

    /// Bytes that it has allocated, about: what its trees' nodes have at least.
    pub fn heap_bytes(&self) -> u64 {
        let entries = self.members.len() * size_of::<(ConnId, W)>() + self.changed.len() * size_of::<(ConnId, Believed<W>)>();
        (entries + self.fresh.capacity() * size_of::<ConnId>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ConnKey;
    use rand::{RngExt, SeedableRng};

    fn conn(shard: u16, slot: u32) -> ConnId {
        ConnId { shard: ShardId(shard), key: ConnKey { slot, generation: 0 } }
    }

    fn names(list: &[(ConnId, &'static str)]) -> Vec<&'static str> {
        list.iter().map(|&(_, name)| name).collect()
    }

    #[test]
    fn who_comes_and_goes_between_two_tellings_is_not_mentioned() {
        let mut roster = Roster::default();
        roster.came(conn(0, 1), "anna");
        roster.came(conn(1, 1), "ben");
        roster.went(conn(0, 1));
        let changes = roster.take_changes();
        assert_eq!((names(&changes.joined), names(&changes.left)), (vec!["ben"], vec![]));
        roster.went(conn(1, 1));
        roster.came(conn(1, 1), "ben");
        roster.went(conn(7, 7));
        let changes = roster.take_changes();
        assert_eq!((changes.joined.len(), changes.left.len(), roster.len(), roster.is_changed()), (0, 0, 1, false));
    }

    #[test]
    fn who_comes_back_as_somebody_else_has_joined_again() {
        let mut roster = Roster::default();
        roster.came(conn(0, 1), "anna");
        roster.take_changes();
        roster.went(conn(0, 1));
        roster.came(conn(0, 1), "ann");
        assert_eq!(names(&roster.take_changes().joined), ["ann"]);
    }

    #[test]
    fn a_shard_that_leaves_takes_its_members_along() {
        let mut roster = Roster::default();
        for slot in 0..3 {
            roster.came(conn(0, slot), "here");
            roster.came(conn(1, slot), "there");
        }
        roster.take_changes();
        roster.all_went(ShardId(1));
        let changes = roster.take_changes();
        assert_eq!((names(&changes.left), roster.len()), (vec!["there"; 3], 3));
    }

    /// Whoever applies each list of changes to what it was told before, or shown when it came, knows who is there. Seen once in a test with real clients:
    /// who came and went between two tellings was in the roster that somebody was shown in between, and stayed there for good.
    #[test]
    fn changes_add_up_to_who_is_there() {
        for seed in 0..200 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let (mut roster, mut watchers) = (Roster::default(), vec![BTreeMap::new()]);
            for _ in 0..300 {
                let who = conn(random.random_range(0..2), random.random_range(0..6));
                match random.random_range(0..7) {
                    0..3 => roster.came(who, random.random_range(0..2)),
                    3 | 4 => roster.went(who),
                    5 if random.random_range(0..8) == 0 => roster.all_went(who.shard),
                    5 => {
                        roster.show();
                        watchers.push(roster.iter().map(|(who, &what)| (who, what)).collect());
                    }
                    _ => {
                        let changes = roster.take_changes();
                        for known in &mut watchers {
                            known.retain(|who, _| !changes.left.iter().any(|(left, _)| left == who));
                            known.extend(changes.joined.iter().copied());
                            assert!(known.iter().map(|(&who, what)| (who, what)).eq(roster.iter()), "seed {seed}: {known:?}");
                        }
                        watchers.truncate(3);
                    }
                }
            }
        }
    }
}
