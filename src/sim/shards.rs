//! Real gateways over simulated kernels: several shards in one thread, with their real mailboxes between them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use crate::bus::link::Port;
use crate::engine::kernel::Kernel;
use crate::engine::mailbox::mesh;
use crate::engine::recv_pool::RecvPool;
use crate::engine::sim::{SimKernel, SimRingSize, World};
use crate::engine::sys::Listener;
use crate::engine::uring::UringDriver;
use crate::gateway::counters::Counters;
use crate::gateway::{Command, Gateway, Holdings, Page, Parts, Progress, Shared};
use crate::hub::Placement;
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::proto::pattern::Pattern;
use crate::proto::position::Epoch;
use crate::proto::slow::SlowRules;
use crate::proto::subject::Rules;
use crate::time::Time;

/// How the shards of a simulation are made.
#[derive(Clone, Debug)]
pub struct ShardsPlan {
    /// How many.
    pub shards: u16,
    /// The bounds; those that a process works out at start must be given.
    pub limits: Limits,
    /// What becomes of slow readers.
    pub slow: SlowRules,
    /// What is off unless an operator switches it on.
    pub features: Features,
    /// Sizes of the simulated rings.
    pub ring: SimRingSize,
    /// Seed of what is random inside the gateways.
    pub seed: u64,
}

/// What is off unless an operator switches it on.
#[derive(Clone, Copy, Default, Debug)]
pub struct Features {
    /// WebSockets that offer it may compress.
    pub compression: bool,
    /// Who asks is told who is in a room.
    pub presence: bool,
    /// Clients may subscribe to all rooms at once.
    pub wildcards: bool,
}

/// How long a step takes, where nobody says otherwise.
const TICK: Duration = Duration::from_micros(10);

pub(super) struct Seat<K> {
    pub(super) gateway: Gateway<UringDriver<K>>,
    pub(super) commands: Sender<Command>,
    pub(super) state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Inside its wait.
    Waiting,
    /// It has done a step and has not begun to wait: others may send it something just then.
    Awake,
    Finished,
}

/// The shards, each inside its wait or finished.
pub struct Shards<K = SimKernel> {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) plan: ShardsPlan,
    limits: Arc<Limits>,
    pub(super) seats: Vec<Seat<K>>,
    /// What they share.
    pub shared: Arc<Shared>,
    /// What each counts.
    pub counters: Vec<Arc<Counters>>,
    /// What each of processes before this one has counted.
    pub earlier: Vec<Arc<Counters>>,
    /// Queued bytes when nothing is queued: what every shard keeps for pings.
    pub memory_at_rest: usize,
}

impl Shards {
    /// Starts them all.
    pub fn start(plan: &ShardsPlan, world: &Rc<RefCell<World>>) -> Self {
        Self::start_on(plan, world, |kernel| kernel)
    }

    /// The same with a link to NATS, if there are ends of one.
    pub(super) fn start_linked(plan: &ShardsPlan, world: &Rc<RefCell<World>>, bridges: Vec<(Port, Arc<Rules>)>) -> Self {
        Self::make(plan, world, false, bridges, |_, pool| {
            let shard = world.borrow_mut().add_ring(plan.ring, pool);
            UringDriver::new(SimKernel::new(world, shard))
        })
    }
}

impl<K: Kernel> Shards<K> {
    /// Starts them all, each on what `around` makes of its simulated kernel.
    ///
    /// # Panics
    /// If a shard cannot begin, which it always can here.
    pub fn start_on(plan: &ShardsPlan, world: &Rc<RefCell<World>>, around: impl Fn(SimKernel) -> K) -> Self {
        Self::make(plan, world, false, Vec::new(), |_, pool| {
            let shard = world.borrow_mut().add_ring(plan.ring, pool);
            UringDriver::new(around(SimKernel::new(world, shard)))
        })
    }

    /// Makes them all, each on the driver that it is given.
    pub(super) fn make(
        plan: &ShardsPlan,
        world: &Rc<RefCell<World>>,
        frozen: bool,
        bridges: Vec<(Port, Arc<Rules>)>,
        mut driver: impl FnMut(ShardId, Rc<RecvPool>) -> UringDriver<K>,
    ) -> Self {
        let limits = Arc::new(plan.limits.clone());
        // 0 is worked out from the machine's memory by the real process.
        let history_bytes_max = if limits.history_bytes_max > 0 { limits.history_bytes_max } else { 1 << 30 };
        let shared = Shared::new(plan.shards, limits.connections_max, limits.queued_bytes_max, limits.topics_max, history_bytes_max);
        let placement = Placement::new(plan.shards, (plan.seed, !plan.seed));
        let counters: Vec<Arc<Counters>> = (0..plan.shards).map(|_| Arc::default()).collect();
        let rooms = ["room-*".parse::<Pattern>().expect("a pattern")];
        let now = world.borrow().now;
        let mut seats = Vec::new();
        let mut bridges = bridges.into_iter();
        for (index, mailbox) in mesh(plan.shards.into(), limits.mailbox_messages as usize).into_iter().enumerate() {
            let pool = RecvPool::new(limits.recv_buffers as usize, limits.recv_buffer_bytes as usize);
            let shard = ShardId(index as u16);
            let (commands, receiver) = bounded(16);
            let parts = Parts {
                shard,
                epoch: Epoch(plan.seed),
                shared: Arc::clone(&shared),
                counters: Arc::clone(&counters[index]),
                limits: Arc::clone(&limits),
                origins: Arc::new([]),
                compression: plan.features.compression,
                presence: rooms.iter().filter(|_| plan.features.presence).cloned().collect(),
                wildcards: plan.features.wildcards,
                addressing: Arc::default(),
                slow: Arc::new(plan.slow.clone()),
                pages: Arc::new([Page { path: "/", media_type: "text/html", body: "a page".into(), shared: false }]),
                placement,
                mailbox,
                bridge: bridges.next(),
                commands: receiver,
                seed: plan.seed.wrapping_add(index as u64),
                frozen,
            };
            let mut gateway = Gateway::new(driver(shard, pool), parts, now);
            gateway.begin_wait().expect("a simulated kernel takes everything");
            seats.push(Seat { gateway, commands, state: State::Waiting });
        }
        let memory_at_rest = shared.memory.bytes();
        Self { world: Rc::clone(world), plan: plan.clone(), limits, seats, shared, counters, earlier: Vec::new(), memory_at_rest }
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<K> {
        (0..self.seats.len() as u16).map(ShardId)
    }

    /// When a shard's wait ends as things are.
    pub fn due(&self, shard: ShardId) -> Option<Time> {
        match self.seats[shard.index()].state {
            State::Waiting => self.world.borrow().due(shard),
            State::Awake => Some(Time::ZERO),
            State::Finished => None,
        }
    }

    /// Has a shard that is awake begin its wait; or else ends its wait and has it do one step.
    ///
    /// # Panics
    /// Whenever the shard does; and if its kernel finds that it was used wrongly.
    pub fn step(&mut self, shard: ShardId) {
        let now = self.world.borrow().now;
        let seat = &mut self.seats[shard.index()];
        seat.state = match seat.state {
            State::Awake => {
                seat.gateway.begin_wait().expect("a simulated kernel takes everything");
                State::Waiting
            }
            _ => {
                seat.gateway.end_wait();
                match seat.gateway.step(now) {
                    Progress::Continue => State::Awake,
                    Progress::Finished => State::Finished,
                }
            }
        };
    }

    /// A shard that waits and has mail. Where nothing is about to happen, somebody should have woken it. In a drain shards look again by themselves, and one
    /// that has finished wakes nobody.
    pub fn sleeping_over_mail(&self) -> Option<ShardId> {
        if self.seats.iter().any(|seat| seat.state == State::Finished) {
            return None;
        }
        let sleeps = |seat: &Seat<K>| seat.state == State::Waiting && (seat.gateway.unread() > 0 || seat.gateway.hears_of_nats());
        self.seats.iter().position(sleeps).map(|shard| ShardId(shard as u16))
    }

    /// Lets kernel and shards run until `done`, which is asked whenever something may have happened, or until `time` has passed; whether it was done.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.world.borrow().now + time;
        loop {
            self.world.borrow_mut().stir();
            if done(&mut self.world.borrow_mut()) {
                return true;
            }
            let now = self.world.borrow().now;
            if now >= end {
                return false;
            }
            let dues: Vec<(ShardId, Time)> = self.ids().filter_map(|shard| Some((shard, self.due(shard)?))).collect();
            let soon = now + TICK;
            // What the kernel has put off it tries again soon; nothing takes no time at all.
            let next = dues.iter().map(|(_, due)| *due).chain(self.world.borrow().next_deed()).min().map_or(end, |at| at.max(soon));
            for (shard, due) in dues {
                if due <= now {
                    self.step(shard);
                }
            }
            self.world.borrow_mut().now = next.min(end);
        }
    }

    /// Asks them all to drain within `time`, and to finish then if `exits`.
    pub fn drain(&mut self, time: Duration, exits: bool) {
        let deadline = self.world.borrow().now + time;
        let window = Duration::from_millis(self.limits.drain_window_ms(self.shared.connections() as u64, self.seats.len() as u16));
        self.command(|| Command::Drain { window, deadline, exits });
    }

    /// Calls a drain off, once all shards have closed their listeners.
    ///
    /// # Panics
    /// If they have not.
    pub fn call_off_drain(&mut self) {
        assert!(self.shared.all_closed(), "a drain is called off when every listener is closed");
        self.command(|| Command::CallOff { listener: Listener::SIMULATED });
    }

    /// Asks them all to hand a share of their clients to others, in millionths.
    ///
    /// # Panics
    /// If they are at it already.
    pub fn rebalance(&mut self, share_ppm: u32, window: Duration) {
        assert!(self.shared.begin_rebalancing(), "one rebalance at a time");
        self.command(|| Command::Rebalance { share_ppm, window });
    }

    pub(super) fn command(&mut self, mut command: impl FnMut() -> Command) {
        for (index, seat) in self.seats.iter().enumerate() {
            seat.commands.send(command()).expect("a shard that is asked for something has not finished");
            self.world.borrow_mut().signal(ShardId(index as u16));
        }
    }

    /// What they and those before them have counted.
    pub fn all_counters(&self) -> impl Iterator<Item = &Counters> {
        self.earlier.iter().chain(&self.counters).map(Arc::as_ref)
    }

    /// Whether all have finished.
    pub fn have_finished(&self) -> bool {
        self.seats.iter().all(|seat| seat.state == State::Finished)
    }

    /// Messages between shards so far.
    pub fn mail_sent(&self) -> u64 {
        self.seats.iter().map(|seat| seat.gateway.mail_sent()).sum()
    }

    /// What a shard holds now.
    pub fn holdings(&self, shard: ShardId) -> Holdings {
        self.seats[shard.index()].gateway.holdings()
    }
}
