//! Server-Sent Events (WHATWG HTML section 9.2): messages and the gateway's own events as a stream ([`encoder`]), names that fit a line
//! ([`event_name`]), and the client's side ([`decoder`]), for the load generator, tests and fuzzing.
//!
//! The encoder keeps one shape, so that the bytes of a message are made once for all its readers:
//!
//! ```text
//! id: k3f9.1042\n       the id line: first and alone. Readers of several topics get one of their own before the shared rest
//! event: price\n        when the message has a name
//! : base64\n            when it is binary: a comment, for clients that read the stream themselves
//! data: {"eur":3}\n     one for each line of a text; one line of base64 for a binary message
//! \n
//! ```
#![forbid(unsafe_code)]

pub mod decoder;
pub mod encoder;
pub mod event_name;

pub use decoder::{Decoder, Event};
pub use encoder::{
    HEARTBEAT, encode_announcement, encode_bye, encode_event, encode_gap, encode_id, encode_open, encode_retry, raw_announcement,
};
pub use event_name::{EventName, EventNameError};
