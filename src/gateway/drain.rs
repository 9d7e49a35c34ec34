//! Goodbyes: to everybody, when the gateway shuts down or is drained, and to some, when it hands clients to others (rebalance).
//!
//! ```text
//!   drain    door shut, newcomers refused ──SETTLE──▶ listener closed, goodbyes at their pace ──▶ all said ──deadline──▶ what is left is reset
//! ```
//!
//! Who was not told yet is served as before. The order of goodbyes is random and their times are even over the window, so that those who come back are
//! even over it too, and no room or machine comes back at once.

use std::time::Duration;

use super::close_cause::CloseCause;
use super::session::{Session, State};
use super::streams::Stream;
use super::topic::Topic;
use super::{Gateway, Progress};
use crate::engine::driver::{CloseHow, Driver};
use crate::engine::sys::Listener;
use crate::ids::ConnKey;
use crate::time::Time;

/// From the shutting of the door to the first goodbye: connections that are being made are completed, and messages on their way between shards arrive.
const SETTLE: Duration = Duration::from_millis(200);
/// How often a draining shard looks whether the others are done.
const LOOK: Duration = Duration::from_millis(10);
/// Goodbyes that are due within this are said together.
const TOGETHER: Duration = Duration::from_millis(1);
/// How long a client that has not asked for anything may take to do so in a drain.
const SILENT: Duration = Duration::from_secs(1);
/// Slots that one turn looks at for somebody to say goodbye to.
const LOOKS_PER_TURN: u32 = 65_536;
/// Turns after the deadline in which resets may leave.
const RESET_TURNS: u32 = 10;

/// A drain under way.
pub(super) struct Drain {
    /// The process ends when it is over; until then it cannot be called off.
    exits: bool,
    /// When goodbyes begin.
    settled: Time,
    window: Duration,
    deadline: Time,
    door: Door,
    /// None before the first.
    farewells: Option<Farewells>,
    /// Nobody is left, and what clients here have published has its place.
    settled_here: bool,
    /// Turns since the deadline.
    overdue: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Those who had begun to connect are still let in, to be told.
    Shut,
    /// The listener is about to be closed.
    Closing,
    Closed,
}

/// Goodbyes under way.
pub(super) struct Farewells {
    cause: CloseCause,
    begun: Time,
    window: Duration,
    /// How many are to be told in the window.
    total: u64,
    told: u64,
    next_at: Time,
    order: SlotOrder,
}

impl Farewells {
    fn new(cause: CloseCause, now: Time, window: Duration, total: u64, order: SlotOrder, random: &mut fastrand::Rng) -> Self {
        let mut farewells = Self { cause, begun: now, window, total, told: 0, next_at: now, order };
        farewells.next_at = farewells.time_of_next(random);
        farewells
    }

    /// The window has as many slices as there are goodbyes; each is said at a random point of its own.
    fn time_of_next(&self, random: &mut fastrand::Rng) -> Time {
        let slices = self.told as f64 + random.f64();
        self.begun + self.window.mul_f64(slices / self.total.max(1) as f64)
    }

    /// Whether everybody who is meant was told.
    pub(super) fn is_over(&self) -> bool {
        self.order.left == 0
    }
}

/// All slots once, in an order that is another each time and needs no memory.
struct SlotOrder {
    slots: u32,
    at: u32,
    step: u32,
    left: u32,
}

impl SlotOrder {
    fn new(slots: u32, random: &mut fastrand::Rng) -> Self {
        let mut step = 1;
        if slots > 2 {
            // About a sixth of all numbers will do, or more.
            while {
                step = random.u32(1..slots);
                common_divisor(step, slots) != 1
            } {}
        }
        Self { slots, at: random.u32(0..slots.max(1)), step, left: slots }
    }

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        self.at = ((u64::from(self.at) + u64::from(self.step)) % u64::from(self.slots)) as u32;
        Some(self.at)
    }
}

fn common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl<D: Driver> Gateway<D> {
    /// Begins a drain; one that is under way goes on, and ends the process if this one does.
    pub(super) fn begin_drain(&mut self, window: Duration, deadline: Time, exits: bool) {
        if let Some(drain) = &mut self.drain {
            drain.exits |= exits;
            return;
        }
        self.end_rebalance();
        let door = if self.driver.shut_door() {
            Door::Shut
        } else {
            // Whoever comes from now on waits for the next process.
            self.driver.stop_accept();
            Door::Closing
        };
        let settled = self.now + SETTLE;
        self.drain = Some(Drain { exits, settled, window, deadline, door, farewells: None, settled_here: false, overdue: 0 });
    }

    /// Serves again. Who was told goodbye goes all the same.
    pub(super) fn call_off_drain(&mut self, listener: Listener) {
        match self.drain.take() {
            Some(drain) if drain.door == Door::Closed => {
                self.shared.drop_closed();
                self.driver.listen(listener);
            }
            other => {
                self.drain = other;
                listener.discard();
            }
        }
    }

    /// Tells a share of the WebSockets and streams, in millionths, to come back, over `window`.
    pub(super) fn begin_rebalance(&mut self, share_ppm: u32, window: Duration) {
        let slots = self.driver.slots();
        let open = (0..slots).filter(|&slot| self.sessions.at(slot).is_some_and(|(_, session)| session.state.is_open())).count() as u64;
        // A remainder is rounded at random: with few clients on many shards the sum is right on average.
        let share = open * u64::from(share_ppm);
        let total = share / 1_000_000 + u64::from(self.random.u64(0..1_000_000) < share % 1_000_000);
        if self.drain.is_some() || self.rebalance.is_some() || total == 0 {
            return self.shared.drop_rebalancing();
        }
        self.rebalance = Some(self.farewells(CloseCause::Rebalance, window, total));
    }

    /// Goodbyes that begin now, so many of them over `window`.
    pub(super) fn farewells(&mut self, cause: CloseCause, window: Duration, total: u64) -> Farewells {
        let order = SlotOrder::new(self.driver.slots(), &mut self.random);
        Farewells::new(cause, self.now, window, total, order, &mut self.random)
    }

    pub(super) fn end_rebalance(&mut self) {
        if self.rebalance.take().is_some() {
            self.shared.drop_rebalancing();
        }
    }

    pub(super) fn step_farewells(&mut self) -> Progress {
        if let Some(mut farewells) = self.rebalance.take() {
            self.say_goodbyes(&mut farewells);
            let over = farewells.is_over() || farewells.told >= farewells.total;
            self.rebalance = Some(farewells);
            if over {
                self.end_rebalance();
            }
        }
        if self.drain.is_some() { self.step_drain() } else { Progress::Continue }
    }

    fn step_drain(&mut self) -> Progress {
        let Some(drain) = &mut self.drain else { return Progress::Continue };
        if self.now >= drain.settled && drain.door == Door::Shut {
            drain.door = Door::Closing;
            self.driver.stop_accept();
        }
        // The last of the backlog must have been taken up.
        if drain.door == Door::Closing && !self.driver.is_listening() && self.events.is_empty() {
            drain.door = Door::Closed;
            self.shared.add_closed();
        }
        if self.now >= drain.deadline {
            drain.overdue = drain.overdue.saturating_add(1);
            let (exits, overdue) = (drain.exits, drain.overdue);
            if overdue == 1 {
                self.reset_all();
                return Progress::Continue;
            }
            // The resets leave in the driver's next turns.
            let done = exits && (self.driver.connections() == 0 || overdue > RESET_TURNS);
            return if done { Progress::Finished } else { Progress::Continue };
        }
        if self.now >= drain.settled {
            let (window, farewells) = (drain.window, drain.farewells.take());
            let mut farewells = farewells.unwrap_or_else(|| {
                let total = self.sessions.len() as u64;
                self.farewells(CloseCause::Shutdown, window, total)
            });
            self.say_goodbyes(&mut farewells);
            if let Some(drain) = &mut self.drain {
                drain.farewells = Some(farewells);
            }
        }
        let exits = self.drain.as_ref().is_some_and(|drain| drain.exits);
        if exits && self.shared.is_drained() && self.is_settled() { Progress::Finished } else { Progress::Continue }
    }

    /// Whether what clients of the process have published has its place in its topics. To be asked when nobody is left, so that it stays so.
    fn is_settled(&mut self) -> bool {
        if !self.drain.as_ref().is_some_and(|drain| drain.settled_here) && self.topics.values().all(Topic::has_no_uplink) {
            self.shared.add_settled();
            if let Some(drain) = &mut self.drain {
                drain.settled_here = true;
            }
        }
        self.shared.all_settled()
    }

    /// Whether topics are about to be given out: nobody is left, and the drain ends the process. One that may be called off goes on with them.
    pub(super) fn gives_out_topics(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.exits) && self.shared.is_drained()
    }

    /// Whether everybody here was told goodbye: nobody is left to hear a message.
    pub(super) fn has_said_goodbye(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.farewells.as_ref().is_some_and(Farewells::is_over))
    }

    /// How soon goodbyes, or the end of a drain, must be looked at.
    pub(super) fn farewell_wait(&self) -> Option<Duration> {
        let until = |farewells: &Farewells| self.until(farewells);
        let drain = self.drain.as_ref().and_then(|drain| {
            let next = drain.farewells.as_ref().filter(|farewells| !farewells.is_over()).map(until);
            let waits = drain.exits || drain.door != Door::Closed || self.driver.connections() > 0;
            next.or_else(|| waits.then_some(LOOK)).map(|wait| wait.min(LOOK))
        });
        drain.into_iter().chain(self.rebalance.as_ref().map(until)).min()
    }

    /// How soon the next goodbye is due.
    pub(super) fn until(&self, farewells: &Farewells) -> Duration {
        farewells.next_at.since(self.now).max(TOGETHER)
    }

    /// Says the goodbyes of a drain or a rebalance that are due.
    fn say_goodbyes(&mut self, farewells: &mut Farewells) {
        let (cause, drains) = (farewells.cause, self.drain.is_some());
        let mut looks = LOOKS_PER_TURN;
        self.say_goodbyes_to(
            farewells,
            &mut looks,
            |_, _, session| drains || session.state.is_open(),
            |gateway, key| gateway.dismiss(key, cause),
        );
    }

    /// Says the goodbyes that are due to those who are meant, as far as looking for them goes in this turn.
    pub(super) fn say_goodbyes_to(
        &mut self,
        farewells: &mut Farewells,
        looks: &mut u32,
        is_meant: impl Fn(&Self, ConnKey, &Session) -> bool,
        mut say: impl FnMut(&mut Self, ConnKey),
    ) {
        let mut told = 0;
        while told < self.limits.closes_per_turn && *looks > 0 && self.now >= farewells.next_at {
            let Some(slot) = farewells.order.next() else { return };
            *looks -= 1;
            let Some((key, _)) = self.sessions.at(slot) else { continue };
            let Some(session) = self.sessions.get(key) else { continue };
            if session.state.is_over() || session.goodbye.is_some() || !is_meant(self, key, session) {
                continue;
            }
            say(self, key);
            told += 1;
            farewells.told += 1;
            farewells.next_at = farewells.time_of_next(&mut self.random);
            if farewells.cause == CloseCause::Rebalance && farewells.told >= farewells.total {
                return;
            }
        }
    }

    fn dismiss(&mut self, key: ConnKey, cause: CloseCause) {
        let Some(session) = self.sessions.get(key) else { return };
        match session.state {
            // In the middle of a request: it will be answered.
            State::Head if session.holds() => {}
            State::Head if session.served => self.end(key, cause),
            // It may just have connected, with its request on the way.
            State::Head => self.timers.set(key.slot, self.now + SILENT),
            State::Joining => self.refuse_waiting(key, cause, ""),
            State::Polling => self.poll_timed_out(key),
            // They are answered, and end then.
            State::Body | State::Awaiting => {}
            State::Room | State::Echo | State::Json | State::Stream => self.say_goodbye(key, cause),
            State::Finishing | State::Lingering | State::Closed => {}
        }
    }

    /// Ends an open connection when what is queued for it now was sent, and the message that it is in the middle of sending has come.
    pub(super) fn say_goodbye(&mut self, key: ConnKey, cause: CloseCause) {
        let linger = Duration::from_millis(self.limits.linger_ms);
        let Some(session) = self.sessions.get(key) else { return };
        let until = match session.state {
            State::Room => {
                let end = self.feed_of(session).map_or(0, |feed| feed.log.end());
                if session.cursor < end { vec![end] } else { Vec::new() }
            }
            State::Json | State::Stream => session.stream().map_or_else(Vec::new, |stream| self.stream_ends(stream)),
            _ => Vec::new(),
        };
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.goodbye = Some(cause);
        if !until.is_empty() {
            session.cold.get_or_insert_default().until = until.into_boxed_slice();
        }
        if !session.is_between_messages() {
            self.timers.set(key.slot, self.now + linger);
        }
        self.pump(key);
    }

    /// Why a connection ends now, if it was told goodbye and has been given what it was owed. It has no send in flight and nothing in its direct queue.
    pub(super) fn due_goodbye(&self, key: ConnKey) -> Option<CloseCause> {
        let session = self.sessions.get(key)?;
        let cause = session.goodbye?;
        let until = session.cold.as_ref().map_or(&[][..], |cold| &cold.until);
        let served = match session.state {
            State::Room => session.seated && session.is_between_messages() && until.first().is_none_or(|&until| session.cursor >= until),
            State::Echo => session.is_between_messages(),
            State::Stream => session.stream().is_none_or(|stream| self.stream_is_past(stream, until)),
            State::Json => {
                let is_done = |stream: &Stream| stream.owes_no_answer() && self.stream_is_past(stream, until);
                session.is_between_messages() && session.stream().is_none_or(is_done)
            }
            _ => false,
        };
        served.then_some(cause)
    }

    /// How long a client that was just taken up may take to ask for something.
    pub(super) fn head_patience(&self) -> Duration {
        let usual = Duration::from_millis(self.limits.head_timeout_ms);
        if self.drain.is_some() { usual.min(SILENT) } else { usual }
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
                self.note_closing(key, CloseCause::ShutdownDeadline, None, 0);
                self.leave(key);
            }
            self.take_down(key, CloseHow::Reset);
        }
        if left > 0 {
            tracing::warn!(shard = %self.shard, connections = left, "deadline of the drain: connections that were not finished are reset (limits.drain_ms)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_comes_once_whatever_their_number() {
        let mut random = fastrand::Rng::with_seed(7);
        for slots in (0..200).chain([4096, 30_030]) {
            let mut order = SlotOrder::new(slots, &mut random);
            let mut seen: Vec<u32> = std::iter::from_fn(|| order.next()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..slots).collect::<Vec<_>>(), "{slots} slots");
        }
    }

    #[test]
    fn goodbyes_have_a_slice_of_the_window_each() {
        let mut random = fastrand::Rng::with_seed(7);
        let (begun, window) = (Time::from_millis(500), Duration::from_secs(10));
        let order = SlotOrder::new(1000, &mut random);
        let mut farewells = Farewells::new(CloseCause::Shutdown, begun, window, 1000, order, &mut random);
        for number in 0..1000 {
            let at = farewells.next_at.since(begun).as_micros();
            assert!((number * 10_000..=(number + 1) * 10_000).contains(&at), "goodbye {number} at {at} µs");
            farewells.told += 1;
            farewells.next_at = farewells.time_of_next(&mut random);
        }
    }
}
