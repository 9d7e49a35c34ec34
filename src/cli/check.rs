//! `shardcast check`: what the kernel and its limits allow on this machine.

use crate::engine::uring::{RingSize, probe::probe};
use crate::server::config::Config;
use crate::server::host::{Host, Report, shards_by_default};

/// The text that `check` prints. Makes every ring, as the shards would, and takes them down again.
pub(super) fn report(config: &Config) -> String {
    let host = Host::read();
    let shards = config.shards.unwrap_or_else(|| shards_by_default(&host.cpus));
    let entries = |limit: u64| u32::try_from(limit).expect("the limits table bounds ring sizes well below 32 bits");
    let size = RingSize { submissions: entries(config.limits.ring_submissions), completions: entries(config.limits.ring_completions) };
    Report::new(&host, &config.limits, shards, &probe(size, shards, config.limits.recv_buffers as usize)).to_string()
}
