//! Everything that the executor sees of a cluster and does to it.

use std::collections::BTreeSet;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_engine::{ClusterMap, MapReplica, MapShard, ReplicaRole, ShardId};
use mailbox_placement::Load;
use mailbox_raft::MembershipChange;

/// A shard, as the node says that leads it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Led {
    pub(super) shard: ShardId,
    pub(super) term: u64,
    pub(super) members: Members,
    /// How many entries each replica is behind, where that is known.
    pub(super) lags: Vec<(u64, u64)>,
    /// What it stores, and what is written to it.
    pub(super) load: Load,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) led: Vec<Led>,
    /// See [`mailbox_placement::Node::may_lead`].
    pub(super) may_lead: bool,
    /// See [`mailbox_placement::Node::has_room`].
    pub(super) has_room: bool,
    /// See [`mailbox_placement::Node::up_for_ms`].
    pub(super) up_for_ms: u64,
}

/// Who holds replicas of a shard, by its own log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// Who says so.
    pub(super) leader: u64,
    pub(super) voters: BTreeSet<u64>,
    pub(super) learners: BTreeSet<u64>,
    /// Another membership is about to follow.
    pub(super) changing: bool,
    /// Of the entry that brought this one.
    pub(super) index: u64,
}

impl Members {
    /// The map's row says the same.
    pub(super) fn are_those_of(&self, row: &MapShard) -> bool {
        let on = |votes: bool| {
            let held = row.replicas.iter();
            let held = held.filter(move |held| (held.role == ReplicaRole::Voter) == votes);
            held.map(|held| held.node).collect::<BTreeSet<u64>>()
        };
        self.voters == on(true) && self.learners == on(false)
    }
}

/// What the executor works on. A call that failed may have done what it was for, now or later: whoever calls
/// looks again.
pub(super) trait Effects: Send + Sync + 'static {
    /// A clock that only goes forward.
    fn now_ms(&self) -> u64;

    /// Lets time pass.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// The newest map, for which this node must lead the meta shard.
    fn map(&self) -> impl Future<Output = Result<ClusterMap, CallError>> + Send;

    /// The shards that are splitting: nothing is done to them meanwhile.
    fn splitting(&self) -> impl Future<Output = Result<BTreeSet<ShardId>, CallError>> + Send;

    /// The shards that are merged away: nothing is made better about them.
    fn merging(&self) -> impl Future<Output = Result<BTreeSet<ShardId>, CallError>> + Send;

    /// What a node leads and how it is. `Unavailable` means that it is out of reach.
    fn told_by(
        &self,
        node: u64,
        address: &str,
    ) -> impl Future<Output = Result<Told, CallError>> + Send;

    /// A shard's members, by its leader behind a read barrier.
    fn members(&self, shard: ShardId) -> impl Future<Output = Result<Members, CallError>> + Send;

    /// Writes the replicas of a shard into the map, if its row is at that epoch. Gives the map's epoch.
    fn set_replicas(
        &self,
        shard: ShardId,
        epoch: u64,
        replicas: Vec<MapReplica>,
    ) -> impl Future<Output = Result<u64, CallError>> + Send;

    /// Changes a shard's members, if they are those of that index.
    fn change(
        &self,
        shard: ShardId,
        from_index: u64,
        change: MembershipChange,
    ) -> impl Future<Output = Result<(), CallError>> + Send;

    /// Lets another voter lead.
    fn transfer(
        &self,
        shard: ShardId,
        to: u64,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
}
