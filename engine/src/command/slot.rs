//! Commands that move slots between shards, and their bytes.

use crate::decode::{Malformed, Reader};
use crate::id::{MessageId, ShardId, SlotId};

/// A step of a slot's move, see `slot_move.rs`. All are idempotent by slot and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveSlot {
    /// The source serves nothing of the slot from now on.
    Freeze {
        /// The slot.
        slot: SlotId,
        /// The move's: above all before of the slot.
        epoch: u64,
        /// Where it goes.
        to: ShardId,
    },
    /// The source serves again. Only after the destination has applied the import's abort.
    Unfreeze {
        /// The slot.
        slot: SlotId,
        /// Above the move's.
        epoch: u64,
    },
    /// The source forgets the slot's rows. Only after the destination has applied the import's commit.
    Drop {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
    },
    /// The destination may stage rows of the slot.
    BeginImport {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
        /// The source.
        from: ShardId,
    },
    /// The destination serves the slot. Only after the source has applied the freeze.
    CommitImport {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
        /// Of the frozen rows.
        digest: u128,
        /// The source's replicated time at the freeze.
        time_ms: u64,
        /// The source's last message id at the freeze.
        last_message_id: MessageId,
    },
    /// The destination will never commit this import, begun or not.
    AbortImport {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
        /// The source.
        from: ShardId,
    },
}

const FREEZE: u8 = 1;
const UNFREEZE: u8 = 2;
const DROP: u8 = 3;
const BEGIN_IMPORT: u8 = 4;
const COMMIT_IMPORT: u8 = 5;
const ABORT_IMPORT: u8 = 6;

impl MoveSlot {
    /// Which slot.
    pub fn slot(&self) -> SlotId {
        match *self {
            MoveSlot::Freeze { slot, .. }
            | MoveSlot::Unfreeze { slot, .. }
            | MoveSlot::Drop { slot, .. }
            | MoveSlot::BeginImport { slot, .. }
            | MoveSlot::CommitImport { slot, .. }
            | MoveSlot::AbortImport { slot, .. } => slot,
        }
    }

    /// Under which epoch.
    pub fn epoch(&self) -> u64 {
        match *self {
            MoveSlot::Freeze { epoch, .. }
            | MoveSlot::Unfreeze { epoch, .. }
            | MoveSlot::Drop { epoch, .. }
            | MoveSlot::BeginImport { epoch, .. }
            | MoveSlot::CommitImport { epoch, .. }
            | MoveSlot::AbortImport { epoch, .. } => epoch,
        }
    }

    /// The shard at the other end, if the call names it.
    pub(crate) fn other(&self) -> Option<ShardId> {
        match *self {
            MoveSlot::Freeze { to, .. } => Some(to),
            MoveSlot::BeginImport { from, .. } | MoveSlot::AbortImport { from, .. } => Some(from),
            MoveSlot::Unfreeze { .. } | MoveSlot::Drop { .. } | MoveSlot::CommitImport { .. } => {
                None
            }
        }
    }
}

/// `kind u8 | slot u16 | epoch u64 | fields of the kind`.
pub(super) fn encode(call: &MoveSlot, out: &mut Vec<u8>) {
    out.push(match call {
        MoveSlot::Freeze { .. } => FREEZE,
        MoveSlot::Unfreeze { .. } => UNFREEZE,
        MoveSlot::Drop { .. } => DROP,
        MoveSlot::BeginImport { .. } => BEGIN_IMPORT,
        MoveSlot::CommitImport { .. } => COMMIT_IMPORT,
        MoveSlot::AbortImport { .. } => ABORT_IMPORT,
    });
    out.extend_from_slice(&call.slot().0.to_be_bytes());
    out.extend_from_slice(&call.epoch().to_be_bytes());
    if let Some(other) = call.other() {
        out.extend_from_slice(&other.0.to_be_bytes());
    }
    if let MoveSlot::CommitImport {
        digest,
        time_ms,
        last_message_id,
        ..
    } = call
    {
        out.extend_from_slice(&digest.to_be_bytes());
        out.extend_from_slice(&time_ms.to_be_bytes());
        out.extend_from_slice(&last_message_id.0.to_be_bytes());
    }
}

pub(super) fn decode(reader: &mut Reader<'_>) -> Result<MoveSlot, Malformed> {
    let kind = reader.u8()?;
    let (slot, epoch) = (SlotId(reader.u16()?), reader.u64()?);
    Ok(match kind {
        FREEZE => MoveSlot::Freeze {
            slot,
            epoch,
            to: ShardId(reader.u32()?),
        },
        UNFREEZE => MoveSlot::Unfreeze { slot, epoch },
        DROP => MoveSlot::Drop { slot, epoch },
        BEGIN_IMPORT => MoveSlot::BeginImport {
            slot,
            epoch,
            from: ShardId(reader.u32()?),
        },
        COMMIT_IMPORT => MoveSlot::CommitImport {
            slot,
            epoch,
            digest: reader.u128()?,
            time_ms: reader.u64()?,
            last_message_id: MessageId(reader.u64()?),
        },
        ABORT_IMPORT => MoveSlot::AbortImport {
            slot,
            epoch,
            from: ShardId(reader.u32()?),
        },
        kind => return Err(reader.unknown(kind)),
    })
}
