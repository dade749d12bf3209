//! Calls of operators: the map of the cluster, and what changes it.

use mailbox_api::CallError;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::{self, ErrorCode};
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::channel::AuthChannel;
use crate::client::Client;
use crate::node::Node;
use crate::retry::Backoff;

impl Client {
    /// The map of the cluster, as whichever node answers knows it. Needs no quorum.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn cluster_map(&self) -> Result<v1::ClusterMap, CallError> {
        let call = v1::GetMapRequest { after_epoch: 0 };
        self.operate(|mut node| async move {
            let answer = node.get_map(call).await?;
            if answer.get_ref().nodes.is_empty() {
                // A node that has just started and has not heard of one.
                return Err(Status::unavailable(
                    "the node knows no map of the cluster yet",
                ));
            }
            Ok(answer)
        })
        .await
    }

    /// Says whether a node is to hold its share or to be emptied. A repeat changes nothing.
    ///
    /// # Errors
    /// The refusal, or the last retryable error at the deadline.
    pub async fn set_standing(
        &self,
        node: u64,
        standing: v1::NodeStanding,
    ) -> Result<v1::MapChange, CallError> {
        let standing = standing as i32;
        let call = v1::SetStandingRequest { node, standing };
        self.operate(|mut node| async move { node.set_standing(call).await })
            .await
    }

    /// Takes an empty node out of the cluster for ever. A repeat changes nothing.
    ///
    /// # Errors
    /// `NodeInUse` while a shard has a replica there; else as [`Client::set_standing`].
    pub async fn remove_node(&self, node: u64) -> Result<v1::MapChange, CallError> {
        let call = v1::RemoveNodeRequest { node };
        self.operate(|mut node| async move { node.remove_node(call).await })
            .await
    }

    /// Begins the move of a replica, or with `dry_run` judges whether it could be.
    ///
    /// # Errors
    /// `InvalidArgument` says why it makes no sense; else as [`Client::set_standing`].
    pub async fn move_replica(
        &self,
        call: v1::MoveReplicaRequest,
    ) -> Result<v1::MoveReplicaResponse, CallError> {
        self.operate(|mut node| async move { node.move_replica(call).await })
            .await
    }

    /// Lets another voter of a shard lead it.
    ///
    /// # Errors
    /// As [`Client::set_standing`].
    pub async fn transfer_leader(&self, shard: u32, to: u64) -> Result<(), CallError> {
        let call = v1::TransferLeaderRequest { shard, to };
        let done = self.operate(|mut node| async move { node.transfer_leader(call).await });
        done.await.map(|_| ())
    }

    /// What the placement would do next; as if these nodes were being drained.
    ///
    /// # Errors
    /// As [`Client::set_standing`]; it needs the leader of the meta shard.
    pub async fn plan_steps(
        &self,
        as_if_draining: Vec<u64>,
    ) -> Result<v1::PlanStepsResponse, CallError> {
        let call = v1::PlanStepsRequest { as_if_draining };
        let plan = |mut node: ClusterClient<AuthChannel>| {
            let call = call.clone();
            async move { node.plan_steps(call).await }
        };
        self.operate(plan).await
    }

    /// The rows of the meta shard as they are now.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn meta_rows(&self) -> Result<v1::MetaRowsResponse, CallError> {
        let call = v1::MetaRowsRequest {};
        self.operate(|mut node| async move { node.meta_rows(call).await })
            .await
    }

    /// What the placement is doing, and what it did last.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn steps(&self) -> Result<v1::StepsResponse, CallError> {
        self.operate(|mut node| async move { node.steps(v1::StepsRequest {}).await })
            .await
    }

    /// Begins the move of a slot to another shard, or with `dry_run` judges whether it could be.
    ///
    /// # Errors
    /// `StaleEpoch` if the slot is on another move, `UnknownShard`; else as [`Client::set_standing`].
    pub async fn move_slot(
        &self,
        call: v1::MoveSlotRequest,
    ) -> Result<v1::MoveSlotResponse, CallError> {
        self.operate(|mut node| async move { node.move_slot(call).await })
            .await
    }

    /// Gives the move of a slot up.
    ///
    /// # Errors
    /// `StaleEpoch` if there is none, or it is past that; else as [`Client::set_standing`].
    pub async fn abort_slot_move(&self, slot: u32) -> Result<v1::MapChange, CallError> {
        let call = v1::AbortSlotMoveRequest { slot };
        self.operate(|mut node| async move { node.abort_slot_move(call).await })
            .await
    }

    /// The moves of slots that are under way.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn slot_moves(&self) -> Result<Vec<v1::SlotMove>, CallError> {
        let call = v1::SlotMovesRequest {};
        let moves = self.operate(|mut node| async move { node.slot_moves(call).await });
        moves.await.map(|answer| answer.moves)
    }

    /// Begins the split of a shard, or with `dry_run` judges whether it could be.
    ///
    /// # Errors
    /// `StaleEpoch` if something is done to the shard already, `UnknownShard`; else as [`Client::set_standing`].
    pub async fn split_shard(
        &self,
        call: v1::SplitShardRequest,
    ) -> Result<v1::SplitShardResponse, CallError> {
        let split = |mut node: ClusterClient<AuthChannel>| {
            let call = call.clone();
            async move { node.split_shard(call).await }
        };
        self.operate(split).await
    }

    /// The splits of shards that are under way.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn shard_splits(&self) -> Result<Vec<v1::ShardSplit>, CallError> {
        let call = v1::ShardSplitsRequest {};
        let splits = self.operate(|mut node| async move { node.shard_splits(call).await });
        splits.await.map(|answer| answer.splits)
    }

    /// The shards that would be split by themselves, and cannot be.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn unsplit_shards(&self) -> Result<Vec<v1::UnsplitShard>, CallError> {
        let call = v1::ShardSplitsRequest {};
        let splits = self.operate(|mut node| async move { node.shard_splits(call).await });
        splits.await.map(|answer| answer.unsplit)
    }

    /// Begins the merge of a shard into another, or with `dry_run` judges whether it could be.
    ///
    /// # Errors
    /// `StaleEpoch` if something is done to one of them already, `UnknownShard`; else as [`Client::set_standing`].
    pub async fn merge_shard(
        &self,
        call: v1::MergeShardRequest,
    ) -> Result<v1::MergeShardResponse, CallError> {
        self.operate(|mut node| async move { node.merge_shard(call).await })
            .await
    }

    /// Gives the merge of a shard up. What has moved stays where it is.
    ///
    /// # Errors
    /// `StaleEpoch` if there is none, `UnknownShard` if it is done; else as [`Client::set_standing`].
    pub async fn abort_shard_merge(&self, shard: u32) -> Result<v1::MapChange, CallError> {
        let call = v1::AbortShardMergeRequest { shard };
        self.operate(|mut node| async move { node.abort_shard_merge(call).await })
            .await
    }

    /// The merges of shards that are under way.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn shard_merges(&self) -> Result<Vec<v1::ShardMerge>, CallError> {
        let call = v1::ShardMergesRequest { shard: None };
        let merges = self.operate(|mut node| async move { node.shard_merges(call).await });
        merges.await.map(|answer| answer.merges)
    }

    async fn operate<T, F>(
        &self,
        call: impl Fn(ClusterClient<AuthChannel>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_any(|node| call(node.cluster())).await
    }

    /// Asks one node after the other, until one has done it. For calls that bear being asked twice.
    pub(crate) async fn ask_any<T, F>(&self, call: impl Fn(&Node) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_any_until(self.deadline(), call).await
    }

    /// The same until a deadline; every node is asked at least once.
    pub(crate) async fn ask_any_until<T, F>(
        &self,
        deadline: Instant,
        call: impl Fn(&Node) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let inner = self.inner();
        let mut backoff = Backoff::new(&inner.options.timeouts, deadline);
        loop {
            let mut last = CallError::new(ErrorCode::Unavailable, "no node is known");
            for node in inner.router.nodes() {
                match inner.once(call(&node)).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if failure.error.is_retryable() => last = failure.error,
                    Err(failure) => return Err(failure.error),
                }
            }
            if !backoff.wait(&last).await {
                return Err(last);
            }
        }
    }
}
