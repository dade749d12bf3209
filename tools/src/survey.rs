//! What one look at a cluster shows: the map, and what every node says of itself.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures_util::future::join_all;
use mailbox_client::v1::{
    ClusterMap, MapNode, MapShard, NodeStanding, ShardStatus, StatusRequest, StatusResponse,
    StepsResponse,
};
use mailbox_client::{CallError, Client};

/// One moment. Needs no quorum.
pub(crate) struct Survey {
    pub(crate) map: ClusterMap,
    /// Of every node that was not removed.
    pub(crate) statuses: BTreeMap<u64, Result<StatusResponse, CallError>>,
}

impl Survey {
    pub(crate) async fn take(client: &Client) -> anyhow::Result<Self> {
        Self::take_with(client, StatusRequest::default()).await
    }

    /// With more than what nodes tell by default.
    pub(crate) async fn take_with(client: &Client, request: StatusRequest) -> anyhow::Result<Self> {
        let map = client.cluster_map().await;
        let map = map.context("ask for the map of the cluster")?;
        let asked = present(&map).map(async |node| {
            let mut status = client.status_with(Some(&node.address), request).await;
            if status.is_err() {
                // One late answer does not make a node a dead one.
                status = client.status_with(Some(&node.address), request).await;
            }
            (node.node, status)
        });
        let statuses = join_all(asked).await.into_iter().collect();
        Ok(Self { map, statuses })
    }

    /// Nodes that were not removed.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &MapNode> {
        present(&self.map)
    }

    /// What a node says of itself, if it answers.
    pub(crate) fn status_of(&self, node: u64) -> Option<&StatusResponse> {
        self.statuses.get(&node)?.as_ref().ok()
    }

    /// Why it does not.
    pub(crate) fn error_of(&self, node: u64) -> Option<&CallError> {
        self.statuses.get(&node)?.as_ref().err()
    }

    pub(crate) fn is_up(&self, node: u64) -> bool {
        self.status_of(node).is_some()
    }

    /// What the shard's leader says of it: of those who say they lead, the one of the greatest term.
    pub(crate) fn leader_of(&self, shard: u32) -> Option<(u64, &ShardStatus)> {
        let answers = self.statuses.iter();
        let answers = answers.filter_map(|(node, status)| Some((*node, status.as_ref().ok()?)));
        let led = answers.flat_map(|(node, status)| {
            let shards = status.shards.iter();
            shards.map(move |shard| (node, shard))
        });
        led.filter(|(_, status)| status.shard == shard && status.role == "leader")
            .max_by_key(|(_, status)| status.term)
    }

    /// Voters of a shard that answer, and all of them.
    pub(crate) fn voters_up(&self, shard: &MapShard) -> (usize, usize) {
        let voters = voters(shard);
        let up = voters.iter().filter(|node| self.is_up(**node));
        (up.count(), voters.len())
    }

    /// Nodes that may fail beyond those that do not answer, before some shard stops serving; negative if one has.
    pub(crate) fn can_lose(&self) -> i64 {
        let shards = self.map.shards.iter();
        let spare = shards.map(|shard| {
            let (up, all) = self.voters_up(shard);
            up as i64 - (all as i64 / 2 + 1)
        });
        spare.min().unwrap_or(0)
    }

    /// Replicas that the map puts on a node, and shards that it leads.
    pub(crate) fn load_of(&self, node: u64) -> (usize, usize) {
        let shards = self.map.shards.iter();
        let holds = |shard: &&MapShard| shard.replicas.iter().any(|held| held.node == node);
        let leads = shards.clone().filter(|shard| {
            self.leader_of(shard.shard)
                .is_some_and(|(leader, _)| leader == node)
        });
        (shards.filter(holds).count(), leads.count())
    }

    /// How many entries a replica has in its log and not applied yet, if its node answers.
    pub(crate) fn apply_lag(&self, shard: u32, node: u64) -> Option<u64> {
        let status = self.statuses.get(&node)?.as_ref().ok()?;
        let mut shards = status.shards.iter();
        let status = shards.find(|status| status.shard == shard)?;
        Some(status.last_index.saturating_sub(status.applied_index))
    }

    /// How many entries a replica is behind its leader, if the leader knows.
    pub(crate) fn lag(&self, shard: u32, node: u64) -> Option<u64> {
        let (leader, status) = self.leader_of(shard)?;
        if leader == node {
            return Some(0);
        }
        let mut replicas = status.replicas.iter();
        let replica = replicas.find(|replica| replica.node == node)?;
        // Of one that has matched nothing, the leader knows nothing yet.
        let known = replica.matched_index > 0;
        known.then(|| status.last_index.saturating_sub(replica.matched_index))
    }
}

fn present(map: &ClusterMap) -> impl Iterator<Item = &MapNode> {
    let nodes = map.nodes.iter();
    nodes.filter(|node| node.standing() != NodeStanding::Removed)
}

pub(crate) fn voters(shard: &MapShard) -> Vec<u64> {
    let voters = shard.replicas.iter().filter(|held| held.voter);
    voters.map(|held| held.node).collect()
}

/// `member`, `draining` or `removed`.
pub(crate) fn standing_text(standing: NodeStanding) -> &'static str {
    match standing {
        NodeStanding::Member => "member",
        NodeStanding::Draining => "draining",
        NodeStanding::Removed => "removed",
        NodeStanding::Unspecified => "unknown",
    }
}

/// What the placement does, if the leader of the meta shard can be asked.
///
/// # Errors
/// Why it cannot.
pub(crate) async fn steps(client: &Client) -> Result<StepsResponse, CallError> {
    client.steps().await
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::{ErrorCode, MapReplica};

    use super::*;

    /// Shards of so many voters each, on nodes of which some are down.
    fn survey(shards: &[u64], down: &[u64]) -> Survey {
        let voter = |node| MapReplica {
            node,
            voter: true,
            replaces: 0,
        };
        let shards = shards.iter().map(|voters| MapShard {
            replicas: (1..=*voters).map(voter).collect(),
            ..MapShard::default()
        });
        let status = |node| match down.contains(&node) {
            false => Ok(StatusResponse::default()),
            true => Err(CallError::new(ErrorCode::Unavailable, "down")),
        };
        Survey {
            map: ClusterMap {
                shards: shards.collect(),
                ..ClusterMap::default()
            },
            statuses: (1..=3).map(|node| (node, status(node))).collect(),
        }
    }

    #[test]
    fn what_may_be_lost_is_that_of_the_weakest_shard() {
        assert_eq!(survey(&[3], &[]).can_lose(), 1);
        assert_eq!(survey(&[3, 3], &[3]).can_lose(), 0);
        assert_eq!(survey(&[3], &[1, 2]).can_lose(), -1);
        assert_eq!(survey(&[3, 1], &[]).can_lose(), 0);
    }
}
