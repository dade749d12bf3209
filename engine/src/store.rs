//! The store of one node: the base store, the shards on it, and which ranges hold whose rows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::applied::AppliedState;
use crate::base::memory::{MemoryBase, MemoryDisk};
use crate::base::rocks::RocksBase;
use crate::base::{Base, FileLife, FileWriter, ReadView};
use crate::dead_letter::read_totals;
use crate::decode::{Malformed, Reader};
use crate::dedup::Floors;
use crate::error::Error;
use crate::heads::HeadCache;
use crate::hidden_hours::HiddenHours;
use crate::id::{RangeId, ShardId, SlotId};
use crate::import::{StagedRange, StagedRanges, floor_hour};
use crate::key::{NodeKey, StoredKey};
use crate::known::KnownKeys;
use crate::lanes::read_lanes;
use crate::memtable::Memtable;
use crate::options::EngineOptions;
use crate::range::{RangeRow, RangeState, Ranges};
use crate::shard::Shard;
use crate::split::Replicas;
use crate::state::ShardState;
use crate::view::{after_prefix, state_key};

/// The format of a store's rows and files that this build reads and writes.
///
/// 2: the applied row carries the cluster options. Logs and stores of format 1 were judged by options
/// of the node, which nobody can know now: they are not read.
pub const STORE_FORMAT: u32 = 2;

const STATE_DIR: &str = "state";
const STAGING_DIR: &str = "staging";

/// What the shards of a store have in common.
pub(crate) struct StoreCore {
    pub(crate) base: Box<dyn Base>,
    pub(crate) options: Arc<EngineOptions>,
    /// Held by whoever changes the base store: one at a time.
    pub(crate) change: Mutex<RangeCounter>,
    /// The hour before which files of dedup rows have been removed.
    pub(crate) hours_dropped: AtomicU32,
    /// The ranges that imports fill. Taken last of all locks.
    pub(crate) staged: Mutex<StagedRanges>,
    /// Which shards have replicas here. Taken last of all locks.
    pub(crate) replicas: Mutex<Replicas>,
    /// Bytes pinned by all memtables of the node.
    pub(crate) memtable_bytes: AtomicU64,
}

impl StoreCore {
    /// The memtables of all shards together have reached their budget.
    pub(crate) fn memtables_full(&self) -> bool {
        self.memtable_bytes.load(Ordering::Relaxed) >= self.options.memtables_bytes_max
    }

    /// They are half-way from it to where apply must wait.
    pub(crate) fn memtables_overfilling(&self) -> bool {
        self.memtable_bytes.load(Ordering::Relaxed) / 3 >= self.options.memtables_bytes_max / 2
    }

    /// They are so far beyond it that apply must wait.
    pub(crate) fn memtables_overfull(&self) -> bool {
        self.memtable_bytes.load(Ordering::Relaxed) / 2 >= self.options.memtables_bytes_max
    }
}

/// The greatest range ever given out on this node.
pub(crate) struct RangeCounter(u32);

impl RangeCounter {
    /// A range that no row has ever had.
    pub(crate) fn next(&mut self) -> RangeId {
        self.0 = self
            .0
            .checked_add(1)
            .expect("four thousand million ranges outlive a node");
        RangeId(self.0)
    }
}

/// Everything that one node has flushed, and its shards.
pub struct Store {
    pub(crate) core: Arc<StoreCore>,
    shards: RwLock<BTreeMap<ShardId, Arc<Shard>>>,
}

impl Store {
    /// Opens the store under a node's directory (`state/`, and `staging/`, which is emptied),
    /// made if it is not there. Rows of ranges that nothing uses any more are dropped.
    ///
    /// # Errors
    /// RocksDB cannot open it; it has another format or slot count; a row in range 0 is corrupt.
    pub fn open(dir: &Path, options: EngineOptions) -> Result<Store, Error> {
        let state = dir.join(STATE_DIR);
        let base = RocksBase::open(&state, &dir.join(STAGING_DIR), &options)?;
        Store::on_base(Box::new(base), &state, options)
    }

    /// Opens the store on a simulated disk.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in_memory(disk: &MemoryDisk, options: EngineOptions) -> Result<Store, Error> {
        Store::on_base(
            Box::new(MemoryBase::open(disk)),
            &PathBuf::from("memory"),
            options,
        )
    }

    fn on_base(base: Box<dyn Base>, dir: &Path, options: EngineOptions) -> Result<Store, Error> {
        check_format(base.as_ref(), dir, options.slot_count)?;
        let node = NodeRows::read(base.view().as_ref())?;
        let (staged, unused) = node.staged_and_unused(base.view().as_ref())?;
        drop_ranges(base.as_ref(), &unused)?;
        let options = Arc::new(options);
        let change = Mutex::new(RangeCounter(node.range_counter));
        let core = Arc::new(StoreCore {
            base,
            options,
            change,
            hours_dropped: AtomicU32::new(0),
            staged: Mutex::new(staged),
            replicas: Mutex::default(),
            memtable_bytes: AtomicU64::new(0),
        });
        let files = core.base.view();
        let store = Store {
            core,
            shards: RwLock::default(),
        };
        for (shard, applied) in node.applied {
            let ranges = node.live.get(&shard).cloned().unwrap_or_default();
            let opened = new_shard(&store.core, shard, files.clone(), ranges, applied);
            store.insert(Arc::new(opened));
        }
        Ok(store)
    }

    /// The shards with a replica here.
    pub fn shards(&self) -> Vec<ShardId> {
        self.shards.read().keys().copied().collect()
    }

    /// A shard's replica.
    pub fn shard(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.shards.read().get(&shard).cloned()
    }

    /// Makes an empty replica that holds these slots, a set in any order, durably.
    ///
    /// # Errors
    /// The shard is here already, a slot is not below the slot count, or the base store failed.
    pub fn create_shard(
        &self,
        shard: ShardId,
        slots: impl IntoIterator<Item = u16>,
    ) -> Result<Arc<Shard>, Error> {
        let mut counter = self.core.change.lock();
        if self.shards.read().contains_key(&shard) {
            return Err(Error::Stopped {
                reason: format!("shard {shard} exists already"),
            });
        }
        let slots: BTreeSet<SlotId> = slots.into_iter().map(SlotId).collect();
        if let Some(slot) = slots.last().copied()
            && slot.0 >= self.core.options.slot_count
        {
            return Err(Error::UnknownSlot { slot });
        }
        let mut ranges = Ranges::default();
        let mut rows = NodeFile::default();
        for slot in slots {
            let range = counter.next();
            ranges.insert(slot, range);
            let row = RangeRow {
                shard,
                slot,
                state: RangeState::Live,
            };
            rows.put(NodeKey::Range(range), row.encode());
        }
        rows.put(NodeKey::RangeCounter, counter.0.to_be_bytes().to_vec());
        let applied = AppliedState::default();
        rows.put(NodeKey::Applied(shard), applied.encode());
        let mut writer = self.core.base.writer(FileLife::Short)?;
        rows.write(writer.as_mut())?;
        self.core.base.ingest(vec![writer.finish()?], &[])?;
        let made = Arc::new(new_shard(
            &self.core,
            shard,
            self.core.base.view(),
            ranges,
            applied,
        ));
        self.insert(made.clone());
        Ok(made)
    }

    pub(crate) fn insert(&self, shard: Arc<Shard>) {
        self.core.replicas.lock().ids.insert(shard.id());
        self.shards.write().insert(shard.id(), shard);
    }

    /// After the ingest that removed its rows.
    pub(crate) fn forget(&self, shard: ShardId) {
        self.core.replicas.lock().ids.remove(&shard);
        self.shards.write().remove(&shard);
    }

    /// Removes files of dedup rows that no read can show any more, see `hidden_hours.rs`. To be
    /// called after flushes; has work to do about once an hour.
    ///
    /// # Errors
    /// The base store failed.
    pub fn drop_hidden_hours(&self) -> Result<(), Error> {
        let _change = self.core.change.lock();
        // First of all: what becomes live meanwhile is in its shard's views before it leaves this.
        let staged: Vec<u32> = {
            let staged = self.core.staged.lock();
            staged.values().map(|found| found.floor_hour).collect()
        };
        if !self.core.replicas.lock().born.is_empty() {
            // Nobody knows their floors yet.
            return Ok(());
        }
        let ends = self
            .shards
            .read()
            .values()
            .map(|shard| shard.state.read().hidden_hours.end())
            .chain(staged)
            .min();
        let end = ends.unwrap_or(0);
        if end > self.core.hours_dropped.load(Ordering::Relaxed) {
            self.core.base.drop_hours(end)?;
            self.core.hours_dropped.store(end, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a copy of everything flushed in a directory that does not exist yet; it can be
    /// opened like a node's.
    ///
    /// # Errors
    /// The copy cannot be made.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), Error> {
        let _change = self.core.change.lock();
        std::fs::create_dir_all(dir).map_err(|source| Error::Io {
            operation: "create",
            path: dir.to_owned(),
            source,
        })?;
        self.core.base.checkpoint(&dir.join(STATE_DIR))
    }
}

pub(crate) fn new_shard(
    core: &Arc<StoreCore>,
    shard: ShardId,
    files: Arc<dyn ReadView>,
    ranges: Ranges,
    applied: AppliedState,
) -> Shard {
    let known = KnownKeys::read(files.as_ref(), &ranges, applied.time_ms).unwrap_or_else(|fault| {
        // A broken block must not keep the rest of the store from opening: whoever needs it meets
        // the fault, as every look-up now goes to the files.
        tracing::warn!(%shard, error = %fault, "the recent dedup rows cannot be read");
        KnownKeys::everything()
    });
    let lanes = read_lanes(files.as_ref(), &ranges, core.options.slot_count);
    let letters = read_totals(files.as_ref(), &ranges);
    let unread = lanes.as_ref().err().or(letters.as_ref().err());
    let fault = unread.map(|fault| {
        // Without its outboxes this replica would lose what others wait for, and no slot may count
        // its dead letters from a wrong number; the rest of the store opens.
        tracing::error!(%shard, error = %fault, "lanes or totals of dead letters cannot be read");
        fault.to_string()
    });
    let mut hidden_hours = HiddenHours::default();
    hidden_hours.opened(&files);
    let ranges = Arc::new(ranges);
    let state = ShardState {
        options: core.options.clone(),
        active: Memtable::default(),
        frozen: VecDeque::new(),
        files,
        flushed_ranges: ranges.clone(),
        ranges,
        map_changes: BTreeMap::new(),
        handovers: Vec::new(),
        dropped: Vec::new(),
        heads: HeadCache::new(core.options.head_cache_entries),
        known,
        hidden_hours,
        floors: Floors::default(),
        lanes: lanes.unwrap_or_default(),
        letters: letters.unwrap_or_default(),
        flushed: applied.clone(),
        applied,
        cut: None,
        cut_hash: None,
        generation: 0,
        rewrites: 0,
        batches: 0,
        fault,
        retired: false,
    };
    let shard = Shard::new(shard, core.clone(), state);
    shard.measure();
    shard
}

/// Reads or, in an empty store, writes the format row.
fn check_format(base: &dyn Base, dir: &Path, slot_count: u16) -> Result<(), Error> {
    let key = state_key(RangeId::NODE, NodeKey::Format.encode().as_slice());
    let Some(value) = base.view().get(&key)? else {
        let mut writer = base.writer(FileLife::Short)?;
        let mut value = STORE_FORMAT.to_be_bytes().to_vec();
        value.extend_from_slice(&slot_count.to_be_bytes());
        writer.put(&key, &value)?;
        return base.ingest(vec![writer.finish()?], &[]);
    };
    let mut reader = Reader::new("format row", &value);
    let read = reader.u32().and_then(|found| Ok((found, reader.u16()?)));
    let (found, stored) = read.map_err(|fault| Error::corrupt_row(&key, fault))?;
    if found != STORE_FORMAT {
        let (path, supported) = (dir.to_owned(), STORE_FORMAT);
        return Err(Error::UnknownFormat {
            what: "the store",
            path,
            found,
            supported,
        });
    }
    if stored != slot_count {
        return Err(Error::SlotCount {
            path: dir.to_owned(),
            stored,
            asked: slot_count,
        });
    }
    Ok(())
}

/// Hides the rows of ranges, then forgets the ranges.
pub(crate) fn drop_ranges(base: &dyn Base, ranges: &[RangeId]) -> Result<(), Error> {
    if ranges.is_empty() {
        return Ok(());
    }
    let mut rows = NodeFile::default();
    for range in ranges {
        rows.delete(NodeKey::Range(*range));
    }
    let mut writer = base.writer(FileLife::Short)?;
    rows.write(writer.as_mut())?;
    base.ingest(vec![writer.finish()?], ranges)
}

/// Rows of range 0 on their way into a file.
#[derive(Default)]
pub(crate) struct NodeFile {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl NodeFile {
    pub(crate) fn put(&mut self, key: NodeKey, value: Vec<u8>) {
        self.rows.insert(
            state_key(RangeId::NODE, key.encode().as_slice()),
            Some(value),
        );
    }

    pub(crate) fn delete(&mut self, key: NodeKey) {
        self.rows
            .insert(state_key(RangeId::NODE, key.encode().as_slice()), None);
    }

    pub(crate) fn put_range_counter(&mut self, counter: &RangeCounter) {
        self.put(NodeKey::RangeCounter, counter.0.to_be_bytes().to_vec());
    }

    pub(crate) fn write(&self, writer: &mut dyn FileWriter) -> Result<(), Error> {
        self.rows.iter().try_for_each(|(key, value)| match value {
            Some(value) => writer.put(key, value),
            None => writer.delete(key),
        })
    }
}

/// What range 0 says.
#[derive(Default)]
struct NodeRows {
    range_counter: u32,
    applied: BTreeMap<ShardId, AppliedState>,
    live: BTreeMap<ShardId, Ranges>,
    staged: Vec<(RangeId, RangeRow)>,
    dead: Vec<RangeId>,
}

impl NodeRows {
    /// The staged ranges whose imports are not over; and all that are of no use any more.
    fn staged_and_unused(
        &self,
        files: &dyn ReadView,
    ) -> Result<(StagedRanges, Vec<RangeId>), Error> {
        let (mut staged, mut unused) = (StagedRanges::new(), self.dead.clone());
        for (range, RangeRow { shard, slot, state }) in self.staged.iter().copied() {
            let RangeState::Staged { epoch, digest } = state else {
                continue;
            };
            let applied = self.applied.get(&shard);
            if applied.is_none_or(|applied| applied.slots.import_is_over(slot, epoch)) {
                unused.push(range);
                continue;
            }
            let found = StagedRange {
                range,
                epoch,
                digest,
                floor_hour: floor_hour(files, slot, range)?,
                busy: false,
            };
            // One ingest replaces a copy by the next, so there is one.
            unused.extend(staged.insert((shard, slot), found).map(|found| found.range));
        }
        Ok((staged, unused))
    }

    fn read(files: &dyn ReadView) -> Result<NodeRows, Error> {
        let first = state_key(RangeId::NODE, &[]);
        let mut cursor = files.cursor(&first, &after_prefix(&first));
        let mut rows = NodeRows::default();
        cursor.seek(&first)?;
        while let Some((key, value)) = cursor.row() {
            rows.add(key, value)
                .map_err(|malformed| Error::corrupt_row(key, malformed))?;
            cursor.next()?;
        }
        Ok(rows)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let suffix = match StoredKey::split(key)? {
            StoredKey::State { suffix, .. } | StoredKey::Dedup { suffix, .. } => suffix,
        };
        match NodeKey::decode(suffix)? {
            NodeKey::Format => {}
            NodeKey::RangeCounter => {
                self.range_counter = Reader::new("range counter", value).u32()?;
            }
            NodeKey::Range(range) => {
                let row = RangeRow::decode(value)?;
                match row.state {
                    RangeState::Live => {
                        self.live
                            .entry(row.shard)
                            .or_default()
                            .insert(row.slot, range);
                    }
                    RangeState::Staged { .. } => self.staged.push((range, row)),
                    RangeState::Dead => self.dead.push(range),
                }
            }
            NodeKey::Applied(shard) => {
                self.applied.insert(shard, AppliedState::decode(value)?);
            }
        }
        Ok(())
    }
}
