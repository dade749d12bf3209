//! What ails shards that would be split by themselves, if they could be.

use mailbox_client::v1::{NoSplit, UnsplitShard};

use super::{Finding, finding};
use crate::output::{grouped, mebibytes, printable};

/// What is said of the limit of this option.
const OF_BYTES: &str = "placement.split_bytes";

/// One finding for each.
pub(super) fn ail(unsplit: &[UnsplitShard], found: &mut Vec<Finding>) {
    found.extend(unsplit.iter().map(finding_of));
}

fn finding_of(of: &UnsplitShard) -> Finding {
    let UnsplitShard { shard, option, .. } = of;
    let option = printable(option);
    let (has, limit) = match option == OF_BYTES {
        true => (format!("stores {}", mebibytes(of.has)), mebibytes(of.limit)),
        false => (
            format!("has {} rows written per second", grouped(of.has)),
            grouped(of.limit),
        ),
    };
    let (why, fix) = match of.why() {
        NoSplit::OneSlot | NoSplit::Unspecified => (
            "cannot be split further: it has one slot".to_owned(),
            format!(
                "see whose timelines they are: `mailboxctl top`; give it nodes that bear it: `mailboxctl shard move {shard} \
                 --from NODE --to NODE`; then raise {option} on all nodes and restart them one after the other"
            ),
        ),
        NoSplit::ShardsMax => (
            format!(
                "is not split: there are as many shards as there may be, {} (placement.shards_max)",
                of.shards_max
            ),
            format!(
                "raise placement.shards_max, or {option}, on all nodes and restart them one after the other; or split it by \
                 hand: `mailboxctl shard split {shard}`"
            ),
        ),
    };
    finding(
        "unsplit-shard",
        format!("shard {shard}"),
        format!("it {has}, over the limit of {limit} ({option}), and {why}"),
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(why: NoSplit, option: &str, has: u64) -> Finding {
        let unsplit = UnsplitShard {
            shard: 7,
            why: why.into(),
            option: option.to_owned(),
            limit: 64 << 20,
            has,
            shards_max: 256,
        };
        let mut found = Vec::new();
        ail(&[unsplit], &mut found);
        assert_eq!(found.len(), 1);
        let found = found.remove(0);
        assert_eq!(
            (found.code, found.place.as_str()),
            ("unsplit-shard", "shard 7")
        );
        found
    }

    #[test]
    fn a_shard_that_cannot_be_split_is_told_with_what_can_be_done() {
        let found = told(NoSplit::OneSlot, OF_BYTES, 100 << 20);
        assert_eq!(
            found.cause,
            "it stores 100 MiB, over the limit of 64 MiB (placement.split_bytes), and cannot be split further: it has one slot"
        );
        assert!(
            found.fix.contains("raise placement.split_bytes"),
            "{found:?}"
        );
        let found = told(
            NoSplit::ShardsMax,
            "placement.split_writes_per_second",
            70_000_000,
        );
        assert!(
            found.cause.starts_with(
                "it has 70,000,000 rows written per second, over the limit of 67,108,864"
            ),
            "{found:?}"
        );
        assert!(
            found.cause.ends_with("256 (placement.shards_max)"),
            "{found:?}"
        );
        assert!(
            found.fix.starts_with("raise placement.shards_max"),
            "{found:?}"
        );
    }
}
