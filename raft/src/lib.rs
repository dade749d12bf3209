//! The replicas of one node: Raft groups, one shared log, snapshots and the peer network.

#[allow(dead_code)]
mod types;
