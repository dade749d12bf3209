//! What the tests share: nodes that can be killed, and the cluster that they make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_engine::{
    Command, Flags, MessageId, MessageType, RegisterUser, Reply, Send, Seq, ShardId, UserId,
    content_crc,
};
use mailbox_raft::{ChangeError, Node, NodeOptions, ProposeError, Shard, Timing};
use tokio::runtime::Runtime;
use uuid::Uuid;

pub(crate) const WAIT: Duration = Duration::from_secs(40);

pub(crate) struct TestNode {
    pub(crate) options: NodeOptions,
    pub(crate) address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    node: Arc<Node>,
    runtime: Runtime,
}

impl TestNode {
    pub(crate) fn start(&mut self) {
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
    pub(crate) fn kill(&mut self) {
        let Running { node, runtime } = self.running.take().unwrap();
        drop(node);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    pub(crate) fn stop(&mut self) {
        let Running { node, runtime } = self.running.take().unwrap();
        runtime.block_on(node.shutdown()).unwrap();
        drop(node);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// The first shard: the only one, unless a test makes more.
    pub(crate) fn shard(&self) -> Shard {
        self.shard_of(ShardId(1))
    }

    pub(crate) fn shard_of(&self, shard: ShardId) -> Shard {
        self.node().shard(shard).unwrap()
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.running.as_ref().unwrap().node
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Runs, and has a replica of the first shard.
    pub(crate) fn hosts(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.node.shard(ShardId(1)).is_some())
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
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

pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
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

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<TestNode>,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn start(count: u64, change: impl Fn(&mut NodeOptions)) -> Cluster {
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
        Cluster { nodes, dir }
    }

    /// The nodes that run and have a replica.
    fn running(&self) -> impl Iterator<Item = &TestNode> {
        self.nodes.iter().filter(|node| node.hosts())
    }

    /// Starts one more node, which knows all others and is known to them. It has no replica yet.
    pub(crate) fn join(&mut self) -> usize {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut options = self.nodes[0].options.clone();
        options.node = self.nodes.len() as u64 + 1;
        options.dir = self.dir.path().join(options.node.to_string());
        options.members = BTreeMap::new();
        options.joins = true;
        let mut node = TestNode {
            options,
            address,
            running: None,
        };
        node.start();
        self.nodes.push(node);
        self.tell_all();
        self.nodes.len() - 1
    }

    pub(crate) fn addresses(&self) -> BTreeMap<u64, String> {
        let addresses = self.nodes.iter().map(|node| node.address.to_string());
        (1..).zip(addresses).collect()
    }

    /// Tells all running nodes of all nodes, as a map of the cluster would.
    pub(crate) fn tell_all(&self) {
        for node in self.nodes.iter().filter(|node| node.running.is_some()) {
            node.node().set_nodes(self.addresses());
        }
    }

    pub(crate) fn start_again(&mut self, node: usize) {
        self.nodes[node].start();
        self.tell_all();
    }

    pub(crate) fn host(&self, node: usize) {
        let node = &self.nodes[node];
        node.run(node.node().host(ShardId(1))).unwrap();
    }

    /// Asks the leader until it has done it, whoever leads.
    pub(crate) fn change(&self, call: impl AsyncFn(Shard) -> Result<(), ChangeError>) {
        eventually("the membership is changed", || {
            let leader = &self.nodes[self.leader()];
            match leader.run(call(leader.shard())) {
                Ok(()) => Some(()),
                Err(
                    ChangeError::NotLeader { .. }
                    | ChangeError::Changing
                    | ChangeError::Unavailable { .. },
                ) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }

    pub(crate) fn add_learner(&self, node: usize) {
        self.change(async |shard| shard.add_learner(node as u64 + 1).await);
    }

    /// One joint change.
    pub(crate) fn replace(&self, old: usize, new: usize) {
        let (old, new) = ([old as u64 + 1].into(), [new as u64 + 1].into());
        self.change(async |shard: Shard| {
            shard
                .change_voters(BTreeSet::clone(&new), BTreeSet::clone(&old))
                .await
        });
    }

    /// Waits until a replica has all that its leader has now.
    pub(crate) fn wait_caught_up(&self, node: usize) {
        let leader = self.leader();
        let last = self.nodes[leader].shard().status().last_index;
        eventually("the replica has caught up", || {
            (self.nodes[node].shard().status().applied_index >= last).then_some(())
        });
    }

    pub(crate) fn leader(&self) -> usize {
        eventually("a leader is ready", || {
            self.nodes
                .iter()
                .position(|node| node.hosts() && node.shard().leadership().is_ready())
        })
    }

    /// Proposes until some node has applied it.
    pub(crate) fn propose(&self, commands: &[Command]) -> Vec<Reply> {
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

    pub(crate) fn register(&self, handle: &str) -> UserId {
        let command = Command::RegisterUser(RegisterUser {
            request_id: Uuid::now_v7(),
            handle: handle.to_owned(),
        });
        match self.propose(&[command]).as_slice() {
            [Reply::UserRegistered { user }] => *user,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn wait_all_applied(&self, index: u64) {
        for node in self.running() {
            eventually("every replica has applied it", || {
                (node.shard().status().applied_index >= index).then_some(())
            });
        }
    }

    /// All running replicas have the same rows at a new cut.
    pub(crate) fn check_equal_hashes(&self) {
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

    pub(crate) fn count_messages(&self, node: usize, user: UserId) -> u64 {
        self.nodes[node]
            .shard()
            .engine()
            .head(user.mailbox())
            .unwrap()
            .0
    }
}

pub(crate) fn send(sender: UserId, recipient: UserId, text: &str) -> Command {
    send_with_id(Uuid::now_v7(), sender, recipient, text)
}

pub(crate) fn send_with_id(id: Uuid, sender: UserId, recipient: UserId, text: &str) -> Command {
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

pub(crate) fn seq_of(replies: &[Reply]) -> Seq {
    match replies {
        [Reply::Sent { seq, .. }] => *seq,
        other => panic!("{other:?}"),
    }
}
