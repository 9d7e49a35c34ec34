//! Shutdown: stop accepting, let what was said arrive, say goodbye to everybody, finish by the deadline.

use std::time::Duration;

use super::close_cause::CloseCause;
use super::session::State;
use super::{Gateway, Progress};
use crate::engine::driver::{CloseHow, Driver};
use crate::time::Time;

/// Messages taken just before may still be on their way between shards: goodbyes wait this long for them.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a draining shard looks whether the others are done.
const LOOK: Duration = Duration::from_millis(10);

/// Turns after the deadline in which resets may leave.
const RESET_TURNS: u32 = 10;

/// A drain under way.
pub(super) struct Drain {
    settled: Time,
    deadline: Time,
    /// The next slot to say goodbye to.
    next_slot: u32,
    forced: u32,
    begun: bool,
}

impl<D: Driver> Gateway<D> {
    pub(super) fn begin_drain(&mut self, deadline: Time) {
        if self.drain.is_none() {
            self.driver.stop_accept();
            self.shared.add_draining();
            self.drain = Some(Drain { settled: self.now + SETTLE, deadline, next_slot: 0, forced: 0, begun: false });
        }
    }

    pub(super) fn step_drain(&mut self) -> Progress {
        let Some(drain) = &mut self.drain else { return Progress::Continue };
        // The driver closes the listener in the turn after the one that asked for it.
        let listener_closed = std::mem::replace(&mut drain.begun, true);
        if self.now >= drain.deadline {
            drain.forced += 1;
            match drain.forced {
                1 => self.reset_all(),
                // The resets leave in the driver's next turns.
                turns if self.driver.connections() == 0 || turns > RESET_TURNS => return Progress::Finished,
                _ => {}
            }
            return Progress::Continue;
        }
        if self.now >= drain.settled {
            self.say_goodbyes();
        }
        // A shard that has not begun may still hand a connection over.
        let all = self.shared.all_draining() && self.shared.connections() == 0;
        if all && listener_closed { Progress::Finished } else { Progress::Continue }
    }

    /// Whether messages are not taken any more.
    pub(super) fn is_settled_drain(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| self.now >= drain.settled)
    }

    pub(super) fn drain_wait(&self) -> Option<Duration> {
        self.drain.as_ref().map(|_| LOOK)
    }

    fn say_goodbyes(&mut self) {
        let slots = self.driver.slots();
        for _ in 0..self.limits.closes_per_turn {
            let Some(drain) = &mut self.drain else { return };
            if drain.next_slot >= slots {
                return;
            }
            let slot = drain.next_slot;
            drain.next_slot += 1;
            let Some((key, session)) = self.sessions.at(slot) else { continue };
            match session.state {
                // In the middle of a request: it will be answered 503.
                State::Head if session.holds() => {}
                State::Head => self.end(key, CloseCause::Shutdown),
                State::Joining => self.refuse_waiting(key, CloseCause::Shutdown, ""),
                State::Polling => self.poll_timed_out(key),
                // They are answered, and end then.
                State::Body | State::Awaiting => {}
                State::Room | State::Echo | State::Stream => {
                    session.goodbye = true;
                    self.pump(key);
                }
                State::Finishing | State::Lingering | State::Closed => {}
            }
        }
    }

    fn reset_all(&mut self) {
        let mut left = 0_u64;
        for slot in 0..self.driver.slots() {
            let Some((key, session)) = self.sessions.at(slot) else { continue };
            if session.state == State::Closed {
                continue;
            }
            left += 1;
            if !session.state.is_over() {
                self.counters.closes.of(CloseCause::ShutdownDeadline).add(1);
                self.leave(key);
            }
            self.take_down(key, CloseHow::Reset);
        }
        if left > 0 {
            tracing::warn!(shard = %self.shard, connections = left, "shutdown deadline: connections that were not finished are reset (limits.drain_ms)");
        }
    }
}
