//! Readers that are slower than their topic, where the topic's rule says what is left out for them: what is delivered, plus what a gap names, is everything,
//! in order; and the rest of the bounds hold.

mod common;

use common::events::{self, Reader, SHARDS, offset, shards};
use common::frame::{self, BINARY, CLOSE, FIN, TEXT};
use common::raw::{self, Raw};
use common::talk::{self, Talker};
use common::{Gateway, SLOW_CONSUMER, SOON, Setup, eventually, now, sleep_ms};
use serde_json::{Value, json};

const SOFT: u64 = 32 << 10;

/// Rules for the topics of these tests; small bounds, so that a slow reader is slow soon.
fn setup(count: u16) -> Setup {
    let rules = "thin* drop_oldest, * disconnect";
    let setup = shards(count).env("SHARDCAST_SLOW", rules).limit("message_bytes_max", 16 << 10).limit("linger_ms", 300);
    setup.limit("queue_soft_bytes", SOFT).limit("queue_bytes_max", 4 * SOFT).limit("write_stall_ms", 60_000)
}

fn drops(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().sum("shardcast_drops_total", &[("reason", reason)]) as u64
}

/// A publisher that hears itself, so that no topic is ever behind for its sake.
struct Publisher {
    raw: Raw,
    sent: u64,
}

impl Publisher {
    fn join(gateway: &Gateway, topic: &str) -> Self {
        Self { raw: raw::ws(gateway, &format!("/ws?room={topic}")), sent: 0 }
    }

    /// The next message, whose text begins with its number, out and back.
    fn publish(&mut self) {
        self.sent += 1;
        let text = format!("{} {}", self.sent, "x".repeat(4000));
        self.raw.send_text(&text);
        self.raw.expect_text(&text);
    }

    /// Publishes until so many messages are left out for slow readers.
    fn publish_until_dropped(&mut self, gateway: &Gateway, most: u64) {
        self.publish_beside(gateway, most, |_| {});
    }

    /// The same, while somebody else does something now and then.
    fn publish_beside(&mut self, gateway: &Gateway, most: u64, mut beside: impl FnMut(u64)) {
        let before = drops(gateway, "drop_oldest");
        let began = self.sent;
        while drops(gateway, "drop_oldest") < before + most {
            assert!(self.sent - began < 20_000, "{} messages, and few are left out for the slow reader", self.sent);
            for _ in 0..16 {
                self.publish();
            }
            beside(self.sent);
        }
    }
}

fn number(text: &str) -> u64 {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {:?}", &text[..text.len().min(40)]))
}

/// Where a reader is in one topic, and what it has not been given.
#[derive(Default, Debug)]
struct Course {
    at: u64,
    missing: u64,
    gaps: u64,
}

impl Course {
    fn hear(&mut self, at: u64) {
        assert_eq!(at, self.at + 1, "a hole that nobody has told of, or a message out of its order");
        self.at = at;
    }

    fn gap(&mut self, gap: &Value) {
        let of = |field: &str| offset(gap[field].as_str().unwrap_or_else(|| panic!("{gap}")));
        assert_eq!(gap["reason"], "slow", "{gap}");
        assert_eq!(of("from"), self.at, "the gap begins where it was: {gap}");
        assert!(of("to") > self.at, "a gap of nothing: {gap}");
        (self.missing, self.gaps) = (self.missing + of("to") - self.at, self.gaps + 1);
        self.at = of("to");
    }
}

fn slow_stream(gateway: &Gateway, path: &str) -> Reader {
    let mut slow = events::request_on(Raw::connect_with_small_buffer(gateway.port), path, "");
    slow.expect_open();
    slow
}

fn slow_talker(gateway: &Gateway, topic: &str) -> Talker {
    let mut slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
    slow.subscribe(topic);
    slow
}

/// Reads a stream until every topic is at its last message; ids, messages and gaps must fit together.
fn read_stream(slow: &mut Reader, topics: &[&str], courses: &mut [Course], last: &[u64]) {
    while courses.iter().zip(last).any(|(course, last)| course.at < *last) {
        let event = slow.event();
        let cursor = event.id.split_once('.').expect("a cursor").1;
        let ids: Vec<u64> = cursor.split(',').map(|offset| offset.parse().expect("an offset")).collect();
        let moved =
            (0..ids.len()).find(|&index| ids[index] != courses[index].at).unwrap_or_else(|| panic!("nothing moves: {}", event.name));
        if event.is_message() {
            assert_eq!(number(&event.data), ids[moved], "each message has its own offset");
            courses[moved].hear(ids[moved]);
        } else {
            let gap = event.json();
            assert_eq!((event.name.as_str(), gap["topic"].as_str()), ("shardcast:gap", Some(topics[moved])), "{gap}");
            courses[moved].gap(&gap);
        }
        assert_eq!(ids, courses.iter().map(|course| course.at).collect::<Vec<_>>(), "the id says where it is in all topics");
    }
}

/// The gateway has counted what a reader has missed.
fn expect_counted(gateway: &Gateway, courses: &[Course], before: (u64, u64)) {
    let (missing, gaps) = courses.iter().fold((0, 0), |sum, course| (sum.0 + course.missing, sum.1 + course.gaps));
    assert!(missing > 0 && gaps > 0, "{courses:?}");
    assert_eq!((drops(gateway, "drop_oldest") - before.0, told(gateway) - before.1), (missing, gaps), "what is counted is what is missing");
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
}

fn told(gateway: &Gateway) -> u64 {
    gateway.metrics().sum("shardcast_gaps_total", &[("reason", "slow")]) as u64
}

#[test]
fn a_slow_stream_is_told_exactly_what_it_does_not_get() {
    for count in SHARDS {
        let gateway = setup(count).start();
        for topic in ["thin1", "thin2", "thin3"] {
            let before = (drops(&gateway, "drop_oldest"), told(&gateway));
            let mut slow = slow_stream(&gateway, &format!("/events?topic={topic}"));
            let mut healthy = events::open(gateway.port, &format!("/events?topic={topic}"));
            let mut whole = [Course::default()];
            let mut publisher = Publisher::join(&gateway, topic);
            publisher.publish_beside(&gateway, 50, |sent| read_stream(&mut healthy, &[topic], &mut whole, &[sent]));
            // It reads a little, and falls behind again: another gap.
            let mut courses = [Course::default()];
            read_stream(&mut slow, &[topic], &mut courses, &[40]);
            publisher.publish_beside(&gateway, 50, |sent| read_stream(&mut healthy, &[topic], &mut whole, &[sent]));
            read_stream(&mut slow, &[topic], &mut courses, &[publisher.sent]);
            expect_counted(&gateway, &courses, before);
            // Who has caught up is a reader like others.
            publisher.publish();
            read_stream(&mut slow, &[topic], &mut courses, &[publisher.sent]);
            read_stream(&mut healthy, &[topic], &mut whole, &[publisher.sent]);
            assert_eq!(whole[0].missing, 0, "a healthy reader loses nothing");
        }
    }
}

#[test]
fn a_slow_stream_of_several_topics_has_a_gap_for_each() {
    for count in SHARDS {
        let gateway = setup(count).limit("queue_bytes_max", 1 << 20).start();
        let topics = ["thin1", "thin2", "thin3"];
        let mut slow = slow_stream(&gateway, "/events?topic=thin1&topic=thin2&topic=thin3");
        let mut publishers = topics.map(|topic| Publisher::join(&gateway, topic));
        for _ in 0..2 {
            publishers.iter_mut().for_each(|publisher| publisher.publish_until_dropped(&gateway, 30));
        }
        // One more of each: the newest always comes.
        publishers.iter_mut().for_each(Publisher::publish);
        let mut courses = topics.map(|_| Course::default());
        read_stream(&mut slow, &topics, &mut courses, &[publishers[0].sent, publishers[1].sent, publishers[2].sent]);
        assert!(courses.iter().all(|course| course.gaps > 0), "{courses:?}");
        expect_counted(&gateway, &courses, (0, 0));
    }
}

/// Cut off behind the gap, or behind any message, it comes back and misses nothing but what it was told of.
#[test]
fn a_thinned_stream_resumes_from_the_id_of_its_gap() {
    let gateway = setup(2).limit("history_messages", 10_000).start();
    let mut slow = slow_stream(&gateway, "/events?topic=thin");
    let mut publisher = Publisher::join(&gateway, "thin");
    publisher.publish_until_dropped(&gateway, 50);
    let mut course = Course::default();
    let id = loop {
        let event = slow.event();
        if event.is_message() {
            course.hear(offset(&event.id));
            continue;
        }
        course.gap(&event.json());
        break event.id;
    };
    assert_eq!(offset(&id), course.at);
    drop(slow);
    let mut again = events::resume(gateway.port, "/events?topic=thin", &id);
    while course.at < publisher.sent {
        let event = again.event();
        assert!(event.is_message(), "{event:?}");
        course.hear(offset(&event.id));
    }
}

fn read_talk(slow: &mut Talker, course: &mut Course, last: u64) {
    while course.at < last {
        let heard = slow.hear();
        match heard["type"].as_str() {
            Some("message") => {
                course.hear(offset(heard["pos"].as_str().expect("a position")));
                assert_eq!(number(heard["data"].as_str().expect("text")), course.at, "each message has its own offset");
            }
            Some("gap") => course.gap(&heard),
            _ => panic!("{heard}"),
        }
    }
}

#[test]
fn a_slow_talker_is_told_exactly_what_it_does_not_get() {
    for count in SHARDS {
        let gateway = setup(count).start();
        for (topic, batches) in [("thin1", false), ("thin2", true), ("thin3", false), ("thin4", true)] {
            let before = (drops(&gateway, "drop_oldest"), told(&gateway));
            let mut slow = talk::over(Raw::connect_with_small_buffer(gateway.port));
            slow = if batches { slow.batched() } else { slow };
            slow.subscribe(topic);
            let mut publisher = Publisher::join(&gateway, topic);
            let mut course = Course::default();
            publisher.publish_until_dropped(&gateway, 50);
            read_talk(&mut slow, &mut course, 40);
            publisher.publish_until_dropped(&gateway, 50);
            // An answer goes ahead of what is queued, and costs no message.
            slow.say(json!({"type": "ping", "id": "p"}));
            let mut ponged = false;
            while course.at < publisher.sent || !ponged {
                let heard = slow.hear();
                match heard["type"].as_str() {
                    Some("message") => course.hear(offset(heard["pos"].as_str().expect("a position"))),
                    Some("gap") => course.gap(&heard),
                    Some("pong") => ponged = true,
                    _ => panic!("{heard}"),
                }
            }
            expect_counted(&gateway, &[course], before);
        }
    }
}

/// What it has published itself and does not want back is neither delivered nor missing.
#[test]
fn a_slow_talker_that_wants_no_echo_misses_only_what_others_have_said() {
    for count in SHARDS {
        // Who cannot be told that the topic is behind cannot try again.
        let gateway = setup(count).limit("topic_lag_bytes_max", 64 << 20).start();
        let mut slow = slow_talker(&gateway, "thin");
        let mut publisher = raw::ws(&gateway, "/ws?room=thin");
        let (mut others, mut offsets) = (Vec::new(), 0);
        // While it does not read it speaks: its own messages lie between those of the other one.
        while drops(&gateway, "drop_oldest") < 100 {
            assert!(offsets < 40_000, "few are left out");
            for _ in 0..8 {
                let other = format!("other {}", "x".repeat(3000));
                publisher.send_text(&other);
                publisher.expect_text(&other);
                offsets += 1;
                others.push(offsets);
                let own = format!("own {}", "y".repeat(3000));
                slow.say(json!({"type": "publish", "topic": "thin", "data": own, "echo": false}));
                publisher.expect_text(&own);
                offsets += 1;
            }
        }
        let last = "the last".to_owned();
        publisher.send_text(&last);
        offsets += 1;
        others.push(offsets);
        let (mut at, mut missing, mut gaps) = (0, 0, 0);
        while at < offsets {
            let heard = slow.hear();
            let after = |at: u64| others.iter().copied().filter(move |&other| other > at);
            if heard["type"] == "gap" {
                assert_eq!(heard["reason"], "slow");
                // Its own messages are not among those it waits for, so the gap may begin behind some of them.
                let (from, to) = (offset(heard["from"].as_str().unwrap()), offset(heard["to"].as_str().unwrap()));
                assert!(from >= at && after(at).next().is_some_and(|other| other > from), "{heard} behind {at}");
                missing += after(from).take_while(|&other| other <= to).count() as u64;
                (at, gaps) = (to, gaps + 1);
            } else {
                assert!(heard["data"].as_str().is_some_and(|data| !data.starts_with("own")), "an echo");
                let next = offset(heard["pos"].as_str().unwrap());
                assert_eq!(after(at).next(), Some(next), "a hole that nobody has told of");
                at = next;
            }
        }
        assert!(missing > 0 && gaps > 0);
        assert_eq!((drops(&gateway, "drop_oldest"), told(&gateway)), (missing, gaps));
        assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
    }
}

/// Nothing but messages ever comes in raw mode: who asks for it is thinned there, in whole frames; who does not is ended.
#[test]
fn a_raw_reader_is_thinned_only_where_it_asks_for_it() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let join = |path: &str| {
            let mut raw = Raw::connect_with_small_buffer(gateway.port);
            raw.write(raw::upgrade(path, "").as_bytes());
            raw.expect_upgraded();
            raw
        };
        let mut thinned = join("/ws?room=thin&slow=drop");
        let mut ended = join("/ws?room=thin");
        let mut publisher = Publisher::join(&gateway, "thin");
        publisher.publish_until_dropped(&gateway, 50);
        gateway.wait_for_closes(SLOW_CONSUMER, 1);
        publisher.publish();
        let (mut at, mut missing) = (0, 0);
        while at < publisher.sent {
            let frame = thinned.frame();
            assert_eq!(frame.first, FIN | TEXT);
            let next = number(std::str::from_utf8(&frame.payload).expect("whole messages"));
            assert!(next > at, "{next} behind {at}");
            (at, missing) = (next, missing + next - at - 1);
        }
        assert_eq!(drops(&gateway, "drop_oldest"), missing);
        publisher.publish();
        assert_eq!(number(std::str::from_utf8(&thinned.frame().payload).unwrap()), publisher.sent);
        assert_eq!((gateway.closes(SLOW_CONSUMER), told(&gateway)), (1, 0));
        loop {
            let frame = ended.frame();
            if frame.first == FIN | CLOSE {
                assert_eq!(frame::close_code(&frame.payload).0, Some(4508));
                break;
            }
        }
        // A room whose readers are ended ends this one too.
        let mut other = join("/ws?room=other&slow=drop");
        let mut publisher = Publisher::join(&gateway, "other");
        eventually(2 * SOON, || {
            publisher.publish();
            if gateway.closes(SLOW_CONSUMER) == 2 { Ok(()) } else { Err("it is still there".into()) }
        });
        while other.frame().first != FIN | CLOSE {}
        let refused = raw::http(gateway.port, raw::upgrade("/ws?room=thin&slow=maybe", "").as_bytes());
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains("slow=maybe is neither drop nor disconnect"), "{}", refused.text());
    }
}

/// The hard bound is the connection's: several topics that are each within their soft bound add up.
#[test]
fn topics_that_are_thinned_still_end_their_reader_where_they_are_too_much_together() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let topics: Vec<String> = (0..8).map(|number| format!("thin{number}")).collect();
        let query = topics.iter().map(|topic| format!("topic={topic}")).collect::<Vec<_>>().join("&");
        let mut slow = slow_stream(&gateway, &format!("/events?{query}"));
        let mut publishers: Vec<Publisher> = topics.iter().map(|topic| Publisher::join(&gateway, topic)).collect();
        let mut rounds = 0;
        while gateway.closes(SLOW_CONSUMER) == 0 {
            assert!(rounds < 2000, "8 times {SOFT} bytes are over {} bytes", 4 * SOFT);
            publishers.iter_mut().for_each(Publisher::publish);
            rounds += 1;
        }
        let bye = loop {
            let event = slow.event();
            if event.name == "shardcast:bye" {
                break event.json();
            }
        };
        assert_eq!(bye["code"], 4508);
    }
}

/// A publisher that waits for everybody does not wait for who is not given the message.
#[test]
fn a_receipt_does_not_wait_for_a_reader_that_the_message_is_left_out_for() {
    for count in SHARDS {
        let gateway = setup(count).start();
        let _slow = slow_stream(&gateway, "/events?topic=thin");
        let mut publisher = Publisher::join(&gateway, "thin");
        publisher.publish_until_dropped(&gateway, 20);
        let mut poster = Raw::connect(gateway.port);
        poster.write(b"POST /publish?topic=thin&ack=sent HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nwait");
        publisher.raw.expect_text("wait");
        let began = now();
        publisher.publish_until_dropped(&gateway, 20);
        let answer = poster.response();
        assert!(began.elapsed() < std::time::Duration::from_secs(4), "answered when its time was up");
        let receipt: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(receipt["subscribers"], 1, "the publisher, and not the slow one: {receipt}");
    }
}

#[test]
fn an_operator_sees_what_was_left_out_for_whom() {
    let gateway = setup(2).start();
    let _slow = slow_stream(&gateway, "/events?topic=thin");
    let mut publisher = Publisher::join(&gateway, "thin");
    publisher.publish_until_dropped(&gateway, 20);
    let page = raw::http(gateway.admin, b"GET /debug/connections?sort=drops HTTP/1.1\r\nHost: x\r\n\r\n");
    let page: Value = serde_json::from_slice(&page.body).expect("JSON");
    let (first, second) = (&page["connections"][0], &page["connections"][1]);
    assert_eq!((first["transport"].as_str(), first["dropped"].as_u64()), (Some("sse"), Some(drops(&gateway, "drop_oldest"))), "{page}");
    assert!(first["queued_bytes"].as_u64().is_some_and(|bytes| bytes < SOFT + (64 << 10) + (20 << 10)), "{page}");
    assert_eq!(second["dropped"], 0, "{page}");
}

/// What is told and what is not goes over to the next process as it is.
#[test]
fn a_thinned_reader_is_handed_over_and_told() {
    let mut gateway = setup(2).start();
    let mut stream = slow_stream(&gateway, "/events?topic=thin");
    let mut talker = slow_talker(&gateway, "thin");
    let mut thinned = Raw::connect_with_small_buffer(gateway.port);
    thinned.write(raw::upgrade("/ws?room=thin&slow=drop", "").as_bytes());
    thinned.expect_upgraded();
    let mut publisher = Publisher::join(&gateway, "thin");
    publisher.publish_until_dropped(&gateway, 200);
    sleep_ms(100);
    gateway.hand_over();
    // It is thinned there as it was here.
    publisher.publish_until_dropped(&gateway, 200);
    publisher.publish();
    let mut courses = [Course::default()];
    read_stream(&mut stream, &["thin"], &mut courses, &[publisher.sent]);
    let mut course = Course::default();
    read_talk(&mut talker, &mut course, publisher.sent);
    assert!(courses[0].gaps > 1 && course.gaps > 1, "{courses:?} {course:?}");
    let mut at = 0;
    while at < publisher.sent {
        let frame = thinned.frame();
        assert_ne!(frame.first, FIN | BINARY);
        let next = number(std::str::from_utf8(&frame.payload).expect("whole messages"));
        assert!(next > at, "{next} behind {at}");
        at = next;
    }
    assert_eq!(gateway.closes(SLOW_CONSUMER), 0);
}
