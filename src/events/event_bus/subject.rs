//! Subjects of events, and where they lie in the stream: `PREFIX.PARTITION.SUBJECT`. What is dead is under `PREFIX-dead.DURABLE.SUBJECT`, leases under
//! `PREFIX-leases.DURABLE.…`.
//!
//! The partition of an event is the FNV-1a hash (64 bits) of its key, or of its id where it has none, modulo their number: so that a program in any language can work it out.

/// Bytes of a subject at most: with what stands before it, it stays far under what a server takes in one line.
const SUBJECT_BYTES_MAX: usize = 255;
/// Bytes of a durable's or a group's name, which is part of names on the server's disk.
const NAME_BYTES_MAX: usize = 64;

/// What is wrong with a subject or a name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubjectError {
    /// Not words with dots between.
    #[error(
        "{0:?} is not a subject: write words with dots between, as in orders.created, of 1 to {SUBJECT_BYTES_MAX} bytes, without spaces"
    )]
    Malformed(String),
    /// A wildcard in a place for none.
    #[error("{0:?} has a wildcard: * and > stand for words when subscribing, each as a whole word, and > at the end")]
    Wildcard(String),
    /// Not a name.
    #[error("{0:?} is not a name: write 1 to {NAME_BYTES_MAX} letters, digits, _ or -")]
    Name(String),
}

/// Checks a subject: one to publish to, or one with wildcards to subscribe to.
pub(super) fn check_subject(subject: &str, takes_wildcards: bool) -> Result<(), SubjectError> {
    let is_plain = |byte: u8| !byte.is_ascii_whitespace() && !byte.is_ascii_control();
    if subject.is_empty() || subject.len() > SUBJECT_BYTES_MAX || !subject.bytes().all(is_plain) || subject.split('.').any(str::is_empty) {
        return Err(SubjectError::Malformed(subject.to_owned()));
    }
    let mut words = subject.split('.').peekable();
    while let Some(word) = words.next() {
        let is_wildcard = word == "*" || (word == ">" && words.peek().is_none());
        if word.contains(['*', '>']) && !(is_wildcard && takes_wildcards) {
            return Err(SubjectError::Wildcard(subject.to_owned()));
        }
    }
    Ok(())
}

/// Checks the name of a durable, a group, a stream or a prefix.
pub(super) fn check_name(name: &str) -> Result<(), SubjectError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
        return Err(SubjectError::Name(name.to_owned()));
    }
    Ok(())
}

/// The partition of a key, of so many.
///
/// ```
/// use shardcast::events::event_bus::partition;
///
/// assert_eq!(partition("customer-7", 16), partition("customer-7", 16));
/// assert_eq!(partition("a", 16), 12); // 0xaf63dc4c8601ec8c modulo 16
/// ```
pub fn partition(key: &str, partitions: u16) -> u16 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash % u64::from(partitions.max(1))) as u16
}

/// The subjects of one bus.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    prefix: String,
    pub(super) partitions: u16,
}

impl Subjects {
    pub(super) fn new(prefix: &str, partitions: u16) -> Self {
        Self { prefix: prefix.to_owned(), partitions }
    }

    /// What the stream of events keeps.
    pub(super) fn kept(&self) -> Vec<String> {
        vec![format!("{}.>", self.prefix), format!("{}-dead.>", self.prefix)]
    }

    /// What the stream of leases keeps.
    pub(super) fn leases(&self) -> String {
        format!("{}-leases.>", self.prefix)
    }

    /// Where an event goes.
    pub(super) fn event(&self, subject: &str, key: &str) -> String {
        format!("{}.{}.{subject}", self.prefix, partition(key, self.partitions))
    }

    /// What a lane reads: one partition, or all.
    pub(super) fn filter(&self, partition: Option<u16>, subject: &str) -> String {
        match partition {
            Some(partition) => format!("{}.{partition}.{subject}", self.prefix),
            None => format!("{}.*.{subject}", self.prefix),
        }
    }

    /// The subject that was published to.
    pub(super) fn published<'a>(&self, stored: &'a str) -> &'a str {
        let rest = stored.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.split_once('.'));
        rest.map_or(stored, |(_, subject)| subject)
    }

    /// Where events go that a durable could not handle.
    pub(super) fn dead(&self, durable: &str, subject: &str) -> String {
        format!("{}-dead.{durable}.{subject}", self.prefix)
    }

    /// Where the leases of a durable are, and who takes part.
    pub(super) fn lease(&self, durable: &str, what: &str) -> String {
        format!("{}-leases.{durable}.{what}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_words_and_wildcards_are_whole_words_of_who_subscribes() {
        for (subject, publish, subscribe) in [
            ("orders", true, true),
            ("orders.created", true, true),
            ("größe.€", true, true),
            ("orders.*", false, true),
            ("orders.*.eu", false, true),
            (">", false, true),
            ("orders.>", false, true),
            ("orders.>.eu", false, false),
            ("orders.a*", false, false),
            ("a>", false, false),
            ("", false, false),
            ("a..b", false, false),
            (".a", false, false),
            ("a.", false, false),
            ("a b", false, false),
            ("a\r\nPUB x", false, false),
        ] {
            assert_eq!((check_subject(subject, false).is_ok(), check_subject(subject, true).is_ok()), (publish, subscribe), "{subject:?}");
        }
        assert!(check_subject(&"x".repeat(256), true).is_err());
        for (name, is_name) in [("mailer-2_b", true), ("", false), ("a.b", false), ("a b", false), ("*", false)] {
            assert_eq!(check_name(name).is_ok(), is_name, "{name:?}");
        }
    }

    #[test]
    fn an_event_has_its_place_by_its_key_and_is_told_by_its_subject() {
        let subjects = Subjects::new("events", 16);
        assert_eq!(subjects.event("orders.created", "a"), "events.12.orders.created");
        assert_eq!(subjects.published("events.12.orders.created"), "orders.created");
        assert_eq!(subjects.filter(None, "orders.*"), "events.*.orders.*");
        assert_eq!(subjects.filter(Some(3), ">"), "events.3.>");
        // All partitions have their share.
        let mut shares = [0; 16];
        (0..16_000).for_each(|n| shares[usize::from(partition(&format!("key-{n}"), 16))] += 1);
        assert!(shares.iter().all(|share| (800..1200).contains(share)), "{shares:?}");
    }
}
