//! What the executor does, done to the cluster that this node is part of.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_api::CallError;
use mailbox_api::v1::change_membership_request::Change;
use mailbox_api::v1::{self, ChangeMembershipRequest, ErrorCode, MembershipRequest, StatusRequest};
use mailbox_engine::{ClusterMap, MapReplica, MetaCommand, ShardId};
use mailbox_placement::Load;
use mailbox_raft::{Leadership, MembershipChange};
use tonic::{Code, Status};

use super::effects::{Effects, Led, Members, Told};
use crate::admin_service;
use crate::cluster_service::{self, placement_calls};
use crate::core::Core;
use crate::status;

/// A node that does not say how it is within this time, asked twice, is out of reach.
const STATUS_WAIT: Duration = Duration::from_millis(1500);
const STATUS_TRIES: usize = 2;

/// The cluster.
pub(super) struct Live {
    core: Arc<Core>,
}

impl Live {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn leads(&self, shard: ShardId) -> bool {
        let replica = self.core.node.shard(shard);
        replica.is_some_and(|replica| matches!(replica.leadership(), Leadership::Leader { .. }))
    }

    async fn status_of(&self, address: &str) -> Result<v1::StatusResponse, CallError> {
        let mut last = status::unavailable("the node was not asked");
        for _ in 0..STATUS_TRIES {
            let mut admin = self.core.peers.admin(address)?;
            let request = self.core.own_call(StatusRequest::default())?;
            match tokio::time::timeout(STATUS_WAIT, admin.status(request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => last = failure(&status),
                Err(_) => last = status::unavailable("the node does not answer"),
            }
        }
        Err(last)
    }
}

/// Why a node did not say how it is: `Unavailable` only if it is out of reach, since its replicas are made anew elsewhere
/// for that. One that lives may word an answer that cannot be read here.
fn failure(status: &Status) -> CallError {
    let error = CallError::from_status(status);
    let is_its_own = !status.details().is_empty();
    if error.code() == ErrorCode::Unavailable && !is_its_own && !is_out_of_reach(status) {
        return CallError::new(ErrorCode::Internal, error.0.message);
    }
    error
}

/// Whether a status without details tells of the connection, or of nobody at its other end.
fn is_out_of_reach(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => true,
        // Only what the connection has done has a source.
        Code::Internal => status.source().is_some(),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

fn led(node: u64, shard: v1::ShardStatus) -> Led {
    let lag = |replica: &v1::ReplicaStatus| {
        let lag = shard.last_index.saturating_sub(replica.matched_index);
        (replica.node, lag)
    };
    Led {
        shard: ShardId(shard.shard),
        term: shard.term,
        // Who has matched nothing may not have a replica yet: how far it is behind is not known.
        lags: (shard.replicas.iter())
            .filter(|replica| replica.matched_index > 0)
            .map(lag)
            .collect(),
        load: Load {
            stored_bytes: shard.stored_bytes,
            writes_per_s: shard.writes_per_s,
        },
        members: Members {
            leader: node,
            voters: shard.voters.into_iter().collect(),
            learners: shard.learners.into_iter().collect(),
            changing: shard.changing,
            index: 0,
        },
    }
}

fn told(node: u64, status: v1::StatusResponse) -> Told {
    let (free, least) = (status.disk_free_bytes, status.disk_free_min_bytes);
    let leads = |shard: &v1::ShardStatus| shard.role == "leader";
    Told {
        may_lead: status.clock_fault.is_empty() && free >= least,
        // A replica takes room before the one it replaces is gone, and grows meanwhile.
        has_room: free >= least.saturating_mul(2),
        up_for_ms: status.uptime_ms,
        led: (status.shards.into_iter().filter(leads))
            .map(|shard| led(node, shard))
            .collect(),
    }
}

fn members(answer: v1::MembershipResponse) -> Members {
    Members {
        leader: answer.leader,
        voters: answer.voters.into_iter().collect(),
        learners: answer.learners.into_iter().collect(),
        changing: answer.changing,
        index: answer.index,
    }
}

fn change_out(change: &MembershipChange) -> Change {
    match change {
        MembershipChange::AddLearner(node) => Change::AddLearner(v1::AddLearner { node: *node }),
        MembershipChange::RemoveLearner(node) => {
            Change::RemoveLearner(v1::RemoveLearner { node: *node })
        }
        MembershipChange::Voters { add, remove } => Change::ChangeVoters(v1::ChangeVoters {
            add: add.iter().copied().collect(),
            remove: remove.iter().copied().collect(),
        }),
    }
}

impl Effects for Live {
    fn now_ms(&self) -> u64 {
        // Monotonic; only differences count.
        let since: Instant = self.core.started;
        u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn map(&self) -> Result<ClusterMap, CallError> {
        let meta = self.core.shard(ShardId::META.0)?;
        self.core.barrier(&meta).await?;
        let read = self
            .core
            .read(&meta, mailbox_engine::Shard::cluster_map)
            .await?;
        read.ok_or_else(|| status::unavailable("the cluster has no map yet"))
    }

    async fn splitting(&self) -> Result<BTreeSet<ShardId>, CallError> {
        let splits = crate::shard_splits::splits(&self.core).await?;
        Ok(splits.into_iter().map(|(shard, _)| shard).collect())
    }

    async fn merging(&self) -> Result<BTreeSet<ShardId>, CallError> {
        let meta = self.core.shard(ShardId::META.0)?;
        let merges = self
            .core
            .read(&meta, mailbox_engine::Shard::shard_merges)
            .await?;
        let under_way = merges.into_iter().filter(|(_, row)| row.is_moving());
        Ok(under_way.map(|(shard, _)| shard).collect())
    }

    async fn told_by(&self, node: u64, address: &str) -> Result<Told, CallError> {
        let status = if node == self.core.node_id {
            admin_service::status_of(&self.core, StatusRequest::default())
        } else {
            self.status_of(address).await?
        };
        Ok(told(node, status))
    }

    async fn members(&self, shard: ShardId) -> Result<Members, CallError> {
        if self.leads(shard) {
            let answer = cluster_service::members(&self.core, shard.0).await?;
            return Ok(members(answer));
        }
        let core = &self.core;
        let asked = core.ask(shard, async |address| {
            let request = core.own_call(MembershipRequest { shard: shard.0 })?;
            core.peers.cluster(&address)?.membership(request).await
        });
        let answer = asked
            .await
            .map_err(|status| CallError::from_status(&status))?;
        Ok(members(answer.into_inner()))
    }

    async fn set_replicas(
        &self,
        shard: ShardId,
        epoch: u64,
        replicas: Vec<MapReplica>,
    ) -> Result<u64, CallError> {
        let command = MetaCommand::SetReplicas {
            shard,
            expect_epoch: epoch,
            replicas,
        };
        cluster_service::change(&self.core, command).await
    }

    async fn change(
        &self,
        shard: ShardId,
        from_index: u64,
        change: MembershipChange,
    ) -> Result<(), CallError> {
        let call = ChangeMembershipRequest {
            shard: shard.0,
            change: Some(change_out(&change)),
            from_index,
        };
        let core = &self.core;
        if self.leads(shard) {
            let done = placement_calls::change_here(core, call).await;
            return done.map(|_| ());
        }
        let asked = core.ask(shard, async |address| {
            let request = core.own_call(call.clone())?;
            core.peers
                .cluster(&address)?
                .change_membership(request)
                .await
        });
        let done = asked.await.map(|_| ());
        done.map_err(|status| CallError::from_status(&status))
    }

    async fn transfer(&self, shard: ShardId, to: u64) -> Result<(), CallError> {
        let call = v1::TransferLeaderRequest { shard: shard.0, to };
        placement_calls::transfer(&self.core, call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_out_of_reach_if_the_connection_failed_and_not_if_its_answer_cannot_be_read() {
        let is_out_of_reach = |status: &Status| failure(status).code() == ErrorCode::Unavailable;
        for gone in [
            Status::unavailable("connection refused"),
            Status::cancelled("timeout expired"),
            Status::unknown("transport error"),
        ] {
            assert!(is_out_of_reach(&gone), "{gone}");
        }
        let mut internal = Status::internal("it does not decode");
        assert!(!is_out_of_reach(&internal));
        internal.set_source(Arc::new(std::io::Error::other("the connection broke")));
        assert!(is_out_of_reach(&internal));
        let refusal = CallError::new(ErrorCode::Internal, "the node's own").to_status();
        assert!(!is_out_of_reach(&refusal));
    }
}
