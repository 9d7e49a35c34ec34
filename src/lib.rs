//! shardcast: a Linux realtime gateway on thread-per-core io_uring shards.
//!
//! What is built is chosen by features: `server`, the program, is the default; `gateway` is its shards alone; `bus` and `nats` are the libraries for
//! other services ([`events`]); `client` is the client for them ([`client`]).
//!
//! The map is docs/architecture.md. Layers, from the bottom: [`ids`], [`limits`] and [`time`] are the vocabulary; [`proto`] turns bytes
//! into values and back; [`engine`] moves bytes and wakes shards; [`hub`] decides who gets what in which order; [`gateway`] joins those
//! three into the life of a connection; [`bus`] joins its topics to NATS; [`events`] are libraries of their own, and so is [`client`]; [`server`] owns the threads; [`cli`] is the command line; [`web`] holds the pages; [`load`] is a client
//! that measures.

#[cfg(any(feature = "gateway", feature = "nats"))]
pub mod bus;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "gateway")]
pub mod engine;
#[cfg(any(feature = "bus", feature = "nats"))]
pub mod events;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod hub;
pub mod ids;
pub mod limits;
#[cfg(feature = "server")]
pub mod load;
#[cfg(feature = "gateway")]
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "gateway")]
mod sync;
pub mod time;
#[cfg(feature = "server")]
pub mod web;
