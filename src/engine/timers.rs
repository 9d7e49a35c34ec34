//! A hashed timer wheel: at most one timer for each connection slot.
//!
//! [`TimerWheel`] has [`BUCKETS`] lists of slots; a timer hangs in the list of its tick modulo the number of lists. Setting, moving and
//! clearing are a few writes whatever the number of timers, and [`advance`](TimerWheel::advance) looks only at lists that hold something.
//! A timer never fires early; it fires in the tick after its deadline at the latest. Several reasons to wake up (ping, stall, linger) are the session's
//! to fold into one deadline. The wheel reads no clock: whoever owns it passes `now`.
//!
//! Ticks are counted from [`Time::ZERO`] in 32 bits, which at [`TICK`] lasts 17 years; a later deadline counts as that one.

use std::time::Duration;

use crate::time::Time;

/// The resolution that a shard uses: fine enough for a 408 after 100 ms and more, coarse enough that moving a timer at every message mostly stays
/// within one tick and writes nothing.
pub const TICK: Duration = Duration::from_millis(128);
/// Lists in the wheel; one rotation at [`TICK`] is 131 s, longer than nearly every timeout.
pub const BUCKETS: usize = 1024;

const WORDS: usize = BUCKETS / 64;
const PAGE: usize = 1024;
const NONE: u32 = u32::MAX;

/// A slot's timer: its tick, and its neighbours in the list of that tick's bucket. Tick 0 means that none is set, as no timer is ever due at zero.
#[derive(Clone, Copy)]
struct Node {
    tick: u32,
    previous: u32,
    next: u32,
}

/// Timers by connection slot.
pub struct TimerWheel {
    tick_nanos: u64,
    /// The last tick whose timers have fired.
    current: u32,
    len: usize,
    /// One bit per bucket that holds something.
    occupied: [u64; WORDS],
    /// The first slot of each bucket's list.
    heads: Box<[u32; BUCKETS]>,
    /// Nodes by slot; growth adds pages and moves nothing.
    pages: Vec<Box<[Node; PAGE]>>,
}

impl TimerWheel {
    /// An empty wheel that stands at `now`.
    ///
    /// # Panics
    /// If `tick` is shorter than a millisecond: ticks would run out in weeks.
    pub fn new(tick: Duration, now: Time) -> Self {
        assert!(tick >= Duration::from_millis(1), "timer tick of {tick:?}, at least 1 ms");
        let tick_nanos = u64::try_from(tick.as_nanos()).expect("a tick is far below 584 years");
        let mut wheel = Self { tick_nanos, current: 0, len: 0, occupied: [0; WORDS], heads: Box::new([NONE; BUCKETS]), pages: Vec::new() };
        wheel.current = wheel.tick_at(now);
        wheel
    }

    /// Timers that are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it has allocated.
    pub fn table_bytes(&self) -> u64 {
        (self.pages.len() * PAGE * size_of::<Node>() + BUCKETS * size_of::<u32>()) as u64
    }

    /// Whether the slot has a timer.
    pub fn is_set(&self, slot: u32) -> bool {
        self.pages.get(slot as usize / PAGE).is_some_and(|page| page[slot as usize % PAGE].tick != 0)
    }

    /// Sets the slot's timer, or moves it. A deadline that has passed fires at the next tick.
    pub fn set(&mut self, slot: u32, deadline: Time) {
        while self.pages.len() <= slot as usize / PAGE {
            self.pages.push(Box::new([Node { tick: 0, previous: NONE, next: NONE }; PAGE]));
        }
        let tick = saturated(deadline.as_nanos().div_ceil(self.tick_nanos)).max(self.current.saturating_add(1));
        let before = self.node(slot).tick;
        if before == tick {
            return;
        }
        if before != 0 {
            self.unlink(slot);
        }
        self.link(slot, tick);
    }

    /// Takes the slot's timer away, if it has one.
    pub fn clear(&mut self, slot: u32) {
        if self.is_set(slot) {
            self.unlink(slot);
        }
    }

    /// Appends the slots whose deadline has come to `fired`, in no promised order; their timers are no longer set. The cost is what fired, what shares a bucket
    /// with it and waits for a later rotation, and a glance at the buckets passed, at most one rotation whatever the jump.
    pub fn advance(&mut self, now: Time, fired: &mut Vec<u32>) {
        let target = self.tick_at(now);
        let mut steps = (target.saturating_sub(self.current) as usize).min(BUCKETS);
        let mut from = self.current.wrapping_add(1) as usize % BUCKETS;
        self.current = self.current.max(target);
        while let Some(distance) = self.occupied_from(from).filter(|&distance| distance < steps) {
            let bucket = (from + distance) % BUCKETS;
            self.fire(bucket, target, fired);
            steps -= distance + 1;
            from = (bucket + 1) % BUCKETS;
        }
    }

    /// How long to wait before [`advance`](Self::advance) has something to do; `None` when no timer is set. For a deadline more than a rotation away that may be
    /// early, at most once per bucket and rotation; after waiting and advancing, the next answer is later.
    pub fn next_wait(&self, now: Time) -> Option<Duration> {
        let distance = self.occupied_from(self.current.wrapping_add(1) as usize % BUCKETS)?;
        let tick = u64::from(self.current) + 1 + distance as u64;
        Some(Time::from_nanos(tick.saturating_mul(self.tick_nanos)).since(now))
    }

    fn tick_at(&self, now: Time) -> u32 {
        saturated(now.as_nanos() / self.tick_nanos)
    }

    /// Fires what is due in one bucket and leaves what waits for a later rotation.
    fn fire(&mut self, bucket: usize, target: u32, fired: &mut Vec<u32>) {
        let mut slot = self.heads[bucket];
        while slot != NONE {
            let node = *self.node(slot);
            if node.tick <= target {
                self.unlink(slot);
                fired.push(slot);
            }
            slot = node.next;
        }
    }

    fn link(&mut self, slot: u32, tick: u32) {
        let bucket = tick as usize % BUCKETS;
        let next = std::mem::replace(&mut self.heads[bucket], slot);
        if next != NONE {
            self.node_mut(next).previous = slot;
        }
        *self.node_mut(slot) = Node { tick, previous: NONE, next };
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Node { tick, previous, next } = std::mem::replace(self.node_mut(slot), Node { tick: 0, previous: NONE, next: NONE });
        debug_assert!(tick != 0, "slot {slot} has no timer");
        let bucket = tick as usize % BUCKETS;
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else {
            self.heads[bucket] = next;
            if next == NONE {
                self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            }
        }
        self.len -= 1;
    }

    /// How far from bucket `from` the first one is that holds something, going round once.
    fn occupied_from(&self, from: usize) -> Option<usize> {
        let (word, bit) = (from / 64, from % 64);
        let here = self.occupied[word] >> bit;
        if here != 0 {
            return Some(here.trailing_zeros() as usize);
        }
        // The last step comes back to the first word, for the bits below `bit`; those above are known to be zero.
        (1..=WORDS).find_map(|step| {
            let bits = self.occupied[(word + step) % WORDS];
            (bits != 0).then(|| step * 64 - bit + bits.trailing_zeros() as usize)
        })
    }

    fn node(&self, slot: u32) -> &Node {
        &self.pages[slot as usize / PAGE][slot as usize % PAGE]
    }

    fn node_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.pages[slot as usize / PAGE][slot as usize % PAGE]
    }
}

fn saturated(ticks: u64) -> u32 {
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn wheel() -> TimerWheel {
        TimerWheel::new(TICK, Time::ZERO)
    }

    fn fired(wheel: &mut TimerWheel, now: Time) -> Vec<u32> {
        let mut slots = Vec::new();
        wheel.advance(now, &mut slots);
        slots.sort_unstable();
        slots
    }

    #[test]
    fn a_slot_costs_twelve_bytes() {
        assert_eq!(size_of::<Node>(), 12);
    }

    #[test]
    fn a_timer_fires_in_the_tick_after_its_deadline_and_never_before_it() {
        let mut wheel = wheel();
        wheel.set(7, at(129));
        assert_eq!(fired(&mut wheel, at(255)), [0_u32; 0]);
        assert!(wheel.is_set(7));
        assert_eq!(fired(&mut wheel, at(256)), [7]);
        assert!(!wheel.is_set(7));
        assert_eq!(fired(&mut wheel, at(10_000)), [0_u32; 0]);
        assert_eq!(wheel.len(), 0);
    }

    #[test]
    fn a_deadline_on_a_tick_fires_at_that_tick_and_a_passed_one_at_the_next() {
        let mut wheel = wheel();
        wheel.set(1, at(256));
        assert_eq!(fired(&mut wheel, at(256)), [1]);
        wheel.set(1, at(256));
        wheel.set(2, Time::ZERO);
        assert_eq!(fired(&mut wheel, at(383)), [0_u32; 0]);
        assert_eq!(fired(&mut wheel, at(384)), [1, 2]);
    }

    #[test]
    fn a_timer_moves_earlier_and_later() {
        let mut wheel = wheel();
        wheel.set(3, at(1280));
        wheel.set(3, at(256));
        wheel.set(4, at(256));
        wheel.set(4, at(1280));
        assert_eq!(wheel.len(), 2);
        assert_eq!(fired(&mut wheel, at(300)), [3]);
        assert_eq!(fired(&mut wheel, at(1279)), [0_u32; 0]);
        assert_eq!(fired(&mut wheel, at(1280)), [4]);
    }

    #[test]
    fn a_cleared_timer_does_not_fire_and_its_neighbours_do() {
        let mut wheel = wheel();
        (0..5).for_each(|slot| wheel.set(slot, at(500)));
        [0, 2, 4, 2, 99_999].into_iter().for_each(|slot| wheel.clear(slot));
        assert_eq!(fired(&mut wheel, at(512)), [1, 3]);
    }

    #[test]
    fn deadlines_beyond_a_rotation_stay_until_theirs() {
        let rotation = 128 * BUCKETS as u64;
        let mut wheel = wheel();
        wheel.set(1, at(128));
        wheel.set(2, at(128 + rotation));
        wheel.set(3, at(128 + 5 * rotation));
        assert_eq!(fired(&mut wheel, at(128)), [1]);
        assert_eq!(fired(&mut wheel, at(rotation)), [0_u32; 0]);
        assert_eq!(fired(&mut wheel, at(128 + rotation)), [2]);
        assert_eq!(fired(&mut wheel, at(5 * rotation)), [0_u32; 0]);
        assert_eq!(fired(&mut wheel, at(128 + 5 * rotation)), [3]);
    }

    #[test]
    fn a_clock_that_jumps_fires_everything_due_once_and_one_that_steps_back_nothing() {
        let mut wheel = wheel();
        (0..3000).for_each(|slot| wheel.set(slot, at(1 + u64::from(slot) * 100)));
        wheel.set(3000, at(u64::MAX / 1_000_000));
        assert_eq!(fired(&mut wheel, at(10_000_000)), (0..3000).collect::<Vec<_>>());
        assert_eq!(fired(&mut wheel, at(5)), [0_u32; 0]);
        wheel.set(1, at(10_000_100));
        assert_eq!(fired(&mut wheel, at(10_000_128)), [1]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn the_wait_is_exact_within_a_rotation_and_zero_when_overdue() {
        let mut wheel = wheel();
        assert_eq!(wheel.next_wait(at(3)), None);
        wheel.set(1, at(1000));
        assert_eq!(wheel.next_wait(at(3)), Some(Duration::from_millis(1021)));
        assert_eq!(wheel.next_wait(at(5000)), Some(Duration::ZERO));
    }

    #[test]
    fn waiting_as_told_reaches_a_far_deadline_in_few_steps() {
        let mut wheel = wheel();
        let deadline = 128 * (10 * BUCKETS as u64 + 17);
        wheel.set(1, at(deadline));
        let (mut now, mut steps) = (Time::ZERO, 0);
        while wheel.is_set(1) {
            let wait = wheel.next_wait(now).expect("a timer is set");
            assert!(wait > Duration::ZERO, "no progress at {now:?}");
            now = now + wait;
            steps += 1;
            fired(&mut wheel, now);
        }
        assert_eq!((now, steps), (at(deadline), 11));
    }

    #[test]
    fn any_schedule_fires_as_a_sorted_map_would() {
        for seed in 0..60 {
            let outcome = std::panic::catch_unwind(|| random_schedule(seed));
            assert!(outcome.is_ok(), "the wheel and the map differ with seed {seed}");
        }
    }

    fn random_schedule(seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut now = random.random_range(0..1_000_000_u64);
        let mut wheel = TimerWheel::new(TICK, at(now));
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        for _ in 0..4000 {
            let slot = random.random_range(0..2500);
            match random.random_range(0..10) {
                0..=5 => {
                    let reach = [300, 20_000, 140_000, 900_000][random.random_range(0..4)];
                    let deadline = (now + random.random_range(0..reach)).saturating_sub(200);
                    wheel.set(slot, at(deadline));
                    model.insert(slot, deadline.div_ceil(128).max(now / 128 + 1));
                }
                6 => {
                    wheel.clear(slot);
                    model.remove(&slot);
                }
                _ => {
                    let jump = [200, 5_000, 400_000][random.random_range(0..3)];
                    now += random.random_range(0..jump);
                    let due: BTreeSet<u32> = model.iter().filter(|&(_, &tick)| tick <= now / 128).map(|(&slot, _)| slot).collect();
                    model.retain(|_, &mut tick| tick > now / 128);
                    let mut slots = Vec::new();
                    wheel.advance(at(now), &mut slots);
                    assert_eq!(slots.len(), due.len());
                    assert_eq!(slots.into_iter().collect::<BTreeSet<_>>(), due);
                }
            }
            assert_eq!(wheel.len(), model.len());
            assert_eq!(wheel.is_set(slot), model.contains_key(&slot));
            let next = model.values().min().map(|tick| Duration::from_millis(tick * 128 - now));
            let wait = wheel.next_wait(at(now));
            assert_eq!(wait.is_some(), next.is_some());
            assert!(wait <= next && wait.is_none_or(|wait| wait > Duration::ZERO));
        }
    }
}
