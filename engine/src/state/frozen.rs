//! What a freeze and a cut leave behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::applied::AppliedState;
use crate::base::ReadView;
use crate::id::{RangeId, SlotId};
use crate::memtable::Memtable;
use crate::range::{RangeRow, RangeState, Ranges};
use crate::split::Handover;

/// A memtable on its way into a file, with the applied row of its last entry.
pub(crate) struct Frozen {
    pub(crate) memtable: Memtable,
    pub(crate) applied: AppliedState,
    /// The live ranges after that entry.
    pub(crate) ranges: Arc<Ranges>,
    /// Map rows that its entries have changed.
    pub(crate) map_changes: BTreeMap<RangeId, RangeRow>,
    /// The shards that its last entry has made of slots of this one.
    pub(crate) handovers: Vec<Handover>,
    /// The lowest floor of the shard's slots after that entry, if apply knew it.
    pub(crate) floor_ms: Option<u64>,
    pub(crate) generation: u64,
    pub(crate) cut: bool,
}

impl Frozen {
    /// Ranges that the flush of this memtable makes dead, and their slots.
    pub(crate) fn dead(&self) -> impl Iterator<Item = (RangeId, SlotId)> {
        let dead = self
            .map_changes
            .iter()
            .filter(|(_, row)| row.state == RangeState::Dead);
        let dead = dead.map(|(range, row)| (*range, row.slot));
        dead.chain(self.handovers.iter().flat_map(Handover::dead))
    }

    /// The flush of this memtable ends what the shard has to do with a range.
    pub(crate) fn ends(&self, range: RangeId) -> bool {
        let mut handovers = self.handovers.iter();
        self.dead().any(|(dead, _)| dead == range)
            || handovers.any(|handover| handover.ranges.slot_of(range).is_some())
    }
}

/// The files as they were at a cut.
pub(crate) struct CutView {
    pub(crate) files: Arc<dyn ReadView>,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) applied: AppliedState,
}
