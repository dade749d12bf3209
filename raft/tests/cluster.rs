//! Nodes in one process, each with its own runtime, over real loopback connections.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_engine::{
    Command, Flags, MessageId, MessageType, RegisterUser, Reply, Send, Seq, ShardId, UserId,
    content_crc,
};
use mailbox_raft::{Leadership, Node, NodeOptions, ProposeError, Shard, Timing};
use tokio::runtime::Runtime;
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(40);

struct TestNode {
    options: NodeOptions,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    node: Arc<Node>,
    runtime: Runtime,
}

impl TestNode {
    fn start(&mut self) {
        assert!(self.running.is_none());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // What a killed node held may take a moment to close.
        let node = eventually("the node starts", || {
            runtime.block_on(Node::start(self.options.clone())).ok()
        });
        let service = node.peer_service().into_server();
        let address = self.address;
        let listener = runtime.block_on(async {
            let deadline = Instant::now() + WAIT;
            loop {
                match tokio::net::TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(error) if Instant::now() > deadline => panic!("{address}: {error}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        self.running = Some(Running { node, runtime });
    }

    /// Ends it as a crash would, but for what the operating system has: nothing is flushed or handed over.
    fn kill(&mut self) {
        let Running { node, runtime } = self.running.take().unwrap();
        drop(node);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    fn stop(&mut self) {
        let Running { node, runtime } = self.running.take().unwrap();
        runtime.block_on(node.shutdown()).unwrap();
        drop(node);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    fn shard(&self) -> Shard {
        self.running
            .as_ref()
            .unwrap()
            .node
            .shard(ShardId(0))
            .unwrap()
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.running.as_ref().unwrap().runtime.block_on(future)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(Running { node, runtime }) = self.running.take() {
            drop(node);
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "in {WAIT:?} it did not come true that {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Cluster {
    nodes: Vec<TestNode>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start(count: u64, change: impl Fn(&mut NodeOptions)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let listeners: Vec<std::net::TcpListener> = (0..count)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<SocketAddr> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        drop(listeners);
        let members: BTreeMap<u64, String> = (1..)
            .zip(&addresses)
            .map(|(node, address)| (node, address.to_string()))
            .collect();
        let mut nodes = Vec::new();
        for (node, address) in (1..).zip(addresses) {
            let path = dir.path().join(node.to_string());
            let mut options =
                NodeOptions::new(node, "test", path, members.clone(), b"secret".to_vec());
            options.engine.slot_count = 16;
            options.log.wal_ahead_bytes = 0;
            options.disk_free_min_bytes = 0;
            options.timing = Timing {
                heartbeat_ms: 100,
                election_min_ms: 500,
                election_max_ms: 1000,
            };
            change(&mut options);
            nodes.push(TestNode {
                options,
                address,
                running: None,
            });
        }
        nodes.iter_mut().for_each(TestNode::start);
        Cluster { nodes, _dir: dir }
    }

    fn running(&self) -> impl Iterator<Item = &TestNode> {
        self.nodes.iter().filter(|node| node.running.is_some())
    }

    fn leader(&self) -> usize {
        eventually("a leader is ready", || {
            self.nodes
                .iter()
                .position(|node| node.running.is_some() && node.shard().leadership().is_ready())
        })
    }

    /// Proposes until some node has applied it.
    fn propose(&self, commands: &[Command]) -> Vec<Reply> {
        eventually("a proposal is applied", || {
            let leader = &self.nodes[self.leader()];
            match leader.run(leader.shard().propose(commands.to_vec())) {
                Ok(replies) => Some(replies),
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::Unavailable { .. }
                    | ProposeError::ClockSkew(_),
                ) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    fn register(&self, handle: &str) -> UserId {
        let command = Command::RegisterUser(RegisterUser {
            request_id: Uuid::now_v7(),
            handle: handle.to_owned(),
        });
        match self.propose(&[command]).as_slice() {
            [Reply::UserRegistered { user }] => *user,
            other => panic!("{other:?}"),
        }
    }

    fn wait_all_applied(&self, index: u64) {
        for node in self.running() {
            eventually("every replica has applied it", || {
                (node.shard().status().applied_index >= index).then_some(())
            });
        }
    }

    /// All running replicas have the same rows at a new cut.
    fn check_equal_hashes(&self) {
        let leader = &self.nodes[self.leader()];
        let first = leader.run(leader.shard().state_hash(0)).unwrap();
        assert!(first.rows > 0);
        for node in self.running() {
            let other = node
                .run(node.shard().state_hash(first.applied.index))
                .unwrap();
            assert_eq!(other, first);
        }
    }

    fn count_messages(&self, node: usize, user: UserId) -> u64 {
        self.nodes[node]
            .shard()
            .engine()
            .head(user.mailbox())
            .unwrap()
            .0
    }
}

fn send(sender: UserId, recipient: UserId, text: &str) -> Command {
    send_with_id(Uuid::now_v7(), sender, recipient, text)
}

fn send_with_id(id: Uuid, sender: UserId, recipient: UserId, text: &str) -> Command {
    let body = Bytes::copy_from_slice(text.as_bytes());
    Command::Send(Send {
        sender,
        recipient,
        client_msg_id: id,
        message_id: MessageId::ZERO,
        kind: MessageType::TEXT,
        flags: Flags::default(),
        content_crc: content_crc(id, MessageType::TEXT, &body),
        body,
        shown: MessageId::ZERO,
    })
}

fn seq_of(replies: &[Reply]) -> Seq {
    match replies {
        [Reply::Sent { seq, .. }] => *seq,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_node_answers_and_remembers_after_crash_and_stop() {
    let mut cluster = Cluster::start(1, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let id = Uuid::now_v7();
    let first = cluster.propose(&[send_with_id(id, alice, bob, "one")]);
    assert_eq!(seq_of(&first), Seq(1));
    for round in 0..4_u64 {
        if round % 2 == 0 {
            cluster.nodes[0].kill();
        } else {
            cluster.nodes[0].stop();
        }
        cluster.nodes[0].start();
        // The same send again gives the first answer, whether it lies in the log or in files.
        assert_eq!(
            cluster.propose(&[send_with_id(id, alice, bob, "one")]),
            first
        );
        let next = cluster.propose(&[send(alice, bob, "more")]);
        assert_eq!(seq_of(&next), Seq(round + 2));
        assert_eq!(cluster.count_messages(0, bob), round + 2);
    }
    cluster.check_equal_hashes();
}

#[test]
fn many_calls_share_entries_and_each_gets_its_own_replies() {
    let cluster = Cluster::start(1, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let before = shard.status().applied_index;
    let mut seqs = node.run(async {
        let mut calls = Vec::new();
        for _ in 0..500 {
            let shard = shard.clone();
            calls.push(tokio::spawn(async move {
                shard
                    .propose(vec![send(alice, bob, "a"), send(alice, bob, "b")])
                    .await
                    .unwrap()
            }));
        }
        let mut seqs = Vec::new();
        for call in calls {
            for reply in call.await.unwrap() {
                seqs.push(seq_of(&[reply]).0);
            }
        }
        seqs
    });
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=1000).collect::<Vec<u64>>());
    let entries = shard.status().applied_index - before;
    assert!(entries < 500, "{entries} entries for 500 calls");
    assert_eq!(shard.queued_bytes(), 0);
}

#[test]
fn too_large_and_too_many_calls_are_refused_with_their_limits() {
    let cluster = Cluster::start(1, |options| options.queue_bytes_max = 1 << 20);
    let alice = cluster.register("alice");
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let large = "x".repeat(15_000);
    let call = |count: usize| vec![send(alice, alice, &large); count];
    assert!(matches!(
        node.run(shard.propose(call(80))),
        Err(ProposeError::EntryTooLarge {
            limit: 1_048_576,
            ..
        })
    ));
    let refused = node.run(async {
        let first = shard.propose(call(60));
        let second = shard.propose(call(60));
        let (first, second) = tokio::join!(first, second);
        first.unwrap();
        second
    });
    assert!(matches!(
        refused,
        Err(ProposeError::Busy {
            limit: 1_048_576,
            ..
        })
    ));
}

#[test]
fn three_nodes_agree_through_failovers() {
    let mut cluster = Cluster::start(3, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let id = Uuid::now_v7();
    let first = cluster.propose(&[send_with_id(id, alice, bob, "first")]);
    for round in 0..3 {
        let leader = cluster.leader();
        if round == 1 {
            cluster.nodes[leader].stop();
        } else {
            cluster.nodes[leader].kill();
        }
        // The others go on, and know what was acknowledged.
        assert_eq!(
            cluster.propose(&[send_with_id(id, alice, bob, "first")]),
            first
        );
        assert_eq!(
            seq_of(&cluster.propose(&[send(alice, bob, "x")])),
            Seq(round + 2)
        );
        cluster.nodes[leader].start();
    }
    let leader = &cluster.nodes[cluster.leader()];
    leader.run(leader.shard().read_barrier()).unwrap();
    assert_eq!(leader.shard().engine().head(bob.mailbox()).unwrap(), Seq(4));
    cluster.wait_all_applied(leader.shard().status().applied_index);
    cluster.check_equal_hashes();
}

#[test]
fn followers_send_callers_to_the_leader() {
    let cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = cluster.leader();
    let (node, address) = (leader as u64 + 1, cluster.nodes[leader].address.to_string());
    for follower in (0..3).filter(|other| *other != leader) {
        let follower = &cluster.nodes[follower];
        eventually("the follower knows the leader", || {
            match follower.shard().leadership() {
                Leadership::Follower { leader, .. } => leader,
                Leadership::Leader { .. } => None,
            }
        });
        let refused = follower.run(follower.shard().propose(vec![send(alice, alice, "x")]));
        let Err(ProposeError::NotLeader { leader: Some(hint) }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((hint.node, hint.address), (node, address.clone()));
        assert!(matches!(
            follower.run(follower.shard().read_barrier()),
            Err(ProposeError::NotLeader { .. })
        ));
    }
}

#[test]
fn a_leader_without_a_majority_answers_no_read() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    for other in (0..3).filter(|other| *other != leader) {
        cluster.nodes[other].kill();
    }
    let alone = &cluster.nodes[leader];
    let answer = alone.run(alone.shard().read_barrier());
    assert!(
        matches!(
            answer,
            Err(ProposeError::Unavailable { .. } | ProposeError::NotLeader { .. })
        ),
        "{answer:?}"
    );
    eventually("it gives up its leadership", || {
        (!alone.shard().leadership().is_ready()).then_some(())
    });
}

#[test]
fn callers_of_a_leader_that_loses_its_majority_are_answered() {
    let mut cluster = Cluster::start(3, |_| ());
    let alice = cluster.register("alice");
    let leader = cluster.leader();
    for other in (0..3).filter(|other| *other != leader) {
        cluster.nodes[other].kill();
    }
    let alone = &cluster.nodes[leader];
    let answers = alone.run(async {
        let shard = alone.shard();
        // More than may be in flight: some wait in the queue.
        let calls = (0..50).map(|_| {
            let shard = shard.clone();
            tokio::spawn(async move { shard.propose(vec![send(alice, alice, "x")]).await })
        });
        let calls: Vec<_> = calls.collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(tokio::time::timeout(WAIT, call).await.unwrap().unwrap());
        }
        answers
    });
    for answer in answers {
        assert!(
            matches!(
                answer,
                Err(ProposeError::Unavailable { .. } | ProposeError::NotLeader { .. })
            ),
            "{answer:?}"
        );
    }
}

#[test]
fn a_follower_behind_the_purge_catches_up_by_snapshot() {
    let mut cluster = Cluster::start(3, |options| {
        options.log_entries_kept = 1;
        options.engine.memtable_bytes_max = 256 << 10;
    });
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let away = (0..3).find(|node| *node != cluster.leader()).unwrap();
    cluster.wait_all_applied(1);
    cluster.nodes[away].kill();
    let text = "t".repeat(400);
    let purged = eventually("the log is purged", || {
        for _ in 0..50 {
            cluster.propose(&vec![send(alice, bob, &text); 1]);
            let batch: Vec<Command> = (0..20).map(|_| send(alice, bob, &text)).collect();
            cluster.propose(&batch);
        }
        let purged = cluster.nodes[cluster.leader()]
            .shard()
            .status()
            .purged_index;
        (purged > 300).then_some(purged)
    });
    assert!(purged > 300);
    cluster.nodes[away].start();
    let applied = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(applied);
    assert!(cluster.nodes[away].shard().engine().metrics().installs > 0);
    cluster.check_equal_hashes();
    // What was installed is there after a crash, and the log goes on behind it.
    cluster.nodes[away].kill();
    cluster.nodes[away].start();
    cluster.propose(&[send(alice, bob, "last")]);
    let applied = cluster.nodes[cluster.leader()]
        .shard()
        .status()
        .applied_index;
    cluster.wait_all_applied(applied);
    cluster.check_equal_hashes();
}

#[test]
fn applied_rows_are_handed_out_after_they_are_visible() {
    let cluster = Cluster::start(1, |_| ());
    let alice = cluster.register("alice");
    let node = &cluster.nodes[0];
    let shard = node.shard();
    let mut tails = shard.subscribe_applied();
    node.run(async {
        shard
            .propose(vec![send(alice, alice, "to myself")])
            .await
            .unwrap();
        let tail = tails.recv().await.unwrap();
        assert_eq!(tail.appended.len(), 1);
        let (timeline, rows) = &tail.appended[0];
        assert_eq!(*timeline, alice.mailbox());
        assert_eq!(rows[0].body.as_ref(), b"to myself");
        assert_eq!(shard.engine().head(*timeline).unwrap(), rows[0].seq);
    });
}

#[test]
fn leadership_moves_where_it_is_asked_to() {
    let cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let target = (leader + 1) % 3;
    let old = &cluster.nodes[leader];
    eventually("the target leads", || {
        if old.shard().leadership().is_ready() {
            // Refused while the target's log is behind: asked again.
            let _ = old.run(old.shard().transfer_leader(target as u64 + 1));
        }
        std::thread::sleep(Duration::from_millis(200));
        cluster.nodes[target]
            .shard()
            .leadership()
            .is_ready()
            .then_some(())
    });
    cluster.register("bob");
}

#[test]
fn a_full_disk_refuses_proposals_and_not_reads() {
    let mut cluster = Cluster::start(1, |_| ());
    let alice = cluster.register("alice");
    cluster.nodes[0].stop();
    cluster.nodes[0].options.disk_free_min_bytes = u64::MAX;
    cluster.nodes[0].start();
    cluster.leader();
    let node = &cluster.nodes[0];
    let refused = node.run(node.shard().propose(vec![send(alice, alice, "x")]));
    assert!(
        matches!(refused, Err(ProposeError::DiskFull { .. })),
        "{refused:?}"
    );
    node.run(node.shard().read_barrier()).unwrap();
    assert_eq!(node.shard().engine().head(alice.mailbox()).unwrap(), Seq(0));
}

#[test]
fn a_directory_serves_its_own_node_and_cluster_only() {
    let mut cluster = Cluster::start(1, |_| ());
    cluster.register("alice");
    cluster.nodes[0].stop();
    let runtime = Runtime::new().unwrap();
    let own = cluster.nodes[0].options.clone();
    let mut other = own.clone();
    other.cluster_id = "other".to_owned();
    let error = runtime
        .block_on(Node::start(other))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cluster_id test"), "{error}");
    let mut other = own.clone();
    other.engine.slot_count = 32;
    let error = runtime
        .block_on(Node::start(other))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("slot_count 16"), "{error}");
    std::fs::remove_dir_all(own.dir.join("log")).unwrap();
    let error = runtime
        .block_on(Node::start(own))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("log is gone"), "{error}");
}

#[test]
fn a_peer_with_another_secret_is_refused() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let leader = cluster.leader();
    let other = (leader + 1) % 3;
    cluster.nodes[other].stop();
    cluster.nodes[other].options.secret = b"wrong".to_vec().into();
    cluster.nodes[other].start();
    let command = Command::Cut;
    cluster.propose(&[command]);
    std::thread::sleep(Duration::from_millis(300));
    let applied = cluster.nodes[leader].shard().status().applied_index;
    // Neither side talks to the other: it learns nothing.
    assert!(cluster.nodes[other].shard().status().applied_index < applied);
}
