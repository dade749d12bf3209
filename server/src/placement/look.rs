//! What the planner is told: the map, and what the nodes say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use mailbox_api::CallError;
use mailbox_api::v1::ErrorCode;
use mailbox_engine::{ClusterMap, MapNode, MapReplica, MapShard, ReplicaRole, ShardId, Standing};
use mailbox_placement::{
    self as placement, Goals, Load, LoadedShard, Loads, NodeId, Replica, Role, Shard, State, Step,
};

use super::effects::{Effects, Led, Told};

/// Since when nodes have been out of reach. A new leader of the meta shard counts anew: it may replace a dead
/// node's replicas later for that, never sooner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness {
    down_since_ms: BTreeMap<u64, u64>,
}

impl Liveness {
    fn saw(&mut self, node: u64, up: bool, now_ms: u64) {
        if up {
            self.down_since_ms.remove(&node);
        } else {
            self.down_since_ms.entry(node).or_insert(now_ms);
        }
    }
}

/// The cluster at one moment.
#[derive(Clone)]
pub(super) struct Sight {
    pub(super) map: ClusterMap,
    pub(super) state: State,
    /// Shards whose members are not those of the map: nothing is planned for them before the map has followed.
    pub(super) unlike: Vec<ShardId>,
    /// What the shards have, by their leaders.
    pub(super) loads: BTreeMap<ShardId, Load>,
}

/// Looks at the map and then at all nodes at once. Shards in `busy` have a step under way; those that split are left
/// alone, even if they are unlike the map.
///
/// # Errors
/// The map could not be read.
pub(super) async fn look<E: Effects>(
    effects: &E,
    liveness: &mut Liveness,
    busy: &BTreeSet<ShardId>,
) -> Result<Sight, CallError> {
    // In this order: what nodes say is then never older than the map.
    let map = effects.map().await?;
    let splitting = effects.splitting().await?;
    let merging = effects.merging().await?;
    let present = map.nodes.iter();
    let present = present.filter(|(_, row)| row.standing != Standing::Removed);
    let asked = present.map(async |(id, row)| (*id, effects.told_by(*id, &row.address).await));
    let told = join_all(asked).await;
    let now_ms = effects.now_ms();
    let mut leaders: BTreeMap<ShardId, Led> = BTreeMap::new();
    let mut able = BTreeMap::new();
    for (node, answer) in told {
        let told = match answer {
            Ok(told) => told,
            Err(error) => {
                // One that answers with a refusal is not dead, and nothing of it may be made anew elsewhere.
                let down = error.code() == ErrorCode::Unavailable;
                if !down {
                    tracing::warn!(node, %error, "placement: a node does not say how it is");
                }
                liveness.saw(node, !down, now_ms);
                continue;
            }
        };
        liveness.saw(node, true, now_ms);
        able.insert(node, Ability::of(&told));
        for led in told.led {
            let known = leaders.get(&led.shard);
            // A leader that was replaced without its knowledge has an older term.
            if known.is_none_or(|known| known.term < led.term) {
                leaders.insert(led.shard, led);
            }
        }
    }
    let unlike = |(id, row): (&ShardId, &MapShard)| {
        let led = leaders.get(id).filter(|_| !splitting.contains(id))?;
        (!led.members.changing && !led.members.are_those_of(row)).then_some(*id)
    };
    let unlike: Vec<ShardId> = map.shards.iter().filter_map(unlike).collect();
    let shards = map.shards.iter().map(|(id, row)| {
        let waits = busy.contains(id) || unlike.contains(id) || splitting.contains(id);
        Shard {
            goes: merging.contains(id),
            ..shard(*id, row, leaders.get(id), waits)
        }
    });
    let state = State {
        now_ms,
        shards: shards.collect(),
        nodes: nodes(&map, liveness, &able),
    };
    let loads = leaders.iter().map(|(id, led)| (*id, led.load)).collect();
    Ok(Sight {
        map,
        state,
        unlike,
        loads,
    })
}

/// What a node can take on.
#[derive(Clone, Copy, Default)]
struct Ability {
    may_lead: bool,
    has_room: bool,
    up_for_ms: u64,
}

impl Ability {
    fn of(told: &Told) -> Self {
        Self {
            may_lead: told.may_lead,
            has_room: told.has_room,
            up_for_ms: told.up_for_ms,
        }
    }
}

fn nodes(
    map: &ClusterMap,
    liveness: &Liveness,
    able: &BTreeMap<u64, Ability>,
) -> Vec<placement::Node> {
    let able = |id: &u64| able.get(id).copied().unwrap_or_default();
    let node = |(id, row): (&u64, &MapNode)| placement::Node {
        id: NodeId(*id),
        region: row.region.clone(),
        zone: row.zone.clone(),
        weight: row.weight,
        standing: match row.standing {
            Standing::Member => placement::Standing::Member,
            Standing::Draining => placement::Standing::Draining,
            Standing::Removed => placement::Standing::Removed,
        },
        down_since_ms: liveness.down_since_ms.get(id).copied(),
        may_lead: able(id).may_lead,
        has_room: able(id).has_room,
        up_for_ms: able(id).up_for_ms,
    };
    map.nodes.iter().map(node).collect()
}

/// A shard as the planner knows it. With `waits`, or a change under way, nothing is planned for it.
pub(super) fn shard(id: ShardId, row: &MapShard, led: Option<&Led>, waits: bool) -> Shard {
    let lag = |node: u64| {
        let led = led?;
        if led.members.leader == node {
            return Some(0);
        }
        let mut lags = led.lags.iter();
        lags.find(|(other, _)| *other == node).map(|(_, lag)| *lag)
    };
    let replica = |held: &MapReplica| Replica {
        node: NodeId(held.node),
        role: match held.role {
            ReplicaRole::Voter => Role::Voter,
            ReplicaRole::Learner { replaces } => Role::Learner {
                replaces: replaces.map(NodeId),
            },
        },
        lag: lag(held.node),
    };
    Shard {
        id: placement::ShardId(id.0),
        epoch: row.epoch,
        replicas: row.replicas.iter().map(replica).collect(),
        leader: led.map(|led| NodeId(led.members.leader)),
        changing: waits || led.is_some_and(|led| led.members.changing),
        goes: false,
    }
}

/// Why a move by hand is not begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoMove {
    /// It may be later.
    Now(String),
    /// As things are it makes no sense.
    Never(String),
}

impl Sight {
    /// The shards that hold slots, for whoever judges which is to be split. Of what stands in the way of that it has
    /// what is seen of nodes and replicas; moves and splits are not known here.
    pub(super) fn loads(&self) -> Loads {
        let shards = self.state.shards.iter();
        let shards = shards.filter(|shard| shard.id.0 != ShardId::META.0);
        let shards = shards.map(|shard| {
            let id = ShardId(shard.id.0);
            let slots = self.map.shards.get(&id).map_or(0, |row| {
                let spans = row.slots.iter();
                let sizes = spans.map(|(first, last)| usize::from(last.0 - first.0) + 1);
                sizes.sum()
            });
            LoadedShard {
                id: shard.id,
                slots,
                load: self.loads.get(&id).copied(),
                busy: shard.changing || shard.replicas.iter().any(|held| held.role != Role::Voter),
            }
        });
        let mut nodes = self.state.nodes.iter();
        let is_down = |node: &placement::Node| {
            node.standing != placement::Standing::Removed && node.down_since_ms.is_some()
        };
        Loads {
            now_ms: self.state.now_ms,
            shards: shards.collect(),
            node_down: nodes.any(is_down),
            splitting: false,
        }
    }

    /// Whether a move by hand can be begun, and would be carried on by the planner.
    pub(super) fn judge_move(
        &mut self,
        shard: ShardId,
        (from, to): (u64, u64),
        goals: &Goals,
    ) -> Result<(), NoMove> {
        let id = placement::ShardId(shard.0);
        let shards = self.state.shards.iter_mut();
        let mut shards = shards.filter(|shard| shard.id == id);
        let Some(found) = shards.next() else {
            return Err(NoMove::Never(format!("there is no shard {id}")));
        };
        let voters: Vec<String> = found.voters().map(|held| held.node.to_string()).collect();
        if !found.voters().any(|held| held.node == NodeId(from)) {
            return Err(NoMove::Never(format!(
                "node {from} is no voter of shard {id}: its voters are {}",
                voters.join(", ")
            )));
        }
        let target = self.state.nodes.iter().find(|node| node.id == NodeId(to));
        match target {
            None => return Err(NoMove::Never(format!("there is no node {to}"))),
            Some(node) if node.standing != placement::Standing::Member => {
                return Err(NoMove::Never(format!(
                    "node {to} is being drained or was removed"
                )));
            }
            Some(node) if node.down_since_ms.is_some() => {
                return Err(NoMove::Now(format!("node {to} does not answer")));
            }
            Some(node) if !node.has_room => {
                return Err(NoMove::Now(format!("the disk of node {to} has no room")));
            }
            Some(_) => {}
        }
        if found.replica(NodeId(to)).is_some() {
            return Err(NoMove::Never(format!(
                "node {to} holds a replica of shard {id} already"
            )));
        }
        if found.replicas.iter().any(|held| held.role != Role::Voter) || found.changing {
            return Err(NoMove::Now(format!(
                "a change of shard {id} is under way: `mailboxctl shard show {id}`"
            )));
        }
        if found.leader.is_none() {
            return Err(NoMove::Now(format!("shard {id} has no leader")));
        }
        found.replicas.push(Replica {
            node: NodeId(to),
            role: Role::Learner {
                replaces: Some(NodeId(from)),
            },
            lag: None,
        });
        let gives_up = |step: &Step| matches!(*step, Step::RemoveReplica { shard, node, .. } if shard == id && node == NodeId(to));
        if placement::plan(&self.state, goals).iter().any(gives_up) {
            return Err(NoMove::Never(format!(
                "the placement would undo it: with the replica on node {to} instead of node {from}, replicas \
                 would be less even, or in fewer zones"
            )));
        }
        Ok(())
    }
}
