//! What a client tells its application, and why things fail.

use std::sync::Arc;
use std::time::Duration;

use super::message::{Gap, Message, Position};
use super::presence::Presence;

/// Something that has happened, in the order in which it did.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message of a topic that is subscribed to.
    Message(Message),
    /// Messages are missing here.
    Gap(Gap),
    /// The gateway has welcomed the client. Each topic follows with [`Event::Subscribed`].
    Connected {
        /// What the gateway calls the connection.
        conn: Box<str>,
    },
    /// A topic has its place on this connection: what is published from here on comes, now or after a loss.
    Subscribed {
        /// Which.
        topic: Arc<str>,
        /// What comes next is behind this.
        pos: Position,
        /// It went on from a position, and nothing after that is missing; where it is false after a loss, a gap follows.
        recovered: bool,
    },
    /// Every topic that a pattern means has its place on this connection: what is published to them from here on comes, and so do topics that come to be.
    Following {
        /// Which pattern.
        pattern: Arc<str>,
    },
    /// The gateway leaves topics out that a pattern means: they are more than it lets patterns bring, for example.
    LeftOut {
        /// Its word: `too_many_topics`, for example.
        code: Box<str>,
        /// And its sentence, with the topic's name where it is about one.
        message: Box<str>,
    },
    /// A topic or a pattern that is wanted cannot be had, and is given up.
    Refused {
        /// Which.
        topic: Arc<str>,
        /// The gateway's word: `bad_request`, for example.
        code: Box<str>,
        /// And its sentence.
        message: Box<str>,
    },
    /// Who is in a topic that was subscribed to with presence: behind each [`Event::Subscribed`], and whenever it is told anew. What was known before does not count any more.
    Presence(Presence),
    /// These have come. Somebody who is known already may be among them.
    Join(Presence),
    /// These have gone.
    Leave(Presence),
    /// Who is in a topic is not told any more: the gateway that the client has come back to does not do that for it. The messages go on.
    PresenceRefused {
        /// Which.
        topic: Arc<str>,
        /// The gateway's sentence.
        message: Box<str>,
    },
    /// There is no connection; the next try is made after this wait.
    Reconnecting {
        /// How long.
        wait: Duration,
        /// What has ended the connection, or the try before.
        why: Box<str>,
    },
    /// What the operator says to everybody.
    Announcement(Box<str>),
    /// It is over, and this is the last event.
    Closed(Closed),
}

impl Event {
    /// What it counts for in the buffer, in bytes.
    pub(super) fn weight(&self) -> usize {
        /// What an event takes besides what it carries.
        const OWN: usize = 256;
        OWN + match self {
            Self::Message(message) => message.topic.len() + message.data.as_bytes().len(),
            Self::Announcement(text) | Self::Reconnecting { why: text, .. } => text.len(),
            Self::Subscribed { topic: name, .. } | Self::Following { pattern: name } => name.len(),
            Self::LeftOut { message, .. } => message.len(),
            Self::Refused { topic, message, .. } | Self::PresenceRefused { topic, message } => topic.len() + message.len(),
            Self::Presence(presence) | Self::Join(presence) | Self::Leave(presence) => presence.weight(),
            Self::Gap(gap) => gap.topic.len(),
            Self::Connected { .. } | Self::Closed(_) => 0,
        }
    }
}

/// Why a client does not come back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Closed {
    /// The code of the gateway: 44xx, 1000, 1002, 1007 or 1009; of an upgrade that was refused 4000 and the HTTP status. None where the client itself has decided.
    pub code: Option<u16>,
    /// A sentence that says what must change first.
    pub reason: Box<str>,
}

/// Why a request was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The payload is longer than the gateway takes.
    #[error(
        "the message has {bytes} bytes, over the {max} that the gateway takes (limits.message_bytes_max); send less, or raise it there"
    )]
    TooLarge {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: u64,
    },
    /// No answer in time. A publication may have been made all the same: the same `id` within two minutes makes it once.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The gateway refuses, and will again.
    #[error("{message} ({code})")]
    Refused {
        /// Its word: `bad_request`, `read_only` and so on (docs/protocol.md section 13).
        code: Box<str>,
        /// And its sentence.
        message: Box<str>,
    },
    /// This client has the topic, or the pattern.
    #[error("{0:?} is subscribed to already; unsubscribe first to begin elsewhere")]
    AlreadySubscribed(Box<str>),
    /// This client has as many topics as one connection may.
    #[error("this client has {max} topics, as many as a connection may have; unsubscribe from one, or make another client")]
    TooManyTopics {
        /// How many.
        max: usize,
    },
    /// This client has as many patterns as one may.
    #[error("this client has {max} patterns, as many as one may have; unsubscribe from one, or make another client")]
    TooManyPatterns {
        /// How many.
        max: usize,
    },
    /// It was unsubscribed from before the gateway had answered.
    #[error("{0:?} was unsubscribed from meanwhile")]
    Unsubscribed(Box<str>),
    /// There is no client any more.
    #[error(transparent)]
    Closed(#[from] Closed),
}
