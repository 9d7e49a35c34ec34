//! When clients are told to come back, so that all of them can: docs/protocol.md, section 7, and docs/decisions/0020.

mod common;

use common::events;
use common::frame::{FIN, PING, PONG};
use common::raw::{self, Raw, Response};
use common::{Gateway, SOON, gateway, now, talk};
use serde_json::Value;
use std::time::Duration;

fn body(response: &Response) -> Value {
    serde_json::from_str(&response.text()).unwrap_or_else(|error| panic!("{response:?}: {error}"))
}

/// What a refusal says, in milliseconds; `Retry-After` says the same in whole seconds.
fn told_ms(response: &Response) -> u64 {
    let millis = body(response)["error"]["retry_ms"].as_u64().unwrap_or_else(|| panic!("no retry_ms: {response:?}"));
    let seconds: u64 = response.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("Retry-After in seconds");
    assert_eq!(seconds, millis.div_ceil(1000).max(1));
    millis
}

/// A program, an event stream and a browser's WebSocket in turn: what it is told when it is turned away.
fn try_to_open(gateway: &Gateway, number: usize) -> Result<Raw, u64> {
    let mut raw = Raw::connect(gateway.port);
    match number % 3 {
        0 => {
            raw.write(raw::upgrade("/ws?room=a", "").as_bytes());
            let response = raw.response();
            if response.status == 101 { Ok(raw) } else { Err(told_ms(&response)) }
        }
        1 => {
            let mut reader = events::request_on(raw, "/events?topic=a", "");
            let event = reader.event();
            if event.name == "shardcast:open" {
                return Ok(reader.raw);
            }
            assert_eq!((event.name.as_str(), event.json()["retry_ms"].as_u64()), ("shardcast:bye", reader.retry_ms()));
            Err(reader.retry_ms().expect("a retry line"))
        }
        _ => {
            raw.write(raw::upgrade("/ws?room=a", &format!("Origin: http://127.0.0.1:{}\r\n", gateway.port)).as_bytes());
            raw.expect_upgraded();
            if !raw.answered_within(Duration::from_millis(30)) {
                return Ok(raw);
            }
            let reason = raw.expect_close(4503);
            Err(reason.strip_prefix("retry=").and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("{reason:?}")))
        }
    }
}

#[test]
fn each_one_who_is_turned_away_is_told_a_later_time_than_the_one_before() {
    // One may come every 100 ms, and one is asked to come every 125 ms.
    let gateway = gateway().shards(1).limit("handshakes_per_second", 10).limit("rate_burst_ms", 1).start();
    let (mut told, mut open) = (Vec::new(), Vec::new());
    let begun = now();
    while told.len() < 30 {
        assert!(begun.elapsed() < SOON, "{} are turned away, {} are in", told.len(), open.len());
        match try_to_open(&gateway, told.len() + open.len()) {
            Ok(raw) => open.push(raw),
            Err(wait_ms) => told.push(begun.elapsed().as_millis() as u64 + wait_ms),
        }
    }
    let gaps: Vec<u64> = told.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    assert!(gaps.iter().all(|gap| (60..=300).contains(gap)), "about 125 ms between two: {gaps:?}");
    let mean = (told[29] - told[0]) / 29;
    assert!((115..=180).contains(&mean), "{mean} ms between two: {gaps:?}");
    // Who asks for something else is in nobody's way.
    assert_eq!(raw::http(gateway.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
}

#[test]
fn the_window_is_as_long_as_all_clients_need_and_who_was_told_less_is_told_anew() {
    // 40 clients can come back in 5 s.
    let setup = gateway().shards(1).limit("handshakes_per_second", 10).limit("rate_burst_ms", 60_000);
    let gateway = setup.limit("reconnect_window_ms", 100).limit("sse_heartbeat_ms", 200).start();
    let mut first = events::open(gateway.port, "/events?topic=a");
    assert!(first.retry_ms().is_some_and(|retry| retry <= 125), "{:?}", first.retry_ms());
    let others: Vec<events::Reader> = (1..40).map(|_| events::open(gateway.port, "/events?topic=a")).collect();
    let told: Vec<u64> = others.iter().map(|reader| reader.retry_ms().expect("a retry line")).collect();
    assert!(told.iter().all(|retry| *retry <= 5000) && told.iter().any(|retry| *retry > 1000), "{told:?}");
    let retries = |reader: &events::Reader| reader.bytes.windows(7).filter(|bytes| bytes == b"retry: ").count();
    let begun = now();
    while retries(&first) < 2 {
        assert!(begun.elapsed() < SOON, "the first one is told nothing new");
        first.expect_silence(50);
    }
    // Nobody else comes: there is nothing new to be told.
    first.expect_silence(600);
    let told = retries(&first);
    first.expect_silence(1000);
    assert_eq!(retries(&first), told, "{:?}", String::from_utf8_lossy(&first.bytes));
    assert!(first.bytes.ends_with(b":\n\n"), "and then there are heartbeats");
}

#[test]
fn a_json_client_is_told_each_time_that_the_window_has_grown() {
    let setup = gateway().shards(1).limit("handshakes_per_second", 10).limit("rate_burst_ms", 60_000);
    let gateway = setup.limit("reconnect_window_ms", 100).limit("ping_interval_ms", 200).limit("pong_timeout_ms", 2000).start();
    let mut first = talk::connect(gateway.port);
    let mut told = vec![first.welcome["retry_ms"].as_u64().expect("milliseconds")];
    let _others: Vec<Raw> = (1..40).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
    let mut pinged = 0;
    // 40 clients can come back in 5 s; an eighth more than it was told is not worth a word. Nobody else comes, and then there are pings alone.
    while pinged < 2 {
        let frame = first.raw.frame();
        if frame.first & 0x0f == PING {
            first.raw.send(FIN | PONG, &frame.payload);
            pinged += u32::from(told.last().is_some_and(|window| window + window / 8 >= 5000));
        } else {
            let retry: Value = serde_json::from_slice(&frame.payload).expect("JSON");
            assert_eq!(retry["type"], "retry", "{retry}");
            told.push(retry["retry_ms"].as_u64().expect("milliseconds"));
            assert_eq!(pinged, 0, "{told:?}");
        }
    }
    assert!(told[0] <= 125 && told.windows(2).all(|pair| pair[1] > pair[0] + pair[0] / 8), "{told:?}");
}

#[test]
fn a_poll_is_told_when_to_come_back_should_it_lose_the_server() {
    let gateway = gateway().limit("reconnect_window_ms", 4000).start();
    let answer = |path: &str| raw::http(gateway.port, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let told: Vec<u64> = (0..20).map(|_| body(&answer("/poll?topic=a&wait=0"))["retry_ms"].as_u64().expect("milliseconds")).collect();
    assert!(told.iter().all(|retry| *retry <= 4000), "{told:?}");
    for quarter in 0..4 {
        assert!(told.iter().any(|retry| (quarter * 1000..=quarter * 1000 + 1000).contains(retry)), "none in quarter {quarter}: {told:?}");
    }
}

/// All were told goodbye over 10 s and came back within 10 more; it was as fast however few handshakes the gateway allows.
#[test]
fn goodbyes_are_no_faster_than_clients_may_come_back() {
    let gateway = gateway().limit("handshakes_per_second", 50).limit("rate_burst_ms", 10_000).limit("drain_pace_ms", 100).start();
    let _members: Vec<Raw> = (0..60).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
    let response = raw::http(gateway.admin, b"POST /rebalance?share=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(body(&response)["window_ms"], 1500, "60 clients at four fifths of 50 a second");
}
