//! Topics whose messages a stream gives their places (docs/decisions/0025): at their home shard, what is said goes to the stream and has no place before it comes back from
//! there with its sequence, at every node alike.
//!
//! ```text
//!   publisher ─▶ home shard ──▶ outbox ──▶ stream ──▶ every node's reader ──▶ home shard: its place ──▶ members
//!                    ◀── Answer{token, position} ──┘                       (offset = sequence, epoch = the stream's life)
//! ```
//!
//! A home keeps the newest messages as every other does; what is before them is fetched from the stream (`past`). Where the stream has lost what lies between, or is another one (`Notice::Lost`), members are told: event streams by a gap,
//! WebSockets by 4510; polls hear it with their next request.

use std::collections::HashMap;

use bytes::Bytes;

use super::Gateway;
use super::bridge::NO_STREAM;
use super::close_cause::CloseCause;
use super::past::Past;
use super::peers::ShardMessage;
use super::publishing::{Ack, Offer, Receipt, Ticket};
use super::rooms::TOPICS_FULL;
use super::seats::Seat;
use super::session::State;
use super::streams::Kind;
use super::topic::Role;
use crate::bus::link::{Answer, Outgoing, Tracked};
use crate::engine::driver::Driver;
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::proto::gap::GapReason;
use crate::proto::position::{Position, Start};
use crate::proto::topic::TopicName;

/// What a publisher is told whose message was not acknowledged.
const UNANSWERED: &str = "the stream has not acknowledged the message in time (limits.nats_ack_ms, or 1 s without a connection): it may have it or not; sent again with the same Idempotency-Key it is not doubled";
/// When to try again.
const RETRY_MS: u64 = 1000;

/// A publisher that waits for the stream's answer.
struct Awaiting {
    from: ShardId,
    ticket: Ticket,
    topic: TopicName,
    ack: Ack,
}

/// A shard's part of all this.
#[derive(Default)]
pub(super) struct Sequencing {
    /// How far the stream was read when everything was taken that had been told of it.
    pub(super) reached: Option<Position>,
    /// What was before that.
    pub(super) past: Past,
    next_token: u64,
    awaiting: HashMap<u64, Awaiting>,
}

impl Sequencing {
    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Publishers and guests that wait for the stream.
    pub(super) fn holdings(&self) -> usize {
        self.awaiting.len() + self.past.holdings()
    }
}

impl<D: Driver> Gateway<D> {
    pub(super) fn sequencing(&mut self) -> Option<&mut Sequencing> {
        self.bridge.as_mut().and_then(|bridge| bridge.sequencing.as_mut())
    }

    /// Whether a stream gives the messages of a topic their places.
    pub(super) fn is_sequenced(&self, name: &TopicName) -> bool {
        let Some(bridge) = self.bridge.as_ref().filter(|bridge| bridge.sequencing.is_some()) else { return false };
        bridge.rules.find(name).is_some_and(|bridged| bridged.comes_in)
    }

    /// How far the stream was read, for a topic that begins here.
    pub(super) fn read_up_to(&self) -> Option<Position> {
        let bridge = self.bridge.as_ref()?;
        let (reached, read) = (bridge.sequencing.as_ref()?.reached, bridge.port.status().read.value());
        // What was told before that was read has all been taken, where nothing is left: who has slept does not begin where it fell asleep. A shard that has
        // not looked yet has no such topic, and so was told nothing.
        if bridge.has_taken_all() { read.or(reached) } else { reached.or(read) }
    }

    /// Where another process goes on for a member of a topic, when that is not simply with what comes next.
    pub(super) fn place_to_inherit(&self, topic: Option<TopicKey>) -> Option<Position> {
        let topic = topic.and_then(|topic| self.topics.get(topic)).filter(|topic| topic.is_sequenced())?;
        Some(Position { epoch: topic.epoch, offset: topic.raw.offset() })
    }

    /// Why a topic could not be made.
    pub(super) fn no_topic(&self) -> &'static str {
        let is_unread = self.bridge.as_ref().is_some_and(|bridge| bridge.sequencing.is_some()) && self.read_up_to().is_none();
        if is_unread { NO_STREAM } else { TOPICS_FULL }
    }

    /// NATS is not asked for a topic any more: what it has here would have a hole when it is asked again.
    pub(super) fn forget_sequenced(&mut self, key: TopicKey) {
        if self.topics.get(key).is_some_and(|topic| topic.is_sequenced()) {
            self.drop_history(key);
            self.free_if_unused(key);
        }
    }

    fn drop_history(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let Role::Home(side) = &mut topic.role else { return };
        let grown = side.history.drop_all(&topic.raw.log);
        self.grow_history(grown);
    }

    /// Hands a publisher's message to the stream; the answer comes later.
    pub(super) fn send_offer_to_stream(&mut self, from: ShardId, home: TopicKey, offer: Offer) {
        let Offer { topic, payload, kind, attributes, id, ack, ticket } = offer;
        let Some(bridge) = &mut self.bridge else { return };
        let Some(subject) = bridge.subject_out(home, &topic) else { return };
        let Some(sequencing) = &mut bridge.sequencing else { return };
        let token = sequencing.token();
        sequencing.awaiting.insert(token, Awaiting { from, ticket, topic, ack });
        let no_echo = attributes.as_ref().is_some_and(|attributes| attributes.no_echo);
        let tracked = Tracked { sender: ConnId { shard: from, key: ticket.conn }, token: Some(token), id, no_echo };
        let (event, key) = attributes.map_or((None, None), |attributes| (attributes.event.clone(), attributes.key.clone()));
        bridge.port.publish(Outgoing { subject, payload: Bytes::from(payload), kind, event, key, tracked: Some(Box::new(tracked)) });
    }

    /// The stream has answered, or has not.
    pub(super) fn take_answer(&mut self, token: u64, answer: Answer) {
        let Some(Awaiting { from, ticket, topic, ack }) = self.sequencing().and_then(|sequencing| sequencing.awaiting.remove(&token))
        else {
            return;
        };
        let home = self.topics.find(&topic);
        let receipt = match answer {
            Answer::Stored { position, duplicate } => {
                if let Some(home) = home.filter(|_| ack == Ack::Sent && !duplicate)
                    && let Some(receipt) = self.begin_receipt()
                {
                    return self.await_sent(receipt, home, from, ticket, position);
                }
                Receipt::Published { position, subscribers: home.map_or(0, |home| self.subscribers(home)), duplicate }
            }
            Answer::Refused { why } => Receipt::refused(502, "nats_refused", format!("the stream does not take the message: {why}"), None),
            Answer::Unanswered => Receipt::refused(503, "nats_unanswered", UNANSWERED, Some(RETRY_MS)),
        };
        self.give_receipt(from, ticket, receipt);
    }

    /// A message that a WebSocket here has said was not kept: it is told so by its end.
    pub(super) fn untaken(&mut self, conn: ConnKey) {
        self.counters.nats_refused.add(1);
        if self.sessions.get(conn).is_some_and(|session| session.state == State::Room) {
            let text = "a message was not kept: the stream has not acknowledged it";
            self.end_with(conn, CloseCause::NatsUnavailable, None, text);
        }
    }

    /// Messages of a topic may be missing: everybody on this shard is told, and a home tells the others.
    pub(super) fn lost(&mut self, key: TopicKey, to: Position) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let before = Position { epoch: topic.epoch, offset: topic.raw.offset() };
        let away: Vec<(ShardId, TopicKey)> = topic.away().collect();
        let mut again = Vec::new();
        match &mut topic.role {
            Role::Home(side) => side.home.forget_waiting(),
            Role::Away(side) => again = side.latecomers.take(),
        }
        topic.begin_anew(to);
        let mut members = Vec::new();
        for feed in topic.feeds() {
            members.extend(feed.members.iter().map(|member| (member, feed.log.end())));
        }
        self.drop_history(key);
        for (shard, key) in away {
            self.mailbox.send(shard, ShardMessage::Lost { key, to });
        }
        for (guest, after) in again {
            self.go_on_replaying(key, guest, Start::After(Position { epoch: before.epoch, offset: after }));
        }
        for (member, end) in members {
            match Seat::of_member(member) {
                Some(slot) => self.tell_stream_of_loss(slot, end, before, to),
                None => {
                    let Some((conn, _)) = self.sessions.at(member) else { continue };
                    self.counters.gaps.of(GapReason::Restart.into()).add(1);
                    self.end_with(conn, CloseCause::ContinuityLost, None, "messages of the stream are missing");
                }
            }
        }
    }

    fn tell_stream_of_loss(&mut self, slot: u32, end: u64, before: Position, to: Position) {
        // Whoever was told before it may have ended it.
        let Some(seat) = self.seats.get(slot) else { return };
        let (conn, number, is_behind) = (seat.conn, seat.number, seat.cursor < end);
        let reason = if before.epoch == to.epoch { GapReason::TooOld } else { GapReason::Restart };
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let state = session.state;
        let Some(stream) = session.stream_mut() else { return };
        match (stream.kind, state) {
            (Kind::Events, State::Stream) | (Kind::Json, State::Json) if !is_behind => {
                stream.parts[usize::from(number)].epoch = to.epoch;
                self.tell_gap(conn, number, to.offset, (reason, Some(before)));
                self.pump(conn);
            }
            (Kind::Events, State::Stream) | (Kind::Json, State::Json) => {
                self.end_with(conn, CloseCause::ContinuityLost, None, "messages of the stream are missing")
            }
            (Kind::Poll, State::Polling) => self.poll_timed_out(conn),
            (_, State::Joining) => self.refuse_stream(conn, number, CloseCause::NatsUnavailable, NO_STREAM),
            _ => {}
        }
    }
}
