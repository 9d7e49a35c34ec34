//! Rates with bursts: the generic cell rate algorithm (ITU-T I.371), one time instead of a bucket of tokens.
//!
//! A [`Rate`] is the time at which everything taken so far would have been due, had it come evenly. Taking is allowed while that lies at most
//! `limits.rate_burst_ms` ahead. So a rate that was not used for that long may be used up at once, and never more than that.

use std::collections::HashMap;
use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::counters::{Label, RateLimit};
use super::peers::ShardMessage;
use super::streams::message;
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::engine::log::Parcel;
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::time::Time;

/// How much of a rate was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate(Time);

impl Default for Rate {
    fn default() -> Self {
        Self(Time::ZERO)
    }
}

impl Rate {
    /// Takes `count` at a rate of so many per second, or says how long to wait until that is possible. More than a whole burst is possible when nothing of
    /// it is used, and is made up for afterwards.
    pub(super) fn take(&mut self, now: Time, count: u64, per_second: f64, burst: Duration) -> Result<(), Duration> {
        let due = self.0.max(now);
        let cost = Duration::try_from_secs_f64(count as f64 / per_second).unwrap_or(Duration::from_secs(3600));
        let wait = due.since(now).saturating_add(cost.min(burst)).saturating_sub(burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.0 = due + cost;
        Ok(())
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_over(self, now: Time) -> bool {
        self.0 <= now
    }

    /// Whether one more could be taken.
    pub(super) fn has_room(mut self, now: Time, per_second: f64, burst: Duration) -> bool {
        self.take(now, 1, per_second, burst).is_ok()
    }
}

/// Whose messages are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those of one connection.
    Connection,
    /// Those of all connections of one address.
    Address,
    /// Those to one topic.
    Topic,
}

impl Scope {
    /// The bounds to messages and to their bytes, per second; 0 is none.
    fn bounds(self, limits: &Limits) -> [(RateLimit, u64); 2] {
        match self {
            Self::Connection => [(RateLimit::Messages, limits.messages_per_second), (RateLimit::Bytes, limits.message_bytes_per_second)],
            Self::Address => [
                (RateLimit::MessagesOfAddress, limits.messages_per_second_per_address),
                (RateLimit::BytesOfAddress, limits.message_bytes_per_second_per_address),
            ],
            Self::Topic => [
                (RateLimit::MessagesOfTopic, limits.messages_per_second_per_topic),
                (RateLimit::BytesOfTopic, limits.message_bytes_per_second_per_topic),
            ],
        }
    }

    /// Whether there is a bound.
    pub(super) fn is_bounded(self, limits: &Limits) -> bool {
        self.bounds(limits).iter().any(|&(_, per_second)| per_second > 0)
    }
}

/// What was said together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Said {
    messages: Rate,
    bytes: Rate,
}

impl Said {
    /// Takes messages and their bytes, or neither.
    pub(super) fn take(&mut self, scope: Scope, now: Time, messages: u64, bytes: u64, limits: &Limits) -> Result<(), OverRate> {
        let mut taken = *self;
        let counts = [(&mut taken.messages, messages), (&mut taken.bytes, bytes)];
        for ((limit, per_second), (rate, count)) in scope.bounds(limits).into_iter().zip(counts) {
            if per_second > 0 {
                rate.take(now, count, per_second as f64, burst(limits)).map_err(|wait| OverRate { scope, limit, per_second, wait })?;
            }
        }
        *self = taken;
        Ok(())
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_over(self, now: Time) -> bool {
        self.messages.is_over(now) && self.bytes.is_over(now)
    }
}

/// Why more may not be said now, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverRate {
    scope: Scope,
    /// Which bound.
    pub limit: RateLimit,
    per_second: u64,
    wait: Duration,
}

impl OverRate {
    /// For a close frame, which says in front of it when to come back.
    pub(super) fn reason(&self) -> String {
        format!("over limits.{} ({})", self.limit.text(), self.per_second)
    }

    /// For the answer to a request.
    pub(super) fn message(&self) -> String {
        let who = match self.scope {
            Scope::Connection => "this connection publishes more than one",
            Scope::Address => "your address publishes more than one",
            Scope::Topic => "this topic is sent more than one",
        };
        format!("{who} may (limits.{} is {}); come back after Retry-After", self.limit.text(), self.per_second)
    }

    /// When it can be said, in milliseconds.
    pub(super) fn retry_ms(&self) -> u64 {
        self.wait.as_millis() as u64 + 1
    }
}

/// What may be used at once after a quiet time, as a time.
pub(super) fn burst(limits: &Limits) -> Duration {
    Duration::from_millis(limits.rate_burst_ms)
}

impl<D: Driver> Gateway<D> {
    /// Counts messages that a connection publishes against its rates, and against those of its address.
    pub(super) fn take_said(&mut self, key: ConnKey, messages: u64, bytes: u64) -> Result<(), OverRate> {
        let limits = &self.limits;
        let own = Scope::Connection.is_bounded(limits);
        let mut said = if own { self.said.get(key).copied().unwrap_or_default() } else { Said::default() };
        if own {
            said.take(Scope::Connection, self.now, messages, bytes, limits)?;
        }
        self.take_said_for_address(key, messages, bytes)?;
        match self.said.get_mut(key) {
            Some(known) => *known = said,
            None if own => self.said.insert(key, said),
            None => {}
        }
        Ok(())
    }

    /// Counts a message of a room's member against the room's rates, if its home is here; another home judges it when it gives it its place.
    pub(super) fn take_said_in_room(&mut self, key: ConnKey, bytes: u64) -> Result<(), OverRate> {
        match self.sessions.get(key).and_then(|session| session.topic) {
            Some(room) => self.take_said_at_home(room, bytes),
            None => Ok(()),
        }
    }

    /// Counts a message to a topic against its rates, where its home is here.
    pub(super) fn take_said_at_home(&mut self, topic: TopicKey, bytes: u64) -> Result<(), OverRate> {
        if !Scope::Topic.is_bounded(&self.limits) {
            return Ok(());
        }
        match self.topics.get_mut(topic).map(|topic| &mut topic.role) {
            Some(Role::Home(side)) => side.said.take(Scope::Topic, self.now, 1, bytes, &self.limits),
            _ => Ok(()),
        }
    }

    /// Ends a WebSocket that goes on over a rate.
    pub(super) fn end_over_rate(&mut self, key: ConnKey, over: &OverRate) {
        self.counters.rate_limited.of(over.limit).add(1);
        self.end_with(key, CloseCause::RateLimited, None, &over.reason());
    }

    /// Takes what is over a topic's rates out of a parcel for it. Of a sender of whom one message was not taken none is that follows: its shard is told so, and
    /// leaves out what it still has of it (see `over_rate`).
    pub(super) fn take_said_in_parcel(&mut self, from: ShardId, home: TopicKey, key: TopicKey, parcel: &mut Parcel) {
        if !Scope::Topic.is_bounded(&self.limits) {
            return;
        }
        let Some(Role::Home(side)) = self.topics.get_mut(home).map(|topic| &mut topic.role) else { return };
        let mut ended = HashMap::new();
        parcel.retain(|frame, bytes| {
            if ended.contains_key(&frame.sender.key) {
                return false;
            }
            let taken = side.said.take(Scope::Topic, self.now, 1, message(bytes).1.len() as u64, &self.limits);
            taken.map_err(|over| ended.insert(frame.sender.key, over)).is_ok()
        });
        for (conn, over) in ended {
            self.counters.rate_limited.of(over.limit).add(1);
            self.mailbox.send(from, ShardMessage::OverRate { key, conn, over });
        }
    }

    /// The home of a topic did not take a message of a client here: it is ended, and nothing follows of what it has said.
    pub(super) fn over_rate(&mut self, key: TopicKey, conn: ConnKey, over: &OverRate) {
        if let Some(Role::Away(side)) = self.topics.get_mut(key).map(|topic| &mut topic.role)
            && let Some(uplink) = &mut side.uplink
            && uplink.waiting.is_some()
        {
            uplink.ended.insert(conn);
        }
        if self.sessions.get(conn).is_some_and(|session| session.topic == Some(key)) {
            self.end_with(conn, CloseCause::RateLimited, None, &over.reason());
        }
    }

    /// Whether one more client may open a WebSocket or a stream now. The rate is the process's; each shard has an even part of it, as it has of the clients.
    pub(super) fn may_open(&self) -> bool {
        let per_second = self.limits.handshakes_per_second as f64 / f64::from(self.placement.shards());
        self.limits.handshakes_per_second == 0 || self.opened.has_room(self.now, per_second, burst(&self.limits))
    }

    /// Counts one that does.
    pub(super) fn take_opened(&mut self, key: ConnKey) {
        self.take_opened_for_address(key);
        if self.limits.handshakes_per_second > 0 {
            let per_second = self.limits.handshakes_per_second as f64 / f64::from(self.placement.shards());
            // Whoever got this far was let in by `may_open` in the same step.
            let _ = self.opened.take(self.now, 1, per_second, burst(&self.limits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_allowed_and_then_the_rate_holds() {
        let mut rate = Rate::default();
        let mut now = Time::from_millis(5_000);
        let taken = (0..100).filter(|_| rate.take(now, 1, 10.0, BURST).is_ok()).count();
        assert_eq!(taken, 10);
        assert_eq!(rate.take(now, 1, 10.0, BURST), Err(Duration::from_millis(100)));
        for _ in 0..5 {
            now = now + Duration::from_millis(100);
            assert_eq!((rate.take(now, 1, 10.0, BURST), rate.has_room(now, 10.0, BURST)), (Ok(()), false));
        }
        now = now + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| rate.take(now, 1, 10.0, BURST).is_ok()).count(), 10, "quiet times do not add up");
    }

    #[test]
    fn more_than_a_burst_at_once_is_made_up_for() {
        let mut rate = Rate::default();
        let now = Time::from_millis(5_000);
        assert_eq!(rate.take(now, 50, 10.0, BURST), Ok(()));
        assert_eq!(rate.take(now, 1, 10.0, BURST), Err(Duration::from_millis(4_100)));
        assert_eq!(rate.take(now + Duration::from_millis(4_100), 1, 10.0, BURST), Ok(()));
        assert_eq!(rate.take(now, u64::MAX, 0.001, BURST).map_err(|wait| wait > BURST), Err(true));
    }
    #[test]
    fn messages_and_bytes_are_taken_together_or_not_at_all() {
        let limits = Limits { messages_per_second_per_topic: 2, message_bytes_per_second_per_topic: 100, ..Limits::default() };
        let now = Time::from_millis(5_000);
        let mut said = Said::default();
        let over = |said: &mut Said, bytes| said.take(Scope::Topic, now, 1, bytes, &limits).map_err(|over| over.limit);
        assert_eq!(over(&mut said, 90), Ok(()));
        assert_eq!(over(&mut said, 20), Err(RateLimit::BytesOfTopic));
        assert_eq!(over(&mut said, 10), Ok(()), "what was refused has used up no message");
        assert_eq!(over(&mut said, 0), Err(RateLimit::MessagesOfTopic));
        assert!(!said.is_over(now) && said.is_over(now + BURST));
        assert_eq!(said.take(Scope::Address, now, 1000, 1000, &limits), Ok(()), "another scope has other bounds");
    }

    #[test]
    fn a_refusal_says_which_bound_how_much_and_when() {
        let limits = Limits { messages_per_second_per_topic: 2, ..Limits::default() };
        let mut said = Said::default();
        let now = Time::from_millis(5_000);
        let over = (0..3).find_map(|_| said.take(Scope::Topic, now, 1, 0, &limits).err()).expect("over the rate");
        assert_eq!(over.reason(), "over limits.messages_per_second_per_topic (2)");
        assert_eq!(
            over.message(),
            "this topic is sent more than one may (limits.messages_per_second_per_topic is 2); come back after Retry-After"
        );
        assert_eq!(over.retry_ms(), 501);
        // A close reason has at most 123 bytes, and `retry=` stands in front.
        for limit in RateLimit::VALUES {
            let longest = OverRate { scope: Scope::Topic, limit: *limit, per_second: 1_000_000_000_000, wait: Duration::ZERO };
            assert!(format!("retry=3600000 {}", longest.reason()).len() <= 123, "{}", longest.reason());
        }
        for row in RateLimit::VALUES {
            assert!(Limits::find(row.text()).is_some(), "{row:?} is named after its bound");
        }
    }
}
