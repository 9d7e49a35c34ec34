//! What a client of `shardcast.v1.json` says: one JSON object per text message, with its `type`.
//!
//! What is no such object is no request at all, and ends the connection ([`NoRequest`], 4400). What is one, and asks for something that cannot be, is
//! answered with an error that has the request's `id` ([`Fault`]).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::proto::pattern::{Pattern, PatternError};
use crate::proto::position::{Start, StartError, StartWords, Starts};
use crate::proto::publish::body::{event_of, key_of, payload_of, present, string, type_of};
use crate::proto::publish::{ItemFault, Key};
use crate::proto::sse::EventName;
use crate::proto::topic::TopicName;
use crate::proto::ws::MessageKind;

/// The longest `id`, as JSON with its quotes: the longest topic name with a few letters before it.
pub const ID_BYTES_MAX: usize = 512;

/// A message of a client.
///
/// ```
/// use shardcast::proto::json::request::{Request, Said};
///
/// let said = Said::parse(br#"{"type":"unsubscribe","id":7,"topic":"a"}"#, 65_536)?;
/// assert_eq!(said.id, Some("7"));
/// assert!(matches!(said.request, Ok(Request::Unsubscribe { topic }) if topic.as_str() == "a"));
///
/// let said = Said::parse(br#"{"type":"subscribe"}"#, 65_536)?;
/// assert_eq!(said.request.unwrap_err().to_string(), "there is no topic; send one");
/// # Ok::<(), shardcast::proto::json::request::NoRequest>(())
/// ```
#[derive(Debug)]
pub struct Said<'a> {
    /// The client's own name for the request, a string or a number, as JSON: it comes back with the answer.
    pub id: Option<&'a str>,
    /// What is asked for, or why it cannot be.
    pub request: Result<Request<'a>, Fault>,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// It introduces itself.
    Hello {
        /// Whether it takes many messages as one.
        batch: bool,
    },
    /// It wants a sign of life.
    Ping,
    /// It brings another token.
    Auth,
    /// It wants a topic's messages.
    Subscribe {
        /// Which topic.
        topic: TopicName,
        /// From where on; `None` when it does not say: from now on.
        start: Option<Start>,
        /// Whether it wants to be told who is there, comes and goes.
        presence: bool,
    },
    /// It wants the messages of all topics that match.
    SubscribePattern {
        /// What their names begin with.
        pattern: Pattern,
    },
    /// It has had enough of these.
    UnsubscribePattern {
        /// What their names begin with.
        pattern: Pattern,
    },
    /// It has had enough of a topic.
    Unsubscribe {
        /// Which topic.
        topic: TopicName,
    },
    /// It has a message.
    Publish(Publish<'a>),
    /// It wants what a topic's history has.
    History {
        /// Which topic.
        topic: TopicName,
        /// From where on.
        start: Option<Start>,
        /// The most messages of the answer.
        limit: Option<u64>,
    },
    /// It wants to know who is in a topic.
    Presence {
        /// Which topic.
        topic: TopicName,
    },
}

/// A message to publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish<'a> {
    /// Where to.
    pub topic: TopicName,
    /// The message: of a string its text, of any other JSON its text without white space between, or the bytes of `data_b64`.
    pub payload: Cow<'a, [u8]>,
    /// Text for `data`, binary for `data_b64`.
    pub kind: MessageKind,
    /// The key by which a slow reader's older messages are replaced.
    pub key: Option<Key<'a>>,
    /// The idempotency key: a repeat is answered with the first position.
    pub msg_id: Option<Key<'a>>,
    /// The name of the event.
    pub event: Option<EventName<'a>>,
    /// Whether the publisher gets it too, if it is subscribed.
    pub echo: bool,
}

/// Why a message of a client is no request. The peer is at fault, and is told so with 4400.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoRequest {
    /// Not JSON, or a field twice.
    #[error("no JSON object with each field once: {why}")]
    Json {
        /// What is wrong, with its column.
        why: String,
    },
    /// JSON of another type.
    #[error("message is {found}; send an object with its type")]
    Shape {
        /// What it is.
        found: &'static str,
    },
    /// Neither string nor number.
    #[error("id is {found}; send a string or a number")]
    Id {
        /// What it is.
        found: &'static str,
    },
    /// Over [`ID_BYTES_MAX`].
    #[error("id is {bytes} bytes, limit {ID_BYTES_MAX}")]
    IdTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// No `type`.
    #[error("message has no type; send for example {{\"type\":\"subscribe\",\"topic\":\"a\"}}")]
    NoType,
}

/// Why a request cannot be. The peer is at fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody knows this one.
    #[error("type is {found}; there are hello, subscribe, unsubscribe, publish, history, presence, auth, ping")]
    Type {
        /// What it says, shortened.
        found: String,
    },
    /// A field that must be there is missing.
    #[error("there is no {field}; send one")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field is wrong.
    #[error("{0}")]
    Field(#[from] ItemFault),
    /// `pattern` is wrong.
    #[error("pattern: {0}")]
    Pattern(#[from] PatternError),
    /// A pattern and a field that does not go with it.
    #[error("there are both pattern and {field}; with a pattern begins what is published from now on")]
    Both {
        /// The field.
        field: &'static str,
    },
    /// `after` or `last` is wrong.
    #[error("{0}")]
    Start(#[from] StartError),
    /// Not a number of messages.
    #[error("{field} is {found}; send a whole number")]
    Number {
        /// The field.
        field: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// Neither true nor false.
    #[error("{field} is {found}; send true or false")]
    Flag {
        /// The field.
        field: &'static str,
        /// What it is.
        found: &'static str,
    },
}

impl Fault {
    /// The word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Type { .. } => "unknown_type",
            Self::Field(ItemFault::TooLarge { .. }) => "too_large",
            _ => "bad_request",
        }
    }
}

/// A message as sent: each field is JSON of any type, judged one by one so that an error can name it.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, alias = "room")]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    pattern: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    last: Option<&'a RawValue>,
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
    /// `null` too.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_b64: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    msg_id: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    echo: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
}

impl<'a> Said<'a> {
    /// Parses a message. A payload to publish has at most `message_bytes_max` bytes. Other fields than those of the request are ignored, and `null` is as
    /// good as no field, but for `data`.
    ///
    /// # Errors
    /// What no client of the subprotocol sends.
    pub fn parse(text: &'a [u8], message_bytes_max: usize) -> Result<Self, NoRequest> {
        let raw: &RawValue = serde_json::from_slice(text).map_err(|error| NoRequest::Json { why: error.to_string() })?;
        if !raw.get().starts_with('{') {
            return Err(NoRequest::Shape { found: type_of(raw.get()) });
        }
        let fields: Fields<'a> = serde_json::from_str(raw.get()).map_err(|error| NoRequest::Json { why: error.to_string() })?;
        let id = match fields.id.map(RawValue::get) {
            Some(id) if id.len() > ID_BYTES_MAX => return Err(NoRequest::IdTooLong { bytes: id.len() }),
            Some(id) if matches!(type_of(id), "a string" | "a number") => Some(id),
            Some(other) => return Err(NoRequest::Id { found: type_of(other) }),
            None => None,
        };
        let kind = fields.kind.ok_or(NoRequest::NoType)?;
        Ok(Self { id, request: fields.request(kind, message_bytes_max) })
    }
}

impl<'a> Fields<'a> {
    fn request(self, kind: &'a RawValue, message_bytes_max: usize) -> Result<Request<'a>, Fault> {
        Ok(match &*string("type", kind)? {
            "hello" => Request::Hello { batch: flag("batch", self.batch, false)? },
            "ping" => Request::Ping,
            "auth" => Request::Auth,
            "subscribe" if self.pattern.is_some() => Request::SubscribePattern { pattern: self.pattern()? },
            "unsubscribe" if self.pattern.is_some() => Request::UnsubscribePattern { pattern: self.pattern()? },
            "subscribe" => {
                Request::Subscribe { topic: self.topic()?, start: self.start()?, presence: flag("presence", self.presence, false)? }
            }
            "unsubscribe" => Request::Unsubscribe { topic: self.topic()? },
            "presence" => Request::Presence { topic: self.topic()? },
            "history" => {
                let limit = self.limit.map(|raw| number("limit", raw)).transpose()?;
                Request::History { topic: self.topic()?, start: self.start()?, limit }
            }
            "publish" => {
                let topic = self.topic()?;
                let (payload, kind) = payload_of(self.data, self.data_b64, message_bytes_max)?;
                let (key, msg_id) = (key_of("key", self.key)?, key_of("msg_id", self.msg_id)?);
                let echo = flag("echo", self.echo, true)?;
                Request::Publish(Publish { topic, payload, kind, key, msg_id, event: event_of(self.event)?, echo })
            }
            other => return Err(Fault::Type { found: other.chars().take(32).collect() }),
        })
    }

    fn topic(&self) -> Result<TopicName, Fault> {
        let topic = string("topic", self.topic.ok_or(Fault::Missing { field: "topic" })?)?;
        Ok(TopicName::parse(&topic).map_err(ItemFault::from)?)
    }

    fn pattern(&self) -> Result<Pattern, Fault> {
        let others = [("topic", self.topic), ("after", self.after), ("last", self.last), ("presence", self.presence)];
        if let Some((field, _)) = others.into_iter().find(|(_, value)| value.is_some()) {
            return Err(Fault::Both { field });
        }
        Ok(string("pattern", self.pattern.ok_or(Fault::Missing { field: "pattern" })?)?.parse()?)
    }

    /// Where it wants to begin: `after` is a position or a word for one, `last` a number of messages.
    fn start(&self) -> Result<Option<Start>, Fault> {
        let after = self.after.map(|after| string("after", after)).transpose()?;
        let last = self.last.map(|raw| number("last", raw).map(|last| last.to_string())).transpose()?;
        let words =
            StartWords { after: after.as_deref().filter(|after| !after.is_empty()), last: last.as_deref(), ..StartWords::default() };
        Ok(Starts::parse(&words, 1)?.and_then(|starts| starts.of(0)))
    }
}

fn flag(field: &'static str, raw: Option<&RawValue>, default: bool) -> Result<bool, Fault> {
    match raw.map(RawValue::get) {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(Fault::Flag { field, found: type_of(other) }),
    }
}

fn number(field: &'static str, raw: &RawValue) -> Result<u64, Fault> {
    raw.get().parse().map_err(|_| Fault::Number { field, found: type_of(raw.get()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Request<'_>, String> {
        Said::parse(text.as_bytes(), 16).expect(text).request.map_err(|fault| format!("{}: {fault}", fault.code()))
    }

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a name")
    }

    #[test]
    fn what_can_be_asked_for() {
        for (text, expect) in [
            (r#"{"type":"hello","token":"t"}"#, Request::Hello { batch: false }),
            (r#"{"type":"hello","batch":true}"#, Request::Hello { batch: true }),
            (r#" {"type":"ping"} "#, Request::Ping),
            (r#"{"type":"auth","token":"t"}"#, Request::Auth),
            (r#"{"type":"subscribe","topic":"a"}"#, Request::Subscribe { topic: topic("a"), start: None, presence: false }),
            (r#"{"type":"subscribe","topic":"a","presence":true}"#, Request::Subscribe { topic: topic("a"), start: None, presence: true }),
            (r#"{"type":"subscribe","room":"\u00e9","after":""}"#, Request::Subscribe { topic: topic("é"), start: None, presence: false }),
            (
                r#"{"type":"subscribe","topic":"a","after":"earliest"}"#,
                Request::Subscribe { topic: topic("a"), start: Some(Start::Earliest), presence: false },
            ),
            (
                r#"{"type":"subscribe","topic":"a","last":3}"#,
                Request::Subscribe { topic: topic("a"), start: Some(Start::Last(3)), presence: false },
            ),
            (r#"{"type":"unsubscribe","topic":"a"}"#, Request::Unsubscribe { topic: topic("a") }),
            (r#"{"type":"subscribe","pattern":"a.*"}"#, Request::SubscribePattern { pattern: "a.*".parse().expect("one") }),
            (r#"{"type":"unsubscribe","pattern":"*"}"#, Request::UnsubscribePattern { pattern: "*".parse().expect("one") }),
            (r#"{"type":"presence","topic":"a"}"#, Request::Presence { topic: topic("a") }),
            (r#"{"type":"history","topic":"a","limit":2}"#, Request::History { topic: topic("a"), start: None, limit: Some(2) }),
        ] {
            assert_eq!(request(text).as_ref(), Ok(&expect), "{text}");
        }
        let text = r#"{"type":"publish","topic":"a","data":{"n": 1},"key":"k","msg_id":"m","event":"e","echo":false,"ttl":1}"#;
        let Ok(Request::Publish(publish)) = request(text) else { panic!("{text}") };
        assert_eq!((&*publish.payload, publish.kind, publish.echo), (&br#"{"n":1}"#[..], MessageKind::Text, false));
        let words = (publish.key.as_ref(), publish.msg_id.as_ref(), publish.event.as_ref());
        assert_eq!((words.0.map(Key::as_str), words.1.map(Key::as_str), words.2.map(EventName::as_str)), (Some("k"), Some("m"), Some("e")));
        let text = r#"{"type":"publish","topic":"a","data_b64":"/wA="}"#;
        let Ok(Request::Publish(publish)) = request(text) else { panic!("{text}") };
        assert_eq!((&*publish.payload, publish.kind, publish.echo), (&b"\xff\0"[..], MessageKind::Binary, true));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_field() {
        for (text, expect) in [
            (r#"{"type":"dance"}"#, "unknown_type: type is dance; there are"),
            (r#"{"type":5}"#, "bad_request: type is a number; send a string"),
            (r#"{"type":"subscribe"}"#, "bad_request: there is no topic"),
            (r#"{"type":"subscribe","topic":""}"#, "bad_request: topic name is empty"),
            (r#"{"type":"subscribe","topic":["a"]}"#, "bad_request: topic is an array"),
            (r#"{"type":"subscribe","topic":"a","after":"never"}"#, "bad_request: after:"),
            (r#"{"type":"subscribe","topic":"a","after":"k.1,2"}"#, "bad_request: after:"),
            (r#"{"type":"subscribe","topic":"a","after":"k.1","last":2}"#, "bad_request: request has both"),
            (r#"{"type":"subscribe","topic":"a","presence":"yes"}"#, "bad_request: presence is a string; send true or false"),
            (r#"{"type":"subscribe","topic":"a","last":-1}"#, "bad_request: last is a number; send a whole number"),
            (r#"{"type":"subscribe","pattern":"a*b"}"#, "bad_request: pattern: \"a*b\" has a * that is not at its end"),
            (r#"{"type":"subscribe","pattern":"a*","topic":"a"}"#, "bad_request: there are both pattern and topic"),
            (r#"{"type":"subscribe","pattern":"a*","after":"earliest"}"#, "bad_request: there are both pattern and after"),
            (r#"{"type":"history","topic":"a","limit":"2"}"#, "bad_request: limit is a string"),
            (r#"{"type":"publish","topic":"a"}"#, "bad_request: there is neither data nor data_b64"),
            (r#"{"type":"publish","topic":"a","data":"12345678901234567"}"#, "too_large: payload is 17 bytes, limit 16"),
            (r#"{"type":"publish","topic":"a","data":1,"echo":0}"#, "bad_request: echo is a number"),
            (r#"{"type":"publish","topic":"a","data":1,"msg_id":""}"#, "bad_request: msg_id is empty"),
            (r#"{"type":"publish","topic":"a","data":1,"event":"shardcast:bye"}"#, "bad_request: "),
            (r#"{"type":"publish","topic":"a","data":"\ud800"}"#, "bad_request: data has an escape"),
        ] {
            let fault = request(text).expect_err(text);
            assert!(fault.starts_with(expect), "{text}: {fault}");
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        let long = format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(ID_BYTES_MAX));
        for (text, expect) in [
            ("", "no JSON object"),
            ("{", "no JSON object"),
            ("hello", "no JSON object"),
            ("{}x", "no JSON object"),
            (r#"{"type":"ping","type":"ping"}"#, "no JSON object with each field once: duplicate field"),
            (r#"{"type":"subscribe","topic":"a","room":"b"}"#, "no JSON object with each field once: duplicate field"),
            ("[]", "message is an array"),
            ("5", "message is a number"),
            ("{}", "message has no type"),
            (r#"{"type":null}"#, "message has no type"),
            (r#"{"type":"ping","id":{}}"#, "id is an object"),
            (r#"{"type":"ping","id":true}"#, "id is a boolean"),
            (&long, "id is 514 bytes, limit 512"),
        ] {
            let error = Said::parse(text.as_bytes(), 16).expect_err(text).to_string();
            assert!(error.starts_with(expect), "{text}: {error}");
        }
        assert!(Said::parse(b"{\"type\":\"\xff\"}", 16).is_err());
    }

    #[test]
    fn an_id_is_a_string_or_a_number_and_stays_as_it_was_written() {
        for (id, expect) in [("null", None), ("1e3", Some("1e3")), (r#""\u0041""#, Some(r#""\u0041""#)), ("-0.0", Some("-0.0"))] {
            let text = format!(r#"{{"id": {id} ,"type":"ping"}}"#);
            assert_eq!(Said::parse(text.as_bytes(), 16).expect(id).id, expect);
        }
    }
}
