//! Starts, stops, kills and restarts real `mailboxd` processes on one machine.
//!
//! For tests, benchmarks and people who want a cluster to play with. Everything listens on
//! loopback, on ports that were free at the start; no process outlives the [`Cluster`].

mod cluster;
mod node;

pub use cluster::{Cluster, ClusterOptions};
pub use node::{IoBytes, Node};
