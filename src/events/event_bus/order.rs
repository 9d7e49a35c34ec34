//! Which of the messages that a lane holds may be handled next: those of one key one after the other, in the order of the stream.
//!
//! Pure: no clock, no connection. A lane knows every message that was delivered and not yet acknowledged, and a key's lowest number goes first.
//! When it may not know all (a lease was just taken, or a delivery was lost), it is *gathering*, and nothing begins until it does.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Numbers of messages that are done, kept so that a late copy is not handled again.
const DONE_MAX: usize = 4096;

/// What has to keep its order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Key {
    Named(Arc<str>),
    /// A message without a key stands alone.
    Alone(u64),
}

enum Held<M> {
    Ready(M),
    Running(M),
    /// Given back, and to come again.
    Away,
}

/// What became of a message that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<M> {
    Taken,
    /// It was done before, and its acknowledgement was lost: it is to be acknowledged again.
    Done(M),
}

/// The messages of one lane.
pub(super) struct Order<M> {
    keys: HashMap<Key, BTreeMap<u64, Held<M>>>,
    key_of: HashMap<u64, Key>,
    /// Keys whose first message may be ready; looked at when it is taken.
    turns: VecDeque<Key>,
    done: BTreeSet<u64>,
    /// The number that the consumer gives its next delivery.
    next_delivery: Option<u64>,
    is_gathering: bool,
}

impl<M: Clone> Order<M> {
    pub(super) fn new(is_gathering: bool) -> Self {
        Self {
            keys: HashMap::new(),
            key_of: HashMap::new(),
            turns: VecDeque::new(),
            done: BTreeSet::new(),
            next_delivery: None,
            is_gathering,
        }
    }

    /// Takes a message. Deliveries are numbered without holes; one that is missed begins a gathering.
    pub(super) fn arrive(&mut self, sequence: u64, delivery: u64, key: Key, message: M) -> Arrival<M> {
        if self.next_delivery.replace(delivery + 1).is_some_and(|expected| expected != delivery) {
            self.is_gathering = true;
        }
        if self.done.contains(&sequence) {
            return Arrival::Done(message);
        }
        // What it was known by first holds.
        let key = self.key_of.entry(sequence).or_insert(key).clone();
        let held = self.keys.entry(key.clone()).or_default();
        match held.get_mut(&sequence) {
            // It took us longer than the server waits; it goes on, and what came last is what is answered to.
            Some(Held::Running(own) | Held::Ready(own)) => *own = message,
            Some(away @ Held::Away) => {
                *away = Held::Ready(message);
                self.turns.push_back(key);
            }
            None => {
                held.insert(sequence, Held::Ready(message));
                self.turns.push_back(key);
            }
        }
        Arrival::Taken
    }

    /// The next message to handle, if there is one whose turn it is.
    pub(super) fn begin(&mut self) -> Option<(u64, M)> {
        if self.is_gathering {
            return None;
        }
        while let Some(key) = self.turns.pop_front() {
            let Some(held) = self.keys.get_mut(&key) else { continue };
            // One at a time: a key with a message that runs has its turn when that is done.
            if held.values().any(|held| matches!(held, Held::Running(_))) {
                continue;
            }
            let Some(mut first) = held.first_entry() else { continue };
            let Held::Ready(message) = first.get() else { continue };
            let message = message.clone();
            first.insert(Held::Running(message.clone()));
            return Some((*first.key(), message));
        }
        None
    }

    /// It is done, for good.
    pub(super) fn finish(&mut self, sequence: u64) {
        self.forget(sequence);
        self.done.insert(sequence);
        if self.done.len() > DONE_MAX {
            self.done.pop_first();
        }
    }

    /// It is no longer to be expected.
    pub(super) fn forget(&mut self, sequence: u64) {
        let Some(key) = self.key_of.remove(&sequence) else { return };
        let Some(held) = self.keys.get_mut(&key) else { return };
        held.remove(&sequence);
        if held.is_empty() {
            self.keys.remove(&key);
        } else {
            self.turns.push_back(key);
        }
    }

    /// It was given back and will come again; until then its key waits.
    pub(super) fn give_back(&mut self, sequence: u64) {
        let held = self.key_of.get(&sequence).and_then(|key| self.keys.get_mut(key)).and_then(|held| held.get_mut(&sequence));
        if let Some(held @ Held::Running(_)) = held {
            *held = Held::Away;
        }
    }

    /// Messages that were delivered and not yet acknowledged, as far as is known here.
    pub(super) fn known(&self) -> usize {
        self.key_of.len()
    }

    pub(super) fn is_gathering(&self) -> bool {
        self.is_gathering
    }

    /// The server says how many it waits for. When all of them are known here, the turns begin.
    pub(super) fn compare(&mut self, pending: usize) {
        if self.is_gathering && pending <= self.known() {
            self.is_gathering = false;
            self.turns = self.keys.keys().cloned().collect();
        }
    }

    /// Those that wait here or are being handled, in the order of the stream.
    pub(super) fn here(&self) -> Vec<(u64, bool, M)> {
        let mut here: Vec<_> = self
            .keys
            .values()
            .flatten()
            .filter_map(|(sequence, held)| match held {
                Held::Ready(message) => Some((*sequence, false, message.clone())),
                Held::Running(message) => Some((*sequence, true, message.clone())),
                Held::Away => None,
            })
            .collect();
        here.sort_unstable_by_key(|(sequence, ..)| *sequence);
        here
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn key(name: &str) -> Key {
        Key::Named(name.into())
    }

    /// All that may begin now.
    fn all(order: &mut Order<u64>) -> Vec<u64> {
        std::iter::from_fn(|| order.begin()).map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn a_key_has_one_at_a_time_and_others_do_not_wait_for_it() {
        let mut order = Order::new(false);
        for (sequence, name) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
            assert_eq!(order.arrive(sequence, sequence, key(name), sequence), Arrival::Taken);
        }
        order.arrive(5, 5, Key::Alone(5), 5);
        order.arrive(6, 6, Key::Alone(6), 6);
        assert_eq!(all(&mut order), [1, 3, 5, 6]);
        order.finish(1);
        assert_eq!(all(&mut order), [2]);
        // Given back: its key waits, and only its own.
        order.give_back(2);
        order.finish(3);
        order.arrive(7, 7, key("b"), 7);
        assert_eq!(all(&mut order), [7]);
        order.arrive(2, 8, key("a"), 2);
        assert_eq!(all(&mut order), [2]);
        order.finish(2);
        assert_eq!((all(&mut order), order.known()), (vec![4], 4));
        [4, 5, 6, 7].into_iter().for_each(|sequence| order.finish(sequence));
        assert_eq!((order.known(), order.here()), (0, vec![]));
    }

    #[test]
    fn a_lost_delivery_holds_everything_until_all_are_known() {
        let mut order = Order::new(false);
        order.arrive(1, 1, key("a"), 1);
        assert_eq!(all(&mut order), [1]);
        // The second delivery was lost with its connection.
        order.arrive(3, 3, key("a"), 3);
        order.finish(1);
        assert!(order.is_gathering());
        order.compare(2);
        assert_eq!(order.begin(), None);
        order.arrive(2, 4, key("a"), 2);
        order.compare(2);
        assert_eq!(all(&mut order), [2]);
    }

    #[test]
    fn a_late_copy_is_not_handled_again() {
        let mut order = Order::new(false);
        order.arrive(1, 1, key("a"), 10);
        assert_eq!(order.begin(), Some((1, 10)));
        order.arrive(1, 2, key("a"), 11);
        assert_eq!((order.begin(), order.here()), (None, vec![(1, true, 11)]));
        order.finish(1);
        assert_eq!(order.arrive(1, 3, key("a"), 12), Arrival::Done(12));
        assert_eq!((order.begin(), order.known()), (None, 0));
        // One that the stream has no more is not waited for.
        order.arrive(2, 4, key("a"), 2);
        order.arrive(3, 5, key("a"), 3);
        order.begin();
        order.give_back(2);
        order.forget(2);
        assert_eq!(all(&mut order), [3]);
    }

    /// A server that delivers, loses, redelivers and takes acknowledgements at random: each key's messages are done in order, and all of them.
    #[test]
    fn whatever_is_lost_the_order_of_each_key_holds() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let (messages, keys) = (60_u64, 5);
            let mut to_deliver: VecDeque<u64> = (1..=messages).collect();
            let mut pending: BTreeSet<u64> = BTreeSet::new();
            // Delivered and lost, or given back: to be delivered again.
            let mut again: Vec<u64> = vec![];
            let mut delivery = 0;
            let mut order = Order::new(random.random());
            let mut running = vec![];
            let mut done: HashMap<u64, Vec<u64>> = HashMap::new();
            while done.values().map(Vec::len).sum::<usize>() < messages as usize {
                match random.random_range(0..6) {
                    0 | 1 => {
                        let next = if again.is_empty() || random.random() {
                            to_deliver.pop_front()
                        } else {
                            Some(again.swap_remove(random.random_range(0..again.len())))
                        };
                        let Some(next) = next else { continue };
                        delivery += 1;
                        pending.insert(next);
                        if random.random_ratio(1, 8) {
                            again.push(next);
                        } else if order.arrive(next, delivery, key(&(next % keys).to_string()), next) != Arrival::Taken {
                            pending.remove(&next);
                        }
                    }
                    2 => order.compare(pending.len()),
                    3 => running.extend(order.begin().map(|(sequence, _)| sequence)),
                    _ if running.is_empty() => {}
                    _ => {
                        let sequence = running.swap_remove(random.random_range(0..running.len()));
                        if random.random_ratio(1, 4) {
                            order.give_back(sequence);
                            again.push(sequence);
                        } else {
                            order.finish(sequence);
                            done.entry(sequence % keys).or_default().push(sequence);
                            // The acknowledgement may be lost too.
                            match random.random_ratio(1, 8) {
                                true => again.push(sequence),
                                false => assert!(pending.remove(&sequence)),
                            }
                        }
                    }
                }
            }
            assert!(done.values().all(|done| done.is_sorted()), "seed {seed}: {done:?}");
        }
    }
}
