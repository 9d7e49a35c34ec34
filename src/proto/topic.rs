//! The name of a topic (a room), checked once where it enters.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A topic's name: 1 to 255 bytes of UTF-8 without control characters. Clones share one allocation.
///
/// ```
/// use shardcast::proto::topic::TopicName;
///
/// let lobby = TopicName::parse("lobby")?;
/// assert_eq!(lobby.as_str(), "lobby");
/// assert_eq!(TopicName::parse("").unwrap_err().to_string(), "topic name is empty; 1 to 255 bytes are allowed");
/// # Ok::<(), shardcast::proto::topic::TopicNameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// The room of a client that names none.
    pub fn default_room() -> Self {
        Self(Arc::from("default"))
    }

    /// Checks a name and takes a copy of it.
    ///
    /// # Errors
    /// Empty, over [`Self::BYTES_MAX`], or with a control character (Unicode category Cc, so that a name never breaks a line of a log,
    /// of an event stream or of a NATS protocol message).
    pub fn parse(name: &str) -> Result<Self, TopicNameError> {
        check_length(name.len())?;
        match name.char_indices().find(|(_, char)| char.is_control()) {
            Some((at, char)) => Err(TopicNameError::ControlCharacter { code: u32::from(char), at }),
            None => Ok(Self(Arc::from(name))),
        }
    }

    /// The same for bytes whose encoding nobody has checked yet, such as a percent-decoded query value.
    ///
    /// # Errors
    /// As [`Self::parse`], and for bytes that are not UTF-8.
    pub fn from_bytes(name: &[u8]) -> Result<Self, TopicNameError> {
        check_length(name.len())?;
        let name = str::from_utf8(name).map_err(|error| TopicNameError::NotUtf8 { at: error.valid_up_to() })?;
        Self::parse(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Maps keyed by names are looked up by `&str`, without a `TopicName` made for the question.
impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// Why a name is no [`TopicName`]. The fault is always the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicNameError {
    /// No bytes at all.
    #[error("topic name is empty; 1 to {max} bytes are allowed", max = TopicName::BYTES_MAX)]
    Empty,
    /// Over [`TopicName::BYTES_MAX`].
    #[error("topic name is {bytes} bytes; 1 to {max} bytes are allowed", max = TopicName::BYTES_MAX)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A character of category Cc.
    #[error("topic name has the control character U+{code:04X} at byte {at}; remove it")]
    ControlCharacter {
        /// Which character.
        code: u32,
        /// Where, in bytes from the start.
        at: usize,
    },
    /// Not UTF-8.
    #[error("topic name is not UTF-8 from byte {at} on; encode it as UTF-8")]
    NotUtf8 {
        /// How many bytes from the start are UTF-8.
        at: usize,
    },
}

fn check_length(bytes: usize) -> Result<(), TopicNameError> {
    match bytes {
        0 => Err(TopicNameError::Empty),
        1..=TopicName::BYTES_MAX => Ok(()),
        _ => Err(TopicNameError::TooLong { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &[u8], expect: Result<&str, TopicNameError>) {
        assert_eq!(TopicName::from_bytes(name).as_ref().map(TopicName::as_str).map_err(|error| *error), expect, "{name:?}");
    }

    #[test]
    fn a_name_is_1_to_255_bytes() {
        let longest = "ü".repeat(127) + "x";
        check(b"", Err(TopicNameError::Empty));
        check(b"a", Ok("a"));
        check(longest.as_bytes(), Ok(&longest));
        check(&[b'a'; 256], Err(TopicNameError::TooLong { bytes: 256 }));
        check(&[0xff; 256], Err(TopicNameError::TooLong { bytes: 256 }));
    }

    #[test]
    fn a_name_is_any_script_but_no_control_character() {
        for name in ["lobby", "a b", "*", ">", "$SYS.x", "комната/1", "部屋", "🦀", "a\u{a0}b"] {
            check(name.as_bytes(), Ok(name));
        }
        for (name, code, at) in [("a\nb", 0x0a, 1), ("\0", 0, 0), ("ab\r", 0x0d, 2), ("\u{7f}", 0x7f, 0), ("ü\u{85}", 0x85, 2)] {
            check(name.as_bytes(), Err(TopicNameError::ControlCharacter { code, at }));
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused_with_its_place() {
        check(b"ab\xff", Err(TopicNameError::NotUtf8 { at: 2 }));
        check(b"\xed\xa0\x80", Err(TopicNameError::NotUtf8 { at: 0 }));
        assert_eq!(
            TopicName::from_bytes(b"a\x01").unwrap_err().to_string(),
            "topic name has the control character U+0001 at byte 1; remove it"
        );
    }

    #[test]
    fn a_map_of_topics_is_asked_with_plain_text() {
        let mut topics = std::collections::HashMap::from([(TopicName::default_room(), 1)]);
        topics.insert(TopicName::parse("部屋").expect("a valid name"), 2);
        assert_eq!((topics.get("部屋"), topics.get("default"), topics.get("Default")), (Some(&2), Some(&1), None));
        assert!(topics.keys().all(|name| name.as_ref() as &str == name.as_str()));
    }

    #[test]
    fn the_default_room_is_a_valid_name() {
        assert_eq!(TopicName::parse("default"), Ok(TopicName::default_room()));
        assert_eq!(format!("{0} {0:?}", TopicName::default_room()), "default \"default\"");
    }
}
