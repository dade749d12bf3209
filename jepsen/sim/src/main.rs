//! Runs seeds, one after the other on each core, and says which of them break a promise.
//!
//! Exit status: 0 none does, 1 some do, 2 the simulation itself fails.

mod cluster_seeds;
mod engine_seeds;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, Parser, Subcommand};

/// Simulates clusters from seeds, and judges what became of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  mailbox-sim engine --seeds 1000
  mailbox-sim cluster --seeds 100
  mailbox-sim cluster --seed 7        # twice, and whether it was the same"
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The engine, its lanes and its base store, over a model of what Raft promises: thousands of seeds a minute.
    Engine(Seeds),
    /// Whole nodes: Raft, the shared log, snapshots, gRPC, relay and placement, over a simulated network.
    Cluster(Seeds),
}

#[derive(Debug, Args)]
struct Seeds {
    /// How many seeds, beginning with `--from`.
    #[arg(long, default_value_t = 200, conflicts_with = "seed")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// This seed only, twice: with what happened in it, and whether it was the same.
    #[arg(long)]
    seed: Option<u64>,
    /// With `--seed`: once, for the process that asked for it. Prints JSON.
    #[arg(long, hide = true, requires = "seed")]
    once: bool,
}

impl Seeds {
    fn range(&self) -> Range<u64> {
        self.from..self.from.saturating_add(self.seeds)
    }
}

/// Does something with each seed, on all cores; ends with the first error.
fn each(seeds: &Range<u64>, work: impl Fn(u64) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return Ok(());
                }
                work(seed)?;
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        Ok(())
    })
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Engine(seeds) => match seeds.seed {
            Some(seed) => engine_seeds::one(seed),
            None => engine_seeds::many(seeds.range()),
        },
        What::Cluster(seeds) => match seeds.seed {
            Some(seed) if seeds.once => cluster_seeds::once(seed),
            Some(seed) => cluster_seeds::one(seed),
            None => cluster_seeds::many(seeds.range()),
        },
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
