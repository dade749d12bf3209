//! What is kept of a run, by the names that Jepsen gives its files.
//!
//! | file | what |
//! |---|---|
//! | `history.jsonl` | everything that was recorded; `recheck` reads it |
//! | `run.json` | what was asked for, and what was seen beside the history; `recheck` reads it |
//! | `history.edn` | its operations as events, for checkers written elsewhere |
//! | `results.edn` | the judgement |
//! | `test.edn` | what was run |
//! | `timeline.html` | the operations to look at |
//! | `latency-raw.svg`, `latency-quantiles.svg`, `rate.svg` | how fast and how many, over time |

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::checker::Verdict;
use crate::edn::Edn;
use crate::events::{self, Events};
use crate::history::History;
use crate::options::RunOptions;
use crate::plot::Plots;
use crate::run::{Findings, Summary};
use crate::timeline;

/// The file that a history is read back from.
const HISTORY: &str = "history.jsonl";
/// The file that what was asked for is read back from.
const RUN: &str = "run.json";

/// What is in [`RUN`].
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    options: RunOptions,
    findings: Findings,
}

/// Writes a history where it can be read back from.
///
/// # Errors
/// When the file cannot be written.
pub fn write_history(dir: &Path, history: &History) -> anyhow::Result<()> {
    history.write(&mut create(dir, HISTORY)?)
}

/// Reads what [`write_history`] wrote.
///
/// # Errors
/// When the file is missing, or no history.
pub fn read_history(dir: &Path) -> anyhow::Result<History> {
    let path = dir.join(HISTORY);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    History::read(BufReader::new(file)).with_context(|| format!("read {}", path.display()))
}

/// Writes what was asked for, and what no history shows.
///
/// # Errors
/// When the file cannot be written.
pub fn write_options(dir: &Path, options: &RunOptions, findings: &Findings) -> anyhow::Result<()> {
    let asked = Asked {
        options: options.clone(),
        findings: findings.clone(),
    };
    let text = serde_json::to_string_pretty(&asked).context("encode the options")?;
    write_text(dir, RUN, &text)
}

/// Reads what [`write_options`] wrote.
///
/// # Errors
/// When the file is missing, or none of ours.
pub fn read_options(dir: &Path) -> anyhow::Result<(RunOptions, Findings)> {
    let path = dir.join(RUN);
    let text = std::fs::read(&path).with_context(|| format!("open {}", path.display()))?;
    let asked: Asked =
        serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
    Ok((asked.options, asked.findings))
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
    let title = format!("{} {}", summary.options.name(), summary.options.seed);
    Plots::of(&events).write(dir)?;
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
    let recovery = counts.recovery.iter().map(|(kind, it)| {
        let ms = |ms: Option<u64>| ms.map_or(Edn::Nil, Edn::Int);
        let kind = Edn::keyword(kind);
        Edn::Vector(vec![kind, ms(it.begun_ms), ms(it.healed_ms)])
    });
    let recovery = Edn::Vector(recovery.collect());
    let counts = vec![
        ("acked", number(counts.acked)),
        ("failed", number(counts.failed)),
        ("unknown", number(counts.unknown)),
        ("unknown-found", number(counts.unknown_found)),
        ("reads", number(counts.reads)),
        ("pages", number(counts.pages)),
        ("stale-reads", number(counts.stale_reads)),
        ("touches", number(counts.touches)),
        ("rows", number(counts.rows)),
        ("faults", Edn::Vector(faults.collect())),
        ("acked-again-ms", recovery),
        ("leaderless-ms", Edn::Int(counts.leaderless_ms)),
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
    let options = &summary.options;
    let nemeses = options.nemeses.iter().map(|it| Edn::keyword(it));
    Edn::Map(vec![
        ("name", Edn::text(options.name())),
        ("version", Edn::text(env!("CARGO_PKG_VERSION"))),
        ("workload", Edn::keyword(&options.workload)),
        ("nemesis", Edn::Vector(nemeses.collect())),
        ("pairs", Edn::Bool(options.pairs)),
        ("nodes", number(options.nodes)),
        ("shards", Edn::Int(options.shards.into())),
        ("time-limit", Edn::Int(options.seconds)),
        ("rate", Edn::Int(options.rate.into())),
        ("seed", Edn::Int(options.seed)),
        (
            "revision",
            options.revision.as_ref().map_or(Edn::Nil, Edn::text),
        ),
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
    use crate::checker::{Counts, Recovery};

    fn summary(verdict: Verdict) -> Summary {
        Summary {
            verdict,
            options: RunOptions {
                workload: "mixed".to_owned(),
                nemeses: vec!["pause".to_owned()],
                pairs: false,
                nodes: 3,
                shards: 4,
                seconds: 20,
                rate: 1000,
                seed: 7,
                revision: None,
                binary: None,
                other_binary: None,
                dir: Default::default(),
                tells: false,
            },
            counts: Counts {
                acked: 5,
                faults: BTreeMap::from([("pause".to_owned(), 2)]),
                recovery: BTreeMap::from([(
                    "pause".to_owned(),
                    Recovery {
                        begun_ms: Some(12),
                        healed_ms: None,
                    },
                )]),
                ..Counts::default()
            },
            operations: 0,
            read_ms: 0,
            check_ms: 0,
            violations: vec!["seq 3 is \"lost\"".to_owned()],
            doubts: Vec::new(),
            dir: Default::default(),
            reproduce: "mailbox-jepsen test --seed 7".to_owned(),
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
             :stale-reads 0, :touches 0, :rows 0, :faults [[:pause 2]], :acked-again-ms [[:pause 12 nil]], :leaderless-ms 0}, :violations [\"seq 3 is \\\"lost\\\"\"], :doubts []}"
        );
        assert!(read("test.edn").contains(
            ":nemesis [:pause], :pairs false, :nodes 3, :shards 4, :time-limit 20, :rate 1000, :seed 7"
        ));
        assert_eq!(read("history.edn"), "");
        assert!(read("timeline.html").contains("<h1>mixed-pause 7</h1>"));
    }

    #[test]
    fn what_was_asked_for_and_doubted_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let options = summary(Verdict::Valid).options;
        let seen = Findings {
            broken: vec!["node 2 ended".to_owned()],
            doubts: Vec::new(),
        };
        write_options(dir.path(), &options, &seen).unwrap();
        let (read, findings) = read_options(dir.path()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{options:?}"));
        assert_eq!(findings, seen);
        write_history(dir.path(), &History::default()).unwrap();
        assert_eq!(read_history(dir.path()).unwrap(), History::default());
        assert!(read_history(&dir.path().join("none")).is_err());
    }

    #[test]
    fn what_proves_nothing_is_called_unknown() {
        let text = results(&summary(Verdict::Unknown)).to_string();
        assert!(text.starts_with("{:valid? :unknown,"), "{text}");
        let text = results(&summary(Verdict::Valid)).to_string();
        assert!(text.starts_with("{:valid? true,"), "{text}");
    }
}
