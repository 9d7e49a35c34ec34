//! Publishing over HTTP: bodies as they come, messages to the homes of their topics, and receipts back.
//!
//! ```text
//!   publisher's shard                                        home shard
//!        ── Offer{topic, payload, id, ticket} ──────────────▶   numbers it, or says why not
//!        ◀── Receipt{ticket, position, subscribers} ─────────   at once, or when it was sent to everyone (ack=sent)
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::bridge::Obstacle;
use super::peers::ShardMessage;
use super::polls::for_origin;
use super::rooms::TOPICS_FULL;
use super::session::State;
use super::topic::{Role, Topic};
use crate::engine::driver::Driver;
use crate::engine::log::Attributes;
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::http::chunked::ChunkedDecoder;
use crate::proto::http::{Response, error_code};
use crate::proto::position::Position;
use crate::proto::publish::{ErrorBody, ItemOutcome, Outcome, PublishBody, PublishLimits, encode_results};
use crate::proto::topic::TopicName;
use crate::proto::ws::MessageKind;
use crate::proto::ws::frame::server_header;
use crate::time::Time;

/// When a publisher that was refused for want of room should try again.
const RETRY_MS: u64 = 1000;

/// What a publisher wants to know before it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// The message has a position; then it is in the history too, where there is one.
    Accepted,
    /// Every subscriber's send was handed to the kernel, or 5 s have passed.
    Sent,
}

/// What a request publishes.
pub(super) enum What {
    /// The body is the message.
    Body { topics: Vec<TopicName>, binary: bool, event: Option<Box<str>>, key: Option<Box<str>>, id: Option<Box<str>> },
    /// The body says it in JSON.
    Items,
}

/// How the end of a body is known.
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Box<ChunkedDecoder>),
}

/// A request to publish, while its body comes in and its messages are on their way.
pub(super) struct Upload {
    pub(super) what: What,
    pub(super) framing: Framing,
    pub(super) bytes_max: usize,
    pub(super) ack: Ack,
    pub(super) keep: bool,
    /// The client waits to be told to go on (RFC 9110 section 10.1.1).
    pub(super) expects: bool,
    /// The page's origin, where its page may read the answer.
    pub(super) origin: Option<Vec<u8>>,
    pub(super) body: Vec<u8>,
    pub(super) receipts: Receipts,
}

/// The answers to a request's messages, as they come.
#[derive(Default)]
pub(super) struct Receipts {
    turn: u16,
    is_array: bool,
    /// For each item, whether it named a list of topics, and its place among the answers.
    items: Vec<(bool, std::ops::Range<usize>)>,
    answers: Vec<Option<Receipt>>,
    left: usize,
}

/// Which message of which request a receipt is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The publisher.
    pub conn: ConnKey,
    /// Which of its requests.
    pub turn: u16,
    /// Which message of it.
    pub index: u32,
}

/// A message on its way to its topic's home.
#[derive(Debug)]
pub struct Offer {
    /// Where to.
    pub topic: TopicName,
    /// The payload.
    pub payload: Vec<u8>,
    /// Text or binary.
    pub kind: MessageKind,
    /// What else was said of it.
    pub attributes: Option<Arc<Attributes>>,
    /// The idempotency key.
    pub id: Option<Box<str>>,
    /// When to answer.
    pub ack: Ack,
    /// Whom to answer.
    pub ticket: Ticket,
}

/// What became of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// It is in its topic.
    Published {
        /// Where.
        position: Position,
        /// Subscribers on this node; of `Ack::Sent`, those that it was sent to.
        subscribers: u64,
        /// It was published before, there.
        duplicate: bool,
    },
    /// It is not.
    Refused {
        /// The status of a response that says only this.
        status: u16,
        /// A word for programs.
        code: &'static str,
        /// A sentence for people.
        message: String,
        /// When to try again, in milliseconds.
        retry_ms: Option<u64>,
    },
}

impl Receipt {
    pub(super) fn refused(status: u16, code: &'static str, message: impl Into<String>, retry_ms: Option<u64>) -> Self {
        Self::Refused { status, code, message: message.into(), retry_ms }
    }

    fn outcome(&self) -> Outcome<'_> {
        match self {
            &Self::Published { position, subscribers, duplicate } => Outcome::Published { position, subscribers, duplicate },
            Self::Refused { code, message, retry_ms, .. } => Outcome::Failed(ErrorBody { code, message, retry_ms: *retry_ms }),
        }
    }
}

/// The idempotency keys of topics whose home is this shard.
#[derive(Default)]
pub(super) struct Keys {
    known: HashMap<(TopicName, Box<str>), (Time, Position)>,
    order: VecDeque<(Time, TopicName, Box<str>)>,
}

impl Keys {
    /// How many are held, those that have become too old included.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Bytes of their tables, and of the keys as if each had a UUID's 36 bytes in either.
    pub(super) fn table_bytes(&self) -> u64 {
        let known = self.known.capacity() * size_of::<((TopicName, Box<str>), (Time, Position))>();
        let order = self.order.capacity() * size_of::<(Time, TopicName, Box<str>)>();
        (known + order + self.order.len() * 2 * 36) as u64
    }

    fn find(&self, topic: &TopicName, id: &str, now: Time, limits: &Limits) -> Option<Position> {
        // A lookup without a copy of both would need a key type of its own; ids are short and rare.
        let &(at, position) = self.known.get(&(topic.clone(), Box::from(id)))?;
        (now.since(at) <= Duration::from_millis(limits.idempotency_ms)).then_some(position)
    }

    /// All that are remembered, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Time, &TopicName, &str, Position)> {
        self.order.iter().filter_map(|(at, topic, id)| {
            let &(known_at, position) = self.known.get(&(topic.clone(), id.clone()))?;
            (known_at == *at).then_some((*at, topic, &**id, position))
        })
    }

    pub(super) fn remember(&mut self, topic: TopicName, id: Box<str>, position: Position, now: Time, limits: &Limits) {
        self.known.insert((topic.clone(), id.clone()), (now, position));
        self.order.push_back((now, topic, id));
        let window = Duration::from_millis(limits.idempotency_ms);
        while self.order.len() as u64 > limits.idempotency_keys || self.order.front().is_some_and(|(at, ..)| now.since(*at) > window) {
            let Some((at, topic, id)) = self.order.pop_front() else { break };
            let key = (topic, id);
            // One that was forgotten and published again stands in the order twice.
            if self.known.get(&key).is_some_and(|&(known_at, _)| known_at == at) {
                self.known.remove(&key);
            }
        }
    }
}

impl<D: Driver> Gateway<D> {
    /// A request to publish: its body is awaited.
    pub(super) fn begin_upload(&mut self, key: ConnKey, upload: Upload) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Body;
        let expects = upload.expects;
        let empty = matches!(upload.framing, Framing::Length(0));
        let cold = session.cold.get_or_insert_default();
        cold.turn = cold.turn.wrapping_add(1);
        cold.upload = Some(Box::new(upload));
        self.timers.set(key.slot, self.now + Duration::from_millis(self.limits.body_timeout_ms));
        if empty {
            return self.offer_all(key);
        }
        if expects {
            self.push_direct(key, b"HTTP/1.1 100 Continue\r\n\r\n", &[]);
            self.pump(key);
        }
    }

    /// Takes bytes of a body; how many.
    pub(super) fn read_body(&mut self, key: ConnKey, bytes: &[u8]) -> usize {
        let Some(upload) = self.sessions.get_mut(key).and_then(|session| session.upload_mut()) else { return bytes.len() };
        let (used, done) = match &mut upload.framing {
            Framing::Length(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                upload.body.extend_from_slice(&bytes[..used]);
                *left -= used as u64;
                (used, *left == 0)
            }
            Framing::Chunked(decoder) => match decoder.decode(bytes, &mut upload.body, upload.bytes_max) {
                Ok(decoded) => (decoded.consumed, decoded.done),
                Err(error) => {
                    self.refuse_upload(key, Receipt::refused(error.status(), error_code(error.status()), error.to_string(), None), false);
                    return bytes.len();
                }
            },
        };
        if done {
            self.offer_all(key);
        }
        used
    }

    /// The body did not come in time.
    pub(super) fn body_timed_out(&mut self, key: ConnKey) {
        let message = format!("no whole body within {} ms (limits.body_timeout_ms)", self.limits.body_timeout_ms);
        self.refuse_upload(key, Receipt::refused(408, error_code(408), message, None), false);
    }

    /// Answers a request whose body cannot be used.
    pub(super) fn refuse_upload(&mut self, key: ConnKey, receipt: Receipt, keep: bool) {
        let Some(upload) = self.sessions.get_mut(key).and_then(|session| session.cold.as_mut()).and_then(|cold| cold.upload.take()) else {
            return;
        };
        let response = for_origin(receipt_response(&receipt), upload.origin.as_deref());
        self.answered(key, response, keep && upload.keep);
    }

    /// The body is whole: its messages go to the homes of their topics.
    fn offer_all(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Awaiting;
        let turn = session.cold.as_ref().map_or(0, |cold| cold.turn);
        let Some(upload) = session.upload_mut() else { return };
        let body = std::mem::take(&mut upload.body);
        let ack = upload.ack;
        let mut receipts = Receipts { turn, ..Receipts::default() };
        let mut offers = Vec::new();
        match &upload.what {
            What::Body { topics, binary, event, key: message_key, id } => {
                let kind = if *binary || simdutf8::basic::from_utf8(&body).is_err() { MessageKind::Binary } else { MessageKind::Text };
                let attributes = Attributes::of(event.clone(), message_key.clone());
                receipts.is_array = topics.len() > 1;
                for topic in topics {
                    let index = receipts.expect_item();
                    let ticket = Ticket { conn: key, turn, index };
                    let payload = if topics.len() == 1 { Vec::new() } else { body.clone() };
                    offers.push(Offer { topic: topic.clone(), payload, kind, attributes: attributes.clone(), id: id.clone(), ack, ticket });
                }
                if let [offer] = &mut offers[..] {
                    offer.payload = body;
                }
            }
            What::Items => {
                let limits = PublishLimits {
                    items_max: self.limits.publish_items_max as usize,
                    message_bytes_max: self.limits.message_bytes_max as usize,
                };
                let parsed = match PublishBody::parse(&body, &limits) {
                    Ok(parsed) => parsed,
                    Err(error) => {
                        return self.refuse_upload(key, Receipt::refused(error.status(), error.code(), error.to_string(), None), true);
                    }
                };
                receipts.is_array = parsed.is_array;
                for item in parsed.items {
                    let item = match item {
                        Ok(item) => item,
                        Err(error) => {
                            receipts.refuse_item(Receipt::refused(error.status(), error.code(), error.to_string(), None));
                            continue;
                        }
                    };
                    let event = item.event.as_ref().map(|event| event.as_str().into());
                    let attributes = Attributes::of(event, item.key.as_ref().map(|key| key.as_str().into()));
                    let first = receipts.answers.len();
                    for topic in item.topics {
                        let ticket = Ticket { conn: key, turn, index: receipts.expect() };
                        let id = item.id.as_ref().map(|id| Box::from(id.as_str()));
                        let payload = item.payload.to_vec();
                        offers.push(Offer { topic, payload, kind: item.kind, attributes: attributes.clone(), id, ack, ticket });
                    }
                    receipts.items.push((item.has_topic_list, first..receipts.answers.len()));
                }
            }
        }
        upload.receipts = receipts;
        let bytes = offers.iter().map(|offer| offer.payload.len() as u64).sum();
        if let Err(over) = self.take_said(key, offers.len() as u64, bytes) {
            self.counters.rate_limited.of(over.limit).add(offers.len() as u64);
            let message = format!("{}; nothing of this request was published", over.message());
            return self.refuse_upload(key, Receipt::refused(429, "rate_limited", message, Some(over.retry_ms())), true);
        }
        self.counters.messages_in.add(offers.len() as u64);
        self.messages_left = self.messages_left.saturating_sub(offers.len() as u64);
        for offer in offers {
            self.counters.messages_in_bytes.add(offer.payload.len() as u64);
            self.make_offer(offer);
        }
        // Of a request without messages, or whose receipts are all here, nobody else would think.
        self.answer_upload(key);
    }

    /// Brings a message to its topic's home.
    pub(super) fn make_offer(&mut self, offer: Offer) {
        let home = self.placement.home(offer.topic.as_str());
        if home == self.shard {
            self.take_offer(home, offer);
        } else {
            // Its receipt counts whoever has subscribed before.
            self.tell_members();
            self.mailbox.send(home, ShardMessage::Offer(Box::new(offer)));
        }
    }

    /// The home's part: numbers a message, unless it was before, or there is no room.
    pub(super) fn take_offer(&mut self, from: ShardId, offer: Offer) {
        let ticket = offer.ticket;
        if let Some(receipt) = self.publish_offer(from, offer) {
            self.give_receipt(from, ticket, receipt);
        }
    }

    fn publish_offer(&mut self, from: ShardId, offer: Offer) -> Option<Receipt> {
        if self.has_said_goodbye() {
            return Some(Receipt::refused(503, "draining", "the gateway is shutting down; try another", Some(RETRY_MS)));
        }
        if self.shared.is_over_memory() {
            let message = "queued messages take all the memory that they may (limits.queued_bytes_max)";
            return Some(Receipt::refused(429, "over_capacity", message, Some(RETRY_MS)));
        }
        let known = self.topics.find(&offer.topic);
        if let Some(position) = offer
            .id
            .as_ref()
            .filter(|_| !self.is_sequenced(&offer.topic))
            .and_then(|id| self.keys.find(&offer.topic, id, self.now, &self.limits))
        {
            let subscribers = known.map_or(0, |home| self.subscribers(home));
            return Some(Receipt::Published { position, subscribers, duplicate: true });
        }
        let Some(home) = known.or_else(|| self.make_home_topic(offer.topic.clone())) else {
            let why = self.no_topic();
            let code = if why == TOPICS_FULL { "too_many_topics" } else { "nats_unavailable" };
            return Some(Receipt::refused(503, code, why, Some(RETRY_MS)));
        };
        let receipt = self.number_offer(from, home, offer);
        self.free_if_unused(home);
        receipt
    }

    fn number_offer(&mut self, from: ShardId, home: TopicKey, offer: Offer) -> Option<Receipt> {
        let full = (!self.nats_has_room(home)).then_some(Obstacle::Full);
        if let Some(obstacle) = self.obstacle_of_nats(home, offer.payload.len(), offer.attributes.as_deref()).or(full) {
            self.counters.nats_refused.add(1);
            return Some(obstacle.receipt());
        }
        let topic = self.topics.get(home).expect("the caller has the topic");
        if !topic.takes_messages(&self.limits) {
            let message = "the topic's subscribers are behind (limits.topic_lag_bytes_max)";
            return Some(Receipt::refused(429, "topic_behind", message, Some(RETRY_MS)));
        }
        if let Err(over) = self.take_said_at_home(home, offer.payload.len() as u64) {
            self.counters.rate_limited.of(over.limit).add(1);
            return Some(Receipt::refused(429, "rate_limited", over.message(), Some(over.retry_ms())));
        }
        if self.topics.get(home).is_some_and(Topic::is_sequenced) {
            self.send_offer_to_stream(from, home, offer);
            return None;
        }
        let receipt = match offer.ack {
            Ack::Accepted => None,
            Ack::Sent => match self.begin_receipt() {
                Some(receipt) => Some(receipt),
                None => {
                    let message =
                        "as many publishers wait for receipts of this kind as may (limits.receipts_max); publish without ack=sent";
                    return Some(Receipt::refused(429, "too_many_receipts", message, Some(RETRY_MS)));
                }
            },
        };
        let topic = self.topics.get(home).expect("the caller has the topic");
        let (header, len) = server_header(offer.kind.opcode(), offer.payload.len());
        let sender = ConnId { shard: from, key: offer.ticket.conn };
        let position = Position { epoch: self.epoch, offset: topic.raw.offset() + 1 };
        self.send_to_nats(home, offer.kind, &offer.payload, offer.attributes.as_deref(), sender);
        self.append_at_home(home, |log| log.append_with(sender, offer.attributes, &header[..len], &offer.payload));
        if let Some(id) = offer.id {
            self.keys.remember(offer.topic, id, position, self.now, &self.limits);
        }
        if let Some(receipt) = receipt {
            self.await_sent(receipt, home, from, offer.ticket, position);
            return None;
        }
        Some(Receipt::Published { position, subscribers: self.subscribers(home), duplicate: false })
    }

    /// Members of a topic on all shards, as far as its home knows.
    pub(super) fn subscribers(&self, home: TopicKey) -> u64 {
        let Some(topic) = self.topics.get(home) else { return 0 };
        let elsewhere = if let Role::Home(side) = &topic.role { side.home.members() } else { 0 };
        topic.members() + elsewhere
    }

    pub(super) fn give_receipt(&mut self, to: ShardId, ticket: Ticket, receipt: Receipt) {
        if to == self.shard {
            self.receipt_came(ticket, receipt);
        } else {
            self.mailbox.send(to, ShardMessage::Receipt { ticket, receipt });
        }
    }

    /// A receipt has come for a publisher here.
    pub(super) fn receipt_came(&mut self, ticket: Ticket, receipt: Receipt) {
        if self.sessions.get(ticket.conn).is_some_and(|session| session.state == State::Json) {
            return self.tell_receipt(ticket, &receipt);
        }
        self.take_receipt(ticket, receipt);
        self.answer_upload(ticket.conn);
    }

    fn take_receipt(&mut self, ticket: Ticket, receipt: Receipt) {
        let Some(upload) = self.sessions.get_mut(ticket.conn).and_then(|session| session.upload_mut()) else { return };
        let receipts = &mut upload.receipts;
        if receipts.turn == ticket.turn
            && let Some(place @ None) = receipts.answers.get_mut(ticket.index as usize)
        {
            *place = Some(receipt);
            receipts.left -= 1;
        }
    }

    /// Answers a publisher that has all its receipts.
    pub(super) fn answer_upload(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.state != State::Awaiting || session.upload_mut().is_none_or(|upload| upload.receipts.left > 0) {
            return;
        }
        let Some(upload) = session.cold.as_mut().and_then(|cold| cold.upload.take()) else { return };
        let receipts = &upload.receipts;
        let answers: Vec<&Receipt> = receipts.answers.iter().flatten().collect();
        let response = match &answers[..] {
            [refused @ Receipt::Refused { .. }] if !receipts.is_array && !receipts.items[0].0 => receipt_response(refused),
            _ => {
                let outcomes: Vec<Outcome<'_>> = answers.iter().map(|receipt| receipt.outcome()).collect();
                let items = receipts.items.iter().map(|(list, places)| match list {
                    true => ItemOutcome::Each(&outcomes[places.clone()]),
                    false => ItemOutcome::One(outcomes[places.start]),
                });
                let mut body = Vec::new();
                encode_results(&mut body, receipts.is_array, items);
                Response::new(200).header("Cache-Control", "no-store").body("application/json", &body)
            }
        };
        self.answered(key, for_origin(response, upload.origin.as_deref()), upload.keep);
    }
}

impl Receipts {
    fn expect(&mut self) -> u32 {
        self.answers.push(None);
        self.left += 1;
        self.answers.len() as u32 - 1
    }

    fn expect_item(&mut self) -> u32 {
        let index = self.expect();
        self.items.push((false, index as usize..index as usize + 1));
        index
    }

    fn refuse_item(&mut self, receipt: Receipt) {
        let index = self.answers.len();
        self.answers.push(Some(receipt));
        self.items.push((false, index..index + 1));
    }
}

fn receipt_response(receipt: &Receipt) -> Response {
    let Receipt::Refused { status, code, message, retry_ms } = receipt else { unreachable!("the caller has one that is refused") };
    let mut body = Vec::new();
    ErrorBody { code, message, retry_ms: *retry_ms }.encode(&mut body);
    let response = Response::new(*status).body("application/json", &body);
    match retry_ms {
        Some(ms) => response.header("Retry-After", ms.div_ceil(1000).to_string()),
        None => response,
    }
}
