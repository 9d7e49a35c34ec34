//! A million connections on sixteen shards over a simulated kernel: what user space alone costs, with nothing of TCP in it.
//!
//! `cargo bench --features sim --bench million [-- CONNECTIONS]`. Real gateways, driver and mailboxes; the kernel in memory completes everything at once and throws
//! the bytes away. Its own memory is made beforehand and its own time is taken off. One thread runs all shards, one after the other.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shardcast::engine::driver::{CloseHow, Wait};
use shardcast::engine::kernel::{Completion, GatherWait, Kernel, Op, Token};
use shardcast::engine::sim::{Chaos, Choices, LinkId, LinkOptions, SimKernel, SimRingSize, World};
use shardcast::engine::sys::Socket;
use shardcast::ids::ShardId;
use shardcast::limits::Limits;
use shardcast::proto::ws::OpCode;
use shardcast::proto::ws::frame::encode_masked_into;
use shardcast::sim::{Shards, ShardsPlan};

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

/// A simulated kernel whose time is taken: of the calls that a real one would do its work in.
struct Timed(SimKernel);

fn timed<R>(work: impl FnOnce() -> R) -> R {
    let begun = cpu_time();
    let result = work();
    KERNEL_TIME.set(KERNEL_TIME.get() + (cpu_time() - begun));
    result
}

/// CPU time of this thread: whatever else runs on the machine is left out.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes into a live timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Kernel for Timed {
    fn submit(&mut self, token: Token, op: Op) {
        self.0.submit(token, op);
    }
    fn enter(&mut self, wait: Wait, gather: GatherWait) -> io::Result<()> {
        timed(|| self.0.enter(wait, gather))
    }
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        timed(|| self.0.reap(completions));
    }
    fn replenish(&mut self) -> usize {
        timed(|| self.0.replenish())
    }
    fn signal(&mut self, shard: ShardId) {
        self.0.signal(shard);
    }
    fn close_listener(&mut self) {
        self.0.close_listener();
    }
    fn shut_write(&mut self, socket: Socket) {
        self.0.shut_write(socket);
    }
    fn close(&mut self, socket: Socket, how: CloseHow) {
        self.0.close(socket, how);
    }
    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        self.0.peer_addr(socket)
    }
}

/// What one run of the shards took, the kernel's time left out.
#[derive(Default)]
struct Spent {
    total: Duration,
    /// Each step of a shard.
    steps: Vec<Duration>,
}

struct Bench {
    world: Rc<RefCell<World>>,
    shards: Shards<Timed>,
    clients: Vec<LinkId>,
    rooms: usize,
}

impl Bench {
    fn new(connections: usize, rooms: usize) -> Self {
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(1), Chaos::CALM)));
        let limits = Limits { connections_max: u64::MAX, queued_bytes_max: u64::MAX, ..Limits::default() };
        let plan = ShardsPlan { shards: SHARDS, limits, ring: SimRingSize::default(), seed: 1 };
        let shards = Shards::start_on(&plan, &world, Timed);
        world.borrow_mut().reserve(connections);
        Self { world, shards, clients: Vec::with_capacity(connections), rooms }
    }

    /// Runs the shards until none has anything to do.
    fn settle(&mut self) -> Spent {
        let mut spent = Spent::default();
        loop {
            self.world.borrow_mut().stir();
            let now = self.world.borrow().now;
            let mut able = false;
            for shard in self.shards.ids() {
                if self.shards.due(shard).is_some_and(|due| due <= now) {
                    able = true;
                    let kernel = KERNEL_TIME.get();
                    let begun = cpu_time();
                    self.shards.step(shard);
                    let took = (cpu_time() - begun).saturating_sub(KERNEL_TIME.get() - kernel);
                    spent.total += took;
                    spent.steps.push(took);
                }
            }
            if able {
                continue;
            }
            let next = self.shards.ids().filter_map(|shard| self.shards.due(shard)).chain(self.world.borrow().next_deed()).min();
            match next.filter(|next| next.since(now) < Duration::from_millis(10)) {
                Some(next) => self.world.borrow_mut().now = next.max(now),
                None => return spent,
            }
        }
    }

    fn connect(&mut self, count: usize) -> Spent {
        let mut spent = Spent::default();
        let options = LinkOptions { sink: true, ..LinkOptions::default() };
        for index in 0..count {
            let room = index % self.rooms;
            let mut world = self.world.borrow_mut();
            let link = world.connect(ShardId((index / self.rooms % usize::from(SHARDS)) as u16), options).expect("the listener is open");
            let request = format!(
                "GET /ws?room=room-{room} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            assert_eq!(world.client_write(link, request.as_bytes()).ok(), Some(request.len()));
            drop(world);
            self.clients.push(link);
            if self.clients.len().is_multiple_of(10_000) || index + 1 == count {
                spent.add(self.settle());
            }
        }
        spent
    }

    /// The first member of each room publishes `messages` messages, all rooms at once.
    fn publish(&mut self, messages: usize) -> Spent {
        let mut frame = Vec::new();
        encode_masked_into(&mut frame, true, OpCode::Binary, [1, 2, 3, 4], &[7; PAYLOAD]);
        for room in 0..self.rooms {
            for _ in 0..messages {
                assert_eq!(self.world.borrow_mut().client_write(self.clients[room], &frame).ok(), Some(frame.len()));
            }
        }
        self.settle()
    }

    fn sum(&self, count: fn(&shardcast::gateway::counters::Counters) -> u64) -> u64 {
        self.shards.counters.iter().map(|counters| count(counters)).sum()
    }
}

impl Spent {
    /// What 999 of 1,000 steps stay within, and the longest, in microseconds. A virtual machine that is stopped for a while shows in the latter.
    fn longest(&self) -> (f64, f64) {
        let mut steps = self.steps.clone();
        steps.sort_unstable();
        let at = |per_mille: usize| {
            steps.get((steps.len() * per_mille / 1000).min(steps.len().saturating_sub(1))).map_or(0.0, |step| micros(*step))
        };
        (at(999), at(1000))
    }

    fn add(&mut self, other: Self) {
        self.total += other.total;
        self.steps.extend(other.steps);
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
    let mut bench = Bench::new(connections, rooms);
    let before = ALLOCATED.load(Ordering::Relaxed);
    let handshakes = bench.connect(connections);
    let idle = ALLOCATED.load(Ordering::Relaxed) - before;
    let open: usize = bench.shards.ids().map(|shard| bench.shards.holdings(shard).sessions).sum();
    assert_eq!(open, connections, "every client is in");
    println!("{rooms} rooms of {}", connections / rooms);
    println!("  memory, all idle            {:8.0} B per connection, rooms included", idle as f64 / connections as f64);
    println!("  handshake                   {:8.3} µs each", micros(handshakes.total) / connections as f64);
    for messages in [1, 16] {
        // Once to warm up what keeps memory for frames to come.
        bench.publish(messages);
        let (deliveries, mail, wakes) =
            (bench.sum(|counters| counters.deliveries.value()), bench.shards.mail_sent(), bench.sum(|counters| counters.wakes.value()));
        let spent = bench.publish(messages);
        let delivered = bench.sum(|counters| counters.deliveries.value()) - deliveries;
        assert_eq!(delivered, (messages * connections) as u64, "every member gets every message");
        let published = (rooms * messages) as f64;
        println!("  {messages:2} in flight in each room:");
        println!("    CPU                       {:8.3} µs per delivery", micros(spent.total) / delivered as f64);
        println!("    mailbox messages          {:8.2} per publication", (bench.shards.mail_sent() - mail) as f64 / published);
        println!(
            "    wake-ups                  {:8.2} per publication",
            (bench.sum(|counters| counters.wakes.value()) - wakes) as f64 / published
        );
        let (most, longest) = spent.longest();
        println!("    step of a shard           {most:8.0} µs or less in 999 of 1,000; the longest {longest:.0} µs");
    }
    println!();
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
