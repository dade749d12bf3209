//! What a leader does with the commands that it is given.

use mailbox_engine::Seq;
use mailbox_raft::ProposeError;

use crate::nodes::{Cluster, send, seq_of};

#[test]
fn many_calls_share_entries_and_each_gets_its_own_replies() {
    let cluster = Cluster::start(1, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let before = shard.status().applied_index;
    let mut seqs = node.run(async {
        let mut calls = Vec::new();
        for _ in 0..500 {
            let shard = shard.clone();
            calls.push(tokio::spawn(async move {
                shard
                    .propose(vec![send(alice, bob, "a"), send(alice, bob, "b")])
                    .await
                    .unwrap()
            }));
        }
        let mut seqs = Vec::new();
        for call in calls {
            for reply in call.await.unwrap() {
                seqs.push(seq_of(&[reply]).0);
            }
        }
        seqs
    });
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=1000).collect::<Vec<u64>>());
    let entries = shard.status().applied_index - before;
    assert!(entries < 500, "{entries} entries for 500 calls");
    assert_eq!(shard.queued_bytes(), 0);
}

#[test]
fn too_large_and_too_many_calls_are_refused_with_their_limits() {
    let cluster = Cluster::start(1, |options| options.queue_bytes_max = 1 << 20);
    let alice = cluster.register("alice");
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let large = "x".repeat(15_000);
    let call = |count: usize| vec![send(alice, alice, &large); count];
    assert!(matches!(
        node.run(shard.propose(call(80))),
        Err(ProposeError::EntryTooLarge {
            limit: 1_048_576,
            ..
        })
    ));
    let refused = node.run(async {
        let first = shard.propose(call(60));
        let second = shard.propose(call(60));
        let (first, second) = tokio::join!(first, second);
        first.unwrap();
        second
    });
    assert!(matches!(
        refused,
        Err(ProposeError::Busy {
            limit: 1_048_576,
            ..
        })
    ));
}

#[test]
fn applied_rows_are_handed_out_after_they_are_visible() {
    let cluster = Cluster::start(1, |_| ());
    let alice = cluster.register("alice");
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let mut tails = shard.subscribe_applied();
    node.run(async {
        shard
            .propose(vec![send(alice, alice, "to myself")])
            .await
            .unwrap();
        let tail = tails.recv().await.unwrap();
        assert_eq!(tail.appended.len(), 1);
        let (timeline, rows) = &tail.appended[0];
        assert_eq!(*timeline, alice.mailbox());
        assert_eq!(rows[0].body.as_ref(), b"to myself");
        assert_eq!(shard.engine().head(*timeline).unwrap(), rows[0].seq);
    });
}

#[test]
fn a_full_disk_refuses_proposals_and_not_reads() {
    let mut cluster = Cluster::start(1, |_| ());
    let alice = cluster.register("alice");
    cluster.nodes[0].stop();
    cluster.nodes[0].options.disk_free_min_bytes = u64::MAX;
    cluster.nodes[0].start();
    cluster.leader();
    let node = &cluster.nodes[0];
    let refused = node.run(node.shard().propose(vec![send(alice, alice, "x")]));
    assert!(
        matches!(refused, Err(ProposeError::DiskFull { .. })),
        "{refused:?}"
    );
    node.run(node.shard().read_barrier()).unwrap();
    assert_eq!(node.shard().engine().head(alice.mailbox()).unwrap(), Seq(0));
}
