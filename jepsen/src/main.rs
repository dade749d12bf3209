//! Runs workloads under faults and says what came of them.
//!
//! Exit status: 0 valid, 1 a promise was broken, 2 a run proves nothing or the harness failed.

mod cli;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::ground;
use mailbox_jepsen::run::{self, Summary};
use mailbox_jepsen::serve;

use cli::{Cli, Command, Print, cells, planted};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match command(cli.command) {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn command(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Test(arguments) => {
            let options = arguments.options()?;
            for need in options.needs()? {
                if let Some(why) = ground::lacks(need) {
                    anyhow::bail!("{} cannot be run here: {why}", options.name());
                }
            }
            if ground::is_apart(&options.needs()?) {
                // Before there is a second thread, or a file.
                ground::enter()?;
            }
            arguments.make_dir(&options)?;
            eprintln!("seed {}, kept in {}", options.seed, options.dir.display());
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            let summary = runtime.block_on(run::run(&options))?;
            print(arguments.print, &summary)
        }
        Command::TestAll(arguments) => cells::run(&arguments),
        Command::Smoke(arguments) => cells::run(&arguments.test_all()),
        Command::Planted(arguments) => planted::run(&arguments),
        Command::Recheck { dir, print: how } => print(how, &run::recheck(&dir)?),
        Command::HoldPackets { longest_ms } => {
            match ground::hold(Duration::from_millis(longest_ms))? {}
        }
        Command::ServeBlocks { image, dir } => match ground::serve_blocks(&image, &dir)? {},
        Command::Serve { store, listen } => {
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            runtime.block_on(serve::serve(&store, listen))?;
            Ok(Verdict::Valid)
        }
        Command::List => {
            cli::list();
            Ok(Verdict::Valid)
        }
    }
}

fn print(how: Print, summary: &Summary) -> anyhow::Result<Verdict> {
    if how.is_json() {
        let text = serde_json::to_string(summary).context("encode the summary")?;
        println!("{text}");
        return Ok(summary.verdict);
    }
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
        let slowest = counts.recovery.get(kind).and_then(|it| it.begun_ms);
        let slowest = slowest.map_or("no ack after it".to_owned(), |ms| {
            format!("acks again within {ms} ms")
        });
        println!("  {count} × {kind}: {slowest}");
    }
    println!(
        "  no shard was seen without a leader for more than {} ms",
        counts.leaderless_ms
    );
    for violation in &summary.violations {
        println!("  broken: {violation}");
    }
    for doubt in &summary.doubts {
        println!("  doubt: {doubt}");
    }
    let s = |ms: u64| ms as f64 / 1000.0;
    println!(
        "  {} operations judged in {:.1} s (read back in {:.1} s)",
        summary.operations,
        s(summary.check_ms),
        s(summary.read_ms)
    );
    println!("kept: {}", summary.dir.display());
    println!("again: {}", summary.reproduce);
    Ok(summary.verdict)
}
