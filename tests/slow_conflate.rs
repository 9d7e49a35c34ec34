//! Readers that are slower than a topic whose messages replace each other: of what waits they get the newest of each key, in the topic's order, and are told
//! what is missing; and keys go wherever messages do.

mod common;

use std::collections::HashMap;

use common::events::{self, Reader, SHARDS, offset, shards};
use common::frame::{BINARY, CLOSE, FIN};
use common::nats::NatsServer;
use common::raw::{self, Raw};
use common::talk::{self, Talker};
use common::{Gateway, SLOW_CONSUMER, SOON, Scratch, Setup, eventually, gateway, now};
use serde_json::{Value, json};

const SOFT: u64 = 32 << 10;
const KEYS: u64 = 7;

fn setup(count: u16) -> Setup {
    let setup = shards(count).env("SHARDCAST_SLOW", "quotes* conflate").limit("message_bytes_max", 16 << 10).limit("linger_ms", 300);
    // Before a reader is known to be slow its publishers would be told to wait.
    let setup = setup.limit("topic_lag_bytes_max", 64 << 20);
    setup.limit("queue_soft_bytes", SOFT).limit("queue_bytes_max", 4 * SOFT).limit("write_stall_ms", 60_000)
}

fn drops(gateway: &Gateway) -> u64 {
    gateway.metrics().sum("shardcast_drops_total", &[("reason", "conflate")]) as u64
}

/// Publishes numbered values of a few keys, and hears them: no topic is ever behind for its sake.
struct Publisher {
    talker: Talker,
    topic: String,
    sent: u64,
    /// The newest value of each key.
    values: HashMap<String, u64>,
}

impl Publisher {
    fn join(gateway: &Gateway, topic: &str) -> Self {
        let mut talker = talk::connect(gateway.port);
        talker.subscribe(topic);
        Self { talker, topic: topic.to_owned(), sent: 0, values: HashMap::new() }
    }

    /// The next value, of the key whose turn it is, out and back.
    fn publish(&mut self) {
        // Some keys change more often than others.
        let key = format!("key {}", (self.sent * self.sent) % KEYS);
        self.publish_to(&key);
    }

    fn publish_to(&mut self, key: &str) {
        self.sent += 1;
        self.say(Some(key));
        self.values.insert(key.to_owned(), self.sent);
    }

    fn say(&mut self, key: Option<&str>) {
        let data = format!("{} {}", self.sent, "x".repeat(2000));
        self.talker.say(json!({"type": "publish", "topic": self.topic, "data": data, "key": key}));
        let heard = self.talker.expect_message(&self.topic, data);
        assert_eq!(heard["key"].as_str(), key, "a key goes with its message");
    }

    /// Publishes so many, once a reader that does not read is known to be slow.
    fn publish_many(&mut self, count: u64) {
        let until = now() + std::time::Duration::from_millis(150);
        while now() < until {
            self.publish();
        }
        for _ in 0..count {
            self.publish();
        }
    }
}

/// What a reader has been given of one topic.
#[derive(Default, Debug)]
struct Course {
    at: u64,
    /// Up to here messages may be missing between those that come.
    until: u64,
    missing: u64,
    gaps: u64,
    /// The newest value of each key.
    values: HashMap<String, u64>,
}

impl Course {
    fn hear(&mut self, at: u64, data: &str, key: Option<&str>) {
        assert!(at > self.at, "{at} behind {}", self.at);
        assert!(at == self.at + 1 || self.until >= at - 1, "a hole before {at} that nobody has told of: {self:?}");
        (self.at, self.missing) = (at, self.missing + at - self.at - 1);
        let value: u64 = data.split(' ').next().and_then(|value| value.parse().ok()).expect("a number");
        assert_eq!(value, at, "each message has its own offset");
        if let Some(key) = key {
            self.values.insert(key.to_owned(), value);
        }
    }

    fn gap(&mut self, gap: &Value) {
        let of = |field: &str| gap[field].as_str().map(offset);
        let (from, to) = (of("from").expect("a position"), of("to").expect("a position"));
        assert_eq!((gap["reason"].as_str(), from), (Some("slow"), self.at), "{gap}");
        self.until = of("until").unwrap_or(to);
        assert!(to >= from && self.until >= to && self.until > from, "{gap}");
        (self.at, self.missing, self.gaps) = (to, self.missing + to - from, self.gaps + 1);
    }
}

/// The key of a value, as the publisher chooses it: for transports that do not say it.
fn key_of(value: u64) -> String {
    format!("key {}", ((value - 1) * (value - 1)) % KEYS)
}

fn slow_stream(gateway: &Gateway, path: &str) -> Reader {
    let mut slow = events::request_on(Raw::connect_with_small_buffer(gateway.port), path, "");
    slow.expect_open();
    slow
}

fn read_stream(slow: &mut Reader, topics: &[&str], courses: &mut [Course], last: &[u64]) {
    while courses.iter().zip(last).any(|(course, last)| course.at < *last) {
        let event = slow.event();
        let cursor = event.id.split_once('.').expect("a cursor").1;
        let ids: Vec<u64> = cursor.split(',').map(|offset| offset.parse().expect("an offset")).collect();
        if event.is_message() {
            let moved = (0..ids.len()).find(|&index| ids[index] != courses[index].at).expect("something moves");
            courses[moved].hear(ids[moved], &event.data, Some(&key_of(ids[moved])));
        } else {
            let gap = event.json();
            assert_eq!(event.name, "shardcast:gap", "{event:?}");
            let topic = topics.iter().position(|topic| gap["topic"] == *topic).expect("one of them");
            courses[topic].gap(&gap);
        }
        assert_eq!(ids, courses.iter().map(|course| course.at).collect::<Vec<_>>(), "the id says where it is in all topics");
    }
}

fn read_talk(slow: &mut Talker, course: &mut Course, last: u64) {
    while course.at < last {
        let heard = slow.hear();
        match heard["type"].as_str() {
            Some("message") => {
                let at = offset(heard["pos"].as_str().expect("a position"));
                course.hear(at, heard["data"].as_str().expect("text"), heard["key"].as_str());
            }
            Some("gap") => course.gap(&heard),
            _ => panic!("{heard}"),
        }
    }
}

#[test]
fn a_slow_stream_ends_with_the_newest_of_every_key_and_is_told_what_is_missing() {
    for count in SHARDS {
        let gateway = setup(count).start();
        for topic in ["quotes1", "quotes2", "quotes3"] {
            let before = drops(&gateway);
            let mut slow = slow_stream(&gateway, &format!("/events?topic={topic}"));
            let mut publisher = Publisher::join(&gateway, topic);
            publisher.publish_many(500);
            let mut courses = [Course::default()];
            // It reads on a little while more comes, then all of it.
            read_stream(&mut slow, &[topic], &mut courses, &[30]);
            publisher.publish_many(500);
            read_stream(&mut slow, &[topic], &mut courses, &[publisher.sent]);
            let [course] = courses;
            assert_eq!(course.values, publisher.values);
            assert!(course.gaps > 0 && course.missing > 500, "{course:?}");
            assert_eq!(drops(&gateway) - before, course.missing, "what is counted is what is missing");
            // Who has caught up gets everything.
            let mut courses = [course];
            let missing = courses[0].missing;
            for _ in 0..20 {
                publisher.publish();
                read_stream(&mut slow, &[topic], &mut courses, &[publisher.sent]);
            }
            assert_eq!(courses[0].missing, missing);
        }
        assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    }
}

#[test]
fn a_slow_stream_of_several_topics_has_the_newest_of_each() {
    for count in SHARDS {
        let gateway = setup(count).limit("queue_bytes_max", 1 << 20).start();
        let topics = ["quotes1", "quotes2"];
        let mut slow = slow_stream(&gateway, "/events?topic=quotes1&topic=quotes2");
        let mut publishers = topics.map(|topic| Publisher::join(&gateway, topic));
        publishers.iter_mut().for_each(|publisher| publisher.publish_many(300));
        publishers.iter_mut().for_each(|publisher| publisher.publish_many(100));
        let mut courses = topics.map(|_| Course::default());
        read_stream(&mut slow, &topics, &mut courses, &[publishers[0].sent, publishers[1].sent]);
        for (course, publisher) in courses.iter().zip(&publishers) {
            assert_eq!(course.values, publisher.values);
        }
        assert_eq!(drops(&gateway), courses.iter().map(|course| course.missing).sum::<u64>());
    }
}

#[test]
fn a_slow_talker_ends_with_the_newest_of_every_key() {
    for count in SHARDS {
        let gateway = setup(count).start();
        for (topic, batches) in [("quotes1", false), ("quotes2", true), ("quotes3", false), ("quotes4", true)] {
            let slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
            let mut slow = if batches { slow.batched() } else { slow };
            slow.subscribe(topic);
            let mut publisher = Publisher::join(&gateway, topic);
            publisher.publish_many(500);
            let mut course = Course::default();
            read_talk(&mut slow, &mut course, publisher.sent);
            assert_eq!(course.values, publisher.values);
            assert!(course.missing > 400, "{course:?}");
            // It left the topic and comes again: nothing of its slowness is left.
            slow.say(json!({"type": "unsubscribe", "topic": topic}));
            slow.expect("ok");
            slow.subscribe(topic);
            publisher.publish();
            slow.expect("message");
        }
    }
}

/// Messages without a key wait each as its own; when they are too much, the hard bound holds.
#[test]
fn messages_without_a_key_are_not_replaced_and_the_hard_bound_holds() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let mut slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
        slow.subscribe("quotes");
        let mut publisher = Publisher::join(&gateway, "quotes");
        publisher.publish_many(200);
        let mut alone = Vec::new();
        for _ in 0..20 {
            publisher.sent += 1;
            publisher.say(None);
            alone.push(publisher.sent);
            (0..10).for_each(|_| publisher.publish());
        }
        let mut course = Course::default();
        let mut heard_alone = Vec::new();
        while course.at < publisher.sent {
            let heard = slow.hear();
            if heard["type"] == "gap" {
                course.gap(&heard);
                continue;
            }
            let at = offset(heard["pos"].as_str().expect("a position"));
            course.hear(at, heard["data"].as_str().expect("text"), heard["key"].as_str());
            heard_alone.extend(heard["key"].is_null().then_some(at));
        }
        assert_eq!((course.values, heard_alone), (publisher.values.clone(), alone));
        // So many that they do not fit.
        publisher.publish_many(200);
        let mut more = 0;
        while gateway.closes(SLOW_CONSUMER) == 0 {
            assert!(more < 10_000, "{more} messages that nothing replaces wait for it");
            publisher.sent += 1;
            publisher.say(None);
            more += 1;
        }
        let bye = loop {
            let heard = slow.hear();
            if heard["type"] == "bye" {
                break heard;
            }
        };
        assert_eq!(bye["code"], 4508);
    }
}

#[test]
fn a_raw_reader_that_asks_for_it_ends_with_the_newest_of_every_key() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let mut slow = Raw::connect_with_small_buffer(gateway.port);
        slow.write(raw::upgrade("/ws?room=quotes&slow=drop", "").as_bytes());
        slow.expect_upgraded();
        let mut publisher = Publisher::join(&gateway, "quotes");
        publisher.publish_many(500);
        let (mut at, mut missing, mut values) = (0, 0, HashMap::new());
        while at < publisher.sent {
            let frame = slow.frame();
            assert!(frame.first != FIN | CLOSE && frame.first != FIN | BINARY);
            let text = std::str::from_utf8(&frame.payload).expect("whole messages");
            let value: u64 = text.split(' ').next().and_then(|value| value.parse().ok()).expect("a number");
            assert!(value > at);
            missing += value - at - 1;
            at = value;
            values.insert(key_of(value), value);
        }
        assert_eq!(values, publisher.values);
        assert_eq!(drops(&gateway), missing);
        publisher.publish();
        assert_eq!(slow.frame().payload.len(), publisher.sent.to_string().len() + 2001);
        assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    }
}

/// What a talker has said itself and does not want back replaces older values all the same, and is not sent.
#[test]
fn a_slow_talker_that_wants_no_echo_gets_what_others_have_said_last() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let mut slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
        slow.subscribe("quotes");
        let mut publisher = Publisher::join(&gateway, "quotes");
        publisher.publish_many(300);
        for _ in 0..50 {
            let own = format!("own {}", "y".repeat(1000));
            slow.say(json!({"type": "publish", "topic": "quotes", "data": own, "echo": false, "key": "key 1"}));
            publisher.sent += 1;
            publisher.talker.expect_message("quotes", own);
            publisher.publish_to("key 2");
        }
        let mut newest = 0;
        loop {
            let heard = slow.hear();
            if heard["type"] == "gap" {
                continue;
            }
            let data = heard["data"].as_str().expect("text");
            assert!(!data.starts_with("own"), "an echo");
            newest = newest.max(offset(heard["pos"].as_str().expect("a position")));
            if newest == publisher.sent {
                break;
            }
        }
        assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    }
}

#[test]
fn a_receipt_does_not_wait_for_a_reader_that_is_given_a_newer_one() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let _slow = slow_stream(&gateway, "/events?topic=quotes");
        let mut publisher = Publisher::join(&gateway, "quotes");
        publisher.publish_many(100);
        let mut poster = Raw::connect(gateway.port);
        poster.write(b"POST /publish?topic=quotes&key=key+1&ack=sent HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nwait");
        publisher.talker.expect_message("quotes", "wait");
        publisher.sent += 1;
        let began = now();
        (0..30).for_each(|_| publisher.publish());
        publisher.publish_to("key 1");
        let receipt: Value = serde_json::from_slice(&poster.response().body).expect("JSON");
        assert!(began.elapsed() < std::time::Duration::from_secs(4), "answered when its time was up");
        assert_eq!(receipt["subscribers"], 1, "the publisher, and not the slow one: {receipt}");
    }
}

#[test]
fn a_conflated_reader_is_handed_over() {
    let mut gateway = setup(2).start();
    let mut stream = slow_stream(&gateway, "/events?topic=quotes");
    let mut talker = talk::over(Raw::connect_with_small_buffer(gateway.port));
    talker.subscribe("quotes");
    let mut publisher = Publisher::join(&gateway, "quotes");
    publisher.publish_many(500);
    gateway.hand_over();
    publisher.publish_many(500);
    let mut courses = [Course::default()];
    read_stream(&mut stream, &["quotes"], &mut courses, &[publisher.sent]);
    let mut course = Course::default();
    read_talk(&mut talker, &mut course, publisher.sent);
    assert_eq!((&courses[0].values, &course.values), (&publisher.values, &publisher.values));
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
}

fn post(gateway: &Gateway, target: &str, body: &str) -> raw::Response {
    let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    raw::http(gateway.port, head.as_bytes())
}

fn get(gateway: &Gateway, target: &str) -> Value {
    let answer = raw::http(gateway.port, format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// A key goes with its message on every way in and out, into the history, and over a planned restart.
#[test]
fn keys_go_where_messages_go() {
    let directory = Scratch::new();
    let state = directory.join("state");
    let begin = || gateway().arg("--state").arg(state.to_str().expect("UTF-8")).start();
    let mut first = begin();
    let mut reader = talk::connect(first.port);
    reader.subscribe("a");
    assert_eq!(post(&first, "/publish?topic=a&key=one", "1").status, 200);
    assert_eq!(post(&first, "/v1/publish", r#"[{"topic":"a","data":2,"key":"two","event":"e"},{"topic":"a","data":3}]"#).status, 200);
    let mut talker = talk::connect(first.port);
    talker.say(json!({"type": "publish", "id": 1, "topic": "a", "data": "4", "key": "fo\"ur"}));
    talker.expect("ok");
    let keys = [json!("one"), json!("two"), json!(null), json!("fo\"ur")];
    for (key, data) in keys.iter().zip(["1", "2", "3", "4"]) {
        assert_eq!(&reader.expect_message("a", data)["key"], key);
    }
    let wrong = post(&first, "/publish?topic=a&key=", "1");
    assert_eq!((wrong.status, wrong.text().contains("key is empty")), (400, true), "{wrong:?}");
    drop((reader, talker));
    for round in 0..2 {
        for target in ["/v1/history?topic=a", "/poll?topic=a&after=earliest"] {
            let page = get(&first, target);
            let heard: Vec<Value> = page["messages"].as_array().expect("messages").iter().map(|message| message["key"].clone()).collect();
            assert_eq!(heard, keys, "{target} in round {round}: {page}");
        }
        first.signal(libc::SIGTERM);
        assert_eq!(first.exit_within(2 * SOON).code(), Some(0));
        first = begin();
        eventually(SOON, || if first.alive() { Ok(()) } else { Err("it does not begin again".into()) });
    }
}

#[test]
fn keys_go_to_other_gateways_and_come_from_other_programs() {
    let server = NatsServer::start();
    let gateways = [server.gateway().start(), server.gateway().start()];
    gateways.iter().for_each(Gateway::wait_until_ready);
    let mut talkers = gateways.each_ref().map(|gateway| talk::connect(gateway.port));
    talkers.iter_mut().for_each(|talker| drop(talker.subscribe("quotes")));
    server.wait_for_subscribers("shardcast.quotes", 2);
    assert_eq!(post(&gateways[0], "/publish?topic=quotes&key=gold%20%D1%8F", "1").status, 200);
    talkers[1].say(json!({"type": "publish", "topic": "quotes", "key": "silver", "data": 2}));
    let heard = |talker: &mut Talker| -> HashMap<String, String> {
        let messages = (0..2).map(|_| talker.expect("message"));
        messages.map(|message| (message["key"].as_str().expect("a key").to_owned(), message["data"].to_string())).collect()
    };
    let expect = HashMap::from([("gold я".to_owned(), "\"1\"".to_owned()), ("silver".to_owned(), "\"2\"".to_owned())]);
    assert_eq!(talkers.each_mut().map(heard), [expect.clone(), expect]);
    server.client().publish_with("shardcast.quotes", "Shardcast-Key: copper\r\n", b"3");
    for talker in &mut talkers {
        let message = talker.expect("message");
        assert_eq!((&message["key"], &message["data"]), (&"copper".into(), &"3".into()), "{message}");
    }
}
