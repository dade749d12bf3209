//! From memtable to file: freeze, build, ingest, publish.
//!
//! The owner calls these from its own threads, one flush of a shard at a time. Ingest is called
//! by the one thread that changes the base store, after the log has synced the entries. Memtables
//! of several shards may share a file ([`Store::build`]): it is ingested whole or not at all, with
//! the applied row of each.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fail::fail_point;

use crate::applied::{AppliedState, LogId};
use crate::base::{FileLife, FileWriter, ReadView, StagedFile, SteppedWriter};
use crate::error::Error;
use crate::id::{RangeId, ShardId, SlotId, TimelineId};
use crate::key::{NodeKey, StateKey, StoredKey, hour_of};
use crate::known::KnownKeys;
use crate::memtable::{Memtable, Tail};
use crate::range::{RangeRow, RangeState, Ranges};
use crate::shard::Shard;
use crate::slot_move::SlotTable;
use crate::split::Handover;
use crate::state::{CutView, Frozen};
use crate::store::{NodeFile, Store, StoreCore, drop_ranges};

/// A memtable that takes no more rows: the argument of [`Shard::build`].
pub struct FrozenFlush {
    frozen: Arc<Frozen>,
}

impl FrozenFlush {
    /// The last entry in it: what the log must have synced before [`Shard::ingest`].
    pub fn log_id(&self) -> Option<LogId> {
        self.frozen.applied.log_id
    }

    /// Bytes that it pins in memory.
    pub fn bytes(&self) -> u64 {
        self.frozen.memtable.bytes()
    }

    /// The shards that its flush makes of slots of this one, and what they begin with.
    pub fn children(&self) -> impl Iterator<Item = (ShardId, &AppliedState)> {
        let handovers = self.frozen.handovers.iter();
        handovers.map(|handover| (handover.child, &handover.applied))
    }

    /// This node has no use for such a shard: its rows are dropped. To be called before the build.
    pub fn refuse_child(&self, child: ShardId) {
        let mut handovers = self.frozen.handovers.iter();
        if let Some(found) = handovers.find(|handover| handover.child == child) {
            found.refuse();
        }
    }
}

/// A finished file in the staging directory: the argument of [`Shard::ingest`].
pub struct BuiltFlush {
    frozen: Arc<Frozen>,
    file: StagedFile,
}

impl BuiltFlush {
    /// The last entry in it.
    pub fn log_id(&self) -> Option<LogId> {
        self.frozen.applied.log_id
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }
}

/// A finished file of several shards in the staging directory: the argument of [`Store::ingest`].
pub struct SharedFlush {
    parts: Vec<(Arc<Shard>, Arc<Frozen>)>,
    file: StagedFile,
}

impl SharedFlush {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }
}

impl Store {
    /// Writes frozen memtables of different shards as one sorted file, the applied row of each in
    /// it. Changes nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn build(&self, flushes: Vec<(Arc<Shard>, FrozenFlush)>) -> Result<SharedFlush, Error> {
        self.build_in_steps(flushes, &mut || {})
    }

    /// As [`Store::build`]. `between` is called after every few rows: it may rest.
    ///
    /// # Errors
    /// As [`Store::build`].
    pub fn build_in_steps(
        &self,
        flushes: Vec<(Arc<Shard>, FrozenFlush)>,
        between: &mut dyn FnMut(),
    ) -> Result<SharedFlush, Error> {
        let parts = flushes
            .into_iter()
            .map(|(shard, flush)| (shard, flush.frozen));
        let parts: Vec<(Arc<Shard>, Arc<Frozen>)> = parts.collect();
        let borrowed: Vec<_> = parts
            .iter()
            .map(|(shard, frozen)| (shard.as_ref(), frozen))
            .collect();
        let file = build_file(&self.core, &borrowed, between)?;
        Ok(SharedFlush { parts, file })
    }

    /// As [`Shard::ingest`], for all shards of the file. False if an install has thrown away one
    /// of the memtables meanwhile: then nothing was changed, and the others are to be flushed
    /// anew.
    ///
    /// # Errors
    /// The base store failed: the replicas must stop.
    pub fn ingest(&self, built: SharedFlush) -> Result<bool, Error> {
        let SharedFlush { parts, file } = built;
        let parts: Vec<_> = parts
            .iter()
            .map(|(shard, frozen)| (shard.as_ref(), frozen))
            .collect();
        let ingested = ingest_file(&self.core, &parts, file)?;
        self.open_children();
        Ok(ingested)
    }
}

fn build_file(
    core: &StoreCore,
    parts: &[(&Shard, &Arc<Frozen>)],
    between: &mut dyn FnMut(),
) -> Result<StagedFile, Error> {
    let mut node_rows = NodeFile::default();
    for (shard, frozen) in parts {
        node_rows.put(NodeKey::Applied(shard.id()), frozen.applied.encode());
        for (range, row) in &frozen.map_changes {
            node_rows.put(NodeKey::Range(*range), row.encode());
        }
        put_handovers(core, shard.id(), &frozen.handovers, &mut node_rows);
    }
    let rows = parts.iter().map(|(_, frozen)| Part {
        memtable: &frozen.memtable,
        ranges: frozen.ranges.as_ref(),
        handovers: &frozen.handovers,
        dropped: frozen.dead().map(|(_, slot)| slot).collect(),
    });
    let rows: Vec<Part<'_>> = rows.collect();
    let mut writer = SteppedWriter::new(core.base.writer(FileLife::Short)?, between);
    node_rows.write(&mut writer)?;
    write_parts(&rows, &mut writer)?;
    Box::new(writer).finish()
}

/// The map rows of what becomes other shards, or dead, and the applied rows of those shards.
fn put_handovers(core: &StoreCore, parent: ShardId, handovers: &[Handover], rows: &mut NodeFile) {
    for handover in handovers {
        let child = handover.child;
        if core.replicas.lock().ids.contains(&child) {
            handover.refuse();
        }
        let (shard, state) = match handover.is_refused() {
            true => (parent, RangeState::Dead),
            false => (child, RangeState::Live),
        };
        for (slot, range) in handover.ranges.by_slot() {
            let row = RangeRow { shard, slot, state };
            rows.put(NodeKey::Range(range), row.encode());
        }
        if !handover.is_refused() {
            rows.put(NodeKey::Applied(child), handover.applied.encode());
        }
    }
}

fn ingest_file(
    core: &StoreCore,
    parts: &[(&Shard, &Arc<Frozen>)],
    file: StagedFile,
) -> Result<bool, Error> {
    let _change = core.change.lock();
    let is_current = |(shard, frozen): &(&Shard, &Arc<Frozen>)| {
        shard.state.read().generation == frozen.generation
    };
    if !parts.iter().all(is_current) {
        return Ok(false);
    }
    fail_point!("before_ingest", |_| std::process::abort());
    let mut bytes = file.bytes;
    core.base.ingest(vec![file], &[])?;
    fail_point!("after_ingest", |_| std::process::abort());
    {
        let mut replicas = core.replicas.lock();
        let handovers = parts.iter().flat_map(|(_, frozen)| &frozen.handovers);
        let taken = handovers.filter(|handover| !handover.is_refused());
        taken.for_each(|handover| replicas.add_child(handover));
    }
    let (files, level0_files) = (core.base.view(), core.base.level0_files());
    for (shard, frozen) in parts {
        shard.publish(frozen, &files);
        let counters = &shard.counters;
        counters.flushes.fetch_add(1, Ordering::Relaxed);
        // The file's bytes count once, for whichever shard comes first.
        let bytes = std::mem::take(&mut bytes);
        counters.flushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.level0_files.store(level0_files, Ordering::Relaxed);
        shard.measure();
    }
    let dead = parts.iter().flat_map(|(_, frozen)| frozen.dead());
    let dead: Vec<RangeId> = dead.map(|(range, _)| range).collect();
    if !dead.is_empty() {
        fail_point!("before_dead", |_| std::process::abort());
        drop_ranges(core.base.as_ref(), &dead)?;
    }
    Ok(true)
}

impl Shard {
    /// Whether [`Shard::freeze`] would give something worth its file: a frozen memtable waits, the
    /// active one is full, all of the node's are together and it is one of them, or it has
    /// something and is `age_ms` old, which the owner measures.
    pub fn flush_due(&self, age_ms: u64) -> bool {
        let full = self.core.memtables_full();
        let state = self.state.read();
        let old = age_ms >= state.options.memtable_age_ms_max;
        !state.frozen.is_empty() || state.is_full() || ((old || full) && state.is_dirty())
    }

    /// Gives the oldest frozen memtable; freezes the active one if there is none. `None` if
    /// nothing was applied since the last flush. Entries without rows count: they too let the log
    /// be purged.
    pub fn freeze(&self) -> Option<FrozenFlush> {
        let mut state = self.state.write();
        if !state.is_dirty() || state.fault.is_some() {
            return None;
        }
        if state.frozen.is_empty() {
            state.freeze(false);
        }
        state.frozen.front().map(|frozen| FrozenFlush {
            frozen: frozen.clone(),
        })
    }

    /// Writes a frozen memtable as one sorted file, the applied row in it. Changes nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn build(&self, flush: &FrozenFlush) -> Result<BuiltFlush, Error> {
        let frozen = flush.frozen.clone();
        let file = build_file(&self.core, &[(self, &frozen)], &mut || {})?;
        Ok(BuiltFlush { frozen, file })
    }

    /// Takes the file into the base store and publishes it: readers change from the memtable to
    /// the file at one moment. Gives the log id up to which everything is durable in files.
    ///
    /// The caller has made sure that this node's log has synced the entries, and every truncation
    /// queued before them. If an install has thrown the memtable away meanwhile, the file is
    /// ignored.
    ///
    /// # Errors
    /// The base store failed: the replica must stop.
    pub fn ingest(&self, built: BuiltFlush) -> Result<LogId, Error> {
        let BuiltFlush { frozen, file } = built;
        ingest_file(&self.core, &[(self, &frozen)], file)?;
        let flushed = self.state.read().flushed.log_id;
        flushed.ok_or_else(|| Error::Stopped {
            reason: "nothing was applied".to_owned(),
        })
    }

    fn publish(&self, frozen: &Arc<Frozen>, files: &Arc<dyn ReadView>) {
        let time_ms = frozen.applied.time_ms;
        let early = KnownKeys::early_keys(&frozen.memtable, time_ms);
        let slot_count = self.core.options.slot_count;
        let mut state = self.state.write();
        let front = state.frozen.pop_front().expect("freeze left it there");
        assert!(
            Arc::ptr_eq(&front, frozen),
            "memtables are flushed in the order they were frozen"
        );
        state.files = files.clone();
        state
            .hidden_hours
            .flushed(frozen.floor_ms.map(hour_of), files);
        state.flushed = frozen.applied.clone();
        state.flushed_ranges = frozen.ranges.clone();
        state.dropped.retain(|(_, range)| !frozen.ends(*range));
        if frozen.cut {
            let (ranges, applied) = (frozen.ranges.clone(), frozen.applied.clone());
            state.cut_hash = None;
            state.cut = Some(CutView {
                files: files.clone(),
                ranges,
                applied,
            });
        }
        self.count_memtables(&state);
        let ranges = state.ranges.clone();
        let in_range = |(slot, key)| Some((ranges.of_slot(slot)?, key));
        state
            .known
            .flushed(time_ms, early.into_iter().filter_map(in_range));
        let range_of = |timeline: TimelineId| ranges.of_slot(timeline.slot(slot_count));
        let mut tails = self.tails.lock();
        if state.memtables().any(Memtable::has_overwrites) {
            // One of them may be of a row in the file just published.
            tails.clear();
        } else {
            tails.flushed(&frozen.memtable, range_of);
        }
    }

    /// The last entry whose effects are in files: the log may be purged up to it.
    pub fn flushed(&self) -> Option<LogId> {
        self.state.read().flushed.log_id
    }

    /// Where the slots are by what is in files. Apply may be further, or have failed half way through an entry.
    pub fn flushed_slots(&self) -> SlotTable {
        self.state.read().flushed.slots.clone()
    }
}

/// Everything of a memtable but its applied row, in key order; not what it has of dropped slots.
pub(crate) fn write_rows(
    memtable: &Memtable,
    ranges: &Ranges,
    dropped: &[SlotId],
    writer: &mut dyn FileWriter,
) -> Result<(), Error> {
    let part = Part {
        memtable,
        ranges,
        handovers: &[],
        dropped: dropped.to_vec(),
    };
    write_parts(&[part], writer)
}

/// One shard's share of a file.
struct Part<'a> {
    memtable: &'a Memtable,
    ranges: &'a Ranges,
    /// What becomes of others of the shard's slots.
    handovers: &'a [Handover],
    /// Slots whose rows in the memtable are nobody's.
    dropped: Vec<SlotId>,
}

impl Part<'_> {
    /// The shard's ranges, and those that it hands over.
    fn all_ranges(&self) -> impl Iterator<Item = &Ranges> {
        let taken = self.handovers.iter().filter(|other| !other.is_refused());
        std::iter::once(self.ranges).chain(taken.map(|other| &other.ranges))
    }

    /// The range that a row of the memtable belongs to; none, if its slot was dropped.
    fn range_of(&self, slot: SlotId) -> Result<Option<RangeId>, Error> {
        let mut all = self.all_ranges();
        match all.find_map(|ranges| ranges.of_slot(slot)) {
            None if !self.dropped.contains(&slot) => Err(Error::UnknownSlot { slot }),
            range => Ok(range),
        }
    }
}

fn write_parts(parts: &[Part<'_>], writer: &mut dyn FileWriter) -> Result<(), Error> {
    write_state(parts, writer)?;
    fail_point!("build", |_| std::process::abort());
    write_dedup(parts, writer)
}

/// State rows and timelines, range by range; a range is one shard's. In a range the message rows
/// come first; overwritten ones are among the state rows, so the two are merged.
fn write_state(parts: &[Part<'_>], writer: &mut dyn FileWriter) -> Result<(), Error> {
    let mut timelines: Vec<(RangeId, TimelineId, &Tail)> = Vec::new();
    let mut ranges: Vec<(RangeId, SlotId, &Memtable)> = Vec::new();
    for part in parts {
        for (timeline, tail) in part.memtable.timelines() {
            if let Some(range) = part.range_of(tail.slot())? {
                timelines.push((range, *timeline, tail));
            }
        }
        let of_part = part.all_ranges().flat_map(Ranges::by_range);
        ranges.extend(of_part.map(|(range, slot)| (range, slot, part.memtable)));
    }
    timelines.sort_unstable_by_key(|(range, timeline, _)| (*range, *timeline));
    ranges.sort_unstable_by_key(|(range, ..)| *range);
    let mut timelines = timelines.into_iter().peekable();
    let mut row_bytes = Vec::new();
    for (range, slot, memtable) in ranges {
        let mut rows = memtable
            .state_from((slot, [].as_slice().into()))
            .take_while(|((row_slot, _), _)| *row_slot == slot)
            .peekable();
        let mut key = crate::view::state_key(range, &[]);
        let front = key.len();
        while let Some((_, timeline, tail)) = timelines.next_if(|(other, ..)| *other == range) {
            let mut seq = tail.first();
            while let Some(row) = memtable.row(tail, seq) {
                let suffix = StateKey::Message { timeline, seq }.encode();
                while let Some(((_, before), value)) =
                    rows.next_if(|((_, before), _)| before.as_slice() < suffix.as_slice())
                {
                    key.truncate(front);
                    key.extend_from_slice(before.as_slice());
                    write_row(writer, &key, value.as_deref())?;
                }
                key.truncate(front);
                key.extend_from_slice(suffix.as_slice());
                seq = seq.next();
                // A row that is overwritten in its tail has no other here: this one was trimmed since.
                if let Some((_, later)) = rows.next_if(|((_, same), _)| *same == suffix) {
                    write_row(writer, &key, later.as_deref())?;
                    continue;
                }
                row_bytes.clear();
                row.encode(&mut row_bytes);
                writer.put(&key, &row_bytes)?;
            }
        }
        for ((_, suffix), value) in rows {
            key.truncate(front);
            key.extend_from_slice(suffix.as_slice());
            write_row(writer, &key, value.as_deref())?;
        }
    }
    Ok(())
}

fn write_row(writer: &mut dyn FileWriter, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
    match value {
        Some(value) => writer.put(key, value),
        None => writer.delete(key),
    }
}

fn write_dedup(parts: &[Part<'_>], writer: &mut dyn FileWriter) -> Result<(), Error> {
    let count = parts
        .iter()
        .map(|part| part.memtable.dedup_rows().len())
        .sum();
    let mut rows = Vec::with_capacity(count);
    for part in parts {
        for row in part.memtable.dedup_rows() {
            if let Some(range) = part.range_of(row.slot)? {
                rows.push((row.key.hour(), range, row.key, part.memtable, row));
            }
        }
    }
    rows.sort_unstable_by_key(|(hour, range, key, ..)| (*hour, *range, *key));
    let mut stored = Vec::with_capacity(64);
    for (hour, range, key, memtable, row) in rows {
        stored.clear();
        StoredKey::Dedup {
            hour,
            range,
            suffix: &key.encode(),
        }
        .encode(&mut stored);
        writer.put(&stored, memtable.dedup_value(row))?;
    }
    Ok(())
}
