//! A client of a gateway for Rust services: many topics on one WebSocket (`shardcast.v1.json`), each message once and in order, or one announced gap.
//!
//! ```no_run
//! use shardcast::client::{Client, Event, Start};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut events) = Client::builder("ws://127.0.0.1:8080").subscribe("lobby", Start::Last(10)).start()?;
//! let receipt = client.publish("lobby", "hello from Rust").await?;
//! println!("it is at {}", receipt.pos);
//! while let Some(event) = events.recv().await {
//!     match event {
//!         Event::Message(message) => println!("{} {:?}", message.pos, message.data),
//!         Event::Gap(gap) => println!("messages of {} are missing: {}", gap.topic, gap.reason),
//!         Event::Reconnecting { wait, why } => println!("{why}; back in {wait:?}"),
//!         Event::Closed(closed) => println!("for good: {closed}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! It comes back by itself when the gateway says (docs/client.md), and asks for what it has missed. Nothing of the gateway is built for it: neither io_uring nor a
//! command line, and TLS only with the feature `client-tls`.
//!
//! `session` decides, without a socket and a clock, and `topics` knows what is wanted and how far that is; `driver` is the task that does it; `handle` is what the application holds. `dial` makes connections, `wire` has the
//! words of the protocol, `backoff` when to come back, `requests` what has no answer yet, `message`, `presence` and `event` the values.
#![forbid(unsafe_code)]

mod backoff;
mod dial;
mod driver;
mod event;
mod handle;
mod message;
mod presence;
mod requests;
mod session;
#[cfg(feature = "client-tls")]
mod tls;
mod topics;
mod wire;

pub use self::dial::UrlError;
pub use self::event::{Closed, Error, Event};
pub use self::handle::{Builder, Client, Events, Pending, PublishOptions};
pub use self::message::{Data, Gap, GapReason, History, Message, Position, PositionError, Receipt, Start};
pub use self::presence::{Member, Presence};
#[cfg(feature = "client-tls")]
pub use self::tls::TrustError;
