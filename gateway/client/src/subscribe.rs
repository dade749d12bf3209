//! Subscriptions: timelines from a seq, then live, across leaders.

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, Message, Timeline, TimelineHead};

/// What a subscription hands over.
#[derive(Debug, Clone, PartialEq)]
pub enum SubscribeEvent {
    /// The next messages of a timeline: contiguous, beginning at the seq after the last one handed
    /// over (or at the `from_seq` asked for).
    Batch {
        /// Whose messages.
        timeline: Timeline,
        /// In seq order, never empty.
        messages: Vec<Message>,
    },
    /// Heads as the leader saw them; the rows up to them may still be on their way.
    Heads(Vec<TimelineHead>),
    /// A timeline's subscription ended for good, for a reason that a repeat would not mend.
    Ended {
        /// Whose subscription.
        timeline: Timeline,
        /// Why.
        error: CallError,
    },
}

/// Adds and removes the timelines of one subscription; dropping the last clone ends it.
#[derive(Debug, Clone)]
pub struct SubscribeHandle {}

impl SubscribeHandle {
    /// Subscribes to a timeline from `from_seq` (inclusive, from 1); 0 = only what is appended from
    /// now on. A timeline that is there already starts anew at `from_seq`.
    ///
    /// # Errors
    /// `LimitExceeded` when the subscription holds its greatest number of timelines.
    pub fn add(&self, timeline: Timeline, from_seq: u64) -> Result<(), CallError> {
        let _ = (timeline, from_seq);
        Err(CallError::new(
            ErrorCode::Unavailable,
            "subscriptions are not served yet",
        ))
    }

    /// Ends a timeline's subscription; events already queued may still arrive.
    pub fn remove(&self, timeline: Timeline) {
        let _ = timeline;
    }
}
