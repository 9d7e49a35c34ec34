//! The client's side of an event stream, as WHATWG HTML sections 9.2.5 and 9.2.6 have it: what an `EventSource` would dispatch.
//!
//! No part of the gateway reads event streams: this is for the load generator, for tests and for fuzzing. It trusts its server with memory: an
//! event takes as much as it has bytes.

use std::mem;

/// Events out of bytes as they come, in any pieces.
///
/// ```
/// use shardcast::proto::sse::Decoder;
///
/// let mut decoder = Decoder::new();
/// let mut heard = Vec::new();
/// for piece in [&b"id: k3f9.17\ndata: hel"[..], b"lo\r", b"\ndata\r\n\r\ndata: cut off"] {
///     decoder.feed(piece, |event| heard.push(format!("{} {} {:?}", event.id, event.name, event.data)));
/// }
/// assert_eq!(heard, ["k3f9.17 message \"hello\\n\""]);
/// ```
#[derive(Default, Debug)]
pub struct Decoder {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    /// The first line, before which a byte order mark may stand, is over.
    begun: bool,
    data: String,
    name: String,
    /// What `id` fields said; it counts from the next blank line on.
    next_id: String,
    id: String,
    retry_ms: Option<u64>,
}

/// What an `EventSource` would dispatch; lent while it is handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// `lastEventId`: the last id of this event or of any before it; empty when there was none.
    pub id: &'a str,
    /// `type`: the name, `message` when it has none.
    pub name: &'a str,
    /// `data`: the lines, joined by LF.
    pub data: &'a str,
}

impl Decoder {
    /// A decoder before the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and hands over each event that they complete. What is not UTF-8 becomes U+FFFD. An event whose blank line never
    /// comes is never handed over (section 9.2.6).
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = bytes;
        if !rest.is_empty() && mem::take(&mut self.after_cr) {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.line.is_empty() {
                self.end_line(line, &mut on_event);
            } else {
                let mut whole = mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.end_line(&whole, &mut on_event);
                // Keeps its memory for the next one.
                whole.clear();
                self.line = whole;
            }
            self.after_cr = rest[end] == b'\r' && after.is_empty();
            rest = if rest[end] == b'\r' { after.strip_prefix(b"\n").unwrap_or(after) } else { after };
        }
        self.line.extend_from_slice(rest);
    }

    /// What a client sends as `Last-Event-ID` when it comes back; empty when there was no id.
    pub fn last_event_id(&self) -> &str {
        &self.id
    }

    /// How long a client should wait before it comes back, when the server has said so.
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    fn end_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        // Section 9.2.6: UTF-8 decode takes one byte order mark away, from the start of the stream.
        let line = if mem::replace(&mut self.begun, true) { line } else { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) };
        if line.is_empty() {
            return self.dispatch(on_event);
        }
        let colon = memchr::memchr(b':', line);
        let name = &line[..colon.unwrap_or(line.len())];
        let value = colon.map_or(&b""[..], |colon| &line[colon + 1..]);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        // A line that begins with a colon, a comment, has an empty name and is none of these.
        match name {
            b"data" => {
                self.data.push_str(&String::from_utf8_lossy(value));
                self.data.push('\n');
            }
            b"event" => value_into(&mut self.name, value),
            b"id" if !value.contains(&0) => value_into(&mut self.next_id, value),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                // Beyond 64 bits it is no time that anybody could wait.
                self.retry_ms = str::from_utf8(value).ok().and_then(|ms| ms.parse().ok()).or(self.retry_ms);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if self.id != self.next_id {
            self.id.clone_from(&self.next_id);
        }
        // Without any data field there is no event; one empty field has left an LF.
        if self.data.pop().is_some() {
            let name = if self.name.is_empty() { "message" } else { &self.name };
            on_event(Event { id: &self.id, name, data: &self.data });
        }
        self.data.clear();
        self.name.clear();
    }
}

fn value_into(field: &mut String, value: &[u8]) {
    field.clear();
    field.push_str(&String::from_utf8_lossy(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    type Heard = (String, String, String);

    fn decode(pieces: &[&[u8]]) -> (Vec<Heard>, String, Option<u64>) {
        let mut decoder = Decoder::new();
        let mut heard = Vec::new();
        for piece in pieces {
            decoder.feed(piece, |event| heard.push((event.id.to_owned(), event.name.to_owned(), event.data.to_owned())));
        }
        (heard, decoder.last_event_id().to_owned(), decoder.retry_ms())
    }

    /// The events as `id|name|data`; the same however the stream is cut in two, and byte by byte.
    fn check(stream: &[u8], expect: &[&str]) {
        let whole = decode(&[stream]);
        let lines: Vec<_> = whole.0.iter().map(|(id, name, data)| format!("{id}|{name}|{data}")).collect();
        assert_eq!(lines, expect, "{:?}", String::from_utf8_lossy(stream));
        for cut in 0..=stream.len() {
            assert_eq!(decode(&[&stream[..cut], b"", &stream[cut..]]), whole, "cut at {cut}");
        }
        assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    }

    /// Section 9.2.6 ends with these streams.
    #[test]
    fn the_examples_of_the_standard() {
        check(b"data: YHOO\ndata: +2\ndata: 10\n\n", &["|message|YHOO\n+2\n10"]);
        check(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            &["1|message|first event", "|message|second event", "|message| third event"],
        );
        check(b"data\n\ndata\ndata\n\ndata:", &["|message|", "|message|\n"]);
        check(b"data:test\n\ndata: test\n\n", &["|message|test", "|message|test"]);
        check(b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n", &["|add|73857293", "|remove|2153"]);
    }

    #[test]
    fn lines_end_in_lf_cr_or_crlf() {
        for end in ["\n", "\r", "\r\n"] {
            check(format!("data: a{end}data: b{end}{end}data: c{end}{end}").as_bytes(), &["|message|a\nb", "|message|c"]);
        }
        check(b"data: a\r\r\ndata: b\n\r", &["|message|a", "|message|b"]);
        check(b"data: a\n\r\n\n", &["|message|a"]);
    }

    #[test]
    fn one_byte_order_mark_is_taken_from_the_start() {
        check(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", &["|message|a"]);
        check(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", &[]);
        check(b"\xef\xbb\xbf\ndata: a\n\n", &["|message|a"]);
        check(b"\xef\xbbdata: a\n\ndata: \xef\xbb\xbf\n\n", &["|message|\u{feff}"]);
    }

    #[test]
    fn an_id_counts_from_the_blank_line_and_until_the_next() {
        check(b"id: 1\n\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n", &["1|message|a", "2|message|b"]);
        assert_eq!(decode(&[b"id: 1\n\nid: 2\n"]).1, "1");
        check(b"id: 1\nid: 2\0\ndata: a\n\nid:\ndata: b\n\n", &["1|message|a", "|message|b"]);
    }

    #[test]
    fn without_data_there_is_no_event_and_its_name_is_forgotten() {
        check(b"event: x\n\ndata: a\n\n", &["|message|a"]);
        check(b"event: x\nevent\ndata: a\n\n", &["|message|a"]);
        check(b"event: x\nevent: y\ndata: a\n\n", &["|y|a"]);
    }

    #[test]
    fn other_lines_are_ignored() {
        check(b":data: x\n: y\n:\ndatas: z\nDATA: z\n data: z\ndata : z\nretry\n\n", &[]);
    }

    #[test]
    fn retry_is_digits_only() {
        for (value, expect) in [
            ("8200", Some(8200)),
            (" 8200", Some(1)),
            ("", Some(1)),
            ("8.2", Some(1)),
            ("-1", Some(1)),
            ("+1", Some(1)),
            ("8s", Some(1)),
            ("18446744073709551616", Some(1)),
            ("0", Some(0)),
        ] {
            let stream = format!("retry: 1\nretry: {value}\n");
            assert_eq!(decode(&[stream.as_bytes()]).2, expect, "{value:?}");
        }
    }

    #[test]
    fn what_is_not_utf8_becomes_the_replacement_character() {
        check(b"data: a\xff\xc3\ndata: \xe2\x82\n\n", &["|message|a\u{fffd}\u{fffd}\n\u{fffd}"]);
    }
}
