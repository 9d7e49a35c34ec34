//! Pages that ship inside the binary.
#![forbid(unsafe_code)]

/// `GET /`: a chat in one room, to try the gateway from a browser.
pub const INDEX: &str = include_str!("index.html");
