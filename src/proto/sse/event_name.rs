//! The name of an event, checked once where it enters.

use std::borrow::Cow;
use std::fmt;

/// What the names of the gateway's own events begin with.
pub const CONTROL_PREFIX: &str = "shardcast:";

/// The name that a publisher gives its message, `event.type` in a browser: 1 to 64 bytes without control characters, and not one of ours.
///
/// ```
/// use shardcast::proto::sse::EventName;
///
/// assert_eq!(EventName::parse("price")?.as_str(), "price");
/// assert!(EventName::parse("price\ndata: forged").is_err());
/// # Ok::<(), shardcast::proto::sse::EventNameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EventName<'a>(Cow<'a, str>);

impl<'a> EventName<'a> {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// Empty, over [`Self::BYTES_MAX`], with a control character (a line end would begin a field of the sender's choice), or with
    /// [`CONTROL_PREFIX`].
    pub fn parse(name: impl Into<Cow<'a, str>>) -> Result<Self, EventNameError> {
        let name = name.into();
        match name.len() {
            0 => return Err(EventNameError::Empty),
            1..=Self::BYTES_MAX => {}
            bytes => return Err(EventNameError::TooLong { bytes }),
        }
        if let Some((at, char)) = name.char_indices().find(|(_, char)| char.is_control()) {
            return Err(EventNameError::ControlCharacter { code: u32::from(char), at });
        }
        if name.starts_with(CONTROL_PREFIX) { Err(EventNameError::Reserved) } else { Ok(Self(name)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same name with bytes of its own.
    pub fn into_owned(self) -> EventName<'static> {
        EventName(Cow::Owned(self.0.into_owned()))
    }
}

impl fmt::Display for EventName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a name is no [`EventName`]. The fault is always the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EventNameError {
    /// No bytes at all.
    #[error("event name is empty; 1 to {max} bytes are allowed", max = EventName::BYTES_MAX)]
    Empty,
    /// Over [`EventName::BYTES_MAX`].
    #[error("event name is {bytes} bytes; 1 to {max} bytes are allowed", max = EventName::BYTES_MAX)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A character of category Cc.
    #[error("event name has the control character U+{code:04X} at byte {at}; remove it")]
    ControlCharacter {
        /// Which character.
        code: u32,
        /// Where, in bytes from the start.
        at: usize,
    },
    /// One of ours.
    #[error("event name begins with {CONTROL_PREFIX}, which the gateway keeps for its own events; choose another")]
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_1_to_64_bytes_without_control_characters_and_not_ours() {
        let longest = "ü".repeat(32);
        for name in ["a", " a ", "a:b", "error", "Shardcast:open", "shardcast", "部屋", &longest] {
            let parsed = EventName::parse(name).expect("a name");
            assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (name, name));
            assert_eq!(parsed.clone().into_owned(), parsed);
        }
        for (name, error) in [
            ("", EventNameError::Empty),
            (&"a".repeat(65), EventNameError::TooLong { bytes: 65 }),
            ("a\nb", EventNameError::ControlCharacter { code: 10, at: 1 }),
            ("\r", EventNameError::ControlCharacter { code: 13, at: 0 }),
            ("ü\0", EventNameError::ControlCharacter { code: 0, at: 2 }),
            ("\u{85}", EventNameError::ControlCharacter { code: 0x85, at: 0 }),
            ("shardcast:", EventNameError::Reserved),
            ("shardcast:open", EventNameError::Reserved),
        ] {
            assert_eq!(EventName::parse(name), Err(error), "{name:?}");
        }
        assert_eq!(
            EventNameError::Reserved.to_string(),
            "event name begins with shardcast:, which the gateway keeps for its own events; choose another"
        );
    }
}
