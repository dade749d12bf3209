//! When a cluster has come to rest: nothing is on the move, and nothing will be.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mailbox_client::Client;

use crate::survey::Survey;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// See `placement.settle_ms`.
const SETTLE_MS: u64 = 10_000;
/// So many looks in a row must find nothing: a step that ends may bring the next.
const LOOKS: u32 = 4;

/// Waits until every shard is led, the placement has nothing to do and `nodes` nodes answer.
///
/// # Errors
/// When it takes longer, with what is still to be done.
pub(super) async fn wait(client: &Client, nodes: usize, within: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut calm = 0;
    while calm < LOOKS {
        let unrest = unrest(client, nodes).await;
        calm = if unrest.is_ok() { calm + 1 } else { 0 };
        if let Err(error) = unrest
            && begun.elapsed() >= within
        {
            return Err(error.context(format!("the cluster is not at rest after {within:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until a node holds no replica.
///
/// # Errors
/// When it takes longer.
pub(super) async fn wait_empty(client: &Client, node: u64, within: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let map = client.cluster_map().await.context("ask for the map")?;
        let mut replicas = map.shards.iter().flat_map(|shard| &shard.replicas);
        if !replicas.any(|replica| replica.node == node) {
            return Ok(());
        }
        if begun.elapsed() >= within {
            bail!("node {node} is not empty after {within:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An error says what is not at rest.
async fn unrest(client: &Client, nodes: usize) -> anyhow::Result<()> {
    let seen = Survey::take(client).await?;
    let up = seen.nodes().filter(|node| seen.is_up(node.node)).count();
    if up != nodes {
        bail!("{up} nodes answer, not {nodes}");
    }
    let without = seen.map.shards.iter();
    let without = without.filter(|shard| seen.leader_of(shard.shard).is_none());
    match without.count() {
        0 => {}
        count => bail!("{count} shards have no leader"),
    }
    if seen.nodes().any(|node| settles(&seen, node.node)) {
        bail!("a node has just started: leaders may come to it still");
    }
    // While one catches up there is nothing to be done but to wait for it.
    let replicas = seen.map.shards.iter().flat_map(|shard| &shard.replicas);
    let learners = replicas.filter(|replica| !replica.voter).count();
    if learners > 0 {
        bail!("{learners} learners catch up");
    }
    let steps = client.steps().await?;
    let running = steps.running.len() + steps.following.len();
    let planned = client.plan_steps(Vec::new()).await?.steps.len();
    if running > 0 || planned > 0 {
        bail!("{running} steps are under way and {planned} to be done");
    }
    Ok(())
}

/// Whether the placement leaves a node alone because it has started a moment ago, by the default of
/// `placement.settle_ms`.
fn settles(seen: &Survey, node: u64) -> bool {
    let uptime_ms = |node| seen.status_of(node).map_or(0, |status| status.uptime_ms);
    let longest_ms = seen.nodes().map(|node| uptime_ms(node.node)).max();
    let before_ms = longest_ms.unwrap_or(0).saturating_sub(uptime_ms(node));
    uptime_ms(node) < before_ms.min(SETTLE_MS)
}

/// Waits until no replica of a node is more than `lag_max` entries behind its leader.
///
/// # Errors
/// When it takes longer.
pub(super) async fn wait_caught_up(
    client: &Client,
    node: u64,
    lag_max: u64,
    within: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let seen = Survey::take(client).await?;
        let holds = seen.map.shards.iter();
        let mut holds = holds.filter(|shard| shard.replicas.iter().any(|held| held.node == node));
        let near = |lag: Option<u64>| lag.is_some_and(|lag| lag <= lag_max);
        if holds.all(|shard| {
            let shard = shard.shard;
            near(seen.lag(shard, node)) && near(seen.apply_lag(shard, node))
        }) {
            return Ok(());
        }
        if begun.elapsed() >= within {
            bail!("node {node} has not caught up after {within:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
