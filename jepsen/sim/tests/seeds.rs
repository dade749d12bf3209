//! Seeds that every change has to pass; `mailbox-sim engine --seeds 1000` runs more.

#![allow(clippy::unwrap_used, reason = "it is test code")]

/// A minute's work at most, on one slow core.
const SEEDS: u64 = 200;

#[test]
fn no_seed_breaks_a_promise() {
    let mut all = mailbox_sim::Met::default();
    for seed in 1..=SEEDS {
        let run = mailbox_sim::run(seed).unwrap();
        assert_eq!(run.faults(), Vec::<String>::new(), "seed {seed}");
        let counts = &run.report.counts;
        assert!(
            counts.acked > 50 && counts.reads > 20,
            "seed {seed} proves little: {counts:?}"
        );
        all.crashes_in_ingest += run.met.crashes_in_ingest;
        all.installs += run.met.installs;
        all.survived += run.met.survived;
        all.lost += run.met.lost;
        all.repeats += run.met.repeats;
    }
    let met = [
        all.crashes_in_ingest,
        all.installs,
        all.survived,
        all.lost,
        all.repeats,
    ];
    assert!(met.iter().all(|it| *it > 20), "they prove little: {all:?}");
}

#[test]
fn a_seed_is_the_same_run_again() {
    for seed in [1, 7, 42] {
        let (first, second) = (
            mailbox_sim::run(seed).unwrap(),
            mailbox_sim::run(seed).unwrap(),
        );
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.history, second.history, "seed {seed}");
        let other = mailbox_sim::run(seed + 1).unwrap();
        assert_ne!(first.trace, other.trace);
    }
}
