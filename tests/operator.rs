//! The operator's pages on the admin listener: topics, connections, memory, and what an operator has done to clients.

mod common;

use std::time::Duration;

use common::events;
use common::freeze::Frozen;
use common::raw::{self, Raw, Response};
use common::swarm::{Event, State, Swarm};
use common::{Gateway, SOON, eventually, foreign, gateway, now, sleep_ms};
use serde_json::Value;

/// A request to the admin listener.
fn admin(gateway: &Gateway, line: &str, body: &str) -> Response {
    let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    raw::http(gateway.admin, request.as_bytes())
}

fn ok(gateway: &Gateway, line: &str) -> Value {
    parsed(line, &admin(gateway, line, ""))
}

fn parsed(line: &str, response: &Response) -> Value {
    let body = response.text();
    assert_eq!(response.status, 200, "{line}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{line}: {error} in {body}"))
}

fn refused(gateway: &Gateway, line: &str, status: u16, word: &str) {
    let response = admin(gateway, line, "");
    assert!(response.status == status && response.text().contains(word), "{line}: {response:?} {}", response.text());
}

fn array<'a>(page: &'a Value, name: &str) -> &'a Vec<Value> {
    page[name].as_array().unwrap_or_else(|| panic!("{name} in {page}"))
}

fn publish(gateway: &Gateway, topic: &str, body: &str) {
    let request = format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let response = raw::http(gateway.port, request.as_bytes());
    assert_eq!(response.status, 200, "{response:?}");
}

fn poll(gateway: &Gateway, topic: &str) -> Raw {
    let mut raw = Raw::connect(gateway.port);
    raw.write(format!("GET /poll?topic={topic}&wait=50 HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    raw
}

/// Until the topic has so many subscribers, those who poll included.
fn wait_for_subscribers(gateway: &Gateway, topic: &str, expected: u64) {
    eventually(SOON, || {
        let page = ok(gateway, "GET /debug/topics?limit=1000");
        let found = array(&page, "topics").iter().find(|view| view["topic"] == topic).map(|view| view["subscribers"].clone());
        if found == Some(expected.into()) { Ok(()) } else { Err(format!("{expected} in {topic}, not in {page}")) }
    });
}

#[test]
fn topics_come_in_the_order_asked_for_whatever_shard_is_their_home() {
    let gateway = gateway().shards(3).start();
    // Topic number n has n + 1 members on all shards, and 10 - n messages of 100 n bytes.
    let members: Vec<foreign::Client> =
        (0..10).flat_map(|n| (0..=n).map(move |_| n)).map(|n| foreign::connect(&gateway, &format!("/ws?room=t{n}"))).collect();
    for n in 0..10 {
        for _ in n..10 {
            publish(&gateway, &format!("t{n}"), &"x".repeat(100 * n + 1));
        }
    }
    for n in 0..10 {
        wait_for_subscribers(&gateway, &format!("t{n}"), n + 1);
    }
    let order =
        |page: &Value| array(page, "topics").iter().map(|topic| topic["topic"].as_str().expect("a name").to_owned()).collect::<Vec<_>>();
    let page = ok(&gateway, "GET /debug/topics?limit=3");
    assert_eq!(order(&page), ["t9", "t8", "t7"], "{page}");
    let page = ok(&gateway, "GET /debug/topics?sort=messages");
    assert_eq!(order(&page), (0..10).map(|n| format!("t{n}")).collect::<Vec<_>>(), "{page}");
    let homes: std::collections::BTreeSet<u64> =
        array(&page, "topics").iter().map(|topic| topic["shard"].as_u64().expect("a shard")).collect();
    assert!(homes.len() > 1, "{page}");
    let bytes = ok(&gateway, "GET /debug/topics?sort=bytes");
    let sizes: Vec<u64> = array(&bytes, "topics").iter().map(|topic| topic["history_bytes"].as_u64().expect("bytes")).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] > 2000, "{bytes}");
    let first = &array(&page, "topics")[0];
    assert_eq!(
        (&first["messages"], &first["history"], &first["subscribers"], &first["lag_bytes"]),
        (&10.into(), &10.into(), &1.into(), &0.into())
    );
    assert!(first["pos"].as_str().is_some_and(|pos| pos.ends_with(".10")), "{first}");
    assert!(first["published_ms_ago"].as_u64().is_some_and(|ms| ms < 10_000), "{first}");
    // A topic nobody has published to has no position.
    let _quiet = foreign::connect(&gateway, "/ws?room=quiet");
    let page = ok(&gateway, "GET /debug/topics?limit=100");
    let quiet = array(&page, "topics").iter().find(|topic| topic["topic"] == "quiet").expect("it is there");
    assert!(quiet["pos"].is_null() && quiet["published_ms_ago"].is_null(), "{quiet}");
    drop(members);
}

#[test]
fn who_has_most_queued_comes_first() {
    let gateway = gateway().limit("queue_bytes_max", 64 << 20).limit("write_stall_ms", 60_000).start();
    let mut quick: Vec<foreign::Client> = (0..20).map(|_| foreign::connect(&gateway, "/ws?room=a")).collect();
    let mut slow = Raw::connect_with_small_buffer(gateway.port);
    slow.write(raw::upgrade("/ws?room=a", "").as_bytes());
    slow.expect_upgraded();
    let text = "x".repeat(60_000);
    for _ in 0..100 {
        quick[0].text(&text);
        quick.iter_mut().for_each(|client| client.expect_text(&text));
    }
    for sort in ["bytes", "lag"] {
        let page = ok(&gateway, &format!("GET /debug/connections?sort={sort}&limit=5"));
        let found = array(&page, "connections");
        assert_eq!(found.len(), 5, "{page}");
        let (first, second) = (&found[0], &found[1]);
        assert!(first["queued_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{page}");
        assert!(first["lag_messages"].as_u64().is_some_and(|messages| messages > 10), "{page}");
        assert_eq!((&second["queued_bytes"], &second["lag_messages"]), (&0.into(), &0.into()), "{page}");
        assert_eq!((&first["transport"], &first["client"], &first["topics"]), (&"ws".into(), &"127.0.0.1".into(), &1.into()));
        let connected = first["connected_ms"].as_u64().expect("milliseconds");
        let heard = first["heard_ms_ago"].as_u64().expect("milliseconds");
        assert!(connected < 60_000 && heard <= connected + 100, "{first}");
    }
    // One that does not read is ended at once all the same, and remembered.
    let id = ok(&gateway, "GET /debug/connections?limit=1")["connections"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(ok(&gateway, &format!("POST /connections/{id}/disconnect?code=4420&reason=too%20slow"))["disconnected"], 1);
    refused(&gateway, &format!("POST /connections/{id}/disconnect"), 404, "has ended");
    refused(&gateway, "POST /connections/77-1-1/disconnect", 404, "has ended");
    let page = ok(&gateway, "GET /debug/connections?sort=drops");
    let closing = &array(&page, "closings")[0];
    assert_eq!((&closing["id"], &closing["cause"], &closing["code"]), (&id.into(), &"disconnected".into(), &4420.into()), "{page}");
    assert!(closing["dropped"].as_u64().is_some_and(|dropped| dropped > 10), "{closing}");
    assert_eq!(closing["client"], "127.0.0.1", "{closing}");
    gateway.wait_for_closes("disconnected", 1);
}

#[test]
fn the_last_closings_say_who_went_and_why() {
    let gateway = gateway().shards(1).limit("closings_kept", 3).start();
    for _ in 0..5 {
        foreign::connect(&gateway, "/ws").leave();
    }
    gateway.wait_for_closes("client_closed", 5);
    let mut wrong = raw::ws(&gateway, "/ws");
    wrong.write(&[0xff, 0x80, 0, 0, 0, 0]);
    wrong.expect_close(1002);
    let page = eventually(SOON, || {
        let page = ok(&gateway, "GET /debug/connections");
        if array(&page, "closings")[0]["cause"] == "protocol_error" { Ok(page) } else { Err(page.to_string()) }
    });
    let closings = array(&page, "closings");
    assert_eq!(closings.len(), 3, "{page}");
    assert_eq!((&closings[0]["code"], &closings[0]["transport"]), (&1002.into(), &"ws".into()), "{page}");
    assert_eq!((&closings[1]["cause"], &closings[1]["shard"]), (&"client_closed".into(), &0.into()), "{page}");
    assert!(closings.iter().all(|closing| closing["ended_ms_ago"].as_u64().is_some_and(|ms| ms < 10_000)), "{page}");
}

#[test]
fn a_client_behind_a_trusted_proxy_is_shown_with_its_own_address() {
    let gateway = gateway().env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.0/8").env("SHARDCAST_CLIENT_ADDRESS", "x-forwarded-for").start();
    let mut told = Raw::connect(gateway.port);
    told.write(raw::upgrade("/ws?room=a", "X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n").as_bytes());
    told.expect_upgraded();
    let page = ok(&gateway, "GET /debug/connections");
    assert_eq!(array(&page, "connections")[0]["client"], "203.0.113.7", "{page}");
    drop(told);
    let page = eventually(SOON, || {
        let page = ok(&gateway, "GET /debug/connections");
        if array(&page, "closings").is_empty() { Err(page.to_string()) } else { Ok(page) }
    });
    assert_eq!(array(&page, "closings")[0]["client"], "203.0.113.7", "{page}");
}

/// A gap that a stream is told is counted for it.
#[test]
fn streams_that_were_told_of_gaps_come_first() {
    let gateway = gateway().limit("history_messages", 2).start();
    let _whole = events::open(gateway.port, "/events?topic=a");
    for n in 0..10 {
        publish(&gateway, "a", &n.to_string());
    }
    let mut stale = events::open(gateway.port, "/events?topic=a&after=k3f9.3");
    assert_eq!(stale.event().name, "shardcast:gap");
    let page = ok(&gateway, "GET /debug/connections?sort=drops");
    let found = array(&page, "connections");
    assert_eq!((&found[0]["gaps"], &found[0]["transport"]), (&1.into(), &"sse".into()), "{page}");
    assert_eq!(found[1]["gaps"], 0, "{page}");
}

/// With one place a turn the shards take many turns, and serve their clients in between.
#[test]
fn a_question_is_worked_off_in_slices() {
    const CLIENTS: usize = 600;
    let gateway = gateway().limit("inspect_slots_per_turn", 1).start();
    let mut swarm = Swarm::new(gateway.port);
    for _ in 0..CLIENTS {
        swarm.connect("/ws?room=lobby");
    }
    swarm.run(SOON, "members", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == CLIENTS);
    let turns = || gateway.metrics().sum("shardcast_loop_turns_total", &[]);
    let before = turns();
    let page = ok(&gateway, "GET /debug/connections?limit=1000");
    assert_eq!(array(&page, "connections").len(), CLIENTS);
    assert!(turns() - before >= CLIENTS as f64, "{} turns", turns() - before);
    let ids: std::collections::HashSet<&str> = array(&page, "connections").iter().filter_map(|view| view["id"].as_str()).collect();
    assert_eq!(ids.len(), CLIENTS);
    ok(&gateway, "GET /debug/memory");
}

#[test]
fn a_shard_that_does_not_answer_is_named() {
    let gateway = gateway().start();
    let frozen = Frozen::stop(gateway.shard_thread(1));
    let begun = now();
    refused(&gateway, "GET /debug/topics", 503, "shard 1");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Nor do its unread questions get in the way of others later.
    for _ in 0..3 {
        refused(&gateway, "GET /debug/memory", 503, "shard 1");
    }
    drop(frozen);
    ok(&gateway, "GET /debug/topics");
}

/// However often the operator asks in vain: what has to be done later finds room, and is done.
#[test]
fn questions_that_wait_for_a_stuck_shard_leave_room_for_a_drain() {
    let mut gateway = gateway().start();
    let mut clients: Vec<foreign::Client> = (0..10).map(|_| foreign::connect(&gateway, "/ws")).collect();
    let frozen = Frozen::stop(gateway.shard_thread(1));
    for _ in 0..2 {
        std::thread::scope(|scope| (0..15).for_each(|_| drop(scope.spawn(|| refused(&gateway, "GET /debug/topics", 503, "shard 1")))));
    }
    let begun = now();
    refused(&gateway, "GET /debug/topics", 503, "shard 1");
    assert!(begun.elapsed() < Duration::from_secs(1), "there was still room after {:?}", begun.elapsed());
    ok(&gateway, "POST /drain?exit=1");
    drop(frozen);
    clients.iter_mut().for_each(|client| assert_eq!(client.close_code(), 1012));
    drop(clients);
    assert_eq!(gateway.exit_within(SOON).code(), Some(0));
}

fn memory(gateway: &Gateway) -> (u64, i64, Value) {
    let page = ok(gateway, "GET /debug/memory");
    let owners = page["owners"].as_object().expect("owners");
    let process = page["process"].as_u64().expect("bytes");
    let sum: i64 = owners.values().map(|bytes| bytes.as_i64().expect("bytes")).sum();
    assert_eq!(sum, process as i64, "{page:#}");
    (process, owners["other"].as_i64().expect("bytes"), page)
}

#[test]
fn memory_adds_up_and_what_many_clients_and_histories_take_is_accounted_for() {
    const CLIENTS: usize = 8000;
    common::raise_nofile();
    let gateway = gateway().limit("segment_bytes_min", 256).start();
    let (empty, other_before, _) = memory(&gateway);
    let mut swarm = Swarm::new(gateway.port);
    for n in 0..CLIENTS {
        swarm.connect(&format!("/ws?room=room{}", n % 500));
        swarm.turn(Duration::ZERO, &mut |_, _| {});
    }
    swarm.run(3 * SOON, "members", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == CLIENTS);
    let mut publisher = Raw::connect(gateway.port);
    let body = "x".repeat(2000);
    for n in 0..5000 {
        let head = format!("POST /publish?topic=room{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", n % 500, body.len());
        publisher.write((head + &body).as_bytes());
        assert_eq!(publisher.response().status, 200);
        swarm.turn(Duration::ZERO, &mut |_, _| {});
    }
    swarm.run_for(Duration::from_secs(3), &mut |_, _| {});
    let (full, other_after, page) = memory(&gateway);
    println!("{page:#}\nempty {empty}, other {other_before}; full {full}, other {other_after}");
    let grown = full as i64 - empty as i64;
    let unexplained = other_after - other_before;
    assert!(grown > 10 << 20, "{page:#}");
    assert!(page["of_messages"]["histories"].as_u64().is_some_and(|bytes| bytes > 9 << 20), "{page:#}");
    assert!(unexplained.abs() * 4 < grown, "{unexplained} of {grown} bytes more have no owner: {page:#}");
}

#[test]
fn a_topics_members_are_ended_and_nobody_else() {
    let gateway = gateway().start();
    let mut members: Vec<foreign::Client> = (0..10).map(|_| foreign::connect(&gateway, "/ws?room=bad/room")).collect();
    let mut others: Vec<foreign::Client> = (0..10).map(|_| foreign::connect(&gateway, "/ws?room=good")).collect();
    let mut stream = events::open(gateway.port, "/events?topic=good&topic=bad/room");
    let mut waiting = poll(&gateway, "bad/room");
    wait_for_subscribers(&gateway, "bad/room", 12);
    let answer = ok(&gateway, "POST /topics/bad%2Froom/disconnect?code=4420&reason=closed");
    assert_eq!(answer["leaving"], 12, "{answer}");
    for member in &mut members {
        let close = member.closed().expect("a close frame");
        assert_eq!((u16::from(close.code), close.reason.as_str()), (4420, "closed"));
    }
    let bye = stream.expect_bye();
    assert_eq!((&bye["code"], &bye["reason"], &bye["retry_ms"]), (&4420.into(), &"closed".into(), &Value::Null), "{bye}");
    let response = waiting.response();
    assert!(response.status == 403 && response.text().contains("4420: closed"), "{response:?} {}", response.text());
    assert_eq!(response.header("connection"), Some("close"), "{response:?}");
    gateway.wait_for_closes("disconnected", 12);
    others[0].text("unharmed");
    others.iter_mut().for_each(|other| other.expect_text("unharmed"));
    assert_eq!(ok(&gateway, "POST /topics/nobody/disconnect")["leaving"], 0);
}

#[test]
fn everybody_is_ended_at_the_pace_of_a_drain_and_may_come_back() {
    const CLIENTS: usize = 100;
    let gateway = gateway().limit("drain_pace_ms", 1500).limit("drain_rate_min", 1).start();
    let mut swarm = Swarm::new(gateway.port);
    for _ in 0..CLIENTS {
        swarm.connect("/ws?room=lobby");
    }
    swarm.run(SOON, "members", &mut |_, _| {}, |swarm| swarm.count(&State::Open) == CLIENTS);
    let mut stream = events::open(gateway.port, "/events?topic=a");
    let mut waiting = poll(&gateway, "b");
    wait_for_subscribers(&gateway, "b", 1);
    refused(&gateway, "POST /disconnect", 400, "?all=1");
    let begun = now();
    let answer = ok(&gateway, "POST /disconnect?all=1");
    assert_eq!((&answer["leaving"], &answer["window_ms"]), (&(CLIENTS + 2).into(), &1500.into()), "{answer}");
    let mut times = Vec::new();
    let on = &mut |_, event: Event<'_>| {
        if let Event::Close(code, reason) = event {
            assert_eq!(code, Some(1012));
            assert!(reason.strip_prefix("retry=").is_some_and(|ms| ms.parse::<u64>().is_ok()), "{reason}");
            times.push(begun.elapsed());
        }
    };
    swarm.run(SOON, "goodbyes", on, |swarm| swarm.count(&State::Gone) == CLIENTS);
    assert!(*times.last().expect("some") - times[0] > Duration::from_millis(900), "not paced: {times:?}");
    let bye = stream.expect_bye();
    assert!(bye["code"] == 1012 && bye["retry_ms"].is_u64(), "{bye}");
    let response = waiting.response();
    assert!(response.status == 503 && response.header("retry-after").is_some(), "{response:?}");
    refused(&gateway, "POST /disconnect?all=0", 400, "?all=1");
    assert_eq!(raw::http(gateway.admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
    // Who comes back while it is under way has done what was asked.
    let mut back = foreign::connect(&gateway, "/ws?room=lobby");
    sleep_ms(300);
    back.text("here again");
    back.expect_text("here again");
}

#[test]
fn who_came_after_the_order_is_not_ended() {
    let gateway = gateway().limit("drain_pace_ms", 2000).limit("drain_rate_min", 1).start();
    let early: Vec<foreign::Client> = (0..50).map(|_| foreign::connect(&gateway, "/ws?room=lobby")).collect();
    sleep_ms(100);
    ok(&gateway, "POST /disconnect?all=1");
    sleep_ms(150);
    let mut late: Vec<foreign::Client> = (0..50).map(|_| foreign::connect(&gateway, "/ws?room=late")).collect();
    gateway.wait_for_closes("disconnected", 50);
    late[0].text("still here");
    late.iter_mut().for_each(|client| client.expect_text("still here"));
    drop(early);
}

#[test]
fn what_is_queued_comes_before_the_end() {
    let gateway = gateway().shards(1).start();
    let mut reader = Raw::connect_with_small_buffer(gateway.port);
    reader.write(raw::upgrade("/ws?room=a", "").as_bytes());
    reader.expect_upgraded();
    let text = "x".repeat(60_000);
    for _ in 0..8 {
        publish(&gateway, "a", &text);
    }
    ok(&gateway, "POST /topics/a/disconnect?code=4503&reason=moved");
    sleep_ms(300);
    for _ in 0..8 {
        reader.expect_text(&text);
    }
    let reason = reader.expect_close(4503);
    assert!(reason.starts_with("retry=") && reason.ends_with(" moved"), "{reason}");
}

#[test]
fn an_announcement_reaches_everybody_in_its_own_form() {
    let gateway = gateway().start();
    let mut members: Vec<foreign::Client> = (0..10).map(|_| foreign::connect(&gateway, "/ws?room=a")).collect();
    let mut streams: Vec<events::Reader> = (0..4).map(|_| events::open(gateway.port, "/events?topic=a&topic=b")).collect();
    let mut waiting = poll(&gateway, "b");
    let mut probe = foreign::connect(&gateway, "/echo");
    wait_for_subscribers(&gateway, "b", 5);
    let text = "back at \"12:00\"\nor so \u{1f44b}";
    let answer = parsed("announce", &admin(&gateway, "POST /announce", text));
    assert_eq!(answer["told"], 15, "{answer}");
    for member in &mut members {
        let message = member.message().into_text().expect("text");
        let json: Value = serde_json::from_str(&message).expect("JSON");
        assert_eq!(json, serde_json::json!({ "shardcast:announcement": { "text": text } }));
    }
    for stream in &mut streams {
        let before = stream.last_id();
        assert_eq!(stream.expect_control("announcement")["text"], text);
        assert_eq!(stream.last_id(), before, "it is no message and has no place");
    }
    let response = waiting.response();
    let body: Value = serde_json::from_str(&response.text()).expect("JSON");
    assert_eq!((response.status, &body["messages"]), (200, &serde_json::json!([{ "announcement": text }])), "{body}");
    assert!(body["next"].is_string(), "{body}");
    probe.expect_silence(100);
    assert_eq!(gateway.metrics().sum("shardcast_announced_total", &[]), 15.0);
    // It is no message of the topic, and what is comes as before.
    members[0].text("next");
    members.iter_mut().for_each(|member| member.expect_text("next"));
    streams.iter_mut().for_each(|stream| drop(stream.expect("next")));
    let page = ok(&gateway, "GET /debug/topics?sort=messages");
    assert_eq!(array(&page, "topics")[0]["messages"], 1, "{page}");
}

#[test]
fn a_reader_that_takes_no_announcement_is_ended_within_its_bound() {
    let gateway = gateway().limit("queue_bytes_max", 65_536).limit("write_stall_ms", 60_000).start();
    let mut stuck = Raw::connect_with_small_buffer(gateway.port);
    stuck.write(raw::upgrade("/ws?room=a", "").as_bytes());
    stuck.expect_upgraded();
    let text = "x".repeat(60_000);
    for _ in 0..200 {
        parsed("announce", &admin(&gateway, "POST /announce", &text));
        if gateway.closes("slow_consumer") > 0 {
            return;
        }
    }
    panic!("200 announcements wait for one that does not read");
}
