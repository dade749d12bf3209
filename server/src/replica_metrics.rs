//! What the replicas of a node count themselves, read when somebody asks for the metrics.

use std::fmt;
use std::sync::Arc;

use mailbox_raft::{FSYNC_BUCKETS_US, LogMetrics, Node, Shard};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads the state of every replica at each scrape.
pub(crate) struct ReplicaMetrics {
    node: Arc<Node>,
}

impl ReplicaMetrics {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl fmt::Debug for ReplicaMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplicaMetrics")
    }
}

/// A figure of one shard: a series for each shard, so there are few of these.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    of: fn(&Reading) -> u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

/// One shard at one moment.
struct Reading {
    shard: u32,
    status: mailbox_raft::ShardStatus,
    engine: mailbox_engine::ShardMetrics,
    traffic: mailbox_raft::TrafficCounts,
    reads: mailbox_raft::ReadCounts,
    apply_waits: bool,
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&Reading) -> u64) -> Figure {
    Figure {
        name,
        help,
        kind: Kind::Gauge,
        of,
    }
}

const fn counter(name: &'static str, help: &'static str, of: fn(&Reading) -> u64) -> Figure {
    Figure {
        name,
        help,
        kind: Kind::Counter,
        of,
    }
}

const FIGURES: &[Figure] = &[
    gauge(
        "mailbox_raft_is_leader",
        "1 if this node leads the shard",
        |reading| u64::from(reading.status.role == "leader"),
    ),
    gauge(
        "mailbox_raft_apply_waits_for_rows",
        "1 if apply waits for the rows of a slot that moves into the shard",
        |reading| u64::from(reading.apply_waits),
    ),
    gauge("mailbox_raft_term", "Greatest term seen", |reading| {
        reading.status.term
    }),
    gauge(
        "mailbox_raft_last_index",
        "Last index in the log",
        |reading| reading.status.last_index,
    ),
    gauge(
        "mailbox_raft_committed_index",
        "Last index known to be committed",
        |reading| reading.status.committed_index,
    ),
    gauge(
        "mailbox_raft_applied_index",
        "Last index that readers see",
        |reading| reading.status.applied_index,
    ),
    gauge(
        "mailbox_raft_flushed_index",
        "Last index whose effects are in files",
        |reading| reading.status.flushed_index,
    ),
    gauge(
        "mailbox_raft_purged_index",
        "Last index that the log no longer holds",
        |reading| reading.status.purged_index,
    ),
    gauge(
        "mailbox_engine_memtable_bytes",
        "Bytes pinned by the active memtable",
        |reading| reading.engine.memtable_bytes,
    ),
    gauge(
        "mailbox_engine_frozen_bytes",
        "Bytes pinned by frozen memtables",
        |reading| reading.engine.frozen_bytes,
    ),
    gauge(
        "mailbox_engine_frozen_memtables",
        "Memtables that wait for their flush",
        |reading| reading.engine.frozen,
    ),
    gauge(
        "mailbox_engine_stored_bytes",
        "About how many bytes the shard's flushed rows take in files, dedup rows not counted",
        |reading| reading.engine.stored_bytes,
    ),
    gauge(
        "mailbox_lane_outbox_items",
        "Lane items that their destinations are not known to have",
        |reading| reading.engine.outbox_items,
    ),
    gauge(
        "mailbox_lane_outbox_bytes",
        "Bytes of these items",
        |reading| reading.engine.outbox_bytes,
    ),
    gauge(
        "mailbox_dead_letters_waiting",
        "Dead letters that wait for an operator",
        |reading| reading.engine.dead_letters.waiting(),
    ),
    counter(
        "mailbox_dead_letters_written",
        "Dead letters that the shard's slots have ever had",
        |reading| reading.engine.dead_letters.written,
    ),
    counter(
        "mailbox_dead_letters_unseen",
        "Dead letters trimmed for newer ones while they waited",
        |reading| reading.engine.dead_letters.unseen,
    ),
    counter(
        "mailbox_dead_letters_requeued",
        "Dead letters that went to their recipients after all",
        |reading| reading.engine.dead_letters.requeued,
    ),
    counter(
        "mailbox_dead_letters_dropped",
        "Dead letters that an operator dropped",
        |reading| reading.engine.dead_letters.dropped,
    ),
    gauge(
        "mailbox_engine_tail_cache_bytes",
        "Bytes of cached newest rows",
        |reading| reading.engine.tail_cache_bytes,
    ),
    counter(
        "mailbox_traffic_sends",
        "Messages that this replica appended to their home timelines",
        |reading| reading.traffic.sends,
    ),
    counter(
        "mailbox_traffic_deliveries",
        "Rows that this replica appended to mailboxes of others than their senders",
        |reading| reading.traffic.deliveries,
    ),
    counter(
        "mailbox_traffic_reads",
        "Timelines of which calls have read pages or heads here",
        |reading| reading.traffic.reads,
    ),
    counter(
        "mailbox_raft_barrier_reads",
        "Reads for which a majority was asked, several at a time, whether this node still leads",
        |reading| reading.reads.barrier,
    ),
    counter(
        "mailbox_raft_lease_reads",
        "Reads that were linearizable by the leader's lease: nobody was asked",
        |reading| reading.reads.lease,
    ),
    counter(
        "mailbox_raft_stale_reads",
        "Reads of what the replica had, asked for with a bound on how stale it may be",
        |reading| reading.reads.stale,
    ),
    counter("mailbox_engine_flushes", "Memtables flushed", |reading| {
        reading.engine.flushes
    }),
    counter(
        "mailbox_engine_flushed_bytes",
        "Bytes written by flushes",
        |reading| reading.engine.flushed_bytes,
    ),
    counter(
        "mailbox_engine_installs",
        "Snapshots installed",
        |reading| reading.engine.installs,
    ),
];

fn read(shard: &Shard) -> Reading {
    Reading {
        shard: shard.id().0,
        status: shard.status(),
        engine: shard.engine().metrics(),
        traffic: shard.traffic(),
        reads: shard.read_counts(),
        apply_waits: shard.rows_wait().is_some(),
    }
}

impl Collector for ReplicaMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let readings: Vec<Reading> = self.node.shards().iter().map(read).collect();
        for figure in FIGURES {
            let kind = match figure.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let no_unit: Option<&Unit> = None;
            let mut family = encoder.encode_descriptor(figure.name, figure.help, no_unit, kind)?;
            for reading in &readings {
                let labels = [("shard", reading.shard)];
                let metric = family.encode_family(&labels)?;
                let value = (figure.of)(reading);
                match figure.kind {
                    Kind::Gauge => {
                        let value = i64::try_from(value).unwrap_or(i64::MAX);
                        ConstGauge::new(value).encode(metric)?;
                    }
                    Kind::Counter => ConstCounter::new(value).encode(metric)?,
                }
            }
        }
        // Every replica tells the same of the files that they share.
        let files = readings.first().map(|reading| reading.engine);
        encode_files(&mut encoder, &files.unwrap_or_default())?;
        encode_log(&mut encoder, &self.node.log_metrics())?;
        encode_node(&mut encoder, &self.node)
    }
}

/// What lies between here and the other nodes, and what the node has.
fn encode_node(encoder: &mut DescriptorEncoder<'_>, node: &Node) -> Result<(), fmt::Error> {
    node_counter(
        encoder,
        "mailbox_raft_peer_messages",
        "Requests sent to other nodes, for all shards",
        node.peer_messages(),
    )?;
    let snapshots = node.snapshot_bytes();
    node_counter(
        encoder,
        "mailbox_raft_snapshot_sent_bytes",
        "Bytes of snapshots sent to other nodes",
        snapshots.sent,
    )?;
    node_counter(
        encoder,
        "mailbox_raft_snapshot_received_bytes",
        "Bytes of snapshots received from other nodes",
        snapshots.received,
    )?;
    node_gauge(
        encoder,
        "mailbox_node_disk_free_bytes",
        "Free space",
        i64::try_from(node.disk_free_bytes()).unwrap_or(i64::MAX),
    )?;
    node_gauge(
        encoder,
        "mailbox_node_clock_skew_ms",
        "This node's clock minus the median of all nodes'",
        node.clock_skew_ms(),
    )
}

/// The files of rows, which all replicas share.
fn encode_files(
    encoder: &mut DescriptorEncoder<'_>,
    files: &mailbox_engine::ShardMetrics,
) -> Result<(), fmt::Error> {
    node_gauge(
        encoder,
        "mailbox_engine_level0_files",
        "Files of the node not yet compacted",
        i64::try_from(files.level0_files).unwrap_or(i64::MAX),
    )?;
    node_gauge(
        encoder,
        "mailbox_engine_file_bytes",
        "Bytes of all table files of the node",
        i64::try_from(files.file_bytes).unwrap_or(i64::MAX),
    )
}

fn node_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    let no_unit: Option<&Unit> = None;
    let metric = encoder.encode_descriptor(name, help, no_unit, gauge.metric_type())?;
    gauge.encode(metric)
}

fn node_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), fmt::Error> {
    let no_unit: Option<&Unit> = None;
    let metric = encoder.encode_descriptor(name, help, no_unit, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

/// The shared log of the node.
fn encode_log(encoder: &mut DescriptorEncoder<'_>, log: &LogMetrics) -> Result<(), fmt::Error> {
    let counters = [
        ("mailbox_log_fsyncs", "Synced writes of the log", log.fsyncs),
        (
            "mailbox_log_entries",
            "Entries written to the log",
            log.entries,
        ),
        ("mailbox_log_bytes", "Bytes written to the log", log.bytes),
        (
            "mailbox_log_operations",
            "Appends, votes, truncations, purges and marks",
            log.operations,
        ),
    ];
    let no_unit: Option<&Unit> = None;
    for (name, help, value) in counters {
        node_counter(encoder, name, help, value)?;
    }
    node_gauge(
        encoder,
        "mailbox_log_queued_bytes",
        "Bytes that wait for their synced write",
        i64::try_from(log.queued_bytes).unwrap_or(i64::MAX),
    )?;
    let (name, help) = (
        "mailbox_log_fsync_seconds",
        "Time of the log's synced writes",
    );
    let mut histogram = encoder.encode_descriptor(name, help, no_unit, MetricType::Histogram)?;
    let bounds = FSYNC_BUCKETS_US
        .iter()
        .map(|us| seconds(*us))
        .chain([f64::MAX]);
    let buckets: Vec<(f64, u64)> = bounds.zip(log.fsync_buckets).collect();
    let no_exemplars: Option<&std::collections::HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
    histogram.encode_histogram(seconds(log.fsync_us), log.fsyncs, &buckets, no_exemplars)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a metric: its 53 bits are plenty"
)]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
