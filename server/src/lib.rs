//! gRPC services, administration and configuration of a mailbox node.
//!
//! Start reading at `run.rs` (the life of a process) and `node_role.rs` (what a node is made of);
//! then `submit.rs` and `feed.rs`, the two hot paths, and `unary.rs`, every other call. Only this
//! crate knows both the protocol's messages and the engine's types: `convert.rs` and `status.rs` are
//! the border. `cluster_map.rs` is what a node knows of all others, and `forward.rs` who is asked what this node
//! cannot say; `placement.rs` moves replicas and leaders, `slot_moves.rs` moves slots between shards,
//! `shard_splits.rs` makes two shards of one, `auto_splits.rs` says when, `shard_merges.rs` makes one of two, and
//! `gateways.rs` watches over the connection tier.

mod admin_service;
mod answers;
mod auth;
mod auto_splits;
mod cli;
mod cluster_map;
mod cluster_service;
pub mod config;
mod consistency;
mod convert;
mod core;
mod dead_letter_service;
mod dev;
mod directory;
mod error;
pub mod exit;
mod feed;
mod forward;
mod gateway_role;
mod gateways;
mod http;
mod limits;
mod listener;
mod logging;
mod mailbox_service;
mod meta_leader;
mod metrics;
mod node_role;
mod notes;
mod own_process;
mod peers;
mod placement;
mod read;
mod relay;
mod replica_metrics;
mod run;
mod shard_map;
mod shard_merges;
mod shard_splits;
mod shutdown;
pub mod simulation;
mod slot_moves;
mod status;
mod submit;
mod unary;

pub use cli::{Cli, Command, ConfigCommand, DevArgs, RoleArgs, run_config};
pub use dev::run_dev;
pub use error::Error;
pub use run::{run_gateway, run_server};
