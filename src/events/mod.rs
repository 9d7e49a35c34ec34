//! Events for Rust services, with or without a gateway in the process. `Bus` (feature `bus`) carries values of one type between the threads
//! and tasks of a process; `EventBus` (feature `nats`) carries events between processes, kept by a JetStream stream.
//!
//! Neither touches a connection of a client: whoever wants events in browsers publishes them to the gateway, over HTTP or NATS.
#![forbid(unsafe_code)]

#[cfg(feature = "bus")]
mod bus;
#[cfg(feature = "nats")]
pub mod event_bus;

#[cfg(feature = "bus")]
pub use bus::{
    Bus, BusOptions, Delivery, Lag, Lagged, Published, QUEUE_MESSAGES_MAX, RecvError, RecvTimeoutError, SubscribeError, SubscribeOptions,
    SubscriberId, Subscription, TOPIC_BYTES_MAX, TryRecvError,
};

/// The client of NATS that [`EventBus`] is built on, for connections of one's own making.
#[cfg(feature = "nats")]
pub use ::nats;
#[cfg(feature = "nats")]
pub use event_bus::EventBus;
