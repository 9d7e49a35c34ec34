//! Reconnect storms: all connections end at once and come back as fast as the server takes them, several times. Cycle 0 is the first opening.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::link::{self, Link, Reader};
use super::measure::Latencies;
use super::plan::Drop;
use super::worker::{Hearing, Worker};

/// A client that was refused tries again after this.
pub(super) const RETRY: Duration = Duration::from_millis(50);
/// Tries before a client gives up for this cycle.
const TRIES_MAX: u32 = 20;

/// What one thread saw in one cycle.
#[derive(Default, Debug)]
pub(super) struct Cycle {
    /// From the connect to the 101.
    pub(super) handshakes: Latencies,
    /// Attempts that failed, by how.
    pub(super) failures: BTreeMap<String, u64>,
    /// Clients that gave up.
    pub(super) given_up: u64,
}

impl Cycle {
    pub(super) fn add(&mut self, other: Self) {
        self.handshakes.add(&other.handshakes);
        for (how, count) in other.failures {
            *self.failures.entry(how).or_default() += count;
        }
        self.given_up += other.given_up;
    }
}

/// A thread's part. It reports after each cycle and begins the next when it may.
pub(super) async fn run(worker: Rc<Worker>, mut hearing: Hearing, reports: Sender<Cycle>) {
    let mut open: Vec<(Rc<Link>, Reader)> = Vec::new();
    for cycle in 0..=worker.plan.cycles {
        if !may_begin(&worker, &mut hearing, cycle).await {
            return;
        }
        if worker.plan.drop == Drop::Rst {
            for (link, _) in &open {
                (worker.host.reset_on_close)(link.fd);
            }
        }
        open.clear();
        let (seen, connections) = open_all(&worker).await;
        open = connections;
        if reports.send(seen).is_err() {
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

async fn open_all(worker: &Rc<Worker>) -> (Cycle, Vec<(Rc<Link>, Reader)>) {
    let cycle = Rc::new(RefCell::new(Cycle::default()));
    let (opener, seen) = (worker.clone(), cycle.clone());
    let opened = worker.each(worker.clients().collect(), move |client| {
        let (worker, cycle) = (opener.clone(), seen.clone());
        async move { open_one(&worker, client, None, &cycle).await }
    });
    let open = opened.await.into_iter().flatten().collect();
    (cycle.take(), open)
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
