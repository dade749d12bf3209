//! What is kept of a run, by the names that Jepsen gives its files.
//!
//! | file | what |
//! |---|---|
//! | `history.jsonl` | everything that was recorded; `recheck` reads it |
//! | `history.edn` | its operations as events, for checkers written elsewhere |
//! | `results.edn` | the judgement |
//! | `test.edn` | what was run |
//! | `timeline.html` | the operations to look at |

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context as _;

use crate::checker::Verdict;
use crate::edn::Edn;
use crate::events::{self, Events};
use crate::history::History;
use crate::smoke::Summary;
use crate::timeline;

/// The file that a history is read back from.
pub const HISTORY: &str = "history.jsonl";

/// Writes a history where it can be read back from.
///
/// # Errors
/// When the file cannot be written.
pub fn write_history(dir: &Path, history: &History) -> anyhow::Result<()> {
    history.write(&mut create(dir, HISTORY)?)
}

/// Writes all that follows from a history and its judgement.
///
/// # Errors
/// When a file cannot be written.
pub fn write_judged(dir: &Path, history: &History, summary: &Summary) -> anyhow::Result<()> {
    let events = Events::of(history);
    events::write(&events, &mut create(dir, "history.edn")?)?;
    write_text(dir, "results.edn", &results(summary).to_string())?;
    write_text(dir, "test.edn", &test(summary).to_string())?;
    let title = format!("{} {}", summary.workload, summary.seed);
    write_text(dir, "timeline.html", &timeline::page(&title, events.iter()))
}

fn results(summary: &Summary) -> Edn {
    let valid = match summary.verdict {
        Verdict::Valid => Edn::Bool(true),
        Verdict::Unknown => Edn::keyword("unknown"),
        Verdict::Invalid => Edn::Bool(false),
    };
    let counts = &summary.counts;
    let faults = counts
        .faults
        .iter()
        .map(|(kind, count)| Edn::Vector(vec![Edn::keyword(kind), number(*count)]));
    let counts = vec![
        ("acked", number(counts.acked)),
        ("failed", number(counts.failed)),
        ("unknown", number(counts.unknown)),
        ("unknown-found", number(counts.unknown_found)),
        ("reads", number(counts.reads)),
        ("pages", number(counts.pages)),
        ("rows", number(counts.rows)),
        ("faults", Edn::Vector(faults.collect())),
    ];
    let texts = |texts: &[String]| Edn::Vector(texts.iter().map(Edn::text).collect());
    Edn::Map(vec![
        ("valid?", valid),
        ("counts", Edn::Map(counts)),
        ("violations", texts(&summary.violations)),
        ("doubts", texts(&summary.doubts)),
    ])
}

fn test(summary: &Summary) -> Edn {
    Edn::Map(vec![
        ("name", Edn::text(summary.workload)),
        ("version", Edn::text(env!("CARGO_PKG_VERSION"))),
        ("nodes", number(summary.nodes)),
        ("shards", Edn::Int(summary.shards.into())),
        ("time-limit", Edn::Int(summary.seconds)),
        ("seed", Edn::Int(summary.seed)),
        ("reproduce", Edn::text(&summary.reproduce)),
    ])
}

fn number(count: usize) -> Edn {
    Edn::Int(count as u64)
}

fn create(dir: &Path, name: &str) -> anyhow::Result<BufWriter<File>> {
    let path = dir.join(name);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(BufWriter::new(file))
}

fn write_text(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checker::Counts;

    fn summary(verdict: Verdict) -> Summary {
        Summary {
            workload: "smoke",
            verdict,
            nodes: 3,
            seconds: 20,
            seed: 7,
            shards: 4,
            counts: Counts {
                acked: 5,
                faults: BTreeMap::from([("pause".to_owned(), 2)]),
                ..Counts::default()
            },
            violations: vec!["seq 3 is \"lost\"".to_owned()],
            doubts: Vec::new(),
            history: HISTORY.into(),
            reproduce: "mailbox-jepsen smoke --seed 7".to_owned(),
        }
    }

    #[test]
    fn a_run_is_kept_by_jepsens_names() {
        let dir = tempfile::tempdir().unwrap();
        let (history, summary) = (History::default(), summary(Verdict::Invalid));
        write_history(dir.path(), &history).unwrap();
        write_judged(dir.path(), &history, &summary).unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            read("results.edn"),
            "{:valid? false, :counts {:acked 5, :failed 0, :unknown 0, :unknown-found 0, :reads 0, :pages 0, \
             :rows 0, :faults [[:pause 2]]}, :violations [\"seq 3 is \\\"lost\\\"\"], :doubts []}"
        );
        assert!(read("test.edn").contains(":nodes 3, :shards 4, :time-limit 20, :seed 7"));
        assert_eq!(read("history.edn"), "");
        assert!(read("timeline.html").contains("<h1>smoke 7</h1>"));
    }

    #[test]
    fn what_proves_nothing_is_called_unknown() {
        let text = results(&summary(Verdict::Unknown)).to_string();
        assert!(text.starts_with("{:valid? :unknown,"), "{text}");
        let text = results(&summary(Verdict::Valid)).to_string();
        assert!(text.starts_with("{:valid? true,"), "{text}");
    }
}
