//! The watchers, who read on, and both publishers: one thread's, which nothing that the others do keeps waiting.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::{Ended, MISSED, Part, Step, WATCHED, due, first_due};
use crate::load::link::{End, Link, Reader};
use crate::load::measure::{Latencies, Tally};
use crate::load::order::{Order, Seen};
use crate::load::plan::Pressure;
use crate::load::stamp::Stamp;
use crate::load::storm::{Cycle, open_one};
use crate::load::wire::Incoming;
use crate::load::worker::Worker;
use crate::proto::ws::OpCode;
use crate::time::Time;

/// Bytes of a publisher that may wait for the kernel.
const QUEUE_BYTES_MAX: usize = 256 << 10;
/// How long the publisher of the missed room may take to hear its own messages.
const PUBLISH_MAX: Duration = Duration::from_secs(60);
/// After the end, for what is on its way.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Where a read buffer begins: two events of most payloads.
const BUFFER_BYTES: usize = 512;

/// What the watchers' latencies belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Window {
    Aside,
    Before,
    During,
}

/// When which window began. A message belongs to that in which it was due, whenever it comes.
#[derive(Default, Debug)]
struct Windows {
    begun: Vec<(Time, Window)>,
    before: Latencies,
    during: Latencies,
}

impl Windows {
    fn begin(&mut self, at: Time, window: Window) {
        self.begun.push((at, window));
    }

    fn record(&mut self, due: Time, latency: Duration) {
        let after = self.begun.partition_point(|(at, _)| *at <= due);
        match after.checked_sub(1).map_or(Window::Aside, |last| self.begun[last].1) {
            Window::Aside => {}
            Window::Before => self.before.record(latency),
            Window::During => self.during.record(latency),
        }
    }
}

/// A watcher or a publisher.
struct Member {
    client: u32,
    room: u32,
    link: Rc<Link>,
    order: RefCell<Order>,
    has_ended: Cell<bool>,
}

/// The thread's.
pub(super) struct Watchers {
    worker: Rc<Worker>,
    members: RefCell<Vec<Rc<Member>>>,
    /// Messages per second to the watchers.
    rate: f64,
    /// The one of them that is due next, once they are sent.
    next: Cell<Option<u64>>,
    message: RefCell<Vec<u8>>,
    windows: RefCell<Windows>,
    tally: RefCell<Tally>,
    closing: Cell<bool>,
}

impl Watchers {
    pub(super) fn new(worker: Rc<Worker>) -> Self {
        let Pressure::Open { rate } = worker.plan.pressure else { unreachable!("the plan of this scenario is an open loop") };
        let message = RefCell::new(vec![b'.'; worker.plan.payload]);
        Self {
            worker,
            members: RefCell::default(),
            rate,
            next: Cell::new(None),
            message,
            windows: RefCell::default(),
            tally: RefCell::default(),
            closing: Cell::new(false),
        }
    }

    pub(super) async fn take(self: &Rc<Self>, step: Step) -> Part {
        let window = match step {
            Step::Quiet => Window::Before,
            Step::Resume => Window::During,
            _ => Window::Aside,
        };
        self.windows.borrow_mut().begin(self.now(), window);
        match step {
            Step::Open => self.open().await,
            Step::Publish(count) => Part { hopeless: self.publish_all(count).await.err(), ..Part::default() },
            Step::Read | Step::Drop | Step::Settle | Step::Quiet | Step::Resume => Part::default(),
            Step::End => Part { ended: Some(Box::new(self.end().await)), ..Part::default() },
        }
    }

    fn now(&self) -> Time {
        self.worker.shared.clock.now()
    }

    async fn open(self: &Rc<Self>) -> Part {
        let opened = Rc::new(RefCell::new(Cycle::default()));
        let (watchers, seen) = (self.clone(), opened.clone());
        let all = self.worker.each(self.worker.clients().collect(), move |client| {
            let (watchers, opened) = (watchers.clone(), seen.clone());
            async move {
                let (link, mut reader) = open_one(&watchers.worker, client, None, &opened).await?;
                reader.input.resize(BUFFER_BYTES);
                let (room, order) = (watchers.worker.plan.room(client), RefCell::new(Order::new(&[0])));
                let member = Rc::new(Member { client, room, link, order, has_ended: Cell::new(false) });
                drop(monoio::spawn(watchers.clone().read(member.clone(), reader)));
                Some(member)
            }
        });
        *self.members.borrow_mut() = all.await.into_iter().flatten().collect();
        self.next.set(Some(first_due(self.rate, self.now())));
        Part { opened: opened.take(), ..Part::default() }
    }

    /// A member's task: reads to the end of its connection.
    async fn read(self: Rc<Self>, member: Rc<Member>, mut reader: Reader) {
        let end = loop {
            if let Some(end) = self.take_in(&member, &mut reader) {
                break end;
            }
            if let Err(end) = reader.fill().await {
                break end;
            }
            self.worker.touch();
        };
        member.has_ended.set(true);
        if !self.closing.get() {
            *self.tally.borrow_mut().ends.entry(end.to_string()).or_default() += 1;
        }
    }

    /// Everything that is whole in what was read.
    fn take_in(&self, member: &Member, reader: &mut Reader) -> Option<End> {
        let now = self.now();
        let mut tally = self.tally.borrow_mut();
        loop {
            match reader.input.next() {
                Ok(None) => return None,
                Ok(Some(Incoming::Message(payload))) => match Stamp::read(true, payload) {
                    None => tally.foreign += 1,
                    Some(stamp) if stamp.publisher != member.room => tally.faults.strayed += 1,
                    Some(Stamp { sequence, due, .. }) => {
                        match member.order.borrow_mut().see(0, sequence) {
                            Seen::Next => {}
                            Seen::Skipped(missing) => tally.skipped(false, member.client, member.room, missing),
                            Seen::Old => tally.old(false, member.client, member.room, sequence),
                        }
                        // A publisher's own are no watcher's.
                        if self.worker.plan.is_stream(member.client) {
                            self.windows.borrow_mut().record(due, now.since(due));
                        }
                    }
                },
                Ok(Some(Incoming::Ping(payload))) => {
                    tally.pings += 1;
                    member.link.send(OpCode::Pong, payload);
                }
                // What is missing behind a gap is found by its numbers.
                // Which is not offered here.
                Ok(Some(Incoming::Pong | Incoming::Gap | Incoming::Compressed(_))) => {}
                Ok(Some(Incoming::Close(code))) => return Some(End::Closed(code)),
                Err(error) => return Some(End::Protocol(error)),
            }
        }
    }

    fn publisher(&self, room: u32) -> Option<Rc<Member>> {
        // A publisher's client has the number of its room.
        self.members.borrow().iter().find(|member| member.client == room && !member.has_ended.get()).cloned()
    }

    fn publish(&self, publisher: &Member, due: Time) {
        let shared = &self.worker.shared.publishers[publisher.room as usize];
        let sequence = shared.sent();
        shared.take_off(sequence);
        let mut message = self.message.borrow_mut();
        Stamp { publisher: publisher.room, sequence, due }.write(true, &mut message);
        publisher.link.send(OpCode::Text, &message);
    }

    /// Sends the watchers everything that is due by now.
    pub(super) fn send_due(&self) {
        let (Some(mut next), Some(publisher)) = (self.next.get(), self.publisher(WATCHED)) else { return };
        let now = self.now();
        while due(self.rate, next) <= now && publisher.link.queued() <= QUEUE_BYTES_MAX {
            self.publish(&publisher, due(self.rate, next));
            next += 1;
        }
        self.next.set(Some(next));
    }

    /// Sends so many messages to the missed room, and waits until their publisher has them back: then they have their places. The error says why not.
    async fn publish_all(&self, count: u32) -> Result<(), String> {
        let limit = self.now() + PUBLISH_MAX;
        let mut left = count;
        loop {
            let Some(publisher) = self.publisher(MISSED) else {
                let how: Vec<String> = self.tally.borrow().ends.keys().cloned().collect();
                return Err(format!("the publisher of the missed room lost its connection ({})", how.join(", ")));
            };
            while left > 0 && publisher.link.queued() <= QUEUE_BYTES_MAX {
                self.publish(&publisher, self.now());
                left -= 1;
            }
            let sent = self.worker.shared.publishers[MISSED as usize].sent();
            let heard = publisher.order.borrow().next(0);
            if left == 0 && heard >= sent {
                return Ok(());
            }
            if self.now() > limit {
                return Err(format!(
                    "the publisher of the missed room has {heard} of its {} messages back after {} s; does the server send them back at --url?",
                    sent + left,
                    PUBLISH_MAX.as_secs()
                ));
            }
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends no more, waits for what is on its way, and counts what did not come.
    async fn end(&self) -> Ended {
        let now = self.now();
        self.send_due();
        let unsent = self.next.take().map_or(0, |next| first_due(self.rate, now).saturating_sub(next));
        let limit = now + DRAIN_MAX;
        let missing = |member: &Rc<Member>| {
            let sent = self.worker.shared.publishers[member.room as usize].sent();
            // Of one that ended its end is told, and not what it missed from then on.
            if member.has_ended.get() { 0 } else { u64::from(sent.saturating_sub(member.order.borrow().next(0))) }
        };
        while self.now() < limit && self.members.borrow().iter().any(|member| missing(member) > 0) {
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
        self.closing.set(true);
        let mut tally = self.tally.take();
        tally.unsent = unsent;
        tally.faults.lost += self.members.borrow().iter().map(missing).sum::<u64>();
        let Windows { before, during, .. } = self.windows.take();
        Ended { tally, before, during }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_belongs_to_the_window_in_which_its_message_was_due() {
        let mut windows = Windows::default();
        let at = Time::from_millis;
        windows.record(at(1), Duration::from_millis(1));
        for (millis, window) in [(10, Window::Aside), (20, Window::Before), (30, Window::During), (40, Window::Aside)] {
            windows.begin(at(millis), window);
        }
        for (due, latency) in [(5, 1), (15, 1), (20, 2), (29, 3), (30, 40), (39, 50), (40, 1), (99, 1)] {
            windows.record(at(due), Duration::from_millis(latency));
        }
        let range = |latencies: &Latencies| (latencies.count(), latencies.percentile(100.0).map(|worst| worst.as_millis()));
        assert_eq!((range(&windows.before), range(&windows.during)), ((2, Some(3)), (2, Some(50))));
    }
}
