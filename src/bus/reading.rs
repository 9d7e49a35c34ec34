//! What a node's reader knows of a stream: where it is, what was read lately, and which shard wants which topic. Pure: who calls reads the stream, and tells shards
//! what these functions return, in its order and before anything else.
//!
//! Topics are asked for while the reading goes on. For each it is certain from which message on they come, because what was read lately is kept for those who
//! ask behind it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::link::{Incoming, Notice};
use crate::ids::{ShardId, TopicKey};
use crate::proto::position::{Epoch, Position};

/// What was read lately, in messages and in bytes.
const RECENT_MESSAGES: usize = 16_384;
const RECENT_BYTES: usize = 2 << 20;
/// The topic of a message that nobody here has asked for.
pub(crate) const NOBODY: TopicKey = TopicKey { slot: u32::MAX, generation: std::num::NonZeroU32::MIN };

/// A message that was read.
struct Read {
    offset: u64,
    subject: Box<str>,
    incoming: Incoming,
}

/// What was read lately: everything after `from`, in order.
#[derive(Default)]
struct Recent {
    from: u64,
    list: VecDeque<Read>,
    bytes: usize,
}

impl Recent {
    fn begin(&mut self, from: u64) {
        *self = Self { from, ..Self::default() };
    }

    fn push(&mut self, read: Read) {
        self.bytes += read.incoming.payload.len();
        self.list.push_back(read);
        while self.list.len() > RECENT_MESSAGES || self.bytes > RECENT_BYTES {
            let Some(oldest) = self.list.pop_front() else { break };
            self.bytes -= oldest.incoming.payload.len();
            self.from = oldest.offset;
        }
    }

    /// What was read of a subject after an offset; none if that is not known any more.
    fn after<'r>(&'r self, offset: u64, subject: &'r str) -> Option<impl Iterator<Item = &'r Read>> {
        (offset >= self.from).then(|| self.list.iter().filter(move |read| read.offset > offset && *read.subject == *subject))
    }
}

/// What a reader knows.
#[derive(Default)]
pub(crate) struct Reading {
    by_subject: HashMap<Box<str>, (ShardId, TopicKey)>,
    /// In an order that is always the same.
    by_topic: BTreeMap<(ShardId, TopicKey), Arc<str>>,
    recent: Recent,
    at: Option<Position>,
}

impl Reading {
    /// How far the stream was read.
    pub(crate) fn at(&self) -> Option<Position> {
        self.at
    }

    /// The stream was opened, and what comes is after `at`; what lies between that and what was read may be missing if there is a `hole`.
    pub(crate) fn open(&mut self, at: Position, hole: bool) -> Vec<(ShardId, Notice)> {
        let lost = |&(shard, topic): &(ShardId, TopicKey)| (shard, Notice::Lost { topic, to: at });
        let notices = if hole { self.by_topic.keys().map(lost).collect() } else { Vec::new() };
        if hole || self.at.is_none() {
            self.recent.begin(at.offset);
        }
        self.at = Some(at);
        notices
    }

    /// A message was read; none where it is larger than messages may be.
    pub(crate) fn take(&mut self, subject: &str, at: Position, incoming: Option<Incoming>) -> Option<(ShardId, Notice)> {
        self.at = Some(at);
        let incoming = incoming?;
        let notice = self.by_subject.get(subject).map(|&(shard, topic)| (shard, Notice::Message(Incoming { topic, ..incoming.clone() })));
        self.recent.push(Read { offset: at.offset, subject: subject.into(), incoming });
        notice
    }

    /// A shard wants a topic, after a position.
    pub(crate) fn subscribe(&mut self, shard: ShardId, topic: TopicKey, subject: Arc<str>, after: Option<Position>) -> Vec<Notice> {
        let now = self.at.unwrap_or(Position { epoch: Epoch(0), offset: 0 });
        let known = after.filter(|after| after.epoch == now.epoch);
        let missed: Option<Vec<Notice>> = known.and_then(|after| {
            let reads = self.recent.after(after.offset, &subject)?;
            Some(reads.map(|read| Notice::Message(Incoming { topic, ..read.incoming.clone() })).collect())
        });
        let mut notices = missed.unwrap_or_else(|| vec![Notice::Lost { topic, to: now }]);
        notices.push(Notice::Begun { topic });
        self.by_subject.insert(Box::from(&*subject), (shard, topic));
        self.by_topic.insert((shard, topic), subject);
        notices
    }

    /// It does not any more.
    pub(crate) fn unsubscribe(&mut self, shard: ShardId, topic: TopicKey) {
        if let Some(subject) = self.by_topic.remove(&(shard, topic))
            && self.by_subject.get(&*subject) == Some(&(shard, topic))
        {
            self.by_subject.remove(&*subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::bus::link::Numbered;
    use crate::proto::ws::MessageKind;

    fn read(offset: u64, subject: &str, bytes: usize) -> Read {
        let numbered = Some(Numbered { offset, sender: None, no_echo: false });
        let payload = Bytes::from(vec![0; bytes]);
        Read {
            offset,
            subject: subject.into(),
            incoming: Incoming { topic: NOBODY, payload, kind: MessageKind::Text, event: None, key: None, numbered },
        }
    }

    fn offsets(recent: &Recent, after: u64, subject: &str) -> Option<Vec<u64>> {
        recent.after(after, subject).map(|reads| reads.map(|read| read.offset).collect())
    }

    #[test]
    fn what_was_read_lately_is_known_by_its_subject_and_what_was_before_is_not() {
        let mut recent = Recent::default();
        recent.begin(10);
        (11..20).for_each(|offset| recent.push(read(offset, if offset % 2 == 0 { "even" } else { "odd" }, 1)));
        assert_eq!(offsets(&recent, 9, "even"), None);
        assert_eq!(offsets(&recent, 10, "even"), Some(vec![12, 14, 16, 18]));
        assert_eq!(offsets(&recent, 16, "even"), Some(vec![18]));
        assert_eq!(offsets(&recent, 19, "odd"), Some(vec![]));
        recent.push(read(20, "large", RECENT_BYTES));
        assert_eq!((recent.from, recent.list.len()), (19, 1));
        (0..2 * RECENT_MESSAGES as u64).for_each(|number| recent.push(read(21 + number, "many", 0)));
        assert!(recent.list.len() <= RECENT_MESSAGES && recent.bytes <= RECENT_BYTES);
    }
}
