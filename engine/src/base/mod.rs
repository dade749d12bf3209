//! The store under the memtables: an ordered map that is changed by whole sorted files only.
//!
//! Two implementations: RocksDB, and one in memory that loses what was not synced, for simulation.

pub(crate) mod memory;
pub(crate) mod rocks;
mod stepped;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::id::RangeId;

pub(crate) use stepped::SteppedWriter;

/// What holds the flushed rows of a node. Every method that changes it is called by one thread; files may be staged
/// by others meanwhile.
pub(crate) trait Base: Send + Sync {
    /// A read view of what is ingested now.
    fn view(&self) -> Arc<dyn ReadView>;

    /// Begins a file in the staging directory. Rows are put in key order, each key once.
    fn writer(&self, life: FileLife) -> Result<Box<dyn FileWriter + '_>, Error>;

    /// Takes finished files in, all or none, and removes every row of the dropped ranges. Durable
    /// when it returns. Of two files with the same key the later one wins; a row of a dropped
    /// range must not be in the files.
    fn ingest(&self, files: Vec<StagedFile>, dropped: &[RangeId]) -> Result<(), Error>;

    /// Throws finished files away that will not be ingested. What stays of them goes at the next open.
    fn discard(&self, files: Vec<StagedFile>);

    /// Removes files that hold nothing but dedup rows of hours before `end`. Rows of these hours
    /// that lie beside others may stay. Read views lose them too.
    fn drop_hours(&self, end: u32) -> Result<(), Error>;

    /// Makes a copy of the whole store in a directory that does not exist yet.
    fn checkpoint(&self, dir: &Path) -> Result<(), Error>;

    /// Reads every block of every file once more and checks its checksum. Each fault is told to
    /// `fault`; an `Err` means that the walk itself could not go on.
    fn verify(&self, fault: &mut dyn FnMut(Error)) -> Result<(), Error>;

    /// Files that no compaction has merged yet.
    fn level0_files(&self) -> u64;

    /// Rows that reached the store other than in files: there are none, as a test shows.
    #[cfg(test)]
    fn direct_rows(&self) -> u64;

    /// Bytes of all live files.
    fn file_bytes(&self) -> u64;

    /// About how many bytes of files the rows of each span of keys take, from indices only: as coarse as a block. A
    /// fault counts as nothing, since whoever reads the rows meets it.
    fn span_bytes(&self, spans: &[KeySpan]) -> Vec<u64>;
}

/// From the first key (inclusive) to the second (exclusive).
pub(crate) type KeySpan = (Vec<u8>, Vec<u8>);

/// How long a file will be there as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileLife {
    /// Until compaction merges it with others like it: soon. To compress it is not worth its while.
    Short,
    /// It may lie below all others for as long as there are rows in it.
    Long,
}

/// A finished file in the staging directory: the argument of [`Base::ingest`].
#[derive(Debug)]
pub(crate) struct StagedFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// One sorted file being written.
pub(crate) trait FileWriter {
    /// Adds a row; keys must rise.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error>;

    /// Adds a tombstone; keys must rise.
    fn delete(&mut self, key: &[u8]) -> Result<(), Error>;

    /// Syncs and closes the file. A file has at least one row.
    fn finish(self: Box<Self>) -> Result<StagedFile, Error>;
}

/// The store as it was at one moment, whatever is ingested later.
pub(crate) trait ReadView: Send + Sync {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// A cursor over the keys from `lower` (inclusive) to `upper` (exclusive), on no row yet.
    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a>;
}

/// Walks the rows of a read view. A fault while reading is an `Err` that names file and key.
pub(crate) trait Cursor {
    /// Goes to the first row at or after `key`.
    fn seek(&mut self, key: &[u8]) -> Result<(), Error>;

    /// Goes to the last row below the upper bound.
    fn seek_to_last(&mut self) -> Result<(), Error>;

    /// Goes to the next row.
    fn next(&mut self) -> Result<(), Error>;

    /// The row it is on, or `None` past the ends.
    fn row(&self) -> Option<(&[u8], &[u8])>;
}
