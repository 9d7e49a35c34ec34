//! One shard's clients: joins protocol, engine and hub into the life of a connection.
//!
//! [`Gateway`] owns a driver and everything its connections need. Its loop is two calls: [`Gateway::wait`] hands requests to the driver
//! and waits; [`Gateway::step`] handles what happened and works off what is due. Who calls them: `server::shard`.
//!
//! | file | what of the gateway it holds |
//! |---|---|
//! | `admission` | accepting, caps, the balance between shards |
//! | `requests`, `endpoints` | request heads, and what is answered to them |
//! | `intake` | bytes as they come, pauses, the peer's end |
//! | `frames` | WebSocket input: messages, control frames, pauses |
//! | `rooms`, `topic`, `places` | joining, leaving, publishing; who still finds room |
//! | `json`, `batches`, `presence`, `wildcards` | WebSockets that speak `shardcast.v1.json`; many messages as one frame; who is in a topic; topics by what they begin with |
//! | `fanout`, `thinning`, `conflation` | laps over a topic's members; what is left out for those that are slow |
//! | `peers`, `bridge` | messages between shards; to NATS and from there |
//! | `egress` | what a connection is sent next, and the close sequence |
//! | `budget` | when clients that are lost or turned away are asked to come back |
//! | `clients`, `rate` | who clients are; how many may come, and how much they may say |
//! | `snapshot`, `handover` | what outlives a planned restart, out and in; and the connections that do |
//! | `timeouts`, `drain` | deadlines; goodbyes, in a shutdown and when clients are handed to others |
//! | `inspect`, `dismissal` | what an operator asks, and what it has done to clients |
#![forbid(unsafe_code)]

mod admission;
mod batches;
mod bridge;
mod budget;
mod clients;
pub mod close_cause;
mod conflation;
pub mod counters;
mod dismissal;
mod drain;
mod egress;
mod endpoints;
mod fanout;
mod feed;
mod forms;
mod frames;
mod handover;
mod history;
pub mod inspect;
mod intake;
mod json;
mod listing;
mod log_limit;
mod pages;
mod past;
mod peers;
mod places;
mod polls;
mod presence;
mod publishing;
mod rate;
mod receipts;
mod replay;
mod requests;
mod rooms;
mod seats;
mod seldom;
mod sequenced;
mod session;
mod shared;
mod snapshot;
pub mod state_stream;
mod streams;
mod thinning;
mod timeouts;
mod topic;
mod wildcards;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::bus::link::Port;
use crate::engine::driver::{Driver, Event, Wait};
use crate::engine::mailbox::Mailbox;
use crate::engine::segment::{Arena, Gather, Range, Ranges};
use crate::engine::slab::SideTable;
use crate::engine::sys::{self, Listener};
use crate::engine::timers::{TICK, TimerWheel};
use crate::gateway::admission::Admission;
use crate::gateway::batches::DueBatches;
use crate::gateway::bridge::Bridge;
use crate::gateway::budget::Budget;
use crate::gateway::clients::counts_addresses;
use crate::gateway::counters::Counters;
use crate::gateway::drain::{Drain, Farewells};
use crate::gateway::feed::FeedKey;
use crate::gateway::forms::Maker;
use crate::gateway::history::Past;
use crate::gateway::inspect::{Desk, Inquiry};
use crate::gateway::log_limit::LogLimit;
use crate::gateway::presence::PresenceDesk;
use crate::gateway::publishing::Keys;
use crate::gateway::rate::{Rate, Said};
use crate::gateway::receipts::{AwaitedReceipts, Counting};
use crate::gateway::replay::Asked;
use crate::gateway::seats::Seats;
use crate::gateway::session::Session;
use crate::gateway::topic::{Role, Topic};
use crate::gateway::wildcards::Wildcards;
use crate::hub::{Directory, Placement};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::client_address::Prefix;
use crate::proto::pattern::Pattern;
use crate::proto::position::Epoch;
use crate::proto::slow::SlowRules;
use crate::proto::subject::Rules;
use crate::proto::topic::TopicName;
use crate::proto::ws::frame::server_header;
use crate::proto::ws::{Inflater, OpCode};
use crate::time::Time;

pub use clients::{AddressSource, Addressing};
pub use dismissal::Word;
pub use handover::Inheritance;
pub use listing::Listing;
pub use pages::Page;
pub use peers::ShardMessage;
pub use places::Places;
pub use presence::{Question, Step};
pub use publishing::{Ack, Offer, Receipt, Ticket};
pub use rate::{OverRate, Scope};
pub use receipts::SentCounts;
pub use replay::Replay;
pub use seats::Guest;
pub use shared::Shared;
pub use snapshot::{CHUNK_SOCKETS, Chunk, KeptMessage, KeptTopic, Snapshot, UsedKey};

/// A ping without a payload (RFC 6455 section 5.5.2).
fn ping(shared: &Shared) -> Rc<Gather> {
    let (header, len) = server_header(OpCode::Ping, 0);
    Rc::new(Gather::new(Ranges::from_buf([Arena::new(1, 1, &shared.memory).append(&header[..len], &[])])))
}

/// What the rest of the process tells a shard.
#[derive(Debug)]
pub enum Command {
    /// Stop accepting, say goodbye to everybody, finish by the deadline. In a drain that is under way only `exits` says something new.
    Drain {
        /// Over how long goodbyes are spread.
        window: Duration,
        /// When what is left is reset.
        deadline: Time,
        /// The process ends when everybody is gone.
        exits: bool,
    },
    /// Accept again, on another listener. To be said when all shards have closed theirs ([`Shared::all_closed`]).
    CallOff {
        /// Where.
        listener: Listener,
    },
    /// Tell a share of the WebSockets and streams to come back. To be said when [`Shared::begin_rebalancing`] has allowed it.
    Rebalance {
        /// How many of a million.
        share_ppm: u32,
        /// Over how long goodbyes are spread.
        window: Duration,
    },
    /// Answer the operator, or do something to clients for it.
    Inspect(Box<Inquiry>),
    /// Take nothing in and give nothing out, and work off what there is, until [`Shared::all_still`]; the listener goes to `listener`, to be shared.
    Freeze {
        /// There.
        listener: Sender<io::Result<Option<OwnedFd>>>,
    },
    /// Give out everything that another process needs to go on. To be said when all shards are still.
    HandOver {
        /// The time now, in milliseconds since 1970.
        unix_ms: u64,
        /// Where it goes.
        to: Sender<Chunk>,
    },
    /// Go on with this, once all shards of this process are still again and thawed.
    Inherit {
        /// What another process had.
        inheritance: Box<Inheritance>,
        /// Where it is said that this has begun.
        begun: Sender<()>,
    },
    /// Go on, and accept on this listener if there is none.
    Thaw {
        /// Where.
        listener: Option<Listener>,
    },
}

/// Whether a shard goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is, or will be, more to do.
    Continue,
    /// Drained, for the process to end: every connection of it is gone, or the deadline has passed.
    Finished,
}

/// What a shard is made of, besides its driver.
pub struct Parts {
    /// Which shard.
    pub shard: ShardId,
    /// The life of this process's offsets.
    pub epoch: Epoch,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// This shard's counters.
    pub counters: Arc<Counters>,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// Allowed origins of browsers; none means that `Origin` must match `Host`.
    pub origins: Arc<[String]>,
    /// permessage-deflate is agreed to where it is offered.
    pub compression: bool,
    /// How clients' addresses are found.
    pub addressing: Arc<Addressing>,
    /// What becomes of slow readers.
    pub slow: Arc<SlowRules>,
    /// Topics of which it is told who is in them.
    pub presence: Arc<[Pattern]>,
    /// Whether clients may subscribe to all topics whose names begin with something.
    pub wildcards: bool,
    /// What the gateway serves from its binary.
    pub pages: Arc<[Page]>,
    /// Where topics live.
    pub placement: Placement,
    /// Ways to the other shards.
    pub mailbox: Mailbox<ShardMessage>,
    /// The way to NATS, and which topics go it.
    pub bridge: Option<(Port, Arc<Rules>)>,
    /// Commands from the rest of the process.
    pub commands: Receiver<Command>,
    /// Seed of everything random here: jitter and hints.
    pub seed: u64,
    /// It begins frozen, as its driver does.
    pub frozen: bool,
}

/// Counts of what a shard holds for its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// Connections of the driver, closing ones included.
    pub connections: usize,
    /// Connections of the gateway.
    pub sessions: usize,
    /// Deadlines set.
    pub timers: usize,
    /// Topics, those that live on other shards included.
    pub topics: usize,
    /// Topics whose fan-out is under way.
    pub laps: usize,
    /// Seats of streams and polls.
    pub seats: usize,
    /// Members-to-be of topics: those who are given what was before they came, and those who wait for a topic's home.
    pub guests: usize,
    /// Receipts that wait until a message was sent to everyone.
    pub receipts: usize,
    /// Requests, pieces of histories, and connections whose peer has gone, that wait for their turn.
    pub queued: usize,
    /// Polls that have something to be answered with.
    pub ready_polls: usize,
    /// Topics with a history.
    pub histories: usize,
    /// Idempotency keys, the only thing that is not a client's: they are there until they are old, or too many (limits.idempotency_keys).
    pub keys: usize,
    /// Publishers that wait for their turn or for memory.
    pub waiting_publishers: usize,
    /// Messages of other shards that wait to be received.
    pub unread: usize,
    /// Messages to other shards that wait for room.
    pub unsent: usize,
    /// What concerns NATS: topics that it is asked for, messages and publishers that wait for it, requests for the past.
    pub of_nats: usize,
}

/// Messages from other shards that one step handles.
const MAILBOX_BUDGET: usize = 256;
/// How often a shard looks whether another one's queue has room again, or memory is free again.
const POLL: Duration = Duration::from_millis(1);
/// So much later than asked for is a step late: the shard was not let run, or an earlier one took that long.
const LATE: Duration = Duration::from_millis(100);
/// How often a shard looks whether receipts have waited long enough.
const RECEIPTS: Duration = Duration::from_millis(10);
/// How often memory kept for frames to come is looked through.
const SWEEP_MS: u64 = 1000;
/// Segments of the direct arena: responses, pongs, echoes.
const DIRECT_SEGMENT_MIN: u32 = 4096;
const DIRECT_SEGMENT_MAX: u32 = 16 * 1024;

/// One shard's clients, topics and duties.
pub struct Gateway<D> {
    driver: D,
    shard: ShardId,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    limits: Arc<Limits>,
    origins: Arc<[String]>,
    compression: bool,
    addressing: Arc<Addressing>,
    slow_rules: Arc<SlowRules>,
    pages: Arc<[Page]>,
    presence: PresenceDesk,
    wildcards: Wildcards,
    placement: Placement,
    mailbox: Mailbox<ShardMessage>,
    bridge: Option<Box<Bridge>>,
    commands: Receiver<Command>,
    random: fastrand::Rng,
    epoch: Epoch,

    now: Time,
    /// When the wait that has begun ends by itself; `None`: never.
    wakes_by: Option<Time>,
    /// The last step came late, and judged no deadlines.
    was_late: bool,
    events: Vec<Event>,
    /// How many of them were handled, where a turn's messages were too many for one step.
    handled: usize,
    /// Messages of clients that this step may still take.
    messages_left: u64,
    /// Connections that it may still take down.
    teardowns_left: u64,
    /// Request heads that it may still answer, and bytes of histories that it may give out.
    requests_left: u64,
    replay_bytes_left: u64,
    sessions: SideTable<Session>,
    seats: Seats,
    timers: TimerWheel,
    fired: Vec<u32>,
    topics: Directory<TopicName, Topic>,
    direct: Arena,
    /// Bytes for one connection that are about to be sent.
    staged: Option<(ConnKey, Range)>,
    /// The ping frame, the same for everyone.
    ping: Rc<Gather>,
    scratch: Vec<u8>,
    /// Makes messages into the forms in which they are sent.
    maker: Maker,
    /// Inflates clients' messages, once there were any; and how many bytes of them this step still may.
    inflater: Option<Box<Inflater>>,
    inflate_left: u64,

    /// Topics on a lap, in the order of their turns.
    laps: VecDeque<FeedKey>,
    /// Topics whose lap waits for somebody, and when they have another turn anyway.
    parked: Vec<FeedKey>,
    due_batches: DueBatches,
    next_unpark: Time,
    /// Topics that may have something for another shard.
    dispatches: VecDeque<TopicKey>,
    /// Topics that may hold memory for frames to come.
    warm: Vec<TopicKey>,
    /// Topics with a history, in the order in which they are looked through.
    histories: VecDeque<TopicKey>,
    /// Where the offsets of topics that are gone have ended.
    past: Past,
    /// Idempotency keys of topics whose home is here.
    keys: Keys,
    /// Receipts that wait until a message was sent to everyone.
    awaited: AwaitedReceipts,
    /// What is counted for them here.
    counts: VecDeque<Counting>,
    /// Topics whose members were joined or left.
    recounts: Vec<TopicKey>,
    /// Connections whose peer has gone, with an error or without, and that wait for their turn.
    leavers: VecDeque<(ConnKey, Option<io::Error>)>,
    /// Connections whose request waits for its turn.
    callers: VecDeque<ConnKey>,
    /// The one whose turn it is.
    called: Option<ConnKey>,
    /// Guests whose next piece of a history waits for its turn.
    asked: VecDeque<Asked>,
    /// Polls that have something to be answered with.
    ready_polls: Vec<ConnKey>,
    /// Publishers whose topic takes messages again.
    woken: Vec<ConnKey>,
    /// Publishers to wake when queued messages take less memory.
    memory_waiters: Vec<ConnKey>,
    next_relief: Time,
    /// Sends started in this step: those still in flight at the next one wait for their peers.
    recent_sends: Vec<ConnKey>,
    /// Connections found too slow while their topic was borrowed.
    slow: Vec<ConnKey>,
    admission: Admission,
    budget: Budget,
    /// What connections are counted for, where there are bounds to addresses.
    prefixes: SideTable<Prefix>,
    /// What connections have said, where there are bounds to it.
    said: SideTable<Said>,
    /// WebSockets and streams opened.
    opened: Rate,
    drain: Option<Drain>,
    rebalance: Option<Farewells>,
    /// What the operator asks.
    desk: Desk,
    next_sweep: Time,
    /// Messages of other shards so far.
    mail_received: u64,
    /// Nothing comes in and nothing goes out (`handover`).
    frozen: bool,
    /// What came from connections that were inherited, and is handled when it is thawed.
    unread: Vec<(ConnKey, Vec<u8>)>,
    /// Connections came or went, or messages did, since the last sweep; the same for the second before it.
    busy: bool,
    was_busy: bool,
    log: LogLimit,
}

impl<D: Driver> Gateway<D> {
    /// A gateway that serves what `driver` brings.
    pub fn new(driver: D, parts: Parts, now: Time) -> Self {
        let limits = parts.limits;
        let maker = Maker::new(&limits, &parts.counters);
        Self {
            driver,
            shard: parts.shard,
            counters: parts.counters,
            origins: parts.origins,
            compression: parts.compression,
            addressing: parts.addressing,
            slow_rules: parts.slow,
            pages: parts.pages,
            presence: PresenceDesk::new(parts.presence),
            wildcards: Wildcards::new(parts.wildcards),
            placement: parts.placement,
            mailbox: parts.mailbox,
            bridge: parts.bridge.map(|(port, rules)| Box::new(Bridge::new(port, rules, now))),
            commands: parts.commands,
            random: fastrand::Rng::with_seed(parts.seed),
            epoch: parts.epoch,
            now,
            wakes_by: None,
            was_late: false,
            events: Vec::new(),
            handled: 0,
            messages_left: 0,
            teardowns_left: 0,
            requests_left: 0,
            replay_bytes_left: 0,
            sessions: SideTable::default(),
            seats: Seats::default(),
            timers: TimerWheel::new(TICK, now),
            fired: Vec::new(),
            topics: Directory::default(),
            direct: Arena::new(DIRECT_SEGMENT_MIN, DIRECT_SEGMENT_MAX, &parts.shared.memory),
            staged: None,
            ping: ping(&parts.shared),
            scratch: Vec::new(),
            maker,
            inflater: None,
            inflate_left: 0,
            laps: VecDeque::new(),
            parked: Vec::new(),
            due_batches: DueBatches::new(),
            next_unpark: now,
            dispatches: VecDeque::new(),
            warm: Vec::new(),
            histories: VecDeque::new(),
            past: Past::new(limits.topics_remembered as usize),
            keys: Keys::default(),
            awaited: AwaitedReceipts::default(),
            counts: VecDeque::new(),
            recounts: Vec::new(),
            leavers: VecDeque::new(),
            callers: VecDeque::new(),
            called: None,
            asked: VecDeque::new(),
            ready_polls: Vec::new(),
            woken: Vec::new(),
            memory_waiters: Vec::new(),
            next_relief: now,
            recent_sends: Vec::new(),
            slow: Vec::new(),
            admission: Admission::new(&limits, now),
            // Each shard's times begin elsewhere in the window, or they would come in heaps of as many as there are shards.
            budget: Budget::new(fastrand::Rng::with_seed(!parts.seed).u64(..), now),
            prefixes: SideTable::default(),
            said: SideTable::default(),
            opened: Rate::default(),
            drain: None,
            rebalance: None,
            desk: Desk::default(),
            next_sweep: now,
            mail_received: 0,
            frozen: parts.frozen,
            unread: Vec::new(),
            busy: false,
            was_busy: false,
            log: LogLimit::new(limits.log_lines_per_second, now),
            shared: parts.shared,
            limits,
        }
    }

    /// Hands requests to the driver and waits until something happens or is due.
    ///
    /// # Errors
    /// What means that this shard cannot go on.
    pub fn wait(&mut self) -> io::Result<()> {
        self.begin_wait()?;
        self.end_wait();
        Ok(())
    }

    /// The first half of [`wait`](Self::wait): hands over requests and, where the driver blocks, waits. From here to the second half other shards wake
    /// this one when they send it something.
    ///
    /// # Errors
    /// What means that this shard cannot go on.
    pub fn begin_wait(&mut self) -> io::Result<()> {
        if !self.events.is_empty() {
            return self.driver.submit();
        }
        let mut wait = self.next_wait();
        let stays_awake = match wait {
            Wait::No => false,
            // While a queue to another shard is full this one looks again soon by itself (`next_wait`), and need not be woken.
            _ if self.mailbox.overflow() > 0 => self.mailbox.depth() > 0,
            _ => !self.mailbox.try_sleep(),
        };
        if stays_awake {
            wait = Wait::No;
        }
        self.wakes_by = match wait {
            Wait::No => Some(self.now),
            Wait::For(wait) => Some(self.now + wait),
            Wait::Forever => None,
        };
        self.driver.enter(wait)
    }

    /// The second half of [`wait`](Self::wait): takes in what happened.
    pub fn end_wait(&mut self) {
        if self.events.is_empty() {
            self.driver.collect(&mut self.events);
        }
        self.mailbox.awake();
    }

    /// What this shard holds now; a shard without clients holds nothing but idempotency keys. Looks at every topic.
    pub fn holdings(&self) -> Holdings {
        let mut guests = 0;
        for topic in self.topics.values() {
            guests += topic.guests as usize;
            if let Role::Away(side) = &topic.role {
                guests += side.joining.len();
            }
        }
        Holdings {
            connections: self.driver.connections(),
            sessions: self.sessions.len(),
            timers: self.timers.len(),
            topics: self.topics.len(),
            laps: self.laps.len() + self.parked.len(),
            seats: self.seats.len(),
            guests,
            receipts: self.awaited.len() + self.counts.len(),
            queued: self.leavers.len() + self.callers.len() + self.asked.len() + self.presence.len() + self.wildcards.len(),
            ready_polls: self.ready_polls.len(),
            histories: self.histories.len(),
            keys: self.keys.len(),
            waiting_publishers: self.woken.len() + self.memory_waiters.len(),
            unread: self.unread(),
            unsent: self.mailbox.overflow(),
            of_nats: self.bridge.as_ref().map_or(0, |bridge| bridge.holdings()),
        }
    }

    /// Messages of other shards that wait to be received.
    pub fn unread(&self) -> usize {
        self.mailbox.depth()
    }

    /// Whether something of NATS has come that this shard must be woken for.
    pub fn hears_of_nats(&self) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.hears())
    }

    /// Messages to other shards so far.
    pub fn mail_sent(&self) -> u64 {
        self.mailbox.sent()
    }

    /// Handles what happened and works off what is due. `now` is the one clock reading of the step.
    pub fn step(&mut self, now: Time) -> Progress {
        self.now = now;
        // A shard whose core was taken away after it had collected: what came meanwhile is collected before anybody is judged by the clock.
        let is_late = self.wakes_by.is_some_and(|by| now.since(by) > LATE);
        self.was_late = is_late && !self.was_late;
        self.requests_left = self.limits.requests_per_turn;
        self.teardowns_left = self.limits.teardowns_per_turn;
        self.replay_bytes_left = self.limits.replay_bytes_per_turn;
        if self.frozen {
            self.shared.stir(self.shard);
        }
        self.receive_messages();
        self.handle_events();
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        if !self.frozen && !self.was_late && self.events.is_empty() {
            self.handle_timers();
        }
        self.attend_to_nats();
        self.resume_publishers();
        self.watch_sends();
        self.send_due();
        self.unpark_laps();
        self.run_laps();
        self.see_leavers_off();
        self.go_on_with_replays();
        self.answer_callers();
        self.answer_polls();
        self.look_after_receipts();
        self.attend_to_wildcards();
        self.tell_members();
        self.tell_news();
        self.tell_watchers();
        self.dispatch();
        let mut progress = Progress::Continue;
        if !self.frozen {
            self.tell_changes();
            self.answer_inquiries();
            self.relieve_memory();
            self.sweep();
            progress = self.step_farewells();
        }
        self.counters.loop_turns.add(1);
        self.counters.mailbox_depth.set(self.mailbox.depth() as u64);
        self.flush_to_nats();
        let (mailbox, driver, counters) = (&mut self.mailbox, &mut self.driver, &self.counters);
        mailbox.flush(|shard| {
            counters.wakes.add(1);
            driver.wake(shard);
        });
        if self.frozen {
            self.tell_stillness();
        }
        progress
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Drain { window, deadline, exits } => self.begin_drain(window, deadline, exits),
            Command::CallOff { listener } => self.call_off_drain(listener),
            Command::Rebalance { share_ppm, window } => self.begin_rebalance(share_ppm, window),
            Command::Inspect(inquiry) => self.inquire(*inquiry),
            Command::Freeze { listener } => self.freeze(&listener),
            Command::HandOver { unix_ms, to } => self.hand_over(unix_ms, &to),
            Command::Inherit { inheritance, begun } => self.inherit(*inheritance, &begun),
            Command::Thaw { listener } => self.thaw(listener),
        }
    }

    fn next_wait(&self) -> Wait {
        let is_at_work = !self.laps.is_empty() || !self.dispatches.is_empty() || !self.woken.is_empty();
        let is_asked = !self.callers.is_empty() || !self.asked.is_empty() || (self.is_inquired() && !self.frozen);
        if is_at_work || is_asked || self.presence.is_busy() || self.wildcards.is_busy() || !self.leavers.is_empty() {
            return Wait::No;
        }
        if self.frozen {
            return Wait::For(POLL);
        }
        let poll = (self.mailbox.overflow() > 0 || !self.memory_waiters.is_empty()).then_some(POLL);
        let receipts = (self.awaited.len() > 0 || !self.counts.is_empty()).then_some(RECEIPTS);
        let parked = (!self.parked.is_empty()).then(|| self.next_unpark.since(self.now));
        let sweep = self.needs_sweep().then(|| self.next_sweep.since(self.now));
        let wait = [
            self.timers.next_wait(self.now),
            sweep,
            self.farewell_wait(),
            self.dismissal_wait(),
            self.presence.wait(self.now),
            self.watch_wait(),
            self.bridge_wait(),
            poll,
            parked,
            self.held_wait(),
            receipts,
        ]
        .into_iter()
        .flatten()
        .min();
        match wait {
            Some(wait) if wait.is_zero() => Wait::No,
            Some(wait) => Wait::For(wait),
            None => Wait::Forever,
        }
    }

    fn handle_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.messages_left = self.limits.messages_per_turn;
        self.inflate_left = self.limits.inflate_bytes_per_turn;
        while self.messages_left > 0
            && let Some(event) = events.get_mut(self.handled)
        {
            self.handled += 1;
            self.messages_left = self.messages_left.saturating_sub(self.maker.take_charge());
            match std::mem::replace(event, Event::Woken) {
                Event::Accepted(socket) => self.accepted(socket),
                Event::AcceptPaused(error) => self.accept_paused(&error),
                Event::Received(key, bytes) => self.received(key, bytes),
                Event::PeerClosed(key) => self.leaves(key, None),
                Event::Failed(key, error) => self.leaves(key, Some(error)),
                Event::Sent(key) => self.sent(key),
                Event::Closed(key) => self.closed(key),
                Event::Woken => {}
            }
        }
        if self.handled == events.len() {
            events.clear();
            self.handled = 0;
        }
        self.events = events;
        let starved = self.driver.recv_starved();
        let known = self.counters.recv_starved.value();
        self.counters.recv_starved.add(starved - known);
    }

    /// Lets topics that were quiet for a while give back the memory kept for frames to come.
    fn sweep(&mut self) {
        if self.now < self.next_sweep {
            return;
        }
        self.next_sweep = self.now + Duration::from_millis(SWEEP_MS);
        let now = self.now;
        let topics = &mut self.topics;
        self.warm.retain(|&key| {
            let Some(topic) = topics.get_mut(key) else { return false };
            let quiet = now.since(topic.last_append).as_millis() as u64 >= SWEEP_MS;
            let rested = quiet && topic.rest();
            topic.warm = !rested;
            !rested
        });
        self.expire_histories();
        self.direct.rest();
        self.maker.rest();
        if self.forgets_addresses() {
            self.shared.clients.sweep(self.now);
        }
        if self.was_busy && !self.busy {
            // It has gone quiet: what bursts have left behind in the heap is of no use for now.
            sys::release_freed_memory();
        }
        self.was_busy = std::mem::take(&mut self.busy);
        self.see_clients();
        self.retry_accept();
        self.summarise_log();
    }

    fn needs_sweep(&self) -> bool {
        self.busy
            || self.was_busy
            || !self.warm.is_empty()
            || !self.histories.is_empty()
            || self.admission.is_waiting()
            || self.log.has_suppressed()
            || self.shared.is_over_memory()
            || self.forgets_addresses()
    }

    /// One shard looks for addresses that have nothing any more, for all.
    fn forgets_addresses(&self) -> bool {
        self.shard.0 == 0 && counts_addresses(&self.limits)
    }

    fn id(&self, key: ConnKey) -> ConnId {
        ConnId { shard: self.shard, key }
    }
}
