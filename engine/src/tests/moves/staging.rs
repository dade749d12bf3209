//! Rows of a slot that are staged, changed, found again and given up.

use super::{
    EPOCH, OTHER, USER, commit, drop_it, exported, files, freeze, importing, key, slot, stage,
    stands,
};
use crate::base::memory::IngestCrash;
use crate::cluster_options::ClusterOptions;
use crate::command::MoveSlot;
use crate::dedup::raise_floors;
use crate::error::Error;
use crate::export::ExportMeta;
use crate::id::{Seq, ShardId, UserId};
use crate::key::{HOUR_MS, StateKey};
use crate::tests::installs::{filled, stored_ranges};
use crate::tests::{Disk, SHARD, mailbox};
use crate::walk::Place;

#[test]
fn staged_rows_go_when_their_import_is_over() {
    for disk in Disk::all() {
        for by_open in [false, true] {
            let store = disk.open();
            let name = SHARD;
            let source = match store.shard(name) {
                Some(source) => source,
                None => filled(&store),
            };
            let epoch = if by_open { EPOCH + 2 } else { EPOCH };
            let shard = match store.shard(OTHER) {
                Some(shard) => shard,
                None => store.create_shard(OTHER, []).unwrap(),
            };
            let from = SHARD;
            stands(
                &shard,
                MoveSlot::BeginImport {
                    slot: slot(),
                    epoch,
                    from,
                },
            );
            let copy = files(&exported(&source), None);
            shard.stage_slot(epoch, &copy.meta, &copy.paths).unwrap();
            let range = shard.staged(slot(), epoch).unwrap().range.0;
            assert_eq!(shard.drop_stale_imports().unwrap(), 0);
            assert!(stored_ranges(&shard).contains(&range));
            stands(
                &shard,
                MoveSlot::AbortImport {
                    slot: slot(),
                    epoch,
                    from,
                },
            );
            let refused = shard.stage_slot(epoch, &copy.meta, &copy.paths);
            assert!(matches!(refused, Err(Error::NotImporting { .. })));
            if by_open {
                shard.flush();
                drop((source, shard, store));
                let store = disk.open();
                let shard = store.shard(OTHER).unwrap();
                assert_eq!(shard.staged_imports(), []);
                assert!(!stored_ranges(&shard).contains(&range));
            } else {
                assert_eq!(shard.drop_stale_imports().unwrap(), 1);
                assert!(!stored_ranges(&shard).contains(&range));
                shard.flush();
                source.flush();
            }
        }
    }
}

#[test]
fn two_calls_that_stage_one_slot_leave_one_copy() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        let shard = importing(&store);
        let whole = files(&exported(&source), None);
        let ranges = || std::collections::BTreeSet::from_iter(stored_ranges(&shard));
        let before = ranges().len();
        // As if both had begun before either was done.
        stage(&shard, &whole).unwrap();
        let late = shard.stage_rows(EPOCH, &whole.meta, &whole.paths, None);
        assert!(matches!(late, Err(Error::StagingBusy { .. })), "{late:?}");
        assert_eq!(shard.staged_imports().len(), 1);
        assert_eq!(ranges().len(), before + 1);
        stands(&shard, commit(whole.meta.digest));
        assert_eq!(shard.bodies(USER), source.bodies(USER));
    }
}

#[test]
fn a_crash_in_staging_leaves_the_former_copy_or_the_new() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let from = Disk::all().into_iter().nth(1).unwrap();
        let from_store = from.open();
        let source = filled(&from_store);
        let first = exported(&source);
        source.send(USER, "more");
        source.edit(USER, 1, "edited since");
        let second = exported(&source);
        let parts = [files(&first, None), files(&second, Some(&first))];
        let mut staged = None;
        let flushed = importing(&disk.open());
        flushed.flush();
        drop(flushed);
        for part in &parts {
            let store = disk.open();
            let shard = store.shard(OTHER).unwrap();
            memory.crash_next_ingest(at);
            assert!(stage(&shard, part).is_err());
            drop((shard, store));
            memory.crash();
            let store = disk.open();
            let shard = store.shard(OTHER).unwrap();
            if at == IngestCrash::After {
                staged = Some(part.meta.digest);
            }
            let found = shard.staged_imports().first().map(|found| found.digest);
            assert_eq!(found, staged);
            stage(&shard, part).unwrap();
            staged = Some(part.meta.digest);
        }
        let store = disk.open();
        let shard = store.shard(OTHER).unwrap();
        let again = shard.export_staged(slot(), EPOCH).unwrap();
        assert_eq!(files(&again, None).meta.digest, parts[1].meta.digest);
        stands(&shard, commit(parts[1].meta.digest));
        assert_eq!(shard.bodies(USER), source.bodies(USER));
    }
}

#[test]
fn hours_that_a_staged_slot_shows_are_not_dropped() {
    for disk in Disk::all() {
        let from = Disk::all().into_iter().next().unwrap();
        let from_store = from.open();
        let source = filled(&from_store);
        source.enter(|ctx| {
            for hour in 1..40 {
                ctx.put_dedup(slot(), key(hour * HOUR_MS), b"reply");
            }
        });
        stands(&source, freeze());
        let whole = files(&exported(&source), None);
        let store = disk.open();
        let shard = importing(&store);
        stage(&shard, &whole).unwrap();
        shard.enter(|ctx| {
            ctx.set_cluster_options(ClusterOptions {
                dedup_window_ms: HOUR_MS,
                ..ClusterOptions::default()
            });
        });
        // This shard is far ahead, and has flushed its floors: but it has none of its own slots.
        let own = store.create_shard(ShardId(4), [0, 1]).unwrap();
        own.enter(|ctx| {
            ctx.set_cluster_options(ClusterOptions {
                dedup_window_ms: HOUR_MS,
                ..ClusterOptions::default()
            });
            ctx.advance_time(100 * HOUR_MS);
            raise_floors(ctx).unwrap();
        });
        own.flush();
        shard.enter(|ctx| {
            ctx.advance_time(100 * HOUR_MS);
            raise_floors(ctx).unwrap();
        });
        shard.flush();
        let staged = || files(&shard.export_staged(slot(), EPOCH).unwrap(), None);
        store.drop_hidden_hours().unwrap();
        assert_eq!(staged().meta.digest, whole.meta.digest);
        stands(&shard, commit(whole.meta.digest));
        store.drop_hidden_hours().unwrap();
        // Its floor rose with the commit; what is below it is absent, and may go.
        let row = |hour: u64| shard.enter(|ctx| ctx.dedup(slot(), &key(hour * HOUR_MS)).unwrap());
        assert_eq!(row(39).as_deref(), Some(b"reply".as_slice()));
        while shard.flush().is_some() {}
        let hash = shard.hash_now();
        store.drop_hidden_hours().unwrap();
        assert_eq!(shard.hash_now(), hash);
        if matches!(disk, Disk::Memory(_)) {
            let range = shard.state.read().ranges.of_slot(slot()).unwrap();
            let (mut stored, id) = (Vec::new(), key(39 * HOUR_MS));
            Place::Dedup(39, &id.encode()).stored(range, &mut stored);
            assert_eq!(shard.core.base.view().get(&stored).unwrap(), None);
        }
    }
}

#[test]
fn changes_are_whatever_differs() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        source.enter(|ctx| {
            ctx.put_dedup(slot(), key(10), b"below the floor to come");
            ctx.put_dedup(slot(), key(3 * HOUR_MS), b"stays");
        });
        let first = exported(&source);
        let shard = importing(&store);
        stage(&shard, &files(&first, None)).unwrap();
        source.send(USER, "appended");
        source.edit(USER, 2, "edited");
        source.enter(|ctx| {
            let user = UserId(USER);
            ctx.delete(&StateKey::User { user });
            let timeline = mailbox(USER);
            ctx.put(
                &StateKey::TrimPoint { timeline },
                Seq(1).0.to_be_bytes().to_vec(),
            );
            let floor = StateKey::DedupFloor { slot: slot() };
            ctx.put(&floor, (2 * HOUR_MS).to_be_bytes().to_vec());
            ctx.put_dedup(slot(), key(4 * HOUR_MS), b"new");
        });
        stands(&source, freeze());
        let last = exported(&source);
        let (changes, whole) = (files(&last, Some(&first)), files(&last, None));
        stage(&shard, &changes).unwrap();
        // And there is nothing between two that are the same.
        let none = files(&last, Some(&last));
        assert_eq!(
            (none.meta.base, none.meta.digest),
            (Some(whole.meta.digest), whole.meta.digest)
        );
        stage(&shard, &none).unwrap();
        // Changes of something else are refused.
        let other = files(&first, Some(&last));
        stage(&shard, &other).unwrap();
        let refused = stage(&shard, &other);
        assert!(
            refused.is_ok(),
            "what is staged already is not staged again"
        );
        stage(&shard, &changes).unwrap();
        assert!(matches!(
            shard.stage_slot(
                EPOCH,
                &ExportMeta {
                    base: Some(3),
                    digest: 4,
                    ..changes.meta
                },
                &changes.paths
            ),
            Err(Error::OtherCopy { .. })
        ));
        let staged = files(&shard.export_staged(slot(), EPOCH).unwrap(), None);
        assert_eq!(staged.meta.digest, whole.meta.digest);
        stands(&shard, commit(whole.meta.digest));
        shard.flush();
        let moved = files(&shard.export_slot(slot()).unwrap(), None);
        // The floor did not rise: no options, no window.
        assert_eq!(moved.meta.digest, whole.meta.digest);
    }
}

#[test]
fn damaged_files_change_nothing() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let source = filled(&store);
    let first = exported(&source);
    source.send(USER, "more");
    let second = exported(&source);
    let shard = importing(&store);
    for part in [files(&first, None), files(&second, Some(&first))] {
        let before = shard.staged_imports();
        let whole = std::fs::read(&part.paths[0]).unwrap();
        let mut damaged = vec![whole[..whole.len() - 5].to_vec()];
        for place in (0..whole.len()).step_by(13) {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x10;
            damaged.push(flipped);
        }
        for bytes in damaged {
            std::fs::write(&part.paths[0], bytes).unwrap();
            assert!(stage(&shard, &part).is_err());
            assert_eq!(shard.staged_imports(), before);
        }
        std::fs::write(&part.paths[0], whole).unwrap();
        let wrong = ExportMeta {
            digest: part.meta.digest ^ 1,
            ..part.meta
        };
        let refused = shard.stage_slot(EPOCH, &wrong, &part.paths);
        assert!(
            matches!(refused, Err(Error::CorruptSnapshot { .. })),
            "{refused:?}"
        );
        assert!(
            shard
                .stage_slot(EPOCH + 1, &part.meta, &part.paths)
                .is_err()
        );
        stage(&shard, &part).unwrap();
    }
}

#[test]
fn a_dropped_replica_takes_what_was_staged_and_what_was_dropped_with_it() {
    for disk in Disk::all() {
        let store = disk.open();
        let source = filled(&store);
        let shard = importing(&store);
        stage(&shard, &files(&exported(&source), None)).unwrap();
        stands(&source, freeze());
        while source.flush().is_some() {}
        stands(&source, drop_it());
        assert!(store.drop_shard(OTHER).unwrap() && store.drop_shard(SHARD).unwrap());
        assert_eq!(stored_ranges(&source), [0]);
        drop((source, shard, store));
        assert!(disk.open().shards().is_empty());
    }
}
