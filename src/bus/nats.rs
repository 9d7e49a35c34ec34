//! The NATS core: one thread with the connection, between the shards and the servers.
//!
//! Three kinds of tasks on one thread: the pump takes what shards ask for and hands it to the client; a task for each topic takes what
//! comes for it and puts it on its way to the topic's home; the watch sees to the state of the connection. The pump waits when the client has enough to
//! send, which is how a slow or absent server fills the outboxes. The other tasks never wait, so what the client has read is never long with us.
//!
//! Every message carries the node that it comes from, and its number there. The connection asks for no echo of what it has sent, which saves the way; the header is
//! what makes sure: a server that was frozen handles what a lost connection had sent beside the next one. So its node may hear itself, and others may
//! hear the old behind the new: what comes behind a later message of its node is left out, and each node's order holds.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use nats::client::{PublishErrorKind, RequestErrorKind};
use nats::connection::State;
use nats::{Client, ClientError, ConnectOptions, Event, HeaderMap, ServerAddr, Subject, Subscriber};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle, LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::StreamState;
use super::ends::Ends;
use super::envelope::{self, NODE};
use super::fetch::fetch;
use super::link::{CoreLane, LinkShared, Notice, Outgoing, Port, Request, link};
use super::options::Options;
use super::reader::{Ask, Reader};
use super::status::{LinkState, Status};
use super::stream::Wanted;
use super::writer::Writer;
use crate::ids::{ShardId, TopicKey};
use crate::limits::Limits;

/// What the client's own lines are logged under.
const CLIENT_LOG: &str = "async_nats";
/// Messages that the client holds before the pump waits.
const CLIENT_MESSAGES: usize = 256;
/// Bytes that it reads at once. All that it reads before our tasks have their turn waits with it, which is a hundred times as much at most.
const READ_BYTES: u16 = 16 * 1024;
/// Messages of one topic that wait with it; more than it reads before we have our turn.
const TOPIC_MESSAGES: usize = 65_536;
/// What the client tells us and we have not seen.
const EVENTS: usize = 256;
/// How long a server may take to answer a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Requests of one shard before the next one's.
const BURST: usize = 64;
/// Nodes of which a topic knows the last message; beyond it the one that it has heard of first is forgotten.
const NODES_MAX: usize = 256;
/// How often the watch looks by itself.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether the stream is still there, and as asked for; but for who has said that tries may come less often.
const STREAM_LOOK: Duration = Duration::from_secs(2);
/// Requests for messages of the past that the stream is asked at once: behind live traffic, and not in its place.
const FETCHES: usize = 4;
/// How often it is looked whether all is acknowledged, at the end.
const SETTLE: Duration = Duration::from_millis(5);
/// How long the last messages may take at the end.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// A core that is about to start.
pub struct Core {
    lanes: Vec<CoreLane>,
    options: ConnectOptions,
    servers: Vec<ServerAddr>,
    notify: Arc<Notify>,
    wake: Box<dyn Fn(ShardId) + Send>,
    message_bytes_max: u64,
    stream: Option<Wanted>,
    limits: Limits,
    /// From one try to the next.
    retry: Duration,
}

/// Joins `shards` shards to a core, which `run` starts. `node` is a number that no other node has; `wake` wakes a shard from any thread.
///
/// # Errors
/// A sentence: a file with a secret that cannot be read, an address that cannot be used.
pub fn prepare(
    options: &Options,
    limits: &Limits,
    shards: u16,
    node: u64,
    wake: impl Fn(ShardId) + Send + 'static,
) -> Result<(Vec<Port>, Core), String> {
    let servers = options.servers.iter().map(|url| url.parse().map_err(|error| format!("nats: {url} is not a server: {error}")));
    let servers = servers.collect::<Result<Vec<ServerAddr>, String>>()?;
    // One provider of cryptography for everything here; who has installed it before wins, and it is the same.
    let _ = nats::rustls::crypto::ring::default_provider().install_default();
    let (wait, attempts_max) = (Duration::from_millis(limits.nats_reconnect_wait_ms), limits.nats_reconnects_max as usize);
    let client = identify(ConnectOptions::new(), options)?
        .name("shardcast")
        .no_echo()
        .retry_on_initial_connect()
        .ping_interval(Duration::from_millis(limits.nats_ping_ms))
        .connection_timeout(CONNECT_WITHIN)
        .client_capacity(CLIENT_MESSAGES)
        .subscription_capacity(TOPIC_MESSAGES)
        .read_buffer_capacity(READ_BYTES)
        .max_reconnects((attempts_max > 0).then_some(attempts_max))
        .reconnect_delay_callback(move |attempt| if attempt <= 1 { Duration::ZERO } else { wait.mul_f64(0.75 + 0.5 * fastrand::f64()) });
    let client = [&options.ca].into_iter().flatten().fold(client, |client, file| client.add_root_certificates(file.clone()));
    let client = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => client.add_client_certificate(cert.clone(), key.clone()),
        _ => client,
    };
    let notify = Arc::new(Notify::new());
    let rouse = Arc::clone(&notify);
    let (ports, lanes) = link(shards, limits, node, move || rouse.notify_one());
    if options.stream.is_some() {
        ports[0].status().set_stream(StreamState::Unknown);
    }
    let core = Core {
        lanes,
        options: client,
        servers,
        notify,
        wake: Box::new(wake),
        message_bytes_max: limits.message_bytes_max,
        stream: Wanted::new(options, limits),
        limits: limits.clone(),
        retry: wait,
    };
    Ok((ports, core))
}

/// Says who we are.
fn identify(client: ConnectOptions, options: &Options) -> Result<ConnectOptions, String> {
    let secret = |what: &str, file: &Path| {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{what}: {} cannot be read: {error}", file.display()))?;
        Ok::<String, String>(text.trim_end_matches(['\r', '\n']).to_owned())
    };
    if let Some(file) = &options.creds {
        let creds = secret("nats.creds", file)?;
        return client.credentials(&creds).map_err(|error| format!("nats.creds: {} has no credentials: {error}", file.display()));
    }
    if let Some(file) = &options.nkey {
        return Ok(client.nkey(secret("nats.nkey", file)?));
    }
    if let Some(file) = &options.token {
        return Ok(client.token(secret("nats.token", file)?));
    }
    if let (Some(user), Some(file)) = (&options.user, &options.password) {
        return Ok(client.user_and_password(user.clone(), secret("nats.password", file)?));
    }
    Ok(client)
}

impl Core {
    /// The body of the core's thread: connects, and carries messages until the process ends (`LinkShared::stop`) and what waits has gone.
    ///
    /// # Errors
    /// When the thread cannot have a runtime.
    pub fn run(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(2).build()?;
        runtime.block_on(LocalSet::new().run_until(self.serve()));
        // Whatever blocks (the look-up of a host) is not waited for.
        runtime.shutdown_background();
        Ok(())
    }

    async fn serve(self) {
        let (into, mut events) = mpsc::channel(EVENTS);
        let options = self.options.event_callback(move |event| {
            // One that finds no room is made up for by the watch, which looks by itself.
            let _ = into.try_send(event);
            std::future::ready(())
        });
        let client = match options.connect(self.servers).await {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "NATS cannot be used");
                return;
            }
        };
        let Some(shared) = self.lanes.first().map(|lane| Arc::clone(lane.shared())) else { return };
        let ends = Rc::new(Ends { lanes: self.lanes.into_iter().map(RefCell::new).collect(), wake: self.wake });
        let kept = self.stream.as_ref().map(|wanted| {
            let (asks, asked) = mpsc::unbounded_channel();
            let stream = wanted.name().to_owned();
            let (link, node) = (Arc::clone(&shared), shared.status.node);
            let reader =
                Reader::new(client.clone(), Rc::clone(&ends), Arc::clone(&link), asked, stream.clone(), node, self.message_bytes_max);
            spawn_local(reader.run());
            let writer = Writer::new(client.clone(), Rc::clone(&ends), node, &self.limits);
            spawn_local(Rc::clone(&writer).listen(Arc::clone(&link)));
            spawn_local(Rc::clone(&writer).send(link));
            Kept { asks, writer, stream: Rc::from(stream), fetches: Rc::new(Semaphore::new(FETCHES)) }
        });
        let writer = kept.as_ref().map(|kept| Rc::clone(&kept.writer));
        let mut pump: JoinHandle<()> = spawn_local(
            Pump {
                kept,
                client: client.clone(),
                ends: Rc::clone(&ends),
                node: shared.status.node,
                sent: 0,
                asked: 0,
                topics: HashMap::new(),
                message_bytes_max: self.message_bytes_max,
            }
            .run(self.notify),
        );
        if let Some(wanted) = self.stream {
            shared.status.set_stream(StreamState::Unknown);
            spawn_local(see_to_stream(wanted, client.clone(), Arc::clone(&shared), self.retry));
        }
        let mut watch = Watch { client: client.clone(), ends, server: String::new(), dropped_known: 0, stopping_for: Duration::ZERO };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = &mut pump => break,
                Some(event) = events.recv() => watch.see(event),
                _ = looks.tick() => {
                    watch.look();
                    if watch.stopping_for > STOP_WITHIN {
                        break;
                    }
                }
            }
        }
        let settle = async {
            while writer.as_ref().is_some_and(|writer| !writer.is_idle()) {
                sleep(SETTLE).await;
            }
        };
        let _ = timeout(STOP_WITHIN, settle).await;
        let waits = shared.outbox_entries();
        let is_flushed = match shared.status.state() {
            LinkState::Connected => timeout(STOP_WITHIN, client.flush()).await.is_ok_and(|flushed| flushed.is_ok()),
            // What the client held went with the connection.
            LinkState::Disconnected => false,
            LinkState::Connecting | LinkState::GivenUp => true,
        };
        if waits > 0 || !is_flushed {
            tracing::warn!(messages = waits, "not everything has reached NATS before the end");
        }
    }
}

/// Makes the stream, or looks whether it is as asked for; again and again, because others may change or delete it.
async fn see_to_stream(wanted: Wanted, client: Client, shared: Arc<LinkShared>, retry: Duration) {
    let status = &shared.status;
    let mut said = None;
    loop {
        if !status.is_connected() {
            sleep(LOOK).await;
            continue;
        }
        let (state, why) = wanted.ensure(&client).await;
        if let Some(why) = &why
            && said.as_ref() != Some(why)
        {
            tracing::warn!(stream = wanted.name(), "the stream {why}");
        }
        if state == StreamState::Fits && status.stream() != StreamState::Fits {
            tracing::info!(stream = wanted.name(), "the stream is as asked for");
        }
        status.set_stream(state);
        said = why;
        sleep(if state == StreamState::Fits { STREAM_LOOK.max(retry) } else { retry }).await;
    }
}

/// Asks for what nobody has: that it is so the server says itself, once it has handled what was sent before. (The client tells nobody of its pings.)
async fn ask(client: Client, shared: Arc<LinkShared>, number: u64) {
    match client.request(client.new_inbox(), Bytes::new()).await {
        Err(error) if error.kind() != RequestErrorKind::NoResponders => tracing::debug!(%error, "the NATS server gives no word"),
        _ => shared.status.answer(number),
    }
}

/// What there is besides where a stream gives messages their places.
struct Kept {
    asks: mpsc::UnboundedSender<Ask>,
    writer: Rc<Writer>,
    stream: Rc<str>,
    fetches: Rc<Semaphore>,
}

/// What takes the shards' requests.
struct Pump {
    kept: Option<Kept>,
    client: Client,
    ends: Rc<Ends>,
    node: u64,
    /// Messages so far: their numbers.
    sent: u64,
    /// Times that the server was asked for its word.
    asked: u64,
    /// The tasks of the topics that NATS is asked for.
    topics: HashMap<(ShardId, TopicKey), AbortHandle>,
    message_bytes_max: u64,
}

impl Kept {
    /// Takes a request that is the stream's affair; others are given back.
    fn carry_out(&self, pump: &Pump, shard: ShardId, request: Request) -> Option<Request> {
        match request {
            Request::Publish(message) if message.tracked.is_some() => self.writer.take(shard, message),
            Request::Publish(message) => return Some(Request::Publish(message)),
            // The reader lives as long as the core.
            Request::Subscribe { topic, subject, after } => drop(self.asks.send(Ask::Subscribe { shard, topic, subject, after })),
            Request::Unsubscribe { topic } => drop(self.asks.send(Ask::Unsubscribe { shard, topic })),
            Request::Fetch { token, subject, after, upto } => {
                let (client, ends) = (pump.client.clone(), Rc::clone(&pump.ends));
                let (stream, fetches) = (Rc::clone(&self.stream), Rc::clone(&self.fetches));
                let (node, bytes_max) = (pump.node, pump.message_bytes_max);
                spawn_local(async move {
                    let Ok(_turn) = fetches.acquire().await else { return };
                    let fetched = fetch(client, node, &stream, &subject, after, upto, bytes_max).await;
                    let count = fetched.messages.len() as u64;
                    ends.lane(shard).shared().status.fetched.add(count);
                    ends.tell(shard, Notice::Fetched { token, fetched: Box::new(fetched) }).await;
                });
            }
        }
        None
    }
}

impl Pump {
    async fn run(mut self, notify: Arc<Notify>) {
        let shards: Vec<ShardId> = self.ends.lanes.iter().map(|lane| lane.borrow().shard).collect();
        let Some(shared) = self.ends.lanes.first().map(|lane| Arc::clone(lane.borrow().shared())) else { return };
        loop {
            notify.notified().await;
            self.ends.lane(shards[0]).answer_bell();
            let asked = shared.status.asked();
            let mut is_idle = false;
            while !is_idle {
                is_idle = true;
                for &shard in &shards {
                    for _ in 0..BURST {
                        let request = self.ends.lane(shard).take();
                        let Some(request) = request else { break };
                        is_idle = false;
                        self.carry_out(shard, request, &shared.status).await;
                    }
                }
            }
            if asked > self.asked {
                self.asked = asked;
                spawn_local(ask(self.client.clone(), Arc::clone(&shared), asked));
            }
            if shared.status.is_stopping() {
                return;
            }
        }
    }

    async fn carry_out(&mut self, shard: ShardId, request: Request, status: &Status) {
        let request = match &self.kept {
            Some(kept) => match kept.carry_out(self, shard, request) {
                Some(request) => request,
                None => return,
            },
            None => request,
        };
        match request {
            Request::Fetch { .. } => unreachable!("only where there is a stream"),
            Request::Publish(message) => self.publish(message, status).await,
            Request::Subscribe { topic, subject, .. } => match self.client.subscribe(Subject::from(&*subject)).await {
                Ok(subscriber) => {
                    let task = Listener {
                        shard,
                        topic,
                        ends: Rc::clone(&self.ends),
                        node: self.node,
                        nodes: VecDeque::new(),
                        message_bytes_max: self.message_bytes_max,
                    };
                    self.topics.insert((shard, topic), spawn_local(task.run(subscriber)).abort_handle());
                }
                Err(error) => {
                    tracing::error!(%subject, %error, "NATS cannot be asked for a topic: what is published there does not come here")
                }
            },
            Request::Unsubscribe { topic } => {
                if let Some(task) = self.topics.remove(&(shard, topic)) {
                    task.abort();
                }
            }
        }
    }

    async fn publish(&mut self, message: Outgoing, status: &Status) {
        let mut headers = envelope::headers(&message);
        let Outgoing { subject, payload, .. } = message;
        self.sent += 1;
        headers.insert(NODE, format!("{:016x}-{}", self.node, self.sent));
        match self.client.publish_with_headers(Subject::from(&*subject), headers, payload).await {
            Ok(()) => status.published.add(1),
            Err(error) => {
                status.refused.add(1);
                if error.kind() == PublishErrorKind::MaxPayloadExceeded {
                    tracing::warn!(%subject, %error, "a message was not sent to NATS, though the server before this one would have taken it");
                } else {
                    tracing::warn!(%subject, %error, "a message was not sent to NATS");
                }
            }
        }
    }
}

/// What takes the messages of one topic.
struct Listener {
    shard: ShardId,
    topic: TopicKey,
    ends: Rc<Ends>,
    node: u64,
    /// The last message of each node.
    nodes: VecDeque<(u64, u64)>,
    message_bytes_max: u64,
}

impl Listener {
    async fn run(mut self, mut subscriber: Subscriber) {
        let shared = Arc::clone(self.ends.lane(self.shard).shared());
        while let Some(message) = poll_fn(|context| Pin::new(&mut subscriber).poll_next(context)).await {
            let headers = message.headers.as_ref();
            self.take(headers, message.payload, &shared.status);
        }
    }

    /// Whether a message of this number comes behind all of its node before it.
    fn is_next(&mut self, node: u64, number: u64) -> bool {
        match self.nodes.iter_mut().find(|(known, _)| *known == node) {
            Some((_, last)) if number <= *last => return false,
            Some((_, last)) => *last = number,
            None => {
                self.nodes.truncate(NODES_MAX - 1);
                self.nodes.push_front((node, number));
            }
        }
        true
    }

    fn take(&mut self, headers: Option<&HeaderMap>, payload: Bytes, status: &Status) {
        match envelope::origin(headers) {
            Some((node, _)) if node == self.node => return status.echoes.add(1),
            Some((node, number)) if !self.is_next(node, number) => return status.late.add(1),
            _ => status.received.add(1),
        }
        if payload.len() as u64 > self.message_bytes_max {
            return status.oversized.add(1);
        }
        if !self.ends.deliver(self.shard, envelope::open(self.topic, headers, payload)) {
            status.dropped.add(1);
        }
    }
}

/// What sees to the state of the connection.
struct Watch {
    client: Client,
    ends: Rc<Ends>,
    /// The name of the server, for as long as it is known.
    server: String,
    /// Messages that had found no room when that was last said.
    dropped_known: u64,
    stopping_for: Duration,
}

impl Watch {
    fn see(&mut self, event: Event) {
        match event {
            Event::Connected => self.connected(),
            Event::Disconnected => self.disconnected(),
            Event::SlowConsumer(_) => self.with_status(|status| status.dropped.add(1)),
            Event::ClientError(ClientError::MaxReconnects) => {
                self.enter(LinkState::GivenUp);
                tracing::error!(
                    "as many tries to reach NATS have failed as may (limits.nats_reconnects_max): nobody tries again before the next start"
                );
            }
            Event::ClientError(error) => {
                tracing::warn!(%error, "NATS cannot be reached; with --log info,{CLIENT_LOG}=debug each server is named with the reason");
            }
            Event::ServerError(error) => tracing::warn!(server = self.server, %error, "NATS has an objection"),
            Event::LameDuckMode => tracing::info!(server = self.server, "the NATS server is about to shut down"),
            Event::Draining | Event::Closed => {}
        }
    }

    fn connected(&mut self) {
        let info = self.client.server_info();
        if self.enter(LinkState::Connected) == LinkState::Connected {
            return;
        }
        let again = self.with_status(|status| {
            status.connects.add(1);
            status.max_payload.set(info.max_payload as u64);
            status.down_ms.set(0);
            status.connects.value() > 1
        });
        self.server = info.server_name;
        let (host, port, version, max_payload) = (info.host, info.port, info.version, info.max_payload);
        let what = if again { "connected to NATS again" } else { "connected to NATS" };
        tracing::info!(server = self.server, %host, port, %version, max_payload, "{what}");
    }

    fn disconnected(&mut self) {
        if self.enter(LinkState::Disconnected) == LinkState::Connected {
            self.with_status(|status| status.disconnects.add(1));
            tracing::warn!(server = self.server, "the connection to NATS is lost");
        }
    }

    /// Looks whether it is as the last event has said, how long there has been no connection, and what was dropped.
    fn look(&mut self) {
        let state = self.with_status(Status::state);
        match (self.client.connection_state(), state) {
            (State::Connected, LinkState::Connecting | LinkState::Disconnected) => self.connected(),
            (State::Disconnected, LinkState::Connected) => self.disconnected(),
            _ => {}
        }
        let (dropped, is_stopping) = self.with_status(|status| {
            if !status.is_connected() {
                status.down_ms.add(LOOK.as_millis() as u64);
            }
            if status.stream() == StreamState::None || status.reading.value() > 0 {
                status.unread_ms.set(0);
            } else {
                status.unread_ms.add(LOOK.as_millis() as u64);
            }
            (status.dropped.value(), status.is_stopping())
        });
        if is_stopping {
            self.stopping_for += LOOK;
        }
        if dropped > self.dropped_known {
            let messages = dropped - std::mem::replace(&mut self.dropped_known, dropped);
            tracing::warn!(
                messages,
                "messages from NATS were dropped: they came faster than they could be given to their topics (limits.nats_inbox_messages, nats_inbox_bytes_max)"
            );
        }
    }

    /// It is so now, for everybody to see; what it was before.
    fn enter(&self, state: LinkState) -> LinkState {
        let before = self.with_status(|status| status.set(state));
        if before != state {
            self.ends.nudge();
        }
        before
    }

    fn with_status<T>(&self, look: impl FnOnce(&Status) -> T) -> T {
        let lane = self.ends.lanes.first().expect("there is a shard: the core has looked").borrow();
        look(&lane.shared().status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::status::Count;

    #[test]
    fn what_comes_behind_a_later_message_of_its_node_is_left_out() {
        let (ports, lanes) = link(1, &Limits::default(), 1, || {});
        let ends = Rc::new(Ends { lanes: lanes.into_iter().map(RefCell::new).collect(), wake: Box::new(|_| {}) });
        let topic = TopicKey { slot: 0, generation: std::num::NonZeroU32::MIN };
        let mut listener = Listener { shard: ShardId(0), topic, ends, node: 1, nodes: VecDeque::new(), message_bytes_max: 3 };
        let status = ports[0].status();
        let mut hear = |said: &'static str, from: Option<&str>| {
            let headers = from.map(|from| {
                let mut headers = HeaderMap::new();
                headers.insert(NODE, from);
                headers
            });
            listener.take(headers.as_ref(), Bytes::from_static(said.as_bytes()), status);
            [&status.received, &status.echoes, &status.late, &status.oversized].map(Count::value)
        };
        assert_eq!(hear("a", Some("0000000000000002-5")), [1, 0, 0, 0]);
        assert_eq!(hear("b", Some("0000000000000003-1")), [2, 0, 0, 0], "each node has numbers of its own");
        assert_eq!(hear("c", Some("0000000000000002-4")), [2, 0, 1, 0]);
        assert_eq!(hear("a", Some("0000000000000002-5")), [2, 0, 2, 0]);
        assert_eq!(hear("d", Some("0000000000000002-9")), [3, 0, 2, 0]);
        assert_eq!(hear("e", Some("0000000000000001-9")), [3, 1, 2, 0]);
        for strange in [None, Some("x"), Some("2"), Some("2-"), Some("-2"), Some("99999999999999999-1")] {
            hear("f", strange);
        }
        assert_eq!(hear("large", None), [10, 1, 2, 1], "who does not say is taken");
        for node in 0..1000_u64 {
            assert!(listener.is_next(1000 + node, 1));
        }
        assert_eq!(listener.nodes.len(), NODES_MAX);
    }
}
