//! What the bus is made of: crossbeam's channels, `ArcSwap`, `AtomicWaker`, atomics. Under `--cfg shardcast_loom` there are parts in their places
//! that loom sees through; the models of tests/loom run the bus on those. `Counted` is an `Arc` whose last owner matters: with a seat goes its sender.
//!
//! The stand-ins are as strong as what is promised of the real ones, and not stronger: a channel hands over what was sent before, a swap what was stored before.

#[cfg(not(shardcast_loom))]
pub(super) use arc_swap::ArcSwap;
#[cfg(not(shardcast_loom))]
pub(super) use atomic_waker::AtomicWaker;
#[cfg(not(shardcast_loom))]
pub(super) use crossbeam_channel::{Receiver, Sender, bounded};
#[cfg(not(shardcast_loom))]
pub(super) use std::sync::Arc as Counted;
#[cfg(not(shardcast_loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(shardcast_loom)]
pub(super) use self::stand_in::{ArcSwap, AtomicWaker, Receiver, Sender, bounded};
#[cfg(shardcast_loom)]
pub(super) use loom::sync::Arc as Counted;
#[cfg(shardcast_loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(shardcast_loom)]
mod stand_in {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::task::Waker;

    use crossbeam_channel::{RecvError, TryRecvError, TrySendError};
    use loom::sync::{Arc as Counted, Condvar, Mutex};

    pub(crate) struct ArcSwap<T>(Mutex<Counted<T>>);

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Counted::new(value)))
        }

        pub(crate) fn load(&self) -> Counted<T> {
            Counted::clone(&self.0.lock().expect("no panic holds it"))
        }

        /// In two steps, as the real one: another may be faster, and then it is tried again.
        pub(crate) fn rcu(&self, mut change: impl FnMut(&Counted<T>) -> Counted<T>) {
            loop {
                let old = self.load();
                let new = change(&old);
                let mut now = self.0.lock().expect("no panic holds it");
                if Counted::ptr_eq(&now, &old) {
                    let replaced = std::mem::replace(&mut *now, new);
                    // What is dropped with the old value may look here again.
                    drop(now);
                    drop((replaced, old));
                    return;
                }
            }
        }
    }

    #[derive(Default)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }

    struct Channel<T> {
        state: Mutex<State<T>>,
        arrived: Condvar,
        capacity: usize,
    }

    struct State<T> {
        queue: VecDeque<T>,
        senders: usize,
        receivers: usize,
    }

    pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let state = Mutex::new(State { queue: VecDeque::new(), senders: 1, receivers: 1 });
        let channel = Arc::new(Channel { state, arrived: Condvar::new(), capacity });
        (Sender(Arc::clone(&channel)), Receiver(channel))
    }

    pub(crate) struct Sender<T>(Arc<Channel<T>>);

    impl<T> Sender<T> {
        pub(crate) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            let mut state = self.0.state.lock().expect("no panic holds it");
            if state.receivers == 0 {
                return Err(TrySendError::Disconnected(message));
            }
            if state.queue.len() == self.0.capacity {
                return Err(TrySendError::Full(message));
            }
            state.queue.push_back(message);
            self.0.arrived.notify_one();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.state.lock().expect("no panic holds it").senders -= 1;
            self.0.arrived.notify_all();
        }
    }

    pub(crate) struct Receiver<T>(Arc<Channel<T>>);

    impl<T> Receiver<T> {
        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.state.lock().expect("no panic holds it");
            match state.queue.pop_front() {
                Some(message) => Ok(message),
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let mut state = self.0.state.lock().expect("no panic holds it");
            loop {
                match state.queue.pop_front() {
                    Some(message) => return Ok(message),
                    None if state.senders == 0 => return Err(RecvError),
                    None => state = self.0.arrived.wait(state).expect("no panic holds it"),
                }
            }
        }

        pub(crate) fn len(&self) -> usize {
            self.0.state.lock().expect("no panic holds it").queue.len()
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            self.0.state.lock().expect("no panic holds it").receivers += 1;
            Self(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let mut state = self.0.state.lock().expect("no panic holds it");
            state.receivers -= 1;
            let left = if state.receivers == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            drop(state);
            drop(left);
        }
    }
}
