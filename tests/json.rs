//! `shardcast.v1.json`: many topics, receipts and resuming on one WebSocket.

mod common;

use common::events::{self, offset};
use common::foreign;
use common::frame::{self, BINARY, FIN, TEXT};
use common::raw::{self, Raw};
use common::talk::{self, PROTOCOL, Talker};
use common::{Gateway, SOON, eventually, gateway, sleep_ms};
use serde_json::{Value, json};

/// Two topics with homes on different shards of two: so both ways of a message are tried. Each has a message.
fn topics(gateway: &Gateway) -> [String; 2] {
    for number in 0..32 {
        let request = format!("POST /publish?topic=t{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(raw::http(gateway.port, request.as_bytes()).status, 200);
    }
    let page = raw::http(gateway.admin, b"GET /debug/topics?limit=32 HTTP/1.1\r\nHost: a\r\n\r\n").text();
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let all = page["topics"].as_array().expect("a list");
    [0, 1].map(|shard| {
        let found = all.iter().find(|topic| topic["shard"] == shard).unwrap_or_else(|| panic!("32 topics, none on {shard}: {page}"));
        found["topic"].as_str().expect("a name").to_owned()
    })
}

#[test]
fn a_client_is_welcomed_and_may_say_hello() {
    let gateway = gateway().start();
    let mut client = talk::connect(gateway.port);
    let welcome = client.welcome.clone();
    assert_eq!(
        (&welcome["ping_ms"], &welcome["retry_ms"], &welcome["max_bytes"]),
        (&45_000.into(), &10_000.into(), &65_536.into()),
        "{welcome}"
    );
    assert!(welcome["conn"].as_str().is_some_and(|conn| !conn.is_empty()), "{welcome}");
    client.say(json!({"type": "hello", "token": "any", "batch": true}));
    client.say(json!({"type": "ping", "id": 1}));
    assert_eq!(client.hear(), json!({"type": "pong", "id": 1}), "hello has no answer of its own");
    client.say(json!({"type": "auth", "id": "a", "token": "another"}));
    assert_eq!(client.hear(), json!({"type": "ok", "id": "a"}));
}

#[test]
fn subscribed_comes_before_any_message_and_a_publisher_hears_itself() {
    let gateway = gateway().start();
    let mut client = talk::connect(gateway.port);
    for topic in topics(&gateway) {
        // All in one segment: what comes behind a subscription waits for it.
        let mut bytes = Vec::new();
        for request in [
            json!({"type": "subscribe", "id": "s", "topic": topic}),
            json!({"type": "publish", "id": 1, "topic": topic, "data": "one"}),
            json!({"type": "publish", "topic": topic, "data": {"n": 2}}),
            json!({"type": "ping"}),
        ] {
            bytes.extend(frame::masked(FIN | TEXT, request.to_string().as_bytes()));
        }
        client.raw.write(&bytes);
        let subscribed = client.expect("subscribed");
        assert_eq!((&subscribed["id"], &subscribed["topic"]), (&"s".into(), &topic.as_str().into()));
        assert_eq!((&subscribed["recovered"], &subscribed["replayed"]), (&false.into(), &0.into()), "{subscribed}");
        let at = offset(subscribed["pos"].as_str().expect("a position"));
        let mut heard: Vec<Value> = (0..4).map(|_| client.hear()).collect();
        let mut take =
            |kind: &str| heard.remove(heard.iter().position(|said| said["type"] == kind).unwrap_or_else(|| panic!("no {kind}: {heard:?}")));
        let (receipt, first, second) = (take("ok"), take("message"), take("message"));
        assert_eq!(take("pong"), json!({"type": "pong"}));
        assert_eq!((&receipt["id"], &receipt["subscribers"]), (&1.into(), &1.into()), "{receipt}");
        assert_eq!((&first["data"], &second["data"]), (&"one".into(), &json!({"n": 2})));
        assert_eq!((offset(first["pos"].as_str().unwrap()), offset(second["pos"].as_str().unwrap())), (at + 1, at + 2));
        assert_eq!(receipt["pos"], first["pos"]);
    }
}

#[test]
fn every_subscriber_gets_the_same_bytes_and_every_transport_the_same_position() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let mut members: Vec<Talker> = (0..4).map(|_| talk::connect(gateway.port)).collect();
        members.iter_mut().for_each(|member| drop(member.subscribe(&topic)));
        let mut stream = events::open(gateway.port, &format!("/events?topic={topic}"));
        let mut room = raw::ws(&gateway, &format!("/ws?topic={topic}"));
        let receipt = members[0].published(&topic, "to all");
        room.expect_text("to all");
        assert_eq!(stream.expect("to all"), receipt["pos"].as_str().unwrap());
        room.send_text("[1, 2]");
        room.send(FIN | BINARY, b"\xff\0");
        let expect = |member: &mut Talker| [member.raw.frame(), member.raw.frame(), member.raw.frame()];
        let same = expect(&mut members[1]);
        assert!(members[2..].iter_mut().all(|member| expect(member) == same));
        let said = same.map(|frame| serde_json::from_slice::<Value>(&frame.payload).expect("JSON"));
        assert_eq!((&said[0]["pos"], &said[0]["data"]), (&receipt["pos"], &"to all".into()));
        assert_eq!((&said[1]["data"], &said[2]["data_b64"]), (&json!([1, 2]), &"/wA=".into()));
        assert_eq!(receipt["subscribers"], 6);
    }
}

#[test]
fn what_is_published_without_echo_comes_back_to_all_but_its_publisher() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let (mut own, mut other) = (talk::connect(gateway.port), talk::connect(gateway.port));
        let begin = own.subscribe(&topic)["pos"].clone();
        other.subscribe(&topic);
        for number in 0..20 {
            own.say(json!({"type": "publish", "topic": topic, "data": number, "echo": number % 3 == 0}));
        }
        for number in 0..20 {
            other.expect_message(&topic, number.to_string());
            if number % 3 == 0 {
                own.expect_message(&topic, number.to_string());
            }
        }
        own.say(json!({"type": "unsubscribe", "topic": topic}));
        own.expect("ok");
        assert_eq!(own.subscribe_with(&topic, json!({"after": begin}))["replayed"], 20);
        for number in (0..20).step_by(3) {
            own.expect_message(&topic, number.to_string());
        }
        let mut late = talk::connect(gateway.port);
        late.subscribe_with(&topic, json!({"after": begin}));
        for number in 0..20 {
            late.expect_message(&topic, number.to_string());
        }
    }
}

/// A piece of a history in which all was its own once ended the process: an empty send was queued. Its own are more than a piece, so one has nothing else.
#[test]
fn who_is_given_a_history_of_nothing_but_its_own_messages_without_echo_hears_what_is_behind_them() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let (mut own, mut other) = (talk::connect(gateway.port), talk::connect(gateway.port));
        for id in 0..8 {
            own.say(json!({"type": "publish", "id": id, "topic": topic, "data": "x".repeat(60_000), "echo": false}));
            assert_eq!(own.expect("ok")["id"], id);
        }
        assert_eq!(own.subscribe_with(&topic, json!({"last": 8}))["replayed"], 8);
        other.published(&topic, "another's");
        own.expect_message(&topic, "another's");
    }
}

#[test]
fn who_unsubscribes_hears_nothing_behind_the_answer() {
    let gateway = gateway().start();
    let mut publisher = talk::connect(gateway.port);
    let [a, b] = topics(&gateway);
    for round in 0..20 {
        let mut client = talk::connect(gateway.port);
        client.subscribe(&a);
        client.subscribe(&b);
        for number in 0..50 {
            publisher.publish(&a, format!("{round} {number}"));
            if number == round {
                client.say(json!({"type": "unsubscribe", "id": "u", "topic": a}));
            }
        }
        publisher.published(&a, "last of a");
        publisher.published(&b, "last of b");
        let mut is_out = false;
        loop {
            let heard = client.hear();
            match heard["type"].as_str() {
                Some("ok") => is_out = true,
                _ if heard["data"] == "last of b" => break,
                _ => assert!(!is_out, "behind the answer: {heard}"),
            }
        }
        assert!(is_out);
        client.say(json!({"type": "unsubscribe", "id": 2, "topic": a}));
        assert_eq!(client.expect_error("not_subscribed")["id"], 2);
    }
    gateway.wait_for_connections(1);
}

#[test]
fn a_connection_has_at_most_128_topics_and_each_place_can_be_used_again() {
    let gateway = gateway().start();
    let mut client = talk::connect(gateway.port);
    for number in 0..128 {
        client.subscribe(&format!("topic {number}"));
    }
    client.say(json!({"type": "subscribe", "id": 1, "topic": "one more"}));
    assert_eq!(client.expect_error("too_many_topics")["id"], 1);
    client.say(json!({"type": "history", "id": 2, "topic": "another"}));
    assert_eq!(client.expect("history")["id"], 2, "a history takes no topic's place");
    client.say(json!({"type": "subscribe", "id": 2, "topic": "topic 7"}));
    assert_eq!(client.expect_error("already_subscribed")["id"], 2);
    client.say(json!({"type": "unsubscribe", "topic": "topic 7"}));
    client.expect("ok");
    client.subscribe("one more");
    for topic in ["topic 6", "topic 127", "one more"] {
        client.publish(topic, topic);
        client.expect_message(topic, topic);
    }
    client.publish("topic 7", "nobody");
    client.expect_silence(100);
}

#[test]
fn who_comes_back_with_a_position_gets_what_it_missed() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let mut publisher = talk::connect(gateway.port);
        let mut reader = talk::connect(gateway.port);
        reader.subscribe(&topic);
        publisher.publish(&topic, "0");
        let position = reader.expect_message(&topic, "0")["pos"].clone();
        drop(reader);
        for number in 1..=60 {
            publisher.published(&topic, number.to_string());
        }
        let mut reader = talk::connect(gateway.port);
        let subscribed = reader.subscribe_with(&topic, json!({"after": position}));
        assert_eq!((&subscribed["pos"], &subscribed["recovered"], &subscribed["replayed"]), (&position, &true.into(), &60.into()));
        for number in 1..=60 {
            reader.expect_message(&topic, number.to_string());
        }
        let mut reader = talk::connect(gateway.port);
        let subscribed = reader.subscribe_with(&topic, json!({"last": 2}));
        assert_eq!((&subscribed["recovered"], &subscribed["replayed"]), (&false.into(), &2.into()));
        reader.expect_message(&topic, "59");
        reader.expect_message(&topic, "60");
        let mut lost = talk::connect(gateway.port);
        let subscribed = lost.subscribe_with(&topic, json!({"after": "a.5"}));
        assert_eq!(subscribed["recovered"], false);
        let gap = lost.expect("gap");
        assert_eq!((&gap["topic"], &gap["from"], &gap["reason"]), (&topic.as_str().into(), &"a.5".into(), &"restart".into()));
        assert_eq!(gap["to"], subscribed["pos"]);
        let first = lost.expect("message");
        assert_eq!(offset(first["pos"].as_str().unwrap()), offset(gap["to"].as_str().unwrap()) + 1, "it begins with what there is");
    }
}

#[test]
fn a_history_longer_than_a_piece_is_replayed_in_order_while_more_is_published() {
    let gateway = gateway().limit("history_messages", 1000).limit("send_bytes_max", 4096).start();
    for topic in topics(&gateway) {
        let mut publisher = talk::connect(gateway.port);
        let filler = "z".repeat(300);
        let begin = publisher.published(&topic, "begin")["pos"].clone();
        for number in 0..400 {
            publisher.published(&topic, format!("{number} {filler}"));
        }
        let mut reader = talk::connect(gateway.port);
        reader.say(json!({"type": "subscribe", "topic": topic, "after": begin}));
        for number in 400..500 {
            publisher.publish(&topic, format!("{number} {filler}"));
        }
        assert_eq!(reader.expect("subscribed")["recovered"], true);
        for number in 0..500 {
            reader.expect_message(&topic, format!("{number} {filler}"));
        }
    }
}

#[test]
fn a_history_is_read_without_a_subscription() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let mut client = talk::connect(gateway.port);
        for number in 0..5 {
            client.published(&topic, number.to_string());
        }
        client.say(json!({"type": "history", "id": 9, "topic": topic, "last": 4, "limit": 2}));
        let page = client.expect("history");
        let data = |page: &Value| page["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect::<Vec<_>>();
        assert_eq!((&page["id"], &page["topic"], data(&page)), (&9.into(), &topic.as_str().into(), vec!["1".into(), "2".into()]), "{page}");
        client.say(json!({"type": "history", "topic": topic, "after": page["next"]}));
        assert_eq!(data(&client.expect("history")), ["3", "4"]);
        client.say(json!({"type": "history", "topic": topic, "after": "a.5", "limit": 1}));
        assert_eq!(client.expect("history")["messages"][0]["gap"]["reason"], "restart");
        client.published(&topic, "nobody is subscribed");
        client.expect_silence(50);
        client.subscribe(&topic);
    }
}

#[test]
fn a_message_with_a_known_id_is_published_once() {
    let gateway = gateway().start();
    for topic in topics(&gateway) {
        let mut client = talk::connect(gateway.port);
        client.subscribe(&topic);
        let once = json!({"type": "publish", "id": 1, "topic": topic, "data": "once", "msg_id": "m1", "event": "news"});
        client.say(once.clone());
        let mut first: Vec<Value> = (0..2).map(|_| client.hear()).collect();
        first.sort_by_key(|said| said["type"] == "ok");
        assert_eq!((&first[0]["data"], &first[0]["event"], &first[0]["pos"]), (&"once".into(), &"news".into(), &first[1]["pos"]));
        client.say(once);
        let again = client.expect("ok");
        assert_eq!((&again["duplicate"], &again["pos"]), (&true.into(), &first[1]["pos"]), "{again}");
        client.expect_silence(50);
    }
}

#[test]
fn what_cannot_be_is_an_error_with_the_requests_id_and_the_connection_goes_on() {
    let gateway = gateway().start();
    let mut client = talk::connect(gateway.port);
    for (request, code) in [
        (json!({"type": "dance"}), "unknown_type"),
        (json!({"type": "subscribe"}), "bad_request"),
        (json!({"type": "subscribe", "topic": ""}), "bad_request"),
        (json!({"type": "subscribe", "topic": "a", "after": "yesterday"}), "bad_request"),
        (json!({"type": "unsubscribe", "topic": "a"}), "not_subscribed"),
        (json!({"type": "publish", "topic": "a"}), "bad_request"),
        (json!({"type": "publish", "topic": "a", "data": "z".repeat(65_537)}), "too_large"),
        (json!({"type": "presence", "topic": "a"}), "no_presence"),
    ] {
        for id in [json!("id"), json!(17), Value::Null] {
            let mut request = request.clone();
            request["id"] = id.clone();
            client.say(request);
            assert_eq!(client.expect_error(code)["id"], id);
        }
    }
    client.subscribe("a");
    client.publish("a", "z".repeat(65_536));
    client.expect_message("a", "z".repeat(65_536));
}

#[test]
fn what_is_no_request_ends_the_connection_with_4400() {
    let gateway = gateway().start();
    for text in ["hello", "{", "[]", "5", "{}", r#"{"type":"ping","type":"ping"}"#, r#"{"type":"ping","id":[]}"#, "{\"type\":\"ping\"}x"] {
        let mut client = talk::connect(gateway.port);
        client.raw.send_text(text);
        let bye = client.expect_bye(4400);
        assert!(bye["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{bye}");
    }
    let mut client = talk::connect(gateway.port);
    client.raw.send(FIN | BINARY, br#"{"type":"ping"}"#);
    client.expect_bye(4400);
    let mut client = talk::connect(gateway.port);
    client.raw.send_text(&json!({"type": "publish", "topic": "a", "data": "z".repeat(140_000)}).to_string());
    client.expect_bye(1009);
    gateway.wait_for_closes("bad_message", 9);
}

#[test]
fn a_browser_is_answered_with_the_first_subprotocol_that_is_spoken() {
    let gateway = gateway().start();
    let ask = |path: &str, offered: &str| {
        let mut raw = Raw::connect(gateway.port);
        raw.write(raw::upgrade(path, &format!("Sec-WebSocket-Protocol: {offered}\r\n")).as_bytes());
        let response = raw.response();
        (response.status, response.header("sec-websocket-protocol").map(str::to_owned).unwrap_or_else(|| response.text()))
    };
    let selected = |protocol: &str| (101, protocol.to_owned());
    assert_eq!(ask("/ws", "other, shardcast.v1.json, shardcast.raw"), selected("shardcast.v1.json"));
    assert_eq!(ask("/ws?room=a", "shardcast.raw, shardcast.v1.json"), selected("shardcast.raw"));
    assert_eq!(ask("/echo", "shardcast.v1.json, shardcast.raw"), selected("shardcast.raw"));
    let (status, message) = ask("/ws", "other, mqtt");
    assert!(status == 400 && message.contains("(other, mqtt)") && message.contains("shardcast.v1.json"), "{message}");
    for path in ["/ws?room=a", "/ws?last=5"] {
        let (status, message) = ask(path, "shardcast.v1.json");
        assert!(status == 400 && message.contains("subscribe"), "{status} {message}");
    }
    // A client whose library checks what was selected.
    let mut client = foreign::try_connect(&gateway, "/ws", &[("sec-websocket-protocol", "shardcast.v1.json")]).expect("upgraded");
    assert!(client.message().to_text().expect("text").starts_with(r#"{"type":"welcome""#));
    client.text(r#"{"type":"subscribe","id":1,"topic":"a"}"#);
    assert!(client.message().to_text().expect("text").starts_with(r#"{"type":"subscribed","id":1,"topic":"a","pos":""#));
    client.leave();
}

#[test]
fn who_publishes_faster_than_receipts_come_is_read_later_and_gets_them_all_in_order() {
    let gateway = gateway().limit("json_publishes_max", 3).start();
    for topic in topics(&gateway) {
        let mut client = talk::connect(gateway.port);
        let mut reader = talk::connect(gateway.port);
        reader.subscribe(&topic);
        let mut bytes = Vec::new();
        for number in 0..500 {
            let request = json!({"type": "publish", "id": number, "topic": topic, "data": number.to_string()});
            bytes.extend(frame::masked(FIN | TEXT, request.to_string().as_bytes()));
        }
        client.raw.write(&bytes);
        for number in 0..500 {
            assert_eq!(client.expect("ok")["id"], number);
            reader.expect_message(&topic, number.to_string());
        }
    }
}

#[test]
fn who_does_not_read_its_answers_is_not_read_either() {
    let gateway = gateway().limit("echo_bytes_max", 4096).start();
    let mut client = talk::over(Raw::connect_with_small_buffers(gateway.port));
    let ping = json!({"type": "ping", "id": "x".repeat(400)}).to_string();
    let messages = std::iter::repeat_with(|| frame::masked(FIN | TEXT, ping.as_bytes()));
    let sent = client.raw.write_until_blocked(messages, std::time::Duration::from_millis(500), 8_000_000);
    assert!(sent < 8_000_000, "it was read without end: {sent} bytes");
    let queued = gateway.metrics().sum("shardcast_queued_bytes", &[]);
    assert!(queued < 1e6, "{queued} bytes are queued");
    // The last one may have been cut off.
    let whole = sent / frame::masked(FIN | TEXT, ping.as_bytes()).len();
    for _ in 0..whole {
        client.expect("pong");
    }
}

#[test]
fn a_slow_reader_is_told_bye_with_4508() {
    let gateway = gateway().limit("message_bytes_max", 16 << 10).limit("queue_bytes_max", 64 << 10).start();
    for topic in topics(&gateway) {
        let mut slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
        let mut healthy = talk::connect(gateway.port);
        slow.subscribe(&topic);
        healthy.subscribe(&topic);
        // While it is not known that the reader is slow, publishers wait for it.
        let publish = |client: &mut Talker, text: &str| loop {
            client.publish(&topic, text);
            let heard = client.hear();
            if heard["type"] == "message" {
                return assert_eq!(heard["data"], text);
            }
            assert_eq!(heard["code"], "topic_behind", "{heard}");
            sleep_ms(5);
        };
        let before = gateway.closes("slow_consumer");
        let text = "z".repeat(8000);
        let mut published = 0;
        while gateway.closes("slow_consumer") == before {
            for _ in 0..20 {
                published += 1;
                publish(&mut healthy, &text);
            }
            assert!(published < 20_000, "nobody is too slow");
        }
        let mut last = None;
        let bye = loop {
            let heard = slow.hear();
            if heard["type"] == "bye" {
                break heard;
            }
            let at = offset(heard["pos"].as_str().unwrap());
            assert!(last.is_none_or(|last| at == last + 1), "whole messages in order up to the end: {last:?}, {at}");
            last = Some(at);
        };
        assert_eq!(bye["code"], 4508);
        let reason = slow.raw.expect_close(4508);
        assert!(reason.starts_with(&format!("retry={}", bye["retry_ms"])), "{reason}");
        publish(&mut healthy, "still here");
    }
}

#[test]
fn a_rate_is_an_error_and_says_when_to_try_again() {
    let gateway = gateway().limit("messages_per_second", 5).start();
    let mut client = talk::connect(gateway.port);
    for number in 0..5 {
        client.published("a", number.to_string());
    }
    client.say(json!({"type": "publish", "id": "p", "topic": "a", "data": "one more"}));
    let error = client.expect_error("rate_limited");
    assert!(error["id"] == "p" && error["retry_ms"].as_u64().is_some_and(|ms| (1..=1000).contains(&ms)), "{error}");
    client.say(json!({"type": "ping"}));
    client.expect("pong");
}

#[test]
fn a_topic_that_is_full_is_an_error_and_another_one_can_be_had() {
    let gateway = gateway().limit("topic_subscribers_max", 1).start();
    let both = topics(&gateway);
    let full = both[0].clone();
    for topic in both {
        let (mut first, mut second) = (talk::connect(gateway.port), talk::connect(gateway.port));
        first.subscribe(&topic);
        second.say(json!({"type": "subscribe", "id": 1, "topic": topic}));
        let error = second.expect_error("topic_full");
        assert!(error["id"] == 1 && error["retry_ms"].is_u64(), "{error}");
        second.subscribe(&format!("{topic} too"));
        first.say(json!({"type": "unsubscribe", "topic": topic}));
        first.expect("ok");
        second.subscribe(&topic);
    }
    // The last places are given back by who leaves without a word.
    eventually(SOON, || {
        let mut client = talk::connect(gateway.port);
        client.say(json!({"type": "subscribe", "topic": full}));
        if client.hear()["type"] == "subscribed" { Ok(()) } else { Err("the place is still taken".to_owned()) }
    });
}

#[test]
fn no_more_topics_than_the_process_may_have() {
    let gateway = gateway().limit("topics_max", 3).start();
    let mut client = talk::connect(gateway.port);
    let mut refused = 0;
    for number in 0..6 {
        client.say(json!({"type": "subscribe", "id": number, "topic": format!("topic {number}")}));
        let heard = client.hear();
        assert_eq!(heard["id"], number);
        refused += usize::from(heard["code"] == "over_capacity");
    }
    assert_eq!(refused, 3);
    client.say(json!({"type": "publish", "id": "p", "topic": "topic 9", "data": 1}));
    assert_eq!(client.expect_error("too_many_topics")["id"], "p");
}

#[test]
fn a_drain_says_bye_with_4503_behind_what_was_queued() {
    let mut gateway = gateway().limit("drain_ms", 3000).start();
    let [a, b] = topics(&gateway);
    let mut clients: Vec<Talker> = (0..10).map(|_| talk::connect(gateway.port)).collect();
    for client in &mut clients {
        client.subscribe(&a);
        client.subscribe(&b);
    }
    clients[0].published(&a, "before");
    gateway.signal(libc::SIGTERM);
    for client in &mut clients {
        let bye = loop {
            let heard = client.hear();
            if heard["type"] == "bye" {
                break heard;
            }
            assert_eq!(heard["data"], "before");
        };
        assert!(bye["code"] == 4503 && bye["retry_ms"].is_u64(), "{bye}");
        client.raw.expect_close(4503);
    }
    assert!(gateway.exit_within(SOON).success());
}

#[test]
fn the_operator_can_say_something_to_all_and_end_who_is_in_a_topic() {
    let gateway = gateway().start();
    let (mut one, mut other) = (talk::connect(gateway.port), talk::connect(gateway.port));
    one.subscribe("a");
    other.subscribe("b");
    let admin = |path: &str, body: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let response = raw::http(gateway.admin, request.as_bytes());
        assert_eq!(response.status, 200, "{response:?}");
    };
    admin("/announce", "soon");
    for client in [&mut one, &mut other] {
        assert_eq!(client.hear(), json!({"type": "announcement", "text": "soon"}));
    }
    admin("/topics/a/disconnect?code=4403&reason=out", "");
    let bye = one.expect_bye(4403);
    assert_eq!(bye["reason"], "out");
    other.published("b", "still here");
}

#[test]
fn who_goes_without_a_word_leaves_nothing_behind() {
    let gateway = gateway().limit("history_messages", 0).start();
    for round in 0..20 {
        let mut client = talk::connect(gateway.port);
        for number in 0..10 {
            client.say(json!({"type": "subscribe", "topic": format!("topic {number}"), "after": "earliest"}));
            client.publish(&format!("topic {}", number + round % 3), "x");
            client.say(json!({"type": "history", "topic": format!("topic {number}")}));
        }
        match round % 3 {
            0 => client.raw.reset(),
            1 => client.raw.shutdown_write(),
            _ => {}
        }
    }
    gateway.wait_for_connections(0);
    gateway.wait_for_no_topics();
}

#[test]
fn a_half_sent_request_waits_for_its_rest() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    raw.write(raw::upgrade("/ws", PROTOCOL).as_bytes());
    raw.expect_upgraded();
    let frame = frame::masked(FIN | TEXT, br#"{"type":"publish","id":5,"topic":"a","data":"whole"}"#);
    for byte in frame {
        raw.write(&[byte]);
    }
    sleep_ms(1);
    assert!(raw.frame().payload.starts_with(br#"{"type":"welcome""#));
    assert!(raw.frame().payload.starts_with(br#"{"type":"ok","id":5"#));
}
