//! Subscriptions to all topics whose names begin with something, in `shardcast.v1.json`: those that there are, and those that come to be.
//!
//! A connection with such a pattern is subscribed to each topic that matches, as if it had asked for it by name. Which topics there are their homes know; so every
//! shard hears of the pattern, tells the topics whose home it is, in slices, and from then on each that is made. One that is made for its first message is told with
//! the place before that, so nothing of it is missed. The request is answered when all shards have told what there is, and the homes of those topics
//! have answered: then whatever is published to a topic that matches comes.
//!
//! ```text
//!   subscriber's shard                        every shard
//!        ── Wildcard{pattern} ────────────────▶  notes it, and looks through its topics
//!        ◀───────── TopicIs{name}, for it alone ──  each that there is
//!        ◀──────────────────── WildcardKnown ──  that was all
//!        ◀───────────────────── TopicIs{name} ──  each that is made, until
//!        ── NoWildcard{pattern} ──────────────▶
//! ```

use std::collections::{BTreeMap, VecDeque};

use super::Gateway;
use super::json::Pending;
use super::peers::ShardMessage;
use super::session::State;
use super::streams::Part;
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::ids::{ConnKey, ShardId, TopicKey};
use crate::proto::json::reply::Reply;
use crate::proto::pattern::Pattern;
use crate::proto::position::{Position, Start};
use crate::proto::topic::TopicName;

/// What who asks for a pattern is told where there are none.
pub(super) const NO_WILDCARDS: &str = "topics are subscribed to by name here; the operator can set `wildcards`";

/// A look through the topics of this shard, for one connection.
struct Scan {
    from: ShardId,
    conn: ConnKey,
    pattern: Pattern,
    /// Where it begins in what is found.
    start: Start,
    next: Option<u32>,
}

/// Something that was told, and waits for its turn.
enum Told {
    /// There is this topic; for one connection, or for all whose pattern it matches.
    Topic { name: TopicName, start: Start, conns: VecDeque<ConnKey> },
    /// A shard has told a connection all of its topics.
    Known(ConnKey),
}

/// What a shard has to do about wildcards.
#[derive(Default)]
pub(super) struct Wildcards {
    /// Whether there may be any.
    is_on: bool,
    /// The patterns of connections here, as they are written, and whose they are.
    mine: BTreeMap<Box<str>, (Pattern, Vec<ConnKey>)>,
    /// Those of all shards: they are told each topic that is made here.
    known: Vec<(ShardId, Pattern)>,
    scans: VecDeque<Scan>,
    told: VecDeque<Told>,
}

impl Wildcards {
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, ..Self::default() }
    }

    /// Whether there is something to do at once.
    pub(super) fn is_busy(&self) -> bool {
        !self.scans.is_empty() || !self.told.is_empty()
    }

    /// Patterns that are held for somebody, and what is under way.
    pub(super) fn len(&self) -> usize {
        self.mine.len() + self.known.len() + self.scans.len() + self.told.len()
    }
}

impl<D: Driver> Gateway<D> {
    /// A connection wants all topics that match: every shard is asked.
    fn ask_for_pattern(&mut self, key: ConnKey, pattern: &Pattern, start: Start) {
        let (_, conns) = self.wildcards.mine.entry(pattern.to_string().into()).or_insert_with(|| (pattern.clone(), Vec::new()));
        conns.push(key);
        for shard in (0..self.placement.shards()).map(ShardId) {
            if shard == self.shard {
                self.hear_of_pattern(shard, key, pattern.clone(), start);
            } else {
                self.mailbox.send(shard, ShardMessage::Wildcard { conn: key, pattern: pattern.clone(), start });
            }
        }
    }

    /// It does not want them any more.
    fn forget_pattern(&mut self, key: ConnKey, pattern: &Pattern) {
        let text = pattern.to_string();
        let Some((_, conns)) = self.wildcards.mine.get_mut(text.as_str()) else { return };
        conns.retain(|&conn| conn != key);
        if !conns.is_empty() {
            return;
        }
        self.wildcards.mine.remove(text.as_str());
        for shard in (0..self.placement.shards()).map(ShardId) {
            if shard == self.shard {
                self.hear_no_more_of(shard, pattern);
            } else {
                self.mailbox.send(shard, ShardMessage::NoWildcard { pattern: pattern.clone() });
            }
        }
    }

    /// Somebody on a shard wants all topics that match, from now on.
    pub(super) fn hear_of_pattern(&mut self, from: ShardId, conn: ConnKey, pattern: Pattern, start: Start) {
        let known = (from, pattern);
        if !self.wildcards.known.contains(&known) {
            self.wildcards.known.push(known.clone());
        }
        self.wildcards.scans.push_back(Scan { from, conn, pattern: known.1, start, next: Some(0) });
    }

    /// Nobody on a shard does any more.
    pub(super) fn hear_no_more_of(&mut self, from: ShardId, pattern: &Pattern) {
        self.wildcards.known.retain(|known| (known.0, &known.1) != (from, pattern));
    }

    /// A topic was made here, whose home this is.
    pub(super) fn tell_of_topic(&mut self, key: TopicKey) {
        if self.wildcards.known.is_empty() {
            return;
        }
        let (Some(name), Some(topic)) = (self.topics.name(key).cloned(), self.topics.get(key)) else { return };
        let before = Start::After(Position { epoch: topic.epoch, offset: topic.raw.offset() });
        let matches = |known: &&(ShardId, Pattern)| known.1.matches(name.as_str());
        let mut shards: Vec<ShardId> = self.wildcards.known.iter().filter(matches).map(|known| known.0).collect();
        shards.sort_unstable();
        shards.dedup();
        shards.into_iter().for_each(|shard| self.tell_topic(shard, name.clone(), before, None));
    }

    fn tell_topic(&mut self, shard: ShardId, name: TopicName, start: Start, conn: Option<ConnKey>) {
        if shard == self.shard {
            self.topic_is(name, start, conn);
        } else {
            self.mailbox.send(shard, ShardMessage::TopicIs { name, start, conn });
        }
    }

    /// There is a topic: one connection is told, or all that wait for such.
    pub(super) fn topic_is(&mut self, name: TopicName, start: Start, conn: Option<ConnKey>) {
        let conns = match conn {
            Some(conn) => VecDeque::from([conn]),
            None => {
                let matching = self.wildcards.mine.values().filter(|(pattern, _)| pattern.matches(name.as_str()));
                matching.flat_map(|(_, conns)| conns.iter().copied()).collect()
            }
        };
        self.wildcards.told.push_back(Told::Topic { name, start, conns });
    }

    /// A shard has told a connection all that there is.
    pub(super) fn pattern_is_known(&mut self, conn: ConnKey) {
        self.wildcards.told.push_back(Told::Known(conn));
    }

    /// Looks through some more topics, and subscribes some more connections.
    pub(super) fn attend_to_wildcards(&mut self) {
        let mut looks = self.limits.inspect_slots_per_turn;
        while looks > 0
            && let Some(mut scan) = self.wildcards.scans.pop_front()
        {
            while looks > 0
                && let Some(slot) = scan.next
            {
                looks -= 1;
                scan.next = self.topics.next_slot(slot);
                let Some((name, topic)) = self.topics.at(slot) else { continue };
                if matches!(topic.role, Role::Home(_)) && scan.pattern.matches(name.as_str()) {
                    let name = name.clone();
                    self.tell_topic(scan.from, name, scan.start, Some(scan.conn));
                }
            }
            if scan.next.is_some() {
                self.wildcards.scans.push_front(scan);
            } else if scan.from == self.shard {
                self.pattern_is_known(scan.conn);
            } else {
                self.mailbox.send(scan.from, ShardMessage::WildcardKnown { conn: scan.conn });
            }
        }
        let mut subscriptions = self.limits.requests_per_turn;
        while subscriptions > 0
            && let Some(told) = self.wildcards.told.pop_front()
        {
            match told {
                Told::Known(conn) => self.shard_is_known(conn),
                Told::Topic { name, start, mut conns } => {
                    while subscriptions > 0
                        && let Some(conn) = conns.pop_front()
                    {
                        subscriptions -= 1;
                        self.follow(conn, &name, start);
                    }
                    if !conns.is_empty() {
                        self.wildcards.told.push_front(Told::Topic { name, start, conns });
                    }
                }
            }
        }
    }

    /// Subscribes a connection to a topic that one of its patterns matches, unless it is already.
    fn follow(&mut self, key: ConnKey, name: &TopicName, start: Start) {
        let max = self.limits.wildcard_topics_max as usize;
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.state == State::Json) else { return };
        let Some(cold) = &mut session.cold else { return };
        let turn = cold.turn.wrapping_add(1);
        let Some(stream) = &mut cold.stream else { return };
        let is_meant = stream.talk.patterns.iter().any(|pattern| pattern.matches(name.as_str()));
        if !is_meant || stream.part_of(name).is_some() {
            return;
        }
        let mut part = Part::new(name.clone(), start, turn);
        part.by_pattern = true;
        let has_room = stream.parts.iter().filter(|part| part.by_pattern && part.topic.is_some()).count() < max;
        let Some(number) = has_room.then(|| stream.add_part(part, usize::from(u16::MAX))).flatten() else {
            if !std::mem::replace(&mut stream.talk.left_topics_out, true) {
                let message = format!(
                    "topics that its patterns match are left out: a connection has at most {max} of them (limits.wildcard_topics_max)"
                );
                self.say(key, &Reply::Error { id: None, code: "too_many_topics", message: &message, retry_ms: None });
                self.pump(key);
            }
            return;
        };
        cold.turn = turn;
        stream.unanswered += 1;
        if let Err((cause, reason)) = self.begin_part(key, number) {
            self.refuse_part(key, number, cause, &reason);
        }
    }

    /// One more shard has told a connection all that matches its newest pattern.
    fn shard_is_known(&mut self, key: ConnKey) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        if let Some(pending) = &mut stream.talk.pending {
            pending.shards = pending.shards.saturating_sub(1);
        }
        self.answer_pattern(key);
    }

    /// Answers a request for a pattern when everything that matches is subscribed to.
    pub(super) fn answer_pattern(&mut self, key: ConnKey) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let is_done = stream.unanswered == 0 && stream.talk.pending.as_ref().is_some_and(|pending| pending.shards == 0);
        let Some(Pending { id, says, .. }) = stream.talk.pending.take_if(|_| is_done) else { return };
        if says {
            self.say(key, &Reply::Done { id: id.as_deref() });
        }
        self.pump(key);
        self.talk_on(key);
    }

    /// A connection subscribes to a pattern.
    pub(super) fn subscribe_to_pattern(&mut self, key: ConnKey, id: Option<&str>, pattern: Pattern) {
        let (is_on, max, shards) = (self.wildcards.is_on, self.limits.wildcards_max as usize, self.placement.shards());
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let talk = &mut stream.talk;
        let (code, message) = if !is_on {
            ("no_wildcards", NO_WILDCARDS.to_owned())
        } else if talk.patterns.contains(&pattern) {
            ("already_subscribed", "it is subscribed to already".to_owned())
        } else if talk.patterns.len() >= max {
            ("too_many_topics", format!("a connection has at most {max} patterns (limits.wildcards_max)"))
        } else {
            talk.patterns.push(pattern.clone());
            talk.pending = Some(Pending { id: id.map(Box::from), shards, says: true });
            return self.ask_for_pattern(key, &pattern, Start::Latest);
        };
        self.say(key, &Reply::Error { id, code, message: &message, retry_ms: None });
    }

    /// The same for one that was inherited: nobody waits for an answer, and topics that it has not are new.
    pub(super) fn inherit_patterns(&mut self, key: ConnKey) {
        let shards = self.placement.shards();
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let patterns = stream.talk.patterns.clone();
        if patterns.is_empty() {
            return;
        }
        stream.talk.pending = Some(Pending { id: None, shards: shards.saturating_mul(patterns.len() as u16), says: false });
        patterns.iter().for_each(|pattern| self.ask_for_pattern(key, pattern, Start::Earliest));
    }

    /// A connection unsubscribes from a pattern, and from the topics that only this one has brought.
    pub(super) fn unsubscribe_from_pattern(&mut self, key: ConnKey, id: Option<&str>, pattern: &Pattern) {
        let Some(stream) = self.sessions.get_mut(key).and_then(|session| session.stream_mut()) else { return };
        let Some(place) = stream.talk.patterns.iter().position(|has| has == pattern) else {
            return self.say(key, &Reply::Error { id, code: "not_subscribed", message: "it is not subscribed to", retry_ms: None });
        };
        stream.talk.patterns.remove(place);
        stream.talk.left_topics_out = false;
        let left = |part: &Part| part.by_pattern && !stream.talk.patterns.iter().any(|pattern| pattern.matches(part.name.as_str()));
        let numbers: Vec<usize> = (0..stream.parts.len()).filter(|&number| left(&stream.parts[number])).collect();
        for number in numbers {
            self.vacate_part(key, number);
        }
        self.forget_pattern(key, pattern);
        self.say(key, &Reply::Done { id });
    }

    /// A connection is gone, with its patterns.
    pub(super) fn forget_patterns(&mut self, key: ConnKey, patterns: &[Pattern]) {
        patterns.iter().for_each(|pattern| self.forget_pattern(key, pattern));
    }
}
