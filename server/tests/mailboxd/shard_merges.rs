//! Shards of real processes that merge, under sends, syncs and subscriptions, and processes that die on the way.

use std::path::Path;
use std::time::Duration;

use mailbox_client::Client;
use mailbox_client::v1::{
    ErrorCode, MergeShardRequest, MoveSlotRequest, NodeStanding, SlotSpan, SplitShardRequest,
};
use mailbox_engine::{EngineOptions, ShardId, Store};
use rustix::process::Signal;

use crate::cluster::Trio;
use crate::growth::map_with;
use crate::slot_moves::{Load, drive_and_die, eventually, give_lead, revive, start_to_die};

const SLOTS: u16 = 16;

/// Where the process that drives a merge may die, in their order.
const DRIVER_POINTS: [&str; 4] = [
    "shard_merge_begun",
    "shard_merge_moving",
    "shard_merge_empty",
    "shard_merge_retired",
];
/// Where a process may die that drops its replica.
const DROP_POINTS: [&str; 2] = ["before_drop", "after_drop"];

/// Asks again while it is not the time for it: a node is away, or comes back.
async fn ask(client: &Client, shard: u32, into: u32) -> bool {
    let call = MergeShardRequest {
        shard,
        into,
        dry_run: false,
    };
    eventually("the merge begins", || async {
        match client.merge_shard(call).await {
            Ok(answer) => Some(answer.done),
            Err(error) => {
                let later = error.is_retryable() || error.code() == ErrorCode::StaleEpoch;
                assert!(later, "{error}");
                None
            }
        }
    })
    .await
}

/// Waits until no node that runs names the shard, or has a replica of it.
async fn over(trio: &Trio, client: &Client, shard: u32) {
    eventually("the merge is over", || async {
        let merges = client.shard_merges().await.ok()?;
        merges
            .iter()
            .all(|found| found.shard != shard)
            .then_some(())
    })
    .await;
    for (index, address) in trio.addresses().iter().enumerate() {
        if trio.nodes[index].is_none() {
            continue;
        }
        map_with(address, |map| {
            map.shards.iter().all(|row| row.shard != shard)
        })
        .await;
        eventually("every node drops its replica", || async {
            let status = client.status(Some(address)).await.ok()?;
            let mut shards = status.shards.iter();
            shards.all(|held| held.shard != shard).then_some(())
        })
        .await;
    }
}

/// Splits the later half of a shard off; which id that gets.
async fn split(client: &Client, shard: u32) -> u32 {
    let half = SplitShardRequest {
        shard,
        slots: Vec::new(),
        dry_run: true,
    };
    let asked = async |call: SplitShardRequest| {
        eventually("the split begins", || async {
            match client.split_shard(call.clone()).await {
                Ok(answer) => Some((answer.to, answer.slots)),
                Err(error) => {
                    let later = error.is_retryable() || error.code() == ErrorCode::StaleEpoch;
                    assert!(later, "{error}");
                    None
                }
            }
        })
        .await
    };
    let (_, slots) = asked(half.clone()).await;
    let call = SplitShardRequest {
        slots,
        dry_run: false,
        ..half
    };
    let (to, _) = asked(call).await;
    eventually("the split is over", || async {
        let splits = client.shard_splits().await.ok()?;
        splits.is_empty().then_some(())
    })
    .await;
    to
}

/// Stops all nodes; nothing of these shards is on their disks.
fn stop(trio: Trio, dir: &Path, gone: &[u32]) {
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
    for node in 1..=3 {
        let options = EngineOptions {
            slot_count: SLOTS,
            ..EngineOptions::default()
        };
        let store = Store::open(&dir.join(format!("node-{node}")), options).unwrap();
        let held = store.shards();
        for shard in gone {
            assert!(!held.contains(&ShardId(*shard)), "node {node}: {held:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_merge_under_load_while_nodes_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, 3);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    // The greatest id goes first: it must not come again.
    for (turn, (shard, into)) in [(3, 1), (1, 2), (4, 2)].into_iter().enumerate() {
        assert!(!ask(&client, shard, into).await);
        let process = trio.nodes[turn].take().unwrap();
        process.stop(Signal::KILL);
        revive(&mut trio, dir.path(), turn);
        over(&trio, &client, shard).await;
        // What is done is done.
        assert!(ask(&client, shard, into).await);
        // A fresh id each time: of three shards at first, 3 and 4 are gone by the end.
        let to = split(&client, 2).await;
        assert_eq!(to, turn as u32 + 4, "no id comes twice");
    }
    load.check().await;
    stop(trio, dir.path(), &[1, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_at_any_step_leaves_a_merge_that_others_finish() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, 6);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, point) in DRIVER_POINTS.into_iter().enumerate() {
        let (index, shard) = (turn % 3, 6 - turn as u32);
        drive_and_die(&mut trio, &client, dir.path(), index, point).await;
        ask(&client, shard, turn as u32 % 2 + 1).await;
        let died = trio.nodes[index].take().unwrap().wait();
        assert!(!died.success(), "{point}: {died}");
        if turn >= 2 {
            // All slots have moved: the two others retire the shard, and the node was not there to see it.
            over(&trio, &client, shard).await;
        }
        revive(&mut trio, dir.path(), index);
        over(&trio, &client, shard).await;
    }
    load.check().await;
    stop(trio, dir.path(), &[3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_it_drops_its_replica_has_none_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, 4);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, point) in DROP_POINTS.into_iter().enumerate() {
        let shard = 4 - turn as u32;
        start_to_die(&mut trio, dir.path(), turn, &format!("{point}=return"));
        ask(&client, shard, 1).await;
        let died = trio.nodes[turn].take().unwrap().wait();
        assert!(!died.success(), "{point}: {died}");
        over(&trio, &client, shard).await;
        revive(&mut trio, dir.path(), turn);
        over(&trio, &client, shard).await;
    }
    load.check().await;
    stop(trio, dir.path(), &[3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_waits_keeps_others_out_and_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, 3);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    let call = |shard, into| MergeShardRequest {
        shard,
        into,
        dry_run: true,
    };
    let judged = eventually("the map says", || async {
        client.merge_shard(call(2, 1)).await.ok()
    })
    .await;
    assert!(judged.slots_left > 0 && !judged.done, "{judged:?}");
    // What can never be is said at once.
    for (shard, into) in [(1, 1), (0, 1), (1, 0), (7, 1), (1, 7)] {
        let refused = client.merge_shard(call(shard, into)).await;
        let refused = refused.expect_err("it cannot be");
        assert!(!refused.is_retryable(), "{refused}");
    }
    // Nor does one begin that a member of the meta shard would stop at.
    start_to_die(&mut trio, dir.path(), 2, "merges_unknown=return");
    let refused = eventually("it is refused", || async {
        match client.merge_shard(call(2, 1)).await {
            Err(error) if error.is_retryable() => None,
            other => Some(other.expect_err("a version is too old")),
        }
    })
    .await;
    let words = &refused.0.message;
    assert!(
        words.contains("node 3") && words.contains("merges"),
        "{words}"
    );
    revive_over(&mut trio, dir.path(), 2);
    ask(&client, 2, 1).await;
    trio.nodes[2].take().unwrap().stop(Signal::KILL);
    let waits = eventually("it waits for the third node", || async {
        let merges = client.shard_merges().await.ok()?;
        let [found] = &merges[..] else { return None };
        found.waits_for.contains("node 3").then(|| found.clone())
    })
    .await;
    assert_eq!((waits.shard, waits.into, waits.retired), (2, 1, false));
    // Meanwhile nothing else is done to either end.
    for (shard, into) in [(2, 3), (1, 3), (3, 2)] {
        let refused = client.merge_shard(call(shard, into)).await;
        let refused = refused.expect_err("another merge");
        assert!(refused.0.message.contains("merges into"), "{refused}");
    }
    let into_it = MoveSlotRequest {
        slot: 0,
        to: 2,
        dry_run: false,
    };
    assert!(client.move_slot(into_it).await.is_err());
    let halves = SplitShardRequest {
        shard: 2,
        slots: Vec::<SlotSpan>::new(),
        dry_run: true,
    };
    assert!(client.split_shard(halves).await.is_err());
    client.abort_shard_merge(2).await.expect("given up");
    assert!(client.abort_shard_merge(2).await.is_err(), "there is none");
    assert_eq!(client.shard_merges().await.expect("told"), []);
    revive(&mut trio, dir.path(), 2);
    ask(&client, 2, 1).await;
    over(&trio, &client, 2).await;
    let refused = client.abort_shard_merge(2).await.expect_err("it is done");
    assert!(!refused.is_retryable(), "{refused}");
    load.check().await;
    stop(trio, dir.path(), &[2]);
}

/// To its node, a shard that a split has made looks as one that was retired: it is held, and the map does not name it.
#[tokio::test(flavor = "multi_thread")]
async fn a_split_that_is_in_no_map_yet_keeps_its_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, 2);
    let client = trio.client().await;
    // Whoever drives the split stands still before the map has the new shard.
    start_to_die(&mut trio, dir.path(), 0, "shard_split_led=pause");
    give_lead(&trio, &client, 0, 0).await;
    let (splitting, told) = (client.clone(), client.clone());
    let split = tokio::spawn(async move { split(&splitting, 1).await });
    let held = |address: String| {
        let client = told.clone();
        async move {
            let status = client.status(Some(&address)).await.ok()?;
            let mut shards = status.shards.iter();
            shards.any(|held| held.shard == 3).then_some(())
        }
    };
    for address in trio.addresses() {
        eventually("it runs there", || held(address.clone())).await;
    }
    // Each node looks at what it holds when a map comes.
    let mut epoch = 0;
    for standing in [NodeStanding::Draining, NodeStanding::Member] {
        epoch = eventually("the map changes", || async {
            let changed = client.set_standing(3, standing).await.ok()?;
            Some(changed.epoch)
        })
        .await;
    }
    for address in trio.addresses() {
        map_with(address, |map| map.epoch >= epoch).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let map = client.cluster_map().await.expect("told");
    let named = map.shards.iter().any(|row| row.shard == 3);
    assert!(!named, "its driver does not stand still");
    for address in trio.addresses() {
        assert!(held(address.clone()).await.is_some(), "{address}");
    }
    trio.nodes[0].take().unwrap().stop(Signal::KILL);
    revive(&mut trio, dir.path(), 0);
    assert_eq!(split.await.unwrap(), 3);
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

/// Starts a node that runs anew, with nothing in its way.
fn revive_over(trio: &mut Trio, dir: &Path, index: usize) {
    let before = trio.nodes[index].take().unwrap();
    assert!(before.stop(Signal::TERM).success());
    revive(trio, dir, index);
}
