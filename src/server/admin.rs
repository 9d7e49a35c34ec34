//! The admin listener: metrics, health, drain and rebalance on an address of its own, for operators and never for clients.
//!
//! It runs on plain threads with blocking sockets, apart from every shard, so that it answers when all of them are stuck. Bounded: so many
//! clients, so large a head, so long a request; one request a connection. Started by the supervisor.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::clock::Clock;
use super::debug::Debug;
use super::lifecycle::{Ask, Order, Phase, Readiness};
use super::metrics::Metrics;
use crate::proto::http::{Body, Head, HeadStorage, Response, head_end, parse_head, query_pairs};
use crate::time::Time;

/// Why the admin listener cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another socket has the address. The kernel does not say whose.
    #[error(
        "admin address {0} is in use by another process (`ss -ltnp` tells which); choose another with --admin ADDR:PORT, or --admin off"
    )]
    InUse(SocketAddr),
    /// Anything else.
    #[error("admin address {address} cannot be listened on: {source}; choose another with --admin ADDR:PORT, or --admin off")]
    Listen {
        /// The address as configured.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// No thread.
    #[error("admin thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A bound listener that nobody answers yet. Bind it before clients are let in: a taken port is then found while nothing is lost.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// When it is taken, or not an address of this machine.
    pub fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let result = TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
        match result {
            Ok((address, listener)) => Ok(Self { listener, address }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(AdminError::InUse(address)),
            Err(source) => Err(AdminError::Listen { address, source }),
        }
    }

    /// Takes over a listener that was made elsewhere.
    ///
    /// # Errors
    /// When the kernel does not say where it listens.
    pub fn on(fd: OwnedFd) -> io::Result<Self> {
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(false)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// Where it listens; with the kernel's choice in place of port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another handle on the socket, for the program that comes after this one.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn keep(&self) -> io::Result<OwnedFd> {
        self.listener.try_clone().map(OwnedFd::from)
    }

    /// Answers until the process ends, once the other end of `opened` is gone: until then the process before answers at the same listener.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(
        self,
        clock: Clock,
        metrics: Metrics,
        debug: Debug,
        orders: Sender<Order>,
        opened: Receiver<()>,
    ) -> Result<(), AdminError> {
        let pages = Arc::new(Pages { metrics, readiness: Arc::clone(&debug.readiness), debug, orders });
        let run = move || {
            // Nothing is ever sent.
            let _ = opened.recv();
            accept_forever(&self.listener, clock, &pages);
        };
        thread::Builder::new().name("admin".to_owned()).spawn(run).map_err(AdminError::Thread)?;
        Ok(())
    }
}

/// Clients at once; the rest is told to come back.
pub(super) const CLIENTS_MAX: usize = 16;
/// From the accept to the last byte of the head, and again from there to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an unwanted body that are read and discarded, so that the answer is not lost to a reset.
const DISCARD_BYTES_MAX: usize = 64 * 1024;
/// Pause after an accept that failed: out of descriptors, the next one would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn accept_forever(listener: &TcpListener, clock: Clock, pages: &Arc<Pages>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin listener cannot accept");
                #[expect(clippy::disallowed_methods, reason = "this thread is no shard; it has nothing else to do")]
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let place = Place::take(&clients);
        if place.is_none() {
            refuse(stream);
            continue;
        }
        let pages = Arc::clone(pages);
        let serve = move || {
            let _place = place;
            // A client that went away or was too slow is of no interest to anybody else.
            let _ = serve_client(&stream, clock, &pages);
        };
        if let Err(error) = thread::Builder::new().name("admin".to_owned()).spawn(serve) {
            tracing::warn!(%error, "admin client dropped: its thread cannot be started");
        }
    }
}

/// One of the [`CLIENTS_MAX`] places; dropping it gives it back, after a panic too.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// Only the accepting thread takes places, so the count does not rise between the look and the step.
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        if clients.load(Ordering::Relaxed) >= CLIENTS_MAX {
            return None;
        }
        clients.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(clients)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Without waiting for anything: the answer fits every socket's buffer.
fn refuse(mut stream: TcpStream) {
    let message = format!("admin listener serves {CLIENTS_MAX} clients at once; try again");
    let mut bytes = Vec::new();
    Response::error(503, &message).header("Retry-After", "1").close().encode(&mut bytes);
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&bytes)).and_then(|()| stream.shutdown(Shutdown::Write));
}

fn serve_client(stream: &TcpStream, clock: Clock, pages: &Pages) -> io::Result<()> {
    let mut link = Deadlined { stream, clock, deadline: clock.now() + PATIENCE };
    let mut head = Vec::with_capacity(1024);
    let response = loop {
        let before = head.len();
        match link.read_some(&mut head) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                break Response::error(408, &format!("no whole request within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error),
        }
        if head_end(&head, before).is_none() && head.len() <= HEAD_BYTES_MAX {
            continue;
        }
        match parse_head(&mut HeadStorage::new(), &head, HEAD_BYTES_MAX) {
            Ok(Some(request)) if Debug::knows(request.path) => match read_body(&mut link, &request, &head[request.len..], &pages.debug)? {
                Ok(body) => {
                    let response = pages.debug.answer(&request, &body);
                    break if request.method == "HEAD" { response.head_only() } else { response };
                }
                Err(refusal) => break refusal,
            },
            Ok(Some(request)) => break pages.answer(&request),
            Ok(None) => {}
            Err(error) => break Response::error(error.status(), &error.to_string()),
        }
    };
    let mut bytes = Vec::new();
    response.header("Cache-Control", "no-store").close().encode(&mut bytes);
    link.deadline = clock.now() + PATIENCE;
    link.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut discarded = Vec::with_capacity(1024);
    let mut total = 0;
    while total < DISCARD_BYTES_MAX {
        discarded.clear();
        match link.read_some(&mut discarded)? {
            0 => break,
            bytes => total += bytes,
        }
    }
    Ok(())
}

/// Reads the body of a request that may have one, as far as it is allowed; why not, if it is not.
fn read_body(link: &mut Deadlined<'_>, request: &Head<'_, '_>, read: &[u8], debug: &Debug) -> io::Result<Result<Vec<u8>, Response>> {
    let Some(max) = debug.body_bytes_max(request.path) else { return Ok(Ok(Vec::new())) };
    let bytes = match request.body() {
        Ok(Body::None) => 0,
        Ok(Body::Length(bytes)) if bytes <= max => bytes as usize,
        Ok(Body::Length(bytes)) => {
            return Ok(Err(Response::error(413, &format!("the body has {bytes} bytes, limit {max} (limits.message_bytes_max)"))));
        }
        Ok(Body::Chunked) => return Ok(Err(Response::error(411, "the body needs a Content-Length"))),
        Err(error) => return Ok(Err(Response::error(error.status(), &error.to_string()))),
    };
    let mut body = read.to_vec();
    while body.len() < bytes {
        match link.read_some(&mut body) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Ok(Err(Response::error(408, &format!("no whole body within {} s", PATIENCE.as_secs()))));
            }
            Err(error) => return Err(error),
        }
    }
    body.truncate(bytes);
    Ok(Ok(body))
}

/// A stream whose reads and writes together end by a deadline; a timeout for each would let a client drip bytes for hours.
struct Deadlined<'a> {
    stream: &'a TcpStream,
    clock: Clock,
    deadline: Time,
}

impl Deadlined<'_> {
    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.deadline.since(self.clock.now());
        if remaining.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(remaining) }
    }

    fn read_some(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        let mut buffer = [0; 1024];
        let bytes = self.stream.read(&mut buffer).map_err(timed_out)?;
        out.extend_from_slice(&buffer[..bytes]);
        Ok(bytes)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.remaining()?))?;
            match self.stream.write(bytes).map_err(timed_out)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }
}

/// Linux reports a socket timeout as EAGAIN.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

/// What there is to see.
struct Pages {
    metrics: Metrics,
    readiness: Arc<Readiness>,
    debug: Debug,
    orders: Sender<Order>,
}

/// How long the main thread may take to answer; calling a drain off takes longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

impl Pages {
    fn answer(&self, request: &Head<'_, '_>) -> Response {
        let response = match request.path {
            "/metrics" | "/healthz" | "/readyz" if !matches!(request.method, "GET" | "HEAD") => {
                Response::error(405, "only GET and HEAD are answered here").header("Allow", "GET, HEAD")
            }
            "/metrics" => Response::new(200).body(Metrics::CONTENT_TYPE, self.metrics.encode().as_bytes()),
            "/healthz" => text(200, "ok\n"),
            "/readyz" => match self.readiness.phase() {
                Phase::Serving => match self.debug.nats_is_missed() {
                    None => text(200, "ok\n"),
                    Some(why) => text(503, &why),
                },
                Phase::Starting => text(503, "starting: not every shard accepts clients yet\n"),
                Phase::Draining => text(503, "draining: shutting down, clients are asked to reconnect elsewhere\n"),
            },
            "/drain" | "/rebalance" => self.change(request),
            _ => Response::error(
                404,
                "nothing here; there are /metrics, /healthz, /readyz, /drain, /rebalance, /debug/topics, /debug/connections, /debug/memory, /disconnect, /topics/NAME/disconnect, /connections/ID/disconnect and /announce",
            ),
        };
        if request.method == "HEAD" { response.head_only() } else { response }
    }

    /// Requests that the main thread answers. A page of a browser on this machine can send them too, but not without saying whose it is.
    fn change(&self, request: &Head<'_, '_>) -> Response {
        if request.header("origin").is_some() {
            return Response::error(403, "a page of a browser has no business here");
        }
        let parameter =
            |name: &str| query_pairs(request.query.unwrap_or("")).find(|(key, _)| **key == *name.as_bytes()).map(|(_, value)| value);
        let ask = match (request.path, request.method) {
            ("/drain", "GET" | "HEAD") => Ask::Status,
            ("/drain", "POST") => match parameter("exit").as_deref() {
                None | Some(b"0" | b"false") => Ask::Drain { exits: false },
                Some(b"1" | b"true" | b"") => Ask::Drain { exits: true },
                Some(_) => return Response::error(400, "exit is neither 0 nor 1"),
            },
            ("/drain", "DELETE") => Ask::CallOff,
            ("/drain", _) => {
                return Response::error(405, "GET tells, POST begins, DELETE calls off").header("Allow", "GET, HEAD, POST, DELETE");
            }
            (_, "POST") => match parameter("share").as_deref().and_then(share_ppm) {
                Some(share_ppm) => Ask::Rebalance { share_ppm },
                None => return Response::error(400, "share is missing or not above 0 and at most 1, as in /rebalance?share=0.2"),
            },
            (_, _) => return Response::error(405, "only POST is answered here").header("Allow", "POST"),
        };
        let (reply, replies) = bounded(1);
        if self.orders.try_send(Order::Ask(ask, reply)).is_err() {
            return Response::error(503, "the gateway is starting or ending; try again");
        }
        match replies.recv_timeout(ANSWER_WITHIN) {
            Ok(Ok(json)) => Response::new(200).body("application/json", json.as_bytes()),
            Ok(Err(refusal)) => Response::error(refusal.status, &refusal.message),
            Err(_) => Response::error(503, &format!("no answer from the main thread within {} s", ANSWER_WITHIN.as_secs())),
        }
    }
}

/// A share of 1, in millionths.
fn share_ppm(text: &[u8]) -> Option<u32> {
    let share: f64 = str::from_utf8(text).ok()?.parse().ok()?;
    (share > 0.0 && share <= 1.0).then(|| (share * 1e6).ceil() as u32)
}

fn text(status: u16, body: &str) -> Response {
    Response::new(status).body("text/plain; charset=utf-8", body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::metrics::ProcessFacts;
    use super::*;
    use crate::gateway::Shared;
    use crate::gateway::counters::Counters;
    use crate::server::lifecycle::Refusal;

    fn start() -> (SocketAddr, Arc<Readiness>) {
        start_under(bounded(1).0)
    }

    fn start_under(orders: Sender<Order>) -> (SocketAddr, Arc<Readiness>) {
        let facts = ProcessFacts {
            driver: "epoll",
            kernel: String::new(),
            start: Duration::ZERO,
            connections_max: 1,
            queued_bytes_max: 1,
            shared: Shared::new(1, 1, 1, 1, 1),
            readiness: Readiness::new(),
            nats: None,
        };
        let metrics = Metrics::new(vec![Arc::new(Counters::default())], facts);
        let readiness = Readiness::new();
        let admin = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback has a free port");
        let address = admin.address();
        let debug = Debug {
            clock: Clock::new(),
            limits: Arc::default(),
            shared: Shared::new(1, 1, 1, 1, 1),
            readiness: Arc::clone(&readiness),
            doors: Arc::default(),
            nats: None,
        };
        admin.start(Clock::new(), metrics, debug, orders, bounded(0).1).expect("a thread can be started");
        (address, readiness)
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("the listener is there");
        stream.write_all(request.as_bytes()).expect("the request fits the socket's buffer");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        answer
    }

    fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n"))
    }

    #[test]
    fn metrics_are_openmetrics_text() {
        let (address, _) = start();
        let answer = get(address, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }

    #[test]
    fn ready_only_while_serving_and_healthy_always() {
        let (address, readiness) = start();
        for (phase, status, word) in
            [(Phase::Starting, "503", "starting"), (Phase::Serving, "200", "ok"), (Phase::Draining, "503", "draining")]
        {
            readiness.set(phase);
            let answer = get(address, "/readyz");
            assert!(answer.contains(&format!("HTTP/1.1 {status} ")) && answer.contains(word), "{answer}");
            assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 OK"));
        }
    }

    #[test]
    fn other_paths_and_methods_are_told_what_there_is() {
        let (address, _) = start();
        let answer = get(address, "/");
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/metrics, /healthz, /readyz"), "{answer}");
        let answer = ask(address, "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("Allow: GET, HEAD\r\n"), "{answer}");
        let answer = ask(address, "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.contains("Content-Length: 3\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn what_is_asked_of_drain_and_rebalance_reaches_the_main_thread() {
        let (orders, ordered) = bounded(1);
        let (address, _) = start_under(orders);
        let main = thread::spawn(move || {
            let mut asked = Vec::new();
            for order in ordered {
                let Order::Ask(ask, reply) = order else { panic!("{order:?}") };
                asked.push(ask);
                let refusal = Refusal { status: 409, message: "not now".to_owned() };
                reply.send(if asked.len() == 1 { Err(refusal) } else { Ok("{}\n".to_owned()) }).expect("somebody waits");
                if asked.len() == 6 {
                    return asked;
                }
            }
            asked
        });
        let request = |line: &str| ask(address, &format!("{line} HTTP/1.1\r\nHost: admin\r\n\r\n"));
        let answer = request("POST /rebalance?share=0.25");
        assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("not now"), "{answer}");
        for line in ["GET /drain", "POST /drain", "POST /drain?exit=1", "DELETE /drain", "POST /rebalance?share=1"] {
            assert!(request(line).starts_with("HTTP/1.1 200 "), "{line}");
        }
        let asks = [
            Ask::Rebalance { share_ppm: 250_000 },
            Ask::Status,
            Ask::Drain { exits: false },
            Ask::Drain { exits: true },
            Ask::CallOff,
            Ask::Rebalance { share_ppm: 1_000_000 },
        ];
        assert_eq!(main.join().expect("no panic"), asks);
        assert!(request("GET /drain").starts_with("HTTP/1.1 503 "), "the main thread is gone");
    }

    #[test]
    fn what_drain_and_rebalance_cannot_be_asked_is_refused_here() {
        let (address, _) = start();
        let cases = [
            ("POST /rebalance", "400"),
            ("POST /rebalance?share=0", "400"),
            ("POST /rebalance?share=1.5", "400"),
            ("POST /rebalance?share=NaN", "400"),
            ("POST /rebalance?share=half", "400"),
            ("GET /rebalance?share=0.5", "405"),
            ("POST /drain?exit=perhaps", "400"),
            ("PUT /drain", "405"),
        ];
        for (line, status) in cases {
            let answer = ask(address, &format!("{line} HTTP/1.1\r\nHost: admin\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        }
        let answer = ask(address, "POST /drain HTTP/1.1\r\nHost: admin\r\nOrigin: http://page.example\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }

    #[test]
    fn what_makes_no_sense_for_the_operators_pages_is_refused_and_shards_that_start_are_told_of() {
        let (address, _) = start();
        let cases = [
            ("GET /debug/topics?sort=size", "400", "subscribers"),
            ("GET /debug/connections?limit=0", "400", "inspect_items_max"),
            ("GET /debug/connections?limit=1001", "400", "from 1 to 1000"),
            ("POST /debug/memory", "405", "GET"),
            ("GET /disconnect?all=1", "405", "POST"),
            ("POST /disconnect", "400", "?all=1"),
            ("POST /disconnect?all=1&code=1000", "400", "code=4420"),
            ("POST /disconnect?all=1&reason=a%0Ab", "400", "control"),
            ("POST /connections/1-2/disconnect", "400", "SHARD-SLOT-GENERATION"),
            ("POST /topics/%00/disconnect", "400", "control"),
            ("POST /topics/%ff/disconnect", "400", "UTF-8"),
            ("POST /announce", "400", "empty"),
            ("GET /debug/topics", "503", "starting"),
            ("POST /topics/a/disconnect", "503", "starting"),
        ];
        for (line, status, word) in cases {
            let answer = ask(address, &format!("{line} HTTP/1.1\r\nHost: admin\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(word), "{line}: {answer}");
        }
        let answer = ask(address, "POST /disconnect?all=1 HTTP/1.1\r\nHost: admin\r\nOrigin: http://page.example\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        let answer = ask(address, "POST /announce HTTP/1.1\r\nHost: admin\r\nContent-Length: 65537\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("limit 65536"), "{answer}");
        let answer = ask(address, "POST /announce HTTP/1.1\r\nHost: admin\r\nContent-Length: 1\r\n\r\n\u{1}");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    #[test]
    fn heads_that_are_too_large_or_wrong_are_refused() {
        let (address, _) = start();
        let answer = ask(address, &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)));
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn the_seventeenth_client_is_turned_away_until_one_leaves() {
        let (address, _) = start();
        let mut held: Vec<_> = (0..CLIENTS_MAX).map(|_| TcpStream::connect(address).expect("the listener is there")).collect();
        let mut answer = String::new();
        TcpStream::connect(address).expect("the listener is there").read_to_string(&mut answer).expect("an answer and an end");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1"), "{answer}");
        held.pop();
        // The place is given back by the client's thread, a moment after its socket closes.
        let served = (0..1000).any(|_| get_quietly(address).is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
        assert!(served, "a place was given back");
    }

    /// A refusal may reset the connection while the request is still on its way.
    fn get_quietly(address: SocketAddr) -> Option<String> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    #[test]
    fn a_taken_address_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = taken.local_addr().expect("a bound listener has an address");
        let error = Admin::bind(address).err().expect("the address is taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--admin off"), "{error}");
    }
}
