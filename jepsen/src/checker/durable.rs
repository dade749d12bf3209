//! C1: what was acked is there, where the ack said.

use super::index::{Index, home_of};
use super::violation::Violation;
use crate::history::Outcome;

pub(super) fn check(index: &Index<'_>, violations: &mut Vec<Violation>) {
    for append in index.appends.values() {
        let Outcome::Ok(acked) = &append.outcome else {
            continue;
        };
        let (id, timeline, seq) = (append.id, acked.timeline, acked.seq);
        if timeline != home_of(append) {
            violations.push(Violation::WrongAck { id, timeline, seq });
            continue;
        }
        // Not read at the end is a doubt, not a loss.
        if !index.last.contains_key(&timeline) {
            continue;
        }
        let places = index.places(timeline, id);
        match places.first() {
            None => violations.push(Violation::Lost { id, timeline, seq }),
            Some(_) if places.contains(&seq) => {
                let row = index.row(timeline, seq);
                if row.is_none_or(|row| row.message_id != acked.message_id) {
                    violations.push(Violation::WrongAck { id, timeline, seq });
                }
            }
            Some(&found) => {
                violations.push(Violation::Misplaced {
                    id,
                    timeline,
                    seq,
                    found,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::history::Timeline;

    #[test]
    fn a_lost_message_is_found_out() {
        for timeline in [Sample::ALICE, Sample::GROUP] {
            let mut sample = Sample::good();
            sample.drop_row(timeline, 2);
            sample.close_gaps(timeline);
            assert!(sample.breaks(|it| matches!(it, Violation::Lost { .. })));
        }
    }

    #[test]
    fn a_lost_suffix_is_found_out() {
        let mut sample = Sample::good();
        sample.drop_row(Sample::GROUP, 3);
        assert!(sample.breaks(|it| matches!(it, Violation::Lost { seq: 3, .. })));
    }

    #[test]
    fn a_message_elsewhere_than_acked_is_found_out() {
        let mut sample = Sample::good();
        sample.swap_rows(Sample::GROUP, 2, 3);
        assert!(sample.breaks(|it| matches!(it, Violation::Misplaced { .. })));
    }

    #[test]
    fn an_ack_for_another_timeline_is_found_out() {
        let mut sample = Sample::good();
        sample.ack_mut(0).timeline = Timeline::Mailbox(99);
        assert!(sample.breaks(|it| matches!(it, Violation::WrongAck { .. })));
    }

    #[test]
    fn an_ack_with_another_message_id_is_found_out() {
        let mut sample = Sample::good();
        sample.ack_mut(0).message_id += 1;
        assert!(sample.breaks(|it| matches!(it, Violation::WrongAck { .. })));
    }
}
