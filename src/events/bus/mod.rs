//! The bus of one process: values of one type, by topics, each subscriber with a bounded queue of its own. Publishers never wait, but in
//! `publish_async`, for those who want it so.
//!
//! There is no lock and no task behind it. `table` is who sits where, `seat` the publishers' end of a queue, `subscription` the subscriber's.

mod parts;
mod seat;
mod subscription;
mod table;
#[cfg(all(test, not(shardcast_loom)))]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::parts::Counted;
use self::seat::{Offer, Seat};
use self::table::Table;

pub use self::seat::Delivery;
pub use self::subscription::{RecvError, RecvTimeoutError, Subscription, TryRecvError};

/// Messages in a queue where nothing else was said.
const QUEUE_MESSAGES: usize = 256;
/// Messages that a queue may have room for at most; it is allocated at once.
pub const QUEUE_MESSAGES_MAX: usize = 1 << 20;
/// Bytes of a topic's name at most, as in the gateway.
pub const TOPIC_BYTES_MAX: usize = 255;
/// Subscribers of a bus, where nothing else was said.
const SUBSCRIBERS: usize = 100_000;

/// What a publisher does when a subscriber's queue is full. Each subscriber has its own; others notice nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Lag {
    /// The message is not queued: what waits already is kept.
    #[default]
    DropNewest,
    /// The oldest message in the queue is thrown away: who comes late sees what is new.
    DropOldest,
    /// The subscriber is cut off. It gets what was in its queue, and then [`RecvError::CutOff`]: never a hole that it does not know of.
    Disconnect,
    /// [`Bus::publish_async`] waits for room, up to its deadline, in the order of the calls. [`Bus::publish`] never waits, and drops the message.
    Wait,
}

/// A subscriber of a bus, for as long as the bus lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubscriberId(u64);

impl std::fmt::Display for SubscriberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "subscriber {}", self.0)
    }
}

/// How a subscriber wants its queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscribeOptions {
    /// Messages that its queue holds: 1 to [`QUEUE_MESSAGES_MAX`], 256 if nothing is said.
    pub queue_messages: usize,
    /// What happens when it is full.
    pub lag: Lag,
    /// What reports call it.
    pub name: Option<Arc<str>>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { queue_messages: QUEUE_MESSAGES, lag: Lag::default(), name: None }
    }
}

/// Bounds of a bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusOptions {
    /// Subscribers of all topics together. A topic is there while it has one, so this bounds topics too. 100,000 if nothing is said.
    pub subscribers_max: usize,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self { subscribers_max: SUBSCRIBERS }
    }
}

/// Why nobody was subscribed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubscribeError {
    /// The name of the topic.
    #[error("a topic's name has 1 to {TOPIC_BYTES_MAX} bytes, this one {0}")]
    Topic(usize),
    /// The size of the queue.
    #[error("a queue holds 1 to {QUEUE_MESSAGES_MAX} messages, {0} were asked for")]
    Queue(usize),
    /// As many as may be.
    #[error("the bus has {0} subscribers, its limit (BusOptions::subscribers_max); drop some, or allow more")]
    Full(usize),
}

/// A subscriber that was behind when a message was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lagged {
    /// Which one.
    pub subscriber: SubscriberId,
    /// The name that it has given itself.
    pub name: Option<Arc<str>>,
    /// What was done: its own policy. With [`Lag::Wait`] there was no room, or none before the deadline.
    pub policy: Lag,
    /// How many messages it has missed by now.
    pub missed: u64,
}

/// What became of a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Queues that it is in.
    pub delivered: usize,
    /// Subscribers that lagged: empty, and not allocated, if all is well.
    pub lagged: Vec<Lagged>,
}

/// A bus for messages of one type, by topics. Clones are handles on the same bus; when the last is dropped, subscribers get what is in their queues, and then
/// [`RecvError::Closed`].
///
/// A message is cloned for each subscriber but one; put what is large behind an [`Arc`]. The messages of one publisher come to each subscriber of a topic in their order.
/// Where several publish at once, their messages may be mixed differently for different subscribers.
///
/// ```
/// use shardcast::events::Bus;
///
/// let bus = Bus::new();
/// let mut orders = bus.subscribe("orders")?;
/// let published = bus.publish("orders", "an order");
/// assert_eq!((published.delivered, published.lagged.len()), (1, 0));
/// assert_eq!(orders.recv_blocking()?, "an order");
/// drop(orders);
/// assert_eq!(bus.publish("orders", "nobody is there").delivered, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bus<T>(Arc<Inner<T>>);

struct Inner<T> {
    table: Arc<Table<T>>,
    ids: AtomicU64,
}

impl<T> Clone for Bus<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone + Send> Default for Bus<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> std::fmt::Debug for Bus<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("topics", &self.0.table.topics()).finish_non_exhaustive()
    }
}

impl<T: Clone + Send> Bus<T> {
    /// A bus with the default bounds.
    pub fn new() -> Self {
        Self::with(BusOptions::default())
    }

    /// A bus with bounds of your own.
    pub fn with(options: BusOptions) -> Self {
        Self(Arc::new(Inner { table: Arc::new(Table::new(options.subscribers_max)), ids: AtomicU64::new(0) }))
    }

    /// Subscribes with a queue of 256 messages and [`Lag::DropNewest`]. What is published from now on comes.
    ///
    /// # Errors
    /// The name is empty or too long, or there are as many subscribers as may be.
    pub fn subscribe(&self, topic: &str) -> Result<Subscription<T>, SubscribeError> {
        self.subscribe_with(topic, SubscribeOptions::default())
    }

    /// Subscribes with a queue of your own size and policy.
    ///
    /// ```
    /// # use shardcast::events::{Bus, Lag, SubscribeOptions};
    /// let bus = Bus::new();
    /// let newest = SubscribeOptions { queue_messages: 1, lag: Lag::DropOldest, name: Some("display".into()) };
    /// let mut price = bus.subscribe_with("price", newest)?;
    /// bus.publish("price", 1);
    /// let published = bus.publish("price", 2);
    /// assert_eq!(published.lagged[0].name.as_deref(), Some("display"));
    /// assert_eq!((price.recv_blocking()?, price.missed()), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The name or the size of the queue is out of bounds, or there are as many subscribers as may be.
    pub fn subscribe_with(&self, topic: &str, options: SubscribeOptions) -> Result<Subscription<T>, SubscribeError> {
        if !(1..=TOPIC_BYTES_MAX).contains(&topic.len()) {
            return Err(SubscribeError::Topic(topic.len()));
        }
        if !(1..=QUEUE_MESSAGES_MAX).contains(&options.queue_messages) {
            return Err(SubscribeError::Queue(options.queue_messages));
        }
        let table = &self.0.table;
        let topic: Arc<str> = topic.into();
        let id = SubscriberId(self.0.ids.fetch_add(1, Ordering::Relaxed));
        let (seat, receiver, shared) = Seat::new(id, options);
        table.try_add(&topic, seat).map_err(SubscribeError::Full)?;
        Ok(Subscription { receiver, shared, table: Arc::downgrade(table), topic, id })
    }

    /// Puts a message into the queue of everybody who is subscribed to the topic, and says who had no room for it. Never waits, on nobody.
    pub fn publish(&self, topic: &str, message: T) -> Published {
        let mut published = Published::default();
        self.offer_all(topic, message, |seat, offer| self.note(&mut published, topic, seat, offer));
        published
    }

    /// The same, and waits for up to `within` for room in the queues of those who want to be waited for ([`Lag::Wait`]). They are waited for side by side: one
    /// that is stuck takes nothing from the others. Who calls first is first in each queue. A call that is dropped before it is done has
    /// reached whom it has reached.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shardcast::events::{Bus, Lag, SubscribeOptions};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// let bus = Bus::new();
    /// let patient = SubscribeOptions { queue_messages: 1, lag: Lag::Wait, name: None };
    /// let mut jobs = bus.subscribe_with("jobs", patient)?;
    /// bus.publish("jobs", 1);
    /// let (published, first) = tokio::join!(bus.publish_async("jobs", 2, Duration::from_secs(1)), jobs.recv());
    /// assert_eq!((published.delivered, first?, jobs.recv().await?), (1, 1, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?; Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// Outside of a tokio runtime with time, if somebody has to be waited for.
    #[cfg(not(shardcast_loom))]
    pub async fn publish_async(&self, topic: &str, message: T, within: std::time::Duration) -> Published {
        let mut published = Published::default();
        let mut waiting = Vec::new();
        self.offer_all(topic, message, |seat, offer| match offer {
            Offer::Full(message) => waiting.push((Counted::clone(seat), message)),
            offer => self.note(&mut published, topic, seat, offer),
        });
        if waiting.is_empty() {
            return published;
        }
        // In their place in each queue of waiters from the first poll on.
        let mut waiting: Vec<_> = waiting
            .into_iter()
            .map(|(seat, message)| {
                let own = Counted::clone(&seat);
                (seat, Box::pin(async move { own.put_when_room(message).await }))
            })
            .collect();
        let delivered = &mut published.delivered;
        let all = std::future::poll_fn(|context| {
            waiting.retain_mut(|(_, put)| match put.as_mut().poll(context) {
                std::task::Poll::Ready(is_taken) => {
                    *delivered += usize::from(is_taken);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        let _ = tokio::time::timeout(within, all).await;
        for (seat, _) in waiting {
            seat.miss();
            published.lagged.push(seat.lagged());
        }
        published
    }

    /// How many are subscribed to a topic.
    pub fn subscribers(&self, topic: &str) -> usize {
        self.0.table.look(topic, <[_]>::len)
    }

    /// How many topics have subscribers.
    pub fn topics(&self) -> usize {
        self.0.table.topics()
    }

    fn offer_all(&self, topic: &str, message: T, mut each: impl FnMut(&Counted<Seat<T>>, Offer<T>)) {
        self.0.table.look(topic, |seats| {
            let Some((last, others)) = seats.split_last() else { return };
            others.iter().for_each(|seat| each(seat, seat.offer(message.clone())));
            each(last, last.offer(message));
        });
    }

    fn note(&self, published: &mut Published, topic: &str, seat: &Seat<T>, offer: Offer<T>) {
        match offer {
            Offer::Taken => published.delivered += 1,
            Offer::Gone => {}
            Offer::TakenForOldest => {
                published.delivered += 1;
                published.lagged.push(seat.lagged());
            }
            Offer::Dropped => published.lagged.push(seat.lagged()),
            Offer::Full(_) => {
                seat.miss();
                published.lagged.push(seat.lagged());
            }
            Offer::CutOff => {
                seat.miss();
                published.lagged.push(seat.lagged());
                self.0.table.remove(topic, seat.id);
            }
        }
    }
}
