//! Which topics a setting is for: a name, or what names begin with and a `*`.

use std::fmt;

use super::topic::{TopicName, TopicNameError};

/// A name, or what names begin with. `*` stands for anything, nothing too, and only at the end.
///
/// ```
/// use shardcast::proto::pattern::Pattern;
///
/// let rooms: Pattern = "rooms.*".parse()?;
/// assert!(rooms.matches("rooms.1") && rooms.matches("rooms.") && !rooms.matches("lobby"));
/// assert_eq!("a*b".parse::<Pattern>().unwrap_err().to_string(), "\"a*b\" has a * that is not at its end; write a name, or what names begin with and a *");
/// # Ok::<(), shardcast::proto::pattern::PatternError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    pub(super) prefix: Box<str>,
    /// Whether anything may follow.
    pub(super) open: bool,
}

/// Why a text is no pattern of topics.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// A `*` in the middle.
    #[error("{0:?} has a * that is not at its end; write a name, or what names begin with and a *")]
    Star(String),
    /// No topic is called so.
    #[error("{pattern:?} matches no topic: {why}")]
    Name {
        /// As it was written.
        pattern: String,
        /// What is wrong with it as a name.
        why: TopicNameError,
    },
}

impl Pattern {
    /// Whatever the text is: what ends in a `*` is open.
    pub(super) fn new(text: &str) -> Self {
        let prefix = text.strip_suffix('*');
        Self { prefix: prefix.unwrap_or(text).into(), open: prefix.is_some() }
    }

    /// Whether a topic of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.rest(name).is_some()
    }

    /// What is left of a name that it matches.
    pub(super) fn rest<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(&*self.prefix).filter(|rest| self.open || rest.is_empty())
    }

    /// Whether it matches every name that the other one does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.rest(&other.prefix).is_some() && (self.open || !other.open)
    }

    /// Whether some name is matched by both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.rest(&other.prefix).is_some() || other.rest(&self.prefix).is_some()
    }
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let pattern = Self::new(text);
        if pattern.prefix.contains('*') {
            return Err(PatternError::Star(text.to_owned()));
        }
        match TopicName::parse(text) {
            Ok(_) => Ok(pattern),
            Err(why) => Err(PatternError::Name { pattern: text.to_owned(), why }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, if self.open { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        for (pattern, name, expect) in [
            ("*", "anything", true),
            ("lobby", "lobby", true),
            ("lobby", "lobby2", false),
            ("rooms.*", "rooms.", true),
            ("rooms.*", "rooms", false),
            ("rooms.*", "rooms.a.b", true),
        ] {
            let parsed = pattern.parse::<Pattern>().expect(pattern);
            assert_eq!((parsed.matches(name), parsed.to_string().as_str()), (expect, pattern), "{name}");
        }
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, expect) in [
            ("", "\"\" matches no topic: topic name is empty"),
            ("a*b*", "\"a*b*\" has a * that is not at its end"),
            ("a\n", "\"a\\n\" matches no topic: "),
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.starts_with(expect), "{error}");
        }
    }
}
