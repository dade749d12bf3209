//! Nodes that come back, and those that may not.

use mailbox_engine::{Command, Seq};
use mailbox_raft::{Node, ProposeError};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::nodes::{Cluster, eventually, send, send_with_id, seq_of};

#[test]
fn one_node_answers_and_remembers_after_crash_and_stop() {
    let mut cluster = Cluster::start(1, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let id = Uuid::now_v7();
    let first = cluster.propose(&[send_with_id(id, alice, bob, "one")]);
    assert_eq!(seq_of(&first), Seq(1));
    for round in 0..4_u64 {
        if round % 2 == 0 {
            cluster.nodes[0].kill();
        } else {
            cluster.nodes[0].stop();
        }
        cluster.nodes[0].start();
        // The same send again gives the first answer, whether it lies in the log or in files.
        assert_eq!(
            cluster.propose(&[send_with_id(id, alice, bob, "one")]),
            first
        );
        let next = cluster.propose(&[send(alice, bob, "more")]);
        assert_eq!(seq_of(&next), Seq(round + 2));
        assert_eq!(cluster.count_messages(0, bob), round + 2);
    }
    cluster.check_equal_hashes();
}

#[test]
fn a_follower_behind_the_purge_catches_up_by_snapshot() {
    let mut cluster = Cluster::start(3, |options| {
        options.log_entries_kept = 1;
        options.engine.memtable_bytes_max = 256 << 10;
    });
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let away = (0..3).find(|node| *node != cluster.leader()).unwrap();
    cluster.wait_all_applied(1);
    cluster.nodes[away].kill();
    let text = "t".repeat(400);
    let purged = eventually("the log is purged", || {
        for _ in 0..50 {
            cluster.propose(&vec![send(alice, bob, &text); 1]);
            let batch: Vec<Command> = (0..20).map(|_| send(alice, bob, &text)).collect();
            cluster.propose(&batch);
        }
        let purged = cluster.nodes[cluster.leader()]
            .shard()
            .status()
            .purged_index;
        // More than is purged at once: it goes on though a snapshot for the one that is away is due by then.
        (purged > 600).then_some(purged)
    });
    assert!(purged > 600);
    cluster.nodes[away].start();
    let applied = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(applied);
    assert!(cluster.nodes[away].shard().engine().metrics().installs > 0);
    cluster.check_equal_hashes();
    // What was installed is there after a crash, and the log goes on behind it.
    cluster.nodes[away].kill();
    cluster.nodes[away].start();
    cluster.propose(&[send(alice, bob, "last")]);
    let applied = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(applied);
    cluster.check_equal_hashes();
}

#[test]
fn a_directory_serves_its_own_node_and_cluster_only() {
    let mut cluster = Cluster::start(1, |_| ());
    cluster.register("alice");
    cluster.nodes[0].stop();
    let runtime = Runtime::new().unwrap();
    let own = cluster.nodes[0].options.clone();
    let mut other = own.clone();
    other.cluster_id = "other".to_owned();
    let error = runtime
        .block_on(Node::start(other))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cluster_id test"), "{error}");
    let mut other = own.clone();
    other.engine.slot_count = 32;
    let error = runtime
        .block_on(Node::start(other))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("slot_count 16"), "{error}");
    std::fs::remove_dir_all(own.dir.join("log")).unwrap();
    let error = runtime
        .block_on(Node::start(own))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("log is gone"), "{error}");
}

#[test]
fn a_peer_with_another_secret_makes_no_majority() {
    let mut cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = cluster.leader();
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[other].stop();
    let secret = std::mem::replace(
        &mut cluster.nodes[other].options.secret,
        b"wrong".to_vec().into(),
    );
    cluster.nodes[other].start();
    cluster.nodes[third].kill();
    // Two of three run, but they do not talk to each other.
    let left = &cluster.nodes[leader];
    eventually("the leader is alone", || {
        (!left.shard().leadership().is_ready()).then_some(())
    });
    let refused = left.run(left.shard().propose(vec![send(alice, alice, "x")]));
    assert!(
        matches!(
            refused,
            Err(ProposeError::Unavailable { .. } | ProposeError::NotLeader { .. })
        ),
        "{refused:?}"
    );
    assert!(!cluster.nodes[other].shard().leadership().is_ready());
    // It was the secret.
    cluster.nodes[other].stop();
    cluster.nodes[other].options.secret = secret;
    cluster.nodes[other].start();
    cluster.propose(&[send(alice, alice, "y")]);
}
