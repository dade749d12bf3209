//! Two people chat: `mailboxd dev`, and two `mailboxctl chat` in terminals of their own.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(50);

/// `mailboxd` beside `mailboxctl`; built if this package is tested alone.
fn mailboxd() -> PathBuf {
    let path = Path::new(CTL).with_file_name("mailboxd");
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "mailbox-server", "--bin", "mailboxd"]);
        assert!(build.status().unwrap().success(), "build mailboxd");
    }
    path
}

/// A process that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

impl Running {
    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < WITHIN, "a process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A program in a terminal: what it shows, and a keyboard.
struct Terminal {
    program: Running,
    keyboard: File,
    screen: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    fn run(mut command: Command) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let name = name.to_str().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        command
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal);
        let program = Running(command.spawn().unwrap());
        // The command holds the terminal open: without it the reader ends with the program.
        drop(command);
        let keyboard = File::from(keyboard);
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut reader, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shown
                    .0
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
                shown.1.notify_all();
            }
        });
        Self {
            program,
            keyboard,
            screen,
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    fn wait_for(&self, text: &str) {
        let shown = self.screen.0.lock().unwrap();
        let wait = self
            .screen
            .1
            .wait_timeout_while(shown, WITHIN, |shown| !shown.contains(text));
        let (shown, timeout) = wait.unwrap();
        assert!(
            !timeout.timed_out(),
            "`{text}` does not appear; the screen says:\n{shown}"
        );
    }

    fn count(&self, text: &str) -> usize {
        self.screen.0.lock().unwrap().matches(text).count()
    }
}

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
