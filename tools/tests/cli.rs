//! What the command lines say: every help text is kept in `tests/cli/`, so that a change is seen.
//!
//! `MAILBOX_SNAPSHOTS=update cargo test -p mailbox-tools --test cli` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
const BENCH: &str = env!("CARGO_BIN_EXE_mailbox-bench");

fn run(program: &str, args: &[&str]) -> Output {
    // Nothing of the caller's surroundings may show in a help text.
    Command::new(program)
        .args(args)
        .env_clear()
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn snapshot(name: &str) -> PathBuf {
    Path::new("tests/cli").join(format!("{name}.txt"))
}

fn assert_help(program: &str, subcommand: &[&str]) {
    let args = [subcommand, &["--help"]].concat();
    let output = run(program, &args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    let base = if program == CTL {
        "mailboxctl"
    } else {
        "mailbox-bench"
    };
    let path = snapshot(&[&[base], subcommand].concat().join("-"));
    let help = text(&output.stdout);
    if std::env::var_os("MAILBOX_SNAPSHOTS").is_some_and(|value| value == "update") {
        std::fs::write(&path, &help).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        help,
        kept,
        "the help of {args:?} is not what {} says",
        path.display()
    );
}

#[test]
fn every_help_text_is_the_kept_one() {
    let ctl: [&[&str]; 43] = [
        &[],
        &["status"],
        &["token", "issue"],
        &["user", "register"],
        &["chat"],
        &["send"],
        &["tail"],
        &["timeline", "show"],
        &["dlq"],
        &["dlq", "list"],
        &["dlq", "show"],
        &["dlq", "requeue"],
        &["dlq", "drop"],
        &["inspect"],
        &["dev-cluster"],
        &["replay"],
        &["replay", "irc"],
        &["token"],
        &["user"],
        &["cluster"],
        &["cluster", "status"],
        &["node"],
        &["node", "list"],
        &["node", "drain"],
        &["node", "undrain"],
        &["node", "remove"],
        &["shard"],
        &["shard", "list"],
        &["shard", "show"],
        &["shard", "move"],
        &["shard", "move-slot"],
        &["shard", "split"],
        &["shard", "merge"],
        &["shard", "transfer"],
        &["doctor"],
        &["capacity"],
        &["cluster", "init"],
        &["gateway"],
        &["gateway", "list"],
        &["gateway", "forget"],
        &["meta"],
        &["meta", "show"],
        &["top"],
    ];
    for subcommand in ctl {
        assert_help(CTL, subcommand);
    }
    for subcommand in [
        &[][..],
        &["send"],
        &["gateway"],
        &["group"],
        &["sync"],
        &["idle"],
        &["suite"],
        &["compare"],
        &["grow"],
        &["restart"],
    ] {
        // With the feature `peers` the first one names one command more.
        if cfg!(not(feature = "peers")) || !subcommand.is_empty() {
            assert_help(BENCH, subcommand);
        }
    }
}

#[test]
fn a_wrong_command_line_is_status_2_and_leaves_stdout_empty() {
    for args in [
        &["replay", "irc"][..],
        &["replay", "irc", "--spawn", "2", "x.txt"],
        &[
            "replay",
            "irc",
            "--dry-run",
            "--kill-leader-every",
            "10",
            "x.txt",
        ],
        &["replay", "irc", "--gateway", "ws://127.0.0.1:1", "x.txt"],
        &["dev-cluster", "--nodes", "5"],
        &["timeline", "show", "feed:1"],
        &["dlq", "requeue"],
        &["dlq", "drop", "3"],
        &["chat", "--to", "bob", "--token", "t"],
        &["capacity", "--users", "0"],
        &["capacity", "--utilisation", "1.5"],
        &["capacity", "--seeds", "3"],
        &["nonsense"],
    ] {
        let output = run(CTL, args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}");
    }
}

#[test]
fn a_failure_is_status_1_and_told_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let absent = absent.to_str().unwrap();
    for args in [
        &["replay", "irc", "--dry-run", absent][..],
        &["token", "issue", "--auth-key", absent, "--sub", "@alice"],
        &["status", "--json", "--secret-file", absent],
        &["status"],
        &["capacity", "--measured", absent],
        &["capacity", "--users", "10", "--online", "11"],
    ] {
        let output = run(CTL, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            output.stdout.is_empty(),
            "{args:?}: {}",
            text(&output.stdout)
        );
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}");
    }
}

#[test]
fn a_dry_run_counts_in_words_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let channel = "=== x joined\n[10:00] <ann> hi\n[10:01] <bob> ann: hello\n[10:02] <eve> \n";
    std::fs::write(dir.path().join("a.txt"), channel).unwrap();
    let folder = dir.path().to_str().unwrap();
    let json = run(CTL, &["replay", "irc", "--dry-run", "--json", folder]);
    let expected = "{\"lines\":2,\"skipped\":2,\"users\":3,\"direct\":1}\n";
    assert_eq!(text(&json.stdout), expected);
    let words = run(CTL, &["replay", "irc", "--dry-run", folder]);
    let expected = "2 chat lines, 1 of them directed, by 3 nicks; 2 lines skipped\n";
    assert_eq!(text(&words.stdout), expected);
}

#[test]
fn a_capacity_is_answered_in_words_and_in_json() {
    let flags = ["capacity", "--users", "1e6", "--online", "2e5"];
    let words = run(CTL, &flags);
    assert!(words.status.success(), "{}", text(&words.stderr));
    let words = text(&words.stdout);
    assert!(
        words.contains("  users = 1,000,000 users   (--users)\n"),
        "{words}"
    );
    assert!(words.contains("\ngateways   "), "{words}");
    let json = run(
        CTL,
        &[
            &flags[..],
            &["--json", "--simulate", "--seeds", "2", "--seconds", "5"],
        ]
        .concat(),
    );
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["store_nodes"].as_f64().unwrap() >= 3.0);
    assert_eq!(json["simulation"]["runs"][1]["seed"], 2);
    assert_eq!(
        json["simulation"]["runs"][1]["sends"],
        json["simulation"]["runs"][1]["delivered"]
    );
}

#[test]
fn a_token_is_the_only_thing_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    let key = key.to_str().unwrap();
    let output = run(
        CTL,
        &["token", "issue", "--auth-key", key, "--sub", "@alice"],
    );
    assert_eq!(text(&output.stdout).trim_end().split('.').count(), 3);
    let json = run(
        CTL,
        &["token", "issue", "--json", "--auth-key", key, "--sub", "17"],
    );
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["sub"], "17");
    assert!(json["expires_at_ms"].is_string());
}

#[test]
fn completions_are_printed() {
    // Words, values of options, and directories where only these make sense.
    for (shell, directories) in [
        ("bash", "plusdirs"),
        ("zsh", "_files -/"),
        ("fish", "__fish_complete_directories"),
    ] {
        let output = run(CTL, &["completions", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success(), "{shell}");
        for word in [
            "mailboxctl",
            "doctor",
            "transfer",
            "drain",
            "deliveries",
            directories,
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_bench_in_memory_is_refused() {
    if !Path::new("/dev/shm").is_dir() {
        eprintln!("skipped: there is no /dev/shm");
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = dir.path().to_str().unwrap();
    let output = run(BENCH, &["send", "--spawn", "1", "--dir", dir]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("--allow-tmpfs"), "{error}");
}

/// Two rounds of one case, as the suite writes them.
fn results(path: &Path, sends_per_s: [f64; 2]) {
    let machine = "{\"cores\":2,\"cpu\":\"A Processor\",\"memory_gib\":23.5,\"kernel\":\"6.1.0\",\"fs\":\"ext4\",\
        \"disk_fdatasync_per_s\":5000.0}";
    let lines = (1..).zip(sends_per_s).map(|(round, figure)| {
        format!(
            "{{\"suite\":1,\"case\":\"send-3-nodes-100b\",\"round\":{round},\"seconds\":15,\"ended_unix_s\":1,\
             \"revision\":null,\"build\":\"00000001-00000002\",\"machine\":{machine},\"errors\":0,\
             \"figures\":{{\"sends_per_s\":{figure}}}}}\n"
        )
    });
    std::fs::write(path, lines.collect::<String>()).unwrap();
}

#[test]
fn results_are_compared_and_a_loss_fails_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a.jsonl", "b.jsonl"].map(|name| dir.path().join(name));
    results(&a, [1000.0, 1100.0]);
    results(&b, [500.0, 550.0]);
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let words = run(BENCH, &["compare", a, b]);
    assert!(words.status.success(), "{}", text(&words.stderr));
    assert!(text(&words.stdout).contains("0 better, 1 worse"));
    let fails = run(BENCH, &["compare", a, b, "--json", "--fail-above", "5"]);
    assert_eq!(fails.status.code(), Some(1), "{}", text(&fails.stderr));
    let json: serde_json::Value = serde_json::from_slice(&fails.stdout).unwrap();
    assert_eq!(json["rows"][0]["verdict"], "worse");
    assert_eq!(json["rows"][0]["ratio"], 0.5);
    let strange = dir.path().join("letter.txt");
    std::fs::write(&strange, "Dear Alice\n").unwrap();
    let strange = run(BENCH, &["compare", a, strange.to_str().unwrap()]);
    assert_eq!(strange.status.code(), Some(1));
    let error = text(&strange.stderr);
    assert!(
        error.contains("no result of `mailbox-bench suite`"),
        "{error}"
    );
}

#[test]
fn the_suite_lists_its_cases_without_a_cluster() {
    let list = run(
        BENCH,
        &["suite", "--list", "--json", "--only", "open-3-nodes-50"],
    );
    let json: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let cases = json["cases"].as_array().unwrap();
    let names: Vec<_> = cases
        .iter()
        .map(|case| case["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["send-3-nodes-100b", "open-3-nodes-50"]);
    let wrong = run(BENCH, &["suite", "--list", "--only", "nonsense"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("no case begins with `nonsense`"));
}
