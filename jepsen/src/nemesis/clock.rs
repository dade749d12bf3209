//! Wall clocks of nodes, which libfaketime turns; their monotonic clocks stay real.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library that turns clocks, if it is installed.
pub fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|file| Path::new(file).exists())
}

/// The wall clock of one node.
#[derive(Debug)]
pub struct WallClock {
    library: &'static str,
    file: PathBuf,
}

impl WallClock {
    /// One that is right, told by a file in that directory.
    ///
    /// # Errors
    /// When the file cannot be written, or there is no library.
    pub fn new(dir: &Path, node: u64) -> anyhow::Result<Self> {
        let library = library();
        let library = library.context("libfaketime is not installed (Debian: faketime)")?;
        let file = dir.join(format!("clock{node}"));
        let clock = Self { library, file };
        clock.set("+0")?;
        Ok(clock)
    }

    /// What it is to show, as libfaketime reads it: `+3600`, `-5`, `+0 x1.5`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, shows: &str) -> anyhow::Result<()> {
        // Replaced whole: it is read at every look at the clock.
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{shows}\n"))
            .and_then(|()| std::fs::rename(&next, &self.file))
            .with_context(|| format!("write {}", self.file.display()))
    }

    /// What a process needs to see it.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.into()),
            ("FAKETIME_TIMESTAMP_FILE".into(), self.file.clone().into()),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ]
    }
}
