//! A 1:1 message: into the sender's mailbox, and by lane into the recipient's.

use crate::command::{Reply, Send};
use crate::dedup::{Ask, hash_ask};
use crate::key::Destination;
use crate::procedure::lane::emit_message;
use crate::procedure::{
    No, claim, require_client_type, require_intact, require_short, require_user,
};
use crate::row::{Flags, NewRow};
use crate::state::Context;

/// Appends to the sender's mailbox, which acks; the recipient's slot is told by lane. An unknown
/// recipient is no refusal of the send: the sender's shard cannot know. It is recorded in the
/// sender's mailbox instead, by an item that comes back.
pub(crate) fn send(ctx: &mut Context<'_>, call: Send) -> Result<Reply, No> {
    require_intact(call.content_crc, call.client_msg_id, call.kind, &call.body)?;
    let ask = ask(ctx, &call);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    require_client_type(call.kind)?;
    require_short(ctx, call.body.len())?;
    require_user(ctx, call.sender)?;
    claim(ctx, call.message_id)?;

    let Send {
        sender,
        recipient,
        message_id,
        ..
    } = call;
    let home = sender.mailbox();
    let received = NewRow {
        message_id,
        correspondent: sender,
        client_msg_id: call.client_msg_id,
        sent_at_ms: ctx.time_ms(),
        kind: call.kind,
        flags: call.flags,
        body: call.body,
        content_crc: call.content_crc,
    };
    let flags = received.flags.with(Flags::OUTGOING);
    let seq = ctx.append(
        home,
        NewRow {
            correspondent: recipient,
            flags,
            ..received.clone()
        },
    )?;
    if recipient != sender {
        emit_message(ctx, recipient, seq, received)?;
    }
    Ok(ask.accept(
        ctx,
        Reply::Sent {
            timeline: home,
            seq,
            message_id,
        },
    ))
}

fn ask(ctx: &Context<'_>, call: &Send) -> Ask {
    let destination = Destination::timeline(call.recipient.mailbox());
    let (kind, flags) = (u64::from(call.kind.0), u64::from(call.flags.0));
    let hash = hash_ask(
        1,
        &[call.sender.0, call.recipient.0, kind, flags],
        &call.body,
    );
    Ask::new(
        ctx.slot_of(call.sender.0),
        call.client_msg_id,
        call.sender,
        destination,
        hash,
    )
}
