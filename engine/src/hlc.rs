//! The hybrid logical clock that message ids are read from.

use crate::id::MessageId;

/// The clock of one shard's proposer. It never gives the same id twice and never goes back.
#[derive(Clone, Debug)]
pub struct Hlc {
    last: MessageId,
    skew_max_ms: u64,
}

impl Hlc {
    /// Starts above the shard's last message id: the one that apply has after the first entry of
    /// the leader's own term. `skew_max_ms` is the cluster's `clock_skew_max`.
    pub fn new(last: MessageId, skew_max_ms: u64) -> Hlc {
        Hlc { last, skew_max_ms }
    }

    /// The next id: above all before, not behind the clock, and above what the sender was shown
    /// as far as honest clocks explain it (twice `clock_skew_max` ahead).
    pub fn next(&mut self, clock_ms: u64, shown: MessageId) -> MessageId {
        let own = (self.last.0 + 1).max(clock_ms << 16);
        let credible = (clock_ms + 2 * self.skew_max_ms) << 16;
        let id = own.max(shown.0.saturating_add(1).min(credible));
        self.last = MessageId(id);
        self.last
    }

    /// Goes on above an id that the shard has taken over, with a slot that moved in.
    pub fn raise(&mut self, last: MessageId) {
        self.last = self.last.max(last);
    }

    /// The greatest id given so far.
    pub fn last(&self) -> MessageId {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_while_the_clock_stands_or_goes_back() {
        let mut hlc = Hlc::new(MessageId::ZERO, 500);
        let first = hlc.next(1000, MessageId::ZERO);
        assert_eq!(first, MessageId(1000 << 16));
        assert_eq!(hlc.next(1000, MessageId::ZERO), MessageId(first.0 + 1));
        assert_eq!(hlc.next(900, MessageId::ZERO), MessageId(first.0 + 2));
    }

    #[test]
    fn ids_go_on_above_those_of_a_slot_that_moved_in() {
        let mut hlc = Hlc::new(MessageId(1000 << 16), 500);
        hlc.raise(MessageId((3000 << 16) + 7));
        assert_eq!(hlc.next(1000, MessageId::ZERO), MessageId((3000 << 16) + 8));
        hlc.raise(MessageId(5));
        assert_eq!(hlc.next(1000, MessageId::ZERO), MessageId((3000 << 16) + 9));
    }

    #[test]
    fn a_full_counter_runs_over_into_the_next_millisecond() {
        let mut hlc = Hlc::new(MessageId((1000 << 16) + 0xFFFF), 500);
        assert_eq!(hlc.next(1000, MessageId::ZERO), MessageId(1001 << 16));
    }

    #[test]
    fn what_was_shown_is_passed_but_a_lie_is_capped() {
        let mut hlc = Hlc::new(MessageId::ZERO, 500);
        let shown = MessageId(1400 << 16);
        assert_eq!(hlc.next(1000, shown), MessageId(shown.0 + 1));
        let mut hlc = Hlc::new(MessageId::ZERO, 500);
        assert_eq!(hlc.next(1000, MessageId(u64::MAX)), MessageId(2000 << 16));
    }
}
