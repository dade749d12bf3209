//! The point after which a leader's read is linearizable.
//!
//! One barrier at a time. A read joins only a barrier that has not begun: a barrier that has may have asked
//! its quorum before the read's writes were acknowledged.
//!
//! A barrier asks a majority whether this node still leads, unless the leader holds a lease (`lease.rs`): then it
//! is passed at once. What it has to wait for is the same: the rows of all that was acknowledged before it began.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::LinearizerOption;
use openraft::error::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::error::ProposeError;
use crate::lease::Lease;
use crate::moment::Moment;
use crate::replica::{Raft, Road};
use crate::status::ReadCounts;
use crate::types::{LogId, TypeConfig};

/// What a barrier has shown: all that was acknowledged before it began is in the rows up to this index, and those
/// are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) index: u64,
    /// Nobody was asked.
    pub(crate) by_lease: bool,
}

type Answer = Result<Passed, ProposeError>;
type Waiter = oneshot::Sender<Answer>;

/// Reads that may wait for a barrier.
const READS_MAX: usize = 65_536;

/// Pause before a question that no majority answered is asked again.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How the reads of a replica were made linearizable, or not.
#[derive(Default)]
pub(crate) struct ReadTally {
    barrier: AtomicU64,
    lease: AtomicU64,
    stale: AtomicU64,
}

impl ReadTally {
    pub(crate) fn count_stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> ReadCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReadCounts {
            barrier: read(&self.barrier),
            lease: read(&self.lease),
            stale: read(&self.stale),
        }
    }
}

/// Where reads queue.
#[derive(Clone)]
pub(crate) struct ReadBarrier {
    reads: mpsc::Sender<Waiter>,
    pub(crate) tally: Arc<ReadTally>,
}

/// What a barrier needs.
pub(crate) struct Ground {
    pub(crate) raft: Raft,
    pub(crate) applied: watch::Receiver<Option<LogId>>,
    pub(crate) road: Road,
    pub(crate) lease: Arc<Lease>,
}

impl ReadBarrier {
    /// `timeout` bounds one barrier. Its question is asked again twice within it.
    pub(crate) fn spawn(ground: Ground, timeout: Duration) -> (ReadBarrier, JoinHandle<()>) {
        let (barrier, queue) = ReadBarrier::new();
        let task = tokio::spawn(run(queue, timeout, ground, async move |ground| {
            ground.pass(timeout / 3).await
        }));
        (barrier, task)
    }

    fn new() -> (ReadBarrier, mpsc::Receiver<Waiter>) {
        let (reads, queue) = mpsc::channel(READS_MAX);
        let tally = Arc::default();
        (ReadBarrier { reads, tally }, queue)
    }

    pub(crate) async fn pass(&self) -> Answer {
        let (waiter, passed) = oneshot::channel();
        let limit = READS_MAX as u64;
        self.reads.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy {
                queued_bytes: limit,
                limit,
            },
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        let passed = passed.await.unwrap_or_else(|_| Err(stopped()))?;
        let counter = match passed.by_lease {
            true => &self.tally.lease,
            false => &self.tally.barrier,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(passed)
    }
}

fn stopped() -> ProposeError {
    ProposeError::Unavailable {
        reason: "the replica has stopped".to_owned(),
    }
}

/// One barrier after the other, each for all reads that had come before it began.
async fn run<G>(
    mut queue: mpsc::Receiver<Waiter>,
    timeout: Duration,
    mut ground: G,
    barrier: impl AsyncFn(&mut G) -> Answer,
) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, READS_MAX).await > 0 {
        let passed = tokio::time::timeout(timeout, barrier(&mut ground)).await;
        let passed = passed.unwrap_or_else(|_| {
            Err(ProposeError::Unavailable {
                reason: format!("no majority answered within {timeout:?}"),
            })
        });
        for waiter in waiters.drain(..) {
            // A reader that has gone needs no answer.
            let _ = waiter.send(passed.clone());
        }
    }
}

impl Ground {
    async fn pass(&mut self, patience: Duration) -> Answer {
        let by_lease = self.by_lease(patience).await?;
        let (index, by_lease) = match by_lease {
            Some(index) => (index, true),
            None => (self.by_quorum(patience).await?, false),
        };
        // Our own index, not openraft's: it counts once readers see the rows.
        let reached = self
            .applied
            .wait_for(|applied| applied.is_some_and(|id| id.index >= index));
        let reached = reached.await.map(|_| ()).map_err(|_| stopped());
        reached.map(|()| Passed { index, by_lease })
    }

    async fn by_quorum(&self, patience: Duration) -> Result<u64, ProposeError> {
        let question =
            LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(patience);
        loop {
            match self.raft.get_read_linearizer(question.clone()).await {
                Ok(linearizer) => return Ok(linearizer.read_log_id().index()),
                // What was lost on the way nobody sends again by itself. The caller's timeout ends this; a
                // peer that is not there says so at once, hence the pause.
                Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                    tokio::time::sleep(ASKED_AGAIN_AFTER).await;
                }
                Err(error) => return Err(refused(error, &self.road)),
            }
        }
    }

    /// What was committed when this node was found to hold its lease; `None` if it does not.
    async fn by_lease(&self, patience: Duration) -> Result<Option<u64>, ProposeError> {
        if !self.lease.may_be_held(Moment::now()) {
            return Ok(None);
        }
        // openraft says that this node leads, and has not voted for another one since. The age is that of answers,
        // which says little (see `lease.rs`), but has it answer at once: what was promised was answered.
        let question = LinearizerOption::new(None, true).with_wait_timeout(patience);
        let linearizer = match self.raft.get_read_linearizer(question).await {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => return Ok(None),
            Err(error) => return Err(refused(error, &self.road)),
        };
        let read = linearizer.read_log_id();
        let state = self.raft.with_raft_state(|state| {
            let membership = state.membership_state.effective().membership();
            (*state.vote_ref(), membership.get_joint_config().clone())
        });
        let (vote, voters) = state.await.map_err(|error| ProposeError::Unavailable {
            reason: error.to_string(),
        })?;
        // It has led in one term all the while; what was committed at the first of these questions is enough if
        // the lease is held at a later moment.
        let (term, now) = (vote.leader_id.term, Moment::now());
        if read.committed_leader_id().term != term || !self.lease.is_held(term, &voters, now) {
            return Ok(None);
        }
        if self.lease.wants_renewal(&voters, now) {
            // A replica that stops renews nothing.
            let _ = self.raft.trigger().heartbeat().await;
        }
        Ok(Some(read.index()))
    }
}

fn refused(
    error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    road: &Road,
) -> ProposeError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            road.elsewhere(forward.leader_id)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(error)) => {
            ProposeError::Unavailable {
                reason: error.to_string(),
            }
        }
        RaftError::Fatal(error) => ProposeError::Unavailable {
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Barriers that end when the test says so: each tells that it has begun, and waits.
    type Begun = oneshot::Sender<u64>;

    fn start() -> (ReadBarrier, mpsc::Receiver<Begun>) {
        let (barrier, queue) = ReadBarrier::new();
        let (begins, begun) = mpsc::channel(8);
        tokio::spawn(run(queue, Duration::MAX, begins, async |begins| {
            let (end, ended) = oneshot::channel();
            begins.send(end).await.unwrap();
            let index = ended.await.unwrap();
            let by_lease = false;
            Ok(Passed { index, by_lease })
        }));
        (barrier, begun)
    }

    #[tokio::test]
    async fn a_read_joins_only_a_barrier_that_has_not_begun() {
        let (barrier, mut begun) = start();
        let mut first = Box::pin(barrier.pass());
        assert!(first.as_mut().now_or_never().is_none());
        let end_first = begun.recv().await.unwrap();
        // These come while the first barrier is under way.
        let mut later: Vec<_> = (0..3).map(|_| Box::pin(barrier.pass())).collect();
        for read in &mut later {
            assert!(read.as_mut().now_or_never().is_none());
        }
        end_first.send(7).unwrap();
        assert_eq!(first.await.unwrap().index, 7);
        let end_second = tokio::select! {
            begins = begun.recv() => begins.unwrap(),
            _ = &mut later[0] => panic!("passed by a barrier that had begun before it"),
        };
        for read in &mut later {
            assert!(
                read.as_mut().now_or_never().is_none(),
                "passed by a barrier that had begun before it"
            );
        }
        // All of them pass by the same one.
        end_second.send(8).unwrap();
        for read in later {
            assert_eq!(read.await.unwrap().index, 8);
        }
        assert!(begun.try_recv().is_err());
        assert_eq!(barrier.tally.counts().barrier, 4);
    }
}
