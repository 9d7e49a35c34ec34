//! Receivers that leave and come back to their room at once. A publisher's ledger (`shared`) tells which messages count a receiver: those that it
//! sends between the receiver's 101 and its leaving. What comes outside of them is checked, and not waited for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::{Connection, NORMAL_CLOSURE, Traffic};
use crate::load::link::{self, End, Reader};
use crate::load::shared::Schedule;
use crate::proto::ws::OpCode;

/// How a receiver leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Departure {
    /// With a close frame, and it waits for the server's.
    Close,
    /// By a reset, as when its machine is gone.
    Reset,
}

/// Waits for bytes, or until it is to leave without a word.
pub(super) async fn fill(connection: &Connection, reader: &mut Reader) -> Result<(), End> {
    let mut fill = pin!(reader.fill());
    poll_fn(|context| {
        if connection.departure.get() == Some(Departure::Reset) {
            return Poll::Ready(Err(End::Left));
        }
        let filled = fill.as_mut().poll(context);
        if filled.is_pending() {
            let mut waker = connection.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        filled
    })
    .await
}

impl Traffic {
    /// Has this thread's receivers leave, one after the other, as often as its share of them says.
    pub(super) async fn churn(self: Rc<Self>, rate: f64, schedule: Schedule) {
        let plan = self.plan();
        let receivers: Vec<Rc<Connection>> = self.connections.borrow().iter().filter(|connection| connection.churns).cloned().collect();
        let rate = rate * receivers.len() as f64 / f64::from(plan.connections - plan.publishers_total());
        let mut round = receivers.iter().cycle();
        for number in 0u32.. {
            let due = schedule.start + Duration::from_secs_f64((f64::from(number) + 1.0) / rate);
            if receivers.is_empty() || due >= schedule.end {
                return;
            }
            self.worker.shared.clock.wait_until(due).await;
            // Who is away, or gone for good, has its turn later.
            if let Some(connection) = round.by_ref().take(receivers.len()).find(|connection| connection.end.borrow().is_none()) {
                // A reader of events has no word for it.
                let says_so = number.is_multiple_of(2) && !connection.stream;
                self.leave(connection, if says_so { Departure::Close } else { Departure::Reset });
            }
        }
    }

    fn leave(&self, connection: &Connection, departure: Departure) {
        *connection.end.borrow_mut() = Some(End::Left);
        connection.departure.set(Some(departure));
        connection.has_left.set(true);
        self.away.set(self.away.get() + 1);
        self.worker.shared.open.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        self.end_life(connection);
        let link = connection.link.borrow();
        match departure {
            Departure::Close => link.send(OpCode::Close, &NORMAL_CLOSURE),
            Departure::Reset => {
                (self.worker.host.reset_on_close)(link.fd);
                let waker = connection.waker.take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// Opens the connection of one that has left. `None`: it cannot, or everything is over.
    pub(super) async fn come_back(&self, connection: &Connection, gone: Reader) -> Option<Reader> {
        drop(gone);
        connection.link.borrow().let_go();
        let opened = link::open(self.plan(), connection.client).await;
        // It counts as away by now.
        if self.closing.get() {
            return None;
        }
        self.away.set(self.away.get() - 1);
        match opened {
            Ok((link, mut reader)) => {
                *connection.link.borrow_mut() = Rc::new(link);
                connection.departure.set(None);
                *connection.end.borrow_mut() = None;
                self.begin_life(connection, &mut reader);
                let in_window = self.schedule.get().is_some_and(|schedule| schedule.measures(self.now()));
                self.tally.borrow_mut().churned += u64::from(in_window);
                Some(reader)
            }
            Err(error) => {
                *connection.end.borrow_mut() = Some(End::NotBack(error.to_string()));
                None
            }
        }
    }
}
