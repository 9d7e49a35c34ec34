//! Who is let in when there is no room, and what happens when the process runs out of descriptors.

mod common;

use common::frame::{FIN, TEXT};
use common::raw::{self, Raw};
use common::{Gateway, SOON, eventually, foreign, gateway, now, sleep_ms};
use std::time::Duration;

/// `retry=8200` in a close reason, in milliseconds.
fn retry_ms(reason: &str) -> u64 {
    let digits = reason.split("retry=").nth(1).unwrap_or_else(|| panic!("no retry= in {reason:?}"));
    digits
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap_or_else(|_| panic!("no number after retry= in {reason:?}"))
}

fn full(connections_max: u64) -> (Gateway, Vec<foreign::Client>) {
    let gateway = gateway().limit("connections_max", connections_max).limit("reconnect_window_ms", 10_000).start();
    let members = (0..connections_max).map(|_| foreign::connect(&gateway, "/echo")).collect();
    (gateway, members)
}

#[test]
fn beyond_connections_max_a_program_is_answered_503_with_retry_after() {
    let (gateway, mut members) = full(4);
    for _ in 0..10 {
        let response = raw::http(gateway.port, raw::upgrade("/ws", "").as_bytes());
        assert_eq!(response.status, 503, "{response:?}");
        let seconds: u64 = response.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After in seconds");
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    members[0].text("unharmed");
    members[0].expect_text("unharmed");
}

#[test]
fn beyond_connections_max_a_browser_is_upgraded_and_closed_4503_with_retry() {
    let (gateway, _members) = full(4);
    let own = format!("http://127.0.0.1:{}", gateway.port);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let mut browser = foreign::try_connect(&gateway, "/ws", &[("origin", &own)]).expect("a browser is upgraded");
        let close = browser.closed().expect("a close frame with a code");
        assert_eq!(u16::from(close.code), 4503);
        waits.push(retry_ms(&close.reason));
    }
    assert!(waits.iter().all(|wait| *wait <= 60_000), "{waits:?}");
    waits.dedup();
    assert!(waits.len() > 1, "all were told the same time to come back: {waits:?}");
    gateway.wait_for_closes("4503", 10);
}

#[test]
fn a_place_that_becomes_free_is_given_away_again() {
    let (gateway, mut members) = full(4);
    for _ in 0..20 {
        members.pop().expect("four of them").leave();
        gateway.wait_for_connections(3);
        members.insert(0, eventually(SOON, || foreign::try_connect(&gateway, "/echo", &[]).map_err(|error| error.to_string())));
    }
    assert_eq!(gateway.connections(), 4);
}

#[test]
fn who_says_nothing_takes_no_place_while_accepting_is_deferred() {
    let gateway = gateway().limit("connections_max", 1).limit("accept_defer_ms", 30_000).start();
    let silent = Raw::connect(gateway.port);
    let mut speaking = raw::ws(&gateway, "/echo");
    speaking.send_text("first come, not first served");
    speaking.expect_text("first come, not first served");
    drop(silent);
}

#[test]
fn who_says_nothing_is_accepted_when_the_deferral_ends() {
    let gateway = gateway().limit("accept_defer_ms", 1000).limit("head_timeout_ms", 300).start();
    let mut silent = Raw::connect(gateway.port);
    silent.expect_end(Duration::from_secs(20));
}

#[test]
fn a_full_gateway_still_answers_healthz_and_metrics() {
    let (gateway, _members) = full(4);
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(raw::http(gateway.admin, request).status, 200);
    assert_eq!(gateway.connections(), 4);
}

#[test]
fn a_crowd_that_is_refused_and_does_not_leave_is_bounded() {
    let gateway = gateway().limit("connections_max", 2).limit("refusals_max", 8).start();
    let _members: Vec<foreign::Client> = (0..2).map(|_| foreign::connect(&gateway, "/echo")).collect();
    let before = gateway.descriptors();
    let crowd: Vec<Raw> = (0..200)
        .map(|_| {
            let mut raw = Raw::connect(gateway.port);
            raw.try_write(raw::upgrade("/ws", "").as_bytes());
            raw
        })
        .collect();
    eventually(SOON, || match gateway.metrics().sum("shardcast_accepts_total", &[]) {
        all if all >= 202.0 => Ok(()),
        all => Err(format!("{all} clients were taken up or refused")),
    });
    // Both shards may hold refusals_max connections that they refuse.
    let held = gateway.kept_descriptors() - before;
    assert!(held <= 2 * 8 + 4, "{held} descriptors for refused clients");
    drop(crowd);
    eventually(SOON, || match gateway.descriptors() {
        after if after <= before => Ok(()),
        after => Err(format!("{after} descriptors are open, {before} were before the crowd")),
    });
}

#[test]
fn without_descriptors_accepting_pauses_and_resumes_and_members_go_on() {
    const DESCRIPTORS: usize = 200;
    let gateway = gateway().nofile(DESCRIPTORS as u64).inherited_descriptors(100).start();
    let room = DESCRIPTORS - gateway.descriptors();
    let mut member = foreign::connect(&gateway, "/echo");
    let clients: Vec<Raw> = (0..room + 30)
        .map(|_| {
            let mut raw = Raw::connect(gateway.port);
            raw.write(raw::upgrade("/echo", "").as_bytes());
            raw
        })
        .collect();

    // Those that found a descriptor are in; the others wait in the backlog: neither refused nor dropped. (No scrape meanwhile: it would need a descriptor too.)
    eventually(SOON, || match gateway.descriptors() {
        open if open + 10 > DESCRIPTORS => Ok(()),
        open => Err(format!("{open} descriptors are open of {DESCRIPTORS}, with {} clients", clients.len() + 1)),
    });
    sleep_ms(200);
    let (mut inside, mut waiting) = (Vec::new(), Vec::new());
    for mut raw in clients {
        if raw.answered_within(Duration::from_millis(2)) { inside.push(raw) } else { waiting.push(raw) }
    }
    inside.iter_mut().for_each(|raw| drop(raw.expect_upgraded()));
    assert!(waiting.len() >= 20, "{} clients wait, {} are in: the descriptors did not run out", waiting.len(), inside.len());

    // Waiting costs nothing, and those who are in notice nothing.
    let (cpu, begun) = (gateway.cpu(), now());
    for number in 0..20 {
        member.text(&number.to_string());
        member.expect_text(&number.to_string());
        sleep_ms(50);
    }
    let busy = gateway.cpu() - cpu;
    assert!(busy < begun.elapsed() / 3, "{busy:?} of CPU in {:?} while nothing can be accepted", begun.elapsed());

    // Those inside leave, and those who waited are served without asking again.
    drop(inside);
    for client in &mut waiting {
        client.expect_upgraded();
        client.send(FIN | TEXT, b"at last");
        client.expect_text("at last");
    }
    assert_eq!(gateway.connections() as usize, waiting.len() + 1);
}

#[test]
fn a_full_gateway_uses_no_cpu_for_those_who_wait() {
    let gateway = gateway().limit("connections_max", 2).limit("refusals_max", 1).start();
    let _members: Vec<foreign::Client> = (0..2).map(|_| foreign::connect(&gateway, "/echo")).collect();
    let _crowd: Vec<Raw> = (0..50).map(|_| Raw::connect(gateway.port)).collect();
    sleep_ms(200);
    let (cpu, begun) = (gateway.cpu(), now());
    sleep_ms(1000);
    let busy = gateway.cpu() - cpu;
    assert!(busy < Duration::from_millis(200), "{busy:?} of CPU in {:?}", begun.elapsed());
}

/// Clients over the cap count while they are being told so, and each client was judged by the count at the moment it was taken up: in a burst over two
/// shards the refused ones took the places of those who would have fitted, and places that became free were not given away.
#[test]
fn a_burst_of_60_for_10_places_fills_exactly_10() {
    let gateway = gateway().limit("connections_max", 10).start();
    // All of them at once.
    let burst = gateway.stopped(|| {
        let mut burst: Vec<Raw> = (0..60).map(|_| Raw::connect(gateway.port)).collect();
        burst.iter_mut().for_each(|raw| raw.write(raw::upgrade("/ws?room=lobby", "").as_bytes()));
        burst
    });
    let mut inside = Vec::new();
    let mut statuses = Vec::new();
    for mut raw in burst {
        let response = raw.response();
        statuses.push(response.status);
        match response.status {
            101 => inside.push(raw),
            503 => assert!(response.header("retry-after").is_some(), "{response:?}"),
            other => panic!("answered {other}: {response:?}"),
        }
    }
    assert_eq!(inside.len(), 10, "{statuses:?}");
    gateway.wait_for_connections(10);

    inside.drain(5..).for_each(|raw| raw.close(1000));
    gateway.wait_for_connections(5);
    inside.extend((0..5).map(|_| raw::ws(&gateway, "/ws?room=lobby")));
    assert_eq!(raw::http(gateway.port, raw::upgrade("/ws?room=lobby", "").as_bytes()).status, 503);
    for (number, raw) in inside.iter_mut().enumerate() {
        raw.send_text(&number.to_string());
        while raw.frame().payload != number.to_string().as_bytes() {}
    }
}

#[test]
fn who_says_more_than_one_may_is_closed_4529_and_nobody_else() {
    let gateway = gateway().limit("messages_per_second", 20).start();
    let mut listener = raw::ws(&gateway, "/ws?room=a");
    let mut loud = raw::ws(&gateway, "/ws?room=a&echo=0");
    for _ in 0..100 {
        loud.send_text("x");
    }
    let reason = loud.expect_close(4529);
    assert!(reason.contains("limits.messages_per_second"), "{reason}");
    retry_ms(&reason);
    // A burst of a second, and what a slow machine has let in meanwhile.
    let heard = (0..).take_while(|_| listener.answered_within(Duration::from_millis(300)) && !listener.frame().payload.is_empty()).count();
    assert!((20..60).contains(&heard), "{heard} messages of 100 were taken");
    gateway.wait_for_closes("rate_limited", 1);
    assert_eq!(gateway.metrics().sum("shardcast_rate_limited_total", &[]), 1.0);
    for _ in 0..15 {
        listener.send_text("y");
        listener.expect_text("y");
    }
}

#[test]
fn bytes_are_bounded_as_messages_are() {
    let gateway = gateway().limit("message_bytes_per_second", 10_000).start();
    let mut loud = raw::ws(&gateway, "/ws?room=a&echo=0");
    for _ in 0..20 {
        loud.send_text(&"x".repeat(1000));
    }
    assert!(loud.expect_close(4529).contains("limits.message_bytes_per_second"));
}

#[test]
fn a_request_over_the_rate_is_answered_429_and_none_of_it_is_published() {
    let gateway = gateway().limit("messages_per_second", 10).start();
    let mut raw = Raw::connect(gateway.port);
    let mut publish = |count: usize| {
        let body = vec![r#"{"topic":"a","data":"x"}"#; count].join(",");
        let head = format!("POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len() + 2);
        raw.write(format!("{head}[{body}]").as_bytes());
        raw.response()
    };
    assert_eq!(publish(8).status, 200);
    let refused = publish(8);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{refused:?}");
    assert!(refused.text().contains("limits.messages_per_second"), "{}", refused.text());
    sleep_ms(1100);
    let taken = publish(1).text();
    assert!(taken.contains(".9\""), "the ninth message, after eight: {taken}");
}

#[test]
fn more_handshakes_than_may_be_are_told_when_to_come_back() {
    let gateway = gateway().shards(2).limit("handshakes_per_second", 5).start();
    let mut opened = Vec::new();
    let mut refused = 0;
    for _ in 0..60 {
        let mut raw = Raw::connect(gateway.port);
        raw.write(raw::upgrade("/ws?room=a", "").as_bytes());
        let response = raw.response();
        match response.status {
            101 => opened.push(raw),
            503 => {
                assert!(response.header("retry-after").is_some(), "{response:?}");
                assert!(response.text().contains("limits.handshakes_per_second"), "{}", response.text());
                refused += 1;
            }
            other => panic!("{other}: {response:?}"),
        }
    }
    assert!(opened.len() >= 4 && refused > 0, "{} opened, {refused} refused", opened.len());
    gateway.wait_for_closes("busy", refused);
    let own = format!("http://127.0.0.1:{}", gateway.port);
    let mut browser = foreign::try_connect(&gateway, "/ws", &[("origin", &own)]).expect("a browser is upgraded");
    assert_eq!(u16::from(browser.closed().expect("a close frame").code), 4503);
    let source = raw::http(gateway.port, b"GET /events?topic=a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    assert!(source.status == 200 && source.text().contains("shardcast:bye"), "{source:?}");
    assert_eq!(raw::http(gateway.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
    sleep_ms(1100);
    drop(raw::ws(&gateway, "/ws?room=a"));
}

/// Asks to be in a topic, by one of the ways.
fn ask_for(gateway: &Gateway, path: &str) -> Raw {
    let mut raw = Raw::connect(gateway.port);
    match path.starts_with("/ws") {
        true => raw.write(raw::upgrade(path, "").as_bytes()),
        false => raw.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()),
    }
    raw
}

#[test]
fn a_full_topic_takes_nobody_else_on_any_shard_and_says_when_to_come_back() {
    for shards in [1, 3] {
        let gateway = gateway().shards(shards).limit("topic_subscribers_max", 5).start();
        let mut members: Vec<Raw> = (0..4).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
        let stream = common::events::open(gateway.port, "/events?topic=a&topic=b");
        for round in 0..3 {
            for path in ["/ws?room=a", "/ws?room=a&last=5"] {
                let mut raw = ask_for(&gateway, path);
                raw.expect_upgraded();
                let reason = raw.expect_close(4503);
                assert!(reason.contains("limits.topic_subscribers_max is 5"), "{reason}");
                retry_ms(&reason);
            }
            let refused = ask_for(&gateway, "/poll?topic=a&wait=1").response();
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(refused.header("retry-after").is_some() && refused.text().contains("limits.topic_subscribers_max is 5"), "{refused:?}");
            // One full topic is enough; of the other one nothing is left taken.
            let source = raw::http(gateway.port, b"GET /events?topic=b&topic=a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            assert!(source.status == 200 && source.text().contains("\"code\":4503"), "{source:?}");
            gateway.wait_for_closes("topic_full", 4 * (round + 1));
            // A place that becomes free is given away again, to whoever comes.
            members.pop().expect("four of them").close(1000);
            gateway.wait_for_connections(3);
            members.push(raw::ws(&gateway, "/ws?room=a"));
        }
        let mut others: Vec<Raw> = (0..4).map(|_| raw::ws(&gateway, "/ws?room=b")).collect();
        others[0].send_text("unharmed");
        others.iter_mut().for_each(|other| other.expect_text("unharmed"));
        members[0].send_text("all of us");
        members.iter_mut().for_each(|member| member.expect_text("all of us"));
        drop(stream);
    }
}

/// Shards give places out by themselves: all at once, and many times as many clients as places.
#[test]
fn a_crowd_for_one_topic_gets_exactly_its_places() {
    let gateway = gateway().shards(3).limit("topic_subscribers_max", 10).start();
    let burst = gateway.stopped(|| {
        let mut burst: Vec<Raw> = (0..60).map(|_| Raw::connect(gateway.port)).collect();
        burst.iter_mut().for_each(|raw| raw.write(raw::upgrade("/ws?room=lobby", "").as_bytes()));
        burst
    });
    let mut inside = Vec::new();
    for mut raw in burst {
        raw.expect_upgraded();
        inside.push(raw);
    }
    gateway.wait_for_closes("topic_full", 50);
    inside.retain_mut(|raw| !raw.answered_within(Duration::from_millis(5)));
    assert_eq!(inside.len(), 10);
    inside.drain(..).for_each(|raw| raw.close(1000));
    gateway.wait_for_connections(0);
    let again: Vec<Raw> = (0..10).map(|_| raw::ws(&gateway, "/ws?room=lobby")).collect();
    gateway.wait_for_connections(10);
    assert_eq!((gateway.closes("topic_full"), again.len()), (50, 10));
}
