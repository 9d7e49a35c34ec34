//! What all shards share: a few numbers, each written by whoever changes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use super::clients::Clients;
use super::receipts::SentCounts;
use crate::engine::segment::SegmentMemory;
use crate::ids::ShardId;

/// Each shard's number on a cache line of its own.
#[derive(Default, Debug)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// Whether a frozen shard has nothing to do, and the messages to and from other shards until then.
#[derive(Default, Debug)]
#[repr(align(128))]
struct Stillness {
    still: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Counts and caps of the process.
#[derive(Debug)]
pub struct Shared {
    /// Bytes of all queued messages.
    pub memory: Arc<SegmentMemory>,
    /// Clients at once, as worked out at start.
    pub connections_max: u64,
    /// Bytes of queued messages at once, as worked out at start.
    pub queued_bytes_max: u64,
    /// Topics at once.
    pub topics_max: u64,
    /// Bytes of all histories at once, as worked out at start.
    pub history_bytes_max: u64,
    history: AtomicI64,
    loads: Vec<Load>,
    topics: AtomicU64,
    /// Connections within the cap.
    admitted: AtomicU64,
    /// Shards that drain and have closed their listener.
    closed: AtomicUsize,
    /// Shards of a process without connections whose clients' messages all have their places.
    settled: AtomicUsize,
    /// Shards that hand some of their clients to others.
    rebalancing: AtomicUsize,
    /// Of each shard that is frozen, how still it is.
    stillness: Vec<Stillness>,
    pub(super) sent_counts: SentCounts,
    pub(super) clients: Clients,
}

impl Shared {
    /// For a process of `shards` shards.
    pub fn new(shards: u16, connections_max: u64, queued_bytes_max: u64, topics_max: u64, history_bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            memory: SegmentMemory::new(),
            connections_max,
            queued_bytes_max,
            topics_max,
            history_bytes_max,
            history: AtomicI64::new(0),
            loads: (0..shards).map(|_| Load::default()).collect(),
            topics: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            closed: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            rebalancing: AtomicUsize::new(0),
            stillness: (0..shards).map(|_| Stillness::default()).collect(),
            sent_counts: SentCounts::default(),
            clients: Clients::default(),
        })
    }

    /// Connections that a shard has, or is about to get.
    pub fn load(&self, shard: ShardId) -> usize {
        self.loads[shard.index()].0.load(Ordering::Relaxed)
    }

    /// Connections of all shards.
    pub fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.0.load(Ordering::Relaxed)).sum()
    }

    /// The shard that should take one more connection: `here`, unless it has over 5 % more than its even share and another one has fewer.
    pub fn place(&self, here: ShardId) -> ShardId {
        let shards = self.loads.len();
        let mine = self.load(here);
        let total = self.connections() + 1;
        if (mine + 1) * shards <= total + total / 20 {
            return here;
        }
        let least = (0..shards).map(|shard| ShardId(shard as u16)).min_by_key(|&shard| self.load(shard)).unwrap_or(here);
        if self.load(least) < mine { least } else { here }
    }

    /// One more connection on `shard`.
    pub fn add_load(&self, shard: ShardId) {
        self.loads[shard.index()].0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn drop_load(&self, shard: ShardId) {
        let before = self.loads[shard.index()].0.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a connection is counted down once");
    }

    /// Counts a connection in, if the cap allows one more.
    pub fn admit(&self) -> bool {
        add_below(&self.admitted, self.connections_max)
    }

    /// Counts one that was admitted out.
    pub fn release(&self) {
        self.admitted.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the cap allows one more connection.
    pub fn has_room(&self) -> bool {
        self.admitted.load(Ordering::Relaxed) < self.connections_max
    }

    /// A shard drains and has closed its listener: it has counted everybody who came through it.
    pub fn add_closed(&self) {
        self.closed.fetch_add(1, Ordering::Release);
    }

    /// It accepts again.
    pub fn drop_closed(&self) {
        self.closed.fetch_sub(1, Ordering::Release);
    }

    /// Whether every shard drains and has closed its listener.
    pub fn all_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) == self.loads.len()
    }

    /// Whether every shard accepts.
    pub fn all_open(&self) -> bool {
        self.closed.load(Ordering::Acquire) == 0
    }

    /// Whether a drain is over: nobody is left, and nobody can come.
    pub fn is_drained(&self) -> bool {
        self.all_closed() && self.connections() == 0
    }

    /// The process is drained, and what clients of a shard have published has its place in its topics.
    pub fn add_settled(&self) {
        self.settled.fetch_add(1, Ordering::Release);
    }

    /// Whether that is so of every shard: no topic gets another message.
    pub fn all_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) == self.loads.len()
    }

    /// All shards are about to be asked for a rebalance. False while one is under way.
    pub fn begin_rebalancing(&self) -> bool {
        self.rebalancing.compare_exchange(0, self.loads.len(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A shard is done with it.
    pub fn drop_rebalancing(&self) {
        self.rebalancing.fetch_sub(1, Ordering::Relaxed);
    }

    /// A frozen shard looks whether there is something to do.
    pub(super) fn stir(&self, shard: ShardId) {
        self.stillness[shard.index()].still.store(false, Ordering::SeqCst);
    }

    /// A frozen shard has nothing to do, after so many messages to and from others.
    pub(super) fn rest(&self, shard: ShardId, sent: u64, received: u64) {
        let stillness = &self.stillness[shard.index()];
        stillness.sent.store(sent, Ordering::SeqCst);
        stillness.received.store(received, Ordering::SeqCst);
        stillness.still.store(true, Ordering::SeqCst);
    }

    /// Whether all shards are frozen and have nothing to do, and no message is on its way between them: so it stays until one of them is told otherwise.
    pub fn all_still(&self) -> bool {
        let all = |what: fn(&Stillness) -> &AtomicU64| self.stillness.iter().map(|shard| what(shard).load(Ordering::SeqCst)).sum::<u64>();
        let look = || {
            let still = self.stillness.iter().all(|shard| shard.still.load(Ordering::SeqCst));
            let (received, sent) = (all(|shard| &shard.received), all(|shard| &shard.sent));
            (still && received == sent).then_some(sent)
        };
        // A shard counts at the end of a step what it has sent in it: a sum that was met half-way is another one at the second look, in which that shard rests.
        look().is_some_and(|first| look() == Some(first))
    }

    /// Counts a connection in that was admitted by the process before.
    pub(super) fn admit_anyway(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a topic in, if there is room.
    pub fn add_topic(&self) -> bool {
        add_below(&self.topics, self.topics_max)
    }

    /// Counts a topic out.
    pub fn drop_topic(&self) {
        self.topics.fetch_sub(1, Ordering::Relaxed);
    }

    /// Histories have grown, or shrunk.
    pub fn add_history(&self, bytes: i64) {
        self.history.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of all histories.
    pub fn history_bytes(&self) -> u64 {
        self.history.load(Ordering::Relaxed).max(0) as u64
    }

    /// Whether histories take more than they may, and a shard with so many bytes of them more than its share: it is the one to let go of some.
    pub fn is_history_over(&self, mine: u64) -> bool {
        self.history.load(Ordering::Relaxed) > self.history_bytes_max as i64 && mine > self.history_bytes_max / self.loads.len() as u64
    }

    /// Whether queued messages take more memory than allowed. Histories lie in the same memory, in segments that may be twice as
    /// large, and have a bound of their own.
    pub fn is_over_memory(&self) -> bool {
        let histories = (2 * self.history_bytes()).min(self.history_bytes_max);
        self.memory.bytes() as u64 > self.queued_bytes_max.saturating_add(histories)
    }
}

fn add_below(count: &AtomicU64, max: u64) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_kernel_prefers_shards_stay_within_ten_percent() {
        for shards in [1_u16, 2, 3, 16] {
            let shared = Shared::new(shards, 0, 0, 0, 0);
            for n in 0..10_000_u64 {
                // Three of four land on shard 0.
                let here = ShardId(if n % 4 == 0 { (n / 4 % u64::from(shards)) as u16 } else { 0 });
                shared.add_load(shared.place(here));
            }
            let even = 10_000 / usize::from(shards);
            for shard in 0..shards {
                let load = shared.load(ShardId(shard));
                assert!(load.abs_diff(even) * 10 <= even, "shard {shard} of {shards}: {load}, even is {even}");
            }
        }
    }

    #[test]
    fn topics_are_counted_up_to_the_cap() {
        let shared = Shared::new(1, 0, 0, 2, 0);
        assert!(shared.add_topic() && shared.add_topic() && !shared.add_topic());
        shared.drop_topic();
        assert!(shared.add_topic());
    }
}
