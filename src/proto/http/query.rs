//! The query of a request target as pairs of decoded bytes.

use std::borrow::Cow;

use percent_encoding::percent_decode;

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
}
