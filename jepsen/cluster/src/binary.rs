//! Finds the `mailboxd` to run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The `mailboxd` to run: the given one, else `$MAILBOXD`, else the one beside the running executable or (for
/// tests, which cargo puts a level deeper) in the directory above.
///
/// # Errors
/// There is none.
pub fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return existing(path);
    }
    if let Some(path) = std::env::var_os("MAILBOXD") {
        return existing(Path::new(&path)).context("read $MAILBOXD");
    }
    let executable = std::env::current_exe().context("find the running executable")?;
    let name = format!("mailboxd{}", std::env::consts::EXE_SUFFIX);
    let mut places = executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(&name));
    match places.find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "there is no mailboxd beside {}; build it (cargo build -p mailbox-server) or set \
             $MAILBOXD",
            executable.display()
        ),
    }
}

fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is not a file", path.display());
    }
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}
