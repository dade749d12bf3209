//! `mailboxctl shard`: shards, and moves of their replicas and leaders by hand.

use anyhow::bail;
use comfy_table::Table;
use mailbox_client::Client;
use mailbox_client::v1::{ClusterMap, MapShard, MoveReplicaRequest};
use serde::Serialize;

use super::merge_shard;
use super::move_slot;
use super::show_table::plain_table;
use super::split_shard;
use super::steps::{WaitArgs, step_text, wait_for};
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped, mebibytes};
use crate::survey::{self, Survey};

/// See shards, and move their replicas and leaders.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the shards with their leaders and replicas
    List {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Show one shard: its slots, each replica with its lag, and what is being done to it
    Show {
        /// The shard; 0 is the meta shard, which holds the map
        shard: u32,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Move one replica from a node to another
    ///
    /// The new replica receives everything before it votes, and votes in the same step in which the old one
    /// stops, so the shard bears as many failures as ever. A move that the placement would undo (less even,
    /// or fewer zones) is refused.
    Move {
        /// The shard
        shard: u32,
        /// The node that gives its replica up
        #[arg(long, value_name = "NODE")]
        from: u64,
        /// The node that gets one
        #[arg(long, value_name = "NODE")]
        to: u64,
        /// Say whether it can be done; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Move one slot to another shard
    ///
    /// The owners of the slot move with all that is theirs. A copy travels while the slot is served; then, for some
    /// milliseconds, nobody serves it, and clients try again. Goes on by itself whatever node dies. A shard that has
    /// no slots left goes on without any.
    MoveSlot {
        /// The slot
        slot: u32,
        /// The shard that gets it
        #[arg(long, value_name = "SHARD", required_unless_present = "abort")]
        to: Option<u32>,
        /// Give the move up that is under way; possible while the slot is copied
        #[arg(long, conflicts_with = "to")]
        abort: bool,
        /// Say whether it can be done; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Split a shard: some of its slots become a shard of their own
    ///
    /// The new shard begins on the nodes of the old one, with the rows that are there: nothing is copied. While it
    /// gets its leader nobody serves what has gone, less than a second as a rule, and clients try again. Afterwards
    /// it is placed like any other. Begins only while all voters are there and keep up; goes on by itself then,
    /// whatever node dies, and cannot be given up. Its slots can be moved back one by one.
    Split {
        #[command(flatten)]
        ask: split_shard::Ask,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Merge a shard into another: all its slots move there, and it is gone
    ///
    /// The slots move some at a time, each as with `shard move-slot`; then the shard is retired: it leaves the map, the
    /// nodes drop its replicas, and its id is never used again. Goes on by itself whatever node dies, and ends when
    /// every replica of the other shard has the rows. Until then it can be given up: what has moved stays there.
    Merge {
        #[command(flatten)]
        ask: merge_shard::Ask,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Let another voter lead a shard
    ///
    /// Sends wait for some milliseconds, none is lost. The placement keeps leaders even, and may move this
    /// one on.
    Transfer {
        /// The shard
        shard: u32,
        /// The node that is to lead
        #[arg(long, value_name = "NODE")]
        to: u64,
        /// Say whether it can be done; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
pub(super) struct ShardRow {
    shard: u32,
    epoch: u64,
    pub(super) leader: Option<u64>,
    term: u64,
    /// As its leader says.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
    replicas: Vec<ReplicaRow>,
    changing: bool,
    /// Slots on their way to it or from it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    moves: Vec<String>,
    /// Its split that is under way, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The merges under way that it takes part in, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    merges: Vec<String>,
}

impl ShardRow {
    fn stored(&self) -> String {
        let bytes = self.stored_bytes;
        bytes.map_or_else(|| "?".to_owned(), mebibytes)
    }
}

#[derive(Serialize)]
struct ReplicaRow {
    node: u64,
    voter: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<u64>,
    up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
}

#[derive(Serialize)]
struct ShardView {
    #[serde(flatten)]
    row: ShardRow,
    slots: String,
    running: Vec<String>,
    done: Vec<String>,
}

#[derive(Serialize)]
struct Outcome {
    shard: u32,
    /// `moving`, `moved`, `led`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
    #[serde(skip)]
    words: String,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    let outcome = match command {
        Command::List { node } => {
            let client = node.connect().await?;
            let mut rows = shard_rows(&Survey::take(&client).await?);
            under_way(&client, &mut rows).await;
            output.print(&rows, |rows| list_text(rows))?;
            return Ok(true);
        }
        Command::Show { shard, node } => {
            let view = show(&node.connect().await?, shard).await?;
            output.print(&view, human)?;
            return Ok(true);
        }
        Command::Move {
            shard,
            from,
            to,
            dry_run,
            wait,
            node,
        } => {
            let call = MoveReplicaRequest {
                shard,
                from,
                to,
                dry_run,
            };
            move_replica(&node.connect().await?, call, wait).await?
        }
        Command::MoveSlot {
            slot,
            to,
            abort: _,
            dry_run,
            wait,
            node,
        } => {
            let ask = move_slot::Ask {
                slot,
                to,
                dry_run,
                wait,
            };
            let outcome = move_slot::run(&node.connect().await?, ask).await?;
            output.print(&outcome, |outcome| outcome.words.clone())?;
            return Ok(true);
        }
        Command::Split { ask, node } => {
            let outcome = split_shard::run(&node.connect().await?, ask).await?;
            output.print(&outcome, |outcome| outcome.words.clone())?;
            return Ok(true);
        }
        Command::Merge { ask, node } => {
            let outcome = merge_shard::run(&node.connect().await?, ask).await?;
            output.print(&outcome, |outcome| outcome.words.clone())?;
            return Ok(true);
        }
        Command::Transfer {
            shard,
            to,
            dry_run,
            node,
        } => transfer(&node.connect().await?, shard, to, dry_run).await?,
    };
    output.print(&outcome, |outcome| outcome.words.clone())?;
    Ok(true)
}

async fn move_replica(
    client: &Client,
    call: MoveReplicaRequest,
    wait: WaitArgs,
) -> anyhow::Result<Outcome> {
    let MoveReplicaRequest {
        shard,
        from,
        to,
        dry_run,
    } = call;
    let outcome = |state, words| Outcome {
        shard,
        state,
        dry_run,
        words,
    };
    let begun = client.move_replica(call).await?;
    if dry_run {
        let words = format!("shard {shard}: node {to} can take node {from}'s place");
        return Ok(outcome("possible", words));
    }
    if !wait.wait {
        let words = format!(
            "shard {shard}: node {to} gets a replica, and then votes in place of node {from}\n  \
             `mailboxctl shard show {shard}` shows how far it is"
        );
        return Ok(outcome("moving", words));
    }
    // The map that answers may be older than the move.
    let left = |map: &ClusterMap| match map.epoch < begun.epoch {
        true => Some(format!("shard {shard}: the move becomes known")),
        false => left_of(map, call),
    };
    let map = wait_for(client, wait.timeout, left).await?;
    let row = find(&map, shard)?;
    if !row
        .replicas
        .iter()
        .any(|held| held.node == to && held.voter)
    {
        bail!(
            "shard {shard}: the move was given up: node {to} holds no replica\n  the placement found a better use \
             of it meanwhile; `mailboxctl shard show {shard}` shows what it did"
        );
    }
    let words = format!("shard {shard}: node {to} votes in place of node {from}");
    Ok(outcome("moved", words))
}

fn left_of(map: &ClusterMap, call: MoveReplicaRequest) -> Option<String> {
    let row = find(map, call.shard).ok()?;
    let learns = row
        .replicas
        .iter()
        .any(|held| held.node == call.to && !held.voter);
    learns.then(|| {
        format!(
            "shard {}: node {} receives its replica",
            call.shard, call.to
        )
    })
}

async fn transfer(client: &Client, shard: u32, to: u64, dry_run: bool) -> anyhow::Result<Outcome> {
    let seen = Survey::take(client).await?;
    let row = find(&seen.map, shard)?;
    let voters = survey::voters(row);
    if !voters.contains(&to) {
        let voters: Vec<String> = voters.iter().map(ToString::to_string).collect();
        bail!(
            "node {to} does not vote in shard {shard}: its voters are {}\n  `mailboxctl shard move` makes it one",
            voters.join(", ")
        );
    }
    if !seen.is_up(to) {
        bail!("node {to} does not answer: start it, or choose another voter");
    }
    let leader = seen.leader_of(shard).map(|(leader, _)| leader);
    let words = match leader {
        Some(leader) if leader == to => format!("node {to} leads shard {shard} already"),
        _ if dry_run => format!("node {to} can lead shard {shard}"),
        _ => {
            client.transfer_leader(shard, to).await?;
            format!("node {to} leads shard {shard}")
        }
    };
    Ok(Outcome {
        shard,
        state: if dry_run { "possible" } else { "led" },
        dry_run,
        words,
    })
}

/// What is being done to the slots of shards; nothing, if nobody tells.
async fn under_way(client: &Client, rows: &mut [ShardRow]) {
    let moves = client.slot_moves().await.unwrap_or_default();
    let splits = client.shard_splits().await.unwrap_or_default();
    let merges = client.shard_merges().await.unwrap_or_default();
    for row in rows {
        row.merges = merge_shard::of_shard(&merges, row.shard);
        row.moves = move_slot::of_shard(&moves, row.shard);
        let split = splits.iter().find(|found| found.shard == row.shard);
        row.split = split.map(split_shard::words);
    }
}

pub(super) fn find(map: &ClusterMap, shard: u32) -> anyhow::Result<&MapShard> {
    match map.shards.iter().find(|row| row.shard == shard) {
        Some(row) => Ok(row),
        None => {
            let last = map.shards.iter().map(|row| row.shard).max().unwrap_or(0);
            bail!(
                "there is no shard {shard}, or not any more: `mailboxctl shard list` shows those that there are, up to \
                 {last}"
            )
        }
    }
}

async fn show(client: &Client, shard: u32) -> anyhow::Result<ShardView> {
    let seen = Survey::take(client).await?;
    let found = find(&seen.map, shard)?;
    let steps = survey::steps(client).await.unwrap_or_default();
    let of_shard = steps.running.iter().filter(|step| step.shard == shard);
    let done = steps.done.iter().filter(|step| step.shard == shard);
    let ended = |step: &mailbox_client::v1::PlacementStep| match step.fault.as_str() {
        "" => step_text(step),
        fault => format!("{} - not done: {fault}", step_text(step)),
    };
    let spans = found.slots.iter();
    let spans: Vec<String> = spans
        .map(|span| format!("{}-{}", span.first, span.last))
        .collect();
    let mut row = shard_row(&seen, found);
    under_way(client, std::slice::from_mut(&mut row)).await;
    Ok(ShardView {
        row,
        slots: spans.join(", "),
        running: of_shard.map(step_text).collect(),
        done: done.map(ended).collect(),
    })
}

fn human(view: &ShardView) -> String {
    let row = &view.row;
    let leader = row
        .leader
        .map_or_else(|| "nobody".to_owned(), |node| format!("node {node}"));
    let slots = match (view.slots.as_str(), row.shard) {
        ("", 0) => "none (the meta shard)",
        ("", _) => "none",
        (slots, _) => slots,
    };
    let mut text = format!(
        "shard {}: led by {leader} in term {}, row epoch {}, slots {slots}, {} stored\n",
        row.shard,
        row.term,
        row.epoch,
        row.stored()
    );
    let mut table = plain_table(["node", "role", "up", "behind"]);
    for replica in &row.replicas {
        let role = match (replica.voter, replica.replaces) {
            (true, _) => "voter".to_owned(),
            (false, None) => "learner".to_owned(),
            (false, Some(node)) => format!("learner, for node {node}"),
        };
        table.add_row([
            replica.node.to_string(),
            role,
            if replica.up { "yes" } else { "NO" }.to_owned(),
            replica
                .lag
                .map_or_else(|| "?".to_owned(), |lag| format!("{} entries", grouped(lag))),
        ]);
    }
    text.push_str(&table.trim_fmt());
    let split: Vec<String> = row.split.iter().cloned().collect();
    for (title, steps) in [
        ("under way", &view.running),
        ("split under way", &split),
        ("merges under way", &row.merges),
        ("slots under way", &row.moves),
        ("done last", &view.done),
    ] {
        if !steps.is_empty() {
            text.push_str(&format!("\n{title}:\n  {}", steps.join("\n  ")));
        }
    }
    text
}

fn list_text(rows: &[ShardRow]) -> String {
    let mut text = shards_table(rows).trim_fmt();
    // Each is told by both of its shards.
    let moves: std::collections::BTreeSet<&String> =
        rows.iter().flat_map(|row| &row.moves).collect();
    if !moves.is_empty() {
        text.push_str("\nslots under way:");
    }
    for words in moves {
        text.push_str(&format!("\n  {words}"));
    }
    let merges: std::collections::BTreeSet<&String> =
        rows.iter().flat_map(|row| &row.merges).collect();
    let splits = rows.iter().filter_map(|row| row.split.as_ref());
    for words in splits.chain(merges) {
        text.push_str(&format!("\n{words}"));
    }
    text
}

pub(super) fn shard_rows(seen: &Survey) -> Vec<ShardRow> {
    let shards = seen.map.shards.iter();
    shards.map(|shard| shard_row(seen, shard)).collect()
}

fn shard_row(seen: &Survey, shard: &MapShard) -> ShardRow {
    let leader = seen.leader_of(shard.shard);
    let replica = |held: &mailbox_client::v1::MapReplica| ReplicaRow {
        node: held.node,
        voter: held.voter,
        replaces: (held.replaces != 0).then_some(held.replaces),
        up: seen.is_up(held.node),
        lag: seen.lag(shard.shard, held.node),
    };
    ShardRow {
        shard: shard.shard,
        epoch: shard.epoch,
        leader: leader.map(|(node, _)| node),
        term: leader.map_or(0, |(_, status)| status.term),
        stored_bytes: leader.map(|(_, status)| status.stored_bytes),
        changing: leader.is_some_and(|(_, status)| status.changing),
        replicas: shard.replicas.iter().map(replica).collect(),
        moves: Vec::new(),
        split: None,
        merges: Vec::new(),
    }
}

pub(super) fn shards_table(rows: &[ShardRow]) -> Table {
    let mut table = plain_table(["shard", "leader", "voters", "learners", "behind", "stored"]);
    for row in rows {
        let nodes = |voters: bool| {
            let replicas = row.replicas.iter().filter(|held| held.voter == voters);
            let nodes = replicas.map(|held| {
                let down = if held.up { "" } else { "(down)" };
                let place = held
                    .replaces
                    .map_or_else(String::new, |n| format!(" for {n}"));
                format!("{}{down}{place}", held.node)
            });
            let nodes: Vec<String> = nodes.collect();
            if nodes.is_empty() {
                "-".to_owned()
            } else {
                nodes.join(" ")
            }
        };
        let behind = row.replicas.iter().filter_map(|held| held.lag).max();
        table.add_row([
            row.shard.to_string(),
            row.leader
                .map_or_else(|| "NONE".to_owned(), |node| node.to_string()),
            nodes(true),
            nodes(false),
            behind.map_or_else(|| "?".to_owned(), grouped),
            row.stored(),
        ]);
    }
    table
}
