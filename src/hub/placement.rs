//! Which shard is a topic's home.

use siphasher::sip::SipHasher13;

use crate::ids::ShardId;

/// A keyed hash over the shards. The key is random for each process, so that clients cannot choose names that meet on one shard.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    hasher: SipHasher13,
    shards: u16,
}

impl Placement {
    /// Spreads topics over `shards` shards.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(shards: u16, key: (u64, u64)) -> Self {
        assert!(shards > 0, "a gateway has at least one shard");
        Self { hasher: SipHasher13::new_with_keys(key.0, key.1), shards }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The hash of a name, the same for any number of shards.
    pub fn hash(&self, name: &str) -> u64 {
        self.hasher.hash(name.as_bytes())
    }

    /// The home of the topic called `name`.
    pub fn home(&self, name: &str) -> ShardId {
        self.home_of_hash(self.hash(name))
    }

    /// The home of the topic whose name has this hash.
    pub fn home_of_hash(&self, hash: u64) -> ShardId {
        // The high half of a product spreads evenly without a division.
        ShardId(((u128::from(hash) * u128::from(self.shards)) >> 64) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_spread_evenly_and_stay_where_they_are() {
        let placement = Placement::new(16, (1, 2));
        let mut counts = [0_u32; 16];
        for n in 0..16_000 {
            let name = format!("room-{n}");
            counts[placement.home(&name).index()] += 1;
            assert_eq!(placement.home(&name), placement.home(&name));
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
