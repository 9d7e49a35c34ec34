//! 1,000 clients talk while 10,000 connections of one address say nothing, or come and go without end; while 10,000 members are reset at once; and while one
//! room of many hears much. Nobody of the 1,000 is ended, memory is bounded, and while one address floods their p99 is at most twice what it is without
//! (judged at full size alone); how long they wait for the others is printed (docs/decisions/0019).
//!
//! Whoever disturbs does so in a process of its own, below the priority of the one that measures. SHARDCAST_SCENARIO_LIMIT=name=value tries another bound.

use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::swarm::{Event, State, Swarm};
use crate::common::{Gateway, Setup, eventually, gateway, now, raise_nofile};
use crate::{full, kib};

const WORKING: usize = 1000;
/// Each of them says something so often.
const SAYS_EVERY: Duration = Duration::from_millis(500);
const FLOODER: u32 = u32::from_be_bytes([127, 0, 1, 1]);
/// A p99 below this is not told from it: two processes share the cores with the gateway.
const P99_MIN: Duration = Duration::from_millis(2);

/// How often something is said in a hot room.
const HOT_EVERY: Duration = Duration::from_millis(200);

/// One shard, with the bound that is to be tried.
fn bounded() -> Setup {
    let setup = gateway().shards(1).limit("history_messages", 0);
    match std::env::var("SHARDCAST_SCENARIO_LIMIT") {
        Ok(bound) => {
            let (name, value) = bound.split_once('=').expect("name=value");
            setup.limit(name, value.parse().expect("a number"))
        }
        Err(_) => setup,
    }
}

fn crowd_size() -> usize {
    if full() { 10_000 } else { 2000 }
}

/// Clients that hear what they say, and how long that takes.
struct Talk {
    swarm: Swarm,
    said: Vec<VecDeque<Instant>>,
    next: usize,
    due: Instant,
}

impl Talk {
    fn new(gateway: &Gateway) -> Self {
        let mut swarm = Swarm::new(gateway.port);
        for id in 0..WORKING {
            swarm.connect(&format!("/ws?room=work-{id}"));
        }
        swarm.run(Duration::from_secs(20), "all open", &mut |_, _| {}, |swarm| swarm.count(&State::Opening) == 0);
        let mut talk = Self { swarm, said: vec![VecDeque::new(); WORKING], next: 0, due: now() };
        talk.is_whole();
        talk.during(Duration::from_secs(1));
        talk
    }

    fn is_whole(&self) {
        assert_eq!(self.swarm.count(&State::Open), WORKING, "{}", self.swarm.summary());
    }

    /// Talks for a while: p50, p99 and the longest time from when a message was due to be said to when it was heard.
    fn during(&mut self, time: Duration) -> [Duration; 3] {
        let mut took = Vec::new();
        let begun = now();
        self.due = begun;
        while begun.elapsed() < time || self.said.iter().any(|said| !said.is_empty()) {
            while self.due <= now() && begun.elapsed() < time {
                self.said[self.next].push_back(self.due);
                self.swarm.send_text(self.next, b"how long does this take, and how long does it take others");
                self.next = (self.next + 1) % WORKING;
                self.due += SAYS_EVERY / WORKING as u32;
            }
            let said = &mut self.said;
            self.swarm.turn(Duration::from_millis(1), &mut |id, event| {
                if let Event::Text(_) = event {
                    took.push(said[id].pop_front().expect("what is heard was said").elapsed());
                }
            });
            assert!(begun.elapsed() < time + Duration::from_secs(20), "not all was heard: {}", self.swarm.summary());
        }
        self.is_whole();
        took.sort_unstable();
        [took[took.len() / 2], took[took.len() * 99 / 100], took[took.len() - 1]]
    }
}

fn report(what: &str, [p50, p99, max]: [Duration; 3]) {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("  {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", ms(p50), ms(p99), ms(max));
}

fn judge(what: &str, without: Duration, with: Duration) {
    let bound = 2 * without.max(P99_MIN);
    println!("  {what}: p99 {:.1} times (bound 2, and {P99_MIN:?} are no time)", with.as_secs_f64() / without.as_secs_f64());
    if full() {
        assert!(with <= bound, "{what}: p99 {with:?}, the bound is {bound:?}");
    }
}

/// Clients in another process; gone, and reset, with it.
struct Crowd(Child);

impl Crowd {
    fn begin(gateway: &Gateway, wish: &str, count: usize) -> Self {
        let me = std::env::current_exe().expect("the test's own binary");
        let order = format!("{} {wish} {count}", gateway.port);
        let child = Command::new(me)
            .args(["--exact", "floods::crowd", "--ignored", "--nocapture"])
            .env("SHARDCAST_TEST_CROWD", order)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("the test's own binary starts"))
    }
}

impl Crowd {
    /// Ends it, and waits for nothing.
    fn end(&mut self) {
        let _ = self.0.kill();
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
        let _ = self.0.wait();
    }
}

/// The crowd's process: `PORT WISH COUNT`.
#[test]
#[ignore = "not a test: what the others begin in a process of its own"]
fn crowd() {
    let Ok(order) = std::env::var("SHARDCAST_TEST_CROWD") else { return };
    let [port, wish, count] = order.split(' ').collect::<Vec<_>>()[..] else { panic!("PORT WISH COUNT, and not {order}") };
    let count: usize = count.parse().expect("a count");
    raise_nofile();
    // SAFETY: changes a number of this process, and nothing is passed in but one.
    let _ = unsafe { libc::nice(10) };
    let mut swarm = Swarm::new(port.parse().expect("a port"));
    let path = |id: usize| match wish {
        "members" => format!("/ws?room=crowd-{}", id % 1000),
        "hot" => "/ws?room=hot".to_owned(),
        "flood" if id.is_multiple_of(2) => "/ws?room=flood".to_owned(),
        _ => String::new(),
    };
    swarm.source = (wish == "flood").then_some(FLOODER);
    swarm.resets = true;
    let end = now() + Duration::from_secs(300);
    let (mut begun, mut ended) = (0, 0);
    let mut says = now();
    while now() < end {
        // Members come a few hundred at a time, for the kernel's queues are bounded. Of a flood whoever was refused comes again at once.
        let come = match wish {
            "members" | "hot" => count.min(swarm.count(&State::Open) + 500).saturating_sub(begun),
            _ => (count + ended).saturating_sub(begun).min(500),
        };
        for _ in 0..come {
            swarm.connect(&path(begun));
            begun += 1;
        }
        if wish == "hot" && says <= now() && swarm.count(&State::Open) == count {
            swarm.send_text(0, b"everybody hears this");
            says = now() + HOT_EVERY;
        }
        swarm.turn(Duration::from_millis(5), &mut |_, event| ended += usize::from(matches!(event, Event::Ended)));
    }
}

#[test]
fn a_thousand_talk_on_while_one_address_floods() {
    raise_nofile();
    let gateway = gateway()
        .shards(1)
        .limit("connections_per_address", 500)
        .limit("handshakes_per_address", 200)
        .limit("accept_defer_ms", 0)
        .limit("history_messages", 0)
        .start();
    let mut talk = Talk::new(&gateway);
    let time = Duration::from_secs(if full() { 15 } else { 2 });
    println!("one address floods ({} driver): {} connections, {WORKING} others talk", gateway.driver, crowd_size());
    let without = talk.during(time);
    report("without", without);
    let (memory, descriptors) = (gateway.pss_bytes(), gateway.descriptors());
    let crowd = Crowd::begin(&gateway, "flood", crowd_size());
    eventually(Duration::from_secs(20), || match gateway.metrics().sum("shardcast_accepts_total", &[("result", "dropped")]) {
        0.0 => Err("nobody was dropped".to_owned()),
        _ => Ok(()),
    });
    let with = talk.during(time);
    report("while it floods", with);
    let grown = gateway.pss_bytes().saturating_sub(memory);
    let held = gateway.kept_descriptors().saturating_sub(descriptors);
    let counted = gateway.metrics();
    let results = ["ok", "address_limited", "dropped"].map(|result| counted.sum("shardcast_accepts_total", &[("result", result)]));
    println!("  {} KiB of Pss and {held} descriptors more; accepts (ok, address_limited, dropped) {results:?}", kib(grown));
    assert!(grown <= 16 << 20, "{grown} bytes more");
    assert!(held <= 500 + 256, "{held} descriptors more");
    assert!(results[1] > 0.0, "the flood is not counted: {results:?}");
    drop(crowd);
    gateway.wait_for_connections(WORKING as u64);
    judge("one address floods", without[1], with[1]);
}

#[test]
fn a_thousand_talk_on_while_a_crowd_is_reset() {
    raise_nofile();
    let gateway = bounded().start();
    let mut talk = Talk::new(&gateway);
    println!("a crowd is reset ({} driver): {} members, {WORKING} others talk", gateway.driver, crowd_size());
    for _ in 0..if full() { 5 } else { 1 } {
        let mut crowd = Crowd::begin(&gateway, "members", crowd_size());
        let all = (WORKING + crowd_size()) as u64;
        let begun = now();
        while gateway.connections() < all {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} of {all} are in", gateway.connections());
            talk.during(Duration::from_millis(200));
        }
        let without = talk.during(Duration::from_secs(1));
        report("before", without);
        crowd.end();
        let with = talk.during(Duration::from_secs(1));
        report("in the second of the reset", with);
        drop(crowd);
        gateway.wait_for_connections(WORKING as u64);
    }
}

#[test]
fn a_thousand_talk_on_while_one_room_is_hot() {
    raise_nofile();
    let gateway = bounded().start();
    let mut talk = Talk::new(&gateway);
    let time = Duration::from_secs(if full() { 10 } else { 2 });
    println!(
        "one room is hot ({} driver): {} members hear a message every {HOT_EVERY:?}, {WORKING} others talk",
        gateway.driver,
        crowd_size() / 2
    );
    report("without", talk.during(time));
    let crowd = Crowd::begin(&gateway, "hot", crowd_size() / 2);
    let all = (WORKING + crowd_size() / 2) as u64;
    eventually(Duration::from_secs(60), || match gateway.connections() {
        open if open == all => Ok(()),
        open => Err(format!("{open} of {all} are in")),
    });
    let delivered = gateway.metrics().sum("shardcast_deliveries_total", &[]);
    report("while it is hot", talk.during(time));
    let delivered = gateway.metrics().sum("shardcast_deliveries_total", &[]) - delivered;
    println!("  {:.0} deliveries a second", delivered / time.as_secs_f64());
    assert!(delivered > crowd_size() as f64, "the room is not hot: {delivered} deliveries");
    drop(crowd);
    gateway.wait_for_connections(WORKING as u64);
}
