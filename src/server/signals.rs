//! SIGTERM and SIGINT: the first begins the drain, the second ends the process at once.

use std::io;
use std::thread;

use crossbeam_channel::Sender;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::lifecycle::Order;
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
    /// Reports the first signal from a thread of its own. A second one ends the process with exit code 1 whatever the drain is doing.
    ///
    /// # Errors
    /// When that thread cannot be started.
    pub fn report(mut self, orders: Sender<Order>) -> io::Result<()> {
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let mut signals = self.signals.forever();
            if let Some(first) = signals.next() {
                let _ = orders.send(Order::Signal(name(first)));
            }
            if let Some(second) = signals.next() {
                eprintln!("shardcast: {} during the shutdown: ending at once, clients still connected are reset", name(second));
                sys::exit_now(1);
            }
        })?;
        Ok(())
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
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn the_first_signal_is_named() {
        let signals = register().expect("handlers can be set");
        signal_hook::low_level::raise(SIGTERM).expect("a process may signal itself");
        let (orders, ordered) = unbounded();
        signals.report(orders).expect("a thread can be started");
        assert!(matches!(ordered.recv(), Ok(Order::Signal("SIGTERM"))));
    }
}
