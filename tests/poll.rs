//! Long polls and reads of history: nothing is lost or repeated between two requests, however they fall.

mod common;

use std::time::Duration;

use common::raw::{Raw, Response};
use common::{Gateway, SOON, eventually, gateway, now, sleep_ms};
use serde_json::Value;

const SHARDS: [u16; 2] = [1, 3];

fn publish(raw: &mut Raw, topic: &str, body: &[u8]) -> String {
    raw.write(format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    raw.write(body);
    let response = raw.response();
    assert_eq!(response.status, 200, "{response:?}");
    json(&response)["pos"].as_str().expect("a position").to_owned()
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

fn get(raw: &mut Raw, path: &str) -> Response {
    raw.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    raw.response()
}

/// The answer to a poll: its messages as topic and data, and where the next one goes on.
fn ask(raw: &mut Raw, path: &str) -> (Vec<(String, String)>, String) {
    let response = get(raw, path);
    assert_eq!(response.status, 200, "{path}: {response:?}");
    let body = json(&response);
    let message = |message: &Value| {
        let text = |name: &str| message[name].as_str().unwrap_or_else(|| panic!("no {name} in {message}")).to_owned();
        (text("topic"), text("data"))
    };
    (body["messages"].as_array().expect("messages").iter().map(message).collect(), body["next"].as_str().expect("next").to_owned())
}

fn data(messages: Vec<(String, String)>) -> Vec<String> {
    messages.into_iter().map(|(_, data)| data).collect()
}

fn is_refused(gateway: &Gateway, path: &str) {
    let response = get(&mut Raw::connect(gateway.port), path);
    assert_eq!((response.status, json(&response)["error"]["code"].as_str()), (400, Some("bad_request")), "{path}: {response:?}");
}

#[test]
fn a_poll_waits_for_the_first_message() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let mut publisher = Raw::connect(gateway.port);
        let mut poller = Raw::connect(gateway.port);
        poller.write(b"GET /poll?topic=a&topic=b HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(!poller.answered_within(Duration::from_millis(300)), "answered without a message");
        publish(&mut publisher, "b", b"now");
        let body = json(&poller.response());
        assert_eq!((body["messages"][0]["topic"].as_str(), body["messages"][0]["data"].as_str()), (Some("b"), Some("now")), "{body}");
    }
}

#[test]
fn a_poll_without_messages_ends_after_its_time() {
    let gateway = gateway().limit("poll_wait_ms", 1000).start();
    let mut raw = Raw::connect(gateway.port);
    for (wait, from, to) in [("0", 0, 500), ("1", 900, 3000), ("600", 900, 3000), ("18446744073709551615", 900, 3000)] {
        let begun = now();
        let (messages, next) = ask(&mut raw, &format!("/poll?topic=a&wait={wait}"));
        let took = begun.elapsed().as_millis();
        assert!(messages.is_empty() && (from..to).contains(&took), "wait={wait} took {took} ms");
        assert!(next.ends_with(".0"), "{next}");
    }
}

/// Nothing is lost between two polls, and nothing comes twice, while a publisher goes on.
#[test]
fn a_loop_of_polls_gets_what_was_published_once_and_in_order() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("history_messages", 10_000).start();
        let port = gateway.port;
        let topics = ["a", "b", "c", "d"];
        let query = "topic=a&topic=b&topic=c&topic=d";
        let mut poller = Raw::connect(port);
        let (_, mut next) = ask(&mut poller, &format!("/poll?{query}&wait=0"));
        let publisher = std::thread::spawn(move || {
            let mut raw = Raw::connect(port);
            for number in 0..800 {
                publish(&mut raw, topics[number % 4], format!("n{number}").as_bytes());
            }
        });
        let mut got: [Vec<String>; 4] = Default::default();
        while got.iter().map(Vec::len).sum::<usize>() < 800 {
            let (messages, then) = ask(&mut poller, &format!("/poll?{query}&after={next}&wait=5"));
            assert!(!messages.is_empty(), "nothing in 5 s after {}", got.iter().map(Vec::len).sum::<usize>());
            for (topic, data) in messages {
                got[topics.iter().position(|has| *has == topic).expect("one of ours")].push(data);
            }
            next = then;
        }
        publisher.join().expect("it published all");
        for (topic, got) in got.iter().enumerate() {
            let expect: Vec<String> = (topic..800).step_by(4).map(|number| format!("n{number}")).collect();
            assert_eq!(*got, expect, "topic {topic} on {shards} shards");
        }
        assert!(ask(&mut poller, &format!("/poll?{query}&after={next}&wait=0")).0.is_empty());
    }
}

#[test]
fn after_and_last_say_where_a_read_begins() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let mut raw = Raw::connect(gateway.port);
        let positions: Vec<String> = (1..=5).map(|number| publish(&mut raw, "a", format!("m{number}").as_bytes())).collect();
        for (query, first) in [
            ("&after=earliest", 1),
            ("&after=latest", 6),
            ("&after=-60s", 1),
            ("&last=2", 4),
            ("&last=0", 6),
            (&*format!("&after={}", positions[2]), 4),
            (&*format!("&after={}", positions[4]), 6),
        ] {
            let expect: Vec<String> = (first..=5).map(|number| format!("m{number}")).collect();
            for path in ["/poll", "/v1/history"] {
                let (messages, next) = ask(&mut raw, &format!("{path}?topic=a&wait=0{query}"));
                assert_eq!((data(messages), &next), (expect.clone(), &positions[4]), "{path} {query} on {shards} shards");
            }
        }
        assert!(ask(&mut raw, "/poll?topic=a&wait=0").0.is_empty(), "a poll begins with what comes");
        assert_eq!(ask(&mut raw, "/v1/history?topic=a").0.len(), 5, "a read begins with what there is");
        for query in
            ["", "?topic=", "?topic=a&after=x", "?topic=a&last=-1", "?topic=a&after=earliest&last=1", "?topic=a&limit=x", "?topic=a&wait=x"]
        {
            is_refused(&gateway, &format!("/poll{query}"));
            is_refused(&gateway, &format!("/v1/history{query}"));
        }
    }
    let gateway = gateway().limit("history_messages", 0).start();
    is_refused(&gateway, "/poll?topic=a");
    is_refused(&gateway, "/v1/history?topic=a");
}

#[test]
fn what_is_not_kept_any_more_is_a_gap() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("history_messages", 4).start();
        let mut raw = Raw::connect(gateway.port);
        let first = publish(&mut raw, "a", b"m0");
        (1..40).for_each(|number| drop(publish(&mut raw, "a", format!("m{number}").as_bytes())));
        let epoch = first.split('.').next().expect("an epoch");
        for (after, reason) in [(first.clone(), "too_old"), (format!("{epoch}.1000"), "unknown"), ("0.1".to_owned(), "restart")] {
            let body = json(&get(&mut raw, &format!("/poll?topic=a&after={after}&wait=0")));
            let gap = &body["messages"][0];
            assert_eq!((gap["topic"].as_str(), gap["gap"]["reason"].as_str()), (Some("a"), Some(reason)), "{after}: {body}");
            assert_eq!(gap["gap"]["from"], after, "{body}");
            let messages = body["messages"].as_array().expect("messages");
            assert_eq!(messages.last().map(|last| &last["data"]), Some(&Value::from("m39")), "{body}");
            let next = body["next"].as_str().expect("next");
            assert!(ask(&mut raw, &format!("/poll?topic=a&after={next}&wait=0")).0.is_empty(), "{body}");
        }
    }
}

#[test]
fn pages_of_history_lose_and_repeat_nothing() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("history_messages", 1000).start();
        let mut raw = Raw::connect(gateway.port);
        // More than one answer, and more than one piece from a topic's home.
        let expect: Vec<String> = (0..60).map(|number| format!("{number}-{}", "x".repeat(10_000))).collect();
        for message in &expect {
            publish(&mut raw, "big", message.as_bytes());
        }
        for limit in ["", "&limit=1", "&limit=7", "&limit=1000"] {
            let (mut got, mut next) = (Vec::new(), "earliest".to_owned());
            loop {
                let (messages, then) = ask(&mut raw, &format!("/v1/history?topic=big&topic=none&after={next}{limit}"));
                let bytes: usize = messages.iter().map(|(_, data)| data.len()).sum();
                assert!(bytes <= 256 * 1024, "{bytes} in one answer");
                assert!(limit != "&limit=7" || messages.len() <= 7);
                got.extend(data(messages));
                if then == next {
                    break;
                }
                next = then;
            }
            assert!(got == expect, "{} messages of {} with {limit:?} on {shards} shards", got.len(), expect.len());
        }
    }
}

#[test]
fn a_pipelined_request_waits_for_the_poll_before_it() {
    let gateway = gateway().start();
    let mut poller = Raw::connect(gateway.port);
    poller.write(b"GET /poll?topic=a HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!poller.answered_within(Duration::from_millis(200)));
    publish(&mut Raw::connect(gateway.port), "a", b"x");
    assert_eq!(json(&poller.response())["messages"][0]["data"], "x");
    assert_eq!(poller.response().text(), "ok\n");
}

#[test]
fn pollers_that_leave_leave_nothing_behind() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        let before = gateway.descriptors();
        for number in 0..40 {
            let mut raw = Raw::connect(gateway.port);
            raw.write(format!("GET /poll?topic=t{number}&topic=u HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
            sleep_ms(number % 4);
            if number % 2 == 0 {
                raw.reset();
            }
        }
        gateway.wait_for_no_topics();
        eventually(SOON, || match gateway.descriptors().saturating_sub(before) {
            0 => Ok(()),
            left => Err(format!("{left} descriptors are left")),
        });
        let mut raw = Raw::connect(gateway.port);
        raw.write(b"POST /publish?topic=u&ack=sent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(json(&raw.response())["subscribers"], 0);
    }
}
