//! What a user has read.

use crate::command::{Conversation, MarkRead, Refusal, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::id::{Seq, TimelineId};
use crate::key::{Destination, StateKey};
use crate::procedure::{No, not_a_member, number, require_user, require_user_if_here, spans};
use crate::state::Context;
use crate::table;

/// Raises the read mark of a conversation; a lower seq changes nothing. For a conversation with
/// a peer, seqs are those of the user's own mailbox.
pub(crate) fn mark_read(ctx: &mut Context<'_>, call: &MarkRead) -> Result<Reply, No> {
    let MarkRead {
        request_id,
        user,
        conversation,
        seq,
    } = *call;
    let (timeline, named, key) = match conversation {
        Conversation::Peer(peer) => (
            user.mailbox(),
            peer.mailbox(),
            StateKey::PeerReadMark { user, peer },
        ),
        Conversation::Group(group) => (
            group.timeline(),
            group.timeline(),
            StateKey::GroupReadMark { group, user },
        ),
    };
    let fields = [user.0, u64::from(named.kind as u8), named.owner, seq.0];
    let (slot, hash) = (ctx.slot_of_timeline(timeline), hash_ask(7, &fields, &[]));
    let ask = Ask::new(slot, request_id, user, Destination::timeline(named), hash);
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    match conversation {
        Conversation::Peer(peer) => {
            require_user(ctx, user)?;
            require_user_if_here(ctx, peer)?;
        }
        Conversation::Group(group) => {
            if spans(ctx, group, user)?.is_empty() {
                return Err(not_a_member(ctx, group, user));
            }
        }
    }
    let seq = raise(ctx, timeline, key, seq, |_| Ok(()))?;
    Ok(ask.accept(ctx, Reply::ReadMark { seq }))
}

/// Raises a mark over a timeline, never beyond its head; gives the mark that stands. A mark that
/// has no row yet is asked `may_begin`.
pub(super) fn raise(
    ctx: &mut Context<'_>,
    timeline: TimelineId,
    key: StateKey,
    seq: Seq,
    may_begin: impl FnOnce(&mut Context<'_>) -> Result<(), No>,
) -> Result<Seq, No> {
    let head = ctx.head(timeline)?;
    if seq > head {
        return Err(Refusal::SeqBeyondHead { seq, head }.into());
    }
    let mark = Seq(number(ctx, &key)?);
    if seq <= mark {
        return Ok(mark);
    }
    if mark == Seq::ZERO {
        may_begin(ctx)?;
    }
    ctx.put(&key, table::encode_u64(seq.0));
    Ok(seq)
}
