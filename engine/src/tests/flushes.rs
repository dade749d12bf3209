//! Flushes: what readers see before, during and after one, wherever it falls.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{Disk, SHARD, bodies, index_of, mailbox, new_row, new_shard, options};
use crate::base::memory::IngestCrash;
use crate::id::{Seq, ShardId, SlotId, UserId};
use crate::key::{DedupKey, Destination, StateKey};
use crate::options::EngineOptions;

#[test]
fn rows_are_read_alike_from_memory_frozen_and_files() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        for body in ["a", "b"] {
            shard.send(1, body);
        }
        shard.flush();
        for body in ["c", "d"] {
            shard.send(1, body);
        }
        let frozen = shard.freeze().unwrap();
        for body in ["e", "f"] {
            shard.send(1, body);
        }
        for _ in 0..2 {
            assert_eq!(shard.bodies(1), ["a", "b", "c", "d", "e", "f"]);
            assert_eq!(shard.head(mailbox(1)).unwrap(), Seq(6));
        }
        let page = |from, rows, bytes| {
            bodies(&shard.scan(mailbox(1), Seq(from), rows, bytes).unwrap()).concat()
        };
        assert_eq!(page(2, 3, usize::MAX), "bcd");
        assert_eq!(page(4, 2, usize::MAX), "de");
        assert_eq!(page(1, 100, 3), "abc");
        assert_eq!(page(1, 100, 0), "a");
        assert_eq!(page(7, 100, 100), "");
        let built = shard.build(&frozen).unwrap();
        shard.ingest(built).unwrap();
        assert_eq!(shard.bodies(1), ["a", "b", "c", "d", "e", "f"]);
    }
}

#[test]
fn seqs_go_on_after_a_reopening() {
    for disk in Disk::all() {
        {
            let store = disk.open();
            let shard = new_shard(&store);
            shard.send(1, "a");
            shard.send(2, "x");
            shard.send(1, "b");
            assert_eq!(index_of(&shard.applied()), 3);
            shard.flush();
            shard.send(1, "lost with the memtable");
        }
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        assert_eq!(index_of(&shard.applied()), 3);
        assert_eq!(shard.flushed(), shard.applied().log_id);
        assert_eq!(shard.bodies(1), ["a", "b"]);
        assert_eq!(shard.send(1, "c"), Seq(3));
        assert_eq!(shard.send(3, "z"), Seq(1));
    }
}

#[test]
fn an_empty_flush_carries_the_applied_row() {
    for disk in Disk::all() {
        {
            let store = disk.open();
            let shard = new_shard(&store);
            assert!(shard.freeze().is_none());
            shard.apply(&[super::blank(1), super::blank(2)]).unwrap();
            assert_eq!(shard.flush().unwrap().index, 2);
            assert!(shard.freeze().is_none());
        }
        assert_eq!(index_of(&disk.open().shard(SHARD).unwrap().applied()), 2);
    }
}

#[test]
fn an_overwritten_row_is_visible_wherever_the_row_was() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        shard.send(1, "in files");
        shard.flush();
        shard.send(1, "frozen");
        let frozen = shard.freeze().unwrap();
        shard.send(1, "active");
        assert_eq!(shard.bodies(1), ["in files", "frozen", "active"]);
        for (seq, body) in [(1, "one"), (2, "two"), (3, "three")] {
            shard.edit(1, seq, body);
        }
        let edited = ["one", "two", "three"];
        assert_eq!(shard.bodies(1), edited);
        let hash = shard.hash_now();
        let built = shard.build(&frozen).unwrap();
        shard.ingest(built).unwrap();
        assert_eq!(shard.bodies(1), edited);
        assert_eq!(shard.hash_now(), hash);
        shard.flush();
        assert_eq!(shard.bodies(1), edited);
        assert_eq!(shard.hash_now(), hash);
        drop((shard, store));
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        assert_eq!(shard.bodies(1), edited);
        assert_eq!(shard.hash_now(), hash);
        shard.edit(1, 2, "other");
        assert_ne!(shard.hash_now(), hash);
    }
}

#[test]
fn the_hash_does_not_depend_on_flushes() {
    let mut hashes = Vec::new();
    for flush_every in [1, 3, 1000] {
        for disk in Disk::all() {
            let store = disk.open();
            let shard = new_shard(&store);
            for number in 0..20_u64 {
                shard.send(number % 5, &number.to_string());
                let key = StateKey::User {
                    user: UserId(number),
                };
                shard.enter(|ctx| ctx.put(&key, Bytes::from_static(b"x")));
                if number % 4 == 0 {
                    let user = UserId(number / 2);
                    shard.enter(|ctx| ctx.delete(&StateKey::User { user }));
                }
                put_dedup(&shard, number);
                if number % flush_every == 0 {
                    shard.flush();
                }
            }
            hashes.push(shard.state_hash_now().unwrap().unwrap());
            shard.flush();
            hashes.push(shard.state_hash_now().unwrap().unwrap());
        }
    }
    assert_eq!(hashes[0].rows, 20 + 20 + 20 - 5);
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

fn put_dedup(shard: &crate::shard::Shard, number: u64) {
    let key = dedup_key(number);
    let slot = UserId(number).mailbox().slot(options().slot_count);
    shard.enter(|ctx| ctx.put_dedup(slot, key, &[7; 25]));
}

fn dedup_key(number: u64) -> DedupKey {
    // The time is the first 48 bits: a few rows an hour, in every hour another order of slots.
    let id = uuid::Uuid::from_u128(u128::from(number * 1_700_000) << 80 | u128::from(number));
    DedupKey {
        id,
        sender: UserId(number),
        destination: Destination::NEW_GROUP,
    }
}

#[test]
fn dedup_and_state_rows_are_found_wherever_they_are() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        let slot = SlotId(3);
        let found = |number| shard.enter(|ctx| ctx.dedup(slot, &dedup_key(number)).unwrap());
        shard.enter(|ctx| ctx.put_dedup(slot, dedup_key(1), b"one"));
        shard.flush();
        shard.enter(|ctx| ctx.put_dedup(slot, dedup_key(2), b"two"));
        let frozen = shard.freeze().unwrap();
        shard.enter(|ctx| ctx.put_dedup(slot, dedup_key(3), b"three"));
        for (number, value) in [(1, "one"), (2, "two"), (3, "three")] {
            assert_eq!(found(number).unwrap(), value);
        }
        assert_eq!(found(4), None);
        let other = shard.enter(|ctx| ctx.dedup(SlotId(4), &dedup_key(1)).unwrap());
        assert_eq!(other, None);
        let key = StateKey::User { user: UserId(5) };
        shard.enter(|ctx| ctx.put(&key, "alice"));
        let built = shard.build(&frozen).unwrap();
        shard.ingest(built).unwrap();
        shard.flush();
        shard.enter(|ctx| ctx.delete(&key));
        assert_eq!(shard.get(&key).unwrap(), None);
        shard.flush();
        assert_eq!(shard.get(&key).unwrap(), None);
        assert_eq!(found(3).unwrap(), "three");
    }
}

#[test]
fn a_flush_is_all_or_nothing_whenever_it_crashes() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let (flushed, after) = {
            let store = disk.open();
            let shard = new_shard(&store);
            shard.send(1, "a");
            shard.flush();
            let flushed = shard.hash_now();
            shard.send(1, "b");
            shard.enter(|ctx| ctx.put(&StateKey::User { user: UserId(1) }, "u"));
            memory.crash_next_ingest(at);
            let frozen = shard.freeze().unwrap();
            let built = shard.build(&frozen).unwrap();
            assert!(shard.ingest(built).is_err());
            (flushed, shard.hash_now())
        };
        memory.crash();
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        let (hash, index) = match at {
            IngestCrash::Before => (flushed, 1),
            IngestCrash::After => (after, 3),
        };
        assert_eq!(
            (shard.hash_now(), index_of(&shard.applied())),
            (hash, index)
        );
    }
}

/// Three shards whose ranges and dedup hours lie among each other's, with something to flush.
fn three_shards(store: &crate::Store) -> Vec<std::sync::Arc<crate::Shard>> {
    let ids = [ShardId(2), ShardId(0), ShardId(1)];
    let shards = ids.map(|id| store.create_shard(id, 0..=7).unwrap());
    for (number, shard) in (0_u64..).zip(&shards) {
        for user in 0..6 {
            shard.send(user, &format!("{number} {user}"));
            put_dedup(shard, user * 3 + number);
            let key = StateKey::User { user: UserId(user) };
            shard.enter(|ctx| ctx.put(&key, Bytes::from(vec![u8::try_from(number).unwrap()])));
        }
        shard.edit(1, 1, "edited");
    }
    shards.into()
}

fn frozen(
    shards: &[std::sync::Arc<crate::Shard>],
) -> Vec<(std::sync::Arc<crate::Shard>, crate::FrozenFlush)> {
    let frozen = shards
        .iter()
        .map(|shard| (shard.clone(), shard.freeze().unwrap()));
    frozen.collect()
}

fn hashes(shards: &[std::sync::Arc<crate::Shard>]) -> Vec<u128> {
    shards.iter().map(|shard| shard.hash_now()).collect()
}

fn reopened(store: &crate::Store) -> Vec<std::sync::Arc<crate::Shard>> {
    let ids = [ShardId(2), ShardId(0), ShardId(1)];
    ids.map(|id| store.shard(id).unwrap()).into()
}

#[test]
fn shards_share_a_file() {
    for disk in Disk::all() {
        let (wanted, applied) = {
            let store = disk.open();
            let shards = three_shards(&store);
            let wanted = hashes(&shards);
            let built = store.build(frozen(&shards)).unwrap();
            assert!(built.bytes() > 0);
            shards[1].send(7, "after the freeze");
            assert!(store.ingest(built).unwrap());
            for shard in &shards {
                assert!(shard.flushed().is_some());
                assert_eq!(shard.bodies(1)[0], "edited");
            }
            assert!(!shards[0].flush_due(u64::MAX) && shards[1].flush_due(u64::MAX));
            let flushes = shards.iter().map(|shard| shard.metrics().flushes);
            assert!(flushes.eq([1, 1, 1]));
            let applied = shards.iter().map(|shard| shard.flushed());
            (wanted, applied.collect::<Vec<_>>())
        };
        let store = disk.open();
        let shards = reopened(&store);
        assert_eq!(hashes(&shards), wanted);
        let now = shards.iter().map(|shard| shard.applied().log_id);
        assert!(now.eq(applied));
    }
}

#[test]
fn whoever_builds_a_file_may_rest_between_its_rows() {
    for disk in Disk::all() {
        let (wanted, steps) = {
            let store = disk.open();
            let shards = three_shards(&store);
            for _ in 0..100 {
                shards[1].send(7, "one of many");
            }
            let wanted = hashes(&shards);
            let mut steps = 0;
            let mut between = || {
                steps += 1;
                assert_eq!(shards[0].bodies(1)[0], "edited", "it serves meanwhile");
            };
            let built = store.build_in_steps(frozen(&shards), &mut between).unwrap();
            assert!(store.ingest(built).unwrap());
            (wanted, steps)
        };
        assert!(steps > 5, "{steps} steps");
        let store = disk.open();
        assert_eq!(hashes(&reopened(&store)), wanted);
    }
}

#[test]
fn a_shared_flush_is_all_or_nothing_for_every_shard() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let after = {
            let store = disk.open();
            let shards = three_shards(&store);
            let after = hashes(&shards);
            memory.crash_next_ingest(at);
            let built = store.build(frozen(&shards)).unwrap();
            assert!(store.ingest(built).is_err());
            after
        };
        memory.crash();
        let store = disk.open();
        let shards = reopened(&store);
        match at {
            IngestCrash::Before => {
                let none = |shard: &std::sync::Arc<crate::Shard>| shard.applied().log_id.is_none();
                assert!(shards.iter().all(none));
            }
            IngestCrash::After => assert_eq!(hashes(&shards), after),
        }
    }
}

#[test]
fn memory_that_one_shard_does_not_need_another_may_use() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk
        .open_with(EngineOptions {
            memtables_bytes_max: 100_000,
            ..options()
        })
        .unwrap();
    let shards = three_shards(&store);
    assert!(shards.iter().all(|shard| !shard.flush_due(0)));
    let body = Bytes::from(vec![7; 70_000]);
    let put = |shard: &crate::Shard, user| {
        let user = UserId(user);
        shard.enter(|ctx| ctx.put(&StateKey::User { user }, body.clone()));
    };
    put(&shards[0], 100);
    assert!(!shards[0].flush_due(0));
    put(&shards[1], 101);
    assert!(
        shards.iter().all(|shard| shard.flush_due(0)),
        "all together are full"
    );
    assert!(!shards[2].stalled() && !shards[2].flush_is_urgent());
    put(&shards[1], 102);
    assert!(shards.iter().all(|shard| shard.stalled()), "twice as full");
    assert!(shards.iter().all(|shard| shard.flush_is_urgent()));
    let built = store.build(frozen(&shards)).unwrap();
    assert!(store.ingest(built).unwrap());
    assert!(
        shards
            .iter()
            .all(|shard| !shard.stalled() && !shard.flush_due(u64::MAX))
    );
    put(&shards[2], 103);
    assert!(!shards[2].flush_due(0), "what was flushed is free again");
}

#[test]
fn a_cut_freezes_the_state_that_it_names() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        shard.send(1, "a");
        shard.enter(|ctx| ctx.cut());
        let cut = index_of(&shard.applied());
        let now = shard.state_hash_now().unwrap();
        shard.send(1, "after the cut");
        shard.enter(|ctx| ctx.cut());
        assert_eq!(shard.state_hash(Some(cut)).unwrap(), None);
        assert!(shard.flush_due(0));
        assert_eq!(shard.flush().unwrap().index, cut);
        assert_eq!(shard.state_hash(Some(cut)).unwrap(), now);
        // Once asked for, the read view is gone and the answer stays.
        assert_eq!(shard.state_hash(Some(cut)).unwrap(), now);
        assert_eq!(shard.flush().unwrap().index, cut + 2);
        assert_eq!(
            shard.state_hash(None).unwrap(),
            shard.state_hash_now().unwrap()
        );
    }
}

#[test]
fn a_second_full_memtable_stalls() {
    let disk = Disk::all().into_iter().next().unwrap();
    let small = EngineOptions {
        memtable_bytes_max: 1000,
        ..options()
    };
    let store = disk.open_with(small).unwrap();
    let shard = new_shard(&store);
    assert!(!shard.flush_due(0));
    for number in 0..20 {
        shard.send(number, "filler");
    }
    assert!(shard.flush_due(0));
    assert!(!shard.stalled());
    let frozen = shard.freeze().unwrap();
    assert!(!shard.stalled() && !shard.flush_is_urgent());
    for number in 0..20 {
        shard.send(number, "filler");
        assert!(
            !shard.stalled() || shard.flush_is_urgent(),
            "it is seen to come"
        );
    }
    assert!(shard.stalled());
    let built = shard.build(&frozen).unwrap();
    shard.ingest(built).unwrap();
    assert!(!shard.stalled());
}

#[test]
fn a_memtable_counts_an_entry_once() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let shard = new_shard(&store);
    let entry = Bytes::from(vec![b'x'; 100_000]);
    {
        let mut state = shard.state.write();
        state.active.pin(&entry);
    }
    shard.enter(|ctx| {
        for user in 0..10 {
            let row = crate::row::NewRow {
                body: entry.slice(0..50_000),
                ..new_row("")
            };
            ctx.append(mailbox(user), row).unwrap();
        }
    });
    let bytes = shard.metrics().memtable_bytes;
    assert!((100_000..110_000).contains(&bytes), "{bytes}");
}

#[expect(clippy::disallowed_methods, reason = "readers come from other threads")]
#[test]
fn readers_see_whole_timelines_while_flushes_are_published() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut most = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let head = shard.head(mailbox(1)).unwrap();
                        let rows = shard.scan(mailbox(1), Seq(1), 10_000, usize::MAX).unwrap();
                        let seqs: Vec<u64> = rows.iter().map(|row| row.seq.0).collect();
                        assert!(seqs.iter().copied().eq(1..=rows.len() as u64));
                        assert!(rows.len() as u64 >= head.0 && head.0 >= most);
                        most = rows.len() as u64;
                    }
                });
            }
            for number in 0..300_u64 {
                shard.send(1, &number.to_string());
                if number % 7 == 0 {
                    shard.flush();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(shard.bodies(1).len(), 300);
    }
}

#[test]
fn trimmed_rows_are_absent_and_their_seqs_are_not_issued_again() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        for body in ["a", "b", "c"] {
            shard.send(1, body);
        }
        let before = shard.hash_now();
        let key = StateKey::TrimPoint {
            timeline: mailbox(1),
        };
        shard.enter(|ctx| ctx.put(&key, crate::table::encode_u64(2)));
        assert_eq!(shard.bodies(1), ["c"]);
        let hash = shard.hash_now();
        assert_ne!(hash, before);
        shard.flush();
        assert_eq!(shard.bodies(1), ["c"]);
        assert_eq!(shard.hash_now(), hash);
        // A timeline whose rows are all gone keeps its head.
        let erased = StateKey::TrimPoint {
            timeline: mailbox(2),
        };
        shard.enter(|ctx| ctx.put(&erased, crate::table::encode_u64(9)));
        shard.flush();
        drop((shard, store));
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        assert_eq!(shard.head(mailbox(2)).unwrap(), Seq(9));
        assert_eq!(shard.send(2, "x"), Seq(10));
        assert_eq!(shard.bodies(2), ["x"]);
    }
}

#[test]
fn an_early_key_is_found_in_files_after_a_flush_a_reopening_and_an_install() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let slot = SlotId(3);
        let (late, early, other) = (dedup_key(1), dedup_key(5), dedup_key(4));
        let meta = {
            let store = disk.open();
            let shard = new_shard(&store);
            shard.enter(|ctx| ctx.advance_time(late.time_ms()));
            for key in [late, early] {
                shard.enter(|ctx| ctx.put_dedup(slot, key, b"reply"));
            }
            shard.flush();
            let snapshot = shard.snapshot().unwrap();
            snapshot.write_files(files_dir.path(), &mut |_| {}).unwrap();
            let range = shard.state.read().range(slot).unwrap();
            assert!(!shard.state.read().known.may_hold(range, &other));
            snapshot.meta().clone()
        };
        let check = |shard: &crate::shard::Shard| {
            let found = |key| shard.enter(|ctx| ctx.dedup(slot, key).unwrap());
            assert!(found(&late).is_some() && found(&early).is_some() && found(&other).is_none());
            let range = shard.state.read().range(slot).unwrap();
            assert!(shard.state.read().known.may_hold(range, &early));
            assert!(!shard.state.read().known.may_hold(range, &other));
        };
        let store = disk.open();
        let shard = store.shard(SHARD).unwrap();
        check(&shard);
        shard
            .install_files(&meta, &[files_dir.path().join("000001.rows")])
            .unwrap();
        check(&shard);
        // Time reaches the early key: it is among the covered ones then.
        shard.enter(|ctx| ctx.advance_time(early.time_ms()));
        shard.flush();
        let found = shard.enter(|ctx| ctx.dedup(slot, &early).unwrap());
        assert!(found.is_some());
    }
}
