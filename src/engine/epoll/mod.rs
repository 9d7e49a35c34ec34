//! The epoll driver: the same events without io_uring, where that is blocked (Docker and containerd do by default).
//!
//! Level-triggered readiness, then the system calls one by one; nothing is batched or shared that the kernel does not share by itself. It costs a system call
//! per receive and per send and is kept plain: who wants speed runs the ring.
//!
//! - **Sends** are tried at the turn after the request; what the socket does not take waits for EPOLLOUT with its progress.
//! - **Reads** take at most `READS_MAX` buffers per connection and turn. Without a free buffer the connection is starved: EPOLLIN is disarmed until
//!   buffers have come back.
//! - **EPOLLHUP and EPOLLERR cannot be masked.** A connection that has shown one of them is in the epoll set only while there is a read or a send to try, which
//!   consumes the reason; otherwise it would be reported again and again.
//! - **A closed slot** is given out again only after the turn that delivered [`Event::Closed`], so that a caller's table by slot is never overtaken.
//!
//! Invariants:
//! 1. A descriptor in `Conn` is open until `finish_closes` (or the driver's drop) closes it; no request or event reaches it after that.
//! 2. A buffer id in `free` is with this driver alone (invariant 1 of [`recv_pool`](super::recv_pool)).
//! 3. Vectors passed to sendmsg point into a [`Gather`] that the connection holds for the length of the call.

mod calls;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll_event, iovec};

use self::calls::{EpollSet, recv, send_rest, take_error};
use super::driver::{CloseHow, Driver, Event, Frozen, Wait};
use super::recv_pool::RecvPool;
use super::rest::Rests;
use super::segment::Gather;
use super::slab::Slab;
use super::sys::{self, Listener, OpenListener, Socket};
use super::wakers::Wakers;
use crate::ids::{ConnKey, ShardId};

/// Buffers that one connection may fill in one turn.
const READS_MAX: usize = 8;
/// Ready descriptors that one turn takes up; the rest is ready still at the next.
const READY_MAX: usize = 512;

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// What is watched whether asked for or not; naming it makes "in the set, waiting for nothing" differ from "not in the set".
const TROUBLE: u32 = (EPOLLERR | EPOLLHUP) as u32;
const READABLE: u32 = (EPOLLIN | EPOLLRDHUP) as u32;
const WRITABLE: u32 = EPOLLOUT as u32;

/// A send that the kernel does not have all of yet.
struct Sending {
    data: Rc<Gather>,
    done: usize,
    /// Whether the socket was full, so that EPOLLOUT says when to go on.
    blocked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// The peer has shut its side.
    PeerClosed,
    /// It broke, and this was said.
    Failed,
    /// [`Driver::close`] was called.
    Closing(CloseHow),
    /// [`Event::Closed`] was said; the slot is free after this turn.
    Closed,
}

struct Conn {
    socket: Socket,
    state: State,
    /// Whether the gateway wants bytes.
    wanted: bool,
    /// Whether it waits in the starved list.
    starved: bool,
    /// Whether EPOLLHUP or EPOLLERR was seen.
    trouble: bool,
    /// What the epoll set has for it; 0 when it is not in the set.
    interest: u32,
    send: Option<Sending>,
}

impl Conn {
    fn new(socket: Socket) -> Self {
        Self { socket, state: State::Open, wanted: true, starved: false, trouble: false, interest: 0, send: None }
    }

    /// Whether requests for it still mean something.
    fn is_usable(&self) -> bool {
        matches!(self.state, State::Open | State::PeerClosed)
    }

    fn reads(&self) -> bool {
        self.state == State::Open && self.wanted && !self.starved
    }

    fn interest_due(&self, frozen: bool) -> u32 {
        if frozen || !self.is_usable() {
            return 0;
        }
        let reading = if self.reads() { READABLE } else { 0 };
        let sending = if self.send.as_ref().is_some_and(|send| send.blocked) { WRITABLE } else { 0 };
        match reading | sending {
            0 if self.trouble => 0,
            active => active | TROUBLE,
        }
    }
}

/// The driver over epoll.
pub struct EpollDriver {
    shard: ShardId,
    set: EpollSet,
    ready: Box<[epoll_event; READY_MAX]>,
    /// How many of `ready` the wait of this turn has filled.
    ready_count: usize,
    /// What happened before the wait of this turn.
    told: Vec<Event>,
    listener: Option<OpenListener>,
    /// Whether clients are to be accepted, and whether the set has the listener's readiness reported.
    accepts: bool,
    accept_armed: bool,
    /// The listener is to be closed.
    stopping: bool,
    accepts_per_turn: usize,
    wakers: Arc<Wakers>,
    conns: Slab<Conn>,
    /// Sends that were asked for since the last turn.
    sends: Vec<ConnKey>,
    /// Connections that `close` was called for since the last turn.
    closing: Vec<ConnKey>,
    /// Connections whose end was told in the last turn; their slots are still taken.
    closed: Vec<ConnKey>,
    /// Connections that the epoll set refused; told at the next turn.
    refused: Vec<(ConnKey, io::Error)>,
    pool: Rc<RecvPool>,
    /// Buffers to read into, last used first.
    free: Vec<u16>,
    starved: VecDeque<ConnKey>,
    starved_turns: u64,
    /// The vector of the send at hand; empty between sends.
    iovecs: Vec<iovec>,
    frozen: bool,
    rests: Rests,
}

impl EpollDriver {
    /// Starts accepting on `listener` and listening for this shard's wake-ups. Without a listener it is frozen.
    ///
    /// # Errors
    /// As epoll_create1(2) and epoll_ctl(2).
    pub fn new(
        shard: ShardId,
        listener: Option<Listener>,
        wakers: Arc<Wakers>,
        pool: Rc<RecvPool>,
        accepts_per_turn: usize,
    ) -> io::Result<Self> {
        let set = EpollSet::new()?;
        let listener = listener.map(Listener::open);
        set.control(libc::EPOLL_CTL_ADD, wakers.eventfd(shard), EPOLLIN as u32, WAKE)?;
        if let Some(listener) = &listener {
            set.control(libc::EPOLL_CTL_ADD, listener.fd(), EPOLLIN as u32, LISTENER)?;
        }
        let buffers = u16::try_from(pool.buffers()).expect("a pool has at most 32,768 buffers");
        Ok(Self {
            shard,
            set,
            ready: Box::new([epoll_event { events: 0, u64: 0 }; READY_MAX]),
            ready_count: 0,
            told: Vec::new(),
            accepts: true,
            accept_armed: listener.is_some(),
            frozen: listener.is_none(),
            listener,
            stopping: false,
            accepts_per_turn,
            wakers,
            conns: Slab::default(),
            sends: Vec::new(),
            closing: Vec::new(),
            closed: Vec::new(),
            refused: Vec::new(),
            free: (0..buffers).collect(),
            pool,
            starved: VecDeque::new(),
            starved_turns: 0,
            iovecs: Vec::with_capacity(Gather::RANGES_MAX),
            rests: Rests::default(),
        })
    }

    /// The connection, while requests for it still mean something.
    fn usable(&mut self, key: ConnKey) -> Option<&mut Conn> {
        self.conns.get_mut(key).filter(|conn| conn.is_usable())
    }

    /// Brings the epoll set in line with what the connection waits for.
    fn rearm(&mut self, key: ConnKey) {
        let frozen = self.frozen;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let due = conn.interest_due(frozen);
        let operation = match (conn.interest, due) {
            (old, new) if old == new => return,
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        match self.set.control(operation, conn.socket.0, due, data_of(key)) {
            Ok(()) => conn.interest = due,
            // ENOMEM, or ENOSPC at fs.epoll.max_user_watches: without readiness the connection is as good as broken.
            Err(error) => self.refused.push((key, error)),
        }
    }

    fn fail(&mut self, key: ConnKey, error: io::Error, events: &mut Vec<Event>) {
        let Some(conn) = self.usable(key) else { return };
        conn.state = State::Failed;
        conn.send = None;
        self.rests.forget(key);
        events.push(Event::Failed(key, error));
        self.rearm(key);
    }

    /// Frees the slots whose end the last turn told, and ends what was asked to end since.
    fn finish_closes(&mut self, events: &mut Vec<Event>) {
        for key in self.closed.drain(..) {
            self.conns.remove(key);
        }
        for key in self.closing.drain(..) {
            let conn = &mut self.conns[key];
            let State::Closing(how) = conn.state else { unreachable!("only `close` lists a connection here, once") };
            if conn.interest != 0 {
                // Closing alone is not enough where another process holds the socket too. A failure leaves nothing to do.
                let _ = self.set.control(libc::EPOLL_CTL_DEL, conn.socket.0, 0, 0);
            }
            if how == CloseHow::Reset {
                conn.socket.reset_on_close();
            }
            conn.socket.close();
            conn.state = State::Closed;
            events.push(Event::Closed(key));
            self.closed.push(key);
        }
    }

    /// Takes returned buffers back and lets as many starved connections read again as there are buffers.
    fn feed_starved(&mut self) {
        self.pool.take_returned(|id| self.free.push(id));
        let mut room = self.free.len();
        while room > 0
            && let Some(key) = self.starved.pop_front()
        {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.starved = false;
                room -= usize::from(conn.reads());
                self.rearm(key);
            }
        }
    }

    /// Gives the kernel as much as it takes of a connection's send.
    fn continue_send(&mut self, key: ConnKey, events: &mut Vec<Event>) {
        loop {
            let Some(conn) = self.conns.get_mut(key) else { return };
            let Some(send) = &mut conn.send else { return };
            match send_rest(conn.socket, &send.data, send.done, &mut self.iovecs) {
                Ok(count) => send.done += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return self.fail(key, error, events),
            }
            if send.done < send.data.len() {
                send.blocked = true;
                break;
            }
            conn.send = None;
            match self.rests.next(key) {
                Ok(data) => conn.send = Some(Sending { data, done: 0, blocked: false }),
                Err(behind) if behind.closes => return self.close(key, CloseHow::Close),
                Err(behind) => {
                    if behind.shut {
                        conn.socket.shut_write();
                    }
                    events.push(Event::Sent(key));
                    break;
                }
            }
        }
        self.rearm(key);
    }

    fn read(&mut self, key: ConnKey, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        for _ in 0..READS_MAX {
            let Some(id) = self.free.pop() else {
                conn.starved = true;
                self.starved.push_back(key);
                break;
            };
            let result = recv(conn.socket, &self.pool, id);
            if let Ok(count @ 1..) = result {
                // SAFETY: `id` was on the free list and is used for nothing else (invariant 2).
                let bytes = unsafe { self.pool.lend(id, count) };
                events.push(Event::Received(key, bytes));
                if count < self.pool.buffer_bytes() {
                    break;
                }
                continue;
            }
            self.free.push(id);
            match result {
                Ok(_) => {
                    conn.state = State::PeerClosed;
                    events.push(Event::PeerClosed(key));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return self.fail(key, error, events),
            }
            break;
        }
        self.rearm(key);
    }

    fn handle_ready(&mut self, key: ConnKey, ready: u32, events: &mut Vec<Event>) {
        let Some(conn) = self.usable(key) else { return };
        conn.trouble |= ready & TROUBLE != 0;
        if conn.reads() {
            if ready & (READABLE | TROUBLE) != 0 {
                self.read(key, events);
            }
        } else if ready & EPOLLERR as u32 != 0
            && !conn.starved
            && let Some(error) = take_error(conn.socket)
        {
            // No read would find it: the gateway does not want bytes, or has seen their end.
            return self.fail(key, error, events);
        }
        if ready & (WRITABLE | TROUBLE) != 0 {
            self.continue_send(key, events);
        }
        self.rearm(key);
    }

    fn accept(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.accepts_per_turn {
            let Some(listener) = &self.listener else { return };
            match sys::accept(listener.fd()) {
                Ok(socket) => events.push(Event::Accepted(socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sys::concerns_one_client(&error) => {}
                // EMFILE, ENFILE, ENOBUFS, ENOMEM; and what is not known, which would repeat at once.
                Err(error) => {
                    self.accepts = false;
                    self.arm_accept();
                    events.push(Event::AcceptPaused(error));
                    return;
                }
            }
        }
    }

    fn arm_accept(&mut self) {
        let on = self.accepts && !self.frozen;
        if let Some(listener) = &self.listener
            && self.accept_armed != on
        {
            let interest = if on { EPOLLIN as u32 } else { 0 };
            // The listener stays in the set, so changing its interest allocates nothing and cannot fail.
            let changed = self.set.control(libc::EPOLL_CTL_MOD, listener.fd(), interest, LISTENER);
            assert!(changed.is_ok(), "epoll_ctl on the listener: {changed:?}");
            self.accept_armed = on;
        }
    }
}

impl Driver for EpollDriver {
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.told);
        self.finish_closes(&mut events);
        for (key, error) in std::mem::take(&mut self.refused) {
            self.fail(key, error, &mut events);
        }
        self.feed_starved();
        if std::mem::take(&mut self.stopping)
            && let Some(listener) = self.listener.take()
        {
            // As with connections: another holder of the socket would keep it in the set.
            let _ = self.set.control(libc::EPOLL_CTL_DEL, listener.fd(), 0, 0);
            events.extend(listener.close().into_iter().map(Event::Accepted));
        }
        self.told = events;
        self.submit()?;

        let quiet = self.told.is_empty() && self.refused.is_empty() && !self.rests.is_due();
        let wait = if quiet { wait } else { Wait::No };
        self.ready_count = self.set.wait(&mut self.ready[..], wait)?;
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.told);
        for index in 0..self.sends.len() {
            self.continue_send(self.sends[index], &mut events);
        }
        self.sends.clear();
        self.told = events;
        Ok(())
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.told);
        let starved = self.starved.len();
        for index in 0..std::mem::take(&mut self.ready_count) {
            let epoll_event { events: ready, u64: data } = self.ready[index];
            match data {
                LISTENER => self.accept(events),
                WAKE => {
                    sys::eventfd_clear(self.wakers.eventfd(self.shard));
                    events.push(Event::Woken);
                }
                _ => self.handle_ready(key_of(data), ready, events),
            }
        }
        events.extend(self.rests.tell().map(Event::Sent));
        self.starved_turns += u64::from(self.starved.len() > starved);
    }

    fn adopt(&mut self, socket: Socket) -> ConnKey {
        let key = self.conns.insert(Conn::new(socket));
        self.rearm(key);
        key
    }

    fn discard(&mut self, socket: Socket) {
        socket.close();
    }

    fn send(&mut self, conn: ConnKey, data: Rc<Gather>) {
        let unsent = self.unsent(conn);
        let frozen = self.frozen;
        let Some(state) = self.usable(conn) else { return };
        assert!(unsent == 0, "one send per connection: {unsent} bytes are in flight");
        if frozen {
            return self.rests.push(conn, data);
        }
        state.send = Some(Sending { data, done: 0, blocked: false });
        self.sends.push(conn);
    }

    fn unsent(&self, conn: ConnKey) -> usize {
        let in_flight = self.conns.get(conn).and_then(|conn| conn.send.as_ref());
        in_flight.map_or(0, |send| send.data.len() - send.done) + self.rests.untold(conn)
    }

    fn pause_recv(&mut self, conn: ConnKey) {
        if let Some(state) = self.usable(conn) {
            state.wanted = false;
            self.rearm(conn);
        }
    }

    fn resume_recv(&mut self, conn: ConnKey) {
        if let Some(state) = self.usable(conn) {
            state.wanted = true;
            self.rearm(conn);
        }
    }

    fn shut_write(&mut self, conn: ConnKey) {
        if let Some(state) = self.usable(conn) {
            let socket = state.socket;
            if !self.rests.shut_behind(conn) {
                socket.shut_write();
            }
        }
    }

    fn close(&mut self, conn: ConnKey, how: CloseHow) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let waits = self.frozen && state.is_usable() && how == CloseHow::Close && self.rests.close_behind(conn);
        if !matches!(state.state, State::Closing(_) | State::Closed) && !waits {
            self.rests.forget(conn);
            state.state = State::Closing(how);
            state.send = None;
            self.closing.push(conn);
        }
    }

    fn peer_of(&self, socket: Socket) -> Option<SocketAddr> {
        socket.peer_addr()
    }

    fn peer_addr(&self, conn: ConnKey) -> Option<SocketAddr> {
        self.conns.get(conn).filter(|conn| conn.state != State::Closed).and_then(|conn| conn.socket.peer_addr())
    }

    fn slots(&self) -> u32 {
        self.conns.slots()
    }

    fn connections(&self) -> usize {
        self.conns.len() - self.closed.len()
    }

    fn resume_accept(&mut self) {
        self.accepts = true;
        self.arm_accept();
    }

    fn pause_accept(&mut self) {
        self.accepts = false;
        self.arm_accept();
    }

    fn shut_door(&mut self) -> bool {
        self.listener.as_ref().is_none_or(OpenListener::shut_door)
    }

    fn stop_accept(&mut self) {
        self.stopping = self.listener.is_some();
    }

    fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    fn listen(&mut self, listener: Listener) {
        assert!(self.listener.is_none(), "one listener at a time");
        let listener = listener.open();
        self.accepts = true;
        let interest = if self.frozen { 0 } else { EPOLLIN as u32 };
        let added = self.set.control(libc::EPOLL_CTL_ADD, listener.fd(), interest, LISTENER);
        self.accept_armed = added.is_ok() && !self.frozen;
        self.listener = Some(listener);
        if let Err(error) = added {
            self.accepts = false;
            self.told.push(Event::AcceptPaused(error));
        }
    }

    fn wake(&mut self, shard: ShardId) {
        self.wakers.signal(shard);
    }

    fn freeze(&mut self) {
        self.frozen = true;
        self.arm_accept();
        for slot in 0..self.conns.slots() {
            let Some((key, conn)) = self.conns.at(slot) else { continue };
            if let Some(Sending { data, done, .. }) = conn.send.take() {
                self.rests.push_front(key, if done == 0 { data } else { Rc::new(data.rest(done)) });
            }
            self.rearm(key);
        }
    }

    fn thaw(&mut self) {
        self.frozen = false;
        self.arm_accept();
        for key in self.rests.thaw() {
            if let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.send.is_none())
                && let Ok(data) = self.rests.next(key)
            {
                conn.send = Some(Sending { data, done: 0, blocked: false });
                self.sends.push(key);
            }
        }
        for slot in 0..self.conns.slots() {
            if let Some((key, _)) = self.conns.at(slot) {
                self.rearm(key);
            }
        }
    }

    fn is_still(&self) -> bool {
        let nothing_told = self.told.is_empty() && self.refused.is_empty() && !self.rests.is_due();
        self.frozen && nothing_told && self.closing.is_empty() && self.closed.is_empty()
    }

    fn frozen(&self, conn: ConnKey) -> Option<Frozen> {
        let state = self.conns.get(conn).filter(|conn| self.frozen && conn.is_usable())?;
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
        self.listener.as_ref().map(OpenListener::share).transpose()
    }

    fn table_bytes(&self) -> u64 {
        self.conns.table_bytes()
    }

    fn recv_starved(&self) -> u64 {
        self.starved_turns
    }

    fn name(&self) -> &'static str {
        "epoll"
    }
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        for slot in 0..self.conns.slots() {
            if let Some((_, conn)) = self.conns.at(slot)
                && conn.state != State::Closed
            {
                conn.socket.close();
            }
        }
    }
}

fn data_of(key: ConnKey) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.slot)
}

fn key_of(data: u64) -> ConnKey {
    ConnKey { slot: data as u32, generation: (data >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::driver_tests::bench::{Bench, Client, Loopback, bytes};
    use super::super::driver_tests::driver_tests;
    use super::calls::timeout_ms;
    use super::*;

    fn make(shard: ShardId, wakers: &Arc<Wakers>) -> (EpollDriver, SocketAddr) {
        let options = sys::ListenOptions { backlog: 128, notsent_bytes: 16 * 1024, defer_seconds: 0, shared: false };
        let listener = sys::listen("127.0.0.1:0".parse().expect("address"), options).expect("listens");
        let address = sys::local_addr(&listener).expect("address");
        let listener = Some(sys::Listener::own(listener));
        (EpollDriver::new(shard, listener, Arc::clone(wakers), RecvPool::new(16, 1024), 8).expect("epoll"), address)
    }

    fn setting() -> Loopback<EpollDriver> {
        Loopback::new(make)
    }

    driver_tests!([setting()]);

    /// Whether the kernel would end the next wait at once, for a reason that no turn takes away.
    fn spins(bench: &mut Bench<'_, Loopback<EpollDriver>>) -> bool {
        bench.settle();
        let mut ready = [epoll_event { events: 0, u64: 0 }; 8];
        bench.driver.set.wait(&mut ready, Wait::For(Duration::from_millis(20))).expect("waits") > 0
    }

    #[test]
    fn a_peer_that_resets_while_reading_is_paused_is_reported_once_without_spinning() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let (client, key) = bench.connect();
        bench.driver.pause_recv(key);
        bench.send(key, &bytes(1000));
        bench.until_sent(key);
        // It closes with bytes unread, which makes the kernel send RST.
        drop(client);
        bench.until_failed(key);
        assert!(!spins(&mut bench));
        bench.expect_silence();
    }

    #[test]
    fn both_sides_shut_while_reading_is_paused_waits_quietly_and_reads_on_later() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let (mut client, key) = bench.connect();
        bench.driver.pause_recv(key);
        bench.driver.shut_write(key);
        bench.client_write(&mut client, b"last words");
        client.shut_write();
        assert!(!spins(&mut bench));
        bench.expect_silence();
        bench.driver.resume_recv(key);
        assert_eq!(bench.read_to_end(key), b"last words");
        assert!(!spins(&mut bench));
    }

    #[test]
    fn a_starved_connection_does_not_spin() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let (mut client, key) = bench.connect();
        bench.client_write(&mut client, &bytes(64 * 1024));
        assert!(!spins(&mut bench));
        assert!(bench.driver.recv_starved() > 0);
        assert_eq!(bench.driver.unsent(key), 0);
    }

    #[test]
    fn wake_ups_reach_the_other_shard_and_are_told_once() {
        let setting = setting();
        let (mut left, mut right) = (Bench::new(&setting), Bench::of_shard(&setting, ShardId(1)));
        left.driver.wake(ShardId(1));
        left.driver.wake(ShardId(1));
        right.turn_until("wake-up", |right| (right.woken > 0).then_some(()));
        right.expect_silence();
        assert_eq!(right.woken, 1);
        left.expect_silence();
    }

    #[test]
    fn a_slot_is_not_given_out_in_the_turn_that_tells_its_end() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let (_client, key) = bench.connect();
        bench.driver.close(key, CloseHow::Close);
        bench.until_closed(key);
        let (_a, b) = std::os::unix::net::UnixStream::pair().expect("pair");
        let early = bench.driver.adopt(Socket(std::os::fd::IntoRawFd::into_raw_fd(b)));
        assert_ne!(early.slot, key.slot);
        bench.turn();
        let (_client, late) = bench.connect();
        assert_eq!(late.slot, key.slot);
        assert_ne!(late.generation, key.generation);
    }

    #[test]
    #[should_panic(expected = "one send per connection: 5 bytes are in flight")]
    fn a_second_send_before_the_first_is_sent_is_a_mistake() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let (_client, key) = bench.connect();
        bench.send(key, b"first");
        bench.send(key, b"second");
    }

    #[test]
    fn a_descriptor_that_epoll_refuses_fails_its_connection() {
        let setting = setting();
        let mut bench = Bench::new(&setting);
        let key = bench.driver.adopt(Socket(-1));
        bench.until_failed(key);
        bench.driver.close(key, CloseHow::Close);
        bench.until_closed(key);
    }

    #[test]
    fn waits_round_up_to_whole_milliseconds() {
        let table = [
            (Wait::No, 0),
            (Wait::Forever, -1),
            (Wait::For(Duration::ZERO), 0),
            (Wait::For(Duration::from_nanos(1)), 1),
            (Wait::For(Duration::from_millis(5)), 5),
            (Wait::For(Duration::MAX), i32::MAX),
        ];
        table.into_iter().for_each(|(wait, expect)| assert_eq!(timeout_ms(wait), expect, "{wait:?}"));
    }
}
