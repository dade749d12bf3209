//! Runs a workload under faults and says what came of it.
//!
//! Exit status: 0 valid, 1 a promise was broken, 2 the run proves nothing or the harness failed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::history::History;
use mailbox_jepsen::smoke::{self, SmokeOptions, Summary};

/// Puts a mailbox cluster under faults and checks what it promises.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Users send to each other and to groups while nodes are killed and paused.
    Smoke(Smoke),
    /// Judges a recorded history again.
    Recheck {
        /// The `history.jsonl` of a run.
        history: PathBuf,
        #[command(flatten)]
        run: Smoke,
    },
}

#[derive(Debug, Args)]
struct Smoke {
    /// Nodes of the cluster: 1 or 3.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Shards of the cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// How long faults are installed.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// What faults and messages follow from; random if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The mailboxd to run; the one beside this program if not given.
    #[arg(long, env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
    /// Where histories go, and the nodes' files of runs that were not valid.
    #[arg(long, default_value = "./target/jepsen")]
    store: PathBuf,
    /// One JSON object instead of words (also: --output json).
    #[arg(long)]
    json: bool,
    /// `text` or `json`.
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Smoke {
    fn options(&self) -> SmokeOptions {
        SmokeOptions {
            nodes: self.nodes,
            seconds: self.seconds,
            seed: self
                .seed
                .unwrap_or_else(|| u64::from(rand::random::<u32>())),
            shards: self.shards,
            binary: self.mailboxd.clone(),
            store: self.store.clone(),
        }
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match run(&Cli::parse()) {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Verdict> {
    let (arguments, summary) = match &cli.command {
        Command::Smoke(arguments) => {
            let options = arguments.options();
            eprintln!("seed {}", options.seed);
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            (arguments, runtime.block_on(smoke::run(&options))?)
        }
        Command::Recheck { history: path, run } => {
            let file = std::fs::File::open(path);
            let file = file.with_context(|| format!("open {}", path.display()))?;
            let history = History::read(std::io::BufReader::new(file))?;
            (run, smoke::recheck(&run.options(), &history, path.clone()))
        }
    };
    if arguments.json || arguments.output == "json" {
        println!(
            "{}",
            serde_json::to_string(&summary).context("encode the summary")?
        );
    } else {
        print_words(&summary);
    }
    Ok(summary.verdict)
}

fn print_words(summary: &Summary) {
    let counts = &summary.counts;
    println!(
        "{:?}: {} acked, {} unknown ({} of them happened), {} refused, {} reads, {} pages, {} rows",
        summary.verdict,
        counts.acked,
        counts.unknown,
        counts.unknown_found,
        counts.failed,
        counts.reads,
        counts.pages,
        counts.rows
    );
    for (kind, count) in &counts.faults {
        println!("  {count} × {kind}");
    }
    for violation in &summary.violations {
        println!("  broken: {violation}");
    }
    for doubt in &summary.doubts {
        println!("  doubt: {doubt}");
    }
    println!("history: {}", summary.history.display());
    println!("again: {}", summary.reproduce);
}
