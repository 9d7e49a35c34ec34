//! What goes through topics, and where it is: payloads, messages, positions, gaps, receipts. Values only.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest position that is taken, in bytes.
const POSITION_BYTES_MAX: usize = 64;

/// A place in a topic, as the gateway prints it: `k3f9.1042`. Opaque: keep it, and give it to [`Start::After`].
///
/// ```
/// use shardcast::client::Position;
///
/// let position: Position = "k3f9.1042".parse()?;
/// assert_eq!(position.as_str(), "k3f9.1042");
/// assert!("yesterday".parse::<Position>().is_err());
/// # Ok::<(), shardcast::client::PositionError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Position(Box<str>);

/// A text that is no position.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no position; one looks like k3f9.1042, and comes with each message")]
pub struct PositionError(Box<str>);

impl Position {
    /// As it is printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether no message is before it.
    pub(super) fn is_beginning(&self) -> bool {
        self.0.split_once('.').is_some_and(|(_, offset)| offset.bytes().all(|digit| digit == b'0'))
    }

    /// Whether it comes after another one of its topic. Offsets of two epochs say nothing about each other, so a new epoch is always after.
    pub(super) fn is_after(&self, other: &Self) -> bool {
        let offset = |text: &str| text.parse::<u64>().ok();
        match (
            self.0.split_once('.').map(|(epoch, text)| (epoch, offset(text))),
            other.0.split_once('.').map(|(epoch, text)| (epoch, offset(text))),
        ) {
            (Some((epoch, offset)), Some((was, had))) => epoch != was || offset > had,
            _ => true,
        }
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_position = text.len() <= POSITION_BYTES_MAX
            && text.split_once('.').is_some_and(|(epoch, offset)| is_word(epoch) && offset.parse::<u64>().is_ok());
        if is_position { Ok(Self(text.into())) } else { Err(PositionError(text.chars().take(POSITION_BYTES_MAX).collect())) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a subscription begins (docs/protocol.md section 3).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Start {
    /// With the next message.
    #[default]
    Latest,
    /// With the oldest message that is kept.
    Earliest,
    /// With what came after this.
    After(Position),
    /// With the newest so many messages.
    Last(u32),
    /// With the messages of this time, or a little more. In whole seconds, rounded up.
    Ago(Duration),
}

/// A payload: a text, or bytes that are none. JSON is a text; [`Data::json`] makes one of a value, [`Data::parse`] a value of one.
///
/// ```
/// use shardcast::client::Data;
///
/// assert_eq!(Data::from("hello").as_text(), Some("hello"));
/// assert_eq!(Data::json(&[1, 2])?, Data::from("[1,2]"));
/// assert_eq!(Data::from("[1, 2]").parse::<Vec<u8>>()?, [1, 2]);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Data {
    /// A text.
    Text(String),
    /// Binary.
    Binary(Vec<u8>),
}

impl Data {
    /// The JSON of a value, without spaces.
    ///
    /// # Errors
    /// It has no JSON: a map whose keys are no strings, for example.
    pub fn json(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::to_string(value).map(Self::Text)
    }

    /// The value that it is the JSON of.
    ///
    /// # Errors
    /// It is no JSON, or of something else.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.as_bytes())
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// The bytes of either.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Data {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        Self::Binary(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes)
    }
}

/// A message of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Which topic.
    pub topic: Arc<str>,
    /// Its place there.
    pub pos: Position,
    /// Its payload.
    pub data: Data,
    /// The name that its publisher gave it.
    pub event: Option<Box<str>>,
}

/// Messages of a topic that did not come and will not: told once, before what comes after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Which topic.
    pub topic: Arc<str>,
    /// The last message before them; none where that position says nothing to the gateway.
    pub from: Option<Position>,
    /// The last that may be missing: what comes next is behind it.
    pub to: Position,
    /// Why.
    pub reason: GapReason,
}

/// Why messages are missing.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GapReason {
    /// The history does not reach back that far any more.
    TooOld,
    /// The gateway was started again, and its positions with it.
    Restart,
    /// Nobody can say what the position means there.
    Unknown,
    /// This reader was too slow.
    Slow,
    /// The gateway has ended the connection for it twice (4510), so that it began anew.
    ContinuityLost,
    /// The topic is of a pattern that has brought more of them than could be asked for again by their names after a loss, each from where it was.
    NotResumed,
    /// A word that this version of the client does not know.
    Other(Box<str>),
}

impl GapReason {
    pub(super) fn parse(word: &str) -> Self {
        match word {
            "too_old" => Self::TooOld,
            "restart" => Self::Restart,
            "unknown" => Self::Unknown,
            "slow" => Self::Slow,
            other => Self::Other(other.into()),
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooOld => "too_old",
            Self::Restart => "restart",
            Self::Unknown => "unknown",
            Self::Slow => "slow",
            Self::ContinuityLost => "continuity_lost",
            Self::NotResumed => "not_resumed",
            Self::Other(word) => word,
        })
    }
}

/// What the gateway says of a message that it has published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Its place in the topic.
    pub pos: Position,
    /// Members that the topic had there.
    pub subscribers: u64,
    /// It had been published before under the same id, and was not again.
    pub duplicate: bool,
}

/// A part of what a topic has kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// What is missing before the first of them.
    pub gap: Option<Gap>,
    /// Where the next part begins ([`Start::After`]); none where the gateway does not say.
    pub next: Option<Position>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_prints_is_a_position_and_nothing_else() {
        for text in ["k3f9.0", "a.18446744073709551615"] {
            assert_eq!(text.parse::<Position>().expect(text).to_string(), text);
        }
        for text in ["", ".", "a.", ".5", "a.b", "a.1,2", "a b.1", "a.18446744073709551616", &format!("{}.1", "a".repeat(70))] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn before_the_first_message_is_the_beginning() {
        for (text, is_beginning) in [("a.0", true), ("0.0", true), ("a.10", false), ("0.1", false)] {
            assert_eq!(text.parse::<Position>().expect("a position").is_beginning(), is_beginning, "{text}");
        }
    }

    #[test]
    fn positions_of_one_epoch_have_an_order_and_another_epoch_is_always_new() {
        let at = |text: &str| text.parse::<Position>().expect("a position");
        for (later, earlier, is_after) in
            [("a.10", "a.9", true), ("a.9", "a.10", false), ("a.9", "a.9", false), ("b.1", "a.9", true), ("a.9", "b.10", true)]
        {
            assert_eq!(at(later).is_after(&at(earlier)), is_after, "{later} {earlier}");
        }
    }
}
