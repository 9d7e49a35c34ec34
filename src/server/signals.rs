//! SIGTERM and SIGINT: the first begins the drain, the second ends the process at once. SIGUSR2: a restart in place.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::Sender;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::{Handle, Signals};

use super::lifecycle::Order;
use crate::engine::sys;

/// The signals that end the gateway, caught from [`register`] on.
pub struct ShutdownSignals {
    signals: Signals,
}

/// Catches SIGTERM, SIGINT and SIGUSR2 from here on. Call it before clients can connect, so that none of them is lost to a signal in between.
///
/// # Errors
/// When the kernel refuses the handlers or the pipe behind them.
pub fn register() -> io::Result<ShutdownSignals> {
    Ok(ShutdownSignals { signals: Signals::new([SIGTERM, SIGINT, SIGUSR2])? })
}

impl ShutdownSignals {
    /// Reports signals from a thread of its own. The second one that ends the process does so at once, with exit code 1, whatever the drain is doing.
    ///
    /// # Errors
    /// When that thread cannot be started.
    pub fn report(mut self, orders: Sender<Order>) -> io::Result<Reporting> {
        let handle = self.signals.handle();
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let mut ending = false;
            for signal in self.signals.forever() {
                if signal == SIGUSR2 {
                    let _ = orders.send(Order::Restart);
                } else if std::mem::replace(&mut ending, true) {
                    eprintln!("shardcast: {} during the shutdown: ending at once, clients still connected are reset", name(signal));
                    sys::exit_now(1);
                } else {
                    let _ = orders.send(Order::Signal(name(signal)));
                }
            }
        })?;
        Ok(Reporting { handle, thread })
    }
}

/// Signals are being reported.
pub struct Reporting {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Reporting {
    /// Ends that: what a program that this process becomes has for descriptors is none of it.
    pub fn stop(self) {
        self.handle.close();
        // A thread that panicked has ended the process.
        let _ = self.thread.join();
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
        let reporting = signals.report(orders).expect("a thread can be started");
        assert!(matches!(ordered.recv(), Ok(Order::Signal("SIGTERM"))));
        signal_hook::low_level::raise(SIGUSR2).expect("a process may signal itself");
        assert!(matches!(ordered.recv(), Ok(Order::Restart)));
        reporting.stop();
    }
}
