//! Sends on their way: who waits for which tag.

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, SendResponse};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Code, Status};

/// How one attempt ended.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) error: CallError,
    /// What became of the node, unless it answered.
    pub(crate) broken: Option<Break>,
}

/// How a node failed a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// It could not be reached, or ended the connection.
    Gone,
    /// It did not answer.
    Silent,
}

impl Failure {
    /// A node's own error travels in the status's details; a status without them comes from the
    /// connection (however HTTP/2 words its end) or from something between, and unless it says no
    /// to the caller, another node may do better.
    pub(crate) fn from_status(status: &Status) -> Self {
        let error = CallError::from_status(status);
        if !status.details().is_empty() {
            return Self {
                error,
                broken: None,
            };
        }
        match status.code() {
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => {
                let error = CallError::new(ErrorCode::Unavailable, error.0.message);
                Self {
                    error,
                    broken: Some(Break::Gone),
                }
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self {
                error,
                broken: None,
            },
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self {
            error,
            broken: None,
        }
    }
}

pub(crate) type Answer = oneshot::Sender<Result<SendResponse, Failure>>;

/// A slab of waiting senders. A tag is `serial << 32 | slot`: slots are used again, tags are not, so
/// that an answer that comes after its send was given up never meets another send.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
    serial: u32,
}

#[derive(Debug)]
struct Slot {
    tag: u64,
    waiting: Option<(Instant, Answer)>,
}

impl Pending {
    pub(crate) fn insert(&mut self, deadline: Instant, answer: Answer) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        let index = self
            .free
            .pop()
            .unwrap_or(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let tag = u64::from(self.serial) << 32 | u64::from(index);
        let slot = Slot {
            tag,
            waiting: Some((deadline, answer)),
        };
        match self.slots.get_mut(index as usize) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        tag
    }

    pub(crate) fn remove(&mut self, tag: u64) -> Option<Answer> {
        let index = tag as u32;
        let slot = self
            .slots
            .get_mut(index as usize)
            .filter(|slot| slot.tag == tag)?;
        let (_, answer) = slot.waiting.take()?;
        self.free.push(index);
        Some(answer)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Takes out whoever waits no longer.
    pub(crate) fn remove_expired(&mut self, now: Instant) -> Vec<Answer> {
        let mut expired = Vec::new();
        for (index, slot) in (0_u32..).zip(&mut self.slots) {
            if slot
                .waiting
                .as_ref()
                .is_some_and(|(deadline, _)| *deadline <= now)
                && let Some((_, answer)) = slot.waiting.take()
            {
                self.free.push(index);
                expired.push(answer);
            }
        }
        expired
    }

    pub(crate) fn remove_all(&mut self) -> Vec<Answer> {
        self.free.clear();
        let slots = self.slots.drain(..);
        slots
            .filter_map(|slot| slot.waiting.map(|(_, answer)| answer))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_late_answer_never_meets_the_next_user_of_its_slot() {
        let mut pending = Pending::default();
        let now = Instant::now();
        let (first, _first) = oneshot::channel();
        let (second, _second) = oneshot::channel();
        let first_tag = pending.insert(now, first);
        assert_eq!(pending.remove_expired(now).len(), 1);
        let second_tag = pending.insert(now, second);
        assert_eq!(
            first_tag as u32, second_tag as u32,
            "the slot is used again"
        );
        assert!(pending.remove(first_tag).is_none());
        assert!(pending.remove(second_tag).is_some());
        assert!(pending.remove(second_tag).is_none(), "an answer comes once");
        assert!(pending.is_empty());
    }

    #[test]
    fn a_connection_that_breaks_is_no_refusal() {
        let failure = Failure::from_status(&Status::internal("h2 protocol error"));
        assert_eq!(failure.broken, Some(Break::Gone));
        assert_eq!(failure.error.code(), ErrorCode::Unavailable);
        let refusal = CallError::new(ErrorCode::Internal, "the node's own").to_status();
        let failure = Failure::from_status(&refusal);
        assert_eq!(failure.broken, None);
        assert_eq!(failure.error.code(), ErrorCode::Internal);
    }

    #[test]
    fn only_the_expired_are_taken_out() {
        let mut pending = Pending::default();
        let now = Instant::now();
        for seconds in [0, 10] {
            let (answer, _waits) = oneshot::channel();
            pending.insert(now + Duration::from_secs(seconds), answer);
        }
        assert_eq!(pending.remove_expired(now).len(), 1);
        assert!(!pending.is_empty());
        assert_eq!(pending.remove_all().len(), 1);
        assert!(pending.is_empty());
    }
}
