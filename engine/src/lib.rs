//! Timelines, tables and procedures of the mailbox database: synchronous and deterministic.
//!
//! Start reading at `key.rs` (what is stored), then `command.rs` and `entry.rs` (what changes
//! it), `apply.rs` and `procedure/` (how), and below that the storage:
//!
//! ```text
//! shard.rs    one replica: apply and reads           state.rs   what its one lock holds; Context
//! item.rs     effects on other slots          lanes.rs   what rides between slots
//! dead_letter.rs   what could not be delivered, for operators
//! memtable.rs applied, not flushed                   flush.rs   memtable to file, published
//! view.rs     reads over memtables and files         base/      RocksDB, or a simulated disk
//! heads.rs, tails.rs, known.rs   caches              store.rs, range.rs   whose rows are where
//! hidden_hours.rs   dedup rows leave by file          sizes.rs   how much a shard stores
//! cluster_map.rs       nodes, shards and replicas, in the meta shard
//! gateways.rs          the connection tier, in the meta shard
//! cluster_options.rs   what all replicas judge by, in the applied row (applied.rs)
//! slot_move.rs, export.rs, import.rs   slots go to other shards
//! split.rs   slots become another shard, and shard_splits.rs which do, in the meta shard
//! snapshot.rs, install.rs   to and from other nodes  hash.rs, verify.rs, walk.rs   comparisons
//! ```
//!
//! Invariants: an entry is visible whole or not at all; a row is in a memtable or in the files of
//! the view that is read with it, never in neither; RocksDB is changed by ingested files only; a
//! range is never reused. There is no thread, clock, randomness or network in here: the owner
//! calls freeze, build and ingest from its own threads and passes ages in.

mod applied;
mod apply;
mod base;
mod cluster_map;
mod cluster_options;
mod command;
mod dead_letter;
mod decode;
mod dedup;
mod drop_shard;
mod entry;
mod error;
mod export;
mod flush;
mod gateways;
mod handle;
mod hash;
mod heads;
mod hidden_hours;
mod hlc;
mod id;
mod import;
mod install;
mod item;
mod key;
mod known;
mod lanes;
mod map;
mod memtable;
mod options;
mod procedure;
mod range;
mod row;
mod shard;
mod shard_merges;
mod shard_splits;
mod sizes;
mod slot_move;
mod slot_moves;
mod slot_rows;
mod snapshot;
mod split;
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
#[doc(hidden)]
pub use base::rocks::rocks_options;
pub use cluster_map::{
    ADDRESS_BYTES_MAX, ClusterMap, MapFault, MapNode, MapReplica, MapShard, PLACE_BYTES_MAX,
    REPLICAS_MAX, ReplicaRole, Standing,
};
pub use cluster_options::{ClusterOptions, OptionDifference, OptionFault, UserLimits};
pub use command::{
    AckCursor, AckLanes, Command, Conversation, CreateGroup, Deliver, DropDeadLetter, JoinGroup,
    LeaveGroup, LogReport, MarkRead, MetaCommand, MoveSlot, PutGateway, PutNode, Refusal,
    RegisterUser, Reply, RequeueDeadLetter, Send, SendGroup, SetClusterOptions, SplitShard,
};
pub use dead_letter::{DeadLetter, DeadLetterPage, DeadLetterTotals, LetterStanding};
pub use decode::Malformed;
pub use entry::{Commands, Entry, EntryBuilder};
pub use error::{Error, KeyText};
pub use export::{EXPORT_FORMAT, ExportMeta, SlotExport};
pub use flush::{BuiltFlush, FrozenFlush, SharedFlush};
pub use gateways::{
    GATEWAY_ADDRESS_BYTES_MAX, GATEWAY_KEPT_PERIODS, GATEWAY_REFRESH_MS, GATEWAY_SILENT_PERIODS,
    GATEWAY_TEXT_BYTES_MAX, GATEWAYS_MAX, GATEWAYS_SWEPT_MAX, GatewayFacts, GatewayFault,
    GatewayId, GatewayRow, GatewayStanding,
};
pub use handle::{HANDLE_BYTES_MAX, HandleFault, check_handle};
pub use hash::StateHash;
pub use hlc::Hlc;
pub use id::{
    DeviceId, GroupId, InvalidDevice, MessageId, NotATimeline, RangeId, Seq, ShardId, SlotId,
    TimelineId, TimelineKind, UserId, slot_of_handle, slot_of_owner,
};
pub use import::StagedImport;
pub use install::StagedInstall;
pub use item::{Item, Items, LaneId, OutboxItem};
pub use key::{DedupKey, Destination, KeyBytes, NodeKey, StateKey, StoredKey};
pub use options::EngineOptions;
pub use row::{Flags, MessageType, NewRow, RefusalCode, Row, StoredRow, content_crc};
pub use shard::{Applied, ApplyEntry, ApplyPayload, Shard, ShardMetrics};
pub use shard_merges::{MergeStage, MergeVerdict, ShardMerge};
pub use shard_splits::{ShardSplit, SplitScene, SplitVerdict, spans_of};
pub use slot_move::{ImportWait, SlotStanding, SlotTable};
pub use slot_moves::{MoveStage, SlotMove};
pub use snapshot::{SNAPSHOT_FORMAT, Snapshot, SnapshotFile, SnapshotMeta};
pub use store::{STORE_FORMAT, Store};
pub use table::{Membership, SPANS_MAX, Span};
pub use verify::VerifyReport;
