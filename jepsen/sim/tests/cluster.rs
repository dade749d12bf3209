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
    let number = |what: &str| -> u64 {
        let before = last.split(what).next().unwrap();
        before.split(' ').next_back().unwrap().parse().unwrap()
    };
    assert_eq!(last.split(' ').next(), Some(SEEDS), "{last}");
    let (crashes, acked) = (number(" crashes"), number(" sends acked"));
    let operations = number(" operations");
    assert!(
        crashes > 100 && operations > 20 && acked > 5000,
        "they prove little: {last}"
    );
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
