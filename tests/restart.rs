//! A restart in place (SIGUSR2 with `restart = "drain"`): the same process, the same ports, the program that is at its path then; nobody is refused, and nothing is missed.

mod common;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use common::events::{self, expect_all, offset, publish, publish_all};
use common::raw::{self, Raw};
use common::{Gateway, SOON, Scratch, Setup, eventually, foreign, gateway, put_program, sleep_ms};

/// Where one test's state file is, and programs that are restarted.
struct Place(Scratch);

impl Place {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn setup(&self) -> Setup {
        drains().arg("--state").arg(self.0.join("state").to_str().expect("a plain path"))
    }
}

/// One whose restart is a drain.
fn drains() -> Setup {
    gateway().env("SHARDCAST_RESTART", "drain")
}

/// How often it has begun to serve.
fn lives(gateway: &Gateway) -> usize {
    gateway.log().matches(" ready: http://").count()
}

/// Restarts it and waits until it serves again.
fn restart(gateway: &mut Gateway) {
    let before = (lives(gateway), gateway.pid());
    gateway.signal(libc::SIGUSR2);
    eventually(SOON, || {
        assert!(gateway.alive(), "it ended in place of a restart");
        if lives(gateway) == before.0 + 1 { Ok(()) } else { Err("no second readiness line".into()) }
    });
    assert_eq!(raw::http(gateway.admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200, "on the same admin port");
}

/// Waits until it has said why there is no restart.
fn expect_no_restart(gateway: &Gateway, why: &str) {
    gateway.signal(libc::SIGUSR2);
    eventually(SOON, || {
        let log = gateway.log();
        if log.contains("no restart") && log.contains(why) { Ok(()) } else { Err(format!("{why} was expected")) }
    });
}

#[test]
fn who_comes_back_after_a_restart_in_place_has_missed_nothing() {
    let place = Place::new();
    let mut gateway = place.setup().start();
    let mut heard = 0;
    let mut id = String::new();
    // In its second life the sockets are passed, in its third they are passed on.
    for life in 0..3 {
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = match life {
            0 => events::open(gateway.port, "/events?topic=a"),
            _ => events::resume(gateway.port, "/events?topic=a", &id),
        };
        publish_all(&mut publisher, heard..heard + 5);
        expect_all(&mut reader, heard..heard + 5);
        heard += 5;
        id = reader.last_id();
        assert_eq!(offset(&id), u64::from(heard));
        let mut socket = foreign::connect(&gateway, "/ws?room=b");
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(reader.expect_bye()["code"], 1012));
            scope.spawn(|| assert_eq!(socket.close_code(), 1012));
            scope.spawn(|| assert_eq!(publisher.close_frame().0, Some(1012)));
            restart(&mut gateway);
        });
        assert_eq!(gateway.metrics().sum("shardcast_gaps_total", &[]), 0.0);
    }
}

/// A publisher that tries again with the same key: it is never refused, and each message is there once.
#[test]
fn nobody_is_refused_during_a_restart_and_each_message_is_published_once() {
    let place = Place::new();
    let mut gateway = place.setup().limit("history_messages", 100_000).start();
    let port = gateway.port;
    let stop = AtomicBool::new(false);
    let published = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|name| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let body = format!("{name}-{number}");
                        let head = "POST /publish?topic=fire HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
                        let request = format!("{head}Idempotency-Key: {body}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                        let stream = match TcpStream::connect(("127.0.0.1", port)) {
                            Ok(stream) => stream,
                            Err(error) if error.kind() == ErrorKind::ConnectionRefused => panic!("{body} was refused"),
                            Err(_) => continue,
                        };
                        let mut raw = Raw::over(stream);
                        if raw.try_write(request.as_bytes()) && raw.answered_within(SOON) && raw.unread().starts_with(b"HTTP/1.1 200") {
                            number += 1;
                        }
                    }
                    number
                })
            })
            .collect();
        sleep_ms(300);
        restart(&mut gateway);
        sleep_ms(300);
        restart(&mut gateway);
        sleep_ms(300);
        stop.store(true, Ordering::Relaxed);
        publishers.into_iter().map(|publisher| publisher.join().expect("never refused")).collect::<Vec<u32>>()
    });
    let mut reader = events::open(port, "/events?topic=fire&after=earliest");
    publish(&mut raw::ws(&gateway, "/ws?room=fire"), "end");
    let mut kept = Vec::new();
    loop {
        let event = reader.event();
        assert_eq!(offset(&event.id), kept.len() as u64 + 1, "{event:?}");
        if event.data == "end" {
            break;
        }
        kept.push(event.data);
    }
    assert!(kept.len() > 100, "no fire: {}", kept.len());
    for (name, published) in published.into_iter().enumerate() {
        let prefix = format!("{name}-");
        let numbers: Vec<u32> =
            kept.iter().filter_map(|text| text.strip_prefix(&prefix)).map(|number| number.parse().expect("one")).collect();
        // The last one may have been published without an answer that was waited for.
        assert!(numbers.len() as u32 - published <= 1, "{name}: {published} answered, {} kept", numbers.len());
        assert!(numbers.iter().copied().eq(0..numbers.len() as u32), "{name}: lost or doubled");
    }
}

#[test]
fn the_program_that_is_at_the_path_then_is_started_if_it_would_serve() {
    // A copy of the binary in a directory of its own.
    let mut gateway = drains().ordinary_user().start();
    let path = std::fs::read_link(format!("/proc/{}/exe", gateway.pid())).expect("it runs");
    let real = path.with_extension("real");
    std::fs::copy(&path, &real).expect("our directory");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let mut member = raw::ws(&gateway, "/ws?room=a");
    for (script, why) in [
        ("#!/bin/sh\necho 'too old for this machine' >&2\nexit 3\n", "too old for this machine"),
        ("#!/nowhere/interpreter\n", "does not run"),
        ("#!/bin/sh\nexec sleep 60\n", "has not ended within 5 s"),
    ] {
        put_program(&path, script);
        expect_no_restart(&gateway, why);
        publish(&mut member, "served as before");
    }
    put_program(&path, &format!("#!/bin/sh\necho 'the next release' >&2\nexec {} \"$@\"\n", real.display()));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(member.close_frame().0, Some(1012)));
        restart(&mut gateway);
    });
    gateway.expect_log("the next release");
    publish(&mut raw::ws(&gateway, "/ws?room=a"), "served again");
}

#[test]
fn a_configuration_that_would_not_be_taken_is_no_restart_and_one_that_would_is_used() {
    let place = Place::new();
    let file = place.0.join("shardcast.toml");
    std::fs::write(&file, "[limits]\nmessage_bytes_max = 1000\n").expect("our directory");
    let mut gateway = drains().arg("--config").arg(file.to_str().expect("a plain path")).start();
    let mut member = raw::ws(&gateway, "/ws?room=a");
    std::fs::write(&file, "[limits]\nmessage_bytes_max = \"many\"\n").expect("our directory");
    expect_no_restart(&gateway, "message_bytes_max");
    publish(&mut member, "served as before");
    std::fs::write(&file, "[limits]\nmessage_bytes_max = 2000\n").expect("our directory");
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(member.close_frame().0, Some(1012)));
        restart(&mut gateway);
    });
    publish(&mut raw::ws(&gateway, "/ws?room=a"), &"l".repeat(1500));
}

#[test]
fn a_signal_that_ends_the_process_wins_over_a_restart() {
    let mut gateway = drains().limit("drain_wait_ms", 1000).start();
    gateway.signal(libc::SIGUSR2);
    gateway.expect_log("restarting in place");
    gateway.signal(libc::SIGTERM);
    let status = gateway.exit_within(SOON);
    assert!(status.success() && lives(&gateway) == 1, "{status}");
    assert!(TcpStream::connect(("127.0.0.1", gateway.port)).is_err(), "nobody waits for what does not come");
}

/// Sockets of systemd stay what they are.
#[test]
fn sockets_that_were_passed_are_passed_on() {
    let clients = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut gateway = drains().passed(&[clients.as_raw_fd(), admin.as_raw_fd()], "shardcast.socket:admin").start();
    let ports = [&clients, &admin].map(|listener| listener.local_addr().expect("bound").port());
    assert_eq!([gateway.port, gateway.admin], ports);
    restart(&mut gateway);
    publish(&mut raw::ws(&gateway, "/ws?room=a"), "served again");
}
