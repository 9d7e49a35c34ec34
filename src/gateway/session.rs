//! What the gateway knows of one connection. Small, because there are very many: nothing here outlives idleness but the struct itself.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;

use super::close_cause::CloseCause;
use super::counters::Transport;
use super::dismissal::Word;
use super::endpoints::Unavailable;
use super::feed::Format;
use super::publishing::Upload;
use super::streams::Stream;
use crate::engine::log::{Anchor, Pin};
use crate::engine::segment::Range;
use crate::ids::TopicKey;
use crate::proto::json::presence::User;
use crate::proto::position::Position;
use crate::proto::position::Start;
use crate::proto::ws::Decoder;
use crate::proto::ws::extension::Window;
use crate::time::Time;

/// Where a connection is in its life. It only ever goes down this list, except that a kept-alive HTTP connection stays at `Head`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// A request head is awaited or half read.
    Head,
    /// The upgrade waits until the room's home shard has taken the subscription.
    Joining,
    /// A member of a room, in raw mode.
    Room,
    /// `/echo`.
    Echo,
    /// A WebSocket that speaks `shardcast.v1.json`.
    Json,
    /// A stream of events (`/events`).
    Stream,
    /// A poll that waits for a message.
    Polling,
    /// The body of a request is awaited.
    Body,
    /// Other shards are asked on its behalf: its messages are on their way to the homes of their topics, or a list is.
    Awaiting,
    /// The last bytes are going out; then our side is shut.
    Finishing,
    /// Our side is shut; what comes in is thrown away until the peer shuts its side too.
    Lingering,
    /// Given to the driver to take down.
    Closed,
}

impl State {
    /// Whether the connection is past its use: its end was decided, counted and logged.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Finishing | Self::Lingering | Self::Closed)
    }

    /// Whether it is in use for messages.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Room | Self::Echo | Self::Json | Self::Stream)
    }
}

/// What only a connection in the middle of something needs.
#[derive(Default)]
pub(super) struct Cold {
    /// A WebSocket frame or message that is half here.
    pub(super) decoder: Decoder,
    /// Bytes that could not be handled yet: half a request head, or everything behind a pause.
    pub(super) input: Vec<u8>,
    /// How far the end of the head was looked for.
    pub(super) scanned: usize,
    /// Its request waits for its turn.
    pub(super) queued: bool,
    /// It is a trusted proxy's, and begins with a PROXY protocol header.
    pub(super) preface: bool,
    /// The answer to an upgrade that waits for its room.
    pub(super) upgrade: Vec<u8>,
    /// Where a raw WebSocket begins in its room.
    pub(super) start: Option<Start>,
    /// More was in its room before it came, after this offset.
    pub(super) replay_after: Option<Position>,
    /// What it asked for besides a room of its own.
    pub(super) stream: Option<Box<Stream>>,
    /// What it publishes.
    pub(super) upload: Option<Box<Upload>>,
    /// Where it ends in its room, or in each topic of its stream: what was queued when it was told goodbye. Empty when that was nothing.
    pub(super) until: Box<[u64]>,
    /// What it is told when it ends, where the operator says so.
    pub(super) word: Option<Rc<Word>>,
    /// Messages that were left out for it because it was slow.
    pub(super) thinned: u64,
    /// What its client calls itself, for those who want to know who is in a topic.
    pub(super) user: Option<User>,
    /// How many such requests it has made.
    pub(super) turn: u16,
}

/// Odd milliseconds that wrap after 49 days: differences are right to a millisecond up to half of that. Never zero, so that an option takes no more room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(NonZeroU32);

impl Stamp {
    pub(super) fn new(now: Time) -> Self {
        Self(NonZeroU32::MIN | now.as_millis() as u32)
    }

    /// Milliseconds from this to `now`.
    pub(super) fn age_ms(self, now: Time) -> u64 {
        u64::from((now.as_millis() as u32 | 1).wrapping_sub(self.0.get()))
    }
}

/// Microseconds that wrap after 71 minutes, for what lasts seconds.
pub(super) fn micros(now: Time) -> u32 {
    (now.as_nanos() / 1000) as u32
}

/// How a raw WebSocket wants its room, and whether messages were left out for it: in a byte, because there are very many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Habits(u8);

impl Habits {
    const NO_ECHO: u8 = 1;
    const THINS: u8 = 2;
    const THINNED: u8 = 4;

    pub(super) fn new(no_echo: bool, thins: bool) -> Self {
        Self((u8::from(no_echo) * Self::NO_ECHO) | (u8::from(thins) * Self::THINS))
    }

    /// It leaves its own messages out (`echo=0`).
    pub(super) fn no_echo(self) -> bool {
        self.0 & Self::NO_ECHO != 0
    }

    /// It is thinned where it is slow and its room's rule says so, and not ended (`slow=drop`).
    pub(super) fn thins(self) -> bool {
        self.0 & Self::THINS != 0
    }

    /// Messages were left out for it, and it has not caught up since.
    pub(super) fn is_thinned(self) -> bool {
        self.0 & Self::THINNED != 0
    }

    pub(super) fn set_thinned(&mut self, thinned: bool) {
        self.0 = (self.0 & !Self::THINNED) | (u8::from(thinned) * Self::THINNED);
    }
}

/// One connection.
pub(super) struct Session {
    pub(super) state: State,
    /// How it wants its room.
    pub(super) habits: Habits,
    /// permessage-deflate was agreed to: its messages may be compressed, and what it is sent too, where its window is large enough.
    pub(super) deflate: Option<Window>,
    /// It was answered a request before.
    pub(super) served: bool,
    /// What it speaks.
    pub(super) transport: Transport,
    /// Accepted only to be told why it cannot be served.
    pub(super) refused: Option<Unavailable>,
    /// Reading is paused.
    pub(super) paused: bool,
    /// It is a member of its topic's feed; before that it is a guest, who is given what was before it came.
    pub(super) seated: bool,
    /// It is in its topic's list of publishers to wake.
    pub(super) waiting: bool,
    /// A ping is unanswered since `pinged`.
    pub(super) pinged: Option<Stamp>,
    /// The timer watches a send that waits for the peer; `stalled_at` bytes were unsent when it was set.
    pub(super) watched: bool,
    /// The peer has shut its side.
    pub(super) peer_closed: bool,
    /// Ends for this as soon as everything that was queued when it was decided is sent.
    pub(super) goodbye: Option<CloseCause>,
    /// When bytes last came in.
    pub(super) last_in: Stamp,
    pub(super) stalled_at: u32,
    /// The step in which the last send was started, in wrapping microseconds.
    pub(super) sent_us: u32,
    /// Frames of the topic in the send in flight, and when the oldest of them was published, in wrapping microseconds.
    pub(super) in_flight_frames: u32,
    pub(super) born_us: u32,
    /// Where in the topic's members it is.
    pub(super) place: u32,
    pub(super) topic: Option<TopicKey>,
    /// The offset in the topic's log up to which everything was handed to the driver.
    pub(super) cursor: u64,
    /// Keeps what lies behind `cursor` alive, while it waits for a send in flight.
    pub(super) behind: Option<Anchor>,
    /// Bytes that go before any frame of the topic: responses, pongs, echoes, the close frame.
    #[expect(clippy::box_collection, reason = "8 bytes in every session instead of 32; hardly any has a queue")]
    pub(super) direct: Option<Box<VecDeque<Range>>>,
    pub(super) cold: Option<Box<Cold>>,
}

impl Session {
    pub(super) fn new(now: Time, refused: Option<Unavailable>) -> Self {
        Self {
            state: State::Head,
            habits: Habits::default(),
            deflate: None,
            served: false,
            transport: Transport::Http,
            refused,
            paused: false,
            seated: false,
            waiting: false,
            pinged: None,
            watched: false,
            peer_closed: false,
            goodbye: None,
            last_in: Stamp::new(now),
            stalled_at: 0,
            sent_us: 0,
            in_flight_frames: 0,
            born_us: 0,
            place: 0,
            topic: None,
            cursor: 0,
            behind: None,
            direct: None,
            cold: None,
        }
    }

    /// Whether it is given the newest message of each key, and has no position in its topic's log (`conflation`).
    pub(super) fn is_conflated(&self) -> bool {
        self.habits.is_thinned() && self.behind.is_none()
    }

    /// The position of `cursor`, while it is behind.
    pub(super) fn behind(&self) -> Option<Pin> {
        self.behind.as_ref().map(|anchor| anchor.at(self.cursor))
    }

    /// Moves the cursor to a position of its topic's log; what lies between it and `end` is kept.
    pub(super) fn move_to(&mut self, position: Pin, end: u64) {
        self.cursor = position.offset();
        self.behind = (self.cursor < end).then(|| position.anchor());
        if self.behind.is_none() {
            self.habits.set_thinned(false);
        }
    }

    /// Bytes in the direct queue.
    pub(super) fn direct_bytes(&self) -> usize {
        self.direct.iter().flat_map(|queue| queue.iter()).map(Range::len).sum()
    }

    /// Queues bytes ahead of the topic's frames.
    pub(super) fn push_direct(&mut self, range: Range) {
        let queue = self.direct.get_or_insert_default();
        if !queue.back_mut().is_some_and(|last| last.try_join(&range)) {
            queue.push_back(range);
        }
    }

    /// Whether its client can inflate what is compressed for all.
    pub(super) fn takes_deflated(&self) -> bool {
        self.deflate.is_some_and(Window::takes_ours)
    }

    /// In which form it gets the messages of its room.
    pub(super) fn format(&self) -> Format {
        if self.takes_deflated() { Format::RawDeflate } else { Format::Raw }
    }

    /// Keeps bytes for later.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        self.cold.get_or_insert_default().input.extend_from_slice(bytes);
    }

    /// Takes what was kept.
    pub(super) fn take_held(&mut self) -> Vec<u8> {
        let Some(cold) = &mut self.cold else { return Vec::new() };
        let held = std::mem::take(&mut cold.input);
        self.drop_idle_cold();
        held
    }

    /// Takes what is half here of a frame or message.
    pub(super) fn take_decoder(&mut self) -> Decoder {
        self.cold.as_mut().map(|cold| std::mem::take(&mut cold.decoder)).unwrap_or_default()
    }

    /// Keeps what is half here of a frame or message.
    pub(super) fn keep_decoder(&mut self, decoder: Decoder) {
        if decoder.is_idle() {
            self.drop_idle_cold();
        } else {
            self.cold.get_or_insert_default().decoder = decoder;
        }
    }

    /// Whether it is between two messages.
    pub(super) fn is_between_messages(&self) -> bool {
        self.cold.as_ref().is_none_or(|cold| cold.decoder.is_idle())
    }

    /// The answer to its upgrade, which is about to be sent.
    pub(super) fn take_upgrade(&mut self) -> Vec<u8> {
        let Some(cold) = &mut self.cold else { return Vec::new() };
        cold.start = None;
        std::mem::take(&mut cold.upgrade)
    }

    /// Frees what a connection in the middle of something needed, once it is in the middle of nothing.
    pub(super) fn drop_idle_cold(&mut self) {
        self.cold.take_if(|cold| {
            cold.decoder.is_idle()
                && cold.input.is_empty()
                && cold.scanned == 0
                && !cold.queued
                && !cold.preface
                && cold.upgrade.is_empty()
                && cold.start.is_none()
                && cold.replay_after.is_none()
                && cold.stream.is_none()
                && cold.upload.is_none()
                && cold.until.is_empty()
                && cold.word.is_none()
                && cold.thinned == 0
                && cold.user.is_none()
                && cold.turn == 0
        });
    }

    /// Its stream or poll, if it has one.
    pub(super) fn stream_mut(&mut self) -> Option<&mut Stream> {
        self.cold.as_mut().and_then(|cold| cold.stream.as_deref_mut())
    }

    /// What it publishes by HTTP.
    pub(super) fn upload_mut(&mut self) -> Option<&mut Upload> {
        self.cold.as_mut().and_then(|cold| cold.upload.as_deref_mut())
    }

    /// Its stream or poll, to look at.
    pub(super) fn stream(&self) -> Option<&Stream> {
        self.cold.as_ref().and_then(|cold| cold.stream.as_deref())
    }

    /// Whether a PROXY protocol header comes before its first request.
    pub(super) fn awaits_preface(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.preface)
    }

    /// Whether its request waits for its turn.
    pub(super) fn is_queued(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.queued)
    }

    /// Whether bytes were kept.
    pub(super) fn holds(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.input.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 80, "{} bytes", size_of::<Session>());
    }

    #[test]
    fn a_stamp_survives_the_wrap_of_its_milliseconds() {
        let before = Time::from_millis((1 << 32) - 5);
        let after = Time::from_millis((1 << 32) + 7);
        assert_eq!(Stamp::new(before).age_ms(after), 12);
    }
}
