//! A node whose wall clock is two days ahead of the others' proposes nothing, says so, and costs
//! honest clients nothing: started like that, and stepped while it leads.
//!
//! libfaketime turns the wall clock of one process; its monotonic clock stays real.

#![allow(clippy::unwrap_used, reason = "its helpers are test code too")]

mod binary;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mailbox_client::v1::{self, MessageType, SendRequest, StatusResponse, send_request};
use mailbox_client::{CallError, Client, content_crc, user_id};
use mailbox_cluster::{Cluster, ClusterOptions, Node};
use mailbox_jepsen::nemesis::clock::{self, WallClock};

/// Far above what anything here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(90);
const TWO_DAYS_MS: i64 = 2 * 86_400_000;
/// A compared clock may be off by a slow answer.
const NEAR_MS: i64 = 60_000;

/// Three nodes, each with a wall clock of its own, all right at first. None where libfaketime is
/// not installed.
async fn cluster() -> Option<(Cluster, Vec<WallClock>)> {
    if clock::library().is_none() {
        println!("skipped: libfaketime is not installed (Debian: apt-get install faketime)");
        return None;
    }
    let cluster = Cluster::start(ClusterOptions {
        binary: Some(binary::mailboxd()),
        ..ClusterOptions::default()
    });
    let cluster = cluster.await.expect("a cluster");
    let mut clocks = Vec::new();
    for node in cluster.nodes() {
        let clock = WallClock::new(cluster.dir(), node.id()).expect("a clock");
        node.set_environment(clock.environment());
        node.kill().unwrap();
        clocks.push(clock);
    }
    for node in cluster.nodes() {
        node.start().unwrap();
    }
    cluster.wait_ready(PATIENCE).await.expect("ready again");
    Some((cluster, clocks))
}

async fn status(client: &Client, node: &Node) -> Result<StatusResponse, CallError> {
    client.status(Some(node.address())).await
}

/// Waits until a node's status is like that.
async fn until(client: &Client, node: &Node, what: &str, is: impl Fn(&StatusResponse) -> bool) {
    let begun = Instant::now();
    loop {
        let now = status(client, node).await;
        if now.as_ref().is_ok_and(&is) {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "node {} is not {what}: {now:?}\n{}",
            node.id(),
            node.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_ahead(status: &StatusResponse) -> bool {
    !status.clock_fault.is_empty() && (status.clock_skew_ms - TWO_DAYS_MS).abs() < NEAR_MS
}

fn leads(status: &StatusResponse) -> bool {
    status.shards.iter().any(|shard| shard.role == "leader")
}

async fn leader(cluster: &Cluster, other_than: Option<usize>) -> usize {
    let begun = Instant::now();
    loop {
        match cluster.leader().await {
            Some(leader) if Some(leader) != other_than => return leader,
            _ => assert!(begun.elapsed() < PATIENCE, "nobody else leads"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A user that writes to itself, and what has been acked.
struct Writer {
    client: Client,
    user: u64,
    acked: u64,
}

impl Writer {
    async fn new(cluster: &Cluster) -> Self {
        let mut options = cluster.client_options().unwrap();
        options.timeouts.deadline = PATIENCE;
        let client = Client::connect(options).await.expect("connect");
        let request = v1::RegisterUserRequest {
            request_id: Bytes::new(),
            handle: "writer".into(),
        };
        let user = client.register_user(request).await.expect("register").user;
        Self {
            client,
            user,
            acked: 0,
        }
    }

    /// One after the other, each acked at the next seq, under an id that was made then.
    async fn send(&mut self, count: u64) {
        for _ in 0..count {
            let id = self.client.new_message_id();
            let body = Bytes::from_static(b"at what time?");
            let request = SendRequest {
                sender: Some(user_id(self.user)),
                destination: Some(send_request::Destination::User(user_id(self.user))),
                client_msg_id: Bytes::copy_from_slice(id.as_bytes()),
                r#type: MessageType::Text as i32,
                content_crc: content_crc(id.as_bytes(), MessageType::Text, &body),
                body,
                shown_message_id: 0,
            };
            let sent = self.client.send(request).await.expect("acked");
            self.acked += 1;
            assert_eq!(sent.seq, self.acked);
        }
    }

    /// All that was acked is there, and nothing bears the time of a wrong clock.
    async fn check(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now_ms = i64::try_from(now.as_millis()).unwrap();
        let timeline = v1::Timeline {
            kind: v1::TimelineKind::Mailbox as i32,
            owner: self.user,
        };
        let request = v1::SyncRequest {
            ranges: vec![v1::SyncRange {
                timeline: Some(timeline),
                after_seq: 0,
            }],
            limit: 1000,
            ..v1::SyncRequest::default()
        };
        let page = self.client.sync(request).await.expect("a page").pages;
        let messages = &page[0].messages;
        assert_eq!(messages.len() as u64, self.acked);
        for message in messages {
            let sent_ms = i64::try_from(message.sent_at_ms).unwrap();
            let id_ms = i64::try_from(message.message_id >> 16).unwrap();
            assert!((now_ms - sent_ms).abs() < TWO_DAYS_MS / 2, "{message:?}");
            assert!((now_ms - id_ms).abs() < TWO_DAYS_MS / 2, "{message:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_two_days_ahead_proposes_nothing() {
    let Some((cluster, clocks)) = cluster().await else {
        return;
    };
    let mut writer = Writer::new(&cluster).await;
    writer.send(20).await;

    let ahead = leader(&cluster, None).await;
    let node = cluster.node(ahead);
    node.kill().unwrap();
    clocks[ahead].set("+2d").unwrap();
    node.start().unwrap();
    until(&writer.client, node, "two days ahead", is_ahead).await;
    writer.send(20).await;
    let now = status(&writer.client, node).await.expect("a status");
    assert!(!leads(&now), "{now:?}");
    assert!(now.clock_fault.contains("172800") || now.clock_fault.contains("17279"));

    // The others cannot do without it, and without a leader whose clock is right nothing is acked;
    // set right, it serves as before.
    clocks[ahead].set("+0").unwrap();
    let right = |status: &StatusResponse| status.clock_fault.is_empty();
    until(&writer.client, node, "right again", right).await;
    cluster.node((ahead + 1) % 3).kill().unwrap();
    writer.send(20).await;
    writer.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_steps_two_days_ahead_gives_way() {
    let Some((cluster, clocks)) = cluster().await else {
        return;
    };
    let mut writer = Writer::new(&cluster).await;
    writer.send(20).await;

    let ahead = leader(&cluster, None).await;
    clocks[ahead].set("+2d").unwrap();
    // Sends go on all the while; a leader that is off the time refuses them or hands over.
    writer.send(20).await;
    until(
        &writer.client,
        cluster.node(ahead),
        "two days ahead",
        is_ahead,
    )
    .await;
    let next = leader(&cluster, Some(ahead)).await;
    assert_ne!(next, ahead);
    writer.send(20).await;
    let log = std::fs::read_to_string(cluster.node(ahead).log_path()).unwrap();
    assert!(
        log.contains("this node proposes nothing until its clock is set right"),
        "{log}"
    );
    writer.check().await;
}
