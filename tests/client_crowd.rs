//! A thousand clients (`shardcast::client`) through a proxy that cuts them off at random, refuses some, and a gateway that sends some away: each has every message of
//! its topics once and in order, or one gap that is told; what each has published is there once; and nobody comes back before its time.
//!
//! Five seconds, or `SHARDCAST_SOAK_SECONDS`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests stand outside: real time")]

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Gateway, gateway, raw};
use hostile::{Proxy, Refusal, Seen};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shardcast::client::{Client, Error, Event, Events, Position, PublishOptions, Start};

const CLIENTS: usize = 1000;
const TOPICS: usize = 20;
/// What a topic keeps: who is away for long falls out of it, and is told a gap.
const KEPT: u64 = 40;
/// From one message of a topic to the next.
const PACE: Duration = Duration::from_millis(200);
/// How long the last of them may take to come back and to catch up: a failure costs 20 s at most.
const CATCH_UP: Duration = Duration::from_secs(90);

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    gaps: AtomicU64,
    published: AtomicU64,
    unanswered: AtomicU64,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn topic(number: usize) -> String {
    format!("topic {}", number % TOPICS)
}

fn offset(pos: &Position) -> u64 {
    pos.as_str().split_once('.').expect("a position").1.parse().expect("an offset")
}

/// What a client has come to in a topic: the offset and the number of the last message.
#[derive(Default)]
struct Reached {
    offset: u64,
    /// Between the number that a message has and its offset lies the same all the time.
    difference: Option<i64>,
    is_at_end: bool,
}

/// One client until it has heard the end of both its topics: checks what it hears, and keeps the waits that it was told.
async fn listen(name: String, mut events: Events, counts: Arc<Counts>) -> Vec<(Instant, Duration, Box<str>)> {
    let mut reached: HashMap<Arc<str>, Reached> = HashMap::new();
    let mut waits = Vec::new();
    while reached.len() < 2 || reached.values().any(|reached| !reached.is_at_end) {
        match events.recv().await.expect("it is not over") {
            Event::Subscribed { topic, pos, .. } => {
                // Where it begins; later ones say where it goes on.
                reached.entry(topic).or_insert(Reached { offset: offset(&pos), ..Reached::default() });
            }
            Event::Message(message) => {
                let reached = reached.get_mut(&message.topic).expect("it was placed before");
                assert_eq!(offset(&message.pos), reached.offset + 1, "{name} in {}: missed, repeated or misplaced", message.topic);
                reached.offset += 1;
                let text = message.data.as_text().expect("a text");
                if text == "end" {
                    reached.is_at_end = true;
                    continue;
                }
                let difference = reached.offset.cast_signed() - text.parse::<i64>().expect("a number");
                assert_eq!(*reached.difference.get_or_insert(difference), difference, "{name}: {text} at {}", message.pos);
                add(&counts.messages);
            }
            Event::Gap(gap) => {
                let reached = reached.get_mut(&gap.topic).expect("it was placed before");
                assert_eq!(gap.from.as_ref().map(offset), Some(reached.offset), "{name}: {gap:?}");
                assert!(offset(&gap.to) > reached.offset, "{name}: {gap:?}");
                reached.offset = offset(&gap.to);
                add(&counts.gaps);
            }
            Event::Reconnecting { wait, why } => waits.push((Instant::now(), wait, why)),
            Event::Closed(closed) => panic!("{name}: {closed}"),
            _ => {}
        }
    }
    waits
}

/// Says one message every two seconds or so, under the client's name, one after the other. Returns how many, and which have no receipt.
async fn speak(name: String, client: Client, is_over: Arc<AtomicBool>, counts: Arc<Counts>, mut random: StdRng) -> (u64, Vec<u64>) {
    let (mut number, mut unsure) = (0, Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
        let options = PublishOptions { within: Some(CATCH_UP), ..PublishOptions::default() };
        match client.publish_with("said", format!("{name} {number}"), options).await {
            Ok(_) => add(&counts.published),
            Err(Error::Timeout(_)) => {
                unsure.push(number);
                add(&counts.unanswered);
            }
            Err(error) => panic!("{name}: {error}"),
        }
        number += 1;
    }
    (number, unsure)
}

/// Who was told to wait has waited: by the proxy's record of connections, against what it saw the gateway say and what the client itself said.
fn check_waits(name: &str, seen: &[(Instant, Seen)], waits: &[(Instant, Duration, Box<str>)]) -> u64 {
    let connects: Vec<usize> = (0..seen.len()).filter(|&at| seen[at].1 == Seen::Connected).collect();
    assert_eq!(connects.len(), waits.len() + 1, "{name}: as many connections as waits, and the first: {seen:?}\n{waits:?}");
    let mut obeyed = 0;
    for (pair, (_, wait, why)) in connects.windows(2).zip(waits) {
        let &[from, to] = pair else { unreachable!("windows of two") };
        // The first thing that is seen of its end; without any, its beginning.
        let (came, ended) = (seen[to].0, seen[if from + 1 < to { from + 1 } else { from }].0);
        assert!(came >= ended + *wait, "{name} came back after {:?} and not after {wait:?} ({why}): {seen:?}", came - ended);
        // A goodbye that the cut did not overtake has reached it.
        if let [(told, Seen::Told(hint))] = &seen[from + 1..to] {
            // Who is told 0 again and again is given a moment.
            let is_hint = wait == hint || hint.is_zero() && *wait == Duration::from_millis(100);
            assert!(is_hint && came >= *told + *hint, "{name} was told {hint:?} and waited {wait:?} ({why})");
            obeyed += 1;
        }
    }
    obeyed
}

/// A topic's members are told to come back, each at another time.
fn send_away(gateway: &Gateway, number: usize) {
    let path = format!("/topics/{}/disconnect?code=4503&reason=elsewhere", topic(number).replace(' ', "%20"));
    let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let response = raw::http(gateway.admin, request.as_bytes());
    assert_eq!(response.status, 200, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_miss_and_repeat_nothing_and_nobody_comes_back_before_its_time() {
    common::raise_nofile();
    let seconds = std::env::var("SHARDCAST_SOAK_SECONDS").ok().map_or(5, |text| text.parse().expect("SHARDCAST_SOAK_SECONDS is a number"));
    let seed = common::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let gateway = gateway().limit("history_messages", KEPT).limit("reconnect_window_ms", 1000).start();
    let proxy = Proxy::before(gateway.port, seed);
    let counts = Arc::new(Counts::default());
    let is_over = Arc::new(AtomicBool::new(false));

    // Who hears what the crowd says has no proxy before it.
    let direct = format!("ws://127.0.0.1:{}", gateway.port);
    let (watcher, mut said) = Client::connect(&direct).expect("a URL");
    watcher.subscribe("said", Start::Latest).await.expect("subscribed");
    let witness = tokio::spawn(async move {
        let mut heard: HashMap<String, Vec<u64>> = HashMap::new();
        loop {
            match said.recv().await.expect("it is not over") {
                Event::Message(message) => match message.data.as_text().expect("a text").split_once(' ') {
                    Some((name, number)) => heard.entry(name.to_owned()).or_default().push(number.parse().expect("a number")),
                    None => return heard,
                },
                Event::Gap(_) | Event::Reconnecting { .. } => panic!("the witness itself was cut off"),
                _ => {}
            }
        }
    });

    let mut listeners = Vec::new();
    let mut speakers = Vec::new();
    for number in 0..CLIENTS {
        let name = format!("c{number}");
        let builder = Client::builder(&proxy.url_of(&name)).connect_within(CATCH_UP);
        let (client, events) = builder
            .subscribe(topic(number), Start::Latest)
            .subscribe(topic(number + 1 + number / TOPICS % (TOPICS - 1)), Start::Latest)
            .start()
            .expect("a URL");
        listeners.push((name.clone(), client.clone(), tokio::spawn(listen(name.clone(), events, Arc::clone(&counts)))));
        let random = StdRng::seed_from_u64(random.random());
        speakers.push((name.clone(), tokio::spawn(speak(name, client, Arc::clone(&is_over), Arc::clone(&counts), random))));
    }

    let publisher = {
        let (is_over, watcher) = (Arc::clone(&is_over), watcher.clone());
        tokio::spawn(async move {
            for number in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                for place in 0..TOPICS {
                    watcher
                        .send(&topic(place), number.to_string(), PublishOptions::default())
                        .await
                        .expect("there is room")
                        .await
                        .expect("published");
                }
                tokio::time::sleep(PACE).await;
            }
        })
    };

    // Everybody is in, before anybody is cut off: what comes to a topic before its place is nobody's loss.
    common::eventually(CATCH_UP, || {
        let there = gateway.connections();
        if there > CLIENTS as u64 { Ok(()) } else { Err(format!("{there} of {CLIENTS} are there")) }
    });
    proxy.weather(|weather| {
        weather.cut_within = Some(Duration::from_secs(4));
        weather.refusal = Some(Refusal::busy(0.1, Duration::from_millis(700)));
    });
    proxy.cut();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(500)).await;
        tokio::task::block_in_place(|| send_away(&gateway, random.random_range(0..TOPICS)));
    }
    // Those that live still have their end before them.
    proxy.weather(|weather| (weather.cut_within, weather.refusal) = (None, None));
    tokio::time::sleep(Duration::from_secs(5)).await;
    is_over.store(true, Ordering::Relaxed);
    publisher.await.expect("no panic");
    for place in 0..TOPICS {
        watcher.publish(&topic(place), "end").await.expect("published");
    }

    let calm = Instant::now();
    let mut spoken = HashMap::new();
    for (name, speaker) in speakers {
        let result = tokio::time::timeout(CATCH_UP, speaker).await.unwrap_or_else(|_| panic!("{name} still speaks"));
        spoken.insert(name, result.expect("no panic"));
    }
    let (mut connects, mut obeyed) = (0, 0);
    for (name, client, listener) in listeners {
        let waits =
            tokio::time::timeout(CATCH_UP, listener).await.unwrap_or_else(|_| panic!("{name} has not heard the end")).expect("no panic");
        let seen = proxy.seen(&name);
        connects += seen.iter().filter(|(_, seen)| *seen == Seen::Connected).count();
        obeyed += check_waits(&name, &seen, &waits);
        drop(client);
    }
    let caught_up = calm.elapsed();
    watcher.publish("said", "end").await.expect("published");
    let heard = witness.await.expect("no panic");
    for (name, (count, unsure)) in &spoken {
        let heard = heard.get(name).map_or(&[][..], Vec::as_slice);
        assert!(heard.is_sorted_by(|one, next| one < next), "{name} was heard twice, or out of order: {heard:?}");
        let missing: Vec<u64> = (0..*count).filter(|number| !heard.contains(number) && !unsure.contains(number)).collect();
        assert!(missing.is_empty(), "{name} has receipts for what nobody heard: {missing:?}");
    }
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{CLIENTS} clients in {seconds} s: {connects} connections, {} messages and {} gaps heard, {} published, {} without a receipt; {obeyed} goodbyes and refusals obeyed; all caught up {:.1} s after the end",
        get(&counts.messages),
        get(&counts.gaps),
        get(&counts.published),
        get(&counts.unanswered),
        caught_up.as_secs_f64()
    );
    assert!(connects > 2 * CLIENTS && obeyed > CLIENTS as u64 / 20, "{connects} connections, {obeyed} hints: nothing was tried");
}
