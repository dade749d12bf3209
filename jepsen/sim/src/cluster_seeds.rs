//! Seeds of whole clusters, each in a process of its own: see [`mailbox_sim::whole::run`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context as _, bail};
use mailbox_sim::whole;
use serde::{Deserialize, Serialize};

use crate::each;

/// What a process says of its seed.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    workload: String,
    seconds: f64,
    trace: String,
    acked: usize,
    reads: usize,
    met: BTreeMap<String, u64>,
    faults: Vec<String>,
}

/// Runs it here, and prints what came of it. A panic anywhere is told, too.
pub(crate) fn once(seed: u64) -> anyhow::Result<bool> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MAILBOX_SIM_LOG"))
        .with_timer(Simulated)
        .with_writer(std::io::stderr)
        .init();
    let panics = Box::leak(Box::new(Mutex::new(Vec::new())));
    let panics: &'static Mutex<Vec<String>> = panics;
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("{panic}");
        let mut panics = panics.lock().unwrap_or_else(|it| it.into_inner());
        panics.push(format!("a panic: {panic}"));
    }));
    let run = std::thread::Builder::new()
        .stack_size(16 << 20)
        .spawn(move || whole::run(seed))
        .context("start a thread")?
        .join();
    let Ok(run) = run else {
        bail!("the simulation panicked");
    };
    let run = run?;
    let mut faults = panics.lock().unwrap_or_else(|it| it.into_inner()).clone();
    faults.extend(run.faults());
    let told = Told {
        workload: run.workload.to_owned(),
        seconds: run.took.as_secs_f64(),
        trace: format!("{:016x}", run.trace),
        acked: run.report.counts.acked,
        reads: run.report.counts.reads,
        met: run
            .met
            .iter()
            .map(|(what, often)| ((*what).to_owned(), *often))
            .collect(),
        faults,
    };
    println!("{}", serde_json::to_string(&told).context("print")?);
    Ok(told.faults.is_empty())
}

/// Log lines carry simulated time.
struct Simulated;

impl tracing_subscriber::fmt::time::FormatTime for Simulated {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:10.3}", mailbox_fate::elapsed().as_secs_f64())
    }
}

fn child(seed: u64) -> anyhow::Result<Told> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program)
        .args(["cluster", "--once", "--seed", &seed.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("start a process")?;
    let told = serde_json::from_slice(&output.stdout);
    told.with_context(|| format!("seed {seed} ended with {}", output.status))
}

/// One seed, twice: what happened, and whether it was the same.
pub(crate) fn one(seed: u64) -> anyhow::Result<bool> {
    let (first, second) = (child(seed)?, child(seed)?);
    println!(
        "seed {seed}: {}, {:.1} s, trace {}, {} sends acked, {} reads, {}",
        first.workload,
        first.seconds,
        first.trace,
        first.acked,
        first.reads,
        in_words(&first.met)
    );
    for fault in &first.faults {
        println!("  {fault}");
    }
    let is_same = first.trace == second.trace;
    if is_same {
        println!("  another run of the seed was the same");
    } else {
        println!("  another run of the seed was another: {}", second.trace);
    }
    Ok(first.faults.is_empty() && is_same)
}

/// All of them.
pub(crate) fn many(seeds: Range<u64>) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let failed = Mutex::new(Vec::new());
    let (acked, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let met = Mutex::new(BTreeMap::<String, u64>::new());
    each(&seeds, |seed| {
        let told = child(seed)?;
        acked.fetch_add(told.acked as u64, Relaxed);
        reads.fetch_add(told.reads as u64, Relaxed);
        for (what, often) in told.met {
            let mut met = met.lock().unwrap_or_else(|it| it.into_inner());
            *met.entry(what).or_default() += often;
        }
        if let Some(first) = told.faults.first() {
            println!("seed {seed}: {first} ({} in all)", told.faults.len());
            failed
                .lock()
                .unwrap_or_else(|it| it.into_inner())
                .push(seed);
        }
        Ok(())
    })?;
    let failed = failed.into_inner().unwrap_or_else(|it| it.into_inner());
    let (count, seconds) = (seeds.end - seeds.start, begun.elapsed().as_secs_f64());
    println!(
        "{count} seeds, {} failed, {} sends acked, {} reads, {}; {:.0} seeds a minute",
        failed.len(),
        acked.into_inner(),
        reads.into_inner(),
        in_words(&met.into_inner().unwrap_or_else(|it| it.into_inner())),
        count as f64 * 60.0 / seconds.max(0.001)
    );
    Ok(failed.is_empty())
}

/// What was met with: `12 kills, 3 moves`.
fn in_words(met: &BTreeMap<String, u64>) -> String {
    let words = met.iter().map(|(what, often)| format!("{often} {what}"));
    words.collect::<Vec<_>>().join(", ")
}
