//! One TCP connection in memory, with its client's end, its server's end and the server's operations on it.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::engine::kernel::Token;
use crate::engine::segment::Gather;
use crate::ids::ShardId;

/// How a client connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkOptions {
    /// Bytes that may wait on their way to the server before the client's writes stop.
    pub up_max: usize,
    /// Bytes that may wait on their way to the client before the server's sends wait.
    pub down_max: usize,
    /// The connection may break at any time.
    pub fragile: bool,
    /// The client takes everything at once and keeps nothing: for simulations of very many.
    pub sink: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { up_max: 64 << 10, down_max: 64 << 10, fragile: false, sink: false }
    }
}

/// A connection. Bytes go `up` to the server and `down` to the client.
pub(super) struct Link {
    pub(super) options: LinkOptions,
    pub(super) up: VecDeque<u8>,
    pub(super) down: VecDeque<u8>,
    /// The client has shut its side, and its kernel has said so (FIN).
    pub(super) client_fin: bool,
    /// The client holds no handle any more.
    pub(super) client_gone: bool,
    /// The server has shut its side, and its kernel has said so (FIN).
    pub(super) server_fin: bool,
    /// The server has closed its descriptor, or the listener with this one still in its backlog.
    pub(super) server_gone: bool,
    /// The connection is broken: both ends learn it.
    pub(super) reset: bool,
    /// What the server's next operation is told about that: the kernel tells it once.
    error: Option<i32>,
    /// The shard whose ring has the operations.
    pub(super) owner: Option<ShardId>,
    pub(super) recv: Option<Token>,
    pub(super) send: Option<(Token, Rc<Gather>)>,
    /// The last receive that there was, for a ghost of it.
    pub(super) last_recv: Option<Token>,
    /// It is in its owner's list of links that may have something to complete.
    pub(super) listed: bool,
}

impl Link {
    pub(super) fn new(options: LinkOptions) -> Self {
        Self {
            options,
            up: VecDeque::new(),
            down: VecDeque::new(),
            client_fin: false,
            client_gone: false,
            server_fin: false,
            server_gone: false,
            reset: false,
            error: None,
            owner: None,
            recv: None,
            send: None,
            last_recv: None,
            listed: false,
        }
    }

    /// Breaks the connection; `errno` is what the server's side is told.
    pub(super) fn break_off(&mut self, errno: i32) {
        if !std::mem::replace(&mut self.reset, true) {
            self.error = Some(errno);
        }
    }

    /// The client's kernel sends RST. After a FIN, Linux calls that a broken pipe.
    pub(super) fn reset_by_client(&mut self) {
        self.break_off(if self.client_fin { libc::EPIPE } else { libc::ECONNRESET });
    }

    /// The server's kernel closes it: with RST where bytes are unread (RFC 1122 section 4.2.2.13) or it was told so, else with FIN.
    pub(super) fn end_by_server(&mut self, reset: bool) {
        if reset || !self.up.is_empty() {
            self.reset = true;
        } else if !self.reset {
            self.server_fin = true;
        }
    }

    /// Whether the server's kernel holds no connection any more: it is broken, or both sides are shut.
    pub(super) fn is_over(&self) -> bool {
        self.reset || (self.client_fin && self.server_fin)
    }

    /// What a receive finds when all bytes are taken: the end, or the error while nobody has been told.
    pub(super) fn end_of_recv(&mut self) -> Result<(), i32> {
        if self.client_fin { Ok(()) } else { self.error.take().map_or(Ok(()), Err) }
    }

    /// What a send finds on a connection that is broken, or that the server has shut.
    pub(super) fn end_of_send(&mut self) -> i32 {
        self.error.take().unwrap_or(libc::EPIPE)
    }

    /// Whether a receive, if there is one, can complete.
    pub(super) fn can_recv(&self) -> bool {
        self.recv.is_some() && (self.reset || self.client_fin || !self.up.is_empty())
    }

    /// Whether a send, if there is one, can complete.
    pub(super) fn can_send(&self) -> bool {
        self.send.is_some() && (self.reset || self.server_fin || self.client_gone || self.down_room() > 0)
    }

    pub(super) fn down_room(&self) -> usize {
        if self.options.sink { usize::MAX } else { self.options.down_max.saturating_sub(self.down.len()) }
    }

    /// Takes up to `count` bytes of `data` in, as the kernel does with a send that it completes.
    pub(super) fn take_down(&mut self, data: &Gather, count: usize) {
        if self.options.sink || self.client_gone {
            return;
        }
        let mut left = count;
        for range in data.ranges() {
            let part = &range.as_slice()[..range.len().min(left)];
            self.down.extend(part);
            left -= part.len();
        }
    }
}
