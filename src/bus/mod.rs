//! The stream outside: what joins this process's topics to those of others. [`link`] is the way between shards and the NATS core, bounded and never
//! waited for; `nats` (with the feature of that name) is the core itself, one thread with the connection.
//!
//! What goes which way is decided by the rules in `proto::subject`, and carried out by `gateway::bridge`, at a topic's home shard. In core NATS nobody numbers or
//! keeps anything: a message that comes gets its place in its topic as any other does. With a stream (docs/decisions/0025) `writer` hands it messages until it has
//! acknowledged them (`outstanding`), `reader` brings all of it to the shards, and `fetch` what a shard asks of its past; `ends` are the core's ends of the ways, `envelope` the headers.
#![forbid(unsafe_code)]

#[cfg(all(feature = "nats", feature = "gateway"))]
mod ends;
#[cfg(all(feature = "nats", feature = "gateway"))]
mod envelope;
#[cfg(all(feature = "nats", feature = "gateway"))]
mod fetch;
#[cfg(feature = "gateway")]
pub mod link;
#[cfg(all(feature = "nats", feature = "gateway"))]
pub mod nats;
#[cfg(feature = "gateway")]
pub mod options;
#[cfg(all(feature = "gateway", any(feature = "nats", feature = "sim")))]
pub(crate) mod outstanding;
#[cfg(all(feature = "nats", feature = "gateway"))]
mod reader;
#[cfg(all(feature = "gateway", any(feature = "nats", feature = "sim")))]
pub(crate) mod reading;
#[cfg(feature = "gateway")]
pub mod status;
#[cfg(feature = "nats")]
pub(crate) mod stream;
#[cfg(all(feature = "nats", feature = "gateway"))]
mod writer;

/// How the stream is that keeps what goes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StreamState {
    /// None is asked for.
    None,
    /// It was not seen yet, or cannot be had now.
    Unknown,
    /// It is as asked for.
    Fits,
    /// It is there, and another one than asked for.
    Misfits,
}

impl StreamState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::None, Self::Unknown, Self::Fits, Self::Misfits];
}
