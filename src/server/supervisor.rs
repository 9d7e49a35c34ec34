//! From a configuration to a serving process, and back: listeners, shards, signals, shutdown, restart.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::admin::AdminError;
use super::bus::Bridges;
use super::clock::{Clock, unix_time};
use super::config::{Config, Cpus, DriverChoice, RestartChoice};
use super::debug::{Debug, Doors};
use super::handover::Estate;
use super::house::House;
use super::lifecycle::{End, HandOver, Lifecycle, Order, Phase, Readiness};
use super::metrics::{Metrics, ProcessFacts};
use super::restart::{Kept, Program};
use super::shard::{DriverKind, Seat, Started, ring_size, run};
use super::state::{StateFile, StateFileError};
use super::systemd::Notifier;
use super::takeover::Takeover;
use super::{admin, bus, debug, host, lifecycle, signals};
use crate::bus::link::LinkShared;
use crate::engine::mailbox::mesh;
use crate::engine::sys::{self, Listener};
use crate::engine::uring::probe::{Blocked, probe};
use crate::engine::wakers::Wakers;
use crate::gateway::counters::Counters;
use crate::gateway::state_stream::Written;
use crate::gateway::{Chunk, Command, Inheritance, Parts, Shared, Snapshot};
use crate::hub::Placement;
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::proto::pattern::Pattern;
use crate::proto::position::Epoch;
use crate::web;

/// Why the gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, most likely by another instance.
    #[error("{0} is in use: another process listens there, perhaps another shardcast; stop it, or choose another address with --listen")]
    AddressInUse(SocketAddr),
    /// An IPv6 address, and no IPv6.
    #[error("cannot listen on {0}: this host has no IPv6 ({1}); use an IPv4 address, for example --listen 0.0.0.0:{port}", port = .0.port())]
    NoIpv6(SocketAddr, io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// `--driver uring`, and it is not to be had.
    #[error("{0}; --driver auto would go on with epoll")]
    NoUring(Blocked),
    /// A CPU in `--cpus` that this process may not use.
    #[error("CPU {cpu} is not among those that this process may use ({allowed:?}); change --cpus")]
    Cpu {
        /// Asked for.
        cpu: usize,
        /// Allowed.
        allowed: Vec<usize>,
    },
    /// The admin listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A shard could not begin.
    #[error("{0}")]
    Shard(String),
    /// Sockets were passed that cannot be used.
    #[error("{0}")]
    Passed(String),
    /// NATS cannot be used as configured.
    #[error("{0}")]
    Nats(String),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// It was started to take over from another process, and cannot.
    #[error("cannot take over from the process before: {0}")]
    Takeover(String),
    /// At the end the state could not be written.
    #[error("{file} could not be written: {error}; who comes back will be told of a gap")]
    StateLost {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// It was to begin again as another program.
    #[error("the restart failed: {error}; start shardcast again")]
    Restart {
        /// Why.
        error: io::Error,
    },
    /// Something that hardly ever fails.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        error: io::Error,
    },
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System { what, error }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What kept it from serving; nothing was served then.
pub fn serve(config: Config) -> Result<(), ServeError> {
    let mut clock = Clock::new();
    end_process_on_panic();
    sys::disable_huge_pages();
    let program = Program::of_this_process().map_err(system("find this program"))?;
    let nofile = sys::raise_nofile().map_err(system("raise the limit of file descriptors"))?;
    let allowed = sys::allowed_cpus();
    let shards = config.shards.unwrap_or_else(|| bus::shards_beside(&config.nats, host::shards_by_default(&allowed)));
    let cpus = seats(&config.cpus, shards, &allowed)?;
    let limits = Arc::new(config.limits.clone());
    let driver = choose_driver(config.driver, &limits, shards)?;
    let shutdown = signals::register().map_err(system("catch signals"))?;
    let patience = Duration::from_millis(limits.handover_ms);
    let takeover = Takeover::from_environment(shards, patience).map_err(ServeError::Takeover)?;
    // The process before serves at its sockets until this one has its shards.
    let mut fresh = if takeover.is_some() { None } else { Some(House::open(&config, shards, &limits)?) };
    if config.state.is_some() || takeover.is_some() {
        // Histories and keys of before have times of before.
        clock = clock.ahead(Duration::from_millis(limits.history_age_ms.max(limits.idempotency_ms)));
    }

    let shared = Shared::new(
        shards,
        if limits.connections_max > 0 { limits.connections_max } else { host::connections_allowed(&limits, nofile, shards) },
        if limits.queued_bytes_max > 0 { limits.queued_bytes_max } else { host::queued_bytes_allowed(&limits, host::memory_allowed()) },
        limits.topics_max,
        if limits.history_bytes_max > 0 { limits.history_bytes_max } else { host::memory_allowed() / 8 },
    );
    let counters: Vec<Arc<Counters>> = (0..shards).map(|_| Arc::default()).collect();
    let wakers = Wakers::new(shards).map_err(system("make eventfds"))?;
    let (nats, bridges) =
        bus::start(&config.nats, &limits, shards, random(), &wakers, bus::spare_cpu(&cpus, &allowed)).map_err(ServeError::Nats)?;
    let link = bridges.link.clone();
    let nats = Rc::new(Cell::new(nats));
    let readiness = Readiness::new();
    let (orders, ordered) = bounded(ORDERS_MAX);
    let doors = Arc::new(OnceLock::new());
    // Dropped, it has the admin listener accept.
    let (open, opened) = bounded::<()>(0);
    let mut open = Some(open);
    let start_admin = |house: &mut House| {
        let Some(admin) = house.admin.take() else { return Ok(()) };
        let facts = ProcessFacts {
            driver: driver.name(),
            kernel: sys::kernel_release(),
            start: unix_time(),
            connections_max: shared.connections_max,
            queued_bytes_max: shared.queued_bytes_max,
            shared: Arc::clone(&shared),
            readiness: Arc::clone(&readiness),
            nats: link.clone(),
        };
        let debug = Debug {
            clock,
            limits: Arc::clone(&limits),
            shared: Arc::clone(&shared),
            readiness: Arc::clone(&readiness),
            doors: Arc::clone(&doors),
            nats: link.clone(),
        };
        admin.start(clock, Metrics::new(counters.clone(), facts), debug, orders.clone(), opened.clone())
    };
    if let Some(house) = &mut fresh {
        start_admin(house)?;
        open.take();
    }

    // From here on clients are served: the file must be gone by then.
    let bytes_max = shared.history_bytes_max.saturating_mul(2).saturating_add(STATE_BYTES_BESIDE);
    let state = fresh.as_ref().and_then(|house| house.state.as_ref());
    let restored = state.map(|state| state.take(unix_time().as_millis() as u64, bytes_max)).transpose()?.flatten();
    let (epoch, hash_key) = match (&takeover, &restored) {
        (Some(before), _) => (before.epoch, before.hash_key),
        (None, Some(restored)) => (restored.epoch, restored.hash_key),
        (None, None) => (new_epoch(), (random(), random())),
    };
    let placement = Placement::new(shards, hash_key);
    let snapshots = restored.map_or_else(Vec::new, |restored| restored.split(&placement));
    let plan = Plan {
        config: &config,
        limits: Arc::clone(&limits),
        driver,
        cpus,
        clock,
        shared: Arc::clone(&shared),
        counters: counters.clone(),
        wakers,
        orders: orders.clone(),
        epoch,
        placement,
        keeps_state: config.state.is_some(),
    };
    let listening = fresh.as_mut().map(|house| std::mem::take(&mut house.listeners));
    let Crew { commands, threads, states } = plan.start(listening, snapshots, bridges)?;
    let (mut house, before) = match (fresh, takeover) {
        (Some(house), _) => (house, None),
        (None, Some(mut before)) => {
            let taken = plan.take_over(&mut before, hash_key, patience, &commands, link.as_deref());
            let mut house = taken.inspect_err(|error| before.refuse(&error.to_string()))?;
            start_admin(&mut house)?;
            (house, Some(before))
        }
        (None, None) => unreachable!("a house is opened or taken over"),
    };
    doors.get_or_init(|| Doors { commands: commands.clone(), wakers: Arc::clone(&plan.wakers) });
    let reporting = shutdown.report(plan.orders.clone()).map_err(system("watch for signals"))?;
    let address = house.place.address();
    let admin_text = house.admin_address.map_or_else(|| "admin off".to_owned(), |address| format!("admin http://{address}"));

    let hand_over = match config.restart {
        // The container would end with it.
        RestartChoice::HandOver if std::process::id() == 1 => None,
        RestartChoice::Drain => None,
        RestartChoice::HandOver => {
            let estate = Estate {
                program: program.clone(),
                clock,
                epoch,
                hash_key,
                shared: Arc::clone(&shared),
                wakers: Arc::clone(&plan.wakers),
                shards: commands.clone(),
                nats: link.clone(),
                passed: house.place.share_passed().map_err(system("keep the socket that was passed"))?,
                admin: house.admin_kept.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("keep the admin listener"))?,
                lock: house.state.as_ref().map(StateFile::share_lock).transpose().map_err(system("keep the lock of the state"))?,
                patience,
            };
            Some(Box::new(move || estate.hand_over()) as HandOver)
        }
    };
    if let Some(before) = before {
        // From here on nothing may fail: the process before ends, and clients have only this one.
        before.taken();
        let mut listeners = std::mem::take(&mut house.listeners).into_iter();
        plan.command(&commands, || Command::Thaw { listener: listeners.next() });
    }
    readiness.set(Phase::Serving);
    drop(open);
    // Who does not hear it is served all the same.
    let _ = writeln!(
        io::stderr(),
        "shardcast {} ready: http://{address} ({shards} shard{}, {} driver, {admin_text})",
        env!("CARGO_PKG_VERSION"),
        if shards == 1 { "" } else { "s" },
        driver.name()
    );
    let (state, admin_kept) = (house.state.take(), house.admin_kept.take());
    let place = Rc::new(house.place);
    let (limits, here) = (Arc::clone(&plan.limits), Rc::clone(&place));
    let listen_again = move || here.listen_again(shards, &limits).map_err(|error| error.to_string());
    let limits = Arc::clone(&plan.limits);
    let keep = move || {
        let clients = place.keep(&limits).map_err(|error| error.to_string())?;
        let admin = admin_kept.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Kept { clients, admin: admin.map_err(|error| format!("the admin listener cannot be kept: {error}"))? })
    };
    let trial = program.clone();
    let parted = Rc::clone(&nats);
    let part_from_nats = move || {
        if let Some(nats) = parted.take() {
            nats.stop();
        }
    };
    let parts = lifecycle::Parts {
        clock,
        limits: plan.limits,
        shared: plan.shared,
        counters: plan.counters,
        wakers: plan.wakers,
        readiness,
        shards: commands,
        notifier: Notifier::from_environment(),
        serving: format!("serving on {address}, {shards} shards, {} driver", driver.name()),
        listen_again: Box::new(listen_again),
        try_restart: Box::new(move || trial.try_out(clock)),
        hand_over,
        part_from_nats: Box::new(part_from_nats),
        keep: Box::new(keep),
    };
    let End { notifier, restart } = Lifecycle::new(parts).run(&ordered);
    let written = state.map(|state| write_state(&state, epoch, hash_key, states, clock, &notifier));
    for thread in threads {
        // A shard that panicked has ended the process.
        let _ = thread.join();
    }
    if let Some(nats) = nats.take() {
        nats.stop();
    }
    written.transpose()?;
    // Who has told it to end meanwhile is obeyed.
    let is_over = ordered.try_iter().any(|order| matches!(order, Order::Signal(_)));
    match restart.filter(|_| !is_over) {
        None => tracing::info!("shut down"),
        Some(kept) => {
            tracing::info!("begins again");
            reporting.stop();
            return Err(ServeError::Restart { error: program.begin_again(kept) });
        }
    }
    Ok(())
}

/// Writes what the shards give, and asks for time meanwhile.
fn write_state(
    state: &StateFile,
    epoch: Epoch,
    hash_key: (u64, u64),
    shards: Vec<Receiver<Chunk>>,
    clock: Clock,
    notifier: &Notifier,
) -> Result<(), ServeError> {
    let mut next_line = clock.now() + STATE_LINE;
    let written = state.write(epoch, hash_key, shards, |bytes| {
        if clock.now() >= next_line {
            next_line = clock.now() + STATE_LINE;
            notifier.keep_alive();
            notifier.still_stopping(&format!("writing the state: {bytes} bytes so far"));
        }
    });
    let file = state.path().display();
    match written {
        Ok(Written { bytes, counts: [topics, messages, keys, _] }) => {
            tracing::info!(%file, bytes, topics, messages, keys, "the state is written: the next process goes on from there");
            Ok(())
        }
        Err(error) => Err(ServeError::StateLost { file: file.to_string(), error }),
    }
}

/// A panic in one shard must never pass silently, and must not unwind: that would free buffers that the kernel still uses.
fn end_process_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        let thread = thread::current();
        eprintln!(
            "shardcast: thread {} panicked; the process ends, clients reconnect. This is a bug: please report the lines above.",
            thread.name().unwrap_or("?")
        );
        sys::exit_now(1);
    }));
}

fn seats(cpus: &Cpus, shards: u16, allowed: &[usize]) -> Result<Vec<Option<usize>>, ServeError> {
    let shards = usize::from(shards);
    match cpus {
        Cpus::Auto if shards <= allowed.len() => Ok(allowed.iter().take(shards).copied().map(Some).collect()),
        Cpus::Auto | Cpus::Off => Ok(vec![None; shards]),
        Cpus::List(list) => {
            if let Some(&cpu) = list.iter().find(|cpu| !allowed.contains(cpu)) {
                return Err(ServeError::Cpu { cpu, allowed: allowed.to_vec() });
            }
            Ok((0..shards).map(|shard| Some(list[shard % list.len()])).collect())
        }
    }
}

fn choose_driver(choice: DriverChoice, limits: &Limits, shards: u16) -> Result<DriverKind, ServeError> {
    if choice == DriverChoice::Epoll {
        return Ok(DriverKind::Epoll);
    }
    let wanted = ring_size(limits);
    match probe(wanted, shards, limits.recv_buffers as usize) {
        Ok(features) => {
            if features.size != wanted {
                tracing::warn!(
                    submissions = features.size.submissions,
                    completions = features.size.completions,
                    "rings are smaller than limits.ring_submissions and limits.ring_completions ask for: the memlock limit of {} bytes does not allow more for {shards} shards; raise it (ulimit -l, LimitMEMLOCK=)",
                    sys::memlock_limit()
                );
            }
            Ok(DriverKind::Uring(features.size))
        }
        Err(blocked) if choice == DriverChoice::Uring => Err(ServeError::NoUring(blocked)),
        Err(blocked) => {
            tracing::warn!(
                "{blocked}; going on with the epoll driver, which takes about 20 % more CPU on fan-out; --driver uring makes this fatal"
            );
            Ok(DriverKind::Epoll)
        }
    }
}

/// What may wait for the main thread; the admin listener has fewer clients at once.
const ORDERS_MAX: usize = 64;
/// What a state file may have besides its histories, which may take as much again as they do in memory.
const STATE_BYTES_BESIDE: u64 = 1 << 30;
/// How often a process that takes over looks whether NATS is there, and its shards are still.
const LOOK: Duration = Duration::from_micros(200);
/// Chunks of a shard's state that wait to be written.
const STATE_CHUNKS: usize = 4;
/// How often it is told how much of the state is written.
const STATE_LINE: Duration = Duration::from_secs(1);
/// Commands that may wait for a shard: those of a drain, behind questions of the admin listener, each client of which may be about to send one.
const COMMANDS_MAX: usize = 16 + debug::WAITING_MAX + admin::CLIENTS_MAX;

/// Everything that is decided before the first shard begins.
struct Plan<'a> {
    config: &'a Config,
    limits: Arc<Limits>,
    driver: DriverKind,
    cpus: Vec<Option<usize>>,
    clock: Clock,
    shared: Arc<Shared>,
    counters: Vec<Arc<Counters>>,
    wakers: Arc<Wakers>,
    orders: Sender<Order>,
    epoch: Epoch,
    placement: Placement,
    /// Shards give out at the end what goes on in another process.
    keeps_state: bool,
}

/// The shards' threads, and the ways to and from them.
#[derive(Default)]
struct Crew {
    commands: Vec<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
    states: Vec<Receiver<Chunk>>,
}

impl Plan<'_> {
    /// Starts every shard, with what it goes on from, and waits until all of them serve; without listeners, frozen.
    fn start(&self, listeners: Option<Vec<Listener>>, snapshots: Vec<Snapshot>, mut bridges: Bridges) -> Result<Crew, ServeError> {
        let shards = self.counters.len();
        let frozen = listeners.is_none();
        let mut listeners = listeners.into_iter().flatten();
        let mut snapshots = snapshots.into_iter();
        let pages = web::pages();
        let addressing = Arc::new(self.config.addressing.clone());
        let origins: Arc<[String]> = self.config.origins.clone().into();
        let slow = Arc::new(self.config.slow.clone());
        let presence: Arc<[Pattern]> = self.config.presence.clone().into();
        let (started, starts) = bounded::<Started>(shards);
        let mut crew = Crew::default();
        for (index, mailbox) in mesh(shards, self.limits.mailbox_messages as usize).into_iter().enumerate() {
            let shard = ShardId(index as u16);
            let (commands, commands_in) = bounded(COMMANDS_MAX);
            let parts = Parts {
                shard,
                epoch: self.epoch,
                shared: Arc::clone(&self.shared),
                counters: Arc::clone(&self.counters[index]),
                limits: Arc::clone(&self.limits),
                origins: Arc::clone(&origins),
                compression: self.config.compression,
                presence: Arc::clone(&presence),
                wildcards: self.config.wildcards,
                addressing: Arc::clone(&addressing),
                slow: Arc::clone(&slow),
                pages: Arc::clone(&pages),
                placement: self.placement,
                mailbox,
                bridge: bridges.take_next(),
                commands: commands_in,
                seed: random(),
                frozen,
            };
            let (state, states) = self.keeps_state.then(|| bounded(STATE_CHUNKS)).unzip();
            let seat = Seat {
                cpu: self.cpus[index],
                driver: self.driver,
                listener: listeners.next(),
                wakers: Arc::clone(&self.wakers),
                clock: self.clock,
                snapshot: snapshots.next().unwrap_or_default(),
                state,
            };
            let (started, orders) = (started.clone(), self.orders.clone());
            let thread = thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                let finished = || drop(orders.send(Order::ShardEnded(shard)));
                if let Err(error) = run(seat, parts, &started, finished) {
                    eprintln!("shardcast: shard {shard} cannot go on: {error}; the process ends");
                    sys::exit_now(1);
                }
            });
            crew.commands.push(commands);
            crew.threads.push(thread.map_err(system("start a thread"))?);
            crew.states.extend(states);
        }
        for _ in 0..shards {
            starts.recv().expect("every shard says how its start went").map_err(ServeError::Shard)?;
        }
        Ok(crew)
    }
}

impl Plan<'_> {
    /// Has the shards, which are frozen, take up everything that the process before has. It is told so later, and until then nothing is theirs.
    fn take_over(
        &self,
        before: &mut Takeover,
        hash_key: (u64, u64),
        patience: Duration,
        commands: &[Sender<Command>],
        nats: Option<&LinkShared>,
    ) -> Result<House, ServeError> {
        // Clients who publish would be told that there is no NATS, where there was one a moment before.
        let until = self.clock.now() + patience * 3 / 4;
        while nats.is_some_and(|nats| !nats.status.is_ready()) {
            if self.clock.now() >= until {
                return Err(ServeError::Takeover("there is no connection to NATS yet".to_owned()));
            }
            thread::park_timeout(LOOK);
        }
        let sockets = before.begin().map_err(ServeError::Takeover)?;
        let (restored, sockets_of_connections) = before.take(unix_time().as_millis() as u64).map_err(ServeError::Takeover)?;
        if (restored.epoch, restored.hash_key) != (self.epoch, hash_key) {
            return Err(ServeError::Takeover("the process before has said whose offsets they are in two ways".to_owned()));
        }
        let house = House::inherit(self.config, commands.len() as u16, &self.limits, sockets)?;
        let until = self.clock.now() + patience;
        for parts in Inheritance::divide(restored, sockets_of_connections, &self.placement) {
            self.inherit(commands, parts.into_iter());
        }
        while !self.shared.all_still() {
            if self.clock.now() >= until {
                return Err(ServeError::Takeover(format!(
                    "connections have not found their topics within {} ms (limits.handover_ms)",
                    patience.as_millis()
                )));
            }
            thread::park_timeout(LOOK);
        }
        Ok(house)
    }

    /// Gives each shard its part, and waits until all have begun with it: before that they are still because there was nothing to do yet.
    fn inherit(&self, commands: &[Sender<Command>], mut parts: impl Iterator<Item = Inheritance>) {
        let (begun, beginnings) = bounded(commands.len());
        self.command(commands, || Command::Inherit {
            inheritance: Box::new(parts.next().expect("one for each shard")),
            begun: begun.clone(),
        });
        for _ in commands {
            beginnings.recv().expect("a shard that cannot go on ends the process");
        }
    }

    fn command(&self, commands: &[Sender<Command>], mut command: impl FnMut() -> Command) {
        for (index, shard) in commands.iter().enumerate() {
            shard.send(command()).expect("a shard that has begun takes commands until it has finished");
            self.wakers.signal(ShardId(index as u16));
        }
    }
}

/// A life of offsets that never was and never will be again: seconds since 1970 and 20 random bits.
fn new_epoch() -> Epoch {
    Epoch(unix_time().as_secs() * (1 << 20) + random() % (1 << 20))
}

/// A number that nobody outside can guess: the standard library's hash keys come from the operating system.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_pinned_only_within_the_allowed_cpus() {
        let pinned = |cpus: &Cpus, shards, allowed: &[usize]| seats(cpus, shards, allowed).ok();
        assert_eq!(pinned(&Cpus::Auto, 2, &[3, 5]), Some(vec![Some(3), Some(5)]));
        assert_eq!(pinned(&Cpus::Auto, 3, &[3, 5]), Some(vec![None; 3]));
        assert_eq!(pinned(&Cpus::Off, 1, &[3, 5]), Some(vec![None]));
        assert_eq!(pinned(&Cpus::List(vec![5]), 2, &[3, 5]), Some(vec![Some(5), Some(5)]));
        assert_eq!(pinned(&Cpus::List(vec![4]), 1, &[3, 5]), None);
    }
}
