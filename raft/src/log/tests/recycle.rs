//! WAL files are used again, and what is left in them from before is not taken for the log.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::log::wal::wal_files;

#[tokio::test]
async fn wal_files_are_used_again_and_recover() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut numbers: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut index = 1;
    while numbers.values().all(|numbers| numbers.len() < 3) {
        append(&mut shard, (index..index + 4).map(|i| entry(1, i, 20_000))).await;
        index += 4;
        shard
            .purge(log_id(1, index.saturating_sub(100).max(1)))
            .await
            .unwrap();
        for (number, path) in wal_files(dir.path()).unwrap() {
            if let Ok(file) = std::fs::metadata(path) {
                numbers.entry(file.ino()).or_default().insert(number);
            }
        }
        assert!(
            index < 20_000,
            "no WAL file was used three times: {numbers:?}"
        );
    }
    // A crash here leaves blocks of earlier lives behind the end of the newest file.
    let crashed = tempfile::tempdir().unwrap();
    log.inner
        .core
        .db()
        .unwrap()
        .cancel_all_background_work(true);
    copy(dir.path(), crashed.path());
    let log = open(crashed.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(1, index - 1)));
    assert!(
        terms(&mut shard, index.saturating_sub(50), 20_000)
            .await
            .len()
            >= 50
    );
}

#[tokio::test]
async fn files_written_ahead_are_the_next_to_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        wal_ahead_bytes: 1 << 20,
        ..small()
    };
    for from in [1, 11, 21] {
        let log = SharedLog::open(dir.path(), options.clone()).unwrap();
        let files = wal_files(dir.path()).unwrap();
        let (_, newest) = files.last().unwrap();
        let len = std::fs::metadata(newest).unwrap().len();
        assert!(len >= 1 << 20, "{newest:?} has {len} bytes");
        let mut shard = log.shard_log(SHARD).unwrap();
        append(&mut shard, (from..from + 10).map(|i| entry(1, i, 1000))).await;
        assert_eq!(terms(&mut shard, 1, 1000).await.len() as u64, from + 9);
        if from == 11 {
            log.close().unwrap();
        }
    }
}
