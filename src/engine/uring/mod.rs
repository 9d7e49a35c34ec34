//! The io_uring driver: multishot accept and receive, one tracked send per connection, cancellation, starvation.
//!
//! Generic over [`Kernel`], so that the same code runs over the real ring and over a simulated one. A connection's slot is freed only when none
//! of its operations is in flight; a completion with an old generation gives its resources back and is otherwise ignored.

pub mod probe;
mod ring;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

pub use ring::{RingKernel, RingSize, build_ring};

use super::driver::{CloseHow, Driver, Event, Frozen, Wait};
use super::kernel::{Completion, Kernel, Kind, Op, Token};
use super::rest::Rests;
use super::segment::Gather;
use super::slab::Slab;
use super::sys::{Listener, Socket};
use crate::ids::{ConnKey, ShardId};

/// After this many accepts in a row that failed for no known reason, accepting pauses as if descriptors had run out.
const ACCEPT_FAILURES_MAX: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Recv {
    /// No receive is in flight.
    Idle,
    /// A multishot receive is in flight.
    Armed,
    /// It was asked to end; its last completion is still to come.
    Cancelling,
    /// It ended for want of buffers; it waits in the starved list.
    Starved,
}

struct Conn {
    socket: Socket,
    recv: Recv,
    /// Whether the gateway wants bytes.
    reading: bool,
    /// Whether the peer has shut its side: nothing more to read.
    peer_closed: bool,
    /// Whether the connection broke; reported once, and nothing after it.
    failed: bool,
    closing: Option<CloseHow>,
    in_flight: u8,
    /// Bytes of the send in flight.
    unsent: u32,
}

/// The driver over a ring.
pub struct UringDriver<K> {
    kernel: K,
    conns: Slab<Conn>,
    starved: VecDeque<ConnKey>,
    starved_total: u64,
    /// Taken down; to be reported at the end of the turn.
    closed: Vec<ConnKey>,
    /// Reported by the last turn. Their slots are free from the next one on, so that a connection adopted while the report is handled gets another.
    reported: Vec<ConnKey>,
    completions: Vec<Completion>,
    accepting: Accepting,
    listening: bool,
    accept_in_flight: bool,
    accept_failures: u32,
    frozen: bool,
    rests: Rests,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Accepting {
    On,
    Paused,
    Stopped,
}

impl<K: Kernel> UringDriver<K> {
    /// Starts accepting and listening for wake-ups on `kernel`.
    pub fn new(kernel: K) -> Self {
        let mut driver = Self::born(kernel, false);
        driver.arm_accept();
        driver
    }

    /// One that is frozen, and whose kernel has no listener yet. It listens for wake-ups.
    pub fn frozen(kernel: K) -> Self {
        Self::born(kernel, true)
    }

    fn born(kernel: K, frozen: bool) -> Self {
        let mut driver = Self {
            kernel,
            conns: Slab::default(),
            starved: VecDeque::new(),
            starved_total: 0,
            closed: Vec::new(),
            reported: Vec::new(),
            completions: Vec::new(),
            accepting: Accepting::On,
            listening: !frozen,
            accept_in_flight: false,
            accept_failures: 0,
            frozen,
            rests: Rests::default(),
        };
        driver.kernel.submit(Token::plain(Kind::WatchWake, 0), Op::WatchWake);
        driver
    }

    fn arm_accept(&mut self) {
        if self.accepting == Accepting::On && self.listening && !self.accept_in_flight && !self.frozen {
            self.accept_in_flight = true;
            self.kernel.submit(Token::plain(Kind::Accept, 0), Op::Accept);
        }
    }

    fn cancel_accept(&mut self) {
        if self.accept_in_flight {
            self.kernel.submit(Token::plain(Kind::Cancel, 0), Op::Cancel(Token::plain(Kind::Accept, 0)));
        }
    }

    fn arm_recv(&mut self, key: ConnKey) {
        let frozen = self.frozen;
        let Some(conn) = self.conns.get_mut(key).filter(|_| !frozen) else { return };
        if conn.recv == Recv::Idle && conn.reading && !conn.peer_closed && !conn.failed && conn.closing.is_none() {
            conn.recv = Recv::Armed;
            conn.in_flight += 1;
            self.kernel.submit(Token::conn(Kind::Recv, key), Op::Recv(conn.socket));
        }
    }

    fn cancel_recv(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && conn.recv == Recv::Armed
        {
            conn.recv = Recv::Cancelling;
            self.kernel.submit(Token::conn(Kind::Cancel, key), Op::Cancel(Token::conn(Kind::Recv, key)));
        }
    }

    /// Gives returned buffers to the kernel and lets as many starved connections read as there are buffers.
    fn feed_starved(&mut self) {
        let mut buffers = self.kernel.replenish();
        while buffers > 0
            && let Some(key) = self.starved.pop_front()
        {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if conn.recv == Recv::Starved {
                conn.recv = Recv::Idle;
                self.arm_recv(key);
                buffers -= 1;
            }
        }
    }

    fn complete(&mut self, completion: Completion, events: &mut Vec<Event>) {
        match completion.token.kind() {
            Some(Kind::Accept) => self.complete_accept(&completion, events),
            Some(Kind::Recv) => self.complete_recv(completion, events),
            Some(Kind::Send) => self.complete_send(completion, events),
            Some(Kind::Wake) => events.push(Event::Woken),
            Some(Kind::WatchWake) => {
                self.kernel.submit(Token::plain(Kind::WatchWake, 0), Op::WatchWake);
                events.push(Event::Woken);
            }
            Some(Kind::WakePeer) => {
                if completion.result.is_err() {
                    self.kernel.signal(ShardId(completion.token.key().slot as u16));
                }
            }
            Some(Kind::Cancel) | None => {}
        }
    }

    fn complete_accept(&mut self, completion: &Completion, events: &mut Vec<Event>) {
        self.accept_in_flight &= completion.more;
        match completion.result {
            Ok(fd) => {
                self.accept_failures = 0;
                events.push(Event::Accepted(Socket(fd as i32)));
            }
            Err(libc::ECANCELED) => {}
            Err(errno) => {
                self.accept_failures += 1;
                let exhausted = matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM);
                if (exhausted || self.accept_failures >= ACCEPT_FAILURES_MAX) && self.accepting == Accepting::On {
                    self.accept_failures = 0;
                    self.accepting = Accepting::Paused;
                    events.push(Event::AcceptPaused(io::Error::from_raw_os_error(errno)));
                }
            }
        }
        self.arm_accept();
    }

    /// Closes the listener as soon as no accept is in flight on it.
    fn finish_stop(&mut self, events: &mut Vec<Event>) {
        if self.accepting == Accepting::Stopped && self.listening && !self.accept_in_flight {
            self.listening = false;
            events.extend(self.kernel.close_listener().into_iter().map(Event::Accepted));
        }
    }

    fn complete_recv(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let key = completion.token.key();
        // A stale completion ends here; dropping it returns its buffer.
        let Some(conn) = self.conns.get_mut(key) else { return };
        debug_assert!(conn.in_flight > 0, "a connection is taken down only when nothing is in flight");
        if !completion.more {
            conn.in_flight -= 1;
            conn.recv = Recv::Idle;
        }
        if conn.closing.is_some() {
            self.finish_close(key);
            return;
        }
        if conn.failed {
            return;
        }
        match completion.result {
            Ok(0) => {
                conn.peer_closed = true;
                events.push(Event::PeerClosed(key));
            }
            Ok(_) => {
                let bytes = completion.received.expect("a receive that got bytes names their buffer");
                events.push(Event::Received(key, bytes));
            }
            Err(libc::ENOBUFS) => {
                conn.recv = Recv::Starved;
                self.starved_total += 1;
                self.starved.push_back(key);
            }
            Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            Err(errno) => {
                conn.failed = true;
                events.push(Event::Failed(key, io::Error::from_raw_os_error(errno)));
            }
        }
        self.arm_recv(key);
    }

    fn complete_send(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let key = completion.token.key();
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.in_flight -= 1;
        let data = completion.data.expect("a finished send gives its buffers back");
        if conn.closing.is_some() {
            conn.unsent = 0;
            self.finish_close(key);
            return;
        }
        match completion.result {
            Ok(sent) if (sent as usize) < data.len() => {
                let rest = if sent == 0 { data } else { Rc::new(data.rest(sent as usize)) };
                self.go_on_sending(key, rest);
            }
            Ok(_) => {
                conn.unsent = 0;
                match self.rests.next(key) {
                    Ok(piece) => self.go_on_sending(key, piece),
                    Err(behind) if behind.closes => self.close(key, CloseHow::Close),
                    Err(behind) => {
                        if behind.shut {
                            self.shut_write(key);
                        }
                        events.push(Event::Sent(key));
                    }
                }
            }
            // Cancelled: by a freeze, which may be over already.
            Err(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => self.go_on_sending(key, data),
            Err(errno) => {
                conn.unsent = 0;
                self.rests.forget(key);
                if !conn.failed {
                    conn.failed = true;
                    events.push(Event::Failed(key, io::Error::from_raw_os_error(errno)));
                }
            }
        }
    }

    fn go_on_sending(&mut self, key: ConnKey, data: Rc<Gather>) {
        if self.frozen {
            self.conns[key].unsent = 0;
            self.rests.push_front(key, data);
        } else {
            self.submit_send(key, data);
        }
    }

    fn submit_send(&mut self, key: ConnKey, data: Rc<Gather>) {
        let conn = &mut self.conns[key];
        conn.unsent = u32::try_from(data.len()).expect("a send is far below 4 GiB: limits.send_bytes_max and one message");
        conn.in_flight += 1;
        let socket = conn.socket;
        self.kernel.submit(Token::conn(Kind::Send, key), Op::Send(socket, data));
    }

    fn finish_close(&mut self, key: ConnKey) {
        let conn = &self.conns[key];
        if let Some(how) = conn.closing
            && conn.in_flight == 0
        {
            self.kernel.close(conn.socket, how);
            self.closed.push(key);
        }
    }
}

impl<K: Kernel> Driver for UringDriver<K> {
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        for key in self.reported.drain(..) {
            self.conns.remove(key);
        }
        self.feed_starved();
        let wait = if self.closed.is_empty() && !self.rests.is_due() { wait } else { Wait::No };
        self.kernel.enter(wait)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.kernel.enter(Wait::No)
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.kernel.reap(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion, events);
        }
        self.completions = completions;
        events.extend(self.rests.tell().map(Event::Sent));
        self.finish_stop(events);
        std::mem::swap(&mut self.reported, &mut self.closed);
        events.extend(self.reported.iter().map(|&key| Event::Closed(key)));
    }

    fn adopt(&mut self, socket: Socket) -> ConnKey {
        let key = self.conns.insert(Conn {
            socket,
            recv: Recv::Idle,
            reading: true,
            peer_closed: false,
            failed: false,
            closing: None,
            in_flight: 0,
            unsent: 0,
        });
        self.arm_recv(key);
        key
    }

    fn discard(&mut self, socket: Socket) {
        self.kernel.close(socket, CloseHow::Close);
    }

    fn send(&mut self, conn: ConnKey, data: Rc<Gather>) {
        let Some(state) = self.conns.get(conn) else { return };
        if state.closing.is_none() && !state.failed {
            assert!(self.unsent(conn) == 0, "one send per connection: {} bytes are in flight", self.unsent(conn));
            match self.frozen {
                true => self.rests.push(conn, data),
                false => self.submit_send(conn, data),
            }
        }
    }

    fn unsent(&self, conn: ConnKey) -> usize {
        self.conns.get(conn).map_or(0, |conn| conn.unsent as usize) + self.rests.untold(conn)
    }

    fn pause_recv(&mut self, conn: ConnKey) {
        if let Some(state) = self.conns.get_mut(conn) {
            state.reading = false;
            self.cancel_recv(conn);
        }
    }

    fn resume_recv(&mut self, conn: ConnKey) {
        if let Some(state) = self.conns.get_mut(conn) {
            state.reading = true;
            self.arm_recv(conn);
        }
    }

    fn shut_write(&mut self, conn: ConnKey) {
        if let Some(state) = self.conns.get(conn)
            && state.closing.is_none()
            && !self.rests.shut_behind(conn)
        {
            self.kernel.shut_write(state.socket);
        }
    }

    fn close(&mut self, conn: ConnKey, how: CloseHow) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let waits = self.frozen && !state.failed && how == CloseHow::Close;
        if state.closing.is_some() || (waits && self.rests.close_behind(conn)) {
            return;
        }
        self.rests.forget(conn);
        state.closing = Some(how);
        let sending = state.unsent > 0;
        self.cancel_recv(conn);
        if sending {
            self.kernel.submit(Token::conn(Kind::Cancel, conn), Op::Cancel(Token::conn(Kind::Send, conn)));
        }
        self.finish_close(conn);
    }

    fn peer_addr(&self, conn: ConnKey) -> Option<SocketAddr> {
        // Once it is closed, its number may be somebody else's.
        let open = |conn: &&Conn| conn.closing.is_none() || conn.in_flight > 0;
        self.conns.get(conn).filter(open).and_then(|conn| self.kernel.peer_addr(conn.socket))
    }

    fn peer_of(&self, socket: Socket) -> Option<SocketAddr> {
        self.kernel.peer_addr(socket)
    }

    fn slots(&self) -> u32 {
        self.conns.slots()
    }

    fn connections(&self) -> usize {
        self.conns.len() - self.reported.len()
    }

    fn resume_accept(&mut self) {
        if self.accepting == Accepting::Paused {
            self.accepting = Accepting::On;
            self.arm_accept();
        }
    }

    fn pause_accept(&mut self) {
        if self.accepting == Accepting::On {
            self.accepting = Accepting::Paused;
            self.cancel_accept();
        }
    }

    fn shut_door(&mut self) -> bool {
        self.kernel.shut_door()
    }

    fn stop_accept(&mut self) {
        if self.accepting == Accepting::Stopped {
            return;
        }
        self.accepting = Accepting::Stopped;
        self.cancel_accept();
    }

    fn is_listening(&self) -> bool {
        self.listening
    }

    fn listen(&mut self, listener: Listener) {
        assert!(!self.listening, "one listener at a time");
        self.kernel.open_listener(listener);
        self.listening = true;
        self.accepting = Accepting::On;
        self.accept_failures = 0;
        self.arm_accept();
    }

    fn wake(&mut self, shard: ShardId) {
        self.kernel.submit(Token::plain(Kind::WakePeer, u32::from(shard.0)), Op::WakePeer(shard));
    }

    fn freeze(&mut self) {
        self.frozen = true;
        self.cancel_accept();
        for slot in 0..self.conns.slots() {
            let Some((key, conn)) = self.conns.at(slot) else { continue };
            let sends = conn.unsent > 0 && conn.closing.is_none();
            self.cancel_recv(key);
            if sends {
                self.kernel.submit(Token::conn(Kind::Cancel, key), Op::Cancel(Token::conn(Kind::Send, key)));
            }
        }
    }

    fn thaw(&mut self) {
        self.frozen = false;
        self.arm_accept();
        for slot in 0..self.conns.slots() {
            if let Some((key, _)) = self.conns.at(slot) {
                self.arm_recv(key);
            }
        }
        for key in self.rests.thaw() {
            if self.conns.get(key).is_some_and(|conn| conn.unsent == 0)
                && let Ok(piece) = self.rests.next(key)
            {
                self.submit_send(key, piece);
            }
        }
    }

    fn is_still(&self) -> bool {
        let told = self.closed.is_empty() && self.reported.is_empty() && !self.rests.is_due();
        self.frozen && told && !self.accept_in_flight && self.conns.iter().all(|(_, conn)| conn.in_flight == 0)
    }

    fn frozen(&self, conn: ConnKey) -> Option<Frozen> {
        let state = self.conns.get(conn).filter(|conn| self.frozen && conn.in_flight == 0 && conn.closing.is_none() && !conn.failed)?;
        Some(self.rests.frozen(conn, state.socket))
    }

    fn inherit(&mut self, socket: Socket, rest: Option<Rc<Gather>>) -> ConnKey {
        assert!(self.frozen, "connections are inherited by a frozen driver");
        let key = self.adopt(socket);
        if let Some(rest) = rest {
            self.rests.push_told(key, rest);
        }
        key
    }

    fn share_listener(&self) -> io::Result<Option<OwnedFd>> {
        self.kernel.share_listener()
    }

    fn table_bytes(&self) -> u64 {
        self.conns.table_bytes()
    }

    fn recv_starved(&self) -> u64 {
        self.starved_total
    }

    fn name(&self) -> &'static str {
        "uring"
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::engine::driver_tests::bench::Loopback;
    use crate::engine::driver_tests::{self, driver_tests};
    use crate::engine::recv_pool::RecvPool;
    use crate::engine::sys::{ListenOptions, Listener, listen, local_addr};
    use crate::engine::wakers::Wakers;

    fn make(shard: ShardId, wakers: &Arc<Wakers>) -> (UringDriver<RingKernel>, SocketAddr) {
        let options = ListenOptions { backlog: 64, notsent_bytes: 16 * 1024, defer_seconds: 0, shared: false };
        let listener = listen("127.0.0.1:0".parse().expect("an address"), options).expect("listens");
        let address = local_addr(&listener).expect("an address");
        let ring = build_ring(RingSize { submissions: 64, completions: 256 }).expect("a ring");
        let kernel = RingKernel::new(ring, RecvPool::new(16, 1024), shard, Arc::clone(wakers), Some(Listener::own(listener)))
            .expect("a buffer ring");
        (UringDriver::new(kernel), address)
    }

    driver_tests!([Loopback::new(make)]);

    #[test]
    fn a_send_right_before_a_close_still_goes_out() {
        driver_tests::a_send_right_before_a_close_still_goes_out(&Loopback::new(make));
    }
}
