//! Where newer maps come from: the meta shard's replica on this node, else a stream from a node that has one;
//! and now and then any other node is asked, in case that those asked first have been cut off from the changes
//! themselves (a replica that was removed may never learn it).

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{GetMapRequest, WatchMapRequest};
use mailbox_engine::{ShardId, Standing};
use tonic::Request;

use super::convert::map_in;
use crate::core::Core;
use crate::status;

/// How often the meta replica here is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions to some other node; half as long again at most, at random.
const ASK: Duration = Duration::from_secs(4);
/// Before another node is asked for a stream.
const PAUSE: Duration = Duration::from_millis(250);
/// One question.
const ASK_WAIT: Duration = Duration::from_secs(2);

/// Keeps the map up to date until the node stops.
pub(super) async fn run(core: Arc<Core>) {
    let stopping = core.stopping.clone();
    let sources = async {
        tokio::join!(look(&core), follow(&core), ask(&core));
    };
    tokio::select! {
        () = sources => {}
        () = stopping.cancelled() => {}
    }
}

/// Reads the replica here.
async fn look(core: &Core) {
    loop {
        if let Some(meta) = core.node.shard(ShardId::META) {
            let engine = Arc::clone(meta.engine());
            let known = core.maps.now().cluster.epoch;
            let read = mailbox_raft::simulation::blocking(move || {
                if engine.map_epoch()? <= known {
                    return Ok(None);
                }
                engine.cluster_map()
            });
            match read.await {
                Ok(Ok(Some(map))) => {
                    core.maps.take(map);
                }
                Ok(Ok(None)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = %status::with_causes(&error), "read the map");
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Follows the stream of a node that holds the meta shard, while this one does not.
async fn follow(core: &Core) {
    loop {
        if core.node.shard(ShardId::META).is_none() {
            let view = core.maps.now();
            if let Some(place) = core.leaders.guess(&view, ShardId::META, &[core.node_id])
                && let Err(error) = stream(core, &place.address).await
            {
                core.leaders.forget(ShardId::META, place.node);
                tracing::debug!(node = place.node, %error, "the stream of maps has ended");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(core: &Core, address: &str) -> Result<(), CallError> {
    let mut client = core.peers.cluster(address)?;
    let after_epoch = core.maps.now().cluster.epoch;
    let mut request = Request::new(WatchMapRequest { after_epoch });
    core.authority.prove(request.metadata_mut())?;
    let told = |error: tonic::Status| CallError::from_status(&error);
    let mut maps = client.watch_map(request).await.map_err(told)?.into_inner();
    loop {
        let next = tokio::time::timeout(LOOK * 10, maps.message());
        match next.await {
            Ok(map) => match map.map_err(told)? {
                Some(map) => {
                    core.maps.take(map_in(map)?);
                }
                None => return Ok(()),
            },
            // Nothing new. A replica that has come here meanwhile knows more, and at once.
            Err(_) if core.node.shard(ShardId::META).is_some() => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Asks one of all nodes, at random.
async fn ask(core: &Core) {
    loop {
        let pause = ASK.mul_f64(rand::random_range(1.0..1.5));
        tokio::time::sleep(pause).await;
        let view = core.maps.now();
        let others = view
            .cluster
            .nodes
            .iter()
            .filter(|(node, row)| **node != core.node_id && row.standing != Standing::Removed);
        let count = others.clone().count();
        if count == 0 {
            continue;
        }
        let chosen = rand::random_range(0..count);
        let Some((node, row)) = others.clone().nth(chosen) else {
            continue;
        };
        let asked = tokio::time::timeout(ASK_WAIT, ask_one(core, &row.address));
        if let Ok(Err(error)) = asked.await {
            tracing::debug!(node, %error, "the map was not told");
        }
    }
}

async fn ask_one(core: &Core, address: &str) -> Result<(), CallError> {
    let mut client = core.peers.cluster(address)?;
    let after_epoch = core.maps.now().cluster.epoch;
    let mut request = Request::new(GetMapRequest { after_epoch });
    core.authority.prove(request.metadata_mut())?;
    let map = client.get_map(request).await;
    let map = map
        .map_err(|error| CallError::from_status(&error))?
        .into_inner();
    if map.epoch > after_epoch {
        core.maps.take(map_in(map)?);
    }
    Ok(())
}
