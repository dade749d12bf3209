//! The five cells that every change has to pass, as `mailbox-jepsen smoke` runs them, each a little shorter.

mod binary;

use std::process::{Command, Stdio};

/// Of each cell.
const SECONDS: &str = "25";

#[test]
fn nothing_acked_is_lost_doubled_or_reordered_under_faults() {
    let store = tempfile::tempdir().expect("a temporary directory");
    let seed = std::env::var("MAILBOX_JEPSEN_SEED");
    let seed = seed.unwrap_or_else(|_| rand::random::<u32>().to_string());
    println!("seed {seed} (set MAILBOX_JEPSEN_SEED to repeat)");
    let output = Command::new(env!("CARGO_BIN_EXE_mailbox-jepsen"))
        .args([
            "smoke",
            "--time-limit",
            SECONDS,
            "--rate",
            "500",
            "--seed",
            &seed,
        ])
        .arg("--mailboxd")
        .arg(binary::mailboxd())
        .arg("--store")
        .arg(store.path())
        .stderr(Stdio::inherit())
        .output()
        .expect("run the harness");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let last = said.lines().last().unwrap_or_default();
    // Where namespaces can be had, as in the gate, nothing may be left out.
    let namespaces = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .status();
    let wanted = if namespaces.is_ok_and(|status| status.success()) {
        "cells 5, valid 5, skipped 0"
    } else {
        "cells 5, valid "
    };
    if !output.status.success() || !last.starts_with(wanted) {
        let kept = store.keep();
        panic!(
            "{}: {last}\nhistory, data and logs are kept in {}",
            output.status,
            kept.display()
        );
    }
}
