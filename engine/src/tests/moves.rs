//! A slot's way from one shard to another, step by step.

mod staging;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use super::installs::{filled, snapshot_of, stored_ranges};
use super::{Disk, SHARD, index_of, mailbox, new_row};
use crate::applied::LogId;
use crate::base::memory::IngestCrash;
use crate::cluster_options::ClusterOptions;
use crate::command::{Command, MoveSlot, Refusal, Reply, Send};
use crate::dedup::raise_floors;
use crate::entry::EntryBuilder;
use crate::error::Error;
use crate::export::{ExportMeta, SlotExport};
use crate::id::{MessageId, Seq, ShardId, SlotId, UserId, slot_of_owner};
use crate::key::{DedupKey, Destination, HOUR_MS};
use crate::row::{Flags, MessageType, content_crc};
use crate::shard::{Applied, ApplyEntry, ApplyPayload, Shard};
use crate::slot_move::{ImportWait, SlotStanding};
use crate::snapshot::SnapshotMeta;
use crate::store::Store;

const OTHER: ShardId = ShardId(9);
const EPOCH: u64 = 5;
/// Of the slot that moves.
const USER: u64 = 1;

fn slot() -> SlotId {
    slot_of_owner(USER, 8)
}

fn key(time_ms: u64) -> DedupKey {
    DedupKey {
        id: Uuid::from_u128(u128::from(time_ms) << 80 | 7),
        sender: UserId(USER),
        destination: Destination::NEW_GROUP,
    }
}

pub(super) fn entry(shard: &Shard, time_ms: u64, commands: &[Command]) -> ApplyEntry {
    let mut entry = EntryBuilder::new(time_ms);
    commands.iter().for_each(|command| entry.push(command));
    ApplyEntry {
        log_id: LogId {
            term: 1,
            node: 1,
            index: index_of(&shard.applied()) + 1,
        },
        payload: ApplyPayload::Commands(entry.finish()),
    }
}

pub(super) fn apply(shard: &Shard, commands: &[Command]) -> Applied {
    let time_ms = shard.applied().time_ms;
    shard.apply(&[entry(shard, time_ms, commands)]).unwrap()
}

fn step(shard: &Shard, call: MoveSlot) -> Reply {
    let applied = apply(shard, &[Command::MoveSlot(call)]);
    assert_eq!(applied.waits, None);
    applied.replies.into_iter().flatten().next().unwrap()
}

fn stands(shard: &Shard, call: MoveSlot) -> SlotStanding {
    match step(shard, call) {
        Reply::SlotMoved { standing, .. } => standing,
        other => panic!("{other:?}"),
    }
}

fn begin() -> MoveSlot {
    MoveSlot::BeginImport {
        slot: slot(),
        epoch: EPOCH,
        from: SHARD,
    }
}

fn freeze() -> MoveSlot {
    MoveSlot::Freeze {
        slot: slot(),
        epoch: EPOCH,
        to: OTHER,
    }
}

fn commit(digest: u128) -> MoveSlot {
    MoveSlot::CommitImport {
        slot: slot(),
        epoch: EPOCH,
        digest,
        time_ms: 1000,
        last_message_id: MessageId(77),
    }
}

fn abort() -> MoveSlot {
    MoveSlot::AbortImport {
        slot: slot(),
        epoch: EPOCH,
        from: SHARD,
    }
}

fn drop_it() -> MoveSlot {
    MoveSlot::Drop {
        slot: slot(),
        epoch: EPOCH,
    }
}

struct Files {
    _dir: TempDir,
    meta: ExportMeta,
    paths: Vec<PathBuf>,
}

fn files(export: &SlotExport, since: Option<&SlotExport>) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (meta, written) = match since {
        None => export.write_files(dir.path(), &mut |_| {}),
        Some(since) => export.write_changes(since, dir.path(), &mut |_| {}),
    }
    .unwrap();
    assert_eq!(ExportMeta::decode(&meta.encode()), Ok(meta));
    Files {
        _dir: dir,
        meta,
        paths: written.into_iter().map(|file| file.path).collect(),
    }
}

fn exported(shard: &Shard) -> SlotExport {
    while shard.flush().is_some() {}
    shard.export_slot(slot()).unwrap()
}

fn stage(shard: &Shard, files: &Files) -> Result<(), Error> {
    shard.stage_slot(EPOCH, &files.meta, &files.paths)
}

/// A shard that has begun to import the slot.
fn importing(store: &Store) -> Arc<Shard> {
    let shard = store.create_shard(OTHER, []).unwrap();
    stands(&shard, begin());
    shard
}

/// The slot goes over, everything before its drop.
fn moved(source: &Shard, destination: &Shard) -> Files {
    let copy = exported(source);
    stage(destination, &files(&copy, None)).unwrap();
    stands(source, freeze());
    let last = exported(source);
    assert_eq!(last.frozen(), Some(EPOCH));
    let changes = files(&last, Some(&copy));
    stage(destination, &changes).unwrap();
    let whole = files(&last, None);
    assert_eq!(changes.meta.digest, whole.meta.digest);
    let standing = stands(destination, commit(whole.meta.digest));
    assert_eq!(standing, SlotStanding::Held);
    whole
}

#[test]
fn a_moved_slot_is_what_it_was() {
    for (from, to) in Disk::all().into_iter().zip(Disk::all().into_iter().rev()) {
        let (from_store, to_store) = (from.open(), to.open());
        let source = filled(&from_store);
        source.enter(|ctx| {
            ctx.put_dedup(slot(), key(500), b"in a file");
            ctx.set_last_message_id(MessageId(40));
            ctx.advance_time(900);
        });
        let (bodies, head) = (source.bodies(USER), source.head(mailbox(USER)).unwrap());
        let shard = importing(&to_store);
        moved(&source, &shard);
        let check = |shard: &Shard| {
            assert_eq!(shard.slots(), [slot()]);
            assert_eq!(shard.bodies(USER), bodies);
            assert_eq!(shard.head(mailbox(USER)).unwrap(), head);
            assert_eq!(shard.applied().last_message_id, MessageId(77));
            assert_eq!(shard.applied().time_ms, 1000);
            let first = shard.enter(|ctx| ctx.dedup(slot(), &key(500)).unwrap());
            assert_eq!(first.as_deref(), Some(b"in a file".as_slice()));
            assert_eq!(shard.staged_imports(), []);
        };
        check(&shard);
        let (before, hash) = (source.hash_now(), shard.hash_now());
        stands(&source, drop_it());
        assert_ne!(source.hash_now(), before);
        while source.flush().is_some() {}
        assert!(source.export_slot(slot()).is_err());
        let ranges = source.state.read().ranges.clone();
        let live: Vec<u32> = ranges.by_range().map(|(range, _)| range.0).collect();
        let stored = stored_ranges(&source);
        assert!(
            stored
                .iter()
                .all(|range| *range == 0 || live.contains(range))
        );
        let refused = source.head(mailbox(USER));
        assert!(matches!(
            refused,
            Err(Error::WrongOwner {
                shard: OTHER,
                epoch: EPOCH,
                ..
            })
        ));
        shard.flush();
        drop((shard, to_store));
        let to_store = to.open();
        let shard = to_store.shard(OTHER).unwrap();
        assert_eq!(shard.hash_now(), hash);
        check(&shard);
        assert_eq!(shard.send(USER, "next"), head.next());
    }
}

#[test]
fn a_crash_before_the_flush_of_a_commit_finds_the_staged_rows_again() {
    for disk in Disk::all() {
        let from = Disk::all().into_iter().next().unwrap();
        let from_store = from.open();
        let source = filled(&from_store);
        let store = disk.open();
        let shard = store.create_shard(OTHER, []).unwrap();
        // Not even the begin is flushed.
        let first = entry(&shard, 0, &[Command::MoveSlot(begin())]);
        shard.apply(std::slice::from_ref(&first)).unwrap();
        let whole = moved(&source, &shard);
        let (hash, staged) = (shard.hash_now(), whole.meta.digest);
        let second = entry(&shard, 0, &[Command::MoveSlot(commit(staged))]);
        let log = [
            first,
            ApplyEntry {
                log_id: LogId {
                    index: 2,
                    ..second.log_id
                },
                ..second
            },
        ];
        drop((shard, store));
        let store = disk.open();
        let shard = store.shard(OTHER).unwrap();
        assert_eq!(index_of(&shard.applied()), 0);
        assert_eq!(shard.staged_imports()[0].digest, staged);
        let applied = shard.apply(&log).unwrap();
        assert_eq!((applied.replies.len(), applied.waits), (2, None));
        assert_eq!(shard.hash_now(), hash);
        assert_eq!(shard.bodies(USER), filled_bodies());
        shard.flush();
        drop((shard, store));
        let store = disk.open();
        let shard = store.shard(OTHER).unwrap();
        assert_eq!(shard.hash_now(), hash);
        assert_eq!(shard.bodies(USER), filled_bodies());
    }
}

fn filled_bodies() -> Vec<String> {
    let store = Disk::all().into_iter().next().unwrap().open();
    filled(&store).bodies(USER)
}

#[test]
fn a_commit_without_its_rows_waits_and_changes_nothing() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        let shard = importing(&store);
        stands(&source, freeze());
        let whole = files(&exported(&source), None);
        let digest = whole.meta.digest;
        let before = (shard.applied(), shard.hash_now());
        let entry = entry(
            &shard,
            0,
            &[Command::Cut, Command::MoveSlot(commit(digest))],
        );
        let next = ApplyEntry {
            log_id: LogId {
                index: entry.log_id.index + 1,
                ..entry.log_id
            },
            payload: ApplyPayload::Blank,
        };
        let rows = ImportWait::Rows {
            slot: slot(),
            epoch: EPOCH,
            digest,
        };
        let batch = [entry.clone(), next];
        let waits = || {
            let applied = shard.apply(&batch).unwrap();
            assert_eq!((applied.replies.len(), applied.waits), (0, Some(rows)));
            assert_eq!((shard.applied(), shard.hash_now()), before);
        };
        waits();
        // Other rows than those that the commit names are as good as none.
        let other = files(
            &{
                let (store, files_of) = (Disk::all().into_iter().next().unwrap().open(), filled);
                let other = files_of(&store);
                other.send(USER, "another history");
                exported(&other)
            },
            None,
        );
        stage(&shard, &other).unwrap();
        waits();
        stage(&shard, &whole).unwrap();
        let applied = shard.apply(&batch).unwrap();
        assert_eq!((applied.replies.len(), applied.waits), (2, None));
        assert_eq!(shard.bodies(USER), filled_bodies());
    }
}

#[test]
fn a_slot_that_comes_back_waits_for_the_flush_of_its_drop() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        let other = importing(&store);
        source.send(USER, "flushed with the freeze");
        moved(&source, &other);
        other.send(USER, "there");
        stands(&source, drop_it());
        // Back again, under a later epoch, while the source has flushed nothing of the drop.
        let (slot, epoch) = (slot(), EPOCH + 2);
        stands(
            &source,
            MoveSlot::BeginImport {
                slot,
                epoch,
                from: OTHER,
            },
        );
        stands(
            &other,
            MoveSlot::Freeze {
                slot,
                epoch,
                to: SHARD,
            },
        );
        let back = files(&exported(&other), None);
        let stage = || source.stage_slot(epoch, &back.meta, &back.paths);
        assert!(matches!(stage(), Err(Error::DropNotFlushed { .. })));
        let call = MoveSlot::CommitImport {
            slot,
            epoch,
            digest: back.meta.digest,
            time_ms: 0,
            last_message_id: MessageId::ZERO,
        };
        let applied = apply(&source, &[Command::MoveSlot(call)]);
        assert_eq!(applied.waits, Some(ImportWait::Flush { slot }));
        while source.flush().is_some() {}
        let applied = apply(&source, &[Command::MoveSlot(call)]);
        assert!(matches!(applied.waits, Some(ImportWait::Rows { .. })));
        stage().unwrap();
        assert_eq!(stands(&source, call), SlotStanding::Held);
        let bodies = source.bodies(USER);
        assert_eq!(bodies, other_bodies(&back, &disk));
        assert_eq!(bodies.last().unwrap(), "there");
        source.send(USER, "home");
        let hash = source.hash_now();
        while source.flush().is_some() {}
        assert_eq!(source.hash_now(), hash);
        drop((source, other, store));
        let store = disk.open();
        assert_eq!(store.shard(SHARD).unwrap().hash_now(), hash);
    }
}

/// What an export's rows are, by staging them somewhere else.
fn other_bodies(back: &Files, _: &Disk) -> Vec<String> {
    let store = Disk::all().into_iter().next().unwrap().open();
    let shard = store.create_shard(ShardId(3), []).unwrap();
    let (slot, epoch, from) = (slot(), 100, back.meta.from);
    stands(&shard, MoveSlot::BeginImport { slot, epoch, from });
    shard.stage_slot(epoch, &back.meta, &back.paths).unwrap();
    let call = MoveSlot::CommitImport {
        slot,
        epoch,
        digest: back.meta.digest,
        time_ms: 0,
        last_message_id: MessageId::ZERO,
    };
    stands(&shard, call);
    shard.bodies(USER)
}

#[test]
fn a_crash_in_the_flush_of_a_drop_leaves_the_slot_frozen_or_gone() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let range = {
            let store = disk.open();
            let source = filled(&store);
            stands(&source, freeze());
            while source.flush().is_some() {}
            let range = source.state.read().ranges.of_slot(slot()).unwrap();
            stands(&source, drop_it());
            // Dead in memory, but in the files it is what a replay begins with.
            assert!(stored_ranges(&source).contains(&range.0));
            let frozen = source.freeze().unwrap();
            let built = source.build(&frozen).unwrap();
            memory.crash_next_ingest(at);
            assert!(source.ingest(built).is_err());
            range.0
        };
        memory.crash();
        let store = disk.open();
        let source = store.shard(SHARD).unwrap();
        match at {
            IngestCrash::Before => {
                assert_eq!(source.export_slot(slot()).unwrap().frozen(), Some(EPOCH));
                stands(&source, drop_it());
                while source.flush().is_some() {}
            }
            IngestCrash::After => {
                assert!(matches!(
                    source.head(mailbox(USER)),
                    Err(Error::WrongOwner { .. })
                ));
            }
        }
        assert!(!stored_ranges(&source).contains(&range));
        assert!(!source.slots().contains(&slot()));
    }
}

fn send(number: u64) -> Command {
    let (client_msg_id, kind) = (key(number).id, MessageType::TEXT);
    Command::Send(Send {
        sender: UserId(USER),
        recipient: UserId(USER),
        client_msg_id,
        message_id: MessageId(1 << 60),
        kind,
        flags: Flags::default(),
        content_crc: content_crc(client_msg_id, kind, b""),
        body: bytes::Bytes::new(),
        shown: MessageId::ZERO,
    })
}

#[test]
fn a_frozen_slot_serves_nothing_and_changes_nothing() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        source.enter(|ctx| {
            ctx.set_cluster_options(ClusterOptions {
                dedup_window_ms: HOUR_MS,
                ..ClusterOptions::default()
            });
            ctx.put_dedup(slot(), key(HOUR_MS + 1), b"early");
            raise_floors(ctx).unwrap();
        });
        source.send(USER, "last");
        let bodies = source.bodies(USER);
        stands(&source, freeze());
        let digest = files(&exported(&source), None).meta.digest;
        let wrong = Refusal::WrongOwner {
            slot: slot(),
            shard: OTHER,
            epoch: EPOCH,
        };
        // Time goes on, and the floors of the others.
        let later = entry(&source, 50 * HOUR_MS, &[send(50 * HOUR_MS)]);
        let applied = source.apply(&[later]).unwrap();
        assert_eq!(applied.replies, [[Reply::Refused(wrong)]]);
        let reads = [
            source.head(mailbox(USER)).is_err(),
            source.scan(mailbox(USER), Seq(1), 9, 9).is_err(),
            source.trim_point(mailbox(USER)).is_err(),
            source.handle_of(UserId(USER)).is_err(),
            source.groups_of(UserId(USER)).is_err(),
        ];
        assert_eq!(reads, [true; 5]);
        assert!(!source.serves(slot()) && !source.slots().contains(&slot()));
        let floors = source.state.read().floors.lowest();
        assert_eq!(floors, Some(0), "its hours are still to be shown");
        store.drop_hidden_hours().unwrap();
        assert_eq!(files(&exported(&source), None).meta.digest, digest);
        // Served again, its floor is where the others' are.
        let epoch = EPOCH + 1;
        stands(
            &source,
            MoveSlot::Unfreeze {
                slot: slot(),
                epoch,
            },
        );
        assert_eq!(source.bodies(USER), bodies);
        assert_eq!(source.state.read().floors.lowest(), Some(49 * HOUR_MS));
        let first = source.enter(|ctx| ctx.append(mailbox(USER), new_row("on")));
        assert_eq!(first.unwrap().0, u64::try_from(bodies.len()).unwrap() + 1);
    }
}

#[test]
fn a_snapshot_brings_the_slots_that_its_shard_has() {
    for disk in Disk::all() {
        let (dir, store) = (tempfile::tempdir().unwrap(), disk.open());
        let source = filled(&store);
        let shard = importing(&store);
        shard.flush();
        let during = tempfile::tempdir().unwrap();
        // It has no row, but a table.
        let snapshot = shard.snapshot().unwrap();
        let written = snapshot.write_files(during.path(), &mut |_| {}).unwrap();
        let begun = SnapshotMeta::decode(&snapshot.meta().encode()).unwrap();
        let begun_files: Vec<PathBuf> = written.into_iter().map(|file| file.path).collect();
        let whole = moved(&source, &shard);
        stands(&source, drop_it());
        for shard in [&source, &shard] {
            while shard.flush().is_some() {}
        }
        // New replicas of both, with the slots that their shards began with.
        let other = Disk::all().into_iter().nth(1).unwrap();
        let new_store = other.open();
        let new_source = new_store.create_shard(SHARD, 0..=7).unwrap();
        new_source.send(USER, "nobody's");
        let new_shard = new_store.create_shard(OTHER, []).unwrap();
        // From a snapshot in the middle of the import: what is staged stays, and what is over goes.
        new_shard.install_files(&begun, &begun_files).unwrap();
        stage(&new_shard, &whole).unwrap();
        new_shard.install_files(&begun, &begun_files).unwrap();
        assert_eq!(new_shard.staged_imports().len(), 1);
        let (meta, files) = snapshot_of(&shard, dir.path());
        new_shard.install_files(&meta, &files).unwrap();
        assert_eq!(new_shard.staged_imports(), []);
        assert_eq!(new_shard.hash_now(), shard.hash_now());
        assert_eq!(new_shard.slots(), [slot()]);
        let (meta, files) = snapshot_of(&source, dir.path());
        new_source.install_files(&meta, &files).unwrap();
        assert_eq!(new_source.hash_now(), source.hash_now());
        assert_eq!(new_source.slots(), source.slots());
        let live: Vec<u32> = [&new_source, &new_shard]
            .iter()
            .flat_map(|shard| {
                let ranges = shard.state.read().ranges.clone();
                let live: Vec<u32> = ranges.by_range().map(|(range, _)| range.0).collect();
                live
            })
            .collect();
        let stored = stored_ranges(&new_source);
        assert!(
            stored
                .iter()
                .all(|range| *range == 0 || live.contains(range))
        );
        drop((new_source, new_shard, new_store));
        let new_store = other.open();
        let again = new_store.shard(SHARD).unwrap();
        assert_eq!(again.hash_now(), source.hash_now());
    }
}

#[test]
fn a_snapshot_from_before_a_move_is_refused() {
    let (dir, disk) = (
        tempfile::tempdir().unwrap(),
        Disk::all().into_iter().next().unwrap(),
    );
    let store = disk.open();
    let source = filled(&store);
    let (meta, files) = snapshot_of(&source, dir.path());
    stands(&source, freeze());
    let hash = source.hash_now();
    let refused = source.install_files(&meta, &files);
    assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    assert_eq!(source.hash_now(), hash);
    stands(&source, drop_it());
}

#[test]
fn an_install_over_an_unflushed_drop_leaves_no_range_behind() {
    for disk in Disk::all() {
        let (dir, store) = (tempfile::tempdir().unwrap(), disk.open());
        let source = filled(&store);
        stands(&source, freeze());
        while source.flush().is_some() {}
        let (meta, files) = snapshot_of(&source, dir.path());
        let hash = source.hash_now();
        stands(&source, drop_it());
        source.install_files(&meta, &files).unwrap();
        assert_eq!(source.hash_now(), hash);
        let ranges = source.state.read().ranges.clone();
        let live: Vec<u32> = ranges.by_range().map(|(range, _)| range.0).collect();
        let stored = stored_ranges(&source);
        assert!(
            stored
                .iter()
                .all(|range| *range == 0 || live.contains(range))
        );
        drop((source, store));
        let store = disk.open();
        let source = store.shard(SHARD).unwrap();
        assert_eq!(source.hash_now(), hash);
        assert_eq!(source.state.read().ranges, ranges);
    }
}

#[test]
fn an_early_id_is_known_after_the_move() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        let shard = importing(&store);
        // Later than the time that the commit carries, as of a phone whose clock is fast.
        let early = key(50 * HOUR_MS);
        source.enter(|ctx| ctx.put_dedup(slot(), early, b"early"));
        moved(&source, &shard);
        let found = || shard.enter(|ctx| ctx.dedup(slot(), &early).unwrap());
        assert_eq!(found().as_deref(), Some(b"early".as_slice()));
        while shard.flush().is_some() {}
        assert_eq!(found().as_deref(), Some(b"early".as_slice()));
    }
}

#[test]
fn the_meta_shard_has_no_part_in_it() {
    let store = Disk::all().into_iter().next().unwrap().open();
    let meta = store.create_shard(ShardId::META, [0]).unwrap();
    for call in [begin(), freeze(), abort(), drop_it(), commit(1)] {
        let slot = SlotId::META;
        assert_eq!(
            step(&meta, call),
            Reply::Refused(Refusal::WrongShard { slot })
        );
    }
}
