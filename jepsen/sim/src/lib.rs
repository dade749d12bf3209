//! Clusters in one thread, in simulated time, from a seed: the same seed is the same run, step by step. [`whole`] has whole
//! nodes; this has the engine by itself, and is much faster.
//!
//! What is real is all that decides what a message becomes: procedures, apply, dedup, lanes, memtables, flushes, snapshots
//! and installs of `mailbox-engine`, on its disk in memory that loses what was not ingested. What is modelled is what
//! carries it: a log that a majority has agreed on (`consensus.rs`), the ways between nodes, and who asks (`client.rs`).
//! openraft, the log's files and the network are not in here.
//!
//! ```text
//!  client.rs ──▶ consensus.rs ──▶ mailbox-engine × 3 ──▶ relay.rs ──▶ consensus.rs of the next shard
//!      └──────────── world.rs: what happens next, and when ────────────┘
//!                        │
//!                     history ──▶ the harness's checkers
//! ```
//!
//! A run has two phases. In the first nodes crash and come back, leaders change with entries on their way, answers and
//! deliveries are lost, late, doubled and out of order, logs are purged, and whoever lags gets a snapshot. In the second
//! nothing goes wrong any more, and all must settle: every send is answered, every lane runs dry, all replicas are equal.

pub mod whole;

mod client;
mod consensus;
mod relay;
mod world;

use mailbox_jepsen::checker::{self, Floors, Report};
use mailbox_jepsen::history::History;

/// How a run went.
#[derive(Debug)]
pub struct Run {
    /// What it follows from.
    pub seed: u64,
    /// Things that happened.
    pub steps: u64,
    /// Over all that happened, in its order: equal for equal seeds.
    pub trace: u64,
    /// What was asked and answered.
    pub history: History,
    /// Its judgement; what did not settle is among the violations' words.
    pub report: Report,
    /// Why it did not settle, if so.
    pub stuck: Option<String>,
    /// What there was of what may go wrong.
    pub met: Met,
}

/// What a run has met with.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// Nodes that ended.
    pub crashes: u64,
    /// Of those, in the middle of an ingest.
    pub crashes_in_ingest: u64,
    /// Snapshots that were installed.
    pub installs: u64,
    /// Entries that their leader was deposed over, and that are there all the same.
    pub survived: u64,
    /// Those that are not.
    pub lost: u64,
    /// Sends that were repeated after they were acked.
    pub repeats: u64,
}

impl Run {
    /// What is wrong with it, in words.
    pub fn faults(&self) -> Vec<String> {
        let broken = self.report.violations.iter().map(ToString::to_string);
        let doubts = self.report.doubts.iter().cloned();
        let mut faults: Vec<_> = broken.chain(doubts).collect();
        // Checkers find them in no order.
        faults.sort();
        self.stuck.iter().cloned().chain(faults).collect()
    }
}

/// Runs a seed.
///
/// # Errors
/// When there is no directory for snapshots on their way.
pub fn run(seed: u64) -> anyhow::Result<Run> {
    let mut world = world::World::new(seed)?;
    let stuck = world.run().err().map(|error| format!("{error:#}"));
    world.cut_off();
    let (steps, trace, met) = (world.steps, world.trace(), world.met);
    let history = History {
        ops: world.take_ops(),
    };
    let floors = Floors {
        replicas: if stuck.is_some() { 0 } else { world::NODES },
        ..Floors::default()
    };
    let mut report = checker::check(&history, &floors);
    // Nobody syncs here.
    report.doubts.retain(|doubt| !doubt.contains("devices"));
    if stuck.is_some() {
        // What was not read at the end is no wonder then.
        report.doubts.clear();
    }
    Ok(Run {
        seed,
        steps,
        trace,
        history,
        report,
        stuck,
        met,
    })
}
