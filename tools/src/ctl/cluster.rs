//! `mailboxctl cluster`: a new cluster, and a cluster at a glance.

mod init;

use comfy_table::Table;
use mailbox_client::v1::{Gateway, StepsResponse};
use serde::Serialize;

use super::gateway::{GatewayRow, gateway_rows, in_a_line};
use super::shard::{ShardRow, shard_rows, shards_table};
use super::steps::step_text;
use super::store_node::{NodeRow, node_rows, nodes_table};
use crate::node::NodeArgs;
use crate::output::OutputArgs;
use crate::survey::{self, Survey};

/// Make a cluster, and see it as a whole.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Init(init::Args),
    /// Show whether the cluster serves, how many nodes it can lose, and what is on the move
    ///
    /// Each node answers for itself, so this works without a quorum; only what is on the move and which gateways
    /// there are is told by the leader of the meta shard (shard 0, which holds the map). The exit status is 1 when a node does
    /// not answer or a shard has no leader. Then `mailboxctl doctor` says what to do.
    Status {
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
struct ClusterView {
    cluster_id: String,
    map_epoch: u64,
    /// Every shard has a leader.
    serves: bool,
    /// Nodes that may fail beyond those that do not answer; negative: some shard has no majority.
    can_lose: i64,
    nodes: Vec<NodeRow>,
    shards: Vec<ShardRow>,
    /// Absent: the leader of the meta shard could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<Vec<String>>,
    /// Absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<GatewayRow>>,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    let node = match command {
        Command::Init(args) => return init::run(&args, output),
        Command::Status { node } => node,
    };
    let client = node.connect().await?;
    let seen = Survey::take(&client).await?;
    let steps = survey::steps(&client).await;
    // Whoever does not tell the one is not waited for once more.
    let gateways = match &steps {
        Ok(_) => client.gateways().await.ok(),
        Err(_) => None,
    };
    let view = view(&seen, steps.as_ref().ok(), gateways.as_deref());
    output.print(&view, human)?;
    Ok(view.serves && view.nodes.iter().all(|node| node.up))
}

fn view(seen: &Survey, steps: Option<&StepsResponse>, gateways: Option<&[Gateway]>) -> ClusterView {
    let shards = shard_rows(seen);
    ClusterView {
        cluster_id: seen.map.cluster_id.clone(),
        map_epoch: seen.map.epoch,
        serves: shards.iter().all(|shard| shard.leader.is_some()),
        can_lose: seen.can_lose(),
        nodes: node_rows(seen),
        shards,
        running: steps.map(|steps| {
            let running = steps.running.iter().map(step_text);
            let following = steps.following.iter();
            let following = following
                .map(|shard| format!("shard {shard}: the map follows the shard's members"));
            running.chain(following).collect()
        }),
        gateways: gateways.map(gateway_rows),
    }
}

fn human(view: &ClusterView) -> String {
    let verdict = match (view.serves, view.can_lose) {
        (_, spare) if spare < 0 => "some shard has no majority and does not serve".to_owned(),
        (false, _) => "some shard has no leader at this moment".to_owned(),
        (true, 0) => "serves; losing one more node stops some shard".to_owned(),
        (true, spare) => format!("serves and can lose {spare} node(s)"),
    };
    let trim = |table: Table| table.trim_fmt();
    let moves = match &view.running {
        None => "the leader of the meta shard does not answer: what is on the move is not known"
            .to_owned(),
        Some(steps) if steps.is_empty() => "nothing is on the move".to_owned(),
        Some(steps) => format!("on the move:\n  {}", steps.join("\n  ")),
    };
    let gateways = match &view.gateways {
        None => String::new(),
        Some(rows) => format!("{}\n", in_a_line(rows)),
    };
    format!(
        "cluster {}, map {}: {verdict}\n{}\n\n{}\n\n{gateways}{moves}",
        view.cluster_id,
        view.map_epoch,
        trim(nodes_table(&view.nodes)),
        trim(shards_table(&view.shards)),
    )
}
