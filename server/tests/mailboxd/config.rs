//! `mailboxd config` and the sources of options.

use crate::process::{command, finish, run};

#[test]
fn the_default_is_a_file_that_check_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mailbox.toml");
    let printed = run(&["config", "default"]);
    assert!(printed.status.success());
    std::fs::write(&file, &printed.stdout).unwrap();
    let checked = run(&["config", "check", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", checked.stderr);
    assert!(
        run(&["config", "explain", "node.listen"])
            .stdout
            .contains("MAILBOX_NODE__LISTEN")
    );
}

#[test]
fn an_unknown_option_is_named_wherever_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mailbox.toml");
    let data = dir.path().join("data");
    let text = format!(
        "[node]\ndir = \"{}\"\nlisten_to = \"127.0.0.1:1\"\n",
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for ended in [
        run(&["config", "check", file]),
        run(&["server", "--config", file]),
        run(&["config", "check", "--set", "node.listen_to=1"]),
        finish(command(&["config", "check"]).env("MAILBOX_NODE__LISTEN_TO", "1")),
    ] {
        assert!(!ended.status.success());
        assert!(ended.stderr.contains("listen_to"), "{}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{}", ended.stdout);
        assert!(!data.exists(), "nothing is made");
    }
}

#[test]
fn the_environment_overrides_the_file_and_a_flag_both() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mailbox.toml");
    std::fs::write(
        &file,
        "[node]\nconnections_max = 100\n[limits]\nsync_messages_max = 300\n",
    )
    .unwrap();
    let mut command = command(&["config", "check", file.to_str().unwrap(), "--json"]);
    command.args(["--set", "node.connections_max=102"]);
    command.env("MAILBOX_NODE__CONNECTIONS_MAX", "101");
    command.env("MAILBOX_LIMITS__SYNC_MESSAGES_MAX", "301");
    let ended = finish(&mut command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let values: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(values["node"]["connections_max"], 102);
    assert_eq!(values["limits"]["sync_messages_max"], 301);
}

#[test]
fn a_listener_that_others_reach_does_not_start_without_tls() {
    let ended = run(&["server", "--set", "node.listen=0.0.0.0:0"]);
    assert!(!ended.status.success());
    assert!(ended.stderr.contains("allow_plaintext"), "{}", ended.stderr);
}

#[test]
fn a_budget_over_the_limit_on_files_is_refused_with_both_numbers() {
    let ended = run(&[
        "server",
        "--set",
        "storage.max_open_files=1000000",
        "--set",
        "node.connections_max=100000",
    ]);
    assert!(!ended.status.success());
    // Where the hard limit is above a million, it fails later, on the missing secret.
    let named = ended.stderr.contains("max_open_files") || ended.stderr.contains("secret");
    assert!(named, "{}", ended.stderr);
}
