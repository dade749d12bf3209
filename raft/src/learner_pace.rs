//! A learner gets the log at a rate that clients do not feel.
//!
//! A replica that is new to its shard begins with all that the log still holds. Sent as fast as the network takes it,
//! that keeps the leader's node and the learner's busy with nothing else, and a node that joins has several learners
//! at once. But nobody waits for a learner: it has no vote. So what it gets of entries that are committed already
//! shares a budget of this node, in bytes a second. A voter gets everything at once: the next commit may need it.
//!
//! A learner has to gain on its leader all the same, however much is written: or its log would be kept for ever. So
//! each entry that is committed meanwhile lets two go to it that do not count.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::{Entry, TypeConfig, entry_len};

/// Whoever waits looks this often whether it is a voter by now.
const LOOK: Duration = Duration::from_millis(100);

type Append = AppendEntriesRequest<TypeConfig>;

/// What the learners of all shards that a node leads share.
pub(crate) struct LearnerPace {
    bytes_per_s: u64,
    /// When all that has gone out has had its time.
    free_at: Mutex<Option<Instant>>,
}

impl LearnerPace {
    pub(crate) fn new(bytes_per_s: u64) -> Arc<LearnerPace> {
        Arc::new(LearnerPace {
            bytes_per_s,
            free_at: Mutex::new(None),
        })
    }

    /// Lets `bytes` go at once, whatever their number, if what went before has had its time; else says when to ask
    /// again. Nothing is booked ahead: who asks may be gone by then.
    fn take(&self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let mut free_at = self.free_at.lock();
        if let Some(free_at) = free_at.filter(|free_at| now < *free_at) {
            return Err(free_at);
        }
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_s;
        *free_at = Some(now + Duration::from_micros(micros));
        Ok(())
    }
}

/// What lets a learner gain on its leader. Outlives the streams to it.
#[derive(Debug, Default)]
pub(crate) struct Gain {
    /// What the leader had committed when it made the last request; `None` before the first.
    committed: Option<u64>,
    /// Entries that may go and do not count.
    free: u64,
}

impl Gain {
    /// Of a request's entries those that count: committed ones, beyond those that are free.
    fn counted<'a>(&mut self, request: &'a Append) -> impl Iterator<Item = &'a Entry> {
        let committed = request.leader_commit.map_or(0, |id| id.index);
        let before = self.committed.replace(committed).unwrap_or(committed);
        let gained = committed.saturating_sub(before).saturating_mul(2);
        self.free = self.free.saturating_add(gained);
        let old = request.entries.iter();
        let old = old.filter(move |entry| entry.log_id.index <= committed);
        let free = self.free.min(old.clone().count() as u64);
        self.free -= free;
        old.skip(usize::try_from(free).unwrap_or(usize::MAX))
    }
}

/// One shard's way to one peer, which may be a learner.
pub(crate) struct Way<F> {
    pub(crate) pace: Arc<LearnerPace>,
    /// Whether it is one now.
    pub(crate) is_to_learner: F,
    pub(crate) gain: Arc<Mutex<Gain>>,
}

impl<F: Fn() -> bool + Send + Sync + 'static> Way<F> {
    /// The same requests, those with committed entries at the pace of learners while the peer is one.
    pub(crate) fn paced<S>(self, input: S) -> impl Stream<Item = Append> + Send + Unpin + 'static
    where
        S: Stream<Item = Append> + Send + Unpin + 'static,
    {
        let paced = stream::unfold((input, self), async |(mut input, way)| {
            let request = input.next().await?;
            way.wait(&request).await;
            Some((request, (input, way)))
        });
        paced.boxed()
    }

    async fn wait(&self, request: &Append) {
        let bytes = {
            let mut gain = self.gain.lock();
            let counted = gain.counted(request);
            counted.map(|entry| entry_len(entry) as u64).sum()
        };
        // Nearly always nothing counts: who learns is known to the whole node, behind a lock.
        if bytes == 0 || !(self.is_to_learner)() {
            return;
        }
        while let Err(due) = self.pace.take(bytes, Instant::now()) {
            tokio::time::sleep_until(due.min(Instant::now() + LOOK)).await;
            if !(self.is_to_learner)() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use openraft::EntryPayload;

    use super::*;
    use crate::types::{Cmd, Vote, log_id};

    fn request(entries: std::ops::Range<u64>, committed: u64) -> Append {
        let entries = entries.map(|index| Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Normal(Cmd(Bytes::from(vec![0; 1000]))),
        });
        Append {
            vote: Vote::new(1, 1),
            prev_log_id: None,
            entries: entries.collect(),
            leader_commit: Some(log_id(1, committed)),
        }
    }

    fn counted(gain: &mut Gain, request: &Append) -> usize {
        gain.counted(request).count()
    }

    #[test]
    fn what_is_not_committed_yet_never_counts() {
        let gain = &mut Gain::default();
        assert_eq!(counted(gain, &request(1..11, 0)), 0);
        let gain = &mut Gain::default();
        assert_eq!(counted(gain, &request(1..11, 4)), 4);
        assert_eq!(counted(gain, &request(5..15, 4)), 0);
    }

    #[test]
    fn two_go_for_each_that_is_committed_now_or_later() {
        let gain = &mut Gain::default();
        assert_eq!(counted(gain, &request(1..11, 1000)), 10, "the first");
        assert_eq!(counted(gain, &request(11..21, 1003)), 4, "six for three");
        assert_eq!(counted(gain, &request(21..31, 1013)), 0, "ten of twenty");
        assert_eq!(counted(gain, &request(31..41, 1013)), 0, "ten are left");
        assert_eq!(counted(gain, &request(41..51, 1013)), 10);
        // Another leader may know of less.
        assert_eq!(counted(gain, &request(51..61, 900)), 10);
        assert_eq!(counted(gain, &request(61..71, 905)), 0);
    }

    #[test]
    fn all_learners_share_one_budget() {
        let (pace, now) = (LearnerPace::new(10_000), Instant::now());
        assert_eq!(pace.take(20_000, now), Ok(()), "nothing went before");
        let due = now + Duration::from_secs(2);
        assert_eq!(pace.take(5000, now), Err(due));
        assert_eq!(pace.take(5000, now), Err(due), "nothing was booked");
        assert_eq!(pace.take(5000, due), Ok(()));
        let due = due + Duration::from_millis(500);
        assert_eq!(pace.take(1, due - Duration::from_millis(1)), Err(due));
        assert_eq!(pace.take(1, due + Duration::from_secs(60)), Ok(()));
    }

    fn way(
        pace: &Arc<LearnerPace>,
        is_learner: &Arc<AtomicBool>,
    ) -> Way<impl Fn() -> bool + Send + Sync + 'static> {
        let is_learner = is_learner.clone();
        Way {
            pace: pace.clone(),
            is_to_learner: move || is_learner.load(Ordering::Relaxed),
            gain: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_voter_waits_for_nothing_nor_a_learner_that_becomes_one() {
        // Nobody lives to see a second request go at this pace.
        let (pace, is_learner) = (LearnerPace::new(1), Arc::new(AtomicBool::new(false)));
        let requests: Vec<_> = (0..5).map(|_| request(1..1001, 2000)).collect();
        let mut requests = way(&pace, &is_learner).paced(stream::iter(requests));
        for _ in 0..2 {
            assert!(requests.next().now_or_never().is_some(), "a voter");
        }
        is_learner.store(true, Ordering::Relaxed);
        assert!(requests.next().now_or_never().is_some(), "the first");
        let mut next = requests.next();
        assert!((&mut next).now_or_never().is_none(), "its time is far off");
        is_learner.store(false, Ordering::Relaxed);
        assert!(next.await.is_some(), "a voter by now");
        assert!(requests.next().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_stream_that_ends_while_it_waits_leaves_nothing_behind() {
        let (pace, is_learner) = (LearnerPace::new(1000), Arc::new(AtomicBool::new(true)));
        let requests = || stream::iter([request(1..3, 10), request(3..5, 10)]);
        let mut first = way(&pace, &is_learner).paced(requests());
        assert!(first.next().now_or_never().is_some());
        let free_at = *pace.free_at.lock();
        for _ in 0..10 {
            let mut given_up = way(&pace, &is_learner).paced(requests());
            assert!(given_up.next().now_or_never().is_none());
        }
        assert_eq!(*pace.free_at.lock(), free_at);
    }
}
