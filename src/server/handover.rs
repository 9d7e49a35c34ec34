//! Handing everything over to the next process (SIGUSR2), without a client knowing: listening sockets, connections, topics, histories, idempotency keys.
//!
//! ```text
//!   this process                                                       the next one (server::takeover)
//!   trial of the program at our path ──fails──▶ a line in the log
//!   starts it, a socket between them  ─────────────────────────────▶   makes its shards, frozen
//!                                     ◀──────────────── prepared ───
//!   shards freeze, work off what is under way, are still
//!   sockets, topics, connections      ─────────────────────────────▶   connections join their topics where they were
//!                                     ◀─────────────────── taken ───   thaws, serves
//!   ends
//! ```
//!
//! Until `taken` has come nothing of ours is gone: whatever fails before that, the next process is killed, our shards thaw and serve on. It says `taken`
//! before it takes in or gives out a byte, so it can be told from one that was killed in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::clock::{Clock, unix_time};
use super::restart::Program;
use super::wire::Wire;
use crate::bus::link::LinkShared;
use crate::engine::wakers::Wakers;
use crate::gateway::state_stream::write_to;
use crate::gateway::{self, Chunk, Shared};
use crate::ids::ShardId;
use crate::proto::position::Epoch;
use crate::time::Time;

/// How a process learns that it takes over from another, whose socket is its standard input: version, shards, epoch and the key of names' hashes.
pub const VARIABLE: &str = "HANDOVER_FROM";
/// The version of what is said over that socket.
pub const VERSION: u32 = 1;
/// What goes with a descriptor: what it is.
pub const LISTENER: u8 = b'L';
/// The socket that was passed to us, which all shards accept from.
pub const PASSED: u8 = b'P';
/// The admin listener.
pub const ADMIN: u8 = b'A';
/// The lock of the state file.
pub const LOCK: u8 = b'S';
/// No more of them.
pub const END: u8 = b'.';
/// The next process has its shards.
pub const PREPARED: &str = "prepared";
/// The next process serves.
pub const TAKEN: &str = "taken";

/// How often it is looked whether shards are still.
const LOOK: Duration = Duration::from_micros(200);
/// Chunks of a shard that wait to be sent.
const CHUNKS: usize = 4;

/// What does not change while a process lives, and the next one needs.
pub struct Estate {
    /// The program to hand over to.
    pub program: Program,
    /// The process's clock.
    pub clock: Clock,
    /// Whose offsets.
    pub epoch: Epoch,
    /// The key of names' hashes.
    pub hash_key: (u64, u64),
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// How they are woken.
    pub wakers: Arc<Wakers>,
    /// The way to each.
    pub shards: Vec<Sender<gateway::Command>>,
    /// The socket that was passed to us, if clients connect to one.
    pub passed: Option<OwnedFd>,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
    /// The lock of the state file.
    pub lock: Option<OwnedFd>,
    /// The connection to NATS, where there is one.
    pub nats: Option<Arc<LinkShared>>,
    /// How long each step may take: `limits.handover_ms`.
    pub patience: Duration,
}

/// What was handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandedOver {
    /// To which process.
    pub pid: u32,
    /// How many connections, and how long clients heard nothing. None when that process has died meanwhile: what it had taken is lost.
    pub connections: Option<(u64, Duration)>,
}

impl Estate {
    /// Hands everything over. When it returns well, another process serves, and this one must end without a further word to its clients.
    ///
    /// # Errors
    /// Why it did not come to that; this process serves on.
    pub fn hand_over(&self) -> Result<HandedOver, String> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| format!("no socket for it: {error}"))?;
        let mut wire = Wire::new(ours, self.patience).map_err(|error| error.to_string())?;
        let mut child = self.start(theirs).map_err(|error| format!("{}: {error}", self.program))?;
        let handed_over = self.hand_over_to(&mut child, &mut wire);
        handed_over.or_else(|error| {
            // Dead, it takes nothing any more; what it has said before that counts.
            let _ = child.kill();
            let _ = child.wait();
            match self.was_taken(&mut wire) {
                true => Ok(HandedOver { pid: child.id(), connections: None }),
                false => {
                    self.command(|_| gateway::Command::Thaw { listener: None });
                    Err(error)
                }
            }
        })
    }

    fn start(&self, socket: UnixStream) -> io::Result<Child> {
        let Self { epoch, hash_key, .. } = self;
        let life = format!("{VERSION}:{}:{}:{}:{}", self.shards.len(), epoch.0, hash_key.0, hash_key.1);
        let mut command: Command = self.program.command();
        command.env(VARIABLE, life).env_remove("WATCHDOG_PID").stdin(Stdio::from(OwnedFd::from(socket)));
        command.spawn()
    }

    fn hand_over_to(&self, child: &mut Child, wire: &mut Wire) -> Result<HandedOver, String> {
        expect(wire, PREPARED)?;
        let until = self.clock.now() + self.patience;
        // As much of it as there is goes out while clients are still served.
        let ordered = self.nats_has_handled_all(self.clock.now() + self.patience / 4);
        if !ordered {
            tracing::warn!(
                "the NATS server has not said within {} ms that it has handled what clients have published: what they say to the next process may overtake it",
                (self.patience / 4).as_millis()
            );
        }
        let begun = self.clock.now();
        let listeners = self.freeze()?;
        while !self.shared.all_still() {
            if self.clock.now() >= until {
                return Err(format!("what was under way did not end within {} ms (limits.handover_ms)", self.patience.as_millis()));
            }
            thread::park_timeout(LOOK);
        }
        if ordered && !self.nats_has_handled_all(until) {
            let patience = self.patience.as_millis();
            return Err(format!("NATS has not handled what clients have published within {patience} ms (limits.handover_ms)"));
        }
        let connections = self.give(wire, &listeners).map_err(|error| format!("the next process does not listen any more: {error}"))?;
        expect(wire, TAKEN)?;
        Ok(HandedOver { pid: child.id(), connections: Some((connections, self.clock.now().since(begun))) })
    }

    /// Whether the NATS server says until then that it has handled what shards have for it: the next process has a connection of its own, which is no later.
    fn nats_has_handled_all(&self, until: Time) -> bool {
        let Some(nats) = &self.nats else { return true };
        let asked = nats.ask_server();
        while nats.status.answered() < asked {
            if self.clock.now() >= until {
                return false;
            }
            thread::park_timeout(LOOK);
        }
        true
    }

    /// Has every shard freeze; the listeners that they have.
    fn freeze(&self) -> Result<Vec<OwnedFd>, String> {
        let (ways, listeners): (Vec<_>, Vec<_>) = self.shards.iter().map(|_| bounded(1)).unzip();
        self.command(|shard| gateway::Command::Freeze { listener: ways[shard].clone() });
        let mut all = Vec::new();
        for (shard, listener) in listeners.into_iter().enumerate() {
            let shared = listener.recv_timeout(self.patience).map_err(|_| format!("shard {shard} does not answer"))?;
            all.extend(shared.map_err(|error| format!("the listener of shard {shard} cannot be shared: {error}"))?);
        }
        if self.passed.is_none() && all.len() != self.shards.len() {
            return Err("not every shard has a listener".to_owned());
        }
        Ok(all)
    }

    /// Gives everything; how many connections that were.
    fn give(&self, wire: &mut Wire, listeners: &[OwnedFd]) -> io::Result<u64> {
        match &self.passed {
            Some(passed) => wire.send(&[PASSED], &[passed.as_fd()])?,
            None => listeners.iter().try_for_each(|listener| wire.send(&[LISTENER], &[listener.as_fd()]))?,
        }
        if let Some(admin) = &self.admin {
            wire.send(&[ADMIN], &[admin.as_fd()])?;
        }
        if let Some(lock) = &self.lock {
            wire.send(&[LOCK], &[lock.as_fd()])?;
        }
        wire.send(&[END], &[])?;
        let (to, chunks): (Vec<Sender<Chunk>>, Vec<Receiver<Chunk>>) = self.shards.iter().map(|_| bounded(CHUNKS)).unzip();
        let unix_ms = unix_time().as_millis() as u64;
        let mut to = to.into_iter();
        self.command(|_| gateway::Command::HandOver { unix_ms, to: to.next().expect("one for each shard") });
        let put = |bytes: &[u8], sockets: &[_]| {
            let descriptors: Vec<_> = sockets.iter().map(crate::engine::sys::Socket::descriptor).collect();
            wire.send(bytes, &descriptors)
        };
        let written = write_to(put, self.epoch, self.hash_key, chunks.into_iter().flatten(), |_| {})?;
        wire.end()?;
        Ok(written.counts[3])
    }

    /// Whether the next process has said so; it is dead, so nothing more comes.
    fn was_taken(&self, wire: &mut Wire) -> bool {
        loop {
            match wire.line() {
                Ok(line) if line == TAKEN => return true,
                Ok(line) if !line.is_empty() => {}
                _ => return false,
            }
        }
    }

    fn command(&self, mut command: impl FnMut(usize) -> gateway::Command) {
        for (index, shard) in self.shards.iter().enumerate() {
            if let Err(error) = shard.try_send(command(index)) {
                tracing::error!(shard = index, %error, "a shard takes no commands");
            }
            self.wakers.signal(ShardId(index as u16));
        }
    }
}

/// Waits for a word of the next process.
fn expect(wire: &mut Wire, word: &str) -> Result<(), String> {
    match wire.line() {
        Ok(line) if line == word => Ok(()),
        Ok(line) if line.is_empty() => Err(format!("the next process has ended before it was {word}; its own lines say why")),
        Ok(line) => Err(line),
        Err(error) => Err(format!("the next process does not answer: {error}")),
    }
}
