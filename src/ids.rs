//! Names of things inside one process: shards, connections, topics.
//!
//! Every id that is reused carries a generation, so that what was said of an old holder never reaches the new one.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU32;

/// One thread, one core, one ring, one slice of the connections. Shards count from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard as an index into per-shard tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A connection within its shard: a slot of the slab and the generation of its present holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnKey {
    /// Index into the shard's slab.
    pub slot: u32,
    /// How often the slot has been given out; 24 bits are kept, so that it fits `user_data` beside a kind.
    pub generation: u32,
}

impl ConnKey {
    /// Generations wrap at 24 bits: `user_data` is kind (8), generation (24), slot (32).
    pub const GENERATION_MASK: u32 = 0x00ff_ffff;
}

/// A connection within its process: what logs, `welcome.conn` and the sender of a frame name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId {
    /// The shard that holds it.
    pub shard: ShardId,
    /// Where in that shard.
    pub key: ConnKey,
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.shard, self.key.slot, self.key.generation)
    }
}

/// A topic within one shard's table. Shards tell each other these keys, never names, once a topic is joined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicKey {
    /// Index into the shard's topic table.
    pub slot: u32,
    /// Which holder of the slot. Never zero, so that `Option<TopicKey>` takes no more room.
    pub generation: NonZeroU32,
}
