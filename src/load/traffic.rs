//! Messages through open connections: fan-out, echo (rooms of one), slow readers (some do not read), idle (nobody publishes).
//!
//! A [`Traffic`] is one thread's part of it. Receivers count each message down; who counts the last one makes room for the publisher's next.
//! `churn` has receivers leave and come back meanwhile.

mod churn;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::Waker;
use std::time::Duration;

use super::link::{self, End, Link, Reader};
use super::measure::Tally;
use super::order::{Order, Seen};
use super::plan::{Plan, Pressure};
use super::shared::{Publisher, Schedule};
use super::stamp::Stamp;
use super::wire::{FRAME_BYTES_MAX, Incoming};
use super::worker::{Hearing, Worker};
use crate::proto::ws::{Inflater, OpCode};
use crate::time::Time;
use churn::Departure;

/// A closed loop that waits for a receiver this long gives the message up and goes on.
const STALL: Duration = Duration::from_secs(5);
/// Bytes of a publisher that may wait for the kernel; beyond it messages of an open loop stay due.
const QUEUE_BYTES_MAX: usize = 256 << 10;
/// After the end: messages on their way are waited for until so long nothing came, and at most so long altogether.
const SILENCE: Duration = Duration::from_millis(500);
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long servers may take to answer our close frames.
const CLOSE_MAX: Duration = Duration::from_secs(3);
/// Where a read buffer ends up: several messages, within bounds.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 512..=16 << 10;
/// About what an event has beside its data: the id, the fields' names, line ends.
const EVENT_BYTES: usize = 40;
const NORMAL_CLOSURE: [u8; 2] = 1000u16.to_be_bytes();

/// What a thread tells the main thread.
pub(super) enum Report {
    /// A connection could not be opened: why.
    NotOpened(String),
    Done(Box<Tally>),
}

/// One client. Its connection is its life: with churn it has several, one after the other.
struct Connection {
    client: u32,
    room: u32,
    slow: bool,
    /// An event stream, which sends nothing.
    stream: bool,
    /// Its latencies count.
    timed: bool,
    /// Leaves and comes back.
    churns: bool,
    link: RefCell<Rc<Link>>,
    /// Of this life.
    order: RefCell<Order>,
    /// Of each publisher of the room: the first message that counts this receiver and that it does not have; `NOTHING` while it is not counted.
    owed: RefCell<Box<[u32]>>,
    end: RefCell<Option<End>>,
    /// How it is leaving.
    departure: Cell<Option<Departure>>,
    has_left: Cell<bool>,
    /// Of a task that reads until it is told to leave.
    waker: RefCell<Option<Waker>>,
}

const NOTHING: u32 = u32::MAX;

/// A publisher whose connection is on this thread.
struct Local {
    publisher: u32,
    connection: Rc<Connection>,
    next: u32,
    /// When the messages on their way were sent, by place.
    sent_at: Box<[Time]>,
}

struct Traffic {
    worker: Rc<Worker>,
    connections: RefCell<Vec<Rc<Connection>>>,
    locals: RefCell<Vec<Local>>,
    local_of: RefCell<HashMap<u32, usize>>,
    /// Open loop: when which local publisher has its next message due.
    due: RefCell<BinaryHeap<Reverse<(Time, usize)>>>,
    tally: RefCell<Tally>,
    /// Publishers whose message landed with its last receiver during the present chunk.
    landed: RefCell<Vec<u32>>,
    inflater: RefCell<Option<Inflater>>,
    message: RefCell<Vec<u8>>,
    last_delivery: Cell<Time>,
    closing: Cell<bool>,
    /// Receivers that left and are not back.
    away: Cell<u32>,
    schedule: Cell<Option<Schedule>>,
    reports: Sender<Report>,
}

/// A thread's part from connecting to the end.
pub(super) async fn run(worker: Rc<Worker>, hearing: Hearing, reports: Sender<Report>) {
    let message = worker.plan.filler.message(worker.plan.text, worker.plan.payload);
    let traffic = Rc::new(Traffic {
        worker,
        connections: RefCell::default(),
        locals: RefCell::default(),
        local_of: RefCell::default(),
        due: RefCell::default(),
        tally: RefCell::default(),
        landed: RefCell::default(),
        inflater: RefCell::default(),
        message: RefCell::new(message),
        last_delivery: Cell::new(Time::ZERO),
        closing: Cell::new(false),
        away: Cell::new(0),
        schedule: Cell::new(None),
        reports,
    });
    traffic.connect();
    traffic.conduct(hearing).await;
    let tally = traffic.tally.take();
    let _ = traffic.reports.send(Report::Done(Box::new(tally)));
}

impl Traffic {
    fn plan(&self) -> &Plan {
        &self.worker.plan
    }

    fn now(&self) -> Time {
        self.worker.shared.clock.now()
    }

    /// Starts the tasks that open this thread's connections.
    fn connect(self: &Rc<Self>) {
        let clients = Rc::new(RefCell::new(self.worker.clients().collect::<Vec<_>>().into_iter()));
        for _ in 0..self.plan().concurrency_each() {
            let (traffic, clients) = (self.clone(), clients.clone());
            drop(monoio::spawn(async move {
                loop {
                    let Some(client) = clients.borrow_mut().next() else { break };
                    if traffic.worker.shared.aborted() {
                        break;
                    }
                    match link::open(traffic.plan(), client).await {
                        Ok((link, reader)) => traffic.opened(client, link, reader),
                        Err(error) => drop(traffic.reports.send(Report::NotOpened(error.to_string()))),
                    }
                }
            }));
        }
    }

    fn opened(self: &Rc<Self>, client: u32, link: Link, mut reader: Reader) {
        let plan = self.plan();
        let connection = Rc::new(Connection {
            client,
            room: plan.room(client),
            slow: plan.is_slow(client),
            stream: plan.is_stream(client),
            // With event streams, theirs alone: the publishers' own messages come back by WebSocket.
            timed: !plan.is_slow(client) && (plan.events.is_none() || plan.is_stream(client)),
            churns: plan.churns(client),
            link: RefCell::new(Rc::new(link)),
            order: RefCell::new(Order::new(&[])),
            owed: RefCell::default(),
            end: RefCell::default(),
            departure: Cell::new(None),
            has_left: Cell::new(false),
            waker: RefCell::default(),
        });
        self.begin_life(&connection, &mut reader);
        self.connections.borrow_mut().push(connection.clone());
        drop(monoio::spawn(self.clone().read(connection, reader)));
    }

    /// It is a member of its room from here on.
    fn begin_life(&self, connection: &Connection, reader: &mut Reader) {
        let plan = self.plan();
        let publishers = self.publishers_of(connection.room).map(|publisher| &self.worker.shared.publishers[publisher as usize]);
        // Nobody waits for slow readers.
        let joined: Box<[u32]> = if connection.slow { publishers.map(|_| 0).collect() } else { publishers.map(Publisher::join).collect() };
        *connection.order.borrow_mut() = Order::new(&joined);
        *connection.owed.borrow_mut() = if connection.slow { vec![NOTHING; joined.len()].into() } else { joined };
        let message = plan.payload + if connection.stream { EVENT_BYTES } else { 14 };
        let busy = match plan.pressure {
            _ if plan.publishers == 0 => 0,
            Pressure::Closed { in_flight } => message * in_flight.min(64) as usize,
            Pressure::Open { .. } => message * 16,
        };
        reader.input.deflate = plan.deflate;
        reader.input.resize(busy.next_power_of_two().clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end()));
        self.worker.shared.open.fetch_add(1, Ordering::AcqRel);
    }

    /// A client's task: reads to the end of its last life.
    async fn read(self: Rc<Self>, connection: Rc<Connection>, mut reader: Reader) {
        loop {
            let end = self.read_life(&connection, &mut reader).await;
            if connection.departure.get().is_none() {
                return self.ended(&connection, end);
            }
            let Some(next) = self.come_back(&connection, reader).await else { return };
            reader = next;
        }
    }

    async fn read_life(&self, connection: &Connection, reader: &mut Reader) -> End {
        loop {
            if let Some(end) = self.take(connection, reader) {
                return end;
            }
            if connection.slow
                && let Some(until) = self.pause()
            {
                self.worker.shared.clock.wait_until(until).await;
            }
            let filled = if connection.churns { churn::fill(connection, reader).await } else { reader.fill().await };
            if let Err(end) = filled {
                return end;
            }
            self.worker.touch();
        }
    }

    /// Until when slow readers do not read.
    fn pause(&self) -> Option<Time> {
        let schedule = self.schedule.get()?;
        let until = self.plan().slow_pause.map_or(schedule.end, |pause| schedule.begin + pause);
        let now = self.now();
        (schedule.begin <= now && now < until).then_some(until)
    }

    /// Everything that is whole in what was read.
    fn take(&self, connection: &Connection, reader: &mut Reader) -> Option<End> {
        let now = self.now();
        let mut tally = self.tally.borrow_mut();
        let mut deliveries = Deliveries::default();
        let end = loop {
            match reader.input.next() {
                Ok(None) => break None,
                Ok(Some(Incoming::Message(payload))) => self.deliver(connection, payload, now, &mut tally, &mut deliveries),
                Ok(Some(Incoming::Compressed(payload))) => {
                    tally.compressed += 1;
                    let mut inflater = self.inflater.borrow_mut();
                    match inflater.get_or_insert_default().inflate(payload, FRAME_BYTES_MAX) {
                        Ok(message) => self.deliver(connection, message, now, &mut tally, &mut deliveries),
                        Err(error) => break Some(End::Protocol(error.to_string())),
                    }
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    tally.pings += 1;
                    connection.link.borrow().send(OpCode::Pong, payload);
                }
                // What is missing behind a gap is found by its numbers.
                Ok(Some(Incoming::Pong | Incoming::Gap)) => {}
                Ok(Some(Incoming::Close(code))) => {
                    // One that leaves has sent its own.
                    if connection.departure.get().is_none() && !connection.stream {
                        let code = code.map(u16::to_be_bytes);
                        connection.link.borrow().send(OpCode::Close, code.as_ref().map_or(&[], |code| code));
                    }
                    break Some(End::Closed(code));
                }
                Err(error) => break Some(End::Protocol(error)),
            }
        };
        if deliveries.count > 0 {
            self.count(connection, now, &mut tally, &deliveries);
        }
        drop(tally);
        self.serve_landed();
        end
    }

    fn deliver(&self, connection: &Connection, payload: &[u8], now: Time, tally: &mut Tally, deliveries: &mut Deliveries) {
        let plan = self.plan();
        let Some(stamp) = Stamp::read(plan.text, payload) else {
            tally.foreign += 1;
            return;
        };
        let Some(place) = stamp.publisher.checked_sub(connection.room * plan.publishers).filter(|place| *place < plan.publishers) else {
            tally.faults_of(connection.slow).strayed += 1;
            return;
        };
        deliveries.count += 1;
        deliveries.bytes += payload.len() as u64;
        match connection.order.borrow_mut().see(place as usize, stamp.sequence) {
            Seen::Next => {}
            Seen::Skipped(missing) => tally.skipped(connection.slow, connection.client, stamp.publisher, missing),
            Seen::Old => tally.old(connection.slow, connection.client, stamp.publisher, stamp.sequence),
        }
        self.land(connection, place as usize, stamp.sequence);
        if connection.timed {
            let latency = now.since(stamp.due);
            deliveries.worst = deliveries.worst.max(latency);
            if self.schedule.get().is_some_and(|schedule| schedule.measures(stamp.due)) {
                tally.latencies.record(latency);
            }
        }
    }

    fn count(&self, connection: &Connection, now: Time, tally: &mut Tally, deliveries: &Deliveries) {
        self.last_delivery.set(now);
        let Some(schedule) = self.schedule.get() else { return };
        if connection.slow {
            tally.slow_deliveries += deliveries.count;
            return;
        }
        if schedule.measures(now) {
            tally.deliveries += deliveries.count;
            tally.delivered_bytes += deliveries.bytes;
        }
        let second = tally.second(now.since(schedule.start).as_secs() as usize);
        second.deliveries += deliveries.count;
        second.bytes += deliveries.bytes;
        second.worst = second.worst.max(deliveries.worst);
        let gauge = &self.worker.shared.gauges[self.worker.index];
        gauge.deliveries.store(gauge.deliveries.load(Ordering::Relaxed) + deliveries.count, Ordering::Relaxed);
        gauge.worst.fetch_max(deliveries.worst.as_nanos() as u64, Ordering::Relaxed);
    }

    /// A receiver has this message of the publisher with this place in its room. What did not come before it is not waited for, or one lost message
    /// would stop a closed loop; neither is what was sent before this life and does not count it.
    fn land(&self, connection: &Connection, place: usize, sequence: u32) {
        let owed = &mut connection.owed.borrow_mut()[place];
        if sequence >= *owed && *owed != NOTHING {
            let next = sequence.wrapping_add(1);
            self.land_all(connection.room * self.plan().publishers + place as u32, std::mem::replace(owed, next)..next);
        }
    }

    /// A receiver has these, or will never have them.
    fn land_all(&self, publisher: u32, sequences: std::ops::Range<u32>) {
        let shared = &self.worker.shared.publishers[publisher as usize];
        let mut last = false;
        for sequence in sequences.start.max(shared.aloft().start)..sequences.end {
            last |= shared.land(sequence);
        }
        if last && shared.thread == self.worker.index {
            self.landed.borrow_mut().push(publisher);
        } else if last {
            self.worker.shared.bells[shared.thread].landed(publisher);
        }
    }

    /// Publishers of this thread that may send again do.
    fn serve_landed(&self) {
        if self.landed.borrow().is_empty() {
            return;
        }
        let mut landed = self.landed.take();
        for publisher in landed.drain(..) {
            self.pump(publisher);
        }
        *self.landed.borrow_mut() = landed;
    }

    /// Closed loop: sends what may be on its way.
    fn pump(&self, publisher: u32) {
        let Some(&at) = self.local_of.borrow().get(&publisher) else { return };
        let mut locals = self.locals.borrow_mut();
        let local = &mut locals[at];
        while self.worker.shared.publishers[publisher as usize].is_free(local.next) {
            let now = self.now();
            if !self.publish(local, now, now) {
                break;
            }
        }
    }

    /// Sends a message. False when there is nobody to send it to, nobody to send it, or no time left.
    fn publish(&self, local: &mut Local, due: Time, now: Time) -> bool {
        let Some(schedule) = self.schedule.get() else { return false };
        let shared = &self.worker.shared.publishers[local.publisher as usize];
        let link = local.connection.link.borrow();
        if due >= schedule.end || shared.receivers() == 0 || link.is_broken() || local.connection.end.borrow().is_some() {
            return false;
        }
        let sequence = local.next;
        shared.take_off(sequence);
        local.next = sequence.wrapping_add(1);
        if !local.sent_at.is_empty() {
            let places = local.sent_at.len();
            local.sent_at[sequence as usize % places] = now;
        }
        let text = self.plan().text;
        let mut message = self.message.borrow_mut();
        Stamp { publisher: local.publisher, sequence, due }.write(text, &mut message);
        link.send(if text { OpCode::Text } else { OpCode::Binary }, &message);
        let mut tally = self.tally.borrow_mut();
        tally.published += u64::from(schedule.measures(now));
        tally.second(now.since(schedule.start).as_secs() as usize).published += 1;
        let gauge = &self.worker.shared.gauges[self.worker.index];
        gauge.published.store(gauge.published.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        true
    }

    /// Waits for the schedule, has the publishers send until the end, and takes everything down.
    async fn conduct(self: &Rc<Self>, mut hearing: Hearing) {
        while self.schedule.get().is_none() {
            if self.worker.shared.aborted() || !hearing.hear().await {
                return;
            }
            self.schedule.set(self.worker.shared.schedule());
        }
        let schedule = self.schedule.get().expect("the loop ends with one");
        let clock = self.worker.shared.clock;
        self.gather_publishers(&schedule);
        clock.wait_until(schedule.start).await;
        if let Pressure::Closed { .. } = self.plan().pressure {
            let publishers: Vec<u32> = self.locals.borrow().iter().map(|local| local.publisher).collect();
            for publisher in publishers {
                self.pump(publisher);
            }
            drop(monoio::spawn(self.clone().watch()));
        }
        drop(monoio::spawn(self.clone().listen(hearing)));
        if let Some(rate) = self.plan().churn {
            drop(monoio::spawn(self.clone().churn(rate, schedule)));
        }
        clock.wait_until(schedule.end).await;
        self.give_up_due(&schedule);
        self.drain(&schedule).await;
        self.judge();
        self.close().await;
    }

    /// What the bell brings: publishers that may go on, messages that are due.
    async fn listen(self: Rc<Self>, mut hearing: Hearing) {
        while hearing.hear().await && !self.closing.get() {
            while let Ok(publisher) = hearing.landed.try_recv() {
                self.pump(publisher);
            }
            self.send_due();
        }
    }

    fn gather_publishers(&self, schedule: &Schedule) {
        let places = match self.plan().pressure {
            Pressure::Closed { in_flight } => in_flight as usize,
            Pressure::Open { .. } => 0,
        };
        let mut locals = self.locals.borrow_mut();
        for connection in self.connections.borrow().iter() {
            let Some(publisher) = self.plan().publisher(connection.client) else { continue };
            self.local_of.borrow_mut().insert(publisher, locals.len());
            if let Pressure::Open { rate } = self.plan().pressure {
                self.due.borrow_mut().push(Reverse((due(schedule, rate, u64::from(publisher)), locals.len())));
            }
            locals.push(Local { publisher, connection: connection.clone(), next: 0, sent_at: vec![Time::ZERO; places].into() });
        }
    }

    /// Open loop: sends everything that is due by now.
    fn send_due(&self) {
        let (Pressure::Open { rate }, Some(schedule)) = (self.plan().pressure, self.schedule.get()) else { return };
        let now = self.now();
        let mut heap = self.due.borrow_mut();
        let mut locals = self.locals.borrow_mut();
        let mut full = Vec::new();
        while let Some(Reverse((time, at))) = heap.peek().copied().filter(|Reverse((time, _))| *time <= now && *time < schedule.end) {
            heap.pop();
            let local = &mut locals[at];
            if local.connection.link.borrow().queued() > QUEUE_BYTES_MAX {
                full.push(Reverse((time, at)));
            } else if self.publish(local, time, now) {
                let number = u64::from(local.next) * u64::from(self.plan().publishers_total()) + u64::from(local.publisher);
                heap.push(Reverse((due(&schedule, rate, number), at)));
            }
        }
        heap.extend(full);
    }

    /// Counts what was due before the end and found no room.
    fn give_up_due(&self, schedule: &Schedule) {
        self.send_due();
        let Pressure::Open { rate } = self.plan().pressure else { return };
        let interval = f64::from(self.plan().publishers_total()) / rate;
        for Reverse((time, _)) in self.due.take() {
            if time < schedule.end {
                self.tally.borrow_mut().unsent += (schedule.end.since(time).as_secs_f64() / interval).ceil() as u64;
            }
        }
    }

    /// A closed loop whose message has a receiver that does not get it goes on after a while.
    async fn watch(self: Rc<Self>) {
        while !self.closing.get() {
            monoio::time::sleep(Duration::from_millis(100)).await;
            let now = self.now();
            let mut stalled = Vec::new();
            for local in self.locals.borrow().iter() {
                let place = local.next as usize % local.sent_at.len();
                let shared = &self.worker.shared.publishers[local.publisher as usize];
                if !shared.is_free(local.next) && now.since(local.sent_at[place]) > STALL {
                    shared.give_up(local.next);
                    stalled.push(local.publisher);
                }
            }
            for publisher in stalled {
                self.tally.borrow_mut().stalls += 1;
                self.pump(publisher);
            }
        }
    }

    /// Waits until every receiver has everything, or nothing comes any more.
    async fn drain(&self, schedule: &Schedule) {
        let limit = schedule.end + DRAIN_MAX;
        loop {
            let now = self.now();
            let quiet_since = self.last_delivery.get().max(schedule.end);
            // Who is on its way back ends in time, one way or the other.
            let settled = self.away.get() == 0 && (self.has_everything() || now.since(quiet_since) > SILENCE);
            if self.plan().publishers == 0 || settled || now > limit {
                return;
            }
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn has_everything(&self) -> bool {
        self.connections.borrow().iter().filter(|connection| connection.end.borrow().is_none()).all(|connection| {
            let order = connection.order.borrow();
            self.sent_in(connection.room).enumerate().all(|(place, (_, sent))| order.next(place) == sent)
        })
    }

    /// The publishers of a room, and how many messages each has sent.
    fn sent_in(&self, room: u32) -> impl Iterator<Item = (u32, u32)> {
        self.publishers_of(room).map(|publisher| (publisher, self.worker.shared.publishers[publisher as usize].sent()))
    }

    fn publishers_of(&self, room: u32) -> std::ops::Range<u32> {
        let publishers = self.plan().publishers;
        room * publishers..(room + 1) * publishers
    }

    /// Looks at the end of every stream, and at the one order.
    fn judge(&self) {
        self.closing.set(true);
        let mut tally = self.tally.borrow_mut();
        for connection in self.connections.borrow().iter() {
            let ended = connection.end.borrow().clone();
            if let Some(end) = ended {
                let ends = if connection.slow { &mut tally.slow_ends } else { &mut tally.ends };
                *ends.entry(end.to_string()).or_default() += 1;
                continue;
            }
            let order = connection.order.borrow();
            let mut missing = 0;
            for (place, (_, sent)) in self.sent_in(connection.room).enumerate() {
                missing += u64::from(sent.saturating_sub(order.next(place)));
            }
            tally.faults_of(connection.slow).lost += missing;
            if connection.slow {
                *tally.slow_ends.entry(if missing == 0 { "caught up" } else { "open, behind" }.to_owned()).or_default() += 1;
            } else if self.plan().total_order && self.plan().publishers > 0 && !connection.has_left.get() {
                tally.order(connection.room, order.total());
            }
        }
    }

    /// Closes every connection as a client should, and waits a while for the answers.
    async fn close(&self) {
        let connections = self.connections.take();
        for connection in &connections {
            if connection.end.borrow().is_none() && !connection.stream {
                connection.link.borrow().send(OpCode::Close, &NORMAL_CLOSURE);
            }
        }
        for connection in connections.iter().filter(|connection| connection.stream) {
            let link = connection.link.borrow().clone();
            link.shut_write().await;
        }
        let limit = self.now() + CLOSE_MAX;
        while self.now() < limit && connections.iter().any(|connection| connection.end.borrow().is_none()) {
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
        for connection in &connections {
            let link = connection.link.borrow().clone();
            link.shut_write().await;
        }
    }

    fn ended(&self, connection: &Connection, end: End) {
        *connection.end.borrow_mut() = Some(end);
        self.worker.shared.open.fetch_sub(1, Ordering::AcqRel);
        if self.closing.get() || connection.slow {
            return;
        }
        self.end_life(connection);
    }

    /// Nobody waits for it any more.
    fn end_life(&self, connection: &Connection) {
        for (place, publisher) in self.publishers_of(connection.room).enumerate() {
            let left = self.worker.shared.publishers[publisher as usize].leave();
            let owed = std::mem::replace(&mut connection.owed.borrow_mut()[place], NOTHING);
            self.land_all(publisher, owed..left);
        }
        self.serve_landed();
    }
}

/// What one read brought.
#[derive(Default)]
struct Deliveries {
    count: u64,
    bytes: u64,
    worst: Duration,
}

/// When the message with this number, counted over all publishers, is due.
fn due(schedule: &Schedule, rate: f64, number: u64) -> Time {
    schedule.start + Duration::from_secs_f64(number as f64 / rate)
}

/// Rings the bells of an open loop: each thread's when a message of its publishers is due. Ends with the schedule.
pub(super) fn pace(worker_of: &Plan, shared: &super::shared::Shared, schedule: &Schedule, rate: f64) {
    /// Between two looks at the clock: bounds what pacing costs at high rates.
    const STEP: Duration = Duration::from_micros(50);
    let publishers = u64::from(worker_of.publishers_total());
    let mut number = 0;
    let mut ring = vec![false; shared.bells.len()];
    loop {
        let next = due(schedule, rate, number);
        if next >= schedule.end || shared.aborted() {
            return;
        }
        shared.clock.sleep_until(next.max(shared.clock.now() + STEP));
        let now = shared.clock.now();
        while due(schedule, rate, number) <= now {
            ring[shared.publishers[(number % publishers) as usize].thread] = true;
            number += 1;
        }
        for (bell, ring) in shared.bells.iter().zip(&mut ring) {
            if std::mem::take(ring) {
                bell.ring();
            }
        }
    }
}
