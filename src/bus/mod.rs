//! The stream outside: what joins this process's topics to those of others. [`link`] is the way between shards and the NATS core, bounded and never
//! waited for; `nats` (with the feature of that name) is the core itself, one thread with the connection.
//!
//! What goes which way is decided by the rules in `proto::subject`, and carried out by `gateway::bridge`, at a topic's home shard. The bus numbers nothing and keeps
//! nothing: a message from NATS gets its place in its topic as any other does.
#![forbid(unsafe_code)]

#[cfg(feature = "nats")]
mod ends;
#[cfg(feature = "nats")]
mod envelope;
#[cfg(feature = "nats")]
mod fetch;
#[cfg(feature = "gateway")]
pub mod link;
#[cfg(all(feature = "nats", feature = "gateway"))]
pub mod nats;
#[cfg(feature = "gateway")]
pub mod options;
#[cfg(feature = "nats")]
mod outstanding;
#[cfg(feature = "nats")]
mod reader;
pub mod status;
#[cfg(feature = "nats")]
pub(crate) mod stream;
#[cfg(feature = "nats")]
mod writer;
