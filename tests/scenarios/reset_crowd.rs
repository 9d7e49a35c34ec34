//! A crowd is reset, as by a proxy that dies, while others stay: with clients that back off all are back, nothing is lost inside the history, no refusal is
//! without a hint, and those who stayed notice little.
//!
//! The crowd resets its own connections, which is what the gateway sees of a dying proxy; WebSockets of Python and EventSources of Node are reset by a real one
//! (tests/clients/returning.py; SHARDCAST_TEST_PYTHON names the interpreter, without it they are left out). Placement keeps shards even: those who
//! stay are on the same shards as the crowd.

#![allow(clippy::disallowed_types, reason = "tests stand outside the gateway: real threads")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::swarm::{Event, Swarm};
use crate::common::{Gateway, gateway, now, raise_nofile, raw};
use crate::full;
use crate::watchers::{Phase, Watchers, p99, yield_to_the_gateway};

struct Size {
    crowd: usize,
    /// WebSockets of Python, and as many EventSources.
    foreign: usize,
    watchers: usize,
    handshakes_per_second: u64,
    quiet: Duration,
}

fn size() -> Size {
    if full() {
        Size { crowd: 14_000, foreign: 500, watchers: 1000, handshakes_per_second: 2000, quiet: Duration::from_secs(20) }
    } else {
        Size { crowd: 2000, foreign: 20, watchers: 200, handshakes_per_second: 500, quiet: Duration::from_secs(2) }
    }
}

/// Messages before the reset, and while all are away; fewer than a history keeps.
const BEFORE: u64 = 10;
const MISSED: u64 = 30;
const BACK_WITHIN: Duration = Duration::from_secs(90);
/// What those who stayed may wait longer, in 99 of 100 messages.
const P99_GROWTH_MAX: f64 = 2.0;

#[test]
fn a_crowd_that_is_reset_comes_back_without_loss_and_those_who_stay_notice_little() {
    raise_nofile();
    let size = size();
    let gateway = gateway().limit("handshakes_per_second", size.handshakes_per_second).start();
    let watchers = Watchers::start(&gateway, "watched", size.watchers);
    yield_to_the_gateway();
    let foreign = Foreign::start(&gateway, size.foreign);
    let mut crowd = Crowd::new(&gateway, size.crowd);
    crowd.run("the crowd is in", |crowd| crowd.open == size.crowd && foreign.as_ref().is_none_or(|foreign| foreign.are_open()));

    let mut published = 0;
    let mut publish = |gateway: &Gateway| {
        let text = published.to_string();
        let request = format!(
            "POST /publish?topic=clients HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        let response = raw::http(gateway.port, request.as_bytes());
        assert_eq!(response.status, 200, "{response:?}");
        published += 1;
    };
    let have_heard = |crowd: &Crowd, foreign: &Option<Foreign>, count: u64| {
        crowd.least() == count && foreign.as_ref().is_none_or(|foreign| foreign.have_heard(count))
    };
    (0..BEFORE).for_each(|_| publish(&gateway));
    crowd.run("all hear what is published", |crowd| have_heard(crowd, &foreign, BEFORE));
    crowd.run_for(Duration::from_secs(1));
    watchers.set(Phase::Quiet);
    crowd.run_for(size.quiet);
    let refused_before = (crowd.refusals, gateway.closes("busy"));

    watchers.set(Phase::Storm);
    let begun = now();
    crowd.reset();
    if let Some(foreign) = &foreign {
        foreign.reset();
    }
    for _ in 0..MISSED {
        publish(&gateway);
        crowd.run_for(Duration::from_millis(50));
    }
    crowd.run("all are back and have heard what they missed", |crowd| {
        crowd.open == size.crowd
            && have_heard(crowd, &foreign, BEFORE + MISSED)
            && foreign.as_ref().is_none_or(|foreign| foreign.are_open())
    });
    let took = begun.elapsed();
    watchers.set(Phase::Over);
    let (quiet, storm) = watchers.finish();

    let members = foreign.as_ref().map_or(0, |_| 2 * size.foreign);
    println!(
        "reset crowd ({} driver): {} of {} clients are reset, {} of them of Python and Node",
        gateway.driver,
        size.crowd + members,
        size.crowd + members + size.watchers,
        members
    );
    println!(
        "  all back after {:.1} s, {} handshakes per second are allowed; {} refusals, {} of them told to this swarm",
        took.as_secs_f64(),
        size.handshakes_per_second,
        gateway.closes("busy") - refused_before.1,
        crowd.refusals - refused_before.0
    );
    println!(
        "  those who stayed: p99 {:.1} ms before, {:.1} ms while all come back (bound {P99_GROWTH_MAX} times)",
        p99(&quiet),
        p99(&storm)
    );
    assert!(crowd.refusals > refused_before.0, "nobody was refused: this was no crowd");
    assert_eq!((crowd.faults, crowd.unhinted), (0, 0), "messages missed or repeated, refusals without a hint");
    if let Some(foreign) = foreign {
        let said = foreign.said();
        assert_eq!([&said["faults"], &said["unhinted"], &said["gone"]], [0; 3], "{said}");
    }
    if full() {
        assert!(p99(&storm) <= P99_GROWTH_MAX * p99(&quiet), "{:.1} ms, {:.1} ms before", p99(&storm), p99(&quiet));
    }
}

/// Clients that come back after full jitter from 0.5 s to 20 s, or when they are told to, to where they were.
struct Crowd {
    swarm: Swarm,
    epoch: String,
    offset: u64,
    members: Vec<Member>,
    /// Which member a connection of the swarm is.
    by_connection: HashMap<usize, usize>,
    calendar: BinaryHeap<Reverse<(Instant, usize)>>,
    random: fastrand::Rng,
    open: usize,
    refusals: u64,
    /// Refusals that do not say when to come back.
    unhinted: u64,
    /// Messages that were missed or came twice.
    faults: u64,
}

#[derive(Clone, Default)]
struct Member {
    connection: Option<usize>,
    is_open: bool,
    tries: u32,
    /// Messages it has heard, which is the number of the next one.
    heard: u64,
}

enum Deed {
    Opened,
    Heard(u64),
    Told(Option<Duration>),
    Ended,
}

impl Crowd {
    fn new(gateway: &Gateway, size: usize) -> Self {
        let answer = raw::http(gateway.port, b"GET /poll?topic=clients&wait=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let next = serde_json::from_str::<Value>(&answer.text()).expect("JSON")["next"].as_str().expect("a position").to_owned();
        let (epoch, offset) = next.split_once('.').expect("an epoch and an offset");
        let mut crowd = Self {
            swarm: Swarm::new(gateway.port),
            epoch: epoch.to_owned(),
            offset: offset.parse().expect("a number"),
            members: vec![Member::default(); size],
            by_connection: HashMap::new(),
            calendar: BinaryHeap::new(),
            random: fastrand::Rng::with_seed(7),
            open: 0,
            refusals: 0,
            unhinted: 0,
            faults: 0,
        };
        (0..size).for_each(|member| crowd.come_later(member, None));
        crowd
    }

    fn least(&self) -> u64 {
        self.members.iter().map(|member| member.heard).min().unwrap_or(0)
    }

    fn come_later(&mut self, number: usize, hint: Option<Duration>) {
        let member = &mut self.members[number];
        let jitter = Duration::from_millis(500 << member.tries.min(6)).min(Duration::from_secs(20)).mul_f64(self.random.f64());
        member.tries += 1;
        self.calendar.push(Reverse((now() + hint.unwrap_or(jitter), number)));
    }

    fn reset(&mut self) {
        for number in 0..self.members.len() {
            let connection = self.members[number].connection.take().expect("all are in");
            self.swarm.drop_client(connection, true);
            self.members[number].is_open = false;
            self.come_later(number, None);
        }
        self.by_connection.clear();
        self.open = 0;
    }

    fn run_for(&mut self, time: Duration) {
        let end = now() + time;
        while now() < end {
            self.turn();
        }
    }

    fn run(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = now();
        while !done(self) {
            assert!(
                begun.elapsed() < BACK_WITHIN,
                "not within {BACK_WITHIN:?}: {what}; {} open, {} messages heard by all, {} refusals, {}",
                self.open,
                self.least(),
                self.refusals,
                self.swarm.summary()
            );
            // To ask is to look at everybody.
            self.run_for(Duration::from_millis(20));
        }
    }

    fn turn(&mut self) {
        while self.calendar.peek().is_some_and(|Reverse((at, _))| *at <= now()) {
            let Some(Reverse((_, number))) = self.calendar.pop() else { break };
            let position = self.offset + self.members[number].heard;
            let connection = self.swarm.connect(&format!("/ws?room=clients&after={}.{position}", self.epoch));
            self.members[number].connection = Some(connection);
            self.by_connection.insert(connection, number);
        }
        let mut deeds = Vec::new();
        self.swarm.turn(Duration::from_millis(5), &mut |connection, event| {
            let deed = match event {
                Event::Opened => Deed::Opened,
                Event::Text(payload) => {
                    Deed::Heard(std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok()).expect("a number"))
                }
                Event::Binary(payload) => panic!("{} bytes that nobody published", payload.len()),
                Event::Close(_, reason) => {
                    Deed::Told(reason.strip_prefix("retry=").and_then(|rest| rest.parse().ok()).map(Duration::from_millis))
                }
                Event::Ended => Deed::Ended,
            };
            deeds.push((connection, deed));
        });
        let mut hints = HashMap::new();
        for (connection, deed) in deeds {
            let Some(&number) = self.by_connection.get(&connection) else { continue };
            let member = &mut self.members[number];
            match deed {
                Deed::Opened => {
                    (member.is_open, member.tries) = (true, 0);
                    self.open += 1;
                }
                Deed::Heard(message) => {
                    self.faults += u64::from(message != member.heard);
                    member.heard = message + 1;
                }
                Deed::Told(hint) => drop(hints.insert(connection, hint)),
                Deed::Ended => {
                    self.by_connection.remove(&connection);
                    member.connection = None;
                    self.open -= usize::from(std::mem::take(&mut member.is_open));
                    let mut hint = hints.remove(&connection).flatten();
                    if let Some(refusal) = &self.swarm.client(connection).refusal {
                        hint = retry_of(refusal);
                        self.refusals += 1;
                        self.unhinted += u64::from(hint.is_none());
                    }
                    self.come_later(number, hint);
                }
            }
        }
    }
}

/// What a refusal's body says.
pub fn retry_of(refusal: &str) -> Option<Duration> {
    assert!(refusal.contains("\r\nRetry-After: "), "{refusal}");
    let (_, body) = refusal.split_once("\r\n\r\n")?;
    let error: Value = serde_json::from_str(body).ok()?;
    error["error"]["retry_ms"].as_u64().map(Duration::from_millis)
}

/// Clients of Python and Node in processes of their own.
struct Foreign {
    child: Child,
    stdin: Mutex<ChildStdin>,
    said: Arc<Mutex<Value>>,
    count: usize,
}

impl Foreign {
    fn start(gateway: &Gateway, count: usize) -> Option<Self> {
        let Some(python) = std::env::var_os("SHARDCAST_TEST_PYTHON") else {
            println!("reset crowd: without Python and Node (SHARDCAST_TEST_PYTHON is not set)");
            return None;
        };
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/returning.py");
        let mut child = Command::new(&python)
            .args([program, &gateway.port.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", python.display()));
        let said = Arc::new(Mutex::new(Value::Null));
        let (heard, stdout) = (Arc::clone(&said), child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                *heard.lock().expect("no panic holds it") = serde_json::from_str(&line).unwrap_or(Value::Null);
            }
        });
        let stdin = Mutex::new(child.stdin.take().expect("it is piped"));
        Some(Self { child, stdin, said, count })
    }

    fn said(&self) -> Value {
        self.said.lock().expect("no panic holds it").clone()
    }

    fn are_open(&self) -> bool {
        self.said()["open"] == 2 * self.count
    }

    fn have_heard(&self, count: u64) -> bool {
        self.said()["least"].as_i64() == Some(count as i64 - 1)
    }

    fn reset(&self) {
        self.stdin.lock().expect("no panic holds it").write_all(b"reset\n").expect("it listens");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
