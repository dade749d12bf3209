//! `mailbox-bench grow`: nodes come and go under load.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use mailbox_client::Client;
use mailbox_client::v1::NodeStanding;
use serde::Serialize;

use super::cluster::Spawned;
use super::phases::{Course, CourseArgs, Phases};
use super::report::round;
use super::rest;
use crate::output::grouped;

/// Bytes of snapshots that a node has received.
const RECEIVED: &str = "mailbox_raft_snapshot_received_bytes_total";
/// How long a node may take until it serves, or until it is gone.
const NODE_WITHIN: Duration = Duration::from_secs(60);
/// How long all moves of one kind may take.
const MOVES_WITHIN: Duration = Duration::from_secs(1800);

/// One run. README.md says how each figure is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    course: Course,
    grow: Moves,
    shrink: Moves,
}

/// What it took to bring all replicas and leaders to where they should be.
#[derive(Debug, Clone, Copy, Serialize)]
struct Moves {
    seconds: f64,
    snapshot_bytes: u64,
    seconds_per_gb: Option<f64>,
}

impl Moves {
    fn new(took: Duration, snapshot_bytes: u64) -> Self {
        let gb = snapshot_bytes as f64 / 1e9;
        let seconds = took.as_secs_f64();
        Self {
            seconds: round(seconds, 1),
            snapshot_bytes,
            seconds_per_gb: (snapshot_bytes > 0).then(|| round(seconds / gb, 1)),
        }
    }

    fn human(&self) -> String {
        format!(
            "{:.1} s, {} bytes in snapshots, {:.1} s per GB",
            self.seconds,
            grouped(self.snapshot_bytes),
            self.seconds_per_gb.unwrap_or_default()
        )
    }
}

impl Report {
    /// Nothing failed and nothing is lost.
    pub(super) fn is_good(&self) -> bool {
        self.course.is_good()
    }

    /// The report in words.
    pub(super) fn human(&self) -> String {
        let mut lines = self.course.human();
        lines.push(format!("grow         {}", self.grow.human()));
        lines.push(format!("shrink       {}", self.shrink.human()));
        lines.join("\n")
    }
}

pub(super) async fn run(args: &CourseArgs) -> anyhow::Result<Report> {
    args.require_three()?;
    let mut spawned = Spawned::start(&args.spawn, 3, false).await?;
    let client = spawned.cluster.client().await?;
    let mut phases = Phases::start(&client, &args.load).await?;
    phases.calm("calm on 3").await?;
    phases.enter("grow").await?;
    let grow = grow(&mut spawned, &client).await?;
    phases.calm("calm on 5").await?;
    phases.enter("shrink").await?;
    let shrink = shrink(&mut spawned, &client).await?;
    phases.calm("calm again").await?;
    let course = phases.finish(&spawned).await?;
    spawned.stop().await?;
    Ok(Report {
        course,
        grow,
        shrink,
    })
}

async fn received(spawned: &Spawned) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for node in spawned.cluster.nodes() {
        bytes += node.metric(RECEIVED).await?.unwrap_or(0);
    }
    Ok(bytes)
}

async fn grow(spawned: &mut Spawned, client: &Client) -> anyhow::Result<Moves> {
    let before = received(spawned).await?;
    let begun = Instant::now();
    for _ in 0..2 {
        spawned.cluster.join(NODE_WITHIN).await?;
    }
    rest::wait(client, 5, MOVES_WITHIN).await?;
    let took = begun.elapsed();
    Ok(Moves::new(took, received(spawned).await? - before))
}

async fn shrink(spawned: &mut Spawned, client: &Client) -> anyhow::Result<Moves> {
    let mut bytes = 0;
    let begun = Instant::now();
    for id in [1, 2] {
        let before = received(spawned).await?;
        client
            .set_standing(id, NodeStanding::Draining)
            .await
            .with_context(|| format!("drain node {id}"))?;
        rest::wait_empty(client, id, MOVES_WITHIN).await?;
        // The node that goes takes its count along: it got nothing meanwhile.
        bytes += received(spawned).await?.saturating_sub(before);
        client
            .remove_node(id)
            .await
            .with_context(|| format!("remove node {id}"))?;
        spawned.cluster.forget(id, NODE_WITHIN).await?;
    }
    rest::wait(client, 3, MOVES_WITHIN).await?;
    Ok(Moves::new(begun.elapsed(), bytes))
}
