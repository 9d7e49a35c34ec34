//! Reconnect storms: all connections end at once, or are ended by the server, and come back, several times. Cycle 0 is the first opening.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::curve::{Curve, Deed};
use super::link::{self, Link, OpenError, Reader};
use super::measure::Latencies;
use super::plan::Drop;
use super::wire::Incoming;
use super::worker::{Hearing, Worker};
use crate::proto::ws::OpCode;
use crate::time::Time;

/// A client that was refused tries again after this, where it is not asked to back off.
pub(super) const RETRY: Duration = Duration::from_millis(50);
/// Tries before a client gives up for this cycle.
const TRIES_MAX: u32 = 20;
/// A client that backs off gives up after this.
const PATIENCE: Duration = Duration::from_secs(600);

/// What one thread saw in one cycle.
#[derive(Default, Debug)]
pub(super) struct Cycle {
    /// From the connect to the 101.
    pub(super) handshakes: Latencies,
    /// Attempts that failed, by how.
    pub(super) failures: BTreeMap<String, u64>,
    /// Clients that gave up.
    pub(super) given_up: u64,
    /// When what happened, from the beginning of the cycle on.
    pub(super) curve: Curve,
}

impl Cycle {
    pub(super) fn add(&mut self, other: Self) {
        self.handshakes.add(&other.handshakes);
        for (how, count) in other.failures {
            *self.failures.entry(how).or_default() += count;
        }
        self.given_up += other.given_up;
        self.curve.add(&other.curve);
    }
}

/// A connection between two cycles.
type Open = (u32, Rc<Link>, Reader);

/// A thread's part. It reports after each cycle and begins the next when it may.
pub(super) async fn run(worker: Rc<Worker>, mut hearing: Hearing, reports: Sender<Cycle>) {
    let mut open: Vec<Open> = Vec::new();
    for number in 0..=worker.plan.cycles {
        if !may_begin(&worker, &mut hearing, number).await {
            return;
        }
        let cycle = CycleUnderWay { cycle: RefCell::default(), begun: worker.shared.clock.now() };
        let cycle = Rc::new(cycle);
        let lost: Vec<(u32, Option<Open>)> = if number == 0 {
            worker.clients().map(|client| (client, None)).collect()
        } else if worker.plan.drop == Drop::Server {
            open.drain(..).map(|connection| (connection.0, Some(connection))).collect()
        } else {
            for (_, link, _) in &open {
                if worker.plan.drop == Drop::Rst {
                    (worker.host.reset_on_close)(link.fd);
                }
                cycle.note(Deed::Lost, cycle.begun);
            }
            open.clear();
            worker.clients().map(|client| (client, None)).collect()
        };
        let (opener, seen) = (worker.clone(), cycle.clone());
        let opened = worker.each(lost, move |(client, connection)| {
            let (worker, cycle) = (opener.clone(), seen.clone());
            async move {
                let hint = match connection {
                    Some((_, link, reader)) => {
                        let hint = until_lost(link, reader).await;
                        cycle.note(Deed::Lost, worker.shared.clock.now());
                        hint
                    }
                    None => None,
                };
                come(&worker, client, hint, &cycle).await
            }
        });
        open = opened.await.into_iter().flatten().collect();
        if reports.send(cycle.cycle.take()).is_err() {
            return;
        }
    }
    // The last connections are held until the server's memory was read.
    may_begin(&worker, &mut hearing, worker.plan.cycles + 1).await;
}

/// Waits for a cycle's turn. False when the run ends instead.
async fn may_begin(worker: &Worker, hearing: &mut Hearing, cycle: u32) -> bool {
    while worker.shared.cycle.load(Ordering::Acquire) < cycle {
        if worker.shared.aborted() || !hearing.hear().await {
            return false;
        }
    }
    true
}

struct CycleUnderWay {
    cycle: RefCell<Cycle>,
    begun: Time,
}

impl CycleUnderWay {
    fn note(&self, deed: Deed, now: Time) {
        self.cycle.borrow_mut().curve.count(deed, now.since(self.begun));
    }
}

/// Reads until the server ends a connection; when it said to come back.
async fn until_lost(link: Rc<Link>, mut reader: Reader) -> Option<Duration> {
    loop {
        match reader.input.next() {
            Ok(Some(Incoming::Close(_))) | Err(_) => break,
            Ok(Some(Incoming::Ping(payload))) => link.send(OpCode::Pong, payload),
            Ok(Some(Incoming::Message(_) | Incoming::Compressed(_) | Incoming::Pong | Incoming::Gap)) => {}
            Ok(None) => {
                if reader.fill().await.is_err() {
                    break;
                }
            }
        }
    }
    reader.input.retry()
}

/// One client comes back: waits as it should and tries until it is in, or gives up.
async fn come(worker: &Worker, client: u32, mut hint: Option<Duration>, cycle: &CycleUnderWay) -> Option<Open> {
    let clock = worker.shared.clock;
    for number in 0.. {
        let wait = match worker.plan.backoff {
            Some(backoff) => backoff.wait(number, hint.take(), fastrand::f64()),
            None if number == 0 => Duration::ZERO,
            None => RETRY,
        };
        let tired = match worker.plan.backoff {
            Some(_) => clock.now().since(cycle.begun) + wait > PATIENCE,
            None => number == TRIES_MAX,
        };
        if tired || worker.shared.aborted() {
            break;
        }
        if !wait.is_zero() {
            monoio::time::sleep(wait).await;
        }
        let begun = clock.now();
        cycle.note(Deed::Came, begun);
        match link::open_after(&worker.plan, client, None).await {
            Ok((link, reader)) => {
                let now = clock.now();
                worker.shared.open.fetch_add(1, Ordering::AcqRel);
                cycle.note(Deed::LetIn, now);
                cycle.cycle.borrow_mut().handshakes.record(now.since(begun));
                return Some((client, Rc::new(link), reader));
            }
            Err(error) => {
                if matches!(error, OpenError::Refused(_)) {
                    cycle.note(Deed::TurnedAway, clock.now());
                }
                hint = error.retry();
                *cycle.cycle.borrow_mut().failures.entry(error.to_string()).or_default() += 1;
            }
        }
    }
    cycle.cycle.borrow_mut().given_up += 1;
    None
}

/// One client, which goes on after this position: tries until it is in, or gives up.
pub(super) async fn open_one(worker: &Worker, client: u32, position: Option<&str>, cycle: &RefCell<Cycle>) -> Option<(Rc<Link>, Reader)> {
    for _ in 0..TRIES_MAX {
        if worker.shared.aborted() {
            break;
        }
        let begun = worker.shared.clock.now();
        match link::open_after(&worker.plan, client, position).await {
            Ok((link, reader)) => {
                worker.shared.open.fetch_add(1, Ordering::AcqRel);
                cycle.borrow_mut().handshakes.record(worker.shared.clock.now().since(begun));
                return Some((Rc::new(link), reader));
            }
            Err(error) => *cycle.borrow_mut().failures.entry(error.to_string()).or_default() += 1,
        }
        monoio::time::sleep(RETRY).await;
    }
    cycle.borrow_mut().given_up += 1;
    None
}
