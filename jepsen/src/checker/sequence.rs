//! C3: seqs are dense, never reused, and follow real time; C6: so do reads through the leader.

use std::collections::{BTreeMap, HashMap};

use super::index::{Index, home_of};
use super::violation::Violation;
use crate::history::{Outcome, Row, SendId, Timeline, View};

pub(super) fn check(index: &Index<'_>, violations: &mut Vec<Violation>) {
    for (timeline, view) in &index.views {
        check_dense(*timeline, view, violations);
    }
    check_reuse(index, violations);
    let moments = moments(index);
    for (timeline, moments) in moments {
        sweep(timeline, moments, violations);
    }
    check_future(index, violations);
}

/// Rows go up by one from where the read began; a final read also reaches its head.
fn check_dense(timeline: Timeline, view: &View, violations: &mut Vec<Violation>) {
    for (row, expected) in view.rows.iter().zip(view.after + 1..) {
        if row.seq != expected {
            violations.push(Violation::NotDense {
                timeline,
                expected,
                found: row.seq,
            });
            return;
        }
    }
    let end = view.after + view.rows.len() as u64;
    if view.head < end {
        let (expected, found) = (end, view.head);
        violations.push(Violation::NotDense {
            timeline,
            expected,
            found,
        });
    }
}

/// No two reads, of whatever node and time, show different messages at one seq.
fn check_reuse(index: &Index<'_>, violations: &mut Vec<Violation>) {
    let mut seen: HashMap<(Timeline, u64), &Row> = HashMap::new();
    for (timeline, view) in &index.views {
        for row in &view.rows {
            let first = *seen.entry((*timeline, row.seq)).or_insert(row);
            if first != row {
                violations.push(Violation::Reused {
                    timeline: *timeline,
                    seq: row.seq,
                });
            }
        }
    }
    for (timeline, view) in &index.last {
        let rows = view.after + view.rows.len() as u64;
        if rows < view.head {
            let (expected, found) = (rows + 1, view.head);
            violations.push(Violation::NotDense {
                timeline: *timeline,
                expected,
                found,
            });
        }
    }
}

/// What happens in a timeline, in real time. At one instant, begins come before ends: operations
/// that touch count as overlapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    AppendBegins { seq: u64, id: SendId },
    ReadBegins { head: u64 },
    AppendAcked { seq: u64 },
    ReadEnds { head: u64 },
}

fn moments(index: &Index<'_>) -> BTreeMap<Timeline, Vec<(u64, Moment)>> {
    let mut moments: BTreeMap<Timeline, Vec<(u64, Moment)>> = BTreeMap::new();
    for append in index.appends.values() {
        let Some(seq) = index.home_seq(append) else {
            continue;
        };
        let of = moments.entry(home_of(append)).or_default();
        of.push((
            append.invoked_ns,
            Moment::AppendBegins { seq, id: append.id },
        ));
        // An append whose answer never came may have happened at any time after it began.
        if matches!(append.outcome, Outcome::Ok(_)) {
            of.push((append.completed_ns, Moment::AppendAcked { seq }));
        }
    }
    for (read, view) in &index.reads {
        let of = moments.entry(read.timeline).or_default();
        let head = view.head;
        of.push((read.invoked_ns, Moment::ReadBegins { head }));
        of.push((read.completed_ns, Moment::ReadEnds { head }));
    }
    moments
}

/// One pass in real time with the greatest seq acked and the greatest head read so far.
fn sweep(timeline: Timeline, mut moments: Vec<(u64, Moment)>, violations: &mut Vec<Violation>) {
    moments.sort_unstable();
    let (mut acked, mut read) = (0, 0);
    for (_, moment) in moments {
        match moment {
            Moment::AppendBegins { seq, id } => {
                // A read that ended at a head shows that its seqs were taken by then.
                let before = acked.max(read);
                if seq <= before {
                    let (later, acked) = (id, before);
                    violations.push(Violation::AgainstRealTime {
                        timeline,
                        later,
                        seq,
                        acked,
                    });
                }
            }
            Moment::ReadBegins { head } => {
                if head < acked {
                    violations.push(Violation::StaleRead {
                        timeline,
                        head,
                        acked,
                    });
                }
                if head < read {
                    violations.push(Violation::ReadWentBack {
                        timeline,
                        head,
                        before: read,
                    });
                }
            }
            Moment::AppendAcked { seq } => acked = acked.max(seq),
            Moment::ReadEnds { head } => read = read.max(head),
        }
    }
}

/// No read shows what had not begun when it ended.
fn check_future(index: &Index<'_>, violations: &mut Vec<Violation>) {
    for (read, view) in &index.reads {
        for id in view.rows.iter().filter_map(|row| row.id) {
            let append = index.appends.get(&id);
            if append.is_some_and(|append| append.invoked_ns > read.completed_ns) {
                violations.push(Violation::ReadFromFuture {
                    timeline: read.timeline,
                    id,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn a_gap_is_found_out() {
        let mut sample = Sample::good();
        sample.drop_row(Sample::GROUP, 1);
        assert!(sample.breaks(|it| matches!(it, Violation::NotDense { .. })));
    }

    #[test]
    fn rows_missing_below_the_head_are_found_out() {
        let mut sample = Sample::good();
        sample.change_finals(Sample::GROUP, |view| view.head += 1);
        assert!(sample.breaks(|it| matches!(it, Violation::NotDense { .. })));
    }

    #[test]
    fn a_head_below_its_rows_is_found_out() {
        let mut sample = Sample::good();
        sample.change_finals(Sample::GROUP, |view| view.head -= 1);
        assert!(sample.breaks(|it| matches!(it, Violation::NotDense { .. })));
    }

    #[test]
    fn a_seq_given_out_again_is_found_out() {
        let mut sample = Sample::good();
        // A read of the run saw another message at 1 than the reads of the end.
        sample.read(Sample::GROUP, (5, 6), 1);
        let other = Sample::id(3);
        sample.change_last_read(|view| view.rows[0].id = Some(other));
        assert!(sample.breaks(|it| matches!(it, Violation::Reused { seq: 1, .. })));
    }

    #[test]
    fn appends_against_real_time_are_found_out() {
        let mut sample = Sample::good();
        // The first group message was acked before the second began: make the acks cross.
        let (first, second) = (
            sample.position(Sample::GROUP, 1),
            sample.position(Sample::GROUP, 2),
        );
        sample.swap_rows(Sample::GROUP, 1, 2);
        sample.swap_acks(first, second);
        let found = sample.violations();
        assert!(
            found
                .iter()
                .any(|it| matches!(it, Violation::AgainstRealTime { .. })),
            "{found:?}"
        );
        assert!(
            found
                .iter()
                .all(|it| matches!(it, Violation::AgainstRealTime { .. })),
            "{found:?}"
        );
    }

    #[test]
    fn overlapping_appends_may_stand_either_way() {
        let mut sample = Sample::good();
        let (first, second) = (
            sample.position(Sample::GROUP, 1),
            sample.position(Sample::GROUP, 2),
        );
        let begun = sample.append_mut(first).invoked_ns;
        sample.append_mut(second).invoked_ns = begun;
        sample.swap_rows(Sample::GROUP, 1, 2);
        sample.swap_acks(first, second);
        assert_eq!(sample.violations(), []);
    }

    #[test]
    fn an_unknown_append_at_a_seq_that_was_taken_before_it_began_is_found_out() {
        let mut sample = Sample::good();
        sample.append_mut(Sample::UNKNOWN).invoked_ns = Sample::END + 2;
        sample.read(
            Sample::ALICE,
            (Sample::END, Sample::END + 1),
            Sample::UNKNOWN_SEQ,
        );
        let later = sample.append_mut(Sample::UNKNOWN).id;
        assert!(sample.breaks(|it| matches!(
            it,
            Violation::AgainstRealTime { later: found, .. } if *found == later
        )));
    }

    #[test]
    fn a_read_that_misses_what_was_acked_is_found_out() {
        let mut sample = Sample::good();
        sample.read(Sample::GROUP, (Sample::END, Sample::END + 1), 3);
        assert_eq!(sample.violations(), []);
        sample.read(Sample::GROUP, (Sample::END, Sample::END + 1), 2);
        assert!(sample.breaks(|it| matches!(
            it,
            Violation::StaleRead {
                head: 2,
                acked: 3,
                ..
            }
        )));
    }

    #[test]
    fn reads_that_go_back_are_found_out() {
        let mut sample = Sample::good();
        let (begun, ended) = {
            let append = sample.append_mut(Sample::UNKNOWN);
            (append.invoked_ns, append.completed_ns)
        };
        // Only a read shows that the unknown append has happened.
        sample.read(Sample::ALICE, (begun + 1, begun + 2), Sample::UNKNOWN_SEQ);
        assert_eq!(sample.violations(), []);
        sample.read(Sample::ALICE, (begun + 3, ended), Sample::UNKNOWN_SEQ - 1);
        assert!(sample.breaks(|it| matches!(it, Violation::ReadWentBack { .. })));
    }

    #[test]
    fn a_read_of_the_future_is_found_out() {
        let mut sample = Sample::good();
        sample.read(Sample::GROUP, (0, 1), 3);
        assert!(sample.breaks(|it| matches!(it, Violation::ReadFromFuture { .. })));
    }
}
