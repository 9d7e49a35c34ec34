//! Taking clients up: caps, the balance between shards, and what happens when descriptors run out.

use std::io;
use std::time::Duration;

use super::clients::{AddressSource, counts_addresses};
use super::counters::{AcceptResult, Transport};
use super::endpoints::Unavailable;
use super::{Gateway, ShardMessage};
use crate::engine::driver::Driver;
use crate::engine::sys::Socket;
use crate::gateway::session::Session;
use crate::ids::ConnKey;
use crate::limits::Limits;
use crate::proto::client_address::Prefix;
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
            return self.accepted_to_refuse(socket, Unavailable::OverCapacity);
        }
        let prefix =
            if counts_addresses(&self.limits) { self.prefix_at_accept(self.driver.peer_of(socket).map(|peer| peer.ip())) } else { None };
        if prefix.is_some_and(|prefix| !self.admit_address(prefix)) {
            self.shared.release();
            return self.accepted_to_refuse(socket, Unavailable::Address);
        }
        // Who comes to a gateway that drains is only told so.
        let target = if self.drain.is_some() { self.shard } else { self.shared.place(self.shard) };
        self.shared.add_load(target);
        if target == self.shard {
            self.adopt(socket, prefix);
        } else {
            self.mailbox.send(target, ShardMessage::Adopt { socket, prefix });
        }
    }

    /// Takes up a connection that was admitted and is counted for this shard.
    pub(super) fn adopt(&mut self, socket: Socket, prefix: Option<Prefix>) {
        self.counters.accepts.of(AcceptResult::Ok).add(1);
        let key = self.take_up(socket, None);
        if let Some(prefix) = prefix {
            self.prefixes.insert(key, prefix);
        }
    }

    /// Somebody who cannot be served is taken up just to be told so; beyond the bound of those too, it is dropped. Where nobody can be served the next ones
    /// wait in the backlog; what one address has too much of is no reason to keep others waiting.
    fn accepted_to_refuse(&mut self, socket: Socket, why: Unavailable) {
        if self.admission.refusing < self.limits.refusals_max {
            self.admission.refusing += 1;
            self.counters
                .accepts
                .of(if why == Unavailable::Address { AcceptResult::AddressLimited } else { AcceptResult::OverCapacity })
                .add(1);
            self.shared.add_load(self.shard);
            self.take_up(socket, Some(why));
        } else {
            self.counters.accepts.of(AcceptResult::Dropped).add(1);
            self.driver.discard(socket);
        }
        if why == Unavailable::OverCapacity && self.admission.refusing >= self.limits.refusals_max && !self.admission.full {
            self.admission.full = true;
            self.driver.pause_accept();
        }
    }

    /// A connection that was admitted is kept only to be told why it cannot be served.
    pub(super) fn refuse_admitted(&mut self, key: ConnKey, why: Unavailable) {
        if let Some(session) = self.sessions.get_mut(key)
            && session.refused.is_none()
        {
            session.refused = Some(why);
            self.shared.release();
            self.admission.refusing += 1;
        }
    }

    fn take_up(&mut self, socket: Socket, refused: Option<Unavailable>) -> ConnKey {
        self.busy = true;
        self.counters.connections.of(Transport::Http).add(1);
        let key = self.driver.adopt(socket);
        let mut session = Session::new(self.now, refused);
        if self.addressing.source == AddressSource::ProxyProtocol
            && self.driver.peer_addr(key).is_some_and(|peer| self.is_trusted(peer.ip()))
        {
            session.cold.get_or_insert_default().preface = true;
        }
        self.sessions.insert(key, session);
        self.note_opening(key);
        self.timers.set(key.slot, self.now + self.head_patience());
        key
    }

    /// A connection is gone for good.
    pub(super) fn closed(&mut self, key: ConnKey) {
        self.busy = true;
        self.timers.clear(key.slot);
        self.said.remove(key);
        self.uncount(key);
        self.forget_opening(key);
        let Some(session) = self.sessions.remove(key) else { return };
        self.counters.connections.of(session.transport).sub(1);
        self.shared.drop_load(self.shard);
        if session.refused.is_some() {
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
