//! The forms into which messages are made for those who do not get them as they came: events of a stream, and frames of `shardcast.v1.json`.

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
use crate::proto::ws::Deflater;

/// What a shard makes them with.
pub(super) struct Maker {
    /// Compresses, once something was to be.
    deflater: Option<Box<Deflater>>,
    deflate_bytes_min: usize,
    counters: Arc<Counters>,
}

impl Maker {
    pub(super) fn new(limits: &Limits, counters: &Arc<Counters>) -> Self {
        let deflate_bytes_min = usize::try_from(limits.deflate_bytes_min).unwrap_or(usize::MAX);
        Self { deflater: None, deflate_bytes_min, counters: Arc::clone(counters) }
    }

    /// Compresses a payload, where that is worth it.
    pub(super) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        if payload.len() < self.deflate_bytes_min {
            return None;
        }
        let deflated = self.deflater.get_or_insert_default().deflate(payload)?;
        self.counters.deflated.add(1);
        self.counters.deflated_bytes_saved.add((payload.len() - deflated.len()) as u64);
        Some(deflated)
    }

    /// Gives back memory that only large messages need.
    pub(super) fn rest(&mut self) {
        if let Some(deflater) = &mut self.deflater {
            deflater.rest();
        }
    }
}

/// Makes the messages from `fresh` on into a form; `base` is the offset before the log's first.
pub(super) fn make(format: Format, topic: &TopicName, fresh: &Pin, base: u64, epoch: Epoch, out: &mut Vec<u8>, made: &mut Log) {
    fresh.each(|number, frame, bytes| {
        out.clear();
        let offset = frame.offset().unwrap_or(base + number + 1);
        push(format, out, topic, Position { epoch, offset }, frame, bytes.as_slice());
        let attributes = frame.offset().and(frame.attributes.clone());
        made.append_with(if frame.is_not_echoed() { frame.sender } else { BEFORE }, attributes, out, &[]);
        true
    });
}

/// Makes a message into one of a form: of `shardcast.v1.json` a WebSocket frame, else an event, with or without an id.
pub(super) fn push(format: Format, out: &mut Vec<u8>, topic: &TopicName, position: Position, frame: &Frame, bytes: &[u8]) {
    match format {
        Format::Json => json::push_message(out, topic, position, frame, bytes),
        _ => push_event(out, Some(position), frame, bytes),
    }
}

/// Makes a message into an event.
pub(super) fn push_event(out: &mut Vec<u8>, id: Option<Position>, frame: &Frame, bytes: &[u8]) {
    let (kind, payload) = message(bytes);
    let name = frame.event().and_then(|event| EventName::parse(event).ok());
    encode_event(out, id, name.as_ref(), payload, kind);
}
