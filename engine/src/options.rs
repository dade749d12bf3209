//! What the engine may use and where its limits lie.
//!
//! Nothing in here decides what a command is answered with: that would make replicas differ. Such
//! limits are replicated, see `cluster_options.rs`; the slot count is a constant of the cluster.

/// Limits and budgets of one node's engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Hash buckets of owner ids: a cluster constant, stored at bootstrap. 1..=65535.
    pub slot_count: u16,
    /// Allocations that the active memtable of a shard may pin, in bytes, before a flush is due.
    pub memtable_bytes_max: u64,
    /// The same of all shards of the node together: above it a flush of all is due, above twice as
    /// much apply stalls. What one shard does not need another may use.
    pub memtables_bytes_max: u64,
    /// Age at which a memtable with anything in it is flushed, in milliseconds by the owner's clock.
    pub memtable_age_ms_max: u64,
    /// Frozen memtables of a shard that may wait for their flush before apply stalls. At least 1.
    pub memtables_frozen_max: usize,
    /// RocksDB's block cache, in bytes.
    pub block_cache_bytes: usize,
    /// Copied rows of the hot timelines of a shard, in bytes.
    pub tail_cache_bytes: usize,
    /// Timelines of a shard whose heads are kept in memory.
    pub head_cache_entries: usize,
    /// Files that RocksDB may hold open. At least 32.
    pub max_open_files: i32,
    /// Files that no compaction has merged yet, above which apply stalls. A flush adds one, an install a few: with room
    /// for some dozens, for a node may get as many replicas within a merge.
    pub level0_files_max: u64,
    /// Sorted runs that there may be before RocksDB merges some of them. At least 2, and to be fewer
    /// than `level0_files_max`, or apply waits for merges that do not come. Nodes with replicas of
    /// the same shards write alike: with different numbers they do not compact at the same moment.
    pub runs_merged: i32,
    /// Threads of RocksDB that compact.
    pub compaction_threads: i32,
    /// Rows of one group of installed files, in bytes, before the next file is begun.
    pub install_file_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            slot_count: 1024,
            memtable_bytes_max: 64 << 20,
            memtables_bytes_max: 256 << 20,
            memtable_age_ms_max: 30_000,
            memtables_frozen_max: 1,
            block_cache_bytes: 64 << 20,
            tail_cache_bytes: 16 << 20,
            head_cache_entries: 1 << 20,
            max_open_files: 512,
            level0_files_max: 64,
            runs_merged: 8,
            compaction_threads: 2,
            install_file_bytes: 64 << 20,
        }
    }
}
