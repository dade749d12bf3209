//! One step, from its last check to its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_engine::{MapReplica, ReplicaRole, ShardId};
use mailbox_placement::{Load, NodeId, Role, Stale, Step};
use mailbox_raft::MembershipChange;

use super::effects::{Effects, Led, Members};
use super::look;

/// Why a step ended early. Whatever it is: the next round looks at what has become of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepFault {
    /// It does not fit the shard any more; nothing was done.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The shard's members are not those of the map; nothing was done.
    #[error("the map does not name the shard's members yet")]
    Unlike,
    /// A bug; the log has the panic.
    #[error("the step panicked: this node's log says where")]
    Panicked,
    /// A call failed.
    #[error("{0}")]
    Call(#[from] CallError),
}

/// Checks a step against map and members as they are now, and executes it.
///
/// # Errors
/// Why it was not executed, or not to its end.
pub(super) async fn execute<E: Effects>(effects: Arc<E>, step: Step) -> Result<(), StepFault> {
    let shard = ShardId(step.shard().0);
    let map = effects.map().await?;
    let Some(row) = map.shards.get(&shard) else {
        return Err(StepFault::Unlike);
    };
    let members = effects.members(shard).await?;
    if !members.changing && !members.are_those_of(row) {
        return Err(StepFault::Unlike);
    }
    let led = Led {
        shard,
        term: 0,
        members,
        lags: Vec::new(),
        load: Load::default(),
    };
    let now = look::shard(shard, row, Some(&led), false);
    step.check(&now)?;
    let is_voter =
        |node: NodeId| matches!(now.replica(node), Some(held) if held.role == Role::Voter);
    let rows = Rows {
        effects: &*effects,
        shard,
        epoch: row.epoch,
        before: &row.replicas,
        members: &led.members,
    };
    match step {
        Step::AddLearner { node, replaces, .. } => rows.add(node, replaces).await,
        Step::PromoteReplace {
            learner, replaced, ..
        } => rows.promote(learner, replaced).await,
        Step::TransferLeader { to, .. } => Ok(effects.transfer(shard, to.0).await?),
        Step::RemoveReplica { node, .. } => rows.remove(node, is_voter(node)).await,
    }
}

/// Where a step begins.
struct Rows<'a, E> {
    effects: &'a E,
    shard: ShardId,
    epoch: u64,
    before: &'a [MapReplica],
    members: &'a Members,
}

impl<E: Effects> Rows<'_, E> {
    async fn add(&self, node: NodeId, replaces: Option<NodeId>) -> Result<(), StepFault> {
        let mut replicas = self.before.to_vec();
        let replaces = replaces.map(|node| node.0);
        replicas.push(MapReplica {
            node: node.0,
            role: ReplicaRole::Learner { replaces },
        });
        self.write(replicas).await?;
        self.change(MembershipChange::AddLearner(node.0)).await
    }

    async fn promote(&self, learner: NodeId, replaced: Option<NodeId>) -> Result<(), StepFault> {
        let change = MembershipChange::Voters {
            add: BTreeSet::from([learner.0]),
            remove: replaced.iter().map(|node| node.0).collect(),
        };
        self.change(change).await?;
        let stays = self.before.iter();
        let stays = stays.filter(|held| replaced.is_none_or(|gone| gone.0 != held.node));
        let voter = |held: &MapReplica| MapReplica {
            node: held.node,
            role: if held.node == learner.0 {
                ReplicaRole::Voter
            } else {
                held.role
            },
        };
        self.write(stays.map(voter).collect()).await
    }

    async fn remove(&self, node: NodeId, votes: bool) -> Result<(), StepFault> {
        let change = if votes {
            MembershipChange::Voters {
                add: BTreeSet::new(),
                remove: BTreeSet::from([node.0]),
            }
        } else {
            MembershipChange::RemoveLearner(node.0)
        };
        self.change(change).await?;
        let stays = self.before.iter().filter(|held| held.node != node.0);
        self.write(stays.copied().collect()).await
    }

    async fn change(&self, change: MembershipChange) -> Result<(), StepFault> {
        let index = self.members.index;
        Ok(self.effects.change(self.shard, index, change).await?)
    }

    async fn write(&self, replicas: Vec<MapReplica>) -> Result<(), StepFault> {
        let written = self.effects.set_replicas(self.shard, self.epoch, replicas);
        written.await?;
        Ok(())
    }
}
