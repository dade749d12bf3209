//! What admission asks of a command before it is proposed.

use mailbox_engine::{Command, MetaCommand};

use crate::proposer::ENTRY_BYTES_MAX;

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

/// About what a command adds to an entry; of a requeue, what its apply appends. The letter's body is not known here,
/// but it has once been in a call, and so is no longer than one may be.
pub(crate) fn len_bytes(command: &Command) -> u64 {
    let variable = match command {
        Command::Send(send) => send.body.len(),
        Command::SendGroup(send) => send.body.len(),
        Command::RegisterUser(call) => call.handle.len(),
        Command::CreateGroup(call) => call.name.len(),
        Command::Deliver(call) => call.items.as_bytes().len(),
        Command::AckLanes(call) => call.acks.len() * 20,
        Command::SplitShard(call) => call.slots.len() * 2,
        Command::Meta(MetaCommand::BeginSplit { slots, .. }) => slots.len() * 2,
        Command::Meta(MetaCommand::PutGateway(call)) => call.facts.len_bytes(),
        Command::Meta(MetaCommand::SweepGateways { missed }) => missed.len() * 64,
        Command::Meta(MetaCommand::Begin(map)) => 128 * (map.nodes.len() + map.shards.len()),
        Command::JoinGroup(_)
        | Command::LeaveGroup(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::DropDeadLetter(_)
        | Command::Cut => 0,
        Command::RequeueDeadLetter(_) => return ENTRY_BYTES_MAX,
    };
    96 + variable as u64
}

#[cfg(test)]
mod tests {
    use mailbox_engine::{DropDeadLetter, MessageId, RequeueDeadLetter, Seq, SlotId};
    use uuid::Uuid;

    use super::*;
    use crate::proposer::ENTRY_BYTES_FULL;

    #[test]
    fn a_requeue_counts_the_body_that_it_appends() {
        let (request_id, slot, seq) = (Uuid::nil(), SlotId(1), Seq(2));
        let requeue = Command::RequeueDeadLetter(RequeueDeadLetter {
            request_id,
            slot,
            seq,
            message_id: MessageId::ZERO,
        });
        let bytes = len_bytes(&requeue);
        assert!(bytes <= ENTRY_BYTES_MAX, "it is admitted");
        assert!(
            bytes >= ENTRY_BYTES_FULL,
            "an entry takes no other after it"
        );
        let drop = Command::DropDeadLetter(DropDeadLetter {
            request_id,
            slot,
            seq,
        });
        assert!(len_bytes(&drop) < 200, "it appends nothing");
    }
}
