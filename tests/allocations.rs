//! What a publication and a delivery allocate: a counting allocator under a real gateway over the simulated kernel, whose own allocations are not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
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

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
            BYTES.set(BYTES.get() + layout.size() as u64);
        }
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A simulated kernel that is left out of the count.
struct Uncounted(SimKernel);

fn uncounted<R>(work: impl FnOnce() -> R) -> R {
    let counting = COUNTING.replace(false);
    let result = work();
    COUNTING.set(counting);
    result
}

impl Kernel for Uncounted {
    fn submit(&mut self, token: Token, op: Op) {
        uncounted(|| self.0.submit(token, op));
    }
    fn enter(&mut self, wait: Wait, gather: GatherWait) -> io::Result<()> {
        uncounted(|| self.0.enter(wait, gather))
    }
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        uncounted(|| self.0.reap(completions));
    }
    fn replenish(&mut self) -> usize {
        uncounted(|| self.0.replenish())
    }
    fn signal(&mut self, shard: ShardId) {
        uncounted(|| self.0.signal(shard));
    }
    fn close_listener(&mut self) {
        self.0.close_listener();
    }
    fn shut_write(&mut self, socket: Socket) {
        self.0.shut_write(socket);
    }
    fn close(&mut self, socket: Socket, how: CloseHow) {
        uncounted(|| self.0.close(socket, how));
    }
    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        self.0.peer_addr(socket)
    }
}

/// One room on one shard.
struct Room {
    world: Rc<RefCell<World>>,
    shards: Shards<Uncounted>,
    members: Vec<LinkId>,
}

impl Room {
    fn of(members: usize) -> Self {
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(1), Chaos::CALM)));
        let limits = Limits { connections_max: 1 << 30, queued_bytes_max: 1 << 30, ..Limits::default() };
        let plan = ShardsPlan { shards: 1, limits, ring: SimRingSize::default(), seed: 1 };
        let shards = Shards::start_on(&plan, &world, Uncounted);
        let mut room = Self { world, shards, members: Vec::new() };
        for _ in 0..members {
            let request = b"GET /ws?room=a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            let mut world = room.world.borrow_mut();
            let link =
                world.connect(ShardId(0), LinkOptions { sink: true, up_max: 1 << 20, ..LinkOptions::default() }).expect("it listens");
            assert_eq!(world.client_write(link, request).ok(), Some(request.len()));
            drop(world);
            room.members.push(link);
            room.settle();
        }
        room
    }

    /// Runs the shard until it has nothing to do.
    fn settle(&mut self) {
        loop {
            uncounted(|| self.world.borrow_mut().stir());
            let now = self.world.borrow().now;
            let due = self.shards.due(ShardId(0)).into_iter().chain(self.world.borrow().next_deed()).min();
            match due.filter(|due| due.since(now) < Duration::from_millis(10)) {
                Some(due) if due > now => self.world.borrow_mut().now = due,
                Some(_) => self.shards.step(ShardId(0)),
                None => return,
            }
        }
    }

    /// Publishes `count` messages, one after the other; allocations and bytes allocated for each.
    fn publish(&mut self, count: u64, payload: usize) -> (f64, f64) {
        let mut frame = Vec::new();
        encode_masked_into(&mut frame, true, OpCode::Binary, [1, 2, 3, 4], &vec![7; payload]);
        let mut publish = |count: u64| {
            for _ in 0..count {
                let written = uncounted(|| self.world.borrow_mut().client_write(self.members[0], &frame));
                assert_eq!(written.ok(), Some(frame.len()));
                self.settle();
            }
        };
        publish(200);
        let (allocations, bytes) = (ALLOCATIONS.get(), BYTES.get());
        COUNTING.set(true);
        publish(count);
        COUNTING.set(false);
        ((ALLOCATIONS.get() - allocations) as f64 / count as f64, (BYTES.get() - bytes) as f64 / count as f64)
    }
}

#[test]
fn a_delivery_allocates_nothing_and_a_publication_little() {
    let (few, _) = Room::of(10).publish(1000, 128);
    let (many, _) = Room::of(1000).publish(1000, 128);
    println!("allocations per publication: {few} to 10 members, {many} to 1,000");
    assert!((many - few).abs() * 1000.0 <= 1.0, "{few} allocations per publication to 10 members, {many} to 1,000");
    // A lap, what its members are sent, and now and then a segment.
    assert!(many <= 2.1, "{many} allocations per publication");
}

#[test]
fn a_payload_that_comes_in_one_buffer_is_copied_once() {
    let payload = 3 << 10;
    let (_, bytes) = Room::of(100).publish(500, payload);
    println!("bytes allocated per publication of {payload}: {bytes}");
    assert!(bytes < payload as f64 * 1.3, "{bytes} bytes allocated for a payload of {payload}");
}
