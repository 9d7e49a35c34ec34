//! A planned restart with `--state`: whoever comes back with a position goes on from it, and what was published with an idempotency key is known. After a
//! crash, and from a file that cannot be gone on from, everybody is told of one gap.

mod common;

use std::path::{Path, PathBuf};

use common::events::{self, Reader, SHARDS, expect_all, expect_gap, offset, publish, publish_all, shards};
use common::frame::{BINARY, CLOSE, FIN, TEXT};
use common::raw::{self, End, Raw};
use common::{Gateway, SOON, Scratch, Setup, eventually, gateway, sleep_ms};
use serde_json::Value;

/// Where one test's state file is.
struct Place(Scratch);

impl Place {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn file(&self) -> PathBuf {
        self.0.join("state")
    }

    fn aside(&self) -> PathBuf {
        self.0.join("state.unreadable")
    }

    fn give(&self, setup: Setup) -> Setup {
        setup.arg("--state").arg(self.file().to_str().expect("a plain path"))
    }
}

/// Ends a gateway as a planned restart does; its state is in the file then.
fn end(mut gateway: Gateway, file: &Path) {
    gateway.signal(libc::SIGTERM);
    let status = gateway.exit_within(SOON);
    assert!(status.success() && file.is_file(), "{status}");
    gateway.expect_log("the state is written");
}

fn json(response: &raw::Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

/// Publishes by HTTP: the answer.
fn post(port: u16, path: &str, extra: &str, body: &str) -> Value {
    let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len());
    let response = raw::http(port, request.as_bytes());
    assert_eq!(response.status, 200, "{path}: {response:?}");
    json(&response)
}

fn position(answer: &Value) -> String {
    answer["pos"].as_str().unwrap_or_else(|| panic!("no pos: {answer}")).to_owned()
}

fn poll(port: u16, query: &str) -> (Vec<String>, String) {
    let response = raw::http(port, format!("GET /poll?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    assert_eq!(response.status, 200, "{query}: {response:?}");
    let body = json(&response);
    let messages = body["messages"].as_array().expect("messages").iter();
    let data = messages.map(|message| message["data"].as_str().expect("a message and no gap").to_owned()).collect();
    (data, body["next"].as_str().expect("next").to_owned())
}

/// Reads past what is left to the goodbye.
fn expect_goodbye(reader: &mut Reader) {
    let bye = reader.expect_bye();
    assert_eq!(bye["code"], 1012, "{bye}");
}

/// The same number of shards, more, and fewer.
const RESTARTS: [(u16, u16); 3] = [(1, 1), (2, 3), (3, 1)];

#[test]
fn who_comes_back_after_a_planned_restart_goes_on_where_it_was() {
    for (before, after) in RESTARTS {
        let place = Place::new();
        let first = place.give(shards(before)).start();
        let names = ["a", "b", "c", "d", "e"];
        let mut left = Vec::new();
        for name in names {
            let mut publisher = raw::ws(&first, &format!("/ws?room={name}"));
            let mut reader = events::open(first.port, &format!("/events?topic={name}"));
            publish_all(&mut publisher, 0..10);
            expect_all(&mut reader, 0..10);
            let (_, next) = poll(first.port, &format!("topic={name}&after=earliest&wait=0"));
            left.push((name, reader.last_id(), next));
            drop(reader);
            publish_all(&mut publisher, 10..30);
        }
        let mut both = events::open(first.port, "/events?topic=a&topic=b&after=earliest");
        expect_all(&mut both, 0..30);
        let id_of_both = both.last_id();
        end(first, &place.file());

        let second = place.give(shards(after)).start();
        assert!(!place.file().exists(), "what was read is gone");
        for (name, id, next) in &left {
            let mut stream = events::resume(second.port, &format!("/events?topic={name}"), id);
            let mut socket = raw::ws(&second, &format!("/ws?room={name}&after={id}"));
            expect_all(&mut stream, 10..30);
            (10..30).for_each(|number: u32| socket.expect_text(&number.to_string()));
            let (polled, next) = poll(second.port, &format!("topic={name}&after={next}&wait=0"));
            assert_eq!(polled, (10..30).map(|number: u32| number.to_string()).collect::<Vec<_>>());
            // And what comes now has the next offset.
            publish(&mut socket, "new");
            assert_eq!(offset(&stream.expect("new")), 31);
            assert_eq!(poll(second.port, &format!("topic={name}&after={next}&wait=0")).0, ["new"]);
        }
        let mut both = events::resume(second.port, "/events?topic=a&topic=b", &id_of_both);
        let mut heard: Vec<String> = (0..32).map(|_| both.event()).map(|event| event.data).collect();
        heard.sort();
        let mut expected: Vec<String> = (0..30).map(|number: u32| number.to_string()).chain(["new".into(), "new".into()]).collect();
        expected.sort();
        assert_eq!(heard, expected, "what b had, and what is new in both");
        assert_eq!(second.metrics().sum("shardcast_gaps_total", &[]), 0.0);
    }
}

#[test]
fn a_restored_message_is_the_same_in_every_form() {
    let place = Place::new();
    let first = place.give(gateway()).start();
    let mut publisher = raw::ws(&first, "/ws?room=a");
    publisher.send(FIN | BINARY, &[0, 159, 255]);
    publisher.frame();
    publisher.send_text("grüß dich");
    publisher.frame();
    let item = r#"{"topic":"a","data":{"x":1},"event":"price"}"#;
    let before = position(&post(first.port, "/v1/publish", "", item));
    post(first.port, "/publish?topic=a", "", "");
    let long = "l".repeat(60_000);
    publisher.send_text(&long);
    while publisher.frame().payload != long.as_bytes() {}
    let stream = |gateway: &Gateway| {
        let mut reader = events::open(gateway.port, "/events?topic=a&after=earliest");
        (0..5).map(|_| reader.event()).collect::<Vec<_>>()
    };
    let frames = |gateway: &Gateway| {
        let mut reader = raw::ws(gateway, "/ws?room=a&after=earliest");
        (0..5).map(|_| reader.frame()).map(|frame| (frame.first, frame.payload)).collect::<Vec<_>>()
    };
    let told = (stream(&first), frames(&first));
    assert_eq!((told.0[2].name.as_str(), told.0[2].id.as_str(), told.1[0].0), ("price", before.as_str(), FIN | BINARY));
    drop(publisher);
    end(first, &place.file());
    let second = place.give(gateway()).start();
    assert_eq!((stream(&second), frames(&second)), told);
}

#[test]
fn an_idempotency_key_is_answered_the_same_after_a_restart() {
    for (before, after) in RESTARTS {
        let place = Place::new();
        let first = place.give(shards(before)).start();
        let send = |gateway: &Gateway, topic: &str, key: &str| {
            post(gateway.port, &format!("/publish?topic={topic}"), &format!("Idempotency-Key: {key}\r\n"), "x")
        };
        let answers: Vec<(String, String)> = ["a", "b", "c", "d"]
            .iter()
            .flat_map(|topic| ["k1", "k2"].map(|key| (format!("{topic} {key}"), position(&send(&first, topic, key)))))
            .collect();
        end(first, &place.file());
        let second = place.give(shards(after)).start();
        for (asked, pos) in answers {
            let (topic, key) = asked.split_once(' ').expect("two words");
            let again = send(&second, topic, key);
            assert_eq!((position(&again), again["duplicate"].as_bool()), (pos, Some(true)), "{asked}");
        }
        assert_eq!(offset(&position(&send(&second, "a", "k3"))), 3);
    }
}

/// What ages goes on ageing: the time in between counts.
#[test]
fn histories_and_keys_are_as_old_after_a_restart_as_they_are() {
    let place = Place::new();
    let setup = || place.give(gateway()).limit("history_age_ms", 4000).limit("idempotency_ms", 4000);
    let first = setup().start();
    let key = "Idempotency-Key: k\r\n";
    let pos = position(&post(first.port, "/publish?topic=a", key, "old"));
    sleep_ms(2000);
    end(first, &place.file());
    let second = setup().start();
    let mut reader = events::open(second.port, "/events?topic=a&after=earliest");
    reader.expect("old");
    // Two seconds that were before the restart count.
    sleep_ms(3200);
    let mut reader = events::open(second.port, "/events?topic=a&after=earliest");
    reader.expect_silence(50);
    // It was up to date, and is told of no gap though nothing is kept.
    let mut reader = events::resume(second.port, "/events?topic=a", &pos);
    let again = post(second.port, "/publish?topic=a", key, "new");
    assert_eq!((again["duplicate"].as_bool(), offset(&position(&again))), (None, 2), "{again}");
    reader.expect("new");
}

/// Topics of which nothing is kept go on with their offsets all the same.
#[test]
fn a_topic_without_a_history_goes_on_with_its_offsets() {
    for (before, after) in RESTARTS {
        let place = Place::new();
        let setup = |count| place.give(shards(count)).limit("history_messages", 0);
        let first = setup(before).start();
        let names = ["a", "b", "c", "d"];
        let ids = names.map(|name| position(&post(first.port, &format!("/publish?topic={name}"), "", "x")));
        // One of them is in use until the end.
        let _member = raw::ws(&first, "/ws?room=b");
        end(first, &place.file());
        let second = setup(after).start();
        for (name, id) in names.iter().zip(ids) {
            let mut reader = events::resume(second.port, &format!("/events?topic={name}"), &id);
            assert_eq!(offset(&position(&post(second.port, &format!("/publish?topic={name}"), "", "y"))), 2);
            reader.expect("y");
        }
    }
}

/// Publishers go on until they are told goodbye: whatever had its place before is there afterwards, once and in order.
#[test]
fn nothing_is_lost_or_doubled_by_a_restart_under_fire() {
    for (before, after) in [(1, 2), (3, 2)] {
        let place = Place::new();
        let setup = |count| place.give(shards(count)).limit("history_messages", 1_000_000);
        let first = setup(before).start();
        let port = first.port;
        let mut reader = events::open(port, "/events?topic=fire");
        let mut heard: Vec<String> = Vec::new();
        let mut receipts: Vec<String> = Vec::new();
        std::thread::scope(|scope| {
            let sockets: Vec<_> = ["x", "y"]
                .map(|name| {
                    let mut publisher = raw::ws(&first, "/ws?room=fire&echo=0");
                    scope.spawn(move || {
                        for number in 0.. {
                            if !publisher.try_write(&common::frame::masked(FIN | TEXT, format!("{name} {number}").as_bytes())) {
                                break;
                            }
                            if number % 16 == 0 {
                                sleep_ms(1);
                            }
                        }
                    })
                })
                .into();
            let poster = scope.spawn(move || {
                let mut known = Vec::new();
                for number in 0.. {
                    let body = format!("z {number}");
                    let mut raw = match std::net::TcpStream::connect(("127.0.0.1", port)) {
                        Ok(stream) => Raw::over(stream),
                        Err(_) => break,
                    };
                    let head = format!("POST /publish?topic=fire HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
                    if !raw.try_write(format!("{head}{body}").as_bytes())
                        || !raw.answered_within(SOON)
                        || !raw.unread().starts_with(b"HTTP/1.1 200")
                    {
                        break;
                    }
                    known.push(body);
                }
                known
            });
            sleep_ms(500);
            first.signal(libc::SIGTERM);
            loop {
                match reader.next() {
                    Ok(event) if event.is_message() => heard.push(event.data),
                    Ok(event) => assert_eq!(event.name, "shardcast:bye", "{event:?}"),
                    Err(end) => break assert_eq!(end, End::Eof),
                }
            }
            sockets.into_iter().for_each(|socket| socket.join().expect("a publisher"));
            receipts = poster.join().expect("a publisher");
        });
        let mut first = first;
        assert!(first.exit_within(SOON).success());
        let second = setup(after).start();
        let mut all = events::open(second.port, "/events?topic=fire&after=earliest");
        publish(&mut raw::ws(&second, "/ws?room=fire"), "end");
        let mut kept = Vec::new();
        loop {
            let event = all.event();
            assert_eq!(offset(&event.id), kept.len() as u64 + 1, "{event:?}");
            if event.data == "end" {
                break;
            }
            kept.push(event.data);
        }
        assert!(heard.len() > 100 && receipts.len() > 10, "no fire: {} heard, {} answered", heard.len(), receipts.len());
        assert_eq!(kept[..heard.len()], heard, "what was heard is kept in its order");
        for name in ["x", "y", "z"] {
            let numbers: Vec<u64> =
                kept.iter().filter_map(|text| text.strip_prefix(name)).map(|number| number.trim().parse().expect("a number")).collect();
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{name}: {} messages, some lost or doubled", numbers.len());
        }
        let last = receipts.last().expect("many");
        assert!(kept.contains(last), "{last} was answered with 200 and is not kept");
    }
}

/// The file is gone once it was read: what a crash loses is told of, once, and no offset is given out twice.
#[test]
fn a_crash_after_a_restart_is_one_gap_for_each_client() {
    for count in SHARDS {
        let place = Place::new();
        let first = place.give(shards(count)).start();
        let mut publisher = raw::ws(&first, "/ws?room=a");
        publish_all(&mut publisher, 0..5);
        drop(publisher);
        end(first, &place.file());
        let second = place.give(shards(count)).start();
        let mut publisher = raw::ws(&second, "/ws?room=a");
        let mut reader = events::open(second.port, "/events?topic=a&after=earliest");
        publish_all(&mut publisher, 5..8);
        expect_all(&mut reader, 0..8);
        let id = reader.last_id();
        let (_, next) = poll(second.port, "topic=a&after=latest&wait=0");
        second.signal(libc::SIGKILL);
        drop((reader, publisher, second));
        assert!(!place.file().exists());

        let third = place.give(shards(count)).start();
        let mut reader = events::resume(third.port, "/events?topic=a", &id);
        expect_gap(&mut reader, "a", &id, "restart");
        let mut publisher = raw::ws(&third, "/ws?room=a");
        publish_all(&mut publisher, 0..3);
        expect_all(&mut reader, 0..3);
        // The position that it has now is one of the new life: no second gap.
        let mut again = events::resume(third.port, "/events?topic=a", &reader.last_id());
        publish(&mut publisher, "3");
        again.expect("3");
        let response =
            raw::http(third.port, format!("GET /poll?topic=a&after={next}&wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert!(response.text().contains("restart"), "{response:?}");
        let mut refused = Raw::connect(third.port);
        refused.write(raw::upgrade(&format!("/ws?room=a&after={id}"), "").as_bytes());
        refused.expect_upgraded();
        refused.close_frame();
    }
}

/// Better served with a gap than not at all.
#[test]
fn a_file_that_cannot_be_gone_on_from_is_put_aside_and_warned_of() {
    let place = Place::new();
    let first = place.give(gateway()).start();
    let id = position(&post(first.port, "/publish?topic=a", "", "x"));
    end(first, &place.file());
    let good = std::fs::read(place.file()).expect("it is there");
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    let mut newer = good.clone();
    newer[8] = 200;
    for (bytes, why) in [
        (damaged, "it is damaged"),
        (newer, "it has version 200"),
        (good[..good.len() - 5].to_vec(), "it was cut off"),
        (Vec::new(), "it was cut off"),
        (b"[limits]\n# a file of somebody else's".to_vec(), "no state file of shardcast"),
    ] {
        std::fs::write(place.file(), &bytes).expect("our directory");
        let second = place.give(gateway()).start();
        let log = second.log();
        assert!(log.contains("cannot be gone on from") && log.contains(why), "{why}: {log}");
        let mut reader = events::resume(second.port, "/events?topic=a", &id);
        expect_gap(&mut reader, "a", &id, "restart");
        assert_eq!(std::fs::read(place.aside()).expect("it is kept"), bytes, "{why}");
        assert!(!place.file().exists());
    }
    std::fs::write(place.file(), &good).expect("our directory");
    let second = place.give(gateway()).start();
    events::open(second.port, "/events?topic=a&after=earliest").expect("x");
}

#[test]
fn a_file_that_another_process_has_or_that_cannot_be_made_is_a_failed_start() {
    let place = Place::new();
    let first = place.give(gateway()).start();
    let (code, said) = place.give(gateway()).run();
    assert!(code == Some(1) && said.contains("is in use by another process"), "{code:?}: {said}");
    let (code, said) = gateway().arg("--state").arg(place.0.join("nowhere/state").to_str().expect("a plain path")).run();
    assert!(code == Some(1) && said.contains("cannot make") && said.contains("--state"), "{code:?}: {said}");
    let (code, said) = gateway().arg("--state").arg(place.0.path().to_str().expect("a plain path")).run();
    assert!(code == Some(1) && said.contains("no file"), "{code:?}: {said}");
    // Nobody who was refused has touched it.
    end(first, &place.file());
}

/// A drain by the admin listener ends the same way, and one that was called off writes nothing.
#[test]
fn only_a_drain_that_ends_the_process_writes_the_state() {
    let place = Place::new();
    let mut first = place.give(gateway()).start();
    post(first.port, "/publish?topic=a", "", "x");
    let admin = |gateway: &Gateway, line: &str| raw::http(gateway.admin, format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    admin(&first, "POST /drain");
    eventually(SOON, || match admin(&first, "GET /drain").text() {
        status if status.contains("\"drained\"") => Ok(()),
        status => Err(status),
    });
    assert_eq!(admin(&first, "DELETE /drain").status, 200);
    assert!(!place.file().exists());
    post(first.port, "/publish?topic=a", "", "y");
    let mut reader = events::open(first.port, "/events?topic=a");
    let mut socket = raw::ws(&first, "/ws?room=a");
    admin(&first, "POST /drain?exit=1");
    expect_goodbye(&mut reader);
    while socket.frame().first != FIN | CLOSE {}
    drop((reader, socket));
    assert!(first.exit_within(SOON).success() && place.file().is_file());
    let second = place.give(gateway()).start();
    let mut reader = events::open(second.port, "/events?topic=a&after=earliest");
    reader.expect("x");
    reader.expect("y");
}
