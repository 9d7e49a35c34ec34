//! Long polls and reads of history: one answer each, at once when there is something to say, else when there is or when the time is up. A poll keeps
//! nothing between two requests: where the next one goes on is in the answer.

use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::replay::Replay;
use super::session::State;
use super::streams::{Stream, each_of, message};
use crate::engine::driver::Driver;
use crate::engine::log::Frame;
use crate::ids::ConnKey;
use crate::proto::gap::Gap;
use crate::proto::http::Response;
use crate::proto::poll::{Answer, Message};
use crate::proto::position::Position;

/// The bytes of one answer, unless a single message is larger; what is left is for the next.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What is special about a poll.
#[derive(Default)]
pub(super) struct Poll {
    /// How long it waits for a message.
    pub(super) wait: Duration,
    /// The most messages of its answer.
    pub(super) messages_max: usize,
    /// Whether the connection is kept.
    pub(super) keep: bool,
    /// The page's origin, where its page may read the answer.
    pub(super) origin: Option<Vec<u8>>,
}

/// Adds the headers that let a page read an answer (Fetch, section 3.3).
pub(super) fn for_origin(response: Response, origin: Option<&[u8]>) -> Response {
    match origin {
        Some(origin) => response
            .header("Access-Control-Allow-Origin", origin)
            .header("Access-Control-Allow-Credentials", "true")
            .header("Vary", "Origin"),
        None => response,
    }
}

/// Adds a message to an answer if it still has room. Whether it had.
pub(super) fn add(answer: &mut Answer<'_>, left: &mut usize, topic: &str, position: Position, frame: &Frame, bytes: &[u8]) -> bool {
    if *left == 0 || (!answer.is_empty() && answer.bytes() + bytes.len() > ANSWER_BYTES_MAX) {
        return false;
    }
    *left -= 1;
    let (kind, payload) = message(bytes);
    let (event, key) = (frame.event(), frame.key());
    answer.message(&Message { topic, position, event, key, kind, payload });
    true
}

impl<D: Driver> Gateway<D> {
    /// All topics of a poll have answered.
    pub(super) fn open_poll(&mut self, key: ConnKey, arrived: Vec<(u16, Replay)>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Polling;
        let Some(stream) = session.stream_mut() else { return };
        let wait = stream.poll.wait;
        let mut body = Vec::new();
        let mut answer = Answer::begin(&mut body);
        let mut left = stream.poll.messages_max;
        for (number, replay) in &arrived {
            let part = &mut stream.parts[usize::from(*number)];
            if let Some((reason, from)) = replay.gap {
                self.counters.gaps.of(reason.into()).add(1);
                let to = Position { epoch: part.epoch, offset: replay.at };
                answer.gap(&Gap { topic: part.name.as_str(), from, to, until: None, reason });
            }
            part.at = replay.at;
            each_of(&replay.parcel, |frame, bytes| {
                let position = Position { epoch: part.epoch, offset: frame.offset().unwrap_or(part.at + 1) };
                if add(&mut answer, &mut left, part.name.as_str(), position, frame, bytes) {
                    part.at = position.offset;
                } else {
                    // What follows would leave a hole: the next answer begins here.
                    left = 0;
                }
            });
        }
        if answer.is_empty() && !wait.is_zero() && !self.frozen {
            if stream.pending.is_empty() {
                self.timers.set(key.slot, self.now + wait);
            } else {
                self.ready_polls.push(key);
            }
            // It may have gone while its topics were asked.
            return self.end_if_gone(key);
        }
        finish(answer, stream);
        self.answer_poll(key, body);
    }

    /// Answers the polls for which a message has come.
    pub(super) fn answer_polls(&mut self) {
        while let Some(key) = self.ready_polls.pop() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if session.state != State::Polling {
                continue;
            }
            let Some(stream) = session.stream_mut() else { continue };
            let mut body = Vec::new();
            let mut answer = Answer::begin(&mut body);
            let mut left = stream.poll.messages_max;
            while let Some(number) = stream.pending.pop_front() {
                let part = &mut stream.parts[usize::from(number)];
                let seat = self.seats.at(part.seat.expect("what is pending has a seat"));
                let Some(from) = seat.behind() else { continue };
                let base = self.topics.get(seat.feed.topic).map_or(0, |topic| topic.raw.base);
                from.each(|frame, about, bytes| {
                    let position = Position { epoch: part.epoch, offset: about.offset().unwrap_or(base + frame + 1) };
                    let fits = add(&mut answer, &mut left, part.name.as_str(), position, about, bytes.as_slice());
                    if fits {
                        part.at = position.offset;
                    }
                    fits
                });
            }
            finish(answer, stream);
            self.answer_poll(key, body);
        }
    }

    /// Nothing came in time.
    pub(super) fn poll_timed_out(&mut self, key: ConnKey) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let mut body = Vec::new();
        finish(Answer::begin(&mut body), stream);
        self.answer_poll(key, body);
    }

    /// The operator has something to say: that is an answer.
    pub(super) fn announce_to_poll(&mut self, key: ConnKey, text: &str) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let mut body = Vec::new();
        let mut answer = Answer::begin(&mut body);
        answer.announcement(text);
        finish(answer, stream);
        self.answer_poll(key, body);
    }

    fn answer_poll(&mut self, key: ConnKey, body: Vec<u8>) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let poll = std::mem::take(&mut stream.poll);
        let response = Response::new(200).header("Cache-Control", "no-store").body("application/json", &body);
        self.leave_stream(key);
        self.answered(key, for_origin(response, poll.origin.as_deref()), poll.keep);
    }

    /// A poll that cannot be had.
    pub(super) fn refuse_poll(&mut self, key: ConnKey, cause: CloseCause, reason: &str) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let poll = std::mem::take(&mut stream.poll);
        self.leave_stream(key);
        let why = if reason.is_empty() { "no answer is possible now" } else { reason };
        let response = Response::error_for_now(503, &format!("{why}; come back after Retry-After"), self.retry_ms_after(cause));
        self.respond(key, for_origin(response, poll.origin.as_deref()).close());
        self.end_with(key, cause, None, reason);
    }

    /// Sends the answer to a request that took its time; then the connection waits for the next one, or ends.
    pub(super) fn answered(&mut self, key: ConnKey, response: Response, keep: bool) {
        let keep = keep && self.drain.is_none();
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Head;
        self.respond(key, if keep { response } else { response.close() });
        if !keep {
            return self.end(key, CloseCause::HttpDone);
        }
        self.await_next_request(key);
        // What came meanwhile goes on when the answer has left; see `sent`.
        if self.driver.unsent(key) == 0 {
            self.resume_reading(key);
        }
    }
}

fn finish(answer: Answer<'_>, stream: &Stream) {
    answer.finish(Some(stream.places()), stream.retry_ms);
}
