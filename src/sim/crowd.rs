//! Very many clients that only take what comes: for measurements, over a kernel that completes everything at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::shards::{Shards, ShardsPlan};
use crate::engine::kernel::Kernel;
use crate::engine::sim::{Chaos, Choices, LinkId, LinkOptions, SimKernel, SimRingSize, World};
use crate::ids::ShardId;
use crate::limits::Limits;
use crate::proto::ws::OpCode;
use crate::proto::ws::frame::encode_masked_into;

/// What lies further off is not waited for: pings and other deadlines.
const SOON: Duration = Duration::from_millis(10);
/// Clients that connect before the shards have their turns.
const CONNECT_AT_ONCE: usize = 10_000;

/// Rooms full of clients, and the shards that serve them. Whoever measures does the shards' steps himself: they are handed to a closure.
pub struct Crowd<K = SimKernel> {
    world: Rc<RefCell<World>>,
    /// The shards.
    pub shards: Shards<K>,
    clients: Vec<LinkId>,
    rooms: usize,
}

impl<K: Kernel> Crowd<K> {
    /// Shards without clients, with the default bounds, each on what `around` makes of its simulated kernel. What the simulation keeps for `connections`
    /// clients in `rooms` rooms is allocated here.
    pub fn new(shards: u16, rooms: usize, connections: usize, around: impl Fn(SimKernel) -> K) -> Self {
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(1), Chaos::CALM)));
        let limits = Limits { connections_max: u64::MAX, queued_bytes_max: u64::MAX, ..Limits::default() };
        let plan =
            ShardsPlan { shards, limits, slow: Default::default(), features: Default::default(), ring: SimRingSize::default(), seed: 1 };
        let shards = Shards::start_on(&plan, &world, around);
        world.borrow_mut().reserve(connections);
        Self { world, shards, clients: Vec::with_capacity(connections), rooms }
    }

    /// Lets `count` clients in, spread evenly over rooms and listeners.
    ///
    /// # Panics
    /// If one is not let in.
    pub fn connect(&mut self, count: usize, mut step: impl FnMut(&mut Shards<K>, ShardId)) {
        let options = LinkOptions { sink: true, up_max: 1 << 20, ..LinkOptions::default() };
        let shards: Vec<ShardId> = self.shards.ids().collect();
        let before = self.members();
        for index in 0..count {
            let (room, shard) = (index % self.rooms, shards[index / self.rooms % shards.len()]);
            let request = format!(
                "GET /ws?room=room-{room} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            let mut world = self.world.borrow_mut();
            let link = world.connect(shard, options).expect("the listener is open");
            assert_eq!(world.client_write(link, request.as_bytes()).ok(), Some(request.len()), "a new connection has room");
            drop(world);
            self.clients.push(link);
            if self.clients.len().is_multiple_of(CONNECT_AT_ONCE) || index + 1 == count {
                self.settle(&mut step);
            }
        }
        assert_eq!(self.members(), before + count, "every client is let in");
    }

    fn members(&self) -> usize {
        self.shards.ids().map(|shard| self.shards.holdings(shard).sessions).sum()
    }

    /// The first member of each room publishes `messages` messages of `payload` bytes, all rooms at once.
    ///
    /// # Panics
    /// If they do not fit the connection's buffer of 1 MiB.
    pub fn publish(&mut self, messages: usize, payload: usize, step: impl FnMut(&mut Shards<K>, ShardId)) {
        let mut frame = Vec::new();
        encode_masked_into(&mut frame, true, OpCode::Binary, [1, 2, 3, 4], &vec![7; payload]);
        for room in 0..self.rooms {
            for _ in 0..messages {
                let written = self.world.borrow_mut().client_write(self.clients[room], &frame);
                assert_eq!(written.ok(), Some(frame.len()), "messages fit the connection");
            }
        }
        self.settle(step);
    }

    /// Hands each step that is due to `step`, until none is.
    fn settle(&mut self, mut step: impl FnMut(&mut Shards<K>, ShardId)) {
        loop {
            self.world.borrow_mut().stir();
            let now = self.world.borrow().now;
            let mut able = false;
            for shard in self.shards.ids() {
                if self.shards.due(shard).is_some_and(|due| due <= now) {
                    able = true;
                    step(&mut self.shards, shard);
                }
            }
            if able {
                continue;
            }
            let next = self.shards.ids().filter_map(|shard| self.shards.due(shard)).chain(self.world.borrow().next_deed()).min();
            match next.filter(|next| next.since(now) < SOON) {
                Some(next) => self.world.borrow_mut().now = next.max(now),
                None => return,
            }
        }
    }
}
