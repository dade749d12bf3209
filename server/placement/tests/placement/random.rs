//! Random clusters, played to their end with steps lost, doubled and late.

use mailbox_placement::{Goals, Limits, NodeId, Replica, Role, Standing, State, plan};
use proptest::prelude::*;

use crate::cluster::{Chance, Cluster, NO_TROUBLE, Trouble, nodes, shard};
use crate::rest::{assert_at_rest, held_by};

/// Any state: misplaced, half-moved, too many or too few voters, nodes down, draining and removed.
fn any_state(seed: u64, zones: &[usize], shards: u32) -> State {
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

fn tight_goals(seed: u64) -> Goals {
    let mut chance = Chance(seed);
    let limits = Limits {
        moves_max: 1 + chance.below(6),
        node_moves_max: 1 + chance.below(3),
        node_replicas_max: 512,
        transfers_max: 1 + chance.below(4),
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_state_comes_to_rest(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let trouble = Trouble { lost: 20, doubled: 20, late: 3 };
        let state = any_state(seed, &zones, shards);
        let mut cluster = Cluster::new(state, tight_goals(seed), trouble, seed);
        cluster.settle(5000);
        assert_at_rest(&cluster.state, &cluster.goals);
    }

    #[test]
    fn rest_lasts(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let state = any_state(seed, &zones, shards);
        let mut cluster = Cluster::new(state, tight_goals(seed), NO_TROUBLE, seed);
        cluster.settle(5000);
        // Nodes that are down for a moment come back, which may give them leaders; then it is quiet again.
        for node in &mut cluster.state.nodes {
            node.down_since_ms = None;
        }
        cluster.settle(5000);
        assert_at_rest(&cluster.state, &cluster.goals);
        let done = cluster.done;
        for _ in 0..20 {
            cluster.round();
        }
        prop_assert_eq!(cluster.done, done);
    }

    #[test]
    fn nodes_come_and_go(seed: u64, zones in any_zones(), shards in 1u32..30) {
        let trouble = Trouble { lost: 10, doubled: 10, late: 2 };
        let state = any_state(seed, &zones, shards);
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
        assert_at_rest(&cluster.state, &cluster.goals);
        prop_assert!(plan(&cluster.state, &cluster.goals).is_empty());
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
