//! The query of a request target as pairs of decoded bytes.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use crate::proto::position::TOPICS_MAX;
use crate::proto::topic::{TopicName, TopicNameError};

/// The `name=value` pairs of a query, in order, percent-decoded and with `+` as a space (the form encoding of the URL standard, which is
/// what browsers, curl's `--data-urlencode` and every client library send).
///
/// Bytes, not text: whether they are UTF-8 is for the caller to refuse, by name. A pair without `=` has an empty value; empty pairs
/// (`a=1&&b=2`) are left out. A `%` that is not followed by two hex digits stays as it is. Allocates only for what is escaped.
///
/// ```
/// use shardcast::proto::http::query_pairs;
///
/// let pairs: Vec<_> = query_pairs("room=caf%C3%A9+noir&echo").collect();
/// assert_eq!(pairs[0].1, "café noir".as_bytes());
/// assert_eq!(pairs[1], (b"echo".into(), b"".into()));
/// ```
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// The topics that a query names with `topic` and its other name `room`, in order; none when it names none. A comma is part of a name. A topic that
/// is named again counts once, where it was first: so a cursor's offsets have their order.
///
/// ```
/// use shardcast::proto::http::topic_names;
///
/// let topics = topic_names("topic=a&last=3&room=caf%C3%A9,1&topic=a")?;
/// assert_eq!(topics.iter().map(|topic| topic.as_str()).collect::<Vec<_>>(), ["a", "café,1"]);
/// assert_eq!(topic_names("topic=").unwrap_err().to_string(), "topic name is empty; 1 to 255 bytes are allowed");
/// # Ok::<(), shardcast::proto::http::TopicsError>(())
/// ```
///
/// # Errors
/// A name that is none, and over [`TOPICS_MAX`] of them.
pub fn topic_names(query: &str) -> Result<Vec<TopicName>, TopicsError> {
    let mut names: Vec<TopicName> = Vec::new();
    for (_, value) in query_pairs(query).filter(|(name, _)| matches!(&**name, b"topic" | b"room")) {
        let name = TopicName::from_bytes(&value)?;
        if names.contains(&name) {
            continue;
        }
        if names.len() == TOPICS_MAX {
            return Err(TopicsError::TooMany);
        }
        names.push(name);
    }
    Ok(names)
}

/// Why a query's topics cannot be taken. The fault is the peer's: 400.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicsError {
    /// A name that is none.
    #[error("{0}")]
    Name(#[from] TopicNameError),
    /// Over [`TOPICS_MAX`].
    #[error("request names over {TOPICS_MAX} topics; use more than one connection")]
    TooMany,
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).into();
    }
    // `+` first: a space that was sent as %2B must come out as a plus.
    let spaced: Vec<u8> = text.bytes().map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expect: &[(&[u8], &[u8])]) {
        let pairs: Vec<_> = query_pairs(query).collect();
        let pairs: Vec<(&[u8], &[u8])> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, expect, "{query:?}");
    }

    #[test]
    fn pairs_come_in_order_and_may_repeat() {
        check("topic=a&topic=b&last=3", &[(b"topic", b"a"), (b"topic", b"b"), (b"last", b"3")]);
    }

    #[test]
    fn what_is_missing_is_empty() {
        check("", &[]);
        check("&&", &[]);
        check("a", &[(b"a", b"")]);
        check("a=&=b&=", &[(b"a", b""), (b"", b"b"), (b"", b"")]);
        check("a=b=c", &[(b"a", b"b=c")]);
    }

    #[test]
    fn escapes_and_plus_are_decoded_to_bytes() {
        check("r=%E9%83%A8", &[(b"r", "部".as_bytes())]);
        check("r=a+b%2Bc%20d", &[(b"r", b"a b+c d")]);
        check("r%3D1=x%26y", &[(b"r=1", b"x&y")]);
        check("r=%ff%00", &[(b"r", b"\xff\0")]);
        check("r=ü", &[(b"r", "ü".as_bytes())]);
    }

    #[test]
    fn a_broken_escape_stays_as_it_is() {
        check("r=100%&s=%4&t=%zz&u=%+1", &[(b"r", b"100%"), (b"s", b"%4"), (b"t", b"%zz"), (b"u", b"% 1")]);
    }

    #[test]
    fn plain_values_are_lent_not_copied() {
        for (name, value) in query_pairs("room=lobby&x=1") {
            assert!(matches!((name, value), (Cow::Borrowed(_), Cow::Borrowed(_))));
        }
    }

    fn topics(query: &str, expect: Result<&[&str], TopicsError>) {
        let found = topic_names(query);
        let found: Result<Vec<_>, _> = found.as_ref().map(|names| names.iter().map(TopicName::as_str).collect()).map_err(|error| *error);
        assert_eq!(found, expect.map(<[_]>::to_vec), "{query:?}");
    }

    #[test]
    fn topics_are_named_by_topic_and_room_in_order_and_count_once() {
        topics("", Ok(&[]));
        topics("Topic=a&topics=b&last=1", Ok(&[]));
        topics("topic=b&x=1&room=a&topic=c", Ok(&["b", "a", "c"]));
        topics("topic=b&room=a&room=b&topic=%61", Ok(&["b", "a"]));
        topics("topic=a,b&topic=a+b&topic=a%26b&t%6Fpic=*", Ok(&["a,b", "a b", "a&b", "*"]));
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_its_reason() {
        topics("topic=a&topic=", Err(TopicsError::Name(TopicNameError::Empty)));
        topics("room", Err(TopicsError::Name(TopicNameError::Empty)));
        topics("topic=a%0Ab", Err(TopicsError::Name(TopicNameError::ControlCharacter { code: 10, at: 1 })));
        topics("topic=%FF", Err(TopicsError::Name(TopicNameError::NotUtf8 { at: 0 })));
    }

    #[test]
    fn a_query_names_128_topics_and_no_more() {
        let query = |count| (0..count).map(|number| format!("topic={number}&topic=0")).collect::<Vec<_>>().join("&");
        assert_eq!(topic_names(&query(128)).map(|names| names.len()), Ok(128));
        topics(&query(129), Err(TopicsError::TooMany));
    }
}
