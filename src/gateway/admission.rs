//! Taking clients up: caps, the balance between shards, and what happens when descriptors run out.

use std::io;
use std::time::Duration;

use super::counters::{AcceptResult, Transport};
use super::{Gateway, ShardMessage};
use crate::engine::driver::Driver;
use crate::engine::sys::Socket;
use crate::gateway::session::Session;
use crate::ids::ConnKey;
use crate::limits::Limits;
use crate::time::Time;

/// How long to wait before accepting is tried again after descriptors ran out.
const RETRY: Duration = Duration::from_millis(500);

/// What a shard remembers about accepting.
pub(super) struct Admission {
    /// Connections here that were accepted over the cap, only to be told so.
    refusing: u64,
    /// The listener is paused for want of descriptors; try again then.
    retry_at: Option<Time>,
    /// The listener is paused because too many are being refused already.
    full: bool,
    polite: f64,
    polite_per_second: f64,
    polite_at: Time,
}

impl Admission {
    pub(super) fn new(limits: &Limits, now: Time) -> Self {
        let polite = limits.polite_refusals_per_second as f64;
        Self { refusing: 0, retry_at: None, full: false, polite, polite_per_second: polite, polite_at: now }
    }

    /// Whether accepting is paused and should be tried again.
    pub(super) fn is_waiting(&self) -> bool {
        self.retry_at.is_some() || self.full
    }

    /// Whether one more browser may be upgraded just to be told that it is unwelcome.
    pub(super) fn take_polite(&mut self, now: Time) -> bool {
        let refill = now.since(self.polite_at).as_secs_f64() * self.polite_per_second;
        self.polite = (self.polite + refill).min(self.polite_per_second);
        self.polite_at = now;
        let allowed = self.polite >= 1.0;
        if allowed {
            self.polite -= 1.0;
        }
        allowed
    }
}

impl<D: Driver> Gateway<D> {
    pub(super) fn accepted(&mut self, socket: Socket) {
        if !self.shared.admit() {
            return self.accepted_over_cap(socket);
        }
        // Who comes to a gateway that drains is only told so.
        let target = if self.drain.is_some() { self.shard } else { self.shared.place(self.shard) };
        self.shared.add_load(target);
        if target == self.shard {
            self.adopt(socket);
        } else {
            self.mailbox.send(target, ShardMessage::Adopt { socket });
        }
    }

    /// Takes up a connection that was admitted and is counted for this shard.
    pub(super) fn adopt(&mut self, socket: Socket) {
        self.counters.accepts.of(AcceptResult::Ok).add(1);
        self.take_up(socket, false);
    }

    /// Beyond the cap a client is taken up just to be told so; beyond the bound of those too, it is dropped, and the next ones wait in the backlog.
    fn accepted_over_cap(&mut self, socket: Socket) {
        if self.admission.refusing < self.limits.refusals_max {
            self.admission.refusing += 1;
            self.counters.accepts.of(AcceptResult::OverCapacity).add(1);
            self.shared.add_load(self.shard);
            self.take_up(socket, true);
        } else {
            self.counters.accepts.of(AcceptResult::Dropped).add(1);
            self.driver.discard(socket);
        }
        if self.admission.refusing >= self.limits.refusals_max && !self.admission.full {
            self.admission.full = true;
            self.driver.pause_accept();
        }
    }

    fn take_up(&mut self, socket: Socket, over_capacity: bool) {
        self.busy = true;
        self.counters.connections.of(Transport::Http).add(1);
        let key = self.driver.adopt(socket);
        self.sessions.insert(key, Session::new(self.now, over_capacity));
        self.timers.set(key.slot, self.now + self.head_patience());
    }

    /// A connection is gone for good.
    pub(super) fn closed(&mut self, key: ConnKey) {
        self.busy = true;
        self.timers.clear(key.slot);
        self.said.remove(key);
        let Some(session) = self.sessions.remove(key) else { return };
        self.counters.connections.of(session.transport).sub(1);
        self.shared.drop_load(self.shard);
        if session.over_capacity {
            self.admission.refusing -= 1;
        } else {
            self.shared.release();
        }
        if self.admission.full {
            self.reopen();
        }
    }

    pub(super) fn accept_paused(&mut self, error: &io::Error) {
        self.counters.accept_paused.add(1);
        let result = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => AcceptResult::FdExhausted,
            _ => AcceptResult::Error,
        };
        self.counters.accepts.of(result).add(1);
        self.admission.retry_at = Some(self.now + RETRY);
        if self.log.allow(self.now) {
            tracing::warn!(shard = %self.shard, %error, connections = self.shared.connections(), "accepting paused: clients wait in the backlog until descriptors are free; raise the limit (ulimit -n, LimitNOFILE=) or lower limits.connections_max");
        }
    }

    /// Accepts again after a pause, if its reason may be gone.
    pub(super) fn retry_accept(&mut self) {
        if self.admission.retry_at.is_some_and(|at| at <= self.now) {
            self.admission.retry_at = None;
            self.driver.resume_accept();
        }
        if self.admission.full {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        if self.shared.has_room() || self.admission.refusing < self.limits.refusals_max.div_ceil(2) {
            self.admission.full = false;
            self.driver.resume_accept();
        }
    }
}
