//! The types of the hub, each beside a model that is too simple to be wrong: every operation is done to both, and both must say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use shardcast::hub::{Directory, Home, Members};
use shardcast::ids::{ShardId, TopicKey};

/// A directory whose names and values are bytes.
#[derive(Default)]
pub struct DirectoryModel {
    directory: Directory<u8, u8>,
    live: BTreeMap<u8, (TopicKey, u8)>,
    dead: Vec<TopicKey>,
}

impl DirectoryModel {
    /// Inserts, removes or changes the topic called `name`.
    pub fn apply(&mut self, operation: u8, name: u8) {
        match (operation % 3, self.live.get_mut(&name)) {
            (0 | 1, None) => {
                let key = self.directory.insert(name, operation);
                assert!(!self.dead.contains(&key) && self.live.values().all(|(other, _)| *other != key), "a key is given out once");
                self.live.insert(name, (key, operation));
            }
            (0, Some((key, value))) => {
                *self.directory.get_mut(*key).expect("it is there") = operation;
                *value = operation;
            }
            (_, Some((key, value))) => {
                assert_eq!(self.directory.remove(*key), Some(*value));
                self.dead.push(*key);
                self.live.remove(&name);
            }
            (_, None) => {}
        }
        assert_eq!((self.directory.len(), self.directory.is_empty()), (self.live.len(), self.live.is_empty()));
        let key = self.live.get(&name).map(|(key, _)| *key);
        assert_eq!(self.directory.find(&name), key);
        assert_eq!(key.and_then(|key| self.directory.name(key)), key.map(|_| &name));
        assert!(self.live.values().all(|(key, value)| self.directory.get(*key) == Some(value)));
        if let Some(&key) = self.dead.get(usize::from(name) % self.dead.len().max(1)) {
            let found = (self.directory.get(key).copied(), self.directory.get_mut(key).copied(), self.directory.remove(key));
            assert_eq!((found, self.directory.name(key)), ((None, None, None), None), "a removed topic's key finds nothing");
        }
    }
}

/// Members who join, leave and are visited.
#[derive(Default)]
pub struct MembersModel {
    members: Members,
    /// Where each slot is.
    places: BTreeMap<u32, u32>,
    next_slot: u32,
    lap: Option<Lap>,
    /// The last lap's order, as long as nobody has come or gone since it began.
    last_order: Option<Vec<u32>>,
}

/// A lap under way: who is still to be visited, and who was.
struct Lap {
    left: BTreeSet<u32>,
    visited: Vec<u32>,
    undisturbed: bool,
}

impl MembersModel {
    /// Some join, one leaves, or some are visited.
    pub fn apply(&mut self, operation: u8, argument: u8) {
        match operation % 4 {
            0 => (0..argument % 64).for_each(|_| self.join()),
            1 => self.leave(usize::from(argument)),
            2 => (0..=argument % 64).for_each(|_| self.visit()),
            _ => self.finish_lap(),
        }
        assert_eq!((self.members.len(), self.members.is_empty()), (self.places.len(), self.places.is_empty()));
    }

    fn join(&mut self) {
        if self.places.len() < 100 {
            self.places.insert(self.next_slot, self.members.join(self.next_slot));
            self.next_slot += 1;
            self.disturbed();
        }
    }

    fn leave(&mut self, number: usize) {
        let Some((&slot, &place)) = self.places.iter().nth(number % self.places.len().max(1)) else { return };
        self.places.remove(&slot);
        if let Some(moved) = self.members.leave(place) {
            assert!(self.lap.is_none(), "nobody moves during a lap");
            *self.places.get_mut(&moved).expect("only a member moves") = place;
        }
        if let Some(lap) = &mut self.lap {
            lap.left.remove(&slot);
        }
        self.disturbed();
    }

    fn disturbed(&mut self) {
        self.last_order = None;
        if let Some(lap) = &mut self.lap {
            lap.undisturbed = false;
        }
    }

    fn visit(&mut self) {
        let lap = self.lap.get_or_insert_with(|| {
            self.members.begin_lap();
            Lap { left: self.places.keys().copied().collect(), visited: Vec::new(), undisturbed: true }
        });
        if let Some(slot) = self.members.visit() {
            assert!(lap.left.remove(&slot), "{slot} is visited twice, or is no member, or came after the lap began");
            lap.visited.push(slot);
            return;
        }
        assert!(lap.left.is_empty(), "{:?} were not visited", lap.left);
        let lap = self.lap.take().expect("it is under way");
        self.members.end_lap(|slot, place| *self.places.get_mut(&slot).expect("only a member moves") = place);
        let everyone: BTreeSet<_> = self.members.iter().collect();
        assert!(everyone.iter().eq(self.places.keys()) && self.members.iter().count() == everyone.len());
        if let Some(last) = &mut self.last_order
            && !last.is_empty()
        {
            last.rotate_left(1);
            assert_eq!(*last, lap.visited, "a lap begins one member further than the last one");
        }
        self.last_order = lap.undisturbed.then_some(lap.visited);
    }

    /// Goes on with the lap under way, or a new one, to its end.
    pub fn finish_lap(&mut self) {
        self.visit();
        while self.lap.is_some() {
            self.visit();
        }
    }
}

/// A log's home: what each shard was sent and has acknowledged.
#[derive(Default)]
pub struct HomeModel {
    home: Home<u64>,
    end: u64,
    shards: BTreeMap<ShardId, Progress>,
}

#[derive(Clone, Copy)]
struct Progress {
    sent: u64,
    acknowledged: u64,
}

impl HomeModel {
    /// Something is appended or sent, or a shard subscribes, acknowledges or leaves.
    pub fn apply(&mut self, operation: u8, argument: u8) {
        let shard = ShardId(u16::from(argument % 8));
        match operation % 5 {
            0 => {
                self.home.appending(|| self.end);
                self.end += 1 + u64::from(argument);
            }
            1 => self.send(u64::from(argument)),
            2 => self.acknowledge(shard),
            3 if !self.shards.contains_key(&shard) => {
                self.home.subscribe(shard, key_at(shard), self.end);
                self.shards.insert(shard, Progress { sent: self.end, acknowledged: self.end });
            }
            _ => {
                self.home.unsubscribe(shard);
                self.shards.remove(&shard);
            }
        }
        assert_eq!(self.home.is_empty(), self.shards.is_empty());
        let slowest = self.shards.values().map(|progress| progress.acknowledged).min();
        assert_eq!(self.home.lag(self.end), slowest.map_or(0, |acknowledged| self.end - acknowledged));
    }

    /// Sends at most `bytes` to each shard that is due, which must be those that are not waited for and have not everything.
    fn send(&mut self, bytes: u64) {
        let mut due = BTreeSet::new();
        for target in self.home.due() {
            let progress = self.shards.get_mut(&target.shard).expect("only who has subscribed is due");
            assert_eq!((target.key, target.waiting), (key_at(target.shard), Some(progress.sent)), "nothing is skipped or sent twice");
            due.insert((target.shard, progress.sent == progress.acknowledged));
            progress.sent = self.end.min(progress.sent + 1 + bytes);
            target.sent((progress.sent < self.end).then_some(progress.sent));
        }
        assert!(due.iter().all(|(_, idle)| *idle), "one batch is under way at most");
        assert!(
            self.shards.values().all(|progress| progress.sent > progress.acknowledged || progress.sent == self.end),
            "all who wait are due"
        );
    }

    fn acknowledge(&mut self, shard: ShardId) {
        match self.shards.get_mut(&shard) {
            Some(progress) if progress.sent > progress.acknowledged => {
                progress.acknowledged = progress.sent;
                assert_eq!(self.home.acknowledge(shard, progress.sent), progress.sent < self.end);
            }
            Some(_) => {}
            None => assert!(!self.home.acknowledge(shard, self.end), "nothing waits for a shard that is not there"),
        }
    }
}

/// What a shard calls the topic.
fn key_at(shard: ShardId) -> TopicKey {
    TopicKey { slot: u32::from(shard.0), generation: NonZeroU32::MIN }
}
