//! `mailboxctl meta`: the rows of the meta shard, which holds the map of the cluster.

use std::fmt::Write as _;

use anyhow::Context as _;
use mailbox_client::v1::{ClusterMap, ClusterOptions, MapReplica, MapShard};
use serde::Serialize;

use super::merge_shard;
use super::show_table::plain_table;
use super::split_shard;
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped};
use crate::survey::standing_text;

/// See what the meta shard holds: the map, the nodes, the options of the cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print the rows of the meta shard: nodes, shards, epoch, options
    ///
    /// Answered by the leader of the meta shard (shard 0), so it is what holds now. Without a majority of the meta
    /// shard there is none: --stale prints the map as the first node that answers knows it, which may be
    /// behind, and no options. Removed nodes are listed, too: their ids are never used again.
    Show {
        /// From whichever node answers, without a quorum
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
struct MetaView {
    cluster_id: String,
    epoch: u64,
    stale: bool,
    slot_count: u32,
    shard_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_index: Option<u64>,
    nodes: Vec<NodeView>,
    shards: Vec<ShardView>,
    /// Splits under way, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    splits: Vec<String>,
    /// Merges under way, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    merges: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<OptionsView>,
}

#[derive(Serialize)]
struct NodeView {
    node: u64,
    address: String,
    region: String,
    zone: String,
    weight: u32,
    standing: &'static str,
    /// In hex; absent until the node has told.
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
}

#[derive(Serialize)]
struct ShardView {
    shard: u32,
    epoch: u64,
    slots: String,
    voters: Vec<u64>,
    learners: Vec<Learner>,
}

#[derive(Serialize)]
struct Learner {
    node: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<u64>,
}

#[derive(Serialize)]
struct OptionsView {
    body_bytes_max: u32,
    group_members_max: u32,
    dedup_window_ms: u64,
    user_groups_max: u32,
    user_devices_max: u32,
    dead_letters_max: u32,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    let Command::Show { stale, node } = command;
    let client = node.connect().await?;
    let view = if stale {
        let map = client.cluster_map().await;
        MetaView::new(map.context("ask for the map of the cluster")?, None, None)
    } else {
        let rows = client.meta_rows().await.context(
            "ask the leader of the meta shard\n  `mailboxctl meta show --stale` needs none; `mailboxctl doctor` says \
             what is wrong",
        )?;
        let map = rows.map.unwrap_or_default();
        let mut view = MetaView::new(map, rows.options, Some(rows.applied_index));
        let splits = client.shard_splits().await.unwrap_or_default();
        view.splits = splits.iter().map(split_shard::words).collect();
        let merges = client.shard_merges().await.unwrap_or_default();
        view.merges = merges.iter().map(merge_shard::words).collect();
        view
    };
    output.print(&view, human)?;
    Ok(true)
}

impl MetaView {
    fn new(map: ClusterMap, options: Option<ClusterOptions>, applied_index: Option<u64>) -> Self {
        let nodes = map.nodes.iter().map(|node| NodeView {
            node: node.node,
            address: node.address.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            standing: standing_text(node.standing()),
            incarnation: (node.incarnation != 0).then(|| format!("{:016x}", node.incarnation)),
        });
        Self {
            nodes: nodes.collect(),
            shards: map.shards.iter().map(ShardView::new).collect(),
            splits: Vec::new(),
            merges: Vec::new(),
            cluster_id: map.cluster_id,
            epoch: map.epoch,
            stale: applied_index.is_none(),
            slot_count: map.slot_count,
            shard_count: map.shard_count,
            applied_index,
            options: options.map(|options| OptionsView {
                body_bytes_max: options.body_bytes_max,
                group_members_max: options.group_members_max,
                dedup_window_ms: options.dedup_window_ms,
                user_groups_max: options.user_groups_max,
                user_devices_max: options.user_devices_max,
                dead_letters_max: options.dead_letters_max,
            }),
        }
    }
}

impl ShardView {
    fn new(shard: &MapShard) -> Self {
        let spans = shard.slots.iter();
        let spans = spans.map(|span| match span.first == span.last {
            true => span.first.to_string(),
            false => format!("{}-{}", span.first, span.last),
        });
        let held = |voter: bool| {
            shard
                .replicas
                .iter()
                .filter(move |held| held.voter == voter)
        };
        let learner = |held: &MapReplica| Learner {
            node: held.node,
            replaces: (held.replaces != 0).then_some(held.replaces),
        };
        Self {
            shard: shard.shard,
            epoch: shard.epoch,
            slots: spans.collect::<Vec<_>>().join(", "),
            voters: held(true).map(|held| held.node).collect(),
            learners: held(false).map(learner).collect(),
        }
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn human(view: &MetaView) -> String {
    let how = match view.applied_index {
        Some(index) => format!("up to entry {} of the meta shard", grouped(index)),
        None => "as one node knows it: it may be behind".to_owned(),
    };
    let mut text = format!(
        "cluster {}: map {}, {} slots in {} shards; {how}\n",
        view.cluster_id, view.epoch, view.slot_count, view.shard_count
    );
    let header = [
        "node",
        "address",
        "region",
        "zone",
        "weight",
        "standing",
        "incarnation",
    ];
    let mut nodes = plain_table(header);
    for node in &view.nodes {
        nodes.add_row([
            node.node.to_string(),
            node.address.clone(),
            dash(&node.region),
            dash(&node.zone),
            node.weight.to_string(),
            node.standing.to_owned(),
            node.incarnation.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    text.push_str(&nodes.trim_fmt());
    let mut shards = plain_table(["shard", "row epoch", "voters", "learners", "slots"]);
    for shard in &view.shards {
        let voters: Vec<String> = shard.voters.iter().map(u64::to_string).collect();
        let learners = shard.learners.iter().map(|learner| match learner.replaces {
            None => learner.node.to_string(),
            Some(replaced) => format!("{} for {replaced}", learner.node),
        });
        shards.add_row([
            shard.shard.to_string(),
            shard.epoch.to_string(),
            dash(&voters.join(" ")),
            dash(&learners.collect::<Vec<_>>().join(", ")),
            dash(&shard.slots),
        ]);
    }
    let _ = write!(text, "\n\n{}", shards.trim_fmt());
    for words in view.splits.iter().chain(&view.merges) {
        let _ = write!(text, "\n{words}");
    }
    if let Some(options) = &view.options {
        let OptionsView {
            body_bytes_max,
            group_members_max,
            dedup_window_ms,
            user_groups_max,
            user_devices_max,
            dead_letters_max,
        } = options;
        let _ = write!(
            text,
            "\n\nbody_bytes_max = {body_bytes_max}\ngroup_members_max = {group_members_max}\n\
             user_groups_max = {user_groups_max}\nuser_devices_max = {user_devices_max}\n\
             dead_letters_max = {dead_letters_max}\ndedup_window_ms = {dedup_window_ms}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::{MapNode, NodeStanding, SlotSpan};

    use super::*;

    fn map() -> ClusterMap {
        let voter = |node| MapReplica {
            node,
            voter: true,
            replaces: 0,
        };
        let learner = MapReplica {
            node: 4,
            voter: false,
            replaces: 1,
        };
        let node = |id, standing: NodeStanding| MapNode {
            node: id,
            address: format!("n{id}:1"),
            standing: standing as i32,
            incarnation: id * 16,
            ..MapNode::default()
        };
        let span = |first, last| SlotSpan { first, last };
        ClusterMap {
            epoch: 9,
            cluster_id: "blue".to_owned(),
            slot_count: 64,
            shard_count: 1,
            nodes: vec![
                node(0, NodeStanding::Member),
                node(2, NodeStanding::Removed),
            ],
            shards: vec![MapShard {
                shard: 1,
                epoch: 3,
                slots: vec![span(0, 62), span(63, 63)],
                replicas: vec![voter(1), voter(2), voter(3), learner],
                leader: 0,
            }],
        }
    }

    #[test]
    fn every_row_is_printed() {
        let options = ClusterOptions {
            body_bytes_max: 16_383,
            ..ClusterOptions::default()
        };
        let view = MetaView::new(map(), Some(options), Some(1_234));
        let text = human(&view);
        assert!(
            text.starts_with("cluster blue: map 9, 64 slots in 1 shards; up to entry 1,234"),
            "{text}"
        );
        assert!(
            text.contains("1 2 3") && text.contains("4 for 1") && text.contains("0-62, 63"),
            "{text}"
        );
        assert!(
            text.contains("removed") && text.contains("0000000000000020"),
            "{text}"
        );
        assert!(text.ends_with("dedup_window_ms = 0"), "{text}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["shards"][0]["learners"][0]["replaces"], 1);
        assert_eq!(json["options"]["body_bytes_max"], 16_383);
        assert!(json["nodes"][0].get("incarnation").is_none());
    }

    #[test]
    fn a_stale_map_says_so_and_has_no_options() {
        let view = MetaView::new(map(), None, None);
        assert!(view.stale && human(&view).contains("it may be behind"));
        assert!(
            serde_json::to_value(&view)
                .unwrap()
                .get("options")
                .is_none()
        );
    }
}
