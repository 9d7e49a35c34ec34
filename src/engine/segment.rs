//! Shared append-only memory: the bytes that are broadcast.
//!
//! A [`SegmentWriter`] appends; every append gives a [`Range`], a counted handle on bytes that never change again. Ranges travel to other
//! shards and into the kernel; the memory goes when the last of them does. Inside a shard ranges are shared as one
//! [`Gather`] behind an `Rc`, so the atomic count is touched once per shard and batch, not once per connection.
//!
//! Invariants:
//! 1. Only the segment's one writer writes, and only at or beyond `SegmentWriter::len`.
//! 2. A range covers bytes below the writer's `len` at the time it was made; so nobody writes where somebody reads.
//! 3. A segment is charged to [`SegmentMemory`] with its whole capacity from creation to the last handle's drop.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use libc::iovec;
use smallvec::SmallVec;

use crate::sync::{self, AtomicUsize, Ordering, Shadow};

/// Bytes of all live segments of the process, as allocated.
#[derive(Debug, Default)]
pub struct SegmentMemory(AtomicUsize);

impl SegmentMemory {
    /// A counter at zero, to be shared by all shards.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bytes allocated now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Charges what belongs to queued messages besides their bytes.
    pub(super) fn charge(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes a charge back.
    pub(super) fn release(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

struct Segment {
    bytes: Box<[UnsafeCell<MaybeUninit<u8>>]>,
    shadow: Shadow,
    memory: Arc<SegmentMemory>,
}

// SAFETY: bytes below the writer's `len` are never written again and bytes above are touched by the writer alone (invariants 1 and 2), so
// shared references in several threads never race.
unsafe impl Sync for Segment {}
// SAFETY: a segment is plain memory and a counter; nothing in it is bound to a thread.
unsafe impl Send for Segment {}

/// What a segment is filled with before its bytes are written and after its last handle has gone, where assertions are on: whoever reads then is seen at once.
const POISON: u8 = 0xdb;

impl Segment {
    fn poison(&mut self) {
        if cfg!(debug_assertions) {
            for cell in &mut self.bytes {
                cell.get_mut().write(POISON);
            }
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.poison();
        self.shadow.write(0..self.bytes.len());
        self.memory.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// The one place that may append to a segment.
pub struct SegmentWriter {
    segment: sync::Arc<Segment>,
    len: usize,
}

impl SegmentWriter {
    /// Allocates a segment; its capacity is charged to `memory`.
    ///
    /// # Panics
    /// If `capacity` is zero or does not fit 32 bits, which the limits table excludes.
    pub fn new(capacity: usize, memory: &Arc<SegmentMemory>) -> Self {
        assert!(capacity > 0 && u32::try_from(capacity).is_ok(), "segment of {capacity} bytes");
        let mut bytes = Vec::with_capacity(capacity);
        // SAFETY: the capacity was just reserved, and `UnsafeCell<MaybeUninit<u8>>` needs no initialisation.
        unsafe { bytes.set_len(capacity) };
        memory.0.fetch_add(capacity, Ordering::Relaxed);
        let mut segment = Segment { bytes: bytes.into_boxed_slice(), shadow: Shadow::new(capacity), memory: Arc::clone(memory) };
        segment.poison();
        Self { segment: sync::Arc::new(segment), len: 0 }
    }

    /// Bytes that can still be appended.
    pub fn room(&self) -> usize {
        self.segment.bytes.len() - self.len
    }

    /// Bytes appended so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `head` and then `body` and gives the handle on both together.
    ///
    /// # Panics
    /// If they do not fit; check [`room`](Self::room) first.
    pub fn append(&mut self, head: &[u8], body: &[u8]) -> Range {
        let total = head.len() + body.len();
        assert!(total <= self.room(), "append of {total} bytes to {} bytes of room", self.room());
        let start = self.len;
        self.segment.shadow.write(start..start + total);
        for (at, part) in [(start, head), (start + head.len(), body)] {
            let target = self.segment.bytes[at..].as_ptr().cast::<u8>().cast_mut();
            // SAFETY: the bytes lie inside the segment (asserted above) at or beyond `len`, where only this writer reads or writes
            // (invariant 1); `UnsafeCell` permits the write through a shared reference.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len()) };
        }
        self.len += total;
        Range { segment: sync::Arc::clone(&self.segment), offset: start as u32, len: total as u32 }
    }
}

/// Appends without an end: takes a new segment whenever the present one is full.
pub struct Arena {
    writer: Option<SegmentWriter>,
    next_bytes: u32,
    bytes_min: u32,
    bytes_max: u32,
    memory: Arc<SegmentMemory>,
}

impl Arena {
    /// An arena that holds nothing yet. The first segment after a rest is as large as what is appended, so that a message now and then leaves no room unused;
    /// the next has `bytes_min`, and they double up to `bytes_max`.
    pub fn new(bytes_min: u32, bytes_max: u32, memory: &Arc<SegmentMemory>) -> Self {
        Self { writer: None, next_bytes: 0, bytes_min, bytes_max, memory: Arc::clone(memory) }
    }

    /// Appends `head` and then `body`; more than a segment holds gets one of its own size.
    pub fn append(&mut self, head: &[u8], body: &[u8]) -> Range {
        let bytes = head.len() + body.len();
        match &mut self.writer {
            Some(writer) if writer.room() >= bytes => writer.append(head, body),
            writer => {
                let fresh = SegmentWriter::new((self.next_bytes as usize).max(bytes), &self.memory);
                self.next_bytes = (self.next_bytes * 2).clamp(self.bytes_min, self.bytes_max);
                writer.insert(fresh).append(head, body)
            }
        }
    }

    /// What its segments are charged to.
    pub(super) fn memory(&self) -> &Arc<SegmentMemory> {
        &self.memory
    }

    /// Lets go of the present segment and begins small again.
    pub fn rest(&mut self) {
        self.writer = None;
        self.next_bytes = 0;
    }
}

/// A counted handle on appended bytes, which never change again.
#[derive(Clone)]
pub struct Range {
    segment: sync::Arc<Segment>,
    offset: u32,
    len: u32,
}

impl Range {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let covered = self.offset as usize..(self.offset + self.len) as usize;
        self.segment.shadow.read(covered.clone());
        let cells = &self.segment.bytes[covered];
        // SAFETY: a range covers initialised bytes that nobody writes again (invariant 2); the segment lives as long as `self`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) }
    }

    /// The part from `skip` on, `len` bytes long.
    ///
    /// # Panics
    /// If that is not inside the range.
    pub fn slice(&self, skip: usize, len: usize) -> Self {
        assert!(skip + len <= self.len(), "slice {skip}+{len} of a range of {} bytes", self.len);
        Self { segment: sync::Arc::clone(&self.segment), offset: self.offset + skip as u32, len: len as u32 }
    }

    /// The same bytes in a segment of their own size.
    pub fn copy(&self, memory: &Arc<SegmentMemory>) -> Self {
        SegmentWriter::new(self.len(), memory).append(self.as_slice(), &[])
    }

    /// Grows this range over `next` when that begins in the same segment where this ends.
    pub fn try_join(&mut self, next: &Self) -> bool {
        let adjacent = sync::Arc::ptr_eq(&self.segment, &next.segment) && self.offset + self.len == next.offset;
        if adjacent {
            self.len += next.len;
        }
        adjacent
    }

    /// Bytes that the whole segment occupies, used or not.
    pub fn segment_bytes(&self) -> usize {
        self.segment.bytes.len()
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Range({}+{})", self.offset, self.len)
    }
}

/// Ranges that leave in one send, in order, with the vector that the kernel reads. Shared by all connections that get the same bytes.
pub struct Gather {
    ranges: Ranges,
    iovecs: SmallVec<[iovec; 1]>,
    len: usize,
}

/// The ranges of a [`Gather`]; nearly always one.
pub type Ranges = SmallVec<[Range; 1]>;

impl Gather {
    /// More ranges than this, and a header before them, never go into one send: the kernel's own limit is 1024, and beyond a few dozen a vector costs more
    /// than it saves.
    pub const RANGES_MAX: usize = 64;

    /// Bundles ranges for one send.
    ///
    /// # Panics
    /// If there are none, or more than [`RANGES_MAX`](Self::RANGES_MAX) and one, or one is empty.
    pub fn new(ranges: Ranges) -> Self {
        assert!(!ranges.is_empty() && ranges.len() <= Self::RANGES_MAX + 1, "gather of {} ranges", ranges.len());
        let iovecs = ranges
            .iter()
            .map(|range| {
                let bytes = range.as_slice();
                assert!(!bytes.is_empty(), "gather with an empty range");
                iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            })
            .collect();
        let len = ranges.iter().map(Range::len).sum();
        Self { ranges, iovecs, len }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a gather has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The vector for `writev`-like calls; valid as long as `self`.
    pub fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// What is left after the first `skip` bytes.
    ///
    /// # Panics
    /// If nothing is left.
    pub fn rest(&self, mut skip: usize) -> Self {
        assert!(skip < self.len, "rest after {skip} of {} bytes", self.len);
        let mut left = Ranges::new();
        for range in &self.ranges {
            if skip >= range.len() {
                skip -= range.len();
            } else {
                left.push(range.slice(skip, range.len() - skip));
                skip = 0;
            }
        }
        Self::new(left)
    }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gather({} bytes in {} ranges)", self.len, self.ranges.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_ranges_read_back_and_join_when_adjacent() {
        let memory = SegmentMemory::new();
        let mut writer = SegmentWriter::new(16, &memory);
        let mut a = writer.append(b"he", b"llo");
        let b = writer.append(b"", b" you");
        assert_eq!(a.as_slice(), b"hello");
        assert!(a.try_join(&b));
        assert_eq!(a.as_slice(), b"hello you");
        assert!(!b.clone().try_join(&a));
        assert_eq!(writer.room(), 7);
    }

    #[test]
    fn memory_is_charged_until_the_last_handle_goes() {
        let memory = SegmentMemory::new();
        let mut writer = SegmentWriter::new(64, &memory);
        let range = writer.append(b"", b"x");
        drop(writer);
        assert_eq!(memory.bytes(), 64);
        let there = std::thread::spawn(move || range.as_slice().to_vec()).join().expect("reads in another thread");
        assert_eq!(there, b"x");
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn the_rest_of_a_gather_begins_after_what_was_sent() {
        let memory = SegmentMemory::new();
        let mut writer = SegmentWriter::new(64, &memory);
        let gather = Gather::new([writer.append(b"", b"abc"), writer.append(b"", b"de"), writer.append(b"", b"f")].into_iter().collect());
        for skip in 0..6 {
            let left: Vec<u8> = gather.rest(skip).ranges().iter().flat_map(|r| r.as_slice().to_vec()).collect();
            assert_eq!(left, &b"abcdef"[skip..], "after {skip}");
        }
    }
}
