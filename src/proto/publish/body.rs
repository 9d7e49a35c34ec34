//! The JSON bodies of `POST /v1/publish`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::key::{Key, KeyError};
use crate::proto::http::error_code;
use crate::proto::json::compact;
use crate::proto::position::TOPICS_MAX;
use crate::proto::sse::{EventName, EventNameError};
use crate::proto::topic::{TopicName, TopicNameError};
use crate::proto::ws::MessageKind;

/// A body of `POST /v1/publish`.
///
/// ```
/// use shardcast::proto::publish::{PublishBody, PublishLimits};
///
/// let body = br#"[{"topic":"a","data":{"n": 1}},{"topic":"","data":"hi"}]"#;
/// let body = PublishBody::parse(body, &PublishLimits { items_max: 100, message_bytes_max: 65_536 })?;
/// assert_eq!(&*body.items[0].as_ref().unwrap().payload, br#"{"n":1}"#);
/// assert_eq!(body.items[1].as_ref().unwrap_err().to_string(), "item 1: topic name is empty; 1 to 255 bytes are allowed");
/// # Ok::<(), shardcast::proto::publish::BodyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishBody<'a> {
    /// An array, which is answered with an array, even when it has one item or none.
    pub is_array: bool,
    /// One for each object, in order.
    pub items: Vec<Result<Item<'a>, ItemError>>,
}

/// What bounds a body besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublishLimits {
    /// The most items of an array.
    pub items_max: usize,
    /// The longest payload, in bytes: `limits.message_bytes_max`.
    pub message_bytes_max: usize,
}

/// One message to publish, checked. What can be lent from the body is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item<'a> {
    /// Where to: at least one and at most [`TOPICS_MAX`], in the order sent.
    pub topics: Vec<TopicName>,
    /// It came as `topics`, and is answered with one result for each of them.
    pub has_topic_list: bool,
    /// The message: of a string its text, of any other JSON its text without white space between, or the bytes of `data_b64`.
    pub payload: Cow<'a, [u8]>,
    /// Text for `data`, binary for `data_b64`.
    pub kind: MessageKind,
    /// The idempotency key: a repeat is answered with the first position.
    pub id: Option<Key<'a>>,
    /// The key by which a slow reader's older messages are replaced.
    pub key: Option<Key<'a>>,
    /// The name of the event.
    pub event: Option<EventName<'a>>,
}

impl<'a> PublishBody<'a> {
    /// Parses a body: an object or an array of objects with `topic` or `topics`, `data` or `data_b64`, and if they are wanted `id`, `key` and
    /// `event`. `room` and `rooms` are other names of the first two. Other fields are ignored. `null` is as good as no field, but for `data`:
    /// that is JSON like any other, unless there is `data_b64`.
    ///
    /// # Errors
    /// A body that is not JSON (RFC 8259), neither object nor array, or over `items_max`. Errors of items are in their places.
    pub fn parse(body: &'a [u8], limits: &PublishLimits) -> Result<Self, BodyError> {
        let text = simdutf8::compat::from_utf8(body).map_err(|error| BodyError::NotUtf8 { at: error.valid_up_to() })?;
        match text.trim_ascii_start().as_bytes().first() {
            None => Err(BodyError::Empty),
            Some(b'[') => {
                let raw = split_array(text, limits.items_max)?;
                let item = |(index, raw): (usize, &'a RawValue)| {
                    parse_item(raw.get(), limits).map_err(|fault| ItemError { index: Some(index), fault })
                };
                Ok(Self { is_array: true, items: raw.into_iter().enumerate().map(item).collect() })
            }
            Some(_) => {
                let raw: &RawValue = serde_json::from_str(text).map_err(|error| BodyError::json(&error))?;
                if !raw.get().starts_with('{') {
                    return Err(BodyError::Shape { found: type_of(raw.get()) });
                }
                let item = parse_item(raw.get(), limits).map_err(|fault| ItemError { index: None, fault });
                Ok(Self { is_array: false, items: vec![item] })
            }
        }
    }
}

/// Why a body is refused as a whole. The peer is at fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyError {
    /// Nothing, or white space.
    #[error("body is empty; send a JSON object such as {{\"topic\":\"a\",\"data\":\"hello\"}}, or an array of them")]
    Empty,
    /// Not UTF-8.
    #[error("body is not UTF-8 from byte {at} on; JSON is UTF-8 (RFC 8259 section 8.1)")]
    NotUtf8 {
        /// How many bytes from the start are UTF-8.
        at: usize,
    },
    /// Not JSON.
    #[error("body is not JSON: {why}")]
    NotJson {
        /// What is wrong, with line and column.
        why: String,
    },
    /// JSON of another type.
    #[error("body is {found}; send an object or an array of objects")]
    Shape {
        /// What it is.
        found: &'static str,
    },
    /// Too many at once.
    #[error("body has over {max} items; send at most {max} at a time")]
    TooManyItems {
        /// The bound.
        max: usize,
    },
}

impl BodyError {
    /// The status to answer with.
    pub const fn status(&self) -> u16 {
        if matches!(self, Self::TooManyItems { .. }) { 413 } else { 400 }
    }

    /// The word for `code` of [`ErrorBody`](super::ErrorBody).
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Empty | Self::NotUtf8 { .. } | Self::NotJson { .. } => "bad_json",
            Self::Shape { .. } | Self::TooManyItems { .. } => error_code(self.status()),
        }
    }

    fn json(error: &serde_json::Error) -> Self {
        Self::NotJson { why: error.to_string() }
    }
}

/// Why one item is refused. The peer is at fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemError {
    /// Which item of the array, from 0; `None` when the body is the item.
    pub index: Option<usize>,
    /// What is wrong with it.
    pub fault: ItemFault,
}

/// What is wrong with an item.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ItemFault {
    /// JSON of another type.
    #[error("it is {found}; send an object with topic and data")]
    Shape {
        /// What it is.
        found: &'static str,
    },
    /// A field twice, or a name that is no text.
    #[error("{why}; send each field once")]
    Fields {
        /// What is wrong.
        why: String,
    },
    /// A field of another type.
    #[error("{field} is {found}; send {expect}")]
    Type {
        /// The field.
        field: &'static str,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expect: &'static str,
    },
    /// Half of a surrogate pair, escaped: no Unicode text.
    #[error("{field} has an escape that is no character (half of a surrogate pair)")]
    Escape {
        /// The field.
        field: &'static str,
    },
    /// Neither of two fields.
    #[error("there is neither {one} nor {other}; send one of them")]
    Missing {
        /// One field.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Both of two fields.
    #[error("there are both {one} and {other}; send one of them")]
    Both {
        /// One field.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// None, or too many topics.
    #[error("topics has {count} names; 1 to {TOPICS_MAX} are allowed")]
    Topics {
        /// How many.
        count: usize,
    },
    /// A bad name.
    #[error("{0}")]
    Topic(#[from] TopicNameError),
    /// A bad name.
    #[error("{0}")]
    Event(#[from] EventNameError),
    /// A bad key.
    #[error("{field} {error}")]
    Key {
        /// `id` or `key`.
        field: &'static str,
        /// Why.
        error: KeyError,
    },
    /// Not base64.
    #[error("data_b64 is not base64 (RFC 4648 section 4: A-Z a-z 0-9 + /)")]
    Base64,
    /// A payload over the limit.
    #[error("payload is {bytes} bytes, limit {limit} (limits.message_bytes_max)")]
    TooLarge {
        /// How long it is.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl ItemError {
    /// The status to answer with when it is the only item.
    pub const fn status(&self) -> u16 {
        if matches!(self.fault, ItemFault::TooLarge { .. }) { 413 } else { 400 }
    }

    /// The word for `code` of [`ErrorBody`](super::ErrorBody).
    pub const fn code(&self) -> &'static str {
        error_code(self.status())
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "item {index}: {}", self.fault),
            None => fmt::Display::fmt(&self.fault, f),
        }
    }
}

impl std::error::Error for ItemError {}

/// An item as sent: each field is JSON of any type, judged one by one so that an error can name it.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, alias = "room")]
    topic: Option<&'a RawValue>,
    #[serde(borrow, alias = "rooms")]
    topics: Option<&'a RawValue>,
    /// `null` too.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_b64: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
}

pub(in crate::proto) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The elements of an array, as text; stops at the first one that is too many.
fn split_array(text: &str, max: usize) -> Result<Vec<&RawValue>, BodyError> {
    struct Elements {
        max: usize,
    }

    impl<'de> Visitor<'de> for Elements {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(element) = elements.next_element()? {
                if found.len() == self.max {
                    return Err(de::Error::custom("too many"));
                }
                found.push(element);
            }
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_str(text);
    let found = json.deserialize_seq(Elements { max }).and_then(|found| json.end().map(|()| found));
    // Elements are any JSON at all, so that only our own error is about data.
    found.map_err(|error| if error.is_data() { BodyError::TooManyItems { max } } else { BodyError::json(&error) })
}

fn parse_item<'a>(raw: &'a str, limits: &PublishLimits) -> Result<Item<'a>, ItemFault> {
    if !raw.starts_with('{') {
        return Err(ItemFault::Shape { found: type_of(raw) });
    }
    let fields: Fields<'a> = serde_json::from_str(raw).map_err(|error| {
        let why = error.to_string();
        ItemFault::Fields { why: why.split(" at line ").next().unwrap_or_default().to_owned() }
    })?;
    let topics = match (fields.topic, fields.topics) {
        (Some(_), Some(_)) => return Err(ItemFault::Both { one: "topic", other: "topics" }),
        (None, None) => return Err(ItemFault::Missing { one: "topic", other: "topics" }),
        (Some(topic), None) => vec![TopicName::parse(&string("topic", topic)?)?],
        (None, Some(topics)) => parse_topics(topics)?,
    };
    let (payload, kind) = payload_of(fields.data, fields.data_b64, limits.message_bytes_max)?;
    let event = event_of(fields.event)?;
    let (id, key) = (key_of("id", fields.id)?, key_of("key", fields.key)?);
    Ok(Item { topics, has_topic_list: fields.topics.is_some(), payload, kind, id, key, event })
}

/// The message of the fields `data` and `data_b64`, of which one must be there.
pub(in crate::proto) fn payload_of<'a>(
    data: Option<&'a RawValue>,
    data_b64: Option<&'a RawValue>,
    bytes_max: usize,
) -> Result<(Cow<'a, [u8]>, MessageKind), ItemFault> {
    let (payload, kind) = match (data, data_b64) {
        (None, None) => return Err(ItemFault::Missing { one: "data", other: "data_b64" }),
        (Some(data), Some(_)) if data.get() != "null" => return Err(ItemFault::Both { one: "data", other: "data_b64" }),
        (_, Some(base64)) => {
            let base64 = string("data_b64", base64)?;
            (Cow::Owned(BASE64.decode(&*base64).map_err(|_| ItemFault::Base64)?), MessageKind::Binary)
        }
        (Some(data), None) if data.get().starts_with('"') => (into_bytes(string("data", data)?), MessageKind::Text),
        (Some(data), None) => (into_bytes(compact(data.get())), MessageKind::Text),
    };
    if payload.len() > bytes_max {
        return Err(ItemFault::TooLarge { bytes: payload.len(), limit: bytes_max });
    }
    Ok((payload, kind))
}

/// The key in a field that may be missing.
pub(in crate::proto) fn key_of<'a>(field: &'static str, raw: Option<&'a RawValue>) -> Result<Option<Key<'a>>, ItemFault> {
    match raw {
        Some(raw) => Key::parse(string(field, raw)?).map(Some).map_err(|error| ItemFault::Key { field, error }),
        None => Ok(None),
    }
}

/// The event's name in a field that may be missing.
pub(in crate::proto) fn event_of(raw: Option<&RawValue>) -> Result<Option<EventName<'_>>, ItemFault> {
    raw.map(|event| Ok(EventName::parse(string("event", event)?)?)).transpose()
}

fn parse_topics(raw: &RawValue) -> Result<Vec<TopicName>, ItemFault> {
    if !raw.get().starts_with('[') {
        return Err(ItemFault::Type { field: "topics", found: type_of(raw.get()), expect: "an array of strings" });
    }
    // As many as the body has, which is bounded: so the error can say how many.
    let topics: Vec<&RawValue> = serde_json::from_str(raw.get()).expect("its syntax was checked with the whole body's");
    if topics.is_empty() || topics.len() > TOPICS_MAX {
        return Err(ItemFault::Topics { count: topics.len() });
    }
    topics.into_iter().map(|topic| Ok(TopicName::parse(&string("a name in topics", topic)?)?)).collect()
}

/// The text of a JSON string whose syntax has been checked; lent when it has no escapes.
pub(in crate::proto) fn string<'a>(field: &'static str, raw: &'a RawValue) -> Result<Cow<'a, str>, ItemFault> {
    let text = raw.get();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        None => Err(ItemFault::Type { field, found: type_of(text), expect: "a string" }),
        Some(inside) if !inside.contains('\\') => Ok(Cow::Borrowed(inside)),
        Some(_) => serde_json::from_str(text).map(Cow::Owned).map_err(|_| ItemFault::Escape { field }),
    }
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// What JSON of a checked syntax is, for error messages.
pub(in crate::proto) fn type_of(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// With padding or without: both are common.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PublishLimits = PublishLimits { items_max: 3, message_bytes_max: 16 };

    fn one(body: &str) -> Result<Item<'_>, ItemError> {
        let mut parsed = PublishBody::parse(body.as_bytes(), &LIMITS).expect(body);
        assert!(!parsed.is_array && parsed.items.len() == 1);
        parsed.items.remove(0)
    }

    fn payload(fields: &str, expect: &[u8], kind: MessageKind) {
        let body = format!("{{\"topic\":\"a\",{fields}}}");
        let item = one(&body).expect(fields);
        assert_eq!((&*item.payload, item.kind), (expect, kind), "{fields}");
    }

    fn fault(body: &str, expect: &str) {
        assert_eq!(one(body).expect_err(body).to_string(), expect, "{body}");
    }

    #[test]
    fn a_string_is_published_as_its_text_and_other_json_compact() {
        for (data, expect) in [
            (r#""hi""#, "hi"),
            (r#""""#, ""),
            (r#""a\n\u00fc\/\ud83e\udd80""#, "a\nü/🦀"),
            (r#""{ }""#, "{ }"),
            ("null", "null"),
            ("true", "true"),
            ("1.0", "1.0"),
            ("-1E400", "-1E400"),
            ("123456789012345", "123456789012345"),
            (" { \"b\" :\t[1 ],\r\n\"a\":1}", r#"{"b":[1],"a":1}"#),
            (r#"{"a b":"c \" d"}"#, r#"{"a b":"c \" d"}"#),
            (r#"["\\", " "]"#, r#"["\\"," "]"#),
            ("[]", "[]"),
        ] {
            payload(&format!("\"data\":{data}"), expect.as_bytes(), MessageKind::Text);
        }
    }

    #[test]
    fn data_b64_is_published_as_its_bytes() {
        for (base64, expect) in [("", &b""[..]), ("/wAK", b"\xff\0\n"), ("DQo=", b"\r\n"), ("DQo", b"\r\n"), ("\\/wAK", b"\xff\0\n")] {
            payload(&format!("\"data_b64\":\"{base64}\""), expect, MessageKind::Binary);
        }
        payload(r#""data":null,"data_b64":"DQo""#, b"\r\n", MessageKind::Binary);
        payload(r#""data":"x","data_b64":null"#, b"x", MessageKind::Text);
        for base64 in ["_wAK", "D", "DQ o", "DQp", "D===", "ü"] {
            fault(&format!(r#"{{"topic":"a","data_b64":"{base64}"}}"#), "data_b64 is not base64 (RFC 4648 section 4: A-Z a-z 0-9 + /)");
        }
    }

    #[test]
    fn an_item_names_one_topic_or_a_list_of_them() {
        let names = |item: &Item<'_>| item.topics.iter().map(|topic| topic.as_str().to_owned()).collect::<Vec<_>>();
        for (body, expect, list) in [
            (r#"{"topic":"a","data":1}"#, &["a"][..], false),
            (r#"{"room":"\u90e8屋","data":1}"#, &["部屋"], false),
            (r#"{"topics":["a","b","a"],"data":1}"#, &["a", "b", "a"], true),
            (r#"{"rooms":["a"],"topic":null,"data":1}"#, &["a"], true),
            (r#"{"other":{"topic":"x"},"data":1,"topi\u0063":"a"}"#, &["a"], false),
            (r#"{"$serde_json::private::RawValue":"x","topic":"a","data":1}"#, &["a"], false),
        ] {
            let item = one(body).expect(body);
            assert_eq!((names(&item), item.has_topic_list), (expect.iter().map(|name| (*name).to_owned()).collect(), list));
            assert_eq!((item.id, item.key, item.event), (None, None, None));
        }
    }

    #[test]
    fn id_key_and_event_are_optional_and_checked() {
        let item = one(r#"{"topic":"a","data":1,"id":"i 1","key":"k\"","event":"price"}"#).expect("an item");
        assert_eq!(item.id.as_ref().map(Key::as_str), Some("i 1"));
        assert_eq!(item.key.as_ref().map(Key::as_str), Some("k\""));
        assert_eq!(item.event.as_ref().map(EventName::as_str), Some("price"));
        let item = one(r#"{"topic":"a","data":1,"id":null,"key":null,"event":null}"#).expect("an item");
        assert_eq!((item.id, item.key, item.event), (None, None, None));
        let with = |field: &str| format!(r#"{{"topic":"a","data":1,{field}}}"#);
        fault(&with(r#""id":"""#), "id is empty; 1 to 255 bytes are allowed");
        fault(&with(&format!(r#""key":"{}""#, "k".repeat(256))), "key is 256 bytes; 1 to 255 bytes are allowed");
        fault(&with(r#""id":"a\r\nb""#), "id has the control character U+000D at byte 1; remove it");
        fault(&with(r#""id":7"#), "id is a number; send a string");
        fault(&with(r#""event":"a\nb""#), "event name has the control character U+000A at byte 1; remove it");
        fault(&with(r#""event":["a"]"#), "event is an array; send a string");
    }

    #[test]
    fn an_error_says_which_item_and_what_to_do() {
        let missing = "there is neither topic nor topics; send one of them";
        fault("{}", missing);
        fault(r#"{"topic":null,"data":1}"#, missing);
        fault(r#"{"topic":"a"}"#, "there is neither data nor data_b64; send one of them");
        fault(r#"{"topic":"a","topics":["b"],"data":1}"#, "there are both topic and topics; send one of them");
        fault(r#"{"topic":"a","data":1,"data_b64":""}"#, "there are both data and data_b64; send one of them");
        fault(r#"{"topic":"a","topic":"b","data":1}"#, "duplicate field `topic`; send each field once");
        fault(r#"{"topic":"a","room":"b","data":1}"#, "duplicate field `topic`; send each field once");
        fault(r#"{"topic":{},"data":1}"#, "topic is an object; send a string");
        fault(r#"{"topic":true,"data":1}"#, "topic is a boolean; send a string");
        fault(r#"{"topics":"a","data":1}"#, "topics is a string; send an array of strings");
        fault(r#"{"topics":[null],"data":1}"#, "a name in topics is null; send a string");
        fault(r#"{"topics":[],"data":1}"#, "topics has 0 names; 1 to 128 are allowed");
        fault(&format!(r#"{{"topics":[{}"a"],"data":1}}"#, r#""a","#.repeat(128)), "topics has 129 names; 1 to 128 are allowed");
        fault(r#"{"topic":"a","data":"\ud800"}"#, "data has an escape that is no character (half of a surrogate pair)");
        fault(r#"{"topic":"a","data":"seventeen letters"}"#, "payload is 17 bytes, limit 16 (limits.message_bytes_max)");
        let body = format!(r#"[{{"topic":"a","data":1}},5,{{"topic":"{}","data":1}}]"#, "t".repeat(300));
        let parsed = PublishBody::parse(body.as_bytes(), &LIMITS).expect("JSON");
        let texts: Vec<_> = parsed.items.iter().map(|item| item.as_ref().map_or_else(ToString::to_string, |_| String::new())).collect();
        let expect = [
            "",
            "item 1: it is a number; send an object with topic and data",
            "item 2: topic name is 300 bytes; 1 to 255 bytes are allowed",
        ];
        assert_eq!(texts, expect);
    }

    #[test]
    fn what_is_too_large_is_413_and_the_rest_400() {
        let of = |body: &str| one(body).map_err(|error| (error.status(), error.code())).expect_err(body);
        assert_eq!(of(r#"{"topic":"a","data":"seventeen letters"}"#), (413, "too_large"));
        assert_eq!(of("{}"), (400, "bad_request"));
        let of = |body: &'static [u8]| PublishBody::parse(body, &LIMITS).map_err(|error| (error.status(), error.code(), error.to_string()));
        let over = of(b"[1,2,3,4]").expect_err("one too many");
        assert_eq!((over.0, over.1, over.2.as_str()), (413, "too_large", "body has over 3 items; send at most 3 at a time"));
        for (body, code, text) in [
            (
                &b" \n"[..],
                "bad_json",
                "body is empty; send a JSON object such as {\"topic\":\"a\",\"data\":\"hello\"}, or an array of them",
            ),
            (b"{\"topic\":\"\xff\"}", "bad_json", "body is not UTF-8 from byte 10 on; JSON is UTF-8 (RFC 8259 section 8.1)"),
            (b"hello", "bad_json", "body is not JSON: expected value at line 1 column 1"),
            (b"{\"topic\":\"a\"} x", "bad_json", "body is not JSON: trailing characters at line 1 column 15"),
            (b"[{},]", "bad_json", "body is not JSON: trailing comma at line 1 column 5"),
            (b"[{}] []", "bad_json", "body is not JSON: trailing characters at line 1 column 6"),
            (b"[{}", "bad_json", "body is not JSON: EOF while parsing a list at line 1 column 3"),
            (b"\"a\"", "bad_request", "body is a string; send an object or an array of objects"),
            (b" 5", "bad_request", "body is a number; send an object or an array of objects"),
        ] {
            assert_eq!(of(body), Err((400, code, text.to_owned())), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn an_array_is_one_even_without_items() {
        let parsed = PublishBody::parse(b" [ ] ", &LIMITS).expect("JSON");
        assert!(parsed.is_array && parsed.items.is_empty());
    }

    #[test]
    fn deep_json_is_no_danger() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let limits = PublishLimits { items_max: 3, message_bytes_max: 1 << 20 };
        let body = format!(r#"{{"topic":"a","data":{deep}}}"#);
        let parsed = PublishBody::parse(body.as_bytes(), &limits).expect("JSON");
        assert_eq!(parsed.items[0].as_ref().map(|item| item.payload.len()), Ok(200_000));
        assert!(PublishBody::parse(deep.as_bytes(), &limits).expect("JSON").items[0].is_err());
    }

    #[test]
    fn what_needs_no_change_is_lent_from_the_body() {
        let item = one(r#"{"topic":"a","data":{"n":1},"id":"i","event":"e"}"#).expect("an item");
        assert!(matches!(item.payload, Cow::Borrowed(_)));
    }
}
