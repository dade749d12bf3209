//! A shard's state under its one lock, and what a procedure sees of it.

mod frozen;
mod slots;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::applied::{AppliedState, LogId};
use crate::base::ReadView;
use crate::cluster_options::ClusterOptions;
use crate::command::Refusal;
use crate::dead_letter::DeadLetterTotals;
use crate::dedup::Floors;
use crate::error::Error;
use crate::hash::StateHash;
use crate::heads::HeadCache;
use crate::hidden_hours::HiddenHours;
use crate::id::{MessageId, RangeId, Seq, ShardId, SlotId, TimelineId, TimelineKind, UserId};
use crate::import::ReadyImports;
use crate::item::{Item, LaneId, OutboxItem};
use crate::key::{DedupKey, KeyBytes, StateKey, StoredKey};
use crate::known::KnownKeys;
use crate::lanes::Lanes;
use crate::memtable::{Memtable, TailPlace};
use crate::options::EngineOptions;
use crate::range::{RangeRow, Ranges};
use crate::row::{NewRow, Row, StoredRow};
use crate::split::Handover;
use crate::table;
use crate::view::{self, Overlay};

pub(crate) use frozen::{CutView, Frozen};

/// Everything that readers must see together: active and frozen memtables, files, ranges, caches.
pub(crate) struct ShardState {
    pub(crate) options: Arc<EngineOptions>,
    pub(crate) active: Memtable,
    /// Oldest first. More than one only if a cut came while a flush was on its way.
    pub(crate) frozen: VecDeque<Arc<Frozen>>,
    pub(crate) files: Arc<dyn ReadView>,
    /// The live ranges as of the last entry, those of frozen slots included.
    pub(crate) ranges: Arc<Ranges>,
    /// The live ranges as of the last flush.
    pub(crate) flushed_ranges: Arc<Ranges>,
    /// Map rows that apply has changed since the last freeze.
    pub(crate) map_changes: BTreeMap<RangeId, RangeRow>,
    /// What the entry that is applied has made other shards of.
    pub(crate) handovers: Vec<Handover>,
    /// What apply has dropped or handed over and no ingested flush has: memtables may hold rows of these
    /// slots, which are nobody's here.
    pub(crate) dropped: Vec<(SlotId, RangeId)>,
    pub(crate) heads: HeadCache,
    pub(crate) applied: AppliedState,
    /// Which dedup rows the files may hold.
    pub(crate) known: KnownKeys,
    /// The dedup floors of the slots, as apply knows them; to be emptied by an install.
    pub(crate) floors: Floors,
    /// The lanes of the slots as of the last entry, in the memtables or not.
    pub(crate) lanes: Lanes,
    /// The dead letters of the slots that are here, counted together, as of the last entry.
    pub(crate) letters: DeadLetterTotals,
    /// Which dedup hours the read views hide.
    pub(crate) hidden_hours: HiddenHours,
    /// The applied row in the files.
    pub(crate) flushed: AppliedState,
    /// The read view of the last flush that a cut ended.
    pub(crate) cut: Option<CutView>,
    /// The hash of the last cut, once somebody has asked for it.
    pub(crate) cut_hash: Option<StateHash>,
    /// Rises when an install throws the memtables away: what was built from them is void.
    pub(crate) generation: u64,
    /// Rises when a row is overwritten or an install replaces all: what a reader read before must
    /// not get into a cache after.
    pub(crate) rewrites: u64,
    pub(crate) batches: u64,
    /// Why the shard can't go on.
    pub(crate) fault: Option<String>,
    /// The replica was removed from the node: nothing may bring it back through this handle.
    pub(crate) retired: bool,
}

impl ShardState {
    /// Memtables, the newest first.
    pub(crate) fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        let frozen = self.frozen.iter().rev().map(|frozen| &frozen.memtable);
        std::iter::once(&self.active).chain(frozen)
    }

    /// The live range of a slot that is served.
    pub(crate) fn range(&self, slot: SlotId) -> Result<RangeId, Error> {
        match self.ranges.of_slot(slot) {
            #[cfg(feature = "planted")]
            Some(range) if mailbox_planted::is("two-slot-owners") => Ok(range),
            Some(range) if !self.applied.slots.is_frozen(slot) => Ok(range),
            Some(_) | None => Err(match self.applied.slots.redirect(slot) {
                Some((shard, epoch)) => Error::WrongOwner { slot, shard, epoch },
                None => Error::UnknownSlot { slot },
            }),
        }
    }

    /// Slots that apply has dropped, whose rows may still be in memtables.
    pub(crate) fn dropped_slots(&self) -> Vec<SlotId> {
        self.dropped.iter().map(|(slot, _)| *slot).collect()
    }

    /// What the memtables say about a key: a value, a tombstone (`Some(None)`), or nothing.
    pub(crate) fn in_memory(&self, slot: SlotId, key: &KeyBytes) -> Option<Option<Bytes>> {
        self.memtables()
            .find_map(|memtable| memtable.get(slot, key))
            .cloned()
    }

    /// A timeline's head, as far as memory knows it. The cache comes first: each append puts its
    /// seq there, so what it has is never older than the memtables.
    pub(crate) fn head_in_memory(&self, range: RangeId, timeline: TimelineId) -> Option<Seq> {
        let tail = |memtable: &Memtable| Some(memtable.tail(memtable.timeline(timeline)?).last());
        self.heads
            .get(range, timeline)
            .or_else(|| self.memtables().find_map(tail))
    }

    /// Ends the active memtable. The caller stands at an entry boundary.
    pub(crate) fn freeze(&mut self, cut: bool) {
        self.lanes.freeze(&mut self.active);
        let memtable = std::mem::take(&mut self.active);
        let (applied, generation) = (self.applied.clone(), self.generation);
        let floor_ms = self.floors.lowest();
        let ranges = self.ranges.clone();
        let map_changes = std::mem::take(&mut self.map_changes);
        let handovers = std::mem::take(&mut self.handovers);
        self.frozen.push_back(Arc::new(Frozen {
            memtable,
            applied,
            ranges,
            map_changes,
            handovers,
            floor_ms,
            generation,
            cut,
        }));
    }

    /// There is something that files do not have.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.frozen.is_empty() || self.applied != self.flushed
    }

    /// The active memtable has reached its budget.
    pub(crate) fn is_full(&self) -> bool {
        self.active.bytes() >= self.options.memtable_bytes_max
    }

    /// Fails if a fault has stopped the shard.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.fault {
            None => Ok(()),
            Some(reason) => Err(Error::Stopped {
                reason: reason.clone(),
            }),
        }
    }
}

/// What a batch did that others wait for.
#[derive(Default)]
pub(crate) struct Effects {
    /// The rows that it appended, by timeline, in the order in which it touched them first.
    pub(crate) appended: Vec<(TimelineId, Vec<Row>)>,
    /// The items that it put into outboxes.
    pub(crate) outbox: Vec<OutboxItem>,
}

/// What a procedure sees and changes: the shard's state as of the commands before it.
///
/// A key is looked up in the active memtable, then the frozen ones, then the files. Nothing here
/// is undone: a procedure decides first and changes afterwards.
pub(crate) struct Context<'a> {
    state: &'a mut ShardState,
    effects: &'a mut Effects,
    shard: ShardId,
    batch: u64,
    log_id: LogId,
    cut: bool,
    /// What the imports that this entry commits become live with.
    pub(crate) imports: ReadyImports,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        state: &'a mut ShardState,
        effects: &'a mut Effects,
        shard: ShardId,
        batch: u64,
        log_id: LogId,
    ) -> Context<'a> {
        Context {
            state,
            effects,
            shard,
            batch,
            log_id,
            cut: false,
            imports: ReadyImports::default(),
        }
    }

    /// This is the meta shard.
    pub(crate) fn is_meta(&self) -> bool {
        self.shard == ShardId::META
    }

    /// The entry that is applied.
    pub(crate) fn log_id(&self) -> LogId {
        self.log_id
    }

    /// The slots that this shard has rows of, in their order.
    pub(crate) fn slots(&self) -> Vec<SlotId> {
        self.state.ranges.slots()
    }

    /// The lanes of this shard's slots.
    pub(crate) fn lanes(&mut self) -> &mut Lanes {
        &mut self.state.lanes
    }

    /// What the dead letters of all slots count together: for whoever changes the totals of one.
    pub(crate) fn letters(&mut self) -> &mut DeadLetterTotals {
        &mut self.state.letters
    }

    /// An item on this lane takes effect in this apply: the destination is here, and nothing
    /// rides the lane. What was not acked yet is now, as both ends are here.
    pub(crate) fn delivers_at_once(&mut self, source: SlotId, destination: SlotId) -> bool {
        if !self.holds(destination) || !self.state.lanes.is_level(source, destination) {
            return false;
        }
        let (sent, acked) = self.state.lanes.sent_and_acked(source, destination);
        if acked < sent {
            self.state.lanes.ack(source, destination, sent);
        }
        true
    }

    /// Puts an item into the outbox, for the relay.
    pub(crate) fn queue(&mut self, source: SlotId, destination: SlotId, item: Item) {
        debug_assert!(self.holds(source), "items come from slots of this shard");
        let lane = LaneId::between(source, destination);
        let seq = self.state.lanes.push(source, destination, item.clone());
        self.effects.outbox.push(OutboxItem { lane, seq, item });
    }

    /// What all replicas judge by.
    ///
    /// # Errors
    /// `NotReady`: the shard has none yet.
    pub(crate) fn cluster_options(&self) -> Result<ClusterOptions, Refusal> {
        self.state.applied.cluster_options.ok_or(Refusal::NotReady)
    }

    /// Sets what the commands after this one are judged by.
    pub(crate) fn set_cluster_options(&mut self, options: ClusterOptions) {
        self.state.applied.cluster_options = Some(options);
    }

    /// Hash buckets of owner ids: a constant of the cluster.
    pub(crate) fn slot_count(&self) -> u16 {
        self.state.options.slot_count
    }

    /// The dedup floors of the slots, as apply knows them.
    pub(crate) fn floors(&mut self) -> &mut Floors {
        &mut self.state.floors
    }

    /// The slot of an owner.
    pub(crate) fn slot_of(&self, owner: u64) -> SlotId {
        crate::id::slot_of_owner(owner, self.state.options.slot_count)
    }

    /// The slot that holds a timeline.
    pub(crate) fn slot_of_timeline(&self, timeline: TimelineId) -> SlotId {
        timeline.slot(self.state.options.slot_count)
    }

    /// The slot of a handle.
    pub(crate) fn slot_of_handle(&self, handle: &str) -> SlotId {
        crate::id::slot_of_handle(handle, self.state.options.slot_count)
    }

    /// Replicated time, in milliseconds since the Unix epoch.
    pub(crate) fn time_ms(&self) -> u64 {
        self.state.applied.time_ms
    }

    /// Takes an entry's time: replicated time never goes back.
    pub(crate) fn advance_time(&mut self, entry_time_ms: u64) {
        let time_ms = &mut self.state.applied.time_ms;
        *time_ms = entry_time_ms.max(*time_ms);
    }

    /// The greatest message id newly assigned so far.
    pub(crate) fn last_message_id(&self) -> MessageId {
        self.state.applied.last_message_id
    }

    /// Notes a newly assigned message id.
    pub(crate) fn set_last_message_id(&mut self, id: MessageId) {
        self.state.applied.last_message_id = id;
    }

    /// Ends the memtable with this entry, for a hash that is compared across replicas.
    pub(crate) fn cut(&mut self) {
        self.cut = true;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The greatest seq of a timeline.
    pub(crate) fn head(&mut self, timeline: TimelineId) -> Result<Seq, Error> {
        let slot = self.slot_of_timeline(timeline);
        let range = self.state.range(slot)?;
        if let Some(head) = self.state.head_in_memory(range, timeline) {
            return Ok(head);
        }
        let head = self.head_in_files(timeline, slot, range)?;
        self.state.heads.put(range, timeline, head);
        Ok(head)
    }

    fn head_in_files(
        &mut self,
        timeline: TimelineId,
        slot: SlotId,
        range: RangeId,
    ) -> Result<Seq, Error> {
        let last = view::last_seq(self.state.files.as_ref(), range, timeline)?;
        let key = StateKey::TrimPoint { timeline };
        let trimmed = self.get_in(slot, &key.encode())?;
        Ok(last.max(view::seq_value(trimmed, &key)?))
    }

    /// Notes a timeline whose owner has just been made: its first append need not look for rows.
    pub(crate) fn begin_timeline(&mut self, timeline: TimelineId) -> Result<(), Error> {
        let range = self.state.range(self.slot_of_timeline(timeline))?;
        self.state.heads.put_owned(range, timeline, Seq::ZERO);
        Ok(())
    }

    /// The user has been registered. Mailboxes of others stay empty, so a head spares the look-up;
    /// and of a user whom nobody has written to yet, the row is looked up once.
    pub(crate) fn user_exists(&mut self, user: UserId) -> Result<bool, Error> {
        let mailbox = user.mailbox();
        let range = self.state.range(self.slot_of(user.0))?;
        if self.state.heads.is_owned(range, mailbox) {
            return Ok(true);
        }
        let head = self.head(mailbox)?;
        let exists = head > Seq::ZERO || self.get(&StateKey::User { user })?.is_some();
        if exists {
            self.state.heads.put_owned(range, mailbox, head);
        }
        Ok(exists)
    }

    /// Appends a row to a timeline under the next seq: the only place that issues one.
    pub(crate) fn append(&mut self, timeline: TimelineId, row: NewRow) -> Result<Seq, Error> {
        let place = self.tail_place(timeline)?;
        let tail = self.state.active.tail(place);
        // Of a tail just begun, `last` is one before its first.
        let (slot, seq) = (tail.slot(), tail.last().next());
        let range = self.state.range(slot)?;
        let stored = row.at(timeline, seq);
        let row = stored.to_row(timeline, seq).map_err(|malformed| {
            Error::corrupt_row(
                StateKey::Message { timeline, seq }.encode().as_slice(),
                malformed,
            )
        })?;
        self.state.active.append(place, stored);
        self.state.heads.put(range, timeline, seq);
        if timeline.kind == TimelineKind::DeadLetters {
            // Nobody subscribes to them.
            return Ok(seq);
        }
        let appended = &mut self.effects.appended;
        let next = u32::try_from(appended.len()).expect("a batch is bounded");
        match self.state.active.touch(place, self.batch, next) {
            Some(index) => appended[usize::try_from(index).expect("fits")].1.push(row),
            None => appended.push((timeline, vec![row])),
        }
        Ok(seq)
    }

    fn tail_place(&mut self, timeline: TimelineId) -> Result<TailPlace, Error> {
        if let Some(place) = self.state.active.timeline(timeline) {
            return Ok(place);
        }
        let head = self.head(timeline)?;
        let slot = self.slot_of_timeline(timeline);
        Ok(self.state.active.begin_tail(timeline, slot, head.next()))
    }

    /// The row of a timeline at a seq above its trim point, checked against its crc. For the few procedures
    /// that read what was appended before.
    pub(crate) fn row(&self, timeline: TimelineId, seq: Seq) -> Result<StoredRow, Error> {
        let slot = self.slot_of_timeline(timeline);
        let key = StateKey::Message { timeline, seq };
        let corrupt = |malformed| Error::corrupt_row(key.encode().as_slice(), malformed);
        for memtable in self.state.memtables() {
            // What was overwritten is under its own key; in the tail, if it was still there.
            if let Some(value) = memtable.get(slot, &key.encode()).cloned().flatten() {
                return StoredRow::decode(timeline, seq, &value).map_err(corrupt);
            }
            let place = memtable.timeline(timeline);
            let stored = place.and_then(|place| memtable.row(memtable.tail(place), seq));
            if let Some(stored) = stored {
                stored.check(timeline, seq).map_err(corrupt)?;
                return Ok(stored.clone());
            }
        }
        let range = self.state.range(slot)?;
        let value = view::get_state(self.state.files.as_ref(), range, &key.encode())?;
        match value {
            Some(value) => StoredRow::decode(timeline, seq, &value).map_err(corrupt),
            None => Err(Error::MissingRow {
                timeline,
                seq,
                found: Seq::ZERO,
            }),
        }
    }

    /// The greatest seq of a timeline that is no longer here.
    pub(crate) fn trim_point(&mut self, timeline: TimelineId) -> Result<Seq, Error> {
        let key = StateKey::TrimPoint { timeline };
        view::seq_value(self.get(&key)?, &key)
    }

    /// Raises a timeline's trim point from `trimmed`. The rows in between are absent from here on, and their
    /// tombstones get into files together with the trim point.
    pub(crate) fn trim(&mut self, timeline: TimelineId, trimmed: Seq, to: Seq) {
        assert!(trimmed < to, "a trim point only rises");
        self.put(&StateKey::TrimPoint { timeline }, table::encode_u64(to.0));
        let slot = self.slot_of_timeline(timeline);
        for seq in (trimmed.0 + 1..=to.0).map(Seq) {
            let key = StateKey::Message { timeline, seq }.encode();
            self.state.active.put(slot, key, None);
        }
    }

    /// Copies bytes that are about to be appended out of the entry, or the file's block, that they are in.
    pub(crate) fn copied(&mut self, bytes: &[u8]) -> Bytes {
        let copy = Bytes::copy_from_slice(bytes);
        self.state.active.pin(&copy);
        copy
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "recall and edit will use it"))]
    /// Replaces a row that was appended before, at or below the head and above the trim point.
    pub(crate) fn overwrite(
        &mut self,
        timeline: TimelineId,
        seq: Seq,
        row: NewRow,
    ) -> Result<(), Error> {
        let slot = self.slot_of_timeline(timeline);
        assert!(
            seq <= self.head(timeline)?,
            "only rows that were appended are overwritten"
        );
        let stored: StoredRow = row.at(timeline, seq);
        self.state.active.overwrite(timeline, slot, seq, stored);
        self.state.rewrites += 1;
        Ok(())
    }

    /// The value of a state row.
    pub(crate) fn get(&mut self, key: &StateKey) -> Result<Option<Bytes>, Error> {
        let slot = key.slot(self.state.options.slot_count);
        self.get_in(slot, &key.encode())
    }

    fn get_in(&mut self, slot: SlotId, key: &KeyBytes) -> Result<Option<Bytes>, Error> {
        match self.state.in_memory(slot, key) {
            Some(value) => Ok(value),
            None => {
                let range = self.state.ranges.of_slot(slot);
                let range = range.ok_or(Error::UnknownSlot { slot })?;
                view::get_state(self.state.files.as_ref(), range, key)
            }
        }
    }

    /// There are fewer than `max` rows under a prefix. Looks at no more than that many.
    pub(crate) fn has_fewer_rows(
        &self,
        slot: SlotId,
        prefix: &KeyBytes,
        max: u32,
    ) -> Result<bool, Error> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut rows = Overlay::new();
        view::overlay_prefix(self.state, slot, prefix, &mut rows);
        let present = rows.values().flatten().count();
        let room = max.saturating_sub(present);
        let range = self.state.range(slot)?;
        let files = self.state.files.as_ref();
        Ok(room > 0 && view::count_below(files, range, prefix, &rows, room)? < room)
    }

    /// All state rows of a slot whose keys begin with a prefix, in key order.
    pub(crate) fn scan_prefix(
        &mut self,
        slot: SlotId,
        prefix: &KeyBytes,
    ) -> Result<Vec<(KeyBytes, Bytes)>, Error> {
        let mut rows = Overlay::new();
        view::overlay_prefix(self.state, slot, prefix, &mut rows);
        let range = self.state.range(slot)?;
        view::add_prefix(self.state.files.as_ref(), range, prefix, &mut rows)?;
        Ok(view::present(rows))
    }

    /// Writes a state row. Message rows have [`Context::append`] and [`Context::overwrite`].
    pub(crate) fn put(&mut self, key: &StateKey, value: impl Into<Bytes>) {
        let slot = key.slot(self.state.options.slot_count);
        self.state
            .active
            .put(slot, key.encode(), Some(value.into()));
    }

    /// Removes a state row.
    pub(crate) fn delete(&mut self, key: &StateKey) {
        let slot = key.slot(self.state.options.slot_count);
        self.state.active.put(slot, key.encode(), None);
    }

    /// The value of a dedup row, whether or not the floor has passed it.
    pub(crate) fn dedup(&mut self, slot: SlotId, key: &DedupKey) -> Result<Option<Bytes>, Error> {
        let found = self
            .state
            .memtables()
            .find_map(|memtable| memtable.dedup(slot, key));
        if let Some(value) = found {
            return Ok(Some(Bytes::copy_from_slice(value)));
        }
        let (hour, range) = (key.hour(), self.state.range(slot)?);
        if !self.state.known.may_hold(range, key) {
            return Ok(None);
        }
        let mut stored = Vec::with_capacity(48);
        StoredKey::Dedup {
            hour,
            range,
            suffix: &key.encode(),
        }
        .encode(&mut stored);
        self.state.files.get(&stored)
    }

    /// Adds the dedup row of an accepted command.
    pub(crate) fn put_dedup(&mut self, slot: SlotId, key: DedupKey, value: &[u8]) {
        self.state.active.put_dedup(slot, key, value);
    }
}
