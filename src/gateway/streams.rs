//! Streams of events and polls: one connection, many topics. Each topic's messages are made into events once for all its streams; a stream of several
//! topics puts an id of its own before each, which says where it is in all of them.
//!
//! A stream opens when the homes of all its topics have answered: then it is told where it begins, what is missing, and what was before it came.

use std::collections::VecDeque;
use std::rc::Rc;

use super::Gateway;
use super::batches::{Batch, frame_lines, framed};
use super::bridge::SUBSCRIPTIONS_FULL;
use super::close_cause::CloseCause;
use super::counters::Transport;
use super::feed::{FeedKey, Format, LastSend};
use super::forms::push_event;
use super::json::Talk;
use super::places::full;
use super::polls::Poll;
use super::replay::{Missing, NO_PAST, Replay};
use super::rooms::new_log;
use super::seats::{Guest, Seat};
use super::session::{State, micros};
use super::topic::{MadePiece, Role};
use crate::engine::driver::Driver;
use crate::engine::log::{Frame, Parcel, Pin};
use crate::engine::segment::{Arena, Gather, Range, Ranges};
use crate::ids::{ConnId, ConnKey, TopicKey};
use crate::proto::gap::Gap;
use crate::proto::position::{Epoch, Position, Start};
use crate::proto::sse::{encode_gap, encode_id, encode_open, encode_retry};
use crate::proto::state::{Doing, Following};
use crate::proto::topic::TopicName;
use crate::proto::ws::frame::FrameHeader;
use crate::proto::ws::{MessageKind, OpCode};

/// What a stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Server-sent events, until somebody ends it.
    Events,
    /// One answer, as soon as there is something to say.
    Poll,
    /// A WebSocket that speaks `shardcast.v1.json`; its topics come and go.
    Json,
}

/// A connection's request for messages of topics.
pub(super) struct Stream {
    pub(super) kind: Kind,
    pub(super) parts: Vec<Part>,
    /// Parts with something to send, in the order of their turns.
    pub(super) pending: VecDeque<u16>,
    /// The next send is a piece of what was before, if there is more: live topics and those still behind take turns.
    replays_next: bool,
    /// Parts whose home has not answered.
    pub(super) unanswered: u16,
    /// Times that it was told of missing messages.
    pub(super) gaps: u16,
    /// What came before all had answered.
    arrived: Vec<(u16, Replay)>,
    /// The response's head.
    opening: Vec<u8>,
    /// When to come back, as it was told.
    pub(super) retry_ms: u64,
    /// Over how long everybody was asked to come back then.
    pub(super) window_ms: u64,
    /// Its client knows that it is open.
    inherited: bool,
    /// Of a poll.
    pub(super) poll: Poll,
    /// Of a WebSocket that speaks JSON.
    pub(super) talk: Talk,
}

/// One topic of a stream.
pub(super) struct Part {
    pub(super) name: TopicName,
    pub(super) start: Start,
    /// Which of the connection's requests it is for.
    turn: u16,
    /// None before it has begun, and in a place that is free.
    pub(super) topic: Option<TopicKey>,
    pub(super) seat: Option<u32>,
    /// It is told who comes and goes.
    pub(super) watches: bool,
    /// A pattern of its client's has brought it.
    pub(super) by_pattern: bool,
    answered: bool,
    /// The offset up to which the client was given everything, and whose it is.
    pub(super) at: u64,
    pub(super) epoch: Epoch,
    /// More was before it came, after this offset.
    more_after: Option<u64>,
    /// What is missing, while nothing was told yet because this shard has still to be sent what comes next.
    gap: Option<Missing>,
    /// Messages up to this offset were left out because its client is slow, and it has not been told.
    pub(super) left_out: Option<u64>,
}

impl Part {
    pub(super) fn new(name: TopicName, start: Start, turn: u16) -> Self {
        Self {
            name,
            start,
            turn,
            topic: None,
            seat: None,
            watches: false,
            by_pattern: false,
            answered: false,
            at: 0,
            epoch: Epoch(0),
            more_after: None,
            gap: None,
            left_out: None,
        }
    }

    /// Nobody follows its topic any more: its place is free.
    pub(super) fn vacate(&mut self) -> (Option<TopicKey>, Option<u32>) {
        (self.more_after, self.left_out) = (None, None);
        self.watches = false;
        (self.topic.take(), self.seat.take())
    }
}

impl Stream {
    pub(super) fn new(kind: Kind, topics: Vec<(TopicName, Start)>, opening: Vec<u8>, retry_ms: u64) -> Self {
        let parts: Vec<Part> = topics.into_iter().map(|(name, start)| Part::new(name, start, 0)).collect();
        let unanswered = parts.len() as u16;
        Self {
            kind,
            parts,
            pending: VecDeque::new(),
            replays_next: false,
            unanswered,
            gaps: 0,
            arrived: Vec::new(),
            opening,
            retry_ms,
            window_ms: 0,
            inherited: false,
            poll: Poll::default(),
            talk: Talk::default(),
        }
    }

    /// One that another process has opened.
    pub(super) fn inherited(kind: Kind, topics: Vec<Following>, retry_ms: u64, window_ms: u64) -> Self {
        let flags: Vec<(bool, bool)> = topics.iter().map(|following| (following.watches, following.by_pattern)).collect();
        let start = |following: Following| (following.topic, if following.behind { Start::After(following.at) } else { Start::Latest });
        let topics = topics.into_iter().map(start).collect();
        let mut stream = Self { window_ms, inherited: true, ..Self::new(kind, topics, Vec::new(), retry_ms) };
        stream.parts.iter_mut().zip(flags).for_each(|(part, flags)| (part.watches, part.by_pattern) = flags);
        stream
    }

    /// What another process needs to go on with it.
    pub(super) fn to_inherit(&self, own: Epoch) -> Doing {
        let following = |part: &Part| {
            // What comes to another process may be further on in a stream than what has come to this one.
            let is_behind = part.seat.is_none() || part.epoch != own;
            let (at, behind) = part.more_after.map_or((part.at, is_behind), |after| (after, true));
            Following {
                topic: part.name.clone(),
                at: Position { epoch: part.epoch, offset: at },
                behind,
                watches: part.watches,
                by_pattern: part.by_pattern,
            }
        };
        let topics = self.parts.iter().filter(|part| part.topic.is_some()).map(following).collect();
        match self.kind {
            Kind::Json => {
                Doing::Json { window_ms: self.window_ms, topics, patterns: self.talk.patterns.clone(), batch: self.talk.batch.is_some() }
            }
            _ => Doing::Stream { retry_ms: self.retry_ms, window_ms: self.window_ms, topics },
        }
    }

    pub(super) fn poll(topics: Vec<(TopicName, Start)>, poll: Poll, retry_ms: u64) -> Self {
        Self { poll, ..Self::new(Kind::Poll, topics, Vec::new(), retry_ms) }
    }

    pub(super) fn format(&self) -> Format {
        match self.kind {
            Kind::Events => Format::Sse,
            Kind::Poll => Format::Raw,
            Kind::Json => match (self.talk.batch.is_some(), self.talk.deflates) {
                (false, false) => Format::Json,
                (false, true) => Format::JsonDeflate,
                (true, false) => Format::Lines,
                (true, true) => Format::LinesDeflate,
            },
        }
    }

    /// Whether it is sent a topic's messages as they lie in the feed, as others are who are at the same place. The id of an event of several topics says
    /// where its stream is in all of them; and who does not want its own messages back is sent less than others.
    pub(super) fn shares(&self) -> bool {
        match self.kind {
            Kind::Json => !self.talk.no_echo,
            _ => self.parts.len() == 1,
        }
    }

    /// Where the client is in each topic.
    pub(super) fn places(&self) -> impl ExactSizeIterator<Item = (Epoch, Option<u64>)> + '_ {
        self.parts.iter().map(|part| (part.epoch, Some(part.at)))
    }
}

/// Takes a server's frame apart.
pub(super) fn message(bytes: &[u8]) -> (MessageKind, &[u8]) {
    let (header, len) = FrameHeader::parse(bytes).ok().flatten().expect("a log holds whole frames of ours");
    let kind = if header.opcode == OpCode::Text { MessageKind::Text } else { MessageKind::Binary };
    (kind, &bytes[len..])
}

impl<D: Driver> Gateway<D> {
    /// Begins a stream or a poll: its topics are asked for, and when all have answered it opens.
    pub(super) fn begin_stream(&mut self, key: ConnKey, mut stream: Stream) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Joining;
        stream.talk.deflates = session.takes_deflated();
        let cold = session.cold.get_or_insert_default();
        cold.turn = cold.turn.wrapping_add(1);
        stream.parts.iter_mut().for_each(|part| part.turn = cold.turn);
        let count = stream.parts.len() as u16;
        cold.stream = Some(Box::new(stream));
        if count == 0 {
            return self.open_stream(key);
        }
        for number in 0..count {
            if let Err((cause, reason)) = self.begin_part(key, number) {
                return self.refuse_stream(key, number, cause, &reason);
            }
        }
    }

    /// Asks for one topic of a stream, or says why it cannot be had.
    pub(super) fn begin_part(&mut self, key: ConnKey, number: u16) -> Result<(), (CloseCause, String)> {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return Ok(()) };
        let part = &stream.parts[usize::from(number)];
        let (name, start, turn) = (part.name.clone(), part.start, part.turn);
        let Some(topic_key) = self.topics.find(&name).or_else(|| self.make_topic(name)) else {
            return Err((CloseCause::OverCapacity, self.no_topic().to_owned()));
        };
        if !self.listen(topic_key) {
            self.free_if_unused(topic_key);
            return Err((CloseCause::OverCapacity, SUBSCRIPTIONS_FULL.to_owned()));
        }
        let topic = self.topics.get_mut(topic_key).expect("found or made above");
        let waits = matches!(&topic.role, Role::Away(side) if side.key.is_none());
        if !waits && !topic.take_place() {
            return Err((CloseCause::TopicFull, full(&self.limits)));
        }
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return Ok(()) };
        stream.parts[usize::from(number)].topic = Some(topic_key);
        let guest = Guest { conn: key, number, turn };
        match &mut self.topics.get_mut(topic_key).expect("found or made above").role {
            Role::Away(side) if side.key.is_none() => side.joining.push(guest),
            _ => self.begin_replay(topic_key, guest, start),
        }
        Ok(())
    }

    /// The home of a topic has answered: those who waited for it are guests now.
    pub(super) fn stream_subscribed(&mut self, topic_key: TopicKey, guest: Guest) {
        let Some(stream) = self.sessions.get_mut(guest.conn).and_then(|session| session.stream_mut()) else { return };
        let Some(part) = stream.parts.get_mut(usize::from(guest.number)) else { return };
        let start = part.start;
        if part.turn != guest.turn || part.topic != Some(topic_key) {
            return;
        }
        if self.topics.get(topic_key).is_some_and(|topic| topic.take_place()) {
            return self.begin_replay(topic_key, guest, start);
        }
        part.topic = None;
        self.refuse_stream(guest.conn, guest.number, CloseCause::TopicFull, &full(&self.limits));
    }

    /// A piece of what was before came for one of a stream's topics.
    pub(super) fn stream_replayed(&mut self, topic_key: TopicKey, guest: Guest, mut replay: Replay) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        let Some(session) = self.sessions.get_mut(guest.conn) else { return };
        let opens = session.state == State::Joining;
        let Some(stream) = session.stream_mut() else { return };
        let (kind, format) = (stream.kind, stream.format());
        let Some(part) = stream.parts.get_mut(usize::from(guest.number)) else { return };
        if part.turn != guest.turn || part.topic != Some(topic_key) || part.seat.is_some() {
            return;
        }
        if replay.refused {
            return self.refuse_past(guest, opens);
        }
        if stream.talk.asks_for_history(guest.number) {
            return self.answer_history(guest.conn, &replay);
        }
        replay.gap = part.gap.take().or(replay.gap);
        if let Some(after) = replay.after.filter(|&after| after > topic.raw.offset()) {
            part.gap = replay.gap;
            if let Role::Away(side) = &mut topic.role {
                side.latecomers.push((guest, after));
            }
            return;
        }
        let answers = !std::mem::replace(&mut part.answered, true);
        if answers {
            stream.unanswered -= 1;
            (part.epoch, part.at) = (topic.epoch, replay.at);
        }
        if replay.last {
            let feed = topic.made(format, &part.name, || new_log(&self.limits, &self.shared));
            let seat = Seat {
                conn: guest.conn,
                number: guest.number,
                feed: FeedKey { topic: topic_key, format },
                place: 0,
                cursor: feed.log.end(),
                behind: None,
                thinned: false,
            };
            let slot = self.seats.insert(seat);
            self.seats.at(slot).place = feed.members.join(Seat::member(slot));
            part.seat = Some(slot);
            topic.guests -= 1;
            self.recount(topic_key);
            if kind != Kind::Poll {
                self.has_come(topic_key, guest.conn);
            }
        } else {
            part.more_after = Some(replay.next);
        }
        let Some(stream) = self.sessions.get_mut(guest.conn).and_then(|session| session.stream_mut()) else { return };
        if opens {
            stream.arrived.push((guest.number, replay));
            if stream.unanswered == 0 {
                self.open_stream(guest.conn);
            }
        } else {
            if answers && kind == Kind::Json {
                self.tell_subscribed(guest.conn, guest.number, &replay);
            }
            if let Some(gap) = replay.gap {
                self.tell_gap(guest.conn, guest.number, replay.at, gap);
            }
            self.tell_messages(guest.conn, guest.number, &replay.parcel);
            self.pump(guest.conn);
            if answers {
                self.answer_pattern(guest.conn);
                self.talk_on(guest.conn);
            }
        }
    }

    /// What was before cannot be had now: who asks for it is to come back.
    fn refuse_past(&mut self, guest: Guest, opens: bool) {
        let Some(stream) = self.sessions.get_mut(guest.conn).and_then(|session| session.stream_mut()) else { return };
        let part = &mut stream.parts[usize::from(guest.number)];
        if stream.kind == Kind::Json && !opens && !part.answered {
            // Of this request alone.
            if let Some(topic) = part.topic.take() {
                self.leave_part(topic, None);
            }
            self.refuse_part(guest.conn, guest.number, CloseCause::NatsUnavailable, NO_PAST);
        } else if opens {
            self.refuse_stream(guest.conn, guest.number, CloseCause::NatsUnavailable, NO_PAST);
        } else {
            self.end_with(guest.conn, CloseCause::NatsUnavailable, None, NO_PAST);
        }
    }

    fn open_stream(&mut self, key: ConnKey) {
        let window_ms = self.return_window_ms();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(stream) = session.stream_mut() else { return };
        let arrived = std::mem::take(&mut stream.arrived);
        match stream.kind {
            Kind::Events => {
                if stream.inherited {
                    return self.go_on_with_stream(key, &arrived);
                }
                let mut out = std::mem::take(&mut stream.opening);
                stream.window_ms = window_ms;
                encode_retry(&mut out, stream.retry_ms);
                // Until it was told all that is missing it has no new id: cut off before that, it comes back with the old one, and is told again.
                let mut gaps = arrived.iter().filter_map(|(number, replay)| Some((*number, replay.at, replay.gap?))).peekable();
                if gaps.peek().is_none() {
                    encode_id(&mut out, stream.places());
                }
                let position = |part: &Part| Some(Position { epoch: part.epoch, offset: part.at });
                encode_open(&mut out, stream.parts.iter().map(|part| (part.name.as_str(), position(part))), stream.retry_ms);
                while let Some((number, at, gap)) = gaps.next() {
                    self.counters.gaps.of(gap.0.into()).add(1);
                    stream.gaps = stream.gaps.saturating_add(1);
                    if gaps.peek().is_none() {
                        encode_id(&mut out, stream.places());
                    }
                    let part = &stream.parts[usize::from(number)];
                    let (to, (reason, from)) = (Position { epoch: part.epoch, offset: at }, gap);
                    encode_gap(&mut out, &Gap { topic: part.name.as_str(), from, to, until: None, reason });
                }
                self.becomes_stream(key, &out);
                for (number, replay) in &arrived {
                    self.tell_messages(key, *number, &replay.parcel);
                }
                self.stream_opened(key);
            }
            Kind::Poll => self.open_poll(key, arrived),
            Kind::Json => self.go_on_with_talk(key, &arrived),
        }
    }

    /// A stream is open, and what it begins with is queued.
    fn stream_opened(&mut self, key: ConnKey) {
        self.timers.set(key.slot, self.now + self.heartbeat());
        self.pump(key);
        // What it said meanwhile is nothing to a stream, but its end is.
        self.read_on(key);
    }

    /// All topics of a stream that was inherited have answered.
    fn go_on_with_stream(&mut self, key: ConnKey, arrived: &[(u16, Replay)]) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.state = State::Stream;
        }
        self.tell_arrived(key, arrived);
        self.stream_opened(key);
    }

    /// Queues what came of an inherited one's topics.
    pub(super) fn tell_arrived(&mut self, key: ConnKey, arrived: &[(u16, Replay)]) {
        for (number, replay) in arrived {
            if let Some(gap) = replay.gap {
                self.tell_gap(key, *number, replay.at, gap);
            }
            self.tell_messages(key, *number, &replay.parcel);
        }
    }

    /// Queues the first bytes of a stream.
    fn becomes_stream(&mut self, key: ConnKey, opening: &[u8]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.state = State::Stream;
        // One that was inherited has been a stream before.
        let before = std::mem::replace(&mut session.transport, Transport::Sse);
        self.counters.connections.of(before).sub(1);
        self.counters.connections.of(Transport::Sse).add(1);
        self.push_direct(key, opening, &[]);
    }

    /// Queues messages from before a stream came.
    fn tell_messages(&mut self, key: ConnKey, number: u16, parcel: &Parcel) {
        let id = self.id(key);
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        if parcel.frames == 0 {
            return;
        }
        let (kind, format, shares) = (stream.kind, stream.format(), stream.shares());
        let part = &mut stream.parts[usize::from(number)];
        let (epoch, after, messages, topic_key) = (part.epoch, part.at, parcel.frames, part.topic);
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        if !shares && kind == Kind::Json {
            // What nobody shares is not worth being compressed.
            let name = part.name.clone();
            each_of(parcel, |frame, bytes| {
                part.at = frame.offset().unwrap_or(part.at + 1);
                if frame.sender != id || !frame.is_not_echoed() {
                    self.maker.push(Format::Json, &mut out, &name, Position { epoch, offset: part.at }, frame, bytes);
                }
            });
            // All of it may be what it does not want back.
            if !out.is_empty() {
                self.push_direct(key, &out, &[]);
            }
        } else if !shares {
            each_of(parcel, |frame, bytes| {
                let part = &mut stream.parts[usize::from(number)];
                part.at = frame.offset().unwrap_or(part.at + 1);
                encode_id(&mut out, stream.places());
                push_event(&mut out, None, frame, bytes);
            });
            self.push_direct(key, &out, &[]);
        } else if let Some(topic) = topic_key.and_then(|topic| self.topics.get_mut(topic)) {
            part.at = parcel.last_offset().unwrap_or(after + messages);
            let same = topic.last_piece.as_ref().filter(|piece| (piece.format, piece.after, piece.messages) == (format, after, messages));
            let bytes = match same {
                Some(piece) => piece.bytes.clone(),
                None => {
                    let mut offset = after;
                    each_of(parcel, |frame, bytes| {
                        offset = frame.offset().unwrap_or(offset + 1);
                        self.maker.push(format, &mut out, &part.name, Position { epoch, offset }, frame, bytes);
                    });
                    frame_lines(format, &mut out, 0);
                    let bytes = Arena::new(1, 1, &self.shared.memory).append(&out, &[]);
                    topic.last_piece = Some(Box::new(MadePiece { format, after, messages, bytes: bytes.clone() }));
                    bytes
                }
            };
            if !std::mem::replace(&mut topic.warm, true) {
                self.warm.extend(topic_key);
            }
            self.push_range(key, bytes);
        }
        self.scratch = out;
    }

    /// A lap visits a seat.
    pub(super) fn visit_seat(&mut self, feed_key: FeedKey, slot: u32) {
        let topic = self.topics.get_mut(feed_key.topic).expect("a topic on a lap is live");
        let feed = topic.feed_mut(feed_key.format).expect("a feed on a lap is live");
        let seat = self.seats.at(slot);
        let (now, end) = (self.now, feed.log.end());
        if seat.cursor == end {
            return;
        }
        let (key, number) = (seat.conn, seat.number);
        if seat.is_conflated() {
            return self.see_to_conflated(feed_key, Seat::member(slot), key);
        }
        let session = self.sessions.get_mut(key).expect("a seat's connection is live");
        let unsent = self.driver.unsent(key);
        let (sent_us, joining, queued) = (session.sent_us, session.state == State::Joining, session.direct.is_some());
        let stream = session.stream_mut().expect("a seat's connection has a stream");
        let lap = feed.lap.get_mut().expect("on a lap");
        let polls = stream.kind == Kind::Poll;
        let bytes_max = self.limits.send_bytes_max as usize;
        let holds = !joining && !self.frozen && stream.holds_back(now, &self.limits);
        if unsent > 0 || queued || joining || polls || holds || !stream.pending.is_empty() {
            let behind = seat.behind().unwrap_or_else(|| lap.floor.seek(seat.cursor));
            if seat.behind.is_none() {
                seat.behind = Some(behind.clone().anchor());
                stream.pending.push_back(number);
            }
            if polls {
                if !joining {
                    self.ready_polls.push(key);
                }
                return;
            }
            if holds && end - seat.cursor < bytes_max as u64 {
                return self.hold_back(key);
            }
            if holds && unsent == 0 && !queued {
                session.born_us = micros(lap.born);
                return self.send_some_held(feed_key, slot, key);
            }
            stream.talk.batch.iter_mut().for_each(Batch::release);
            let floor = lap.floor.offset() - stream.passed_max(lap.floor.offset(), bytes_max);
            let waits = unsent > 0 && u64::from(micros(now).wrapping_sub(sent_us)) >= self.limits.reader_hold_ms * 1000;
            if !waits && !seat.thinned && behind.offset() >= floor {
                lap.hold(behind);
            } else {
                self.see_to_slow(feed_key, Seat::member(slot), key, behind);
            }
            return;
        }
        let from = seat.behind().unwrap_or_else(|| lap.floor.seek(seat.cursor));
        let shares = stream.shares();
        let shared = lap.last.as_ref().filter(|last| shares && (last.from, last.end) == (seat.cursor, end));
        let portion = match shared {
            Some(last) => (Some(Rc::clone(&last.data)), last.next.clone(), last.frames),
            None => {
                let id = ConnId { shard: self.shard, key };
                let portion = portion(stream, id, number, &from, feed.base, bytes_max, &mut self.direct);
                if let ((Some(data), next, frames), true) = (portion.clone(), shares) {
                    lap.last = Some(LastSend { from: from.offset(), end, data, next, frames });
                }
                portion
            }
        };
        let (data, next, frames) = portion;
        if data.is_some() {
            stream.talk.batch.iter_mut().for_each(|batch| batch.sent(now));
        }
        if next.offset() < end {
            if seat.cursor >= lap.floor.offset() {
                lap.hold(next.clone());
            }
            stream.pending.push_back(number);
        }
        let born = lap.born;
        stream.parts[usize::from(number)].at = feed.offset_before(&from, &next);
        seat.move_to(next, end);
        // Nothing but what it does not want back.
        let Some(data) = data else { return };
        session.born_us = micros(born);
        session.in_flight_frames = frames as u32;
        self.counters.deliveries_bytes.add(data.len() as u64);
        self.start_send(key, data);
    }

    /// Sends the next events of one of a stream's topics that was behind. Whether there were any.
    pub(super) fn stream_catch_up(&mut self, key: ConnKey) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Some(stream) = session.stream_mut() else { return false };
        if stream.kind == Kind::Poll {
            return false;
        }
        if std::mem::take(&mut stream.replays_next) && self.stream_replay_more(key) {
            return true;
        }
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Some(stream) = session.stream_mut() else { return false };
        let next = if stream.talk.batch.as_ref().is_some_and(Batch::is_held) { None } else { stream.pending.pop_front() };
        let Some(number) = next else { return self.stream_replay_more(key) };
        stream.replays_next = true;
        if self.tell_left_out(key, number) {
            return true;
        }
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return false };
        let slot = stream.parts[usize::from(number)].seat.expect("what is pending has a seat");
        let seat = self.seats.at(slot);
        if seat.is_conflated() {
            let feed_key = seat.feed;
            return self.send_latest(feed_key, Seat::member(slot), key) || self.stream_catch_up(key);
        }
        let (Some(from), feed_key) = (seat.behind(), seat.feed) else { return self.stream_catch_up(key) };
        if stream.talk.batch.is_some() {
            stream.pending.push_front(number);
            return self.send_batch(key) || self.stream_catch_up(key);
        }
        let topic = self.topics.get_mut(feed_key.topic).expect("a topic lives as long as its members");
        let feed = topic.feed_mut(feed_key.format).expect("a feed lives as long as its members");
        let (bytes_max, id) = (self.limits.send_bytes_max as usize, ConnId { shard: self.shard, key });
        let (data, next, frames) = portion(stream, id, number, &from, feed.base, bytes_max, &mut self.direct);
        stream.parts[usize::from(number)].at = feed.offset_before(&from, &next);
        seat.move_to(next, feed.log.end());
        if seat.behind.is_some() {
            stream.pending.push_back(number);
        }
        let unpark = feed.parked && seat.behind.is_none();
        if unpark {
            self.queue_lap(feed_key);
        }
        let Some(data) = data else { return self.stream_catch_up(key) };
        let Some(session) = self.sessions.get_mut(key) else { return false };
        session.in_flight_frames = frames as u32;
        self.counters.deliveries_bytes.add(data.len() as u64);
        self.start_send(key, data);
        true
    }

    /// The bytes of a stream's last piece have left: asks for the next one of some topic. Whether it did.
    fn stream_replay_more(&mut self, key: ConnKey) -> bool {
        if self.frozen {
            return false;
        }
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return false };
        let Some(number) = stream.parts.iter().position(|part| part.more_after.is_some()) else { return false };
        let part = &mut stream.parts[number];
        let (epoch, offset) = (part.epoch, part.more_after.take().expect("found above"));
        let (topic, guest) = (part.topic, Guest { conn: key, number: number as u16, turn: part.turn });
        if let Some(topic) = topic {
            self.go_on_replaying(topic, guest, Start::After(Position { epoch, offset }));
        }
        true
    }

    /// Takes a stream out of all its topics.
    pub(super) fn leave_stream(&mut self, key: ConnKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(stream) = session.cold.as_mut().and_then(|cold| cold.stream.take()) else { return };
        self.forget_patterns(key, &stream.talk.patterns);
        for part in stream.parts {
            if let Some(topic_key) = part.topic {
                if part.watches {
                    self.unwatch_topic(topic_key, key);
                }
                self.leave_part(topic_key, part.seat);
            }
        }
    }

    /// Takes a stream out of one of its topics.
    pub(super) fn leave_part(&mut self, topic_key: TopicKey, seat: Option<u32>) {
        let Some(topic) = self.topics.get_mut(topic_key) else { return };
        match seat {
            Some(slot) => {
                topic.give_place_back();
                let seat = self.seats.remove(slot);
                let feed = topic.feed_mut(seat.feed.format).expect("a feed lives as long as its members");
                feed.forget_slow(Seat::member(slot));
                if let Some(moved) = feed.members.leave(seat.place) {
                    self.set_place(moved, seat.place);
                }
                self.recount(topic_key);
                if seat.feed.format != Format::Raw {
                    self.has_gone(topic_key, seat.conn);
                }
            }
            None => topic.guest_leaves(),
        }
        self.free_if_unused(topic_key);
    }

    /// A member has another place in its feed.
    pub(super) fn set_place(&mut self, member: u32, place: u32) {
        match Seat::of_member(member) {
            Some(seat) => self.seats.at(seat).place = place,
            None => self.sessions.at(member).expect("a member is a live connection").1.place = place,
        }
    }

    /// Where the feeds of a stream's topics end now; empty when it was given everything.
    pub(super) fn stream_ends(&self, stream: &Stream) -> Vec<u64> {
        let end = |part: &Part| {
            let seat = self.seats.see(part.seat?);
            let feed = self.topics.get(seat.feed.topic).and_then(|topic| topic.feed(seat.feed.format))?;
            Some((feed.log.end(), seat.cursor < feed.log.end()))
        };
        let ends: Vec<(u64, bool)> = stream.parts.iter().map(|part| end(part).unwrap_or_default()).collect();
        if ends.iter().any(|(_, owed)| *owed) { ends.into_iter().map(|(end, _)| end).collect() } else { Vec::new() }
    }

    /// Whether a stream was given everything up to these ends, and what was before it came. None is past all.
    pub(super) fn stream_is_past(&self, stream: &Stream, ends: &[u64]) -> bool {
        stream.parts.iter().enumerate().all(|(number, part)| {
            let end = ends.get(number).copied().unwrap_or(0);
            part.more_after.is_none() && part.seat.is_none_or(|slot| self.seats.see(slot).cursor >= end)
        })
    }

    /// A stream that cannot be had, or one of its topics, where only that one is refused: an EventSource must be told so with 200 or it never comes back, so it is told in the stream.
    pub(super) fn refuse_stream(&mut self, key: ConnKey, number: u16, cause: CloseCause, reason: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let opens = session.state == State::Joining;
        let Some(stream) = session.stream_mut() else { return };
        match stream.kind {
            Kind::Events => {
                let mut opening = std::mem::take(&mut stream.opening);
                encode_retry(&mut opening, stream.retry_ms);
                self.becomes_stream(key, &opening);
                self.end_with(key, cause, None, reason);
            }
            Kind::Poll => self.refuse_poll(key, cause, reason),
            Kind::Json if opens => self.end_with(key, cause, None, reason),
            Kind::Json => self.refuse_part(key, number, cause, reason),
        }
    }
}

/// Visits the messages of a parcel.
pub(super) fn each_of(parcel: &Parcel, mut visit: impl FnMut(&Frame, &[u8])) {
    for (range, frames) in &parcel.parts {
        let bytes = range.as_slice();
        let mut from = 0;
        for frame in frames {
            visit(frame, &bytes[from..frame.end as usize]);
            from = frame.end as usize;
        }
    }
}

/// The next messages of one topic of a stream, for one send; none when there are only such as it does not want back. A stream of one topic and one in
/// JSON get them as they lie in the feed. One of events of several topics gets an id of its own before each, which replaces the line that the event
/// begins with.
fn portion(
    stream: &mut Stream,
    id: ConnId,
    number: u16,
    from: &Pin,
    base: u64,
    bytes_max: usize,
    direct: &mut Arena,
) -> (Option<Rc<Gather>>, Pin, u64) {
    let shares = stream.shares();
    if shares || stream.kind == Kind::Json {
        let gathered = from.gather(bytes_max, (!shares).then_some(id)).expect("the caller has something to send");
        let frames = gathered.next.frame() - from.frame();
        let format = stream.format();
        let data = gathered.data.map(|data| if format.plain() == Format::Lines { framed(format, data.ranges(), direct) } else { data });
        return (data, gathered.next, frames);
    }
    let mut ranges = Ranges::new();
    let (mut bytes, mut frames) = (0, 0);
    let mut id = Vec::new();
    let next = from.each(|frame, about, event: Range| {
        if ranges.len() + 2 > Gather::RANGES_MAX || (frames >= 2 && bytes + event.len() > bytes_max) {
            return false;
        }
        stream.parts[usize::from(number)].at = about.offset().unwrap_or(base + frame + 1);
        id.clear();
        encode_id(&mut id, stream.places());
        let own = memchr::memchr(b'\n', event.as_slice()).map_or(0, |end| end + 1);
        ranges.push(direct.append(&id, &[]));
        ranges.push(event.slice(own, event.len() - own));
        bytes += event.len();
        frames += 1;
        true
    });
    (Some(Rc::new(Gather::new(ranges))), next, frames)
}
