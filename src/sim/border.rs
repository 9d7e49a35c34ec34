//! The border between a shard and its simulated kernel, for measurements that leave the kernel out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::engine::driver::{CloseHow, Wait};
use crate::engine::kernel::{Completion, Kernel, Op, Token};
use crate::engine::sim::SimKernel;
use crate::engine::sys::{Listener, Socket};
use crate::ids::ShardId;

/// Who is told when a shard calls its kernel, and when the kernel returns.
pub trait Border {
    /// The kernel's part begins.
    fn out(&self);
    /// The shard goes on.
    fn back(&self);
}

/// A simulated kernel behind a border.
pub struct Bordered<B> {
    kernel: SimKernel,
    border: B,
}

impl<B: Border> Bordered<B> {
    /// Puts `border` around `kernel`.
    pub fn new(kernel: SimKernel, border: B) -> Self {
        Self { kernel, border }
    }

    fn cross<R>(&mut self, call: impl FnOnce(&mut SimKernel) -> R) -> R {
        self.border.out();
        let result = call(&mut self.kernel);
        self.border.back();
        result
    }
}

impl<B: Border> Kernel for Bordered<B> {
    /// Only queues: what telling the border would cost is more.
    fn submit(&mut self, token: Token, op: Op) {
        self.kernel.submit(token, op);
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.cross(|kernel| kernel.enter(wait))
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.cross(|kernel| kernel.reap(completions));
    }

    fn replenish(&mut self) -> usize {
        self.cross(SimKernel::replenish)
    }

    fn signal(&mut self, shard: ShardId) {
        self.cross(|kernel| kernel.signal(shard));
    }

    fn shut_door(&mut self) -> bool {
        self.cross(SimKernel::shut_door)
    }

    fn close_listener(&mut self) -> Vec<Socket> {
        self.cross(SimKernel::close_listener)
    }

    /// There is no process to share it with.
    fn share_listener(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn open_listener(&mut self, listener: Listener) {
        self.cross(|kernel| kernel.open_listener(listener));
    }

    fn shut_write(&mut self, socket: Socket) {
        self.cross(|kernel| kernel.shut_write(socket));
    }

    fn close(&mut self, socket: Socket, how: CloseHow) {
        self.cross(|kernel| kernel.close(socket, how));
    }

    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        self.kernel.peer_addr(socket)
    }
}
