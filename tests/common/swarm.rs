//! Thousands of WebSocket clients on one thread: epoll, no buffers while a client is idle, none of the gateway's own engine.
//!
//! Clients are numbered in the order of [`Swarm::connect`] and keep their number when they are gone. Their sources spread over 127.0.0.2 to 127.0.0.9, so that
//! no address runs out of ports. A swarm answers pings and close frames by itself; the rest comes as [`Event`]s from [`Swarm::turn`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT};
use super::{now, raw};

/// Where a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// TCP or the upgrade is not done.
    Opening,
    Open,
    /// A close frame went out or came in.
    Closing,
    /// The socket is gone; see [`Client::end`].
    Gone,
}

/// How a client ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By a close handshake with this code from the gateway.
    Closed(Option<u16>),
    /// The gateway's side ended without a close frame.
    Eof,
    Reset,
    /// The upgrade was answered with this status.
    Refused(u16),
    /// The test dropped it.
    Dropped,
}

/// What happened to a client.
#[derive(Debug)]
pub enum Event<'a> {
    /// The upgrade is done.
    Opened,
    Text(&'a [u8]),
    /// Also what came compressed, to who has offered that, as it came.
    Binary(&'a [u8]),
    /// A close frame came.
    Close(Option<u16>, String),
    /// The socket is gone.
    Ended,
}

/// One client.
pub struct Client {
    stream: Option<TcpStream>,
    state: State,
    end: Option<End>,
    close_code: Option<Option<u16>>,
    /// Unparsed input: a response head or a frame that is not whole.
    input: Vec<u8>,
    /// What the kernel did not take yet.
    output: Vec<u8>,
    reading: bool,
    watched: u32,
    /// Pings that came in.
    pub pings: u32,
    /// Data messages that came in.
    pub messages: u64,
    /// It has offered permessage-deflate.
    deflates: bool,
    /// The answer that refused the upgrade.
    pub refusal: Option<String>,
}

impl Client {
    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Bytes that the gateway (and the kernel between) has not taken yet.
    pub fn unsent(&self) -> usize {
        self.output.len()
    }
}

/// See the module.
pub struct Swarm {
    epoll: OwnedFd,
    port: u16,
    clients: Vec<Client>,
    ready: Vec<libc::epoll_event>,
    scratch: Vec<u8>,
    /// Receive buffer of clients that connect from now on; 0 leaves it to the kernel.
    pub recv_buffer_bytes: i32,
    /// Send buffer of clients that connect from now on; 0 leaves it to the kernel.
    pub send_buffer_bytes: i32,
    /// The one address that clients come from, from now on.
    pub source: Option<u32>,
    /// Clients that connect from now on are reset when they are dropped, or with their process.
    pub resets: bool,
}

const SCRATCH_BYTES: usize = 512 * 1024;
/// Where clients come from: so many addresses from this one on.
const SOURCE: [u8; 4] = [127, 0, 0, 2];
const SOURCES: u32 = 8;

impl Swarm {
    pub fn new(port: u16) -> Self {
        // SAFETY: epoll_create1 has no preconditions; the descriptor is new and ours.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        Self {
            epoll,
            port,
            clients: Vec::new(),
            ready: vec![libc::epoll_event { events: 0, u64: 0 }; 1024],
            scratch: vec![0; SCRATCH_BYTES],
            recv_buffer_bytes: 0,
            send_buffer_bytes: 0,
            source: None,
            resets: false,
        }
    }

    /// Begins to open a WebSocket and returns the client's number. Without a path it connects and says nothing.
    pub fn connect(&mut self, path: &str) -> usize {
        self.connect_with(path, "")
    }

    /// The same, with headers of the request.
    pub fn connect_with(&mut self, path: &str, headers: &str) -> usize {
        let id = self.clients.len();
        let source = self.source.unwrap_or(u32::from_be_bytes(SOURCE) + id as u32 % SOURCES);
        let socket = tcp_socket(true);
        if self.recv_buffer_bytes > 0 {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, self.recv_buffer_bytes);
        }
        if self.send_buffer_bytes > 0 {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, self.send_buffer_bytes);
        }
        if self.resets {
            linger_not(&socket);
        }
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        bind(&socket, source);
        connect(&socket, self.port);
        self.clients.push(Client {
            stream: Some(TcpStream::from(socket)),
            state: State::Opening,
            end: None,
            close_code: None,
            input: Vec::new(),
            output: if path.is_empty() { Vec::new() } else { raw::upgrade(path, headers).into_bytes() },
            reading: true,
            watched: 0,
            pings: 0,
            messages: 0,
            deflates: headers.contains("permessage-deflate"),
            refusal: None,
        });
        self.watch(id);
        id
    }

    /// Connects and waits until the WebSocket is open.
    pub fn connect_and_open(&mut self, path: &str, on: &mut impl FnMut(usize, Event<'_>)) -> usize {
        let id = self.connect(path);
        self.run(super::SOON, "the WebSocket opens", on, |swarm| swarm.clients[id].state != State::Opening);
        assert_eq!(self.clients[id].state, State::Open, "{path}: {:?}", self.clients[id].end);
        id
    }

    pub fn client(&self, id: usize) -> &Client {
        &self.clients[id]
    }

    /// How many have been made, gone ones included.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    pub fn count(&self, state: &State) -> usize {
        self.clients.iter().filter(|client| client.state == *state).count()
    }

    pub fn send_text(&mut self, id: usize, payload: &[u8]) {
        self.send(id, FIN | TEXT, payload);
    }

    pub fn send_binary(&mut self, id: usize, payload: &[u8]) {
        self.send(id, FIN | BINARY, payload);
    }

    fn send(&mut self, id: usize, first: u8, payload: &[u8]) {
        frame::append_masked(&mut self.clients[id].output, first, payload);
        self.flush(id);
    }

    /// Begins a close handshake.
    pub fn close(&mut self, id: usize, code: u16) {
        if self.clients[id].state == State::Open {
            self.clients[id].state = State::Closing;
            self.send(id, FIN | CLOSE, &frame::close_payload(code, b""));
        }
    }

    /// Takes the connection down without a word; with RST when `reset`.
    pub fn drop_client(&mut self, id: usize, reset: bool) {
        if let Some(stream) = &self.clients[id].stream {
            if reset {
                reset_on_close(stream);
            }
            self.end(id, End::Dropped);
        }
    }

    /// Stops or goes on reading.
    pub fn set_reading(&mut self, id: usize, reading: bool) {
        self.clients[id].reading = reading;
        self.watch(id);
    }

    /// Waits up to `limit` for something to happen and tells all of it.
    pub fn turn(&mut self, limit: Duration, on: &mut impl FnMut(usize, Event<'_>)) {
        let wait = i32::try_from(limit.as_millis()).expect("a short wait");
        // SAFETY: `ready` is a live array of that many events that the call fills.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.ready.as_mut_ptr(), self.ready.len() as i32, wait) };
        if count < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), ErrorKind::Interrupted, "epoll_wait: {error}");
            return;
        }
        for at in 0..count as usize {
            let libc::epoll_event { events, u64: id } = self.ready[at];
            let id = id as usize;
            if events & (libc::EPOLLOUT as u32) != 0 {
                self.flush(id);
            }
            if events & !(libc::EPOLLOUT as u32) != 0 && self.clients[id].stream.is_some() {
                self.receive(id, on);
            }
            if self.clients[id].state == State::Gone {
                on(id, Event::Ended);
            }
        }
    }

    /// Turns until `done`, and fails after `limit`.
    pub fn run(&mut self, limit: Duration, what: &str, on: &mut impl FnMut(usize, Event<'_>), mut done: impl FnMut(&Self) -> bool) {
        let deadline = now() + limit;
        while !done(self) {
            assert!(now() < deadline, "not within {limit:?}: {what} ({})", self.summary());
            self.turn(Duration::from_millis(20), on);
        }
    }

    /// Turns for a while.
    pub fn run_for(&mut self, time: Duration, on: &mut impl FnMut(usize, Event<'_>)) {
        let deadline = now() + time;
        while now() < deadline {
            self.turn(Duration::from_millis(10), on);
        }
    }

    /// States and ends in one line, for messages of failed tests.
    pub fn summary(&self) -> String {
        let mut ends: Vec<(String, usize)> = Vec::new();
        for client in &self.clients {
            let name = client.end.as_ref().map_or_else(|| format!("{:?}", client.state), |end| format!("{end:?}"));
            match ends.iter_mut().find(|(has, _)| *has == name) {
                Some((_, count)) => *count += 1,
                None => ends.push((name, 1)),
            }
        }
        ends.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }

    fn watch(&mut self, id: usize) {
        let client = &mut self.clients[id];
        let Some(stream) = &client.stream else { return };
        let mut wanted = 0;
        if client.reading {
            wanted |= libc::EPOLLIN as u32;
        }
        if !client.output.is_empty() {
            wanted |= libc::EPOLLOUT as u32;
        }
        // A client that neither reads nor writes leaves epoll: a hang-up is reported even to those who did not ask.
        let operation = match (client.watched, wanted) {
            (before, after) if before == after => return,
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        let mut event = libc::epoll_event { events: wanted, u64: id as u64 };
        // SAFETY: both descriptors are open, `event` is live.
        let done = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, stream.as_raw_fd(), &raw mut event) };
        assert_eq!(done, 0, "epoll_ctl: {}", io::Error::last_os_error());
        client.watched = wanted;
    }

    fn flush(&mut self, id: usize) {
        let client = &mut self.clients[id];
        let Some(stream) = &mut client.stream else { return };
        let mut written = 0;
        while written < client.output.len() {
            match stream.write(&client.output[written..]) {
                Ok(count) => written += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                // Reading tells how it ended; what was to be sent has nowhere to go.
                Err(_) => written = client.output.len(),
            }
        }
        client.output.drain(..written);
        if client.output.is_empty() {
            client.output = Vec::new();
        }
        self.watch(id);
    }

    fn end(&mut self, id: usize, end: End) {
        let client = &mut self.clients[id];
        client.state = State::Gone;
        client.end = Some(end);
        client.stream = None; // epoll forgets a closed descriptor
        client.input = Vec::new();
        client.output = Vec::new();
        client.watched = 0;
    }

    /// One read of at most the scratch buffer, and the frames in it.
    fn receive(&mut self, id: usize, on: &mut impl FnMut(usize, Event<'_>)) {
        let client = &mut self.clients[id];
        let kept = client.input.len();
        if kept + SCRATCH_BYTES / 2 > self.scratch.len() {
            self.scratch.resize(kept + SCRATCH_BYTES, 0);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch[..kept].copy_from_slice(&client.input);
        let outcome = client.stream.as_mut().expect("checked by turn").read(&mut scratch[kept..]);
        let ended = match outcome {
            Ok(0) => Some(match client.close_code {
                Some(code) => End::Closed(code),
                None => End::Eof,
            }),
            Ok(count) => {
                client.input = Vec::new();
                let rest = self.parse(id, &scratch[..kept + count], on);
                if self.clients[id].state != State::Gone && rest < kept + count {
                    self.clients[id].input = scratch[rest..kept + count].to_vec();
                }
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(_) => Some(match client.close_code {
                Some(code) => End::Closed(code),
                None => End::Reset,
            }),
        };
        self.scratch = scratch;
        if let Some(end) = ended {
            self.end(id, end);
        }
    }

    /// Takes what is whole and returns where the rest begins.
    fn parse(&mut self, id: usize, bytes: &[u8], on: &mut impl FnMut(usize, Event<'_>)) -> usize {
        let mut at = 0;
        if self.clients[id].state == State::Opening {
            let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return 0 };
            let status = std::str::from_utf8(&bytes[9..12]).ok().and_then(|status| status.parse().ok()).unwrap_or(0);
            if status != 101 {
                self.clients[id].refusal = Some(String::from_utf8_lossy(bytes).into_owned());
                self.end(id, End::Refused(status));
                return bytes.len();
            }
            self.clients[id].state = State::Open;
            on(id, Event::Opened);
            at = head_end + 4;
        }
        while let Some(found) = frame::parse(&bytes[at..]) {
            let payload = &bytes[at + found.payload_start..at + found.end];
            at += found.end;
            let client = &mut self.clients[id];
            match found.first & 0x0f {
                TEXT | BINARY | CONTINUATION => {
                    client.messages += 1;
                    if client.deflates && found.first & 0xf0 == FIN | 0x40 {
                        on(id, Event::Binary(payload));
                        continue;
                    }
                    assert_eq!(found.first & 0xf0, FIN, "a message came in fragments or with reserved bits");
                    on(id, if found.first & 0x0f == TEXT { Event::Text(payload) } else { Event::Binary(payload) });
                }
                PING => {
                    client.pings += 1;
                    self.send(id, FIN | PONG, payload);
                }
                PONG => {}
                CLOSE => {
                    let (code, reason) = frame::close_code(payload);
                    let answer = client.state == State::Open;
                    client.state = State::Closing;
                    client.close_code = Some(code);
                    on(id, Event::Close(code, reason));
                    if answer {
                        self.send(id, FIN | CLOSE, payload);
                    }
                }
                other => panic!("the gateway sent a frame with opcode {other:#x}"),
            }
        }
        at
    }
}

/// A blocking connection with a small receive buffer.
pub fn connect_blocking(port: u16, recv_buffer_bytes: i32) -> TcpStream {
    let socket = tcp_socket(false);
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, recv_buffer_bytes);
    connect(&socket, port);
    TcpStream::from(socket)
}

/// What is written and not yet taken by the other side is bounded by about this.
pub fn set_send_buffer(stream: &TcpStream, bytes: i32) {
    set_option(stream, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes);
}

/// Closing this socket sends RST.
pub fn reset_on_close(stream: &TcpStream) {
    linger_not(stream);
}

fn linger_not(stream: &impl AsRawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the socket is open; `linger` is live and of the size given.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "SO_LINGER: {}", io::Error::last_os_error());
}

fn tcp_socket(nonblocking: bool) -> OwnedFd {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: socket has no preconditions.
    let socket = unsafe { libc::socket(libc::AF_INET, flags, 0) };
    assert!(socket >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) {
    // SAFETY: the socket is open; `value` is live and of the size given.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t) };
    assert_eq!(done, 0, "setsockopt {name}: {}", io::Error::last_os_error());
}

fn address(ip: u32, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: ip.to_be() },
        sin_zero: [0; 8],
    }
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn bind(socket: &OwnedFd, ip: u32) {
    let address = address(ip, 0);
    // SAFETY: the socket is open; `address` is live and of the size given.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) };
    assert_eq!(done, 0, "bind: {}", io::Error::last_os_error());
}

fn connect(socket: &OwnedFd, port: u16) {
    let address = address(u32::from_be_bytes([127, 0, 0, 1]), port);
    // SAFETY: the socket is open; `address` is live and of the size given.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) };
    let error = io::Error::last_os_error();
    assert!(done == 0 || error.raw_os_error() == Some(libc::EINPROGRESS), "connect: {error}");
}
