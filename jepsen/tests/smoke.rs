//! A short run of the smoke workload against the real `mailboxd`.

use std::path::{Path, PathBuf};
use std::process::Command;

use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::smoke::{self, SmokeOptions};

/// The `mailboxd` of this build; made if this test is the only thing that was built.
fn mailboxd() -> PathBuf {
    if let Some(path) = std::env::var_os("MAILBOXD") {
        return path.into();
    }
    // target/<profile>/deps/<this test>
    let test = std::env::current_exe().expect("this test's own path");
    let profile_dir = test.ancestors().nth(2).expect("the profile's directory");
    let path = profile_dir.join(format!("mailboxd{}", std::env::consts::EXE_SUFFIX));
    if !path.is_file() {
        build(profile_dir);
    }
    path
}

fn build(profile_dir: &Path) {
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let target_dir = profile_dir.parent().expect("the target directory");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--package",
            "mailbox-server",
            "--bin",
            "mailboxd",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "mailboxd was not built");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acked_is_lost_doubled_or_reordered_under_kills_and_pauses() {
    let store = tempfile::tempdir().expect("a temporary directory");
    let mut options = SmokeOptions {
        nodes: 3,
        seconds: 20,
        seed: u64::from(rand::random::<u32>()),
        binary: Some(mailboxd()),
        store: store.path().to_owned(),
    };
    if let Some(seed) = std::env::var("MAILBOX_JEPSEN_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        options.seed = seed;
    }
    println!("seed {} (set MAILBOX_JEPSEN_SEED to repeat)", options.seed);
    let summary = smoke::run(&options).await;
    let valid = matches!(&summary, Ok(summary) if summary.verdict == Verdict::Valid);
    if !valid {
        let kept = store.keep();
        panic!(
            "{summary:#?}\nhistory, data and logs are kept in {}",
            kept.display()
        );
    }
    println!("{summary:#?}");
}
