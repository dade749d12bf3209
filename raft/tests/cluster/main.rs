//! Nodes in one process, each with its own runtime, over real loopback connections.

#![allow(clippy::unwrap_used)]

mod freshness;
mod hosting;
mod leadership;
mod leases;
mod membership;
mod nodes;
mod proposals;
mod restarts;
mod shards;
mod slots;
mod splits;
