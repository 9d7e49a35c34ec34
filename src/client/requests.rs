//! What has no answer yet: publications, histories, who is in a topic. Each is sent once on a connection, again on the next one, until it is
//! answered or too late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::wire::Frame;
use crate::time::Time;

/// What the answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    Receipt,
    History,
    Presence,
}

/// One of them.
pub(super) struct Request {
    pub(super) wants: Wants,
    pub(super) topic: Arc<str>,
    pub(super) frame: Frame,
    /// How long its payload is.
    pub(super) bytes: usize,
    /// When it is too late, and how long that is from the call.
    pub(super) deadline: Time,
    pub(super) within: Duration,
}

/// All of them, in the order of the calls.
#[derive(Default)]
pub(super) struct Requests {
    all: BTreeMap<u64, Request>,
    deadlines: BTreeSet<(Time, u64)>,
    /// Those to be sent on this connection.
    unsent: BTreeSet<u64>,
    /// Topics that the gateway takes nothing for until then. What is said to them keeps its order meanwhile.
    held: BTreeMap<Arc<str>, Time>,
    /// The bytes of all frames.
    bytes: usize,
}

impl Requests {
    pub(super) fn add(&mut self, id: u64, request: Request) {
        self.bytes += request.frame.len();
        self.deadlines.insert((request.deadline, id));
        self.unsent.insert(id);
        self.all.insert(id, request);
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the answer to one of them has to be.
    pub(super) fn wants(&self, id: u64) -> Option<Wants> {
        self.all.get(&id).map(|request| request.wants)
    }

    /// Takes one out, because it is answered.
    pub(super) fn take(&mut self, id: u64) -> Option<Request> {
        let request = self.all.remove(&id)?;
        self.bytes -= request.frame.len();
        self.deadlines.remove(&(request.deadline, id));
        self.unsent.remove(&id);
        Some(request)
    }

    /// The first one that may be sent now; it counts as sent.
    pub(super) fn next_to_send(&mut self) -> Option<(u64, &Request)> {
        let is_free = |id: &&u64| self.held.is_empty() || !self.held.contains_key(&self.all[*id].topic);
        let id = *self.unsent.iter().find(is_free)?;
        self.unsent.remove(&id);
        Some((id, &self.all[&id]))
    }

    /// The gateway does not take one now: it, and what comes behind it to its topic, goes again then.
    pub(super) fn hold(&mut self, id: u64, until: Time) -> bool {
        let Some(request) = self.all.get(&id) else { return false };
        self.unsent.insert(id);
        let held = self.held.entry(Arc::clone(&request.topic)).or_insert(until);
        *held = until.max(*held);
        true
    }

    /// There is another connection: all is to be sent, and nothing is held.
    pub(super) fn restart(&mut self) {
        self.held.clear();
        self.unsent = self.all.keys().copied().collect();
    }

    /// When something is due: a deadline, or a topic that is not held any more.
    pub(super) fn next_due(&self) -> Option<Time> {
        let deadline = self.deadlines.first().map(|(time, _)| *time);
        self.held.values().copied().chain(deadline).min()
    }

    /// Frees the topics that are held no longer.
    pub(super) fn release(&mut self, now: Time) {
        self.held.retain(|_, until| *until > now);
    }

    /// Takes out one that is too late.
    pub(super) fn take_late(&mut self, now: Time) -> Option<(u64, Request)> {
        let (_, id) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.take(id).map(|request| (id, request))
    }

    /// Takes out the oldest.
    pub(super) fn take_any(&mut self) -> Option<u64> {
        let id = *self.all.first_key_value()?.0;
        self.take(id).map(|_| id)
    }
}
