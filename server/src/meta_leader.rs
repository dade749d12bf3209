//! Work of whoever leads the meta shard.

use std::time::Duration;

use mailbox_engine::ShardId;
use mailbox_raft::Leadership;
use tokio::sync::watch;

use crate::core::Core;

/// After a replica was dropped, before another one is looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// Has `work` done whenever this node leads the meta shard, until the node stops: begun anew each time that the node
/// gains it, and dropped where it is when the node loses it, which `ended` is told.
pub(crate) async fn while_leading<F: Future<Output = ()>>(
    core: &Core,
    work: impl Fn() -> F,
    ended: impl Fn(),
) {
    let meta = || {
        let meta = core.node.shard(ShardId::META)?;
        Some(meta.watch_leadership())
    };
    tokio::select! {
        () = work_when_ready(core.node.watch_shards(), meta, work, ended) => {}
        () = core.stopping.cancelled() => {}
    }
}

/// `shards` moves when replicas come and go; `meta` is who leads the meta shard, as its replica here knows, if there is
/// one. Ends with the node.
async fn work_when_ready<F: Future<Output = ()>>(
    mut shards: watch::Receiver<u64>,
    meta: impl Fn() -> Option<watch::Receiver<Leadership>>,
    work: impl Fn() -> F,
    ended: impl Fn(),
) {
    loop {
        shards.borrow_and_update();
        let gains = async {
            let Some(mut leadership) = meta() else {
                return std::future::pending().await;
            };
            let is_ready = leadership.wait_for(Leadership::is_ready).await.is_ok();
            is_ready.then_some(leadership)
        };
        let gained = tokio::select! {
            biased;
            // The replica that is waited for may be gone, and another one here: the old one never leads again.
            changed = shards.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            gained = gains => gained,
        };
        let Some(mut leadership) = gained else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        // A replica that goes leads no more.
        tokio::select! {
            () = work() => {}
            _ = leadership.wait_for(|now| !now.is_ready()) => {}
        }
        ended();
    }
}

/// This node leads the shard, as far as it knows.
pub(crate) fn leads(core: &Core, shard: ShardId) -> bool {
    let replica = core.node.shard(shard);
    replica.is_some_and(|replica| matches!(replica.leadership(), Leadership::Leader { .. }))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const FOLLOWS: Leadership = Leadership::Follower {
        leader: None,
        term: 1,
    };
    const LEADS: Leadership = Leadership::Leader {
        term: 2,
        ready: true,
    };

    /// Lets everything go on that can.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_replica_that_comes_after_one_that_went_is_the_one_to_wait_for() {
        let shards = watch::Sender::new(0);
        let first = watch::Sender::new(FOLLOWS);
        let here = RefCell::new(Some(first.subscribe()));
        let (began, ended) = (Cell::new(0), Cell::new(0));
        let work = || async {
            began.set(began.get() + 1);
            std::future::pending().await
        };
        let meta = || here.borrow().clone();
        let over = || ended.set(ended.get() + 1);
        let working = work_when_ready(shards.subscribe(), meta, work, over);
        let story = async {
            settle().await;
            // Somebody holds the first one still: its channel does not end.
            here.replace(None);
            shards.send_modify(|changes| *changes += 1);
            settle().await;
            let second = watch::Sender::new(FOLLOWS);
            here.replace(Some(second.subscribe()));
            shards.send_modify(|changes| *changes += 1);
            settle().await;
            assert_eq!(began.get(), 0);
            second.send_replace(LEADS);
            settle().await;
            assert_eq!((began.get(), ended.get()), (1, 0));
            // Others come and go.
            shards.send_modify(|changes| *changes += 1);
            settle().await;
            assert_eq!((began.get(), ended.get()), (1, 0));
            second.send_replace(FOLLOWS);
            settle().await;
            assert_eq!((began.get(), ended.get()), (1, 1));
            drop(shards);
        };
        tokio::join!(working, story);
    }
}
