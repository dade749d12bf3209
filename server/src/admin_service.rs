//! The `Admin` service: what this node knows, answered without a quorum where that can be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::admin_server::Admin;
use mailbox_api::v1::{
    HotTimeline, NodeAddress, NodeStatus, ReplicaStatus, RowsWait, ShardMapRequest,
    ShardMapResponse, ShardPlacement, ShardStatus, SlotLoad, StateHashRequest, StateHashResponse,
    StatusRequest, StatusResponse,
};
use mailbox_engine::{ShardId, SlotId};
use mailbox_raft::{LeaderHint, Leadership};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::core::{Core, forwarded};
use crate::{convert, own_process, status};

/// How long a state hash may wait for its cut to be flushed everywhere.
const STATE_HASH_WAIT: Duration = Duration::from_secs(30);

/// Answers operators' tools; needs the cluster secret, the shard map excepted.
pub(crate) struct AdminService {
    core: Arc<Core>,
}

impl AdminService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn hash(
        &self,
        metadata: &MetadataMap,
        call: StateHashRequest,
    ) -> Result<StateHashResponse, CallError> {
        self.core.authority.require_cluster(metadata)?;
        let named = self.core.named(call.shard)?;
        let Some(shard) = self.core.node.shard(named) else {
            return self.hash_elsewhere(metadata, named, call).await;
        };
        let mut cut = call.cut_index;
        if cut == 0
            && let Leadership::Follower { leader, .. } = shard.leadership()
        {
            // Only the leader can make a cut; its hash is then awaited here at the same index.
            let leader = match leader {
                Some(leader) if metadata.get(mailbox_api::metadata::FORWARDED).is_none() => leader,
                leader => return Err(status::not_leader(call.shard, leader)),
            };
            let mut admin = self.core.peers.admin(&leader.address)?;
            let made = admin.state_hash(forwarded(metadata, call)).await;
            cut = made
                .map_err(|status| CallError::from_status(&status))?
                .into_inner()
                .applied_index;
        }
        let hash = tokio::time::timeout(STATE_HASH_WAIT, shard.state_hash(cut)).await;
        let hash = hash
            .map_err(|_| status::unavailable(format!("cut {cut} is not applied here yet")))?
            .map_err(|error| status::propose(call.shard, error))?;
        Ok(StateHashResponse {
            applied_index: hash.applied.index,
            hash: hash.hash.to_be_bytes().to_vec().into(),
            rows: hash.rows,
        })
    }

    /// A new cut of a shard that has no replica here, and its hash at the leader.
    async fn hash_elsewhere(
        &self,
        metadata: &MetadataMap,
        shard: ShardId,
        call: StateHashRequest,
    ) -> Result<StateHashResponse, CallError> {
        if call.cut_index != 0 || metadata.get(mailbox_api::metadata::FORWARDED).is_some() {
            return Err(self.core.not_here(shard));
        }
        let asked = self.core.ask(shard, async |address| {
            let mut admin = self.core.peers.admin(&address)?;
            admin.state_hash(forwarded(metadata, call)).await
        });
        let answer = asked.await;
        let answer = answer.map_err(|status| CallError::from_status(&status))?;
        Ok(answer.into_inner())
    }

    async fn status_here(
        &self,
        metadata: &MetadataMap,
        call: StatusRequest,
    ) -> Result<StatusResponse, CallError> {
        self.core.authority.require_cluster(metadata)?;
        let mut answer = status_of(&self.core, call);
        let asked = answer.shards.iter_mut();
        let asked = asked.filter(|shard| call.slots_of != 0 && shard.shard == call.slots_of);
        for shard in asked {
            shard.slots = slots_of(&self.core, ShardId(call.slots_of)).await?;
        }
        Ok(answer)
    }

    fn map_here(&self, metadata: &MetadataMap) -> Result<ShardMapResponse, CallError> {
        self.core.authority.authenticate(metadata)?;
        // Whoever asks for a sign of life is not to come back yet.
        if self.core.stopping.is_cancelled() {
            return Err(status::unavailable("the node is shutting down"));
        }
        let node = &self.core.node;
        let view = self.core.maps.now();
        // The meta shard has nothing that clients ask for.
        let shards = view.cluster.shards.iter();
        let shards = shards.filter(|(shard, _)| **shard != ShardId::META);
        let shards = shards.map(|(shard, row)| ShardPlacement {
            shard: shard.0,
            slots: view.shards.spans(*shard),
            replicas: row.replicas.iter().map(|replica| replica.node).collect(),
            leader: self.core.known_leader(*shard).unwrap_or(0),
        });
        let nodes = view.cluster.nodes.keys();
        let nodes = nodes.filter_map(|node| view.place(*node));
        Ok(ShardMapResponse {
            epoch: view.shards.epoch(),
            slot_count: u32::from(view.shards.slot_count()),
            shards: shards.collect(),
            nodes: nodes
                .map(|LeaderHint { node, address }| NodeAddress { node, address })
                .collect(),
            cluster_id: self.core.cluster.id.clone(),
            // A node whose clock is in doubt says nothing of the time.
            server_time_ms: node.clock_now_ms().unwrap_or(0),
            body_bytes_max: u32::try_from(self.core.cluster.body_bytes_max.0).unwrap_or(u32::MAX),
        })
    }
}

/// What this node says of itself.
pub(crate) fn status_of(core: &Core, call: StatusRequest) -> StatusResponse {
    let hot_timelines = usize::try_from(call.hot_timelines).unwrap_or(usize::MAX);
    let node = &core.node;
    let peers = node.peers().into_iter();
    let shards = node.shards();
    let lane_age = core.metrics.lanes.oldest();
    let clock_fault = node.clock_now_ms().err();
    StatusResponse {
        node: core.node_id,
        cluster_id: core.cluster.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: shards
            .iter()
            .map(|shard| shard_status(shard, hot_timelines))
            .collect(),
        nodes: peers
            .map(|peer| NodeStatus {
                node: peer.node,
                address: peer.address,
                connected: peer.connected,
            })
            .collect(),
        uptime_ms: u64::try_from(core.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        disk_free_bytes: node.disk_free_bytes(),
        disk_free_min_bytes: core.disk_free_min_bytes,
        oldest_lane_item_ms: u64::try_from(lane_age.as_millis()).unwrap_or(u64::MAX),
        clock_skew_ms: node.clock_skew_ms(),
        cpu_ms: own_process::cpu_ms().unwrap_or(0),
        rss_bytes: own_process::rss_bytes().unwrap_or(0),
        build: core.build.clone(),
        clock_fault: clock_fault.map_or_else(String::new, |fault| fault.to_string()),
    }
}

/// What every slot of a shard has of its load, by the replica here.
///
/// # Errors
/// There is none.
pub(crate) async fn slots_of(core: &Core, shard: ShardId) -> Result<Vec<SlotLoad>, CallError> {
    let replica = core.shard(shard.0)?;
    let measure = |engine: &mailbox_engine::Shard| Ok(engine.slot_bytes());
    let sizes = core.read(&replica, measure).await?;
    let writes: BTreeMap<SlotId, f64> = replica.writes_by_slot().into_iter().collect();
    let slots = sizes.into_iter().map(|(slot, stored_bytes)| SlotLoad {
        slot: slot.0.into(),
        stored_bytes,
        writes_per_s: writes.get(&slot).copied().unwrap_or(0.0),
    });
    Ok(slots.collect())
}

fn shard_status(replica: &mailbox_raft::Shard, hot_timelines: usize) -> ShardStatus {
    let shard = replica.status();
    let traffic = replica.traffic();
    let writes = replica.writes_by_slot();
    let hot = match hot_timelines {
        0 => Vec::new(),
        count => replica.hot_timelines(count),
    };
    let members = match shard.role {
        "leader" => replica.membership(),
        _ => mailbox_raft::Membership::default(),
    };
    ShardStatus {
        voters: members.voters.into_iter().collect(),
        learners: members.learners.into_iter().collect(),
        changing: members.changing,
        shard: shard.shard.0,
        role: shard.role.to_owned(),
        leader: shard.leader,
        term: shard.term,
        last_index: shard.last_index,
        committed_index: shard.committed_index,
        applied_index: shard.applied_index,
        flushed_index: shard.flushed_index,
        purged_index: shard.purged_index,
        memtable_bytes: shard.memtable_bytes,
        sends: traffic.sends,
        deliveries: traffic.deliveries,
        reads: traffic.reads,
        stored_bytes: replica.engine().stored_bytes(),
        writes_per_s: writes.iter().map(|(_, rate)| rate).sum(),
        slots: Vec::new(),
        hot: hot.into_iter().map(hot_timeline).collect(),
        rows_wait: replica.rows_wait().map(|wait| RowsWait {
            slot: wait.slot.0.into(),
            wait_ms: u64::try_from(wait.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        }),
        replicas: shard
            .replicas
            .into_iter()
            .map(|replica| ReplicaStatus {
                node: replica.node,
                matched_index: replica.matched_index,
                voter: replica.voter,
            })
            .collect(),
    }
}

fn hot_timeline(hot: mailbox_raft::HotTimeline) -> HotTimeline {
    HotTimeline {
        timeline: Some(convert::timeline_out(hot.timeline)),
        writes_per_s: hot.writes_per_s,
        reads_per_s: hot.reads_per_s,
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = self.status_here(&metadata, call).await;
        let done = done.map(Response::new).map_err(Status::from);
        self.core.metrics.count_call("status", done.as_ref().err());
        done
    }

    async fn state_hash(
        &self,
        request: Request<StateHashRequest>,
    ) -> Result<Response<StateHashResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = self
            .hash(&metadata, call)
            .await
            .map(Response::new)
            .map_err(Status::from);
        self.core
            .metrics
            .count_call("state_hash", done.as_ref().err());
        done
    }

    async fn shard_map(
        &self,
        request: Request<ShardMapRequest>,
    ) -> Result<Response<ShardMapResponse>, Status> {
        let done = self
            .map_here(request.metadata())
            .map(Response::new)
            .map_err(Status::from);
        self.core
            .metrics
            .count_call("shard_map", done.as_ref().err());
        done
    }
}
