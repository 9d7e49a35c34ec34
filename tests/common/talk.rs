//! A client of `shardcast.v1.json` over a raw socket: what is sent and what comes, object by object.

use serde_json::{Value, json};

use std::collections::VecDeque;

use super::deflate::{RSV1, inflate};
use super::frame::{FIN, TEXT};
use super::raw::{self, Raw};

const FIN_TEXT: u8 = FIN | TEXT;
const FIN_TEXT_COMPRESSED: u8 = FIN | RSV1 | TEXT;

/// The header that asks for the subprotocol.
pub const PROTOCOL: &str = "Sec-WebSocket-Protocol: shardcast.v1.json\r\n";

pub struct Talker {
    pub raw: Raw,
    /// What it was welcomed with.
    pub welcome: Value,
    /// What came in one frame and was not heard yet.
    batch: VecDeque<Value>,
}

/// Connects and is welcomed.
pub fn connect(port: u16) -> Talker {
    over(Raw::connect(port))
}

/// The same, and calls itself something.
pub fn connect_as(port: u16, user: &str) -> Talker {
    to(Raw::connect(port), &format!("/ws?user={user}"))
}

/// The same on a connection that is there.
pub fn over(raw: Raw) -> Talker {
    to(raw, "/ws")
}

/// The same, and takes compressed messages.
pub fn connect_deflated(port: u16) -> Talker {
    with(Raw::connect(port), "/ws", &format!("Sec-WebSocket-Extensions: permessage-deflate\r\n{PROTOCOL}"))
}

fn to(raw: Raw, path: &str) -> Talker {
    with(raw, path, PROTOCOL)
}

fn with(mut raw: Raw, path: &str, headers: &str) -> Talker {
    raw.write(raw::upgrade(path, headers).as_bytes());
    let response = raw.expect_upgraded();
    assert_eq!(response.header("sec-websocket-protocol"), Some("shardcast.v1.json"));
    let mut talker = Talker { raw, welcome: Value::Null, batch: VecDeque::new() };
    talker.welcome = talker.expect("welcome");
    talker
}

impl Talker {
    pub fn say(&mut self, what: Value) {
        self.raw.send_text(&what.to_string());
    }

    /// Takes many messages as one frame from now on.
    pub fn batched(mut self) -> Self {
        self.say(json!({"type": "hello", "batch": true}));
        self
    }

    /// The next thing that comes.
    pub fn hear(&mut self) -> Value {
        if self.batch.is_empty() {
            self.batch = self.hear_frame().into();
        }
        self.batch.pop_front().expect("a frame has something")
    }

    /// All that the next frame has.
    pub fn hear_frame(&mut self) -> Vec<Value> {
        assert!(self.batch.is_empty(), "{:?} was not heard", self.batch);
        let frame = self.raw.frame();
        let payload = match frame.first {
            FIN_TEXT => frame.payload,
            FIN_TEXT_COMPRESSED => inflate(&frame.payload),
            _ => panic!("{frame:?}"),
        };
        let text = std::str::from_utf8(&payload).expect("text");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
    }

    /// The next thing that comes, which is of this type.
    pub fn expect(&mut self, kind: &str) -> Value {
        let heard = self.hear();
        assert_eq!(heard["type"], kind, "{heard}");
        heard
    }

    pub fn subscribe(&mut self, topic: &str) -> Value {
        self.subscribe_with(topic, json!({}))
    }

    /// Subscribes, with more fields; what comes up to the answer is left out.
    pub fn subscribe_with(&mut self, topic: &str, mut fields: Value) -> Value {
        fields["type"] = "subscribe".into();
        fields["topic"] = topic.into();
        self.say(fields);
        loop {
            let heard = self.hear();
            if heard["type"] != "message" {
                assert_eq!((&heard["type"], &heard["topic"]), (&"subscribed".into(), &topic.into()), "{heard}");
                return heard;
            }
        }
    }

    /// Publishes without waiting.
    pub fn publish(&mut self, topic: &str, data: impl Into<Value>) {
        self.say(json!({"type": "publish", "topic": topic, "data": data.into()}));
    }

    /// Publishes and waits for the receipt; what comes up to it is left out.
    pub fn published(&mut self, topic: &str, data: impl Into<Value>) -> Value {
        self.say(json!({"type": "publish", "id": "p", "topic": topic, "data": data.into()}));
        loop {
            let heard = self.hear();
            if heard["type"] != "message" {
                assert_eq!((&heard["type"], &heard["id"]), (&"ok".into(), &"p".into()), "{heard}");
                return heard;
            }
        }
    }

    /// The next message, with this text or JSON.
    pub fn expect_message(&mut self, topic: &str, data: impl Into<Value>) -> Value {
        let message = self.expect("message");
        assert_eq!((&message["topic"], &message["data"]), (&topic.into(), &data.into()), "{message}");
        message
    }

    /// An error with this code.
    pub fn expect_error(&mut self, code: &str) -> Value {
        let error = self.expect("error");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error
    }

    /// The goodbye and the close frame behind it, which say the same.
    pub fn expect_bye(&mut self, code: u16) -> Value {
        let bye = loop {
            let heard = self.hear();
            if heard["type"] != "message" {
                break heard;
            }
        };
        assert_eq!((&bye["type"], &bye["code"]), (&"bye".into(), &code.into()), "{bye}");
        let reason = self.raw.expect_close(code);
        match bye["retry_ms"].as_u64() {
            Some(ms) => assert!(reason.starts_with(&format!("retry={ms}")), "{bye} and {reason}"),
            None => assert!(!reason.contains("retry="), "{bye} and {reason}"),
        }
        bye
    }

    pub fn expect_silence(&mut self, ms: u64) {
        assert!(self.batch.is_empty(), "{:?} was not heard", self.batch);
        self.raw.expect_silence(ms);
    }
}
