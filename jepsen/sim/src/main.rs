//! Runs seeds, one after the other on each core, and says which of them break a promise.
//!
//! Exit status: 0 none does, 1 some do, 2 the simulation itself fails.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use clap::Parser;

/// Simulates clusters from seeds, and judges what became of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  mailbox-sim --seeds 1000
  mailbox-sim --seed 7"
)]
struct Cli {
    /// How many seeds, beginning with `--from`.
    #[arg(long, default_value_t = 200, conflicts_with = "seed")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// This seed only, twice: with what happened in it, and whether it was the same.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.seed {
        Some(seed) => one(seed),
        None => many(cli.from..cli.from.saturating_add(cli.seeds)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64) -> anyhow::Result<bool> {
    let (first, second) = (mailbox_sim::run(seed)?, mailbox_sim::run(seed)?);
    println!(
        "seed {seed}: {} steps, trace {:016x}, {} acked",
        first.steps, first.trace, first.report.counts.acked
    );
    let faults = first.faults();
    for fault in &faults {
        println!("  {fault}");
    }
    let is_same = (first.trace, &first.history) == (second.trace, &second.history);
    if !is_same {
        println!(
            "  another run of the same seed was another: {:016x}",
            second.trace
        );
    }
    Ok(faults.is_empty() && is_same)
}

fn many(seeds: std::ops::Range<u64>) -> anyhow::Result<bool> {
    let (next, begun) = (AtomicU64::new(seeds.start), Instant::now());
    let (failed, acked, steps) = (Mutex::new(Vec::new()), AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let work = || -> anyhow::Result<()> {
            loop {
                let seed = next.fetch_add(1, Relaxed);
                if seed >= seeds.end {
                    return Ok(());
                }
                let run = std::panic::catch_unwind(|| mailbox_sim::run(seed));
                let Ok(run) = run else {
                    println!("seed {seed}: a panic");
                    failed
                        .lock()
                        .unwrap_or_else(|it| it.into_inner())
                        .push(seed);
                    continue;
                };
                let run = run?;
                acked.fetch_add(run.report.counts.acked as u64, Relaxed);
                steps.fetch_add(run.steps, Relaxed);
                let faults = run.faults();
                if let Some(first) = faults.first() {
                    println!("seed {seed}: {first} ({} in all)", faults.len());
                    failed
                        .lock()
                        .unwrap_or_else(|it| it.into_inner())
                        .push(seed);
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        Ok(())
    })?;
    let failed = failed.into_inner().unwrap_or_else(|it| it.into_inner());
    let (count, seconds) = (seeds.end - seeds.start, begun.elapsed().as_secs_f64());
    println!(
        "{count} seeds, {} failed, {} steps, {} sends acked; {:.0} seeds a minute",
        failed.len(),
        steps.into_inner(),
        acked.into_inner(),
        count as f64 * 60.0 / seconds.max(0.001)
    );
    Ok(failed.is_empty())
}
