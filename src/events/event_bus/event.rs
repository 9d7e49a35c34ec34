//! An event and its envelope: a CloudEvents 1.0 message in JSON, which any language has a library for.
//!
//! `{"specversion":"1.0","id":"…","type":"order.created","source":"shop","partitionkey":"customer-7","datacontenttype":"application/json","data":{…}}`

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const SPEC_VERSION: &str = "1.0";
const CONTENT_TYPE: &str = "application/json";

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<T> {
    /// Unlike every other's. Two events with one id, published within the stream's duplicate window, are one; so a publish without an answer can be tried again.
    pub id: String,
    /// What has happened: `order.created`.
    pub kind: String,
    /// Who says so: a service, or a URI.
    pub source: String,
    /// What has to keep its order: events of one key are handled one after the other, as they were stored. None: in no order.
    pub key: Option<String>,
    /// The rest, in JSON.
    pub payload: T,
}

impl<T> Event<T> {
    /// An event with an id of its own and no key.
    ///
    /// ```
    /// use shardcast::events::event_bus::Event;
    ///
    /// let event = Event::new("order.created", "shop", 7).with_key("customer-7");
    /// assert_eq!((event.kind.as_str(), event.key.as_deref()), ("order.created", Some("customer-7")));
    /// assert_ne!(event.id, Event::new("order.created", "shop", 7).id);
    /// ```
    pub fn new(kind: impl Into<String>, source: impl Into<String>, payload: T) -> Self {
        Self { id: fresh_id(), kind: kind.into(), source: source.into(), key: None, payload }
    }

    /// The same, in order with all that have this key.
    #[must_use]
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The same under an id that is known elsewhere, such as that of a row.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    /// What its place is worked out from.
    pub(super) fn place(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.id)
    }
}

/// 128 bits of the process, chosen by the operating system's randomness, and a count.
pub(super) fn fresh_id() -> String {
    static PROCESS: OnceLock<String> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| {
        let half = || RandomState::new().hash_one(std::process::id());
        format!("{:016x}{:016x}", half(), half())
    });
    format!("{process}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a, D> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    partitionkey: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<Cow<'a, str>>,
    data: D,
}

/// The envelope's bytes.
pub(super) fn encode<T: Serialize>(event: &Event<T>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Envelope {
        specversion: SPEC_VERSION.into(),
        id: (&event.id).into(),
        kind: (&event.kind).into(),
        source: (&event.source).into(),
        partitionkey: event.key.as_deref().map(Cow::from),
        datacontenttype: Some(CONTENT_TYPE.into()),
        data: &event.payload,
    })
}

fn open(bytes: &[u8]) -> Result<Envelope<'_, &RawValue>, String> {
    let envelope: Envelope<&RawValue> = serde_json::from_slice(bytes).map_err(|error| format!("the envelope cannot be read: {error}"))?;
    if envelope.specversion != SPEC_VERSION {
        return Err(format!("the envelope is of CloudEvents {:?}, {SPEC_VERSION:?} is what is read", envelope.specversion));
    }
    Ok(envelope)
}

/// The key of an event, if there is an envelope.
pub(super) fn key(bytes: &[u8]) -> Option<Box<str>> {
    open(bytes).ok()?.partitionkey.map(Into::into)
}

/// The event, or why it cannot be read.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Event<T>, String> {
    let envelope = open(bytes)?;
    let payload = serde_json::from_str(envelope.data.get()).map_err(|error| format!("the payload cannot be read: {error}"))?;
    Ok(Event {
        id: envelope.id.into_owned(),
        kind: envelope.kind.into_owned(),
        source: envelope.source.into_owned(),
        key: envelope.partitionkey.map(Cow::into_owned),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_comes_back_as_it_was_and_is_what_the_standard_says() {
        let event = Event::new("order.created", "shop", vec![1, 2]).with_key("k\"1").with_id("e-1");
        let bytes = encode(&event).expect("numbers are JSON");
        let text = r#"{"specversion":"1.0","id":"e-1","type":"order.created","source":"shop","partitionkey":"k\"1","datacontenttype":"application/json","data":[1,2]}"#;
        assert_eq!(std::str::from_utf8(&bytes), Ok(text));
        assert_eq!((decode(&bytes), key(&bytes).as_deref()), (Ok(event), Some("k\"1")));
        // As others write it: other fields, another order, no key.
        let other =
            br#"{"time":"2026-01-01T00:00:00Z","data":null,"source":"/x","type":"t","id":"1","specversion":"1.0","traceparent":"00"}"#;
        let expect = Event { id: "1".into(), kind: "t".into(), source: "/x".into(), key: None, payload: () };
        assert_eq!((decode(other), key(other)), (Ok(expect), None));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (bytes, why) in [
            (&b"hello"[..], "the envelope cannot be read: expected value at line 1 column 1"),
            (
                br#"{"specversion":"1.0","id":"1","type":"t","source":"s"}"#,
                "the envelope cannot be read: missing field `data` at line 1 column 54",
            ),
            (
                br#"{"specversion":"0.3","id":"1","type":"t","source":"s","data":1}"#,
                "the envelope is of CloudEvents \"0.3\", \"1.0\" is what is read",
            ),
            (
                br#"{"specversion":"1.0","id":"1","type":"t","source":"s","data":"x"}"#,
                "the payload cannot be read: invalid type: string \"x\", expected u32 at line 1 column 3",
            ),
        ] {
            assert_eq!(decode::<u32>(bytes), Err(why.to_owned()));
        }
    }
}
