//! Any bytes as a body of /v1/publish: JSON when serde_json's tree says so, and what is published is what the tree has. Then the items as
//! messages of an answer, which is JSON whatever they hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use shardcast::proto::poll::{Answer, Message};
use shardcast::proto::position::{Epoch, Position};
use shardcast::proto::publish::{BodyError, PublishBody, PublishLimits};
use shardcast::proto::ws::MessageKind;

/// With this field first serde_json's tree takes an object for a value in its own notation; to us it is a field like any other.
const RESERVED: &[u8] = b"$serde_json::private::RawValue";

const LIMITS: PublishLimits = PublishLimits { items_max: 16, message_bytes_max: 256 };

fuzz_target!(|data: &[u8]| {
    let tree = serde_json::from_slice::<Value>(data);
    let is_reserved = data.windows(RESERVED.len()).any(|window| window == RESERVED);
    let body = match PublishBody::parse(data, &LIMITS) {
        Ok(body) => body,
        Err(_) if is_reserved => return,
        Err(BodyError::Shape { .. }) => return assert!(!matches!(tree, Ok(Value::Object(_) | Value::Array(_)))),
        Err(BodyError::TooManyItems { max }) => return assert!(!matches!(tree, Ok(Value::Array(items)) if items.len() <= max)),
        Err(BodyError::Empty | BodyError::NotUtf8 { .. } | BodyError::NotJson { .. }) => return assert!(tree.is_err()),
    };
    // The tree has bounds of its own: numbers beyond floats, 128 levels, and half surrogate pairs in fields that nobody reads.
    let tree = match tree {
        _ if is_reserved => vec![None; body.items.len()],
        Ok(Value::Array(items)) => items.into_iter().map(Some).collect(),
        Ok(item) => vec![Some(item)],
        Err(error) => {
            let why = error.to_string();
            assert!(["number out of range", "recursion limit", "surrogate", "hex escape"].iter().any(|known| why.contains(known)), "{why}");
            vec![None; body.items.len()]
        }
    };
    assert_eq!(tree.len(), body.items.len());
    let mut out = Vec::new();
    let mut answer = Answer::begin(&mut out);
    for (item, tree) in body.items.iter().zip(tree) {
        let Ok(item) = item else { continue };
        assert!(item.payload.len() <= LIMITS.message_bytes_max && !item.topics.is_empty());
        if let (MessageKind::Text, Some(tree)) = (item.kind, tree) {
            let text = str::from_utf8(&item.payload).expect("JSON is UTF-8");
            match &tree["data"] {
                Value::String(data) => assert_eq!(text, data),
                data => assert_eq!(serde_json::from_str::<Value>(text).as_ref().ok(), Some(data)),
            }
        }
        let position = Position { epoch: Epoch(1), offset: 2 };
        let event = item.event.as_ref().map(|event| event.as_str());
        let key = item.key.as_ref().map(|key| key.as_str());
        answer.message(&Message { topic: item.topics[0].as_str(), position, event, key, kind: item.kind, payload: &item.payload });
    }
    answer.finish(Some([(Epoch(1), Some(2))]), 3);
    serde_json::from_slice::<Value>(&out).expect("an answer is JSON, whatever was published");
});
