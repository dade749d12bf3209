//! Reads by lease: who may count on what, and what becomes of a promise when its voter is restarted.

use std::collections::BTreeMap;
use std::time::Duration;

use mailbox_engine::UserId;
use mailbox_raft::{NodeOptions, ProposeError, Timing};

use crate::nodes::{Cluster, eventually, send};

/// How long a read may take that is given up then: whoever holds no lease waits for a majority that is not there.
const READ: Duration = Duration::from_millis(200);

/// Node 1 (the first) leads and reads by what node 2 promises, for `promise_ms`. Node 3 promises nothing, and is
/// quick to stand.
fn start(promise_ms: u64) -> Cluster {
    let cluster = Cluster::start(3, |options| {
        let third = options.node == 3;
        options.lease_reads = !third;
        options.timing = Timing {
            heartbeat_ms: if third { 50 } else { 100 },
            election_min_ms: if third { 200 } else { 500 },
            election_max_ms: if third { 400 } else { promise_ms },
        };
    });
    cluster.leader();
    cluster.change(async |shard| shard.transfer_leader(1).await);
    eventually("the first node leads", || {
        (cluster.leader() == 0).then_some(())
    });
    cluster
}

fn known_to(cluster: &Cluster, nodes: &[u64]) -> BTreeMap<u64, String> {
    let all = cluster.addresses().into_iter();
    all.filter(|(node, _)| nodes.contains(node)).collect()
}

/// What a linearizable read of the head on a node says, if it says anything.
fn read_head(cluster: &Cluster, node: usize, user: UserId) -> Option<u64> {
    let there = &cluster.nodes[node];
    let shard = there.shard();
    let passed = there.run(async { tokio::time::timeout(READ, shard.read_barrier()).await });
    passed.ok()?.ok()?;
    Some(cluster.count_messages(node, user))
}

fn read_by_lease(cluster: &Cluster, node: usize) {
    let there = &cluster.nodes[node];
    let shard = there.shard();
    let before = shard.read_counts().lease;
    eventually("a read goes by the lease", || {
        // It is no leader yet, or its clock was not compared yet.
        let _ = there.run(shard.read_barrier());
        (shard.read_counts().lease > before).then_some(())
    });
}

/// One more message, if either of the two nodes that are left can commit it.
fn try_send(cluster: &Cluster, alice: UserId, bob: UserId) -> bool {
    let ready = |node: &&crate::nodes::TestNode| node.shard().leadership().is_ready();
    let Some(leader) = cluster.nodes[1..].iter().find(ready) else {
        return false;
    };
    match leader.run(leader.shard().propose(vec![send(alice, bob, "x")])) {
        Ok(_) => true,
        Err(
            ProposeError::NotLeader { .. }
            | ProposeError::Unavailable { .. }
            | ProposeError::ClockSkew(_),
        ) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Node 1 leads and is cut from node 3. Node 2, which has just promised it its voice, is restarted and reaches
/// node 3 only. Writes go on until these two have had some, and all the while node 1 is read. Gives the first of
/// its answers that was stale: what it said, and what had been acknowledged before it was asked.
fn restart_the_voter(promise_ms: u64, forget_promise: bool) -> Option<(u64, u64)> {
    let mut cluster = start(promise_ms);
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    cluster.propose(&[send(alice, bob, "first")]);
    let mut acked = 1;
    assert_eq!(cluster.leader(), 0);
    cluster.nodes[0]
        .node()
        .set_nodes(known_to(&cluster, &[1, 2]));
    cluster.nodes[2]
        .node()
        .set_nodes(known_to(&cluster, &[2, 3]));
    read_by_lease(&cluster, 0);

    cluster.nodes[1].kill();
    let note = cluster.nodes[1].options.dir.join("PROMISES");
    if forget_promise {
        std::fs::remove_file(&note).unwrap();
    }
    assert_eq!(note.exists(), !forget_promise);
    cluster.nodes[1].options.members = known_to(&cluster, &[2, 3]);
    cluster.nodes[1].start();

    let mut reads_left = 20;
    let (stale, _) = eventually("the two nodes have gone on without the first", || {
        acked += u64::from(try_send(&cluster, alice, bob));
        let said = read_head(&cluster, 0, bob);
        let stale = said.filter(|said| *said < acked).map(|said| (said, acked));
        if acked > 1 {
            reads_left -= 1;
        }
        (stale.is_some() || reads_left == 0).then_some((stale, ()))
    });
    assert!(acked > 1);
    stale
}

#[test]
fn a_voter_that_forgets_its_promise_when_it_is_restarted_makes_a_read_stale() {
    // The hazard itself, or the test below would show nothing. The lease outlasts all that happens meanwhile.
    let stale = restart_the_voter(60_000, true);
    let (said, acked) = stale.expect("the former leader has read old rows by its lease");
    assert!(said < acked);
}

#[test]
fn a_voter_keeps_its_promise_when_it_is_restarted() {
    assert_eq!(restart_the_voter(8_000, false), None);
}

fn all_on(options: &mut NodeOptions) {
    options.lease_reads = true;
}

#[test]
fn a_leader_that_hands_over_reads_by_its_lease_no_more_and_the_next_one_does() {
    let mut cluster = Cluster::start(3, all_on);
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    cluster.propose(&[send(alice, bob, "first")]);
    let leader = cluster.leader();
    read_by_lease(&cluster, leader);
    let target = (leader + 1) % 3;
    let node = target as u64 + 1;
    cluster.change(async |shard| shard.transfer_leader(node).await);
    cluster.propose(&[send(alice, bob, "second")]);
    let old = cluster.nodes[leader].shard();
    let (lease_reads, refused) = eventually("the former leader refuses a read", || {
        let lease_reads = old.read_counts().lease;
        let refused = cluster.nodes[leader].run(old.read_barrier()).err()?;
        Some((lease_reads, refused))
    });
    assert!(
        matches!(refused, ProposeError::NotLeader { .. }),
        "{refused}"
    );
    assert_eq!(old.read_counts().lease, lease_reads);
    let leader = cluster.leader();
    read_by_lease(&cluster, leader);
    assert_eq!(read_head(&cluster, leader, bob), Some(2));
    // What was promised to a leader that dies delays the next one, and no more.
    cluster.nodes[leader].kill();
    cluster.propose(&[send(alice, bob, "third")]);
    let leader = cluster.leader();
    read_by_lease(&cluster, leader);
    assert_eq!(read_head(&cluster, leader, bob), Some(3));
}

#[test]
fn a_leader_counts_on_no_voter_that_has_the_option_off() {
    let cluster = Cluster::start(3, |options| options.lease_reads = options.node == 1);
    cluster.register("alice");
    cluster.change(async |shard| shard.transfer_leader(1).await);
    let first = &cluster.nodes[0];
    let shard = first.shard();
    let mut passed = 0;
    eventually("twenty reads were answered", || {
        passed += u64::from(first.run(shard.read_barrier()).is_ok());
        (passed == 20).then_some(())
    });
    let counts = shard.read_counts();
    assert_eq!((counts.barrier, counts.lease), (passed, 0));
}
