//! Many runs, one after the other, each in a process of its own: one that crashes or hangs spoils no other.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::nemesis::Family;
use mailbox_jepsen::{ground, workload};
use serde::{Deserialize, Serialize};

use super::{Scale, TestAll};

/// What a covering run puts together in one cell: what takes long or breaks most stands alone.
const GROUPS: [&[Family]; 10] = [
    &[Family::Kill],
    &[Family::Pause],
    &[Family::Partition],
    &[Family::Packet],
    &[Family::Power, Family::Blocks],
    &[Family::Disk, Family::Clock],
    &[Family::Corruption],
    &[Family::Upgrade, Family::Gateway, Family::Transfer],
    &[Family::Slots],
    &[Family::Membership, Family::Snapshot],
];
/// What is done only if it is asked for: it takes another build.
const APART: [&[Family]; 1] = [&[Family::Failpoint]];
/// What every change has to pass.
const SMOKE: [&[Family]; 5] = [
    &[Family::Kill, Family::Pause],
    &[Family::Partition],
    &[Family::Power],
    &[Family::Membership, Family::Transfer],
    &[Family::Slots],
];
/// What a cell may take beside twice its time: to start, to end its last fault, to heal, to be read and judged.
const CELL_SLACK: Duration = Duration::from_secs(600);
const WAIT_POLL: Duration = Duration::from_millis(200);
/// Each kind is to come so often in a covering run.
const TIMES_MIN: u64 = 2;

/// What came of a cell, as `cells.jsonl` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Came {
    pub(super) cell: String,
    /// `valid`, `unknown`, `invalid` or `skipped`.
    pub(super) verdict: String,
    /// Why it was skipped or not valid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) why: String,
    /// The promises broken, of what is in `why`.
    #[serde(default)]
    pub(super) broken: Vec<String>,
    /// By what nodes, time and so on: what is resumed has to be by the same.
    #[serde(default)]
    scale: String,
    #[serde(default)]
    faults: BTreeMap<String, u64>,
    /// Where it is kept.
    #[serde(default)]
    pub(super) dir: PathBuf,
}

pub(super) struct Cell {
    pub(super) workload: String,
    pub(super) families: Vec<Family>,
}

impl Cell {
    fn nemeses(&self) -> String {
        let names: Vec<_> = self.families.iter().map(|family| family.name()).collect();
        names.join(",")
    }

    pub(super) fn name(&self) -> String {
        format!("{} × {}", self.workload, self.nemeses())
    }

    /// Why it cannot be run here.
    pub(super) fn lacks(&self) -> Option<String> {
        let needs = self.families.iter().flat_map(|family| family.needs());
        needs.copied().find_map(ground::lacks)
    }
}

/// Runs the cells; valid only if each that can be run here is.
pub(crate) fn run(arguments: &TestAll) -> anyhow::Result<Verdict> {
    let store = &arguments.scale.store;
    let name = if arguments.smoke { "smoke" } else { "cells" };
    let path = store.join(format!("{name}.jsonl"));
    let scale = arguments.scale.words();
    let mut came = Vec::new();
    if arguments.resume {
        came = read(&path)?;
        came.retain(|it: &Came| it.verdict == "valid" && it.scale == scale);
    }
    write(&path, &came)?;
    let cells = cells(arguments);
    if !arguments.smoke && arguments.scale.other_mailboxd.is_none() {
        eprintln!("without upgrades: --other-mailboxd says what to");
    }
    eprintln!(
        "{} cells of {} s each:",
        cells.len(),
        arguments.scale.time_limit
    );
    for cell in &cells {
        eprintln!("  {}", cell.name());
    }
    for (cell, number) in cells.iter().zip(1..) {
        let name = cell.name();
        if let Some(done) = came.iter().find(|it| it.cell == name) {
            println!("{number:>2} {name}: {} (before)", done.verdict);
            continue;
        }
        let it = match cell.lacks() {
            Some(why) => Came {
                cell: name.clone(),
                verdict: "skipped".to_owned(),
                why,
                broken: Vec::new(),
                scale: String::new(),
                faults: BTreeMap::new(),
                dir: PathBuf::new(),
            },
            None => run_cell(&arguments.scale, cell, None)?,
        };
        let why = if it.why.is_empty() {
            String::new()
        } else {
            format!(": {}", it.why)
        };
        println!("{number:>2} {name}: {}{why}", it.verdict);
        came.push(it);
        write(&path, &came)?;
    }
    let names: Vec<String> = cells.iter().map(Cell::name).collect();
    came.retain(|it| names.contains(&it.cell));
    Ok(conclude(&came, arguments.smoke))
}

fn cells(arguments: &TestAll) -> Vec<Cell> {
    if arguments.smoke {
        let cell = |families: &[Family]| Cell {
            workload: "mixed".to_owned(),
            families: families.to_vec(),
        };
        return SMOKE.into_iter().map(cell).collect();
    }
    let wanted =
        |names: &[String], name: &str| names.is_empty() || names.iter().any(|it| it == name);
    let mut cells = Vec::new();
    // By nemesis: what fails for one workload is likely to fail for the next.
    let asked = |families: &&[Family]| families.iter().any(|it| arguments.nemesis.contains(it));
    for families in GROUPS.into_iter().chain(APART.into_iter().filter(asked)) {
        let mut families = families.to_vec();
        if arguments.scale.other_mailboxd.is_none() {
            families.retain(|it| *it != Family::Upgrade);
        }
        let any = families.iter().any(|it| arguments.nemesis.contains(it));
        if !arguments.nemesis.is_empty() && !any {
            continue;
        }
        for workload in &workload::ALL {
            if wanted(&arguments.workload, workload.name) {
                cells.push(Cell {
                    workload: workload.name.to_owned(),
                    families: families.clone(),
                });
            }
        }
    }
    cells
}

/// As `mailbox-jepsen test` does it; with a bug on purpose, if there is to be one.
pub(super) fn run_cell(scale: &Scale, cell: &Cell, plant: Option<&str>) -> anyhow::Result<Came> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command
        .args(["test", "--json", "--workload", &cell.workload])
        .args(["--nemesis", &cell.nemeses()])
        .args(["--nodes", &scale.nodes.to_string()])
        .args(["--shards", &scale.shards.to_string()])
        .args(["--time-limit", &scale.time_limit.to_string()])
        .args(["--rate", &scale.rate.to_string()])
        .arg("--store")
        .arg(&scale.store);
    match plant {
        Some(plant) => command.env(mailbox_planted::VARIABLE, plant),
        None => command.env_remove(mailbox_planted::VARIABLE),
    };
    if let Some(seed) = scale.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(mailboxd) = &scale.mailboxd {
        command.arg("--mailboxd").arg(mailboxd);
    }
    if let Some(other) = &scale.other_mailboxd {
        command.arg("--other-mailboxd").arg(other);
    }
    let store = &scale.store;
    std::fs::create_dir_all(store).with_context(|| format!("create {}", store.display()))?;
    let said = store.join(format!("cell-{}.json", std::process::id()));
    let stdout = File::create(&said).with_context(|| format!("create {}", said.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()
        .context("run a cell")?;
    let limit = Duration::from_secs(2 * scale.time_limit) + CELL_SLACK;
    let status = match wait(&mut child, limit).context("wait for a cell")? {
        Some(status) => status.to_string(),
        None => {
            // Its nodes end with it.
            child.kill().context("kill a cell")?;
            child.wait().context("wait for a killed cell")?;
            format!("no end in {} s", limit.as_secs())
        }
    };
    let stdout = std::fs::read(&said).with_context(|| format!("read {}", said.display()))?;
    std::fs::remove_file(&said).with_context(|| format!("remove {}", said.display()))?;
    let mut came = came(cell, &stdout, &status);
    came.scale = scale.words();
    Ok(came)
}

/// Its status, unless it takes longer.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || begun.elapsed() >= limit {
            return Ok(status);
        }
        std::thread::sleep(WAIT_POLL);
    }
}

/// What a run says of itself in its last line; one that says nothing has proved nothing.
fn came(cell: &Cell, stdout: &[u8], status: &str) -> Came {
    #[derive(Deserialize)]
    struct Said {
        verdict: String,
        counts: Counts,
        violations: Vec<String>,
        doubts: Vec<String>,
        dir: PathBuf,
    }
    #[derive(Deserialize)]
    struct Counts {
        faults: BTreeMap<String, u64>,
    }
    let text = String::from_utf8_lossy(stdout);
    let said = text.lines().last().map(serde_json::from_str::<Said>);
    match said {
        Some(Ok(said)) => Came {
            cell: cell.name(),
            verdict: said.verdict,
            why: [&said.violations[..], &said.doubts[..]].concat().join("; "),
            broken: said.violations,
            scale: String::new(),
            faults: said.counts.faults,
            dir: said.dir,
        },
        _ => Came {
            cell: cell.name(),
            verdict: "unknown".to_owned(),
            why: format!("the run ended with {status} and no judgement"),
            broken: Vec::new(),
            scale: String::new(),
            faults: BTreeMap::new(),
            dir: PathBuf::new(),
        },
    }
}

/// Prints what came of all; the last line is for programs too.
fn conclude(came: &[Came], smoke: bool) -> Verdict {
    let count = |verdict: &str| came.iter().filter(|it| it.verdict == verdict).count();
    let mut verdict = if count("invalid") > 0 {
        Verdict::Invalid
    } else if count("valid") + count("skipped") < came.len() || count("valid") == 0 {
        Verdict::Unknown
    } else {
        Verdict::Valid
    };
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, times) in came.iter().flat_map(|it| &it.faults) {
        *faults.entry(kind).or_default() += times;
    }
    for (kind, times) in &faults {
        println!("  {times} × {kind}");
    }
    if !smoke {
        for kind in rare(came, &faults) {
            println!("  {kind} came less than {TIMES_MIN} times");
            verdict = verdict.max(Verdict::Unknown);
        }
    }
    println!(
        "cells {}, valid {}, skipped {}",
        came.len(),
        count("valid"),
        count("skipped")
    );
    verdict
}

/// Kinds of the cells that were run that hardly came.
fn rare(came: &[Came], faults: &BTreeMap<&str, u64>) -> Vec<&'static str> {
    let ran = |family: &Family| {
        came.iter().any(|it| {
            let names = it.cell.split(" × ").nth(1).unwrap_or_default();
            it.verdict != "skipped" && names.split(',').any(|name| name == family.name())
        })
    };
    let families = Family::ALL.into_iter().filter(ran);
    let kinds = families.flat_map(|family| family.kinds());
    let names = kinds.map(|kind| kind.name());
    names
        .filter(|name| faults.get(name).copied().unwrap_or(0) < TIMES_MIN)
        .collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<Came>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    let lines = text.lines().map(serde_json::from_str);
    let cells = lines.collect::<Result<_, _>>();
    cells.with_context(|| format!("decode {}", path.display()))
}

/// Replaced whole: whoever stops us finds all cells before or all cells after.
fn write(path: &Path, came: &[Came]) -> anyhow::Result<()> {
    if let Some(store) = path.parent() {
        std::fs::create_dir_all(store).with_context(|| format!("create {}", store.display()))?;
    }
    let next = path.with_extension("next");
    let write = || -> anyhow::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&next);
        let mut file = std::io::BufWriter::new(file?);
        for cell in came {
            serde_json::to_writer(&mut file, cell)?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
        std::fs::rename(&next, path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn test_all(words: &[&str]) -> TestAll {
        let words = [&["", "test-all"], words].concat();
        match Cli::parse_from(words).command {
            Command::TestAll(arguments) => arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_workload_meets_every_family_in_at_most_sixty_cells() {
        let met = |words: &[&str]| {
            let cells = cells(&test_all(words));
            assert!(cells.len() <= 60, "{}", cells.len());
            let met = cells.iter().flat_map(|cell| {
                let families = cell.families.iter();
                families.map(|family| (cell.workload.clone(), *family))
            });
            met.collect::<BTreeSet<_>>()
        };
        let all = met(&["--other-mailboxd", "elsewhere/mailboxd"]);
        // All but one.
        assert_eq!(all.len(), workload::ALL.len() * (Family::ALL.len() - 1));
        assert!(all.iter().all(|(_, family)| *family != Family::Failpoint));
        let asked = test_all(&["--nemesis", "failpoint"]);
        assert_eq!(cells(&asked).len(), workload::ALL.len());
        let families = |met: BTreeSet<(String, Family)>| -> BTreeSet<_> {
            met.into_iter().map(|(_, family)| family).collect()
        };
        let missing = &families(all) - &families(met(&[]));
        assert_eq!(missing, BTreeSet::from([Family::Upgrade]), "to what?");
    }

    #[test]
    fn a_part_can_be_asked_for() {
        let cells = cells(&test_all(&[
            "--workload",
            "sync,lanes",
            "--nemesis",
            "clock",
        ]));
        let names: Vec<_> = cells.iter().map(Cell::name).collect();
        assert_eq!(names, ["lanes × disk,clock", "sync × disk,clock"]);
    }

    fn cell() -> Cell {
        Cell {
            workload: "mixed".to_owned(),
            families: vec![Family::Kill],
        }
    }

    #[test]
    fn a_run_without_a_judgement_proves_nothing() {
        let said = br#"{"verdict":"valid","counts":{"faults":{"kill-all":2,"kill-leader":2,"kill-random":2}},
            "violations":[],"doubts":[],"dir":"/d"}"#;
        let said = String::from_utf8_lossy(said).replace('\n', " ");
        let valid = came(&cell(), said.as_bytes(), "exit status: 0");
        assert_eq!(valid.verdict, "valid");
        let none = came(&cell(), b"panicked", "exit status: 101");
        assert_eq!(none.verdict, "unknown");
        assert_eq!(
            conclude(std::slice::from_ref(&valid), false),
            Verdict::Valid
        );
        assert_eq!(conclude(&[valid.clone(), none], false), Verdict::Unknown);
        let invalid = Came {
            verdict: "invalid".to_owned(),
            ..valid.clone()
        };
        assert_eq!(conclude(&[valid.clone(), invalid], false), Verdict::Invalid);
        let skipped = Came {
            verdict: "skipped".to_owned(),
            ..valid.clone()
        };
        assert_eq!(
            conclude(std::slice::from_ref(&skipped), false),
            Verdict::Unknown,
            "none was run"
        );
        assert_eq!(conclude(&[valid.clone(), skipped], false), Verdict::Valid);
        let rare = Came {
            faults: BTreeMap::from([("kill-all".to_owned(), 1)]),
            ..valid
        };
        assert_eq!(
            conclude(std::slice::from_ref(&rare), false),
            Verdict::Unknown,
            "each kind twice"
        );
        assert_eq!(
            conclude(&[rare], true),
            Verdict::Valid,
            "but not in a smoke test"
        );
    }

    #[test]
    fn what_is_done_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cells.jsonl");
        assert!(read(&path).unwrap().is_empty());
        let came = came(&cell(), b"", "signal: 9");
        write(&path, std::slice::from_ref(&came)).unwrap();
        assert_eq!(read(&path).unwrap()[0].why, came.why);
    }
}
