//! What a client decides: when there is a connection, what is said on it, what is heard. No socket, no clock: inputs are `handle_…` and what the application
//! wants, outputs are `poll_…`, time and randomness are arguments.
//!
//! ```text
//!               due                  welcome                    loss
//!   Waiting ──────────▶ Connecting ──────────▶ Welcomed ──────────────────▶ Waiting, until the next try
//!                            │ failure                 │ 44xx, or tries used up
//!                            └────────────▶ Waiting    └────────────────────────▶ Over
//! ```
//!
//! A topic keeps the position of the last message that was handed over, and every connection asks for what came after it. So a loss at any point
//! misses and repeats nothing. (`topics` has them, and the patterns.)

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::{LASTED, Outlook};
use super::event::{Closed, Error, Event};
use super::message::{Data, Gap, GapReason, History, Message, Position, Receipt, Start};
use super::presence::Presence;
use super::requests::{Request, Requests, Wants};
use super::topics::{BROUGHT_MAX, Bringing, Brought, Stage, Topic, Topics};
use super::wire::{self, About, Frame, Kind, Said};
use crate::time::Time;

/// How long the other side of a close is waited for.
const GOODBYE: Duration = Duration::from_secs(2);
/// What waits to be sent besides requests, at most, before nothing more is taken from the application.
const OUTBOX_MAX: usize = 256;
/// Bounds of how often a silent gateway is asked for a sign of life, whatever it says.
const PING_MIN: Duration = Duration::from_millis(100);
const PING_MAX: Duration = Duration::from_secs(300);

/// How soon a token is asked for again that was not to be had while the one before still holds.
const TOKEN_AGAIN: Duration = Duration::from_secs(1);

/// What can be chosen; the defaults are those of [`Builder`](super::Builder).
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) connect_within: Duration,
    /// How long a ping may be without an answer.
    pub(super) pong_within: Duration,
    /// Whether there is somebody to ask for tokens.
    pub(super) has_tokens: bool,
    /// The gateway may put several things into one message.
    pub(super) batch: bool,
    pub(super) tries_max: Option<u32>,
    pub(super) unanswered_max: usize,
    pub(super) unanswered_bytes_max: usize,
}

/// Why there is no connection any more, or why there was none.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Loss {
    pub(super) code: Option<u16>,
    pub(super) reason: String,
    pub(super) hint: Option<Duration>,
}

impl Loss {
    pub(super) fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    fn text(&self) -> String {
        match (self.code, &*self.reason) {
            (Some(code), "") => format!("closed with {code}"),
            (Some(code), reason) => format!("{code} {reason}"),
            (None, reason) => reason.to_owned(),
        }
    }
}

/// Whether a code says that something must change first (docs/protocol.md section 7).
fn is_final(code: u16) -> bool {
    (4400..4500).contains(&code) || [1000, 1002, 1007, 1009].contains(&code)
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Subscribed(Position),
    Following,
    Published(Receipt),
    History(History),
    Presence(Presence),
}

/// Something to send.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Transmit {
    Text(Frame),
    /// The close frame: the application has closed the client.
    Close,
}

enum Phase {
    Waiting { until: Time },
    Connecting { until: Time },
    Welcomed(Welcomed),
    Closing { is_said: bool, until: Time },
    Over(Closed),
}

struct Welcomed {
    since: Time,
    /// When anything last came.
    heard: Time,
    ping: Duration,
    /// When it is given up, if nothing comes: it was asked for a sign of life, or has said goodbye.
    until: Option<Time>,
    bye: Option<Loss>,
    renewal: Option<Renewal>,
}

/// The gateway wants another token.
struct Renewal {
    /// When to ask for it; none while it is being asked for.
    due: Option<Time>,
    /// When the one before does not hold any more.
    until: Time,
}

/// See the module.
pub(super) struct Session {
    options: Options,
    random: fastrand::Rng,
    /// What the ids of this client's messages begin with: no other client has the same.
    prefix: u64,
    phase: Phase,
    /// Counts tries to connect: a connection belongs to one of them.
    attempt: u64,
    fails: u32,
    /// Times in a row that the gateway did not go on from where this client was.
    cut_off: u32,
    window: Duration,
    max_bytes: u64,
    topics: Topics,
    requests: Requests,
    outbox: VecDeque<Frame>,
    events: VecDeque<Event>,
    answers: VecDeque<(u64, Result<Answer, Error>)>,
    last_id: u64,
}

impl Session {
    /// One that connects at once.
    pub(super) fn new(options: Options, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            options,
            prefix: random.u64(..),
            random,
            phase: Phase::Waiting { until: Time::ZERO },
            attempt: 0,
            fails: 0,
            cut_off: 0,
            window: Duration::ZERO,
            max_bytes: u64::MAX,
            topics: Topics::default(),
            requests: Requests::default(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            answers: VecDeque::new(),
            last_id: 0,
        }
    }

    // ---- what the application wants --------------------------------------------------------------------------------------------------

    /// Whether another request may be taken now.
    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < self.options.unanswered_max
            && self.requests.bytes() < self.options.unanswered_bytes_max
            && self.outbox.len() < OUTBOX_MAX
    }

    /// Wants a topic, and perhaps to know who is there. The answer comes under this id when it has its place.
    pub(super) fn subscribe(&mut self, topic: &str, start: Start, watches: bool) -> u64 {
        let id = self.next_id();
        match self.topics.want(topic, start, watches, id) {
            Ok(name) => self.ask_anew_for(&name),
            Err(refusal) => self.answers.push_back((id, Err(refusal))),
        }
        id
    }

    /// Does not want it any more. Whether it was subscribed to by its name.
    pub(super) fn unsubscribe(&mut self, topic: &str) -> bool {
        let Some(given_up) = self.topics.give_up(topic) else { return false };
        if let Some(waiter) = given_up.waiter {
            self.answers.push_back((waiter, Err(Error::Unsubscribed(topic.into()))));
        }
        if given_up.stays {
            self.ask_anew_for(&given_up.name);
        } else if given_up.stage.is_known() {
            self.stop(&given_up.name);
        }
        true
    }

    /// Wants all topics that a pattern means. The answer comes under this id when they have their places.
    pub(super) fn subscribe_to_pattern(&mut self, pattern: &str) -> u64 {
        let id = self.next_id();
        match self.topics.want_pattern(pattern, id) {
            Ok(pattern) if matches!(self.phase, Phase::Welcomed(_)) => self.ask_for_pattern(&pattern),
            Ok(_) => {}
            Err(refusal) => self.answers.push_back((id, Err(refusal))),
        }
        id
    }

    /// Does not want them any more, but for those that another pattern or the application has named. Whether it was subscribed to.
    pub(super) fn unsubscribe_from_pattern(&mut self, pattern: &str) -> bool {
        let Some((given_up, named)) = self.topics.give_up_pattern(pattern) else { return false };
        if let Some(waiter) = given_up.waiter {
            self.answers.push_back((waiter, Err(Error::Unsubscribed(pattern.into()))));
        }
        if given_up.stage.is_known() {
            let id = self.next_id();
            self.outbox.push_back(wire::unsubscribe_from_pattern(id, pattern));
        }
        named.iter().for_each(|name| self.stop(name));
        true
    }

    /// Nobody waits for an answer before the client is made: what is too much is told as an event. What is wanted twice is there.
    pub(super) fn refuse_at_start(&mut self, name: &str) {
        if let Some((_, Err(error @ (Error::TooManyTopics { .. } | Error::TooManyPatterns { .. })))) = self.answers.pop_back() {
            self.refuse(name.into(), None, "too_many_topics".into(), error.to_string().into());
        }
    }

    /// Publishes. The receipt comes under this id.
    pub(super) fn publish(&mut self, topic: &str, data: &Data, mut about: About, deadline: Time, within: Duration) -> u64 {
        let id = self.next_id();
        if about.msg_id.is_empty() {
            about.msg_id = format!("{:016x}-{id}", self.prefix);
        }
        let bytes = data.as_bytes().len();
        let frame = wire::publish(id, topic, data, &about);
        self.requests.add(id, Request { wants: Wants::Receipt, topic: topic.into(), frame, bytes, deadline, within });
        id
    }

    /// Asks for a part of a topic's history.
    pub(super) fn history(&mut self, topic: &str, start: &Start, limit: Option<u32>, deadline: Time, within: Duration) -> u64 {
        let id = self.next_id();
        let frame = wire::history(id, topic, start, limit);
        self.requests.add(id, Request { wants: Wants::History, topic: topic.into(), frame, bytes: 0, deadline, within });
        id
    }

    /// Asks who is in a topic.
    pub(super) fn presence(&mut self, topic: &str, deadline: Time, within: Duration) -> u64 {
        let id = self.next_id();
        let frame = wire::presence(id, topic);
        self.requests.add(id, Request { wants: Wants::Presence, topic: topic.into(), frame, bytes: 0, deadline, within });
        id
    }

    /// Closes the client. What has no answer gets none, what is not handed over is not.
    pub(super) fn handle_close(&mut self, now: Time) {
        self.events.clear();
        match self.phase {
            Phase::Welcomed(_) => {
                self.outbox.clear();
                self.phase = Phase::Closing { is_said: false, until: now + GOODBYE };
            }
            Phase::Waiting { .. } | Phase::Connecting { .. } => self.end(closed()),
            Phase::Closing { .. } | Phase::Over(_) => {}
        }
    }

    // ---- what happens to the connection ----------------------------------------------------------------------------------------------

    /// The upgrade is through.
    pub(super) fn handle_opened(&mut self, token: Option<&str>) {
        if matches!(self.phase, Phase::Connecting { .. }) {
            self.outbox.extend(wire::hello(token, self.options.batch));
        }
    }

    /// The token that [`Session::poll_token`] has asked for, or that there is none now.
    pub(super) fn handle_token(&mut self, now: Time, token: Option<&str>) {
        let id = self.next_id();
        let Phase::Welcomed(welcomed) = &mut self.phase else { return };
        let Some(renewal) = &mut welcomed.renewal else { return };
        let again = now + TOKEN_AGAIN;
        match token {
            Some(token) => {
                welcomed.renewal = None;
                self.outbox.push_back(wire::auth(id, token));
            }
            None if again < renewal.until => renewal.due = Some(again),
            // The gateway ends the connection, and each connection asks for its token.
            None => welcomed.renewal = None,
        }
    }

    /// Anything has come: the other side lives.
    pub(super) fn handle_sign_of_life(&mut self, now: Time) {
        if let Phase::Welcomed(welcomed) = &mut self.phase {
            welcomed.heard = now;
            if welcomed.bye.is_none() {
                welcomed.until = None;
            }
        }
    }

    /// A text message.
    pub(super) fn handle_text(&mut self, now: Time, text: &str) {
        self.handle_sign_of_life(now);
        if matches!(self.phase, Phase::Closing { .. } | Phase::Over(_)) {
            return;
        }
        for said in Said::read(text) {
            match said {
                Ok(said) => self.hear(now, said),
                Err(error) => {
                    let shown: String = text.chars().take(80).collect();
                    return self.lose(now, Loss::of(format!("the gateway has sent what cannot be read ({error}): {shown}")));
                }
            }
        }
    }

    /// There is no connection any more, or there was none to be had.
    pub(super) fn handle_lost(&mut self, now: Time, loss: Loss) {
        match self.phase {
            Phase::Closing { .. } => self.end(closed()),
            Phase::Over(_) => {}
            _ => self.lose(now, loss),
        }
    }

    /// The time that [`Session::poll_timeout`] has named has come.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        while let Some((id, request)) = self.requests.take_late(now) {
            self.answers.push_back((id, Err(Error::Timeout(request.within))));
        }
        self.requests.release(now);
        match &mut self.phase {
            // Who does not read what it is told is not told more.
            Phase::Waiting { until } if now >= *until && self.events.is_empty() => {
                self.attempt += 1;
                self.phase = Phase::Connecting { until: now + self.options.connect_within };
            }
            Phase::Connecting { until } if now >= *until => {
                let why = format!("no connection within {:?}", self.options.connect_within);
                self.lose(now, Loss::of(why));
            }
            Phase::Welcomed(welcomed) if self.events.is_empty() => match welcomed.until {
                Some(until) if now >= until => {
                    let silent = Loss::of(format!("nothing was heard for {:?}", now.since(welcomed.heard)));
                    self.lose(now, silent);
                }
                None if now >= welcomed.heard + welcomed.ping => {
                    welcomed.until = Some(now + self.options.pong_within);
                    self.outbox.push_back(wire::ping());
                    self.ask_again(now);
                }
                _ => self.ask_again(now),
            },
            Phase::Closing { until, .. } if now >= *until => self.end(closed()),
            _ => {}
        }
    }

    // ---- what comes out --------------------------------------------------------------------------------------------------------------

    /// The try that there should be a connection for; none while it waits.
    pub(super) fn wanted_connection(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting { .. } | Phase::Over(_) => None,
            _ => Some(self.attempt),
        }
    }

    /// Whether a token is to be asked for now, to be said on this connection; once.
    pub(super) fn poll_token(&mut self, now: Time) -> bool {
        let Phase::Welcomed(Welcomed { renewal: Some(renewal), .. }) = &mut self.phase else { return false };
        renewal.due.take_if(|due| now >= *due).is_some()
    }

    /// How it has ended, if it has.
    pub(super) fn over(&self) -> Option<&Closed> {
        match &self.phase {
            Phase::Over(closed) => Some(closed),
            _ => None,
        }
    }

    /// Whether it says goodbye, and takes nothing any more.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// The next thing to send on the connection.
    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        if let Phase::Closing { is_said, .. } = &mut self.phase {
            return (!std::mem::replace(is_said, true)).then_some(Transmit::Close);
        }
        if let Some(frame) = self.outbox.pop_front() {
            return Some(Transmit::Text(frame));
        }
        while matches!(&self.phase, Phase::Welcomed(welcomed) if welcomed.bye.is_none()) {
            let max = self.max_bytes;
            let (id, request) = self.requests.next_to_send()?;
            let bytes = request.bytes;
            if bytes as u64 <= max {
                return Some(Transmit::Text(request.frame.clone()));
            }
            // It would cost the connection.
            self.requests.take(id);
            self.answers.push_back((id, Err(Error::TooLarge { bytes, max })));
        }
        None
    }

    /// Whether there are answers to be handed over.
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The next answer, and whose.
    pub(super) fn poll_answer(&mut self) -> Option<(u64, Result<Answer, Error>)> {
        self.answers.pop_front()
    }

    /// The next event, to be looked at: while there is one nothing is read.
    pub(super) fn event(&self) -> Option<&Event> {
        self.events.front()
    }

    /// Takes it. That nothing was heard meanwhile was our own fault.
    pub(super) fn take_event(&mut self, now: Time) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            self.handle_sign_of_life(now);
        }
        event
    }

    /// When to call [`Session::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let is_read = self.events.is_empty();
        let own = match &self.phase {
            Phase::Waiting { until } => is_read.then_some(*until),
            Phase::Connecting { until } | Phase::Closing { until, .. } => Some(*until),
            Phase::Welcomed(welcomed) => {
                let silence = is_read.then(|| welcomed.until.unwrap_or(welcomed.heard + welcomed.ping));
                let later = self.topics.next_due().filter(|_| is_read);
                let renewal = welcomed.renewal.as_ref().and_then(|renewal| renewal.due);
                later.into_iter().chain(silence).chain(renewal).min()
            }
            Phase::Over(_) => None,
        };
        own.into_iter().chain(self.requests.next_due()).min()
    }

    // ---- inside ----------------------------------------------------------------------------------------------------------------------

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn ask_for(&mut self, name: &Arc<str>) {
        let id = self.next_id();
        if let Some((start, watches)) = self.topics.ask_for(name, id) {
            self.outbox.push_back(wire::subscribe(id, name, &start, watches));
        }
    }

    fn ask_for_pattern(&mut self, pattern: &Arc<str>) {
        let id = self.next_id();
        self.topics.ask_for_pattern(pattern, id);
        self.outbox.push_back(wire::subscribe_to_pattern(id, pattern));
    }

    /// Asks for a topic by its name, also where the gateway has it from a pattern, or was asked for it otherwise.
    fn ask_anew_for(&mut self, name: &Arc<str>) {
        if matches!(self.phase, Phase::Welcomed(_)) {
            if self.topics.is_known(name) {
                self.stop(name);
            }
            self.ask_for(name);
        }
    }

    /// The gateway need not send a topic any more.
    fn stop(&mut self, name: &str) {
        let id = self.next_id();
        self.outbox.push_back(wire::unsubscribe(id, name));
    }

    /// Asks for what was not to be had before.
    fn ask_again(&mut self, now: Time) {
        let (names, patterns) = self.topics.due(now);
        names.iter().for_each(|name| self.ask_for(name));
        patterns.iter().for_each(|pattern| self.ask_for_pattern(pattern));
    }

    fn hear(&mut self, now: Time, said: Said) {
        match said {
            Said::Welcome { conn, ping, window, max_bytes } => {
                if !matches!(self.phase, Phase::Connecting { .. }) {
                    return;
                }
                let ping = ping.clamp(PING_MIN, PING_MAX);
                self.phase = Phase::Welcomed(Welcomed { since: now, heard: now, ping, until: None, bye: None, renewal: None });
                (self.window, self.max_bytes) = (window, max_bytes);
                self.requests.restart();
                self.events.push_back(Event::Connected { conn });
                let (names, patterns) = self.topics.to_ask_for();
                names.iter().for_each(|name| self.ask_for(name));
                patterns.iter().for_each(|pattern| self.ask_for_pattern(pattern));
            }
            Said::Subscribed { id, pos, recovered } => self.hear_subscribed(id, pos, recovered),
            Said::Brought { topic, pos } => self.hear_brought(now, &topic, pos),
            Said::Done { id } => {
                let Some((pattern, entry)) = self.topics.pattern_asked_by(id) else { return };
                entry.stage = Stage::Placed;
                self.answers.extend(entry.waiter.take().map(|waiter| (waiter, Ok(Answer::Following))));
                self.events.push_back(Event::Following { pattern });
            }
            Said::Message { topic, pos, data, event } => {
                let Some(topic) = self.topics.go_on_to(&topic, &pos) else { return };
                self.cut_off = 0;
                self.events.push_back(Event::Message(Message { topic, pos, data, event }));
            }
            Said::Gap { topic, from, to, reason } => {
                let Some((topic, entry)) = self.topics.placed(&topic) else { return };
                if reason != GapReason::Unknown && entry.pos.as_ref().is_some_and(|had| !to.is_after(had)) {
                    return;
                }
                entry.pos = Some(to.clone());
                self.cut_off = 0;
                self.events.push_back(Event::Gap(Gap { topic, from, to, reason }));
            }
            Said::Published { id, pos, subscribers, duplicate } => {
                self.answer(id, Wants::Receipt, Answer::Published(Receipt { pos, subscribers, duplicate }));
            }
            Said::History { id, history } => self.answer(id, Wants::History, Answer::History(history)),
            Said::Presence { id: Some(id), presence, .. } => self.answer(id, Wants::Presence, Answer::Presence(presence)),
            Said::Presence { kind, id: None, presence } => {
                let Some((topic, Topic { watches: true, .. })) = self.topics.placed(&presence.topic) else { return };
                let presence = Presence { topic, ..presence };
                self.events.push_back(match kind {
                    Kind::All => Event::Presence(presence),
                    Kind::Join => Event::Join(presence),
                    Kind::Leave => Event::Leave(presence),
                });
            }
            Said::Error { id, code, message, retry } => self.hear_error(now, id, code, message, retry),
            Said::Announcement { text } => self.events.push_back(Event::Announcement(text)),
            Said::AuthExpiring { within } => {
                if let Phase::Welcomed(welcomed) = &mut self.phase
                    && self.options.has_tokens
                {
                    welcomed.renewal = Some(Renewal { due: Some(now), until: now + within });
                }
            }
            Said::Retry { window } => self.window = window,
            Said::Bye { code, reason, retry } => {
                if let Phase::Welcomed(welcomed) = &mut self.phase {
                    // The close frame is behind it.
                    welcomed.bye = Some(Loss { code: Some(code), reason: reason.into(), hint: retry });
                    welcomed.until = Some(now + GOODBYE);
                }
            }
            Said::Other => {}
        }
    }

    /// What is no answer to what was asked under this id is left alone.
    fn answer(&mut self, id: u64, wants: Wants, answer: Answer) {
        if self.requests.wants(id) == Some(wants) && self.requests.take(id).is_some() {
            self.answers.push_back((id, Ok(answer)));
        }
    }

    fn hear_subscribed(&mut self, id: u64, pos: Position, recovered: bool) {
        let Some((name, topic)) = self.topics.asked_by(id) else { return };
        topic.stage = Stage::Placed;
        let waiter = topic.waiter.take();
        let mut gap = None;
        if std::mem::take(&mut topic.begins_anew) {
            let from = topic.pos.replace(pos.clone());
            gap = Some(Gap { topic: Arc::clone(&name), from, to: pos, reason: GapReason::ContinuityLost });
        } else if topic.pos.is_none() {
            topic.pos = Some(pos);
        }
        let pos = topic.pos.clone().expect("it was given one above");
        self.events.push_back(Event::Subscribed { topic: name, pos: pos.clone(), recovered });
        self.events.extend(gap.map(Event::Gap));
        self.answers.extend(waiter.map(|id| (id, Ok(Answer::Subscribed(pos)))));
    }

    fn hear_brought(&mut self, now: Time, topic: &str, pos: Position) {
        match self.topics.bring(topic, pos, now) {
            Bringing::Placed(Brought { topic, pos, recovered, gap }) => {
                self.events.push_back(Event::Subscribed { topic, pos, recovered });
                self.events.extend(gap.map(Event::Gap));
            }
            Bringing::Late(name) => {
                self.stop(&name);
                self.ask_for(&name);
            }
            Bringing::LeftOut => {
                self.stop(topic);
                let message = format!("{topic}: this client knows the places of as many topics of patterns as it may ({BROUGHT_MAX})");
                self.events.push_back(Event::LeftOut { code: "too_many_topics".into(), message: message.into() });
            }
            Bringing::Nothing => {}
        }
    }

    fn hear_error(&mut self, now: Time, id: Option<u64>, code: Box<str>, message: Box<str>, retry: Option<Duration>) {
        // Unasked it says that something is missing of what patterns mean.
        let Some(id) = id else { return self.events.push_back(Event::LeftOut { code, message }) };
        if let Some(retry) = retry {
            self.topics.put_off(id, now + retry);
            self.requests.hold(id, now + retry);
        } else if let Some((name, topic)) = self.topics.asked_by(id) {
            let (waiter, is_own) = (topic.waiter, topic.is_own);
            match &*code {
                // It had its place before: its messages are worth more.
                "no_presence" if waiter.is_none() => {
                    topic.watches = false;
                    self.ask_for(&name);
                    return self.events.push_back(Event::PresenceRefused { topic: name, message });
                }
                // The pattern may bring it.
                _ if !is_own => topic.stage = Stage::Idle,
                // A pattern has brought it at the same moment.
                "already_subscribed" if self.topics.is_meant(&name) => return self.ask_anew_for(&name),
                // Where a pattern means it too, it goes on as one of its topics.
                _ => {
                    if self.topics.give_up(&name).is_some_and(|given_up| given_up.stays) {
                        self.ask_anew_for(&name);
                    }
                }
            }
            self.refuse(name, waiter, code, message);
        } else if let Some((pattern, entry)) = self.topics.pattern_asked_by(id) {
            let waiter = entry.waiter;
            let named = self.topics.give_up_pattern(&pattern).map_or_else(Vec::new, |(_, named)| named);
            named.iter().for_each(|name| self.stop(name));
            self.refuse(pattern, waiter, code, message);
        } else if self.requests.take(id).is_some() {
            self.answers.push_back((id, Err(Error::Refused { code, message })));
        }
    }

    fn refuse(&mut self, topic: Arc<str>, waiter: Option<u64>, code: Box<str>, message: Box<str>) {
        let refused = Error::Refused { code: code.clone(), message: message.clone() };
        self.answers.extend(waiter.map(|waiter| (waiter, Err(refused))));
        self.events.push_back(Event::Refused { topic, code, message });
    }

    fn lose(&mut self, now: Time, mut loss: Loss) {
        const CONTINUITY_LOST: u16 = 4510;
        let (mut lasted, mut heard) = (false, None);
        if let Phase::Welcomed(welcomed) = &mut self.phase {
            heard = Some(welcomed.heard);
            lasted = now.since(welcomed.since) >= LASTED;
            // What was said in words counts more than how the socket ended.
            loss = welcomed.bye.take().unwrap_or(loss);
        }
        self.fails = if lasted { 0 } else { self.fails.saturating_add(1) };
        if let Some(code) = loss.code.filter(|code| is_final(*code)) {
            return self.end(Closed { code: Some(code), reason: loss.text().into() });
        }
        if self.options.tries_max.is_some_and(|max| self.fails >= max) {
            let reason = format!("given up after {} tries in a row; the last one ended with: {}", self.fails, loss.text());
            return self.end(Closed { code: None, reason: reason.into() });
        }
        if loss.code == Some(CONTINUITY_LOST) {
            self.cut_off += 1;
        }
        self.topics.lose(heard, self.cut_off > 1);
        self.outbox.clear();
        // The first time that a connection is lost all may have been: it is spread over the window, however short that connection was.
        let fails = if heard.is_some() && self.fails == 1 { 0 } else { self.fails };
        let wait = Outlook { hint: loss.hint, window: self.window, fails }.wait(self.random.f64());
        self.phase = Phase::Waiting { until: now + wait };
        self.events.push_back(Event::Reconnecting { wait, why: loss.text().into() });
    }

    /// For good.
    fn end(&mut self, closed: Closed) {
        let waiters = self.topics.end();
        self.answers.extend(waiters.into_iter().map(|id| (id, Err(Error::Closed(closed.clone())))));
        while let Some(id) = self.requests.take_any() {
            self.answers.push_back((id, Err(Error::Closed(closed.clone()))));
        }
        self.outbox.clear();
        self.phase = Phase::Over(closed);
    }
}

/// The application has wanted it.
fn closed() -> Closed {
    Closed { code: None, reason: "the client was closed".into() }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
