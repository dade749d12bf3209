//! Starts, stops, kills and restarts real `mailboxd` processes on one machine.
//!
//! For tests, benchmarks and people who want a cluster to play with. Everything listens on loopback unless a [`Host`]
//! says otherwise, on ports that were free at the first start; no process outlives the [`Cluster`], not even when its
//! owner is killed (where `setpriv` is installed).

mod auth_key;
mod binary;
mod cluster;
mod config;
mod door;
mod host;
mod layout;
mod metrics;
mod node;
mod process;
mod usage;

pub use auth_key::AuthKey;
pub use binary::find as find_mailboxd;
pub use cluster::{Cluster, ClusterOptions};
pub use host::Host;
pub use metrics::sum as metric_sum;
pub use node::Node;
pub use usage::IoBytes;
