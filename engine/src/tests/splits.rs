//! A shard becomes two where it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::installs::{filled, snapshot_of, stored_ranges};
use super::moves::{apply, entry};
use super::{Disk, SHARD, index_of, mailbox, new_row};
use crate::applied::LogId;
use crate::base::memory::IngestCrash;
use crate::command::{Command, MoveSlot, Refusal, Reply, SplitShard};
use crate::error::Error;
use crate::id::{MessageId, RangeId, Seq, ShardId, SlotId, UserId, slot_of_owner};
use crate::item::Item;
use crate::key::{DedupKey, Destination};
use crate::shard::{ApplyEntry, Shard};
use crate::slot_move::SlotStanding;
use crate::store::Store;

const CHILD: ShardId = ShardId(9);
const EPOCH: u64 = 5;
/// Of a slot that goes.
const USER: u64 = 1;

fn slot() -> SlotId {
    slot_of_owner(USER, 8)
}

/// Three slots go, among them the user's.
fn going() -> BTreeSet<SlotId> {
    (0..3).map(|step| SlotId((slot().0 + step) % 8)).collect()
}

fn staying() -> BTreeSet<SlotId> {
    let all: BTreeSet<SlotId> = (0..8).map(SlotId).collect();
    &all - &going()
}

fn staying_user() -> u64 {
    let stays = |user: &u64| staying().contains(&slot_of_owner(*user, 8));
    (0..30).find(stays).unwrap()
}

fn call() -> SplitShard {
    SplitShard {
        to: CHILD,
        epoch: EPOCH,
        slots: going(),
    }
}

fn split(shard: &Shard, call: SplitShard) -> Reply {
    let applied = apply(shard, &[Command::SplitShard(call)]);
    applied.replies.into_iter().flatten().next().unwrap()
}

const DONE: Reply = Reply::ShardSplit {
    to: CHILD,
    epoch: EPOCH,
};

fn flush(store: &Store, shard: &Shard) {
    while shard.flush().is_some() {}
    store.open_children();
}

/// The rows of the slots that a shard has flushed.
fn digests(shard: &Shard) -> Vec<(SlotId, u128)> {
    let digest = |slot| {
        let dir = tempfile::tempdir().unwrap();
        let export = shard.export_slot(slot).unwrap();
        let (meta, _) = export.write_files(dir.path(), &mut |_| {}).unwrap();
        (slot, meta.digest)
    };
    shard.slots().into_iter().map(digest).collect()
}

fn ranges(shard: &Shard) -> Vec<(SlotId, RangeId)> {
    shard.state.read().ranges.by_slot().collect()
}

/// Every range with rows belongs to one of these.
fn check_ranges(shards: &[&Arc<Shard>]) {
    let live = shards.iter().flat_map(|shard| ranges(shard));
    let live: BTreeSet<u32> = live.map(|(_, range)| range.0).collect();
    let stored = stored_ranges(shards[0]);
    let known = |range: &u32| *range == 0 || live.contains(range);
    assert!(stored.iter().all(known), "{stored:?} of {live:?}");
}

fn early() -> DedupKey {
    DedupKey {
        id: uuid::Uuid::from_u128(5_000_000 << 80 | 7),
        sender: UserId(USER),
        destination: Destination::NEW_GROUP,
    }
}

/// A shard with rows in files and in the memtable, an unacked item included.
fn source(store: &Store) -> Arc<Shard> {
    let shard = filled(store);
    shard.send(USER, "unflushed");
    shard.send(staying_user(), "unflushed too");
    shard.edit(USER, 1, "edited again");
    shard.enter(|ctx| {
        ctx.put_dedup(slot(), early(), b"early");
        ctx.set_last_message_id(MessageId(40));
        ctx.advance_time(900);
        let stays = slot_of_owner(staying_user(), 8);
        for (from, to) in [(slot(), stays), (stays, slot())] {
            let item = Item::UserMade {
                user: UserId(3),
                handle: bytes::Bytes::from_static(b"handle"),
            };
            ctx.queue(from, to, item);
        }
    });
    shard
}

#[test]
fn both_halves_are_what_the_whole_was() {
    for disk in Disk::all() {
        let whole_store = Disk::all().into_iter().next().unwrap().open();
        let whole = source(&whole_store);
        flush(&whole_store, &whole);
        let store = disk.open();
        let parent = source(&store);
        let before = ranges(&parent);
        let (bodies, head) = (parent.bodies(USER), parent.head(mailbox(USER)).unwrap());
        let (time_ms, table) = (parent.applied().time_ms, whole.unacked());
        assert_eq!(split(&parent, call()), DONE);
        let seed = parent.applied().log_id;
        // The parent has nothing of them any more, flushed or not.
        let hash = parent.hash_now();
        let check_parent = |parent: &Arc<Shard>| {
            assert_eq!(parent.hash_now(), hash);
            assert!(parent.slots().into_iter().eq(staying()));
            let refused = parent.head(mailbox(USER));
            let Err(Error::WrongOwner { shard, epoch, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((shard, epoch), (CHILD, EPOCH));
            assert!(parent.scan(mailbox(USER), Seq(1), 9, 9).is_err());
            assert_eq!(parent.unacked().len(), 1);
        };
        check_parent(&parent);
        assert!(store.shard(CHILD).is_none());
        flush(&store, &parent);
        let child = store.shard(CHILD).unwrap();
        // No row was copied.
        let mut after = [ranges(&parent), ranges(&child)].concat();
        after.sort_unstable();
        assert_eq!(after, before);
        let mut rows = [digests(&parent), digests(&child)].concat();
        rows.sort_unstable();
        assert_eq!(rows, digests(&whole));
        let child_hash = child.hash_now();
        let check_child = |child: &Arc<Shard>| {
            assert_eq!(child.hash_now(), child_hash);
            assert!(child.slots().into_iter().eq(going()));
            assert_eq!(child.bodies(USER), bodies);
            assert_eq!(child.head(mailbox(USER)).unwrap(), head);
            let applied = child.applied();
            assert_eq!((applied.log_id, applied.last_install), (seed, seed));
            assert_eq!((applied.time_ms, child.flushed()), (time_ms, seed));
            assert_eq!(applied.last_message_id, MessageId(40));
            let standing = (EPOCH, SlotStanding::Held);
            assert_eq!(applied.slots.get(slot()), Some(standing));
            assert_eq!(child.unacked().len(), 1);
        };
        check_child(&child);
        check_parent(&parent);
        let mut items = [parent.unacked(), child.unacked()].concat();
        items.sort_by_key(|item| (item.lane.source, item.lane.destination));
        assert_eq!(items, table);
        let found = child.enter(|ctx| ctx.dedup(slot(), &early()).unwrap());
        assert_eq!(found.as_deref(), Some(b"early".as_slice()));
        drop((parent, child, store));
        let store = disk.open();
        assert_eq!(store.shards(), [SHARD, CHILD]);
        let [parent, child] = [SHARD, CHILD].map(|shard| store.shard(shard).unwrap());
        check_parent(&parent);
        check_child(&child);
        assert_eq!(child.send(USER, "next"), head.next());
        parent.send(staying_user(), "next");
        flush(&store, &parent);
        flush(&store, &child);
        check_ranges(&[&parent, &child]);
        for shard in [&parent, &child] {
            let report = shard.verify(&mut |_| {}).unwrap();
            assert_eq!(report.fault_count, 0, "{:?}", report.faults);
        }
    }
}

#[test]
fn what_is_in_the_entry_behind_a_split_is_the_parents() {
    for disk in Disk::all() {
        let store = disk.open();
        let parent = source(&store);
        let stays = staying_user();
        let (hash, rows) = {
            let second = SplitShard {
                to: ShardId(10),
                epoch: EPOCH + 1,
                slots: [*staying().last().unwrap()].into(),
            };
            let both = [
                Command::SplitShard(call()),
                Command::SplitShard(call()),
                Command::SplitShard(second),
                Command::Cut,
            ];
            let applied = apply(&parent, &both);
            assert_eq!(applied.replies[0][..2], [DONE, DONE]);
            parent.send(stays, "in the next memtable");
            (parent.hash_now(), parent.bodies(stays))
        };
        flush(&store, &parent);
        assert_eq!(store.shards(), [SHARD, CHILD, ShardId(10)]);
        assert_eq!(parent.hash_now(), hash);
        let seed = index_of(&store.shard(CHILD).unwrap().applied());
        assert!(parent.state_hash(Some(seed)).unwrap().is_some(), "the cut");
        drop((parent, store));
        let store = disk.open();
        let parent = store.shard(SHARD).unwrap();
        assert_eq!((parent.hash_now(), parent.bodies(stays)), (hash, rows));
    }
}

#[test]
fn a_crash_in_the_flush_leaves_one_shard_or_two() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let (seed, hash, child_hash) = {
            let store = disk.open();
            let parent = source(&store);
            flush(&store, &parent);
            let seed = entry(&parent, 900, &[Command::SplitShard(call())]);
            parent.apply(std::slice::from_ref(&seed)).unwrap();
            let built = parent.build(&parent.freeze().unwrap()).unwrap();
            memory.crash_next_ingest(at);
            assert!(parent.ingest(built).is_err());
            store.open_children();
            assert_eq!(store.shards(), [SHARD], "never by a flush that failed");
            let other = Disk::all().into_iter().next().unwrap().open();
            let twin = source(&other);
            split(&twin, call());
            flush(&other, &twin);
            let child = other.shard(CHILD).unwrap();
            (seed, twin.hash_now(), child.hash_now())
        };
        memory.crash();
        let store = disk.open();
        let parent = store.shard(SHARD).unwrap();
        match at {
            IngestCrash::Before => {
                assert_eq!(store.shards(), [SHARD]);
                assert_eq!(index_of(&parent.applied()) + 1, seed.log_id.index);
                let applied = parent.apply(&[seed]).unwrap();
                assert_eq!(applied.replies, [[DONE]]);
                flush(&store, &parent);
            }
            IngestCrash::After => assert_eq!(parent.applied().log_id, Some(seed.log_id)),
        }
        let child = store.shard(CHILD).unwrap();
        assert_eq!((parent.hash_now(), child.hash_now()), (hash, child_hash));
        check_ranges(&[&parent, &child]);
    }
}

#[test]
fn a_node_without_use_for_the_child_drops_its_rows() {
    for disk in Disk::all() {
        for there in [false, true] {
            let store = disk.open();
            if store.shard(SHARD).is_some() {
                store.drop_shard(SHARD).unwrap();
                store.drop_shard(CHILD).unwrap();
            }
            let parent = source(&store);
            split(&parent, call());
            let hash = parent.hash_now();
            if there {
                store.create_shard(CHILD, []).unwrap();
            }
            while let Some(frozen) = parent.freeze() {
                let children: Vec<ShardId> = frozen.children().map(|(child, _)| child).collect();
                assert_eq!(children, [CHILD]);
                if !there {
                    frozen.refuse_child(CHILD);
                }
                let built = store.build(vec![(parent.clone(), frozen)]).unwrap();
                assert!(store.ingest(built).unwrap());
            }
            assert_eq!(store.shard(CHILD).is_some(), there);
            assert_eq!(parent.hash_now(), hash);
            let child = match store.shard(CHILD) {
                Some(child) => child,
                None => store.create_shard(CHILD, []).unwrap(),
            };
            check_ranges(&[&parent, &child]);
            // By a snapshot of another replica it becomes what that one is.
            let (dir, other) = (
                tempfile::tempdir().unwrap(),
                Disk::all().into_iter().next().unwrap().open(),
            );
            let twin = source(&other);
            split(&twin, call());
            flush(&other, &twin);
            let of_twin = other.shard(CHILD).unwrap();
            let (meta, files) = snapshot_of(&of_twin, dir.path());
            child.install_files(&meta, &files).unwrap();
            assert_eq!(child.hash_now(), of_twin.hash_now());
            assert_eq!(child.slots(), of_twin.slots());
            assert_eq!(parent.hash_now(), twin.hash_now());
            check_ranges(&[&parent, &child]);
        }
    }
}

#[test]
fn a_snapshot_from_behind_a_split_brings_the_parent_alone() {
    for disk in Disk::all() {
        // Of a replica that has applied the split and not flushed it, and of one that has never heard of it.
        for unflushed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let other = Disk::all().into_iter().next().unwrap().open();
            let twin = source(&other);
            split(&twin, call());
            flush(&other, &twin);
            let (meta, files) = snapshot_of(&twin, dir.path());
            let store = disk.open();
            if store.shard(SHARD).is_some() {
                store.drop_shard(SHARD).unwrap();
            }
            let parent = source(&store);
            if unflushed {
                split(&parent, call());
            }
            parent.install_files(&meta, &files).unwrap();
            flush(&store, &parent);
            assert_eq!(store.shards(), [SHARD]);
            assert_eq!(parent.hash_now(), twin.hash_now());
            assert!(parent.slots().into_iter().eq(staying()));
            check_ranges(&[&parent]);
            assert_eq!(split(&parent, call()), DONE, "a repeat");
            flush(&store, &parent);
            assert_eq!(store.shards(), [SHARD]);
        }
    }
}

#[test]
fn a_parent_that_leaves_before_the_flush_takes_the_rows_along() {
    for disk in Disk::all() {
        let store = disk.open();
        let parent = source(&store);
        let other = store.create_shard(ShardId(3), [0]).unwrap();
        split(&parent, call());
        let frozen = parent.freeze().unwrap();
        let built = store.build(vec![(parent.clone(), frozen)]).unwrap();
        store.drop_shard(SHARD).unwrap();
        assert!(!store.ingest(built).unwrap());
        assert_eq!(store.shards(), [ShardId(3)]);
        check_ranges(&[&other]);
    }
}

#[test]
fn a_slot_that_comes_back_waits_for_the_flush_of_its_split() {
    let store = Disk::all().into_iter().next().unwrap().open();
    let parent = source(&store);
    split(&parent, call());
    let (slot, epoch, from) = (slot(), EPOCH + 2, CHILD);
    let begin = MoveSlot::BeginImport { slot, epoch, from };
    apply(&parent, &[Command::MoveSlot(begin)]);
    let dir = tempfile::tempdir().unwrap();
    flush(&store, &parent);
    let child = store.shard(CHILD).unwrap();
    let freeze = MoveSlot::Freeze {
        slot,
        epoch,
        to: SHARD,
    };
    apply(&child, &[Command::MoveSlot(freeze)]);
    flush(&store, &child);
    let export = child.export_slot(slot).unwrap();
    let (meta, files) = export.write_files(dir.path(), &mut |_| {}).unwrap();
    let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
    parent.stage_slot(epoch, &meta, &files).unwrap();
    let commit = MoveSlot::CommitImport {
        slot,
        epoch,
        digest: meta.digest,
        time_ms: 0,
        last_message_id: MessageId::ZERO,
    };
    apply(&parent, &[Command::MoveSlot(commit)]);
    assert_eq!(parent.bodies(USER).last().unwrap(), "unflushed");
    // And goes again before anything of it is flushed, with the range that it came in.
    let again = SplitShard {
        to: ShardId(10),
        epoch: epoch + 1,
        slots: [slot].into(),
    };
    split(&parent, again);
    flush(&store, &parent);
    let second = store.shard(ShardId(10)).unwrap();
    assert_eq!(second.bodies(USER).last().unwrap(), "unflushed");
    assert_eq!(second.slots(), [slot]);
    apply(&child, &[Command::MoveSlot(MoveSlot::Drop { slot, epoch })]);
    flush(&store, &child);
    check_ranges(&[&parent, &child, &second]);
}

#[test]
fn each_rule_refuses() {
    let store = Disk::all().into_iter().next().unwrap().open();
    let parent = filled(&store);
    let freeze = MoveSlot::Freeze {
        slot: SlotId(7),
        epoch: 3,
        to: ShardId(4),
    };
    apply(&parent, &[Command::MoveSlot(freeze)]);
    let hash = parent.hash_now();
    let with = |to: u32, epoch, slots: &[u16]| SplitShard {
        to: ShardId(to),
        epoch,
        slots: slots.iter().copied().map(SlotId).collect(),
    };
    let wrong = |slot| Refusal::WrongShard { slot: SlotId(slot) };
    let exists = |shard| Refusal::ShardExists {
        shard: ShardId(shard),
    };
    let stands = |slot| {
        let (epoch, standing) = parent
            .applied()
            .slots
            .get(SlotId(slot))
            .unwrap_or((0, SlotStanding::Held));
        Refusal::SlotStands {
            slot: SlotId(slot),
            epoch,
            standing,
        }
    };
    let size = |taken, held| Refusal::SplitSize { taken, held };
    for (call, refusal) in [
        (with(9, 5, &[1, 8]), wrong(8)),
        (with(9, 5, &[1, 7]), stands(7)),
        (with(9, 0, &[1]), stands(1)),
        (with(SHARD.0, 5, &[1]), exists(SHARD.0)),
        (with(0, 5, &[1]), exists(0)),
        (with(4, 5, &[1]), exists(4)),
        (with(9, 5, &[]), size(0, 8)),
    ] {
        assert_eq!(split(&parent, call.clone()), Reply::Refused(refusal));
        assert_eq!(parent.hash_now(), hash, "{call:?}");
    }
    let unfreeze = MoveSlot::Unfreeze {
        slot: SlotId(7),
        epoch: 4,
    };
    apply(&parent, &[Command::MoveSlot(unfreeze)]);
    let all: Vec<u16> = (0..8).collect();
    assert_eq!(split(&parent, with(9, 5, &all)), Reply::Refused(size(8, 8)));
    assert_eq!(split(&parent, with(9, 4, &[7])), Reply::Refused(stands(7)));
    assert_eq!(split(&parent, with(9, 5, &all[1..])), DONE);
    let hash = parent.hash_now();
    assert_eq!(split(&parent, with(9, 5, &all[1..])), DONE);
    for (call, refusal) in [
        (with(9, 6, &[7]), stands(7)),
        (with(10, 5, &[7]), stands(7)),
        (with(9, 5, &[0]), exists(9)),
        (with(10, 5, &[0]), size(1, 1)),
    ] {
        assert_eq!(split(&parent, call), Reply::Refused(refusal));
    }
    assert_eq!(parent.hash_now(), hash);
    let meta = store.create_shard(ShardId::META, [0]).unwrap();
    let refused = split(&meta, with(9, 5, &[0]));
    assert_eq!(refused, Reply::Refused(wrong(0)));
}

#[test]
fn a_child_begins_where_its_parent_was() {
    // The entry behind the seed is the child's first.
    let store = Disk::all().into_iter().next().unwrap().open();
    let parent = source(&store);
    split(&parent, call());
    flush(&store, &parent);
    let child = store.shard(CHILD).unwrap();
    let next = |index| ApplyEntry {
        log_id: LogId {
            term: 2,
            node: 1,
            index,
        },
        ..entry(&child, 1000, &[Command::Cut])
    };
    let seed = index_of(&child.applied());
    assert!(child.apply(&[next(seed + 1)]).is_ok());
    let row = child.enter(|ctx| ctx.append(mailbox(USER), new_row("on")));
    assert!(row.is_ok());
    assert!(child.apply(&[next(seed + 1)]).is_err(), "not again");
}
