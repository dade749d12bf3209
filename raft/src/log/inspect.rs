//! Reads a stopped node's log without changing it, for tools.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mailbox_engine::ShardId;
use openraft::EntryPayload;
use rocksdb::DB;

use super::check::{WalView, open_read_only};
use super::error::Error;
use super::mark::MarkFile;
use super::options::LogOptions;
use super::read::DiskEntries;
use super::stored::{self, StoredShard};
use super::wal::{scan, wal_files};
use crate::types::{Entry, StoredMembership, encode_stored_membership};

/// A log opened for reading only. The node that owns it must not be running.
pub struct LogInspect {
    dir: PathBuf,
    db: DB,
    store: u64,
    batch: u64,
    marked: u64,
}

/// What an entry carries, in the engine's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPayload {
    /// Nothing: a leader's first entry.
    Blank,
    /// A membership, in the form in which the applied row holds it.
    Membership(Bytes),
    /// Encoded commands.
    Commands(Bytes),
}

/// One verified entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Term of the leader that made it.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// What it carries.
    pub payload: LogPayload,
}

/// One synced batch in a WAL file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// The file.
    pub file: PathBuf,
    /// The batch's number.
    pub number: u64,
    /// Where it begins in the file, in bytes.
    pub position: u64,
}

/// What the log holds of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// First index that was not purged.
    pub first: u64,
    /// Last index, 0 if nothing was ever written.
    pub last: u64,
    /// Term of the last entry.
    pub last_term: u64,
    /// Newest committed index that this node has noted; may lag.
    pub committed: Option<u64>,
    /// Entries verified.
    pub entries: u64,
}

impl LogInspect {
    /// Opens the log in `dir` and sees that no synced batch is missing.
    ///
    /// # Errors
    /// As the node would report them at its start: the log is damaged, of an unknown format, or unreadable.
    pub fn open(dir: &Path) -> Result<LogInspect, Error> {
        let mark = MarkFile::open(dir, false)?.ok_or_else(|| Error::MarkDamaged {
            path: MarkFile::path(dir),
        })?;
        let mark = mark.mark();
        let wal = WalView::read(dir, mark.store)?;
        let db = open_read_only(dir, &LogOptions::default())?;
        let batch = wal.check_replay(dir, mark, &db)?;
        Ok(LogInspect {
            dir: dir.to_owned(),
            db,
            store: mark.store,
            batch,
            marked: mark.batch,
        })
    }

    /// Number of the newest batch.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Number of the batch that the mark file names; at most [`LogInspect::batch`].
    pub fn marked(&self) -> u64 {
        self.marked
    }

    /// The whole batches in the WAL files, in order: those that were not flushed yet, and what has not
    /// been overwritten of older ones. Where to look at, or to damage, a log.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn batches(&self) -> Result<Vec<LogBatch>, Error> {
        let failed = |path: &Path, error| Error::file(path, "read", &error);
        let mut batches = Vec::new();
        for (log, file) in wal_files(&self.dir).map_err(|error| failed(&self.dir, error))? {
            scan(&file, log, |batch| {
                if batch.row.store == self.store {
                    batches.push(LogBatch {
                        file: file.clone(),
                        number: batch.row.number,
                        position: batch.position,
                    });
                }
            })
            .map_err(|error| failed(&file, error))?;
        }
        Ok(batches)
    }

    /// Reads and verifies every row of the log, and reports its shards in order.
    ///
    /// # Errors
    /// The first damaged row, named by shard and index, or a read error.
    pub fn verify(&self) -> Result<Vec<ShardReport>, Error> {
        self.shards()?
            .into_iter()
            .map(|shard| {
                let stored = StoredShard::read(&self.dir, &self.db, shard.0)?;
                let mut report = ShardReport {
                    shard,
                    first: stored.first,
                    last: stored.last.map_or(0, |last| last.index),
                    last_term: stored.last.map_or(0, |last| last.leader_id.term),
                    committed: stored.committed.map(|committed| committed.index),
                    entries: 0,
                };
                for entry in self.entries(shard, 0)? {
                    entry?;
                    report.entries += 1;
                }
                Ok(report)
            })
            .collect()
    }

    /// The shards that have rows here, in order.
    ///
    /// # Errors
    /// A key that is none of the log's, or a read error.
    pub fn shards(&self) -> Result<Vec<ShardId>, Error> {
        let shards = stored::shards(&self.dir, &self.db)?;
        Ok(shards.into_iter().collect())
    }

    /// The entries of `shard` from index `from`, or from the first that was not purged, to the last.
    /// Ends after the first error.
    ///
    /// # Errors
    /// If the shard's other rows are damaged or cannot be read.
    pub fn entries(
        &self,
        shard: ShardId,
        from: u64,
    ) -> Result<impl Iterator<Item = Result<LogEntry, Error>>, Error> {
        let stored = StoredShard::read(&self.dir, &self.db, shard.0)?;
        let end = stored.last.map_or(stored.first, |last| last.index + 1);
        let start = stored.first.max(from);
        let entries = DiskEntries::new(&self.dir, &self.db, shard.0, start, end);
        Ok(entries.map(|entry| entry.map(LogEntry::of)))
    }
}

impl LogEntry {
    fn of(entry: Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => LogPayload::Blank,
            EntryPayload::Normal(commands) => LogPayload::Commands(commands.0),
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership);
                LogPayload::Membership(encode_stored_membership(&stored).into())
            }
        };
        LogEntry {
            term: entry.log_id.leader_id.term,
            index: entry.log_id.index,
            payload,
        }
    }
}
