//! What shards tell each other, and how topics travel between them.
//!
//! Everything from one shard to another goes through one queue in order: a subscription's answer lies exactly between the messages before it
//! and those after it. Per topic and direction one batch is under way at most; what comes meanwhile gathers behind it.
//!
//! ```text
//!   subscriber's shard                         home shard
//!        ── Subscribe{name, key} ──────────────▶   makes the topic
//!        ◀───────────── Subscribed{key, home} ──   position: here
//!        ── Publish{home, frames} ─────────────▶   numbers them, or holds them while behind
//!        ◀── OverRate{conn} ──── Published{key} ──
//!        ◀──────────────── Deliver{key, frames} ─
//!        ── Delivered{home, upto} ─────────────▶   when every member was given them
//!        ── Unsubscribe{home} ─────────────────▶
//! ```

use std::sync::Arc;

use super::Gateway;
use super::MAILBOX_BUDGET;
use super::bridge::SUBSCRIPTIONS_FULL;
use super::close_cause::CloseCause;
use super::feed::FeedKey;
use super::listing::Listing;
use super::places::Places;
use super::presence::{Question, Step};
use super::publishing::{Offer, Receipt, Ticket};
use super::rate::OverRate;
use super::replay::Replay;
use super::seats::Guest;
use super::topic::{HeldParcel, Role, Topic};
use crate::engine::driver::Driver;
use crate::engine::log::Parcel;
use crate::engine::sys::Socket;
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::proto::client_address::Prefix;
use crate::proto::listing::ListCursor;
use crate::proto::pattern::Pattern;
use crate::proto::position::{Position, Start};
use crate::proto::topic::TopicName;
use crate::time::Time;

/// Topics that one step dispatches; each may have a batch for every other shard.
const DISPATCH_BUDGET: usize = 64;

/// The bytes of one batch between shards, unless a single message is larger.
const BATCH_BYTES_MAX: u64 = 256 * 1024;

/// A message from one shard to another.
#[derive(Debug)]
pub enum ShardMessage {
    /// Take up this connection; it is already counted for you.
    Adopt {
        /// Accepted by the sender, and nothing was read from it.
        socket: Socket,
        /// What it is counted for.
        prefix: Option<Prefix>,
    },
    /// The sender has somebody who wants this topic, whose home you are.
    Subscribe {
        /// The topic.
        name: TopicName,
        /// What the sender calls it.
        key: TopicKey,
    },
    /// You get everything after this.
    Subscribed {
        /// What you call the topic.
        key: TopicKey,
        /// What its home calls it.
        home: TopicKey,
        /// The position of its newest message.
        newest: Position,
        /// Whether a sequencer outside gives the offsets.
        sequenced: bool,
        /// Its places, where there is a bound to them.
        places: Option<Places>,
    },
    /// There can be no such topic now.
    Refused {
        /// What you call the topic.
        key: TopicKey,
        /// Why.
        why: &'static str,
    },
    /// Messages of the topic may be missing; what comes next is after this position.
    Lost {
        /// What you call the topic.
        key: TopicKey,
        /// The position.
        to: Position,
    },
    /// The sender has nobody left who wants it.
    Unsubscribe {
        /// What the home calls it.
        home: TopicKey,
    },
    /// Messages of the sender's clients, to be numbered.
    Publish {
        /// What the home calls the topic.
        home: TopicKey,
        /// What the sender calls it.
        key: TopicKey,
        /// The frames.
        parcel: Parcel,
    },
    /// Your messages were numbered; send the next.
    Published {
        /// What you call the topic.
        key: TopicKey,
    },
    /// A message of your client was not taken: the topic is sent more than one may. What the client has said since is not taken either, as far as it comes
    /// with a later batch.
    OverRate {
        /// What you call the topic.
        key: TopicKey,
        /// The client.
        conn: ConnKey,
        /// Why.
        over: OverRate,
    },
    /// Numbered messages for your subscribers.
    Deliver {
        /// What you call the topic.
        key: TopicKey,
        /// The offset before the first message, where offsets are dense.
        after: Option<u64>,
        /// The home's offset after them.
        upto: u64,
        /// The frames.
        parcel: Parcel,
    },
    /// Every subscriber of the sender was given what lies below.
    Delivered {
        /// What the home calls the topic.
        home: TopicKey,
        /// The home's offset.
        upto: u64,
    },
    /// The sender has so many members of the topic.
    Members {
        /// What the home calls it.
        home: TopicKey,
        /// How many.
        members: u64,
    },
    /// One of the sender's clients wants all topics that match, those that there are and those that come to be.
    Wildcard {
        /// The sender's client.
        conn: ConnKey,
        /// What names begin with.
        pattern: Pattern,
        /// Where it begins in those that there are.
        start: Start,
    },
    /// None of the sender's clients wants these any more.
    NoWildcard {
        /// What names begin with.
        pattern: Pattern,
    },
    /// There is a topic, whose home the sender is, that a pattern of yours matches.
    TopicIs {
        /// Its name.
        name: TopicName,
        /// Where to begin in it.
        start: Start,
        /// For this client of yours alone.
        conn: Option<ConnKey>,
    },
    /// Your client has been told all topics of the sender's that match.
    WildcardKnown {
        /// Your client.
        conn: ConnKey,
    },
    /// Who has come to a topic and gone from it where the sender is.
    Presence {
        /// What the home calls it.
        home: TopicKey,
        /// What the sender calls it.
        key: TopicKey,
        /// In order.
        news: Vec<(ConnId, Step)>,
        /// Somebody there is to be told of all who come and go.
        watches: bool,
    },
    /// Tell those who watch.
    PresenceChanged {
        /// What you call the topic.
        key: TopicKey,
        /// What to tell them, as frames.
        change: Arc<[u8]>,
    },
    /// They have been told.
    PresenceTold {
        /// What the home calls the topic.
        home: TopicKey,
    },
    /// Somebody asks who is in a topic whose home you are.
    WhoIsIn {
        /// Who.
        asker: ConnId,
        /// The question.
        question: Box<Question>,
    },
    /// What your client has asked.
    Present {
        /// Your client.
        key: ConnKey,
        /// What it asked.
        question: Box<Question>,
        /// Who is in the topic, as JSON.
        roster: Arc<[u8]>,
    },
    /// A message of a publisher by HTTP, to be numbered.
    Offer(Box<Offer>),
    /// What became of your publisher's message.
    Receipt {
        /// Which one.
        ticket: Ticket,
        /// What.
        receipt: Receipt,
    },
    /// The sender has a guest who wants what was before it came.
    Resume {
        /// What the home calls the topic.
        home: TopicKey,
        /// What the sender calls it.
        key: TopicKey,
        /// Who.
        guest: Guest,
        /// From where.
        start: Start,
    },
    /// What your guest asked for, or a piece of it.
    Replay {
        /// What you call the topic.
        key: TopicKey,
        /// Who.
        guest: Guest,
        /// The piece.
        replay: Box<Replay>,
    },
    /// Count your members that are sent this message.
    Count {
        /// What you call the topic.
        topic: TopicKey,
        /// The message.
        offset: u64,
        /// Where the count is.
        receipt: usize,
        /// When to stop.
        until: Time,
    },
    /// Everybody has counted.
    Counted {
        /// Where the count is.
        receipt: usize,
    },
    /// Add the topics whose home you are, and pass it on.
    List {
        /// Who wants the list.
        asker: ConnId,
        /// The list.
        listing: Box<Listing>,
    },
    /// The list that your client asked for.
    Listed {
        /// Your client.
        key: ConnKey,
        /// The list.
        listing: Box<Listing>,
        /// Where the next one goes on, if there is more.
        next: Option<ListCursor>,
    },
}

impl<D: Driver> Gateway<D> {
    pub(super) fn receive_messages(&mut self) {
        for _ in 0..MAILBOX_BUDGET {
            let Some((from, message)) = self.mailbox.receive_one() else { break };
            self.mail_received += 1;
            self.receive_message(from, message);
        }
    }

    fn receive_message(&mut self, from: ShardId, message: ShardMessage) {
        match message {
            ShardMessage::Adopt { socket, prefix } => self.adopt(socket, prefix),
            ShardMessage::Subscribe { name, key } => self.subscribe(from, name, key),
            ShardMessage::Subscribed { key, home, newest, sequenced, places } => {
                if let Some(topic) = self.topics.get_mut(key) {
                    topic.epoch = newest.epoch;
                    topic.raw.newest = sequenced.then_some(newest.offset);
                }
                self.subscribed(key, home, newest.offset, places);
            }
            ShardMessage::Refused { key, why } => self.topic_refused(key, why),
            ShardMessage::Lost { key, to } => self.lost(key, to),
            ShardMessage::Unsubscribe { home } => self.unsubscribe(from, home),
            ShardMessage::Publish { home, key, parcel } => self.published_elsewhere(from, home, key, parcel),
            ShardMessage::Published { key } => self.publish_taken(key),
            ShardMessage::OverRate { key, conn, over } => self.over_rate(key, conn, &over),
            ShardMessage::Deliver { key, after, upto, parcel } => self.deliver(key, after, upto, parcel),
            ShardMessage::Delivered { home, upto } => self.delivered(from, home, upto),
            ShardMessage::Members { home, members } => self.count_members(from, home, members),
            ShardMessage::Wildcard { conn, pattern, start } => self.hear_of_pattern(from, conn, pattern, start),
            ShardMessage::NoWildcard { pattern } => self.hear_no_more_of(from, &pattern),
            ShardMessage::TopicIs { name, start, conn } => self.topic_is(name, start, conn),
            ShardMessage::WildcardKnown { conn } => self.pattern_is_known(conn),
            ShardMessage::Presence { home, key, news, watches } => self.hear_news(from, home, key, news, watches),
            ShardMessage::PresenceChanged { key, change } => self.begin_telling(key, &change),
            ShardMessage::PresenceTold { home } => self.shard_has_told(from, home),
            ShardMessage::WhoIsIn { asker, question } => self.answer_who_is_in(asker, question),
            ShardMessage::Present { key, question, roster } => self.tell_who_is_in(key, &question, &roster),
            ShardMessage::Offer(offer) => self.take_offer(from, *offer),
            ShardMessage::Receipt { ticket, receipt } => self.receipt_came(ticket, receipt),
            ShardMessage::Resume { home, key, guest, start } => self.resume_elsewhere(from, home, key, guest, start),
            ShardMessage::Replay { key, guest, replay } => self.replayed(key, guest, *replay),
            ShardMessage::Count { topic, offset, receipt, until } => self.count_sent(from, receipt, topic, offset, until),
            ShardMessage::Counted { receipt } => self.sent_counted(receipt),
            ShardMessage::List { asker, listing } => self.add_to_listing(asker, listing),
            ShardMessage::Listed { key, listing, next } => self.finish_listing(key, &listing, next),
        }
    }

    fn subscribe(&mut self, from: ShardId, name: TopicName, key: TopicKey) {
        let Some(home) = self.topics.find(&name).or_else(|| self.make_home_topic(name)) else {
            self.mailbox.send(from, ShardMessage::Refused { key, why: self.no_topic() });
            return;
        };
        if !self.listen(home) {
            self.mailbox.send(from, ShardMessage::Refused { key, why: SUBSCRIPTIONS_FULL });
            return self.free_if_unused(home);
        }
        let topic = self.topics.get_mut(home).expect("found or made above");
        let Role::Home(side) = &mut topic.role else { unreachable!("subscriptions go to a topic's home, which all shards agree on") };
        side.home.subscribe(from, key, topic.raw.log.end());
        let newest = Position { epoch: topic.epoch, offset: topic.raw.offset() };
        let (sequenced, places) = (topic.is_sequenced(), topic.places.clone());
        self.mailbox.send(from, ShardMessage::Subscribed { key, home, newest, sequenced, places });
    }

    fn subscribed(&mut self, key: TopicKey, home: TopicKey, offset: u64, places: Option<Places>) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        topic.raw.base = offset;
        topic.places = places;
        let Role::Away(side) = &mut topic.role else { return };
        side.key = Some(home);
        // All of them are members or guests before the first one's input is handled: what it says may free a topic that has nobody.
        let joining = side.joining.take();
        topic.guests += 1;
        let mut seated = Vec::new();
        for guest in joining {
            let Some(session) = self.sessions.get(guest.conn) else { continue };
            let start = session.cold.as_ref().and_then(|cold| cold.start);
            if session.stream().is_some() {
                self.stream_subscribed(key, guest);
            } else if self.take_place(guest.conn, key) {
                match start {
                    Some(start) => self.begin_replay(key, guest, start),
                    None => {
                        self.take_seat(guest.conn, key);
                        seated.push(guest.conn);
                    }
                }
            }
        }
        for conn in seated {
            self.enter_waiting(conn);
        }
        if let Some(topic) = self.topics.get_mut(key) {
            topic.guests -= 1;
        }
        self.free_if_unused(key);
    }

    fn topic_refused(&mut self, key: TopicKey, why: &str) {
        let Some(topic) = self.topics.remove(key) else { return };
        if let Role::Away(mut side) = topic.role {
            for guest in side.joining.take() {
                if self.sessions.get(guest.conn).is_some_and(|session| session.stream().is_some()) {
                    self.refuse_stream(guest.conn, guest.number, CloseCause::OverCapacity, why);
                } else {
                    self.refuse_waiting(guest.conn, CloseCause::OverCapacity, why);
                }
            }
        }
    }

    fn unsubscribe(&mut self, from: ShardId, home: TopicKey) {
        let Some(topic) = self.topics.get_mut(home) else { return };
        if let Role::Home(side) = &mut topic.role {
            side.home.unsubscribe(from);
        }
        self.nobody_is_left_on(from, home);
        self.release(home);
        self.free_if_unused(home);
    }

    fn published_elsewhere(&mut self, from: ShardId, home: TopicKey, key: TopicKey, parcel: Parcel) {
        let has_room = self.nats_has_room(home);
        let Some(topic) = self.topics.get_mut(home) else { return };
        let takes = topic.takes_messages(&self.limits) && has_room;
        let Role::Home(side) = &mut topic.role else { return };
        if takes {
            self.number(from, home, key, parcel);
        } else {
            side.held.get_or_insert_default().push_back(HeldParcel { from, key, parcel });
            if !has_room {
                self.hold_for_nats(home);
            }
        }
    }

    fn number(&mut self, from: ShardId, home: TopicKey, key: TopicKey, mut parcel: Parcel) {
        self.take_said_in_parcel(from, home, key, &mut parcel);
        if parcel.frames > 0 {
            self.send_parcel_to_nats(home, &parcel);
            // Where a stream gives the places, it comes back with its own.
            if !self.topics.get(home).is_some_and(Topic::is_sequenced) {
                self.append_at_home(home, |log| log.append_parcel(parcel));
            }
        }
        self.mailbox.send(from, ShardMessage::Published { key });
    }

    /// Takes what was held back and wakes paused publishers, if enough was worked off.
    pub(super) fn release(&mut self, home: TopicKey) {
        loop {
            let has_room = self.nats_has_room(home);
            let Some(topic) = self.topics.get_mut(home) else { return };
            let open = topic.lag() < self.limits.topic_lag_bytes_max;
            let Role::Home(side) = &mut topic.role else { return };
            if !open {
                return;
            }
            if !has_room && side.held.is_some() {
                return self.hold_for_nats(home);
            }
            let Some(held) = side.take_held() else { break };
            self.number(held.from, home, held.key, held.parcel);
        }
        self.wake_publishers(home);
    }

    fn publish_taken(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let Role::Away(side) = &mut topic.role else { return };
        let Some(uplink) = &mut side.uplink else { return };
        uplink.under_way = false;
        uplink.taken = uplink.sent;
        if uplink.waiting.is_some() && !std::mem::replace(&mut topic.dispatching, true) {
            self.dispatches.push_back(key);
        }
        self.wake_publishers(key);
        self.free_if_unused(key);
    }

    fn deliver(&mut self, key: TopicKey, after: Option<u64>, upto: u64, parcel: Parcel) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let offset = topic.raw.offset();
        assert!(
            after.is_none_or(|after| after == offset),
            "messages between shards follow on each other: after {after:?}, where {offset} was the last"
        );
        let laps = topic.append(self.now, &mut self.maker, |log| log.append_parcel(parcel));
        topic.acknowledge_later(upto);
        self.busy = true;
        if !std::mem::replace(&mut topic.warm, true) {
            self.warm.push(key);
        }
        for format in laps.into_iter().flatten() {
            self.queue_lap(FeedKey { topic: key, format });
        }
        self.seat_latecomers(key);
        self.everyone_was_served(key);
    }

    /// Tells the home that everyone here was served, if that is so.
    pub(super) fn acknowledge(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let Role::Away(side) = &topic.role else { return };
        let (Some(due), Some(home), shard) = (side.to_acknowledge, side.key, side.shard) else { return };
        if topic.has_served(&due) {
            let Role::Away(side) = &mut topic.role else { return };
            side.to_acknowledge = None;
            self.mailbox.send(shard, ShardMessage::Delivered { home, upto: due.upto });
        }
    }

    fn delivered(&mut self, from: ShardId, home: TopicKey, upto: u64) {
        let Some(topic) = self.topics.get_mut(home) else { return };
        let Role::Home(side) = &mut topic.role else { return };
        if side.home.acknowledge(from, upto) && !std::mem::replace(&mut topic.dispatching, true) {
            self.dispatches.push_back(home);
        }
        self.release(home);
    }

    fn count_members(&mut self, from: ShardId, home: TopicKey, members: u64) {
        if let Some(Role::Home(side)) = self.topics.get_mut(home).map(|topic| &mut topic.role) {
            side.home.count(from, members);
        }
    }

    /// Notes that somebody has joined or left a topic.
    pub(super) fn recount(&mut self, key: TopicKey) {
        if let Some(topic) = self.topics.get_mut(key)
            && matches!(topic.role, Role::Away(_))
            && !std::mem::replace(&mut topic.recounted, true)
        {
            self.recounts.push(key);
        }
    }

    /// Tells homes how many members this shard has.
    pub(super) fn tell_members(&mut self) {
        for key in std::mem::take(&mut self.recounts) {
            let Some(topic) = self.topics.get_mut(key) else { continue };
            topic.recounted = false;
            let members = topic.members();
            if let Role::Away(side) = &topic.role
                && let Some(home) = side.key
            {
                self.mailbox.send(side.shard, ShardMessage::Members { home, members });
            }
        }
    }

    /// Sends what waits for other shards, one batch for each topic and shard.
    pub(super) fn dispatch(&mut self) {
        for _ in 0..DISPATCH_BUDGET {
            let Some(key) = self.dispatches.pop_front() else { break };
            let Some(topic) = self.topics.get_mut(key) else { continue };
            topic.dispatching = false;
            match &mut topic.role {
                Role::Home(side) => {
                    for target in side.home.due() {
                        let from = target.waiting.take().expect("due targets have something waiting");
                        let Some((parcel, next)) = from.parcel(BATCH_BYTES_MAX) else { continue };
                        let after = topic.raw.newest.is_none().then(|| topic.raw.base + from.frame());
                        let message = ShardMessage::Deliver { key: target.key, after, upto: next.offset(), parcel };
                        target.sent((next.offset() < topic.raw.log.end()).then_some(next));
                        self.mailbox.send(target.shard, message);
                    }
                }
                Role::Away(side) => {
                    let (Some(home), Some(uplink)) = (side.key, &mut side.uplink) else { continue };
                    if uplink.under_way {
                        continue;
                    }
                    let Some((mut parcel, next)) = uplink.waiting.take().and_then(|from| from.parcel(BATCH_BYTES_MAX)) else { continue };
                    uplink.under_way = true;
                    uplink.sent = next.offset();
                    uplink.waiting = (next.offset() < uplink.log.end()).then_some(next);
                    if !uplink.ended.is_empty() {
                        parcel.retain(|frame, _| !uplink.ended.contains(&frame.sender.key));
                        if uplink.waiting.is_none() {
                            uplink.ended.clear();
                        }
                    }
                    self.mailbox.send(side.shard, ShardMessage::Publish { home, key, parcel });
                }
            }
        }
    }
}
