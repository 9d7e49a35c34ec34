//! A million connections on sixteen shards over a simulated kernel: what user space alone costs, with nothing of TCP in it.
//!
//! `cargo bench --features sim --bench million [-- CONNECTIONS]`. Real gateways, driver and mailboxes; the kernel in memory completes everything at once and throws
//! the bytes away. Its own memory is made beforehand and its own time is taken off. One thread runs all shards, one after the other.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shardcast::gateway::counters::Counters;
use shardcast::ids::ShardId;
use shardcast::sim::{Border, Bordered, Crowd, Shards};

const SHARDS: u16 = 16;
const PAYLOAD: usize = 128;

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// mimalloc, as in the binary, with a count.
struct Counting;

// SAFETY: passes everything on to mimalloc.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised to us.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised to us.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Time spent inside the simulated kernel.
    static KERNEL_TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Takes the time of the kernel's part.
#[derive(Default)]
struct Stopwatch {
    begun: Cell<Duration>,
}

impl Border for Stopwatch {
    fn out(&self) {
        self.begun.set(cpu_time());
    }

    fn back(&self) {
        KERNEL_TIME.set(KERNEL_TIME.get() + (cpu_time() - self.begun.get()));
    }
}

type Timed = Bordered<Stopwatch>;

/// CPU time of this thread: whatever else runs on the machine is left out.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes into a live timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What one run of the shards took, the kernel's time left out.
#[derive(Default)]
struct Spent {
    total: Duration,
    /// Each step of a shard.
    steps: Vec<Duration>,
}

impl Spent {
    /// Has a shard do a step.
    fn step(&mut self, shards: &mut Shards<Timed>, shard: ShardId) {
        let kernel = KERNEL_TIME.get();
        let begun = cpu_time();
        shards.step(shard);
        let took = (cpu_time() - begun).saturating_sub(KERNEL_TIME.get() - kernel);
        self.total += took;
        self.steps.push(took);
    }

    /// What 999 of 1,000 steps stay within, and the longest, in microseconds. A virtual machine that is stopped for a while shows in the latter.
    fn longest(&self) -> (f64, f64) {
        let mut steps = self.steps.clone();
        steps.sort_unstable();
        let at = |per_mille: usize| {
            steps.get((steps.len() * per_mille / 1000).min(steps.len().saturating_sub(1))).map_or(0.0, |step| micros(*step))
        };
        (at(999), at(1000))
    }
}

fn main() {
    // As the gateway does.
    shardcast::engine::sys::disable_huge_pages();
    let connections = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000);
    println!("{connections} simulated connections on {SHARDS} shards, payload {PAYLOAD} B; user space alone, one core\n");
    for rooms in [connections / 1000, connections / 10, 1] {
        run(connections, rooms.max(1));
    }
}

fn run(connections: usize, rooms: usize) {
    let mut crowd = Crowd::new(SHARDS, rooms, connections, |kernel| Bordered::new(kernel, Stopwatch::default()));
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut handshakes = Spent::default();
    crowd.connect(connections, |shards, shard| handshakes.step(shards, shard));
    handshakes.steps = Vec::new();
    let idle = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("{rooms} rooms of {}", connections / rooms);
    println!("  memory, all idle            {:8.0} B per connection, rooms included", idle as f64 / connections as f64);
    println!("  handshake                   {:8.3} µs each", micros(handshakes.total) / connections as f64);
    for messages in [1, 16] {
        // Once to warm up what keeps memory for frames to come.
        crowd.publish(messages, PAYLOAD, |shards, shard| shards.step(shard));
        let sum =
            |crowd: &Crowd<Timed>, count: fn(&Counters) -> u64| crowd.shards.counters.iter().map(|counters| count(counters)).sum::<u64>();
        let counts = |crowd: &Crowd<Timed>| {
            [sum(crowd, |counters| counters.deliveries.value()), crowd.shards.mail_sent(), sum(crowd, |counters| counters.wakes.value())]
        };
        let before = counts(&crowd);
        let mut spent = Spent::default();
        crowd.publish(messages, PAYLOAD, |shards, shard| spent.step(shards, shard));
        let after = counts(&crowd);
        let [delivered, mail, wakes] = std::array::from_fn(|index| (after[index] - before[index]) as f64);
        assert_eq!(delivered, (messages * connections) as f64, "every member gets every message");
        let published = (rooms * messages) as f64;
        let (most, longest) = spent.longest();
        println!("  {messages:2} in flight in each room:");
        println!("    CPU                       {:8.3} µs per delivery", micros(spent.total) / delivered);
        println!("    mailbox messages          {:8.2} per publication", mail / published);
        println!("    wake-ups                  {:8.2} per publication", wakes / published);
        println!("    step of a shard           {most:8.0} µs or less in 999 of 1,000; the longest {longest:.0} µs");
    }
    println!();
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
