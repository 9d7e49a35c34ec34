//! Every bound of the gateway: its name, unit, default and reason, in one table.
//!
//! The table makes the struct, its defaults, the `[limits]` section of the configuration file, the `SHARDCAST_LIMITS_…`
//! environment twins and what `shardcast config show` prints. A bound that is not here does not exist.
#![forbid(unsafe_code)]

/// What kind of number a bound is, for messages and for `config show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Millis,
    /// A plain count.
    Count,
    /// Events per second.
    PerSecond,
}

impl Unit {
    /// The word to print after a number; empty for a count.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Millis => "ms",
            Self::Count => "",
            Self::PerSecond => "per second",
        }
    }
}

/// One row of the table.
pub struct Limit {
    /// Key in `[limits]`; the environment twin is `SHARDCAST_LIMITS_` and the key in capitals.
    pub name: &'static str,
    /// The kind of number.
    pub unit: Unit,
    /// The value when nothing is configured; 0 means "worked out at start" where the text says so.
    pub default: u64,
    /// The smallest value accepted.
    pub min: u64,
    /// The largest value accepted.
    pub max: u64,
    /// What it bounds and why the default is what it is.
    pub about: &'static str,
    /// Reads the value.
    pub value: fn(&Limits) -> u64,
    /// Writes the value; the caller has checked `min` and `max`.
    pub set: fn(&mut Limits, u64),
}

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $unit:ident = $default:expr, $min:expr => $max:expr;)+) => {
        /// Every bound, by name. Immutable once the gateway runs.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        /// The table behind [`Limits`].
        pub const TABLE: &[Limit] = &[
            $(Limit {
                name: stringify!($name),
                unit: Unit::$unit,
                default: $default,
                min: $min,
                max: $max,
                about: concat!($($doc,)+),
                value: |limits| limits.$name,
                set: |limits, value| limits.$name = value,
            },)+
        ];

        $(const _: () = assert!(fits($min, $default, $max), stringify!($name));)+
    };
}

const fn fits(min: u64, default: u64, max: u64) -> bool {
    min <= default && default <= max
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

limits! {
    /// Clients at once in the process; 0 takes what the file descriptor limit allows. Beyond it a client is told 4503 or 503 with a time to come back.
    connections_max: Count = 0, 0 => 16_000_000;
    /// Connections over `connections_max` or `connections_per_address` that a shard holds just to tell them so; beyond it those already accepted are dropped, and the next ones wait in the kernel's backlog while nobody can be served.
    refusals_max: Count = 256, 1 => 65_536;
    /// Connections that wait in the kernel for each shard's listener (also bounded by net.core.somaxconn).
    backlog: Count = 4096, 1 => 65_535;
    /// How long the kernel keeps a client that has not sent anything from being accepted (TCP_DEFER_ACCEPT, whole seconds). Who speaks at once is served with fewer wake-ups, and who never speaks takes no descriptor until then. 0 accepts at once.
    accept_defer_ms: Millis = 1_000, 0 => 60_000;
    /// Messages of clients that a shard takes in one turn before it sends them on and looks at everything else. With `compression` each 4 KiB that are compressed count as one more.
    messages_per_turn: Count = 1024, 1 => 1_000_000;
    /// Request heads that a shard answers in one turn: those who are there are served before more of a crowd that comes at once.
    requests_per_turn: Count = 32, 1 => 65_536;
    /// Bytes of histories that a shard gives out in one turn, and one piece more: who comes back to much does not hold up who is there.
    replay_bytes_per_turn: Bytes = 512 * KIB, KIB => GIB;
    /// Payload of one message, all fragments together. Larger ones close the connection with 1009.
    message_bytes_max: Bytes = 64 * KIB, 125 => GIB;
    /// The smallest payload that is compressed for clients that have agreed to it (`compression`); below it hardly anything is saved.
    deflate_bytes_min: Bytes = 128, 0 => GIB;
    /// Bytes that a shard inflates of clients' compressed messages in one turn, and one message more; who has more to say waits for the next. A small message may inflate to a thousand times its size.
    inflate_bytes_per_turn: Bytes = 4 * MIB, 4 * KIB => GIB;
    /// Request line and headers together. Larger ones are answered 431.
    head_bytes_max: Bytes = 16 * KIB, 512 => MIB;
    /// Time for the whole request head, from accept, or from its first bytes on a connection kept alive. Slower clients are answered 408.
    head_timeout_ms: Millis = 10_000, 100 => 600_000;
    /// How long an HTTP connection may wait for its next request.
    keepalive_ms: Millis = 30_000, 100 => 3_600_000;
    /// A WebSocket that has said nothing for this long is sent a ping. Below the 60 s after which proxies commonly give an idle connection up.
    ping_interval_ms: Millis = 45_000, 100 => 3_600_000;
    /// How long after a ping something must come in before the connection is ended with 4504.
    pong_timeout_ms: Millis = 10_000, 100 => 600_000;
    /// Bytes queued for one connection, while a send waits for its peer, before it is ended with 4508.
    queue_bytes_max: Bytes = MIB, 4 * KIB => GIB;
    /// Bytes of one topic queued for one reader, while a send waits for its peer, above which the topic's rule in `slow` leaves messages out for it.
    queue_soft_bytes: Bytes = 256 * KIB, KIB => GIB;
    /// Frames queued for one connection, while a send waits for its peer, before it is ended with 4508.
    queue_frames_max: Count = 16_384, 16 => 16_777_216;
    /// How long a reader's send may take before the reader no longer holds back the publishers of its topic; from then on its queue is its own affair.
    reader_hold_ms: Millis = 50, 0 => 60_000;
    /// How long a send may wait for its peer without a byte of progress before the connection is ended with 4508.
    write_stall_ms: Millis = 10_000, 100 => 600_000;
    /// From the decision to end a connection: how long its last bytes may take, and the peer to close too; then it is reset.
    linger_ms: Millis = 5_000, 10 => 60_000;
    /// Bytes handed to the kernel in one send; always whole frames, and at least two of them when two wait.
    send_bytes_max: Bytes = 64 * KIB, KIB => 16 * MIB;
    /// Answers of `/echo` or of `shardcast.v1.json` queued for one connection before reading from it pauses.
    echo_bytes_max: Bytes = 64 * KIB, KIB => 64 * MIB;
    /// For how long messages to a connection of `shardcast.v1.json` that takes batches wait for others, when something was sent so shortly before; with 0 none waits.
    batch_ms: Millis = 10, 0 => 1000;
    /// Messages of one connection of `shardcast.v1.json` on their way to their topics before reading from it pauses.
    json_publishes_max: Count = 64, 1 => 65_536;
    /// Topics in the process. Who asks for a new one beyond it is closed with 4503.
    topics_max: Count = 1_000_000, 1 => 1_000_000_000;
    /// Members of one topic over all shards, those included who are still given what was before they came; 0 sets no bound. Who asks for a full one is told 4503 or 503 with a time to come back.
    topic_subscribers_max: Count = 0, 0 => 16_000_000;
    /// Topics in one answer of `/v1/topics`; 0 lists none, and who knows no name learns none.
    topics_listed: Count = 1000, 0 => 100_000;
    /// Members of a topic, of those in `presence`, that are named to who asks or watches; of more only the number is told, until a quarter of them has gone.
    presence_members_max: Count = 200, 1 => 100_000;
    /// How long changes of who is in a topic gather until watchers are told; five times as long where only the number is told.
    presence_tick_ms: Millis = 200, 10 => 60_000;
    /// Patterns (`subscribe` with `pattern`) of one connection of `shardcast.v1.json`.
    wildcards_max: Count = 16, 1 => 1024;
    /// Topics that its patterns bring to one connection, besides those it names; more are left out, and it is told so.
    wildcard_topics_max: Count = 256, 1 => 16_384;
    /// Newest messages of a topic that are kept for those who come back, an eighth more at times; 0 keeps none.
    history_messages: Count = 100, 0 => 1_000_000;
    /// How long they are kept, a second more at times.
    history_age_ms: Millis = 300_000, 1_000 => 604_800_000;
    /// Bytes of the histories of all topics, beside `queued_bytes_max`; 0 takes an eighth of the memory that the cgroup or the machine allows. Beyond it the topics looked at longest ago lose the older half of theirs.
    history_bytes_max: Bytes = 0, 0 => 1024 * GIB;
    /// Topics that are gone and whose last offset a shard remembers, so that who comes back to one is not told of a gap that there is not; and how much of its rates a topic had used.
    topics_remembered: Count = 65_536, 0 => 16_777_216;
    /// A stream of events that was sent nothing for this long is sent a comment.
    sse_heartbeat_ms: Millis = 15_000, 100 => 3_600_000;
    /// Time for the whole body of a request, from its head. Slower clients are answered 408.
    body_timeout_ms: Millis = 30_000, 100 => 600_000;
    /// Body of a request that publishes several messages; larger ones are answered 413. Of one message `message_bytes_max` is the bound.
    body_bytes_max: Bytes = MIB, 128 => GIB;
    /// Messages in one request.
    publish_items_max: Count = 1000, 1 => 1_000_000;
    /// Idempotency keys that a shard remembers.
    idempotency_keys: Count = 65_536, 0 => 16_777_216;
    /// How long it remembers them.
    idempotency_ms: Millis = 120_000, 0 => 86_400_000;
    /// Publishers that wait at once, for each shard that is home to their topics, until their message was sent to everyone (`ack=sent`).
    receipts_max: Count = 1024, 0 => 1_048_576;
    /// The longest time that a poll waits for a message.
    poll_wait_ms: Millis = 60_000, 100 => 600_000;
    /// Messages of a shard that wait to be handed to NATS. Beyond it, and a batch at most, whoever publishes to a topic that goes there waits or is answered 429.
    nats_outbox_messages: Count = 8192, 16 => 1_048_576;
    /// Their bytes.
    nats_outbox_bytes_max: Bytes = 4 * MIB, 4 * KIB => GIB;
    /// Messages from NATS that wait to be taken by a shard. What comes beyond it is dropped and counted, as NATS itself does with readers that are behind.
    nats_inbox_messages: Count = 8192, 16 => 1_048_576;
    /// Their bytes.
    nats_inbox_bytes_max: Bytes = 4 * MIB, 4 * KIB => GIB;
    /// Topics that NATS is asked for, over all shards; each takes about 8 KiB. Who asks for another one is closed with 4503.
    nats_subscriptions_max: Count = 10_000, 1 => 1_000_000;
    /// How long NATS is still asked for a topic that nobody here wants any more: who polls comes back.
    nats_interest_ms: Millis = 60_000, 0 => 3_600_000;
    /// From one try to connect to NATS to the next, a quarter more or less. The first one after a loss is made at once.
    nats_reconnect_wait_ms: Millis = 2_000, 10 => 600_000;
    /// Tries to connect to NATS in a row; 0 sets no bound. Beyond it nobody tries again, and `/readyz` says so until the process is started anew.
    nats_reconnects_max: Count = 0, 0 => 1_000_000;
    /// How often a quiet connection to NATS is asked whether it lives; two answers may be missing before it is taken for lost.
    nats_ping_ms: Millis = 2_000, 100 => 600_000;
    /// How long NATS may be away before `/readyz` answers 503.
    nats_grace_ms: Millis = 5_000, 0 => 3_600_000;
    /// Messages that the stream `nats.stream` keeps.
    nats_stream_messages_max: Count = 1_000_000, 1 => 1_000_000_000_000;
    /// How long it keeps them.
    nats_stream_age_ms: Millis = 604_800_000, 1_000 => 31_536_000_000;
    /// Within which time it takes a message id for the same message.
    nats_stream_duplicates_ms: Millis = 120_000, 100 => 86_400_000;
    /// How long a message may wait for the stream's acknowledgement, and is sent again meanwhile; then, or once there was no connection
    /// for a second, its publisher is told that it failed. At most half of `nats_stream_duplicates_ms`.
    nats_ack_ms: Millis = 15_000, 100 => 600_000;
    /// Requests for messages of the past that a shard has with the stream. Whoever needs another one is asked to come back.
    nats_fetches_max: Count = 1024, 1 => 1_048_576;
    /// On how many servers of a cluster it keeps each message.
    nats_stream_replicas: Count = 1, 1 => 5;
    /// The longest line that the servers take (their `max_control_line`). Rules that can lead to longer ones are refused at start.
    nats_control_line_bytes: Bytes = 4 * KIB, 512 => 64 * KIB;
    /// Bytes by which a shard's fan-out of one topic may be behind before that topic's publishers pause.
    topic_lag_bytes_max: Bytes = MIB, 4 * KIB => GIB;
    /// Bytes of one topic on their way from a shard to the topic's home shard before that shard's publishers to it pause.
    publish_bytes_max: Bytes = 256 * KIB, 4 * KIB => GIB;
    /// Bytes of all queued messages in the process, as allocated; 0 takes a quarter of the memory that the cgroup or the machine allows. Beyond it the connection with most queued is ended with 4508, on each shard, and the next.
    queued_bytes_max: Bytes = 0, 0 => 1024 * GIB;
    /// The second segment of a topic that wakes up; the first is as large as its message. Small, so that a slow reader of a quiet topic pins little.
    segment_bytes_min: Bytes = KIB, 256 => MIB;
    /// The largest segment that a busy topic grows to.
    segment_bytes_max: Bytes = 64 * KIB, 4 * KIB => 16 * MIB;
    /// Receive buffers that all connections of a shard share; a power of two. When all are taken, reading waits.
    recv_buffers: Count = 1024, 8 => 32_768;
    /// Size of one shared receive buffer.
    recv_buffer_bytes: Bytes = 4 * KIB, 512 => 64 * KIB;
    /// Submission queue of a shard's ring; halved at start while the memlock limit refuses it.
    ring_submissions: Count = 1024, 64 => 32_768;
    /// Completion queue of a shard's ring; halved with the submission queue.
    ring_completions: Count = 8192, 128 => 65_536;
    /// Sends that fan-out starts in one turn of a shard's loop, over all topics, before completions are looked at again.
    fanout_sends_per_turn: Count = 256, 1 => 65_536;
    /// Connections that a shard accepts in one turn of the epoll driver; on the ring the completions of a turn bound them, at 512 (docs/decisions/0019).
    accepts_per_turn: Count = 256, 1 => 65_536;
    /// Connections whose peers have gone that a shard takes down in one turn: a crowd that is gone at once does not hold up who is still there.
    teardowns_per_turn: Count = 64, 1 => 65_536;
    /// Connections that a shard says goodbye to in one turn, in a drain or a rebalance that has fallen behind its pace.
    closes_per_turn: Count = 256, 1 => 65_536;
    /// Messages that wait in the queue of one ordered pair of shards; more waits with the sender, bounded by its topics and connections.
    mailbox_messages: Count = 256, 16 => 65_536;
    /// Bytes not yet sent that the kernel holds for one connection (TCP_NOTSENT_LOWAT): the backlog stays in shared segments.
    notsent_bytes: Bytes = 16 * KIB, KIB => 16 * MIB;
    /// Connections at once from one address (of IPv6 from one /64); 0 sets no bound. Beyond it a client is told 429 or 4529 with a time to come back.
    connections_per_address: Count = 0, 0 => 16_000_000;
    /// WebSockets and streams that one address may open per second; 0 sets no bound. Beyond it likewise.
    handshakes_per_address: PerSecond = 0, 0 => 1_000_000;
    /// Messages that one connection may publish per second; 0 sets no bound. A WebSocket that goes on over it is closed with 4529, a request is answered 429.
    messages_per_second: PerSecond = 0, 0 => 1_000_000_000;
    /// The same for the bytes of their payloads.
    message_bytes_per_second: PerSecond = 0, 0 => 1_000_000_000_000;
    /// Messages that all connections of one address (of IPv6 of one /64) may publish per second; 0 sets no bound. Beyond it as for one connection.
    messages_per_second_per_address: PerSecond = 0, 0 => 1_000_000_000;
    /// The same for the bytes of their payloads.
    message_bytes_per_second_per_address: PerSecond = 0, 0 => 1_000_000_000_000;
    /// Messages that one topic takes per second, whoever publishes them; 0 sets no bound. Judged by the topic's home shard. Beyond it as for one connection.
    messages_per_second_per_topic: PerSecond = 0, 0 => 1_000_000_000;
    /// The same for the bytes of their payloads.
    message_bytes_per_second_per_topic: PerSecond = 0, 0 => 1_000_000_000_000;
    /// WebSockets and streams that the process opens per second; 0 sets no bound. Beyond it clients are told 4503 or 503 with a time to come back, before anything is done for them.
    handshakes_per_second: PerSecond = 0, 0 => 10_000_000;
    /// How much of a rate may be used at once after a quiet time: what it allows in so long.
    rate_burst_ms: Millis = 1_000, 1 => 600_000;
    /// Browsers cannot read an HTTP refusal: this many of them per second and shard are upgraded and closed with the code instead.
    polite_refusals_per_second: PerSecond = 100, 0 => 1_000_000;
    /// The window over which clients are told to come back, each at another point of it, whenever they are lost or turned away. It is longer where so many clients could come back faster than `handshakes_per_second`, or 10,000 a second and shard, allow.
    reconnect_window_ms: Millis = 10_000, 100 => 3_600_000;
    /// How long a shutdown may take, from the time at which it stops accepting; what is left then is reset and counted.
    drain_ms: Millis = 30_000, 100 => 3_600_000;
    /// Before that: how long a gateway that is not ready any more goes on accepting and serving, until load balancers have noticed.
    drain_wait_ms: Millis = 0, 0 => 3_600_000;
    /// The window over which goodbyes are spread evenly, in a shutdown and in a rebalance; 0 takes two thirds of `drain_ms`, so that the last ones still have time to close. It is longer, up to there, where so many clients could come back faster than `reconnect_window_ms` allows.
    drain_pace_ms: Millis = 0, 0 => 3_600_000;
    /// Goodbyes per second and process at least: few clients do not take the whole window.
    drain_rate_min: PerSecond = 200, 1 => 1_000_000;
    /// How long a hand-over to the next process may take before it is called off and this one serves on. Clients hear nothing meanwhile.
    handover_ms: Millis = 10_000, 100 => 600_000;
    /// Bytes that a connection's client is owed at most for the connection to be handed over; beyond them it ends with this process.
    handover_bytes_max: Bytes = MIB, 0 => GIB;
    /// Places of connections and topics that a shard looks at in one turn for the operator: a question about a million of them holds nobody up.
    inspect_slots_per_turn: Count = 2048, 1 => 1_000_000;
    /// Topics or connections in one answer of `/debug/topics` or `/debug/connections`.
    inspect_items_max: Count = 1000, 1 => 100_000;
    /// Connections that have ended and that a shard remembers for `/debug/connections`; 0 remembers none.
    closings_kept: Count = 256, 0 => 65_536;
    /// Log lines about single connections, per second and shard; the rest is counted and summed up in one line.
    log_lines_per_second: PerSecond = 20, 1 => 1_000_000;
}

/// Handshakes per second that a shard is taken to manage where `handshakes_per_second` does not say. A core does several times as many when it has
/// nothing else to do (docs/benchmarks.md); it has clients to serve, and proxies between may be slower.
const HANDSHAKES_PER_SHARD: u64 = 10_000;

impl Limits {
    /// Looks a row up by its key.
    pub fn find(name: &str) -> Option<&'static Limit> {
        TABLE.iter().find(|limit| limit.name == name)
    }

    /// Checks the bounds against each other.
    ///
    /// # Errors
    /// A sentence that names both bounds, their values, and what to change.
    pub fn check(&self) -> Result<(), String> {
        if !self.recv_buffers.is_power_of_two() {
            return Err(format!(
                "limits.recv_buffers is {}; it must be a power of two, for example {}",
                self.recv_buffers,
                self.recv_buffers.next_power_of_two()
            ));
        }
        if self.segment_bytes_min > self.segment_bytes_max {
            return Err(format!(
                "limits.segment_bytes_min is {}, above limits.segment_bytes_max {}; lower the first or raise the second",
                self.segment_bytes_min, self.segment_bytes_max
            ));
        }
        if self.queue_bytes_max < self.message_bytes_max {
            return Err(format!(
                "limits.queue_bytes_max is {}, below limits.message_bytes_max {}: one message would end every reader that is not idle; raise the first or lower the second",
                self.queue_bytes_max, self.message_bytes_max
            ));
        }
        if self.ring_completions < 2 * self.ring_submissions {
            return Err(format!(
                "limits.ring_completions is {}; it must be at least twice limits.ring_submissions {}",
                self.ring_completions, self.ring_submissions
            ));
        }
        if self.nats_stream_duplicates_ms > self.nats_stream_age_ms {
            return Err(format!(
                "limits.nats_stream_duplicates_ms is {}, above limits.nats_stream_age_ms {}: ids cannot be known for longer than their messages are kept",
                self.nats_stream_duplicates_ms, self.nats_stream_age_ms
            ));
        }
        if self.drain_pace_ms > self.drain_ms {
            return Err(format!(
                "limits.drain_pace_ms is {}, above limits.drain_ms {}: goodbyes would come after the end; lower the first or raise the second",
                self.drain_pace_ms, self.drain_ms
            ));
        }
        Ok(())
    }

    /// Clients per second that are asked to come back to this process: four fifths of the handshakes that it allows, or is taken to manage. The rest is
    /// for those who come without having been asked, and for chance.
    pub fn return_rate(&self, shards: u16) -> u64 {
        let handshakes =
            if self.handshakes_per_second > 0 { self.handshakes_per_second } else { HANDSHAKES_PER_SHARD * u64::from(shards.max(1)) };
        (handshakes * 4 / 5).max(1)
    }

    /// Over how long so many clients are asked to come back.
    pub fn return_window_ms(&self, clients: u64, shards: u16) -> u64 {
        self.reconnect_window_ms.max(self.return_time_ms(clients, shards))
    }

    /// Over how long goodbyes to so many clients are spread.
    pub fn drain_window_ms(&self, clients: u64, shards: u16) -> u64 {
        let usual_ms = self.drain_ms * 2 / 3;
        let window_ms = if self.drain_pace_ms > 0 { self.drain_pace_ms } else { usual_ms };
        let asked_ms = window_ms.min(clients.saturating_mul(1000) / self.drain_rate_min);
        asked_ms.max(self.return_time_ms(clients, shards).min(usual_ms))
    }

    fn return_time_ms(&self, clients: u64, shards: u16) -> u64 {
        clients.saturating_mul(1000) / self.return_rate(shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_reads_back_what_it_sets() {
        for row in TABLE {
            let mut limits = Limits::default();
            assert_eq!((row.value)(&limits), row.default, "{}", row.name);
            (row.set)(&mut limits, row.max);
            assert_eq!((row.value)(&limits), row.max, "{}", row.name);
        }
    }

    #[test]
    fn goodbyes_take_two_thirds_of_a_drain_and_few_of_them_less() {
        let limits = Limits::default();
        assert_eq!(limits.drain_window_ms(1_000_000, 2), 20_000);
        assert_eq!(limits.drain_window_ms(4000, 2), 20_000);
        assert_eq!(limits.drain_window_ms(3, 2), 15);
        assert_eq!(limits.drain_window_ms(0, 2), 0);
        let paced = Limits { drain_pace_ms: 5000, ..Limits::default() };
        assert_eq!(paced.drain_window_ms(80_000, 2), 5000);
        assert_eq!(paced.drain_window_ms(160_000, 2), 10_000, "no faster than they can come back");
        assert_eq!(paced.drain_window_ms(u64::MAX, 2), 20_000, "and the last ones still have time to close");
        assert!(Limits { drain_pace_ms: 5000, drain_ms: 4000, ..Limits::default() }.check().is_err());
    }

    #[test]
    fn the_window_grows_with_the_clients_and_with_the_slowness_of_handshakes() {
        let limits = Limits::default();
        assert_eq!([0, 1, 160_000].map(|clients| limits.return_window_ms(clients, 2)), [10_000; 3]);
        assert_eq!(limits.return_window_ms(500_000, 2), 31_250);
        assert_eq!(limits.return_window_ms(500_000, 16), 10_000);
        let slow = Limits { handshakes_per_second: 1000, ..Limits::default() };
        assert_eq!([1, 16].map(|shards| slow.return_window_ms(20_000, shards)), [25_000; 2]);
        assert_eq!(Limits { handshakes_per_second: 1, ..slow }.return_rate(1), 1);
        assert!(limits.return_window_ms(u64::MAX, 1) > limits.return_window_ms(16_000_000, 1));
    }

    #[test]
    fn the_defaults_fit_together() {
        assert_eq!(Limits::default().check(), Ok(()));
    }
}
