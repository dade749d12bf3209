//! Whether the log that RocksDB recovers is the whole log: a shortened one must never pass for it, or
//! this replica would vote without entries that it has acked.
//!
//! A batch is written only after the one before it was synced. So:
//! - a whole batch in a WAL file that replay does not reach proves that something before it is damaged;
//!   pieces of the first missing batch prove nothing, since a power cut may keep its later blocks and
//!   lose its first;
//! - batches missing between two files that are both replayed were in a file that is gone;
//! - a log that ends below the mark has lost a synced batch.
//!
//! Everything else is a write that was cut off, and never acked. What this cannot see: damage to the
//! newest synced batches inside the mark's lag, after a crash; and the oldest file gone of those that
//! are replayed, since files older than these are removed as they fall out of use.
//!
//! The files are looked at before RocksDB opens them for writing: opening removes what it could not
//! replay, and the second start would find nothing wrong.

use std::path::{Path, PathBuf};

use rocksdb::{DB, properties};

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
    /// The files that hold whole batches, in order.
    files: Vec<WalFile>,
    /// Batches are missing in between, or follow damage: only RocksDB can tell where replay stops.
    broken: bool,
}

#[derive(Debug)]
struct WalFile {
    number: u64,
    path: PathBuf,
    first: WalBatch,
    /// The one with the greatest number.
    last: WalBatch,
}

impl WalView {
    pub(super) fn read(dir: &Path, store: u64) -> Result<WalView, Error> {
        let files = wal_files(dir).map_err(|error| Error::file(dir, "list", &error))?;
        let mut view = WalView {
            newest_file: files.last().map_or(dir, |(_, path)| path).to_owned(),
            files: Vec::new(),
            broken: false,
        };
        for (log, path) in files {
            let mut next = view.files.last().map(|file| file.last.row.number + 1);
            let mut broken = false;
            let mut file: Option<WalFile> = None;
            scan(&path, log, |batch| {
                // Bytes of another store can only be a client's; they are no batch.
                if batch.row.store != store {
                    return;
                }
                broken |= batch.behind_damage || next.is_some_and(|next| next != batch.row.number);
                next = Some(batch.row.number + 1);
                let file = file.get_or_insert_with(|| WalFile {
                    number: log,
                    path: path.clone(),
                    first: batch,
                    last: batch,
                });
                if file.last.row.number < batch.row.number {
                    file.last = batch;
                }
            })
            .map_err(|error| Error::file(&path, "read", &error))?;
            view.broken |= broken;
            view.files.extend(file);
        }
        Ok(view)
    }

    fn newest(&self) -> Option<&WalFile> {
        self.files.iter().max_by_key(|file| file.last.row.number)
    }

    /// Whether RocksDB must be asked, without letting it write, where replay stops.
    pub(super) fn is_suspect(&self, mark: Mark) -> bool {
        let newest = self.newest().map_or(0, |file| file.last.row.number);
        self.broken || newest < mark.batch
    }

    /// Compares with all that RocksDB, not yet allowed to write, makes of the files; returns the batch
    /// number that it recovers.
    pub(super) fn check_replay(&self, dir: &Path, mark: Mark, db: &DB) -> Result<u64, Error> {
        let recovered = recovered_batch(dir, db, mark.store)?;
        self.check(dir, mark, recovered)?;
        let oldest = db
            .property_int_value(properties::MIN_LOG_NUMBER_TO_KEEP)
            .map_err(|error| Error::storage(dir, "find the oldest file of", error))?;
        // Without the figure every file counts: better a refusal too many than one too few.
        self.check_files(dir, oldest.unwrap_or(0))?;
        Ok(recovered)
    }

    /// Whether the files from number `oldest` on, which are replayed, follow each other without a gap.
    /// Older ones have fallen out of use and are removed in any order.
    fn check_files(&self, dir: &Path, oldest: u64) -> Result<(), Error> {
        let mut replayed = self.files.iter().filter(|file| file.number >= oldest);
        let Some(mut before) = replayed.next() else {
            return Ok(());
        };
        for behind in replayed {
            let (end, begin) = (before.last.row.number, behind.first.row.number);
            if begin > end + 1 {
                return Err(Error::FileLost {
                    path: dir.to_owned(),
                    before: before.path.clone(),
                    behind: behind.path.clone(),
                    missing: end + 1,
                    last: begin - 1,
                });
            }
            before = behind;
        }
        Ok(())
    }

    /// Compares with the batch number that RocksDB recovered.
    pub(super) fn check(&self, dir: &Path, mark: Mark, recovered: u64) -> Result<(), Error> {
        if let Some(newest) = self.newest()
            && newest.last.row.number > recovered
        {
            return Err(Error::BatchLost {
                file: self.damaged_file(recovered).to_owned(),
                missing: recovered + 1,
                found: newest.last.row.number,
                found_in: newest.path.clone(),
                position: newest.last.position,
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

    /// Where the batch behind `recovered` should be. If it was the first of its file or the last of the
    /// one before, the damage tells which: nothing can be amiss before the first piece of a whole file.
    fn damaged_file(&self, recovered: u64) -> &Path {
        let Some(behind) = self
            .files
            .iter()
            .position(|file| file.last.row.number > recovered)
        else {
            return &self.newest_file;
        };
        let file = &self.files[behind];
        let whole_start = !file.first.behind_damage && file.first.row.number > recovered;
        match behind.checked_sub(1) {
            Some(before) if whole_start => &self.files[before].path,
            Some(_) | None => &file.path,
        }
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
