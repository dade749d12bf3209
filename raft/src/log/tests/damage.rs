//! A shortened log never passes for a whole one; a write that was cut off does no harm.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rocksdb::DB;
use tempfile::TempDir;

use super::*;
use crate::log::options::rocksdb_options;
use crate::log::wal::{WalBatch, scan, wal_files};
use crate::log::{Error, LogInspect, mark::MARK_FILE};

const BATCHES: u64 = 40;

/// A log of one batch an entry, after a crash, with the mark of its beginning.
struct Crashed {
    dir: TempDir,
    wal: PathBuf,
    batches: Vec<WalBatch>,
}

async fn crashed(len: usize, last_len: usize) -> Crashed {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(live.path());
    let mark = std::fs::read(live.path().join(MARK_FILE)).unwrap();
    let mut shard = log.shard_log(SHARD).unwrap();
    for index in 1..BATCHES {
        append(&mut shard, [entry(1, index, len)]).await;
    }
    append(&mut shard, [entry(1, BATCHES, last_len)]).await;
    copy(live.path(), dir.path());
    std::fs::write(dir.path().join(MARK_FILE), mark).unwrap();
    let (number, wal) = wal_files(dir.path()).unwrap().pop().unwrap();
    let mut batches = Vec::new();
    scan(&wal, number, |batch| batches.push(batch)).unwrap();
    assert_eq!(batches.len() as u64, BATCHES);
    assert!(batches.iter().all(|batch| !batch.behind_damage));
    Crashed { dir, wal, batches }
}

fn flip(path: &std::path::Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn zero(path: &std::path::Path, from: u64, to: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; (to - from) as usize], from)
        .unwrap();
}

/// Refused twice, and by inspection: the first refusal must not destroy the evidence.
fn refusal(dir: &std::path::Path) -> Error {
    SharedLog::open(dir, small())
        .err()
        .expect("damage is found");
    LogInspect::open(dir)
        .err()
        .expect("damage is found offline");
    SharedLog::open(dir, small())
        .err()
        .expect("damage is found again")
}

#[tokio::test]
async fn a_byte_flipped_in_the_middle_is_refused_naming_file_and_batch() {
    // Header, length, type, log number, batch row, body, and the block behind a border.
    for at in [0, 4, 6, 7, 20, 35, 400] {
        let crash = crashed(1000, 1000).await;
        flip(&crash.wal, crash.batches[19].position + at);
        let error = refusal(crash.dir.path());
        let Error::BatchLost {
            file,
            missing,
            found,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((file, *missing, *found), (&crash.wal, 20, BATCHES));
        assert!(error.to_string().contains("batch 20"), "{error}");
    }
}

#[tokio::test]
async fn damage_in_an_older_file_is_found_by_what_a_newer_one_holds() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(live.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut index = 0;
    // Two files that both must be replayed: a memtable waits for another before it is flushed.
    while wal_files(live.path()).unwrap().len() < 2 {
        index += 1;
        append(&mut shard, [entry(1, index, 50_000)]).await;
    }
    index += 1;
    append(&mut shard, [entry(1, index, 50_000)]).await;
    copy(live.path(), dir.path());
    let files = wal_files(dir.path()).unwrap();
    let mut batches = Vec::new();
    scan(&files[0].1, files[0].0, |batch| batches.push(batch)).unwrap();
    for damaged in [&batches[3], batches.last().unwrap()] {
        let again = tempfile::tempdir().unwrap();
        copy(dir.path(), again.path());
        let wal = again.path().join(files[0].1.file_name().unwrap());
        flip(&wal, damaged.position + 100);
        let error = refusal(again.path());
        let Error::BatchLost {
            file,
            missing,
            found,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((file, *missing), (&wal, damaged.row.number));
        assert!(*found > damaged.row.number);
    }
    open(dir.path()).close().unwrap();
}

/// A log whose three files must all be replayed, as a crash before a flush leaves it: the flush began
/// when there were three.
async fn crashed_with_three_files() -> (TempDir, Vec<(u64, PathBuf)>) {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(live.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut index = 0;
    while wal_files(live.path()).unwrap().len() < 2 {
        index += 1;
        append(&mut shard, [entry(1, index, 50_000)]).await;
    }
    copy(live.path(), dir.path());
    let second = wal_files(live.path()).unwrap().pop().unwrap().0;
    let newer = loop {
        index += 1;
        append(&mut shard, [entry(1, index, 50_000)]).await;
        let mut files = wal_files(live.path()).unwrap();
        files.retain(|(number, _)| *number >= second);
        if files.len() > 1 {
            break files;
        }
    };
    for (_, path) in newer {
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let files = wal_files(dir.path()).unwrap();
    assert_eq!(files.len(), 3);
    (dir, files)
}

#[tokio::test]
async fn a_whole_file_gone_from_the_middle_is_refused() {
    let (dir, files) = crashed_with_three_files().await;
    let whole = tempfile::tempdir().unwrap();
    copy(dir.path(), whole.path());
    open(whole.path()).close().unwrap();

    let mut lost = Vec::new();
    scan(&files[1].1, files[1].0, |batch| lost.push(batch.row.number)).unwrap();
    std::fs::remove_file(&files[1].1).unwrap();
    let error = refusal(dir.path());
    let Error::FileLost {
        before,
        behind,
        missing,
        last,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!((before, behind), (&files[0].1, &files[2].1));
    assert_eq!((Some(missing), Some(last)), (lost.first(), lost.last()));
    assert!(error.to_string().contains(&format!("batches {missing}")));
}

#[tokio::test]
async fn replay_would_have_ended_silently_at_the_flipped_byte() {
    let crash = crashed(1000, 1000).await;
    flip(&crash.wal, crash.batches[19].position + 30);
    drop(DB::open(&rocksdb_options(&small()), crash.dir.path()).unwrap());
    // RocksDB has dropped the rest. The mark alone cannot tell, it lags.
    let mut shard = open(crash.dir.path()).shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(1, 19)));
}

#[tokio::test]
async fn a_byte_flipped_in_the_last_batch_of_a_clean_stop_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    for index in 1..=5 {
        append(&mut shard, [entry(1, index, 300)]).await;
    }
    log.close().unwrap();
    let (number, wal) = wal_files(dir.path()).unwrap().pop().unwrap();
    let mut newest = None;
    scan(&wal, number, |batch| newest = Some(batch)).unwrap();
    let newest = newest.unwrap();
    for at in (0..350).step_by(7) {
        let damaged = tempfile::tempdir().unwrap();
        copy(dir.path(), damaged.path());
        let wal = damaged.path().join(wal.file_name().unwrap());
        flip(&wal, newest.position + at);
        let error = refusal(damaged.path());
        let Error::BelowMark {
            file,
            recovered,
            marked,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(file, &wal);
        assert_eq!(
            (*recovered + 1, *marked),
            (newest.row.number, newest.row.number)
        );
    }
    open(dir.path()).close().unwrap();
}

#[tokio::test]
async fn the_whole_log_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&mut log.shard_log(SHARD).unwrap(), [entry(1, 1, 300)]).await;
    log.close().unwrap();
    let mark = std::fs::read(dir.path().join(MARK_FILE)).unwrap();
    std::fs::remove_file(dir.path().join(MARK_FILE)).unwrap();
    assert!(matches!(
        SharedLog::open(dir.path(), small()).err().unwrap(),
        Error::MarkDamaged { .. }
    ));
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join(MARK_FILE), mark).unwrap();
    assert!(matches!(
        SharedLog::open(empty.path(), small()).err().unwrap(),
        Error::BelowMark { marked: 1, .. }
    ));
}

#[tokio::test]
async fn a_write_that_was_cut_off_is_dropped_and_the_log_goes_on() {
    for cut in [1, 8, 11, 12, 30, 500, 1020] {
        let crash = crashed(1000, 1000).await;
        let end = std::fs::metadata(&crash.wal).unwrap().len();
        zero(
            &crash.wal,
            crash.batches.last().unwrap().position + cut,
            end,
        );
        let log = open(crash.dir.path());
        let mut shard = log.shard_log(SHARD).unwrap();
        assert_eq!(last(&mut shard).await, Some(log_id(1, BATCHES - 1)));
        append(&mut shard, [entry(2, BATCHES, 50)]).await;
        drop((shard, log));
        let log = open(crash.dir.path());
        let mut shard = log.shard_log(SHARD).unwrap();
        assert_eq!(last(&mut shard).await, Some(log_id(2, BATCHES)));
        log.close().unwrap();
        open(crash.dir.path()).close().unwrap();
    }
}

#[tokio::test]
async fn later_pieces_of_the_first_missing_batch_prove_nothing() {
    let crash = crashed(1000, 200_000).await;
    let begin = crash.batches.last().unwrap().position;
    // The first block never reached the disk, the other six did.
    zero(&crash.wal, begin, (begin / 32768 + 1) * 32768);
    let mut shard = open(crash.dir.path()).shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(1, BATCHES - 1)));
}

#[tokio::test]
async fn bytes_smuggled_into_a_body_do_not_pass_for_a_batch() {
    // A client's body holds a well-formed batch with a far greater number, of another store.
    let crash = crashed(1000, 1000).await;
    let stolen = std::fs::read(&crash.wal).unwrap();
    let at = crash.batches[30].position as usize;
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mark = std::fs::read(dir.path().join(MARK_FILE)).unwrap();
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, [entry(1, 1, 10)]).await;
    let mut smuggled = entry(1, 2, 0);
    smuggled.payload = EntryPayload::Normal(Cmd(stolen[at..at + 2500].to_vec().into()));
    append(&mut shard, [smuggled]).await;
    let torn = tempfile::tempdir().unwrap();
    copy(dir.path(), torn.path());
    std::fs::write(torn.path().join(MARK_FILE), mark).unwrap();
    let (number, wal) = wal_files(torn.path()).unwrap().pop().unwrap();
    let mut batches = Vec::new();
    scan(&wal, number, |batch| batches.push(batch)).unwrap();
    flip(&wal, batches[1].position);
    let mut shard = open(torn.path()).shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(1, 1)));
}

#[tokio::test]
async fn no_flipped_byte_of_a_stopped_log_loses_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    for index in 1..=BATCHES {
        append(&mut shard, [entry(1, index, 100)]).await;
    }
    log.close().unwrap();
    let (_, wal) = wal_files(dir.path()).unwrap().pop().unwrap();
    let len = std::fs::metadata(&wal).unwrap().len();
    let (mut refused, mut at) = (0, 3);
    while at < len.min(16_000) {
        let damaged = tempfile::tempdir().unwrap();
        copy(dir.path(), damaged.path());
        flip(&damaged.path().join(wal.file_name().unwrap()), at);
        match SharedLog::open(damaged.path(), small()) {
            Err(Error::BatchLost { .. } | Error::BelowMark { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
            Ok(log) => {
                let mut shard = log.shard_log(SHARD).unwrap();
                assert_eq!(
                    terms(&mut shard, 1, 100).await.len() as u64,
                    BATCHES,
                    "byte {at}"
                );
            }
        }
        at += 149;
    }
    assert!(refused > 10, "{refused}");
}

#[tokio::test]
async fn a_damaged_row_in_a_file_is_a_fault_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, (1..=200).map(|i| entry(1, i, 1000))).await;
    log.close().unwrap();
    // Opening flushes what was recovered.
    open(dir.path()).close().unwrap();
    let sst = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .expect("a flushed file");
    flip(&sst, 50_000);
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let error = shard
        .try_get_log_entries(1..201)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("shard 7 index"), "{error}");
    let fault = log.fault().borrow().clone().expect("a fault");
    assert_eq!(fault, error);
    assert!(log.close().is_err());
    let inspect = LogInspect::open(dir.path()).unwrap();
    let error = inspect.verify().unwrap_err().to_string();
    assert!(error.contains("shard 7 index"), "{error}");
}

#[tokio::test]
async fn a_failed_write_stops_the_log_and_nothing_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut fault = log.fault();
    // The next file cannot be made in a directory that is gone.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let mut index = 1;
    let error = loop {
        let (done, synced) = TypeConfig::oneshot();
        let entries = (index..index + 4).map(|i| entry(1, i, 50_000));
        if let Err(error) = shard.append(entries, IOFlushed::signal(done)).await {
            break error;
        }
        if let Err(error) = synced.await.unwrap() {
            break error;
        }
        index += 4;
        assert!(index < 10_000);
    };
    let path = dir.path().to_str().unwrap();
    assert!(error.to_string().contains(path), "{error}");
    let reason = fault
        .wait_for(Option::is_some)
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert!(reason.contains(path), "{reason}");
    assert!(shard.save_vote(&vote(1, 1)).await.is_err());
    assert!(shard.drained().await.is_err());
    assert!(log.close().is_err());
}
