//! What a read is sure of, by what it asked for.
//!
//! | asked for | answered by | lacks |
//! |---|---|---|
//! | nothing | the leader, behind a read barrier or by its lease | nothing that was acknowledged before the call |
//! | `max_staleness_ms` | any replica that can show it, else the leader | nothing acknowledged longer than that before the answer |
//! | `stale` | the replica asked | whatever it lacks; for tools that look at one replica |
//!
//! A replica that keeps the bound may still be behind its caller, who has read a fresher one: a seq that the caller
//! holds and this replica does not have yet must not look like one that never was. So must a *no* that only these
//! rows give (no member of the group: not yet?). Both are the leader's to answer.

use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{Error as Refusal, ErrorCode};
use mailbox_engine::{Error, Seq, ShardId, TimelineId};
use mailbox_raft::{Fresh, ProposeError, Shard};

use crate::convert;
use crate::core::Core;
use crate::status;

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Linearizable,
    /// At most so stale.
    Within(Duration),
    /// What this replica has.
    Unbounded,
}

impl Consistency {
    /// From a request's fields.
    pub(crate) fn of(stale: bool, max_staleness_ms: Option<u32>) -> Result<Self, CallError> {
        match (stale, max_staleness_ms) {
            (false, None) => Ok(Self::Linearizable),
            (true, None) => Ok(Self::Unbounded),
            (true, Some(_)) => Err(convert::invalid(
                "stale and max_staleness_ms do not go together: one has no bound",
            )),
            (false, Some(0)) => Err(convert::invalid(
                "max_staleness_ms is 0: at least 1, or leave it out for a linearizable read",
            )),
            (false, Some(ms)) => Ok(Self::Within(Duration::from_millis(ms.into()))),
        }
    }
}

/// What the rows of a replica are known to hold when they are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sure {
    /// With the bound that was asked for.
    fresh: Option<(Fresh, Duration)>,
}

impl Core {
    /// Waits until the rows here are what the caller wants.
    pub(crate) async fn make_sure(
        &self,
        shard: &Shard,
        consistency: Consistency,
    ) -> Result<Sure, CallError> {
        let fresh = match consistency {
            #[cfg(feature = "planted")]
            Consistency::Linearizable if mailbox_planted::is("read-without-barrier") => None,
            Consistency::Linearizable => {
                self.barrier(shard).await?;
                None
            }
            Consistency::Unbounded => None,
            Consistency::Within(bound) => {
                let fresh = shard.fresh_within(bound).await;
                let fresh = fresh.map_err(|error| cannot_show(shard.id(), bound, error))?;
                Some((fresh, bound))
            }
        };
        Ok(Sure { fresh })
    }
}

fn cannot_show(shard: ShardId, bound: Duration, error: ProposeError) -> CallError {
    if matches!(error, ProposeError::Busy { .. }) {
        return status::propose(shard.0, error);
    }
    let ms = bound.as_millis();
    too_stale(format!(
        "this replica of shard {shard} cannot show that its rows are at most {ms} ms old: {error}"
    ))
}

fn too_stale(message: String) -> CallError {
    CallError(Refusal {
        code: ErrorCode::TooStale as i32,
        message,
        ..Refusal::default()
    })
}

impl Sure {
    /// The rows are those of a replica that does not lead, and may be behind.
    fn may_be_behind(&self) -> bool {
        self.fresh.is_some_and(|(fresh, _)| !fresh.by_leader)
    }

    /// Checks what is asked for against the rows. From rows that may be behind, neither a seq that is not there yet
    /// nor a *no* is an answer.
    pub(crate) fn checked<T>(
        &self,
        engine: &mailbox_engine::Shard,
        asked: Vec<(TimelineId, Seq)>,
        check: impl FnOnce(Vec<(TimelineId, Seq)>) -> Result<Result<T, CallError>, Error>,
    ) -> Result<Result<T, CallError>, Error> {
        if !self.may_be_behind() {
            return check(asked);
        }
        for (timeline, after) in &asked {
            let head = match self.judged(engine.head(*timeline))? {
                Ok(head) => head,
                Err(error) => return Ok(Err(error)),
            };
            if *after > head {
                return Ok(Err(too_stale(format!(
                    "this replica has {timeline} up to seq {head}, the caller up to {after}"
                ))));
            }
        }
        let checked = self.judged(check(asked))?;
        let checked = checked.and_then(|checked| checked);
        Ok(checked.map_err(|error| too_stale(error.to_string())))
    }

    /// A slot that is not here is no answer from rows that may be behind: whoever leads knows better.
    pub(crate) fn judged<T>(&self, read: Result<T, Error>) -> Result<Result<T, CallError>, Error> {
        match read {
            Err(error) if self.may_be_behind() && status::is_elsewhere(&error) => {
                Ok(Err(too_stale(error.to_string())))
            }
            read => read.map(Ok),
        }
    }

    /// For what is not asked for by name: from a slot that is not here just now comes `unknown`, from rows that may be
    /// behind still the error, to be judged.
    pub(crate) fn known_or<T>(&self, read: Result<T, Error>, unknown: T) -> Result<T, Error> {
        known_or(self.may_be_behind(), read, unknown)
    }

    /// How stale what has just been read is at most, if a bound was asked for; an error if that is more.
    pub(crate) fn staleness_ms(
        &self,
        engine: &mailbox_engine::Shard,
    ) -> Result<Option<u32>, CallError> {
        let Some((fresh, bound)) = self.fresh else {
            return Ok(None);
        };
        let age = fresh.age();
        if age > bound {
            return Err(too_stale(format!(
                "reading shard {} took too long: its rows are {} ms old by now",
                engine.id(),
                age.as_millis()
            )));
        }
        // Rounded up: 0 is what a leader says.
        let ms = age.as_micros().div_ceil(1000);
        Ok(Some(u32::try_from(ms).unwrap_or(u32::MAX)))
    }
}

fn known_or<T>(may_be_behind: bool, read: Result<T, Error>, unknown: T) -> Result<T, Error> {
    match read {
        Err(error) if !may_be_behind && status::is_elsewhere(&error) => Ok(unknown),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::SlotId;

    use super::*;

    fn frozen() -> Error {
        Error::WrongOwner {
            slot: SlotId(3),
            shard: ShardId(2),
            epoch: 9,
        }
    }

    #[test]
    fn a_slot_on_the_move_is_unknown_but_not_to_a_replica_that_may_be_behind() {
        let dropped = || Error::UnknownSlot { slot: SlotId(3) };
        for error in [frozen(), dropped()] {
            let read = known_or(false, Err(error), Seq::ZERO);
            assert_eq!(read.expect("unknown"), Seq::ZERO);
        }
        for error in [frozen(), dropped()] {
            let read = known_or(true, Err(error), Seq::ZERO);
            assert!(status::is_elsewhere(&read.expect_err("to be judged")));
        }
        let leader = Sure { fresh: None };
        let read = leader.known_or(Err(frozen()), Seq(1));
        assert_eq!(read.expect("unknown"), Seq(1));
        assert_eq!(leader.known_or(Ok(Seq(5)), Seq(1)).expect("read"), Seq(5));
        let fault = Error::UnknownShard { shard: ShardId(2) };
        assert!(leader.known_or(Err(fault), Seq::ZERO).is_err());
    }

    #[test]
    fn a_bound_is_named_and_cannot_be_nothing() {
        let within = |ms| Consistency::Within(Duration::from_millis(ms));
        let of = |stale, bound| Consistency::of(stale, bound).ok();
        assert_eq!(of(false, None), Some(Consistency::Linearizable));
        assert_eq!(of(true, None), Some(Consistency::Unbounded));
        assert_eq!(of(false, Some(1)), Some(within(1)));
        for (stale, bound) in [(false, Some(0)), (true, Some(5)), (true, Some(0))] {
            let refused = Consistency::of(stale, bound).unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidArgument);
        }
    }
}
