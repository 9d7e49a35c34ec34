//! The server of a simulation: one JetStream stream, which numbers what it takes, knows message ids, and is asked for what it has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::super::ledger::{Ledger, name_of};
use crate::bus::link::{Fetched, Incoming, Numbered};
use crate::bus::reading::NOBODY;
use crate::ids::ConnId;
use crate::proto::position::{Epoch, Position};
use crate::proto::ws::MessageKind;

/// What subjects of rooms begin with; a number follows.
pub(super) const ROOM: &str = "sim.room-";
/// The rule that makes them so.
pub(super) const RULE: &str = "* <-> sim.*";

/// A message on its way to the server, or there.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) subject: Arc<str>,
    pub(super) payload: Bytes,
    pub(super) kind: MessageKind,
    pub(super) event: Option<Box<str>>,
    pub(super) key: Option<Box<str>>,
    /// The node that it comes from, and who has said it there.
    pub(super) origin: Option<(u64, ConnId)>,
    pub(super) no_echo: bool,
}

/// The server.
pub(super) struct Server {
    pub(super) epoch: Epoch,
    /// The sequence of the newest message.
    pub(super) last: u64,
    messages: BTreeMap<u64, Message>,
    ids: HashMap<String, u64>,
    /// Ids under which it takes nothing, and those that it did not take once.
    pub(super) never: HashSet<String>,
    pub(super) put_off: HashSet<String>,
    /// Connections are lost while it is frozen, or one after the other: what is sent on one may come behind what came on the next.
    mixes: bool,
}

impl Server {
    pub(super) fn new(epoch: Epoch, last: u64, mixes: bool) -> Self {
        Self { epoch, last, messages: BTreeMap::new(), ids: HashMap::new(), never: HashSet::new(), put_off: HashSet::new(), mixes }
    }

    /// Takes a message, unless one came before under its id, behind so many others that are deleted at once. Its sequence, and whether it was there.
    pub(super) fn store(&mut self, id: Option<String>, message: Message, skipped: u64, ledger: &mut Ledger) -> (u64, bool) {
        if let Some(&sequence) = id.as_ref().and_then(|id| self.ids.get(id)) {
            return (sequence, true);
        }
        self.last += 1 + skipped;
        if let (Some(room), Some(record)) = (room_of(&message.subject), &mut ledger.record) {
            let name = name_of(&message.payload).unwrap_or_else(|| panic!("the stream is given what nobody has said"));
            // Of what came behind one that was put off the acknowledgement may be lost: then that one comes behind it.
            let in_order = !self.mixes && !id.as_ref().is_some_and(|id| self.put_off.contains(id));
            record.store(room, self.last, name, in_order);
        }
        if let Some(record) = &mut ledger.record {
            record.last = self.last;
        }
        self.messages.insert(self.last, message);
        if let Some(id) = id {
            self.ids.insert(id, self.last);
        }
        (self.last, false)
    }

    /// Whether it has taken something under an id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// The first message after a sequence.
    pub(super) fn after(&self, sequence: u64) -> Option<(u64, &Message)> {
        self.messages.range(sequence + 1..).next().map(|(sequence, message)| (*sequence, message))
    }

    /// What there is of a subject after a position and up to an offset, at most so many messages; see `bus::fetch`.
    pub(super) fn fetch(&self, node: u64, (subject, after, upto): (&str, Position, u64), most: usize) -> Fetched {
        if after.epoch != self.epoch {
            return Fetched { failed: true, ..Fetched::default() };
        }
        let mut fetched = Fetched { reached: upto, ..Fetched::default() };
        let range = self.messages.range(after.offset + 1..upto.max(after.offset) + 1);
        for (&sequence, message) in range.filter(|(_, message)| *message.subject == *subject) {
            fetched.messages.push(message.incoming(node, sequence));
            if fetched.messages.len() >= most {
                fetched.reached = sequence;
                break;
            }
        }
        fetched
    }
}

impl Message {
    /// As it comes to a node.
    pub(super) fn incoming(&self, node: u64, offset: u64) -> Incoming {
        let sender = self.origin.filter(|(other, _)| *other == node).map(|(_, sender)| sender);
        let numbered = Numbered { offset, sender, no_echo: sender.is_some() && self.no_echo };
        let Self { payload, kind, event, key, .. } = self;
        Incoming { topic: NOBODY, payload: payload.clone(), kind: *kind, event: event.clone(), key: key.clone(), numbered: Some(numbered) }
    }
}

/// The room whose messages a subject has.
pub(super) fn room_of(subject: &str) -> Option<usize> {
    subject.strip_prefix(ROOM)?.parse().ok()
}
