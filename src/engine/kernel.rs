//! The lower seam: operations in, completions out.
//!
//! An operation owns what it needs until its last completion comes out; a send gives its buffers back there. The real kernel is
//! [`uring::RingKernel`](super::uring::RingKernel). Whatever re-arms, starves, cancels or arrives late is visible here, so that a simulated
//! kernel can produce it at will.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::driver::{CloseHow, Wait};
use super::recv_pool::Lent;
use super::segment::Gather;
use super::sys::{Listener, Socket};
use crate::ids::{ConnKey, ShardId};

/// What kind of operation a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Multishot accept on the shard's listener.
    Accept = 1,
    /// Multishot receive of one connection.
    Recv = 2,
    /// The one send of a connection.
    Send = 3,
    /// A request to cancel; its result says nothing, the cancelled operation's own completion does.
    Cancel = 4,
    /// Another shard's ring wrote to ours.
    Wake = 5,
    /// Our own eventfd was signalled.
    WatchWake = 6,
    /// Our message to another shard's ring; reported only when it failed.
    WakePeer = 7,
}

/// What comes back with a completion: kind (8 bits), generation (24), slot (32).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

impl Token {
    /// The token of a connection's operation.
    pub fn conn(kind: Kind, key: ConnKey) -> Self {
        debug_assert!(key.generation <= ConnKey::GENERATION_MASK);
        Self((kind as u64) << 56 | u64::from(key.generation) << 32 | u64::from(key.slot))
    }

    /// The token of an operation without a connection; `number` says which, where there are several.
    pub fn plain(kind: Kind, number: u32) -> Self {
        Self((kind as u64) << 56 | u64::from(number))
    }

    /// The kind, if it is one of ours.
    pub fn kind(self) -> Option<Kind> {
        Some(match (self.0 >> 56) as u8 {
            1 => Kind::Accept,
            2 => Kind::Recv,
            3 => Kind::Send,
            4 => Kind::Cancel,
            5 => Kind::Wake,
            6 => Kind::WatchWake,
            7 => Kind::WakePeer,
            _ => return None,
        })
    }

    /// The connection that it names.
    pub fn key(self) -> ConnKey {
        ConnKey { slot: self.0 as u32, generation: (self.0 >> 32) as u32 & ConnKey::GENERATION_MASK }
    }
}

/// An operation.
#[derive(Debug)]
pub enum Op {
    /// Accept until told otherwise.
    Accept,
    /// Receive into the shared pool until told otherwise.
    Recv(Socket),
    /// Send once; the kernel may take less than all.
    Send(Socket, Rc<Gather>),
    /// Cancel the operation with this token.
    Cancel(Token),
    /// Complete once when our own eventfd is signalled.
    WatchWake,
    /// Post [`Kind::Wake`] to another shard's ring.
    WakePeer(ShardId),
}

/// The end of an operation, or of one shot of a multishot one.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: Token,
    /// A count or descriptor, or the errno.
    pub result: Result<u32, i32>,
    /// Whether more completions of this operation follow.
    pub more: bool,
    /// Received bytes. Given back on drop, whoever drops them.
    pub received: Option<Lent>,
    /// The buffers of a finished send.
    pub data: Option<Rc<Gather>>,
}

/// Where operations go and completions come from.
pub trait Kernel {
    /// Queues an operation.
    fn submit(&mut self, token: Token, op: Op);

    /// Hands over what is queued and waits for a completion, as told by `wait`.
    ///
    /// # Errors
    /// Only what means that the ring is broken; interrupted and busy are not errors.
    fn enter(&mut self, wait: Wait) -> io::Result<()>;

    /// Moves completions out; as many as there are, up to a few hundred.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// Gives returned receive buffers back to the kernel; how many it has now.
    fn replenish(&mut self) -> usize;

    /// Wakes a shard through its eventfd.
    fn signal(&mut self, shard: ShardId);

    /// See [`Driver::shut_door`](super::driver::Driver::shut_door).
    fn shut_door(&mut self) -> bool;

    /// Accepts who waits in the backlog, as far as descriptors suffice, and closes the listener.
    fn close_listener(&mut self) -> Vec<Socket>;

    /// See [`Driver::share_listener`](super::driver::Driver::share_listener).
    ///
    /// # Errors
    /// As dup(2).
    fn share_listener(&self) -> io::Result<Option<OwnedFd>>;

    /// Takes over another listener.
    fn open_listener(&mut self, listener: Listener);

    /// SHUT_WR.
    fn shut_write(&mut self, socket: Socket);

    /// Closes a socket; no operation on it may be in flight.
    fn close(&mut self, socket: Socket, how: CloseHow);

    /// The peer's address.
    fn peer_addr(&self, socket: Socket) -> Option<SocketAddr>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_back_what_it_was_made_of() {
        let key = ConnKey { slot: u32::MAX - 3, generation: 0x00ab_cdef };
        let token = Token::conn(Kind::Send, key);
        assert_eq!((token.kind(), token.key()), (Some(Kind::Send), key));
        assert_eq!(Token(0).kind(), None);
    }
}
