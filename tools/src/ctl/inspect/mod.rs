//! `mailboxctl inspect`: verifies the files of stopped nodes and compares their state.
//!
//! ```text
//!  <dir>/log    ─ read only ─▶ every batch and row verified ─▶ entries ─┐ to the newest
//!  <dir>/state  ─ hard links and copies, beside the node ─▶ every row verified ─▶ apply ─▶ hash
//! ```
//!
//! Nothing in a node's directory changes: the state is opened in a view of its own, whose files are
//! hard links (SST files never change) or copies, and which is removed at the end.

mod node;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mailbox_engine::ShardId;
use serde::Serialize;

use node::OpenNode;

use crate::output::{OutputArgs, grouped};

/// Faults that a report lists in words; the count has no limit.
const FAULTS_SHOWN_MAX: usize = 20;

/// Verify the files of stopped nodes and print their state hashes; changes nothing.
///
/// Every row, every block of rows and index of the store's files and every batch of the log is
/// checked against its checksum. (The files' filters, which only save look-ups, are not read.)
/// Then the log is replayed, in a view beside the data, up to the newest entry that is known to be
/// committed, and the state hash is printed with its index. Given several nodes of one cluster, all
/// are brought to one index and compared.
///
/// The exit status is 1 when anything is damaged or two replicas differ.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data directories of nodes that are not running
    #[arg(required = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
}

/// What was found in one node's directory.
#[derive(Debug, Default, Serialize)]
pub(crate) struct NodeReport {
    dir: String,
    /// Newest batch of the log.
    log_batch: u64,
    /// Entries of the log that were verified.
    log_entries: u64,
    shards: Vec<ShardReport>,
    fault_count: u64,
    /// The first faults, each naming its file, and the key or batch.
    faults: Vec<String>,
}

/// What was found of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ShardReport {
    shard: u32,
    /// Rows of the store's files that were verified.
    rows: u64,
    messages: u64,
    /// The last entry whose effects were in the files.
    flushed_index: u64,
    /// The last entry in the state hash.
    index: u64,
    /// Absent if the state could not be brought to the newest committed index.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_hash: Option<String>,
    /// Rows in the state hash.
    hashed_rows: u64,
}

impl NodeReport {
    fn fault(&mut self, fault: impl std::fmt::Display) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_SHOWN_MAX {
            self.faults.push(fault.to_string());
        }
    }

    /// The report in words.
    pub(crate) fn human(&self) -> String {
        let mut lines = vec![format!(
            "{}: log of {} entries up to batch {}",
            self.dir,
            grouped(self.log_entries),
            grouped(self.log_batch)
        )];
        for shard in &self.shards {
            lines.push(format!(
                "  shard {}: {} rows verified, {} of them messages; flushed up to index {}",
                shard.shard,
                grouped(shard.rows),
                grouped(shard.messages),
                shard.flushed_index
            ));
            if let Some(hash) = &shard.state_hash {
                let rows = grouped(shard.hashed_rows);
                lines.push(format!(
                    "  state hash {hash} at index {}, {rows} rows",
                    shard.index
                ));
            }
        }
        for fault in &self.faults {
            lines.push(format!("  FAULT: {fault}"));
        }
        if self.fault_count > self.faults.len() as u64 {
            lines.push(format!("  … {} faults in all", grouped(self.fault_count)));
        }
        lines.join("\n")
    }
}

/// All nodes' reports.
#[derive(Serialize)]
struct Inspection<'a> {
    good: bool,
    nodes: &'a [NodeReport],
}

pub(super) fn run(args: &Args, output: OutputArgs) -> anyhow::Result<bool> {
    let nodes = inspect_all(&args.dirs);
    let good = all_equal(&nodes);
    output.print(
        &Inspection {
            good,
            nodes: &nodes,
        },
        |inspection| {
            let mut lines: Vec<_> = inspection.nodes.iter().map(NodeReport::human).collect();
            let several = inspection.nodes.len() > 1;
            lines.push(match (good, several) {
                (true, true) => "all good, and the state hashes are equal".to_owned(),
                (true, false) => "all good".to_owned(),
                (false, _) => "NOT GOOD".to_owned(),
            });
            lines.join("\n")
        },
    )?;
    Ok(good)
}

/// Verifies every directory and brings all of them to one index. What is wrong is in the reports.
pub(crate) fn inspect_all(dirs: &[PathBuf]) -> Vec<NodeReport> {
    let mut reports = Vec::new();
    let mut open = Vec::new();
    for dir in dirs {
        let mut report = NodeReport {
            dir: dir.display().to_string(),
            ..NodeReport::default()
        };
        open.push(open_node(dir, &mut report));
        reports.push(report);
    }
    let target = newest_committed(open.iter().flatten());
    for at in 0..open.len() {
        // Any log may serve: entries at or below a committed index are the same in all.
        let logs: Vec<_> = open.iter().flatten().map(|node| &node.log).collect();
        if let Some(node) = &open[at] {
            node.hash(&target, &logs, &mut reports[at]);
        }
    }
    reports
}

fn open_node(dir: &Path, report: &mut NodeReport) -> Option<OpenNode> {
    match OpenNode::open(dir, report) {
        Ok(node) => Some(node),
        Err(error) => {
            report.fault(format_args!("{error:#}"));
            None
        }
    }
}

/// Of each shard, the newest index that any of the nodes knows to be committed.
fn newest_committed<'a>(nodes: impl Iterator<Item = &'a OpenNode>) -> BTreeMap<ShardId, u64> {
    let mut newest = BTreeMap::new();
    for node in nodes {
        for (&shard, &index) in &node.committed {
            let newest: &mut u64 = newest.entry(shard).or_default();
            *newest = index.max(*newest);
        }
    }
    newest
}

/// Whether nothing is damaged, and every shard has one state hash at one index on all nodes.
pub(crate) fn all_equal(nodes: &[NodeReport]) -> bool {
    let state = |node: &NodeReport| -> Option<Vec<(u32, u64, String)>> {
        let shards = node.shards.iter();
        shards
            .map(|s| Some((s.shard, s.index, s.state_hash.clone()?)))
            .collect()
    };
    let Some(first) = nodes.first() else {
        return false;
    };
    let expected = state(first);
    expected.as_ref().is_some_and(|shards| !shards.is_empty())
        && nodes
            .iter()
            .all(|node| node.fault_count == 0 && state(node) == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> NodeReport {
        NodeReport {
            dir: "node-1".to_owned(),
            shards: vec![ShardReport {
                shard: 0,
                rows: 12_000,
                messages: 10_000,
                flushed_index: 90,
                index: 100,
                state_hash: Some("abcd".to_owned()),
                hashed_rows: 13_000,
            }],
            ..NodeReport::default()
        }
    }

    fn with(change: impl FnOnce(&mut NodeReport)) -> [NodeReport; 2] {
        let mut other = good();
        change(&mut other);
        [good(), other]
    }

    #[test]
    fn replicas_are_equal_at_equal_index_only() {
        assert!(all_equal(&with(|_| {})));
        assert!(!all_equal(&with(
            |node| node.shards[0].state_hash = Some("abce".to_owned())
        )));
        assert!(!all_equal(&with(|node| node.shards[0].index = 99)));
        assert!(!all_equal(&with(|node| node.shards[0].state_hash = None)));
        assert!(!all_equal(&with(|node| node.shards.clear())));
        assert!(!all_equal(&with(|node| node.fault("a byte"))));
        assert!(!all_equal(&[]));
    }

    #[test]
    fn faults_are_listed_up_to_a_limit_and_counted() {
        let mut report = good();
        for number in 0..50 {
            report.fault(format_args!("fault {number}"));
        }
        let text = report.human();
        assert!(
            text.contains("FAULT: fault 0") && !text.contains("fault 49"),
            "{text}"
        );
        assert!(text.contains("50 faults in all"), "{text}");
    }
}
