//! Tells openraft of flushes, and has the log purged behind them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::WaitError;
use tokio::sync::watch;

use crate::children::Children;
use crate::filling::Filling;
use crate::kept_log::{KeptLog, kept_min, too_many};
use crate::replica::{Raft, Shared, index};
use crate::state_machine::Applier;
use crate::types::LogId;

/// How often a leader looks how far a follower is that it fills.
const FILLING_LOOK: Duration = Duration::from_millis(100);
/// How long openraft may take to take note of a flush.
const TOLD_WAIT: Duration = Duration::from_secs(1);

/// By replica, what it is known to have.
type Replication = BTreeMap<u64, Option<LogId>>;

/// Tells openraft of every flush, and has what is in files purged; but not what a follower that is being filled needs
/// next, nor what one needs that has not split yet.
pub(crate) struct Announcer {
    raft: Raft,
    filling: Arc<Filling>,
    children: Arc<Children>,
    applier: Arc<Applier>,
    /// Entries kept behind a flush, for followers that lag.
    entries_kept: u64,
}

impl Announcer {
    pub(crate) fn new(
        raft: &Raft,
        filling: Arc<Filling>,
        shared: &Shared,
        applier: &Arc<Applier>,
    ) -> Self {
        Announcer {
            raft: raft.clone(),
            filling,
            children: shared.children.clone(),
            applier: applier.clone(),
            entries_kept: shared.options.log_entries_kept,
        }
    }

    pub(crate) async fn run(self, mut flushed: watch::Receiver<Option<mailbox_engine::LogId>>) {
        let (engine, mut kept) = (&self.applier.engine, KeptLog::default());
        while flushed.changed().await.is_ok() {
            let upto = loop {
                // The newest one: it is what openraft is told of.
                let upto = flushed.borrow_and_update().map_or(0, |id| id.index);
                let replication = self.replication();
                let matched = |node| Some(index(*replication.as_ref()?.get(&node)?));
                if self.filling.lets_go(upto, matched) && self.children.let_go(engine) {
                    break upto;
                }
                tokio::time::sleep(FILLING_LOOK).await;
            };
            // One look serves both: what may go where this node leads is too much where it does not.
            let replication = self.replication();
            let kept_min = kept_min(engine.stored_bytes(), replication.is_some());
            let spare = kept.flushed(upto, self.applier.log.appended_bytes(), kept_min);
            #[cfg(feature = "planted")]
            let spare =
                spare.or_else(|| mailbox_planted::is("purge-before-snapshot").then_some(upto));
            let told = self.raft.trigger().snapshot().await;
            if told.is_err()
                || !self
                    .purge(upto, spare, replication.unwrap_or_default())
                    .await
            {
                return;
            }
        }
    }

    /// Of the followers, if this node leads.
    fn replication(&self) -> Option<Replication> {
        self.raft.metrics().borrow_watched().replication.clone()
    }

    /// Purges entries that are too many behind a flush up to `flushed`, and those that need not be kept and that no
    /// follower lacks, as far as is known here. False once the replica has stopped.
    async fn purge(&self, flushed: u64, spare: Option<u64>, replication: Replication) -> bool {
        let spare = match (spare, replication.into_values().min()) {
            (Some(spare), None) => Some(spare),
            (Some(spare), Some(Some(matched))) => Some(spare.min(matched.index)),
            // Of one follower nothing is known.
            (Some(_), Some(None)) | (None, _) => None,
        };
        let purged = self.raft.metrics().borrow_watched().purged;
        let purged = purged.map(|id| id.index);
        let Some(upto) = too_many(flushed, self.entries_kept, purged).max(spare) else {
            return true;
        };
        // Nothing goes beyond the last flush that openraft knows of.
        let told = self.raft.wait(Some(TOLD_WAIT));
        let told = told.metrics(|it| index(it.snapshot) >= upto, "it knows of the flush");
        if let Err(WaitError::ShuttingDown) = told.await {
            return false;
        }
        self.raft.trigger().purge_log(upto).await.is_ok()
    }
}
