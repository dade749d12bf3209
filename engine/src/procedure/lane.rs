//! Lanes: what items do where they take effect, and what comes back.
//!
//! An item takes effect at once if its destination is in the same shard and nothing rides the
//! lane: then it needs no lane seq, since the next that does ride comes after it either way. The
//! seqs are what a mark is compared with, and here nothing is on the way to be compared. What it
//! costs: a lane's numbers do not count such items, so the gap that a slot leaves which is
//! restored alone, from a backup, is not counted in them.

use bytes::Bytes;

use crate::command::{AckLanes, Deliver, Refusal, Reply};
use crate::error::Error;
use crate::id::{GroupId, MessageId, Seq, UserId};
use crate::item::{Item, LaneId};
use crate::key::StateKey;
use crate::lanes::is_known;
use crate::procedure::{No, dead_letter, store_row};
use crate::row::{Flags, MessageType, NewRow, RefusalCode, refusal_body};
use crate::state::Context;
use crate::table::{self, GroupRow, Span};

/// Takes in the items of a lane that are due: those up to the mark have been here before, one
/// beyond the next has lost some before it. What an item is answered with rides the lane back;
/// nothing in an item can stop the lane, but damage on its way here.
pub(crate) fn deliver(ctx: &mut Context<'_>, call: &Deliver) -> Result<Reply, No> {
    let Deliver {
        lane,
        first_seq,
        ref items,
    } = *call;
    require_known(ctx, lane)?;
    ctx.require_held(lane.destination)?;
    let mut mark = ctx.lanes().mark(lane.source, lane.destination);
    let mut corrupt = None;
    // If the source is here too, it is known what can be on the lane at all.
    let source_is_here = ctx.holds(lane.source);
    let sent = if source_is_here {
        ctx.lanes().sent_and_acked(lane.source, lane.destination).0
    } else {
        u64::MAX
    };
    for (seq, encoded) in (first_seq..).zip(items.iter()) {
        if seq <= mark {
            continue;
        }
        #[cfg(feature = "planted")]
        if mailbox_planted::is("lane-retry-in-parallel") && seq > mark + 1 {
            if let Ok(item) = encoded.and_then(|it| Item::decode_in(items.as_bytes(), it)) {
                take(ctx, item)?;
            }
            continue;
        }
        if seq > mark + 1 {
            break;
        }
        let slot_count = ctx.slot_count();
        let item = encoded.and_then(|encoded| Item::decode_in(items.as_bytes(), encoded));
        let rides = |item: &Item| seq <= sent && item.lane(slot_count) == lane;
        let Some(item) = item.ok().filter(rides) else {
            corrupt = Some(seq);
            break;
        };
        take(ctx, item)?;
        mark = ctx.lanes().advance(lane.source, lane.destination);
        assert_eq!(mark, seq, "a mark rises with each item");
    }
    if source_is_here {
        // Both ends are here, so the ack needs no relay.
        ctx.lanes().ack(lane.source, lane.destination, mark);
    }
    Ok(Reply::Delivered {
        lane,
        mark,
        corrupt,
    })
}

/// Raises acked points: what lies at or below one leaves the outbox. Acks of many lanes come together, so
/// those whose source is on its way to another shard, or has gone, are left out: they hold up no others.
pub(crate) fn ack_lanes(ctx: &mut Context<'_>, call: &AckLanes) -> Result<Reply, No> {
    let (mut due, mut gone) = (Vec::with_capacity(call.acks.len()), None);
    for (lane, acked) in call.acks.iter().copied() {
        require_known(ctx, lane)?;
        match ctx.require_held(lane.source) {
            Ok(()) => {}
            Err(refusal @ Refusal::WrongOwner { .. }) => {
                gone = gone.or(Some(refusal));
                continue;
            }
            Err(refusal) => return Err(refusal.into()),
        }
        let (sent, _) = ctx.lanes().sent_and_acked(lane.source, lane.destination);
        if acked > sent {
            return Err(Refusal::LaneAhead { lane, acked, sent }.into());
        }
        due.push((lane, acked));
    }
    if let (true, Some(refusal)) = (due.is_empty(), gone) {
        return Err(refusal.into());
    }
    for (lane, acked) in due {
        ctx.lanes().ack(lane.source, lane.destination, acked);
    }
    Ok(Reply::LanesAcked)
}

fn require_known(ctx: &Context<'_>, lane: LaneId) -> Result<(), Refusal> {
    if is_known(lane, ctx.slot_count()) {
        Ok(())
    } else {
        Err(Refusal::UnknownLane { lane })
    }
}

/// Sends an item on its way: it takes effect at once, or goes into the outbox.
pub(super) fn emit(ctx: &mut Context<'_>, item: Item) -> Result<(), Error> {
    let lane = item.lane(ctx.slot_count());
    if ctx.delivers_at_once(lane.source, lane.destination) {
        return take(ctx, item);
    }
    ctx.queue(lane.source, lane.destination, item);
    Ok(())
}

/// Sends a message on its way, as [`emit`] does, but without making an item of one that takes
/// effect at once: most do in a small cluster.
pub(super) fn emit_message(
    ctx: &mut Context<'_>,
    recipient: UserId,
    home_seq: Seq,
    row: NewRow,
) -> Result<(), Error> {
    let source = ctx.slot_of(row.correspondent.0);
    let destination = ctx.slot_of(recipient.0);
    if ctx.delivers_at_once(source, destination) {
        return take_message(ctx, recipient, home_seq, row);
    }
    let item = Item::Message {
        recipient,
        home_seq,
        row,
    };
    ctx.queue(source, destination, item);
    Ok(())
}

/// The effect of an item. There is no *no* here: it was accepted at its source.
fn take(ctx: &mut Context<'_>, item: Item) -> Result<(), Error> {
    match item {
        Item::Message {
            recipient,
            home_seq,
            row,
        } => take_message(ctx, recipient, home_seq, row),
        Item::Refusal {
            sender,
            recipient,
            message_id,
            home_seq,
            code,
        } => {
            let body = refusal_body(home_seq, code);
            let mut row = store_row(ctx, message_id, recipient, MessageType::REFUSAL, body);
            row.flags = Flags::OUTGOING;
            ctx.append(sender.mailbox(), row).map(|_| ())
        }
        Item::UserMade { user, handle } => {
            // A copy: the row may outlive the entry by far.
            let handle = Bytes::copy_from_slice(&handle);
            ctx.put(&StateKey::User { user }, handle);
            ctx.begin_timeline(user.mailbox())
        }
        Item::GroupMade {
            group,
            creator,
            message_id,
            sent_at_ms,
            name,
        } => take_group(ctx, group, creator, (message_id, sent_at_ms), name),
        Item::Membership { user, group, spans } => {
            let spans = Bytes::copy_from_slice(&spans);
            ctx.put(&StateKey::UserGroup { user, group }, spans);
            Ok(())
        }
    }
}

/// Into the recipient's mailbox; or among the slot's dead letters, and a refusal to the sender.
fn take_message(
    ctx: &mut Context<'_>,
    recipient: UserId,
    home_seq: Seq,
    row: NewRow,
) -> Result<(), Error> {
    if ctx.user_exists(recipient)? {
        return ctx.append(recipient.mailbox(), row).map(|_| ());
    }
    #[cfg(feature = "planted")]
    if mailbox_planted::is("dead-letter-drop") {
        return Ok(());
    }
    let code = RefusalCode::UnknownUser;
    let refusal = Item::Refusal {
        sender: row.correspondent,
        recipient,
        message_id: row.message_id,
        home_seq,
        code,
    };
    dead_letter::record(ctx, recipient, home_seq, row, code)?;
    emit(ctx, refusal)
}

/// A group's first message says that it was made; its only member is its creator.
fn take_group(
    ctx: &mut Context<'_>,
    group: GroupId,
    creator: UserId,
    (message_id, sent_at_ms): (MessageId, u64),
    name: Bytes,
) -> Result<(), Error> {
    let key = StateKey::Group { group };
    let text = std::str::from_utf8(&name).unwrap_or_default().to_owned();
    let mut row = store_row(ctx, message_id, creator, MessageType::GROUP_CREATED, name);
    row.sent_at_ms = sent_at_ms;
    ctx.begin_timeline(group.timeline())?;
    let join = ctx.append(group.timeline(), row)?;
    assert_eq!(join, GROUP_CREATED_SEQ, "a group is made once");
    let row = GroupRow {
        creator,
        members: 1,
        name: text,
    };
    ctx.put(&key, row.encode());
    let user = creator;
    let left = Seq::ZERO;
    let spans = table::encode_spans(&[Span { join, left }]);
    ctx.put(&StateKey::Member { group, user }, spans);
    Ok(())
}

/// Where a group's creator joins: its first message.
pub(super) const GROUP_CREATED_SEQ: Seq = Seq(1);
