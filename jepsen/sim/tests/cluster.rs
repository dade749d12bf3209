//! Whole clusters from seeds that every change has to pass; `mailbox-sim cluster --seeds 1000` runs more.

#![allow(clippy::unwrap_used, reason = "it is test code")]

use std::process::Command;

/// A minute's work, on two slow cores.
const SEEDS: &str = "24";

/// Standard output, and whether all was well.
fn mailbox_sim(args: &[&str]) -> (String, bool) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_mailbox-sim"));
    let output = program.arg("cluster").args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.success())
}

#[test]
fn no_seed_breaks_a_promise() {
    let (text, is_well) = mailbox_sim(&["--seeds", SEEDS]);
    assert!(is_well, "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with(SEEDS), "{last}");
    // Each sort of what may go wrong, and of what an operator does, has been there.
    for (what, at_least) in [
        ("sends acked", 5000),
        ("reads", 5000),
        ("kills", 20),
        ("power cuts", 20),
        ("blackouts", 3),
        ("isolations", 15),
        ("holds", 20),
        ("losses", 10),
        ("transfers", 5),
        ("moves", 5),
        ("splits", 3),
        ("drains", 1),
    ] {
        let counts = last
            .split([',', ';'])
            .filter_map(|it| it.trim().split_once(' '));
        let mut found = counts.filter(|(_, words)| *words == what);
        let often: u64 = found.next().map_or(0, |(often, _)| often.parse().unwrap());
        assert!(often >= at_least, "{often} {what} prove little: {last}");
    }
}

#[test]
fn a_seed_is_the_same_run_again() {
    let (text, is_well) = mailbox_sim(&["--seed", "7"]);
    assert!(is_well, "{text}");
    assert!(
        text.contains("another run of the seed was the same"),
        "{text}"
    );
    let trace = |text: &str| {
        let begin = text.find("trace ").unwrap();
        text[begin..begin + 22].to_owned()
    };
    let (other, _) = mailbox_sim(&["--seed", "8"]);
    assert_ne!(trace(&text), trace(&other));
}
