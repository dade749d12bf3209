//! What a node tells the meta shard after its start: who it is, until that was answered once, and then how far its
//! log has got, so that an older copy of its directory is known for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_api::v1::{LogReport, ReportLogRequest};

use super::convert::map_in;
use super::join::{Joiner, is_final};
use crate::cluster_service;
use crate::core::Core;

/// Between two tries to be answered.
const PAUSE: Duration = Duration::from_secs(1);
/// How often is looked how far the log has got.
const LOOK: Duration = Duration::from_secs(10);
/// Fewer batches than this wait for [`LATEST`]: a report makes some itself, and a cluster without load is to come
/// to rest.
const BATCHES_MIN: u64 = 32;
/// After so long every batch is told.
const LATEST: Duration = Duration::from_secs(60);

/// Tells until the node stops.
pub(super) async fn run(core: Arc<Core>, joiner: Arc<Joiner>) {
    let stopping = core.stopping.clone();
    let telling = async {
        // In this order: what the log says at the start must not be less than what was told of it since.
        if joiner.told().is_none() && !join(&core, &joiner).await {
            return;
        }
        report(&core).await;
    };
    tokio::select! {
        () = telling => {}
        () = stopping.cancelled() => {}
    }
}

/// False if the node is refused.
async fn join(core: &Core, joiner: &Joiner) -> bool {
    loop {
        let request = joiner.request.lock().clone();
        match cluster_service::join(core, request).await {
            Ok(map) if map.epoch > 0 => {
                if let Ok(map) = map_in(map) {
                    core.maps.take(map);
                }
                return true;
            }
            Ok(_) => {}
            Err(error) if is_final(&error) => {
                core.evict(error.0.message);
                return false;
            }
            Err(error) => tracing::debug!(%error, "the cluster does not know of this start yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn report(core: &Core) {
    let (mut told, mut told_at) = (0, Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let log_batch = core.node.log_batch();
        let moved = log_batch.saturating_sub(told);
        if moved < BATCHES_MIN && (moved == 0 || told_at.elapsed() < LATEST) {
            continue;
        }
        let report = LogReport {
            node: core.node_id,
            incarnation: core.node.incarnation(),
            log_batch,
        };
        let reports = vec![report];
        match cluster_service::report(core, ReportLogRequest { reports }).await {
            Ok(()) => (told, told_at) = (log_batch, Instant::now()),
            Err(error) => tracing::debug!(%error, "how far the log has got was not told"),
        }
    }
}
