//! `MAP`, beside the node's data: the map that this node has seen last, so that it starts with nobody reachable.
//! JSON, for people too; replaced whole, so that after a power cut one map or the other is there.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use mailbox_engine::{
    ClusterMap, MapNode, MapReplica, MapShard, ReplicaRole, ShardId, SlotId, Standing,
};
use serde::{Deserialize, Serialize};

const FILE: &str = "MAP";
const FORMAT: u32 = 1;

/// Why there is no map to be had from a file, or none in it afterwards.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub(super) struct FileFault {
    path: PathBuf,
    reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    cluster_id: String,
    epoch: u64,
    slot_count: u16,
    shard_count: u16,
    nodes: Vec<NodeRow>,
    shards: Vec<ShardRow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeRow {
    node: u64,
    address: String,
    region: String,
    zone: String,
    weight: u32,
    standing: String,
    incarnation: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardRow {
    shard: u32,
    epoch: u64,
    slots: Vec<(u16, u16)>,
    replicas: Vec<ReplicaRow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicaRow {
    node: u64,
    voter: bool,
    replaces: Option<u64>,
}

const STANDINGS: [(Standing, &str); 3] = [
    (Standing::Member, "member"),
    (Standing::Draining, "draining"),
    (Standing::Removed, "removed"),
];

/// The map of a cluster that is kept in a directory; nothing if there is none.
pub(super) fn read(dir: &Path, cluster_id: &str) -> Result<Option<ClusterMap>, FileFault> {
    let path = dir.join(FILE);
    let fault = |reason: String| FileFault {
        path: path.clone(),
        reason,
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error.to_string())),
    };
    let document: Document =
        serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
    if document.format != FORMAT {
        return Err(fault(format!("format {}, not {FORMAT}", document.format)));
    }
    if document.cluster_id != cluster_id {
        return Err(fault(format!("of cluster `{}`", document.cluster_id)));
    }
    let map = map_of(document).ok_or_else(|| fault("an unknown standing".to_owned()))?;
    map.check().map_err(|error| fault(error.to_string()))?;
    Ok(Some(map))
}

/// Replaces the map in a directory.
pub(super) fn write(dir: &Path, cluster_id: &str, map: &ClusterMap) -> Result<(), FileFault> {
    let path = dir.join(FILE);
    let fault = |error: &dyn std::fmt::Display| FileFault {
        path: path.clone(),
        reason: error.to_string(),
    };
    let text = serde_json::to_string_pretty(&document_of(map, cluster_id));
    let text = text.map_err(|error| fault(&error))?;
    let draft = path.with_extension("new");
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(dir)?.sync_all()
    });
    written.map_err(|error| fault(&error))
}

fn document_of(map: &ClusterMap, cluster_id: &str) -> Document {
    let standing = |standing: Standing| {
        let named = STANDINGS.iter().find(|(known, _)| *known == standing);
        named.map_or("", |(_, name)| name).to_owned()
    };
    let nodes = map.nodes.iter().map(|(node, row)| NodeRow {
        node: *node,
        address: row.address.clone(),
        region: row.region.clone(),
        zone: row.zone.clone(),
        weight: row.weight,
        standing: standing(row.standing),
        incarnation: row.incarnation,
    });
    let replica = |replica: &MapReplica| ReplicaRow {
        node: replica.node,
        voter: replica.role == ReplicaRole::Voter,
        replaces: match replica.role {
            ReplicaRole::Voter => None,
            ReplicaRole::Learner { replaces } => replaces,
        },
    };
    let shards = map.shards.iter().map(|(shard, row)| ShardRow {
        shard: shard.0,
        epoch: row.epoch,
        slots: row
            .slots
            .iter()
            .map(|(first, last)| (first.0, last.0))
            .collect(),
        replicas: row.replicas.iter().map(replica).collect(),
    });
    Document {
        format: FORMAT,
        cluster_id: cluster_id.to_owned(),
        epoch: map.epoch,
        slot_count: map.slot_count,
        shard_count: map.shard_count,
        nodes: nodes.collect(),
        shards: shards.collect(),
    }
}

fn map_of(document: Document) -> Option<ClusterMap> {
    let mut map = ClusterMap {
        epoch: document.epoch,
        slot_count: document.slot_count,
        shard_count: document.shard_count,
        ..ClusterMap::default()
    };
    for row in document.nodes {
        let (standing, _) = STANDINGS.iter().find(|(_, name)| *name == row.standing)?;
        let node = MapNode {
            address: row.address,
            region: row.region,
            zone: row.zone,
            weight: row.weight,
            standing: *standing,
            incarnation: row.incarnation,
        };
        map.nodes.insert(row.node, node);
    }
    for row in document.shards {
        let slots = row.slots.into_iter();
        let replicas = row.replicas.into_iter().map(|replica| MapReplica {
            node: replica.node,
            role: if replica.voter {
                ReplicaRole::Voter
            } else {
                ReplicaRole::Learner {
                    replaces: replica.replaces,
                }
            },
        });
        let shard = MapShard {
            epoch: row.epoch,
            slots: slots
                .map(|(first, last)| (SlotId(first), SlotId(last)))
                .collect(),
            replicas: replicas.collect(),
        };
        map.shards.insert(ShardId(row.shard), shard);
    }
    Some(map)
}
