//! The course of a run, on the main thread: looks at the server first, starts the threads, says when what begins, reads the server's figures, and
//! shows progress.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::LoadError;
use super::clock;
use super::host::Host;
use super::link::plain;
use super::measure::{Latencies, Tally};
use super::outcome::{Outcome, ServerUse, StormCycle, Used, kinds};
use super::plan::{Drop, Plan, Pressure, Scenario};
use super::resume::{self, Part, Resumed, ResumedCycle, Step};
use super::server::{self, Cpu};
use super::shared::{Ear, Schedule, Shared};
use super::storm::{self, Cycle};
use super::target::Target;
use super::traffic::{self, Report};
use super::wire::{self, Awaits, Refusal, Request};
use super::worker;
use crate::time::Time;

/// For the first look at the server.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// From the last connection to the first message: what connecting left behind is done by then.
const SETTLE: Duration = Duration::from_millis(300);

/// Does what the plan says.
///
/// # Errors
/// The server cannot be reached, is no WebSocket server, or does not take all connections.
pub fn run(plan: Plan, host: Host) -> Result<Outcome, LoadError> {
    if let Some(pid) = plan.server_pid {
        server::check(pid)?;
    }
    // The last client's place: in a slow run it is no publisher, and its room exists in any case. With event streams it is one, the first is none.
    let client = plan.connections - 1;
    look(plan.target_of(client), Request::of(&plan, client, None))?;
    if plan.events.is_some() {
        look(&plan.target, Request::of(&plan, 0, None))?;
    }
    let plan = Arc::new(plan);
    let (shared, ears) =
        Shared::new(&plan).map_err(|error| LoadError::Failed(format!("sockets between threads cannot be made: {}", plain(&error))))?;
    let course = Course { plan, shared: Arc::new(shared), host };
    match course.plan.scenario {
        Scenario::Storm => course.storm(ears),
        Scenario::Resume => course.resume(ears),
        Scenario::Fanout | Scenario::Echo | Scenario::Idle | Scenario::Slow => course.traffic(ears),
    }
}

/// Opens one connection and drops it: says what is wrong before thousands do.
fn look(target: &Target, request: Request) -> Result<(), LoadError> {
    let url = &target.template;
    let kind = if request.awaits == Awaits::Stream { "an event stream" } else { "a WebSocket" };
    let failed = |what: String| LoadError::Failed(format!("{url} {what}"));
    let unreachable =
        |error: std::io::Error| failed(format!("cannot be reached at {}: {}; is the server running there?", target.address, plain(&error)));
    let mut stream = TcpStream::connect_timeout(&target.address, LOOK_TIMEOUT).map_err(unreachable)?;
    stream.set_read_timeout(Some(LOOK_TIMEOUT)).map_err(unreachable)?;
    stream.write_all(&request.bytes).map_err(unreachable)?;
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(failed("ended the connection instead of answering; is it a WebSocket server?".to_owned())),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(failed(format!("did not answer the handshake within {} s", LOOK_TIMEOUT.as_secs())));
            }
            Err(error) => return Err(failed(format!("failed during the handshake: {}", plain(&error)))),
        }
        match wire::answer(&bytes, &request.awaits) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(()),
            Err(refusal @ (Refusal::Status(_) | Refusal::Later { .. })) => {
                return Err(failed(format!("{refusal}: not {kind} at this path, or refused; check path and --header")));
            }
            Err(refusal) => return Err(failed(refusal.to_string())),
        }
    }
}

struct Course {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    host: Host,
}

type Threads = Vec<JoinHandle<Result<(), String>>>;

impl Course {
    /// Starts the threads of the generator.
    fn start<F: Future<Output = ()> + 'static>(
        &self,
        ears: Vec<Ear>,
        make: impl FnOnce(std::rc::Rc<worker::Worker>, worker::Hearing) -> F + Clone + Send + 'static,
    ) -> Result<Threads, LoadError> {
        ears.into_iter()
            .enumerate()
            .map(|(index, ear)| {
                let (plan, shared, host, make) = (self.plan.clone(), self.shared.clone(), self.host.clone(), make.clone());
                std::thread::Builder::new()
                    .name(format!("load-{index}"))
                    .spawn(move || worker::run(index, plan, shared, host, ear, make).map_err(|error| plain(&error)))
                    .map_err(|error| LoadError::Failed(format!("a thread cannot be started: {}", plain(&error))))
            })
            .collect()
    }

    fn say(&self, line: &str) {
        if !self.plan.quiet {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn pss(&self) -> Option<u64> {
        self.plan.server_pid.and_then(server::pss_bytes)
    }

    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn traffic(self, ears: Vec<Ear>) -> Result<Outcome, LoadError> {
        let pss_before = self.pss();
        let begun = self.now();
        let (sender, reports) = channel();
        let threads = self.start(ears, move |worker, hearing| traffic::run(worker, hearing, sender))?;
        self.say(&format!("{}: {}", self.plan.scenario.name(), self.plan.summary()));
        self.await_open(&reports, &threads)?;
        let connect_time = self.now().since(begun);
        self.say(&format!("connected {} in {:.2} s", self.plan.connections, connect_time.as_secs_f64()));
        clock::sleep(SETTLE);
        let pss_open = self.pss();

        let start = self.now() + Duration::from_millis(20);
        let begin = start + if self.plan.scenario == Scenario::Idle { Duration::ZERO } else { self.plan.warmup };
        let schedule = Schedule { start, begin, end: begin + self.plan.duration };
        self.shared.set_schedule(schedule);
        let pacer = self.pacer(schedule);
        self.progress(&schedule, begin);
        let (before, read_at) = (Used::read(self.plan.server_pid), self.now());
        self.progress(&schedule, schedule.end);
        let used = Used::read(self.plan.server_pid).since(&before, self.now().since(read_at), &self.own_threads());
        let pss_end = self.pss();
        if let Some(pacer) = pacer {
            let _ = pacer.join();
        }
        let mut tally = Tally::default();
        for _ in &threads {
            loop {
                match reports.recv() {
                    Ok(Report::Done(part)) => break tally.add(*part),
                    Ok(Report::NotOpened(_)) => {}
                    Err(_) => return Err(threads_failed(threads)),
                }
            }
        }
        join(threads)?;
        Ok(Outcome {
            connect_time,
            used,
            server: ServerUse { pss_before, pss_open, pss_end },
            start_to_begin: begin.since(start),
            tally,
            cycles: Vec::new(),
            handshakes: Latencies::default(),
            resumed: None,
            plan: Arc::unwrap_or_clone(self.plan),
        })
    }

    /// Waits until every connection is open.
    fn await_open(&self, reports: &Receiver<Report>, threads: &Threads) -> Result<(), LoadError> {
        let mut failures: BTreeMap<String, u32> = BTreeMap::new();
        let mut failed = 0;
        let mut shown = self.now();
        loop {
            match reports.recv_timeout(Duration::from_millis(5)) {
                Ok(Report::NotOpened(why)) => {
                    failed += 1;
                    *failures.entry(why).or_default() += 1;
                }
                Ok(Report::Done(_)) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(LoadError::Failed("a thread of the generator ended early".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let open = self.shared.open.load(Ordering::Acquire);
            if open == self.plan.connections {
                return Ok(());
            }
            // Few of thousands would be enough to know, but how many it could take is worth telling.
            if open + failed >= self.plan.connections {
                self.shared.abort();
                let kinds: Vec<String> = failures.iter().map(|(why, count)| format!("{count} × {why}")).collect();
                return Err(LoadError::Failed(format!(
                    "{failed} of {} connections to {} could not be opened: {}; lower --connections, or raise what the server allows",
                    self.plan.connections,
                    self.plan.target.template,
                    kinds.join(", ")
                )));
            }
            if threads.iter().any(JoinHandle::is_finished) {
                return Err(LoadError::Failed(
                    "a thread of the generator could not start: neither io_uring nor epoll can be used, or a CPU of --cpus cannot be taken"
                        .to_owned(),
                ));
            }
            if self.now().since(shown) >= Duration::from_secs(1) {
                shown = self.now();
                self.say(&format!("connecting: {open} of {} open, {failed} failed", self.plan.connections));
            }
        }
    }

    /// An open loop's clockwork.
    fn pacer(&self, schedule: Schedule) -> Option<JoinHandle<()>> {
        let Pressure::Open { rate } = self.plan.pressure else { return None };
        if self.plan.publishers == 0 {
            return None;
        }
        let (plan, shared, host) = (self.plan.clone(), self.shared.clone(), self.host.clone());
        std::thread::Builder::new()
            .name("load-pace".to_owned())
            .spawn(move || {
                (host.sharp_sleep)();
                traffic::pace(&plan, &shared, &schedule, rate);
            })
            .ok()
    }

    /// Shows what happens, once a second, until then.
    fn progress(&self, schedule: &Schedule, until: Time) {
        let counts = || {
            let sum = |pick: fn(&super::shared::Gauge) -> &std::sync::atomic::AtomicU64| {
                self.shared.gauges.iter().map(|gauge| pick(gauge).load(Ordering::Relaxed)).sum::<u64>()
            };
            (sum(|gauge| &gauge.published), sum(|gauge| &gauge.deliveries))
        };
        let (mut published, mut delivered) = counts();
        loop {
            let shown = self.now();
            let next = until.min(shown + Duration::from_secs(1));
            self.shared.clock.sleep_until(next);
            let now = self.now();
            let seconds = now.since(shown).as_secs_f64();
            let (published_now, delivered_now) = counts();
            let worst = self.shared.gauges.iter().map(|gauge| gauge.worst.swap(0, Ordering::Relaxed)).max().unwrap_or(0);
            if seconds > 0.2 {
                let phase = if now <= schedule.begin { "warm-up" } else { "measured" };
                let open = self.shared.open.load(Ordering::Acquire);
                let traffic = if self.plan.publishers == 0 {
                    String::new()
                } else {
                    format!(
                        ", {:.0} messages/s, {:.0} deliveries/s, worst {:.3} ms",
                        (published_now - published) as f64 / seconds,
                        (delivered_now - delivered) as f64 / seconds,
                        worst as f64 / 1e6
                    )
                };
                self.say(&format!("{:5.1} s {phase}: {open} open{traffic}", now.since(schedule.start).as_secs_f64()));
            }
            (published, delivered) = (published_now, delivered_now);
            if now >= until {
                return;
            }
        }
    }

    fn storm(self, ears: Vec<Ear>) -> Result<Outcome, LoadError> {
        let pss_before = self.pss();
        let (sender, reports) = channel();
        let threads = self.start(ears, move |worker, hearing| storm::run(worker, hearing, sender))?;
        self.say(&format!("storm: {}", self.plan.summary()));
        let mut cycles = Vec::new();
        let mut handshakes = Latencies::default();
        let mut pss_open = None;
        let mut connect_time = Duration::ZERO;
        let first = Used::read(self.plan.server_pid);
        let mut stormed = (first.clone(), self.now());
        for number in 0..=self.plan.cycles {
            let before = Used::read(self.plan.server_pid);
            let begun = self.now();
            if number == 1 {
                stormed = (before.clone(), begun);
            }
            self.shared.open.store(0, Ordering::Release);
            if number > 0 && self.plan.drop == Drop::Server {
                self.say(&format!("cycle {number}: waits for the server to end its connections: drain it, or have it rebalance"));
            }
            self.shared.cycle.store(number, Ordering::Release);
            self.shared.ring_all();
            let mut seen = Cycle::default();
            for _ in &threads {
                loop {
                    match reports.recv_timeout(Duration::from_secs(1)) {
                        Ok(part) => break seen.add(part),
                        Err(RecvTimeoutError::Timeout) => {
                            let open = self.shared.open.load(Ordering::Acquire);
                            self.say(&format!(
                                "{:5.1} s cycle {number}: {open} of {} open",
                                self.now().since(begun).as_secs_f64(),
                                self.plan.connections
                            ));
                        }
                        Err(RecvTimeoutError::Disconnected) => return Err(threads_failed(threads)),
                    }
                }
            }
            let time = self.now().since(begun);
            let used = Used::read(self.plan.server_pid).since(&before, time, &self.own_threads());
            seen.curve.trim();
            // The time until the server began is none of the storm's.
            let time = if self.plan.drop == Drop::Server { seen.curve.all_in() } else { time };
            let cycle = StormCycle::new(seen, time, used.server.as_ref().map(Cpu::total), &mut handshakes, number > 0);
            self.say(&format!("cycle {number}: {}", cycle.line()));
            cycles.push(cycle);
            clock::sleep(SETTLE);
            if number == 0 {
                connect_time = time;
                pss_open = self.pss();
            }
        }
        let time = self.now().since(stormed.1);
        let used = Used::read(self.plan.server_pid).since(&stormed.0, time, &self.own_threads());
        let pss_end = self.pss();
        self.shared.cycle.store(self.plan.cycles + 1, Ordering::Release);
        self.shared.ring_all();
        join(threads)?;
        Ok(Outcome {
            connect_time,
            used,
            server: ServerUse { pss_before, pss_open, pss_end },
            start_to_begin: Duration::ZERO,
            tally: Tally::default(),
            cycles,
            handshakes,
            resumed: None,
            plan: Arc::unwrap_or_clone(self.plan),
        })
    }

    fn resume(self, ears: Vec<Ear>) -> Result<Outcome, LoadError> {
        let pss_before = self.pss();
        let (sender, reports) = channel();
        let threads = self.start(ears, move |worker, hearing| resume::run(worker, hearing, sender))?;
        self.say(&format!("resume: {}", self.plan.summary()));
        let mut resumed = Resumed::new(self.plan.resume.expect("the plan of this scenario has it"));
        let mut used = Used::default();
        let (mut pss_open, mut connect_time, mut quiet, mut pacer) = (None, Duration::ZERO, Used::default(), None);
        let mut tally = Tally::default();
        let steps = resume::steps(&self.plan);
        for (number, &step) in steps.iter().enumerate() {
            let (before, begun) = (Used::read(self.plan.server_pid), self.now());
            self.shared.cycle.store(number as u32 + 1, Ordering::Release);
            self.shared.ring_all();
            let Some(mut part) = self.await_parts(step, threads.len(), &reports) else { return Err(threads_failed(threads)) };
            let time = self.now().since(begun);
            if let Some(why) = self.is_hopeless(step, &mut part) {
                self.shared.abort();
                join(threads)?;
                return Err(LoadError::Failed(why));
            }
            match step {
                Step::Open => {
                    connect_time = time;
                    pacer = self.resume_pacer(steps.len());
                    clock::sleep(SETTLE);
                    pss_open = self.pss();
                }
                Step::Drop => clock::sleep(SETTLE),
                Step::Settle => clock::sleep(self.plan.warmup),
                Step::Quiet => {
                    clock::sleep(self.plan.duration);
                    quiet = Used::read(self.plan.server_pid).since(&before, self.now().since(begun), &self.own_threads());
                }
                Step::Resume => {
                    let step_used = Used::read(self.plan.server_pid).since(&before, time, &self.own_threads());
                    let cycle = ResumedCycle::new(part, step_used.server_beyond(&quiet));
                    self.say(&format!("resume {}: {}", resumed.cycles.len() + 1, cycle.line()));
                    resumed.cycles.push(cycle);
                    used.add(&step_used);
                }
                Step::Publish(_) | Step::Read => resumed.other_gaps += part.gaps,
                Step::End => {
                    if let Some(ended) = part.ended {
                        (tally, resumed.before, resumed.during) = (ended.tally, ended.before, ended.during);
                    }
                }
            }
        }
        let pss_end = self.pss();
        join(threads)?;
        if let Some(pacer) = pacer {
            let _ = pacer.join();
        }
        Ok(Outcome {
            connect_time,
            used,
            server: ServerUse { pss_before, pss_open, pss_end },
            start_to_begin: Duration::ZERO,
            tally,
            cycles: Vec::new(),
            handshakes: Latencies::default(),
            resumed: Some(resumed),
            plan: Arc::unwrap_or_clone(self.plan),
        })
    }

    /// Waits until every thread has done its part of a step. `None` when one ended instead.
    fn await_parts(&self, step: Step, threads: usize, reports: &Receiver<Part>) -> Option<Part> {
        let begun = self.now();
        let mut all = Part::default();
        for _ in 0..threads {
            loop {
                match reports.recv_timeout(Duration::from_secs(1)) {
                    Ok(part) => break all.add(part),
                    Err(RecvTimeoutError::Timeout) => {
                        let open = self.shared.open.load(Ordering::Acquire);
                        let seconds = self.now().since(begun).as_secs_f64();
                        self.say(&format!("{seconds:5.1} s {}: {open} of {} open", step.name(), self.plan.connections));
                    }
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
        }
        Some(all)
    }

    /// Why the steps that follow would show nothing, if so.
    fn is_hopeless(&self, step: Step, part: &mut Part) -> Option<String> {
        if step == Step::Open && part.opened.given_up > 0 {
            return Some(format!(
                "{} of {} connections could not be opened: {}; lower --connections and --watchers, or raise what the server allows",
                part.opened.given_up,
                self.plan.connections,
                kinds(&part.opened.failures)
            ));
        }
        let without = part.opened.given_up + part.incomplete;
        if step == Step::Read && without > 0 {
            return Some(format!(
                "{without} event streams did not get what was published at --url ({}); does --events name the same room, and does the server allow that many?",
                if part.opened.failures.is_empty() { "they are open, and nothing came".to_owned() } else { kinds(&part.opened.failures) }
            ));
        }
        part.hopeless.take()
    }

    /// The clockwork of the watchers' messages.
    fn resume_pacer(&self, steps: usize) -> Option<JoinHandle<()>> {
        let Pressure::Open { rate } = self.plan.pressure else { return None };
        let (shared, host) = (self.shared.clone(), self.host.clone());
        std::thread::Builder::new()
            .name("load-pace".to_owned())
            .spawn(move || {
                (host.sharp_sleep)();
                resume::pace(&shared, rate, steps);
            })
            .ok()
    }

    fn own_threads(&self) -> Vec<u32> {
        self.shared.gauges.iter().map(|gauge| gauge.thread.load(Ordering::Acquire)).collect()
    }
}

/// Waits for the threads' ends.
fn join(threads: Threads) -> Result<(), LoadError> {
    for thread in threads {
        thread
            .join()
            .unwrap_or_else(|_| Err("it panicked".to_owned()))
            .map_err(|error| LoadError::Failed(format!("a thread of the generator failed: {error}")))?;
    }
    Ok(())
}

fn threads_failed(threads: Threads) -> LoadError {
    join(threads).err().unwrap_or_else(|| LoadError::Failed("a thread of the generator ended early".to_owned()))
}
