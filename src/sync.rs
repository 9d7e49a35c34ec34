//! What threads meet in: atomics, fences, counted pointers, rings. std's and rtrb's, and under `--cfg shardcast_loom` loom's.
//!
//! `engine::mailbox` and `engine::segment` use it, because they have a protocol of their own between threads; plain counters need no model. The
//! models are in tests/loom. `bus::link` takes its rings from here; its bells are one flag each, and are tested with threads. In every other build this file is re-exports and one type without a size.
#![forbid(unsafe_code)]

#[cfg(not(shardcast_loom))]
pub(crate) use rtrb::{Consumer, Producer, PushError, RingBuffer};
#[cfg(not(shardcast_loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};

#[cfg(shardcast_loom)]
pub(crate) use self::stand_in::{Consumer, Producer, PushError, RingBuffer};
#[cfg(shardcast_loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};

#[cfg(not(shardcast_loom))]
pub(crate) use self::unwatched::Shadow;
#[cfg(shardcast_loom)]
pub(crate) use self::watched::Shadow;

/// In a normal build nobody watches.
#[cfg(not(shardcast_loom))]
mod unwatched {
    use std::ops::Range;

    /// Who reads and writes which bytes of a buffer, told to loom's race detector, which does not see through pointers.
    pub(crate) struct Shadow;

    impl Shadow {
        pub(crate) fn new(_bytes: usize) -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn read(&self, _bytes: Range<usize>) {}

        #[inline(always)]
        pub(crate) fn write(&self, _bytes: Range<usize>) {}
    }
}

/// Under loom every byte has a cell, and two accesses that nothing puts in an order, one of them a write, end the model.
#[cfg(shardcast_loom)]
mod watched {
    use std::ops::Range;

    use loom::cell::UnsafeCell;

    pub(crate) struct Shadow(Box<[UnsafeCell<()>]>);

    impl Shadow {
        pub(crate) fn new(bytes: usize) -> Self {
            Self((0..bytes).map(|_| UnsafeCell::new(())).collect())
        }

        pub(crate) fn read(&self, bytes: Range<usize>) {
            self.0[bytes].iter().for_each(|cell| cell.with(|_| ()));
        }

        pub(crate) fn write(&self, bytes: Range<usize>) {
            // What a failed model leaves behind is dropped; the first report counts, and a second one would abort.
            if std::thread::panicking() {
                return;
            }
            self.0[bytes].iter().for_each(|cell| cell.with_mut(|_| ()));
        }
    }
}

/// rtrb's ring as loom can see it: the same two positions, the same orderings, the same copies of the other side's position, read anew only when the
/// known one says "full" or "empty". The messages themselves go through a channel that loom knows nothing of, so that nothing but the positions
/// makes a push visible, and nothing but their orderings makes what is behind a message visible.
#[cfg(shardcast_loom)]
mod stand_in {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::{Arc, mpsc};

    use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) enum PushError<T> {
        Full(T),
    }

    /// Positions count all messages ever; rtrb's wrap, which is its own affair.
    struct Positions {
        head: AtomicUsize,
        tail: AtomicUsize,
        capacity: usize,
    }

    pub(crate) struct RingBuffer<T>(PhantomData<T>);

    impl<T> RingBuffer<T> {
        #[expect(clippy::new_ret_no_self, reason = "rtrb's signature")]
        pub(crate) fn new(capacity: usize) -> (Producer<T>, Consumer<T>) {
            let positions = Arc::new(Positions { head: AtomicUsize::new(0), tail: AtomicUsize::new(0), capacity });
            let (into, out) = mpsc::channel();
            (
                Producer { into, positions: Arc::clone(&positions), known_head: Cell::new(0), tail: 0 },
                Consumer { out, positions, head: 0, known_tail: Cell::new(0) },
            )
        }
    }

    pub(crate) struct Producer<T> {
        into: mpsc::Sender<T>,
        positions: Arc<Positions>,
        known_head: Cell<usize>,
        tail: usize,
    }

    impl<T> Producer<T> {
        pub(crate) fn push(&mut self, message: T) -> Result<(), PushError<T>> {
            if self.is_full() {
                return Err(PushError::Full(message));
            }
            // Nobody is there to take it when the consumer is gone; rtrb keeps it until the end.
            let _ = self.into.send(message);
            self.tail += 1;
            self.positions.tail.store(self.tail, Ordering::Release);
            Ok(())
        }

        pub(crate) fn is_full(&self) -> bool {
            if self.tail - self.known_head.get() == self.positions.capacity {
                self.known_head.set(self.positions.head.load(Ordering::Acquire));
            }
            self.tail - self.known_head.get() == self.positions.capacity
        }
    }

    pub(crate) struct Consumer<T> {
        out: mpsc::Receiver<T>,
        positions: Arc<Positions>,
        head: usize,
        known_tail: Cell<usize>,
    }

    impl<T> Consumer<T> {
        pub(crate) fn pop(&mut self) -> Result<T, ()> {
            if self.is_empty() {
                return Err(());
            }
            let message = self.out.try_recv().expect("a message is in the channel before the position says so");
            self.head += 1;
            self.positions.head.store(self.head, Ordering::Release);
            Ok(message)
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.head == self.known_tail.get() && self.slots() == 0
        }

        pub(crate) fn slots(&self) -> usize {
            self.known_tail.set(self.positions.tail.load(Ordering::Acquire));
            self.known_tail.get() - self.head
        }
    }
}
