//! Readers that are slower than their topic: what is left out for them where the topic's rule says so (`slow`), and whose queue is over its bounds.
//!
//! Only what waits in the topic's log is left out, never what is in the send in flight; so frames stay whole, and a gap lies between two sends. A stream is
//! told of it before the message behind it. A raw WebSocket cannot be told, and is thinned only where it has asked for that. Who was thinned does not hold its
//! topic's floor before it has caught up: a reader that is always within its soft bound would else hold up publishers with each of its sends.

use super::Gateway;
use super::counters::DropReason;
use super::feed::{Feed, FeedKey};
use super::seats::Seat;
use super::session::Thinning;
use crate::engine::driver::Driver;
use crate::engine::log::Pin;
use crate::ids::{ConnId, ConnKey};
use crate::proto::gap::GapReason;
use crate::proto::position::Position;
use crate::proto::slow::SlowPolicy;

impl<D: Driver> Gateway<D> {
    /// A member waits for its peer, at `behind`, while more is published: messages are left out for it, or it is ended, as its bounds and its topic say.
    pub(super) fn see_to_slow(&mut self, feed_key: FeedKey, member: u32, conn: ConnKey, behind: Pin) {
        let Some(topic) = self.topics.get(feed_key.topic) else { return };
        let Some(feed) = topic.feed(feed_key.format) else { return };
        let thins = topic.slow == SlowPolicy::DropOldest && feed.log.end() - behind.offset() > self.limits.queue_soft_bytes;
        let behind = if thins && self.may_thin(member, conn) { self.drop_oldest(feed_key, member, conn, behind) } else { behind };
        if self.is_over_bounds(feed_key, conn, &behind) {
            self.slow.push(conn);
        }
    }

    /// Whether messages may be left out for a member. Streams are told; others must have asked for it.
    fn may_thin(&self, member: u32, conn: ConnKey) -> bool {
        Seat::of_member(member).is_some() || self.sessions.get(conn).is_some_and(|session| session.thinning != Thinning::Never)
    }

    /// Whether more waits for a connection than may, in a topic or in all that it has.
    fn is_over_bounds(&self, feed_key: FeedKey, conn: ConnKey, behind: &Pin) -> bool {
        let (bytes_max, frames_max) = (self.limits.queue_bytes_max, self.limits.queue_frames_max);
        let Some(feed) = self.topics.get(feed_key.topic).and_then(|topic| topic.feed(feed_key.format)) else { return false };
        let unsent = self.driver.unsent(conn) as u64;
        let (bytes, frames) = (feed.log.end() - behind.offset() + unsent, feed.log.frames() - behind.frame());
        if bytes > bytes_max || frames > frames_max {
            return true;
        }
        let Some(stream) = self.sessions.get(conn).and_then(|session| session.stream()) else { return false };
        // The one with most to send is visited too: only from there it is worth adding up.
        let topics = stream.pending.len() as u64;
        (bytes.saturating_mul(topics) > bytes_max && self.stream_queued(stream) + unsent > bytes_max)
            || (frames.saturating_mul(topics) > frames_max && self.stream_frames(stream) > frames_max)
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
                session.thinning = Thinning::Now;
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
            None => session.no_echo,
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
