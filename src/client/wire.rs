//! `shardcast.v1.json` from the client's side: what is asked, and what is heard (docs/protocol.md sections 13 and 14).

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::message::{Data, Gap, GapReason, History, Message, Position, PositionError, Start};
use super::presence::{Member, Presence};

/// The subprotocol.
pub(super) const PROTOCOL: &str = "shardcast.v1.json";

/// A text message that goes out. Cheap to keep and to send again.
pub(super) type Frame = Utf8Bytes;

/// What a publication has besides its topic and payload.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct About {
    pub(super) msg_id: String,
    pub(super) event: Option<String>,
    pub(super) no_echo: bool,
}

/// One object, member by member.
struct Object(String);

impl Object {
    fn new(kind: &str, bytes: usize) -> Self {
        let mut text = String::with_capacity(bytes + 96);
        text.push_str("{\"type\":\"");
        text.push_str(kind);
        text.push('"');
        Self(text)
    }

    fn number(mut self, name: &str, value: u64) -> Self {
        write!(self.0, ",\"{name}\":{value}").expect("a string takes everything");
        self
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        let value = serde_json::to_string(value).expect("every text has its JSON");
        write!(self.0, ",\"{name}\":{value}").expect("a string takes everything");
        self
    }

    fn flag(mut self, name: &str, value: bool) -> Self {
        write!(self.0, ",\"{name}\":{value}").expect("a string takes everything");
        self
    }

    fn start(self, start: &Start) -> Self {
        match start {
            Start::Latest => self,
            Start::Earliest => self.text("after", "earliest"),
            Start::After(position) => self.text("after", position.as_str()),
            Start::Last(count) => self.number("last", u64::from(*count)),
            Start::Ago(time) => self.text("after", &format!("-{}s", time.as_millis().div_ceil(1000))),
        }
    }

    fn done(mut self) -> Frame {
        self.0.push('}');
        self.0.into()
    }
}

/// What a client says of itself first; nothing where there is nothing to say.
pub(super) fn hello(token: Option<&str>, batch: bool) -> Option<Frame> {
    let mut hello = Object::new("hello", token.map_or(0, str::len));
    if let Some(token) = token {
        hello = hello.text("token", token);
    }
    if batch {
        hello = hello.flag("batch", true);
    }
    (token.is_some() || batch).then(|| hello.done())
}

pub(super) fn auth(id: u64, token: &str) -> Frame {
    Object::new("auth", token.len()).number("id", id).text("token", token).done()
}

pub(super) fn ping() -> Frame {
    Object::new("ping", 0).done()
}

pub(super) fn subscribe(id: u64, topic: &str, start: &Start, watches: bool) -> Frame {
    let object = Object::new("subscribe", topic.len()).number("id", id).text("topic", topic).start(start);
    if watches { object.flag("presence", true).done() } else { object.done() }
}

pub(super) fn unsubscribe(id: u64, topic: &str) -> Frame {
    Object::new("unsubscribe", topic.len()).number("id", id).text("topic", topic).done()
}

pub(super) fn subscribe_to_pattern(id: u64, pattern: &str) -> Frame {
    Object::new("subscribe", pattern.len()).number("id", id).text("pattern", pattern).done()
}

pub(super) fn unsubscribe_from_pattern(id: u64, pattern: &str) -> Frame {
    Object::new("unsubscribe", pattern.len()).number("id", id).text("pattern", pattern).done()
}

pub(super) fn presence(id: u64, topic: &str) -> Frame {
    Object::new("presence", topic.len()).number("id", id).text("topic", topic).done()
}

pub(super) fn history(id: u64, topic: &str, start: &Start, limit: Option<u32>) -> Frame {
    let object = Object::new("history", topic.len()).number("id", id).text("topic", topic).start(start);
    match limit {
        Some(limit) => object.number("limit", u64::from(limit)).done(),
        None => object.done(),
    }
}

pub(super) fn publish(id: u64, topic: &str, data: &Data, about: &About) -> Frame {
    let bytes = data.as_bytes().len();
    let mut object =
        Object::new("publish", topic.len() + bytes + bytes / 2).number("id", id).text("topic", topic).text("msg_id", &about.msg_id);
    if let Some(event) = &about.event {
        object = object.text("event", event);
    }
    if about.no_echo {
        object = object.flag("echo", false);
    }
    match data {
        Data::Text(text) => object.text("data", text).done(),
        Data::Binary(bytes) => {
            object.0.push_str(",\"data_b64\":\"");
            STANDARD.encode_string(bytes, &mut object.0);
            object.0.push('"');
            object.done()
        }
    }
}

/// Something that the gateway has said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Said {
    Welcome {
        conn: Box<str>,
        ping: Duration,
        window: Duration,
        max_bytes: u64,
    },
    Subscribed {
        id: u64,
        pos: Position,
        recovered: bool,
    },
    /// A pattern has brought a topic.
    Brought {
        topic: Box<str>,
        pos: Position,
    },
    Message {
        topic: Box<str>,
        pos: Position,
        data: Data,
        event: Option<Box<str>>,
    },
    Gap {
        topic: Box<str>,
        from: Option<Position>,
        to: Position,
        reason: GapReason,
    },
    Published {
        id: u64,
        pos: Position,
        subscribers: u64,
        duplicate: bool,
    },
    History {
        id: u64,
        history: History,
    },
    /// What was asked for is done, and there is nothing to be said about it.
    Done {
        id: u64,
    },
    Error {
        /// Of the request that it is the answer to; none where nothing was asked.
        id: Option<u64>,
        code: Box<str>,
        message: Box<str>,
        retry: Option<Duration>,
    },
    Presence {
        kind: Kind,
        /// Of an answer.
        id: Option<u64>,
        presence: Presence,
    },
    Announcement {
        text: Box<str>,
    },
    /// The token that it was told will not do for much longer.
    AuthExpiring {
        within: Duration,
    },
    /// The window of the welcome, told anew.
    Retry {
        window: Duration,
    },
    Bye {
        code: u16,
        reason: Box<str>,
        retry: Option<Duration>,
    },
    /// What is not for this client, or newer than it.
    Other,
}

/// What is said of who is in a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// All that are there.
    All,
    Join,
    Leave,
}

/// What cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Position(#[from] PositionError),
    #[error("data_b64 is no base64")]
    Base64,
    #[error("{kind} has no {field}")]
    Lacks { kind: Box<str>, field: &'static str },
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    topic: Option<Box<str>>,
    pos: Option<Box<str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_b64: Option<Box<str>>,
    event: Option<Box<str>>,
    from: Option<Box<str>>,
    to: Option<Box<str>>,
    reason: Option<Box<str>>,
    /// A number in a goodbye, a word in an error.
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    message: Option<Box<str>>,
    #[serde(borrow)]
    messages: Option<Vec<Item<'a>>>,
    next: Option<Box<str>>,
    retry_ms: Option<u64>,
    ping_ms: Option<u64>,
    max_bytes: Option<u64>,
    conn: Option<Box<str>>,
    text: Option<Box<str>>,
    subscribers: Option<u64>,
    in_ms: Option<u64>,
    count: Option<u64>,
    members: Option<Vec<Who>>,
    scope: Option<Box<str>>,
    #[serde(default)]
    recovered: bool,
    #[serde(default)]
    duplicate: bool,
}

/// An entry of a history.
#[derive(Deserialize)]
struct Item<'a> {
    topic: Box<str>,
    pos: Option<Box<str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_b64: Option<Box<str>>,
    event: Option<Box<str>>,
    gap: Option<Missing>,
}

/// An entry of a roster.
#[derive(Deserialize)]
struct Who {
    conn: Box<str>,
    user: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Missing {
    from: Option<Box<str>>,
    to: Box<str>,
    reason: Box<str>,
}

fn position(text: Option<Box<str>>) -> Result<Option<Position>, PositionError> {
    text.map(|text| text.parse()).transpose()
}

/// Objects and arrays are embedded as they were published; any other text is a string.
fn payload(data: Option<&RawValue>, data_b64: Option<Box<str>>) -> Result<Option<Data>, Unreadable> {
    if let Some(encoded) = data_b64 {
        return STANDARD.decode(encoded.as_bytes()).map(|bytes| Some(Data::Binary(bytes))).map_err(|_| Unreadable::Base64);
    }
    let Some(data) = data.map(RawValue::get) else { return Ok(None) };
    Ok(Some(Data::Text(if data.starts_with('"') { serde_json::from_str(data)? } else { data.to_owned() })))
}

impl Said {
    /// Reads what the gateway has put into one text message: an object, or several with line breaks between them (`hello` with `batch`). Behind what cannot be read
    /// nothing is.
    pub(super) fn read(text: &str) -> impl Iterator<Item = Result<Self, Unreadable>> {
        // Not line by line: a payload is embedded as it was published, and may have line breaks of its own.
        serde_json::Deserializer::from_str(text).into_iter().map(|fields| Self::of(fields?))
    }

    fn of(fields: Fields<'_>) -> Result<Self, Unreadable> {
        let kind = fields.kind;
        let lacks = |field| Unreadable::Lacks { kind: kind.as_ref().into(), field };
        let millis = Duration::from_millis;
        let retry = fields.retry_ms.map(millis);
        Ok(match kind.as_ref() {
            "welcome" => Self::Welcome {
                conn: fields.conn.unwrap_or_default(),
                ping: millis(fields.ping_ms.unwrap_or(45_000)),
                window: retry.unwrap_or_default(),
                max_bytes: fields.max_bytes.unwrap_or(u64::MAX),
            },
            "subscribed" => {
                let pos = position(fields.pos)?.ok_or_else(|| lacks("pos"))?;
                match fields.id {
                    Some(id) => Self::Subscribed { id, pos, recovered: fields.recovered },
                    None => Self::Brought { topic: fields.topic.ok_or_else(|| lacks("topic"))?, pos },
                }
            }
            "message" => Self::Message {
                topic: fields.topic.ok_or_else(|| lacks("topic"))?,
                pos: position(fields.pos)?.ok_or_else(|| lacks("pos"))?,
                data: payload(fields.data, fields.data_b64)?.ok_or_else(|| lacks("data"))?,
                event: fields.event,
            },
            "gap" => Self::Gap {
                topic: fields.topic.ok_or_else(|| lacks("topic"))?,
                from: position(fields.from)?,
                to: position(fields.to)?.ok_or_else(|| lacks("to"))?,
                reason: GapReason::parse(&fields.reason.unwrap_or_default()),
            },
            "ok" => match (fields.id, position(fields.pos)?) {
                (Some(id), Some(pos)) => {
                    Self::Published { id, pos, subscribers: fields.subscribers.unwrap_or(0), duplicate: fields.duplicate }
                }
                (Some(id), None) => Self::Done { id },
                (None, _) => Self::Other,
            },
            "history" => {
                let id = fields.id.ok_or_else(|| lacks("id"))?;
                let mut history = History { messages: Vec::new(), gap: None, next: position(fields.next)? };
                for item in fields.messages.unwrap_or_default() {
                    let topic: Arc<str> = item.topic.into();
                    if let Some(gap) = item.gap {
                        let (from, to) = (position(gap.from)?, gap.to.parse()?);
                        history.gap = Some(Gap { topic, from, to, reason: GapReason::parse(&gap.reason) });
                    } else {
                        let pos = position(item.pos)?.ok_or_else(|| lacks("pos"))?;
                        let data = payload(item.data, item.data_b64)?.ok_or_else(|| lacks("data"))?;
                        history.messages.push(Message { topic, pos, data, event: item.event });
                    }
                }
                Self::History { id, history }
            }
            "error" => Self::Error {
                id: fields.id,
                code: fields.code.map(|code| serde_json::from_str(code.get())).transpose()?.ok_or_else(|| lacks("code"))?,
                message: fields.message.unwrap_or_default(),
                retry,
            },
            "presence" | "join" | "leave" => {
                let kind = match kind.as_ref() {
                    "join" => Kind::Join,
                    "leave" => Kind::Leave,
                    _ => Kind::All,
                };
                let topic = fields.topic.ok_or_else(|| lacks("topic"))?.into();
                let count = fields.count.ok_or_else(|| lacks("count"))?;
                let members = fields.members.map(|members| members.into_iter().map(|Who { conn, user }| Member { conn, user }).collect());
                let presence = Presence { topic, count, members, scope: fields.scope.unwrap_or_default() };
                Self::Presence { kind, id: fields.id, presence }
            }
            "auth_expiring" => Self::AuthExpiring { within: millis(fields.in_ms.unwrap_or(0)) },
            "retry" => Self::Retry { window: retry.ok_or_else(|| lacks("retry_ms"))? },
            "announcement" => Self::Announcement { text: fields.text.unwrap_or_default() },
            "bye" => Self::Bye {
                code: fields.code.map(|code| serde_json::from_str(code.get())).transpose()?.ok_or_else(|| lacks("code"))?,
                reason: fields.reason.unwrap_or_default(),
                retry,
            },
            _ => Self::Other,
        })
    }
}

/// The hint in a close reason: `retry=8200 draining` (docs/protocol.md section 7).
pub(super) fn hint(reason: &str) -> Option<Duration> {
    let digits = reason.strip_prefix("retry=")?;
    let digits = &digits[..digits.bytes().take_while(u8::is_ascii_digit).count()];
    digits.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The one thing that a text says.
    fn parse(text: &str) -> Result<Said, Unreadable> {
        let mut said = Said::read(text);
        let first = said.next().unwrap_or_else(|| panic!("{text:?} says nothing"));
        assert!(first.is_err() || said.next().is_none(), "{text}");
        first
    }

    fn said(frame: Frame) -> Value {
        serde_json::from_str(&frame).expect("JSON")
    }

    #[test]
    fn requests_are_as_the_protocol_has_them() {
        let at = |text: &str| text.parse().expect("a position");
        for (token, batch, expected) in [
            (Some("t\""), false, Some(json!({"type": "hello", "token": "t\""}))),
            (Some("t"), true, Some(json!({"type": "hello", "token": "t", "batch": true}))),
            (None, true, Some(json!({"type": "hello", "batch": true}))),
            (None, false, None),
        ] {
            assert_eq!(hello(token, batch).map(said), expected);
        }
        assert_eq!(said(ping()), json!({"type": "ping"}));
        for (start, field, value) in [
            (Start::Earliest, "after", json!("earliest")),
            (Start::After(at("k3f9.7")), "after", json!("k3f9.7")),
            (Start::Last(5), "last", json!(5)),
            (Start::Ago(Duration::from_millis(29_001)), "after", json!("-30s")),
        ] {
            let mut expected = json!({"type": "subscribe", "id": 1, "topic": "größe"});
            expected[field] = value.clone();
            assert_eq!(said(subscribe(1, "größe", &start, false)), expected);
            expected = json!({"type": "history", "id": 2, "topic": "a", "limit": 9});
            expected[field] = value;
            assert_eq!(said(history(2, "a", &start, Some(9))), expected);
        }
        assert_eq!(said(subscribe(1, "a", &Start::Latest, false)), json!({"type": "subscribe", "id": 1, "topic": "a"}));
        let watching = json!({"type": "subscribe", "id": 1, "topic": "a", "last": 5, "presence": true});
        assert_eq!(said(subscribe(1, "a", &Start::Last(5), true)), watching);
        assert_eq!(said(unsubscribe(2, "a")), json!({"type": "unsubscribe", "id": 2, "topic": "a"}));
        assert_eq!(said(subscribe_to_pattern(5, "a.*")), json!({"type": "subscribe", "id": 5, "pattern": "a.*"}));
        assert_eq!(said(unsubscribe_from_pattern(6, "*")), json!({"type": "unsubscribe", "id": 6, "pattern": "*"}));
        assert_eq!(said(presence(3, "a")), json!({"type": "presence", "id": 3, "topic": "a"}));
        assert_eq!(said(auth(4, "t")), json!({"type": "auth", "id": 4, "token": "t"}));
        let about = About { msg_id: "m".into(), event: Some("e".into()), no_echo: true };
        let expected = json!({"type": "publish", "id": 3, "topic": "a", "msg_id": "m", "event": "e", "echo": false, "data": "{}\n"});
        assert_eq!(said(publish(3, "a", &Data::from("{}\n"), &about)), expected);
        let about = About { msg_id: "m".into(), ..About::default() };
        let expected = json!({"type": "publish", "id": 3, "topic": "a", "msg_id": "m", "data_b64": "AP8="});
        assert_eq!(said(publish(3, "a", &Data::from(&[0, 255][..]), &about)), expected);
    }

    #[test]
    fn a_payload_is_what_was_published() {
        for (fields, expected) in [
            (r#""data":"two\nlines""#, Data::from("two\nlines")),
            (r#""data":{"n": 1}"#, Data::from(r#"{"n": 1}"#)),
            (r#""data":[1,"a"]"#, Data::from(r#"[1,"a"]"#)),
            (r#""data_b64":"AP8=""#, Data::from(vec![0, 255])),
        ] {
            let text = format!(r#"{{"type":"message","topic":"a","pos":"k.1",{fields},"event":null,"newer":[{{}}]}}"#);
            let Said::Message { topic, pos, data, event } = parse(&text).expect("a message") else { panic!("{text}") };
            assert_eq!((&*topic, pos.as_str(), data, event), ("a", "k.1", expected, None));
        }
    }

    #[test]
    fn one_text_says_several_things_with_line_breaks_between_and_perhaps_within() {
        let text = "\n{\"type\":\"ok\",\"id\":1}\n\n{\"type\":\"message\",\"topic\":\"a\",\"pos\":\"k.1\",\"data\":{\n\"n\": 1}}\r\n{\"type\":\"ok\",\"id\":2}\n";
        let said: Vec<Said> = Said::read(text).collect::<Result<_, _>>().expect("all can be read");
        let message =
            Said::Message { topic: "a".into(), pos: "k.1".parse().expect("a position"), data: Data::from("{\n\"n\": 1}"), event: None };
        assert_eq!(said, [Said::Done { id: 1 }, message, Said::Done { id: 2 }]);
        for nothing in ["", "\n", " \n\n"] {
            assert_eq!(Said::read(nothing).count(), 0);
        }
        let cut_short: Vec<bool> = Said::read("{\"type\":\"ok\",\"id\":1}\n{\"type\":").map(|said| said.is_ok()).collect();
        assert_eq!(cut_short, [true, false]);
    }

    #[test]
    fn a_roster_names_its_members_or_counts_them() {
        for (text, kind, id, members) in [
            (
                r#"{"type":"presence","topic":"a","count":2,"members":[{"conn":"0-3-1","user":"anna"},{"conn":"1-7-1"}],"scope":"node"}"#,
                Kind::All,
                None,
                Some(vec![("0-3-1", Some("anna")), ("1-7-1", None)]),
            ),
            (r#"{"type":"presence","id":7,"topic":"a","count":2,"scope":"node"}"#, Kind::All, Some(7), None),
            (
                r#"{"type":"join","topic":"a","count":2,"members":[{"conn":"0-3-1"}],"scope":"node"}"#,
                Kind::Join,
                None,
                Some(vec![("0-3-1", None)]),
            ),
            (r#"{"type":"leave","topic":"a","count":2,"members":[],"scope":"node"}"#, Kind::Leave, None, Some(vec![])),
        ] {
            let member = |(conn, user): (&str, Option<&str>)| Member { conn: conn.into(), user: user.map(Box::from) };
            let members = members.map(|members| members.into_iter().map(member).collect());
            let presence = Presence { topic: "a".into(), count: 2, members, scope: "node".into() };
            assert_eq!(parse(text).expect(text), Said::Presence { kind, id, presence });
        }
    }

    #[test]
    fn what_lacks_something_is_unreadable_and_what_is_newer_is_left_alone() {
        for text in [
            "[]",
            "{}",
            r#"{"type":"message"}"#,
            r#"{"type":"subscribed","pos":"k.1"}"#,
            r#"{"type":"subscribed","id":1,"topic":"a"}"#,
            r#"{"type":"message","topic":"a","pos":"k.1"}"#,
            r#"{"type":"message","topic":"a","pos":"nowhere","data":""}"#,
            r#"{"type":"message","topic":"a","pos":"k.1","data_b64":"?"}"#,
            r#"{"type":"bye","code":"4503"}"#,
            r#"{"type":"bye","code":70000}"#,
            r#"{"type":"error","code":7}"#,
            r#"{"type":"join","topic":"a","members":[]}"#,
            r#"{"type":"presence","topic":"a","count":1,"members":[{"user":"anna"}]}"#,
            r#"{"type":"retry"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in [r#"{"type":"ok","pos":"k.1"}"#, r#"{"type":"pong"}"#, r#"{"type":"later","members":[]}"#] {
            assert_eq!(parse(text).expect(text), Said::Other);
        }
    }

    #[test]
    fn a_hint_is_read_from_a_close_reason() {
        for (reason, ms) in
            [("retry=8200", Some(8200)), ("retry=5 draining", Some(5)), ("draining retry=5", None), ("retry=", None), ("", None)]
        {
            assert_eq!(hint(reason), ms.map(Duration::from_millis), "{reason}");
        }
    }
}
