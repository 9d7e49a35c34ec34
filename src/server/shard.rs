//! One shard's thread: pin, make the driver here, loop.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::clock::{Clock, unix_time};
use crate::engine::driver::Driver;
use crate::engine::epoll::EpollDriver;
use crate::engine::recv_pool::RecvPool;
use crate::engine::sys::{self, Listener};
use crate::engine::uring::{RingKernel, RingSize, UringDriver, build_ring};
use crate::engine::wakers::Wakers;
use crate::gateway::counters::Counters;
use crate::gateway::{Chunk, Gateway, Parts, Progress, Snapshot};
use crate::limits::Limits;

/// Which driver every shard of the process runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverKind {
    /// io_uring, with rings of this size.
    Uring(RingSize),
    /// epoll.
    Epoll,
}

impl DriverKind {
    /// The name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uring(_) => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// What a shard's thread needs besides what its gateway is made of.
pub struct Seat {
    /// Bind the thread to this CPU.
    pub cpu: Option<usize>,
    /// What to run on.
    pub driver: DriverKind,
    /// This shard's listener. Without one it begins frozen.
    pub listener: Option<Listener>,
    /// How shards are woken.
    pub wakers: Arc<Wakers>,
    /// The process's clock.
    pub clock: Clock,
    /// What it begins with.
    pub snapshot: Snapshot,
    /// Where what it has at the end goes, if it goes on in another process.
    pub state: Option<Sender<Chunk>>,
}

/// What a shard says when it has begun to serve, or why it cannot.
pub type Started = Result<(), String>;

/// The body of a shard's thread: says `finished` when the shard is drained, gives out what goes on in another process, and returns.
///
/// # Errors
/// What means that the shard cannot go on. An error before it serves goes to `started` instead.
pub fn run(seat: Seat, parts: Parts, started: &Sender<Started>, finished: impl FnOnce()) -> io::Result<()> {
    if let Some(cpu) = seat.cpu
        && let Err(error) = sys::pin_to_cpu(cpu)
    {
        let _ = started
            .send(Err(format!("shard {} cannot be pinned to CPU {cpu}: {error}; choose others with --cpus, or --cpus off", parts.shard)));
        return Ok(());
    }
    let limits = Arc::clone(&parts.limits);
    let pool = RecvPool::new(limits.recv_buffers as usize, limits.recv_buffer_bytes as usize);
    let ends = Ends { clock: seat.clock, snapshot: seat.snapshot, state: seat.state };
    match seat.driver {
        DriverKind::Uring(size) => match uring(size, &seat.wakers, pool, &parts, seat.listener) {
            Ok(driver) => {
                let _ = started.send(Ok(()));
                serve(driver, parts, ends, finished)
            }
            Err(error) => {
                let _ = started.send(Err(format!(
                    "shard {} cannot make its ring: {error}; the memlock limit is {} bytes for all rings of this user: raise it (ulimit -l, LimitMEMLOCK=), or run fewer shards (--shards)",
                    parts.shard,
                    sys::memlock_limit()
                )));
                Ok(())
            }
        },
        DriverKind::Epoll => match EpollDriver::new(parts.shard, seat.listener, seat.wakers, pool, limits.accepts_per_turn as usize) {
            Ok(driver) => {
                let _ = started.send(Ok(()));
                serve(driver, parts, ends, finished)
            }
            Err(error) => {
                let _ = started.send(Err(format!("shard {} cannot make its epoll instance: {error}", parts.shard)));
                Ok(())
            }
        },
    }
}

fn uring(
    size: RingSize,
    wakers: &Arc<Wakers>,
    pool: Rc<RecvPool>,
    parts: &Parts,
    listener: Option<Listener>,
) -> io::Result<UringDriver<RingKernel>> {
    let frozen = listener.is_none();
    let kernel = RingKernel::new(build_ring(size)?, pool, parts.shard, Arc::clone(wakers), listener)?;
    Ok(if frozen { UringDriver::frozen(kernel) } else { UringDriver::new(kernel) })
}

/// The ring that the limits ask for.
pub fn ring_size(limits: &Limits) -> RingSize {
    RingSize { submissions: limits.ring_submissions as u32, completions: limits.ring_completions as u32 }
}

/// What a shard begins and ends with.
struct Ends {
    clock: Clock,
    snapshot: Snapshot,
    state: Option<Sender<Chunk>>,
}

/// The loop.
fn serve<D: Driver>(driver: D, parts: Parts, ends: Ends, finished: impl FnOnce()) -> io::Result<()> {
    let Ends { clock, snapshot, state } = ends;
    let counters: Arc<Counters> = Arc::clone(&parts.counters);
    let mut gateway = Gateway::new(driver, parts, clock.now());
    gateway.import(snapshot);
    loop {
        gateway.wait()?;
        let now = clock.now();
        let progress = gateway.step(now);
        counters.loop_seconds.record(clock.now().since(now));
        if progress == Progress::Finished {
            finished();
            if let Some(state) = state {
                // Who writes the file and cannot go on hears no more of it.
                gateway.export(unix_time().as_millis() as u64, |chunk| drop(state.send(chunk)));
            }
            return Ok(());
        }
    }
}
