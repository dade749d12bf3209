//! The results file: one line of JSON for each case and round, written as the case ends.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::figures::{self, Figures};
use super::machine::Machine;

/// Of the lines' form. A change that older builds would misread takes the next number.
const FORMAT: u32 = 1;
/// How every line begins.
const BEGIN: &str = "{\"suite\":1,";
/// Results of earlier runs that are kept beside a file at most.
const KEPT_MAX: u32 = 999;

/// One case in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::bench) struct Line {
    /// The form of this line; its presence marks a file of ours.
    suite: u32,
    pub(in crate::bench) case: String,
    /// From 1.
    pub(in crate::bench) round: u32,
    /// Measured, as asked for.
    pub(in crate::bench) seconds: u64,
    /// When it ended, in seconds since 1970.
    ended_unix_s: u64,
    #[serde(flatten)]
    pub(in crate::bench) origin: Origin,
    /// Operations that failed after all retries.
    pub(in crate::bench) errors: u64,
    pub(in crate::bench) figures: Figures,
}

/// Where a line comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::bench) struct Origin {
    /// Of the sources, if known.
    pub(in crate::bench) revision: Option<String>,
    /// Checksums of the programs.
    pub(in crate::bench) build: String,
    pub(in crate::bench) machine: Machine,
}

impl Origin {
    /// Whether figures of both are figures of the same thing.
    pub(in crate::bench) fn is(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.build == other.build
            && self.machine.is(&other.machine)
    }
}

impl Line {
    pub(in crate::bench) fn new(
        (case, round, seconds): (&str, u32, u64),
        origin: Origin,
        (figures, errors): (Figures, u64),
    ) -> Self {
        let now = std::time::SystemTime::now();
        let since_1970 = now.duration_since(std::time::UNIX_EPOCH);
        Self {
            suite: FORMAT,
            case: case.to_owned(),
            round,
            seconds,
            ended_unix_s: since_1970.map_or(0, |time| time.as_secs()),
            origin,
            errors,
            figures,
        }
    }

    /// The result in words.
    pub(super) fn human(&self) -> String {
        let figures = figures::human(&self.figures);
        format!("{}, round {}\n{figures}", self.case, self.round)
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.case, self.round) == (&other.case, other.round)
    }
}

/// What a file holds: of several lines of one case and round the last, since a case that was measured again was so for
/// a reason.
#[derive(Debug, Default)]
pub(in crate::bench) struct Results {
    pub(in crate::bench) lines: Vec<Line>,
    /// Up to which byte the file is whole.
    whole_bytes: u64,
    /// The last line lacks its end.
    is_open: bool,
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, is none of ours, or holds nothing.
    pub(in crate::bench) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
        let results = Self::parse(&text).with_context(|| format!("read {shown}"))?;
        if results.lines.is_empty() {
            bail!("{shown} holds no result yet");
        }
        Ok(results)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut results = Self::default();
        for (number, piece) in (1..).zip(text.split_inclusive('\n')) {
            let read = read_line(piece);
            // A run that was killed while it wrote its last line leaves a piece of it.
            let torn = !piece.ends_with('\n');
            match read {
                Ok(line) => {
                    results.take(line);
                    results.is_open = torn;
                }
                Err(_) if torn && (number > 1 || piece.starts_with(BEGIN)) => break,
                Err(error) => return Err(error.context(format!("line {number}"))),
            }
            results.whole_bytes += piece.len() as u64;
        }
        Ok(results)
    }

    /// Takes a line in; it replaces an earlier one of its case and round.
    fn take(&mut self, line: Line) {
        match self.lines.iter_mut().find(|held| held.is_of(&line)) {
            Some(held) => *held = line,
            None => self.lines.push(line),
        }
    }
}

fn read_line(text: &str) -> anyhow::Result<Line> {
    let strange = "this is no result of `mailbox-bench suite`";
    let json: serde_json::Value = serde_json::from_str(text).context(strange)?;
    let Some(format) = json.get("suite").and_then(serde_json::Value::as_u64) else {
        bail!("{strange}: it has no `suite`");
    };
    if format != u64::from(FORMAT) {
        bail!(
            "its form is {format}, this build reads {FORMAT}: take the mailbox-bench that wrote it"
        );
    }
    serde_json::from_value(json).context(strange)
}

/// A file that results are added to.
#[derive(Debug)]
pub(super) struct ResultsFile {
    file: fs::File,
    path: PathBuf,
    held: Results,
}

impl ResultsFile {
    /// Begins a new file. One that is there is kept beside it; returns where.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn begin(path: &Path) -> anyhow::Result<(Self, Option<PathBuf>)> {
        let kept = keep(path)?;
        Ok((Self::open(path, Results::default())?, kept))
    }

    /// Goes on with a file, or begins it if it is not there.
    ///
    /// # Errors
    /// It is none of ours, or cannot be written to.
    pub(super) fn resume(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let held = match fs::read_to_string(path) {
            Ok(text) => Results::parse(&text).with_context(|| format!("read {shown}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Results::default(),
            Err(error) => return Err(error).with_context(|| format!("read {shown}")),
        };
        Self::open(path, held)
    }

    fn open(path: &Path, held: Results) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.with_context(|| format!("open {shown}"))?;
        let mend = file.set_len(held.whole_bytes);
        let mend = mend.and_then(|()| match held.is_open {
            true => file.write_all(b"\n"),
            false => Ok(()),
        });
        mend.with_context(|| format!("mend the end of {shown}"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            held,
        })
    }

    /// What it holds by now.
    pub(super) fn lines(&self) -> &[Line] {
        &self.held.lines
    }

    /// Adds a line, whole or not at all as far as a file can promise.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn add(&mut self, line: Line) -> anyhow::Result<()> {
        let text = serde_json::to_string(&line).context("encode a result")? + "\n";
        let wrote = self.file.write_all(text.as_bytes());
        let wrote = wrote.and_then(|()| self.file.sync_data());
        wrote.with_context(|| format!("write {}", self.path.display()))?;
        self.held.take(line);
        Ok(())
    }
}

/// Renames a file with results to the first free name of `NAME.1.EXT`, `NAME.2.EXT` …; one without is not kept.
fn keep(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => {}
        _ => return Ok(None),
    }
    // Whatever else it is, it is not ours to move.
    Results::read(path).with_context(|| format!("{shown} is in the way: choose another --out"))?;
    let name = |number: u32| match path.extension() {
        Some(extension) => {
            let extension = extension.to_string_lossy();
            path.with_extension(format!("{number}.{extension}"))
        }
        None => path.with_extension(number.to_string()),
    };
    let free = (1..=KEPT_MAX).map(name).find(|path| !path.exists());
    let free = free.with_context(|| {
        format!("{KEPT_MAX} results are kept beside {shown}: remove some or choose another --out")
    })?;
    fs::rename(path, &free).with_context(|| format!("rename {shown}"))?;
    Ok(Some(free))
}

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::super::machine::tests::machine;
    use super::*;

    pub(in crate::bench) fn line(case: &str, round: u32, figures: &[(&str, f64)]) -> Line {
        let origin = Origin {
            revision: Some("0123456789ab".to_owned()),
            build: "00000001-00000002".to_owned(),
            machine: machine(),
        };
        let figures = figures.iter();
        let figures = figures.map(|(key, figure)| ((*key).to_owned(), *figure));
        Line::new((case, round, 15), origin, (figures.collect(), 0))
    }

    fn text(lines: &[Line]) -> String {
        let lines = lines.iter();
        lines
            .map(|line| serde_json::to_string(line).unwrap() + "\n")
            .collect()
    }

    #[test]
    fn a_line_comes_back_as_it_was_written() {
        let line = line("a", 2, &[("p50_ms", 1.5)]);
        let text = text(std::slice::from_ref(&line));
        assert!(text.starts_with(BEGIN) && text.contains("\"revision\":\"0123456789ab\""));
        assert_eq!(Results::parse(&text).unwrap().lines, [line]);
    }

    #[test]
    fn a_case_measured_again_replaces_itself() {
        let lines = [
            line("a", 1, &[("p50_ms", 1.0)]),
            line("a", 2, &[("p50_ms", 2.0)]),
            line("a", 1, &[("p50_ms", 3.0)]),
        ];
        let [first, second, again] = &lines;
        let held = Results::parse(&text(&lines)).unwrap().lines;
        assert_eq!(held, [again.clone(), second.clone()]);
        assert!(!held.contains(first));
    }

    #[test]
    fn a_strange_file_is_told_by_line() {
        let told = |text: &str| format!("{:#}", Results::parse(text).unwrap_err());
        let error = told("{\"nodes\":3,\"sends_per_s\":44826.1}\n");
        assert!(error.starts_with("line 1: this is no result of"), "{error}");
        let error = told("hello\n");
        assert!(error.starts_with("line 1: this is no result of"), "{error}");
        let good = text(&[line("a", 1, &[])]);
        let error = told(&format!("{good}{{\"suite\":2}}\n"));
        assert!(error.starts_with("line 2: its form is 2"), "{error}");
        // A piece at the very begin is no torn end of results.
        assert!(Results::parse("{\"nodes\":3,").is_err());
        assert!(
            Results::parse("{\"suite\":1,\"case")
                .unwrap()
                .lines
                .is_empty()
        );
    }

    #[test]
    fn a_torn_end_is_cut_off_and_the_file_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/suite.jsonl");
        let (mut file, kept) = ResultsFile::begin(&path).unwrap();
        assert_eq!(kept, None);
        file.add(line("a", 1, &[])).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let names = |path: &Path| -> Vec<String> {
            let lines = Results::read(path).unwrap().lines;
            lines.into_iter().map(|line| line.case).collect()
        };
        // In the middle of a line, or just before its end.
        let torn = format!("{whole}{{\"suite\":1,\"ca");
        for (left, next) in [(&*torn, "b"), (whole.trim_end(), "c")] {
            fs::write(&path, left).unwrap();
            let mut file = ResultsFile::resume(&path).unwrap();
            assert_eq!(file.lines().len(), 1);
            file.add(line(next, 1, &[])).unwrap();
            assert_eq!(file.lines().len(), 2);
            assert_eq!(names(&path), ["a", next]);
        }
        assert!(
            ResultsFile::resume(&dir.path().join("new"))
                .unwrap()
                .lines()
                .is_empty()
        );
    }

    #[test]
    fn results_that_are_there_are_kept_and_other_files_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite.jsonl");
        for (number, case) in (1..).zip(["a", "b"]) {
            let (mut file, kept) = ResultsFile::begin(&path).unwrap();
            let expected = dir.path().join(format!("suite.{}.jsonl", number - 1));
            assert_eq!(kept, (number > 1).then_some(expected));
            file.add(line(case, 1, &[])).unwrap();
        }
        let kept = Results::read(&dir.path().join("suite.1.jsonl")).unwrap();
        assert_eq!(kept.lines.len(), 1);
        let other = dir.path().join("letter.txt");
        fs::write(&other, "Dear Alice").unwrap();
        let error = format!("{:#}", ResultsFile::begin(&other).unwrap_err());
        assert!(error.contains("choose another --out"), "{error}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "Dear Alice");
    }

    #[test]
    fn an_origin_is_revision_build_and_machine() {
        let origin = line("a", 1, &[]).origin;
        let other_disk = Origin {
            machine: Machine {
                disk_fdatasync_per_s: 1.0,
                ..machine()
            },
            ..origin.clone()
        };
        assert!(origin.is(&other_disk));
        for other in [
            Origin {
                revision: None,
                ..origin.clone()
            },
            Origin {
                build: "00000009-00000002".to_owned(),
                ..origin.clone()
            },
        ] {
            assert!(!origin.is(&other));
        }
    }
}
