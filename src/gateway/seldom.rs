//! A list that hardly ever has anything in it: 8 bytes in place of 24, and nothing is kept of it once it is empty.

/// See the module.
#[expect(clippy::box_collection, reason = "that is what it is for")]
pub(super) struct Seldom<T>(Option<Box<Vec<T>>>);

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Seldom<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    pub(super) fn push(&mut self, value: T) {
        self.0.get_or_insert_default().push(value);
    }

    /// All of it; nothing is left.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.0.take().map_or_else(Vec::new, |list| *list)
    }

    /// Keeps those for which `is_kept` holds.
    pub(super) fn retain(&mut self, is_kept: impl FnMut(&T) -> bool) {
        if let Some(list) = &mut self.0 {
            list.retain(is_kept);
        }
        self.0.take_if(|list| list.is_empty());
    }

    /// Bytes that it has allocated.
    pub(super) fn heap_bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |list| (size_of::<Vec<T>>() + list.capacity() * size_of::<T>()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_empty_as_soon_as_nothing_is_left_in_it() {
        let mut list = Seldom::default();
        assert!(list.is_empty() && list.heap_bytes() == 0);
        (1..=3).for_each(|number| list.push(number));
        list.retain(|&number| number > 1);
        assert_eq!((list.len(), list.take()), (2, vec![2, 3]));
        list.push(4);
        list.retain(|_| false);
        assert!(list.is_empty() && list.heap_bytes() == 0);
        assert_eq!(size_of::<Seldom<u64>>(), 8);
    }
}
