//! Bytes to values and back: request heads and responses ([`http`]), WebSocket frames and messages ([`ws`]), event streams ([`sse`]), JSON
//! to publish ([`publish`]), to read ([`poll`]), of lists ([`listing`]) and of a conversation ([`json`]), names ([`topic`]) and which of them are meant ([`pattern`]), places in topics ([`position`]), what is missing
//! between them ([`gap`]), names in NATS ([`subject`]), what becomes of slow readers ([`slow`]), what outlives a restart ([`state`]), and who a client behind proxies is ([`client_address`]).
//!
//! Pure: no I/O, no clock, no sockets, no unsafe. Parsers never panic, whatever a peer sends; they grow memory only as bytes really
//! arrive, never by a length that a peer announces; and what they return has been checked, so that nobody validates again behind this
//! border. Called by `gateway` and `server`; knows neither `engine` nor `hub`.
#![forbid(unsafe_code)]

pub mod client_address;
pub mod gap;
pub mod http;
pub mod json;
pub mod listing;
pub mod pattern;
pub mod poll;
pub mod position;
pub mod publish;
pub mod slow;
pub mod sse;
pub mod state;
pub mod subject;
pub mod topic;
pub mod ws;
