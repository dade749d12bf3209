//! Snapshots and their installation.

use std::path::PathBuf;

use super::{Disk, SHARD, index_of, mailbox, new_shard, options};
use crate::base::memory::IngestCrash;
use crate::error::Error;
use crate::id::{Seq, SlotId, UserId};
use crate::key::{DedupKey, Destination, StateKey, StoredKey};
use crate::options::EngineOptions;
use crate::shard::Shard;
use crate::snapshot::SnapshotMeta;
use crate::store::Store;

pub(super) fn filled(store: &Store) -> std::sync::Arc<Shard> {
    let shard = new_shard(store);
    for user in 0..30_u64 {
        shard.send(user, "first");
        shard.send(user % 3, "more");
        shard.enter(|ctx| ctx.put(&StateKey::User { user: UserId(user) }, "handle"));
        let id = uuid::Uuid::from_u128(u128::from(user * 2_000_000) << 80);
        let key = DedupKey {
            id,
            sender: UserId(user),
            destination: Destination::NEW_GROUP,
        };
        let slot = SlotId(u16::try_from(user % 8).unwrap());
        shard.enter(|ctx| ctx.put_dedup(slot, key, b"reply"));
    }
    shard.edit(1, 1, "edited");
    shard.flush();
    shard
}

pub(super) fn snapshot_of(shard: &Shard, dir: &std::path::Path) -> (SnapshotMeta, Vec<PathBuf>) {
    let snapshot = shard.snapshot().unwrap();
    let mut told = 0;
    let files = snapshot
        .write_files(dir, &mut |bytes| told += bytes)
        .unwrap();
    assert!(told > 0);
    for file in &files {
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes);
        assert_eq!(xxhash_rust::xxh3::xxh3_64(&bytes), file.checksum);
    }
    let meta = SnapshotMeta::decode(&snapshot.meta().encode()).unwrap();
    assert_eq!(&meta, snapshot.meta());
    (meta, files.into_iter().map(|file| file.path).collect())
}

#[test]
fn an_installed_snapshot_is_the_state_it_was_made_of() {
    for (from, to) in Disk::all().into_iter().zip(Disk::all().into_iter().rev()) {
        let files_dir = tempfile::tempdir().unwrap();
        let source = from.open();
        let source = filled(&source);
        let (meta, files) = snapshot_of(&source, files_dir.path());
        let hash = source.state_hash_now().unwrap();
        // The source goes on: the snapshot does not.
        source.send(1, "later");

        let store = to.open();
        let shard = new_shard(&store);
        shard.send(1, "of a former life");
        shard.flush();
        shard.send(2, "unflushed");
        for _ in 0..2 {
            shard.install_files(&meta, &files).unwrap();
            assert_eq!(shard.state_hash_now().unwrap(), hash);
            assert_eq!(shard.applied().last_install, meta.applied.log_id);
            assert_eq!(shard.flushed(), meta.applied.log_id);
            assert_eq!(shard.bodies(1)[0], "edited");
            assert_eq!(shard.head(mailbox(2)).unwrap(), Seq(11));
        }
        assert_eq!(shard.send(1, "next"), source.head(mailbox(1)).unwrap());
        drop((shard, store));
        let store = to.open();
        let shard = store.shard(SHARD).unwrap();
        assert_eq!(shard.state_hash_now().unwrap(), hash);
        assert_eq!(shard.applied().last_install, meta.applied.log_id);
    }
}

#[test]
fn ranges_are_never_reused_and_old_ones_are_gone() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let store = disk.open();
        let shard = filled(&store);
        let (meta, files) = snapshot_of(&shard, files_dir.path());
        let mut seen: Vec<u32> = Vec::new();
        for _ in 0..3 {
            shard.install_files(&meta, &files).unwrap();
            let ranges = shard.state.read().ranges.clone();
            let live: Vec<u32> = ranges.by_range().map(|(range, _)| range.0).collect();
            assert!(live.iter().all(|range| !seen.contains(range)));
            seen.extend(&live);
            for range in stored_ranges(&shard) {
                assert!(range == 0 || live.contains(&range), "{range} is dead");
            }
        }
    }
}

pub(super) fn stored_ranges(shard: &Shard) -> Vec<u32> {
    let view = shard.core.base.view();
    let mut cursor = view.cursor(&[], &[0xFF]);
    cursor.seek(&[]).unwrap();
    let mut ranges = Vec::new();
    while let Some((key, _)) = cursor.row() {
        let (StoredKey::State { range, .. } | StoredKey::Dedup { range, .. }) =
            StoredKey::split(key).unwrap();
        ranges.push(range.0);
        cursor.next().unwrap();
    }
    ranges.dedup();
    ranges
}

#[test]
fn a_crash_in_an_install_leaves_the_old_state_or_the_new() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let files_dir = tempfile::tempdir().unwrap();
        let source = Disk::all().into_iter().next().unwrap();
        let source = source.open();
        let source = filled(&source);
        let (meta, files) = snapshot_of(&source, files_dir.path());
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let old = {
            let store = disk.open();
            let shard = new_shard(&store);
            shard.send(1, "old");
            shard.flush();
            memory.crash_next_ingest(at);
            let old = shard.hash_now();
            assert!(shard.install_files(&meta, &files).is_err());
            assert!(matches!(shard.head(mailbox(1)), Err(Error::Stopped { .. })));
            old
        };
        memory.crash();
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        match at {
            IngestCrash::Before => assert_eq!(shard.hash_now(), old),
            IngestCrash::After => assert_eq!(shard.hash_now(), source.hash_now()),
        }
        // The ranges of the other state are dropped at open.
        let live = shard.state.read().ranges.clone();
        let mut stored = stored_ranges(&shard);
        stored.retain(|range| *range != 0 && live.slot_of(crate::id::RangeId(*range)).is_none());
        assert_eq!(stored, [0; 0]);
        shard.install_files(&meta, &files).unwrap();
        assert_eq!(shard.hash_now(), source.hash_now());
    }
}

#[test]
fn an_install_is_staged_beside_flushes_and_changes_nothing_until_it_is_made() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let store = disk.open();
        let shard = filled(&store);
        let (meta, files) = snapshot_of(&shard, files_dir.path());
        let wanted = shard.hash_now();
        shard.send(1, "goes");
        let frozen = shard.freeze().unwrap();
        let built = shard.build(&frozen).unwrap();
        shard.send(1, "goes too");
        let before = shard.hash_now();
        let staged = shard.stage_install(&meta, &files).unwrap();
        // Ranges that somebody else takes meanwhile are others.
        store.create_shard(crate::ShardId(9), [5]).unwrap();
        shard.ingest(built).unwrap();
        shard.flush();
        assert_eq!(shard.hash_now(), before);
        shard.install(staged).unwrap();
        assert_eq!(shard.hash_now(), wanted);
        shard.send(1, "new life");
        shard.flush();
        let hash = shard.hash_now();
        drop((shard, store));
        assert_eq!(disk.open().shard(SHARD).unwrap().hash_now(), hash);
    }
}

#[test]
fn what_is_staged_for_nothing_leaves_no_file() {
    let files_dir = tempfile::tempdir().unwrap();
    let disk = Disk::all().into_iter().next().unwrap();
    let Disk::Memory(memory) = &disk else {
        unreachable!("memory comes first")
    };
    let store = disk.open();
    let shard = filled(&store);
    let (meta, files) = snapshot_of(&shard, files_dir.path());
    drop(shard.stage_install(&meta, &files).unwrap());
    assert_eq!(memory.staged_files(), 0);
    // The replica is removed while its snapshot is staged.
    let staged = shard.stage_install(&meta, &files).unwrap();
    assert_ne!(memory.staged_files(), 0);
    store.drop_shard(SHARD).unwrap();
    assert!(shard.install(staged).is_err());
    assert_eq!(memory.staged_files(), 0);
}

#[test]
fn a_flush_from_before_an_install_is_void() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let store = disk.open();
        let shard = filled(&store);
        let (meta, files) = snapshot_of(&shard, files_dir.path());
        shard.send(1, "thrown away");
        let frozen = shard.freeze().unwrap();
        let built = shard.build(&frozen).unwrap();
        shard.install_files(&meta, &files).unwrap();
        let hash = shard.hash_now();
        assert_eq!(Some(shard.ingest(built).unwrap()), meta.applied.log_id);
        assert_eq!(shard.hash_now(), hash);
        assert_eq!(
            index_of(&shard.applied()),
            meta.applied.log_id.unwrap().index
        );
    }
}

#[test]
fn a_shared_flush_from_before_an_install_is_void_and_the_others_are_flushed_anew() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let store = disk.open();
        let shard = filled(&store);
        let other = store.create_shard(crate::ShardId(9), 0..=7).unwrap();
        let (meta, files) = snapshot_of(&shard, files_dir.path());
        shard.send(1, "thrown away");
        other.send(1, "stays");
        let both = [&shard, &other].map(|shard| (shard.clone(), shard.freeze().unwrap()));
        let built = store.build(both.into()).unwrap();
        shard.install_files(&meta, &files).unwrap();
        let hash = shard.hash_now();
        assert!(!store.ingest(built).unwrap());
        assert_eq!(
            (shard.hash_now(), shard.flushed()),
            (hash, meta.applied.log_id)
        );
        assert_eq!(other.flushed(), None);
        other.flush().unwrap();
        assert_eq!(other.bodies(1), ["stays"]);
        drop((shard, other, store));
        let store = disk.open();
        assert_eq!(store.shard(SHARD).unwrap().hash_now(), hash);
        let other = store.shard(crate::ShardId(9)).unwrap();
        assert_eq!(other.bodies(1), ["stays"]);
    }
}

#[test]
fn a_damaged_snapshot_changes_nothing() {
    let disk = Disk::all().into_iter().next().unwrap();
    let files_dir = tempfile::tempdir().unwrap();
    let store = disk.open();
    let shard = filled(&store);
    let (meta, files) = snapshot_of(&shard, files_dir.path());
    shard.send(1, "unflushed");
    let hash = shard.hash_now();
    let whole = std::fs::read(&files[0]).unwrap();
    let mut cut_short = whole.clone();
    cut_short.truncate(whole.len() - 5);
    let mut damaged = vec![cut_short];
    for place in (0..whole.len()).step_by(37) {
        let mut flipped = whole.clone();
        flipped[place] ^= 0x10;
        damaged.push(flipped);
    }
    for bytes in damaged {
        std::fs::write(&files[0], bytes).unwrap();
        assert!(shard.install_files(&meta, &files).is_err());
        assert_eq!(shard.hash_now(), hash);
    }
    assert!(shard.install_files(&meta, &[]).is_err());
    assert_eq!(shard.hash_now(), hash);
}

#[test]
fn a_snapshot_of_many_files_is_installed_in_many() {
    let files_dir = tempfile::tempdir().unwrap();
    let (from, to) = (Disk::all(), Disk::all());
    let source = from[0].open();
    let source = filled(&source);
    let (meta, files) = snapshot_of(&source, files_dir.path());
    let tiny = EngineOptions {
        install_file_bytes: 300,
        ..options()
    };
    let store = to[1].open_with(tiny).unwrap();
    let shard = new_shard(&store);
    shard.install_files(&meta, &files).unwrap();
    assert_eq!(shard.hash_now(), source.hash_now());
}
