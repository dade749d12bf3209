//! `mailbox-bench suite`: every case of a fixed list, one after another, into a file of results.
//!
//! `case.rs` has the list, `run.rs` what a case does, `figures.rs` what its figures mean. A case of a new kind is an entry
//! in each. Every case has a cluster of its own: none inherits files, caches or compactions from the one before.

mod case;
pub(super) mod figures;
pub(super) mod machine;
mod plan;
pub(super) mod results;
mod run;
pub(super) mod spread;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::bars;
use crate::output::OutputArgs;
use plan::{List, Plan, Step, minutes};
use results::{Line, Origin, Results, ResultsFile};
use run::Place;
use spread::Side;

/// Longest that all cases together may take in one round, in seconds, unless --seconds asks for more.
const ROUND_S_MAX: u64 = 45 * 60;

/// Run a fixed list of cases and keep what each has measured
///
/// One and three nodes; 1, 16 and 64 shards; bodies of 100 bytes to 8 KiB as fast as it goes; latency at 25, 50 and 75 % of
/// what was just reached; sends mixed with syncs; through gateways; groups that are online; syncs, hot and cold; at rest.
/// Each case has a throw-away cluster of its own. Without flags all of it takes at most 45 minutes and needs some 10 GB in
/// --dir.
///
/// The plan is printed first. Each result is added to the file at --out as its case ends: a run that was ended early goes
/// on with --resume. `mailbox-bench compare` compares two such files; give both sides some --rounds, since without them
/// nobody can tell a difference from noise. An error in any case makes the exit status 1.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run these cases only: names, or how names begin. A case that takes its rate from another one brings it along
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Show the cases and how long each takes, and end
    #[arg(long)]
    list: bool,
    /// Seconds that each case measures; default: 15 or 20, by case
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// Run all cases so many times, one round after another
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Begin no case that is not expected to end within this time; default: 45m a round, unless --seconds asks for longer
    #[arg(long, value_name = "DURATION", value_parser = crate::duration::parse)]
    within: Option<Duration>,
    /// The results: one JSON line for each case and round. Results that are there are kept beside it as NAME.1.jsonl
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, default_value = "./target/bench/suite.jsonl")]
    out: PathBuf,
    /// Go on with the results at --out, and skip what they have of this revision, build and machine
    #[arg(long)]
    resume: bool,
    /// Draw the results as an SVG picture, too
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    plot: Option<PathBuf>,
    /// What the sources are called in the results; default: what git says of the current directory
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,
    /// Where clusters keep their data; a new directory in it is made for each case and removed again
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, default_value = "./target/bench")]
    dir: PathBuf,
    /// Take a DIR in memory, where an fsync costs and proves nothing
    #[arg(long)]
    allow_tmpfs: bool,
    /// The `mailboxd` to run; default: the one beside this program
    #[arg(long, value_name = "FILE", env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
}

/// Runs what is asked for; true if every case ended well.
pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let cases = case::choose(&args.only)?;
    if args.list {
        output.print(&List::new(&cases, args.seconds), List::human)?;
        return Ok(true);
    }
    let mailboxd = mailbox_cluster::find_mailboxd(args.mailboxd.as_deref())?;
    let origin = Origin {
        revision: args.revision.clone().or_else(machine::revision),
        build: machine::build(&mailboxd)?,
        machine: machine::Machine::look(&args.dir, args.allow_tmpfs)?,
    };
    let (file, kept) = if args.resume {
        (ResultsFile::resume(&args.out)?, None)
    } else {
        ResultsFile::begin(&args.out)?
    };
    let plan = Plan::new(&cases, args.rounds, args.seconds, |step| {
        plan::holds(file.lines(), step, &origin, args.seconds)
    });
    announce(&args, &plan, &origin, kept.as_deref());
    let place = Place {
        dir: args.dir.clone(),
        allow_tmpfs: args.allow_tmpfs,
        mailboxd,
    };
    let mut course = Course {
        file,
        place,
        origin,
        seconds: args.seconds,
        output,
    };
    let good = course.run(&plan, limit(&args, &plan)).await?;
    eprintln!("results are in {}", args.out.display());
    if let Some(path) = &args.plot {
        let results = Results::read(&args.out)?;
        bars::write(path, &[Side::new("suite", &results.lines)])?;
    }
    Ok(good)
}

/// How long all of it may take; `None`: as long as it takes.
fn limit(args: &Args, plan: &Plan) -> Option<Duration> {
    let usual = ROUND_S_MAX * u64::from(args.rounds);
    let usual = (plan.left_s(0) <= usual).then(|| Duration::from_secs(usual));
    args.within.or(usual)
}

/// The plan and everything that its figures depend on, on stderr.
fn announce(args: &Args, plan: &Plan, origin: &Origin, kept: Option<&Path>) {
    eprintln!("{}", plan.human());
    eprintln!("machine   {}", origin.machine.human());
    let revision = origin.revision.as_deref().unwrap_or("unknown");
    eprintln!("revision  {revision}, build {}", origin.build);
    eprintln!("results   {}", args.out.display());
    if let Some(kept) = kept {
        eprintln!("          those that were there are now {}", kept.display());
    }
    // A debug build is ten times slower, and nothing in a result would say why.
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build: its figures say nothing");
    }
}

/// A suite under way.
struct Course {
    file: ResultsFile,
    place: Place,
    origin: Origin,
    seconds: Option<u64>,
    output: OutputArgs,
}

impl Course {
    /// Runs every step of a plan; true if all went well. A case that fails is told and does not end the others.
    async fn run(&mut self, plan: &Plan, within: Option<Duration>) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let mut bad: Vec<String> = Vec::new();
        let mut late: Vec<String> = Vec::new();
        for (number, step) in plan.steps.iter().enumerate() {
            let Step { case, round } = step;
            let name = format!("{} (round {round})", case.name);
            let expected = Duration::from_secs(case.expected_s(self.seconds));
            if within.is_some_and(|within| begun.elapsed() + expected > within) {
                late.push(name);
                continue;
            }
            eprintln!(
                "[{}/{}] {name}: about {} s; about {} left",
                number + 1,
                plan.steps.len(),
                expected.as_secs(),
                minutes(plan.left_s(number))
            );
            match self.step(step).await {
                Ok(0) => {}
                Ok(errors) => bad.push(format!("{name}: {errors} operations failed")),
                Err(error) => bad.push(format!("{name}: {error:#}")),
            }
        }
        for bad in &bad {
            eprintln!("error: {bad}");
        }
        if !late.is_empty() {
            let late = late.join(", ");
            eprintln!(
                "error: no time was left for {late}: --resume runs these, --within gives more"
            );
        }
        Ok(bad.is_empty() && late.is_empty())
    }

    /// Runs one step and keeps its result; how many of its operations failed.
    async fn step(&mut self, step: &Step) -> anyhow::Result<u64> {
        let Step { case, round } = *step;
        let seconds = case.seconds(self.seconds);
        let needed = case.needs();
        let reached =
            needed.and_then(|of| plan::reached(self.file.lines(), of, round, &self.origin));
        let measured = Box::pin(run::run(case, seconds, &self.place, reached)).await?;
        let errors = measured.1;
        let line = Line::new((case.name, round, seconds), self.origin.clone(), measured);
        // Kept first: whoever reads what is printed may be gone.
        self.file.add(line.clone())?;
        let printed = self.output.print(&line, Line::human);
        printed.context("print a result")?;
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn limit_s(flags: &[&str]) -> Option<u64> {
        let line = [&["suite"], flags].concat();
        let args = Line::parse_from(line).args;
        let cases = case::choose(&args.only).unwrap();
        let plan = Plan::new(&cases, args.rounds, args.seconds, |_| false);
        limit(&args, &plan).map(|limit| limit.as_secs())
    }

    #[test]
    fn the_usual_limit_binds_what_usually_fits() {
        assert_eq!(limit_s(&[]), Some(ROUND_S_MAX));
        assert_eq!(limit_s(&["--rounds", "3"]), Some(3 * ROUND_S_MAX));
        assert_eq!(limit_s(&["--seconds", "600"]), None, "asked for longer");
        let both = limit_s(&["--seconds", "600", "--within", "90m"]);
        assert_eq!(both, Some(90 * 60));
    }
}
