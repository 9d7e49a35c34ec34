//! The way between the shards and the NATS core: for each shard a ring there and a ring back, and bells for those who sleep.
//!
//! A shard never waits for the core. It asks [`Port::has_room`] before it takes a message for NATS, and whoever publishes is told when there is none; what it has
//! taken always goes in, a batch beyond the bound at most. The core never waits for a shard either: a message that finds no room on its way in is
//! dropped and counted, as core NATS itself does with readers that are behind.
//!
//! ## Bells
//! Waking costs a system call, so a bell is rung once however much comes until it is answered. Who rings pushes first and then swaps the flag; who answers swaps it back and
//! then takes everything. Both are read-modify-writes of one flag, so whoever comes second sees what the first did before it: a push behind
//! the last look finds the flag down and rings. Who answers may read an old flag that is down and leave it: a flag that is up was put up before a call that has not
//! been heard yet, and who hears that call sees it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::status::{Count, Status};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::position::Position;
use crate::proto::ws::MessageKind;
use crate::sync::{Consumer, Producer, PushError, RingBuffer};

/// A message on its way to NATS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Where to.
    pub subject: Arc<str>,
    /// The payload.
    pub payload: Bytes,
    /// Text or binary.
    pub kind: MessageKind,
    /// The name of the event, if its publisher gave one.
    pub event: Option<Box<str>>,
    /// What it replaces older messages by.
    pub key: Option<Box<str>>,
    /// Where a stream is to give it its place: what that needs to know. It counts against the outbox until the stream has answered.
    pub tracked: Option<Box<Tracked>>,
}

/// What is told of a message that a stream keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracked {
    /// Who has said it.
    pub sender: ConnId,
    /// Whom the shard has to answer; none where only a failure is told, to the sender.
    pub token: Option<u64>,
    /// The idempotency key.
    pub id: Option<Box<str>>,
    /// The sender does not want it back.
    pub no_echo: bool,
}

/// A message from NATS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incoming {
    /// The topic, as its home shard calls it.
    pub topic: TopicKey,
    /// The payload.
    pub payload: Bytes,
    /// Text or binary.
    pub kind: MessageKind,
    /// The name of the event.
    pub event: Option<Box<str>>,
    /// What it replaces older messages by.
    pub key: Option<Box<str>>,
    /// Its place, where a stream has given it one.
    pub numbered: Option<Numbered>,
}

/// The place of a message in a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbered {
    /// Its sequence there.
    pub offset: u64,
    /// Who has said it, if it was said to this node.
    pub sender: Option<ConnId>,
    /// And does not want it back.
    pub no_echo: bool,
}

/// What a shard is told by the core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A message.
    Message(Incoming),
    /// Messages of this topic may be missing: what comes next is after this position.
    Lost {
        /// The topic, as its home shard calls it.
        topic: TopicKey,
        /// The position.
        to: Position,
    },
    /// Everything of this topic that lies after the position that was asked for comes from now on, and what was read of it before has come.
    Begun {
        /// The topic.
        topic: TopicKey,
    },
    /// What became of a message that was to be kept.
    Answer {
        /// Of which one.
        token: u64,
        /// What.
        answer: Answer,
    },
    /// A message of this connection, which wants no answers, was not kept.
    Untaken {
        /// The connection, of this shard.
        conn: ConnKey,
    },
    /// Messages of the past.
    Fetched {
        /// Which request for them.
        token: u64,
        /// The messages.
        fetched: Box<Fetched>,
    },
}

/// What became of a message that was to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The stream has it.
    Stored {
        /// Where.
        position: Position,
        /// It had it before.
        duplicate: bool,
    },
    /// The stream does not take it.
    Refused {
        /// Why, in the server's words.
        why: Box<str>,
    },
    /// Nobody knows: the stream has not answered in time.
    Unanswered,
}

/// Messages of a topic's past, from the stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fetched {
    /// The messages, the oldest first.
    pub messages: Vec<Incoming>,
    /// Everything up to this offset is among them, or does not exist.
    pub reached: u64,
    /// What the stream has lost of the range asked for lies at or before this offset.
    pub lost_to: Option<u64>,
    /// It could not be asked.
    pub failed: bool,
}

/// What a shard asks of the core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Send this.
    Publish(Outgoing),
    /// What is published to this subject is for this topic from now on.
    Subscribe {
        /// The topic, as its home shard calls it.
        topic: TopicKey,
        /// What it is called in NATS.
        subject: Arc<str>,
        /// Where a stream gives messages their places: what comes after this is wanted.
        after: Option<Position>,
    },
    /// What a stream keeps of a topic, from after one offset up to another.
    Fetch {
        /// What the answer is called.
        token: u64,
        /// What the topic is called in NATS.
        subject: Arc<str>,
        /// Where it begins, and in which epoch.
        after: Position,
        /// Where it ends.
        upto: u64,
    },
    /// Nobody here wants this topic any more.
    Unsubscribe {
        /// The topic.
        topic: TopicKey,
    },
}

/// Bytes that an entry takes besides its payload.
const ENTRY_BYTES: u64 = 128;

impl Outgoing {
    fn cost(&self) -> u64 {
        self.payload.len() as u64 + ENTRY_BYTES
    }
}

impl Incoming {
    fn cost(&self) -> u64 {
        self.payload.len() as u64 + ENTRY_BYTES
    }
}

impl Notice {
    fn cost(&self) -> u64 {
        match self {
            Self::Message(message) => message.cost(),
            Self::Fetched { fetched, .. } => ENTRY_BYTES + fetched.messages.iter().map(Incoming::cost).sum::<u64>(),
            Self::Lost { .. } | Self::Begun { .. } | Self::Answer { .. } | Self::Untaken { .. } => ENTRY_BYTES,
        }
    }
}

/// Whether somebody is to be woken. On cache lines of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Bell {
    /// Something was pushed. Whether it is this caller who has to wake the other side.
    fn ring(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// The other side is up, and is about to look.
    fn answer(&self) {
        if self.0.load(Ordering::Relaxed) {
            self.0.swap(false, Ordering::AcqRel);
        }
    }
}

/// What one shard's two ends share.
#[derive(Debug, Default)]
struct Lane {
    /// For the shard.
    bell: Bell,
    /// Bytes and entries on their way to the core, and bytes on their way back.
    out_bytes: Count,
    out_entries: Count,
    in_bytes: Count,
}

/// What all ends share.
pub struct LinkShared {
    /// What is known of the connection.
    pub status: Status,
    lanes: Box<[Lane]>,
    /// For the core.
    bell: Bell,
    rouse: Box<dyn Fn() + Send + Sync>,
    outbox_messages_max: u64,
    outbox_bytes_max: u64,
    inbox_bytes_max: u64,
    subscriptions_max: u64,
}

impl fmt::Debug for LinkShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkShared").field("status", &self.status).finish_non_exhaustive()
    }
}

impl LinkShared {
    /// Bytes that wait to be handed to the connection.
    pub fn outbox_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.out_bytes.value()).sum()
    }

    /// How many messages these are.
    pub fn outbox_entries(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.out_entries.value()).sum()
    }

    /// Says to the core that there is something to do.
    fn rouse(&self) {
        if self.bell.ring() {
            (self.rouse)();
        }
    }

    /// Asks the server for a word, behind everything that shards have given to the core. When `Status::answered` is the number that is returned here, the
    /// server has handled all of that. It may never be: who may not ask, or is heard by somebody who listens to everything, gets no answer.
    pub fn ask_server(&self) -> u64 {
        let asked = self.status.ask();
        (self.rouse)();
        asked
    }

    /// The process ends: see [`Status::stop`].
    pub fn stop(&self) {
        self.status.stop();
        (self.rouse)();
    }
}

/// A shard's end.
pub struct Port {
    shard: ShardId,
    requests: Producer<Request>,
    /// Requests that the ring did not take, behind everything in it: a batch of messages at most, and what shards ask of the past.
    overflow: VecDeque<Request>,
    /// Topics that are to be asked for, and no longer. What is taken back before it was said is not said at all, so that comings and goings do not add up
    /// while nobody takes them.
    to_subscribe: BTreeMap<TopicKey, (Arc<str>, Option<Position>)>,
    to_unsubscribe: Vec<TopicKey>,
    /// Whether the ring got something since the last flush.
    fresh: bool,
    incoming: Consumer<Notice>,
    shared: Arc<LinkShared>,
}

/// The core's end of one shard's way.
pub struct CoreLane {
    /// The shard.
    pub shard: ShardId,
    requests: Consumer<Request>,
    incoming: Producer<Notice>,
    shared: Arc<LinkShared>,
}

/// Joins `shards` shards to a core; `rouse` wakes it, from any thread.
pub fn link(shards: u16, limits: &Limits, node: u64, rouse: impl Fn() + Send + Sync + 'static) -> (Vec<Port>, Vec<CoreLane>) {
    let shared = Arc::new(LinkShared {
        status: Status::new(node),
        lanes: (0..shards).map(|_| Lane::default()).collect(),
        bell: Bell::default(),
        rouse: Box::new(rouse),
        outbox_messages_max: limits.nats_outbox_messages,
        outbox_bytes_max: limits.nats_outbox_bytes_max,
        inbox_bytes_max: limits.nats_inbox_bytes_max,
        subscriptions_max: limits.nats_subscriptions_max,
    });
    let ends = (0..shards).map(ShardId).map(|shard| {
        let (requests, requests_out) = RingBuffer::new(limits.nats_outbox_messages as usize);
        let (incoming_in, incoming) = RingBuffer::new(limits.nats_inbox_messages as usize);
        (
            Port {
                shard,
                requests,
                overflow: VecDeque::new(),
                to_subscribe: BTreeMap::new(),
                to_unsubscribe: Vec::new(),
                fresh: false,
                incoming,
                shared: Arc::clone(&shared),
            },
            CoreLane { shard, requests: requests_out, incoming: incoming_in, shared: Arc::clone(&shared) },
        )
    });
    ends.unzip()
}

impl Port {
    fn lane(&self) -> &Lane {
        &self.shared.lanes[self.shard.index()]
    }

    /// What all ends share.
    pub fn shared(&self) -> &Arc<LinkShared> {
        &self.shared
    }

    /// What is known of the connection.
    pub fn status(&self) -> &Status {
        &self.shared.status
    }

    /// Whether messages for NATS may be taken. A batch that was begun may then be taken whole.
    pub fn has_room(&self) -> bool {
        let lane = self.lane();
        self.overflow.is_empty()
            && lane.out_bytes.value() < self.shared.outbox_bytes_max
            && lane.out_entries.value() < self.shared.outbox_messages_max
    }

    /// Takes a message for NATS. The caller has asked whether there is room.
    pub fn publish(&mut self, message: Outgoing) {
        let lane = self.lane();
        lane.out_bytes.add(message.cost());
        lane.out_entries.add(1);
        self.request(Request::Publish(message));
    }

    /// Asks for messages of the past. Who asks bounds how many requests there are.
    pub fn fetch(&mut self, token: u64, subject: Arc<str>, after: Position, upto: u64) {
        self.request(Request::Fetch { token, subject, after, upto });
    }

    fn request(&mut self, request: Request) {
        let refused = if self.overflow.is_empty() { self.push(request) } else { Err(request) };
        if let Err(request) = refused {
            self.overflow.push_back(request);
        }
    }

    /// Asks NATS for a topic, if as many as may be are not asked for already; of a stream, for what comes after a position.
    #[must_use]
    pub fn subscribe(&mut self, topic: TopicKey, subject: Arc<str>, after: Option<Position>) -> bool {
        let may = self.shared.status.subscriptions.take_below(self.shared.subscriptions_max);
        if may {
            self.to_subscribe.insert(topic, (subject, after));
        }
        may
    }

    /// Ends that. To be said once for each topic that is asked for.
    pub fn unsubscribe(&mut self, topic: TopicKey) {
        self.shared.status.subscriptions.sub(1);
        if self.to_subscribe.remove(&topic).is_none() {
            self.to_unsubscribe.push(topic);
        }
    }

    fn push(&mut self, request: Request) -> Result<(), Request> {
        self.requests.push(request).map_err(|PushError::Full(request)| request)?;
        self.fresh = true;
        Ok(())
    }

    /// Moves what waits here into the ring as far as it has room, and rouses the core. To be called once a turn.
    pub fn flush(&mut self) {
        while !self.requests.is_full()
            && let Some(request) = self.overflow.pop_front()
        {
            let taken = self.push(request);
            assert!(taken.is_ok(), "a ring that has room takes a message: only this side fills it");
        }
        while !self.requests.is_full()
            && let Some(topic) = self.to_unsubscribe.pop()
        {
            let taken = self.push(Request::Unsubscribe { topic });
            assert!(taken.is_ok(), "as above");
        }
        // A topic that is asked for again has said before that it is not wanted, and that goes first.
        while !self.requests.is_full()
            && self.to_unsubscribe.is_empty()
            && let Some((topic, (subject, after))) = self.to_subscribe.pop_first()
        {
            let taken = self.push(Request::Subscribe { topic, subject, after });
            assert!(taken.is_ok(), "as above");
        }
        if std::mem::take(&mut self.fresh) {
            self.shared.rouse();
        }
    }

    /// Whether something waits here for room in the ring: the shard looks again soon by itself.
    pub fn overflows(&self) -> bool {
        !self.overflow.is_empty() || !self.to_unsubscribe.is_empty() || !self.to_subscribe.is_empty()
    }

    /// The shard is up: what comes from now on wakes it again. To be called before [`receive`](Self::receive), once a turn.
    pub fn answer_bell(&self) {
        self.lane().bell.answer();
    }

    /// The next notice of NATS, mostly a message.
    pub fn receive(&mut self) -> Option<Notice> {
        let incoming = self.incoming.pop().ok()?;
        self.lane().in_bytes.sub(incoming.cost());
        Some(incoming)
    }

    /// Whether there is one.
    pub fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }
}

impl CoreLane {
    /// What all ends share.
    pub fn shared(&self) -> &Arc<LinkShared> {
        &self.shared
    }

    /// The core is up: what comes from now on rouses it again. To be called before it looks through all lanes.
    pub fn answer_bell(&self) {
        self.shared.bell.answer();
    }

    /// What the shard asks next.
    pub fn take(&mut self) -> Option<Request> {
        let request = self.requests.pop().ok()?;
        if let Request::Publish(message) = &request
            && message.tracked.is_none()
        {
            self.settle(message);
        }
        Some(request)
    }

    /// A message does not count against the outbox any more.
    pub fn settle(&self, message: &Outgoing) {
        let lane = &self.shared.lanes[self.shard.index()];
        lane.out_bytes.sub(message.cost());
        lane.out_entries.sub(1);
    }

    /// Something else is to be seen by the shard, such as another state of the connection: calls `wake` if it may sleep.
    pub fn nudge(&self, wake: impl FnOnce(ShardId)) {
        if self.shared.lanes[self.shard.index()].bell.ring() {
            wake(self.shard);
        }
    }

    /// Puts a message on its way to the shard, and calls `wake` if that one may sleep. Whether there was room.
    pub fn deliver(&mut self, message: Incoming, wake: impl FnOnce(ShardId)) -> bool {
        self.push(Notice::Message(message), 0, wake).is_ok()
    }

    /// The same for a notice that will come again until there is room: an empty inbox takes one of any size.
    ///
    /// # Errors
    /// The notice, when there is no room.
    pub fn insist(&mut self, notice: Notice, wake: impl FnOnce(ShardId)) -> Result<(), Notice> {
        self.push(notice, u64::MAX, wake)
    }

    fn push(&mut self, notice: Notice, empty_takes: u64, wake: impl FnOnce(ShardId)) -> Result<(), Notice> {
        let lane = &self.shared.lanes[self.shard.index()];
        let (cost, held) = (notice.cost(), lane.in_bytes.value());
        let max = if held == 0 { self.shared.inbox_bytes_max.max(empty_takes) } else { self.shared.inbox_bytes_max };
        if held + cost > max {
            return Err(notice);
        }
        lane.in_bytes.add(cost);
        if let Err(PushError::Full(notice)) = self.incoming.push(notice) {
            lane.in_bytes.sub(cost);
            return Err(notice);
        }
        if lane.bell.ring() {
            wake(self.shard);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const KEY: TopicKey = TopicKey { slot: 7, generation: std::num::NonZeroU32::MIN };

    fn limits() -> Limits {
        Limits {
            nats_outbox_messages: 4,
            nats_outbox_bytes_max: 4096,
            nats_inbox_messages: 4,
            nats_inbox_bytes_max: 4096,
            ..Limits::default()
        }
    }

    /// One shard and its core, and how often the core was roused.
    fn pair(limits: &Limits) -> (Port, CoreLane, Arc<AtomicUsize>) {
        let roused = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&roused);
        let (mut ports, mut lanes) = link(1, limits, 1, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (ports.remove(0), lanes.remove(0), roused)
    }

    fn outgoing(payload: &[u8]) -> Outgoing {
        Outgoing {
            subject: Arc::from("a.b"),
            payload: Bytes::copy_from_slice(payload),
            kind: MessageKind::Text,
            event: None,
            key: None,
            tracked: None,
        }
    }

    fn incoming(bytes: usize) -> Incoming {
        Incoming { topic: KEY, payload: Bytes::from(vec![b'x'; bytes]), kind: MessageKind::Binary, event: None, key: None, numbered: None }
    }

    #[test]
    fn a_batch_that_was_begun_goes_in_whole_and_then_there_is_no_room() {
        let (mut port, mut lane, roused) = pair(&limits());
        assert!(port.has_room());
        (0..6_u8).for_each(|n| port.publish(outgoing(&[n])));
        assert!(!port.has_room() && port.overflows());
        port.flush();
        port.flush();
        assert_eq!(roused.load(Ordering::Relaxed), 1, "it was not answered yet");
        let mut seen = Vec::new();
        while seen.len() < 6 {
            lane.answer_bell();
            while let Some(Request::Publish(message)) = lane.take() {
                seen.push(message.payload[0]);
            }
            port.flush();
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        assert_eq!(roused.load(Ordering::Relaxed), 2);
        assert_eq!((port.has_room(), port.shared().outbox_bytes(), port.shared().outbox_entries()), (true, 0, 0));
    }

    #[test]
    fn bytes_are_bounded_as_entries_are() {
        let (mut port, mut lane, _) = pair(&limits());
        port.publish(outgoing(&[0; 4000]));
        assert!(!port.has_room());
        assert!(lane.take().is_some() && port.has_room());
    }

    #[test]
    fn what_finds_no_room_on_its_way_in_is_given_up() {
        let (mut port, mut lane, _) = pair(&limits());
        let mut woken = 0;
        assert!(!lane.deliver(incoming(4096), |_| woken += 1), "over the bytes");
        assert!((0..4).all(|_| lane.deliver(incoming(1), |_| woken += 1)));
        assert!(!lane.deliver(incoming(1), |_| woken += 1), "over the entries");
        assert_eq!(woken, 1);
        port.answer_bell();
        while port.receive().is_some() {}
        assert!(!port.has_incoming());
        assert!(lane.deliver(incoming(3000), |_| woken += 1), "what was taken counts no more");
        assert_eq!(woken, 2);
    }

    #[test]
    fn topics_are_asked_for_up_to_the_bound() {
        let (mut port, mut lane, _) = pair(&Limits { nats_subscriptions_max: 1, ..limits() });
        assert!(port.subscribe(KEY, Arc::from("a"), None));
        assert!(!port.subscribe(KEY, Arc::from("b"), None));
        port.flush();
        port.unsubscribe(KEY);
        assert!(port.subscribe(KEY, Arc::from("c"), None));
        port.flush();
        assert_eq!(lane.take(), Some(Request::Subscribe { topic: KEY, subject: Arc::from("a"), after: None }));
        assert_eq!(lane.take(), Some(Request::Unsubscribe { topic: KEY }));
        assert_eq!(lane.take(), Some(Request::Subscribe { topic: KEY, subject: Arc::from("c"), after: None }));
    }

    #[test]
    fn comings_and_goings_do_not_add_up_while_nobody_takes_them() {
        let (mut port, mut lane, _) = pair(&limits());
        for _ in 0..1000 {
            assert!(port.subscribe(KEY, Arc::from("a"), None));
            port.unsubscribe(KEY);
            if port.has_room() {
                port.publish(outgoing(b"x"));
            }
            port.flush();
        }
        assert!(port.subscribe(KEY, Arc::from("a"), None));
        // Of a batch that was begun when there was room.
        port.publish(outgoing(b"x"));
        port.flush();
        assert_eq!((port.to_subscribe.len(), port.to_unsubscribe.len(), port.overflow.len()), (1, 0, 1));
        while let Some(Request::Publish(_)) = lane.take() {}
        port.flush();
        assert!(!port.overflows());
        let mut rest = Vec::new();
        rest.extend(std::iter::from_fn(|| lane.take()));
        assert_eq!(rest.last(), Some(&Request::Subscribe { topic: KEY, subject: Arc::from("a"), after: None }));
    }

    /// Two threads, each asleep until it is roused: one that sleeps with something in its ring hangs, and the test with it.
    #[test]
    fn nobody_sleeps_with_something_to_take() {
        const MESSAGES: u64 = 20_000;
        let main = thread::current();
        let core_thread = Arc::new(std::sync::OnceLock::<thread::Thread>::new());
        let to_rouse = Arc::clone(&core_thread);
        let rouse = move || {
            if let Some(thread) = to_rouse.get() {
                thread.unpark();
            }
        };
        let (mut ports, mut lanes) = link(1, &limits(), 1, rouse);
        let (mut port, mut lane) = (ports.remove(0), lanes.remove(0));
        let core = thread::spawn(move || {
            let mut taken = 0;
            while taken < MESSAGES {
                lane.answer_bell();
                let mut idle = true;
                while let Some(request) = lane.take() {
                    assert_eq!(request, Request::Publish(outgoing(&taken.to_le_bytes())));
                    taken += 1;
                    idle = false;
                    while !lane.deliver(incoming(1), |_| main.unpark()) {
                        thread::yield_now();
                    }
                }
                if idle {
                    thread::park();
                }
            }
        });
        core_thread.get_or_init(|| core.thread().clone());
        let (mut sent, mut received) = (0_u64, 0);
        while received < MESSAGES {
            port.answer_bell();
            let mut idle = true;
            while port.receive().is_some() {
                received += 1;
                idle = false;
            }
            while sent < MESSAGES && port.has_room() && sent - received < 64 {
                port.publish(outgoing(&sent.to_le_bytes()));
                sent += 1;
                idle = false;
            }
            port.flush();
            // As the shard does while something waits for room.
            if idle && sent < MESSAGES {
                // For room there is no bell: a shard looks again soon while something waits for it.
                thread::park_timeout(std::time::Duration::from_millis(1));
            } else if idle {
                thread::park();
            }
        }
        core.join().expect("the core has taken everything in order");
    }
}
