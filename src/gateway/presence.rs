//! Who is in a topic: known at its home, told to those who ask and to those who watch. Only for topics that the operator has named (`presence`).
//!
//! Each shard tells the home who has come and gone on it, once a step. The home gathers that for `presence_tick_ms` and then tells the shards that
//! have somebody who watches, one change at a time: the next when all have passed the last one on. So a crowd that comes at once is a few words, and
//! what is under way is bounded. Over `presence_members_max` members only their number is told, and less often.
//!
//! ```text
//!   shard with members or watchers          home
//!        ── Presence{came, went, watches} ────▶  roster
//!        ── WhoIsIn{question} ────────────────▶
//!        ◀──────────── Present{roster} ───────
//!        ◀──── PresenceChanged{join, leave} ──  to shards that watch
//!        ── PresenceTold ─────────────────────▶  when every watcher has been told
//! ```
//!
//! What a watcher is told after it was shown who is there may say once more what it knows; applied in order, it knows who is there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::close_cause::CloseCause;
use super::peers::ShardMessage;
use super::polls::for_origin;
use super::session::State;
use super::topic::Role;
use crate::engine::driver::Driver;
use crate::engine::segment::{Range, SegmentWriter};
use crate::hub::Roster;
use crate::ids::{ConnId, ConnKey, ShardId, TopicKey};
use crate::limits::Limits;
use crate::proto::http::Response;
use crate::proto::json::presence::{Kind, User, push_roster, write_answer, write_presence};
use crate::proto::pattern::Pattern;
use crate::proto::topic::TopicName;
use crate::proto::ws::OpCode;
use crate::proto::ws::frame::server_header;
use crate::time::Time;

/// Of a crowd the number is told this many times less often than names of a few are.
const CROWD_TICKS: u64 = 5;

/// What who asks for it is told where presence is off.
pub(super) const NO_PRESENCE: &str = "nobody is told who is in this topic; the operator can name it in `presence`";

/// Somebody has come to a topic, or gone from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It has come, and calls itself this.
    Came(Option<User>),
    /// It has gone.
    Went,
}

/// Who wants to know who is in a topic. It travels to the topic's home and back with the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub(super) topic: TopicName,
    pub(super) by: By,
}

impl Question {
    /// Whether its connection may ask for something else afterwards.
    pub(super) fn keep(&mut self, may: bool) {
        if let By::Request { keep, .. } = &mut self.by {
            *keep &= may;
        }
    }
}

/// How it was asked, and is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// In `shardcast.v1.json`; the request's id.
    Json(Option<Box<str>>),
    /// By HTTP.
    Request {
        keep: bool,
        /// The page's origin, where its page may read the answer.
        origin: Option<Vec<u8>>,
    },
}

/// What one shard knows of who is in a topic.
#[derive(Default)]
pub(super) struct Presence {
    /// What the home is still to be told.
    news: Vec<(ConnId, Step)>,
    /// In the list of topics whose home is to be told something.
    listed: bool,
    /// Slots of the connections that watch.
    watchers: BTreeSet<u32>,
    /// At the home: everybody.
    everybody: Everybody,
}

/// What a topic's home knows.
#[derive(Default)]
struct Everybody {
    roster: Roster<Option<User>>,
    /// The shards with somebody who watches.
    watching: Vec<Watching>,
    /// The roster as it is told.
    text: Option<Arc<[u8]>>,
    /// Its turn to be told comes.
    queued: bool,
    /// They are too many to be named.
    crowd: bool,
    /// Somebody was told how many there are and not who.
    unnamed: bool,
}

struct Watching {
    shard: ShardId,
    key: TopicKey,
    /// It passes on what it was told last.
    busy: bool,
}

impl Presence {
    /// Bytes that it has allocated, about.
    pub(super) fn heap_bytes(&self) -> u64 {
        let here = self.news.capacity() * size_of::<(ConnId, Step)>() + self.watchers.len() * size_of::<u32>();
        let home = self.everybody.watching.capacity() * size_of::<Watching>() + self.everybody.text.as_ref().map_or(0, |text| text.len());
        (size_of::<Self>() + here + home) as u64 + self.everybody.roster.heap_bytes()
    }
}

impl Everybody {
    /// Takes in what a shard says. Whether watchers are to be told something.
    fn hear(&mut self, from: ShardId, key: TopicKey, news: Vec<(ConnId, Step)>, watches: bool) -> bool {
        for (who, step) in news {
            match step {
                Step::Came(user) => self.roster.came(who, user),
                Step::Went => self.roster.went(who),
            }
        }
        self.watch(from, watches.then_some(key));
        self.changed()
    }

    fn watch(&mut self, from: ShardId, key: Option<TopicKey>) {
        let known = self.watching.iter().position(|watching| watching.shard == from);
        match (known, key) {
            (None, Some(key)) => self.watching.push(Watching { shard: from, key, busy: false }),
            (Some(known), Some(key)) if self.watching[known].key != key => {
                self.watching[known] = Watching { shard: from, key, busy: false }
            }
            (Some(known), None) => drop(self.watching.swap_remove(known)),
            _ => {}
        }
    }

    fn changed(&mut self) -> bool {
        if !self.roster.is_changed() {
            return false;
        }
        self.text = None;
        if self.watching.is_empty() {
            // Who watches later is told all of it.
            self.roster.take_changes();
        }
        !self.watching.is_empty()
    }

    /// Whether so many are named. Who is just below the bound is not named again at once.
    fn names(&mut self, limits: &Limits) -> bool {
        let most = limits.presence_members_max as usize;
        self.crowd = self.roster.len() > if self.crowd { most * 3 / 4 } else { most };
        !self.crowd
    }

    fn text(&mut self, limits: &Limits) -> Arc<[u8]> {
        if self.text.is_none() {
            let named = self.names(limits);
            self.unnamed |= !named;
            self.roster.show();
            let mut text = Vec::new();
            push_roster(&mut text, self.roster.len(), named.then(|| self.roster.iter().map(|(who, user)| (who, user.as_ref()))));
            self.text = Some(text.into());
        }
        Arc::clone(self.text.as_ref().expect("made above"))
    }

    /// What watchers are told now, as frames; empty when nothing has changed after all.
    fn change(&mut self, topic: &str, limits: &Limits) -> Vec<u8> {
        let named = self.names(limits);
        let changes = self.roster.take_changes();
        let mut out = Vec::new();
        if changes.joined.is_empty() && changes.left.is_empty() {
            return out;
        }
        if !named || self.unnamed || (changes.joined.len() + changes.left.len()) as u64 > limits.presence_members_max {
            self.unnamed = false;
            self.text = None;
            push_frame(&mut out, Kind::Presence, topic, &self.text(limits));
            return out;
        }
        for (kind, members) in [(Kind::Leave, changes.left), (Kind::Join, changes.joined)] {
            if !members.is_empty() {
                let mut text = Vec::new();
                push_roster(&mut text, self.roster.len(), Some(members.iter().map(|(who, user)| (*who, user.as_ref()))));
                push_frame(&mut out, kind, topic, &text);
            }
        }
        out
    }
}

fn push_frame(out: &mut Vec<u8>, kind: Kind, topic: &str, roster: &[u8]) {
    let mut text = Vec::new();
    write_presence(&mut text, kind, None, topic, roster);
    let (header, len) = server_header(OpCode::Text, text.len());
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(&text);
}

/// A change that a shard's watchers are being told.
struct Telling {
    topic: TopicKey,
    bytes: Range,
    /// The slot of the next watcher, or of one before it.
    next: u32,
}

/// What a shard has to do about presence.
pub(super) struct PresenceDesk {
    /// Which topics it is known of.
    patterns: Arc<[Pattern]>,
    /// Topics whose home is to be told something.
    news: Vec<TopicKey>,
    /// Topics whose watchers are to be told something, by when: those whose members are named, and crowds.
    due: [VecDeque<(Time, TopicKey)>; 2],
    tellings: VecDeque<Telling>,
}

impl PresenceDesk {
    pub(super) fn new(patterns: Arc<[Pattern]>) -> Self {
        Self { patterns, news: Vec::new(), due: Default::default(), tellings: VecDeque::new() }
    }

    pub(super) fn is_for(&self, topic: &TopicName) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(topic.as_str()))
    }

    /// Whether it is known of any topic.
    pub(super) fn is_on(&self) -> bool {
        !self.patterns.is_empty()
    }

    pub(super) fn for_topic(&self, topic: &TopicName) -> Option<Box<Presence>> {
        self.is_for(topic).then(Box::default)
    }

    /// What has to be done at once.
    pub(super) fn is_busy(&self) -> bool {
        !self.tellings.is_empty() || !self.news.is_empty()
    }

    /// How soon somebody is to be told something.
    pub(super) fn wait(&self, now: Time) -> Option<Duration> {
        self.due.iter().filter_map(|due| due.front()).map(|(at, _)| at.since(now)).min()
    }

    /// Topics about which something is under way.
    pub(super) fn len(&self) -> usize {
        self.news.len() + self.due.iter().map(VecDeque::len).sum::<usize>() + self.tellings.len()
    }
}

impl<D: Driver> Gateway<D> {
    /// A connection has its seat in a topic.
    pub(super) fn has_come(&mut self, topic: TopicKey, key: ConnKey) {
        if self.presence.is_on() {
            let user = self.sessions.get(key).and_then(|session| session.cold.as_ref()?.user.clone());
            self.note_step(topic, key, Step::Came(user));
        }
    }

    /// A connection has left its seat.
    pub(super) fn has_gone(&mut self, topic: TopicKey, key: ConnKey) {
        if self.presence.is_on() {
            self.note_step(topic, key, Step::Went);
        }
    }

    fn note_step(&mut self, topic: TopicKey, key: ConnKey, step: Step) {
        let who = self.id(key);
        let Some(presence) = self.topics.get_mut(topic).and_then(|topic| topic.presence.as_mut()) else { return };
        presence.news.push((who, step));
        self.list_news(topic);
    }

    fn list_news(&mut self, topic: TopicKey) {
        let Some(presence) = self.topics.get_mut(topic).and_then(|topic| topic.presence.as_mut()) else { return };
        if !std::mem::replace(&mut presence.listed, true) {
            self.presence.news.push(topic);
        }
    }

    /// A connection wants to be told who comes to a topic and goes; first who is there.
    pub(super) fn watch_topic(&mut self, topic: TopicKey, key: ConnKey) {
        let Some(name) = self.topics.name(topic).cloned() else { return };
        let Some(presence) = self.topics.get_mut(topic).and_then(|topic| topic.presence.as_mut()) else { return };
        presence.watchers.insert(key.slot);
        self.list_news(topic);
        // What the roster says is from behind this point: nothing lies between it and the changes.
        self.tell_news();
        self.ask_who_is_in(key, Question { topic: name, by: By::Json(None) });
    }

    /// A connection wants that no more.
    pub(super) fn unwatch_topic(&mut self, topic: TopicKey, key: ConnKey) {
        let Some(presence) = self.topics.get_mut(topic).and_then(|topic| topic.presence.as_mut()) else { return };
        if presence.watchers.remove(&key.slot) {
            self.list_news(topic);
        }
    }

    /// Tells homes who has come and gone here.
    pub(super) fn tell_news(&mut self) {
        for key in std::mem::take(&mut self.presence.news) {
            let Some(topic) = self.topics.get_mut(key) else { continue };
            let Some(presence) = topic.presence.as_mut() else { continue };
            presence.listed = false;
            let (news, watches) = (std::mem::take(&mut presence.news), !presence.watchers.is_empty());
            match &topic.role {
                Role::Home(_) => {
                    if presence.everybody.hear(self.shard, key, news, watches) {
                        self.queue_change(key);
                    }
                }
                Role::Away(side) => {
                    // Nobody has a seat before the home has answered.
                    if let Some(home) = side.key {
                        self.mailbox.send(side.shard, ShardMessage::Presence { home, key, news, watches });
                    }
                }
            }
        }
    }

    /// A shard says who has come and gone there.
    pub(super) fn hear_news(&mut self, from: ShardId, home: TopicKey, key: TopicKey, news: Vec<(ConnId, Step)>, watches: bool) {
        let Some(presence) = self.topics.get_mut(home).and_then(|topic| topic.presence.as_mut()) else { return };
        if presence.everybody.hear(from, key, news, watches) {
            self.queue_change(home);
        }
    }

    /// A shard has nobody in the topic any more.
    pub(super) fn nobody_is_left_on(&mut self, from: ShardId, home: TopicKey) {
        let Some(presence) = self.topics.get_mut(home).and_then(|topic| topic.presence.as_mut()) else { return };
        let everybody = &mut presence.everybody;
        everybody.roster.all_went(from);
        everybody.watch(from, None);
        if everybody.changed() {
            self.queue_change(home);
        }
    }

    fn queue_change(&mut self, home: TopicKey) {
        let Some(presence) = self.topics.get_mut(home).and_then(|topic| topic.presence.as_mut()) else { return };
        let everybody = &mut presence.everybody;
        if !std::mem::replace(&mut everybody.queued, true) {
            let ticks = if everybody.crowd { CROWD_TICKS } else { 1 };
            let at = self.now + Duration::from_millis(self.limits.presence_tick_ms * ticks);
            self.presence.due[usize::from(everybody.crowd)].push_back((at, home));
        }
    }

    /// Tells shards with watchers what has changed, where it is time to.
    pub(super) fn tell_changes(&mut self) {
        let mut due = Vec::new();
        for queue in &mut self.presence.due {
            while let Some((_, topic)) = queue.pop_front_if(|(at, _)| *at <= self.now) {
                due.push(topic);
            }
        }
        for home in due {
            let Some(name) = self.topics.name(home).cloned() else { continue };
            let Some(presence) = self.topics.get_mut(home).and_then(|topic| topic.presence.as_mut()) else { continue };
            let everybody = &mut presence.everybody;
            everybody.queued = false;
            if everybody.watching.iter().any(|watching| watching.busy) {
                // They have not passed the last one on: what comes meanwhile is told as one.
                self.queue_change(home);
                continue;
            }
            let change: Arc<[u8]> = everybody.change(name.as_str(), &self.limits).into();
            if change.is_empty() {
                continue;
            }
            let mut here = None;
            for watching in &mut everybody.watching {
                watching.busy = true;
                if watching.shard == self.shard {
                    here = Some(watching.key);
                } else {
                    self.mailbox.send(watching.shard, ShardMessage::PresenceChanged { key: watching.key, change: Arc::clone(&change) });
                }
            }
            if let Some(key) = here {
                self.begin_telling(key, &change);
            }
        }
    }

    /// Begins to tell the watchers on this shard.
    pub(super) fn begin_telling(&mut self, topic: TopicKey, change: &[u8]) {
        let bytes = SegmentWriter::new(change.len(), &self.shared.memory).append(change, &[]);
        self.presence.tellings.push_back(Telling { topic, bytes, next: 0 });
    }

    /// Tells the next of them.
    pub(super) fn tell_watchers(&mut self) {
        let mut sends = self.limits.fanout_sends_per_turn;
        while sends > 0
            && let Some(mut telling) = self.presence.tellings.pop_front()
        {
            let next = self.topics.get(telling.topic).and_then(|topic| topic.presence.as_ref()?.watchers.range(telling.next..).next());
            let Some(&slot) = next else {
                self.watchers_were_told(telling.topic);
                continue;
            };
            sends -= 1;
            telling.next = slot + 1;
            let bytes = telling.bytes.clone();
            self.presence.tellings.push_front(telling);
            let Some((key, _)) = self.sessions.at(slot) else { continue };
            if (self.direct_bytes(key) + bytes.len()) as u64 > self.limits.queue_bytes_max.max(bytes.len() as u64) {
                self.end_with(key, CloseCause::SlowConsumer, None, "who has come and gone waits for it");
                continue;
            }
            self.counters.presence_told.add(1);
            self.push_range(key, bytes);
            self.pump(key);
        }
    }

    fn watchers_were_told(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get(key) else { return };
        match &topic.role {
            Role::Home(_) => self.shard_has_told(self.shard, key),
            Role::Away(side) => {
                if let Some(home) = side.key {
                    self.mailbox.send(side.shard, ShardMessage::PresenceTold { home });
                }
            }
        }
    }

    /// A shard's watchers were all told.
    pub(super) fn shard_has_told(&mut self, from: ShardId, home: TopicKey) {
        let Some(presence) = self.topics.get_mut(home).and_then(|topic| topic.presence.as_mut()) else { return };
        if let Some(watching) = presence.everybody.watching.iter_mut().find(|watching| watching.shard == from) {
            watching.busy = false;
        }
    }

    /// Asks a topic's home who is in it.
    pub(super) fn ask_who_is_in(&mut self, key: ConnKey, question: Question) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match &question.by {
            By::Request { .. } => session.state = State::Awaiting,
            By::Json(_) => {
                if let Some(stream) = session.stream_mut() {
                    stream.talk.questions += 1;
                }
            }
        }
        let home = self.placement.home(question.topic.as_str());
        if home == self.shard {
            let roster = self.who_is_in(&question.topic);
            return self.tell_who_is_in(key, &question, &roster);
        }
        let asker = self.id(key);
        self.mailbox.send(home, ShardMessage::WhoIsIn { asker, question: Box::new(question) });
    }

    /// Another shard's client asks.
    pub(super) fn answer_who_is_in(&mut self, asker: ConnId, question: Box<Question>) {
        let roster = self.who_is_in(&question.topic);
        self.mailbox.send(asker.shard, ShardMessage::Present { key: asker.key, question, roster });
    }

    fn who_is_in(&mut self, name: &TopicName) -> Arc<[u8]> {
        let topic = self.topics.find(name).and_then(|key| self.topics.get_mut(key));
        match topic.and_then(|topic| topic.presence.as_mut()) {
            Some(presence) => presence.everybody.text(&self.limits),
            None => Everybody::default().text(&self.limits),
        }
    }

    /// The answer is here.
    pub(super) fn tell_who_is_in(&mut self, key: ConnKey, question: &Question, roster: &[u8]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (state, topic) = (session.state, question.topic.as_str());
        let mut out = Vec::new();
        match &question.by {
            By::Json(id) => {
                let Some(stream) = session.stream_mut() else { return };
                stream.talk.questions -= 1;
                write_presence(&mut out, Kind::Presence, id.as_deref(), topic, roster);
                let (header, len) = server_header(OpCode::Text, out.len());
                self.push_direct(key, &header[..len], &out);
                self.pump(key);
                self.talk_on(key);
            }
            By::Request { keep, origin } if state == State::Awaiting => {
                write_answer(&mut out, topic, roster);
                let response = Response::new(200).header("Cache-Control", "no-store").body("application/json", &out);
                self.answered(key, for_origin(response, origin.as_deref()), *keep);
            }
            By::Request { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::frame::FrameHeader;
    use serde_json::Value;
    use std::num::NonZeroU32;

    fn conn(slot: u32) -> ConnId {
        ConnId { shard: ShardId(0), key: ConnKey { slot, generation: 0 } }
    }

    fn key(slot: u32) -> TopicKey {
        TopicKey { slot, generation: NonZeroU32::MIN }
    }

    fn come(everybody: &mut Everybody, slots: std::ops::Range<u32>, watches: bool) -> bool {
        everybody.hear(ShardId(0), key(0), slots.map(|slot| (conn(slot), Step::Came(None))).collect(), watches)
    }

    fn told(everybody: &mut Everybody, limits: &Limits) -> Vec<(String, u64, usize)> {
        let bytes = everybody.change("a", limits);
        let mut rest = &bytes[..];
        let mut told = Vec::new();
        while let Some((header, len)) = FrameHeader::parse(rest).expect("frames") {
            let (payload, behind) = rest[len..].split_at(header.payload_len as usize);
            let value: Value = serde_json::from_slice(payload).expect("JSON");
            let members = value["members"].as_array().map_or(usize::MAX, Vec::len);
            told.push((value["type"].as_str().expect("a type").to_owned(), value["count"].as_u64().expect("a count"), members));
            rest = behind;
        }
        told
    }

    #[test]
    fn a_few_are_named_and_a_crowd_is_counted() {
        let limits = Limits { presence_members_max: 8, ..Limits::default() };
        let mut everybody = Everybody::default();
        assert!(!come(&mut everybody, 0..2, false), "nobody watches");
        assert!(come(&mut everybody, 2..4, true));
        assert_eq!(told(&mut everybody, &limits), [("join".into(), 4, 2)]);
        come(&mut everybody, 4..9, true);
        assert_eq!(told(&mut everybody, &limits), [("presence".into(), 9, usize::MAX)]);
        let leave = |everybody: &mut Everybody, slot| everybody.hear(ShardId(0), key(0), vec![(conn(slot), Step::Went)], true);
        leave(&mut everybody, 0);
        assert_eq!(told(&mut everybody, &limits), [("presence".into(), 8, usize::MAX)], "not named again at once");
        leave(&mut everybody, 1);
        leave(&mut everybody, 2);
        assert_eq!(told(&mut everybody, &limits), [("presence".into(), 6, 6)]);
        leave(&mut everybody, 3);
        come(&mut everybody, 3..4, true);
        assert!(told(&mut everybody, &limits).is_empty(), "nothing has changed after all");
        leave(&mut everybody, 3);
        come(&mut everybody, 20..21, true);
        assert_eq!(told(&mut everybody, &limits), [("leave".into(), 6, 1), ("join".into(), 6, 1)]);
    }

    #[test]
    fn a_shard_watches_until_it_says_otherwise_or_has_nobody() {
        let mut everybody = Everybody::default();
        come(&mut everybody, 0..1, true);
        everybody.watching[0].busy = true;
        come(&mut everybody, 1..2, true);
        assert!(everybody.watching[0].busy, "it still tells the last one");
        everybody.hear(ShardId(0), key(9), Vec::new(), true);
        assert!(!everybody.watching[0].busy && everybody.watching[0].key == key(9), "it has made the topic anew");
        everybody.hear(ShardId(0), key(9), Vec::new(), false);
        assert!(everybody.watching.is_empty());
        come(&mut everybody, 2..3, false);
        assert!(!everybody.roster.is_changed(), "changes that nobody wants are not kept");
    }
}
