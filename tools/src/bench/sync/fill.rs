//! The mailboxes before the clock starts: filled, and for a cold run out of every cache that can be emptied.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use mailbox_client::Client;
use mailbox_client::v1::{HeadsRequest, StateHashRequest, Timeline, TimelineKind};
use mailbox_cluster::Cluster;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::page::Mailbox;
use crate::bench::disk::{self, Dropped};
use crate::bench::send;
use crate::chaos;

/// Sends on the way while mailboxes are filled.
const SENDS: usize = 512;
/// Heads asked for in one call.
const HEADS_PER_CALL: usize = 1000;
/// How long deliveries, and nodes that start, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Puts at least `messages` messages into each user's mailbox and tells how far each goes.
pub(super) async fn fill(
    cluster: &Cluster,
    client: &Client,
    users: &[u64],
    messages: u32,
    body_bytes: usize,
) -> anyhow::Result<Vec<Mailbox>> {
    // Each user sends to the next one, the last to the first: a round puts two messages into every mailbox, or one
    // where there is nobody else to send to.
    let a_round = if users.len() == 1 { 1 } else { 2 };
    let rounds = messages.div_ceil(a_round);
    let bar = ProgressBar::new(u64::from(rounds) * users.len() as u64).with_message("messages");
    bar.set_style(crate::output::bar_style());
    let mut rng: SmallRng = rand::make_rng();
    let pairs = users.iter().zip(users.iter().cycle().skip(1));
    let sends = (0..rounds).flat_map(|_| pairs.clone());
    let sends = sends.map(|(sender, recipient)| {
        let mut body = vec![0; body_bytes];
        rng.fill(body.as_mut_slice());
        let request = send::direct(client, *sender, *recipient, body);
        let bar = &bar;
        async move {
            client.send(request).await?;
            bar.inc(1);
            Ok::<_, mailbox_client::CallError>(())
        }
    });
    let sends = futures_util::stream::iter(sends).buffer_unordered(SENDS);
    sends.try_collect::<()>().await.context("fill mailboxes")?;
    bar.finish_and_clear();
    cluster.wait_lanes_drained(PATIENCE).await?;
    heads(client, users).await
}

async fn heads(client: &Client, users: &[u64]) -> anyhow::Result<Vec<Mailbox>> {
    let kind = TimelineKind::Mailbox as i32;
    let mut mailboxes = Vec::with_capacity(users.len());
    for some in users.chunks(HEADS_PER_CALL) {
        let timelines = some.iter().map(|owner| {
            let owner = *owner;
            Timeline { kind, owner }
        });
        let request = HeadsRequest {
            timelines: timelines.collect(),
            ..HeadsRequest::default()
        };
        let answer = client.heads(request).await.context("ask for heads")?;
        mailboxes.extend(answer.heads.iter().filter_map(|head| {
            let user = head.timeline?.owner;
            let head = head.head;
            Some(Mailbox { user, head })
        }));
    }
    Ok(mailboxes)
}

/// Gets everything out of memtables and caches: every shard is flushed on every node, all nodes are stopped, their files
/// leave the page cache, and all nodes are started again.
pub(super) async fn chill(cluster: &Cluster, client: &Client) -> anyhow::Result<Dropped> {
    flush(cluster, client).await?;
    chaos::stop_all(cluster).await?;
    let dir = cluster.dir().to_owned();
    let dropped = tokio::task::spawn_blocking(move || disk::drop_page_cache(&dir)).await?;
    let dropped = dropped.context("drop the nodes' files from the page cache")?;
    for node in cluster.nodes() {
        node.start()?;
        node.start_gateway()?;
    }
    cluster.wait_ready(PATIENCE).await?;
    Ok(dropped)
}

/// A cut of a shard ends its memtables, and whoever can hash what lies below it has flushed it.
async fn flush(cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
    let shards = client.cluster_map().await?.shards;
    let cuts = shards.iter().map(|shard| async {
        let mut request = StateHashRequest {
            shard: shard.shard,
            cut_index: 0,
        };
        request.cut_index = client.state_hash(None, request).await?.applied_index;
        let nodes = cluster.nodes().iter();
        let hashes = nodes.map(|node| client.state_hash(Some(node.address()), request));
        try_join_all(hashes).await
    });
    try_join_all(cuts).await.context("flush every shard")?;
    Ok(())
}
