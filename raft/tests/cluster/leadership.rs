//! Leaders that die, lose their majority, or are asked to go.

use mailbox_engine::Seq;
use mailbox_raft::{ChangeError, Leadership, ProposeError};
use uuid::Uuid;

use crate::nodes::{Cluster, WAIT, eventually, send, send_with_id, seq_of};

#[test]
fn three_nodes_agree_through_failovers() {
    let mut cluster = Cluster::start(3, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let id = Uuid::now_v7();
    let first = cluster.propose(&[send_with_id(id, alice, bob, "first")]);
    for round in 0..3 {
        let leader = cluster.leader();
        if round == 1 {
            cluster.nodes[leader].stop();
        } else {
            cluster.nodes[leader].kill();
        }
        // The others go on, and know what was acknowledged.
        assert_eq!(
            cluster.propose(&[send_with_id(id, alice, bob, "first")]),
            first
        );
        assert_eq!(
            seq_of(&cluster.propose(&[send(alice, bob, "x")])),
            Seq(round + 2)
        );
        cluster.nodes[leader].start();
    }
    let leader = &cluster.nodes[cluster.leader()];
    leader.run(leader.shard().read_barrier()).unwrap();
    assert_eq!(leader.shard().engine().head(bob.mailbox()).unwrap(), Seq(4));
    cluster.wait_all_applied(leader.shard().status().applied_index);
    cluster.check_equal_hashes();
}

#[test]
fn followers_send_callers_to_the_leader() {
    let cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = cluster.leader();
    let (node, address) = (leader as u64 + 1, cluster.nodes[leader].address.to_string());
    for follower in (0..3).filter(|other| *other != leader) {
        let follower = &cluster.nodes[follower];
        eventually("the follower knows the leader", || {
            match follower.shard().leadership() {
                Leadership::Follower { leader, .. } => leader,
                Leadership::Leader { .. } => None,
            }
        });
        let refused = follower.run(follower.shard().propose(vec![send(alice, alice, "x")]));
        let Err(ProposeError::NotLeader { leader: Some(hint) }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((hint.node, hint.address), (node, address.clone()));
        assert!(matches!(
            follower.run(follower.shard().read_barrier()),
            Err(ProposeError::NotLeader { .. })
        ));
    }
}

#[test]
fn a_follower_tells_where_the_leader_is_now() {
    let cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let follower = &cluster.nodes[(leader + 1) % 3];
    let told = |address: &str| {
        eventually("the follower tells of the leader", || {
            let Leadership::Follower { leader, .. } = follower.shard().leadership() else {
                return None;
            };
            leader.filter(|leader| leader.address == address)
        })
    };
    let (node, mut known) = (leader as u64 + 1, cluster.addresses());
    assert_eq!(told(&known[&node]).node, node);
    // As a map of the cluster does; here it is but another name, so that the node leads on.
    let now = known[&node].replace("127.0.0.1", "localhost");
    known.insert(node, now.clone());
    follower.node().set_nodes(known);
    assert_eq!(told(&now).node, node);
}

#[test]
fn a_leader_without_a_majority_answers_no_read() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    for other in (0..3).filter(|other| *other != leader) {
        cluster.nodes[other].kill();
    }
    let alone = &cluster.nodes[leader];
    let answer = alone.run(alone.shard().read_barrier());
    assert!(
        matches!(
            answer,
            Err(ProposeError::Unavailable { .. } | ProposeError::NotLeader { .. })
        ),
        "{answer:?}"
    );
    eventually("it gives up its leadership", || {
        (!alone.shard().leadership().is_ready()).then_some(())
    });
}

#[test]
fn callers_of_a_leader_that_loses_its_majority_are_answered() {
    let mut cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = cluster.leader();
    for other in (0..3).filter(|other| *other != leader) {
        cluster.nodes[other].kill();
    }
    let alone = &cluster.nodes[leader];
    let answers = alone.run(async {
        let shard = alone.shard();
        // More than may be in flight: some wait in the queue.
        let calls = (0..50).map(|_| {
            let shard = shard.clone();
            tokio::spawn(async move { shard.propose(vec![send(alice, alice, "x")]).await })
        });
        let calls: Vec<_> = calls.collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(tokio::time::timeout(WAIT, call).await.unwrap().unwrap());
        }
        answers
    });
    for answer in answers {
        assert!(
            matches!(
                answer,
                Err(ProposeError::Unavailable { .. } | ProposeError::NotLeader { .. })
            ),
            "{answer:?}"
        );
    }
}

#[test]
fn leadership_moves_where_it_is_asked_to() {
    let cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let target = (leader + 1) % 3;
    let node = target as u64 + 1;
    cluster.change(async |shard| shard.transfer_leader(node).await);
    eventually("the target leads", || {
        let leadership = cluster.nodes[target].shard().leadership();
        leadership.is_ready().then_some(())
    });
    // Again: it leads already.
    let shard = cluster.nodes[target].shard();
    cluster.nodes[target]
        .run(shard.transfer_leader(node))
        .unwrap();
    let stranger = cluster.nodes[target].run(shard.transfer_leader(9));
    assert_eq!(stranger, Err(ChangeError::NotVoter { node: 9 }));
    cluster.register("bob");
}

#[test]
fn a_transfer_to_a_node_that_does_not_answer_leaves_the_leader_in_place() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let target = (leader + 1) % 3;
    cluster.nodes[target].kill();
    let node = &cluster.nodes[leader];
    let shard = node.shard();
    let before = shard.leadership();
    let refused = node.run(shard.transfer_leader(target as u64 + 1));
    assert!(
        matches!(refused, Err(ChangeError::Unavailable { .. })),
        "{refused:?}"
    );
    assert_eq!(shard.leadership(), before, "it has not resigned");
    cluster.register("bob");
}

#[test]
fn a_node_that_leaves_hands_over_takes_nothing_and_tells_callers_who_leads() {
    let cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leaving = &cluster.nodes[cluster.leader()];
    let own = cluster.leader() as u64 + 1;
    leaving.run(leaving.node().leave());
    let elsewhere = eventually("it follows whom it handed over to", || {
        match leaving.shard().leadership() {
            Leadership::Follower { leader, .. } => leader,
            Leadership::Leader { .. } => None,
        }
    });
    let refused = leaving.run(leaving.shard().propose(vec![send(alice, alice, "x")]));
    let Err(ProposeError::NotLeader { leader: Some(hint) }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(hint, elsewhere);
    let leader = &cluster.nodes[cluster.leader()];
    let refused = leader.run(leader.shard().transfer_leader(own));
    let Err(ChangeError::Unavailable { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("about to stop"), "{reason}");
    assert_eq!(seq_of(&cluster.propose(&[send(alice, alice, "x")])), Seq(1));
}

#[test]
fn a_node_that_is_to_stop_flushes_while_it_serves_and_takes_no_leadership_meanwhile() {
    let cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = &cluster.nodes[cluster.leader()];
    leader.run(leader.node().flush_ahead());
    let status = leader.shard().status();
    assert_eq!(status.flushed_index, status.applied_index);
    assert!(leader.shard().leadership().is_ready(), "it leads on");
    let follower = (cluster.leader() + 1) % 3;
    let flushed = &cluster.nodes[follower];
    flushed.run(flushed.node().flush_ahead());
    let refused = leader.run(leader.shard().transfer_leader(follower as u64 + 1));
    let Err(ChangeError::Unavailable { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("about to stop"), "{reason}");
    assert_eq!(seq_of(&cluster.propose(&[send(alice, alice, "x")])), Seq(1));
}
