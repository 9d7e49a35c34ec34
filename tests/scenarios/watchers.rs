//! Those who talk on while something befalls others, and what that costs them.

#![allow(clippy::disallowed_types, reason = "tests stand outside the gateway: real threads")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::swarm::{Event, Swarm};
use crate::common::{Gateway, now};

/// The crowd's clients stand for other machines: what they do when they come back (in Python as much CPU as the gateway needs for all) takes no CPU from the
/// gateway and from those who stay. This thread and processes that it starts from here on run when nobody else wants to.
pub fn yield_to_the_gateway() {
    // SAFETY: two numbers; without a process id the calling thread's priority is set (setpriority(2), "C library/kernel differences").
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }, 0, "{}", std::io::Error::last_os_error());
}

pub fn p99(latencies: &[Duration]) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    assert!(!sorted.is_empty(), "those who stayed heard nothing");
    sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)].as_secs_f64() * 1e3
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Opening,
    Quiet,
    Storm,
    Over,
}

/// Those who stay, on a thread of their own: a message to all of them every 20 ms.
pub struct Watchers {
    phase: Arc<AtomicU8>,
    thread: JoinHandle<[Vec<Duration>; 2]>,
}

impl Watchers {
    pub fn start(gateway: &Gateway, room: &str, count: usize) -> Self {
        let mut swarm = Swarm::new(gateway.port);
        for _ in 0..count {
            swarm.connect_and_open(&format!("/ws?room={room}"), &mut |_, _| {});
        }
        let phase = Arc::new(AtomicU8::new(Phase::Opening as u8));
        let told = Arc::clone(&phase);
        let thread = std::thread::spawn(move || {
            let (zero, mut next) = (now(), now());
            let mut latencies = [Vec::new(), Vec::new()];
            loop {
                let phase = told.load(Ordering::Relaxed);
                if phase == Phase::Over as u8 {
                    return latencies;
                }
                if now() >= next {
                    // Latency counts from when a message was due.
                    swarm.send_text(0, format!("{phase} {}", next.duration_since(zero).as_nanos()).as_bytes());
                    next += Duration::from_millis(20);
                }
                swarm.turn(Duration::from_millis(1), &mut |number, event| match event {
                    Event::Text(payload) => {
                        let text = std::str::from_utf8(payload).expect("text");
                        let (phase, nanos) = text.split_once(' ').expect("a phase and a time");
                        let latency = zero.elapsed().saturating_sub(Duration::from_nanos(nanos.parse().expect("a time")));
                        match phase.parse::<u8>() {
                            Ok(phase) if phase == Phase::Quiet as u8 => latencies[0].push(latency),
                            Ok(phase) if phase == Phase::Storm as u8 => latencies[1].push(latency),
                            _ => {}
                        }
                    }
                    Event::Close(code, reason) => panic!("watcher {number} was closed: {code:?} {reason}"),
                    Event::Ended => panic!("watcher {number} is gone"),
                    Event::Opened | Event::Binary(_) => {}
                });
            }
        });
        Self { phase, thread }
    }

    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Latencies before, and while all come back.
    pub fn finish(self) -> (Vec<Duration>, Vec<Duration>) {
        let [quiet, storm] = self.thread.join().expect("those who stay are told nothing and lose nothing");
        (quiet, storm)
    }
}
