//! Committed entries into the engine, in order, and what follows once they are visible.
//!
//! `purged ≤ flushed ≤ applied ≤ committed`, by index. openraft's "snapshot" is our last flush: what it lets be
//! purged is in files.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fail::fail_point;
use futures_util::{Stream, TryStreamExt};
use mailbox_engine::{
    Applied, ApplyEntry, ApplyPayload, ImportWait, ShardId, SlotId, SlotStanding, StagedInstall,
};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::background::{self, Haste};
use crate::base_thread::{BaseThread, error_chain, report};
use crate::error::Error;
use crate::log::ShardLog;
use crate::outbox::OutboxFeed;
use crate::peers::Peers;
use crate::slot_copy::{Ask, Holder, Rows};
use crate::snapshot::{Received, Snapshot, SnapshotData, SnapshotPace, raft_meta};
use crate::stager::{Patience, Stager, Unstaged};
use crate::status::{AppliedTail, RowsWait};
use crate::traffic::Traffic;
use crate::types::{
    Entry, LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig, decode_stored_membership,
    encode_stored_membership, log_id,
};

/// Entries applied in one call of the engine, by bytes and by count.
const BATCH_BYTES: usize = 512 << 10;
const BATCH_ENTRIES: usize = 256;
/// How often a stalled apply looks again by itself: compaction tells nobody when it has caught up.
const STALL_LOOK: Duration = Duration::from_millis(10);
/// How long rows that a commit needs are waited for before peers are asked, and then again.
const ROWS_ASK: Duration = Duration::from_secs(1);

/// What the state machine shares with the rest of a replica.
pub(crate) struct Applier {
    pub(crate) engine: Arc<mailbox_engine::Shard>,
    pub(crate) log: ShardLog,
    pub(crate) base: Arc<BaseThread>,
    /// The last entry that readers see.
    pub(crate) applied: watch::Sender<Option<LogId>>,
    pub(crate) tails: broadcast::Sender<Arc<AppliedTail>>,
    pub(crate) outbox: Arc<OutboxFeed>,
    pub(crate) traffic: Traffic,
    pub(crate) fault: watch::Sender<Option<String>>,
    pub(crate) start_upto: AtomicU64,
    pub(crate) waited_at_start: AtomicBool,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pace: Arc<SnapshotPace>,
    /// Apply waits for the rows of a slot that moves in, if so.
    pub(crate) rows_wait: Mutex<Option<RowsWait>>,
    /// The replica is to stop: what waits is to wait no more, or openraft would wait for it.
    pub(crate) stopping: watch::Sender<bool>,
    /// The replica has stopped, and may be removed: what fails now is no fault of the node.
    pub(crate) stopped: AtomicBool,
}

/// openraft's handle on the engine's shard.
#[derive(Clone)]
pub(crate) struct StateMachine(pub(crate) Arc<Applier>);

#[derive(Default)]
struct Batch {
    entries: Vec<ApplyEntry>,
    responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, entry: Entry, responder: Option<ApplyResponder<TypeConfig>>) {
        let payload = match entry.payload {
            EntryPayload::Blank => ApplyPayload::Blank,
            EntryPayload::Normal(cmd) => {
                self.bytes += cmd.0.len();
                ApplyPayload::Commands(cmd.0)
            }
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership);
                ApplyPayload::Membership(encode_stored_membership(&stored).into())
            }
        };
        let log_id = engine_log_id(&entry.log_id);
        self.entries.push(ApplyEntry { log_id, payload });
        self.responders.push(responder);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.entries.len() >= BATCH_ENTRIES
    }
}

/// The engine's form of a log id. With one leader per term the term names it.
pub(crate) fn engine_log_id(id: &LogId) -> mailbox_engine::LogId {
    mailbox_engine::LogId {
        term: id.leader_id.term,
        node: 0,
        index: id.index,
    }
}

impl Applier {
    /// Entries up to this one are applied while the replica starts: there they wait for nothing from elsewhere,
    /// but fail the start.
    pub(crate) fn applies_at_start(&self, upto: u64) {
        self.start_upto.store(upto, Ordering::Release);
    }

    /// That is why the start has failed.
    pub(crate) fn waited_at_start(&self) -> bool {
        self.waited_at_start.load(Ordering::Acquire)
    }

    /// openraft stops the replica on any error from here.
    fn failed(&self, error: &dyn std::error::Error) -> io::Error {
        let reason = format!("shard {}: {}", self.engine.id(), error_chain(error));
        if !self.stopped.load(Ordering::Acquire) {
            report(&self.fault, &reason);
        }
        io::Error::other(reason)
    }

    /// Applies all; an entry that waits for something is applied when that is there.
    async fn apply_batch(&self, batch: &mut Batch) -> Result<(), io::Error> {
        while !batch.entries.is_empty() {
            self.wait_for_room().await?;
            fail_point!("apply", |_| std::process::abort());
            let mut applied = self.apply_entries(&batch.entries)?;
            fail_point!("applied", |_| std::process::abort());
            let wait = applied.waits.take();
            self.publish(batch, applied);
            if let Some(wait) = wait {
                let index = batch.entries.first().map_or(0, |entry| entry.log_id.index);
                self.wait_for_import(wait, index).await?;
            }
        }
        batch.bytes = 0;
        Ok(())
    }

    /// Tells of what was applied, and takes it out of the batch.
    fn publish(&self, batch: &mut Batch, applied: Applied) {
        let Applied {
            replies,
            appended,
            outbox,
            waits: _,
        } = applied;
        let count = replies.len();
        let Some(last) = batch.entries.drain(..count).next_back() else {
            return;
        };
        let last = last.log_id;
        self.applied
            .send_replace(Some(log_id(last.term, last.index)));
        let replies = replies.into_iter().map(Replies);
        for (responder, replies) in batch.responders.drain(..count).zip(replies) {
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        self.outbox.applied(outbox, self.engine.outbox_bytes());
        self.traffic.applied(&appended);
        if !appended.is_empty() && self.tails.receiver_count() > 0 {
            let tail = AppliedTail {
                index: last.index,
                term: last.term,
                appended,
            };
            // Without receivers there is nobody to tell.
            let _ = self.tails.send(Arc::new(tail));
        }
        if self.engine.flush_due(0) {
            self.base.look();
        }
    }

    /// Applies whole entries, in the span of their batch: at level trace every row is named.
    fn apply_entries(&self, entries: &[ApplyEntry]) -> Result<Applied, io::Error> {
        let index = entries.last().map_or(0, |entry| entry.log_id.index);
        let shard = self.engine.id().0;
        let span = tracing::debug_span!("apply", shard, index, entries = entries.len());
        let _entered = span.enter();
        let applied = self
            .engine
            .apply(entries)
            .map_err(|error| self.failed(&error))?;
        tracing::debug!(timelines = applied.appended.len(), "applied");
        if tracing::enabled!(tracing::Level::TRACE) {
            for (timeline, rows) in &applied.appended {
                for row in rows {
                    tracing::trace!(%timeline, seq = row.seq.0, message_id = row.message_id.0, "row");
                }
            }
        }
        Ok(applied)
    }

    /// Apply waits here, between entries, while flushes or compaction are behind. It is a task that waits, not
    /// a thread, and it holds no lock.
    async fn wait_for_room(&self) -> Result<(), io::Error> {
        if !self.engine.stalled() {
            return Ok(());
        }
        let _hurry = self.base.hurry();
        while self.engine.stalled() {
            if let Some(reason) = self.fault.borrow().as_ref() {
                return Err(io::Error::other(reason.clone()));
            }
            if *self.stopping.borrow() {
                return Err(stops());
            }
            let changed = self.base.changed();
            self.base.look();
            // Whether it was a change or the timeout, the loop looks again.
            let _ = tokio::time::timeout(STALL_LOOK, changed).await;
        }
        Ok(())
    }

    /// Has what a commit of an import needs brought here. Only this shard's apply waits; it is a task that does.
    async fn wait_for_import(&self, wait: ImportWait, index: u64) -> Result<(), io::Error> {
        let shard = self.engine.id();
        let (slot, epoch, digest) = match wait {
            ImportWait::Flush { slot } => {
                tracing::info!(
                    shard = shard.0,
                    slot = slot.0,
                    "flushed before an import's commit"
                );
                let flushed = self.base.flush(shard).await;
                return flushed.map_err(|error| self.failed(&error));
            }
            ImportWait::Rows {
                slot,
                epoch,
                digest,
            } => (slot, epoch, digest),
        };
        if index <= self.start_upto.load(Ordering::Acquire) {
            self.waited_at_start.store(true, Ordering::Release);
            let reason = format!("entry {index} waits for the rows of slot {slot}");
            return Err(io::Error::other(reason));
        }
        tracing::warn!(
            shard = shard.0,
            slot = slot.0,
            epoch,
            "apply waits for the rows of a slot that moves in"
        );
        let since = std::time::Instant::now();
        *self.rows_wait.lock() = Some(RowsWait { slot, since });
        let waited = self.wait_for_rows((slot, epoch, digest)).await;
        *self.rows_wait.lock() = None;
        tracing::info!(shard = shard.0, slot = slot.0, epoch, "apply goes on");
        waited
    }

    /// Whoever drives the move has them staged here, or a peer gives them.
    async fn wait_for_rows(&self, wanted: (SlotId, u64, u128)) -> Result<(), io::Error> {
        let (slot, epoch, digest) = wanted;
        let mut asked_at = Instant::now();
        let mut turn = 0;
        loop {
            if self.has_staged(wanted) {
                return Ok(());
            }
            if let Some(reason) = self.fault.borrow().as_ref() {
                return Err(io::Error::other(reason.clone()));
            }
            if *self.stopping.borrow() {
                return Err(stops());
            }
            if asked_at.elapsed() >= ROWS_ASK {
                turn += 1;
                let mut stopping = self.stopping.subscribe();
                tokio::select! {
                    biased;
                    _ = stopping.wait_for(|stops| *stops) => return Err(stops()),
                    () = self.fetch_rows((slot, epoch, digest), turn) => {}
                }
                asked_at = Instant::now();
            }
            tokio::time::sleep(STALL_LOOK).await;
        }
    }

    fn has_staged(&self, (slot, epoch, digest): (SlotId, u64, u128)) -> bool {
        self.engine.is_staged(slot, epoch, digest)
    }

    /// Asks the peers, beginning with another one each time, until one has given the rows or is silent, or the rows have
    /// come otherwise. A peer may have an older copy than what is wanted: that one is of no use, and must not replace
    /// what somebody else has staged meanwhile.
    async fn fetch_rows(&self, (slot, epoch, digest): (SlotId, u64, u128), turn: usize) {
        fail_point!("fetch_rows", |_| ());
        let stager = Stager {
            holder: Holder {
                engine: self.engine.clone(),
                base: self.base.clone(),
            },
            pace: &self.pace,
            fault: &self.fault,
        };
        let mut links = self.peers.links();
        let first = turn % links.len().max(1);
        links.rotate_left(first);
        let own = self.engine.id();
        let sources = sources(own, epoch, self.engine.applied().slots.get(slot));
        let asked = async {
            for link in &links {
                for (shard, rows) in &sources {
                    let ask = Ask {
                        shard: *shard,
                        slot,
                        epoch,
                        rows: *rows,
                        base: None,
                    };
                    let (wanted, patience) = (Some(digest), Patience::BESIDE);
                    // It has all its time whatever it says.
                    let staged = stager.stage_from(link, ask, wanted, patience, &|| true);
                    match staged.await {
                        // No second one is waited for now: the next call begins with another peer.
                        Ok(_) | Err(Unstaged::Silent(_)) => return,
                        Err(Unstaged::Refused(reason)) => {
                            let (shard, peer) = (own.0, link.node);
                            tracing::debug!(shard, peer, ?rows, reason, "no rows from it");
                        }
                    }
                }
            }
        };
        let come = async {
            while !self.has_staged((slot, epoch, digest)) {
                tokio::time::sleep(STALL_LOOK).await;
            }
        };
        tokio::select! {
            () = asked => {}
            () = come => {}
        }
    }

    fn snapshot(&self) -> Result<Snapshot, io::Error> {
        let taken = self
            .engine
            .snapshot()
            .map_err(|error| self.failed(&error))?;
        let meta = raft_meta(taken.meta()).map_err(|error| self.failed(&error))?;
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Taken(taken),
        })
    }
}

fn stops() -> io::Error {
    io::Error::other("the replica stops")
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.0.snapshot()
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.0.engine.applied();
        let membership =
            decode_stored_membership(&applied.membership).map_err(|error| self.0.failed(&error))?;
        let id = applied.log_id.map(|id| log_id(id.term, id.index));
        Ok((id, membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            batch.push(entry, responder);
            if batch.is_full() {
                self.0.apply_batch(&mut batch).await?;
                tokio::task::consume_budget().await;
            }
        }
        self.0.apply_batch(&mut batch).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self> {
        self.0.engine.flushed().is_some().then(|| self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Received(received) = data else {
            // This node's own last flush is not above what it has applied.
            return Ok(());
        };
        let id = received.meta.applied.log_id;
        let shard = self.0.engine.id();
        let staged = stage(&self.0.engine, received)
            .await
            .map_err(|error| self.0.failed(&error))?;
        // A log that reached the snapshot's index under a smaller log id would be refused at the next start.
        self.0
            .log
            .drained()
            .await
            .map_err(|error| self.0.failed(&error))?;
        // A replica that is new nobody waits for. One that has fallen behind may be what the shard lacks to commit.
        let has_fallen_behind = self.0.engine.applied().log_id.is_some();
        let hurry = has_fallen_behind.then(|| self.0.base.hurry());
        let installed = self.0.base.install(shard, staged);
        installed.await.map_err(|error| self.0.failed(&error))?;
        drop(hurry);
        self.0
            .applied
            .send_replace(id.map(|id| log_id(id.term, id.index)));
        self.0.outbox.replaced(self.0.engine.outbox_bytes());
        tracing::info!(
            shard = shard.0,
            index = id.map(|id| id.index),
            "snapshot installed"
        );
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.0.engine.flushed().is_none() {
            return Ok(None);
        }
        self.0.snapshot().map(Some)
    }
}

/// Checks a snapshot and writes its rows anew: the long part of an install, beside whatever else the node does.
async fn stage(
    engine: &Arc<mailbox_engine::Shard>,
    received: Received,
) -> Result<StagedInstall, Error> {
    let engine = Arc::clone(engine);
    let work = move || engine.stage_install(&received.meta, &received.files);
    let staged = background::run(Haste::None, work)
        .await
        .map_err(|error| Error::Log(error.to_string()))?;
    Ok(staged?)
}

/// Where the rows may be that a commit in the shard `own` needs: staged, at who has not applied it yet, and frozen, in the
/// shard that the slot comes from. There they stay until every replica of the destination has settled, so that somebody
/// has them when all others have applied it.
fn sources(own: ShardId, epoch: u64, stands: Option<(u64, SlotStanding)>) -> Vec<(ShardId, Rows)> {
    let mut sources = vec![(own, Rows::Staged)];
    if let Some((found, SlotStanding::Importing { from, .. })) = stands
        && found == epoch
    {
        sources.push((from, Rows::Frozen));
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_for_a_commit_are_looked_for_in_both_shards() {
        let (own, from) = (ShardId(2), ShardId(1));
        let importing = SlotStanding::Importing { from, since: 3 };
        let staged = (own, Rows::Staged);
        let all = [staged, (from, Rows::Frozen)];
        assert_eq!(sources(own, 7, Some((7, importing))), all);
        // Of another import nothing is known here.
        assert_eq!(sources(own, 8, Some((7, importing))), [staged]);
        assert_eq!(sources(own, 7, Some((7, SlotStanding::Held))), [staged]);
        assert_eq!(sources(own, 7, None), [staged]);
    }
}
