//! Who may link what, held by a look at cargo's own dependency graph: the same reachability that
//! `.deny.toml` states, without cargo-deny's minutes of build time.

use std::collections::BTreeSet;
use std::process::Command;

/// Packages that `package` links, itself included, as `name version`.
fn tree(arguments: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir("..")
        .args([
            "tree",
            "--offline",
            "--locked",
            "--prefix",
            "none",
            "--edges",
            "normal",
        ])
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(
        !lines.is_empty(),
        "cargo tree {arguments:?} printed nothing"
    );
    lines
}

fn names(arguments: &[&str]) -> BTreeSet<String> {
    tree(arguments)
        .iter()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn own(names: &BTreeSet<String>) -> Vec<&str> {
    names
        .iter()
        .map(String::as_str)
        .filter(|name| name.starts_with("mailbox-"))
        .collect()
}

#[test]
fn the_gateway_never_links_the_store() {
    for package in [
        "mailbox-gateway",
        "mailbox-client",
        "mailbox-wire",
        "mailbox-sdk",
    ] {
        let reached = names(&["-p", package]);
        for forbidden in [
            "rocksdb",
            "librocksdb-sys",
            "mailbox-engine",
            "mailbox-raft",
            "openraft",
        ] {
            assert!(!reached.contains(forbidden), "{package} links {forbidden}");
        }
    }
}

#[test]
fn leaves_know_no_other_crate_of_ours() {
    for package in [
        "mailbox-engine",
        "mailbox-lane-model",
        "mailbox-api",
        "mailbox-cork",
        "mailbox-placement",
        "mailbox-wire",
    ] {
        assert_eq!(own(&names(&["-p", package])), [package]);
    }
}

#[test]
fn the_engine_links_no_runtime_and_no_network() {
    let reached = names(&["-p", "mailbox-engine"]);
    for forbidden in ["tokio", "tonic", "hyper", "prost"] {
        assert!(
            !reached.contains(forbidden),
            "mailbox-engine links {forbidden}"
        );
    }
    // `fail`, whose points are compiled out of products, brings its own generator along: what the
    // engine itself may not name is randomness. The determinism lint watches the calls.
    let direct = names(&["-p", "mailbox-engine", "--depth", "1"]);
    for forbidden in ["rand", "getrandom", "fastrand"] {
        assert!(
            !direct.contains(forbidden),
            "mailbox-engine uses {forbidden}"
        );
    }
}

#[test]
fn the_lane_model_and_the_planner_are_pure() {
    let model = names(&["-p", "mailbox-lane-model"]);
    assert_eq!(model, BTreeSet::from(["mailbox-lane-model".to_owned()]));
    let planner = names(&["-p", "mailbox-placement", "--depth", "1"]);
    assert_eq!(
        planner,
        BTreeSet::from(["mailbox-placement".to_owned(), "thiserror".to_owned()])
    );
}

#[test]
fn only_the_engine_and_the_log_use_rocksdb() {
    let users: BTreeSet<String> = names(&["--workspace", "--invert", "rocksdb", "--depth", "1"]);
    assert_eq!(own(&users), ["mailbox-engine", "mailbox-raft"]);
}

#[test]
fn the_store_is_used_by_the_server_the_offline_tools_and_the_simulation_only() {
    for (package, users) in [
        (
            "mailbox-engine",
            &[
                "mailbox-raft",
                "mailbox-server",
                "mailbox-sim",
                "mailbox-tools",
            ][..],
        ),
        ("mailbox-raft", &["mailbox-server", "mailbox-tools"]),
    ] {
        let mut found = names(&["--workspace", "--invert", package, "--depth", "1"]);
        found.remove(package);
        assert_eq!(own(&found), users, "users of {package}");
    }
}

#[test]
fn only_the_simulation_takes_the_clock_from_the_system() {
    let users = names(&["--workspace", "--invert", "mailbox-fate", "--depth", "1"]);
    assert_eq!(own(&users), ["mailbox-fate", "mailbox-sim"]);
}

#[test]
fn openraft_and_its_siblings_are_one_pinned_version() {
    let raft: BTreeSet<String> = tree(&["-p", "mailbox-raft"])
        .into_iter()
        .filter(|line| line.starts_with("openraft"))
        .map(|line| {
            line.split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert!(raft.contains("openraft v0.10.0-alpha.37"), "{raft:?}");
    for line in &raft {
        assert!(
            line.ends_with("v0.10.0-alpha.37"),
            "{line} differs from the pin"
        );
    }
}

#[test]
fn axum_comes_without_its_own_websocket() {
    let features = tree(&["-p", "mailbox-gateway", "--format", "{p} {f}"]);
    let axum = features
        .iter()
        .find(|line| line.starts_with("axum v"))
        .expect("axum is linked");
    assert!(
        !axum
            .split(' ')
            .any(|word| word.split(',').any(|feature| feature == "ws")),
        "{axum}"
    );
}
