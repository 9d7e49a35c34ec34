//! JSON (RFC 8259): what all writers share, by hand and straight into the bytes that are sent; and the subprotocol `shardcast.v1.json`, what clients ask
//! ([`request`]) and what they are told ([`reply`], [`presence`]).

pub mod presence;
pub mod reply;
pub mod request;

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::position::{Position, digits};

/// How deep arrays and objects may be nested to be embedded. Parsers commonly take a few hundred levels, serde_json 128.
const EMBEDDED_DEPTH_MAX: u8 = 64;

/// Appends a string with its quotes (RFC 8259 section 7). What no terminal should meet, DEL too, is escaped.
pub(in crate::proto) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => {
                let hex = |digit: u8| b"0123456789abcdef"[usize::from(digit)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a number.
pub(in crate::proto) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(digits(number, 10, &mut [0; 64]).as_bytes());
}

/// Appends a position as a string, or `null`.
pub(in crate::proto) fn push_position(out: &mut Vec<u8>, position: Option<Position>) {
    let Some(position) = position else { return out.extend_from_slice(b"null") };
    out.push(b'"');
    position.write(out);
    out.push(b'"');
}

/// JSON of a checked syntax without the white space between its tokens; lent when there is none. Numbers and strings stay as they were written.
pub(in crate::proto) fn compact(json: &str) -> Cow<'_, str> {
    let mut kept = String::new();
    // What is in front of `from` is in `kept` already.
    let mut from = 0;
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in json.bytes().enumerate() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            kept.push_str(&json[from..at]);
            from = at + 1;
        } else {
            in_string = byte == b'"';
        }
    }
    if from == 0 {
        return Cow::Borrowed(json);
    }
    kept.push_str(&json[from..]);
    Cow::Owned(kept)
}

/// Whether a payload can stand inside of JSON as it is, and whoever can parse JSON can parse it there: an object or an array with no half
/// surrogate pairs, no number beyond 64-bit floats, and no deep nesting. One that is strange would cost its readers every message beside it.
/// Builds nothing.
pub(in crate::proto) fn is_embeddable(payload: &[u8]) -> bool {
    let mut json = serde_json::Deserializer::from_slice(payload);
    matches!(payload.trim_ascii_start().first(), Some(b'{' | b'['))
        && Checked { depth: EMBEDDED_DEPTH_MAX }.deserialize(&mut json).and_then(|()| json.end()).is_ok()
}

/// Walks through JSON and keeps nothing of it.
#[derive(Clone, Copy)]
struct Checked {
    /// How many levels may still follow.
    depth: u8,
}

impl Checked {
    fn inside<E: de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| de::Error::custom("nested too deep"))?;
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let inside = self.inside()?;
        while elements.next_element_seed(inside)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inside = self.inside()?;
        while members.next_key_seed(inside)?.is_some() {
            members.next_value_seed(inside)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_parser_reads_every_string_as_it_was() {
        let all: String = (0..0x300).filter_map(char::from_u32).chain("\u{2028}部🦀".chars()).collect();
        for text in ["", "\"", "\\", "a\"b", "\0", "a\nb\r\tc", &all] {
            let mut out = Vec::new();
            push_string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), text);
            assert!(!out.iter().any(u8::is_ascii_control));
        }
    }

    #[test]
    fn numbers_and_positions_are_written_as_they_print() {
        let mut out = Vec::new();
        for number in [0, 9, 10, u64::MAX] {
            push_number(&mut out, number);
            out.push(b' ');
        }
        push_position(&mut out, Some(Position::parse("k3f9.17").expect("a position")));
        push_position(&mut out, None);
        assert_eq!(out, b"0 9 10 18446744073709551615 \"k3f9.17\"null");
    }

    #[test]
    fn compact_json_has_no_white_space_outside_of_strings() {
        for (json, expect) in [
            ("1", "1"),
            ("[1,2]", "[1,2]"),
            (" [ 1 ,\n\t2\r] ", "[1,2]"),
            (r#"{"a b": "c \\\" d\\" , "e":" "}"#, r#"{"a b":"c \\\" d\\","e":" "}"#),
        ] {
            let compacted = compact(json);
            assert_eq!(compacted, expect);
            assert_eq!(matches!(compacted, Cow::Borrowed(_)), json == expect);
        }
    }

    #[test]
    fn only_what_every_parser_takes_is_embedded() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        for payload in ["{}", "[]", " {\"a\":[1,-2.5e3,null,true,\"\\u00fc\\n\"]} ", "[18446744073709551616]", &nested(64)] {
            assert!(is_embeddable(payload.as_bytes()), "{payload}");
        }
        let strange =
            ["", "1", "null", "\"a\"", "hello", "{", "{}x", "[1,]", "[01]", "{a:1}", "[1e400]", "[\"\\ud800\"]", "{\"\\udc00\":1}"];
        for payload in strange.into_iter().chain(["[\"a\nb\"]", "[NaN]", &nested(65), &nested(50_000)]) {
            assert!(!is_embeddable(payload.as_bytes()), "{payload}");
        }
        assert!(!is_embeddable(b"[\"\xff\"]"));
        assert!(!is_embeddable(b"\xef\xbb\xbf{}"));
    }
}
