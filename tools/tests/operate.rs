//! `mailboxctl cluster`, `node`, `shard` and `doctor` as an operator uses them: a node comes, takes its share, and
//! another one goes.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mailbox_cluster::{Cluster, ClusterOptions};
use serde_json::Value;

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(100);

struct Operator {
    addresses: String,
    secret: String,
}

impl Operator {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(CTL)
            .args(args)
            .args(["--address", &self.addresses, "--secret-file", &self.secret])
            .output()
            .unwrap()
    }

    /// What a command prints, and whether it says that all is well.
    fn json(&self, args: &[&str]) -> (Value, bool) {
        let output = self.run(&[args, &["--json"]].concat());
        let json = serde_json::from_slice(&output.stdout);
        let json = json.unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"));
        (json, output.status.success())
    }

    /// What a command that is refused says.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Asks again until the answer fits.
    fn until(&self, args: &[&str], fits: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (json, _) = self.json(args);
            if fits(&json) {
                return json;
            }
            assert!(begun.elapsed() < WITHIN, "{args:?}: {json}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn column(rows: &Value, name: &str) -> Vec<u64> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row[name].as_u64().unwrap()).collect()
}

/// Every shard has three voters and a leader, and nothing is on the move.
fn settled(status: &Value) -> bool {
    let shards = status["shards"].as_array().unwrap();
    let whole = |shard: &Value| {
        let replicas = shard["replicas"].as_array().unwrap();
        replicas.len() == 3 && replicas.iter().all(|held| held["voter"] == true)
    };
    status["serves"] == true && shards.iter().all(whole)
}

async fn start() -> (Cluster, Operator) {
    start_with("").await
}

async fn start_with(extra_config: &str) -> (Cluster, Operator) {
    start_all(extra_config, false).await
}

async fn start_all(extra_config: &str, gateway: bool) -> (Cluster, Operator) {
    let cluster = Cluster::start(ClusterOptions {
        nodes: 3,
        shards: 4,
        binary: Some(mailboxd()),
        gateway,
        // How full the machine's own disk is, is not what is tested.
        extra_config: format!(
            "[node]\ndisk_free_min_percent = 0\ndisk_free_min_bytes = \"0 B\"\n{extra_config}"
        ),
        ..ClusterOptions::default()
    })
    .await
    .unwrap();
    let addresses: Vec<&str> = cluster.nodes().iter().map(|node| node.address()).collect();
    let operator = Operator {
        addresses: addresses.join(","),
        secret: cluster.secret_file().display().to_string(),
    };
    (cluster, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_and_another_one_goes() {
    let (mut cluster, operator) = start().await;
    operator.until(&["cluster", "status"], settled);
    // Nobody could take what it holds.
    let (blocked, well) = operator.json(&["node", "drain", "1", "--dry-run"]);
    assert!(!well, "{blocked}");
    assert_eq!(blocked["dry_run"], true);
    assert_eq!(blocked["blockers"].as_array().unwrap().len(), 5);
    let words = operator.refused(&["node", "remove", "1"]);
    assert!(words.contains("node 1 holds 5 replicas"), "{words}");
    assert!(words.contains("--wait"), "{words}");
    let words = operator.refused(&["node", "drain", "9"]);
    assert!(words.contains("there is no node 9"), "{words}");

    cluster.join(WITHIN).await.unwrap();
    // 15 replicas and 5 leaders on four nodes.
    let even = |status: &Value| {
        let held = column(&status["nodes"], "replicas");
        let leads = column(&status["nodes"], "leads");
        settled(status)
            && held.len() == 4
            && held.iter().all(|count| (3..=5).contains(count))
            && leads.iter().all(|count| *count <= 2)
    };
    operator.until(&["cluster", "status"], even);
    let (listed, well) = operator.json(&["node", "list"]);
    assert!(well && column(&listed, "node") == [1, 2, 3, 4], "{listed}");

    let (planned, well) = operator.json(&["node", "drain", "1", "--dry-run"]);
    assert!(well, "{planned}");
    assert!(!planned["first_steps"].as_array().unwrap().is_empty());
    assert_eq!(listed[0]["standing"], "member", "nothing was changed");
    let (drained, well) = operator.json(&["node", "drain", "1", "--wait"]);
    assert!(well && drained["state"] == "empty", "{drained}");
    let (undrained, well) = operator.json(&["node", "undrain", "1"]);
    assert!(well && undrained["state"] == "member", "{undrained}");
    let (removed, well) = operator.json(&["node", "remove", "1", "--wait"]);
    assert!(well && removed["state"] == "removed", "{removed}");
    let (again, well) = operator.json(&["node", "remove", "1"]);
    assert!(well && again["state"] == "removed", "{again}");

    // Another node answers, and may hear of it a moment later.
    operator.until(&["node", "list"], |listed| {
        column(listed, "node") == [2, 3, 4]
    });
    let status = operator.until(&["cluster", "status"], settled);
    assert_eq!(status["can_lose"], 1, "{status}");
    let human = operator.run(&["cluster", "status"]);
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("serves and can lose 1 node(s)"), "{human}");
    cluster.node(3).kill().unwrap();
    operator.until(&["cluster", "status"], |status| status["can_lose"] == 0);
    // What it led has no leader for a moment: that is told first.
    let diagnosis = operator.until(&["doctor"], |diagnosis| {
        diagnosis["findings"][0]["code"] == "node-down"
    });
    assert_eq!(diagnosis["findings"][0]["place"], "node 4");
    assert_eq!(diagnosis["healthy"], false, "{diagnosis}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_moved_by_hand() {
    let (mut cluster, operator) = start_with("[placement]\nenabled = false").await;
    cluster.join(WITHIN).await.unwrap();
    let known = |status: &Value| {
        let nodes = status["nodes"].as_array().unwrap();
        settled(status) && nodes.len() == 4 && nodes.iter().all(|node| node["up"] == true)
    };
    operator.until(&["cluster", "status"], known);
    let moves = ["shard", "move", "1", "--from", "1", "--to", "4"];
    let (judged, well) = operator.json(&[&moves[..], &["--dry-run"]].concat());
    assert!(well && judged["state"] == "possible", "{judged}");
    let (done, well) = operator.json(&[&moves[..], &["--wait"]].concat());
    assert!(well && done["state"] == "moved", "{done}");
    let voters = |status: &Value| {
        let shards = status["shards"].as_array().unwrap();
        let replicas = shards[1]["replicas"].as_array().unwrap().clone();
        settled(status) && replicas.iter().all(|held| held["node"] != 1)
    };
    operator.until(&["cluster", "status"], voters);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_while_a_node_hangs() {
    let (cluster, operator) = start().await;
    operator.until(&["cluster", "status"], settled);
    let (shown, _) = operator.json(&["shard", "show", "0"]);
    let leader = shown["leader"].as_u64().unwrap();
    let nodes = cluster.nodes();
    let hangs = nodes.iter().find(|node| node.id() != leader).unwrap();
    hangs.pause().unwrap();
    let drained = leader.to_string();
    let (planned, _) = operator.json(&["node", "drain", &drained, "--dry-run"]);
    assert_eq!(planned["dry_run"], true, "{planned}");
    hangs.resume().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_moved_by_hand() {
    let (_cluster, operator) = start().await;
    operator.until(&["cluster", "status"], settled);
    let (shown, _) = operator.json(&["shard", "show", "1"]);
    let leader = shown["leader"].as_u64().unwrap();
    let to = (leader % 3 + 1).to_string();
    let transfer = ["shard", "transfer", "1", "--to", &to];
    let (judged, well) = operator.json(&[&transfer[..], &["--dry-run"]].concat());
    assert!(well && judged["state"] == "possible", "{judged}");
    let (done, well) = operator.json(&transfer);
    assert!(well && done["state"] == "led", "{done}");
    let words = operator.refused(&["shard", "transfer", "1", "--to", "7"]);
    assert!(words.contains("its voters are 1, 2, 3"), "{words}");
    let words = operator.refused(&["shard", "show", "9"]);
    assert!(words.contains("there is no shard 9"), "{words}");
    let words = operator.refused(&["shard", "move", "1", "--from", "1", "--to", "2"]);
    assert!(words.contains("already"), "{words}");
    let (listed, _) = operator.json(&["shard", "list"]);
    assert_eq!(column(&listed, "shard"), [0, 1, 2, 3, 4]);
    let well = |diagnosis: &Value| diagnosis["healthy"] == true;
    operator.until(&["doctor", "--gateways-min", "0"], well);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_moved_by_hand() {
    let (_cluster, operator) = start().await;
    operator.until(&["cluster", "status"], settled);
    let slots = |shard: &str| {
        let (shown, _) = operator.json(&["shard", "show", shard]);
        shown["slots"].as_str().unwrap().to_owned()
    };
    let (first, second) = (slots("1"), slots("2"));
    assert!(first.starts_with("0-"), "{first}");
    let ask = ["shard", "move-slot", "0", "--to", "2"];
    let (judged, _) = operator.json(&[&ask[..], &["--dry-run"]].concat());
    assert_eq!(judged["state"], "possible", "{judged}");
    assert_eq!((slots("1"), slots("2")), (first.clone(), second.clone()));
    let (moved, _) = operator.json(&[&ask[..], &["--wait"]].concat());
    assert_eq!(moved["state"], "moved", "{moved}");
    assert_eq!((&moved["from"], &moved["to"]), (&1.into(), &2.into()));
    // The node that is asked learns the map a moment later.
    operator.until(&["shard", "show", "2"], |shown| {
        shown["slots"] == format!("0-0, {second}")
    });
    let (again, _) = operator.json(&ask);
    assert_eq!(again["state"], "moved", "{again}");
    let back = ["shard", "move-slot", "0", "--to", "1", "--wait"];
    assert_eq!(operator.json(&back).0["state"], "moved");
    operator.until(&["shard", "show", "1"], |shown| shown["slots"] == *first);

    let words = operator.refused(&["shard", "move-slot", "0", "--to", "9"]);
    assert!(words.contains("no shard 9"), "{words}");
    let words = operator.refused(&["shard", "move-slot", "9999", "--to", "1"]);
    assert!(words.contains("slots 0 to"), "{words}");
    let words = operator.refused(&["shard", "move-slot", "0", "--abort"]);
    assert!(words.contains("on no move"), "{words}");
}

fn codes(diagnosis: &Value) -> Vec<&str> {
    let found = diagnosis["findings"].as_array().unwrap().iter();
    found.map(|it| it["code"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_stuck_is_told_with_what_it_waits_for() {
    let (cluster, operator) = start_with("[placement]\nenabled = false").await;
    operator.until(&["cluster", "status"], settled);
    cluster.node(2).kill().unwrap();
    operator.until(&["cluster", "status"], |status| {
        status["serves"] == true && status["can_lose"] == 0
    });
    let (begun, _) = operator.json(&["shard", "move-slot", "0", "--to", "2"]);
    assert_eq!(begun["state"], "moving", "{begun}");
    let doctor = ["doctor", "--gateways-min", "0", "--move-age-max", "1s"];
    let diagnosis = operator.until(&doctor, |diagnosis| {
        codes(diagnosis).contains(&"stuck-move")
    });
    let found = diagnosis["findings"].as_array().unwrap().iter();
    let stuck = found.clone().find(|it| it["code"] == "stuck-move").unwrap();
    assert_eq!(stuck["place"], "slot 0");
    let cause = stuck["cause"].as_str().unwrap();
    assert!(cause.contains("node 3"), "{cause}");
    // By its default it is not stuck yet: a large copy takes its time.
    let (diagnosis, _) = operator.json(&["doctor", "--gateways-min", "0", "--move-age-max", "1h"]);
    assert!(!codes(&diagnosis).contains(&"stuck-move"), "{diagnosis}");
    // What it says mends it.
    let fix = stuck["fix"].as_str().unwrap();
    assert!(
        fix.contains("`mailboxctl shard move-slot 0 --abort`"),
        "{fix}"
    );
    let (given_up, well) = operator.json(&["shard", "move-slot", "0", "--abort"]);
    assert!(well, "{given_up}");
    cluster.node(2).start().unwrap();
    operator.until(&doctor, |diagnosis| diagnosis["healthy"] == true);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_are_listed_and_one_that_has_died_is_told() {
    let (cluster, operator) = start_all("[gateway]\nrefresh_ms = 1500", true).await;
    let serving = |listed: &Value| {
        let rows = listed.as_array().unwrap().iter();
        let serving = rows.filter(|row| row["standing"] == "serving");
        serving
            .map(|row| row["websocket_url"].clone())
            .collect::<Vec<_>>()
    };
    let listed = operator.until(&["gateway", "list"], |listed| serving(listed).len() == 3);
    let urls = serving(&listed);
    for node in cluster.nodes() {
        let url = node.gateway_url().unwrap();
        assert!(urls.iter().any(|listed| *listed == *url), "{url}: {listed}");
    }
    operator.until(&["doctor"], |diagnosis| diagnosis["healthy"] == true);
    operator.until(&["doctor", "--gateways-min", "4"], |diagnosis| {
        codes(diagnosis) == ["no-gateway"]
    });
    let human = operator.run(&["cluster", "status"]);
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("gateways: 3 serving; "), "{human}");

    let dead = cluster.node(0).gateway_url().unwrap();
    assert!(cluster.node(0).kill_gateway().unwrap());
    let diagnosis = operator.until(&["doctor"], |diagnosis| {
        codes(diagnosis) == ["gateway-silent"]
    });
    let finding = &diagnosis["findings"][0];
    assert!(
        finding["cause"].as_str().unwrap().contains(&*dead),
        "{finding}"
    );
    let (listed, well) = operator.json(&["gateway", "list"]);
    assert!(!well, "{listed}");
    let id = finding["place"].as_str().unwrap();
    let id = id.strip_prefix("gateway ").unwrap();
    let (judged, well) = operator.json(&["gateway", "forget", id, "--dry-run"]);
    assert!(well && judged["state"] == "registered", "{judged}");
    let (forgotten, well) = operator.json(&["gateway", "forget", id]);
    assert!(well && forgotten["state"] == "forgotten", "{forgotten}");
    let (again, well) = operator.json(&["gateway", "forget", id]);
    assert!(well && again["state"] == "unknown", "{again}");
    operator.until(&["doctor"], |diagnosis| diagnosis["healthy"] == true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_split_by_hand() {
    let (_cluster, operator) = start().await;
    operator.until(&["cluster", "status"], settled);
    let ask = ["shard", "split", "1"];
    let (judged, _) = operator.json(&[&ask[..], &["--dry-run"]].concat());
    assert_eq!(judged["state"], "possible", "{judged}");
    assert_eq!(judged["to"], 5, "{judged}");
    let (listed, _) = operator.json(&["shard", "list"]);
    assert_eq!(column(&listed, "shard"), [0, 1, 2, 3, 4]);
    // Half of it, as it was said.
    let slots = judged["slots"].as_str().unwrap().to_owned();
    let ask = [&ask[..], &["--slots", &slots]].concat();
    let (split, _) = operator.json(&[&ask[..], &["--wait"]].concat());
    assert_eq!(split["state"], "split", "{split}");
    assert_eq!(split["to"], 5, "{split}");
    // The node that is asked learns the map a moment later.
    operator.until(&["shard", "show", "5"], |shown| {
        shown["slots"] == slots && shown["leader"].is_u64()
    });
    let (again, _) = operator.json(&ask);
    assert_eq!(again["state"], "split", "{again}");
    operator.until(&["cluster", "status"], settled);

    let words = operator.refused(&["shard", "split", "9"]);
    assert!(words.contains("no shard 9"), "{words}");
    let words = operator.refused(&["shard", "split", "1", "--slots", "9999"]);
    assert!(words.contains("cannot give 9999"), "{words}");
    let words = operator.refused(&["shard", "split", "2", "--slots", "0-0"]);
    assert!(words.contains("slot 0 is not in shard 2"), "{words}");
}
