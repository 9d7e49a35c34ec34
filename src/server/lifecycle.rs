//! From serving to the end: what signals and the admin listener ask for, and how shards are told.
//!
//! ```text
//!   Serving ──SIGTERM, SIGINT, POST /drain──▶ waiting (limits.drain_wait_ms) ──▶ draining ──▶ drained ──exits──▶ the end
//!      ▲                                         │                                  │            │
//!      └────────────── DELETE /drain, unless the process is to end ─────────────────┴────────────┘
//! ```
//!
//! SIGUSR2 hands everything over to the next process (`server::handover`), or is a drain whose end is another beginning (`server::restart`).
//!
//! It is the main thread's loop, apart from every shard: a shard that is stuck delays nobody's answer but its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::clock::Clock;
use super::handover::HandedOver;
use super::restart::Kept;
use super::systemd::Notifier;
use crate::engine::sys::{self, Listener};
use crate::engine::wakers::Wakers;
use crate::gateway::counters::{Counters, Transport};
use crate::gateway::{Command, Shared};
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::time::Time;

/// How far the gateway is, for `/readyz`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Not yet every shard accepts.
    Starting,
    /// Clients can connect.
    Serving,
    /// Clients should go elsewhere.
    Draining,
}

/// The phase, shared between the main thread, which sets it, and whoever asks.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    /// A gateway that is starting.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Moves to another phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }
}

/// What comes to the main thread.
#[derive(Debug)]
pub enum Order {
    /// The first signal that ends the process, by name.
    Signal(&'static str),
    /// The process is to become the program that is at its path now.
    Restart,
    /// A request of the admin listener, and where its answer goes.
    Ask(Ask, Sender<Reply>),
    /// A shard has finished.
    ShardEnded(ShardId),
}

/// A request of the admin listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// How far is a drain?
    Status,
    /// Begin one.
    Drain {
        /// The process ends with it.
        exits: bool,
    },
    /// Serve again.
    CallOff,
    /// Tell a share of the clients to come back.
    Rebalance {
        /// How many of a million.
        share_ppm: u32,
    },
}

/// An answer to it: a JSON object, or why not.
pub type Reply = Result<String, Refusal>;

/// Why a request is not possible now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The status of the response.
    pub status: u16,
    /// A sentence.
    pub message: String,
}

fn conflict(message: impl Into<String>) -> Reply {
    Err(Refusal { status: 409, message: message.into() })
}

/// How often the main thread looks at a drain.
const LOOK: Duration = Duration::from_millis(10);
/// How often it looks whether a hand-over is done: as long as the old process may outlast it.
const HANDING_OVER_LOOK: Duration = Duration::from_millis(1);
/// How often it tells how far the drain is.
const TELL: Duration = Duration::from_secs(1);
/// How long after the deadline shards may take to finish.
const OVERDUE: Duration = Duration::from_secs(2);
/// How long calling a drain off may take: until every shard has closed its listener.
const CALL_OFF_WITHIN: Duration = Duration::from_secs(2);

/// Hands everything over to the next process.
pub type HandOver = Box<dyn Fn() -> Result<HandedOver, String> + Send + Sync>;

/// What the main thread works with.
pub struct Parts {
    /// The process's clock.
    pub clock: Clock,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// What each counts.
    pub counters: Vec<Arc<Counters>>,
    /// How shards are woken.
    pub wakers: Arc<Wakers>,
    /// The phase, for others to see.
    pub readiness: Arc<Readiness>,
    /// The way to each shard.
    pub shards: Vec<Sender<Command>>,
    /// The way to systemd.
    pub notifier: Notifier,
    /// What systemd is told while clients are served.
    pub serving: String,
    /// Makes listeners anew, one for each shard.
    pub listen_again: Box<dyn Fn() -> Result<Vec<Listener>, String>>,
    /// Looks whether a restart would succeed.
    pub try_restart: Box<dyn Fn() -> Result<(), String>>,
    /// None where a restart is a drain.
    pub hand_over: Option<HandOver>,
    /// Lets what waits for NATS go out, before the process ends.
    pub part_from_nats: Box<dyn Fn()>,
    /// The sockets that stay open over a restart, where whoever comes waits from now on.
    pub keep: Box<dyn Fn() -> Result<Kept, String>>,
}

/// What is left when every shard has finished.
pub struct End {
    /// The way to systemd.
    pub notifier: Notifier,
    /// The sockets of the program that this process becomes, if it does.
    pub restart: Option<Kept>,
}

/// The main thread's part of serving.
pub struct Lifecycle {
    parts: Parts,
    drain: Option<Drain>,
    shards_left: usize,
    watchdog: Watchdog,
}

/// Whether every shard's loop turns. One that has nothing to do sleeps, so each is woken, and looked at a while later.
struct Watchdog {
    /// A quarter of the time after which systemd kills the process: one slow turn costs nothing.
    pause: Duration,
    /// None when nobody watches.
    next_at: Option<Time>,
    /// Turns of each shard at the last look; none of one that has finished.
    turns: Vec<Option<u64>>,
}

impl Watchdog {
    fn new(limit: Option<Duration>, now: Time, shards: usize) -> Self {
        Self { pause: limit.unwrap_or_default() / 4, next_at: limit.map(|_| now), turns: vec![Some(0); shards] }
    }

    fn forget(&mut self, shard: ShardId) {
        self.turns[shard.index()] = None;
    }

    fn all_have_turned(&mut self, counters: &[Arc<Counters>]) -> bool {
        let mut all = true;
        for (known, shard) in self.turns.iter_mut().zip(counters) {
            if let Some(known) = known {
                let turns = shard.loop_turns.value();
                all &= std::mem::replace(known, turns) != turns;
            }
        }
        all
    }
}

/// A drain, as the main thread sees it.
struct Drain {
    /// Connections when it began.
    connections: usize,
    /// When shards stop accepting.
    starts: Time,
    deadline: Time,
    /// The process ends with it.
    exits: bool,
    /// It becomes another program then, with these sockets.
    restarts: bool,
    restart: Option<Kept>,
    stage: Stage,
    next_line: Time,
    /// Somebody waits for it to be called off, until then.
    calling_off: Option<(Sender<Reply>, Time)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not ready any more, and still accepting.
    Waiting,
    Draining,
    /// Nobody is left.
    Drained,
    /// It was called off, and not every shard has listened again yet.
    Reopening,
}

impl Drain {
    fn state(&self) -> &'static str {
        match self.stage {
            Stage::Waiting => "waiting",
            Stage::Draining | Stage::Reopening => "draining",
            Stage::Drained => "drained",
        }
    }
}

impl Lifecycle {
    /// For shards that serve.
    pub fn new(parts: Parts) -> Self {
        let shards_left = parts.shards.len();
        let watchdog = Watchdog::new(parts.notifier.watchdog(), parts.clock.now(), shards_left);
        parts.notifier.ready(&parts.serving);
        Self { parts, drain: None, shards_left, watchdog }
    }

    /// Does what is ordered until every shard has finished.
    pub fn run(mut self, orders: &Receiver<Order>) -> End {
        while self.shards_left > 0 {
            let order = match self.wait() {
                None => orders.recv().ok(),
                Some(wait) => orders.recv_timeout(wait).ok(),
            };
            match order {
                None => {}
                Some(Order::ShardEnded(shard)) => {
                    self.shards_left -= 1;
                    self.watchdog.forget(shard);
                }
                Some(Order::Signal(name)) => self.signalled(name),
                Some(Order::Restart) => self.restart(),
                Some(Order::Ask(ask, reply)) => self.asked(ask, reply),
            }
            self.step();
            self.watch();
        }
        End { notifier: self.parts.notifier, restart: self.drain.and_then(|drain| drain.restart) }
    }

    fn wait(&self) -> Option<Duration> {
        let watches = self.drain.as_ref().is_some_and(|drain| drain.exits || drain.stage != Stage::Drained);
        let looks = watches.then_some(LOOK);
        let pings = self.watchdog.next_at.map(|at| at.since(self.parts.clock.now()));
        looks.into_iter().chain(pings).min()
    }

    /// Tells whoever watches this process that no shard is stuck, if that is so, and wakes all of them to find it out again.
    fn watch(&mut self) {
        let now = self.parts.clock.now();
        if self.watchdog.next_at.is_none_or(|at| now < at) {
            return;
        }
        if self.watchdog.all_have_turned(&self.parts.counters) {
            self.parts.notifier.keep_alive();
        }
        self.watchdog.next_at = Some(now + self.watchdog.pause);
        for shard in 0..self.parts.shards.len() {
            self.parts.wakers.signal(ShardId(shard as u16));
        }
    }

    fn signalled(&mut self, name: &'static str) {
        let connections = self.parts.shared.connections();
        let limits = &self.parts.limits;
        tracing::info!(signal = name, connections, wait_ms = limits.drain_wait_ms, deadline_ms = limits.drain_ms, "shutting down");
        self.begin_drain(true);
        if let Some(drain) = &mut self.drain {
            // Who waited for the next program is reset: it does not come.
            drain.restarts = false;
            drain.restart = None;
        }
    }

    /// Watches over the shards while something is done that may take longer than the watchdog waits. Frozen shards turn too.
    fn meanwhile(&mut self, hand_over: &HandOver) -> Result<HandedOver, String> {
        thread::scope(|scope| {
            let task = thread::Builder::new().name("hand-over".to_owned()).spawn_scoped(scope, hand_over);
            let task = task.map_err(|error| format!("cannot start a thread: {error}"))?;
            while !task.is_finished() {
                self.watch();
                thread::park_timeout(HANDING_OVER_LOOK);
            }
            task.join().expect("a thread that panics has ended the process")
        })
    }

    /// Hands over, or begins the drain of a restart, if that would lead to one.
    fn restart(&mut self) {
        if self.drain.is_some() {
            return tracing::warn!("SIGUSR2 during a drain: no restart; ask again when it is called off");
        }
        if let Err(error) = (self.parts.try_restart)() {
            return tracing::error!("no restart: {error}. Serving goes on");
        }
        let connections = self.parts.shared.connections();
        if let Some(hand_over) = self.parts.hand_over.take() {
            tracing::info!(connections, "handing over to the next process");
            let handed_over = self.meanwhile(&hand_over);
            self.parts.hand_over = Some(hand_over);
            match handed_over {
                Ok(HandedOver { pid, connections }) => {
                    self.parts.notifier.main_pid(pid);
                    // What clients have published goes out.
                    (self.parts.part_from_nats)();
                    match connections {
                        Some((connections, pause)) => {
                            tracing::info!(pid, connections, pause_ms = pause.as_secs_f64() * 1000.0, "handed over; this process ends");
                        }
                        None => tracing::error!(pid, "the next process has taken everything over, and has died"),
                    }
                    sys::exit_now(i32::from(connections.is_none()));
                }
                Err(error) => return tracing::error!("no hand-over: {error}. Serving goes on"),
            }
        }
        tracing::info!(connections, wait_ms = self.parts.limits.drain_wait_ms, "restarting in place: drains first");
        self.begin_drain_for(true, true);
    }

    fn asked(&mut self, ask: Ask, reply: Sender<Reply>) {
        let answer = match ask {
            Ask::Status => Ok(self.status()),
            Ask::Drain { .. } if self.drain.as_ref().is_some_and(|drain| drain.stage == Stage::Reopening) => {
                conflict("a drain is being called off; try again when it is")
            }
            Ask::Drain { exits } => {
                tracing::info!(exits, connections = self.parts.shared.connections(), "asked to drain by the admin listener");
                self.begin_drain(exits);
                self.step();
                Ok(self.status())
            }
            Ask::CallOff => match &mut self.drain {
                None => conflict("no drain is under way"),
                Some(drain) if drain.exits => {
                    conflict("this drain ends the process (a signal, or ?exit=1) and cannot be called off; POST /drain without it can be")
                }
                Some(drain) if drain.calling_off.is_some() => conflict("the drain is being called off already"),
                Some(drain) => {
                    drain.calling_off = Some((reply, self.parts.clock.now() + CALL_OFF_WITHIN));
                    return;
                }
            },
            Ask::Rebalance { share_ppm } => self.rebalance(share_ppm),
        };
        // Who has given up waiting does not read it.
        let _ = reply.send(answer);
    }

    fn begin_drain(&mut self, exits: bool) {
        self.begin_drain_for(exits, false);
    }

    /// Begins a drain, or has the one that is under way end the process.
    fn begin_drain_for(&mut self, exits: bool, restarts: bool) {
        let now = self.parts.clock.now();
        self.parts.readiness.set(Phase::Draining);
        let limits = &self.parts.limits;
        let starts = now + Duration::from_millis(limits.drain_wait_ms);
        let drain = self.drain.get_or_insert_with(|| Drain {
            connections: self.parts.shared.connections(),
            starts,
            deadline: starts + Duration::from_millis(limits.drain_ms),
            exits: false,
            restarts,
            restart: None,
            stage: Stage::Waiting,
            next_line: now + TELL,
            calling_off: None,
        });
        if exits && !std::mem::replace(&mut drain.exits, true) {
            if let Some((reply, _)) = drain.calling_off.take() {
                let _ = reply.send(conflict("the process was told to end meanwhile"));
            }
            if !restarts {
                self.parts.notifier.stopping("draining");
            }
            // Shards that are about to listen again are told when they do.
            if !matches!(drain.stage, Stage::Waiting | Stage::Reopening) {
                let deadline = drain.deadline;
                self.command(|| Command::Drain { window: Duration::ZERO, deadline, exits });
            }
        }
    }

    /// Takes a drain further.
    fn step(&mut self) {
        let now = self.parts.clock.now();
        let Some(drain) = &mut self.drain else { return };
        if drain.exits && now >= drain.deadline + OVERDUE {
            let shards = self.shards_left;
            eprintln!(
                "shardcast: {shards} shards have not finished {} s after the deadline of the drain; ending at once",
                OVERDUE.as_secs()
            );
            sys::exit_now(1);
        }
        let connections = self.parts.shared.connections();
        drain.connections = drain.connections.max(connections);
        if drain.stage == Stage::Reopening {
            if self.parts.shared.all_open() {
                self.reopened();
            }
            return;
        }
        if let Some((reply, until)) = drain.calling_off.take() {
            let closed = drain.stage == Stage::Waiting || self.parts.shared.all_closed();
            match closed {
                true => return self.call_off(reply),
                false if now >= until => {
                    let message = format!("a shard did not stop accepting within {} s; try again", CALL_OFF_WITHIN.as_secs());
                    let _ = reply.send(Err(Refusal { status: 503, message }));
                }
                false => drain.calling_off = Some((reply, until)),
            }
        }
        if drain.stage == Stage::Waiting && now >= drain.starts {
            drain.stage = Stage::Draining;
            if drain.restarts {
                match (self.parts.keep)() {
                    Ok(kept) => drain.restart = Some(kept),
                    Err(error) => tracing::error!("{error}: the process ends after this drain, and does not begin again by itself"),
                }
            }
            let window = Duration::from_millis(self.parts.limits.drain_window_ms(connections as u64, self.parts.shards.len() as u16));
            let (deadline, exits) = (drain.deadline, drain.exits);
            tracing::info!(connections, window_ms = window.as_millis() as u64, "stops accepting and says goodbye");
            return self.command(|| Command::Drain { window, deadline, exits });
        }
        if drain.stage == Stage::Draining && self.parts.shared.is_drained() {
            drain.stage = Stage::Drained;
            if !drain.exits {
                self.parts.notifier.status("drained");
                tracing::info!("drained: nobody is left; SIGTERM ends the process, DELETE /drain on the admin listener serves again");
            }
        } else if drain.stage != Stage::Drained && now >= drain.next_line {
            drain.next_line = now + TELL;
            let gone = drain.connections - connections;
            let seconds_left = drain.deadline.since(now).as_secs();
            tracing::info!(state = drain.state(), left = connections, gone, seconds_left, "drain");
            let status = format!("{}: {connections} connections left, {seconds_left} s", drain.state());
            match drain.exits && !drain.restarts {
                true => self.parts.notifier.still_stopping(&status),
                false => self.parts.notifier.status(&status),
            }
        }
    }

    fn call_off(&mut self, reply: Sender<Reply>) {
        let now = self.parts.clock.now();
        let waited = self.drain.as_ref().is_none_or(|drain| drain.stage == Stage::Waiting);
        if !waited {
            let mut listeners = match (self.parts.listen_again)() {
                Ok(listeners) => listeners.into_iter(),
                Err(error) => {
                    let _ = reply.send(conflict(format!("{error}; the drain goes on")));
                    return;
                }
            };
            self.command(|| Command::CallOff { listener: listeners.next().expect("one for each shard") });
        }
        if let Some(drain) = &mut self.drain {
            drain.stage = Stage::Reopening;
            drain.deadline = now + CALL_OFF_WITHIN;
            drain.calling_off = Some((reply, drain.deadline));
        }
        if waited {
            self.reopened();
        }
    }

    /// A drain was called off, and every shard accepts.
    fn reopened(&mut self) {
        let Some(drain) = self.drain.take() else { return };
        if drain.exits {
            // It was told to end in between.
            return self.begin_drain(true);
        }
        tracing::info!("the drain is called off: serving again");
        self.parts.readiness.set(Phase::Serving);
        self.parts.notifier.status(&self.parts.serving);
        if let Some((reply, _)) = drain.calling_off {
            let _ = reply.send(Ok(self.status()));
        }
    }

    fn rebalance(&self, share_ppm: u32) -> Reply {
        if self.drain.is_some() {
            return conflict("a drain is under way: every client is told to come back elsewhere");
        }
        if !self.parts.shared.begin_rebalancing() {
            return conflict("a rebalance is under way; try again when it is over");
        }
        let open = |shard: &Arc<Counters>| {
            let live = |transport| shard.connections.of(transport).value();
            live(Transport::Ws) + live(Transport::Sse)
        };
        let connections: u64 = self.parts.counters.iter().map(open).sum();
        let leaving = connections * u64::from(share_ppm) / 1_000_000;
        let window_ms = self.parts.limits.drain_window_ms(leaving, self.parts.shards.len() as u16);
        tracing::info!(connections, leaving, window_ms, "rebalance: a share of the clients is told to come back");
        self.command(|| Command::Rebalance { share_ppm, window: Duration::from_millis(window_ms) });
        Ok(format!("{{\"connections\":{connections},\"leaving\":{leaving},\"window_ms\":{window_ms}}}\n"))
    }

    fn status(&self) -> String {
        let connections = self.parts.shared.connections();
        let Some(drain) = &self.drain else {
            return format!("{{\"state\":\"serving\",\"connections\":{connections}}}\n");
        };
        let deadline_ms = drain.deadline.since(self.parts.clock.now()).as_millis();
        let (state, exits) = (drain.state(), drain.exits);
        format!("{{\"state\":\"{state}\",\"connections\":{connections},\"deadline_ms\":{deadline_ms},\"exits\":{exits}}}\n")
    }

    /// Tells every shard. Their queues have room: each command is answered by deeds before another of its kind is sent.
    fn command(&self, mut command: impl FnMut() -> Command) {
        for (index, shard) in self.parts.shards.iter().enumerate() {
            if let Err(error) = shard.try_send(command()) {
                tracing::error!(shard = index, %error, "a shard takes no commands");
            }
            self.parts.wakers.signal(ShardId(index as u16));
        }
    }
}
