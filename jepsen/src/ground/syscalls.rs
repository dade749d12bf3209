//! System calls of a running process that take their time, or fail: strace answers them, no module of the kernel is
//! needed, and the process need not be started anew.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::shell;

/// strace has to hold the process so soon.
const HELD_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What becomes of a process's system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    /// Each sync takes so much longer.
    SlowSyncs(Duration),
    /// The next sync of each thread fails with EIO.
    FailedSync,
    /// All reads at an offset fail with EIO: those of files.
    FailedReads,
}

impl Tamper {
    fn words(self) -> [String; 4] {
        let (calls, how) = match self {
            Self::SlowSyncs(by) => (
                "fdatasync,fsync",
                format!("delay_enter={}", by.as_micros().max(1)),
            ),
            Self::FailedSync => ("fdatasync,fsync", "error=EIO:when=1".to_owned()),
            Self::FailedReads => ("pread64", "error=EIO".to_owned()),
        };
        [
            "-e".to_owned(),
            format!("trace={calls}"),
            "-e".to_owned(),
            format!("inject={calls}:{how}"),
        ]
    }
}

/// Until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Tampering {
    pid: u32,
    strace: Child,
}

impl Tampering {
    /// Begins with it; returns when the process is held.
    ///
    /// # Errors
    /// When the process cannot be traced, or ends meanwhile.
    pub fn begin(pid: u32, how: Tamper) -> anyhow::Result<Self> {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()])
            .args(how.words())
            .env("PATH", shell::path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run strace")?;
        let mut tampering = Self { pid, strace };
        let begun = Instant::now();
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            let status = status.with_context(|| format!("look at process {pid}"))?;
            if tracer(&status) == Some(tampering.strace.id()) {
                return Ok(tampering);
            }
            if let Some(status) = tampering.strace.try_wait().context("wait for strace")? {
                bail!("strace ended with {status}");
            }
            if begun.elapsed() > HELD_WITHIN {
                bail!("strace does not hold process {pid}");
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Tampering {
    /// Whether the process is held still, or has ended.
    ///
    /// # Errors
    /// When it runs as it likes.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.strace.try_wait().context("wait for strace")?;
        match ended.filter(|_| is_running(self.pid)) {
            Some(status) => bail!("strace ended with {status} before its process"),
            None => Ok(()),
        }
    }
}

/// Whether there is such a process, other than one that has ended and is not reaped.
fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("\nState:\tZ"))
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // Told, it lets go of every thread; the kernel does the same for one that is killed.
        if let Some(pid) = Pid::from_raw(i32::try_from(self.strace.id()).unwrap_or(0))
            && matches!(self.strace.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.strace.try_wait(), Ok(None)) {
            if begun.elapsed() > HELD_WITHIN {
                let _ = self.strace.kill();
                let _ = self.strace.wait();
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Who traces a process, by what `/proc/PID/status` says of it.
fn tracer(status: &str) -> Option<u32> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_traces_is_read() {
        assert_eq!(tracer("Name:\tx\nTracerPid:\t12\nUid:\t0\n"), Some(12));
        assert_eq!(tracer("TracerPid:\t0\n"), None);
        assert_eq!(tracer(""), None);
    }

    #[test]
    fn words_are_those_of_strace() {
        let slow = Tamper::SlowSyncs(Duration::from_millis(200)).words();
        assert_eq!(slow[3], "inject=fdatasync,fsync:delay_enter=200000");
        assert_eq!(Tamper::FailedReads.words()[3], "inject=pread64:error=EIO");
    }

    #[test]
    fn a_process_that_is_gone_cannot_be_held() {
        assert!(Tampering::begin(u32::MAX, Tamper::FailedSync).is_err());
    }
}
