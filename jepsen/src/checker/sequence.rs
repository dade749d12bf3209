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
    check_staleness(index, violations);
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

/// What was acked so long before a read that the read may not lack it is there.
fn check_staleness(index: &Index<'_>, violations: &mut Vec<Violation>) {
    let mut acks: HashMap<Timeline, Vec<(u64, u64)>> = HashMap::new();
    for append in index.appends.values() {
        if let Outcome::Ok(acked) = &append.outcome {
            let of = acks.entry(acked.timeline).or_default();
            of.push((append.completed_ns, acked.seq));
        }
    }
    for acks in acks.values_mut() {
        acks.sort_unstable();
        let mut greatest = 0;
        for (_, seq) in acks {
            greatest = greatest.max(*seq);
            *seq = greatest;
        }
    }
    for (read, view, max_staleness_ms) in &index.stale {
        let Some(acks) = acks.get(&read.timeline) else {
            continue;
        };
        // What it says itself counts, if that is less than it may be.
        let said = read.staleness_ms.unwrap_or(*max_staleness_ms);
        let lacks_ms = u64::from(said.min(*max_staleness_ms));
        // It is as old as that at its answer: at its begin it is what is asked for least.
        let since = read.invoked_ns.saturating_sub(lacks_ms * 1_000_000);
        let before = acks.partition_point(|(acked_ns, _)| *acked_ns < since);
        let acked = before.checked_sub(1).map_or(0, |last| acks[last].1);
        if view.head < acked {
            violations.push(Violation::TooStale {
                timeline: read.timeline,
                max_staleness_ms: *max_staleness_ms,
                head: view.head,
                acked,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::history::Source;

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
    fn a_read_may_be_as_stale_as_it_may_and_no_more() {
        const MS: u64 = 1_000_000;
        let with = |source, at_ms: u64| {
            let mut sample = Sample::good();
            sample.read_by(source, Sample::GROUP, (at_ms * MS, at_ms * MS + 1), 1);
            sample
        };
        let is_too_stale = |it: &Violation| matches!(it, Violation::TooStale { head: 1, .. });
        assert!(with(Source::Stale(200), 300).breaks(is_too_stale));
        assert_eq!(with(Source::Stale(1000), 300).violations(), []);
        assert!(
            !with(Source::Leader, 300).breaks(is_too_stale),
            "it is judged otherwise"
        );
        let mut says_less = with(Source::Stale(1000), 300);
        says_less.is_stale_by(100);
        assert!(says_less.breaks(is_too_stale), "and is wrong");
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
