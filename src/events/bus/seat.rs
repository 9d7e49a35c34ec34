//! A seat: the publishers' end of one subscriber's queue, and what happens there when the queue is full.
//!
//! Publishers never wait for each other or for the subscriber. What needs thought is said at the three places: `offer`, for the policies; `WakeLast`,
//! for a subscriber that sleeps while its last publisher goes; and `Room`, for publishers that wait for room.

use std::ops::Deref;
use std::sync::Arc;

use crossbeam_channel::TrySendError;
use tokio::sync::{Semaphore, TryAcquireError};

use super::parts::{AtomicBool, AtomicU64, AtomicWaker, Ordering, Receiver, Sender, bounded};
use super::{Lag, Lagged, SubscribeOptions, SubscriberId};

/// What the two ends of a queue share besides the queue.
pub(super) struct Shared {
    /// The task that waits for a message.
    pub(super) waker: AtomicWaker,
    missed: AtomicU64,
    /// Nothing is to come any more: cut off, or the subscription is gone.
    is_over: AtomicBool,
    /// Room in the queue, where publishers may wait for it. Permits go to who waits longest, and to nobody who comes later before them: that keeps the order.
    room: Option<Semaphore>,
}

impl Shared {
    pub(super) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn miss(&self) -> u64 {
        self.missed.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether it was this call that ended it.
    pub(super) fn end(&self) -> bool {
        if let Some(room) = &self.room {
            room.close();
        }
        !self.is_over.swap(true, Ordering::AcqRel)
    }
}

/// Gives a place in the queue back when it is dropped.
struct Room(Arc<Shared>);

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(room) = &self.0.room {
            room.add_permits(1);
        }
    }
}

/// A message as it lies in a queue, for who selects over [`receiver`](super::Subscription::receiver)s. With [`Lag::Wait`] it keeps its place in the queue
/// until it is dropped or taken out.
///
/// ```
/// # use shardcast::events::Bus;
/// let bus = Bus::new();
/// let numbers = bus.subscribe("numbers")?;
/// bus.publish("numbers", 7);
/// let delivery = numbers.receiver().recv()?;
/// assert_eq!(*delivery, 7);
/// assert_eq!(delivery.into_inner(), 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Delivery<T> {
    message: T,
    room: Option<Room>,
}

impl<T> Delivery<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        drop(self.room);
        self.message
    }
}

impl<T> Deref for Delivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.message
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Delivery").field(&self.message).finish()
    }
}

/// Wakes the subscriber when the publishers' end is gone. It stands behind the sender, and fields are dropped in their order: who is woken sees that nobody
/// sends any more.
struct WakeLast(Arc<Shared>);

impl Drop for WakeLast {
    fn drop(&mut self) {
        self.0.waker.wake();
    }
}

/// What became of an offer.
pub(super) enum Offer<T> {
    Taken,
    /// In the queue, and an older one was thrown away for it.
    TakenForOldest,
    Dropped,
    /// The subscriber was cut off, by this offer.
    CutOff,
    /// Publishers may wait for room.
    Full(T),
    /// The subscriber is on its way out.
    Gone,
}

/// The publishers' end.
pub(super) struct Seat<T> {
    pub(super) id: SubscriberId,
    name: Option<Arc<str>>,
    pub(super) lag: Lag,
    sender: Sender<Delivery<T>>,
    /// The front of the queue, where publishers throw away what is oldest.
    front: Option<Receiver<Delivery<T>>>,
    shared: WakeLast,
}

impl<T> Seat<T> {
    pub(super) fn new(id: SubscriberId, options: SubscribeOptions) -> (Self, Receiver<Delivery<T>>, Arc<Shared>) {
        let (sender, receiver) = bounded(options.queue_messages);
        let shared = Arc::new(Shared {
            waker: AtomicWaker::default(),
            missed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            room: (options.lag == Lag::Wait).then(|| Semaphore::new(options.queue_messages)),
        });
        let front = (options.lag == Lag::DropOldest).then(|| receiver.clone());
        let seat = Self { id, name: options.name, lag: options.lag, sender, front, shared: WakeLast(Arc::clone(&shared)) };
        (seat, receiver, shared)
    }

    /// Puts the message into the queue if there is room, and does as the policy says if not. Never waits.
    pub(super) fn offer(&self, message: T) -> Offer<T> {
        let shared = &self.shared.0;
        // Who has cut a subscriber off, and who hears of it from there, puts nothing behind the hole.
        if shared.is_over() {
            return Offer::Gone;
        }
        match &shared.room {
            None => self.put(Delivery { message, room: None }),
            Some(room) => match room.try_acquire() {
                Ok(permit) => {
                    permit.forget();
                    self.put(Delivery { message, room: Some(Room(Arc::clone(shared))) })
                }
                Err(TryAcquireError::NoPermits) => Offer::Full(message),
                Err(TryAcquireError::Closed) => Offer::Gone,
            },
        }
    }

    fn put(&self, mut delivery: Delivery<T>) -> Offer<T> {
        let shared = &self.shared.0;
        let mut taken = Offer::Taken;
        loop {
            delivery = match self.sender.try_send(delivery) {
                Ok(()) => {
                    shared.waker.wake();
                    return taken;
                }
                Err(TrySendError::Disconnected(_)) => return Offer::Gone,
                Err(TrySendError::Full(back)) => back,
            };
            match &self.front {
                // Another publisher may take the place that becomes free. Then it has got on, and this one throws away one more.
                Some(front) => {
                    if front.try_recv().is_ok() {
                        shared.miss();
                        taken = Offer::TakenForOldest;
                    }
                }
                None if self.lag == Lag::Disconnect => return if shared.end() { Offer::CutOff } else { Offer::Gone },
                None => {
                    shared.miss();
                    return Offer::Dropped;
                }
            }
        }
    }

    /// Waits for room, behind who waits already, and puts the message there. False: the subscriber is gone.
    #[cfg(not(shardcast_loom))]
    pub(super) async fn put_when_room(&self, message: T) -> bool {
        let shared = &self.shared.0;
        let Some(room) = &shared.room else { return matches!(self.offer(message), Offer::Taken) };
        let Ok(permit) = room.acquire().await else { return false };
        permit.forget();
        matches!(self.put(Delivery { message, room: Some(Room(Arc::clone(shared))) }), Offer::Taken)
    }

    /// Counts a message that found no room in time.
    pub(super) fn miss(&self) {
        self.shared.0.miss();
    }

    /// Who it was that lagged.
    pub(super) fn lagged(&self) -> Lagged {
        Lagged { subscriber: self.id, name: self.name.clone(), policy: self.lag, missed: self.shared.0.missed() }
    }
}
