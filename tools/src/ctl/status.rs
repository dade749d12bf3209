//! `mailboxctl status`: every node and shard of a cluster.

use std::collections::BTreeMap;

use comfy_table::Table;
use mailbox_client::Client;
use mailbox_client::v1::{ClusterMap, MapReplica, ShardStatus, StateHashRequest, StatusResponse};
use serde::Serialize;

use super::show_table::plain_table;
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped, mebibytes};
use crate::survey::Survey;

/// Show every node and shard of a cluster, and how many nodes it can lose.
///
/// Each node answers from what it knows itself, without a quorum: `status` works best when the
/// cluster does not. The exit status is 1 when a node does not answer or replicas differ.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also compare the replicas: the leader makes a cut, and each node hashes its rows there
    #[arg(long)]
    state_hash: bool,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Serialize)]
struct ClusterView {
    cluster_id: String,
    /// Nodes that may fail, beyond those that do not answer now, before some shard stops serving;
    /// negative when one has stopped.
    can_lose: i64,
    nodes: Vec<NodeView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    state_hashes: Vec<HashView>,
}

#[derive(Serialize)]
struct NodeView {
    node: u64,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    uptime_ms: u64,
    disk_free_bytes: u64,
    clock_skew_ms: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    clock_fault: String,
    shards: Vec<ShardView>,
}

#[derive(Serialize)]
struct ShardView {
    shard: u32,
    role: String,
    leader: u64,
    term: u64,
    last_index: u64,
    committed_index: u64,
    applied_index: u64,
    flushed_index: u64,
    purged_index: u64,
    memtable_bytes: u64,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct HashView {
    shard: u32,
    index: u64,
    equal: bool,
    replicas: Vec<ReplicaHash>,
}

#[derive(Serialize)]
struct ReplicaHash {
    node: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_hash: Option<String>,
    rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.node.connect().await?;
    let seen = Survey::take(&client).await?;
    let hashes = match args.state_hash {
        true => hash_all(&client, &seen.map).await?,
        false => Vec::new(),
    };
    let view = ClusterView::new(seen, hashes);
    output.print(&view, human)?;
    let all_answer = view.nodes.iter().all(|node| node.error.is_none());
    Ok(all_answer && view.state_hashes.iter().all(|hash| hash.equal))
}

impl ClusterView {
    fn new(mut seen: Survey, state_hashes: Vec<HashView>) -> Self {
        let can_lose = seen.can_lose();
        let places = seen.nodes().map(|node| (node.node, node.address.clone()));
        let places: Vec<(u64, String)> = places.collect();
        let nodes = places.into_iter().filter_map(|(node, address)| {
            let status = seen.statuses.remove(&node)?;
            Some(NodeView::new(node, address, status))
        });
        Self {
            nodes: nodes.collect(),
            cluster_id: seen.map.cluster_id,
            can_lose,
            state_hashes,
        }
    }
}

impl NodeView {
    fn new(
        node: u64,
        address: String,
        status: Result<StatusResponse, mailbox_client::CallError>,
    ) -> Self {
        let (status, error) = match status {
            Ok(status) => (status, None),
            Err(error) => (StatusResponse::default(), Some(error.to_string())),
        };
        Self {
            node,
            address,
            version: error.is_none().then_some(status.version),
            error,
            uptime_ms: status.uptime_ms,
            disk_free_bytes: status.disk_free_bytes,
            clock_skew_ms: status.clock_skew_ms,
            clock_fault: status.clock_fault,
            shards: status.shards.into_iter().map(ShardView::new).collect(),
        }
    }
}

impl ShardView {
    fn new(status: ShardStatus) -> Self {
        Self {
            shard: status.shard,
            role: status.role,
            leader: status.leader,
            term: status.term,
            last_index: status.last_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            flushed_index: status.flushed_index,
            purged_index: status.purged_index,
            memtable_bytes: status.memtable_bytes,
            stored_bytes: status.stored_bytes,
        }
    }
}

async fn hash_all(client: &Client, map: &ClusterMap) -> anyhow::Result<Vec<HashView>> {
    let addresses: BTreeMap<u64, &str> = map
        .nodes
        .iter()
        .map(|node| (node.node, node.address.as_str()))
        .collect();
    let mut views = Vec::new();
    // Slots only: what the meta shard holds, every node is told.
    for shard in map.shards.iter().filter(|shard| shard.shard != 0) {
        let request = StateHashRequest {
            shard: shard.shard,
            cut_index: 0,
        };
        let index = client.state_hash(None, request).await?.applied_index;
        let mut replicas = Vec::new();
        for MapReplica { node, .. } in shard.replicas.iter().copied() {
            let request = StateHashRequest {
                shard: shard.shard,
                cut_index: index,
            };
            let hash = match addresses.get(&node) {
                Some(address) => client.state_hash(Some(address), request).await,
                None => continue,
            };
            replicas.push(match hash {
                Ok(hash) => ReplicaHash {
                    node,
                    state_hash: Some(crate::node::hex(&hash.hash)),
                    rows: hash.rows,
                    error: None,
                },
                Err(error) => ReplicaHash {
                    node,
                    state_hash: None,
                    rows: 0,
                    error: Some(error.to_string()),
                },
            });
        }
        let first = replicas
            .first()
            .and_then(|replica| replica.state_hash.clone());
        let equal = first.is_some() && replicas.iter().all(|replica| replica.state_hash == first);
        views.push(HashView {
            shard: shard.shard,
            index,
            equal,
            replicas,
        });
    }
    Ok(views)
}

fn human(view: &ClusterView) -> String {
    let mut text = match view.can_lose {
        spare if spare < 0 => {
            format!(
                "cluster {}: some shard has no majority and does not serve\n",
                view.cluster_id
            )
        }
        0 => format!(
            "cluster {}: serves; losing one more node stops it\n",
            view.cluster_id
        ),
        spare => format!(
            "cluster {}: serves and can lose {spare} node(s)\n",
            view.cluster_id
        ),
    };
    text.push_str(&nodes_table(view).trim_fmt());
    text.push_str("\n\n");
    text.push_str(&shards_table(view).trim_fmt());
    for hash in &view.state_hashes {
        let verdict = if hash.equal { "equal" } else { "DIFFERENT" };
        text.push_str(&format!(
            "\nshard {} at index {}: {verdict}",
            hash.shard, hash.index
        ));
        for replica in &hash.replicas {
            let what = match (&replica.state_hash, &replica.error) {
                (Some(hash), _) => format!("{hash} over {} rows", grouped(replica.rows)),
                (None, error) => error.clone().unwrap_or_default(),
            };
            text.push_str(&format!("\n  node {}: {what}", replica.node));
        }
    }
    text
}

fn nodes_table(view: &ClusterView) -> Table {
    let mut table = plain_table(["node", "address", "leads", "disk free", "clock"]);
    for node in &view.nodes {
        if let Some(error) = &node.error {
            table.add_row([node.node.to_string(), node.address.clone(), error.clone()]);
            continue;
        }
        let leads = node.shards.iter().filter(|shard| shard.role == "leader");
        table.add_row([
            node.node.to_string(),
            node.address.clone(),
            format!("{} of {} shards", leads.count(), node.shards.len()),
            format!("{} MiB", grouped(node.disk_free_bytes >> 20)),
            clock(node),
        ]);
    }
    table
}

/// One line a shard, told by its leader if it answers, with how far each replica has got.
fn shards_table(view: &ClusterView) -> Table {
    let mut replicas: BTreeMap<u32, Vec<(u64, &ShardView)>> = BTreeMap::new();
    for node in &view.nodes {
        for shard in &node.shards {
            let of_shard = replicas.entry(shard.shard).or_default();
            of_shard.push((node.node, shard));
        }
    }
    let header = [
        "shard",
        "leader",
        "term",
        "last",
        "committed",
        "applied",
        "flushed",
        "stored",
    ];
    let mut table = plain_table(header);
    for (shard, replicas) in &replicas {
        let leads = |(_, view): &&(u64, &ShardView)| view.role == "leader";
        let newest = |(_, view): &&(u64, &ShardView)| view.term;
        let leader = replicas.iter().filter(leads).max_by_key(newest);
        let told_by = leader.or_else(|| replicas.iter().max_by_key(newest));
        let Some((_, told)) = told_by else { continue };
        let each = |of: fn(&ShardView) -> u64| {
            let each = replicas
                .iter()
                .map(|(node, view)| format!("{node}:{}", grouped(of(view))));
            each.collect::<Vec<_>>().join(" ")
        };
        table.add_row([
            shard.to_string(),
            leader.map_or_else(|| "none".to_owned(), |(node, _)| format!("node {node}")),
            told.term.to_string(),
            grouped(told.last_index),
            grouped(told.committed_index),
            each(|view| view.applied_index),
            each(|view| view.flushed_index),
            mebibytes(told.stored_bytes),
        ]);
    }
    table
}

fn clock(node: &NodeView) -> String {
    if node.clock_fault.is_empty() {
        format!("{:+} ms", node.clock_skew_ms)
    } else {
        node.clock_fault.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mailbox_client::CallError;
    use mailbox_client::v1::ErrorCode;

    #[test]
    fn a_silent_node_is_shown_with_its_error() {
        let error = CallError::new(ErrorCode::Unavailable, "connection refused");
        let silent = NodeView::new(2, "127.0.0.1:7702".to_owned(), Err(error));
        let shard = ShardStatus {
            role: "leader".to_owned(),
            term: 7,
            ..ShardStatus::default()
        };
        let status = StatusResponse {
            shards: vec![shard],
            ..StatusResponse::default()
        };
        let leader = NodeView::new(1, "127.0.0.1:7701".to_owned(), Ok(status));
        let view = ClusterView {
            cluster_id: "blue".to_owned(),
            can_lose: 0,
            nodes: vec![leader, silent],
            state_hashes: Vec::new(),
        };
        let text = human(&view);
        assert!(text.contains("1 of 1 shards"), "{text}");
        assert!(text.contains("node 1"), "{text}");
        assert!(text.contains("losing one more node stops it"), "{text}");
        assert!(text.contains("connection refused"), "{text}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["nodes"][0]["shards"][0]["role"], "leader");
        assert_eq!(json["nodes"][1]["error"], "Unavailable: connection refused");
    }
}
