//! A replay that is given a gateway and the key of its tokens, and nothing else; and what such a run
//! leaves in the log of a server that says all it can.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
const NICKS: usize = 5;
const LINES: usize = 60;

/// `mailboxd dev` on free ports; it does not outlive the test.
struct Dev {
    server: Child,
    url: String,
    grpc: String,
    home: tempfile::TempDir,
}

impl Dev {
    fn start(log: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut server = Command::new(mailboxd())
            .args(["dev", "--json", "--listen", "127.0.0.1:0", "--grpc-listen"])
            .args(["127.0.0.1:0", "--log", log, "--dir"])
            .arg(home.path().join("dev"))
            .stdout(Stdio::piped())
            .stderr(File::create(home.path().join("dev.log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            (event["event"] == "ready").then_some(event)
        });
        std::thread::spawn(move || lines.for_each(drop));
        let ready = ready.expect("mailboxd dev is ready");
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self {
            url: text("url"),
            grpc: text("grpc"),
            server,
            home,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("dev.log")).unwrap()
    }

    /// A command without what the environment might add.
    fn ctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CTL);
        for name in ["ADDRESS", "SECRET_FILE", "TOKEN", "AUTH_KEY", "URL"] {
            command.env_remove(format!("MAILBOX_{name}"));
        }
        command.args(args);
        command
    }

    fn replay(&self, prefix: &str, more: &[&str]) -> serde_json::Value {
        let input = self.home.path().join("channel.txt");
        std::fs::write(&input, channel(prefix)).unwrap();
        let mut command = self.ctl(&["replay", "irc", "--json", "--connections", "3"]);
        command.args(["--gateway", &self.url, "--auth-key"]);
        command.arg(self.home.path().join("dev/auth.key"));
        let output = command.args(more).arg(&input).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{output:?}\n{talk}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _gone = self.server.wait();
    }
}

/// Nicks in turn; every third line is directed at the nick before.
fn channel(prefix: &str) -> String {
    let mut text = String::new();
    for line in 0..LINES {
        let (nick, other) = (line % NICKS, (line + NICKS - 1) % NICKS);
        let to = if line % 3 == 0 {
            format!("{prefix}{other}: ")
        } else {
            String::new()
        };
        writeln!(text, "[10:00] <{prefix}{nick}> {to}whispered {line}").unwrap();
    }
    text
}

fn assert_good(report: &serde_json::Value) {
    assert_eq!(report["users"], NICKS, "{report}");
    assert_eq!(report["acked"], LINES + LINES.div_ceil(3), "{report}");
    for key in ["missing", "duplicated", "misordered"] {
        assert_eq!(report[key], 0, "{report}");
    }
}

#[test]
fn a_gateway_and_its_key_are_enough_and_the_report_says_what_was_not_read() {
    let dev = Dev::start("warn");
    let report = dev.replay("nick", &[]);
    assert_good(&report);
    assert_eq!(report["gateways_only"], true, "{report}");
    // Where the node may be asked, too, its replica is read.
    let secret = dev.home.path().join("dev/mailbox.secret");
    let secret = secret.to_str().unwrap();
    let more = ["--address", dev.grpc.as_str(), "--secret-file", secret];
    let report = dev.replay("other", &more);
    assert_good(&report);
    assert!(report.get("gateways_only").is_none(), "{report}");
}

#[test]
fn a_send_is_traced_from_the_socket_to_apply_without_its_content() {
    let dev = Dev::start(
        "info,mailbox_gateway=debug,mailbox_client=debug,mailbox_server=debug,mailbox_raft=trace",
    );
    assert_good(&dev.replay("nick", &[]));
    let log = dev.log();
    let has = |parts: &[&str]| {
        let mut lines = log.lines();
        let found = lines.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has {parts:?} in\n{log}");
    };
    has(&[
        "session{user=",
        "request{request=\"send\"",
        "timeline=group:",
    ]);
    has(&["submit a frame", "shard="]);
    has(&["submit_stream{node=", "a frame is answered", "sends="]);
    has(&["submit:frame{shard=", "sends=", "checked"]);
    has(&["proposer{shard=", "propose an entry", "bytes="]);
    has(&["apply{shard=", "index=", "applied"]);
    has(&["apply{shard=", "timeline=mailbox:", "seq="]);
    has(&["dispatch{timeline=mailbox:", "push"]);
    for secret in ["whispered", "eyJ"] {
        let leak = log.lines().find(|line| line.contains(secret));
        assert_eq!(leak, None, "{secret}");
    }
    let keys = ["dev/auth.key", "dev/mailbox.secret"];
    for key in keys.map(|key| std::fs::read_to_string(dev.home.path().join(key)).unwrap()) {
        assert!(!log.contains(key.trim()));
    }
}

#[test]
fn at_level_info_a_send_leaves_nothing_in_the_log() {
    let dev = Dev::start("info");
    // A node is ready before its shards are led; once they have answered, their elections are told.
    assert_good(&dev.replay("nick", &[]));
    let before = dev.log().lines().count();
    assert_good(&dev.replay("other", &[]));
    let log = dev.log();
    let new: Vec<_> = log.lines().skip(before).collect();
    assert!(new.len() < 5, "{new:?}");
}
