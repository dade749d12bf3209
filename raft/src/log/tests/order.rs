//! Order, visibility and bounds.

use std::sync::Arc;

use futures_util::StreamExt;
use openraft::storage::{IOFlushed, RaftLogStorage};

use super::*;
use crate::log::core::Op;
use crate::log::{Error, LogInspect, LogPayload};

#[tokio::test]
async fn a_truncated_tail_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, (1..=10).map(|i| entry(1, i, 100))).await;
    // Nothing waits between the three.
    shard.truncate_after(Some(log_id(1, 4))).await.unwrap();
    assert_eq!(terms(&mut shard, 1, 100).await, [1; 4]);
    let (done, synced) = TypeConfig::oneshot();
    let newer = (5..=7).map(|i| entry(2, i, 100));
    shard.append(newer, IOFlushed::signal(done)).await.unwrap();
    assert_eq!(terms(&mut shard, 1, 100).await, [1, 1, 1, 1, 2, 2, 2]);
    synced.await.unwrap().unwrap();
    drop((shard, log));

    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(2, 7)));
    assert_eq!(terms(&mut shard, 1, 100).await, [1, 1, 1, 1, 2, 2, 2]);
    shard.truncate_after(None).await.unwrap();
    assert_eq!(last(&mut shard).await, None);
    append(&mut shard, [entry(3, 1, 100)]).await;
    drop((shard, log));
    let mut shard = open(dir.path()).shard_log(SHARD).unwrap();
    assert!(last(&mut shard).await.is_some());
}

#[tokio::test]
async fn a_late_write_of_truncated_entries_does_not_evict_their_successors() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        cache_bytes: 0,
        ..small()
    };
    let log = SharedLog::open(dir.path(), options).unwrap();
    let mut shard = log.shard_log(SHARD).unwrap();
    for term in 1..200 {
        let (done, _) = TypeConfig::oneshot();
        let old = (1..=3).map(|i| entry(term, i, 100));
        shard.append(old, IOFlushed::signal(done)).await.unwrap();
        shard.truncate_after(None).await.unwrap();
        let (done, _) = TypeConfig::oneshot();
        let new = (1..=2).map(|i| entry(term + 1000, i, 100));
        shard.append(new, IOFlushed::signal(done)).await.unwrap();
        assert_eq!(terms(&mut shard, 1, 100).await, [term + 1000; 2]);
        shard.truncate_after(None).await.unwrap();
    }
}

#[tokio::test]
async fn votes_and_committed_marks_survive() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut other = log.shard_log(ShardId(8)).unwrap();
    append(&mut shard, (1..=3).map(|i| entry(1, i, 10))).await;
    shard.save_vote(&vote(4, 2)).await.unwrap();
    other.save_vote(&vote(5, 3)).await.unwrap();
    shard.save_vote(&vote(6, 1)).await.unwrap();
    shard.save_committed(Some(log_id(1, 2))).await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    log.close().unwrap();

    let mut shard = open(crashed.path()).shard_log(SHARD).unwrap();
    assert_eq!(shard.read_vote().await.unwrap(), Some(vote(6, 1)));
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut other = log.shard_log(ShardId(8)).unwrap();
    assert_eq!(shard.read_vote().await.unwrap(), Some(vote(6, 1)));
    assert_eq!(other.read_vote().await.unwrap(), Some(vote(5, 3)));
    assert_eq!(
        shard.read_committed().await.unwrap(),
        Some(log_id(1, 2)),
        "a clean stop writes what only rides along"
    );
    assert_eq!(last(&mut other).await, None);
}

#[tokio::test]
async fn a_committed_mark_causes_no_synced_write_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, [entry(1, 1, 10)]).await;
    for _ in 0..100 {
        shard.save_committed(None).await.unwrap();
        shard.save_committed(Some(log_id(1, 1))).await.unwrap();
    }
    append(&mut shard, [entry(1, 2, 10)]).await;
    assert!(log.metrics().fsyncs <= 3, "{:?}", log.metrics());
}

#[tokio::test]
async fn a_purge_may_pass_the_end_and_moves_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, (1..=10).map(|i| entry(1, i, 10))).await;
    shard.purge(log_id(1, 4)).await.unwrap();
    assert_eq!(terms(&mut shard, 5, 10).await.len(), 6);
    assert!(
        shard
            .limited_get_log_entries(4, 8)
            .await
            .unwrap()
            .is_empty()
    );
    shard.purge(log_id(3, 20)).await.unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(3, 20)));
    append(&mut shard, (21..=22).map(|i| entry(3, i, 10))).await;
    drop((shard, log));
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    let state = shard.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(3, 20)));
    assert_eq!(state.last_log_id, Some(log_id(3, 22)));
    assert_eq!(terms(&mut shard, 21, 10).await, [3, 3]);
}

#[tokio::test]
async fn reads_are_capped_by_bytes_and_streams_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    for from in (1..=50).step_by(10) {
        append(&mut shard, (from..from + 10).map(|i| entry(1, i, 100_000))).await;
    }
    // From disk, from both, and from memory.
    for from in [1, 40, 50] {
        let page = shard.limited_get_log_entries(from, 51).await.unwrap();
        assert_eq!(page[0].log_id.index, from);
        assert_eq!(page.len() as u64, 10.min(51 - from));
    }
    let stream = shard.entries_stream(3..48).await;
    let entries: Vec<Entry> = stream.map(Result::unwrap).collect().await;
    let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(indexes, (3..48).collect::<Vec<_>>());
    assert_eq!(terms(&mut shard, 1, 100_000).await.len(), 50);
}

#[tokio::test]
async fn all_shards_share_one_synced_write() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let first = log.shard_log(SHARD).unwrap();
    let state = Arc::clone(&first.shard);
    let before = {
        // The writer cannot complete this entry while the shard's state is locked.
        let guard = state.state.lock();
        first
            .core
            .push(Op::Append {
                shard: Arc::clone(&state),
                epoch: 0,
                entries: vec![entry(1, 1, 10)],
                done: IOFlushed::noop(),
            })
            .unwrap();
        while log.metrics().queued_bytes > 0 {
            std::thread::yield_now();
        }
        let mut waiting = Vec::new();
        for shard in 100..200 {
            let mut shard = log.shard_log(ShardId(shard)).unwrap();
            let (done, synced) = TypeConfig::oneshot();
            let appended = shard.append([entry(1, 1, 10)], IOFlushed::signal(done));
            futures_util::FutureExt::now_or_never(appended)
                .unwrap()
                .unwrap();
            waiting.push(synced);
        }
        drop(guard);
        waiting
    };
    for synced in before {
        synced.await.unwrap().unwrap();
    }
    let metrics = log.metrics();
    assert_eq!((metrics.fsyncs, metrics.entries), (2, 101), "{metrics:?}");
    assert_eq!(metrics.fsync_buckets.iter().sum::<u64>(), 2);
}

#[tokio::test]
async fn waiting_for_a_sync_covers_what_was_queued_before() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    assert!(matches!(
        shard.wait_synced(log_id(1, 1)).await,
        Err(Error::Behind { wanted: 1, .. })
    ));
    let (done, mut synced) = TypeConfig::oneshot();
    shard
        .append([entry(1, 1, 10)], IOFlushed::signal(done))
        .await
        .unwrap();
    shard.wait_synced(log_id(1, 1)).await.unwrap();
    assert!(synced.try_recv().is_ok());
    shard.truncate_after(None).await.unwrap();
    shard.purge(log_id(2, 30)).await.unwrap();
    shard.drained().await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    let mut shard = open(crashed.path()).shard_log(SHARD).unwrap();
    assert_eq!(last(&mut shard).await, Some(log_id(2, 30)));
    log.close().unwrap();
    assert!(matches!(
        log.shard_log(SHARD).unwrap().drained().await,
        Ok(()) | Err(Error::Stopped { .. })
    ));
}

#[tokio::test]
async fn after_closing_every_call_fails_and_nothing_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, [entry(1, 1, 10)]).await;
    log.close().unwrap();
    log.close().unwrap();
    let (done, synced) = TypeConfig::oneshot();
    assert!(
        shard
            .append([entry(1, 2, 10)], IOFlushed::signal(done))
            .await
            .is_err()
    );
    assert!(synced.await.unwrap().is_err());
    assert!(shard.save_vote(&vote(1, 1)).await.is_err());
    assert!(shard.try_get_log_entries(1..3).await.is_err());
    assert!(log.fault().borrow().is_none());
    // The lock is free although a shard's log is still held.
    open(dir.path()).close().unwrap();
}

#[tokio::test]
async fn inspection_reads_what_the_node_wrote_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut shard = log.shard_log(SHARD).unwrap();
    append(&mut shard, (1..=20).map(|i| entry(1, i, 10))).await;
    shard.purge(log_id(1, 5)).await.unwrap();
    shard.save_committed(Some(log_id(1, 18))).await.unwrap();
    log.shard_log(ShardId(9))
        .unwrap()
        .save_vote(&vote(1, 1))
        .await
        .unwrap();
    log.close().unwrap();
    for _ in 0..2 {
        let inspect = LogInspect::open(dir.path()).unwrap();
        assert_eq!(inspect.batch(), inspect.marked());
        let batches = inspect.batches().unwrap();
        let numbers: Vec<u64> = batches.iter().map(|batch| batch.number).collect();
        assert_eq!(numbers, (1..=inspect.batch()).collect::<Vec<_>>());
        let reports = inspect.verify().unwrap();
        assert_eq!(reports.len(), 2);
        assert_eq!((reports[0].shard, reports[1].shard), (SHARD, ShardId(9)));
        assert_eq!(
            (reports[0].first, reports[0].last, reports[0].entries),
            (6, 20, 15)
        );
        assert_eq!((reports[0].committed, reports[1].entries), (Some(18), 0));
        let entries: Vec<_> = inspect
            .entries(SHARD, 19)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(
            entries[0].payload,
            LogPayload::Commands(body(19, 10).into())
        );
    }
}
