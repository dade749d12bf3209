//! Whether the log that RocksDB recovers is the whole log: a shortened one must never pass for it, or
//! this replica would vote without entries that it has acked.
//!
//! A batch is written only after the one before it was synced. So:
//! - a whole batch in a WAL file that replay does not reach proves that something before it is damaged;
//!   pieces of the first missing batch prove nothing, since a power cut may keep its later blocks and
//!   lose its first;
//! - a log that ends below the mark has lost a synced batch.
//!
//! Everything else is a write that was cut off, and never acked. What this cannot see: damage to the
//! newest synced batches inside the mark's lag, after a crash.
//!
//! The files are looked at before RocksDB opens them for writing: opening removes what it could not
//! replay, and the second start would find nothing wrong.

use std::path::{Path, PathBuf};

use rocksdb::DB;

use super::error::Error;
use super::key::Key;
use super::mark::Mark;
use super::options::{LogOptions, rocksdb_options};
use super::row::BatchRow;
use super::wal::{WalBatch, scan, wal_files};

/// What the WAL files hold, RocksDB not asked.
#[derive(Debug)]
pub(super) struct WalView {
    /// The newest file, or the directory if there is none.
    newest_file: PathBuf,
    /// The batch with the greatest number, and its file.
    newest: Option<(WalBatch, PathBuf)>,
    /// Batches are missing in between, or follow damage: only RocksDB can tell where replay stops.
    broken: bool,
}

impl WalView {
    pub(super) fn read(dir: &Path, store: u64) -> Result<WalView, Error> {
        let files = wal_files(dir).map_err(|error| Error::file(dir, "list", &error))?;
        let mut view = WalView {
            newest_file: files.last().map_or(dir, |(_, path)| path).to_owned(),
            newest: None,
            broken: false,
        };
        for (log, path) in files {
            let mut last: Option<WalBatch> = view.newest.as_ref().map(|(batch, _)| *batch);
            let before = last;
            let mut broken = false;
            scan(&path, log, |batch| {
                // Bytes of another store cannot be here; they are left to RocksDB.
                if batch.row.store != store {
                    return;
                }
                let next = last.map(|last| last.row.number + 1);
                broken |= batch.behind_damage || next.is_some_and(|next| next != batch.row.number);
                if last.is_none_or(|last| last.row.number < batch.row.number) {
                    last = Some(batch);
                }
            })
            .map_err(|error| Error::file(&path, "read", &error))?;
            view.broken |= broken;
            if last != before {
                view.newest = last.map(|batch| (batch, path));
            }
        }
        Ok(view)
    }

    fn newest_number(&self) -> u64 {
        self.newest
            .as_ref()
            .map_or(0, |(batch, _)| batch.row.number)
    }

    /// Whether RocksDB must be asked, without letting it write, where replay stops.
    pub(super) fn is_suspect(&self, mark: Mark) -> bool {
        self.broken || self.newest_number() < mark.batch
    }

    /// Compares with the batch number that RocksDB recovered.
    pub(super) fn check(&self, dir: &Path, mark: Mark, recovered: u64) -> Result<(), Error> {
        if let Some((batch, file)) = &self.newest
            && batch.row.number > recovered
        {
            return Err(Error::BatchLost {
                file: file.clone(),
                missing: recovered + 1,
                found: batch.row.number,
                position: batch.position,
            });
        }
        if recovered < mark.batch {
            return Err(Error::BelowMark {
                path: dir.to_owned(),
                file: self.newest_file.clone(),
                recovered,
                marked: mark.batch,
            });
        }
        Ok(())
    }
}

/// The database with what RocksDB replays from the files as they are; nothing is changed.
pub(super) fn open_read_only(dir: &Path, options: &LogOptions) -> Result<DB, Error> {
    let mut rocks = rocksdb_options(options);
    rocks.create_if_missing(false);
    DB::open_for_read_only(&rocks, dir, false)
        .map_err(|error| Error::storage(dir, "open read-only", error))
}

/// The batch number in the database, 0 if no batch was ever written.
pub(super) fn recovered_batch(dir: &Path, db: &DB, store: u64) -> Result<u64, Error> {
    let damaged = |reason: String| Error::Row {
        path: dir.to_owned(),
        row: "batch row".to_owned(),
        reason,
    };
    let value = db
        .get_pinned(Key::Batch.encode())
        .map_err(|error| damaged(error.into_string()))?;
    let Some(value) = value else { return Ok(0) };
    let row = BatchRow::decode(&value)
        .ok_or_else(|| damaged(format!("{} bytes are no batch row", value.len())))?;
    if row.store != store {
        return Err(damaged(format!(
            "written by log {:016x}, the mark file belongs to log {store:016x}",
            row.store
        )));
    }
    Ok(row.number)
}
