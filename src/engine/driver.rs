//! The upper seam: sockets as events and requests.
//!
//! A driver owns the sockets of one shard. The shard calls [`Driver::turn`] in a loop and gets [`Event`]s; between turns it asks for
//! sends, pauses and closes. A turn has two halves, [`Driver::enter`] and [`Driver::collect`]: the real drivers wait inside the first, a simulation
//! between the two, while other shards have their turns. Nothing is ever delivered inside a request: what a request causes comes as an event of a later turn. Flags of completions,
//! exhausted buffers, short sends and descriptors in use stay below this line.
//!
//! Implemented by [`uring::UringDriver`](super::uring::UringDriver) and [`epoll::EpollDriver`](super::epoll::EpollDriver).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::recv_pool::Lent;
use super::segment::Gather;
use super::sys::{Listener, Socket};
use crate::ids::{ConnKey, ShardId};

/// How long a turn may wait for something to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all: there is more to do.
    No,
    /// At most this long.
    For(Duration),
    /// Until something happens.
    Forever,
}

/// How a connection is taken down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseHow {
    /// An ordinary close. The caller has seen the peer's end of stream, or does not mind that unread bytes turn it into a reset.
    Close,
    /// Reset at once: unsent bytes are thrown away and the peer gets RST.
    Reset,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A client connected. The socket belongs to whoever handles this: [`Driver::adopt`] it here, on another shard, or [`Driver::discard`] it.
    Accepted(Socket),
    /// Accepting stopped because the process or the system ran out of something (EMFILE, ENFILE, ENOBUFS, ENOMEM). The driver does not try again by itself:
    /// call [`Driver::resume_accept`] when there may be room.
    AcceptPaused(io::Error),
    /// Bytes came in; they are lent until dropped and may be changed in place.
    Received(ConnKey, Lent),
    /// The peer has shut its side: no more bytes will come.
    PeerClosed(ConnKey),
    /// The connection broke. Only [`Driver::close`] makes sense now.
    Failed(ConnKey, io::Error),
    /// The send in flight was taken by the kernel, all of it.
    Sent(ConnKey),
    /// The last operation is done, the socket is closed and the key is void: the answer to [`Driver::close`].
    Closed(ConnKey),
    /// Another thread or shard called for attention.
    Woken,
}

/// A connection of a frozen driver, as another process may go on with it.
#[derive(PartialEq, Eq, Debug)]
pub struct Frozen {
    /// Its socket, which stays this driver's own.
    pub socket: Socket,
    /// Bytes that its peer is owed.
    pub rest: Vec<u8>,
    /// Our side is to be shut behind them.
    pub ends: bool,
}

/// The sockets of one shard.
///
/// A driver can be frozen: then it takes nothing in and gives nothing out, and a socket is nobody's but the kernel's. Bytes that it had taken in before still
/// come as events. What it is asked to send is kept, and told to be sent; an ordinary close, and a shut side, wait behind it. Once it is
/// [still](Self::is_still), another process may go on with its connections; or it is thawed, and goes on itself.
pub trait Driver {
    /// Hands over what was asked for since the last turn, waits as told, and appends what happened to `events`.
    ///
    /// # Errors
    /// Only what means that this shard cannot go on.
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.enter(wait)?;
        self.collect(events);
        Ok(())
    }

    /// The first half of a turn: hands over what was asked for since the last one and waits as told.
    ///
    /// # Errors
    /// Only what means that this shard cannot go on.
    fn enter(&mut self, wait: Wait) -> io::Result<()>;

    /// The second half: appends what happened to `events`.
    fn collect(&mut self, events: &mut Vec<Event>);

    /// Hands over requests and takes nothing in: for a turn that still works on what the last one brought.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    fn submit(&mut self) -> io::Result<()>;

    /// Takes a connected socket in and begins to read from it.
    fn adopt(&mut self, socket: Socket) -> ConnKey;

    /// Closes a connected socket that nobody takes in.
    fn discard(&mut self, socket: Socket);

    /// Sends `data`; [`Event::Sent`] follows when the kernel has all of it.
    ///
    /// # Panics
    /// If a send is in flight on this connection: there is at most one, or their bytes could swap.
    fn send(&mut self, conn: ConnKey, data: Rc<Gather>);

    /// Bytes of the send in flight that the kernel has not taken yet; 0 when none is in flight. While this does not fall, the peer does not read.
    fn unsent(&self, conn: ConnKey) -> usize;

    /// Stops reading. Bytes that are already on their way still arrive as events.
    fn pause_recv(&mut self, conn: ConnKey);

    /// Reads again.
    fn resume_recv(&mut self, conn: ConnKey);

    /// Says that nothing more will be sent (SHUT_WR); reading goes on.
    fn shut_write(&mut self, conn: ConnKey);

    /// Takes the connection down; [`Event::Closed`] follows, and nothing else for this key but bytes already in the same turn's events.
    fn close(&mut self, conn: ConnKey, how: CloseHow);

    /// The peer's address, where the socket still knows it.
    fn peer_addr(&self, conn: ConnKey) -> Option<SocketAddr>;

    /// The address that an accepted socket comes from, while connected.
    fn peer_of(&self, socket: Socket) -> Option<SocketAddr>;

    /// The slots of all live connections, closing ones included; a slot at or above this was never used.
    fn slots(&self) -> u32;

    /// Live connections, closing ones included.
    fn connections(&self) -> usize;

    /// Accepts again after [`Event::AcceptPaused`] or [`pause_accept`](Self::pause_accept).
    fn resume_accept(&mut self);

    /// Leaves new clients in the kernel's backlog.
    fn pause_accept(&mut self);

    /// Nobody begins to connect any more, as far as the kernel lets us say so; who has begun is still accepted. False where others listen on the same socket,
    /// who will take whoever comes: then nothing was done, and nobody is lost if it is closed at once.
    fn shut_door(&mut self) -> bool;

    /// Closes the listener. Who waits in its backlog is accepted first, as far as descriptors suffice: they come as events of the next turns, and with the
    /// last of them [`is_listening`](Self::is_listening) turns false.
    fn stop_accept(&mut self);

    /// Whether there is a listener.
    fn is_listening(&self) -> bool;

    /// Accepts on another listener.
    ///
    /// # Panics
    /// While there is one.
    fn listen(&mut self, listener: Listener);

    /// Wakes another shard that sleeps in its turn.
    fn wake(&mut self, shard: ShardId);

    /// Takes nothing in and gives nothing out from now on.
    fn freeze(&mut self);

    /// Goes on, with what it owes first: until a connection's peer was given that, a send is in flight, and [`Event::Sent`] follows.
    fn thaw(&mut self);

    /// Whether it is frozen, and everything that it had begun has been told.
    fn is_still(&self) -> bool;

    /// A connection as another process may go on with it. None if it has ended, and while something of it is in flight.
    fn frozen(&self, conn: ConnKey) -> Option<Frozen>;

    /// Takes a connection of another process's driver in, while this one is frozen: its peer is owed `rest`.
    fn inherit(&mut self, socket: Socket, rest: Option<Rc<Gather>>) -> ConnKey;

    /// The listener, for another process to listen on too. None when there is none.
    ///
    /// # Errors
    /// As dup(2).
    fn share_listener(&self) -> io::Result<Option<OwnedFd>>;

    /// Bytes that its table of connections has allocated.
    fn table_bytes(&self) -> u64;

    /// How often a connection had to wait for receive buffers, so far.
    fn recv_starved(&self) -> u64;

    /// The name for logs and metrics: `uring` or `epoll`.
    fn name(&self) -> &'static str;
}
