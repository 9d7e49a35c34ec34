//! WebSockets of `shardcast.v1.json` that take many messages as one frame: `hello{batch}` (docs/protocol.md, section 13).

mod common;

use common::raw::{self, Raw};
use common::talk::{self, Talker};
use common::{Gateway, SLOW_CONSUMER, SOON, Setup, eventually, gateway, now, sleep_ms};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Long enough that what comes one after the other comes within it, on any machine.
const LONG_MS: u64 = 1000;

fn holding(shards: u16) -> Setup {
    gateway().shards(shards).limit("batch_ms", LONG_MS)
}

/// Publishes all of these in one request: they have their places one behind the other.
fn publish(gateway: &Gateway, items: &[Value]) {
    let body = json!(items).to_string();
    let head = format!("POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let response = raw::http(gateway.port, format!("{head}{body}").as_bytes());
    assert_eq!(response.status, 200, "{response:?}");
    assert!(!response.text().contains("error"), "{response:?}");
}

fn numbered(topic: &str, numbers: std::ops::Range<u64>) -> Vec<Value> {
    numbers.map(|number| json!({"topic": topic, "data": {"n": number}})).collect()
}

/// Numbers of the messages of a topic in what was heard.
fn numbers(heard: &[Value], topic: &str) -> Vec<u64> {
    let of_topic = heard.iter().filter(|said| said["type"] == "message" && said["topic"] == topic);
    of_topic.map(|said| said["data"]["n"].as_u64().unwrap_or_else(|| panic!("{said}"))).collect()
}

/// The messages of a topic up to this number, frame by frame: how many each has.
fn frames_upto(reader: &mut Talker, topic: &str, from: u64, upto: u64) -> Vec<usize> {
    let (mut next, mut sizes) = (from, Vec::new());
    while next < upto {
        let got = numbers(&reader.hear_frame(), topic);
        assert_eq!(got, (next..next + got.len() as u64).collect::<Vec<_>>());
        assert!(!got.is_empty());
        next += got.len() as u64;
        sizes.push(got.len());
    }
    assert_eq!(next, upto);
    sizes
}

#[test]
fn what_comes_within_a_moment_is_one_frame_and_what_comes_after_silence_is_there_at_once() {
    for shards in [1, 2] {
        let gateway = holding(shards).start();
        let mut reader = talk::connect(gateway.port).batched();
        reader.subscribe("a");
        let begun = now();
        publish(&gateway, &numbered("a", 0..1));
        assert_eq!(frames_upto(&mut reader, "a", 0, 1), [1]);
        assert!(begun.elapsed().as_millis() < u128::from(LONG_MS), "nothing was sent before it");
        for number in 1..20 {
            publish(&gateway, &numbered("a", number..number + 1));
        }
        let sizes = frames_upto(&mut reader, "a", 1, 20);
        assert!(sizes.len() <= 3, "19 messages in frames of {sizes:?}");
        assert!(begun.elapsed() < SOON);
    }
}

#[test]
fn messages_of_several_topics_share_a_frame() {
    for shards in [1, 2] {
        let gateway = holding(shards).start();
        let mut reader = talk::connect(gateway.port).batched();
        let topics = ["a", "b", "c", "d"];
        topics.iter().for_each(|topic| drop(reader.subscribe(topic)));
        // Once something was sent what follows waits.
        publish(&gateway, &numbered("a", 0..1));
        assert_eq!(reader.hear_frame().len(), 1);
        for topic in topics {
            publish(&gateway, &numbered(topic, 1..6));
        }
        let mut heard = Vec::new();
        let mut frames = 0;
        while heard.len() < 20 {
            heard.extend(reader.hear_frame());
            frames += 1;
        }
        assert!(frames <= 3, "{frames} frames of four topics");
        for topic in topics {
            assert_eq!(numbers(&heard, topic), [1, 2, 3, 4, 5]);
        }
    }
}

/// A member that is held back holds up nobody: neither those beside it nor, on another shard, the home's next messages.
#[test]
fn nobody_waits_for_those_who_are_held_back() {
    let gateway = holding(2).start();
    let mut held: Vec<Talker> = (0..4).map(|_| talk::connect(gateway.port).batched()).collect();
    held.iter_mut().for_each(|reader| drop(reader.subscribe("a")));
    let mut others: Vec<Raw> = (0..4).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
    let mut publisher = raw::ws(&gateway, "/ws?room=a");
    let begun = now();
    let count = 30;
    for number in 0..count {
        let text = json!({"n": number}).to_string();
        publisher.send_text(&text);
        publisher.expect_text(&text);
        others.iter_mut().for_each(|other| other.expect_text(&text));
    }
    assert!(begun.elapsed().as_millis() < u128::from(count * LONG_MS / 3), "{:?} for {count} messages there and back", begun.elapsed());
    for reader in &mut held {
        frames_upto(reader, "a", 0, count);
    }
}

#[test]
fn a_frame_is_no_longer_than_a_send() {
    let gateway = holding(2).limit("send_bytes_max", 16 << 10).start();
    let mut reader = talk::connect(gateway.port).batched();
    reader.subscribe("a");
    publish(&gateway, &numbered("a", 0..1));
    frames_upto(&mut reader, "a", 0, 1);
    let begun = now();
    let text = "x".repeat(1000);
    let items: Vec<Value> = (0..200).map(|number| json!({"topic": "a", "data": {"n": number, "text": text}})).collect();
    items.chunks(50).for_each(|items| publish(&gateway, items));
    let sizes = frames_upto(&mut reader, "a", 0, 200);
    assert!(sizes.iter().all(|&size| size <= 16), "messages of a kilobyte in frames of 16: {sizes:?}");
    assert!(begun.elapsed().as_millis() < 8 * u128::from(LONG_MS), "as much as a send takes waits for nothing: {sizes:?}");
}

/// Line breaks between the words of a payload are no ends of lines; those in strings stay.
#[test]
fn a_payload_with_line_breaks_is_one_line() {
    let gateway = gateway().start();
    let mut reader = talk::connect(gateway.port).batched();
    reader.subscribe("a");
    let mut publisher = raw::ws(&gateway, "/ws?room=a");
    publisher.send_text("{\n  \"n\": 1,\r\n  \"text\": \"one\\ntwo\"\n}\n");
    publisher.send_text("one\ntwo");
    let pretty = json!({"n": 1, "text": "one\ntwo"});
    reader.expect_message("a", pretty.clone());
    reader.expect_message("a", "one\ntwo");
    // In a history too, asked for or replayed, also to who is given it for itself alone.
    reader.say(json!({"type": "history", "topic": "a"}));
    assert_eq!(reader.expect("history")["messages"][0]["data"], pretty);
    for quiet in [false, true] {
        let mut late = talk::connect(gateway.port).batched();
        late.say(json!({"type": "publish", "topic": "b", "data": 1, "echo": !quiet}));
        late.subscribe_with("a", json!({"after": "earliest"}));
        late.expect_message("a", pretty.clone());
    }
}

/// More than the gateway can give out at once: its publisher waits, and who reads is not slow.
#[test]
fn a_flood_is_held_up_and_who_reads_it_misses_nothing() {
    for shards in [1, 2] {
        let gateway = holding(shards).limit("batch_ms", 100).limit("queue_bytes_max", 1 << 20).start();
        let mut reader = talk::connect(gateway.port).batched();
        reader.subscribe("a");
        let count = 10_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut publisher = raw::ws(&gateway, "/ws?room=a&echo=0");
                (0..count).for_each(|number| publisher.send_text(&json!({"n": number, "text": "x".repeat(2000)}).to_string()));
                publisher
            });
            scope.spawn(|| frames_upto(&mut reader, "a", 0, count));
        });
        assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    }
}

#[test]
fn a_goodbye_does_not_wait_for_what_nobody_wants_back() {
    let gateway = holding(1).limit("drain_pace_ms", 100).start();
    let mut client = talk::connect(gateway.port).batched();
    client.subscribe("a");
    publish(&gateway, &numbered("a", 0..1));
    frames_upto(&mut client, "a", 0, 1);
    client.say(json!({"type": "publish", "id": 1, "topic": "a", "data": "own", "echo": false}));
    client.expect("ok");
    let answer = raw::http(gateway.admin, b"POST /rebalance?share=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 200);
    client.expect_bye(4503);
}

#[test]
fn a_history_comes_as_lines_too() {
    let gateway = gateway().shards(2).start();
    publish(&gateway, &numbered("a", 0..100));
    for _ in 0..3 {
        let mut reader = talk::connect(gateway.port).batched();
        let subscribed = reader.subscribe_with("a", json!({"after": "earliest"}));
        assert_eq!(subscribed["replayed"], 100);
        assert_eq!(frames_upto(&mut reader, "a", 0, 100), [100]);
        let mut quiet = talk::connect(gateway.port).batched();
        quiet.say(json!({"type": "publish", "topic": "b", "data": 1, "echo": false}));
        quiet.subscribe_with("a", json!({"after": "earliest"}));
        (0..100).for_each(|number| drop(quiet.expect_message("a", json!({"n": number}))));
    }
}

#[test]
fn who_wants_no_echo_gets_what_others_say() {
    let gateway = holding(2).start();
    let mut reader = talk::connect(gateway.port).batched();
    reader.subscribe("a");
    publish(&gateway, &numbered("a", 0..1));
    frames_upto(&mut reader, "a", 0, 1);
    for number in 1..5 {
        reader.say(json!({"type": "publish", "id": number, "topic": "a", "data": "own", "echo": false}));
        let receipt = reader.expect("ok");
        assert_eq!(receipt["id"], number, "a receipt does not wait");
        publish(&gateway, &numbered("a", number..number + 1));
    }
    let sizes = frames_upto(&mut reader, "a", 1, 5);
    assert!(sizes.len() <= 3, "{sizes:?}");
}

#[test]
fn a_compressed_frame_has_many_messages_and_what_is_short_or_random_among_them() {
    for shards in [1, 2] {
        let gateway = holding(shards).arg("--compression").limit("message_bytes_max", 1 << 20).limit("send_bytes_max", 1 << 20).start();
        let mut reader = talk::connect_deflated(gateway.port).batched();
        reader.subscribe("a");
        publish(&gateway, &numbered("a", 0..1));
        frames_upto(&mut reader, "a", 0, 1);
        let mut random = StdRng::seed_from_u64(7);
        let mut noise = |bytes: usize| -> String { (0..bytes).map(|_| char::from(random.random_range(b'!'..=b'z'))).collect() };
        let datas: Vec<String> = (0..40)
            .map(|number| match number % 4 {
                0 => "short".to_owned(),
                1 => "again and again, ".repeat(20 + number),
                2 => noise(200 * number),
                _ => noise(70_000),
            })
            .collect();
        let items: Vec<Value> = datas.iter().map(|data| json!({"topic": "a", "data": data})).collect();
        items.chunks(8).for_each(|items| publish(&gateway, items));
        for data in &datas {
            let heard = reader.expect("message");
            assert!(heard["data"] == data.as_str(), "{} bytes arrive as {}", data.len(), heard["data"].as_str().unwrap_or_default().len());
        }
        // And from the history, in one piece for all.
        for _ in 0..2 {
            let mut late = talk::connect_deflated(gateway.port).batched();
            late.subscribe_with("a", json!({"last": 12}));
            datas[28..].iter().for_each(|data| drop(late.expect_message("a", data.as_str())));
        }
        assert!(gateway.metrics().sum("shardcast_messages_deflated_total", &[]) >= 10.0);
    }
}

#[test]
fn what_is_held_back_comes_before_the_goodbye_and_counts_when_it_was_sent() {
    for shards in [1, 2] {
        let gateway = holding(shards).limit("drain_pace_ms", 100).start();
        let mut reader = talk::connect(gateway.port).batched();
        reader.subscribe("a");
        publish(&gateway, &numbered("a", 0..1));
        frames_upto(&mut reader, "a", 0, 1);
        // `ack=sent` is answered when it was sent.
        let sent =
            raw::http(gateway.port, b"POST /publish?topic=a&ack=sent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n{\"n\":1}");
        assert!(sent.text().contains("\"subscribers\":1"), "{}", sent.text());
        assert_eq!(frames_upto(&mut reader, "a", 1, 2), [1]);
        publish(&gateway, &numbered("a", 2..7));
        let answer = raw::http(gateway.admin, b"POST /rebalance?share=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.status, 200);
        frames_upto(&mut reader, "a", 2, 7);
        reader.expect_bye(4503);
    }
}

#[test]
fn it_is_asked_for_before_the_first_subscription() {
    let gateway = gateway().start();
    let mut client = talk::connect(gateway.port);
    client.say(json!({"type": "hello", "id": 1, "batch": "yes"}));
    assert!(client.expect_error("bad_request")["message"].as_str().is_some_and(|message| message.contains("batch is a string")));
    client.subscribe("a");
    client.say(json!({"type": "hello", "id": 2, "batch": true}));
    assert_eq!(client.expect_error("bad_request")["id"], 2);
    publish(&gateway, &numbered("a", 0..1));
    client.expect_message("a", json!({"n": 0}));
    client.say(json!({"type": "unsubscribe", "topic": "a"}));
    client.expect("ok");
    client.say(json!({"type": "hello", "batch": true}));
    client.say(json!({"type": "hello"}));
    client.subscribe("a");
    client.say(json!({"type": "hello", "batch": true}));
    publish(&gateway, &numbered("a", 1..3));
    frames_upto(&mut client, "a", 1, 3);
}

/// Many readers, some slow to read, of several topics, while much is published from all sides: each hears everything once and in order.
#[test]
fn everybody_hears_everything_in_order() {
    for (shards, batch_ms) in [(1, 10), (2, 0), (2, 3)] {
        let gateway = gateway().shards(shards).limit("batch_ms", batch_ms).arg("--compression").start();
        let topics = ["a", "b", "c"];
        let mut readers: Vec<Talker> = (0..6)
            .map(|number| match number % 3 {
                0 => talk::connect_deflated(gateway.port).batched(),
                1 => talk::connect(gateway.port),
                _ => talk::connect(gateway.port).batched(),
            })
            .collect();
        readers.iter_mut().for_each(|reader| topics.iter().for_each(|topic| drop(reader.subscribe(topic))));
        let count = 1000_u64;
        std::thread::scope(|scope| {
            for topic in topics {
                let gateway = &gateway;
                scope.spawn(move || {
                    let mut publisher = raw::ws(gateway, &format!("/ws?room={topic}&echo=0"));
                    for number in 0..count {
                        publisher.send_text(&json!({"n": number, "text": "y".repeat((number % 300) as usize)}).to_string());
                        if number % 50 == 0 {
                            sleep_ms(5);
                        }
                    }
                    publisher
                });
            }
            for reader in &mut readers {
                scope.spawn(move || {
                    let mut next = [0_u64; 3];
                    while next.iter().any(|next| *next < count) {
                        for said in reader.hear_frame() {
                            let topic = topics.iter().position(|topic| said["topic"] == *topic).unwrap_or_else(|| panic!("{said}"));
                            assert_eq!(said["data"]["n"], next[topic], "{said}");
                            next[topic] += 1;
                        }
                    }
                });
            }
        });
        eventually(SOON, || match gateway.metrics().sum("shardcast_queued_bytes", &[]) {
            bytes if bytes < 1e6 => Ok(()),
            bytes => Err(format!("{bytes} bytes are still queued")),
        });
    }
}
