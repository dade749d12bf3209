//! A new group.

use bytes::Bytes;

use crate::command::{CreateGroup, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::id::{GroupId, Seq};
use crate::key::{Destination, StateKey};
use crate::procedure::{No, claim, number, put_spans, require_short, require_user, store_row};
use crate::row::MessageType;
use crate::state::Context;
use crate::table::{self, GroupRow, Span};

/// Makes a group whose first message says so, and whose only member is its creator.
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
    claim(ctx, message_id)?;

    let counter_key = StateKey::GroupCounter { slot };
    let counter = number(ctx, &counter_key)? + 1;
    let group = GroupId::allocated(counter, slot);
    ctx.put(&counter_key, table::encode_u64(counter));
    let body = Bytes::copy_from_slice(name.as_bytes());
    let row = store_row(ctx, message_id, creator, MessageType::GROUP_CREATED, body);
    ctx.begin_timeline(group.timeline())?;
    let seq = ctx.append(group.timeline(), row)?;
    let row = GroupRow {
        creator,
        members: 1,
        name,
    };
    ctx.put(&StateKey::Group { group }, row.encode());
    put_spans(
        ctx,
        group,
        creator,
        &[Span {
            join: seq,
            left: Seq::ZERO,
        }],
    );
    Ok(ask.accept(ctx, Reply::GroupCreated { group, seq }))
}
