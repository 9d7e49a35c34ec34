//! What is known of the connection to NATS: counts that the metrics page reads, and whether there is one, which every publisher asks.
//!
//! The NATS core is the only writer of everything here but the bounds that shards count themselves against.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::StreamState;
use crate::proto::position::{Epoch, Position};

/// How the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LinkState {
    /// There was none yet.
    Connecting,
    /// There is one.
    Connected,
    /// It was lost, and is tried again.
    Disconnected,
    /// As many tries have failed as may (limits.nats_reconnects_max): nobody tries again.
    GivenUp,
}

impl LinkState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Connecting, Self::Connected, Self::Disconnected, Self::GivenUp];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::GivenUp => "given up",
        }
    }
}

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes away from it.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Replaces it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds one, if it stays within `max`.
    pub fn take_below(&self, max: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| (value < max).then_some(value + 1)).is_ok()
    }
}

/// How far a stream has been read: everything at or before it was put on its way to the shards that want it.
///
/// One thread writes it. A reader who sees the same epoch before and after has an offset of that epoch, and one that was true: all notices about what
/// lies at or before it lie in the inboxes.
#[derive(Debug, Default)]
pub struct ReadUpTo {
    /// 0 while nothing was read.
    epoch: AtomicU64,
    offset: AtomicU64,
}

impl ReadUpTo {
    /// How far; none while nothing was read.
    pub fn value(&self) -> Option<Position> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let offset = self.offset.load(Ordering::Acquire);
        (epoch != 0 && self.epoch.load(Ordering::Acquire) == epoch).then_some(Position { epoch: Epoch(epoch), offset })
    }

    /// It was read so far.
    pub fn set(&self, position: Position) {
        if self.epoch.load(Ordering::Relaxed) != position.epoch.0 {
            self.epoch.store(0, Ordering::Release);
            self.offset.store(position.offset, Ordering::Release);
        }
        self.offset.store(position.offset, Ordering::Release);
        self.epoch.store(position.epoch.0, Ordering::Release);
    }
}

/// What is known of the connection.
#[derive(Debug)]
pub struct Status {
    state: AtomicU8,
    stream: AtomicU8,
    stopping: AtomicBool,
    /// Whom this process's messages come from, so that none of them is taken for another's.
    pub node: u64,
    /// For how long there has been no connection, in milliseconds; 0 while there is one.
    pub down_ms: Count,
    /// Times that a connection came to be.
    pub connects: Count,
    /// Times that one was lost.
    pub disconnects: Count,
    /// How far the stream was read.
    pub read: ReadUpTo,
    /// Whether the stream is read now: 1 or 0.
    pub reading: Count,
    /// For how long it could not be, in milliseconds; 0 while it is.
    pub unread_ms: Count,
    /// Messages that the stream has acknowledged.
    pub stored: Count,
    /// Messages that it had before.
    pub duplicates: Count,
    /// Messages that were given up without an answer.
    pub unanswered: Count,
    /// Times that the stream was opened to be read.
    pub opens: Count,
    /// Times that what was missing between could not be read any more.
    pub holes: Count,
    /// Messages of the past that were read for who came back.
    pub fetched: Count,
    /// Messages handed to the connection.
    pub published: Count,
    /// Messages that came from it.
    pub received: Count,
    /// Messages that came and found no room on the way to their shard.
    pub dropped: Count,
    /// Messages that came and were over `limits.message_bytes_max`.
    pub oversized: Count,
    /// Messages that the connection did not take, because the server has changed its mind on how large they may be.
    pub refused: Count,
    /// This node's own messages that came back.
    pub echoes: Count,
    /// Messages that came behind a later one of their node, and were left out.
    pub late: Count,
    /// Topics that NATS is asked for.
    pub subscriptions: Count,
    /// The largest message that the server takes, its headers included.
    pub max_payload: Count,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// The largest message that a server takes unless it says otherwise.
const MAX_PAYLOAD: u64 = 1 << 20;

impl Status {
    /// Before the first connection.
    pub fn new(node: u64) -> Self {
        let status = Self {
            state: AtomicU8::new(LinkState::Connecting as u8),
            stream: AtomicU8::new(StreamState::None as u8),
            stopping: AtomicBool::new(false),
            node,
            read: ReadUpTo::default(),
            reading: Count::default(),
            unread_ms: Count::default(),
            stored: Count::default(),
            duplicates: Count::default(),
            unanswered: Count::default(),
            opens: Count::default(),
            holes: Count::default(),
            fetched: Count::default(),
            down_ms: Count::default(),
            connects: Count::default(),
            disconnects: Count::default(),
            published: Count::default(),
            received: Count::default(),
            dropped: Count::default(),
            oversized: Count::default(),
            refused: Count::default(),
            echoes: Count::default(),
            late: Count::default(),
            subscriptions: Count::default(),
            max_payload: Count::default(),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        };
        status.max_payload.set(MAX_PAYLOAD);
        status
    }

    /// How the connection is.
    pub fn state(&self) -> LinkState {
        LinkState::ALL[usize::from(self.state.load(Ordering::Relaxed)) % LinkState::ALL.len()]
    }

    /// Whether there is one.
    pub fn is_connected(&self) -> bool {
        self.state() == LinkState::Connected
    }

    /// Whether clients who come now find all that they need: a connection, and a stream that is read where there is to be one.
    pub fn is_ready(&self) -> bool {
        self.is_connected() && (self.stream() == StreamState::None || self.read.value().is_some())
    }

    /// How the stream is.
    pub fn stream(&self) -> StreamState {
        StreamState::ALL[usize::from(self.stream.load(Ordering::Relaxed)) % StreamState::ALL.len()]
    }

    /// It is so now.
    pub fn set_stream(&self, state: StreamState) {
        self.stream.store(state as u8, Ordering::Relaxed);
    }

    /// It is so now; what it was before.
    pub fn set(&self, state: LinkState) -> LinkState {
        let before = self.state.swap(state as u8, Ordering::Relaxed);
        LinkState::ALL[usize::from(before) % LinkState::ALL.len()]
    }

    /// The server's word is wanted, behind everything that shards have given to the core so far: how often that was so.
    pub fn ask(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// How often it was wanted. What had been given before is there for who reads it.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// The server has given its word.
    pub fn answer(&self, asked: u64) {
        self.answered.fetch_max(asked, Ordering::AcqRel);
    }

    /// Up to which time it has.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// The process ends: what waits goes out, and then nothing more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether that was said.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_back() {
        let status = Status::new(1);
        assert_eq!((status.state(), status.is_connected()), (LinkState::Connecting, false));
        let mut before = LinkState::Connecting;
        for state in LinkState::ALL {
            assert_eq!((status.set(state), status.state()), (before, state));
            before = state;
        }
        assert_eq!(status.stream(), StreamState::None);
        for state in StreamState::ALL {
            status.set_stream(state);
            assert_eq!(status.stream(), state);
        }
    }

    #[test]
    fn a_count_stays_within_its_bound() {
        let count = Count::default();
        assert!(count.take_below(2) && count.take_below(2) && !count.take_below(2));
        count.sub(1);
        assert!(count.take_below(2) && count.value() == 2);
    }
}
