//! The forms into which messages are made for those who do not get them as they came: events of a stream, and frames of `shardcast.v1.json`.

use super::feed::Format;
use super::json;
use super::snapshot::BEFORE;
use super::streams::message;
use crate::engine::log::{Frame, Log, Pin};
use crate::proto::position::{Epoch, Position};
use crate::proto::sse::{EventName, encode_event};
use crate::proto::topic::TopicName;

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
