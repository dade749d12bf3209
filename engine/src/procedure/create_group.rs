//! A new group.

use crate::command::{CreateGroup, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::id::{GroupId, Seq};
use crate::item::Item;
use crate::key::{Destination, StateKey};
use crate::procedure::lane::{GROUP_CREATED_SEQ, emit};
use crate::procedure::{No, claim, number, require_room_for_group, require_short, require_user};
use crate::state::Context;
use crate::table::{self, Span};

/// Makes a group in the creator's own list; the group's slot, which its id decides, is told by
/// lane. Its first message says so, and its only member is its creator.
pub(crate) fn create_group(ctx: &mut Context<'_>, call: CreateGroup) -> Result<Reply, No> {
    let CreateGroup {
        request_id,
        creator,
        name,
        message_id,
    } = call;
    let slot = ctx.slot_of(creator.0);
    let hash = hash_ask(4, &[creator.0], name.as_bytes());
    let ask = Ask::new(slot, request_id, creator, Destination::NEW_GROUP, hash);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    require_short(ctx, name.len())?;
    require_user(ctx, creator)?;
    require_room_for_group(ctx, creator)?;
    claim(ctx, message_id)?;

    let counter_key = StateKey::GroupCounter { slot };
    let counter = number(ctx, &counter_key)? + 1;
    let group = GroupId::allocated(counter, slot);
    ctx.put(&counter_key, table::encode_u64(counter));
    let (join, left) = (GROUP_CREATED_SEQ, Seq::ZERO);
    let spans = table::encode_spans(&[Span { join, left }]);
    let user = creator;
    ctx.put(&StateKey::UserGroup { user, group }, spans);
    let sent_at_ms = ctx.time_ms();
    emit(
        ctx,
        Item::GroupMade {
            group,
            creator,
            message_id,
            sent_at_ms,
            name: name.into(),
        },
    )?;
    let seq = join;
    Ok(ask.accept(ctx, Reply::GroupCreated { group, seq }))
}
