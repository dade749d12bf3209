//! A slot that moves between shards on the same nodes, step by step.

use std::path::PathBuf;
use std::time::Duration;

use mailbox_engine::{
    Command, MessageId, MoveSlot, RegisterUser, Reply, Seq, ShardId, SlotId, SlotStanding, UserId,
    slot_of_handle, slot_of_owner,
};
use mailbox_raft::{ChangeError, ProposeError, StageOrder, StageState};
use uuid::Uuid;

use crate::nodes::{Cluster, eventually, send};

const SLOTS: u16 = 16;
const SOURCE: ShardId = ShardId(1);
const DESTINATION: ShardId = ShardId(2);
const EPOCH: u64 = 5;

fn leader_of(cluster: &Cluster, shard: ShardId) -> usize {
    eventually("a leader is ready", || {
        let leads = |node: &crate::nodes::TestNode| {
            let shard = node.node().shard(shard);
            shard.is_some_and(|shard| shard.leadership().is_ready())
        };
        cluster.nodes.iter().position(leads)
    })
}

fn propose(cluster: &Cluster, shard: ShardId, command: &Command) -> Reply {
    eventually("a proposal is applied", || {
        let leader = &cluster.nodes[leader_of(cluster, shard)];
        let call = vec![command.clone()];
        match leader.run(leader.shard_of(shard).propose(call)).as_deref() {
            Ok([reply]) => Some(reply.clone()),
            Ok(other) => panic!("{other:?}"),
            Err(
                ProposeError::NotLeader { .. }
                | ProposeError::Unavailable { .. }
                | ProposeError::ClockSkew(_),
            ) => None,
            Err(error) => panic!("{error}"),
        }
    })
}

fn step(cluster: &Cluster, shard: ShardId, call: MoveSlot) -> SlotStanding {
    match propose(cluster, shard, &Command::MoveSlot(call)) {
        Reply::SlotMoved { standing, .. } => standing,
        other => panic!("{call:?}: {other:?}"),
    }
}

/// A user whose slot is in the source, as its handle's is.
fn user(cluster: &Cluster) -> (UserId, SlotId) {
    let handles = (0..).map(|number| format!("user {number}"));
    for handle in handles.filter(|handle| slot_of_handle(handle, SLOTS).0 < SLOTS / 2) {
        let request_id = Uuid::now_v7();
        let register = Command::RegisterUser(RegisterUser { request_id, handle });
        let Reply::UserRegistered { user } = propose(cluster, SOURCE, &register) else {
            panic!("the handle is new");
        };
        let slot = slot_of_owner(user.0, SLOTS);
        if slot.0 < SLOTS / 2 {
            return (user, slot);
        }
    }
    unreachable!("users are in all slots")
}

fn sent(cluster: &Cluster, shard: ShardId, user: UserId, text: &str) -> (Seq, MessageId) {
    match propose(cluster, shard, &send(user, user, text)) {
        Reply::Sent {
            seq, message_id, ..
        } => (seq, message_id),
        other => panic!("{other:?}"),
    }
}

fn stage(cluster: &Cluster, node: usize, slot: SlotId, frozen: bool) -> u128 {
    let order = StageOrder {
        shard: DESTINATION,
        slot,
        epoch: EPOCH,
        from: SOURCE,
        node: leader_of(cluster, SOURCE) as u64 + 1,
        frozen,
    };
    let node = &cluster.nodes[node];
    eventually("the rows are staged", || {
        match node.run(node.node().stage_slot(order, Duration::from_secs(5))) {
            StageState::Staged { digest } => Some(digest),
            StageState::Running => None,
            // The begin of the import, or the freeze, may not be applied there yet.
            StageState::Failed { .. } => {
                std::thread::sleep(Duration::from_millis(20));
                None
            }
        }
    })
}

fn bodies(cluster: &Cluster, node: usize, user: UserId) -> Vec<String> {
    let shard = cluster.nodes[node].shard_of(DESTINATION);
    let rows = shard.engine().scan(user.mailbox(), Seq(1), 100, usize::MAX);
    let text = |row: mailbox_engine::Row| String::from_utf8(row.body.to_vec()).unwrap();
    rows.unwrap().into_iter().map(text).collect()
}

/// Has two of the three nodes stage a copy, then freezes the slot and has them stage what came since. Gives the
/// commit.
fn freeze(cluster: &Cluster, nodes: [usize; 2], user: UserId, slot: SlotId) -> MoveSlot {
    let begin = MoveSlot::BeginImport {
        slot,
        epoch: EPOCH,
        from: SOURCE,
    };
    step(cluster, DESTINATION, begin);
    let early = nodes.map(|node| stage(cluster, node, slot, false));
    let (_, last) = sent(cluster, SOURCE, user, "late");
    let freeze = MoveSlot::Freeze {
        slot,
        epoch: EPOCH,
        to: DESTINATION,
    };
    let SlotStanding::Frozen {
        time_ms,
        last_message_id,
        ..
    } = step(cluster, SOURCE, freeze)
    else {
        panic!("it is frozen");
    };
    assert!(last_message_id >= last);
    let [digest, other] = nodes.map(|node| stage(cluster, node, slot, true));
    assert_eq!(digest, other);
    assert!(!early.contains(&digest), "something came in between");
    MoveSlot::CommitImport {
        slot,
        epoch: EPOCH,
        digest,
        time_ms,
        last_message_id,
    }
}

/// Replicas that wait for rows ask nobody, until this is dropped or the failpoint is removed.
fn no_fetching() -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    fail::cfg("fetch_rows", "return").unwrap();
    scenario
}

fn wait_for_wait(cluster: &Cluster, node: usize) {
    eventually("apply waits", || {
        let shard = cluster.nodes[node].shard_of(DESTINATION);
        shard.rows_wait().map(|_| ())
    });
}

/// Apply of the destination waits on a node, and nothing else does.
fn check_what_waits(cluster: &Cluster, node: usize, slot: SlotId) {
    wait_for_wait(cluster, node);
    let Reply::Cut { index } = propose(cluster, SOURCE, &Command::Cut) else {
        panic!("a cut");
    };
    eventually("the other shard goes on there", || {
        let status = cluster.nodes[node].shard_of(SOURCE).status();
        (status.applied_index >= index).then_some(())
    });
    let shard = cluster.nodes[node].shard_of(DESTINATION);
    let settled = cluster.nodes[node].run(shard.settle_import(slot, EPOCH));
    assert!(!settled.unwrap());
    assert!(!shard.engine().serves(slot));
}

fn wait_until_all_is_there(cluster: &Cluster, node: usize, user: UserId, texts: &[String]) {
    let slot = slot_of_owner(user.0, SLOTS);
    eventually("the replica has all", || {
        let shard = cluster.nodes[node].shard_of(DESTINATION);
        shard.engine().serves(slot).then_some(())?;
        (bodies(cluster, node, user) == texts).then_some(())
    });
}

#[test]
fn a_slot_moves_and_a_voter_without_its_rows_waits_for_them() {
    let _scenario = no_fetching();
    let mut cluster = Cluster::start(3, |options| options.shard_count = 2);
    let (user, slot) = user(&cluster);
    let mut texts: Vec<String> = (0..20).map(|number| format!("early {number}")).collect();
    for text in &texts {
        sent(&cluster, SOURCE, user, text);
    }
    // The third node never gets a copy; who leads the destination must have one.
    let leader = leader_of(&cluster, DESTINATION);
    let third = (leader + 1) % 3;
    let commit = freeze(&cluster, [leader, (leader + 2) % 3], user, slot);
    texts.extend(["late".to_owned(), "after".to_owned()]);
    assert_eq!(step(&cluster, DESTINATION, commit), SlotStanding::Held);
    // The shard goes on at once, with ids above all that came with the slot.
    let (seq, id) = sent(&cluster, DESTINATION, user, "after");
    assert_eq!(seq, Seq(texts.len() as u64));
    let MoveSlot::CommitImport {
        digest,
        last_message_id,
        ..
    } = commit
    else {
        panic!("a commit");
    };
    assert!(id > last_message_id);

    check_what_waits(&cluster, third, slot);
    // It waits for them whatever happens to its process.
    for clean in [true, false] {
        if clean {
            cluster.nodes[third].stop();
        } else {
            cluster.nodes[third].kill();
        }
        cluster.start_again(third);
        wait_for_wait(&cluster, third);
    }
    assert_eq!(stage(&cluster, third, slot, true), digest);
    for node in 0..3 {
        wait_until_all_is_there(&cluster, node, user, &texts);
        eventually("the commit is in no log any more", || {
            let node = &cluster.nodes[node];
            let shard = node.shard_of(DESTINATION);
            let settled = node.run(shard.settle_import(slot, EPOCH));
            settled.unwrap().then_some(())
        });
    }
    let gone = MoveSlot::Drop { slot, epoch: EPOCH };
    let gone = step(&cluster, SOURCE, gone);
    assert_eq!(gone, SlotStanding::Gone { to: DESTINATION });
    // A replica that comes now could not get the rows for a commit: it gets a snapshot.
    let fourth = cluster.join();
    let node = &cluster.nodes[fourth];
    node.run(node.node().host(DESTINATION)).unwrap();
    eventually("it is a learner", || {
        let leader = &cluster.nodes[leader_of(&cluster, DESTINATION)];
        let shard = leader.shard_of(DESTINATION);
        leader.run(shard.add_learner(fourth as u64 + 1)).ok()
    });
    wait_until_all_is_there(&cluster, fourth, user, &texts);
    for node in &mut cluster.nodes {
        node.stop();
    }
}

#[test]
fn a_voter_without_rows_gets_them_from_the_source_and_is_handed_no_leadership_before() {
    let _scenario = no_fetching();
    let cluster = Cluster::start(3, |options| options.shard_count = 2);
    let (user, slot) = user(&cluster);
    sent(&cluster, SOURCE, user, "early");
    let leader = leader_of(&cluster, DESTINATION);
    let third = (leader + 1) % 3;
    let commit = freeze(&cluster, [leader, (leader + 2) % 3], user, slot);
    assert_eq!(step(&cluster, DESTINATION, commit), SlotStanding::Held);
    wait_for_wait(&cluster, third);
    let transfer = || {
        let leader = &cluster.nodes[leader_of(&cluster, DESTINATION)];
        let shard = leader.shard_of(DESTINATION);
        leader.run(shard.transfer_leader(third as u64 + 1))
    };
    let refused = transfer();
    let Err(ChangeError::Unavailable { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("waits for the rows"), "{reason}");
    // Both others have applied the commit: what they had staged is staged no more.
    let texts = ["early".to_owned(), "late".to_owned()];
    wait_until_all_is_there(&cluster, (leader + 2) % 3, user, &texts);
    fail::remove("fetch_rows");
    wait_until_all_is_there(&cluster, third, user, &texts);
    eventually("it leads", || transfer().ok());
}

#[test]
fn what_was_staged_for_a_move_that_is_given_up_goes() {
    let cluster = Cluster::start(3, |options| options.shard_count = 2);
    let (user, slot) = user(&cluster);
    sent(&cluster, SOURCE, user, "hello");
    let begin = MoveSlot::BeginImport {
        slot,
        epoch: EPOCH,
        from: SOURCE,
    };
    step(&cluster, DESTINATION, begin);
    for node in 0..3 {
        stage(&cluster, node, slot, false);
        let shard = cluster.nodes[node].shard_of(DESTINATION);
        assert_eq!(shard.engine().staged_imports().len(), 1);
    }
    let abort = MoveSlot::AbortImport {
        slot,
        epoch: EPOCH,
        from: SOURCE,
    };
    step(&cluster, DESTINATION, abort);
    for node in 0..3 {
        eventually("nothing is staged", || {
            let shard = cluster.nodes[node].shard_of(DESTINATION);
            shard.engine().staged_imports().is_empty().then_some(())
        });
    }
    // It is where it was.
    let (seq, _) = sent(&cluster, SOURCE, user, "again");
    assert_eq!(seq, Seq(2));
}

#[test]
fn rows_that_another_copy_has_replaced_are_staged_again() {
    let cluster = Cluster::start(1, |options| options.shard_count = 2);
    let (user, slot) = user(&cluster);
    sent(&cluster, SOURCE, user, "early");
    let begin = MoveSlot::BeginImport {
        slot,
        epoch: EPOCH,
        from: SOURCE,
    };
    step(&cluster, DESTINATION, begin);
    stage(&cluster, 0, slot, false);
    // What a peer would give that has the copy and nothing later.
    let source = cluster.nodes[0].shard_of(SOURCE);
    let dir = tempfile::tempdir().unwrap();
    let copy = source.engine().export_slot(slot).unwrap();
    let (meta, files) = copy.write_files(dir.path(), &mut |_| ()).unwrap();
    let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
    sent(&cluster, SOURCE, user, "late");
    let freeze = MoveSlot::Freeze {
        slot,
        epoch: EPOCH,
        to: DESTINATION,
    };
    step(&cluster, SOURCE, freeze);
    let frozen = stage(&cluster, 0, slot, true);
    assert_ne!(frozen, meta.digest);
    let destination = cluster.nodes[0].shard_of(DESTINATION);
    let staged = || destination.engine().staged_imports()[0].digest;
    assert_eq!(staged(), frozen);
    let replaced = destination.engine().stage_slot(EPOCH, &meta, &files);
    replaced.unwrap();
    assert_eq!(staged(), meta.digest);
    assert_eq!(stage(&cluster, 0, slot, true), frozen);
    assert_eq!(staged(), frozen);
}
