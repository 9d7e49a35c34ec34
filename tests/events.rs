//! `GET /events`: event streams over real sockets. Resuming is in tests/resume.rs.

mod common;

use common::events::{self, Event, Reader, SHARDS, expect_all, offset, publish, publish_all, shards};
use common::frame::{BINARY, FIN};
use common::raw::{self, End, Raw, Response};
use common::{Gateway, SLOW_CONSUMER, SOON, eventually, foreign, gateway, sleep_ms};
use std::collections::HashMap;

fn answer(port: u16, method: &str, path: &str, extra: &str) -> Response {
    let mut raw = Raw::connect(port);
    raw.write(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n").as_bytes());
    raw.response_to(method)
}

fn streams(gateway: &Gateway) -> u64 {
    gateway.metrics().sum("shardcast_connections", &[("transport", "sse")]) as u64
}

fn wait_for_streams(gateway: &Gateway, expected: u64) {
    eventually(SOON, || match streams(gateway) {
        open if open == expected => Ok(()),
        open => Err(format!("{open} streams are open, {expected} were expected")),
    });
}

// ---- the head ----------------------------------------------------------------------------------------------------------------------

#[test]
fn the_head_says_that_it_is_a_stream_which_nobody_may_keep() {
    let gateway = gateway().start();
    let reader = events::open(gateway.port, "/events?topic=a");
    let head = &reader.response;
    assert!(head.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")), "{head:?}");
    assert_eq!(head.header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    for absent in ["content-length", "transfer-encoding", "access-control-allow-origin"] {
        assert_eq!(head.header(absent), None, "{head:?}");
    }
    let of_head = answer(gateway.port, "HEAD", "/events?topic=a", "");
    assert_eq!((of_head.status, &of_head.headers), (200, &head.headers));
}

#[test]
fn a_page_of_the_same_host_may_read_and_another_may_not() {
    let gateway = gateway().start();
    let own = events::open_with(gateway.port, "/events?topic=a", "Origin: http://localhost\r\n");
    assert_eq!(own.response.header("access-control-allow-origin"), Some("http://localhost"));
    assert_eq!(own.response.header("vary"), Some("Origin"));
    let other = answer(gateway.port, "GET", "/events?topic=a", "Origin: http://elsewhere.example\r\n");
    assert_eq!(other.status, 403);
    assert_eq!(other.header("access-control-allow-origin"), None);
    assert!(other.text().contains("http://elsewhere.example"), "{}", other.text());
}

#[test]
fn a_listed_origin_may_read() {
    let gateway = gateway().env("SHARDCAST_ORIGINS", "https://app.example").start();
    let listed = events::open_with(gateway.port, "/events?topic=a", "Origin: https://app.example\r\n");
    assert_eq!(listed.response.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer(gateway.port, "GET", "/events?topic=a", "Origin: http://localhost\r\n").status, 403);
}

#[test]
fn a_preflight_is_answered_204_with_what_is_allowed() {
    let gateway = gateway().start();
    let asks = "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: last-event-id\r\n";
    let allowed = answer(gateway.port, "OPTIONS", "/events?topic=a", &format!("Origin: http://localhost\r\n{asks}"));
    assert_eq!(allowed.status, 204, "{allowed:?}");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("http://localhost"));
    assert!(allowed.header("access-control-allow-methods").is_some_and(|methods| methods.contains("GET")), "{allowed:?}");
    let headers = allowed.header("access-control-allow-headers").expect("headers are allowed").to_ascii_lowercase();
    assert!(headers.contains("last-event-id"), "{headers}");
    assert_eq!(answer(gateway.port, "OPTIONS", "/events?topic=a", &format!("Origin: http://elsewhere.example\r\n{asks}")).status, 403);
}

#[test]
fn post_is_answered_405_with_what_is_possible() {
    let gateway = gateway().start();
    let response = answer(gateway.port, "POST", "/events?topic=a", "Content-Length: 0\r\n");
    assert_eq!(response.status, 405);
    assert!(response.header("allow").is_some_and(|allow| allow.contains("GET") && !allow.contains("POST")), "{response:?}");
}

#[test]
fn what_makes_no_sense_is_answered_400_with_a_sentence() {
    let gateway = gateway().start();
    let many: String = (0..129).map(|number| format!("&topic=t{number}")).collect();
    let many = format!("/events?{}", &many[1..]);
    for (path, extra, says) in [
        ("/events", "", "no topic"),
        ("/events?topic=", "", "topic"),
        ("/events?topic=a&after=nonsense", "", "after"),
        ("/events?topic=a&after=-30x", "", "after"),
        ("/events?topic=a&after=k3f9.1,2", "", "2 offsets for 1 topic"),
        ("/events?topic=a&topic=b&after=k3f9.1,", "", "no offset for topic b"),
        ("/events?topic=a&last=-1", "", "last"),
        ("/events?topic=a&last=3&after=earliest", "", "both"),
        ("/events?topic=a", "Last-Event-ID: nonsense\r\n", "Last-Event-ID"),
        ("/events?topic=a&topic=b", "Last-Event-ID: k3f9.1\r\n", "1 offset for 2 topics"),
        (&many, "", "128"),
    ] {
        let response = answer(gateway.port, "GET", path, extra);
        assert_eq!(response.status, 400, "{path} {extra}: {response:?}");
        assert!(response.text().contains(says), "{path} {extra}: {}", response.text());
    }
    // Nobody is left of those who were refused.
    eventually(SOON, || match gateway.shard_connections().iter().sum::<u64>() {
        0 => Ok(()),
        open => Err(format!("{open} connections are open")),
    });
    gateway.wait_for_no_topics();
}

// ---- what is in it -----------------------------------------------------------------------------------------------------------------

#[test]
fn a_stream_begins_at_once_with_retry_and_where_it_is() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut reader = events::request(gateway.port, "/events?topic=a&topic=b%20c", "");
        let open = reader.expect_open();
        assert!(reader.bytes.starts_with(b"retry: "), "{:?}", String::from_utf8_lossy(&reader.bytes));
        let retry = reader.retry_ms().expect("a retry line");
        assert_eq!(open["retry_ms"].as_u64(), Some(retry));
        let positions = open["topics"].as_object().expect("topics");
        assert_eq!(positions.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b c"]);
        assert!(positions.values().all(|position| position.as_str().is_some_and(|position| offset(position) == 0)), "{open}");
        assert_ne!(reader.last_id(), "", "who is cut off before the first message knows where it was");
    }
}

#[test]
fn every_message_has_an_id_that_is_the_same_for_everybody() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut readers: Vec<Reader> = (0..6).map(|_| events::open(gateway.port, "/events?topic=a")).collect();
        publish_all(&mut publisher, 0..50);
        let ids: Vec<Vec<String>> =
            readers.iter_mut().map(|reader| (0..50).map(|number: u32| reader.expect(&number.to_string())).collect()).collect();
        assert!(ids.iter().all(|own| *own == ids[0]), "{ids:?}");
        assert!(ids[0].windows(2).all(|pair| offset(&pair[0]) < offset(&pair[1])), "{:?}", ids[0]);
        // Raw members hear the same.
        assert_eq!(streams(&gateway), 6);
        drop(readers);
        wait_for_streams(&gateway, 0);
        assert_eq!(gateway.closes("client_closed"), 6);
    }
}

#[test]
fn payloads_arrive_whole_and_can_forge_nothing() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut one = events::open(gateway.port, "/events?topic=a");
        let mut two = events::open(gateway.port, "/events?topic=a&topic=b");
        let long = "é\n".repeat(10_000);
        for text in [
            "plain",
            "",
            " leading space",
            "two\nlines",
            "\n",
            "cr\rlf\nboth\r\nend\r\n",
            "a\n\nevent: shardcast:bye\ndata: {}\n\n",
            "a\r\rid: z.9\r\r",
            "\r\n:\r\nretry: 1\r\n\r\n",
            "{\"json\": [\"日本語\", \"🦀\"]}",
            "\u{feff}bom \u{2028} \0 nul",
            &long,
        ] {
            publish(&mut publisher, text);
            let arrives = text.replace("\r\n", "\n").replace('\r', "\n");
            let id = one.expect(&arrives);
            assert_eq!(format!("{id},0"), two.expect(&arrives));
        }
        let bytes: Vec<u8> = (0..=255).collect();
        for binary in [&b""[..], b"\n", b"abcd", &bytes] {
            publisher.send(FIN | BINARY, binary);
            publisher.frame();
            for reader in [&mut one, &mut two] {
                use base64::Engine;
                let event = reader.event();
                assert_eq!(base64::engine::general_purpose::STANDARD.decode(&event.data).as_deref(), Ok(binary), "{event:?}");
            }
        }
        assert!(one.retry_ms() > Some(1));
    }
}

/// The ids of a stream with several topics say where it is in each: whichever event is the last, nothing is lost or comes twice.
#[test]
fn a_stream_of_many_topics_resumes_in_all_of_them() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let topics = ["a", "b", "c", "d", "e"];
        let path = format!("/events?{}", topics.map(|topic| format!("topic={topic}")).join("&"));
        let mut publishers: Vec<Raw> = topics.iter().map(|topic| raw::ws(&gateway, &format!("/ws?room={topic}"))).collect();
        let mut reader = events::open(gateway.port, &path);
        let mut heard: HashMap<String, Vec<String>> = HashMap::new();
        let mut sent = 0;
        for round in 0..20 {
            for (topic, publisher) in topics.iter().zip(&mut publishers) {
                for _ in 0..=(round % 3) {
                    publish(publisher, &format!("{topic} {sent}"));
                    sent += 1;
                }
            }
            // Reads some of it, and is cut off.
            let reads = round * 7 % 11;
            for _ in 0..reads {
                hear(&mut heard, &reader.event());
            }
            let id = reader.last_id();
            assert_eq!(id.split_once('.').map(|(_, offsets)| offsets.split(',').count()), Some(5), "{id}");
            reader = events::resume(gateway.port, &path, &id);
        }
        while heard.values().map(Vec::len).sum::<usize>() < sent {
            hear(&mut heard, &reader.event());
        }
        reader.expect_silence(100);
        for topic in topics {
            let numbers: Vec<u32> = heard[topic]
                .iter()
                .map(|text| text.split_once(' ').and_then(|(_, number)| number.parse().ok()).expect("a number"))
                .collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{topic}: {numbers:?}");
        }
    }
}

fn hear(heard: &mut HashMap<String, Vec<String>>, event: &Event) {
    assert_eq!(event.name, "message", "{event:?}");
    let topic = event.data.split(' ').next().expect("split yields one");
    heard.entry(topic.to_owned()).or_default().push(event.data.clone());
}

#[test]
fn a_stream_takes_128_topics() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let path: String = (0..128).map(|number| format!("&topic=t{number}")).collect();
        let path = format!("/events?{}", &path[1..]);
        let mut reader = events::request(gateway.port, &path, "");
        assert_eq!(reader.expect_open()["topics"].as_object().map(serde_json::Map::len), Some(128));
        for number in [0, 63, 127] {
            let mut publisher = raw::ws(&gateway, &format!("/ws?room=t{number}"));
            publish(&mut publisher, &format!("in {number}"));
            reader.expect(&format!("in {number}"));
        }
        let id = reader.last_id();
        let mut publisher = raw::ws(&gateway, "/ws?room=t100");
        publish(&mut publisher, "while away");
        reader = events::resume(gateway.port, &path, &id);
        reader.expect("while away");
        drop((reader, publisher));
        wait_for_streams(&gateway, 0);
    }
}

// ---- how long it lasts -------------------------------------------------------------------------------------------------------------

#[test]
fn a_silent_stream_is_sent_comments() {
    let gateway = gateway().limit("sse_heartbeat_ms", 200).start();
    let mut reader = events::open(gateway.port, "/events?topic=a");
    let before = reader.bytes.len();
    reader.expect_silence(1100);
    let comments = reader.bytes[before..].split(|byte| *byte == b'\n').filter(|line| line.starts_with(b":")).count();
    assert!((3..=6).contains(&comments), "{comments} in 1.1 s at one every 200 ms: {:?}", String::from_utf8_lossy(&reader.bytes[before..]));
    // They are between events, never in one.
    let mut publisher = raw::ws(&gateway, "/ws?room=a");
    publish(&mut publisher, "still there");
    reader.expect("still there");
}

#[test]
fn over_capacity_an_event_source_is_told_with_200_and_others_with_503() {
    let gateway = gateway().limit("connections_max", 2).limit("reconnect_window_ms", 10_000).start();
    let _members = [foreign::connect(&gateway, "/echo"), foreign::connect(&gateway, "/echo")];
    let mut refused = events::request(gateway.port, "/events?topic=a", "Origin: http://localhost\r\n");
    assert_eq!(refused.response.status, 200, "{:?}", refused.response);
    assert!(refused.response.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")));
    assert_eq!(refused.response.header("access-control-allow-origin"), Some("http://localhost"));
    let bye = refused.expect_bye();
    assert_eq!(bye["code"].as_u64(), Some(4503), "{bye}");
    assert!(refused.retry_ms().is_some_and(|retry| retry <= 10_000) && bye["retry_ms"].as_u64() == refused.retry_ms(), "{bye}");
    let other = answer(gateway.port, "GET", "/events?topic=a", "Accept: */*\r\n");
    assert_eq!(other.status, 503);
    assert!(other.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok_and(|seconds| seconds >= 1)), "{other:?}");
}

#[test]
fn over_topics_max_an_event_source_is_told_in_the_stream() {
    for count in SHARDS {
        let gateway = shards(count).limit("topics_max", 3).start();
        let mut full = events::open(gateway.port, "/events?topic=a&topic=b&topic=c");
        let mut refused = events::request(gateway.port, "/events?topic=d", "");
        assert_eq!(refused.response.status, 200);
        assert_eq!(refused.expect_bye()["code"].as_u64(), Some(4503));
        // Some of its topics were there, and it leaves them.
        let mut refused = events::request(gateway.port, "/events?topic=a&topic=e&topic=b&topic=f", "");
        assert_eq!(refused.response.status, 200);
        assert_eq!(refused.expect_bye()["code"].as_u64(), Some(4503));
        wait_for_streams(&gateway, 1);
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        publish(&mut publisher, "still served");
        full.expect("still served");
    }
}

#[test]
fn a_drain_says_bye_behind_what_was_published() {
    for count in SHARDS {
        let mut gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut readers: Vec<Reader> = (0..10).map(|_| events::open(gateway.port, "/events?topic=a&topic=b")).collect();
        publish_all(&mut publisher, 0..50);
        gateway.signal(libc::SIGTERM);
        for reader in &mut readers {
            expect_all(reader, 0..50);
            let bye = reader.expect_bye();
            assert!(matches!(bye["code"].as_u64(), Some(1012 | 4503)) && bye["retry_ms"].as_u64().is_some(), "{bye}");
        }
        drop((readers, publisher));
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    }
}

#[test]
fn a_reader_that_does_not_read_is_ended_and_the_others_lose_nothing() {
    for count in SHARDS {
        let gateway = shards(count).limit("queue_bytes_max", 64 << 10).limit("linger_ms", 300).start();
        for path in ["/events?topic=busy", "/events?topic=busy&topic=quiet"] {
            let ended = gateway.closes(SLOW_CONSUMER);
            let mut slow = events::request_on(Raw::connect_with_small_buffer(gateway.port), path, "");
            slow.expect_open();
            let mut healthy = events::open(gateway.port, path);
            let mut publisher = raw::ws(&gateway, "/ws?room=busy");
            let filling = "x".repeat(4000);
            let mut sent = 0;
            while gateway.closes(SLOW_CONSUMER) == ended {
                assert!(sent < 20_000, "{path}: {sent} messages and the slow reader is still there");
                for _ in 0..16 {
                    publish(&mut publisher, &format!("{sent} {filling}"));
                    healthy.expect(&format!("{sent} {filling}"));
                    sent += 1;
                }
            }
            // What it got before is the start of the topic, in whole events; then it is told, or cut.
            let mut heard = 0;
            let id = loop {
                match slow.next() {
                    Ok(event) if event.is_message() => {
                        assert!(event.data.starts_with(&format!("{heard} ")), "{path}: event {heard} is {:?}", &event.data[..20]);
                        heard += 1;
                    }
                    Ok(event) => {
                        assert_eq!(event.name, "shardcast:bye");
                        assert_eq!(event.json()["code"].as_u64(), Some(4508));
                    }
                    Err(End::Open) => panic!("{path}: it is neither ended nor served"),
                    Err(_) => break slow.last_id(),
                }
            };
            assert!(heard < sent, "{path}: it lost nothing, so why was it cut?");
            // It comes back as one does that was cut off.
            let mut again = events::resume(gateway.port, path, &id);
            let first = again.event();
            let from = if first.name == "shardcast:gap" { again.event() } else { first };
            let mut next = from.data.split(' ').next().and_then(|number| number.parse::<u32>().ok()).expect("a number");
            while next + 1 < sent {
                next += 1;
                again.expect(&format!("{next} {filling}"));
            }
        }
    }
}

#[test]
fn a_long_replay_to_a_slow_reader_is_complete() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 2000).start();
        let mut publishers = ["a", "b"].map(|room| (room, raw::ws(&gateway, &format!("/ws?room={room}"))));
        let filling = "y".repeat(4000);
        let message = |room: &str, number: u32| format!("{room} {number} {filling}");
        for number in 0..500 {
            for (room, publisher) in &mut publishers {
                publish(publisher, &message(room, number));
            }
        }
        // 2 MB of each topic, and it takes a little at a time.
        for (path, topics) in [("/events?topic=a&after=earliest", 1), ("/events?topic=a&topic=b&after=earliest", 2)] {
            let mut slow = events::request_on(Raw::connect_with_small_buffer(gateway.port), path, "");
            slow.expect_open();
            let mut next = [0; 2];
            for number in 0..500 * topics {
                let event = slow.event();
                let topic = usize::from(event.data.starts_with('b'));
                assert!(event.data == message(["a", "b"][topic], next[topic]), "{path}: event {number} is {:?}", &event.data[..20]);
                next[topic] += 1;
                if number % 50 == 0 {
                    sleep_ms(5);
                }
            }
            slow.expect_silence(50);
        }
        // A WebSocket likewise.
        let mut member = Raw::connect_with_small_buffer(gateway.port);
        member.write(raw::upgrade("/ws?room=a&after=earliest", "").as_bytes());
        member.expect_upgraded();
        for number in 0..500 {
            member.expect_text(&message("a", number));
            if number % 50 == 0 {
                sleep_ms(5);
            }
        }
        member.expect_silence(50);
    }
}

#[test]
fn all_histories_together_take_no_more_than_history_bytes_max() {
    const MAX: u64 = 4 << 20;
    for count in SHARDS {
        let gateway = shards(count).limit("history_bytes_max", MAX).limit("history_messages", 100_000).start();
        let before = gateway.pss_bytes();
        let filling = "h".repeat(8000);
        let topics = 40;
        // 32 MB in all: eight times what may be kept.
        for topic in 0..topics {
            let mut publisher = raw::ws(&gateway, &format!("/ws?room=t{topic}"));
            for number in 0..100 {
                publish(&mut publisher, &format!("{number} {filling}"));
            }
        }
        eventually(SOON, || match gateway.metrics().sum("shardcast_queued_bytes", &[]) as u64 {
            bytes if bytes <= MAX + (1 << 20) => Ok(()),
            bytes => Err(format!("{count} shards: {bytes} bytes are kept, at most {MAX} may be")),
        });
        let grown = gateway.pss_bytes().saturating_sub(before);
        assert!(grown < MAX + (8 << 20), "{count} shards: {grown} bytes of Pss more");
        // The newest topic still has some of its history, in order up to its end.
        let mut reader = events::open(gateway.port, &format!("/events?topic=t{}&after=earliest", topics - 1));
        let mut next: u32 = reader.event().data.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
        while next < 99 {
            next += 1;
            reader.expect(&format!("{next} {filling}"));
        }
    }
}

#[test]
fn readers_that_come_and_go_leave_nothing_behind() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 0).start();
        let before = gateway.descriptors();
        for round in 0..3 {
            let readers: Vec<Reader> = (0..60)
                .map(|number| events::open(gateway.port, &format!("/events?topic=t{}&topic=t{}", number % 7, 7 + number % 5)))
                .collect();
            wait_for_streams(&gateway, 60);
            for (number, reader) in readers.into_iter().enumerate() {
                if (number + round) % 2 == 0 {
                    reader.raw.reset();
                }
            }
            // Some hang up before they are answered.
            for number in 0..40 {
                let mut raw = Raw::connect(gateway.port);
                raw.write(events::get(&format!("/events?topic=new{}&topic=t{}", number % 9, number % 7), "").as_bytes());
                if number % 2 == 0 {
                    raw.reset();
                }
            }
            wait_for_streams(&gateway, 0);
            gateway.wait_for_no_topics();
        }
        eventually(SOON, || match gateway.descriptors() {
            after if after <= before => Ok(()),
            after => Err(format!("{after} descriptors are open, {before} were before")),
        });
    }
}
