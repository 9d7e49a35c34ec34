//! The forms into which messages are made for those who do not get them as they came: events of a stream, and frames of `shardcast.v1.json`.

use super::feed::Format;
use super::json;
use super::snapshot::BEFORE;
use super::streams::message;
use crate::engine::log::{Frame, Log, Pin};
use crate::proto::position::{Epoch, Position};
use crate::proto::sse::{EventName, encode_event};
use crate::proto::topic::TopicName;

/// Whose messages they are.
pub(super) struct Source<'a> {
    pub(super) topic: &'a TopicName,
    /// The offset before the log's first.
    pub(super) base: u64,
    pub(super) epoch: Epoch,
    /// Made messages know their keys, as they may have to replace each other.
    pub(super) keeps_keys: bool,
}

/// Makes the messages from `fresh` on into a form.
pub(super) fn make(format: Format, source: &Source<'_>, fresh: &Pin, out: &mut Vec<u8>, made: &mut Log) {
    fresh.each(|number, frame, bytes| {
        out.clear();
        let offset = frame.offset().unwrap_or(source.base + number + 1);
        push(format, out, source.topic, Position { epoch: source.epoch, offset }, frame, bytes.as_slice());
        let is_needed = frame.offset().is_some() || (source.keeps_keys && frame.key().is_some());
        let attributes = if is_needed { frame.attributes.clone() } else { None };
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
