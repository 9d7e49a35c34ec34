//! What a connection is sent next, and how it ends.
//!
//! At most one send is in flight. Sends are whole frames, so between two of them anything may go: the direct queue (responses, pongs, the close
//! frame) goes before the topic's frames. When nothing is left, a connection that is finishing shuts its side.

use std::rc::Rc;
use std::time::Duration;

use super::Gateway;
use super::close_cause::{CloseCause, Fault};
use super::counters::{DropReason, Transport};
use super::feed::Feed;
use super::session::{Session, Stamp, State, micros};
use super::streams::Kind;
use crate::engine::driver::{CloseHow, Driver};
use crate::engine::segment::{Gather, Range, Ranges};
use crate::ids::ConnKey;
use crate::proto::json::reply::Reply;
use crate::proto::sse::encode_bye;
use crate::proto::ws::frame::server_header;
use crate::proto::ws::{CloseCode, OpCode, encode_close_payload};

impl<D: Driver> Gateway<D> {
    /// Queues bytes ahead of the topic's frames; [`pump`](Self::pump) sends them. Until it does, the bytes of one connection are staged beside the
    /// sessions: nearly always they leave in the same step as one send, and no queue is made.
    pub(super) fn push_direct(&mut self, key: ConnKey, head: &[u8], body: &[u8]) {
        let range = self.direct.append(head, body);
        self.push_range(key, range);
    }

    pub(super) fn push_range(&mut self, key: ConnKey, range: Range) {
        match &mut self.staged {
            None => self.staged = Some((key, range)),
            Some((staged, present)) => {
                if *staged != key || !present.try_join(&range) {
                    self.unstage();
                    self.queue(key, range);
                }
            }
        }
    }

    /// Moves staged bytes into their connection's queue.
    fn unstage(&mut self) {
        if let Some((key, range)) = self.staged.take() {
            self.queue(key, range);
        }
    }

    /// Queues bytes for a connection whose send is in flight. It may wait for long: a few bytes do not keep a large segment from others.
    fn queue(&mut self, key: ConnKey, range: Range) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.push_direct(if range.len() < range.segment_bytes() / 4 { range.copy(&self.shared.memory) } else { range });
    }

    /// Bytes that wait to go ahead of the topic's frames.
    pub(super) fn direct_bytes(&self, key: ConnKey) -> usize {
        let staged = self.staged.as_ref().filter(|(staged, _)| *staged == key).map_or(0, |(_, range)| range.len());
        staged + self.sessions.get(key).map_or(0, |session| session.direct_bytes())
    }

    /// Starts the next send, if there is something and none is in flight.
    pub(super) fn pump(&mut self, key: ConnKey) {
        if self.driver.unsent(key) > 0 {
            return self.unstage();
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        if matches!(session.state, State::Closed | State::Lingering) {
            self.staged.take_if(|(staged, _)| *staged == key);
            return;
        }
        if session.direct.is_none()
            && let Some((_, range)) = self.staged.take_if(|(staged, _)| *staged == key)
        {
            session.in_flight_frames = 0;
            return self.start_send(key, Rc::new(Gather::new(Ranges::from_buf([range]))));
        }
        self.unstage();
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(queue) = &mut session.direct {
            let mut ranges = Ranges::new();
            let mut bytes = 0;
            while ranges.len() < Gather::RANGES_MAX && bytes < self.limits.send_bytes_max as usize {
                let Some(range) = queue.pop_front() else { break };
                bytes += range.len();
                ranges.push(range);
            }
            if queue.is_empty() {
                session.direct = None;
            }
            session.in_flight_frames = 0;
            self.start_send(key, Rc::new(Gather::new(ranges)));
        } else if let Some(cause) = self.due_goodbye(key) {
            self.end(key, cause);
        } else if !self.replay_more(key) && !self.stream_catch_up(key) && !self.catch_up(key) {
            // It may have caught up by being sent nothing: all was its own.
            match self.due_goodbye(key) {
                Some(cause) => self.end(key, cause),
                None => self.caught_up(key),
            }
        }
    }

    pub(super) fn start_send(&mut self, key: ConnKey, data: Rc<Gather>) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.sent_us = micros(self.now);
            self.recent_sends.push(key);
            self.driver.send(key, data);
        }
    }

    /// The send in flight is done.
    pub(super) fn sent(&mut self, key: ConnKey) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.in_flight_frames > 0 {
            let age = micros(now).wrapping_sub(session.born_us);
            self.counters.deliveries.add(u64::from(session.in_flight_frames));
            self.counters.delivery_seconds.record_many(Duration::from_micros(u64::from(age)), u64::from(session.in_flight_frames));
            session.in_flight_frames = 0;
        }
        if std::mem::take(&mut session.watched) {
            // It waited for the peer, and the peer has read: it lives. One that was merely taken up a moment later says nothing: a ping to a
            // silent peer is.
            let waited_ms = u64::from(micros(now).wrapping_sub(session.sent_us)) / 1000;
            if waited_ms >= self.limits.reader_hold_ms {
                session.last_in = Stamp::new(now);
            }
            self.restore_deadline(key);
        }
        self.pump(key);
        let unsent = self.driver.unsent(key);
        let Some(session) = self.sessions.get(key) else { return };
        let goes_on = session.paused
            && match session.state {
                State::Head => unsent == 0 && session.direct.is_none(),
                State::Echo | State::Json => (session.direct_bytes() as u64) < self.limits.echo_bytes_max.div_ceil(2),
                _ => false,
            };
        let answered = session.state == State::Head && session.peer_closed && unsent == 0;
        if goes_on {
            self.resume_reading(key);
        }
        if answered {
            // It had shut its side before its answer was there.
            self.end_if_gone(key);
        }
    }

    /// Everything queued was handed over.
    fn caught_up(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.state {
            State::Finishing if session.peer_closed => self.take_down(key, CloseHow::Close),
            State::Finishing => {
                session.state = State::Lingering;
                self.driver.shut_write(key);
            }
            _ => {}
        }
    }

    /// Ends a connection for a reason that says everything.
    pub(super) fn end(&mut self, key: ConnKey, cause: CloseCause) {
        self.end_with(key, cause, None, "");
    }

    /// Ends a connection: counts and logs why, leaves its room, says so in a close frame (with `code`, or the cause's own), and begins the
    /// closing sequence. `reason` is for the peer and the log; where the client should come back, the close frame says when before it.
    pub(super) fn end_with(&mut self, key: ConnKey, cause: CloseCause, code: Option<CloseCode>, reason: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.state.is_over() {
            return;
        }
        let word = session.cold.as_mut().and_then(|cold| cold.word.take()).filter(|_| cause == CloseCause::Disconnected && code.is_none());
        let (code, reason) = word.as_ref().map_or((code, reason), |word| (Some(word.code), &*word.reason));
        // A client's own code is answered as it is.
        let wants_retry = match code {
            Some(code) if cause == CloseCause::Disconnected => code.wants_retry(),
            _ => cause.wants_retry(),
        };
        let streams = session.state == State::Stream;
        let talks = session.stream().is_some_and(|stream| stream.kind == Kind::Json);
        // Who speaks JSON is told with one of the gateway's own codes.
        let own = cause.code().map(|code| if talks && code == CloseCode::SERVICE_RESTART { CloseCode::OVER_CAPACITY } else { code });
        let told = code.or(own);
        self.counters.closes.of(cause).add(1);
        self.log_end(key, cause, reason);
        let dropped = self.count_drops(key, cause);
        self.note_closing(key, cause, told, dropped);
        self.leave(key);
        if matches!(cause, CloseCause::SlowConsumer | CloseCause::NoPong) {
            self.staged.take_if(|(staged, _)| *staged == key);
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.cold = None;
        session.state = State::Finishing;
        if cause == CloseCause::NetworkError {
            session.direct = None;
            self.take_down(key, CloseHow::Close);
            return;
        }
        if matches!(cause, CloseCause::SlowConsumer | CloseCause::NoPong) {
            session.direct = None;
        }
        // Who has shut his side without a close frame gets what he is owed, and no close frame either.
        let says_why = session.transport == Transport::Ws && cause != CloseCause::ClientGone;
        if std::mem::take(&mut session.paused) {
            // The end of its stream must be seen.
            self.driver.resume_recv(key);
        }
        let retry_ms = (wants_retry && (says_why || streams)).then(|| self.retry_ms_after(cause));
        if says_why {
            if let (true, Some(code)) = (talks && cause != CloseCause::ClientClosed, told) {
                self.say(key, &Reply::Bye { code: code.0, reason, retry_ms });
            }
            let payload = told.map(|code| match retry_ms {
                Some(ms) => encode_close_payload(code, format!("retry={ms} {reason}").trim_end()),
                None => encode_close_payload(code, reason),
            });
            let payload = payload.as_deref().unwrap_or(&[]);
            let (header, len) = server_header(OpCode::Close, payload.len());
            self.push_direct(key, &header[..len], payload);
        }
        if streams && cause != CloseCause::ClientClosed {
            let mut out = Vec::new();
            encode_bye(&mut out, told.unwrap_or(CloseCode::INTERNAL_RETRY), reason, retry_ms);
            self.push_direct(key, &out, &[]);
        }
        self.timers.set(key.slot, self.now + Duration::from_millis(self.limits.linger_ms));
        self.pump(key);
    }

    /// Hands a connection to the driver for good.
    pub(super) fn take_down(&mut self, key: ConnKey, how: CloseHow) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Closed;
        session.direct = None;
        session.behind = None;
        self.timers.clear(key.slot);
        self.driver.close(key, how);
    }

    /// The feed of its room that a connection is given.
    pub(super) fn feed_of(&self, session: &Session) -> Option<&Feed> {
        session.topic.and_then(|topic| self.topics.get(topic)).and_then(|topic| topic.feed(session.format()))
    }

    /// Messages of its topics that wait for a connection, besides the send in flight.
    pub(super) fn waiting_frames(&self, session: &Session, key: ConnKey) -> u64 {
        match session.stream() {
            Some(stream) => self.stream_waiting(stream).1,
            None => self.room_waiting(session, key).1,
        }
    }

    /// Counts what waits for a connection that ends, and will never be sent; how many.
    fn count_drops(&self, key: ConnKey, cause: CloseCause) -> u64 {
        let Some(session) = self.sessions.get(key) else { return 0 };
        let frames = self.waiting_frames(session, key);
        let reason = match cause {
            CloseCause::SlowConsumer => DropReason::SlowConsumer,
            CloseCause::Shutdown | CloseCause::ShutdownDeadline => DropReason::Shutdown,
            _ => DropReason::ConnectionClosed,
        };
        self.counters.drops.of(reason).add(frames);
        frames
    }

    fn log_end(&mut self, key: ConnKey, cause: CloseCause, reason: &str) {
        let id = self.id(key);
        if cause.fault() == Fault::Nobody || matches!(cause, CloseCause::Shutdown | CloseCause::Rebalance | CloseCause::Disconnected) {
            tracing::debug!(conn = %id, cause = cause.label(), "connection ends");
            return;
        }
        if !self.log.allow(self.now) {
            self.counters.log_suppressed.add(1);
            return;
        }
        let peer = self.driver.peer_addr(key).map(|peer| peer.to_string()).unwrap_or_default();
        let code = cause.code().map_or(0, |code| code.0);
        let session = self.sessions.get(key);
        let topic = session
            .and_then(|session| session.topic)
            .and_then(|topic| self.topics.name(topic))
            .map(ToString::to_string)
            .unwrap_or_default();
        let queued = session.map_or(0, |session| self.queued_bytes(session, key)) + self.driver.unsent(key) as u64;
        tracing::info!(conn = %id, cause = cause.label(), code, reason, %peer, topic, queued, "connection ends");
    }

    pub(super) fn summarise_log(&mut self) {
        let left_out = self.log.take_suppressed();
        if left_out > 0 {
            tracing::info!(shard = %self.shard, left_out, "lines about connections left out (limits.log_lines_per_second); the metrics count every one");
        }
    }
}
