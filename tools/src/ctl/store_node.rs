//! `mailboxctl node`: store nodes, and how they come to hold nothing and go.

use anyhow::{Context as _, bail};
use comfy_table::Table;
use mailbox_client::Client;
use mailbox_client::v1::{ClusterMap, MapNode, NodeStanding};
use serde::Serialize;

use super::show_table::plain_table;
use super::steps::{WaitArgs, step_text, wait_for};
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped};
use crate::survey::{Survey, standing_text, voters};

/// See, empty and remove store nodes.
///
/// A node is added by starting `mailboxd server` with an id that the cluster has never had and
/// `cluster.join` naming any node of it; the placement gives it its share. To take one away, drain it
/// (it still serves what it holds) and then remove it (its id is gone for ever).
#[derive(clap::Subcommand)]
#[command(verbatim_doc_comment)]
pub(crate) enum Command {
    /// List the store nodes with what they hold
    List {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Move everything off a node: its leaderships first, then its replicas
    ///
    /// The node keeps serving meanwhile, and nothing is lost if it or any other node fails on the way.
    /// `node undrain` takes it back. Nothing happens if no other node can take a replica: a shard is never
    /// left with fewer.
    Drain {
        /// The node's id
        id: u64,
        /// Say what would move first and what stands in the way; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Let a node that is being drained hold its share again
    Undrain {
        /// The node's id
        id: u64,
        /// Say what would be done; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Take a node out of the cluster for ever
    ///
    /// Only a node that holds nothing can go; with --wait it is drained first. Its process ends by itself,
    /// and neither its id nor its directory can ever join again.
    Remove {
        /// The node's id
        id: u64,
        /// Say what stands in the way; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
pub(super) struct NodeRow {
    pub(super) node: u64,
    address: String,
    region: String,
    zone: String,
    weight: u32,
    standing: &'static str,
    pub(super) up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    replicas: usize,
    leads: usize,
    disk_free_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    clock_fault: String,
}

/// What a command that changes something has come to.
#[derive(Serialize)]
struct Outcome {
    node: u64,
    /// `draining`, `empty`, `member`, `removed`; in a dry run what it would be.
    state: &'static str,
    dry_run: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    first_steps: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blockers: Vec<String>,
    #[serde(skip)]
    words: String,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    let outcome = match command {
        Command::List { node } => {
            let client = node.connect().await?;
            let rows = node_rows(&Survey::take(&client).await?);
            output.print(&rows, |rows| nodes_table(rows).trim_fmt())?;
            return Ok(true);
        }
        Command::Drain {
            id,
            dry_run,
            wait,
            node,
        } => drain(&node.connect().await?, id, dry_run, wait).await?,
        Command::Undrain { id, dry_run, node } => {
            undrain(&node.connect().await?, id, dry_run).await?
        }
        Command::Remove {
            id,
            dry_run,
            wait,
            node,
        } => remove(&node.connect().await?, id, dry_run, wait).await?,
    };
    output.print(&outcome, |outcome| outcome.words.clone())?;
    Ok(outcome.blockers.is_empty())
}

async fn drain(client: &Client, id: u64, dry_run: bool, wait: WaitArgs) -> anyhow::Result<Outcome> {
    let seen = Survey::take(client).await?;
    let row = find(&seen.map, id)?;
    let blockers = drain_blockers(&seen, id);
    let (replicas, leads) = seen.load_of(id);
    if dry_run {
        let planned = client.plan_steps(vec![id]).await;
        let planned = planned.context("ask the leader of the meta shard for its plan")?;
        let first_steps: Vec<String> = planned.steps.iter().map(step_text).collect();
        let mut words = format!("node {id} holds {replicas} replicas and leads {leads} shards");
        if first_steps.is_empty() {
            words.push_str("; nothing would move at once");
        } else {
            words.push_str(&format!(
                "; first would be:\n  {}",
                first_steps.join("\n  ")
            ));
        }
        append_blockers(&mut words, &blockers);
        let state = standing_text(row.standing());
        return Ok(Outcome {
            node: id,
            state,
            dry_run,
            first_steps,
            blockers,
            words,
        });
    }
    client.set_standing(id, NodeStanding::Draining).await?;
    let mut words = format!(
        "node {id} is being drained: {replicas} replicas and {leads} leaderships move elsewhere\n  \
         `mailboxctl node drain {id} --wait` waits for the end, `mailboxctl node undrain {id}` takes it back"
    );
    append_blockers(&mut words, &blockers);
    let mut state = "draining";
    if wait.wait {
        wait_empty(client, id, wait).await?;
        state = "empty";
        words = format!("node {id} is empty: stop it, or `mailboxctl node remove {id}`");
    }
    Ok(Outcome {
        node: id,
        state,
        dry_run,
        first_steps: Vec::new(),
        blockers: if wait.wait { Vec::new() } else { blockers },
        words,
    })
}

async fn wait_empty(client: &Client, id: u64, wait: WaitArgs) -> anyhow::Result<()> {
    let left = |map: &ClusterMap| {
        let on = map.shards.iter();
        let on = on.filter(|shard| shard.replicas.iter().any(|held| held.node == id));
        let on: Vec<String> = on.map(|shard| shard.shard.to_string()).collect();
        (!on.is_empty()).then(|| format!("node {id} still holds shards {}", on.join(", ")))
    };
    wait_for(client, wait.timeout, left).await.map(|_| ())
}

async fn undrain(client: &Client, id: u64, dry_run: bool) -> anyhow::Result<Outcome> {
    let seen = Survey::take(client).await?;
    let standing = find(&seen.map, id)?.standing();
    let words = match standing {
        NodeStanding::Member => format!("node {id} is a member already: nothing to do"),
        _ if dry_run => format!("node {id} would hold its share again"),
        _ => {
            client.set_standing(id, NodeStanding::Member).await?;
            format!("node {id} is a member: the placement gives it its share again")
        }
    };
    Ok(Outcome {
        node: id,
        state: "member",
        dry_run,
        first_steps: Vec::new(),
        blockers: Vec::new(),
        words,
    })
}

async fn remove(
    client: &Client,
    id: u64,
    dry_run: bool,
    wait: WaitArgs,
) -> anyhow::Result<Outcome> {
    let seen = Survey::take(client).await?;
    let (replicas, _) = seen.load_of(id);
    let row = seen.map.nodes.iter().find(|node| node.node == id);
    let gone = row.is_some_and(|row| row.standing() == NodeStanding::Removed);
    let outcome = |state, words, blockers| Outcome {
        node: id,
        state,
        dry_run,
        first_steps: Vec::new(),
        blockers,
        words,
    };
    if gone {
        let words = format!("node {id} was removed already: nothing to do");
        return Ok(outcome("removed", words, Vec::new()));
    }
    find(&seen.map, id)?;
    if dry_run {
        let mut blockers = drain_blockers(&seen, id);
        if replicas > 0 && !wait.wait {
            blockers.push(format!(
                "it holds {replicas} replicas: `mailboxctl node drain {id} --wait` moves them"
            ));
        }
        let mut words = if blockers.is_empty() {
            format!("node {id} can be removed; its id is then gone for ever")
        } else {
            format!("node {id} cannot be removed now")
        };
        append_blockers(&mut words, &blockers);
        return Ok(outcome("member", words, blockers));
    }
    if replicas > 0 {
        if !wait.wait {
            bail!(
                "node {id} holds {replicas} replicas\n  `mailboxctl node remove {id} --wait` moves them to other \
                 nodes first, and then removes it"
            );
        }
        client.set_standing(id, NodeStanding::Draining).await?;
        wait_empty(client, id, wait).await?;
    }
    client.remove_node(id).await?;
    let words = format!(
        "node {id} is removed: its process ends by itself, its id and its directory are of no use any more"
    );
    Ok(outcome("removed", words, Vec::new()))
}

fn find(map: &ClusterMap, id: u64) -> anyhow::Result<&MapNode> {
    let row = map.nodes.iter().find(|node| node.node == id);
    let Some(row) = row else {
        let known: Vec<String> = map.nodes.iter().map(|node| node.node.to_string()).collect();
        bail!(
            "there is no node {id}: the cluster has {}\n  `mailboxctl node list` shows them",
            known.join(", ")
        );
    };
    if row.standing() == NodeStanding::Removed {
        bail!("node {id} was removed: its id is never used again");
    }
    Ok(row)
}

/// What keeps a node from being emptied, with what mends it.
fn drain_blockers(seen: &Survey, id: u64) -> Vec<String> {
    let mut blockers = Vec::new();
    let takers: Vec<u64> = seen
        .nodes()
        .filter(|node| node.node != id && node.weight > 0)
        .filter(|node| node.standing() == NodeStanding::Member && seen.is_up(node.node))
        .map(|node| node.node)
        .collect();
    for shard in &seen.map.shards {
        let voters = voters(shard);
        if !voters.contains(&id) {
            continue;
        }
        let (up, all) = seen.voters_up(shard);
        if up * 2 <= all {
            blockers.push(format!(
                "shard {} has no majority ({up} of {all} voters answer): start its other nodes first",
                shard.shard
            ));
        } else if takers.iter().all(|node| voters.contains(node)) {
            blockers.push(format!(
                "no other node can take shard {}'s replica: start one more (cluster.join), or undrain one",
                shard.shard
            ));
        }
    }
    blockers
}

fn append_blockers(words: &mut String, blockers: &[String]) {
    for blocker in blockers {
        words.push_str(&format!("\n  in the way: {blocker}"));
    }
}

pub(super) fn node_rows(seen: &Survey) -> Vec<NodeRow> {
    let row = |node: &MapNode| {
        let (replicas, leads) = seen.load_of(node.node);
        let status = seen.statuses.get(&node.node);
        let answer = status.and_then(|status| status.as_ref().ok());
        let error = status.and_then(|status| status.as_ref().err());
        NodeRow {
            node: node.node,
            address: node.address.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            standing: standing_text(node.standing()),
            up: answer.is_some(),
            error: error.map(ToString::to_string),
            replicas,
            leads,
            disk_free_bytes: answer.map_or(0, |answer| answer.disk_free_bytes),
            clock_fault: answer.map_or_else(String::new, |answer| answer.clock_fault.clone()),
        }
    };
    seen.nodes().map(row).collect()
}

pub(super) fn nodes_table(rows: &[NodeRow]) -> Table {
    let header = [
        "node",
        "address",
        "zone",
        "standing",
        "up",
        "replicas",
        "leads",
        "disk free",
    ];
    let mut table = plain_table(header);
    for row in rows {
        let place = [row.region.as_str(), row.zone.as_str()];
        let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
        let free = if row.up {
            format!("{} MiB", grouped(row.disk_free_bytes >> 20))
        } else {
            "-".to_owned()
        };
        table.add_row([
            row.node.to_string(),
            row.address.clone(),
            if place.is_empty() {
                "-".to_owned()
            } else {
                place.join("/")
            },
            row.standing.to_owned(),
            if row.up { "yes" } else { "NO" }.to_owned(),
            row.replicas.to_string(),
            row.leads.to_string(),
            free,
        ]);
    }
    table
}
