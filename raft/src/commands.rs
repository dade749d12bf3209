//! What admission asks of a command before it is proposed.

use mailbox_engine::{Command, MetaCommand};

/// Whether a client's command may put an item into an outbox.
pub(crate) fn may_ride_a_lane(command: &Command) -> bool {
    match command {
        Command::Send(_)
        | Command::RegisterUser(_)
        | Command::CreateGroup(_)
        | Command::JoinGroup(_)
        | Command::LeaveGroup(_) => true,
        Command::SendGroup(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::RequeueDeadLetter(_)
        | Command::DropDeadLetter(_)
        | Command::Cut => false,
    }
}

/// About what a command adds to an entry.
pub(crate) fn len_bytes(command: &Command) -> u64 {
    let variable = match command {
        Command::Send(send) => send.body.len(),
        Command::SendGroup(send) => send.body.len(),
        Command::RegisterUser(call) => call.handle.len(),
        Command::CreateGroup(call) => call.name.len(),
        Command::Deliver(call) => call.items.as_bytes().len(),
        Command::AckLanes(call) => call.acks.len() * 20,
        Command::SplitShard(call) => call.slots.len() * 2,
        Command::Meta(MetaCommand::Begin(map)) => 128 * (map.nodes.len() + map.shards.len()),
        Command::JoinGroup(_)
        | Command::LeaveGroup(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::RequeueDeadLetter(_)
        | Command::DropDeadLetter(_)
        | Command::Cut => 0,
    };
    96 + variable as u64
}
