//! What of a shard outlives a planned restart: its topics' offsets and histories, and its idempotency keys. Out as records (`proto::state`), once the
//! shard has finished; in as values, before it begins. Which file they are in, and in which order, is `server::state`'s affair.

use std::time::Duration;

use super::Gateway;
use super::history::Gone;
use super::streams::message;
use super::topic::{Role, Topic};
use crate::engine::driver::Driver;
use crate::engine::log::Attributes;
use crate::engine::sys::Socket;
use crate::ids::{ConnId, ConnKey, ShardId};
use crate::proto::position::Position;
use crate::proto::state::Record;
use crate::proto::topic::TopicName;
use crate::proto::ws::MessageKind;
use crate::proto::ws::frame::server_header;
use crate::time::Time;

/// The bytes of a chunk, unless a single message is larger.
const CHUNK_BYTES: usize = 256 * 1024;
/// The sockets of a chunk: as many as go with one message between processes (unix(7), SCM_RIGHTS).
pub const CHUNK_SOCKETS: usize = 253;

/// Who has published what an earlier process kept: nobody who is here.
pub(super) const BEFORE: ConnId = ConnId { shard: ShardId(u16::MAX), key: ConnKey { slot: u32::MAX, generation: 0 } };

/// Some records, one after the other.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// How many they are.
    pub records: u64,
    /// How many of them are topics, gone ones included, messages, keys, and connections.
    pub counts: [u64; 4],
    /// The sockets of these connections, which stay their shard's.
    pub sockets: Vec<Socket>,
}

/// What a shard begins with.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// No topic that is remembered no more has had an offset above this.
    pub floor: u64,
    /// Topics of which no message is kept: the hash of their name and their newest offset.
    pub gone: Vec<(u64, u64)>,
    /// Topics with a history.
    pub topics: Vec<KeptTopic>,
    /// Idempotency keys, the oldest first.
    pub keys: Vec<UsedKey>,
}

/// A topic with a history.
#[derive(Debug)]
pub struct KeptTopic {
    /// Its name.
    pub name: TopicName,
    /// The offset before the first message.
    pub after: u64,
    /// The messages, the oldest first.
    pub messages: Vec<KeptMessage>,
}

/// A message of a history.
#[derive(Debug)]
pub struct KeptMessage {
    /// How long ago it came.
    pub age: Duration,
    /// Text or binary.
    pub kind: MessageKind,
    /// The name of its event.
    pub event: Option<Box<str>>,
    /// What it replaces older messages by.
    pub key: Option<Box<str>>,
    /// The payload.
    pub payload: Box<[u8]>,
}

/// An idempotency key.
#[derive(Debug)]
pub struct UsedKey {
    /// How long ago it was used.
    pub age: Duration,
    /// Of which topic.
    pub topic: TopicName,
    /// The key.
    pub id: Box<str>,
    /// The offset of its message.
    pub offset: u64,
}

impl Chunk {
    /// Adds a record; a chunk that is full is given away.
    pub(super) fn add(&mut self, record: &Record<'_>, full: &mut impl FnMut(Self)) {
        record.encode(&mut self.bytes);
        self.records += 1;
        match record {
            Record::Topic { .. } | Record::Gone { .. } => self.counts[0] += 1,
            Record::Message { .. } => self.counts[1] += 1,
            Record::Key { .. } => self.counts[2] += 1,
            Record::Connection(_) => self.counts[3] += 1,
            _ => {}
        }
        if self.bytes.len() >= CHUNK_BYTES || self.sockets.len() >= CHUNK_SOCKETS {
            full(std::mem::take(self));
        }
    }
}

impl<D: Driver> Gateway<D> {
    /// Gives out what this shard has, in chunks. `unix_ms` is the time now, in milliseconds since 1970.
    pub fn export(&self, unix_ms: u64, mut give: impl FnMut(Chunk)) {
        let at_ms = |at: Time| unix_ms.saturating_sub(self.now.since(at).as_millis() as u64);
        let mut chunk = Chunk::default();
        chunk.add(&Record::Floor { offset: self.past.floor() }, &mut give);
        for (hash, offset) in self.past.iter() {
            chunk.add(&Record::Gone { hash, offset }, &mut give);
        }
        let mut slot = Some(0);
        while let Some(at) = slot {
            if let Some((name, topic)) = self.topics.at(at) {
                self.export_topic(name, topic, at_ms, &mut |record| chunk.add(record, &mut give));
            }
            slot = self.topics.next_slot(at);
        }
        for (at, topic, id, position) in self.keys.iter() {
            chunk.add(&Record::Key { at_ms: at_ms(at), topic: topic.clone(), id, offset: position.offset }, &mut give);
        }
        give(chunk);
    }

    fn export_topic(&self, name: &TopicName, topic: &Topic, at_ms: impl Fn(Time) -> u64, add: &mut impl FnMut(&Record<'_>)) {
        let Role::Home(side) = &topic.role else { return };
        // What a stream keeps is read from there again.
        if topic.is_sequenced() {
            return;
        }
        let first = side.history.first(&topic.raw.log);
        let Some(oldest) = side.history.seek(first).filter(|_| first < topic.raw.log.frames()) else {
            if topic.raw.offset() > 0 {
                add(&Record::Gone { hash: self.placement.hash(name.as_str()), offset: topic.raw.offset() });
            }
            return;
        };
        let messages = topic.raw.log.frames() - first;
        add(&Record::Topic { name: name.clone(), after: topic.raw.base + first, messages });
        oldest.each(|number, frame, bytes| {
            let at = side.history.came_by(number, topic.last_append, &self.limits);
            let (kind, payload) = message(bytes.as_slice());
            let (event, key) = (frame.event(), frame.key());
            add(&Record::Message { at_ms: at_ms(at), kind, event, key, payload });
            true
        });
    }

    /// Takes up what an earlier process had. To be called before the first step; what is more than the limits allow now is left out.
    pub fn import(&mut self, snapshot: Snapshot) {
        self.past.raise_floor(snapshot.floor);
        for (hash, offset) in snapshot.gone {
            self.past.remember(hash, Gone::at(offset));
        }
        for topic in snapshot.topics {
            self.import_topic(topic);
        }
        for UsedKey { age, topic, id, offset } in snapshot.keys {
            self.keys.remember(topic, id, Position { epoch: self.epoch, offset }, self.now - age, &self.limits);
        }
    }

    fn import_topic(&mut self, kept: KeptTopic) {
        let hash = self.placement.hash(kept.name.as_str());
        let is_wanted = self.limits.history_messages > 0 && !kept.messages.is_empty() && self.topics.find(&kept.name).is_none();
        let Some(key) = is_wanted.then(|| self.make_home_topic(kept.name)).flatten() else {
            return self.past.remember(hash, Gone::at(kept.after + kept.messages.len() as u64));
        };
        let topic = self.topics.get_mut(key).expect("made above");
        let Role::Home(side) = &mut topic.role else { unreachable!("it was made at home") };
        topic.raw.base = kept.after;
        topic.warm = true;
        side.history.listed = true;
        let mut grown = 0;
        for KeptMessage { age, kind, event, key: message_key, payload } in kept.messages {
            // The clock of the machine may have been set; the order is the file's.
            let at = (self.now - age).max(topic.last_append);
            let (header, len) = server_header(kind.opcode(), payload.len());
            side.history.appending(&mut topic.raw.log, &self.limits, at);
            let attributes = Attributes::of(event, message_key);
            topic.raw.log.append_with(BEFORE, attributes, &header[..len], &payload);
            topic.last_append = at;
            grown += side.history.trim(&topic.raw.log, &self.limits);
        }
        self.warm.push(key);
        self.histories.push_back(key);
        self.grow_history(grown);
        self.relieve_histories();
    }
}
