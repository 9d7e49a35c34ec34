//! The one task of a client: owns the socket, does what the session decides, and reads only when all that was heard is handed over. Reads the clock.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_sink::Sink;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as WsMessage};

use super::dial::{BoxError, Dialer, Socket, Token};
use super::event::{Closed, Error, Event};
use super::message::{Data, Start};
use super::session::{Answer, Loss, Session, Transmit};
use super::wire::{self, About, Frame};
use crate::time::Time;

/// The client's clock: tokio's, which a test may move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    zero: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { zero: Instant::now() }
    }

    pub(super) fn now(self) -> Time {
        Time::ZERO + Instant::now().saturating_duration_since(self.zero)
    }

    pub(super) fn instant(self, time: Time) -> Instant {
        self.zero + time.since(Time::ZERO)
    }
}

/// Whoever waits for an answer.
pub(super) type Waiter = oneshot::Sender<Result<Answer, Error>>;

/// What the application wants.
pub(super) enum Command {
    Subscribe { topic: Box<str>, start: Start, watches: bool, waiter: Waiter },
    Unsubscribe { topic: Box<str>, waiter: oneshot::Sender<bool> },
    SubscribeToPattern { pattern: Box<str>, waiter: Waiter },
    UnsubscribeFromPattern { pattern: Box<str>, waiter: oneshot::Sender<bool> },
    Publish { topic: Box<str>, data: Data, about: About, deadline: Time, within: Duration, waiter: Waiter },
    History { topic: Box<str>, start: Start, limit: Option<u32>, deadline: Time, within: Duration, waiter: Waiter },
    Presence { topic: Box<str>, deadline: Time, within: Duration, waiter: Waiter },
}

/// An event that waits for the application, and the room that it takes.
pub(super) struct Queued {
    pub(super) event: Event,
    _room: OwnedSemaphorePermit,
}

/// The way to the application: so many bytes of events wait in it at most.
pub(super) struct EventSender {
    pub(super) queue: mpsc::UnboundedSender<Queued>,
    pub(super) room: Arc<Semaphore>,
    pub(super) bytes: u32,
}

impl EventSender {
    /// One event is always let through, whatever its size.
    fn cost(&self, event: &Event) -> u32 {
        u32::try_from(event.weight()).unwrap_or(u32::MAX).min(self.bytes)
    }

    /// Who has dropped the events wants none.
    fn send(&self, event: Event, room: OwnedSemaphorePermit) {
        let _ = self.queue.send(Queued { event, _room: room });
    }
}

/// A try to connect: the socket, and the token to say on it.
type Dial = Pin<Box<dyn Future<Output = Result<(Socket, Option<String>), Loss>> + Send>>;

enum Link {
    None,
    Dialing(Dial),
    Open(Box<Socket>),
}

/// What has come by the link.
enum Heard {
    Opened(Box<Socket>, Option<String>),
    Text(Frame),
    SignOfLife,
    /// Nothing, but there are answers for the application: what was to be sent could not be.
    Answers,
    Lost(Loss),
}

enum Input {
    Close,
    Due,
    Room(OwnedSemaphorePermit),
    Heard(Heard),
    Command(Option<Command>),
    Token(Result<String, BoxError>),
}

/// See the module.
pub(super) struct Driver {
    pub(super) session: Session,
    pub(super) dialer: Arc<Dialer>,
    pub(super) clock: Clock,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: EventSender,
    /// True when the application has closed the client.
    pub(super) closing: watch::Receiver<bool>,
    /// How it has ended, for whoever asks later.
    pub(super) end: Arc<OnceLock<Closed>>,
    pub(super) waiters: HashMap<u64, Waiter>,
}

impl Driver {
    /// Until the client is over.
    pub(super) async fn run(mut self) {
        let mut link = Link::None;
        let mut connection = None;
        let mut token = None;
        let mut handles_are_gone = false;
        loop {
            self.hand_over();
            if self.session.over().is_some() {
                break;
            }
            let wanted = self.session.wanted_connection();
            if wanted != connection {
                connection = wanted;
                link = match wanted {
                    None => Link::None,
                    Some(_) => {
                        let dialer = Arc::clone(&self.dialer);
                        Link::Dialing(Box::pin(async move { dialer.dial().await }))
                    }
                };
            }
            if let Some(hook) = &self.dialer.token
                && self.session.poll_token(self.clock.now())
            {
                token = Some(hook());
            }
            match self.input(&mut link, &mut token, handles_are_gone).await {
                Input::Close => self.session.handle_close(self.clock.now()),
                Input::Due => self.session.handle_timeout(self.clock.now()),
                Input::Room(room) => {
                    if let Some(event) = self.session.take_event(self.clock.now()) {
                        self.events.send(event, room);
                    }
                }
                Input::Heard(Heard::Opened(socket, token)) => {
                    link = Link::Open(socket);
                    self.session.handle_opened(token.as_deref());
                }
                Input::Heard(Heard::Text(text)) => self.session.handle_text(self.clock.now(), &text),
                Input::Heard(Heard::SignOfLife) => self.session.handle_sign_of_life(self.clock.now()),
                Input::Heard(Heard::Answers) => {}
                Input::Heard(Heard::Lost(loss)) => {
                    link = Link::None;
                    self.session.handle_lost(self.clock.now(), loss);
                }
                Input::Command(Some(command)) => self.take(command),
                Input::Command(None) => handles_are_gone = true,
                Input::Token(asked) => {
                    token = None;
                    self.session.handle_token(self.clock.now(), asked.as_deref().ok());
                }
            }
        }
        drop(link);
        self.finish().await;
    }

    /// Whatever happens first.
    async fn input(&mut self, link: &mut Link, token: &mut Option<Token>, handles_are_gone: bool) -> Input {
        let due = self.session.poll_timeout().map(|time| self.clock.instant(time));
        let cost = self.session.event().map(|event| self.events.cost(event));
        let has_room = self.session.has_room();
        let Self { session, events, closing, commands, waiters, .. } = self;
        let is_unwanted = handles_are_gone && waiters.is_empty() && !session.is_closing();
        tokio::select! {
            // Without a handle nobody can close it; then the events decide.
            Ok(_) = closing.wait_for(|is_closing| *is_closing), if !session.is_closing() => Input::Close,
            () = sleep_until(due), if due.is_some() => Input::Due,
            Ok(room) = Arc::clone(&events.room).acquire_many_owned(cost.unwrap_or(0)), if cost.is_some() => Input::Room(room),
            () = events.queue.closed(), if is_unwanted => Input::Close,
            command = commands.recv(), if has_room && !handles_are_gone => Input::Command(command),
            token = asked(token) => Input::Token(token),
            heard = poll_fn(|cx| poll_link(link, session, cost.is_none(), cx)) => Input::Heard(heard),
        }
    }

    /// Answers, and the events that there is room for.
    fn hand_over(&mut self) {
        while let Some((id, answer)) = self.session.poll_answer() {
            if let Some(waiter) = self.waiters.remove(&id) {
                // Who has stopped waiting does not want to know.
                let _ = waiter.send(answer);
            }
        }
        while let Some(event) = self.session.event() {
            let Ok(room) = Arc::clone(&self.events.room).try_acquire_many_owned(self.events.cost(event)) else { break };
            if let Some(event) = self.session.take_event(self.clock.now()) {
                self.events.send(event, room);
            }
        }
    }

    fn take(&mut self, command: Command) {
        let session = &mut self.session;
        let (id, waiter) = match command {
            Command::Subscribe { topic, start, watches, waiter } => (session.subscribe(&topic, start, watches), waiter),
            Command::Unsubscribe { topic, waiter } => {
                let _ = waiter.send(session.unsubscribe(&topic));
                return;
            }
            Command::SubscribeToPattern { pattern, waiter } => (session.subscribe_to_pattern(&pattern), waiter),
            Command::UnsubscribeFromPattern { pattern, waiter } => {
                let _ = waiter.send(session.unsubscribe_from_pattern(&pattern));
                return;
            }
            Command::Publish { topic, data, about, deadline, within, waiter } => {
                (session.publish(&topic, &data, about, deadline, within), waiter)
            }
            Command::History { topic, start, limit, deadline, within, waiter } => {
                (session.history(&topic, &start, limit, deadline, within), waiter)
            }
            Command::Presence { topic, deadline, within, waiter } => (session.presence(&topic, deadline, within), waiter),
        };
        self.waiters.insert(id, waiter);
    }

    /// Says to everybody that it is over, and hands over what was heard before.
    async fn finish(mut self) {
        let closed = self.session.over().cloned().expect("the loop has ended for it");
        let _ = self.end.set(closed.clone());
        self.hand_over();
        self.waiters.clear();
        self.commands.close();
        // Their waiters are told by being dropped; they look at the end.
        while self.commands.try_recv().is_ok() {}
        while let Some(event) = self.session.event() {
            let cost = self.events.cost(event);
            tokio::select! {
                Ok(room) = Arc::clone(&self.events.room).acquire_many_owned(cost) => {
                    if let Some(event) = self.session.take_event(self.clock.now()) {
                        self.events.send(event, room);
                    }
                }
                () = self.events.queue.closed() => return,
            }
        }
    }
}

async fn asked(token: &mut Option<Token>) -> Result<String, BoxError> {
    match token {
        Some(token) => token.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// Makes the connection; then sends all that there is to send and fits, and reads one message.
fn poll_link(link: &mut Link, session: &mut Session, may_read: bool, cx: &mut Context<'_>) -> Poll<Heard> {
    let socket = match link {
        Link::None => return Poll::Pending,
        Link::Dialing(dial) => {
            return dial.as_mut().poll(cx).map(|dialled| match dialled {
                Ok((socket, token)) => Heard::Opened(Box::new(socket), token),
                Err(loss) => Heard::Lost(loss),
            });
        }
        Link::Open(socket) => socket,
    };
    let mut socket = Pin::new(&mut **socket);
    if let Err(error) = poll_write(socket.as_mut(), session, cx) {
        // What the other side has said before is worth more, if there is something.
        if !matches!(error, WsError::Io(_)) || !may_read {
            return Poll::Ready(Heard::Lost(broken(&error)));
        }
    }
    if session.has_answers() {
        return Poll::Ready(Heard::Answers);
    }
    if !may_read {
        return Poll::Pending;
    }
    socket.as_mut().poll_next(cx).map(|read| match read {
        Some(Ok(WsMessage::Text(text))) => Heard::Text(text),
        Some(Ok(WsMessage::Close(frame))) => {
            // Our half of the close, if the socket takes it.
            let _ = socket.poll_flush(cx);
            Heard::Lost(match frame {
                Some(CloseFrame { code, reason }) => {
                    Loss { code: Some(code.into()), hint: wire::hint(&reason), reason: reason.as_str().to_owned() }
                }
                None => Loss::of("the connection was closed without a code"),
            })
        }
        Some(Ok(_)) => Heard::SignOfLife,
        Some(Err(error)) => Heard::Lost(broken(&error)),
        None => Heard::Lost(Loss::of("the connection has ended without a goodbye")),
    })
}

fn poll_write(mut socket: Pin<&mut Socket>, session: &mut Session, cx: &mut Context<'_>) -> Result<(), WsError> {
    while let Poll::Ready(is_ready) = socket.as_mut().poll_ready(cx) {
        is_ready?;
        let message = match session.poll_transmit() {
            Some(Transmit::Text(frame)) => WsMessage::Text(frame),
            Some(Transmit::Close) => WsMessage::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Frame::default() })),
            None => break,
        };
        socket.as_mut().start_send(message)?;
    }
    match socket.poll_flush(cx) {
        Poll::Ready(flushed) => flushed,
        Poll::Pending => Ok(()),
    }
}

fn broken(error: &WsError) -> Loss {
    match error {
        WsError::Capacity(error) => Loss {
            code: Some(1009),
            reason: format!("the gateway has sent more than this client takes: {error}; raise Builder::frame_bytes_max"),
            hint: None,
        },
        error => Loss::of(format!("the connection has broken: {error}")),
    }
}
