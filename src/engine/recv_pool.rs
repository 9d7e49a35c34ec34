//! Receive buffers that all connections of a shard share.
//!
//! A driver takes a buffer id from the pool, has the kernel fill the buffer, and lends it to the gateway as [`Lent`]. Dropping `Lent` puts the id on
//! the pool's list of returned buffers, which the driver empties once a turn.
//!
//! Invariants:
//! 1. A buffer id is in exactly one place: free in the driver (or the kernel's ring), lent out, or on the returned list.
//! 2. Only the holder of `Lent` touches the buffer's bytes while it is lent.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// The memory of a shard's receive buffers.
pub struct RecvPool {
    memory: Box<[UnsafeCell<u8>]>,
    buffer_bytes: usize,
    returned: RefCell<Vec<u16>>,
    lent: Cell<usize>,
}

impl RecvPool {
    /// Allocates `buffers` buffers of `buffer_bytes` bytes and touches every page, so that no page fault waits on the receive path.
    ///
    /// # Panics
    /// If there are more than 32,768 buffers (the kernel's limit for a buffer ring) or none.
    pub fn new(buffers: usize, buffer_bytes: usize) -> Rc<Self> {
        assert!((1..=32_768).contains(&buffers) && buffer_bytes > 0, "{buffers} receive buffers of {buffer_bytes} bytes");
        let mut memory: Box<[UnsafeCell<u8>]> = vec![0_u8; buffers * buffer_bytes].into_iter().map(UnsafeCell::new).collect();
        for page in memory.chunks_mut(4096) {
            // Hidden from the optimiser, which would see that zeroes are written over zeroes.
            *std::hint::black_box(page[0].get_mut()) = 0;
        }
        Rc::new(Self { memory, buffer_bytes, returned: RefCell::new(Vec::with_capacity(buffers)), lent: Cell::new(0) })
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.memory.len() / self.buffer_bytes
    }

    /// The size of each.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Buffers that the gateway holds now.
    pub fn lent(&self) -> usize {
        self.lent.get()
    }

    /// Where buffer `id` begins. The kernel may write there until the id comes out of a completion.
    ///
    /// # Panics
    /// If there is no such buffer.
    pub fn address(&self, id: u16) -> *mut u8 {
        let start = usize::from(id) * self.buffer_bytes;
        assert!(start < self.memory.len(), "receive buffer {id} of {}", self.buffers());
        // From the pointer to all of it: one to a single cell would be good for that cell alone.
        self.memory.as_ptr().cast::<u8>().cast_mut().wrapping_add(start)
    }

    /// Lends the first `len` bytes of buffer `id`. For drivers only.
    ///
    /// # Safety
    /// `id` came out of the kernel (or the driver's free list) and is neither lent nor returned nor still with the kernel (invariant 1).
    pub(super) unsafe fn lend(self: &Rc<Self>, id: u16, len: usize) -> Lent {
        assert!(len <= self.buffer_bytes, "{len} bytes in a receive buffer of {}", self.buffer_bytes);
        self.lent.set(self.lent.get() + 1);
        Lent { pool: Rc::clone(self), id, start: 0, len: len as u32 }
    }

    /// Moves the ids given back since the last call to `take`.
    pub(super) fn take_returned(&self, mut take: impl FnMut(u16)) -> usize {
        let mut returned = self.returned.borrow_mut();
        let count = returned.len();
        returned.drain(..).for_each(&mut take);
        count
    }
}

/// Received bytes on loan: readable, writable in place, given back on drop.
pub struct Lent {
    pool: Rc<RecvPool>,
    id: u16,
    start: u32,
    len: u32,
}

impl Lent {
    /// Drops the first `count` bytes from view.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len as usize, "advance by {count} of {} bytes", self.len);
        self.start += count as u32;
        self.len -= count as u32;
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let start = self.pool.address(self.id).wrapping_add(self.start as usize);
        // SAFETY: the range lies in this buffer (`lend` and `advance` keep start + len within it) and only this handle touches it (invariant 2).
        unsafe { std::slice::from_raw_parts(start, self.len as usize) }
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.pool.address(self.id).wrapping_add(self.start as usize);
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference (invariant 2).
        unsafe { std::slice::from_raw_parts_mut(start, self.len as usize) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get() - 1);
        self.pool.returned.borrow_mut().push(self.id);
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_buffer_comes_back_once() {
        let pool = RecvPool::new(4, 16);
        // SAFETY: buffer 2 was not given out before.
        let mut lent = unsafe { pool.lend(2, 3) };
        lent.copy_from_slice(b"abc");
        lent.advance(1);
        assert_eq!(&*lent, b"bc");
        assert_eq!(pool.lent(), 1);
        drop(lent);
        let mut ids = Vec::new();
        assert_eq!(pool.take_returned(|id| ids.push(id)), 1);
        assert_eq!((ids, pool.lent()), (vec![2], 0));
    }
}
