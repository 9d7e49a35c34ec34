//! A lane: one durable consumer, read by one process at a time. It pulls messages, has them handled in the order of their keys, and answers for each.
//!
//! One task a lane, and one for each handler that runs. What it holds is kept from being redelivered by saying so (`+WPI`) three times in each ack wait;
//! so the ack wait is not how long a handler may take, but how long it takes until another process has the work of one that died.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use nats::jetstream::consumer::PullConsumer;
use nats::jetstream::consumer::pull::BatchConfig;
use nats::jetstream::stream::{RawMessageErrorKind, Stream};
use nats::jetstream::{AckKind, Context, Message};
use nats::{StatusCode, Subscriber};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::dead::DeadLetters;
use super::event;
use super::next;
use super::order::{Arrival, Key, Order};
use super::subject::Subjects;
use super::terms::{Counts, Terms};

/// Messages that are asked for at once.
const ASK: usize = 256;
/// How long the server keeps a request that it cannot answer yet, at most. A lane that stops waits for its end.
pub(super) const ASK_LASTS_MAX: Duration = Duration::from_secs(1);
/// How long after it our own end of the request is due, in which a message may be on its way.
const ASK_GRACE: Duration = Duration::from_secs(1);
/// From one try to the next where the server refuses.
const PAUSE: Duration = Duration::from_millis(250);
/// From one look to the next at what is missing.
const LOOK: Duration = Duration::from_millis(100);

/// What a lane is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    /// Until when it may begin with anything.
    pub(super) until: Instant,
    /// It is to come to its end.
    pub(super) is_stopping: bool,
}

/// Why an event was not handled.
pub(super) enum Failure {
    /// It cannot be read, now or ever.
    Unreadable(String),
    Failed(String),
}

/// An event as it comes, and how it is handled.
pub(super) struct Arrived {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) attempt: u64,
    pub(super) bytes: Bytes,
}

pub(super) type Handle = dyn Fn(Arrived) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + Send + Sync;

/// What all lanes of a subscription have in common.
pub(super) struct Common {
    pub(super) context: Context,
    pub(super) stream: Stream,
    pub(super) subjects: Subjects,
    pub(super) dead: DeadLetters,
    pub(super) durable: String,
    pub(super) terms: Terms,
    /// How long the server keeps a request: so short that it ends before a lease that was just renewed.
    pub(super) ask_lasts: Duration,
    pub(super) counts: Counts,
    pub(super) handle: Box<Handle>,
}

enum Outcome {
    Done,
    /// To come again after so long.
    Back(Duration),
}

pub(super) struct Lane {
    common: Arc<Common>,
    consumer: PullConsumer,
    subscriber: Subscriber,
    inbox: String,
    charge: watch::Receiver<Charge>,
    order: Order<Message>,
    jobs: JoinSet<(u64, Outcome)>,
    /// Messages that the server may still send for the last request, and when it ends.
    asked: usize,
    asked_until: Instant,
    ask_after: Instant,
    gathering_since: Instant,
    /// The last request was refused.
    is_refused: bool,
    /// When those that were given back are due.
    due: HashMap<u64, Instant>,
    /// How often handlers here have failed with those that are not done. The server's count is another: it counts what was handed over too.
    failures: HashMap<u64, u64>,
}

impl Lane {
    /// The body of a lane's task.
    pub(super) async fn run(common: Arc<Common>, consumer: PullConsumer, charge: watch::Receiver<Charge>) {
        let client = common.context.client();
        let inbox = client.new_inbox();
        let subscriber = match client.subscribe(inbox.clone()).await {
            Ok(subscriber) => subscriber,
            Err(error) => return tracing::error!(durable = %common.durable, %error, "NATS cannot be asked for events"),
        };
        let now = Instant::now();
        let lane = Self {
            common,
            consumer,
            subscriber,
            inbox,
            charge,
            // Whoever had it before may have left something.
            order: Order::new(true),
            jobs: JoinSet::new(),
            asked: 0,
            asked_until: now,
            ask_after: now,
            gathering_since: now,
            is_refused: false,
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        lane.serve().await;
        // Answers are on their way before anybody else is let in.
        if let Err(error) = client.flush().await {
            tracing::debug!(%error, "the last answers may not have reached NATS");
        }
    }

    async fn serve(mut self) {
        let mut beats = interval(self.common.terms.ack_wait / 3);
        let mut looks = interval(LOOK);
        [&mut beats, &mut looks].into_iter().for_each(|ticks| ticks.set_missed_tick_behavior(MissedTickBehavior::Delay));
        loop {
            let is_stopping = self.is_stopping();
            if is_stopping && self.jobs.is_empty() && self.asked == 0 {
                break;
            }
            if !is_stopping {
                self.begin();
                self.ask().await;
            }
            tokio::select! {
                message = next(&mut self.subscriber) => match message {
                    Some(message) => self.take(message).await,
                    // The client is closed.
                    None => break,
                },
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    let (sequence, outcome) = done.expect("a job catches panics of handlers, and has none of its own");
                    self.finish(sequence, outcome);
                }
                _ = beats.tick() => self.beat().await,
                _ = looks.tick(), if self.order.is_gathering() || !self.due.is_empty() => self.look().await,
                // An answer that never came: the connection was lost, or the server was.
                () = sleep_until(self.asked_until + ASK_GRACE), if self.asked > 0 => self.asked = 0,
                () = sleep_until(self.ask_after), if self.asked == 0 && Instant::now() < self.ask_after => {}
                changed = self.charge.changed(), if self.charge.has_changed().is_ok() => drop(changed),
            }
        }
        // Others may go on with what has not begun, and need not wait.
        for (_, is_running, message) in self.order.here() {
            if !is_running {
                answer(&message, AckKind::Nak(None)).await;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.charge.borrow().is_stopping || self.charge.has_changed().is_err()
    }

    fn may_begin(&self) -> bool {
        Instant::now() < self.charge.borrow().until
    }

    /// Begins with as many as may be handled at once.
    fn begin(&mut self) {
        while self.jobs.len() < self.common.terms.handlers_max && self.may_begin() {
            let Some((sequence, message)) = self.order.begin() else { return };
            let try_number = self.failures.get(&sequence).map_or(1, |failures| failures + 1);
            self.jobs.spawn(job(Arc::clone(&self.common), sequence, try_number, message));
        }
    }

    /// Asks for more where there is room. Only so that the answer comes while the lease is ours: what comes to nobody is missed for an ack wait.
    async fn ask(&mut self) {
        let now = Instant::now();
        // Among what is missing is what the room is for.
        let least = usize::from(self.order.is_gathering());
        let room = self.common.terms.held_max.saturating_sub(self.order.known()).clamp(least, ASK);
        if self.asked > 0 || room == 0 || now < self.ask_after || now + self.common.ask_lasts > self.charge.borrow().until {
            return;
        }
        let batch = BatchConfig { batch: room, expires: Some(self.common.ask_lasts), ..BatchConfig::default() };
        match self.consumer.request_batch(batch, self.inbox.as_str().into()).await {
            Ok(()) => (self.asked, self.asked_until) = (room, now + self.common.ask_lasts),
            Err(error) => {
                tracing::debug!(%error, "events cannot be asked for");
                self.ask_after = now + PAUSE;
            }
        }
    }

    /// A message, or what the server says in place of more.
    async fn take(&mut self, message: nats::Message) {
        match message.status {
            None | Some(StatusCode::OK) => {}
            Some(status) => {
                self.asked = 0;
                if status != StatusCode::TIMEOUT && status != StatusCode::NOT_FOUND {
                    self.ask_after = Instant::now() + PAUSE;
                    // A consumer that somebody has deleted, JetStream that starts or has no leader: said once.
                    if !std::mem::replace(&mut self.is_refused, true) {
                        let (durable, description) = (&self.common.durable, message.description.unwrap_or_default());
                        tracing::warn!(%durable, consumer = %self.consumer.cached_info().name, %status, %description, "NATS gives no events; it is asked again");
                    }
                } else if std::mem::replace(&mut self.is_refused, false) {
                    tracing::info!(durable = %self.common.durable, "NATS gives events again");
                }
                return;
            }
        }
        self.asked = self.asked.saturating_sub(1);
        let message = Message { message, context: self.common.context.clone() };
        let Ok(info) = message.info() else {
            return tracing::warn!(subject = %message.subject, "a message without a number came for a consumer, and is left out");
        };
        let (sequence, delivery, attempt) = (info.stream_sequence, info.consumer_sequence, info.delivered);
        if attempt > 1 {
            self.common.counts.redelivered.add();
        }
        self.due.remove(&sequence);
        let key = event::key(&message.payload).map_or(Key::Alone(sequence), |key| Key::Named(key.into()));
        let was_gathering = self.order.is_gathering();
        if let Arrival::Done(message) = self.order.arrive(sequence, delivery, key, message) {
            answer(&message, AckKind::Ack).await;
        }
        if self.order.is_gathering() && !was_gathering {
            self.gathering_since = Instant::now();
        }
    }

    fn finish(&mut self, sequence: u64, outcome: Outcome) {
        match outcome {
            Outcome::Done => {
                self.order.finish(sequence);
                self.failures.remove(&sequence);
            }
            Outcome::Back(after) => {
                *self.failures.entry(sequence).or_default() += 1;
                self.order.give_back(sequence);
                self.due.insert(sequence, Instant::now() + after);
            }
        }
    }

    /// Says of all that is here that it is in good hands.
    async fn beat(&mut self) {
        for (_, _, message) in self.order.here() {
            answer(&message, AckKind::Progress).await;
        }
    }

    /// Looks whether all is here that the server waits for, and whether what is overdue is still to be expected.
    async fn look(&mut self) {
        let terms = &self.common.terms;
        if self.order.is_gathering() {
            // What does not come within this time is not redelivered at all, because the stream has let go of it.
            let is_over = self.gathering_since.elapsed() > terms.ack_wait * 2 + terms.backoff_max;
            match self.consumer.get_info().await {
                Ok(info) => self.order.compare(if is_over { 0 } else { info.num_ack_pending }),
                Err(error) => tracing::debug!(%error, "the consumer cannot be looked at"),
            }
        }
        let overdue = terms.ack_wait * 2;
        let late: Vec<u64> = self.due.iter().filter(|(_, due)| due.elapsed() > overdue).map(|(sequence, _)| *sequence).collect();
        for sequence in late {
            match self.common.stream.get_raw_message(sequence).await {
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    tracing::warn!(sequence, durable = %self.common.durable, "the stream let go of an event before it was handled");
                    self.due.remove(&sequence);
                    self.failures.remove(&sequence);
                    self.order.forget(sequence);
                }
                _ => drop(self.due.insert(sequence, Instant::now())),
            }
        }
    }
}

/// Answers for a message. What cannot be answered for now comes again.
async fn answer(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "an event cannot be answered for");
    }
}

/// Handles one event, and answers for it.
async fn job(common: Arc<Common>, sequence: u64, try_number: u64, message: Message) -> (u64, Outcome) {
    let Common { subjects, terms, counts, .. } = &*common;
    let attempt = message.info().map_or(1, |info| u64::try_from(info.delivered).unwrap_or(1));
    let subject = subjects.published(&message.subject).to_owned();
    let result = if attempt > terms.deliveries_max {
        // Its handler took the process with it, each time.
        Err((format!("delivered {} times, and nothing was heard of it", attempt - 1), true))
    } else {
        let arrived = Arrived { subject: subject.clone(), sequence, attempt, bytes: message.payload.clone() };
        match caught((common.handle)(arrived)).await {
            Ok(()) => Ok(()),
            Err(Failure::Unreadable(reason)) => Err((reason, true)),
            Err(Failure::Failed(reason)) => Err((reason, try_number >= terms.attempts_max)),
        }
    };
    let (reason, is_final) = match result {
        Ok(()) => {
            counts.handled.add();
            answer(&message, AckKind::Ack).await;
            return (sequence, Outcome::Done);
        }
        Err(failure) => failure,
    };
    counts.failed.add();
    if is_final {
        match common.dead.bury(&common.durable, &subject, sequence, attempt, &reason, &message).await {
            Ok(()) => {
                tracing::warn!(durable = %common.durable, %subject, sequence, attempt, %reason, "an event is dead");
                counts.dead.add();
                answer(&message, AckKind::Ack).await;
                return (sequence, Outcome::Done);
            }
            // It stays, and is tried again, rather than be lost.
            Err(error) => tracing::warn!(durable = %common.durable, %subject, sequence, %error, "an event cannot be buried"),
        }
    }
    let after = terms.backoff(try_number);
    tracing::debug!(durable = %common.durable, %subject, sequence, attempt, %reason, ?after, "an event is tried again");
    answer(&message, AckKind::Nak(Some(after))).await;
    (sequence, Outcome::Back(after))
}

/// A handler's panic is a failure of its event, and of nothing else.
async fn caught(mut handling: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>) -> Result<(), Failure> {
    std::future::poll_fn(|context| match std::panic::catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(context))) {
        Ok(polled) => polled,
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Poll::Ready(Err(Failure::Failed(format!("the handler panicked: {}", words.unwrap_or("without a word")))))
        }
    })
    .await
}
