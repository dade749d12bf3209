//! What becomes of a message that its recipient's slot refuses: it is kept, and an operator may requeue or
//! drop it. See `dead_letter.rs` for the rows.
//!
//! A letter and the mailbox of its recipient are in one slot, so a requeue rides no lane: it is done, mark
//! and message, in one apply, or not at all.

use uuid::Uuid;

use crate::command::{DropDeadLetter, Refusal, Reply, RequeueDeadLetter};
use crate::dead_letter::{DeadLetterTotals, Letter, LetterStanding, totals_value};
use crate::decode::Malformed;
use crate::dedup::{Ask, hash_ask};
use crate::error::Error;
use crate::id::{Seq, SlotId, UserId};
use crate::key::{Destination, StateKey};
use crate::procedure::{No, claim, require_user};
use crate::row::{Flags, NewRow, RefusalCode};
use crate::state::Context;

/// Letters that one append trims at most: `dead_letters_max` may have been lowered by far.
const TRIM_STEP_MAX: u64 = 64;

/// Keeps a message that has just been refused, if the cluster keeps dead letters.
pub(super) fn record(
    ctx: &mut Context<'_>,
    recipient: UserId,
    home_seq: Seq,
    row: NewRow,
    code: RefusalCode,
) -> Result<(), Error> {
    let options = ctx.cluster_options().ok();
    let Some(max) = options.and_then(|options| options.dead_letters_max) else {
        return Ok(());
    };
    let slot = ctx.slot_of(recipient.0);
    let before = totals(ctx, slot)?;
    let seq = ctx.append(slot.dead_letters(), row)?;
    let letter = Letter {
        recipient,
        home_seq,
        code,
        refused_at_ms: ctx.time_ms(),
        standing: LetterStanding::Waiting,
    };
    put(ctx, slot, seq, &letter);
    let mut after = before;
    after.written += 1;
    trim(ctx, slot, seq, max, &mut after)?;
    put_totals(ctx, slot, before, after);
    Ok(())
}

/// Trims what is too many, the oldest first.
fn trim(
    ctx: &mut Context<'_>,
    slot: SlotId,
    head: Seq,
    max: u32,
    totals: &mut DeadLetterTotals,
) -> Result<(), Error> {
    let timeline = slot.dead_letters();
    let trimmed = ctx.trim_point(timeline)?;
    let wanted = head.0.saturating_sub(u64::from(max));
    let to = Seq(wanted.min(trimmed.0 + TRIM_STEP_MAX));
    if to <= trimmed {
        return Ok(());
    }
    for seq in (trimmed.0 + 1..=to.0).map(Seq) {
        if letter(ctx, slot, seq)?.standing == LetterStanding::Waiting {
            totals.unseen += 1;
        }
        ctx.delete(&StateKey::DeadLetter { slot, seq });
    }
    ctx.trim(timeline, trimmed, to);
    Ok(())
}

/// Appends the letter to its recipient's mailbox, unless it was before; refuses for the same reason as the
/// first time if nothing has been mended.
pub(crate) fn requeue_dead_letter(
    ctx: &mut Context<'_>,
    call: &RequeueDeadLetter,
) -> Result<Reply, No> {
    let RequeueDeadLetter {
        request_id,
        slot,
        seq,
        message_id,
    } = *call;
    let ask = ask(9, request_id, slot, seq);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    let mut letter = present(ctx, slot, seq)?;
    match letter.standing {
        LetterStanding::Waiting => {}
        LetterStanding::Requeued {
            seq, message_id, ..
        } => return Ok(ask.accept(ctx, Reply::DeadLetterRequeued { seq, message_id })),
        standing @ LetterStanding::Dropped { .. } => {
            return Err(resolved(slot, seq, standing));
        }
    }
    require_user(ctx, letter.recipient)?;
    claim(ctx, message_id)?;

    let row = ctx.row(slot.dead_letters(), seq)?.into_new();
    let requeued = NewRow {
        message_id,
        flags: row.flags.with(Flags::REQUEUED),
        body: ctx.copied(&row.body),
        ..row
    };
    let reached = ctx.append(letter.recipient.mailbox(), requeued)?;
    letter.standing = LetterStanding::Requeued {
        at_ms: ctx.time_ms(),
        seq: reached,
        message_id,
    };
    put(ctx, slot, seq, &letter);
    let before = totals(ctx, slot)?;
    let mut after = before;
    after.requeued += 1;
    put_totals(ctx, slot, before, after);
    let seq = reached;
    Ok(ask.accept(ctx, Reply::DeadLetterRequeued { seq, message_id }))
}

/// Marks the letter as done with, unless it was before.
pub(crate) fn drop_dead_letter(ctx: &mut Context<'_>, call: &DropDeadLetter) -> Result<Reply, No> {
    let DropDeadLetter {
        request_id,
        slot,
        seq,
    } = *call;
    let ask = ask(10, request_id, slot, seq);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    let mut letter = present(ctx, slot, seq)?;
    match letter.standing {
        LetterStanding::Waiting => {}
        LetterStanding::Dropped { .. } => return Ok(ask.accept(ctx, Reply::DeadLetterDropped)),
        standing @ LetterStanding::Requeued { .. } => {
            return Err(resolved(slot, seq, standing));
        }
    }
    letter.standing = LetterStanding::Dropped {
        at_ms: ctx.time_ms(),
    };
    put(ctx, slot, seq, &letter);
    let before = totals(ctx, slot)?;
    let mut after = before;
    after.dropped += 1;
    put_totals(ctx, slot, before, after);
    Ok(ask.accept(ctx, Reply::DeadLetterDropped))
}

/// Operators are no users: the identity of their calls is the id and the slot's timeline.
fn ask(tag: u8, request_id: Uuid, slot: SlotId, seq: Seq) -> Ask {
    let destination = Destination::timeline(slot.dead_letters());
    let hash = hash_ask(tag, &[u64::from(slot.0), seq.0], &[]);
    Ask::new(slot, request_id, UserId(0), destination, hash)
}

fn resolved(slot: SlotId, seq: Seq, standing: LetterStanding) -> No {
    Refusal::DeadLetterResolved {
        slot,
        seq,
        standing,
    }
    .into()
}

/// A letter that an operator has named.
fn present(ctx: &mut Context<'_>, slot: SlotId, seq: Seq) -> Result<Letter, No> {
    let timeline = slot.dead_letters();
    let (trim_point, head) = (ctx.trim_point(timeline)?, ctx.head(timeline)?);
    if seq <= trim_point || seq > head {
        return Err(Refusal::UnknownDeadLetter {
            slot,
            seq,
            trim_point,
            head,
        }
        .into());
    }
    Ok(letter(ctx, slot, seq)?)
}

/// What stands beside the message row of a letter above the trim point.
fn letter(ctx: &mut Context<'_>, slot: SlotId, seq: Seq) -> Result<Letter, Error> {
    let key = StateKey::DeadLetter { slot, seq };
    let letter = match ctx.get(&key)? {
        Some(value) => Letter::decode(slot, seq, &value),
        None => Err(Malformed::TooShort {
            what: "dead letter",
            needed: 1,
            left: 0,
        }),
    };
    letter.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

fn put(ctx: &mut Context<'_>, slot: SlotId, seq: Seq, letter: &Letter) {
    ctx.put(
        &StateKey::DeadLetter { slot, seq },
        letter.encode(slot, seq),
    );
}

fn totals(ctx: &mut Context<'_>, slot: SlotId) -> Result<DeadLetterTotals, Error> {
    let key = StateKey::DeadLetterTotals { slot };
    totals_value(&key, ctx.get(&key)?)
}

/// Writes a slot's totals, and brings the shard's after them.
fn put_totals(
    ctx: &mut Context<'_>,
    slot: SlotId,
    before: DeadLetterTotals,
    after: DeadLetterTotals,
) {
    ctx.put(&StateKey::DeadLetterTotals { slot }, after.encode());
    let letters = ctx.letters();
    letters.subtract(before);
    letters.add(after);
}
