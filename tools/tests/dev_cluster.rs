//! `mailboxctl dev-cluster` as a person uses it: it starts, a node is killed and brought back, and
//! Ctrl-C ends it.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(50);

/// The program in a process group of its own, as a shell starts it.
struct Cluster {
    program: Child,
    talk: mpsc::Receiver<String>,
    ready: serde_json::Value,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        let mut program = Command::new(CTL)
            .args(["dev-cluster", "--json", "--nodes", "3", "--mailboxd"])
            .arg(mailboxd())
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let (say, talk) = mpsc::channel();
        let stderr = BufReader::new(program.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let _ = say.send(line.unwrap());
            }
        });
        let mut line = String::new();
        let mut stdout = BufReader::new(program.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            let talk: Vec<_> = talk.iter().collect();
            panic!("{error}: {line:?}\n{talk:?}")
        });
        Self {
            program,
            talk,
            ready,
        }
    }

    fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.talk.recv_timeout(WITHIN);
            let line = line.unwrap_or_else(|error| panic!("`{text}` does not appear: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn node_pid(&self, at: usize) -> Pid {
        pid(self.ready["nodes"][at]["pid"].as_u64().unwrap())
    }

    fn send(&self, from: usize, text: &str) {
        let token = self.ready["users"][from]["token"].as_str().unwrap();
        let to = self.ready["users"][1 - from]["handle"].as_str().unwrap();
        // Not the gateway of the node that is killed.
        let url = self.ready["nodes"][1]["gateway"].as_str().unwrap();
        let sent = Command::new(CTL)
            .args(["send", "--url", url, "--token", token, "--to"])
            .args([&format!("@{to}"), text])
            .output()
            .unwrap();
        assert!(sent.status.success(), "{sent:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nodes lead groups of their own.
        for node in self.ready["nodes"].as_array().into_iter().flatten() {
            if let Some(node) = node["pid"].as_u64() {
                let _gone = kill_process(pid(node), Signal::KILL);
            }
        }
        let _gone = self.program.kill();
        let _gone = self.program.wait();
    }
}

fn pid(number: u64) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

#[test]
fn it_starts_a_killed_node_comes_back_and_ctrl_c_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path());
    assert_eq!(cluster.ready["nodes"].as_array().unwrap().len(), 3);
    cluster.send(0, "hello");

    kill_process(cluster.node_pid(0), Signal::KILL).unwrap();
    cluster.send(1, "two of three are enough");
    let mut keyboard = cluster.program.stdin.take().unwrap();
    writeln!(keyboard).unwrap();
    let started = cluster.wait_for("node 1 started, pid ");
    let again: u64 = started.rsplit(' ').next().unwrap().parse().unwrap();
    assert_ne!(pid(again), cluster.node_pid(0));
    cluster.send(0, "and three are three");

    // A terminal's Ctrl-C reaches the whole group.
    let group = Pid::from_child(&cluster.program);
    kill_process_group(group, Signal::INT).unwrap();
    cluster.wait_for("stopping");
    let ended = cluster.program.wait().unwrap();
    assert!(ended.success(), "{ended}");
    for node in [pid(again), cluster.node_pid(1), cluster.node_pid(2)] {
        assert!(test_kill_process(node).is_err(), "{node:?} still runs");
    }
    // Nothing is left for the guard to kill: the numbers may be somebody else's by now.
    cluster.ready = serde_json::Value::Null;
}
