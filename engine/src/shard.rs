//! One shard's replica: apply, reads, and what its owner asks about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::applied::{AppliedState, LogId};
use crate::apply::apply_entry;
use crate::cluster_options::ClusterOptions;
use crate::command::Reply;
use crate::dead_letter::DeadLetterTotals;
use crate::entry::Entry;
use crate::error::Error;
use crate::id::{MessageId, RangeId, Seq, ShardId, SlotId, TimelineId};
use crate::import::ReadyImports;
use crate::item::{LaneId, OutboxItem};
use crate::key::{KeyBytes, StateKey};
use crate::memtable::Memtable;
use crate::row::Row;
use crate::slot_move::ImportWait;
use crate::state::{Context, Effects, ShardState};
use crate::store::StoreCore;
use crate::tails::TailCache;
use crate::view::{self, Page, PageRows};

/// What one entry of the log asks of a shard.
#[derive(Clone, Debug)]
pub enum ApplyPayload {
    /// Nothing: an entry that only raises the applied index.
    Blank,
    /// A new membership, in the encoding of whoever gives it.
    Membership(Bytes),
    /// Commands, as `EntryBuilder` made them. The bytes are kept until they are flushed: they
    /// must not be a small part of a larger buffer.
    Commands(Bytes),
}

/// One entry of the log, committed.
#[derive(Clone, Debug)]
pub struct ApplyEntry {
    /// Its place in the log: one after the entry before.
    pub log_id: LogId,
    /// What it asks.
    pub payload: ApplyPayload,
}

/// What applying a batch of entries gave.
#[derive(Debug, Default)]
pub struct Applied {
    /// One list per entry, one reply per command.
    pub replies: Vec<Vec<Reply>>,
    /// The rows that were appended, by timeline, in seq order. Their bodies pin the entries.
    pub appended: Vec<(TimelineId, Vec<Row>)>,
    /// The items that were put into outboxes, or came with a slot that moved in, each lane's in lane seq
    /// order: for the leader's relay. Some may be acked already. Their bodies pin the entries.
    pub outbox: Vec<OutboxItem>,
    /// What the entry after the last one of `replies` waits for. It was not begun; whoever applies mends
    /// that and gives it again, and applies nothing else meanwhile.
    pub waits: Option<ImportWait>,
}

/// Figures of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardMetrics {
    /// Bytes that the active memtable pins.
    pub memtable_bytes: u64,
    /// Bytes that the frozen ones pin.
    pub frozen_bytes: u64,
    /// Frozen memtables.
    pub frozen: u64,
    /// Files that no compaction has merged yet, of the whole node.
    pub level0_files: u64,
    /// Bytes of all files, of the whole node.
    pub file_bytes: u64,
    /// About how many of these are the shard's; see [`Shard::stored_bytes`].
    pub stored_bytes: u64,
    /// Flushes since the store was opened.
    pub flushes: u64,
    /// Bytes that they wrote.
    pub flushed_bytes: u64,
    /// Snapshots installed since the store was opened.
    pub installs: u64,
    /// Bytes of the cached tails.
    pub tail_cache_bytes: u64,
    /// Items in outboxes that their destinations are not known to have.
    pub outbox_items: u64,
    /// Bytes of these items.
    pub outbox_bytes: u64,
    /// Dead letters of all slots.
    pub dead_letters: DeadLetterTotals,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed_bytes: AtomicU64,
    pub(crate) installs: AtomicU64,
    pub(crate) level0_files: AtomicU64,
    /// See `sizes.rs`.
    pub(crate) stored_bytes: AtomicU64,
    /// This shard's part of `StoreCore::memtable_bytes`.
    memtable_bytes: AtomicU64,
}

/// One shard's replica on this node. Apply has one caller; reads may come from any thread.
///
/// Lock order: `StoreCore::change`, then `state`, then `tails`. No lock is held while files are
/// read, except by apply, whose look-ups are its own.
pub struct Shard {
    id: ShardId,
    pub(crate) core: Arc<StoreCore>,
    pub(crate) state: RwLock<ShardState>,
    pub(crate) tails: Mutex<TailCache>,
    pub(crate) counters: Counters,
}

impl Drop for Shard {
    fn drop(&mut self) {
        let bytes = *self.counters.memtable_bytes.get_mut();
        self.core.memtable_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Shard {
    pub(crate) fn new(id: ShardId, core: Arc<StoreCore>, state: ShardState) -> Shard {
        let tails = Mutex::new(TailCache::new(core.options.tail_cache_bytes));
        let counters = Counters::default();
        Shard {
            id,
            core,
            state: RwLock::new(state),
            tails,
            counters,
        }
    }

    /// To be called under the write lock whenever memtables have grown or gone.
    pub(crate) fn count_memtables(&self, state: &ShardState) {
        let now = state.memtables().map(Memtable::bytes).sum::<u64>();
        let before = self.counters.memtable_bytes.swap(now, Ordering::Relaxed);
        let grown = now.wrapping_sub(before);
        self.core.memtable_bytes.fetch_add(grown, Ordering::Relaxed);
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Of the cluster.
    pub fn slot_count(&self) -> u16 {
        self.core.options.slot_count
    }

    /// How far the state goes that readers see.
    pub fn applied(&self) -> AppliedState {
        self.state.read().applied.clone()
    }

    /// The greatest message id newly assigned in this shard, or in one that a slot came from.
    pub fn last_message_id(&self) -> MessageId {
        self.state.read().applied.last_message_id
    }

    /// What all replicas judge by; `None` until an entry or a snapshot has brought it.
    pub fn cluster_options(&self) -> Option<ClusterOptions> {
        self.state.read().applied.cluster_options
    }

    /// Applies committed entries in log order. Each is visible whole, or not at all, to readers;
    /// all are when this returns.
    ///
    /// # Errors
    /// A fault of this replica's storage or a corrupt entry: the shard refuses everything
    /// afterwards, and the replica must stop.
    pub fn apply(&self, batch: &[ApplyEntry]) -> Result<Applied, Error> {
        let mut replies = Vec::with_capacity(batch.len());
        let (mut effects, mut waits) = (Effects::default(), None);
        let number = {
            let mut state = self.state.write();
            state.batches += 1;
            state.batches
        };
        for entry in batch {
            let mut state = self.state.write();
            state.check()?;
            let ready = match self.ready_imports(&state, entry) {
                Ok(ready) => ready,
                Err(wait) => {
                    waits = Some(wait);
                    break;
                }
            };
            match self.apply_one(&mut state, entry, &mut effects, number, ready) {
                Ok(of_entry) => {
                    self.count_memtables(&state);
                    replies.push(of_entry);
                }
                Err(error) => {
                    state.fault = Some(error.to_string());
                    return Err(error);
                }
            }
        }
        Ok(Applied {
            replies,
            appended: effects.appended,
            outbox: effects.outbox,
            waits,
        })
    }

    fn apply_one(
        &self,
        state: &mut ShardState,
        entry: &ApplyEntry,
        effects: &mut Effects,
        batch: u64,
        ready: ReadyImports,
    ) -> Result<Vec<Reply>, Error> {
        let before = state.applied.log_id.map(|log_id| log_id.index);
        if before.is_some_and(|before| entry.log_id.index != before + 1) {
            let before = before.unwrap_or_default();
            let reason = format!(
                "entry {} does not follow entry {before}",
                entry.log_id.index
            );
            return Err(Error::Stopped { reason });
        }
        let mut cut = false;
        let replies = match &entry.payload {
            ApplyPayload::Blank => Vec::new(),
            ApplyPayload::Membership(membership) => {
                state.applied.membership = Bytes::copy_from_slice(membership);
                state.applied.membership_log_id = Some(entry.log_id);
                Vec::new()
            }
            ApplyPayload::Commands(bytes) => {
                state.active.pin(bytes);
                let rewrites = state.rewrites;
                let mut context = Context::new(state, effects, self.id, batch, entry.log_id);
                context.imports = ready;
                let entry = Entry::open(bytes.clone())
                    .map_err(|malformed| Error::CorruptEntry { malformed })?;
                let mut replies = Vec::new();
                apply_entry(&mut context, &entry, &mut replies)?;
                cut = context.is_cut();
                if state.rewrites != rewrites {
                    // Overwrites are rare: all cached tails go rather than the right one.
                    self.tails.lock().clear();
                }
                replies
            }
        };
        state.applied.log_id = Some(entry.log_id);
        if cut || !state.handovers.is_empty() {
            state.freeze(cut);
        }
        Ok(replies)
    }

    /// The owner waits between two entries while this is true: a second memtable is full, the
    /// node's memtables are twice over their budget, or compaction falls behind. No lock is held
    /// meanwhile.
    pub fn stalled(&self) -> bool {
        let full = {
            let state = self.state.read();
            state.frozen.len() > state.options.memtables_frozen_max
                || (state.is_full() && state.frozen.len() >= state.options.memtables_frozen_max)
        };
        full || self.core.memtables_overfull() || self.too_many_files()
    }

    /// Whether somebody waits for a flush, or will before long: a memtable waits for its file and the one after it is
    /// half full, the node's memtables are half-way to where apply must wait, or a split does not serve what is in
    /// the file.
    pub fn flush_is_urgent(&self) -> bool {
        let urgent = {
            let state = self.state.read();
            let filling = state.active.bytes() >= state.options.memtable_bytes_max / 2;
            let mut frozen = state.frozen.iter();
            frozen.any(|frozen| filling || !frozen.handovers.is_empty())
        };
        urgent || self.core.memtables_overfilling()
    }

    fn too_many_files(&self) -> bool {
        let max = self.core.options.level0_files_max;
        if self.counters.level0_files.load(Ordering::Relaxed) <= max {
            return false;
        }
        let now = self.core.base.level0_files();
        self.counters.level0_files.store(now, Ordering::Relaxed);
        now > max
    }

    /// The greatest seq of a timeline; 0 if it has none.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn head(&self, timeline: TimelineId) -> Result<Seq, Error> {
        let (range, files) = {
            let state = self.state.read();
            state.check()?;
            let range = state.range(self.slot_of(timeline))?;
            if let Some(head) = state.head_in_memory(range, timeline) {
                return Ok(head);
            }
            (range, state.files.clone())
        };
        let last = view::last_seq(files.as_ref(), range, timeline)?;
        Ok(last.max(self.trim_point(timeline)?))
    }

    /// The greatest seq of a timeline that is no longer here, inclusive; 0 if all are.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn trim_point(&self, timeline: TimelineId) -> Result<Seq, Error> {
        let key = StateKey::TrimPoint { timeline };
        view::seq_value(self.get(&key)?, &key)
    }

    /// Rows of a timeline from `from` (inclusive) on, in seq order: at most `limit`, and no more
    /// after `bytes` of bodies; the first one comes whatever its length. Rows at or below the
    /// trim point are absent.
    ///
    /// # Errors
    /// A storage fault or a row that fails its checksum, by file and key; a stopped shard.
    pub fn scan(
        &self,
        timeline: TimelineId,
        from: Seq,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Row>, Error> {
        let from = from.max(self.trim_point(timeline)?.next());
        let page = Page {
            timeline,
            from,
            rows_max: limit,
            bytes_max: bytes,
        };
        let (range, files, tail, rewrites) = {
            let state = self.state.read();
            state.check()?;
            let slot = self.slot_of(timeline);
            let tail = view::take_tail(&state, slot, &page);
            (
                state.range(slot)?,
                state.files.clone(),
                tail,
                state.rewrites,
            )
        };
        let mut rows = PageRows::new(page);
        if tail.first.is_none_or(|first| from < first) {
            self.tails
                .lock()
                .read(range, timeline, from, |row| rows.push_cached(row));
            if !rows.is_full() && tail.first.is_none_or(|first| rows.next() < first) {
                let cached = rows.rows.len();
                rows.add_files(files.as_ref(), range, tail.first, &tail)?;
                if !rows.is_full() {
                    self.keep_tail(range, timeline, &rows.rows[cached..], rewrites);
                }
            }
        }
        rows.add_tail(range, tail)?;
        Ok(rows.rows)
    }

    /// Caches rows read from files, unless a row was overwritten since the read began.
    pub(crate) fn keep_tail(
        &self,
        range: RangeId,
        timeline: TimelineId,
        rows: &[Row],
        rewrites: u64,
    ) {
        let state = self.state.read();
        if state.rewrites == rewrites {
            self.tails.lock().fill(range, timeline, rows);
        }
    }

    /// The value of a state row.
    pub(crate) fn get(&self, key: &StateKey) -> Result<Option<Bytes>, Error> {
        let slot = key.slot(self.core.options.slot_count);
        let encoded = key.encode();
        let (range, files) = {
            let state = self.state.read();
            state.check()?;
            let range = state.range(slot)?;
            if let Some(value) = state.in_memory(slot, &encoded) {
                return Ok(value);
            }
            (range, state.files.clone())
        };
        view::get_state(files.as_ref(), range, &encoded)
    }

    /// All state rows of a slot whose keys begin with a prefix, in key order, of one moment.
    pub(crate) fn scan_prefix(
        &self,
        slot: SlotId,
        prefix: &KeyBytes,
    ) -> Result<Vec<(KeyBytes, Bytes)>, Error> {
        let mut rows = view::Overlay::new();
        let (range, files) = {
            let state = self.state.read();
            state.check()?;
            view::overlay_prefix(&state, slot, prefix, &mut rows);
            (state.range(slot)?, state.files.clone())
        };
        view::add_prefix(files.as_ref(), range, prefix, &mut rows)?;
        Ok(view::present(rows))
    }

    /// The slots that this shard serves, in their order.
    pub fn slots(&self) -> Vec<SlotId> {
        let state = self.state.read();
        let mut slots = state.ranges.slots();
        slots.retain(|slot| !state.applied.slots.is_frozen(*slot));
        slots
    }

    /// This shard serves the slot.
    pub fn serves(&self, slot: SlotId) -> bool {
        self.state.read().range(slot).is_ok()
    }

    /// Every item whose destination is not known to have it, each lane's in lane seq order: what
    /// the relay of a new leader begins with. From memory. Not those of a frozen slot: whoever has it next
    /// ships them.
    pub fn unacked(&self) -> Vec<OutboxItem> {
        let state = self.state.read();
        state
            .lanes
            .unacked(|slot| !state.applied.slots.is_frozen(slot))
    }

    /// The greatest lane seq that a destination is known to have, of a lane that begins here.
    pub fn lane_acked(&self, lane: LaneId) -> u64 {
        let state = self.state.read();
        state.lanes.sent_and_acked(lane.source, lane.destination).1
    }

    /// Bytes of all unacked items, for admission: whoever lets them grow without end fills the
    /// memory of every replica.
    pub fn outbox_bytes(&self) -> u64 {
        self.state.read().lanes.outbox_bytes()
    }

    pub(crate) fn slot_of(&self, timeline: TimelineId) -> SlotId {
        timeline.slot(self.core.options.slot_count)
    }

    /// Figures.
    pub fn metrics(&self) -> ShardMetrics {
        let (memtable_bytes, frozen_bytes, frozen, outbox_items, outbox_bytes, dead_letters) = {
            let state = self.state.read();
            let frozen_bytes = state
                .frozen
                .iter()
                .map(|frozen| frozen.memtable.bytes())
                .sum();
            let lanes = &state.lanes;
            let (items, bytes) = (lanes.outbox_items(), lanes.outbox_bytes());
            (
                state.active.bytes(),
                frozen_bytes,
                state.frozen.len(),
                items,
                bytes,
                state.letters,
            )
        };
        ShardMetrics {
            memtable_bytes,
            frozen_bytes,
            frozen: u64::try_from(frozen).expect("a usize fits"),
            level0_files: self.core.base.level0_files(),
            file_bytes: self.core.base.file_bytes(),
            stored_bytes: self.stored_bytes(),
            flushes: self.counters.flushes.load(Ordering::Relaxed),
            flushed_bytes: self.counters.flushed_bytes.load(Ordering::Relaxed),
            installs: self.counters.installs.load(Ordering::Relaxed),
            tail_cache_bytes: u64::try_from(self.tails.lock().bytes()).expect("a usize fits"),
            outbox_items: u64::try_from(outbox_items).expect("a usize fits"),
            outbox_bytes,
            dead_letters,
        }
    }
}
