//! The log's options, and RocksDB's that follow from them.

use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, FlushOptions, LogLevel, Options,
};

use super::error::Error;

/// How the log of a node uses memory, files and the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Bytes of one RocksDB memtable, and about of one WAL file. Up to four exist at a time. Larger:
    /// more entries are purged before they would be written a second time. 1 MiB ..= 1 GiB.
    pub memtable_bytes: usize,
    /// Bytes of recent entries that all shards together keep in memory for replication and apply. What
    /// is not yet synced is kept whatever this says. At least 1 MiB.
    pub cache_bytes: usize,
    /// Bytes drained into one batch, and so into one fdatasync; one larger entry goes alone.
    /// 64 KiB ..= 64 MiB.
    pub batch_bytes_max: usize,
    /// Bytes of entries that one read for replication returns, at least one entry. 64 KiB ..= 64 MiB.
    pub read_bytes_max: usize,
    /// Bytes written ahead into each of two WAL files at open, so that synced writes overwrite blocks
    /// that the file system has already allocated, from the first on: a sync of a file that grows waits
    /// for the file system's own log as well. Best as large as `memtable_bytes`; 0: none.
    pub wal_ahead_bytes: usize,
    /// Files of two memtables each that are merged at once, with what is left of those before them. More: entries are
    /// written again less often, and the files hold purged ones for longer. Nodes with replicas of the same shards should
    /// differ in it, or they merge at the same moment. 2 ..= 32.
    pub files_merged: i32,
    /// Files that RocksDB keeps open. At least 16.
    pub files_open_max: u16,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            memtable_bytes: 16 << 20,
            cache_bytes: 64 << 20,
            batch_bytes_max: 4 << 20,
            read_bytes_max: 1 << 20,
            wal_ahead_bytes: 16 << 20,
            files_merged: 12,
            files_open_max: 64,
        }
    }
}

/// WAL files kept for another use. Memtables are flushed two at a time, so two files fall free at once.
const RECYCLED_FILES: usize = 4;
/// Files are written at a rate between a twentieth of this and this, memtables first. It follows the need, by a twentieth
/// every hundred refills; the least is several times what the entries of a busy node come to.
const FILE_BYTES_PER_S_MAX: i64 = 1 << 30;
const FILE_REFILL_US: i64 = 10_000;
/// RocksDB's default: of so many turns one is for what has less priority.
const FILE_FAIRNESS: i32 = 10;
const BLOCK_CACHE_BYTES: usize = 8 << 20;

pub(super) fn rocksdb_options(options: &LogOptions) -> Options {
    let mut rocks = Options::default();
    rocks.create_if_missing(true);
    // Recycled files hold blocks of their earlier life behind the end, which only point-in-time recovery
    // takes for the end; with any stricter mode RocksDB silently switches recycling off.
    rocks.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    rocks.set_recycle_log_file_num(RECYCLED_FILES);
    rocks.set_write_buffer_size(options.memtable_bytes);
    // Two memtables are merged into one file: what the second purges of the first is never written.
    rocks.set_max_write_buffer_number(4);
    rocks.set_min_write_buffer_number_to_merge(2);
    // One writer.
    rocks.set_allow_concurrent_memtable_write(false);
    rocks.set_enable_write_thread_adaptive_yield(false);
    // Purged files are found by compaction; a slow one must not slow the writer down.
    rocks.set_level_zero_file_num_compaction_trigger(options.files_merged);
    rocks.set_level_zero_slowdown_writes_trigger(64);
    rocks.set_level_zero_stop_writes_trigger(128);
    rocks.set_target_file_size_base(32 << 20);
    rocks.set_max_background_jobs(2);
    rocks.set_max_open_files(i32::from(options.files_open_max));
    rocks.set_compression_type(DBCompressionType::None);
    rocks.set_bytes_per_sync(1 << 20);
    // At full speed a merge fills the queue of the disk, and the syncs of the WAL wait behind it.
    rocks.set_auto_tuned_ratelimiter(FILE_BYTES_PER_S_MAX, FILE_REFILL_US, FILE_FAIRNESS);
    rocks.set_keep_log_file_num(4);
    rocks.set_max_log_file_size(1 << 20);
    rocks.set_log_level(LogLevel::Warn);
    rocks.set_stats_dump_period_sec(0);
    rocks.set_stats_persist_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_size(32 << 10);
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    rocks.set_block_based_table_factory(&table);
    rocks
}

pub(super) fn flush_options() -> FlushOptions {
    let mut flush = FlushOptions::default();
    flush.set_wait(true);
    flush
}

/// Reads back what RocksDB runs with. It changes options that it finds in conflict without a word.
pub(super) fn check_opened(dir: &Path) -> Result<(), Error> {
    let text = newest_options_file(dir)
        .and_then(std::fs::read_to_string)
        .map_err(|error| Error::file(dir, "read the options file", &error))?;
    check_option(
        dir,
        &text,
        "recycle_log_file_num",
        &RECYCLED_FILES.to_string(),
    )?;
    check_option(dir, &text, "wal_recovery_mode", "kPointInTimeRecovery")
}

fn newest_options_file(dir: &Path) -> std::io::Result<PathBuf> {
    let mut newest = None;
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("OPTIONS-"))
            .and_then(|number| number.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    newest
        .map(|(_, path)| path)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
}

fn check_option(dir: &Path, text: &str, option: &'static str, wanted: &str) -> Result<(), Error> {
    let found = text
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .find(|(name, _)| *name == option)
        .map(|(_, value)| value);
    if found == Some(wanted) {
        return Ok(());
    }
    Err(Error::Option {
        path: dir.to_owned(),
        option,
        wanted: wanted.to_owned(),
        found: found.unwrap_or("not in the options file").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_mode_that_switches_recycling_off_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut rocks = rocksdb_options(&LogOptions::default());
        drop(rocksdb::DB::open(&rocks, dir.path()).unwrap());
        check_opened(dir.path()).unwrap();
        rocks.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
        drop(rocksdb::DB::open(&rocks, dir.path()).unwrap());
        let error = check_opened(dir.path()).unwrap_err().to_string();
        assert!(error.contains("recycle_log_file_num"), "{error}");
    }
}
