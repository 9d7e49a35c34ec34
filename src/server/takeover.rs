//! Taking over from the process before (`server::handover`), which serves on unless this one says that it has everything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::handover::{ADMIN, END, LISTENER, LOCK, PASSED, PREPARED, TAKEN, VARIABLE, VERSION};
use super::wire::Wire;
use crate::engine::sys::Socket;
use crate::gateway::state_stream::Restored;
use crate::proto::position::Epoch;

/// The process before, and what it has said.
pub struct Takeover {
    wire: Wire,
    /// Whose offsets.
    pub epoch: Epoch,
    /// The key of names' hashes.
    pub hash_key: (u64, u64),
}

/// Its sockets that are no connections.
#[derive(Debug, Default)]
pub struct Sockets {
    /// One for each shard.
    pub listeners: Vec<OwnedFd>,
    /// In place of them, the one that was passed to the first process.
    pub passed: Option<OwnedFd>,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
    /// The lock of the state file.
    pub lock: Option<OwnedFd>,
}

impl Takeover {
    /// The process that has started this one to take over, if one has.
    ///
    /// # Errors
    /// When this process is not one that can: a sentence.
    pub fn from_environment(shards: u16, patience: Duration) -> Result<Option<Self>, String> {
        let Some(life) = std::env::var(VARIABLE).ok() else { return Ok(None) };
        let numbers: Vec<u64> = life.split(':').map_while(|number| number.parse().ok()).collect();
        let [version, before, epoch, high, low] = numbers[..] else { return Err(format!("{VARIABLE} is {life:?}, which no process says")) };
        if version != u64::from(VERSION) {
            return Err(format!(
                "the process before hands over in version {version}, and this program takes over in version {VERSION}: restart with restart = \"drain\""
            ));
        }
        if before != u64::from(shards) {
            return Err(format!(
                "the process before has {before} shards, and this one would have {shards}: restart with restart = \"drain\", or keep shards"
            ));
        }
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let wire = stdin.and_then(|stdin| {
            // Whoever starts programs from here does not pass the socket on.
            rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
            Wire::new(UnixStream::from(stdin), patience)
        });
        let wire = wire.map_err(|error| format!("standard input is no socket of the process before: {error}"))?;
        Ok(Some(Self { wire, epoch: Epoch(epoch), hash_key: (high, low) }))
    }

    /// Says that this process could serve; and takes the sockets that come when the one before has stopped.
    ///
    /// # Errors
    /// When it has called it off.
    pub fn begin(&mut self) -> Result<Sockets, String> {
        self.say(PREPARED)?;
        let mut sockets = Sockets::default();
        let mut what = [0];
        loop {
            match io::Read::read(&mut self.wire, &mut what) {
                Ok(1) if what == [END] => return Ok(sockets),
                Ok(1) => {}
                Ok(_) => return Err("the process before has called it off".to_owned()),
                Err(error) => return Err(format!("the process before does not answer: {error}")),
            }
            let descriptor = self.wire.descriptor().ok_or("the process before has sent no socket where it said so")?;
            match what[0] {
                LISTENER => sockets.listeners.push(descriptor),
                PASSED => sockets.passed = Some(descriptor),
                ADMIN => sockets.admin = Some(descriptor),
                LOCK => sockets.lock = Some(descriptor),
                other => return Err(format!("the process before has sent something unknown ({other})")),
            }
        }
    }

    /// Takes everything that the process before has, and the sockets of its connections.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn take(&mut self, unix_ms: u64) -> Result<(Restored, Vec<Socket>), String> {
        let restored = Restored::read(&mut self.wire, unix_ms, true)?;
        let sockets: Vec<Socket> = std::iter::from_fn(|| self.wire.descriptor()).map(Socket::from).collect();
        if restored.connections.len() == sockets.len() {
            Ok((restored, sockets))
        } else {
            Err(format!("{} connections came, with {} sockets", restored.connections.len(), sockets.len()))
        }
    }

    /// Says that this process has everything, before it does anything with it. A process before that has died meanwhile is no reason not to.
    pub fn taken(mut self) {
        let _ = self.say(TAKEN);
    }

    /// Says why this process takes nothing: the one before logs it, and may end this one before it has said so itself.
    pub fn refuse(&mut self, why: &str) {
        let _ = self.say(&why.replace('\n', " "));
    }

    fn say(&mut self, word: &str) -> Result<(), String> {
        self.wire.send(format!("{word}\n").as_bytes(), &[]).map_err(|error| format!("the process before is gone: {error}"))
    }
}
