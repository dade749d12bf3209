//! C4: one sender's messages reach one recipient in the order in which they were accepted.

use std::collections::HashMap;

use super::index::{Index, home_of};
use super::violation::Violation;
use crate::history::{SendId, Timeline};

pub(super) fn check(index: &Index<'_>, violations: &mut Vec<Violation>) {
    for (recipient, view) in &index.last {
        if matches!(recipient, Timeline::Group(_)) {
            // One timeline, read alike by all: its order is everyone's.
            continue;
        }
        let mut last: HashMap<u64, (u64, SendId)> = HashMap::new();
        for id in view.rows.iter().filter_map(|row| row.id) {
            let Some(append) = index.appends.get(&id) else {
                continue;
            };
            if append.to != *recipient || home_of(append) == *recipient {
                continue;
            }
            let Some(&home_seq) = index.places(home_of(append), id).first() else {
                continue;
            };
            let before = last.insert(append.sender, (home_seq, id));
            if let Some((seq, later)) = before.filter(|(seq, _)| *seq > home_seq) {
                let recipient = *recipient;
                violations.push(Violation::OutOfOrder {
                    earlier: id,
                    later,
                    recipient,
                });
                last.insert(append.sender, (seq, later));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn messages_that_overtook_each_other_are_found_out() {
        let mut sample = Sample::good();
        sample.swap_rows(Sample::BOB, 1, 2);
        assert!(sample.breaks(|it| matches!(it, Violation::OutOfOrder { .. })));
    }

    #[test]
    fn messages_of_different_senders_may_arrive_in_any_order() {
        let mut sample = Sample::good();
        // At Bob: 1 and 2 are from Alice, 3 is his own, 4 Alice's again.
        sample.swap_rows(Sample::BOB, 2, 3);
        let report = sample.violations();
        assert!(
            !report
                .iter()
                .any(|it| matches!(it, Violation::OutOfOrder { .. }))
        );
    }
}
