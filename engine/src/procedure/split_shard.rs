//! A part of a shard's slots becomes a new shard.

use crate::command::{Reply, SplitShard};
use crate::procedure::No;
use crate::procedure::move_slot::refresh_floors;
use crate::slot_move::Step;
use crate::state::Context;

/// Hands the slots over, with the entry; a repeat changes nothing.
pub(crate) fn split_shard(ctx: &mut Context<'_>, call: &SplitShard) -> Result<Reply, No> {
    if ctx.judge_split(call)? == Step::Done {
        ctx.hand_over(call)?;
        refresh_floors(ctx)?;
    }
    let SplitShard { to, epoch, .. } = *call;
    Ok(Reply::ShardSplit { to, epoch })
}
