//! Random readers that are cut off and come back, against an oracle.
//!
//! Publishers write to four topics all the while. Readers are event streams of 1 to 4 topics and raw WebSockets of one; by a seeded schedule each reads a
//! little, reads nothing for a while, and is cut off with FIN or RST, again and again; it comes back with its last id, a WebSocket with the position of
//! the last message that it heard. One watcher per topic is never cut off: what it hears is the topic's order. The oracle demands:
//! - the order holds every message that was published, once, and each publisher's in the order in which it wrote them;
//! - what a reader hears over all its lives is that order, from where its first life began to the end, each message once;
//! - where messages are missing, a gap (a stream) or a close with 4510 (a WebSocket) has said so, and said until where;
//! - where history is long enough, nothing is ever missing.

#![allow(clippy::disallowed_types, reason = "tests stand outside the gateway: real threads")]

mod common;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::events::{self, Reader};
use common::frame::{self, CLOSE, FIN};
use common::raw::{self, Raw};
use common::{Gateway, SOON, eventually, gateway, now, sleep_ms};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const TOPICS: usize = 4;
const PUBLISHERS: usize = 2;
const STREAMS: usize = 10;
const SOCKETS: usize = 6;
const RUN: Duration = Duration::from_millis(2500);
/// What each topic is sent when all readers are in their last life.
const THE_END: &str = "end";

/// Long enough that nobody ever misses anything.
const LONG: u64 = 100_000;
/// So short that who is away for a moment misses something.
const SHORT: u64 = 40;

#[test]
fn with_a_long_history_readers_that_come_back_miss_nothing() {
    for seed in 1..=3 {
        let gaps = run(seed, LONG);
        assert_eq!(gaps, 0, "seed {seed}");
    }
}

#[test]
fn with_a_short_history_readers_that_come_back_are_told_what_they_miss() {
    let gaps: usize = (11..=13).map(|seed| run(seed, SHORT)).sum();
    assert!(gaps > 0, "nobody missed anything: this test tests nothing");
}

/// What happened to a reader, in its order.
enum Note {
    /// Its first life began behind this offset of the topic.
    Begin { topic: usize, offset: u64 },
    /// A message, and where the reader was told that it is, if it was.
    Heard { topic: usize, text: String, offset: Option<u64> },
    /// Messages from behind one offset up to another are missing.
    Gap { topic: usize, from: u64, to: u64 },
    /// Some are missing, up to the next that it hears.
    Lost { topic: usize },
}

/// One topic's order, as its watcher hears it.
#[derive(Default)]
struct Order {
    messages: Vec<(u64, String)>,
    /// The id of each.
    ids: HashMap<String, String>,
}

struct World<'a> {
    gateway: &'a Gateway,
    orders: &'a [Mutex<Order>],
    /// No more is published, but for the end.
    stop: AtomicBool,
    /// Readers in their last life.
    ready: AtomicUsize,
    lives: AtomicUsize,
    gaps: AtomicUsize,
}

fn offsets(id: &str) -> Vec<u64> {
    let (_, offsets) = id.split_once('.').unwrap_or_else(|| panic!("no position: {id:?}"));
    offsets.split(',').map(|offset| offset.parse().unwrap_or_else(|_| panic!("no position: {id:?}"))).collect()
}

fn topic_of(text: &str) -> usize {
    text.split(' ').next().and_then(|topic| topic.parse().ok()).unwrap_or_else(|| panic!("not one of our messages: {text:?}"))
}

fn is_end(text: &str) -> bool {
    text.split(' ').nth(1) == Some(THE_END)
}

fn watch(world: &World<'_>, topic: usize, mut reader: Reader) {
    loop {
        let event = reader.event();
        assert_eq!(event.name, "message", "the watcher of topic {topic}: {event:?}");
        let mut order = world.orders[topic].lock().expect("no panic holds it");
        order.messages.push((offsets(&event.id)[0], event.data.clone()));
        let before = order.ids.insert(event.data.clone(), event.id);
        assert_eq!(before, None, "the watcher of topic {topic} heard a message twice");
        drop(order);
        if is_end(&event.data) {
            return;
        }
    }
}

/// Writes until told to stop; how many messages.
fn publish(world: &World<'_>, topic: usize, name: usize, mut random: StdRng) -> usize {
    let mut raw = raw::ws(world.gateway, &format!("/ws?room={topic}"));
    let mut number = 0;
    while !world.stop.load(Ordering::Relaxed) {
        let mut last = String::new();
        for _ in 0..random.random_range(1..8) {
            let filling = if random.random_bool(0.02) { random.random_range(0..20_000) } else { random.random_range(0..100) };
            last = format!("{topic} {name} {number} {}", "f".repeat(filling));
            raw.send_text(&last);
            number += 1;
        }
        while raw.frame().payload != last.as_bytes() {}
        sleep_ms(random.random_range(2..15));
    }
    number
}

/// When a life ends before its connection does.
struct Span {
    events: usize,
    until: std::time::Instant,
    last: bool,
}

impl Span {
    fn draw(random: &mut StdRng, last: bool) -> Self {
        Self { events: random.random_range(0..150), until: now() + Duration::from_millis(random.random_range(5..150)), last }
    }

    fn is_over(&self, heard: usize) -> bool {
        !self.last && (heard >= self.events || now() >= self.until)
    }
}

/// Cuts a connection off, sometimes after a while in which it is not read.
fn cut(raw: Raw, random: &mut StdRng) {
    if random.random_bool(0.3) {
        sleep_ms(random.random_range(0..80));
    }
    match random.random_range(0..3) {
        0 => raw.reset(),
        1 => raw.shutdown_write(),
        _ => {}
    }
    if random.random_bool(0.3) {
        sleep_ms(random.random_range(0..120));
    }
}

fn first_words(random: &mut StdRng) -> String {
    match random.random_range(0..4) {
        0 => "&after=earliest".into(),
        1 => format!("&last={}", random.random_range(0..50)),
        2 => "&after=-1s".into(),
        _ => String::new(),
    }
}

/// A stream's lives.
fn stream(world: &World<'_>, mut random: StdRng) -> Vec<Note> {
    let mut topics: Vec<usize> = (0..TOPICS).collect();
    while topics.len() > 1 && random.random_bool(0.5) {
        topics.remove(random.random_range(0..topics.len()));
    }
    let query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
    let path = format!("/events?{}{}", query.join("&"), first_words(&mut random));
    let (mut notes, mut id) = (Vec::new(), String::new());
    let mut ended = [false; TOPICS];
    loop {
        let last = world.stop.load(Ordering::Relaxed);
        world.lives.fetch_add(1, Ordering::Relaxed);
        let resumes = if id.is_empty() { String::new() } else { format!("Last-Event-ID: {id}\r\n") };
        let mut reader = events::request(world.gateway.port, &path, &resumes);
        let open = reader.expect_open();
        // What it is told before it has an id counts once it has one: cut off before that, it comes back from where it was, and is told again.
        let mut told = Vec::new();
        if id.is_empty() {
            for topic in &topics {
                let position = open["topics"][topic.to_string()].as_str().expect("the position of each topic");
                told.push(Note::Begin { topic: *topic, offset: offsets(position)[0] });
            }
        }
        if last {
            world.ready.fetch_add(1, Ordering::Relaxed);
        }
        let span = Span::draw(&mut random, last);
        reader.raw.stream.set_read_timeout(Some(if last { 3 * SOON } else { Duration::from_millis(20) })).expect("a timeout above zero");
        let mut heard = 0;
        while !span.is_over(heard) {
            let event = match reader.next() {
                Ok(event) => event,
                Err(raw::End::Open) if !last => continue,
                Err(end) => panic!("a stream ended by itself: {end:?}"),
            };
            match event.name.as_str() {
                "message" => {
                    let topic = topic_of(&event.data);
                    let at = topics.iter().position(|own| *own == topic).expect("one of its topics");
                    ended[topic] |= is_end(&event.data);
                    notes.append(&mut told);
                    notes.push(Note::Heard { topic, text: event.data, offset: Some(offsets(&event.id)[at]) });
                }
                "shardcast:gap" => {
                    let gap = event.json();
                    world.gaps.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(gap["reason"], "too_old", "{gap}");
                    let topic = gap["topic"].as_str().and_then(|topic| topic.parse().ok()).expect("a topic of ours");
                    let offset = |key: &str| offsets(gap[key].as_str().expect("a position"))[0];
                    for note in &mut told {
                        // The opening says where it goes on, and this from where.
                        if let Note::Begin { topic: begun, offset: at } = note
                            && *begun == topic
                        {
                            *at = offset("from");
                        }
                    }
                    told.push(Note::Gap { topic, from: offset("from"), to: offset("to") });
                }
                _ => panic!("{event:?}"),
            }
            heard += 1;
            if topics.iter().all(|topic| ended[*topic]) {
                return notes;
            }
        }
        if !reader.last_id().is_empty() {
            notes.append(&mut told);
            id = reader.last_id();
        }
        cut(reader.raw, &mut random);
    }
}

/// A WebSocket's lives.
fn socket(world: &World<'_>, mut random: StdRng) -> Vec<Note> {
    let topic = random.random_range(0..TOPICS);
    let first = first_words(&mut random);
    let (mut notes, mut heard_last) = (Vec::new(), None::<String>);
    let (mut start, mut ready) = (first, false);
    loop {
        let last = world.stop.load(Ordering::Relaxed);
        world.lives.fetch_add(1, Ordering::Relaxed);
        if let Some(text) = &heard_last {
            // Its position, once the watcher has heard it too.
            let id = eventually(SOON, || {
                let order = world.orders[topic].lock().expect("no panic holds it");
                order.ids.get(text).cloned().ok_or_else(|| format!("the watcher has not heard {:?}", &text[..text.len().min(40)]))
            });
            start = format!("&after={id}");
        }
        let mut raw = raw::ws(world.gateway, &format!("/ws?room={topic}{start}"));
        let span = Span::draw(&mut random, last);
        let patience = if last { SOON } else { Duration::from_millis(20) };
        raw.stream.set_read_timeout(Some(patience)).expect("a timeout above zero");
        if last && !std::mem::replace(&mut ready, true) {
            world.ready.fetch_add(1, Ordering::Relaxed);
        }
        let mut heard = 0;
        let lost = loop {
            if span.is_over(heard) {
                break false;
            }
            match raw.next_frame() {
                Ok(frame) if frame.first == FIN | CLOSE => {
                    let (code, reason) = frame::close_code(&frame.payload);
                    assert_eq!((code, heard), (Some(4510), 0), "{reason}");
                    break true;
                }
                Ok(frame) => {
                    let text = String::from_utf8(frame.payload).expect("our messages are text");
                    assert_eq!(topic_of(&text), topic);
                    let end = is_end(&text);
                    notes.push(Note::Heard { topic, text: text.clone(), offset: None });
                    heard_last = Some(text);
                    if end {
                        return notes;
                    }
                }
                Err(raw::End::Open) if !last => continue,
                Err(end) => panic!("a WebSocket ended by itself: {end:?}"),
            }
            heard += 1;
        };
        if lost {
            world.gaps.fetch_add(1, Ordering::Relaxed);
            notes.push(Note::Lost { topic });
            (heard_last, start) = (None, "&after=earliest".into());
        } else {
            cut(raw, &mut random);
        }
    }
}

/// One run on 1 to 3 shards; how many gaps were told.
fn run(seed: u64, history: u64) -> usize {
    let shards = 1 + (seed % 3) as u16;
    let gateway = gateway().shards(shards).limit("history_messages", history).start();
    let orders: Vec<Mutex<Order>> = (0..TOPICS).map(|_| Mutex::default()).collect();
    let world = World {
        gateway: &gateway,
        orders: &orders,
        stop: AtomicBool::new(false),
        ready: AtomicUsize::new(0),
        lives: AtomicUsize::new(0),
        gaps: AtomicUsize::new(0),
    };
    let random = |number: usize| StdRng::seed_from_u64(seed * 1000 + number as u64);
    let watchers: Vec<Reader> = (0..TOPICS).map(|topic| events::open(gateway.port, &format!("/events?topic={topic}"))).collect();
    let (sent, readers) = std::thread::scope(|scope| {
        let world = &world;
        let watching: Vec<_> =
            watchers.into_iter().enumerate().map(|(topic, reader)| scope.spawn(move || watch(world, topic, reader))).collect();
        let publishing: Vec<_> = (0..TOPICS * PUBLISHERS)
            .map(|number| scope.spawn(move || publish(world, number % TOPICS, number / TOPICS, random(number))))
            .collect();
        let reading: Vec<_> = (0..STREAMS + SOCKETS)
            .map(|number| {
                let random = random(100 + number);
                scope.spawn(move || if number < STREAMS { stream(world, random) } else { socket(world, random) })
            })
            .collect();
        sleep_ms(RUN.as_millis() as u64);
        world.stop.store(true, Ordering::Relaxed);
        let sent: usize = publishing.into_iter().map(|publisher| publisher.join().expect("a publisher is served")).sum();
        eventually(SOON, || match world.ready.load(Ordering::Relaxed) {
            ready if ready == STREAMS + SOCKETS => Ok(()),
            ready => Err(format!("seed {seed}: {ready} readers are in their last life")),
        });
        for topic in 0..TOPICS {
            raw::ws(&gateway, &format!("/ws?room={topic}")).send_text(&format!("{topic} {THE_END} 0 "));
        }
        watching.into_iter().for_each(|watcher| watcher.join().expect("a watcher is served"));
        let readers: Vec<Vec<Note>> = reading.into_iter().map(|reader| reader.join().expect("a reader is served")).collect();
        (sent + TOPICS, readers)
    });
    let (lives, gaps) = (world.lives.into_inner(), world.gaps.into_inner());
    let orders: Vec<Vec<(u64, String)>> = orders.into_iter().map(|order| order.into_inner().expect("no panic held it").messages).collect();
    assert_eq!(orders.iter().map(Vec::len).sum::<usize>(), sent, "seed {seed}: messages were lost on the way to their topics");
    orders.iter().for_each(|order| judge_order(seed, order));
    for (number, notes) in readers.iter().enumerate() {
        judge(&format!("seed {seed}, {shards} shards, reader {number}"), notes, &orders);
    }
    println!("seed {seed}: {shards} shards, {sent} messages, {lives} lives of {} readers, {gaps} gaps", readers.len());
    gaps
}

fn judge_order(seed: u64, order: &[(u64, String)]) {
    assert!(order.windows(2).all(|pair| pair[0].0 < pair[1].0), "seed {seed}: offsets do not grow");
    let mut next: HashMap<&str, u32> = HashMap::new();
    for (_, text) in order {
        let mut words = text.split(' ').skip(1);
        let (name, number) =
            (words.next().expect("a publisher"), words.next().and_then(|number| number.parse::<u32>().ok()).expect("a number"));
        let expected = next.entry(name).or_insert(0);
        assert_eq!(number, *expected, "seed {seed}: the messages of publisher {name} changed their order");
        *expected += 1;
    }
}

/// Where a reader is in a topic.
#[derive(Clone, Copy, Debug)]
enum At {
    /// It has everything up to this offset.
    Offset(u64),
    /// It goes on somewhere above this offset.
    Above(u64),
}

/// A message was there, and so many came after it that it could be missing.
fn judge_loss(who: &str, order: &[(u64, String)], offset: u64) {
    let after = order.iter().filter(|(other, _)| *other > offset).count() as u64;
    assert!(order.iter().any(|(other, _)| *other == offset), "{who}: told that {offset} is missing, which is no message");
    assert!(after >= SHORT, "{who}: told that {offset} is missing, after which {after} messages came");
}

fn judge(who: &str, notes: &[Note], orders: &[Vec<(u64, String)>]) {
    let mut at = [At::Above(0); TOPICS];
    for note in notes {
        match note {
            Note::Begin { topic, offset } => at[*topic] = At::Offset(*offset),
            Note::Gap { topic, from, to } => {
                let At::Offset(before) = at[*topic] else { panic!("{who}: a gap before the beginning") };
                assert!(*from == before && *to > before, "{who}: topic {topic}: a gap from {from} to {to} at {before}");
                judge_loss(who, &orders[*topic], *to);
                at[*topic] = At::Offset(*to);
            }
            Note::Lost { topic } => {
                let (At::Offset(before) | At::Above(before)) = at[*topic];
                // It was told so by the first message that follows: that one at least was there, and is missing.
                judge_loss(who, &orders[*topic], before + 1);
                at[*topic] = At::Above(before + 1);
            }
            Note::Heard { topic, text, offset } => {
                let order = &orders[*topic];
                let found = match at[*topic] {
                    At::Offset(before) => {
                        let next = order.iter().find(|(offset, _)| *offset > before);
                        let next = next.unwrap_or_else(|| panic!("{who}: topic {topic}: something behind the end: {text:.40}"));
                        assert!(next.1 == *text, "{who}: topic {topic} behind {before}: heard {text:.40}, next is {:.40}", next.1);
                        next.0
                    }
                    At::Above(before) => {
                        let found = order.iter().find(|(_, own)| own == text).expect("the order holds every message");
                        assert!(found.0 > before, "{who}: topic {topic} goes back from {before} to {}", found.0);
                        found.0
                    }
                };
                assert!(offset.is_none_or(|told| told == found), "{who}: topic {topic}: {text:.40} is at {found}, it was told {offset:?}");
                at[*topic] = At::Offset(found);
            }
        }
    }
}
