//! What a member-to-be is given of the time before it came. The topic's home answers from its history, in pieces; each is asked for when the one
//! before it was sent, so that a slow reader holds one piece in memory and not a history.
//!
//! ```text
//!   subscriber's shard                                       home shard
//!        ── Resume{home, guest, start} ─────────────────────▶   finds the place in the history, or says what is missing
//!        ◀── Replay{guest, at, gap, frames, last: false} ────
//!        ── Resume{home, guest, After(…)} ──────────────────▶   when these frames were sent
//!        ◀── Replay{guest, frames, last: true} ──────────────   up to what this shard was sent of the topic
//!   becomes a member at its log's end
//! ```
//!
//! The last piece ends where the home has sent the topic to this shard so far, and travels behind that in the same queue. So the log here ends exactly
//! where the piece does when it arrives, and what is published later comes after both: nothing is missing between, and nothing comes twice.

use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::peers::ShardMessage;
use super::seats::Guest;
use super::session::State;
use super::topic::{Role, Topic};
use crate::engine::driver::Driver;
use crate::engine::log::{Parcel, Pin};
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::gap::GapReason;
use crate::proto::position::{Position, Start};
use crate::time::Time;

/// The bytes of one piece in sends, unless a single message is larger.
const PIECE_SENDS: u64 = 2;

/// What who comes back is told while the stream that keeps what it wants does not answer.
pub(super) const NO_PAST: &str = "the stream of this topic does not answer now, or is asked for too much at once (limits.nats_fetches_max)";

/// Why messages may be missing, and after which position.
pub type Missing = (GapReason, Option<Position>);

/// One piece of what was before.
#[derive(Debug)]
pub struct Replay {
    /// The offset before the first message of the piece.
    pub at: u64,
    /// What may be missing before `at`.
    pub gap: Option<Missing>,
    /// How many messages from before it came follow, as of now, in this piece and others.
    pub count: Option<u64>,
    /// The messages.
    pub parcel: Parcel,
    /// The offset after which it goes on.
    pub next: u64,
    /// There is nothing of it now, and the guest is to come back.
    pub refused: bool,
    /// The guest is a member after this.
    pub last: bool,
    /// It had more already than this shard has been sent: it is to get what comes after this offset.
    pub after: Option<u64>,
}

/// A guest that wants a piece of what was.
pub(super) struct Asked {
    pub(super) from: ShardId,
    /// What the home calls the topic, and what the guest's shard does.
    pub(super) home: TopicKey,
    pub(super) key: TopicKey,
    pub(super) guest: Guest,
    pub(super) start: Start,
}

impl Replay {
    /// There is nothing between this offset and what is live.
    pub(super) fn nothing(at: u64) -> Self {
        Self { at, gap: None, count: Some(0), parcel: Parcel::default(), next: at, refused: false, last: true, after: None }
    }
}

impl<D: Driver> Gateway<D> {
    /// Gives one who has a place in a topic that this shard has what it asks for, as a guest.
    pub(super) fn begin_replay(&mut self, topic_key: TopicKey, guest: Guest, start: Start) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        topic.guests += 1;
        self.go_on_replaying(topic_key, guest, start);
    }

    /// Asks for the next piece.
    pub(super) fn go_on_replaying(&mut self, topic_key: TopicKey, guest: Guest, start: Start) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        match &topic.role {
            Role::Home(_) => {
                let asked = Asked { from: self.shard, home: topic_key, key: topic_key, guest, start };
                self.replay_in_turn(asked);
            }
            Role::Away(_) if start == Start::Latest => {
                let replay = Replay::nothing(topic.raw.offset());
                self.replayed(topic_key, guest, replay);
            }
            Role::Away(side) => {
                let home = side.key.expect("guests wait until the home has answered");
                self.mailbox.send(side.shard, ShardMessage::Resume { home, key: topic_key, guest, start });
            }
        }
    }

    /// The home's part.
    pub(super) fn resume_elsewhere(&mut self, from: ShardId, home: TopicKey, key: TopicKey, guest: Guest, start: Start) {
        self.replay_in_turn(Asked { from, home, key, guest, start });
    }

    /// Gives out a piece now, unless others wait or this step has given out enough.
    pub(super) fn replay_in_turn(&mut self, asked: Asked) {
        if self.asked.is_empty() && self.replay_bytes_left > 0 {
            self.give_piece(asked);
        } else {
            self.asked.push_back(asked);
        }
    }

    /// Gives out the pieces that wait for their turn, as far as this step goes.
    pub(super) fn go_on_with_replays(&mut self) {
        while self.replay_bytes_left > 0
            && let Some(asked) = self.asked.pop_front()
        {
            self.give_piece(asked);
        }
    }

    fn give_piece(&mut self, asked: Asked) {
        if self.topics.get(asked.home).is_none() {
            return;
        }
        let Some(asked) = self.leave_to_stream(asked) else { return };
        let replay = self.resume_here(asked.home, asked.from, asked.start);
        self.give(&asked, replay);
    }

    /// Gives a guest a piece.
    pub(super) fn give(&mut self, asked: &Asked, replay: Replay) {
        let &Asked { from, key, guest, .. } = asked;
        self.replay_bytes_left = self.replay_bytes_left.saturating_sub(replay.parcel.bytes);
        if from == self.shard {
            self.replayed(key, guest, replay);
        } else {
            self.mailbox.send(from, ShardMessage::Replay { key, guest, replay: Box::new(replay) });
        }
    }

    fn resume_here(&mut self, home: TopicKey, to: ShardId, start: Start) -> Replay {
        let topic = self.topics.get(home).expect("the caller has the topic");
        let Role::Home(side) = &topic.role else { unreachable!("resumes go to a topic's home, which all shards agree on") };
        // What that shard has of the topic, or is about to get.
        let sent = side.home.waiting(to).map_or(topic.raw.log.frames(), Pin::frame);
        let (from, gap) = find(topic, start, sent, &self.limits, self.now);
        let before = topic.offset_before(from);
        let mut replay = Replay { gap, ..Replay::nothing(before) };
        if let Start::After(position) = start
            && gap.is_none()
        {
            // Where nothing lies between, it keeps the position that it had.
            (replay.at, replay.next) = (position.offset, position.offset);
        }
        if from > sent {
            replay.after = Some(before);
        } else if let Some(pin) = side.history.seek(from).filter(|_| from < sent) {
            let next = fill(&mut replay.parcel, &pin, sent, PIECE_SENDS * self.limits.send_bytes_max);
            replay.last = next == sent;
            replay.count = Some(sent - from);
            replay.next = replay.parcel.last_offset().unwrap_or(replay.at + replay.parcel.frames);
        }
        self.counters.replayed.add(replay.parcel.frames);
        replay
    }

    /// A guest's next piece is here.
    pub(super) fn replayed(&mut self, topic_key: TopicKey, guest: Guest, replay: Replay) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        let Some(session) = self.sessions.get_mut(guest.conn) else { return self.free_if_unused(topic_key) };
        if session.stream_mut().is_some() {
            return self.stream_replayed(topic_key, guest, replay);
        }
        if session.topic != Some(topic_key) || session.seated || session.state.is_over() {
            return;
        }
        if replay.refused {
            return if session.state == State::Joining {
                self.refuse_waiting(guest.conn, CloseCause::NatsUnavailable, NO_PAST)
            } else {
                self.end_with(guest.conn, CloseCause::NatsUnavailable, None, NO_PAST)
            };
        }
        if session.state == State::Joining {
            if let Some((reason, _)) = replay.gap {
                self.counters.gaps.of(reason.into()).add(1);
                let text = format!("the position cannot be gone on from ({})", reason.word());
                return self.refuse_waiting(guest.conn, CloseCause::ContinuityLost, &text);
            }
        } else if let Some((reason, _)) = replay.gap {
            self.counters.gaps.of(reason.into()).add(1);
            let text = format!("what comes next is not kept any more ({})", reason.word());
            return self.end_with(guest.conn, CloseCause::ContinuityLost, None, &text);
        }
        if let Some(after) = replay.after.filter(|&after| after > topic.raw.offset()) {
            if let Role::Away(side) = &mut topic.role {
                side.latecomers.push((guest, after));
            }
            return;
        }
        let no_echo = session.habits.no_echo().then_some(ConnId { shard: self.shard, key: guest.conn });
        let next = Position { epoch: topic.epoch, offset: replay.next };
        let opens = session.state == State::Joining;
        if replay.last {
            topic.guests -= 1;
        } else {
            session.cold.get_or_insert_default().replay_after = Some(next);
        }
        session.state = State::Room;
        if replay.last {
            self.sit_down(guest.conn, topic_key);
        }
        if opens {
            self.enter_waiting(guest.conn);
        }
        let Some(session) = self.sessions.get_mut(guest.conn) else { return };
        if session.state.is_over() {
            return;
        }
        for (range, frames) in &replay.parcel.parts {
            if no_echo.is_none() {
                session.push_direct(range.clone());
                continue;
            }
            let mut from = 0;
            for frame in frames {
                if Some(frame.sender) != no_echo {
                    session.push_direct(range.slice(from as usize, (frame.end - from) as usize));
                }
                from = frame.end;
            }
        }
        self.pump(guest.conn);
    }

    /// The bytes of the last piece have left: asks for the next, if there is one. Whether it did.
    pub(super) fn replay_more(&mut self, key: ConnKey) -> bool {
        let Some(session) = self.sessions.get_mut(key).filter(|_| !self.frozen) else { return false };
        let Some(position) = session.cold.as_mut().and_then(|cold| cold.replay_after.take()) else { return false };
        let Some(topic) = session.topic else { return false };
        let start = Start::After(position);
        self.go_on_replaying(topic, Guest { conn: key, number: 0, turn: 0 }, start);
        true
    }

    /// Lets in those who had more of a topic than this shard had been sent, once it has that too.
    pub(super) fn seat_latecomers(&mut self, topic_key: TopicKey) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        let (epoch, offset) = (topic.epoch, topic.raw.offset());
        let Role::Away(side) = &mut topic.role else { return };
        if side.latecomers.is_empty() {
            return;
        }
        let (due, waiting): (Vec<_>, Vec<_>) = side.latecomers.take().into_iter().partition(|&(_, after)| after <= offset);
        waiting.into_iter().for_each(|late| side.latecomers.push(late));
        for (guest, after) in due {
            // What this shard has since been sent of the topic beyond that, the home tells.
            self.go_on_replaying(topic_key, guest, Start::After(Position { epoch, offset: after }));
        }
    }
}

/// The frame of a topic's log where a start is, at the topic's home, and what is missing before it.
fn find(topic: &Topic, start: Start, sent: u64, limits: &Limits, now: Time) -> (u64, Option<Missing>) {
    let Role::Home(side) = &topic.role else { unreachable!("the caller is the home") };
    let log = &topic.raw.log;
    let first = side.history.first(log);
    match start {
        Start::Latest => (sent, None),
        Start::Earliest => (first, None),
        Start::Last(count) => (sent.saturating_sub(u64::from(count)).max(first), None),
        Start::Ago { ms } => (side.history.since(log, limits, now, Duration::from_millis(ms)), None),
        Start::After(position) => {
            let gap = |reason| (first, Some((reason, Some(position))));
            if position.epoch != topic.epoch {
                return gap(GapReason::Restart);
            }
            if topic.is_sequenced() {
                // What lies above the newest message is a place in the stream where this topic has nothing (`leave_to_stream` has waited for it).
                return if position.offset < topic.floor() { gap(GapReason::TooOld) } else { (topic.frame_after(position.offset), None) };
            }
            match position.offset.checked_sub(topic.raw.base) {
                Some(frame) if frame > log.frames() => gap(GapReason::Unknown),
                Some(frame) if frame >= first => (frame, None),
                _ => gap(GapReason::TooOld),
            }
        }
    }
}

/// Puts frames from `pin` up to the frame `end` into a parcel, as many as a piece may have. The number of the next.
fn fill(parcel: &mut Parcel, pin: &Pin, end: u64, bytes_max: u64) -> u64 {
    let mut next = pin.frame();
    pin.each(|number, frame, bytes| {
        let len = bytes.len() as u64;
        if number >= end || (parcel.bytes > 0 && parcel.bytes + len > bytes_max) {
            return false;
        }
        next = number + 1;
        parcel.push(bytes, frame);
        true
    });
    next
}
