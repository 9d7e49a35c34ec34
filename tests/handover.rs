//! SIGUSR2: a new process takes every connection over, and no client knows.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::events::{self, expect_all, publish, publish_all};
use common::frame::{self, FIN};
use common::raw::{self, Raw};
use common::replaceable::Replaceable;
use common::talk;
use common::{SOON, Scratch, eventually, gateway, sleep_ms};
use serde_json::json;

const HOST: &str = "HTTP/1.1\r\nHost: localhost\r\n";

/// A request that says hello by being answered 404, on a connection that is kept.
fn ask(raw: &mut Raw) {
    raw.write(format!("GET /nowhere {HOST}\r\n").as_bytes());
    assert_eq!(raw.response().status, 404);
}

/// Who speaks JSON goes on with all its topics, and gets a receipt for each of its messages, through three hand-overs.
#[test]
fn who_speaks_json_goes_on_with_its_topics_and_every_message_has_its_receipt() {
    let mut gateway = gateway().limit("history_messages", 100_000).start();
    let names = ["a", "b", "c", "d"];
    let mut readers: Vec<talk::Talker> = (0..4).map(|_| talk::connect(gateway.port)).collect();
    readers.extend((0..2).map(|_| talk::connect(gateway.port).batched()));
    for reader in &mut readers {
        names.iter().for_each(|name| drop(reader.subscribe(name)));
    }
    // Nobody's topics, a place that is free again, and half a request.
    let mut quiet = talk::connect(gateway.port);
    quiet.subscribe("gone");
    quiet.say(json!({"type": "unsubscribe", "topic": "gone"}));
    quiet.expect("ok");
    let half = frame::masked(FIN | frame::TEXT, br#"{"type":"subscribe","id":"half","topic":"a"}"#);
    quiet.raw.write(&half[..20]);
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut publisher = talk::connect(gateway.port);
    std::thread::scope(|scope| {
        let (stop, sent) = (&stop, &sent);
        scope.spawn(move || {
            for number in 0.. {
                let last = stop.load(Ordering::Relaxed);
                for name in names {
                    publisher.say(json!({"type": "publish", "id": number, "topic": name, "data": if last { "end" } else { "go on" }}));
                }
                for _ in names {
                    assert_eq!(publisher.expect("ok")["id"], number);
                }
                sent.fetch_add(1, Ordering::Relaxed);
                if last {
                    break;
                }
            }
        });
        for _ in 0..3 {
            let before = sent.load(Ordering::Relaxed);
            eventually(SOON, || if sent.load(Ordering::Relaxed) > before + 50 { Ok(()) } else { Err("nothing is said".to_owned()) });
            gateway.hand_over();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in &mut readers {
            let mut last = [0; 4];
            let mut ended = 0;
            while ended < 4 {
                let message = reader.expect("message");
                let topic = names.iter().position(|name| message["topic"] == *name).expect("one of them");
                let at = events::offset(message["pos"].as_str().expect("a position"));
                assert_eq!(at, last[topic] + 1, "each once and in order: {message}");
                last[topic] = at;
                ended += usize::from(message["data"] == "end");
            }
        }
    });
    quiet.raw.write(&half[20..]);
    assert_eq!(quiet.expect("subscribed")["id"], "half");
    quiet.publish("a", "heard");
    quiet.expect_message("a", "heard");
}

/// Publishers and every kind of subscriber go on through five hand-overs: each hears everything of its topic once, in the same order as all.
#[test]
fn through_five_processes_everybody_hears_everything_once_in_one_order() {
    let mut gateway = gateway().limit("history_messages", 100_000).start();
    let stop = AtomicBool::new(false);
    let (port, sent) = (gateway.port, AtomicU32::new(0));
    let mut orders: Vec<Vec<String>> = Vec::new();
    std::thread::scope(|scope| {
        let subscribers: Vec<_> = (0..6)
            .map(|number| {
                let mut members: Option<Raw> = None;
                let mut reader = None;
                match number {
                    0..=2 => members = Some(raw::ws(&gateway, "/ws?room=fire")),
                    3 => reader = Some(events::open(port, "/events?topic=fire")),
                    4 => reader = Some(events::open(port, "/events?topic=quiet&topic=fire")),
                    _ => reader = Some(events::open(port, "/events?topic=fire&topic=other")),
                }
                scope.spawn(move || {
                    let mut heard = Vec::new();
                    let mut done = 0;
                    while done < 2 {
                        let text = match (&mut members, &mut reader) {
                            (Some(member), _) => String::from_utf8(member.frame().payload).expect("text"),
                            (_, Some(reader)) => {
                                let event = reader.event();
                                assert_eq!(event.name, "message", "{event:?}");
                                event.data
                            }
                            _ => unreachable!("one of the two"),
                        };
                        done += usize::from(text.ends_with(" end"));
                        heard.push(text);
                    }
                    heard
                })
            })
            .collect();
        for name in ["x", "y"] {
            let mut publisher = raw::ws(&gateway, "/ws?room=fire");
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let text = format!("{name} {number}");
                    publisher.send_text(&text);
                    sent.fetch_add(1, Ordering::Relaxed);
                    while publisher.frame().payload != text.as_bytes() {}
                }
                publisher.send_text(&format!("{name} end"));
                while publisher.frame().payload != format!("{name} end").as_bytes() {}
            });
        }
        for _ in 0..5 {
            let before = sent.load(Ordering::Relaxed);
            eventually(SOON, || if sent.load(Ordering::Relaxed) > before + 100 { Ok(()) } else { Err("nothing is said".to_owned()) });
            gateway.hand_over();
        }
        stop.store(true, Ordering::Relaxed);
        orders = subscribers.into_iter().map(|subscriber| subscriber.join().expect("no panic")).collect();
    });
    let all = sent.load(Ordering::Relaxed) as usize + 2;
    assert!(orders.iter().all(|order| order.len() == all), "{all} sent; {:?}", orders.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(orders.iter().all(|order| *order == orders[0]), "one order for all");
    assert_eq!(gateway.metrics().sum("shardcast_inherited_total", &[]), 8.0);
}

#[test]
fn what_is_half_here_and_half_there_goes_on_where_it_was() {
    let mut gateway = gateway().limit("queue_bytes_max", 64 << 20).limit("handover_bytes_max", 64 << 20).start();
    // A reader that does not read, and what it is owed.
    let mut slow = Raw::connect_with_small_buffer(gateway.port);
    slow.write(raw::upgrade("/ws?room=bulk", "").as_bytes());
    slow.expect_upgraded();
    let mut bulk = raw::ws(&gateway, "/ws?room=bulk&echo=0");
    let payload = |number: u32| format!("{number} {}", "z".repeat(60_000));
    for number in 0..200 {
        bulk.send_text(&payload(number));
    }
    // A head, a frame and a fragmented message, each cut in the middle.
    let mut head = Raw::connect(gateway.port);
    let upgrade = raw::upgrade("/ws?room=a", "");
    head.write(&upgrade.as_bytes()[..50]);
    let mut member = raw::ws(&gateway, "/ws?room=a");
    let mut framed = raw::ws(&gateway, "/ws?room=a");
    let whole = frame::masked(FIN | frame::TEXT, b"in two pieces");
    framed.write(&whole[..9]);
    let mut fragmented = raw::ws(&gateway, "/echo");
    fragmented.write(&frame::masked(frame::TEXT, b"one "));
    let second = frame::masked(FIN | frame::CONTINUATION, b"message");
    fragmented.write(&second[..8]);
    let mut idle = Raw::connect(gateway.port);
    ask(&mut idle);
    // What was written is here.
    publish(&mut member, "settled");
    sleep_ms(50);

    gateway.hand_over();
    head.write(&upgrade.as_bytes()[50..]);
    head.expect_upgraded();
    framed.write(&whole[9..]);
    framed.expect_text("settled");
    for raw in [&mut member, &mut framed, &mut head] {
        raw.expect_text("in two pieces");
    }
    fragmented.write(&second[8..]);
    fragmented.expect_text("one message");
    ask(&mut idle);
    for number in 0..200 {
        slow.expect_text(&payload(number));
    }
    bulk.send_text("and the end");
    slow.expect_text("and the end");
    bulk.close(1000);
    assert_eq!(gateway.metrics().sum("shardcast_gaps_total", &[]), 0.0);
}

/// Who has shut his side is still given what he is being sent. What the next process must not do shows on the epoll driver alone, whose close ends a send; the
/// ring's worker was seen to finish one that was cancelled.
#[test]
fn who_only_listens_any_more_hears_the_end_of_a_message() {
    let mut gateway =
        gateway().limit("message_bytes_max", 32 << 20).limit("queue_bytes_max", 64 << 20).limit("handover_bytes_max", 64 << 20).start();
    let mut slow = Raw::connect_with_small_buffer(gateway.port);
    slow.write(raw::upgrade("/ws?room=bulk", "").as_bytes());
    slow.expect_upgraded();
    let mut bulk = raw::ws(&gateway, "/ws?room=bulk");
    // More than the kernel takes for a client that does not read.
    let message = "z".repeat(24 << 20);
    publish(&mut bulk, &message);
    slow.shutdown_write();
    sleep_ms(50);
    gateway.hand_over();
    sleep_ms(50);
    slow.expect_text(&message);
    assert!(slow.next_frame().is_err());
}

#[test]
fn positions_histories_and_idempotency_keys_go_over() {
    let mut gateway = gateway().start();
    let mut publisher = raw::ws(&gateway, "/ws?room=a");
    publish_all(&mut publisher, 0..5);
    let mut reader = events::open(gateway.port, "/events?topic=a&after=earliest");
    expect_all(&mut reader, 0..5);
    let id = reader.last_id();
    drop(reader);
    let request = format!("POST /publish?topic=b {HOST}Idempotency-Key: k\r\nContent-Length: 1\r\n\r\nx");
    let first = raw::http(gateway.port, request.as_bytes()).text();
    publish_all(&mut publisher, 5..9);
    for _ in 0..2 {
        gateway.hand_over();
    }
    let mut reader = events::resume(gateway.port, "/events?topic=a", &id);
    expect_all(&mut reader, 5..9);
    publish(&mut publisher, "9");
    reader.expect("9");
    let again = raw::http(gateway.port, request.as_bytes()).text();
    assert!(again.contains("\"duplicate\":true"), "{again} after {first}");
    let mut all = events::open(gateway.port, "/events?topic=a&after=earliest");
    expect_all(&mut all, 0..10);
}

/// A stream in the middle of a history goes on with it.
#[test]
fn a_reader_in_the_middle_of_a_history_gets_the_rest_of_it() {
    for topics in ["topic=a", "topic=a&topic=b"] {
        let mut gateway = gateway().start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let payload = |number: u32| format!("{number} {}", "z".repeat(30_000));
        for number in 0..90 {
            publish(&mut publisher, &payload(number));
        }
        let mut slow = Raw::connect_with_small_buffer(gateway.port);
        slow.write(events::get(&format!("/events?{topics}&after=earliest"), "").as_bytes());
        sleep_ms(100);
        gateway.hand_over();
        publish(&mut publisher, &payload(90));
        let mut reader = events::on(slow);
        reader.expect_open();
        for number in 0..=90 {
            reader.expect(&payload(number));
        }
        assert_eq!(gateway.metrics().sum("shardcast_gaps_total", &[]), 0.0);
    }
}

#[test]
fn polls_are_answered_and_a_publish_that_has_not_come_whole_is_refused() {
    let mut gateway = gateway().start();
    let mut poll = Raw::connect(gateway.port);
    poll.write(format!("GET /poll?topic=a&wait=20 {HOST}\r\n").as_bytes());
    let mut upload = Raw::connect(gateway.port);
    upload.write(format!("POST /publish?topic=a {HOST}Content-Length: 10\r\n\r\nhalf").as_bytes());
    eventually(SOON, || match gateway.metrics().sum("shardcast_connections", &[]) as u64 {
        2 => Ok(()),
        other => Err(format!("{other} connections")),
    });
    sleep_ms(50);
    gateway.hand_over();
    let answer = poll.response();
    assert_eq!(answer.status, 200, "{answer:?}");
    ask(&mut poll);
    let answer = upload.response();
    assert_eq!((answer.status, answer.header("Retry-After").is_some()), (503, true), "{answer:?}");
    assert!(answer.text().contains("nothing of it was published"), "{answer:?}");
}

#[test]
fn who_is_owed_too_much_is_left_behind_and_the_others_are_not() {
    let mut gateway = gateway().limit("queue_bytes_max", 64 << 20).limit("handover_bytes_max", 100_000).start();
    let mut slow = Raw::connect_with_small_buffer(gateway.port);
    slow.write(raw::upgrade("/ws?room=bulk", "").as_bytes());
    slow.expect_upgraded();
    let mut bulk = raw::ws(&gateway, "/ws?room=bulk");
    for _ in 0..200 {
        publish(&mut bulk, &"z".repeat(60_000));
    }
    gateway.hand_over();
    while slow.next_frame().is_ok() {}
    publish(&mut bulk, "served as before");
    assert_eq!(gateway.connections(), 1);
}

/// Whatever becomes of the next process before it has taken everything, the old one goes on as if nothing had happened.
#[test]
fn a_next_process_that_fails_at_any_step_is_nobodys_business() {
    let mut place = Replaceable::start(gateway().limit("handover_ms", 500));
    let port = place.gateway.port;
    let mut publisher = raw::ws(&place.gateway, "/ws?room=a");
    let mut reader = events::open(port, "/events?topic=a&topic=b");
    let mut idle = Raw::connect(port);
    ask(&mut idle);
    let steps = [
        ("exit 3", "has ended before it was prepared"),
        ("kill -9 $$", "has ended before it was prepared"),
        ("exec sleep 60", "does not answer"),
        ("exec \"$0\".real $(echo \"$@\" | sed 's/--shards 2/--shards 1/')", "has ended before it was prepared"),
        ("echo 'cannot: too many moons' >&0; exit 1", "too many moons"),
        // Prepared; then the old process is frozen, and the next one dies, hangs, or reads everything and dies.
        ("echo prepared >&0; exit 1", "next process"),
        ("echo prepared >&0; exec sleep 60", "next process"),
        ("echo prepared >&0; head -c 200 <&0 >/dev/null; kill -9 $$", "next process"),
        ("echo prepared >&0; cat <&0 >/dev/null; exit 1", "has ended before it was taken"),
        ("echo prepared >&0; cat <&0 >/dev/null; exec sleep 60", "does not answer"),
    ];
    for (number, (instead, why)) in steps.into_iter().enumerate() {
        place.replace(instead);
        place.gateway.signal(libc::SIGUSR2);
        eventually(SOON, || {
            let log = place.gateway.log();
            let told: Vec<&str> = log.lines().filter(|line| line.contains("no hand-over")).collect();
            match told.get(number) {
                Some(line) if line.contains(why) => Ok(()),
                Some(line) => panic!("{instead}: {line}, expected {why}"),
                None => Err(format!("{instead}: it has not given up")),
            }
        });
        publish(&mut publisher, &format!("after {instead}"));
        reader.expect(&format!("after {instead}"));
        ask(&mut idle);
        raw::ws(&place.gateway, "/ws?room=new").close(1000);
    }
    assert!(place.gateway.alive());
    place.gateway.expect_log("has 2 shards, and this one would have 1");
    // And then one that does what it should.
    place.replace(&format!("echo 'the next release' >&2; exec {} \"$@\"", place.real.display()));
    place.gateway.hand_over();
    place.gateway.expect_log("the next release");
    publish(&mut publisher, "in the end");
    reader.expect("in the end");
}

/// The next process is killed at any time: either the old one goes on, or everything was taken before.
#[test]
fn a_next_process_that_is_killed_at_any_time_leaves_one_of_the_two() {
    let place = Replaceable::start(gateway());
    let mut publisher = raw::ws(&place.gateway, "/ws?room=a");
    let mut reader = events::open(place.gateway.port, "/events?topic=a");
    for round in 0..25 {
        // Some of the time in front of `taken`, which comes after some 20 ms, and some of it never.
        place.replace(&format!("(sleep 0.0{:02}; kill -9 $$) & exec {} \"$@\"", round, place.real.display()));
        let known = place.gateway.log().lines().count();
        place.gateway.signal(libc::SIGUSR2);
        let taken = eventually(SOON, || {
            let log = place.gateway.log();
            let news: Vec<&str> = log.lines().skip(known).collect();
            let told = |text: &str| news.iter().any(|line| line.contains(text));
            match (told("no hand-over"), told("this process ends") || told("has taken everything over")) {
                (true, _) => Ok(false),
                (_, true) => Ok(true),
                _ => Err("neither".to_owned()),
            }
        });
        if taken {
            // Now the next one is killed too, or was; there is nothing left to be told apart.
            return;
        }
        publish(&mut publisher, &format!("after {round}"));
        reader.expect(&format!("after {round}"));
    }
}

/// However few descriptors the next process may have, it takes everything or nothing: by the time that it says so, it has all that it needs.
#[test]
fn a_next_process_with_too_few_descriptors_takes_nothing() {
    let mut place = Replaceable::start(gateway());
    let mut publisher = raw::ws(&place.gateway, "/ws?room=a");
    let mut reader = events::open(place.gateway.port, "/events?topic=a");
    let mut serves = |what: &str| {
        publish(&mut publisher, what);
        reader.expect(what);
    };
    // What a process needs to begin at all is some 20.
    for descriptors in 12..200 {
        place.replace(&format!("ulimit -n {descriptors}; exec {} \"$@\"", place.real.display()));
        let taken = place.gateway.try_to_hand_over();
        serves(&format!("with {descriptors}"));
        if taken {
            let ready = format!("GET /readyz {HOST}\r\n");
            assert_eq!(raw::http(place.gateway.admin, ready.as_bytes()).status, 200);
            let late = place.gateway.log().matches("the process before").count();
            assert!(late > 0, "none has failed once it had begun to take over: {}", place.gateway.log());
            return;
        }
    }
    panic!("200 descriptors are not enough: {}", place.gateway.log());
}

/// A next process that nobody listens to serves all the same.
#[test]
fn a_next_process_that_cannot_say_that_it_is_ready_serves() {
    let mut place = Replaceable::start(gateway());
    let mut publisher = raw::ws(&place.gateway, "/ws?room=a");
    place.replace(&format!("exec {} \"$@\" 2>/dev/full", place.real.display()));
    place.gateway.hand_over();
    publish(&mut publisher, "served");
}

#[test]
fn a_state_file_is_handed_over_and_written_by_who_ends_last() {
    let place = Scratch::new();
    let state = place.join("state");
    let setup = || gateway().arg("--state").arg(state.to_str().expect("a plain path"));
    let mut first = setup().start();
    let mut publisher = raw::ws(&first, "/ws?room=a");
    publish_all(&mut publisher, 0..3);
    let mut reader = events::open(first.port, "/events?topic=a&last=1");
    expect_all(&mut reader, 2..3);
    let id = reader.last_id();
    first.hand_over();
    publish(&mut publisher, "3");
    assert!(!state.exists(), "nothing is written while somebody serves");
    drop((publisher, reader));
    first.signal(libc::SIGTERM);
    assert!(first.exit_within(SOON).success());
    assert!(state.exists());
    let second = setup().start();
    let mut reader = events::resume(second.port, "/events?topic=a", &id);
    expect_all(&mut reader, 3..4);
}

#[test]
fn a_configuration_that_would_not_be_taken_is_no_hand_over() {
    let place = Scratch::new();
    let file = place.join("shardcast.toml");
    std::fs::write(&file, "restart = \"hand-over\"\n").expect("our directory");
    let gateway = gateway().arg("--config").arg(file.to_str().expect("a plain path")).start();
    let mut member = raw::ws(&gateway, "/ws?room=a");
    std::fs::write(&file, "restart = \"sideways\"\n").expect("our directory");
    gateway.signal(libc::SIGUSR2);
    gateway.expect_log("sideways");
    publish(&mut member, "served as before");
    assert_eq!(raw::http(gateway.admin, format!("GET /readyz {HOST}\r\n").as_bytes()).status, 200);
}

/// The drain of the new process, and a second signal, are what they are in any process.
#[test]
fn who_has_taken_over_drains_as_any_other() {
    let mut gateway = gateway().limit("drain_ms", 3000).start();
    let mut member = raw::ws(&gateway, "/ws?room=a");
    gateway.hand_over();
    publish(&mut member, "here");
    gateway.signal(libc::SIGTERM);
    assert_eq!(member.close_frame().0, Some(1012));
    drop(member);
    assert!(gateway.exit_within(Duration::from_secs(20)).success());
}
