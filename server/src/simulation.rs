//! A store node in a simulation, with nothing of the process around it: see [`mailbox_raft::simulation`].

use mailbox_engine::MemoryDisk;
pub use mailbox_gateway::MetricsRegistry;
pub use mailbox_raft::simulation::begin;

use crate::config::Config;
use crate::error::Error;
use crate::node_role::RunningNode;

/// Runs a node with its rows on `disk` until it cannot go on; `registry` gets its metrics. Whoever drives the runtime
/// stops it by dropping that.
///
/// # Errors
/// Why it does not start, or what ended it.
pub async fn run_node(
    config: &Config,
    disk: MemoryDisk,
    registry: MetricsRegistry,
) -> Result<(), Error> {
    let starting = RunningNode::start_on(config, registry, Some(disk));
    Err(starting.await?.failed().await)
}
