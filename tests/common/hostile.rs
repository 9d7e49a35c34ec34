//! A TCP proxy before a gateway that does what networks do: cuts connections off at any byte, swallows what is said, refuses. It knows who connected when,
//! by the first part of the path that each client has of its own (`/c17/ws` reaches the gateway as `/ws`), and when the gateway told whom to come back.
#![allow(dead_code, reason = "every test takes from here what it needs")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a proxy stands outside the gateway: real time, real threads")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::watch;

/// What happens to connections.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Where the gateway is.
    pub upstream: u16,
    /// Each that is made is cut off at a random byte and moment, after this long at most.
    pub cut_within: Option<Duration>,
    /// Nothing goes through, and nobody is told.
    pub is_silent: bool,
    /// How long everything takes, each way.
    pub lag: Option<Duration>,
    /// What some upgrades are answered instead of the gateway's answer.
    pub refusal: Option<Refusal>,
    /// Counts up to cut off all that there are.
    cuts: u64,
}

/// An answer to upgrades.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// How many of them get it, from 0 to 1.
    pub share: f64,
    pub response: String,
    /// What it says about coming back.
    pub hint: Option<Duration>,
}

impl Refusal {
    /// 503 to so many, who are told when to come back.
    pub fn busy(share: f64, hint: Duration) -> Self {
        let body = format!(r#"{{"error":{{"code":"unavailable","message":"full","retry_ms":{}}}}}"#, hint.as_millis());
        let head = format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: {}\r\nContent-Length: {}", hint.as_secs() + 1, body.len());
        Self { share, response: format!("{head}\r\n\r\n{body}"), hint: Some(hint) }
    }
}

/// What a client was seen to do, and told.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Seen {
    Connected,
    /// Cut off by the proxy.
    Cut,
    /// The gateway said when to come back.
    Told(Duration),
}

type Log = Arc<Mutex<HashMap<String, Vec<(Instant, Seen)>>>>;

pub struct Proxy {
    pub port: u16,
    weather: watch::Sender<Weather>,
    log: Log,
}

impl Proxy {
    /// Stands before the gateway on that port.
    pub fn before(upstream: u16, seed: u64) -> Self {
        let (weather, seen) = watch::channel(Weather { upstream, ..Weather::default() });
        let log = Log::default();
        let (ports, port) = std::sync::mpsc::channel();
        let own_log = Arc::clone(&log);
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(ports, seen, own_log, seed));
        });
        Self { port: port.recv().expect("it listens"), weather, log }
    }

    pub fn url(&self) -> String {
        self.url_of("c")
    }

    /// The URL of a client that the log is to know by this name.
    pub fn url_of(&self, name: &str) -> String {
        format!("ws://127.0.0.1:{}/{name}", self.port)
    }

    pub fn weather(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Cuts all connections off.
    pub fn cut(&self) {
        self.weather(|weather| weather.cuts += 1);
    }

    /// What was seen of a client, in order.
    pub fn seen(&self, name: &str) -> Vec<(Instant, Seen)> {
        self.log.lock().expect("no panic holds it").get(name).cloned().unwrap_or_default()
    }

    /// How often a client has connected.
    pub fn connects(&self, name: &str) -> usize {
        self.seen(name).iter().filter(|(_, seen)| *seen == Seen::Connected).count()
    }
}

/// Until the [`Proxy`] is dropped.
async fn serve(ports: std::sync::mpsc::Sender<u16>, mut weather: watch::Receiver<Weather>, log: Log, seed: u64) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    ports.send(listener.local_addr().expect("it is bound").port()).expect("the test waits for it");
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted.expect("a connection").0,
            changed = weather.changed() => if changed.is_ok() { continue } else { return },
        };
        // Before anything else, so that what is counted as a connection is one, and has its time.
        let now = Instant::now();
        let (random, weather, log) = (StdRng::seed_from_u64(random.random()), weather.clone(), Arc::clone(&log));
        tokio::spawn(async move {
            let _ = carry(client, now, weather, log, random).await;
        });
    }
}

async fn carry(
    mut client: TcpStream,
    now: Instant,
    mut weather: watch::Receiver<Weather>,
    log: Log,
    mut random: StdRng,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8(head).expect("a head of ours");
    let (name, rest) = head.strip_prefix("GET /").and_then(|path| path.split_once('/')).unwrap_or_else(|| panic!("no name in {head}"));
    let name = name.to_owned();
    let note = |when: Instant, what: Seen| log.lock().expect("no panic holds it").entry(name.clone()).or_default().push((when, what));
    note(now, Seen::Connected);
    let (mut from_client, mut from_server) = (vec![0; 4096], vec![0; 16 << 10]);
    let (upstream, cuts, refusal) = {
        let weather = weather.borrow_and_update();
        (weather.upstream, weather.cuts, weather.refusal.clone())
    };
    if let Some(refusal) = refusal.filter(|refusal| random.random_bool(refusal.share)) {
        if let Some(hint) = refusal.hint {
            note(Instant::now(), Seen::Told(hint));
        }
        client.write_all(refusal.response.as_bytes()).await?;
        client.shutdown().await?;
        while client.read(&mut vec![0; 4096]).await? > 0 {}
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    server.write_all(format!("GET /{rest}").as_bytes()).await?;
    let lives = weather.borrow().cut_within.map(|longest| longest.mul_f64(random.random()));
    let end = tokio::time::sleep(lives.unwrap_or(Duration::from_secs(86_400)));
    tokio::pin!(end);
    let (mut tail, mut is_told) = (Vec::new(), false);
    loop {
        let (is_silent, lag) = (weather.borrow().is_silent, weather.borrow().lag);
        tokio::select! {
            changed = weather.changed() => {
                if changed.is_err() || weather.borrow().cuts != cuts {
                    break;
                }
            }
            () = &mut end => break,
            read = client.read(&mut from_client), if !is_silent => match read? {
                0 => return server.shutdown().await,
                read => {
                    if let Some(lag) = lag {
                        tokio::time::sleep(lag).await;
                    }
                    server.write_all(&from_client[..read]).await?;
                }
            },
            read = server.read(&mut from_server), if !is_silent => match read? {
                0 => {
                    client.shutdown().await?;
                    while client.read(&mut from_client).await? > 0 {}
                    return Ok(());
                }
                read => {
                    let read = &from_server[..read];
                    if !is_told && let Some(wait) = told(&mut tail, read) {
                        is_told = true;
                        note(Instant::now(), Seen::Told(wait));
                    }
                    client.write_all(read).await?;
                }
            },
        }
    }
    // In the middle of something, if there is something.
    if let Ok(read) = server.try_read(&mut from_server)
        && read > 0
    {
        let _ = client.try_write(&from_server[..random.random_range(0..read)]);
    }
    note(Instant::now(), Seen::Cut);
    if random.random() {
        client.set_zero_linger()?;
    }
    Ok(())
}

/// The hint of a goodbye that goes by. The gateway's frames are not masked.
fn told(tail: &mut Vec<u8>, read: &[u8]) -> Option<Duration> {
    tail.extend_from_slice(read);
    let text = String::from_utf8_lossy(tail);
    let hint = text.find(r#"{"type":"bye""#).and_then(|at| {
        let (_, rest) = text[at..].split_once(r#""retry_ms":"#)?;
        rest.split_once('}')?.0.parse().ok().map(Duration::from_millis)
    });
    // A goodbye is short, and the last thing that is said.
    let kept = tail.len().saturating_sub(512);
    tail.drain(..kept);
    hint
}
