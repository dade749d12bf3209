//! Calls for shards that this node does not lead, or has no replica of: who is asked, and who is asked next.

use mailbox_api::CallError;
use mailbox_engine::ShardId;
use mailbox_raft::{LeaderHint, Leadership};
use tonic::Status;

use crate::core::Core;
use crate::status;

/// Nodes that one call is passed to at most, one after the other.
const ASKED_MAX: usize = 4;

impl Core {
    /// Who leads a shard, if somebody who should know has said so.
    pub(crate) fn known_leader(&self, shard: ShardId) -> Option<u64> {
        match self.node.shard(shard).map(|shard| shard.leadership()) {
            Some(Leadership::Leader { .. }) => Some(self.node_id),
            Some(Leadership::Follower { leader, .. }) => leader.map(|leader| leader.node),
            None => self.leaders.seen(shard),
        }
    }

    /// Another node that probably leads a shard, or knows who does; not one of those that were tried.
    pub(crate) fn leader_elsewhere(&self, shard: ShardId, tried: &[u64]) -> Option<LeaderHint> {
        let is_followed = match self.node.shard(shard).map(|shard| shard.leadership()) {
            Some(Leadership::Leader { .. }) => return None,
            Some(Leadership::Follower { leader, .. }) => {
                let leader = leader.filter(|leader| !tried.contains(&leader.node));
                if leader.is_some() {
                    return leader;
                }
                true
            }
            None => false,
        };
        let view = self.maps.now();
        let tried: Vec<u64> = tried.iter().copied().chain([self.node_id]).collect();
        if is_followed {
            return self.leaders.guess_beside(&view, shard, &tried);
        }
        self.leaders.guess(&view, shard, &tried)
    }

    /// Another voter, where the replica here knows no leader. There is most likely none; but a replica that was replaced
    /// is told nothing any more, and while the map does not say so yet nothing else leads to whoever leads now.
    fn voter_beside(&self, shard: ShardId) -> Option<LeaderHint> {
        if matches!(
            self.node.shard(shard)?.leadership(),
            Leadership::Leader { .. }
        ) {
            return None;
        }
        self.leaders.guess(&self.maps.now(), shard, &[self.node_id])
    }

    /// A shard that the map has and this node has not.
    pub(crate) fn not_here(&self, shard: ShardId) -> CallError {
        let mut error = status::not_leader(shard.0, self.leader_elsewhere(shard, &[]));
        error.0.map_epoch = self.maps.now().cluster.epoch;
        error
    }

    /// Asks the leader of a shard, wherever it is: one node after the other, each told by the one before or by the
    /// map. `ask` gets an address. What it asks must bear being asked twice.
    ///
    /// # Errors
    /// What the last one said.
    pub(crate) async fn ask<T, F, Asked>(&self, shard: ShardId, ask: F) -> Result<T, Status>
    where
        F: Fn(String) -> Asked,
        Asked: Future<Output = Result<T, Status>>,
    {
        let mut tried = Vec::new();
        let next = self.leader_elsewhere(shard, &tried);
        let mut next = next.or_else(|| self.voter_beside(shard));
        let mut last = None;
        while let Some(place) = next.take() {
            tried.push(place.node);
            let status = match ask(place.address).await {
                Ok(answer) => {
                    self.leaders.saw(shard, place.node);
                    return Ok(answer);
                }
                Err(status) => status,
            };
            self.leaders.forget(shard, place.node);
            let error = CallError::from_status(&status);
            let elsewhere = error.code() == mailbox_api::v1::ErrorCode::NotLeader;
            // Without details it is the connection that failed, not the node that said no.
            let gone = error.is_retryable() && status.details().is_empty();
            if !(elsewhere || gone) || tried.len() >= ASKED_MAX {
                return Err(status);
            }
            let (node, address) = (error.0.leader_node, error.0.leader_address);
            next = if elsewhere && node != 0 && node != self.node_id && !tried.contains(&node) {
                Some(LeaderHint { node, address })
            } else {
                self.leader_elsewhere(shard, &tried)
            };
            last = Some(status);
        }
        Err(last.unwrap_or_else(|| status::not_leader(shard.0, None).into()))
    }
}
