//! What an operator has done to clients: some of them ended, with a code and a reason of the operator's, or all of them told something.
//!
//! Many are ended at the pace of goodbyes (see [`drain`](super::drain)): what is queued for each comes first. One alone is ended at once, because it
//! may be one that does not read. An announcement goes ahead of what is queued, between whole messages, and is no message of any topic.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::Gateway;
use super::close_cause::CloseCause;
use super::drain::Farewells;
use super::inspect::{Finding, Since, Whom};
use super::polls::for_origin;
use super::session::{Session, State};
use super::streams::Kind;
use crate::engine::driver::Driver;
use crate::engine::segment::{Range, SegmentWriter};
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::proto::http::Response;
use crate::proto::json::reply::Reply;
use crate::proto::sse::{encode_announcement, raw_announcement};
use crate::proto::ws::frame::server_header;
use crate::proto::ws::{CloseCode, OpCode};

/// What is said to those who are ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Word {
    /// In the close frame or the `bye`.
    pub code: CloseCode,
    /// For people to read.
    pub reason: String,
}

/// An order to end many, under way.
pub(super) struct Dismissal {
    farewells: Farewells,
    /// The topic whose members are meant; everybody where there is none.
    topic: Option<TopicKey>,
    /// Who came after this has done what was asked of it.
    since: Since,
    word: Rc<Word>,
}

/// An announcement under way.
pub(super) struct Announcing {
    text: Arc<str>,
    frame: Range,
    event: Range,
    json: Range,
    next_slot: u32,
    told: u64,
    reply: Sender<(ShardId, Finding)>,
}

/// Orders to end many that a shard carries out at once.
const DISMISSALS_MAX: usize = 16;

/// Whether somebody in this state is among those who are connected for messages.
fn is_connected(state: State) -> bool {
    matches!(state, State::Room | State::Echo | State::Json | State::Stream | State::Polling | State::Joining)
}

fn has_topic(session: &Session, topic: TopicKey) -> bool {
    session.topic == Some(topic) || session.stream().is_some_and(|stream| stream.parts.iter().any(|part| part.topic == Some(topic)))
}

impl<D: Driver> Gateway<D> {
    /// Ends connections for the operator; at once, or beginning now.
    pub(super) fn disconnect(&mut self, whom: &Whom, word: &Word) -> Finding {
        let word = Rc::new(word.clone());
        let (topic, total) = match whom {
            Whom::One(key) => {
                if self.sessions.get(*key).is_none_or(|session| session.state.is_over()) {
                    return Finding::Nobody;
                }
                self.dismiss_now(*key, &word);
                return Finding::Told(1);
            }
            Whom::Topic(name) => {
                let Some(key) = self.topics.find(name) else { return Finding::Told(0) };
                let Some(topic) = self.topics.get(key) else { return Finding::Told(0) };
                (Some(key), topic.members())
            }
            Whom::All => (None, self.sessions.len() as u64),
        };
        if self.drain.is_some() {
            return Finding::Refused("a drain is under way: every client is told to come back elsewhere");
        }
        if self.desk.dismissals.len() >= DISMISSALS_MAX {
            return Finding::Refused("as many disconnects as may be are under way; try again when one is over");
        }
        // Every shard has about as many: together they keep the pace of the process.
        let shards = self.placement.shards();
        let window_ms = self.limits.drain_window_ms(total.saturating_mul(u64::from(shards)), shards);
        let farewells = self.farewells(CloseCause::Disconnected, Duration::from_millis(window_ms), total);
        self.desk.dismissals.push(Dismissal { farewells, topic, since: Since::new(self.now), word });
        Finding::Told(total)
    }

    /// Says the goodbyes that are due.
    pub(super) fn step_dismissals(&mut self) {
        if self.drain.is_some() {
            // It tells everybody.
            self.desk.dismissals.clear();
        }
        // Few may be meant of many: who they are is found out in slices.
        let mut looks = self.limits.inspect_slots_per_turn as u32;
        let mut dismissals = std::mem::take(&mut self.desk.dismissals);
        for Dismissal { farewells, topic, since, word } in &mut dismissals {
            let is_meant = |gateway: &Self, key: ConnKey, session: &Session| {
                is_connected(session.state)
                    && topic.is_none_or(|topic| has_topic(session, topic))
                    && gateway.since(key).is_none_or(|came| came <= *since)
            };
            self.say_goodbyes_to(farewells, &mut looks, is_meant, |gateway, key| gateway.dismiss_in_turn(key, word));
        }
        dismissals.retain(|dismissal| !dismissal.farewells.is_over());
        self.desk.dismissals = dismissals;
    }

    /// How soon goodbyes of the operator must be looked at.
    pub(super) fn dismissal_wait(&self) -> Option<Duration> {
        self.desk.dismissals.iter().map(|dismissal| self.until(&dismissal.farewells)).min()
    }

    /// Ends one that is connected, when what is queued for it was sent.
    fn dismiss_in_turn(&mut self, key: ConnKey, word: &Rc<Word>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.state {
            State::Room | State::Echo | State::Json | State::Stream => {
                session.cold.get_or_insert_default().word = Some(Rc::clone(word));
                self.say_goodbye(key, CloseCause::Disconnected);
            }
            _ => self.dismiss_now(key, word),
        }
    }

    /// Ends one at once.
    fn dismiss_now(&mut self, key: ConnKey, word: &Rc<Word>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let polls = session.stream().is_some_and(|stream| stream.kind == Kind::Poll);
        match session.state {
            State::Polling | State::Joining if polls => self.dismiss_poll(key, word),
            State::Joining => {
                session.cold.get_or_insert_default().word = Some(Rc::clone(word));
                self.refuse_waiting(key, CloseCause::Disconnected, "");
            }
            _ => self.end_with(key, CloseCause::Disconnected, Some(word.code), &word.reason),
        }
    }

    /// A poll is answered with an error, and its connection closed.
    fn dismiss_poll(&mut self, key: ConnKey, word: &Word) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let poll = std::mem::take(&mut stream.poll);
        self.leave_stream(key);
        let message = format!("ended by the operator with {}: {}", word.code.0, word.reason);
        let response = if word.code.wants_retry() {
            let retry_seconds = self.retry_ms().div_ceil(1000).max(1);
            Response::error(503, &message).header("Retry-After", retry_seconds.to_string())
        } else {
            Response::error(403, &message)
        };
        self.respond(key, for_origin(response, poll.origin.as_deref()).close());
        self.end_with(key, CloseCause::Disconnected, Some(word.code), &word.reason);
    }

    /// Begins to tell everybody something; the answer says how many were told.
    pub(super) fn begin_announcing(&mut self, text: Arc<str>, reply: Sender<(ShardId, Finding)>) {
        if self.desk.announcing.is_some() {
            return self.tell(&reply, Finding::Refused("another announcement is under way; try again when it is out"));
        }
        let frame = |payload: &[u8]| {
            let (header, len) = server_header(OpCode::Text, payload.len());
            SegmentWriter::new(len + payload.len(), &self.shared.memory).append(&header[..len], payload)
        };
        let mut json = Vec::new();
        Reply::Announcement { text: &text }.write(&mut json);
        let (frame, json) = (frame(&raw_announcement(&text)), frame(&json));
        let mut event = Vec::new();
        encode_announcement(&mut event, &text);
        let event = SegmentWriter::new(event.len(), &self.shared.memory).append(&event, &[]);
        self.desk.announcing = Some(Announcing { text, frame, event, json, next_slot: 0, told: 0, reply });
    }

    /// Tells the next of them.
    pub(super) fn go_on_announcing(&mut self) {
        let Some(mut announcing) = self.desk.announcing.take() else { return };
        let (mut looks, mut sends) = (self.limits.inspect_slots_per_turn, self.limits.fanout_sends_per_turn);
        while looks > 0 && sends > 0 {
            if announcing.next_slot >= self.driver.slots() {
                return self.tell(&announcing.reply, Finding::Told(announcing.told));
            }
            looks -= 1;
            let found = self.sessions.at(announcing.next_slot).map(|(key, session)| (key, session.state));
            announcing.next_slot += 1;
            let Some((key, state)) = found else { continue };
            let bytes = match state {
                State::Room => &announcing.frame,
                State::Json => &announcing.json,
                State::Stream => &announcing.event,
                State::Polling => {
                    self.announce_to_poll(key, &announcing.text);
                    self.counters.announced.add(1);
                    announcing.told += 1;
                    sends -= 1;
                    continue;
                }
                _ => continue,
            };
            sends -= 1;
            if (self.direct_bytes(key) + bytes.len()) as u64 > self.limits.queue_bytes_max.max(bytes.len() as u64) {
                self.end_with(key, CloseCause::SlowConsumer, None, "announcements wait for it");
                continue;
            }
            self.counters.announced.add(1);
            announcing.told += 1;
            self.push_range(key, bytes.clone());
            self.pump(key);
        }
        self.desk.announcing = Some(announcing);
    }
}
