//! When a call is repeated, and after which pause.

use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::ErrorCode;
use tokio::time::Instant;

use crate::options::Timeouts;

/// What an error asks of the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Tell the caller.
    GiveUp,
    /// The same node again, later.
    SameNode,
    /// Whoever leads the shard by now.
    OtherNode,
    /// The shard that the map names by now.
    OtherShard,
}

/// Waiting cannot mend a full disk within a call's life, so that is the caller's to decide.
pub(crate) fn advice(code: ErrorCode) -> Advice {
    match code {
        ErrorCode::Unavailable
        | ErrorCode::NotLeader
        | ErrorCode::ClockSkew
        | ErrorCode::TooStale => Advice::OtherNode,
        ErrorCode::WrongShard => Advice::OtherShard,
        ErrorCode::Retry | ErrorCode::Busy => Advice::SameNode,
        ErrorCode::DiskFull
        | ErrorCode::Unspecified
        | ErrorCode::IdReused
        | ErrorCode::IdExpired
        | ErrorCode::IdFromFuture
        | ErrorCode::Corrupt
        | ErrorCode::BodyTooLarge
        | ErrorCode::UnknownUser
        | ErrorCode::UnknownGroup
        | ErrorCode::NotAMember
        | ErrorCode::HandleTaken
        | ErrorCode::InvalidHandle
        | ErrorCode::GroupFull
        | ErrorCode::AlreadyAMember
        | ErrorCode::Resync
        | ErrorCode::SeqBeyondHead
        | ErrorCode::TooManyGroups
        | ErrorCode::TooManyDevices
        | ErrorCode::Unauthenticated
        | ErrorCode::Forbidden
        | ErrorCode::InvalidArgument
        | ErrorCode::LimitExceeded
        | ErrorCode::WrongCluster
        | ErrorCode::Internal
        | ErrorCode::NodeTaken
        | ErrorCode::NodeRemoved
        | ErrorCode::StaleDisk
        | ErrorCode::UnknownNode
        | ErrorCode::UnknownShard
        | ErrorCode::NodeInUse
        | ErrorCode::StaleEpoch
        | ErrorCode::UnknownDeadLetter
        | ErrorCode::DeadLetterResolved => Advice::GiveUp,
    }
}

/// The pauses of one call, doubling and jittered so that callers do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
    deadline: Instant,
}

impl Backoff {
    pub(crate) fn new(timeouts: &Timeouts, deadline: Instant) -> Self {
        Self {
            next: timeouts.backoff_min,
            max: timeouts.backoff_max,
            deadline,
        }
    }

    /// For what goes on until it is told to stop.
    pub(crate) fn endless(timeouts: &Timeouts) -> Self {
        const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        Self::new(timeouts, Instant::now() + FAR)
    }

    /// Waits before the next attempt; false when there is no time left for one.
    pub(crate) async fn wait(&mut self, error: &CallError) -> bool {
        let pause = self.next_pause(error);
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// Between half of the step and all of it, or what the node asked for if that is longer.
    fn next_pause(&mut self, error: &CallError) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        let jittered = step.mul_f64(rand::random_range(0.5..=1.0));
        jittered.max(Duration::from_millis(u64::from(error.0.retry_after_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        let timeouts = Timeouts {
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(40),
            ..Timeouts::default()
        };
        Backoff::new(&timeouts, Instant::now() + Duration::from_secs(1))
    }

    #[test]
    fn pauses_double_up_to_the_greatest() {
        let mut backoff = backoff();
        let error = CallError::new(ErrorCode::Unavailable, "");
        for step_ms in [10, 20, 40, 40] {
            let pause = backoff.next_pause(&error);
            let step = Duration::from_millis(step_ms);
            assert!(
                pause >= step / 2 && pause <= step,
                "{pause:?} in step {step:?}"
            );
        }
    }

    #[test]
    fn a_node_may_ask_for_a_longer_pause() {
        let mut error = CallError::new(ErrorCode::Busy, "");
        error.0.retry_after_ms = 700;
        assert_eq!(backoff().next_pause(&error), Duration::from_millis(700));
    }

    #[tokio::test]
    async fn gives_up_when_the_pause_would_pass_the_deadline() {
        let mut error = CallError::new(ErrorCode::Busy, "");
        error.0.retry_after_ms = 2000;
        assert!(!backoff().wait(&error).await);
    }

    #[test]
    fn only_retryable_codes_are_repeated() {
        for code in (0..=64).filter_map(|number| ErrorCode::try_from(number).ok()) {
            if advice(code) != Advice::GiveUp {
                assert!(code.is_retryable(), "{}", code.name());
            }
        }
    }
}
