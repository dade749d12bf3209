//! What must hold when all has been drained.

use std::collections::{BTreeMap, BTreeSet};

use mailbox_engine::{Conversation, Flags, MessageType, Row, Send, Seq, UserId, slot_of_owner};

use crate::cluster::{Cluster, SLOT_COUNT};
use crate::hostile::Run;

/// Each accepted message is in its home; and in the recipient's mailbox, in the order of its
/// sender's others, or refused: once, and nothing else is anywhere.
pub(crate) fn check_messages(cluster: &Cluster, run: &Run) {
    let mailboxes: BTreeMap<UserId, Vec<Row>> = run
        .users
        .keys()
        .map(|user| (*user, cluster.mailbox(*user)))
        .collect();
    for (sender, rows) in &mailboxes {
        let sent: Vec<&(Send, Seq)> = run
            .accepted
            .iter()
            .filter(|(send, _)| send.sender == *sender)
            .collect();
        let outgoing = rows
            .iter()
            .filter(|row| row.flags.has(Flags::OUTGOING) && row.kind == MessageType::TEXT);
        let outgoing: Vec<(u128, Seq)> = outgoing
            .map(|row| (row.client_msg_id.as_u128(), row.seq))
            .collect();
        let expected = sent
            .iter()
            .map(|(send, seq)| (send.client_msg_id.as_u128(), *seq));
        assert_eq!(outgoing, expected.collect::<Vec<_>>(), "{sender} sent");
        let refused: Vec<Seq> = rows.iter().filter_map(|row| Some(row.refused?.0)).collect();
        let refused_once: BTreeSet<Seq> = refused.iter().copied().collect();
        assert_eq!(refused.len(), refused_once.len(), "{sender}: refused once");
        let arrived = sent
            .iter()
            .filter(|(send, seq)| send.recipient != *sender && !refused_once.contains(seq));
        let mut expected: BTreeMap<UserId, Vec<u128>> = BTreeMap::new();
        for (send, _) in arrived {
            let ids = expected.entry(send.recipient).or_default();
            ids.push(send.client_msg_id.as_u128());
        }
        let named: BTreeSet<Seq> = sent.iter().map(|(_, seq)| *seq).collect();
        assert!(
            refused_once.is_subset(&named),
            "{sender}: refusals name sends"
        );
        for (recipient, rows) in &mailboxes {
            let received = rows
                .iter()
                .filter(|row| row.sender == *sender && !row.flags.has(Flags::OUTGOING));
            let received: Vec<u128> = received.map(|row| row.client_msg_id.as_u128()).collect();
            let wanted = expected.remove(recipient).unwrap_or_default();
            assert_eq!(received, wanted, "{sender} to {recipient}");
        }
        assert!(expected.is_empty(), "nobody receives nothing: {expected:?}");
    }
}

pub(crate) fn check_tables(cluster: &Cluster, run: &Run) {
    let handles: BTreeSet<&String> = run.users.values().collect();
    assert_eq!(handles.len(), run.users.len(), "never two owners");
    for (user, handle) in &run.users {
        let shard = cluster.shard(cluster.shard_of_user(*user));
        assert_eq!(shard.handle_of(*user).unwrap().as_ref(), Some(handle));
        let own = shard.groups_of(*user).unwrap();
        for group in &run.groups {
            let place = cluster.shard_of(slot_of_owner(group.0, SLOT_COUNT));
            let member = cluster.shard(place).membership(*group, *user).unwrap();
            let own = own.iter().find(|own| own.group == *group);
            assert_eq!(
                own.map(|own| &own.spans),
                member.as_ref().map(|member| &member.spans)
            );
        }
        let mark = shard.read_mark(*user, Conversation::Peer(*user)).unwrap();
        assert_eq!(mark, Seq::ZERO);
    }
}

/// Replicas with other flushes have the same lanes, down to the last byte.
pub(crate) fn check_hashes(cluster: &mut Cluster) {
    for number in 0..cluster.replicas.len() {
        let Some(hash) = cluster.shard(number).state_hash_now().unwrap() else {
            continue;
        };
        let unacked = cluster.shard(number).unacked();
        for flush_every in [1, 3, usize::MAX] {
            let copy = cluster.replay(number, usize::MAX, flush_every);
            assert_eq!(copy.shard(number).unacked(), unacked);
            assert_eq!(copy.hash(number), hash.hash, "flushed every {flush_every}");
        }
        cluster.flush(number);
        assert_eq!(cluster.hash(number), hash.hash);
        let report = cluster.shard(number).verify(&mut |_| {}).unwrap();
        assert_eq!(report.fault_count, 0, "{:?}", report.faults);
    }
}
