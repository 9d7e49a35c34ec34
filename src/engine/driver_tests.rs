//! What every [`Driver`] must do, over real loopback sockets: one list of rules, stamped out per driver by `driver_tests!`.
//!
//! `driver_tests!(make)` inside a `mod tests` makes one `#[test]` per rule; `make()` gives a fresh driver and the address it listens on. Its receive pool should be small
//! (16 buffers of 1 KiB), its listener on 127.0.0.1 with `notsent_bytes` of 16 KiB. Nothing here reads a clock: a wait is bounded by a number of turns.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use super::driver::{CloseHow, Driver, Event, Wait};
use super::segment::{Gather, SegmentMemory, SegmentWriter};
use super::sys::Socket;
use crate::ids::ConnKey;

/// Turns of [`TURN`] that something may take: ten seconds, for a loaded machine.
const TURNS_MAX: usize = 1000;
const TURN: Duration = Duration::from_millis(10);

/// A driver under test and what it said that no test has asked about yet.
pub(crate) struct Bench<D> {
    pub(crate) driver: D,
    pub(crate) address: SocketAddr,
    events: Vec<Event>,
}

impl<D: Driver> Bench<D> {
    pub(crate) fn new(make: &impl Fn() -> (D, SocketAddr)) -> Self {
        let (driver, address) = make();
        Self { driver, address, events: Vec::new() }
    }

    pub(crate) fn turn(&mut self) {
        let mut events = Vec::new();
        self.driver.turn(Wait::For(TURN), &mut events).expect("the driver goes on");
        self.events.append(&mut events);
    }

    /// Some turns, so that whatever is on its way arrives.
    pub(crate) fn settle(&mut self) {
        (0..5).for_each(|_| self.turn());
    }

    /// Turns until there is an event that `pick` takes; others stay for later, in order.
    pub(crate) fn until<R>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<R>) -> R {
        for _ in 0..TURNS_MAX {
            if let Some((index, picked)) = self.events.iter().enumerate().find_map(|(index, event)| Some((index, pick(event)?))) {
                self.events.remove(index);
                return picked;
            }
            self.turn();
        }
        panic!("no {what}; there is {:?}", self.events);
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

    pub(crate) fn expect_silence(&mut self) {
        self.settle();
        assert!(self.events.is_empty(), "unexpected: {:?}", self.events);
    }

    pub(crate) fn until_accepted(&mut self) -> Socket {
        self.until("Accepted", |event| if let Event::Accepted(socket) = event { Some(*socket) } else { None })
    }

    pub(crate) fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("connects");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("option");
        client
    }

    pub(crate) fn connect(&mut self) -> (TcpStream, ConnKey) {
        let client = self.client();
        let socket = self.until_accepted();
        (client, self.driver.adopt(socket))
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

    /// All bytes of a connection until the peer's end.
    pub(crate) fn read_to_end(&mut self, key: ConnKey) -> Vec<u8> {
        let mut all = Vec::new();
        while self.until("Received or PeerClosed", |event| match event {
            Event::PeerClosed(k) if *k == key => Some(false),
            _ => received(event, key, &mut all).map(|()| true),
        }) {}
        all
    }
}

fn received(event: &Event, key: ConnKey, all: &mut Vec<u8>) -> Option<()> {
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

fn read_exact(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut got = vec![0; count];
    client.read_exact(&mut got).expect("the client reads");
    got
}

pub(crate) fn bytes_make_the_round_trip<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    assert_eq!(bench.driver.peer_addr(key), client.local_addr().ok());
    assert_eq!(bench.driver.connections(), 1);
    for size in [1, 1000, 1024, 5000] {
        client.write_all(&bytes(size)).expect("writes");
        let got = bench.read(key, size);
        bench.send(key, &got);
        assert_eq!(bench.driver.unsent(key), size);
        bench.until_sent(key);
        assert_eq!(bench.driver.unsent(key), 0);
        assert_eq!(read_exact(&mut client, size), bytes(size));
    }
    bench.expect_silence();
}

pub(crate) fn received_bytes_may_be_changed_in_place<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    client.write_all(b"shout").expect("writes");
    let mut lent = loop {
        bench.turn();
        if let Some(Event::Received(k, lent)) = bench.events.pop() {
            assert_eq!(k, key);
            break lent;
        }
    };
    lent.make_ascii_uppercase();
    assert_eq!(&*lent, b"SHOUT");
}

pub(crate) fn a_send_to_a_peer_that_reads_late_arrives_whole_and_in_order<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    // Ranges of all sizes, so that progress stops inside one, and far more than loopback buffers (at most 10 MB) hold.
    let all = bytes(16 << 20);
    let sizes = [1, 2, 3, 1000, 65_537];
    let (mut parts, mut rest) = (Vec::new(), &all[..]);
    while parts.len() < Gather::RANGES_MAX - 1 {
        let size = if parts.len() % 2 == 0 { sizes[parts.len() / 2 % sizes.len()] } else { 400_000 };
        let (part, behind) = rest.split_at(size);
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    bench.driver.send(key, gather(&parts));
    bench.settle();
    let unsent = bench.driver.unsent(key);
    assert!(unsent > 0, "the kernel took 16 MiB for a peer that does not read");
    bench.expect_silence();
    let reader = thread::spawn(move || (read_exact(&mut client, 16 << 20), client));
    bench.until_sent(key);
    assert_eq!(bench.driver.unsent(key), 0);
    let (got, mut client) = reader.join().expect("the client reads all");
    assert!(got == all, "bytes differ");
    bench.send(key, b"and one more");
    bench.until_sent(key);
    assert_eq!(read_exact(&mut client, 12), b"and one more");
}

pub(crate) fn reading_goes_on_while_a_send_waits<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    bench.send(key, &bytes(16 << 20));
    bench.settle();
    client.write_all(&bytes(3000)).expect("writes");
    assert_eq!(bench.read(key, 3000), bytes(3000));
    assert!(bench.driver.unsent(key) > 0);
}

pub(crate) fn paused_reading_leaves_bytes_until_it_resumes<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    bench.driver.pause_recv(key);
    bench.settle();
    client.write_all(&bytes(5000)).expect("writes");
    client.shutdown(Shutdown::Write).expect("shuts");
    bench.expect_silence();
    bench.driver.resume_recv(key);
    assert_eq!(bench.read_to_end(key), bytes(5000));
}

pub(crate) fn pausing_and_resuming_at_once_loses_nothing<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    let mut all = Vec::new();
    for chunk in bytes(50_000).chunks(500) {
        client.write_all(chunk).expect("writes");
        bench.driver.pause_recv(key);
        bench.driver.resume_recv(key);
        bench.driver.pause_recv(key);
        bench.turn();
        bench.driver.resume_recv(key);
        bench.turn();
        bench.events.drain(..).for_each(|event| received(&event, key, &mut all).expect("only bytes come"));
    }
    let missing = 50_000 - all.len();
    all.extend(bench.read(key, missing));
    assert!(all == bytes(50_000), "bytes differ");
}

pub(crate) fn the_peers_end_is_told_once_after_its_bytes_and_sending_goes_on<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    client.write_all(&bytes(4096)).expect("writes");
    client.shutdown(Shutdown::Write).expect("shuts");
    assert_eq!(bench.read_to_end(key), bytes(4096));
    bench.expect_silence();
    bench.send(key, b"still here");
    bench.until_sent(key);
    assert_eq!(read_exact(&mut client, 10), b"still here");
    bench.driver.resume_recv(key);
    bench.expect_silence();
}

pub(crate) fn shutting_our_side_ends_the_peers_reading_only<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    bench.send(key, b"goodbye");
    bench.until_sent(key);
    bench.driver.shut_write(key);
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("reads to the end");
    assert_eq!(got, b"goodbye");
    client.write_all(b"and you").expect("writes");
    drop(client);
    assert_eq!(bench.read_to_end(key), b"and you");
    bench.expect_silence();
}

pub(crate) fn a_reset_by_the_peer_is_reported_once<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (client, key) = bench.connect();
    bench.send(key, &bytes(1000));
    bench.until_sent(key);
    // It closes with bytes unread, which makes the kernel send RST.
    drop(client);
    bench.until_failed(key);
    bench.expect_silence();
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    assert_eq!(bench.driver.connections(), 0);
}

pub(crate) fn a_send_that_waits_fails_when_the_peer_resets<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (client, key) = bench.connect();
    bench.send(key, &bytes(16 << 20));
    bench.settle();
    drop(client);
    bench.until_failed(key);
    bench.expect_silence();
    assert_eq!(bench.driver.unsent(key), 0);
}

pub(crate) fn a_send_that_breaks_after_the_peers_end_is_reported<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (client, key) = bench.connect();
    drop(client);
    assert_eq!(bench.read_to_end(key), b"");
    // Nobody is there any more: the first send makes the peer's kernel answer RST, which is told now or when a later send meets it.
    let mut failed = false;
    for _ in 0..20 {
        bench.send(key, b"anyone?");
        bench.until("answer to a send", |event| match event {
            Event::Sent(k) if *k == key => Some(()),
            Event::Failed(k, _) if *k == key => {
                failed = true;
                Some(())
            }
            _ => None,
        });
        bench.settle();
        if failed || bench.events.iter().any(|event| matches!(event, Event::Failed(..))) {
            return;
        }
    }
    panic!("twenty sends to nobody were told as sent");
}

pub(crate) fn closing_tells_the_peer_and_voids_the_key<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    bench.driver.close(key, CloseHow::Close);
    // Nothing said to a key that closes has an effect.
    bench.send(key, b"too late");
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.driver.shut_write(key);
    bench.driver.close(key, CloseHow::Reset);
    assert_eq!(bench.driver.unsent(key), 0);
    assert_eq!(bench.driver.connections(), 1);
    bench.until_closed(key);
    assert_eq!(bench.driver.connections(), 0);
    assert_eq!(bench.driver.peer_addr(key), None);
    assert_eq!(client.read(&mut [0; 8]).expect("an ordinary end"), 0);
    bench.driver.close(key, CloseHow::Close);
    bench.driver.pause_recv(key);
    bench.driver.resume_recv(key);
    bench.driver.shut_write(key);
    bench.expect_silence();
}

pub(crate) fn a_reset_throws_unsent_bytes_away_and_lets_their_memory_go<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    let data = gather(&[&bytes(16 << 20)]);
    bench.driver.send(key, Rc::clone(&data));
    bench.settle();
    bench.driver.close(key, CloseHow::Reset);
    bench.until_closed(key);
    bench.expect_silence();
    assert_eq!(Rc::strong_count(&data), 1);
    let mut got = Vec::new();
    let error = client.read_to_end(&mut got).expect_err("the peer sees RST");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

pub(crate) fn nothing_but_closed_follows_a_close<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    client.write_all(&bytes(4000)).expect("writes");
    client.shutdown(Shutdown::Write).expect("shuts");
    bench.driver.close(key, CloseHow::Close);
    bench.until_closed(key);
    bench.expect_silence();
}

pub(crate) fn slots_are_reused_and_keys_are_not<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let mut keys = std::collections::HashSet::new();
    for round in 0..50 {
        let (mut client, key) = bench.connect();
        assert!(keys.insert(key), "{key:?} was given out twice");
        client.write_all(b"hello").expect("writes");
        assert_eq!(bench.read(key, 5), b"hello");
        bench.driver.close(key, if round % 2 == 0 { CloseHow::Close } else { CloseHow::Reset });
        bench.until_closed(key);
    }
    assert!(bench.driver.slots() <= 2, "{} slots for one connection at a time", bench.driver.slots());
    assert_eq!(bench.driver.connections(), 0);
}

pub(crate) fn a_crowd_is_accepted_over_several_turns<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let clients: Vec<_> = (0..60).map(|_| bench.client()).collect();
    let keys: Vec<_> = clients
        .iter()
        .map(|_| {
            let socket = bench.until_accepted();
            bench.driver.adopt(socket)
        })
        .collect();
    assert_eq!(bench.driver.connections(), 60);
    for mut client in clients {
        client.write_all(b"me").expect("writes");
    }
    for key in keys {
        assert_eq!(bench.read_to_end(key), b"me");
    }
}

pub(crate) fn paused_accepting_leaves_clients_in_the_backlog<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    bench.driver.pause_accept();
    bench.driver.pause_accept();
    bench.settle();
    let mut client = bench.client();
    bench.expect_silence();
    bench.driver.resume_accept();
    bench.driver.resume_accept();
    let socket = bench.until_accepted();
    let key = bench.driver.adopt(socket);
    client.write_all(b"at last").expect("writes");
    assert_eq!(bench.read(key, 7), b"at last");
}

pub(crate) fn stopped_accepting_refuses_clients_and_keeps_connections<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut client, key) = bench.connect();
    bench.driver.stop_accept();
    bench.driver.stop_accept();
    bench.driver.resume_accept();
    bench.settle();
    TcpStream::connect(bench.address).expect_err("nobody listens");
    client.write_all(b"still on").expect("writes");
    assert_eq!(bench.read(key, 8), b"still on");
    bench.expect_silence();
}

pub(crate) fn a_socket_accepted_here_is_adopted_there<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let (mut here, mut there) = (Bench::new(&make), Bench::new(&make));
    let mut client = here.client();
    let socket = here.until_accepted();
    let key = there.driver.adopt(socket);
    client.write_all(b"moved").expect("writes");
    assert_eq!(there.read(key, 5), b"moved");
    there.send(key, b"welcome");
    there.until_sent(key);
    assert_eq!(read_exact(&mut client, 7), b"welcome");
    assert_eq!((here.driver.connections(), there.driver.connections()), (0, 1));
    here.expect_silence();
}

pub(crate) fn exhausted_receive_buffers_delay_bytes_and_lose_none<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    const EACH: usize = 100 * 1024;
    let mut bench = Bench::new(&make);
    let (clients, keys): (Vec<_>, Vec<_>) = (0..4).map(|_| bench.connect()).unzip();
    let writers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                client.write_all(&bytes(EACH)).expect("writes");
                client
            })
        })
        .collect();
    let mut got = vec![Vec::new(); 4];
    let mut held: Vec<Event> = Vec::new();
    for turn in 0..TURNS_MAX {
        bench.turn();
        held.append(&mut bench.events);
        // The gateway holds on to what it got for a while, longer than the pool lasts.
        if turn % 3 == 2 {
            for event in held.drain(..) {
                let index = keys.iter().position(|&key| matches!(&event, Event::Received(k, _) if *k == key)).expect("only bytes come");
                received(&event, keys[index], &mut got[index]).expect("its bytes");
            }
        }
        if got.iter().all(|got| got.len() == EACH) {
            break;
        }
    }
    assert!(got.iter().all(|got| *got == bytes(EACH)), "{:?} of {EACH} bytes", got.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(bench.driver.recv_starved() > 0);
    writers.into_iter().for_each(|writer| drop(writer.join().expect("the client wrote")));
}

pub(crate) fn a_starved_connection_that_goes_leaves_its_buffers_to_others<D: Driver>(make: impl Fn() -> (D, SocketAddr)) {
    let mut bench = Bench::new(&make);
    let (mut greedy, greedy_key) = bench.connect();
    greedy.write_all(&bytes(64 * 1024)).expect("writes");
    // All buffers are out now, as bytes of the greedy one.
    bench.settle();
    let held = std::mem::take(&mut bench.events);
    let pairs: Vec<_> = (0..8).map(|_| bench.connect()).collect();
    for (client, _) in &pairs {
        (&*client).write_all(b"small").expect("writes");
    }
    bench.settle();
    assert!(bench.driver.recv_starved() > 0);
    bench.driver.close(greedy_key, CloseHow::Reset);
    bench.until_closed(greedy_key);
    drop(held);
    for (_, key) in &pairs {
        assert_eq!(bench.read(*key, 5), b"small");
    }
}

/// Stamps out one `#[test]` for each rule above.
macro_rules! driver_tests {
    ($make:expr) => {
        $crate::engine::driver_tests::driver_tests! { $make;
            bytes_make_the_round_trip
            received_bytes_may_be_changed_in_place
            a_send_to_a_peer_that_reads_late_arrives_whole_and_in_order
            reading_goes_on_while_a_send_waits
            paused_reading_leaves_bytes_until_it_resumes
            pausing_and_resuming_at_once_loses_nothing
            the_peers_end_is_told_once_after_its_bytes_and_sending_goes_on
            shutting_our_side_ends_the_peers_reading_only
            a_reset_by_the_peer_is_reported_once
            a_send_that_waits_fails_when_the_peer_resets
            a_send_that_breaks_after_the_peers_end_is_reported
            closing_tells_the_peer_and_voids_the_key
            a_reset_throws_unsent_bytes_away_and_lets_their_memory_go
            nothing_but_closed_follows_a_close
            slots_are_reused_and_keys_are_not
            a_crowd_is_accepted_over_several_turns
            paused_accepting_leaves_clients_in_the_backlog
            stopped_accepting_refuses_clients_and_keeps_connections
            a_socket_accepted_here_is_adopted_there
            exhausted_receive_buffers_delay_bytes_and_lose_none
            a_starved_connection_that_goes_leaves_its_buffers_to_others
        }
    };
    ($make:expr; $($rule:ident)+) => {
        $(#[test]
        fn $rule() {
            $crate::engine::driver_tests::$rule($make);
        })+
    };
}
pub(crate) use driver_tests;
