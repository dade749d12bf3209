//! A user joins a group.

use bytes::Bytes;

use crate::command::{JoinGroup, Refusal, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::id::Seq;
use crate::key::{Destination, StateKey};
use crate::procedure::{
    No, claim, group_row, put_spans, require_room_for_group, require_user_if_here, spans, store_row,
};
use crate::row::MessageType;
use crate::state::Context;
use crate::table::{self, Span};

/// Opens a span at a message that says so. Whoever comes again gets a further span: what was
/// written in between stays out of sight. Who was here before is in the user's own list already.
pub(crate) fn join_group(ctx: &mut Context<'_>, call: &JoinGroup) -> Result<Reply, No> {
    let JoinGroup {
        request_id,
        group,
        user,
        message_id,
    } = *call;
    let hash = hash_ask(5, &[group.0, user.0], &[]);
    let destination = Destination::timeline(group.timeline());
    let ask = Ask::new(ctx.slot_of(group.0), request_id, user, destination, hash);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    let mut row = group_row(ctx, group)?;
    require_user_if_here(ctx, user)?;
    let mut spans = spans(ctx, group, user)?;
    if table::is_member(&spans) {
        return Err(Refusal::AlreadyAMember { user, group }.into());
    }
    let max = ctx.cluster_options()?.group_members_max;
    if row.members >= max {
        return Err(Refusal::GroupFull { max }.into());
    }
    if spans.is_empty() && ctx.holds(ctx.slot_of(user.0)) {
        require_room_for_group(ctx, user)?;
    }
    claim(ctx, message_id)?;

    let joined = store_row(
        ctx,
        message_id,
        user,
        MessageType::MEMBER_JOINED,
        Bytes::new(),
    );
    let join = ctx.append(group.timeline(), joined)?;
    spans.push(Span {
        join,
        left: Seq::ZERO,
    });
    put_spans(ctx, group, user, &spans)?;
    row.members += 1;
    ctx.put(&StateKey::Group { group }, row.encode());
    Ok(ask.accept(ctx, Reply::Joined { join_seq: join }))
}
