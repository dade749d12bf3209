//! A user leaves a group.

use bytes::Bytes;

use crate::command::{LeaveGroup, Refusal, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::key::{Destination, StateKey};
use crate::procedure::{No, claim, group_row, put_spans, spans, store_row};
use crate::row::MessageType;
use crate::state::Context;

/// Closes the user's span at a message that says so: the last one that the user may read.
pub(crate) fn leave_group(ctx: &mut Context<'_>, call: &LeaveGroup) -> Result<Reply, No> {
    let LeaveGroup {
        request_id,
        group,
        user,
        message_id,
    } = *call;
    let hash = hash_ask(6, &[group.0, user.0], &[]);
    let timeline = group.timeline();
    let destination = Destination::timeline(timeline);
    let ask = Ask::new(ctx.slot_of(group.0), request_id, user, destination, hash);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    let mut row = group_row(ctx, group)?;
    let mut spans = spans(ctx, group, user)?;
    let Some(span) = spans.last_mut().filter(|span| span.is_open()) else {
        return Err(Refusal::NotAMember { user, timeline }.into());
    };
    claim(ctx, message_id)?;

    let left_row = store_row(
        ctx,
        message_id,
        user,
        MessageType::MEMBER_LEFT,
        Bytes::new(),
    );
    let left_seq = ctx.append(timeline, left_row)?;
    span.left = left_seq;
    put_spans(ctx, group, user, &spans)?;
    row.members = row.members.saturating_sub(1);
    ctx.put(&StateKey::Group { group }, row.encode());
    Ok(ask.accept(ctx, Reply::Left { left_seq }))
}
