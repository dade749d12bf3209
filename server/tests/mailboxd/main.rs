//! Real `mailboxd` processes on free ports: what an operator and an app developer see of them.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions only, not beside them"
)]

mod auto_splits;
mod bad_input;
mod chat;
mod cluster;
mod cluster_options;
mod config;
mod dead_letters;
mod disk_room;
mod exits;
mod gateways;
mod growth;
mod http;
mod lanes;
mod metrics;
mod operate;
mod peer_tls;
mod placement;
mod process;
mod shard_merges;
mod shard_splits;
mod shards;
mod slot_moves;
mod slow_subscriber;
mod stale_reads;
mod user_limits;
mod ws;
