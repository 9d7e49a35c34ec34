//! The answers of `GET /poll` and `GET /v1/history`: messages, gaps between them, and where the next request goes on.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::gap::Gap;
use super::json::{is_embeddable, push_number, push_position, push_string};
use super::position::{Epoch, Position, write_cursor};
use super::ws::MessageKind;

/// A message as JSON says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// Where it is in its topic.
    pub position: Position,
    /// Its name, when it has one.
    pub event: Option<&'a str>,
    /// The key by which it replaces older ones, when it has one.
    pub key: Option<&'a str>,
    /// What `payload` is made of.
    pub kind: MessageKind,
    /// UTF-8 when it is text, which text frames have proven; what is not would arrive as U+FFFD.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Appends `{"topic":"a","pos":"k3f9.17","event":…,"key":…,"data":…}`, the optional ones when they are there.
    ///
    /// A text that is a JSON object or array stands there as it is, if every parser can read it; any other text is a string; a binary message is
    /// base64 in `data_b64` instead of `data`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        self.push_members(out);
        out.push(b'}');
    }

    /// Appends the members of that object.
    pub(in crate::proto) fn push_members(&self, out: &mut Vec<u8>) {
        out.reserve(128 + self.payload.len());
        out.extend_from_slice(b"\"topic\":");
        push_string(out, self.topic);
        out.extend_from_slice(b",\"pos\":");
        push_position(out, Some(self.position));
        for (name, value) in [(&b",\"event\":"[..], self.event), (b",\"key\":", self.key)] {
            if let Some(value) = value {
                out.extend_from_slice(name);
                push_string(out, value);
            }
        }
        match self.kind {
            MessageKind::Text => {
                out.extend_from_slice(b",\"data\":");
                if is_embeddable(self.payload) {
                    // Line breaks are between its words, and as good as spaces: what has the message may be a line.
                    out.extend(self.payload.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
                } else {
                    push_string(out, &String::from_utf8_lossy(self.payload));
                }
            }
            MessageKind::Binary => {
                out.extend_from_slice(b",\"data_b64\":\"");
                let start = out.len();
                out.resize(start + self.payload.len().div_ceil(3) * 4, 0);
                STANDARD.encode_slice(self.payload, &mut out[start..]).expect("there is room for the padded length");
                out.push(b'"');
            }
        }
    }
}

/// An answer under construction, in the order in which the reader should see things.
///
/// ```
/// use shardcast::proto::gap::{Gap, GapReason};
/// use shardcast::proto::poll::{Answer, Message};
/// use shardcast::proto::position::Position;
/// use shardcast::proto::ws::MessageKind;
///
/// let (lost, position) = (Position::parse("k3f9.16")?, Position::parse("k3f9.17")?);
/// let mut out = Vec::new();
/// let mut answer = Answer::begin(&mut out);
/// answer.gap(&Gap { topic: "a", from: None, to: lost, until: None, reason: GapReason::TooOld });
/// answer.message(&Message { topic: "a", position, event: None, key: None, kind: MessageKind::Text, payload: b"{\"n\":1}" });
/// answer.finish(Some([(position.epoch, Some(position.offset))]), 6281);
/// let expect = r#"{"messages":[{"topic":"a","gap":{"from":null,"to":"k3f9.16","reason":"too_old"}},{"topic":"a","pos":"k3f9.17","data":{"n":1}}],"next":"k3f9.17","retry_ms":6281}"#;
/// assert_eq!(str::from_utf8(&out)?.trim_end(), expect);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "an answer is JSON only when it is finished"]
pub struct Answer<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Answer<'o> {
    /// Begins an answer at the end of `out`.
    pub fn begin(out: &'o mut Vec<u8>) -> Self {
        out.extend_from_slice(b"{\"messages\":[");
        Self { out, is_empty: true }
    }

    /// Adds a message.
    pub fn message(&mut self, message: &Message<'_>) {
        self.separate();
        message.write(self.out);
    }

    /// Adds a gap: what comes after it in the topic does not follow what the reader had before.
    pub fn gap(&mut self, gap: &Gap<'_>) {
        self.separate();
        self.out.extend_from_slice(b"{\"topic\":");
        push_string(self.out, gap.topic);
        self.out.extend_from_slice(b",\"gap\":{");
        gap.push_members(self.out);
        self.out.extend_from_slice(b"}}");
    }

    /// Adds what the operator says to everybody: an entry without a topic.
    pub fn announcement(&mut self, text: &str) {
        self.separate();
        self.out.extend_from_slice(b"{\"announcement\":");
        push_string(self.out, text);
        self.out.push(b'}');
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// How long `out` is by now, for callers with a bound.
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Ends the answer with where the next request goes on, one epoch and offset for each topic of the request in its order ([`Cursor`]); `None` when there
    /// is no such place; and with how many milliseconds a reader that loses the server should wait before it comes back. And a line end.
    ///
    /// [`Cursor`]: super::position::Cursor
    pub fn finish<I: IntoIterator<Item = (Epoch, Option<u64>)>>(self, next: Option<I>, retry_ms: u64) {
        self.out.extend_from_slice(b"],\"next\":");
        match next {
            None => self.out.extend_from_slice(b"null"),
            Some(places) => {
                self.out.push(b'"');
                write_cursor(self.out, places);
                self.out.push(b'"');
            }
        }
        self.out.extend_from_slice(b",\"retry_ms\":");
        push_number(self.out, retry_ms);
        self.out.extend_from_slice(b"}\n");
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gap::GapReason;

    const POSITION: Position = Position { epoch: Epoch(937_557), offset: 17 };

    fn check(kind: MessageKind, payload: &[u8], expect: &str) {
        let mut out = Vec::new();
        Message { topic: "a", position: POSITION, event: None, key: None, kind, payload }.write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!(r#"{{"topic":"a","pos":"k3f9.17",{expect}}}"#));
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
    }

    #[test]
    fn objects_and_arrays_are_embedded_other_text_is_a_string_and_binary_base64() {
        for (payload, expect) in [
            (r#"{"n": 1}"#, r#""data":{"n": 1}"#),
            (" [1,\n2] ", "\"data\": [1, 2] "),
            ("hello", r#""data":"hello""#),
            ("", r#""data":"""#),
            ("5", r#""data":"5""#),
            ("null", r#""data":"null""#),
            ("\"a\"", r#""data":"\"a\"""#),
            ("{\"n\":1}}", r#""data":"{\"n\":1}}""#),
            ("{\"n\":1},{\"topic\":\"b\"", r#""data":"{\"n\":1},{\"topic\":\"b\"""#),
            ("[1e999]", r#""data":"[1e999]""#),
        ] {
            check(MessageKind::Text, payload.as_bytes(), expect);
        }
        check(MessageKind::Text, b"a\xff", "\"data\":\"a\u{fffd}\"");
        check(MessageKind::Binary, b"", r#""data_b64":"""#);
        check(MessageKind::Binary, b"\xff\0\n{", r#""data_b64":"/wAKew==""#);
    }

    #[test]
    fn names_and_keys_are_there_when_the_message_has_them() {
        let mut out = Vec::new();
        let message =
            Message { topic: "\"", position: POSITION, event: Some("e\n"), key: Some("k"), kind: MessageKind::Text, payload: b"x" };
        message.write(&mut out);
        assert_eq!(str::from_utf8(&out), Ok(r#"{"topic":"\"","pos":"k3f9.17","event":"e\n","key":"k","data":"x"}"#));
    }

    #[test]
    fn an_answer_is_a_list_and_where_to_go_on() {
        let mut out = b"before".to_vec();
        let answer = Answer::begin(&mut out);
        assert!(answer.is_empty());
        answer.finish(None::<[(Epoch, Option<u64>); 0]>, 0);
        assert_eq!(out, b"before{\"messages\":[],\"next\":null,\"retry_ms\":0}\n");

        out.clear();
        let mut answer = Answer::begin(&mut out);
        let message = Message { topic: "b", position: POSITION, event: None, key: None, kind: MessageKind::Text, payload: b"x" };
        answer.message(&message);
        answer.gap(&Gap { topic: "a\"", from: Some(POSITION), to: POSITION, until: None, reason: GapReason::Restart });
        answer.message(&message);
        assert!(!answer.is_empty() && answer.bytes() > 100);
        answer.finish(Some([Some(4), None, Some(17)].map(|offset| (Epoch(36), offset))), 8200);
        let json: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(
            (json["next"].as_str(), json["messages"].as_array().map(Vec::len), json["retry_ms"].as_u64()),
            (Some("10.4,,17"), Some(3), Some(8200))
        );
        assert_eq!(json["messages"][1]["gap"]["reason"], "restart");
        assert_eq!((&json["messages"][1]["topic"], &json["messages"][2]["data"]), (&"a\"".into(), &"x".into()));
    }
}
