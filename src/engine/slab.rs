//! A generational slab that grows in pages: what a shard keeps per connection.
//!
//! Slots never move, growth never copies, and a key of a former holder finds nothing. Freed slots are reused last in, first out, so that a
//! shard that shrinks works in memory that is warm.

use std::ops::{Index, IndexMut};

use crate::ids::ConnKey;

const PAGE: usize = 256;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by [`ConnKey`].
pub struct Slab<T> {
    pages: Vec<Box<[Slot<T>]>>,
    free: Vec<u32>,
    used: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), used: 0, len: 0 }
    }
}

impl<T> Slab<T> {
    /// Live values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slots ever used: every live slot is below this.
    pub fn slots(&self) -> u32 {
        self.used
    }

    /// Bytes that it has allocated for slots, used or not.
    pub fn table_bytes(&self) -> u64 {
        (self.pages.len() * PAGE * size_of::<Slot<T>>() + self.free.capacity() * size_of::<u32>()) as u64
    }

    /// Puts a value in and gives its key.
    ///
    /// # Panics
    /// At 2^32 slots.
    pub fn insert(&mut self, value: T) -> ConnKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.used;
            self.used = slot.checked_add(1).expect("fewer than 2^32 slots: descriptors run out long before");
            if slot as usize / PAGE == self.pages.len() {
                self.pages.push((0..PAGE).map(|_| Slot { generation: 0, value: None }).collect());
            }
            slot
        });
        let entry = self.entry_mut(slot);
        entry.value = Some(value);
        let generation = entry.generation;
        self.len += 1;
        ConnKey { slot, generation }
    }

    /// Takes a value out; its key, and every copy of it, finds nothing from now on.
    pub fn remove(&mut self, key: ConnKey) -> Option<T> {
        self.get(key)?;
        let entry = self.entry_mut(key.slot);
        let value = entry.value.take();
        entry.generation = (entry.generation + 1) & ConnKey::GENERATION_MASK;
        self.free.push(key.slot);
        self.len -= 1;
        value
    }

    /// The value under a key, if it is still there.
    pub fn get(&self, key: ConnKey) -> Option<&T> {
        if key.slot >= self.used {
            return None;
        }
        let entry = &self.pages[key.slot as usize / PAGE][key.slot as usize % PAGE];
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// The value under a key, if it is still there.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut T> {
        if key.slot >= self.used {
            return None;
        }
        let entry = self.entry_mut(key.slot);
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// The present holder of a slot, and its key.
    pub fn at(&mut self, slot: u32) -> Option<(ConnKey, &mut T)> {
        if slot >= self.used {
            return None;
        }
        let entry = self.entry_mut(slot);
        let key = ConnKey { slot, generation: entry.generation };
        entry.value.as_mut().map(|value| (key, value))
    }

    /// All values and their keys.
    pub fn iter(&self) -> impl Iterator<Item = (ConnKey, &T)> {
        let slots = self.pages.iter().flat_map(|page| page.iter()).take(self.used as usize).zip(0..);
        slots.filter_map(|(entry, slot)| Some((ConnKey { slot, generation: entry.generation }, entry.value.as_ref()?)))
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Slot<T> {
        &mut self.pages[slot as usize / PAGE][slot as usize % PAGE]
    }
}

impl<T> Index<ConnKey> for Slab<T> {
    type Output = T;
    fn index(&self, key: ConnKey) -> &T {
        self.get(key).expect("key is live")
    }
}

impl<T> IndexMut<ConnKey> for Slab<T> {
    fn index_mut(&mut self, key: ConnKey) -> &mut T {
        self.get_mut(key).expect("key is live")
    }
}

type SidePage<T> = Box<[Option<(u32, T)>]>;

/// Values beside a [`Slab`], by keys that it gave: what another layer keeps for the same connection.
pub struct SideTable<T> {
    pages: Vec<SidePage<T>>,
    len: usize,
}

impl<T> Default for SideTable<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0 }
    }
}

impl<T> SideTable<T> {
    /// Live values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it has allocated for slots, used or not.
    pub fn table_bytes(&self) -> u64 {
        (self.pages.len() * PAGE * size_of::<Option<(u32, T)>>()) as u64
    }

    /// Puts a value beside `key`.
    ///
    /// # Panics
    /// If the slot still has one.
    pub fn insert(&mut self, key: ConnKey, value: T) {
        while key.slot as usize / PAGE >= self.pages.len() {
            self.pages.push((0..PAGE).map(|_| None).collect());
        }
        let place = &mut self.pages[key.slot as usize / PAGE][key.slot as usize % PAGE];
        assert!(place.is_none(), "slot {} is taken", key.slot);
        *place = Some((key.generation, value));
        self.len += 1;
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: ConnKey) -> Option<T> {
        self.get_mut(key)?;
        self.len -= 1;
        self.pages[key.slot as usize / PAGE][key.slot as usize % PAGE].take().map(|(_, value)| value)
    }

    /// The value beside a key.
    pub fn get(&self, key: ConnKey) -> Option<&T> {
        match self.pages.get(key.slot as usize / PAGE)?[key.slot as usize % PAGE] {
            Some((generation, ref value)) if generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The value beside a key.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut T> {
        match self.pages.get_mut(key.slot as usize / PAGE)?[key.slot as usize % PAGE] {
            Some((generation, ref mut value)) if generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The present holder of a slot, and its key.
    pub fn at(&mut self, slot: u32) -> Option<(ConnKey, &mut T)> {
        let place = self.pages.get_mut(slot as usize / PAGE)?[slot as usize % PAGE].as_mut()?;
        Some((ConnKey { slot, generation: place.0 }, &mut place.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nothing_after_its_slot_is_reused() {
        let mut slab = Slab::default();
        let old = slab.insert('a');
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('b');
        assert_eq!((new.slot, slab.get(old), slab.get(new)), (old.slot, None, Some(&'b')));
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn a_side_table_follows_the_slabs_keys() {
        let mut slab = Slab::default();
        let mut side = SideTable::default();
        let old = slab.insert(());
        side.insert(old, 1);
        assert_eq!((side.remove(old), side.get(old), side.len()), (Some(1), None, 0));
        slab.remove(old);
        let new = slab.insert(());
        side.insert(new, 2);
        assert_eq!((side.get(old), side.get(new)), (None, Some(&2)));
        assert_eq!(side.at(new.slot), Some((new, &mut 2)));
    }

    #[test]
    fn pages_grow_without_moving_keys() {
        let mut slab = Slab::default();
        let keys: Vec<_> = (0..1000).map(|n| slab.insert(n)).collect();
        assert!(keys.iter().enumerate().all(|(n, &key)| slab[key] == n));
        assert_eq!(slab.slots(), 1000);
        assert_eq!(slab.at(999).map(|(key, &mut n)| (key, n)), Some((keys[999], 999)));
        assert!(slab.at(1000).is_none());
    }
}
