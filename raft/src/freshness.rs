//! How stale the rows of a replica may be, and how it knows.
//!
//! ```text
//!   replica                               leader
//!     asks at t: how far must I be? ──▶     passes a read barrier
//!     has applied up to i           ◀──     all that was acknowledged before is in the rows up to index i
//!     from now on: what is not here was acknowledged after t
//! ```
//!
//! The question is asked only when a read's bound does not reach back to the last one, and reads that come
//! meanwhile share it: a shard that is read with a bound of a second costs its leader one barrier a second for each
//! replica, however much is read. Nobody's clock is compared with another's: `t` is this node's own. A leader that
//! was deposed passes no barrier, so it vouches for nothing; what a leader says of its commits by the way (in
//! appends, or a pulse) shows no more than that it once led.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::clock::Clock;
use crate::error::ProposeError;
use crate::moment::Moment;
use crate::peers::Peers;
use crate::read_barrier::ReadBarrier;
use crate::status::Leadership;
use crate::types::LogId;

/// Reads of one replica that may wait for an answer.
const READS_MAX: usize = 65_536;
/// Questions of a node that are under way at once, of all its replicas: they travel with pulses and votes.
const QUESTIONS_MAX: usize = 64;
/// By so much a wall clock may part from the monotonic one between comparisons, at least.
const DRIFT_MIN: Duration = Duration::from_millis(10);

/// Bounds the questions of a node.
pub(crate) fn questions() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(QUESTIONS_MAX))
}

/// What a replica's rows are known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    since: Moment,
    /// The replica leads: its rows were whole when the read came.
    pub by_leader: bool,
}

impl Fresh {
    /// All that was acknowledged longer ago than this is in the rows. Grows with time, so ask once they were read.
    pub fn age(&self) -> Duration {
        match self.by_leader {
            true => Duration::ZERO,
            false => self.since.elapsed(),
        }
    }
}

#[derive(Clone, Copy)]
struct Known {
    asked_at: Moment,
    index: u64,
}

/// What a [`Freshness`] is made of.
pub(crate) struct Sources {
    pub(crate) shard: u32,
    pub(crate) clock: Arc<Clock>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) barrier: ReadBarrier,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) applied: watch::Receiver<Option<LogId>>,
    /// How long the leader may take to answer, and apply to come so far.
    pub(crate) patience: Duration,
    pub(crate) questions: Arc<Semaphore>,
}

/// One replica's knowledge of how fresh it is.
pub(crate) struct Freshness {
    of: Sources,
    waiting: Semaphore,
    turns: Turns,
    known: Mutex<Option<Known>>,
}

/// One question at a time, for all reads that wait meanwhile: what it finds is theirs too, and so is its failure.
/// Else they would wait as long again, one after the other.
#[derive(Default)]
struct Turns {
    /// Held by the read that asks; what the last question failed with, if it has.
    asking: tokio::sync::Mutex<Option<ProposeError>>,
    /// Questions that have come to their end.
    asked: AtomicU64,
}

impl Turns {
    async fn one_for_all<T>(
        &self,
        known: impl Fn() -> Option<T>,
        ask: impl AsyncFnOnce() -> Result<T, ProposeError>,
    ) -> Result<T, ProposeError> {
        let asked = self.asked.load(Ordering::Acquire);
        let mut failed = self.asking.lock().await;
        // Others may have asked while this read waited for its turn.
        if let Some(known) = known() {
            return Ok(known);
        }
        if let Some(error) = failed.as_ref()
            && self.asked.load(Ordering::Acquire) != asked
        {
            return Err(error.clone());
        }
        let learnt = ask().await;
        *failed = learnt.as_ref().err().cloned();
        self.asked.fetch_add(1, Ordering::Release);
        learnt
    }
}

fn unavailable(reason: String) -> ProposeError {
    ProposeError::Unavailable { reason }
}

impl Freshness {
    pub(crate) fn new(of: Sources) -> Freshness {
        Freshness {
            of,
            waiting: Semaphore::new(READS_MAX),
            turns: Turns::default(),
            known: Mutex::default(),
        }
    }

    /// Makes sure that the rows here lack nothing that was acknowledged longer than `bound` ago.
    pub(crate) async fn within(&self, bound: Duration) -> Result<Fresh, ProposeError> {
        if matches!(*self.of.leadership.borrow(), Leadership::Leader { .. }) {
            self.of.barrier.pass().await?;
            return Ok(Fresh {
                since: Moment::now(),
                by_leader: true,
            });
        }
        let since = match self.known_within(bound) {
            Some(since) => since,
            None => self.learn(bound).await?,
        };
        self.of.barrier.tally.count_stale();
        Ok(Fresh {
            since,
            by_leader: false,
        })
    }

    fn known_within(&self, bound: Duration) -> Option<Moment> {
        let known = (*self.known.lock())?;
        // What was learnt is true for ever, but how long ago it was is only as good as the clocks.
        let reaches =
            known.asked_at.elapsed() < bound && self.of.clock.is_steady(DRIFT_MIN.max(bound / 10));
        let applied = *self.of.applied.borrow();
        // An install may have taken the place of what was applied then; it never goes back.
        let holds = applied.is_some_and(|id| id.index >= known.index);
        (reaches && holds).then_some(known.asked_at)
    }

    async fn learn(&self, bound: Duration) -> Result<Moment, ProposeError> {
        let limit = READS_MAX as u64;
        let _room = self.waiting.try_acquire().map_err(|_| ProposeError::Busy {
            queued_bytes: limit,
            limit,
        })?;
        let known = || self.known_within(bound);
        self.turns
            .one_for_all(known, async || {
                let known = self.ask_in_time().await?;
                *self.known.lock() = Some(known);
                Ok(known.asked_at)
            })
            .await
    }

    async fn ask_in_time(&self) -> Result<Known, ProposeError> {
        let learnt = tokio::time::timeout(self.of.patience, self.ask()).await;
        learnt.unwrap_or_else(|_| {
            let patience = self.of.patience;
            Err(unavailable(format!(
                "it was not known within {patience:?} how far the leader is, or this replica is not as far"
            )))
        })
    }

    async fn ask(&self) -> Result<Known, ProposeError> {
        let leader = match &*self.of.leadership.borrow() {
            Leadership::Follower { leader, .. } => leader.as_ref().map(|leader| leader.node),
            // Since a moment; the next read passes a barrier.
            Leadership::Leader { .. } => None,
        };
        let link = leader.and_then(|leader| self.of.peers.link(leader));
        let link = link.ok_or_else(|| unavailable("no leader is known".to_owned()))?;
        let room = self.of.questions.acquire().await;
        let asked_at = Moment::now();
        let ask = Ask::ReadIndex(peer::ReadIndex {
            shard: self.of.shard,
        });
        let answer = link.call(ask, self.of.patience).await;
        drop(room);
        let index = match answer {
            Ok(Answer::ReadIndex(answer)) => answer.index,
            Ok(other) => return Err(unavailable(format!("unexpected answer {other:?}"))),
            Err(reason) => return Err(unavailable(reason)),
        };
        let mut applied = self.of.applied.clone();
        let reached = applied.wait_for(|applied| applied.is_some_and(|id| id.index >= index));
        let reached = reached.await.map(|_| ());
        reached.map_err(|_| unavailable("the replica has stopped".to_owned()))?;
        Ok(Known { asked_at, index })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn reads_that_wait_share_a_failure_and_later_ones_ask_again() {
        let turns = Turns::default();
        let asked = Cell::new(0);
        let (fail, failure) = oneshot::channel::<()>();
        let failure = failure.shared();
        let read = || {
            turns.one_for_all(
                || None::<()>,
                async || {
                    asked.set(asked.get() + 1);
                    let _ = failure.clone().await;
                    Err(unavailable("silent".to_owned()))
                },
            )
        };
        let mut reads = Box::pin(join_all((0..5).map(|_| read())));
        assert!(reads.as_mut().now_or_never().is_none());
        fail.send(()).unwrap();
        assert!(reads.await.iter().all(Result::is_err));
        assert_eq!(asked.get(), 1);
        assert!(read().await.is_err());
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test]
    async fn what_one_read_learns_serves_those_that_waited() {
        let (turns, asked, found) = (Turns::default(), Cell::new(0), Cell::new(None));
        let read = || {
            turns.one_for_all(
                || found.get(),
                async || {
                    asked.set(asked.get() + 1);
                    tokio::task::yield_now().await;
                    found.set(Some(7));
                    Ok(7)
                },
            )
        };
        let answers = join_all((0..5).map(|_| read())).await;
        assert!(answers.iter().all(|answer| *answer.as_ref().unwrap() == 7));
        assert_eq!(asked.get(), 1);
    }
}
