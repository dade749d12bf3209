//! The map follows the shards' own memberships.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_engine::{ClusterMap, MapReplica, MapShard, ReplicaRole, ShardId, Standing};
use mailbox_raft::MembershipChange;

use super::effects::{Effects, Members};

/// Brings map and members of a shard together again after something has ended between them. False if there was
/// nothing to do.
///
/// # Errors
/// Why it could not be done, as far as it was not.
pub(super) async fn follow<E: Effects>(effects: Arc<E>, shard: ShardId) -> Result<bool, CallError> {
    // In this order: a row that was written after the members were read is not written over.
    let map = effects.map().await?;
    let Some(row) = map.shards.get(&shard) else {
        return Ok(false);
    };
    let members = effects.members(shard).await?;
    if members.changing {
        return Ok(false);
    }
    let replicas = replicas_after(&map, row, &members);
    let mut did = false;
    if replicas != row.replicas {
        tracing::info!(
            shard = shard.0,
            epoch = row.epoch,
            ?replicas,
            "placement: the map follows the shard's members"
        );
        let epoch = row.epoch;
        effects.set_replicas(shard, epoch, replicas.clone()).await?;
        did = true;
    }
    let missing = replicas.iter().map(|held| held.node);
    let mut missing = missing.filter(|node| !is_member(&members, *node));
    // One change: it brings another membership, which the next round looks at.
    let change = missing.next().map(MembershipChange::AddLearner);
    let strange = members.learners.iter();
    let mut strange = strange.filter(|node| !is_there(&map, **node));
    let change = change.or_else(|| strange.next().copied().map(MembershipChange::RemoveLearner));
    if let Some(change) = change {
        tracing::info!(
            shard = shard.0,
            ?change,
            "placement: the shard is told what the map says"
        );
        effects.change(shard, members.index, change).await?;
        did = true;
    }
    Ok(did)
}

fn is_member(members: &Members, node: u64) -> bool {
    members.voters.contains(&node) || members.learners.contains(&node)
}

fn is_there(map: &ClusterMap, node: u64) -> bool {
    let row = map.nodes.get(&node);
    row.is_some_and(|row| row.standing != Standing::Removed)
}

/// The row that a shard's members call for. They alone say who votes. A learner that only the map knows was
/// about to be added, or has just been removed: it is told to the shard (again), unless its node is to hold
/// nothing.
fn replicas_after(map: &ClusterMap, row: &MapShard, members: &Members) -> Vec<MapReplica> {
    let wanted = |node: u64| {
        let row = map.nodes.get(&node);
        row.is_some_and(|row| row.standing == Standing::Member)
    };
    let learner = |role: ReplicaRole| match role {
        ReplicaRole::Learner { .. } => role,
        ReplicaRole::Voter => ReplicaRole::Learner { replaces: None },
    };
    let mut after = Vec::new();
    for held in &row.replicas {
        let MapReplica { node, role } = *held;
        if members.voters.contains(&node) {
            let role = ReplicaRole::Voter;
            after.push(MapReplica { node, role });
        } else if members.learners.contains(&node) {
            let role = learner(role);
            after.push(MapReplica { node, role });
        } else if role != ReplicaRole::Voter && wanted(node) {
            after.push(*held);
        }
    }
    let new = |node: &u64| row.replica(*node).is_none() && is_there(map, *node);
    for node in members.voters.iter().filter(|node| new(node)) {
        let (node, role) = (*node, ReplicaRole::Voter);
        after.push(MapReplica { node, role });
    }
    for node in members.learners.iter().filter(|node| new(node)) {
        let (node, role) = (*node, ReplicaRole::Learner { replaces: None });
        after.push(MapReplica { node, role });
    }
    after
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mailbox_engine::MapNode;

    use super::*;

    const VOTER: ReplicaRole = ReplicaRole::Voter;
    const FOR_ONE: ReplicaRole = ReplicaRole::Learner { replaces: Some(1) };

    fn row(replicas: &[(u64, ReplicaRole)]) -> MapShard {
        let replica = |&(node, role): &(u64, ReplicaRole)| MapReplica { node, role };
        MapShard {
            epoch: 3,
            slots: Vec::new(),
            replicas: replicas.iter().map(replica).collect(),
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members {
            voters: voters.iter().copied().collect::<BTreeSet<u64>>(),
            learners: learners.iter().copied().collect(),
            ..Members::default()
        }
    }

    fn map(standing_of_4: Standing) -> ClusterMap {
        let node = |id| {
            let row = MapNode {
                address: format!("n{id}:1"),
                region: String::new(),
                zone: String::new(),
                weight: 100,
                standing: if id == 4 {
                    standing_of_4
                } else {
                    Standing::Member
                },
                incarnation: id,
            };
            (id, row)
        };
        ClusterMap {
            nodes: (1..=5).map(node).collect(),
            ..ClusterMap::default()
        }
    }

    fn after(row: &MapShard, members: &Members) -> Vec<(u64, ReplicaRole)> {
        let after = replicas_after(&map(Standing::Member), row, members);
        after.iter().map(|held| (held.node, held.role)).collect()
    }

    #[test]
    fn a_promotion_that_the_map_missed_is_made_up_for() {
        let before = row(&[(1, VOTER), (2, VOTER), (3, VOTER), (4, FOR_ONE)]);
        assert_eq!(
            after(&before, &members(&[2, 3, 4], &[])),
            [(2, VOTER), (3, VOTER), (4, VOTER)]
        );
    }

    #[test]
    fn a_learner_keeps_what_it_is_for() {
        let before = row(&[(1, VOTER), (2, VOTER), (4, FOR_ONE)]);
        let same = [(1, VOTER), (2, VOTER), (4, FOR_ONE)];
        assert_eq!(after(&before, &members(&[1, 2], &[4])), same);
        assert_eq!(after(&before, &members(&[1, 2], &[])), same);
    }

    #[test]
    fn a_learner_that_is_to_hold_nothing_is_not_added_again() {
        let before = row(&[(1, VOTER), (4, FOR_ONE)]);
        let after = replicas_after(&map(Standing::Draining), &before, &members(&[1], &[]));
        assert_eq!(after, row(&[(1, VOTER)]).replicas);
    }

    #[test]
    fn members_that_the_map_does_not_name_are_named() {
        let before = row(&[(1, VOTER)]);
        let learner = ReplicaRole::Learner { replaces: None };
        assert_eq!(
            after(&before, &members(&[1, 2], &[4])),
            [(1, VOTER), (2, VOTER), (4, learner)]
        );
    }
}
