//! Who clients are, by their address, and how much one address may have of the process: connections, handshakes per second, and messages.
//!
//! An address is that of the socket, unless a trusted proxy says whose connection it is: in a header of each request, or by the PROXY protocol before the
//! first one. Nothing here is asked for, and nothing counted, while no bound is set and no proxy is trusted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use super::Gateway;
use super::close_cause::CloseCause;
use super::endpoints::Unavailable;
use super::rate::{OverRate, Rate, Said, Scope, burst};
use crate::engine::driver::Driver;
use crate::ids::ConnKey;
use crate::limits::Limits;
use crate::proto::client_address::{ForwardingHeader, Networks, Prefix, PrefixLengths, client, proxy_protocol};
use crate::proto::http::Head;
use crate::time::Time;

/// Who says where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AddressSource {
    /// The socket.
    #[default]
    Socket,
    /// A header of each request, where a trusted proxy wrote it.
    Header(ForwardingHeader),
    /// A PROXY protocol header, which every connection of a trusted proxy begins with.
    ProxyProtocol,
}

/// How a client's address is found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Addressing {
    /// Who says it.
    pub source: AddressSource,
    /// Proxies that are believed.
    pub trusted: Networks,
}

/// What an address has of the process.
#[derive(Default, Debug)]
struct Client {
    connections: u64,
    opened: Rate,
    said: Said,
}

impl Client {
    /// Whether there is nothing to remember of it.
    fn is_gone(&self, now: Time) -> bool {
        self.connections == 0 && self.opened.is_over(now) && self.said.is_over(now)
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "an address's connections are on all shards; taken once for each of them, or of their messages where those are bounded, and only where limits by address are set"
)]
type Lock<T> = std::sync::Mutex<T>;

/// Addresses that have something, over all shards. In parts, each behind a lock of its own that is held for one lookup.
#[derive(Debug)]
pub(super) struct Clients {
    parts: Box<[Lock<HashMap<Prefix, Client>>]>,
    hasher: RandomState,
}

const PARTS: usize = 64;

impl Default for Clients {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| Lock::default()).collect(), hasher: RandomState::new() }
    }
}

impl Clients {
    fn part(&self, prefix: Prefix) -> MutexGuard<'_, HashMap<Prefix, Client>> {
        let part = self.hasher.hash_one(prefix) as usize % PARTS;
        // No holder panics half-way through a change.
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more connection, if an address may have so many; 0 sets no bound.
    fn admit(&self, prefix: Prefix, max: u64) -> bool {
        let mut part = self.part(prefix);
        let client = part.entry(prefix).or_default();
        let admitted = max == 0 || client.connections < max;
        client.connections += u64::from(admitted);
        admitted
    }

    fn release(&self, prefix: Prefix, now: Time) {
        if let Entry::Occupied(mut entry) = self.part(prefix).entry(prefix) {
            let client = entry.get_mut();
            client.connections -= 1;
            if client.is_gone(now) {
                entry.remove();
            }
        }
    }

    fn with_opened<T>(&self, prefix: Prefix, take: impl FnOnce(&mut Rate) -> T) -> T {
        take(&mut self.part(prefix).entry(prefix).or_default().opened)
    }

    fn take_said(&self, prefix: Prefix, now: Time, messages: u64, bytes: u64, limits: &Limits) -> Result<(), OverRate> {
        self.part(prefix).entry(prefix).or_default().said.take(Scope::Address, now, messages, bytes, limits)
    }

    /// Forgets addresses that have nothing any more.
    pub(super) fn sweep(&self, now: Time) {
        for part in &self.parts {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.retain(|_, client| !client.is_gone(now));
            if part.capacity() > 64 && part.len() < part.capacity() / 4 {
                let len = part.len();
                part.shrink_to(2 * len);
            }
        }
    }
}

/// Whether anything is counted by address.
pub(super) fn counts_addresses(limits: &Limits) -> bool {
    limits.connections_per_address > 0 || limits.handshakes_per_address > 0 || Scope::Address.is_bounded(limits)
}

fn prefix_of(address: IpAddr) -> Prefix {
    Prefix::of(address, PrefixLengths::default())
}

impl<D: Driver> Gateway<D> {
    /// Whether a proxy is believed that connects from this address.
    pub(super) fn is_trusted(&self, peer: IpAddr) -> bool {
        self.addressing.source != AddressSource::Socket && self.addressing.trusted.contains(peer)
    }

    /// Counts a connection for an address, which may have had another one before.
    pub(super) fn count_for(&mut self, key: ConnKey, address: IpAddr) -> bool {
        let prefix = prefix_of(address);
        if self.prefixes.get(key) == Some(&prefix) {
            return true;
        }
        self.uncount(key);
        let admitted = self.admit_address(prefix);
        if admitted {
            self.prefixes.insert(key, prefix);
        }
        admitted
    }

    /// Counts one more connection of an address, if it may have one more.
    pub(super) fn admit_address(&self, prefix: Prefix) -> bool {
        self.shared.clients.admit(prefix, self.limits.connections_per_address)
    }

    /// Counts a connection that another process has counted before, whatever its address may have now.
    pub(super) fn count_inherited(&mut self, key: ConnKey, client: Option<IpAddr>) {
        let address = client.or_else(|| self.driver.peer_addr(key).map(|peer| peer.ip()).filter(|&peer| !self.is_trusted(peer)));
        if let Some(prefix) = address.map(prefix_of).filter(|_| counts_addresses(&self.limits)) {
            self.shared.clients.admit(prefix, 0);
            self.prefixes.insert(key, prefix);
        }
    }

    /// What a connection that is about to be taken up is counted for; none when that is still to be told.
    pub(super) fn prefix_at_accept(&self, peer: Option<IpAddr>) -> Option<Prefix> {
        peer.filter(|&peer| !self.is_trusted(peer)).map(prefix_of)
    }

    /// One connection of an address is gone.
    pub(super) fn release_address(&self, prefix: Prefix) {
        self.shared.clients.release(prefix, self.now);
    }

    /// A connection is counted no more.
    pub(super) fn uncount(&mut self, key: ConnKey) {
        if let Some(prefix) = self.prefixes.remove(key) {
            self.release_address(prefix);
        }
    }

    /// Finds out from a request's head who the client is, where its proxy says so. Why it cannot be served, if its address has too much already.
    pub(super) fn address_from_head(&mut self, key: ConnKey, head: &Head<'_, '_>) -> Option<Unavailable> {
        let AddressSource::Header(header) = self.addressing.source else { return None };
        let peer = self.driver.peer_addr(key)?.ip();
        if !self.is_trusted(peer) {
            return None;
        }
        let address = client(peer, &self.addressing.trusted, header, head.headers(header.name()));
        self.note_client(key, address);
        (counts_addresses(&self.limits) && !self.count_for(key, address)).then_some(Unavailable::Address)
    }

    /// Whether the client's address may open one more WebSocket or stream now.
    pub(super) fn address_may_open(&self, key: ConnKey) -> bool {
        let per_second = self.limits.handshakes_per_address;
        let Some(&prefix) = self.prefixes.get(key).filter(|_| per_second > 0) else { return true };
        let has_room = |rate: &mut Rate| rate.has_room(self.now, per_second as f64, burst(&self.limits));
        self.shared.clients.with_opened(prefix, has_room)
    }

    /// Counts a WebSocket or stream that the client's address opens.
    pub(super) fn take_opened_for_address(&self, key: ConnKey) {
        let per_second = self.limits.handshakes_per_address;
        if let Some(&prefix) = self.prefixes.get(key).filter(|_| per_second > 0) {
            let take = |rate: &mut Rate| rate.take(self.now, 1, per_second as f64, burst(&self.limits));
            // Another shard may have been first in the meantime: that one is let in all the same.
            let _ = self.shared.clients.with_opened(prefix, take);
        }
    }

    /// Counts messages of a client against the rates of its address.
    pub(super) fn take_said_for_address(&self, key: ConnKey, messages: u64, bytes: u64) -> Result<(), OverRate> {
        match self.prefixes.get(key) {
            Some(&prefix) if Scope::Address.is_bounded(&self.limits) => {
                self.shared.clients.take_said(prefix, self.now, messages, bytes, &self.limits)
            }
            _ => Ok(()),
        }
    }

    /// Reads the PROXY protocol header that a trusted proxy's connection begins with; how many bytes it has. 0 when it is not whole.
    pub(super) fn read_preface(&mut self, key: ConnKey, bytes: &[u8]) -> usize {
        match proxy_protocol::parse(bytes) {
            Ok(None) => 0,
            Ok(Some((header, len))) => {
                if let Some(cold) = self.sessions.get_mut(key).and_then(|session| session.cold.as_mut()) {
                    cold.preface = false;
                }
                if let Some(peer) = self.driver.peer_addr(key) {
                    let address = header.client(peer).ip();
                    self.note_client(key, address);
                    if counts_addresses(&self.limits) && !self.count_for(key, address) {
                        self.refuse_admitted(key, Unavailable::Address);
                    }
                }
                len
            }
            Err(error) => {
                let reason = format!("no PROXY protocol header from a trusted proxy: {error}");
                self.end_with(key, CloseCause::BadRequest, None, &reason);
                bytes.len()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_as_many_as_it_may_and_is_forgotten_when_it_has_none() {
        let clients = Clients::default();
        let prefix = |text: &str| prefix_of(text.parse().expect("an address"));
        let now = Time::from_millis(1000);
        assert!((0..3).all(|_| clients.admit(prefix("2001:db8::1"), 3)));
        assert!(!clients.admit(prefix("2001:db8::ffff:1"), 3), "the same /64");
        assert!(clients.admit(prefix("2001:db8:0:1::1"), 3) && clients.admit(prefix("::ffff:192.0.2.1"), 1));
        assert!(!clients.admit(prefix("192.0.2.1"), 1), "the same address, however it is written");
        clients.release(prefix("2001:db8::2"), now);
        assert!(clients.admit(prefix("2001:db8::1"), 3));
        for address in ["2001:db8::1", "2001:db8::1", "2001:db8::1", "2001:db8:0:1::1", "192.0.2.1"] {
            clients.release(prefix(address), now);
        }
        assert!(clients.parts.iter().all(|part| part.lock().expect("no panic").is_empty()));
    }

    #[test]
    fn a_rate_is_remembered_while_it_counts() {
        let clients = Clients::default();
        let prefix = prefix_of(IpAddr::from([192, 0, 2, 1]));
        let now = Time::from_millis(1000);
        let second = std::time::Duration::from_secs(1);
        assert!(clients.admit(prefix, 0));
        assert_eq!(clients.with_opened(prefix, |rate| rate.take(now, 1, 1.0, second)), Ok(()));
        clients.release(prefix, now);
        assert!(clients.with_opened(prefix, |rate| rate.take(now, 1, 1.0, second)).is_err());
        clients.sweep(now);
        assert!(!clients.part(prefix).is_empty());
        clients.sweep(now + second);
        assert!(clients.part(prefix).is_empty());
    }

    #[test]
    fn connections_of_one_address_say_together_what_one_may() {
        let clients = Clients::default();
        let limits = Limits { messages_per_second_per_address: 10, ..Limits::default() };
        let prefix = |text: &str| prefix_of(text.parse().expect("an address"));
        let now = Time::from_millis(1000);
        let taken = (0..100).filter(|n| clients.take_said(prefix(&format!("2001:db8::{n}")), now, 1, 1, &limits).is_ok()).count();
        assert_eq!(taken, 10, "of one /64");
        assert_eq!(clients.take_said(prefix("192.0.2.1"), now, 5, 1, &limits), Ok(()));
        clients.sweep(now + std::time::Duration::from_millis(600));
        assert!(!clients.part(prefix("192.0.2.1")).contains_key(&prefix("192.0.2.1")), "what does not count is forgotten");
        assert!(clients.part(prefix("2001:db8::")).contains_key(&prefix("2001:db8::")), "what counts is not");
    }
}
