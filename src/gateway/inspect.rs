//! What an operator asks of a shard: which topics and connections weigh most, who went last and why, and where the memory is.
//!
//! A question comes as a command and is answered on a channel of its own. One that has to look at every connection or topic is worked off in slices, so
//! many places a turn (`limits.inspect_slots_per_turn`), between everything else that the shard does, and keeps no more than the few that it will tell
//! of. What is told of a connection is asked for then: nothing here is kept for it but when it came, and, where a proxy says it, from where.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::Serialize;

use super::close_cause::CloseCause;
use super::counters::Transport;
use super::dismissal::{Announcing, Dismissal, Word};
use super::feed::{Feed, Lap};
use super::session::{Cold, Session};
use super::streams::{Part, Stream};
use super::topic::{AwaySide, HomeSide, Made, Role, Topic, Uplink};
use super::{Gateway, ShardMessage};
use crate::engine::driver::Driver;
use crate::engine::segment::Range;
use crate::engine::slab::SideTable;
use crate::gateway::counters::Label;
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::proto::position::Position;
use crate::proto::topic::TopicName;
use crate::proto::ws::CloseCode;
use crate::time::Time;

/// A question to one shard, and where its answer goes.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// What is asked.
    pub question: Question,
    /// Who asks; gone when it has waited long enough.
    pub reply: Sender<(ShardId, Finding)>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// The topics whose home the shard is, and that are first in this order.
    Topics(TopicOrder, usize),
    /// The connections that are first in this order, and the last that have ended.
    Connections(ConnectionOrder, usize),
    /// What owns how much memory.
    Memory,
    /// End connections.
    Disconnect(Whom, Word),
    /// Tell everybody something.
    Announce(Arc<str>),
}

/// Which connections are ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whom {
    /// This one, at once.
    One(ConnKey),
    /// Whoever has the topic, at a pace.
    Topic(TopicName),
    /// Every WebSocket, stream and poll, at a pace.
    All,
}

/// By what topics are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopicOrder {
    /// Members on all shards.
    Subscribers,
    /// Messages so far.
    Messages,
    /// Bytes of the history.
    Bytes,
    /// Bytes by which the slowest shard is behind.
    Lag,
}

/// By what connections are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionOrder {
    /// Bytes that wait for it.
    Bytes,
    /// Messages that wait for it.
    Lag,
    /// Messages left out for it and times that it was told of missing ones; those that have ended by the messages dropped with them.
    Drops,
}

/// The answer of one shard.
#[derive(Clone, PartialEq, Debug)]
pub enum Finding {
    /// Topics, the first in the order asked for first.
    Topics(Vec<TopicView>),
    /// Connections likewise, and those that ended last, the newest first.
    Connections(Vec<ConnectionView>, Vec<ClosingView>),
    /// Bytes by owner.
    Memory(Vec<(&'static str, u64)>),
    /// So many connections are told, or will be.
    Told(u64),
    /// There is no such connection.
    Nobody,
    /// Not now, for this reason.
    Refused(&'static str),
}

/// A topic, as its home sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct TopicView {
    /// What it was ordered by.
    #[serde(skip)]
    pub weight: u64,
    /// Its name.
    pub topic: String,
    /// Its home.
    pub shard: u16,
    /// Members of all shards.
    pub subscribers: u64,
    /// The position of its newest message.
    pub pos: Option<String>,
    /// Messages so far.
    pub messages: u64,
    /// Messages that are kept.
    pub history: u64,
    /// Bytes of these.
    pub history_bytes: u64,
    /// Bytes by which the slowest shard is behind.
    pub lag_bytes: u64,
    /// How long ago the newest message came.
    pub published_ms_ago: Option<u64>,
}

/// A connection.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct ConnectionView {
    /// What it was ordered by.
    #[serde(skip)]
    pub weight: u64,
    /// What logs call it, and `POST /connections/{id}/disconnect`.
    pub id: String,
    /// Which shard has it.
    pub shard: u16,
    /// What it speaks.
    pub transport: &'static str,
    /// Where the client is, as a trusted proxy says, or its socket.
    pub client: Option<IpAddr>,
    /// How long it has been connected.
    pub connected_ms: u64,
    /// How long ago anything came in, a pong too.
    pub heard_ms_ago: u64,
    /// How long a ping has been unanswered.
    pub pinged_ms_ago: Option<u64>,
    /// Topics that it has.
    pub topics: usize,
    /// Bytes that wait for it, the send in flight included.
    pub queued_bytes: u64,
    /// Messages that wait for it.
    pub lag_messages: u64,
    /// Messages that were left out for it because it was slow.
    pub dropped: u64,
    /// Times that it was told of missing messages.
    pub gaps: u64,
}

/// A connection that has ended.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct ClosingView {
    /// What logs call it.
    pub id: String,
    /// Which shard had it.
    pub shard: u16,
    /// What it spoke.
    pub transport: &'static str,
    /// Where the client was, while its socket could tell.
    pub client: Option<IpAddr>,
    /// How long ago its end was decided.
    pub ended_ms_ago: u64,
    /// How long it was connected until then.
    pub connected_ms: u64,
    /// Why it ended.
    pub cause: &'static str,
    /// The code of its close frame.
    pub code: Option<u16>,
    /// Messages that waited for it and are dropped.
    pub dropped: u64,
}

/// A connection that has ended, as it is kept.
struct Closing {
    key: ConnKey,
    transport: Transport,
    client: Option<IpAddr>,
    at: Time,
    connected: Duration,
    cause: CloseCause,
    code: Option<CloseCode>,
    dropped: u64,
}

/// When a connection came, in units that last 8 years. Never zero, so that a table of it takes 4 bytes for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Since(NonZeroU32);

const SINCE_MS: u64 = 64;

impl Since {
    pub(super) fn new(now: Time) -> Self {
        Self(NonZeroU32::MIN.saturating_add((now.as_millis() / SINCE_MS) as u32))
    }

    pub(super) fn age(self, now: Time) -> Duration {
        now.since(Time::from_millis(u64::from(self.0.get() - 1) * SINCE_MS))
    }
}

/// Closings of one turn that are noted: in a crowd of them each would cost a system call for its address.
const CLOSINGS_PER_TURN: u32 = 16;
/// Questions that a shard has at once; the admin listener has no more clients.
const INQUIRIES_MAX: usize = 16;

/// What a shard keeps for its operator.
#[derive(Default)]
pub(super) struct Desk {
    /// By the slot of their connection.
    since: Vec<Option<Since>>,
    /// Addresses that trusted proxies have told.
    clients: SideTable<IpAddr>,
    closings: VecDeque<Closing>,
    closings_left: u32,
    inquiries: VecDeque<(Inquiry, Scan)>,
    pub(super) dismissals: Vec<Dismissal>,
    pub(super) announcing: Option<Announcing>,
}

/// How far a question has got.
struct Scan {
    /// The next place to look at; none when all were looked at.
    connection: Option<u32>,
    topic: Option<u32>,
    best: Best,
    sessions_bytes: u64,
    topics_bytes: u64,
}

/// The places with most weight, a bounded number of them.
struct Best {
    max: usize,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Best {
    fn new(max: usize) -> Self {
        Self { max, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, weight: u64, slot: u32) {
        if self.heap.len() < self.max {
            self.heap.push(Reverse((weight, slot)));
        } else if self.heap.peek().is_some_and(|Reverse((least, _))| *least < weight) {
            self.heap.pop();
            self.heap.push(Reverse((weight, slot)));
        }
    }

    /// The heaviest first.
    fn take(&mut self) -> impl Iterator<Item = (u64, u32)> + use<> {
        std::mem::take(&mut self.heap).into_sorted_vec().into_iter().map(|Reverse(found)| found)
    }
}

impl<D: Driver> Gateway<D> {
    /// A connection was taken up.
    pub(super) fn note_opening(&mut self, key: ConnKey) {
        self.note_opened(key, self.now);
    }

    /// A connection was taken up then.
    pub(super) fn note_opened(&mut self, key: ConnKey, at: Time) {
        let (since, slot) = (&mut self.desk.since, key.slot as usize);
        if slot >= since.len() {
            since.resize(slot + 1, None);
        }
        since[slot] = Some(Since::new(at));
    }

    /// A trusted proxy says whose connection it is.
    pub(super) fn note_client(&mut self, key: ConnKey, client: IpAddr) {
        match self.desk.clients.get_mut(key) {
            Some(known) => *known = client,
            None => self.desk.clients.insert(key, client),
        }
    }

    /// A connection is gone for good.
    pub(super) fn forget_opening(&mut self, key: ConnKey) {
        if let Some(since) = self.desk.since.get_mut(key.slot as usize) {
            *since = None;
        }
        self.desk.clients.remove(key);
    }

    /// When a connection came.
    pub(super) fn since(&self, key: ConnKey) -> Option<Since> {
        self.sessions.get(key).and_then(|_| *self.desk.since.get(key.slot as usize)?)
    }

    /// Whose connection it is, where a proxy has said so.
    pub(super) fn noted_client(&self, key: ConnKey) -> Option<IpAddr> {
        self.desk.clients.get(key).copied()
    }

    fn client_of(&self, key: ConnKey) -> Option<IpAddr> {
        self.noted_client(key).or_else(|| self.driver.peer_addr(key).map(|peer| peer.ip().to_canonical()))
    }

    fn connected(&self, key: ConnKey) -> Duration {
        self.since(key).map_or(Duration::ZERO, |since| since.age(self.now))
    }

    /// The end of a connection was decided.
    pub(super) fn note_closing(&mut self, key: ConnKey, cause: CloseCause, code: Option<CloseCode>, dropped: u64) {
        let max = self.limits.closings_kept as usize;
        let Some(transport) = self.sessions.get(key).map(|session| session.transport).filter(|_| max > 0) else { return };
        let Some(left) = self.desk.closings_left.checked_sub(1) else { return };
        self.desk.closings_left = left;
        let closing =
            Closing { key, transport, client: self.client_of(key), at: self.now, connected: self.connected(key), cause, code, dropped };
        if self.desk.closings.len() >= max {
            self.desk.closings.pop_front();
        }
        self.desk.closings.push_back(closing);
    }

    /// A question has come.
    pub(super) fn inquire(&mut self, inquiry: Inquiry) {
        let max = match &inquiry.question {
            Question::Disconnect(whom, word) => {
                let finding = self.disconnect(whom, word);
                return self.tell(&inquiry.reply, finding);
            }
            Question::Announce(text) => {
                let text = Arc::clone(text);
                return self.begin_announcing(text, inquiry.reply);
            }
            Question::Topics(_, max) | Question::Connections(_, max) => *max,
            Question::Memory => 0,
        };
        if self.desk.inquiries.len() >= INQUIRIES_MAX {
            return self.tell(&inquiry.reply, Finding::Refused("other questions are being answered; try again"));
        }
        let scan = Scan { connection: Some(0), topic: Some(0), best: Best::new(max), sessions_bytes: 0, topics_bytes: 0 };
        self.desk.inquiries.push_back((inquiry, scan));
    }

    /// Answers; who has given up waiting does not read it.
    pub(super) fn tell(&self, reply: &Sender<(ShardId, Finding)>, finding: Finding) {
        let _ = reply.try_send((self.shard, finding));
    }

    /// Whether there is something to do for the operator in the next turn.
    pub(super) fn is_inquired(&self) -> bool {
        !self.desk.inquiries.is_empty() || self.desk.announcing.is_some()
    }

    /// Works off what the operator has asked for, as much of it as a turn may.
    pub(super) fn answer_inquiries(&mut self) {
        self.desk.closings_left = CLOSINGS_PER_TURN;
        self.step_dismissals();
        self.go_on_announcing();
        let mut left = self.limits.inspect_slots_per_turn;
        while left > 0
            && let Some((inquiry, mut scan)) = self.desk.inquiries.pop_front()
        {
            match self.look(&inquiry.question, &mut scan, &mut left) {
                Some(finding) => self.tell(&inquiry.reply, finding),
                None => self.desk.inquiries.push_front((inquiry, scan)),
            }
        }
    }

    /// Looks at the next places. The answer, once all were looked at.
    fn look(&mut self, question: &Question, scan: &mut Scan, left: &mut u64) -> Option<Finding> {
        match *question {
            Question::Topics(order, _) => {
                self.each_topic(scan, left, |gateway, scan, slot| {
                    let Some((_, topic)) = gateway.topics.at(slot) else { return };
                    if let Some(weight) = topic_weight(topic, order) {
                        scan.best.offer(weight, slot);
                    }
                });
                let done = scan.topic.is_none();
                done.then(|| Finding::Topics(scan.best.take().filter_map(|(weight, slot)| self.topic_view(weight, slot)).collect()))
            }
            Question::Connections(order, max) => {
                self.each_connection(scan, left, |gateway, scan, key| {
                    if let Some(weight) = gateway.connection_weight(key, order) {
                        scan.best.offer(weight, key.slot);
                    }
                });
                if scan.connection.is_some() {
                    return None;
                }
                let mut views = Vec::new();
                for (weight, slot) in scan.best.take() {
                    let key = self.sessions.at(slot).map(|(key, _)| key);
                    views.extend(key.and_then(|key| self.connection_view(weight, key)));
                }
                Some(Finding::Connections(views, self.closing_views(order, max)))
            }
            Question::Memory => {
                self.each_connection(scan, left, |gateway, scan, key| {
                    scan.sessions_bytes += gateway.sessions.get(key).map_or(0, session_bytes);
                });
                self.each_topic(scan, left, |gateway, scan, slot| {
                    scan.topics_bytes += gateway.topics.at(slot).map_or(0, |(name, topic)| name_bytes(name) + topic_bytes(topic));
                });
                let done = scan.connection.is_none() && scan.topic.is_none();
                done.then(|| Finding::Memory(self.memory(scan)))
            }
            Question::Disconnect(..) | Question::Announce(_) => None,
        }
    }

    fn each_topic(&mut self, scan: &mut Scan, left: &mut u64, mut look: impl FnMut(&Self, &mut Scan, u32)) {
        while *left > 0
            && let Some(slot) = scan.topic
        {
            *left -= 1;
            look(self, scan, slot);
            scan.topic = self.topics.next_slot(slot);
        }
    }

    fn each_connection(&mut self, scan: &mut Scan, left: &mut u64, mut look: impl FnMut(&Self, &mut Scan, ConnKey)) {
        while *left > 0
            && let Some(slot) = scan.connection
        {
            *left -= 1;
            if let Some((key, _)) = self.sessions.at(slot) {
                look(self, scan, key);
            }
            scan.connection = slot.checked_add(1).filter(|&next| next < self.driver.slots());
        }
    }

    fn topic_view(&self, weight: u64, slot: u32) -> Option<TopicView> {
        let (name, topic) = self.topics.at(slot)?;
        let Role::Home(side) = &topic.role else { return None };
        let offset = topic.raw.offset();
        Some(TopicView {
            weight,
            topic: name.as_str().to_owned(),
            shard: self.shard.0,
            subscribers: topic.members() + side.home.members(),
            pos: (offset > 0).then(|| Position { epoch: topic.epoch, offset }.to_string()),
            messages: if topic.is_sequenced() { topic.raw.log.frames() } else { offset },
            history: topic.raw.log.frames() - side.history.first(&topic.raw.log),
            history_bytes: side.history.bytes(),
            lag_bytes: topic.lag(),
            published_ms_ago: (topic.last_append > Time::ZERO).then(|| self.now.since(topic.last_append).as_millis() as u64),
        })
    }

    fn connection_weight(&self, key: ConnKey, order: ConnectionOrder) -> Option<u64> {
        let session = self.sessions.get(key).filter(|session| !session.state.is_over())?;
        Some(match order {
            ConnectionOrder::Bytes => self.queued_bytes(session, key) + self.driver.unsent(key) as u64,
            ConnectionOrder::Lag => self.waiting_frames(session, key),
            ConnectionOrder::Drops => thinned(session) + session.stream().map_or(0, |stream| u64::from(stream.gaps)),
        })
    }

    fn connection_view(&self, weight: u64, key: ConnKey) -> Option<ConnectionView> {
        let session = self.sessions.get(key)?;
        Some(ConnectionView {
            weight,
            id: self.id(key).to_string(),
            shard: self.shard.0,
            transport: session.transport.text(),
            client: self.client_of(key),
            connected_ms: self.connected(key).as_millis() as u64,
            heard_ms_ago: session.last_in.age_ms(self.now),
            pinged_ms_ago: session.pinged.map(|pinged| pinged.age_ms(self.now)),
            topics: session.stream().map_or(usize::from(session.topic.is_some()), |stream| stream.parts.len()),
            queued_bytes: self.queued_bytes(session, key) + self.driver.unsent(key) as u64,
            lag_messages: self.waiting_frames(session, key),
            dropped: thinned(session),
            gaps: session.stream().map_or(0, |stream| u64::from(stream.gaps)),
        })
    }

    fn closing_views(&self, order: ConnectionOrder, max: usize) -> Vec<ClosingView> {
        let mut closings: Vec<&Closing> = self.desk.closings.iter().rev().collect();
        if order == ConnectionOrder::Drops {
            closings.sort_by_key(|closing| Reverse(closing.dropped));
        }
        let view = |closing: &Closing| ClosingView {
            id: self.id(closing.key).to_string(),
            shard: self.shard.0,
            transport: closing.transport.text(),
            client: closing.client,
            ended_ms_ago: self.now.since(closing.at).as_millis() as u64,
            connected_ms: closing.connected.as_millis() as u64,
            cause: closing.cause.label(),
            code: closing.code.map(|code| code.0),
            dropped: closing.dropped,
        };
        closings.into_iter().take(max).map(view).collect()
    }

    /// What this shard has allocated, by owner. Messages are no shard's: see [`Shared::memory`](super::Shared::memory).
    fn memory(&self, scan: &Scan) -> Vec<(&'static str, u64)> {
        let desk = &self.desk;
        let connections = self.driver.table_bytes()
            + self.sessions.table_bytes()
            + self.timers.table_bytes()
            + self.prefixes.table_bytes()
            + self.said.table_bytes()
            + (desk.since.capacity() * size_of::<Option<Since>>()) as u64
            + desk.clients.table_bytes();
        let others = u64::from(self.placement.shards()) - 1;
        let lists = self.laps.capacity() * size_of::<super::FeedKey>()
            + (self.dispatches.capacity() + self.warm.capacity() + self.histories.capacity()) * size_of::<TopicKey>()
            + (self.recent_sends.capacity() + self.callers.capacity() + self.ready_polls.capacity()) * size_of::<ConnKey>()
            + self.fired.capacity() * size_of::<u32>()
            + self.scratch.capacity()
            + self.events.capacity() * size_of::<crate::engine::driver::Event>();
        vec![
            ("connection_tables", connections),
            ("sessions", scan.sessions_bytes),
            ("seats", self.seats.table_bytes()),
            ("topic_tables", self.topics.table_bytes() + self.past.table_bytes()),
            ("topics", scan.topics_bytes),
            ("receive_buffers", self.limits.recv_buffers * self.limits.recv_buffer_bytes),
            ("mailboxes", others * self.limits.mailbox_messages * size_of::<ShardMessage>() as u64),
            ("idempotency_keys", self.keys.table_bytes()),
            ("receipts", (self.awaited.len() * 128 + self.counts.capacity() * 64) as u64),
            ("closings", (desk.closings.capacity() * size_of::<Closing>()) as u64),
            ("lists", lists as u64),
        ]
    }
}

fn topic_weight(topic: &Topic, order: TopicOrder) -> Option<u64> {
    let Role::Home(side) = &topic.role else { return None };
    Some(match order {
        TopicOrder::Subscribers => topic.members() + side.home.members(),
        TopicOrder::Messages if topic.is_sequenced() => topic.raw.log.frames(),
        TopicOrder::Messages => topic.raw.offset(),
        TopicOrder::Bytes => side.history.bytes(),
        TopicOrder::Lag => topic.lag(),
    })
}

/// Messages that were left out for a connection because it was slow.
fn thinned(session: &Session) -> u64 {
    session.cold.as_ref().map_or(0, |cold| cold.thinned)
}

/// A name lies once beside its two counts.
fn name_bytes(name: &TopicName) -> u64 {
    (2 * size_of::<usize>() + name.as_str().len()) as u64
}

/// What a topic has allocated, its messages apart.
fn topic_bytes(topic: &Topic) -> u64 {
    let feed = |feed: &Feed| feed.members.heap_bytes() + feed.lap.get().map_or(0, |_| size_of::<Option<Lap>>() as u64);
    let role = match &topic.role {
        Role::Home(side) => {
            let held = side.held.as_ref().map_or(0, |held| held.capacity()) * size_of::<super::topic::HeldParcel>();
            size_of::<HomeSide>() as u64 + side.home.heap_bytes() + side.history.heap_bytes() + held as u64
        }
        Role::Away(side) => (size_of::<AwaySide>() + side.uplink.as_ref().map_or(0, |_| size_of::<Uplink>())) as u64,
    };
    let made: u64 = topic.made.iter().flatten().map(|made| size_of::<Made>() as u64 + feed(&made.feed)).sum();
    let presence = topic.presence.as_ref().map_or(0, |presence| presence.heap_bytes());
    feed(&topic.raw) + made + role + topic.waiters.heap_bytes() + presence
}

/// What a connection has allocated besides its place in the tables.
fn session_bytes(session: &Session) -> u64 {
    let cold = session.cold.as_ref().map_or(0, |cold| {
        let stream = cold.stream.as_ref().map_or(0, |stream| {
            size_of::<Stream>() + stream.parts.capacity() * size_of::<Part>() + stream.pending.capacity() * size_of::<u16>()
        });
        let upload = cold.upload.as_ref().map_or(0, |upload| size_of_val(&**upload) + upload.body.capacity());
        size_of::<Cold>()
            + cold.decoder.held_bytes()
            + cold.input.capacity()
            + cold.upgrade.capacity()
            + size_of_val(&*cold.until)
            + stream
            + upload
    });
    let direct = session.direct.as_ref().map_or(0, |queue| size_of_val(&**queue) + queue.capacity() * size_of::<Range>());
    (cold + direct) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_are_kept_and_come_first() {
        let mut best = Best::new(3);
        for (weight, slot) in [(5, 0), (1, 1), (9, 2), (7, 3), (0, 4), (7, 5)] {
            best.offer(weight, slot);
        }
        assert_eq!(best.take().map(|(weight, _)| weight).collect::<Vec<_>>(), [9, 7, 7]);
        let mut none = Best::new(0);
        none.offer(1, 1);
        assert_eq!(none.take().count(), 0);
    }

    #[test]
    fn since_is_known_to_its_unit_for_years() {
        for ms in [0, 63, 64, 1_000_000, 8 * 365 * 86_400_000] {
            let since = Since::new(Time::from_millis(ms));
            let age = since.age(Time::from_millis(ms + 10_000)).as_millis() as u64;
            assert!((10_000..10_000 + SINCE_MS).contains(&age), "{ms}: {age}");
        }
        assert_eq!(size_of::<Option<(u32, Since)>>(), 8);
    }
}
