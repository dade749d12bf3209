//! Replicas that leave a node, and come back.

use super::installs::{filled, snapshot_of, stored_ranges};
use super::{Disk, SHARD, mailbox};
use crate::base::memory::IngestCrash;
use crate::error::Error;
use crate::id::{Seq, ShardId};

const OTHER: ShardId = ShardId(9);

#[test]
fn a_dropped_replica_leaves_no_row_and_its_neighbour_loses_none() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = filled(&store);
        let other = store.create_shard(OTHER, 0..=7).unwrap();
        other.send(1, "stays");
        other.flush();
        other.send(2, "stays unflushed");
        let hash = other.hash_now();
        shard.send(3, "unflushed");
        let before: Vec<u32> = stored_ranges(&shard);
        assert!(store.drop_shard(SHARD).unwrap());
        assert!(!store.drop_shard(SHARD).unwrap());
        assert_eq!(store.shards(), [OTHER]);
        assert_eq!(other.hash_now(), hash);
        let kept = other.state.read().ranges.clone();
        let mut kept: Vec<u32> = kept.by_range().map(|(range, _)| range.0).collect();
        // Shards share no range, and the node's own is 0.
        let mut stored = stored_ranges(&other);
        stored.retain(|range| *range != 0);
        kept.retain(|range| stored.contains(range));
        assert_eq!(stored, kept);
        // A shard that comes back begins with nothing, in ranges that were never used.
        let again = store.create_shard(SHARD, 0..=7).unwrap();
        assert_eq!(again.head(mailbox(1)).unwrap(), Seq(0));
        assert_eq!(again.applied(), Default::default());
        again.send(1, "new life");
        again.flush();
        let fresh = again.state.read().ranges.clone();
        assert!(
            fresh
                .by_range()
                .all(|(range, _)| !before.contains(&range.0))
        );
        let hash = (again.hash_now(), other.hash_now());
        other.flush();
        drop((shard, other, again, store));
        let store = disk.open();
        assert_eq!(store.shards(), [SHARD, OTHER]);
        let of = |shard| store.shard(shard).unwrap();
        assert_eq!((of(SHARD).hash_now(), of(OTHER).hash_now()), hash);
        assert_eq!(of(SHARD).bodies(1), ["new life"]);
    }
}

#[test]
fn a_handle_on_a_dropped_replica_refuses_everything() {
    for disk in Disk::all() {
        let files_dir = tempfile::tempdir().unwrap();
        let store = disk.open();
        let shard = filled(&store);
        let (meta, files) = snapshot_of(&shard, files_dir.path());
        shard.send(1, "frozen");
        let frozen = shard.freeze().unwrap();
        let built = shard.build(&frozen).unwrap();
        shard.send(1, "active");
        store.drop_shard(SHARD).unwrap();
        let ranges = {
            // What was built of it is void, and a snapshot does not bring it back.
            let _ = shard.ingest(built);
            let refused = shard.install_files(&meta, &files);
            assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
            stored_ranges(&shard)
        };
        assert_eq!(ranges, [0]);
        assert!(shard.freeze().is_none() && shard.unacked().is_empty());
        assert!(shard.head(mailbox(1)).is_err() && shard.snapshot().is_err());
        assert!(shard.apply(&[super::blank(1000)]).is_err());
        assert_eq!(shard.metrics().memtable_bytes, 0);
        drop((shard, store));
        assert!(disk.open().shards().is_empty());
    }
}

#[test]
fn a_crash_in_a_drop_leaves_the_replica_or_nothing_of_it() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let disk = Disk::all().into_iter().next().unwrap();
        let Disk::Memory(memory) = &disk else {
            unreachable!("memory comes first")
        };
        let hash = {
            let store = disk.open();
            let shard = filled(&store);
            let hash = shard.hash_now();
            memory.crash_next_ingest(at);
            assert!(store.drop_shard(SHARD).is_err());
            assert!(matches!(shard.head(mailbox(1)), Err(Error::Stopped { .. })));
            hash
        };
        memory.crash();
        let store = disk.open();
        match at {
            IngestCrash::Before => {
                let shard = store.shard(SHARD).unwrap();
                assert_eq!(shard.hash_now(), hash);
                assert!(store.drop_shard(SHARD).unwrap());
            }
            IngestCrash::After => assert!(store.shards().is_empty()),
        }
        let shard = filled(&store);
        assert_eq!(shard.hash_now(), hash);
    }
}
