//! Request heads: read as they come, answered by [`endpoints`](super::endpoints), and turned into upgrades.

use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::counters::{HandshakeResult, Transport};
use super::endpoints::{Answer, Context, Unavailable, answer};
use super::session::State;
use super::streams::Kind;
use crate::engine::driver::Driver;
use crate::ids::ConnKey;
use crate::proto::http::{HeadError, HeadStorage, Response, head_end, parse_head};
use crate::proto::json::presence::User;
use crate::proto::ws::extension::Window;

impl<D: Driver> Gateway<D> {
    /// Handles one request head at the front of `bytes`; how many bytes it took. 0 when it is not complete.
    pub(super) fn read_request(&mut self, key: ConnKey, bytes: &[u8]) -> usize {
        if self.direct_bytes(key) > 0 || self.driver.unsent(key) > 0 {
            // One answer at a time: whoever pipelines reads the last one first.
            self.pause_reading(key);
            return 0;
        }
        let max = self.limits.head_bytes_max as usize;
        if self.sessions.get(key).is_some_and(|session| session.awaits_preface()) {
            return self.read_preface(key, bytes);
        }
        if !self.has_turn(key) {
            if bytes.len() > max {
                self.pause_reading(key);
            }
            return 0;
        }
        let Some(session) = self.sessions.get_mut(key) else { return bytes.len() };
        let scanned = session.cold.as_mut().map_or(0, |cold| std::mem::take(&mut cold.scanned));
        if head_end(bytes, scanned).is_none() && bytes.len() <= max {
            session.cold.get_or_insert_default().scanned = bytes.len();
            if scanned == 0 && session.served {
                self.timers.set(key.slot, self.now + Duration::from_millis(self.limits.head_timeout_ms));
            }
            return 0;
        }
        self.requests_left -= 1;
        let mut storage = HeadStorage::new();
        match parse_head(&mut storage, bytes, max) {
            Ok(Some(head)) => {
                let len = head.len;
                let refused = self.sessions.get(key).and_then(|session| session.refused);
                let unavailable = match self.drain {
                    Some(_) => Some(Unavailable::Draining),
                    None => refused.or_else(|| self.address_from_head(key, &head)),
                };
                let busy = match (self.address_may_open(key), self.may_open()) {
                    (false, _) => Some(Unavailable::Address),
                    (_, false) => Some(Unavailable::Busy),
                    _ => None,
                };
                // Only who asks for a WebSocket or a stream is told this.
                let stands_in_line = unavailable.is_none() && busy == Some(Unavailable::Busy);
                let retry_ms = if stands_in_line { self.line_ms() } else { self.retry_ms() };
                let context = Context {
                    presence: &self.presence,
                    origins: &self.origins,
                    pages: &self.pages,
                    unavailable,
                    busy,
                    takes_messages: !self.has_said_goodbye(),
                    compression: self.compression,
                    limits: &self.limits,
                    retry_ms,
                };
                let answer = answer(&head, &context);
                let keep = head.keep_alive() && self.drain.is_none();
                let head_only = head.method == "HEAD";
                self.carry_out(key, answer.for_head(head_only), keep);
                len
            }
            Ok(None) => 0,
            Err(error) => {
                self.refuse_head(key, &error, bytes.starts_with(b"HEAD "));
                bytes.len()
            }
        }
    }

    /// Whether a connection's request is read now. If not it has its turn after the others, in this step or a later one.
    fn has_turn(&mut self, key: ConnKey) -> bool {
        let is_next = self.callers.is_empty() || self.called == Some(key);
        let Some(session) = self.sessions.get_mut(key) else { return true };
        if is_next && self.requests_left > 0 {
            return true;
        }
        if !std::mem::replace(&mut session.cold.get_or_insert_default().queued, true) {
            self.callers.push_back(key);
        }
        false
    }

    /// Answers those whose request waits for its turn.
    pub(super) fn answer_callers(&mut self) {
        while self.requests_left > 0
            && let Some(key) = self.callers.pop_front()
        {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if let Some(cold) = &mut session.cold {
                cold.queued = false;
            }
            let is_paused = session.paused;
            self.called = Some(key);
            if is_paused {
                self.resume_reading(key);
            } else {
                self.feed_held(key);
            }
        }
        self.called = None;
    }

    /// Bytes of a head that never came whole: answered 408.
    pub(super) fn head_timed_out(&mut self, key: ConnKey) {
        let message = format!("no whole request head within {} ms (limits.head_timeout_ms)", self.limits.head_timeout_ms);
        self.respond(key, Response::error(408, &message).close());
        self.end(key, CloseCause::HeadTimeout);
    }

    fn refuse_head(&mut self, key: ConnKey, error: &HeadError, head_only: bool) {
        tracing::debug!(conn = %self.id(key), %error, "request refused");
        let response = Response::error(error.status(), &error.to_string()).close();
        self.respond(key, if head_only { response.head_only() } else { response });
        self.end(key, CloseCause::BadRequest);
    }

    fn carry_out(&mut self, key: ConnKey, answer: Answer, keep: bool) {
        match answer {
            Answer::Respond(response) => {
                let response = if keep { response } else { response.close() };
                let failed = response.status() >= 400;
                let closes = !keep || response.closes();
                self.respond(key, response);
                if closes {
                    self.end(key, if failed { CloseCause::BadRequest } else { CloseCause::HttpDone });
                } else {
                    self.await_next_request(key);
                }
            }
            Answer::Refuse(response, cause) => self.refuse(key, response, cause),
            Answer::RefusePolitely(upgrade, response, cause) => {
                if self.admission.take_polite(self.now) {
                    self.counters.handshakes.of(HandshakeResult::Refused).add(1);
                    self.upgraded(key, &upgrade);
                    self.end(key, cause);
                } else {
                    self.refuse(key, response, cause);
                }
            }
            Answer::Room { name, habits, start, user, deflate, upgrade } => {
                self.note_user(key, user);
                self.take_opened(key);
                self.agree(key, deflate);
                self.join(key, name, habits, start, upgrade);
            }
            Answer::Stream(mut stream, user) => {
                self.note_user(key, user);
                if stream.kind == Kind::Events {
                    self.take_opened(key);
                }
                stream.poll.keep &= keep;
                self.begin_stream(key, *stream);
            }
            Answer::List(mut listing) => {
                listing.keep = keep && listing.keep;
                self.begin_listing(key, *listing);
            }
            Answer::Upload(mut upload) => {
                upload.keep &= keep;
                self.begin_upload(key, *upload);
            }
            Answer::WhoIsIn(mut question) => {
                question.keep(keep);
                self.ask_who_is_in(key, *question);
            }
            Answer::Json { user, deflate, upgrade } => {
                self.note_user(key, user);
                self.take_opened(key);
                self.agree(key, deflate);
                self.begin_talk(key, &upgrade);
            }
            Answer::Echo { deflate, upgrade } => {
                self.take_opened(key);
                self.agree(key, deflate);
                self.counters.handshakes.of(HandshakeResult::Upgraded).add(1);
                self.upgraded(key, &upgrade);
                self.opened(key, State::Echo);
            }
        }
    }

    /// Notes what was agreed to about compression.
    pub(super) fn agree(&mut self, key: ConnKey, deflate: Option<Window>) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.deflate = deflate;
        }
    }

    /// Notes what a client calls itself, where anybody may want to know.
    pub(super) fn note_user(&mut self, key: ConnKey, user: Option<User>) {
        if let (true, Some(user), Some(session)) = (self.presence.is_on(), user, self.sessions.get_mut(key)) {
            session.cold.get_or_insert_default().user = Some(user);
        }
    }

    /// Sends a response that says why not, and when to come back; then the connection ends.
    fn refuse(&mut self, key: ConnKey, response: Response, cause: CloseCause) {
        if cause == CloseCause::Busy {
            self.stand_in_line();
        }
        self.respond(key, response);
        self.end(key, cause);
    }

    /// Queues and starts a response.
    pub(super) fn respond(&mut self, key: ConnKey, response: Response) {
        self.counters.handshakes.of(HandshakeResult::of_status(response.status())).add(1);
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        response.encode(&mut bytes);
        self.push_direct(key, &bytes, &[]);
        self.scratch = bytes;
        self.pump(key);
    }

    /// Queues the answer that makes a connection a WebSocket.
    pub(super) fn upgraded(&mut self, key: ConnKey, answer: &[u8]) {
        self.push_direct(key, answer, &[]);
        if let Some(session) = self.sessions.get_mut(key) {
            session.transport = Transport::Ws;
            self.counters.connections.of(Transport::Http).sub(1);
            self.counters.connections.of(Transport::Ws).add(1);
        }
    }
}
