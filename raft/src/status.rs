//! What a node says about itself and its replicas.

use std::time::Instant;

use mailbox_engine::{Row, ShardId, SlotId, TimelineId};

use crate::error::LeaderHint;

/// Who leads a shard, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This node.
    Leader {
        /// Its term.
        term: u64,
        /// It has applied the first entry of its term, and so may propose.
        ready: bool,
    },
    /// Another node, or nobody known.
    Follower {
        /// Where the leader was last seen.
        leader: Option<LeaderHint>,
        /// Greatest term seen.
        term: u64,
    },
}

impl Leadership {
    /// Whether this node leads and may propose.
    pub fn is_ready(&self) -> bool {
        matches!(self, Leadership::Leader { ready: true, .. })
    }
}

/// What a batch of entries appended, handed out right after it became visible.
#[derive(Debug)]
pub struct AppliedTail {
    /// Index of the batch's last entry.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Rows in seq order, by timeline. A timeline may come more than once.
    pub appended: Vec<(TimelineId, Vec<Row>)>,
}

/// How far one replica of a shard has got, as its leader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The node that holds it.
    pub node: u64,
    /// Last index that its log is known to share with the leader's; 0 if none.
    pub matched_index: u64,
    /// It votes; a learner does not.
    pub voter: bool,
}

/// Reads that a replica has answered since it was opened, by what they were made sure by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// By a majority that was asked.
    pub barrier: u64,
    /// By a lease.
    pub lease: u64,
    /// By nothing but a bound on how stale they are.
    pub stale: u64,
}

/// Apply waits for the rows of a slot that moves into the shard.
#[derive(Clone, Copy, Debug)]
pub struct RowsWait {
    /// The slot.
    pub slot: SlotId,
    /// From when on.
    pub since: Instant,
}

/// State of one replica. An index of 0 means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    /// The leader's node id; 0 if unknown.
    pub leader: u64,
    /// Greatest term seen.
    pub term: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Last index known to be committed.
    pub committed_index: u64,
    /// Last index that readers see.
    pub applied_index: u64,
    /// Last index whose effects are in files.
    pub flushed_index: u64,
    /// Last index that the log no longer holds.
    pub purged_index: u64,
    /// Bytes pinned by the active memtable and the frozen ones.
    pub memtable_bytes: u64,
    /// Of the leader only.
    pub replicas: Vec<ReplicaStatus>,
}

/// State of one node as another sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its id.
    pub node: u64,
    /// Its `host:port`.
    pub address: String,
    /// The last try to reach it worked. True for the node itself.
    pub connected: bool,
}
