//! Does io_uring work here? Asked by behaviour, not by version: distributions backport, containers block.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::ring::{RingKernel, RingSize, build_ring, fitting_size};
use crate::engine::driver::Wait;
use crate::engine::kernel::{Completion, Kernel, Kind, Op, Token};
use crate::engine::recv_pool::RecvPool;
use crate::engine::sys::{self, Socket};
use crate::engine::wakers::Wakers;
use crate::ids::{ConnKey, ShardId};

/// What a working ring offers beyond the least that the driver needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Waiting is not accounted as iowait (Linux 6.15).
    pub no_iowait: bool,
    /// The queue sizes that the memlock limit lets every ring have now.
    pub size: RingSize,
}

/// Why the driver cannot run on this machine.
#[derive(Debug)]
pub struct Blocked {
    /// The call that failed and how.
    pub what: String,
    /// What stands behind it, as far as the machine tells.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring is not available ({}); cause: {}; fix: {}", self.what, self.cause, self.fix)
    }
}

/// Finds the size at which `rings` rings fit the memlock limit, and takes multishot receive on one of them through its life: data, exhausted
/// buffers, data again, end of stream.
///
/// # Errors
/// What failed, why, and what to do.
pub fn probe(size: RingSize, rings: u16, recv_buffers: usize) -> Result<Features, Blocked> {
    let size = fitting_size(size, rings, recv_buffers).map_err(|error| explain("io_uring_setup", &error))?;
    let ring = build_ring(size).map_err(|error| explain("io_uring_setup", &error))?;
    let features = Features { no_iowait: ring.params().is_feature_no_iowait(), size };
    let wakers = Wakers::new(1).map_err(|error| explain("eventfd", &error))?;
    let kernel = RingKernel::new(ring, RecvPool::new(2, 64), ShardId(0), wakers, None)
        .map_err(|error| explain("io_uring_register(PBUF_RING)", &error))?;
    exercise(kernel).map_err(|what| Blocked {
        what,
        cause: format!("kernel {} has io_uring, but not multishot receive from a buffer ring as of Linux 6.1", sys::kernel_release()),
        fix: "run Linux 6.1 or later".into(),
    })?;
    Ok(features)
}

fn exercise(mut kernel: RingKernel) -> Result<(), String> {
    let (ours, mut theirs) = UnixStream::pair().map_err(|error| format!("socketpair: {error}"))?;
    ours.set_nonblocking(true).map_err(|error| format!("O_NONBLOCK: {error}"))?;
    let socket = Socket(ours.into_raw_fd());
    let token = Token::conn(Kind::Recv, ConnKey { slot: 0, generation: 0 });
    let result = (|| {
        kernel.submit(token, Op::Recv(socket));
        // More than two buffers of 64 bytes hold: the third receive finds none.
        theirs.write_all(&[7; 160]).map_err(|error| format!("write: {error}"))?;
        let mut got = 0;
        let mut held = Vec::new();
        loop {
            let completion = next(&mut kernel)?;
            match completion.result {
                Ok(bytes) if bytes > 0 => got += bytes,
                Err(libc::ENOBUFS) if !completion.more && got == 128 => break,
                _ => return Err(format!("multishot receive: {completion:?} after {got} bytes")),
            }
            held.push(completion.received);
        }
        held.clear();
        kernel.replenish();
        kernel.submit(token, Op::Recv(socket));
        let completion = next(&mut kernel)?;
        if completion.result != Ok(32) || !completion.more {
            return Err(format!("multishot receive after ENOBUFS: {completion:?}"));
        }
        drop(completion);
        theirs.shutdown(std::net::Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        let completion = next(&mut kernel)?;
        if completion.result != Ok(0) || completion.more {
            return Err(format!("end of stream: {completion:?}"));
        }
        Ok(())
    })();
    if result.is_err() {
        // Whatever is still armed must be gone before the buffers are.
        kernel.submit(Token::plain(Kind::Cancel, 0), Op::Cancel(token));
        let _ = next(&mut kernel);
        let _ = theirs.read(&mut [0; 1]);
    }
    socket.close();
    result
}

fn next(kernel: &mut RingKernel) -> Result<Completion, String> {
    let mut completions = Vec::new();
    for _ in 0..100 {
        kernel.enter(Wait::For(Duration::from_millis(10))).map_err(|error| format!("io_uring_enter: {error}"))?;
        kernel.reap_one(&mut completions);
        if let Some(completion) = completions.pop() {
            return Ok(completion);
        }
    }
    Err("no completion within 1 s".into())
}

fn explain(call: &str, error: &io::Error) -> Blocked {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let sysctl = read("/proc/sys/kernel/io_uring_disabled");
    let seccomp = read("/proc/self/status")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("Seccomp:").map(|mode| mode.trim().to_owned())));
    let (cause, fix): (String, String) = match error.raw_os_error() {
        Some(libc::EPERM) if sysctl.as_deref() == Some("2") => {
            ("sysctl kernel.io_uring_disabled is 2".into(), "an administrator sets it to 0 (everyone) or 1 (a group)".into())
        }
        Some(libc::EPERM) if sysctl.as_deref() == Some("1") => (
            "sysctl kernel.io_uring_disabled is 1".into(),
            "run as a member of kernel.io_uring_group or with CAP_SYS_ADMIN, or set the sysctl to 0".into(),
        ),
        Some(libc::EPERM | libc::ENOSYS) if seccomp.as_deref() == Some("2") => (
            "a seccomp filter is active (Seccomp: 2); Docker 25+ and containerd 2+ block io_uring by default".into(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile (docs/operations.md, Containers)".into(),
        ),
        Some(libc::ENOSYS) => (format!("kernel {} was built without io_uring", sys::kernel_release()), "run Linux 6.1 or later with CONFIG_IO_URING".into()),
        Some(libc::ENOMEM) => (
            format!("the memlock limit of {} bytes is used up; it counts for all rings of this user", sys::memlock_limit()),
            "raise it (ulimit -l, LimitMEMLOCK=) or run fewer shards".into(),
        ),
        Some(libc::EINVAL) => (format!("kernel {} lacks a ring feature of Linux 6.1", sys::kernel_release()), "run Linux 6.1 or later".into()),
        _ => ("unknown".into(), "see io_uring_setup(2) for this error".into()),
    };
    Blocked { what: format!("{call}: {error}"), cause, fix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes() {
        let features = probe(RingSize { submissions: 64, completions: 128 }, 2, 8).expect("io_uring works where the tests run");
        assert_eq!(features.size.submissions, 64);
    }

    #[test]
    fn a_refusal_names_cause_and_fix() {
        let blocked = explain("io_uring_setup", &io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(blocked.to_string().contains("memlock"), "{blocked}");
    }
}
