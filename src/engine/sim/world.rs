//! The world of a simulation: its time, its connections, and the part of the kernel that serves each shard.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::chaos::Chaos;
use super::choices::Choices;
use super::link::{Link, LinkOptions};
use super::ring::{Deed, Later, NO_LINK, Ring, SimRingSize};
use crate::engine::driver::{CloseHow, Wait};
use crate::engine::kernel::{Completion, Kind, Op, Token};
use crate::engine::recv_pool::{Lent, RecvPool};
use crate::engine::sys::Socket;
use crate::ids::ShardId;
use crate::time::Time;

/// What receive buffers are filled with while nobody may read them.
const POISON: u8 = 0xa5;
/// Descriptors begin after the standard streams.
const FIRST_FD: i32 = 3;
/// How late something late is, at most.
const LATE: Duration = Duration::from_millis(2);

/// A client's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkId(pub(super) u32);

impl LinkId {
    /// The client's address, another for each connection that there is.
    pub fn address(self) -> SocketAddr {
        let [_, high, middle, low] = self.0.to_be_bytes();
        (Ipv4Addr::new(127, high, middle, low), 1024).into()
    }
}

/// Everything outside of the shards.
pub struct World {
    /// The present. Moves only when it is moved.
    pub now: Time,
    /// Where every decision comes from.
    pub choices: Choices,
    /// The faults that happen now.
    pub chaos: Chaos,
    /// Descriptors that the process may have at once; more are refused with EMFILE.
    pub fds_max: usize,
    /// Wake-ups that were sent from ring to ring or by eventfd.
    pub wakes: u64,
    links: Vec<Option<Link>>,
    free_links: Vec<u32>,
    fds: Vec<u32>,
    free_fds: BinaryHeap<Reverse<u32>>,
    rings: Vec<Ring>,
    digest: u64,
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(choices: Choices, chaos: Chaos) -> Self {
        Self {
            now: Time::from_millis(1000),
            choices,
            chaos,
            fds_max: usize::MAX,
            wakes: 0,
            links: Vec::new(),
            free_links: Vec::new(),
            fds: Vec::new(),
            free_fds: BinaryHeap::new(),
            rings: Vec::new(),
            digest: 0,
        }
    }

    /// Adds the kernel's part for one more shard: a listening socket and a ring with the buffers of `pool`.
    pub fn add_ring(&mut self, size: SimRingSize, pool: Rc<RecvPool>) -> ShardId {
        self.rings.push(Ring::new(size, pool));
        ShardId((self.rings.len() - 1) as u16)
    }

    /// Another process takes a shard's place, with a ring of its own. It has the listening socket, which it has yet to open here, and connections.
    ///
    /// # Panics
    /// If anything is in flight on the ring of before.
    pub fn renew_ring(&mut self, shard: ShardId, size: SimRingSize, pool: Rc<RecvPool>) {
        let ring = &mut self.rings[shard.index()];
        assert!(ring.accept.is_none(), "shard {shard} accepts although it is frozen");
        let mut next = Ring::new(size, pool);
        next.backlog = std::mem::take(&mut ring.backlog);
        next.listening = false;
        *ring = next;
        for link in self.links.iter_mut().flatten().filter(|link| link.owner == Some(shard)) {
            assert!(link.recv.is_none() && link.send.is_none(), "shard {shard} reads or sends although it is frozen");
            (link.owner, link.last_recv, link.listed) = (None, None, false);
        }
    }

    /// A process ends that has passed these descriptors on: its others are closed.
    pub fn close_others(&mut self, passed: &[Socket]) {
        let passed: HashSet<i32> = passed.iter().map(|socket| socket.0).collect();
        let open = |(index, link): (usize, &u32)| (*link != NO_LINK).then_some(Socket(index as i32 + FIRST_FD));
        let others: Vec<Socket> = self.fds.iter().enumerate().filter_map(open).filter(|socket| !passed.contains(&socket.0)).collect();
        others.into_iter().for_each(|socket| self.close(socket, CloseHow::Close));
    }

    /// Makes room for so many connections, which each shard may have, so that none is made while a measurement is under way.
    pub fn reserve(&mut self, connections: usize) {
        self.links.reserve(connections);
        self.fds.reserve(connections);
        for ring in &mut self.rings {
            ring.by_slot.reserve(connections);
            ring.backlog.reserve(connections);
        }
    }

    // ---- clients ------------------------------------------------------------------------------------------------------------------

    /// Connects to the listener of `shard`.
    ///
    /// # Errors
    /// ECONNREFUSED when that has closed, or is about to.
    pub fn connect(&mut self, shard: ShardId, options: LinkOptions) -> io::Result<LinkId> {
        let ring = &mut self.rings[shard.index()];
        if !ring.listening || ring.door_shut {
            return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        }
        let link = self.free_links.pop().unwrap_or_else(|| {
            self.links.push(None);
            (self.links.len() - 1) as u32
        });
        self.links[link as usize] = Some(Link::new(options));
        ring.backlog.push_back(link);
        Ok(LinkId(link))
    }

    /// Reads what has come down.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has, ECONNRESET after the connection broke. Zero bytes are the end of the stream.
    pub fn client_read(&mut self, id: LinkId, buffer: &mut [u8]) -> io::Result<usize> {
        let link = self.links[id.0 as usize].as_mut().expect("a client reads before it closes");
        let count = link.down.len().min(buffer.len());
        for byte in &mut buffer[..count] {
            *byte = link.down.pop_front().expect("counted above");
        }
        if count == 0 && !buffer.is_empty() {
            // Who has seen the end learns of a reset behind it only by writing.
            if link.server_fin {
                return Ok(0);
            }
            return Err(if link.reset { io::ErrorKind::ConnectionReset } else { io::ErrorKind::WouldBlock }.into());
        }
        self.list(id.0);
        Ok(count)
    }

    /// Sends bytes up; how many were taken.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, EPIPE after this side was shut, ECONNRESET after the connection broke, EPIPE if the server had shut its side before.
    /// What is written first to a connection that the server has closed is taken, and answered with a reset.
    pub fn client_write(&mut self, id: LinkId, bytes: &[u8]) -> io::Result<usize> {
        let link = self.links[id.0 as usize].as_mut().expect("a client writes before it closes");
        if link.client_fin {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if link.reset {
            return Err(if link.server_fin { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset }.into());
        }
        let count = bytes.len().min(link.options.up_max.saturating_sub(link.up.len()));
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if link.server_gone {
            link.reset |= count > 0;
            return Ok(count);
        }
        link.up.extend(&bytes[..count]);
        self.list(id.0);
        Ok(count)
    }

    /// Bytes that wait to be read by the client.
    pub fn readable(&self, id: LinkId) -> usize {
        self.links[id.0 as usize].as_ref().map_or(0, |link| link.down.len())
    }

    /// Bytes that the client's next write can take.
    pub fn writable(&self, id: LinkId) -> usize {
        self.links[id.0 as usize].as_ref().map_or(0, |link| link.options.up_max.saturating_sub(link.up.len()))
    }

    /// Shuts the client's side: the server reads to the end.
    pub fn client_shut(&mut self, id: LinkId) {
        if let Some(link) = &mut self.links[id.0 as usize] {
            link.client_fin |= !link.reset;
            self.list(id.0);
        }
    }

    /// Breaks the connection from the client's side. What was sent before may be lost.
    pub fn client_reset(&mut self, id: LinkId) {
        let lost = self.overtakes();
        if let Some(link) = &mut self.links[id.0 as usize] {
            link.reset_by_client();
            if lost {
                link.up.clear();
            }
            self.list(id.0);
        }
    }

    /// Gives the client's end up. Bytes that it has not read make it a reset (RFC 1122 section 4.2.2.13).
    pub fn client_close(&mut self, id: LinkId) {
        let Some(link) = &mut self.links[id.0 as usize] else { return };
        link.client_gone = true;
        if !link.down.is_empty() {
            link.reset_by_client();
            link.down.clear();
        } else if !link.reset {
            link.client_fin = true;
        }
        if link.server_gone {
            self.free_link(id.0);
        } else {
            self.list(id.0);
        }
    }

    /// Whether a reset arrives before bytes that were sent before it. Not in calm weather: the loopback device never does that.
    fn overtakes(&mut self) -> bool {
        self.chaos != Chaos::CALM && self.choices.chance(500)
    }

    fn free_link(&mut self, link: u32) {
        self.links[link as usize] = None;
        self.free_links.push(link);
    }

    /// Notes that something may complete on a link.
    fn list(&mut self, id: u32) {
        let Some(link) = self.links[id as usize].as_mut() else { return };
        if !link.listed
            && (link.can_recv() || link.can_send())
            && let Some(owner) = link.owner
        {
            link.listed = true;
            self.rings[owner.index()].ready.push(id);
        }
    }

    // ---- the scheduler's view ------------------------------------------------------------------------------------------------------

    /// When `shard`, which waits in its kernel, has to be woken: none while nothing is there for it.
    pub fn due(&self, shard: ShardId) -> Option<Time> {
        self.rings[shard.index()].due()
    }

    /// When the kernel itself does something next. Now, when it could at once.
    pub fn next_deed(&self) -> Option<Time> {
        let busy = self.rings.iter().any(|ring| self.is_busy(ring));
        let now = busy.then_some(self.now);
        self.rings.iter().filter_map(Ring::next_deed).chain(now).min()
    }

    fn is_busy(&self, ring: &Ring) -> bool {
        !ring.ready.is_empty() || (ring.accept.is_some() && !ring.backlog.is_empty()) || (ring.watch.is_some() && ring.signalled)
    }

    /// Lets the kernel work for every shard.
    pub fn stir(&mut self) {
        for shard in 0..self.rings.len() {
            self.progress(shard);
        }
    }

    /// A digest over all completions that were taken out, in their order.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// What a kernel still holds for one shard after everybody has left; empty when that is as it should be.
    pub fn leftovers(&self, shard: ShardId) -> String {
        let ring = &self.rings[shard.index()];
        let mut found = String::new();
        let mut note = |what: &str, count: usize| {
            if count > 0 {
                found += &format!("{count} {what}; ");
            }
        };
        note("receive buffers lent out", ring.pool.lent());
        note("unread completions", ring.unreaped());
        let owned = |link: &&Link| link.owner == Some(shard);
        let links = || self.links.iter().flatten().filter(owned);
        note("receives in flight", links().filter(|link| link.recv.is_some()).count());
        note("sends in flight", links().filter(|link| link.send.is_some()).count());
        note("sockets open", links().filter(|link| !link.server_gone).count());
        found
    }

    // ---- one shard's kernel --------------------------------------------------------------------------------------------------------

    pub(super) fn submit(&mut self, shard: ShardId, token: Token, op: Op) {
        self.rings[shard.index()].queue.push((token, op));
    }

    pub(super) fn enter(&mut self, shard: ShardId, wait: Wait) {
        let index = shard.index();
        let mut queue = std::mem::take(&mut self.rings[index].queue);
        for (token, op) in queue.drain(..) {
            self.begin(shard, token, op);
        }
        self.rings[index].queue = queue;
        self.progress(index);
        let now = self.now;
        let ring = &mut self.rings[index];
        ring.flush_overflow();
        ring.enter(wait, now);
    }

    pub(super) fn reap(&mut self, shard: ShardId, completions: &mut Vec<Completion>) {
        let ring = &mut self.rings[shard.index()];
        ring.entered = None;
        ring.turns += 1;
        let before = completions.len();
        ring.reap(completions);
        for completion in &completions[before..] {
            self.digest = mixed(self.digest ^ u64::from(shard.0), completion);
        }
    }

    pub(super) fn replenish(&mut self, shard: ShardId) -> usize {
        let ring = &mut self.rings[shard.index()];
        let (pool, posted) = (&ring.pool, &mut ring.posted);
        pool.take_returned(|id| {
            poison(pool, id);
            posted.push_back(id);
        });
        posted.len()
    }

    fn begin(&mut self, shard: ShardId, token: Token, op: Op) {
        match op {
            Op::Accept => {
                let ring = &mut self.rings[shard.index()];
                assert!(ring.accept.is_none() && ring.listening, "shard {shard}: one accept at a time, on an open listener");
                ring.accept = Some(token);
                self.accept(shard.index());
            }
            Op::WatchWake => {
                let ring = &mut self.rings[shard.index()];
                assert!(ring.watch.is_none(), "shard {shard}: one read of the eventfd at a time");
                ring.watch = Some(token);
            }
            Op::Recv(socket) => {
                let id = self.operate(shard, token, socket);
                let link = self.links[id as usize].as_mut().expect("found above");
                assert!(link.recv.is_none(), "two receives in flight on fd {}", socket.0);
                link.recv = Some(token);
                link.last_recv = Some(token);
                self.list(id);
            }
            Op::Send(socket, data) => {
                let id = self.operate(shard, token, socket);
                let link = self.links[id as usize].as_mut().expect("found above");
                assert!(link.send.is_none(), "two sends in flight on fd {}: their bytes could swap", socket.0);
                link.send = Some((token, data));
                // It is tried while it is handed over, before what was queued behind it: a cancellation finds it only if it has to wait.
                if !self.choices.chance(self.chaos.defer) {
                    self.send(shard.index(), id);
                }
                self.list(id);
            }
            Op::Cancel(target) => {
                let late = self.choices.chance(self.chaos.late_cancel);
                let twice = self.choices.chance(self.chaos.twice_cancel);
                let deed = Deed::Cancel { token, target };
                if late {
                    self.later(shard, deed);
                } else {
                    self.cancel(shard.index(), token, target);
                }
                if twice {
                    self.later(shard, deed);
                }
            }
            Op::WakePeer(target) => {
                if self.choices.chance(self.chaos.wake_fails) {
                    let (choices, chaos) = (&mut self.choices, &self.chaos);
                    let failed = done(token, Err(libc::EOVERFLOW), false);
                    self.rings[shard.index()].post(failed, choices, chaos);
                    return;
                }
                self.wakes += 1;
                if self.choices.chance(self.chaos.late_wake) {
                    self.later(target, Deed::Wake);
                } else {
                    self.act(target.index(), Deed::Wake);
                }
            }
        }
    }

    /// Something for `shard` happens a little later.
    fn later(&mut self, shard: ShardId, deed: Deed) {
        let nanos = self.choices.below(LATE.as_nanos() as usize) as u64;
        let at = self.now + Duration::from_nanos(nanos);
        self.rings[shard.index()].later.push(Later { at, turns: 0, deed });
    }

    /// Notes which slot operates on which link; the link of a descriptor.
    fn operate(&mut self, shard: ShardId, token: Token, socket: Socket) -> u32 {
        let id = self.link_of(socket);
        let key = token.key();
        let slot = key.slot as usize;
        let by_slot = &mut self.rings[shard.index()].by_slot;
        if slot >= by_slot.len() {
            by_slot.resize(slot + 1, NO_LINK);
        }
        let before = std::mem::replace(&mut by_slot[slot], id);
        if before != id
            && before != NO_LINK
            && let Some(link) = &self.links[before as usize]
        {
            let busy =
                |token: &Token| link.owner == Some(shard) && token.key().slot == key.slot && token.key().generation != key.generation;
            assert!(
                !link.recv.iter().chain(link.send.iter().map(|(token, _)| token)).any(busy),
                "slot {slot} of shard {shard} was given out again with an operation in flight"
            );
        }
        let link = self.links[id as usize].as_mut().expect("an open descriptor has a link");
        link.owner = Some(shard);
        id
    }

    fn link_of(&self, socket: Socket) -> u32 {
        let id = self.fds.get((socket.0 - FIRST_FD) as usize).copied().unwrap_or(NO_LINK);
        assert!(id != NO_LINK, "fd {} is not open", socket.0);
        id
    }

    /// Does what can be done for one shard, or leaves some of it for later.
    fn progress(&mut self, index: usize) {
        self.do_deeds(index);
        self.accept(index);
        self.watch(index);
        let ready = std::mem::take(&mut self.rings[index].ready);
        for id in ready {
            // Its place may have gone to another connection, even of another shard, since it was listed.
            let Some(link) = self.links[id as usize].as_mut().filter(|link| link.owner == Some(ShardId(index as u16))) else { continue };
            link.listed = false;
            let (recv_first, deferred) = (self.choices.chance(500), self.choices.chance(self.chaos.defer));
            if !deferred {
                if recv_first {
                    self.recv(index, id);
                    self.send(index, id);
                } else {
                    self.send(index, id);
                    self.recv(index, id);
                }
            }
            self.list(id);
        }
    }

    fn do_deeds(&mut self, index: usize) {
        let mut at = 0;
        while at < self.rings[index].later.len() {
            let ring = &mut self.rings[index];
            if ring.later[at].at <= self.now && ring.later[at].turns <= ring.turns {
                let later = ring.later.remove(at);
                self.act(index, later.deed);
            } else {
                at += 1;
            }
        }
    }

    fn act(&mut self, index: usize, deed: Deed) {
        match deed {
            Deed::Cancel { token, target } => self.cancel(index, token, target),
            Deed::Signal => self.rings[index].signalled = true,
            Deed::Wake => {
                let (choices, chaos) = (&mut self.choices, &self.chaos);
                self.rings[index].post(done(Token::plain(Kind::Wake, 0), Ok(0), false), choices, chaos);
            }
            Deed::Ghost(token) => {
                let ring = &mut self.rings[index];
                if let Some(id) = ring.posted.pop_front() {
                    let len = ring.pool.buffer_bytes().min(16);
                    // SAFETY: the buffer is among those posted to this kernel, and leaves them here.
                    let received = Some(unsafe { ring.pool.lend(id, len) });
                    let ghost = Completion { received, ..done(token, Ok(len as u32), false) };
                    ring.post(ghost, &mut self.choices, &self.chaos);
                }
            }
        }
    }

    fn cancel(&mut self, index: usize, token: Token, target: Token) {
        let Self { rings, links, choices, chaos, .. } = self;
        let ring = &mut rings[index];
        let cancelled = match target.kind() {
            Some(Kind::Accept) if ring.accept == Some(target) => {
                ring.accept = None;
                Some(done(target, Err(libc::ECANCELED), false))
            }
            Some(Kind::Recv | Kind::Send) => {
                let id = ring.by_slot.get(target.key().slot as usize).copied().unwrap_or(NO_LINK);
                let link = links.get_mut(id as usize).and_then(Option::as_mut);
                // Shards use the same tokens: an operation of another one's is none of ours.
                link.filter(|link| link.owner == Some(ShardId(index as u16))).and_then(|link| {
                    if link.recv.take_if(|recv| *recv == target).is_some() {
                        return Some(done(target, Err(libc::ECANCELED), false));
                    }
                    let (_, data) = link.send.take_if(|(send, _)| *send == target)?;
                    Some(Completion { data: Some(data), ..done(target, Err(libc::ECANCELED), false) })
                })
            }
            _ => None,
        };
        let result = if cancelled.is_some() { Ok(0) } else { Err(libc::ENOENT) };
        if let Some(cancelled) = cancelled {
            ring.post(cancelled, choices, chaos);
        }
        ring.post(done(token, result, false), choices, chaos);
    }

    fn accept(&mut self, index: usize) {
        while let Some(token) = self.rings[index].accept
            && !self.rings[index].backlog.is_empty()
            && !self.choices.chance(self.chaos.defer)
        {
            let open = self.fds.len() - self.free_fds.len();
            let errno = if open >= self.fds_max {
                Some(libc::EMFILE)
            } else if self.choices.chance(self.chaos.accept_fails) {
                Some(self.choices.of(&[libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ECONNABORTED]))
            } else {
                None
            };
            let result = match errno {
                Some(errno) => Err(errno),
                None => {
                    let link = self.rings[index].backlog.pop_front().expect("looked above");
                    Ok(self.open_fd(link))
                }
            };
            let (ring, choices, chaos) = (&mut self.rings[index], &mut self.choices, &self.chaos);
            // An error ends a multishot accept.
            let more = result.is_ok() && ring.keeps_more(choices, chaos);
            if !more {
                ring.accept = None;
            }
            ring.post(done(token, result, more), choices, chaos);
        }
    }

    /// The lowest free descriptor (open(2)), so that a stale one soon names somebody else.
    fn open_fd(&mut self, link: u32) -> u32 {
        let index = self.free_fds.pop().map_or(self.fds.len() as u32, |Reverse(index)| index);
        if index as usize == self.fds.len() {
            self.fds.push(link);
        } else {
            self.fds[index as usize] = link;
        }
        index + FIRST_FD as u32
    }

    fn watch(&mut self, index: usize) {
        let (ring, choices, chaos) = (&mut self.rings[index], &mut self.choices, &self.chaos);
        if let Some(token) = ring.watch
            && (ring.signalled || choices.chance(chaos.spurious_wake))
        {
            ring.signalled = false;
            ring.watch = None;
            ring.post(done(token, Ok(8), false), choices, chaos);
        }
    }

    fn recv(&mut self, index: usize, id: u32) {
        let Self { rings, links, choices, chaos, .. } = self;
        let ring = &mut rings[index];
        let Some(link) = links[id as usize].as_mut() else { return };
        while link.can_recv()
            && let Some(token) = link.recv
        {
            if link.options.fragile && choices.chance(chaos.break_link) {
                link.break_off(libc::ETIMEDOUT);
                link.up.clear();
            }
            let outcome = if choices.chance(chaos.interrupt) {
                Err(choices.of(&[libc::EINTR, libc::EAGAIN]))
            } else if !link.up.is_empty() {
                if ring.posted.is_empty() || choices.chance(chaos.starve) {
                    Err(libc::ENOBUFS)
                } else {
                    let buffer = ring.posted.pop_front().expect("looked above");
                    let most = ring.pool.buffer_bytes().min(link.up.len());
                    let count = if choices.chance(chaos.short_recv) { choices.within(1..=most) } else { most };
                    // SAFETY: the buffer is among those posted to this kernel, and leaves them here.
                    let mut lent = unsafe { ring.pool.lend(buffer, count) };
                    for (to, from) in lent.iter_mut().zip(link.up.drain(..count)) {
                        *to = from;
                    }
                    if link.options.sink && link.up.is_empty() {
                        link.up = VecDeque::new();
                    }
                    Ok(Some(lent))
                }
            } else {
                link.end_of_recv().map(|()| None)
            };
            let (result, received): (_, Option<Lent>) = match outcome {
                Ok(received) => (Ok(received.as_ref().map_or(0, |bytes| bytes.len() as u32)), received),
                Err(errno) => (Err(errno), None),
            };
            let more = received.is_some() && ring.keeps_more(choices, chaos);
            if !more {
                link.recv = None;
            }
            ring.post(Completion { received, ..done(token, result, more) }, choices, chaos);
        }
    }

    fn send(&mut self, index: usize, id: u32) {
        let Self { rings, links, choices, chaos, .. } = self;
        let Some(link) = links[id as usize].as_mut() else { return };
        if !link.can_send() {
            return;
        }
        if link.options.fragile && choices.chance(chaos.break_link) {
            link.break_off(libc::ETIMEDOUT);
        }
        let Some((token, data)) = link.send.take() else { return };
        let result = if choices.chance(chaos.interrupt) {
            Err(choices.of(&[libc::EINTR, libc::EAGAIN]))
        } else if link.reset || link.server_fin {
            Err(link.end_of_send())
        } else {
            let most = data.len().min(link.down_room());
            // Zero is a send that took nothing, which the driver must repeat.
            let count = if choices.chance(chaos.short_send) { choices.within(0..=most) } else { most };
            link.take_down(&data, count);
            // The peer is gone: its kernel takes what comes first, and answers with a reset.
            if link.client_gone && count > 0 {
                link.reset_by_client();
            }
            Ok(count as u32)
        };
        rings[index].post(Completion { data: Some(data), ..done(token, result, false) }, choices, chaos);
    }

    /// Signals the eventfd of a shard: another shard does, or any thread of the process.
    pub fn signal(&mut self, shard: ShardId) {
        self.wakes += 1;
        if self.choices.chance(self.chaos.late_wake) {
            self.later(shard, Deed::Signal);
        } else {
            self.act(shard.index(), Deed::Signal);
        }
    }

    pub(super) fn shut_door(&mut self, shard: ShardId) {
        self.rings[shard.index()].door_shut = true;
    }

    pub(super) fn open_listener(&mut self, shard: ShardId) {
        let ring = &mut self.rings[shard.index()];
        assert!(!ring.listening, "shard {shard}: a second listener");
        (ring.listening, ring.door_shut) = (true, false);
    }

    pub(super) fn close_listener(&mut self, shard: ShardId) -> Vec<Socket> {
        assert!(self.rings[shard.index()].accept.is_none(), "shard {shard}: the listener is closed under its accept");
        let mut accepted = Vec::new();
        while self.fds.len() - self.free_fds.len() < self.fds_max
            && let Some(link) = self.rings[shard.index()].backlog.pop_front()
        {
            accepted.push(Socket(self.open_fd(link) as i32));
        }
        let ring = &mut self.rings[shard.index()];
        ring.listening = false;
        for id in std::mem::take(&mut ring.backlog) {
            let link = self.links[id as usize].as_mut().expect("a link lives until both ends are gone");
            link.reset = true;
            link.server_gone = true;
            if link.client_gone {
                self.free_link(id);
            }
        }
        accepted
    }

    /// The process ends: whatever is still open is closed, and what waits in a backlog is reset.
    pub fn exit(&mut self) {
        let accepted: HashSet<u32> = self.fds.iter().copied().collect();
        for id in 0..self.links.len() as u32 {
            let Some(link) = &mut self.links[id as usize] else { continue };
            if !std::mem::replace(&mut link.server_gone, true) {
                link.end_by_server(!accepted.contains(&id));
            }
            (link.recv, link.send) = (None, None);
            if link.client_gone {
                self.free_link(id);
            }
        }
    }

    pub(super) fn shut_write(&mut self, socket: Socket) {
        let id = self.link_of(socket);
        let link = self.links[id as usize].as_mut().expect("an open descriptor has a link");
        link.server_fin |= !link.reset;
        self.list(id);
    }

    pub(super) fn peer_addr(&self, socket: Socket) -> Option<SocketAddr> {
        let id = self.link_of(socket);
        let link = self.links[id as usize].as_ref().expect("an open descriptor has a link");
        (!link.is_over()).then(|| LinkId(id).address())
    }

    pub(super) fn close(&mut self, socket: Socket, how: CloseHow) {
        let id = self.link_of(socket);
        let ghost = self.choices.chance(self.chaos.ghost);
        let lost = self.overtakes();
        let link = self.links[id as usize].as_mut().expect("an open descriptor has a link");
        assert!(link.recv.is_none() && link.send.is_none(), "fd {} is closed with an operation in flight", socket.0);
        link.end_by_server(how == CloseHow::Reset);
        if link.reset && lost {
            link.down.clear();
        }
        link.server_gone = true;
        let (owner, last_recv, client_gone) = (link.owner, link.last_recv, link.client_gone);
        if client_gone {
            self.free_link(id);
        }
        let index = (socket.0 - FIRST_FD) as u32;
        self.fds[index as usize] = NO_LINK;
        self.free_fds.push(Reverse(index));
        if let (true, Some(owner), Some(token)) = (ghost, owner, last_recv) {
            let ring = &mut self.rings[owner.index()];
            // The slot is free from the second turn on: the first one reports the close.
            ring.later.push(Later { at: self.now, turns: ring.turns + 2, deed: Deed::Ghost(token) });
        }
    }
}

fn done(token: Token, result: Result<u32, i32>, more: bool) -> Completion {
    Completion { token, result, more, received: None, data: None }
}

/// `digest` with a completion more.
fn mixed(digest: u64, completion: &Completion) -> u64 {
    let result = match completion.result {
        Ok(count) => u64::from(count),
        Err(errno) => u64::from(errno.unsigned_abs()) << 32,
    };
    [completion.token.0, result, completion.more.into()]
        .iter()
        .fold(digest, |digest, word| (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn poison(pool: &RecvPool, id: u16) {
    // SAFETY: the buffer was just given back: it is neither lent nor with this kernel, whose memory it is from now on.
    unsafe { pool.address(id).write_bytes(POISON, pool.buffer_bytes()) };
}
