//! `mailbox-bench restart`: nodes are restarted and killed under load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, value_parser};
use futures_util::future::try_join_all;
use mailbox_client::Client;
use mailbox_client::v1::StateHashRequest;
use mailbox_cluster::Node;
use serde::Serialize;

use super::cluster::Spawned;
use super::phases::{Course, CourseArgs, Phases};
use super::rest;
use crate::chaos;
use crate::output::grouped;

/// How long a node may take to stop, and to serve again.
const NODE_WITHIN: Duration = Duration::from_secs(60);
/// How long a killed leader is down: about as long as it takes the others to find out by its silence; shorter, as where
/// a supervisor starts it again; longer.
const DOWN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_millis(100),
    Duration::from_secs(3),
];
/// A replica that is so near to its leader has caught up, in entries.
const LAG_MAX: u64 = 1_000;
/// What a node with a full memtable has that is in no file: a spawned one begins its flush at 47 MB.
const FULL: u64 = 43_000_000;
/// How long memtables may take until they are full.
const FULL_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(50);

/// What to do.
#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    course: CourseArgs,
    /// How often the leader of most shards is killed; it is started again after 1, 0.1 and 3 seconds in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1000), help_heading = "Load")]
    kills: u32,
}

/// One run. README.md says how each figure is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    course: Course,
    /// Data on disk of all nodes when they were all killed.
    stored_bytes: u64,
    /// What their memtables held then, which had to be applied again.
    unflushed_bytes: u64,
    /// What the emptiest node's held.
    unflushed_min_bytes: u64,
    /// From the start of the processes until every shard served.
    serves_again_ms: u64,
}

impl Report {
    /// Nothing failed and nothing is lost.
    pub(super) fn is_good(&self) -> bool {
        self.course.is_good()
    }

    /// The report in words.
    pub(super) fn human(&self) -> String {
        let mut lines = self.course.human();
        lines.push(format!(
            "all killed   with {} bytes stored and {} in memtables, {} at least on each node; every shard serves {} ms after the start",
            grouped(self.stored_bytes),
            grouped(self.unflushed_bytes),
            grouped(self.unflushed_min_bytes),
            grouped(self.serves_again_ms)
        ));
        lines.join("\n")
    }
}

pub(super) async fn run(args: &RestartArgs) -> anyhow::Result<Report> {
    let course = &args.course;
    course.require_three()?;
    let spawned = Spawned::start(&course.spawn, 3, false).await?;
    let client = spawned.cluster.client().await?;
    let mut phases = Phases::start(&client, &course.load).await?;
    phases.calm("calm").await?;
    phases.enter("rolling").await?;
    restart_each(&spawned, &client).await?;
    phases.calm("after it").await?;
    for down in DOWN.iter().cycle().take(args.kills as usize) {
        phases.enter("kill leader").await?;
        kill_leader(&spawned, &client, *down).await?;
        phases.calm("after it").await?;
    }
    phases.enter("fill").await?;
    wait_full(&spawned, &client).await?;
    phases.enter("kill all").await?;
    let stored_bytes = spawned.usage().await?.stored_bytes;
    let unflushed = unflushed(&spawned).await?;
    let serves_again = kill_all(&spawned).await?;
    phases.calm("after it").await?;
    let course = phases.finish(&spawned).await?;
    spawned.stop().await?;
    Ok(Report {
        course,
        stored_bytes,
        unflushed_bytes: unflushed.iter().sum(),
        unflushed_min_bytes: unflushed.iter().copied().min().unwrap_or(0),
        serves_again_ms: u64::try_from(serves_again.as_millis()).unwrap_or(u64::MAX),
    })
}

async fn restart_each(spawned: &Spawned, client: &Client) -> anyhow::Result<()> {
    for node in spawned.cluster.nodes() {
        let status = node.stop(NODE_WITHIN).await?;
        let status = status.with_context(|| format!("node {} did not run", node.id()))?;
        if !status.success() {
            bail!(
                "node {} ended with {status} when it was told to stop",
                node.id()
            );
        }
        node.start()?;
        spawned.cluster.wait_ready(NODE_WITHIN).await?;
        rest::wait_caught_up(client, node.id(), LAG_MAX, NODE_WITHIN).await?;
    }
    Ok(())
}

async fn kill_leader(spawned: &Spawned, client: &Client, down: Duration) -> anyhow::Result<()> {
    let mut most = None;
    for node in spawned.cluster.nodes() {
        let status = client.status(Some(node.address())).await?;
        let leads = status.shards.iter().filter(|shard| shard.role == "leader");
        most = most.max(Some((leads.count(), node.id())));
    }
    let (leads, id) = most.context("there is a node")?;
    let nodes = spawned.cluster.nodes();
    let node = nodes.iter().find(|node| node.id() == id);
    let node = node.context("it is one of them")?;
    node.kill()?;
    eprintln!("killed node {id}, which led {leads} shards; it is down for {down:?}");
    tokio::time::sleep(down).await;
    node.start()?;
    spawned.cluster.wait_ready(NODE_WITHIN).await?;
    rest::wait_caught_up(client, id, LAG_MAX, NODE_WITHIN).await
}

/// Time from the start of the processes until every shard serves.
async fn kill_all(spawned: &Spawned) -> anyhow::Result<Duration> {
    chaos::kill_all(&spawned.cluster).await?;
    let started = Instant::now();
    spawned.cluster.wait_ready(NODE_WITHIN).await?;
    Ok(started.elapsed())
}

/// Ends all memtables at once, so that those of all nodes grow together, and waits until each node's are full or it is
/// clear that they will not be: how full they are is in the report.
async fn wait_full(spawned: &Spawned, client: &Client) -> anyhow::Result<()> {
    let shards = client.cluster_map().await?.shards;
    let cuts = shards.iter().map(|shard| {
        let cut = StateHashRequest {
            shard: shard.shard,
            cut_index: 0,
        };
        client.state_hash(None, cut)
    });
    try_join_all(cuts).await.context("end the memtables")?;
    let begun = Instant::now();
    while unflushed(spawned).await?.iter().any(|bytes| *bytes < FULL) {
        if begun.elapsed() > FULL_WITHIN {
            eprintln!("not every node's memtables are full at the same moment");
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// What each node's memtables hold.
async fn unflushed(spawned: &Spawned) -> anyhow::Result<Vec<u64>> {
    try_join_all(spawned.cluster.nodes().iter().map(unflushed_of)).await
}

async fn unflushed_of(node: &Node) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for name in [
        "mailbox_engine_memtable_bytes",
        "mailbox_engine_frozen_bytes",
    ] {
        bytes += node.metric(name).await?.unwrap_or(0);
    }
    Ok(bytes)
}
