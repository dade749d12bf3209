//! The writer thread: everything queued becomes one batch, one synced write, and then its completions,
//! in order. And the mark thread, which notes now and then how far that has got.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fail::fail_point;
use parking_lot::{Condvar, Mutex};
use rocksdb::{DB, WriteBatch, WriteOptions};

use super::core::{Core, Drained, Op};
use super::error::Error;
use super::key::{Key, entry_key};
use super::life::Life;
use super::mark::MarkFile;
use super::options::flush_options;
use super::row::{BatchRow, put_row};
use crate::types::{encode_log_id, encode_vote};

/// How long a synced batch may lie behind the mark.
pub(super) const MARK_EVERY: Duration = Duration::from_millis(500);
/// Grows when RocksDB changes to another memtable, and so to another WAL file.
const ROLL_OVER_PROPERTY: &str = "rocksdb.current-super-version-number";

pub(super) struct Writer {
    core: Arc<Core>,
    marker: Arc<Marker>,
    db: Arc<DB>,
    synced: WriteOptions,
    value: Vec<u8>,
    key: Vec<u8>,
    files: Option<u64>,
}

impl Writer {
    pub(super) fn new(core: Arc<Core>, marker: Arc<Marker>) -> Result<Writer, Error> {
        let db = core.db()?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        #[cfg(feature = "planted")]
        if mailbox_planted::is("ack-before-fsync") {
            synced.set_sync(false);
        }
        Ok(Writer {
            core,
            marker,
            db,
            synced,
            value: Vec::new(),
            key: Vec::new(),
            files: None,
        })
    }

    /// Runs until the log closes or a write fails.
    pub(super) fn run(mut self) {
        // If this thread panics, nobody may wait for it for ever.
        let stop = StopOnDrop(Arc::clone(&self.core));
        while let Some(drained) = self.core.drain() {
            let Some(drained) = self.write_or_fail(drained) else {
                break;
            };
            fail_point!("log_synced", |_| std::process::abort());
            self.complete(drained);
        }
        drop(stop);
    }

    /// Gives back what was written; nothing, if that failed, which all who wait are told.
    pub(super) fn write_or_fail(&mut self, drained: Drained) -> Option<Drained> {
        let Err(error) = self.write(&drained.ops) else {
            return Some(drained);
        };
        self.core.fail(&error);
        drained.ops.into_iter().for_each(|op| op.fail(&error));
        None
    }

    fn write(&mut self, ops: &[Op]) -> Result<(), Error> {
        let number = self.core.last_batch() + 1;
        let bytes: usize = ops.iter().map(Op::bytes).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 256);
        let row = BatchRow {
            store: self.core.store,
            number,
        };
        batch.put(Key::Batch.encode(), row.encode());
        let mut entries = 0;
        for op in ops {
            entries += self.put(&mut batch, op);
        }
        let bytes = batch.size_in_bytes();
        let begin = Instant::now();
        fail_point!("log_write", |_| std::process::abort());
        self.db
            .write_opt(batch, &self.synced)
            .map_err(|error| self.core.storage_error("write", error))?;
        self.core
            .counters
            .batch(ops.len(), entries, bytes, begin.elapsed());
        self.core.batch.store(number, Ordering::Release);
        self.note_roll_over();
        Ok(())
    }

    /// Adds the operation to the batch; returns the number of its entries.
    fn put(&mut self, batch: &mut WriteBatch, op: &Op) -> u64 {
        match op {
            Op::Append { shard, entries, .. } => {
                for entry in entries {
                    let key = entry_key(shard.shard, entry.log_id.index);
                    put_row(&mut self.value, &key, entry);
                    batch.put(key, &self.value);
                }
                return entries.len() as u64;
            }
            Op::Truncate { shard, from, end } => {
                batch.delete_range(entry_key(*shard, *from), entry_key(*shard, *end));
            }
            Op::Purge { shard, from, upto } => {
                fail_point!("log_purge", |_| std::process::abort());
                let end = entry_key(*shard, upto.index + 1);
                #[cfg(feature = "planted")]
                let end = if mailbox_planted::is("purge-before-snapshot") {
                    entry_key(*shard, upto.index + 10_000)
                } else {
                    end
                };
                batch.delete_range(entry_key(*shard, *from), end);
                Key::Purged(*shard).put(&mut self.key);
                batch.put(&self.key, encode_log_id(upto));
            }
            #[cfg(feature = "planted")]
            Op::Vote { .. } if mailbox_planted::is("vote-not-synced") => {}
            Op::Vote { shard, vote, .. } => {
                Key::Vote(*shard).put(&mut self.key);
                batch.put(&self.key, encode_vote(vote));
            }
            Op::Committed { shard, committed } => {
                Key::Committed(*shard).put(&mut self.key);
                match committed {
                    Some(committed) => batch.put(&self.key, encode_log_id(committed)),
                    None => batch.delete(&self.key),
                }
            }
            Op::Life { shard, life, .. } => self.put_life(batch, *shard, life),
            Op::Seed {
                shard,
                upto,
                vote,
                life,
                ..
            } => {
                Key::Purged(*shard).put(&mut self.key);
                batch.put(&self.key, encode_log_id(upto));
                Key::Vote(*shard).put(&mut self.key);
                batch.put(&self.key, encode_vote(vote));
                self.put_life(batch, *shard, life);
            }
            Op::Wipe { shard, life, .. } => {
                // The bound is exclusive; no log ever reaches the last index.
                batch.delete_range(entry_key(*shard, 0), entry_key(*shard, u64::MAX));
                for key in [Key::Committed(*shard), Key::Purged(*shard)] {
                    key.put(&mut self.key);
                    batch.delete(&self.key);
                }
                self.put_life(batch, *shard, life);
            }
        }
        0
    }

    fn put_life(&mut self, batch: &mut WriteBatch, shard: u32, life: &Life) {
        Key::Life(shard).put(&mut self.key);
        batch.put(&self.key, life.encode());
    }

    /// Tells all who wait.
    pub(super) fn complete(&self, drained: Drained) {
        for op in drained.ops {
            match op {
                Op::Append {
                    shard,
                    epoch,
                    entries,
                    done,
                } => {
                    if let Some(last) = entries.last() {
                        shard.written(&self.core, epoch, last.log_id.index);
                    }
                    done.io_completed(Ok(()));
                }
                // The replica may have stopped waiting.
                Op::Vote { done, .. }
                | Op::Life { done, .. }
                | Op::Seed { done, .. }
                | Op::Wipe { done, .. } => {
                    drop(done.send(Ok(())));
                }
                Op::Truncate { .. } | Op::Purge { .. } | Op::Committed { .. } => {}
            }
        }
        self.core.publish(drained.ticket);
    }

    fn note_roll_over(&mut self) {
        let files = self
            .db
            .property_int_value(ROLL_OVER_PROPERTY)
            .ok()
            .flatten();
        if files != self.files {
            self.files = files;
            self.marker.wake();
        }
    }
}

/// Fills two WAL files with `bytes` each and has RocksDB recycle them, so that the synced writes to come
/// overwrite blocks that exist on disk already: the file system then has nothing of its own to sync.
pub(super) fn write_ahead(dir: &Path, db: &DB, bytes: usize) -> Result<(), Error> {
    const CHUNK_BYTES: usize = 1 << 20;
    let failed = |error| Error::storage(dir, "write ahead", error);
    if bytes == 0 {
        return Ok(());
    }
    let (mut lazy, mut synced) = (WriteOptions::default(), WriteOptions::default());
    lazy.set_sync(false);
    synced.set_sync(true);
    let filler = vec![0; CHUNK_BYTES];
    for _ in 0..2 {
        for _ in 0..bytes.div_ceil(CHUNK_BYTES) {
            let mut batch = WriteBatch::with_capacity_bytes(CHUNK_BYTES + 64);
            // Goes to the WAL only.
            batch.put_log_data(&filler);
            db.write_opt(batch, &lazy).map_err(failed)?;
        }
        let mut batch = WriteBatch::default();
        batch.put(Key::Filler.encode(), []);
        db.write_opt(batch, &synced).map_err(failed)?;
        db.flush_opt(&flush_options()).map_err(failed)?;
    }
    Ok(())
}

struct StopOnDrop(Arc<Core>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let error = if std::thread::panicking() {
            Error::Stopped {
                reason: "the log's writer panicked".to_owned(),
            }
        } else {
            super::core::closed()
        };
        if std::thread::panicking() {
            self.0.fail(&error);
        } else {
            self.0.stop(&error);
        }
    }
}

/// Wakes the mark thread.
#[derive(Default)]
pub(super) struct Marker {
    asked: Mutex<Asked>,
    wake: Condvar,
}

#[derive(Default)]
struct Asked {
    now: bool,
    stop: bool,
}

impl Marker {
    fn wake(&self) {
        self.asked.lock().now = true;
        self.wake.notify_one();
    }

    pub(super) fn stop(&self) {
        self.asked.lock().stop = true;
        self.wake.notify_one();
    }

    /// Runs until stopped; the last mark is written after the writer has ended.
    pub(super) fn run(&self, core: &Core, mut file: MarkFile) {
        loop {
            let stop = {
                let mut asked = self.asked.lock();
                if !asked.now && !asked.stop {
                    self.wake.wait_for(&mut asked, MARK_EVERY);
                }
                asked.now = false;
                asked.stop
            };
            if let Err(error) = advance(&mut file, core) {
                core.fail(&error);
                return;
            }
            if stop {
                return;
            }
        }
    }
}

/// Marks the last batch that was synced.
pub(super) fn advance(file: &mut MarkFile, core: &Core) -> Result<(), Error> {
    #[cfg(feature = "planted")]
    if mailbox_planted::is("ack-before-fsync") {
        // Nothing is known to be synced.
        return Ok(());
    }
    file.advance(core.last_batch())
}
