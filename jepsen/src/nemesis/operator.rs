//! Faults that are none: what an operator does while people chat.

use std::time::Duration;

use anyhow::Context as _;
use mailbox_client::{Client, v1};
use mailbox_cluster::Node;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _, SliceRandom as _};
use tokio::time::{Instant, sleep};

use super::install::{Done, skipped};
use super::{Kind, Stage};
use crate::history::Installation;

/// Pause between two looks at what is under way.
const POLL: Duration = Duration::from_millis(200);

/// An orderly stop may take so long.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// A node that was removed is to end so soon.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Waits until something is so, for `within` at most; whether it is.
async fn until<F: Future<Output = anyhow::Result<bool>>>(
    within: Duration,
    mut is: impl FnMut() -> F,
) -> anyhow::Result<bool> {
    let end = Instant::now() + within;
    loop {
        let found = is().await;
        if matches!(found, Ok(true)) {
            return Ok(true);
        }
        if Instant::now() >= end {
            return found;
        }
        // Nobody may say just now.
        sleep(POLL).await;
    }
}

/// What has not ended in time goes on behind the next fault; whether it has done anything yet nobody knows.
fn ended(in_time: bool, what: &str) -> Done {
    Ok(if in_time {
        Installation::Installed
    } else {
        Installation::Indeterminate(format!("{what} goes on"))
    })
}

/// The shards that have slots.
async fn shards(client: &Client) -> anyhow::Result<Vec<v1::MapShard>> {
    let map = client.cluster_map().await.context("ask for the map")?;
    let shards = map.shards.into_iter();
    Ok(shards.filter(|shard| !shard.slots.is_empty()).collect())
}

fn slots(shard: &v1::MapShard) -> impl Iterator<Item = u32> {
    shard.slots.iter().flat_map(|span| span.first..=span.last)
}

/// What [`Kind::is_operators`]. It may be begun while a fault stands, so it is asked for until the cluster takes it.
pub(super) async fn operate(
    kind: Kind,
    client: &Client,
    owners: &[u64],
    hold: Duration,
    rng: &mut StdRng,
) -> Done {
    let end = Instant::now() + hold;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let done = match kind {
            Kind::TransferLeader => transfer_leader(client, left, rng).await,
            Kind::MoveSlot => move_slot(client, owners, left, rng).await,
            Kind::SplitMerge => split_and_merge(client, owners, left, rng).await,
            _ => anyhow::bail!("{} is not asked for", kind.name()),
        };
        let is_asked = matches!(
            done,
            Ok(Installation::Installed | Installation::Indeterminate(_))
        );
        if is_asked || Instant::now() >= end {
            return done;
        }
        sleep(POLL).await;
    }
}

pub(crate) async fn transfer_leader(client: &Client, hold: Duration, rng: &mut StdRng) -> Done {
    let shards = shards(client).await?;
    let shard = shards.iter().filter(|shard| shard.leader != 0).choose(rng);
    let Some(shard) = shard else {
        return skipped("no shard has a leader");
    };
    let voters = shard.replicas.iter().filter(|replica| replica.voter);
    let others = voters.filter(|replica| replica.node != shard.leader);
    let Some(to) = others.choose(rng) else {
        return skipped("there is nobody else");
    };
    client
        .transfer_leader(shard.shard, to.node)
        .await
        .with_context(|| format!("hand shard {} to node {}", shard.shard, to.node))?;
    sleep(hold).await;
    Ok(Installation::Installed)
}

/// The shards that can give slots away, those that somebody has a timeline in first.
fn givers<'a>(
    shards: &'a [v1::MapShard],
    owned: &'a [u32],
    rng: &mut StdRng,
) -> Vec<(&'a v1::MapShard, Vec<u32>)> {
    let mut givers: Vec<_> = shards
        .iter()
        .filter(|shard| slots(shard).count() > 1)
        .map(|shard| {
            let slots = slots(shard).filter(|slot| owned.contains(slot));
            (shard, slots.collect::<Vec<_>>())
        })
        .collect();
    givers.shuffle(rng);
    givers.sort_by_key(|(_, owned)| owned.is_empty());
    givers
}

/// The slots of the timelines that these own.
fn owned(client: &Client, owners: &[u64]) -> Vec<u32> {
    let owners = owners.iter();
    owners.map(|it| client.slot_of_owner(*it)).collect()
}

/// What moves is somebody's of `owners`.
pub(crate) async fn move_slot(
    client: &Client,
    owners: &[u64],
    hold: Duration,
    rng: &mut StdRng,
) -> Done {
    let (shards, owned) = (shards(client).await?, owned(client, owners));
    let givers = givers(&shards, &owned, rng);
    let Some((from, owned)) = givers.first() else {
        return skipped("no shard has slots to give");
    };
    let others = shards.iter().filter(|shard| shard.shard != from.shard);
    let (Some(to), Some(slot)) = (others.choose(rng), owned.choose(rng)) else {
        return skipped("there is one shard only, or no slot with a timeline");
    };
    let call = v1::MoveSlotRequest {
        slot: *slot,
        to: to.shard,
        dry_run: false,
    };
    client
        .move_slot(call)
        .await
        .with_context(|| format!("move slot {slot} to shard {}", to.shard))?;
    let gone = || async { Ok(client.slot_moves().await?.is_empty()) };
    ended(until(hold, gone).await?, "the move of a slot")
}

pub(crate) async fn split_and_merge(
    client: &Client,
    owners: &[u64],
    hold: Duration,
    rng: &mut StdRng,
) -> Done {
    let (shards, owned) = (shards(client).await?, owned(client, owners));
    let givers = givers(&shards, &owned, rng);
    let Some((from, _)) = givers.first() else {
        return skipped("no shard has slots to give");
    };
    // Which half, the cluster says.
    let mut call = v1::SplitShardRequest {
        shard: from.shard,
        slots: Vec::new(),
        dry_run: true,
    };
    let half = client.split_shard(call.clone()).await;
    call.slots = half.context("ask for a half")?.slots;
    call.dry_run = false;
    let split = client
        .split_shard(call)
        .await
        .with_context(|| format!("split shard {}", from.shard))?;
    let end = Instant::now() + hold;
    let gone = || async { Ok(client.shard_splits().await?.is_empty()) };
    if !until(hold, gone).await? {
        return ended(false, "the split of a shard");
    }
    let call = v1::MergeShardRequest {
        shard: split.to,
        into: from.shard,
        dry_run: false,
    };
    client
        .merge_shard(call)
        .await
        .with_context(|| format!("merge shard {} into {}", split.to, from.shard))?;
    let gone = || async { Ok(client.shard_merges().await?.is_empty()) };
    let left = end.saturating_duration_since(Instant::now());
    ended(until(left, gone).await?, "the merge of a shard")
}

/// One more node, and one less.
pub(super) async fn replace_node(stage: &mut Stage<'_>, hold: Duration, rng: &mut StdRng) -> Done {
    let end = Instant::now() + hold;
    let old: Vec<u64> = stage.cluster.nodes().iter().map(Node::id).collect();
    stage.join(hold).await?;
    let Some(gone) = old.choose(rng).copied() else {
        return skipped("there is no node");
    };
    let client = stage.client.clone();
    let emptied = empty(&client, gone, end).await;
    if !matches!(emptied, Ok(true)) {
        // Taken back, or the next replacement would find two nodes less.
        client
            .set_standing(gone, v1::NodeStanding::Member)
            .await
            .with_context(|| format!("take node {gone} back"))?;
        return ended(emptied?, "the move of replicas");
    }
    remove(&client, gone).await?;
    let ended = stage.cluster.forget(gone, GONE_WITHIN).await;
    if ended.is_err() {
        // It must not be started again: it would be refused, and rightly.
        stage.cluster.discard(gone)?;
    }
    stage.ground.abandon(gone);
    stage.gateways.set(stage.cluster);
    Ok(match ended {
        Ok(()) => Installation::Installed,
        Err(error) => Installation::Indeterminate(format!("{error:#}")),
    })
}

/// Each node in turn, stopped in order and started by the other build; the next time all are brought back.
pub(super) async fn upgrade(stage: &mut Stage<'_>, hold: Duration) -> Done {
    let end = Instant::now() + hold;
    let own = stage.cluster.binary().to_owned();
    let Some(other) = stage.other_build.replace(own) else {
        stage.other_build = None;
        return skipped("there is no other build: --other-mailboxd says where");
    };
    stage.cluster.set_binary(&other);
    for node in stage.cluster.nodes() {
        node.stop(STOP_WITHIN).await?;
        node.stop_gateway(STOP_WITHIN).await?;
        node.set_binary(&other);
        node.start()?;
        node.start_gateway()?;
        let left = end.saturating_duration_since(Instant::now());
        stage.cluster.wait_ready(left).await?;
    }
    Ok(Installation::Installed)
}

/// Has a node emptied, and takes it back, whether it was empty by then or not.
pub(crate) async fn empty_for_a_while(
    client: &Client,
    nodes: &[u64],
    hold: Duration,
    rng: &mut StdRng,
) -> Done {
    let Some(node) = nodes.choose(rng) else {
        return skipped("there is no node");
    };
    let emptied = empty(client, *node, Instant::now() + hold).await;
    client
        .set_standing(*node, v1::NodeStanding::Member)
        .await
        .with_context(|| format!("take node {node} back"))?;
    ended(emptied?, "the move of replicas")
}

/// Takes an empty node out of the cluster.
pub(super) async fn remove(client: &Client, node: u64) -> anyhow::Result<()> {
    let removed = client.remove_node(node).await;
    if removed.is_err() && !is_removed(client, node).await? {
        removed.with_context(|| format!("remove node {node}"))?;
    }
    Ok(())
}

/// Has a node emptied; whether it was in time.
pub(super) async fn empty(client: &Client, node: u64, end: Instant) -> anyhow::Result<bool> {
    client
        .set_standing(node, v1::NodeStanding::Draining)
        .await
        .with_context(|| format!("drain node {node}"))?;
    let is_empty = || async {
        let map = client.cluster_map().await?;
        let mut replicas = map.shards.iter().flat_map(|shard| &shard.replicas);
        Ok(!replicas.any(|replica| replica.node == node))
    };
    until(end.saturating_duration_since(Instant::now()), is_empty).await
}

/// Whether the cluster has taken a node out, as its map says.
async fn is_removed(client: &Client, node: u64) -> anyhow::Result<bool> {
    let map = client.cluster_map().await.context("ask for the map")?;
    let removed = v1::NodeStanding::Removed as i32;
    Ok(map
        .nodes
        .iter()
        .any(|it| it.node == node && it.standing == removed))
}

/// Waits until nothing is on the move any more, and as long as there is time until nothing is to be moved. If replicas
/// or leaders are moved still when there is none left, that is a doubt: it is given.
///
/// # Errors
/// Slots or shards are on the move still, or nobody says.
pub(crate) async fn wait_still(
    client: &Client,
    within: Duration,
) -> anyhow::Result<Option<String>> {
    let end = Instant::now() + within;
    loop {
        let (moving, steps) = (moving(client).await, steps(client).await);
        if matches!((&moving, &steps), (Ok(None), Ok(steps)) if steps.is_empty()) {
            return Ok(None);
        }
        if Instant::now() < end {
            sleep(POLL).await;
            continue;
        }
        if let Some(what) = moving? {
            anyhow::bail!("{what} after {within:?}");
        }
        let steps = steps?;
        return Ok(Some(format!(
            "{} steps of the placement are left after {within:?}, {:?} among them",
            steps.len(),
            steps.first()
        )));
    }
}

/// Slots and shards that are on the move, if any are.
async fn moving(client: &Client) -> anyhow::Result<Option<String>> {
    let counts = [
        ("slots move", client.slot_moves().await?.len()),
        ("shards are split", client.shard_splits().await?.len()),
        ("shards are merged", client.shard_merges().await?.len()),
    ];
    let first = counts.into_iter().find(|(_, count)| *count > 0);
    Ok(first.map(|(what, count)| format!("{count} {what} still")))
}

/// Steps of the placement under way, and those that it would take next.
async fn steps(client: &Client) -> anyhow::Result<Vec<v1::PlacementStep>> {
    let running = client.steps().await?.running;
    Ok([running, client.plan_steps(Vec::new()).await?.steps].concat())
}
