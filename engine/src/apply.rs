//! Entries to state changes: the only way by which a shard's rows change.
//!
//! Deterministic: what an entry does is a function of the rows and of its bytes. The time is the
//! entry's; there is no clock, no randomness and no order of places of a hash map in here, and a
//! lint (`.clippy.toml`) says so.

use crate::command::{Command, Refusal, Reply};
use crate::entry::Entry;
use crate::error::Error;
use crate::id::SlotId;
use crate::procedure::{self, No};
use crate::state::Context;
use crate::{Malformed, dedup};

/// Runs an entry's commands in order and appends one reply for each.
///
/// # Errors
/// A fault of this replica: the entry may be half done, and the replica must stop.
pub(crate) fn apply_entry(
    ctx: &mut Context<'_>,
    entry: &Entry,
    replies: &mut Vec<Reply>,
) -> Result<(), Error> {
    ctx.advance_time(entry.time_ms());
    dedup::raise_floors(ctx)?;
    replies.reserve(entry.count().min(entry.len_bytes()));
    #[cfg(feature = "planted")]
    if mailbox_planted::is("hash-order-in-apply") {
        return apply_in_hash_order(ctx, entry, replies);
    }
    for command in entry.commands() {
        let command = command.map_err(|malformed: Malformed| Error::CorruptEntry { malformed })?;
        let reply = match run(ctx, command) {
            Ok(reply) => reply,
            Err(No::Refusal(refusal)) => Reply::Refused(refusal),
            Err(No::Fault(fault)) => return Err(fault),
        };
        replies.push(reply);
    }
    Ok(())
}

/// What `HashMap` would do to an entry.
#[cfg(feature = "planted")]
fn apply_in_hash_order(
    ctx: &mut Context<'_>,
    entry: &Entry,
    replies: &mut Vec<Reply>,
) -> Result<(), Error> {
    #[allow(clippy::disallowed_types, reason = "it is the bug")]
    let mut commands = std::collections::HashMap::new();
    for (place, command) in entry.commands().enumerate() {
        let command = command.map_err(|malformed| Error::CorruptEntry { malformed })?;
        commands.insert(place, command);
    }
    let mut placed = std::collections::BTreeMap::new();
    for (place, command) in commands {
        let reply = match run(ctx, command) {
            Ok(reply) => reply,
            Err(No::Refusal(refusal)) => Reply::Refused(refusal),
            Err(No::Fault(fault)) => return Err(fault),
        };
        placed.insert(place, reply);
    }
    replies.extend(placed.into_values());
    Ok(())
}

/// The meta shard has no owner's rows, and no other shard has a map.
fn require_place(ctx: &Context<'_>, command: &Command) -> Result<(), Refusal> {
    let fits = match command {
        Command::Meta(_) => ctx.is_meta(),
        Command::SetClusterOptions(_) | Command::Cut => true,
        Command::Send(_)
        | Command::SendGroup(_)
        | Command::RegisterUser(_)
        | Command::CreateGroup(_)
        | Command::JoinGroup(_)
        | Command::LeaveGroup(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::RequeueDeadLetter(_)
        | Command::DropDeadLetter(_) => !ctx.is_meta(),
    };
    if fits {
        Ok(())
    } else {
        let slot = SlotId::META;
        Err(Refusal::WrongShard { slot })
    }
}

fn run(ctx: &mut Context<'_>, command: Command) -> Result<Reply, No> {
    require_place(ctx, &command)?;
    match command {
        // Nothing may be judged by what this node alone believes. What no option decides goes on:
        // lanes in particular, since nothing on them is ever refused for want of anything.
        Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::Cut => {}
        Command::Send(_)
        | Command::SendGroup(_)
        | Command::RegisterUser(_)
        | Command::CreateGroup(_)
        | Command::JoinGroup(_)
        | Command::LeaveGroup(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::RequeueDeadLetter(_)
        | Command::DropDeadLetter(_) => {
            ctx.cluster_options()?;
        }
    }
    match command {
        Command::Send(call) => procedure::send(ctx, call),
        Command::SendGroup(call) => procedure::send_group(ctx, call),
        Command::RegisterUser(call) => procedure::register_user(ctx, &call),
        Command::CreateGroup(call) => procedure::create_group(ctx, call),
        Command::JoinGroup(call) => procedure::join_group(ctx, &call),
        Command::LeaveGroup(call) => procedure::leave_group(ctx, &call),
        Command::MarkRead(call) => procedure::mark_read(ctx, &call),
        Command::AckCursor(call) => procedure::ack_cursor(ctx, call),
        Command::Deliver(call) => procedure::deliver(ctx, &call),
        Command::AckLanes(call) => procedure::ack_lanes(ctx, &call),
        Command::SetClusterOptions(call) => procedure::set_cluster_options(ctx, &call),
        Command::Meta(call) => procedure::meta(ctx, &call),
        Command::MoveSlot(call) => procedure::move_slot(ctx, &call),
        Command::SplitShard(call) => procedure::split_shard(ctx, &call),
        Command::RequeueDeadLetter(call) => procedure::requeue_dead_letter(ctx, &call),
        Command::DropDeadLetter(call) => procedure::drop_dead_letter(ctx, &call),
        Command::Cut => {
            ctx.cut();
            Ok(Reply::Cut {
                index: ctx.log_id().index,
            })
        }
    }
}
