//! A subscription: the subscriber's end of its queue. Receives in tasks, in threads, and in selections over several; unsubscribes when it is dropped.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
#[cfg(not(shardcast_loom))]
use std::time::Duration;

use futures_core::Stream;

use super::SubscriberId;
use super::parts::Receiver;
use super::seat::{Delivery, Shared};
use super::table::Table;

/// Why there is no next message, and never will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecvError {
    /// The last handle on the bus was dropped, and everything was received.
    #[error("the bus is gone, and everything was received")]
    Closed,
    /// The queue was full and the policy is [`Lag::Disconnect`](super::Lag::Disconnect). What was in the queue then has been received.
    #[error("cut off: the queue was full when the next message came (Lag::Disconnect); subscribe again, and expect a gap")]
    CutOff,
}

/// Why there is no message now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TryRecvError {
    /// The queue is empty.
    #[error("the queue is empty")]
    Empty,
    /// There will be none.
    #[error(transparent)]
    Ended(#[from] RecvError),
}

/// Why there was no message in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecvTimeoutError {
    /// None came in time.
    #[error("no message came in time")]
    Timeout,
    /// There will be none.
    #[error(transparent)]
    Ended(#[from] RecvError),
}

/// One subscriber of a [`Bus`](super::Bus): a bounded queue of its own. Dropping it unsubscribes.
///
/// All ways to receive take from the same queue and can be mixed. It is a [`Stream`] too, whose items end when it is over.
///
/// ```
/// # use shardcast::events::Bus;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let bus = Bus::new();
/// let (mut orders, mut prices) = (bus.subscribe("orders")?, bus.subscribe("prices")?);
/// bus.publish("prices", 42);
/// let (topic, message) = tokio::select! {
///     message = orders.recv() => ("orders", message?),
///     message = prices.recv() => ("prices", message?),
/// };
/// assert_eq!((topic, message), ("prices", 42));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?; Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Subscription<T> {
    pub(super) receiver: Receiver<Delivery<T>>,
    pub(super) shared: Arc<Shared>,
    pub(super) table: Weak<Table<T>>,
    pub(super) topic: Arc<str>,
    pub(super) id: SubscriberId,
}

impl<T> Subscription<T> {
    /// The name by which [`Lagged`](super::Lagged) calls it.
    pub fn id(&self) -> SubscriberId {
        self.id
    }

    /// What it is subscribed to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many messages it has not got, so far, because its queue was full. Grows without end.
    pub fn missed(&self) -> u64 {
        self.shared.missed()
    }

    /// How many messages are in its queue.
    pub fn queued(&self) -> usize {
        self.receiver.len()
    }

    fn ended(&self) -> RecvError {
        if self.shared.is_over() { RecvError::CutOff } else { RecvError::Closed }
    }

    /// The next message, if it is there.
    ///
    /// # Errors
    /// There is none now, or never will be.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        match self.receiver.try_recv() {
            Ok(delivery) => Ok(delivery.into_inner()),
            Err(crossbeam_channel::TryRecvError::Empty) => Err(TryRecvError::Empty),
            Err(crossbeam_channel::TryRecvError::Disconnected) => Err(self.ended().into()),
        }
    }

    /// The next message, for who polls. The task of the last call is woken.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        // Twice: a message that comes between a look and the registration wakes nobody.
        for is_registered in [false, true] {
            if is_registered {
                self.shared.waker.register(context.waker());
            }
            match self.try_recv() {
                Ok(message) => return Poll::Ready(Ok(message)),
                Err(TryRecvError::Ended(error)) => return Poll::Ready(Err(error)),
                Err(TryRecvError::Empty) => {}
            }
        }
        Poll::Pending
    }

    /// Waits for the next message, on any executor. Dropped before it is done it has taken nothing, so that it can stand in a `select!`.
    ///
    /// # Errors
    /// There will be none.
    pub async fn recv(&mut self) -> Result<T, RecvError> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Waits for the next message, and blocks the thread meanwhile: not for tasks.
    ///
    /// # Errors
    /// There will be none.
    pub fn recv_blocking(&mut self) -> Result<T, RecvError> {
        self.receiver.recv().map(Delivery::into_inner).map_err(|_| self.ended())
    }

    /// The same, for at most `within`.
    ///
    /// # Errors
    /// None came in time, or there will be none.
    #[cfg(not(shardcast_loom))]
    pub fn recv_timeout(&mut self, within: Duration) -> Result<T, RecvTimeoutError> {
        match self.receiver.recv_timeout(within) {
            Ok(delivery) => Ok(delivery.into_inner()),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Err(RecvTimeoutError::Timeout),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Err(self.ended().into()),
        }
    }

    /// The queue itself, for `crossbeam_channel::select!` over several subscriptions and channels of any kind. A receiver that is cloned from it and outlives the
    /// subscription gets what was in the queue, and nothing more.
    ///
    /// ```
    /// # use shardcast::events::Bus;
    /// let (numbers, words) = (Bus::new(), Bus::<&str>::new());
    /// let (even, hello) = (numbers.subscribe("even")?, words.subscribe("hello")?);
    /// numbers.publish("even", 2);
    /// crossbeam_channel::select! {
    ///     recv(even.receiver()) -> number => assert_eq!(number?.into_inner(), 2),
    ///     recv(hello.receiver()) -> word => println!("{}", word?.into_inner()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(not(shardcast_loom))]
    pub fn receiver(&self) -> &Receiver<Delivery<T>> {
        &self.receiver
    }
}

// A message is moved into the queue and out of it, and never pinned there.
impl<T> Unpin for Subscription<T> {}

impl<T> Stream for Subscription<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.get_mut().poll_recv(context).map(Result::ok)
    }
}

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(table) = self.table.upgrade() {
            table.remove(&self.topic, self.id);
        }
    }
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).field("topic", &self.topic).finish_non_exhaustive()
    }
}
