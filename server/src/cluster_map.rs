//! The map of the cluster as this node knows it: where slots, shards and nodes are.
//!
//! ```text
//!  meta replica here ──┐                      ┌──▶ routing (Core), clients (ShardMap, WatchMap)
//!  another node ───────┼──▶ Maps: the newest ─┼──▶ nodes and replicas of this node (hosting.rs)
//!  MAP on disk ────────┘                      └──▶ MAP on disk
//! ```
//!
//! A map may be old: whoever asks it must live with that. Its epoch only ever rises, so whatever brings a map
//! may bring it late, twice or from a node that lags. Who votes in a shard is in the shard's own log, and whose
//! slots are whose is judged in apply; a wrong map costs a detour.

mod begin;
mod convert;
mod file;
mod hosting;
mod join;
mod leaders;
mod report;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mailbox_api::v1;
use mailbox_engine::{ClusterMap, MapNode, MapReplica, MapShard, ReplicaRole, ShardId, Standing};
use mailbox_raft::LeaderHint;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::Config;
use crate::shard_map::ShardMap;

pub(crate) use convert::{map_out, standing_in};
pub(crate) use join::Joiner;
pub(crate) use leaders::Leaders;

/// Everything that one map says, in the forms that are asked for.
#[derive(Debug)]
pub(crate) struct View {
    /// The map; at epoch 0 what the configuration says, as there was none yet.
    pub(crate) cluster: ClusterMap,
    /// Slot to shard.
    pub(crate) shards: ShardMap,
    /// This node, and where it is now: the map may not know yet that it has moved.
    own: (u64, Arc<str>),
}

impl View {
    pub(crate) fn new(cluster: ClusterMap, own: (u64, Arc<str>)) -> Self {
        let shards = ShardMap::of(&cluster);
        Self {
            cluster,
            shards,
            own,
        }
    }

    /// Where a node is; nothing for one that was removed.
    pub(crate) fn place(&self, node: u64) -> Option<LeaderHint> {
        let row = self.cluster.nodes.get(&node)?;
        let address: &str = if node == self.own.0 {
            &self.own.1
        } else {
            &row.address
        };
        (row.standing != Standing::Removed).then(|| LeaderHint {
            node,
            address: address.to_owned(),
        })
    }

    /// The map gives this node a replica of a shard.
    pub(crate) fn is_here(&self, shard: ShardId) -> bool {
        let row = self.cluster.shards.get(&shard);
        row.is_some_and(|row| row.replica(self.own.0).is_some())
    }

    /// Nodes that hold a replica of a shard that votes.
    pub(crate) fn voters(&self, shard: ShardId) -> Vec<u64> {
        let row = self.cluster.shards.get(&shard);
        let replicas = row.into_iter().flat_map(|row| &row.replicas);
        let voters = replicas.filter(|replica| replica.role == ReplicaRole::Voter);
        voters.map(|replica| replica.node).collect()
    }
}

/// The newest map that this node has seen.
pub(crate) struct Maps {
    current: watch::Sender<Arc<View>>,
    file: Mutex<MapFile>,
}

struct MapFile {
    dir: PathBuf,
    cluster_id: String,
    /// The map here was told by a node since this one started; that of the file may be damaged in a way that
    /// shows only beside another one of its epoch.
    told: bool,
}

impl Maps {
    /// Begins with the map on disk, else with one that somebody has told, else with what the configuration says.
    pub(crate) fn open(config: &Config, told: Option<ClusterMap>) -> Self {
        let dir = config.node.dir.clone();
        let stored = read_stored(&dir, config);
        let first = stored.unwrap_or_else(|| configured(config));
        let own = (config.node.id, Arc::from(config.own_address()));
        let maps = Self {
            current: watch::Sender::new(Arc::new(View::new(first, own))),
            file: Mutex::new(MapFile {
                dir,
                cluster_id: config.cluster.id.clone(),
                told: false,
            }),
        };
        if let Some(told) = told {
            maps.take(told);
        }
        maps
    }

    /// The map now.
    pub(crate) fn now(&self) -> Arc<View> {
        Arc::clone(&self.current.borrow())
    }

    /// Told at each change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.current.subscribe()
    }

    /// Takes a map over if it is newer than the one here. False if it is not, or is no map of this cluster.
    pub(crate) fn take(&self, map: ClusterMap) -> bool {
        let mut file = self.file.lock();
        let before = self.now();
        let newer = map.epoch > before.cluster.epoch;
        let mends = !file.told && map.epoch == before.cluster.epoch && map != before.cluster;
        if !newer && !mends {
            file.told |= map.epoch == before.cluster.epoch;
            return false;
        }
        let (slots, here) = (map.slot_count, before.cluster.slot_count);
        if let Err(fault) = map.check() {
            tracing::error!(epoch = map.epoch, %fault, "a map that cannot be is not taken over");
            return false;
        }
        if slots != here {
            tracing::error!(slots, here, "a map of another cluster is not taken over");
            return false;
        }
        tracing::info!(
            epoch = map.epoch,
            nodes = map.nodes.len(),
            shards = map.shards.len(),
            "map of the cluster"
        );
        file.told = true;
        if let Err(error) = file::write(&file.dir, &file.cluster_id, &map) {
            // The next start asks others, and goes by an older map until they have told.
            tracing::warn!(%error, "the map is not kept on disk");
        }
        let view = View::new(map, before.own.clone());
        self.current.send_replace(Arc::new(view));
        true
    }
}

fn read_stored(dir: &Path, config: &Config) -> Option<ClusterMap> {
    match file::read(dir, &config.cluster.id) {
        Ok(Some(map)) if map.slot_count == config.cluster.slot_count => Some(map),
        Ok(Some(map)) => {
            let (slots, configured) = (map.slot_count, config.cluster.slot_count);
            tracing::warn!(slots, configured, "the map on disk is of another cluster");
            None
        }
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(%error, "the map on disk cannot be read: others are asked");
            None
        }
    }
}

/// What a cluster begins with: every shard on all of its first nodes. The meta shard's leader proposes it, and
/// every node goes by it until there is a map.
pub(crate) fn configured(config: &Config) -> ClusterMap {
    let nodes = config.cluster.nodes.iter().map(|(node, address)| {
        let own = *node == config.node.id;
        let text = |own_text: &str| if own { own_text } else { "" }.to_owned();
        let row = MapNode {
            address: address.clone(),
            region: text(&config.node.region),
            zone: text(&config.node.zone),
            weight: if own {
                config.node.weight
            } else {
                DEFAULT_WEIGHT
            },
            standing: Standing::Member,
            incarnation: 0,
        };
        (*node, row)
    });
    let voter = |node: &u64| MapReplica {
        node: *node,
        role: ReplicaRole::Voter,
    };
    let replicas: Vec<MapReplica> = config.cluster.nodes.keys().map(voter).collect();
    let shard = |slots| MapShard {
        epoch: 1,
        slots,
        replicas: replicas.clone(),
    };
    let (slot_count, shard_count) = (config.cluster.slot_count, config.cluster.shards);
    let spans = mailbox_raft::first_slots(slot_count, shard_count);
    let shards = spans.map(|(id, slots)| (id, shard(slots)));
    ClusterMap {
        epoch: 0,
        slot_count,
        shard_count,
        nodes: nodes.collect(),
        shards: shards.collect(),
    }
}

/// Of a node that has not told its own yet.
const DEFAULT_WEIGHT: u32 = 100;

/// The tasks that keep a node and its map together, until the node stops.
pub(crate) fn spawn(core: &Arc<crate::core::Core>, config: &Config, joiner: Arc<Joiner>) {
    tokio::spawn(source::run(Arc::clone(core)));
    tokio::spawn(hosting::run(Arc::clone(core)));
    if config.cluster.join.is_empty() {
        tokio::spawn(begin::run(Arc::clone(core), configured(config)));
    }
    tokio::spawn(report::run(Arc::clone(core), joiner));
}

/// What a caller learns of a map: with the leaders that this node knows.
pub(crate) fn told(core: &crate::core::Core, view: &View) -> v1::ClusterMap {
    let mut map = map_out(&view.cluster, &core.cluster.id);
    for shard in &mut map.shards {
        let leader = core.known_leader(ShardId(shard.shard));
        shard.leader = leader.unwrap_or(0);
    }
    map
}

#[cfg(test)]
mod tests;
