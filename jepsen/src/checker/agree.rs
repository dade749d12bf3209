//! At the end, every replica shows the same rows and has the same state hash.

use std::collections::BTreeMap;

use super::index::Index;
use super::violation::Violation;
use crate::history::{History, StateHash, Timeline, View};

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
    let mut cuts: BTreeMap<(u32, u64), &StateHash> = BTreeMap::new();
    for hash in history.state_hashes() {
        let first = *cuts.entry((hash.shard, hash.index)).or_insert(hash);
        if first.hash != hash.hash {
            violations.push(Violation::HashesDiffer {
                shard: hash.shard,
                index: hash.index,
                node: first.node,
                other: hash.node,
            });
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
    use crate::history::Op;

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
        for (node, shard, index, hash) in [
            (1, 1, 9, "aa"),
            (2, 1, 9, "aa"),
            (3, 1, 8, "bb"),
            (3, 2, 9, "cc"),
        ] {
            let hash = StateHash {
                node,
                shard,
                index,
                hash: hash.into(),
            };
            sample.history.ops.push(Op::StateHash(hash));
        }
        assert_eq!(
            sample.violations(),
            [],
            "hashes of different cuts are not compared"
        );
        let hash = StateHash {
            node: 3,
            shard: 1,
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
