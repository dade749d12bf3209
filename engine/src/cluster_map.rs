//! The map of the cluster: which nodes there are, which shards, and whose replicas are where. Its rows
//! are the meta shard's; see `procedure/meta.rs` for what changes them.
//!
//! The map *follows* each shard's own membership, which alone says who votes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::command::Refusal;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::shard::Shard;
use crate::shard_merges::ShardMerge;
use crate::shard_splits::ShardSplit;
use crate::slot_moves::SlotMove;
use crate::table;

/// Of each of the rows here.
const FORMAT: u8 = 1;

/// Longest address of a node, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Longest name of a region or zone, in bytes.
pub const PLACE_BYTES_MAX: usize = 64;
/// Replicas of one shard, learners included.
pub const REPLICAS_MAX: usize = 16;

/// Nodes, shards and replicas at one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// Rises with every change of what is in here.
    pub epoch: u64,
    /// Hash buckets of owner ids: a constant of the cluster.
    pub slot_count: u16,
    /// Shards that the slots were split into at bootstrap: a constant of the cluster.
    pub shard_count: u16,
    /// Every node that has ever been in the cluster.
    pub nodes: BTreeMap<u64, MapNode>,
    /// Every shard, the meta shard (which has no slots) included.
    pub shards: BTreeMap<ShardId, MapShard>,
}

/// What operators want of a node. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Standing {
    /// It holds its share.
    Member = 1,
    /// It is to be emptied.
    Draining = 2,
    /// It will never come back; nor will its id.
    Removed = 3,
}

impl Standing {
    /// The standing with this stored number.
    pub fn from_u8(number: u8) -> Option<Standing> {
        match number {
            1 => Some(Standing::Member),
            2 => Some(Standing::Draining),
            3 => Some(Standing::Removed),
            _ => None,
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNode {
    /// `host:port` under which clients and the other nodes reach it.
    pub address: String,
    /// Its region; may be empty.
    pub region: String,
    /// Its zone in the region, what fails together; may be empty.
    pub zone: String,
    /// Its share in comparison with the others'. With 0 it is given nothing.
    pub weight: u32,
    /// What operators want of it.
    pub standing: Standing,
    /// Chosen at random at its first start: tells its directory from any other that is configured with
    /// the same id. 0 until it has told.
    pub incarnation: u64,
}

/// What a replica is to its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaRole {
    /// It votes.
    Voter,
    /// It only receives. It is to take the place of that voter, or of none.
    Learner {
        /// The voter that is to go.
        replaces: Option<u64>,
    },
}

/// One replica of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapReplica {
    /// Where it is.
    pub node: u64,
    /// What it is.
    pub role: ReplicaRole,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapShard {
    /// Rises with every change of this row.
    pub epoch: u64,
    /// Its slots, both ends of each span included; sorted and disjoint.
    pub slots: Vec<(SlotId, SlotId)>,
    /// Its replicas, at most one on a node.
    pub replicas: Vec<MapReplica>,
}

/// Why something is no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapFault {
    /// A slot is in no shard or in two, or a span is the wrong way round.
    #[error("not every slot is in exactly one shard")]
    Slots,
    /// A shard has no voter, two replicas on one node, or too many.
    #[error(
        "a shard has at least one voter, at most {REPLICAS_MAX} replicas, and at most one on a node"
    )]
    Replicas,
    /// A replica is on a node that is not in the map.
    #[error("a replica is on a node that is not in the map")]
    UnknownNode,
    /// A node has no address, too long a name, or no id.
    #[error("a node has no id, no address, or too long a name")]
    Node,
    /// There is no meta shard, or it has slots.
    #[error("shard 0 is the meta shard and has no slots")]
    MetaShard,
}

impl ClusterMap {
    /// The shards that a node is to hold a replica of.
    pub fn shards_on(&self, node: u64) -> impl Iterator<Item = ShardId> {
        let on = move |shard: &&MapShard| shard.replica(node).is_some();
        let shards = self.shards.iter();
        shards.filter_map(move |(id, shard)| on(&shard).then_some(*id))
    }

    /// Refuses what no cluster can be.
    ///
    /// # Errors
    /// The first fault that is found.
    pub fn check(&self) -> Result<(), MapFault> {
        for (id, node) in &self.nodes {
            node.check()?;
            if *id == 0 {
                return Err(MapFault::Node);
            }
        }
        let meta = self.shards.get(&ShardId::META);
        if !meta.is_some_and(|meta| meta.slots.is_empty()) {
            return Err(MapFault::MetaShard);
        }
        let mut spans = Vec::new();
        for shard in self.shards.values() {
            check_replicas(&shard.replicas)?;
            let known = |replica: &MapReplica| self.nodes.contains_key(&replica.node);
            if !shard.replicas.iter().all(known) {
                return Err(MapFault::UnknownNode);
            }
            spans.extend(shard.slots.iter().copied());
        }
        spans.sort_unstable();
        let mut next = 0_u32;
        for (first, last) in spans {
            if u32::from(first.0) != next || last < first {
                return Err(MapFault::Slots);
            }
            next = u32::from(last.0) + 1;
        }
        if next == u32::from(self.slot_count) {
            Ok(())
        } else {
            Err(MapFault::Slots)
        }
    }
}

/// Refuses replicas that no shard can have.
pub(crate) fn check_replicas(replicas: &[MapReplica]) -> Result<(), MapFault> {
    let nodes: BTreeSet<u64> = replicas.iter().map(|replica| replica.node).collect();
    let votes = |replica: &MapReplica| replica.role == ReplicaRole::Voter;
    let good = nodes.len() == replicas.len()
        && replicas.len() <= REPLICAS_MAX
        && replicas.iter().any(votes);
    if good {
        Ok(())
    } else {
        Err(MapFault::Replicas)
    }
}

impl MapNode {
    /// Refuses what does not fit its row.
    pub(crate) fn check(&self) -> Result<(), MapFault> {
        let named = |name: &String| name.len() <= PLACE_BYTES_MAX;
        let good = (1..=ADDRESS_BYTES_MAX).contains(&self.address.len())
            && named(&self.region)
            && named(&self.zone);
        if good { Ok(()) } else { Err(MapFault::Node) }
    }

    /// `format u8 | standing u8 | weight u32 | incarnation u64 | address | region | zone`, each text
    /// with its length, u32, before it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[FORMAT, self.standing as u8]);
        out.extend_from_slice(&self.weight.to_be_bytes());
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        for text in [&self.address, &self.region, &self.zone] {
            put_count(text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<MapNode, Malformed> {
        let mut reader = Reader::new("node row of the map", bytes);
        let reader = &mut reader;
        read_format(reader)?;
        let standing = reader.u8()?;
        let standing = Standing::from_u8(standing).ok_or_else(|| reader.unknown(standing))?;
        let (weight, incarnation) = (reader.u32()?, reader.u64()?);
        let mut text = || {
            let bytes = reader.sized()?;
            reader.text(bytes).map(str::to_owned)
        };
        let (address, region, zone) = (text()?, text()?, text()?);
        reader.end()?;
        Ok(MapNode {
            address,
            region,
            zone,
            weight,
            standing,
            incarnation,
        })
    }
}

impl MapShard {
    /// The replica on a node.
    pub fn replica(&self, node: u64) -> Option<&MapReplica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// `format u8 | epoch u64 | count u32, spans (first u16 | last u16) | count u32, replicas (node u64 |
    /// role u8 | replaces u64)`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        put_count(self.slots.len(), out);
        for (first, last) in &self.slots {
            out.extend_from_slice(&first.0.to_be_bytes());
            out.extend_from_slice(&last.0.to_be_bytes());
        }
        put_replicas(&self.replicas, out);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<MapShard, Malformed> {
        let mut reader = Reader::new("shard row of the map", bytes);
        let reader = &mut reader;
        read_format(reader)?;
        let epoch = reader.u64()?;
        let mut slots = Vec::new();
        for _ in 0..reader.u32()? {
            slots.push((SlotId(reader.u16()?), SlotId(reader.u16()?)));
        }
        let replicas = read_replicas(reader)?;
        reader.end()?;
        Ok(MapShard {
            epoch,
            slots,
            replicas,
        })
    }
}

/// The map's own row: what is in no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRow {
    pub(crate) epoch: u64,
    pub(crate) slot_count: u16,
    pub(crate) shard_count: u16,
}

impl MapRow {
    /// `format u8 | epoch u64 | slot count u16 | shard count u16`.
    pub(crate) fn encode(self) -> Bytes {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.slot_count.to_be_bytes());
        out.extend_from_slice(&self.shard_count.to_be_bytes());
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<MapRow, Malformed> {
        let mut reader = Reader::new("row of the map", bytes);
        read_format(&mut reader)?;
        let row = MapRow {
            epoch: reader.u64()?,
            slot_count: reader.u16()?,
            shard_count: reader.u16()?,
        };
        reader.end()?;
        Ok(row)
    }
}

/// Checks the value of a row of the map, for scrubs and installs.
pub(crate) fn check_row(key: &StateKey, value: &[u8]) -> Result<(), Malformed> {
    match key {
        StateKey::MetaMap => MapRow::decode(value).map(|_| ()),
        StateKey::MetaNode { .. } => MapNode::decode(value).map(|_| ()),
        StateKey::MetaShard { .. } => MapShard::decode(value).map(|_| ()),
        StateKey::MetaLog { .. } => table::decode_u64(value).map(|_| ()),
        StateKey::MetaMove { .. } => SlotMove::decode(value).map(|_| ()),
        StateKey::MetaSplit { .. } => ShardSplit::decode(value).map(|_| ()),
        StateKey::MetaMerge { .. } => ShardMerge::decode(value).map(|_| ()),
        _ => Ok(()),
    }
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    let count = u32::try_from(count).expect("a map is far smaller");
    out.extend_from_slice(&count.to_be_bytes());
}

fn read_format(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match reader.u8()? {
        FORMAT => Ok(()),
        other => Err(reader.unknown(other)),
    }
}

const ROLE_VOTER: u8 = 1;
const ROLE_LEARNER: u8 = 2;
const ROLE_REPLACING: u8 = 3;

pub(crate) fn put_replicas(replicas: &[MapReplica], out: &mut Vec<u8>) {
    put_count(replicas.len(), out);
    for replica in replicas {
        let (role, replaces) = match replica.role {
            ReplicaRole::Voter => (ROLE_VOTER, 0),
            ReplicaRole::Learner { replaces: None } => (ROLE_LEARNER, 0),
            ReplicaRole::Learner {
                replaces: Some(node),
            } => (ROLE_REPLACING, node),
        };
        out.extend_from_slice(&replica.node.to_be_bytes());
        out.push(role);
        out.extend_from_slice(&replaces.to_be_bytes());
    }
}

pub(crate) fn read_replicas(reader: &mut Reader<'_>) -> Result<Vec<MapReplica>, Malformed> {
    let mut replicas = Vec::new();
    for _ in 0..reader.u32()? {
        let (node, role, replaces) = (reader.u64()?, reader.u8()?, reader.u64()?);
        let role = match (role, replaces) {
            (ROLE_VOTER, 0) => ReplicaRole::Voter,
            (ROLE_LEARNER, 0) => ReplicaRole::Learner { replaces: None },
            (ROLE_REPLACING, node) => ReplicaRole::Learner {
                replaces: Some(node),
            },
            (role, _) => return Err(reader.unknown(role)),
        };
        replicas.push(MapReplica { node, role });
    }
    Ok(replicas)
}

/// Whether a node may say that it is `node`, with a directory of this incarnation whose log ends at `log_batch`.
/// Once refused, it always is: a removed node stays removed, an id stays bound, and logs grow.
pub(crate) fn judge_node(
    node: u64,
    known: Option<&MapNode>,
    recorded: u64,
    incarnation: u64,
    log_batch: u64,
) -> Result<Standing, Refusal> {
    let standing = match known {
        None => Standing::Member,
        Some(known) if known.standing == Standing::Removed => {
            return Err(Refusal::NodeRemoved { node });
        }
        Some(known) if ![0, incarnation].contains(&known.incarnation) => {
            return Err(Refusal::NodeTaken { node });
        }
        Some(known) => known.standing,
    };
    if log_batch < recorded {
        return Err(Refusal::StaleDisk {
            node,
            log_batch,
            recorded,
        });
    }
    Ok(standing)
}

impl Shard {
    /// What this replica of the meta shard knows against a node that says who it is, as
    /// [`crate::MetaCommand::PutNode`] does. What one replica knows holds for all; that it knows nothing proves
    /// nothing, since it may be behind.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn refusal_of_node(
        &self,
        node: u64,
        incarnation: u64,
        log_batch: u64,
    ) -> Result<Option<Refusal>, Error> {
        if self.id() != ShardId::META {
            return Ok(None);
        }
        let key = StateKey::MetaNode { node };
        let corrupt = |malformed| Error::corrupt_row(key.encode().as_slice(), malformed);
        let known = self.get(&key)?.map(|value| MapNode::decode(&value));
        let known = known.transpose().map_err(corrupt)?;
        let key = StateKey::MetaLog { node };
        let corrupt = |malformed| Error::corrupt_row(key.encode().as_slice(), malformed);
        let recorded = self.get(&key)?.map(|value| table::decode_u64(&value));
        let recorded = recorded.transpose().map_err(corrupt)?.unwrap_or(0);
        let judged = judge_node(node, known.as_ref(), recorded, incarnation, log_batch);
        Ok(judged.err())
    }

    /// The cluster's map, of one moment; `None` in every shard but the meta shard, and there until
    /// [`crate::MetaCommand::Begin`] was applied.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped; so for the others here.
    pub fn cluster_map(&self) -> Result<Option<ClusterMap>, Error> {
        if self.id() != ShardId::META {
            return Ok(None);
        }
        let mut map = ClusterMap::default();
        for (suffix, value) in self.scan_prefix(SlotId::META, &StateKey::meta_prefix())? {
            let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
            match StateKey::decode(suffix.as_slice()).map_err(corrupt)? {
                StateKey::MetaMap => {
                    let row = MapRow::decode(&value).map_err(corrupt)?;
                    map.epoch = row.epoch;
                    (map.slot_count, map.shard_count) = (row.slot_count, row.shard_count);
                }
                StateKey::MetaNode { node } => {
                    let row = MapNode::decode(&value).map_err(corrupt)?;
                    map.nodes.insert(node, row);
                }
                StateKey::MetaShard { shard } => {
                    let row = MapShard::decode(&value).map_err(corrupt)?;
                    map.shards.insert(shard, row);
                }
                // How far a log has got is its node's business, and of moves only the end is others'.
                _ => {}
            }
        }
        Ok((map.epoch > 0).then_some(map))
    }

    /// The epoch of [`Shard::cluster_map`], for less; 0 if there is none.
    ///
    /// # Errors
    /// As there.
    pub fn map_epoch(&self) -> Result<u64, Error> {
        if self.id() != ShardId::META {
            return Ok(0);
        }
        let Some(value) = self.get(&StateKey::MetaMap)? else {
            return Ok(0);
        };
        let row = MapRow::decode(&value);
        let key = StateKey::MetaMap.encode();
        row.map(|row| row.epoch)
            .map_err(|malformed| Error::corrupt_row(key.as_slice(), malformed))
    }
}

#[cfg(test)]
pub(crate) mod tests;
