//! `shardcast pub` and `shardcast sub`: the client (docs/client.md) for terminals and scripts.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::{FAILED, USAGE, fail};
use crate::client::{
    Builder, Client, Closed, Data, Error, Event, Events, Gap, Member, Message, Pending, Presence, PublishOptions, Receipt, Start,
};

/// Where the gateway is, unless it is said.
const URL: &str = "ws://127.0.0.1:8080";
/// The longest line that is read; what the gateway takes is less.
const LINE_BYTES_MAX: u64 = 16 << 20;

pub(super) const SUB_EXAMPLES: &str = "\
Examples:
  shardcast sub lobby                                from ws://127.0.0.1:8080, from now on
  shardcast sub ws://10.0.0.7:8080 a b --json        two topics of another gateway
  shardcast sub lobby --last 10 --count 10           the newest ten, and then the end
  shardcast sub lobby --after k3f9.1042 --json       all behind a position; each message has one
  shardcast sub 'prices.*'                           all topics whose names begin so (wildcards)
  shardcast sub 'ws://127.0.0.1:8080?user=anna' lobby --presence
                                                     who is there, comes and goes, too (presence)

Each message is a line: its data, behind its topic and a tab where there are several topics,
line breaks as \\n, binary data as base64. With --json it is one object with topic, pos,
data or data_b64, and event; or with gap, where messages are missing; or with presence, join
or leave. All else is said on stderr. A connection that is lost comes back, and what was
missed is printed then. `wildcards` and `presence` are the operator's to allow.
Exit codes: 0 done, or Ctrl-C; 1 the gateway has refused; 2 usage.";

pub(super) const PUB_EXAMPLES: &str = "\
Examples:
  shardcast pub lobby 'hello from a terminal'        one message, to ws://127.0.0.1:8080
  tail -F access.log | shardcast pub ws://10.0.0.7:8080 log
  seq 100000 | shardcast pub numbers --receipts      each line a message; where each is, is printed

Lines are sent in order, without waiting for the receipts of those before (--in-flight at
most). Each is published once, whatever becomes of connections. Ctrl-C ends reading, and waits
for the receipts of what was read; a second one does not.
Exit codes: 0 all were published; 1 some were not, and why is said; 2 usage.";

/// What both have.
#[derive(Args, Debug)]
struct Common {
    /// File with a token, which is read before each connection
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Give up after so many tries to connect in a row [default: never]
    #[arg(long, value_name = "N")]
    tries: Option<u32>,
}

/// The words behind `sub`.
#[derive(Args, Debug)]
pub(super) struct Sub {
    /// The gateway's URL [default: ws://127.0.0.1:8080], and names of topics, or what names begin with and a *
    #[arg(required = true, value_name = "[URL] TOPIC")]
    words: Vec<String>,
    /// Begin behind this position, with what is kept (earliest), or so far back (-30s, -5m, -1h)
    #[arg(long, value_name = "POSITION", conflicts_with = "last", allow_hyphen_values = true)]
    after: Option<String>,
    /// Begin with the newest N messages
    #[arg(long, value_name = "N")]
    last: Option<u32>,
    /// Tell who is in the topics too, and who comes and goes, where the operator allows it
    #[arg(long)]
    presence: bool,
    /// Take each TOPIC for a name, also one that ends with *
    #[arg(long)]
    literal: bool,
    /// End after N messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Print each message as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// The words behind `pub`.
#[derive(Args, Debug)]
pub(super) struct Pub {
    /// The gateway's URL [default: ws://127.0.0.1:8080], the name of a topic, and the message; without a message each line of stdin is one
    #[arg(required = true, num_args = 1..=3, value_name = "[URL] TOPIC [DATA]")]
    words: Vec<String>,
    /// Name of the event, for event streams
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Print the receipt of each message, in order: {"pos":"k3f9.17","subscribers":12}
    #[arg(long)]
    receipts: bool,
    /// Messages without a receipt, at most
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// How long a message may be without its receipt, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    within: u64,
    #[command(flatten)]
    common: Common,
}

/// Why it ends, and with what.
struct Failure {
    code: u8,
    text: String,
}

fn usage(text: impl Display) -> Failure {
    Failure { code: USAGE, text: text.to_string() }
}

fn failed(text: impl Display) -> Failure {
    Failure { code: FAILED, text: text.to_string() }
}

/// A URL in front, and the words behind it.
fn split(words: &[String]) -> Result<(&str, &[String]), Failure> {
    match words {
        [url, rest @ ..] if url.contains("://") => {
            if rest.is_empty() {
                Err(usage(format!("behind {url} a topic is missing")))
            } else {
                Ok((url, rest))
            }
        }
        _ => Ok((URL, words)),
    }
}

impl Common {
    fn builder(&self, url: &str) -> Builder {
        let mut builder = Client::builder(url);
        if let Some(tries) = self.tries {
            builder = builder.tries_max(tries);
        }
        if let Some(path) = self.token_file.clone() {
            builder = builder.token(move || {
                let token = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
                async { token.map(|token| token.trim().to_owned()) }
            });
        }
        builder
    }
}

/// Runs one of the two to its end, on this thread.
fn run(work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, error),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => fail(code, text),
    }
}

/// Ctrl-C and SIGTERM.
struct Interrupts(Signal, Signal);

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        Ok(Self(signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?))
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

// ---- sub --------------------------------------------------------------------------------------------------------------------------------

/// `shardcast sub`.
pub(super) fn sub(ask: Sub) -> ExitCode {
    run(async move {
        let (url, topics) = split(&ask.words)?;
        let start = match (&ask.after, ask.last) {
            (None, None) => Start::Latest,
            (None, Some(last)) => Start::Last(last),
            (Some(after), _) => begin(after)?,
        };
        if matches!(start, Start::After(_)) && topics.len() > 1 {
            return Err(usage("a position is of one topic; ask for each topic by itself, or begin with --last or --after -5m"));
        }
        let (patterns, names): (Vec<&String>, Vec<&String>) = topics.iter().partition(|topic| topic.ends_with('*') && !ask.literal);
        if let Some(pattern) = patterns.first() {
            let taken = "with --literal it is taken for the name of a topic";
            if start != Start::Latest {
                return Err(usage(format!("{pattern:?} is a pattern, which begins with what is published from now on; {taken}")));
            }
            if ask.presence {
                return Err(usage(format!("{pattern:?} is a pattern, and who is there is told of topics by their names; {taken}")));
            }
        }
        let mut builder = ask.common.builder(url);
        for name in names {
            builder = match ask.presence {
                true => builder.subscribe_with_presence(name, start.clone()),
                false => builder.subscribe(name, start.clone()),
            };
        }
        for pattern in &patterns {
            builder = builder.subscribe_to_pattern(*pattern);
        }
        let (client, mut events) = builder.start().map_err(usage)?;
        let printer = Printer { json: ask.json, with_topic: topics.len() > 1 || !patterns.is_empty() };
        let done = read(&mut events, &printer, ask.count.unwrap_or(u64::MAX)).await;
        if !matches!(&done, Err(Failure { .. })) {
            client.close().await;
        }
        done
    })
}

fn begin(after: &str) -> Result<Start, Failure> {
    let ago = |digits: &str, seconds: u64| {
        digits.parse::<u64>().ok().map(|number| Start::Ago(Duration::from_secs(number.saturating_mul(seconds))))
    };
    let wrong =
        || usage(format!("--after {after:?} is no position such as k3f9.1042, nor earliest, latest or a time such as -30s, -5m, -1h"));
    match after {
        "earliest" => return Ok(Start::Earliest),
        "latest" => return Ok(Start::Latest),
        _ => {}
    }
    if let Some(time) = after.strip_prefix('-') {
        let units = [("s", 1), ("m", 60), ("h", 3600)];
        return units.iter().find_map(|(unit, seconds)| ago(time.strip_suffix(unit)?, *seconds)).ok_or_else(wrong);
    }
    after.parse().map(Start::After).map_err(|_| wrong())
}

/// Prints messages until there were enough, or somebody interrupts.
async fn read(events: &mut Events, printer: &Printer, count: u64) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut left = count;
    while left > 0 {
        let event = match events.try_recv() {
            Some(event) => event,
            // What there is is out before it is waited for more.
            None => {
                if !flushed(out.flush())? {
                    return Ok(());
                }
                tokio::select! {
                    event = events.recv() => event.ok_or_else(|| failed("the client has ended"))?,
                    () = interrupts.recv() => break,
                }
            }
        };
        let line = match event {
            Event::Message(message) => {
                left -= 1;
                Some(printer.message(&message))
            }
            Event::Gap(gap) => printer.gap(&gap),
            Event::Presence(presence) => printer.presence("presence", &presence),
            Event::Join(presence) => printer.presence("join", &presence),
            Event::Leave(presence) => printer.presence("leave", &presence),
            Event::Refused { topic, code, message } => return Err(failed(format!("{topic}: {message} ({code})"))),
            other => {
                tell(other)?;
                None
            }
        };
        if let Some(line) = line
            && !flushed(writeln!(out, "{line}"))?
        {
            return Ok(());
        }
    }
    flushed(out.flush()).map(|_| ())
}

/// Whether somebody still reads what we print.
fn flushed(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        // `shardcast sub a | head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(failed(format!("output cannot be written: {error}"))),
    }
}

/// Says on stderr what is no message.
fn tell(event: Event) -> Result<(), Failure> {
    match event {
        Event::Reconnecting { wait, why } => eprintln!("shardcast: {why}; back in {:.1} s", wait.as_secs_f64()),
        Event::LeftOut { message, .. } => eprintln!("shardcast: {message}"),
        Event::PresenceRefused { topic, message } => eprintln!("shardcast: {topic}: {message}"),
        Event::Announcement(text) => eprintln!("shardcast: the operator says: {text}"),
        Event::Closed(Closed { reason, .. }) => return Err(failed(reason)),
        _ => {}
    }
    Ok(())
}

/// How messages are printed.
struct Printer {
    json: bool,
    with_topic: bool,
}

impl Printer {
    fn message(&self, message: &Message) -> String {
        if !self.json {
            let data = match &message.data {
                Data::Text(text) => text.replace('\n', "\\n").replace('\r', "\\r"),
                Data::Binary(bytes) => STANDARD.encode(bytes),
            };
            return if self.with_topic { format!("{}\t{data}", message.topic) } else { data };
        }
        let text = |text: &str| Value::from(text).to_string();
        let data = match &message.data {
            // As the gateway embeds it.
            Data::Text(data) if data.trim_start().starts_with(['{', '[']) && is_one_line_of_json(data) => format!("\"data\":{data}"),
            Data::Text(data) => format!("\"data\":{}", text(data)),
            Data::Binary(bytes) => format!("\"data_b64\":\"{}\"", STANDARD.encode(bytes)),
        };
        let event = message.event.as_deref().map_or_else(String::new, |event| format!(",\"event\":{}", text(event)));
        format!("{{\"topic\":{},\"pos\":\"{}\",{data}{event}}}", text(&message.topic), message.pos)
    }

    fn gap(&self, gap: &Gap) -> Option<String> {
        let from = gap.from.as_ref().map(ToString::to_string);
        if self.json {
            let gap = json!({"topic": &*gap.topic, "gap": {"from": from, "to": gap.to.to_string(), "reason": gap.reason.to_string()}});
            return Some(gap.to_string());
        }
        let from = from.map_or_else(String::new, |from| format!(" after {from}"));
        eprintln!("shardcast: messages of {}{from} up to {} are missing ({})", gap.topic, gap.to, gap.reason);
        None
    }

    fn presence(&self, kind: &str, presence: &Presence) -> Option<String> {
        let Presence { topic, count, members, scope } = presence;
        if self.json {
            let member = |member: &Member| match &member.user {
                Some(user) => json!({"conn": &*member.conn, "user": &**user}),
                None => json!({"conn": &*member.conn}),
            };
            let mut roster = json!({"count": count, "scope": &**scope});
            if let Some(members) = members {
                roster["members"] = members.iter().map(member).collect();
            }
            return Some(json!({"topic": &**topic, kind: roster}).to_string());
        }
        let members = named(members.as_deref().unwrap_or_default());
        match kind {
            "join" => eprintln!("shardcast: {members} came to {topic}, {count} are there"),
            "leave" => eprintln!("shardcast: {members} left {topic}, {count} are there"),
            _ if members.is_empty() => eprintln!("shardcast: {count} are in {topic}"),
            _ => eprintln!("shardcast: {count} are in {topic}: {members}"),
        }
        None
    }
}

/// Members in words: what they call themselves, and their connections.
fn named(members: &[Member]) -> String {
    let name = |member: &Member| match &member.user {
        Some(user) => format!("{user} ({})", member.conn),
        None => member.conn.to_string(),
    };
    members.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn is_one_line_of_json(text: &str) -> bool {
    !text.contains(['\n', '\r']) && serde_json::from_str::<&RawValue>(text).is_ok()
}

// ---- pub --------------------------------------------------------------------------------------------------------------------------------

/// `shardcast pub`.
pub(super) fn publish(ask: Pub) -> ExitCode {
    run(async move {
        let (url, words) = split(&ask.words)?;
        let (topic, data) = match words {
            [topic] => (topic.as_str(), None),
            [topic, data] => (topic.as_str(), Some(data.as_str())),
            _ => return Err(usage("a topic and a message were expected, and more came; quote a message of several words")),
        };
        let within = Duration::from_secs(ask.within);
        let builder = ask.common.builder(url).answer_within(within).unanswered_max(usize::from(ask.in_flight));
        let (client, events) = builder.start().map_err(usage)?;
        let lines = match data {
            Some(data) => {
                let (lines, taken) = mpsc::channel(1);
                lines.try_send(Ok(Data::from(data))).expect("there is room for one");
                taken
            }
            None => stdin_lines(),
        };
        let names_lines = data.is_none();
        let publisher =
            Publisher { client, topic, event: ask.event, names_lines, prints: ask.receipts, sent: 0, failed: 0, flying: VecDeque::new() };
        publisher.run(lines, events, usize::from(ask.in_flight)).await
    })
}

/// The lines of stdin, from a thread of their own: nothing else can wait for a terminal.
fn stdin_lines() -> mpsc::Receiver<io::Result<Data>> {
    let (lines, taken) = mpsc::channel(64);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => break,
                Ok(_) if line.len() as u64 > LINE_BYTES_MAX => {
                    Err(io::Error::new(ErrorKind::InvalidData, format!("a line is over {LINE_BYTES_MAX} bytes")))
                }
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    Ok(String::from_utf8(line).map_or_else(|error| Data::from(error.into_bytes()), Data::from))
                }
                Err(error) => Err(error),
            };
            let is_end = line.is_err();
            if lines.blocking_send(line).is_err() || is_end {
                break;
            }
        }
    });
    taken
}

struct Publisher<'a> {
    client: Client,
    topic: &'a str,
    event: Option<String>,
    names_lines: bool,
    prints: bool,
    sent: u64,
    failed: u64,
    /// Those without a receipt, the oldest first, by their numbers.
    flying: VecDeque<(u64, Pending)>,
}

impl Publisher<'_> {
    async fn run(mut self, mut lines: mpsc::Receiver<io::Result<Data>>, mut events: Events, in_flight: usize) -> Result<(), Failure> {
        let mut interrupts = Interrupts::new()?;
        let (mut reads, mut interrupted, mut broken) = (true, false, None);
        while reads || !self.flying.is_empty() {
            tokio::select! {
                line = lines.recv(), if reads && self.flying.len() < in_flight => match line {
                    None => reads = false,
                    Some(Ok(data)) => self.send(data).await?,
                    Some(Err(error)) => {
                        broken = Some(format!("stdin: {error}"));
                        reads = false;
                    }
                },
                receipt = oldest(&mut self.flying), if !self.flying.is_empty() => {
                    let (number, _) = self.flying.pop_front().expect("its receipt has come");
                    self.settle(number, receipt)?;
                }
                event = events.recv() => match event {
                    Some(event) => tell(event)?,
                    None => return Err(failed("the client has ended")),
                },
                () = interrupts.recv() => {
                    if interrupted {
                        return Err(failed(format!("interrupted; {} have no receipt", self.flying.len())));
                    }
                    (interrupted, reads) = (true, false);
                }
            }
        }
        self.client.close().await;
        match (broken, self.failed) {
            (Some(error), _) => Err(failed(error)),
            (None, 0) => Ok(()),
            (None, count) if self.names_lines => Err(failed(format!("{count} of {} lines were not published", self.sent))),
            (None, _) => Err(failed("it was not published")),
        }
    }

    async fn send(&mut self, data: Data) -> Result<(), Failure> {
        self.sent += 1;
        let options = PublishOptions { event: self.event.clone(), ..PublishOptions::default() };
        match self.client.send(self.topic, data, options).await {
            Ok(pending) => self.flying.push_back((self.sent, pending)),
            Err(error) => self.settle(self.sent, Err(error))?,
        }
        Ok(())
    }

    fn settle(&mut self, number: u64, receipt: Result<Receipt, Error>) -> Result<(), Failure> {
        match receipt {
            Ok(Receipt { pos, subscribers, duplicate }) if self.prints => {
                let duplicate = if duplicate { ",\"duplicate\":true" } else { "" };
                let mut out = io::stdout().lock();
                flushed(writeln!(out, "{{\"pos\":\"{pos}\",\"subscribers\":{subscribers}{duplicate}}}")).map(|_| ())
            }
            Ok(_) => Ok(()),
            // There will be no other answer to anything.
            Err(Error::Closed(closed)) => Err(failed(closed)),
            Err(error) => {
                self.failed += 1;
                let line = if self.names_lines { format!("line {number}: ") } else { String::new() };
                eprintln!("shardcast: {line}{error}");
                Ok(())
            }
        }
    }
}

/// The receipt of the oldest.
async fn oldest(flying: &mut VecDeque<(u64, Pending)>) -> Result<Receipt, Error> {
    match flying.front_mut() {
        Some((_, pending)) => pending.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_in_either_form() {
        let message = |data: Data| Message { topic: "a".into(), pos: "k.1".parse().expect("a position"), data, event: Some("e".into()) };
        for (data, plain, json) in [
            (Data::from("two\nlines \\"), "two\\nlines \\", r#""data":"two\nlines \\""#),
            (Data::from(r#"{"n": 1}"#), r#"{"n": 1}"#, r#""data":{"n": 1}"#),
            (Data::from("{\n}"), "{\\n}", r#""data":"{\n}""#),
            (Data::from("{ no json"), "{ no json", r#""data":"{ no json""#),
            (Data::from(vec![0, 255]), "AP8=", r#""data_b64":"AP8=""#),
        ] {
            let message = message(data);
            let printer = |json, with_topic| Printer { json, with_topic }.message(&message);
            assert_eq!(printer(false, false), plain);
            assert_eq!(printer(false, true), format!("a\t{plain}"));
            assert_eq!(printer(true, true), format!(r#"{{"topic":"a","pos":"k.1",{json},"event":"e"}}"#));
        }
    }

    #[test]
    fn where_to_begin_is_a_position_a_word_or_a_time() {
        let seconds = |seconds| Start::Ago(Duration::from_secs(seconds));
        for (text, start) in [
            ("earliest", Start::Earliest),
            ("latest", Start::Latest),
            ("-30s", seconds(30)),
            ("-5m", seconds(300)),
            ("-1h", seconds(3600)),
            ("k3f9.7", Start::After("k3f9.7".parse().expect("a position"))),
        ] {
            assert_eq!(begin(text).map_err(|failure| failure.text), Ok(start));
        }
        for text in ["", "yesterday", "-", "-5", "-5d", "--5s", "k3f9"] {
            assert!(begin(text).is_err_and(|failure| failure.code == USAGE && failure.text.contains(&format!("{text:?}"))), "{text}");
        }
    }

    #[test]
    fn a_url_stands_in_front_or_is_left_out() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (given, url, rest) in
            [(&["a", "b"][..], URL, &["a", "b"][..]), (&["ws://h", "a"], "ws://h", &["a"]), (&["a", "ws://h"], URL, &["a", "ws://h"])]
        {
            let given = words(given);
            let (found, left) = split(&given).map_err(|failure| failure.text).expect("right");
            assert_eq!((found, left), (url, &words(rest)[..]));
        }
        assert!(split(&words(&["ws://h"])).is_err_and(|failure| failure.code == USAGE));
    }
}
