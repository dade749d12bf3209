//! What a freeze and a cut leave behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::applied::AppliedState;
use crate::base::ReadView;
use crate::id::{RangeId, SlotId};
use crate::memtable::Memtable;
use crate::range::{RangeRow, RangeState, Ranges};

/// A memtable on its way into a file, with the applied row of its last entry.
pub(crate) struct Frozen {
    pub(crate) memtable: Memtable,
    pub(crate) applied: AppliedState,
    /// The live ranges after that entry.
    pub(crate) ranges: Arc<Ranges>,
    /// Map rows that its entries have changed.
    pub(crate) map_changes: BTreeMap<RangeId, RangeRow>,
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
        dead.map(|(range, row)| (*range, row.slot))
    }
}

/// The files as they were at a cut.
pub(crate) struct CutView {
    pub(crate) files: Arc<dyn ReadView>,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) applied: AppliedState,
}
