//! A node dies in the middle of its own work, where the environment of its start says: at a failpoint.
//!
//! Only a `mailboxd` that is built with the feature `failpoints` has these points.

use std::time::Duration;

use anyhow::Context as _;
use mailbox_cluster::Node;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::clock::WallClock;
use super::install::{Done, skipped};
use super::{Kind, Stage, operator};
use crate::history::Installation;

/// What a process reads its points from when it starts.
const VARIABLE: &str = "FAILPOINTS";
/// A stop in order takes so long at most, and so does a start.
const WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// A place in the code, and how often it may be passed before the node dies there.
type Point = (&'static str, u32);

const LOG: [Point; 3] = [("log_write", 300), ("log_synced", 300), ("log_purge", 3)];
const APPLY: [Point; 2] = [("apply", 300), ("applied", 300)];
const FLUSH: [Point; 3] = [("build", 4), ("before_ingest", 4), ("after_ingest", 4)];
const LANE: [Point; 3] = [
    ("relay_send", 100),
    ("delivery_propose", 100),
    ("delivery_answer", 100),
];
/// Those that every replica of a shard comes by.
const MOVE: [Point; 6] = [
    ("before_stage", 0),
    ("after_stage", 0),
    ("apply_begin_import", 0),
    ("apply_freeze", 0),
    ("apply_commit_import", 0),
    ("apply_drop", 0),
];

fn points(kind: Kind) -> &'static [Point] {
    match kind {
        Kind::DieInLog => &LOG,
        Kind::DieInApply => &APPLY,
        Kind::DieInFlush => &FLUSH,
        Kind::DieInLane => &LANE,
        _ => &MOVE,
    }
}

impl Stage<'_> {
    /// Restarts a node so that it dies at a point, and waits until it has.
    pub(super) async fn die(
        &mut self,
        kind: Kind,
        target: u64,
        hold: Duration,
        rng: &mut StdRng,
    ) -> Done {
        let node = self.nodes(&[target]).next();
        let node = node.with_context(|| format!("there is no node {target}"))?;
        let binary = self.cluster.binary().to_owned();
        let found = tokio::task::spawn_blocking(move || has_failpoints(&binary)).await;
        if !found.context("look for failpoints")?? {
            return skipped("mailboxd is built without failpoints");
        }
        let Some((point, passes_max)) = points(kind).choose(rng) else {
            return skipped("there is no such point");
        };
        let passes = rng.random_range(0..=*passes_max);
        self.restart_armed(node, point, passes).await?;
        let until = Instant::now() + hold;
        if kind == Kind::DieInLane {
            // One that has just started leads nothing, and what it leads is what sends.
            self.give_leads(target, until).await;
        }
        if kind == Kind::DieInMove {
            // Whatever becomes of it: the node may be in its way.
            tokio::select! {
                moved = operator::move_slot(&self.client, &self.owners, hold, rng) => {
                    tracing::info!(?moved, "moved a slot past {point}");
                }
                () = ended(node) => {}
            }
        }
        if timeout_at(until, ended(node)).await.is_ok() {
            tracing::info!(node = target, "died at {point} after {passes} passes");
            if let Some(words) = other_end(&node.log_tail()) {
                self.deaths
                    .push(format!("node {target} ended by itself: {words}"));
            }
            return Ok(Installation::Installed);
        }
        // It must not die there later.
        node.kill()?;
        skipped(&format!("node {target} did not come by {point}"))
    }

    /// Hands shards to a node for as long as it is there, or until then.
    async fn give_leads(&self, node: u64, until: Instant) {
        while Instant::now() < until {
            let map = self.client.cluster_map().await;
            let shards = map.map(|map| map.shards).unwrap_or_default();
            let voted = shards.iter().filter(|shard| {
                let mut replicas = shard.replicas.iter();
                shard.leader != node && replicas.any(|it| it.node == node && it.voter)
            });
            for shard in voted {
                // It may not have caught up yet, or have died.
                if self.client.transfer_leader(shard.shard, node).await.is_ok() {
                    return;
                }
            }
            sleep(POLL).await;
        }
    }

    /// Only this start is armed.
    async fn restart_armed(&self, node: &Node, point: &str, passes: u32) -> anyhow::Result<()> {
        let clock = self.ground.clock(node.id());
        let own = clock.map_or(Vec::new(), WallClock::environment);
        let mut armed = own.clone();
        armed.push((VARIABLE.into(), dies(point, passes).into()));
        node.stop(WITHIN).await?;
        node.set_environment(armed);
        let started = node.start();
        node.set_environment(own);
        started
    }
}

async fn ended(node: &Node) {
    while node.exit_status().is_none() {
        sleep(POLL).await;
    }
}

/// What a node says that ends by SIGABRT, and not at a point: it then says nothing.
fn other_end(log: &str) -> Option<&str> {
    let words = [
        "panicked at",
        "terminate called",
        "overflowed its stack",
        "memory allocation of",
        "double free",
        "corrupted size",
        "malloc():",
        "Assertion",
    ];
    log.lines()
        .find(|line| words.iter().any(|words| line.contains(words)))
}

/// As the crate `fail` reads it.
fn dies(point: &str, passes: u32) -> String {
    match passes {
        0 => format!("{point}=return"),
        _ => format!("{point}={passes}*off->return"),
    }
}

/// Whether the names of points are in a program: without the feature nothing of them is.
fn has_failpoints(program: &std::path::Path) -> anyhow::Result<bool> {
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let name = LOG[1].0.as_bytes();
    Ok(bytes.windows(name.len()).any(|window| window == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Family;

    #[test]
    fn each_kind_has_points_of_its_own() {
        let kinds = Family::Failpoint.kinds();
        let mut names: Vec<_> = kinds.iter().flat_map(|kind| points(*kind)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count), (17, 17));
    }

    #[test]
    fn a_node_passes_a_point_as_often_as_it_may() {
        assert_eq!(dies("applied", 0), "applied=return");
        assert_eq!(dies("applied", 7), "applied=7*off->return");
    }

    #[test]
    fn who_ends_otherwise_says_so() {
        assert_eq!(other_end("INFO up\nINFO flushed"), None);
        let panic = "INFO up\nthread 'apply' panicked at raft/src/x.rs:1:2:\nno";
        assert!(other_end(panic).unwrap().contains("apply"));
    }

    #[test]
    fn a_program_without_points_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, b"\0applied\0").unwrap();
        assert!(!has_failpoints(&program).unwrap());
        std::fs::write(&program, b"\0log_synced\0").unwrap();
        assert!(has_failpoints(&program).unwrap());
        assert!(has_failpoints(&dir.path().join("none")).is_err());
    }
}
