//! One node's NATS core as a simulation plays it: what `bus::nats`, `reader`, `writer` and `fetch` do with a runtime and a connection, by turns and with a server in memory. What
//! is pure of those is the real thing: the list of what waits for an acknowledgement, and what a reader knows.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::ledger::{Ledger, name_of};
use super::server::{Message, Server};
use super::{Faults, NatsPlan};
use crate::bus::StreamState;
use crate::bus::link::{Answer, CoreLane, LinkShared, Notice, Outgoing, Port, Request, link};
use crate::bus::outstanding::{Outstanding, Waiting};
use crate::bus::reading::Reading;
use crate::bus::status::LinkState;
use crate::engine::sim::World;
use crate::ids::{ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::position::Position;
use crate::time::Time;

/// As in `bus::writer`: how often the clock is looked at, and from when on a connection counts as lost.
const LOOK: Duration = Duration::from_millis(50);
const LOST_MS: u64 = 800;
/// As in `bus::ends`: how often it is looked whether an inbox has room again.
const ROOM: Duration = Duration::from_millis(1);
/// As in `bus::nats`: messages that the client holds, and requests for the past that are asked at once.
const CLIENT_MESSAGES: usize = 256;
const FETCHES: usize = 4;
/// Among so many answers of the server one may come before others.
const REPLIES: usize = 8;
/// How long an answer about the past may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A message that was handed to the client.
struct Sent {
    number: u64,
    id: String,
    message: Message,
}

/// What the server has to say of one.
struct Reply {
    at: Time,
    number: u64,
    subject: Arc<str>,
    verdict: Verdict,
}

/// What it says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Stored { sequence: u64, duplicate: bool },
    NotNow,
    Never,
}

/// What the reader is asked.
enum Ask {
    Subscribe { shard: ShardId, topic: TopicKey, subject: Arc<str>, after: Option<Position> },
    Unsubscribe { shard: ShardId, topic: TopicKey },
}

/// A request for the past.
struct Fetch {
    at: Time,
    fails_at: Time,
    shard: ShardId,
    token: u64,
    subject: Arc<str>,
    after: Position,
    upto: u64,
    /// The answer, which waits for room.
    answer: Option<Notice>,
}

/// Notices of one task on their way to the shards. It does nothing else before the last is in an inbox.
#[derive(Default)]
struct Telling {
    notices: VecDeque<(ShardId, Notice)>,
    again_at: Time,
}

/// What a node may do now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Deed {
    Hear,
    Take(usize),
    Send,
    Serve,
    Stray,
    Judge(usize),
    Ask,
    Open,
    Read,
    TellRead,
    TellJudged,
    Fetch(usize),
    Look,
}

/// The core of one node.
pub(super) struct Node {
    id: u64,
    pub(super) shared: Arc<LinkShared>,
    lanes: Vec<CoreLane>,
    roused: Arc<AtomicBool>,
    /// Lanes that may have requests.
    unlooked: Vec<bool>,
    // The writer.
    outstanding: Outstanding,
    patience_ms: u64,
    may_send: bool,
    looks_at: Time,
    connects_known: u64,
    judged: Telling,
    // The connection.
    pub(super) wire: bool,
    down_since: Option<Time>,
    /// What was handed to the client while there was no connection.
    kept: VecDeque<Sent>,
    up: VecDeque<(Time, Sent)>,
    /// What a lost connection had sent, which the server finds late.
    strays: VecDeque<(Time, Sent)>,
    down: VecDeque<Reply>,
    // The reader.
    asks: VecDeque<Ask>,
    reading: Reading,
    read: Telling,
    opened: bool,
    opens_at: Option<Time>,
    reads_at: Time,
    fetches: Vec<Fetch>,
}

impl Node {
    /// Joins so many shards to a core that is connected and reads.
    pub(super) fn new(id: u64, shards: u16, limits: &Limits, server: &Server, now: Time) -> (Self, Vec<Port>) {
        let roused = Arc::new(AtomicBool::new(false));
        let bell = Arc::clone(&roused);
        let (ports, lanes) = link(shards, limits, id, move || bell.store(true, Ordering::Relaxed));
        let shared = Arc::clone(lanes[0].shared());
        shared.status.set_stream(StreamState::Fits);
        shared.status.set(LinkState::Connected);
        shared.status.connects.add(1);
        let mut node = Self {
            id,
            shared,
            unlooked: vec![false; lanes.len()],
            lanes,
            roused,
            outstanding: Outstanding::default(),
            patience_ms: limits.nats_ack_ms.min(limits.nats_stream_duplicates_ms / 2),
            may_send: false,
            looks_at: now,
            connects_known: 1,
            judged: Telling::default(),
            wire: true,
            down_since: None,
            kept: VecDeque::new(),
            up: VecDeque::new(),
            strays: VecDeque::new(),
            down: VecDeque::new(),
            asks: VecDeque::new(),
            reading: Reading::default(),
            read: Telling::default(),
            opened: true,
            opens_at: None,
            reads_at: now,
            fetches: Vec::new(),
        };
        let at = Position { epoch: server.epoch, offset: server.last };
        node.reading.open(at, false);
        node.shared.status.read.set(at);
        node.shared.status.reading.set(1);
        (node, ports)
    }

    /// What it may do, and when.
    pub(super) fn deeds(&self, server: &Server, faults: &Faults, deeds: &mut Vec<(Time, Deed)>) {
        let answers_at = faults.frozen_until;
        let mut may = |at: Time, deed| deeds.push((at, deed));
        if self.roused.load(Ordering::Relaxed) {
            may(Time::ZERO, Deed::Hear);
        }
        for (lane, _) in self.unlooked.iter().enumerate().filter(|(_, unlooked)| **unlooked) {
            may(Time::ZERO, Deed::Take(lane));
        }
        if self.may_send && self.shared.status.is_connected() && (self.wire || self.kept.len() < CLIENT_MESSAGES) {
            may(Time::ZERO, Deed::Send);
        }
        if let Some((at, _)) = self.up.front() {
            may((*at).max(answers_at), Deed::Serve);
        }
        if let Some((at, _)) = self.strays.front() {
            may((*at).max(answers_at), Deed::Stray);
        }
        if self.judged.notices.is_empty() {
            // Of one subject in order; of others one may come before the other.
            for (index, reply) in self.down.iter().enumerate().take(REPLIES) {
                if self.down.range(..index).all(|earlier| earlier.subject != reply.subject) {
                    may(reply.at, Deed::Judge(index));
                }
            }
        } else {
            may(self.judged.again_at, Deed::TellJudged);
        }
        if !self.read.notices.is_empty() {
            may(self.read.again_at, Deed::TellRead);
        } else if !self.asks.is_empty() {
            may(Time::ZERO, Deed::Ask);
        } else if let Some(at) = self.opens_at {
            may(at.max(answers_at), Deed::Open);
        } else if self.opened && self.reading.at().is_some_and(|at| server.last > at.offset) {
            may(self.reads_at.max(answers_at), Deed::Read);
        }
        for (index, fetch) in self.fetches.iter().take(FETCHES).enumerate() {
            may(if fetch.answer.is_some() { fetch.at } else { fetch.at.max(answers_at).min(fetch.fails_at) }, Deed::Fetch(index));
        }
        if !self.outstanding.is_empty() || self.down_since.is_some() || self.shared.status.connects.value() != self.connects_known {
            may(self.looks_at, Deed::Look);
        }
    }

    /// Does it.
    pub(super) fn act(
        &mut self,
        deed: Deed,
        (plan, faults): (&NatsPlan, &mut Faults),
        server: &mut Server,
        world: &Rc<RefCell<World>>,
        ledger: &mut Ledger,
    ) {
        let now = world.borrow().now;
        match deed {
            Deed::Hear => {
                self.roused.store(false, Ordering::Relaxed);
                self.lanes[0].answer_bell();
                self.unlooked.fill(true);
            }
            Deed::Take(lane) => {
                let most = world.borrow_mut().choices.of(&[1, 4, 64]);
                for _ in 0..most {
                    let Some(request) = self.lanes[lane].take() else {
                        self.unlooked[lane] = false;
                        break;
                    };
                    self.carry_out(ShardId(lane as u16), request, plan, world);
                }
            }
            Deed::Send => self.send(plan, world),
            Deed::Serve => {
                let Some((_, sent)) = self.up.pop_front() else { return };
                let reply = self.serve(sent, faults, server, plan, world, ledger);
                self.down.push_back(reply);
            }
            Deed::Stray => {
                let Some((_, sent)) = self.strays.pop_front() else { return };
                // Beside the next connection what is late has no order.
                server.put_off.insert(sent.id.clone());
                let reply = self.serve(sent, faults, server, plan, world, ledger);
                // The answer finds the next connection, if there is one.
                if self.wire {
                    self.down.push_back(reply);
                }
            }
            Deed::Judge(index) => {
                let Some(reply) = self.down.remove(index) else { return };
                self.judge(&reply, now, faults, ledger);
            }
            Deed::Ask => match self.asks.pop_front() {
                Some(Ask::Subscribe { shard, topic, subject, after }) => {
                    let notices = self.reading.subscribe(shard, topic, subject, after);
                    self.read.notices.extend(notices.into_iter().map(|notice| (shard, notice)));
                }
                Some(Ask::Unsubscribe { shard, topic }) => self.reading.unsubscribe(shard, topic),
                None => {}
            },
            Deed::Open => self.open(server, world),
            Deed::Read => self.read(server, plan, world),
            Deed::TellRead => {
                tell(&mut self.read, &mut self.lanes, world);
                self.see_read();
            }
            Deed::TellJudged => tell(&mut self.judged, &mut self.lanes, world),
            Deed::Fetch(index) => self.fetch(index, server, plan, world),
            Deed::Look => self.look(now, faults, ledger),
        }
    }

    fn carry_out(&mut self, shard: ShardId, request: Request, plan: &NatsPlan, world: &Rc<RefCell<World>>) {
        let now = world.borrow().now;
        match request {
            Request::Publish(message) => {
                assert!(message.tracked.is_some(), "what a stream is to keep is tracked");
                self.outstanding.push(shard, message, millis(now));
                self.may_send = true;
            }
            Request::Subscribe { topic, subject, after } => self.asks.push_back(Ask::Subscribe { shard, topic, subject, after }),
            Request::Unsubscribe { topic } => self.asks.push_back(Ask::Unsubscribe { shard, topic }),
            Request::Fetch { token, subject, after, upto } => {
                let at = plan.arrival(world);
                self.fetches.push(Fetch { at, fails_at: now + ANSWER_WITHIN, shard, token, subject, after, upto, answer: None });
            }
        }
    }

    // ---- the writer ---------------------------------------------------------------------------------------------------------------

    fn send(&mut self, plan: &NatsPlan, world: &Rc<RefCell<World>>) {
        let now = world.borrow().now;
        let Some((number, message)) = self.outstanding.next(millis(now)) else {
            self.may_send = false;
            return;
        };
        let Outgoing { subject, payload, kind, event, key, tracked } = message;
        let Some(tracked) = tracked else { return };
        let own = format!("{:016x}-{number}", self.id);
        let id = tracked.id.as_ref().map_or(own, |id| format!("{subject} {id}"));
        let message = Message { subject, payload, kind, event, key, origin: Some((self.id, tracked.sender)), no_echo: tracked.no_echo };
        self.hand_over(Sent { number, id, message }, plan.arrival(world));
    }

    fn hand_over(&mut self, sent: Sent, at: Time) {
        if self.wire {
            let at = self.up.back().map_or(at, |(last, _)| at.max(*last));
            self.up.push_back((at, sent));
        } else {
            self.kept.push_back(sent);
        }
    }

    fn serve(
        &mut self,
        sent: Sent,
        faults: &mut Faults,
        server: &mut Server,
        plan: &NatsPlan,
        world: &Rc<RefCell<World>>,
        ledger: &mut Ledger,
    ) -> Reply {
        let Sent { number, id, message } = sent;
        tracing::trace!(number, name = ?name_of(&message.payload), "the server is sent a message");
        let at = plan.arrival(world);
        let subject = Arc::clone(&message.subject);
        let verdict = match faults.refusal(&id, server, world) {
            Some(verdict) => verdict,
            None => {
                let skipped = world.borrow_mut().choices.of(&plan.skips);
                let (sequence, duplicate) = server.store(Some(id), message, skipped, ledger);
                Verdict::Stored { sequence, duplicate }
            }
        };
        Reply { at, number, subject, verdict }
    }

    fn judge(&mut self, reply: &Reply, now: Time, faults: &mut Faults, ledger: &mut Ledger) {
        tracing::trace!(number = reply.number, verdict = ?reply.verdict, "the server has answered");
        match reply.verdict {
            Verdict::Stored { sequence, duplicate } => {
                let Some(waiting) = self.outstanding.acknowledged(reply.number) else { return };
                let duplicate = duplicate && waiting.message.tracked.as_ref().is_some_and(|tracked| tracked.id.is_some());
                let answer = match self.shared.status.read.value() {
                    Some(read) => Answer::Stored { position: Position { epoch: read.epoch, offset: sequence }, duplicate },
                    None => Answer::Unanswered,
                };
                self.finish(waiting, answer);
            }
            Verdict::NotNow => {
                self.outstanding.put_off(reply.number, millis(now));
                self.may_send = true;
            }
            Verdict::Never => {
                let Some(waiting) = self.outstanding.refused(reply.number) else { return };
                self.give_up(waiting, Answer::Refused { why: "it is not the time".into() }, now, faults, ledger);
            }
        }
    }

    fn give_up(&mut self, waiting: Waiting, answer: Answer, now: Time, faults: &Faults, ledger: &mut Ledger) {
        assert!(faults.are_there, "in calm weather a message is given up: {answer:?}");
        if let (Some(name), Some(record)) = (name_of(&waiting.message.payload), &mut ledger.record) {
            record.give_up(name);
            record.trouble(now);
        }
        self.finish(waiting, answer);
    }

    fn finish(&mut self, waiting: Waiting, answer: Answer) {
        self.lanes[waiting.shard.index()].settle(&waiting.message);
        self.judged.notices.extend(waiting.notice(answer));
    }

    fn look(&mut self, now: Time, faults: &Faults, ledger: &mut Ledger) {
        self.looks_at = now + LOOK;
        tracing::trace!(connects = self.shared.status.connects.value(), "the writer looks at its clock");
        let status = &self.shared.status;
        if let Some(since) = self.down_since {
            status.down_ms.set(now.since(since).as_millis() as u64);
        }
        if status.connects.value() != self.connects_known {
            self.connects_known = status.connects.value();
            self.outstanding.hold(millis(now));
        }
        let patience_ms = if status.down_ms.value() < LOST_MS { self.patience_ms } else { 0 };
        for waiting in self.outstanding.look(millis(now), patience_ms) {
            self.give_up(waiting, Answer::Unanswered, now, faults, ledger);
        }
        self.may_send = true;
    }

    // ---- the reader ---------------------------------------------------------------------------------------------------------------

    fn open(&mut self, server: &Server, world: &Rc<RefCell<World>>) {
        let Some(at) = self.reading.at() else { return };
        assert!(at.epoch == server.epoch && at.offset <= server.last, "there is one stream, and it goes on");
        self.read.notices.extend(self.reading.open(at, false));
        (self.opens_at, self.opened) = (None, true);
        self.shared.status.read.set(at);
        self.shared.status.reading.set(1);
        self.nudge(world);
    }

    fn read(&mut self, server: &Server, plan: &NatsPlan, world: &Rc<RefCell<World>>) {
        let Some(at) = self.reading.at() else { return };
        let now = world.borrow().now;
        self.reads_at = now + world.borrow_mut().choices.of(&[Duration::ZERO, Duration::ZERO, plan.latencies[1], plan.latencies[3]]);
        let Some((offset, message)) = server.after(at.offset) else { return };
        let at = Position { offset, ..at };
        self.read.notices.extend(self.reading.take(&message.subject, at, Some(message.incoming(self.id, offset))));
        tell(&mut self.read, &mut self.lanes, world);
        self.see_read();
    }

    /// Everything that was read is on its way: so far the stream was read.
    fn see_read(&self) {
        if let Some(at) = self.reading.at().filter(|_| self.read.notices.is_empty()) {
            self.shared.status.read.set(at);
        }
    }

    fn fetch(&mut self, index: usize, server: &Server, plan: &NatsPlan, world: &Rc<RefCell<World>>) {
        let now = world.borrow().now;
        let fetch = &mut self.fetches[index];
        let notice = fetch.answer.take().unwrap_or_else(|| {
            let fetched = match self.wire && now < fetch.fails_at {
                true => server.fetch(self.id, (&fetch.subject, fetch.after, fetch.upto), plan.piece),
                false => crate::bus::link::Fetched { failed: true, ..Default::default() },
            };
            Notice::Fetched { token: fetch.token, fetched: Box::new(fetched) }
        });
        match self.lanes[fetch.shard.index()].insist(notice, |shard| world.borrow_mut().signal(shard)) {
            Ok(()) => drop(self.fetches.remove(index)),
            Err(notice) => (fetch.answer, fetch.at) = (Some(notice), now + ROOM),
        }
    }

    // ---- the connection -----------------------------------------------------------------------------------------------------------

    /// It breaks: of what was on its way a part arrives, some of it late.
    pub(super) fn cut(&mut self, world: &Rc<RefCell<World>>) {
        let mut world = world.borrow_mut();
        self.wire = false;
        self.opened = false;
        self.opens_at = None;
        let arrive = world.choices.within(0..=self.up.len());
        let late = Duration::from_millis(world.choices.of(&[0, 0, 5, 500]));
        self.strays.extend(self.up.drain(..).take(arrive).map(|(at, sent)| (at + late, sent)));
        let heard = world.choices.within(0..=self.down.len());
        self.down.truncate(heard);
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.answer.is_none()) {
            fetch.at = fetch.at.max(fetch.fails_at);
        }
    }

    /// The client sees that.
    pub(super) fn notice(&mut self, world: &Rc<RefCell<World>>) {
        let now = world.borrow().now;
        if self.shared.status.set(LinkState::Disconnected) == LinkState::Connected {
            self.shared.status.disconnects.add(1);
        }
        self.shared.status.reading.set(0);
        self.down_since = Some(now);
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.answer.is_none()) {
            fetch.fails_at = now;
        }
        self.nudge(world);
    }

    /// There is a connection again, and what the client has kept goes first.
    pub(super) fn mend(&mut self, plan: &NatsPlan, world: &Rc<RefCell<World>>) {
        self.wire = true;
        let at = plan.arrival(world);
        self.up.extend(self.kept.drain(..).map(|sent| (at, sent)));
    }

    /// The client tells of it.
    pub(super) fn connected(&mut self, world: &Rc<RefCell<World>>) {
        self.shared.status.set(LinkState::Connected);
        self.shared.status.connects.add(1);
        self.shared.status.down_ms.set(0);
        self.down_since = None;
        let opens_in = world.borrow_mut().choices.of(&[0, 5, 50, 300]);
        self.opens_at = Some(world.borrow().now + Duration::from_millis(opens_in));
        self.nudge(world);
    }

    fn nudge(&self, world: &Rc<RefCell<World>>) {
        for lane in &self.lanes {
            lane.nudge(|shard| world.borrow_mut().signal(shard));
        }
    }

    /// Whether nothing is under way: all was answered, and all was read.
    pub(super) fn is_idle(&self, server: &Server) -> bool {
        self.outstanding.is_empty()
            && self.up.is_empty()
            && self.strays.is_empty()
            && self.judged.notices.is_empty()
            && self.read.notices.is_empty()
            && self.fetches.is_empty()
            && self.opened
            && self.reading.at().is_some_and(|at| at.offset >= server.last)
    }
}

/// Puts notices into inboxes for as long as there is room.
fn tell(telling: &mut Telling, lanes: &mut [CoreLane], world: &Rc<RefCell<World>>) {
    while let Some((shard, notice)) = telling.notices.pop_front() {
        if let Err(notice) = lanes[shard.index()].insist(notice, |shard| world.borrow_mut().signal(shard)) {
            telling.notices.push_front((shard, notice));
            telling.again_at = world.borrow().now + ROOM;
            return;
        }
    }
}

/// The clock of the list of what waits.
fn millis(now: Time) -> u64 {
    now.as_nanos() / 1_000_000
}
