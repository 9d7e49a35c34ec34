//! What a client of `shardcast.v1.json` is told: one JSON object per text message, with its `type`.

use super::{push_number, push_position, push_string};
use crate::proto::gap::Gap;
use crate::proto::poll::Message;
use crate::proto::position::Position;

/// Something to tell a client. An `id` is the request's, as JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// It is connected.
    Welcome {
        /// The connection.
        conn: &'a str,
        /// How often a silent client is asked for a sign of life, in milliseconds.
        ping_ms: u64,
        /// Over how long clients that lose the server spread their return, in milliseconds.
        retry_ms: u64,
        /// The longest payload.
        max_bytes: u64,
    },
    /// Clients that lose the server need longer to return than it was told.
    Retry {
        /// Over how long they spread their return now, in milliseconds.
        retry_ms: u64,
    },
    /// It gets a topic's messages from here on.
    Subscribed {
        /// Of the request.
        id: Option<&'a str>,
        /// Which topic.
        topic: &'a str,
        /// What follows comes after this.
        position: Position,
        /// It came with a position, and nothing after that is missing.
        recovered: bool,
        /// How many messages from before follow; none where they are read bit by bit from where they are kept.
        replayed: Option<u64>,
    },
    /// A message of a topic.
    Message(Message<'a>),
    /// Messages that it does not get.
    Gap(Gap<'a>),
    /// Done.
    Done {
        /// Of the request.
        id: Option<&'a str>,
    },
    /// Published.
    Published {
        /// Of the request.
        id: Option<&'a str>,
        /// Where the message is in its topic.
        position: Position,
        /// Subscribers on this node.
        subscribers: u64,
        /// It had been published before and was not again.
        duplicate: bool,
    },
    /// Not done.
    Error {
        /// Of the request.
        id: Option<&'a str>,
        /// A word for programs.
        code: &'a str,
        /// A sentence for people.
        message: &'a str,
        /// When to try again, in milliseconds; `None` when that will not help.
        retry_ms: Option<u64>,
    },
    /// A sign of life.
    Pong {
        /// Of the request.
        id: Option<&'a str>,
    },
    /// What the operator says to everybody.
    Announcement {
        /// What.
        text: &'a str,
    },
    /// The connection ends.
    Bye {
        /// The code of the close frame that follows.
        code: u16,
        /// Why.
        reason: &'a str,
        /// When to come back, in milliseconds; `None` when that will not help.
        retry_ms: Option<u64>,
    },
}

impl Reply<'_> {
    /// Appends it.
    ///
    /// ```
    /// use shardcast::proto::json::reply::Reply;
    ///
    /// let mut out = Vec::new();
    /// Reply::Error { id: Some("7"), code: "topic_behind", message: "its subscribers are behind", retry_ms: Some(1000) }.write(&mut out);
    /// assert_eq!(str::from_utf8(&out)?, r#"{"type":"error","id":7,"code":"topic_behind","message":"its subscribers are behind","retry_ms":1000}"#);
    /// # Ok::<(), std::str::Utf8Error>(())
    /// ```
    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Welcome { conn, ping_ms, retry_ms, max_bytes } => {
                begin(out, "welcome", None);
                text(out, "conn", conn);
                for (name, value) in [("ping_ms", ping_ms), ("retry_ms", retry_ms), ("max_bytes", max_bytes)] {
                    number(out, name, value);
                }
            }
            Self::Retry { retry_ms } => {
                begin(out, "retry", None);
                number(out, "retry_ms", retry_ms);
            }
            Self::Subscribed { id, topic, position, recovered, replayed } => {
                begin(out, "subscribed", id);
                text(out, "topic", topic);
                place(out, position);
                flag(out, "recovered", recovered);
                if let Some(replayed) = replayed {
                    number(out, "replayed", replayed);
                }
            }
            Self::Message(message) => {
                begin(out, "message", None);
                out.push(b',');
                message.push_members(out);
            }
            Self::Gap(gap) => {
                begin(out, "gap", None);
                text(out, "topic", gap.topic);
                out.push(b',');
                gap.push_members(out);
            }
            Self::Done { id } => begin(out, "ok", id),
            Self::Published { id, position, subscribers, duplicate } => {
                begin(out, "ok", id);
                place(out, position);
                number(out, "subscribers", subscribers);
                if duplicate {
                    flag(out, "duplicate", true);
                }
            }
            Self::Error { id, code, message, retry_ms } => {
                begin(out, "error", id);
                text(out, "code", code);
                text(out, "message", message);
                retry_ms.into_iter().for_each(|ms| number(out, "retry_ms", ms));
            }
            Self::Pong { id } => begin(out, "pong", id),
            Self::Announcement { text: announcement } => {
                begin(out, "announcement", None);
                text(out, "text", announcement);
            }
            Self::Bye { code, reason, retry_ms } => {
                begin(out, "bye", None);
                number(out, "code", u64::from(code));
                text(out, "reason", reason);
                retry_ms.into_iter().for_each(|ms| number(out, "retry_ms", ms));
            }
        }
        out.push(b'}');
    }
}

/// Appends the answer to a request for history: `body` is the answer that a poll would have got.
pub fn write_history(out: &mut Vec<u8>, id: Option<&str>, topic: &str, body: &[u8]) {
    begin(out, "history", id);
    text(out, "topic", topic);
    out.push(b',');
    // The members of another object: without the brace in front, and what follows its own one.
    out.extend_from_slice(body.trim_ascii_end().strip_prefix(b"{").unwrap_or(body));
}

pub(super) fn begin(out: &mut Vec<u8>, kind: &str, id: Option<&str>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.push(b'"');
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id.as_bytes());
    }
}

fn member(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    member(out, name);
    push_string(out, value);
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    member(out, name);
    push_number(out, value);
}

fn flag(out: &mut Vec<u8>, name: &str, value: bool) {
    member(out, name);
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

fn place(out: &mut Vec<u8>, position: Position) {
    member(out, "pos");
    push_position(out, Some(position));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gap::GapReason;
    use crate::proto::ws::MessageKind;

    fn check(reply: Reply<'_>, expect: &str) {
        let mut out = Vec::new();
        reply.write(&mut out);
        assert_eq!(str::from_utf8(&out), Ok(expect));
        serde_json::from_slice::<serde_json::Value>(&out).expect("another parser reads it");
    }

    #[test]
    fn every_reply_is_an_object_with_its_type() {
        let position = Position::parse("k3f9.17").expect("a position");
        let id = Some(r#""a\n""#);
        for (reply, expect) in [
            (
                Reply::Welcome { conn: "0-1-2", ping_ms: 45_000, retry_ms: 10_000, max_bytes: 65_536 },
                r#"{"type":"welcome","conn":"0-1-2","ping_ms":45000,"retry_ms":10000,"max_bytes":65536}"#,
            ),
            (Reply::Retry { retry_ms: 20_000 }, r#"{"type":"retry","retry_ms":20000}"#),
            (
                Reply::Subscribed { id, topic: "\"", position, recovered: true, replayed: Some(3) },
                r#"{"type":"subscribed","id":"a\n","topic":"\"","pos":"k3f9.17","recovered":true,"replayed":3}"#,
            ),
            (
                Reply::Message(Message { topic: "a", position, event: None, key: None, kind: MessageKind::Text, payload: b"[1]" }),
                r#"{"type":"message","topic":"a","pos":"k3f9.17","data":[1]}"#,
            ),
            (
                Reply::Gap(Gap { topic: "a", from: None, to: position, until: None, reason: GapReason::TooOld }),
                r#"{"type":"gap","topic":"a","from":null,"to":"k3f9.17","reason":"too_old"}"#,
            ),
            (Reply::Done { id: None }, r#"{"type":"ok"}"#),
            (
                Reply::Published { id: Some("7"), position, subscribers: 2, duplicate: false },
                r#"{"type":"ok","id":7,"pos":"k3f9.17","subscribers":2}"#,
            ),
            (
                Reply::Published { id: None, position, subscribers: 2, duplicate: true },
                r#"{"type":"ok","pos":"k3f9.17","subscribers":2,"duplicate":true}"#,
            ),
            (
                Reply::Error { id: None, code: "bad_request", message: "no\n", retry_ms: None },
                r#"{"type":"error","code":"bad_request","message":"no\n"}"#,
            ),
            (Reply::Pong { id: Some("1") }, r#"{"type":"pong","id":1}"#),
            (Reply::Announcement { text: "hi" }, r#"{"type":"announcement","text":"hi"}"#),
            (Reply::Bye { code: 4503, reason: "", retry_ms: Some(8200) }, r#"{"type":"bye","code":4503,"reason":"","retry_ms":8200}"#),
        ] {
            check(reply, expect);
        }
    }

    #[test]
    fn a_history_has_the_members_of_a_polls_answer() {
        let mut out = Vec::new();
        write_history(&mut out, Some("7"), "a", b"{\"messages\":[],\"next\":\"k.1\",\"retry_ms\":5}\n");
        assert_eq!(str::from_utf8(&out), Ok(r#"{"type":"history","id":7,"topic":"a","messages":[],"next":"k.1","retry_ms":5}"#));
    }
}
