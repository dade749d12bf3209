//! Judges a history against the contract.
//!
//! The positioned-log method: every ack and every row carries its seq, so a timeline's order need
//! not be searched for. With T = order by seq and R = order in real time, a history is linearizable
//! if no two operations stand one way in T and the other way in R; sweeps find that out in
//! O(n log n).
//!
//! | file | promise |
//! |---|---|
//! | `durable.rs` | C1: acked is there, where the ack said |
//! | `once.rs` | C2: once in each place it belongs to; nothing that nobody sent |
//! | `sequence.rs` | C3: dense, never reused, in real-time order; C6: reads too, and how stale others may be |
//! | `registers.rs` | C6 for what no seq orders (handles, marks, cursors): `search.rs` looks for an order |
//! | `order.rs` | C4: per (sender, recipient) in the order of acceptance |
//! | `sync.rs` | C5: a device's pages skip nothing, repeat nothing, and end at the head |
//! | `agree.rs` | every replica shows the same |
//! | `available.rs` | how soon sends are acked again after a fault, how long shards had no leader; seen, not judged |

mod agree;
mod available;
mod durable;
mod index;
mod once;
mod order;
mod registers;
#[cfg(test)]
mod sample;
mod search;
mod sequence;
mod sync;
mod violation;

use std::collections::BTreeMap;
use std::thread::ScopedJoinHandle;

use serde::Serialize;

use crate::history::{History, Installation, Outcome};
use index::Index;

pub use available::Recovery;
pub use violation::Violation;

/// Least amounts without which a run proves nothing.
#[derive(Debug, Clone, Default)]
pub struct Floors {
    /// Acked sends, until the last fault was healed.
    pub acked: usize,
    /// Answered reads through the leader while faults were there.
    pub reads: usize,
    /// Answered pages of devices while faults were there.
    pub pages: usize,
    /// Reads that a replica answered which did not lead.
    pub stale_reads: usize,
    /// Answered calls to registers.
    pub touches: usize,
    /// Installed faults, by kind.
    pub faults: BTreeMap<String, usize>,
    /// At least one installed fault of each sort: its name, and the kinds that count.
    pub sorts: BTreeMap<String, Vec<String>>,
    /// Replicas of each timeline, each of which must have been read at the end.
    pub replicas: usize,
}

/// What a checker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing is wrong.
    Valid,
    /// The run proves nothing.
    Unknown,
    /// A promise was broken.
    Invalid,
}

/// The judgement on one history.
#[derive(Debug, Clone)]
pub struct Report {
    /// The promises broken.
    pub violations: Vec<Violation>,
    /// Why the run proves nothing, if so.
    pub doubts: Vec<String>,
    /// How much there was to judge.
    pub counts: Counts,
}

/// How much a history holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Sends acked.
    pub acked: usize,
    /// Of those, the ones until the last fault was healed; all, if there was none.
    pub acked_under_faults: usize,
    /// Sends refused.
    pub failed: usize,
    /// Sends of which nobody knows.
    pub unknown: usize,
    /// Of those, the ones that did happen.
    pub unknown_found: usize,
    /// Reads answered by the leader during the run.
    pub reads: usize,
    /// Pages answered to devices during the run.
    pub pages: usize,
    /// Reads answered during the run by replicas that did not lead.
    pub stale_reads: usize,
    /// Calls to registers that were answered.
    pub touches: usize,
    /// Rows in the final reads, each timeline once.
    pub rows: usize,
    /// Faults installed.
    pub faults: BTreeMap<String, usize>,
    /// How soon sends were acked again after them.
    pub recovery: BTreeMap<String, Recovery>,
    /// The longest time in which a shard had no leader, in milliseconds.
    pub leaderless_ms: u64,
}

impl Report {
    /// A broken promise outweighs every doubt.
    pub fn verdict(&self) -> Verdict {
        if !self.violations.is_empty() {
            Verdict::Invalid
        } else if !self.doubts.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Valid
        }
    }
}

/// Judges a history.
pub fn check(history: &History, floors: &Floors) -> Report {
    let index = Index::new(history);
    // Each looks at the same and finds its own: none waits for another.
    let checks: [Check<'_>; 6] = [
        &|found| once::check(&index, found),
        &|found| sequence::check(&index, found),
        &|found| sync::check(&index, history, found),
        &|found| agree::check(&index, history, found),
        &|found| durable::check(&index, found),
        &|found| order::check(&index, found),
    ];
    let (violations, undecided) = std::thread::scope(|scope| {
        let registers = scope.spawn(|| {
            let mut found = Vec::new();
            let undecided = registers::check(history, &mut found);
            (found, undecided)
        });
        let checks = checks.map(|check| {
            scope.spawn(|| {
                let mut found = Vec::new();
                check(&mut found);
                found
            })
        });
        let (mut violations, undecided) = of(registers);
        violations.extend(checks.into_iter().flat_map(of));
        (violations, undecided)
    });
    let counts = count(history, &index);
    let mut doubts = doubts(&index, &counts, floors);
    doubts.extend(undecided);
    let (devices, arrived) = sync::arrived(history);
    if arrived < devices {
        doubts.push(format!(
            "{arrived} of {devices} devices got to their head at the end"
        ));
    }
    Report {
        violations,
        doubts,
        counts,
    }
}

/// Adds the violations that it finds.
type Check<'a> = &'a (dyn Fn(&mut Vec<Violation>) + Sync);

/// What a thread has found; its panic is its caller's.
fn of<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    let found = thread.join();
    found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn count(history: &History, index: &Index<'_>) -> Counts {
    let mut counts = Counts {
        reads: index.reads.len(),
        stale_reads: index
            .stale
            .iter()
            .filter(|(read, ..)| read.staleness_ms > Some(0))
            .count(),
        touches: history
            .touches()
            .filter(|touch| matches!(touch.outcome, Outcome::Ok(_)))
            .count(),
        recovery: available::recoveries(history),
        leaderless_ms: available::leaderless_ms(history),
        ..Counts::default()
    };
    let last_healed = history.faults().map(|fault| fault.healed_ns).max();
    for append in history.appends() {
        match &append.outcome {
            Outcome::Ok(_) => {
                counts.acked += 1;
                let in_time = last_healed.is_none_or(|healed| append.completed_ns <= healed);
                counts.acked_under_faults += usize::from(in_time);
            }
            Outcome::Fail(_) => counts.failed += 1,
            Outcome::Unknown(_) => {
                counts.unknown += 1;
                counts.unknown_found += usize::from(index.home_seq(append).is_some());
            }
        }
    }
    counts.pages = history
        .pages()
        .filter(|page| !page.last && matches!(page.outcome, Outcome::Ok(_)))
        .count();
    counts.rows = index.last.values().map(|view| view.rows.len()).sum();
    for fault in history.faults() {
        if fault.installation == Installation::Installed {
            *counts.faults.entry(fault.kind.clone()).or_default() += 1;
        }
    }
    counts
}

fn doubts(index: &Index<'_>, counts: &Counts, floors: &Floors) -> Vec<String> {
    let mut doubts = index.doubts.clone();
    let mut floor = |what: &str, found: usize, least: usize| {
        if found < least {
            doubts.push(format!("{found} {what}, at least {least} are needed"));
        }
    };
    floor(
        "acked sends under faults",
        counts.acked_under_faults,
        floors.acked,
    );
    floor("reads through the leader", counts.reads, floors.reads);
    floor("pages of devices", counts.pages, floors.pages);
    floor(
        "reads through others than leaders",
        counts.stale_reads,
        floors.stale_reads,
    );
    floor("calls to registers", counts.touches, floors.touches);
    for (kind, least) in &floors.faults {
        let found = counts.faults.get(kind).copied().unwrap_or(0);
        floor(&format!("faults of kind {kind}"), found, *least);
    }
    for (sort, kinds) in &floors.sorts {
        let found = kinds.iter().filter_map(|kind| counts.faults.get(kind));
        floor(&format!("faults of the sort {sort}"), found.sum(), 1);
    }
    for (timeline, views) in &index.finals {
        let replicas = views.len().saturating_sub(1);
        floor(
            &format!("replicas of {timeline} read at the end"),
            replicas,
            floors.replicas,
        );
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::sample::Sample;
    use super::*;

    #[test]
    fn a_good_history_is_valid() {
        let report = check(&Sample::good().history, &Floors::default());
        assert_eq!(report.violations, []);
        assert_eq!(report.doubts, Vec::<String>::new());
        assert_eq!(report.verdict(), Verdict::Valid);
        assert_eq!((report.counts.acked, report.counts.unknown_found), (6, 1));
    }

    #[test]
    fn a_run_below_a_floor_proves_nothing() {
        let faults = BTreeMap::from([("pause".to_owned(), 1)]);
        for floors in [
            Floors {
                acked: 1000,
                ..Floors::default()
            },
            Floors {
                reads: 1000,
                ..Floors::default()
            },
            Floors {
                pages: 1,
                ..Floors::default()
            },
            Floors {
                stale_reads: 1,
                ..Floors::default()
            },
            Floors {
                touches: 1,
                ..Floors::default()
            },
            Floors {
                replicas: 4,
                ..Floors::default()
            },
            Floors {
                faults,
                ..Floors::default()
            },
            Floors {
                sorts: BTreeMap::from([("pause".to_owned(), vec!["pause-long".to_owned()])]),
                ..Floors::default()
            },
        ] {
            let report = check(&Sample::good().history, &floors);
            assert_eq!(report.verdict(), Verdict::Unknown, "{floors:?}");
        }
    }

    #[test]
    fn an_empty_history_is_never_valid() {
        let floors = Floors {
            acked: 1,
            ..Floors::default()
        };
        assert_eq!(
            check(&History::default(), &floors).verdict(),
            Verdict::Unknown
        );
    }

    #[test]
    fn a_skipped_fault_does_not_count() {
        let mut sample = Sample::good();
        sample.fault("pause", Installation::Skipped("nobody led".into()));
        sample.fault(
            "pause",
            Installation::Indeterminate("kill: no such process".into()),
        );
        let faults = BTreeMap::from([("pause".to_owned(), 1)]);
        let floors = Floors {
            faults,
            ..Floors::default()
        };
        assert_eq!(check(&sample.history, &floors).verdict(), Verdict::Unknown);
        sample.fault("pause", Installation::Installed);
        assert_eq!(check(&sample.history, &floors).verdict(), Verdict::Valid);
    }

    #[test]
    fn a_missing_final_read_proves_nothing() {
        let mut sample = Sample::good();
        sample.history.ops.retain(|op| match op {
            crate::history::Op::Read(read) => !read.last || read.timeline != Sample::BOB,
            _ => true,
        });
        let report = check(&sample.history, &Floors::default());
        assert_eq!(report.verdict(), Verdict::Unknown);
    }

    #[test]
    fn a_broken_promise_outweighs_doubts() {
        let mut sample = Sample::good();
        sample.drop_row(Sample::ALICE, 2);
        let report = check(
            &sample.history,
            &Floors {
                acked: 1000,
                ..Floors::default()
            },
        );
        assert_eq!(report.verdict(), Verdict::Invalid);
    }
}
