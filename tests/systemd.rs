//! Life under systemd: what it is told, sockets that it passes, and the units in dist/systemd.

mod common;

use common::freeze::Frozen;
use common::raw::{self, Raw};
use common::{SOON, eventually, foreign, gateway, now, put_program, sleep_ms};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The socket that systemd would listen on for one service.
struct Systemd {
    socket: UnixDatagram,
    address: String,
    path: Option<PathBuf>,
}

impl Systemd {
    fn new(has_path: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("shardcast-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if has_path {
            let path = std::env::temp_dir().join(name);
            let socket = UnixDatagram::bind(&path).expect("the temporary directory is writable");
            return Self { socket, address: path.to_str().expect("a plain path").to_owned(), path: Some(path) };
        }
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        Self { socket: UnixDatagram::bind_addr(&address).expect("nobody's name"), address: format!("@{name}"), path: None }
    }

    /// The next message, if one comes in time.
    fn told_within(&self, limit: Duration) -> Option<String> {
        let mut buffer = [0; 1000];
        self.socket.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).expect("a timeout above zero");
        let count = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..count].to_vec()).expect("text"))
    }

    /// Messages up to the next with this line: that one.
    fn expect(&self, line: &str) -> String {
        let deadline = now() + SOON;
        loop {
            let message = self.told_within(deadline.saturating_duration_since(now()));
            let message = message.unwrap_or_else(|| panic!("systemd was not told {line} within {SOON:?}"));
            if message.lines().any(|has| has == line) {
                return message;
            }
        }
    }

    /// How many messages with this line come in this time.
    fn count(&self, line: &str, time: Duration) -> usize {
        let deadline = now() + time;
        let mut count = 0;
        while let Some(message) = self.told_within(deadline.saturating_duration_since(now())) {
            count += usize::from(message.lines().any(|has| has == line));
            if now() >= deadline {
                break;
            }
        }
        count
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[test]
fn systemd_is_told_when_clients_can_connect_and_how_a_drain_goes() {
    for has_path in [true, false] {
        let systemd = Systemd::new(has_path);
        let mut gateway = gateway().env("NOTIFY_SOCKET", &systemd.address).limit("linger_ms", 60_000).limit("drain_ms", 2500).start();
        let ready = systemd.expect("READY=1");
        assert!(ready.contains(&format!("STATUS=serving on 127.0.0.1:{}, 2 shards", gateway.port)), "{ready}");
        let deaf = raw::ws(&gateway, "/ws");
        gateway.signal(libc::SIGTERM);
        let stopping = systemd.expect("STOPPING=1");
        assert!(stopping.contains("\nEXTEND_TIMEOUT_USEC=10000000"), "{stopping}");
        for _ in 0..2 {
            let progress = systemd.expect("EXTEND_TIMEOUT_USEC=10000000");
            assert!(progress.contains("STATUS=draining: 1 connections left"), "{progress}");
        }
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
        drop(deaf);
    }
}

#[test]
fn a_drain_that_does_not_end_the_process_is_only_a_status() {
    let systemd = Systemd::new(true);
    let gateway = gateway().env("NOTIFY_SOCKET", &systemd.address).start();
    systemd.expect("READY=1");
    let admin = |line: &str| {
        let response = raw::http(gateway.admin, format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert_eq!(response.status, 200, "{response:?}");
    };
    admin("POST /drain");
    let drained = systemd.expect("STATUS=drained");
    assert!(!drained.contains("STOPPING"), "{drained}");
    admin("DELETE /drain");
    systemd.expect(&format!("STATUS=serving on 127.0.0.1:{}, 2 shards, {} driver", gateway.port, gateway.driver));
}

/// Shards that have nothing to do sleep for ever: that they are well has to be found out.
#[test]
fn the_watchdog_is_fed_while_every_shard_turns() {
    let systemd = Systemd::new(false);
    let gateway = gateway().env("NOTIFY_SOCKET", &systemd.address).env("WATCHDOG_USEC", "800000").start();
    systemd.expect("READY=1");
    // At least every 0.4 s, as it should be.
    for _ in 0..5 {
        let begun = now();
        systemd.expect("WATCHDOG=1");
        assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    }
    let frozen = Frozen::stop(gateway.shard_thread(1));
    // What was found out before may still be told.
    sleep_ms(300);
    while systemd.told_within(Duration::from_millis(1)).is_some() {}
    assert_eq!(systemd.count("WATCHDOG=1", Duration::from_millis(1500)), 0, "a shard is stuck");
    drop(frozen);
    systemd.expect("WATCHDOG=1");
}

#[test]
fn a_watchdog_is_fed_until_the_last_shard_has_finished() {
    let systemd = Systemd::new(true);
    let mut gateway = gateway()
        .env("NOTIFY_SOCKET", &systemd.address)
        .env("WATCHDOG_USEC", "400000")
        .limit("linger_ms", 60_000)
        .limit("drain_ms", 1500)
        .start();
    let deaf = raw::ws(&gateway, "/ws");
    gateway.signal(libc::SIGTERM);
    systemd.expect("STOPPING=1");
    assert!(systemd.count("WATCHDOG=1", Duration::from_millis(1200)) >= 4);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    drop(deaf);
}

/// The next process is the service from the moment when it has everything, and it is alive.
#[test]
fn a_hand_over_makes_the_next_process_the_service() {
    let systemd = Systemd::new(false);
    let mut gateway = gateway().env("NOTIFY_SOCKET", &systemd.address).env("WATCHDOG_USEC", "800000").start();
    systemd.expect("READY=1");
    let before = gateway.pid();
    gateway.hand_over();
    assert_ne!(gateway.pid(), before);
    systemd.expect(&format!("MAINPID={}", gateway.pid()));
    // What the one before has said is behind us.
    systemd.expect("WATCHDOG=1");
}

/// A hand-over may take longer than the watchdog waits: its shards turn all the while, serving or frozen.
#[test]
fn the_watchdog_hears_of_a_process_that_waits_for_the_next_one() {
    let systemd = Systemd::new(false);
    let setup = gateway().ordinary_user().limit("handover_ms", 1500);
    let gateway = setup.env("NOTIFY_SOCKET", &systemd.address).env("WATCHDOG_USEC", "400000").start();
    systemd.expect("READY=1");
    let path = std::fs::read_link(format!("/proc/{}/exe", gateway.pid())).expect("it runs");
    let real = path.with_extension("real");
    std::fs::copy(&path, &real).expect("our directory");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).expect("our file");
    for prepared in ["", "echo prepared >&0;"] {
        let script = format!("#!/bin/sh\n[ \"$1\" = config ] && exec {} \"$@\"\n{prepared} exec sleep 60\n", real.display());
        put_program(&path, &script);
        let known = gateway.log().matches("no hand-over").count();
        gateway.signal(libc::SIGUSR2);
        eventually(SOON, || match gateway.log().matches("handing over to the next process").count() {
            begun if begun > known => Ok(()),
            _ => Err("it has not begun".to_owned()),
        });
        assert!(systemd.count("WATCHDOG=1", Duration::from_millis(1200)) >= 4, "{prepared}");
        eventually(SOON, || if gateway.log().matches("no hand-over").count() > known { Ok(()) } else { Err("it waits".to_owned()) });
    }
}

#[test]
fn a_gateway_whose_supervisor_cannot_be_reached_warns_and_serves() {
    let gateway = gateway().env("NOTIFY_SOCKET", "/nonexistent/notify").start();
    foreign::connect(&gateway, "/echo").leave();
    gateway.expect_log("/nonexistent/notify cannot be reached");
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

#[test]
fn sockets_that_were_passed_are_served_and_shards_have_even_shares() {
    let ((clients, port), (admin, admin_port)) = (listener(), listener());
    let gateway = gateway().shards(4).passed(&[clients.as_raw_fd(), admin.as_raw_fd()], "clients:admin").start();
    assert_eq!((gateway.port, gateway.admin), (port, admin_port));
    let mut members: Vec<foreign::Client> = (0..200).map(|_| foreign::connect(&gateway, "/ws?room=lobby")).collect();
    members[0].text("to all shards");
    members.iter_mut().for_each(|member| member.expect_text("to all shards"));
    let shares = gateway.shard_connections();
    assert!(shares.iter().all(|share| share.abs_diff(50) <= 5), "{shares:?}");
}

/// Only systemd's end of the socket is left between two processes, and that is enough.
#[test]
fn nobody_is_refused_while_the_process_restarts() {
    let (clients, port) = listener();
    let mut first = gateway().passed(&[clients.as_raw_fd()], "").limit("linger_ms", 1500).start();
    let deaf = raw::ws(&first, "/ws");
    first.signal(libc::SIGTERM);
    sleep_ms(500);
    assert!(first.alive(), "it waits for its deaf client");
    let mut during = Raw::connect(port);
    during.write(raw::upgrade("/echo", "").as_bytes());
    assert!(!during.answered_within(Duration::from_millis(300)), "the process that ends leaves who comes now to the next");
    assert_eq!(first.exit_within(SOON).code(), Some(0));
    let mut between = Raw::connect(port);
    between.write(raw::upgrade("/echo", "").as_bytes());
    let second = gateway().passed(&[clients.as_raw_fd()], "").start();
    assert_eq!(second.port, port);
    during.expect_upgraded();
    between.expect_upgraded();
    drop(deaf);
}

#[test]
fn a_drain_on_a_passed_socket_is_called_off() {
    let (clients, _) = listener();
    let gateway = gateway().passed(&[clients.as_raw_fd()], "").start();
    let admin = |line: &str| raw::http(gateway.admin, format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).status;
    assert_eq!(admin("POST /drain"), 200);
    sleep_ms(400);
    let mut waiting = Raw::connect(gateway.port);
    waiting.write(raw::upgrade("/echo", "").as_bytes());
    assert!(!waiting.answered_within(Duration::from_millis(200)));
    assert_eq!(admin("DELETE /drain"), 200);
    waiting.expect_upgraded();
    for _ in 0..8 {
        foreign::connect(&gateway, "/echo").leave();
    }
}

#[test]
fn sockets_that_cannot_be_used_are_refused_with_what_to_do() {
    let (clients, _) = listener();
    let (more, _) = listener();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    let path = std::env::temp_dir().join(format!("shardcast-test-{}-listener", std::process::id()));
    let unix = UnixListener::bind(&path).expect("the temporary directory is writable");
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let cases: [(&[RawFd], &str, &str); 5] = [
        (&[clients.as_raw_fd(), more.as_raw_fd()], "", "more than one socket for clients"),
        (&[clients.as_raw_fd(), more.as_raw_fd()], "admin:admin", "more than one socket for the admin listener"),
        (&[udp.as_raw_fd()], "", "no listening TCP socket"),
        (&[unix.as_raw_fd()], "", "no listening TCP socket"),
        (&[clients.as_raw_fd(), file.as_raw_fd()], "clients:admin", "is no socket"),
    ];
    for (descriptors, names, expect) in cases {
        let (code, said) = gateway().passed(descriptors, names).run();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expect), "{expect}: {said}");
    }
    std::fs::remove_file(&path).expect("bound above");
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let gateway = gateway().env("LISTEN_FDS", "1").env("LISTEN_PID", "1").start();
    foreign::connect(&gateway, "/echo").leave();
}

fn unit(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dist/systemd").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let line = unit.lines().find(|line| line.split('=').next() == Some(key));
    line.unwrap_or_else(|| panic!("the unit has no {key}=")).split_once('=').expect("found by it").1
}

#[test]
fn the_units_fit_the_defaults() {
    let service = unit("shardcast.service");
    let seconds: u64 = setting(&service, "TimeoutStopSec").parse().expect("seconds");
    let limits = shardcast::limits::Limits::default();
    assert!(seconds * 1000 >= limits.drain_ms + limits.drain_wait_ms + 5000, "a drain takes longer than TimeoutStopSec={seconds}");
    assert_eq!((setting(&service, "Type"), setting(&service, "NotifyAccess")), ("notify", "main"));
    assert_eq!(setting(&unit("shardcast.socket"), "ListenStream"), "8080");
    assert_ne!(setting(&unit("shardcast.socket"), "FileDescriptorName"), "admin");
    assert_eq!(setting(&unit("shardcast-admin.socket"), "ListenStream"), "127.0.0.1:9090");
    assert_eq!(setting(&unit("shardcast-admin.socket"), "FileDescriptorName"), "admin");
}

/// Where systemd is installed, it reads the units without a complaint, and finds little that the service may do.
#[test]
fn systemd_has_no_complaint_about_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("systemd-analyze is not installed: the units are not verified");
        return;
    }
    let directory = std::env::temp_dir().join(format!("shardcast-units-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a fresh name in the temporary directory");
    let mut paths = Vec::new();
    for name in ["shardcast.service", "shardcast.socket", "shardcast-admin.socket"] {
        let path = directory.join(name);
        // The binary must be there.
        let text = unit(name).replace("/usr/local/bin/shardcast", env!("CARGO_BIN_EXE_shardcast"));
        std::fs::write(&path, text).expect("our directory");
        paths.push(path);
    }
    let verified = Command::new("systemd-analyze").arg("verify").args(&paths).output().expect("it is installed");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let rated = Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=20"]).arg(&paths[0]).output();
    std::fs::remove_dir_all(&directory).expect("our directory");
    assert!(verified.status.success() && !said.contains("shardcast"), "{said}");
    let rated = rated.expect("it is installed");
    // Before version 250 it cannot look at files.
    let too_old = String::from_utf8_lossy(&rated.stderr).contains("option");
    assert!(rated.status.success() || too_old, "exposure above 2.0: {}", String::from_utf8_lossy(&rated.stdout));
}
