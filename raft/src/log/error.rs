//! What can go wrong in the shared log. Every variant but [`Error::Behind`] is a
//! fault of this node's storage.

use std::io;
use std::path::PathBuf;

use crate::types::DecodeError;

/// A fault of the shared log, naming the path, and the shard and index or batch where known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// RocksDB, or the operating system below it, reported an error.
    #[error("log {path}: {action}: {reason}")]
    Storage {
        /// Directory of the log.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// RocksDB's words.
        reason: String,
    },
    /// A file of the log that RocksDB does not own could not be read or written.
    #[error("log file {path}: {action}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's words.
        reason: String,
    },
    /// The log was written by another build.
    #[error(
        "log {path} has format {found}, this build reads format {known}: open it with a build that knows format {found}"
    )]
    Format {
        /// The mark file.
        path: PathBuf,
        /// Format number in the file.
        found: u32,
        /// Format number of this build.
        known: u32,
    },
    /// The mark file is gone or holds no valid mark although the log is not empty.
    #[error("log mark {path} is missing or damaged while the log is not empty")]
    MarkDamaged {
        /// The mark file.
        path: PathBuf,
    },
    /// The log ends below a batch that is known to have been synced.
    #[error(
        "log {path} is damaged: it ends at batch {recovered}, but the mark says that batch {marked} was synced; newest file {file}"
    )]
    BelowMark {
        /// Directory of the log.
        path: PathBuf,
        /// Newest log file, where the lost batches were.
        file: PathBuf,
        /// Greatest batch number that could be read.
        recovered: u64,
        /// Batch number in the mark file.
        marked: u64,
    },
    /// A whole batch lies behind the first missing one: that one had been synced, and is damaged.
    #[error(
        "log file {file} is damaged: batch {missing} cannot be read, but batch {found} behind it is whole ({found_in}, byte {position})"
    )]
    BatchLost {
        /// The file in which the missing batch should be.
        file: PathBuf,
        /// First batch that is missing.
        missing: u64,
        /// A whole batch behind it.
        found: u64,
        /// The file that holds that batch.
        found_in: PathBuf,
        /// Where it begins in that file, in bytes.
        position: u64,
    },
    /// A file between two others is gone, with the synced batches in it.
    #[error(
        "log {path} has lost a file: batches {missing} to {last} were between {before} and {behind}"
    )]
    FileLost {
        /// Directory of the log.
        path: PathBuf,
        /// The file before the lost one.
        before: PathBuf,
        /// The file behind it.
        behind: PathBuf,
        /// First batch that is missing.
        missing: u64,
        /// Last batch that is missing.
        last: u64,
    },
    /// A row of the log fails its checksum or does not decode.
    #[error("log {path} is damaged at shard {shard} index {index}: {reason}")]
    Entry {
        /// Directory of the log.
        path: PathBuf,
        /// The shard.
        shard: u32,
        /// The entry's index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A row other than an entry does not decode.
    #[error("log {path} is damaged: {row}: {reason}")]
    Row {
        /// Directory of the log.
        path: PathBuf,
        /// Which row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// RocksDB runs with other options than the log needs.
    #[error("log {path}: option {option} must be {wanted}, but is {found}")]
    Option {
        /// Directory of the log.
        path: PathBuf,
        /// RocksDB's name of the option.
        option: &'static str,
        /// The value that is needed.
        wanted: String,
        /// The value in the options file.
        found: String,
    },
    /// The log stopped at an earlier fault, or was closed.
    #[error("log stopped: {reason}")]
    Stopped {
        /// The first fault, or that the log was closed.
        reason: String,
    },
    /// The log does not reach an index that it was asked to have synced.
    #[error("log of shard {shard} ends at {last}, below index {wanted}")]
    Behind {
        /// The shard.
        shard: u32,
        /// The index that was asked for.
        wanted: u64,
        /// Last index of the log, 0 if it is empty.
        last: u64,
    },
}

impl Error {
    pub(super) fn file(path: impl Into<PathBuf>, action: &'static str, error: &io::Error) -> Self {
        Error::File {
            path: path.into(),
            action,
            reason: error.to_string(),
        }
    }

    pub(super) fn storage(
        path: impl Into<PathBuf>,
        action: &'static str,
        error: rocksdb::Error,
    ) -> Self {
        Error::Storage {
            path: path.into(),
            action,
            reason: error.into_string(),
        }
    }

    pub(super) fn row(path: impl Into<PathBuf>, row: &str, error: &DecodeError) -> Self {
        Error::Row {
            path: path.into(),
            row: row.to_owned(),
            reason: error.to_string(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}
