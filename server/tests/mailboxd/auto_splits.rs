//! Shards of real processes that are split by themselves, by what they store and by what is written to them, under
//! sends, syncs and subscriptions.

use std::collections::BTreeMap;

use mailbox_client::Client;
use mailbox_client::v1::{ClusterMap, NoSplit};
use rustix::process::Signal;

use crate::chat::text_to;
use crate::cluster::Trio;
use crate::http;
use crate::placement::{Acked, assert_nothing_lost, register};
use crate::process::Process;
use crate::slot_moves::{Load, eventually, give_lead};

const SHARDS: u16 = 2;
/// Of `placement.split_bytes` below.
const LIMIT: u64 = 256 << 10;
const BODY: usize = 4000;
/// Looks in which a split that is due would have begun, twice over.
const QUIET_LOOKS: u64 = 12;

/// A cluster, and where its nodes tell their metrics.
struct Watched {
    trio: Trio,
    metrics: Vec<String>,
}

impl Watched {
    /// With these options of the placement.
    fn start(dir: &std::path::Path, slots: u16, placement: &str) -> Self {
        let mut trio = Trio::configure_splitting(dir, slots, SHARDS, placement);
        let mut metrics = Vec::new();
        for index in 0..3 {
            let args = trio.node_args(dir, index);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let process = Process::start(&args);
            let ready = process.says();
            metrics.push(ready["ready"]["metrics"].as_str().unwrap().to_owned());
            trio.nodes.push(Some(process));
        }
        Self { trio, metrics }
    }

    /// The sum of a counter over all nodes.
    fn counted(&self, name: &str) -> u64 {
        let of_node = |address: &String| {
            let answer = http::get(address, "/metrics", None);
            let mut lines = answer.body.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.unwrap().parse::<u64>().unwrap()
        };
        self.metrics.iter().map(of_node).sum()
    }

    fn looks(&self) -> u64 {
        self.counted("mailbox_auto_splits_looks_total")
    }

    /// Waits for so many more looks.
    async fn looked(&self, more: u64) {
        let least = self.looks() + more;
        eventually("shards are looked at", || async {
            (self.looks() >= least).then_some(())
        })
        .await;
    }

    fn stop(self) {
        for node in self.trio.nodes.into_iter().flatten() {
            assert!(node.stop(Signal::TERM).success());
        }
    }

    /// How many bytes each shard stores, by its leader.
    async fn stored(&self, client: &Client) -> Option<BTreeMap<u32, u64>> {
        let mut stored = BTreeMap::new();
        for address in self.trio.addresses() {
            let status = client.status(Some(address)).await.ok()?;
            let led = status.shards.iter().filter(|shard| shard.role == "leader");
            stored.extend(led.map(|shard| (shard.shard, shard.stored_bytes)));
        }
        Some(stored)
    }
}

/// How many slots each shard has; the meta shard has none.
fn slots_of(map: &ClusterMap) -> BTreeMap<u32, u32> {
    let rows = map.shards.iter().filter(|row| row.shard != 0);
    let slots = rows.map(|row| {
        let spans = row.slots.iter();
        (
            row.shard,
            spans.map(|span| span.last - span.first + 1).sum(),
        )
    });
    slots.collect()
}

async fn shards(client: &Client) -> Option<BTreeMap<u32, u32>> {
    let map = client.cluster_map().await.ok()?;
    Some(slots_of(&map))
}

/// Waits until there are so many shards.
async fn grown(client: &Client, least: usize) {
    eventually("shards are split", || async {
        (shards(client).await?.len() >= least).then_some(())
    })
    .await;
}

/// Text that no compression makes shorter.
fn body(number: usize) -> String {
    let mut random = number as u64 | 1 << 63;
    let letters = (0..BODY).map(|_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        char::from(b'0' + (random >> 58) as u8)
    });
    letters.collect()
}

/// Sends great messages between users of their own.
async fn fill(client: &Client, messages: usize) -> (Vec<u64>, Vec<Acked>) {
    let mut users = Vec::new();
    for number in 0..24 {
        users.push(register(client, format!("filler{number}")).await);
    }
    let mut acked = Vec::new();
    for number in 0..messages {
        let from = users[number % users.len()];
        let to = users[(number + 1) % users.len()];
        let text = body(number);
        let send = text_to(client, from, to, &text);
        while let Err(error) = client.send(send.clone()).await {
            assert!(error.is_retryable(), "{error}");
        }
        acked.push((from, to, text));
    }
    (users, acked)
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_store_too_much_split_under_load_until_none_does() {
    let dir = tempfile::tempdir().unwrap();
    let options = "split_bytes = \"256 KiB\"\nsplit_pause_ms = 1500\n";
    let cluster = Watched::start(dir.path(), 16, options);
    let client = cluster.trio.client().await;
    let load = Load::start(&client).await;
    // Each message is stored twice: four shards cannot hold them all.
    let (users, acked) = fill(&client, 150).await;
    grown(&client, 3).await;
    // Whoever leads next goes on.
    give_lead(&cluster.trio, &client, 0, 0).await;
    give_lead(&cluster.trio, &client, 1, 0).await;
    grown(&client, 5).await;
    load.check().await;
    assert_nothing_lost(&client, &users, &acked).await;
    let at_rest = || async {
        let before = shards(&client).await?;
        cluster.looked(QUIET_LOOKS).await;
        let (after, stored) = (shards(&client).await?, cluster.stored(&client).await?);
        let fits = |(shard, slots): (&u32, &u32)| {
            *slots == 1 || stored.get(shard).is_some_and(|bytes| *bytes <= LIMIT)
        };
        (before == after && after.iter().all(fits)).then_some(after)
    };
    let shards = eventually("no shard is too great", at_rest).await;
    assert_eq!(shards.values().sum::<u32>(), 16, "{shards:?}");
    let ids: Vec<u32> = shards.keys().copied().collect();
    let dense: Vec<u32> = (1..=u32::try_from(ids.len()).unwrap()).collect();
    assert_eq!(ids, dense, "no id comes twice");
    assert!(cluster.counted("mailbox_auto_splits_begun_total") > 0);
    assert_nothing_lost(&client, &users, &acked).await;
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_have_too_much_written_split_until_they_have_one_slot() {
    let dir = tempfile::tempdir().unwrap();
    let options = "split_writes_per_second = 1\nsplit_pause_ms = 600\n";
    let cluster = Watched::start(dir.path(), 4, options);
    let client = cluster.trio.client().await;
    let load = Load::start(&client).await;
    grown(&client, 4).await;
    let told = eventually("what cannot be split is told", || async {
        let unsplit = client.unsplit_shards().await.ok()?;
        unsplit.into_iter().next()
    })
    .await;
    assert_eq!(told.why(), NoSplit::OneSlot);
    assert_eq!(told.option, "placement.split_writes_per_second");
    assert_eq!((told.limit, told.shards_max), (1, 256));
    assert!(told.has > told.limit, "{told:?}");
    cluster.looked(QUIET_LOOKS).await;
    let shards = eventually("the map says", || shards(&client)).await;
    assert_eq!(shards, (1..=4).map(|shard| (shard, 1)).collect());
    load.check().await;
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_shard_splits_by_itself_unless_a_limit_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Watched::start(dir.path(), 16, "");
    let client = cluster.trio.client().await;
    let (users, acked) = fill(&client, 50).await;
    let stored = eventually("sizes are told", || async {
        let stored = cluster.stored(&client).await?;
        let all: u64 = stored.values().sum();
        (all > 50 * BODY as u64).then_some(stored)
    })
    .await;
    assert!(
        stored.keys().all(|shard| *shard <= u32::from(SHARDS)),
        "{stored:?}"
    );
    assert_eq!(cluster.looks(), 0);
    assert_eq!(client.unsplit_shards().await.expect("told"), []);
    assert_nothing_lost(&client, &users, &acked).await;
    cluster.stop();
}
