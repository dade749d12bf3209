//! The point after which a leader's read is linearizable.
//!
//! One barrier at a time. A read joins only a barrier that has not begun: a barrier that has may have asked
//! its quorum before the read's writes were acknowledged.

use std::time::Duration;

use openraft::LinearizerOption;
use openraft::error::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::error::ProposeError;
use crate::replica::{Raft, Road};
use crate::types::{LogId, TypeConfig};

type Waiter = oneshot::Sender<Result<(), ProposeError>>;

/// Reads that may wait for a barrier.
const READS_MAX: usize = 65_536;

/// Pause before a question that no majority answered is asked again.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where reads queue.
#[derive(Clone)]
pub(crate) struct ReadBarrier {
    reads: mpsc::Sender<Waiter>,
}

impl ReadBarrier {
    /// `timeout` bounds one barrier. Its question is asked again twice within it.
    pub(crate) fn spawn(
        raft: Raft,
        applied: watch::Receiver<Option<LogId>>,
        road: Road,
        timeout: Duration,
    ) -> (ReadBarrier, JoinHandle<()>) {
        let (reads, queue) = mpsc::channel(READS_MAX);
        let task = tokio::spawn(run(queue, raft, applied, road, timeout));
        (ReadBarrier { reads }, task)
    }

    pub(crate) async fn pass(&self) -> Result<(), ProposeError> {
        let (waiter, passed) = oneshot::channel();
        let limit = READS_MAX as u64;
        self.reads.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy {
                queued_bytes: limit,
                limit,
            },
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        passed.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> ProposeError {
    ProposeError::Unavailable {
        reason: "the replica has stopped".to_owned(),
    }
}

async fn run(
    mut queue: mpsc::Receiver<Waiter>,
    raft: Raft,
    mut applied: watch::Receiver<Option<LogId>>,
    road: Road,
    timeout: Duration,
) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, READS_MAX).await > 0 {
        let barrier = barrier(&raft, &mut applied, &road, timeout / 3);
        let passed = tokio::time::timeout(timeout, barrier).await;
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

async fn barrier(
    raft: &Raft,
    applied: &mut watch::Receiver<Option<LogId>>,
    road: &Road,
    patience: Duration,
) -> Result<(), ProposeError> {
    let question = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(patience);
    let linearizer = loop {
        match raft.get_read_linearizer(question.clone()).await {
            Ok(linearizer) => break linearizer,
            // What was lost on the way nobody sends again by itself. The caller's timeout ends this; a
            // peer that is not there says so at once, hence the pause.
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                tokio::time::sleep(ASKED_AGAIN_AFTER).await;
            }
            Err(error) => return Err(refused(error, road)),
        }
    };
    let read = linearizer.read_log_id().index();
    // Our own index, not openraft's: it counts once readers see the rows.
    let reached = applied
        .wait_for(|applied| applied.is_some_and(|id| id.index >= read))
        .await;
    reached.map(|_| ()).map_err(|_| stopped())
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
