//! The result of a run: what was counted, put in relation, as text for people and as JSON. Fields: docs/benchmarks.md.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::backoff::Backoff;
use super::curve::{Curve, Deed};
use super::measure::{Faults, Latencies, PERCENTILES, RoomOrder, Tally};
use super::plan::{Plan, Pressure, Scenario};
use super::resume::{Resumed, ServerCpu};
use super::server::Cpu;
use super::storm::Cycle;

/// A thread that used more of its core than this had no time left.
const SATURATED: f64 = 0.9;

/// CPU time of the server and of this process at one moment, or between two.
#[derive(Clone, Default, Debug)]
pub(super) struct Used {
    pub(super) server: Option<Cpu>,
    own: Option<Cpu>,
    time: Duration,
    own_busiest: Duration,
}

impl Used {
    pub(super) fn read(server_pid: Option<u32>) -> Self {
        Self { server: server_pid.and_then(Cpu::of), own: Cpu::of(std::process::id()), ..Self::default() }
    }

    /// What was used from `earlier` to this moment, `time` later. `threads` are those of the generator that carry its load.
    pub(super) fn since(&self, earlier: &Self, time: Duration, threads: &[u32]) -> Self {
        let between = |now: &Option<Cpu>, before: &Option<Cpu>| Some(now.as_ref()?.since(before.as_ref()?));
        let own = between(&self.own, &earlier.own);
        let own_busiest = own.as_ref().map(|own| own.busiest(Some(threads))).unwrap_or_default();
        Self { server: between(&self.server, &earlier.server), own, time, own_busiest }
    }

    /// What the server used, and how much of it is beyond what it takes in as much of a quiet time.
    pub(super) fn server_beyond(&self, quiet: &Self) -> Option<ServerCpu> {
        let usual = quiet.share(quiet.server.as_ref()?.total());
        let all = self.server.as_ref()?.total();
        Some(ServerCpu { all, beyond_quiet: all.saturating_sub(self.time.mul_f64(usual)) })
    }

    /// What was used in another time, too.
    pub(super) fn add(&mut self, other: &Self) {
        for (into, from) in [(&mut self.server, &other.server), (&mut self.own, &other.own)] {
            if let Some(from) = from {
                into.get_or_insert_default().add(from);
            }
        }
        self.time += other.time;
        self.own_busiest += other.own_busiest;
    }

    fn share(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() / self.time.as_secs_f64().max(1e-9)
    }

    /// Of one core, what our busiest thread used.
    fn generator(&self) -> f64 {
        self.share(self.own_busiest)
    }

    /// Of each core, what all of ours used, when they share so many.
    fn generator_on(&self, cores: usize) -> f64 {
        self.own.as_ref().map_or(0.0, |own| self.share(own.total()) / cores.max(1) as f64)
    }

    /// Of one core, what the server's busiest thread used.
    fn server(&self) -> Option<f64> {
        self.server.as_ref().map(|server| self.share(server.busiest(None)))
    }
}

/// Memory of the server's process.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct ServerUse {
    pub(super) pss_before: Option<u64>,
    pub(super) pss_open: Option<u64>,
    pub(super) pss_end: Option<u64>,
}

/// One cycle of a storm, added up over the threads.
#[derive(Clone, Debug)]
pub(super) struct StormCycle {
    time: Duration,
    handshakes: u64,
    percentiles: Vec<Option<Duration>>,
    failures: BTreeMap<String, u64>,
    given_up: u64,
    server_cpu: Option<Duration>,
    pub(super) curve: Curve,
}

impl StormCycle {
    pub(super) fn new(cycle: Cycle, time: Duration, server_cpu: Option<Duration>, all: &mut Latencies, storm: bool) -> Self {
        // The first opening is no storm: a server that has seen nobody yet still grows.
        if storm {
            all.add(&cycle.handshakes);
        }
        Self {
            time,
            handshakes: cycle.handshakes.count(),
            percentiles: PERCENTILES.iter().map(|(_, percent)| cycle.handshakes.percentile(*percent)).collect(),
            failures: cycle.failures,
            given_up: cycle.given_up,
            server_cpu,
            curve: cycle.curve,
        }
    }

    fn per_second(&self) -> f64 {
        self.handshakes as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn cpu_per_handshake(&self) -> Option<Duration> {
        Some(self.server_cpu?.div_f64(self.handshakes.max(1) as f64))
    }

    pub(super) fn line(&self) -> String {
        let mut line = format!("{} open in {}, {}/s", count(self.handshakes), span(self.time), count(self.per_second() as u64));
        let (most, over_mean) = self.curve.peak(Deed::Came);
        let _ = write!(line, "; at most {} came in 100 ms, {over_mean:.1} of the mean", count(most));
        if !self.failures.is_empty() {
            let _ = write!(line, "; {}", kinds(&self.failures));
        }
        if self.given_up > 0 {
            let _ = write!(line, "; {} clients gave up", self.given_up);
        }
        line
    }
}

/// The result.
#[derive(Debug)]
pub struct Outcome {
    pub(super) plan: Plan,
    pub(super) connect_time: Duration,
    pub(super) used: Used,
    pub(super) server: ServerUse,
    /// The warm-up.
    pub(super) start_to_begin: Duration,
    pub(super) tally: Tally,
    /// Of a storm, the first opening first.
    pub(super) cycles: Vec<StormCycle>,
    /// Of all storms.
    pub(super) handshakes: Latencies,
    /// Of that scenario alone.
    pub(super) resumed: Option<Resumed>,
}

impl Outcome {
    /// What fails the run: one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let Faults { lost, repeated, reordered, strayed } = self.tally.faults;
        for (faults, what) in [
            (lost, "messages did not come to a receiver"),
            (repeated, "messages came to a receiver twice"),
            (reordered, "messages came to a receiver behind a newer one of the same publisher"),
            (strayed, "messages came to a receiver of another room"),
        ] {
            if faults > 0 {
                failures.push(format!("{} {what}", count(faults)));
            }
        }
        let rooms = self.tally.orders.values().filter(|order| **order == RoomOrder::Different).count();
        if rooms > 0 {
            failures.push(format!(
                "in {rooms} of {} rooms receivers saw different orders, or began at different messages",
                self.tally.orders.len()
            ));
        }
        let ended: u64 = self.tally.ends.values().sum();
        if ended > 0 {
            failures.push(format!("{} connections ended that should have stayed: {}", count(ended), kinds(&self.tally.ends)));
        }
        if self.is_traffic() && self.tally.deliveries == 0 {
            failures.push("nothing was delivered while it was measured; does the server send messages back at this URL?".to_owned());
        }
        if self.plan.deflate && self.tally.compressed == 0 {
            failures.push("no message came compressed; does the server agree to permessage-deflate?".to_owned());
        }
        let given_up: u64 = self.cycles.iter().map(|cycle| cycle.given_up).sum();
        if given_up > 0 {
            failures.push(format!("{} times a client gave up connecting", count(given_up)));
        }
        failures.extend(self.resumed.iter().flat_map(Resumed::failures));
        failures
    }

    /// Why the figures are not the server's, if so.
    fn bottleneck(&self) -> Option<String> {
        let (mut own, server) = (self.used.generator(), self.used.server());
        let mut whose = "its busiest thread used";
        let (threads, cores) = (usize::from(self.plan.threads), self.plan.cpus.len());
        if own < SATURATED && (1..threads).contains(&cores) {
            (own, whose) = (self.used.generator_on(cores), "its threads share cores and used");
        }
        if own < SATURATED || server.is_some_and(|server| server >= SATURATED) {
            return None;
        }
        let server = match server {
            Some(server) => format!("the server's busiest thread {:.0} %", server * 100.0),
            None => "the server's share is not known without --server-pid".to_owned(),
        };
        Some(format!(
            "the generator was the bottleneck: {whose} {:.0} % of a core, {server}. Take more --threads on --cpus of their own, fewer --connections, or a lower --rate",
            own * 100.0
        ))
    }

    pub(super) fn latencies(&self) -> &Latencies {
        match &self.resumed {
            Some(resumed) => &resumed.during,
            None if self.plan.scenario == Scenario::Storm => &self.handshakes,
            None => &self.tally.latencies,
        }
    }

    /// Whether messages per second are what it is about.
    pub(super) fn is_traffic(&self) -> bool {
        self.plan.publishers > 0 && self.resumed.is_none()
    }

    fn seconds(&self) -> f64 {
        self.plan.duration.as_secs_f64()
    }

    /// How often the server did what is measured.
    fn work(&self) -> u64 {
        match self.plan.scenario {
            Scenario::Storm => self.handshakes.count(),
            Scenario::Idle => 0,
            Scenario::Resume => self.resumed.as_ref().map_or(0, Resumed::count),
            // What slow readers get is not counted in the window: for them the figure is per healthy delivery.
            Scenario::Fanout | Scenario::Echo | Scenario::Slow => self.tally.deliveries,
        }
    }

    fn cpu_per_work(&self) -> Option<Duration> {
        if let Some(resumed) = &self.resumed {
            return resumed.cpu_each();
        }
        let work = self.work();
        (work > 0).then(|| Some(self.used.server.as_ref()?.total().div_f64(work as f64))).flatten()
    }

    fn pss_per_connection(&self) -> Option<i64> {
        let grown = self.server.pss_open?.cast_signed() - self.server.pss_before?.cast_signed();
        Some(grown / i64::from(self.plan.connections))
    }

    /// The text report.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn Display| {
            let _ = writeln!(text, "  {name:<12}{value}");
        };
        let tally = &self.tally;
        line("target", &self.plan.target.template);
        if let Some(events) = &self.plan.events {
            line("events", &events.template);
        }
        line("load", &self.plan.summary());
        line("connected", &format!("{} in {}", count(u64::from(self.plan.connections)), span(self.connect_time)));
        for (number, cycle) in self.cycles.iter().enumerate() {
            line(&if number == 0 { "first".to_owned() } else { format!("storm {number}") }, &cycle.line());
        }
        for (name, value) in self.resumed.iter().flat_map(Resumed::lines) {
            line(&name, &value);
        }
        let what = if self.plan.scenario == Scenario::Echo { "round trips" } else { "deliveries" };
        if self.is_traffic() {
            let per_second = |number: u64| count((number as f64 / self.seconds()).round() as u64);
            line("published", &format!("{}, {}/s", count(tally.published), per_second(tally.published)));
            let megabytes = tally.delivered_bytes as f64 / self.seconds() / 1e6;
            line(what, &format!("{}, {}/s, {megabytes:.1} MB/s", count(tally.deliveries), per_second(tally.deliveries)));
        }
        if self.resumed.is_none() && self.latencies().count() > 0 {
            let of = match (self.plan.scenario, self.plan.pressure) {
                (Scenario::Storm, _) => "from connect to 101, storms only",
                (_, Pressure::Open { .. }) => "from the time a message was due",
                (_, Pressure::Closed { .. }) => "from sending a message",
            };
            let by = if self.plan.events.is_some() { ", event streams only" } else { "" };
            let percentiles: Vec<String> = PERCENTILES
                .iter()
                .filter_map(|(name, percent)| Some(format!("{name} {}", span(self.latencies().percentile(*percent)?))))
                .collect();
            line("latency", &format!("{}  ({of}{by})", percentiles.join("  ")));
        }
        if self.plan.publishers > 0 {
            let Faults { lost, repeated, reordered, strayed } = tally.faults;
            let verdict = if tally.faults.is_clean() { "every message once and in order: " } else { "" };
            line("checks", &format!("{verdict}{lost} lost, {repeated} repeated, {reordered} out of order, {strayed} strayed"));
            if !tally.orders.is_empty() {
                let same = tally.orders.values().filter(|order| **order != RoomOrder::Different).count();
                line("one order", &format!("{same} of {} rooms", tally.orders.len()));
            }
            if tally.unsent > 0 {
                line("unsent", &format!("{} messages were due that the server's backpressure left no room for", count(tally.unsent)));
            }
            if tally.stalls > 0 {
                line("stalls", &format!("{} messages of the closed loop were given up", count(tally.stalls)));
            }
            if self.plan.churn.is_some() {
                line("churned", &format!("{} receivers left and came back", count(tally.churned)));
            }
            if self.plan.deflate {
                line("compressed", &format!("{} messages came so", count(tally.compressed)));
            }
            if tally.foreign > 0 {
                line("foreign", &format!("{} messages were not ours", count(tally.foreign)));
            }
        }
        if self.plan.slow > 0 {
            line("slow", &format!("{} readers, {} deliveries: {}", self.plan.slow, count(tally.slow_deliveries), kinds(&tally.slow_ends)));
            if !tally.slow_faults.is_clean() {
                line(
                    "",
                    &format!(
                        "of messages to open ones {} lost, {} repeated",
                        count(tally.slow_faults.lost),
                        count(tally.slow_faults.repeated)
                    ),
                );
            }
        }
        if tally.pings > 0 || self.plan.scenario == Scenario::Idle {
            line("pings", &format!("{} answered", count(tally.pings)));
        }
        if let Some(cpu) = &self.used.server {
            let mut value = format!(
                "{:.1} % CPU (user {:.1}, system {:.1})",
                self.used.share(cpu.total()) * 100.0,
                self.used.share(cpu.user) * 100.0,
                self.used.share(cpu.system) * 100.0
            );
            if let Some(each) = self.cpu_per_work() {
                let what = match self.plan.scenario {
                    Scenario::Storm => "handshake",
                    Scenario::Resume => "client that came back",
                    Scenario::Echo => "round trip",
                    _ => "delivery",
                };
                let _ = write!(value, ", {:.3} µs per {what}", each.as_nanos() as f64 / 1000.0);
            }
            line("server", &value);
        }
        if let (Some(each), Some(before), Some(open)) = (self.pss_per_connection(), self.server.pss_before, self.server.pss_open) {
            let end = self.server.pss_end.map_or(String::new(), |end| format!(", {} at the end", mebibytes(end)));
            let each = if each > 0 {
                format!("{each} B per connection")
            } else {
                "no growth: the process still had memory of earlier connections".to_owned()
            };
            line("memory", &format!("{each} (Pss {} before, {} open{end})", mebibytes(before), mebibytes(open)));
        }
        if self.used.own.is_some() {
            line("generator", &format!("busiest of {} threads {:.1} % CPU", self.plan.threads, self.used.generator() * 100.0));
        }
        if let Some(bottleneck) = self.bottleneck() {
            line("note", &bottleneck);
        }
        for failure in self.failures() {
            line("FAILED", &failure);
        }
        text
    }

    /// The JSON report.
    pub fn json(&self) -> String {
        let plan = &self.plan;
        let tally = &self.tally;
        let (in_flight, rate) = match plan.pressure {
            Pressure::Closed { in_flight } => (Some(in_flight), None),
            Pressure::Open { rate } => (None, Some(rate)),
        };
        let traffic = self.is_traffic();
        let storm = plan.scenario == Scenario::Storm;
        let per_second = |number: u64| number as f64 / self.seconds();
        let mut report = json!({
            "scenario": plan.scenario.name(),
            "url": plan.target.template,
            "connections": plan.resume.map_or(plan.connections, |resume| resume.comers),
            "threads": plan.threads,
            "gather_us": plan.gather.as_micros() as u64,
            "connect_seconds": self.connect_time.as_secs_f64(),
            "failures": self.failures(),
            "bottleneck": self.bottleneck(),
            "generator": { "busiest_thread_cpu": self.used.generator() },
            "server": self.used.server.as_ref().map(|cpu| json!({
                "cpu": self.used.share(cpu.total()),
                "cpu_user": self.used.share(cpu.user),
                "cpu_system": self.used.share(cpu.system),
                "busiest_thread_cpu": self.used.server(),
                "cpu_us_each": self.cpu_per_work().map(micros),
                "pss_before_bytes": self.server.pss_before,
                "pss_open_bytes": self.server.pss_open,
                "pss_end_bytes": self.server.pss_end,
                "pss_per_connection_bytes": self.pss_per_connection(),
            })),
        });
        let mut put = |name: &str, value: Value| report[name] = value;
        if !storm {
            put("duration_seconds", json!(self.seconds()));
            put("pings", json!(tally.pings));
            put("ended", json!(tally.ends));
        }
        if traffic {
            put("receivers", json!(plan.receivers()));
            put("events", json!(plan.events.as_ref().map(|events| &events.template)));
            put("rooms", json!(plan.rooms));
            put("publishers_per_room", json!(plan.publishers));
            put("payload_bytes", json!(plan.payload));
            put("text", json!(plan.text));
            put("in_flight", json!(in_flight));
            put("rate", json!(rate));
            put("warmup_seconds", json!(self.start_to_begin.as_secs_f64()));
            put("published", json!(tally.published));
            put("published_per_second", json!(per_second(tally.published)));
            put("deliveries", json!(tally.deliveries));
            put("deliveries_per_second", json!(per_second(tally.deliveries)));
            put("bytes_per_second", json!(per_second(tally.delivered_bytes)));
            put("latency", latency_json(&tally.latencies));
            put("checks", faults_json(tally.faults));
            put("unsent", json!(tally.unsent));
            put("stalls", json!(tally.stalls));
            put("foreign", json!(tally.foreign));
            put("compressed", json!(tally.compressed));
            put("churn", json!(plan.churn));
            put("churned", json!(tally.churned));
            put("seconds", self.seconds_json());
        }
        if traffic && plan.total_order {
            let different = tally.orders.values().filter(|order| **order == RoomOrder::Different).count();
            put("total_order", json!({ "rooms": tally.orders.len(), "different": different }));
        }
        if plan.scenario == Scenario::Slow {
            put(
                "slow",
                json!({
                    "readers": plan.slow,
                    "pause_seconds": plan.slow_pause.map(|pause| pause.as_secs_f64()),
                    "deliveries": tally.slow_deliveries,
                    "ended": tally.slow_ends,
                    "checks": faults_json(tally.slow_faults),
                }),
            );
        }
        if let Some(resumed) = &self.resumed {
            put("events", json!(plan.events.as_ref().map(|events| &events.template)));
            put("payload_bytes", json!(plan.payload));
            put("rate", json!(rate));
            put("concurrency", json!(plan.concurrency));
            put("latency", latency_json(self.latencies()));
            put("checks", faults_json(tally.faults));
            put("unsent", json!(tally.unsent));
            put("foreign", json!(tally.foreign));
            put("resume", resumed.json());
        }
        if storm {
            put("drop", json!(plan.drop.name()));
            put("backoff", json!(plan.backoff.map(Backoff::name)));
            put("concurrency", json!(plan.concurrency));
            put("handshakes", json!(self.handshakes.count()));
            put("latency", latency_json(&self.handshakes));
            put("cycles", Value::Array(self.cycles.iter().map(cycle_json).collect()));
        }
        let mut text = serde_json::to_string_pretty(&report).expect("a value of strings and numbers");
        text.push('\n');
        text
    }

    fn seconds_json(&self) -> Value {
        let begin = self.start_to_begin.as_secs_f64();
        let seconds = self.tally.seconds.iter().enumerate().map(|(at, second)| {
            let at = at as f64;
            json!({
                "at": at,
                "measured": at >= begin && at + 1.0 <= begin + self.seconds(),
                "published": second.published,
                "deliveries": second.deliveries,
                "bytes": second.bytes,
                "worst_us": micros(second.worst),
            })
        });
        Value::Array(seconds.collect())
    }
}

pub(super) fn latency_json(latencies: &Latencies) -> Value {
    let mut object = Map::new();
    object.insert("count".to_owned(), json!(latencies.count()));
    object.insert("mean_us".to_owned(), json!(micros(latencies.mean())));
    for (name, percent) in PERCENTILES {
        let name = format!("{}_us", name.replace('.', "_"));
        object.insert(name, json!(latencies.percentile(percent).map(micros)));
    }
    Value::Object(object)
}

fn faults_json(faults: Faults) -> Value {
    json!({ "lost": faults.lost, "repeated": faults.repeated, "out_of_order": faults.reordered, "strayed": faults.strayed })
}

fn cycle_json(cycle: &StormCycle) -> Value {
    let mut object = Map::new();
    object.insert("seconds".to_owned(), json!(cycle.time.as_secs_f64()));
    object.insert("handshakes".to_owned(), json!(cycle.handshakes));
    object.insert("handshakes_per_second".to_owned(), json!(cycle.per_second()));
    object.insert("server_cpu_us_each".to_owned(), json!(cycle.cpu_per_handshake().map(micros)));
    object.insert("failed".to_owned(), json!(cycle.failures));
    object.insert("given_up".to_owned(), json!(cycle.given_up));
    object.insert("curve".to_owned(), cycle.curve.json());
    for ((name, _), value) in PERCENTILES.iter().zip(&cycle.percentiles) {
        object.insert(format!("{}_us", name.replace('.', "_")), json!(value.map(micros)));
    }
    Value::Object(object)
}

pub(super) fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in the unit that suits it.
pub(super) fn span(time: Duration) -> impl Display {
    struct Span(Duration);
    impl Display for Span {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let nanos = self.0.as_nanos() as f64;
            match nanos {
                ..1e3 => write!(f, "{nanos} ns"),
                ..1e6 => write!(f, "{:.1} µs", nanos / 1e3),
                ..1e9 => write!(f, "{:.2} ms", nanos / 1e6),
                _ => write!(f, "{:.2} s", nanos / 1e9),
            }
        }
    }
    Span(time)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// `3 × closed 4508, 1 × ended`.
pub(super) fn kinds(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(how, number)| format!("{} × {how}", count(*number))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::load::plan::tests::plan;

    /// An outcome with figures in it.
    pub(in super::super) fn outcome(words: &str) -> Outcome {
        let mut tally = Tally::default();
        (tally.published, tally.deliveries) = (10, 100);
        for millis in 1..=100 {
            tally.latencies.record(Duration::from_millis(millis));
        }
        for second in 0..4 {
            tally.second(second).deliveries = 25 * second as u64;
        }
        Outcome {
            plan: plan(words).expect("the words are right"),
            connect_time: Duration::from_millis(1),
            used: Used::default(),
            server: ServerUse { pss_before: Some(1 << 20), pss_open: Some((1 << 20) + 340_000), pss_end: None },
            start_to_begin: Duration::from_secs(2),
            tally,
            cycles: Vec::new(),
            handshakes: Latencies::default(),
            resumed: None,
        }
    }

    #[test]
    fn a_clean_run_has_no_failures_and_each_fault_is_one() {
        let mut outcome = outcome("fanout --url ws://127.0.0.1:1/");
        assert_eq!(outcome.failures(), Vec::<String>::new());
        outcome.tally.faults = Faults { lost: 1, repeated: 2, reordered: 3, strayed: 4 };
        outcome.tally.ends.insert("closed 4508".to_owned(), 5);
        outcome.tally.orders.insert(0, RoomOrder::Different);
        assert_eq!(outcome.failures().len(), 6, "{:?}", outcome.failures());
        assert!(outcome.text().contains("5 × closed 4508"));
    }

    #[test]
    fn the_generator_says_when_it_was_the_bottleneck() {
        let mut outcome = outcome("fanout --url ws://127.0.0.1:1/");
        outcome.used = Used { time: Duration::from_secs(10), own_busiest: Duration::from_millis(9500), ..Used::default() };
        assert!(outcome.bottleneck().is_some_and(|note| note.contains("95 %") && note.contains("--server-pid")));
        outcome.used.own_busiest = Duration::from_secs(5);
        assert_eq!(outcome.bottleneck(), None);
    }

    #[test]
    fn threads_that_share_a_core_are_a_bottleneck_together() {
        let mut outcome = outcome("resume --url ws://127.0.0.1:1/{room} --events http://127.0.0.1:1/{room} --cpus 1");
        let own = Cpu { user: Duration::from_millis(9500), ..Cpu::default() };
        outcome.used = Used { own: Some(own), time: Duration::from_secs(10), own_busiest: Duration::from_secs(5), ..Used::default() };
        assert!(outcome.bottleneck().is_some_and(|note| note.contains("its threads share cores and used 95 % of a core")));
        outcome.plan.cpus = vec![0, 1];
        assert_eq!(outcome.bottleneck(), None);
    }

    #[test]
    fn what_the_server_used_beyond_the_quiet_time_is_in_proportion() {
        let used = |seconds: u64, millis: u64| {
            let cpu = Cpu { system: Duration::from_millis(millis), ..Cpu::default() };
            Used { server: Some(cpu), time: Duration::from_secs(seconds), ..Used::default() }
        };
        let beyond = used(2, 900).server_beyond(&used(10, 1000));
        assert_eq!(beyond, Some(ServerCpu { all: Duration::from_millis(900), beyond_quiet: Duration::from_millis(700) }));
        let mut both = used(2, 900);
        both.add(&used(10, 1000));
        assert_eq!((both.time, both.server.map(|cpu| cpu.total())), (Duration::from_secs(12), Some(Duration::from_millis(1900))));
        assert_eq!(used(2, 900).server_beyond(&Used::default()), None);
    }

    #[test]
    fn json_has_what_the_text_has() {
        let outcome = outcome("fanout --url ws://127.0.0.1:1/ --rate 50");
        let report: Value = serde_json::from_str(&outcome.json()).expect("it is JSON");
        assert_eq!(report["deliveries"], 100);
        assert_eq!(report["latency"]["count"], 100);
        assert!(report["latency"]["p99_9_us"].as_f64().is_some_and(|p| (99_000.0..=100_100.0).contains(&p)), "{report}");
        assert_eq!(report["seconds"].as_array().map(Vec::len), Some(4));
        assert_eq!((&report["rate"], &report["in_flight"]), (&json!(50.0), &Value::Null));
        assert!(outcome.text().contains("340 B per connection"), "{}", outcome.text());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        let spans = [5, 1_500, 2_340_000, 7_000_000_000].map(|nanos| span(Duration::from_nanos(nanos)).to_string());
        assert_eq!(spans, ["5 ns", "1.5 µs", "2.34 ms", "7.00 s"]);
    }
}
