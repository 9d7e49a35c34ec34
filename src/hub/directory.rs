//! Topics of one shard, by name and by key. The table grows in pages: a million topics are never copied.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroU32;

use hashbrown::HashTable;

use crate::ids::TopicKey;

struct Slot<N, T> {
    generation: NonZeroU32,
    entry: Option<(N, T)>,
}

const PAGE: usize = 64;

/// A table of topics: names of type `N`, values of type `T`.
pub struct Directory<N, T> {
    /// Slots, found by their names' hashes: a name is in its slot alone.
    by_name: HashTable<u32>,
    hasher: RandomState,
    pages: Vec<Box<[Slot<N, T>]>>,
    used: u32,
    free: Vec<u32>,
}

impl<N, T> Default for Directory<N, T> {
    fn default() -> Self {
        Self { by_name: HashTable::new(), hasher: RandomState::new(), pages: Vec::new(), used: 0, free: Vec::new() }
    }
}

impl<N: Hash + Eq, T> Directory<N, T> {
    /// How many topics there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Bytes that it has allocated for places and for names' entries; not what these own.
    pub fn table_bytes(&self) -> u64 {
        (self.by_name.allocation_size() + self.pages.len() * PAGE * size_of::<Slot<N, T>>() + self.free.capacity() * size_of::<u32>())
            as u64
    }

    /// The key of the topic called `name`.
    pub fn find(&self, name: &N) -> Option<TopicKey> {
        let &slot = self.by_name.find(self.hasher.hash_one(name), |&slot| name_in(&self.pages, slot) == name)?;
        Some(TopicKey { slot, generation: self.slot(slot)?.generation })
    }

    /// Adds a topic.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn insert(&mut self, name: N, value: T) -> TopicKey {
        assert!(self.find(&name).is_none(), "a topic is inserted once");
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.used;
            self.used = slot.checked_add(1).expect("fewer than 2^32 topics: limits.topics_max is below");
            if slot as usize / PAGE == self.pages.len() {
                self.pages.push((0..PAGE).map(|_| Slot { generation: NonZeroU32::MIN, entry: None }).collect());
            }
            slot
        });
        let (pages, hasher) = (&self.pages, &self.hasher);
        self.by_name.insert_unique(hasher.hash_one(&name), slot, |&slot| hasher.hash_one(name_in(pages, slot)));
        let place = self.slot_mut(slot).expect("a slot that was given out");
        place.entry = Some((name, value));
        TopicKey { slot, generation: place.generation }
    }

    /// Removes a topic; its key finds nothing from now on.
    pub fn remove(&mut self, key: TopicKey) -> Option<T> {
        let hash = self.hasher.hash_one(self.name(key)?);
        if let Ok(entry) = self.by_name.find_entry(hash, |&slot| slot == key.slot) {
            entry.remove();
        }
        let place = self.slot_mut(key.slot)?;
        place.generation = place.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let (_, value) = place.entry.take()?;
        self.free.push(key.slot);
        if self.by_name.is_empty() && self.used > 1024 {
            let (pages, hasher) = (&self.pages, &self.hasher);
            self.by_name.shrink_to(1024, |&slot| hasher.hash_one(name_in(pages, slot)));
        }
        Some(value)
    }

    /// The topic under a key.
    pub fn get(&self, key: TopicKey) -> Option<&T> {
        let place = self.slot(key.slot)?;
        if place.generation == key.generation { place.entry.as_ref().map(|(_, value)| value) } else { None }
    }

    /// The topic under a key.
    pub fn get_mut(&mut self, key: TopicKey) -> Option<&mut T> {
        let place = self.slot_mut(key.slot)?;
        if place.generation == key.generation { place.entry.as_mut().map(|(_, value)| value) } else { None }
    }

    /// All topics.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter()).filter_map(|slot| slot.entry.as_ref().map(|(_, value)| value))
    }

    /// The name of the topic under a key.
    pub fn name(&self, key: TopicKey) -> Option<&N> {
        let place = self.slot(key.slot)?;
        if place.generation == key.generation { place.entry.as_ref().map(|(name, _)| name) } else { None }
    }

    /// The topic in a slot, with its name. Slots are counted from 0 on, and keep their topics as long as these live.
    pub fn at(&self, slot: u32) -> Option<(&N, &T)> {
        self.slot(slot)?.entry.as_ref().map(|(name, value)| (name, value))
    }

    /// The slot after this one; none when it was the last that was ever used.
    pub fn next_slot(&self, slot: u32) -> Option<u32> {
        slot.checked_add(1).filter(|&next| next < self.used)
    }

    fn slot(&self, slot: u32) -> Option<&Slot<N, T>> {
        slot_in(&self.pages, slot)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot<N, T>> {
        Some(&mut self.pages.get_mut(slot as usize / PAGE)?[slot as usize % PAGE])
    }
}

type Pages<N, T> = [Box<[Slot<N, T>]>];

fn slot_in<N, T>(pages: &Pages<N, T>, slot: u32) -> Option<&Slot<N, T>> {
    Some(&pages.get(slot as usize / PAGE)?[slot as usize % PAGE])
}

/// The name in a slot that the table of names has.
fn name_in<N, T>(pages: &Pages<N, T>, slot: u32) -> &N {
    let entry = slot_in(pages, slot).and_then(|place| place.entry.as_ref());
    &entry.expect("what is found by its name has one").0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_topic_is_gone_by_name_and_by_key() {
        let mut directory = Directory::default();
        let old = directory.insert("a", 1);
        assert_eq!(directory.find(&"a"), Some(old));
        assert_eq!(directory.remove(old), Some(1));
        assert_eq!((directory.find(&"a"), directory.get(old)), (None, None));
        assert_eq!(directory.remove(old), None);
        let new = directory.insert("b", 2);
        assert_eq!((new.slot, directory.get(old), directory.get(new), directory.len()), (old.slot, None, Some(&2), 1));
        assert!(directory.values().eq([&2]));
    }

    #[test]
    fn a_key_leads_to_name_and_value_as_long_as_its_topic_lives() {
        let mut directory = Directory::default();
        assert!(directory.is_empty());
        let key = directory.insert("a", 1);
        *directory.get_mut(key).expect("it was inserted") += 10;
        assert_eq!((directory.name(key), directory.get(key), directory.is_empty()), (Some(&"a"), Some(&11), false));
        directory.remove(key);
        directory.insert("b", 2);
        for gone in [key, TopicKey { slot: 1 << 20, ..key }] {
            assert_eq!((directory.name(gone), directory.get(gone)), (None, None), "{gone:?}");
            assert_eq!(directory.get_mut(gone), None, "{gone:?}");
            assert_eq!(directory.remove(gone), None, "{gone:?}");
        }
        assert_eq!(directory.len(), 1);
    }

    #[test]
    #[should_panic(expected = "a topic is inserted once")]
    fn a_name_that_is_taken_is_a_bug_of_ours() {
        let mut directory = Directory::default();
        directory.insert("a", 1);
        directory.insert("a", 2);
    }

    #[test]
    fn topics_fill_pages_and_what_is_freed_is_used_first() {
        let mut directory = Directory::default();
        let keys: Vec<TopicKey> = (0..3 * PAGE + 1).map(|number| directory.insert(number, number)).collect();
        assert_eq!(directory.pages.len(), 4);
        assert!(keys.iter().enumerate().all(|(number, &key)| directory.get(key) == Some(&number) && directory.find(&number) == Some(key)));
        directory.remove(keys[70]);
        directory.remove(keys[3]);
        let again = [directory.insert(1003, 0), directory.insert(1070, 0)];
        assert_eq!((again.map(|key| key.slot), directory.pages.len()), ([keys[3].slot, keys[70].slot], 4));
    }

    #[test]
    fn the_names_of_a_crowd_of_topics_cost_nothing_once_all_are_gone() {
        let mut directory = Directory::default();
        let keys: Vec<TopicKey> = (0..10_000).map(|number| directory.insert(number, ())).collect();
        for key in keys {
            assert_eq!(directory.remove(key), Some(()));
        }
        assert!(directory.is_empty() && directory.by_name.capacity() < 2500, "room for {} names", directory.by_name.capacity());
    }
}
