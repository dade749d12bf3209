//! The shared log of a node: all its shards' entries, votes and marks in one RocksDB instance with
//! recycled WAL files, one writer thread, and one fdatasync for whatever is waiting.
//!
//! | file | holds |
//! |---|---|
//! | `key.rs`, `row.rs` | the schema: keys, values, checksums |
//! | `shard_log.rs` | openraft's storage traits over one shard |
//! | `state.rs`, `cache.rs`, `read.rs` | what a shard's replica sees: changed at once, read from memory or disk |
//! | `core.rs`, `writer.rs`, `simulated.rs` | the queue, the thread that empties it, and the task that does in a simulation |
//! | `mark.rs`, `wal.rs`, `check.rs` | finding out at open whether synced batches are missing |
//! | `life.rs` | what outlives a replica that leaves the node |
//! | `inspect.rs` | offline, read-only |
//!
//! Nothing here bounds the queue: an append must not wait. What enters is bounded where it comes from, by the
//! bytes that a shard's proposer has in flight; [`LogMetrics::queued_bytes`] tells how much is waiting.

mod bench;
mod cache;
mod check;
mod core;
mod crc32c;
mod error;
mod inspect;
mod key;
mod life;
mod mark;
mod metrics;
mod options;
mod read;
mod row;
mod shard_log;
mod simulated;
mod state;
mod stored;
#[cfg(test)]
mod tests;
mod wal;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use mailbox_engine::ShardId;
use parking_lot::Mutex;
use rocksdb::DB;
use tokio::sync::watch;

pub use self::bench::LogBench;
pub use self::error::Error;
pub use self::inspect::{LogBatch, LogEntry, LogInspect, LogPayload, ShardReport};
pub(crate) use self::life::Stage;
pub use self::metrics::{FSYNC_BUCKETS_US, LogMetrics};
pub use self::options::LogOptions;
pub(crate) use self::shard_log::ShardLog;

use self::check::{WalView, open_read_only, recovered_batch};
use self::core::Core;
use self::mark::MarkFile;
use self::options::{check_opened, rocksdb_options};
use self::simulated::SimulatedWriter;
use self::state::ShardState;
use self::stored::StoredShard;
use self::writer::{Marker, Writer};
use crate::simulation;

/// The log of all shards of one node. Clones are the same log; the last one dropped closes it.
#[derive(Clone)]
pub(crate) struct SharedLog {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    shards: Mutex<BTreeMap<ShardId, Arc<ShardState>>>,
    work: Mutex<Option<Work>>,
}

/// Who writes.
enum Work {
    Threads(Threads),
    Simulated(SimulatedWriter),
}

struct Threads {
    writer: JoinHandle<()>,
    mark: JoinHandle<()>,
    marker: Arc<Marker>,
}

impl SharedLog {
    /// Opens the log in `dir`, or creates it there.
    ///
    /// # Errors
    /// If synced batches are missing ([`Error::BatchLost`], [`Error::BelowMark`]) the log stays as it
    /// is: whoever owns the node decides. Others: the log's format is unknown, or its storage failed.
    pub(crate) fn open(dir: &Path, options: LogOptions) -> Result<SharedLog, Error> {
        std::fs::create_dir_all(dir).map_err(|error| Error::file(dir, "create", &error))?;
        let mark_file = open_mark(dir)?;
        let mark = mark_file.mark();
        let wal = WalView::read(dir, mark.store)?;
        if dir.join("CURRENT").exists() {
            if wal.is_suspect(mark) {
                let db = open_read_only(dir, &options)?;
                wal.check_replay(dir, mark, &db)?;
            }
        } else {
            wal.check(dir, mark, 0)?;
        }
        let db = DB::open(&rocksdb_options(&options), dir)
            .map_err(|error| Error::storage(dir, "open", error))?;
        let recovered = recovered_batch(dir, &db, mark.store)?;
        wal.check(dir, mark, recovered)?;
        check_opened(dir)?;
        if !simulation::is_on() {
            writer::write_ahead(dir, &db, options.wal_ahead_bytes)?;
        }
        let core = Arc::new(Core::new(
            dir.to_owned(),
            options,
            mark.store,
            db,
            recovered,
        ));
        let work = if simulation::is_on() {
            let writer = Writer::new(Arc::clone(&core), Arc::default())?;
            Work::Simulated(SimulatedWriter::spawn(&core, writer, mark_file))
        } else {
            Work::Threads(Threads::spawn(&core, mark_file)?)
        };
        Ok(SharedLog {
            inner: Arc::new(Inner {
                core,
                shards: Mutex::default(),
                work: Mutex::new(Some(work)),
            }),
        })
    }

    /// The log of `shard`, empty if it has never been written.
    ///
    /// # Errors
    /// If the shard's rows are damaged or cannot be read.
    pub(crate) fn shard_log(&self, shard: ShardId) -> Result<ShardLog, Error> {
        let core = &self.inner.core;
        let mut shards = self.inner.shards.lock();
        let state = match shards.get(&shard) {
            Some(state) => Arc::clone(state),
            None => {
                let state = Arc::new(ShardState::load(core, shard.0)?);
                shards.insert(shard, Arc::clone(&state));
                state
            }
        };
        Ok(ShardLog::new(Arc::clone(core), state))
    }

    /// Whether this node has, or once had, a replica of `shard`. Nothing of it is kept in memory for that.
    ///
    /// # Errors
    /// If the shard's rows are damaged or cannot be read.
    pub(crate) fn knows(&self, shard: ShardId) -> Result<bool, Error> {
        let core = &self.inner.core;
        let shards = self.inner.shards.lock();
        match shards.get(&shard) {
            Some(state) => Ok(state.is_known()),
            None => {
                let stored = StoredShard::read(&core.dir, &*core.db()?, shard.0)?;
                Ok(stored.is_known())
            }
        }
    }

    /// The shards that have rows here, be it only what a former life has left, in order.
    ///
    /// # Errors
    /// A key that is none of the log's, or a read error.
    pub(crate) fn shards(&self) -> Result<BTreeSet<ShardId>, Error> {
        let core = &self.inner.core;
        stored::shards(&core.dir, &*core.db()?)
    }

    /// Removes what the log holds of `shard`, durably: all but its vote, and what a next life must know. Whoever
    /// still holds its [`ShardLog`] is refused from now on; the next one begins empty.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a fault, or the shard's rows cannot be read.
    pub(crate) async fn wipe(&self, shard: ShardId) -> Result<(), Error> {
        let log = self.shard_log(shard)?;
        let synced = log.shard.wipe(&self.inner.core)?;
        synced.await.unwrap_or_else(|_| Err(self::core::closed()))?;
        // Not before: a state that is loaded anew must find the rows gone.
        self.release(shard);
        Ok(())
    }

    /// Forgets what is in memory of a shard that has no replica here: it takes no share of the cache.
    pub(crate) fn release(&self, shard: ShardId) {
        if self.inner.shards.lock().remove(&shard).is_some() {
            self.inner.core.shards_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Number of the last synced batch.
    pub(crate) fn last_batch(&self) -> u64 {
        self.inner.core.last_batch()
    }

    /// The first fault of the log's storage, once there is one: the node must stop then.
    pub(crate) fn fault(&self) -> watch::Receiver<Option<String>> {
        self.inner.core.fault()
    }

    /// Counters since the log was opened.
    pub(crate) fn metrics(&self) -> LogMetrics {
        let core = &self.inner.core;
        core.counters.read(core.queued_bytes())
    }

    /// Writes what is queued, marks the last batch and closes the files. Later calls on the shards' logs
    /// fail. Blocks, usually for a few milliseconds; closing again does nothing.
    ///
    /// # Errors
    /// The fault that had stopped the log, or stops it now.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.inner.close()
    }
}

impl Inner {
    fn close(&self) -> Result<(), Error> {
        let Some(work) = self.work.lock().take() else {
            return Ok(());
        };
        self.core.begin_close();
        let has_panicked = match work {
            Work::Threads(threads) => threads.join(),
            Work::Simulated(writer) => {
                writer.finish();
                false
            }
        };
        self.core.close_db();
        let panicked = || has_panicked.then(|| "a thread panicked".to_owned());
        match self.core.first_fault().or_else(panicked) {
            Some(reason) => Err(Error::Stopped { reason }),
            None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(Work::Simulated(writer)) = &*self.work.lock() {
            // Nobody has closed it: its node was stopped as by a power cut.
            writer.cut_off();
            return;
        }
        // The fault, if any, has been reported where it happened.
        let _ = self.close();
    }
}

impl Threads {
    /// Whether one of them has panicked, once both have ended.
    fn join(self) -> bool {
        let writer = self.writer.join();
        self.marker.stop();
        let mark = self.mark.join();
        writer.is_err() || mark.is_err()
    }

    fn spawn(core: &Arc<Core>, mark_file: MarkFile) -> Result<Threads, Error> {
        let failed = |error: std::io::Error| Error::file(&core.dir, "start a thread for", &error);
        let marker = Arc::new(Marker::default());
        let mark = std::thread::Builder::new()
            .name("log-mark".to_owned())
            .spawn({
                let (core, marker) = (Arc::clone(core), Arc::clone(&marker));
                move || marker.run(&core, mark_file)
            });
        let mark = mark.map_err(failed)?;
        let writer = Writer::new(Arc::clone(core), Arc::clone(&marker))?;
        let writer = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        Ok(Threads {
            writer,
            mark,
            marker,
        })
    }
}

/// The mark is made before the database: a database without a mark has lost it.
fn open_mark(dir: &Path) -> Result<MarkFile, Error> {
    if let Some(file) = MarkFile::open(dir, true)? {
        return Ok(file);
    }
    if dir.join("CURRENT").exists() {
        return Err(Error::MarkDamaged {
            path: MarkFile::path(dir),
        });
    }
    let (high, low) = uuid::Uuid::now_v7().as_u64_pair();
    MarkFile::create(dir, high ^ low)
}
