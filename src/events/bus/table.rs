//! The table of topics: who sits where. Publishers read it without waiting for anybody; who comes or goes puts a changed copy of a part in its place.
//!
//! A topic exists while it has subscribers. The table is in parts, so that a copy is small where there are many topics.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::SubscriberId;
use super::parts::{ArcSwap, Counted};
use super::seat::Seat;

/// A copy is at most this part of the topics.
const PARTS: usize = if cfg!(shardcast_loom) { 1 } else { 64 };

type Seats<T> = Counted<Box<[Counted<Seat<T>>]>>;
type Part<T> = HashMap<Arc<str>, Seats<T>>;

pub(super) struct Table<T> {
    parts: Box<[ArcSwap<Part<T>>]>,
    hasher: RandomState,
    /// Subscribers there are, or are about to be.
    taken: AtomicUsize,
    seats_max: usize,
}

impl<T> Table<T> {
    pub(super) fn new(seats_max: usize) -> Self {
        let parts = (0..PARTS).map(|_| ArcSwap::from_pointee(HashMap::new())).collect();
        Self { parts, hasher: RandomState::new(), taken: AtomicUsize::new(0), seats_max }
    }

    fn part(&self, topic: &str) -> &ArcSwap<Part<T>> {
        &self.parts[self.hasher.hash_one(topic) as usize % PARTS]
    }

    /// Looks at the topic's subscribers.
    pub(super) fn look<R>(&self, topic: &str, at: impl FnOnce(&[Counted<Seat<T>>]) -> R) -> R {
        let part = self.part(topic).load();
        at(part.get(topic).map_or(&[], |seats| &seats[..]))
    }

    /// Gives a seat its place, or says how many there are if there can be no more.
    pub(super) fn try_add(&self, topic: &Arc<str>, seat: Seat<T>) -> Result<(), usize> {
        let count = |taken: usize| (taken < self.seats_max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count)?;
        let seat = Counted::new(seat);
        self.part(topic).rcu(|part| {
            let mut part = Part::clone(part);
            let seats = part.get(topic).map_or(&[][..], |seats| &seats[..]);
            let seats = seats.iter().chain([&seat]).cloned().collect();
            part.insert(Arc::clone(topic), Counted::new(seats));
            Counted::new(part)
        });
        Ok(())
    }

    /// Takes a subscriber out, and its topic if it was the last. Who was taken out before is not there any more, and nothing happens.
    pub(super) fn remove(&self, topic: &str, id: SubscriberId) {
        let mut was_there = false;
        self.part(topic).rcu(|part| {
            let seats = part.get(topic).map_or(&[][..], |seats| &seats[..]);
            was_there = seats.iter().any(|seat| seat.id == id);
            if !was_there {
                return Counted::clone(part);
            }
            let left: Box<_> = seats.iter().filter(|seat| seat.id != id).cloned().collect();
            let mut part = Part::clone(part);
            match left.is_empty() {
                true => part.remove(topic),
                false => part.insert(topic.into(), Counted::new(left)),
            };
            Counted::new(part)
        });
        if was_there {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many topics have subscribers.
    pub(super) fn topics(&self) -> usize {
        self.parts.iter().map(|part| part.load().len()).sum()
    }
}
