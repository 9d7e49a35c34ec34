//! Deadlines: one timer per connection, set to whichever is next, and looked at afresh when it fires.

use std::rc::Rc;
use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::session::{Session, Stamp, State, micros};
use super::streams::{Kind, Stream};
use crate::engine::driver::{CloseHow, Driver};
use crate::ids::ConnKey;
use crate::proto::json::reply::Reply;
use crate::proto::sse::{HEARTBEAT, encode_retry};

/// How long the end of one connection may take to free its memory before the next one's turn comes.
const RELIEF: Duration = Duration::from_millis(10);
/// Who has less queued than this is not the one to end for memory.
const RELIEF_BYTES_MIN: u64 = 64 * 1024;

impl<D: Driver> Gateway<D> {
    pub(super) fn handle_timers(&mut self) {
        let mut fired = std::mem::take(&mut self.fired);
        self.timers.advance(self.now, &mut fired);
        for slot in fired.drain(..) {
            let Some((key, session)) = self.sessions.at(slot) else { continue };
            match session.state {
                State::Head if session.watched => self.stall_timer(key),
                State::Head if self.driver.unsent(key) > 0 => self.watch(key),
                State::Head if session.holds() && !session.paused => self.head_timed_out(key),
                State::Head if session.served => self.end(key, CloseCause::HttpDone),
                State::Head => self.end(key, if self.drain.is_some() { CloseCause::Shutdown } else { CloseCause::HeadTimeout }),
                State::Joining => self.refuse_waiting(key, CloseCause::OverCapacity, "the room's shard did not answer in time"),
                State::Room | State::Echo | State::Json => self.open_timer(key),
                State::Stream if self.driver.unsent(key) > 0 && session.watched => self.stall_timer(key),
                State::Stream if self.driver.unsent(key) > 0 => self.watch(key),
                State::Stream => self.stream_timer(key),
                State::Polling => self.poll_timed_out(key),
                State::Body => self.body_timed_out(key),
                // Its receipts come, or the process ends.
                State::Awaiting => {}
                State::Finishing | State::Lingering => self.take_down(key, CloseHow::Reset),
                // Taken down by a shard that was frozen, behind what its peer is owed (`handover`): that has taken too long.
                State::Closed => self.driver.close(key, CloseHow::Reset),
            }
        }
        self.fired = fired;
    }

    fn rearm(&mut self, key: ConnKey, after: Duration) {
        self.timers.set(key.slot, self.now + after);
    }

    /// A kept-alive connection waits for its next request.
    pub(super) fn await_next_request(&mut self, key: ConnKey) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.served = true;
            self.rearm(key, Duration::from_millis(self.limits.keepalive_ms));
        }
    }

    /// The first ping of a connection comes at a random point of the interval, so that pings spread evenly however clients arrived.
    pub(super) fn first_ping(&mut self, key: ConnKey) {
        let interval = self.limits.ping_interval_ms;
        let after = self.random.u64(interval / 2..=interval);
        self.rearm(key, Duration::from_millis(after));
    }

    /// An open connection's timer: a send without progress, a ping without an answer, or a silence to be broken.
    fn open_timer(&mut self, key: ConnKey) {
        let now = self.now;
        if self.driver.unsent(key) > 0 {
            return if self.sessions.get(key).is_some_and(|session| session.watched) { self.stall_timer(key) } else { self.watch(key) };
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(cause) = session.goodbye {
            // It has not sent the rest of its message.
            return self.end(key, cause);
        }
        session.watched = false;
        if session.pinged.is_none() && self.tell_retry(key) {
            // The next timer is for the ping.
            return self.rearm(key, Duration::from_millis(self.limits.ping_interval_ms / 2));
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let silent = session.last_in.age_ms(now);
        let interval = self.limits.ping_interval_ms;
        if let Some(pinged) = session.pinged {
            let age = pinged.age_ms(now);
            if silent > age && !session.paused {
                if age >= self.limits.pong_timeout_ms {
                    let reason = format!("nothing came in {} ms after a ping", self.limits.pong_timeout_ms);
                    return self.end_with(key, CloseCause::NoPong, None, &reason);
                }
                return self.rearm(key, Duration::from_millis(self.limits.pong_timeout_ms - age));
            }
            session.pinged = None;
            return self.rearm(key, Duration::from_millis(interval.saturating_sub(silent)));
        }
        // The first ping comes early on purpose, so that pings stay spread: half the interval of silence is enough.
        if silent < interval / 2 {
            return self.rearm(key, Duration::from_millis(interval - silent));
        }
        session.pinged = Some(Stamp::new(now));
        self.counters.pings.add(1);
        session.in_flight_frames = 0;
        self.rearm(key, Duration::from_millis(self.limits.pong_timeout_ms));
        self.start_send(key, Rc::clone(&self.ping));
    }

    /// A watched send's time is up: it has moved, or its connection ends.
    fn stall_timer(&mut self, key: ConnKey) {
        let now = self.now;
        let unsent = self.driver.unsent(key) as u32;
        let Some(session) = self.sessions.get_mut(key) else { return };
        if unsent >= session.stalled_at {
            let reason = format!("no byte taken in {} ms", self.limits.write_stall_ms);
            return self.end_with(key, CloseCause::SlowConsumer, None, &reason);
        }
        session.stalled_at = unsent;
        session.last_in = Stamp::new(now);
        self.rearm(key, Duration::from_millis(self.limits.write_stall_ms));
    }

    /// Sets the timer to what it was for before it watched a send.
    pub(super) fn restore_deadline(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let limits = &self.limits;
        let after_ms = match session.state {
            State::Head if session.served && !session.holds() => limits.keepalive_ms,
            State::Head => limits.head_timeout_ms,
            State::Room | State::Echo | State::Json if session.goodbye.is_some() => limits.linger_ms,
            State::Room | State::Echo | State::Json => match session.pinged {
                Some(pinged) => limits.pong_timeout_ms.saturating_sub(pinged.age_ms(self.now)),
                None => limits.ping_interval_ms.saturating_sub(session.last_in.age_ms(self.now)),
            },
            State::Stream => {
                let silent_ms = u64::from(micros(self.now).wrapping_sub(session.sent_us)) / 1000;
                limits.sse_heartbeat_ms.saturating_sub(silent_ms)
            }
            // The end of these has its own deadline, set when it began.
            State::Joining | State::Polling | State::Body | State::Awaiting | State::Finishing | State::Lingering | State::Closed => {
                return;
            }
        };
        self.rearm(key, Duration::from_millis(after_ms));
    }

    /// Watches the progress of the send in flight.
    fn watch(&mut self, key: ConnKey) {
        let unsent = self.driver.unsent(key) as u32;
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.watched = true;
        session.stalled_at = unsent;
        self.rearm(key, Duration::from_millis(self.limits.write_stall_ms));
    }

    /// Sends of the last step that are still in flight wait for their peers: from now on their progress is watched.
    pub(super) fn watch_sends(&mut self) {
        let mut sends = std::mem::take(&mut self.recent_sends);
        sends.retain(|&key| {
            let Some(session) = self.sessions.get(key) else { return false };
            if self.driver.unsent(key) == 0 || session.watched || session.state.is_over() {
                return false;
            }
            let fresh = session.sent_us == micros(self.now);
            if !fresh {
                self.watch(key);
            }
            fresh
        });
        sends.append(&mut self.recent_sends);
        self.recent_sends = sends;
    }

    /// How soon the sends of this step must be looked at.
    pub(super) fn watch_wait(&self) -> Option<Duration> {
        (!self.recent_sends.is_empty()).then_some(Duration::from_millis(1))
    }

    /// Bytes of its room that wait for a connection, besides the send in flight.
    pub(super) fn queued_bytes(&self, session: &Session, key: ConnKey) -> u64 {
        let behind = match session.stream() {
            Some(stream) => self.stream_waiting(stream).0,
            None => self.room_waiting(session, key).0,
        };
        behind + session.direct_bytes() as u64
    }

    /// Over the process's bound of queued memory nobody publishes (see `must_pause`), and whoever of this shard has most queued is ended, one after
    /// the other, until it is enough. Who has little queued is left alone: it would free nothing.
    pub(super) fn relieve_memory(&mut self) {
        if !self.shared.is_over_memory() || self.now < self.next_relief {
            return;
        }
        self.next_relief = self.now + RELIEF;
        let mut worst: Option<(u64, ConnKey)> = None;
        for slot in 0..self.driver.slots() {
            let Some((key, session)) = self.sessions.at(slot) else { continue };
            if !session.state.is_open()
                || (session.behind.is_none() && session.direct.is_none() && session.stream().is_none() && !session.is_conflated())
            {
                continue;
            }
            let Some(session) = self.sessions.get(key) else { continue };
            let queued = self.queued_bytes(session, key);
            if queued >= RELIEF_BYTES_MIN && worst.is_none_or(|(most, _)| queued > most) {
                worst = Some((queued, key));
            }
        }
        if let Some((_, key)) = worst {
            let reason =
                format!("queued messages of the process are over {} bytes (limits.queued_bytes_max)", self.shared.queued_bytes_max);
            self.end_with(key, CloseCause::SlowConsumer, None, &reason);
        }
    }

    /// A silent stream is sent a comment, so that proxies keep it, and so that a dead one is found out. One that was told to come back sooner than so many
    /// clients could is told anew.
    fn stream_timer(&mut self, key: ConnKey) {
        let heartbeat = self.heartbeat();
        let now = micros(self.now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.watched = false;
        if self.tell_retry(key) {
            self.timers.set(key.slot, self.now + heartbeat);
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let silent = Duration::from_micros(u64::from(now.wrapping_sub(session.sent_us)));
        if silent < heartbeat {
            self.timers.set(key.slot, self.now + (heartbeat - silent));
            return;
        }
        self.timers.set(key.slot, self.now + heartbeat);
        self.push_direct(key, HEARTBEAT, &[]);
        self.pump(key);
    }

    /// Tells the client of a stream when to come back if the window has grown by more than an eighth since it was told. Whether it did.
    fn tell_retry(&mut self, key: ConnKey) -> bool {
        let window_ms = self.return_window_ms();
        let has_grown = |stream: &&mut Stream| window_ms > stream.window_ms + stream.window_ms / 8;
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()).filter(has_grown) else { return false };
        stream.window_ms = window_ms;
        if stream.kind == Kind::Json {
            self.say(key, &Reply::Retry { retry_ms: window_ms });
        } else {
            let retry_ms = self.retry_ms();
            if let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) {
                stream.retry_ms = retry_ms;
            }
            let mut out = Vec::new();
            encode_retry(&mut out, retry_ms);
            self.push_direct(key, &out, &[]);
        }
        self.pump(key);
        true
    }

    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.limits.sse_heartbeat_ms)
    }
}
