//! The metrics page: every shard's counters as OpenMetrics text, read at the moment of the request.
//!
//! Counts of all shards are summed; where a shard by itself can be the trouble, the metric has a `shard` label. No label per topic or connection:
//! their number has no useful bound.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::lifecycle::{Phase, Readiness};
use crate::bus::StreamState;
use crate::bus::link::LinkShared;
use crate::bus::status::Status;
use crate::gateway::Shared;
use crate::gateway::close_cause::CloseCause;
use crate::gateway::counters::{
    AcceptResult, ByLabel, Counter, Counters, DropReason, GapLabel, Gauge, HandshakeResult, Histogram, Label, RateLimit, Transport,
};

/// What the metrics page tells besides the shards' counters.
#[derive(Clone, Debug)]
pub struct ProcessFacts {
    /// The driver that every shard runs on.
    pub driver: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// Start of the process, since 1970.
    pub start: Duration,
    /// Clients at once, as worked out at start.
    pub connections_max: u64,
    /// Bytes of queued messages at once, as worked out at start.
    pub queued_bytes_max: u64,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// How far the gateway is.
    pub readiness: Arc<Readiness>,
    /// What is known of the connection to NATS, if there is to be one.
    pub nats: Option<Arc<LinkShared>>,
}

/// The metrics page.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// The media type of [`encode`](Self::encode)'s text.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// A page over these shards, in the order of their ids.
    pub fn new(shards: Vec<Arc<Counters>>, facts: ProcessFacts) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Page { shards, facts }));
        Self { registry }
    }

    /// The page as of now.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String never fails");
        text
    }
}

#[derive(Debug)]
struct Page {
    shards: Vec<Arc<Counters>>,
    facts: ProcessFacts,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Writer { encoder, shards: &self.shards };
        let facts = &self.facts;
        page.info("shardcast_build_info", "The version that runs.", &[("version", env!("CARGO_PKG_VERSION"))])?;
        page.info("shardcast_driver_info", "How the kernel is talked to.", &[("driver", facts.driver), ("kernel", &facts.kernel)])?;
        page.gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.", facts.start.as_secs_f64())?;
        if let Some(bytes) = resident_bytes() {
            page.gauge("process_resident_memory_bytes", "Memory of the process that is in RAM.", bytes)?;
        }

        page.gauges("shardcast_connections", "Live connections.", "transport", Transport::VALUES, |shard| &shard.connections)?;
        page.gauge("shardcast_connections_max", "Live connections at most.", facts.connections_max)?;
        let connections = |shard: &Counters| Transport::VALUES.iter().map(|&transport| shard.connections.of(transport).value()).sum();
        page.gauge_by_shard("shardcast_shard_connections", "Live connections of each shard.", connections)?;
        let remaining = if facts.readiness.phase() == Phase::Draining { facts.shared.connections() as u64 } else { 0 };
        page.gauge("shardcast_drain_remaining", "Live connections of a gateway that drains; 0 while it serves.", remaining)?;
        page.counters("shardcast_accepts", "Clients that connected.", "result", AcceptResult::VALUES, |shard| &shard.accepts)?;
        page.counters("shardcast_handshakes", "Answers to request heads.", "result", HandshakeResult::VALUES, |shard| &shard.handshakes)?;
        page.closes()?;
        page.counter("shardcast_pings", "Pings sent to quiet clients.", |shard| &shard.pings)?;

        page.counter("shardcast_messages_in", "Messages that clients sent.", |shard| &shard.messages_in)?;
        page.counter("shardcast_messages_in_bytes", "Payload bytes of messages that clients sent.", |shard| &shard.messages_in_bytes)?;
        page.counter("shardcast_messages_inflated", "Messages of clients that came compressed.", |shard| &shard.inflated)?;
        page.counter("shardcast_messages_deflated", "Messages compressed, each once for all who are sent it so in its form.", |shard| {
            &shard.deflated
        })?;
        page.counter(
            "shardcast_deflated_saved_bytes",
            "Bytes by which that has made these messages shorter, each counted once.",
            |shard| &shard.deflated_bytes_saved,
        )?;
        page.deliveries("shardcast_deliveries", "Frames that the kernel took, one for each message and receiver.", |shard| {
            &shard.deliveries
        })?;
        page.deliveries("shardcast_deliveries_bytes", "Bytes of delivered frames.", |shard| &shard.deliveries_bytes)?;
        page.counters(
            "shardcast_drops",
            "Frames queued for a connection that will never be sent.",
            "reason",
            DropReason::VALUES,
            |shard| &shard.drops,
        )?;
        page.counters("shardcast_gaps", "Readers that were told that messages are missing.", "reason", GapLabel::VALUES, |shard| {
            &shard.gaps
        })?;
        page.counters(
            "shardcast_rate_limited",
            "Messages not taken because their connection, its address or the topic has as many as it may.",
            "limit",
            RateLimit::VALUES,
            |shard| &shard.rate_limited,
        )?;
        page.counter("shardcast_announced", "Announcements of the operator, one for each connection that was told.", |shard| {
            &shard.announced
        })?;
        page.counter("shardcast_presence_told", "Changes of who is in a topic, one for each watcher that was told.", |shard| {
            &shard.presence_told
        })?;
        page.counter("shardcast_replayed", "Messages given out of histories.", |shard| &shard.replayed)?;
        let history = self.shards.iter().map(|shard| shard.history_bytes.value()).sum::<u64>();
        page.gauge("shardcast_history_bytes", "Memory of all histories.", history)?;
        page.histogram(
            "shardcast_delivery_seconds",
            "From a message's entry into its subscriber's shard to the completion of its send.",
            |shard| &shard.delivery_seconds,
        )?;

        page.gauge("shardcast_queued_bytes", "Memory of all queued messages, as allocated.", facts.shared.memory.bytes() as u64)?;
        page.gauge("shardcast_queued_bytes_max", "Memory of all queued messages at most.", facts.queued_bytes_max)?;
        page.gauge("shardcast_topics", "Topics.", self.shards.iter().map(|shard| shard.topics.value()).sum::<u64>())?;

        if let Some(link) = &facts.nats {
            page.nats(link)?;
        }

        page.gauge_by_shard("shardcast_mailbox_depth", "Messages that wait in each shard's mailboxes.", |shard| {
            shard.mailbox_depth.value()
        })?;
        page.counter("shardcast_wakes", "Wake-ups sent to sleeping shards.", |shard| &shard.wakes)?;
        page.counter("shardcast_publishers_paused", "Pauses of reading from a publisher whose topic was behind.", |shard| {
            &shard.publishers_paused
        })?;
        page.counter("shardcast_recv_starved", "Times a connection waited for a free receive buffer.", |shard| &shard.recv_starved)?;
        page.counter("shardcast_accept_paused", "Pauses of accepting because descriptors or memory ran out.", |shard| {
            &shard.accept_paused
        })?;
        page.counter("shardcast_inherited", "Connections taken over from the process before.", |shard| &shard.inherited)?;
        page.counter("shardcast_log_suppressed", "Log lines that were counted instead of written.", |shard| &shard.log_suppressed)?;
        page.counter_by_shard("shardcast_loop_turns", "Turns of each shard's loop.", |shard| &shard.loop_turns)?;
        page.histogram_by_shard("shardcast_loop_seconds", "Time that a turn of each shard's loop took, without its wait.", |shard| {
            &shard.loop_seconds
        })
    }
}

/// The shapes that a metric on the page can have.
struct Writer<'e, 's> {
    encoder: DescriptorEncoder<'e>,
    shards: &'s [Arc<Counters>],
}

impl Writer<'_, '_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        // The info type would write `_info` behind the name by itself; a gauge of 1 reads the same in every parser.
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let labels = labels.to_vec();
        ConstGauge::new(1u64).encode(metric.encode_family(&labels)?)
    }

    fn gauge<N>(&mut self, name: &str, help: &str, value: N) -> fmt::Result
    where
        ConstGauge<N>: EncodeMetric,
    {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn gauges<L: Label, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[L],
        metrics: impl Fn(&Counters) -> &ByLabel<Gauge, L, N>,
    ) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for &value in values {
            let sum: u64 = shards.iter().map(|shard| metrics(shard).of(value).value()).sum();
            ConstGauge::new(sum).encode(metric.encode_family(&[(label, value.text())])?)?;
        }
        Ok(())
    }

    fn gauge_by_shard(&mut self, name: &str, help: &str, value: impl Fn(&Counters) -> u64) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (index, shard) in shards.iter().enumerate() {
            ConstGauge::new(value(shard)).encode(metric.encode_family(&[("shard", index)])?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, counter: impl Fn(&Counters) -> &Counter) -> fmt::Result {
        let sum: u64 = self.shards.iter().map(|shard| counter(shard).value()).sum();
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(sum).encode(metric)
    }

    fn counters<L: Label, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[L],
        metrics: impl Fn(&Counters) -> &ByLabel<Counter, L, N>,
    ) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for &value in values {
            let sum: u64 = shards.iter().map(|shard| metrics(shard).of(value).value()).sum();
            ConstCounter::new(sum).encode(metric.encode_family(&[(label, value.text())])?)?;
        }
        Ok(())
    }

    fn counter_by_shard(&mut self, name: &str, help: &str, counter: impl Fn(&Counters) -> &Counter) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (index, shard) in shards.iter().enumerate() {
            ConstCounter::new(counter(shard).value()).encode(metric.encode_family(&[("shard", index)])?)?;
        }
        Ok(())
    }

    /// Connections that ended, with the cause and the close code that belongs to it.
    fn closes(&mut self) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(
            "shardcast_closes",
            "Connections that ended, and the close code that belongs to the cause.",
            None,
            MetricType::Counter,
        )?;
        for &cause in CloseCause::ALL {
            let sum: u64 = shards.iter().map(|shard| shard.closes.of(cause).value()).sum();
            let code = cause.code().map_or_else(|| "none".to_owned(), |code| code.to_string());
            ConstCounter::new(sum).encode(metric.encode_family(&[("cause", cause.label()), ("code", code.as_str())])?)?;
        }
        Ok(())
    }

    fn total(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    /// The connection to NATS.
    fn nats(&mut self, link: &LinkShared) -> fmt::Result {
        let status: &Status = &link.status;
        self.gauge("shardcast_nats_connected", "Whether there is a connection to NATS.", u64::from(status.is_connected()))?;
        self.gauge("shardcast_nats_down_seconds", "For how long there has been none.", status.down_ms.value() as f64 / 1000.0)?;
        self.total("shardcast_nats_connects", "Connections to NATS that came to be.", status.connects.value())?;
        self.total("shardcast_nats_disconnects", "Connections to NATS that were lost.", status.disconnects.value())?;
        self.gauge("shardcast_nats_subscriptions", "Topics that NATS is asked for.", status.subscriptions.value())?;
        self.gauge("shardcast_nats_outbox", "Messages that wait to be handed to NATS.", link.outbox_entries())?;
        self.gauge("shardcast_nats_outbox_bytes", "Their bytes.", link.outbox_bytes())?;
        self.total("shardcast_nats_published", "Messages handed to NATS.", status.published.value())?;
        if status.stream() != StreamState::None {
            self.gauge("shardcast_nats_stream_reading", "Whether the stream is read now.", status.reading.value())?;
            self.gauge(
                "shardcast_nats_lag_seconds",
                "For how long the stream could not be read.",
                status.unread_ms.value() as f64 / 1000.0,
            )?;
            self.gauge("shardcast_nats_stream_offset", "How far the stream was read.", status.read.value().map_or(0, |at| at.offset))?;
            self.total("shardcast_nats_stream_opens", "Times that the stream was opened to be read.", status.opens.value())?;
            self.total("shardcast_nats_holes", "Times that messages of the stream had gone before they were read.", status.holes.value())?;
            self.total("shardcast_nats_stored", "Messages that the stream has acknowledged.", status.stored.value())?;
            self.total("shardcast_nats_duplicates", "Messages that it had before, by their idempotency key.", status.duplicates.value())?;
            self.total("shardcast_nats_unanswered", "Messages that were given up without its answer.", status.unanswered.value())?;
            self.total("shardcast_nats_fetched", "Messages of the past that were read for who came back.", status.fetched.value())?;
        }
        self.total("shardcast_nats_received", "Messages of others that came from NATS.", status.received.value())?;
        self.total("shardcast_nats_echoes", "Messages of this node that came back from NATS, and were left out.", status.echoes.value())?;
        self.total(
            "shardcast_nats_late",
            "Messages from NATS that came behind a later one of their node, and were left out.",
            status.late.value(),
        )?;
        self.total("shardcast_nats_dropped", "Messages from NATS for which there was no room.", status.dropped.value())?;
        self.total("shardcast_nats_oversized", "Messages from NATS over limits.message_bytes_max.", status.oversized.value())?;
        self.total("shardcast_nats_unsent", "Messages that had their place and that NATS did not take.", status.refused.value())?;
        self.counter("shardcast_nats_refused", "Messages of clients not taken because they could not have gone on to NATS.", |shard| {
            &shard.nats_refused
        })
    }

    /// What was delivered over each transport; WebSocket is the only one that delivers so far.
    fn deliveries(&mut self, name: &str, help: &str, counter: impl Fn(&Counters) -> &Counter) -> fmt::Result {
        let sum: u64 = self.shards.iter().map(|shard| counter(shard).value()).sum();
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(sum).encode(metric.encode_family(&[("transport", Transport::Ws.text())])?)
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: impl Fn(&Counters) -> &Histogram) -> fmt::Result {
        let shards = self.shards;
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_histogram(metric, shards.iter().map(|shard| histogram(shard)))
    }

    fn histogram_by_shard(&mut self, name: &str, help: &str, histogram: impl Fn(&Counters) -> &Histogram) -> fmt::Result {
        let shards = self.shards;
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (index, shard) in shards.iter().enumerate() {
            let labels = [("shard", index)];
            encode_histogram(metric.encode_family(&labels)?, std::iter::once(histogram(shard)))?;
        }
        Ok(())
    }
}

fn encode_histogram<'h>(mut metric: MetricEncoder<'_>, histograms: impl Iterator<Item = &'h Histogram>) -> fmt::Result {
    let mut buckets: [(f64, u64); Histogram::BUCKETS] = std::array::from_fn(|bucket| (Histogram::upper_bound_seconds(bucket), 0));
    let mut sum = Duration::ZERO;
    for histogram in histograms {
        for (bucket, value) in buckets.iter_mut().zip(histogram.values()) {
            bucket.1 += value;
        }
        sum += histogram.sum();
    }
    let count = buckets.iter().map(|(_, value)| value).sum();
    metric.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
}

/// Memory of this process that is in RAM (proc_pid_statm(5)); the second number, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::link::link;
    use crate::limits::Limits;

    fn page(shards: Vec<Arc<Counters>>) -> String {
        let facts = ProcessFacts {
            driver: "uring",
            kernel: "6.12.9".to_owned(),
            start: Duration::from_millis(1_700_000_000_500),
            connections_max: 1000,
            queued_bytes_max: 1 << 30,
            shared: Shared::new(1, 1000, 1 << 30, 1, 1),
            readiness: Readiness::new(),
            nats: Some(Arc::clone(link(1, &Limits::default(), 7, || {}).0[0].shared())),
        };
        Metrics::new(shards, facts).encode()
    }

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }

    #[test]
    fn counters_of_all_shards_are_summed() {
        let (a, b) = (Arc::new(Counters::default()), Arc::new(Counters::default()));
        a.messages_in.add(2);
        b.messages_in.add(3);
        a.connections.of(Transport::Ws).set(7);
        b.connections.of(Transport::Http).set(1);
        b.handshakes.of(HandshakeResult::of_status(404)).add(4);
        a.closes.of(CloseCause::SlowConsumer).add(1);
        b.closes.of(CloseCause::ClientGone).add(1);
        a.deliveries.add(9);
        b.drops.of(DropReason::SlowConsumer).add(5);
        let page = page(vec![a, b]);
        for line in [
            "shardcast_messages_in_total 5",
            "shardcast_connections{transport=\"ws\"} 7",
            "shardcast_shard_connections{shard=\"1\"} 1",
            "shardcast_handshakes_total{result=\"404\"} 4",
            "shardcast_closes_total{cause=\"slow_consumer\",code=\"4508\"} 1",
            "shardcast_closes_total{cause=\"client_gone\",code=\"none\"} 1",
            "shardcast_deliveries_total{transport=\"ws\"} 9",
            "shardcast_drops_total{reason=\"slow_consumer\"} 5",
            "shardcast_driver_info{driver=\"uring\",kernel=\"6.12.9\"} 1",
            "shardcast_connections_max 1000",
            "process_start_time_seconds 1700000000.5",
            "shardcast_nats_connected 0",
            "shardcast_nats_published_total 0",
        ] {
            has(&page, line);
        }
        has(&page, &format!("shardcast_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[test]
    fn histograms_are_cumulative_and_their_count_is_the_last_bucket() {
        let shard = Arc::new(Counters::default());
        shard.loop_seconds.record(Duration::from_nanos(1024));
        shard.loop_seconds.record(Duration::from_micros(2));
        shard.loop_seconds.record(Duration::from_secs(100));
        shard.delivery_seconds.record_many(Duration::from_millis(1), 1000);
        let page = page(vec![shard]);
        for line in [
            "shardcast_loop_seconds_bucket{le=\"0.000001024\",shard=\"0\"} 1",
            "shardcast_loop_seconds_bucket{le=\"0.000002048\",shard=\"0\"} 2",
            "shardcast_loop_seconds_bucket{le=\"17.179869184\",shard=\"0\"} 2",
            "shardcast_loop_seconds_bucket{le=\"+Inf\",shard=\"0\"} 3",
            "shardcast_loop_seconds_count{shard=\"0\"} 3",
            "shardcast_loop_seconds_sum{shard=\"0\"} 100.000003024",
            "shardcast_delivery_seconds_count 1000",
            "shardcast_delivery_seconds_sum 1.0",
        ] {
            has(&page, line);
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_name_of_ours_and_each_name_is_described_once() {
        let page = page(vec![Arc::default(), Arc::default()]);
        let mut described = std::collections::BTreeSet::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(described.insert(rest.split(' ').next()), "{line} comes twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with("shardcast_") || line.starts_with("process_"), "{line}");
            }
        }
    }
}
