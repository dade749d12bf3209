//! Shards that split in place, while they are used and while nodes die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use mailbox_engine::{
    Command, Refusal, Reply, Seq, Shard as Engine, ShardId, SlotId, SplitShard, UserId,
    slot_of_owner,
};
use mailbox_raft::{ProposeError, Timing};
use uuid::Uuid;

use crate::nodes::{Cluster, TestNode, eventually, send, send_with_id};

const PARENT: ShardId = ShardId(1);
const CHILD: ShardId = ShardId(2);
const EPOCH: u64 = 1;

fn split_of(slots: impl IntoIterator<Item = u16>) -> Command {
    Command::SplitShard(SplitShard {
        to: CHILD,
        epoch: EPOCH,
        slots: slots.into_iter().map(SlotId).collect(),
    })
}

const DONE: Reply = Reply::ShardSplit {
    to: CHILD,
    epoch: EPOCH,
};

/// Half of the slots go.
fn goes(user: UserId) -> bool {
    slot_of_owner(user.0, 16).0 >= 8
}

fn split(cluster: &Cluster) {
    assert_eq!(cluster.propose(&[split_of(8..16)]), [DONE]);
}

/// A user whose slot goes, and one whose slot stays.
fn users(cluster: &Cluster) -> [UserId; 2] {
    let mut found: [Option<UserId>; 2] = [None, None];
    for number in 0.. {
        let user = cluster.register(&format!("user {number}"));
        found[usize::from(!goes(user))].get_or_insert(user);
        if let [Some(going), Some(staying)] = found {
            return [going, staying];
        }
    }
    unreachable!("users are in all slots")
}

fn leads(node: &TestNode, shard: ShardId) -> bool {
    let running = node.is_running().then(|| node.node().shard(shard));
    let shard = running.flatten();
    shard.is_some_and(|shard| shard.leadership().is_ready())
}

/// Asks the shards that a user may be in until one has it; a repeat has the same id.
fn send_anywhere(cluster: &Cluster, user: UserId, text: &str) -> Seq {
    let command = send_with_id(Uuid::now_v7(), user, user, text);
    eventually("the message is accepted", || {
        for (node, shard) in cluster
            .nodes
            .iter()
            .flat_map(|node| [(node, PARENT), (node, CHILD)])
            .filter(|(node, shard)| leads(node, *shard))
        {
            let Some(shard) = node.node().shard(shard) else {
                continue;
            };
            match node.run(shard.propose(vec![command.clone()])).as_deref() {
                Ok([Reply::Sent { seq, .. }]) => return Some(*seq),
                Ok(
                    [
                        Reply::Refused(
                            Refusal::WrongOwner { .. }
                            | Refusal::WrongShard { .. }
                            | Refusal::Retry,
                        ),
                    ],
                )
                | Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::Unavailable { .. }
                    | ProposeError::ClockSkew(_),
                ) => {}
                other => panic!("{other:?}"),
            }
        }
        None
    })
}

fn texts(engine: &Engine, user: UserId) -> BTreeMap<Seq, String> {
    let rows = engine.scan(user.mailbox(), Seq(1), usize::MAX, usize::MAX);
    let rows = rows.unwrap().into_iter();
    rows.map(|row| (row.seq, String::from_utf8(row.body.to_vec()).unwrap()))
        .collect()
}

/// All running nodes have the same rows of a shard. None if the cut found a snapshot in its place somewhere.
fn have_equal_rows(cluster: &Cluster, shard: ShardId) -> Option<()> {
    let leader = cluster.nodes.iter().find(|node| leads(node, shard))?;
    let first = leader.run(leader.shard_of(shard).state_hash(0)).ok()?;
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        let here = eventually("the node has a replica", || node.node().shard(shard));
        let found = node.run(here.state_hash(first.applied.index)).ok()?;
        assert_eq!(found, first, "{shard}");
    }
    Some(())
}

/// Each running node has a replica of the child, which one of them leads, and both shards have the same rows
/// everywhere.
fn check_halves(cluster: &Cluster) {
    for shard in [PARENT, CHILD] {
        eventually("a cut is the same on all nodes", || {
            have_equal_rows(cluster, shard)
        });
        for node in cluster.nodes.iter().filter(|node| node.is_running()) {
            let here = node.shard_of(shard);
            let slots: BTreeSet<u16> = here.engine().slots().iter().map(|slot| slot.0).collect();
            let wanted = match shard == PARENT {
                true => 0..8,
                false => 8..16,
            };
            assert!(slots.into_iter().eq(wanted));
        }
    }
}

#[test]
fn a_shard_splits_while_it_is_used() {
    let cluster = Cluster::start(3, |_| ());
    let both = users(&cluster);
    let stop = AtomicBool::new(false);
    let acked = std::thread::scope(|scope| {
        let (cluster, stop) = (&cluster, &stop);
        let sending = both.map(|user| {
            scope.spawn(move || {
                let mut acked = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let text = format!("message {}", acked.len());
                    let seq = send_anywhere(cluster, user, &text);
                    assert!(acked.insert(seq, text).is_none(), "{seq:?} twice");
                }
                acked
            })
        });
        let end = StopOnDrop(stop);
        split(cluster);
        check_halves(cluster);
        // Each has been served by the shard that it is in now.
        for user in both {
            send_anywhere(cluster, user, "last but for the sender's own");
        }
        drop(end);
        sending.map(|sender| sender.join().unwrap())
    });
    split(&cluster);
    check_halves(&cluster);
    for node in &cluster.nodes {
        for (user, acked) in both.into_iter().zip(&acked) {
            let shard = if goes(user) { CHILD } else { PARENT };
            let mut found = texts(node.shard_of(shard).engine(), user);
            let others = found.len();
            found.retain(|_, text| text.starts_with("message"));
            assert_eq!(found.len() + 1, others);
            assert_eq!(found, *acked);
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_whole_cluster_that_dies_in_a_split_finishes_it() {
    let mut cluster = Cluster::start(3, |_| ());
    let both = users(&cluster);
    for user in both {
        send_anywhere(&cluster, user, "before");
    }
    split(&cluster);
    // Some have flushed it, some have not; some run the child, some do not.
    cluster.nodes.iter_mut().for_each(TestNode::kill);
    cluster.nodes.iter_mut().for_each(TestNode::start);
    check_halves(&cluster);
    for user in both {
        assert_eq!(send_anywhere(&cluster, user, "after"), Seq(2));
    }
    cluster.nodes.iter_mut().for_each(TestNode::stop);
    cluster.nodes.iter_mut().for_each(TestNode::start);
    check_halves(&cluster);
    for user in both {
        assert_eq!(send_anywhere(&cluster, user, "once more"), Seq(3));
    }
}

/// A cluster that has split while one follower slept, who then got the parent by a snapshot from behind the split, and
/// so has no part in the child. Gives that node too.
fn slept_over_a_split() -> (Cluster, [UserId; 2], usize) {
    let mut cluster = Cluster::start(3, |options| {
        options.log_entries_kept = 1;
        options.engine.memtable_bytes_max = 256 << 10;
    });
    let both = users(&cluster);
    let sleeper = (cluster.leader() + 1) % 3;
    cluster.nodes[sleeper].kill();
    split(&cluster);
    check_halves(&cluster);
    for user in both {
        send_anywhere(&cluster, user, "while it slept");
    }
    let [_, staying] = both;
    let text = "t".repeat(400);
    eventually("the log is purged beyond the split", || {
        for _ in 0..50 {
            cluster.propose(&[send(staying, staying, &text)]);
            let batch: Vec<Command> = (0..20).map(|_| send(staying, staying, &text)).collect();
            cluster.propose(&batch);
        }
        let status = cluster.nodes[cluster.leader()].shard().status();
        (status.purged_index > 300).then_some(())
    });
    cluster.nodes[sleeper].start();
    let node = &cluster.nodes[sleeper];
    eventually("the parent's snapshot is here", || {
        let shard = node.shard();
        (shard.engine().metrics().installs > 0).then_some(())
    });
    assert!(!node.shard().engine().serves(SlotId(8)));
    // Nothing of the child comes by itself: whoever places replicas puts it here.
    assert!(node.node().shard(CHILD).is_none());
    (cluster, both, sleeper)
}

#[test]
fn a_follower_that_slept_gets_both_by_snapshots() {
    let (cluster, _, sleeper) = slept_over_a_split();
    let node = &cluster.nodes[sleeper];
    let child = node.run(node.node().host(CHILD)).unwrap();
    assert_eq!(child.engine().applied(), Default::default());
    check_halves(&cluster);
    assert!(child.engine().metrics().installs > 0);
}

/// Two of three have the child's rows; one of them is lost.
#[test]
fn a_follower_that_slept_stands_in_for_one_that_has_died() {
    let (mut cluster, [going, _], sleeper) = slept_over_a_split();
    let awake = (0..3).filter(|node| *node != sleeper);
    let leads_child = awake
        .clone()
        .find(|node| leads(&cluster.nodes[*node], CHILD));
    // The one that leads the child, so that it has to be elected anew.
    let dead = leads_child.unwrap_or((sleeper + 1) % 3);
    cluster.nodes[dead].kill();
    let node = &cluster.nodes[sleeper];
    node.run(node.node().host(CHILD)).unwrap();
    assert_eq!(send_anywhere(&cluster, going, "without it"), Seq(2));
}

#[test]
fn a_late_node_without_a_part_in_the_split_does_not_begin_the_child() {
    let mut cluster = Cluster::start(1, |_| ());
    let [going, staying] = users(&cluster);
    send_anywhere(&cluster, going, "before");
    split(&cluster);
    check_halves(&cluster);
    // It replays the parent's whole log, in which it was no member at the split.
    let second = cluster.join();
    cluster.host(second);
    cluster.add_learner(second);
    cluster.wait_caught_up(second);
    send_anywhere(&cluster, staying, "after");
    let node = &cluster.nodes[second];
    assert!(node.node().shard(CHILD).is_none());
    let refused = node.shard().engine().head(going.mailbox());
    assert!(refused.is_err());
    cluster.nodes[second].stop();
    cluster.start_again(second);
    assert!(cluster.nodes[second].node().shard(CHILD).is_none());
    cluster.check_equal_hashes();
}

#[test]
fn a_split_waits_for_no_promise_that_nobody_made() {
    // Longer than the test waits for anything: were the new shard taken for one that was here before, its voters
    // would keep out of elections for so long. The third node makes short ones, and is quick to stand.
    let cluster = Cluster::start(3, |options| {
        let third = options.node == 3;
        options.lease_reads = true;
        options.timing = Timing {
            heartbeat_ms: if third { 50 } else { 100 },
            election_min_ms: if third { 200 } else { 500 },
            election_max_ms: if third { 400 } else { 100_000 },
        };
    });
    let [going, staying] = users(&cluster);
    send_anywhere(&cluster, going, "before");
    split(&cluster);
    assert_eq!(send_anywhere(&cluster, going, "after"), Seq(2));
    assert_eq!(send_anywhere(&cluster, staying, "after"), Seq(1));
}

/// Nobody relays here: what goes to the other half stays until it is acked.
#[test]
fn a_full_outbox_refuses_what_may_add_to_it_until_it_is_acked() {
    const LIMIT: u64 = 4096;
    let cluster = Cluster::start(1, |options| options.outbox_bytes_max = LIMIT);
    let [going, staying] = users(&cluster);
    split(&cluster);
    let node = &cluster.nodes[0];
    let parent = node.shard();
    let text = "x".repeat(500);
    let propose = |command| node.run(parent.propose(vec![command]));
    let refused = (0..100).find_map(|_| propose(send(staying, going, &text)).err());
    let Some(ProposeError::OutboxFull { bytes, limit }) = refused else {
        panic!("{refused:?}");
    };
    assert!(bytes > LIMIT && limit == LIMIT);
    // Half an item more than the limit at most, and one entry of several would be over by itself.
    assert!(bytes < LIMIT + 1000, "{bytes}");
    let unacked = parent.engine().unacked();
    assert!(unacked.len() > 5);
    let refused = propose(send(
        staying,
        staying,
        "may ride a lane, for all that is known before",
    ));
    assert!(matches!(refused, Err(ProposeError::OutboxFull { .. })));
    parent.ack_lanes(unacked.iter().map(|item| (item.lane, item.seq)));
    eventually("the outbox takes items again", || {
        propose(send(staying, going, &text)).ok()
    });
    assert_eq!(parent.engine().unacked().len(), 1);
}
