//! WebSocket and event streams from the client's side, without I/O: the opening handshake, and messages out of a buffer that bytes are added to.
//!
//! Each connection has a buffer of its own. On a ring the kernel holds a buffer for as long as a read waits, so that connections cannot
//! share one; it is small until a larger frame comes.

use std::fmt::{self, Write};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::events::{self, Event};
use super::plan::Plan;
use crate::proto::ws::handshake::accept_key;
use crate::proto::ws::{FrameHeader, OpCode};

/// A server may not ask for more memory than this with one frame.
pub(super) const FRAME_BYTES_MAX: u64 = 64 << 20;
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Why an opening handshake failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// An HTTP answer that is not 101: its status line.
    Status(String),
    /// The same, with when to come back: what the body says in milliseconds, or `Retry-After`.
    Later { line: String, retry_ms: u64 },
    /// 101, but without the Sec-WebSocket-Accept that belongs to our key.
    WrongAccept,
    /// 200, but no event stream, or one in a coding that this tool does not read.
    NoStream(&'static str),
    /// No HTTP at all: what came instead, shortened.
    NotHttp(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(line) | Self::Later { line, .. } => write!(f, "answered '{line}'"),
            Self::WrongAccept => f.write_str("answered 101 without the right Sec-WebSocket-Accept"),
            Self::NoStream(why) => write!(f, "answered 200, but {why}"),
            Self::NotHttp(start) => write!(f, "answered {start:?}, which is not HTTP"),
        }
    }
}

/// What opens a connection, and the answer to it that is right.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    pub(super) awaits: Awaits,
}

/// The answer that opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaits {
    /// 101, with this Sec-WebSocket-Accept.
    Upgrade([u8; 28]),
    /// 200, and an event stream up to the end of the connection.
    Stream,
}

impl Request {
    /// A client's, for what the plan has it be; an event stream's may go on after a position.
    pub(super) fn of(plan: &Plan, client: u32, position: Option<&str>) -> Self {
        let target = plan.target_of(client);
        let path = target.path(plan.room(client), client);
        if plan.is_stream(client) {
            Self::stream(&target.authority, &path, position, &plan.headers)
        } else {
            Self::upgrade(&target.authority, &path, &plan.headers)
        }
    }

    /// For a WebSocket.
    pub(super) fn upgrade(authority: &str, path: &str, headers: &[String]) -> Self {
        let mut nonce = [0; 16];
        fastrand::fill(&mut nonce);
        let key = BASE64_STANDARD.encode(nonce);
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        );
        Self { bytes: with_headers(text, headers), awaits: Awaits::Upgrade(accept_key(key.as_bytes())) }
    }

    /// For an event stream.
    pub(super) fn stream(authority: &str, path: &str, position: Option<&str>, headers: &[String]) -> Self {
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nAccept: text/event-stream\r\nCache-Control: no-store\r\n");
        if let Some(position) = position {
            let _ = write!(text, "Last-Event-ID: {position}\r\n");
        }
        Self { bytes: with_headers(text, headers), awaits: Awaits::Stream }
    }
}

fn with_headers(mut text: String, headers: &[String]) -> Vec<u8> {
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// The length of the head of the answer that is waited for, once it is whole.
pub(super) fn answer(bytes: &[u8], awaits: &Awaits) -> Result<Option<usize>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let whole = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(Refusal::NotHttp(String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned()));
        }
    };
    let code = response.code.unwrap_or(0);
    let expected = if *awaits == Awaits::Stream { 200 } else { 101 };
    if code != expected {
        let reason = response.reason.unwrap_or("");
        let line = format!("HTTP/1.{} {code} {reason}", response.version.unwrap_or(1)).trim_end().to_owned();
        let number = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()?.trim().parse::<u64>().ok()
        };
        let Some(seconds) = number("retry-after") else { return Err(Refusal::Status(line)) };
        let body = &bytes[whole..];
        if number("content-length").is_some_and(|length| (body.len() as u64) < length && bytes.len() < HEAD_BYTES_MAX) {
            return Ok(None);
        }
        let error: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let said = error.and_then(|error| error.get("error")?.get("retry_ms")?.as_u64());
        return Err(Refusal::Later { line, retry_ms: said.unwrap_or(seconds.saturating_mul(1000)) });
    }
    let has = |name: &str, is: &dyn Fn(&[u8]) -> bool| {
        response.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name) && is(header.value.trim_ascii()))
    };
    match awaits {
        Awaits::Upgrade(accept) if !has("sec-websocket-accept", &|value| value == accept) => Err(Refusal::WrongAccept),
        Awaits::Stream if !has("content-type", &|value| value.starts_with(b"text/event-stream")) => {
            Err(Refusal::NoStream("it is no event stream: the Content-Type is another"))
        }
        Awaits::Stream if has("transfer-encoding", &|_| true) => {
            Err(Refusal::NoStream("it comes in chunks, which this tool does not take apart"))
        }
        Awaits::Upgrade(_) | Awaits::Stream => Ok(Some(whole)),
    }
}

/// What the server sent.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Incoming<'a> {
    Message(&'a [u8]),
    /// A message that is to be inflated.
    Compressed(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The server ends it. Its code, when it gave one.
    Close(Option<u16>),
    /// Messages are missing, the server says.
    Gap,
}

/// The received bytes of one connection that are not yet used up.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Where the first unused byte is.
    at: usize,
    /// Bytes that the frame at `at` has, as far as that is known.
    wanted: usize,
    /// The beginning of a message that came in fragments.
    fragments: Option<Vec<u8>>,
    /// permessage-deflate was offered.
    pub(super) deflate: bool,
    /// A message of fragments that was handed out last, to be thrown away.
    whole: Vec<u8>,
    /// It is an event stream, not frames.
    pub(super) events: bool,
    /// The id of the last event that had one.
    last_id: Vec<u8>,
    /// When the server said to come back, as it ended a WebSocket.
    retry: Option<Duration>,
}

impl Input {
    pub(super) fn new(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// Hands the buffer out to be read into behind what it holds; there is room.
    pub(super) fn lend(&mut self) -> Vec<u8> {
        if self.at == self.bytes.len() {
            self.bytes.clear();
        } else if self.at > 0 {
            self.bytes.drain(..self.at);
        }
        self.at = 0;
        let room = self.wanted.saturating_sub(self.bytes.len()).max(1);
        self.bytes.reserve(room);
        std::mem::take(&mut self.bytes)
    }

    /// Takes the buffer back.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// The bytes that are not used up.
    pub(super) fn unused(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// What to go on after: the id of the last event that had one. `None` before the first, and when it is no text.
    pub(super) fn last_event_id(&self) -> Option<&str> {
        std::str::from_utf8(&self.last_id).ok().filter(|id| !id.is_empty())
    }

    /// When the server said to come back: `retry=` and milliseconds in the reason of its close frame.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Uses bytes up.
    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
    }

    /// Swaps the buffer for one of this capacity, so that a connection does not keep what its handshake needed.
    pub(super) fn resize(&mut self, capacity: usize) {
        let mut bytes = Vec::with_capacity(capacity.max(self.bytes.len() - self.at));
        bytes.extend_from_slice(self.unused());
        (self.bytes, self.at) = (bytes, 0);
    }

    /// The next whole message or control frame.
    ///
    /// # Errors
    /// How the server breaks RFC 6455.
    pub(super) fn next(&mut self) -> Result<Option<Incoming<'_>>, String> {
        if self.events { self.next_event() } else { self.next_frame() }
    }

    /// The next event that is for us.
    fn next_event(&mut self) -> Result<Option<Incoming<'_>>, String> {
        // A buffer that is full without a whole event in it is doubled: an event does not say how long it is.
        self.wanted = 0;
        loop {
            let bytes = &self.bytes[self.at..];
            let Some((Event { id, name, data }, length)) = events::first(bytes) else {
                if bytes.len() as u64 > FRAME_BYTES_MAX {
                    return Err(format!("an event is over this tool's {FRAME_BYTES_MAX} bytes"));
                }
                return Ok(None);
            };
            if let Some(id) = id {
                self.last_id.clear();
                self.last_id.extend_from_slice(id);
            }
            self.at += length;
            match (name, data) {
                (_, None) | (b"shardcast:open", _) => {}
                (b"shardcast:gap", _) => return Ok(Some(Incoming::Gap)),
                (b"shardcast:bye", Some(data)) => return Ok(Some(Incoming::Close(events::bye_code(data)))),
                (_, Some(data)) => return Ok(Some(Incoming::Message(data))),
            }
        }
    }

    fn next_frame(&mut self) -> Result<Option<Incoming<'_>>, String> {
        loop {
            let bytes = &self.bytes[self.at..];
            let Some((header, header_len)) = FrameHeader::parse_agreed(bytes, self.deflate).map_err(|error| error.to_string())? else {
                self.wanted = crate::proto::ws::frame::HEADER_MAX;
                return Ok(None);
            };
            if header.masked.is_some() {
                return Err("a server's frame is masked".to_owned());
            }
            if header.payload_len > FRAME_BYTES_MAX {
                return Err(format!("a frame of {} bytes is over this tool's {FRAME_BYTES_MAX}", header.payload_len));
            }
            let end = header_len + header.payload_len as usize;
            if bytes.len() < end {
                self.wanted = end;
                return Ok(None);
            }
            let payload = self.at + header_len..self.at + end;
            self.at += end;
            self.wanted = 0;
            match header.opcode {
                OpCode::Ping => return Ok(Some(Incoming::Ping(&self.bytes[payload]))),
                OpCode::Pong => return Ok(Some(Incoming::Pong)),
                OpCode::Close => {
                    let code = self.bytes[payload.clone()].first_chunk().map(|code| u16::from_be_bytes(*code));
                    self.retry = retry_of(&self.bytes[payload]);
                    return Ok(Some(Incoming::Close(code)));
                }
                OpCode::Continuation if self.fragments.is_none() => return Err("a continuation of nothing".to_owned()),
                OpCode::Text | OpCode::Binary if self.fragments.is_some() => {
                    return Err("a new message in the middle of another".to_owned());
                }
                OpCode::Text | OpCode::Binary if header.compressed && header.fin => {
                    return Ok(Some(Incoming::Compressed(&self.bytes[payload])));
                }
                OpCode::Text | OpCode::Binary if header.compressed => {
                    return Err("a compressed message in fragments, which this tool does not read".to_owned());
                }
                OpCode::Text | OpCode::Binary if header.fin => return Ok(Some(Incoming::Message(&self.bytes[payload]))),
                OpCode::Text | OpCode::Binary | OpCode::Continuation => {
                    let fragments = self.fragments.get_or_insert_default();
                    fragments.extend_from_slice(&self.bytes[payload]);
                    if fragments.len() as u64 > FRAME_BYTES_MAX {
                        return Err(format!("a message is over this tool's {FRAME_BYTES_MAX} bytes"));
                    }
                    if header.fin {
                        self.whole = self.fragments.take().expect("it was filled just now");
                        return Ok(Some(Incoming::Message(&self.whole)));
                    }
                }
            }
        }
    }
}

/// What the reason in a close frame's payload says of when to come back.
fn retry_of(payload: &[u8]) -> Option<Duration> {
    let reason = std::str::from_utf8(payload.get(2..)?).ok()?;
    let millis = reason.strip_prefix("retry=")?.split(' ').next()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::frame::encode_into;

    fn describe(incoming: &Incoming<'_>) -> String {
        match incoming {
            Incoming::Message(payload) => format!("message {}", payload.len()),
            Incoming::Compressed(payload) => format!("compressed {}", payload.len()),
            Incoming::Ping(payload) => format!("ping {}", payload.len()),
            Incoming::Pong => "pong".to_owned(),
            Incoming::Close(code) => format!("close {code:?}"),
            Incoming::Gap => "gap".to_owned(),
        }
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = Vec::new();
        encode_into(&mut bytes, OpCode::Text, &[b'a'; 125]);
        encode_into(&mut bytes, OpCode::Ping, b"123");
        encode_into(&mut bytes, OpCode::Binary, &[b'b'; 126]);
        bytes.extend_from_slice(&[0x01, 0x02, b'c', b'c', 0x8a, 0x00, 0x80, 0x01, b'c']); // "ccc" in two fragments around a pong
        encode_into(&mut bytes, OpCode::Binary, &vec![b'd'; 70_000]);
        encode_into(&mut bytes, OpCode::Close, &[0x03, 0xe8]);
        let expected = ["message 125", "ping 3", "message 126", "pong", "message 3", "message 70000", "close Some(1000)"];
        for step in [1, 2, 3, 7, 64, 127, 4096, bytes.len()] {
            let mut input = Input::new(16);
            let mut found = Vec::new();
            for chunk in bytes.chunks(step) {
                let mut lent = input.lend();
                assert!(lent.capacity() > lent.len());
                lent.extend_from_slice(chunk);
                input.put_back(lent);
                while let Some(incoming) = input.next().expect("the bytes are valid") {
                    found.push(describe(&incoming));
                }
            }
            assert_eq!(found, expected, "in steps of {step}");
            assert!(input.unused().is_empty());
        }
    }

    #[test]
    fn a_compressed_message_is_one_where_that_was_offered_only() {
        let bytes = [0xc1, 0x03, 1, 2, 3];
        for deflate in [false, true] {
            let mut input = Input { deflate, ..Input::new(16) };
            let mut lent = input.lend();
            lent.extend_from_slice(&bytes);
            input.put_back(lent);
            let next = input.next().map(|incoming| describe(&incoming.expect("it is whole")));
            assert_eq!(next.ok(), deflate.then(|| "compressed 3".to_owned()));
        }
    }

    #[test]
    fn events_are_found_however_they_are_cut() {
        let long = "d".repeat(5000);
        let bytes = format!(
            "retry: 5\n\nid: k.0\nevent: shardcast:open\ndata: {{}}\n\nid: k.1\ndata: abc\n\n:\n\nid: k.5\nevent: shardcast:gap\ndata: {{}}\n\ndata: {long}\n\nid: k.6\nevent: shardcast:bye\ndata: {{\"code\":4503}}\n\n"
        );
        for step in [1, 2, 3, 7, 64, bytes.len()] {
            let mut input = Input { events: true, ..Input::new(16) };
            let mut found = Vec::new();
            for chunk in bytes.as_bytes().chunks(step) {
                let mut lent = input.lend();
                assert!(lent.capacity() > lent.len());
                lent.extend_from_slice(chunk);
                input.put_back(lent);
                while let Some(incoming) = input.next().expect("the bytes are valid") {
                    found.push(describe(&incoming));
                }
            }
            assert_eq!(found, ["message 3", "gap", "message 5000", "close Some(4503)"], "in steps of {step}");
            assert_eq!(input.last_event_id(), Some("k.6"));
            assert!(input.unused().is_empty());
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        for bytes in
            [&[0x81, 0x80, 0, 0, 0, 0][..], &[0x80, 0x00], &[0xc1, 0x00], &[0x01, 0x00, 0x81, 0x00], &[0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0]]
        {
            let mut input = Input::default();
            input.put_back(bytes.to_vec());
            assert!(input.next().is_err(), "{bytes:02x?}");
        }
    }

    #[test]
    fn an_answer_is_taken_when_it_is_whole_and_right() {
        let accept = Awaits::Upgrade(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        let good = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(answer(good, &accept), Ok(Some(good.len())));
        for cut in 0..good.len() {
            assert_eq!(answer(&good[..cut], &accept), Ok(None));
        }
        assert_eq!(answer(b"HTTP/1.1 101 X\r\n\r\n", &accept), Err(Refusal::WrongAccept));
        assert_eq!(answer(b"HTTP/1.1 404 Not Found\r\n\r\n", &accept), Err(Refusal::Status("HTTP/1.1 404 Not Found".to_owned())));
        assert!(matches!(answer(b"SSH-2.0-OpenSSH_9\r\n", &accept), Err(Refusal::NotHttp(_))));

        let stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        assert_eq!(answer(stream, &Awaits::Stream), Ok(Some(stream.len())));
        assert!(matches!(answer(stream, &accept), Err(Refusal::Status(_))));
        assert!(matches!(answer(b"HTTP/1.1 200 OK\r\n\r\n", &Awaits::Stream), Err(Refusal::NoStream(_))));
        assert!(matches!(answer(good, &Awaits::Stream), Err(Refusal::Status(_))));
    }

    #[test]
    fn when_to_come_back_is_found_in_a_refusal_and_in_a_close_frame() {
        let awaits = Awaits::Upgrade(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        let body = b"{\"error\":{\"code\":\"busy\",\"message\":\"\",\"retry_ms\":7312}}\n";
        let head = format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 8\r\nContent-Length: {}\r\n\r\n", body.len());
        let later = |retry_ms| Err(Refusal::Later { line: "HTTP/1.1 503 Service Unavailable".to_owned(), retry_ms });
        let whole = [head.as_bytes(), body].concat();
        assert_eq!((answer(&whole[..head.len() + 9], &awaits), answer(&whole, &awaits)), (Ok(None), later(7312)));
        assert_eq!(answer(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 8\r\n\r\nlater", &awaits), later(8000));
        assert_eq!(answer(b"HTTP/1.1 429 X\r\nRetry-After: Fri\r\n\r\n", &awaits), Err(Refusal::Status("HTTP/1.1 429 X".to_owned())));

        for (payload, retry_ms) in [
            (&b"\x03\xf4retry=8200"[..], Some(8200)),
            (b"\x03\xf4retry=5 slow", Some(5)),
            (b"\x03\xf4retry=", None),
            (b"\x03\xf4x", None),
            (b"", None),
        ] {
            let mut input = Input::new(16);
            let mut bytes = Vec::new();
            encode_into(&mut bytes, OpCode::Close, payload);
            input.put_back(bytes);
            assert!(matches!(input.next(), Ok(Some(Incoming::Close(_)))));
            assert_eq!(input.retry(), retry_ms.map(Duration::from_millis), "{payload:?}");
        }
    }

    #[test]
    fn a_request_says_what_it_was_given() {
        let Request { bytes, awaits } = Request::upgrade("host:1", "/ws?room=r1", &["X-Token: t".to_owned()]);
        let text = String::from_utf8(bytes).expect("it is ASCII");
        assert!(text.starts_with("GET /ws?room=r1 HTTP/1.1\r\nHost: host:1\r\n") && text.ends_with("\r\nX-Token: t\r\n\r\n"), "{text}");
        let key = text.split("Sec-WebSocket-Key: ").nth(1).and_then(|rest| rest.split("\r\n").next()).expect("it has a key");
        assert_eq!(awaits, Awaits::Upgrade(accept_key(key.as_bytes())));

        let Request { bytes, awaits } = Request::stream("host:1", "/events?topic=a", Some("k.7"), &["X-Token: t".to_owned()]);
        let text = String::from_utf8(bytes).expect("it is ASCII");
        assert!(
            text.starts_with("GET /events?topic=a HTTP/1.1\r\nHost: host:1\r\n")
                && text.ends_with("\r\nLast-Event-ID: k.7\r\nX-Token: t\r\n\r\n"),
            "{text}"
        );
        assert_eq!(awaits, Awaits::Stream);
    }
}
