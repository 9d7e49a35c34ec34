//! What an application holds: the client, which can be cloned, its events, and receipts that are still to come.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::dial::{BoxError, Dialer, Target, TokenHook, UrlError};
use super::driver::{Clock, Command, Driver, EventSender, Queued};
use super::event::{Closed, Error, Event};
use super::message::{Data, History, Position, Receipt, Start};
use super::presence::Presence;
use super::session::{Answer, Options, Session};
#[cfg(feature = "client-tls")]
use super::tls::Tls;
use super::wire::About;
use crate::time::Time;

/// Calls that wait to be looked at by the client's task.
const COMMANDS: usize = 64;

/// What a client may be told before it is made. Each method has the default in its first line.
#[must_use = "call start"]
pub struct Builder {
    url: String,
    user: Option<String>,
    topics: Vec<(String, Start, bool)>,
    patterns: Vec<String>,
    token: Option<TokenHook>,
    options: Options,
    buffer_bytes: usize,
    frame_bytes_max: usize,
    answer_within: Duration,
    #[cfg(feature = "client-tls")]
    tls: Tls,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("url", &self.url)
            .field("topics", &self.topics)
            .field("patterns", &self.patterns)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Builder {
    fn new(url: &str) -> Self {
        let options = Options {
            connect_within: Duration::from_secs(10),
            pong_within: Duration::from_secs(10),
            has_tokens: false,
            batch: false,
            tries_max: None,
            unanswered_max: 1024,
            unanswered_bytes_max: 4 << 20,
        };
        Self {
            url: url.to_owned(),
            user: None,
            topics: Vec::new(),
            patterns: Vec::new(),
            token: None,
            options,
            buffer_bytes: 1 << 20,
            frame_bytes_max: 16 << 20,
            answer_within: Duration::from_secs(30),
            #[cfg(feature = "client-tls")]
            tls: Tls::default(),
        }
    }

    /// Topics to subscribe to from the start; none. What becomes of them is told by [`Event::Subscribed`] and [`Event::Refused`].
    pub fn subscribe(mut self, topic: impl Into<String>, start: Start) -> Self {
        self.topics.push((topic.into(), start, false));
        self
    }

    /// The same, and who is there is told too: [`Event::Presence`], [`Event::Join`] and [`Event::Leave`], where the operator has named the topic for it (`presence`).
    pub fn subscribe_with_presence(mut self, topic: impl Into<String>, start: Start) -> Self {
        self.topics.push((topic.into(), start, true));
        self
    }

    /// Patterns to subscribe to from the start, as [`Client::subscribe_to_pattern`] does; none. What becomes of them is told by [`Event::Following`] and [`Event::Refused`].
    pub fn subscribe_to_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// What the client calls itself before others in its topics: nothing. 1 to 128 bytes without control characters; who is not taken by the gateway is told so by
    /// [`Event::Closed`]. Nobody checks that it is true.
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Where tokens come from; nowhere. It is asked before each connection, and what it gives is said in `hello`. An error is a failed try. When the gateway says that a
    /// token expires it is asked again (after an error once a second, while the old one holds), and what it gives is said in `auth`.
    ///
    /// ```
    /// # async fn ask_for_a_token() -> Result<String, std::io::Error> { Ok("secret".into()) }
    /// use shardcast::client::Client;
    ///
    /// let builder = Client::builder("ws://127.0.0.1:8080").token(|| async { ask_for_a_token().await });
    /// # drop(builder);
    /// ```
    pub fn token<F, T, E>(mut self, hook: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.token = Some(Arc::new(move || {
            let token = hook();
            Box::pin(async move { token.await.map_err(Into::into) })
        }));
        self
    }

    /// Whether many messages may come as one frame: no. They cost less then, and one may wait a moment for others (`batch_ms` of the gateway, 10 ms). A gateway that does
    /// not know this goes on as ever.
    pub fn batch(mut self, batch: bool) -> Self {
        self.options.batch = batch;
        self
    }

    /// How long a try may take, from the token to the welcome: 10 s.
    pub fn connect_within(mut self, time: Duration) -> Self {
        self.options.connect_within = time;
        self
    }

    /// Tries in a row after which the client gives up: without end. A connection that lasts 10 s makes it start from none again.
    pub fn tries_max(mut self, tries: u32) -> Self {
        self.options.tries_max = Some(tries.max(1));
        self
    }

    /// How long publications and histories may take: 30 s. What is said of one call ([`PublishOptions::within`]) wins.
    pub fn answer_within(mut self, time: Duration) -> Self {
        self.answer_within = time;
        self
    }

    /// How long a gateway that was asked for a sign of life may be silent: 10 s. It is asked after as much silence as it says itself (`ping_ms`, 45 s).
    pub fn pong_within(mut self, time: Duration) -> Self {
        self.options.pong_within = time;
        self
    }

    /// Bytes of events that wait for the application, each counted with 256 more: 1 MiB. Then the socket is not read until some were taken.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Publications and histories without an answer, at most: 1,024. Then calls wait.
    pub fn unanswered_max(mut self, requests: usize) -> Self {
        self.options.unanswered_max = requests.max(1);
        self
    }

    /// Their bytes, as they are sent: 4 MiB. Beyond them calls wait.
    pub fn unanswered_bytes_max(mut self, bytes: usize) -> Self {
        self.options.unanswered_bytes_max = bytes.max(1);
        self
    }

    /// The longest thing that the gateway may say, in bytes: 16 MiB. Beyond it the client stops.
    pub fn frame_bytes_max(mut self, bytes: usize) -> Self {
        self.frame_bytes_max = bytes;
        self
    }

    /// Certificates of one's own authority, in PEM, trusted instead of the system's; those.
    ///
    /// # Errors
    /// There is no certificate in it, or one that cannot be read.
    #[cfg(feature = "client-tls")]
    pub fn trust(mut self, pem: &[u8]) -> Result<Self, super::TrustError> {
        self.tls = Tls::trusting(pem)?;
        Ok(self)
    }

    /// Makes the client, whose task begins to connect. Has to be called in a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// The URL is none that a client can be connected to, or there is no runtime.
    pub fn start(self) -> Result<(Client, Events), UrlError> {
        let target = Target::parse(&self.url, self.user.as_deref())?;
        let runtime = Handle::try_current().map_err(|_| UrlError::NoRuntime)?;
        let options = Options { has_tokens: self.token.is_some(), ..self.options };
        let mut session = Session::new(options, fastrand::u64(..));
        for (topic, start, watches) in self.topics {
            session.subscribe(&topic, start, watches);
            session.refuse_at_start(&topic);
        }
        for pattern in self.patterns {
            session.subscribe_to_pattern(&pattern);
            session.refuse_at_start(&pattern);
        }
        let (commands, command_receiver) = mpsc::channel(COMMANDS);
        let (queue, queued) = mpsc::unbounded_channel();
        let (closing, is_closing) = watch::channel(false);
        let end = Arc::new(OnceLock::new());
        let bytes = u32::try_from(self.buffer_bytes.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let clock = Clock::new();
        let driver = Driver {
            session,
            dialer: Arc::new(Dialer {
                target,
                token: self.token,
                frame_bytes_max: self.frame_bytes_max,
                #[cfg(feature = "client-tls")]
                tls: self.tls,
            }),
            clock,
            commands: command_receiver,
            events: EventSender { queue, room: Arc::new(Semaphore::new(bytes as usize)), bytes },
            closing: is_closing,
            end: Arc::clone(&end),
            waiters: HashMap::new(),
        };
        runtime.spawn(driver.run());
        let client = Client { commands, closing: Arc::new(closing), end: Arc::clone(&end), clock, answer_within: self.answer_within };
        Ok((client, Events { queued, end, is_over: false }))
    }
}

/// What a publication may have besides its topic and payload.
///
/// ```
/// use shardcast::client::PublishOptions;
///
/// let options = PublishOptions { event: Some("price".into()), echo: false, ..PublishOptions::default() };
/// assert!(options.id.is_none() && options.within.is_none());
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishOptions {
    /// The id by which the gateway knows a repeat, for two minutes; one of the client's own unless said. What a lost connection has cut off is sent again under the same.
    pub id: Option<String>,
    /// The name of the event, for streams and for who listens by name; none.
    pub event: Option<String>,
    /// Whether it comes back to this client too, if it is subscribed; true.
    pub echo: bool,
    /// How long it may take; what the [`Builder`] says.
    pub within: Option<Duration>,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { id: None, event: None, echo: true, within: None }
    }
}

/// A client of one gateway. Its clones are the same client; it lives as long as one of them or its [`Events`], or until it is over.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    closing: Arc<watch::Sender<bool>>,
    end: Arc<OnceLock<Closed>>,
    clock: Clock,
    answer_within: Duration,
}

impl Client {
    /// Makes a client of the gateway at `url` with all defaults. It connects by itself, and comes back by itself.
    ///
    /// # Errors
    /// The URL is none that a client can be connected to, or there is no tokio runtime.
    pub fn connect(url: &str) -> Result<(Self, Events), UrlError> {
        Self::builder(url).start()
    }

    /// The same, with something to choose.
    pub fn builder(url: &str) -> Builder {
        Builder::new(url)
    }

    /// Subscribes to a topic, and waits until it has its place: what is published from then on comes, now or after a loss. Says where that is. While there is no
    /// connection it waits; who stops waiting stays subscribed.
    ///
    /// # Errors
    /// The topic is this client's already, or it has 128; the gateway refuses; the client is over.
    pub async fn subscribe(&self, topic: &str, start: Start) -> Result<Position, Error> {
        self.ask_for(topic, start, false).await
    }

    /// The same, and who is there is told too: by [`Event::Presence`] now and after each loss, and by [`Event::Join`] and [`Event::Leave`] as they come and go.
    ///
    /// # Errors
    /// As of [`Client::subscribe`]; `no_presence` is one that the gateway refuses with, where the operator has not named the topic. Then it is not subscribed to.
    pub async fn subscribe_with_presence(&self, topic: &str, start: Start) -> Result<Position, Error> {
        self.ask_for(topic, start, true).await
    }

    async fn ask_for(&self, topic: &str, start: Start, watches: bool) -> Result<Position, Error> {
        let (waiter, answer) = oneshot::channel();
        self.command(Command::Subscribe { topic: topic.into(), start, watches, waiter }).await?;
        match answer.await {
            Ok(answer) => answer.map(|answer| if let Answer::Subscribed(pos) = answer { pos } else { unreachable!("asked for a place") }),
            Err(_) => Err(self.closed().into()),
        }
    }

    /// Subscribes to all topics whose names begin with something: `prices.*`, or `*` for every topic. Waits until all that there are have their places: what is published
    /// to them from then on comes, and so do topics that come to be, from their first message on. Each topic is told by [`Event::Subscribed`].
    ///
    /// After a loss the topics that it has brought go on where they were, up to 96 and those that spoke last first; of the others a gap is told if something is missing.
    ///
    /// # Errors
    /// The pattern is this client's already, or it has 128; the gateway refuses, with `no_wildcards` where the operator does not allow patterns (`wildcards`); the client is over.
    pub async fn subscribe_to_pattern(&self, pattern: &str) -> Result<(), Error> {
        let (waiter, answer) = oneshot::channel();
        self.command(Command::SubscribeToPattern { pattern: pattern.into(), waiter }).await?;
        match answer.await {
            Ok(answer) => answer.map(|_| ()),
            Err(_) => Err(self.closed().into()),
        }
    }

    /// Unsubscribes from a pattern, and from the topics that no other one means and that were not named either. Says whether it was subscribed.
    ///
    /// # Errors
    /// The client is over.
    pub async fn unsubscribe_from_pattern(&self, pattern: &str) -> Result<bool, Error> {
        let (waiter, answer) = oneshot::channel();
        self.command(Command::UnsubscribeFromPattern { pattern: pattern.into(), waiter }).await?;
        answer.await.map_err(|_| self.closed().into())
    }

    /// Unsubscribes, and says whether it was subscribed by this name. Events that wait to be taken may still be of it, and it goes on where a pattern means it too.
    ///
    /// # Errors
    /// The client is over.
    pub async fn unsubscribe(&self, topic: &str) -> Result<bool, Error> {
        let (waiter, answer) = oneshot::channel();
        self.command(Command::Unsubscribe { topic: topic.into(), waiter }).await?;
        answer.await.map_err(|_| self.closed().into())
    }

    /// Publishes, and waits for the receipt: then the message has its place in the topic's order, and is kept. A connection that is lost meanwhile does not matter: it is
    /// sent again, and published once.
    ///
    /// # Errors
    /// It is too long, refused, or has no answer in time; or the client is over.
    pub async fn publish(&self, topic: &str, data: impl Into<Data>) -> Result<Receipt, Error> {
        self.publish_with(topic, data, PublishOptions::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// As of [`Client::publish`].
    pub async fn publish_with(&self, topic: &str, data: impl Into<Data>, options: PublishOptions) -> Result<Receipt, Error> {
        self.send(topic, data, options).await?.await
    }

    /// Publishes without waiting for the receipt, which can be waited for later, or never. Publications go out in the order of these calls. It waits while as
    /// many are without a receipt as may ([`Builder::unanswered_max`]).
    ///
    /// # Errors
    /// There was no room for it in time, or the client is over.
    pub async fn send(&self, topic: &str, data: impl Into<Data>, options: PublishOptions) -> Result<Pending, Error> {
        let (deadline, within) = self.deadline(options.within);
        let (waiter, receipt) = oneshot::channel();
        let about = About { msg_id: options.id.unwrap_or_default(), event: options.event, no_echo: !options.echo };
        let command = Command::Publish { topic: topic.into(), data: data.into(), about, deadline, within, waiter };
        self.command_within(command, deadline, within).await?;
        Ok(Pending { receipt, end: Arc::clone(&self.end) })
    }

    /// Reads a part of what a topic has kept, without a subscription: `limit` messages at most, and about 128 KiB.
    ///
    /// # Errors
    /// It is refused, or has no answer in time; or the client is over.
    pub async fn history(&self, topic: &str, start: Start, limit: Option<u32>) -> Result<History, Error> {
        let (deadline, within) = self.deadline(None);
        let (waiter, answer) = oneshot::channel();
        self.command_within(Command::History { topic: topic.into(), start, limit, deadline, within, waiter }, deadline, within).await?;
        match answer.await {
            Ok(answer) => answer.map(|answer| if let Answer::History(history) = answer { history } else { unreachable!("asked for it") }),
            Err(_) => Err(self.closed().into()),
        }
    }

    /// Asks who is in a topic now, without a subscription.
    ///
    /// # Errors
    /// It is refused, with `no_presence` where the operator has not named the topic, or has no answer in time; or the client is over.
    pub async fn presence(&self, topic: &str) -> Result<Presence, Error> {
        let (deadline, within) = self.deadline(None);
        let (waiter, answer) = oneshot::channel();
        self.command_within(Command::Presence { topic: topic.into(), deadline, within, waiter }, deadline, within).await?;
        match answer.await {
            Ok(answer) => {
                answer.map(|answer| if let Answer::Presence(presence) = answer { presence } else { unreachable!("asked for it") })
            }
            Err(_) => Err(self.closed().into()),
        }
    }

    /// Closes the client: says goodbye, and waits up to two seconds for the gateway's. Events that were not taken are gone, and what has no receipt yet gets none.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        self.commands.closed().await;
    }

    /// How it has ended, if it has.
    pub fn end(&self) -> Option<&Closed> {
        self.end.get()
    }

    fn deadline(&self, within: Option<Duration>) -> (Time, Duration) {
        let within = within.unwrap_or(self.answer_within);
        (self.clock.now() + within, within)
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| self.closed().into())
    }

    async fn command_within(&self, command: Command, deadline: Time, within: Duration) -> Result<(), Error> {
        let sent = tokio::time::timeout_at(self.clock.instant(deadline), self.command(command)).await;
        sent.unwrap_or(Err(Error::Timeout(within)))
    }

    fn closed(&self) -> Closed {
        ended(&self.end)
    }
}

/// The end, as it was set before anybody could notice; without it the client's runtime is gone.
fn ended(end: &OnceLock<Closed>) -> Closed {
    end.get().cloned().unwrap_or_else(|| Closed { code: None, reason: "the runtime of the client has ended".into() })
}

/// A receipt that is still to come. Dropping it changes nothing about the publication.
#[derive(Debug)]
#[must_use = "without waiting for the receipt nobody knows whether it was published"]
pub struct Pending {
    receipt: oneshot::Receiver<Result<Answer, Error>>,
    end: Arc<OnceLock<Closed>>,
}

impl Future for Pending {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receipt).poll(cx).map(|answer| match answer {
            Ok(Ok(Answer::Published(receipt))) => Ok(receipt),
            Ok(Ok(_)) => unreachable!("asked for a receipt"),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ended(&self.end).into()),
        })
    }
}

/// What a client tells, in order. It has to be read, or dropped: while as much waits as may ([`Builder::buffer_bytes`]) the client reads nothing, no receipt either.
///
/// It is a [`Stream`] too.
pub struct Events {
    queued: mpsc::UnboundedReceiver<Queued>,
    end: Arc<OnceLock<Closed>>,
    is_over: bool,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &self.queued.len()).field("end", &self.end.get()).finish_non_exhaustive()
    }
}

impl Events {
    /// The next event. The last one is [`Event::Closed`]; behind it there is none. Dropped before it is done it has taken nothing, so that it can stand in a `select!`.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next event, if it is there now.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.queued.try_recv().ok().map(|queued| queued.event)
    }

    /// How many events wait.
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    /// The next event, for who polls.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queued.poll_recv(cx).map(|queued| match queued {
            Some(queued) => Some(queued.event),
            None if std::mem::replace(&mut self.is_over, true) => None,
            None => Some(Event::Closed(ended(&self.end))),
        })
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_recv(cx)
    }
}
