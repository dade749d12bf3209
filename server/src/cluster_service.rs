//! The `Cluster` service: the map as this node knows it, and the calls that change it.
//!
//! A change is a command of the meta shard, proposed by its leader; any other node passes the call on.

mod gateway_calls;
mod known_calls;
mod known_nodes;
mod map_calls;
pub(crate) mod merge_calls;
pub(crate) mod placement_calls;
pub(crate) mod slot_calls;
pub(crate) mod split_calls;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use mailbox_api::CallError;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::cluster_server::Cluster;
use mailbox_api::v1::{self, ErrorCode, JoinClusterRequest, ReportLogRequest};
use mailbox_engine::{Command, LogReport, MapNode, MetaCommand, PutNode, Reply, ShardId, Standing};
use mailbox_raft::Leadership;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::cluster_map::{map_out, standing_in, told};
use crate::core::{Core, forwarded};
use crate::{convert, status};

/// Maps that wait for a watcher to read them; it gets the newest afterwards.
const MAPS_QUEUED_MAX: usize = 1;

/// Tells the map and takes changes of it; needs the cluster secret.
pub(crate) struct ClusterService {
    core: Arc<Core>,
}

impl ClusterService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Has a call done by the leader of the meta shard: `here`, or on the node that `there` gets a client of.
    async fn at_meta<C, T, H, F>(
        &self,
        request: Request<C>,
        here: impl FnOnce(C) -> H,
        there: impl Fn(ClusterClient<Channel>, Request<C>) -> F,
    ) -> Result<Response<T>, Status>
    where
        C: Clone,
        H: Future<Output = Result<T, CallError>>,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (metadata, _, call) = request.into_parts();
        self.core.authority.require_cluster(&metadata)?;
        if leads_meta(&self.core) {
            return Ok(Response::new(here(call).await?));
        }
        let core = &self.core;
        if metadata.get(mailbox_api::metadata::FORWARDED).is_some() {
            return Err(core.not_here(ShardId::META).into());
        }
        let asked = core.ask(ShardId::META, |address| {
            let client = core.peers.cluster(&address);
            let answer = client.map(|client| there(client, forwarded(&metadata, call.clone())));
            async move { answer?.await }
        });
        asked.await
    }

    fn count<T>(&self, call: &'static str, done: Result<T, Status>) -> Result<T, Status> {
        self.core.metrics.count_call(call, done.as_ref().err());
        done
    }
}

/// This node leads the meta shard.
pub(crate) fn leads_meta(core: &Core) -> bool {
    let meta = core.node.shard(ShardId::META);
    meta.is_some_and(|meta| matches!(meta.leadership(), Leadership::Leader { .. }))
}

/// Proposes a change of the map, on the leader of the meta shard.
///
/// # Errors
/// The refusal, or what became of the proposal.
pub(crate) async fn change(core: &Core, command: MetaCommand) -> Result<u64, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    match core.propose(&meta, Command::Meta(command)).await? {
        Reply::Map { epoch } => Ok(epoch),
        other => Err(status::wrong_reply(&other)),
    }
}

/// Tells the cluster who a node is, from any node. The map comes back, of epoch 0 if there is none yet.
///
/// # Errors
/// The refusal, or why nobody could say.
pub(crate) async fn join(
    core: &Core,
    call: JoinClusterRequest,
) -> Result<v1::ClusterMap, CallError> {
    if leads_meta(core) {
        return join_here(core, call).await;
    }
    let asked = core.ask(ShardId::META, async |address| {
        let request = core.own_call(call.clone())?;
        core.peers.cluster(&address)?.join_cluster(request).await
    });
    let answer = asked
        .await
        .map_err(|status| CallError::from_status(&status))?;
    Ok(answer.into_inner().map.unwrap_or_default())
}

async fn join_here(core: &Core, call: JoinClusterRequest) -> Result<v1::ClusterMap, CallError> {
    check_constants(core, &call)?;
    let row = MapNode {
        address: call.address,
        region: call.region,
        zone: call.zone,
        weight: call.weight,
        standing: Standing::Member,
        incarnation: call.incarnation,
    };
    let put = MetaCommand::PutNode(PutNode {
        node: call.node,
        row,
        log_batch: call.log_batch,
    });
    let epoch = change(core, put).await?;
    let meta = core.shard(ShardId::META.0)?;
    let map = core.read(&meta, mailbox_engine::Shard::cluster_map).await?;
    let map = map.ok_or_else(|| status::unavailable("the map cannot be read yet"))?;
    tracing::info!(node = call.node, epoch, "a node has told who it is");
    core.maps.take(map.clone());
    Ok(map_out(&map, &core.cluster.id))
}

fn check_constants(core: &Core, call: &JoinClusterRequest) -> Result<(), CallError> {
    let own = (
        u32::from(core.cluster.slot_count),
        u32::from(core.cluster.shards),
    );
    if own == (call.slot_count, call.shard_count) {
        return Ok(());
    }
    let (slots, shards) = own;
    Err(CallError::new(
        ErrorCode::WrongCluster,
        format!(
            "the cluster has {slots} slots in {shards} shards at its begin, node {} is configured for {} in {} \
             (cluster.slot_count, cluster.shards)",
            call.node, call.slot_count, call.shard_count
        ),
    ))
}

/// Tells how far logs have got, from any node.
///
/// # Errors
/// Why nobody has noted it.
pub(crate) async fn report(core: &Core, call: ReportLogRequest) -> Result<(), CallError> {
    if leads_meta(core) {
        return report_here(core, call).await;
    }
    let asked = core.ask(ShardId::META, async |address| {
        let request = core.own_call(call.clone())?;
        core.peers.cluster(&address)?.report_log(request).await
    });
    let done = asked.await.map(|_| ());
    done.map_err(|status| CallError::from_status(&status))
}

async fn report_here(core: &Core, call: ReportLogRequest) -> Result<(), CallError> {
    let reports = call.reports.into_iter().map(|report| LogReport {
        node: report.node,
        incarnation: report.incarnation,
        log_batch: report.log_batch,
    });
    let command = MetaCommand::ReportLogs(reports.collect());
    change(core, command).await.map(|_| ())
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type WatchMapStream = Pin<Box<dyn Stream<Item = Result<v1::ClusterMap, Status>> + Send>>;

    async fn get_map(
        &self,
        request: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::ClusterMap>, Status> {
        let core = &self.core;
        let done = core
            .authority
            .require_cluster(request.metadata())
            .map(|()| {
                let view = core.maps.now();
                let epoch = view.cluster.epoch;
                Response::new(if epoch > request.get_ref().after_epoch {
                    told(core, &view)
                } else {
                    v1::ClusterMap {
                        epoch,
                        ..v1::ClusterMap::default()
                    }
                })
            });
        self.count("get_map", done.map_err(Status::from))
    }

    async fn watch_map(
        &self,
        request: Request<v1::WatchMapRequest>,
    ) -> Result<Response<Self::WatchMapStream>, Status> {
        let core = Arc::clone(&self.core);
        let allowed = core.authority.require_cluster(request.metadata());
        self.count("watch_map", allowed.map_err(Status::from))?;
        let after_epoch = request.get_ref().after_epoch;
        let (maps, stream) = mpsc::channel(MAPS_QUEUED_MAX);
        tokio::spawn(map_calls::watch(core, after_epoch, maps));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn join_cluster(
        &self,
        request: Request<JoinClusterRequest>,
    ) -> Result<Response<v1::JoinClusterResponse>, Status> {
        let core = &self.core;
        if let Err(error) = core.authority.require_cluster(request.metadata()) {
            return self.count("join_cluster", Err(error.into()));
        }
        if core.maps.now().cluster.epoch == 0 {
            // A new cluster: who asks is one of those that make it, or has to wait.
            let map = Some(v1::ClusterMap {
                slot_count: core.cluster.slot_count.into(),
                shard_count: core.cluster.shards.into(),
                ..v1::ClusterMap::default()
            });
            return self.count(
                "join_cluster",
                Ok(Response::new(v1::JoinClusterResponse { map })),
            );
        }
        if let Err(error) = known_nodes::refuse_by_known(core, request.get_ref()).await {
            return self.count("join_cluster", Err(error.into()));
        }
        let here = |call| async move {
            let map = Some(join_here(core, call).await?);
            Ok(v1::JoinClusterResponse { map })
        };
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.join_cluster(call).await
        });
        self.count("join_cluster", done.await)
    }

    async fn report_log(
        &self,
        request: Request<ReportLogRequest>,
    ) -> Result<Response<v1::ReportLogResponse>, Status> {
        let core = &self.core;
        let here = |call| async move {
            report_here(core, call).await?;
            Ok(v1::ReportLogResponse {})
        };
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.report_log(call).await
        });
        self.count("report_log", done.await)
    }

    async fn set_standing(
        &self,
        request: Request<v1::SetStandingRequest>,
    ) -> Result<Response<v1::MapChange>, Status> {
        let core = &self.core;
        let here = |call: v1::SetStandingRequest| async move {
            let standing = standing_in(call.standing)?;
            if standing == Standing::Removed {
                return Err(convert::invalid("a node is removed by RemoveNode"));
            }
            let node = call.node;
            let epoch = change(core, MetaCommand::SetStanding { node, standing }).await?;
            Ok(v1::MapChange { epoch })
        };
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.set_standing(call).await
        });
        self.count("set_standing", done.await)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::MapChange>, Status> {
        let core = &self.core;
        let here = |call: v1::RemoveNodeRequest| async move {
            let node = call.node;
            let epoch = change(core, MetaCommand::RemoveNode { node }).await?;
            Ok(v1::MapChange { epoch })
        };
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.remove_node(call).await
        });
        self.count("remove_node", done.await)
    }

    async fn meta_rows(
        &self,
        request: Request<v1::MetaRowsRequest>,
    ) -> Result<Response<v1::MetaRowsResponse>, Status> {
        let here = |_| map_calls::meta_rows_here(&self.core);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.meta_rows(call).await
        });
        self.count("meta_rows", done.await)
    }

    async fn move_replica(
        &self,
        request: Request<v1::MoveReplicaRequest>,
    ) -> Result<Response<v1::MoveReplicaResponse>, Status> {
        let here = |call| placement_calls::move_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.move_replica(call).await
        });
        self.count("move_replica", done.await)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let core = &self.core;
        let (metadata, _, call) = request.into_parts();
        let done = match core.authority.require_cluster(&metadata) {
            Ok(()) if metadata.get(mailbox_api::metadata::FORWARDED).is_some() => {
                placement_calls::transfer_here(core, call).await
            }
            Ok(()) => placement_calls::transfer(core, call).await,
            Err(error) => Err(error),
        };
        let done = done.map(|()| Response::new(v1::TransferLeaderResponse {}));
        self.count("transfer_leader", done.map_err(Status::from))
    }

    async fn plan_steps(
        &self,
        request: Request<v1::PlanStepsRequest>,
    ) -> Result<Response<v1::PlanStepsResponse>, Status> {
        let here = |call| placement_calls::plan_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.plan_steps(call).await
        });
        self.count("plan_steps", done.await)
    }

    async fn steps(
        &self,
        request: Request<v1::StepsRequest>,
    ) -> Result<Response<v1::StepsResponse>, Status> {
        let core = &self.core;
        let here = |_| async move { Ok(placement_calls::steps_here(core)) };
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.steps(call).await
        });
        self.count("steps", done.await)
    }

    async fn move_slot(
        &self,
        request: Request<v1::MoveSlotRequest>,
    ) -> Result<Response<v1::MoveSlotResponse>, Status> {
        let here = |call| slot_calls::move_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.move_slot(call).await
        });
        self.count("move_slot", done.await)
    }

    async fn abort_slot_move(
        &self,
        request: Request<v1::AbortSlotMoveRequest>,
    ) -> Result<Response<v1::MapChange>, Status> {
        let here = |call: v1::AbortSlotMoveRequest| slot_calls::abort_here(&self.core, call.slot);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.abort_slot_move(call).await
        });
        self.count("abort_slot_move", done.await)
    }

    async fn slot_moves(
        &self,
        request: Request<v1::SlotMovesRequest>,
    ) -> Result<Response<v1::SlotMovesResponse>, Status> {
        let here = |_| slot_calls::moves_here(&self.core);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.slot_moves(call).await
        });
        self.count("slot_moves", done.await)
    }

    async fn step_slot(
        &self,
        request: Request<v1::StepSlotRequest>,
    ) -> Result<Response<v1::StepSlotResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = match self.core.authority.require_cluster(&metadata) {
            Ok(()) => slot_calls::step_here(&self.core, call).await,
            Err(error) => Err(error),
        };
        let done = done.map(Response::new).map_err(Status::from);
        self.count("step_slot", done)
    }

    async fn stage_slot(
        &self,
        request: Request<v1::StageSlotRequest>,
    ) -> Result<Response<v1::StageSlotResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = match self.core.authority.require_cluster(&metadata) {
            Ok(()) => slot_calls::stage_here(&self.core, call).await,
            Err(error) => Err(error),
        };
        let done = done.map(Response::new).map_err(Status::from);
        self.count("stage_slot", done)
    }

    async fn split_shard(
        &self,
        request: Request<v1::SplitShardRequest>,
    ) -> Result<Response<v1::SplitShardResponse>, Status> {
        let here = |call| split_calls::split_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.split_shard(call).await
        });
        self.count("split_shard", done.await)
    }

    async fn shard_splits(
        &self,
        request: Request<v1::ShardSplitsRequest>,
    ) -> Result<Response<v1::ShardSplitsResponse>, Status> {
        let here = |_| split_calls::splits_here(&self.core);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.shard_splits(call).await
        });
        self.count("shard_splits", done.await)
    }

    async fn merge_shard(
        &self,
        request: Request<v1::MergeShardRequest>,
    ) -> Result<Response<v1::MergeShardResponse>, Status> {
        let here = |call| merge_calls::merge_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.merge_shard(call).await
        });
        self.count("merge_shard", done.await)
    }

    async fn abort_shard_merge(
        &self,
        request: Request<v1::AbortShardMergeRequest>,
    ) -> Result<Response<v1::MapChange>, Status> {
        let here = |call| merge_calls::abort_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.abort_shard_merge(call).await
        });
        self.count("abort_shard_merge", done.await)
    }

    async fn shard_merges(
        &self,
        request: Request<v1::ShardMergesRequest>,
    ) -> Result<Response<v1::ShardMergesResponse>, Status> {
        let here = |call| merge_calls::merges_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.shard_merges(call).await
        });
        self.count("shard_merges", done.await)
    }

    async fn step_split(
        &self,
        request: Request<v1::StepSplitRequest>,
    ) -> Result<Response<v1::StepSplitResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = match self.core.authority.require_cluster(&metadata) {
            Ok(()) => split_calls::step_here(&self.core, call).await,
            Err(error) => Err(error),
        };
        let done = done.map(Response::new).map_err(Status::from);
        self.count("step_split", done)
    }

    async fn register_gateway(
        &self,
        request: Request<v1::RegisterGatewayRequest>,
    ) -> Result<Response<v1::RegisterGatewayResponse>, Status> {
        let here = |call| gateway_calls::register_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.register_gateway(call).await
        });
        self.count("register_gateway", done.await)
    }

    async fn forget_gateway(
        &self,
        request: Request<v1::ForgetGatewayRequest>,
    ) -> Result<Response<v1::ForgetGatewayResponse>, Status> {
        let here = |call| gateway_calls::forget_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.forget_gateway(call).await
        });
        self.count("forget_gateway", done.await)
    }

    async fn list_gateways(
        &self,
        request: Request<v1::ListGatewaysRequest>,
    ) -> Result<Response<v1::ListGatewaysResponse>, Status> {
        let here = |call| gateway_calls::list_here(&self.core, call);
        let done = self.at_meta(request, here, |mut leader, call| async move {
            leader.list_gateways(call).await
        });
        self.count("list_gateways", done.await)
    }

    async fn known_commands(
        &self,
        request: Request<v1::KnownCommandsRequest>,
    ) -> Result<Response<v1::KnownCommandsResponse>, Status> {
        let allowed = self.core.authority.require_cluster(request.metadata());
        let done = allowed.map(|()| Response::new(known_calls::known_here()));
        self.count("known_commands", done.map_err(Status::from))
    }

    async fn membership(
        &self,
        request: Request<v1::MembershipRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        let allowed = self.core.authority.require_cluster(request.metadata());
        let done = match allowed {
            Ok(()) => members(&self.core, request.get_ref().shard).await,
            Err(error) => Err(error),
        };
        self.count("membership", done.map(Response::new).map_err(Status::from))
    }

    async fn change_membership(
        &self,
        request: Request<v1::ChangeMembershipRequest>,
    ) -> Result<Response<v1::MembershipResponse>, Status> {
        let (metadata, _, call) = request.into_parts();
        let done = match self.core.authority.require_cluster(&metadata) {
            Ok(()) => placement_calls::change_here(&self.core, call).await,
            Err(error) => Err(error),
        };
        let done = done.map(Response::new).map_err(Status::from);
        self.count("change_membership", done)
    }
}

/// The members of a shard that this node leads. A leader that was replaced without its knowledge must not say who is
/// none: a node may drop its replica for it.
///
/// # Errors
/// This node does not lead, or has no majority.
pub(crate) async fn members(core: &Core, shard: u32) -> Result<v1::MembershipResponse, CallError> {
    let shard = core.shard(shard)?;
    core.require_leader(&shard)?;
    core.barrier(&shard).await?;
    let members = shard.membership();
    Ok(v1::MembershipResponse {
        voters: members.voters.into_iter().collect(),
        learners: members.learners.into_iter().collect(),
        changing: members.changing,
        index: members.index,
        leader: core.node_id,
    })
}
