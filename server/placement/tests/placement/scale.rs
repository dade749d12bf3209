//! A large cluster: 10,000 shards on 300 nodes.

use std::time::Instant;

use mailbox_placement::{Goals, Limits, NodeId, Standing, State, plan};

use crate::cluster::{Chance, Cluster, NO_TROUBLE, nodes, shard};
use crate::rest::{assert_at_rest, held_by, leader_imbalance, replicas};

/// Three zones, each shard on a random node of each, all led from the first zone.
fn large(shards: u32, per_zone: usize) -> State {
    let mut chance = Chance(42);
    let mut pick = |zone: usize| (zone * per_zone + chance.below(per_zone) + 1) as u64;
    State {
        now_ms: 0,
        nodes: nodes(&[per_zone; 3]),
        shards: (0..shards)
            .map(|id| shard(id, &[pick(0), pick(1), pick(2)]))
            .collect(),
    }
}

fn goals() -> Goals {
    let limits = Limits {
        moves_max: 600,
        node_moves_max: 8,
        node_replicas_max: 2000,
        transfers_max: 1000,
        ..Limits::default()
    };
    Goals {
        limits,
        ..Goals::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "the test tells how long it took")]
fn now() -> Instant {
    Instant::now()
}

/// Plays one chapter of the cluster's life, and tells what it took.
fn chapter(cluster: &mut Cluster, title: &str) {
    let (before, started) = (cluster.done, now());
    cluster.settle(2000);
    let (most, fewest) = replicas(&cluster.state, &cluster.goals);
    println!(
        "{title}: {} moves, {} transfers, {fewest} to {most} replicas, leaders within {:.2}, {:.1?}",
        cluster.done.added - before.added,
        cluster.done.transferred - before.transferred,
        leader_imbalance(&cluster.state, &cluster.goals),
        started.elapsed()
    );
}

fn live(shards: u32, per_zone: usize) {
    let mut cluster = Cluster::new(large(shards, per_zone), goals(), NO_TROUBLE, 7);
    chapter(&mut cluster, "random to even");
    assert_at_rest(&cluster.state, &cluster.goals);
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);

    let before = cluster.done.added;
    cluster.set_down(17);
    cluster.round();
    cluster.set_up(17);
    chapter(&mut cluster, "a node away for a moment");
    assert_eq!(cluster.done.added, before);

    let held = held_by(&cluster.state, 17);
    cluster.set_down(17);
    let dead = cluster.goals.dead_after_ms;
    cluster.state.now_ms += dead;
    chapter(&mut cluster, "a node dead");
    assert_eq!(held_by(&cluster.state, 17), 0);
    assert!(
        cluster.done.added - before <= held + held / 4,
        "few moves beyond the {held} lost"
    );

    for id in [3, 150, 222] {
        cluster.node(id).standing = Standing::Draining;
    }
    chapter(&mut cluster, "three nodes drained");
    assert_eq!([3, 150, 222].map(|id| held_by(&cluster.state, id)), [0; 3]);

    let count = cluster.state.nodes.len();
    for new in 0..6 {
        let mut node = cluster.state.nodes[new * count / 6].clone();
        node.id = NodeId((count + new + 1) as u64);
        (node.standing, node.down_since_ms) = (Standing::Member, None);
        cluster.state.nodes.push(node);
    }
    chapter(&mut cluster, "six nodes joined");
    assert_at_rest(&cluster.state, &cluster.goals);
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);

    let started = now();
    assert_eq!(plan(&cluster.state, &cluster.goals), []);
    println!("a plan at rest: {:.1?}", started.elapsed());
}

#[test]
fn ten_thousand_shards_on_three_hundred_nodes() {
    live(10_000, 100);
}
