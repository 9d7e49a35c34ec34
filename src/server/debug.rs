//! What the admin listener tells of topics, connections and memory, and has done to clients: every shard is asked, and their answers make one.
//!
//! A shard that does not answer in time makes the whole answer an error: half of the truth would be taken for all of it.

use std::cmp::Reverse;
use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use serde_json::{Map, Value, json};

use super::clock::Clock;
use super::lifecycle::{Phase, Readiness};
use crate::bus::StreamState;
use crate::bus::link::LinkShared;
use crate::bus::status::LinkState;
use crate::engine::wakers::Wakers;
use crate::gateway::inspect::{ConnectionOrder, Finding, Inquiry, Question, TopicOrder, Whom};
use crate::gateway::{Command, Shared, Word};
use crate::ids::{ConnId, ConnKey, ShardId};
use crate::limits::Limits;
use crate::proto::http::{Head, Response, query_pairs};
use crate::proto::topic::TopicName;
use crate::proto::ws::CloseCode;

/// How long shards may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Questions that may wait for a shard that does not answer: a drain must find room behind them.
pub(super) const WAITING_MAX: usize = 16;
/// Items of an answer, unless asked for more or fewer.
const ITEMS: usize = 20;
/// The longest reason of a disconnect: with the hint before it, it fits a close frame.
const REASON_BYTES_MAX: usize = 100;

/// The ways to the shards, once they serve.
pub struct Doors {
    /// Commands of each.
    pub commands: Vec<Sender<Command>>,
    /// How they are woken.
    pub wakers: Arc<Wakers>,
}

/// The operator's view.
pub struct Debug {
    /// The process's clock.
    pub clock: Clock,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// How far the gateway is.
    pub readiness: Arc<Readiness>,
    /// The shards, once they serve.
    pub doors: Arc<OnceLock<Doors>>,
    /// What is known of the connection to NATS, if there is to be one.
    pub nats: Option<Arc<LinkShared>>,
}

/// How long the stream may go unread, where no longer time is borne with for the connection: a reader that was lost is noticed within two seconds.
const STREAM_GRACE_MS: u64 = 5_000;

type Answered<T> = Result<T, Response>;

impl Debug {
    /// Why this process is not ready, if that is NATS: there was no connection yet, or none for longer than is borne with.
    pub(super) fn nats_is_missed(&self) -> Option<String> {
        let status = &self.nats.as_ref()?.status;
        let (state, down_ms) = (status.state(), status.down_ms.value());
        let is_missed = match state {
            LinkState::Connected => false,
            LinkState::Disconnected => down_ms >= self.limits.nats_grace_ms,
            LinkState::Connecting | LinkState::GivenUp => true,
        };
        match status.stream() {
            _ if is_missed => {}
            StreamState::None => {}
            StreamState::Fits
                if status.read.value().is_some() && status.unread_ms.value() <= self.limits.nats_grace_ms.max(STREAM_GRACE_MS) => {}
            StreamState::Fits => {
                let seconds = status.unread_ms.value() as f64 / 1000.0;
                return Some(format!("nats stream: not read for {seconds:.1} s; the log says why\n"));
            }
            StreamState::Unknown => return Some("nats stream: not seen yet, or not to be had now; the log says why\n".to_owned()),
            StreamState::Misfits => return Some("nats stream: not as asked for; the log names the field\n".to_owned()),
        }
        let seconds = down_ms as f64 / 1000.0;
        is_missed.then(|| format!("nats {}: no connection for {seconds:.1} s; topics of this process alone are served\n", state.word()))
    }

    /// Whether a path is answered here.
    pub fn knows(path: &str) -> bool {
        let acts = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("/disconnect"));
        matches!(path, "/debug/topics" | "/debug/connections" | "/debug/memory" | "/disconnect" | "/announce")
            || acts("/topics/")
            || acts("/connections/")
    }

    /// The most bytes that a request's body may have; none where it has none.
    pub fn body_bytes_max(&self, path: &str) -> Option<u64> {
        (path == "/announce").then_some(self.limits.message_bytes_max)
    }

    /// Answers a request whose path is known here. `body` is there where [`body_bytes_max`](Self::body_bytes_max) allows one.
    pub fn answer(&self, request: &Head<'_, '_>, body: &[u8]) -> Response {
        let reads = request.path.starts_with("/debug/");
        if reads && !matches!(request.method, "GET" | "HEAD") {
            return Response::error(405, "only GET and HEAD are answered here").header("Allow", "GET, HEAD");
        }
        if !reads && request.method != "POST" {
            return Response::error(405, "only POST is answered here").header("Allow", "POST");
        }
        if request.header("origin").is_some() {
            return Response::error(403, "a page of a browser has no business here");
        }
        let answer = match request.path {
            "/debug/topics" => self.topics(request),
            "/debug/connections" => self.connections(request),
            "/debug/memory" => self.memory(),
            "/announce" => self.announce(body),
            path => self.disconnect(path, request),
        };
        match answer {
            Ok(json) => Response::new(200).body("application/json", format!("{json:#}\n").as_bytes()),
            Err(refusal) => refusal,
        }
    }

    fn topics(&self, request: &Head<'_, '_>) -> Answered<Value> {
        let sort = parameter(request, "sort").unwrap_or_else(|| "subscribers".to_owned());
        let order = match &*sort {
            "subscribers" => TopicOrder::Subscribers,
            "messages" => TopicOrder::Messages,
            "bytes" => TopicOrder::Bytes,
            "lag" => TopicOrder::Lag,
            _ => return Err(Response::error(400, "sort is one of subscribers, messages, bytes (of the history), lag")),
        };
        let limit = self.limit(request)?;
        let mut topics = Vec::new();
        for (_, finding) in self.ask_all(&Question::Topics(order, limit))? {
            if let Finding::Topics(found) = finding {
                topics.extend(found);
            }
        }
        topics.sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.topic.cmp(&b.topic)));
        topics.truncate(limit);
        Ok(json!({ "sort": sort, "topics": topics }))
    }

    fn connections(&self, request: &Head<'_, '_>) -> Answered<Value> {
        let sort = parameter(request, "sort").unwrap_or_else(|| "bytes".to_owned());
        let order = match &*sort {
            "bytes" => ConnectionOrder::Bytes,
            "lag" => ConnectionOrder::Lag,
            "drops" => ConnectionOrder::Drops,
            _ => return Err(Response::error(400, "sort is one of bytes (queued), lag (messages queued), drops (gaps told)")),
        };
        let limit = self.limit(request)?;
        let (mut connections, mut closings) = (Vec::new(), Vec::new());
        for (_, finding) in self.ask_all(&Question::Connections(order, limit))? {
            if let Finding::Connections(live, ended) = finding {
                connections.extend(live);
                closings.extend(ended);
            }
        }
        connections.sort_by_key(|connection| Reverse(connection.weight));
        connections.truncate(limit);
        closings.sort_by_key(|closing| (Reverse(if order == ConnectionOrder::Drops { closing.dropped } else { 0 }), closing.ended_ms_ago));
        closings.truncate(limit);
        Ok(json!({ "sort": sort, "connections": connections, "closings": closings }))
    }

    fn memory(&self) -> Answered<Value> {
        let mut owners = Map::new();
        let mut sum = 0;
        let mut add = |owners: &mut Map<String, Value>, name: &str, bytes: u64| {
            sum += bytes;
            let known = owners.get(name).and_then(Value::as_u64).unwrap_or(0);
            owners.insert(name.to_owned(), (known + bytes).into());
        };
        for (_, finding) in self.ask_all(&Question::Memory)? {
            if let Finding::Memory(found) = finding {
                found.into_iter().for_each(|(name, bytes)| add(&mut owners, name, bytes));
            }
        }
        add(&mut owners, "messages", self.shared.memory.bytes() as u64);
        let Some(process) = Process::read() else {
            return Err(Response::error(
                503,
                "/proc/self/smaps_rollup and /proc/self/statm cannot be read: the process's size is not known",
            ));
        };
        if let Some(file) = process.file {
            add(&mut owners, "mapped", file);
        }
        // What no owner accounts for; below zero where memory was allocated and never touched.
        owners.insert("other".to_owned(), (process.total as i64 - sum as i64).into());
        Ok(json!({
            "process": process.total,
            "measure": process.measure,
            "owners": owners,
            "of_messages": { "histories": self.shared.history_bytes() },
        }))
    }

    fn disconnect(&self, path: &str, request: &Head<'_, '_>) -> Answered<Value> {
        let word = self.word(request)?;
        tracing::info!(path, code = word.code.0, reason = word.reason, "disconnect: asked by the admin listener");
        let subject = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("/disconnect"));
        let whom = if let Some(id) = subject("/connections/") {
            let Some(id) = conn_id(id) else {
                return Err(Response::error(
                    400,
                    "a connection's id is three numbers, SHARD-SLOT-GENERATION, as /debug/connections shows it",
                ));
            };
            let told = self.ask_one(id.shard, Question::Disconnect(Whom::One(id.key), word))?;
            return if told == 0 {
                Err(Response::error(404, "no such connection: it has ended"))
            } else {
                Ok(json!({ "disconnected": told }))
            };
        } else if let Some(name) = subject("/topics/") {
            let name = percent_encoding::percent_decode_str(name).decode_utf8().ok();
            match name.as_deref().map(TopicName::parse) {
                Some(Ok(name)) => Whom::Topic(name),
                Some(Err(error)) => return Err(Response::error(400, &error.to_string())),
                None => return Err(Response::error(400, "the topic's name is not UTF-8")),
            }
        } else if parameter(request, "all").as_deref() == Some("1") {
            Whom::All
        } else {
            return Err(Response::error(400, "this ends every connection of the process: say so with ?all=1"));
        };
        if self.readiness.phase() == Phase::Draining {
            return Err(Response::error(409, "a drain is under way: every client is told to come back elsewhere"));
        }
        let leaving = self.told(&Question::Disconnect(whom, word))?;
        let shards = self.doors.get().map_or(1, |doors| doors.commands.len() as u16);
        Ok(json!({ "leaving": leaving, "window_ms": self.limits.drain_window_ms(leaving, shards) }))
    }

    fn announce(&self, body: &[u8]) -> Answered<Value> {
        let text = match str::from_utf8(body) {
            Ok("") => return Err(Response::error(400, "the body is empty; it is what everybody is told")),
            Ok(text) => text,
            Err(_) => return Err(Response::error(400, "the body is not UTF-8")),
        };
        tracing::info!(bytes = text.len(), "announcement: asked by the admin listener");
        Ok(json!({ "told": self.told(&Question::Announce(Arc::from(text)))? }))
    }

    fn limit(&self, request: &Head<'_, '_>) -> Answered<usize> {
        let max = self.limits.inspect_items_max as usize;
        match parameter(request, "limit").map(|text| text.parse::<usize>()) {
            None => Ok(ITEMS.min(max)),
            Some(Ok(limit)) if (1..=max).contains(&limit) => Ok(limit),
            Some(_) => Err(Response::error(400, &format!("limit is a number from 1 to {max} (limits.inspect_items_max)"))),
        }
    }

    /// What those who are ended are told.
    fn word(&self, request: &Head<'_, '_>) -> Answered<Word> {
        let code = match parameter(request, "code").map(|text| text.parse::<u16>()) {
            None => CloseCode::SERVICE_RESTART,
            Some(Ok(code @ (1012 | 4400..=4599))) => CloseCode(code),
            Some(_) => return Err(Response::error(400, "code is 1012 or 45xx (come back) or 44xx (stop), as in code=4420")),
        };
        let reason = parameter(request, "reason").unwrap_or_default();
        if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
            return Err(Response::error(400, &format!("reason is at most {REASON_BYTES_MAX} bytes of UTF-8 without control characters")));
        }
        Ok(Word { code, reason })
    }

    /// Asks every shard how many connections were told, or will be.
    fn told(&self, question: &Question) -> Answered<u64> {
        let mut sum = 0;
        let mut refused = None;
        for (_, finding) in self.ask_all(question)? {
            match finding {
                Finding::Told(told) => sum += told,
                Finding::Refused(why) => refused = Some(why),
                _ => {}
            }
        }
        match refused {
            None => Ok(sum),
            Some(why) => Err(Response::error(409, why)),
        }
    }

    fn ask_one(&self, shard: ShardId, question: Question) -> Answered<u64> {
        let doors = self.doors()?;
        if shard.index() >= doors.commands.len() {
            return Ok(0);
        }
        match self.ask(doors, &[shard], &question)?.pop() {
            Some((_, Finding::Told(told))) => Ok(told),
            _ => Ok(0),
        }
    }

    fn ask_all(&self, question: &Question) -> Answered<Vec<(ShardId, Finding)>> {
        let doors = self.doors()?;
        let shards: Vec<ShardId> = (0..doors.commands.len()).map(|shard| ShardId(shard as u16)).collect();
        self.ask(doors, &shards, question)
    }

    fn doors(&self) -> Answered<&Doors> {
        self.doors.get().ok_or_else(|| Response::error(503, "starting: not every shard serves yet; try again"))
    }

    /// Asks some shards, and waits until all have answered.
    fn ask(&self, doors: &Doors, shards: &[ShardId], question: &Question) -> Answered<Vec<(ShardId, Finding)>> {
        let deadline = self.clock.now() + ANSWER_WITHIN;
        let (reply, replies) = bounded(shards.len());
        let mut silent = Vec::new();
        for &shard in shards {
            let inquiry = Inquiry { question: question.clone(), reply: reply.clone() };
            let commands = &doors.commands[shard.index()];
            if commands.len() >= WAITING_MAX || commands.try_send(Command::Inspect(Box::new(inquiry))).is_err() {
                silent.push(shard);
            }
            doors.wakers.signal(shard);
        }
        drop(reply);
        let mut found = Vec::with_capacity(shards.len());
        while found.len() + silent.len() < shards.len()
            && let Ok(answer) = replies.recv_timeout(deadline.since(self.clock.now()))
        {
            found.push(answer);
        }
        silent.extend(
            shards
                .iter()
                .filter(|shard| !silent.contains(shard) && found.iter().all(|(from, _)| from != *shard))
                .copied()
                .collect::<Vec<_>>(),
        );
        if silent.is_empty() {
            return Ok(found);
        }
        let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
        let message = format!(
            "no answer within {} s from shard {}: it is stuck or very busy (shardcast_loop_turns_total tells, by shard); what it was asked to do may still happen",
            ANSWER_WITHIN.as_secs(),
            silent.join(", ")
        );
        Err(Response::error(503, &message).header("Retry-After", "1"))
    }
}

/// What the process takes of the machine's memory.
struct Process {
    total: u64,
    measure: &'static str,
    /// Pages that are mapped and not the process's own: the program, its libraries, the rings.
    file: Option<u64>,
}

impl Process {
    /// From smaps_rollup (proc_pid_smaps(5)), or where that cannot be read, from statm.
    fn read() -> Option<Self> {
        if let Ok(rollup) = fs::read_to_string("/proc/self/smaps_rollup")
            && let Some(total) = kib(&rollup, "Pss:")
        {
            return Some(Self { total, measure: "pss", file: kib(&rollup, "Pss_File:") });
        }
        let statm = fs::read_to_string("/proc/self/statm").ok()?;
        let mut pages = statm.split(' ').skip(1).map_while(|field| field.parse::<u64>().ok());
        Some(Self { total: pages.next()? * 4096, measure: "rss", file: pages.next().map(|pages| pages * 4096) })
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn parameter(request: &Head<'_, '_>, name: &str) -> Option<String> {
    let value = query_pairs(request.query.unwrap_or("")).find(|(key, _)| **key == *name.as_bytes()).map(|(_, value)| value)?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// A connection's id as logs print it.
fn conn_id(text: &str) -> Option<ConnId> {
    let mut parts = text.split('-');
    let shard = ShardId(parts.next()?.parse().ok()?);
    let key = ConnKey { slot: parts.next()?.parse().ok()?, generation: parts.next()?.parse().ok()? };
    parts.next().is_none().then_some(ConnId { shard, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connections_id_reads_back_as_it_is_printed() {
        let id = ConnId { shard: ShardId(3), key: ConnKey { slot: 17, generation: 2 } };
        assert_eq!(conn_id(&id.to_string()), Some(id));
        for wrong in ["", "1", "1-2", "1-2-3-4", "a-2-3", "70000-1-1", "1--2", "1-2-99999999999"] {
            assert_eq!(conn_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lines_of_smaps_rollup_are_read_in_bytes() {
        let rollup = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:     5000 kB\nPss:     4000 kB\nPss_File:     1200 kB\n";
        assert_eq!((kib(rollup, "Pss:"), kib(rollup, "Pss_File:"), kib(rollup, "Pss_Shmem:")), (Some(4_096_000), Some(1_228_800), None));
        assert!(Process::read().is_some_and(|process| process.total > 0));
    }

    #[test]
    fn only_its_own_paths_are_known() {
        for path in ["/debug/topics", "/debug/connections", "/debug/memory", "/disconnect", "/announce", "/topics/a%2Fb/disconnect"] {
            assert!(Debug::knows(path), "{path}");
        }
        for path in ["/", "/debug", "/topics/a", "/connections/1-2-3", "/metrics", "/disconnect/all"] {
            assert!(!Debug::knows(path), "{path}");
        }
    }
}
