//! Replicas of the source and the destination that die at each step of a move, leading both shards or following.

use super::*;

/// Where a replica may die, in the order of a move: each with what the failpoint does.
const STEPS: [(&str, &str); 9] = [
    ("the import has begun", "apply_begin_import=return"),
    ("the copy is not staged", "before_stage=return"),
    ("the copy is staged", "after_stage=return"),
    ("the slot is frozen", "apply_freeze=return"),
    ("the changes are not staged", BEFORE_CHANGES),
    ("the changes are staged", AFTER_CHANGES),
    ("the import is committed", "apply_commit_import=return"),
    ("the slot is dropped", "apply_drop=return"),
    ("its rows are not removed", REMOVAL),
];
/// The copy comes first, and the changes if there are any since.
const BEFORE_CHANGES: &str = "before_stage=1*off->return";
const AFTER_CHANGES: &str = "after_stage=1*off->return";
const REMOVAL: &str = "before_dead=return";
/// Moves until one finds changes.
const TRIES: usize = 30;

/// Starts a node that dies at a point, moves a slot, and gives back which, and where it is to be.
async fn begin_and_die(
    trio: &mut Trio,
    load: &Load,
    dir: &Path,
    (turn, failpoints): (usize, &str),
    leads: bool,
) -> (usize, u16, u32) {
    let client = &load.client;
    let slot = slot_of_owner(load.users[turn % load.users.len()], SLOTS).0;
    let index = turn % 3;
    for _ in 0..TRIES {
        let from = eventually("the map says", || holder(client, slot)).await;
        let to = from % u32::from(SHARDS) + 1;
        start_to_die(trio, dir, index, failpoints);
        let leader = if leads { index } else { (index + 1) % 3 };
        for shard in [from, to] {
            give_lead(trio, client, leader, shard).await;
        }
        begin(client, slot, to).await;
        let of_changes = matches!(failpoints, BEFORE_CHANGES | AFTER_CHANGES);
        if of_changes && !died_before_the_end(trio, client, index).await {
            // Nobody had written into the slot since its copy.
            continue;
        }
        // It may also die of rows that the move before this one has left, which the copy makes it remove.
        if failpoints == REMOVAL && !died_before_the_end(trio, client, index).await {
            // Rows are removed after a flush, and a node that stops flushes.
            moved(client, slot, to).await;
            trio.nodes[index].as_ref().unwrap().signal(Signal::TERM);
        }
        let died = trio.nodes[index].take().unwrap().wait();
        if died.success() && failpoints == REMOVAL {
            // It had not applied the drop when it was told to stop: there was nothing to remove.
            revive(trio, dir, index);
            continue;
        }
        assert!(!died.success(), "{failpoints}: {died}");
        return (index, slot, to);
    }
    panic!("{failpoints} was never reached");
}

/// Whether a node dies while a move is under way.
async fn died_before_the_end(trio: &mut Trio, client: &Client, index: usize) -> bool {
    let begun = Instant::now();
    loop {
        // In this order: it may die last thing.
        let over = client
            .slot_moves()
            .await
            .is_ok_and(|moves| moves.is_empty());
        if trio.nodes[index].as_mut().unwrap().has_ended() {
            return true;
        }
        if over {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "the move does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_at_any_step_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, (step, failpoints)) in STEPS.into_iter().enumerate() {
        for leads in [true, false] {
            eprintln!("{step}, {}", if leads { "leader" } else { "follower" });
            let turn = (2 * turn + usize::from(leads), failpoints);
            let (index, slot, to) = begin_and_die(&mut trio, &load, dir.path(), turn, leads).await;
            revive(&mut trio, dir.path(), index);
            moved(&client, slot, to).await;
        }
    }
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_missed_the_last_rows_fetches_them_for_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for turn in 0..3 {
        let failing = (turn, BEFORE_CHANGES);
        let (index, slot, to) = begin_and_die(&mut trio, &load, dir.path(), failing, false).await;
        // The two others commit without it, which it hears of when it is back.
        eventually("the import is committed", || async {
            let moves = client.slot_moves().await.ok()?;
            let [found] = &moves[..] else { return None };
            (found.stage() == v1::SlotMoveStage::Dropping).then_some(())
        })
        .await;
        revive(&mut trio, dir.path(), index);
        moved(&client, slot, to).await;
        // It has them: it serves the slot.
        give_lead(&trio, &client, index, to).await;
    }
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_given_up_though_whoever_gives_it_up_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, failpoints) in ["slot_move_aborted", "apply_abort_import"]
        .iter()
        .enumerate()
    {
        let slot = slot_of_owner(load.users[turn], SLOTS).0;
        let from = eventually("the map says", || holder(&client, slot)).await;
        let to = from % u32::from(SHARDS) + 1;
        drive_and_die(&mut trio, &client, dir.path(), 0, failpoints).await;
        trio.nodes[2].take().unwrap().stop(Signal::KILL);
        begin(&client, slot, to).await;
        eventually("the move waits for the third node", || async {
            let moves = client.slot_moves().await.ok()?;
            let [found] = &moves[..] else { return None };
            (found.done_nodes.len() == 2).then_some(())
        })
        .await;
        // The answer may be lost with the node.
        let _ = client.abort_slot_move(slot.into()).await;
        let died = trio.nodes[0].take().unwrap().wait();
        assert!(!died.success(), "{failpoints}: {died}");
        revive(&mut trio, dir.path(), 0);
        revive(&mut trio, dir.path(), 2);
        moved(&client, slot, from).await;
        begin(&client, slot, to).await;
        moved(&client, slot, to).await;
    }
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}
