//! The five cells that every change has to pass, as `mailbox-jepsen smoke` runs them, each a little shorter.

mod binary;

use std::process::{Command, Stdio};

/// Of each cell.
const SECONDS: &str = "25";
/// What the harness ends with if a run proves nothing.
const UNKNOWN: i32 = 2;

/// Where namespaces can be had, as in the gate, nothing may be left out.
fn wanted() -> &'static str {
    let namespaces = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .status();
    if namespaces.is_ok_and(|status| status.success()) {
        "cells 5, valid 5, skipped 0"
    } else {
        "cells 5, valid "
    }
}

#[test]
fn nothing_acked_is_lost_doubled_or_reordered_under_faults() {
    let mut seed = std::env::var("MAILBOX_JEPSEN_SEED").ok();
    // A run that proves nothing is no failure of what is tested: it is done once more.
    for last_try in [false, true] {
        let store = tempfile::tempdir().expect("a temporary directory");
        let of_run = seed
            .take()
            .unwrap_or_else(|| rand::random::<u32>().to_string());
        println!("seed {of_run} (set MAILBOX_JEPSEN_SEED to repeat)");
        let output = Command::new(env!("CARGO_BIN_EXE_mailbox-jepsen"))
            .args(["smoke", "--time-limit", SECONDS])
            .args(["--rate", "500", "--seed", &of_run])
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
        if output.status.success() && last.starts_with(wanted()) {
            return;
        }
        let kept = store.keep();
        println!("history, data and logs are kept in {}", kept.display());
        assert!(
            output.status.code() == Some(UNKNOWN) && !last_try,
            "{}: {last}",
            output.status
        );
    }
}
