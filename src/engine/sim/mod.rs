//! A kernel in memory: the same operations and completions as the real one, and its worst schedules at will.
//!
//! A [`World`] holds the time, the connections and a ring for each shard; a [`SimKernel`] is the [`Kernel`] of one shard in it. Clients are
//! byte streams ([`World::connect`], [`World::client_read`], …). Nothing runs by itself: whoever simulates moves the time, lets the kernel work
//! ([`World::stir`]), and ends a shard's wait when it is due ([`World::due`]). Every decision is drawn from [`Choices`], so the
//! same seed gives the same run.
//!
//! The kernel checks its callers: one receive and one send at a time on a connection, no descriptor closed and no slot given out again with an
//! operation in flight, nothing on a descriptor that is not open. Receive buffers that nobody may read are filled with a pattern that no client sends.

mod chaos;
mod choices;
mod link;
mod ring;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

pub use chaos::Chaos;
pub use choices::Choices;
pub use link::LinkOptions;
pub use ring::SimRingSize;
pub use world::{LinkId, World};

use super::driver::{CloseHow, Wait};
use super::kernel::{Completion, Kernel, Op, Token};
use super::sys::{Listener, Socket};
use crate::ids::ShardId;

/// One shard's kernel in a [`World`].
pub struct SimKernel {
    world: Rc<RefCell<World>>,
    shard: ShardId,
}

impl SimKernel {
    /// The kernel of `shard`, whose ring was added to the world.
    pub fn new(world: &Rc<RefCell<World>>, shard: ShardId) -> Self {
        Self { world: Rc::clone(world), shard }
    }
}

impl Kernel for SimKernel {
    fn submit(&mut self, token: Token, op: Op) {
        self.world.borrow_mut().submit(self.shard, token, op);
    }

    /// Begins the wait and returns at once: the simulation calls the second half of the turn when the wait is over.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.world.borrow_mut().enter(self.shard, wait);
        Ok(())
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.world.borrow_mut().reap(self.shard, completions);
    }

    fn replenish(&mut self) -> usize {
        self.world.borrow_mut().replenish(self.shard)
    }

    fn signal(&mut self, shard: ShardId) {
        self.world.borrow_mut().signal(shard);
    }

    fn shut_door(&mut self) -> bool {
        self.world.borrow_mut().shut_door(self.shard);
        true
    }

    fn close_listener(&mut self) -> Vec<Socket> {
        self.world.borrow_mut().close_listener(self.shard)
    }

    /// There is no process to share it with.
    fn share_listener(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn open_listener(&mut self, _: Listener) {
        self.world.borrow_mut().open_listener(self.shard);
    }

    fn shut_write(&mut self, socket: Socket) {
        self.world.borrow_mut().shut_write(socket);
    }

    fn close(&mut self, socket: Socket, how: CloseHow) {
        self.world.borrow_mut().close(socket, how);
    }

    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        self.world.borrow().peer_addr(socket)
    }
}
