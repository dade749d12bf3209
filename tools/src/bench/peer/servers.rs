//! A peer's processes in a throw-away directory. However the bench ends, they end with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::account::Account;
use super::usage;

/// Below the ports that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
const PORT_ATTEMPTS_MAX: usize = 1000;
/// How long a process may take from its start until it serves, and from its stop signal to its end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that is thrown away may take to end in order.
const THROWN_AWAY_PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt to reach a starting process may take.
const ATTEMPT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// Bytes of a log's end that an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// What is run, and how it ends.
pub(super) struct Launch {
    /// Of the process in messages, of its folder and of its log.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Whom it runs as, if not as the bench does.
    pub(super) account: Option<Account>,
    /// Ends it in order.
    pub(super) stop: Signal,
    pub(super) abort: Abort,
}

/// What ends a process at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Abort {
    Kill,
    /// For one that has more than itself to clear away: processes, shared memory.
    Quit,
}

impl Abort {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Quit => Signal::QUIT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Quit => "QUIT",
        }
    }
}

/// Processes and their files. Dropped: both are gone.
pub(super) struct Servers {
    // Before the directory, so that they end before their files go.
    running: Vec<Server>,
    starter: Starter,
    dir: tempfile::TempDir,
}

struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
    abort: Abort,
}

impl Servers {
    /// A new directory in `dir`.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| format!("find {}", dir.display()))?;
        let made = tempfile::Builder::new().prefix("peer-").tempdir_in(&dir);
        Ok(Self {
            running: Vec::new(),
            starter: Starter::new()?,
            dir: made.with_context(|| format!("make a directory in {}", dir.display()))?,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A folder for a process; `account`, if given, owns it.
    ///
    /// # Errors
    /// It cannot be made, or `account` cannot reach it.
    pub(super) fn folder(&self, name: &str, account: Option<&Account>) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        if let Some(account) = account {
            let passable = fs::Permissions::from_mode(0o711);
            fs::set_permissions(self.dir.path(), passable).context("open the directory")?;
            chown(&path, Some(account.user), Some(account.group))
                .with_context(|| format!("give {} to {}", path.display(), account.name))?;
            account.require_way_to(&path)?;
        }
        Ok(path)
    }

    /// Starts a process; its output goes to a log beside its folder.
    pub(super) fn start(&mut self, launch: Launch) -> anyhow::Result<()> {
        let log = self.dir.path().join(format!("{}.log", launch.name));
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = guarded(&launch, self.dir.path());
        command
            .stdout(output.try_clone().context("share the log")?)
            .stderr(output);
        let child = self.starter.start(command);
        let child = child.with_context(|| format!("run {}", launch.program.display()))?;
        self.running.push(Server {
            name: launch.name,
            child,
            log,
            stop: launch.stop,
            abort: launch.abort,
        });
        Ok(())
    }

    /// Runs a program to its end, as `launch` says.
    ///
    /// # Errors
    /// It fails; what it printed is told.
    pub(super) async fn finish(&self, launch: Launch) -> anyhow::Result<()> {
        let mut command = guarded(&launch, self.dir.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = tokio::task::spawn_blocking(move || command.output());
        let output = run.await?;
        let output = output.with_context(|| format!("run {}", launch.program.display()))?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            bail!("{} ended with {}: {told}", launch.name, output.status);
        }
        Ok(())
    }

    /// Tries until it succeeds, while all processes run.
    ///
    /// # Errors
    /// A process ended, or it did not succeed within a minute.
    pub(super) async fn until_ready<T>(
        &mut self,
        what: &str,
        mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            let last = match tokio::time::timeout(ATTEMPT, attempt()).await {
                Ok(Ok(reached)) => return Ok(reached),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("there was no answer within {ATTEMPT:?}"),
            };
            self.require_running()?;
            if begun.elapsed() > PATIENCE {
                let logs = self.running.iter().map(Server::log_tail);
                let logs: Vec<String> = logs.collect();
                let late = format!(
                    "{what}: not within {PATIENCE:?}. The logs end with:\n{}",
                    logs.join("\n")
                );
                return Err(last.context(late));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// # Errors
    /// A process has ended.
    pub(super) fn require_running(&mut self) -> anyhow::Result<()> {
        for server in &mut self.running {
            if let Some(status) = server.child.try_wait().context("look at a process")? {
                let name = &server.name;
                bail!("{name} ended with {status}; {}", server.log_tail());
            }
        }
        Ok(())
    }

    /// CPU time of all processes so far, in microseconds.
    pub(super) fn cpu_us(&self) -> u64 {
        let roots: Vec<u32> = self
            .running
            .iter()
            .map(|server| server.child.id())
            .collect();
        usage::cpu_us(&roots)
    }

    /// Stops all processes as an operator would, and removes the files.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for server in &self.running {
            server.signal(server.stop);
        }
        let begun = Instant::now();
        for server in &mut self.running {
            while !server.has_ended() {
                if begun.elapsed() > PATIENCE {
                    bail!(
                        "{} still ran {PATIENCE:?} after its stop signal",
                        server.name
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        self.running.clear();
        self.dir.close().context("remove the data")
    }
}

impl Server {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // One that has ended cannot be told anything.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    fn has_ended(&mut self) -> bool {
        // One that cannot be waited for is not ours any more.
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let begin = log.len().saturating_sub(LOG_TAIL_BYTES);
        let tail = log.get(begin..).unwrap_or_default();
        format!("log of {}: {}", self.name, String::from_utf8_lossy(tail))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(self.abort.signal());
        let begun = Instant::now();
        while begun.elapsed() < THROWN_AWAY_PATIENCE {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(POLL);
        }
        // Nothing is left to do if it cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread that starts processes. The kernel ends them when the *thread* that started them ends (see `guarded`), and
/// a runtime's threads come and go; this one lives as long as its servers.
struct Starter(mpsc::Sender<(Command, mpsc::Sender<std::io::Result<Child>>)>);

impl Starter {
    fn new() -> anyhow::Result<Self> {
        let (commands, received) =
            mpsc::channel::<(Command, mpsc::Sender<std::io::Result<Child>>)>();
        let thread = std::thread::Builder::new().name("peer-starter".into());
        let started = thread.spawn(move || {
            for (mut command, answer) in received {
                // Nobody waits any more only if the caller panicked.
                let _ = answer.send(command.spawn());
            }
        });
        started.context("start the thread that starts processes")?;
        Ok(Self(commands))
    }

    fn start(&self, command: Command) -> anyhow::Result<Child> {
        let (answer, child) = mpsc::channel();
        let sent = self.0.send((command, answer));
        sent.ok()
            .context("the thread that starts processes ended")?;
        let child = child.recv();
        Ok(child.context("the thread that starts processes ended")??)
    }
}

/// The command, wrapped so that the kernel sends the abort signal when its starter is gone, however that ended.
/// `setpriv` replaces itself by what it starts, so the process id is the same. A Ctrl-C in the terminal is for the
/// bench, which then stops everything: hence a process group of its own.
fn guarded(launch: &Launch, dir: &Path) -> Command {
    let mut command = match on_path("setpriv", &[]) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", launch.abort.name(), "--"]);
            command.arg(&launch.program);
            command
        }
        None => Command::new(&launch.program),
    };
    command
        .args(&launch.arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .process_group(0);
    if let Some(account) = &launch.account {
        command.uid(account.user).gid(account.group);
    }
    command
}

/// Finds a program: the given one, else on PATH, else in one of `further`.
///
/// # Errors
/// There is none; `fix` is told then.
pub(super) fn find(
    name: &str,
    given: Option<&Path>,
    further: &[PathBuf],
    fix: &str,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        if !path.is_file() {
            bail!("{} is not a file", path.display());
        }
        return std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    }
    on_path(name, further).with_context(|| format!("{name} is not on PATH: {fix}"))
}

fn on_path(name: &str, further: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(further.iter().cloned());
    places.find_map(|dir| {
        let program = dir.join(name);
        program.is_file().then_some(program)
    })
}

/// Ports on which nobody listens now, all different.
pub(super) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // All are held until the last is found, so that none is found twice.
    let mut held = Vec::new();
    for _ in 0..PORT_ATTEMPTS_MAX {
        let port = rand::random_range(PORTS);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
        if held.len() == N {
            break;
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    let found = ports.try_into().ok();
    found.with_context(|| format!("{N} free ports were not found in {PORT_ATTEMPTS_MAX} attempts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            name: "shell".into(),
            program: "/usr/bin/env".into(),
            // A shell cannot trap what was ignored when it began, as it is where tests run in the background.
            arguments: ["--default-signal=QUIT", "/bin/sh", "-c", script]
                .map(Into::into)
                .to_vec(),
            account: None,
            stop: Signal::TERM,
            abort: Abort::Quit,
        }
    }

    fn servers() -> (tempfile::TempDir, Servers) {
        let dir = tempfile::tempdir().unwrap();
        let servers = Servers::new(dir.path()).unwrap();
        (dir, servers)
    }

    async fn said(servers: &mut Servers, text: &str) {
        let log = servers.dir().join("shell.log");
        let said = servers.until_ready("it speaks", async || {
            anyhow::ensure!(fs::read_to_string(&log)? == text);
            Ok(())
        });
        said.await.unwrap();
    }

    fn exists(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    #[tokio::test]
    async fn what_is_stopped_ends_in_order_and_leaves_nothing() {
        let (dir, mut servers) = servers();
        let kept = dir.path().join("kept");
        let script = format!(
            "trap 'echo bye > {}; exit' TERM; echo up; while :; do sleep 0.01; done",
            kept.display()
        );
        servers.start(shell(&script)).unwrap();
        said(&mut servers, "up\n").await;
        servers.stop().await.unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "bye\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_is_dropped_is_told_to_abort_and_leaves_nothing() {
        let (dir, mut servers) = servers();
        let kept = dir.path().join("kept");
        let script = format!(
            "trap 'echo aborted > {}; exit' QUIT; echo up; while :; do sleep 0.01; done",
            kept.display()
        );
        servers.start(shell(&script)).unwrap();
        said(&mut servers, "up\n").await;
        let pid = servers.running.first().unwrap().child.id();
        drop(servers);
        assert!(!exists(pid));
        assert_eq!(fs::read_to_string(&kept).unwrap(), "aborted\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_is_told_of_with_its_log() {
        let (_dir, mut servers) = servers();
        servers.start(shell("echo no port left; exit 3")).unwrap();
        let never = servers.until_ready("it serves", async || -> anyhow::Result<()> {
            bail!("not yet")
        });
        let error = never.await.unwrap_err().to_string();
        for part in ["shell ended", "no port left"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_is_told_of_with_what_it_said() {
        let (_dir, servers) = servers();
        servers.finish(shell("exit 0")).await.unwrap();
        let error = servers.finish(shell("echo bad locale >&2; exit 1")).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("bad locale"), "{error}");
    }

    #[test]
    fn a_program_is_looked_for_in_the_named_places() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a-program-that-nobody-has";
        let error = find(name, None, &[], "install it").unwrap_err().to_string();
        assert!(error.contains("install it"), "{error}");
        let program = dir.path().join(name);
        fs::write(&program, "").unwrap();
        let further = [dir.path().to_owned()];
        assert_eq!(find(name, None, &further, "").unwrap(), program);
        assert_eq!(find(name, Some(&program), &[], "").unwrap(), program);
        assert!(find(name, Some(&dir.path().join("none")), &further, "").is_err());
    }

    #[test]
    fn free_ports_are_all_different() {
        let ports: [u16; 6] = free_ports().unwrap();
        let different: std::collections::HashSet<u16> = ports.into_iter().collect();
        assert_eq!(different.len(), 6);
    }
}
