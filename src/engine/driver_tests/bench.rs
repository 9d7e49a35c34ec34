//! What the rules for drivers run on: a driver under test, clients of either world, and the loopback device as one of these worlds.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::driver::{Driver, Event, Wait};
use crate::engine::segment::{Gather, SegmentMemory, SegmentWriter};
use crate::engine::sys::{ListenOptions, Listener, Socket, listen};
use crate::engine::wakers::Wakers;
use crate::ids::{ConnKey, ShardId};

/// How long one turn may wait.
pub(crate) const TURN: Duration = Duration::from_millis(10);

/// A client's end of a connection. Never blocks. Dropping it closes it.
pub(crate) trait Client: Read + Write {
    /// Says that nothing more will be written.
    fn shut_write(&mut self);

    /// Takes the connection down with RST.
    fn reset(self);

    /// What the server sees as its peer.
    fn address(&self) -> SocketAddr;
}

/// Where drivers and their clients meet.
pub(crate) trait Setting {
    type Driver: Driver;
    type Client: Client;
    /// What a client connects to.
    type Address;

    /// More bytes than wait between a driver and a client that does not read.
    const FLOOD: usize;
    /// Turns after which whatever was on its way has arrived.
    const SETTLED: usize;
    /// Turns that something may take.
    const TURNS_MAX: usize;

    /// A fresh driver for this shard of two, the lower one first. Its receive pool has 16 buffers of 1 KiB; it takes about 16 KiB for a client that does not read,
    /// besides what the network holds.
    fn driver(&self, shard: ShardId) -> (Self::Driver, Self::Address);

    /// Another listener at a driver's address, after the first was closed.
    fn listener(&self, address: &Self::Address) -> Listener;

    /// Connects to a driver; it need not have accepted yet.
    fn connect(&self, address: &Self::Address) -> io::Result<Self::Client>;

    /// One turn, of [`TURN`] at most.
    fn turn(&self, driver: &mut Self::Driver, address: &Self::Address, events: &mut Vec<Event>);

    /// A connection as another process has it: the same socket, under a descriptor of its own.
    fn passed(&self, socket: Socket) -> Socket {
        socket
    }

    /// Whether wake-ups come that nobody has sent.
    fn wakes_for_nothing(&self) -> bool {
        false
    }

    /// Whether a reset may overtake bytes that were sent before it.
    fn resets_overtake(&self) -> bool {
        false
    }
}

/// The loopback device, and drivers over the real kernel.
pub(crate) struct Loopback<D> {
    make: fn(ShardId, &Arc<Wakers>) -> (D, SocketAddr),
    wakers: Arc<Wakers>,
}

impl<D> Loopback<D> {
    /// Drivers that `make` makes, on 127.0.0.1 with `notsent_bytes` of 16 KiB.
    pub(crate) fn new(make: fn(ShardId, &Arc<Wakers>) -> (D, SocketAddr)) -> Self {
        Self { make, wakers: Wakers::new(2).expect("eventfds") }
    }
}

impl<D: Driver> Setting for Loopback<D> {
    type Driver = D;
    type Client = TcpStream;
    type Address = SocketAddr;

    /// Socket buffers on loopback grow to 10 MB.
    const FLOOD: usize = 16 << 20;
    const SETTLED: usize = 5;
    /// Ten seconds, for a loaded machine.
    const TURNS_MAX: usize = 1000;

    fn driver(&self, shard: ShardId) -> (D, SocketAddr) {
        (self.make)(shard, &self.wakers)
    }

    fn listener(&self, address: &SocketAddr) -> Listener {
        let options = ListenOptions { backlog: 64, notsent_bytes: 16 * 1024, defer_seconds: 0, shared: false };
        Listener::own(listen(*address, options).expect("the address is free again"))
    }

    fn connect(&self, address: &SocketAddr) -> io::Result<TcpStream> {
        let client = TcpStream::connect(address)?;
        client.set_nonblocking(true)?;
        Ok(client)
    }

    fn passed(&self, socket: Socket) -> Socket {
        // SAFETY: the driver that has the socket holds it open meanwhile.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.0) };
        Socket(descriptor.try_clone_to_owned().expect("a descriptor is free").into_raw_fd())
    }

    fn turn(&self, driver: &mut D, _: &SocketAddr, events: &mut Vec<Event>) {
        driver.turn(Wait::For(TURN), events).expect("the driver goes on");
    }
}

impl Client for TcpStream {
    fn shut_write(&mut self) {
        self.shutdown(Shutdown::Write).expect("shuts");
    }

    fn reset(self) {
        Socket(self.as_raw_fd()).reset_on_close();
    }

    fn address(&self) -> SocketAddr {
        self.local_addr().expect("a connected socket has an address")
    }
}

/// A driver under test and what it said that no test has asked about yet.
pub(crate) struct Bench<'a, S: Setting> {
    setting: &'a S,
    pub(crate) driver: S::Driver,
    pub(crate) address: S::Address,
    pub(crate) events: Vec<Event>,
    /// Wake-ups: a driver may tell them at any time, so they are kept apart from what comes in order.
    pub(crate) woken: usize,
}

impl<'a, S: Setting> Bench<'a, S> {
    pub(crate) fn new(setting: &'a S) -> Self {
        Self::of_shard(setting, ShardId(0))
    }

    pub(crate) fn of_shard(setting: &'a S, shard: ShardId) -> Self {
        let (driver, address) = setting.driver(shard);
        Self { setting, driver, address, events: Vec::new(), woken: 0 }
    }

    pub(crate) fn turn(&mut self) {
        let mut events = Vec::new();
        self.setting.turn(&mut self.driver, &self.address, &mut events);
        let told = events.len();
        events.retain(|event| !matches!(event, Event::Woken));
        self.woken += told - events.len();
        self.events.append(&mut events);
    }

    /// Some turns, so that whatever is on its way arrives.
    pub(crate) fn settle(&mut self) {
        (0..S::SETTLED).for_each(|_| self.turn());
    }

    /// Turns until `done` has something.
    pub(crate) fn turn_until<R>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        for _ in 0..S::TURNS_MAX {
            if let Some(result) = done(self) {
                return result;
            }
            self.turn();
        }
        panic!("no {what}; there is {:?}", self.events);
    }

    // ---- the driver's side --------------------------------------------------------------------------------------------------------

    /// Turns until there is an event that `pick` takes; others stay for later, in order.
    pub(crate) fn until<R>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<R>) -> R {
        self.turn_until(what, |bench| {
            let (index, picked) = bench.events.iter().enumerate().find_map(|(index, event)| Some((index, pick(event)?)))?;
            bench.events.remove(index);
            Some(picked)
        })
    }

    pub(crate) fn until_sent(&mut self, key: ConnKey) {
        self.until("Sent", |event| matches!(event, Event::Sent(k) if *k == key).then_some(()));
    }

    pub(crate) fn until_failed(&mut self, key: ConnKey) {
        self.until("Failed", |event| matches!(event, Event::Failed(k, _) if *k == key).then_some(()));
    }

    pub(crate) fn until_closed(&mut self, key: ConnKey) {
        self.until("Closed", |event| matches!(event, Event::Closed(k) if *k == key).then_some(()));
    }

    pub(crate) fn until_accepted(&mut self) -> Socket {
        self.until("Accepted", |event| if let Event::Accepted(socket) = event { Some(*socket) } else { None })
    }

    pub(crate) fn expect_silence(&mut self) {
        let woken = self.woken;
        self.settle();
        assert!(self.events.is_empty(), "unexpected: {:?}", self.events);
        assert!(self.woken == woken || self.setting.wakes_for_nothing(), "{} wake-ups that nobody has sent", self.woken - woken);
    }

    pub(crate) fn send(&mut self, key: ConnKey, data: &[u8]) {
        self.driver.send(key, gather(&[data]));
    }

    /// The next `count` bytes of a connection, exactly.
    pub(crate) fn read(&mut self, key: ConnKey, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            self.until("Received", |event| received(event, key, &mut all));
        }
        assert_eq!(all.len(), count, "more came than was sent");
        all
    }

    /// Freezes the driver and has turns until it is still.
    pub(crate) fn freeze(&mut self) {
        self.driver.freeze();
        self.turn_until("stillness", |bench| bench.driver.is_still().then_some(()));
    }

    /// All bytes of a connection until the peer's end.
    pub(crate) fn read_to_end(&mut self, key: ConnKey) -> Vec<u8> {
        let mut all = Vec::new();
        while self.until("Received or PeerClosed", |event| match event {
            Event::PeerClosed(k) if *k == key => Some(false),
            _ => received(event, key, &mut all).map(|()| true),
        }) {}
        all
    }

    // ---- the clients' side --------------------------------------------------------------------------------------------------------

    pub(crate) fn client(&self) -> S::Client {
        self.setting.connect(&self.address).expect("connects")
    }

    pub(crate) fn refuses_clients(&self) -> bool {
        self.setting.connect(&self.address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    pub(crate) fn connect(&mut self) -> (S::Client, ConnKey) {
        let client = self.client();
        let socket = self.until_accepted();
        (client, self.driver.adopt(socket))
    }

    /// The client writes all of `bytes`; where they do not fit, the driver has turns meanwhile.
    pub(crate) fn client_write(&mut self, client: &mut S::Client, mut bytes: &[u8]) {
        self.turn_until("room for a client's bytes", |_| {
            bytes = &bytes[write_some(client, bytes)..];
            bytes.is_empty().then_some(())
        });
    }

    /// The next `count` bytes that come to the client, exactly.
    pub(crate) fn client_read(&mut self, client: &mut S::Client, count: usize) -> Vec<u8> {
        let mut got = vec![0; count];
        let mut read = 0;
        self.turn_until("bytes for a client", |_| {
            while read < count {
                match client.read(&mut got[read..]) {
                    Ok(0) => panic!("the stream ends after {read} of {count} bytes"),
                    Ok(more) => read += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                    Err(error) => panic!("the client reads {read} of {count} bytes, then: {error}"),
                }
            }
            Some(())
        });
        got
    }

    /// Whatever still comes to the client, and how that ends.
    pub(crate) fn client_read_to_end(&mut self, client: &mut S::Client) -> (Vec<u8>, io::Result<()>) {
        let mut got = Vec::new();
        let end = self.turn_until("end of a client's stream", |_| match client.read_to_end(&mut got) {
            Ok(_) => Some(Ok(())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        });
        (got, end)
    }
}

/// Writes what there is room for; how much that was.
pub(crate) fn write_some(client: &mut impl Client, bytes: &[u8]) -> usize {
    match client.write(bytes) {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("the client cannot write: {error}"),
    }
}

pub(crate) fn received(event: &Event, key: ConnKey, all: &mut Vec<u8>) -> Option<()> {
    match event {
        Event::Received(k, bytes) if *k == key => {
            all.extend_from_slice(bytes);
            Some(())
        }
        _ => None,
    }
}

/// Bytes that tell where they belong: no two stretches of them look alike.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A send of several ranges, each of its own segment so that they cannot join.
pub(crate) fn gather(parts: &[&[u8]]) -> Rc<Gather> {
    let memory = SegmentMemory::new();
    Rc::new(Gather::new(parts.iter().map(|part| SegmentWriter::new(part.len(), &memory).append(b"", part)).collect()))
}
