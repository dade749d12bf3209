//! Replicas that come to nodes and leave them, while the shard is used.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mailbox_engine::{Command, Seq, ShardId, UserId};
use mailbox_raft::Error;

use crate::nodes::{Cluster, eventually, send, seq_of};

const SHARD: ShardId = ShardId(1);

/// Sends until told to stop. What was acked, by seq in the home timeline, which is the sender's.
fn keep_sending(
    cluster: &Cluster,
    stop: &AtomicBool,
    from: UserId,
    to: UserId,
) -> BTreeMap<Seq, String> {
    let mut acked = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let text = format!("message {}", acked.len());
        // A repeat has the same id.
        let seq = seq_of(&cluster.propose(&[send(from, to, &text)]));
        assert!(acked.insert(seq, text).is_none(), "{seq:?} twice");
    }
    acked
}

/// Runs `body` while somebody sends; then every replica has all that was acked, once, and nothing else.
fn while_sending(cluster: &Cluster, body: impl FnOnce() + Send) {
    let (alice, bob) = (cluster.register("sender"), cluster.register("receiver"));
    let stop = AtomicBool::new(false);
    let acked = std::thread::scope(|scope| {
        let sender = scope.spawn(|| keep_sending(cluster, &stop, alice, bob));
        let end = StopOnDrop(&stop);
        body();
        drop(end);
        sender.join().unwrap()
    });
    assert!(!acked.is_empty());
    cluster.propose(&[Command::Cut]);
    let last = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(last);
    for node in cluster.nodes.iter().filter(|node| node.hosts()) {
        for user in [alice, bob] {
            let engine = node.shard().engine().clone();
            let rows = engine.scan(user.mailbox(), Seq(1), usize::MAX, usize::MAX);
            let rows = rows.unwrap().into_iter();
            let found: BTreeMap<Seq, String> = rows
                .map(|row| (row.seq, String::from_utf8(row.body.to_vec()).unwrap()))
                .collect();
            assert_eq!(found, acked);
        }
    }
    cluster.check_equal_hashes();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_new_node_takes_the_place_of_another_under_load() {
    let mut cluster = Cluster::start(3, |_| ());
    let fourth = cluster.join();
    let (node, other) = (&cluster.nodes[fourth], &cluster.nodes[0]);
    let changes = node.node().watch_shards();
    let cluster = &cluster;
    while_sending(cluster, || {
        cluster.host(fourth);
        cluster.add_learner(fourth);
        cluster.wait_caught_up(fourth);
        // As long as it counts, it stays.
        let refused = other.run(other.node().unhost(SHARD, false));
        let still = matches!(
            refused,
            Err(Error::StillMember {
                node: 1,
                shard: SHARD
            })
        );
        assert!(still, "{refused:?}");
        cluster.replace(0, fourth);
        other.run(other.node().unhost(SHARD, true)).unwrap();
        other.run(other.node().unhost(SHARD, true)).unwrap();
    });
    assert!(changes.has_changed().unwrap());
    assert!(!other.hosts() && node.hosts());
    assert!(node.node().log_batch() > 0);
}

#[test]
fn a_removal_that_was_told_before_the_node_became_a_member_again_removes_nothing() {
    let mut cluster = Cluster::start(3, |_| ());
    let fourth = cluster.join();
    cluster.host(fourth);
    let told = || cluster.nodes[cluster.leader()].shard().membership().index;
    let before = told();
    cluster.add_learner(fourth);
    let node = &cluster.nodes[fourth];
    eventually("it knows that it is a member", || {
        node.shard()
            .membership()
            .learners
            .contains(&4)
            .then_some(())
    });
    let stays = |index: u64, goes: bool| {
        let refused = node.run(node.node().unhost_removed(SHARD, index, move || goes));
        let still = matches!(
            refused,
            Err(Error::StillMember {
                node: 4,
                shard: SHARD
            })
        );
        assert!(still && node.hosts(), "{refused:?}");
    };
    stays(before, true);
    cluster.change(async |shard| shard.remove_learner(4).await);
    let after = told();
    assert!(after > before);
    // Somebody wants it here again.
    stays(after, false);
    node.run(node.node().unhost_removed(SHARD, after, || true))
        .unwrap();
    assert!(!node.hosts());
}

#[test]
fn hosting_is_idempotent_and_begins_nothing() {
    let mut cluster = Cluster::start(1, |_| ());
    let second = cluster.join();
    let node = &cluster.nodes[second];
    // None of the bootstrap's: a split may have made it.
    let later = node.run(node.node().host(ShardId(2))).unwrap();
    assert!(later.engine().slots().is_empty());
    assert_eq!(later.status().role, "learner");
    drop(later);
    node.run(node.node().unhost(ShardId(2), false)).unwrap();
    cluster.host(second);
    let first = node.shard().engine().clone();
    cluster.host(second);
    assert!(std::sync::Arc::ptr_eq(&first, node.shard().engine()));
    let slots: Vec<u16> = first.slots().iter().map(|slot| slot.0).collect();
    assert_eq!(slots, (0..16).collect::<Vec<u16>>());
    // It waits for a leader, and begins nothing by itself, be it now or after a start.
    assert_eq!(node.shard().status().role, "learner");
    // A handle keeps the files open.
    drop(first);
    let incarnation = node.node().incarnation();
    assert!(incarnation != 0 && incarnation != cluster.nodes[0].node().incarnation());
    cluster.nodes[second].stop();
    cluster.start_again(second);
    let node = &cluster.nodes[second];
    assert_eq!(node.node().incarnation(), incarnation);
    assert_eq!(node.shard().status().role, "learner");
    assert_eq!(node.shard().membership(), Default::default());
    // A membership that was never brought here does not keep it.
    node.run(node.node().unhost(SHARD, false)).unwrap();
    assert!(!node.hosts());
}

#[test]
fn only_nodes_that_are_known_are_peers() {
    let mut cluster = Cluster::start(1, |_| ());
    cluster.register("alice");
    let second = cluster.join();
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[second]);
    let now = |node: &crate::nodes::TestNode| node.node().clock_now_ms().ok();
    eventually("the new node has compared its clock", || now(second));
    assert_eq!(first.node().peers().len(), 2);
    // The first one forgets the second, which then gets no answer any more.
    first
        .node()
        .set_nodes([(1, first.address.to_string())].into());
    eventually("the connection is cut", || {
        let peers = second.node().peers();
        let there = peers.iter().find(|peer| peer.node == 1).unwrap();
        (!there.connected).then_some(())
    });
    let refused = first.run(first.shard().add_learner(2));
    let unknown = mailbox_raft::ChangeError::UnknownNode { node: 2 };
    assert_eq!(refused, Err(unknown));
}

fn some_file_in(staging: &Path) -> Option<()> {
    let dirs = std::fs::read_dir(staging).ok()?.flatten();
    let mut received = dirs.filter(|dir| dir.file_name().to_string_lossy().starts_with("receive"));
    received.find_map(|dir| std::fs::read_dir(dir.path()).ok()?.next().map(|_| ()))
}

/// Fills the shard until its log no longer begins at the beginning.
fn fill_until_purged(cluster: &Cluster) {
    let (alice, bob) = (cluster.register("filler"), cluster.register("filled"));
    let text = "t".repeat(400);
    eventually("the log is purged", || {
        for _ in 0..50 {
            let batch: Vec<Command> = (0..20).map(|_| send(alice, bob, &text)).collect();
            cluster.propose(&batch);
        }
        let status = cluster.nodes[cluster.leader()].shard().status();
        (status.purged_index > 300).then_some(())
    });
}

#[test]
fn of_a_shard_with_few_rows_little_of_the_log_is_kept() {
    let cluster = Cluster::start(3, |options| options.engine.memtable_bytes_max = 256 << 10);
    fill_until_purged(&cluster);
    let leader = &cluster.nodes[cluster.leader()];
    let status = leader.shard().status();
    assert!(status.last_index < leader.options.log_entries_kept);
}

#[test]
fn a_new_node_behind_the_purge_survives_crashes_and_catches_up() {
    let mut cluster = Cluster::start(3, |options| {
        options.log_entries_kept = 1;
        options.engine.memtable_bytes_max = 256 << 10;
        // Slow enough to be met on its way.
        options.snapshot_bytes_per_s = 1 << 20;
    });
    fill_until_purged(&cluster);
    let fourth = cluster.join();
    cluster.host(fourth);
    cluster.add_learner(fourth);
    let staging = cluster.nodes[fourth].options.dir.join("staging");
    eventually("a snapshot is on its way", || some_file_in(&staging));
    cluster.nodes[fourth].kill();
    cluster.start_again(fourth);
    // What it was given to hold is there again, without being told.
    assert!(cluster.nodes[fourth].hosts());
    while_sending(&cluster, || {
        cluster.wait_caught_up(fourth);
        cluster.replace(0, fourth);
        let first = &cluster.nodes[0];
        first.run(first.node().unhost(SHARD, true)).unwrap();
    });
    let installs = cluster.nodes[fourth].shard().engine().metrics().installs;
    assert!(installs > 0, "it came by the log");
    let received = cluster.nodes[fourth].node().snapshot_bytes().received;
    assert!(received > 0, "a snapshot has bytes");
    // A crash right behind all this, of the new one and of the one that has nothing any more.
    for node in [fourth, 0] {
        cluster.nodes[node].kill();
        cluster.start_again(node);
    }
    assert!(cluster.nodes[fourth].hosts() && !cluster.nodes[0].hosts());
    while_sending_more(&cluster);
}

fn while_sending_more(cluster: &Cluster) {
    let bob = cluster.register("latecomer");
    let next = cluster.propose(&[send(bob, bob, "to myself")]);
    assert_eq!(seq_of(&next), Seq(1));
    let last = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(last);
    cluster.check_equal_hashes();
}

#[test]
fn a_node_that_was_removed_comes_back() {
    let mut cluster = Cluster::start(3, |_| ());
    let fourth = cluster.join();
    let cluster_ref = &cluster;
    while_sending(cluster_ref, || {
        cluster_ref.host(fourth);
        cluster_ref.add_learner(fourth);
        let mut inside = fourth;
        let mut outside = 0;
        for _ in 0..3 {
            cluster_ref.wait_caught_up(inside);
            cluster_ref.replace(outside, inside);
            let removed = &cluster_ref.nodes[outside];
            removed.run(removed.node().unhost(SHARD, true)).unwrap();
            cluster_ref.host(outside);
            cluster_ref.add_learner(outside);
            inside = outside;
            outside = (outside + 1) % 3;
        }
        cluster_ref.wait_caught_up(inside);
    });
    // All that came and went is as it is after a start, too.
    for node in 0..4 {
        cluster.nodes[node].stop();
    }
    for node in 0..4 {
        cluster.start_again(node);
    }
    assert!(cluster.nodes.iter().all(crate::nodes::TestNode::hosts));
    while_sending_more(&cluster);
}

#[test]
fn a_learner_that_lost_its_replica_is_filled_again_under_the_same_leader() {
    let mut cluster = Cluster::start(3, |_| ());
    let fourth = cluster.join();
    let cluster = &cluster;
    while_sending(cluster, || {
        cluster.host(fourth);
        cluster.add_learner(fourth);
        for _ in 0..3 {
            cluster.wait_caught_up(fourth);
            let node = &cluster.nodes[fourth];
            node.run(node.node().unhost(SHARD, true)).unwrap();
            cluster.host(fourth);
            // Whoever gives it the replica again says so to the leader.
            cluster.add_learner(fourth);
        }
        cluster.wait_caught_up(fourth);
    });
}

#[test]
fn a_cluster_of_one_moves_to_another_node_and_back() {
    let mut cluster = Cluster::start(1, |_| ());
    let alice = cluster.register("alice");
    let second = cluster.join();
    for (old, new) in [(0, second), (second, 0), (0, second)] {
        cluster.host(new);
        cluster.add_learner(new);
        cluster.wait_caught_up(new);
        cluster.replace(old, new);
        eventually("the new one leads", || {
            (cluster.leader() == new).then_some(())
        });
        let left = &cluster.nodes[old];
        left.run(left.node().unhost(SHARD, true)).unwrap();
        cluster.propose(&[send(alice, alice, "x")]);
    }
    // The only voter leads at once, as a founder does.
    cluster.nodes[second].kill();
    cluster.start_again(second);
    assert_eq!(seq_of(&cluster.propose(&[send(alice, alice, "y")])), Seq(4));
    assert!(!cluster.nodes[0].hosts());
}

#[test]
fn a_stopping_node_takes_up_nothing() {
    let mut cluster = Cluster::start(1, |_| ());
    let second = cluster.join();
    let node = &cluster.nodes[second];
    let handle = node.node().clone();
    node.run(async {
        handle.shutdown().await.unwrap();
        let refused = handle.host(SHARD).await;
        assert!(matches!(refused, Err(Error::Stopping)));
        let refused = handle.unhost(SHARD, true).await;
        assert!(matches!(refused, Err(Error::Stopping)));
    });
}

#[test]
fn one_snapshot_is_enough_however_much_is_flushed_meanwhile() {
    let mut cluster = Cluster::start(3, |options| {
        options.log_entries_kept = 1;
        options.engine.memtable_bytes_max = 64 << 10;
        options.snapshot_bytes_per_s = 1 << 20;
    });
    fill_until_purged(&cluster);
    let fourth = cluster.join();
    cluster.host(fourth);
    let flushed = |cluster: &Cluster| {
        let leader = cluster.nodes[cluster.leader()].shard();
        leader.engine().metrics().flushes
    };
    let before = flushed(&cluster);
    let (alice, bob) = (cluster.register("writer"), cluster.register("reader"));
    cluster.add_learner(fourth);
    let text = "w".repeat(400);
    eventually("the new replica has installed a snapshot", || {
        let batch: Vec<Command> = (0..20).map(|_| send(alice, bob, &text)).collect();
        cluster.propose(&batch);
        let shard = cluster.nodes[fourth].shard();
        (shard.engine().metrics().installs > 0).then_some(())
    });
    let flushes = flushed(&cluster) - before;
    assert!(flushes > 5, "{flushes} flushes while it was on its way");
    cluster.wait_caught_up(fourth);
    let installs = cluster.nodes[fourth].shard().engine().metrics().installs;
    assert_eq!(installs, 1);
    // Then the log is purged again.
    let leader = cluster.nodes[cluster.leader()].shard();
    let kept = leader.status().purged_index;
    eventually("the log is purged", || {
        cluster.propose(&[send(alice, bob, &text)]);
        (leader.status().purged_index > kept).then_some(())
    });
}
