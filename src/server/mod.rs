//! The composition root: configuration, threads, signals, metrics. Owns the loop and the clock, and nothing of the protocol.
#![forbid(unsafe_code)]

pub mod admin;
pub mod bus;
pub mod clock;
pub mod config;
pub mod debug;
pub mod handover;
pub mod host;
pub mod house;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod restart;
pub mod shard;
pub mod signals;
pub mod state;
pub mod supervisor;
pub mod systemd;
pub mod takeover;
pub mod wire;
