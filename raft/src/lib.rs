//! The replicas of one node: Raft groups, one shared log, snapshots and the peer network.

mod announcer;
mod background;
mod ballot;
mod base_thread;
mod change;
mod children;
mod clock;
mod cluster_options;
mod commands;
mod disk;
mod election;
mod entry_tick;
mod error;
mod filling;
mod flush_due;
mod flush_pace;
mod freshness;
mod hosting;
mod identity;
mod kept_log;
mod late_commits;
mod leadership;
mod learner_pace;
mod lease;
mod log;
mod membership;
mod moment;
mod network;
mod node;
mod open;
mod options;
mod outbox;
mod peer_link;
mod peer_service;
mod peers;
mod pending_acks;
mod promise;
mod proposer;
mod pulse;
mod raft_config;
mod read_barrier;
mod replica;
mod shard;
pub mod simulation;
mod slot_copy;
mod snapshot;
mod stager;
mod state_machine;
mod status;
mod traffic;
mod types;
mod wire;

pub use mailbox_engine::StateHash;

pub use error::{ClockFault, Error, LeaderHint, ProposeError};
pub use freshness::Fresh;
pub use log::{
    Error as LogError, FSYNC_BUCKETS_US, LogBatch, LogBench, LogEntry, LogInspect, LogMetrics,
    LogOptions, LogPayload, ShardReport,
};
pub use membership::{ChangeError, Membership, MembershipChange};
pub use node::Node;
pub use options::{Admission, Admit, ClientTls, NodeOptions, Timing, first_slots};
pub use outbox::{Outbox, Waiting};
pub use peer_service::PeerService;
pub use shard::Shard;
pub use slot_copy::{StageOrder, StageState};
pub use snapshot::SnapshotBytes;
pub use status::{
    AppliedTail, Leadership, PeerStatus, ReadCounts, ReplicaStatus, RowsWait, ShardStatus,
};
pub use traffic::{HotTimeline, TrafficCounts};
