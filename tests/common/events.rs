//! Readers of event streams over a raw socket. What comes is taken apart by the crate's own decoder, which no part of the gateway uses and which has
//! tests of its own against the standard; native clients are in tests/clients.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use shardcast::proto::sse::Decoder;

use super::raw::{End, Raw, Response};
use super::{SOON, Setup, gateway, now};

/// One event, as an `EventSource` would dispatch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: String,
}

impl Event {
    /// The data of one of the gateway's own events.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    pub fn is_message(&self) -> bool {
        !self.name.starts_with("shardcast:")
    }
}

/// An open event stream.
pub struct Reader {
    pub raw: Raw,
    pub response: Response,
    decoder: Decoder,
    waiting: VecDeque<Event>,
    /// The id of the last event taken.
    last_id: String,
    /// Everything that came, undecoded.
    pub bytes: Vec<u8>,
}

/// A request for `path`, with extra header lines (each ended by CRLF).
pub fn get(path: &str, extra: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{extra}\r\n")
}

/// Asks for a stream and reads the head of what is answered.
pub fn request(port: u16, path: &str, extra: &str) -> Reader {
    request_on(Raw::connect(port), path, extra)
}

pub fn request_on(mut raw: Raw, path: &str, extra: &str) -> Reader {
    raw.write(get(path, extra).as_bytes());
    on(raw)
}

/// Reads the head of the answer to a request for a stream.
pub fn on(mut raw: Raw) -> Reader {
    let response = raw.response_to("HEAD");
    Reader { raw, response, decoder: Decoder::new(), waiting: VecDeque::new(), last_id: String::new(), bytes: Vec::new() }
}

/// Opens a stream: its reader, behind `shardcast:open`.
pub fn open(port: u16, path: &str) -> Reader {
    open_with(port, path, "")
}

pub fn open_with(port: u16, path: &str, extra: &str) -> Reader {
    let mut reader = request(port, path, extra);
    reader.expect_open();
    reader
}

/// Comes back as an `EventSource` does.
pub fn resume(port: u16, path: &str, id: &str) -> Reader {
    open_with(port, path, &format!("Last-Event-ID: {id}\r\n"))
}

impl Reader {
    /// The next event, or how the stream ended.
    pub fn next(&mut self) -> Result<Event, End> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.last_id.clone_from(&event.id);
                return Ok(event);
            }
            self.read()?;
        }
    }

    /// Reads once.
    fn read(&mut self) -> Result<(), End> {
        let bytes = self.raw.take()?;
        let waiting = &mut self.waiting;
        self.decoder.feed(&bytes, |event| {
            waiting.push_back(Event { id: event.id.into(), name: event.name.into(), data: event.data.into() });
        });
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    pub fn event(&mut self) -> Event {
        self.next().unwrap_or_else(|end| {
            let tail = &self.bytes[self.bytes.len().saturating_sub(200)..];
            panic!("no event: {end:?}; so far {} bytes, the last {:?}", self.bytes.len(), String::from_utf8_lossy(tail))
        })
    }

    /// The first event is `shardcast:open`: its data.
    pub fn expect_open(&mut self) -> Value {
        assert_eq!(self.response.status, 200, "{:?}", self.response);
        let event = self.event();
        assert_eq!(event.name, "shardcast:open", "{event:?}");
        event.json()
    }

    /// The next event is this message: its id.
    pub fn expect(&mut self, data: &str) -> String {
        let event = self.event();
        assert_eq!((event.name.as_str(), event.data.as_str()), ("message", data), "{event:?}");
        event.id
    }

    /// The next event is this one of the gateway's own: its data.
    pub fn expect_control(&mut self, name: &str) -> Value {
        let event = self.event();
        assert_eq!(event.name, format!("shardcast:{name}"), "{event:?}");
        event.json()
    }

    /// Reads past messages to the end, which `shardcast:bye` announces: its data.
    pub fn expect_bye(&mut self) -> Value {
        let bye = loop {
            let event = self.event();
            if event.name == "shardcast:bye" {
                break event.json();
            }
        };
        assert_eq!(self.next(), Err(End::Eof), "nothing comes behind the goodbye");
        bye
    }

    /// No event comes for this long. Comments may.
    pub fn expect_silence(&mut self, ms: u64) {
        let deadline = now() + Duration::from_millis(ms);
        loop {
            assert_eq!(self.waiting.front(), None, "silence was expected");
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                break;
            }
            self.raw.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a timeout above zero");
            match self.read() {
                Ok(()) | Err(End::Open) => {}
                Err(end) => panic!("silence was expected, and it ended: {end:?}"),
            }
        }
        self.raw.stream.set_read_timeout(Some(SOON)).expect("a timeout above zero");
    }

    /// What to send as `Last-Event-ID`: that of the last event taken from here; more may have come.
    pub fn last_id(&self) -> String {
        self.last_id.clone()
    }

    pub fn retry_ms(&self) -> Option<u64> {
        self.decoder.retry_ms()
    }
}

/// One shard is its topics' home; of three, two serve a topic from elsewhere.
pub const SHARDS: [u16; 2] = [1, 3];

pub fn shards(count: u16) -> Setup {
    gateway().shards(count)
}

/// Publishes and has heard it: it has its place in the topic.
pub fn publish(publisher: &mut Raw, text: &str) {
    publisher.send_text(text);
    publisher.expect_text(text);
}

pub fn publish_all(publisher: &mut Raw, numbers: std::ops::Range<u32>) {
    for number in numbers.clone() {
        publisher.send_text(&number.to_string());
    }
    for number in numbers {
        publisher.expect_text(&number.to_string());
    }
}

pub fn expect_all(reader: &mut Reader, numbers: std::ops::Range<u32>) {
    for number in numbers {
        reader.expect(&number.to_string());
    }
}

pub fn offset(position: &str) -> u64 {
    position.split_once('.').and_then(|(_, offset)| offset.parse().ok()).unwrap_or_else(|| panic!("no position: {position}"))
}

/// What exists is delivered, and a gap says what does not.
pub fn expect_gap(reader: &mut Reader, topic: &str, from: &str, reason: &str) -> u64 {
    let gap = reader.expect_control("gap");
    assert_eq!((gap["topic"].as_str(), gap["from"].as_str(), gap["reason"].as_str()), (Some(topic), Some(from), Some(reason)), "{gap}");
    offset(gap["to"].as_str().expect("a position"))
}
