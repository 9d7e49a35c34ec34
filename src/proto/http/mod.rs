//! HTTP/1.1 as a gateway needs it: request heads in, short responses out.
//!
//! Heads are parsed by httparse and judged here ([`head`]): what a request means, how long its body is, and everything that RFC 9112 wants
//! refused. Bodies are the caller's: [`head::Body`] says how they end, and [`chunked`] takes the framing of chunked ones away.
#![forbid(unsafe_code)]

pub mod chunked;
pub mod head;
pub mod query;
pub mod response;

pub use chunked::{ChunkError, ChunkedDecoder, Dechunked};
pub use head::{Body, Head, HeadError, HeadStorage, head_end, parse_head};
pub use query::{TopicsError, query_pairs, topic_names};
pub use response::{Response, error_code, reason};

/// Whether the bytes are a token (RFC 9110 section 5.6.2): methods, header names, subprotocols.
pub(in crate::proto) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}
