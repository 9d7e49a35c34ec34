//! The past of topics whose messages a stream gives their places: what a home has not any more is fetched from the stream for who comes back with an older
//! position, piece by piece.
//!
//! A crowd that comes back asks for much the same. Who asks for what a request under way will bring waits for that one, and pieces that have come stay a moment
//! for those behind. They are given out in turn (`replay`), behind what is live.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::replay::{Asked, Replay};
use super::rooms::new_log;
use crate::bus::link::{Fetched, Incoming};
use crate::engine::driver::Driver;
use crate::engine::log::{Attributes, Pin};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::proto::gap::GapReason;
use crate::proto::position::{Position, Start};
use crate::proto::ws::frame::server_header;
use crate::time::Time;

/// How long who has a position that was not read here yet waits for it; then nobody can say what it means.
const EARLY: Duration = Duration::from_secs(5);
/// Pieces that are kept for those who come behind, each of 64 messages and 128 KiB at most, and for how long.
const PIECES_MAX: usize = 32;
const KEPT: Duration = Duration::from_secs(2);
/// Who is so far behind the beginning of a request under way at most waits for it: it brings more, unless messages are long.
const NEAR: u64 = 64;
/// Who has said what was fetched, where that is nobody who is here.
const NOBODY: ConnId = ConnId { shard: ShardId(u16::MAX), key: ConnKey { slot: u32::MAX, generation: 0 } };

/// A piece that was asked for, and who waits for it.
struct Fetch {
    home: TopicKey,
    after: Position,
    waiting: Vec<Asked>,
}

/// A piece that has come.
struct Piece {
    home: TopicKey,
    after: Position,
    /// Everything up to here is in it, or does not exist.
    reached: u64,
    /// What lies before this the stream has let go of.
    lost_to: Option<u64>,
    /// The messages, and their offsets.
    from: Pin,
    offsets: Vec<u64>,
    come: Time,
}

/// What a shard knows of it.
#[derive(Default)]
pub(super) struct Past {
    /// Guests with positions above what was read here, and until when they wait.
    pub(super) early: Vec<(Time, Asked)>,
    fetches: BTreeMap<u64, Fetch>,
    pieces: VecDeque<Piece>,
}

impl Past {
    /// Whether a piece is here, which is to go when nobody has come for it.
    pub(super) fn keeps(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Guests that wait for the stream, and pieces that are kept for others.
    pub(super) fn holdings(&self) -> usize {
        self.early.len() + self.fetches.len() + self.pieces.len()
    }
}

impl Piece {
    /// Whether it has what comes next after a position.
    fn goes_on_after(&self, home: TopicKey, after: Position) -> bool {
        self.home == home && self.after.epoch == after.epoch && (self.after.offset..self.reached).contains(&after.offset)
    }

    /// What it has after a position; none when it has nothing and nothing is lost.
    fn replay(&self, after: Position, is_earliest: bool) -> Option<Replay> {
        // Who asked for the oldest is not missing anything.
        let lost_to = self.lost_to.filter(|&to| to > after.offset);
        let gap = lost_to.filter(|_| !is_earliest).map(|_| (GapReason::TooOld, Some(after)));
        let at = lost_to.unwrap_or(after.offset);
        let first = self.offsets.partition_point(|&offset| offset <= at) as u64;
        let messages = self.from.seek_frame(self.from.frame() + first);
        let parcel = messages.parcel(u64::MAX).map(|(parcel, _)| parcel).unwrap_or_default();
        let is_nothing = parcel.frames == 0 && gap.is_none();
        (!is_nothing).then(|| Replay { gap, count: None, parcel, next: self.reached, last: false, ..Replay::nothing(at) })
    }
}

impl<D: Driver> Gateway<D> {
    /// Takes a guest whose piece must come from the stream, or whose position was not read here yet; given back when neither is so.
    pub(super) fn leave_to_stream(&mut self, mut asked: Asked) -> Option<Asked> {
        loop {
            let Some(topic) = self.topics.get(asked.home).filter(|topic| topic.is_sequenced()) else { return Some(asked) };
            let (epoch, floor, newest) = (topic.epoch, topic.floor(), topic.raw.offset());
            let after = match asked.start {
                Start::After(position) if position.epoch == epoch => position,
                Start::Earliest => Position { epoch, offset: 0 },
                _ => return Some(asked),
            };
            if after.offset > newest && !self.is_read(asked.home, after) {
                let until = self.now + EARLY;
                self.sequencing()?.past.early.push((until, asked));
                return None;
            }
            if after.offset >= floor {
                return Some(asked);
            }
            let past = &self.sequencing()?.past;
            let Some(piece) = past.pieces.iter().find(|piece| piece.goes_on_after(asked.home, after)) else {
                self.fetch(asked, after, floor);
                return None;
            };
            let reached = piece.reached;
            if let Some(replay) = piece.replay(after, asked.start == Start::Earliest) {
                self.counters.replayed.add(replay.parcel.frames);
                self.give(&asked, replay);
                return None;
            }
            asked.start = Start::After(Position { epoch, offset: reached });
        }
    }

    /// Whether everything of a topic up to a position above its newest message has come here, which is then nothing.
    fn is_read(&self, home: TopicKey, position: Position) -> bool {
        let has_begun = self.bridge.as_ref().is_some_and(|bridge| bridge.has_begun(home));
        has_begun && self.read_up_to().is_some_and(|at| at.epoch == position.epoch && at.offset >= position.offset)
    }

    fn fetch(&mut self, asked: Asked, after: Position, upto: u64) {
        let max = self.limits.nats_fetches_max as usize;
        let name = self.topics.name(asked.home);
        let is_connected = self.bridge.as_ref().is_some_and(|bridge| bridge.port.status().is_connected());
        let Some(bridge) = &mut self.bridge else { return };
        let subject = name.and_then(|name| bridge.rules.find(name)).map(|bridged| Arc::<str>::from(bridged.subject));
        let Some(sequencing) = &mut bridge.sequencing else { return };
        let brings_it = |fetch: &&mut Fetch| {
            let near = fetch.after.offset..=fetch.after.offset + NEAR;
            fetch.home == asked.home && fetch.after.epoch == after.epoch && near.contains(&after.offset)
        };
        if let Some(same) = sequencing.past.fetches.values_mut().find(brings_it) {
            return same.waiting.push(asked);
        }
        let Some(subject) = subject.filter(|_| is_connected && sequencing.past.fetches.len() < max) else {
            return self.give(&asked, Replay { refused: true, ..Replay::nothing(after.offset) });
        };
        let token = sequencing.token();
        sequencing.past.fetches.insert(token, Fetch { home: asked.home, after, waiting: vec![asked] });
        bridge.port.fetch(token, subject, after, upto);
    }

    /// A piece has come: whoever waits for it has its turn.
    pub(super) fn fetched(&mut self, token: u64, fetched: Fetched) {
        let Some(sequencing) = self.bridge.as_mut().and_then(|bridge| bridge.sequencing.as_mut()) else { return };
        let Some(Fetch { home, after, waiting }) = sequencing.past.fetches.remove(&token) else { return };
        if fetched.failed {
            waiting.iter().for_each(|asked| self.give(asked, Replay { refused: true, ..Replay::nothing(after.offset) }));
            return;
        }
        let mut log = new_log(&self.limits, &self.shared);
        let from = log.pin();
        let mut offsets = Vec::with_capacity(fetched.messages.len());
        for Incoming { payload, kind, event, key, numbered, .. } in &fetched.messages {
            let Some(numbered) = numbered else { continue };
            let attributes =
                Attributes { event: event.clone(), key: key.clone(), no_echo: numbered.no_echo, offset: Some(numbered.offset) };
            let (header, len) = server_header(kind.opcode(), payload.len());
            log.append_with(numbered.sender.unwrap_or(NOBODY), Some(Arc::new(attributes)), &header[..len], payload);
            offsets.push(numbered.offset);
        }
        if sequencing.past.pieces.len() >= PIECES_MAX {
            sequencing.past.pieces.pop_front();
        }
        let Fetched { reached, lost_to, .. } = fetched;
        sequencing.past.pieces.push_back(Piece { home, after, reached, lost_to, from, offsets, come: self.now });
        let mut waiting = waiting.into_iter();
        // At once for one, so that a request is never in vain, however many pieces come before the others' turn.
        if let Some(asked) = waiting.next().and_then(|first| self.leave_to_stream(first)) {
            self.replay_in_turn(asked);
        }
        waiting.for_each(|asked| self.replay_in_turn(asked));
    }

    /// Lets go of pieces that nobody comes for any more.
    pub(super) fn forget_past(&mut self) {
        let now = self.now;
        if let Some(sequencing) = self.sequencing() {
            sequencing.past.pieces.retain(|piece| now.since(piece.come) < KEPT);
        }
    }

    /// Looks again at those whose position had not been read here.
    pub(super) fn see_to_early(&mut self) {
        let Some(sequencing) = self.sequencing() else { return };
        if sequencing.past.early.is_empty() {
            return;
        }
        for (until, asked) in std::mem::take(&mut sequencing.past.early) {
            let Some(topic) = self.topics.get(asked.home) else { continue };
            let Start::After(position) = asked.start else { continue };
            if position.epoch != topic.epoch || self.is_read(asked.home, position) {
                self.replay_in_turn(asked);
            } else if self.now >= until {
                let at = Replay::nothing(topic.raw.offset());
                self.give(&asked, Replay { gap: Some((GapReason::Unknown, Some(position))), ..at });
            } else if let Some(sequencing) = self.sequencing() {
                sequencing.past.early.push((until, asked));
            }
        }
    }
}
