//! Publishing over HTTP: what a body becomes for those who listen, receipts, refusals, and clients that send their bodies as no library would.

mod common;

use std::io::Read;
use std::time::Duration;

use common::frame::{BINARY, FIN, TEXT};
use common::raw::{self, End, Frame, Raw, Response};
use common::{Gateway, SOON, eventually, gateway, now, sleep_ms};
use serde_json::{Value, json};

const SHARDS: [u16; 2] = [1, 3];

/// A request with a body of known length; `extra` are header lines, each ended by CRLF.
fn post(path: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request
}

/// The same body in chunks of `size` bytes.
fn post_chunked(path: &str, body: &[u8], size: usize) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

/// Publishes on a connection of its own; the answer must be 200.
fn publish(gateway: &Gateway, path: &str, body: &[u8]) -> Value {
    let response = raw::http(gateway.port, &post(path, "", body));
    assert_eq!(response.status, 200, "{path}: {response:?}");
    json(&response)
}

fn offset(answer: &Value) -> u64 {
    let position = answer["pos"].as_str().unwrap_or_else(|| panic!("no pos: {answer}"));
    position.rsplit_once('.').and_then(|(_, offset)| offset.parse().ok()).unwrap_or_else(|| panic!("no position: {answer}"))
}

/// An error answer: its status and the word for programs.
fn refusal(response: &Response) -> (u16, String) {
    let body = json(response);
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{response:?}");
    (response.status, body["error"]["code"].as_str().unwrap_or_else(|| panic!("no code: {body}")).to_owned())
}

/// A stream of events, open.
fn events(gateway: &Gateway, query: &str) -> Raw {
    let mut raw = Raw::connect(gateway.port);
    raw.write(format!("GET /events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    wait_for(&mut raw, "event: shardcast:open");
    raw
}

fn wait_for(raw: &mut Raw, text: &str) {
    eventually(SOON, || {
        let has = String::from_utf8_lossy(raw.unread()).into_owned();
        if has.contains(text) {
            return Ok(());
        }
        raw.answered_within(Duration::from_millis(50));
        Err(format!("{text:?} did not come; this did: {has:?}"))
    });
}

/// Waits until the topic's home knows of so many subscribers, by publishing to it.
fn wait_for_subscribers(gateway: &Gateway, topic: &str, expected: u64) {
    eventually(SOON, || match publish(gateway, &format!("/publish?topic={topic}"), b"are you there")["subscribers"].as_u64() {
        Some(count) if count == expected => Ok(()),
        count => Err(format!("{count:?} subscribers of {topic}, {expected} were expected")),
    });
}

/// A WebSocket that reads nothing, with small buffers.
fn stopped_reader(gateway: &Gateway, path: &str) -> Raw {
    let mut raw = Raw::connect_with_small_buffer(gateway.port);
    raw.write(raw::upgrade(path, "").as_bytes());
    raw.expect_upgraded();
    raw
}

#[test]
fn the_body_reaches_websockets_and_streams_of_events() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let mut listeners: Vec<Raw> = (0..4).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
        let mut stream = events(&gateway, "topic=a");
        let answer = publish(&gateway, "/publish?topic=a", "grüße".as_bytes());
        assert_eq!(offset(&answer), 1, "{answer}");
        let position = answer["pos"].as_str().expect("a position");
        for listener in &mut listeners {
            listener.expect_text("grüße");
        }
        wait_for(&mut stream, &format!("id: {position}\ndata: grüße\n\n"));
    }
}

#[test]
fn what_a_body_is_decides_what_listeners_get() {
    let gateway = gateway().start();
    let mut listener = raw::ws(&gateway, "/ws?room=kinds");
    let mut stream = events(&gateway, "topic=kinds");
    let binary = "Content-Type: application/octet-stream\r\n";
    let cases: &[(&str, &str, &[u8], u8, &str)] = &[
        ("", "", b"text", TEXT, "data: text\n\n"),
        ("", "Content-Type: text/plain\r\n", b"two\nlines", TEXT, "data: two\ndata: lines\n\n"),
        ("", "Content-Type: application/json\r\n", b"{\"n\":1}", TEXT, "data: {\"n\":1}\n\n"),
        ("", binary, b"bytes", BINARY, "data: Ynl0ZXM=\n\n"),
        ("", "Content-Type: Application/Octet-Stream; x=y\r\n", b"BYTES", BINARY, "data: QllURVM=\n\n"),
        ("", "Content-Type: application/octet-stream-not\r\n", b"words", TEXT, "data: words\n\n"),
        ("", "", b"\xff\xfe", BINARY, "data: //4=\n\n"),
        ("", "", b"", TEXT, "data: \n\n"),
        ("&event=price", "", b"7", TEXT, "event: price\ndata: 7\n\n"),
        ("&event=", "", b"8", TEXT, ""),
    ];
    for (query, extra, body, opcode, event) in cases {
        let response = raw::http(gateway.port, &post(&format!("/publish?topic=kinds{query}"), extra, body));
        if event.is_empty() {
            assert_eq!(refusal(&response), (400, "bad_request".into()), "{query}");
            continue;
        }
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(listener.frame(), Frame::new(FIN | opcode, *body), "{query} {extra}");
        wait_for(&mut stream, event);
    }
    listener.expect_silence(50);
}

#[test]
fn several_topics_are_answered_one_by_one_in_their_order() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let names: Vec<String> = (0..9).map(|number| format!("t{number}")).collect();
        let mut listeners: Vec<Raw> = names.iter().map(|name| raw::ws(&gateway, &format!("/ws?room={name}"))).collect();
        publish(&gateway, "/publish?topic=t4", b"first");
        let answer = publish(&gateway, &format!("/publish?topic={}", names.join("&topic=")), b"all");
        let offsets: Vec<u64> = answer.as_array().expect("one result for each").iter().map(offset).collect();
        assert_eq!(offsets, [1, 1, 1, 1, 2, 1, 1, 1, 1]);
        listeners[4].expect_text("first");
        for listener in &mut listeners {
            listener.expect_text("all");
        }
    }
}

#[test]
fn an_idempotency_key_publishes_once_in_each_topic() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let mut listener = raw::ws(&gateway, "/ws?room=once");
        let send = |topic: &str, key: &str, body: &str| {
            json(&raw::http(
                gateway.port,
                &post(&format!("/publish?topic={topic}"), &format!("Idempotency-Key: {key}\r\n"), body.as_bytes()),
            ))
        };
        let first = send("once", "k1", "one");
        let again = send("once", "k1", "another body");
        assert_eq!((first["pos"].as_str(), again["duplicate"].as_bool()), (again["pos"].as_str(), Some(true)), "{first} {again}");
        assert_eq!(first["duplicate"], Value::Null);
        assert_eq!(send("other", "k1", "elsewhere")["duplicate"], Value::Null);
        assert_eq!(offset(&send("once", "k2", "two")), offset(&first) + 1);
        let item = json!({"topic": "once", "data": "three", "id": "k2"});
        let by_json = publish(&gateway, "/v1/publish", item.to_string().as_bytes());
        assert_eq!(by_json["duplicate"], true, "{by_json}");
        listener.expect_text("one");
        listener.expect_text("two");
        listener.expect_silence(50);
    }
}

/// A key was found for as long as nobody published with another one, however old it was.
#[test]
fn an_idempotency_key_is_forgotten_after_its_time() {
    let gateway = gateway().limit("idempotency_ms", 300).start();
    let request = post("/publish?topic=a", "Idempotency-Key: k\r\n", b"x");
    assert_eq!(offset(&json(&raw::http(gateway.port, &request))), 1);
    assert_eq!(json(&raw::http(gateway.port, &request))["duplicate"], true);
    sleep_ms(500);
    let later = json(&raw::http(gateway.port, &request));
    assert_eq!((offset(&later), &later["duplicate"]), (2, &Value::Null));
    assert_eq!(json(&raw::http(gateway.port, &request))["duplicate"], true, "the new one is known");
}

#[test]
fn receipts_count_the_subscribers_of_all_shards_and_forms() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let listeners: Vec<Raw> = (0..7).map(|_| raw::ws(&gateway, "/ws?room=count")).collect();
        let streams: Vec<Raw> = (0..5).map(|_| events(&gateway, "topic=count&topic=other")).collect();
        wait_for_subscribers(&gateway, "count", 12);
        for ack in ["accepted", "stored", "sent"] {
            let begun = now();
            let answer = publish(&gateway, &format!("/publish?topic=count&ack={ack}"), b"x");
            assert_eq!(answer["subscribers"], 12, "ack={ack} on {shards} shards: {answer}");
            assert!(begun.elapsed() < Duration::from_secs(2), "ack={ack} took {:?}", begun.elapsed());
        }
        drop((listeners, streams));
        wait_for_subscribers(&gateway, "count", 0);
        assert_eq!(publish(&gateway, "/publish?topic=count&ack=sent", b"x")["subscribers"], 0);
        assert_eq!(refusal(&raw::http(gateway.port, &post("/publish?topic=a&ack=read", "", b"x"))), (400, "bad_request".into()));
    }
    let gateway = gateway().limit("history_messages", 0).start();
    assert_eq!(refusal(&raw::http(gateway.port, &post("/publish?topic=a&ack=stored", "", b"x"))), (400, "bad_request".into()));
    assert_eq!(publish(&gateway, "/publish?topic=a&ack=sent", b"x")["subscribers"], 0, "nobody listens, nothing is kept");
    gateway.wait_for_no_topics();
    let keyed = post("/publish?topic=a", "Idempotency-Key: once\r\n", b"x");
    for _ in 0..2 {
        assert_eq!(raw::http(gateway.port, &keyed).status, 200);
        gateway.wait_for_no_topics();
    }
}

/// One reader that does not read: after 5 s the answer counts everybody else, whether publishers wait for that reader meanwhile or not.
#[test]
fn ack_sent_answers_after_5_s_without_the_reader_that_is_still_waited_for() {
    for (shards, hold_ms) in [(1, 50), (1, 60_000), (3, 50), (3, 60_000)] {
        let gateway = gateway().shards(shards).limit("reader_hold_ms", hold_ms).limit("write_stall_ms", 60_000).start();
        let stopped = stopped_reader(&gateway, "/ws?room=held");
        let its_shard = gateway.shard_connections().iter().position(|&count| count == 1).expect("it is somewhere");
        let listeners: Vec<Raw> = (0..9).map(|_| raw::ws(&gateway, "/ws?room=held")).collect();
        let members = gateway.shard_connections();
        let elsewhere: u64 = members.iter().enumerate().filter(|&(shard, _)| shard != its_shard).map(|(_, count)| count).sum();
        wait_for_subscribers(&gateway, "held", 10);
        // A shard that is not the topic's home is sent its next batch when the one before was served: held back for that long, it may not have the message.
        let may_lack_it = shards > 1 && hold_ms > 5000;
        let until_last = |mut raw: Raw| {
            loop {
                match raw.next_frame() {
                    Ok(frame) if frame.payload == b"last" => return raw,
                    Ok(_) | Err(raw::End::Open) => {}
                    Err(end) => panic!("no last one: {end:?}"),
                }
            }
        };
        let listeners: Vec<_> = listeners.into_iter().map(|listener| std::thread::spawn(move || until_last(listener))).collect();
        let body = vec![b'x'; 60_000];
        for _ in 0..8 {
            publish(&gateway, "/publish?topic=held", &body);
        }
        let begun = now();
        let answer = publish(&gateway, "/publish?topic=held&ack=sent", b"last");
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(4500) && took < Duration::from_secs(7), "{took:?} on {shards} shards: {answer}");
        let count = answer["subscribers"].as_u64().expect("a count");
        let fits = count == 9 || (may_lack_it && count == elsewhere);
        assert!(fits, "on {shards} shards, readers held {hold_ms} ms, {elsewhere} on the other shards: {answer}");
        // Who is dropped is not waited for.
        let until_dropped = std::thread::spawn({
            let port = gateway.port;
            move || (now(), json(&raw::http(port, &post("/publish?topic=held&ack=sent", "", b"x"))), now())
        });
        sleep_ms(500);
        drop(stopped);
        let (begun, answer, answered) = until_dropped.join().expect("answered");
        assert!(answered - begun < Duration::from_secs(4), "{:?} on {shards} shards: {answer}", answered - begun);
        assert_eq!(answer["subscribers"], 9, "on {shards} shards: {answer}");
        drop(listeners.into_iter().map(|thread| thread.join().expect("it got the last one")).collect::<Vec<Raw>>());
    }
}

#[test]
fn receipts_of_sent_messages_are_bounded() {
    let gateway = gateway().shards(1).limit("receipts_max", 0).start();
    let response = raw::http(gateway.port, &post("/publish?topic=a&ack=sent", "", b"x"));
    assert_eq!((refusal(&response), response.header("retry-after")), ((429, "too_many_receipts".into()), Some("1")));
    assert_eq!(offset(&publish(&gateway, "/publish?topic=a", b"x")), 1, "the refused one was not numbered");
}

#[test]
fn v1_publish_answers_each_item_in_its_place() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("publish_items_max", 5).start();
        let mut a = raw::ws(&gateway, "/ws?room=a");
        let mut b = raw::ws(&gateway, "/ws?room=b");
        let mut stream = events(&gateway, "topic=a");
        let send = |body: &str| raw::http(gateway.port, &post("/v1/publish", "Content-Type: application/json\r\n", body.as_bytes()));

        let one = json(&send(r#"{"topic":"a","data":{"n": [1, 2]},"event":"e"}"#));
        assert_eq!(offset(&one), 1);
        a.expect_text(r#"{"n":[1,2]}"#);
        wait_for(&mut stream, "event: e\ndata: {\"n\":[1,2]}\n\n");

        let both = json(&send(r#"{"topics":["a","b"],"data_b64":"AAH/"}"#));
        assert_eq!(both["results"].as_array().expect("a list").iter().map(offset).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(a.frame(), Frame::new(FIN | BINARY, [0, 1, 255]));
        assert_eq!(b.frame(), Frame::new(FIN | BINARY, [0, 1, 255]));

        let mixed = json(&send(
            r#"[{"topic":"a","data":"s"},{"topic":"","data":1},7,{"topic":"b","data":null},{"topics":["b"],"data":"t","data_b64":""}]"#,
        ));
        let codes: Vec<&str> = mixed.as_array().expect("a list").iter().map(|item| item["error"]["code"].as_str().unwrap_or("")).collect();
        assert_eq!(codes, ["", "bad_request", "bad_request", "", "bad_request"], "{mixed}");
        assert_eq!((offset(&mixed[0]), offset(&mixed[3])), (3, 2));
        a.expect_text("s");
        b.expect_text("null");

        assert_eq!(send("[]").text(), "[]\n");
        assert_eq!(json(&send(r#"[{"topic":"a","data":"x"}]"#)).as_array().map(Vec::len), Some(1));
        for (body, status, code) in [
            ("", 400, "bad_json"),
            ("{", 400, "bad_json"),
            ("[1,2", 400, "bad_json"),
            (r#"{"topic":"a","data":"x"} x"#, 400, "bad_json"),
            ("7", 400, "bad_request"),
            (r#"{"data":"x"}"#, 400, "bad_request"),
            (r#"{"topic":"a","data_b64":"!"}"#, 400, "bad_request"),
            ("[1,2,3,4,5,6]", 413, "too_large"),
        ] {
            assert_eq!(refusal(&send(body)), (status, code.to_owned()), "{body}");
        }
        let long = json!({"topic": "a", "data": "x".repeat(65 * 1024)}).to_string();
        assert_eq!(refusal(&send(&long)), (413, "too_large".into()));
        a.expect_text("x");
        a.expect_silence(50);
    }
}

#[test]
fn a_body_may_be_cut_anywhere() {
    let gateway = gateway().start();
    let mut listener = raw::ws(&gateway, "/ws?room=cut");
    let mut raw = Raw::connect(gateway.port);
    let requests = [post("/publish?topic=cut", "", b"hello there"), post_chunked("/publish?topic=cut", b"hello there", 5)];
    for request in requests {
        for at in 1..request.len() {
            raw.write(&request[..at]);
            sleep_ms(1);
            raw.write(&request[at..]);
            assert_eq!(raw.response().status, 200, "cut at {at}");
            listener.expect_text("hello there");
        }
        for byte in &request {
            raw.write(&[*byte]);
        }
        assert_eq!(raw.response().status, 200, "byte by byte");
        listener.expect_text("hello there");
    }
    listener.expect_silence(50);
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on() {
    let gateway = gateway().start();
    let mut raw = Raw::connect(gateway.port);
    for _ in 0..3 {
        raw.write(b"POST /publish?topic=a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        let mut answer = [0; 25];
        raw.stream.read_exact(&mut answer).expect("it is told to go on");
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        raw.write(b"hello");
        assert_eq!(raw.response().status, 200);
    }
    // Who would be refused anyway is told so before it sends its body.
    raw.write(b"POST /publish?topic=a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(refusal(&raw.response()), (413, "too_large".into()));
    raw.expect_end(SOON);
}

#[test]
fn a_kept_connection_publishes_in_order_and_each_message_once() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let mut listener = raw::ws(&gateway, "/ws?room=order");
        let mut raw = Raw::connect(gateway.port);
        let request = |number: usize| {
            let body = number.to_string();
            if number.is_multiple_of(2) {
                post("/publish?topic=order", "", body.as_bytes())
            } else {
                post_chunked("/publish?topic=order", body.as_bytes(), 1)
            }
        };
        for number in 1..=400 {
            raw.write(&request(number));
            let response = raw.response();
            assert_eq!((response.status, offset(&json(&response))), (200, number as u64));
        }
        // The same, pipelined: all of it in a few segments.
        let pipelined: Vec<u8> = (401..=700).flat_map(request).collect();
        raw.write(&pipelined);
        for number in 401..=700 {
            let response = raw.response();
            assert_eq!((response.status, offset(&json(&response))), (200, number));
        }
        for number in 1..=700 {
            listener.expect_text(&number.to_string());
        }
        listener.expect_silence(50);
    }
}

/// A client that had shut its side when its receipt came was held until keepalive_ms.
#[test]
fn a_client_that_shuts_its_side_is_answered_and_ended() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        for topic in ["a", "b", "c", "d"] {
            let mut raw = Raw::connect(gateway.port);
            raw.write(&post(&format!("/publish?topic={topic}"), "", b"x"));
            raw.shutdown_write();
            assert_eq!(raw.response().status, 200);
            assert_eq!(raw.end_within(Duration::from_secs(3)), End::Eof, "topic {topic} on {shards} shards");
        }
    }
}

#[test]
fn a_body_that_does_not_come_in_time_is_answered_408() {
    let gateway = gateway().limit("body_timeout_ms", 300).start();
    let whole = post("/publish?topic=a", "", b"hello");
    let chunked = post_chunked("/publish?topic=a", b"hello", 2);
    for (request, cut) in
        [(&whole, whole.len() - 5), (&whole, whole.len() - 1), (&chunked, chunked.len() - 1), (&chunked, chunked.len() - 8)]
    {
        let mut raw = Raw::connect(gateway.port);
        raw.write(&request[..cut]);
        let begun = now();
        assert_eq!(refusal(&raw.response()), (408, "timeout".into()));
        assert!(begun.elapsed() >= Duration::from_millis(250), "after {:?}", begun.elapsed());
        raw.expect_end(SOON);
    }
    // A body is not due while a receipt is: the time of the body is over, the connection is kept.
    let mut raw = Raw::connect(gateway.port);
    raw.write(&whole);
    assert_eq!(raw.response().status, 200);
    sleep_ms(600);
    raw.write(&whole);
    assert_eq!(raw.response().status, 200);
}

#[test]
fn a_body_over_the_bound_is_answered_413_and_closed() {
    let gateway = gateway().limit("message_bytes_max", 1000).limit("body_bytes_max", 2000).start();
    let mut listener = raw::ws(&gateway, "/ws?room=a");
    for (path, bound) in [("/publish?topic=a", 1000), ("/v1/publish", 2000)] {
        let body = vec![b' '; bound + 1];
        let announced = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", bound + 1).into_bytes();
        let huge_chunk =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n").into_bytes();
        for request in [announced, post(path, "", &body), post_chunked(path, &body, 100), huge_chunk] {
            let mut raw = Raw::connect(gateway.port);
            raw.try_write(&request);
            assert_eq!(refusal(&raw.response()), (413, "too_large".into()), "{path}");
            raw.expect_end(SOON);
        }
    }
    let exact = vec![b'x'; 1000];
    for request in [post("/publish?topic=a", "", &exact), post_chunked("/publish?topic=a", &exact, 100)] {
        assert_eq!(raw::http(gateway.port, &request).status, 200);
        assert_eq!(listener.frame().payload, exact);
    }
    listener.expect_silence(50);
}

/// What two servers could read differently is refused, and nothing after it is read as a request.
#[test]
fn requests_whose_end_is_in_doubt_are_answered_400_and_closed() {
    let gateway = gateway().start();
    let mut listener = raw::ws(&gateway, "/ws?room=a");
    let head = "POST /publish?topic=a HTTP/1.1\r\nHost: localhost\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let cases = [
        format!("{head}Content-Length: 5\r\n{chunked}5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        format!("{head}Content-Length: 5, 6\r\n\r\nhello!"),
        format!("{head}Content-Length: +5\r\n\r\nhello"),
        format!("{head}Content-Length: -5\r\n\r\nhello"),
        format!("{head}Content-Length: 0x5\r\n\r\nhello"),
        format!("{head}Content-Length: 99999999999999999999\r\n\r\nhello"),
        format!("{head}Content-Length : 5\r\n\r\nhello"),
        format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("POST /publish?topic=a HTTP/1.0\r\nHost: localhost\r\n{chunked}5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}5\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}5\r\nhello\n0\r\n\r\n"),
        format!("{head}{chunked}5\r\nhello\r\n0\n\r\n"),
        format!("{head}{chunked}5\r\nhello\r\n0\r\n\n"),
        format!("{head}{chunked}5\r\nhelloX\r\n0\r\n\r\n"),
        format!("{head}{chunked}5;a=\n\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}0x5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}+5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked} 5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}00000000000000005\r\nhello\r\n0\r\n\r\n"),
        format!("{head}{chunked}5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n"),
    ];
    for case in cases {
        let mut raw = Raw::connect(gateway.port);
        raw.try_write(&[case.as_bytes(), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat());
        let response = raw.response();
        assert!(matches!(response.status, 400 | 501), "{case:?}: {response:?}");
        assert_eq!(response.header("connection"), Some("close"), "{case:?}: {response:?}");
        raw.expect_end(SOON);
        assert!(raw.unread().is_empty(), "{case:?}: a second answer {:?}", String::from_utf8_lossy(raw.unread()));
    }
    listener.expect_silence(50);
    assert_eq!(publish(&gateway, "/publish?topic=a", b"x")["subscribers"], 1);
    listener.expect_text("x");
}

#[test]
fn publishing_to_a_topic_that_is_behind_is_answered_429_until_it_is_not() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("topic_lag_bytes_max", 64 << 10).limit("reader_hold_ms", 60_000).start();
        let mut stopped = stopped_reader(&gateway, "/ws?room=behind");
        let mut publisher = Raw::connect(gateway.port);
        let request = post("/publish?topic=behind", "", &[b'x'; 8192]);
        let (mut taken, mut waited) = (0, false);
        let refused = loop {
            publisher.write(&request);
            let response = publisher.response();
            if response.status == 200 {
                (taken, waited) = (taken + 1, false);
                assert!(taken < 1000, "never refused");
            } else if std::mem::replace(&mut waited, true) {
                // Not only for the moment that a message takes to another shard and to a send buffer.
                break response;
            } else {
                sleep_ms(300);
            }
        };
        assert_eq!(refusal(&refused), (429, "topic_behind".into()), "{refused:?}");
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert!(json(&refused)["error"]["retry_ms"].as_u64().is_some());
        // Other topics are not concerned, and of several the one that is behind says so in its place.
        publisher.write(&post("/publish?topic=free&topic=behind", "", b"x"));
        let mixed = json(&publisher.response());
        assert_eq!((offset(&mixed[0]), mixed[1]["error"]["code"].as_str()), (1, Some("topic_behind")), "{mixed}");
        // What was accepted comes, each once, and what was refused does not.
        for number in 0..taken {
            assert_eq!(stopped.frame().payload.len(), 8192, "message {number} of {taken}");
        }
        eventually(SOON, || {
            publisher.write(&post("/publish?topic=behind", "", b"after"));
            match publisher.response().status {
                200 => Ok(()),
                status => Err(format!("still {status}")),
            }
        });
        stopped.expect_text("after");
    }
}

#[test]
fn publishing_to_a_full_process_is_answered_429() {
    let gateway = gateway()
        .limit("history_messages", 0)
        .limit("history_bytes_max", 1)
        .limit("queued_bytes_max", 256 << 10)
        .limit("reader_hold_ms", 60_000)
        .limit("write_stall_ms", 60_000)
        .start();
    // Each holds less than what is worth ending it for.
    let stopped: Vec<Raw> = (0..40).map(|number| stopped_reader(&gateway, &format!("/ws?room=r{number}"))).collect();
    let mut publisher = Raw::connect(gateway.port);
    let mut refused = None;
    'rounds: for _ in 0..20 {
        for number in 0..stopped.len() {
            publisher.write(&post(&format!("/publish?topic=r{number}"), "", &[b'x'; 20_000]));
            let response = publisher.response();
            if response.status != 200 {
                refused = Some(response);
                break 'rounds;
            }
        }
    }
    let refused = refused.expect("the process is full at some time");
    assert_eq!(refusal(&refused), (429, "over_capacity".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(stopped);
    eventually(SOON, || {
        publisher.write(&post("/publish?topic=a", "", b"x"));
        match publisher.response().status {
            200 => Ok(()),
            status => Err(format!("still {status}")),
        }
    });
}

/// What a page of an allowed origin may read is said on every answer, also on those that refuse.
#[test]
fn pages_of_allowed_origins_can_read_answers_and_errors() {
    let gateway = gateway().env("SHARDCAST_ORIGINS", "https://app.example").start();
    let request = |origin: &str, line: &str, extra: &str, body: &str| {
        let request =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len());
        let mut raw = Raw::connect(gateway.port);
        raw.write(request.as_bytes());
        raw.response()
    };
    let cases = [
        ("POST /publish?topic=a", "", "x", 200),
        ("POST /publish", "", "x", 400),
        ("POST /v1/publish", "", "{", 400),
        ("POST /v1/publish", "", "[]", 200),
        ("PUT /publish?topic=a", "", "x", 405),
        ("PUT /poll?topic=a", "", "x", 405),
        ("GET /poll?topic=a&wait=0", "", "", 200),
        ("GET /poll?topic=a&after=x", "", "", 400),
        ("GET /v1/history?topic=a", "", "", 200),
    ];
    for (line, extra, body, status) in cases {
        let response = request("https://app.example", line, extra, body);
        assert_eq!(response.status, status, "{line}: {response:?}");
        assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"), "{line}: {response:?}");
        assert_eq!(response.header("vary"), Some("Origin"), "{line}");
        let response = request("https://evil.example", line, extra, body);
        assert_eq!(response.header("access-control-allow-origin"), None, "{line}: {response:?}");
        assert!(matches!(response.status, 403 | 405), "{line}: {response:?}");
    }
    for path in ["/publish?topic=a", "/v1/publish", "/poll?topic=a", "/v1/history?topic=a"] {
        let extra = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,idempotency-key\r\n";
        let response = request("https://app.example", &format!("OPTIONS {path}"), extra, "");
        assert_eq!((response.status, response.header("access-control-allow-origin")), (204, Some("https://app.example")), "{path}");
        let methods = response.header("access-control-allow-methods").expect("methods");
        assert!(methods.contains("POST") && methods.contains("GET"), "{methods}");
        let headers = response.header("access-control-allow-headers").expect("headers").to_lowercase();
        assert!(headers.contains("content-type") && headers.contains("idempotency-key"), "{headers}");
        let response = request("https://evil.example", &format!("OPTIONS {path}"), extra, "");
        assert_eq!((response.status, response.header("access-control-allow-origin")), (403, None), "{path}");
    }
    // A client without an origin is no page.
    assert_eq!(raw::http(gateway.port, &post("/publish?topic=a", "", b"x")).header("access-control-allow-origin"), None);
}

#[test]
fn other_methods_are_answered_405_with_what_is_possible() {
    let gateway = gateway().start();
    for method in ["HEAD", "GET", "PUT", "DELETE", "PATCH"] {
        for path in ["/publish?topic=a", "/v1/publish"] {
            let mut raw = Raw::connect(gateway.port);
            raw.write(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
            let response = raw.response_to(method);
            assert_eq!((response.status, response.header("allow")), (405, Some("POST, OPTIONS")), "{method} {path}");
            // Without a body it is kept, and what follows is the next answer.
            raw.write(&post("/publish?topic=a", "", b"x"));
            assert_eq!(raw.response().status, 200, "{method} {path}");
        }
    }
}

/// Until goodbyes are said, what was begun is taken; from then on it is answered, and never silently lost.
#[test]
fn a_publish_that_was_begun_before_the_shutdown_is_answered() {
    for shards in SHARDS {
        let mut gateway = gateway().shards(shards).start();
        let request = post("/publish?topic=a", "", b"hello");
        let mut half: Vec<Raw> = (0..6).map(|_| Raw::connect(gateway.port)).collect();
        for raw in &mut half {
            raw.write(&request[..request.len() - 3]);
        }
        let mut listener = raw::ws(&gateway, "/ws?room=a");
        sleep_ms(50);
        gateway.signal(libc::SIGTERM);
        let mut taken = 0;
        for (number, raw) in half.iter_mut().enumerate() {
            // Some in the time in which messages are still taken, some after it.
            sleep_ms(if number == 3 { 500 } else { 5 });
            raw.write(&request[request.len() - 3..]);
            let response = raw.response();
            match response.status {
                200 => taken += 1,
                503 => {
                    assert_eq!(refusal(&response).1, "draining");
                    assert!(response.header("retry-after").is_some(), "{response:?}");
                }
                _ => panic!("{response:?}"),
            }
            assert!(number < 3 || response.status == 503, "taken long after the goodbyes: {response:?}");
            assert_eq!(response.header("connection"), Some("close"));
            raw.expect_end(SOON);
        }
        let mut came = 0;
        let code = loop {
            let frame = listener.frame();
            if frame.first == FIN | TEXT {
                assert_eq!(frame.payload, b"hello");
                came += 1;
            } else {
                break common::frame::close_code(&frame.payload).0;
            }
        };
        assert_eq!((came, code), (taken, Some(1012)));
        drop(listener);
        assert_eq!(gateway.exit_within(SOON).code(), Some(0));
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    for shards in SHARDS {
        let gateway = gateway()
            .shards(shards)
            .limit("history_messages", 0)
            .limit("reader_hold_ms", 60_000)
            .limit("head_timeout_ms", 1000)
            .limit("body_timeout_ms", 2000)
            .start();
        let before = gateway.descriptors();
        let stopped = stopped_reader(&gateway, "/ws?room=held");
        for _ in 0..8 {
            publish(&gateway, "/publish?topic=held", &[b'x'; 60_000]);
        }
        let whole = post("/publish?topic=v1&topic=v2&topic=v3", "", b"hello");
        let chunked = post_chunked("/publish?topic=v4", b"hello", 2);
        let waits = post("/publish?topic=held&topic=v5&ack=sent", "", b"x");
        for request in [&whole, &chunked, &waits] {
            for cut in [request.len() - 6, request.len() - 1, request.len()] {
                for reset in [false, true] {
                    for pause in [0, 10] {
                        let mut raw = Raw::connect(gateway.port);
                        raw.write(&request[..cut]);
                        sleep_ms(pause);
                        if reset {
                            raw.reset();
                        }
                    }
                }
            }
        }
        drop(stopped);
        eventually(SOON, || {
            let metrics = gateway.metrics();
            let left = (
                metrics.sum("shardcast_connections", &[]),
                gateway.descriptors().saturating_sub(before),
                metrics.sum("shardcast_topics", &[]),
            );
            if left == (0.0, 0, 0.0) { Ok(()) } else { Err(format!("connections, descriptors, topics left: {left:?}")) }
        });
        assert_eq!(publish(&gateway, "/publish?topic=held&ack=sent", b"x")["subscribers"], 0);
    }
}
