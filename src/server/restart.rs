//! A restart in place (SIGUSR2 with `restart = "drain"`): the process drains, and in place of an end becomes the program that is at its path then, with the same arguments, the same
//! process id and the same listening sockets.
//!
//! ```text
//!   SIGUSR2 ──▶ trial of the program at our path ──fails──▶ a line in the log; nothing else happens
//!                   └──▶ drain, while a listener that nobody accepts from gathers who comes ──▶ state written (--state) ──▶ exec
//!                                                                                                                            │
//!                          the new program takes the listeners as it takes systemd's (LISTEN_FDS), reads the state, serves ◀─┘
//! ```
//!
//! Whoever connects after goodbyes have begun waits in the queue of the listener, and is not refused. What can fail, the trial finds first: a program that does
//! not run, and a configuration that it does not take.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::clock::Clock;
use super::handover::VARIABLE;
use crate::engine::sys;

/// How long the trial may take.
const TRIAL_WITHIN: Duration = Duration::from_secs(5);
/// How often its end is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// What of its complaints is told.
const COMPLAINT_BYTES: u64 = 4096;

/// How this process was started, to be started again.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The sockets that stay open over a restart.
#[derive(Debug)]
pub struct Kept {
    /// Where clients connect.
    pub clients: OwnedFd,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
}

impl Program {
    /// This program, at the path where it was when it was started: later something else may be there, which is what a restart is for.
    ///
    /// # Errors
    /// When the kernel does not say where it is.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, arguments: std::env::args_os().skip(1).collect() })
    }

    /// What starts it as this process was started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // What concerned the start of this process does not concern the next one.
        command.args(&self.arguments).env_remove(VARIABLE).env_remove("LISTEN_PID").env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES");
        command
    }

    /// Has what is at the path now read the configuration, in a process of its own.
    ///
    /// # Errors
    /// Why it would not serve, in its own words.
    pub fn try_out(&self, clock: Clock) -> Result<(), String> {
        let path = self.path.display();
        let flags = self.arguments.iter().skip(usize::from(self.arguments.first().is_some_and(|first| first == "serve")));
        let mut child = Command::new(&self.path)
            .args(["config", "show"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{path} does not run: {error}"))?;
        let deadline = clock.now() + TRIAL_WITHIN;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if clock.now() < deadline => thread::park_timeout(LOOK),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("{path} config show has not ended within {} s", TRIAL_WITHIN.as_secs()));
                }
                Err(error) => return Err(format!("{path} config show is not to be waited for: {error}")),
            }
        };
        if status.success() {
            return Ok(());
        }
        let mut complaint = String::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(COMPLAINT_BYTES).read_to_string(&mut complaint);
        }
        Err(format!("{path} does not take this configuration ({status}): {}", complaint.trim()))
    }

    /// Becomes that program. Returns only when it cannot.
    pub fn begin_again(&self, kept: Kept) -> io::Error {
        let names = if kept.admin.is_some() { "clients:admin" } else { "clients" };
        let sockets: Vec<OwnedFd> = std::iter::once(kept.clients).chain(kept.admin).collect();
        let mut command = self.command();
        command.env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
        sys::exec_with(&mut command, sockets)
    }
}
