//! The JSON of a list of topics, `GET /v1/topics`, and the token with which the next part of it is asked for.

use std::fmt;

use super::json::{push_number, push_position, push_string};
use super::position::Position;

/// Where a list goes on: a shard, and a place in its table. Opaque to clients; topics that come or go meanwhile move no other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ListCursor {
    /// The shard.
    pub shard: u16,
    /// The place.
    pub slot: u32,
}

impl ListCursor {
    /// Reads what [`fmt::Display`] writes; none when it is something else.
    ///
    /// ```
    /// use shardcast::proto::listing::ListCursor;
    ///
    /// assert_eq!(ListCursor::parse("1.512"), Some(ListCursor { shard: 1, slot: 512 }));
    /// assert_eq!(ListCursor::parse("1"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let (shard, slot) = text.split_once('.')?;
        Some(Self { shard: shard.parse().ok()?, slot: slot.parse().ok()? })
    }
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.shard, self.slot)
    }
}

/// One topic of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed<'a> {
    /// Its name.
    pub topic: &'a str,
    /// Its newest message; none when it has had none.
    pub position: Option<Position>,
    /// Members on this node.
    pub subscribers: u64,
    /// Messages in its history.
    pub messages: u64,
}

impl Listed<'_> {
    /// Appends it to the members of an array, with a comma in front unless it is the first.
    pub fn push(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if out.is_empty() { b"{\"topic\":" } else { b",{\"topic\":" });
        push_string(out, self.topic);
        out.extend_from_slice(b",\"pos\":");
        push_position(out, self.position);
        out.extend_from_slice(b",\"subscribers\":");
        push_number(out, self.subscribers);
        out.extend_from_slice(b",\"messages\":");
        push_number(out, self.messages);
        out.push(b'}');
    }
}

/// The whole answer: what was pushed, where the list goes on if it does, and a line end.
///
/// ```
/// use shardcast::proto::listing::{ListCursor, Listed, answer};
///
/// let mut topics = Vec::new();
/// Listed { topic: "a", position: None, subscribers: 2, messages: 0 }.push(&mut topics);
/// assert_eq!(answer(&topics, None), b"{\"topics\":[{\"topic\":\"a\",\"pos\":null,\"subscribers\":2,\"messages\":0}],\"next\":null}\n");
/// assert_eq!(answer(b"", Some(ListCursor { shard: 1, slot: 64 })), b"{\"topics\":[],\"next\":\"1.64\"}\n");
/// ```
pub fn answer(topics: &[u8], next: Option<ListCursor>) -> Vec<u8> {
    let mut out = Vec::with_capacity(topics.len() + 48);
    out.extend_from_slice(b"{\"topics\":[");
    out.extend_from_slice(topics);
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(cursor) => out.extend_from_slice(format!("\"{cursor}\"").as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::Epoch;

    #[test]
    fn a_cursor_survives_the_round_trip_and_nothing_else_is_one() {
        for cursor in [ListCursor::default(), ListCursor { shard: u16::MAX, slot: u32::MAX }] {
            assert_eq!(ListCursor::parse(&cursor.to_string()), Some(cursor));
        }
        for text in ["", ".", "1.", ".1", "65536.0", "0.4294967296", "1.2.3", "-1.0", "a.b"] {
            assert_eq!(ListCursor::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_is_json_whatever_its_topics_are_called() {
        let mut topics = Vec::new();
        let position = Some(Position { epoch: Epoch(36), offset: 7 });
        for topic in ["\"\\", "é"] {
            Listed { topic, position, subscribers: 1, messages: 3 }.push(&mut topics);
        }
        let json: serde_json::Value = serde_json::from_slice(&answer(&topics, None)).expect("JSON");
        assert_eq!((&json["topics"][0]["topic"], &json["topics"][1]["topic"]), (&"\"\\".into(), &"é".into()));
        assert_eq!((&json["topics"][1]["pos"], &json["topics"][1]["messages"]), (&"10.7".into(), &3.into()));
    }
}
