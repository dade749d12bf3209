//! What ails slots on their way: moves, splits and merges that get nowhere, and replicas that wait for rows.

use std::time::Duration;

use mailbox_client::v1::{RowsWait, ShardMerge, ShardSplit, SlotMove, SlotMoveStage};

use super::{Finding, finding};
use crate::output::printable;
use crate::survey::Survey;

/// What nobody serves goes on within milliseconds; after so long something is in its way.
const UNSERVED_MS_MAX: u64 = 10_000;

/// Where slots are on their way.
pub(super) struct Stuck<'a> {
    moves: &'a [SlotMove],
    splits: &'a [ShardSplit],
    merges: &'a [ShardMerge],
    /// A move that gets nowhere for longer is stuck, although its slot is served.
    still_ms_max: u64,
}

impl<'a> Stuck<'a> {
    pub(super) fn new(
        moves: &'a [SlotMove],
        (splits, merges): (&'a [ShardSplit], &'a [ShardMerge]),
        still_max: Duration,
    ) -> Self {
        Self {
            moves,
            splits,
            merges,
            still_ms_max: u64::try_from(still_max.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// What serves nobody first.
    pub(super) fn ail(&self, seen: &Survey, found: &mut Vec<Finding>) {
        for split in self.splits {
            if split.still_ms > UNSERVED_MS_MAX.min(self.still_ms_max) {
                found.push(stuck_split(split));
            }
        }
        let is_frozen = |row: &&SlotMove| row.stage() == SlotMoveStage::Freezing;
        let (frozen, served): (Vec<_>, Vec<_>) = self.moves.iter().partition(is_frozen);
        for row in frozen {
            if row.still_ms > UNSERVED_MS_MAX.min(self.still_ms_max) {
                found.push(stuck_move(row));
            }
        }
        for row in served {
            if row.still_ms > self.still_ms_max {
                found.push(stuck_move(row));
            }
        }
        for merge in self.merges {
            if merge.still_ms > self.still_ms_max {
                found.push(stuck_merge(merge));
            }
        }
        for (node, status) in &seen.statuses {
            let shards = status.iter().flat_map(|status| &status.shards);
            for shard in shards {
                let waits = shard
                    .rows_wait
                    .filter(|wait| wait.wait_ms > UNSERVED_MS_MAX);
                if let Some(wait) = waits {
                    found.push(self.waiting_replica(
                        *node,
                        shard.shard,
                        shard.role == "leader",
                        wait,
                    ));
                }
            }
        }
    }

    fn waiting_replica(&self, node: u64, shard: u32, leads: bool, wait: RowsWait) -> Finding {
        let RowsWait { slot, wait_ms } = wait;
        let mut moves = self.moves.iter();
        let row = moves.find(|row| (row.slot, row.to) == (slot, shard));
        let sources = match row {
            Some(row) => format!(
                "a replica of shard {} or another one of shard {shard}",
                row.from
            ),
            None => format!("another replica of shard {shard}"),
        };
        let first = match leads {
            true => format!(
                "let another node lead: `mailboxctl shard transfer {shard} --to NODE`; then "
            ),
            false => String::new(),
        };
        finding(
            "apply-waits",
            format!("shard {shard}, node {node}"),
            format!(
                "it applies nothing for {} s: it waits for the rows of slot {slot}, which has moved in, and nobody gives \
                 them; {sources} must answer it",
                wait_ms / 1000
            ),
            format!(
                "{first}start the nodes that hold these: it asks them in turn by itself. If it still waits, give the shard \
                 another replica for this one: `mailboxctl shard move {shard} --from {node} --to NODE`"
            ),
        )
    }
}

/// For how long, after how many tries, and for what.
fn why(still_ms: u64, failed_tries: u32, waits_for: &str) -> String {
    let mut why = format!("nothing has moved for {} s", still_ms / 1000);
    if failed_tries > 0 {
        why.push_str(&format!(", {failed_tries} tries failed"));
    }
    if !waits_for.is_empty() {
        why.push_str(&format!("; it waits for this: {}", printable(waits_for)));
    }
    why
}

fn stuck_move(row: &SlotMove) -> Finding {
    let SlotMove { slot, from, to, .. } = row;
    let why = why(row.still_ms, row.failed_tries, &row.waits_for);
    let (what, fix) = match row.stage() {
        SlotMoveStage::Copying => (
            format!("a copy goes from shard {from}, which serves it, to every voter of shard {to}"),
            format!(
                "start the node that it waits for, then it goes on by itself; or give it up: `mailboxctl shard move-slot \
                 {slot} --abort`"
            ),
        ),
        SlotMoveStage::Freezing => (
            format!("nobody serves it until a majority of shard {to} has its last rows"),
            format!(
                "it cannot be given up any more: start the nodes of shards {from} and {to} that do not answer \
                 (`mailboxctl shard show {to}`), then it goes on by itself"
            ),
        ),
        SlotMoveStage::Dropping => (
            format!(
                "shard {to} serves it; shard {from} keeps the rows until every replica of shard {to} has them in files"
            ),
            format!(
                "start the node that it waits for. If it is gone for good, give its replica to another one: `mailboxctl \
                 shard move {to} --from NODE --to NODE`"
            ),
        ),
        SlotMoveStage::Aborting | SlotMoveStage::Unspecified => (
            format!(
                "it was given up; shard {from} serves it, and shard {to} is to forget its copy"
            ),
            format!("see why shard {to} takes nothing: `mailboxctl shard show {to}`"),
        ),
    };
    let cause = format!("it moves, and is stuck: {what}; {why}");
    finding("stuck-move", format!("slot {slot}"), cause, fix)
}

fn stuck_split(split: &ShardSplit) -> Finding {
    let ShardSplit { shard, to, .. } = split;
    let why = why(split.still_ms, split.failed_tries, &split.waits_for);
    finding(
        "stuck-split",
        format!("shard {shard}"),
        format!(
            "it splits into itself and shard {to}, and is stuck: nobody serves what goes to shard {to} until that one \
             leads; {why}"
        ),
        format!(
            "it cannot be taken back: start the nodes of shard {shard} that do not answer (`mailboxctl shard show \
             {shard}`), a majority is enough; then it goes on by itself"
        ),
    )
}

fn stuck_merge(merge: &ShardMerge) -> Finding {
    let ShardMerge { shard, into, .. } = merge;
    let why = why(merge.still_ms, merge.failed_tries, &merge.waits_for);
    finding(
        "stuck-merge",
        format!("shard {shard}"),
        format!(
            "it merges into shard {into}, and is stuck: {} of its slots and {} moves are left, and all of them are served; \
             {why}",
            merge.slots_left, merge.moves_left
        ),
        format!(
            "start the node that it waits for, then it goes on by itself. If that is gone for good, give its replica to \
             another one: `mailboxctl shard move {into} --from NODE --to NODE`; or give the merge up, and what has moved \
             stays: `mailboxctl shard merge {shard} --abort`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::{ShardStatus, StatusResponse};

    use super::*;
    use crate::ctl::doctor::tests::survey;

    fn moving(slot: u32, stage: SlotMoveStage, still_ms: u64) -> SlotMove {
        SlotMove {
            slot,
            from: 1,
            to: 2,
            stage: stage as i32,
            still_ms,
            ..SlotMove::default()
        }
    }

    fn found(seen: &Survey, moves: &[SlotMove], splits: &[ShardSplit]) -> Vec<Finding> {
        let mut found = Vec::new();
        let stuck = Stuck::new(moves, (splits, &[]), Duration::from_secs(120));
        stuck.ail(seen, &mut found);
        found
    }

    fn places(found: &[Finding]) -> Vec<(&str, &str)> {
        let places = found.iter().map(|it| (it.code, it.place.as_str()));
        places.collect()
    }

    #[test]
    fn a_move_that_gets_nowhere_is_told_by_its_stage() {
        use SlotMoveStage::{Aborting, Copying, Dropping, Freezing};
        let seen = survey(3);
        let quick = [
            moving(1, Copying, 119_000),
            moving(2, Freezing, 9_000),
            moving(3, Dropping, 0),
        ];
        assert_eq!(found(&seen, &quick, &[]), []);
        let mut stuck = [
            moving(1, Copying, 121_000),
            moving(2, Freezing, 11_000),
            moving(3, Dropping, 121_000),
            moving(4, Aborting, 121_000),
        ];
        stuck[0].failed_tries = 7;
        stuck[0].waits_for = "node 3: no answer".to_owned();
        let found = found(&seen, &stuck, &[]);
        // What nobody serves comes first.
        let expected = ["slot 2", "slot 1", "slot 3", "slot 4"].map(|place| ("stuck-move", place));
        assert_eq!(places(&found), expected);
        assert!(found[0].cause.contains("nobody serves it"), "{found:?}");
        assert!(found[0].fix.contains("shard show 2"), "{found:?}");
        let cause = &found[1].cause;
        assert!(
            cause.ends_with("for 121 s, 7 tries failed; it waits for this: node 3: no answer"),
            "{cause}"
        );
        assert!(
            found[1].fix.contains("shard move-slot 1 --abort"),
            "{found:?}"
        );
        assert!(found[2].fix.contains("shard move 2 --from"), "{found:?}");
    }

    #[test]
    fn a_split_that_gets_nowhere_is_told_soon() {
        let split = |still_ms| ShardSplit {
            shard: 4,
            to: 9,
            still_ms,
            ..ShardSplit::default()
        };
        let seen = survey(3);
        assert_eq!(found(&seen, &[], &[split(9_000)]), []);
        let found = found(&seen, &[], &[split(11_000)]);
        assert_eq!(places(&found), [("stuck-split", "shard 4")]);
        assert!(found[0].cause.contains("shard 9"), "{found:?}");
        assert!(found[0].fix.contains("shard show 4"), "{found:?}");
    }

    #[test]
    fn a_merge_that_gets_nowhere_is_told_with_both_ways_out() {
        let merge = |still_ms| ShardMerge {
            shard: 4,
            into: 2,
            moves_left: 3,
            still_ms,
            ..ShardMerge::default()
        };
        let told = |merge: ShardMerge| {
            let (merges, mut found) = ([merge], Vec::new());
            let stuck = Stuck::new(&[], (&[], &merges), Duration::from_secs(120));
            stuck.ail(&survey(3), &mut found);
            found
        };
        assert_eq!(told(merge(119_000)), []);
        let found = told(merge(121_000));
        assert_eq!(places(&found), [("stuck-merge", "shard 4")]);
        assert!(
            found[0].cause.contains("0 of its slots and 3 moves"),
            "{found:?}"
        );
        for command in ["shard move 2 --from", "shard merge 4 --abort"] {
            assert!(found[0].fix.contains(command), "{found:?}");
        }
    }

    #[test]
    fn a_replica_that_waits_for_rows_is_told_with_those_who_have_them() {
        let mut seen = survey(3);
        let status: &mut StatusResponse = seen.statuses.get_mut(&2).unwrap().as_mut().unwrap();
        let shard: &mut ShardStatus = &mut status.shards[0];
        shard.rows_wait = Some(RowsWait {
            slot: 5,
            wait_ms: 9_000,
        });
        assert_eq!(found(&seen, &[], &[]), []);
        let status = seen.statuses.get_mut(&2).unwrap().as_mut().unwrap();
        status.shards[0].rows_wait.as_mut().unwrap().wait_ms = 12_000;
        let told = found(&seen, &[], &[]);
        assert_eq!(places(&told), [("apply-waits", "shard 1, node 2")]);
        assert!(told[0].cause.contains("slot 5"), "{told:?}");
        assert!(told[0].fix.starts_with("start the nodes"), "{told:?}");
        let row = SlotMove {
            to: 1,
            from: 7,
            ..moving(5, SlotMoveStage::Dropping, 0)
        };
        let told = found(&seen, &[row], &[]);
        assert!(told[0].cause.contains("a replica of shard 7"), "{told:?}");
        // One that leads serves nobody meanwhile.
        let status = seen.statuses.get_mut(&2).unwrap().as_mut().unwrap();
        status.shards[0].role = "leader".to_owned();
        let told = found(&seen, &[], &[]);
        assert!(told[0].fix.contains("shard transfer 1 --to"), "{told:?}");
    }
}
