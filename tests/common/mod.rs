//! What the integration tests share: the gateway as its own process, and clients that share no code with it.
//!
//! [`gateway`] describes one and starts it; [`Gateway`] is the running process, looked at from outside (metrics, memory, descriptors, CPU). Clients:
//! [`foreign`] (tungstenite, for what a well-behaved client sees), [`raw`] (bytes on a socket, for what no library would send), [`swarm`] (thousands
//! of connections on one epoll thread), [`events`] (readers of event streams), [`talk`] (who speaks `shardcast.v1.json`), [`deflate`] (what they compress), [`nats`] (a real nats-server and its other clients). [`freeze`] stops one thread of the gateway,
//! [`replaceable`] is one whose next process may be anything.
#![allow(dead_code, reason = "every test file takes from here what it needs")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests stand outside the gateway: real time, real threads")]

pub mod basics;
pub mod deflate;
pub mod events;
pub mod foreign;
pub mod frame;
pub mod freeze;
pub mod metrics;
pub mod nats;
pub mod raw;
pub mod replaceable;
pub mod swarm;
pub mod talk;

use std::io::{BufRead, BufReader};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use basics::*;
use metrics::Metrics;

/// The label of a close that is not in a WebSocket close code: see `gateway/close_cause.rs`.
pub const SLOW_CONSUMER: &str = "slow_consumer";

/// A gateway to start: two shards, free ports, the driver that the run is about.
pub fn gateway() -> Setup {
    Setup {
        shards: 2,
        driver: std::env::var("SHARDCAST_TEST_DRIVER").unwrap_or_else(|_| "uring".into()),
        listen: "127.0.0.1:0".into(),
        args: Vec::new(),
        env: Vec::new(),
        nofile: None,
        memlock_bytes: None,
        inherited: 0,
        passed: None,
        ordinary_user: false,
    }
}

impl nats::NatsServer {
    /// A gateway that reaches it, with short waits, and whose readiness says at once when it does not.
    pub fn gateway(&self) -> Setup {
        Self::gateway_of(&self.url())
    }

    /// The same for several servers, or other URLs.
    pub fn gateway_of(urls: &str) -> Setup {
        let setup = gateway().arg("--nats").arg(urls);
        setup.limit("nats_reconnect_wait_ms", 50).limit("nats_grace_ms", 0).limit("nats_ping_ms", 200)
    }
}

/// See [`gateway`].
#[derive(Clone)]
pub struct Setup {
    shards: u16,
    driver: String,
    listen: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    nofile: Option<u64>,
    memlock_bytes: Option<u64>,
    inherited: i32,
    passed: Option<(Vec<RawFd>, String)>,
    ordinary_user: bool,
}

impl Setup {
    pub fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets a bound of `src/limits.rs` through its environment twin.
    pub fn limit(self, name: &str, value: u64) -> Self {
        assert!(shardcast::limits::Limits::find(name).is_some(), "limits.{name} is not in src/limits.rs: rename it in this test too");
        self.env(format!("SHARDCAST_LIMITS_{}", name.to_uppercase()), value.to_string())
    }

    /// RLIMIT_NOFILE, soft and hard.
    pub fn nofile(mut self, descriptors: u64) -> Self {
        self.nofile = Some(descriptors);
        self
    }

    /// That many descriptors are open from the start and nobody's: the process runs out before it expects to.
    pub fn inherited_descriptors(mut self, count: i32) -> Self {
        self.inherited = count;
        self
    }

    /// Descriptors are passed as systemd passes them (sd_listen_fds(3)), with names between colons.
    pub fn passed(mut self, descriptors: &[RawFd], names: &str) -> Self {
        self.passed = Some((descriptors.to_vec(), names.to_owned()));
        self
    }

    /// RLIMIT_MEMLOCK, soft and hard.
    pub fn memlock_bytes(mut self, bytes: u64) -> Self {
        self.memlock_bytes = Some(bytes);
        self
    }

    /// As `nobody` when the test runs as root; else as whoever runs it.
    pub fn ordinary_user(mut self) -> Self {
        self.ordinary_user = true;
        self
    }

    fn command(&self, binary: &PathBuf) -> Command {
        let mut command = Command::new(binary);
        if let Some((descriptors, names)) = &self.passed {
            // The process that they are for is named by its id, which only it knows before it begins.
            command = Command::new("/bin/sh");
            command.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]).arg(binary);
            command.env("LISTEN_FDS", descriptors.len().to_string()).env("LISTEN_FDNAMES", names);
        }
        // SAFETY: getuid has no preconditions.
        let root = unsafe { libc::getuid() } == 0;
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SHARDCAST_")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--listen", &self.listen, "--admin", "127.0.0.1:0"])
            .args(["--shards", &self.shards.to_string(), "--driver", &self.driver])
            .args(&self.args)
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if self.ordinary_user && root {
            command.uid(65534).gid(65534);
        }
        let (nofile, memlock, inherited) = (self.nofile, self.memlock_bytes, self.inherited);
        let passed = self.passed.as_ref().map_or_else(Vec::new, |(descriptors, _)| descriptors.clone());
        // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, dup2, setrlimit), nothing allocates.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // First out of each other's way.
                for (number, descriptor) in (0..).zip(&passed) {
                    libc::dup2(*descriptor, 200 + number);
                }
                for number in 0..passed.len() as RawFd {
                    libc::dup2(200 + number, 3 + number);
                    libc::close(200 + number);
                }
                for descriptor in 0..inherited {
                    libc::dup2(libc::STDIN_FILENO, 50 + descriptor);
                }
                for (resource, value) in [(libc::RLIMIT_NOFILE, nofile), (libc::RLIMIT_MEMLOCK, memlock)] {
                    let Some(value) = value else { continue };
                    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
                    if libc::setrlimit(resource, &raw const limit) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }

    /// Starts it and waits for the readiness line.
    pub fn start(self) -> Gateway {
        let directory = self.ordinary_user.then(BinaryCopy::new);
        let binary = directory.as_ref().map_or_else(binary, |copy| copy.path());
        let mut child = eventually(SOON, || match self.command(&binary).spawn() {
            Ok(child) => Ok(child),
            // A child that another test has just forked still has the descriptor that the copy was written by, until it becomes another program.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => Err(format!("{}: {error}", binary.display())),
            Err(error) => panic!("{} does not start: {error}", binary.display()),
        });
        let log = Arc::new(Mutex::new(String::new()));
        let reader = read_into(&mut child, &log);
        let mut gateway = Gateway {
            child,
            log,
            reader: Some(reader),
            port: 0,
            admin: 0,
            exited: None,
            driver: self.driver,
            successor: None,
            _binary: directory,
        };
        let deadline = Instant::now() + 2 * SOON;
        loop {
            if let Some((port, admin)) = gateway.ready_ports() {
                (gateway.port, gateway.admin) = (port, admin);
                return gateway;
            }
            if let Some(status) = gateway.try_exit() {
                panic!("the gateway ended at start ({status})");
            }
            assert!(Instant::now() < deadline, "no readiness line within {:?}", 2 * SOON);
            sleep_ms(2);
        }
    }

    /// Starts it expecting that it ends by itself: its exit code and what it said.
    pub fn run(self) -> (Option<i32>, String) {
        let mut child = self.command(&binary()).spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let reader = read_into(&mut child, &log);
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = child.try_wait().expect("our child") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("it did not end by itself within {SOON:?}; it said:\n{}", log.lock().expect("no panic holds it"));
            }
            sleep_ms(5);
        };
        reader.join().expect("the reader does not panic");
        let said = log.lock().expect("no panic holds it").clone();
        (status.code(), said)
    }
}

/// The program under test.
pub fn binary() -> PathBuf {
    std::env::var_os("SHARDCAST_TEST_BINARY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_shardcast")), PathBuf::from)
}

/// The binary where any user can execute it: the checkout may be closed to others.
struct BinaryCopy(Scratch);

impl BinaryCopy {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let copy = Self(Scratch::new());
        std::fs::set_permissions(copy.0.path(), PermissionsExt::from_mode(0o755)).expect("our directory");
        std::fs::copy(binary(), copy.path()).expect("the binary can be read");
        std::fs::set_permissions(copy.path(), PermissionsExt::from_mode(0o755)).expect("our file");
        copy
    }

    fn path(&self) -> PathBuf {
        self.0.join("shardcast")
    }
}

fn read_into(child: &mut Child, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let stderr = child.stderr.take().expect("stderr is piped");
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let mut log = log.lock().expect("no panic holds it");
            log.push_str(&String::from_utf8_lossy(&line));
            log.push('\n');
        }
    })
}

/// A running gateway. Dropping it kills it; when the test fails, its log is printed.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// Where clients connect, on 127.0.0.1.
    pub port: u16,
    /// The admin listener, on 127.0.0.1.
    pub admin: u16,
    /// `uring` or `epoll`.
    pub driver: String,
    exited: Option<ExitStatus>,
    /// The process that it was handed over to.
    successor: Option<u32>,
    _binary: Option<BinaryCopy>,
}

impl Gateway {
    pub fn pid(&self) -> u32 {
        self.successor.unwrap_or(self.child.id())
    }

    /// Has it hand everything over to a new process (SIGUSR2), which is the gateway from then on.
    pub fn hand_over(&mut self) {
        assert!(self.try_to_hand_over(), "{}", self.log());
    }

    /// The same; or it serves on, and says that there was no hand-over.
    pub fn try_to_hand_over(&mut self) -> bool {
        // SAFETY: an orphan of a gateway that has ended becomes our child, to be waited for; nothing is passed in but numbers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let known = self.log().lines().count();
        self.signal(libc::SIGUSR2);
        let successor = eventually(SOON, || {
            let log = self.log();
            let mut news = log.lines().skip(known);
            let line = news.find(|line| line.contains("handed over; this process ends") || line.contains("no hand-over"));
            let line = line.ok_or("it has not handed over")?;
            if line.contains("no hand-over") {
                return Ok(None);
            }
            let pid = line.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|pid| pid.parse().ok());
            pid.map(Some).ok_or_else(|| format!("no process in {line}"))
        });
        let Some(successor) = successor else { return false };
        match self.successor {
            None => {
                let status = self.child.wait().expect("our child");
                assert!(status.success(), "the process that has handed over ended with {status}");
            }
            Some(pid) => assert_eq!(wait_for(pid, 0), Some(0), "the process that has handed over"),
        }
        self.successor = Some(successor);
        true
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic holds it").clone()
    }

    /// Waits until it has written this to stderr: what it writes is read a moment after it has had its effect.
    pub fn expect_log(&self, text: &str) {
        eventually(SOON, || if self.log().contains(text) { Ok(()) } else { Err(format!("{text:?} is not in its log")) });
    }

    /// `shardcast 0.1.0 ready: http://127.0.0.1:PORT (N shards, uring driver, admin http://127.0.0.1:PORT)`.
    fn ready_ports(&self) -> Option<(u16, u16)> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains(" ready: http://"))?;
        let ports: Vec<u16> = line
            .split("http://")
            .skip(1)
            .map(|rest| rest.split([' ', ')', ',']).next().expect("split yields one"))
            .map(|address| address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {line}")))
            .collect();
        match ports[..] {
            [port, admin] => Some((port, admin)),
            _ => panic!("the readiness line names {} addresses, 2 were expected: {line}", ports.len()),
        }
    }

    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = match self.successor {
                None => self.child.try_wait().expect("our child"),
                Some(pid) => wait_for(pid, libc::WNOHANG).map(std::os::unix::process::ExitStatusExt::from_raw),
            };
        }
        self.exited
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet waited for, so its id is not reused.
        let done = unsafe { libc::kill(self.pid().cast_signed(), signal) };
        assert_eq!(done, 0, "the gateway is gone");
    }

    /// The whole process stands still while `during` runs: what clients do meanwhile comes to it all at once.
    pub fn stopped<T>(&self, during: impl FnOnce() -> T) -> T {
        self.signal(libc::SIGSTOP);
        let done = during();
        self.signal(libc::SIGCONT);
        done
    }

    /// Waits until no topic is left: neither members nor memory of it. Topics stay while they have a history: for gateways with a short one, or none.
    pub fn wait_for_no_topics(&self) {
        eventually(SOON, || match self.metrics().sum("shardcast_topics", &[]) {
            0.0 => Ok(()),
            topics => Err(format!("{topics} topics are left")),
        });
    }

    /// Waits for its end.
    pub fn exit_within(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit() {
                self.hear_it_out();
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway did not exit within {limit:?}");
            sleep_ms(5);
        }
    }

    /// What it wrote last is read a moment after its end. Where another process has its stderr too, no end of it can be waited for.
    fn hear_it_out(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < deadline {
            sleep_ms(1);
        }
    }

    pub fn alive(&mut self) -> bool {
        self.try_exit().is_none()
    }

    /// One scrape of the admin port.
    pub fn metrics(&self) -> Metrics {
        let response = raw::http(self.admin, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(response.status, 200, "GET /metrics on the admin port: {response:?}");
        Metrics::parse(&response.text())
    }

    /// Open WebSockets, over all shards.
    pub fn connections(&self) -> u64 {
        self.metrics().sum("shardcast_connections", &[("transport", "ws")]) as u64
    }

    /// Connections that ended with this code (`1002`) or cause (`slow_consumer`).
    pub fn closes(&self, code_or_cause: &str) -> u64 {
        self.metrics().with_label_value("shardcast_closes_total", code_or_cause) as u64
    }

    /// Connections of each shard, whatever they speak.
    pub fn shard_connections(&self) -> Vec<u64> {
        let metrics = self.metrics();
        let shards = metrics.count("shardcast_shard_connections");
        (0..shards).map(|shard| metrics.sum("shardcast_shard_connections", &[("shard", &shard.to_string())]) as u64).collect()
    }

    /// Until /readyz says so: with NATS, once it is connected and its stream is read.
    pub fn wait_until_ready(&self) {
        eventually(3 * SOON, || {
            let answer = raw::http(self.admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            if answer.status == 200 { Ok(()) } else { Err(format!("{}\n{}", answer.text(), self.log())) }
        });
    }

    pub fn wait_for_connections(&self, expected: u64) {
        eventually(SOON, || {
            let open = self.connections();
            if open == expected { Ok(()) } else { Err(format!("{open} WebSockets are open, {expected} were expected")) }
        });
    }

    pub fn wait_for_closes(&self, code_or_cause: &str, expected: u64) {
        eventually(SOON, || {
            let closed = self.closes(code_or_cause);
            if closed == expected { Ok(()) } else { Err(format!("{closed} closes count as {code_or_cause}, {expected} were expected")) }
        });
    }

    /// Proportional set size, shared pages by their share, without those of files: of the program itself we get a larger share with every other gateway
    /// that ends.
    pub fn pss_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).expect("the gateway runs");
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("smaps_rollup has no line {name}"));
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("NAME: N kB") * 1024
        };
        field("Pss:").saturating_sub(field("Pss_File:"))
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the gateway runs").count()
    }

    /// Descriptors that stay open: the fewest of ten looks. Whoever was accepted a moment ago and is about to be dropped has one too.
    pub fn kept_descriptors(&self) -> usize {
        let looks = (0..10).map(|_| {
            sleep_ms(15);
            self.descriptors()
        });
        looks.min().expect("ten looks")
    }

    /// User and system time used so far.
    pub fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the gateway runs");
        let after_name = text.rsplit(')').next().expect("the name ends with a bracket");
        let fields: Vec<u64> = after_name.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        // SAFETY: sysconf has no preconditions.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.cast_unsigned();
        Duration::from_millis((fields[11] + fields[12]) * 1000 / ticks_per_second)
    }

    /// The thread of a shard, by the name that it gives itself.
    pub fn shard_thread(&self, shard: u16) -> i32 {
        let name = format!("shard-{shard}");
        std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .expect("the gateway runs")
            .map(|entry| entry.expect("a directory entry").path())
            .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name))
            .and_then(|path| path.file_name()?.to_str()?.parse().ok())
            .unwrap_or_else(|| panic!("the gateway has no thread named {name}"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.try_exit().is_none() {
            self.signal(libc::SIGKILL);
            match self.successor {
                None => drop(self.child.wait()),
                Some(pid) => drop(wait_for(pid, 0)),
            }
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(60);
            eprintln!("--- log of the gateway ({} driver, {skipped} lines before)", self.driver);
            log.lines().skip(skipped).for_each(|line| eprintln!("    {line}"));
        }
    }
}

/// Puts a script where a program is, in one step. A file that was just written is busy for as long as another test is between fork and exec.
pub fn put_program(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, script).expect("our directory");
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).expect("our file");
    eventually(SOON, || match Command::new(&fresh).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(mut child) => {
            let _ = child.kill();
            let _ = child.wait();
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => Err(error.to_string()),
        Err(_) => Ok(()),
    });
    std::fs::rename(&fresh, path).expect("our directory");
}

/// The wait status of a child, or of an orphan that has become one.
fn wait_for(pid: u32, options: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: the kernel writes one int; a process that is no child of ours is ECHILD.
    let waited = unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, options) };
    assert!(waited >= 0, "process {pid} is no child: {}", std::io::Error::last_os_error());
    (waited > 0).then_some(status)
}

/// The seed of a random schedule: `SHARDCAST_TEST_SEED`, or a new one. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let seed =
        std::env::var("SHARDCAST_TEST_SEED").ok().map_or_else(rand::random, |text| text.parse().expect("SHARDCAST_TEST_SEED is a number"));
    println!("seed {seed}: run again with SHARDCAST_TEST_SEED={seed}");
    seed
}

/// Raises the soft limit of open descriptors to the hard one, for tests that hold thousands.
pub fn raise_nofile() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit that the call fills.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live rlimit that the call reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
