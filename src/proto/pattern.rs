//! Which topics a line of the configuration is about: a name, or what names begin with and a `*`.

use std::fmt;

use super::topic::TopicName;

/// A name, or what names begin with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::proto) struct Pattern {
    pub(in crate::proto) prefix: Box<str>,
    /// Whether anything may follow.
    pub(in crate::proto) open: bool,
}

impl Pattern {
    pub(in crate::proto) fn new(text: &str) -> Self {
        let prefix = text.strip_suffix('*');
        Self { prefix: prefix.unwrap_or(text).into(), open: prefix.is_some() }
    }

    /// What is left of a name that it matches.
    pub(in crate::proto) fn rest<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(&*self.prefix).filter(|rest| self.open || rest.is_empty())
    }

    /// Whether some name is matched by both.
    pub(in crate::proto) fn overlaps(&self, other: &Self) -> bool {
        self.rest(&other.prefix).is_some() || other.rest(&self.prefix).is_some()
    }

    /// Whether it matches every name that the other one does.
    pub(in crate::proto) fn covers(&self, other: &Self) -> bool {
        self.rest(&other.prefix).is_some() && (self.open || !other.open)
    }

    /// Whether some topic can have a name that it matches.
    pub(in crate::proto) fn is_possible(&self) -> bool {
        (self.open && self.prefix.is_empty()) || TopicName::parse(&self.prefix).is_ok()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, if self.open { "*" } else { "" })
    }
}
