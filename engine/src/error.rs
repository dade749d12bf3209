//! Storage faults and corrupt bytes. A *no* to a client is not here: it is a `Refusal`.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::decode::Malformed;
use crate::id::{Seq, ShardId, SlotId, TimelineId};

/// A stored key, printed in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(pub Box<[u8]>);

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fault of this replica's storage. Whoever meets one in apply or flush stops the replica.
#[derive(Debug, Error)]
pub enum Error {
    /// RocksDB failed.
    #[error("{operation} failed in the store at {path}")]
    Rocks {
        /// What was tried.
        operation: &'static str,
        /// The store's directory, or the file.
        path: PathBuf,
        /// RocksDB's own words.
        source: rocksdb::Error,
    },
    /// A file operation failed.
    #[error("{operation} failed at {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A block of a file fails RocksDB's checksum or makes no sense to it.
    #[error("file {file} is corrupt at or after key {key}")]
    CorruptFile {
        /// The file, or the store's directory if RocksDB does not name it.
        file: PathBuf,
        /// The key that was sought, or the last one read before the fault.
        key: KeyText,
        /// RocksDB's own words.
        source: rocksdb::Error,
    },
    /// A stored row does not decode or fails its checksum.
    #[error("row {key}: {malformed}")]
    CorruptRow {
        /// The row's key as stored.
        key: KeyText,
        /// What is wrong with it.
        malformed: Malformed,
    },
    /// A snapshot file is not what its maker wrote.
    #[error("snapshot file {path}: {malformed}")]
    CorruptSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        malformed: Malformed,
    },
    /// An entry's bytes are not what its proposer made: a fault of this replica.
    #[error("entry: {malformed}")]
    CorruptEntry {
        /// What is wrong with it.
        malformed: Malformed,
    },
    /// Bytes in a format that this build does not read.
    #[error("{what} at {path} has format {found}, this build reads format {supported}")]
    UnknownFormat {
        /// The store, the log, a snapshot.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its format number.
        found: u32,
        /// The format number of this build.
        supported: u32,
    },
    /// This store holds no such shard.
    #[error("shard {shard} is not on this node")]
    UnknownShard {
        /// The shard asked for.
        shard: ShardId,
    },
    /// The store was made with another slot count, which never changes.
    #[error("the store at {path} has {stored} slots, {asked} are configured")]
    SlotCount {
        /// Where the store is.
        path: PathBuf,
        /// As stored at bootstrap.
        stored: u16,
        /// As configured now.
        asked: u16,
    },
    /// This shard does not hold such a slot.
    #[error("slot {slot} is not in this shard")]
    UnknownSlot {
        /// The slot asked for.
        slot: SlotId,
    },
    /// The slot has left this shard, or is about to.
    #[error("slot {slot} is in shard {shard} from epoch {epoch} on")]
    WrongOwner {
        /// The slot asked for.
        slot: SlotId,
        /// Who has it.
        shard: ShardId,
        /// The move's.
        epoch: u64,
    },
    /// No import of this slot is under way here: its begin is not applied yet, or it is over.
    #[error("no import of slot {slot} under epoch {epoch} is under way")]
    NotImporting {
        /// The slot.
        slot: SlotId,
        /// As asked.
        epoch: u64,
    },
    /// Rows of this slot are being staged by another call.
    #[error("rows of slot {slot} are being staged already")]
    StagingBusy {
        /// The slot.
        slot: SlotId,
    },
    /// The slot was here before, and the drop that ended that has not been flushed. Flush, then stage.
    #[error("slot {slot} has left this shard before, and that is not flushed yet")]
    DropNotFlushed {
        /// The slot.
        slot: SlotId,
    },
    /// Changes of a copy that is not the one staged here. Stage a whole one.
    #[error("the rows of slot {slot} staged here are not those that the changes were made for")]
    OtherCopy {
        /// The slot.
        slot: SlotId,
    },
    /// A timeline has a gap, which no operation makes.
    #[error("{timeline} has no row {seq}: the next one is {found}")]
    MissingRow {
        /// The timeline.
        timeline: TimelineId,
        /// The seq expected.
        seq: Seq,
        /// The seq found.
        found: Seq,
    },
    /// The order of calls was wrong, or a previous fault has stopped this shard.
    #[error("the shard cannot go on: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

impl Error {
    /// A corrupt row under this key.
    pub fn corrupt_row(key: &[u8], malformed: Malformed) -> Error {
        Error::CorruptRow {
            key: KeyText(key.into()),
            malformed,
        }
    }
}
