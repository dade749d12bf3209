//! Entries between their proposal and their replies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mailbox_engine::{Refusal, Reply};
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::{Proposer, lost};
use crate::error::ProposeError;
use crate::types::TypeConfig;

pub(super) type Answer = oneshot::Sender<Result<Vec<Reply>, ProposeError>>;

/// The callers of one entry, each with how many of its commands are theirs, in the entry's order.
pub(super) type Callers = Vec<(usize, Answer)>;

/// Who waits for the entries in flight.
#[derive(Default)]
pub(super) struct Flights {
    /// By the flights' numbers.
    callers: BTreeMap<u64, Callers>,
    /// When the last one ended.
    landed_at: Option<Instant>,
}

impl Flights {
    pub(super) fn begin(&mut self, number: u64, callers: Callers) {
        self.callers.insert(number, callers);
    }

    pub(super) fn end(&mut self, number: u64) -> Option<Callers> {
        let callers = self.callers.remove(&number);
        if callers.is_some() {
            self.landed_at = Some(Instant::now());
        }
        callers
    }

    /// Forgets those in flight, and gives who waits for them.
    pub(super) fn take(&mut self) -> Vec<Callers> {
        std::mem::take(&mut self.callers).into_values().collect()
    }

    /// Since when there is none, if ever there was one; `None` while there are any.
    pub(super) fn all_landed(&self) -> Option<Option<Instant>> {
        self.callers.is_empty().then_some(self.landed_at)
    }
}

/// An entry on its way. Dropped without landing when the replica stops: callers then see their channel closed.
pub(super) struct Flight {
    proposer: Arc<Proposer>,
    pub(super) number: u64,
    pub(super) bytes: u64,
    begun: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Flight {
    pub(super) fn new(
        proposer: Arc<Proposer>,
        number: u64,
        permit: OwnedSemaphorePermit,
    ) -> Flight {
        Flight {
            proposer,
            number,
            bytes: 0,
            begun: Instant::now(),
            _permit: permit,
        }
    }

    pub(super) fn land(self, result: ClientWriteResult<TypeConfig>) {
        let Some(answers) = self.proposer.end_flight(self.number) else {
            // Leadership was lost meanwhile, and the callers know.
            return;
        };
        let mut replies = match result {
            Ok(response) => response.data.0.into_iter(),
            Err(error) => {
                let error = self.failed(error);
                for (_, answer) in answers {
                    let _ = answer.send(Err(error.clone()));
                }
                return;
            }
        };
        self.proposer.guards.company.landed(self.begun.elapsed());
        for (commands, answer) in answers {
            let own: Vec<Reply> = replies.by_ref().take(commands).collect();
            let answered = if own.len() == commands {
                Ok(own)
            } else {
                Err(lost("the entry had fewer replies than commands"))
            };
            // A caller that has gone will ask again with the same ids.
            let _ = answer.send(answered);
        }
        match replies.next() {
            // The slot has taken its outbox along, and whoever relays it now hears of the marks again.
            Some(Reply::Refused(refusal @ Refusal::WrongOwner { .. })) => {
                tracing::debug!(%refusal, "acks of lanes came too late");
            }
            Some(Reply::Refused(refusal)) => {
                tracing::error!(%refusal, "acks of lanes were refused");
            }
            _ => {}
        }
    }

    fn failed(&self, error: ClientWriteError<TypeConfig>) -> ProposeError {
        match error {
            // Refused before it was appended.
            ClientWriteError::ForwardToLeader(forward) => {
                self.proposer.guards.road.elsewhere(forward.leader_id)
            }
            other => lost(&other.to_string()),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.proposer.end_flight(self.number);
        self.proposer.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        // What was not worth an entry beside this one may go now.
        self.proposer.wake.notify_one();
    }
}
