//! Many messages as one frame, for WebSockets of `shardcast.v1.json` that have asked for it: a browser pays for each frame, and little for what is in it.
//!
//! What comes within `limits.batch_ms` after something was sent waits so long for the rest, of all topics, and leaves as one send and one frame. What comes after
//! silence leaves at once. Nobody waits for who is held back: it does not hold its topic's floor. When a send's worth waits in a topic, it leaves.
//!
//! The log of such a feed has lines, not frames, so that any run of them is what a frame has; the header is made when they leave.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Gateway;
use super::feed::{FeedKey, Format};
use super::seats::Seat;
use super::session::{Stamp, micros};
use super::streams::Stream;
use crate::engine::driver::Driver;
use crate::engine::segment::{Arena, Gather, Range, Ranges};
use crate::ids::{ConnId, ConnKey};
use crate::limits::Limits;
use crate::proto::ws::OpCode;
use crate::proto::ws::deflate::TAIL;
use crate::proto::ws::frame::{compressed_header, server_header};
use crate::time::Time;

/// A connection that gets many messages as one frame.
#[derive(Default)]
pub(super) struct Batch {
    /// When messages were last sent.
    sent: Option<Stamp>,
    /// Until when messages wait for others, while they do.
    held: Option<Time>,
}

impl Batch {
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// What waits leaves with the next send.
    pub(super) fn release(&mut self) {
        self.held = None;
    }

    /// Messages are sent.
    pub(super) fn sent(&mut self, now: Time) {
        self.sent = Some(Stamp::new(now));
    }
}

impl Stream {
    /// Whether a message that comes now waits for others. What did not fit into a send goes with the next one.
    pub(super) fn holds_back(&self, now: Time, limits: &Limits) -> bool {
        let Some(batch) = self.talk.batch.as_ref().filter(|_| limits.batch_ms > 0) else { return false };
        batch.is_held() || (self.pending.is_empty() && batch.sent.is_some_and(|sent| sent.age_ms(now) < limits.batch_ms))
    }

    /// How far a topic's floor at most has passed what was held back for others: up to there it is ours to deliver, and not slow.
    pub(super) fn passed_max(&self, floor: u64, bytes_max: usize) -> u64 {
        if self.talk.batch.is_some() { floor.min(bytes_max as u64) } else { 0 }
    }
}

/// Connections whose messages wait for others, and until when; the first one's time comes first. Some have been sent what they waited for.
pub(super) type DueBatches = VecDeque<(Time, ConnKey)>;

impl<D: Driver> Gateway<D> {
    fn batch(&mut self, key: ConnKey) -> Option<&mut Batch> {
        self.sessions.get_mut(key)?.stream_mut()?.talk.batch.as_mut()
    }

    /// Messages of a connection wait for others.
    pub(super) fn hold_back(&mut self, key: ConnKey) {
        let until = self.now + Duration::from_millis(self.limits.batch_ms);
        let Some(batch) = self.batch(key) else { return };
        if batch.held.is_none() {
            batch.held = Some(until);
            self.due_batches.push_back((until, key));
        }
    }

    /// As much waits in a topic as one send takes. What it leaves holds the floor, though that may have passed it.
    pub(super) fn send_some_held(&mut self, feed_key: FeedKey, slot: u32, key: ConnKey) {
        self.batch(key).into_iter().for_each(Batch::release);
        self.pump(key);
        let seat = self.seats.get(slot).filter(|seat| seat.conn == key && seat.feed == feed_key && !seat.thinned);
        let Some(behind) = seat.and_then(Seat::behind) else { return };
        let feed = self.topics.get_mut(feed_key.topic).and_then(|topic| topic.feed_mut(feed_key.format));
        if let Some(lap) = feed.and_then(|feed| feed.lap.get_mut()) {
            lap.hold(behind);
        }
    }

    /// Sends what has waited long enough.
    pub(super) fn send_due(&mut self) {
        let mut budget = self.limits.fanout_sends_per_turn;
        while budget > 0
            && let Some(&(until, key)) = self.due_batches.front()
            && (until <= self.now || self.frozen)
        {
            self.due_batches.pop_front();
            budget -= 1;
            if self.batch(key).is_some_and(|batch| batch.held == Some(until)) {
                self.note_born(key, until);
                self.batch(key).into_iter().for_each(Batch::release);
                self.pump(key);
            }
        }
    }

    /// What is sent next was there `batch_ms` before.
    fn note_born(&mut self, key: ConnKey, until: Time) {
        let waited_us = self.limits.batch_ms as u32 * 1000;
        if self.driver.unsent(key) == 0
            && let Some(session) = self.sessions.get_mut(key)
        {
            session.born_us = micros(until).wrapping_sub(waited_us);
        }
    }

    /// How long until something has waited long enough.
    pub(super) fn held_wait(&self) -> Option<Duration> {
        self.due_batches.front().map(|(until, _)| until.since(self.now))
    }

    /// Sends what waits for a connection in all its topics, as far as one send goes, up to a topic of which it must be told something else first. Whether
    /// there was anything.
    pub(super) fn send_batch(&mut self, key: ConnKey) -> bool {
        let id = ConnId { shard: self.shard, key };
        let bytes_max = self.limits.send_bytes_max as usize;
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Some(stream) = session.stream_mut() else { return false };
        let (format, without) = (stream.format(), stream.talk.no_echo.then_some(id));
        let (mut ranges, mut bytes, mut frames) = (Ranges::new(), 0, 0);
        let mut unparked: Vec<FeedKey> = Vec::new();
        // Each topic once.
        for _ in 0..stream.pending.len() {
            let Some(number) = stream.pending.pop_front() else { break };
            let part = &stream.parts[usize::from(number)];
            let seat = self.seats.at(part.seat.expect("what is pending has a seat"));
            if part.left_out.is_some() || seat.is_conflated() {
                stream.pending.push_front(number);
                break;
            }
            let Some(from) = seat.behind() else { continue };
            let topic = self.topics.get_mut(seat.feed.topic).expect("a topic lives as long as its members");
            let feed = topic.feed_mut(seat.feed.format).expect("a feed lives as long as its members");
            let gathered = from.gather(bytes_max, without).expect("who is behind has something to be sent");
            let (more, more_bytes) = gathered.data.as_ref().map_or((&[][..], 0), |data| (data.ranges(), data.len()));
            if frames > 0 && (ranges.len() + more.len() > Gather::RANGES_MAX || bytes + more_bytes > bytes_max) {
                stream.pending.push_front(number);
                break;
            }
            ranges.extend(more.iter().cloned());
            bytes += more_bytes;
            frames += gathered.next.frame() - from.frame();
            stream.parts[usize::from(number)].at = feed.offset_before(&from, &gathered.next);
            seat.move_to(gathered.next, feed.log.end());
            if seat.behind.is_some() {
                stream.pending.push_back(number);
            } else if feed.parked {
                unparked.push(seat.feed);
            }
        }
        if !ranges.is_empty() {
            stream.talk.batch.iter_mut().for_each(|batch| batch.sent(self.now));
            session.in_flight_frames = frames as u32;
        }
        for feed in unparked {
            self.queue_lap(feed);
        }
        if ranges.is_empty() {
            return false;
        }
        let data = framed(format, &ranges, &mut self.direct);
        self.counters.deliveries_bytes.add(data.len() as u64);
        self.start_send(key, data);
        true
    }
}

/// Lines as one frame.
pub(super) fn framed(format: Format, lines: &[Range], direct: &mut Arena) -> Rc<Gather> {
    let mut ranges = Ranges::with_capacity(lines.len() + 1);
    let bytes: usize = lines.iter().map(Range::len).sum();
    let (header, len) = header(format, bytes);
    ranges.push(direct.append(&header[..len], &[]));
    ranges.extend(lines.iter().cloned());
    if format == Format::LinesDeflate
        && let Some(last) = ranges.last_mut()
    {
        *last = last.slice(0, last.len() - TAIL.len());
    }
    Rc::new(Gather::new(ranges))
}

/// Makes the lines in `out` from `start` on one frame. Of other formats, or where there is none, nothing.
pub(super) fn frame_lines(format: Format, out: &mut Vec<u8>, start: usize) {
    let bytes = out.len() - start;
    if format.plain() != Format::Lines || bytes == 0 {
        return;
    }
    let (header, len) = header(format, bytes);
    out.splice(start..start, header[..len].iter().copied());
    if format == Format::LinesDeflate {
        out.truncate(out.len() - TAIL.len());
    }
}

/// The header of a frame of so many bytes of lines. Behind compressed ones the last tail is left out.
fn header(format: Format, bytes: usize) -> ([u8; 10], usize) {
    match format {
        Format::LinesDeflate => compressed_header(OpCode::Text, bytes - TAIL.len()),
        _ => server_header(OpCode::Text, bytes),
    }
}
