//! A publisher's own string: the idempotency key of a message, and the key by which messages replace each other.

use std::borrow::Cow;

/// A string that is compared and passed on but never understood: 1 to 255 bytes without control characters.
///
/// ```
/// use shardcast::proto::publish::Key;
///
/// assert_eq!(Key::parse("order-17")?.as_str(), "order-17");
/// assert_eq!(Key::parse("").unwrap_err().to_string(), "is empty; 1 to 255 bytes are allowed");
/// # Ok::<(), shardcast::proto::publish::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key<'a>(Cow<'a, str>);

impl<'a> Key<'a> {
    /// The longest key, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Checks a key: `id` and `key` of an item, or what the header `Idempotency-Key` and the query's `key` say.
    ///
    /// # Errors
    /// Empty, over [`Self::BYTES_MAX`], or with a control character, so that it never breaks a header of another protocol.
    pub fn parse(key: impl Into<Cow<'a, str>>) -> Result<Self, KeyError> {
        let key = key.into();
        match key.len() {
            0 => Err(KeyError::Empty),
            1..=Self::BYTES_MAX => match key.char_indices().find(|(_, char)| char.is_control()) {
                Some((at, char)) => Err(KeyError::ControlCharacter { code: u32::from(char), at }),
                None => Ok(Self(key)),
            },
            bytes => Err(KeyError::TooLong { bytes }),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no [`Key`]; to be read after the name of the field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("is empty; 1 to {max} bytes are allowed", max = Key::BYTES_MAX)]
    Empty,
    /// Over [`Key::BYTES_MAX`].
    #[error("is {bytes} bytes; 1 to {max} bytes are allowed", max = Key::BYTES_MAX)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A character of category Cc.
    #[error("has the control character U+{code:04X} at byte {at}; remove it")]
    ControlCharacter {
        /// Which character.
        code: u32,
        /// Where, in bytes from the start.
        at: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_1_to_255_bytes_without_control_characters() {
        let longest = "ü".repeat(127) + "x";
        for key in ["k", " ", "\"a\"", "部屋", &longest] {
            assert_eq!(Key::parse(key).as_ref().map(Key::as_str), Ok(key));
        }
        for (key, error) in [
            ("", KeyError::Empty),
            (&"k".repeat(256), KeyError::TooLong { bytes: 256 }),
            ("a\r\nb", KeyError::ControlCharacter { code: 13, at: 1 }),
            ("ü\u{85}", KeyError::ControlCharacter { code: 0x85, at: 2 }),
        ] {
            assert_eq!(Key::parse(key), Err(error), "{key:?}");
        }
    }
}
