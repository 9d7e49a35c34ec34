//! The oracle: what every client said and heard, and whether that fits together.
//!
//! The rules, for every room:
//!
//! 1. What arrives is what was said, byte for byte, in the same kind of message, and nobody without echo hears himself.
//! 2. Everybody hears the room's messages in the same order and without a hole, from the time he is let in to the time he is told goodbye.
//! 3. Of each speaker everybody hears his messages in his order, each once; of one who stays, all.
//! 4. Who has been let in hears everything that is said from then on.

use std::collections::HashMap;

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
    /// What it has said, in order.
    pub(super) said: Vec<Said>,
    /// What it has heard, in order.
    pub(super) heard: Vec<MessageId>,
    /// How much everybody had said when it was let in; none while it was not.
    pub(super) let_in: Option<Vec<usize>>,
    /// Everything that it has said has left its codec, and its connection is whole.
    pub(super) stays: bool,
    /// It reads all there is, and its connection is whole.
    pub(super) listens: bool,
    /// Per speaker, the next number that may come.
    next: HashMap<u16, u16>,
}

impl Account {
    pub(super) fn new(room: Option<usize>, no_echo: bool) -> Self {
        Self { room, no_echo, ..Self::default() }
    }
}

/// What everybody has said and heard.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) accounts: Vec<Account>,
}

/// Bytes at the front of each payload that name it.
pub(super) const NAME_BYTES: usize = 8;

impl Ledger {
    /// Makes the next message of a speaker: `bytes` long, and at least its name.
    pub(super) fn say(&mut self, speaker: usize, bytes: usize, text: bool) -> Said {
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
        let said = self.accounts.iter().map(|account| account.said.len()).collect();
        self.accounts[who].let_in = Some(said);
    }

    /// A member of a room hears a message.
    ///
    /// # Panics
    /// If that breaks a rule.
    pub(super) fn hear(&mut self, who: usize, text: bool, payload: &[u8]) {
        let number = |digits: &[u8]| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let id = payload
            .get(..NAME_BYTES)
            .and_then(|name| Some(MessageId { speaker: number(&name[..4])?, number: number(&name[4..])? }))
            .unwrap_or_else(|| panic!("client {who} hears {} bytes that nobody has said", payload.len()));
        let speaker = self.accounts.get(usize::from(id.speaker));
        let (said, room) = speaker
            .and_then(|speaker| Some((speaker.said.get(usize::from(id.number))?, speaker.room)))
            .unwrap_or_else(|| panic!("client {who} hears message {id:?}, which nobody has said"));
        assert!(said.text == text && said.payload == payload, "client {who} hears message {id:?} changed");
        let account = &mut self.accounts[who];
        assert!(room == account.room, "client {who} hears message {id:?} of another room");
        assert!(!account.no_echo || usize::from(id.speaker) != who, "client {who} wants no echo and hears {id:?}");
        let next = account.next.entry(id.speaker).or_insert(id.number);
        assert!(*next == id.number, "client {who} hears {id:?} when number {next} of that speaker is next");
        *next += 1;
        account.heard.push(id);
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
        for (who, listener) in self.accounts.iter().enumerate().filter(|(_, account)| account.listens) {
            let (Some(_), Some(let_in)) = (listener.room, &listener.let_in) else { continue };
            for (by, speaker) in self.accounts.iter().enumerate() {
                if speaker.room != listener.room || !speaker.stays || (by == who && listener.no_echo) {
                    continue;
                }
                let heard = listener.next.get(&(by as u16)).map_or(0, |next| usize::from(*next));
                if speaker.said.len() > let_in[by] && heard < speaker.said.len() {
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
            }
        }
    }

    /// Both have heard the same in the same order where they overlap (rule 2).
    fn compare(&self, reference: usize, who: usize) {
        let (one, other) = (&self.accounts[reference], &self.accounts[who]);
        let without = |list: &[MessageId]| -> Vec<MessageId> {
            let own =
                |id: &MessageId| (one.no_echo && usize::from(id.speaker) == reference) || (other.no_echo && usize::from(id.speaker) == who);
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
            assert!(
                usize::from(number) <= let_in[usize::from(speaker)],
                "client {who} was let in when client {speaker} had said {} messages, and hears him from number {number} on",
                let_in[usize::from(speaker)]
            );
        }
    }
}
