//! Those who come back: event streams of the missed room, which go on after the last event that they have.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Ended, MISSED, Part, Step};
use crate::load::link::{End, Link, Reader};
use crate::load::measure::Tally;
use crate::load::order::{Order, Seen};
use crate::load::stamp::Stamp;
use crate::load::storm::{Cycle, RETRY, open_one};
use crate::load::wire::Incoming;
use crate::load::worker::Worker;

/// How long one may take to read to its room's end, reconnecting included.
const COMPLETE_MAX: Duration = Duration::from_secs(60);
/// Times that one comes back in a step before it gives up.
const LIVES_MAX: u32 = 20;
/// Where the buffer of one that comes back begins, at most; it grows with larger messages.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 512..=16 << 10;
/// About what a small message has beside its data in an event.
const EVENT_BYTES: usize = 40;

/// One client, over all its connections.
struct Comer {
    client: u32,
    connection: Option<(Rc<Link>, Reader)>,
    /// The id of the last event that it has.
    position: Option<String>,
    order: Order,
}

/// Those of one thread.
pub(super) struct Comers {
    worker: Rc<Worker>,
    all: Vec<Comer>,
    count: Rc<Count>,
}

/// What is counted by the tasks of a step.
#[derive(Default)]
struct Count {
    opened: RefCell<Cycle>,
    part: RefCell<Part>,
    /// Of the whole run.
    tally: RefCell<Tally>,
}

impl Comers {
    pub(super) fn new(worker: Rc<Worker>) -> Self {
        Self { worker, all: Vec::new(), count: Rc::default() }
    }

    pub(super) async fn take(&mut self, step: Step) -> Part {
        match step {
            Step::Open => self.open().await,
            Step::Read | Step::Resume => self.complete(step).await,
            Step::Drop => {
                for comer in &mut self.all {
                    comer.reset(&self.worker);
                }
            }
            Step::Publish(_) | Step::Settle | Step::Quiet => {}
            Step::End => {
                let ended = Ended { tally: self.count.tally.take(), ..Ended::default() };
                self.count.part.borrow_mut().ended = Some(Box::new(ended));
            }
        }
        Part { opened: self.count.opened.take(), ..self.count.part.take() }
    }

    async fn open(&mut self) {
        let (worker, count) = (self.worker.clone(), self.count.clone());
        let opened = self.worker.each(self.worker.clients().collect(), move |client| {
            let (worker, count) = (worker.clone(), count.clone());
            async move {
                let connection = open_one(&worker, client, None, &count.opened).await;
                Comer { client, connection, position: None, order: Order::new(&[0]) }
            }
        });
        self.all = opened.await;
    }

    /// Everyone reads to the room's end; who has no connection opens one.
    async fn complete(&mut self, step: Step) {
        let begun = self.worker.shared.clock.now();
        let end = self.worker.shared.publishers[MISSED as usize].sent();
        let (worker, count) = (self.worker.clone(), self.count.clone());
        let done = self.worker.each(std::mem::take(&mut self.all), move |mut comer| {
            let (worker, count) = (worker.clone(), count.clone());
            async move {
                let complete = monoio::time::timeout(COMPLETE_MAX, comer.complete(&worker, &count, step, end)).await;
                match complete {
                    Ok(true) => count.part.borrow_mut().complete.record(worker.shared.clock.now().since(begun)),
                    // It was counted when it gave up.
                    Ok(false) => {}
                    Err(_) => count.part.borrow_mut().incomplete += 1,
                }
                if !matches!(complete, Ok(true)) {
                    comer.reset(&worker);
                }
                comer
            }
        });
        self.all = done.await;
    }
}

impl Comer {
    /// Reads until it has everything before `end`. False when it gives up.
    async fn complete(&mut self, worker: &Worker, count: &Count, step: Step, end: u32) -> bool {
        for _ in 0..LIVES_MAX {
            if self.connection.is_none() {
                let Some((link, mut reader)) = open_one(worker, self.client, self.position.as_deref(), &count.opened).await else {
                    return false;
                };
                let wanted = (worker.plan.payload + EVENT_BYTES).saturating_mul(end.saturating_sub(self.order.next(0)) as usize);
                reader.input.resize(wanted.next_power_of_two().clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end()));
                self.connection = Some((link, reader));
            }
            let Some(how) = self.read(worker, count, end).await else { return true };
            *count.opened.borrow_mut().failures.entry(how.to_string()).or_default() += 1;
            if step == Step::Read {
                // It was open when the step began.
                *count.tally.borrow_mut().ends.entry(how.to_string()).or_default() += 1;
            }
            self.reset(worker);
            monoio::time::sleep(RETRY).await;
        }
        count.opened.borrow_mut().given_up += 1;
        false
    }

    /// Reads on its present connection. `None` when it has everything before `end`, else how the connection ended.
    async fn read(&mut self, worker: &Worker, count: &Count, end: u32) -> Option<End> {
        let (_, reader) = self.connection.as_mut().expect("it was opened above");
        loop {
            if let Some(how) = take(self.client, &mut self.order, reader, count) {
                return Some(how);
            }
            if self.order.next(0) >= end {
                return None;
            }
            if let Err(how) = reader.fill().await {
                return Some(how);
            }
            worker.touch();
        }
    }

    /// Ends its connection as when its machine is gone, and keeps its position.
    fn reset(&mut self, worker: &Worker) {
        let Some((link, reader)) = self.connection.take() else { return };
        if let Some(position) = reader.input.last_event_id() {
            self.position = Some(position.to_owned());
        }
        (worker.host.reset_on_close)(link.fd);
        worker.shared.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Everything that is whole in what was read.
fn take(client: u32, order: &mut Order, reader: &mut Reader, count: &Count) -> Option<End> {
    let mut tally = count.tally.borrow_mut();
    loop {
        match reader.input.next() {
            Ok(None) => return None,
            Ok(Some(Incoming::Message(payload))) => match Stamp::read(true, payload) {
                None => tally.foreign += 1,
                Some(stamp) if stamp.publisher != MISSED => tally.faults.strayed += 1,
                Some(Stamp { sequence, .. }) => match order.see(0, sequence) {
                    Seen::Next => {}
                    Seen::Skipped(missing) => tally.skipped(false, client, MISSED, missing),
                    Seen::Old => tally.old(false, client, MISSED, sequence),
                },
            },
            Ok(Some(Incoming::Gap)) => count.part.borrow_mut().gaps += 1,
            Ok(Some(Incoming::Close(code))) => return Some(End::Closed(code)),
            // An event stream has neither.
            Ok(Some(Incoming::Ping(_) | Incoming::Pong | Incoming::Compressed(_))) => {}
            Err(error) => return Some(End::Protocol(error)),
        }
    }
}
