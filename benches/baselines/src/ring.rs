//! The ring and its receive buffers (IORING_REGISTER_PBUF_RING): the kernel takes one for each read, we give it back.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, opcode, squeue};

/// A ring set up as the gateway's is.
///
/// # Panics
/// The kernel is older than 6.1, or io_uring is not allowed.
pub fn build() -> IoUring {
    let mut setup = IoUring::builder();
    setup.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_clamp().setup_cqsize(32 * 1024);
    setup.build(4096).expect("Linux 6.1 or newer, and io_uring is allowed")
}

/// Accepts clients, one completion for each.
pub fn accept(listener: i32) -> squeue::Entry {
    opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build()
}

/// POLL_FIRST (a client that was just served has sent nothing yet) and MULTISHOT.
const RECEIVE_FLAGS: u16 = 1 | 2;

/// Receives into the buffers, one completion for each read.
pub fn receive(fd: i32) -> squeue::Entry {
    let receive = opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0).ioprio(RECEIVE_FLAGS).buf_group(0).build();
    receive.flags(squeue::Flags::BUFFER_SELECT)
}

/// Sends bytes that stay where they are until that is done.
pub fn send(fd: i32, bytes: &[u8]) -> squeue::Entry {
    opcode::Send::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32).flags(libc::MSG_NOSIGNAL).build()
}

/// What is in flight on this socket ends soon.
pub fn shut(fd: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Buffers of one size, registered as group 0. They live as long as the process: the ring may use them at any time.
#[derive(Debug)]
pub struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    bytes: usize,
    tail: u16,
}

impl Buffers {
    /// Registers `count` buffers, a power of two, and gives all to the kernel.
    ///
    /// # Panics
    /// The kernel has no buffer rings.
    pub fn register(ring: &IoUring, count: u16, bytes: usize) -> Self {
        let page_aligned = |size| Layout::from_size_align(size, 4096).expect("a few MiB");
        // SAFETY: both layouts have a size above zero; the entries are page aligned, as many as announced, and never freed.
        let buffers = unsafe {
            let entries = alloc_zeroed(page_aligned(usize::from(count) * size_of::<BufRingEntry>())).cast::<BufRingEntry>();
            let memory = alloc_zeroed(page_aligned(usize::from(count) * bytes));
            ring.submitter().register_buf_ring_with_flags(entries as u64, count, 0, 0).expect("Linux 5.19 or newer");
            Self { entries, memory, count, bytes, tail: 0 }
        };
        (0..count).fold(buffers, |mut buffers, id| {
            buffers.give_back(id);
            buffers
        })
    }

    /// What the kernel wrote into a buffer; of the caller until it is given back.
    ///
    /// # Panics
    /// There is no such buffer, or it is not that large.
    pub fn received(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < self.count && length <= self.bytes);
        // SAFETY: within the allocation, all of which is initialised; the kernel does not write to a buffer it has handed out.
        unsafe { std::slice::from_raw_parts(self.memory.add(usize::from(id) * self.bytes), length) }
    }

    /// The kernel may use this buffer again.
    pub fn give_back(&mut self, id: u16) {
        // SAFETY: the index is below the number of entries; those at and beyond the tail are ours, and the tail is an aligned u16 of the first one.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & (self.count - 1)));
            entry.set_addr(self.memory.add(usize::from(id) * self.bytes) as u64);
            entry.set_len(self.bytes as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}
