//! Dead letters in damaged files and snapshots, and what a repeat of an operator's call finds.

use std::sync::Arc;

use uuid::Uuid;

use super::installs::snapshot_of;
use super::lanes::{NOW_MS, apply, send};
use super::{Disk, blank, new_shard, options};
use crate::cluster_options::ClusterOptions;
use crate::command::{Command, DropDeadLetter, Reply, RequeueDeadLetter};
use crate::error::Error;
use crate::id::{MessageId, Seq, SlotId, UserId, slot_of_owner};
use crate::key::{DedupKey, Destination, StateKey};
use crate::shard::Shard;
use crate::store::Store;

const ALICE: UserId = UserId(1 << 16);
const STRANGER: UserId = UserId(77 << 16);

/// A shard that keeps three letters to a user who is not there, and their slot.
fn with_letters(store: &Store) -> (Arc<Shard>, SlotId) {
    let shard = new_shard(store);
    shard.enter(|ctx| ctx.set_cluster_options(ClusterOptions::default()));
    shard.enter(|ctx| ctx.put(&StateKey::User { user: ALICE }, "handle"));
    for number in 1..=3 {
        let applied = apply(&shard, &[send(number, ALICE, STRANGER, "hello")]);
        assert!(matches!(applied.replies[0][0], Reply::Sent { .. }));
    }
    assert_eq!(shard.metrics().dead_letters.waiting(), 3);
    (shard, slot_of_owner(STRANGER.0, options().slot_count))
}

/// Changes a row's bytes, as no command does.
fn damage(shard: &Shard, key: &StateKey, change: impl FnOnce(&mut Vec<u8>)) {
    shard.enter(|ctx| {
        let mut value = ctx.get(key).unwrap().unwrap().to_vec();
        change(&mut value);
        ctx.put(key, value);
    });
}

#[test]
fn a_snapshot_with_a_damaged_letter_is_refused() {
    type Damage = fn(&Shard, SlotId);
    let damages: [Option<Damage>; 4] = [
        None,
        // In the recipient's id, and in the crc.
        Some(|shard, slot| {
            let key = StateKey::DeadLetter { slot, seq: Seq(2) };
            damage(shard, &key, |value| value[3] ^= 1);
        }),
        Some(|shard, slot| {
            let key = StateKey::DeadLetter { slot, seq: Seq(2) };
            damage(shard, &key, |value| *value.last_mut().unwrap() ^= 0x80);
        }),
        // More are gone than there were.
        Some(|shard, slot| {
            let key = StateKey::DeadLetterTotals { slot };
            damage(shard, &key, |value| value[15] = 4);
        }),
    ];
    for damage in damages {
        let files_dir = tempfile::tempdir().unwrap();
        let [from, to] = Disk::all();
        let source = from.open();
        let (source, slot) = with_letters(&source);
        if let Some(damage) = damage {
            damage(&source, slot);
        }
        source.flush();
        let (meta, files) = snapshot_of(&source, files_dir.path());
        let store = to.open();
        let shard = new_shard(&store);
        shard.send(1, "old");
        let before = (shard.hash_now(), shard.metrics().dead_letters);
        let installed = shard.install_files(&meta, &files);
        if damage.is_none() {
            installed.unwrap();
            let after = (source.hash_now(), source.metrics().dead_letters);
            assert_eq!((shard.hash_now(), shard.metrics().dead_letters), after);
            continue;
        }
        assert!(
            matches!(installed, Err(Error::CorruptSnapshot { .. })),
            "{installed:?}"
        );
        let after = (shard.hash_now(), shard.metrics().dead_letters);
        assert_eq!(after, before, "nothing has changed");
    }
}

#[test]
fn totals_that_cannot_be_read_stop_their_replica() {
    for disk in Disk::all() {
        {
            let store = disk.open();
            let (shard, slot) = with_letters(&store);
            let key = StateKey::DeadLetterTotals { slot };
            damage(&shard, &key, |value| value.truncate(31));
            shard.flush();
        }
        let store = disk.open();
        let shard = store.shard(super::SHARD).unwrap();
        let next = super::index_of(&shard.applied()) + 1;
        let Err(Error::Stopped { reason }) = shard.apply(&[blank(next)]) else {
            panic!("it would count on from a wrong number");
        };
        assert!(reason.contains("dead letter totals"), "{reason}");
    }
}

#[test]
fn a_replica_that_is_gone_has_no_letters() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let (shard, _) = with_letters(&store);
    assert!(store.drop_shard(super::SHARD).unwrap());
    assert_eq!(shard.metrics().dead_letters.written, 0);
    assert_eq!(new_shard(&store).metrics().dead_letters.written, 0);
}

#[test]
fn what_repeats_of_operators_calls_find_never_changes() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let (shard, slot) = with_letters(&store);
    let id = |number: u128| Uuid::from_u128(u128::from(NOW_MS) << 80 | 7 << 76 | 2 << 62 | number);
    let message_id = MessageId(NOW_MS << 16 | 0xFF);
    shard.enter(|ctx| ctx.put(&StateKey::User { user: STRANGER }, "handle"));
    let requeue = RequeueDeadLetter {
        request_id: id(1),
        slot,
        seq: Seq(1),
        message_id,
    };
    let drop = DropDeadLetter {
        request_id: id(2),
        slot,
        seq: Seq(2),
    };
    let seq = Seq(1);
    for (number, command, reply, text) in [
        (
            1,
            Command::RequeueDeadLetter(requeue),
            Reply::DeadLetterRequeued { seq, message_id },
            REQUEUED,
        ),
        (
            2,
            Command::DropDeadLetter(drop),
            Reply::DeadLetterDropped,
            DROPPED,
        ),
    ] {
        // The second time it is answered from the row.
        for _ in 0..2 {
            let applied = apply(&shard, std::slice::from_ref(&command));
            assert_eq!(applied.replies, [[reply.clone()]]);
        }
        let key = DedupKey {
            id: id(number),
            sender: UserId(0),
            destination: Destination::timeline(slot.dead_letters()),
        };
        let value = shard.enter(|ctx| ctx.dedup(slot, &key).unwrap().unwrap());
        let found: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, text.replace(' ', ""));
    }
}

/// `hash of what was asked | kind | seq | message id`, of a slot and seqs as in the test.
const REQUEUED: &str = "714f17bd0691ab80 08 0000000000000001 01a3185c500000ff";
const DROPPED: &str = "a9aaf7b70ffe5326 09 0000000000000000";
