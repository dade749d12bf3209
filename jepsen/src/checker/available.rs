//! How soon sends are acked again after a fault, and how long shards had no leader: seen, not judged. What a cluster must serve at all is judged at the end
//! of a run, when all is mended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::{History, Installation, Outcome};

/// Of all faults of one kind the slowest, in milliseconds; `None`: there was no ack any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// From the begin of the fault until the first ack of a send that was handed over after it.
    pub begun_ms: Option<u64>,
    /// The same from when it was healed.
    pub healed_ms: Option<u64>,
}

/// By kind of fault, of those that were installed.
pub(super) fn recoveries(history: &History) -> BTreeMap<String, Recovery> {
    let acked = history.appends();
    let acked = acked.filter(|append| matches!(append.outcome, Outcome::Ok(_)));
    let mut acked: Vec<(u64, u64)> = acked
        .map(|append| (append.invoked_ns, append.completed_ns))
        .collect();
    acked.sort_unstable();
    // From then on: the first ack of all that were handed over then or later.
    let mut first = u64::MAX;
    for (_, completed) in acked.iter_mut().rev() {
        first = first.min(*completed);
        *completed = first;
    }
    let after_ms = |ns: u64| {
        let next = acked.partition_point(|(invoked, _)| *invoked < ns);
        let (_, completed) = acked.get(next)?;
        Some((completed - ns) / 1_000_000)
    };
    let mut slowest = BTreeMap::new();
    for fault in history.faults() {
        if fault.installation != Installation::Installed {
            continue;
        }
        let (begun_ms, healed_ms) = (after_ms(fault.begun_ns), after_ms(fault.healed_ns));
        let it = slowest.entry(fault.kind.clone()).or_insert(Recovery {
            begun_ms,
            healed_ms,
        });
        it.begun_ms = slower(it.begun_ms, begun_ms);
        it.healed_ms = slower(it.healed_ms, healed_ms);
    }
    slowest
}

/// The longest time in which a shard had no leader, in milliseconds.
pub(super) fn leaderless_ms(history: &History) -> u64 {
    let times = history.leaderless().map(|it| it.until_ns - it.from_ns);
    times.max().unwrap_or(0) / 1_000_000
}

/// Never is the slowest.
fn slower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.max(b?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::Sample;
    use crate::history::{Fault, Op};

    fn fault(kind: &str, begun_ms: u64, healed_ms: u64, installation: Installation) -> Op {
        Op::Fault(Fault {
            kind: kind.to_owned(),
            node: None,
            begun_ns: begun_ms * 1_000_000,
            healed_ns: healed_ms * 1_000_000,
            installation,
        })
    }

    #[test]
    fn the_slowest_of_each_kind_is_told() {
        let mut history = Sample::good().history;
        let mut appends: Vec<_> = history.appends().cloned().collect();
        appends.truncate(3);
        // Handed over and acked, in milliseconds; the second overtakes the first.
        for (append, (invoked, completed)) in
            appends.iter_mut().zip([(10, 90), (20, 30), (200, 205)])
        {
            append.invoked_ns = invoked * 1_000_000;
            append.completed_ns = completed * 1_000_000;
        }
        history.ops = appends.into_iter().map(Op::Append).collect();
        let installed = || Installation::Installed;
        history.ops.extend([
            fault("kill", 5, 25, installed()),
            fault("kill", 100, 150, installed()),
            fault("pause", 15, 300, installed()),
            fault("skipped", 15, 20, Installation::Skipped(String::new())),
        ]);
        let wanted = |begun_ms, healed_ms| Recovery {
            begun_ms,
            healed_ms,
        };
        assert_eq!(
            recoveries(&history),
            BTreeMap::from([
                ("kill".to_owned(), wanted(Some(105), Some(180))),
                ("pause".to_owned(), wanted(Some(15), None)),
            ])
        );
    }
}
