//! Subscriptions to all topics whose names begin with something, in `shardcast.v1.json`.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::raw;
use common::talk::{self, Talker};
use common::{Gateway, Setup, gateway};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

fn with_wildcards() -> Setup {
    gateway().env("SHARDCAST_WILDCARDS", "true")
}

fn post(gateway: &Gateway, topic: &str, data: &str) {
    let request = format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{data}", data.len());
    assert_eq!(raw::http(gateway.port, request.as_bytes()).status, 200);
}

/// Subscribes to a pattern; the topics that were subscribed to by then.
fn subscribe(talker: &mut Talker, pattern: &str) -> BTreeSet<String> {
    talker.say(json!({"type": "subscribe", "id": "w", "pattern": pattern}));
    let mut topics = BTreeSet::new();
    loop {
        let heard = talker.hear();
        match heard["type"].as_str() {
            Some("subscribed") => assert!(topics.insert(heard["topic"].as_str().expect("a topic").to_owned()), "{heard}"),
            Some("message") => {}
            _ => {
                assert_eq!(heard, json!({"type": "ok", "id": "w"}));
                return topics;
            }
        }
    }
}

/// The next message; what is told of subscriptions before it is checked.
fn message(talker: &mut Talker) -> Value {
    loop {
        let heard = talker.hear();
        match heard["type"].as_str() {
            Some("message") => return heard,
            _ => assert_eq!((&heard["type"], heard.get("id")), (&"subscribed".into(), None), "{heard}"),
        }
    }
}

#[test]
fn topics_that_there_are_and_topics_that_come_to_be_are_heard_from_their_first_message_on() {
    let gateway = with_wildcards().start();
    let there: Vec<String> = (0..8).map(|number| format!("prices.{number}")).collect();
    there.iter().chain(["news.1".to_owned()].iter()).for_each(|topic| post(&gateway, topic, "before"));
    let mut talker = talk::connect(gateway.port);
    assert_eq!(subscribe(&mut talker, "prices.*"), there.iter().cloned().collect(), "all that there are, on both shards");
    for number in 0..16 {
        post(&gateway, &format!("prices.{number}"), &format!("first of {number}"));
        post(&gateway, "news.1", "not meant");
        post(&gateway, &format!("news.new.{number}"), "not meant either");
    }
    let mut heard: BTreeMap<String, Value> = BTreeMap::new();
    while heard.len() < 16 {
        let message = message(&mut talker);
        let before = heard.insert(message["topic"].as_str().expect("a topic").to_owned(), message["data"].clone());
        assert_eq!(before, None, "once: {message}");
    }
    for number in 0..16 {
        assert_eq!(heard.get(&format!("prices.{number}")), Some(&format!("first of {number}").into()));
    }
    talker.expect_silence(200);
}

#[test]
fn who_unsubscribes_from_a_pattern_keeps_what_another_one_or_a_name_has_brought() {
    let gateway = with_wildcards().start();
    for topic in ["a.b.1", "a.c.1", "a.c.2"] {
        post(&gateway, topic, "before");
    }
    let mut talker = talk::connect(gateway.port);
    talker.subscribe("a.c.2");
    assert_eq!(subscribe(&mut talker, "a.*").len(), 2, "one it has by name");
    assert!(subscribe(&mut talker, "a.b.*").is_empty());
    talker.say(json!({"type": "unsubscribe", "id": 1, "pattern": "a.*"}));
    assert_eq!(talker.hear(), json!({"type": "ok", "id": 1}));
    for topic in ["a.b.1", "a.c.1", "a.c.2", "a.c.3", "a.b.2"] {
        post(&gateway, topic, topic);
    }
    let heard: BTreeSet<String> = (0..3).map(|_| message(&mut talker)["topic"].as_str().expect("a topic").to_owned()).collect();
    assert_eq!(heard, ["a.b.1", "a.b.2", "a.c.2"].map(str::to_owned).into());
    talker.expect_silence(200);
    talker.say(json!({"type": "unsubscribe", "id": 2, "pattern": "a.*"}));
    talker.expect_error("not_subscribed");
    talker.say(json!({"type": "subscribe", "id": 3, "pattern": "a.b.*"}));
    talker.expect_error("already_subscribed");
}

#[test]
fn a_client_that_has_gone_leaves_nothing_behind() {
    let gateway = with_wildcards().limit("history_messages", 0).start();
    let mut talkers: Vec<Talker> = (0..10).map(|_| talk::connect(gateway.port)).collect();
    for talker in &mut talkers {
        subscribe(talker, "rooms.*");
        subscribe(talker, "*");
    }
    (0..4).for_each(|number| post(&gateway, &format!("rooms.{number}"), "x"));
    drop(talkers);
    gateway.wait_for_connections(0);
    gateway.wait_for_no_topics();
}

#[test]
fn more_than_may_be_is_said_once_and_where_it_is_off_that_is_said() {
    let gateway = with_wildcards().limit("wildcards_max", 2).limit("wildcard_topics_max", 3).start();
    let mut talker = talk::connect(gateway.port);
    assert!(subscribe(&mut talker, "a.*").is_empty() && subscribe(&mut talker, "b.*").is_empty());
    talker.say(json!({"type": "subscribe", "pattern": "c.*"}));
    assert!(talker.expect_error("too_many_topics")["message"].as_str().is_some_and(|text| text.contains("wildcards_max")));
    (0..6).for_each(|number| post(&gateway, &format!("a.{number}"), "x"));
    let mut kinds: Vec<String> = (0..7).map(|_| talker.hear()["type"].as_str().expect("a type").to_owned()).collect();
    kinds.sort();
    assert_eq!(kinds, ["error", "message", "message", "message", "subscribed", "subscribed", "subscribed"]);
    talker.expect_silence(200);

    let gateway = common::gateway().start();
    let mut talker = talk::connect(gateway.port);
    talker.say(json!({"type": "subscribe", "id": 1, "pattern": "a.*"}));
    let error = talker.expect_error("no_wildcards");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("`wildcards`")), "{error}");
}

#[test]
fn patterns_go_on_in_the_next_process() {
    let mut gateway = with_wildcards().start();
    post(&gateway, "a.1", "before");
    let mut talker = talk::connect(gateway.port);
    subscribe(&mut talker, "a.*");
    gateway.hand_over();
    for topic in ["a.1", "a.2", "b.1", "a.3"] {
        post(&gateway, topic, topic);
    }
    let heard: BTreeSet<String> = (0..3).map(|_| message(&mut talker)["data"].as_str().expect("text").to_owned()).collect();
    assert_eq!(heard, ["a.1", "a.2", "a.3"].map(str::to_owned).into());
    talker.say(json!({"type": "unsubscribe", "id": 1, "pattern": "a.*"}));
    assert_eq!(talker.hear(), json!({"type": "ok", "id": 1}));
    post(&gateway, "a.1", "not heard");
    talker.expect_silence(200);
}

/// Topics come to be and are spoken in while patterns come and go: from its answer on every pattern's client hears everything, each topic in order and once.
#[test]
fn from_the_answer_on_everything_is_heard_once_and_in_order() {
    let seed = common::seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let gateway = with_wildcards().shards(3).start();
    let patterns = ["*", "a.*", "b.*", "a.1*"];
    let mut talkers: Vec<(&str, Talker, BTreeMap<String, u32>)> = Vec::new();
    let mut said: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..200 {
        if random.random_range(0..10) == 0 && talkers.len() < 12 {
            let pattern = patterns[random.random_range(0..patterns.len())];
            let mut talker = talk::connect(gateway.port);
            subscribe(&mut talker, pattern);
            talkers.push((pattern, talker, said.clone()));
        }
        let topic = format!("{}.{}", ["a", "b"][random.random_range(0..2)], random.random_range(0..15));
        let number = said.entry(topic.clone()).or_default();
        post(&gateway, &topic, &number.to_string());
        *number += 1;
    }
    for (pattern, talker, heard) in &mut talkers {
        let matches = |topic: &str| topic.starts_with(pattern.trim_end_matches('*'));
        let wanted: u32 = said.iter().filter(|(topic, _)| matches(topic)).map(|(topic, all)| all - heard.get(topic).unwrap_or(&0)).sum();
        for _ in 0..wanted {
            let message = message(talker);
            let topic = message["topic"].as_str().expect("a topic");
            let next = heard.entry(topic.to_owned()).or_default();
            assert!(matches(topic), "{pattern}: {message}");
            assert_eq!(message["data"], next.to_string().as_str(), "{pattern}: {message}");
            *next += 1;
        }
    }
}
