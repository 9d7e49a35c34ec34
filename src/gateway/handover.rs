//! A shard's part of handing everything over to another process, or taking it over from one, without a connection's client knowing.
//!
//! ```text
//!   this process                                              the next one
//!   Freeze: polls are answered, work is worked off, still      frozen from birth
//!   HandOver ── topics, histories, keys, connections ───────▶  Inherit: each connection joins its topics where it was, still
//!   ends; or Thaw: serves on as if nothing had happened        Thaw: serves
//! ```
//!
//! While it is frozen a shard goes on: its driver says that what is sent is sent, and keeps it. So everything that is under way comes to its end, and what is
//! left of a connection is its socket, what its client is owed, bytes that were not handled, and where it is in its topics. Only time stands still: no deadline
//! passes, no operator is answered.
//!
//! What is left behind ends with this process: connections whose clients are owed more than `limits.handover_bytes_max`. A publish whose body has not come
//! whole is answered 503.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::Gateway;
use super::batches::Batch;
use super::counters::Transport;
use super::publishing::Receipt;
use super::session::{Habits, Session, State, micros};
use super::snapshot::{Chunk, Snapshot};
use super::state_stream::Restored;
use super::streams::{Kind, Stream};
use super::topic::Topic;
use crate::engine::driver::Driver;
use crate::engine::segment::{Arena, Gather, Ranges};
use crate::engine::sys::{Listener, Socket};
use crate::hub::Placement;
use crate::ids::ConnKey;
use crate::proto::position::Start;
use crate::proto::state::{Connection, Doing, Record};

/// What a shard of another process had.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Topics, histories and keys.
    pub snapshot: Snapshot,
    /// Connections.
    pub connections: Vec<(Socket, Connection)>,
}

impl Inheritance {
    /// What each shard takes up, in two steps: every topic is where it was before the first connection asks for one. The connections have these sockets.
    pub fn divide(mut restored: Restored, sockets: Vec<Socket>, placement: &Placement) -> [Vec<Self>; 2] {
        let mut connections: Vec<Self> = (0..placement.shards()).map(|_| Self::default()).collect();
        let shards = connections.len();
        for (number, connection) in sockets.into_iter().zip(mem::take(&mut restored.connections)).enumerate() {
            connections[number % shards].connections.push(connection);
        }
        let topics = restored.split(placement).into_iter().map(|snapshot| Self { snapshot, ..Self::default() }).collect();
        [topics, connections]
    }
}

impl<D: Driver> Gateway<D> {
    /// Takes nothing in and gives nothing out from now on.
    pub(super) fn freeze(&mut self, listener: &Sender<io::Result<Option<OwnedFd>>>) {
        self.frozen = true;
        self.end_rebalance();
        self.driver.freeze();
        for slot in 0..self.driver.slots() {
            if let Some((key, session)) = self.sessions.at(slot)
                && session.state == State::Polling
            {
                self.poll_timed_out(key);
            }
        }
        // Who has asked and does not wait any more has no use for it.
        let _ = listener.send(self.driver.share_listener());
    }

    /// Says whether there is nothing to do until somebody outside does something.
    pub(super) fn tell_stillness(&mut self) {
        // Everything has come that had been taken in: a body that is not whole now will not be.
        if self.events.is_empty() && self.driver.is_still() {
            self.refuse_uploads();
        }
        if self.is_still() {
            self.shared.rest(self.shard, self.mailbox.sent(), self.mail_received);
        }
    }

    fn refuse_uploads(&mut self) {
        let retry_ms = self.retry_ms();
        for slot in 0..self.driver.slots() {
            if let Some((key, session)) = self.sessions.at(slot)
                && session.state == State::Body
            {
                let message = "the gateway is restarting, and this request has not come whole: nothing of it was published; send it again";
                self.refuse_upload(key, Receipt::refused(503, "restarting", message, Some(retry_ms)), false);
            }
        }
    }

    fn is_still(&mut self) -> bool {
        let mail = self.mailbox.depth() > 0 || self.mailbox.overflow() > 0;
        let topics = !self.laps.is_empty()
            || !self.parked.is_empty()
            || !self.due_batches.is_empty()
            || !self.dispatches.is_empty()
            || !self.recounts.is_empty()
            || self.presence.is_busy()
            || self.wildcards.is_busy();
        let requests = !self.callers.is_empty() || !self.asked.is_empty() || !self.ready_polls.is_empty() || !self.leavers.is_empty();
        let receipts = self.awaited.len() > 0 || !self.counts.is_empty();
        if mail || topics || requests || receipts || !self.woken.is_empty() || self.staged.is_some() || !self.events.is_empty() {
            return false;
        }
        self.driver.is_still()
            && self.nats_has_all()
            && self.topics.values().all(Topic::has_no_uplink)
            && (0..self.driver.slots()).all(|slot| {
                let Some((_, session)) = self.sessions.at(slot) else { return true };
                !matches!(session.state, State::Joining | State::Awaiting | State::Polling | State::Body)
                    && (session.state != State::Json || session.stream().is_none_or(Stream::owes_no_answer))
            })
    }

    /// Gives out everything that another process needs to go on.
    pub(super) fn hand_over(&mut self, unix_ms: u64, to: &Sender<Chunk>) {
        // Who gives up half-way takes no more.
        let mut give = |chunk| drop(to.send(chunk));
        self.export(unix_ms, &mut give);
        let mut chunk = Chunk::default();
        let mut behind = 0_u64;
        for slot in 0..self.driver.slots() {
            let Some((key, _)) = self.sessions.at(slot) else { continue };
            match self.connection(key) {
                Some((socket, connection)) => {
                    chunk.sockets.push(socket);
                    chunk.add(&Record::Connection(Box::new(connection)), &mut give);
                }
                None => behind += 1,
            }
        }
        give(chunk);
        if behind > 0 {
            tracing::warn!(shard = %self.shard, connections = behind, "are left behind: their clients are owed more than limits.handover_bytes_max, or they are ending");
        }
    }

    /// A connection, as another process may go on with it.
    fn connection(&self, key: ConnKey) -> Option<(Socket, Connection)> {
        let session = self.sessions.get(key)?;
        let frozen = self.driver.frozen(key).filter(|frozen| frozen.rest.len() as u64 <= self.limits.handover_bytes_max)?;
        if session.direct.is_some() || session.behind.is_some() || self.driver.unsent(key) > 0 {
            return None;
        }
        let cold = session.cold.as_ref();
        let doing = match session.state {
            _ if frozen.ends => Doing::Ending,
            State::Head => Doing::Request { served: session.served, preface: session.awaits_preface() },
            // One that waits for its place has none that could be told.
            State::Room if !session.seated && cold.is_none_or(|cold| cold.replay_after.is_none()) => return None,
            State::Room => Doing::Room {
                topic: session.topic.and_then(|topic| self.topics.name(topic))?.clone(),
                no_echo: session.habits.no_echo(),
                thins: session.habits.thins(),
                after: cold.and_then(|cold| cold.replay_after).or_else(|| self.place_to_inherit(session.topic)),
            },
            State::Echo => Doing::Echo,
            State::Stream | State::Json => session.stream()?.to_inherit(self.epoch),
            State::Finishing | State::Lingering => Doing::Ending,
            State::Joining | State::Polling | State::Body | State::Awaiting | State::Closed => return None,
        };
        let mut input = cold.map_or_else(Vec::new, |cold| cold.decoder.to_input());
        input.extend(cold.into_iter().flat_map(|cold| &cold.input));
        let age_ms = self.since(key).map_or(0, |since| since.age(self.now).as_millis() as u64);
        let user = cold.and_then(|cold| cold.user.clone());
        let (deflate, client) = (session.deflate, self.noted_client(key));
        Some((frozen.socket, Connection { doing, age_ms, client, user, deflate, input, rest: frozen.rest }))
    }

    /// Goes on with what another process had, once it is thawed.
    pub(super) fn inherit(&mut self, inheritance: Inheritance, begun: &Sender<()>) {
        self.import(inheritance.snapshot);
        for (socket, connection) in inheritance.connections {
            self.inherit_one(socket, connection);
        }
        // Who does not wait any more calls it off.
        let _ = begun.send(());
    }

    fn inherit_one(&mut self, socket: Socket, connection: Connection) {
        let Connection { doing, age_ms, client, user, deflate, input, rest } = connection;
        let rest = (!rest.is_empty()).then(|| {
            let range = Arena::new(1, 1, &self.shared.memory).append(&rest, &[]);
            Rc::new(Gather::new(Ranges::from_buf([range])))
        });
        let key = self.driver.inherit(socket, rest);
        self.busy = true;
        self.shared.admit_anyway();
        self.shared.add_load(self.shard);
        self.counters.connections.of(Transport::Http).add(1);
        self.counters.inherited.add(1);
        self.sessions.insert(key, Session { deflate, ..Session::new(self.now, None) });
        self.note_opened(key, self.now - Duration::from_millis(age_ms));
        if let Some(client) = client {
            self.note_client(key, client);
        }
        self.note_user(key, user);
        self.count_inherited(key, client);
        if !input.is_empty() {
            self.unread.push((key, input));
        }
        match doing {
            Doing::Request { served, preface } => {
                let Some(session) = self.sessions.get_mut(key) else { return };
                session.served = served;
                if preface {
                    session.cold.get_or_insert_default().preface = true;
                }
                self.restore_deadline(key);
            }
            Doing::Room { topic, no_echo, thins, after } => {
                self.inherit_transport(key, Transport::Ws);
                self.join(key, topic, Habits::new(no_echo, thins), after.map(Start::After), Vec::new());
            }
            Doing::Echo => {
                self.inherit_transport(key, Transport::Ws);
                self.opened(key, State::Echo);
            }
            Doing::Stream { retry_ms, window_ms, topics } => {
                self.inherit_transport(key, Transport::Sse);
                let stream = Stream::inherited(Kind::Events, topics, retry_ms, window_ms);
                self.begin_stream(key, stream);
            }
            Doing::Json { window_ms, topics, patterns, batch } => {
                self.inherit_transport(key, Transport::Ws);
                let mut stream = Stream::inherited(Kind::Json, topics, 0, window_ms);
                stream.talk.patterns = patterns;
                stream.talk.batch = batch.then(Batch::default);
                self.begin_stream(key, stream);
            }
            Doing::Ending => {
                let Some(session) = self.sessions.get_mut(key) else { return };
                session.state = State::Lingering;
                self.driver.shut_write(key);
                self.timers.set(key.slot, self.now + Duration::from_millis(self.limits.linger_ms));
            }
        }
    }

    fn inherit_transport(&mut self, key: ConnKey, transport: Transport) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.transport = transport;
            self.counters.connections.of(Transport::Http).sub(1);
            self.counters.connections.of(transport).add(1);
        }
    }

    /// Goes on.
    pub(super) fn thaw(&mut self, listener: Option<Listener>) {
        if !self.frozen {
            // It was called off before it came to a freeze.
            return;
        }
        self.frozen = false;
        self.shared.stir(self.shard);
        self.driver.thaw();
        match listener {
            Some(listener) if self.driver.is_listening() => listener.discard(),
            Some(listener) => self.driver.listen(listener),
            None => {}
        }
        for (key, input) in std::mem::take(&mut self.unread) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.hold(&input);
                self.feed_held(key);
            }
        }
        for slot in 0..self.driver.slots() {
            let Some((key, session)) = self.sessions.at(slot) else { continue };
            if self.driver.unsent(key) > 0 {
                session.sent_us = micros(self.now);
                match session.state {
                    // What was told to be sent was not: our side is shut, or the connection taken down, behind it whatever its peer does; and not for ever.
                    State::Lingering => session.state = State::Finishing,
                    State::Closed => self.timers.set(key.slot, self.now + Duration::from_millis(self.limits.linger_ms)),
                    _ => self.recent_sends.push(key),
                }
            } else if session.cold.is_some() && session.state != State::Joining {
                // It may wait for the next piece of a history.
                self.pump(key);
            }
        }
    }
}
