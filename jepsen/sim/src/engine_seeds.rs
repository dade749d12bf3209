//! Seeds of the engine's simulation.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::each;

/// One seed, twice: what happened, and whether it was the same.
pub(crate) fn one(seed: u64) -> anyhow::Result<bool> {
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

/// All of them.
pub(crate) fn many(seeds: std::ops::Range<u64>) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let (failed, acked, steps) = (Mutex::new(Vec::new()), AtomicU64::new(0), AtomicU64::new(0));
    each(&seeds, |seed| {
        let run = std::panic::catch_unwind(|| mailbox_sim::run(seed));
        let Ok(run) = run else {
            println!("seed {seed}: a panic");
            failed
                .lock()
                .unwrap_or_else(|it| it.into_inner())
                .push(seed);
            return Ok(());
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
