//! What the executor is doing and did last, for operators. It decides nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use mailbox_engine::ShardId;
use mailbox_placement::Step;
use parking_lot::Mutex;

use super::step::StepFault;
use crate::metrics::PlacementMetrics;

/// Steps that are remembered after their end.
const DONE_MAX: usize = 64;

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) step: Step,
    /// By this node's wall clock: shown, never reckoned with.
    pub(crate) began_ms: u64,
    /// 0 while it runs.
    pub(crate) ended_ms: u64,
    /// Why it did not come to its end.
    pub(crate) fault: String,
}

/// A copy of the journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Steps under way.
    pub(crate) running: Vec<Entry>,
    /// Shards whose map and members are being brought together.
    pub(crate) following: Vec<ShardId>,
    /// Steps that ended, the newest first.
    pub(crate) done: Vec<Entry>,
    /// Why nothing is planned, if so.
    pub(crate) fault: Option<String>,
}

#[derive(Debug, Default)]
struct Pages {
    running: BTreeMap<ShardId, Entry>,
    /// Shards whose map follows, beside those with a step.
    following: BTreeSet<ShardId>,
    /// The newest first.
    done: VecDeque<Entry>,
    fault: Option<String>,
}

/// Kept in memory by whoever executes.
#[derive(Debug)]
pub(crate) struct Journal {
    pages: Mutex<Pages>,
    metrics: PlacementMetrics,
}

impl Journal {
    pub(crate) fn new(metrics: PlacementMetrics) -> Self {
        Self {
            pages: Mutex::default(),
            metrics,
        }
    }

    /// What was written so far.
    pub(crate) fn read(&self) -> Reading {
        let pages = self.pages.lock();
        Reading {
            running: pages.running.values().cloned().collect(),
            following: pages.following.iter().copied().collect(),
            done: pages.done.iter().cloned().collect(),
            fault: pages.fault.clone(),
        }
    }

    /// Shards that something is being done to.
    pub(super) fn busy(&self) -> BTreeSet<ShardId> {
        let pages = self.pages.lock();
        let running = pages.running.keys().copied();
        running.chain(pages.following.iter().copied()).collect()
    }

    /// Leader transfers under way.
    pub(super) fn transfers(&self) -> usize {
        let pages = self.pages.lock();
        let steps = pages.running.values().map(|entry| &entry.step);
        steps
            .filter(|step| matches!(step, Step::TransferLeader { .. }))
            .count()
    }

    pub(super) fn follows(&self, shard: ShardId) {
        self.pages.lock().following.insert(shard);
    }

    pub(super) fn followed(&self, shard: ShardId, done: Result<bool, &str>) {
        self.pages.lock().following.remove(&shard);
        match done {
            Ok(true) => _ = self.metrics.map_repairs.inc(),
            Ok(false) => {}
            Err(error) => {
                tracing::info!(
                    shard = shard.0,
                    error,
                    "placement: the map does not follow yet"
                );
            }
        }
    }

    pub(super) fn begins(&self, step: Step) {
        let shard = ShardId(step.shard().0);
        tracing::info!(shard = shard.0, step = %name_of(&step), ?step, "placement: a step begins");
        let entry = Entry {
            step,
            began_ms: wall_clock_ms(),
            ended_ms: 0,
            fault: String::new(),
        };
        let mut pages = self.pages.lock();
        pages.running.insert(shard, entry);
        self.metrics.set_running(pages.running.len());
    }

    pub(super) fn ended(&self, step: Step, done: &Result<(), StepFault>) {
        let (shard, name) = (step.shard().0, name_of(&step));
        let outcome = match done {
            Ok(()) => {
                tracing::info!(shard, step = name, "placement: a step is done");
                "done"
            }
            Err(StepFault::Stale(_) | StepFault::Unlike) => "stale",
            Err(StepFault::Call(_) | StepFault::Panicked) => "failed",
        };
        self.metrics.count_step(name, outcome);
        let mut pages = self.pages.lock();
        let Some(mut entry) = pages.running.remove(&ShardId(shard)) else {
            return;
        };
        self.metrics.set_running(pages.running.len());
        entry.ended_ms = wall_clock_ms();
        if let Err(fault) = done {
            tracing::warn!(shard, step = name, %fault, "placement: a step did not come to its end");
            entry.fault = fault.to_string();
        }
        pages.done.push_front(entry);
        pages.done.truncate(DONE_MAX);
    }

    /// Whether the last round could look and plan.
    pub(super) fn rounds(&self, fault: Option<String>) {
        let mut pages = self.pages.lock();
        if let Some(fault) = &fault {
            self.metrics.faults.inc();
            if pages.fault.as_ref() != Some(fault) {
                tracing::warn!(%fault, "placement: nothing can be planned");
            }
        }
        pages.fault = fault;
    }

    /// Another node executes now: what was under way here is its to find.
    pub(super) fn forget_running(&self) {
        let mut pages = self.pages.lock();
        pages.running.clear();
        pages.following.clear();
        pages.fault = None;
        self.metrics.set_running(0);
    }
}

/// A step's name, in log lines and metrics.
pub(crate) fn name_of(step: &Step) -> &'static str {
    match step {
        Step::AddLearner { .. } => "add_learner",
        Step::PromoteReplace { .. } => "promote_replace",
        Step::TransferLeader { .. } => "transfer_leader",
        Step::RemoveReplica { .. } => "remove_replica",
    }
}

fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
