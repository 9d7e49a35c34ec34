//! One thread of the generator: its runtime, and how a busy one lets messages gather.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use monoio::io::AsyncReadRent;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder, time::TimeDriver};

use super::clock;
use super::host::Host;
use super::plan::Plan;
use super::server::thread_id;
use super::shared::{Ear, Shared};

/// Submission entries of a thread's ring. A turn that needs more submits in between.
const RING_ENTRIES: u32 = 1024;

/// What every task of a thread can reach.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) plan: Arc<Plan>,
    pub(super) shared: Arc<Shared>,
    pub(super) host: Host,
    /// Messages came in this turn.
    busy: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Worker {
    /// The connections of this thread.
    pub(super) fn clients(&self) -> impl Iterator<Item = u32> {
        (0..self.plan.connections).filter(|client| self.plan.thread(*client) == self.index)
    }

    /// Does `act` to all of these, as many at once as handshakes may be under way, and waits for the last. What came of them, in any order.
    pub(super) async fn each<T: 'static, R: 'static, F: Future<Output = R> + 'static>(
        self: &Rc<Self>,
        items: Vec<T>,
        act: impl Fn(T) -> F + 'static,
    ) -> Vec<R> {
        let at_once = items.len().min(self.plan.concurrency_each() as usize);
        let (items, act, results) = (Rc::new(RefCell::new(items.into_iter())), Rc::new(act), Rc::new(RefCell::new(Vec::new())));
        let tasks: Vec<_> = (0..at_once)
            .map(|_| {
                let (worker, items, act, results) = (self.clone(), items.clone(), act.clone(), results.clone());
                monoio::spawn(async move {
                    loop {
                        let Some(item) = items.borrow_mut().next() else { break };
                        let result = act(item).await;
                        results.borrow_mut().push(result);
                        worker.touch();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        results.take()
    }

    /// Messages came: the thread may pause before it reads on.
    pub(super) fn touch(&self) {
        if !self.busy.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Runs `task` to its end.
    ///
    /// Between two turns of a busy thread it sleeps for the plan's `gather`. Reads that were asked for in this turn are handed to the kernel only after
    /// it, and on a ring with deferred task work the waiting ones complete only then, so that each takes all that came meanwhile. Without this a fast client would read
    /// frame by frame, and each read has the kernel send an acknowledgement, at the expense of the server's core.
    async fn run(self: Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let done = Rc::new(Cell::new(false));
        {
            let (done, worker) = (done.clone(), self.clone());
            drop(monoio::spawn(async move {
                task.await;
                done.set(true);
                worker.busy.set(false);
                worker.touch();
            }));
        }
        poll_fn(|context| {
            if done.get() {
                return Poll::Ready(());
            }
            self.waker.borrow_mut().get_or_insert_with(|| context.waker().clone());
            if self.busy.replace(false) && !self.plan.gather.is_zero() {
                clock::sleep(self.plan.gather);
            }
            Poll::Pending
        })
        .await;
    }
}

/// Runs what `make` returns on a runtime of this thread's own.
///
/// # Errors
/// The CPU cannot be taken, or neither io_uring nor epoll works.
pub(super) fn run<F: Future<Output = ()> + 'static>(
    index: usize,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    host: Host,
    ear: Ear,
    make: impl FnOnce(Rc<Worker>, Hearing) -> F,
) -> io::Result<()> {
    if !plan.cpus.is_empty() {
        (host.pin)(plan.cpus[index % plan.cpus.len()])?;
    }
    (host.sharp_sleep)();
    if let Some(id) = thread_id() {
        shared.gauges[index].thread.store(id, Ordering::Release);
    }
    let mut runtime = runtime()?;
    let legacy = matches!(runtime, FusionRuntime::Legacy(_));
    let worker = Rc::new(Worker { index, plan, shared, host, busy: Cell::new(false), waker: RefCell::new(None) });
    runtime.block_on(async move {
        // A ring waits for blocking sockets by itself and reports others as they are; epoll needs them non-blocking.
        ear.stream.set_nonblocking(legacy)?;
        let Ear { rung, stream, landed } = ear;
        let hearing = Hearing { stream: monoio::net::UnixStream::from_std(stream)?, rung, landed };
        let task = make(worker.clone(), hearing);
        worker.run(task).await;
        Ok(())
    })
}

/// io_uring where it works, else epoll.
fn runtime() -> io::Result<FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>> {
    if monoio::utils::detect_uring() {
        // Deferred task work (kernel 6.1) is what lets messages gather; a ring without it still works.
        let mut deferred = monoio_io_uring::IoUring::builder();
        deferred.setup_single_issuer().setup_defer_taskrun();
        for builder in [deferred, monoio_io_uring::IoUring::builder()] {
            let ring = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).uring_builder(builder).enable_timer().build();
            if let Ok(runtime) = ring {
                return Ok(runtime.into());
            }
        }
    }
    Ok(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.into())
}

/// This thread's end of its bell.
pub(super) struct Hearing {
    stream: monoio::net::UnixStream,
    rung: Arc<std::sync::atomic::AtomicBool>,
    pub(super) landed: std::sync::mpsc::Receiver<u32>,
}

impl Hearing {
    /// Waits until the bell rings. False when it never will again.
    pub(super) async fn hear(&mut self) -> bool {
        let (result, _) = self.stream.read(vec![0; 64]).await;
        // Before anything is looked at: what changes from here on rings again.
        self.rung.swap(false, Ordering::AcqRel);
        result.is_ok_and(|count| count > 0)
    }
}
