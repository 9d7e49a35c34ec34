//! What is asked for: the words of `shardcast bench`, and the plan that they make once they are checked against each other.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::LoadError;
use super::backoff::Backoff;
use super::host::Host;
use super::stamp::{Filler, Stamp};
use super::target::Target;

/// The words of the command line.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// What is to be measured
    #[arg(value_enum)]
    scenario: Scenario,
    /// The server, as a template: {room} and {client} are replaced by numbers from 0 on
    #[arg(long, value_name = "URL")]
    url: String,
    /// Connections to open [default: fanout 1000, echo 100, idle 1000, storm 1000, slow 200]; event streams that come back [default: resume 5000]
    #[arg(long, short = 'c', value_name = "N")]
    connections: Option<u32>,
    /// Receivers that do not publish are event streams (`GET /events`) of this template, http://…, instead of WebSockets; messages are text then (fanout; resume needs it)
    #[arg(long, value_name = "URL")]
    events: Option<String>,
    /// Seconds that are measured (idle: held; slow: read on; resume: of each quiet phase)
    #[arg(long, short = 'd', value_name = "S", default_value_t = 10.0)]
    duration: f64,
    /// Seconds of the same traffic before that
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    warmup: f64,
    /// Another header for each handshake, 'Name: value'; may be repeated
    #[arg(long = "header", value_name = "LINE")]
    headers: Vec<String>,

    /// Rooms that the connections are spread over (fanout, slow)
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    rooms: u32,
    /// Members of each room that publish (fanout, slow)
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    publishers: u32,
    /// Bytes of a message [default: 128; slow 1024]
    #[arg(long, value_name = "BYTES", help_heading = "Traffic")]
    payload: Option<usize>,
    /// Text messages instead of binary ones
    #[arg(long, help_heading = "Traffic")]
    text: bool,
    /// What messages are filled up with behind their stamp: dots, or JSON as a feed of prices has it (fanout, echo, slow)
    #[arg(long, value_enum, default_value_t = Filler::Dots, help_heading = "Traffic")]
    filler: Filler,
    /// Offer permessage-deflate, and inflate what comes compressed; a run in which nothing does has failed (fanout, echo, slow)
    #[arg(long, help_heading = "Traffic")]
    deflate: bool,
    /// Closed loop: messages of each publisher that are on their way; one that all receivers have is replaced [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "rate", help_heading = "Traffic")]
    in_flight: Option<u32>,
    /// Open loop: messages per second of all publishers together, sent when due whatever the server does; latency counts from then [default: slow 1000, resume 50: to the watchers]
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    rate: Option<f64>,
    /// Also check that all receivers of a room get all publishers' messages in one order
    #[arg(long, help_heading = "Traffic")]
    total_order: bool,
    /// Receivers per second, of all that do not publish, that leave and come back to their room at once: every other one with a close frame, the rest by RST (fanout)
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    churn: Option<f64>,

    /// Times that all connections are dropped and opened again (storm, resume)
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Storm")]
    cycles: u32,
    /// How they are dropped (storm)
    #[arg(long = "drop", value_enum, default_value_t = Drop::Rst, help_heading = "Storm")]
    drop: Drop,
    /// When each client comes back by itself (storm); without this, one after the other as fast as the server takes them, --concurrency at once
    #[arg(long, value_enum, value_name = "HOW", conflicts_with = "concurrency", help_heading = "Storm")]
    backoff: Option<Backoff>,
    /// Handshakes under way at once, in any scenario [default: 256; resume, --backoff and --drop server all]
    #[arg(long, value_name = "N", help_heading = "Storm")]
    concurrency: Option<u32>,

    /// Messages that each one missed that comes back (resume)
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Resume")]
    behind: u32,
    /// Event streams of another room, which read on meanwhile (resume)
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Resume")]
    watchers: u32,

    /// Percent of the connections that stop reading when measuring begins (slow)
    #[arg(long, value_name = "P", default_value_t = 10.0, help_heading = "Slow readers")]
    slow_percent: f64,
    /// Seconds after which they read again [default: when measuring ends]
    #[arg(long, value_name = "S", help_heading = "Slow readers")]
    slow_pause: Option<f64>,

    /// Threads of this tool [default: 1, or one per CPU of --cpus; resume at least 2, of which one is the watchers']
    #[arg(long, value_name = "N", help_heading = "This tool")]
    threads: Option<u16>,
    /// CPUs that they are pinned to, for example 1,3-5
    #[arg(long, value_name = "LIST", help_heading = "This tool")]
    cpus: Option<String>,
    /// Microseconds that a busy thread lets messages gather before it reads again; 0 reads at once [default: 20 with 64 or more receivers, else 0]
    #[arg(long, value_name = "US", help_heading = "This tool")]
    gather: Option<u64>,
    /// The server's process: its CPU time and memory are read from /proc
    #[arg(long, value_name = "PID", help_heading = "This tool")]
    server_pid: Option<u32>,
    /// Report in JSON on stdout (fields: docs/benchmarks.md)
    #[arg(long, help_heading = "This tool")]
    json: bool,
    /// Draw latencies and throughput
    #[arg(long, value_name = "FILE.svg", help_heading = "This tool")]
    plot: Option<PathBuf>,
    /// No progress on stderr
    #[arg(long, help_heading = "This tool")]
    quiet: bool,
}

/// A kind of load.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scenario {
    /// Publishers send into rooms, every member receives
    Fanout,
    /// Every connection sends and gets its own messages back
    Echo,
    /// Connections that do nothing: what one costs
    Idle,
    /// All connections drop at once and come back, several times
    Storm,
    /// Fan-out to readers of which some stop reading
    Slow,
    /// Event streams drop, miss messages and come back for them, all at once, while others read on
    Resume,
}

impl Scenario {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Echo => "echo",
            Self::Idle => "idle",
            Self::Storm => "storm",
            Self::Slow => "slow",
            Self::Resume => "resume",
        }
    }
}

/// How connections end in a storm.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Drop {
    /// Reset, as when a client's machine is gone; leaves no port in TIME_WAIT
    Rst,
    /// Closed without a close frame, as when a client's process ends
    Fin,
    /// Ended by the server, which you drain, or have rebalance, in each cycle
    Server,
}

impl Drop {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rst => "rst",
            Self::Fin => "fin",
            Self::Server => "server",
        }
    }
}

/// What makes publishers send.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Pressure {
    /// As many of a publisher's messages are on their way at any time.
    Closed { in_flight: u32 },
    /// Messages per second of all publishers, whatever the server does.
    Open { rate: f64 },
}

/// Who comes back, to how much, and who looks on. Clients 0 and 1 publish to the rooms 0 and 1; then come those who come back, to room 0, and last the
/// watchers, in room 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Resume {
    pub(super) comers: u32,
    /// Messages that each of them misses.
    pub(super) behind: u32,
    pub(super) watchers: u32,
}

impl Resume {
    const PUBLISHERS: u32 = 2;

    fn connections(self) -> u32 {
        Self::PUBLISHERS.saturating_add(self.comers).saturating_add(self.watchers)
    }

    /// Whether this connection is one that comes back.
    fn is_comer(self, client: u32) -> bool {
        (Self::PUBLISHERS..Self::PUBLISHERS + self.comers).contains(&client)
    }
}

/// A checked plan.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) scenario: Scenario,
    pub(super) target: Target,
    /// Where those who do not publish have event streams.
    pub(super) events: Option<Target>,
    pub(super) headers: Vec<String>,
    /// All of them together.
    pub(super) connections: u32,
    /// Of that scenario alone.
    pub(super) resume: Option<Resume>,
    pub(super) rooms: u32,
    /// Of each room.
    pub(super) publishers: u32,
    pub(super) payload: usize,
    pub(super) text: bool,
    pub(super) filler: Filler,
    pub(super) deflate: bool,
    pub(super) pressure: Pressure,
    pub(super) total_order: bool,
    /// Receivers per second that leave and come back.
    pub(super) churn: Option<f64>,
    pub(super) duration: Duration,
    pub(super) warmup: Duration,
    pub(super) cycles: u32,
    pub(super) drop: Drop,
    /// When clients of a storm come back; `None` has them come one after the other.
    pub(super) backoff: Option<Backoff>,
    pub(super) concurrency: u32,
    /// Connections, counted from the last one, that stop reading.
    pub(super) slow: u32,
    pub(super) slow_pause: Option<Duration>,
    pub(super) threads: u16,
    /// Of each thread; empty leaves them to the kernel.
    pub(super) cpus: Vec<usize>,
    pub(super) gather: Duration,
    pub(super) server_pid: Option<u32>,
    pub(super) quiet: bool,
    /// Whether the report is JSON.
    pub json: bool,
    /// Where to draw.
    pub plot: Option<PathBuf>,
}

/// Descriptors beside those of the connections: standard streams, rings, bells, files of /proc, and some to spare.
const OTHER_DESCRIPTORS: u64 = 64;
/// A receiver count from which letting messages gather pays.
const GATHER_FROM: u64 = 64;
/// Receivers per second that may leave and come back: more than one thread can open.
const CHURN_MAX: f64 = 100_000.0;
/// Messages that may be missed: more than any history keeps.
const BEHIND_MAX: u32 = 1_000_000;

impl Plan {
    /// Checks what is asked against itself and the machine.
    ///
    /// # Errors
    /// Which word is wrong and what would be right; too few descriptors or ports; a host without an address.
    pub fn new(ask: Ask, host: &Host) -> Result<Self, LoadError> {
        let usage = |text: String| Err(LoadError::Usage(text));
        let scenario = ask.scenario;
        let connections = ask.connections.unwrap_or(match scenario {
            Scenario::Fanout | Scenario::Idle | Scenario::Storm => 1000,
            Scenario::Echo => 100,
            Scenario::Slow => 200,
            Scenario::Resume => 5000,
        });
        if connections == 0 {
            return usage("--connections is 0; 1 is the least".to_owned());
        }
        let resume = (scenario == Scenario::Resume).then_some(Resume { comers: connections, behind: ask.behind, watchers: ask.watchers });
        let connections = resume.map_or(connections, Resume::connections);
        let needed = u64::from(connections) + OTHER_DESCRIPTORS;
        if needed > host.descriptors {
            return Err(LoadError::Failed(format!(
                "{connections} connections need {needed} file descriptors, and this process may have {}: raise the hard limit (`ulimit -Hn {needed}` as root), or take --connections {}",
                host.descriptors,
                host.descriptors.saturating_sub(OTHER_DESCRIPTORS)
            )));
        }
        let target = Target::new(&ask.url)?;
        let events = ask.events.as_deref().map(Target::events).transpose()?;
        match (scenario, &events) {
            (Scenario::Fanout | Scenario::Resume, Some(_)) => {}
            (_, Some(_)) => return usage(format!("--events is for fanout and resume, not for {}", scenario.name())),
            (Scenario::Resume, None) => {
                return usage(
                    "resume needs --events: those who come back are event streams, such as 'http://HOST:PORT/events?topic=r{room}'"
                        .to_owned(),
                );
            }
            (_, None) => {}
        }
        if let Some(Resume { behind, watchers, .. }) = resume {
            for (option, value, most) in
                [("--behind", behind, BEHIND_MAX), ("--watchers", watchers, u32::MAX), ("--cycles", ask.cycles, u32::MAX)]
            {
                if value == 0 || value > most {
                    return usage(format!("{option} is {value}; it must be from 1 to {most}"));
                }
            }
            if ask.in_flight.is_some() {
                return usage("--in-flight is not for resume: its watchers get messages at a --rate".to_owned());
            }
        }
        // Binary messages come as base64 in events, which would be another number of bytes.
        let text = ask.text || events.is_some();
        if let Some(ports) = host.local_ports.filter(|ports| u64::from(connections) > *ports) {
            return Err(LoadError::Failed(format!(
                "{connections} connections to one address need as many local ports, and there are {ports}: widen them (`sysctl -w net.ipv4.ip_local_port_range='1024 65535'`), or take --connections {ports}"
            )));
        }
        if let Some(header) = ask.headers.iter().find(|header| !header.contains(':') || header.bytes().any(|byte| byte.is_ascii_control()))
        {
            return usage(format!("--header '{header}' is not of the form 'Name: value'"));
        }
        if ask.deflate && !matches!(scenario, Scenario::Fanout | Scenario::Echo | Scenario::Slow) {
            return usage(format!("--deflate is for fanout, echo and slow, not for {}", scenario.name()));
        }
        let mut headers = ask.headers;
        if ask.deflate {
            headers.push("Sec-WebSocket-Extensions: permessage-deflate".to_owned());
        }
        let (rooms, publishers) = match scenario {
            Scenario::Fanout | Scenario::Slow => (ask.rooms, ask.publishers),
            // Every connection is a room of its own, and its only member.
            Scenario::Echo => (connections, 1),
            Scenario::Idle | Scenario::Storm => (ask.rooms, 0),
            Scenario::Resume => (2, 1),
        };
        if rooms == 0 || rooms > connections {
            return usage(format!("--rooms is {rooms}; it must be from 1 to the number of connections, {connections}"));
        }
        for (option, target) in [("--url", Some(&target)), ("--events", events.as_ref())] {
            if let Some(target) = target
                && rooms > 1
                && scenario != Scenario::Echo
                && !target.tells_rooms_apart()
            {
                return usage(format!("--rooms is {rooms}, but {option} '{}' has no {{room}} that could tell them apart", target.template));
            }
        }
        let members = connections / rooms;
        if publishers > members {
            return usage(format!(
                "--publishers is {publishers}, but a room has {members} members; take fewer of them or more connections"
            ));
        }
        let slow = match scenario {
            Scenario::Slow if !(0.0..=100.0).contains(&ask.slow_percent) => {
                return usage(format!("--slow-percent is {}; it must be from 0 to 100", ask.slow_percent));
            }
            Scenario::Slow => (f64::from(connections) * ask.slow_percent / 100.0).round() as u32,
            _ => 0,
        };
        if slow > connections - rooms * publishers {
            return usage(format!(
                "{slow} of {connections} connections cannot be slow: the {} publishers must read; lower --slow-percent or raise --connections",
                rooms * publishers
            ));
        }
        match ask.churn {
            Some(_) if scenario != Scenario::Fanout => return usage(format!("--churn is for fanout, not for {}", scenario.name())),
            Some(churn) if !(churn > 0.0 && churn <= CHURN_MAX) => {
                return usage(format!("--churn is {churn}; it must be above 0 and at most {CHURN_MAX}"));
            }
            Some(_) if connections == rooms * publishers => {
                return usage(format!("--churn needs receivers that do not publish, and all {connections} do; raise --connections"));
            }
            _ => {}
        }
        let payload = ask.payload.unwrap_or(if scenario == Scenario::Slow { 1024 } else { 128 });
        if events.is_some() && connections == rooms * publishers {
            return usage(format!("--events needs receivers that do not publish, and all {connections} do; raise --connections"));
        }
        let least = Stamp::bytes(text);
        if payload < least || payload > 16 << 20 {
            return usage(format!(
                "--payload is {payload}; it must be from {least} bytes, which sender, sequence and time take in {} messages, to 16 MiB",
                if text { "text" } else { "binary" }
            ));
        }
        let pressure = match (ask.rate, ask.in_flight) {
            (Some(rate), _) if rate > 0.0 && rate <= 1e8 => Pressure::Open { rate },
            (Some(rate), _) => return usage(format!("--rate is {rate}; it must be above 0 and at most 100,000,000")),
            (None, Some(in_flight)) if (1..=65_536).contains(&in_flight) => Pressure::Closed { in_flight },
            (None, Some(in_flight)) => return usage(format!("--in-flight is {in_flight}; it must be from 1 to 65,536")),
            (None, None) if scenario == Scenario::Slow => Pressure::Open { rate: 1000.0 },
            (None, None) if scenario == Scenario::Resume => Pressure::Open { rate: 50.0 },
            (None, None) => Pressure::Closed { in_flight: 1 },
        };
        let seconds = |name: &str, value: f64, least: f64| match Duration::try_from_secs_f64(value) {
            Ok(time) if value >= least && value <= 86_400.0 => Ok(time),
            _ => Err(LoadError::Usage(format!("{name} is {value}; it must be from {least} to 86,400 seconds"))),
        };
        let cpus = ask.cpus.as_deref().map(|list| cpu_list(list, &host.cpus)).transpose()?.unwrap_or_default();
        let threads_min = if resume.is_some() { 2 } else { 1 };
        let threads = ask.threads.map_or(cpus.len().max(threads_min), usize::from).min(connections as usize);
        if threads < threads_min || threads > 256 {
            return usage(format!("--threads is {threads}; it must be from {threads_min} to 256"));
        }
        if scenario != Scenario::Storm && (ask.backoff.is_some() || ask.drop != Drop::Rst) {
            return usage(format!("--backoff and --drop are for storm, not for {}", scenario.name()));
        }
        if ask.drop == Drop::Server && ask.concurrency.is_some() {
            return usage("--concurrency is not for --drop server: whom it ends, and when, is the server's affair".to_owned());
        }
        let all_at_once = resume.is_some() || ask.backoff.is_some() || ask.drop == Drop::Server;
        let concurrency = ask.concurrency.unwrap_or(if all_at_once { connections } else { 256 });
        if concurrency == 0 {
            return usage("--concurrency is 0; 1 is the least".to_owned());
        }
        let depth = match pressure {
            Pressure::Closed { in_flight } => u64::from(in_flight),
            Pressure::Open { .. } => 1,
        };
        let receivers = u64::from(connections) * if scenario == Scenario::Echo { depth } else { 1 };
        let gather = ask.gather.unwrap_or(if receivers >= GATHER_FROM { 20 } else { 0 });
        if gather > 100_000 {
            return usage(format!("--gather is {gather}; it must be at most 100,000 µs"));
        }
        Ok(Self {
            scenario,
            target,
            events,
            headers,
            connections,
            resume,
            rooms,
            publishers,
            payload,
            text,
            filler: ask.filler,
            deflate: ask.deflate,
            pressure,
            total_order: ask.total_order,
            churn: ask.churn,
            duration: seconds("--duration", ask.duration, 0.1)?,
            warmup: seconds("--warmup", ask.warmup, 0.0)?,
            cycles: ask.cycles,
            drop: ask.drop,
            backoff: ask.backoff,
            concurrency,
            slow,
            slow_pause: ask.slow_pause.map(|pause| seconds("--slow-pause", pause, 0.0)).transpose()?,
            threads: threads as u16,
            cpus,
            gather: Duration::from_micros(gather),
            server_pid: ask.server_pid,
            quiet: ask.quiet,
            json: ask.json,
            plot: ask.plot,
        })
    }

    /// The room of a connection.
    pub(super) fn room(&self, client: u32) -> u32 {
        match self.resume {
            Some(resume) if client >= Resume::PUBLISHERS => u32::from(!resume.is_comer(client)),
            _ => client % self.rooms,
        }
    }

    /// The thread that has this connection: whole rooms stay on one thread when there are enough of them. The last one is the watchers' alone, so that
    /// they are not kept waiting by what those who come back cost this tool.
    pub(super) fn thread(&self, client: u32) -> usize {
        let threads = u32::from(self.threads);
        if let Some(resume) = self.resume {
            return if resume.is_comer(client) { client % (threads - 1) } else { threads - 1 } as usize;
        }
        let spread = if self.rooms >= threads { self.room(client) } else { client };
        (spread % threads) as usize
    }

    /// Handshakes that one thread may have under way: its share.
    pub(super) fn concurrency_each(&self) -> u32 {
        if self.resume.is_none() && self.concurrency >= self.connections {
            // Shares are uneven where whole rooms stay on one thread.
            return self.connections;
        }
        self.concurrency.div_ceil(u32::from(self.threads) - u32::from(self.resume.is_some()))
    }

    /// The number of the publisher that this connection is. Those of a room are `room * publishers` and the following.
    pub(super) fn publisher(&self, client: u32) -> Option<u32> {
        let place = client / self.rooms;
        (place < self.publishers).then(|| self.room(client) * self.publishers + place)
    }

    /// The connection that this publisher is.
    pub(super) fn client_of(&self, publisher: u32) -> u32 {
        publisher / self.publishers + publisher % self.publishers * self.rooms
    }

    /// All publishers.
    pub(super) fn publishers_total(&self) -> u32 {
        self.rooms * self.publishers
    }

    /// Whether this connection is an event stream.
    pub(super) fn is_stream(&self, client: u32) -> bool {
        self.events.is_some() && self.publisher(client).is_none()
    }

    /// Where this connection goes.
    pub(super) fn target_of(&self, client: u32) -> &Target {
        self.events.as_ref().filter(|_| self.is_stream(client)).unwrap_or(&self.target)
    }

    /// What those who do not publish are.
    pub(super) fn receivers(&self) -> &'static str {
        if self.events.is_some() { "events" } else { "websocket" }
    }

    /// Whether this connection stops reading.
    pub(super) fn is_slow(&self, client: u32) -> bool {
        client >= self.connections - self.slow
    }

    /// Whether this connection leaves and comes back.
    pub(super) fn churns(&self, client: u32) -> bool {
        self.churn.is_some() && self.publisher(client).is_none()
    }

    /// One line that says what is done.
    pub(super) fn summary(&self) -> String {
        let kind = if self.text { "text" } else { "binary" };
        let pressure = match self.pressure {
            Pressure::Closed { in_flight } => format!("closed loop, {in_flight} in flight"),
            Pressure::Open { rate } => format!("open loop, {rate} messages/s"),
        };
        let seconds = self.duration.as_secs_f64();
        let rooms = if self.rooms == 1 { "1 room".to_owned() } else { format!("{} rooms", self.rooms) };
        match self.scenario {
            Scenario::Fanout | Scenario::Slow => {
                let churn = self.churn.map_or(String::new(), |churn| format!("; {churn} leave and come back per second"));
                let others = if self.events.is_some() { ", the others event streams" } else { "" };
                format!(
                    "{} connections in {rooms}, {} publishing in each{others}, {} B {kind}; {pressure}{churn}; {seconds} s",
                    self.connections, self.publishers, self.payload
                )
            }
            Scenario::Echo => format!("{} connections, {} B {kind}; {pressure} each; {seconds} s", self.connections, self.payload),
            Scenario::Idle => format!("{} connections held for {seconds} s", self.connections),
            Scenario::Resume => {
                let Resume { comers, behind, watchers } = self.resume.expect("the plan of this scenario has it");
                format!(
                    "{comers} event streams come back {} times to {behind} messages of {} B, {} handshakes at once; {watchers} others get {}",
                    self.cycles,
                    self.payload,
                    self.concurrency.min(comers),
                    pressure.trim_start_matches("open loop, ")
                )
            }
            Scenario::Storm => {
                let how = match self.backoff {
                    Some(backoff) => format!("each comes back by itself, --backoff {}", backoff.name()),
                    None => format!("{} handshakes at once", self.concurrency),
                };
                format!("{} connections dropped ({}) and opened again {} times, {how}", self.connections, self.drop.name(), self.cycles)
            }
        }
    }
}

/// `0,2-5` as numbers, all of them allowed.
fn cpu_list(list: &str, allowed: &[usize]) -> Result<Vec<usize>, LoadError> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < 4096 => cpus.extend(first..=last),
            _ => return Err(LoadError::Usage(format!("--cpus '{list}' is no list such as 1,3-5"))),
        }
    }
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(LoadError::Usage(format!("--cpus names CPU {cpu}, which this process may not use; it may use {allowed:?}")));
    }
    Ok(cpus)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        ask: Ask,
    }

    /// A plan from words, for tests.
    pub(in super::super) fn plan(words: &str) -> Result<Plan, LoadError> {
        let words = format!("bench {words}");
        let ask = Words::try_parse_from(words.split_whitespace()).map_err(|error| LoadError::Usage(error.to_string()))?.ask;
        Plan::new(ask, &Host::for_tests())
    }

    const URL: &str = "--url ws://127.0.0.1:1/ws?room={room}";

    #[test]
    fn only_a_url_is_needed() {
        let fanout = plan(&format!("fanout {URL}")).expect("it is valid");
        assert_eq!((fanout.connections, fanout.rooms, fanout.publishers, fanout.payload), (1000, 1, 1, 128));
        assert_eq!(fanout.pressure, Pressure::Closed { in_flight: 1 });
        let slow = plan(&format!("slow {URL}")).expect("it is valid");
        assert_eq!((slow.slow, slow.pressure, slow.payload), (20, Pressure::Open { rate: 1000.0 }, 1024));
        let echo = plan("echo --url ws://127.0.0.1:1/echo").expect("it is valid");
        assert_eq!((echo.rooms, echo.publishers, echo.publishers_total()), (100, 1, 100));
    }

    #[test]
    fn with_events_those_who_do_not_publish_are_streams_and_messages_are_text() {
        let plan = plan(&format!("fanout {URL} --events http://127.0.0.1:1/events?topic=r{{room}} -c 6 --rooms 2")).expect("it is valid");
        assert_eq!((0..6).map(|client| plan.is_stream(client)).collect::<Vec<_>>(), [false, false, true, true, true, true]);
        assert!(plan.text && plan.target_of(3).path(plan.room(3), 3) == "/events?topic=r1" && plan.target_of(1) == &plan.target);
    }

    #[test]
    fn in_a_storm_with_backoff_all_may_come_at_once() {
        let concurrency = |words: &str| plan(&format!("storm {URL} -c 1000 {words}")).expect("it is valid").concurrency;
        assert_eq!(["", "--backoff none", "--backoff hints --drop server", "--drop fin"].map(concurrency), [256, 1000, 1000, 256]);
        let plan = plan(&format!("storm {URL} --backoff full --drop server")).expect("it is valid");
        assert!(plan.summary().contains("dropped (server)") && plan.summary().contains("--backoff full"), "{}", plan.summary());
    }

    const RESUME: &str = "resume --url ws://127.0.0.1:1/ws?room={room} --events http://127.0.0.1:1/events?topic={room}";

    #[test]
    fn in_a_resume_watchers_have_the_last_thread_and_comers_the_others() {
        let plan = plan(&format!("{RESUME} -c 4 --watchers 3 --threads 3")).expect("it is valid");
        let of = |what: &dyn Fn(u32) -> u32| (0..plan.connections).map(what).collect::<Vec<_>>();
        assert_eq!(of(&|client| plan.room(client)), [0, 1, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(of(&|client| plan.thread(client) as u32), [2, 2, 0, 1, 0, 1, 2, 2, 2]);
        assert_eq!(of(&|client| u32::from(plan.is_stream(client))), [0, 0, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!([0, 1].map(|publisher| (plan.client_of(publisher), plan.publisher(publisher))), [(0, Some(0)), (1, Some(1))]);
        assert_eq!((plan.concurrency_each(), plan.pressure, plan.publishers_total()), (5, Pressure::Open { rate: 50.0 }, 2));
        assert!(
            plan.summary()
                .contains("4 event streams come back 3 times to 50 messages of 128 B, 4 handshakes at once; 3 others get 50 messages/s")
        );
    }

    #[test]
    fn publishers_are_the_first_members_of_each_room_and_known_by_number() {
        let plan = plan(&format!("fanout {URL} -c 20 --rooms 4 --publishers 2 --threads 3")).expect("it is valid");
        let mut found = Vec::new();
        for client in 0..plan.connections {
            if let Some(publisher) = plan.publisher(client) {
                assert_eq!((plan.client_of(publisher), publisher / 2), (client, plan.room(client)));
                found.push(publisher);
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..8).collect::<Vec<_>>());
        assert!((0..4).all(|room| (0..5).all(|place| plan.thread(place * 4 + room) == room as usize % 3)), "rooms stay whole");
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        for (words, says) in [
            ("fanout --url ws://127.0.0.1:1/ws --rooms 2", "no {room}"),
            ("fanout --url ws://127.0.0.1:1/ws -c 5 --publishers 6", "--publishers"),
            ("fanout --url ws://127.0.0.1:1/ws --payload 19", "20 bytes"),
            ("fanout --url ws://127.0.0.1:1/ws --payload 35 --text", "36 bytes"),
            ("fanout --url ws://127.0.0.1:1/ws --rate 0", "--rate"),
            ("fanout --url ws://127.0.0.1:1/ws --in-flight 0", "--in-flight"),
            ("fanout --url ws://127.0.0.1:1/ws --cpus 99", "CPU 99"),
            ("fanout --url ws://127.0.0.1:1/ws --cpus x", "--cpus"),
            ("fanout --url ws://127.0.0.1:1/ws --header nonsense", "--header"),
            ("fanout --url ws://127.0.0.1:1/ws --duration=-1", "--duration"),
            ("idle --url ws://127.0.0.1:1/ws --churn 1", "not for idle"),
            ("fanout --url ws://127.0.0.1:1/ws --churn 0", "--churn is 0"),
            ("fanout --url ws://127.0.0.1:1/ws -c 5 --publishers 5 --churn 1", "do not publish"),
            ("idle --url ws://127.0.0.1:1/ws -c 30000", "30064 file descriptors"),
            ("slow --url ws://127.0.0.1:1/ws -c 10 --slow-percent 100", "publishers must read"),
            ("idle --url ws://127.0.0.1:1/ws --events http://127.0.0.1:1/events", "not for idle"),
            ("idle --url ws://127.0.0.1:1/ws --backoff full", "not for idle"),
            ("echo --url ws://127.0.0.1:1/ws --drop server", "not for echo"),
            ("storm --url ws://127.0.0.1:1/ws --drop server --concurrency 1", "--concurrency is not for --drop server"),
            ("storm --url ws://127.0.0.1:1/ws --backoff full --concurrency 1", "cannot be used with"),
            ("resume --url ws://127.0.0.1:1/ws?room={room}", "resume needs --events"),
            (&format!("{RESUME} --behind 0"), "--behind is 0"),
            (&format!("{RESUME} --behind 1000001"), "from 1 to 1000000"),
            (&format!("{RESUME} --watchers 0"), "--watchers"),
            (&format!("{RESUME} --cycles 0"), "--cycles"),
            (&format!("{RESUME} --in-flight 1"), "--in-flight is not for resume"),
            (&format!("{RESUME} --threads 1"), "from 2 to 256"),
            ("resume --url ws://127.0.0.1:1/ws --events http://127.0.0.1:1/events?topic={room}", "no {room}"),
            (&format!("{RESUME} -c 4294967295"), "4294967359 file descriptors"),
            ("fanout --url ws://127.0.0.1:1/ws --events ws://127.0.0.1:1/events", "http://HOST:PORT/events"),
            ("fanout --url ws://127.0.0.1:1/ws -c 2 --publishers 2 --events http://127.0.0.1:1/events", "do not publish"),
            ("fanout --url ws://127.0.0.1:1/ws?room={room} --rooms 2 --events http://127.0.0.1:1/events", "--events 'http"),
        ] {
            let error = plan(words).expect_err(words).to_string();
            assert!(error.contains(says), "{words}: {error}");
        }
    }
}
