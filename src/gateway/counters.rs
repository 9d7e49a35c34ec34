//! What a shard counts, in atomics that the metrics page reads at any time.
//!
//! Each shard has its own [`Counters`] and is its only writer, so an increment is a plain load and store: no locked instruction, no
//! cache line that two shards write. Readers see each value as of some recent moment; nothing relates two of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::close_cause::CloseCause;
use crate::proto::gap::GapReason;

/// Everything that one shard counts. The names in metrics are these, with `shardcast_` in front (docs/protocol.md, Metrics).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Live connections by what they speak now: `http` until an upgrade, then `ws`.
    pub connections: ByLabel<Gauge, Transport, { Transport::COUNT }>,
    /// What became of clients that connected.
    pub accepts: ByLabel<Counter, AcceptResult, { AcceptResult::COUNT }>,
    /// What was answered to request heads.
    pub handshakes: ByLabel<Counter, HandshakeResult, { HandshakeResult::COUNT }>,
    /// Connections that ended, by cause.
    pub closes: ByLabel<Counter, CloseCause, { CloseCause::COUNT }>,
    /// Messages that clients sent, once each.
    pub messages_in: Counter,
    /// Their payload bytes.
    pub messages_in_bytes: Counter,
    /// Frames whose send was completed: one for each message and receiver.
    pub deliveries: Counter,
    /// Bytes of frames whose send was started.
    pub deliveries_bytes: Counter,
    /// Frames that were queued for a connection and will never be sent.
    pub drops: ByLabel<Counter, DropReason, { DropReason::COUNT }>,
    /// Times that a reader was told that messages are missing, by reason.
    pub gaps: ByLabel<Counter, GapLabel, { GapLabel::COUNT }>,
    /// Messages that were not taken because their connection, its address, or the topic has as many as it may, by the bound.
    pub rate_limited: ByLabel<Counter, RateLimit, { RateLimit::COUNT }>,
    /// Messages that were not taken because they could not have gone on to NATS.
    pub nats_refused: Counter,
    /// Connections that were told an announcement, once for each.
    pub announced: Counter,
    /// Messages compressed, each once for all who are sent it so in its form; and by how many bytes that has made them shorter.
    pub deflated: Counter,
    /// See there.
    pub deflated_bytes_saved: Counter,
    /// Compressed messages that came from clients.
    pub inflated: Counter,
    /// Changes of who is in a topic, once for each watcher that was told.
    pub presence_told: Counter,
    /// Messages given out of a topic's history.
    pub replayed: Counter,
    /// Memory of the histories of topics whose home is this shard.
    pub history_bytes: Gauge,
    /// Topics whose home is this shard.
    pub topics: Gauge,
    /// Messages that wait in this shard's mailboxes.
    pub mailbox_depth: Gauge,
    /// Wake-ups that this shard sent to sleeping shards.
    pub wakes: Counter,
    /// Times that reading from a publisher paused because a topic was behind.
    pub publishers_paused: Counter,
    /// Times a connection waited for a free receive buffer.
    pub recv_starved: Counter,
    /// Times that accepting paused because descriptors or memory ran out.
    pub accept_paused: Counter,
    /// Connections that were taken over from the process before.
    pub inherited: Counter,
    /// Pings sent to quiet clients.
    pub pings: Counter,
    /// Log lines that were counted instead of written.
    pub log_suppressed: Counter,
    /// Turns of the shard's loop.
    pub loop_turns: Counter,
    /// Time a turn took, without its wait.
    pub loop_seconds: Histogram,
    /// From a message's entry into the subscriber's shard to the completion of its send.
    pub delivery_seconds: Histogram,
}

/// A number that only grows. One writer; any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the shard that owns the counter may call this: it is a load and a store.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. One writer; any number of readers.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `n`. Only the shard that owns the gauge may call this.
    pub fn add(&self, n: u64) {
        self.set(self.value() + n);
    }

    /// Takes `n` away. Only the shard that owns the gauge may call this.
    pub fn sub(&self, n: u64) {
        let value = self.value();
        debug_assert!(value >= n, "gauge of {value} cannot fall by {n}: something was counted down twice");
        self.set(value.saturating_sub(n));
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations, sorted into buckets whose upper bounds are powers of two in nanoseconds: 1.024 µs, 2.048 µs, … 17.2 s, and one for the rest.
///
/// The count is the sum of the buckets, so that the two agree however a reader interleaves with the writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BUCKETS],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Buckets, the last one (without an upper bound) included.
    pub const BUCKETS: usize = 26;
    /// The first bucket takes up to two to the power of this, in nanoseconds.
    const FIRST_EXPONENT: u32 = 10;

    /// Sorts one duration in. Only the shard that owns the histogram may call this.
    pub fn record(&self, duration: Duration) {
        self.record_many(duration, 1);
    }

    /// Sorts the same duration in `n` times, for frames that went out as one send.
    pub fn record_many(&self, duration: Duration, n: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = &self.buckets[Self::bucket_of(nanos)];
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        // Wraps after 584 years of summed time; who reads rates sees that as a restart of the counter.
        let sum = self.sum_nanos.load(Ordering::Relaxed).wrapping_add(nanos.wrapping_mul(n));
        self.sum_nanos.store(sum, Ordering::Relaxed);
    }

    /// The upper bound of a bucket in seconds; infinity for the last.
    pub fn upper_bound_seconds(bucket: usize) -> f64 {
        if bucket + 1 >= Self::BUCKETS {
            return f64::INFINITY;
        }
        (1u64 << (Self::FIRST_EXPONENT as usize + bucket)) as f64 / 1e9
    }

    /// How many durations each bucket holds; not cumulative.
    pub fn values(&self) -> [u64; Self::BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed))
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed))
    }

    fn bucket_of(nanos: u64) -> usize {
        let exponent = u64::BITS - nanos.saturating_sub(1).leading_zeros();
        (exponent.saturating_sub(Self::FIRST_EXPONENT) as usize).min(Self::BUCKETS - 1)
    }
}

/// A value of a label: one of a small, closed set.
pub trait Label: Copy + 'static {
    /// The values, in the order of their indices.
    const VALUES: &'static [Self];

    /// Position in [`VALUES`](Self::VALUES).
    fn index(self) -> usize;

    /// What metrics print.
    fn text(self) -> &'static str;
}

/// One metric for each value of a label.
#[derive(Debug)]
pub struct ByLabel<M, L, const N: usize> {
    metrics: [M; N],
    label: std::marker::PhantomData<fn(L)>,
}

impl<M: Default, L, const N: usize> Default for ByLabel<M, L, N> {
    fn default() -> Self {
        Self { metrics: std::array::from_fn(|_| M::default()), label: std::marker::PhantomData }
    }
}

impl<M, L: Label, const N: usize> ByLabel<M, L, N> {
    /// The metric of this label value.
    pub fn of(&self, label: L) -> &M {
        &self.metrics[label.index()]
    }
}

impl Label for CloseCause {
    const VALUES: &'static [Self] = Self::ALL;

    fn index(self) -> usize {
        self as usize
    }

    fn text(self) -> &'static str {
        self.label()
    }
}

macro_rules! labels {
    ($($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $value:ident = $text:literal,)+ })+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $doc])+ $value,)+
        }

        impl $name {
            /// How many values there are.
            pub const COUNT: usize = <Self as Label>::VALUES.len();
        }

        impl Label for $name {
            const VALUES: &'static [Self] = &[$(Self::$value,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }
    )+};
}

labels! {
    /// What a connection speaks.
    Transport {
        /// A request head is awaited, read or answered.
        Http = "http",
        /// Upgraded to WebSocket.
        Ws = "ws",
        /// A stream of events.
        Sse = "sse",
    }

    /// What became of a client that connected, or why none could.
    AcceptResult {
        /// Taken up.
        Ok = "ok",
        /// Taken up just to be told that the gateway is full.
        OverCapacity = "over_capacity",
        /// Taken up just to be told that their address has as many connections as one may have.
        AddressLimited = "address_limited",
        /// Closed at once: no room was left even to tell it.
        Dropped = "dropped",
        /// Not accepted: the process or the system had no descriptor left.
        FdExhausted = "fd_exhausted",
        /// Not accepted for another reason.
        Error = "error",
    }

    /// What was answered to a request head: an upgrade, or an HTTP status.
    HandshakeResult {
        /// 101: a WebSocket now.
        Upgraded = "upgraded",
        /// A browser that is unwelcome: upgraded, to be closed at once with a code that its page can read.
        Refused = "refused",
        /// 200.
        Ok = "200",
        /// 400.
        BadRequest = "400",
        /// 403.
        Forbidden = "403",
        /// 404.
        NotFound = "404",
        /// 405.
        MethodNotAllowed = "405",
        /// 408.
        Timeout = "408",
        /// 413.
        ContentTooLarge = "413",
        /// 426.
        UpgradeRequired = "426",
        /// 429.
        TooManyRequests = "429",
        /// 431.
        HeadTooLarge = "431",
        /// 503.
        Unavailable = "503",
        /// 505.
        VersionNotSupported = "505",
        /// Any other status.
        Other = "other",
    }

    /// A bound to what is published, by its key in `[limits]`.
    RateLimit {
        /// Messages of one connection.
        Messages = "messages_per_second",
        /// Their bytes.
        Bytes = "message_bytes_per_second",
        /// Messages of one address.
        MessagesOfAddress = "messages_per_second_per_address",
        /// Their bytes.
        BytesOfAddress = "message_bytes_per_second_per_address",
        /// Messages of one topic.
        MessagesOfTopic = "messages_per_second_per_topic",
        /// Their bytes.
        BytesOfTopic = "message_bytes_per_second_per_topic",
    }

    /// Why messages are missing for a reader that comes back.
    GapLabel {
        /// They are not kept any more.
        TooOld = "too_old",
        /// Offsets have started again.
        Restart = "restart",
        /// Nobody can say what its position means.
        Unknown = "unknown",
        /// It was too slow.
        Slow = "slow",
    }

    /// Why a queued frame will never be sent.
    DropReason {
        /// Its reader was slow, and a newer one of its key replaces it, as the topic's rule says.
        Conflate = "conflate",
        /// Its reader was slow, and the topic's rule leaves out the oldest messages for such readers.
        DropOldest = "drop_oldest",
        /// Its reader was ended for being slow.
        SlowConsumer = "slow_consumer",
        /// Its reader's connection ended for another reason.
        ConnectionClosed = "connection_closed",
        /// The gateway shut down.
        Shutdown = "shutdown",
    }
}

impl From<GapReason> for GapLabel {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::TooOld => Self::TooOld,
            GapReason::Restart => Self::Restart,
            GapReason::Unknown => Self::Unknown,
            GapReason::Slow => Self::Slow,
        }
    }
}

impl HandshakeResult {
    /// The result that an HTTP status is counted as.
    pub const fn of_status(status: u16) -> Self {
        match status {
            101 => Self::Upgraded,
            200 => Self::Ok,
            400 => Self::BadRequest,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            408 => Self::Timeout,
            413 => Self::ContentTooLarge,
            426 => Self::UpgradeRequired,
            429 => Self::TooManyRequests,
            431 => Self::HeadTooLarge,
            503 => Self::Unavailable,
            505 => Self::VersionNotSupported,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_first_bucket_whose_bound_is_not_below_it() {
        for nanos in [0, 1, 1023, 1024, 1025, 2048, 2049, 1_000_000, 1 << 34, (1 << 34) + 1, u64::MAX] {
            let bucket = Histogram::bucket_of(nanos);
            let seconds = nanos as f64 / 1e9;
            assert!(seconds <= Histogram::upper_bound_seconds(bucket), "{nanos} ns is above bucket {bucket}");
            assert!(bucket == 0 || seconds > Histogram::upper_bound_seconds(bucket - 1), "{nanos} ns fits a bucket before {bucket}");
        }
    }

    #[test]
    fn a_histogram_sums_what_it_records() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        histogram.record_many(Duration::from_millis(1), 4);
        assert_eq!(histogram.sum(), Duration::from_micros(4003));
        assert_eq!(histogram.values().iter().sum::<u64>(), 5);
    }

    #[test]
    fn labels_have_distinct_texts_and_index_their_own_metric() {
        fn check<L: Label + PartialEq + std::fmt::Debug>() {
            for (index, value) in L::VALUES.iter().enumerate() {
                assert_eq!(value.index(), index);
                assert_eq!(L::VALUES.iter().filter(|other| other.text() == value.text()).count(), 1, "{value:?}");
            }
        }
        check::<Transport>();
        check::<AcceptResult>();
        check::<HandshakeResult>();
        check::<DropReason>();
        check::<GapLabel>();
        check::<RateLimit>();
        check::<CloseCause>();
    }

    #[test]
    fn a_status_is_counted_under_its_own_number() {
        for result in HandshakeResult::VALUES {
            if let Ok(status) = result.text().parse() {
                assert_eq!(HandshakeResult::of_status(status), *result);
            }
        }
    }

    #[test]
    fn shards_never_share_a_cache_line() {
        assert_eq!(align_of::<Counters>(), 128);
    }
}
