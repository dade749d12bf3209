//! A message to a group, written once.

use crate::command::{Reply, SendGroup};
use crate::dedup::{Ask, hash_ask};
use crate::key::Destination;
use crate::procedure::{
    No, claim, not_a_member, require_client_type, require_intact, require_short, spans,
};
use crate::row::NewRow;
use crate::state::Context;
use crate::table;

/// Appends to the group's timeline, if the sender is a member when the entry is applied.
pub(crate) fn send_group(ctx: &mut Context<'_>, call: SendGroup) -> Result<Reply, No> {
    require_intact(call.content_crc, call.client_msg_id, call.kind, &call.body)?;
    let ask = ask(ctx, &call);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    require_client_type(call.kind)?;
    require_short(ctx, call.body.len())?;
    if !table::is_member(&spans(ctx, call.group, call.sender)?) {
        return Err(not_a_member(ctx, call.group, call.sender));
    }
    claim(ctx, call.message_id)?;

    let (timeline, message_id) = (call.group.timeline(), call.message_id);
    let row = NewRow {
        message_id,
        correspondent: call.sender,
        client_msg_id: call.client_msg_id,
        sent_at_ms: ctx.time_ms(),
        kind: call.kind,
        flags: call.flags,
        body: call.body,
        content_crc: call.content_crc,
    };
    let seq = ctx.append(timeline, row)?;
    Ok(ask.accept(
        ctx,
        Reply::Sent {
            timeline,
            seq,
            message_id,
        },
    ))
}

fn ask(ctx: &Context<'_>, call: &SendGroup) -> Ask {
    let destination = Destination::timeline(call.group.timeline());
    let (kind, flags) = (u64::from(call.kind.0), u64::from(call.flags.0));
    let hash = hash_ask(2, &[call.sender.0, call.group.0, kind, flags], &call.body);
    Ask::new(
        ctx.slot_of(call.group.0),
        call.client_msg_id,
        call.sender,
        destination,
        hash,
    )
}
