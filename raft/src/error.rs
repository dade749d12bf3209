//! What can go wrong: when a node starts, and when something is asked of a shard.

use std::path::PathBuf;

use mailbox_engine::ShardId;

/// A node cannot start, stop or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{operation} failed at {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The store of rows failed or does not open.
    #[error(transparent)]
    Engine(#[from] mailbox_engine::Error),
    /// The log failed or does not open.
    #[error("{0}")]
    Log(String),
    /// The directory belongs to another node or cluster.
    #[error("{path} has {what} {found}, but the options say {wanted}")]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// Which field differs.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A directory without an identity holds a shard that these options would not make.
    #[error(
        "{path} has no IDENTITY, but shard {shard} is there with other slots than one of {shard_count} shards of \
         {slot_count} slots: if this node never ran, its bootstrap was cut short under other options; \
         remove the directory's content"
    )]
    Leftover {
        /// The node's directory.
        path: PathBuf,
        /// The shard.
        shard: ShardId,
        /// As the options say.
        shard_count: u16,
        /// As the options say.
        slot_count: u16,
    },
    /// The identity file does not parse.
    #[error("{path} is damaged: {reason}")]
    DamagedIdentity {
        /// The identity file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The directory was written by another build.
    #[error(
        "{path} has {what} format {found}; this build reads {supported}: use a build that reads {found}"
    )]
    UnknownFormat {
        /// The file that says so.
        path: PathBuf,
        /// Store, log, snapshot or peer protocol.
        what: &'static str,
        /// The number found.
        found: u32,
        /// The number that this build knows.
        supported: u32,
    },
    /// The log ends before the state that was applied from it, and no snapshot explains it.
    #[error(
        "the log of shard {shard} at {path} ends at index {last}, but its state has applied {applied}: \
         the log has lost entries; this node must not vote with it"
    )]
    LostLog {
        /// The shard.
        shard: ShardId,
        /// The log's directory.
        path: PathBuf,
        /// Last index in the log; 0 if there is none.
        last: u64,
        /// Applied index of the state.
        applied: u64,
    },
    /// The node has an identity, but what it had stored is gone.
    #[error(
        "{path} names a node whose {what} is gone: a node that has lost its disk must not come back under its old id"
    )]
    LostData {
        /// The identity file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The node is configured for other cluster options than the cluster has.
    #[error(
        "{differences}; the options of a cluster are those that its first leader had, on every node          (shard {shard}): set this node's to the cluster's values and start it again"
    )]
    ClusterOptions {
        /// The shard that has the cluster's values.
        shard: ShardId,
        /// Each option that differs, with both values.
        differences: String,
    },
    /// An option is out of its bounds.
    #[error("option {option}: {reason}")]
    Option {
        /// Which option.
        option: &'static str,
        /// Its bound and its value.
        reason: String,
    },
    /// The cluster does not let this node in.
    #[error("the cluster refuses this node: {reason}")]
    Refused {
        /// What the cluster has said.
        reason: String,
    },
    /// A replica that its shard still counts on is not removed.
    #[error(
        "node {node} is a member of shard {shard} as far as it knows: the shard's leader must remove it first"
    )]
    StillMember {
        /// The shard.
        shard: ShardId,
        /// This node.
        node: u64,
    },
    /// The node stops: it takes up nothing new.
    #[error("the node is stopping")]
    Stopping,
    /// A replica stopped on a fault.
    #[error("shard {shard} stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// The fault.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Error::Io {
            operation,
            path: path.into(),
            source,
        }
    }
}

/// Where a shard's leader was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    /// Its node id.
    pub node: u64,
    /// Its `host:port`.
    pub address: String,
}

/// Why a shard did not answer. Trying again with the same ids is always safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader; nothing was proposed here.
    #[error("this node is not the leader of the shard")]
    NotLeader {
        /// Where it was last seen.
        leader: Option<LeaderHint>,
    },
    /// No majority, no leadership yet, or leadership lost after proposing: the outcome is unknown.
    #[error("the shard is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Too much waits already.
    #[error("{queued_bytes} bytes wait for the shard, {limit} at most")]
    Busy {
        /// Bytes proposed and not yet applied.
        queued_bytes: u64,
        /// The limit `queue_bytes_max`.
        limit: u64,
    },
    /// Too much is on its way to other slots already.
    #[error(
        "{bytes} bytes in the shard's outboxes wait for other shards, outbox_bytes_max is {limit}"
    )]
    OutboxFull {
        /// Bytes of the items that their destinations are not known to have.
        bytes: u64,
        /// The limit `outbox_bytes_max`.
        limit: u64,
    },
    /// Too little room on the disk.
    #[error("{} has {free} bytes free, {needed} needed", path.display())]
    DiskFull {
        /// The node's directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        needed: u64,
    },
    /// The node's clock cannot be trusted.
    #[error(transparent)]
    ClockSkew(#[from] ClockFault),
    /// The commands of one call do not fit into one entry.
    #[error("the call has {bytes} bytes, an entry {limit} at most")]
    EntryTooLarge {
        /// Bytes of the call's commands.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why a node's clock gives no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockFault {
    /// Not compared with a peer's yet.
    #[error("the clock has not been compared with a peer's yet")]
    NotCompared,
    /// Too far from the median of all clocks.
    #[error(
        "the clock is {skew_ms} ms ahead of the median of all nodes, {limit_ms} at most either way"
    )]
    Skewed {
        /// This clock minus the median.
        skew_ms: i64,
        /// The limit `clock_skew_max`.
        limit_ms: u64,
    },
}
