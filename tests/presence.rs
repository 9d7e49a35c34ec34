//! Who is in a topic: asked for, and watched.

mod common;

use std::collections::BTreeMap;

use common::events;
use common::foreign;
use common::raw::{self, Raw};
use common::talk::{self, Talker};
use common::{Gateway, SOON, Setup, eventually, gateway};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Who is in a topic, by their connections, and what they call themselves.
type Members = BTreeMap<String, Option<String>>;

fn with_presence() -> Setup {
    gateway().env("SHARDCAST_PRESENCE", "lobby,rooms.*").limit("presence_tick_ms", 20)
}

fn members(told: &Value) -> Members {
    let list = told["members"].as_array().unwrap_or_else(|| panic!("no members: {told}"));
    list.iter().map(|member| (member["conn"].as_str().expect("a conn").to_owned(), member["user"].as_str().map(str::to_owned))).collect()
}

/// The users in an answer, those without a name as a dash, in order.
fn users(told: &Value) -> Vec<String> {
    let mut users: Vec<String> = members(told).into_values().map(|user| user.unwrap_or_else(|| "-".into())).collect();
    users.sort();
    users
}

/// Applies what a watcher is told. Of a crowd it knows nobody.
fn apply(known: &mut Members, told: &Value) {
    match told["type"].as_str() {
        Some("presence") => *known = told.get("members").map_or_else(Members::new, |_| members(told)),
        Some("join") => known.extend(members(told)),
        Some("leave") => known.retain(|conn, _| !members(told).contains_key(conn)),
        _ => panic!("not about presence: {told}"),
    }
    assert_eq!(told["scope"], "node", "{told}");
}

/// A client that watches a topic, and who it has been told is there.
struct Watcher {
    talker: Talker,
    known: Members,
}

impl Watcher {
    fn new(gateway: &Gateway, user: &str, topic: &str) -> Self {
        let mut talker = talk::connect_as(gateway.port, user);
        talker.subscribe_with(topic, json!({"presence": true}));
        let mut watcher = Self { talker, known: Members::new() };
        let first = watcher.talker.expect("presence");
        apply(&mut watcher.known, &first);
        watcher
    }

    /// Reads until those who are there call themselves this.
    fn expect(&mut self, users: &[&str]) {
        let mut users: Vec<&str> = users.to_vec();
        users.sort_unstable();
        loop {
            let mut known: Vec<&str> = self.known.values().map(|user| user.as_deref().unwrap_or("-")).collect();
            known.sort_unstable();
            if known == users {
                return;
            }
            let told = self.talker.hear();
            apply(&mut self.known, &told);
            assert_eq!(told["count"], self.known.len() as u64, "{told}");
        }
    }
}

fn get(gateway: &Gateway, target: &str) -> raw::Response {
    raw::http(gateway.port, format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
}

#[test]
fn who_watches_is_told_who_is_there_and_who_comes_and_goes_on_every_transport() {
    let gateway = with_presence().start();
    // Some of these topics have their home on the watcher's shard, some on the other one.
    for topic in ["lobby", "rooms.1", "rooms.2", "rooms.3"] {
        let mut watcher = Watcher::new(&gateway, "wanda", topic);
        watcher.expect(&["wanda"]);
        let socket = foreign::connect(&gateway, &format!("/ws?room={topic}&user=raw"));
        watcher.expect(&["wanda", "raw"]);
        let mut stream = events::open(gateway.port, &format!("/events?topic={topic}&topic=other&user=sse"));
        let talker = {
            let mut talker = talk::connect_as(gateway.port, "json%20%D1%8F");
            talker.subscribe(topic);
            talker
        };
        let nameless = foreign::connect(&gateway, &format!("/ws?room={topic}"));
        watcher.expect(&["wanda", "raw", "sse", "json я", "-"]);
        assert_eq!(watcher.known.get(talker.welcome["conn"].as_str().expect("a conn")), Some(&Some("json я".into())));
        socket.leave();
        drop(talker);
        watcher.expect(&["wanda", "sse", "-"]);
        drop(nameless);
        raw::http(gateway.port, format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").as_bytes());
        assert_eq!(stream.event().data, "x");
        drop(stream);
        loop {
            let told = watcher.talker.hear();
            if told["type"] != "message" {
                apply(&mut watcher.known, &told);
            }
            if watcher.known.len() == 1 {
                break;
            }
        }
    }
}

/// Seen when the whole was read once more: who was first given what was before it came, was in no roster.
#[test]
fn who_comes_back_with_a_position_is_there_too() {
    let gateway = with_presence().start();
    for topic in ["lobby", "rooms.1", "rooms.2", "rooms.3"] {
        raw::http(gateway.port, format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").as_bytes());
        let mut watcher = Watcher::new(&gateway, "wanda", topic);
        let mut socket = foreign::connect(&gateway, &format!("/ws?room={topic}&last=1&user=raw"));
        socket.expect_text("x");
        let _stream = events::open(gateway.port, &format!("/events?topic={topic}&last=1&user=sse"));
        let mut talker = talk::connect_as(gateway.port, "json");
        talker.subscribe_with(topic, json!({"last": 1}));
        watcher.expect(&["wanda", "raw", "sse", "json"]);
        socket.leave();
        watcher.expect(&["wanda", "sse", "json"]);
    }
}

#[test]
fn who_asks_is_answered_by_http_and_in_json_without_being_there() {
    let gateway = with_presence().start();
    let mut asker = talk::connect(gateway.port);
    for topic in ["lobby", "rooms.a", "rooms.b"] {
        let answer = get(&gateway, &format!("/v1/presence?topic={topic}"));
        let empty: Value = serde_json::from_str(&answer.text()).expect("JSON");
        assert_eq!((answer.status, empty), (200, json!({"topic": topic, "count": 0, "members": [], "scope": "node"})));
        let _anna = foreign::connect(&gateway, &format!("/ws?room={topic}&user=anna"));
        let ben = foreign::connect(&gateway, &format!("/ws?room={topic}&user=ben"));
        eventually(SOON, || {
            asker.say(json!({"type": "presence", "id": 5, "topic": topic}));
            let told = asker.expect("presence");
            assert_eq!((&told["id"], &told["topic"]), (&5.into(), &topic.into()), "{told}");
            (users(&told) == ["anna", "ben"]).then_some(()).ok_or_else(|| told.to_string())
        });
        ben.leave();
        eventually(SOON, || {
            let answer: Value = serde_json::from_str(&get(&gateway, &format!("/v1/presence?topic={topic}")).text()).expect("JSON");
            (users(&answer) == ["anna"] && answer["count"] == 1).then_some(()).ok_or_else(|| answer.to_string())
        });
    }
}

#[test]
fn where_presence_is_off_nobody_is_told_and_the_answer_says_so() {
    let gateway = with_presence().start();
    let mut talker = talk::connect_as(gateway.port, "anna");
    talker.say(json!({"type": "presence", "id": 1, "topic": "private"}));
    let error = talker.expect_error("no_presence");
    assert!(error["id"] == 1 && error["message"].as_str().is_some_and(|message| message.contains("`presence`")), "{error}");
    talker.say(json!({"type": "subscribe", "id": 2, "topic": "private", "presence": true}));
    talker.expect_error("no_presence");
    talker.subscribe("private");
    let answer = get(&gateway, "/v1/presence?topic=private");
    assert!(answer.status == 403 && answer.text().contains(r#""code":"no_presence""#), "{answer:?}");
    for (target, expect) in [
        ("/v1/presence", "name one topic"),
        ("/v1/presence?topic=lobby&topic=rooms.1", "name one topic"),
        ("/ws?room=lobby&user=", "user is 0 bytes"),
        ("/events?topic=lobby&user=%0A", "control character"),
    ] {
        let request =
            if target.starts_with("/ws") { raw::upgrade(target, "") } else { format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n") };
        let answer = raw::http(gateway.port, request.as_bytes());
        assert!(answer.status == 400 && answer.text().contains(expect), "{target}: {answer:?}");
    }
}

#[test]
fn a_crowd_is_counted_and_not_named_until_it_is_a_few_again() {
    let gateway = with_presence().limit("presence_members_max", 4).start();
    let mut watcher = Watcher::new(&gateway, "wanda", "lobby");
    let mut crowd: Vec<_> = (0..20).map(|_| foreign::connect(&gateway, "/ws?room=lobby&user=many")).collect();
    loop {
        let told = watcher.talker.hear();
        if told["count"] == 21 {
            assert_eq!((&told["type"], told.get("members")), (&"presence".into(), None), "{told}");
            break;
        }
    }
    let answer: Value = serde_json::from_str(&get(&gateway, "/v1/presence?topic=lobby").text()).expect("JSON");
    assert_eq!(answer, json!({"topic": "lobby", "count": 21, "scope": "node"}));
    let ann = foreign::connect(&gateway, "/ws?room=lobby&user=ann");
    crowd.clear();
    loop {
        let told = watcher.talker.hear();
        assert_eq!(told["type"], "presence", "while they are many none is named: {told}");
        if told["count"] == 2 {
            assert_eq!(users(&told), ["ann", "wanda"]);
            watcher.known = members(&told);
            break;
        }
    }
    ann.leave();
    watcher.expect(&["wanda"]);
}

#[test]
fn those_who_come_at_once_are_told_of_at_once() {
    let gateway = with_presence().limit("presence_tick_ms", 500).start();
    let mut watcher = Watcher::new(&gateway, "wanda", "lobby");
    let mut sockets: Vec<Raw> = (0..100).map(|_| Raw::connect(gateway.port)).collect();
    sockets.iter_mut().for_each(|socket| socket.write(raw::upgrade("/ws?room=lobby&user=many", "").as_bytes()));
    let mut changes = 0;
    while watcher.known.len() < 101 {
        let told = watcher.talker.hear();
        apply(&mut watcher.known, &told);
        changes += 1;
    }
    // A machine that is busy may spread them over some ticks.
    assert!(changes <= 20, "{changes} changes for a hundred who came together");
}

#[test]
fn who_has_unsubscribed_is_told_no_more_and_is_not_there() {
    let gateway = with_presence().start();
    let mut watcher = Watcher::new(&gateway, "wanda", "lobby");
    let mut other = Watcher::new(&gateway, "otto", "lobby");
    watcher.expect(&["wanda", "otto"]);
    watcher.talker.say(json!({"type": "unsubscribe", "id": 9, "topic": "lobby"}));
    while watcher.talker.hear()["type"] != "ok" {}
    other.expect(&["otto"]);
    let anna = foreign::connect(&gateway, "/ws?room=lobby&user=anna");
    other.expect(&["otto", "anna"]);
    anna.leave();
    other.expect(&["otto"]);
    watcher.talker.say(json!({"type": "ping", "id": 1}));
    assert_eq!(watcher.talker.hear(), json!({"type": "pong", "id": 1}));
    drop(other);
    drop(watcher);
    gateway.wait_for_connections(0);
    gateway.wait_for_no_topics();
}

#[test]
fn after_a_hand_over_watchers_are_told_anew_who_is_there() {
    let mut gateway = with_presence().start();
    let mut watchers: Vec<Watcher> = ["lobby", "rooms.1"].into_iter().map(|topic| Watcher::new(&gateway, "wanda", topic)).collect();
    let sockets: Vec<_> = ["lobby", "rooms.1"].map(|topic| foreign::connect(&gateway, &format!("/ws?room={topic}&user=anna"))).into();
    let _streams: Vec<_> = ["lobby", "rooms.1"].map(|topic| events::open(gateway.port, &format!("/events?topic={topic}&user=sse"))).into();
    watchers.iter_mut().for_each(|watcher| watcher.expect(&["wanda", "anna", "sse"]));
    gateway.hand_over();
    for watcher in &mut watchers {
        let anew = loop {
            let told = watcher.talker.hear();
            if told["type"] == "presence" {
                break told;
            }
        };
        apply(&mut watcher.known, &anew);
        watcher.expect(&["wanda", "anna", "sse"]);
    }
    sockets.into_iter().for_each(foreign::Client::leave);
    watchers.iter_mut().for_each(|watcher| watcher.expect(&["wanda", "sse"]));
}

/// Whatever comes and goes, and in which order it is told: in the end every watcher knows who is there.
#[test]
fn every_watcher_knows_in_the_end_who_is_there() {
    let seed = common::seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let gateway = with_presence().shards(3).limit("presence_members_max", 12).limit("presence_tick_ms", 10).start();
    let topics = ["lobby", "rooms.1", "rooms.2"];
    let mut watchers: Vec<(&str, Watcher)> = topics.map(|topic| (topic, Watcher::new(&gateway, "w", topic))).into();
    let mut there: Vec<(&str, Raw)> = Vec::new();
    for _ in 0..150 {
        let topic = topics[random.random_range(0..topics.len())];
        match random.random_range(0..10) {
            0..5 => {
                let mut socket = Raw::connect(gateway.port);
                let path = if random.random() { format!("/ws?room={topic}&user=u") } else { format!("/events?topic={topic}&user=u") };
                let request =
                    if path.starts_with("/ws") { raw::upgrade(&path, "") } else { format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n") };
                socket.write(request.as_bytes());
                there.push((topic, socket));
            }
            5..9 if !there.is_empty() => drop(there.swap_remove(random.random_range(0..there.len()))),
            _ if watchers.len() < 6 => watchers.push((topic, Watcher::new(&gateway, "w", topic))),
            _ => drop(watchers.swap_remove(random.random_range(0..watchers.len()))),
        }
    }
    // The last ones, so that nobody is told by number alone.
    for topic in topics {
        while there.iter().filter(|(other, _)| *other == topic).count() > 3 {
            let place = there.iter().position(|(other, _)| *other == topic).expect("counted");
            there.swap_remove(place);
        }
    }
    for (topic, watcher) in &mut watchers {
        let mut expected = Vec::new();
        eventually(SOON, || {
            let answer: Value = serde_json::from_str(&get(&gateway, &format!("/v1/presence?topic={topic}")).text()).expect("JSON");
            expected = if answer.get("members").is_some() { users(&answer) } else { Vec::new() };
            let sockets = there.iter().filter(|(other, _)| other == topic).count();
            (expected.iter().filter(|user| *user == "u").count() == sockets)
                .then_some(())
                .ok_or_else(|| format!("{sockets} are there, and {answer}"))
        });
        watcher.talker.say(json!({"type": "presence", "id": "now", "topic": topic}));
        let now = loop {
            let told = watcher.talker.hear();
            if told["id"] == "now" {
                break members(&told);
            }
            apply(&mut watcher.known, &told);
        };
        // What is told by ticks may still be on its way.
        while watcher.known != now {
            let told = watcher.talker.hear();
            apply(&mut watcher.known, &told);
        }
    }
}
