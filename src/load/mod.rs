//! The load generator behind `shardcast bench`: traffic against any WebSocket server, to WebSockets or to event
//! streams, and what it did to latencies, order and the server's CPU.
//!
//! [`Plan`] is what is asked for. [`run`] starts one thread per core asked for, each a runtime of its own (monoio) with its share of the connections:
//! `worker` is that thread, `link` and `wire` one connection on it, `traffic`, `storm` (with `backoff` and `curve`) and `resume` what the scenarios do, `shared` the little that
//! threads have in common. `measure`, `order` and `server` count; [`Outcome`] is the result, as text, JSON or a drawing (`plot`).
//!
//! It is a client: nothing here is used while the gateway serves, and of the gateway's own code it uses only frames and masks.
#![forbid(unsafe_code)]

mod backoff;
mod clock;
mod course;
mod curve;
mod events;
mod host;
mod link;
mod measure;
mod order;
mod outcome;
mod plan;
mod plot;
mod resume;
mod server;
mod shared;
mod stamp;
mod storm;
mod target;
mod traffic;
mod wire;
mod worker;

pub use course::run;
pub use host::{Host, local_ports};
pub use outcome::Outcome;
pub use plan::{Ask, Plan};

/// Why a run could not be made.
#[derive(thiserror::Error, Debug)]
pub enum LoadError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The machine, the server or the network does not let it.
    #[error("{0}")]
    Failed(String),
}
