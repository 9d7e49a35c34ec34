//! Starting and stopping: signals, a second instance, bad configuration, ordinary users.

mod common;

use common::frame::{self, FIN};
use common::raw::{self, Raw};
use common::swarm::{End, Event, State, Swarm};
use common::{Gateway, SOON, foreign, gateway, now, sleep_ms};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn says_to_come_back(client: &mut foreign::Client) {
    let close = client.closed().expect("a close frame with a code");
    assert_eq!(u16::from(close.code), 1012);
    assert!(close.reason.contains("retry="), "{}", close.reason);
}

#[test]
fn sigterm_and_sigint_close_1012_with_retry_and_exit_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut gateway = gateway().start();
        let mut clients: Vec<foreign::Client> = (0..50).map(|number| foreign::connect(&gateway, &format!("/ws?room={number}"))).collect();
        gateway.signal(signal);
        clients.iter_mut().for_each(says_to_come_back);
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    }
}

#[test]
fn a_gateway_without_clients_stops_at_once() {
    let mut gateway = gateway().start();
    let begun = now();
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn what_was_published_before_the_signal_still_arrives() {
    let mut gateway = gateway().start();
    let mut reader = foreign::connect(&gateway, "/ws?room=lobby");
    reader.text("in");
    reader.expect_text("in");
    let mut writer = foreign::connect(&gateway, "/ws?room=lobby&echo=0");
    for number in 0..200 {
        writer.text(&number.to_string());
    }
    // Its own ping comes back after everything before it was taken in.
    writer.send(tungstenite::Message::Ping("done".into()));
    while !writer.socket.read().expect("a pong").is_pong() {}
    gateway.signal(libc::SIGTERM);
    for number in 0..200 {
        reader.expect_text(&number.to_string());
    }
    says_to_come_back(&mut reader);
    drop((reader, writer));
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn clients_that_do_not_answer_the_close_cannot_hold_the_exit() {
    let mut gateway = gateway().limit("drain_ms", 1500).limit("linger_ms", 60_000).start();
    let _deaf: Vec<Raw> = (0..5).map(|_| raw::ws(&gateway, "/ws")).collect();
    let _half: Raw = {
        let mut raw = Raw::connect(gateway.port);
        raw.write(b"GET /ws HTTP/1.1\r\n");
        raw
    };
    sleep_ms(50);
    let begun = now();
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "drain_ms is 1500; it took {:?}", begun.elapsed());
}

#[test]
fn no_new_client_is_taken_while_stopping() {
    let mut gateway = gateway().limit("drain_ms", 3000).start();
    let _deaf = raw::ws(&gateway, "/ws");
    gateway.signal(libc::SIGTERM);
    sleep_ms(300);
    assert!(gateway.alive(), "it waits for the client that has not closed yet");
    let refused = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(raw::upgrade("/ws", "").as_bytes())?;
        let mut answer = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut answer)?;
        Ok(answer)
    });
    assert!(refused.as_ref().map_or(true, |answer| *answer != *b"HTTP/1.1 101"), "a new client was let in: {refused:?}");
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_second_instance_on_the_same_port_is_refused_with_exit_1() {
    let mut first = gateway().start();
    let (code, said) = gateway().listen(format!("127.0.0.1:{}", first.port)).run();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&first.port.to_string()), "the text names the address: {said}");
    assert!(said.contains("in use"), "the text names the cause: {said}");
    assert!(first.alive());
    let mut client = foreign::connect(&first, "/echo");
    client.text("unharmed");
    client.expect_text("unharmed");
}

fn config_file(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!(
        "shardcast-{}-{:x}.toml",
        std::process::id(),
        text.len() * 31 + text.bytes().map(usize::from).sum::<usize>()
    ));
    std::fs::write(&path, text).expect("the temporary directory is writable");
    path
}

fn refused_config(text: &str) -> String {
    let path = config_file(text);
    let (code, said) = gateway().arg("--config").arg(path.to_str().expect("a plain path")).run();
    std::fs::remove_file(&path).expect("just written");
    assert_eq!(code, Some(2), "{text:?}: {said}");
    said
}

#[test]
fn an_unknown_config_key_is_refused_with_a_suggestion_and_exit_2() {
    let said = refused_config("[limits]\nmesage_bytes_max = 5000\n");
    assert!(said.contains("mesage_bytes_max") && said.contains("limits.message_bytes_max"), "{said}");
    let said = refused_config("[limitz]\nmessage_bytes_max = 5000\n");
    assert!(said.contains("limitz") && said.contains("limits"), "{said}");
}

#[test]
fn a_bound_out_of_range_is_refused_with_its_range() {
    let said = refused_config("[limits]\nmessage_bytes_max = 3\n");
    assert!(said.contains("message_bytes_max") && said.contains('3') && said.contains("125"), "{said}");
    let said = refused_config("[limits]\nqueue_bytes_max = 5000\nmessage_bytes_max = 60000\n");
    assert!(said.contains("queue_bytes_max") && said.contains("60000"), "{said}");
}

#[test]
fn an_unknown_environment_twin_is_refused_with_a_suggestion() {
    let (code, said) = gateway().env("SHARDCAST_LIMITS_MESAGE_BYTES_MAX", "5000").run();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("SHARDCAST_LIMITS_MESSAGE_BYTES_MAX"), "{said}");
}

#[test]
fn a_config_file_sets_a_bound_and_the_environment_wins_over_it() {
    let path = config_file("[limits]\nmessage_bytes_max = 1000\nhead_timeout_ms = 5000\n");
    let path_text = path.to_str().expect("a plain path");
    let by_file = gateway().arg("--config").arg(path_text).start();
    let mut client = foreign::connect(&by_file, "/echo");
    client.send(tungstenite::Message::binary(vec![0; 1001]));
    assert_eq!(client.close_code(), 1009);
    let by_environment = gateway().arg("--config").arg(path_text).limit("message_bytes_max", 2000).start();
    let mut client = foreign::connect(&by_environment, "/echo");
    client.send(tungstenite::Message::binary(vec![0; 1001]));
    assert_eq!(client.message().len(), 1001);
    std::fs::remove_file(&path).expect("just written");
}

#[test]
fn an_unknown_option_is_refused_with_exit_2() {
    let (code, said) = gateway().arg("--sharts").arg("3").run();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--sharts"), "{said}");
}

/// Rings are charged to the user's locked memory, all of them together: at their full size 16 of them do not fit in 8 MiB.
#[test]
fn an_ordinary_user_with_8_mib_of_memlock_starts_16_shards() {
    let mut gateway = gateway().shards(16).memlock_bytes(8 << 20).ordinary_user().start();
    let mut clients: Vec<foreign::Client> = (0..64).map(|_| foreign::connect(&gateway, "/ws?room=lobby")).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.text(&number.to_string());
        while client.message() != tungstenite::Message::text(number.to_string()) {}
    }
    assert_eq!(gateway.connections(), 64);
    gateway.signal(libc::SIGTERM);
    drop(clients);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

#[test]
fn one_shard_is_a_gateway_too() {
    let gateway: Gateway = gateway().shards(1).start();
    let mut client = foreign::connect(&gateway, "/ws?room=lobby");
    client.text("alone");
    client.expect_text("alone");
}

#[test]
fn readiness_means_that_clients_can_connect() {
    for _ in 0..5 {
        let gateway = gateway().start();
        foreign::connect(&gateway, "/echo").leave();
    }
}

#[test]
fn everything_is_given_back_when_clients_go() {
    let gateway = gateway().start();
    let before = gateway.descriptors();
    for _ in 0..3 {
        let clients: Vec<foreign::Client> =
            (0..100).map(|number| foreign::connect(&gateway, &format!("/ws?room={}", number % 10))).collect();
        gateway.wait_for_connections(100);
        drop(clients);
        gateway.wait_for_connections(0);
        common::eventually(SOON, || match gateway.descriptors() {
            after if after <= before => Ok(()),
            after => Err(format!("{after} descriptors are open, {before} were at the start")),
        });
    }
}

/// Goodbye was said to whoever had nothing queued, while publishers were still read from: in a room that is written faster than it is read that is never.
/// Hundreds of MiB were queued, members were cut with 4508 instead, and the drain ended in resets.
#[test]
fn a_room_that_is_flooded_is_told_1012_too() {
    for shards in [1, 2] {
        // 64 MiB, so that nobody is cut for being slow.
        let mut gateway = gateway()
            .shards(shards)
            .limit("drain_ms", 20_000)
            .limit("queue_bytes_max", 64 << 20)
            .limit("queue_frames_max", 1 << 20)
            .start();
        let members: Vec<Raw> = (0..3).map(|_| raw::ws(&gateway, "/ws?room=flood")).collect();
        let flooded = AtomicU64::new(0);
        let (ends, took) = std::thread::scope(|scope| {
            let mut readers = Vec::new();
            for (number, mut raw) in members.into_iter().enumerate() {
                let mut writer = Raw::over(raw.stream.try_clone().expect("a descriptor"));
                let flooded = &flooded;
                if number < 2 {
                    scope.spawn(move || {
                        let batch = frame::masked(FIN | frame::BINARY, &[b'z'; 1000]).repeat(8);
                        while writer.try_write(&batch) {
                            flooded.fetch_add(batch.len() as u64, Ordering::Relaxed);
                        }
                    });
                }
                readers.push(scope.spawn(move || {
                    let end = raw.last_close(2 * SOON);
                    let _ = raw.stream.shutdown(std::net::Shutdown::Both);
                    end
                }));
            }
            sleep_ms(600);
            let begun = now();
            gateway.signal(libc::SIGTERM);
            let ends: Vec<Option<u16>> = readers.into_iter().map(|reader| reader.join().expect("no panic")).collect();
            (ends, begun.elapsed())
        });
        assert!(flooded.into_inner() > 1 << 20, "no flood");
        assert_eq!(ends, [Some(1012); 3], "{shards} shards, after {took:?}");
        assert!(took < Duration::from_secs(8), "{shards} shards: drain_ms is 20,000; the last was told after {took:?}");
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    }
}

/// A member with echo=0 is never sent its own messages. One whose last messages had not come round when the drain began was passed over and not looked at
/// again: nothing was left to send it, so nothing told it goodbye, and the exit waited for it until drain_ms.
#[test]
fn a_member_that_hears_only_itself_with_echo_0_is_told_1012_too() {
    for shards in [1, 2] {
        // Few sends in a turn: a message needs many turns to come round.
        let mut gateway = gateway().shards(shards).limit("drain_ms", 20_000).limit("fanout_sends_per_turn", 4).start();
        let mut swarm = Swarm::new(gateway.port);
        let nothing = &mut |_, _: Event<'_>| {};
        for _ in 0..200 {
            swarm.connect("/ws?room=lobby&echo=0");
        }
        swarm.run(SOON, "200 members", nothing, |swarm| swarm.count(&State::Open) == 200);
        let begun = now();
        let mut signalled = None;
        while swarm.count(&State::Gone) < 200 {
            assert!(begun.elapsed() < Duration::from_secs(9), "{shards} shards: not all are gone: {}", swarm.summary());
            if signalled.is_none() && begun.elapsed() > Duration::from_millis(400) {
                gateway.signal(libc::SIGTERM);
                signalled = Some(now());
            }
            // The first one writes on until it is told.
            if *swarm.client(0).state() == State::Open && swarm.client(0).unsent() == 0 {
                swarm.send_binary(0, &[b'm'; 100]);
            }
            swarm.turn(Duration::from_millis(1), nothing);
        }
        let told = (0..200).filter(|id| swarm.client(*id).end() == Some(&End::Closed(Some(1012)))).count();
        assert_eq!(told, 200, "{shards} shards: {}", swarm.summary());
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    }
}

/// A request that was half sent when the gateway began to stop was answered and its connection kept: it then waited for another request, and the exit with
/// it for keepalive_ms or drain_ms.
#[test]
fn a_request_that_ends_during_the_drain_is_the_last_of_its_connection() {
    let cases = [("/healthz", "GET"), ("/nope", "GET"), ("/nope", "HEAD"), ("/ws", "GET")];
    let mut gateway = gateway().limit("drain_ms", 20_000).limit("keepalive_ms", 60_000).start();
    let mut clients: Vec<Raw> = cases
        .iter()
        .map(|(path, method)| {
            let mut raw = Raw::connect(gateway.port);
            raw.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let response = raw.response();
            assert_eq!(response.status, 200);
            assert_ne!(response.header("connection"), Some("close"), "{response:?}");
            raw.write(format!("{method} {path} HTTP/1.1\r\nHo").as_bytes());
            raw
        })
        .collect();
    // Another one has nothing to ask: it must not hold the exit either.
    let mut idle = Raw::connect(gateway.port);
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.response().status, 200);
    sleep_ms(100);
    let begun = now();
    gateway.signal(libc::SIGTERM);
    sleep_ms(400);
    for ((path, method), raw) in cases.iter().zip(&mut clients) {
        raw.write(b"st: localhost\r\n\r\n");
        let response = raw.response_to(method);
        let closes = |(name, value): &(String, String)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close");
        assert!(response.headers.iter().any(closes), "{method} {path}: {response:?}");
        assert_eq!(raw.end_within(SOON), raw::End::Eof, "{method} {path}");
    }
    assert_eq!(idle.end_within(SOON), raw::End::Eof);
    drop((clients, idle));
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "drain_ms is 20,000; it took {:?}", begun.elapsed());
}

/// A client that was accepted while the signal came could be handed to a shard that was done already: still counted, it held the exit until drain_ms.
/// A race of a few turns, which 20 rounds may or may not meet.
#[test]
fn clients_that_come_and_go_do_not_delay_the_exit() {
    let mut slowest = Duration::ZERO;
    for round in 0..20_u64 {
        let mut gateway = gateway().limit("drain_ms", 6_000).start();
        let port = gateway.port;
        let stop = AtomicBool::new(false);
        let took = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        drop(std::net::TcpStream::connect(("127.0.0.1", port)));
                    }
                });
            }
            sleep_ms(30 + round * 7 % 40);
            let begun = now();
            gateway.signal(libc::SIGTERM);
            while gateway.alive() && begun.elapsed() < 2 * SOON {
                sleep_ms(2);
            }
            stop.store(true, Ordering::Relaxed);
            begun.elapsed()
        });
        assert_eq!(gateway.exit_within(SOON).code(), Some(0), "round {round}");
        assert!(took < Duration::from_secs(3), "round {round}: the exit took {took:?}");
        slowest = slowest.max(took);
    }
    println!("the slowest of 20 exits took {slowest:?}");
}
