//! The first map of a new cluster: proposed by whichever of its first nodes leads the meta shard, from its
//! configuration. If two propose it, the first one counts.

use std::sync::Arc;
use std::time::Duration;

use mailbox_engine::{ClusterMap, Command, MetaCommand, Reply, ShardId};

use crate::core::Core;

/// How often is looked whether this node has to.
const LOOK: Duration = Duration::from_millis(50);
/// Pause after a proposal that did not go through.
const PAUSE: Duration = Duration::from_millis(500);

/// Ends once there is a map.
pub(super) async fn run(core: Arc<Core>, first: ClusterMap) {
    let first = ClusterMap { epoch: 1, ..first };
    loop {
        if core.maps.now().cluster.epoch > 0 || core.stopping.is_cancelled() {
            return;
        }
        let pause = match core.node.shard(ShardId::META) {
            Some(meta) if meta.leadership().is_ready() => {
                let command = Command::Meta(MetaCommand::Begin(first.clone()));
                match core.propose(&meta, command).await {
                    Ok(Reply::Map { epoch }) => {
                        tracing::info!(epoch, "the cluster has a map");
                        return;
                    }
                    Ok(other) => tracing::error!(?other, "the first map was answered so"),
                    Err(error) => tracing::debug!(%error, "the first map is not there yet"),
                }
                PAUSE
            }
            Some(_) | None => LOOK,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.stopping.cancelled() => return,
        }
    }
}
