//! The command that splits a shard in place, and its bytes.

use std::collections::BTreeSet;

use crate::decode::{Malformed, Reader};
use crate::id::{ShardId, SlotId};

/// A part of the shard's slots becomes a new shard on the same nodes, see `split.rs`. Idempotent by shard
/// and epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitShard {
    /// The new shard: an id that no shard has ever had.
    pub to: ShardId,
    /// Above all before of the slots, as a move's.
    pub epoch: u64,
    /// What it takes: at least one slot, and not all.
    pub slots: BTreeSet<SlotId>,
}

/// `shard u32 | epoch u64`, and the slots.
pub(super) fn encode(call: &SplitShard, out: &mut Vec<u8>) {
    out.extend_from_slice(&call.to.0.to_be_bytes());
    out.extend_from_slice(&call.epoch.to_be_bytes());
    put_slots(&call.slots, out);
}

/// `slots u32 | (slot u16)*`, the slots rising.
pub(super) fn put_slots(slots: &BTreeSet<SlotId>, out: &mut Vec<u8>) {
    let count = u32::try_from(slots.len()).expect("there are at most 65 536 slots");
    out.extend_from_slice(&count.to_be_bytes());
    for slot in slots {
        out.extend_from_slice(&slot.0.to_be_bytes());
    }
}

pub(super) fn decode(reader: &mut Reader<'_>) -> Result<SplitShard, Malformed> {
    let (to, epoch) = (ShardId(reader.u32()?), reader.u64()?);
    let slots = read_slots(reader)?;
    Ok(SplitShard { to, epoch, slots })
}

pub(super) fn read_slots(reader: &mut Reader<'_>) -> Result<BTreeSet<SlotId>, Malformed> {
    let mut slots = BTreeSet::new();
    for _ in 0..reader.u32()? {
        let slot = SlotId(reader.u16()?);
        if slots.last().is_some_and(|last| *last >= slot) {
            return Err(reader.unknown(slot.0));
        }
        slots.insert(slot);
    }
    Ok(slots)
}
