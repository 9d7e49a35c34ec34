//! SIGTERM and SIGINT: the first begins the drain, the second ends the process at once.

use std::io;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::engine::sys;

/// The signals that end the gateway, caught from [`register`] on.
pub struct ShutdownSignals {
    signals: Signals,
}

/// Catches SIGTERM and SIGINT from here on. Call it before clients can connect, so that none of them is lost to a signal in between.
///
/// # Errors
/// When the kernel refuses the handlers or the pipe behind them.
pub fn register() -> io::Result<ShutdownSignals> {
    Ok(ShutdownSignals { signals: Signals::new([SIGTERM, SIGINT])? })
}

impl ShutdownSignals {
    /// Blocks until the first signal and returns its name. From then on a thread of its own watches for a second one, which ends the process with
    /// exit code 1 whatever the drain is doing.
    ///
    /// # Errors
    /// When that thread cannot be started; the signal has come all the same.
    pub fn wait_for_shutdown(mut self) -> io::Result<&'static str> {
        let first = self.signals.forever().next().expect("only closing the handle ends the signals, and nobody holds it");
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if let Some(second) = self.signals.forever().next() {
                eprintln!("shardcast: {} during the shutdown: ending at once, clients still connected are reset", name(second));
                sys::exit_now(1);
            }
        })?;
        Ok(name(first))
    }
}

fn name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        _ => "signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_is_named() {
        let signals = register().expect("handlers can be set");
        signal_hook::low_level::raise(SIGTERM).expect("a process may signal itself");
        assert_eq!(signals.wait_for_shutdown().expect("a thread can be started"), "SIGTERM");
    }
}
