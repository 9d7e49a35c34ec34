//! What a process has of the outside: where clients and operators connect, and its state file; bound, passed by systemd, or from the process before.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use super::admin::Admin;
use super::config::Config;
use super::state::StateFile;
use super::supervisor::{ServeError, system};
use super::systemd;
use super::takeover::Sockets;
use crate::engine::sys::{self, ListenOptions, Listener};
use crate::limits::Limits;

/// What a process has of the outside.
pub struct House {
    /// Where clients connect.
    pub place: Place,
    /// One for each shard, until they have them.
    pub listeners: Vec<Listener>,
    /// Until it is started.
    pub admin: Option<Admin>,
    /// Where that listens.
    pub admin_address: Option<SocketAddr>,
    /// Another handle on the admin listener, for the program that comes after this one.
    pub admin_kept: Option<OwnedFd>,
    /// The state file, if it keeps one.
    pub state: Option<StateFile>,
}

impl House {
    /// Of a process that begins.
    ///
    /// # Errors
    /// What of it cannot be had.
    pub fn open(config: &Config, shards: u16, limits: &Limits) -> Result<Self, ServeError> {
        let state = config.state.as_deref().map(StateFile::open).transpose()?;
        let passed = systemd::passed_sockets().map_err(ServeError::Passed)?;
        let place = match passed.clients {
            Some((fd, address)) => {
                tracing::info!(%address, "clients connect to the socket that was passed (LISTEN_FDS); --listen is not used");
                sys::adjust_listener(&fd, listen_options(limits));
                Place::Passed(fd, address)
            }
            None => Place::Own(config.listen),
        };
        let (place, listeners) = place.listen(shards, limits)?;
        let admin = match passed.admin {
            Some(fd) => Some(Admin::on(fd).map_err(system("use the admin socket that was passed"))?),
            None => config.admin.map(Admin::bind).transpose()?,
        };
        Self::with(place, listeners, admin, state)
    }

    /// Of a process that takes over.
    ///
    /// # Errors
    /// What of it cannot be had.
    pub fn inherit(config: &Config, shards: u16, limits: &Limits, sockets: Sockets) -> Result<Self, ServeError> {
        let state = match (&config.state, sockets.lock) {
            (Some(path), Some(lock)) => Some(StateFile::inherit(path, lock)),
            (Some(path), None) => Some(StateFile::open(path)?),
            (None, _) => None,
        };
        let address_of = |fd: &OwnedFd| sys::local_addr(fd).map_err(system("use the sockets of the process before"));
        let (place, listeners) = match sockets.passed {
            Some(fd) => {
                let place = Place::Passed(fd.try_clone().map_err(system("share the socket of the process before"))?, address_of(&fd)?);
                let listeners = place.listen_again(shards, limits)?;
                (place, listeners)
            }
            None => {
                let first = sockets.listeners.first().ok_or_else(|| ServeError::Takeover("no listener came".to_owned()))?;
                let place = Place::Own(address_of(first)?);
                (place, sockets.listeners.into_iter().map(Listener::own).collect())
            }
        };
        let admin = match (config.admin, sockets.admin) {
            (None, _) => None,
            (Some(_), Some(fd)) => Some(Admin::on(fd).map_err(system("use the admin socket of the process before"))?),
            (Some(address), None) => Some(Admin::bind(address)?),
        };
        Self::with(place, listeners, admin, state)
    }

    fn with(place: Place, listeners: Vec<Listener>, admin: Option<Admin>, state: Option<StateFile>) -> Result<Self, ServeError> {
        let admin_address = admin.as_ref().map(Admin::address);
        let admin_kept = admin.as_ref().map(Admin::keep).transpose().map_err(system("keep the admin listener"))?;
        Ok(Self { place, listeners, admin, admin_address, admin_kept, state })
    }
}

/// Where clients connect.
pub enum Place {
    /// At an address of ours.
    Own(SocketAddr),
    /// At a socket that was passed to us. All shards accept from its one queue; who comes to which is settled by placement.
    Passed(OwnedFd, SocketAddr),
}

impl Place {
    /// One listener for each shard, and the place with the port that the kernel chose.
    fn listen(self, shards: u16, limits: &Limits) -> Result<(Self, Vec<Listener>), ServeError> {
        match self {
            Self::Own(address) => listeners(address, shards, limits).map(|(address, listeners)| (Self::Own(address), listeners)),
            Self::Passed(..) => {
                let listeners = self.listen_again(shards, limits)?;
                Ok((self, listeners))
            }
        }
    }

    /// Listeners anew, one for each shard.
    ///
    /// # Errors
    /// The address is taken, or there are no more descriptors.
    pub fn listen_again(&self, shards: u16, limits: &Limits) -> Result<Vec<Listener>, ServeError> {
        match self {
            Self::Own(address) => listeners(*address, shards, limits).map(|(_, listeners)| listeners),
            Self::Passed(fd, _) => {
                let dup = |_| fd.try_clone().map(Listener::lent);
                (0..shards).map(dup).collect::<io::Result<_>>().map_err(system("share the socket that was passed"))
            }
        }
    }

    /// A listener from which nobody accepts: whoever comes waits in its queue.
    ///
    /// # Errors
    /// As `listen_again`.
    pub fn keep(&self, limits: &Limits) -> Result<OwnedFd, ServeError> {
        match self {
            Self::Own(address) => sys::listen(*address, listen_options(limits)).map_err(|error| ServeError::Listen(*address, error)),
            Self::Passed(fd, _) => fd.try_clone().map_err(system("keep the socket that was passed")),
        }
    }

    /// The socket that was passed, for another process.
    ///
    /// # Errors
    /// As dup(2).
    pub fn share_passed(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Own(_) => Ok(None),
            Self::Passed(fd, _) => fd.try_clone().map(Some),
        }
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Own(address) | Self::Passed(_, address) => *address,
        }
    }
}

/// One listener for each shard, all on one address. The first bind is exclusive: with SO_REUSEPORT alone a second instance would
/// silently take half of the clients.
fn listeners(address: SocketAddr, shards: u16, limits: &Limits) -> Result<(SocketAddr, Vec<Listener>), ServeError> {
    let options = listen_options(limits);
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ServeError::AddressInUse(address),
        _ if address.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => ServeError::NoIpv6(address, error),
        _ => ServeError::Listen(address, error),
    };
    let mut tries = 0;
    let exclusive = loop {
        match sys::listen(address, ListenOptions { shared: false, ..options }) {
            // The kernel takes the rings of a process that was just killed, and with them its listeners, down some time after it is gone.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < ADDRESS_TRIES => {
                tries += 1;
                thread::park_timeout(ADDRESS_WAIT);
            }
            other => break other.map_err(explain)?,
        }
    };
    let bound = sys::local_addr(&exclusive).map_err(explain)?;
    drop(exclusive);
    let listeners: Vec<OwnedFd> = (0..shards).map(|_| sys::listen(bound, options)).collect::<io::Result<_>>().map_err(explain)?;
    Ok((bound, listeners.into_iter().map(Listener::own).collect()))
}

fn listen_options(limits: &Limits) -> ListenOptions {
    ListenOptions {
        backlog: limits.backlog as u32,
        notsent_bytes: limits.notsent_bytes as u32,
        defer_seconds: limits.accept_defer_ms.div_ceil(1000) as u32,
        shared: true,
    }
}

const ADDRESS_TRIES: u32 = 10;
const ADDRESS_WAIT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused() {
        let limits = Limits::default();
        let (address, _first) = listeners("127.0.0.1:0".parse().expect("an address"), 2, &limits).expect("listens");
        let second = listeners(address, 2, &limits).expect_err("refused");
        assert!(matches!(second, ServeError::AddressInUse(taken) if taken == address), "{second}");
    }
}
