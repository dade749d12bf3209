//! The base store on RocksDB: one instance, one column family, fed by ingested files only.
//!
//! Nothing is ever written through RocksDB's memtable or WAL. A stray direct write would make the
//! next ingest fail, because it would need the blocking flush that is switched off.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompactionStyle, DBCompressionType,
    DBRawIterator, Env, ErrorKind, IngestExternalFileOptions, Options, Range, ReadOptions,
    Snapshot, SstFileWriter, WriteBatch, WriteOptions, properties,
};
use self_cell::self_cell;

use super::{Base, Cursor, FileLife, FileWriter, KeySpan, ReadView, StagedFile};
use crate::error::{Error, KeyText};
use crate::id::RangeId;
use crate::key::StoredKey;
use crate::options::EngineOptions;

/// After the last key that any hour or range can have.
pub(crate) const KEYS_END: [u8; 1] = [0xFF];
const FILTER_BITS_PER_KEY: f64 = 10.0;
const BLOCK_BYTES: usize = 16 * 1024;
const METADATA_BLOCK_BYTES: usize = 4 * 1024;
const LOG_BYTES_MAX: usize = 4 << 20;
const LOGS_KEPT: usize = 4;

/// The base store in a directory.
pub(crate) struct RocksBase {
    db: Arc<DB>,
    /// Files are built with the very options that the store was opened with, those of a short life
    /// but for their compression.
    options: Options,
    short_life: Options,
    dir: PathBuf,
    staging: PathBuf,
    staged: AtomicU64,
}

impl RocksBase {
    /// Opens the store in `dir`, made if it is not there, and empties `staging`.
    pub(crate) fn open(
        dir: &Path,
        staging: &Path,
        engine_options: &EngineOptions,
    ) -> Result<RocksBase, Error> {
        empty(staging)?;
        let options = rocks_options(engine_options);
        let db = DB::open(&options, dir).map_err(|source| Error::Rocks {
            operation: "open",
            path: dir.to_owned(),
            source,
        })?;
        let mut short_life = options.clone();
        short_life.set_compression_type(DBCompressionType::None);
        Ok(RocksBase {
            db: Arc::new(db),
            options,
            short_life,
            dir: dir.to_owned(),
            staging: staging.to_owned(),
            staged: AtomicU64::new(0),
        })
    }

    fn failed(&self, operation: &'static str, source: rocksdb::Error) -> Error {
        Error::Rocks {
            operation,
            path: self.dir.clone(),
            source,
        }
    }

    /// Why work in the background failed. RocksDB keeps that to itself until the next write, which it
    /// refuses in the same words; an empty one changes nothing if it does not.
    fn background_fault(&self) -> Error {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        match self.db.write_opt(WriteBatch::default(), &options) {
            Err(source) => self.failed("compaction", source),
            Ok(()) => Error::Stopped {
                reason: format!("compaction failed in {}", self.dir.display()),
            },
        }
    }

    fn next_path(&self) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.staging.join(format!("{number:06}.sst"))
    }

    /// The hours in which a range has dedup rows.
    fn hours_of(&self, range: RangeId) -> Result<Vec<u32>, Error> {
        let view = self.view();
        let mut hours = Vec::new();
        let mut from = StoredKey::dedup_front(0, RangeId(0));
        let mut cursor = view.cursor(&from, &KEYS_END);
        loop {
            cursor.seek(&from)?;
            let Some((key, _)) = cursor.row() else {
                return Ok(hours);
            };
            let split = StoredKey::split(key).map_err(|fault| Error::corrupt_row(key, fault))?;
            let StoredKey::Dedup {
                hour, range: found, ..
            } = split
            else {
                return Ok(hours);
            };
            from = if found == range {
                hours.push(hour);
                StoredKey::dedup_front(hour + 1, RangeId(0))
            } else if found < range {
                StoredKey::dedup_front(hour, range)
            } else {
                StoredKey::dedup_front(hour + 1, RangeId(0))
            };
        }
    }

    /// A file that hides every row of the ranges.
    fn tombstones(&self, ranges: &[RangeId]) -> Result<StagedFile, Error> {
        let mut bounds = Vec::new();
        for range in ranges {
            bounds.push((
                StoredKey::state_front(*range),
                StoredKey::state_front(RangeId(range.0 + 1)),
            ));
            for hour in self.hours_of(*range)? {
                bounds.push((
                    StoredKey::dedup_front(hour, *range),
                    StoredKey::dedup_front(hour, RangeId(range.0 + 1)),
                ));
            }
        }
        bounds.sort();
        let path = self.next_path();
        let mut writer = SstFileWriter::create(&self.options);
        let written = writer.open(&path).and_then(|()| {
            bounds
                .iter()
                .try_for_each(|(begin, end)| writer.delete_range(begin, end))?;
            writer.finish()
        });
        written.map_err(|source| Error::Rocks {
            operation: "write",
            path: path.clone(),
            source,
        })?;
        Ok(StagedFile {
            path,
            bytes: writer.file_size(),
        })
    }
}

fn empty(dir: &Path) -> Result<(), Error> {
    let failed = |operation| {
        move |source| Error::Io {
            operation,
            path: dir.to_owned(),
            source,
        }
    };
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(failed("empty"))?;
    }
    std::fs::create_dir_all(dir).map_err(failed("create"))
}

/// Merges write no more than this, and a twentieth of it at least; in between the rate follows the need, by a twentieth
/// every hundred refills. That is slow: the least has to be enough for a node that gets many replicas at once. With 13
/// MB/s one that got eleven in a minute had 33 files to merge, above what apply bears, and stood still for 40 seconds.
const MERGE_BYTES_PER_S_MAX: i64 = 1 << 30;
/// A refill of 10 ms: what goes out at once is small, and the rate is found within a minute.
const MERGE_REFILL_US: i64 = 10_000;
/// More files than there ever are.
const LEVEL0_WRITES: i32 = 1 << 20;
/// RocksDB's default: of so many turns one is for what has less priority.
const MERGE_FAIRNESS: i32 = 10;

/// RocksDB's threads, which all instances of a process share: without one more, the merges of another instance would
/// wait for those of this one, which take their time.
fn threads(engine: &EngineOptions) -> Env {
    let mut env = Env::new().expect("the default environment is always there");
    env.set_background_threads(engine.compaction_threads + 1);
    env
}

/// What RocksDB runs with. Not a promise: public only so that the benchmark beside raw RocksDB compares
/// like with like.
pub fn rocks_options(engine: &EngineOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(engine.block_cache_bytes));
    table.set_block_size(BLOCK_BYTES);
    table.set_bloom_filter(FILTER_BITS_PER_KEY, false);
    // Index and filter in small parts: a look-up reads one part of each, not the filter of a whole
    // file, which in a small cache would be read from disk again for every key.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_open_files(engine.max_open_files);
    options.set_max_background_jobs(engine.compaction_threads);
    options.set_bytes_per_sync(1 << 20);
    // A merge at full speed fills the queue of the disk, and the syncs of the log wait behind it. So merges write at
    // about the rate that keeps up with what is flushed, which RocksDB finds out.
    options.set_auto_tuned_ratelimiter(MERGE_BYTES_PER_S_MAX, MERGE_REFILL_US, MERGE_FAIRNESS);
    // Merges runs of like size, rather than each into a level ten times as large: timelines only
    // grow, so what a level would save is space that nothing wastes, and what it costs is to write
    // every row about twice as often. Measured with `benches/apply` (10 M messages, 1 M users, the
    // machine shared): 16 µs CPU per message against 23 in levels, and 97,000 messages/s against
    // 56,000 that compaction kept up with. It needs free disk for its greatest merge, at most what
    // the store takes.
    options.set_compaction_style(DBCompactionStyle::Universal);
    // Look-ups rarely go to files, so more of them may wait.
    options.set_level_zero_file_num_compaction_trigger(engine.runs_merged);
    // Apply waits by a limit of ours. RocksDB's would stop writes, and nothing is written through it but what asks it
    // why a merge failed.
    options.set_level_zero_slowdown_writes_trigger(LEVEL0_WRITES);
    options.set_level_zero_stop_writes_trigger(LEVEL0_WRITES);
    options.set_target_file_size_base(64 << 20);
    options.set_keep_log_file_num(LOGS_KEPT);
    options.set_max_log_file_size(LOG_BYTES_MAX);
    options.set_stats_dump_period_sec(0);
    options.set_env(&threads(engine));
    options
}

impl Base for RocksBase {
    fn view(&self) -> Arc<dyn ReadView> {
        let snapshot = OwnedSnapshot::new(self.db.clone(), |db| Snapshot::new(db));
        Arc::new(RocksView {
            snapshot,
            dir: self.dir.clone(),
        })
    }

    fn writer(&self, life: FileLife) -> Result<Box<dyn FileWriter + '_>, Error> {
        let path = self.next_path();
        let writer = SstFileWriter::create(match life {
            FileLife::Short => &self.short_life,
            FileLife::Long => &self.options,
        });
        writer.open(&path).map_err(|source| Error::Rocks {
            operation: "open",
            path: path.clone(),
            source,
        })?;
        Ok(Box::new(RocksWriter { writer, path }))
    }

    fn ingest(&self, files: Vec<StagedFile>, dropped: &[RangeId]) -> Result<(), Error> {
        let mut paths = Vec::new();
        if !dropped.is_empty() {
            paths.push(self.tombstones(dropped)?.path);
        }
        paths.extend(files.into_iter().map(|file| file.path));
        if paths.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        options.set_allow_blocking_flush(false);
        self.db
            .ingest_external_file_opts(&options, paths)
            .map_err(|source| self.failed("ingest", source))?;
        let errors = self.db.property_int_value(properties::BACKGROUND_ERRORS);
        if errors.map_err(|source| self.failed("read a property of", source))? > Some(0) {
            // RocksDB would go on with a part of its work lost.
            return Err(self.background_fault());
        }
        Ok(())
    }

    fn discard(&self, files: Vec<StagedFile>) {
        for file in files {
            if let Err(error) = std::fs::remove_file(&file.path) {
                let path = file.path.display();
                tracing::debug!(%path, %error, "a staged file stays until the next start");
            }
        }
    }

    fn drop_hours(&self, end: u32) -> Result<(), Error> {
        // No row is in range 0, so none is at either end.
        let (first, end) = (
            StoredKey::dedup_front(0, RangeId::NODE),
            StoredKey::dedup_front(end, RangeId::NODE),
        );
        self.db
            .delete_file_in_range(first, end)
            .map_err(|source| self.failed("delete files of", source))
    }

    fn checkpoint(&self, dir: &Path) -> Result<(), Error> {
        let made = Checkpoint::new(&self.db).and_then(|point| point.create_checkpoint(dir));
        made.map_err(|source| Error::Rocks {
            operation: "checkpoint",
            path: dir.to_owned(),
            source,
        })
    }

    fn verify(&self, fault: &mut dyn FnMut(Error)) -> Result<(), Error> {
        let files = self
            .db
            .live_files()
            .map_err(|source| self.failed("list files of", source))?;
        let snapshot = Snapshot::new(&self.db);
        let mut from = Vec::new();
        loop {
            let mut read = ReadOptions::default();
            read.set_verify_checksums(true);
            read.fill_cache(false);
            let mut iterator = snapshot.raw_iterator_opt(read);
            iterator.seek(&from);
            let mut last = from.clone();
            while let Some(key) = iterator.key() {
                last.clear();
                last.extend_from_slice(key);
                iterator.next();
            }
            let Err(source) = iterator.status() else {
                return Ok(());
            };
            let broken = corrupt(&self.dir, "verify", &last, source);
            // The walk goes on behind the broken file: its other rows count as unread.
            let end = match &broken {
                Error::CorruptFile { file, .. } => files
                    .iter()
                    .find(|live| file.ends_with(live.name.trim_start_matches('/'))),
                _ => None,
            };
            let end = end
                .and_then(|live| live.end_key.clone())
                .filter(|end| *end > last);
            fault(broken);
            let Some(mut end) = end else { return Ok(()) };
            end.push(0);
            from = end;
        }
    }

    fn level0_files(&self) -> u64 {
        let files = self
            .db
            .property_int_value(properties::num_files_at_level(0));
        // Without the figure nobody would know that apply must wait: count as many as there are.
        files.ok().flatten().unwrap_or(u64::MAX)
    }

    #[cfg(test)]
    fn direct_rows(&self) -> u64 {
        let names = [
            properties::NUM_ENTRIES_ACTIVE_MEM_TABLE,
            properties::NUM_ENTRIES_IMM_MEM_TABLES,
            properties::NUM_DELETES_ACTIVE_MEM_TABLE,
            properties::NUM_IMMUTABLE_MEM_TABLE_FLUSHED,
        ];
        names
            .iter()
            .map(|name| self.db.property_int_value(*name).unwrap().unwrap())
            .sum()
    }

    fn file_bytes(&self) -> u64 {
        let bytes = self.db.property_int_value(properties::LIVE_SST_FILES_SIZE);
        bytes.ok().flatten().unwrap_or(0)
    }

    fn span_bytes(&self, spans: &[KeySpan]) -> Vec<u64> {
        let spans = spans.iter().map(|(from, to)| Range::new(from, to));
        self.db.get_approximate_sizes(&spans.collect::<Vec<_>>())
    }
}

/// Turns a failed read into an error that names what can be named: the file is in RocksDB's own
/// words only.
fn corrupt(dir: &Path, operation: &'static str, key: &[u8], source: rocksdb::Error) -> Error {
    if source.kind() != ErrorKind::Corruption {
        return Error::Rocks {
            operation,
            path: dir.to_owned(),
            source,
        };
    }
    let text = source.to_string();
    let file = text.split_whitespace().find(|word| word.ends_with(".sst"));
    let file = file.map_or_else(|| dir.to_owned(), PathBuf::from);
    Error::CorruptFile {
        file,
        key: KeyText(key.into()),
        source,
    }
}

struct RocksWriter<'a> {
    writer: SstFileWriter<'a>,
    path: PathBuf,
}

impl RocksWriter<'_> {
    fn written(&self, result: Result<(), rocksdb::Error>) -> Result<(), Error> {
        let operation = "write";
        result.map_err(|source| Error::Rocks {
            operation,
            path: self.path.clone(),
            source,
        })
    }
}

impl FileWriter for RocksWriter<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let result = self.writer.put(key, value);
        self.written(result)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        let result = self.writer.delete(key);
        self.written(result)
    }

    fn finish(mut self: Box<Self>) -> Result<StagedFile, Error> {
        let result = self.writer.finish();
        self.written(result)?;
        Ok(StagedFile {
            bytes: self.writer.file_size(),
            path: self.path,
        })
    }
}

self_cell! {
    /// A RocksDB snapshot that keeps its store open.
    struct OwnedSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: Snapshot,
    }
}

struct RocksView {
    snapshot: OwnedSnapshot,
    dir: PathBuf,
}

impl ReadView for RocksView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        match self.snapshot.borrow_dependent().get_pinned(key) {
            Ok(value) => Ok(value.map(|value| Bytes::copy_from_slice(&value))),
            Err(source) => Err(corrupt(&self.dir, "get", key, source)),
        }
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(lower);
        read.set_iterate_upper_bound(upper);
        let iterator = self.snapshot.borrow_dependent().raw_iterator_opt(read);
        Box::new(RocksCursor {
            iterator,
            dir: &self.dir,
            near: lower.to_vec(),
        })
    }
}

struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    dir: &'a Path,
    /// Where the walk stood last: what an error names.
    near: Vec<u8>,
}

impl RocksCursor<'_> {
    fn moved(&mut self) -> Result<(), Error> {
        if self.iterator.valid() {
            return Ok(());
        }
        let status = self.iterator.status();
        status.map_err(|source| corrupt(self.dir, "scan", &self.near, source))
    }

    fn note_key(&mut self) {
        if let Some(key) = self.iterator.key() {
            self.near.clear();
            self.near.extend_from_slice(key);
        }
    }
}

impl Cursor for RocksCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<(), Error> {
        self.near.clear();
        self.near.extend_from_slice(key);
        self.iterator.seek(key);
        self.moved()
    }

    fn seek_to_last(&mut self) -> Result<(), Error> {
        self.iterator.seek_to_last();
        self.moved()
    }

    fn next(&mut self) -> Result<(), Error> {
        self.note_key();
        self.iterator.next();
        self.moved()
    }

    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.iterator.item()
    }
}
