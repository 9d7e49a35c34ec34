//! The Rust client (`shardcast::client`) against real gateways, through a proxy that cuts, swallows and refuses.
#![allow(clippy::disallowed_methods, reason = "tests stand outside: real time")]

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Gateway, SOON, gateway, raw};
use hostile::{Proxy, Refusal, Seen};
use shardcast::client::{
    Builder, Client, Closed, Data, Error, Event, Events, Gap, GapReason, Member, Message, Presence, PublishOptions, Receipt, Start,
    UrlError,
};
use tungstenite::WebSocket;

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

async fn reconnecting(events: &mut Events) -> (Duration, String) {
    until(events, |event| if let Event::Reconnecting { wait, why } = event { Some((wait, why.into())) } else { None }).await
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
async fn many_messages_as_one_frame_are_heard_as_they_are_one_by_one() {
    const COUNT: usize = 400;
    let (gateway, proxy) = behind_a_proxy();
    let builder = Client::builder(&proxy.url()).batch(true).subscribe("a", Start::Latest).subscribe("b", Start::Latest);
    let (_client, mut events) = builder.start().expect("a URL");
    for _ in 0..2 {
        until(&mut events, |event| matches!(event, Event::Subscribed { .. }).then_some(())).await;
    }
    let (publisher, _) = Client::connect(&url(&gateway)).expect("a URL");
    let mut last = None;
    for number in 0..COUNT {
        let data = format!("{{\n\"number\": {number}}}");
        last = Some(publisher.send(["a", "b"][number % 2], data, PublishOptions::default()).await.expect("there is room"));
        if number == COUNT / 2 {
            proxy.cut();
        }
    }
    soon("a receipt", last.expect("one was sent")).await.expect("published");
    let mut heard = [Vec::new(), Vec::new()];
    while heard.iter().map(Vec::len).sum::<usize>() < COUNT {
        match next(&mut events).await {
            Event::Message(message) => {
                let value: serde_json::Value = message.data.parse().expect("JSON");
                heard[usize::from(&*message.topic == "b")].push(value["number"].as_u64().expect("a number") as usize);
            }
            Event::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }
    assert_eq!(heard, [0, 1].map(|first| (first..COUNT).step_by(2).collect::<Vec<_>>()));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_and_a_refusal_are_obeyed() {
    let gateway = gateway().limit("reconnect_window_ms", 800).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
    admin(&gateway, "/rebalance?share=1", "");
    let (goodbye, why) = reconnecting(&mut events).await;
    assert!(why.contains("4503"), "{why}");
    proxy.weather(|weather| weather.refusal = Some(Refusal::busy(1.0, Duration::from_millis(300))));
    let (refusal, why) = reconnecting(&mut events).await;
    assert_eq!((refusal, &*why), (Duration::from_millis(300), "503 full"));
    proxy.weather(|weather| weather.refusal = None);
    soon("a receipt", client.publish("a", "there again")).await.expect("published");
    let seen = proxy.seen("c");
    let told: Vec<Duration> = seen.iter().filter_map(|(_, seen)| if let Seen::Told(wait) = seen { Some(*wait) } else { None }).collect();
    // It may have been refused more than once before it was let in.
    assert!(told[0] == goodbye && told[1..].iter().all(|wait| *wait == refusal), "{seen:?}");
    for pair in seen.windows(2) {
        if let [(when, Seen::Told(wait)), (then, next)] = pair {
            assert!(*next == Seen::Connected && *then >= *when + *wait, "told to wait {wait:?}, there after {:?}", *then - *when);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_to_stop_stops_and_says_why() {
    let (gateway, proxy) = behind_a_proxy();
    let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
    admin(&gateway, "/topics/a/disconnect?code=4420&reason=abuse", "");
    let banned = closed(&mut events).await;
    assert_eq!((banned.code, &*banned.reason), (Some(4420), "4420 abuse"));
    assert_eq!(client.publish("a", "x").await, Err(Error::Closed(banned.clone())));
    assert_eq!(client.subscribe("b", Start::Latest).await, Err(Error::Closed(banned)));
    assert_eq!(proxy.connects("c"), 1, "nobody has come back");
    // Where there is no gateway, or something else.
    let response = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
    proxy.weather(|weather| weather.refusal = Some(Refusal { share: 1.0, response, hint: None }));
    let (_client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    let gone = closed(&mut events).await;
    assert!(gone.code == Some(4404) && gone.reason.contains("404"), "{gone}");
    let (port, server) = scripted(1, |_, _| None);
    let (_client, mut events) = Client::connect(&format!("ws://127.0.0.1:{port}")).expect("a URL");
    let other = closed(&mut events).await;
    assert!(other.code == Some(1002) && other.reason.contains("shardcast.v1.json"), "{other}");
    server.join().expect("it has served");
}

/// Lets the next client in, by the subprotocol that is said to it.
fn let_in(listener: &TcpListener, protocol: Option<String>) -> Option<WebSocket<TcpStream>> {
    use tungstenite::handshake::server::{Request, Response};
    let stream = listener.accept().expect("a connection").0;
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let shake = |_: &Request, mut response: Response| {
        if let Some(protocol) = protocol {
            response.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().expect("a word"));
        }
        Ok(response)
    };
    tungstenite::accept_hdr(stream, shake).ok()
}

/// A server of so many connections, one after the other: welcomes who it lets in by its subprotocol, and says what it hears first; that connection ends then.
fn scripted(connections: u32, answer: impl Fn(u32, &str) -> Option<String> + Send + 'static) -> (u16, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let server = std::thread::spawn(move || {
        let mut first = Vec::new();
        for number in 0..connections {
            let Some(mut socket) = let_in(&listener, answer(number, "")) else { continue };
            if let Ok(message) = socket.read() {
                first.push(message.to_text().unwrap_or_default().to_owned());
            }
        }
        first
    });
    (port, server)
}

/// A client with another token each time, but for the second, which cannot be had.
fn numbered_tokens(port: u16) -> Builder {
    let count = Arc::new(AtomicU32::new(0));
    Client::builder(&format!("ws://127.0.0.1:{port}")).token(move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        async move { if number == 1 { Err("the vault is locked") } else { Ok(format!("token {number}")) } }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_before_each_connection_and_said_first() {
    let (port, server) = scripted(3, |_, _| Some("shardcast.v1.json".to_owned()));
    let (_client, mut events) = numbered_tokens(port).start().expect("a URL");
    let mut failures = Vec::new();
    while failures.len() < 4 {
        failures.push(reconnecting(&mut events).await.1);
    }
    assert!(failures[1].contains("the vault is locked"), "{failures:?}");
    let hellos = server.join().expect("it has served");
    assert_eq!(hellos, [0, 2, 3].map(|number| format!(r#"{{"type":"hello","token":"token {number}"}}"#)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_is_asked_for_anew_and_said_on_the_same_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let server = std::thread::spawn(move || {
        let mut socket = let_in(&listener, Some("shardcast.v1.json".to_owned())).expect("a client");
        let say = [
            r#"{"type":"welcome","conn":"0-0-0","ping_ms":45000,"retry_ms":100,"max_bytes":65536}"#,
            r#"{"type":"auth_expiring","in_ms":60000}"#,
        ];
        say.map(|text| {
            socket.send(text.into()).expect("it is there");
            socket.read().expect("an answer").to_text().expect("a text").to_owned()
        })
    });
    let (_client, mut events) = numbered_tokens(port).start().expect("a URL");
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    let (_, why) = reconnecting(&mut events).await;
    let heard = server.join().expect("it has served");
    assert_eq!(heard[0], r#"{"type":"hello","token":"token 0"}"#, "{why}");
    let auth: serde_json::Value = serde_json::from_str(&heard[1]).expect("JSON");
    assert_eq!((&auth["type"], &auth["token"]), (&"auth".into(), &"token 2".into()), "the one between failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_as_many_tries_as_it_may_it_gives_up() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it was bound").port();
    let (client, mut events) = Client::builder(&format!("ws://127.0.0.1:{nobody}")).tries_max(3).start().expect("a URL");
    let pending = client.send("a", "x", PublishOptions::default()).await.expect("there is room");
    let waits = [reconnecting(&mut events).await, reconnecting(&mut events).await];
    assert!(waits.iter().all(|(_, why)| why.contains(&format!("127.0.0.1:{nobody}"))), "{waits:?}");
    let end = closed(&mut events).await;
    assert!(end.code.is_none() && end.reason.contains("3 tries"), "{end}");
    assert_eq!(pending.await, Err(Error::Closed(end)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_silent_is_given_up() {
    let gateway = gateway().limit("ping_interval_ms", 300).limit("reconnect_window_ms", 100).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let (client, mut events) = Client::builder(&proxy.url()).pong_within(Duration::from_millis(300)).start().expect("a URL");
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
    proxy.weather(|weather| weather.is_silent = true);
    let (_, why) = reconnecting(&mut events).await;
    assert!(why.contains("nothing was heard for"), "{why}");
    proxy.weather(|weather| weather.is_silent = false);
    proxy.cut();
    soon("a receipt", client.publish("a", "there again")).await.expect("published");
    assert_eq!(texts(&mut events, 1).await, ["there again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_its_events_holds_a_bounded_number_and_misses_nothing_unsaid() {
    const COUNT: u64 = 20_000;
    const BYTES: usize = 1000;
    let gateway = gateway().limit("queue_bytes_max", 256 << 10).limit("reconnect_window_ms", 100).start();
    let (client, mut events) = Client::builder(&url(&gateway)).buffer_bytes(64 << 10).start().expect("a URL");
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("subscribed");
    let (publisher, _) = Client::connect(&url(&gateway)).expect("a URL");
    let filler = "z".repeat(BYTES);
    for number in 0..COUNT {
        let pending = publisher.send("a", format!("{number} {filler}"), PublishOptions::default()).await.expect("there is room");
        if number % 256 == 255 {
            soon("a receipt", pending).await.expect("published");
        }
    }
    // 20 MB were published: the gateway has ended who took none of it.
    gateway.wait_for_closes("slow_consumer", 1);
    let waiting = events.queued();
    assert!(waiting > 0 && waiting <= (64 << 10) / BYTES, "{waiting} events of over {BYTES} bytes wait in 64 KiB");
    let mut next_number = 0;
    let mut check = |event: Event| match event {
        Event::Message(message) => {
            let number: u64 = message.data.as_text().and_then(|text| text.split(' ').next()).expect("a number").parse().expect("a number");
            assert_eq!(number, next_number);
            next_number = number + 1;
            next_number == COUNT
        }
        Event::Gap(gap) => {
            let offset =
                |pos: &shardcast::client::Position| pos.as_str().split_once('.').expect("a position").1.parse::<u64>().expect("an offset");
            next_number += offset(&gap.to) - offset(&gap.from.expect("it knows"));
            false
        }
        Event::Closed(closed) => panic!("{closed}"),
        _ => false,
    };
    loop {
        if check(next(&mut events).await) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_ones_own_publishes_once_and_what_cannot_be_is_an_error_of_its_call() {
    let gateway = gateway().start();
    let (client, events) = Client::connect(&url(&gateway)).expect("a URL");
    drop(events);
    let once = PublishOptions { id: Some("order 7".into()), ..PublishOptions::default() };
    let first = soon("a receipt", client.publish_with("a", "x", once.clone())).await.expect("published");
    let again = soon("a receipt", client.publish_with("a", "x", once)).await.expect("known");
    assert_eq!((again.pos, again.duplicate), (first.pos, true));
    let long = soon("an answer", client.publish("a", "z".repeat(200_000))).await;
    assert_eq!(long, Err(Error::TooLarge { bytes: 200_000, max: 65_536 }));
    let unnamed = soon("an answer", client.publish("", "x")).await;
    assert!(matches!(&unnamed, Err(Error::Refused { code, .. }) if &**code == "bad_request"), "{unnamed:?}");
    let unnamed = soon("an answer", client.subscribe("", Start::Latest)).await;
    assert!(matches!(&unnamed, Err(Error::Refused { code, .. }) if &**code == "bad_request"), "{unnamed:?}");
    soon("a receipt", client.publish("a", "still here")).await.expect("published");
    let history = soon("a history", client.history("a", Start::Earliest, Some(1))).await.expect("kept");
    assert_eq!((history.messages.len(), &history.messages[0].data, history.gap), (1, &Data::from("x"), None));
    let next = history.next.expect("it goes on");
    let rest = soon("a history", client.history("a", Start::After(next), None)).await.expect("kept");
    assert_eq!(rest.messages.iter().map(|message| &message.data).collect::<Vec<_>>(), [&Data::from("still here")]);
    let lost = soon("a history", client.history("a", Start::After("a.5".parse().expect("a position")), None)).await.expect("kept");
    assert_eq!((lost.gap.expect("it is of another epoch").reason, lost.messages.len()), (GapReason::Restart, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_lives_as_long_as_a_handle_or_its_events_and_then_says_goodbye() {
    let gateway = gateway().start();
    let (client, mut events) = Client::builder(&url(&gateway)).subscribe("a", Start::Latest).start().expect("a URL");
    let other = client.clone();
    drop(client);
    let pending = other.send("a", "from a handle that is gone", PublishOptions::default()).await.expect("there is room");
    drop(other);
    soon("a receipt", pending).await.expect("published");
    assert_eq!(texts(&mut events, 1).await, ["from a handle that is gone"]);
    post(&gateway, "a", "to events alone");
    assert_eq!(texts(&mut events, 1).await, ["to events alone"]);
    drop(events);
    gateway.wait_for_closes("client_closed", 1);
}

fn name(member: &Member) -> String {
    member.user.as_deref().unwrap_or("-").to_owned()
}

/// Applies what is told of who is in a topic, until they are these, by what they call themselves.
async fn until_there(events: &mut Events, known: &mut BTreeMap<Box<str>, String>, expected: &[&str]) {
    let members = |told: Presence| told.members.expect("they are few").into_iter().map(|member| (member.conn.clone(), name(&member)));
    loop {
        let mut names: Vec<&String> = known.values().collect();
        names.sort();
        if names == expected {
            return;
        }
        match next(events).await {
            Event::Presence(all) => *known = members(all).collect(),
            Event::Join(came) => known.extend(members(came)),
            Event::Leave(gone) => members(gone).for_each(|(conn, _)| drop(known.remove(&conn))),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_a_topic_is_told_as_they_come_and_go_and_anew_after_a_loss() {
    let gateway = gateway()
        .env("SHARDCAST_PRESENCE", "lobby")
        .limit("presence_tick_ms", 20)
        .limit("presence_members_max", 3)
        .limit("reconnect_window_ms", 100)
        .start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let builder = Client::builder(&proxy.url()).user("Anna & Bö").subscribe_with_presence("lobby", Start::Latest);
    let (client, mut events) = builder.start().expect("a URL");
    let mut known = BTreeMap::new();
    until_there(&mut events, &mut known, &["Anna & Bö"]).await;
    let (other, _) = Client::builder(&url(&gateway)).user("ben").subscribe("lobby", Start::Latest).start().expect("a URL");
    until_there(&mut events, &mut known, &["Anna & Bö", "ben"]).await;
    proxy.cut();
    reconnecting(&mut events).await;
    known.clear();
    // Who was cut off may be there for a moment longer.
    until_there(&mut events, &mut known, &["Anna & Bö", "ben"]).await;
    let now = soon("who is there", client.presence("lobby")).await.expect("it may be asked");
    let mut names: Vec<String> = now.members.iter().flatten().map(name).collect();
    names.sort();
    assert_eq!((&*now.topic, now.count, names, &*now.scope), ("lobby", 2, vec!["Anna & Bö".to_owned(), "ben".to_owned()], "node"));
    other.close().await;
    until_there(&mut events, &mut known, &["Anna & Bö"]).await;
    // What is refused is an error of its call.
    let refused = |error: &Error| matches!(error, Error::Refused { code, .. } if &**code == "no_presence");
    assert!(refused(&soon("an answer", client.presence("a")).await.expect_err("not named")));
    assert!(refused(&soon("an answer", client.subscribe_with_presence("a", Start::Latest)).await.expect_err("not named")));
    soon("a place", client.subscribe("a", Start::Latest)).await.expect("it is not subscribed to yet");
    client.publish("a", "still here").await.expect("published");
    assert_eq!(texts(&mut events, 1).await, ["still here"]);
    // A crowd is counted.
    let crowd: Vec<_> = (0..4).map(|_| Client::builder(&url(&gateway)).subscribe("lobby", Start::Latest).start().expect("a URL")).collect();
    let counted = until(&mut events, |event| if let Event::Presence(presence) = event { Some(presence) } else { None }).await;
    assert!(counted.members.is_none() && counted.count > 3, "{counted:?}");
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_pattern_are_heard_from_their_first_message_on_and_nothing_is_missed_across_a_loss() {
    let gateway = gateway().env("SHARDCAST_WILDCARDS", "true").limit("reconnect_window_ms", 100).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    post(&gateway, "a.0", "before");
    let (client, mut events) = Client::connect(&proxy.url()).expect("a URL");
    soon("their places", client.subscribe_to_pattern("a.*")).await.expect("allowed");
    let mut said: HashMap<String, Vec<String>> = HashMap::new();
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    for round in 0..4 {
        for number in 0..8 {
            let (topic, text) = (format!("a.{number}"), format!("{round} {number}"));
            post(&gateway, &topic, &text);
            post(&gateway, &format!("b.{number}"), "not meant");
            said.entry(topic).or_default().push(text);
        }
        while heard.values().map(Vec::len).sum::<usize>() < 8 * (round + 1) {
            match next(&mut events).await {
                Event::Message(message) => {
                    heard.entry(message.topic.to_string()).or_default().push(message.data.as_text().expect("a text").to_owned());
                }
                Event::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
        }
        // What is said next is said while it is away, or as it comes back.
        if round < 3 {
            proxy.cut();
        }
    }
    assert_eq!(heard, said);
    assert!(client.unsubscribe_from_pattern("a.*").await.expect("a client"));
    soon("a place", client.subscribe("b.0", Start::Latest)).await.expect("subscribed");
    post(&gateway, "a.0", "not heard");
    post(&gateway, "b.0", "heard");
    assert_eq!(texts(&mut events, 1).await, ["heard"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_a_pattern_that_came_to_be_while_it_was_away_is_heard_from_its_first_message_on() {
    let gateway = gateway().env("SHARDCAST_WILDCARDS", "true").limit("reconnect_window_ms", 100).start();
    let proxy = Proxy::before(gateway.port, common::seed());
    let (client, mut events) = Client::builder(&proxy.url()).batch(true).start().expect("a URL");
    soon("their places", client.subscribe_to_pattern("a.*")).await.expect("allowed");
    proxy.weather(|weather| weather.is_silent = true);
    proxy.cut();
    ["one", "two"].iter().for_each(|text| post(&gateway, "a.new", text));
    proxy.weather(|weather| weather.is_silent = false);
    proxy.cut();
    assert_eq!(texts(&mut events, 2).await, ["one", "two"]);
    post(&gateway, "a.new", "three");
    assert_eq!(texts(&mut events, 1).await, ["three"]);
    assert!(client.unsubscribe_from_pattern("a.*").await.expect("a client"));
    soon("a place", client.subscribe("b", Start::Latest)).await.expect("subscribed");
    ["a.new", "b"].iter().for_each(|topic| post(&gateway, topic, topic));
    assert_eq!(texts(&mut events, 1).await, ["b"], "it was asked for by its name, and is given up by that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_a_pattern_can_be_named_besides_and_what_is_too_much_or_not_allowed_is_told() {
    let gateway = gateway().env("SHARDCAST_WILDCARDS", "true").limit("wildcard_topics_max", 3).limit("wildcards_max", 2).start();
    let (client, mut events) = Client::builder(&url(&gateway)).subscribe_to_pattern("a.*").start().expect("a URL");
    let following = until(&mut events, |event| if let Event::Following { pattern } = event { Some(pattern) } else { None }).await;
    assert_eq!(&*following, "a.*");
    post(&gateway, "a.1", "one");
    assert_eq!(texts(&mut events, 1).await, ["one"]);
    soon("a place", client.subscribe("a.1", Start::Earliest)).await.expect("it is the pattern's until then");
    assert_eq!(texts(&mut events, 1).await, ["one"], "from the beginning");
    assert_eq!(client.subscribe("a.1", Start::Latest).await, Err(Error::AlreadySubscribed("a.1".into())));
    assert!(client.unsubscribe("a.1").await.expect("a client"));
    post(&gateway, "a.1", "two");
    assert_eq!(texts(&mut events, 1).await, ["two"], "the pattern means it still");
    for number in 2..7 {
        post(&gateway, &format!("a.{number}"), "x");
    }
    let left_out =
        until(&mut events, |event| if let Event::LeftOut { code, message } = event { Some((code, message)) } else { None }).await;
    assert!(&*left_out.0 == "too_many_topics" && left_out.1.contains("wildcard_topics_max"), "{left_out:?}");
    assert_eq!(client.subscribe_to_pattern("a.*").await, Err(Error::AlreadySubscribed("a.*".into())));
    soon("their places", client.subscribe_to_pattern("b.*")).await.expect("allowed");
    let more = soon("an answer", client.subscribe_to_pattern("c.*")).await;
    assert!(matches!(&more, Err(Error::Refused { code, .. }) if &**code == "too_many_topics"), "{more:?}");
    let wrong = soon("an answer", client.subscribe_to_pattern("a*b")).await;
    assert!(matches!(&wrong, Err(Error::Refused { code, .. }) if &**code == "bad_request"), "{wrong:?}");
    let none = common::gateway().start();
    let (client, _events) = Client::connect(&url(&none)).expect("a URL");
    let refused = soon("an answer", client.subscribe_to_pattern("a.*")).await;
    assert!(matches!(&refused, Err(Error::Refused { code, .. }) if &**code == "no_wildcards"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_patterns_that_are_too_many_from_the_start_are_refused_one_by_one() {
    let mut builder = Client::builder("ws://127.0.0.1:1").subscribe("0", Start::Latest);
    for number in 0..130 {
        builder = builder.subscribe(number.to_string(), Start::Latest).subscribe_to_pattern(format!("{number}.*"));
    }
    let (_client, mut events) = builder.start().expect("a URL");
    for expected in ["128", "129", "128.*", "129.*"] {
        let Event::Refused { topic, code, message } = next(&mut events).await else { panic!("{expected} is refused first") };
        assert!((&*topic, &*code) == (expected, "too_many_topics") && message.contains("128"), "{topic} {message}");
    }
}

#[test]
fn what_cannot_be_connected_to_is_said_at_once() {
    assert_eq!(Client::connect("ws://127.0.0.1:1").err(), Some(UrlError::NoRuntime));
    let error = Client::connect("127.0.0.1:1").expect_err("no scheme").to_string();
    assert!(error.contains("ws://127.0.0.1:8080"), "{error}");
    if cfg!(not(feature = "client-tls")) {
        let error = Client::connect("wss://127.0.0.1:1").expect_err("no TLS").to_string();
        assert!(error.contains("client-tls"), "{error}");
    }
}
