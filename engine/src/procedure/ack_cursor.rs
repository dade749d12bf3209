//! What a device holds.

use crate::cluster_options::UserLimits;
use crate::command::{AckCursor, Refusal, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::id::{DeviceId, GroupId, TimelineId, TimelineKind, UserId};
use crate::key::{Destination, StateKey};
use crate::procedure::mark_read::raise;
use crate::procedure::{No, not_a_member, require_user, spans};
use crate::state::Context;

/// Raises a device's cursor in the user's mailbox or in a group that the user has joined; a lower
/// seq changes nothing.
pub(crate) fn ack_cursor(ctx: &mut Context<'_>, call: AckCursor) -> Result<Reply, No> {
    let AckCursor {
        request_id,
        user,
        device,
        timeline,
        seq,
    } = call;
    let fields = [
        user.0,
        u64::from(timeline.kind as u8),
        timeline.owner,
        seq.0,
    ];
    let hash = hash_ask(8, &fields, device.as_str().as_bytes());
    let destination = Destination::timeline(timeline);
    let ask = Ask::new(
        ctx.slot_of_timeline(timeline),
        request_id,
        user,
        destination,
        hash,
    );
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    match timeline.kind {
        TimelineKind::DeadLetters => return Err(Refusal::NotAMember { user, timeline }.into()),
        TimelineKind::Mailbox if timeline != user.mailbox() => {
            return Err(Refusal::NotAMember { user, timeline }.into());
        }
        TimelineKind::Mailbox => require_user(ctx, user)?,
        TimelineKind::Group => {
            let group = GroupId(timeline.owner);
            if spans(ctx, group, user)?.is_empty() {
                return Err(not_a_member(ctx, group, user));
            }
        }
    }
    let key = StateKey::Cursor {
        timeline,
        user,
        device: device.clone(),
    };
    let seq = raise(ctx, timeline, key, seq, |ctx| {
        require_room_for_device(ctx, user, timeline, device)
    })?;
    Ok(ask.accept(ctx, Reply::Cursor { seq }))
}

/// A cursor is for ever: a user may begin only so many of them in a timeline.
fn require_room_for_device(
    ctx: &mut Context<'_>,
    user: UserId,
    timeline: TimelineId,
    device: DeviceId,
) -> Result<(), No> {
    let Some(UserLimits {
        devices_max: max, ..
    }) = ctx.cluster_options()?.user_limits
    else {
        return Ok(());
    };
    let cursors = StateKey::cursors_prefix(timeline, user);
    if ctx.has_fewer_rows(ctx.slot_of_timeline(timeline), &cursors, max)? {
        return Ok(());
    }
    Err(Refusal::TooManyDevices {
        user,
        timeline,
        device,
        max,
    }
    .into())
}
