//! Old hours of dedup rows leave by file, and nobody can tell.

use uuid::Uuid;

use super::{Disk, SHARD, new_shard, options};
use crate::base::rocks::KEYS_END;
use crate::cluster_options::ClusterOptions;
use crate::dedup::raise_floors;
use crate::id::{RangeId, SlotId, UserId};
use crate::key::{DedupKey, Destination, HOUR_MS, StoredKey};
use crate::known::KnownKeys;
use crate::options::EngineOptions;
use crate::range::Ranges;
use crate::shard::Shard;
use crate::snapshot::SnapshotMeta;
use crate::store::Store;

const FIRST_HOUR: u32 = 500_000;
const HOURS: u32 = 6;
const ROWS_PER_HOUR: u32 = 200;

/// The key of a row, and the slot that it is in.
fn row(number: u32) -> (SlotId, DedupKey) {
    let hour = FIRST_HOUR + number % HOURS;
    let id = u128::from(u64::from(hour) * HOUR_MS + 1) << 80 | u128::from(number);
    let key = DedupKey {
        id: Uuid::from_u128(id),
        sender: UserId(number.into()),
        destination: Destination::NEW_GROUP,
    };
    (SlotId(u16::try_from(number % 8).unwrap()), key)
}

/// A shard with rows in all hours, flushed.
fn filled(store: &Store) -> std::sync::Arc<Shard> {
    let shard = new_shard(store);
    shard.enter(|ctx| {
        ctx.set_cluster_options(ClusterOptions {
            dedup_window_ms: HOUR_MS,
            ..ClusterOptions::default()
        });
        for number in 0..HOURS * ROWS_PER_HOUR {
            let (slot, key) = row(number);
            ctx.put_dedup(slot, key, b"a reply of some length");
        }
    });
    shard.flush();
    shard
}

/// Time goes on to `hour`, and the floors to the hour before it.
fn go_on_to(shard: &Shard, hour: u32) {
    shard.enter(|ctx| {
        ctx.advance_time(u64::from(hour) * HOUR_MS);
        raise_floors(ctx).unwrap();
    });
}

/// Rows of each hour that are in the files, visible or not.
fn rows_by_hour(shard: &Shard) -> Vec<u32> {
    let view = shard.core.base.view();
    let first = StoredKey::dedup_front(0, RangeId::NODE);
    let mut cursor = view.cursor(&first, &KEYS_END);
    cursor.seek(&first).unwrap();
    let mut rows = vec![0; usize::try_from(HOURS).unwrap()];
    while let Some((key, _)) = cursor.row() {
        if let StoredKey::Dedup { hour, .. } = StoredKey::split(key).unwrap() {
            rows[usize::try_from(hour - FIRST_HOUR).unwrap()] += 1;
        }
        cursor.next().unwrap();
    }
    rows
}

/// On RocksDB, in files so small that some hold rows of one hour only: an install makes such.
fn in_small_files(disk: &Disk) -> Store {
    let small = EngineOptions {
        install_file_bytes: 1000,
        ..options()
    };
    disk.open_with(small).unwrap()
}

#[test]
fn ids_of_all_later_hours_are_known_and_those_of_others_passed_over() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = filled(&store);
        let state = shard.state.read();
        let mut own = Ranges::default();
        for (slot, range) in state.ranges.by_slot().filter(|(slot, _)| slot.0 % 2 == 0) {
            own.insert(slot, range);
        }
        let time_ms = u64::from(FIRST_HOUR) * HOUR_MS + 1;
        let known = KnownKeys::read(state.files.as_ref(), &own, time_ms).unwrap();
        for number in 0..HOURS * ROWS_PER_HOUR {
            let (slot, key) = row(number);
            let range = state.ranges.of_slot(slot).unwrap();
            let wanted = key.time_ms() <= time_ms || slot.0 % 2 == 0;
            assert_eq!(known.may_hold(range, &key), wanted, "{number}");
        }
    }
}

#[test]
fn files_of_hidden_hours_go_when_no_view_shows_them() {
    let memory = Disk::all().into_iter().next().unwrap();
    let source_store = memory.open();
    let source = filled(&source_store);
    let dir = tempfile::tempdir().unwrap();
    let snapshot = source.snapshot().unwrap();
    let written = snapshot.write_files(dir.path(), &mut |_| {}).unwrap();
    let paths: Vec<_> = written.iter().map(|file| file.path.clone()).collect();
    let meta = SnapshotMeta::decode(&snapshot.meta().encode()).unwrap();
    go_on_to(&source, FIRST_HOUR + 4);
    let hash = source.hash_now();

    for disk in Disk::all() {
        let store = in_small_files(&disk);
        let shard = new_shard(&store);
        shard.install_files(&meta, &paths).unwrap();
        store.drop_hidden_hours().unwrap();
        let all = vec![ROWS_PER_HOUR; 6];
        assert_eq!(rows_by_hour(&shard), all);

        // The floors are in the memtable only: a crash would show the old hours again.
        let early = shard.snapshot().unwrap();
        go_on_to(&shard, FIRST_HOUR + 4);
        store.drop_hidden_hours().unwrap();
        assert_eq!(rows_by_hour(&shard), all);

        // The flush has them, but somebody still reads an older one.
        shard.flush();
        assert_eq!(shard.hash_now(), hash);
        store.drop_hidden_hours().unwrap();
        assert_eq!(rows_by_hour(&shard), all);
        let again = tempfile::tempdir().unwrap();
        let files = early.write_files(again.path(), &mut |_| {}).unwrap();
        assert_eq!(files[0].checksum, written[0].checksum);
        drop(early);

        let bytes = shard.metrics().file_bytes;
        store.drop_hidden_hours().unwrap();
        let left = rows_by_hour(&shard);
        let hidden: u32 = left[..3].iter().sum();
        // What shares a file with a visible hour may stay.
        assert!(hidden < ROWS_PER_HOUR / 4, "{left:?}");
        assert_eq!(left[3..], all[3..]);
        assert!(shard.metrics().file_bytes < bytes);
        assert_eq!(shard.hash_now(), hash);
        assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
        drop((shard, store));
        let shard = in_small_files(&disk).shard(SHARD).unwrap();
        assert_eq!(rows_by_hour(&shard), left);
        assert_eq!(shard.hash_now(), hash);
    }
}

#[test]
fn the_shard_with_the_lowest_floor_keeps_the_hours_of_the_node() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = store.create_shard(SHARD, 0..=3).unwrap();
        let idle = store.create_shard(crate::id::ShardId(2), 4..=7).unwrap();
        for (shard, hour) in [(&shard, 9), (&idle, 3)] {
            shard.enter(|ctx| ctx.set_cluster_options(ClusterOptions::default()));
            go_on_to(shard, FIRST_HOUR + hour);
            shard.flush();
        }
        let window = u32::try_from(ClusterOptions::default().dedup_window_ms / HOUR_MS).unwrap();
        let end = |shard: &Shard| shard.state.read().hidden_hours.end();
        assert_eq!(end(&shard), FIRST_HOUR + 9 - window);
        assert_eq!(end(&idle), FIRST_HOUR + 3 - window);
        store.drop_hidden_hours().unwrap();
        let dropped = &shard.core.hours_dropped;
        let dropped = dropped.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(dropped, end(&idle));
    }
}
