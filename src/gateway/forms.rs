//! The forms into which messages are made for those who do not get them as they came: events of a stream, frames of `shardcast.v1.json`, and compressed
//! frames. A message is made into a form once for all on the shard who get it so.

use std::mem;
use std::sync::Arc;

use super::counters::Counters;
use super::feed::Format;
use super::json;
use super::snapshot::BEFORE;
use super::streams::message;
use crate::engine::log::{Frame, Log, Pin};
use crate::limits::Limits;
use crate::proto::position::{Epoch, Position};
use crate::proto::sse::{EventName, encode_event};
use crate::proto::topic::TopicName;
use crate::proto::ws::deflate::{Deflater, TAIL, store};
use crate::proto::ws::frame::compressed_header;

/// Whose messages they are.
pub(super) struct Source<'a> {
    pub(super) topic: &'a TopicName,
    /// The offset before the log's first.
    pub(super) base: u64,
    pub(super) epoch: Epoch,
    /// Made messages know their keys, as they may have to replace each other.
    pub(super) keeps_keys: bool,
}

/// A larger scratch than this is given back when the shard looks for what it can.
const OUT_BYTES_KEPT: usize = 256 * 1024;

/// To compress so many bytes takes about as long as to take a message from a client and send it on.
const BYTES_A_MESSAGE: u64 = 4096;

/// What a shard makes them with.
pub(super) struct Maker {
    /// Compresses, once something was to be.
    deflater: Option<Box<Deflater>>,
    deflate_bytes_min: usize,
    counters: Arc<Counters>,
    out: Vec<u8>,
    /// Bytes that it was given to compress, and that no turn has been charged for.
    uncharged: u64,
}

impl Maker {
    pub(super) fn new(limits: &Limits, counters: &Arc<Counters>) -> Self {
        let deflate_bytes_min = usize::try_from(limits.deflate_bytes_min).unwrap_or(usize::MAX);
        Self { deflater: None, deflate_bytes_min, counters: Arc::clone(counters), out: Vec::new(), uncharged: 0 }
    }

    /// Makes the messages from `fresh` on into a form.
    pub(super) fn make(&mut self, format: Format, source: &Source<'_>, fresh: &Pin, made: &mut Log) {
        let mut out = mem::take(&mut self.out);
        fresh.each(|number, frame, bytes| {
            out.clear();
            let offset = frame.offset().unwrap_or(source.base + number + 1);
            self.push(format, &mut out, source.topic, Position { epoch: source.epoch, offset }, frame, bytes.as_slice());
            let is_needed = frame.offset().is_some() || (source.keeps_keys && frame.key().is_some());
            let attributes = if is_needed { frame.attributes.clone() } else { None };
            // A raw WebSocket may leave out all that is its own.
            let is_its_own = format.plain() == Format::Raw || frame.is_not_echoed();
            made.append_with(if is_its_own { frame.sender } else { BEFORE }, attributes, &out, &[]);
            true
        });
        self.out = out;
    }

    /// Makes a message into one of a form: a WebSocket frame as it came or of `shardcast.v1.json`, compressed or not, else an event with an id.
    pub(super) fn push(&mut self, format: Format, out: &mut Vec<u8>, topic: &TopicName, position: Position, frame: &Frame, bytes: &[u8]) {
        let start = out.len();
        match format.plain() {
            Format::Raw => out.extend_from_slice(bytes),
            Format::Json => json::push_message(out, topic, position, frame, bytes),
            Format::Lines => json::push_line(out, topic, position, frame, bytes),
            _ => return push_event(out, Some(position), frame, bytes),
        }
        if format == format.plain() {
            return;
        }
        if format == Format::LinesDeflate {
            match self.deflate(&out[start..]) {
                Some(deflated) => {
                    out.truncate(start);
                    out.extend_from_slice(deflated);
                }
                None => store(out, start),
            }
            out.extend_from_slice(&TAIL);
            return;
        }
        let (kind, payload) = message(&out[start..]);
        if let Some(deflated) = self.deflate(payload) {
            let (header, len) = compressed_header(kind.opcode(), deflated.len());
            out.truncate(start);
            out.extend_from_slice(&header[..len]);
            out.extend_from_slice(deflated);
        }
    }

    /// Compresses a payload, where that is worth it.
    pub(super) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        if payload.len() < self.deflate_bytes_min {
            return None;
        }
        self.uncharged += payload.len() as u64;
        let deflated = self.deflater.get_or_insert_default().deflate(payload)?;
        self.counters.deflated.add(1);
        self.counters.deflated_bytes_saved.add((payload.len() - deflated.len()) as u64);
        Some(deflated)
    }

    /// For how many messages of a turn what was compressed since the last call counts.
    pub(super) fn take_charge(&mut self) -> u64 {
        let charge = self.uncharged / BYTES_A_MESSAGE;
        self.uncharged %= BYTES_A_MESSAGE;
        charge
    }

    /// Gives back memory that only large messages need.
    pub(super) fn rest(&mut self) {
        if let Some(deflater) = &mut self.deflater {
            deflater.rest();
        }
        if self.out.capacity() > OUT_BYTES_KEPT {
            self.out = Vec::new();
        }
    }
}

/// Makes a message into an event.
pub(super) fn push_event(out: &mut Vec<u8>, id: Option<Position>, frame: &Frame, bytes: &[u8]) {
    let (kind, payload) = message(bytes);
    let name = frame.event().and_then(|event| EventName::parse(event).ok());
    encode_event(out, id, name.as_ref(), payload, kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_counts_as_messages_of_the_turn() {
        let limits = Limits { deflate_bytes_min: 100, ..Limits::default() };
        let counters = Arc::new(Counters::default());
        let mut maker = Maker::new(&limits, &counters);
        assert!(maker.deflate(&[0; 99]).is_none(), "below the bound nothing is compressed");
        assert_eq!(maker.take_charge(), 0);
        for (bytes, charge) in [(1000, 0), (3000, 0), (100, 1), (65_536, 16), (3991, 0), (101, 1)] {
            assert!(maker.deflate(&vec![0; bytes]).is_some_and(|deflated| deflated.len() < bytes));
            assert_eq!(maker.take_charge(), charge, "{bytes} bytes");
        }
        assert_eq!(counters.deflated.value(), 6);
    }
}
