//! The cluster's options, as this node is configured and as its shards have them.
//!
//! Apply judges by the replicated ones only, so a node that is configured otherwise does no harm; but its
//! operator believes in limits that do not hold. It is told at the first moment at which it can be known: when
//! the store is opened, or, if the options were not in its files then, when an entry or a snapshot has brought
//! them. Later changes by command stop nobody: the nodes that run take them over, and their configuration is
//! compared when they start again.

use std::sync::Arc;

use mailbox_engine::{ClusterOptions, Shard, ShardId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::replica::Shared;
use crate::types::LogId;

/// Refuses a configuration that differs from what the shard has. A shard without options agrees with any, and so
/// does the meta shard: nothing in it is judged by them.
pub(crate) fn compare(configured: &ClusterOptions, shard: &Shard) -> Result<(), Error> {
    let Some(replicated) = shard
        .cluster_options()
        .filter(|_| shard.id() != ShardId::META)
    else {
        return Ok(());
    };
    let differences = configured.differences(&replicated);
    if differences.is_empty() {
        return Ok(());
    }
    let words = differences.iter().map(|difference| {
        let (option, own, cluster) = (difference.option, difference.left, difference.right);
        format!(
            "cluster.{option} is {own} in this node's configuration and {cluster} in the cluster"
        )
    });
    Err(Error::ClusterOptions {
        shard: shard.id(),
        differences: words.collect::<Vec<_>>().join(", "),
    })
}

/// What a leader proposes to a shard that lacks some. An older shard gets only what is configured by name: nodes of
/// a build that does not know the others may still be in the cluster, and could not read the entry.
pub(crate) fn to_propose(configured: &ClusterOptions, shard: &Shard) -> ClusterOptions {
    match shard.cluster_options() {
        Some(_) => *configured,
        None => configured.for_a_new_cluster(),
    }
}

/// The shard lacks options that are configured here.
pub(crate) fn is_absent(configured: &ClusterOptions, shard: &Shard) -> bool {
    let replicated = shard.cluster_options();
    replicated.is_none_or(|replicated| replicated.lacks_some_of(configured))
}

/// Waits until a shard that was opened without options, or without all that are configured here, has them, and
/// compares them once.
pub(crate) fn watch(
    shared: &Shared,
    shard: Arc<Shard>,
    mut applied: watch::Receiver<Option<LogId>>,
) -> JoinHandle<()> {
    let (configured, misfit) = (shared.options.cluster_options, shared.misfit.clone());
    tokio::spawn(async move {
        while is_absent(&configured, &shard) {
            if applied.changed().await.is_err() {
                return;
            }
        }
        if let Err(error) = compare(&configured, &shard) {
            tracing::error!(%error, "this node must stop");
            misfit.send_replace(Some(error.to_string()));
        }
    })
}
