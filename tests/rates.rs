//! How much may be said: by all connections of one address together, and to one topic whoever says it.

mod common;

use std::time::Duration;

use common::raw::{self, Raw, Response};
use common::{Gateway, frame, gateway, sleep_ms};

/// With one shard a topic's home is here; with three it is mostly elsewhere.
const SHARDS: [u16; 2] = [1, 3];

fn post(raw: &mut Raw, path: &str, extra: &str, body: &str) -> Response {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
    raw.write(format!("{head}{body}").as_bytes());
    raw.response()
}

/// A refusal says which bound, how much it is, and when to come back.
fn is_over(response: &Response, limit: &str, per_second: u64) {
    assert_eq!(response.status, 429, "{response:?}");
    let seconds: u64 = response.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After in seconds");
    assert!((1..=2).contains(&seconds), "{response:?}");
    let text = response.text();
    assert!(text.contains(&format!("limits.{limit} is {per_second}")) && text.contains("\"retry_ms\":"), "{text}");
    assert!(text.contains("\"code\":\"rate_limited\""), "{text}");
}

fn counted(gateway: &Gateway, limit: &str) -> f64 {
    gateway.metrics().sum("shardcast_rate_limited_total", &[("limit", limit)])
}

/// Numbers that a member of the room hears, until nothing comes for a while.
fn heard(listener: &mut Raw) -> Vec<u32> {
    let mut heard = Vec::new();
    loop {
        while frame::parse(listener.unread()).is_some() {
            let text = String::from_utf8(listener.frame().payload).expect("text");
            heard.push(text.parse().expect("a number"));
        }
        let had = listener.unread().len();
        listener.answered_within(Duration::from_millis(300));
        if listener.unread().len() == had {
            return heard;
        }
    }
}

#[test]
fn connections_of_one_address_publish_together_what_one_may() {
    for shards in SHARDS {
        let gateway = gateway()
            .shards(shards)
            .limit("messages_per_second_per_address", 10)
            .env("SHARDCAST_TRUSTED_PROXIES", "127.0.0.1")
            .env("SHARDCAST_CLIENT_ADDRESS", "x-forwarded-for")
            .start();
        let of = |address: &str| format!("X-Forwarded-For: {address}\r\n");
        // Four connections of one /64, on whichever shards.
        let mut crowd: Vec<Raw> = (0..4).map(|_| Raw::connect(gateway.port)).collect();
        let answers: Vec<Response> =
            (0..40).map(|n| post(&mut crowd[n % 4], "/publish?topic=a", &of(&format!("2001:db8::{n}")), "x")).collect();
        let taken = answers.iter().filter(|answer| answer.status == 200).count();
        assert!((10..30).contains(&taken), "{taken} of 40 were taken");
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
        refused.iter().for_each(|answer| is_over(answer, "messages_per_second_per_address", 10));
        assert_eq!(counted(&gateway, "messages_per_second_per_address"), refused.len() as f64);
        assert_eq!(post(&mut crowd[0], "/publish?topic=a", &of("2001:db8:0:1::1"), "x").status, 200, "another address has its own rate");
        // A WebSocket of the address is ended, one of another is not.
        let open = |address: &str| {
            let mut raw = Raw::connect(gateway.port);
            raw.write(raw::upgrade("/ws?room=b&echo=0", &of(address)).as_bytes());
            raw.expect_upgraded();
            raw
        };
        let (mut loud, mut other) = (open("2001:db8::1"), open("192.0.2.1"));
        for _ in 0..50 {
            loud.send_text("x");
        }
        assert!(loud.expect_close(4529).contains("over limits.messages_per_second_per_address (10)"));
        other.send_text("y");
        other.expect_silence(50);
        gateway.wait_for_closes("rate_limited", 1);
        sleep_ms(1100);
        assert_eq!(post(&mut crowd[0], "/publish?topic=a", &of("2001:db8::1"), "x").status, 200, "the rate has recovered");
    }
}

#[test]
fn bytes_of_an_address_are_bounded_as_its_messages_are() {
    let gateway = gateway().limit("message_bytes_per_second_per_address", 10_000).start();
    let body = "x".repeat(1000);
    let answers: Vec<Response> =
        (0..30).map(|_| post(&mut Raw::connect(gateway.port), "/publish?topic=a", "Connection: close\r\n", &body)).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!refused.is_empty() && refused.len() <= 20, "{} of 30 refused", refused.len());
    refused.iter().for_each(|answer| is_over(answer, "message_bytes_per_second_per_address", 10_000));
}

#[test]
fn a_topic_takes_what_it_may_whoever_says_it_and_other_topics_go_on() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("messages_per_second_per_topic", 10).start();
        // Whether or not somebody listens, and whether or not it is kept: the rate is the topic's.
        for topic in ["a", "b", "c"] {
            let answers: Vec<Response> =
                (0..30).map(|_| post(&mut Raw::connect(gateway.port), &format!("/publish?topic={topic}&ack=sent"), "", "x")).collect();
            let taken = answers.iter().filter(|answer| answer.status == 200).count();
            assert!((10..25).contains(&taken), "{taken} of 30 were taken");
            answers.iter().filter(|answer| answer.status != 200).for_each(|answer| is_over(answer, "messages_per_second_per_topic", 10));
        }
        // Of one request some items are taken and others not: each says so for itself.
        let items: Vec<String> = (0..30).map(|n| format!(r#"{{"topic":"{}","data":"x"}}"#, if n < 15 { "d" } else { "e" })).collect();
        let answer = post(&mut Raw::connect(gateway.port), "/v1/publish", "", &format!("[{}]", items.join(",")));
        assert_eq!(answer.status, 200, "{answer:?}");
        let results: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        let errors: Vec<_> = results.as_array().expect("results").iter().filter(|result| result["error"].is_object()).collect();
        assert_eq!(errors.len(), 10, "{results}");
        assert!(errors.iter().all(|error| error["error"]["code"] == "rate_limited" && error["error"]["retry_ms"].is_u64()), "{results}");
        assert!(counted(&gateway, "messages_per_second_per_topic") >= 10.0 + 3.0 * 5.0);
    }
}

#[test]
fn a_topic_without_members_and_history_has_its_rate_all_the_same() {
    for shards in SHARDS {
        let gateway = gateway().shards(shards).limit("messages_per_second_per_topic", 10).limit("history_messages", 0).start();
        let statuses: Vec<u16> = (0..30).map(|_| post(&mut Raw::connect(gateway.port), "/publish?topic=a", "", "x").status).collect();
        assert!((10..25).contains(&statuses.iter().filter(|status| **status == 200).count()), "{statuses:?}");
        gateway.wait_for_no_topics();
    }
}

/// The room's home judges what comes from all shards. Of a client of whom one message was not taken none is that follows, however it was batched.
#[test]
fn a_websocket_over_its_rooms_rate_is_closed_4529_and_nothing_follows_what_was_refused() {
    for shards in SHARDS {
        for (limit, value) in [("messages_per_second_per_topic", 20), ("message_bytes_per_second_per_topic", 20_000)] {
            let gateway = gateway().shards(shards).limit(limit, value).limit("log_lines_per_second", 1000).start();
            // On several shards, whichever is the home.
            let mut listeners: Vec<Raw> = (0..6).map(|_| raw::ws(&gateway, "/ws?room=a")).collect();
            let mut loud = raw::ws(&gateway, "/ws?room=a&echo=0");
            let elsewhere = raw::ws(&gateway, "/ws?room=b");
            for n in 0..300 {
                if !loud.try_write(&frame::masked(frame::FIN | frame::TEXT, format!("{n:0>1000}").as_bytes())) {
                    break;
                }
            }
            let reason = loud.expect_close(4529);
            assert!(reason.contains(&format!("over limits.{limit} ({value})")) && reason.contains("retry="), "{reason}");
            let all = heard(&mut listeners[0]);
            assert!((20..150).contains(&all.len()), "{} messages were taken", all.len());
            let expected: Vec<u32> = (0..all.len() as u32).collect();
            assert_eq!(all, expected, "a message was taken behind one that was refused");
            for listener in &mut listeners[1..] {
                assert_eq!(heard(listener), expected);
            }
            gateway.wait_for_closes("rate_limited", 1);
            assert_eq!(counted(&gateway, limit), 1.0);
            drop(elsewhere);
            // The room itself goes on.
            sleep_ms(1100);
            listeners[1].send_text("again");
            listeners.iter_mut().for_each(|listener| listener.expect_text("again"));
        }
    }
}
