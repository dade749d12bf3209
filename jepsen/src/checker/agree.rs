//! At the end, every replica shows the same rows and has the same state hash.

use super::index::Index;
use super::violation::Violation;
use crate::history::{History, Timeline, View};

pub(super) fn check(index: &Index<'_>, history: &History, violations: &mut Vec<Violation>) {
    for (timeline, views) in &index.finals {
        let Some(((source_a, first), others)) = views.split_first() else {
            continue;
        };
        for (source_b, other) in others {
            if let Some(seq) = difference(first, other) {
                let (timeline, source_a, source_b): (Timeline, _, _) =
                    (*timeline, *source_a, *source_b);
                violations.push(Violation::Disagree {
                    timeline,
                    source_a,
                    source_b,
                    seq,
                });
            }
        }
    }
    let mut hashes = history.state_hashes();
    if let Some(first) = hashes.next() {
        for other in hashes.filter(|other| other.index == first.index && other.hash != first.hash) {
            let (index, node, other) = (first.index, first.node, other.node);
            violations.push(Violation::HashesDiffer { index, node, other });
        }
    }
}

/// The seq from which on two views differ.
fn difference(a: &View, b: &View) -> Option<u64> {
    if a == b {
        return None;
    }
    let differs = a
        .rows
        .iter()
        .zip(&b.rows)
        .find(|(a, b)| a != b)
        .map(|(a, _)| a.seq);
    Some(differs.unwrap_or(a.rows.len().min(b.rows.len()) as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::history::{Op, StateHash};

    #[test]
    fn a_replica_with_another_row_is_found_out() {
        let mut sample = Sample::good();
        sample.change_node(Sample::GROUP, 2, |view| view.rows[1].content += 1);
        assert!(sample.breaks(|it| matches!(it, Violation::Disagree { seq: 2, .. })));
    }

    #[test]
    fn a_replica_that_lacks_the_end_is_found_out() {
        let mut sample = Sample::good();
        sample.change_node(Sample::GROUP, 3, |view| {
            view.rows.pop();
            view.head -= 1;
        });
        assert!(sample.breaks(|it| matches!(it, Violation::Disagree { seq: 3, .. })));
    }

    #[test]
    fn different_hashes_at_one_index_are_found_out() {
        let mut sample = Sample::good();
        for (node, index, hash) in [(1, 9, "aa"), (2, 9, "aa"), (3, 8, "bb")] {
            let hash = StateHash {
                node,
                index,
                hash: hash.into(),
            };
            sample.history.ops.push(Op::StateHash(hash));
        }
        assert_eq!(
            sample.violations(),
            [],
            "hashes of different indexes are not compared"
        );
        let hash = StateHash {
            node: 3,
            index: 9,
            hash: "bb".into(),
        };
        sample.history.ops.push(Op::StateHash(hash));
        assert!(sample.breaks(|it| matches!(
            it,
            Violation::HashesDiffer {
                node: 1,
                other: 3,
                ..
            }
        )));
    }
}
