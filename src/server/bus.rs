//! The NATS core's thread: made before the shards are, pinned where there is a core to spare, ended after them.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::bus::link::{LinkShared, Port};
use crate::bus::options::Options;
use crate::engine::wakers::Wakers;
use crate::limits::Limits;
use crate::proto::subject::Rules;

/// From so many CPUs on the core has one of its own.
const CPUS_MIN: usize = 4;

/// The core, while it runs.
pub struct Bus {
    link: Arc<LinkShared>,
    thread: JoinHandle<()>,
}

/// The ways of the shards to NATS, and what tells how it is.
#[derive(Default)]
pub struct Bridges {
    ports: std::vec::IntoIter<Port>,
    rules: Arc<Rules>,
    /// None without NATS.
    pub link: Option<Arc<LinkShared>>,
}

impl Bridges {
    /// The next shard's way, if there are any.
    pub fn take_next(&mut self) -> Option<(Port, Arc<Rules>)> {
        self.ports.next().map(|port| (port, Arc::clone(&self.rules)))
    }
}

/// How many of so many CPUs shards take, if the number of shards is not configured.
pub fn shards_beside(options: &Options, cpus: u16) -> u16 {
    if options.is_on() && usize::from(cpus) >= CPUS_MIN { cpus - 1 } else { cpus }
}

/// Starts the core of a process with so many shards; nothing without servers. `cpu` is its own, if there is one.
///
/// # Errors
/// A sentence: a secret that cannot be read, no thread.
#[cfg(feature = "nats")]
pub fn start(
    options: &Options,
    limits: &Limits,
    shards: u16,
    node: u64,
    wakers: &Arc<Wakers>,
    cpu: Option<usize>,
) -> Result<(Option<Bus>, Bridges), String> {
    if !options.is_on() {
        return Ok((None, Bridges::default()));
    }
    use std::thread;

    use crate::engine::sys;

    let wakers = Arc::clone(wakers);
    let (ports, core) = crate::bus::nats::prepare(options, limits, shards, node, move |shard| wakers.signal(shard))?;
    let link = Arc::clone(ports[0].shared());
    let body = move || {
        if let Some(cpu) = cpu
            && let Err(error) = sys::pin_to_cpu(cpu)
        {
            tracing::warn!(%error, cpu, "the NATS core is not pinned");
        }
        if let Err(error) = core.run() {
            eprintln!("shardcast: the NATS core cannot go on: {error}; the process ends");
            sys::exit_now(1);
        }
    };
    let thread = thread::Builder::new().name("nats".to_owned()).spawn(body).map_err(|error| format!("cannot start a thread: {error}"))?;
    let bridges = Bridges { ports: ports.into_iter(), rules: Arc::new(options.rules.clone()), link: Some(Arc::clone(&link)) };
    Ok((Some(Bus { link, thread }), bridges))
}

/// Without the feature there is none; the configuration has refused to ask for it.
///
/// # Errors
/// Never.
#[cfg(not(feature = "nats"))]
pub fn start(_: &Options, _: &Limits, _: u16, _: u64, _: &Arc<Wakers>, _: Option<usize>) -> Result<(Option<Bus>, Bridges), String> {
    Ok((None, Bridges::default()))
}

impl Bus {
    /// Lets what waits go out, and ends the core.
    pub fn stop(self) {
        self.link.stop();
        // A core that panicked has ended the process.
        let _ = self.thread.join();
    }
}

/// The CPU that no shard is pinned to, if all of them are and there is one more.
pub fn spare_cpu(seats: &[Option<usize>], allowed: &[usize]) -> Option<usize> {
    let is_pinned = seats.iter().all(Option::is_some);
    allowed.iter().copied().rev().find(|cpu| is_pinned && allowed.len() >= CPUS_MIN && !seats.contains(&Some(*cpu)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_has_a_cpu_of_its_own_from_four_on() {
        let on = Options { servers: vec!["nats://a".into()], ..Options::default() };
        assert_eq!([1, 3, 4, 16].map(|cpus| shards_beside(&on, cpus)), [1, 3, 3, 15]);
        assert_eq!(shards_beside(&Options::default(), 4), 4);
        assert_eq!(spare_cpu(&[Some(0), Some(1), Some(2)], &[0, 1, 2, 3]), Some(3));
        assert_eq!(spare_cpu(&[Some(0), Some(1)], &[0, 1, 2]), None);
        assert_eq!(spare_cpu(&[None; 4], &[0, 1, 2, 3]), None);
        assert_eq!(spare_cpu(&[Some(0), Some(1), Some(2), Some(3)], &[0, 1, 2, 3]), None);
    }
}
