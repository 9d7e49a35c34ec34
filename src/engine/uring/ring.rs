//! The real kernel: one io_uring, made and used on its shard's thread alone.
//!
//! Invariants:
//! 1. What the kernel may still touch outlives the ring: it takes a ring down some time after it was closed, so dropping a `RingKernel` leaks the buffer
//!    ring, the receive pool, the wake-up counter and what sends read. That happens at the end of the process, and in tests.
//! 2. What a send reads stays alive in `sending[slot]` from submission to its completion; a connection has at most one send.
//! 3. Message headers in `headers` are read by the kernel during submission only (IORING_FEAT_SUBMIT_STABLE), and are reused only when the submission queue is empty.
//! 4. A buffer id is given to the kernel once, and again only after its completion was lent out and returned (recv_pool invariant 1).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::engine::driver::{CloseHow, Wait};
use crate::engine::kernel::{Completion, Kernel, Kind, Op, Token};
use crate::engine::recv_pool::RecvPool;
use crate::engine::segment::Gather;
use crate::engine::sys::{Listener, OpenListener, Socket};
use crate::engine::wakers::Wakers;
use crate::ids::ShardId;

const BUFFER_GROUP: u16 = 0;
/// Completions handled in one turn; the rest waits for the next.
const REAP_MAX: usize = 512;

/// Sizes of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSize {
    /// Submission queue entries.
    pub submissions: u32,
    /// Completion queue entries.
    pub completions: u32,
}

impl RingSize {
    /// Below this a ring is of no use.
    const SUBMISSIONS_MIN: u32 = 64;

    fn halved(self) -> Option<Self> {
        (self.submissions / 2 >= Self::SUBMISSIONS_MIN)
            .then_some(Self { submissions: self.submissions / 2, completions: self.completions / 2 })
    }
}

/// The largest size, at most `size`, at which `rings` of them with their buffer rings fit the memlock limit together.
///
/// # Errors
/// As io_uring_setup(2): ENOSYS and EPERM when it is blocked, ENOMEM when even the smallest do not fit.
pub fn fitting_size(mut size: RingSize, rings: u16, recv_buffers: usize) -> io::Result<RingSize> {
    let all_at_once = |size| {
        let mut held = Vec::new();
        for _ in 0..rings {
            let ring = build_ring(size)?;
            let buffers = BufferRing::new(recv_buffers);
            buffers.register(&ring)?;
            held.push((ring, buffers));
        }
        Ok(())
    };
    loop {
        match all_at_once(size) {
            Err(error) if is_out_of_memory(&error) => size = size.halved().ok_or(error)?,
            other => return other.map(|()| size),
        }
    }
}

/// Makes a ring on this thread. Memory of rings just closed is given back by the kernel a moment later, so ENOMEM is asked again for a while.
///
/// # Errors
/// As io_uring_setup(2).
pub fn build_ring(size: RingSize) -> io::Result<IoUring> {
    let mut tries = 0;
    loop {
        let built = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(size.completions)
            .dontfork()
            .build(size.submissions);
        match built {
            Err(error) if is_out_of_memory(&error) && tries < MEMLOCK_TRIES => {
                tries += 1;
                std::thread::park_timeout(MEMLOCK_WAIT);
            }
            other => return other,
        }
    }
}

const MEMLOCK_TRIES: u32 = 10;
const MEMLOCK_WAIT: Duration = Duration::from_millis(5);

fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

struct BufferRing {
    entries: *mut BufRingEntry,
    layout: Layout,
    mask: u16,
    tail: u16,
}

impl BufferRing {
    fn new(buffers: usize) -> Self {
        assert!(
            buffers.is_power_of_two() && buffers <= 32_768,
            "buffer ring of {buffers} entries: the limits table allows powers of two up to 32768"
        );
        let layout = Layout::from_size_align(buffers * size_of::<BufRingEntry>(), 4096).expect("at most 512 KiB, page aligned");
        // SAFETY: the layout has a size above zero.
        let entries = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        if entries.is_null() {
            handle_alloc_error(layout);
        }
        Self { entries, layout, mask: (buffers - 1) as u16, tail: 0 }
    }

    fn register(&self, ring: &IoUring) -> io::Result<()> {
        let entries = self.mask + 1;
        // SAFETY: the entries are page aligned, as many as announced, and whoever registers keeps them longer than the ring (invariant 1).
        unsafe { ring.submitter().register_buf_ring_with_flags(self.entries as u64, entries, BUFFER_GROUP, 0) }
    }

    fn push(&mut self, id: u16, address: *mut u8, len: usize) {
        let index = usize::from(self.tail & self.mask);
        // SAFETY: the index is below the number of entries, and entries at or beyond the published tail belong to us (io_uring_register_buf_ring(3)).
        let entry = unsafe { &mut *self.entries.add(index) };
        entry.set_addr(address as u64);
        entry.set_len(len as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: `entries` is the address of the first entry of a live buffer ring, which is what `tail` asks for.
        let tail = unsafe { BufRingEntry::tail(self.entries) }.cast_mut();
        // SAFETY: the tail is an aligned u16 in live memory that the kernel reads with acquire semantics.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; no operation was ever submitted that could use it (a kernel's is leaked, invariant 1).
        unsafe { dealloc(self.entries.cast(), self.layout) };
    }
}

/// One ring, its listener, its receive buffers.
pub struct RingKernel {
    ring: IoUring,
    buffers: ManuallyDrop<BufferRing>,
    pool: Rc<RecvPool>,
    /// Buffers that the kernel has.
    posted: usize,
    sending: Vec<Option<Rc<Gather>>>,
    headers: Box<[libc::msghdr]>,
    headers_used: usize,
    wake_count: Box<u64>,
    shard: ShardId,
    wakers: Arc<Wakers>,
    listener: Option<OpenListener>,
    enter_flags: EnterFlags,
}

impl RingKernel {
    /// Takes over a ring made on this thread and gives it the pool's buffers.
    ///
    /// # Errors
    /// As io_uring_register(2) for IORING_REGISTER_PBUF_RING: EINVAL when the kernel has none, ENOMEM over the memlock limit.
    pub fn new(ring: IoUring, pool: Rc<RecvPool>, shard: ShardId, wakers: Arc<Wakers>, listener: Option<Listener>) -> io::Result<Self> {
        let params = ring.params();
        let enter_flags = if params.is_feature_no_iowait() { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        let headers = params.sq_entries() as usize;
        let buffers = BufferRing::new(pool.buffers());
        buffers.register(&ring)?;
        wakers.set_ring(shard, Some(ring.as_raw_fd()));
        // SAFETY: all-zero bytes are a valid msghdr.
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let mut kernel = Self {
            ring,
            buffers: ManuallyDrop::new(buffers),
            posted: pool.buffers(),
            pool,
            sending: Vec::new(),
            headers: vec![header; headers].into_boxed_slice(),
            headers_used: 0,
            wake_count: Box::new(0),
            shard,
            wakers,
            listener: listener.map(Listener::open),
            enter_flags,
        };
        for id in 0..kernel.pool.buffers() {
            kernel.give(id as u16);
        }
        kernel.buffers.publish();
        Ok(kernel)
    }

    fn give(&mut self, id: u16) {
        self.buffers.push(id, self.pool.address(id), self.pool.buffer_bytes());
    }

    fn entry(&mut self, token: Token, op: Op) -> squeue::Entry {
        match op {
            Op::Accept => {
                let listener = self.listener.as_ref().expect("accept is only asked for while there is a listener").fd();
                opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build()
            }
            // Tried at once: an accepted client has spoken (`limits.accept_defer_ms`), a starved one waits with bytes.
            Op::Recv(socket) => opcode::RecvMulti::new(Fd(socket.0), BUFFER_GROUP).build(),
            Op::Send(socket, data) => self.send_entry(token, socket, data),
            Op::Cancel(target) => opcode::AsyncCancel2::new(CancelBuilder::user_data(target.0)).build(),
            Op::WatchWake => {
                opcode::Read::new(Fd(self.wakers.eventfd(self.shard)), std::ptr::from_mut(&mut *self.wake_count).cast(), 8).build()
            }
            Op::WakePeer(shard) => match self.wakers.ring(shard) {
                Some(fd) => {
                    opcode::MsgRingData::new(Fd(fd), 0, Token::plain(Kind::Wake, 0).0, None).build().flags(squeue::Flags::SKIP_SUCCESS)
                }
                None => {
                    self.wakers.signal(shard);
                    opcode::Nop::new().build().flags(squeue::Flags::SKIP_SUCCESS)
                }
            },
        }
    }

    fn send_entry(&mut self, token: Token, socket: Socket, data: Rc<Gather>) -> squeue::Entry {
        let entry = match data.iovecs() {
            [one] => opcode::Send::new(Fd(socket.0), one.iov_base.cast(), one.iov_len as u32).flags(libc::MSG_NOSIGNAL).build(),
            several => {
                if self.headers_used == self.headers.len() {
                    self.submit_all();
                }
                let header = &mut self.headers[self.headers_used];
                self.headers_used += 1;
                header.msg_iov = several.as_ptr().cast_mut();
                header.msg_iovlen = several.len() as _;
                opcode::SendMsg::new(Fd(socket.0), header).flags(libc::MSG_NOSIGNAL as u32).build()
            }
        };
        let slot = token.key().slot as usize;
        if slot >= self.sending.len() {
            self.sending.resize_with((slot + 1).next_multiple_of(256), || None);
        }
        assert!(self.sending[slot].is_none(), "one send per connection: slot {slot} has one in flight");
        self.sending[slot] = Some(data);
        entry
    }

    /// Submits without waiting until the kernel has taken everything.
    fn submit_all(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if is_transient(&error) => std::thread::yield_now(),
                Err(error) => panic!("shard {} cannot submit to its ring: {error}", self.shard),
            }
        }
        self.headers_used = 0;
    }

    /// Moves one completion out.
    pub(super) fn reap_one(&mut self, completions: &mut Vec<Completion>) -> bool {
        let Some(entry) = self.ring.completion().next() else { return false };
        let completion = self.completion(&entry);
        completions.push(completion);
        true
    }

    fn completion(&mut self, entry: &cqueue::Entry) -> Completion {
        let token = Token(entry.user_data());
        let result = u32::try_from(entry.result()).map_err(|_| -entry.result());
        let received = cqueue::buffer_select(entry.flags()).map(|id| {
            let len = result.unwrap_or(0) as usize;
            self.posted -= 1;
            // SAFETY: this id came out of this ring's completion and was not returned since (invariant 4).
            unsafe { self.pool.lend(id, len) }
        });
        let data = if token.kind() == Some(Kind::Send) { self.sending[token.key().slot as usize].take() } else { None };
        Completion { token, result, more: cqueue::more(entry.flags()), received, data }
    }
}

/// EINTR: a signal; EAGAIN and EBUSY: completions must be taken out first; ETIME: the wait's own end.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME))
}

impl Kernel for RingKernel {
    fn submit(&mut self, token: Token, op: Op) {
        let entry = self.entry(token, op).user_data(token.0);
        // SAFETY: what the entry points to stays alive until its completion: buffers by invariants 1 and 2, headers by invariant 3, descriptors by the
        // driver, which closes none with an operation in flight.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit_all();
        }
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let timeout;
        let mut args = SubmitArgs::new();
        let result = match wait {
            Wait::No => self.ring.submit(),
            Wait::For(duration) => {
                timeout = Timespec::from(duration);
                args = args.timespec(&timeout);
                self.ring.submitter().submit_with_args_and_flags(1, &args, self.enter_flags)
            }
            Wait::Forever => self.ring.submitter().submit_with_args_and_flags(1, &args, self.enter_flags),
        };
        if self.ring.submission().is_empty() {
            self.headers_used = 0;
        }
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..REAP_MAX {
            if !self.reap_one(completions) {
                break;
            }
        }
    }

    fn replenish(&mut self) -> usize {
        let (buffers, pool) = (&mut self.buffers, &self.pool);
        let given = pool.take_returned(|id| buffers.push(id, pool.address(id), pool.buffer_bytes()));
        if given > 0 {
            self.buffers.publish();
        }
        self.posted += given;
        self.posted
    }

    fn signal(&mut self, shard: ShardId) {
        self.wakers.signal(shard);
    }

    fn shut_door(&mut self) -> bool {
        self.listener.as_ref().is_none_or(OpenListener::shut_door)
    }

    fn close_listener(&mut self) -> Vec<Socket> {
        self.listener.take().map_or_else(Vec::new, OpenListener::close)
    }

    fn share_listener(&self) -> io::Result<Option<OwnedFd>> {
        self.listener.as_ref().map(OpenListener::share).transpose()
    }

    fn open_listener(&mut self, listener: Listener) {
        self.listener = Some(listener.open());
    }

    fn shut_write(&mut self, socket: Socket) {
        socket.shut_write();
    }

    fn close(&mut self, socket: Socket, how: CloseHow) {
        if how == CloseHow::Reset {
            socket.reset_on_close();
        }
        socket.close();
    }

    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        socket.peer_addr()
    }
}

impl Drop for RingKernel {
    fn drop(&mut self) {
        self.wakers.set_ring(self.shard, None);
        std::mem::forget((std::mem::take(&mut self.wake_count), Rc::clone(&self.pool), std::mem::take(&mut self.sending)));
    }
}
