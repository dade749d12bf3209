//! The `mailboxd` that tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `mailboxd` beside `mailboxctl`; built if this package is tested alone.
pub(crate) fn mailboxd() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_mailboxctl")).with_file_name("mailboxd");
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "mailbox-server", "--bin", "mailboxd"]);
        assert!(build.status().unwrap().success(), "build mailboxd");
    }
    path
}
