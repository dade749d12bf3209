//! A small channel is played into three real nodes that are all killed on the way; then the nodes'
//! files are inspected, whole and damaged.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::fmt::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
const NICKS: usize = 12;
const LINES: usize = 400;

/// Nicks in turn; every third line is directed at the nick before.
fn channel() -> String {
    let mut text = String::from("=== nick0 has joined\n");
    for line in 0..LINES {
        let nick = line % NICKS;
        let other = (line + NICKS - 1) % NICKS;
        let to = if line % 3 == 0 {
            format!("nick{other}: ")
        } else {
            String::new()
        };
        writeln!(text, "[10:{:02}] <nick{nick}> {to}line {line}", line / 60).unwrap();
    }
    text
}

fn json(output: &Output) -> serde_json::Value {
    let talk = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{talk}", output.stdout))
}

fn inspect(dirs: &[PathBuf]) -> (bool, serde_json::Value) {
    let mut command = Command::new(CTL);
    command.args(["inspect", "--json"]).args(dirs);
    let output = command.output().unwrap();
    (output.status.success(), json(&output))
}

/// The largest file with this extension.
fn largest(dir: &Path, extension: &str) -> PathBuf {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    files
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap()
}

/// Flips one bit; a second time gives the file back as it was.
fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// The file of a directory that holds these bytes, and where.
fn find(dir: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut places = files.filter(|path| path.is_file()).filter_map(|path| {
        let text = std::fs::read(&path).unwrap();
        let at = text
            .windows(bytes.len())
            .position(|window| window == bytes)?;
        Some((path, at as u64))
    });
    places.next().expect("the bytes are in some file")
}

/// Data directories of the nodes of a kept cluster.
fn nodes(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.ends_with("log") && folder.join("state").is_dir() {
                    found.push(folder.clone());
                }
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_is_lost_when_all_nodes_are_killed_and_damage_is_found_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("channel.txt");
    std::fs::write(&input, channel()).unwrap();
    let data = dir.path().join("data");
    let output = Command::new(CTL)
        .args([
            "replay",
            "irc",
            "--json",
            "--spawn",
            "3",
            "--connections",
            "6",
            "--inspect",
        ])
        .args(["--kill-all-at", "50", "--mailboxd"])
        .arg(mailboxd())
        .arg("--dir")
        .arg(&data)
        .arg(&input)
        .output()
        .unwrap();
    let report = json(&output);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert_eq!(report["lines"], LINES);
    assert_eq!(report["users"], NICKS);
    assert_eq!(report["direct"], LINES.div_ceil(3));
    assert_eq!(
        report["acked"],
        LINES + LINES.div_ceil(3),
        "{report}\n{talk}"
    );
    for key in ["missing", "duplicated", "misordered"] {
        assert_eq!(report[key], 0, "{report}\n{talk}");
    }
    assert_eq!(report["kills"], 3);
    assert_eq!(report["inspected"]["equal"], true, "{report}\n{talk}");
    assert!(output.status.success());

    let nodes = nodes(&data);
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    let (good, before) = inspect(&nodes);
    assert!(good, "{before}");

    // A byte in a block of an SST: the row's file and key are named, the other nodes stay good.
    let sst = largest(&nodes[0].join("state"), "sst");
    flip(&sst, 200);
    let (good, report) = inspect(&nodes);
    assert!(!good, "{report}");
    let faults = report["nodes"][0]["faults"].to_string();
    assert!(
        faults.contains(sst.file_name().unwrap().to_str().unwrap()),
        "{faults}"
    );
    assert_eq!(report["nodes"][1]["fault_count"], 0, "{report}");
    flip(&sst, 200);

    // A byte of an entry in the middle of the log: file and batch are named.
    let (log, at) = find(
        &nodes[1].join("log"),
        format!("line {}", LINES / 2).as_bytes(),
    );
    flip(&log, at);
    let (good, report) = inspect(&nodes);
    assert!(!good, "{report}");
    let faults = report["nodes"][1]["faults"].to_string();
    assert!(
        faults.contains(log.file_name().unwrap().to_str().unwrap()),
        "{faults}"
    );
    flip(&log, at);

    // Nothing of all this has changed a node.
    let (good, after) = inspect(&nodes);
    assert!(good, "{after}");
    assert_eq!(before, after);
}
