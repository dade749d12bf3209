//! Sends with known bodies, and the look whether all that was acked is there.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_client::v1::{self, MessageType, SendRequest, SyncRange, SyncRequest, send_request};
use mailbox_client::{CallError, Client, content_crc, user_id};
use mailbox_cluster::{Cluster, Node};

/// Far above what anything here takes; only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Messages asked for at once.
const PAGE: u32 = 1000;

/// What a node answered with an ack.
#[derive(Debug, Clone)]
pub(crate) struct Acked {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) seq: u64,
    pub(crate) body: Bytes,
}

/// Users and what they have sent.
pub(crate) struct Load {
    pub(crate) client: Client,
    pub(crate) users: Vec<u64>,
    pub(crate) acked: Vec<Acked>,
    /// The only shard.
    pub(crate) shard: u32,
    sent: usize,
}

impl Load {
    pub(crate) async fn new(cluster: &Cluster, users: usize) -> Self {
        let mut options = cluster.client_options().unwrap();
        options.timeouts.deadline = Duration::from_secs(30);
        let client = Client::connect(options).await.expect("connect");
        let map = client.shard_map().await.expect("the shard map");
        let mut load = Self {
            shard: map.shards[0].shard,
            client,
            users: Vec::new(),
            acked: Vec::new(),
            sent: 0,
        };
        for number in 0..users {
            let request = v1::RegisterUserRequest {
                request_id: Bytes::new(),
                handle: format!("user{number}"),
            };
            let registered = load.client.register_user(request).await;
            load.users.push(registered.expect("register a user").user);
        }
        load
    }

    /// Sends of `bytes` random bytes, one user after the other to the next one. What is acked is noted;
    /// what is not is returned.
    pub(crate) async fn try_send(&mut self, count: usize, bytes: usize) -> Vec<CallError> {
        let mut requests = Vec::with_capacity(count);
        let mut noted = Vec::with_capacity(count);
        for _ in 0..count {
            let from = self.users[self.sent % self.users.len()];
            let to = self.users[(self.sent + 1) % self.users.len()];
            self.sent += 1;
            let body: Bytes = (0..bytes)
                .map(|_| rand::random::<u8>())
                .collect::<Vec<_>>()
                .into();
            requests.push(self.request(from, to, body.clone()));
            noted.push((from, to, body));
        }
        let answers = self.client.send_batch(requests).await;
        let mut failed = Vec::new();
        for (answer, (from, to, body)) in answers.into_iter().zip(noted) {
            match answer {
                Ok(sent) => self.acked.push(Acked {
                    from,
                    to,
                    seq: sent.seq,
                    body,
                }),
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    /// The same; all must be acked.
    pub(crate) async fn send(&mut self, count: usize) {
        for part in [count / 4, count / 4, count / 4, count - count / 4 * 3] {
            let failed = self.try_send(part, 100).await;
            assert!(failed.is_empty(), "{}: {}", failed.len(), failed[0]);
        }
    }

    pub(crate) fn request(&self, from: u64, to: u64, body: Bytes) -> SendRequest {
        let id = self.client.new_message_id();
        SendRequest {
            sender: Some(user_id(from)),
            destination: Some(send_request::Destination::User(user_id(to))),
            client_msg_id: Bytes::copy_from_slice(id.as_bytes()),
            r#type: MessageType::Opaque as i32,
            content_crc: content_crc(id.as_bytes(), MessageType::Opaque, &body),
            body,
            shown_message_id: 0,
        }
    }

    /// A page of a mailbox, from the replica at `address` alone or, without one, through the leader.
    pub(crate) async fn page(
        &self,
        address: Option<&str>,
        user: u64,
        after_seq: u64,
        limit: u32,
    ) -> Result<v1::SyncPage, CallError> {
        let timeline = v1::Timeline {
            kind: v1::TimelineKind::Mailbox as i32,
            owner: user,
        };
        let request = SyncRequest {
            ranges: vec![SyncRange {
                timeline: Some(timeline),
                after_seq,
            }],
            limit,
            shard: self.shard,
            stale: address.is_some(),
            ..SyncRequest::default()
        };
        let answer = match address {
            Some(address) => self.client.sync_at(address, request).await,
            None => self.client.sync(request).await,
        };
        Ok(answer?.pages.remove(0))
    }

    /// A whole mailbox: bodies by seq, dense from 1.
    pub(crate) async fn mailbox(&self, address: Option<&str>, user: u64) -> Vec<Bytes> {
        let mut bodies = Vec::new();
        loop {
            let page = self.page(address, user, bodies.len() as u64, PAGE).await;
            let page = page.unwrap_or_else(|error| panic!("mailbox of {user}: {error}"));
            for message in page.messages {
                assert_eq!(message.seq, bodies.len() as u64 + 1, "dense from 1");
                bodies.push(message.body);
            }
            if !page.more {
                return bodies;
            }
        }
    }

    /// Every acked message is where its ack said, with its content.
    pub(crate) async fn check_all(&self, address: Option<&str>) {
        for user in &self.users {
            let bodies = self.mailbox(address, *user).await;
            for acked in self.acked.iter().filter(|acked| acked.from == *user) {
                let at = usize::try_from(acked.seq - 1).unwrap();
                assert_eq!(
                    bodies.get(at),
                    Some(&acked.body),
                    "{user} seq {}",
                    acked.seq
                );
            }
        }
    }

    /// Makes a cut, which ends every replica's memtable, and waits for its state hash on each node.
    /// All are equal. Returns the index.
    pub(crate) async fn hash_all(&self, cluster: &Cluster) -> u64 {
        let mut request = v1::StateHashRequest {
            shard: self.shard,
            cut_index: 0,
        };
        let made = self.client.state_hash(None, request).await;
        let made = made.expect("the leader makes a cut");
        request.cut_index = made.applied_index;
        for node in cluster.nodes() {
            let begun = Instant::now();
            // A replica that is catching up refuses for a moment.
            let hash = loop {
                match self.client.state_hash(Some(node.address()), request).await {
                    Ok(hash) => break hash,
                    Err(error) => assert!(
                        error.is_retryable() && begun.elapsed() < PATIENCE,
                        "node {}: {error}",
                        node.id()
                    ),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            assert_eq!(hash.applied_index, made.applied_index, "node {}", node.id());
            assert_eq!(hash.hash, made.hash, "node {}", node.id());
            assert_eq!(hash.rows, made.rows, "node {}", node.id());
        }
        made.applied_index
    }
}

/// Waits for a node that ends by itself.
pub(crate) async fn ended(node: &Node) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = node.exit_status() {
            return status;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "node {} goes on:\n{}",
            node.id(),
            node.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// SIGTERM, and a clean end.
pub(crate) async fn stop(node: &Node) {
    let status = node.stop(PATIENCE).await.unwrap().expect("it ran");
    assert!(status.success(), "{status}\n{}", node.log_tail());
}

/// A node that is not the leader.
pub(crate) async fn follower(cluster: &Cluster) -> usize {
    let begun = Instant::now();
    loop {
        if let Some(leader) = cluster.leader().await {
            return (leader + 1) % cluster.nodes().len();
        }
        assert!(begun.elapsed() < PATIENCE, "no node leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
