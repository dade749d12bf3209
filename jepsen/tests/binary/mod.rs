//! The `mailboxd` that the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The `mailboxd` of this build; made if this test is the only thing that was built.
pub(crate) fn mailboxd() -> PathBuf {
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
        .status()
        .expect("cargo runs");
    assert!(status.success(), "mailboxd was not built");
}
