//! The calls that tell the map.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1;
use mailbox_engine::ShardId;
use tokio::sync::mpsc;
use tonic::Status;

use crate::cluster_map::{map_out, told};
use crate::core::Core;

/// The rows of the meta shard, on its leader.
///
/// # Errors
/// They cannot be read.
pub(super) async fn meta_rows_here(core: &Core) -> Result<v1::MetaRowsResponse, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    let map = core.read(&meta, mailbox_engine::Shard::cluster_map).await?;
    let options = meta.engine().cluster_options();
    let applied = meta.engine().applied().log_id;
    Ok(v1::MetaRowsResponse {
        map: map.map(|map| map_out(&map, &core.cluster.id)),
        options: options.map(|options| v1::ClusterOptions {
            body_bytes_max: options.body_bytes_max,
            group_members_max: options.group_members_max,
            dedup_window_ms: options.dedup_window_ms,
            user_groups_max: options.user_limits.map_or(0, |limits| limits.groups_max),
            user_devices_max: options.user_limits.map_or(0, |limits| limits.devices_max),
            dead_letters_max: options.dead_letters_max.unwrap_or(0),
        }),
        applied_index: applied.map_or(0, |id| id.index),
    })
}

/// Sends the map now and at each change, the newest only if the caller reads slowly.
pub(super) async fn watch(
    core: Arc<Core>,
    after_epoch: u64,
    answers: mpsc::Sender<Result<v1::ClusterMap, Status>>,
) {
    let mut maps = core.maps.watch();
    let mut told_epoch = after_epoch;
    loop {
        let view = Arc::clone(&maps.borrow_and_update());
        if view.cluster.epoch > told_epoch {
            told_epoch = view.cluster.epoch;
            if answers.send(Ok(told(&core, &view))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = maps.changed() => if changed.is_err() { return },
            () = answers.closed() => return,
            () = core.stopping.cancelled() => return,
        }
    }
}
