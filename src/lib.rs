//! shardcast: a Linux realtime gateway on thread-per-core io_uring shards.
//!
//! The map is docs/architecture.md. Layers, from the bottom: [`ids`], [`limits`] and [`time`] are the vocabulary; [`proto`] turns bytes
//! into values and back; [`engine`] moves bytes and wakes shards; [`hub`] decides who gets what in which order; [`gateway`] joins those
//! three into the life of a connection; [`bus`] joins its topics to NATS; [`server`] owns the threads; [`cli`] is the command line; [`web`] holds the pages; [`load`] is a client
//! that measures.

pub mod bus;
pub mod cli;
pub mod engine;
pub mod gateway;
pub mod hub;
pub mod ids;
pub mod limits;
pub mod load;
pub mod proto;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;
pub mod time;
pub mod web;
