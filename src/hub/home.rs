//! What a topic's home shard knows of the other shards: who wants the topic, and how far each has got.
//!
//! Offsets are those of the home's log. To each shard at most one batch is under way; more gathers in the log until it is acknowledged, so
//! queues between shards are bounded by topics and never by the rate of messages.

use crate::ids::{ShardId, TopicKey};

/// Another shard that has subscribers, and its position `P` in the home's log: none while it has been sent everything.
#[derive(Debug)]
pub struct Target<P> {
    /// The shard.
    pub shard: ShardId,
    /// What it calls the topic.
    pub key: TopicKey,
    /// Where the next batch begins; kept only while something waits.
    pub waiting: Option<P>,
    acknowledged: u64,
    under_way: bool,
    members: u64,
}

/// The other shards that want a topic.
#[derive(Debug)]
pub struct Home<P> {
    targets: Vec<Target<P>>,
}

impl<P> Default for Home<P> {
    fn default() -> Self {
        Self { targets: Vec::new() }
    }
}

impl<P> Home<P> {
    /// Whether no other shard wants the topic.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Bytes that it has allocated.
    pub fn heap_bytes(&self) -> u64 {
        (self.targets.capacity() * size_of::<Target<P>>()) as u64
    }

    /// Adds a shard; it gets what comes after `end`, the log's present end.
    pub fn subscribe(&mut self, shard: ShardId, key: TopicKey, end: u64) {
        debug_assert!(self.targets.iter().all(|target| target.shard != shard), "a shard subscribes once");
        // Most topics have one or two: no room for four is taken.
        self.targets.reserve_exact(1);
        self.targets.push(Target { shard, key, waiting: None, acknowledged: end, under_way: false, members: 0 });
    }

    /// Removes a shard.
    pub fn unsubscribe(&mut self, shard: ShardId) {
        self.targets.retain(|target| target.shard != shard);
    }

    /// Something is about to be appended at the log's end, to which `pin` gives the position: it waits for every shard.
    pub fn appending(&mut self, mut pin: impl FnMut() -> P) {
        for target in &mut self.targets {
            target.waiting.get_or_insert_with(&mut pin);
        }
    }

    /// What waits for other shards is of no use to them any more.
    pub fn forget_waiting(&mut self) {
        self.targets.iter_mut().for_each(|target| target.waiting = None);
    }

    /// Where what waits for a shard begins; none when it has been sent everything, or does not want the topic.
    pub fn waiting(&self, shard: ShardId) -> Option<&P> {
        self.targets.iter().find(|target| target.shard == shard).and_then(|target| target.waiting.as_ref())
    }

    /// The shards for which something waits and nothing is under way. After a batch was sent, call [`Target::sent`].
    pub fn due(&mut self) -> impl Iterator<Item = &mut Target<P>> {
        self.targets.iter_mut().filter(|target| target.waiting.is_some() && !target.under_way)
    }

    /// A shard has given its subscribers everything below `upto`. Whether something waits for it.
    pub fn acknowledge(&mut self, shard: ShardId, upto: u64) -> bool {
        let Some(target) = self.targets.iter_mut().find(|target| target.shard == shard) else { return false };
        debug_assert!(upto >= target.acknowledged, "acknowledgements go forward");
        target.acknowledged = upto;
        target.under_way = false;
        target.waiting.is_some()
    }

    /// A shard has so many members now.
    pub fn count(&mut self, shard: ShardId, members: u64) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.shard == shard) {
            target.members = members;
        }
    }

    /// Members on all other shards.
    pub fn members(&self) -> u64 {
        self.targets.iter().map(|target| target.members).sum()
    }

    /// The shards that want the topic, and what they call it.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, TopicKey)> + '_ {
        self.targets.iter().map(|target| (target.shard, target.key))
    }

    /// By how many bytes the slowest shard is behind `end`.
    pub fn lag(&self, end: u64) -> u64 {
        self.targets.iter().map(|target| end - target.acknowledged).max().unwrap_or(0)
    }
}

impl<P> Target<P> {
    /// A batch has left; `rest` is the position after it when more waits.
    pub fn sent(&mut self, rest: Option<P>) {
        debug_assert!(!self.under_way, "one batch at a time");
        self.under_way = true;
        self.waiting = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: TopicKey = TopicKey { slot: 7, generation: std::num::NonZeroU32::MIN };

    #[test]
    fn one_batch_is_under_way_and_more_gathers_behind_it() {
        let mut home = Home::default();
        home.subscribe(ShardId(1), KEY, 100);
        home.appending(|| 100);
        let target = home.due().next().expect("something waits");
        assert_eq!((target.shard, target.key, target.waiting), (ShardId(1), KEY, Some(100)));
        target.sent(None);
        home.appending(|| 150);
        assert!(home.due().next().is_none(), "the first batch is not acknowledged");
        assert_eq!(home.lag(180), 80);
        assert!(home.acknowledge(ShardId(1), 150));
        assert_eq!(home.lag(180), 30);
        assert_eq!(home.due().next().expect("more waits").waiting, Some(150));
    }

    #[test]
    fn lag_is_that_of_the_slowest_shard() {
        let mut home = Home::<u64>::default();
        assert_eq!(home.lag(5), 0);
        home.subscribe(ShardId(1), KEY, 10);
        home.subscribe(ShardId(2), KEY, 40);
        assert_eq!(home.lag(50), 40);
        home.unsubscribe(ShardId(1));
        assert_eq!(home.lag(50), 10);
        assert!(!home.acknowledge(ShardId(1), 50), "a late word of a shard that left");
        home.unsubscribe(ShardId(2));
        assert!(home.is_empty());
    }
}
