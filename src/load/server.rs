//! What /proc says of a process and its threads: CPU time and memory. Of the server under load, and of ourselves.

use std::fs;
use std::time::Duration;

use super::LoadError;

/// Clock ticks per second in /proc/PID/stat. The kernel converts to this fixed number (USER_HZ) on every architecture that this crate runs on.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of a process so far.
#[derive(Clone, Default, Debug)]
pub(super) struct Cpu {
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// Of each thread: its id, user and system time together.
    pub(super) threads: Vec<(u32, Duration)>,
}

impl Cpu {
    /// Reads it; `None` when the process is gone or another user's with its /proc closed.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let (user, system) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let times = fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse_stat);
            if let (Some((user, system)), Some(id)) = (times, entry.file_name().to_str().and_then(|id| id.parse().ok())) {
                threads.push((id, user + system));
            }
        }
        Some(Self { user, system, threads })
    }

    pub(super) fn total(&self) -> Duration {
        self.user + self.system
    }

    /// What was used since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let before = |id: u32| earlier.threads.iter().find(|(other, _)| *other == id).map_or(Duration::ZERO, |(_, time)| *time);
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            threads: self.threads.iter().map(|&(id, time)| (id, time.saturating_sub(before(id)))).collect(),
        }
    }

    /// What was used in another time, too.
    pub(super) fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.system += other.system;
        for &(id, time) in &other.threads {
            match self.threads.iter_mut().find(|(own, _)| *own == id) {
                Some((_, own)) => *own += time,
                None => self.threads.push((id, time)),
            }
        }
    }

    /// The busiest thread's time, of those with these ids or of all.
    pub(super) fn busiest(&self, ids: Option<&[u32]>) -> Duration {
        self.threads.iter().filter(|(id, _)| ids.is_none_or(|ids| ids.contains(id))).map(|(_, time)| *time).max().unwrap_or_default()
    }
}

/// User and system time in the text of a stat file. The name in brackets may have anything in it.
fn parse_stat(text: &str) -> Option<(Duration, Duration)> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut time = || Some(Duration::from_millis(fields.next()?.parse::<u64>().ok()? * 1000 / TICKS_PER_SECOND));
    Some((time()?, time()?))
}

/// Proportional set size in bytes: what the process costs, shared pages by their share.
pub(super) fn pss_bytes(pid: u32) -> Option<u64> {
    parse_pss(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Fails when there is no such process, or its figures are closed to this user.
pub(super) fn check(pid: u32) -> Result<(), LoadError> {
    if Cpu::of(pid).is_none() {
        return Err(LoadError::Failed(format!(
            "--server-pid {pid}: there is no such process in /proc; name one that runs, or leave it out"
        )));
    }
    Ok(())
}

/// The id of the calling thread.
pub(super) fn thread_id() -> Option<u32> {
    fs::read_link("/proc/thread-self").ok()?.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_texts_are_read() {
        let stat = "77 (a) b (c)) S 1 77 77 0 -1 4194560 100 0 0 0 250 125 0 0 20 0 3 0 1 1 1";
        assert_eq!(parse_stat(stat), Some((Duration::from_millis(2500), Duration::from_millis(1250))));
        assert_eq!(parse_stat("77 (a"), None);
        assert_eq!(parse_pss("Rss:  900 kB\nPss:                 512 kB\nPss_Dirty: 1 kB\n"), Some(512 * 1024));
        assert_eq!(parse_pss("Rss: 1 kB"), None);
    }

    #[test]
    fn this_process_is_found_with_its_threads() {
        let id = thread_id().expect("there is a /proc");
        let cpu = Cpu::of(std::process::id()).expect("this process runs");
        assert!(cpu.threads.iter().any(|(thread, _)| *thread == id));
        assert!(pss_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(cpu.since(&cpu).total(), Duration::ZERO);
        let mut twice = cpu.clone();
        twice.add(&cpu);
        assert_eq!((twice.total(), twice.busiest(None), twice.threads.len()), (cpu.total() * 2, cpu.busiest(None) * 2, cpu.threads.len()));
    }
}
