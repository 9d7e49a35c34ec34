//! From a configuration to a serving process, and back: listeners, shards, signals, shutdown, restart.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::admin::{Admin, AdminError};
use super::bus::Bridges;
use super::clock::{Clock, unix_time};
use super::config::{Config, Cpus, DriverChoice, RestartChoice};
use super::debug::{Debug, Doors};
use super::handover::{Estate, HandedOver};
use super::lifecycle::{End, Lifecycle, Order, Phase, Readiness};
use super::metrics::{Metrics, ProcessFacts};
use super::restart::{Kept, Program};
use super::shard::{DriverKind, Seat, Started, ring_size, run};
use super::state::{StateFile, StateFileError, Written};
use super::systemd::Notifier;
use super::takeover::{Sockets, Takeover};
use super::{admin, bus, debug, host, lifecycle, signals, systemd};
use crate::bus::link::LinkShared;
use crate::engine::mailbox::mesh;
use crate::engine::sys::{self, ListenOptions, Listener};
use crate::engine::uring::probe::{Blocked, probe};
use crate::engine::wakers::Wakers;
use crate::gateway::counters::Counters;
use crate::gateway::{Chunk, Command, Inheritance, Pages, Parts, Shared, Snapshot};
use crate::hub::Placement;
use crate::ids::ShardId;
use crate::limits::Limits;
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

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
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
        admin.start(clock, Metrics::new(counters.clone(), facts), debug, orders.clone())
    };
    if let Some(house) = &mut fresh {
        start_admin(house)?;
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
    let mut house = match (fresh, takeover) {
        (Some(house), _) => house,
        (None, Some(before)) => {
            let mut house = plan.take_over(before, hash_key, patience, &commands, link.as_deref())?;
            start_admin(&mut house)?;
            house
        }
        (None, None) => unreachable!("a house is opened or taken over"),
    };
    doors.get_or_init(|| Doors { commands: commands.clone(), wakers: Arc::clone(&plan.wakers) });
    let reporting = shutdown.report(plan.orders.clone()).map_err(system("watch for signals"))?;
    readiness.set(Phase::Serving);
    let address = house.place.address();
    let admin_text = house.admin_address.map_or_else(|| "admin off".to_owned(), |address| format!("admin http://{address}"));
    eprintln!(
        "shardcast {} ready: http://{address} ({shards} shard{}, {} driver, {admin_text})",
        env!("CARGO_PKG_VERSION"),
        if shards == 1 { "" } else { "s" },
        driver.name()
    );

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
                passed: house.place.share_passed().map_err(system("keep the socket that was passed"))?,
                admin: house.admin_kept.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("keep the admin listener"))?,
                lock: house.state.as_ref().map(StateFile::share_lock).transpose().map_err(system("keep the lock of the state"))?,
                patience,
            };
            let nats = Rc::clone(&nats);
            let hand_over = move || {
                let handed_over = estate.hand_over();
                if let (Ok(_), Some(nats)) = (&handed_over, nats.take()) {
                    // What clients have published goes out.
                    nats.stop();
                }
                handed_over
            };
            Some(Box::new(hand_over) as Box<dyn Fn() -> Result<HandedOver, String>>)
        }
    };
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
const ADDRESS_TRIES: u32 = 10;
const ADDRESS_WAIT: Duration = Duration::from_millis(50);

fn listen_options(limits: &Limits) -> ListenOptions {
    ListenOptions {
        backlog: limits.backlog as u32,
        notsent_bytes: limits.notsent_bytes as u32,
        defer_seconds: limits.accept_defer_ms.div_ceil(1000) as u32,
        shared: true,
    }
}

/// What a process has of the outside: where it listens, and its state file.
struct House {
    place: Place,
    /// One for each shard, until they have them.
    listeners: Vec<Listener>,
    /// Until it is started.
    admin: Option<Admin>,
    admin_address: Option<SocketAddr>,
    /// Another handle on the admin listener, for the program that comes after this one.
    admin_kept: Option<OwnedFd>,
    state: Option<StateFile>,
}

impl House {
    /// Of a process that begins.
    fn open(config: &Config, shards: u16, limits: &Limits) -> Result<Self, ServeError> {
        let state = config.state.as_deref().map(StateFile::open).transpose()?;
        let passed = systemd::passed_sockets().map_err(ServeError::Passed)?;
        let place = match passed.clients {
            Some((fd, address)) => {
                tracing::info!(%address, "clients connect to the socket that was passed (LISTEN_FDS); --listen is not used");
                sys::adjust_listener(&fd, listen_options(limits));
                Place::Passed(fd, address)
            }
            None => Place::Own(config.listen),
        };
        let (place, listeners) = place.listen(shards, limits)?;
        let admin = match passed.admin {
            Some(fd) => Some(Admin::on(fd).map_err(system("use the admin socket that was passed"))?),
            None => config.admin.map(Admin::bind).transpose()?,
        };
        Self::with(place, listeners, admin, state)
    }

    /// Of a process that takes over.
    fn inherit(config: &Config, shards: u16, limits: &Limits, sockets: Sockets) -> Result<Self, ServeError> {
        let state = match (&config.state, sockets.lock) {
            (Some(path), Some(lock)) => Some(StateFile::inherit(path, lock)),
            (Some(path), None) => Some(StateFile::open(path)?),
            (None, _) => None,
        };
        let address_of = |fd: &OwnedFd| sys::local_addr(fd).map_err(system("use the sockets of the process before"));
        let (place, listeners) = match sockets.passed {
            Some(fd) => {
                let place = Place::Passed(fd.try_clone().map_err(system("share the socket of the process before"))?, address_of(&fd)?);
                let listeners = place.listen_again(shards, limits)?;
                (place, listeners)
            }
            None => {
                let first = sockets.listeners.first().ok_or_else(|| ServeError::Takeover("no listener came".to_owned()))?;
                let place = Place::Own(address_of(first)?);
                (place, sockets.listeners.into_iter().map(Listener::own).collect())
            }
        };
        let admin = match (config.admin, sockets.admin) {
            (None, _) => None,
            (Some(_), Some(fd)) => Some(Admin::on(fd).map_err(system("use the admin socket of the process before"))?),
            (Some(address), None) => Some(Admin::bind(address)?),
        };
        Self::with(place, listeners, admin, state)
    }

    fn with(place: Place, listeners: Vec<Listener>, admin: Option<Admin>, state: Option<StateFile>) -> Result<Self, ServeError> {
        let admin_address = admin.as_ref().map(Admin::address);
        let admin_kept = admin.as_ref().map(Admin::keep).transpose().map_err(system("keep the admin listener"))?;
        Ok(Self { place, listeners, admin, admin_address, admin_kept, state })
    }
}

/// Where clients connect.
enum Place {
    /// At an address of ours.
    Own(SocketAddr),
    /// At a socket that was passed to us. All shards accept from its one queue; who comes to which is settled by placement.
    Passed(OwnedFd, SocketAddr),
}

impl Place {
    /// One listener for each shard, and the place with the port that the kernel chose.
    fn listen(self, shards: u16, limits: &Limits) -> Result<(Self, Vec<Listener>), ServeError> {
        match self {
            Self::Own(address) => listeners(address, shards, limits).map(|(address, listeners)| (Self::Own(address), listeners)),
            Self::Passed(..) => {
                let listeners = self.listen_again(shards, limits)?;
                Ok((self, listeners))
            }
        }
    }

    fn listen_again(&self, shards: u16, limits: &Limits) -> Result<Vec<Listener>, ServeError> {
        match self {
            Self::Own(address) => listeners(*address, shards, limits).map(|(_, listeners)| listeners),
            Self::Passed(fd, _) => {
                let dup = |_| fd.try_clone().map(Listener::lent);
                (0..shards).map(dup).collect::<io::Result<_>>().map_err(system("share the socket that was passed"))
            }
        }
    }

    /// A listener from which nobody accepts: whoever comes waits in its queue.
    fn keep(&self, limits: &Limits) -> Result<OwnedFd, ServeError> {
        match self {
            Self::Own(address) => sys::listen(*address, listen_options(limits)).map_err(|error| ServeError::Listen(*address, error)),
            Self::Passed(fd, _) => fd.try_clone().map_err(system("keep the socket that was passed")),
        }
    }

    /// The socket that was passed, for another process.
    fn share_passed(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Own(_) => Ok(None),
            Self::Passed(fd, _) => fd.try_clone().map(Some),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Own(address) | Self::Passed(_, address) => *address,
        }
    }
}

/// One listener for each shard, all on one address. The first bind is exclusive: with SO_REUSEPORT alone a second instance would
/// silently take half of the clients.
fn listeners(address: SocketAddr, shards: u16, limits: &Limits) -> Result<(SocketAddr, Vec<Listener>), ServeError> {
    let options = listen_options(limits);
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ServeError::AddressInUse(address),
        _ if address.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => ServeError::NoIpv6(address, error),
        _ => ServeError::Listen(address, error),
    };
    let mut tries = 0;
    let exclusive = loop {
        match sys::listen(address, ListenOptions { shared: false, ..options }) {
            // The kernel takes the rings of a process that was just killed, and with them its listeners, down some time after it is gone.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < ADDRESS_TRIES => {
                tries += 1;
                thread::park_timeout(ADDRESS_WAIT);
            }
            other => break other.map_err(explain)?,
        }
    };
    let bound = sys::local_addr(&exclusive).map_err(explain)?;
    drop(exclusive);
    let listeners: Vec<OwnedFd> = (0..shards).map(|_| sys::listen(bound, options)).collect::<io::Result<_>>().map_err(explain)?;
    Ok((bound, listeners.into_iter().map(Listener::own).collect()))
}

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
        let addressing = Arc::new(self.config.addressing.clone());
        let origins: Arc<[String]> = self.config.origins.clone().into();
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
                addressing: Arc::clone(&addressing),
                pages: Pages { index: web::INDEX },
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
    /// Has the shards, which are frozen, go on with everything that the process before has; then they serve, and that one ends.
    fn take_over(
        &self,
        mut before: Takeover,
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
        let (mut restored, sockets_of_connections) = before.take(unix_time().as_millis() as u64).map_err(ServeError::Takeover)?;
        if (restored.epoch, restored.hash_key) != (self.epoch, hash_key) {
            return Err(ServeError::Takeover("the process before has said whose offsets they are in two ways".to_owned()));
        }
        let shards = commands.len();
        let mut house = House::inherit(self.config, shards as u16, &self.limits, sockets)?;
        let connections = std::mem::take(&mut restored.connections);
        // Every topic is where it was before the first connection asks for one.
        let snapshots = restored.split(&self.placement);
        self.inherit(commands, snapshots.into_iter().map(|snapshot| Inheritance { snapshot, connections: Vec::new() }));
        let mut shares: Vec<Inheritance> = (0..shards).map(|_| Inheritance::default()).collect();
        for (number, connection) in sockets_of_connections.into_iter().zip(connections).enumerate() {
            shares[number % shards].connections.push(connection);
        }
        let until = self.clock.now() + patience;
        self.inherit(commands, shares.into_iter());
        while !self.shared.all_still() {
            if self.clock.now() >= until {
                return Err(ServeError::Takeover(format!(
                    "connections have not found their topics within {} ms (limits.handover_ms)",
                    patience.as_millis()
                )));
            }
            thread::park_timeout(LOOK);
        }
        before.taken();
        let mut listeners = std::mem::take(&mut house.listeners).into_iter();
        self.command(commands, || Command::Thaw { listener: listeners.next() });
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

    #[test]
    fn a_second_instance_is_refused() {
        let limits = Limits::default();
        let (address, _first) = listeners("127.0.0.1:0".parse().expect("an address"), 2, &limits).expect("listens");
        let second = listeners(address, 2, &limits).expect_err("refused");
        assert!(matches!(second, ServeError::AddressInUse(taken) if taken == address), "{second}");
    }
}
