//! The session's rules, on a clock that the test moves.

use serde_json::{Value, json};

use super::*;
use crate::client::topics::TOPICS_MAX;

#[path = "pattern_tests.rs"]
mod patterns;

const SECOND: Duration = Duration::from_secs(1);

struct Table {
    session: Session,
    now: Time,
}

/// A session that has not connected yet.
fn table(seed: u64) -> Table {
    let options = Options {
        connect_within: 10 * SECOND,
        pong_within: 10 * SECOND,
        has_tokens: true,
        batch: false,
        tries_max: None,
        unanswered_max: 8,
        unanswered_bytes_max: 1 << 20,
    };
    Table { session: Session::new(options, seed), now: Time::ZERO }
}

/// One that is welcome.
fn welcomed(seed: u64) -> Table {
    let mut table = table(seed);
    table.connect();
    table.events();
    table
}

impl Table {
    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.session.handle_timeout(self.now);
    }

    /// Until the session wants something by its own clock; how long that took.
    fn wait(&mut self) -> Duration {
        let due = self.session.poll_timeout().expect("it waits for something");
        let waited = due.since(self.now);
        self.pass(waited);
        waited
    }

    fn connect(&mut self) {
        while self.session.wanted_connection().is_none() {
            self.wait();
        }
        self.session.handle_opened(None);
        self.hear(json!({"type": "welcome", "conn": "0-1-1", "ping_ms": 45_000, "retry_ms": 8000, "max_bytes": 100}));
    }

    fn hear(&mut self, said: Value) {
        self.session.handle_text(self.now, &said.to_string());
    }

    fn lose(&mut self, code: Option<u16>, reason: &str) {
        let loss = Loss { code, reason: reason.to_owned(), hint: wire::hint(reason) };
        self.session.handle_lost(self.now, loss);
    }

    /// All that it says now.
    fn said(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.session.poll_transmit())
            .map(|transmit| match transmit {
                Transmit::Text(frame) => serde_json::from_str(&frame).expect("JSON"),
                Transmit::Close => json!("close"),
            })
            .collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.take_event(self.now)).collect()
    }

    fn answers(&mut self) -> Vec<(u64, Result<Answer, Error>)> {
        std::iter::from_fn(|| self.session.poll_answer()).collect()
    }

    fn publish(&mut self, topic: &str, text: &str) -> u64 {
        self.session.publish(topic, &text.into(), About::default(), self.now + 30 * SECOND, 30 * SECOND)
    }

    /// Subscribes, and is placed at this position.
    fn place(&mut self, topic: &str, pos: &str) {
        self.session.subscribe(topic, Start::Latest, false);
        self.placed(topic, pos);
        self.events();
        self.answers();
    }

    /// Answers the subscription that it has asked for.
    fn placed(&mut self, topic: &str, pos: &str) {
        let said = self.said();
        let asked = said.iter().find(|said| said["type"] == "subscribe" && said["topic"] == topic);
        let id = asked.unwrap_or_else(|| panic!("{topic} is not asked for: {said:?}"))["id"].clone();
        self.hear(json!({"type": "subscribed", "id": id, "topic": topic, "pos": pos, "recovered": false}));
    }

    fn message(&mut self, topic: &str, pos: &str) {
        self.hear(json!({"type": "message", "topic": topic, "pos": pos, "data": pos}));
    }

    /// The positions of the messages, and the ends of the gaps, that were told since.
    fn places(&mut self) -> Vec<String> {
        let places = self.events().into_iter().filter_map(|event| match event {
            Event::Message(message) => Some(message.pos.to_string()),
            Event::Gap(gap) => Some(format!("gap to {}", gap.to)),
            _ => None,
        });
        places.collect()
    }
}

#[test]
fn it_connects_at_once_says_its_token_and_asks_for_its_topics_when_it_is_welcome() {
    let mut table = table(1);
    table.session.subscribe("a", Start::Last(3), false);
    assert_eq!((table.session.wanted_connection(), table.session.poll_timeout()), (None, Some(Time::ZERO)));
    table.pass(Duration::ZERO);
    assert_eq!(table.session.wanted_connection(), Some(1));
    table.session.handle_opened(Some("secret"));
    assert_eq!(table.said(), [json!({"type": "hello", "token": "secret"})]);
    table.connect();
    assert_eq!(table.said(), [json!({"type": "subscribe", "id": 2, "topic": "a", "last": 3})]);
    assert!(matches!(&table.events()[..], [Event::Connected { conn }] if &**conn == "0-1-1"));
}

#[test]
fn each_connection_asks_for_what_came_after_the_last_message_and_nothing_comes_twice() {
    let mut table = welcomed(2);
    table.place("a", "k.5");
    table.place("b", "k.1");
    for pos in ["k.6", "k.7", "k.7", "k.6"] {
        table.message("a", pos);
    }
    assert_eq!(table.places(), ["k.6", "k.7"]);
    table.lose(None, "cut off");
    table.events();
    table.connect();
    let said = table.said();
    assert_eq!(said.iter().map(|said| &said["after"]).collect::<Vec<_>>(), ["k.7", "k.1"], "{said:?}");
    // Nothing counts before the topic has its place on this connection.
    table.message("a", "k.8");
    assert!(table.places().is_empty());
}

#[test]
fn a_gap_is_told_once_however_often_the_connection_is_lost_before_it() {
    let mut table = welcomed(3);
    table.place("a", "k.5");
    for _ in 0..3 {
        table.lose(None, "cut off");
        table.events();
        table.connect();
        // Cut off between this and the gap.
        table.placed("a", "k.90");
    }
    table.hear(json!({"type": "gap", "topic": "a", "from": "k.5", "to": "k.90", "reason": "too_old"}));
    table.message("a", "k.91");
    assert_eq!(table.places(), ["gap to k.90", "k.91"]);
    table.lose(None, "cut off");
    table.events();
    table.connect();
    assert_eq!(table.said()[0]["after"], "k.91");
}

#[test]
fn a_subscription_that_begins_at_a_position_is_told_what_is_missing_behind_it() {
    for (given, reason) in [("k.5", "too_old"), ("j.700", "restart"), ("k.100", "unknown")] {
        let mut table = welcomed(20);
        table.session.subscribe("a", Start::After(given.parse().expect("a position")), false);
        table.placed("a", "k.90");
        table.hear(json!({"type": "gap", "topic": "a", "from": given, "to": "k.90", "reason": reason}));
        table.message("a", "k.91");
        assert_eq!(table.places(), ["gap to k.90", "k.91"], "{reason}");
    }
}

#[test]
fn who_is_cut_off_for_continuity_again_begins_anew_with_a_gap() {
    let mut table = welcomed(4);
    table.place("a", "k.5");
    for after in [json!("k.5"), Value::Null] {
        table.lose(Some(4510), "retry=100 lost");
        table.events();
        table.connect();
        let said = table.said();
        assert_eq!(said[0]["after"], after, "{said:?}");
        if after.is_null() {
            table.hear(json!({"type": "subscribed", "id": said[0]["id"], "topic": "a", "pos": "k.90"}));
        }
    }
    table.message("a", "k.91");
    assert_eq!(table.places(), ["gap to k.90", "k.91"]);
}

#[test]
fn a_topic_that_was_given_up_and_taken_up_again_hears_nothing_of_before() {
    let mut table = welcomed(5);
    table.place("a", "k.5");
    assert!(table.session.unsubscribe("a") && !table.session.unsubscribe("a"));
    table.session.subscribe("a", Start::Latest, false);
    table.message("a", "k.6");
    assert!(table.places().is_empty());
    table.placed("a", "k.8");
    table.message("a", "k.9");
    assert_eq!(table.places(), ["k.9"]);
}

#[test]
fn a_client_has_128_topics_each_once() {
    let mut table = welcomed(6);
    for number in 0..TOPICS_MAX {
        table.session.subscribe(&number.to_string(), Start::Latest, false);
    }
    let (again, more) = (table.session.subscribe("7", Start::Latest, false), table.session.subscribe("one more", Start::Latest, false));
    let expected = [(again, Err(Error::AlreadySubscribed("7".into()))), (more, Err(Error::TooManyTopics { max: 128 }))];
    assert_eq!(table.answers(), expected);
    table.session.unsubscribe("7");
    table.answers();
    table.session.subscribe("one more", Start::Latest, false);
    assert!(table.answers().is_empty());
}

#[test]
fn a_topic_that_is_full_is_asked_for_again_and_one_that_cannot_be_is_given_up() {
    let mut table = welcomed(7);
    let waiter = table.session.subscribe("a", Start::Latest, false);
    let id = table.said()[0]["id"].clone();
    table.hear(json!({"type": "error", "id": id, "code": "topic_full", "message": "it is full", "retry_ms": 700}));
    assert!(table.said().is_empty() && table.answers().is_empty());
    assert_eq!(table.wait(), Duration::from_millis(700));
    let id = table.said()[0]["id"].clone();
    table.hear(json!({"type": "error", "id": id, "code": "bad_request", "message": "no"}));
    assert_eq!(table.answers(), [(waiter, Err(Error::Refused { code: "bad_request".into(), message: "no".into() }))]);
    assert_eq!(table.events(), [Event::Refused { topic: "a".into(), code: "bad_request".into(), message: "no".into() }]);
    table.lose(None, "");
    table.events();
    table.connect();
    assert!(table.said().is_empty(), "it is not wanted any more");
}

#[test]
fn the_first_return_after_a_loss_is_spread_evenly_over_the_window() {
    let mut quarters = [0; 4];
    for seed in 0..1000 {
        let mut table = welcomed(seed);
        table.pass(11 * SECOND);
        table.lose(None, "cut off");
        table.events();
        quarters[usize::try_from(table.wait().as_millis() / 2000).expect("small").min(3)] += 1;
    }
    assert!(quarters.iter().all(|quarter| (200..300).contains(quarter)), "of 1000 in 8 s: {quarters:?}");
}

#[test]
fn failures_double_the_wait_until_a_connection_has_lasted_ten_seconds() {
    let longest = |prepare: &dyn Fn(&mut Table)| {
        let waits = (0..400).map(|seed| {
            let mut table = table(seed);
            prepare(&mut table);
            table.events();
            table.wait().as_millis()
        });
        waits.max().expect("400")
    };
    let fail = |table: &mut Table, times: u32| {
        for _ in 0..times {
            while table.session.wanted_connection().is_none() {
                table.wait();
            }
            table.lose(None, "refused");
            table.events();
        }
    };
    for (times, bound) in [(1, 500), (2, 1000), (4, 4000), (20, 20_000)] {
        let waited = longest(&|table| fail(table, times));
        assert!(waited <= bound && waited > bound * 9 / 10, "{times} failures: {waited} of {bound} ms");
    }
    for (lasted, bound) in [(9, 20_000), (10, 8000)] {
        let waited = longest(&|table| {
            fail(table, 20);
            table.connect();
            table.events();
            // Something comes now and then, or it would be asked for.
            table.now = table.now + lasted * SECOND;
            table.lose(None, "cut off");
        });
        assert!(waited <= bound && waited > bound * 9 / 10, "{lasted} s: {waited} of {bound} ms");
    }
}

#[test]
fn what_the_server_says_about_coming_back_is_obeyed_to_the_millisecond() {
    let hinted = |lose: &dyn Fn(&mut Table)| {
        let mut table = welcomed(9);
        lose(&mut table);
        let events = table.events();
        assert!(matches!(&events[..], [Event::Reconnecting { wait, .. }] if wait.as_millis() == 8200), "{events:?}");
        table.wait().as_millis()
    };
    assert_eq!(hinted(&|table| table.lose(Some(4503), "retry=8200 draining")), 8200);
    assert_eq!(hinted(&|table| table.lose(Some(1012), "retry=8200")), 8200);
    let refused = Loss { hint: Some(Duration::from_millis(8200)), ..Loss::of("503 full") };
    assert_eq!(hinted(&|table| table.session.handle_lost(table.now, refused.clone())), 8200);
    // A goodbye in words, whatever becomes of the socket behind it.
    for ends in [true, false] {
        let mut table = welcomed(9);
        table.hear(json!({"type": "bye", "code": 4503, "reason": "draining", "retry_ms": 8200}));
        if ends {
            table.lose(None, "reset");
        } else {
            assert_eq!(table.wait(), GOODBYE, "the close frame does not come");
        }
        assert!(table.session.wanted_connection().is_none());
        let why = "4503 draining".into();
        assert_eq!(table.events(), [Event::Reconnecting { wait: Duration::from_millis(8200), why }]);
        assert_eq!(table.wait(), Duration::from_millis(8200));
    }
}

#[test]
fn codes_that_say_that_something_must_change_end_it_and_the_others_do_not() {
    for code in [4400, 4401, 4403, 4404, 4420, 4499, 1000, 1002, 1007, 1009] {
        let mut table = welcomed(10);
        let (subscribed, published) = (table.session.subscribe("a", Start::Latest, false), table.publish("a", "x"));
        table.lose(Some(code), "no");
        let closed = table.session.over().cloned().unwrap_or_else(|| panic!("{code} ends it"));
        assert_eq!((closed.code, &*closed.reason), (Some(code), &*format!("{code} no")));
        let told = |id| (id, Err(Error::Closed(closed.clone())));
        assert_eq!(table.answers(), [told(subscribed), told(published)]);
        assert_eq!((table.session.wanted_connection(), table.session.poll_timeout()), (None, None));
    }
    for code in [1001, 1006, 1011, 1012, 1013, 4500, 4501, 4503, 4504, 4508, 4510, 4529] {
        let mut table = welcomed(10);
        table.lose(Some(code), "");
        assert!(table.session.over().is_none(), "{code}");
        table.events();
        table.connect();
    }
}

#[test]
fn after_as_many_tries_as_it_may_it_gives_up() {
    let mut table = table(11);
    table.session.options.tries_max = Some(3);
    for failed in 1..=3 {
        assert!(table.session.over().is_none());
        table.connect();
        // Welcome, and gone again: that is no better than not to be let in.
        table.lose(Some(4503), "full");
        table.events();
        assert_eq!(table.session.over().is_some(), failed == 3);
    }
    let closed = table.session.over().expect("it is over");
    assert!(closed.code.is_none() && closed.reason.contains("3 tries") && closed.reason.contains("4503 full"), "{closed}");
}

#[test]
fn a_try_that_takes_too_long_is_given_up() {
    let mut table = table(12);
    table.pass(Duration::ZERO);
    assert_eq!(table.session.wanted_connection(), Some(1));
    table.session.handle_opened(None);
    assert_eq!(table.wait(), 10 * SECOND, "an upgrade without a welcome is no connection");
    assert_eq!(table.session.wanted_connection(), None);
    assert!(matches!(&table.events()[..], [Event::Reconnecting { why, .. }] if why.contains("10s")));
}

#[test]
fn a_silent_gateway_is_asked_and_then_given_up_but_not_while_we_do_not_read() {
    let mut table = welcomed(13);
    assert_eq!(table.wait(), 45 * SECOND);
    assert_eq!(table.said(), [json!({"type": "ping"})]);
    table.pass(9 * SECOND);
    table.hear(json!({"type": "pong"}));
    assert_eq!(table.wait(), 45 * SECOND);
    assert_eq!(table.wait(), 10 * SECOND);
    assert!(matches!(&table.events()[..], [Event::Reconnecting { why, .. }] if why.contains("55s")));
    let mut table = welcomed(13);
    table.place("a", "k.5");
    table.message("a", "k.6");
    table.pass(1000 * SECOND);
    assert_eq!((table.session.poll_timeout(), table.said().len()), (None, 0), "what is not taken is the application's silence");
    assert_eq!(table.places(), ["k.6"]);
    assert_eq!(table.wait(), 45 * SECOND);
}

#[test]
fn who_does_not_take_its_events_does_not_come_back_before_it_does() {
    let mut table = welcomed(14);
    table.lose(Some(4503), "retry=100");
    table.pass(1000 * SECOND);
    assert_eq!((table.session.wanted_connection(), table.session.poll_timeout()), (None, None));
    table.events();
    table.wait();
    assert_eq!(table.session.wanted_connection(), Some(2));
}

#[test]
fn what_has_no_receipt_is_sent_again_as_it_was_and_what_is_late_is_given_up() {
    let mut table = welcomed(15);
    let ids = [table.publish("a", "one"), table.publish("b", "two")];
    let first = table.said();
    assert_eq!(first.iter().map(|said| &said["data"]).collect::<Vec<_>>(), ["one", "two"]);
    assert_ne!(first[0]["msg_id"], first[1]["msg_id"]);
    assert!(table.said().is_empty(), "once on a connection");
    table.hear(json!({"type": "ok", "id": ids[1], "pos": "k.2", "subscribers": 3, "duplicate": true}));
    let receipt = Receipt { pos: "k.2".parse().expect("a position"), subscribers: 3, duplicate: true };
    assert_eq!(table.answers(), [(ids[1], Ok(Answer::Published(receipt)))]);
    table.lose(Some(4503), "retry=100");
    table.events();
    table.connect();
    assert_eq!(table.said(), first[..1]);
    table.events();
    table.pass(30 * SECOND);
    assert_eq!(table.answers(), [(ids[0], Err(Error::Timeout(30 * SECOND)))]);
    let long = table.publish("a", &"z".repeat(101));
    assert!(table.said().iter().all(|said| said["type"] == "ping"), "it would cost the connection");
    assert_eq!(table.answers(), [(long, Err(Error::TooLarge { bytes: 101, max: 100 }))]);
}

#[test]
fn a_topic_that_is_behind_holds_what_is_said_to_it_and_nothing_else() {
    let mut table = welcomed(16);
    let ids = [table.publish("a", "one"), table.publish("a", "two")];
    table.said();
    for id in ids {
        table.hear(json!({"type": "error", "id": id, "code": "topic_behind", "message": "behind", "retry_ms": 400}));
    }
    table.publish("a", "three");
    table.publish("b", "other");
    let texts = |said: Vec<Value>| said.iter().map(|said| said["data"].as_str().expect("a text").to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(table.said()), ["other"]);
    assert_eq!(table.wait(), Duration::from_millis(400));
    assert_eq!(texts(table.said()), ["one", "two", "three"]);
    // Another connection may be to another gateway.
    table.hear(json!({"type": "error", "id": ids[0], "code": "topic_behind", "message": "behind", "retry_ms": 4000}));
    table.lose(Some(4503), "retry=100");
    table.events();
    table.connect();
    assert_eq!(texts(table.said()), ["one", "two", "three", "other"]);
    table.hear(json!({"type": "error", "id": ids[0], "code": "read_only", "message": "no"}));
    assert_eq!(table.answers(), [(ids[0], Err(Error::Refused { code: "read_only".into(), message: "no".into() }))]);
}

#[test]
fn it_takes_no_more_than_may_be_without_an_answer() {
    let mut table = table(17);
    for _ in 0..8 {
        assert!(table.session.has_room());
        table.publish("a", "x");
    }
    assert!(!table.session.has_room());
    table.pass(30 * SECOND);
    assert!(table.session.has_room());
    table.session.options.unanswered_bytes_max = 1000;
    table.publish("a", &"z".repeat(1000));
    assert!(!table.session.has_room());
}

#[test]
fn closing_says_goodbye_and_waits_for_the_other_side_but_not_for_long() {
    let mut table = table(18);
    table.session.handle_close(table.now);
    assert!(table.session.over().is_some(), "there is nobody to say it to");
    for answers in [true, false] {
        let mut table = welcomed(18);
        let published = table.publish("a", "x");
        table.message("a", "k.1");
        table.session.handle_close(table.now);
        assert_eq!(table.said(), ["close"]);
        assert!(table.said().is_empty() && table.session.over().is_none());
        if answers {
            table.lose(Some(1000), "");
        } else {
            assert_eq!(table.wait(), GOODBYE);
        }
        let closed = table.session.over().cloned().expect("it is over");
        assert_eq!((closed.code, table.answers()), (None, vec![(published, Err(Error::Closed(closed.clone())))]));
    }
}

#[test]
fn what_cannot_be_read_costs_the_connection_and_says_what_it_was() {
    let mut table = welcomed(19);
    table.session.handle_text(table.now, "{\"type\":\"message\"} and more");
    assert_eq!(table.session.wanted_connection(), None);
    assert!(matches!(&table.events()[..], [Event::Reconnecting { why, .. }] if why.contains("and more")));
    let mut table = welcomed(19);
    table.hear(json!({"type": "newer", "topic": "a", "count": 3}));
    assert!(table.events().is_empty() && table.session.wanted_connection().is_some(), "what is newer is left alone");
}

#[test]
fn who_is_there_is_told_behind_each_place_and_asked_for_on_each_connection() {
    let roster = |kind: &str, topic: &str| json!({"type": kind, "topic": topic, "count": 2, "members": [{"conn": "0-1-1", "user": "anna"}], "scope": "node"});
    let mut table = welcomed(21);
    table.place("b", "k.1");
    table.session.subscribe("a", Start::Latest, true);
    table.hear(roster("presence", "a"));
    assert!(table.events().is_empty(), "it has no place yet");
    for expected in [Value::Null, json!("k.5")] {
        let asked = table.said();
        let asked = asked.iter().find(|said| said["topic"] == "a").expect("asked for");
        assert_eq!((&asked["presence"], &asked["after"]), (&json!(true), &expected));
        table.hear(json!({"type": "subscribed", "id": asked["id"], "topic": "a", "pos": "k.5"}));
        ["presence", "join", "leave"].iter().for_each(|kind| table.hear(roster(kind, "a")));
        table.hear(roster("join", "b"));
        let events = table.events();
        assert!(
            matches!(&events[events.len() - 4..], [Event::Subscribed { .. }, Event::Presence(all), Event::Join(came), Event::Leave(gone)]
            if all.count == 2 && *all == *came && *came == *gone),
            "{events:?}"
        );
        table.lose(None, "cut off");
        table.events();
        table.connect();
    }
}

#[test]
fn presence_that_is_refused_is_an_error_of_its_request_and_costs_no_messages() {
    let refuse = |table: &mut Table, id: &Value| table.hear(json!({"type": "error", "id": id, "code": "no_presence", "message": "no"}));
    let refused = || Err(Error::Refused { code: "no_presence".into(), message: "no".into() });
    let mut table = welcomed(22);
    let asked = table.session.presence("a", table.now + 30 * SECOND, 30 * SECOND);
    assert_eq!(table.said(), [json!({"type": "presence", "id": asked, "topic": "a"})]);
    refuse(&mut table, &json!(asked));
    assert_eq!(table.answers(), [(asked, refused())]);
    let first = table.session.subscribe("a", Start::Latest, true);
    let id = table.said()[0]["id"].clone();
    refuse(&mut table, &id);
    assert_eq!((table.answers(), table.events().len()), (vec![(first, refused())], 1), "it is not subscribed to");
    // One that was told before, and comes back to a gateway that does not tell it.
    table.session.subscribe("a", Start::Latest, true);
    table.placed("a", "k.5");
    table.lose(None, "cut off");
    table.events();
    table.connect();
    table.events();
    let id = table.said()[0]["id"].clone();
    refuse(&mut table, &id);
    assert_eq!(table.events(), [Event::PresenceRefused { topic: "a".into(), message: "no".into() }]);
    let again = table.said();
    assert_eq!((&again[0]["after"], again[0].get("presence")), (&json!("k.5"), None));
    table.hear(json!({"type": "subscribed", "id": again[0]["id"], "topic": "a", "pos": "k.5", "recovered": true}));
    table.message("a", "k.6");
    assert_eq!(table.places(), ["k.6"]);
}

#[test]
fn who_is_there_is_answered_once_and_what_is_no_answer_to_a_request_is_left_alone() {
    let mut table = welcomed(23);
    let asked = table.session.presence("a", table.now + 30 * SECOND, 30 * SECOND);
    let published = table.publish("a", "x");
    table.lose(Some(4503), "retry=100");
    table.events();
    table.connect();
    table.events();
    assert_eq!(table.said()[0], json!({"type": "presence", "id": asked, "topic": "a"}), "asked again");
    let answer = |id| json!({"type": "presence", "id": id, "topic": "a", "count": 300, "scope": "node"});
    table.hear(answer(published));
    table.hear(json!({"type": "ok", "id": asked, "pos": "k.1"}));
    assert!(table.answers().is_empty() && table.events().is_empty());
    (0..2).for_each(|_| table.hear(answer(asked)));
    let presence = Presence { topic: "a".into(), count: 300, members: None, scope: "node".into() };
    assert_eq!(table.answers(), [(asked, Ok(Answer::Presence(presence)))]);
}

#[test]
fn a_token_that_expires_is_asked_for_anew_and_said_on_the_same_connection() {
    let mut table = welcomed(24);
    let wants = |table: &mut Table| table.session.poll_token(table.now);
    assert!(!wants(&mut table));
    table.hear(json!({"type": "auth_expiring", "in_ms": 2500}));
    assert!(wants(&mut table) && !wants(&mut table), "once");
    table.session.handle_token(table.now, Some("secret"));
    let said = table.said();
    assert_eq!((&said[0]["type"], &said[0]["token"], said.len()), (&json!("auth"), &json!("secret"), 1));
    // One that is not to be had: again while the old one holds.
    table.hear(json!({"type": "auth_expiring", "in_ms": 2500}));
    for again in [true, true, false] {
        assert!(wants(&mut table));
        table.session.handle_token(table.now, None);
        assert!(!wants(&mut table) && table.said().is_empty());
        assert_eq!(table.wait() == SECOND, again);
    }
    assert!(!wants(&mut table));
    // A connection that is gone has no use for it.
    table.hear(json!({"type": "auth_expiring", "in_ms": 60_000}));
    table.lose(None, "cut off");
    table.events();
    table.connect();
    table.said();
    table.session.handle_token(table.now, Some("late"));
    assert!(!wants(&mut table) && table.said().is_empty());
    let mut table = table_without_tokens();
    table.hear(json!({"type": "auth_expiring", "in_ms": 2500}));
    assert!(!wants(&mut table), "there is nobody to ask");
}

fn table_without_tokens() -> Table {
    let mut table = welcomed(24);
    table.session.options.has_tokens = false;
    table
}

#[test]
fn a_window_that_is_told_anew_counts_as_that_of_the_welcome() {
    let longest = |told: Option<u64>| {
        let waits = (0..400).map(|seed| {
            let mut table = welcomed(seed);
            if let Some(retry_ms) = told {
                table.hear(json!({"type": "retry", "retry_ms": retry_ms}));
            }
            table.lose(None, "cut off");
            table.events();
            table.wait().as_millis()
        });
        waits.max().expect("400")
    };
    for (told, bound) in [(None, 8000), (Some(60_000), 60_000), (Some(500), 500)] {
        let waited = longest(told);
        assert!(waited <= bound && waited > bound * 9 / 10, "told {told:?}: {waited} of {bound} ms");
    }
}

#[test]
fn several_things_in_one_message_are_heard_in_order_up_to_what_cannot_be_read() {
    let mut table = table(25);
    table.session.options.batch = true;
    table.pass(Duration::ZERO);
    assert_eq!(table.session.wanted_connection(), Some(1));
    table.session.handle_opened(None);
    assert_eq!(table.said(), [json!({"type": "hello", "batch": true})]);
    table.connect();
    table.said();
    table.place("a", "k.5");
    let message = |pos: &str| json!({"type": "message", "topic": "a", "pos": pos, "data": pos}).to_string() + "\n";
    table.session.handle_text(table.now, &(message("k.6") + &message("k.7") + "\n" + &message("k.8")));
    assert_eq!(table.places(), ["k.6", "k.7", "k.8"]);
    table.session.handle_text(table.now, &(message("k.9") + "{}\n" + &message("k.10")));
    assert_eq!((table.places(), table.session.wanted_connection()), (vec!["k.9".to_owned()], None));
}

/// A gateway that keeps a few messages of one topic, cut off anywhere, for thousands of steps: what is told is one sequence, whose gaps are told.
#[test]
fn however_it_is_cut_off_nothing_is_missed_or_repeated_without_a_gap() {
    const KEPT: u64 = 20;
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut table = welcomed(seed);
        table.place("a", "k.0");
        // How far the topic is, what the connection has asked for, and what of it was said.
        let (mut end, mut reader) = (0_u64, Some(0));
        let (mut told, mut gaps) = (0, 0);
        for _ in 0..2000 {
            match random.u32(..20) {
                0 => {
                    table.lose(None, "cut off");
                    reader = None;
                }
                1..8 => end += random.u64(1..4),
                _ => {
                    if table.session.wanted_connection().is_none() {
                        table.events();
                        table.connect();
                    }
                    for said in table.said().into_iter().filter(|said| said["type"] == "subscribe") {
                        let after: u64 =
                            said["after"].as_str().and_then(|after| after.strip_prefix("k.")).expect("a position").parse().expect("ours");
                        let begin = end.saturating_sub(KEPT).max(after);
                        table.hear(json!({"type": "subscribed", "id": said["id"], "topic": "a", "pos": format!("k.{begin}"), "recovered": begin == after}));
                        reader = Some(after);
                    }
                    if let Some(at) = reader.filter(|at| *at < end) {
                        let begin = end.saturating_sub(KEPT);
                        if at < begin {
                            table.hear(json!({"type": "gap", "topic": "a", "from": format!("k.{at}"), "to": format!("k.{begin}"), "reason": "too_old"}));
                            reader = Some(begin);
                        } else {
                            table.message("a", &format!("k.{}", at + 1));
                            reader = Some(at + 1);
                        }
                    }
                }
            }
            for event in table.events() {
                match event {
                    Event::Message(message) => {
                        assert_eq!(message.pos.as_str(), format!("k.{}", told + 1), "seed {seed}");
                        told += 1;
                    }
                    Event::Gap(gap) => {
                        assert_eq!(gap.from.expect("it knows").as_str(), format!("k.{told}"), "seed {seed}");
                        told = gap.to.as_str().strip_prefix("k.").expect("ours").parse().expect("a number");
                        gaps += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(told > 1000 && gaps > 0, "seed {seed}: {told} of {end}, {gaps} gaps");
    }
}
