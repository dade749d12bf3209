//! `mailbox-bench compare`: two results files of the suite, figure by figure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;

use super::bars;
use super::suite::figures::{Better, MEANINGS, Meaning, meaning, shown};
use super::suite::results::{Line, Results};
use super::suite::spread::{Side, Spread};

/// Compare two results files of the suite, case by case and figure by figure
///
/// Of each figure both sides' medians are shown with the least and the greatest of their rounds, the ratio B / A, and a
/// verdict: `better` or `worse` if all rounds of B lie on one side of all rounds of A, else `within noise`. With a single
/// round on a side there is no spread to judge by, and no verdict: run the suite with --rounds 3 or more. A figure that
/// is neither good nor bad, such as the size of an entry, has none either.
///
/// Compare results of one machine only.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The results before
    #[arg(value_name = "A", value_hint = clap::ValueHint::FilePath)]
    a: PathBuf,
    /// The results after
    #[arg(value_name = "B", value_hint = clap::ValueHint::FilePath)]
    b: PathBuf,
    /// Exit with status 1 if a median of any case got worse by more than this, unless it is within noise
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, allow_negative_numbers = true)]
    fail_above: Option<f64>,
    /// Compare these figures only, by their JSON keys
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    figures: Vec<String>,
    /// Draw both sides as an SVG picture, too
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    plot: Option<PathBuf>,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent),
        _ => Err(format!("`{text}` is not a number of percent, from 0")),
    }
}

/// What can be said of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Better,
    Worse,
    WithinNoise,
    /// A side has one round only.
    OneRound,
    /// The figure is neither good nor bad.
    Neither,
}

impl Verdict {
    fn of(better: Better, a: &Spread, b: &Spread) -> Self {
        let (more, less) = match better {
            Better::More => (Self::Better, Self::Worse),
            Better::Less => (Self::Worse, Self::Better),
            Better::Neither => return Self::Neither,
        };
        if a.rounds.min(b.rounds) < 2 {
            Self::OneRound
        } else if b.min > a.max {
            more
        } else if b.max < a.min {
            less
        } else {
            Self::WithinNoise
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::WithinNoise => "within noise",
            Self::OneRound => "one round",
            Self::Neither => "",
        }
    }
}

/// One figure of one case on both sides.
#[derive(Debug, Clone, Serialize)]
struct Row {
    case: String,
    figure: &'static str,
    unit: &'static str,
    a: Spread,
    b: Spread,
    /// Of the medians, B / A; `None` where A's is 0.
    ratio: Option<f64>,
    verdict: Verdict,
    #[serde(skip)]
    meaning: &'static Meaning,
}

impl Row {
    fn new(case: &str, meaning: &'static Meaning, a: Spread, b: Spread) -> Self {
        Self {
            case: case.to_owned(),
            figure: meaning.key,
            unit: meaning.unit,
            ratio: (a.median != 0.0).then(|| b.median / a.median),
            verdict: Verdict::of(meaning.better, &a, &b),
            a,
            b,
            meaning,
        }
    }

    /// By how many percent of A's median B's is worse; below 0 if it is better.
    fn worse_percent(&self) -> f64 {
        let change = self.b.median - self.a.median;
        let worse = match self.meaning.better {
            Better::More => -change,
            Better::Less => change,
            Better::Neither => 0.0,
        };
        if worse == 0.0 {
            0.0
        } else {
            // From 0 to something is infinitely worse: one failed send, where there was none.
            100.0 * worse / self.a.median.abs()
        }
    }

    fn is_worse_by(&self, percent: f64) -> bool {
        let counts = matches!(self.verdict, Verdict::Worse | Verdict::OneRound);
        counts && self.worse_percent() > percent
    }
}

/// One side, as far as it is not its figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Whence {
    file: String,
    revisions: BTreeSet<String>,
    builds: BTreeSet<String>,
    rounds: u32,
}

impl Whence {
    fn new(path: &Path, lines: &[Line]) -> Self {
        let revision = |line: &Line| {
            let revision = line.origin.revision.clone();
            revision.unwrap_or_else(|| "unknown".to_owned())
        };
        Self {
            file: path.display().to_string(),
            revisions: lines.iter().map(revision).collect(),
            builds: lines.iter().map(|line| line.origin.build.clone()).collect(),
            rounds: lines.iter().map(|line| line.round).max().unwrap_or(0),
        }
    }

    fn human(&self) -> String {
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        format!(
            "{}: revision {}, build {}, {} round(s)",
            self.file,
            list(&self.revisions),
            list(&self.builds),
            self.rounds
        )
    }
}

/// The comparison of two files.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    a: Whence,
    b: Whence,
    /// Why the figures may not be comparable.
    warnings: Vec<String>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    rows: Vec<Row>,
    better: u64,
    worse: u64,
    within_noise: u64,
    one_round: u64,
    /// As `case figure`: those that are worse by more than was allowed.
    failed: Vec<String>,
}

impl Report {
    /// Nothing is worse by more than was allowed.
    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    /// The report in words.
    pub(super) fn human(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "case",
            "figure",
            "A (min - max)",
            "B (min - max)",
            "B / A",
            "",
        ]);
        let mut case = "";
        for row in &self.rows {
            let name = if row.case == case { "" } else { &row.case };
            case = &row.case;
            let ratio = row
                .ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
            table.add_row([
                name.to_owned(),
                row.figure.to_owned(),
                spread(&row.a),
                spread(&row.b),
                ratio,
                row.verdict.words().to_owned(),
            ]);
        }
        let mut lines = vec![
            format!("A  {}", self.a.human()),
            format!("B  {}", self.b.human()),
            table.trim_fmt(),
        ];
        for (side, only) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            if !only.is_empty() {
                lines.push(format!("only in {side}: {}", only.join(", ")));
            }
        }
        lines.push(format!(
            "{} better, {} worse, {} within noise, {} of one round without a verdict",
            self.better, self.worse, self.within_noise, self.one_round
        ));
        lines.join("\n")
    }
}

fn spread(spread: &Spread) -> String {
    let median = shown(spread.median);
    match spread.rounds {
        1 => median,
        _ => format!("{median} ({} - {})", shown(spread.min), shown(spread.max)),
    }
}

/// Reads both files, compares them and draws them if that is asked for.
///
/// # Errors
/// A file is none of ours, or both have no case in common.
pub(super) fn run(args: &Args) -> anyhow::Result<Report> {
    for key in &args.figures {
        if meaning(key).is_none() {
            let all: Vec<&str> = MEANINGS.iter().map(|meaning| meaning.key).collect();
            bail!("no figure is called `{key}`; there are {}", all.join(", "));
        }
    }
    let (a, b) = (Results::read(&args.a)?, Results::read(&args.b)?);
    let report = compare(args, &a.lines, &b.lines)?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    for failed in &report.failed {
        eprintln!("error: {failed}");
    }
    if let Some(path) = &args.plot {
        bars::write(path, &[Side::new("A", &a.lines), Side::new("B", &b.lines)])?;
    }
    Ok(report)
}

fn compare(args: &Args, a: &[Line], b: &[Line]) -> anyhow::Result<Report> {
    let (left, right) = (Side::new("A", a), Side::new("B", b));
    let lacks = |side: &Side, other: &Side| -> Vec<String> {
        let cases = side.cases.iter().map(|(case, _)| case);
        let missing = cases.filter(|case| other.case(case).is_none());
        missing.cloned().collect()
    };
    let rows = rows(&left, &right, &args.figures);
    let (whence_a, whence_b) = (Whence::new(&args.a, a), Whence::new(&args.b, b));
    if rows.is_empty() {
        let names = |side: &Side| {
            let names = side.cases.iter().map(|(case, _)| &**case);
            names.collect::<Vec<_>>().join(", ")
        };
        bail!(
            "{} and {} have nothing in common to compare: the first has {}, the second {}",
            whence_a.file,
            whence_b.file,
            names(&left),
            names(&right)
        );
    }
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count() as u64;
    let failed = args.fail_above.map_or_else(Vec::new, |percent| {
        let failed = rows.iter().filter(|row| row.is_worse_by(percent));
        let words = failed.map(|row| {
            let (Row { case, figure, .. }, worse) = (row, row.worse_percent());
            format!("{case}: {figure} got worse by {worse:.1} %, more than {percent} %")
        });
        words.collect()
    });
    Ok(Report {
        warnings: warnings(a, b),
        only_in_a: lacks(&left, &right),
        only_in_b: lacks(&right, &left),
        better: count(Verdict::Better),
        worse: count(Verdict::Worse),
        within_noise: count(Verdict::WithinNoise),
        one_round: count(Verdict::OneRound),
        a: whence_a,
        b: whence_b,
        rows,
        failed,
    })
}

/// What both sides have, in A's order of cases; of the given figures, or of all.
fn rows(a: &Side, b: &Side, figures: &[String]) -> Vec<Row> {
    let wanted =
        |meaning: &&Meaning| figures.is_empty() || figures.iter().any(|key| key == meaning.key);
    let meanings: Vec<&'static Meaning> = MEANINGS.iter().filter(wanted).collect();
    let mut rows = Vec::new();
    for (case, left) in &a.cases {
        let Some(right) = b.case(case) else { continue };
        for meaning in meanings.iter().copied() {
            if let (Some(a), Some(b)) = (left.get(meaning.key), right.get(meaning.key)) {
                rows.push(Row::new(case, meaning, *a, *b));
            }
        }
    }
    rows
}

fn warnings(a: &[Line], b: &[Line]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (side, lines) in [("A", a), ("B", b)] {
        let first = lines.first();
        let mixed =
            first.is_some_and(|first| lines.iter().any(|line| !line.origin.is(&first.origin)));
        if mixed {
            warnings.push(format!(
                "{side} holds results of several revisions, builds or machines"
            ));
        }
    }
    let machine = |lines: &[Line]| lines.first().map(|line| line.origin.machine.clone());
    if let (Some(a), Some(b)) = (machine(a), machine(b))
        && !a.is(&b)
    {
        warnings.push(format!(
            "the machines differ, so that ratios say nothing of the builds: {}; {}",
            a.human(),
            b.human()
        ));
    }
    let seconds = |lines: &[Line], case: &str| {
        let line = lines.iter().find(|line| line.case == case);
        line.map(|line| line.seconds)
    };
    let mut told = BTreeSet::new();
    for line in a.iter().filter(|line| told.insert(&line.case)) {
        let (a, case) = (line.seconds, &line.case);
        if let Some(b) = seconds(b, case).filter(|b| *b != a) {
            warnings.push(format!(
                "{case} was measured for {a} s in A and for {b} s in B"
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::suite::results::tests::line;
    use super::*;

    fn args(fail_above: Option<f64>) -> Args {
        Args {
            a: "a.jsonl".into(),
            b: "b.jsonl".into(),
            fail_above,
            figures: Vec::new(),
            plot: None,
        }
    }

    /// Three rounds of one case, around a middle.
    fn rounds(case: &str, figures: &[(&str, f64)]) -> Vec<Line> {
        let around = [0.9, 1.0, 1.1];
        let rounds = (1..).zip(around).map(|(round, factor)| {
            let figures: Vec<(&str, f64)> = figures
                .iter()
                .map(|(key, figure)| (*key, figure * factor))
                .collect();
            line(case, round, &figures)
        });
        rounds.collect()
    }

    fn verdicts(report: &Report) -> Vec<(&str, Verdict)> {
        let rows = report.rows.iter();
        rows.map(|row| (row.figure, row.verdict)).collect()
    }

    #[test]
    fn a_difference_counts_beyond_the_spread_of_both() {
        let a = rounds(
            "x",
            &[
                ("sends_per_s", 1000.0),
                ("p50_ms", 2.0),
                ("p99_ms", 10.0),
                ("entry_bytes", 1.0),
            ],
        );
        let b = rounds(
            "x",
            &[
                ("sends_per_s", 1300.0),
                ("p50_ms", 2.2),
                ("p99_ms", 20.0),
                ("entry_bytes", 9.0),
            ],
        );
        let report = compare(&args(None), &a, &b).unwrap();
        let expected = [
            ("sends_per_s", Verdict::Better),
            ("p50_ms", Verdict::WithinNoise),
            ("p99_ms", Verdict::Worse),
            ("entry_bytes", Verdict::Neither),
        ];
        assert_eq!(verdicts(&report), expected);
        assert_eq!(
            (report.better, report.worse, report.within_noise),
            (1, 1, 1)
        );
        assert_eq!(report.rows[0].ratio, Some(1.3));
        // The other way about, better is worse.
        let back = compare(&args(None), &b, &a).unwrap();
        assert_eq!((back.better, back.worse), (1, 1));
        assert_eq!(back.rows[0].verdict, Verdict::Worse);
        assert!(report.warnings.is_empty() && report.is_good());
    }

    #[test]
    fn one_round_is_no_spread() {
        let a = rounds("x", &[("sends_per_s", 1000.0)]);
        let b = [line("x", 1, &[("sends_per_s", 2000.0)])];
        let report = compare(&args(None), &a, &b).unwrap();
        assert_eq!(verdicts(&report), [("sends_per_s", Verdict::OneRound)]);
        assert_eq!(report.one_round, 1);
    }

    #[test]
    fn what_got_worse_by_more_than_allowed_fails() {
        let a = rounds(
            "x",
            &[("sends_per_s", 1000.0), ("p99_ms", 10.0), ("p50_ms", 1.0)],
        );
        let b = rounds(
            "x",
            &[("sends_per_s", 700.0), ("p99_ms", 10.9), ("p50_ms", 0.1)],
        );
        let failed = |percent| compare(&args(Some(percent)), &a, &b).unwrap().failed;
        assert_eq!(failed(31.0), [""; 0]);
        let [told] = &failed(29.0)[..] else {
            panic!("one is worse by 30 %, one within noise, one better")
        };
        assert!(
            told.starts_with("x: sends_per_s got worse by 30.0 %"),
            "{told}"
        );
        // Without a spread the limit is all there is to judge by.
        let (a, b) = (
            [line("x", 1, &[("errors", 0.0)])],
            [line("x", 1, &[("errors", 1.0)])],
        );
        assert_eq!(
            compare(&args(Some(1000.0)), &a, &b).unwrap().failed.len(),
            1
        );
        assert!(compare(&args(Some(0.0)), &a, &a).unwrap().is_good());
    }

    #[test]
    fn cases_are_matched_and_the_others_named() {
        let a = [
            line("x", 1, &[("p50_ms", 1.0)]),
            line("y", 1, &[("p50_ms", 1.0)]),
        ];
        let b = [
            line("z", 1, &[("p50_ms", 1.0)]),
            line("y", 1, &[("p50_ms", 2.0)]),
        ];
        let report = compare(&args(None), &a, &b).unwrap();
        assert_eq!(report.rows.len(), 1);
        assert_eq!(
            (&report.only_in_a[..], &report.only_in_b[..]),
            (&["x".to_owned()][..], &["z".to_owned()][..])
        );
        let [x, z] = [&a[..1], &b[..1]];
        let error = compare(&args(None), x, z).unwrap_err().to_string();
        assert!(
            error.contains("nothing in common") && error.contains("z"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_compared_well_is_warned_of() {
        let a = rounds("x", &[("p50_ms", 1.0)]);
        let mut b = rounds("x", &[("p50_ms", 1.0)]);
        b[1].origin.build = "00000003-00000004".to_owned();
        for line in &mut b {
            line.origin.machine.cores = 64;
            line.seconds = 60;
        }
        let warnings = compare(&args(None), &a, &b).unwrap().warnings;
        let [mixed, machines, seconds] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(mixed.starts_with("B holds results of several"), "{mixed}");
        assert!(machines.contains("64 cores"), "{machines}");
        assert!(seconds.contains("15 s in A and for 60 s in B"), "{seconds}");
    }

    #[test]
    fn the_words_have_a_row_for_each_figure() {
        let a = rounds("x", &[("sends_per_s", 1000.0), ("p99_ms", 10.0)]);
        let b = rounds("x", &[("sends_per_s", 1300.0), ("p99_ms", 10.0)]);
        let words = compare(&args(None), &a, &b).unwrap().human();
        let row = words
            .lines()
            .find(|line| line.contains("sends_per_s"))
            .unwrap();
        for part in [
            "x",
            "1,000 (900 - 1,100)",
            "1,300 (1,170 - 1,430)",
            "1.300",
            "better",
        ] {
            assert!(row.contains(part), "{part} is not in {row}");
        }
        assert!(
            words.contains("A  a.jsonl: revision 0123456789ab, build"),
            "{words}"
        );
        assert!(
            words.ends_with("1 better, 0 worse, 1 within noise, 0 of one round without a verdict"),
            "{words}"
        );
    }

    #[test]
    fn files_are_compared_and_drawn_and_strange_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, lines: &[Line]| {
            let lines = lines.iter();
            let lines = lines.map(|line| serde_json::to_string(line).unwrap() + "\n");
            let path = dir.path().join(name);
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            path
        };
        let plot = dir.path().join("plot.svg");
        let mut args = Args {
            a: file("a", &rounds("x", &[("p99_ms", 10.0), ("p50_ms", 1.0)])),
            b: file("b", &rounds("x", &[("p99_ms", 30.0), ("p50_ms", 9.0)])),
            figures: vec!["p99_ms".to_owned()],
            plot: Some(plot.clone()),
            ..args(Some(10.0))
        };
        let report = run(&args).unwrap();
        assert_eq!(verdicts(&report), [("p99_ms", Verdict::Worse)]);
        assert!(!report.is_good());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["verdict"], "worse");
        assert_eq!(json["rows"][0]["a"]["median"], 10.0);
        assert!(std::fs::read_to_string(&plot).unwrap().contains("p99_ms"));
        args.b = file("c", &[]);
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(error.contains("holds no result"), "{error}");
        args.b = dir.path().join("absent");
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(
            error.starts_with("read ") && error.contains("absent"),
            "{error}"
        );
        args.figures = vec!["p98_ms".to_owned()];
        let error = run(&args).unwrap_err().to_string();
        assert!(
            error.contains("`p98_ms`") && error.contains("p99_ms"),
            "{error}"
        );
    }

    #[test]
    fn percents_are_read() {
        assert_eq!(parse_percent("5"), Ok(5.0));
        assert_eq!(parse_percent("2.5%"), Ok(2.5));
        for wrong in ["", "-1", "x", "inf", "NaN", "%"] {
            assert!(parse_percent(wrong).is_err(), "{wrong} was taken");
        }
    }
}
