//! Replicas and leaders that move between real processes, under sends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailbox_client::Client;
use mailbox_client::v1::{self, NodeStanding, SyncRange, SyncRequest};
use rustix::process::Signal;

use crate::chat::{mailbox, text_to};
use crate::cluster::Trio;
use crate::process::Process;

/// Far more than any move here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster looks like.
#[derive(Debug)]
struct Look {
    map: v1::ClusterMap,
    /// Shards that each node says it leads, of those that answer.
    led: BTreeMap<u64, usize>,
    /// Who says so of shard 1.
    leader_of_1: u64,
}

impl Look {
    async fn take(client: &Client) -> Option<Self> {
        let map = client.cluster_map().await.ok()?;
        let (mut led, mut leader_of_1) = (BTreeMap::new(), 0);
        for node in &map.nodes {
            if node.standing() == NodeStanding::Removed {
                continue;
            }
            let status = client.status(Some(&node.address)).await.ok()?;
            let leads = status.shards.iter().filter(|shard| shard.role == "leader");
            if leads.clone().any(|shard| shard.shard == 1) {
                leader_of_1 = node.node;
            }
            led.insert(node.node, leads.count());
        }
        Some(Self {
            map,
            led,
            leader_of_1,
        })
    }

    /// Replicas that the map puts on each node.
    fn held(&self) -> BTreeMap<u64, usize> {
        let nodes = self.map.nodes.iter();
        let mut held: BTreeMap<u64, usize> = nodes.map(|node| (node.node, 0)).collect();
        for replica in self.map.shards.iter().flat_map(|shard| &shard.replicas) {
            *held.entry(replica.node).or_default() += 1;
        }
        held
    }

    /// No move is under way, each shard has three voters, and all have leaders.
    fn settled(&self) -> bool {
        let whole = |shard: &v1::MapShard| {
            shard.replicas.len() == 3 && shard.replicas.iter().all(|replica| replica.voter)
        };
        let leaders: usize = self.led.values().sum();
        self.map.shards.iter().all(whole) && leaders == self.map.shards.len()
    }

    fn replicas_of(&self, shard: u32) -> Vec<u64> {
        let mut shards = self.map.shards.iter();
        let shard = shards.find(|row| row.shard == shard).unwrap();
        let mut on: Vec<u64> = shard.replicas.iter().map(|held| held.node).collect();
        on.sort_unstable();
        on
    }
}

async fn until(client: &Client, what: &str, fits: impl Fn(&Look) -> bool) -> Look {
    let begun = Instant::now();
    loop {
        let look = Look::take(client).await;
        if let Some(look) = look.filter(&fits) {
            return look;
        }
        if begun.elapsed() > PATIENCE {
            let (look, steps) = (Look::take(client).await, client.steps().await);
            panic!("{what}: {look:?}, {steps:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Who sent it, to whom, and what.
pub(crate) type Acked = (u64, u64, String);

/// Sends one message after the other from each user to the next, until told to stop, `least` at any rate. Gives what was acked.
pub(crate) async fn load(
    client: Client,
    users: Vec<u64>,
    stop: Arc<AtomicBool>,
    least: usize,
) -> Vec<Acked> {
    let mut acked = Vec::new();
    while acked.len() < least || !stop.load(Ordering::Relaxed) {
        let number = acked.len();
        let from = users[number % users.len()];
        let to = users[(number + 1) % users.len()];
        let text = format!("message {number}");
        let send = text_to(&client, from, to, &text);
        // What became of it may be unknown: the same one again.
        while let Err(error) = client.send(send.clone()).await {
            assert!(error.is_retryable(), "{error}");
        }
        acked.push((from, to, text));
    }
    acked
}

async fn read(client: &Client, user: u64) -> Vec<v1::Message> {
    let mut read: Vec<v1::Message> = Vec::new();
    loop {
        let range = SyncRange {
            timeline: Some(mailbox(user)),
            after_seq: read.last().map_or(0, |message| message.seq),
        };
        let request = SyncRequest {
            ranges: vec![range],
            ..SyncRequest::default()
        };
        let answer = client.sync(request).await.expect("read");
        let pages = answer.pages.into_iter();
        let page: Vec<v1::Message> = pages.flat_map(|page| page.messages).collect();
        if page.is_empty() {
            return read;
        }
        read.extend(page);
    }
}

/// Every acked message is once in its sender's mailbox and once in its recipient's, in order, and nothing else is.
pub(crate) async fn assert_nothing_lost(client: &Client, users: &[u64], acked: &[Acked]) {
    for user in users {
        let of = |own: bool| {
            let mine = move |(from, to, _): &&Acked| if own { from == user } else { to == user };
            let texts = acked.iter().filter(mine).map(|(_, _, text)| text.as_str());
            texts.collect::<Vec<&str>>()
        };
        let begun = Instant::now();
        // The last ones may be on their way between two shards.
        let messages = loop {
            let messages = read(client, *user).await;
            let came = messages.iter().filter(|message| message.sender != *user);
            if came.count() >= of(false).len() || begun.elapsed() > PATIENCE {
                break messages;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let seqs: Vec<u64> = messages.iter().map(|message| message.seq).collect();
        let dense: Vec<u64> = (1..=messages.len() as u64).collect();
        assert_eq!(seqs, dense, "user {user}");
        let found = |own: bool| -> Vec<&str> {
            let mine = messages.iter();
            let mine = mine.filter(|message| (message.sender == *user) == own);
            mine.map(|message| std::str::from_utf8(&message.body).unwrap())
                .collect()
        };
        assert_eq!(found(false), of(false), "user {user} received");
        assert_eq!(found(true), of(true), "user {user} sent");
    }
}

fn join(trio: &Trio, dir: &Path, id: u64) -> Process {
    let args = trio.joiner_args(dir, id, &trio.addresses()[2], &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = Process::start(&args);
    assert!(process.says()["ready"]["grpc"].is_string());
    process
}

async fn drain_and_remove(client: &Client, node: u64) {
    let drained = client.set_standing(node, NodeStanding::Draining).await;
    drained.expect("it drains");
    let empty = |look: &Look| look.settled() && look.held()[&node] == 0;
    until(client, "the node is empty", empty).await;
    client.remove_node(node).await.expect("it is empty");
}

pub(crate) async fn register(client: &Client, handle: String) -> u64 {
    let call = v1::RegisterUserRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        handle,
    };
    client.register_user(call).await.expect("a user").user
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_five_and_three_again_under_sends() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_placed(dir.path(), 64, 4);
    let client = trio.client().await;
    let mut users = Vec::new();
    for number in 0..8 {
        users.push(register(&client, format!("user{number}")).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn(load(client.clone(), users.clone(), Arc::clone(&stop), 100));

    let fourth = join(&trio, dir.path(), 4);
    let fifth = join(&trio, dir.path(), 5);
    until(&client, "replicas and leaders are even", |look| {
        // 15 replicas and 5 leaders on 5 nodes.
        let held = look.held();
        look.settled()
            && held.len() == 5
            && held.values().all(|count| (2..=4).contains(count))
            && look.led.values().all(|count| *count <= 2)
    })
    .await;
    for gone in [1, 2] {
        drain_and_remove(&client, gone).await;
        let process = trio.nodes[usize::try_from(gone).unwrap() - 1].take();
        assert_eq!(process.unwrap().wait().code(), Some(1));
    }
    until(&client, "three nodes hold all and lead alike", |look| {
        let held = look.held();
        look.settled()
            && [3, 4, 5].iter().all(|node| held[node] == 5)
            && look.led.values().all(|count| (1..=2).contains(count))
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let acked = sending.await.expect("the load ends");
    assert_nothing_lost(&client, &users, &acked).await;
    for node in trio.nodes.into_iter().flatten().chain([fourth, fifth]) {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_moves_a_replica_and_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start_with(dir.path(), 64, 2);
    let client = trio.client().await;
    let fourth = join(&trio, dir.path(), 4);
    let ready = |look: &Look| look.settled() && look.led.len() == 4;
    until(&client, "the fourth is known", ready).await;
    let asked = |from, to, dry_run| {
        let call = v1::MoveReplicaRequest {
            shard: 1,
            from,
            to,
            dry_run,
        };
        let client = client.clone();
        async move { client.move_replica(call).await }
    };
    let refused = asked(4, 2, false).await.expect_err("no voter");
    let words = &refused.0.message;
    assert!(words.contains("its voters are 1, 2, 3"), "{refused}");
    let refused = asked(1, 2, false).await.expect_err("there is one");
    assert!(refused.0.message.contains("already"), "{refused}");

    let judged = asked(1, 4, true).await.expect("it could be");
    let before = until(&client, "nothing happens", |_| true).await;
    assert_eq!(judged.epoch, before.map.epoch);
    assert_eq!(before.replicas_of(1), [1, 2, 3]);
    let begun = asked(1, 4, false).await.expect("it begins");
    assert!(begun.epoch > before.map.epoch);
    let moved = |look: &Look| look.settled() && look.replicas_of(1) == [2, 3, 4];
    until(&client, "the replica moves", moved).await;

    for to in [4, 2, 3] {
        let led = client.transfer_leader(1, to).await;
        led.expect("it leads");
        let leads = |look: &Look| look.settled() && look.leader_of_1 == to;
        until(&client, "it leads", leads).await;
    }
    let refused = client
        .transfer_leader(1, 1)
        .await
        .expect_err("no voter now");
    assert!(refused.0.message.contains("node 1"), "{refused}");
    assert!(fourth.stop(Signal::TERM).success());
}
