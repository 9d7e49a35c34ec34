//! Ways to wake a shard that sleeps in its driver.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::sys;
use crate::ids::ShardId;

/// How shards wake each other: ring to ring where the target's ring is known, else by its eventfd.
#[derive(Debug)]
pub struct Wakers {
    eventfds: Vec<OwnedFd>,
    rings: Vec<AtomicI32>,
}

impl Wakers {
    /// One for every shard.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new(shards: u16) -> io::Result<Arc<Self>> {
        let eventfds = (0..shards).map(|_| sys::eventfd()).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { eventfds, rings: (0..shards).map(|_| AtomicI32::new(-1)).collect() }))
    }

    /// The eventfd that wakes `shard` from any thread.
    pub fn eventfd(&self, shard: ShardId) -> RawFd {
        self.eventfds[shard.index()].as_raw_fd()
    }

    /// Wakes `shard` from any thread.
    pub fn signal(&self, shard: ShardId) {
        sys::eventfd_signal(self.eventfd(shard));
    }

    /// Tells the other shards of a shard's ring, or that it is gone.
    pub(super) fn set_ring(&self, shard: ShardId, ring: Option<RawFd>) {
        self.rings[shard.index()].store(ring.unwrap_or(-1), Ordering::Release);
    }

    /// The ring of `shard`, while it has one.
    pub(super) fn ring(&self, shard: ShardId) -> Option<RawFd> {
        let fd = self.rings[shard.index()].load(Ordering::Acquire);
        (fd >= 0).then_some(fd)
    }
}
