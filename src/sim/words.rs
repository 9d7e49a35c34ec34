//! What the gateway says in `shardcast.v1.json`, and in answers to polls, as another parser reads it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Something that is said to a client of `shardcast.v1.json`.
#[derive(Deserialize)]
pub(super) struct Told<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    pub(super) topic: Option<&'a str>,
    pub(super) pos: Option<&'a str>,
    // Of `welcome`.
    pub(super) conn: Option<String>,
    // Of `subscribed`.
    pub(super) recovered: Option<bool>,
    pub(super) replayed: Option<u64>,
    // Of a message.
    data: Option<String>,
    data_b64: Option<&'a str>,
    pub(super) key: Option<&'a str>,
    // Of a gap.
    pub(super) from: Option<&'a str>,
    pub(super) to: Option<&'a str>,
    pub(super) until: Option<&'a str>,
    pub(super) reason: Option<String>,
    // Of a receipt.
    pub(super) subscribers: Option<u64>,
    #[serde(default)]
    pub(super) duplicate: bool,
    // Of an error, or a goodbye.
    #[serde(borrow)]
    pub(super) code: Option<&'a RawValue>,
    pub(super) retry_ms: Option<u64>,
    // Of a history.
    #[serde(default, borrow)]
    pub(super) messages: Vec<Entry<'a>>,
    pub(super) next: Option<&'a str>,
    // Of who is in a topic.
    pub(super) count: Option<u64>,
    #[serde(default)]
    pub(super) members: Vec<Member>,
}

/// Who is in a topic.
#[derive(Deserialize)]
pub(super) struct Member {
    pub(super) conn: String,
}

/// A message, or a gap, in an answer to a poll or a history.
#[derive(Deserialize)]
pub(super) struct Entry<'a> {
    pub(super) topic: &'a str,
    pub(super) pos: Option<&'a str>,
    pub(super) data: Option<String>,
    pub(super) data_b64: Option<&'a str>,
    #[serde(borrow)]
    pub(super) gap: Option<Gap<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Gap<'a> {
    pub(super) from: Option<&'a str>,
    pub(super) to: &'a str,
    pub(super) reason: &'a str,
}

impl<'a> Told<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, for a panic.
    pub(super) fn read(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// The room that it is about.
    pub(super) fn room(&self) -> Option<usize> {
        room_of(self.topic?)
    }

    /// A message's payload, and whether it is text.
    pub(super) fn payload(&self) -> Option<(bool, Vec<u8>)> {
        payload(self.data.as_deref(), self.data_b64)
    }

    /// The request that it answers, or the code, without quotes.
    pub(super) fn id(&self) -> &'a str {
        self.id.map_or("", |id| id.get().trim_matches('"'))
    }

    pub(super) fn code(&self) -> &'a str {
        self.code.map_or("", |code| code.get().trim_matches('"'))
    }
}

/// The room that a topic is.
pub(super) fn room_of(topic: &str) -> Option<usize> {
    topic.strip_prefix("room-")?.parse().ok()
}

/// A payload of `data` or `data_b64`, and whether it is text; none where it is neither or both.
pub(super) fn payload(data: Option<&str>, data_b64: Option<&str>) -> Option<(bool, Vec<u8>)> {
    match (data, data_b64) {
        (Some(data), None) => Some((true, data.as_bytes().to_vec())),
        (None, Some(bytes)) => Some((false, STANDARD.decode(bytes).ok()?)),
        _ => None,
    }
}
