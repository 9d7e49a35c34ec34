//! What the machine allows: descriptors, memory, CPUs, kernel. Read from the kernel at start and by `shardcast check`; nothing is changed here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::engine::sys;
use crate::engine::uring::probe::{Blocked, Features};
use crate::limits::Limits;

/// The bounds that the machine, its administrator and its container set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// CPUs that this process may run on.
    pub cpus: Vec<usize>,
    /// Descriptors that this process may have open now (RLIMIT_NOFILE, soft).
    pub nofile_soft: u64,
    /// What it may raise that to (RLIMIT_NOFILE, hard).
    pub nofile_hard: u64,
    /// Files that the whole system may have open (fs.file-max).
    pub file_max: Option<u64>,
    /// Bytes that this user may lock in memory (RLIMIT_MEMLOCK); rings count against it.
    pub memlock_bytes: u64,
    /// Clients that may wait at one listener (net.core.somaxconn).
    pub somaxconn: Option<u64>,
    /// Bytes that all TCP buffers of the machine may take (the third number of net.ipv4.tcp_mem).
    pub tcp_buffer_bytes: Option<u64>,
    /// Memory of the machine.
    pub memory_total_bytes: Option<u64>,
    /// The lowest memory limit of the cgroups that this process is in.
    pub memory_cgroup_bytes: Option<u64>,
}

impl Host {
    /// Asks the kernel. What it does not tell is `None`.
    pub fn read() -> Self {
        let (nofile_soft, nofile_hard) = sys::nofile_limits();
        Self {
            kernel: sys::kernel_release(),
            cpus: sys::allowed_cpus(),
            nofile_soft,
            nofile_hard,
            file_max: file("/proc/sys/fs/file-max").and_then(|text| first_number(&text)),
            memlock_bytes: sys::memlock_limit(),
            somaxconn: file("/proc/sys/net/core/somaxconn").and_then(|text| first_number(&text)),
            tcp_buffer_bytes: file("/proc/sys/net/ipv4/tcp_mem").and_then(|text| tcp_mem_bytes(&text)),
            memory_total_bytes: file("/proc/meminfo").and_then(|text| memory_total(&text)),
            memory_cgroup_bytes: cgroup_limit(
                &file("/proc/self/cgroup").unwrap_or_default(),
                &file("/proc/self/mountinfo").unwrap_or_default(),
                |path| fs::read_to_string(path).ok(),
            ),
        }
    }

    /// Memory that this process may use: the cgroup's limit, or the machine's memory where that is less.
    pub fn memory_allowed(&self) -> u64 {
        let total = self.memory_total_bytes.unwrap_or(MEMORY_WHEN_UNKNOWN);
        total.min(self.memory_cgroup_bytes.unwrap_or(u64::MAX))
    }
}

/// Memory that this process may use: the cgroup's limit, or the machine's memory where that is less.
pub fn memory_allowed() -> u64 {
    Host::read().memory_allowed()
}

/// How many clients can be connected at once when this process may open `nofile` descriptors: `limits.connections_max`, or what is left
/// after a reserve for everything else. Each shard's share of the reserve holds its ring, listener and wake-up, and clients that are only told to come back later.
pub fn connections_allowed(limits: &Limits, nofile: u64, shards: u16) -> u64 {
    let shards = u64::from(shards);
    // Under a small limit the courtesy of a refusal yields to clients that can be served.
    let refusals = (shards * limits.refusals_max).min(nofile / 8);
    let reserve = PROCESS_DESCRIPTORS + shards * SHARD_DESCRIPTORS + refusals;
    let descriptors = nofile.saturating_sub(reserve).max(1);
    if limits.connections_max == 0 { descriptors } else { limits.connections_max.min(descriptors) }
}

/// The bytes of queued messages that a process holds at most: `limits.queued_bytes_max`, or a quarter of the memory that it may use.
pub fn queued_bytes_allowed(limits: &Limits, memory_allowed: u64) -> u64 {
    if limits.queued_bytes_max == 0 { memory_allowed / 4 } else { limits.queued_bytes_max }
}

/// How many shards run when nothing is configured: one for each CPU that this process may run on.
pub fn shards_by_default(cpus: &[usize]) -> u16 {
    // The standard library also knows of cgroup quotas: a container limited to two CPUs gets two shards on a machine of 64.
    let quota = std::thread::available_parallelism().map_or(cpus.len(), std::num::NonZeroUsize::get);
    u16::try_from(cpus.len().min(quota)).unwrap_or(u16::MAX).clamp(1, SHARDS_MAX)
}

/// The most shards that can be configured; every pair of them has a mailbox.
pub const SHARDS_MAX: u16 = 1024;

/// Standard streams, the admin listener and its clients, files read in passing.
const PROCESS_DESCRIPTORS: u64 = 64;
/// Ring or epoll, listener, wake-up, and some to spare.
const SHARD_DESCRIPTORS: u64 = 8;
/// An idle connection: 8 to 10 KB of kernel objects and under 1 KB of ours, as measured.
const CONNECTION_BYTES: u64 = 11 * 1024;
/// Kernel memory that a client holds which never reads, as measured with `limits.notsent_bytes` at 16 KiB.
const STALLED_READER_BYTES: u64 = 150_000;
/// What a process takes before the first client: code, rings, receive buffers.
const BASE_BYTES: u64 = 64 * 1024 * 1024;
/// Assumed when /proc is not there to ask.
const MEMORY_WHEN_UNKNOWN: u64 = 1024 * 1024 * 1024;
const PAGE_BYTES: u64 = 4096;

/// Bytes that a ring of these sizes is charged against the memlock limit: submissions (64 bytes and an index), completions (16 bytes) and the ring
/// of receive buffers (16 bytes each, since kernel 6.14).
pub fn ring_bytes(limits: &Limits) -> u64 {
    let pages = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
    pages(64 * limits.ring_submissions)
        + pages(16 * limits.ring_completions + 4 * limits.ring_submissions)
        + pages(16 * limits.recv_buffers)
}

/// What `shardcast check` prints: one line for each bound, what it means, and which of them is reached first.
pub struct Report {
    lines: Vec<Line>,
    /// Connections that the machine holds, and the name of the bound that says so.
    lowest: (u64, &'static str),
}

struct Line {
    what: &'static str,
    value: String,
    means: String,
    hint: Option<String>,
}

impl Report {
    /// Works out what `host` allows under these limits with this many shards. `uring` is what a ring said when it was tried.
    pub fn new(host: &Host, limits: &Limits, shards: u16, uring: &Result<Features, Blocked>) -> Self {
        let memory = host.memory_allowed();
        let queued = queued_bytes_allowed(limits, memory);
        let by_memory = memory.saturating_sub(queued).saturating_sub(BASE_BYTES) / CONNECTION_BYTES;
        let unlimited = Limits { connections_max: 0, ..limits.clone() };
        let by_nofile = connections_allowed(&unlimited, host.nofile_hard, shards);

        let mut bounds = vec![(by_nofile, NOFILE), (by_memory, MEMORY)];
        bounds.extend(host.file_max.map(|files| (connections_allowed(&unlimited, files, shards), FILE_MAX)));
        if limits.connections_max != 0 {
            bounds.push((limits.connections_max, CONNECTIONS_MAX));
        }
        let lowest = bounds.into_iter().min_by_key(|&(connections, _)| connections).expect("two bounds are always there");

        let mut lines = vec![
            Line {
                what: "kernel",
                value: host.kernel.clone(),
                means: "the io_uring driver needs 6.1 or later".to_owned(),
                hint: None,
            },
            uring_line(uring),
            Line {
                what: "CPUs allowed",
                value: host.cpus.len().to_string(),
                means: format!("{shards} {}", if shards == 1 { "shard" } else { "shards" }),
                hint: (usize::from(shards) > host.cpus.len())
                    .then(|| format!("{shards} shards share {} CPUs; --shards {} avoids that", host.cpus.len(), host.cpus.len())),
            },
            Line {
                what: NOFILE,
                value: if host.nofile_soft == host.nofile_hard {
                    count(host.nofile_hard)
                } else {
                    format!("{}, raised to {} at start", count(host.nofile_soft), count(host.nofile_hard))
                },
                means: connections_text(by_nofile),
                hint: (lowest.1 == NOFILE).then(|| {
                    "raise it with `ulimit -Hn 1048576`, LimitNOFILE=1048576 in the systemd unit, or `docker run --ulimit nofile=1048576`".to_owned()
                }),
            },
        ];
        if let Some(files) = host.file_max {
            lines.push(Line {
                what: FILE_MAX,
                value: count(files),
                means: "open files of all processes together".to_owned(),
                hint: (lowest.1 == FILE_MAX).then(|| "raise it with `sysctl -w fs.file-max=2097152`".to_owned()),
            });
        }
        if limits.connections_max != 0 {
            lines.push(Line {
                what: CONNECTIONS_MAX,
                value: count(limits.connections_max),
                means: "clients at once, as configured".to_owned(),
                hint: (lowest.1 == CONNECTIONS_MAX).then(|| "0 takes what the machine allows".to_owned()),
            });
        }
        lines.push(Line {
            what: MEMORY,
            value: match host.memory_cgroup_bytes {
                Some(limit) if limit <= memory => format!("{} (cgroup)", bytes(memory)),
                _ => bytes(memory),
            },
            means: format!("{} when idle; at most {} of queued messages", connections_text(by_memory), bytes(queued)),
            hint: (lowest.1 == MEMORY).then(|| {
                if host.memory_cgroup_bytes.is_some_and(|limit| limit <= memory) {
                    "raise the memory limit of the container or the systemd unit (MemoryMax=)".to_owned()
                } else {
                    "more memory is the only way up from here".to_owned()
                }
            }),
        });
        if let Some(buffers) = host.tcp_buffer_bytes {
            lines.push(Line {
                what: "TCP buffers",
                value: bytes(buffers),
                means: format!(
                    "about {} readers that have stopped reading; idle connections take none",
                    count(buffers / STALLED_READER_BYTES)
                ),
                hint: None,
            });
        }
        if let Some(waiting) = host.somaxconn {
            lines.push(Line {
                what: "somaxconn",
                value: count(waiting),
                means: format!("{} clients can wait at each shard's listener", count(waiting.min(limits.backlog))),
                hint: (waiting < limits.backlog).then(|| {
                    format!("limits.backlog asks for {}: `sysctl -w net.core.somaxconn={}`", count(limits.backlog), limits.backlog)
                }),
            });
        }
        let rings = host.memlock_bytes / ring_bytes(limits);
        let unlimited_memlock = host.memlock_bytes >= 1 << 50;
        lines.push(Line {
            what: "memlock",
            value: if unlimited_memlock { "unlimited".to_owned() } else { bytes(host.memlock_bytes) },
            means: if unlimited_memlock {
                "no bound on rings".to_owned()
            } else {
                format!("rings of {} shards of this user, in all its processes", count(rings))
            },
            hint: (rings < u64::from(shards)).then(|| {
                "rings will be made smaller; `ulimit -l unlimited`, LimitMEMLOCK=infinity or `docker run --ulimit memlock=-1` avoids that".to_owned()
            }),
        });
        Self { lines, lowest }
    }

    /// Connections that the machine holds under these limits.
    pub fn connections(&self) -> u64 {
        self.lowest.0
    }
}

const NOFILE: &str = "open files";
const FILE_MAX: &str = "fs.file-max";
const MEMORY: &str = "memory";
const CONNECTIONS_MAX: &str = "limits.connections_max";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what_width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        let value_width = self.lines.iter().map(|line| line.value.len()).max().unwrap_or(0);
        for Line { what, value, means, hint } in &self.lines {
            writeln!(f, "{what:what_width$}  {value:value_width$}  {means}")?;
            if let Some(hint) = hint {
                writeln!(f, "{:what_width$}  {:value_width$}  -> {hint}", "", "")?;
            }
        }
        let (connections, name) = self.lowest;
        writeln!(f, "\nThis machine can hold about {} connections; the lowest limit is {name}.", count(connections))
    }
}

fn uring_line(uring: &Result<Features, Blocked>) -> Line {
    match uring {
        Ok(features) => Line {
            what: "io_uring",
            value: "works".to_owned(),
            means: format!(
                "rings of {}/{} entries; waiting not shown as iowait (6.15): {}",
                features.size.submissions,
                features.size.completions,
                yes_no(features.no_iowait)
            ),
            hint: None,
        },
        Err(blocked) => Line {
            what: "io_uring",
            value: "blocked".to_owned(),
            means: format!("epoll serves instead: {}; {}", blocked.what, blocked.cause),
            hint: Some(blocked.fix.clone()),
        },
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn connections_text(connections: u64) -> String {
    format!("{} connections", count(connections))
}

/// A number with its thousands apart: 1,048,576.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves a whole number of at least two digits, or one digit without a rest.
fn bytes(number: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let scale = 1u64 << shift;
        if number >= 10 * scale || (number >= scale && number.is_multiple_of(scale)) {
            return format!("{} {unit}", number / scale);
        }
    }
    format!("{number} bytes")
}

fn file(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn tcp_mem_bytes(text: &str) -> Option<u64> {
    let pages: u64 = text.split_whitespace().nth(2)?.parse().ok()?;
    Some(pages.saturating_mul(PAGE_BYTES))
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(first_number(rest)?.saturating_mul(1024))
}

/// The lowest memory limit on the way from this process's cgroup up to the root that it can see.
///
/// `cgroup` is /proc/self/cgroup (cgroups(7)), `mountinfo` is /proc/self/mountinfo (proc_pid_mountinfo(5)); `read` reads a file.
fn cgroup_limit(cgroup: &str, mountinfo: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut lowest = None;
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (mount, name) = if hierarchy == "0" && controllers.is_empty() {
            (find_mount(mountinfo, "cgroup2", None), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (find_mount(mountinfo, "cgroup", Some("memory")), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let Some(mount) = mount else { continue };
        // Without a cgroup namespace the path counts from the host's root, while the mount may show only the container's part of it.
        let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new("")).to_owned();
        let below = below.strip_prefix("/").unwrap_or(&below);
        for directory in below.ancestors() {
            let limit = read(&mount.point.join(directory).join(name)).and_then(|text| first_number(&text));
            // Version 1 writes "no limit" as the largest multiple of the page size; version 2 as the word `max`.
            if let Some(limit) = limit.filter(|&limit| limit < 1 << 62) {
                lowest = Some(lowest.map_or(limit, |lowest: u64| lowest.min(limit)));
            }
        }
    }
    lowest
}

struct Mount {
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
}

fn find_mount(mountinfo: &str, kind: &str, option: Option<&str>) -> Option<Mount> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let found =
            right.next()? == kind && option.is_none_or(|option| right.nth(1).is_some_and(|all| all.split(',').any(|one| one == option)));
        let mut left = left.split(' ').skip(3);
        found.then_some(Mount { root: left.next()?.into(), point: left.next()?.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::uring::RingSize;

    const V2_MOUNTS: &str =
        "25 30 0:23 / /proc rw - proc proc rw\n31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro shared:9 - cgroup cgroup rw,memory\n";

    fn limit(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        cgroup_limit(cgroup, mounts, |path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn the_lowest_limit_of_a_version_2_cgroup_and_its_parents_counts() {
        let files = [
            ("/sys/fs/cgroup/system.slice/shardcast.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "536870912\n"),
        ];
        assert_eq!(limit("0::/system.slice/shardcast.service\n", V2_MOUNTS, &files), Some(536_870_912));
        assert_eq!(limit("0::/\n", V2_MOUNTS, &[]), None);
    }

    #[test]
    fn a_container_sees_its_own_limit_where_version_1_is_mounted_from_its_part() {
        let files = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n")];
        assert_eq!(limit("4:memory:/docker/ab\n0::/\n", V1_MOUNTS, &files), Some(1 << 30));
        let files = [("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "4096\n")];
        assert_eq!(limit("9:cpu,memory:/docker/ab/inner\n", V1_MOUNTS, &files), Some(4096));
    }

    #[test]
    fn no_limit_in_version_1_is_no_limit() {
        let files = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")];
        assert_eq!(limit("4:memory:/docker/ab\n", V1_MOUNTS, &files), None);
    }

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(memory_total("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), Some(24_684_084 * 1024));
        assert_eq!(tcp_mem_bytes("287898\t383867\t575796\n"), Some(575_796 * 4096));
    }

    fn working() -> Result<Features, Blocked> {
        Ok(Features { no_iowait: false, size: RingSize { submissions: 1024, completions: 8192 } })
    }

    fn small_host() -> Host {
        Host {
            kernel: "6.12.9".to_owned(),
            cpus: vec![0, 1],
            nofile_soft: 1024,
            nofile_hard: 4096,
            file_max: Some(2_000_000),
            memlock_bytes: 8 << 20,
            somaxconn: Some(128),
            tcp_buffer_bytes: Some(2 << 30),
            memory_total_bytes: Some(8 << 30),
            memory_cgroup_bytes: None,
        }
    }

    #[test]
    fn the_report_names_the_lowest_limit_and_how_to_raise_it() {
        let report = Report::new(&small_host(), &Limits::default(), 2, &working());
        assert_eq!(report.connections(), 4096 - 64 - 2 * 8 - 512);
        let text = report.to_string();
        assert!(text.ends_with("This machine can hold about 3,504 connections; the lowest limit is open files.\n"), "{text}");
        assert!(text.contains("LimitNOFILE=1048576"), "{text}");
        assert!(text.contains("net.core.somaxconn=4096"), "{text}");
    }

    #[test]
    fn a_blocked_ring_is_told_with_its_cause_and_cure() {
        let blocked = Blocked { what: "io_uring_setup: EPERM".into(), cause: "a seccomp filter".into(), fix: "allow it".into() };
        let text = Report::new(&small_host(), &Limits::default(), 1, &Err(blocked)).to_string();
        assert!(text.contains("blocked") && text.contains("a seccomp filter\n") && text.contains("-> allow it\n"), "{text}");
    }

    #[test]
    fn a_small_container_is_bounded_by_memory() {
        let host = Host { nofile_hard: 1 << 20, memory_cgroup_bytes: Some(256 << 20), ..small_host() };
        let report = Report::new(&host, &Limits::default(), 1, &working());
        assert_eq!(report.connections(), 128 * 1024 / 11);
        assert!(report.to_string().contains("256 MiB (cgroup)"), "{report}");
    }

    #[test]
    fn a_configured_maximum_bounds_the_rest_and_descriptors_bound_it() {
        let limits = Limits { connections_max: 1000, ..Limits::default() };
        assert_eq!(connections_allowed(&limits, 4096, 2), 1000);
        assert_eq!(connections_allowed(&limits, 1024, 1), 1024 - 64 - 8 - 128);
        assert_eq!(connections_allowed(&limits, 10, 1), 1, "a gateway that can hold nobody still starts and says so");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_048_576].map(count), ["0", "999", "1,000", "1,048,576"]);
        assert_eq!([512, 8 << 20, 1 << 30, 2_358_460_416].map(bytes), ["512 bytes", "8 MiB", "1 GiB", "2249 MiB"]);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let host = Host::read();
        assert!(host.nofile_hard > 0 && !host.cpus.is_empty() && host.memory_allowed() > 0, "{host:?}");
    }
}
