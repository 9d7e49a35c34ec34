//! Readers that are slower than their topic: what is left out for them where the topic's rule says so (`slow`), and whose queue is over its bounds.
//!
//! Only what waits in the topic's log is left out, never what is in the send in flight; so frames stay whole, and a gap lies between two sends. A stream is
//! told of it before the message behind it. A raw WebSocket cannot be told, and is thinned only where it has asked for that. Who was thinned does not hold its
//! topic's floor before it has caught up: a reader that is always within its soft bound would else hold up publishers with each of its sends.

use std::rc::Rc;

use super::Gateway;
use super::batches::frame_lines;
use super::conflation::{Latest, Portion};
use super::counters::DropReason;
use super::feed::{Feed, FeedKey};
use super::json::push_frame;
use super::replay::Missing;
use super::seats::Seat;
use super::session::Session;
use super::streams::{Kind, Stream};
use crate::engine::driver::Driver;
use crate::engine::log::Pin;
use crate::engine::segment::{Arena, Gather, Ranges};
use crate::ids::{ConnId, ConnKey};
use crate::proto::gap::{Gap, GapReason};
use crate::proto::json::reply::Reply;
use crate::proto::position::Position;
use crate::proto::slow::SlowPolicy;
use crate::proto::sse::{encode_gap, encode_id};

impl<D: Driver> Gateway<D> {
    /// A member waits for its peer, at `behind`, while more is published: messages are left out for it, or it is ended, as its bounds and its topic say.
    pub(super) fn see_to_slow(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey, behind: Pin) {
        let Some(topic) = self.topics.get(feed_key.topic) else { return };
        let Some(feed) = topic.feed(feed_key.format) else { return };
        let is_over_soft = feed.log.end() - behind.offset() > self.limits.queue_soft_bytes;
        let behind = match topic.slow {
            SlowPolicy::DropOldest if is_over_soft && self.may_thin(member, conn) => self.drop_oldest(feed_key, member, conn, behind),
            SlowPolicy::Conflate if is_over_soft && self.may_thin(member, conn) => {
                self.begin_conflating(feed_key, member, conn, &behind);
                return self.see_to_conflated(feed_key, member, conn);
            }
            _ => behind,
        };
        let Some(feed) = self.topics.get(feed_key.topic).and_then(|topic| topic.feed(feed_key.format)) else { return };
        let (bytes, frames) = feed.waiting(member, Some(behind));
        if self.is_over_bounds(conn, bytes, frames) {
            self.slow.push(conn);
        }
    }

    /// A lap comes to a member that is given the newest message of each key: whether that is too much.
    pub(super) fn see_to_conflated(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey) {
        let Some(latest) = self.feed_mut(feed_key).and_then(|feed| feed.latest.as_mut()) else { return };
        // All of it is no less than what waits for one.
        let (bytes, frames) = latest.size();
        if !self.is_over_bounds(conn, bytes, frames) {
            return;
        }
        let Some(latest) = self.feed_mut(feed_key).and_then(|feed| feed.latest.as_mut()) else { return };
        latest.forget_passed();
        let (bytes, frames) = latest.waiting(member);
        if self.is_over_bounds(conn, bytes, frames) {
            self.slow.push(conn);
        }
    }

    fn feed_mut(&mut self, key: FeedKey) -> Option<&mut Feed> {
        self.topics.get_mut(key.topic).and_then(|topic| topic.feed_mut(key.format))
    }

    /// From now on a member is given the newest message of each key, until it has caught up.
    fn begin_conflating(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey, behind: &Pin) {
        let Some(feed) = self.topics.get_mut(feed_key.topic).and_then(|topic| topic.feed_mut(feed_key.format)) else { return };
        let (base, newest, at) = (feed.base, feed.offset(), first_offset(feed, behind) - 1);
        let latest = feed.latest.get_or_insert_with(|| Box::new(Latest::new(newest, &self.shared.memory)));
        latest.enter(member, at, behind, |number, frame| frame.offset().unwrap_or(base + number + 1));
        match Seat::of_member(member) {
            Some(slot) => {
                let seat = self.seats.at(slot);
                (seat.thinned, seat.behind) = (true, None);
            }
            None => {
                let Some(session) = self.sessions.get_mut(conn) else { return };
                session.habits.set_thinned(true);
                session.behind = None;
            }
        }
    }

    /// Sends a member the newest message of each key that it has not been given, as many as the kernel keeps for it, and before them the gap. Whether there
    /// was anything to send. Few at a time: what is chosen later is newer.
    pub(super) fn send_latest(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey) -> bool {
        let without = self.unwanted(member, conn);
        let bytes_max = self.limits.notsent_bytes.min(self.limits.send_bytes_max) as usize;
        let Some(feed) = self.feed_mut(feed_key) else { return false };
        let log_end = feed.log.end();
        let Some(portion) = feed.latest.as_mut().and_then(|latest| latest.take(member, without, bytes_max)) else { return false };
        feed.latest.take_if(|latest| latest.is_unused());
        let cursor = if portion.is_all { log_end } else { portion.end };
        for hole in &portion.holes {
            self.not_sent(feed_key.topic, member, hole);
        }
        self.counters.drops.of(DropReason::Conflate).add(portion.left_out);
        let Some(session) = self.sessions.get_mut(conn) else { return false };
        if portion.left_out > 0 {
            session.cold.get_or_insert_default().thinned += portion.left_out;
        }
        let mut out = Vec::new();
        match Seat::of_member(member) {
            Some(slot) => {
                let seat = self.seats.at(slot);
                (seat.cursor, seat.thinned) = (cursor, !portion.is_all);
                let number = seat.number;
                if let Some(stream) = session.stream_mut().filter(|_| !portion.is_all) {
                    stream.pending.push_back(number);
                }
                self.write_portion(&mut out, conn, number, &portion);
            }
            None => {
                session.cursor = cursor;
                session.habits.set_thinned(!portion.is_all);
                portion.messages.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes.as_slice()));
            }
        }
        if out.is_empty() {
            return false;
        }
        let data = Rc::new(Gather::new(Ranges::from_buf([Arena::new(1, 1, &self.shared.memory).append(&out, &[])])));
        let Some(session) = self.sessions.get_mut(conn) else { return false };
        session.in_flight_frames = portion.messages.len() as u32;
        let batch = session.stream_mut().and_then(|stream| stream.talk.batch.as_mut());
        batch.into_iter().for_each(|batch| batch.sent(self.now));
        self.counters.deliveries_bytes.add(data.len() as u64);
        self.start_send(conn, data);
        true
    }

    /// Appends messages of one of a stream's topics, and before them what is missing before and between them.
    fn write_portion(&mut self, out: &mut Vec<u8>, conn: ConnKey, number: u16, portion: &Portion) {
        let index = usize::from(number);
        if let Some(last) = portion.holes.last() {
            let Some(stream) = self.sessions.get(conn).and_then(|session| session.stream()) else { return };
            let (epoch, at) = (stream.parts[index].epoch, stream.parts[index].at);
            // What is delivered next comes behind `to`; more may be missing behind that.
            let to = portion.messages.first().map_or(portion.at, |(first, _)| first - 1);
            let until = (*last.end() > to).then_some(Position { epoch, offset: *last.end() });
            let from = Some(Position { epoch, offset: at });
            self.write_gap(out, conn, number, to, until, (GapReason::Slow, from));
        }
        let Some(stream) = self.sessions.get_mut(conn).and_then(|session| session.stream_mut()) else { return };
        let has_own_ids = stream.kind == Kind::Events && !stream.shares();
        let start = out.len();
        for (offset, bytes) in &portion.messages {
            stream.parts[index].at = *offset;
            let mut bytes = bytes.as_slice();
            if has_own_ids {
                encode_id(out, stream.places());
                bytes = &bytes[memchr::memchr(b'\n', bytes).map_or(0, |end| end + 1)..];
            }
            out.extend_from_slice(bytes);
        }
        stream.parts[index].at = portion.at;
        frame_lines(stream.format(), out, start);
    }

    /// Queues the word for what one of a stream's topics had and it does not get.
    pub(super) fn tell_gap(&mut self, key: ConnKey, number: u16, at: u64, gap: Missing) {
        let mut out = Vec::new();
        self.write_gap(&mut out, key, number, at, None, gap);
        self.push_direct(key, &out, &[]);
    }

    fn write_gap(&mut self, out: &mut Vec<u8>, key: ConnKey, number: u16, at: u64, until: Option<Position>, (reason, from): Missing) {
        self.counters.gaps.of(reason.into()).add(1);
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        stream.parts[usize::from(number)].at = at;
        stream.gaps = stream.gaps.saturating_add(1);
        let part = &stream.parts[usize::from(number)];
        let gap = Gap { topic: part.name.as_str(), from, to: Position { epoch: part.epoch, offset: at }, until, reason };
        if stream.kind == Kind::Json {
            push_frame(out, &Reply::Gap(gap));
        } else {
            encode_id(out, stream.places());
            encode_gap(out, &gap);
        }
    }

    /// Bytes and messages that wait for a raw WebSocket, besides the send in flight.
    pub(super) fn room_waiting(&self, session: &Session, key: ConnKey) -> (u64, u64) {
        let feed = self.feed_of(session).filter(|_| session.seated);
        feed.map_or((0, 0), |feed| feed.waiting(key.slot, session.behind()))
    }

    /// The same for a stream, in all its topics.
    pub(super) fn stream_waiting(&self, stream: &Stream) -> (u64, u64) {
        let slots = stream.parts.iter().filter_map(|part| part.seat);
        let waiting = |slot| {
            let seat = self.seats.see(slot);
            let feed = self.topics.get(seat.feed.topic).and_then(|topic| topic.feed(seat.feed.format));
            feed.map_or((0, 0), |feed| feed.waiting(Seat::member(slot), seat.behind()))
        };
        slots.map(waiting).fold((0, 0), |sum, (bytes, frames)| (sum.0 + bytes, sum.1 + frames))
    }

    /// Whether messages may be left out for a member. Streams are told; others must have asked for it.
    fn may_thin(&self, member: u32, conn: ConnKey) -> bool {
        Seat::of_member(member).is_some() || self.sessions.get(conn).is_some_and(|session| session.habits.thins())
    }

    /// Whether more waits for a connection than may, in a topic, where it is so much, or in all that it has.
    fn is_over_bounds(&self, conn: ConnKey, bytes: u64, frames: u64) -> bool {
        let (bytes_max, frames_max) = (self.limits.queue_bytes_max, self.limits.queue_frames_max);
        let unsent = self.driver.unsent(conn) as u64;
        let bytes = bytes + unsent;
        if bytes > bytes_max || frames > frames_max {
            return true;
        }
        let Some(stream) = self.sessions.get(conn).and_then(|session| session.stream()) else { return false };
        // The one with most to send is visited too: only from there it is worth adding up.
        let topics = stream.pending.len() as u64;
        if topics < 2 || (bytes.saturating_mul(topics) <= bytes_max && frames.saturating_mul(topics) <= frames_max) {
            return false;
        }
        let (bytes, frames) = self.stream_waiting(stream);
        bytes + unsent > bytes_max || frames > frames_max
    }

    /// Leaves the oldest messages out that wait for a member, but for as many as its soft bound has room for, and the newest in any case. Where it is then.
    fn drop_oldest(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey, behind: Pin) -> Pin {
        let without = self.unwanted(member, conn);
        let Some(feed) = self.topics.get(feed_key.topic).and_then(|topic| topic.feed(feed_key.format)) else { return behind };
        let end = feed.log.end();
        let kept = behind.seek_border(end - self.limits.queue_soft_bytes);
        if kept.offset() <= behind.offset() {
            return behind;
        }
        let frames = wanted_frames(&behind, &kept, without);
        let offsets = first_offset(feed, &behind)..=feed.offset_before(&behind, &kept);
        let upto = *offsets.end();
        self.not_sent(feed_key.topic, member, &offsets);
        self.counters.drops.of(DropReason::DropOldest).add(frames);
        let Some(session) = self.sessions.get_mut(conn) else { return kept };
        if frames > 0 {
            session.cold.get_or_insert_default().thinned += frames;
        }
        match Seat::of_member(member) {
            Some(slot) => {
                let seat = self.seats.at(slot);
                seat.thinned = true;
                seat.move_to(kept.clone(), end);
                if let Some(stream) = session.stream_mut().filter(|_| frames > 0) {
                    stream.parts[usize::from(seat.number)].left_out = Some(upto);
                }
            }
            None => {
                session.habits.set_thinned(true);
                session.move_to(kept.clone(), end);
            }
        }
        kept
    }

    /// Whose messages a member does not want: its own, where it has said so.
    fn unwanted(&self, member: u32, conn: ConnKey) -> Option<ConnId> {
        let session = self.sessions.get(conn)?;
        let no_echo = match Seat::of_member(member) {
            Some(_) => session.stream()?.talk.no_echo,
            None => session.habits.no_echo(),
        };
        no_echo.then_some(ConnId { shard: self.shard, key: conn })
    }

    /// Tells a client what was left out of one of its topics, before it is sent what comes behind that. Whether there was anything.
    pub(super) fn tell_left_out(&mut self, key: ConnKey, number: u16) -> bool {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return false };
        let part = &mut stream.parts[usize::from(number)];
        let Some(upto) = part.left_out.take() else { return false };
        let from = Position { epoch: part.epoch, offset: part.at };
        stream.pending.push_front(number);
        self.tell_gap(key, number, upto, (GapReason::Slow, Some(from)));
        self.pump(key);
        true
    }
}

/// How many messages lie between two positions, without those of one sender.
fn wanted_frames(from: &Pin, to: &Pin, without: Option<ConnId>) -> u64 {
    let end = to.frame();
    if without.is_none() {
        return end - from.frame();
    }
    let mut wanted = 0;
    from.each(|number, frame, _| {
        wanted += u64::from(number < end && Some(frame.sender) != without);
        number < end
    });
    wanted
}

/// The offset of the message behind a position, where there is one.
fn first_offset(feed: &Feed, from: &Pin) -> u64 {
    let mut offset = feed.offset();
    from.each(|number, frame, _| {
        offset = feed.offset_of(number, frame);
        false
    });
    offset
}
