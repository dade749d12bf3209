//! Lanes where no whole command can get them yet: both ends in one shard with something on the
//! way, as when a slot has moved in; and lanes in damaged files.

use bytes::Bytes;
use uuid::Uuid;

use super::{Disk, SHARD, new_row, new_shard, options};
use crate::base::memory::MemoryDisk;
use crate::cluster_options::ClusterOptions;
use crate::command::{Command, Deliver, Reply, Send};
use crate::entry::EntryBuilder;
use crate::error::Error;
use crate::id::{MessageId, Seq, ShardId, SlotId, UserId, slot_of_owner};
use crate::item::{Item, Items, LaneId};
use crate::key::StateKey;
use crate::row::{Flags, MessageType, content_crc};
use crate::shard::{Applied, ApplyEntry, ApplyPayload, Shard};

const SLOT_COUNT: u16 = 8;
pub(super) const NOW_MS: u64 = 1_800_000_000_000;

/// Two users in different slots, and the lane from the first to the second.
fn two_users(shard: &Shard) -> (UserId, UserId, LaneId) {
    let slot = |user: UserId| slot_of_owner(user.0, SLOT_COUNT);
    let alice = UserId(1 << 16);
    let bob = (2..).map(|number| UserId(number << 16));
    let bob = bob.clone().find(|bob| slot(*bob) != slot(alice)).unwrap();
    shard.enter(|ctx| ctx.set_cluster_options(ClusterOptions::default()));
    for user in [alice, bob] {
        shard.enter(|ctx| ctx.put(&StateKey::User { user }, "handle"));
    }
    (alice, bob, LaneId::between(slot(alice), slot(bob)))
}

fn message(from: UserId, to: UserId, body: &str) -> Item {
    let mut row = new_row(body);
    row.correspondent = from;
    Item::Message {
        recipient: to,
        home_seq: Seq(1),
        row,
    }
}

fn queue(shard: &Shard, lane: LaneId, item: Item) -> u64 {
    shard.enter(|ctx| ctx.lanes().push(lane.source, lane.destination, item))
}

pub(super) fn apply(shard: &Shard, commands: &[Command]) -> Applied {
    let mut entry = EntryBuilder::new(NOW_MS);
    for command in commands {
        entry.push(command);
    }
    apply_bytes(shard, entry.finish())
}

fn apply_bytes(shard: &Shard, bytes: Bytes) -> Applied {
    let index = super::index_of(&shard.applied()) + 1;
    let log_id = super::blank(index).log_id;
    let payload = ApplyPayload::Commands(bytes);
    shard.apply(&[ApplyEntry { log_id, payload }]).unwrap()
}

pub(super) fn send(number: u64, sender: UserId, recipient: UserId, body: &str) -> Command {
    let id = u128::from(NOW_MS) << 80 | 7 << 76 | 2 << 62 | u128::from(number);
    let (client_msg_id, kind) = (Uuid::from_u128(id), MessageType::TEXT);
    let body = Bytes::copy_from_slice(body.as_bytes());
    Command::Send(Send {
        sender,
        recipient,
        client_msg_id,
        message_id: MessageId(NOW_MS << 16 | number),
        kind,
        flags: Flags(0),
        content_crc: content_crc(client_msg_id, kind, &body),
        body,
        shown: MessageId::ZERO,
    })
}

fn deliver(lane: LaneId, first_seq: u64, items: &[Item]) -> Command {
    let items = Items::new(items);
    Command::Deliver(Deliver {
        lane,
        first_seq,
        items,
    })
}

fn memory() -> Disk {
    Disk::Memory(MemoryDisk::new())
}

#[test]
fn within_a_shard_an_item_waits_behind_what_is_on_the_way() {
    let store = memory().open();
    let shard = new_shard(&store);
    let (alice, bob, lane) = two_users(&shard);
    let first = message(alice, bob, "on the way when the slots met");
    queue(&shard, lane, first.clone());
    let applied = apply(
        &shard,
        &[send(1, alice, bob, "second"), send(2, alice, bob, "third")],
    );
    assert_eq!(shard.bodies(bob.0), [""; 0], "no message overtakes another");
    let seqs: Vec<u64> = applied.outbox.iter().map(|item| item.seq).collect();
    assert_eq!(seqs, [2, 3]);
    // The relay ships them like any other; delivery and ack are one apply.
    let items: Vec<Item> = shard.unacked().into_iter().map(|item| item.item).collect();
    assert_eq!(items[0], first);
    let applied = apply(&shard, &[deliver(lane, 1, &items[..2])]);
    let delivered = Reply::Delivered {
        lane,
        mark: 2,
        corrupt: None,
    };
    assert_eq!(applied.replies, [vec![delivered]]);
    assert_eq!((shard.lane_acked(lane), shard.unacked().len()), (2, 1));
    apply(&shard, &[send(3, alice, bob, "fourth")]);
    let items: Vec<Item> = shard.unacked().into_iter().map(|item| item.item).collect();
    apply(&shard, &[deliver(lane, 3, &items)]);
    // Level again: the next one takes no lane seq.
    let applied = apply(&shard, &[send(4, alice, bob, "fifth")]);
    assert!(applied.outbox.is_empty());
    let bodies = [
        "on the way when the slots met",
        "second",
        "third",
        "fourth",
        "fifth",
    ];
    assert_eq!(shard.bodies(bob.0), bodies);
}

#[test]
fn what_arrived_before_the_slots_met_is_acked_by_the_next_direct_delivery() {
    let store = memory().open();
    let shard = new_shard(&store);
    let (alice, bob, lane) = two_users(&shard);
    queue(&shard, lane, message(alice, bob, "arrived elsewhere"));
    shard.enter(|ctx| ctx.lanes().advance(lane.source, lane.destination));
    assert_eq!(shard.unacked().len(), 1);
    apply(&shard, &[send(1, alice, bob, "direct")]);
    assert_eq!(shard.bodies(bob.0), ["direct"]);
    assert_eq!((shard.lane_acked(lane), shard.unacked().len()), (1, 0));
}

#[test]
fn within_a_shard_nothing_is_taken_that_was_never_sent() {
    let store = memory().open();
    let shard = new_shard(&store);
    let (alice, bob, lane) = two_users(&shard);
    let applied = apply(
        &shard,
        &[deliver(lane, 1, &[message(alice, bob, "made up")])],
    );
    let refused = Reply::Delivered {
        lane,
        mark: 0,
        corrupt: Some(1),
    };
    assert_eq!(applied.replies, [vec![refused]]);
    assert_eq!(shard.bodies(bob.0), [""; 0]);
}

#[test]
fn an_item_keeps_its_bytes_when_its_message_is_edited() {
    let store = memory().open();
    let shard = new_shard(&store);
    let (alice, bob, lane) = two_users(&shard);
    queue(&shard, lane, message(alice, bob, "first"));
    apply(&shard, &[send(1, alice, bob, "as sent")]);
    let before = shard.unacked();
    shard.edit(alice.0, 1, "edited");
    assert_eq!(shard.unacked(), before);
    shard.flush();
    shard.edit(alice.0, 1, "edited again");
    shard.flush();
    assert_eq!(shard.unacked(), before);
    assert_eq!(shard.bodies(alice.0), ["edited again"]);
}

#[test]
fn an_item_pins_no_entry_after_its_memtable_is_frozen() {
    let store = memory().open();
    let shard = new_shard(&store);
    let (alice, bob, lane) = two_users(&shard);
    queue(&shard, lane, message(alice, bob, "first"));
    let mut entry = EntryBuilder::new(NOW_MS);
    entry.push(&send(1, alice, bob, "in the entry's own bytes"));
    let entry = entry.finish();
    apply_bytes(&shard, entry.clone());
    let inside = |shard: &Shard| match &shard.unacked()[1].item {
        Item::Message { row, .. } => entry.as_ptr_range().contains(&row.body.as_ptr()),
        other => panic!("{other:?}"),
    };
    assert!(inside(&shard), "not copied before it has to be");
    let before = shard.unacked();
    shard.flush();
    assert!(!inside(&shard));
    assert_eq!(shard.unacked(), before);
}

#[test]
fn lanes_are_read_back_from_either_store() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        let (alice, bob, lane) = two_users(&shard);
        for body in ["a", "b", "c"] {
            queue(&shard, lane, message(alice, bob, body));
        }
        shard.flush();
        shard.enter(|ctx| {
            ctx.lanes().advance(lane.source, lane.destination);
            ctx.lanes().ack(lane.source, lane.destination, 1);
        });
        queue(&shard, lane, message(alice, bob, "d"));
        let (unacked, hash) = (shard.unacked(), shard.hash_now());
        shard.flush();
        assert_eq!(shard.hash_now(), hash);
        drop((shard, store));
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        assert_eq!((shard.unacked(), shard.hash_now()), (unacked, hash));
        assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
        let (sent, mark) = shard.enter(|ctx| {
            let lanes = ctx.lanes();
            let sent = lanes.sent_and_acked(lane.source, lane.destination);
            (sent, lanes.mark(lane.source, lane.destination))
        });
        assert_eq!((sent, mark), ((4, 1), 1));
    }
}

#[test]
fn a_damaged_outbox_row_stops_its_replica_and_no_other() {
    let disk = MemoryDisk::new();
    let slots = options().slot_count;
    let elsewhere = (1..).find(|user| slot_of_owner(*user, slots).0.is_multiple_of(2));
    let elsewhere = elsewhere.expect("half of all users");
    let rows = {
        let store = Disk::Memory(disk.clone()).open();
        let lost = store.create_shard(ShardId(1), [1, 3, 5, 7]).unwrap();
        let other = store.create_shard(ShardId(2), [0, 2, 4, 6]).unwrap();
        let lane = LaneId::between(SlotId(7), SlotId(0));
        queue(&lost, lane, message(UserId(1), UserId(2), "a"));
        lost.flush();
        other.send(elsewhere, "x");
        other.flush();
        lost.verify(&mut |_| {}).unwrap().rows
    };
    assert_eq!(rows, 2, "a table and an item");
    // Range 0: format, counter, 8 ranges, 2 applied rows. The table comes before the item.
    disk.rot(13);
    let store = Disk::Memory(disk).open();
    let lost = store.shard(ShardId(1)).unwrap();
    let Err(Error::Stopped { reason }) = lost.apply(&[super::blank(2)]) else {
        panic!("it would send something else, or nothing");
    };
    assert!(reason.contains("checksum"), "{reason}");
    let report = lost.verify(&mut |_| {}).unwrap();
    assert!(matches!(report.faults[..], [Error::CorruptRow { .. }]));
    let other = store.shard(ShardId(2)).unwrap();
    other.apply(&[super::blank(2)]).unwrap();
    assert_eq!(other.bodies(elsewhere), ["x"]);
}

#[test]
fn an_outbox_with_a_hole_does_not_open() {
    let disk = memory();
    {
        let store = disk.open();
        let shard = new_shard(&store);
        let (alice, bob, lane) = two_users(&shard);
        for body in ["a", "b", "c"] {
            queue(&shard, lane, message(alice, bob, body));
        }
        shard.flush();
        shard.enter(|ctx| ctx.delete(&StateKey::Outbox { lane, seq: 2 }));
        shard.flush();
    }
    let store = disk.open_with(options()).unwrap();
    let shard = store.shard(SHARD).unwrap();
    let index = super::index_of(&shard.applied()) + 1;
    assert!(shard.apply(&[super::blank(index)]).is_err());
}
