//! Life under systemd: what it is told (sd_notify(3)), and the sockets that it passes (sd_listen_fds(3)).
//!
//! Both are a few lines of environment and one datagram, so there is no crate for them here. Without their variables nothing happens.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::time::Duration;

use crate::engine::sys::{self, FIRST_PASSED};

/// How long a message to systemd may wait for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Each message about a drain asks for this much more time.
const EXTENSION: Duration = Duration::from_secs(10);

/// The way to whoever supervises this process.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say. A socket that cannot be reached is warned of: whoever waits behind it waits in vain.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&path) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET {path} cannot be reached: systemd is not told of anything");
                return Self::default();
            }
        };
        let watchdog = watchdog(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id());
        Self { socket: Some(socket), watchdog }
    }

    /// How long this process may go on without a [`keep_alive`](Self::keep_alive), if that is watched.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Clients can connect.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The process is about to end.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}\n{}", extension()));
    }

    /// It needs more time to end.
    pub fn still_stopping(&self, status: &str) {
        self.send(&format!("STATUS={status}\n{}", extension()));
    }

    /// One line about how it is.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// It is not stuck.
    pub fn keep_alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// From now on another process is the service.
    pub fn main_pid(&self, pid: u32) {
        self.send(&format!("MAINPID={pid}"));
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::warn!(%error, "systemd cannot be told {}", message.lines().next().unwrap_or(""));
        }
    }
}

fn extension() -> String {
    format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros())
}

fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match path.strip_prefix('@') {
        Some(name) => socket.connect_addr(&UnixAddr::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    Ok(socket)
}

/// The watchdog's time, if it watches this process.
fn watchdog(usec: Option<&str>, pid: Option<&str>, me: u32) -> Option<Duration> {
    let usec = usec?.parse().ok().filter(|&usec| usec > 0)?;
    let mine = pid.is_none_or(|pid| pid.parse() == Ok(me));
    mine.then(|| Duration::from_micros(usec))
}

/// The sockets that were passed, by what they are for.
#[derive(Debug, Default)]
pub struct Passed {
    /// Where clients connect, and its address.
    pub clients: Option<(OwnedFd, SocketAddr)>,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
}

/// Takes over what `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` say, if it is meant for this process.
///
/// # Errors
/// A sentence, when it is not what can be used: something is wrong with the socket unit.
pub fn passed_sockets() -> Result<Passed, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let count = passed_count(variable("LISTEN_FDS").as_deref(), variable("LISTEN_PID").as_deref(), std::process::id())?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = Passed::default();
    for number in 0..count {
        let name = names.next().unwrap_or("");
        let (fd, address) = sys::passed_listener(FIRST_PASSED + number)
            .map_err(|error| format!("socket {number} of LISTEN_FDS ({name:?}) {error}; pass listening TCP sockets (ListenStream=)"))?;
        let twice = if name == "admin" { passed.admin.replace(fd).is_some() } else { passed.clients.replace((fd, address)).is_some() };
        if twice {
            return Err(format!(
                "LISTEN_FDS has more than one socket for {}; pass one for clients, and one named admin (FileDescriptorName=admin) if any",
                if name == "admin" { "the admin listener" } else { "clients" }
            ));
        }
    }
    Ok(passed)
}

/// How many descriptors were passed to the process `me`.
fn passed_count(count: Option<&str>, pid: Option<&str>, me: u32) -> Result<i32, String> {
    let (Some(count), Some(pid)) = (count, pid) else { return Ok(0) };
    // Variables that a parent was started with, and has passed on.
    if pid.parse() != Ok(me) {
        return Ok(0);
    }
    match count.parse() {
        Ok(count @ 0..=PASSED_MAX) => Ok(count),
        _ => Err(format!("LISTEN_FDS is {count}; it must be a number up to {PASSED_MAX}")),
    }
}

/// More are of no use.
const PASSED_MAX: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_of_another_process_is_none_of_ours() {
        let second = Some(Duration::from_secs(1));
        for (usec, pid, expect) in [
            (Some("1000000"), None, second),
            (Some("1000000"), Some("7"), second),
            (Some("1000000"), Some("8"), None),
            (Some("1000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, Some("7"), None),
        ] {
            assert_eq!(watchdog(usec, pid, 7), expect, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn descriptors_of_another_process_are_none_of_ours() {
        for (count, pid, expect) in [
            (None, None, Some(0)),
            (Some("2"), None, Some(0)),
            (Some("2"), Some("7"), Some(2)),
            (Some("2"), Some("8"), Some(0)),
            (Some("-1"), Some("7"), None),
            (Some("17"), Some("7"), None),
            (Some("two"), Some("7"), None),
        ] {
            assert_eq!(passed_count(count, pid, 7).ok(), expect, "{count:?} {pid:?}");
        }
    }

    #[test]
    fn messages_reach_sockets_with_and_without_a_path() {
        let name = format!("shardcast-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).expect("the temporary directory is writable");
        let by_name = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name).expect("a short name")).expect("nobody's name");
        for (address, receiver) in [(path.to_str().expect("a plain path").to_owned(), by_path), (format!("@{name}"), by_name)] {
            let notifier = Notifier { socket: Some(connect(&address).expect("somebody listens")), watchdog: None };
            notifier.ready("well");
            let mut buffer = [0; 100];
            let count = receiver.recv(&mut buffer).expect("a message");
            assert_eq!(&buffer[..count], b"READY=1\nSTATUS=well", "{address}");
        }
        std::fs::remove_file(&path).expect("bound above");
        assert!(connect(path.to_str().expect("a plain path")).is_err());
    }
}
