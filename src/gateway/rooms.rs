//! Joining and leaving topics, and publishing to them.

use std::collections::HashSet;

use super::bridge::SUBSCRIPTIONS_FULL;
use super::close_cause::CloseCause;
use super::counters::HandshakeResult;
use super::feed::{FeedKey, Format};
use super::history::Gone;
use super::peers::ShardMessage;
use super::places::{Places, full};
use super::seats::Guest;
use super::seldom::Seldom;
use super::session::{Habits, State};
use super::topic::{AwaySide, HomeSide, Role, Topic, Uplink};
use super::{Gateway, Shared};
use crate::engine::driver::Driver;
use crate::engine::log::Log;
use crate::ids::{ConnKey, TopicKey};
use crate::limits::Limits;
use crate::proto::position::Start;
use crate::proto::topic::TopicName;
use crate::proto::ws::frame::server_header;
use crate::proto::ws::{MessageKind, OpCode};

/// The reason that goes with 4503 when it is topics that there are too many of.
pub(super) const TOPICS_FULL: &str = "no room for another topic (limits.topics_max); an open one can be joined";

impl<D: Driver> Gateway<D> {
    /// Makes a connection a member of a room: at once when this shard has the topic already, else when its home has answered. The upgrade is
    /// answered only then, so that a client that is connected is subscribed.
    pub(super) fn join(&mut self, key: ConnKey, name: TopicName, habits: Habits, start: Option<Start>, upgrade: Vec<u8>) {
        let Some(topic_key) = self.topics.find(&name).or_else(|| self.make_topic(name)) else {
            return self.refuse_join(key, &upgrade, CloseCause::OverCapacity, self.no_topic());
        };
        if !self.listen(topic_key) {
            self.refuse_join(key, &upgrade, CloseCause::OverCapacity, SUBSCRIPTIONS_FULL);
            return self.free_if_unused(topic_key);
        }
        let guest = Guest { conn: key, number: 0, turn: 0 };
        let topic = self.topics.get_mut(topic_key).expect("found or made above");
        let answered = match &mut topic.role {
            Role::Away(side) if side.key.is_none() => {
                side.joining.push(guest);
                false
            }
            _ => true,
        };
        if answered && !topic.take_place() {
            return self.refuse_join(key, &upgrade, CloseCause::TopicFull, &full(&self.limits));
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.habits = habits;
        session.topic = Some(topic_key);
        session.state = State::Joining;
        if let (true, None) = (answered, start) {
            self.take_seat(key, topic_key);
            return self.enter(key, &upgrade);
        }
        let cold = session.cold.get_or_insert_default();
        cold.upgrade = upgrade;
        cold.start = start;
        if let (true, Some(start)) = (answered, start) {
            self.begin_replay(topic_key, guest, start);
        }
    }

    /// Gives one that waited for its room's home a place there. Whether it still waited and there is one; if there is none it is told so.
    pub(super) fn take_place(&mut self, key: ConnKey, topic_key: TopicKey) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        if session.state != State::Joining || session.topic != Some(topic_key) {
            return false;
        }
        let has_room = self.topics.get(topic_key).is_some_and(|topic| topic.take_place());
        if !has_room {
            session.topic = None;
            self.refuse_waiting(key, CloseCause::TopicFull, &full(&self.limits));
        }
        has_room
    }

    /// Makes a connection that joins and has a place a member, at the end of what was published so far.
    pub(super) fn take_seat(&mut self, key: ConnKey, topic_key: TopicKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Room;
        self.sit_down(key, topic_key);
    }

    /// Puts a connection among those that get a room's messages in its form: now it is there for everybody.
    pub(super) fn sit_down(&mut self, key: ConnKey, topic_key: TopicKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let format = session.format();
        let name = self.topics.name(topic_key).filter(|_| format != Format::Raw).cloned();
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        let feed = match &name {
            Some(name) => topic.made(format, name, || new_log(&self.limits, &self.shared)),
            None => &mut topic.raw,
        };
        session.place = feed.members.join(key.slot);
        session.cursor = feed.log.end();
        session.seated = true;
        self.recount(topic_key);
        self.has_come(topic_key, key);
    }

    /// Lets in one that waited for the home's answer and has its seat.
    pub(super) fn enter_waiting(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let upgrade = session.take_upgrade();
        self.enter(key, &upgrade);
    }

    /// Answers the upgrade of one that has its seat. One that was inherited has its answer.
    fn enter(&mut self, key: ConnKey, upgrade: &[u8]) {
        if !upgrade.is_empty() {
            self.counters.handshakes.of(HandshakeResult::Upgraded).add(1);
            self.upgraded(key, upgrade);
        }
        self.opened(key, State::Room);
    }

    /// A WebSocket is open; what came behind its request is handled, and reading goes on.
    pub(super) fn opened(&mut self, key: ConnKey, state: State) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = state;
        self.first_ping(key);
        self.pump(key);
        self.read_on(key);
        if let Some(session) = self.sessions.get_mut(key) {
            session.drop_idle_cold();
        }
    }

    /// Handles what came while a connection waited for a home, and whether its peer has gone.
    pub(super) fn read_on(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.paused {
            self.resume_reading(key);
        } else if session.holds() {
            self.feed_held(key);
        }
        self.end_if_gone(key);
    }

    /// An upgrade that cannot be had after all: accepted and closed at once, so that a browser's page, too, learns why and when to come back.
    pub(super) fn refuse_join(&mut self, key: ConnKey, upgrade: &[u8], cause: CloseCause, reason: &str) {
        if !upgrade.is_empty() {
            self.counters.handshakes.of(HandshakeResult::Refused).add(1);
            self.upgraded(key, upgrade);
        }
        self.end_with(key, cause, None, reason);
    }

    /// The same for one that waited for its room's home.
    pub(super) fn refuse_waiting(&mut self, key: ConnKey, cause: CloseCause, reason: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.state == State::Joining && session.stream().is_some() {
            return self.refuse_stream(key, 0, cause, reason);
        }
        if session.state == State::Joining {
            let upgrade = session.take_upgrade();
            self.refuse_join(key, &upgrade, cause, reason);
        }
    }

    /// Adds a topic to this shard's table and, when its home is elsewhere, subscribes there. None when the process has as many as it may.
    pub(super) fn make_topic(&mut self, name: TopicName) -> Option<TopicKey> {
        let home = self.placement.home(name.as_str());
        if home == self.shard {
            return self.make_home_topic(name);
        }
        let side = AwaySide {
            shard: home,
            key: None,
            uplink: None,
            to_acknowledge: None,
            latecomers: Seldom::default(),
            joining: Seldom::default(),
        };
        let log = new_log(&self.limits, &self.shared);
        let (slow, presence) = (self.slow_rules.policy(&name), self.presence.for_topic(&name));
        let topic = Topic { slow, presence, ..Topic::new(Role::Away(Box::new(side)), log, self.epoch, 0) };
        let key = self.topics.insert(name.clone(), topic);
        self.mailbox.send(home, ShardMessage::Subscribe { name, key });
        Some(key)
    }

    pub(super) fn make_home_topic(&mut self, name: TopicName) -> Option<TopicKey> {
        let sequenced = self.is_sequenced(&name);
        let began = if sequenced { Some(self.read_up_to()?) } else { None };
        if !self.shared.add_topic() {
            return None;
        }
        let log = new_log(&self.limits, &self.shared);
        let gone = self.past.recall(self.placement.hash(name.as_str()));
        let side = HomeSide { said: gone.said, ..HomeSide::default() };
        let mut topic = Topic {
            places: Places::new(&self.limits),
            slow: self.slow_rules.policy(&name),
            presence: self.presence.for_topic(&name),
            ..Topic::new(Role::Home(Box::new(side)), log, self.epoch, gone.offset)
        };
        if let Some(began) = began {
            topic.begin_anew(began);
        }
        let key = self.topics.insert(name, topic);
        self.counters.topics.add(1);
        self.tell_of_topic(key);
        Some(key)
    }

    /// Takes a connection out of its room.
    pub(super) fn leave(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.stream().is_some() {
            return self.leave_stream(key);
        }
        let Some(topic_key) = session.topic.take() else { return };
        session.behind = None;
        let (place, format, was_member) = (session.place, session.format(), std::mem::take(&mut session.seated));
        let waited = std::mem::take(&mut session.waiting);
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        if waited {
            topic.waiters.retain(|&waiter| waiter != key);
        }
        if !was_member {
            topic.guest_leaves();
        } else {
            topic.give_place_back();
            let feed = topic.feed_mut(format).expect("a feed lives as long as its members");
            feed.forget_slow(key.slot);
            if let Some(moved) = feed.members.leave(place) {
                self.set_place(moved, place);
            }
            self.has_gone(topic_key, key);
        }
        self.recount(topic_key);
        self.free_if_unused(topic_key);
    }

    /// Frees a topic that nobody needs any more.
    pub(super) fn free_if_unused(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get(key) else { return };
        if !topic.is_unused() {
            return;
        }
        let name = self.topics.name(key).cloned();
        let topic = self.topics.remove(key).expect("found above");
        match topic.role {
            Role::Home(side) => {
                self.forget_bridged(key);
                debug_assert!(topic.places.as_ref().is_none_or(|places| places.taken() == 0), "nobody is in a topic that goes");
                let gone = Gone { offset: topic.raw.offset(), said: side.said };
                if let Some(name) = name.filter(|_| gone.offset > 0 && topic.raw.newest.is_none()) {
                    self.past.remember(self.placement.hash(name.as_str()), gone);
                }
                self.counters.topics.sub(1);
                self.shared.drop_topic();
            }
            Role::Away(side) => {
                if let Some(home) = side.key {
                    self.mailbox.send(side.shard, ShardMessage::Unsubscribe { home });
                }
            }
        }
    }

    /// Takes one message of a client for its room. The topic takes messages: the caller has asked.
    pub(super) fn publish(&mut self, key: ConnKey, opcode: OpCode, payload: &[u8]) {
        let sender = self.id(key);
        let Some(topic_key) = self.sessions.get(key).and_then(|session| session.topic) else { return };
        let topic = self.topics.get_mut(topic_key).expect("a topic lives as long as its members");
        let (header, len) = server_header(opcode, payload.len());
        let header = &header[..len];
        if let Role::Away(side) = &mut topic.role {
            let uplink = side.uplink.get_or_insert_with(|| {
                let log = new_log(&self.limits, &self.shared);
                Box::new(Uplink { log, waiting: None, taken: 0, sent: 0, under_way: false, ended: HashSet::new() })
            });
            if uplink.waiting.is_none() {
                uplink.waiting = Some(uplink.log.pin());
            }
            uplink.log.append(sender, header, payload);
            self.appended(topic_key);
        } else {
            let kind = if opcode == OpCode::Text { MessageKind::Text } else { MessageKind::Binary };
            if !topic.is_sequenced() {
                self.append_at_home(topic_key, |log| log.append(sender, header, payload));
            }
            self.send_to_nats(topic_key, kind, payload, None, sender);
        }
    }

    /// Appends to a topic at its home: this is where messages get their order.
    pub(super) fn append_at_home(&mut self, topic_key: TopicKey, append: impl FnOnce(&mut Log)) {
        let topic = self.topics.get_mut(topic_key).expect("the caller has the topic");
        if let Role::Home(side) = &mut topic.role {
            side.home.appending(|| topic.raw.log.pin());
            side.history.appending(&mut topic.raw.log, &self.limits, self.now);
        }
        let laps = topic.append(self.now, &mut self.maker, append);
        let mut grown = 0;
        if let Role::Home(side) = &mut topic.role {
            grown = side.history.trim(&topic.raw.log, &self.limits);
            if !side.history.is_empty() && !std::mem::replace(&mut side.history.listed, true) {
                self.histories.push_back(topic_key);
            }
        }
        for format in laps.into_iter().flatten() {
            self.queue_lap(FeedKey { topic: topic_key, format });
        }
        self.appended(topic_key);
        self.grow_history(grown);
        self.relieve_histories();
    }

    /// Notes that a topic's log or uplink has grown.
    pub(super) fn appended(&mut self, topic_key: TopicKey) {
        let topic = self.topics.get_mut(topic_key).expect("the caller has the topic");
        topic.last_append = self.now;
        self.busy = true;
        if !std::mem::replace(&mut topic.warm, true) {
            self.warm.push(topic_key);
        }
        let elsewhere = match &topic.role {
            Role::Home(side) => !side.home.is_empty(),
            Role::Away(_) => true,
        };
        if elsewhere && !std::mem::replace(&mut topic.dispatching, true) {
            self.dispatches.push_back(topic_key);
        }
    }

    /// Pauses a publisher until its topic takes messages again.
    pub(super) fn wait_for_topic(&mut self, key: ConnKey, topic_key: TopicKey) {
        self.pause_reading(key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.waiting {
            session.waiting = true;
            self.counters.publishers_paused.add(1);
            self.topics.get_mut(topic_key).expect("a topic lives as long as its members").waiters.push(key);
        }
    }

    /// Pauses a publisher until queued messages take less memory.
    pub(super) fn wait_for_memory(&mut self, key: ConnKey) {
        self.pause_reading(key);
        self.counters.publishers_paused.add(1);
        self.memory_waiters.push(key);
    }

    /// Lets the publishers of a topic go on, if enough was worked off.
    pub(super) fn wake_publishers(&mut self, topic_key: TopicKey) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        if !topic.waiters.is_empty() && topic.has_recovered(&self.limits) {
            self.woken.extend(topic.waiters.take());
        }
    }

    pub(super) fn resume_publishers(&mut self) {
        if !self.memory_waiters.is_empty() && !self.shared.is_over_memory() {
            self.woken.append(&mut self.memory_waiters);
        }
        let mut woken = std::mem::take(&mut self.woken);
        for key in woken.drain(..) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.waiting = false;
                self.resume_reading(key);
            }
        }
        if self.woken.is_empty() {
            self.woken = woken;
        }
    }
}

pub(super) fn new_log(limits: &Limits, shared: &Shared) -> Log {
    Log::new(limits.segment_bytes_min as u32, limits.segment_bytes_max as u32, &shared.memory)
}
