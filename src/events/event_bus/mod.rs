//! The durable bus: events between processes, kept by a JetStream stream, handled at least once, in the order of their keys.
//!
//! ```no_run
//! use shardcast::events::EventBus;
//! use shardcast::events::event_bus::{Event, Options, Received, Terms};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = EventBus::connect("nats://127.0.0.1:4222", Options::default()).await?;
//! let mailer = bus
//!     .subscribe_group("orders.*", "mailer", Terms::default(), |order: Received<u64>| async move {
//!         println!("{} {}", order.event.kind, order.event.payload);
//!         Ok::<(), std::io::Error>(())
//!     })
//!     .await?;
//! bus.publish("orders.created", &Event::new("order.created", "shop", 7_u64).with_key("customer-7")).await?;
//! mailer.stop().await;
//! # Ok(()) }
//! ```
//!
//! `event` is the envelope, `subject` where events lie, `order` whose turn it is, `lane` the reader of one durable consumer, `steward` who has which lane by
//! `leases`, `dead` what could not be handled, `terms` the defaults.

mod dead;
mod event;
mod lane;
mod leases;
mod order;
mod steward;
mod subject;
mod terms;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream as Items;
use nats::jetstream::consumer::pull::Config as PullConfig;
use nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use nats::jetstream::context::{ConsumerInfoErrorKind, PublishErrorKind};
use nats::jetstream::message::PublishMessage;
use nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use nats::jetstream::{Context, ContextBuilder};
use nats::{Client, ConnectOptions, ServerAddr};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::dead::DeadLetters;
use self::lane::{ASK_LASTS_MAX, Arrived, Common, Failure};
use self::leases::Leases;
use self::steward::{Post, Steward};
use self::subject::{Subjects, check_name, check_subject};
use self::terms::Counts;
use crate::bus::StreamState;
use crate::bus::stream::{Keys, Wanted};

pub use self::dead::DeadLetter;
pub use self::event::Event;
pub use self::subject::{SubjectError, partition};
pub use self::terms::{Start, Stats, Terms};

/// How long the server may take to answer what is not publishing.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A publish ends with its deadline; the client's own comes behind any of them.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// Partitions at most: each is a consumer.
const PARTITIONS_MAX: u16 = 1024;
/// How long a connection that does not answer is taken for one: three of these.
const PING: Duration = Duration::from_secs(2);
/// Tries to have a stream that another process makes at the same time.
const TRIES: usize = 20;

/// A bus, as all processes that take part have to see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The name of the stream: `EVENTS`. Leases are in another, of this name and `_LEASES`.
    pub stream: String,
    /// What all subjects in the stream begin with: `events`. No two buses of an account may have the same.
    pub prefix: String,
    /// Into how many parts events are divided by their key: 16, at most 1,024. So many processes of one group work at the same time at most. Fixed when the stream is made: another
    /// number is another place for each key.
    pub partitions: u16,
    /// Copies that a cluster keeps: 1.
    pub replicas: usize,
    /// Events that are kept, dead letters among them: 1,000,000. Then the oldest goes, handled or not.
    pub messages_max: i64,
    /// For how long: 7 days.
    pub age: Duration,
    /// For how long a second event of the same id is the same event: 2 min.
    pub duplicates: Duration,
    /// How long a publish may take: 5 s.
    pub publish_within: Duration,
    /// Publishes that wait for their answer at the same time: 1,024. More wait for a place, within their deadline.
    pub publishes_max: usize,
    /// After how long without a word from a process others take its work: 10 s. It is renewed three times in this time.
    pub lease: Duration,
    /// From one try to connect to the next: 2 s, a quarter more or less.
    pub reconnect_wait: Duration,
    /// Tries before it is given up: 60. 0: never.
    pub reconnects_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream: "EVENTS".to_owned(),
            prefix: "events".to_owned(),
            partitions: 16,
            replicas: 1,
            messages_max: 1_000_000,
            age: Duration::from_secs(7 * 24 * 3600),
            duplicates: Duration::from_secs(120),
            publish_within: Duration::from_secs(5),
            publishes_max: 1024,
            lease: Duration::from_secs(10),
            reconnect_wait: Duration::from_secs(2),
            reconnects_max: 60,
        }
    }
}

/// Why there is no bus.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was asked for.
    #[error("the options of an event bus: {0}")]
    Options(String),
    /// A name among them.
    #[error(transparent)]
    Name(#[from] SubjectError),
    /// No server.
    #[error("NATS at {servers} cannot be reached: {reason}")]
    Unreachable {
        /// Those that were tried.
        servers: String,
        /// What the last one said.
        reason: String,
    },
    /// A stream that cannot be had, or is another than asked for.
    #[error("the stream {stream} {reason}")]
    Stream {
        /// Its name.
        stream: String,
        /// What is to be changed.
        reason: String,
    },
}

/// Why an event may not be in the stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PublishError {
    /// Where it was to go.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Its payload is nothing that JSON has words for.
    #[error("the payload of event {id} cannot be written as JSON: {reason}")]
    Payload {
        /// The event's.
        id: String,
        /// What JSON has no word for.
        reason: String,
    },
    /// Larger than the server takes.
    #[error("event {id} is too large for the server: {reason}")]
    TooLarge {
        /// The event's.
        id: String,
        /// Its size and the limit.
        reason: String,
    },
    /// No answer came. It may be stored, or come to be; published again under the same id it is there once.
    #[error("event {id} was not acknowledged within {within:?}; it may be stored all the same: publish it again with the same id")]
    Deadline {
        /// The event's.
        id: String,
        /// What was waited.
        within: Duration,
    },
    /// The server does not take it: the stream is gone, or JetStream is off, or full.
    #[error("event {id} was refused: {reason}")]
    Refused {
        /// The event's.
        id: String,
        /// What the server said.
        reason: String,
    },
}

/// Why nobody was subscribed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubscribeError {
    /// A subject, or the name of a durable.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Terms that do not go together.
    #[error("the terms of {durable}: {reason}")]
    Terms {
        /// Whose.
        durable: String,
        /// What to change.
        reason: String,
    },
    /// The consumer of that name is another one, or cannot be had.
    #[error("the consumer {consumer} {reason}")]
    Consumer {
        /// Its name.
        consumer: String,
        /// What is to be changed.
        reason: String,
    },
}

/// An event is in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Its number there.
    pub sequence: u64,
    /// It was there before, under the same id.
    pub is_duplicate: bool,
}

/// An event, as a handler gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received<T> {
    /// The event.
    pub event: Event<T>,
    /// The subject that it was published to.
    pub subject: String,
    /// Its number in the stream.
    pub sequence: u64,
    /// Which delivery of it this is, from 1 on. Not only failures are delivered again: so is what was under way when a process died, or a partition changed hands.
    pub attempt: u64,
}

/// The next of some items.
async fn next<S: Items + Unpin>(items: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| Pin::new(&mut *items).poll_next(context)).await
}

/// A durable event bus. Clones are handles on the same connection.
#[derive(Clone)]
pub struct EventBus(Arc<Inner>);

struct Inner {
    client: Client,
    publishing: Context,
    asking: Context,
    stream: Stream,
    leases: Stream,
    subjects: Subjects,
    options: Options,
}

impl std::fmt::Debug for EventBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBus").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl EventBus {
    /// Connects to one of these servers (`nats://HOST:PORT`, with commas between), and makes the streams or looks whether they are as asked for. A
    /// connection that is lost is tried again as the options say; meanwhile publishes end with their deadline.
    ///
    /// # Errors
    /// The options do not go together, no server answers, or a stream of that name is another one.
    pub async fn connect(servers: &str, options: Options) -> Result<Self, ConnectError> {
        let wait = options.reconnect_wait;
        let connect = ConnectOptions::new()
            .name("shardcast events")
            .ping_interval(PING)
            .connection_timeout(ANSWER_WITHIN)
            .max_reconnects((options.reconnects_max > 0).then_some(options.reconnects_max))
            .reconnect_delay_callback(move |attempt| if attempt <= 1 { Duration::ZERO } else { wait.mul_f64(0.75 + 0.5 * fastrand::f64()) })
            .event_callback(async |event| match event {
                nats::Event::Connected => tracing::info!("connected to NATS"),
                event => tracing::warn!(%event, "NATS"),
            });
        Self::connect_with(servers, connect, options).await
    }

    /// The same with a connection of your own making: credentials, certificates, and a callback for what becomes of it. Of the options those of the connection do not count.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(servers: &str, connect: ConnectOptions, options: Options) -> Result<Self, ConnectError> {
        check(&options)?;
        let unreachable = |reason: String| ConnectError::Unreachable { servers: servers.to_owned(), reason };
        // One provider of cryptography for everything here; who has installed it before wins.
        let _ = nats::rustls::crypto::ring::default_provider().install_default();
        let addresses = servers.split(',').map(|server| server.trim().parse()).collect::<Result<Vec<ServerAddr>, _>>();
        let addresses = addresses.map_err(|error| unreachable(error.to_string()))?;
        let client = connect.connect(addresses).await.map_err(|error| unreachable(error.to_string()))?;
        Self::over(client, options).await
    }

    /// Over a connection that is there.
    ///
    /// # Errors
    /// The options do not go together, or a stream of that name is another one.
    pub async fn over(client: Client, options: Options) -> Result<Self, ConnectError> {
        check(&options)?;
        let subjects = Subjects::new(&options.prefix, options.partitions);
        let asking = ContextBuilder::new().timeout(ANSWER_WITHIN).build(client.clone());
        let publishing = ContextBuilder::new()
            .timeout(NEVER)
            .ack_timeout(options.publish_within)
            .max_ack_inflight(options.publishes_max)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let stream = stream(&client, &asking, events_stream(&options, &subjects)).await?;
        let leases = self::stream(&client, &asking, leases_stream(&options, &subjects)).await?;
        Ok(Self(Arc::new(Inner { client, publishing, asking, stream, leases, subjects, options })))
    }

    /// Publishes an event, and is done when the stream has it; within the deadline of the options.
    ///
    /// # Errors
    /// See [`PublishError`]. After [`PublishError::Deadline`] nobody knows whether it is stored: publish the same event again.
    pub async fn publish<T: Serialize>(&self, subject: &str, event: &Event<T>) -> Result<Receipt, PublishError> {
        self.publish_within(subject, event, self.0.options.publish_within).await
    }

    /// The same with a deadline of its own, 24 h at most.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn publish_within<T: Serialize>(&self, subject: &str, event: &Event<T>, within: Duration) -> Result<Receipt, PublishError> {
        check_subject(subject, false)?;
        let id = || event.id.clone();
        let bytes = event::encode(event).map_err(|error| PublishError::Payload { id: id(), reason: error.to_string() })?;
        self.store(self.0.subjects.event(subject, event.place()), bytes, &event.id, within).await
    }

    async fn store(&self, subject: String, bytes: Vec<u8>, id: &str, within: Duration) -> Result<Receipt, PublishError> {
        let message = PublishMessage::build().payload(bytes.into()).message_id(id).header("Content-Type", "application/cloudevents+json");
        let stored = async { self.0.publishing.send_publish(subject, message).await?.await };
        match tokio::time::timeout(within, stored).await {
            Ok(Ok(ack)) => Ok(Receipt { sequence: ack.sequence, is_duplicate: ack.duplicate }),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(PublishError::TooLarge { id: id.to_owned(), reason: error.to_string() })
            }
            Ok(Err(error)) => Err(PublishError::Refused { id: id.to_owned(), reason: error.to_string() }),
            Err(_) => Err(PublishError::Deadline { id: id.to_owned(), within }),
        }
    }

    /// Has all events of a subject handled under a name that lasts: who comes back under it goes on where it was. `*` stands for a word, `>` for all that follow.
    ///
    /// One process at a time has the durable; the others that ask for it stand by, and one of them takes over when the first stops or dies. To
    /// share the work among them see [`subscribe_group`](Self::subscribe_group).
    ///
    /// `Ok` of the handler acknowledges the event. After `Err`, or a panic, it comes again later, and the events of its key wait behind it, and no others. After too many of those,
    /// or at once if it cannot be read as a `T`, it goes to the [dead letters](Self::dead_letters). A process that dies may have handled events that it had not
    /// acknowledged yet: handlers have to bear an event twice.
    ///
    /// # Errors
    /// The subject, the name or the terms cannot be used; or the consumer of that name reads something else.
    pub async fn subscribe<T, H, F, E>(
        &self,
        subject: &str,
        durable: &str,
        terms: Terms,
        handler: H,
    ) -> Result<Subscription, SubscribeError>
    where
        T: DeserializeOwned + Send + 'static,
        H: Fn(Received<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + 'static,
    {
        self.enlist(subject, durable, None, terms, handler).await
    }

    /// The same, and the work is shared by all processes that ask for it under the group's name. Each partition of the events is read by one process at a time, so
    /// each key's events are handled in their order by the whole group; when processes come, go or die, partitions change hands.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub async fn subscribe_group<T, H, F, E>(
        &self,
        subject: &str,
        group: &str,
        terms: Terms,
        handler: H,
    ) -> Result<Subscription, SubscribeError>
    where
        T: DeserializeOwned + Send + 'static,
        H: Fn(Received<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + 'static,
    {
        self.enlist(subject, group, Some(self.0.options.partitions), terms, handler).await
    }

    async fn enlist<T, H, F, E>(
        &self,
        subject: &str,
        durable: &str,
        partitions: Option<u16>,
        terms: Terms,
        handler: H,
    ) -> Result<Subscription, SubscribeError>
    where
        T: DeserializeOwned + Send + 'static,
        H: Fn(Received<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + 'static,
    {
        let Inner { client, asking, stream, leases, subjects, options, .. } = &*self.0;
        check_subject(subject, true)?;
        check_name(durable)?;
        terms.check().map_err(|reason| SubscribeError::Terms { durable: durable.to_owned(), reason })?;
        // All of them now: what is published from here on is theirs, whoever reads it.
        let parts: Vec<Option<u16>> = partitions.map_or(vec![None], |partitions| (0..partitions).map(Some).collect());
        let mut posts = Vec::new();
        for part in parts {
            let name = part.map_or_else(|| durable.to_owned(), |part| format!("{durable}-p{part}"));
            let consumer = self.consumer(&name, subjects.filter(part, subject), &terms).await?;
            posts.push(Post { consumer, lease: subjects.lease(durable, &format!("p.{}", part.unwrap_or(0))) });
        }
        let handler = Arc::new(handler);
        let handle = move |arrived: Arrived| {
            let handler = Arc::clone(&handler);
            let handling = async move {
                let Arrived { subject, sequence, attempt, bytes } = arrived;
                let event = event::decode(&bytes).map_err(Failure::Unreadable)?;
                let handled = handler(Received { event, subject, sequence, attempt }).await;
                handled.map_err(|error| Failure::Failed(error.to_string()))
            };
            Box::pin(handling) as Pin<Box<dyn Future<Output = _> + Send>>
        };
        let member = event::fresh_id();
        let common = Arc::new(Common {
            context: asking.clone(),
            stream: stream.clone(),
            subjects: subjects.clone(),
            dead: self.graveyard(),
            durable: durable.to_owned(),
            terms,
            ask_lasts: ASK_LASTS_MAX.min(options.lease / 3),
            counts: Counts::default(),
            handle: Box::new(handle),
        });
        let leases = Leases::new(client.clone(), leases.clone(), options.lease, member.clone());
        let (stop, stopped) = watch::channel(false);
        let steward = Steward::new(Arc::clone(&common), leases, posts, &member, stopped);
        Ok(Subscription { task: tokio::spawn(steward.run()), stop, common })
    }

    /// The consumer of a lane: made, or looked at. Its position is its own; what may change without losing it is changed.
    async fn consumer(&self, name: &str, filter: String, terms: &Terms) -> Result<PullConsumer, SubscribeError> {
        let refused = |reason: String| SubscribeError::Consumer { consumer: name.to_owned(), reason };
        let stream = &self.0.stream;
        let mut wanted = PullConfig {
            durable_name: Some(name.to_owned()),
            filter_subject: filter,
            ack_policy: AckPolicy::Explicit,
            ack_wait: terms.ack_wait,
            // Counted here: the server would let go of what it has delivered too often.
            max_deliver: -1,
            max_ack_pending: i64::try_from(terms.held_max).unwrap_or(i64::MAX),
            deliver_policy: match terms.start {
                Start::All => DeliverPolicy::All,
                Start::New => DeliverPolicy::New,
                Start::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence: start_sequence.max(1) },
                Start::Time(time) => DeliverPolicy::ByStartTime { start_time: time.into() },
            },
            ..PullConfig::default()
        };
        match stream.consumer_info(name).await {
            Ok(found) => {
                let found = found.config;
                if found.filter_subject != wanted.filter_subject {
                    return Err(refused(format!(
                        "reads {:?}, {:?} is asked for; take another name, or delete it",
                        found.filter_subject, wanted.filter_subject
                    )));
                }
                wanted.deliver_policy = found.deliver_policy;
            }
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Err(error) => return Err(refused(format!("cannot be looked at: {error}"))),
        }
        stream.create_consumer(wanted).await.map_err(|error| refused(format!("cannot be made: {error}")))
    }

    fn graveyard(&self) -> DeadLetters {
        let Inner { asking, stream, subjects, .. } = &*self.0;
        DeadLetters { context: asking.clone(), stream: stream.clone(), subjects: subjects.clone() }
    }

    /// The dead letters of a durable or a group, oldest first, from a number of the stream on: `limit` at most. What is behind them begins with the last one's `sequence + 1`.
    ///
    /// # Errors
    /// The name is none, or the server does not answer.
    pub async fn dead_letters(&self, durable: &str, from: u64, limit: usize) -> Result<Vec<DeadLetter>, SubscribeError> {
        check_name(durable)?;
        self.graveyard()
            .list(durable, from, limit)
            .await
            .map_err(|reason| SubscribeError::Consumer { consumer: durable.to_owned(), reason })
    }

    /// Publishes a dead letter's event once more, as it was, for everybody who subscribes to its subject; and takes the letter away when that is done.
    ///
    /// # Errors
    /// As [`publish`](Self::publish). The letter is still there then.
    pub async fn redrive(&self, letter: &DeadLetter) -> Result<Receipt, PublishError> {
        check_subject(&letter.subject, false)?;
        // An id of its own: the first life may still be in the window of duplicates.
        let id = format!("redrive-{}", letter.sequence);
        let place = event::key(&letter.envelope).unwrap_or_else(|| id.clone().into());
        let subject = self.0.subjects.event(&letter.subject, &place);
        let receipt = self.store(subject, letter.envelope.to_vec(), &id, self.0.options.publish_within).await?;
        let removed = self.graveyard().remove(letter).await;
        removed.map_err(|reason| PublishError::Refused { id, reason: format!("the letter is still there: {reason}") })?;
        Ok(receipt)
    }
}

/// A subscription, at work in tasks of its own. Dropped it comes to its end by itself, as with [`stop`](Self::stop), while the runtime lasts.
pub struct Subscription {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    common: Arc<Common>,
}

impl Subscription {
    /// Takes nothing new, lets what has begun come to its end and answers for it, and gives the work to others; done when all that is done. What it
    /// has not begun with is handled by others, or here next time.
    ///
    /// Handlers have the time that they need; to wait for less, drop this future.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a subscription has ended with a panic");
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.common.counts.stats()
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("durable", &self.common.durable).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn check(options: &Options) -> Result<(), ConnectError> {
    check_name(&options.stream)?;
    check_name(&options.prefix)?;
    let complain = |reason: String| Err(ConnectError::Options(reason));
    if !(1..=PARTITIONS_MAX).contains(&options.partitions) {
        return complain(format!("partitions is {}; 1 to {PARTITIONS_MAX} can be", options.partitions));
    }
    if options.lease < Duration::from_millis(500) {
        return complain(format!("lease is {:?}, below 500ms", options.lease));
    }
    if options.duplicates > options.age {
        return complain(format!("duplicates is {:?}, over age, {:?}", options.duplicates, options.age));
    }
    if options.publishes_max == 0 {
        return complain("publishes_max is 0; nothing could be published".to_owned());
    }
    Ok(())
}

fn events_stream(options: &Options, subjects: &Subjects) -> StreamConfig {
    StreamConfig {
        name: options.stream.clone(),
        // Where every process sees it, of any version of the server.
        description: Some(format!("shardcast events in {} partitions", options.partitions)),
        subjects: subjects.kept(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_messages: options.messages_max,
        max_age: options.age,
        duplicate_window: options.duplicates,
        num_replicas: options.replicas,
        ..StreamConfig::default()
    }
}

fn leases_stream(options: &Options, subjects: &Subjects) -> StreamConfig {
    StreamConfig {
        name: format!("{}_LEASES", options.stream),
        description: Some(format!("who has which partition of {}", options.stream)),
        subjects: vec![subjects.leases()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_messages: -1,
        max_messages_per_subject: 1,
        max_age: options.lease,
        duplicate_window: options.lease.min(Duration::from_secs(1)),
        num_replicas: options.replicas,
        ..StreamConfig::default()
    }
}

/// Makes a stream, or looks whether the one that is there is as asked for.
async fn stream(client: &Client, context: &Context, config: StreamConfig) -> Result<Stream, ConnectError> {
    let name = config.name.clone();
    let keys = Keys {
        max_age: "Options::age, or lease",
        max_messages: "Options::messages_max",
        duplicate_window: "Options::duplicates, or lease",
        replicas: "Options::replicas",
    };
    let wanted = Wanted::of(config, keys);
    let refused = |reason: String| ConnectError::Stream { stream: name.clone(), reason };
    for _ in 0..TRIES {
        match wanted.ensure(client).await {
            (StreamState::Fits, _) => {
                return context.get_stream(&name).await.map_err(|error| refused(format!("cannot be looked at: {error}")));
            }
            (_, Some(reason)) => return Err(refused(reason)),
            // Another process makes it just now.
            (_, None) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Err(refused("is made by another process, and does not come to be".to_owned()))
}
