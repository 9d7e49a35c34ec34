//! The simulated gateway against the real one: a table of scripted conversations, each held with the gateway's own process over sockets and with
//! its shards over a simulated kernel, in calm weather and in storms. What every client gets, byte for byte, and how its connection ends is the same.
//!
//! Left out because it differs by design: the page at `/`, which simulated shards do not embed; and who is slow, which is a matter of real time.

mod common;

use std::cell::RefCell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use common::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, masked};
use common::{Gateway, SOON, gateway, raw, sleep_ms, swarm};
use shardcast::engine::sim::{Chaos, Choices, LinkId, LinkOptions, SimRingSize, World};
use shardcast::ids::ShardId;
use shardcast::limits::Limits;
use shardcast::sim::{Shards, ShardsPlan};

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The end of its answer.
const OK: &str = "\r\n\r\nok\n";
/// The end of an error's body.
const ERROR: &str = "\"}}\n";

fn scenarios() -> Vec<Scenario> {
    let close = |code: u16| masked(FIN | CLOSE, &frame::close_payload(code, b""));
    let mut all = vec![
        scenario("a member hears itself and says goodbye")
            .open(0, "/ws?room=a")
            .say(0, "hello")
            .hear(0, "hello")
            .write(0, close(1000))
            .end(0),
        scenario("frames right behind the upgrade, and behind the close")
            .connect(0)
            .write(0, [raw::upgrade("/ws", "").as_bytes(), &masked(FIN | TEXT, b"early"), &close(1000), &masked(FIN | TEXT, b"late")].concat())
            .end(0),
        scenario("two members take turns")
            .open(0, "/ws?room=pair")
            .open(1, "/ws?room=pair")
            .say(0, "one")
            .hear(0, "one")
            .hear(1, "one")
            .say(1, "two")
            .hear(0, "two")
            .hear(1, "two")
            .write(0, masked(FIN | BINARY, b"three"))
            .hear(0, "three")
            .hear(1, "three"),
        scenario("a room over several names of one parameter")
            .open(0, "/ws?topic=r%20%C3%BC")
            .open(1, "/ws?room=r+%C3%BC&whatever=1")
            .say(1, "found")
            .hear(0, "found")
            .hear(1, "found"),
        scenario("echo=0 leaves out what one says oneself")
            .open(0, "/ws?room=quiet&echo=0")
            .open(1, "/ws?room=quiet")
            .say(0, "from zero")
            .hear(1, "from zero")
            .say(1, "from one")
            .hear(0, "from one")
            .hear(1, "from one"),
        scenario("one is reset, one vanishes, the room goes on")
            .open(0, "/ws?room=left")
            .open(1, "/ws?room=left")
            .open(2, "/ws?room=left")
            .say(1, "all here")
            .hear(0, "all here")
            .hear(1, "all here")
            .hear(2, "all here")
            .reset(0)
            .shut(2)
            .end(2)
            .say(1, "alone")
            .hear(1, "alone"),
        scenario("messages of all lengths come back")
            .limit("message_bytes_max", 70_000)
            .limit("queue_bytes_max", 100_000)
            .open(0, "/echo")
            .write(0, [0, 1, 125, 126, 127, 4096, 65_535, 65_536].map(|length| masked(FIN | BINARY, &vec![length as u8; length])).concat())
            .say(0, "the last one")
            .hear(0, "the last one"),
        scenario("fragments with control frames between them")
            .open(0, "/echo")
            .write(0, masked(TEXT, b"begin "))
            .write(0, masked(FIN | PING, b"are you there"))
            .hear(0, "are you there")
            .write(0, [masked(FIN | PONG, b"unasked"), masked(CONTINUATION, b""), masked(FIN | CONTINUATION, b"end")].concat())
            .hear(0, "begin end"),
        scenario("byte by byte")
            .connect(0)
            .bytewise(0, raw::upgrade("/echo", "").as_bytes())
            .hear(0, "\r\n\r\n")
            .bytewise(0, &masked(FIN | TEXT, "κόσμε".as_bytes()))
            .hear(0, "κόσμε"),
        scenario("a close is answered with its code")
            .each("/echo", [close(1000), close(1001), close(3000), close(4999), masked(FIN | CLOSE, b"")]),
        scenario("a message over the limit")
            .limit("message_bytes_max", 1000)
            .each("/echo", [
                masked(FIN | BINARY, &[0; 1001]),
                frame::head_only(FIN | TEXT, 1 << 62),
                [masked(BINARY, &[0; 600]), masked(FIN | CONTINUATION, &[0; 401])].concat(),
            ]),
        scenario("frames against the protocol")
            .each("/ws", [
                frame::unmasked(FIN | TEXT, b"hello"),
                masked(FIN | 0x40 | TEXT, b"hello"),
                masked(FIN | 0x3, b"hello"),
                masked(PING, b"in fragments"),
                masked(FIN | PING, &[b'p'; 126]),
                masked(FIN | CONTINUATION, b"of nothing"),
                [masked(TEXT, b"a"), masked(FIN | TEXT, b"b")].concat(),
                masked(FIN | CLOSE, &[3]),
                close(1005),
                frame::head_only(FIN | BINARY, 1 << 63),
            ]),
        scenario("text that is not UTF-8")
            .each("/echo", [
                masked(FIN | TEXT, b"a\x80b"),
                masked(TEXT, b"\xc0\xaf"),
                [masked(TEXT, b"a"), masked(FIN | CONTINUATION, b"\xe2\x82")].concat(),
                masked(FIN | CLOSE, &frame::close_payload(1000, b"\xff")),
            ]),
        scenario("who shuts gets the answer that is owed").connect(0).write(0, GET).shut(0).end(0),
        // A send that waits goes down with a WebSocket whose client has shut its side: in storms, where all sends may wait, that is by chance.
        scenario("who shuts gets the echo that is owed").open(0, "/echo").say(0, "last words").shut(0).end(0),
        scenario("who shuts gets a long echo whole").open(0, "/echo").say(0, &"w".repeat(60_000)).shut(0).end(0),
        scenario("the end in the middle of a request, and of a frame")
            .connect(0)
            .write(0, &GET[..20])
            .shut(0)
            .end(0)
            .open(1, "/echo")
            .write(1, &masked(FIN | TEXT, b"half")[..8])
            .shut(1)
            .end(1)
            .connect(2)
            .shut(2)
            .end(2),
        scenario("who is told goodbye and stays is reset after the linger")
            .limit("linger_ms", 300)
            .open(0, "/echo")
            .write(0, frame::unmasked(FIN | TEXT, b"wrong"))
            .end(0)
            .write_until_refused(0),
        scenario("requests one after the other, pipelined, and then an upgrade")
            .connect(0)
            .write(0, GET)
            .hear(0, OK)
            .write(0, GET)
            .hear(0, OK)
            .write(0, [GET, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", GET].concat())
            .hear(0, OK)
            .hear(0, ERROR)
            .hear(0, OK)
            .write(0, raw::upgrade("/echo", ""))
            .hear(0, "\r\n\r\n")
            .say(0, "after all")
            .hear(0, "after all"),
        scenario("connections that end with their answer")
            .ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ask("GET /healthz HTTP/1.0\r\n\r\n")
            .ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"),
        scenario("HEAD has no body")
            .connect(0)
            .write(0, format!("HEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n{GET}"))
            .hear(0, OK),
        scenario("404 and 405")
            .connect(0)
            .write(0, "GET /no%20\"where HTTP/1.1\r\nHost: localhost\r\n\r\nPUT /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            .hear(0, ERROR)
            .hear(0, ERROR)
            .ask("POST /ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        scenario("400")
            .ask("\x01\x02 garbage\r\n\r\n")
            .ask("GET / HTTP/1.1\r\n\r\n")
            .ask("HEAD / HTTP/1.1\r\n\r\n")
            .ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
            .ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
            .ask(raw::upgrade("/ws?room=a&room=b", "").replace("Upgrade\r\n", "Upgrade, close\r\n"))
            .ask(raw::upgrade("/ws?echo=perhaps", "").replace("Upgrade\r\n", "Upgrade, close\r\n")),
        scenario("431, 426 and 505")
            .limit("head_bytes_max", 512)
            .ask(format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(600)))
            .ask("GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        scenario("subprotocols")
            .connect(0)
            .write(0, raw::upgrade("/ws", "Sec-WebSocket-Protocol: chat, shardcast.raw\r\n"))
            .hear(0, "\r\n\r\n")
            .connect(1)
            .write(1, raw::upgrade("/ws", "Sec-WebSocket-Protocol: chat\r\n"))
            .hear(1, ERROR),
        scenario("a page from elsewhere").connect(0).write(0, raw::upgrade("/ws", "Origin: http://evil.example\r\n")).end(0),
        scenario("one too many, as a program and as a page")
            .limit("connections_max", 1)
            .open(0, "/ws")
            .connect(1)
            .write(1, raw::upgrade("/ws", ""))
            .end(1)
            .connect(2)
            .write(2, raw::upgrade("/ws", "Origin: http://localhost\r\n"))
            .end(2)
            .say(0, "in peace")
            .hear(0, "in peace"),
        scenario("heads that never come whole")
            .limit("head_timeout_ms", 300)
            .limit("keepalive_ms", 300)
            .connect(0)
            .write(0, &GET[..30])
            .end(0)
            .connect(1)
            .end(1)
            .connect(2)
            .write(2, GET)
            .hear(2, OK)
            .end(2)
            .connect(3)
            .write(3, [GET, "GET /"].concat())
            .end(3),
        scenario("no answer to a ping").limit("ping_interval_ms", 200).limit("pong_timeout_ms", 200)
            .open(0, "/ws").end(0),
        scenario("a shutdown")
            .open(0, "/ws?room=end")
            .open(1, "/ws?room=end")
            .connect(2)
            .write(2, GET)
            .hear(2, OK)
            .say(0, "before the end")
            .hear(0, "before the end")
            .hear(1, "before the end")
            .drain()
            .end(0)
            .end(1)
            .end(2),
    ];
    for scenario in &mut all {
        scenario.leave_all();
    }
    all
}

#[test]
fn the_real_gateway_and_the_simulated_one_answer_alike() {
    let mut complaints = String::new();
    for scenario in scenarios() {
        let real = scenario.play(&mut Real::start(&scenario));
        for weather in std::iter::once(None).chain((0..STORMS).map(Some)) {
            let simulated = scenario.play(&mut Simulated::start(&scenario, weather));
            for (client, (real, simulated)) in real.iter().zip(&simulated).enumerate() {
                if real != simulated {
                    let seed = weather.map_or_else(|| "in calm weather".to_owned(), |seed| format!("in the storm of seed {seed}"));
                    complaints += &format!("\n{}, client {client}\n  real: {real}\n  {seed}: {simulated}\n", scenario.name);
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

// ---- scripts ------------------------------------------------------------------------------------------------------------------------

enum Step {
    Connect,
    Write(usize, Vec<u8>),
    /// Reads until this has come.
    Hear(usize, Vec<u8>),
    /// Reads to the end.
    End(usize),
    WriteUntilRefused(usize),
    Shut(usize),
    Reset(usize),
    Drain,
}

struct Scenario {
    name: &'static str,
    limits: Vec<(&'static str, u64)>,
    steps: Vec<Step>,
    clients: usize,
}

fn scenario(name: &'static str) -> Scenario {
    Scenario { name, limits: Vec::new(), steps: Vec::new(), clients: 0 }
}

impl Scenario {
    fn limit(mut self, name: &'static str, value: u64) -> Self {
        self.limits.push((name, value));
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn connect(mut self, client: usize) -> Self {
        assert_eq!(client, self.clients, "{}: clients are numbered as they come", self.name);
        self.clients += 1;
        self.step(Step::Connect)
    }

    fn open(self, client: usize, path: &str) -> Self {
        self.connect(client).write(client, raw::upgrade(path, "")).hear(client, "\r\n\r\n")
    }

    fn write(self, client: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Write(client, bytes.as_ref().to_vec()))
    }

    fn bytewise(self, client: usize, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |me, byte| me.write(client, [*byte]))
    }

    fn say(self, client: usize, text: &str) -> Self {
        self.write(client, masked(FIN | TEXT, text.as_bytes()))
    }

    fn hear(self, client: usize, what: &str) -> Self {
        self.step(Step::Hear(client, what.as_bytes().to_vec()))
    }

    fn end(self, client: usize) -> Self {
        self.step(Step::End(client))
    }

    /// One client for each of these, which ends it.
    fn each<const N: usize>(self, path: &str, frames: [Vec<u8>; N]) -> Self {
        frames.iter().fold(self, |me, bytes| {
            let client = me.clients;
            me.open(client, path).write(client, bytes).end(client)
        })
    }

    /// One client more with a request that ends its connection.
    fn ask(self, request: impl AsRef<[u8]>) -> Self {
        let client = self.clients;
        self.connect(client).write(client, request).end(client)
    }

    fn write_until_refused(self, client: usize) -> Self {
        self.step(Step::WriteUntilRefused(client))
    }

    fn shut(self, client: usize) -> Self {
        self.step(Step::Shut(client))
    }

    fn reset(self, client: usize) -> Self {
        self.step(Step::Reset(client))
    }

    fn drain(self) -> Self {
        self.step(Step::Drain)
    }

    /// Whoever is still there shuts and reads to the end: nothing that came unasked is left unseen.
    fn leave_all(&mut self) {
        let clients = self.clients;
        self.steps.extend((0..clients).flat_map(|client| [Step::Shut(client), Step::End(client)]));
    }

    fn play(&self, side: &mut dyn Side) -> Vec<Transcript> {
        let mut transcripts: Vec<Transcript> = (0..self.clients).map(|_| Transcript::default()).collect();
        for step in &self.steps {
            match step {
                Step::Connect => side.connect(),
                Step::Write(client, bytes) => {
                    side.write(*client, bytes).unwrap_or_else(|error| panic!("{}: client {client} writes: {error}", self.name));
                }
                Step::Hear(client, what) => transcripts[*client].read(self.name, *client, side, Some(what)),
                Step::End(client) => transcripts[*client].read(self.name, *client, side, None),
                Step::WriteUntilRefused(client) => {
                    transcripts[*client].refused = Some(loop {
                        match side.write(*client, b"x") {
                            Ok(()) => side.pause(Duration::from_millis(10)),
                            Err(error) => break error.kind(),
                        }
                    });
                }
                Step::Shut(client) if transcripts[*client].is_open() => side.shut(*client),
                Step::Shut(_) => {}
                Step::Reset(client) => {
                    side.reset(*client);
                    transcripts[*client].end = Some(End::Left);
                }
                Step::Drain => side.drain(),
            }
        }
        for transcript in &mut transcripts {
            transcript.bytes = without_hints(&transcript.bytes);
        }
        transcripts
    }
}

/// How a connection ended.
#[derive(PartialEq, Eq, Debug)]
enum End {
    Eof,
    Broken(ErrorKind),
    /// The client broke it.
    Left,
}

/// What came to one client.
#[derive(Default, PartialEq, Eq)]
struct Transcript {
    bytes: Vec<u8>,
    /// How far it was asked for.
    heard: usize,
    end: Option<End>,
    refused: Option<ErrorKind>,
}

impl Transcript {
    fn is_open(&self) -> bool {
        self.end.is_none()
    }

    fn read(&mut self, name: &str, client: usize, side: &mut dyn Side, what: Option<&[u8]>) {
        loop {
            if let Some(what) = what
                && let Some(at) = self.bytes[self.heard..].windows(what.len()).position(|window| window == what)
            {
                self.heard += at + what.len();
                return;
            }
            if self.end.is_some() {
                assert!(
                    what.is_none(),
                    "{name}: client {client} waits for {:?}: {self}",
                    String::from_utf8_lossy(what.unwrap_or_default())
                );
                return;
            }
            let mut chunk = [0; 4096];
            match side.read(client, &mut chunk) {
                Ok(0) => self.end = Some(End::Eof),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("{name}: client {client} waits in vain for {}: {self}", String::from_utf8_lossy(what.unwrap_or(b"the end")));
                }
                Err(error) => self.end = Some(End::Broken(error.kind())),
            }
        }
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(1000)];
        write!(f, "{:?} {:?}, {} bytes: \"{}\"", self.end, self.refused, self.bytes.len(), shown.escape_ascii())
    }
}

/// When to come back is another number for each client: `retry=…` in close frames and `retry_ms` in bodies, whose length it changes, and `Retry-After`.
fn without_hints(bytes: &[u8]) -> Vec<u8> {
    let mut masked = bytes.to_vec();
    let find = |bytes: &[u8], label: &str| bytes.windows(label.len()).position(|window| window == label.as_bytes());
    let labels = ["retry=", "Retry-After: ", "\"retry_ms\":", "Content-Length: "];
    // The length of a body without a hint is the same for all.
    let labels = if find(bytes, labels[2]).is_some() { &labels[..] } else { &labels[..2] };
    for &label in labels {
        let Some(at) = find(&masked, label) else { continue };
        let start = at + label.len();
        let digits = masked[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if label == "retry=" {
            masked[at - 3] -= digits as u8;
        }
        masked.drain(start..start + digits);
    }
    masked
}

// ---- the two sides ------------------------------------------------------------------------------------------------------------------

/// A gateway with clients, numbered as they come.
trait Side {
    fn connect(&mut self);
    fn write(&mut self, client: usize, bytes: &[u8]) -> io::Result<()>;
    /// Waits for bytes or the end; `WouldBlock` when neither comes.
    fn read(&mut self, client: usize, chunk: &mut [u8]) -> io::Result<usize>;
    fn shut(&mut self, client: usize);
    fn reset(&mut self, client: usize);
    fn pause(&mut self, time: Duration);
    fn drain(&mut self);
}

struct Real {
    gateway: Gateway,
    clients: Vec<Option<TcpStream>>,
}

impl Real {
    fn start(scenario: &Scenario) -> Self {
        let setup = scenario.limits.iter().fold(gateway(), |setup, (name, value)| setup.limit(name, *value));
        Self { gateway: setup.start(), clients: Vec::new() }
    }

    fn client(&self, client: usize) -> &TcpStream {
        self.clients[client].as_ref().expect("a client that has not left")
    }
}

impl Side for Real {
    fn connect(&mut self) {
        self.clients.push(Some(raw::Raw::connect(self.gateway.port).stream));
    }

    fn write(&mut self, client: usize, bytes: &[u8]) -> io::Result<()> {
        self.client(client).write_all(bytes)
    }

    fn read(&mut self, client: usize, chunk: &mut [u8]) -> io::Result<usize> {
        self.client(client).read(chunk)
    }

    fn shut(&mut self, client: usize) {
        self.client(client).shutdown(std::net::Shutdown::Write).expect("an open socket");
    }

    fn reset(&mut self, client: usize) {
        let client = self.clients[client].take().expect("a client that has not left");
        swarm::reset_on_close(&client);
    }

    fn pause(&mut self, time: Duration) {
        sleep_ms(time.as_millis() as u64);
    }

    fn drain(&mut self) {
        self.gateway.signal(libc::SIGTERM);
    }
}

/// Storms that each conversation is held in.
const STORMS: u64 = 3;

struct Simulated {
    world: Rc<RefCell<World>>,
    shards: Shards,
    clients: Vec<LinkId>,
}

impl Simulated {
    fn start(scenario: &Scenario, storm: Option<u64>) -> Self {
        let chaos = if storm.is_some() { Chaos::STORM } else { Chaos::CALM };
        let seed = storm.unwrap_or(0);
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(seed), chaos)));
        let mut limits = Limits { connections_max: 1000, queued_bytes_max: 1 << 30, ..Limits::default() };
        for (name, value) in &scenario.limits {
            (Limits::find(name).expect("a limit").set)(&mut limits, *value);
        }
        let shards = Shards::start(
            &ShardsPlan { shards: 2, limits, slow: Default::default(), features: Default::default(), ring: SimRingSize::default(), seed },
            &world,
        );
        Self { world, shards, clients: Vec::new() }
    }

    /// Runs until there is an answer, for as long as a real client would wait.
    fn until<R>(&mut self, mut ask: impl FnMut(&mut World) -> io::Result<R>) -> io::Result<R> {
        let mut answer = Err(ErrorKind::WouldBlock.into());
        self.shards.run_until(SOON, |world| {
            answer = ask(world);
            !answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        answer
    }
}

impl Side for Simulated {
    fn connect(&mut self) {
        let shard = ShardId((self.clients.len() % 2) as u16);
        let link = self.world.borrow_mut().connect(shard, LinkOptions::default()).expect("the gateway listens");
        self.clients.push(link);
    }

    fn write(&mut self, client: usize, mut bytes: &[u8]) -> io::Result<()> {
        let link = self.clients[client];
        while !bytes.is_empty() {
            let count = self.until(|world| world.client_write(link, bytes))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn read(&mut self, client: usize, chunk: &mut [u8]) -> io::Result<usize> {
        let link = self.clients[client];
        self.until(|world| world.client_read(link, chunk))
    }

    fn shut(&mut self, client: usize) {
        self.world.borrow_mut().client_shut(self.clients[client]);
    }

    fn reset(&mut self, client: usize) {
        let link = self.clients[client];
        self.world.borrow_mut().client_reset(link);
        self.world.borrow_mut().client_close(link);
    }

    fn pause(&mut self, time: Duration) {
        self.shards.run_until(time, |_| false);
    }

    fn drain(&mut self) {
        self.shards.drain(Duration::from_secs(30), true);
    }
}
