//! Random clusters, played to their end with steps lost, doubled and late.

use mailbox_placement::{Goals, Limits, NodeId, Replica, Role, Spread, Standing, State, plan};
use proptest::prelude::*;

use crate::cluster::{Chance, Cluster, NO_TROUBLE, Trouble, nodes, shard};
use crate::rest::{assert_at_rest, held_by, unevenness};

/// Any state: misplaced, half-moved, too many or too few voters, nodes down, draining and removed.
pub(crate) fn any_state(seed: u64, zones: &[usize], shards: u32) -> State {
    let mut chance = Chance(seed);
    let mut state = State {
        now_ms: 10_000_000,
        nodes: nodes(zones),
        shards: Vec::new(),
    };
    let count = state.nodes.len();
    for node in &mut state.nodes {
        node.weight = 1 + u32::try_from(chance.below(3)).expect("small");
        match chance.below(12) {
            0 => node.standing = Standing::Draining,
            1 => node.standing = Standing::Removed,
            2 => node.down_since_ms = Some(state.now_ms),
            3 => node.down_since_ms = Some(0),
            _ => {}
        }
    }
    for id in 0..shards {
        let mut at: Vec<u64> = (1..=count as u64).collect();
        for place in (1..at.len()).rev() {
            at.swap(place, chance.below(place + 1));
        }
        let voters = [3, 3, 3, 3, 2, 4, 1, 5][chance.below(8)].min(at.len());
        let mut shard = shard(id, &at[..voters]);
        for replica in &mut shard.replicas {
            replica.lag = chance.percent(90).then(|| chance.next() % 2000);
        }
        for node in at[voters..].iter().take([0, 0, 0, 1, 2][chance.below(5)]) {
            let replaces = chance
                .percent(70)
                .then(|| NodeId(at[chance.below(at.len())]));
            let role = Role::Learner { replaces };
            shard.replicas.push(Replica {
                node: NodeId(*node),
                role,
                lag: None,
            });
        }
        shard.leader = None;
        state.shards.push(shard);
    }
    state
}

pub(crate) fn tight_goals(seed: u64) -> Goals {
    let mut chance = Chance(seed);
    let limits = Limits {
        moves_max: 1 + chance.below(6),
        node_moves_max: 1 + chance.below(3),
        node_replicas_max: 512,
        transfers_max: 1 + chance.below(4),
        shards_per_transfer: 1 + chance.below(70),
    };
    Goals {
        replica_slack_percent: [0, 5, 20][chance.below(3)],
        limits,
        ..Goals::default()
    }
}

fn any_zones() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..5, 1..6)
}

/// Goals of another kind, and nodes that make them hard: regions, nodes that may hold nothing or not enough for
/// all, shards of another size.
fn other_goals(seed: u64, mut state: State) -> (State, Goals) {
    let mut goals = tight_goals(seed);
    let mut chance = Chance(!seed);
    for node in &mut state.nodes {
        if chance.percent(10) {
            node.weight = 0;
        }
        node.region = format!("r{}", chance.below(3));
    }
    goals.spread = [Spread::Zones, Spread::Regions][chance.below(2)];
    goals.replication = [1, 2, 3, 3, 4, 5][chance.below(6)];
    goals.limits.node_replicas_max = [512, 2 + chance.below(20)][chance.below(2)];
    (state, goals)
}

/// Plays any state to its end.
pub(crate) fn play_to_end(seed: u64, zones: &[usize], shards: u32) -> Cluster {
    let trouble = Trouble {
        lost: 20,
        doubled: 20,
        late: 3,
        slow: 50,
    };
    let state = any_state(seed, zones, shards);
    let mut cluster = Cluster::new(state, tight_goals(seed), trouble, seed);
    cluster.settle(5000);
    cluster
}

/// Plays any state to its end, and then on: nodes that are down for a moment come back, which may give them
/// leaders; then it is quiet again.
pub(crate) fn play_to_rest(seed: u64, zones: &[usize], shards: u32) -> Cluster {
    let state = any_state(seed, zones, shards);
    let mut cluster = Cluster::new(state, tight_goals(seed), NO_TROUBLE, seed);
    cluster.settle(5000);
    for node in &mut cluster.state.nodes {
        node.down_since_ms = None;
    }
    cluster.settle(5000);
    cluster
}

/// Plays any state while nodes come and go, and then to its end.
pub(crate) fn play_come_and_go(seed: u64, zones: &[usize], shards: u32) -> Cluster {
    let trouble = Trouble {
        lost: 10,
        doubled: 10,
        late: 2,
        slow: 50,
    };
    let state = any_state(seed, zones, shards);
    let mut cluster = Cluster::new(state, tight_goals(seed), trouble, seed);
    let count = cluster.state.nodes.len();
    for _ in 0..60 {
        let id = cluster.chance.below(count) as u64 + 1;
        match cluster.chance.below(8) {
            0 => cluster.set_down(id),
            1 | 2 => cluster.set_up(id),
            3 => cluster.node(id).standing = Standing::Draining,
            4 | 5 => cluster.node(id).standing = Standing::Member,
            _ => {}
        }
        cluster.round();
    }
    cluster.settle(5000);
    cluster
}

/// Shards with all their voters on nodes that are all well, where any node is as good as another for spread:
/// only evenness calls for moves. Some are under way.
fn uneven_state(seed: u64, count: usize, shards: u32) -> State {
    let mut chance = Chance(seed);
    let zones = if chance.percent(50) {
        vec![count]
    } else {
        vec![1; count]
    };
    let mut state = State {
        now_ms: 0,
        nodes: nodes(&zones),
        shards: Vec::new(),
    };
    for node in &mut state.nodes {
        node.weight = 1 + u32::try_from(chance.below(3)).expect("small");
    }
    for id in 0..shards {
        let mut voters = std::collections::BTreeSet::new();
        while voters.len() < 3 {
            voters.insert(chance.below(count) as u64 + 1);
        }
        let voters: Vec<u64> = voters.into_iter().collect();
        let mut shard = shard(id, &voters);
        let node = chance.below(count) as u64 + 1;
        if chance.percent(30) && !voters.contains(&node) {
            let replaces = Some(NodeId(voters[chance.below(3)]));
            let role = Role::Learner { replaces };
            shard.replicas.push(Replica {
                node: NodeId(node),
                role,
                lag: None,
            });
        }
        state.shards.push(shard);
    }
    state
}

// More cases than the usual: PROPTEST_CASES.
proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_state_comes_to_rest(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let cluster = play_to_end(seed, &zones, shards);
        assert_at_rest(&cluster.state, &cluster.goals);
    }

    #[test]
    fn rest_lasts(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let mut cluster = play_to_rest(seed, &zones, shards);
        assert_at_rest(&cluster.state, &cluster.goals);
        let done = cluster.done;
        for _ in 0..20 {
            cluster.round();
        }
        prop_assert_eq!(cluster.done, done);
    }

    #[test]
    fn nodes_come_and_go(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let cluster = play_come_and_go(seed, &zones, shards);
        assert_at_rest(&cluster.state, &cluster.goals);
        prop_assert!(plan(&cluster.state, &cluster.goals).is_empty());
    }

    /// Every learner added and every one given up lowers the sum of the squared surpluses that it all comes to,
    /// though steps are lost and changes take their time.
    #[test]
    fn a_move_for_evenness_pays(seed: u64, count in 4usize..9, shards in 1u32..40) {
        let trouble = Trouble { lost: 20, doubled: 20, late: 0, slow: 50 };
        let state = uneven_state(seed, count, shards);
        let mut cluster = Cluster::new(state, tight_goals(seed), trouble, seed);
        let (mut before, step) = unevenness(&cluster.outcome());
        for _ in 0..100 {
            let done = cluster.done;
            cluster.round();
            let (after, _) = unevenness(&cluster.outcome());
            let moved = cluster.done.added + cluster.done.removed - done.added - done.removed;
            prop_assert!(before - after >= moved as i64 * step, "{moved} moves from {before} to {after}");
            before = after;
        }
    }

    #[test]
    fn other_goals_come_to_rest(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let (state, goals) = other_goals(seed, any_state(seed, &zones, shards));
        let trouble = Trouble { slow: 50, ..NO_TROUBLE };
        let mut cluster = Cluster::new(state, goals, trouble, seed);
        cluster.settle(5000);
        // One that is away would count as dead in a while.
        for node in &mut cluster.state.nodes {
            node.down_since_ms = None;
        }
        cluster.settle(5000);
        let done = cluster.done;
        for _ in 0..20 {
            cluster.round();
        }
        prop_assert_eq!(cluster.done, done);
    }

    #[test]
    fn a_drained_node_ends_empty(seed: u64, zones in prop::collection::vec(2usize..5, 3..5)) {
        let mut state = any_state(seed, &zones, 20);
        for node in &mut state.nodes {
            (node.standing, node.down_since_ms) = (Standing::Member, None);
        }
        let mut cluster = Cluster::new(state, tight_goals(seed), NO_TROUBLE, seed);
        cluster.settle(5000);
        cluster.node(2).standing = Standing::Draining;
        cluster.settle(5000);
        prop_assert_eq!(held_by(&cluster.state, 2), 0);
    }
}
