//! `GET /v1/topics`: a list that travels from shard to shard, each of which adds the topics whose home it is, until it is full or has been everywhere.
//!
//! Bounded in what it answers and in what it looks through: with a prefix that few names have, an answer may be short, or empty, and yet not the last.

use super::Gateway;
use super::peers::ShardMessage;
use super::polls::for_origin;
use super::session::State;
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::ids::{ConnId, ConnKey, ShardId};
use crate::proto::http::Response;
use crate::proto::listing::{ListCursor, Listed, answer};
use crate::proto::position::Position;

/// Places of topics that one request looks at.
const SLOTS_MAX: u32 = 16_384;
/// The bytes of one answer, and one topic more.
const BYTES_MAX: usize = 256 * 1024;

/// What is asked for, and how far it has got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    pub(super) from: ListCursor,
    /// What the names begin with.
    pub(super) prefix: Box<str>,
    /// Topics that it still may have.
    pub(super) left: u64,
    pub(super) keep: bool,
    /// The page's origin, where its page may read the answer.
    pub(super) origin: Option<Vec<u8>>,
    slots_left: u32,
    topics: Vec<u8>,
}

impl Listing {
    pub(super) fn new(from: ListCursor, prefix: Box<str>, topics_max: u64, origin: Option<Vec<u8>>) -> Self {
        Self { from, prefix, left: topics_max, keep: true, origin, slots_left: SLOTS_MAX, topics: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.left == 0 || self.slots_left == 0 || self.topics.len() >= BYTES_MAX
    }
}

impl<D: Driver> Gateway<D> {
    /// A request for a list: it is sent on its way.
    pub(super) fn begin_listing(&mut self, key: ConnKey, listing: Listing) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Awaiting;
        let asker = ConnId { shard: self.shard, key };
        let first = ShardId(listing.from.shard);
        if first.0 >= self.placement.shards() {
            self.finish_listing(key, &listing, None);
        } else if first == self.shard {
            self.add_to_listing(asker, Box::new(listing));
        } else {
            self.mailbox.send(first, ShardMessage::List { asker, listing: Box::new(listing) });
        }
    }

    /// Adds this shard's topics, and passes the list on.
    pub(super) fn add_to_listing(&mut self, asker: ConnId, mut listing: Box<Listing>) {
        let mut next = Some(listing.from.slot);
        while let Some(slot) = next
            && !listing.is_full()
        {
            listing.slots_left -= 1;
            next = self.topics.next_slot(slot);
            let Some((name, topic)) = self.topics.at(slot) else { continue };
            let Role::Home(side) = &topic.role else { continue };
            if !name.as_str().starts_with(&*listing.prefix) {
                continue;
            }
            listing.left -= 1;
            let offset = topic.raw.offset();
            Listed {
                topic: name.as_str(),
                position: (offset > 0).then_some(Position { epoch: topic.epoch, offset }),
                subscribers: topic.members() + side.home.members(),
                messages: topic.raw.log.frames() - side.history.first(&topic.raw.log),
            }
            .push(&mut listing.topics);
        }
        let next = match next {
            Some(slot) => Some(ListCursor { shard: self.shard.0, slot }),
            None => (self.shard.0 + 1 < self.placement.shards()).then(|| ListCursor { shard: self.shard.0 + 1, slot: 0 }),
        };
        match next {
            Some(cursor) if !listing.is_full() => {
                listing.from = cursor;
                self.mailbox.send(ShardId(cursor.shard), ShardMessage::List { asker, listing });
            }
            _ if asker.shard == self.shard => self.finish_listing(asker.key, &listing, next),
            _ => self.mailbox.send(asker.shard, ShardMessage::Listed { key: asker.key, listing, next }),
        }
    }

    /// The list is as long as it will be: whoever asked is answered, if it is still there.
    pub(super) fn finish_listing(&mut self, key: ConnKey, listing: &Listing, next: Option<ListCursor>) {
        let response = Response::new(200).header("Cache-Control", "no-store").body("application/json", &answer(&listing.topics, next));
        if self.sessions.get_mut(key).is_some_and(|session| session.state == State::Awaiting) {
            self.answered(key, for_origin(response, listing.origin.as_deref()), listing.keep);
        }
    }
}
