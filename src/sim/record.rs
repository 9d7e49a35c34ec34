//! What the stream of a simulation has: the truth that everybody's hearing is held to where a stream gives messages their places.
//!
//! The rules are those of the ledger, and stricter: what anybody hears of a room is what the stream has of it, in its order, and nothing of it is left out between
//! two messages that one hears, or behind the position with which he came. Nothing is there twice. What was acknowledged is there, at the place that
//! was told; what was not may be there or not. Positions grow and have holes: all rooms share one row of sequences with subjects that are none.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ledger::{Account, MessageId};
use crate::time::Time;

/// How long after trouble with NATS somebody may learn that he was turned away, or given up, for it.
const LEARNT_WITHIN_MS: u64 = 10_000;

/// What the stream has.
#[derive(Default)]
pub(super) struct Record {
    /// By room and sequence.
    rooms: HashMap<usize, BTreeMap<u64, MessageId>>,
    places: HashMap<MessageId, (usize, u64)>,
    /// The newest message of each speaker in his order.
    newest_of: HashMap<u16, u16>,
    /// Those of which the gateway has said that they were not kept, or may not have been.
    given_up: HashSet<MessageId>,
    /// The newest sequence of all.
    pub(super) last: u64,
    /// When something was wrong with the link last.
    trouble: Option<Time>,
}

impl Record {
    /// The stream takes a message, `in_order` if it must not lie behind a later one of its speaker.
    ///
    /// # Panics
    /// If it has it, or has a later one of the same speaker that was not given up.
    pub(super) fn store(&mut self, room: usize, offset: u64, id: MessageId, in_order: bool) {
        let before = self.places.insert(id, (room, offset));
        assert!(before.is_none(), "the stream is given {id:?} twice: at {before:?} and at {offset}");
        if in_order && !self.given_up.contains(&id) {
            let newest = self.newest_of.insert(id.speaker, id.number);
            assert!(newest.is_none_or(|newest| newest < id.number), "the stream is given {id:?} behind number {newest:?} of that speaker");
        }
        self.rooms.entry(room).or_default().insert(offset, id);
    }

    /// The gateway does not try any longer to have a message kept.
    pub(super) fn give_up(&mut self, id: MessageId) {
        self.given_up.insert(id);
    }

    /// Whether it has a message.
    pub(super) fn has(&self, id: MessageId) -> bool {
        self.places.contains_key(&id)
    }

    /// The newest sequence of a room.
    pub(super) fn newest(&self, room: usize) -> Option<u64> {
        self.rooms.get(&room)?.keys().next_back().copied()
    }

    /// A message that lies behind one offset of a room and before another, but for those that are left out.
    pub(super) fn between(&self, room: usize, after: u64, before: u64, left_out: impl Fn(MessageId) -> bool) -> Option<(u64, MessageId)> {
        let there = self.rooms.get(&room)?;
        let mut between = there.range(after + 1..before.max(after + 1)).map(|(offset, id)| (*offset, *id));
        between.find(|(_, id)| !left_out(*id))
    }

    /// Checks that a message has a place that somebody was told.
    ///
    /// # Panics
    /// If it has not.
    pub(super) fn check_place(&self, room: usize, offset: u64, id: MessageId) {
        let place = self.places.get(&id);
        assert!(place == Some(&(room, offset)), "{id:?} is said to be at {offset} of room {room}, and the stream has it at {place:?}");
    }

    /// Where a message is that somebody hears.
    ///
    /// # Panics
    /// If it is not there, or not what comes next for him.
    pub(super) fn hear(&self, who: usize, account: &Account, id: MessageId) -> u64 {
        let place = self.places.get(&id).copied();
        let (room, offset) = place.unwrap_or_else(|| panic!("client {who} hears {id:?}, which the stream does not have"));
        let own = |id| account.leaves_out(who, id);
        match account.heard_to.or(account.after) {
            Some(at) => {
                assert!(offset > at, "client {who} hears {id:?} of room {room}, which lies at {offset}, where he was at {at}");
                let left_out = self.between(room, at, offset, own);
                assert!(
                    left_out.is_none(),
                    "client {who} hears {id:?} at {offset} of room {room} next to {at}, and not {left_out:?} between"
                );
            }
            None => {
                let left_out = self.between(room, account.let_in_at, offset, own);
                assert!(
                    left_out.is_none(),
                    "client {who} hears {id:?} at {offset} of room {room} first, and not {left_out:?}, which came after {}, when he was let in",
                    account.let_in_at
                );
            }
        }
        offset
    }

    /// What somebody who listens has not heard, or what the stream has not got of somebody who stays.
    pub(super) fn unheard(&self, accounts: &[Account]) -> Option<String> {
        for (who, account) in accounts.iter().enumerate() {
            let Some(room) = account.room else { continue };
            if account.listens && account.let_in.is_some() {
                let at = account.heard_to.or(account.after).unwrap_or(account.let_in_at);
                if let Some((offset, id)) = self.between(room, at, u64::MAX, |id| account.leaves_out(who, id)) {
                    return Some(format!("client {who}, who is at {at} of room {room}, has not heard {id:?} at {offset}"));
                }
            }
            if account.stays {
                let ids = (0..account.said.len()).map(|number| MessageId { speaker: who as u16, number: number as u16 });
                if let Some(id) = ids.into_iter().find(|id| !self.has(*id)) {
                    return Some(format!("the stream has not got {id:?}, whose speaker is there and was told nothing"));
                }
            }
        }
        None
    }

    /// Something is wrong with the link, or was just now.
    pub(super) fn trouble(&mut self, now: Time) {
        self.trouble = Some(self.trouble.map_or(now, |at| at.max(now)));
    }

    /// Whether somebody may be turned away now, or be told that he was.
    pub(super) fn excuses(&self, now: Time) -> bool {
        self.trouble.is_some_and(|at| now.since(at).as_millis() as u64 <= LEARNT_WITHIN_MS)
    }
}
