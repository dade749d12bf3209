//! A slot's rows on their way between shards: a replica that imports a slot asks one that has its rows, and stages
//! what comes.
//!
//! ```text
//!  importing replica ── SlotRows{slot, epoch, copy | frozen | staged, what it has} ──▶ replica with the rows
//!   staging directory ◀── description, chunks, end ── files from a read view ◀────────┘
//!   └──▶ the engine stages them in one ingest
//! ```
//!
//! The one that has the rows keeps the read views of its last copies for a while, so that whoever shows the digest
//! of one gets only what has changed since. A transfer that breaks starts again from the beginning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mailbox_api::peer;
use mailbox_engine::{
    EXPORT_FORMAT, ExportMeta, ShardId, SlotExport, SlotId, SlotStanding, SnapshotFile,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::background::{self, Haste};
use crate::base_thread::{BaseThread, error_chain};
use crate::node::Node;
use crate::snapshot::{SnapshotPace, StagingDir, Steps, describe, send_files};
use crate::stager::{Patience, Stager, Unstaged};

/// Copies whose read views a node keeps, and for how long.
const KEPT_MAX: usize = 8;
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Copies on their way at once, each direction of a node. What is frozen already does not wait for them.
const COPIES_MAX: usize = 2;

/// Which rows are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Those of a slot that is served.
    Copy,
    /// The last ones of a slot that is frozen for the move.
    Frozen,
    /// Those that an import has staged.
    Staged,
}

/// What a replica with the rows is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) shard: ShardId,
    pub(crate) slot: SlotId,
    pub(crate) epoch: u64,
    pub(crate) rows: Rows,
    /// The digest of what the other one has.
    pub(crate) base: Option<u128>,
}

impl Ask {
    pub(crate) fn encode(&self, hello: peer::Hello) -> peer::SlotRowsRequest {
        peer::SlotRowsRequest {
            hello: Some(hello),
            slot: self.slot.0.into(),
            epoch: self.epoch,
            rows: match self.rows {
                Rows::Copy => peer::SlotRows::Copy,
                Rows::Frozen => peer::SlotRows::Frozen,
                Rows::Staged => peer::SlotRows::Staged,
            }
            .into(),
            base: self
                .base
                .map_or_else(Vec::new, |base| base.to_be_bytes().to_vec())
                .into(),
        }
    }

    /// What a peer asks; the words say what is wrong with it.
    pub(crate) fn decode(shard: u32, ask: &peer::SlotRowsRequest) -> Result<Ask, String> {
        let slot = u16::try_from(ask.slot).map_err(|_| format!("slot {}", ask.slot))?;
        let rows = match ask.rows() {
            peer::SlotRows::Copy => Rows::Copy,
            peer::SlotRows::Frozen => Rows::Frozen,
            peer::SlotRows::Staged => Rows::Staged,
            peer::SlotRows::Unspecified => return Err(format!("rows {}", ask.rows)),
        };
        let base = match ask.base.len() {
            0 => None,
            _ => {
                let base = <[u8; 16]>::try_from(ask.base.as_ref());
                let base = base.map_err(|_| format!("a digest of {} bytes", ask.base.len()))?;
                Some(u128::from_be_bytes(base))
            }
        };
        Ok(Ask {
            shard: ShardId(shard),
            slot: SlotId(slot),
            epoch: ask.epoch,
            rows,
            base,
        })
    }
}

/// What a replica is to stage, and whom it gets it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageOrder {
    /// The shard that imports.
    pub shard: ShardId,
    /// The slot.
    pub slot: SlotId,
    /// The move's.
    pub epoch: u64,
    /// The shard that the slot comes from.
    pub from: ShardId,
    /// A node with a replica of that.
    pub node: u64,
    /// The slot is frozen there: its last rows are wanted. Else any whole copy will do.
    pub frozen: bool,
}

impl StageOrder {
    /// Both want the same rows, whoever has them: what one has brought serves the other.
    fn is_of(&self, other: &StageOrder) -> bool {
        let node = other.node;
        StageOrder { node, ..*self } == *other
    }
}

/// How far an order has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageState {
    /// Ask again.
    Running,
    /// The rows with this digest are staged, durably.
    Staged {
        /// Of all of them.
        digest: u128,
    },
    /// It did not work; the next call tries again.
    Failed {
        /// Why.
        reason: String,
    },
}

struct Kept {
    shard: ShardId,
    slot: SlotId,
    epoch: u64,
    digest: u128,
    export: Arc<SlotExport>,
    since: Instant,
}

struct Task {
    order: StageOrder,
    state: watch::Receiver<StageState>,
    /// Tries for the same rows that a silent peer ended, this one included.
    silences: Arc<AtomicU32>,
}

/// The copies of a node, on their way out and in.
pub(crate) struct SlotCopies {
    kept: Mutex<Vec<Kept>>,
    tasks: Mutex<BTreeMap<(ShardId, SlotId), Task>>,
    sending: Semaphore,
    staging: Semaphore,
}

impl SlotCopies {
    pub(crate) fn new() -> Arc<SlotCopies> {
        Arc::new(SlotCopies {
            kept: Mutex::default(),
            tasks: Mutex::default(),
            sending: Semaphore::new(COPIES_MAX),
            staging: Semaphore::new(COPIES_MAX),
        })
    }

    /// Lets go of what belongs to one shard, or to all: read views, and what was staged. A replica that is made
    /// anew has nothing of it.
    pub(crate) fn forget(&self, shard: Option<ShardId>) {
        let stays = |of: ShardId| shard.is_some_and(|shard| of != shard);
        self.kept.lock().retain(|kept| stays(kept.shard));
        self.tasks.lock().retain(|(of, _), _| stays(*of));
    }

    /// Read views that nobody has asked for in a while hold files that nobody needs.
    pub(crate) fn forget_old(&self) {
        self.kept
            .lock()
            .retain(|kept| kept.since.elapsed() < KEPT_FOR);
    }

    fn kept(&self, ask: &Ask) -> Option<Arc<SlotExport>> {
        let base = ask.base?;
        let kept = self.kept.lock();
        let key = (ask.shard, ask.slot, ask.epoch, base);
        let found = kept
            .iter()
            .find(|kept| (kept.shard, kept.slot, kept.epoch, kept.digest) == key);
        found.map(|kept| kept.export.clone())
    }

    fn keep(&self, ask: &Ask, digest: u128, export: SlotExport) {
        let mut kept = self.kept.lock();
        let key = (ask.shard, ask.slot, ask.epoch, digest);
        kept.retain(|old| (old.shard, old.slot, old.epoch, old.digest) != key);
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push(Kept {
            shard: ask.shard,
            slot: ask.slot,
            epoch: ask.epoch,
            digest,
            export: Arc::new(export),
            since: Instant::now(),
        });
    }
}

/// A replica that may have rows.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) engine: Arc<mailbox_engine::Shard>,
    pub(crate) base: Arc<BaseThread>,
}

impl Holder {
    /// The digest of what an import has staged here.
    fn staged(&self, slot: SlotId, epoch: u64) -> Option<u128> {
        let staged = self.engine.staged_imports().into_iter();
        let mut of_move = staged.filter(|found| (found.slot, found.epoch) == (slot, epoch));
        of_move.next().map(|found| found.digest)
    }
}

/// Files with rows; they are removed when this is dropped.
pub(crate) struct RowFiles {
    meta: ExportMeta,
    files: Vec<SnapshotFile>,
    _dir: StagingDir,
}

/// Writes the rows that are asked for into files.
pub(crate) async fn export(
    holder: &Holder,
    copies: &Arc<SlotCopies>,
    pace: &SnapshotPace,
    ask: Ask,
) -> Result<RowFiles, String> {
    let Ask { slot, epoch, .. } = ask;
    if ask.rows == Rows::Frozen {
        match holder.engine.applied().slots.get(slot) {
            Some((found, SlotStanding::Frozen { .. })) if found == epoch => {}
            Some((found, standing)) => {
                return Err(format!("slot {slot} is {standing} under epoch {found}"));
            }
            None => return Err(format!("slot {slot} is not frozen here yet")),
        }
    }
    if ask.rows != Rows::Staged {
        // What is in no file yet is in no copy.
        let flushed = holder.base.flush(holder.engine.id());
        flushed.await.map_err(|error| error_chain(&error))?;
    }
    let dir = pace.new_dir("slot")?;
    let (path, engine) = (dir.path().to_owned(), holder.engine.clone());
    let since = copies.kept(&ask);
    let haste = match ask.rows {
        // The slot is served meanwhile.
        Rows::Copy => Haste::None,
        Rows::Frozen | Rows::Staged => Haste::Now,
    };
    let written = background::run(haste, move || {
        let export = match ask.rows {
            Rows::Copy | Rows::Frozen => engine.export_slot(slot)?,
            Rows::Staged => engine.export_staged(slot, epoch)?,
        };
        let (meta, files) = match since {
            Some(since) => export.write_changes(&since, &path, &mut |_| ())?,
            None => export.write_files(&path, &mut |_| ())?,
        };
        Ok::<_, mailbox_engine::Error>((export, meta, files))
    });
    let written = written.await.map_err(|error| error.to_string())?;
    let (export, meta, files) = written.map_err(|error| error_chain(&error))?;
    if ask.rows == Rows::Frozen && export.frozen() != Some(epoch) {
        return Err(format!("the freeze of slot {slot} is in no file yet"));
    }
    if ask.rows == Rows::Copy {
        copies.keep(&ask, meta.digest, export);
    }
    Ok(RowFiles {
        meta,
        files,
        _dir: dir,
    })
}

/// Answers a peer that asks for rows.
pub(crate) async fn send(
    holder: &Holder,
    copies: &Arc<SlotCopies>,
    pace: &SnapshotPace,
    ask: Ask,
    steps: mpsc::Sender<Result<peer::SnapshotRequest, Status>>,
) -> Result<(), String> {
    let steps = Steps::new(steps, Ok);
    let _permit = match ask.rows {
        Rows::Copy => Some(copies.sending.acquire().await.map_err(|e| e.to_string())?),
        Rows::Frozen | Rows::Staged => None,
    };
    let rows = export(holder, copies, pace, ask).await?;
    let begin = peer::SnapshotBegin {
        format: EXPORT_FORMAT,
        meta: rows.meta.encode().into(),
        files: rows.files.iter().map(describe).collect(),
        ..peer::SnapshotBegin::default()
    };
    // Nobody is served while frozen rows travel: they go as fast as they can.
    let throttled = ask.rows == Rows::Copy;
    send_files(begin, &rows.files, pace, throttled, &steps).await
}

impl Node {
    /// Has a replica here stage a slot's rows. Begins that in the background, unless it is under way, and waits a
    /// while for its end; to be called again until it is staged. A repeat changes nothing.
    pub async fn stage_slot(self: &Arc<Self>, order: StageOrder, wait: Duration) -> StageState {
        let mut state = {
            let mut tasks = self.copies.tasks.lock();
            let key = (order.shard, order.slot);
            let found = tasks.get(&key);
            let now = found.map(|task| task.state.borrow().clone());
            let same = found.filter(|task| task.order.is_of(&order));
            let same = same.map(|task| (task.state.clone(), task.silences.clone()));
            match (now, same) {
                (Some(StageState::Running), Some((running, _))) => running,
                (Some(StageState::Running), None) => return StageState::Running,
                (Some(StageState::Staged { digest }), Some(_))
                    if self.still_has(&order, digest) =>
                {
                    return StageState::Staged { digest };
                }
                (_, same) => {
                    let silences = same.map(|(_, silences)| silences).unwrap_or_default();
                    let task = self.begin_staging(order, silences);
                    let state = task.state.clone();
                    tasks.insert(key, task);
                    state
                }
            }
        };
        let ended = state.wait_for(|state| *state != StageState::Running);
        match tokio::time::timeout(wait, ended).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => StageState::Failed {
                reason: "the node is stopping".to_owned(),
            },
            Err(_) => StageState::Running,
        }
    }

    fn begin_staging(self: &Arc<Self>, order: StageOrder, silences: Arc<AtomicU32>) -> Task {
        let (told, state) = watch::channel(StageState::Running);
        let (node, counted) = (self.clone(), silences.clone());
        tokio::spawn(async move {
            let done = node.stage_now(order, counted.load(Ordering::Relaxed)).await;
            if let Err(Unstaged::Silent(_)) = &done {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            told.send_replace(match done {
                Ok(digest) => StageState::Staged { digest },
                Err(error) => StageState::Failed {
                    reason: error.to_string(),
                },
            });
        });
        Task {
            order,
            state,
            silences,
        }
    }

    /// What was staged is staged still, or of use no more since its import is over. Another copy may have taken its place
    /// in between.
    fn still_has(&self, order: &StageOrder, digest: u128) -> bool {
        let StageOrder {
            shard, slot, epoch, ..
        } = *order;
        self.peer_service.holder(shard).is_some_and(|holder| {
            let slots = holder.engine.applied().slots;
            holder.staged(slot, epoch) == Some(digest) || slots.import_is_over(slot, epoch)
        })
    }

    async fn stage_now(
        self: &Arc<Self>,
        order: StageOrder,
        silences: u32,
    ) -> Result<u128, Unstaged> {
        let StageOrder {
            shard, slot, epoch, ..
        } = order;
        let absent = || format!("shard {shard} does not run here");
        let holder = self.peer_service.holder(shard).ok_or_else(absent)?;
        if holder.engine.applied().slots.import_is_over(slot, epoch) {
            // Rows would travel in vain.
            return Err(format!("the import of slot {slot} under epoch {epoch} is over").into());
        }
        let _permit = match order.frozen {
            false => Some(
                self.copies
                    .staging
                    .acquire()
                    .await
                    .map_err(|e| e.to_string())?,
            ),
            true => None,
        };
        let stager = Stager {
            holder: holder.clone(),
            pace: &self.shared.pace,
            fault: &self.shared.fault,
        };
        let base = holder.staged(slot, epoch);
        if let (Some(digest), false) = (base, order.frozen) {
            return Ok(digest);
        }
        // Staging waits for the flush of the slot's last drop here.
        let flushed = holder.base.flush(shard);
        flushed.await.map_err(|error| error_chain(&error))?;
        let first = self.stage_once(&stager, order, base, silences).await;
        match (first, base) {
            // What changed since another copy than this one is of no use: the whole, then. But not of a peer that is
            // silent: the next order names another one.
            (Err(Unstaged::Refused(reason)), Some(_)) => {
                tracing::info!(
                    shard = shard.0,
                    slot = slot.0,
                    reason,
                    "all rows are fetched"
                );
                self.stage_once(&stager, order, None, silences).await
            }
            (first, _) => first,
        }
    }

    async fn stage_once(
        self: &Arc<Self>,
        stager: &Stager<'_>,
        order: StageOrder,
        base: Option<u128>,
        silences: u32,
    ) -> Result<u128, Unstaged> {
        let ask = Ask {
            shard: order.from,
            slot: order.slot,
            epoch: order.epoch,
            rows: if order.frozen {
                Rows::Frozen
            } else {
                Rows::Copy
            },
            base,
        };
        let node = order.node;
        if let Some(link) = self.shared.peers.link(node) {
            let patience = Patience::for_rows(ask.rows, silences);
            let is_reached = || self.shared.pulse.is_reached(node);
            let staged = stager.stage_from(&link, ask, None, patience, &is_reached);
            return staged.await;
        }
        if node != self.shared.options.node {
            return Err(format!("node {node} is not known").into());
        }
        let absent = || format!("shard {} does not run here", order.from);
        let holder = self.peer_service.holder(order.from).ok_or_else(absent)?;
        let rows = export(&holder, &self.copies, &self.shared.pace, ask).await?;
        let files = rows.files.iter().map(|file| file.path.clone()).collect();
        let staged = stager.stage(order.epoch, rows.meta, files);
        staged.await.map_err(Unstaged::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_not_fetched_again_from_another_node() {
        let order = StageOrder {
            shard: ShardId(2),
            slot: SlotId(9),
            epoch: 7,
            from: ShardId(1),
            node: 1,
            frozen: true,
        };
        assert!(order.is_of(&StageOrder { node: 3, ..order }));
        for other in [
            StageOrder { epoch: 8, ..order },
            StageOrder {
                frozen: false,
                ..order
            },
            StageOrder {
                from: ShardId(3),
                ..order
            },
        ] {
            assert!(!order.is_of(&other));
        }
    }

    #[test]
    fn what_is_asked_is_read_as_written() {
        for rows in [Rows::Copy, Rows::Frozen, Rows::Staged] {
            for base in [None, Some(0), Some(u128::MAX - 5)] {
                let ask = Ask {
                    shard: ShardId(3),
                    slot: SlotId(9),
                    epoch: 7,
                    rows,
                    base,
                };
                let sent = ask.encode(peer::Hello::default());
                let read = Ask::decode(3, &sent).unwrap();
                assert_eq!((read.slot, read.epoch), (ask.slot, ask.epoch));
                assert_eq!((read.rows, read.base), (rows, base));
            }
        }
        let good = Ask {
            shard: ShardId(3),
            slot: SlotId(9),
            epoch: 7,
            rows: Rows::Copy,
            base: None,
        };
        let sent = good.encode(peer::Hello::default());
        for broken in [
            peer::SlotRowsRequest {
                slot: 1 << 16,
                ..sent.clone()
            },
            peer::SlotRowsRequest {
                base: vec![1; 15].into(),
                ..sent.clone()
            },
            peer::SlotRowsRequest { rows: 9, ..sent },
        ] {
            assert!(Ask::decode(3, &broken).is_err());
        }
    }
}
