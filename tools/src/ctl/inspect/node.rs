//! One stopped node: its log, opened for reading only, and a view of its store.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use mailbox_engine::{
    ApplyEntry, ApplyPayload, EngineOptions, Error, LogId, Shard, ShardId, StateHash, Store,
};
use mailbox_raft::{LogEntry, LogInspect, LogPayload};

use super::view::StateView;
use super::{NodeReport, ShardReport};

/// Where a node keeps its log.
const LOG_DIR: &str = "log";
/// Entries applied at a time.
const BATCH_ENTRIES: usize = 256;

/// A verified node.
pub(super) struct OpenNode {
    pub(super) log: LogInspect,
    /// Newest index of each shard that this node knows to be committed.
    pub(super) committed: BTreeMap<ShardId, u64>,
    store: Store,
    view: StateView,
}

impl OpenNode {
    /// Opens and verifies; damaged rows go into the report.
    ///
    /// # Errors
    /// The log or the store cannot be opened at all.
    pub(super) fn open(dir: &Path, report: &mut NodeReport) -> anyhow::Result<Self> {
        let log = LogInspect::open(&dir.join(LOG_DIR)).context("open the log")?;
        report.log_batch = log.batch();
        let mut committed = BTreeMap::new();
        match log.verify() {
            Ok(shards) => {
                for shard in shards {
                    report.log_entries += shard.entries;
                    committed.insert(shard.shard, shard.committed.unwrap_or(0));
                }
            }
            Err(error) => report.fault(format_args!("log: {error}")),
        }
        let view = StateView::of(dir)?;
        let store = match open_store(view.path()) {
            Ok(store) => store,
            Err(error) => bail!("open the store: {}", view.in_original(&error.to_string())),
        };
        let node = Self {
            log,
            committed,
            store,
            view,
        };
        node.verify(report);
        Ok(node.with_applied())
    }

    /// What is applied is committed, whether or not the log has noted it.
    fn with_applied(mut self) -> Self {
        for shard in self.store.shards() {
            let applied = self
                .store
                .shard(shard)
                .and_then(|shard| shard.applied().log_id);
            let committed = self.committed.entry(shard).or_default();
            *committed = applied.map_or(0, |applied| applied.index).max(*committed);
        }
        self
    }

    fn verify(&self, report: &mut NodeReport) {
        for id in self.store.shards() {
            let Some(shard) = self.store.shard(id) else {
                continue;
            };
            let mut found = ShardReport {
                shard: id.0,
                rows: 0,
                messages: 0,
                flushed_index: shard.applied().log_id.map_or(0, |applied| applied.index),
                index: 0,
                state_hash: None,
                hashed_rows: 0,
            };
            match shard.verify(&mut |_rows| {}) {
                Ok(verified) => {
                    (found.rows, found.messages) = (verified.rows, verified.messages);
                    for fault in &verified.faults {
                        report.fault(self.view.in_original(&fault.to_string()));
                    }
                    report.fault_count += verified.fault_count - verified.faults.len() as u64;
                }
                Err(error) => report.fault(self.view.in_original(&error.to_string())),
            }
            report.shards.push(found);
        }
    }

    /// Replays every shard up to its target, with entries of whichever log has them, and puts the
    /// state hashes into the report.
    pub(super) fn hash(
        &self,
        targets: &BTreeMap<ShardId, u64>,
        logs: &[&LogInspect],
        report: &mut NodeReport,
    ) {
        for at in 0..report.shards.len() {
            let id = ShardId(report.shards[at].shard);
            let Some(shard) = self.store.shard(id) else {
                continue;
            };
            let target = targets.get(&id).copied().unwrap_or(0);
            match self.hash_shard(&shard, target, logs) {
                Ok(hash) => {
                    let found = &mut report.shards[at];
                    found.index = hash.applied.index;
                    found.state_hash = Some(format!("{:032x}", hash.hash));
                    found.hashed_rows = hash.rows;
                }
                Err(error) => {
                    let error = self.view.in_original(&format!("{error:#}"));
                    report.fault(format_args!("replay of shard {id}: {error}"));
                }
            }
        }
    }

    fn hash_shard(
        &self,
        shard: &Shard,
        target: u64,
        logs: &[&LogInspect],
    ) -> anyhow::Result<StateHash> {
        // Its own log first: only what it lacks is taken from another node.
        for log in std::iter::once(&self.log).chain(logs.iter().copied()) {
            replay(shard, log, target)?;
        }
        let applied = applied_index(shard);
        if applied != target {
            bail!("index {target} is committed, but no log leads from {applied} to it");
        }
        shard.state_hash_now()?.context("nothing was ever applied")
    }
}

fn open_store(dir: &Path) -> Result<Store, Error> {
    let options = EngineOptions::default();
    match Store::open(dir, options.clone()) {
        // The slot count is a constant of the cluster, stored at bootstrap.
        Err(Error::SlotCount { stored, .. }) => Store::open(
            dir,
            EngineOptions {
                slot_count: stored,
                ..options
            },
        ),
        opened => opened,
    }
}

fn applied_index(shard: &Shard) -> u64 {
    shard.applied().log_id.map_or(0, |applied| applied.index)
}

/// Applies what `log` has between the applied index and `target`.
fn replay(shard: &Shard, log: &LogInspect, target: u64) -> anyhow::Result<()> {
    let first = applied_index(shard) + 1;
    if first > target {
        return Ok(());
    }
    let mut batch = Vec::with_capacity(BATCH_ENTRIES);
    for (next, entry) in (first..=target).zip(log.entries(shard.id(), first)?) {
        let entry = entry?;
        if entry.index != next {
            break;
        }
        batch.push(to_apply(entry));
        if batch.len() == BATCH_ENTRIES {
            apply(shard, &batch)?;
            batch.clear();
        }
    }
    apply(shard, &batch)
}

fn apply(shard: &Shard, batch: &[ApplyEntry]) -> anyhow::Result<()> {
    if !batch.is_empty() {
        shard.apply(batch)?;
    }
    while shard.stalled() {
        let Some(frozen) = shard.freeze() else { break };
        let built = shard.build(&frozen)?;
        shard.ingest(built)?;
    }
    Ok(())
}

fn to_apply(entry: LogEntry) -> ApplyEntry {
    ApplyEntry {
        // The log names leaders by their term only.
        log_id: LogId {
            term: entry.term,
            node: 0,
            index: entry.index,
        },
        payload: match entry.payload {
            LogPayload::Blank => ApplyPayload::Blank,
            LogPayload::Membership(membership) => ApplyPayload::Membership(membership),
            LogPayload::Commands(commands) => ApplyPayload::Commands(commands),
        },
    }
}
