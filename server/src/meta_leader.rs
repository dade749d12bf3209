//! Work of whoever leads the meta shard.

use std::time::Duration;

use mailbox_engine::ShardId;
use mailbox_raft::Leadership;

use crate::core::Core;

/// After a replica was dropped, before another one is looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// Has `work` done whenever this node leads the meta shard, until the node stops: begun anew each time that the node
/// gains it, and dropped where it is when the node loses it, which `ended` is told.
pub(crate) async fn while_leading<F: Future<Output = ()>>(
    core: &Core,
    work: impl Fn() -> F,
    ended: impl Fn(),
) {
    let leading = async {
        loop {
            let Some(meta) = core.node.shard(ShardId::META) else {
                // Its replica may come: the map says so, and changes when it does.
                let mut maps = core.maps.watch();
                maps.borrow_and_update();
                let waits = core.node.shard(ShardId::META).is_none();
                if waits && maps.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let mut leadership = meta.watch_leadership();
            if leadership.wait_for(|now| now.is_ready()).await.is_err() {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            tokio::select! {
                () = work() => {}
                _ = leadership.wait_for(|now| !now.is_ready()) => {}
            }
            ended();
        }
    };
    tokio::select! {
        () = leading => {}
        () = core.stopping.cancelled() => {}
    }
}

/// This node leads the shard, as far as it knows.
pub(crate) fn leads(core: &Core, shard: ShardId) -> bool {
    let replica = core.node.shard(shard);
    replica.is_some_and(|replica| matches!(replica.leadership(), Leadership::Leader { .. }))
}
