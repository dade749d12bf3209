//! Replicas that leave a node, and what the log keeps of them.

use super::*;
use crate::log::{LogInspect, Stage};

#[tokio::test]
async fn a_shard_that_comes_back_has_its_vote_and_no_entries() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = open(dir.path());
        let mut shard = log.shard_log(SHARD).unwrap();
        let mut other = log.shard_log(ShardId(8)).unwrap();
        append(&mut other, (1..=5).map(|index| entry(1, index, 10))).await;
        shard.enter(Stage::Hosted).await.unwrap();
        append(&mut shard, (1..=20).map(|index| entry(4, index, 100))).await;
        shard.save_vote(&vote(4, 3)).await.unwrap();
        shard.save_committed(Some(log_id(4, 15))).await.unwrap();
        shard.purge(log_id(4, 9)).await.unwrap();
        shard.enter(Stage::Leaving).await.unwrap();
        log.wipe(SHARD).await.unwrap();
        // Whoever holds the former life's log changes nothing of the next.
        assert!(shard.save_vote(&vote(9, 9)).await.is_err());
        assert!(shard.truncate_after(None).await.is_err());
        assert!(shard.purge(log_id(9, 9)).await.is_err());
        let mut again = log.shard_log(SHARD).unwrap();
        assert_eq!(last(&mut again).await, None);
        again.enter(Stage::Hosted).await.unwrap();
        append(&mut again, (1..=2).map(|index| entry(2, index, 50))).await;
        assert_eq!(terms(&mut again, 1, 50).await, [2, 2]);
        assert_eq!(terms(&mut other, 1, 10).await, [1; 5]);
    }
    let inspect = LogInspect::open(dir.path()).unwrap();
    let reports = inspect.verify().unwrap();
    assert_eq!(reports.iter().map(|report| report.entries).sum::<u64>(), 7);
    drop(inspect);
    let log = open(dir.path());
    let mut again = log.shard_log(SHARD).unwrap();
    assert_eq!(again.read_vote().await.unwrap(), Some(vote(4, 3)));
    assert_eq!(again.read_committed().await.unwrap(), None);
    assert_eq!(last(&mut again).await, Some(log_id(2, 2)));
    assert_eq!(terms(&mut again, 1, 50).await, [2, 2]);
    let life = again.life().unwrap();
    assert_eq!(life.stage, Stage::Hosted);
    assert_eq!(life.former, Some(log_id(4, 20)));
    // A shorter life does not lower what a longer one has promised.
    log.wipe(SHARD).await.unwrap();
    let life = log.shard_log(SHARD).unwrap().life().unwrap();
    assert_eq!(life.former, Some(log_id(4, 20)));
    assert_eq!(
        log.shards().unwrap().into_iter().collect::<Vec<_>>(),
        [SHARD, ShardId(8)]
    );
}

#[tokio::test]
async fn what_is_queued_before_a_wipe_does_not_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = open(dir.path());
        let mut shard = log.shard_log(SHARD).unwrap();
        for first in (1..200).step_by(10) {
            let (done, _synced) = TypeConfig::oneshot();
            let entries: Vec<Entry> = (first..first + 10).map(|i| entry(1, i, 500)).collect();
            shard
                .append(entries, IOFlushed::signal(done))
                .await
                .unwrap();
        }
        log.wipe(SHARD).await.unwrap();
        let mut again = log.shard_log(SHARD).unwrap();
        assert_eq!(last(&mut again).await, None);
    }
    let log = open(dir.path());
    let mut again = log.shard_log(SHARD).unwrap();
    assert_eq!(last(&mut again).await, None);
    assert_eq!(terms(&mut again, 0, 500).await, [0; 0]);
    assert_eq!(again.life().unwrap().former, Some(log_id(1, 200)));
}
