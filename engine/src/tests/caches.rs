//! Heads, tails and dedup look-ups from the caches answer as the rows would.

use super::{Disk, SHARD, mailbox, new_shard, options};
use crate::id::Seq;
use crate::options::EngineOptions;

#[test]
fn a_hot_tail_is_read_without_files_and_goes_on_with_flushes() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let shard = new_shard(&store);
    shard.send(1, "a");
    shard.flush();
    assert_eq!(shard.metrics().tail_cache_bytes, 0);
    assert_eq!(shard.bodies(1), ["a"]);
    let one = shard.metrics().tail_cache_bytes;
    assert!(one > 0);
    shard.send(1, "b");
    shard.flush();
    assert_eq!(shard.metrics().tail_cache_bytes, 2 * one);
    assert_eq!(shard.bodies(1), ["a", "b"]);
    assert_eq!(shard.metrics().tail_cache_bytes, 2 * one);
}

#[test]
fn an_overwrite_reaches_a_cached_row() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        shard.send(1, "a");
        shard.send(1, "b");
        shard.flush();
        assert_eq!(shard.bodies(1), ["a", "b"]);
        shard.edit(1, 1, "edited");
        assert_eq!(shard.bodies(1), ["edited", "b"]);
        shard.flush();
        assert_eq!(shard.bodies(1), ["edited", "b"]);
        assert_eq!(shard.bodies(1), ["edited", "b"]);
    }
}

#[test]
fn a_reader_that_began_before_an_overwrite_caches_nothing() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let shard = new_shard(&store);
    shard.send(1, "old");
    shard.flush();
    let rewrites = shard.state.read().rewrites;
    let rows = shard.scan(mailbox(1), Seq(1), 10, 1000).unwrap();
    shard.edit(1, 1, "new");
    shard.flush();
    let range = shard.state.read().range(shard.slot_of(mailbox(1))).unwrap();
    shard.keep_tail(range, mailbox(1), &rows, rewrites);
    assert_eq!(shard.bodies(1), ["new"]);
}

#[test]
fn the_tail_cache_keeps_its_budget() {
    let disk = Disk::all().into_iter().next().unwrap();
    let budget = EngineOptions {
        tail_cache_bytes: 8000,
        ..options()
    };
    let store = disk.open_with(budget).unwrap();
    let shard = new_shard(&store);
    for user in 0..50 {
        for body in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
            shard.send(user, body);
        }
    }
    shard.flush();
    for user in 0..50 {
        assert_eq!(shard.bodies(user).concat(), "abcdefghijkl");
        assert!(shard.metrics().tail_cache_bytes <= 8000);
    }
    assert!(shard.metrics().tail_cache_bytes > 0);
}

#[test]
fn heads_that_left_the_cache_come_from_files() {
    for disk in Disk::all() {
        let small = EngineOptions {
            head_cache_entries: 4,
            ..options()
        };
        {
            let store = disk.open_with(small.clone()).unwrap();
            let shard = new_shard(&store);
            for round in 1..=3 {
                for user in 0..40 {
                    assert_eq!(shard.send(user, "x"), Seq(round));
                }
                shard.flush();
            }
        }
        let store = disk.open_with(small).unwrap();
        let shard = store.shard(SHARD).unwrap();
        for user in 0..40 {
            assert_eq!(shard.head(mailbox(user)).unwrap(), Seq(3));
            assert_eq!(shard.send(user, "y"), Seq(4));
        }
    }
}
