//! The bugs that are there on purpose, and whether the harness finds them.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::nemesis::Family;

use super::Scale;
use super::cells::{self, Cell};

/// A bug is to be found within so many seconds.
const FOUND_WITHIN_S: u64 = 300;

/// A bug, what finds it soonest as far as is known, and what is then said.
pub(super) struct Row {
    bug: &'static str,
    workload: &'static str,
    families: &'static [Family],
    /// Any of these, at the least.
    says: &'static [&'static str],
}

/// What a node says that refuses its own files, or stops for what it finds in them.
const ENDED: &str = "ended by itself";

const fn row(
    bug: &'static str,
    workload: &'static str,
    families: &'static [Family],
    says: &'static [&'static str],
) -> Row {
    Row {
        bug,
        workload,
        families,
        says,
    }
}

/// Of every bug.
pub(super) const ROWS: [Row; 12] = [
    row(
        "ack-before-fsync",
        "append",
        &[Family::Power],
        &["C1", ENDED],
    ),
    row(
        "vote-not-synced",
        "mixed",
        &[Family::Kill],
        &["C1", "C3", "C6", "not serve", ENDED],
    ),
    row(
        "read-without-barrier",
        "append",
        &[Family::Partition],
        &["C6"],
    ),
    row(
        "dedup-not-in-snapshot",
        "exactly-once",
        &[Family::Membership],
        &["C2", "C3"],
    ),
    row(
        "dedup-by-wall-clock",
        "exactly-once",
        &[Family::Kill],
        &["C2"],
    ),
    row("lane-mark-early", "lanes", &[Family::Kill], &["C2"]),
    row(
        "lane-retry-in-parallel",
        "lanes",
        &[Family::Transfer],
        &["C2", "C4"],
    ),
    row("sync-key-off-by-one", "sync", &[Family::Gateway], &["C5"]),
    row(
        "two-slot-owners",
        "mixed",
        &[Family::Slots],
        &["C1", "C2", "C3", "C4", "slots move still", ENDED],
    ),
    row(
        "hash-order-in-apply",
        "mixed",
        &[Family::Pause],
        &["C1", "C2", "C3", ENDED],
    ),
    row(
        "purge-before-snapshot",
        "mixed",
        &[Family::Kill],
        &["C1", "C3", ENDED],
    ),
    row("dead-letter-drop", "lanes", &[Family::Transfer], &["C2"]),
];

/// Every bug, one after the other.
#[derive(Debug, Args)]
pub(crate) struct Planted {
    /// Only these bugs.
    #[arg(long, value_delimiter = ',')]
    bug: Vec<String>,
    /// Run the cells without a bug instead: each has to be valid.
    #[arg(long)]
    without: bool,
    #[command(flatten)]
    scale: Scale,
}

/// Runs the cell of each bug until it is found; valid if all are.
pub(crate) fn run(arguments: &Planted) -> anyhow::Result<Verdict> {
    let known = |name: &String| ROWS.iter().any(|row| row.bug == name);
    if let Some(unknown) = arguments.bug.iter().find(|name| !known(name)) {
        let names = mailbox_planted::ALL.map(|(bug, _)| bug).join(", ");
        anyhow::bail!("there is no bug {unknown}; there are {names}");
    }
    let mut verdict = Verdict::Valid;
    for row in ROWS {
        let Row {
            bug,
            workload,
            families,
            says,
        } = row;
        if !arguments.bug.is_empty() && !arguments.bug.iter().any(|it| it == bug) {
            continue;
        }
        let cell = Cell {
            workload: workload.to_owned(),
            families: families.to_vec(),
        };
        if let Some(why) = cell.lacks() {
            println!("{bug}: skipped: {why}");
            verdict = verdict.max(Verdict::Unknown);
            continue;
        }
        let plant = (!arguments.without).then_some(bug);
        let (found, text) = look_for(plant, says, &cell, &arguments.scale)?;
        println!("{bug} | {} | {text}", cell.name());
        verdict = verdict.max(found);
    }
    Ok(verdict)
}

fn is_said(broken: &[String], says: &[&str]) -> bool {
    broken
        .iter()
        .any(|it| says.iter().any(|word| it.contains(word)))
}

/// Valid if a run found what it should, and what it found.
fn look_for(
    plant: Option<&str>,
    says: &[&str],
    cell: &Cell,
    scale: &Scale,
) -> anyhow::Result<(Verdict, String)> {
    let begun = Instant::now();
    loop {
        let came = cells::run_cell(scale, cell, plant)?;
        let took = begun.elapsed().as_secs();
        let dir: PathBuf = came.dir;
        let why: String = came.why.chars().take(200).collect();
        let told = format!("{took} s: {}: {why} ({})", came.verdict, dir.display());
        if plant.is_none() {
            let verdict = match came.verdict.as_str() {
                "valid" => Verdict::Valid,
                "invalid" => Verdict::Invalid,
                _ => Verdict::Unknown,
            };
            return Ok((verdict, told));
        }
        if came.verdict == "invalid" && is_said(&came.broken, says) {
            let is_late = took > FOUND_WITHIN_S;
            let verdict = if is_late {
                Verdict::Unknown
            } else {
                Verdict::Valid
            };
            return Ok((verdict, told));
        }
        if took >= FOUND_WITHIN_S {
            return Ok((
                Verdict::Unknown,
                format!("NOT FOUND in {took} s; at last {told}"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use mailbox_jepsen::workload;

    use super::*;

    #[test]
    fn every_bug_has_a_cell() {
        assert_eq!(
            ROWS.map(|row| row.bug),
            mailbox_planted::ALL.map(|(bug, _)| bug)
        );
        for row in ROWS {
            workload::named(row.workload).unwrap();
            assert!(!row.says.is_empty());
        }
    }

    #[test]
    fn the_table_for_people_names_the_same_cells() {
        let readme = include_str!("../../README.md");
        for ((bug, does), row) in mailbox_planted::ALL.into_iter().zip(ROWS) {
            let names: Vec<_> = row.families.iter().map(|family| family.name()).collect();
            let (workload, names) = (row.workload, names.join(","));
            let line = format!("| `{bug}` | {does} | `{workload}` × `{names}` |");
            assert!(readme.contains(&line), "README.md lacks: {line}");
        }
    }
}
