//! Between the protocol's map and the engine's.

use mailbox_api::CallError;
use mailbox_api::v1::{self, NodeStanding, SlotSpan};
use mailbox_engine::{
    ClusterMap, MapNode, MapReplica, MapShard, ReplicaRole, ShardId, SlotId, Standing,
};

use crate::convert::invalid;

/// The protocol's map; leaders are left out.
pub(crate) fn map_out(map: &ClusterMap, cluster_id: &str) -> v1::ClusterMap {
    v1::ClusterMap {
        epoch: map.epoch,
        cluster_id: cluster_id.to_owned(),
        slot_count: map.slot_count.into(),
        shard_count: map.shard_count.into(),
        nodes: map
            .nodes
            .iter()
            .map(|(id, row)| node_out(*id, row))
            .collect(),
        shards: map
            .shards
            .iter()
            .map(|(id, row)| shard_out(*id, row))
            .collect(),
    }
}

fn node_out(node: u64, row: &MapNode) -> v1::MapNode {
    v1::MapNode {
        node,
        address: row.address.clone(),
        region: row.region.clone(),
        zone: row.zone.clone(),
        weight: row.weight,
        standing: standing_out(row.standing) as i32,
        incarnation: row.incarnation,
    }
}

fn shard_out(shard: ShardId, row: &MapShard) -> v1::MapShard {
    let span = |(first, last): &(SlotId, SlotId)| SlotSpan {
        first: first.0.into(),
        last: last.0.into(),
    };
    let replica = |replica: &MapReplica| v1::MapReplica {
        node: replica.node,
        voter: replica.role == ReplicaRole::Voter,
        replaces: match replica.role {
            ReplicaRole::Voter => 0,
            ReplicaRole::Learner { replaces } => replaces.unwrap_or(0),
        },
    };
    v1::MapShard {
        shard: shard.0,
        epoch: row.epoch,
        slots: row.slots.iter().map(span).collect(),
        replicas: row.replicas.iter().map(replica).collect(),
        leader: 0,
    }
}

/// The engine's map.
///
/// # Errors
/// `InvalidArgument`, naming what is no part of a map.
pub(super) fn map_in(map: v1::ClusterMap) -> Result<ClusterMap, CallError> {
    let mut read = ClusterMap {
        epoch: map.epoch,
        slot_count: small("slot_count", map.slot_count)?,
        shard_count: small("shard_count", map.shard_count)?,
        ..ClusterMap::default()
    };
    for node in map.nodes {
        let row = MapNode {
            standing: standing_in(node.standing)?,
            address: node.address,
            region: node.region,
            zone: node.zone,
            weight: node.weight,
            incarnation: node.incarnation,
        };
        read.nodes.insert(node.node, row);
    }
    for shard in map.shards {
        let spans = shard.slots.into_iter();
        let spans = spans.map(|span| {
            let first = small("slot", span.first)?;
            Ok((SlotId(first), SlotId(small("slot", span.last)?)))
        });
        let row = MapShard {
            epoch: shard.epoch,
            slots: spans.collect::<Result<_, CallError>>()?,
            replicas: shard.replicas.iter().map(replica_in).collect(),
        };
        read.shards.insert(ShardId(shard.shard), row);
    }
    Ok(read)
}

fn replica_in(replica: &v1::MapReplica) -> MapReplica {
    let role = if replica.voter {
        ReplicaRole::Voter
    } else {
        ReplicaRole::Learner {
            replaces: (replica.replaces != 0).then_some(replica.replaces),
        }
    };
    MapReplica {
        node: replica.node,
        role,
    }
}

fn standing_out(standing: Standing) -> NodeStanding {
    match standing {
        Standing::Member => NodeStanding::Member,
        Standing::Draining => NodeStanding::Draining,
        Standing::Removed => NodeStanding::Removed,
    }
}

/// The engine's standing.
///
/// # Errors
/// `InvalidArgument` for one that is not known.
pub(crate) fn standing_in(standing: i32) -> Result<Standing, CallError> {
    match NodeStanding::try_from(standing) {
        Ok(NodeStanding::Member) => Ok(Standing::Member),
        Ok(NodeStanding::Draining) => Ok(Standing::Draining),
        Ok(NodeStanding::Removed) => Ok(Standing::Removed),
        Ok(NodeStanding::Unspecified) | Err(_) => {
            Err(invalid(format!("standing {standing} is not known")))
        }
    }
}

fn small(field: &str, number: u32) -> Result<u16, CallError> {
    u16::try_from(number).map_err(|_| invalid(format!("{field} {number} is above 65,535")))
}
