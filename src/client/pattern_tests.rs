//! The session's rules about patterns, and about topics that are meant by one and named besides.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::client::topics::{PATTERNS_MAX, RESUMED_MAX};

/// Subscribes to a pattern, and is told that all there is has its place.
fn follow(table: &mut Table, pattern: &str) {
    table.session.subscribe_to_pattern(pattern);
    followed(table, pattern);
    table.events();
    table.answers();
}

/// Answers the pattern that it has asked for; the topics that were asked for by name before, in their order.
fn followed(table: &mut Table, pattern: &str) -> Vec<Value> {
    let mut said = table.said();
    let place = said.iter().position(|said| said["pattern"] == pattern).unwrap_or_else(|| panic!("{pattern} is not asked for: {said:?}"));
    assert_eq!(said[place]["type"], "subscribe");
    table.hear(json!({"type": "ok", "id": said[place]["id"]}));
    said.truncate(place);
    said
}

fn bring(table: &mut Table, topic: &str, pos: &str) {
    table.hear(json!({"type": "subscribed", "topic": topic, "pos": pos, "recovered": false, "replayed": 0}));
}

fn reconnect(table: &mut Table) {
    table.lose(None, "cut off");
    table.events();
    table.connect();
    table.events();
}

/// What it says, each in few words.
fn words(said: &[Value]) -> Vec<String> {
    let word = |said: &Value, field: &str| said[field].as_str().unwrap_or_default().to_owned();
    let words = said.iter().map(|said| {
        let name = word(said, "topic") + &word(said, "pattern");
        format!("{} {name} {}", word(said, "type"), word(said, "after")).trim_end().to_owned()
    });
    words.collect()
}

#[test]
fn a_pattern_brings_the_topics_that_there_are_and_those_that_come_to_be() {
    let mut table = welcomed(40);
    let asked = table.session.subscribe_to_pattern("a.*");
    bring(&mut table, "a.1", "k.5");
    assert!(followed(&mut table, "a.*").is_empty());
    let (pos, recovered) = ("k.5".parse().expect("a position"), false);
    let expected = [Event::Subscribed { topic: "a.1".into(), pos, recovered }, Event::Following { pattern: "a.*".into() }];
    assert_eq!((table.events(), table.answers()), (expected.into(), vec![(asked, Ok(Answer::Following))]));
    bring(&mut table, "a.2", "k.0");
    bring(&mut table, "b.1", "k.0");
    for topic in ["a.1", "a.2", "b.1", "a.3"] {
        table.message(topic, "k.6");
    }
    let heard = table.events().into_iter().filter_map(|event| if let Event::Message(message) = event { Some(message.topic) } else { None });
    assert_eq!(heard.collect::<Vec<_>>(), ["a.1".into(), "a.2".into()], "the others no pattern of ours has brought");
    assert!(table.session.unsubscribe_from_pattern("a.*") && !table.session.unsubscribe_from_pattern("a.*"));
    assert_eq!(words(&table.said()), ["unsubscribe a.*"]);
    table.message("a.1", "k.7");
    assert!(table.events().is_empty());
    reconnect(&mut table);
    assert!(table.said().is_empty(), "it is not wanted any more");
}

#[test]
fn after_a_loss_topics_of_patterns_go_on_by_their_names_those_that_spoke_last_first() {
    let mut table = welcomed(41);
    table.place("own", "k.1");
    follow(&mut table, "a.*");
    for number in 0..200 {
        bring(&mut table, &format!("a.{number}"), "k.5");
    }
    (0..200).for_each(|number| table.message(&format!("a.{}", (number + 100) % 200), "k.6"));
    reconnect(&mut table);
    let named = followed(&mut table, "a.*");
    let expected = ["subscribe own k.1".to_owned()].into_iter().chain((4..100).rev().map(|number| format!("subscribe a.{number} k.6")));
    assert_eq!(words(&named), expected.collect::<Vec<_>>());
    table.events();
    table.hear(json!({"type": "subscribed", "id": named[1]["id"], "topic": "a.99", "pos": "k.8", "recovered": true}));
    table.message("a.99", "k.7");
    assert_eq!(table.places(), ["k.7"]);
    // The others come by the pattern, with a gap where they have gone on.
    for (topic, pos, expected) in [("a.0", "k.6", vec![]), ("a.1", "k.8", vec!["gap to k.8"]), ("a.2", "j.1", vec!["gap to j.1"])] {
        bring(&mut table, topic, pos);
        let events = table.events();
        assert!(matches!(&events[0], Event::Subscribed { recovered, .. } if *recovered == expected.is_empty()), "{events:?}");
        let gaps = events[1..].iter().map(|event| match event {
            Event::Gap(gap) if gap.reason == GapReason::NotResumed && gap.from.as_ref().is_some_and(|from| from.as_str() == "k.6") => {
                format!("gap to {}", gap.to)
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(gaps.collect::<Vec<_>>(), expected);
    }
    table.message("a.1", "k.9");
    assert_eq!(table.places(), ["k.9"]);
}

#[test]
fn names_of_the_application_and_of_resumed_topics_are_128_and_32_are_the_applications_alone() {
    let mut table = welcomed(42);
    follow(&mut table, "a.*");
    (0..200).for_each(|number| bring(&mut table, &format!("a.{number}"), "k.5"));
    reconnect(&mut table);
    assert_eq!(followed(&mut table, "a.*").len(), RESUMED_MAX);
    table.events();
    for number in RESUMED_MAX..TOPICS_MAX {
        table.session.subscribe(&number.to_string(), Start::Latest, false);
    }
    assert_eq!((table.said().len(), table.answers().len()), (TOPICS_MAX - RESUMED_MAX, 0));
    let more = table.session.subscribe("one more", Start::Latest, false);
    assert_eq!(table.answers(), [(more, Err(Error::TooManyTopics { max: TOPICS_MAX }))]);
    assert!(table.session.unsubscribe("100"));
    table.session.subscribe("one more", Start::Latest, false);
    assert!(table.answers().iter().all(|(_, answer)| !matches!(answer, Err(Error::TooManyTopics { .. }))));
    for own in [32, 100] {
        let mut table = welcomed(42);
        follow(&mut table, "a.*");
        (0..200).for_each(|number| bring(&mut table, &format!("a.{number}"), "k.5"));
        (0..own).for_each(|number| table.place(&number.to_string(), "k.1"));
        reconnect(&mut table);
        let named = followed(&mut table, "a.*");
        let resumed = named.iter().filter(|said| said["topic"].as_str().is_some_and(|topic| topic.starts_with("a."))).count();
        assert_eq!((named.len(), resumed), (TOPICS_MAX, TOPICS_MAX - own));
    }
}

#[test]
fn a_topic_that_is_named_besides_has_its_place_either_way() {
    let mut table = welcomed(43);
    follow(&mut table, "a.*");
    bring(&mut table, "a.1", "k.5");
    table.message("a.1", "k.6");
    table.events();
    // Named, it goes on where it was, or begins where it is told.
    table.session.subscribe("a.1", Start::Latest, true);
    let said = table.said();
    assert_eq!((words(&said), &said[1]["presence"]), (vec!["unsubscribe a.1".to_owned(), "subscribe a.1 k.6".to_owned()], &json!(true)));
    table.hear(json!({"type": "subscribed", "id": said[1]["id"], "topic": "a.1", "pos": "k.6", "recovered": true}));
    table.message("a.1", "k.7");
    assert_eq!((table.places(), table.answers().len()), (vec!["k.7".to_owned()], 1));
    // Given up, it is a topic of the pattern's again.
    assert!(table.session.unsubscribe("a.1") && !table.session.unsubscribe("a.1"));
    let said = table.said();
    assert_eq!((words(&said), said[1].get("presence")), (vec!["unsubscribe a.1".to_owned(), "subscribe a.1 k.7".to_owned()], None));
    table.hear(json!({"type": "subscribed", "id": said[1]["id"], "topic": "a.1", "pos": "k.7", "recovered": true}));
    table.events();
    // It was asked for by its name, so it is unsubscribed from by that.
    assert!(table.session.unsubscribe_from_pattern("a.*"));
    assert_eq!(words(&table.said()), ["unsubscribe a.*", "unsubscribe a.1"]);
    table.place("a.2", "k.1");
    follow(&mut table, "a.*");
    assert!(table.session.unsubscribe_from_pattern("a.*"));
    assert_eq!(words(&table.said()), ["unsubscribe a.*"], "what is named stays");
    table.message("a.2", "k.2");
    assert_eq!(table.places(), ["k.2"]);
}

#[test]
fn a_topic_that_is_named_as_the_pattern_brings_it_is_asked_for_again_from_there() {
    let mut table = welcomed(44);
    follow(&mut table, "a.*");
    let waiter = table.session.subscribe("a.1", Start::Latest, false);
    let id = table.said()[0]["id"].clone();
    bring(&mut table, "a.1", "k.0");
    table.message("a.1", "k.1");
    table.hear(json!({"type": "error", "id": id, "code": "already_subscribed", "message": "it is"}));
    assert!(table.events().is_empty() && table.answers().is_empty());
    let said = table.said();
    assert_eq!(words(&said), ["unsubscribe a.1", "subscribe a.1 k.0"]);
    table.hear(json!({"type": "subscribed", "id": said[1]["id"], "topic": "a.1", "pos": "k.1", "recovered": true}));
    table.message("a.1", "k.1");
    assert_eq!(table.places(), ["k.1"]);
    assert_eq!(table.answers(), [(waiter, Ok(Answer::Subscribed("k.0".parse().expect("a position"))))]);
}

#[test]
fn a_pattern_that_is_refused_is_given_up_with_its_topics_and_one_that_may_be_later_is_asked_for_again() {
    let refused = || Error::Refused { code: "no_wildcards".into(), message: "no".into() };
    let mut table = welcomed(45);
    let asked = table.session.subscribe_to_pattern("a.*");
    let id = table.said()[0]["id"].clone();
    table.hear(json!({"type": "error", "id": id, "code": "draining", "message": "later", "retry_ms": 300}));
    assert_eq!(table.wait(), Duration::from_millis(300));
    let id = table.said()[0]["id"].clone();
    table.hear(json!({"type": "error", "id": id, "code": "no_wildcards", "message": "no"}));
    assert_eq!(table.answers(), [(asked, Err(refused()))]);
    assert_eq!(table.events(), [Event::Refused { topic: "a.*".into(), code: "no_wildcards".into(), message: "no".into() }]);
    // By a gateway that it comes back to.
    follow(&mut table, "a.*");
    bring(&mut table, "a.1", "k.5");
    reconnect(&mut table);
    let said = table.said();
    assert_eq!(words(&said), ["subscribe a.1 k.5", "subscribe a.*"]);
    table.hear(json!({"type": "subscribed", "id": said[0]["id"], "topic": "a.1", "pos": "k.5", "recovered": true}));
    table.hear(json!({"type": "error", "id": said[1]["id"], "code": "no_wildcards", "message": "no"}));
    assert_eq!(words(&table.said()), ["unsubscribe a.1"]);
    table.events();
    let (waits, closed) = (table.session.subscribe_to_pattern("b.*"), closed());
    table.session.handle_close(table.now);
    table.wait();
    assert_eq!(table.answers(), [(waits, Err(Error::Closed(closed)))]);
}

#[test]
fn what_the_gateway_leaves_out_is_told() {
    let mut table = welcomed(46);
    follow(&mut table, "a.*");
    table.hear(json!({"type": "error", "code": "too_many_topics", "message": "a connection has at most 256 of them"}));
    assert_eq!(table.events(), [Event::LeftOut { code: "too_many_topics".into(), message: "a connection has at most 256 of them".into() }]);
}

#[test]
fn patterns_and_what_they_bring_are_bounded() {
    let mut table = welcomed(47);
    for number in 0..PATTERNS_MAX {
        table.session.subscribe_to_pattern(&format!("{number}.*"));
    }
    let (again, more) = (table.session.subscribe_to_pattern("7.*"), table.session.subscribe_to_pattern("a.*"));
    let expected = [(again, Err(Error::AlreadySubscribed("7.*".into()))), (more, Err(Error::TooManyPatterns { max: PATTERNS_MAX }))];
    assert_eq!(table.answers(), expected);

    let mut table = welcomed(47);
    follow(&mut table, "*");
    let room = BROUGHT_MAX + TOPICS_MAX;
    for number in 0..room {
        bring(&mut table, &number.to_string(), "k.5");
        table.events();
    }
    bring(&mut table, "one more", "k.5");
    assert!(matches!(&table.events()[..], [Event::LeftOut { message, .. }] if message.contains("one more")));
    assert_eq!(words(&table.said()), ["unsubscribe one more"]);
    table.message("0", "k.6");
    table.message("one more", "k.6");
    assert_eq!(table.places(), ["k.6"]);
    // On the next connection room is made of one that is not there; that one is new when it comes again, and the one that spoke is not.
    reconnect(&mut table);
    assert_eq!(followed(&mut table, "*").len(), RESUMED_MAX);
    table.events();
    bring(&mut table, "one more", "k.5");
    assert!(matches!(&table.events()[..], [Event::Subscribed { .. }]));
}

#[test]
fn a_topic_that_came_to_be_while_it_was_away_is_heard_from_then_on() {
    let mut table = welcomed(48);
    follow(&mut table, "a.*");
    bring(&mut table, "a.1", "k.5");
    table.lose(Some(4503), "retry=20000");
    table.events();
    assert_eq!(table.wait(), 20 * SECOND);
    table.connect();
    table.events();
    let said = table.said();
    bring(&mut table, "a.2", "k.3");
    bring(&mut table, "a.3", "k.0");
    let asked = table.said();
    assert_eq!(words(&asked), ["unsubscribe a.2", "subscribe a.2 -30s"], "nothing is missing of one that nobody has spoken in");
    table.message("a.2", "k.4");
    assert!(matches!(&table.events()[..], [Event::Subscribed { topic, .. }] if &**topic == "a.3"));
    // Cut off before it has its place, it is as new as before.
    table.hear(json!({"type": "ok", "id": said[1]["id"]}));
    table.lose(Some(4503), "retry=7000");
    table.events();
    table.wait();
    table.connect();
    table.events();
    let said = table.said();
    assert_eq!(words(&said), ["subscribe a.1 k.5", "subscribe a.3 k.0", "subscribe a.*"]);
    bring(&mut table, "a.2", "k.4");
    let asked = table.said();
    assert_eq!(words(&asked), ["unsubscribe a.2", "subscribe a.2 -37s"]);
    table.hear(json!({"type": "subscribed", "id": asked[1]["id"], "topic": "a.2", "pos": "k.0", "recovered": false}));
    ["k.1", "k.2"].iter().for_each(|pos| table.message("a.2", pos));
    assert_eq!(table.places(), ["k.1", "k.2"]);
    table.hear(json!({"type": "ok", "id": said[2]["id"]}));
    // While the pattern is followed what comes to be is heard from its first message on anyway.
    table.events();
    bring(&mut table, "a.4", "k.7");
    assert!(table.said().is_empty() && matches!(&table.events()[..], [Event::Subscribed { .. }]));
    // Without a name that is left, a gap says so.
    (5..200).for_each(|number| bring(&mut table, &format!("a.{number}"), "k.7"));
    reconnect(&mut table);
    table.said();
    bring(&mut table, "a.new", "k.2");
    let events = table.events();
    assert!(
        matches!(&events[..], [Event::Subscribed { .. }, Event::Gap(Gap { from: None, to, reason: GapReason::NotResumed, .. })] if to.as_str() == "k.2"),
        "{events:?}"
    );
}

/// A gateway with more topics than can be named, cut off anywhere, for thousands of steps: nothing that a pattern means is missed or repeated without a gap.
#[test]
fn however_it_is_cut_off_nothing_that_a_pattern_means_is_missed_or_repeated_without_a_gap() {
    const TOPICS: usize = 120;
    let (mut messages, mut gaps) = (0, 0);
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut table = welcomed(seed);
        table.session.subscribe_to_pattern("a.*");
        // The last message of each topic there is, how far each that this connection has was said, and how far the client was told.
        let (mut ends, mut said, mut told) =
            (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
        let mut follows = false;
        // Those that have come to be since it has followed the pattern, and those of them that it owes the beginning of.
        let (mut has_followed, mut late, mut owed) = (false, BTreeSet::<String>::new(), BTreeSet::<String>::new());
        for _ in 0..3000 {
            match random.u32(..100) {
                0 => {
                    table.lose(None, "cut off");
                    (said, follows) = (BTreeMap::new(), false);
                }
                1..50 => {
                    let topic = format!("a.{}", random.usize(..TOPICS));
                    if has_followed && !ends.contains_key(&topic) {
                        late.insert(topic.clone());
                    }
                    let end = ends.entry(topic.clone()).or_default();
                    if follows && !said.contains_key(&topic) {
                        said.insert(topic.clone(), *end);
                        bring(&mut table, &topic, &format!("k.{end}"));
                    }
                    *end += 1;
                }
                _ => {
                    if table.session.wanted_connection().is_none() {
                        table.events();
                        table.connect();
                    }
                    for asked in table.said().into_iter().filter(|said| said["type"] == "subscribe") {
                        if let Some(topic) = asked["topic"].as_str() {
                            // All is kept: a time goes back to the beginning of a topic that is so new.
                            let after = asked["after"].as_str().expect("it is of a pattern");
                            let after: u64 = after.strip_prefix("k.").map_or(0, |after| after.parse().expect("ours"));
                            let pos = format!("k.{after}");
                            table.hear(json!({"type": "subscribed", "id": asked["id"], "topic": topic, "pos": pos, "recovered": true}));
                            said.insert(topic.to_owned(), after);
                            continue;
                        }
                        for (topic, end) in &ends {
                            if !said.contains_key(topic) {
                                bring(&mut table, topic, &format!("k.{end}"));
                                said.insert(topic.clone(), *end);
                            }
                        }
                        table.hear(json!({"type": "ok", "id": asked["id"]}));
                        (follows, has_followed) = (true, true);
                    }
                    let behind: Vec<String> =
                        said.iter().filter(|(topic, said)| **said < ends[*topic]).map(|(topic, _)| topic.clone()).collect();
                    if !behind.is_empty() {
                        let topic = &behind[random.usize(..behind.len())];
                        let next = said.get_mut(topic).expect("it is behind");
                        *next += 1;
                        let pos = format!("k.{next}");
                        table.message(topic, &pos);
                    }
                }
            }
            let number = |pos: &Position| pos.as_str().strip_prefix("k.").expect("ours").parse::<u64>().expect("a number");
            for event in table.events() {
                match event {
                    Event::Message(message) => {
                        let had = told.insert(message.topic.to_string(), number(&message.pos)).expect("it was brought");
                        assert_eq!(number(&message.pos), had + 1, "seed {seed}: {message:?}");
                        messages += 1;
                    }
                    Event::Gap(gap) => {
                        let had = told.insert(gap.topic.to_string(), number(&gap.to)).expect("it was brought");
                        match &gap.from {
                            Some(from) => assert!(number(from) == had && number(&gap.to) > had, "seed {seed}: {gap:?} behind {had}"),
                            None => assert!(owed.remove(&*gap.topic) && number(&gap.to) == had, "seed {seed}: {gap:?} behind {had}"),
                        }
                        gaps += 1;
                    }
                    // The first time it begins there.
                    Event::Subscribed { topic, pos, .. } if !told.contains_key(&*topic) => {
                        told.insert(topic.to_string(), number(&pos));
                        if late.contains(&*topic) && number(&pos) > 0 {
                            owed.insert(topic.to_string());
                        }
                    }
                    _ => {}
                }
            }
            assert!(owed.is_empty(), "seed {seed}: the beginning of {owed:?} is missing, and no gap says so");
        }
    }
    assert!(messages > 10_000 && gaps > 10, "{messages} messages, {gaps} gaps");
}
