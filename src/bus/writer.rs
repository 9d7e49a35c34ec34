//! What hands messages to the stream: all of them at once, each with a subject of its own for the acknowledgement, and again until there is one.
//!
//! Two tasks share the list of what waits (`outstanding`): one sends, and waits when the client has enough to send; the other takes acknowledgements, looks at the
//! clock, and tells shards what became of their messages. A message id is the idempotency key of its publisher behind the subject, or the node
//! and a number: the stream takes what comes again under one for the same (its window for duplicates).

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use nats::client::PublishErrorKind;
use nats::jetstream::publish::PublishAck;
use nats::jetstream::response::Response;
use nats::{Client, Message, StatusCode, Subject};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::ends::Ends;
use super::envelope::{self, NODE, SENDER};
use super::link::{Answer, LinkShared, Outgoing};
use super::outstanding::{Outstanding, Waiting};
use super::status::Status;
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::proto::position::Position;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long there may be no connection before publishers are told: they may try elsewhere, or again under the same key.
const LOST_MS: u64 = 800;
/// The header by which a stream knows a message that it has.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A stream's writer, shared by its tasks.
pub(super) struct Writer {
    client: Client,
    ends: Rc<Ends>,
    node: u64,
    /// What subjects for acknowledgements begin with.
    inbox: String,
    outstanding: RefCell<Outstanding>,
    more: Notify,
    born: Instant,
    patience_ms: u64,
}

impl Writer {
    pub(super) fn new(client: Client, ends: Rc<Ends>, node: u64, limits: &Limits) -> Rc<Self> {
        let inbox = client.new_inbox();
        // Under a message id that the stream may have forgotten a message would come twice.
        let patience_ms = limits.nats_ack_ms.min(limits.nats_stream_duplicates_ms / 2);
        let (outstanding, more, born) = (RefCell::default(), Notify::new(), Instant::now());
        Rc::new(Self { client, ends, node, inbox, outstanding, more, born, patience_ms })
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// Takes up a message of a shard.
    pub(super) fn take(&self, shard: ShardId, message: Outgoing) {
        self.outstanding.borrow_mut().push(shard, message, self.now_ms());
        self.more.notify_one();
    }

    /// Whether everything was answered.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.borrow().is_empty()
    }

    /// The task that sends.
    pub(super) async fn send(self: Rc<Self>, status: Arc<LinkShared>) {
        loop {
            // What the client is given while there is no connection would go out on the next one, before what was lost with the last.
            let next = if status.status.is_connected() { self.outstanding.borrow_mut().next(self.now_ms()) } else { None };
            let Some((number, message)) = next else {
                // While there is no connection, or the stream is left alone, nobody says when that is over.
                let _ = timeout(LOOK, self.more.notified()).await;
                continue;
            };
            let Some(tracked) = &message.tracked else { continue };
            let mut headers = envelope::headers(&message);
            let own = format!("{:016x}-{number}", self.node);
            match &tracked.id {
                Some(id) => headers.insert(MESSAGE_ID, format!("{} {id}", message.subject)),
                None => headers.insert(MESSAGE_ID, own.as_str()),
            }
            headers.insert(NODE, own);
            let sender = tracked.sender;
            headers.insert(SENDER, format!("{}-{}-{}", sender.shard.0, sender.key.slot, sender.key.generation));
            let (subject, reply) = (Subject::from(&*message.subject), format!("{}.{number}", self.inbox));
            match self.client.publish_with_reply_and_headers(subject, reply, headers, message.payload.clone()).await {
                Ok(()) => status.status.published.add(1),
                Err(error) => {
                    status.status.refused.add(1);
                    let refused = self.outstanding.borrow_mut().refused(number);
                    if let Some(waiting) = refused {
                        let why = match error.kind() {
                            PublishErrorKind::MaxPayloadExceeded => "the message is larger than the server takes now".into(),
                            _ => error.to_string().into(),
                        };
                        self.finish(waiting, Answer::Refused { why }).await;
                    }
                }
            }
        }
    }

    /// The task that takes acknowledgements.
    pub(super) async fn listen(self: Rc<Self>, status: Arc<LinkShared>) {
        let status = &status.status;
        let mut answers = loop {
            match self.client.subscribe(format!("{}.*", self.inbox)).await {
                Ok(answers) => break answers,
                Err(error) => tracing::error!(%error, "acknowledgements of the stream cannot be listened to"),
            }
            sleep(Duration::from_secs(1)).await;
        };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut connects = status.connects.value();
        loop {
            tokio::select! {
                biased;
                answer = poll_fn(|context| pin!(&mut answers).poll_next(context)) => match answer {
                    Some(answer) => self.answered(&answer, status).await,
                    None => return,
                },
                _ = looks.tick() => {
                    if status.connects.value() != connects {
                        connects = status.connects.value();
                        self.outstanding.borrow_mut().hold(self.now_ms());
                    }
                    let patience_ms = if status.down_ms.value() < LOST_MS { self.patience_ms } else { 0 };
                    let given_up = self.outstanding.borrow_mut().look(self.now_ms(), patience_ms);
                    if !given_up.is_empty() {
                        tracing::warn!(messages = given_up.len(), "the stream has not acknowledged messages in time (limits.nats_ack_ms, or 1 s without a connection): their publishers are told so");
                    }
                    for waiting in given_up {
                        status.unanswered.add(1);
                        self.finish(waiting, Answer::Unanswered).await;
                    }
                }
            }
        }
    }

    async fn answered(&self, answer: &Message, status: &Status) {
        let Some(number) = answer.subject.rsplit('.').next().and_then(|number| number.parse().ok()) else { return };
        match judge(answer) {
            Judgement::Stored { sequence, duplicate } => {
                let done = self.outstanding.borrow_mut().acknowledged(number);
                let Some(waiting) = done else { return };
                status.stored.add(1);
                let has_key = waiting.message.tracked.as_ref().is_some_and(|tracked| tracked.id.is_some());
                status.duplicates.add(u64::from(duplicate && has_key));
                let answer = match status.read.value() {
                    Some(read) => {
                        Answer::Stored { position: Position { epoch: read.epoch, offset: sequence }, duplicate: duplicate && has_key }
                    }
                    None => Answer::Unanswered,
                };
                self.finish(waiting, answer).await;
            }
            Judgement::NotNow => self.outstanding.borrow_mut().put_off(number, self.now_ms()),
            Judgement::Never(why) => {
                let done = self.outstanding.borrow_mut().refused(number);
                let Some(waiting) = done else { return };
                status.refused.add(1);
                tracing::warn!(subject = %waiting.message.subject, %why, "the stream does not take a message");
                self.finish(waiting, Answer::Refused { why }).await;
            }
        }
    }

    /// Tells the shard of a message what became of it.
    async fn finish(&self, waiting: Waiting, answer: Answer) {
        self.ends.settle(waiting.shard, &waiting.message);
        if let Some((shard, notice)) = waiting.notice(answer) {
            self.ends.tell(shard, notice).await;
        }
    }
}

enum Judgement {
    Stored {
        sequence: u64,
        duplicate: bool,
    },
    /// It may be another time.
    NotNow,
    Never(Box<str>),
}

/// What a stream's answer to a message says.
fn judge(answer: &Message) -> Judgement {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Judgement::NotNow;
    }
    match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
        // A repetition of what is only on its way to the other servers has no sequence yet.
        Ok(Response::Ok(ack)) if ack.sequence > 0 => Judgement::Stored { sequence: ack.sequence, duplicate: ack.duplicate },
        Ok(Response::Err { error }) if error.code() == 400 => Judgement::Never(error.to_string().into()),
        _ => Judgement::NotNow,
    }
}
