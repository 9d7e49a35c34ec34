//! WebSocket (RFC 6455), the server's side: the opening handshake ([`handshake`]), frames ([`frame`], [`mask`]), whole messages out of bytes as
//! they come ([`decoder`], [`utf8`]), and how a connection ends ([`close`]). Every way in which a peer can break the protocol is a
//! [`WsError`], which knows its close code.
//!
//! One extension: permessage-deflate (RFC 7692) is agreed to in [`extension`] and done in [`deflate`].
#![forbid(unsafe_code)]

pub mod close;
#[cfg(test)]
mod conversation_tests;
pub mod decoder;
pub mod deflate;
pub mod error;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod utf8;

pub use close::{CloseCode, ClosePayload, encode_close_payload, parse_close_payload};
pub use decoder::{Decoded, Decoder, DecoderLimits, Incoming, MessageKind};
pub use deflate::{Deflater, Inflater};
pub use error::WsError;
pub use frame::{FrameHeader, OpCode};
