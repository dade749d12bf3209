//! Counters of the shared log.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the fsync time buckets, in microseconds, inclusive; one more bucket has no bound.
pub const FSYNC_BUCKETS_US: [u64; 11] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 200_000, 1_000_000,
];

/// What the log has done since it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogMetrics {
    /// Synced writes, one fdatasync each.
    pub fsyncs: u64,
    /// Entries written, all shards.
    pub entries: u64,
    /// Bytes of the batches written, before RocksDB's framing.
    pub bytes: u64,
    /// Appends, votes, truncations, purges and committed marks taken into batches.
    pub operations: u64,
    /// Time of all synced writes, in microseconds.
    pub fsync_us: u64,
    /// Synced writes per bucket of [`FSYNC_BUCKETS_US`], not cumulative; the last has no upper bound.
    pub fsync_buckets: [u64; FSYNC_BUCKETS_US.len() + 1],
    /// Bytes that wait for their synced write.
    pub queued_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    fsyncs: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    operations: AtomicU64,
    fsync_us: AtomicU64,
    fsync_buckets: [AtomicU64; FSYNC_BUCKETS_US.len() + 1],
}

impl Counters {
    pub(super) fn batch(&self, operations: usize, entries: u64, bytes: usize, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = FSYNC_BUCKETS_US.partition_point(|bound| *bound < us);
        self.fsyncs.fetch_add(1, Relaxed);
        self.entries.fetch_add(entries, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.operations.fetch_add(operations as u64, Relaxed);
        self.fsync_us.fetch_add(us, Relaxed);
        self.fsync_buckets[bucket].fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self, queued_bytes: usize) -> LogMetrics {
        LogMetrics {
            fsyncs: self.fsyncs.load(Relaxed),
            entries: self.entries.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            operations: self.operations.load(Relaxed),
            fsync_us: self.fsync_us.load(Relaxed),
            fsync_buckets: std::array::from_fn(|i| self.fsync_buckets[i].load(Relaxed)),
            queued_bytes: queued_bytes as u64,
        }
    }
}
