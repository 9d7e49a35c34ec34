//! The newest messages of a topic, kept at its home shard for whoever comes later: a position in the topic's log, and when some of its frames came.
//!
//! Nothing is copied: the position keeps the log behind it alive. Times are noted at most once a second, so an age is kept to within that grain, and never
//! less than asked for.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Gateway;
use super::rate::Said;
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::engine::log::{Frame, Log, Pin};
use crate::ids::TopicKey;
use crate::limits::Limits;
use crate::time::Time;

/// How exactly it is known when a message came: to a second, or better where ages are short, and less where they are so long that it would cost more than
/// it is worth.
fn grain(limits: &Limits) -> Duration {
    let age = limits.history_age_ms;
    Duration::from_millis((age / 64).min(1000).max(age / 4096))
}

/// A topic's newest messages.
#[derive(Default)]
pub(super) struct History {
    oldest: Option<Pin>,
    /// The oldest frame's number.
    first: u64,
    /// When this frame came; those before it had come earlier.
    marks: VecDeque<(Time, u64)>,
    /// Bytes charged to the process's history.
    charged: u64,
    /// In the shard's list of topics with a history.
    pub(super) listed: bool,
}

impl History {
    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// The number of the oldest frame kept, or of the next one to come.
    pub(super) fn first(&self, log: &Log) -> u64 {
        if self.oldest.is_some() { self.first } else { log.frames() }
    }

    /// Bytes of the messages kept, as charged to the process's history.
    pub(super) fn bytes(&self) -> u64 {
        self.charged
    }

    /// Bytes that it has allocated besides.
    pub(super) fn heap_bytes(&self) -> u64 {
        (self.marks.capacity() * size_of::<(Time, u64)>()) as u64
    }

    /// The position before a frame that is kept.
    pub(super) fn seek(&self, frame: u64) -> Option<Pin> {
        self.oldest.as_ref().map(|oldest| oldest.seek_frame(frame))
    }

    /// When a frame that is kept came, or at most a grain later: what is kept for an age from then on is kept no less. The newest came at `last`.
    pub(super) fn came_by(&self, frame: u64, last: Time, limits: &Limits) -> Time {
        let marks = self.marks.partition_point(|&(_, first)| first <= frame);
        // Frames of a mark came within a grain of it.
        marks.checked_sub(1).map_or(last, |mark| last.min(self.marks[mark].0 + grain(limits)))
    }

    /// The first frame that came at most so long ago, or one a little before it.
    pub(super) fn since(&self, log: &Log, limits: &Limits, now: Time, ago: Duration) -> u64 {
        // Frames of a mark came within a grain of it.
        let mark = self.marks.iter().find(|(at, _)| now.since(*at) < ago + grain(limits));
        mark.map_or(log.frames(), |&(_, frame)| frame.max(self.first(log)))
    }

    /// A message is about to be appended.
    pub(super) fn appending(&mut self, log: &mut Log, limits: &Limits, now: Time) {
        if limits.history_messages == 0 {
            return;
        }
        if self.oldest.is_none() {
            self.oldest = Some(log.pin());
            self.first = log.frames();
        }
        if self.marks.back().is_none_or(|(at, _)| now.since(*at) >= grain(limits)) {
            self.marks.push_back((now, log.frames()));
        }
    }

    /// Lets go of what is more than `limits` allow. By how many bytes the history has grown since the last time.
    pub(super) fn trim(&mut self, log: &Log, limits: &Limits) -> i64 {
        let max = limits.history_messages;
        // Some more than asked for, so that a position is not moved at every message.
        if log.frames() - self.first(log) > max + max / 8 {
            self.keep_from(log.frames() - max);
        }
        self.recharge(log)
    }

    /// Lets go of what is too old. By how many bytes the history has grown.
    pub(super) fn expire(&mut self, log: &Log, limits: &Limits, now: Time, last_append: Time) -> i64 {
        let age = Duration::from_millis(limits.history_age_ms);
        if now.since(last_append) >= age {
            self.clear();
        } else if let Some(&(_, frame)) = self.marks.iter().rev().find(|(at, _)| now.since(*at) >= age) {
            self.keep_from(frame);
        }
        self.recharge(log)
    }

    /// Lets go of the older half, for want of room. By how many bytes the history has grown.
    pub(super) fn halve(&mut self, log: &Log) -> i64 {
        let kept = (log.frames() - self.first(log)) / 2;
        if kept == 0 {
            self.clear()
        } else {
            self.keep_from(log.frames() - kept)
        }
        self.recharge(log)
    }

    /// Gives back what the log has allocated and not used. Whether nobody else had a position in it.
    pub(super) fn compact(&mut self, log: &mut Log) -> bool {
        self.oldest.as_mut().is_some_and(|oldest| log.compact(oldest))
    }

    /// Lets go of everything. By how many bytes the history has grown.
    pub(super) fn drop_all(&mut self, log: &Log) -> i64 {
        self.clear();
        self.recharge(log)
    }

    fn clear(&mut self) {
        self.oldest = None;
        self.marks = VecDeque::new();
    }

    fn keep_from(&mut self, frame: u64) {
        if let Some(oldest) = &mut self.oldest
            && frame > self.first
        {
            *oldest = oldest.seek_frame(frame);
            self.first = frame;
            // The last mark at or before the oldest frame says how old that may be.
            while self.marks.get(1).is_some_and(|(_, next)| *next <= frame) {
                self.marks.pop_front();
            }
        }
    }

    fn recharge(&mut self, log: &Log) -> i64 {
        let bytes =
            self.oldest.as_ref().map_or(0, |oldest| log.end() - oldest.offset() + (log.frames() - self.first) * size_of::<Frame>() as u64);
        bytes as i64 - std::mem::replace(&mut self.charged, bytes) as i64
    }
}

/// What is known of a topic that is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gone {
    /// The offset of its newest message.
    pub(super) offset: u64,
    /// What counts against its rates.
    pub(super) said: Said,
}

impl Gone {
    /// Nothing counts against its rates.
    pub(super) fn at(offset: u64) -> Self {
        Self { offset, said: Said::default() }
    }
}

/// Where the offsets of topics that are gone have ended, so that a topic that comes back goes on from there, and nobody who was up to date is told of a gap.
pub(super) struct Past {
    /// No topic that was forgotten has had an offset above this. A topic that nobody has published to is not remembered at all: as long as none was
    /// forgotten it begins with 0 again, where its readers were.
    floor: u64,
    /// By the hash of their names (`Placement::hash`).
    gone: HashMap<u64, Gone>,
    /// The order in which they are forgotten.
    order: VecDeque<(u64, u64)>,
    max: usize,
}

impl Past {
    /// Bytes of its tables.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.gone.capacity() * size_of::<(u64, Gone)>() + self.order.capacity() * size_of::<(u64, u64)>()) as u64
    }

    /// Remembers at most so many topics.
    pub(super) fn new(max: usize) -> Self {
        Self { floor: 0, gone: HashMap::new(), order: VecDeque::new(), max }
    }

    /// What a topic that comes to be goes on from.
    pub(super) fn recall(&mut self, hash: u64) -> Gone {
        self.gone.remove(&hash).unwrap_or(Gone::at(self.floor))
    }

    /// A topic goes.
    pub(super) fn remember(&mut self, hash: u64, gone: Gone) {
        self.gone.insert(hash, gone);
        self.order.push_back((hash, gone.offset));
        while self.order.len() > self.max {
            if let Some((hash, offset)) = self.order.pop_front()
                && self.gone.get(&hash).is_some_and(|gone| gone.offset == offset)
            {
                self.gone.remove(&hash);
                self.floor = self.floor.max(offset);
            }
        }
    }

    /// No topic that is not remembered has had an offset above this.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Another process has forgotten topics up to this offset.
    pub(super) fn raise_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    /// The topics that are remembered, by their hashes, from the one that is forgotten next on.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.order.iter().copied().filter(|(hash, offset)| self.gone.get(hash).is_some_and(|gone| gone.offset == *offset))
    }
}

/// Topics whose history one sweep looks at.
const EXPIRE_BUDGET: usize = 8192;

impl<D: Driver> Gateway<D> {
    /// Lets go of histories that are too old.
    pub(super) fn expire_histories(&mut self) {
        for _ in 0..self.histories.len().min(EXPIRE_BUDGET) {
            let Some(key) = self.histories.pop_front() else { break };
            self.shorten_history(key, |history, topic_log, limits, now, last_append| history.expire(topic_log, limits, now, last_append));
        }
        self.relieve_histories();
    }

    /// While histories take more than they may, the one looked at longest ago is halved.
    pub(super) fn relieve_histories(&mut self) {
        while self.shared.is_history_over(self.counters.history_bytes.value())
            && let Some(key) = self.histories.pop_front()
        {
            self.shorten_history(key, |history, log, _, _, _| history.halve(log));
        }
    }

    /// Charges what a history has grown by to the process.
    pub(super) fn grow_history(&mut self, bytes: i64) {
        if bytes != 0 {
            self.shared.add_history(bytes);
            self.counters.history_bytes.set(self.counters.history_bytes.value().saturating_add_signed(bytes));
        }
    }

    fn shorten_history(&mut self, key: TopicKey, shorten: impl FnOnce(&mut History, &Log, &Limits, Time, Time) -> i64) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        let Role::Home(side) = &mut topic.role else { return };
        let grown = shorten(&mut side.history, &topic.raw.log, &self.limits, self.now, topic.last_append);
        self.grow_history(grown);
        let Some(topic) = self.topics.get_mut(key) else { return };
        let Role::Home(side) = &mut topic.role else { return };
        if side.history.is_empty() {
            side.history.listed = false;
            if !std::mem::replace(&mut topic.warm, true) {
                self.warm.push(key);
            }
            self.free_if_unused(key);
        } else {
            self.histories.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::rate::Scope;

    const A: u64 = 11;
    const B: u64 = 12;
    const C: u64 = 13;
    const D: u64 = 14;

    #[test]
    fn a_topic_that_comes_back_goes_on_where_it_was_and_one_that_had_no_message_at_none() {
        let mut past = Past::new(2);
        past.remember(A, Gone::at(5));
        assert_eq!((past.recall(B), past.recall(A)), (Gone::at(0), Gone::at(5)));
        past.remember(A, Gone::at(7));
        past.remember(B, Gone::at(3));
        assert_eq!(past.recall(C), Gone::at(0), "nothing was forgotten");
    }

    #[test]
    fn a_message_counts_as_no_older_than_it_is() {
        let limits = Limits { history_age_ms: 64_000, ..Limits::default() };
        let at = Time::from_millis;
        let history = History { marks: [(at(5_000), 3), (at(9_000), 7)].into(), ..History::default() };
        for (frame, expect) in [(2, 9_300), (3, 6_000), (6, 6_000), (7, 9_300), (8, 9_300)] {
            assert_eq!(history.came_by(frame, at(9_300), &limits), at(expect), "frame {frame}");
        }
        assert_eq!(history.came_by(8, at(30_000), &limits), at(10_000), "a later one would have had a mark");
    }

    #[test]
    fn a_topic_that_comes_back_has_used_up_its_rates_still() {
        let limits = Limits { messages_per_second_per_topic: 1, ..Limits::default() };
        let now = Time::from_millis(5_000);
        let mut said = Said::default();
        assert_eq!(said.take(Scope::Topic, now, 1, 1, &limits), Ok(()));
        let mut past = Past::new(1);
        past.remember(A, Gone { offset: 1, said });
        let mut back = past.recall(A);
        assert!(back.said.take(Scope::Topic, now, 1, 1, &limits).is_err());
        let mut small = Past::new(1);
        small.remember(A, Gone { offset: 1, said });
        small.remember(B, Gone::at(1));
        assert_eq!(small.recall(A), Gone::at(1), "beyond `topics_remembered` its rates are forgotten as its offset is");
    }

    #[test]
    fn a_topic_that_was_forgotten_begins_above_every_offset_that_it_can_have_had() {
        let mut past = Past::new(2);
        for (hash, offset) in [(A, 5), (B, 9), (C, 4)] {
            past.remember(hash, Gone::at(offset));
        }
        assert_eq!((past.recall(A), past.recall(D), past.recall(B)), (Gone::at(5), Gone::at(5), Gone::at(9)));
        let mut none = Past::new(0);
        none.remember(A, Gone::at(5));
        assert_eq!(none.recall(B), Gone::at(5));
    }

    #[test]
    fn what_is_remembered_can_be_told_to_another_process() {
        let mut past = Past::new(2);
        for (hash, offset) in [(A, 5), (B, 9), (B, 12), (C, 4)] {
            past.recall(hash);
            past.remember(hash, Gone::at(offset));
        }
        let mut next = Past::new(2);
        next.raise_floor(past.floor());
        past.iter().for_each(|(hash, offset)| next.remember(hash, Gone::at(offset)));
        for hash in [A, B, C, D] {
            assert_eq!(past.recall(hash), next.recall(hash), "{hash}");
        }
    }
}
