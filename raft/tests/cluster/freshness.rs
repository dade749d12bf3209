//! Reads from followers that say how stale they may be.

use std::time::Duration;

use mailbox_raft::{Fresh, ProposeError};

use crate::nodes::{Cluster, eventually, send};

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(1);

fn fresh(cluster: &Cluster, node: usize, bound: Duration) -> Result<Fresh, ProposeError> {
    let node = &cluster.nodes[node];
    node.run(node.shard().fresh_within(bound))
}

#[test]
fn a_follower_shows_how_stale_it_is_and_says_no_when_it_cannot() {
    let cluster = Cluster::start(3, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    cluster.propose(&[send(alice, bob, "first")]);
    let leader = cluster.leader();
    let follower = (leader + 1) % 3;
    let here = &cluster.nodes[follower];
    let own = follower as u64 + 1;

    // The first question comes after the send was acknowledged, so its row is here.
    let asked = eventually("the follower knows its leader", || {
        fresh(&cluster, follower, LONG).ok()
    });
    assert!(!asked.by_leader);
    assert_eq!(cluster.count_messages(follower, bob), 1);
    assert_eq!(here.shard().read_counts().stale, 1);

    // Cut off from all, it goes on answering whoever lets it be so stale, from the rows that it has...
    let all = cluster.addresses();
    let alone = all.clone().into_iter().filter(|(node, _)| *node == own);
    here.node().set_nodes(alone.collect());
    let others = all.into_iter().filter(|(node, _)| *node != own);
    let others: std::collections::BTreeMap<u64, String> = others.collect();
    for other in (0..3).filter(|other| *other != follower) {
        cluster.nodes[other].node().set_nodes(others.clone());
    }
    // What was under way when it was cut off may still come through.
    eventually("it is cut off", || fresh(&cluster, follower, SHORT).err());
    cluster.propose(&[send(alice, bob, "second")]);
    let stale = fresh(&cluster, follower, LONG).unwrap();
    assert!(stale.age() > SHORT);
    assert_eq!(cluster.count_messages(follower, bob), 1);
    // ... and nobody else.
    let refused = fresh(&cluster, follower, SHORT);
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. })),
        "{refused:?}"
    );

    // Back again, it has the second before it says that it is fresh.
    cluster.tell_all();
    eventually("it reaches its leader again", || {
        fresh(&cluster, follower, SHORT).ok()
    });
    assert_eq!(cluster.count_messages(follower, bob), 2);
}

#[test]
fn a_leader_passes_a_barrier_and_is_not_stale() {
    let cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let shard = cluster.nodes[leader].shard();
    let before = shard.read_counts();
    let answer = fresh(&cluster, leader, LONG).unwrap();
    assert!(answer.by_leader);
    assert_eq!(answer.age(), Duration::ZERO);
    let counts = shard.read_counts();
    assert_eq!((counts.stale, counts.barrier), (0, before.barrier + 1));
}

#[test]
fn a_leader_without_a_majority_vouches_for_nobody() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[third].kill();
    // The leader reaches the follower no more: its questions come back unanswered. The follower reaches it.
    let mut known = cluster.addresses();
    known.insert(follower as u64 + 1, "127.0.0.1:1".to_owned());
    cluster.nodes[leader].node().set_nodes(known);
    let refused = fresh(&cluster, follower, SHORT);
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. })),
        "{refused:?}"
    );
}
