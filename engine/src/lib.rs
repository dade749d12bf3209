//! Timelines, tables and procedures of the mailbox database: synchronous and deterministic.
//!
//! Start reading at `key.rs` (what is stored), then `command.rs` and `entry.rs` (what changes
//! it), `apply.rs` and `procedure/` (how).

mod applied;
mod apply;
mod base;
mod command;
mod decode;
mod dedup;
mod entry;
mod error;
mod flush;
mod handle;
mod hash;
mod heads;
mod hlc;
mod id;
mod install;
mod key;
mod known;
mod map;
mod memtable;
mod options;
mod procedure;
mod range;
mod row;
mod shard;
mod snapshot;
mod state;
mod store;
mod table;
mod tables;
mod tails;
#[cfg(test)]
mod tests;
mod verify;
mod view;
mod walk;

pub use applied::{AppliedState, LogId};
pub use base::memory::{IngestCrash, MemoryDisk};
pub use command::{
    AckCursor, Command, Conversation, CreateGroup, HandleFault, JoinGroup, LeaveGroup, MarkRead,
    Refusal, RegisterUser, Reply, Send, SendGroup,
};
pub use decode::Malformed;
pub use entry::{Commands, Entry, EntryBuilder};
pub use error::{Error, KeyText};
pub use flush::{BuiltFlush, FrozenFlush};
pub use handle::{HANDLE_BYTES_MAX, check_handle};
pub use hash::StateHash;
pub use hlc::Hlc;
pub use id::{
    DeviceId, GroupId, InvalidDevice, MessageId, NotATimeline, RangeId, Seq, ShardId, SlotId,
    TimelineId, TimelineKind, UserId, slot_of_handle, slot_of_owner,
};
pub use key::{DedupKey, Destination, KeyBytes, NodeKey, StateKey, StoredKey};
pub use options::EngineOptions;
pub use row::{Flags, MessageType, NewRow, RefusalCode, Row, StoredRow, content_crc};
pub use shard::{Applied, ApplyEntry, ApplyPayload, Shard, ShardMetrics};
pub use snapshot::{SNAPSHOT_FORMAT, Snapshot, SnapshotFile, SnapshotMeta};
pub use store::{STORE_FORMAT, Store};
pub use table::{Membership, SPANS_MAX, Span};
pub use verify::VerifyReport;
