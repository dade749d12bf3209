//! Starts `mailboxd`, reads what it says, and ends it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Far above what anything here takes; only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(50);

/// A running process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

/// What a process that ended by itself said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxd"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end, which must come soon.
pub(crate) fn run(args: &[&str]) -> Ended {
    finish(&mut command(args))
}

pub(crate) fn finish(command: &mut Command) -> Ended {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn mailboxd");
    let status = wait(&mut child);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    Ended {
        status,
        stdout,
        stderr,
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the process did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Process {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(&mut command(args))
    }

    /// The same, with what it says on stderr in a file.
    pub(crate) fn start_logged(args: &[&str], stderr: &Path) -> Self {
        let file = std::fs::File::create(stderr).unwrap();
        Self::spawn(command(args).stderr(file))
    }

    /// The same, with failpoints that make it die on the way.
    pub(crate) fn start_failing(args: &[&str], failpoints: &str) -> Self {
        Self::spawn(command(args).env("FAILPOINTS", failpoints))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn mailboxd");
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line on stdout, which must be JSON.
    pub(crate) fn says(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line on stdout");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signal the process");
    }

    /// Asks to stop and waits for the end.
    pub(crate) fn stop(self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// It has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `mailboxd dev` on free ports.
pub(crate) struct Dev {
    pub(crate) process: Process,
    pub(crate) ready: Value,
}

impl Dev {
    /// With one shard: what is sent is where it belongs once it is acked.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &["--shards", "1"])
    }

    pub(crate) fn start_with(dir: &Path, more: &[&str]) -> Self {
        let dir = dir.to_str().unwrap();
        let free = "127.0.0.1:0";
        let args = ["dev", "--json", "--dir", dir, "--listen", free];
        let process = Process::start(&[&args[..], &["--grpc-listen", free], more].concat());
        let ready = process.says();
        assert_eq!(ready["event"], "ready", "{ready}");
        Self { process, ready }
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.ready[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key}: {}", self.ready))
            .to_owned()
    }

    /// `host:port` of the gateway.
    pub(crate) fn gateway(&self) -> String {
        self.text("http").trim_start_matches("http://").to_owned()
    }

    /// A field of a user: `id`, `token` or `command`.
    pub(crate) fn user(&self, handle: &str, field: &str) -> String {
        let users = self.ready["users"].as_array().expect("users");
        let user = users
            .iter()
            .find(|user| user["handle"] == handle)
            .expect("user");
        user[field].as_str().expect("text").to_owned()
    }
}
