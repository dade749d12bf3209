//! `mailboxctl dev-cluster`: a cluster for a person to play with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mailbox_client::v1::RegisterUserRequest;
use mailbox_cluster::{AuthKey, Cluster, ClusterOptions};
use serde::Serialize;

use crate::chaos;
use crate::duration;
use crate::node::parse_nodes;
use crate::output::OutputArgs;

/// Those for whom a ready token is printed.
const USERS: [&str; 2] = ["alice", "bob"];
/// How long their tokens are valid.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The shard whose leader is killed, if leaders are to be.
const KILLED_SHARD: u32 = 1;

/// Run a throw-away cluster on this machine, to play with.
///
/// Every node is a `mailboxd` process of its own, also serves as a gateway, and listens on loopback
/// only. It runs until Ctrl-C. Kill nodes as you like: what was acked stays.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes: 1 or 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_nodes())]
    nodes: usize,
    /// Shards of the cluster
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Keep the data here; without it they are removed at the end
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Kill -9 the leader again and again, and restart it one second later
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    kill_leader_every: Option<Duration>,
    /// The `mailboxd` to run; default: the one beside this program
    #[arg(long, value_name = "FILE", env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
}

#[derive(Serialize)]
struct Ready {
    cluster_id: String,
    dir: String,
    secret_file: String,
    auth_key_file: String,
    nodes: Vec<ReadyNode>,
    users: Vec<ReadyUser>,
}

#[derive(Serialize)]
struct ReadyNode {
    node: u64,
    address: String,
    gateway: Option<String>,
    pid: Option<u32>,
    dir: String,
    log: String,
}

#[derive(Serialize)]
struct ReadyUser {
    handle: &'static str,
    token: String,
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let kept = args.dir.is_some();
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: args.nodes,
        shards: args.shards,
        dir: args.dir,
        binary: args.mailboxd,
        gateway: true,
        ..ClusterOptions::default()
    })
    .await
    .context("start the cluster")?;
    if kept {
        cluster.keep_files();
    }
    let cluster = Arc::new(cluster);
    let ready = ready(&cluster).await?;
    output.print(&ready, human)?;
    let killing = args.kill_leader_every.map(|every| {
        eprintln!(
            "the leader is killed every {} s and restarted 1 s later",
            every.as_secs_f64()
        );
        chaos::kill_leader_every(Arc::clone(&cluster), KILLED_SHARD, every)
    });
    // Nodes that a person kills with a signal are brought back by this program on Enter.
    restart_on_enter(&cluster).await?;
    if let Some(killing) = killing {
        let kills = killing.stop().await?;
        eprintln!("the leader was killed {kills} times");
    }
    eprintln!("stopping");
    chaos::stop_all(&cluster).await?;
    Ok(true)
}

async fn ready(cluster: &Cluster) -> anyhow::Result<Ready> {
    let client = cluster.client().await?;
    let key = AuthKey::read(cluster.auth_key_file())?;
    let mut users = Vec::new();
    for handle in USERS {
        let request = RegisterUserRequest {
            handle: handle.to_owned(),
            ..Default::default()
        };
        match client.register_user(request).await {
            Ok(_) => {}
            // A kept directory: they are from an earlier run.
            Err(error) if error.code() == mailbox_client::v1::ErrorCode::HandleTaken => {}
            Err(error) => return Err(error).context(format!("register @{handle}")),
        }
        let (token, _) = key.issue(&format!("@{handle}"), TOKEN_TTL)?;
        users.push(ReadyUser { handle, token });
    }
    let nodes = cluster.nodes().iter().map(|node| ReadyNode {
        node: node.id(),
        address: node.address().to_owned(),
        gateway: node.gateway_url(),
        pid: node.pid(),
        dir: node.data_dir().display().to_string(),
        log: node.log_path().display().to_string(),
    });
    Ok(Ready {
        cluster_id: cluster.cluster_id().to_owned(),
        dir: cluster.dir().display().to_string(),
        secret_file: cluster.secret_file().display().to_string(),
        auth_key_file: cluster.auth_key_file().display().to_string(),
        nodes: nodes.collect(),
        users,
    })
}

fn human(ready: &Ready) -> String {
    let mut lines = vec![format!(
        "cluster {} is ready, files in {}",
        ready.cluster_id, ready.dir
    )];
    for node in &ready.nodes {
        let pid = node
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        lines.push(format!(
            "\nnode {}  grpc {}  log {}",
            node.node, node.address, node.log
        ));
        lines.push(format!("  stop     kill -TERM {pid}"));
        lines.push(format!("  kill     kill -KILL {pid}"));
        lines.push("  restart  press Enter here (starts every node that is down)".to_owned());
    }
    let addresses: Vec<_> = ready
        .nodes
        .iter()
        .map(|node| node.address.as_str())
        .collect();
    lines.push("\nlook".to_owned());
    lines.push(format!(
        "  mailboxctl status --address {} --secret-file {}",
        addresses.join(","),
        ready.secret_file
    ));
    lines.push("talk, each in a terminal of its own".to_owned());
    let gateways: Vec<_> = ready
        .nodes
        .iter()
        .filter_map(|node| node.gateway.as_deref())
        .collect();
    for (at, user) in ready.users.iter().enumerate() {
        let other = ready.users[(at + 1) % ready.users.len()].handle;
        let Some(url) = gateways.get(at % gateways.len().max(1)) else {
            continue;
        };
        lines.push(format!(
            "  mailboxctl chat --url {url} --token {} --to @{other}",
            user.token
        ));
    }
    lines.push("\nCtrl-C stops all nodes".to_owned());
    lines.join("\n")
}

/// Waits for Ctrl-C or SIGTERM; on each line of stdin starts the nodes that are down.
async fn restart_on_enter(cluster: &Cluster) -> anyhow::Result<()> {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut stdin_open = true;
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            _ = terminate.recv() => return Ok(()),
            line = lines.next_line(), if stdin_open => {
                stdin_open = line?.is_some();
                if !stdin_open {
                    continue;
                }
                for node in cluster.nodes() {
                    let before = node.pid();
                    node.start()?;
                    if node.pid() != before {
                        let pid = node.pid().map_or_else(String::new, |pid| pid.to_string());
                        eprintln!("node {} started, pid {pid}", node.id());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_how_to_stop_kill_and_restart_and_how_to_talk() {
        let node = |node| ReadyNode {
            node,
            address: format!("127.0.0.1:770{node}"),
            gateway: Some(format!("ws://127.0.0.1:808{node}")),
            pid: Some(4000 + node as u32),
            dir: "d".to_owned(),
            log: "l".to_owned(),
        };
        let user = |handle| ReadyUser {
            handle,
            token: format!("token-of-{handle}"),
        };
        let ready = Ready {
            cluster_id: "blue".to_owned(),
            dir: "dir".to_owned(),
            secret_file: "dir/secret".to_owned(),
            auth_key_file: "dir/key".to_owned(),
            nodes: vec![node(1), node(2), node(3)],
            users: vec![user("alice"), user("bob")],
        };
        let text = human(&ready);
        for part in [
            "kill -TERM 4001",
            "kill -KILL 4003",
            "press Enter",
            "--url ws://127.0.0.1:8081 --token token-of-alice --to @bob",
            "--url ws://127.0.0.1:8082 --token token-of-bob --to @alice",
            "--address 127.0.0.1:7701,127.0.0.1:7702,127.0.0.1:7703 --secret-file dir/secret",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
    }
}
