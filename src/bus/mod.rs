//! The stream outside: what joins this process's topics to those of others. [`link`] is the way between shards and the NATS core, bounded and never
//! waited for; `nats` (with the feature of that name) is the core itself, one thread with the connection.
//!
//! What goes which way is decided by the rules in `proto::subject`, and carried out by `gateway::bridge`, at a topic's home shard. The bus numbers nothing and keeps
//! nothing: a message from NATS gets its place in its topic as any other does.
#![forbid(unsafe_code)]

pub mod link;
#[cfg(feature = "nats")]
pub mod nats;
pub mod options;
pub mod status;
#[cfg(feature = "nats")]
mod stream;
