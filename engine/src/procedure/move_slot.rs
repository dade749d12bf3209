//! The steps of a slot's move between shards, at its source and at its destination.

use fail::fail_point;

use crate::command::{MoveSlot, Reply};
use crate::dedup::raise_floors;
use crate::error::Error;
use crate::procedure::No;
use crate::slot_move::Step;
use crate::state::Context;

/// Takes a step that is due; a repeat changes nothing. Both are answered with where the slot stands now:
/// a step that comes late finds the move ahead of it.
pub(crate) fn move_slot(ctx: &mut Context<'_>, call: &MoveSlot) -> Result<Reply, No> {
    let slot = call.slot();
    if ctx.step_slot(call)? == Step::Done {
        match *call {
            // The table alone says so: the rows stay as they are, which is what freezing is.
            MoveSlot::Freeze { .. }
            | MoveSlot::BeginImport { .. }
            | MoveSlot::AbortImport { .. } => {}
            // Floors may have to rise by what was left out.
            MoveSlot::Unfreeze { .. } => refresh_floors(ctx)?,
            MoveSlot::Drop { .. } => {
                ctx.drop_slot(slot)?;
                refresh_floors(ctx)?;
            }
            MoveSlot::CommitImport {
                time_ms,
                last_message_id,
                ..
            } => {
                ctx.advance_time(time_ms);
                let last = last_message_id.max(ctx.last_message_id());
                ctx.set_last_message_id(last);
                ctx.adopt_slot(slot, time_ms)?;
                refresh_floors(ctx)?;
            }
        }
    }
    // Where tests let a replica die: the step is in its log, and in no file.
    match call {
        MoveSlot::BeginImport { .. } => {
            fail_point!("apply_begin_import", |_| std::process::abort())
        }
        MoveSlot::Freeze { .. } => fail_point!("apply_freeze", |_| std::process::abort()),
        MoveSlot::CommitImport { .. } => {
            fail_point!("apply_commit_import", |_| std::process::abort());
        }
        MoveSlot::AbortImport { .. } => {
            fail_point!("apply_abort_import", |_| std::process::abort())
        }
        MoveSlot::Unfreeze { .. } => fail_point!("apply_unfreeze", |_| std::process::abort()),
        MoveSlot::Drop { .. } => fail_point!("apply_drop", |_| std::process::abort()),
    }
    let (epoch, standing) = ctx.slot_standing(slot);
    Ok(Reply::SlotMoved {
        slot,
        epoch,
        standing,
    })
}

/// What apply knows of the floors is of other slots now.
pub(crate) fn refresh_floors(ctx: &mut Context<'_>) -> Result<(), Error> {
    *ctx.floors() = Default::default();
    raise_floors(ctx)
}
