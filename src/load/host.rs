//! What the load generator needs of the operating system beyond std and its runtime. The command line, which may use the engine, passes it in:
//! unsafe code lives there alone.

use std::io;
use std::os::fd::RawFd;

/// Limits of this process, and calls into the kernel.
#[derive(Clone, Debug)]
pub struct Host {
    /// File descriptors that this process may have.
    pub descriptors: u64,
    /// Local ports for connections to one address, when known.
    pub local_ports: Option<u64>,
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
    /// Binds the calling thread to a CPU.
    pub pin: fn(usize) -> io::Result<()>,
    /// Lets the calling thread sleep for microseconds without the kernel's usual 50 µs on top.
    pub sharp_sleep: fn(),
    /// Has the close of this socket send RST.
    pub reset_on_close: fn(RawFd),
}

impl Host {
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self {
            descriptors: 20_000,
            local_ports: Some(28_000),
            cpus: vec![0, 1],
            pin: |_| Ok(()),
            sharp_sleep: || (),
            reset_on_close: |_| (),
        }
    }
}

/// Ports that the kernel gives to outgoing connections.
pub fn local_ports() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = text.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    (last + 1).checked_sub(first)
}
