//! Bytes on a socket: what no well-behaved client would send, and exactly what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::frame::{self, CLOSE, FIN, Parsed};
use super::{Gateway, SOON, now};

/// Key and answer of the example in RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An answer to an HTTP request.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(has, _)| has.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The other side said that it sends no more.
    Eof,
    /// RST.
    Reset,
    /// It has not.
    Open,
}

/// A socket and what it has brought so far.
pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// One frame from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(first: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { first, payload: payload.into() }
    }
}

/// The request that opens a WebSocket, with extra header lines (each ended by CRLF).
pub fn upgrade(path: &str, extra: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extra}\r\n"
    )
}

/// Sends `request` on a new connection and reads one answer.
pub fn http(port: u16, request: &[u8]) -> Response {
    let mut raw = Raw::connect(port);
    raw.write(request);
    raw.response()
}

/// Opens a WebSocket.
pub fn ws(gateway: &Gateway, path: &str) -> Raw {
    let mut raw = Raw::connect(gateway.port);
    raw.write(upgrade(path, "").as_bytes());
    raw.expect_upgraded();
    raw
}

impl Raw {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).expect("the gateway accepts");
        Self::over(stream)
    }

    /// With a receive buffer so small that it soon stops the sender; what a slow reader looks like.
    pub fn connect_with_small_buffer(port: u16) -> Self {
        Self::over(super::swarm::connect_blocking(port, 4096))
    }

    /// Small in both directions: what the other side does not read soon stops our writes too.
    pub fn connect_with_small_buffers(port: u16) -> Self {
        let raw = Self::connect_with_small_buffer(port);
        super::swarm::set_send_buffer(&raw.stream, 16 << 10);
        raw
    }

    /// Over a socket that is open already.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
        stream.set_write_timeout(Some(SOON)).expect("a timeout above zero");
        Self { stream, buffer: Vec::new() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the gateway reads");
    }

    /// Writes one message after the other until the other side has taken nothing for `patience`, has ended the connection, or has taken `most` bytes:
    /// how many bytes it took. The last message may be cut off.
    pub fn write_until_blocked(&mut self, messages: impl IntoIterator<Item = Vec<u8>>, patience: Duration, most: usize) -> usize {
        self.stream.set_write_timeout(Some(patience)).expect("a timeout above zero");
        let mut taken = 0;
        'messages: for message in messages {
            let mut rest: &[u8] = &message;
            while !rest.is_empty() {
                if taken >= most {
                    break 'messages;
                }
                match self.stream.write(rest) {
                    Ok(count) => (taken, rest) = (taken + count, &rest[count..]),
                    Err(_) => break 'messages,
                }
            }
        }
        self.stream.set_write_timeout(Some(SOON)).expect("a timeout above zero");
        taken
    }

    /// Writes where the gateway may have closed already.
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// A whole masked frame.
    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame::masked(first, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(FIN | frame::TEXT, text.as_bytes());
    }

    /// One read into the buffer; `None` while there is more to come.
    fn fill(&mut self) -> Option<End> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Some(End::Eof),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Some(End::Open),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Some(End::Reset),
            Err(error) => panic!("reading failed: {error}"),
        }
    }

    /// Reads one answer: by its Content-Length, or to the end of the connection when it has none.
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// An answer to HEAD has no body, whatever its Content-Length says.
    pub fn response_to(&mut self, method: &str) -> Response {
        let head_end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if let Some(end) = self.fill() {
                panic!("no whole response head ({end:?}); so far: {:?}", String::from_utf8_lossy(&self.buffer));
            }
        };
        let head = String::from_utf8(self.buffer.drain(..head_end).collect()).expect("a response head is ASCII");
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().expect("split yields one");
        assert!(status_line.starts_with("HTTP/1.1 "), "not a status line: {status_line}");
        let status: u16 = status_line[9..12].parse().unwrap_or_else(|_| panic!("not a status line: {status_line}"));
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("not a header: {line}")))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, headers, body: Vec::new() };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return response;
        }
        match response.header("content-length").map(|length| length.parse::<usize>().expect("Content-Length is a number")) {
            Some(length) => {
                while self.buffer.len() < length {
                    if let Some(end) = self.fill() {
                        panic!("{} of {length} body bytes came ({end:?})", self.buffer.len());
                    }
                }
                response.body = self.buffer.drain(..length).collect();
            }
            None => {
                while self.fill().is_none() {}
                response.body = std::mem::take(&mut self.buffer);
            }
        }
        response
    }

    /// Anything came within `limit`.
    pub fn answered_within(&mut self, limit: Duration) -> bool {
        self.stream.set_read_timeout(Some(limit)).expect("a timeout above zero");
        let _ = self.fill();
        self.stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
        !self.buffer.is_empty()
    }

    pub fn expect_upgraded(&mut self) -> Response {
        let response = self.response();
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        response
    }

    /// The next frame, whatever it is, or how the connection ended.
    pub fn next_frame(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(Parsed { first, payload_start, end }) = frame::parse(&self.buffer) {
                let payload = self.buffer[payload_start..end].to_vec();
                self.buffer.drain(..end);
                return Ok(Frame { first, payload });
            }
            if let Some(end) = self.fill() {
                return Err(end);
            }
        }
    }

    pub fn frame(&mut self) -> Frame {
        self.next_frame()
            .unwrap_or_else(|end| panic!("no frame: {end:?}; bytes so far: {:02x?}", &self.buffer[..self.buffer.len().min(64)]))
    }

    pub fn expect_text(&mut self, text: &str) {
        let frame = self.frame();
        assert_eq!((frame.first, String::from_utf8_lossy(&frame.payload).as_ref()), (FIN | frame::TEXT, text));
    }

    /// Reads past messages to the close frame: its code and reason.
    pub fn close_frame(&mut self) -> (Option<u16>, String) {
        loop {
            let frame = self.frame();
            if frame.first == FIN | CLOSE {
                return frame::close_code(&frame.payload);
            }
        }
    }

    /// The gateway closes with this code, then ends its side of the connection.
    pub fn expect_close(&mut self, code: u16) -> String {
        let (has, reason) = self.close_frame();
        assert_eq!(has, Some(code), "close reason: {reason}");
        self.expect_end(SOON);
        reason
    }

    /// Reads as fast as it can, without a look at messages, until the connection or `limit` ends: the code of the close frame at the end of what came.
    /// For messages without a byte 0x88; a close frame is told by its length, which leaves nothing behind it.
    pub fn last_close(&mut self, limit: Duration) -> Option<u16> {
        let deadline = now() + limit;
        let mut chunk = vec![0; 1 << 20];
        let mut tail = std::mem::take(&mut self.buffer);
        while now() < deadline {
            match self.stream.read(&mut chunk) {
                Ok(count @ 1..) => tail.extend_from_slice(&chunk[..count]),
                Ok(0) | Err(_) => break,
            }
            tail.drain(..tail.len().saturating_sub(256));
        }
        let at = tail.iter().rposition(|byte| *byte == FIN | CLOSE)?;
        let found = frame::parse(&tail[at..]).filter(|found| at + found.end == tail.len())?;
        frame::close_code(&tail[at + found.payload_start..]).0
    }

    /// Answers the close and takes the connection down as a client should.
    pub fn close(mut self, code: u16) {
        self.send(FIN | CLOSE, &frame::close_payload(code, b""));
        let (answer, _) = self.close_frame();
        assert_eq!(answer, Some(code));
        self.expect_end(SOON);
    }

    /// The gateway ends the connection within `limit`.
    pub fn expect_end(&mut self, limit: Duration) -> End {
        let end = self.end_within(limit);
        assert_ne!(end, End::Open, "still open after {limit:?}; unread: {:?}", String::from_utf8_lossy(&self.buffer));
        end
    }

    /// Reads and drops whatever comes until the end of the connection or of `limit`.
    pub fn end_within(&mut self, limit: Duration) -> End {
        let deadline = now() + limit;
        loop {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return End::Open;
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a timeout above zero");
            let end = self.fill();
            self.stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
            match end {
                None => {}
                Some(End::Open) => return End::Open,
                Some(end) => return end,
            }
        }
    }

    /// Nothing comes for this long.
    pub fn expect_silence(&mut self, ms: u64) {
        self.stream.set_read_timeout(Some(Duration::from_millis(ms))).expect("a timeout above zero");
        let next = self.next_frame();
        self.stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
        assert_eq!(next, Err(End::Open), "silence was expected");
    }

    /// Reads once, unless something is there already, and takes all of it; how the connection ended when there is no more. What it reads it
    /// does not look at.
    pub fn take(&mut self) -> Result<Vec<u8>, End> {
        if self.buffer.is_empty()
            && let Some(end) = self.fill()
        {
            return Err(end);
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Everything that was read and not yet taken.
    pub fn unread(&self) -> &[u8] {
        &self.buffer
    }

    pub fn shutdown_write(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("an open socket");
    }

    /// Takes the connection down with RST.
    pub fn reset(self) {
        super::swarm::reset_on_close(&self.stream);
    }
}
