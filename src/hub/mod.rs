//! Who gets what, in which order. Pure: no bytes, no sockets, no clock.
//!
//! A topic has one home shard ([`Placement`]); there its messages get their order and [`Home`] knows which shards want them and how far each is.
//! On every shard with subscribers [`Members`] lists them and walks them in laps. [`Directory`] finds topics by name and by key.
//! [`Roster`] is who is in a topic, for those who want to know.
#![forbid(unsafe_code)]

mod directory;
mod home;
mod members;
mod placement;
mod presence;

pub use directory::Directory;
pub use home::{Home, Target};
pub use members::Members;
pub use placement::Placement;
pub use presence::{Changes, Roster};
