//! `GET /v1/topics`: every topic once, over all shards, in pages, and only where it is allowed.

mod common;

use std::collections::BTreeMap;

use common::events;
use common::raw::{Raw, Response};
use common::{Gateway, SOON, eventually, gateway, raw};
use serde_json::Value;

const SHARDS: [u16; 2] = [1, 3];

fn get(raw: &mut Raw, path: &str) -> (u16, Value) {
    raw.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let response = raw.response();
    (response.status, json(&response))
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

fn publish(gateway: &Gateway, topic: &str) {
    let request = format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(raw::http(gateway.port, request.as_bytes()).status, 200);
}

/// All pages, one after the other, by name.
fn all(raw: &mut Raw, query: &str) -> BTreeMap<String, Value> {
    let mut topics = BTreeMap::new();
    let mut after = String::new();
    loop {
        let (status, page) = get(raw, &format!("/v1/topics?{query}{after}"));
        assert_eq!(status, 200, "{page}");
        for topic in page["topics"].as_array().expect("a list") {
            let name = topic["topic"].as_str().expect("a name").to_owned();
            assert!(topics.insert(name, topic.clone()).is_none(), "twice: {topic}");
        }
        let Some(next) = page["next"].as_str() else { return topics };
        after = format!("&after={next}");
    }
}

#[test]
fn every_topic_is_listed_once_with_its_members_and_messages() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).start();
        for number in 0..50 {
            publish(&gateway, &format!("t{number}"));
        }
        publish(&gateway, "t7");
        let _members = [raw::ws(&gateway, "/ws?room=t7"), raw::ws(&gateway, "/ws?room=t7"), raw::ws(&gateway, "/ws?room=quiet")];
        let _stream = events::open(gateway.port, "/events?topic=t7&topic=t8");
        let mut raw = Raw::connect(gateway.port);
        for limit in ["limit=1&", "limit=7&", ""] {
            // How many members a topic has elsewhere is known a moment later.
            eventually(SOON, || {
                let topics = all(&mut raw, limit);
                assert_eq!(topics.len(), 51, "{topics:?}");
                let of = |name: &str, key: &str| topics[name][key].as_u64();
                let seen = (of("t7", "subscribers"), of("t8", "subscribers"), of("quiet", "subscribers"), of("t9", "subscribers"));
                if seen == (Some(3), Some(1), Some(1), Some(0)) { Ok(()) } else { Err(format!("{seen:?}")) }
            });
        }
        let topics = all(&mut raw, "");
        assert_eq!((topics["t7"]["messages"].as_u64(), topics["t8"]["messages"].as_u64()), (Some(2), Some(1)));
        assert!(topics["t7"]["pos"].as_str().expect("a position").ends_with(".2"), "{}", topics["t7"]);
        assert_eq!((&topics["quiet"]["pos"], topics["quiet"]["messages"].as_u64()), (&Value::Null, Some(0)));
    }
}

#[test]
fn a_prefix_and_a_limit_bound_the_answer() {
    let gateway = gateway().shards(2).limit("topics_listed", 5).start();
    for number in 0..20 {
        publish(&gateway, &format!("a{number}"));
        publish(&gateway, &format!("b%22{number}"));
    }
    let mut raw = Raw::connect(gateway.port);
    assert_eq!(all(&mut raw, "prefix=b%22").len(), 20);
    assert_eq!(all(&mut raw, "prefix=nothing").len(), 0);
    let (_, page) = get(&mut raw, "/v1/topics?limit=1000");
    assert_eq!(page["topics"].as_array().map(Vec::len), Some(5), "{page}");
    let (_, page) = get(&mut raw, "/v1/topics?after=65535.4294967295");
    assert_eq!((page["topics"].as_array().map(Vec::len), &page["next"]), (Some(0), &Value::Null));
}

#[test]
fn what_cannot_be_answered_is_refused_with_the_reason() {
    let gateway = gateway().start();
    for (path, code, word) in [("/v1/topics?after=x", 400, "after=x"), ("/v1/topics?limit=many", 400, "limit=many")] {
        let (status, body) = get(&mut Raw::connect(gateway.port), path);
        assert_eq!(status, code, "{path}: {body}");
        assert!(body["error"]["message"].as_str().expect("a message").contains(word), "{path}: {body}");
    }
    let response = raw::http(gateway.port, b"POST /v1/topics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((response.status, response.header("allow")), (405, Some("GET, OPTIONS")));
}

#[test]
fn topics_may_be_kept_to_those_who_know_them() {
    let gateway = gateway().limit("topics_listed", 0).start();
    let (status, body) = get(&mut Raw::connect(gateway.port), "/v1/topics");
    assert_eq!(status, 403, "{body}");
    assert!(body["error"]["message"].as_str().expect("a message").contains("limits.topics_listed"), "{body}");
}
