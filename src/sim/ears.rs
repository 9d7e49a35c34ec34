//! What a reader with a cursor has of each of its topics: where it is, and the account in the ledger, its *ear*, to which messages go.
//!
//! An ear goes on over connections. Only a gap ends it: what comes after one is another ear's.

use std::collections::HashSet;

use super::ledger::{Account, Ledger, LeftOut, Loss, MessageId};
use super::plan::Begin;
use crate::engine::sim::Choices;
use crate::proto::gap::GapReason;
use crate::proto::position::{Cursor, Epoch, Position};
use crate::time::Time;

/// The offset of a message that never was.
const NEVER: u64 = 1_000_000;

/// A position that is none of a topic's: of another life of the process, or behind the topic's end.
pub(super) fn stray(epoch: Epoch, restart: bool) -> Position {
    match restart {
        true => Position { epoch: Epoch(epoch.0 + 1), offset: 3 },
        false => Position { epoch, offset: NEVER },
    }
}

/// A reader's topics.
pub(super) struct Ears {
    who: String,
    epoch: Epoch,
    rooms: Vec<usize>,
    begin: Begin,
    /// Where it is in each, in offsets; none while it was not told.
    at: Vec<Option<u64>>,
    accounts: Vec<Option<usize>>,
    /// It came with a position that is none of the topic's and was not told so yet.
    strays: Vec<bool>,
    /// Up to here messages may be missing between those that come, as it was told; and behind which place that begins.
    until: Vec<(u64, u64)>,
}

/// A gap as it is told, whatever the transport.
pub(super) struct ToldGap<'a> {
    pub(super) room: usize,
    pub(super) from: Option<Position>,
    pub(super) to: Position,
    pub(super) until: Option<Position>,
    pub(super) reason: &'a str,
}

impl Ears {
    pub(super) fn new(who: String, rooms: &[usize], begin: Begin, epoch: Epoch) -> Self {
        let count = rooms.len();
        let (at, accounts, strays, until) = (vec![None; count], vec![None; count], vec![false; count], vec![(0, 0); count]);
        Self { who, epoch, rooms: rooms.to_vec(), begin, at, accounts, strays, until }
    }

    /// Its topics as parameters of a query.
    pub(super) fn query(&self) -> String {
        let topics: Vec<String> = self.rooms.iter().map(|room| format!("topic=room-{room}")).collect();
        topics.join("&")
    }

    /// What it says of where to begin when it has no cursor yet.
    pub(super) fn start(&mut self, ledger: &Ledger, choices: &mut Choices) -> String {
        self.begin(ledger, choices).map_or(String::new(), |(name, value)| format!("&{name}={value}"))
    }

    /// The same as the name of a parameter and its value, if it says anything.
    pub(super) fn begin(&mut self, ledger: &Ledger, choices: &mut Choices) -> Option<(&'static str, String)> {
        self.at.fill(None);
        match self.begin {
            Begin::Live => None,
            Begin::Last(count) => Some(("last", count.to_string())),
            Begin::Earliest => Some(("after", "earliest".to_owned())),
            Begin::After { newest } => {
                let offsets: Vec<u64> = self.rooms.iter().map(|&room| ledger.known_offset(room, newest, choices)).collect();
                self.at = offsets.iter().map(|offset| Some(*offset)).collect();
                Some(("after", Cursor::new(self.epoch, offsets.into_iter().map(Some)).to_string()))
            }
            Begin::Stray { restart } => {
                self.strays.fill(true);
                let stray = stray(self.epoch, restart);
                Some(("after", Cursor::new(stray.epoch, self.rooms.iter().map(|_| Some(stray.offset))).to_string()))
            }
        }
    }

    /// It has let go of its topics, and begins anew.
    pub(super) fn begin_anew(&mut self, begin: Begin, ledger: &mut Ledger) {
        self.tell(false, ledger);
        self.begin = begin;
        self.at.fill(None);
        self.accounts.fill(None);
        self.strays.fill(false);
    }

    /// It was told where it begins in a topic, and is to be told of a gap from there: it begins there.
    pub(super) fn begin_again_at(&mut self, index: usize, offset: u64) {
        self.at[index] = Some(offset);
    }

    /// Where it is in a topic, if it was told or has said so.
    pub(super) fn place(&self, index: usize) -> Option<Position> {
        self.at[index].map(|offset| self.position(offset))
    }

    /// A message of its own connection is not to come back to it, once it is in the topic.
    pub(super) fn does_not_want(&self, index: usize, id: MessageId, ledger: &mut Ledger) {
        if let Some(account) = self.accounts[index] {
            ledger.does_not_want(account, id);
        }
    }

    /// It is another connection now: what is not to come back is what this one has said.
    pub(super) fn is_another(&mut self, index: usize, unwanted: &HashSet<MessageId>, ledger: &mut Ledger) {
        if self.accounts[index].is_some_and(|account| ledger.accounts[account].unwanted != *unwanted) {
            self.new_account(index, ledger);
            let account = self.accounts[index].expect("made above");
            ledger.accounts[account].unwanted.clone_from(unwanted);
        }
    }

    /// The offsets of a cursor that it is given.
    pub(super) fn read_cursor(&self, text: &str) -> Vec<u64> {
        let who = &self.who;
        let cursor = Cursor::parse(text, self.rooms.len()).unwrap_or_else(|error| panic!("{who}: cursor {text:?}: {error}"));
        assert!(cursor.epoch() == self.epoch, "{who}: another epoch: {text}");
        cursor.offsets().map(|offset| offset.expect("the server is sure of every offset that it gives")).collect()
    }

    /// The offset of a position that it is given.
    pub(super) fn read_position(&self, text: &str) -> Position {
        Position::parse(text).unwrap_or_else(|error| panic!("{}: position {text:?}: {error}", self.who))
    }

    /// A position of an offset that it is given.
    pub(super) fn position(&self, offset: u64) -> Position {
        Position { epoch: self.epoch, offset }
    }

    /// Which of its topics a room is.
    pub(super) fn index_of(&self, room: usize) -> usize {
        let index = self.rooms.iter().position(|&other| other == room);
        index.unwrap_or_else(|| panic!("{}: hears of room {room}, which it has not asked for", self.who))
    }

    /// The rooms that are its topics.
    pub(super) fn rooms(&self) -> &[usize] {
        &self.rooms
    }

    /// Checks a cursor against where it is in each topic: the cursor of an event or an answer says all of them. In a stream it may lead further where the room
    /// has nothing.
    pub(super) fn expect_at(&mut self, offsets: &[u64], what: &str, ledger: &Ledger) {
        for ((at, &offset), &room) in self.at.iter_mut().zip(offsets).zip(&self.rooms) {
            if ledger.record.is_some() && at.is_some_and(|at| at < offset && ledger.is_next(None, room, at, offset + 1)) {
                *at = Some(offset);
            }
        }
        let at: Vec<u64> = self.at.iter().flatten().copied().collect();
        assert!(at == offsets, "{}: {what} leads to {at:?} in rooms {:?}, and its cursor says {offsets:?}", self.who, self.rooms);
    }

    /// It is told where it begins in a topic, or goes on.
    pub(super) fn begins(&mut self, index: usize, offset: u64, now: Time, ledger: &mut Ledger) {
        let (who, room) = (&self.who, self.rooms[index]);
        self.until[index] = (0, 0);
        match self.at[index].replace(offset) {
            Some(at) => {
                // In a stream both are the same place if the room has nothing between.
                let same =
                    at == offset || (ledger.record.is_some() && at < offset && ledger.is_next(self.accounts[index], room, at, offset + 1));
                assert!(same, "{who}: comes back to room {room} at {at} and goes on at {offset}, without a gap");
            }
            None => {
                let most = match self.begin {
                    Begin::Last(count) => u64::from(count),
                    _ => u64::MAX,
                };
                let what = format!("{who} begins with {:?} behind {offset}", self.begin);
                if let (Begin::Earliest, Some(record)) = (self.begin, &ledger.record) {
                    let left_out = record.between(room, 0, offset + 1, |_| false);
                    assert!(left_out.is_none(), "{what}, and {left_out:?} lies before");
                }
                match self.begin {
                    Begin::Last(_) | Begin::Earliest => ledger.lose(Loss::new(room, offset, now, what).of_at_most(most)),
                    Begin::Live => ledger.tell_end(room, offset),
                    // The gap that follows says what is missing.
                    Begin::After { .. } | Begin::Stray { .. } => {}
                }
            }
        }
        if self.accounts[index].is_none() {
            self.new_account(index, ledger);
        }
    }

    /// Its first answer begins with a message: it begins somewhere before that.
    pub(super) fn begins_before(&mut self, index: usize, offset: u64, now: Time, ledger: &mut Ledger) {
        let before = match self.at[index].filter(|_| ledger.record.is_some()) {
            Some(at) => at,
            None => offset - 1,
        };
        self.begins(index, before, now, ledger);
    }

    /// It is told that messages are missing.
    pub(super) fn gap(&mut self, gap: &ToldGap<'_>, now: Time, ledger: &mut Ledger) {
        let (room, to) = (gap.room, gap.to.offset);
        let index = self.index_of(room);
        if let (Some(at), Some(from)) = (self.at[index], gap.from.filter(|from| from.epoch == self.epoch)) {
            // Nothing but what it does not want lies between.
            let passes = at < from.offset && ledger.is_next(self.accounts[index], room, at, from.offset + 1);
            self.at[index] = Some(if passes { from.offset } else { at });
        }
        let who = &self.who;
        let told = format!("{who}, at {:?}, is told of a gap from {:?} to {to} in room {room}: {}", self.at[index], gap.from, gap.reason);
        assert!(gap.to.epoch == self.epoch, "{told}: another epoch");
        match (std::mem::take(&mut self.strays[index]), self.begin) {
            (true, Begin::Stray { restart }) => {
                let reason = if restart { GapReason::Restart } else { GapReason::Unknown };
                assert!(gap.from == Some(stray(self.epoch, restart)) && gap.reason == reason.word(), "{told}");
                // Of another epoch it cannot be told where it is but by where it goes on.
                assert!(!restart || self.at[index].is_none_or(|at| at == to), "{told}");
            }
            _ if gap.reason == GapReason::Slow.word() => return self.slow_gap(index, gap, told, ledger),
            _ => {
                let at = self.at[index].map(|offset| Position { epoch: self.epoch, offset });
                assert!(at.is_some() && at == gap.from, "{told}");
                assert!(at.is_some_and(|at| to > at.offset), "{told}: nothing lies between");
                assert!(gap.reason == GapReason::TooOld.word() && ledger.record.is_none(), "{told}");
            }
        }
        // Also after a stray position it is given everything that there is.
        ledger.lose(Loss::new(room, to, now, told));
        ledger.gaps += 1;
        self.at[index] = Some(to);
        self.new_account(index, ledger);
    }

    /// It is told that messages were left out because it is slow. Whether they may be is judged at the end.
    fn slow_gap(&mut self, index: usize, gap: &ToldGap<'_>, told: String, ledger: &mut Ledger) {
        let at = self.at[index].map(|offset| Position { epoch: self.epoch, offset });
        assert!(at.is_some() && at == gap.from, "{told}");
        let (from, to) = (at.map_or(0, |at| at.offset), gap.to.offset);
        let until = gap.until.map_or(to, |until| until.offset);
        assert!(to >= from && until >= to && until > from, "{told}, {until}: nothing lies between");
        if to > from {
            ledger.leave_out(LeftOut { room: self.rooms[index], waits_after: from, offsets: from + 1..=to, what: told });
        }
        ledger.gaps += 1;
        (self.at[index], self.until[index]) = (Some(to), (until, from));
        self.new_account(index, ledger);
    }

    /// It is given a message.
    pub(super) fn hear(&mut self, index: usize, offset: u64, text: bool, payload: &[u8], ledger: &mut Ledger) {
        let (who, room) = (&self.who, self.rooms[index]);
        assert!(!self.strays[index], "{who}: hears of room {room} and was not told that its position is none of that");
        if let Some(at) = self.at[index].filter(|at| offset > at + 1 && offset - 1 <= self.until[index].0) {
            let what =
                format!("{who}, at {at}, hears message {offset} of room {room}, and was told of holes up to {}", self.until[index].0);
            ledger.leave_out(LeftOut { room, waits_after: self.until[index].1, offsets: at + 1..=offset - 1, what });
            self.at[index] = Some(offset - 1);
            self.new_account(index, ledger);
        }
        let who = &self.who;
        let at = self.at[index].replace(offset);
        assert!(
            at.is_some_and(|at| ledger.is_next(self.accounts[index], room, at, offset)),
            "{who}: hears message {offset} of room {room}, where it was at {at:?}"
        );
        let account = self.accounts[index].expect("it was told where it begins");
        let message = ledger.identify(account, payload);
        ledger.hear(account, text, payload);
        ledger.place(room, offset, message);
    }

    /// Whether its topics are listened to now.
    pub(super) fn tell(&self, listens: bool, ledger: &mut Ledger) {
        for account in self.accounts.iter().flatten() {
            ledger.accounts[*account].listens = listens;
        }
    }

    fn new_account(&mut self, index: usize, ledger: &mut Ledger) {
        let mut account = Account::new(Some(self.rooms[index]), false);
        account.after = self.at[index];
        let new = ledger.accounts.len();
        if let Some(old) = self.accounts[index].replace(new) {
            ledger.accounts[old].listens = false;
            account.unwanted.clone_from(&ledger.accounts[old].unwanted);
        }
        ledger.accounts.push(account);
        ledger.let_in(new);
    }

    /// Whether there is something that it has not been given or told.
    pub(super) fn is_behind(&self, ledger: &Ledger) -> bool {
        let mut topics = self.rooms.iter().zip(&self.at).zip(&self.accounts);
        self.strays.contains(&true) || topics.any(|((&room, at), account)| ledger.has_more(*account, room, *at))
    }

    /// Where it is, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        format!("{} at {:?} in rooms {:?}, untold of strays {:?}", self.who, self.at, self.rooms, self.strays)
    }
}
