//! The stored procedures, and what several of them check.
//!
//! A procedure checks everything before it changes anything: a refusal leaves no trace.

mod ack_cursor;
mod create_group;
mod dead_letter;
mod join_group;
mod lane;
mod leave_group;
mod mark_read;
mod meta;
mod meta_gateways;
mod meta_merges;
mod meta_moves;
mod meta_splits;
mod move_slot;
mod register_user;
mod send;
mod send_group;
mod set_cluster_options;
mod split_shard;

pub(crate) use ack_cursor::ack_cursor;
pub(crate) use create_group::create_group;
pub(crate) use dead_letter::{drop_dead_letter, requeue_dead_letter};
pub(crate) use join_group::join_group;
pub(crate) use lane::{ack_lanes, deliver};
pub(crate) use leave_group::leave_group;
pub(crate) use mark_read::mark_read;
pub(crate) use meta::meta;
pub(crate) use move_slot::move_slot;
pub(crate) use register_user::register_user;
pub(crate) use send::send;
pub(crate) use send_group::send_group;
pub(crate) use set_cluster_options::set_cluster_options;
pub(crate) use split_shard::split_shard;

use bytes::Bytes;
use uuid::Uuid;

use crate::cluster_options::UserLimits;
use crate::command::Refusal;
use crate::error::Error;
use crate::id::{GroupId, MessageId, UserId};
use crate::item::Item;
use crate::key::StateKey;
use crate::row::{BODY_BYTES_FORMAT_MAX, Flags, MessageType, NewRow, content_crc};
use crate::state::Context;
use crate::table::{self, GroupRow, Span};

/// Why a procedure does not accept its command.
#[derive(Debug)]
pub(crate) enum No {
    /// The command is refused: a reply, the same on all replicas.
    Refusal(Refusal),
    /// This replica's storage failed: it stops.
    Fault(Error),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> No {
        No::Refusal(refusal)
    }
}

impl From<Error> for No {
    fn from(fault: Error) -> No {
        No::Fault(fault)
    }
}

/// The value of a row that holds one number; 0 if the row is absent.
pub(crate) fn number(ctx: &mut Context<'_>, key: &StateKey) -> Result<u64, Error> {
    match ctx.get(key)? {
        Some(bytes) => table::decode_u64(&bytes)
            .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed)),
        None => Ok(0),
    }
}

/// As [`require_user`], if that can be asked here. Of a user in another shard the caller, who has
/// asked there before it proposed, is believed.
fn require_user_if_here(ctx: &mut Context<'_>, user: UserId) -> Result<(), No> {
    if ctx.holds(ctx.slot_of(user.0)) {
        require_user(ctx, user)
    } else {
        Ok(())
    }
}

fn require_user(ctx: &mut Context<'_>, user: UserId) -> Result<(), No> {
    if ctx.user_exists(user)? {
        Ok(())
    } else {
        Err(Refusal::UnknownUser { user }.into())
    }
}

/// The user's own list, which is in this shard, has room for one more group.
fn require_room_for_group(ctx: &mut Context<'_>, user: UserId) -> Result<(), No> {
    let Some(UserLimits {
        groups_max: max, ..
    }) = ctx.cluster_options()?.user_limits
    else {
        return Ok(());
    };
    let list = StateKey::user_groups_prefix(user);
    if ctx.has_fewer_rows(ctx.slot_of(user.0), &list, max)? {
        Ok(())
    } else {
        Err(Refusal::TooManyGroups { user, max }.into())
    }
}

/// Damage to a client's content on its way here. Judged before the id, which it may have hit.
fn require_intact(
    claimed: u32,
    client_msg_id: Uuid,
    kind: MessageType,
    body: &[u8],
) -> Result<(), Refusal> {
    let computed = content_crc(client_msg_id, kind, body);
    if claimed == computed {
        Ok(())
    } else {
        Err(Refusal::Corrupt { claimed, computed })
    }
}

fn require_short(ctx: &Context<'_>, len: usize) -> Result<(), Refusal> {
    let max = ctx.cluster_options()?.body_bytes_max;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let max = max.min(BODY_BYTES_FORMAT_MAX);
    if len <= max {
        Ok(())
    } else {
        Err(Refusal::BodyTooLarge { len, max })
    }
}

fn require_client_type(kind: MessageType) -> Result<(), Refusal> {
    if kind.is_reserved() {
        Err(Refusal::ReservedType { kind })
    } else {
        Ok(())
    }
}

/// Takes a newly assigned message id. The last check of all: what follows changes the state.
fn claim(ctx: &mut Context<'_>, message_id: MessageId) -> Result<(), Refusal> {
    if message_id <= ctx.last_message_id() {
        return Err(Refusal::Retry);
    }
    ctx.set_last_message_id(message_id);
    Ok(())
}

fn group_row(ctx: &mut Context<'_>, group: GroupId) -> Result<GroupRow, No> {
    let key = StateKey::Group { group };
    match ctx.get(&key)? {
        Some(bytes) => GroupRow::decode(&bytes)
            .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed).into()),
        None => Err(Refusal::UnknownGroup { group }.into()),
    }
}

/// A user's spans in a group, none if it never joined.
fn spans(ctx: &mut Context<'_>, group: GroupId, user: UserId) -> Result<Vec<Span>, Error> {
    let key = StateKey::Member { group, user };
    match ctx.get(&key)? {
        Some(bytes) => table::decode_spans(&bytes)
            .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed)),
        None => Ok(Vec::new()),
    }
}

/// Writes a user's spans: the group's row, and by lane the one in the user's own list.
fn put_spans(
    ctx: &mut Context<'_>,
    group: GroupId,
    user: UserId,
    spans: &[Span],
) -> Result<(), Error> {
    let newest = &spans[spans.len().saturating_sub(table::SPANS_MAX)..];
    let spans = table::encode_spans(newest);
    ctx.put(&StateKey::Member { group, user }, spans.clone());
    lane::emit(ctx, Item::Membership { user, group, spans })
}

/// `NotAMember`, or `UnknownGroup` if that is why.
fn not_a_member(ctx: &mut Context<'_>, group: GroupId, user: UserId) -> No {
    match group_row(ctx, group) {
        Ok(_) => Refusal::NotAMember {
            user,
            timeline: group.timeline(),
        }
        .into(),
        Err(no) => no,
    }
}

/// A message that the store writes itself, about `user`.
fn store_row(
    ctx: &Context<'_>,
    message_id: MessageId,
    user: UserId,
    kind: MessageType,
    body: Bytes,
) -> NewRow {
    NewRow {
        message_id,
        correspondent: user,
        client_msg_id: Uuid::nil(),
        sent_at_ms: ctx.time_ms(),
        kind,
        flags: Flags::default(),
        content_crc: content_crc(Uuid::nil(), kind, &body),
        body,
    }
}
