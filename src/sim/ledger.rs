//! The oracle: what every client said and heard, and whether that fits together.
//!
//! The rules, for every room:
//!
//! 1. What arrives is what was said, byte for byte, in the same kind of message, and nobody without echo hears himself.
//! 2. Everybody hears the room's messages in the same order and without a hole, from the time he is let in to the time he is told goodbye.
//! 3. Of each speaker everybody hears his messages in his order, each once; of one who stays, all.
//! 4. Who has been let in hears everything that is said from then on.
//! 5. Streams, polls and receipts say which offset a message has: it is the same for everybody, and grows by one from message to message. Who was
//!    there before anything was said hears the first message with the offset 1. (Where more topics are gone than are remembered, offsets may begin
//!    higher; so many there are in no simulation.)
//! 6. Who comes back to a position hears what follows it, each message once, as if he had never been away; unless he is told that some is missing. He
//!    is told so only of messages that there were and that the history's bounds allow to be missing.
//! 7. Who is told that messages were left out because he is slow: the room's rule says so, and more waited for him than his soft bound. With `conflate` each of
//!    them has a key, and a newer message has the same.
//! 8. Nobody is said to have been sent a message but those who have come to its room.
//!
//! Where a stream gives messages their places everybody is compared with what it has (`record`): offsets grow and have holes, nobody is told of a gap, and
//! only what was not acknowledged may be missing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::record::Record;
use crate::engine::log::Frame;
use crate::engine::sim::Choices;
use crate::proto::slow::{SlowPolicy, SlowRules};
use crate::proto::topic::TopicName;
use crate::proto::ws::frame::HEADER_MAX;
use crate::time::Time;

/// A message: who said it, and his how manieth it was.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) struct MessageId {
    pub(super) speaker: u16,
    pub(super) number: u16,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) text: bool,
    pub(super) payload: Vec<u8>,
}

/// One client's part.
#[derive(Default)]
pub(super) struct Account {
    pub(super) room: Option<usize>,
    pub(super) no_echo: bool,
    /// What others have said that it does not get: messages of its own connection, which does not want them back.
    pub(super) unwanted: HashSet<MessageId>,
    /// What it has said, in order.
    pub(super) said: Vec<Said>,
    /// And when.
    said_at: Vec<Time>,
    /// The offset after which it has asked to begin.
    pub(super) after: Option<u64>,
    /// What it has heard, in order.
    pub(super) heard: Vec<MessageId>,
    /// Where a stream gives messages their places: that of the last of them, and how far the stream was when it was let in.
    pub(super) heard_to: Option<u64>,
    pub(super) let_in_at: u64,
    /// How much everybody had said when it was let in; none while it was not.
    pub(super) let_in: Option<Vec<usize>>,
    /// Everything that it has said has left its codec, and its connection is whole.
    pub(super) stays: bool,
    /// It reads all there is, and its connection is whole.
    pub(super) listens: bool,
    /// It hears its room from the first message on.
    from_the_first: bool,
    /// Per speaker, the next number that may come.
    next: HashMap<u16, u16>,
}

impl Account {
    pub(super) fn new(room: Option<usize>, no_echo: bool) -> Self {
        Self { room, no_echo, ..Self::default() }
    }

    /// Whether a message is left out for it, which is `who`.
    pub(super) fn leaves_out(&self, who: usize, id: MessageId) -> bool {
        (self.no_echo && usize::from(id.speaker) == who) || self.unwanted.contains(&id)
    }

    fn leaves_some_out(&self) -> bool {
        self.no_echo || !self.unwanted.is_empty()
    }
}

/// What everybody has said and heard.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) accounts: Vec<Account>,
    /// Which message has which offset, by room, as far as streams have told.
    order: HashMap<usize, BTreeMap<u64, MessageId>>,
    offsets: HashMap<MessageId, u64>,
    /// The newest offset of each room of which somebody was told who asked for nothing from before.
    ends: HashMap<usize, u64>,
    /// What is kept for who comes later.
    kept: Kept,
    losses: Vec<Loss>,
    /// What the stream has, where one gives messages their places.
    pub(super) record: Option<Record>,
    /// What rules there are for slow readers, and from how many bytes on they act.
    pub(super) slow: (SlowRules, u64),
    left_out: Vec<LeftOut>,
    /// What messages replace each other by.
    keys: HashMap<MessageId, u16>,
    /// Connections that have asked for each room.
    visits: HashMap<usize, u64>,
    /// Gaps told, and connections closed for one.
    pub(super) gaps: u64,
}

/// What histories must hold.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Kept {
    /// So many messages of each topic.
    pub(super) messages: u64,
    /// Not longer than this.
    pub(super) age: Duration,
    /// As long as all of them take at most so many bytes.
    pub(super) bytes: u64,
}

/// Somebody was not given a message that was before it came. Judged at the end, when it is known which message it was.
pub(super) struct Loss {
    room: usize,
    offset: u64,
    now: Time,
    what: String,
    /// The offset is that before the first message that this one has heard, known at the end.
    before_all_of: Option<usize>,
    /// He has asked for no more than so many.
    most: u64,
    /// What was said in the room by then, and the memory that histories could take.
    said: u64,
    bytes: u64,
}

/// Messages that were not given to somebody because he is slow. Judged at the end, when it is known which they were.
pub(super) struct LeftOut {
    pub(super) room: usize,
    /// What lies behind this offset waited for him.
    pub(super) waits_after: u64,
    pub(super) offsets: RangeInclusive<u64>,
    pub(super) what: String,
}

impl Loss {
    /// The message with this offset, and so all before it.
    pub(super) fn new(room: usize, offset: u64, now: Time, what: String) -> Self {
        Self { room, offset, now, what, before_all_of: None, most: u64::MAX, said: 0, bytes: 0 }
    }

    /// What lies before the first message that this one has heard, whichever that turns out to be.
    pub(super) fn before_all_of(who: usize, room: usize, now: Time, what: String) -> Self {
        Self { before_all_of: Some(who), ..Self::new(room, 0, now, what) }
    }

    /// He has asked for no more than so many.
    pub(super) fn of_at_most(self, most: u64) -> Self {
        Self { most, ..self }
    }
}

/// What an event has besides its payload, and more: its id, its field names, the comment of binary ones.
const EVENT_BYTES: u64 = 256;

/// Bytes at the front of each payload that name it.
pub(super) const NAME_BYTES: usize = 8;

impl Ledger {
    /// Nobody has said anything yet.
    pub(super) fn new(kept: Kept, sequenced: bool) -> Self {
        Self { kept, record: sequenced.then(Record::default), ..Self::default() }
    }

    /// Whether NATS is, or was just now, such that somebody may be turned away or told that his message was not kept.
    pub(super) fn excuses(&self, now: Time) -> bool {
        self.record.as_ref().is_some_and(|record| record.excuses(now))
    }

    /// Makes the next message of a speaker: `bytes` long, and at least its name.
    pub(super) fn say(&mut self, speaker: usize, bytes: usize, text: bool, now: Time) -> Said {
        self.accounts[speaker].said_at.push(now);
        let said = &mut self.accounts[speaker].said;
        let mut payload = format!("{speaker:04x}{:04x}", said.len()).into_bytes();
        let mut state = (speaker as u32) << 16 | said.len() as u32;
        while payload.len() < bytes {
            state = state.wrapping_mul(0x9e37_79b1).wrapping_add(0x85eb_ca6b);
            let byte = (state >> 24) as u8;
            // Text has characters of one to three bytes, so that borders fall inside some.
            match (text, byte % 8) {
                (true, 0) if payload.len() + 3 <= bytes => payload.extend("€".as_bytes()),
                (true, 1) if payload.len() + 2 <= bytes => payload.extend("ß".as_bytes()),
                (true, _) => payload.push(b' ' + byte % 90),
                (false, _) => payload.push(byte),
            }
        }
        let message = Said { text, payload };
        said.push(message.clone());
        message
    }

    /// A client is let into its room.
    pub(super) fn let_in(&mut self, who: usize) {
        let said: Vec<usize> = self.accounts.iter().map(|account| account.said.len()).collect();
        let room = self.accounts[who].room;
        let is_first = self.accounts.iter().all(|account| account.room != room || account.said.is_empty());
        let account = &mut self.accounts[who];
        account.from_the_first = is_first && !account.leaves_some_out() && self.record.is_none();
        account.let_in_at = self.record.as_ref().map_or(0, |record| record.last);
        account.let_in = Some(said);
    }

    /// A message is said that is not to come back to this one.
    pub(super) fn does_not_want(&mut self, who: usize, id: MessageId) {
        let account = &mut self.accounts[who];
        account.from_the_first = false;
        account.unwanted.insert(id);
    }

    /// A member of a room hears a message.
    ///
    /// # Panics
    /// If that breaks a rule.
    pub(super) fn hear(&mut self, who: usize, text: bool, payload: &[u8]) {
        let id = self.identify(who, payload);
        let speaker = self.accounts.get(usize::from(id.speaker));
        let (said, room) = speaker
            .and_then(|speaker| Some((speaker.said.get(usize::from(id.number))?, speaker.room)))
            .unwrap_or_else(|| panic!("client {who} hears message {id:?}, which nobody has said"));
        assert!(said.text == text && said.payload == payload, "client {who} hears message {id:?} changed");
        let account = &mut self.accounts[who];
        assert!(room == account.room, "client {who} hears message {id:?} of another room");
        assert!(!account.leaves_out(who, id), "client {who} wants no echo and hears {id:?}");
        if let Some(record) = &self.record {
            account.heard_to = Some(record.hear(who, account, id));
            account.heard.push(id);
            return;
        }
        let unwanted = &account.unwanted;
        let next = account.next.entry(id.speaker).or_insert(id.number);
        *next = (*next..).find(|&number| !unwanted.contains(&MessageId { number, ..id })).unwrap_or(*next);
        assert!(*next == id.number, "client {who} hears {id:?} when number {next} of that speaker is next");
        *next += 1;
        account.heard.push(id);
        if account.from_the_first {
            let (room, offset) = (room.expect("who hears is in a room"), account.heard.len() as u64);
            self.place(room, offset, id);
        }
    }

    /// Everybody has gone.
    pub(super) fn nobody_is_there(&mut self) {
        for account in &mut self.accounts {
            (account.listens, account.stays) = (false, false);
        }
    }

    /// A connection asks for a room.
    pub(super) fn visit(&mut self, room: usize) {
        *self.visits.entry(room).or_default() += 1;
    }

    /// A publisher is told how many its message was sent to, or will be.
    ///
    /// # Panics
    /// If they are more than have ever come: members at a time cannot be counted from outside, for a connection is not gone for all shards at once (rule 8).
    pub(super) fn check_subscribers(&self, room: usize, subscribers: u64, who: &str) {
        let visits = self.visits.get(&room).copied().unwrap_or(0);
        assert!(subscribers <= visits, "{who} is told of {subscribers} subscribers of room {room}, where {visits} connections have come");
    }

    /// Who has said a message, and his how manieth it was.
    pub(super) fn identify(&self, who: usize, payload: &[u8]) -> MessageId {
        name_of(payload).unwrap_or_else(|| panic!("client {who} hears {} bytes that nobody has said", payload.len()))
    }

    /// Takes the data of an event apart: text as it is, or the base64 of bytes, of which none begins like a name.
    pub(super) fn read_event(&self, data: &str) -> (bool, Vec<u8>) {
        match name_of(data.as_bytes()) {
            Some(_) => (true, data.as_bytes().to_vec()),
            None => (false, STANDARD.decode(data).unwrap_or_else(|error| panic!("an event is neither text nor base64 ({error}): {data}"))),
        }
    }

    /// The room that a message was said in.
    pub(super) fn room_of(&self, id: MessageId) -> usize {
        self.accounts.get(usize::from(id.speaker)).and_then(|speaker| speaker.room).expect("who has said it is in a room")
    }

    /// A stream says which offset a message has.
    ///
    /// # Panics
    /// If another message had it, or the message another one (rule 5).
    pub(super) fn place(&mut self, room: usize, offset: u64, id: MessageId) {
        if let Some(record) = &self.record {
            record.check_place(room, offset, id);
        }
        let there = *self.order.entry(room).or_default().entry(offset).or_insert(id);
        assert!(there == id, "in room {room} both {there:?} and {id:?} have the offset {offset}");
        let had = *self.offsets.entry(id).or_insert(offset);
        assert!(had == offset, "in room {room} message {id:?} has the offsets {had} and {offset}");
    }

    /// Whether somebody who is at an offset may be given one that lies behind it next. `who` leaves some messages out; whose place is not known yet is looked
    /// at again in the end.
    pub(super) fn is_next(&self, who: Option<usize>, room: usize, at: u64, offset: u64) -> bool {
        let account = who.map(|who| (who, &self.accounts[who]));
        let leaves_out = |id| account.is_some_and(|(who, account)| account.leaves_out(who, id));
        if let Some(record) = &self.record {
            return at < offset && record.between(room, at, offset, leaves_out).is_none();
        }
        let apart = offset.saturating_sub(at);
        let most = account.map_or(0, |(_, account)| account.unwanted.len() as u64);
        let known = || self.order.get(&room).into_iter().flat_map(|order| order.range(at + 1..offset));
        apart == 1 || (apart > 1 && apart - 1 <= most && known().all(|(_, id)| leaves_out(*id)))
    }

    /// Whether there is a message behind an offset that `who` is to get.
    pub(super) fn has_more(&self, who: Option<usize>, room: usize, at: Option<u64>) -> bool {
        let account = who.map(|who| (who, &self.accounts[who])).filter(|(_, account)| account.leaves_some_out());
        let Some((who, account)) = account else { return at < self.newest(room) };
        let after = at.unwrap_or(0);
        match &self.record {
            Some(record) => record.between(room, after, u64::MAX, |id| account.leaves_out(who, id)).is_some(),
            None => self.order.get(&room).is_some_and(|order| order.range(after + 1..).any(|(_, id)| !account.leaves_out(who, *id))),
        }
    }

    /// The newest offset of a room that anybody knows of.
    pub(super) fn newest(&self, room: usize) -> Option<u64> {
        if let Some(record) = &self.record {
            return record.newest(room);
        }
        self.order.get(&room)?.keys().next_back().copied()
    }

    /// Somebody who has asked for nothing from before is told where a room's next message goes.
    pub(super) fn tell_end(&mut self, room: usize, offset: u64) {
        let end = self.ends.entry(room).or_default();
        *end = offset.max(*end);
    }

    /// Some offset of a room that a client may come with: the newest, or that of any message; 0 while nobody knows of one.
    pub(super) fn known_offset(&self, room: usize, newest: bool, choices: &mut Choices) -> u64 {
        let end = self.ends.get(&room).copied().unwrap_or(0);
        let Some(order) = self.order.get(&room) else { return end };
        let back = if newest { 0 } else { choices.below(order.len()) };
        let known = order.keys().rev().nth(back).copied().unwrap_or(0);
        if newest { known.max(end) } else { known }
    }

    /// Messages up to some offset were not given to somebody who has asked for them.
    pub(super) fn lose(&mut self, mut loss: Loss) {
        if self.record.is_some() {
            return;
        }
        let frame_bytes = (HEADER_MAX + size_of::<Frame>()) as u64;
        let said = |account: &Account| account.said.iter().map(|said| said.payload.len() as u64 + frame_bytes).sum::<u64>();
        loss.said = self.said_in(loss.room);
        loss.bytes = self.accounts.iter().map(said).sum();
        self.losses.push(loss);
    }

    /// Messages were left out for somebody who is slow.
    pub(super) fn leave_out(&mut self, left_out: LeftOut) {
        self.left_out.push(left_out);
    }

    /// A speaker's newest message has a key.
    pub(super) fn has_key(&mut self, speaker: usize, key: u16) {
        let number = self.accounts[speaker].said.len() as u16 - 1;
        self.keys.insert(MessageId { speaker: speaker as u16, number }, key);
    }

    /// How many messages were said in a room.
    pub(super) fn said_in(&self, room: usize) -> u64 {
        self.accounts.iter().filter(|account| account.room == Some(room)).map(|account| account.said.len() as u64).sum()
    }

    /// What a message replaces others by.
    pub(super) fn key_of(&self, id: MessageId) -> Option<u16> {
        self.keys.get(&id).copied()
    }

    /// Somebody reads a message in a history.
    ///
    /// # Panics
    /// If it was not said so, or in another room, or lies elsewhere (rules 1 and 5).
    pub(super) fn read(&mut self, who: &str, room: usize, offset: u64, text: bool, payload: &[u8]) {
        let id = name_of(payload).unwrap_or_else(|| panic!("{who} reads {} bytes that nobody has said", payload.len()));
        let speaker = self.accounts.get(usize::from(id.speaker));
        let said = speaker.filter(|speaker| speaker.room == Some(room)).and_then(|speaker| speaker.said.get(usize::from(id.number)));
        assert!(
            said.is_some_and(|said| said.text == text && said.payload == payload),
            "{who} reads {id:?} in room {room}, which nobody has said so"
        );
        self.place(room, offset, id);
    }

    /// Checks that messages could be left out for somebody who is slow (rule 7).
    fn check_left_out(&self, left_out: &LeftOut) {
        let LeftOut { room, waits_after, offsets, what } = left_out;
        let name = TopicName::parse(&format!("room-{room}")).expect("a name");
        let policy = self.slow.0.policy(&name);
        assert!(policy != SlowPolicy::Disconnect, "{what}, which its rule does not say");
        let Some(order) = self.order.get(room) else { return };
        let newest = order.keys().next_back().copied().unwrap_or(0);
        // Somebody may be the only one who has heard of the newest, or who is told of it.
        let said = self.said_in(*room);
        assert!(*offsets.end() < said.max(newest), "{what}: the newest message always comes");
        let bytes = |id: &MessageId| self.accounts[usize::from(id.speaker)].said[usize::from(id.number)].payload.len() as u64 * 4 / 3;
        let known = order.range(waits_after + 1..).map(|(_, id)| bytes(id) + EVENT_BYTES).sum::<u64>();
        let all_known = order.range(waits_after + 1..).count() as u64 >= said.saturating_sub(*waits_after);
        assert!(!all_known || known > self.slow.1, "{what}: {known} bytes have come since, and {} may wait", self.slow.1);
        if policy != SlowPolicy::Conflate {
            return;
        }
        for (offset, id) in order.range(offsets.clone()) {
            let key = self.keys.get(id);
            assert!(key.is_some(), "{what}: message {offset}, {id:?}, has no key");
            let is_replaced = order.range(offset + 1..).any(|(_, newer)| self.keys.get(newer) == key);
            assert!(is_replaced || !all_known, "{what}: message {offset}, {id:?}, is the newest of its key");
        }
    }

    /// Checks that a message could be missing (rule 6).
    fn check_loss(&self, loss: &Loss) {
        let Loss { room, said, what, .. } = loss;
        let offset = &loss.before_all_of.map_or(loss.offset, |who| self.offset_before(who));
        if *offset == 0 {
            return;
        }
        assert!(offset <= said, "{what}, and only {said} messages were said in room {room}, where {offset} is said to be missing");
        let crowded_out = *said >= offset + self.kept.messages.min(loss.most);
        let message = self.order.get(room).and_then(|order| order.get(offset));
        let said_at = message.map(|id| self.accounts[usize::from(id.speaker)].said_at[usize::from(id.number)]);
        // It has its place in the topic after it was said. One that nobody else has heard of may be of any age.
        let aged = said_at.is_none_or(|at| loss.now.since(at) >= self.kept.age);
        // Which topics give up what for want of memory is the gateway's affair, and begins only when all that was said is too much.
        let too_much = loss.bytes > self.kept.bytes;
        assert!(
            crowded_out || aged || too_much,
            "{what}, and message {offset} of room {room} must be kept: {said} were said, {} bytes in all, {:?}",
            loss.bytes,
            self.kept
        );
    }

    /// The offset before the first message that a client has heard, its own which it does not want, left out; 0 while nobody knows.
    fn offset_before(&self, who: usize) -> u64 {
        let account = &self.accounts[who];
        let first = account.heard.first().and_then(|id| self.offsets.get(id));
        let (Some(first), Some(order)) = (first, account.room.and_then(|room| self.order.get(&room))) else { return 0 };
        // One that nobody else has heard of may be its own.
        let may_be_own = |offset: &u64| account.no_echo && order.get(offset).is_none_or(|id| usize::from(id.speaker) == who);
        (0..*first).rev().find(|offset| !may_be_own(offset)).unwrap_or(0)
    }

    /// An upper bound of the bytes that all members of all rooms are to hear.
    pub(super) fn bytes_to_deliver(&self) -> u64 {
        let said = self.accounts.iter().flat_map(|account| &account.said).map(|said| said.payload.len() as u64).sum::<u64>();
        said * self.accounts.len() as u64
    }

    /// Whether everybody who listens has heard everything from those who stay.
    pub(super) fn is_settled(&self) -> bool {
        self.unheard().is_none()
    }

    /// Something that somebody who listens has not heard, of somebody who stays.
    pub(super) fn unheard(&self) -> Option<String> {
        if let Some(record) = &self.record {
            return record.unheard(&self.accounts);
        }
        for (who, listener) in self.accounts.iter().enumerate().filter(|(_, account)| account.listens) {
            let (Some(room), Some(let_in)) = (listener.room, &listener.let_in) else { continue };
            if let (Some(after), Some(newest)) = (listener.after, self.newest(room))
                && after < newest
                && listener.heard.is_empty()
                && !listener.leaves_some_out()
            {
                return Some(format!(
                    "client {who} came with offset {after} of room {room} and has heard nothing, where {newest} is the newest"
                ));
            }
            if let Some((offset, newest)) = self.order.get(&room).and_then(BTreeMap::last_key_value)
                && usize::from(newest.number) >= let_in.get(usize::from(newest.speaker)).copied().unwrap_or(0)
                && !listener.leaves_out(who, *newest)
                && listener.heard.last() != Some(newest)
                && !listener.heard.contains(newest)
            {
                return Some(format!("client {who} has not heard {newest:?}, the newest message of room {room} with offset {offset}"));
            }
            for (by, speaker) in self.accounts.iter().enumerate() {
                if speaker.room != listener.room || !speaker.stays || (by == who && listener.no_echo) {
                    continue;
                }
                let said_before = let_in.get(by).copied().unwrap_or(0);
                let heard = listener.next.get(&(by as u16)).map_or(0, |next| usize::from(*next));
                let id = |number| MessageId { speaker: by as u16, number: number as u16 };
                let awaited = |number: &usize| !listener.leaves_out(who, id(*number));
                if speaker.said.len() > said_before && (heard.max(said_before)..speaker.said.len()).any(|number| awaited(&number)) {
                    return Some(format!("client {who} has not heard message {heard} of {} of client {by}", speaker.said.len()));
                }
            }
        }
        None
    }

    /// Checks the rules that relate what different clients have heard.
    ///
    /// # Panics
    /// If one is broken.
    pub(super) fn check(&self, rooms: usize) {
        if let Some(record) = &self.record {
            // What was heard was compared when it was.
            let missing = record.unheard(&self.accounts);
            assert!(missing.is_none(), "{missing:?}");
            return;
        }
        self.losses.iter().for_each(|loss| self.check_loss(loss));
        self.left_out.iter().for_each(|left_out| self.check_left_out(left_out));
        for room in 0..rooms {
            let mut members: Vec<usize> = (0..self.accounts.len())
                .filter(|&who| self.accounts[who].room == Some(room) && self.accounts[who].let_in.is_some())
                .collect();
            // Who has heard most comes first: the others are compared with him.
            members.sort_by_key(|&who| (self.accounts[who].no_echo, std::cmp::Reverse(self.accounts[who].heard.len())));
            let Some((&reference, others)) = members.split_first() else { continue };
            for &who in others {
                self.compare(reference, who);
            }
            for who in members {
                self.check_start(who);
                self.check_offsets(who);
            }
        }
    }

    /// Both have heard the same in the same order where they overlap (rule 2).
    fn compare(&self, reference: usize, who: usize) {
        let (one, other) = (&self.accounts[reference], &self.accounts[who]);
        let without = |list: &[MessageId]| -> Vec<MessageId> {
            let own = |id: &MessageId| one.leaves_out(reference, *id) || other.leaves_out(who, *id);
            list.iter().copied().filter(|id| !own(id)).collect()
        };
        let (one, other) = (without(&one.heard), without(&other.heard));
        let places: HashMap<MessageId, usize> = one.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        let Some(begin) = other.iter().position(|id| places.contains_key(id)) else { return };
        let start = places[&other[begin]];
        let length = (one.len() - start).min(other.len() - begin);
        for at in 0..length {
            assert!(
                one[start + at] == other[begin + at],
                "clients {reference} and {who} hear different messages after {} in common: {:?} and {:?}",
                at,
                one[start + at],
                other[begin + at]
            );
        }
        assert!(begin == 0 || start == 0, "client {who} hears {:?} before what {reference} heard next to it", other[begin - 1]);
    }

    /// What was said after a client was let in is heard from its beginning (rule 4).
    fn check_start(&self, who: usize) {
        let account = &self.accounts[who];
        let Some(let_in) = &account.let_in else { return };
        let mut first: HashMap<u16, u16> = HashMap::new();
        for id in &account.heard {
            first.entry(id.speaker).or_insert(id.number);
        }
        for (speaker, number) in first {
            let said = let_in.get(usize::from(speaker)).copied().unwrap_or(0) as u16;
            let first = (said..).find(|&number| !account.leaves_out(who, MessageId { speaker, number }));
            assert!(
                first.is_some_and(|first| number <= first),
                "client {who} was let in when client {speaker} had said {:?} messages, and hears him from number {number} on",
                let_in.get(usize::from(speaker))
            );
        }
    }

    /// What a member has heard has the offsets that are known, from where it has asked to begin, and nothing lies between but what is its own and not
    /// wanted (rules 5 and 6).
    fn check_offsets(&self, who: usize) {
        let account = &self.accounts[who];
        let Some(order) = account.room.and_then(|room| self.order.get(&room)) else { return };
        let is_own = |id: &MessageId| account.leaves_out(who, *id);
        let mut last = account.after.map(|after| (after, -1));
        for (at, id) in account.heard.iter().enumerate() {
            let Some(&offset) = self.offsets.get(id) else { continue };
            if let Some((before, at_before)) = last {
                let apart = (at as i64 - at_before) as u64;
                // Who does not want his own messages hears less than there are.
                let fine = if account.leaves_some_out() { offset >= before + apart } else { offset == before + apart };
                assert!(fine, "client {who} hears {id:?} with offset {offset}, {apart} messages after the offset {before}");
                let others = order.range(before + 1..offset).filter(|(_, id)| !is_own(id)).count() as u64;
                assert!(others < apart, "client {who} hears {id:?} with offset {offset} next to {before}: {others} messages lie between");
            }
            last = Some((offset, at as i64));
        }
    }

    /// The lowest offset that the message after everything that a client has heard may have.
    pub(super) fn next_offset(&self, who: usize) -> u64 {
        let account = &self.accounts[who];
        let heard = account.heard.len() as u64;
        match account.heard.last().and_then(|id| self.offsets.get(id)) {
            Some(offset) => offset + 1,
            // It has the place after so many others at least.
            None => account.after.unwrap_or(0) + heard + 1,
        }
    }
}

/// The name at the front of a payload.
pub(super) fn name_of(payload: &[u8]) -> Option<MessageId> {
    let number = |digits: &[u8]| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let name = payload.get(..NAME_BYTES).filter(|name| name.iter().all(u8::is_ascii_hexdigit))?;
    Some(MessageId { speaker: number(&name[..4])?, number: number(&name[4..])? })
}
