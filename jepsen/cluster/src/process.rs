//! One `mailboxd` process that is started again and again with the same arguments.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::usage::Usage;

/// How often a stopping process is looked at.
const STOP_POLL: Duration = Duration::from_millis(20);

/// A thread that starts processes. The kernel ends them when the *thread* that started them ends
/// (see `guarded`), and a runtime's threads come and go; this one lives as long as the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    commands: mpsc::Sender<(Command, mpsc::Sender<std::io::Result<Child>>)>,
}

impl Spawner {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (commands, received) =
            mpsc::channel::<(Command, mpsc::Sender<std::io::Result<Child>>)>();
        std::thread::Builder::new()
            .name("cluster-spawner".into())
            .spawn(move || {
                for (mut command, reply) in received {
                    // Nobody waits any more only if the caller panicked.
                    let _ = reply.send(command.spawn());
                }
            })
            .context("start the spawner thread")?;
        Ok(Self { commands })
    }

    fn spawn(&self, command: Command) -> anyhow::Result<Child> {
        let (reply, child) = mpsc::channel();
        self.commands
            .send((command, reply))
            .context("reach the spawner thread")?;
        child
            .recv()
            .context("wait for the spawner thread")?
            .context("start the process")
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    binary: Mutex<PathBuf>,
    arguments: Vec<OsString>,
    /// The file of the network namespace that it lives in, if not in its starter's.
    network: Option<PathBuf>,
    log: PathBuf,
    spawner: Spawner,
    state: Arc<Mutex<State>>,
    /// Variables that the next life has beside those of this process.
    environment: Mutex<Vec<(OsString, OsString)>>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    paused: bool,
    /// Of its earlier lives.
    past: Usage,
    /// How the last life ended.
    status: Option<ExitStatus>,
    /// A signal of ours is on its way that ends it.
    is_told: bool,
    /// How lives ended that no signal of ours did.
    deaths: Vec<ExitStatus>,
}

impl Process {
    pub(crate) fn new(
        binary: &Path,
        arguments: Vec<OsString>,
        log: PathBuf,
        spawner: Spawner,
    ) -> Self {
        let state = Arc::default();
        Self {
            binary: Mutex::new(binary.to_owned()),
            arguments,
            network: None,
            log,
            spawner,
            state,
            environment: Mutex::default(),
        }
    }

    /// The same in a network namespace of its own.
    pub(crate) fn within(mut self, network: Option<PathBuf>) -> Self {
        self.network = network;
        self
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Its pid, if it runs; one that ended by itself is noticed here.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().running()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// How its last life ended; `None` while it runs and before the first start.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let mut state = self.lock();
        match state.running() {
            Some(_) => None,
            None => state.status,
        }
    }

    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let mut state = self.lock();
        if state.running().is_some() {
            return Ok(());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let stdout = log.try_clone().context("share the log file")?;
        let binary = self.binary.lock();
        let binary = binary.unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = guarded(&binary, self.network.as_deref());
        let environment = self.environment.lock();
        let environment = environment.unwrap_or_else(PoisonError::into_inner).clone();
        command
            .args(&self.arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log);
        // A Ctrl-C in the terminal is for whoever owns the cluster, which then stops it in order.
        command.process_group(0);
        let child = self
            .spawner
            .spawn(command)
            .with_context(|| format!("run {}", binary.display()))?;
        state.child = Some(child);
        state.paused = false;
        state.status = None;
        Ok(())
    }

    /// What [`Process::start`] runs from now on.
    pub(crate) fn set_binary(&self, binary: &Path) {
        let set = self.binary.lock();
        *set.unwrap_or_else(PoisonError::into_inner) = binary.to_owned();
    }

    /// Replaces what [`Process::start`] adds to the environment.
    pub(crate) fn set_environment(&self, environment: Vec<(OsString, OsString)>) {
        let set = self.environment.lock();
        *set.unwrap_or_else(PoisonError::into_inner) = environment;
    }

    pub(crate) fn kill(&self) -> anyhow::Result<bool> {
        let mut state = self.lock();
        let Some(pid) = state.running() else {
            return Ok(false);
        };
        signal(pid, Signal::KILL)?;
        state.is_told = true;
        state.reap(true)?;
        Ok(true)
    }

    /// How lives ended since the last call that neither [`Process::kill`] nor [`Process::stop`] did.
    pub(crate) fn take_deaths(&self) -> Vec<ExitStatus> {
        let mut state = self.lock();
        // One that ended by itself is noticed here.
        state.running();
        std::mem::take(&mut state.deaths)
    }

    pub(crate) fn pause(&self) -> anyhow::Result<bool> {
        let mut state = self.lock();
        let Some(pid) = state.running() else {
            return Ok(false);
        };
        signal(pid, Signal::STOP)?;
        state.paused = true;
        Ok(true)
    }

    pub(crate) fn resume(&self) -> anyhow::Result<bool> {
        let mut state = self.lock();
        let Some(pid) = state.running() else {
            return Ok(false);
        };
        signal(pid, Signal::CONT)?;
        state.paused = false;
        Ok(true)
    }

    pub(crate) async fn stop(&self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let Some(pid) = self.pid() else {
            return Ok(None);
        };
        signal(pid, Signal::TERM)?;
        self.lock().is_told = true;
        self.resume()?;
        let begun = Instant::now();
        while self.pid().is_some() {
            if begun.elapsed() >= patience {
                self.kill()?;
                bail!("process {pid} still ran {patience:?} after SIGTERM; it was killed");
            }
            tokio::time::sleep(STOP_POLL).await;
        }
        Ok(self.lock().status)
    }

    /// Of all its lives.
    pub(crate) fn usage(&self) -> Usage {
        let mut state = self.lock();
        match state.running() {
            Some(pid) => state.past + Usage::of(pid),
            None => state.past,
        }
    }

    /// A panic while it is held leaves nothing half done that a kill could not mend.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn running(&mut self) -> Option<u32> {
        // A process that cannot be waited for is taken as running; its next signal will tell.
        if self.reap(false).unwrap_or(false) {
            return None;
        }
        self.child.as_ref().map(Child::id)
    }

    /// Takes note of what an ended process has used, which is known until it is waited for; true if
    /// it has ended.
    fn reap(&mut self, wait: bool) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(true);
        };
        let mut options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        options.set(WaitIdOptions::NOHANG, !wait);
        if waitid(WaitId::Pid(pid_of(child.id())?), options)
            .context("wait for a node")?
            .is_none()
        {
            return Ok(false);
        }
        self.past = self.past + Usage::of(child.id());
        let status = child.wait().context("reap a node")?;
        if !std::mem::take(&mut self.is_told) {
            self.deaths.push(status);
        }
        self.status = Some(status);
        self.child = None;
        self.paused = false;
        Ok(true)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is left to do if it cannot be killed.
        let _ = self.kill();
    }
}

fn pid_of(pid: u32) -> anyhow::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("read the process id")
}

fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    kill_process(pid_of(pid)?, signal).with_context(|| format!("send {signal:?} to {pid}"))
}

/// The command, wrapped so that the kernel kills the process when its starter is gone, however that
/// ended; and in its network. `setpriv` and `nsenter` replace themselves by what they start, so the process id is the
/// same.
fn guarded(binary: &Path, network: Option<&Path>) -> Command {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("setpriv"))
            .find(|path| path.is_file())
    });
    let mut words = Vec::new();
    if let Some(setpriv) = found {
        words.push(setpriv.into_os_string());
        words.extend(["--pdeathsig", "KILL", "--"].map(OsString::from));
    }
    if let Some(network) = network {
        let mut file = OsString::from("--net=");
        file.push(network);
        words.extend(["nsenter".into(), file, "--".into()]);
    }
    words.push(binary.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let arguments = vec!["-c".into(), script.into()];
        let spawner = Spawner::new().unwrap();
        let process = Process::new(Path::new("/bin/sh"), arguments, log, spawner);
        (dir, process)
    }

    fn exists(pid: u32) -> bool {
        rustix::process::test_kill_process(pid_of(pid).unwrap()).is_ok()
    }

    #[test]
    fn a_killed_process_is_gone_and_can_be_started_again() {
        let (_dir, process) = shell("exec sleep 600");
        assert_eq!(process.pid(), None);
        assert!(!process.kill().unwrap(), "it did not run");
        process.start().unwrap();
        let first = process.pid().unwrap();
        process.start().unwrap();
        assert_eq!(process.pid(), Some(first), "it runs already");
        assert!(process.kill().unwrap());
        assert!(!exists(first));
        assert_eq!(process.pid(), None);
        process.start().unwrap();
        assert_ne!(process.pid().unwrap(), first);
    }

    #[test]
    fn only_ends_of_its_own_are_deaths() {
        let (_dir, process) = shell("exit 7");
        process.start().unwrap();
        while process.pid().is_some() {
            std::thread::sleep(STOP_POLL);
        }
        process.start().unwrap();
        while process.pid().is_some() {
            std::thread::sleep(STOP_POLL);
        }
        let codes =
            |deaths: Vec<ExitStatus>| -> Vec<_> { deaths.iter().map(ExitStatus::code).collect() };
        assert_eq!(codes(process.take_deaths()), [Some(7), Some(7)]);
        assert_eq!(process.take_deaths(), []);
        let (_dir, process) = shell("exec sleep 600");
        process.start().unwrap();
        assert!(process.kill().unwrap());
        assert_eq!(process.take_deaths(), []);
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let (_dir, process) = shell("exec sleep 600");
        process.start().unwrap();
        process.pause().unwrap();
        let pid = process.pid().unwrap();
        drop(process);
        assert!(!exists(pid));
    }

    #[tokio::test]
    async fn a_paused_process_can_be_stopped_in_order() {
        let (_dir, process) =
            shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done");
        process.start().unwrap();
        while std::fs::read_to_string(process.log()).unwrap_or_default() != "up\n" {
            tokio::time::sleep(STOP_POLL).await;
        }
        assert!(process.pause().unwrap());
        assert!(process.is_paused());
        let status = process
            .stop(Duration::from_secs(60))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(process.status(), Some(status));
        assert_eq!(std::fs::read_to_string(process.log()).unwrap(), "up\nbye\n");
        assert_eq!(process.stop(Duration::ZERO).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_process_that_does_not_stop_is_killed() {
        let (_dir, process) = shell("trap '' TERM; echo up; while :; do sleep 0.01; done");
        process.start().unwrap();
        while std::fs::read_to_string(process.log()).unwrap_or_default() != "up\n" {
            tokio::time::sleep(STOP_POLL).await;
        }
        assert!(process.stop(Duration::from_millis(50)).await.is_err());
        assert_eq!(process.pid(), None);
    }

    #[test]
    fn cpu_time_of_dead_processes_counts() {
        let (_dir, process) = shell("while :; do :; done");
        process.start().unwrap();
        while process.usage().cpu < Duration::from_millis(50) {
            std::thread::sleep(STOP_POLL);
        }
        process.kill().unwrap();
        let before = process.usage().cpu;
        assert!(before >= Duration::from_millis(50));
        process.start().unwrap();
        assert!(process.usage().cpu >= before);
    }
}
