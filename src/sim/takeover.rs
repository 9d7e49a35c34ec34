//! A hand-over in a simulation (`server::handover` and `server::takeover` do it for real): another process with as many shards goes on with everything, or the
//! frozen one goes on itself.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};

use super::shards::{Shards, State};
use crate::engine::kernel::Kernel;
use crate::engine::sim::{SimKernel, World};
use crate::engine::sys::{Listener, Socket};
use crate::engine::uring::UringDriver;
use crate::gateway::state_stream::{Restored, write_to};
use crate::gateway::{Chunk, Command, Inheritance};
use crate::hub::Placement;
use crate::proto::position::Epoch;

/// When simulations begin, in milliseconds since 1970.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// Rounds of steps in which those who inherit find their places.
const ROUNDS_MAX: usize = 10_000;
/// What a round takes.
const ROUND: Duration = Duration::from_micros(100);

impl<K: Kernel> Shards<K> {
    /// Asks them all to take nothing in and give nothing out.
    pub fn freeze(&mut self) {
        // Nobody listens for the listener: in a simulation it is where its ring is.
        self.command(|| Command::Freeze { listener: bounded(1).0 });
    }

    /// Has frozen shards go on.
    pub fn thaw(&mut self) {
        self.command(|| Command::Thaw { listener: None });
    }

    /// A wait ends and the next begins, with a step between, for every shard.
    fn round(&mut self) {
        for shard in self.ids() {
            if self.seats[shard.index()].state == State::Awake {
                self.step(shard);
            }
            self.step(shard);
        }
        let mut world = self.world.borrow_mut();
        world.now = world.now + ROUND;
        world.stir();
    }
}

impl Shards {
    /// Another process goes on with everything, while the world stands still: shards that are still give out what they have, and end.
    ///
    /// # Panics
    /// If what they give out is nothing to go on from, or who inherits does not find his place.
    pub fn hand_over(&mut self) {
        assert!(self.shared.all_still(), "what is handed over is still");
        let (epoch, hash_key) = (Epoch(self.plan.seed), (self.plan.seed, !self.plan.seed));
        let unix_ms = BEGINNING_MS + self.world.borrow().now.as_nanos() / 1_000_000;
        let (mut to, chunks): (Vec<_>, Vec<Receiver<Chunk>>) = self.ids().map(|_| unbounded()).unzip();
        self.command(|| Command::HandOver { unix_ms, to: to.remove(0) });
        self.round();
        let (mut bytes, mut sockets) = (Vec::new(), Vec::new());
        let put = |some: &[u8], with: &[Socket]| {
            bytes.extend_from_slice(some);
            sockets.extend(with.iter().map(|socket| Socket(socket.0)));
            Ok(())
        };
        write_to(put, epoch, hash_key, chunks.into_iter().flat_map(|chunks| chunks.try_iter().collect::<Vec<_>>()), |_| {})
            .expect("memory takes everything");

        let restored = Restored::read(&mut &*bytes, unix_ms, true).unwrap_or_else(|why| panic!("what is handed over: {why}"));
        assert_eq!((restored.epoch, restored.hash_key, restored.connections.len()), (epoch, hash_key, sockets.len()));
        self.world.borrow_mut().close_others(&sockets);
        let mut next = Self::successors(self, &self.world);
        next.earlier = mem::take(&mut self.earlier);
        next.earlier.append(&mut self.counters);
        *self = next;

        for parts in Inheritance::divide(restored, sockets, &Placement::new(self.plan.shards, hash_key)) {
            self.inherit(parts);
        }
        self.command(|| Command::Thaw { listener: Some(Listener::SIMULATED) });
        self.round();
    }

    /// As many shards of another process, which are frozen and have nothing yet.
    fn successors(&self, world: &Rc<RefCell<World>>) -> Self {
        Self::make(&self.plan, world, true, Vec::new(), |shard, pool| {
            world.borrow_mut().renew_ring(shard, self.plan.ring, pool);
            UringDriver::frozen(SimKernel::new(world, shard))
        })
    }

    fn inherit(&mut self, mut parts: Vec<Inheritance>) {
        let (begun, beginnings) = unbounded();
        self.command(|| Command::Inherit { inheritance: Box::new(parts.remove(0)), begun: begun.clone() });
        for _ in 0..ROUNDS_MAX {
            self.round();
            if beginnings.len() == self.seats.len() && self.shared.all_still() {
                return;
            }
        }
        panic!("what was inherited does not come to rest");
    }
}
