//! The system calls of the epoll driver. What the arguments of the unsafe ones must be is in its [invariants](super).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, epoll_event, iovec, socklen_t};

use crate::engine::driver::Wait;
use crate::engine::recv_pool::RecvPool;
use crate::engine::segment::Gather;
use crate::engine::sys::Socket;

/// The descriptors to watch.
pub(super) struct EpollSet(OwnedFd);

impl EpollSet {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: creates a descriptor; nothing is passed in but a number.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn control(&self, operation: c_int, fd: RawFd, interest: u32, data: u64) -> io::Result<()> {
        let mut event = epoll_event { events: interest, u64: data };
        // SAFETY: the kernel reads a live struct; a descriptor number that is not open would be EBADF.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits and fills `ready` from its beginning; an interrupted wait finds nothing.
    pub(super) fn wait(&self, ready: &mut [epoll_event], wait: Wait) -> io::Result<usize> {
        // SAFETY: the kernel writes at most as many events as the slice has.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), ready.as_mut_ptr(), ready.len() as c_int, timeout_ms(wait)) };
        usize::try_from(count).or_else(|_| match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        })
    }
}

/// epoll_wait's timeout, rounded up: a timer that is due in 0.3 ms must not be polled for.
pub(super) fn timeout_ms(wait: Wait) -> c_int {
    match wait {
        Wait::No => 0,
        Wait::For(time) => c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX),
        Wait::Forever => -1,
    }
}

/// Sends what follows the first `done` bytes, once; `iovecs` is room for the vector.
pub(super) fn send_rest(socket: Socket, data: &Gather, mut done: usize, iovecs: &mut Vec<iovec>) -> io::Result<usize> {
    iovecs.clear();
    for part in data.iovecs() {
        let skip = done.min(part.iov_len);
        done -= skip;
        if skip < part.iov_len {
            iovecs.push(iovec { iov_base: part.iov_base.wrapping_byte_add(skip), iov_len: part.iov_len - skip });
        }
    }
    // SAFETY: all-zero bytes are a valid, empty msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len() as _;
    retried(|| {
        // SAFETY: the message names live vectors into `data`, which the caller holds (invariant 3), and the kernel only reads them; the socket is open (invariant 1).
        unsafe { libc::sendmsg(socket.0, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
    })
}

/// Reads once into buffer `id`, which must be off the free list.
pub(super) fn recv(socket: Socket, pool: &RecvPool, id: u16) -> io::Result<usize> {
    retried(|| {
        // SAFETY: the buffer has that many bytes and belongs to the caller alone (invariant 2); the socket is open (invariant 1).
        unsafe { libc::recv(socket.0, pool.address(id).cast(), pool.buffer_bytes(), libc::MSG_DONTWAIT) }
    })
}

/// Makes a call again while a signal interrupts it.
fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// The error that waits on a socket (SO_ERROR), which is then taken from it.
pub(super) fn take_error(socket: Socket) -> Option<io::Error> {
    let mut errno: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into a live c_int; the socket is open (invariant 1).
    let result = unsafe { libc::getsockopt(socket.0, libc::SOL_SOCKET, libc::SO_ERROR, std::ptr::from_mut(&mut errno).cast(), &mut len) };
    (result == 0 && errno != 0).then(|| io::Error::from_raw_os_error(errno))
}
