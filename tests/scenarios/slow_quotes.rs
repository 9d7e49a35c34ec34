//! 100 readers take a hundredth of what a topic of 1,000 quotes changes: memory stays bounded, nobody is ended, each ends with the newest value of every quote
//! and was told of everything else; and who reads all of it loses nothing.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use shardcast::proto::sse::Decoder;

use crate::common::events::{self, offset};
use crate::common::raw::{self, Raw};
use crate::common::{Gateway, SLOW_CONSUMER, gateway, now, sleep_ms};
use crate::{full, kib};

const QUOTES: u64 = 1000;
const UPDATES_PER_SECOND: u64 = 10_000;
const READERS: usize = 100;
/// Updates of one request.
const BATCH: u64 = 250;
/// About what one event has: a hundredth of the updates is so many bytes a second.
const EVENT_BYTES: u64 = 110;
const BYTES_PER_SECOND: u64 = UPDATES_PER_SECOND / 100 * EVENT_BYTES;
const TICK: Duration = Duration::from_millis(100);
const SLACK_BYTES: u64 = 12 * 1024 * 1024;

struct Reader {
    stream: TcpStream,
    decoder: Decoder,
    /// What it may read in this tick.
    allowance: usize,
    at: u64,
    /// Up to here it was told that updates may be missing between those that come.
    until: u64,
    missing: u64,
    gaps: u64,
    values: HashMap<u64, u64>,
}

impl Reader {
    fn open(gateway: &Gateway) -> Self {
        let mut raw = Raw::connect_with_small_buffer(gateway.port);
        raw.write(events::get("/events?topic=quotes", "").as_bytes());
        assert_eq!(raw.response_to("HEAD").status, 200);
        raw.stream.set_nonblocking(true).expect("a socket");
        let mut decoder = Decoder::new();
        decoder.feed(raw.unread(), |_| {});
        Self { stream: raw.stream, decoder, allowance: 0, at: 0, until: 0, missing: 0, gaps: 0, values: HashMap::new() }
    }

    /// Reads what there is, and what it may.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while self.allowance > 0 {
            let size = self.allowance.min(buffer.len());
            let count = match self.stream.read(&mut buffer[..size]) {
                Ok(0) => panic!("a reader is ended at update {}", self.at),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a reader is ended at update {}: {error}", self.at),
            };
            self.allowance -= count;
            let mut events = Vec::new();
            self.decoder.feed(&buffer[..count], |event| events.push((event.name.to_owned(), event.id.to_owned(), event.data.to_owned())));
            for (name, id, data) in events {
                match name.as_str() {
                    "message" => self.hear(offset(&id), &data),
                    "shardcast:gap" => self.gap(&serde_json::from_str(&data).expect("JSON")),
                    "shardcast:open" => {}
                    other => panic!("a reader is told {other}: {data}"),
                }
            }
        }
    }

    fn hear(&mut self, at: u64, data: &str) {
        let numbers: Vec<u64> = data.split(' ').take(2).map(|number| number.parse().expect("a number")).collect();
        assert!(at > self.at && (at == self.at + 1 || self.until >= at - 1), "a hole between {} and {at} that nobody has told of", self.at);
        assert_eq!(numbers[1], at, "another update's offset");
        (self.at, self.missing) = (at, self.missing + at - self.at - 1);
        self.values.insert(numbers[0], at);
    }

    fn gap(&mut self, gap: &serde_json::Value) {
        let of = |field: &str| gap[field].as_str().map(offset);
        let (from, to) = (of("from").expect("a position"), of("to").expect("a position"));
        assert_eq!((gap["reason"].as_str(), from), (Some("slow"), self.at), "{gap}");
        (self.missing, self.gaps, self.at, self.until) = (self.missing + to - from, self.gaps + 1, to, of("until").unwrap_or(to));
    }
}

/// One batch of updates, by the next numbers; the values that are then the newest.
fn publish(publisher: &mut Raw, sent: &mut u64, newest: &mut HashMap<u64, u64>) {
    let mut body = String::from("[");
    for _ in 0..BATCH {
        *sent += 1;
        // Not all change equally often: a third of the updates is of a hundredth of the quotes.
        let quote = if sent.is_multiple_of(3) { *sent / 3 % (QUOTES / 100) } else { sent.wrapping_mul(7919) % QUOTES };
        newest.insert(quote, *sent);
        let comma = if body.len() > 1 { "," } else { "" };
        body += &format!(r#"{comma}{{"topic":"quotes","key":"quote {quote}","data":"{quote} {sent} {}"}}"#, "p".repeat(60));
    }
    body.push(']');
    publisher.write(format!("POST /v1/publish HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    let answer = publisher.response();
    assert!(answer.status == 200 && !answer.text().contains("error"), "{}", answer.text());
}

/// Everybody reads, the slow ones no more than so much in a tick, while `done` says no.
fn tick(readers: &mut [Reader], healthy: &mut Reader, per_tick: u64, until: Instant) {
    for reader in readers.iter_mut() {
        reader.allowance = per_tick as usize;
        reader.read();
    }
    loop {
        healthy.allowance = usize::MAX;
        healthy.read();
        if now() >= until {
            return;
        }
        sleep_ms(2);
    }
}

#[test]
fn readers_at_a_hundredth_of_the_speed_end_with_the_newest_of_everything() {
    let seconds = if full() { 60 } else { 8 };
    let gateway = gateway().env("SHARDCAST_SLOW", "quotes conflate").start();
    let mut readers: Vec<Reader> = (0..READERS).map(|_| Reader::open(&gateway)).collect();
    let mut healthy = Reader::open(&gateway);
    let mut publisher = raw::Raw::connect(gateway.port);
    let (mut sent, mut newest) = (0, HashMap::new());
    publish(&mut publisher, &mut sent, &mut newest);
    tick(&mut readers, &mut healthy, BYTES_PER_SECOND / 10, now() + TICK);
    let start = gateway.pss_bytes();
    let begun = now();
    let (mut most, mut queued) = (start, 0.0_f64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let next = now() + TICK;
        // As many as are due, if the machine manages.
        let due = (begun.elapsed().as_secs_f64() * UPDATES_PER_SECOND as f64) as u64;
        while sent < due && now() < next {
            publish(&mut publisher, &mut sent, &mut newest);
            healthy.allowance = usize::MAX;
            healthy.read();
        }
        tick(&mut readers, &mut healthy, BYTES_PER_SECOND / 10, next);
        most = most.max(gateway.pss_bytes());
        queued = queued.max(gateway.metrics().sum("shardcast_queued_bytes", &[]));
    }
    let rate = sent as f64 / begun.elapsed().as_secs_f64();
    let missing: u64 = readers.iter().map(|reader| reader.missing).sum();
    // No more comes: now they catch up, ten times as fast.
    let stopped = now();
    while readers.iter().any(|reader| reader.at < sent) {
        assert!(stopped.elapsed() < Duration::from_secs(120), "{:?}", readers.iter().map(|reader| reader.at).min());
        tick(&mut readers, &mut healthy, BYTES_PER_SECOND, now() + TICK);
    }
    let drops = gateway.metrics().sum("shardcast_drops_total", &[("reason", "conflate")]) as u64;
    let told = gateway.metrics().sum("shardcast_gaps_total", &[("reason", "slow")]) as u64;
    println!(
        "slow quotes ({} driver): {QUOTES} quotes, {rate:.0} updates a second for {seconds} s, {READERS} readers at {} B/s",
        gateway.driver, BYTES_PER_SECOND
    );
    println!("  Pss: start {} KiB, at most {} KiB; queued at most {} KiB", kib(start), kib(most), kib(queued as u64));
    println!("  {missing} of {} updates left out while they came, {told} gaps told", sent * READERS as u64);
    for reader in &readers {
        assert_eq!(reader.values, newest, "the newest of every quote");
        assert!(reader.gaps > 0 && reader.missing > 0);
    }
    assert_eq!(drops, readers.iter().map(|reader| reader.missing).sum::<u64>(), "what is counted is what is missing");
    assert_eq!(told, readers.iter().map(|reader| reader.gaps).sum::<u64>());
    assert_eq!((healthy.missing, healthy.at, gateway.closes(SLOW_CONSUMER)), (0, sent, 0));
    assert!(most < start + SLACK_BYTES, "{most} bytes of Pss, and {start} when it began");
}
