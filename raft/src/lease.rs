//! A leader's half of reads by lease: reads that ask nobody, while enough voters have promised to help no other
//! node to lead (`promise.rs`).
//!
//! ```text
//!   leader of term 5           voter                        candidate
//!     heartbeat, sent at t ──▶  promises P at r ≥ t
//!     holds until t + 0.8 P ◀─  helps nobody else     ◀──   vote for me in term 6
//!                               until r + P                 (refused, nothing is changed)
//! ```
//!
//! A lease is held while a majority of the voters, this node among them, has promised for longer than now, each
//! counted from when its heartbeat was *sent* and for at most four fifths of what it promised: clocks may run
//! apart by a quarter. Whoever leads next needs the vote of one of that majority, and until then nothing can be
//! acknowledged that this leader does not know.
//!
//! What does *not* count: pulses, which say that a node lives, not that it would refuse its vote in this shard;
//! and openraft's own record of answers, which voters make no promise by (its lease is switched off as good as,
//! see `raft_config.rs`) and forget when they restart.
//!
//! No lease is held
//! - by a leader that hands its leadership over, from before it does: voters let the next one pass then;
//! - while this node's clock cannot be trusted. Spans are measured by the monotonic clock and by the wall clock, and
//!   the longer one counts (`moment.rs`): the first stands still while a machine is suspended, and the second may be
//!   wrong until clocks are compared, about a second later: hosts that pause machines must not use leases.
//!
//! A read without a lease asks its quorum, as all reads do by default, and what the voters answer is the next
//! lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::moment::Moment;
use crate::promise::Pledge;
use crate::pulse::is_quorum;

/// A lease that ends so soon is renewed while it still serves, and at most so often.
const RENEW_BEFORE: u32 = 4;
const RENEW_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Held {
    /// The term of the promises.
    term: u64,
    /// What each voter lets this node count on, and until when.
    promises: BTreeMap<u64, Counted>,
    /// Greatest term in which this node has begun to hand its leadership over.
    ended: u64,
    /// Handings over whose term is not known yet.
    leaving: u32,
    renewed_at: Option<Moment>,
}

#[derive(Clone, Copy)]
struct Counted {
    until: Moment,
    length: Duration,
}

/// One replica's lease, if it leads.
pub(crate) struct Lease {
    node: u64,
    /// The option is on.
    used: bool,
    /// By how much wall clock and monotonic clock may part between two comparisons.
    drift_max: Duration,
    clock: Arc<Clock>,
    held: Mutex<Held>,
}

impl Lease {
    pub(crate) fn new(node: u64, pledge: &Pledge, clock: &Arc<Clock>) -> Arc<Lease> {
        Lease::of(node, pledge.length(), clock.clone())
    }

    fn of(node: u64, length: Option<Duration>, clock: Arc<Clock>) -> Arc<Lease> {
        Arc::new(Lease {
            node,
            used: length.is_some(),
            drift_max: length.unwrap_or_default() / 10,
            clock,
            held: Mutex::default(),
        })
    }

    /// A voter has answered the heartbeat that was sent to it at `sent_at`, and promised.
    pub(crate) fn promised(&self, by: u64, term: u64, sent_at: Moment, length: Duration) {
        if !self.used {
            return;
        }
        let mut held = self.held.lock();
        if term < held.term {
            return;
        }
        if term > held.term {
            held.term = term;
            held.promises.clear();
        }
        let until = sent_at + length * 4 / 5;
        let promise = held.promises.entry(by).or_insert(Counted { until, length });
        // By the monotonic clock alone, which orders them: a wall clock that is set back would keep the old one.
        if promise.until.is_earlier(until) {
            *promise = Counted { until, length };
        }
    }

    /// Whether it is worth looking closer.
    pub(crate) fn may_be_held(&self, now: Moment) -> bool {
        self.used && {
            let held = self.held.lock();
            held.promises
                .values()
                .any(|promise| now.is_before(promise.until))
        }
    }

    /// Whether nobody but this node, which leads in `term`, can have been made leader by `now`.
    pub(crate) fn is_held(&self, term: u64, voters: &[BTreeSet<u64>], now: Moment) -> bool {
        if !self.used || !self.clock.is_steady(self.drift_max) {
            return false;
        }
        let held = self.held.lock();
        if held.leaving > 0 || term <= held.ended || term != held.term {
            return false;
        }
        is_quorum(voters, |voter| {
            let promise = held.promises.get(&voter);
            voter == self.node || promise.is_some_and(|promise| now.is_before(promise.until))
        })
    }

    /// Whether a heartbeat should go out now, so that no read has to wait for it.
    pub(crate) fn wants_renewal(&self, voters: &[BTreeSet<u64>], now: Moment) -> bool {
        let mut held = self.held.lock();
        let is_young =
            |promise: &Counted| (now + promise.length / RENEW_BEFORE).is_before(promise.until);
        let lasts = is_quorum(voters, |voter| {
            voter == self.node || held.promises.get(&voter).is_some_and(is_young)
        });
        if lasts
            || held
                .renewed_at
                .is_some_and(|at| now.is_before(at + RENEW_PAUSE))
        {
            return false;
        }
        held.renewed_at = Some(now);
        true
    }

    /// This node is about to hand its leadership over, in a term that [`Lease::gave_up`] tells.
    pub(crate) fn give_up(&self) {
        self.held.lock().leaving += 1;
    }

    /// After [`Lease::give_up`]: the request is out, in this term or in one before.
    pub(crate) fn gave_up(&self, term: u64) {
        let mut held = self.held.lock();
        held.leaving -= 1;
        held.ended = held.ended.max(term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Duration = Duration::from_secs(10);

    fn lease() -> Arc<Lease> {
        // Alone, so that its clock needs nobody.
        Lease::of(1, Some(P), Arc::new(Clock::new(500, true)))
    }

    fn sets(sets: &[&[u64]]) -> Vec<BTreeSet<u64>> {
        let sets = sets.iter();
        sets.map(|set| set.iter().copied().collect()).collect()
    }

    #[test]
    fn it_counts_four_fifths_of_a_promise_from_when_the_question_was_sent() {
        let (lease, now, voters) = (lease(), Moment::now(), sets(&[&[1, 2, 3]]));
        assert!(!lease.is_held(5, &voters, now), "nobody has promised");
        lease.promised(2, 5, now, P);
        assert!(lease.is_held(5, &voters, now));
        assert!(lease.is_held(5, &voters, now + P * 4 / 5 - Duration::from_millis(1)));
        assert!(!lease.is_held(5, &voters, now + P * 4 / 5));
        // An answer that comes late to a question of before takes nothing back.
        lease.promised(2, 5, now - P, P);
        assert!(lease.is_held(5, &voters, now));
        // A voter that promises for less is counted on for less.
        lease.promised(3, 5, now + P, P / 10);
        assert!(!lease.is_held(5, &voters, now + P + P / 10));
    }

    #[test]
    fn it_ends_while_the_machine_stands_still_and_is_not_held_again_after_a_comparison() {
        let (lease, now, voters) = (lease(), Moment::now(), sets(&[&[1, 2, 3]]));
        lease.promised(2, 5, now, P);
        assert!(lease.is_held(5, &voters, now));
        assert!(!lease.is_held(5, &voters, now.after_a_pause(P)));
        assert!(!lease.may_be_held(now.after_a_pause(P)));
    }

    #[test]
    fn promises_count_in_their_term_only() {
        let (lease, now, voters) = (lease(), Moment::now(), sets(&[&[1, 2, 3]]));
        lease.promised(2, 5, now, P);
        assert!(!lease.is_held(4, &voters, now) && !lease.is_held(6, &voters, now));
        lease.promised(3, 6, now, P);
        assert!(lease.is_held(6, &voters, now));
        // Late, and of a term that is over.
        lease.promised(2, 5, now, P);
        assert!(!lease.is_held(5, &voters, now));
        assert!(lease.is_held(6, &voters, now));
    }

    #[test]
    fn both_sets_of_a_joint_change_must_have_promised_and_learners_do_not_count() {
        let (lease, now) = (lease(), Moment::now());
        lease.promised(2, 5, now, P);
        lease.promised(9, 5, now, P);
        assert!(lease.is_held(5, &sets(&[&[1, 2, 3]]), now));
        assert!(!lease.is_held(5, &sets(&[&[1, 2, 3], &[1, 4, 5]]), now));
        assert!(!lease.is_held(5, &sets(&[&[1, 4, 5]]), now));
        assert!(
            !lease.is_held(5, &sets(&[&[2, 3, 4]]), now),
            "itself no voter"
        );
        lease.promised(4, 5, now, P);
        assert!(lease.is_held(5, &sets(&[&[1, 2, 3], &[1, 4, 5]]), now));
    }

    #[test]
    fn whoever_hands_its_leadership_over_reads_by_lease_no_more_in_that_term() {
        let (lease, now, voters) = (lease(), Moment::now(), sets(&[&[1, 2, 3]]));
        lease.promised(2, 5, now, P);
        lease.give_up();
        assert!(!lease.is_held(5, &voters, now));
        lease.gave_up(5);
        lease.promised(2, 5, now + P, P);
        assert!(!lease.is_held(5, &voters, now + P));
        lease.promised(2, 6, now, P);
        assert!(lease.is_held(6, &voters, now));
    }

    #[test]
    fn a_clock_that_cannot_be_trusted_or_an_option_that_is_off_gives_none() {
        let (now, voters) = (Moment::now(), sets(&[&[1, 2, 3]]));
        let never_compared = Arc::new(Clock::new(500, false));
        for lease in [
            Lease::of(1, Some(P), never_compared),
            Lease::of(1, None, Arc::new(Clock::new(500, true))),
        ] {
            lease.promised(2, 5, now, P);
            assert!(!lease.is_held(5, &voters, now));
        }
    }

    #[test]
    fn it_is_renewed_before_it_ends_and_not_at_every_read() {
        let (lease, now, voters) = (lease(), Moment::now(), sets(&[&[1, 2, 3]]));
        lease.promised(2, 5, now, P);
        assert!(!lease.wants_renewal(&voters, now + P / 2));
        let late = now + P * 6 / 10;
        assert!(lease.wants_renewal(&voters, late));
        assert!(!lease.wants_renewal(&voters, late));
        assert!(lease.wants_renewal(&voters, late + RENEW_PAUSE));
        lease.promised(3, 5, late, P);
        assert!(!lease.wants_renewal(&voters, late + RENEW_PAUSE * 2));
    }
}
