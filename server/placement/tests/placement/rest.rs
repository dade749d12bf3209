//! What must be true of a cluster for which nothing is planned any more, computed in another way than the
//! planner does.

use std::collections::{BTreeMap, BTreeSet};

use mailbox_placement::{Goals, Node, NodeId, Role, Shard, Standing, State};

use crate::cluster::{is_up, voters};

/// Nodes that keep what they hold.
fn stays(state: &State, goals: &Goals, node: &Node) -> bool {
    let dead = node
        .down_since_ms
        .is_some_and(|since| state.now_ms - since >= goals.dead_after_ms);
    node.standing == Standing::Member && !dead
}

/// Nodes that may be given something.
fn is_open(state: &State, goals: &Goals, node: &Node) -> bool {
    stays(state, goals, node) && is_up(node) && node.weight > 0
}

fn can_commit(state: &State, shard: &Shard) -> bool {
    let up = |id: &NodeId| state.nodes.iter().any(|node| node.id == *id && is_up(node));
    let voters = voters(shard);
    voters.iter().filter(|id| up(id)).count() * 2 > voters.len()
}

/// Asserts all of it.
pub(crate) fn assert_at_rest(state: &State, goals: &Goals) {
    let by_id: BTreeMap<NodeId, &Node> = state.nodes.iter().map(|node| (node.id, node)).collect();
    let open: Vec<&Node> = state
        .nodes
        .iter()
        .filter(|node| is_open(state, goals, node))
        .collect();
    let idle = |shard: &&Shard| !shard.changing && can_commit(state, shard);
    for shard in state.shards.iter().filter(idle) {
        let voters = voters(shard);
        let learner = shard.replicas.iter().find(|held| held.role != Role::Voter);
        // A learner on a node that is away for the moment waits for it.
        let waits = learner.is_some_and(|held| !is_up(by_id[&held.node]));
        assert!(learner.is_none() || waits, "a learner is left: {shard:?}");
        if waits {
            continue;
        }
        let bad = |id: &&NodeId| !by_id.get(*id).is_some_and(|node| stays(state, goals, node));
        let spare = open.iter().any(|node| !voters.contains(&node.id));
        let bads = voters.iter().filter(bad).count();
        assert!(
            bads == 0 || !spare,
            "{bads} voters of {shard:?} are on nodes that go"
        );
        assert!(
            voters.len() <= goals.replication,
            "too many voters: {shard:?}"
        );
        assert!(
            voters.len() == goals.replication || !spare,
            "too few voters: {shard:?}"
        );
        assert_spread(&by_id, &open, goals, shard);
    }
    assert_leaders(state, goals, &by_id);
}

/// No swap of one voter gives the shard another zone.
fn assert_spread(by_id: &BTreeMap<NodeId, &Node>, open: &[&Node], goals: &Goals, shard: &Shard) {
    let voters = voters(shard);
    let sound = voters
        .iter()
        .all(|id| by_id.get(id).is_some_and(|node| is_up(node)));
    if !sound || voters.len() != goals.replication {
        return;
    }
    let zones = |ids: &[NodeId]| {
        let zone = |id: &NodeId| (by_id[id].region.as_str(), by_id[id].zone.as_str());
        ids.iter().map(zone).collect::<BTreeSet<_>>().len()
    };
    for place in 0..voters.len() {
        for node in open.iter().filter(|node| !voters.contains(&node.id)) {
            let mut swapped = voters.clone();
            swapped[place] = node.id;
            assert!(
                zones(&swapped) <= zones(&voters),
                "{shard:?} could have node {}",
                node.id
            );
        }
    }
}

/// No node leads more than one too many compared with any node that its leaders could reach, directly or
/// by others giving way.
fn assert_leaders(state: &State, goals: &Goals, by_id: &BTreeMap<NodeId, &Node>) {
    let open = |id: &NodeId| {
        by_id
            .get(id)
            .is_some_and(|node| is_open(state, goals, node))
    };
    let weights: u64 = by_id
        .values()
        .filter(|node| open(&node.id))
        .map(|node| u64::from(node.weight))
        .sum();
    let surplus = surpluses(state, goals);
    let mut reach: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
    for shard in &state.shards {
        let learning = shard.replicas.iter().any(|held| held.role != Role::Voter);
        if let (Some(leader), false) = (shard.leader, learning || shard.changing) {
            reach
                .entry(leader)
                .or_default()
                .extend(voters(shard).into_iter().filter(open));
        }
    }
    loop {
        let mut grown = false;
        for id in reach.keys().copied().collect::<Vec<_>>() {
            let further: BTreeSet<NodeId> = reach[&id]
                .iter()
                .filter_map(|next| reach.get(next))
                .flatten()
                .copied()
                .collect();
            let before = reach[&id].len();
            reach.entry(id).or_default().extend(further);
            grown |= reach[&id].len() > before;
        }
        if !grown {
            break;
        }
    }
    for (from, reached) in &reach {
        for to in reached {
            let gap = surplus[from] - surplus[to];
            assert!(
                gap <= weights as i64,
                "{from} leads {gap}/{weights} more than {to}"
            );
        }
    }
}

/// By node: what it leads beyond its fair share, times the sum of weights.
fn surpluses(state: &State, goals: &Goals) -> BTreeMap<NodeId, i64> {
    let open: Vec<&Node> = state
        .nodes
        .iter()
        .filter(|node| is_open(state, goals, node))
        .collect();
    let weights: i64 = open.iter().map(|node| i64::from(node.weight)).sum();
    let mut led: BTreeMap<NodeId, i64> = state.nodes.iter().map(|node| (node.id, 0)).collect();
    for leader in state.shards.iter().filter_map(|shard| shard.leader) {
        *led.entry(leader).or_default() += 1;
    }
    let total: i64 = led.values().sum();
    let share = |id: &NodeId| {
        open.iter()
            .find(|node| node.id == *id)
            .map_or(0, |node| i64::from(node.weight))
            * total
    };
    led.iter()
        .map(|(id, count)| (*id, count * weights - share(id)))
        .collect()
}

/// The greatest distance of a node's leaders from its fair share, in leaders.
pub(crate) fn leader_imbalance(state: &State, goals: &Goals) -> f64 {
    let open = state
        .nodes
        .iter()
        .filter(|node| is_open(state, goals, node));
    let weights: u32 = open.map(|node| node.weight).sum();
    let surplus = surpluses(state, goals);
    let furthest = surplus
        .values()
        .map(|surplus| surplus.abs())
        .max()
        .unwrap_or(0);
    furthest as f64 / f64::from(weights)
}

/// The sum of the squared surpluses of replicas, of nodes that all stay. And the least that a move which pays
/// lowers it by: it takes `weights` of surplus from a node that has at least one more than that beyond the other.
pub(crate) fn unevenness(state: &State) -> (i64, i64) {
    let weights: i64 = state.nodes.iter().map(|node| i64::from(node.weight)).sum();
    let held = |node: &Node| held_by(state, node.id.0) as i64;
    let total: i64 = state.nodes.iter().map(held).sum();
    let surplus = |node: &Node| held(node) * weights - total * i64::from(node.weight);
    let squares = state.nodes.iter().map(|node| surplus(node).pow(2));
    (squares.sum(), 2 * weights)
}

/// How many replicas each node has, most and fewest of the open ones.
pub(crate) fn replicas(state: &State, goals: &Goals) -> (usize, usize) {
    let mut held: BTreeMap<NodeId, usize> = state
        .nodes
        .iter()
        .filter(|node| is_open(state, goals, node))
        .map(|node| (node.id, 0))
        .collect();
    for replica in state.shards.iter().flat_map(|shard| &shard.replicas) {
        if let Some(count) = held.get_mut(&replica.node) {
            *count += 1;
        }
    }
    (
        held.values().copied().max().unwrap_or(0),
        held.values().copied().min().unwrap_or(0),
    )
}

/// Replicas on one node.
pub(crate) fn held_by(state: &State, id: u64) -> usize {
    let held = state.shards.iter().flat_map(|shard| &shard.replicas);
    held.filter(|replica| replica.node == NodeId(id)).count()
}
