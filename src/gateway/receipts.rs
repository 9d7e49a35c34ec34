//! `ack=sent`: who was sent a message, counted as sends complete, by every shard with members of its topic.
//!
//! ```text
//!   home shard                                                 each shard with members, the home too
//!        ── Count{topic, offset, receipt, until} ─────────────▶   once fan-out has passed the message: who has been sent it,
//!                                                                 whose send is under way; the latter are looked at until it completes
//!        ◀── Counted{receipt} ─────────────────────────────────   by whoever finishes last
//! ```
//!
//! The count itself lies in a table that all shards share, so that at the deadline the home answers with what it is by then.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Gateway;
use super::feed::Format;
use super::peers::ShardMessage;
use super::publishing::{Receipt, Ticket};
use super::seats::Seat;
use crate::engine::driver::Driver;
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::proto::position::Position;
use crate::time::Time;

/// How long a receipt waits until its message was sent to everyone.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// So long before that everybody ends counting, so that the answer has it all.
const COUNTED_BEFORE: Duration = Duration::from_millis(50);
/// Members that one step looks at, beside those of one topic that is looked at for the first time.
const LOOKS: usize = 1024;

/// How far a message has got, over all shards.
#[derive(Debug)]
pub(super) struct SentCount {
    /// Members whose send of it has completed.
    sent: AtomicU64,
    /// Shards that have not finished counting.
    counting: AtomicU32,
}

/// The counts of all receipts in flight: made by a message's home, counted up by all shards with members, ended by the home.
#[derive(Default)]
pub struct SentCounts(sharded_slab::Slab<SentCount>);

impl std::fmt::Debug for SentCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SentCounts")
    }
}

/// A publisher's receipt that waits.
struct Awaited {
    from: ShardId,
    ticket: Ticket,
    position: Position,
    deadline: Time,
}

/// The receipts of messages whose home is this shard.
#[derive(Default)]
pub(super) struct AwaitedReceipts {
    by_receipt: HashMap<usize, Awaited>,
    deadlines: BTreeSet<(Time, usize)>,
}

/// What this shard counts for one receipt.
pub(super) struct Counting {
    home: ShardId,
    receipt: usize,
    topic: TopicKey,
    /// The message.
    offset: u64,
    /// When it ends, whoever is still to be sent it.
    until: Time,
    /// The ends of the feeds behind the message, once this shard has it.
    ends: Option<[Option<u64>; Format::ALL.len()]>,
    /// Members whose send of it has not completed; none before fan-out has passed it.
    pending: Option<Vec<Pending>>,
    /// Members that it was left out for because they are slow, since the last look.
    left_out: Vec<u32>,
}

/// A member whose send is under way, or to come.
struct Pending {
    conn: ConnKey,
    member: u32,
    /// The end of its feed behind the message.
    end: u64,
    /// Where it is, once that is behind the message: further on, that send has completed.
    sent_to: Option<u64>,
}

impl AwaitedReceipts {
    pub(super) fn len(&self) -> usize {
        self.by_receipt.len()
    }
}

impl<D: Driver> Gateway<D> {
    /// Takes up a count for a message that is about to be published; none when as many are in flight as may be.
    pub(super) fn begin_receipt(&mut self) -> Option<usize> {
        if self.awaited.len() as u64 >= self.limits.receipts_max {
            return None;
        }
        self.shared.sent_counts.0.insert(SentCount { sent: AtomicU64::new(0), counting: AtomicU32::new(1) })
    }

    /// The message has its place: everybody counts.
    pub(super) fn await_sent(&mut self, receipt: usize, home: TopicKey, from: ShardId, ticket: Ticket, position: Position) {
        let deadline = self.now + SENT_WITHIN;
        let until = self.now + (SENT_WITHIN - COUNTED_BEFORE);
        self.awaited.by_receipt.insert(receipt, Awaited { from, ticket, position, deadline });
        self.awaited.deadlines.insert((deadline, receipt));
        let elsewhere: Vec<(ShardId, TopicKey)> = self.topics.get(home).map_or(Vec::new(), |topic| topic.away().collect());
        if let Some(count) = self.shared.sent_counts.0.get(receipt) {
            count.counting.fetch_add(elsewhere.len() as u32, Ordering::Relaxed);
        }
        for (shard, topic) in elsewhere {
            self.mailbox.send(shard, ShardMessage::Count { topic, offset: position.offset, receipt, until });
        }
        self.count_sent(self.shard, receipt, home, position.offset, until);
    }

    /// Counts this shard's members that are sent a message.
    pub(super) fn count_sent(&mut self, home: ShardId, receipt: usize, topic: TopicKey, offset: u64, until: Time) {
        self.counts.push_back(Counting { home, receipt, topic, offset, until, ends: None, pending: None, left_out: Vec::new() });
    }

    /// Messages of a topic, those with these offsets, were left out for a member: they are not sent to it.
    pub(super) fn not_sent(&mut self, topic: TopicKey, member: u32, offsets: &RangeInclusive<u64>) {
        for counting in &mut self.counts {
            if counting.topic == topic && offsets.contains(&counting.offset) {
                counting.left_out.push(member);
            }
        }
    }

    /// Looks how far the messages have got that somebody wants a receipt of.
    pub(super) fn look_after_receipts(&mut self) {
        let mut looks = LOOKS;
        for _ in 0..self.counts.len() {
            let Some(mut counting) = self.counts.pop_front() else { break };
            let looked_at = counting.pending.as_ref().map_or(1, |pending| pending.len().max(1));
            if self.count(&mut counting) {
                self.finish_counting(&counting);
            } else {
                self.counts.push_back(counting);
            }
            looks = looks.saturating_sub(looked_at);
            if looks == 0 {
                break;
            }
        }
        while let Some(&(deadline, receipt)) = self.awaited.deadlines.first()
            && deadline <= self.now
        {
            self.sent_counted(receipt);
        }
    }

    /// Looks at the members that have not been sent the message. Whether there is nothing left to look for.
    fn count(&mut self, counting: &mut Counting) -> bool {
        let Some(topic) = self.topics.get(counting.topic) else { return true };
        let is_over = self.now >= counting.until;
        let ends = match counting.ends {
            Some(ends) => ends,
            None if topic.raw.offset() < counting.offset => return is_over,
            None => *counting.ends.insert(Format::ALL.map(|format| topic.feed(format).map(|feed| feed.log.end()))),
        };
        let mut sent = 0;
        if counting.pending.is_none() {
            // A feed that was made since has nobody who was there.
            let feeds = || Format::ALL.into_iter().zip(ends).filter_map(|(format, end)| Some((topic.feed(format)?, end?)));
            if !is_over && feeds().any(|(feed, end)| feed.served() < end) {
                return false;
            }
            let mut pending = Vec::new();
            for (feed, end) in feeds() {
                for member in feed.members.iter() {
                    let conn = match Seat::of_member(member) {
                        Some(seat) => self.seats.see(seat).conn,
                        None => self.sessions.at(member).expect("a member is a live connection").0,
                    };
                    pending.push(Pending { conn, member, end, sent_to: None });
                }
            }
            counting.pending = Some(pending);
        }
        let Some(pending) = &mut counting.pending else { return false };
        let mut left_out = std::mem::take(&mut counting.left_out);
        left_out.sort_unstable();
        pending.retain_mut(|one| {
            if left_out.binary_search(&one.member).is_ok() || topic.is_left_out(one.member, counting.offset) {
                return false;
            }
            let cursor = match Seat::of_member(one.member) {
                Some(slot) => {
                    self.seats.get(slot).filter(|seat| seat.conn == one.conn && seat.feed.topic == counting.topic).map(|seat| seat.cursor)
                }
                None => {
                    let session = self.sessions.get(one.conn);
                    session.filter(|session| session.seated && session.topic == Some(counting.topic)).map(|session| session.cursor)
                }
            };
            let Some(cursor) = cursor else { return false };
            if cursor < one.end {
                return true;
            }
            let complete = self.driver.unsent(one.conn) == 0 || one.sent_to.is_some_and(|before| cursor > before);
            one.sent_to = Some(cursor);
            sent += u64::from(complete);
            !complete
        });
        pending.shrink_to(pending.len() * 2);
        let is_empty = pending.is_empty();
        if let Some(count) = self.shared.sent_counts.0.get(counting.receipt) {
            count.sent.fetch_add(sent, Ordering::Relaxed);
            return is_empty || is_over;
        }
        true
    }

    /// Whoever finishes last says so to the home.
    fn finish_counting(&mut self, counting: &Counting) {
        let is_last =
            self.shared.sent_counts.0.get(counting.receipt).is_some_and(|count| count.counting.fetch_sub(1, Ordering::AcqRel) == 1);
        if !is_last {
            return;
        }
        if counting.home == self.shard {
            self.sent_counted(counting.receipt);
        } else {
            self.mailbox.send(counting.home, ShardMessage::Counted { receipt: counting.receipt });
        }
    }

    /// Everyone was sent the message, or the time is up.
    pub(super) fn sent_counted(&mut self, receipt: usize) {
        let Some(awaited) = self.awaited.by_receipt.remove(&receipt) else { return };
        self.awaited.deadlines.remove(&(awaited.deadline, receipt));
        let Some(count) = self.shared.sent_counts.0.take(receipt) else { return };
        let subscribers = count.sent.load(Ordering::Acquire);
        let receipt = Receipt::Published { position: awaited.position, subscribers, duplicate: false };
        self.give_receipt(awaited.from, awaited.ticket, receipt);
    }
}
