//! Stops one thread of the gateway from outside, as a debugger would: the way to stall a shard without a hook in the product.

use std::marker::PhantomData;

/// A stopped thread; dropping it lets the thread go on. Stays on the test's thread: ptrace belongs to the thread that attached.
pub struct Frozen {
    thread: i32,
    _not_send: PhantomData<*const ()>,
}

impl Frozen {
    pub fn stop(thread: i32) -> Self {
        ptrace(libc::PTRACE_SEIZE, thread).unwrap_or_else(|error| panic!("PTRACE_SEIZE of thread {thread}: {error}"));
        let frozen = Self { thread, _not_send: PhantomData };
        ptrace(libc::PTRACE_INTERRUPT, thread).unwrap_or_else(|error| panic!("PTRACE_INTERRUPT of thread {thread}: {error}"));
        let mut status = 0;
        // SAFETY: `status` is a live integer that the call fills; the thread is our tracee.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, thread, "waitpid of thread {thread}: {}", std::io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "thread {thread} did not stop: status {status:#x}");
        frozen
    }

    /// Lets the thread go on.
    pub fn resume(self) {}

    /// Waits until the thread has ended with its process; until it is waited for here, nobody else sees the process end.
    pub fn ended(self) {
        let mut status = 0;
        // SAFETY: `status` is a live integer that the call fills; the thread is our tracee.
        let waited = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.thread, "waitpid of thread {}: {}", self.thread, std::io::Error::last_os_error());
        assert!(!libc::WIFSTOPPED(status), "thread {} has stopped again: status {status:#x}", self.thread);
        std::mem::forget(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let detached = ptrace(libc::PTRACE_DETACH, self.thread);
        if !std::thread::panicking() {
            detached.unwrap_or_else(|error| panic!("PTRACE_DETACH of thread {}: {error}", self.thread));
        }
    }
}

fn ptrace(request: libc::c_uint, thread: i32) -> std::io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: SEIZE, INTERRUPT and DETACH read their arguments by value; address and data are 0, as they ask.
    match unsafe { libc::ptrace(request, thread, nothing, nothing) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
