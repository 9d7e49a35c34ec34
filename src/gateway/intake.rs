//! What comes from a connection: bytes, which are handled in its state as they come or kept for later, and its end.

use std::io;

use super::Gateway;
use super::close_cause::CloseCause;
use super::session::{Stamp, State};
use crate::engine::driver::{CloseHow, Driver};
use crate::engine::recv_pool::Lent;
use crate::ids::ConnKey;

impl<D: Driver> Gateway<D> {
    /// Bytes have come.
    pub(super) fn received(&mut self, key: ConnKey, mut bytes: Lent) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.last_in = Stamp::new(now);
        if session.state.is_over() {
            return;
        }
        if session.holds() {
            session.hold(&bytes);
            if !session.paused && session.state != State::Joining {
                self.feed_held(key);
            }
            return;
        }
        let used = self.feed(key, &mut bytes);
        if used < bytes.len()
            && let Some(session) = self.sessions.get_mut(key)
        {
            session.hold(&bytes[used..]);
        }
    }

    /// Handles what was kept, as far as it goes now.
    pub(super) fn feed_held(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let mut held = session.take_held();
        let used = self.feed(key, &mut held);
        if used < held.len()
            && let Some(session) = self.sessions.get_mut(key)
        {
            held.drain(..used);
            session.cold.get_or_insert_default().input = held;
        }
        self.end_if_gone(key);
    }

    /// Handles bytes in order; how many. The rest must be kept for when there is more, or when the connection goes on.
    fn feed(&mut self, key: ConnKey, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let Some(session) = self.sessions.get_mut(key) else { return bytes.len() };
            let used = match session.state {
                State::Head => self.read_request(key, &bytes[at..]),
                State::Joining => {
                    // Frames sent before the answer: a client may do that, but not without end.
                    self.pause_reading(key);
                    0
                }
                State::Room | State::Echo | State::Json => self.read_frames(key, &mut bytes[at..]),
                State::Body => self.read_body(key, &bytes[at..]),
                State::Polling | State::Awaiting => {
                    // The next request, before this one is answered.
                    self.pause_reading(key);
                    0
                }
                // There is nothing to say to a stream.
                State::Stream | State::Finishing | State::Lingering | State::Closed => bytes.len() - at,
            };
            if used == 0 {
                break;
            }
            at += used;
        }
        at
    }

    /// Leaves what comes next to the kernel.
    pub(super) fn pause_reading(&mut self, key: ConnKey) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.paused
        {
            session.paused = true;
            self.driver.pause_recv(key);
        }
    }

    /// Goes on with what was kept, and reads again unless that led to another pause.
    pub(super) fn resume_reading(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.paused {
            session.paused = false;
            self.feed_held(key);
            if self.sessions.get(key).is_some_and(|session| !session.paused) {
                self.driver.resume_recv(key);
            }
        }
    }

    /// A connection's peer has gone: seen to now, unless others wait or this step has seen to enough.
    pub(super) fn leaves(&mut self, key: ConnKey, error: Option<io::Error>) {
        if self.leavers.is_empty() && self.teardowns_left > 0 {
            self.see_off(key, error);
        } else {
            self.leavers.push_back((key, error));
        }
    }

    fn see_off(&mut self, key: ConnKey, error: Option<io::Error>) {
        self.teardowns_left -= 1;
        match error {
            None => self.peer_closed(key),
            Some(error) => self.failed(key, &error),
        }
    }

    /// Sees to those who wait for that, as far as this step goes.
    pub(super) fn see_leavers_off(&mut self) {
        while self.teardowns_left > 0
            && let Some((key, error)) = self.leavers.pop_front()
        {
            self.see_off(key, error);
        }
    }

    fn peer_closed(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.peer_closed = true;
        match session.state {
            // What it sent before is handled first; then it ends.
            State::Finishing | State::Closed => {}
            State::Lingering => self.take_down(key, CloseHow::Close),
            _ => self.end_if_gone(key),
        }
    }

    /// Ends a connection whose peer has shut its side, once everything that it sent was handled.
    pub(super) fn end_if_gone(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let waits = session.holds() && (session.paused || session.is_queued() || matches!(session.state, State::Joining));
        if !session.peer_closed || waits {
            return;
        }
        match session.state {
            State::Head => self.end(key, CloseCause::HttpDone),
            State::Room | State::Echo | State::Json => self.end(key, CloseCause::ClientGone),
            // There is no other way to end a stream.
            State::Stream | State::Polling => self.end(key, CloseCause::ClientClosed),
            State::Body => self.end(key, CloseCause::ClientGone),
            _ => {}
        }
    }

    fn failed(&mut self, key: ConnKey, error: &io::Error) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.peer_closed = true;
        if session.state.is_over() {
            self.take_down(key, CloseHow::Reset);
        } else {
            tracing::debug!(conn = %self.id(key), %error, "connection failed");
            self.end(key, CloseCause::NetworkError);
        }
    }
}
