//! Topics of one shard, by name and by key.

use std::collections::HashMap;
use std::hash::Hash;

use crate::ids::TopicKey;

struct Slot<N, T> {
    generation: u32,
    entry: Option<(N, T)>,
}

/// A table of topics: names of type `N` (cheap to clone), values of type `T`.
pub struct Directory<N, T> {
    by_name: HashMap<N, u32>,
    slots: Vec<Slot<N, T>>,
    free: Vec<u32>,
}

impl<N, T> Default for Directory<N, T> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), slots: Vec::new(), free: Vec::new() }
    }
}

impl<N: Hash + Eq + Clone, T> Directory<N, T> {
    /// How many topics there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The key of the topic called `name`.
    pub fn find(&self, name: &N) -> Option<TopicKey> {
        self.by_name.get(name).map(|&slot| TopicKey { slot, generation: self.slots[slot as usize].generation })
    }

    /// Adds a topic.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn insert(&mut self, name: N, value: T) -> TopicKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 topics: limits.topics_max is below")
        });
        let taken = self.by_name.insert(name.clone(), slot);
        assert!(taken.is_none(), "a topic is inserted once");
        let place = &mut self.slots[slot as usize];
        place.entry = Some((name, value));
        TopicKey { slot, generation: place.generation }
    }

    /// Removes a topic; its key finds nothing from now on.
    pub fn remove(&mut self, key: TopicKey) -> Option<T> {
        self.get(key)?;
        let place = &mut self.slots[key.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        let (name, value) = place.entry.take()?;
        self.by_name.remove(&name);
        self.free.push(key.slot);
        if self.by_name.is_empty() && self.slots.len() > 1024 {
            self.by_name.shrink_to(1024);
        }
        Some(value)
    }

    /// The topic under a key.
    pub fn get(&self, key: TopicKey) -> Option<&T> {
        let place = self.slots.get(key.slot as usize)?;
        if place.generation == key.generation { place.entry.as_ref().map(|(_, value)| value) } else { None }
    }

    /// The topic under a key.
    pub fn get_mut(&mut self, key: TopicKey) -> Option<&mut T> {
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation == key.generation { place.entry.as_mut().map(|(_, value)| value) } else { None }
    }

    /// The name of the topic under a key.
    pub fn name(&self, key: TopicKey) -> Option<&N> {
        let place = self.slots.get(key.slot as usize)?;
        if place.generation == key.generation { place.entry.as_ref().map(|(name, _)| name) } else { None }
    }
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
    }
}
