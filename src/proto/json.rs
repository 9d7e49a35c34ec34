//! The JSON that the gateway writes, by hand and straight into the bytes that are sent (RFC 8259).

use super::position::{Position, digits};

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
}
