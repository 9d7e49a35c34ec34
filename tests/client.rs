//! The Rust client (`shardcast::client`) against real gateways, through a proxy that cuts, swallows and refuses.
#![allow(clippy::disallowed_methods, reason = "tests stand outside: real time")]

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use common::{Gateway, SOON, gateway, raw};
use hostile::Proxy;
use shardcast::client::{Client, Closed, Data, Error, Event, Events, Gap, GapReason, Message, PublishOptions, Receipt, Start};

fn url(gateway: &Gateway) -> String {
    format!("ws://127.0.0.1:{}", gateway.port)
}

/// A gateway whose clients come back within 200 ms, and a proxy before it.
fn behind_a_proxy() -> (Gateway, Proxy) {
    let gateway = gateway().limit("reconnect_window_ms", 200).limit("history_messages", 10_000).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    (gateway, proxy)
}

/// In time, or the test fails.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

async fn next(events: &mut Events) -> Event {
    soon("an event", events.recv()).await.expect("it is not over")
}

/// The next event of a kind; others are left out.
async fn until<T>(events: &mut Events, wanted: impl Fn(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(next(events).await) {
            return found;
        }
    }
}

async fn message(events: &mut Events) -> Message {
    until(events, |event| if let Event::Message(message) = event { Some(message) } else { None }).await
}

async fn texts(events: &mut Events, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(message(events).await.data.as_text().expect("a text").to_owned());
    }
    texts
}

async fn gap(events: &mut Events) -> Gap {
    until(events, |event| match event {
        Event::Gap(gap) => Some(gap),
        Event::Message(message) => panic!("{message:?} came before the gap"),
        _ => None,
    })
    .await
}

async fn closed(events: &mut Events) -> Closed {
    let closed = until(events, |event| if let Event::Closed(closed) = event { Some(closed) } else { None }).await;
    assert_eq!(soon("the end", events.recv()).await, None, "nothing is behind the end");
    closed
}

fn post(gateway: &Gateway, topic: &str, body: &str) {
    let request = format!("POST /publish?topic={topic} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(raw::http(gateway.port, request.as_bytes()).status, 200);
}

fn admin(gateway: &Gateway, path: &str, body: &str) {
    let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let response = raw::http(gateway.admin, request.as_bytes());
    assert_eq!(response.status, 200, "{response:?}");
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_subscribed_hears_itself_with_what_was_published_and_where() {
    let gateway = gateway().start();
    let (client, mut events) = Client::connect(&url(&gateway)).expect("a URL");
    assert!(matches!(next(&mut events).await, Event::Connected { conn } if !conn.is_empty()));
    for topic in ["a", "größe & co"] {
        let begin = soon("a place", client.subscribe(topic, Start::Latest)).await.expect("subscribed");
        let expected = Event::Subscribed { topic: topic.into(), pos: begin, recovered: false };
        assert_eq!(next(&mut events).await, expected);
    }
    let payloads =
        ["", "two\nlines", "{\"n\": 1}", "[1]", "5", "null", "日本語 🦀"].map(Data::from).into_iter().chain([Data::from(vec![0, 255])]);
    for (number, data) in payloads.enumerate() {
        let topic = ["a", "größe & co"][number % 2];
        let event = (number % 3 == 0).then(|| format!("e{number}"));
        let options = PublishOptions { event: event.clone(), ..PublishOptions::default() };
        let Receipt { pos, subscribers, duplicate } =
            soon("a receipt", client.publish_with(topic, data.clone(), options)).await.expect("published");
        assert_eq!((subscribers, duplicate), (1, false));
        assert_eq!(message(&mut events).await, Message { topic: topic.into(), pos, data, event: event.map(Into::into) });
    }
    let quiet = PublishOptions { echo: false, ..PublishOptions::default() };
    client.publish_with("a", "not back", quiet).await.expect("published");
    client.publish("a", "back").await.expect("published");
    assert_eq!(texts(&mut events, 1).await, ["back"]);
    assert!(client.unsubscribe("a").await.expect("a client"));
    assert!(!client.unsubscribe("a").await.expect("a client"), "it is not subscribed any more");
    client.publish("a", "not heard").await.expect("published");
    client.publish("größe & co", "heard").await.expect("published");
    assert_eq!(texts(&mut events, 1).await, ["heard"]);
    admin(&gateway, "/announce", "back at noon");
    assert_eq!(next(&mut events).await, Event::Announcement("back at noon".into()));
    soon("the goodbye", client.close()).await;
    assert_eq!(closed(&mut events).await.code, None);
    assert_eq!(client.publish("a", "too late").await, Err(Error::Closed(client.end().cloned().expect("it is over"))));
    gateway.wait_for_closes("client_closed", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_it_is_away_comes_once_and_in_order() {
    let (gateway, proxy) = behind_a_proxy();
    let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    for topic in ["a", "b"] {
        soon("a place", client.subscribe(topic, Start::Latest)).await.expect("subscribed");
    }
    let mut expected: HashMap<&str, Vec<String>> = HashMap::new();
    for round in 0..5 {
        let connects = proxy.connects("c");
        proxy.cut();
        for (number, topic) in ["a", "b", "a", "a"].into_iter().enumerate() {
            let text = format!("{round} {number}");
            post(&gateway, topic, &text);
            expected.entry(topic).or_default().push(text);
        }
        let is_back = || if proxy.connects("c") > connects { Ok(()) } else { Err("it does not come back".to_owned()) };
        common::eventually(SOON, is_back);
    }
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    while heard.values().map(Vec::len).sum::<usize>() < 20 {
        match next(&mut events).await {
            Event::Message(message) => {
                heard.entry(message.topic.to_string()).or_default().push(message.data.as_text().expect("a text").to_owned());
            }
            Event::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }
    for (topic, expected) in expected {
        assert_eq!(heard[topic], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_history_has_lost_is_one_gap() {
    let gateway = gateway().limit("reconnect_window_ms", 100).limit("history_messages", 5).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
    let first = client.publish("a", "first").await.expect("published").pos;
    assert_eq!(texts(&mut events, 1).await, ["first"]);
    proxy.weather(|weather| weather.is_silent = true);
    proxy.cut();
    numbers(0..20).iter().for_each(|text| post(&gateway, "a", text));
    proxy.weather(|weather| weather.is_silent = false);
    proxy.cut();
    let missing = gap(&mut events).await;
    assert_eq!((&*missing.topic, &missing.from, &missing.reason), ("a", &Some(first), &GapReason::TooOld));
    assert_eq!(texts(&mut events, 5).await, numbers(15..20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_killed_and_started_again_is_one_gap_and_one_that_kept_its_state_is_none() {
    for keeps_state in [false, true] {
        let scratch = common::Scratch::new();
        let setup = gateway().limit("reconnect_window_ms", 100).limit("drain_ms", 2000);
        let setup = if keeps_state { setup.arg("--state").arg(scratch.join("state").to_str().expect("a path")) } else { setup };
        let mut before = setup.clone().start();
        let proxy = Proxy::before(before.port, common::seed());
        let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
        soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
        let last = client.publish("a", "before").await.expect("published").pos;
        assert_eq!(texts(&mut events, 1).await, ["before"]);
        before.signal(if keeps_state { libc::SIGTERM } else { libc::SIGKILL });
        before.exit_within(SOON);
        let after = setup.start();
        proxy.weather(|weather| weather.upstream = after.port);
        post(&after, "a", "after");
        if !keeps_state {
            let missing = gap(&mut events).await;
            assert_eq!((missing.from, missing.reason), (Some(last), GapReason::Restart));
        }
        let event = until(&mut events, |event| matches!(event, Event::Message(_) | Event::Gap(_)).then_some(event)).await;
        assert!(matches!(&event, Event::Message(message) if message.data == Data::from("after")), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_publication_is_there_once_however_often_it_is_cut() {
    let (_gateway, proxy) = behind_a_proxy();
    proxy.weather(|weather| weather.cut_within = Some(Duration::from_millis(150)));
    let (client, mut events) = Client::builder(&proxy.url()).subscribe("a", Start::Earliest).start().expect("a URL");
    let heard = tokio::spawn(async move {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last| last != "end") {
            heard.extend(texts(&mut events, 1).await);
        }
        heard
    });
    let (mut count, mut duplicates) = (0, 0);
    // Most of the time a hundred are on their way, so that most cuts fall among them.
    while count < 2000 || duplicates == 0 || proxy.connects("c") < 3 {
        let mut receipts = Vec::new();
        for _ in 0..100 {
            receipts.push(client.send("a", count.to_string(), PublishOptions::default()).await.expect("there is room"));
            count += 1;
        }
        for receipt in receipts {
            duplicates += usize::from(soon("a receipt", receipt).await.expect("published").duplicate);
        }
        assert!(count < 1_000_000, "{duplicates} of a million were sent again");
    }
    soon("a receipt", client.publish("a", "end")).await.expect("published");
    let mut expected = numbers(0..count);
    expected.push("end".to_owned());
    assert!(soon("all messages", heard).await.expect("no panic") == expected, "each once and in order");
    println!("{} connections; of {count} publications {duplicates} were sent again and not published again", proxy.connects("c"));
}
