//! Messages that a stream has not acknowledged yet, in the order in which they are said. Pure: who calls says what time it is.
//!
//! All of them are sent without waiting for one another. What is not acknowledged is sent again from the oldest on, each under the message id that it had, so
//! that the stream has it once however often it came. A message is given up when it has waited for too long, and when a later one of the same
//! client to the same subject was acknowledged before it: sent again it would come behind that one.

use std::collections::VecDeque;

use super::link::{Answer, Notice, Outgoing};
use crate::ids::ShardId;

/// How long an acknowledgement may take before everything is sent again.
const ACK_WITHIN_MS: u64 = 2_000;
/// How long nothing is sent after a stream has refused a message for the moment.
const HOLD_MS: u64 = 100;

/// A message that waits for its acknowledgement.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Whose home it comes from.
    pub(crate) shard: ShardId,
    /// The message.
    pub(crate) message: Outgoing,
    since_ms: u64,
    sent_ms: Option<u64>,
    overtaken: bool,
}

/// All messages of a node that wait for theirs.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// The number of the first in the list.
    first: u64,
    list: VecDeque<Option<Waiting>>,
    /// How many of the list were sent since the last time that everything was sent again.
    sent: usize,
    /// How many of these were not answered.
    under_way: usize,
    /// One was put off: everything is sent again, once what was sent behind it was answered.
    again: bool,
    hold_until_ms: u64,
}

impl Outstanding {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Takes one up, behind all others.
    pub(crate) fn push(&mut self, shard: ShardId, message: Outgoing, now_ms: u64) {
        self.list.push_back(Some(Waiting { shard, message, since_ms: now_ms, sent_ms: None, overtaken: false }));
    }

    /// The next to be sent, with its number.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<(u64, Outgoing)> {
        if now_ms < self.hold_until_ms || (self.again && self.under_way > 0) {
            return None;
        }
        if self.again {
            self.send_again();
        }
        while let Some(slot) = self.list.get_mut(self.sent) {
            let number = self.first + self.sent as u64;
            self.sent += 1;
            // One that was overtaken would come behind its successor: it is given up.
            if let Some(waiting) = slot.as_mut().filter(|waiting| !waiting.overtaken) {
                waiting.sent_ms = Some(now_ms);
                self.under_way += 1;
                return Some((number, waiting.message.clone()));
            }
        }
        None
    }

    /// One of them is done with, as stored; none when it was before.
    pub(crate) fn acknowledged(&mut self, number: u64) -> Option<Waiting> {
        let index = self.answered(number)?;
        let done = self.list.get_mut(index)?.take()?;
        for earlier in self.list.range_mut(..index).flatten() {
            earlier.overtaken |= earlier.is_of_the_same(&done);
        }
        self.compact();
        Some(done)
    }

    /// One of them is done with, and not stored.
    pub(crate) fn refused(&mut self, number: u64) -> Option<Waiting> {
        let index = self.answered(number)?;
        let done = self.list.get_mut(index)?.take()?;
        self.compact();
        Some(done)
    }

    /// One has its answer, and so is not under way any more. Where it is in the list.
    fn answered(&mut self, number: u64) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let waiting = self.list.get_mut(index)?.as_mut()?;
        self.under_way -= usize::from(waiting.sent_ms.take().is_some());
        Some(index)
    }

    /// The stream does not take one at the moment. Everything is sent again, a little later, and not before what was sent behind it was answered: that may have been
    /// taken, and of the same client this one would come behind it.
    pub(crate) fn put_off(&mut self, number: u64, now_ms: u64) {
        let before = self.under_way;
        // Unless that was said before.
        if self.answered(number).is_some() && self.under_way < before {
            self.again = true;
            self.hold_until_ms = self.hold_until_ms.max(now_ms + HOLD_MS);
        }
    }

    /// The connection is another one: everything is sent again, a little later. What went out on it already, behind others that are lost, may be taken, and its
    /// acknowledgement has that time to say so.
    pub(crate) fn hold(&mut self, now_ms: u64) {
        self.hold_until_ms = now_ms + HOLD_MS;
        self.send_again();
    }

    /// Everything is sent again: what was sent may be lost.
    pub(crate) fn send_again(&mut self) {
        (self.sent, self.under_way, self.again) = (0, 0, false);
        self.list.iter_mut().flatten().for_each(|waiting| waiting.sent_ms = None);
    }

    /// Has everything sent again if the oldest has waited too long for its acknowledgement. Who is given up: has waited for longer than `patience_ms`, or was overtaken.
    pub(crate) fn look(&mut self, now_ms: u64, patience_ms: u64) -> Vec<Waiting> {
        let late = |waiting: &Waiting| waiting.sent_ms.is_some_and(|sent_ms| now_ms.saturating_sub(sent_ms) >= ACK_WITHIN_MS);
        if self.list.iter().flatten().find(|waiting| waiting.sent_ms.is_some()).is_some_and(late) {
            self.send_again();
        }
        let mut given_up = Vec::new();
        for slot in &mut self.list {
            given_up.extend(slot.take_if(|waiting| {
                now_ms.saturating_sub(waiting.since_ms) >= patience_ms || (waiting.overtaken && waiting.sent_ms.is_none())
            }));
        }
        self.under_way -= given_up.iter().filter(|waiting| waiting.sent_ms.is_some()).count();
        self.compact();
        given_up
    }

    fn compact(&mut self) {
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
        }
    }
}

impl Waiting {
    /// What is said of it, and to which shard, now that it is known what became of it.
    pub(crate) fn notice(self, answer: Answer) -> Option<(ShardId, Notice)> {
        let tracked = self.message.tracked?;
        match (tracked.token, &answer) {
            (Some(token), _) => Some((self.shard, Notice::Answer { token, answer })),
            (None, Answer::Stored { .. }) => None,
            (None, _) => Some((tracked.sender.shard, Notice::Untaken { conn: tracked.sender.key })),
        }
    }

    /// Whether the other comes from the same client and goes to the same subject: those two may not change places.
    fn is_of_the_same(&self, other: &Self) -> bool {
        let sender = |waiting: &Self| waiting.message.tracked.as_ref().map(|tracked| tracked.sender);
        self.message.subject == other.message.subject && sender(self) == sender(other)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::link::Tracked;
    use super::*;
    use crate::ids::{ConnId, ConnKey};
    use crate::proto::ws::MessageKind;

    fn message(subject: &str, slot: u32) -> Outgoing {
        let sender = ConnId { shard: ShardId(0), key: ConnKey { slot, generation: 0 } };
        let tracked = Some(Box::new(Tracked { sender, token: None, id: None, no_echo: false }));
        Outgoing { subject: subject.into(), payload: Bytes::new(), kind: MessageKind::Text, event: None, key: None, tracked }
    }

    fn list(messages: &[(&str, u32)]) -> Outstanding {
        let mut outstanding = Outstanding::default();
        messages.iter().for_each(|(subject, slot)| outstanding.push(ShardId(0), message(subject, *slot), 0));
        outstanding
    }

    fn numbers(outstanding: &mut Outstanding, now_ms: u64) -> Vec<u64> {
        std::iter::from_fn(|| outstanding.next(now_ms)).map(|(number, _)| number).collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_in_its_order() {
        let mut all = list(&[("a", 1), ("b", 2), ("a", 3), ("b", 4)]);
        assert_eq!(numbers(&mut all, 0), [0, 1, 2, 3]);
        assert!(all.acknowledged(1).is_some() && all.acknowledged(1).is_none() && all.acknowledged(9).is_none());
        assert!(all.look(ACK_WITHIN_MS - 1, 60_000).is_empty());
        assert!(numbers(&mut all, ACK_WITHIN_MS - 1).is_empty());
        assert!(all.look(ACK_WITHIN_MS, 60_000).is_empty());
        assert_eq!(numbers(&mut all, ACK_WITHIN_MS), [0, 2, 3]);
        assert!(all.acknowledged(0).is_some());
        all.push(ShardId(0), message("a", 1), 0);
        assert_eq!(numbers(&mut all, ACK_WITHIN_MS), [4]);
        all.send_again();
        assert_eq!(numbers(&mut all, ACK_WITHIN_MS), [2, 3, 4]);
        assert!([2, 3, 4].into_iter().all(|number| all.acknowledged(number).is_some()));
        assert!(all.is_empty());
    }

    #[test]
    fn a_stream_that_takes_nothing_is_left_alone_for_a_moment() {
        let mut all = list(&[("a", 1), ("a", 1)]);
        assert_eq!(numbers(&mut all, 0), [0, 1]);
        all.put_off(0, 5);
        all.put_off(1, 6);
        all.put_off(1, 50);
        assert!(numbers(&mut all, 5 + HOLD_MS).is_empty());
        assert_eq!(numbers(&mut all, 6 + HOLD_MS), [0, 1]);
        all.hold(300);
        assert!(numbers(&mut all, 299 + HOLD_MS).is_empty());
        assert_eq!(numbers(&mut all, 300 + HOLD_MS), [0, 1]);
    }

    /// A stream that is slow may have taken what came behind, and not have said so yet.
    #[test]
    fn who_was_put_off_waits_for_the_answers_to_what_was_sent_behind() {
        let mut all = list(&[("a", 1), ("b", 1), ("a", 1)]);
        assert_eq!(numbers(&mut all, 0), [0, 1, 2]);
        all.put_off(0, 5);
        assert!(numbers(&mut all, 1_000).is_empty());
        assert!(all.acknowledged(2).is_some() && numbers(&mut all, 1_000).is_empty());
        all.put_off(1, 1_000);
        assert_eq!(numbers(&mut all, 1_000 + HOLD_MS), [1], "the first was overtaken");
        assert_eq!(all.look(1_100, 60_000).len(), 1);
        assert!(all.acknowledged(1).is_some() && all.is_empty());
        let mut silent = list(&[("a", 1), ("a", 1)]);
        assert_eq!(numbers(&mut silent, 0), [0, 1]);
        silent.put_off(0, 5);
        assert!(silent.look(ACK_WITHIN_MS, 60_000).is_empty());
        assert_eq!(numbers(&mut silent, ACK_WITHIN_MS), [0, 1], "no answer comes any more");
    }

    #[test]
    fn who_waits_too_long_and_who_was_overtaken_by_itself_is_given_up() {
        let mut all = list(&[("a", 1), ("a", 2), ("b", 1), ("a", 1)]);
        assert_eq!(numbers(&mut all, 0), [0, 1, 2, 3]);
        assert!(all.acknowledged(3).is_some());
        assert!(all.look(1, 60_000).is_empty(), "its acknowledgement may be on its way");
        all.send_again();
        let given_up = all.look(2, 60_000);
        assert_eq!(given_up.len(), 1);
        assert_eq!((&*given_up[0].message.subject, given_up[0].message.tracked.as_ref().map(|by| by.sender.key.slot)), ("a", Some(1)));
        assert_eq!(numbers(&mut all, 2), [1, 2]);
        assert_eq!(all.look(60_000, 60_000).len(), 2);
        assert!(all.is_empty());
    }
}
