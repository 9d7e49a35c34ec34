//! What a client wants to hear, and how far it is with that: topics by their names, patterns, and the topics that these have brought. It says nothing to anybody; the
//! session does.
//!
//! A pattern is live only. So after a loss the topics that it has brought are asked for by their names first, each from its position, as many as fit. Of the others the
//! position tells whether something is missing when the pattern brings them again. One that has come to be meanwhile is asked for from when the pattern was last followed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::event::Error;
use super::message::{Gap, GapReason, Position, Start};
use crate::time::Time;

/// The most topics that a connection may name (docs/protocol.md section 13).
pub(super) const TOPICS_MAX: usize = 128;
/// How many of these names topics of patterns may take after a loss: the other 32 are the application's alone.
pub(super) const RESUMED_MAX: usize = 96;
/// The most patterns of a client. A gateway may take fewer (`wildcards_max`).
pub(super) const PATTERNS_MAX: usize = 128;
/// Topics of patterns whose positions are known: as many as a gateway can be told to bring (`wildcard_topics_max`).
pub(super) const BROUGHT_MAX: usize = 16_384;

/// How much earlier than a connection was last heard the messages are asked for of a topic that has come to be since: what was on its way then, and the asking, take time.
const SLACK: Duration = Duration::from_secs(10);

/// How far it is on this connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Not asked for.
    Idle,
    /// Asked for, by the request of this number.
    Asked(u64),
    /// Its messages come.
    Placed,
    /// It cannot be had now, and will be asked for again then.
    Later(Time),
}

impl Stage {
    /// Whether the gateway has been asked for it.
    pub(super) fn is_known(self) -> bool {
        matches!(self, Self::Asked(_) | Self::Placed)
    }
}

/// A topic.
pub(super) struct Topic {
    pub(super) start: Start,
    pub(super) pos: Option<Position>,
    pub(super) stage: Stage,
    /// Who is there is wanted too.
    pub(super) watches: bool,
    /// Who waits to hear that it has its place.
    pub(super) waiter: Option<u64>,
    /// The gateway does not take its position: it begins anew, and a gap is told.
    pub(super) begins_anew: bool,
    /// The application has named it; else a pattern has brought it.
    pub(super) is_own: bool,
    /// It was asked for by its name on this connection.
    pub(super) is_named: bool,
    /// How many messages had come of all topics when its last one did.
    heard: u64,
}

impl Topic {
    /// Where it is to go on, or to begin.
    pub(super) fn next_start(&self) -> Start {
        match &self.pos {
            _ if self.begins_anew => Start::Latest,
            Some(pos) => Start::After(pos.clone()),
            None => self.start.clone(),
        }
    }
}

/// A pattern.
pub(super) struct Pattern {
    pub(super) stage: Stage,
    pub(super) waiter: Option<u64>,
    /// Until when it was followed by a connection before.
    followed: Option<Time>,
}

/// A topic of a pattern has its place.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) topic: Arc<str>,
    pub(super) pos: Position,
    /// It goes on where it was.
    pub(super) recovered: bool,
    pub(super) gap: Option<Gap>,
}

/// What becomes of a topic that the gateway has brought.
#[derive(Debug)]
pub(super) enum Bringing {
    Placed(Brought),
    /// It has come to be while there was no connection: to be asked for by this name.
    Late(Arc<str>),
    /// There are too many.
    LeftOut,
    /// No pattern of ours, or a topic that was asked for by its name at the same moment.
    Nothing,
}

/// All of them.
#[derive(Default)]
pub(super) struct Topics {
    all: BTreeMap<Arc<str>, Topic>,
    patterns: BTreeMap<Arc<str>, Pattern>,
    heard: u64,
    /// Before this nothing is to be asked for again.
    later: Option<Time>,
}

/// Whether a topic is meant by a pattern: the beginning of names, and a `*`.
fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

impl Topics {
    // ---- what the application wants --------------------------------------------------------------------------------------------------

    /// The application wants a topic by its name. One that a pattern has brought is its own from then on.
    pub(super) fn want(&mut self, name: &str, start: Start, watches: bool, waiter: u64) -> Result<Arc<str>, Error> {
        let known = self.all.get(name);
        if known.is_some_and(|topic| topic.is_own) {
            return Err(Error::AlreadySubscribed(name.into()));
        }
        if !known.is_some_and(|topic| topic.is_named) && self.names() >= TOPICS_MAX {
            return Err(Error::TooManyTopics { max: TOPICS_MAX });
        }
        let (name, mut topic) = self.all.remove_entry(name).unwrap_or_else(|| (name.into(), brought()));
        topic.pos = match &start {
            // A gap behind it has to be told, also before anything was heard.
            Start::After(pos) => Some(pos.clone()),
            Start::Latest => topic.pos,
            _ => None,
        };
        let topic = Topic { start, watches, waiter: Some(waiter), is_own: true, ..topic };
        self.all.insert(Arc::clone(&name), topic);
        Ok(name)
    }

    /// The application does not want a topic any more that it has named. It stays, from where it is, if a pattern means it too.
    pub(super) fn give_up(&mut self, name: &str) -> Option<GivenUp> {
        let (name, topic) = self.all.remove_entry(name)?;
        let is_own = topic.is_own;
        let (stage, waiter) = (topic.stage, topic.waiter);
        let stays = !is_own || self.is_meant(&name);
        if stays {
            let kept = if is_own { Topic { start: Start::Latest, watches: false, waiter: None, is_own: false, ..topic } } else { topic };
            self.all.insert(Arc::clone(&name), kept);
        }
        is_own.then_some(GivenUp { name, stage, waiter, stays })
    }

    /// The application wants all topics that a pattern means.
    pub(super) fn want_pattern(&mut self, pattern: &str, waiter: u64) -> Result<Arc<str>, Error> {
        if self.patterns.contains_key(pattern) {
            return Err(Error::AlreadySubscribed(pattern.into()));
        }
        if self.patterns.len() >= PATTERNS_MAX {
            return Err(Error::TooManyPatterns { max: PATTERNS_MAX });
        }
        let pattern: Arc<str> = pattern.into();
        self.patterns.insert(Arc::clone(&pattern), Pattern { stage: Stage::Idle, waiter: Some(waiter), followed: None });
        Ok(pattern)
    }

    /// Does without a pattern, and without the topics that it alone has brought. Those that the gateway was asked for by name come with it.
    pub(super) fn give_up_pattern(&mut self, pattern: &str) -> Option<(Pattern, Vec<Arc<str>>)> {
        let given_up = self.patterns.remove(pattern)?;
        let mut named = Vec::new();
        let patterns = &self.patterns;
        self.all.retain(|name, topic| {
            let stays = topic.is_own || patterns.keys().any(|pattern| matches(pattern, name));
            if !stays && topic.is_named && topic.stage.is_known() {
                named.push(Arc::clone(name));
            }
            stays
        });
        Some((given_up, named))
    }

    // ---- what happens on the connection ----------------------------------------------------------------------------------------------

    /// There is a connection: the names and the patterns to be asked for, in this order.
    pub(super) fn to_ask_for(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let (own, brought): (Vec<_>, Vec<_>) = self.all.iter().partition(|(_, topic)| topic.is_own);
        let mut brought: Vec<_> = brought.into_iter().filter(|(_, topic)| topic.pos.is_some()).collect();
        brought.sort_by_key(|(_, topic)| Reverse(topic.heard));
        brought.truncate(RESUMED_MAX.min(TOPICS_MAX - own.len()));
        let names = own.into_iter().chain(brought).map(|(name, _)| Arc::clone(name)).collect();
        (names, self.patterns.keys().map(Arc::clone).collect())
    }

    /// Asks for a topic by its name, by a request of this number: where it is to begin, and whether it watches.
    pub(super) fn ask_for(&mut self, name: &str, id: u64) -> Option<(Start, bool)> {
        let topic = self.all.get_mut(name)?;
        (topic.stage, topic.is_named) = (Stage::Asked(id), true);
        Some((topic.next_start(), topic.watches))
    }

    /// The pattern is asked for by a request of this number.
    pub(super) fn ask_for_pattern(&mut self, pattern: &str, id: u64) {
        if let Some(pattern) = self.patterns.get_mut(pattern) {
            pattern.stage = Stage::Asked(id);
        }
    }

    /// The topic that was asked for by a request.
    pub(super) fn asked_by(&mut self, id: u64) -> Option<(Arc<str>, &mut Topic)> {
        let (name, topic) = self.all.iter_mut().find(|(_, topic)| topic.stage == Stage::Asked(id))?;
        Some((Arc::clone(name), topic))
    }

    /// The pattern that was.
    pub(super) fn pattern_asked_by(&mut self, id: u64) -> Option<(Arc<str>, &mut Pattern)> {
        let (text, pattern) = self.patterns.iter_mut().find(|(_, pattern)| pattern.stage == Stage::Asked(id))?;
        Some((Arc::clone(text), pattern))
    }

    /// What was asked for by a request cannot be had before this time.
    pub(super) fn put_off(&mut self, id: u64, until: Time) {
        let topics = self.all.values_mut().map(|topic| &mut topic.stage);
        let patterns = self.patterns.values_mut().map(|pattern| &mut pattern.stage);
        if let Some(stage) = topics.chain(patterns).find(|stage| **stage == Stage::Asked(id)) {
            *stage = Stage::Later(until);
            self.later = Some(self.later.map_or(until, |later| later.min(until)));
        }
    }

    /// When something is to be asked for again.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.later
    }

    /// The names and the patterns that may be asked for again.
    pub(super) fn due(&mut self, now: Time) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        if self.later.is_none_or(|later| later > now) {
            return Default::default();
        }
        let topics = self.all.iter().map(|(name, topic)| (name, topic.stage));
        let patterns = self.patterns.iter().map(|(text, pattern)| (text, pattern.stage));
        let later = |stage| if let Stage::Later(time) = stage { Some(time) } else { None };
        let is_due = |(name, stage): (&Arc<str>, Stage)| later(stage).filter(|time| *time <= now).map(|_| Arc::clone(name));
        let due = (topics.clone().filter_map(is_due).collect(), patterns.clone().filter_map(is_due).collect());
        self.later = topics.chain(patterns).filter_map(|(_, stage)| later(stage)).filter(|time| *time > now).min();
        due
    }

    /// A topic of a pattern has its place, and what comes next is behind `pos`.
    pub(super) fn bring(&mut self, name: &str, pos: Position, now: Time) -> Bringing {
        let mut is_late = false;
        if !self.all.contains_key(name) {
            if !self.is_meant(name) {
                return Bringing::Nothing;
            }
            if self.all.len() >= BROUGHT_MAX + TOPICS_MAX && !self.forget_one() {
                return Bringing::LeftOut;
            }
            // While it is being brought again, what is new was not there when the pattern was last followed.
            let again = self.patterns.iter().filter(|(text, pattern)| matches!(pattern.stage, Stage::Asked(_)) && matches(text, name));
            let since = again.filter_map(|(_, pattern)| pattern.followed).min();
            is_late = since.is_some() && !pos.is_beginning();
            let mut topic = brought();
            if let Some(since) = since.filter(|_| is_late && self.has_name_to_resume()) {
                topic.start = Start::Ago(now.since(since) + SLACK);
                let name: Arc<str> = name.into();
                self.all.insert(Arc::clone(&name), topic);
                return Bringing::Late(name);
            }
            self.all.insert(name.into(), topic);
        }
        let topic = self.all.get_mut(name).expect("it is there, or was put there");
        if topic.is_own {
            // The request by name will be refused, and made again from here.
            if topic.stage != Stage::Placed && topic.pos.is_none() && topic.start == Start::Latest {
                topic.pos = Some(pos);
            }
            return Bringing::Nothing;
        }
        (topic.stage, topic.begins_anew) = (Stage::Placed, false);
        let name: Arc<str> = name.into();
        let (pos, recovered, gap) = match topic.pos.take() {
            Some(had) if !pos.is_after(&had) => (had, true, None),
            from => {
                let is_missing = from.is_some() || is_late;
                let gap = Gap { topic: Arc::clone(&name), from, to: pos.clone(), reason: GapReason::NotResumed };
                (pos, false, is_missing.then_some(gap))
            }
        };
        topic.pos = Some(pos.clone());
        Bringing::Placed(Brought { topic: name, pos, recovered, gap })
    }

    /// A topic whose messages come. What comes of another one was on its way when it was unsubscribed from.
    pub(super) fn placed(&mut self, name: &str) -> Option<(Arc<str>, &mut Topic)> {
        let name = Arc::clone(self.all.get_key_value(name)?.0);
        let topic = self.all.get_mut(&name).filter(|topic| topic.stage == Stage::Placed)?;
        Some((name, topic))
    }

    /// A message is there; the topic's name, if it is a new one.
    pub(super) fn go_on_to(&mut self, name: &str, pos: &Position) -> Option<Arc<str>> {
        self.heard += 1;
        let heard = self.heard;
        let (name, topic) = self.placed(name)?;
        if topic.pos.as_ref().is_some_and(|had| !pos.is_after(had)) {
            return None;
        }
        (topic.pos, topic.heard) = (Some(pos.clone()), heard);
        Some(name)
    }

    /// There is no connection any more, and `heard` is when something last came by it. Where the gateway does not go on from positions, topics begin anew.
    pub(super) fn lose(&mut self, heard: Option<Time>, begins_anew: bool) {
        // What has had no place yet has come to be since its pattern was last followed to the end.
        let mut late = Vec::new();
        self.all.retain(|name, topic| {
            (topic.stage, topic.is_named) = (Stage::Idle, false);
            topic.begins_anew |= begins_anew && topic.pos.is_some();
            let stays = topic.is_own || topic.pos.is_some();
            if !stays {
                late.push(Arc::clone(name));
            }
            stays
        });
        for (text, pattern) in &mut self.patterns {
            if pattern.stage == Stage::Placed && !late.iter().any(|name| matches(text, name)) {
                pattern.followed = heard;
            }
            pattern.stage = Stage::Idle;
        }
        self.later = None;
    }

    /// Ends with all; those who wait.
    pub(super) fn end(&mut self) -> Vec<u64> {
        let Self { all, patterns, .. } = std::mem::take(self);
        let patterns = patterns.into_values().filter_map(|pattern| pattern.waiter);
        all.into_values().filter_map(|topic| topic.waiter).chain(patterns).collect()
    }

    /// Whether the gateway has been asked for it on this connection, or has brought it.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|topic| topic.stage.is_known())
    }

    /// Whether a pattern means it.
    pub(super) fn is_meant(&self, name: &str) -> bool {
        self.patterns.keys().any(|pattern| matches(pattern, name))
    }

    /// Names that are taken on this connection.
    fn names(&self) -> usize {
        self.all.values().filter(|topic| topic.is_own || topic.is_named).count()
    }

    /// Whether a topic of a pattern may be asked for by its name.
    fn has_name_to_resume(&self) -> bool {
        let resumed = self.all.values().filter(|topic| topic.is_named && !topic.is_own).count();
        resumed < RESUMED_MAX && self.names() < TOPICS_MAX
    }

    /// Makes room: forgets the topic of a pattern that is not there now and was silent the longest.
    fn forget_one(&mut self) -> bool {
        let idle = self.all.iter().filter(|(_, topic)| !topic.is_own && topic.stage == Stage::Idle);
        let Some(name) = idle.min_by_key(|(_, topic)| topic.heard).map(|(name, _)| Arc::clone(name)) else { return false };
        self.all.remove(&name).is_some()
    }
}

/// A topic that the application has given up.
pub(super) struct GivenUp {
    pub(super) name: Arc<str>,
    /// How far it was.
    pub(super) stage: Stage,
    pub(super) waiter: Option<u64>,
    /// A pattern means it too.
    pub(super) stays: bool,
}

/// One that a pattern brings.
fn brought() -> Topic {
    Topic {
        start: Start::Latest,
        pos: None,
        stage: Stage::Idle,
        watches: false,
        waiter: None,
        begins_anew: false,
        is_own: false,
        is_named: false,
        heard: 0,
    }
}
