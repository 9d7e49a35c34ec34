//! The server's side of an event stream. Everything appended here is whole: it ends in a blank line, but for [`encode_id`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::event_name::{CONTROL_PREFIX, EventName};
use crate::proto::gap::Gap;
use crate::proto::json::{push_number, push_position, push_string};
use crate::proto::position::{Epoch, Position, write_cursor};
use crate::proto::ws::{CloseCode, MessageKind};

/// A comment, which clients ignore and which keeps proxies from giving up an idle stream (WHATWG HTML section 9.2.7 suggests one about every
/// 15 seconds).
pub const HEARTBEAT: &[u8] = b":\n\n";

/// Appends a message as one event and returns the length of its id line, 0 without an id: `out[at + len..]` is what readers with ids of their
/// own share.
///
/// A text is cut into `data:` lines at LF, CR and CRLF, so that it arrives with LF for each of them (WHATWG HTML section 9.2.6 joins lines with
/// LF). It must be UTF-8, as text frames are; bytes that are not would arrive as U+FFFD. A binary message is base64 in one line, behind a comment
/// that says so: an `EventSource` drops that, a client that reads the stream itself can tell it from a text. An empty message is one `data:` line
/// without a value, which is dispatched as an empty string: only an event without any `data` is dropped (section 9.2.6).
///
/// ```
/// use shardcast::proto::position::Position;
/// use shardcast::proto::sse::{EventName, encode_event};
/// use shardcast::proto::ws::MessageKind;
///
/// let (id, name) = (Position::parse("k3f9.1042")?, EventName::parse("greeting")?);
/// let mut out = Vec::new();
/// let id_len = encode_event(&mut out, Some(id), Some(&name), b"hello\nworld", MessageKind::Text);
/// assert_eq!(out, b"id: k3f9.1042\nevent: greeting\ndata: hello\ndata: world\n\n");
/// assert_eq!(&out[id_len..][..6], b"event:");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode_event(out: &mut Vec<u8>, id: Option<Position>, event: Option<&EventName<'_>>, data: &[u8], kind: MessageKind) -> usize {
    out.reserve(96 + data.len());
    let start = out.len();
    if let Some(id) = id {
        encode_id(out, [(id.epoch, Some(id.offset))]);
    }
    let id_len = out.len() - start;
    if let Some(event) = event {
        push_field(out, "event", event.as_str());
    }
    match kind {
        MessageKind::Text => push_lines(out, data),
        MessageKind::Binary => push_base64(out, data),
    }
    out.push(b'\n');
    id_len
}

/// Appends an id line, without a blank line: what follows must be the rest of an event. Before [`encode_open`] or [`encode_gap`] it tells a client
/// where it is before the first message comes, so that one that is cut off until then loses nothing.
///
/// ```
/// use shardcast::proto::position::Epoch;
/// use shardcast::proto::sse::encode_id;
///
/// let mut out = Vec::new();
/// encode_id(&mut out, [Some(17), None, Some(4)].map(|offset| (Epoch(36), offset)));
/// assert_eq!(out, b"id: 10.17,,4\n");
/// ```
pub fn encode_id(out: &mut Vec<u8>, places: impl IntoIterator<Item = (Epoch, Option<u64>)>) {
    out.extend_from_slice(b"id: ");
    write_cursor(out, places);
    out.push(b'\n');
}

/// Appends how long a client waits before it comes back.
pub fn encode_retry(out: &mut Vec<u8>, ms: u64) {
    out.extend_from_slice(b"retry: ");
    push_number(out, ms);
    out.extend_from_slice(b"\n\n");
}

/// Appends `shardcast:open`: `{"topics":{"a":"k3f9.17"},"retry_ms":N}`. A topic without a position yet is `null`.
pub fn encode_open<'a>(out: &mut Vec<u8>, topics: impl IntoIterator<Item = (&'a str, Option<Position>)>, retry_ms: u64) {
    push_control(out, "open", |out| {
        out.extend_from_slice(b"{\"topics\":{");
        for (index, (topic, position)) in topics.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            push_string(out, topic);
            out.push(b':');
            push_position(out, position);
        }
        out.extend_from_slice(b"},\"retry_ms\":");
        push_number(out, retry_ms);
        out.push(b'}');
    });
}

/// Appends `shardcast:gap`: `{"topic":"a","from":"k3f9.3","to":"k3f9.90","reason":"too_old"}`.
pub fn encode_gap(out: &mut Vec<u8>, gap: &Gap<'_>) {
    push_control(out, "gap", |out| gap.write(out));
}

/// Appends `shardcast:bye`: `{"code":4503,"reason":"…","retry_ms":N}`, after which the stream ends. Without `retry_ms` the client should not
/// come back by itself.
pub fn encode_bye(out: &mut Vec<u8>, code: CloseCode, reason: &str, retry_ms: Option<u64>) {
    push_control(out, "bye", |out| {
        out.extend_from_slice(b"{\"code\":");
        push_number(out, u64::from(code.0));
        out.extend_from_slice(b",\"reason\":");
        push_string(out, reason);
        if let Some(ms) = retry_ms {
            out.extend_from_slice(b",\"retry_ms\":");
            push_number(out, ms);
        }
        out.push(b'}');
    });
}

/// Appends `shardcast:announcement`: `{"text":"…"}`, what the operator says to everybody.
pub fn encode_announcement(out: &mut Vec<u8>, text: &str) {
    push_control(out, "announcement", |out| {
        out.extend_from_slice(b"{\"text\":");
        push_string(out, text);
        out.push(b'}');
    });
}

/// The same for a WebSocket in raw mode, which has no names for messages: `{"shardcast:announcement":{"text":"…"}}`.
///
/// ```
/// use shardcast::proto::sse::{encode_announcement, raw_announcement};
///
/// let mut event = Vec::new();
/// encode_announcement(&mut event, "a\nid: 7");
/// assert_eq!(event, b"event: shardcast:announcement\ndata: {\"text\":\"a\\nid: 7\"}\n\n");
/// assert_eq!(raw_announcement("a\nid: 7"), br#"{"shardcast:announcement":{"text":"a\nid: 7"}}"#);
/// ```
pub fn raw_announcement(text: &str) -> Vec<u8> {
    let mut out = b"{\"shardcast:announcement\":{\"text\":".to_vec();
    push_string(&mut out, text);
    out.extend_from_slice(b"}}");
    out
}

/// An event of ours. Its data is JSON that we write, in which line ends are escaped.
fn push_control(out: &mut Vec<u8>, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(CONTROL_PREFIX.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    data(out);
    out.extend_from_slice(b"\n\n");
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// The space after the colon is not part of the value, and must be there for a line that begins with one (WHATWG HTML section 9.2.6).
fn push_lines(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        out.extend_from_slice(b"data: ");
        let end = memchr::memchr2(b'\n', b'\r', rest);
        out.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        out.push(b'\n');
        let Some(end) = end else { return };
        rest = &rest[end + if rest[end..].starts_with(b"\r\n") { 2 } else { 1 }..];
    }
}

fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b": base64\ndata: ");
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD.encode_slice(bytes, &mut out[start..]).expect("there is room for the padded length");
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gap::GapReason;
    use crate::proto::sse::Decoder;

    fn at(text: &str) -> Position {
        Position::parse(text).expect("a position")
    }

    fn check(data: &[u8], kind: MessageKind, expect: &str) {
        let mut out = b"before".to_vec();
        assert_eq!(encode_event(&mut out, None, None, data, kind), 0);
        assert_eq!(String::from_utf8_lossy(&out), format!("before{expect}"), "{data:?}");
    }

    #[test]
    fn each_line_of_a_text_is_a_data_line() {
        for (text, expect) in [
            ("hello", "data: hello\n\n"),
            ("", "data: \n\n"),
            (" a: b", "data:  a: b\n\n"),
            ("a\nb", "data: a\ndata: b\n\n"),
            ("a\rb", "data: a\ndata: b\n\n"),
            ("a\r\nb", "data: a\ndata: b\n\n"),
            ("a\n\rb", "data: a\ndata: \ndata: b\n\n"),
            ("a\n", "data: a\ndata: \n\n"),
            ("\r\n\r\n", "data: \ndata: \ndata: \n\n"),
            ("a\0b\u{2028}c", "data: a\0b\u{2028}c\n\n"),
        ] {
            check(text.as_bytes(), MessageKind::Text, expect);
        }
    }

    #[test]
    fn a_binary_message_is_one_line_of_base64() {
        check(b"", MessageKind::Binary, ": base64\ndata: \n\n");
        check(b"\r\n", MessageKind::Binary, ": base64\ndata: DQo=\n\n");
        check(b"\xff\0\n", MessageKind::Binary, ": base64\ndata: /wAK\n\n");
        check(&[0; 4], MessageKind::Binary, ": base64\ndata: AAAAAA==\n\n");
    }

    #[test]
    fn the_id_line_comes_first_and_its_length_is_returned() {
        let name = EventName::parse("n").expect("a name");
        let mut out = b"before".to_vec();
        let len = encode_event(&mut out, Some(at("k3f9.1042")), Some(&name), b"x", MessageKind::Text);
        assert_eq!(&out[6..6 + len], b"id: k3f9.1042\n");
        assert_eq!(&out[6 + len..], b"event: n\ndata: x\n\n");
    }

    #[test]
    fn a_payload_can_forge_nothing() {
        for text in ["\n\nevent: shardcast:bye\ndata: x\n\n", "a\rid: z.9\r\rb", "\r\n:\r\nretry: 1\r\n\r\n", "a\n\0\nid\n\n"] {
            let mut out = Vec::new();
            encode_event(&mut out, Some(at("k.1")), None, text.as_bytes(), MessageKind::Text);
            let mut decoder = Decoder::new();
            let mut count = 0;
            decoder.feed(&out, |event| {
                assert_eq!((event.id, event.name), ("k.1", "message"));
                assert_eq!(event.data, text.replace("\r\n", "\n").replace('\r', "\n"));
                count += 1;
            });
            assert_eq!((count, decoder.retry_ms()), (1, None), "{text:?}");
        }
    }

    #[test]
    fn control_events_are_named_and_carry_json() {
        let mut out = Vec::new();
        encode_retry(&mut out, 8200);
        out.extend_from_slice(HEARTBEAT);
        encode_id(&mut out, [Some(17), None].map(|offset| (Epoch(36), offset)));
        encode_open(&mut out, [("a", Some(at("10.17"))), ("b\n\"", None)], 8200);
        encode_gap(&mut out, &Gap { topic: "a", from: None, to: at("10.90"), until: None, reason: GapReason::Unknown });
        encode_bye(&mut out, CloseCode::OVER_CAPACITY, "come\nback", Some(8200));
        encode_bye(&mut out, CloseCode::BANNED, "banned", None);
        let expect = "retry: 8200\n\n:\n\n\
            id: 10.17,\nevent: shardcast:open\ndata: {\"topics\":{\"a\":\"10.17\",\"b\\n\\\"\":null},\"retry_ms\":8200}\n\n\
            event: shardcast:gap\ndata: {\"topic\":\"a\",\"from\":null,\"to\":\"10.90\",\"reason\":\"unknown\"}\n\n\
            event: shardcast:bye\ndata: {\"code\":4503,\"reason\":\"come\\nback\",\"retry_ms\":8200}\n\n\
            event: shardcast:bye\ndata: {\"code\":4420,\"reason\":\"banned\"}\n\n";
        assert_eq!(str::from_utf8(&out), Ok(expect));
        let mut decoder = Decoder::new();
        let mut heard = Vec::new();
        decoder.feed(&out, |event| {
            let json: serde_json::Value = serde_json::from_str(event.data).expect("JSON");
            heard.push((event.id.to_owned(), event.name.to_owned(), json));
        });
        let names: Vec<_> = heard.iter().map(|(id, name, _)| (id.as_str(), name.as_str())).collect();
        let bye = ("10.17,", "shardcast:bye");
        assert_eq!(names, [("10.17,", "shardcast:open"), ("10.17,", "shardcast:gap"), bye, bye]);
        assert_eq!(heard[0].2["topics"]["a"], "10.17");
        assert_eq!(decoder.retry_ms(), Some(8200));
    }
}
