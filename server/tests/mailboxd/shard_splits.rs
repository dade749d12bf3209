//! Shards of real processes that split, under sends, syncs and subscriptions, and processes that die on the way.

use std::time::Instant;

use mailbox_client::Client;
use mailbox_client::v1::{ErrorCode, SlotSpan, SplitShardRequest};
use rustix::process::Signal;

use crate::cluster::Trio;
use crate::slot_moves::{Load, drive_and_die, eventually, holder, revive, start_to_die};

const SLOTS: u16 = 16;
const SHARDS: u16 = 2;

/// Where the process that drives a split may die, in their order.
const DRIVER_POINTS: [&str; 4] = [
    "shard_split_begun",
    "shard_split_applied",
    "shard_split_led",
    "shard_split_in_map",
];
/// Where a process may die that has a replica of the shard: the split is applied and not flushed; flushed, and the new
/// shard has no log; it has one, and does not run.
const REPLICA_POINTS: [&str; 3] = ["split_applied", "split_flushed", "split_seeded"];

/// Asks again while it is not the time for it: a node is away, or comes back.
async fn ask(client: &Client, call: &SplitShardRequest) -> (u32, Vec<SlotSpan>) {
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
}

/// Begins to split half of a shard off.
async fn begin(client: &Client, shard: u32) -> (u32, Vec<SlotSpan>) {
    let half = SplitShardRequest {
        shard,
        slots: Vec::new(),
        dry_run: true,
    };
    let (_, slots) = ask(client, &half).await;
    let call = SplitShardRequest {
        slots,
        dry_run: false,
        ..half
    };
    ask(client, &call).await
}

/// Waits until the map has the new shard, and all nodes that run have a replica of it.
async fn over(trio: &Trio, client: &Client, (to, slots): &(u32, Vec<SlotSpan>)) {
    let slot = u16::try_from(slots[0].first).unwrap();
    eventually("the split is over", || async {
        let splits = client.shard_splits().await.ok()?;
        (splits.is_empty() && holder(client, slot).await == Some(*to)).then_some(())
    })
    .await;
    for (index, address) in trio.addresses().iter().enumerate() {
        if trio.nodes[index].is_none() {
            continue;
        }
        eventually("every node has a replica", || async {
            let status = client.status(Some(address)).await.ok()?;
            let mut shards = status.shards.iter();
            shards.any(|shard| shard.shard == *to).then_some(())
        })
        .await;
    }
}

/// The shard with the most slots.
async fn largest(client: &Client) -> u32 {
    eventually("the map says", || async {
        let map = client.cluster_map().await.ok()?;
        let slots = |spans: &[SlotSpan]| -> u32 {
            spans.iter().map(|span| span.last - span.first + 1).sum()
        };
        let row = map.shards.iter().max_by_key(|row| slots(&row.slots));
        row.map(|row| row.shard)
    })
    .await
}

fn stop(trio: Trio) {
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_split_under_load_while_nodes_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for turn in 0..7 {
        let shard = largest(&client).await;
        let began = begin(&client, shard).await;
        assert_eq!(began.0, u32::from(SHARDS) + 1 + turn, "no id comes twice");
        if turn > 0 {
            let index = turn as usize % 3;
            let process = trio.nodes[index].take().unwrap();
            process.stop(Signal::KILL);
            if turn % 2 == 0 {
                // The two others do it alone, and it comes when all is over.
                over(&trio, &client, &began).await;
            }
            revive(&mut trio, dir.path(), index);
        }
        over(&trio, &client, &began).await;
    }
    load.check().await;
    stop(trio);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_at_any_step_leaves_a_split_that_others_finish() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, point) in DRIVER_POINTS.into_iter().enumerate() {
        let index = turn % 3;
        let shard = largest(&client).await;
        drive_and_die(&mut trio, &client, dir.path(), index, point).await;
        let began = begin(&client, shard).await;
        let died = trio.nodes[index].take().unwrap().wait();
        assert!(!died.success(), "{point}: {died}");
        over(&trio, &client, &began).await;
        revive(&mut trio, dir.path(), index);
        over(&trio, &client, &began).await;
    }
    load.check().await;
    stop(trio);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_die_inside_a_split_finish_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, point) in REPLICA_POINTS.into_iter().enumerate() {
        // One of three: the others do without it.
        let index = turn % 3;
        let shard = largest(&client).await;
        start_to_die(&mut trio, dir.path(), index, &format!("{point}=return"));
        let began = begin(&client, shard).await;
        let died = trio.nodes[index].take().unwrap().wait();
        assert!(!died.success(), "{point}: {died}");
        over(&trio, &client, &began).await;
        revive(&mut trio, dir.path(), index);
        over(&trio, &client, &began).await;
        // All three: nobody is left who has done it.
        let shard = largest(&client).await;
        (0..3).for_each(|index| {
            start_to_die(&mut trio, dir.path(), index, &format!("{point}=return"))
        });
        let began = begin(&client, shard).await;
        all_die(&mut trio);
        (0..3).for_each(|index| revive(&mut trio, dir.path(), index));
        over(&trio, &client, &began).await;
    }
    load.check().await;
    stop(trio);
}

/// Two come to the point where they die: a majority. The last one cannot come so far without them.
fn all_die(trio: &mut Trio) {
    let begun = Instant::now();
    loop {
        let ended = trio.nodes.iter_mut().filter_map(Option::as_mut);
        let ended = ended.filter_map(|process| process.ended());
        let ended: Vec<_> = ended.collect();
        assert!(ended.iter().all(|status| !status.success()));
        if ended.len() >= 2 {
            break;
        }
        assert!(begun.elapsed() < crate::process::PATIENCE, "nobody died");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for node in &mut trio.nodes {
        let mut node = node.take().unwrap();
        if node.ended().is_none() {
            node.stop(Signal::KILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_does_not_begin_without_all_its_voters() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let slots = [SlotSpan { first: 0, last: 0 }];
    let call = |shard, slots: &[SlotSpan]| SplitShardRequest {
        shard,
        slots: slots.to_vec(),
        dry_run: false,
    };
    let row = eventually("the map says", || async {
        let map = client.cluster_map().await.ok()?;
        map.shards.into_iter().find(|row| row.shard == 1)
    })
    .await;
    // What can never be is said at once.
    for (shard, slots) in [
        (1, &row.slots[..]),
        (2, &slots[..]),
        (7, &slots[..]),
        (0, &slots[..]),
    ] {
        let refused = client.split_shard(call(shard, slots)).await;
        let refused = refused.expect_err("it cannot be");
        assert!(!refused.is_retryable(), "{refused}");
    }
    assert!(client.split_shard(call(1, &[])).await.is_err());
    // Nor does one begin that would have to wait.
    trio.nodes[2].take().unwrap().stop(Signal::KILL);
    let first = vec![SlotSpan {
        first: row.slots[0].first,
        last: row.slots[0].first,
    }];
    let refused = eventually("it is refused", || async {
        match client.split_shard(call(1, &first)).await {
            Err(error) if error.is_retryable() => None,
            other => Some(other.expect_err("a voter is away")),
        }
    })
    .await;
    assert!(refused.0.message.contains("node 3"), "{refused}");
    assert_eq!(client.shard_splits().await.expect("told"), []);
    revive(&mut trio, dir.path(), 2);
    let began = ask(&client, &call(1, &first)).await;
    over(&trio, &client, &began).await;
    // What is done is done.
    let again = client.split_shard(call(1, &first)).await.expect("done");
    assert_eq!((again.to, again.done), (began.0, true));
    stop(trio);
}
