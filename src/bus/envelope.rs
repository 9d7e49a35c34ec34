//! What a message says beside its payload: headers of ours, and what they mean when they come back.

use bytes::Bytes;
use nats::HeaderMap;

use super::link::{Incoming, Numbered, Outgoing};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::proto::publish::Key;
use crate::proto::sse::EventName;
use crate::proto::ws::MessageKind;

/// The node that a message comes from, and its number there: 16 hexadecimal digits, `-`, a decimal number.
pub(super) const NODE: &str = "Shardcast-Node";
/// Who has said it to that node: shard, slot and generation.
pub(super) const SENDER: &str = "Shardcast-Sender";
/// `no`, where the sender does not want it back.
const ECHO: &str = "Shardcast-Echo";
const NO: &str = "no";
/// `binary`, where a payload is no text though it could be.
const KIND: &str = "Shardcast-Kind";
const BINARY: &str = "binary";
/// The name of the event.
const EVENT: &str = "Shardcast-Event";
/// What it replaces older messages by.
const KEY: &str = "Shardcast-Key";

/// The headers that say what a payload cannot.
pub(super) fn headers(message: &Outgoing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if message.kind == MessageKind::Binary {
        headers.insert(KIND, BINARY);
    }
    if let Some(event) = &message.event {
        headers.insert(EVENT, &**event);
    }
    if let Some(key) = &message.key {
        headers.insert(KEY, &**key);
    }
    if message.tracked.as_ref().is_some_and(|tracked| tracked.no_echo) {
        headers.insert(ECHO, NO);
    }
    headers
}

fn header<'h>(headers: Option<&'h HeaderMap>, name: &str) -> Option<&'h str> {
    headers.and_then(|headers| headers.get(name)).map(|value| value.as_str())
}

/// The node that a message comes from, and its number there, if it says so.
pub(super) fn origin(headers: Option<&HeaderMap>) -> Option<(u64, u64)> {
    let (node, number) = header(headers, NODE)?.split_once('-')?;
    Some((u64::from_str_radix(node, 16).ok()?, number.parse().ok()?))
}

/// The connection of its node that has said it.
fn sender(headers: Option<&HeaderMap>) -> Option<ConnId> {
    let mut parts = header(headers, SENDER)?.split('-');
    let shard = ShardId(parts.next()?.parse().ok()?);
    let (slot, generation) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(ConnId { shard, key: ConnKey { slot, generation } })
}

/// Whether who has said it does not want it back.
fn is_not_echoed(headers: Option<&HeaderMap>) -> bool {
    header(headers, ECHO) == Some(NO)
}

/// The place that a stream has given a message, with who has said it if that was said to this node.
pub(super) fn numbered(headers: Option<&HeaderMap>, node: u64, offset: u64) -> Numbered {
    let is_own = origin(headers).is_some_and(|(other, _)| other == node);
    let sender = if is_own { sender(headers) } else { None };
    Numbered { offset, sender, no_echo: sender.is_some() && is_not_echoed(headers) }
}

/// A message of a topic, as it is meant.
pub(super) fn open(topic: TopicKey, headers: Option<&HeaderMap>, payload: Bytes) -> Incoming {
    let is_text = header(headers, KIND) != Some(BINARY) && simdutf8::basic::from_utf8(&payload).is_ok();
    let kind = if is_text { MessageKind::Text } else { MessageKind::Binary };
    let event = header(headers, EVENT).and_then(|name| EventName::parse(name).ok()).map(|name| name.as_str().into());
    let key = header(headers, KEY).and_then(|key| Key::parse(key).ok()).map(|key| key.as_str().into());
    Incoming { topic, payload, kind, event, key, numbered: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_said_it_is_read_as_it_was_written_and_nothing_else_is() {
        let mut headers = HeaderMap::new();
        headers.insert(NODE, "00000000000000ff-12");
        headers.insert(SENDER, "2-70000-9");
        assert_eq!(origin(Some(&headers)), Some((255, 12)));
        assert_eq!(sender(Some(&headers)), Some(ConnId { shard: ShardId(2), key: ConnKey { slot: 70_000, generation: 9 } }));
        headers.insert(ECHO, NO);
        let who = sender(Some(&headers));
        assert_eq!(numbered(Some(&headers), 255, 7), Numbered { offset: 7, sender: who, no_echo: true });
        assert_eq!(numbered(Some(&headers), 254, 7), Numbered { offset: 7, sender: None, no_echo: false }, "of another node");
        for strange in ["", "1", "1-2", "x-2-3", "1-2-y", "99999999-2-3"] {
            headers.insert(SENDER, strange);
            assert_eq!(sender(Some(&headers)), None, "{strange}");
        }
        assert_eq!((origin(None), sender(None)), (None, None));
    }
}
