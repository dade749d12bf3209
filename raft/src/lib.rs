//! The replicas of one node: Raft groups, one shared log, snapshots and the peer network.

mod error;
#[allow(dead_code)]
mod log;
mod node;
mod options;
mod peer_service;
mod shard;
mod status;
#[allow(dead_code)]
mod types;

pub use error::{ClockFault, Error, LeaderHint, ProposeError};
pub use log::{
    Error as LogError, FSYNC_BUCKETS_US, LogBench, LogEntry, LogInspect, LogMetrics, LogOptions,
    LogPayload, ShardReport,
};
pub use node::Node;
pub use options::{ClientTls, NodeOptions, Timing};
pub use peer_service::PeerService;
pub use shard::Shard;
pub use status::{AppliedTail, Leadership, PeerStatus, ReplicaStatus, ShardStatus, StateHash};
