//! What reads the stream for a whole node: one consumer, from where the reading was left, that hands each message to the home of its topic with its sequence.
//!
//! The consumer is ours alone, holds nothing, and goes with the stream: messages of one consumer are of one life of the stream, which is named by when it was made.
//! Whatever breaks it (a lost connection, a consumer that was deleted, silence beyond the heartbeat, a sequence of the consumer that was skipped), the next one begins
//! behind the last message handed on. When the stream does not have that any more, or is another one, every topic is told that messages may be missing.
//!
//! Topics are asked for here too, so that for each it is certain from which message on they come. What is known of all that is in `reading`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream as _;
use nats::Client;
use nats::jetstream::consumer::pull::{self, Stream as Messages};
use nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use nats::jetstream::stream::{Info, LastRawMessageErrorKind, Stream};
use nats::jetstream::{self, Message};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::StreamState;
use super::ends::Ends;
use super::envelope;
use super::link::{Incoming, LinkShared};
use super::reading::{NOBODY, Reading};
use crate::ids::{ShardId, TopicKey};
use crate::proto::position::{Epoch, Position};

/// How long the server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often the consumer says that it is there while there is nothing to read; two times of silence are its end.
const HEARTBEAT: Duration = Duration::from_millis(1000);
/// How long one request for messages holds.
const EXPIRES: Duration = Duration::from_secs(20);
/// Messages, and bytes, that are on their way here at most.
const BATCH_MESSAGES: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;
/// The server drops a consumer that nobody has asked for so long.
const INACTIVE: Duration = Duration::from_secs(10);
/// Messages of another stream in the place of the one before that are handed on at most.
const ANEW_MESSAGES: u64 = 10_000;
/// How often it is looked whether the connection is another one, and how long to wait before the next try.
const LOOK: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_millis(250);

/// What the pump asks.
pub(super) enum Ask {
    /// See `Request::Subscribe`.
    Subscribe { shard: ShardId, topic: TopicKey, subject: Arc<str>, after: Option<Position> },
    /// See `Request::Unsubscribe`.
    Unsubscribe { shard: ShardId, topic: TopicKey },
}

/// A stream that was opened to be read.
struct Opened {
    stream: Stream,
    messages: Messages,
    /// What comes is after this.
    at: Position,
    /// Messages between the last one read and that one may be missing.
    hole: bool,
}

/// The reader.
pub(super) struct Reader {
    pub(super) client: Client,
    pub(super) ends: Rc<Ends>,
    pub(super) shared: Arc<LinkShared>,
    pub(super) asks: mpsc::UnboundedReceiver<Ask>,
    pub(super) stream: String,
    pub(super) node: u64,
    pub(super) message_bytes_max: u64,
    reading: Reading,
}

/// When a stream was made, as an epoch.
pub(super) fn epoch_of(info: &Info) -> Epoch {
    Epoch(u64::try_from(info.created.unix_timestamp_nanos() / 1000).unwrap_or(0).max(1))
}

impl Reader {
    pub(super) fn new(
        client: Client,
        ends: Rc<Ends>,
        shared: Arc<LinkShared>,
        asks: mpsc::UnboundedReceiver<Ask>,
        stream: String,
        node: u64,
        message_bytes_max: u64,
    ) -> Self {
        Self { client, ends, shared, asks, stream, node, message_bytes_max, reading: Reading::default() }
    }

    /// Reads until the process ends.
    pub(super) async fn run(mut self) {
        let mut said = String::new();
        loop {
            let connects = self.shared.status.connects.value();
            let open = open(self.client.clone(), self.stream.clone(), self.reading.at(), Arc::clone(&self.shared));
            match self.while_asked(open).await {
                Ok(opened) => {
                    said.clear();
                    let why = self.read(opened, connects).await;
                    self.shared.status.reading.set(0);
                    if self.shared.status.is_connected() {
                        tracing::warn!(
                            stream = self.stream,
                            at = self.reading.at().map(tracing::field::display),
                            "the stream is opened again: {why}"
                        );
                    }
                }
                Err(why) => {
                    if self.shared.status.is_connected() && self.shared.status.stream() != StreamState::Unknown && said != why {
                        tracing::warn!(stream = self.stream, "the stream cannot be read: {why}; tried again");
                        said = why;
                    }
                    self.while_asked(sleep(RETRY)).await;
                }
            }
        }
    }

    /// Waits for something, and sees to what is asked meanwhile.
    async fn while_asked<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return output,
                Some(ask) = self.asks.recv() => self.see_to(ask).await,
            }
        }
    }

    /// Reads for as long as it goes; why it does not go on.
    async fn read(&mut self, opened: Opened, connects: u64) -> String {
        let Opened { stream, mut messages, at, hole } = opened;
        if hole {
            self.shared.status.holes.add(1);
            tracing::warn!(stream = self.stream, after = self.reading.at().map(tracing::field::display), upto = %at, "messages of the stream were not read and are gone: every topic is told of a gap");
        }
        for (shard, notice) in self.reading.open(at, hole) {
            self.ends.tell(shard, notice).await;
        }
        self.shared.status.read.set(at);
        self.shared.status.opens.add(1);
        self.shared.status.reading.set(1);
        self.ends.nudge();
        let mut expected = 1;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                Some(ask) = self.asks.recv() => self.see_to(ask).await,
                message = poll_fn(|context| pin!(&mut messages).poll_next(context)) => {
                    let message = match message {
                        Some(Ok(message)) => message,
                        Some(Err(error)) => return error.to_string(),
                        None => return "its messages have ended".to_owned(),
                    };
                    let (offset, number) = match message.info() {
                        Ok(info) => (info.stream_sequence, info.consumer_sequence),
                        Err(error) => return format!("a message says nothing of its place: {error}"),
                    };
                    if number != expected {
                        return format!("message {number} of the consumer came where {expected} was expected");
                    }
                    expected += 1;
                    // It reads all subjects, so a sequence that is skipped was deleted, or the server has forgotten it for the moment.
                    let next = self.reading.at().map_or(offset, |at| at.offset + 1);
                    if offset > next
                        && let Err(why) = is_deleted(&stream, next).await
                    {
                        return format!("{next} was skipped: {why}");
                    }
                    self.take(message, Position { epoch: at.epoch, offset }).await;
                }
                _ = looks.tick() => {
                    if self.shared.status.connects.value() != connects {
                        return "the connection is another one".to_owned();
                    }
                }
            }
        }
    }

    async fn take(&mut self, message: Message, at: Position) {
        let message = message.message;
        let headers = message.headers.as_ref();
        let oversized = message.payload.len() as u64 > self.message_bytes_max;
        let incoming = if oversized {
            self.shared.status.oversized.add(1);
            None
        } else {
            // Its own copy: what is kept must not keep what was read around it.
            let payload = Bytes::copy_from_slice(&message.payload);
            let numbered = Some(envelope::numbered(headers, self.node, at.offset));
            Some(Incoming { numbered, ..envelope::open(NOBODY, headers, payload) })
        };
        if let Some((shard, notice)) = self.reading.take(message.subject.as_str(), at, incoming) {
            self.shared.status.received.add(1);
            self.ends.tell(shard, notice).await;
        }
        self.shared.status.read.set(at);
    }

    async fn see_to(&mut self, ask: Ask) {
        match ask {
            Ask::Subscribe { shard, topic, subject, after } => {
                for notice in self.reading.subscribe(shard, topic, subject, after) {
                    self.ends.tell(shard, notice).await;
                }
            }
            Ask::Unsubscribe { shard, topic } => self.reading.unsubscribe(shard, topic),
        }
    }
}

/// Whether the stream has no message of this sequence.
async fn is_deleted(stream: &Stream, sequence: u64) -> Result<(), String> {
    match stream.get_raw_message(sequence).await {
        Ok(_) => Err("the stream has it".to_owned()),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Opens the stream behind what was read of it.
async fn open(client: Client, name: String, at: Option<Position>, shared: Arc<LinkShared>) -> Result<Opened, String> {
    // One that is not as asked for is read all the same: whoever changes its bounds does not end the service.
    if !shared.status.is_connected() || shared.status.stream() == StreamState::Unknown {
        return Err("it is not there yet".to_owned());
    }
    let context = jetstream::ContextBuilder::new().timeout(ANSWER_WITHIN).build(client);
    let stream = context.get_stream(&name).await.map_err(|error| error.to_string())?;
    let info = stream.cached_info();
    let epoch = epoch_of(info);
    let (first, last) = (info.state.first_sequence, info.state.last_sequence);
    let before_first = first.saturating_sub(1);
    let (after, hole) = match at {
        None => (last, false),
        Some(at) if at.epoch != epoch => (last.saturating_sub(ANEW_MESSAGES).max(before_first), true),
        // It goes on from an older copy of itself.
        Some(at) if last < at.offset => (last, true),
        Some(at) if before_first > at.offset => (before_first, true),
        Some(at) => (at.offset, false),
    };
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| error.to_string())?;
    // What was made between those two answers is the consumer of the stream that both tell of.
    let again = stream.get_info().await.map_err(|error| error.to_string())?;
    if epoch_of(&again) != epoch {
        return Err("it was made anew meanwhile".to_owned());
    }
    // What was between may have gone until the consumer was made.
    let hole = hole || (at.is_some() && again.state.first_sequence > after + 1 && again.state.first_sequence > first);
    let after = if hole { after.max(again.state.first_sequence.saturating_sub(1)) } else { after };
    let messages = consumer.stream().heartbeat(HEARTBEAT).expires(EXPIRES).max_messages_per_batch(BATCH_MESSAGES);
    let messages = messages.max_bytes_per_batch(BATCH_BYTES).messages().await.map_err(|error| error.to_string())?;
    Ok(Opened { stream, messages, at: Position { epoch, offset: after }, hole })
}
