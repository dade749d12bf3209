//! What a cluster costs while nobody uses it: CPU, memory and messages of many shards at rest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::cluster::{SpawnArgs, Spawned};
use super::report::round;
use crate::output::grouped;

/// Requests that a node has sent to others.
const PEER_MESSAGES: &str = "mailbox_raft_peer_messages_total";
/// Shards that a node leads, one series each.
const IS_LEADER: &str = "mailbox_raft_is_leader";
/// The meta shard, which every cluster has beside the shards that it was asked to have.
const META: u64 = 1;
/// How often leaders are counted until every shard has one.
const LEADERS_POLL: Duration = Duration::from_millis(100);

/// Start a cluster of many shards, leave it alone and measure what it costs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    spawn: SpawnArgs,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seconds of rest before anything is measured
    #[arg(long, value_name = "S", default_value_t = 10)]
    settle: u64,
}

impl Args {
    /// What the command line would say.
    pub(super) fn new(spawn: SpawnArgs, seconds: u64, settle: u64) -> Self {
        Self {
            spawn,
            seconds,
            settle,
        }
    }
}

/// One run. README.md says how each figure is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    nodes: u64,
    shards: u64,
    seconds: f64,
    ready_s: f64,
    leaders: Vec<u64>,
    cpu_percent: f64,
    cpu_us_per_replica_s: f64,
    rss_mb: f64,
    rss_mb_per_node: Vec<f64>,
    peer_messages_per_s: f64,
    fsyncs_per_s: Option<f64>,
    written_bytes_per_s: f64,
}

impl Report {
    /// The report in words.
    pub(super) fn human(&self) -> String {
        let lines = [
            format!(
                "{} node(s), {} shard(s), at rest for {:.0} s",
                self.nodes, self.shards, self.seconds
            ),
            format!(
                "ready      {:.1} s until every shard had a leader; led by each node: {:?}",
                self.ready_s, self.leaders
            ),
            format!(
                "cpu        {:.2} % of one core, all nodes; {:.1} us/s for each replica",
                self.cpu_percent, self.cpu_us_per_replica_s
            ),
            format!(
                "memory     {:.0} MB, all nodes: {:?}",
                self.rss_mb, self.rss_mb_per_node
            ),
            format!(
                "messages   {:.0} requests/s between nodes",
                self.peer_messages_per_s
            ),
            format!(
                "written    {} bytes/s, {} fsyncs/s",
                grouped(self.written_bytes_per_s as u64),
                self.fsyncs_per_s.unwrap_or_default()
            ),
        ];
        lines.join("\n")
    }
}

/// What the nodes have used so far.
struct Used {
    cpu: Duration,
    messages: u64,
    fsyncs: Option<u64>,
    written: u64,
}

async fn used(spawned: &Spawned) -> anyhow::Result<Used> {
    let mut messages = 0;
    for node in spawned.cluster.nodes() {
        messages += node.metric(PEER_MESSAGES).await?.unwrap_or(0);
    }
    let usage = spawned.usage().await?;
    Ok(Used {
        cpu: Duration::from_micros(usage.cpu_us),
        messages,
        fsyncs: usage.fsyncs,
        written: usage.written_bytes,
    })
}

async fn leaders(spawned: &Spawned) -> anyhow::Result<Vec<u64>> {
    let mut leaders = Vec::new();
    for node in spawned.cluster.nodes() {
        leaders.push(node.metric(IS_LEADER).await?.unwrap_or(0));
    }
    Ok(leaders)
}

pub(super) async fn run(args: Args) -> anyhow::Result<Report> {
    let Some(nodes) = args.spawn.spawn else {
        bail!("only a cluster that the bench spawned is known to be at rest: say --spawn N");
    };
    let shards = u64::from(args.spawn.shards);
    let spawned = Spawned::start(&args.spawn, nodes, false).await?;
    let ready = spawned.started_in;
    let looking = Instant::now();
    let leaders = loop {
        let leaders = leaders(&spawned).await?;
        if leaders.iter().sum::<u64>() == shards + META {
            break leaders;
        }
        tokio::time::sleep(LEADERS_POLL).await;
    };
    let ready = ready + looking.elapsed();
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    // Reading the metrics costs the nodes something: it is outside of what is measured.
    let before = used(&spawned).await?;
    let (begin, cpu_before) = (Instant::now(), spawned.cluster.cpu_time());
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let cpu = spawned.cluster.cpu_time().saturating_sub(cpu_before);
    let seconds = begin.elapsed().as_secs_f64();
    let rss: Vec<u64> = spawned
        .cluster
        .nodes()
        .iter()
        .map(mailbox_cluster::Node::rss_bytes)
        .collect();
    let after = used(&spawned).await.context("read the nodes' metrics")?;
    tracing::debug!(cpu = ?after.cpu.saturating_sub(before.cpu), "with the reading of the metrics");
    spawned.stop().await?;
    let per_s = |total: u64| round(total as f64 / seconds, 1);
    let mb = |bytes: u64| round(bytes as f64 / 1e6, 1);
    let replicas = shards as f64 * nodes as f64;
    Ok(Report {
        nodes: nodes as u64,
        shards,
        seconds: round(seconds, 1),
        ready_s: round(ready.as_secs_f64(), 2),
        leaders,
        cpu_percent: round(cpu.as_secs_f64() / seconds * 100.0, 2),
        cpu_us_per_replica_s: round(cpu.as_secs_f64() * 1e6 / seconds / replicas, 1),
        rss_mb: mb(rss.iter().sum()),
        rss_mb_per_node: rss.into_iter().map(mb).collect(),
        peer_messages_per_s: per_s(after.messages.saturating_sub(before.messages)),
        fsyncs_per_s: after
            .fsyncs
            .zip(before.fsyncs)
            .map(|(after, before)| per_s(after.saturating_sub(before))),
        written_bytes_per_s: per_s(after.written.saturating_sub(before.written)),
    })
}
