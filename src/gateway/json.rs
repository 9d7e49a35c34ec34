//! WebSockets that speak `shardcast.v1.json`: what their clients ask for, and what they are told.
//!
//! Their topics are parts of a stream that come and go, and each topic's messages are made into frames once for all of them (`streams`). Requests are
//! handled in the order in which they come: while one waits for a topic's home, or too many messages or answers are under way, nothing is read. So all
//! of it is bounded, and a client that subscribes and then publishes hears itself.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Gateway;
use super::batches::Batch;
use super::close_cause::CloseCause;
use super::counters::HandshakeResult;
use super::polls::add;
use super::presence::{By, NO_PRESENCE, Question};
use super::publishing::{Ack, Offer, Receipt, Ticket};
use super::replay::Replay;
use super::session::State;
use super::streams::{Kind, Part, Stream, each_of, message};
use crate::engine::driver::Driver;
use crate::engine::log::{Attributes, Frame};
use crate::ids::{ConnKey, TopicKey};
use crate::limits::Limits;
use crate::proto::gap::Gap;
use crate::proto::json::reply::{Reply, write_history};
use crate::proto::json::request::{Publish, Request, Said};
use crate::proto::pattern::Pattern;
use crate::proto::poll::{Answer, Message};
use crate::proto::position::{Position, Start, TOPICS_MAX};
use crate::proto::topic::TopicName;
use crate::proto::ws::frame::server_header;
use crate::proto::ws::{MessageKind, OpCode};

/// What a client's message has besides its payload, at most: names, ids and the words around them.
const REQUEST_BYTES: u64 = 4096;

/// The longest message of a client: a payload that is to be published, as JSON writes it.
pub(super) fn request_bytes_max(limits: &Limits) -> u64 {
    // Twice as long is base64 and all common text; text of nothing but control characters finds its bound earlier.
    limits.message_bytes_max * 2 + REQUEST_BYTES
}

/// What is special about such a WebSocket.
#[derive(Default)]
pub(super) struct Talk {
    /// The request whose topic has not answered; what comes after it waits.
    asked: Option<Asked>,
    /// Messages on their way to their topics, by the number of their ticket, and the ids of their requests.
    publishing: VecDeque<(u32, Option<Box<str>>)>,
    /// Questions who is in a topic that have no answer.
    pub(super) questions: u16,
    /// The number of the next ticket.
    next: u32,
    /// What the names of topics begin with that it wants, all of them.
    pub(super) patterns: Vec<Pattern>,
    /// The newest of these, while not everything that matches is subscribed to.
    pub(super) pending: Option<Pending>,
    /// It was told that topics are left out because there are too many.
    pub(super) left_topics_out: bool,
    /// It has published something that it does not want back.
    pub(super) no_echo: bool,
    /// It is sent messages compressed.
    pub(super) deflates: bool,
    /// It is sent many messages as one frame.
    pub(super) batch: Option<Batch>,
}

/// A request for a pattern that is not answered.
pub(super) struct Pending {
    pub(super) id: Option<Box<str>>,
    /// Shards that have not told all of their topics.
    pub(super) shards: u16,
    /// Somebody waits for the answer.
    pub(super) says: bool,
}

/// A request that waits for a topic's home.
struct Asked {
    number: u16,
    id: Option<Box<str>>,
    /// It came with a position.
    resumes: bool,
    /// What it is for.
    wants: Wants,
}

/// What a client wants of a topic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// What comes; and to be told who comes and goes.
    Messages { presence: bool },
    /// So many messages of its history, at most.
    History(usize),
}

impl Talk {
    /// Whether it is a history that this part of it waits for.
    pub(super) fn asks_for_history(&self, number: u16) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.number == number && matches!(asked.wants, Wants::History(_)))
    }
}

impl Stream {
    /// A WebSocket that has just been opened.
    fn talk() -> Self {
        Self::new(Kind::Json, Vec::new(), Vec::new(), 0)
    }

    /// Whether nothing that its client has asked for is under way.
    pub(super) fn owes_no_answer(&self) -> bool {
        self.unanswered == 0 && self.talk.publishing.is_empty() && self.talk.questions == 0 && self.talk.pending.is_none()
    }

    /// The part that is subscribed to a topic.
    pub(super) fn part_of(&self, topic: &TopicName) -> Option<usize> {
        let is_it =
            |(number, part): (usize, &Part)| part.topic.is_some() && part.name == *topic && !self.talk.asks_for_history(number as u16);
        self.parts.iter().enumerate().position(is_it)
    }

    /// Puts a part into a free place. None when there is none.
    pub(super) fn add_part(&mut self, part: Part, max: usize) -> Option<u16> {
        let free = self.parts.iter().position(|part| part.topic.is_none());
        match free {
            Some(number) => {
                self.parts[number] = part;
                Some(number as u16)
            }
            None if self.parts.len() < max => {
                self.parts.push(part);
                Some(self.parts.len() as u16 - 1)
            }
            None => None,
        }
    }
}

/// Appends a message as the frame that subscribers of its topic get.
pub(super) fn push_message(out: &mut Vec<u8>, topic: &TopicName, position: Position, frame: &Frame, bytes: &[u8]) {
    let (kind, payload) = message(bytes);
    let message = Message { topic: topic.as_str(), position, event: frame.event(), key: frame.key(), kind, payload };
    push_frame(out, &Reply::Message(message));
}

/// Appends a message as a line.
pub(super) fn push_line(out: &mut Vec<u8>, topic: &TopicName, position: Position, frame: &Frame, bytes: &[u8]) {
    let (kind, payload) = message(bytes);
    Reply::Message(Message { topic: topic.as_str(), position, event: frame.event(), key: frame.key(), kind, payload }).write(out);
    out.push(b'\n');
}

/// Appends a text frame. How long its header is, is known when the payload is.
pub(super) fn push_frame(out: &mut Vec<u8>, reply: &Reply<'_>) {
    let start = out.len();
    reply.write(out);
    let (header, len) = server_header(OpCode::Text, out.len() - start);
    out.splice(start..start, header[..len].iter().copied());
}

impl<D: Driver> Gateway<D> {
    /// Answers the upgrade of a WebSocket that speaks JSON, and welcomes its client.
    pub(super) fn begin_talk(&mut self, key: ConnKey, upgrade: &[u8]) {
        self.counters.handshakes.of(HandshakeResult::Upgraded).add(1);
        self.upgraded(key, upgrade);
        let retry_ms = self.return_window_ms();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let mut stream = Stream::talk();
        stream.window_ms = retry_ms;
        stream.talk.deflates = session.takes_deflated();
        session.cold.get_or_insert_default().stream = Some(Box::new(stream));
        let conn = self.id(key).to_string();
        let (ping_ms, max_bytes) = (self.limits.ping_interval_ms, self.limits.message_bytes_max);
        self.say(key, &Reply::Welcome { conn: &conn, ping_ms, retry_ms, max_bytes });
        self.opened(key, State::Json);
    }

    /// All topics of one that was inherited have answered.
    pub(super) fn go_on_with_talk(&mut self, key: ConnKey, arrived: &[(u16, Replay)]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Json;
        let parts = session.stream().into_iter().flat_map(|stream| &stream.parts);
        let watched: Vec<TopicKey> = parts.filter(|part| part.watches).filter_map(|part| part.topic).collect();
        self.tell_arrived(key, arrived);
        for topic in watched {
            self.watch_topic(topic, key);
        }
        self.opened(key, State::Json);
        self.inherit_patterns(key);
    }

    /// Queues something to tell a client.
    pub(super) fn say(&mut self, key: ConnKey, reply: &Reply<'_>) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        reply.write(&mut out);
        let (header, len) = server_header(OpCode::Text, out.len());
        self.push_direct(key, &header[..len], &out);
        self.scratch = out;
    }

    /// Whether a client's next message has to wait for what it has asked for before.
    pub(super) fn is_busy_talking(&self, key: ConnKey) -> bool {
        let Some(stream) = self.sessions.get(key).and_then(|session| session.stream()) else { return false };
        stream.unanswered > 0
            || stream.talk.questions > 0
            || stream.talk.pending.is_some()
            || stream.talk.publishing.len() as u64 >= self.limits.json_publishes_max
            || self.direct_bytes(key) as u64 >= self.limits.echo_bytes_max
    }

    /// Goes on with what a client has said meanwhile, if it need not wait any more.
    pub(super) fn talk_on(&mut self, key: ConnKey) {
        let waits = |session: &super::session::Session| session.state == State::Json && session.paused;
        if self.sessions.get(key).is_some_and(waits) && !self.is_busy_talking(key) {
            self.resume_reading(key);
        }
    }

    /// A client has said something.
    pub(super) fn hear(&mut self, key: ConnKey, kind: MessageKind, payload: &[u8]) {
        if kind == MessageKind::Binary {
            return self.end_with(key, CloseCause::BadMessage, None, "message is binary; send text");
        }
        let said = match Said::parse(payload, self.limits.message_bytes_max as usize) {
            Ok(said) => said,
            Err(error) => return self.end_with(key, CloseCause::BadMessage, None, &error.to_string()),
        };
        let id = said.id;
        match said.request {
            Ok(Request::Hello { batch }) => self.hear_hello(key, id, batch),
            Ok(Request::Ping) => self.say(key, &Reply::Pong { id }),
            // Nobody is asked for a token: any is as good.
            Ok(Request::Auth) => self.say(key, &Reply::Done { id }),
            Ok(Request::Subscribe { topic, start, presence }) => {
                if presence && !self.presence.is_for(&topic) {
                    return self.refuse_presence(key, id);
                }
                self.ask_for(key, id, topic, start.unwrap_or(Start::Latest), Wants::Messages { presence });
            }
            Ok(Request::History { topic, start, limit }) => {
                let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)).max(1);
                self.ask_for(key, id, topic, start.unwrap_or(Start::Earliest), Wants::History(limit));
            }
            Ok(Request::Unsubscribe { topic }) => self.unsubscribe_from(key, id, &topic),
            Ok(Request::SubscribePattern { pattern }) => self.subscribe_to_pattern(key, id, pattern),
            Ok(Request::UnsubscribePattern { pattern }) => self.unsubscribe_from_pattern(key, id, &pattern),
            Ok(Request::Publish(publish)) => self.publish_json(key, id, publish),
            Ok(Request::Presence { topic }) if self.presence.is_for(&topic) => {
                self.ask_who_is_in(key, Question { topic, by: By::Json(id.map(Box::from)) });
            }
            Ok(Request::Presence { .. }) => self.refuse_presence(key, id),
            Err(fault) => {
                self.say(key, &Reply::Error { id, code: fault.code(), message: &fault.to_string(), retry_ms: None });
            }
        }
    }

    /// A client says how it wants to be spoken to, while it has no topic.
    fn hear_hello(&mut self, key: ConnKey, id: Option<&str>, batch: bool) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        if !batch || stream.talk.batch.is_some() {
            return;
        }
        if stream.parts.iter().any(|part| part.topic.is_some()) || !stream.talk.patterns.is_empty() {
            let message = "there are subscriptions already; say hello with batch before the first one";
            return self.say(key, &Reply::Error { id, code: "bad_request", message, retry_ms: None });
        }
        stream.talk.batch = Some(Batch::default());
    }

    /// Asks a topic's home for its messages, or for its history.
    fn ask_for(&mut self, key: ConnKey, id: Option<&str>, topic: TopicName, start: Start, wants: Wants) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(cold) = &mut session.cold else { return };
        let turn = cold.turn.wrapping_add(1);
        let Some(stream) = &mut cold.stream else { return };
        if matches!(wants, Wants::Messages { .. }) && stream.part_of(&topic).is_some() {
            let message = "it is subscribed to already; unsubscribe first to begin elsewhere";
            return self.say(key, &Reply::Error { id, code: "already_subscribed", message, retry_ms: None });
        }
        let own = stream.parts.iter().filter(|part| !part.by_pattern && part.topic.is_some()).count();
        // A history is asked for and gone again: it takes no topic's place.
        let has_room = own < TOPICS_MAX || matches!(wants, Wants::History(_));
        let number = has_room.then(|| stream.add_part(Part::new(topic, start, turn), usize::from(u16::MAX))).flatten();
        let Some(number) = number else {
            let message = format!("a connection has at most {TOPICS_MAX} topics; open another one for more");
            return self.say(key, &Reply::Error { id, code: "too_many_topics", message: &message, retry_ms: None });
        };
        cold.turn = turn;
        stream.unanswered += 1;
        let resumes = matches!(start, Start::After(_));
        stream.talk.asked = Some(Asked { number, id: id.map(Box::from), resumes, wants });
        if let Err((cause, reason)) = self.begin_part(key, number) {
            self.refuse_part(key, number, cause, &reason);
        }
    }

    /// Tells a client that it is subscribed; messages come behind that.
    pub(super) fn tell_subscribed(&mut self, key: ConnKey, number: u16, replay: &Replay) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let part = &stream.parts[usize::from(number)];
        if part.by_pattern {
            let (topic, position) = (part.name.clone(), Position { epoch: part.epoch, offset: replay.at });
            let recovered = matches!(part.start, Start::After(_)) && replay.gap.is_none();
            return self.say(key, &Reply::Subscribed { id: None, topic: topic.as_str(), position, recovered, replayed: replay.count });
        }
        let Some(Asked { id, resumes, wants, .. }) = stream.talk.asked.take() else { return };
        let part = &mut stream.parts[usize::from(number)];
        part.watches = wants == Wants::Messages { presence: true };
        let watches = part.topic.filter(|_| part.watches);
        let (topic, position) = (part.name.clone(), Position { epoch: part.epoch, offset: replay.at });
        let recovered = resumes && replay.gap.is_none();
        self.say(key, &Reply::Subscribed { id: id.as_deref(), topic: topic.as_str(), position, recovered, replayed: replay.count });
        if let Some(topic) = watches {
            self.watch_topic(topic, key);
        }
    }

    fn refuse_presence(&mut self, key: ConnKey, id: Option<&str>) {
        self.say(key, &Reply::Error { id, code: "no_presence", message: NO_PRESENCE, retry_ms: None });
    }

    /// A topic that a client has asked for cannot be had.
    pub(super) fn refuse_part(&mut self, key: ConnKey, number: u16, cause: CloseCause, reason: &str) {
        let retry_ms = Some(self.retry_ms_after(cause));
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        stream.unanswered -= 1;
        let part = &mut stream.parts[usize::from(number)];
        part.topic = None;
        let code = cause.label();
        if part.by_pattern {
            // Nobody has asked for it by its name, so the sentence has it.
            let message = format!("{}: {reason}", part.name.as_str());
            self.say(key, &Reply::Error { id: None, code, message: &message, retry_ms });
        } else {
            let asked = stream.talk.asked.take();
            let id = asked.and_then(|asked| asked.id);
            self.say(key, &Reply::Error { id: id.as_deref(), code, message: reason, retry_ms });
        }
        self.answer_pattern(key);
        self.pump(key);
        self.talk_on(key);
    }

    /// What a topic's history has is here.
    pub(super) fn answer_history(&mut self, key: ConnKey, replay: &Replay) {
        let retry_ms = self.retry_ms();
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let Some(Asked { number, id, wants, .. }) = stream.talk.asked.take() else { return };
        stream.unanswered -= 1;
        let part = &mut stream.parts[usize::from(number)];
        let (name, topic) = (part.name.clone(), part.topic.take());
        let Some(epoch) = topic.and_then(|topic| self.topics.get(topic)).map(|topic| topic.epoch) else { return };
        let mut body = Vec::new();
        let mut answer = Answer::begin(&mut body);
        if let Some((reason, from)) = replay.gap {
            self.counters.gaps.of(reason.into()).add(1);
            answer.gap(&Gap { topic: name.as_str(), from, to: Position { epoch, offset: replay.at }, until: None, reason });
        }
        let Wants::History(mut left) = wants else { return };
        let mut at = replay.at;
        each_of(&replay.parcel, |frame, bytes| {
            let position = Position { epoch, offset: frame.offset().unwrap_or(at + 1) };
            if add(&mut answer, &mut left, name.as_str(), position, frame, bytes) {
                at = position.offset;
            } else {
                // What follows would leave a hole.
                left = 0;
            }
        });
        answer.finish(Some([(epoch, Some(at))]), retry_ms);
        let mut out = Vec::new();
        write_history(&mut out, id.as_deref(), name.as_str(), &body);
        let (header, len) = server_header(OpCode::Text, out.len());
        self.push_direct(key, &header[..len], &out);
        if let Some(topic) = topic {
            self.leave_part(topic, None);
        }
        self.pump(key);
        self.talk_on(key);
    }

    fn unsubscribe_from(&mut self, key: ConnKey, id: Option<&str>, topic: &TopicName) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let Some(number) = stream.part_of(topic) else {
            let message = "it is not subscribed to";
            return self.say(key, &Reply::Error { id, code: "not_subscribed", message, retry_ms: None });
        };
        self.vacate_part(key, number);
        self.say(key, &Reply::Done { id });
    }

    /// Takes a client out of one of its topics.
    pub(super) fn vacate_part(&mut self, key: ConnKey, number: usize) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        stream.pending.retain(|&pending| usize::from(pending) != number);
        let watches = stream.parts[number].watches;
        let (topic, seat) = stream.parts[number].vacate();
        if let Some(topic) = topic {
            if watches {
                self.unwatch_topic(topic, key);
            }
            self.leave_part(topic, seat);
        }
    }

    fn publish_json(&mut self, key: ConnKey, id: Option<&str>, publish: Publish<'_>) {
        let bytes = publish.payload.len() as u64;
        if let Err(over) = self.take_said(key, 1, bytes) {
            self.counters.rate_limited.of(over.limit).add(1);
            let (message, retry_ms) = (over.message(), Some(over.retry_ms()));
            return self.say(key, &Reply::Error { id, code: "rate_limited", message: &message, retry_ms });
        }
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let index = stream.talk.next;
        stream.talk.next = index.wrapping_add(1);
        stream.talk.publishing.push_back((index, id.map(Box::from)));
        stream.talk.no_echo |= !publish.echo;
        self.counters.messages_in.add(1);
        self.counters.messages_in_bytes.add(bytes);
        let event = publish.event.as_ref().map(|event| event.as_str().into());
        let message_key = publish.key.as_ref().map(|key| key.as_str().into());
        let attributes = match publish.echo {
            true => Attributes::of(event, message_key),
            false => Some(Arc::new(Attributes { event, key: message_key, no_echo: true, offset: None })),
        };
        let offer = Offer {
            topic: publish.topic,
            payload: publish.payload.into_owned(),
            kind: publish.kind,
            attributes,
            id: publish.msg_id.as_ref().map(|id| Box::from(id.as_str())),
            ack: Ack::Accepted,
            ticket: Ticket { conn: key, turn: 0, index },
        };
        self.make_offer(offer);
    }

    /// A receipt has come.
    pub(super) fn tell_receipt(&mut self, ticket: Ticket, receipt: &Receipt) {
        let key = ticket.conn;
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let Some(place) = stream.talk.publishing.iter().position(|&(index, _)| index == ticket.index) else { return };
        let Some((_, id)) = stream.talk.publishing.remove(place) else { return };
        let id = id.as_deref();
        match receipt {
            // Who has given it no id has no use for an answer.
            Receipt::Published { .. } if id.is_none() => {}
            &Receipt::Published { position, subscribers, duplicate } => {
                self.say(key, &Reply::Published { id, position, subscribers, duplicate });
            }
            Receipt::Refused { code, message, retry_ms, .. } => self.say(key, &Reply::Error { id, code, message, retry_ms: *retry_ms }),
        }
        self.pump(key);
        self.talk_on(key);
    }
}
