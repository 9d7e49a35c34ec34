//! A real nats-server on loopback, and a client of it that shares no code with the gateway: the lines of the protocol on a socket.

#![allow(dead_code, reason = "every test file takes from here what it needs")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::basics::{SOON, Scratch, eventually};

/// A running nats-server. Dropping it kills it.
pub struct NatsServer {
    child: Child,
    pub port: u16,
    monitor: u16,
    config: String,
    scratch: Scratch,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With lines of its configuration file.
    pub fn start_with(config: &str) -> Self {
        let scratch = Scratch::new();
        let child = spawn(&scratch, config, -1, -1);
        let mut server = Self { child, port: 0, monitor: 0, config: config.to_owned(), scratch };
        (server.port, server.monitor) = server.ports();
        server
    }

    /// With JetStream, whose files are there.
    pub fn with_jetstream(files: &Scratch) -> Self {
        Self::start_with(&format!("jetstream {{ store_dir: {:?} }}", files.path()))
    }

    /// Three servers that are one cluster.
    pub fn start_cluster() -> [Self; 3] {
        Self::start_cluster_with(|_| String::new())
    }

    /// The same, each with lines of its own.
    pub fn start_cluster_with(config: impl Fn(usize) -> String) -> [Self; 3] {
        let cluster =
            |n: usize, routes: &str| format!("{}\ncluster {{ name: c, listen: \"127.0.0.1:-1\", routes: [{routes}] }}", config(n));
        // JetStream wants a route even where the others are yet to come.
        let first = Self::start_with(&cluster(0, "\"nats-route://127.0.0.1:1\""));
        let route = format!("\"nats-route://127.0.0.1:{}\"", first.port_of("cluster"));
        let [second, third] = [1, 2].map(|n| Self::start_with(&cluster(n, &route)));
        [first, second, third]
    }

    fn ports(&mut self) -> (u16, u16) {
        let file = self.scratch.join(&format!("nats-server_{}.ports", self.child.id()));
        eventually(SOON, || {
            assert!(self.child.try_wait().expect("our child").is_none(), "nats-server ended at start");
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.ends_with('}') { Ok(()) } else { Err(format!("{} is not there", file.display())) }
        });
        (self.port_of("nats"), self.port_of("monitoring"))
    }

    fn port_of(&self, what: &str) -> u16 {
        let file = self.scratch.join(&format!("nats-server_{}.ports", self.child.id()));
        let ports: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).expect("it was there")).expect("JSON");
        let url = ports[what][0].as_str().unwrap_or_else(|| panic!("no {what} in {ports}"));
        url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {url}"))
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGKILL: nobody is told anything.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Begins again on the same ports.
    pub fn restart(&mut self) {
        self.child = spawn(&self.scratch, &self.config, i32::from(self.port), i32::from(self.monitor));
        self.ports();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet waited for, so its id is not reused.
        let done = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        assert_eq!(done, 0, "nats-server is gone");
    }

    /// It stands still: its sockets are there, and nobody answers.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// How many connections have asked for a subject.
    pub fn subscribers(&self, subject: &str) -> usize {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitor)).expect("nats-server accepts");
        // A server of HTTP/1.0 sends no chunks.
        stream.write_all(b"GET /subsz?subs=1&limit=100000 HTTP/1.0\r\nHost: nats\r\n\r\n").expect("nats-server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let list = body["subscriptions_list"].as_array().cloned().unwrap_or_default();
        list.iter().filter(|one| one["subject"] == subject).count()
    }

    pub fn wait_for_subscribers(&self, subject: &str, expected: usize) {
        eventually(SOON, || match self.subscribers(subject) {
            found if found == expected => Ok(()),
            found => Err(format!("{found} have asked for {subject}, {expected} were expected")),
        });
    }

    pub fn client(&self) -> NatsClient {
        NatsClient::connect(self.port, "{\"verbose\":false,\"headers\":true}")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(scratch: &Scratch, config: &str, port: i32, monitor: i32) -> Child {
    let file = scratch.join("nats.conf");
    std::fs::write(&file, config).expect("our directory");
    let mut command = Command::new("nats-server");
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-m", &monitor.to_string()]);
    command.arg("--ports_file_dir").arg(scratch.path()).arg("-c").arg(file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().unwrap_or_else(|error| panic!("nats-server does not start ({error}): install the package nats-server"))
}

/// A message as a subscriber gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsMessage {
    pub subject: String,
    /// Lines, without the first.
    pub headers: Vec<String>,
    pub payload: Vec<u8>,
}

impl NatsMessage {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("text")
    }
}

/// One connection to the server.
pub struct NatsClient {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    waiting: VecDeque<NatsMessage>,
    sids: u32,
}

impl NatsClient {
    fn connect(port: u16, options: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("nats-server accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
        let reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut client = Self { stream, reader, waiting: VecDeque::new(), sids: 0 };
        assert!(client.line().starts_with("INFO "));
        client.write(format!("CONNECT {options}\r\n").as_bytes());
        client.settle();
        client
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("nats-server reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line comes");
        assert!(line.ends_with("\r\n"), "nats-server has closed the connection behind {line:?}");
        line.truncate(line.len() - 2);
        line
    }

    /// Everything that was said so far was handled by the server.
    pub fn settle(&mut self) {
        self.write(b"PING\r\n");
        while self.take() != "PONG" {}
    }

    /// Asks for a subject, and is sure of it.
    pub fn subscribe(&mut self, subject: &str) {
        self.sids += 1;
        self.write(format!("SUB {subject} {}\r\n", self.sids).as_bytes());
        self.settle();
    }

    pub fn publish(&mut self, subject: &str, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        self.write(&[format!("PUB {subject} {}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat());
    }

    /// Asks, and waits for the answer.
    pub fn request(&mut self, subject: &str, payload: &str) -> serde_json::Value {
        let inbox = format!("_INBOX.{}", self.sids);
        self.subscribe(&inbox);
        self.write(format!("PUB {subject} {inbox} {}\r\n{payload}\r\n", payload.len()).as_bytes());
        let answer = self.message();
        assert_eq!(answer.subject, inbox, "the client has nothing else to hear");
        serde_json::from_slice(&answer.payload).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// With header lines, each ended by CRLF.
    pub fn publish_with(&mut self, subject: &str, headers: &str, payload: &[u8]) {
        let headers = format!("NATS/1.0\r\n{headers}\r\n");
        let (head, all) = (headers.len(), headers.len() + payload.len());
        self.write(&[format!("HPUB {subject} {head} {all}\r\n{headers}").as_bytes(), payload, b"\r\n"].concat());
    }

    /// Reads one thing that the server says: its first word. A message is kept for later.
    fn take(&mut self) -> String {
        let line = self.line();
        let words: Vec<&str> = line.split(' ').collect();
        let size = |word: &str| word.parse::<usize>().unwrap_or_else(|_| panic!("no size in {line:?}"));
        match words[..] {
            ["PING"] => self.write(b"PONG\r\n"),
            ["MSG", subject, .., bytes] => {
                let (subject, bytes) = (subject.to_owned(), size(bytes));
                self.keep(subject, 0, bytes);
            }
            ["HMSG", subject, .., head, bytes] => {
                let (subject, head, bytes) = (subject.to_owned(), size(head), size(bytes));
                self.keep(subject, head, bytes);
            }
            ["-ERR", ..] => panic!("nats-server says {line:?}"),
            _ => {}
        }
        line.split(' ').next().expect("split yields one").to_owned()
    }

    fn keep(&mut self, subject: String, head: usize, bytes: usize) {
        let mut body = vec![0; bytes + 2];
        self.reader.read_exact(&mut body).expect("the whole message comes");
        body.truncate(bytes);
        let payload = body.split_off(head);
        let headers = String::from_utf8(body).expect("headers are text");
        let headers = headers.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        self.waiting.push_back(NatsMessage { subject, headers, payload });
    }

    /// The next message.
    pub fn message(&mut self) -> NatsMessage {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return message;
            }
            self.take();
        }
    }

    /// All that have come so far, and all that come while nothing has come for `ms`.
    pub fn rest(&mut self, ms: u64) -> Vec<NatsMessage> {
        loop {
            self.stream.set_read_timeout(Some(Duration::from_millis(ms))).expect("a timeout above zero");
            let has_more = !self.reader.fill_buf().unwrap_or_default().is_empty();
            self.stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
            if !has_more {
                return self.waiting.drain(..).collect();
            }
            self.take();
        }
    }
}
