//! The `Admin` service: what this node knows, answered without a quorum where that can be.

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::admin_server::Admin;
use mailbox_api::v1::{
    NodeAddress, NodeStatus, ReplicaStatus, ShardMapRequest, ShardMapResponse, ShardPlacement,
    ShardStatus, StateHashRequest, StateHashResponse, StatusRequest, StatusResponse,
};
use mailbox_raft::Leadership;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::core::{Core, forwarded};
use crate::status;

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
        let shard = self.core.shard(call.shard)?;
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

    fn status_here(&self, metadata: &MetadataMap) -> Result<StatusResponse, CallError> {
        self.core.authority.require_cluster(metadata)?;
        let node = &self.core.node;
        Ok(StatusResponse {
            node: self.core.node_id,
            cluster_id: self.core.cluster.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shards: node
                .shards()
                .iter()
                .map(|shard| shard_status(shard.status()))
                .collect(),
            nodes: node
                .peers()
                .into_iter()
                .map(|peer| NodeStatus {
                    node: peer.node,
                    address: peer.address,
                    connected: peer.connected,
                })
                .collect(),
            uptime_ms: u64::try_from(self.core.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            disk_free_bytes: node.disk_free_bytes(),
            clock_skew_ms: node.clock_skew_ms(),
            clock_fault: node
                .clock_now_ms()
                .err()
                .map(|fault| fault.to_string())
                .unwrap_or_default(),
        })
    }

    fn map_here(&self, metadata: &MetadataMap) -> Result<ShardMapResponse, CallError> {
        self.core.authority.authenticate(metadata)?;
        let node = &self.core.node;
        let nodes = &self.core.cluster.nodes;
        let map = &self.core.map;
        let shards = node.shards().into_iter().map(|shard| ShardPlacement {
            shard: shard.id().0,
            slots: map.spans(shard.id()),
            replicas: nodes.keys().copied().collect(),
            leader: match shard.leadership() {
                Leadership::Leader { .. } => self.core.node_id,
                Leadership::Follower { leader, .. } => leader.map_or(0, |leader| leader.node),
            },
        });
        Ok(ShardMapResponse {
            epoch: map.epoch(),
            slot_count: u32::from(map.slot_count()),
            shards: shards.collect(),
            nodes: nodes
                .iter()
                .map(|(node, address)| NodeAddress {
                    node: *node,
                    address: address.clone(),
                })
                .collect(),
            cluster_id: self.core.cluster.id.clone(),
            // A node whose clock is in doubt says nothing of the time.
            server_time_ms: node.clock_now_ms().unwrap_or(0),
            body_bytes_max: u32::try_from(self.core.cluster.body_bytes_max.0).unwrap_or(u32::MAX),
        })
    }
}

fn shard_status(shard: mailbox_raft::ShardStatus) -> ShardStatus {
    ShardStatus {
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

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let done = self.status_here(request.metadata()).map(Response::new);
        let done = done.map_err(Status::from);
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
