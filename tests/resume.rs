//! Coming back: positions, `Last-Event-ID`, histories, and what is told of what they no longer have, over real sockets.

mod common;

use common::events::{self, SHARDS, expect_all, expect_gap, offset, publish, publish_all, shards};
use common::raw::{self, End};
use common::{SOON, eventually, gateway, sleep_ms};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

// ---- coming back -------------------------------------------------------------------------------------------------------------------

#[test]
fn who_comes_back_with_last_event_id_gets_exactly_what_it_missed() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a");
        publish_all(&mut publisher, 0..5);
        expect_all(&mut reader, 0..5);
        let id = reader.last_id();
        drop(reader);
        publish_all(&mut publisher, 5..45);
        // The header, and what stands for it in the query; the header wins over the URL's own beginning.
        for mut reader in [
            events::resume(gateway.port, "/events?topic=a", &id),
            events::resume(gateway.port, "/events?topic=a&after=earliest", &id),
            events::resume(gateway.port, "/events?topic=a&last=3", &id),
            events::open(gateway.port, &format!("/events?topic=a&last_event_id={id}")),
            events::open(gateway.port, &format!("/events?topic=a&after={id}")),
        ] {
            expect_all(&mut reader, 5..45);
            reader.expect_silence(20);
        }
        // Up to date: nothing, and then what is new.
        let mut reader = events::resume(gateway.port, "/events?topic=a", &id);
        expect_all(&mut reader, 5..45);
        let mut reader = events::resume(gateway.port, "/events?topic=a", &reader.last_id());
        publish(&mut publisher, "45");
        reader.expect("45");
    }
}

/// Cut off again and again at any point while two publishers go on.
#[test]
fn resuming_under_fire_loses_nothing_and_doubles_nothing() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 100_000).start();
        let (stop, published) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for name in ["x", "y"] {
                let (gateway, stop, published) = (&gateway, &stop, &published);
                scope.spawn(move || {
                    let mut publisher = raw::ws(gateway, "/ws?room=fire");
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        publisher.send_text(&format!("{name} {number}"));
                        number += 1;
                        while publisher.frame().payload != format!("{name} {}", number - 1).as_bytes() {}
                    }
                    published.fetch_add(number, Ordering::Relaxed);
                });
            }
            let mut watcher = events::open(gateway.port, "/events?topic=fire");
            let (mut order, mut heard) = (Vec::new(), Vec::new());
            let mut id = watcher.last_id();
            for round in 0..60 {
                let mut reader = events::resume(gateway.port, "/events?topic=fire", &id);
                for _ in 0..(round * 13 % 17) {
                    let event = reader.event();
                    assert_eq!(event.name, "message", "{event:?}");
                    heard.push((event.id, event.data));
                }
                id = reader.last_id();
                if round % 2 == 0 {
                    reader.raw.reset();
                }
            }
            stop.store(true, Ordering::Relaxed);
            let mut reader = events::resume(gateway.port, "/events?topic=fire", &id);
            reader.raw.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout above zero");
            watcher.raw.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout above zero");
            for (reader, into) in [(&mut reader, &mut heard), (&mut watcher, &mut order)] {
                while let Ok(event) = reader.next() {
                    into.push((event.id, event.data));
                }
            }
            assert!(heard == order, "{} events over many lives, {} in one", heard.len(), order.len());
            assert!(order.len() > 100, "no fire: {}", order.len());
        });
    }
}

#[test]
fn a_stream_begins_where_after_and_last_say() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        publish_all(&mut publisher, 0..20);
        sleep_ms(3000);
        publish_all(&mut publisher, 20..30);
        for (query, first) in [
            ("", 30),
            ("&after=latest", 30),
            ("&after=earliest", 0),
            ("&after=-1s", 20),
            ("&after=-30s", 0),
            ("&after=-1h", 0),
            ("&last=0", 30),
            ("&last=7", 23),
            ("&last=1000", 0),
        ] {
            let mut reader = events::open(gateway.port, &format!("/events?topic=a{query}"));
            // An age is kept to within a grain, and never less than asked for.
            if query == "&after=-1s" {
                let first: u32 = reader.event().data.parse().expect("a number");
                assert!((19..=20).contains(&first), "{count} shards, {query}: {first}");
                expect_all(&mut reader, first + 1..30);
            } else {
                expect_all(&mut reader, first..30);
            }
            reader.expect_silence(20);
        }
    }
}

#[test]
fn a_raw_websocket_begins_where_after_and_last_say() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a");
        publish_all(&mut publisher, 0..30);
        let ids: Vec<String> = (0..30).map(|number: u32| reader.expect(&number.to_string())).collect();
        for (query, first) in [
            ("&last=7".to_owned(), 23),
            ("&last=0".to_owned(), 30),
            ("&after=earliest".to_owned(), 0),
            ("&after=latest".to_owned(), 30),
            ("&after=-30s".to_owned(), 0),
            (format!("&after={}", ids[9]), 10),
            (format!("&after={}", ids[29]), 30),
        ] {
            let mut member = raw::ws(&gateway, &format!("/ws?room=a{query}"));
            for number in first..30 {
                member.expect_text(&number.to_string());
            }
            member.expect_silence(20);
        }
        for (query, says) in [("&after=nonsense", "after"), ("&last=x", "last"), ("&after=earliest&last=2", "both")] {
            let response = raw::http(gateway.port, raw::upgrade(&format!("/ws?room=a{query}"), "").as_bytes());
            assert_eq!(response.status, 400, "{query}: {response:?}");
            assert!(response.text().contains(says), "{}", response.text());
        }
    }
}

#[test]
fn a_raw_websocket_whose_position_is_gone_is_closed_4510() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 10).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a");
        publish_all(&mut publisher, 0..60);
        let ids: Vec<String> = (0..60).map(|number: u32| reader.expect(&number.to_string())).collect();
        let (epoch, _) = ids[0].split_once('.').expect("a position");
        for (position, word) in [(ids[0].as_str(), "too_old"), ("zzz.5", "restart"), (&format!("{epoch}.9999"), "unknown")] {
            let mut member = raw::ws(&gateway, &format!("/ws?room=a&after={position}"));
            let reason = member.expect_close(4510);
            assert!(reason.contains(word) && reason.contains("retry="), "{position}: {reason}");
        }
        eventually(SOON, || match gateway.metrics().sum("shardcast_connections", &[("transport", "ws")]) {
            1.0 => Ok(()),
            open => Err(format!("{open} WebSockets are open")),
        });
        gateway.wait_for_closes("4510", 3);
    }
}

// ---- what cannot be had any more ---------------------------------------------------------------------------------------------------

#[test]
fn what_history_has_let_go_of_is_announced_by_a_gap() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 10).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a&topic=b");
        let mut alone = events::open(gateway.port, "/events?topic=a");
        publish(&mut publisher, "seen");
        reader.expect("seen");
        alone.expect("seen");
        let (id, id_alone) = (reader.last_id(), alone.last_id());
        drop((reader, alone));
        publish_all(&mut publisher, 0..60);
        let mut alone = events::resume(gateway.port, "/events?topic=a", &id_alone);
        let to = expect_gap(&mut alone, "a", &id_alone, "too_old");
        let first: u32 = alone.event().data.parse().expect("a number");
        assert!((48..=50).contains(&first), "10 messages are kept, or some more: from {first}");
        assert_eq!(to, u64::from(first) + 1, "the gap ends where what is delivered begins");
        expect_all(&mut alone, first + 1..60);
        // The other topic of a stream is not concerned, and the gap says from where this one was.
        let mut reader = events::resume(gateway.port, "/events?topic=a&topic=b", &id);
        assert_eq!(expect_gap(&mut reader, "a", &id_alone, "too_old"), to);
        // A reader that is cut off right behind the gap is not told of it again.
        let mut again = events::resume(gateway.port, "/events?topic=a&topic=b", &reader.last_id());
        expect_all(&mut reader, first..60);
        expect_all(&mut again, first..60);
        again.expect_silence(20);
    }
}

#[test]
fn a_position_from_before_a_restart_is_announced_by_a_gap() {
    for count in SHARDS {
        let first = shards(count).start();
        let mut publisher = raw::ws(&first, "/ws?room=a");
        let mut reader = events::open(first.port, "/events?topic=a");
        publish_all(&mut publisher, 0..5);
        expect_all(&mut reader, 0..5);
        let id = reader.last_id();
        drop((reader, publisher, first));
        let second = shards(count).start();
        let mut reader = events::resume(second.port, "/events?topic=a", &id);
        expect_gap(&mut reader, "a", &id, "restart");
        let mut publisher = raw::ws(&second, "/ws?room=a");
        publish_all(&mut publisher, 0..5);
        expect_all(&mut reader, 0..5);
        // With messages there: they come behind the gap.
        let mut reader = events::resume(second.port, "/events?topic=a", &id);
        expect_gap(&mut reader, "a", &id, "restart");
        expect_all(&mut reader, 0..5);
        assert_eq!(second.metrics().sum("shardcast_gaps_total", &[("reason", "restart")]), 2.0);
    }
}

#[test]
fn a_position_that_nobody_was_given_is_announced_by_a_gap() {
    for count in SHARDS {
        let gateway = shards(count).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        publish_all(&mut publisher, 0..5);
        let epoch = events::open(gateway.port, "/events?topic=a").last_id().split('.').next().map(str::to_owned).expect("an epoch");
        let id = format!("{epoch}.4711");
        let mut reader = events::resume(gateway.port, "/events?topic=a", &id);
        expect_gap(&mut reader, "a", &id, "unknown");
        expect_all(&mut reader, 0..5);
    }
}

/// Its messages have aged out, and it had them all.
#[test]
fn who_was_up_to_date_is_told_of_no_gap_when_history_ages_out() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_age_ms", 1000).start();
        let names = ["a", "b", "c", "d"];
        let mut lives: Vec<(String, String, String)> = Vec::new();
        for name in names {
            let path = format!("/events?topic={name}");
            let mut publisher = raw::ws(&gateway, &format!("/ws?room={name}"));
            let mut reader = events::open(gateway.port, &path);
            let mut late = events::open(gateway.port, &path);
            publish_all(&mut publisher, 0..3);
            expect_all(&mut late, 0..3);
            reader.expect("0");
            lives.push((path, late.last_id(), reader.last_id()));
        }
        // Nobody holds the topics: they go when their histories do.
        gateway.wait_for_no_topics();
        for (path, up_to_date, behind) in &lives {
            let name = &path["/events?topic=".len()..];
            let mut reader = events::resume(gateway.port, path, up_to_date);
            let mut publisher = raw::ws(&gateway, &format!("/ws?room={name}"));
            publish(&mut publisher, "new");
            let id = reader.expect("new");
            assert_eq!(offset(&id), 4, "a topic that comes back goes on where it was");
            // Who had missed some is told.
            let mut reader = events::resume(gateway.port, path, behind);
            assert_eq!(expect_gap(&mut reader, name, behind, "too_old"), 3);
            reader.expect("new");
        }
        assert_eq!(gateway.metrics().sum("shardcast_gaps_total", &[("reason", "too_old")]), 4.0);
    }
}

/// The same with members who keep the topic while its history goes.
#[test]
fn a_quiet_topic_gives_no_false_gap() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_age_ms", 1000).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a");
        publish_all(&mut publisher, 0..3);
        let behind = reader.expect("0");
        expect_all(&mut reader, 1..3);
        let id = reader.last_id();
        // Until nothing is kept.
        eventually(SOON, || {
            let mut raw = events::open(gateway.port, "/events?topic=a&after=earliest");
            raw.raw.stream.set_read_timeout(Some(Duration::from_millis(30))).expect("a timeout above zero");
            match raw.next() {
                Err(End::Open) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let mut up_to_date = events::resume(gateway.port, "/events?topic=a", &id);
        let mut late = events::resume(gateway.port, "/events?topic=a", &behind);
        assert_eq!(expect_gap(&mut late, "a", &behind, "too_old"), offset(&id));
        publish(&mut publisher, "new");
        up_to_date.expect("new");
        late.expect("new");
    }
}

#[test]
fn without_history_only_who_was_up_to_date_comes_back_without_a_gap() {
    for count in SHARDS {
        let gateway = shards(count).limit("history_messages", 0).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        let mut reader = events::open(gateway.port, "/events?topic=a");
        publish(&mut publisher, "one");
        let id = reader.expect("one");
        let mut again = events::resume(gateway.port, "/events?topic=a", &id);
        publish(&mut publisher, "two");
        again.expect("two");
        let mut late = events::resume(gateway.port, "/events?topic=a", &id);
        assert_eq!(expect_gap(&mut late, "a", &id, "too_old"), 2);
        publish(&mut publisher, "three");
        late.expect("three");
    }
}

/// The id of `shardcast:open` was once behind the gap that is told only after it: who was cut off between the two was never told.
#[test]
fn who_is_cut_off_between_open_and_gap_is_told_of_it_again() {
    let gateway = gateway().limit("history_messages", 10).start();
    let mut publisher = raw::ws(&gateway, "/ws?room=a");
    let mut reader = events::open(gateway.port, "/events?topic=a");
    publish_all(&mut publisher, 0..60);
    let id = reader.expect("0");
    let cut_off = events::resume(gateway.port, "/events?topic=a", &id);
    // An event without an id leaves an EventSource the one that it has.
    let told = if cut_off.last_id().is_empty() { id.clone() } else { cut_off.last_id() };
    let mut again = events::resume(gateway.port, "/events?topic=a", &told);
    expect_gap(&mut again, "a", &id, "too_old");
}

/// After a restart no old position says where a reader is in the new life: until all of its gaps were told it has none of the new ones.
#[test]
fn who_is_cut_off_among_several_gaps_is_told_of_all_of_them_again() {
    for shards in [1, 3] {
        let gateway = gateway().shards(shards).start();
        let mut publisher = raw::ws(&gateway, "/ws?room=a");
        publish_all(&mut publisher, 0..3);
        let mut reader = events::resume(gateway.port, "/events?topic=a&topic=b", "1.5,7");
        assert_eq!(reader.last_id(), "", "an id before the gaps");
        let mut told: Vec<_> = (0..2).map(|_| (reader.expect_control("gap"), reader.last_id())).collect();
        assert!(told[0].1.is_empty() && !told[1].1.is_empty(), "{told:?}");
        told.sort_by_key(|(gap, _)| gap["topic"].as_str().map(str::to_owned));
        assert_eq!([&told[0].0["from"], &told[1].0["from"]], ["1.5", "1.7"]);
        assert_eq!((&told[0].0["reason"], &told[1].0["reason"]), (&"restart".into(), &"restart".into()));
        for number in 0..3 {
            reader.expect(&number.to_string());
        }
    }
}
