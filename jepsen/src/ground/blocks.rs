//! A block device with a volatile cache, as real disks are: what was flushed is there for good, what was only written is
//! there until the power goes. Of each sector that was written since the last flush a cut then leaves the old or the new
//! content, by chance: blocks are torn, and later ones may be there without earlier ones.
//!
//! The device is a loop device on the only file of a file system (FUSE) that this program serves, started anew for it. The
//! kernel hands over each write at once, and a flush as a sync of that file.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// The command of this program that serves a device.
pub const COMMAND: &str = "serve-blocks";
/// What it says when the file is there, and when the power is back.
pub(super) const READY: &str = "ready";
/// Followed by a seed: the power goes.
pub(super) const CUT: &str = "cut";
/// The power is back.
pub(super) const ON: &str = "on";
/// The file's name.
pub(super) const FILE: &str = "image";

/// An answer takes so long at most, and so does an end.
const WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// What a cut did to sectors that were written and not flushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sectors {
    /// These are as they were written.
    pub kept: u64,
    /// These are as they were before.
    pub lost: u64,
}

/// Served until it is dropped.
#[derive(Debug)]
pub(super) struct Blocks {
    server: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    dir: PathBuf,
}

impl Blocks {
    /// Serves what is in the file `image` as a file in the directory `dir`.
    pub(super) fn serve(image: &Path, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let program = std::env::current_exe().context("find this program")?;
        let mut server = Command::new(program)
            .arg(COMMAND)
            .args([image, dir])
            // It ends when this end of the pipe does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start what serves blocks")?;
        let orders = server.stdin.take();
        let stdout = server.stdout.take().context("its stdout is a pipe")?;
        let (said, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        let blocks = Self {
            server,
            orders,
            answers,
            dir: dir.to_owned(),
        };
        let said = blocks.answer()?;
        if said != READY {
            bail!("what serves blocks said {said:?}");
        }
        Ok(blocks)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// The power goes, at the next flush if one comes soon: from then on nothing is read, written or flushed any more.
    pub(super) fn cut(&mut self, seed: u64) -> anyhow::Result<Sectors> {
        self.order(&format!("{CUT} {seed}"))?;
        let said = self.answer()?;
        let counts = said.split_once(' ').and_then(|(kept, lost)| {
            let (kept, lost) = (kept.parse().ok()?, lost.parse().ok()?);
            Some(Sectors { kept, lost })
        });
        counts.with_context(|| format!("what serves blocks said {said:?}"))
    }

    /// The power is back, if it was gone.
    pub(super) fn restore(&mut self) -> anyhow::Result<()> {
        self.order(ON)?;
        match self.answer()?.as_str() {
            READY => Ok(()),
            said => bail!("what serves blocks said {said:?}"),
        }
    }

    fn order(&mut self, words: &str) -> anyhow::Result<()> {
        // What was answered too late is not the answer to this.
        while self.answers.try_recv().is_ok() {}
        let orders = self.orders.as_mut().context("its stdin is a pipe")?;
        writeln!(orders, "{words}").context("tell what serves blocks")
    }

    fn answer(&self) -> anyhow::Result<String> {
        match self.answers.recv_timeout(WITHIN) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("what serves blocks says nothing for {WITHIN:?}")
            }
            Err(RecvTimeoutError::Disconnected) => bail!("what serves blocks has ended"),
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        // It takes its file system away first.
        drop(self.orders.take());
        let begun = Instant::now();
        while matches!(self.server.try_wait(), Ok(None)) {
            if begun.elapsed() > WITHIN {
                let _ = self.server.kill();
                let _ = self.server.wait();
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Serves a device until stdin ends.
///
/// # Errors
/// When the image cannot be opened, or nothing can be mounted.
pub fn serve(image: &Path, dir: &Path) -> anyhow::Result<Infallible> {
    #[cfg(target_os = "linux")]
    return super::block_file::serve(image, dir);
    #[cfg(not(target_os = "linux"))]
    bail!(
        "{} is not served in {}: there are no loop devices here",
        image.display(),
        dir.display()
    );
}
