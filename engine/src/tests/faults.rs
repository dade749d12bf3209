//! Damaged bytes and failing files are named, and stop what must stop.

use std::path::Path;

use super::{Disk, SHARD, mailbox, new_shard, options};
use crate::base::FileLife;
use crate::error::Error;
use crate::id::Seq;
use crate::options::EngineOptions;

fn sst_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|end| end == "sst"))
        .collect()
}

#[test]
fn rocksdb_is_never_written_to_directly() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::Dir(dir);
    let Disk::Dir(dir) = &disk else {
        unreachable!()
    };
    let store = disk.open();
    let shard = new_shard(&store);
    for round in 0..5_u64 {
        shard.send(round, "x");
        shard.flush();
    }
    assert_eq!(shard.core.base.direct_rows(), 0);
    for entry in std::fs::read_dir(dir.path().join("state")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".log") {
            assert_eq!(entry.metadata().unwrap().len(), 0, "{name}");
        }
    }
}

#[test]
fn what_was_staged_is_gone_after_an_open() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Disk::open_dir(dir.path());
        let shard = new_shard(&store);
        shard.send(1, "x");
        let frozen = shard.freeze().unwrap();
        shard.build(&frozen).unwrap();
        assert_eq!(sst_files(&dir.path().join("staging")).len(), 1);
    }
    let store = Disk::open_dir(dir.path());
    assert_eq!(
        sst_files(&dir.path().join("staging")),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(store.shard(SHARD).unwrap().bodies(1), [""; 0]);
}

impl Disk {
    fn open_dir(dir: &Path) -> crate::store::Store {
        crate::store::Store::open(dir, options()).unwrap()
    }
}

#[test]
fn a_flipped_byte_in_a_file_is_named_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Disk::open_dir(dir.path());
        let shard = new_shard(&store);
        for number in 0..2000_u64 {
            shard.send(
                number % 10,
                &format!("message {number} {}", "filler ".repeat(20)),
            );
        }
        shard.flush();
        assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
    }
    let state = dir.path().join("state");
    let big = sst_files(&state)
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len());
    let big = big.unwrap();
    let mut bytes = std::fs::read(&big).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x01;
    std::fs::write(&big, bytes).unwrap();

    let store = Disk::open_dir(dir.path());
    let shard = store.shard(SHARD).unwrap();
    let mut broken = Vec::new();
    let mut whole = 0;
    for user in 0..10 {
        match shard.scan(mailbox(user), Seq(1), 1000, usize::MAX) {
            Ok(rows) => {
                assert_eq!(rows.len(), 200);
                whole += 1;
            }
            Err(error) => broken.push(error),
        }
    }
    assert!(whole > 0, "the rest of the rows is served");
    let Some(Error::CorruptFile { file, key, .. }) = broken.first() else {
        panic!("{broken:?}");
    };
    assert_eq!(file.file_name(), big.file_name());
    assert!(!key.0.is_empty());
    let report = shard.verify(&mut |_| {}).unwrap();
    assert!(report.fault_count > 0);
    let text = report.faults[0].to_string();
    assert!(
        text.contains(big.file_name().unwrap().to_str().unwrap()),
        "{text}"
    );
}

#[test]
fn a_compaction_that_meets_a_flipped_byte_stops_the_next_flush_naming_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Disk::open_dir(dir.path());
    let shard = new_shard(&store);
    let state = dir.path().join("state");
    // Many blocks: an ingest reads the first and the last one, which are in the cache from then on. One
    // mailbox: appends to it read its end only.
    let flush = |round: u64| {
        for number in 0..2000_u64 {
            let text = format!("round {round} {number} {}", "filler ".repeat(20));
            shard.send(1, &text);
        }
        let frozen = shard.freeze().expect("rows to flush");
        let built = shard.build(&frozen)?;
        shard.ingest(built)
    };
    flush(0).unwrap();
    let before = sst_files(&state);
    flush(1).unwrap();
    let mut second = sst_files(&state);
    second.retain(|path| !before.contains(path));
    let [damaged] = second.as_slice() else {
        panic!("{second:?}")
    };
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x01;
    std::fs::write(damaged, bytes).unwrap();
    // The compaction runs beside: some flush is the first one after it.
    let error = (2..200).find_map(|round| flush(round).err());
    let error = error.expect("the compaction has met the byte");
    let source = std::error::Error::source(&error).expect("RocksDB's words");
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(source.to_string().contains(name), "{error}: {source}");
}

#[test]
fn a_row_that_fails_its_crc_is_named_with_its_key() {
    let disk = Disk::all().into_iter().next().unwrap();
    let Disk::Memory(memory) = &disk else {
        unreachable!("memory comes first")
    };
    let rows = {
        let store = disk.open();
        let shard = new_shard(&store);
        shard.send(1, "hello");
        shard.flush();
        let report = shard.verify(&mut |_| {}).unwrap();
        assert_eq!((report.messages, report.fault_count), (1, 0));
        report.rows
    };
    assert_eq!(rows, 1);
    // Range 0 comes first: format, counter, 8 ranges, applied row.
    memory.rot(11);
    let store = disk.open();
    let shard = store.shard(SHARD).unwrap();
    let scanned = shard.scan(mailbox(1), Seq(1), 10, 1000);
    assert!(
        matches!(scanned, Err(Error::CorruptRow { .. })),
        "{scanned:?}"
    );
    let report = shard.verify(&mut |_| {}).unwrap();
    assert_eq!(report.fault_count, 1);
    assert!(matches!(report.faults[0], Error::CorruptRow { .. }));
}

#[test]
fn another_slot_count_or_format_does_not_open() {
    for disk in Disk::all() {
        drop(disk.open());
        let other = EngineOptions {
            slot_count: 16,
            ..options()
        };
        let opened = disk.open_with(other);
        assert!(matches!(
            opened.err(),
            Some(Error::SlotCount {
                stored: 8,
                asked: 16,
                ..
            })
        ));
    }
    let disk = Disk::all().into_iter().next().unwrap();
    {
        let store = disk.open();
        let shard = new_shard(&store);
        let mut writer = shard.core.base.writer(FileLife::Short).unwrap();
        let key = crate::key::NodeKey::Format.encode();
        let key = crate::view::state_key(crate::id::RangeId::NODE, key.as_slice());
        writer.put(&key, &[0, 0, 0, 77, 0, 8]).unwrap();
        let file = writer.finish().unwrap();
        shard.core.base.ingest(vec![file], &[]).unwrap();
    }
    let opened = disk.open_with(options());
    assert!(matches!(
        opened.err(),
        Some(Error::UnknownFormat { found: 77, .. })
    ));
}

#[test]
fn a_checkpoint_opens_like_the_store_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = Disk::open_dir(dir.path());
    let shard = new_shard(&store);
    shard.send(1, "a");
    shard.flush();
    let hash = shard.hash_now();
    let target = copy.path().join("copy");
    store.checkpoint(&target).unwrap();
    shard.send(1, "b");
    shard.flush();
    let other = Disk::open_dir(&target);
    assert_eq!(other.shard(SHARD).unwrap().hash_now(), hash);
}

#[test]
fn entries_out_of_order_stop_the_shard() {
    let disk = Disk::all().into_iter().next().unwrap();
    let store = disk.open();
    let shard = new_shard(&store);
    shard.apply(&[super::blank(1), super::blank(2)]).unwrap();
    assert!(shard.apply(&[super::blank(4)]).is_err());
    assert!(matches!(shard.head(mailbox(1)), Err(Error::Stopped { .. })));
    assert!(shard.apply(&[super::blank(3)]).is_err());
    assert!(shard.freeze().is_none());
}
