//! Two people chat: `mailboxd dev`, and two `mailboxctl chat` in terminals of their own.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;
mod terminal;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use daemon::mailboxd;
use terminal::{Running, Terminal};

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");

/// `mailboxd dev` on free ports, and the lines that it prints for its users.
struct Dev {
    server: Running,
    commands: Vec<Vec<String>>,
    home: tempfile::TempDir,
}

impl Dev {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let server = Command::new(mailboxd())
            .args([
                "dev",
                "--json",
                "--listen",
                "127.0.0.1:0",
                "--grpc-listen",
                "127.0.0.1:0",
            ])
            .arg("--dir")
            .arg(home.path().join("dev"))
            .stdout(Stdio::piped())
            .stderr(File::create(home.path().join("dev.log")).unwrap())
            .spawn();
        let mut server = Running(server.unwrap());
        let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            (event["event"] == "ready").then_some(event)
        });
        let log = std::fs::read_to_string(home.path().join("dev.log")).unwrap();
        let ready = ready.unwrap_or_else(|| panic!("mailboxd dev is not ready:\n{log}"));
        // Goes on reading, so that the server never waits for its own output.
        std::thread::spawn(move || lines.for_each(drop));
        let users = ready["users"].as_array().unwrap();
        let commands = users.iter().map(|user| {
            user["command"]
                .as_str()
                .unwrap()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        });
        Self {
            server,
            commands: commands.collect(),
            home,
        }
    }

    /// The line that was printed for a user, with a home of the test's own.
    fn command(&self, user: usize) -> Command {
        let (program, args) = self.commands[user].split_first().unwrap();
        assert!(program.ends_with("mailboxctl"), "{program}");
        let mut command = Command::new(CTL);
        command
            .args(args)
            .env("XDG_STATE_HOME", self.home.path().join("state"));
        command
    }
}

#[test]
fn two_people_chat_in_terminals() {
    let mut dev = Dev::start();
    let mut alice = Terminal::run(dev.command(0));
    let mut bob = Terminal::run(dev.command(1));
    alice.wait_for("talking to @bob");
    bob.wait_for("talking to @alice");

    alice.type_line("hello, this is your neighbour");
    bob.wait_for("alice: hello, this is your neighbour");
    alice.wait_for("sent: mailbox:");
    bob.type_line("good to hear from you");
    alice.wait_for("bob: good to hear from you");

    alice.type_line("/help");
    alice.wait_for("/quit");
    alice.type_line("/nonsense");
    alice.wait_for("there is no /nonsense");
    alice.type_line("/quit");
    assert!(alice.program.wait().success());
    // What alice typed was echoed by the terminal and not shown a second time.
    assert_eq!(alice.count("hello, this is your neighbour"), 1);

    // A pipe works as a terminal does: its lines are sent and acked before the program ends.
    let mut piped = dev.command(0);
    piped
        .arg("--json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut piped = Running(piped.spawn().unwrap());
    piped
        .0
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntwo\n")
        .unwrap();
    assert!(piped.wait().success());
    let mut printed = String::new();
    piped
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert_eq!(printed.matches("\"sent\":").count(), 2, "{printed}");
    assert!(
        !printed.contains("good to hear"),
        "the sync key was not resumed: {printed}"
    );
    bob.wait_for("alice: one");
    bob.wait_for("alice: two");
    bob.type_line("/quit");
    assert!(bob.program.wait().success());

    let server = Pid::from_child(&dev.server.0);
    kill_process(server, Signal::TERM).unwrap();
    assert!(
        dev.server.wait().success(),
        "mailboxd dev does not stop cleanly"
    );
}
