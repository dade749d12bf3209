//! Nodes of a store that keeps everything in memory and breaks on demand.

mod service;

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mailbox_client::v1::admin_server::AdminServer;
use mailbox_client::v1::mailbox_server::MailboxServer;
use mailbox_client::v1::{self, ErrorCode, Timeline};
use mailbox_client::{Auth, Client, ClientOptions};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use service::Service;

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(50);

/// What all nodes share: as if replication were perfect.
#[derive(Default)]
pub(crate) struct Store {
    /// Which node leads.
    pub(crate) leader: usize,
    pub(crate) term: u64,
    pub(crate) rows: HashMap<Timeline, Vec<v1::Message>>,
    /// First replies, by id.
    pub(crate) acked: HashMap<Bytes, v1::SendResponse>,
    /// Every send that came to any node, repeats included.
    pub(crate) attempts: usize,
    pub(crate) frames: usize,
    /// Nodes that take everything and answer nothing.
    pub(crate) silent: BTreeSet<usize>,
    /// Nodes that serve, but do not answer who asks for the map.
    pub(crate) mapless: BTreeSet<usize>,
    /// So many frames are accepted and then, instead of an answer, the stream breaks.
    pub(crate) swallow: usize,
    /// What every send is refused with.
    pub(crate) refusal: Option<ErrorCode>,
    /// A live subscription leaves this seq out, once.
    pub(crate) leave_out: Option<u64>,
    /// Times that slots have moved between shards.
    pub(crate) moves: u64,
    /// How many of the nodes the map names; all if 0.
    pub(crate) named: usize,
    /// First slot that is in shard 2; all are in shard 1 if there is none.
    pub(crate) split: Option<u32>,
    /// No node knows this shard any more.
    pub(crate) retired: Option<u32>,
    /// Owners whose slot is on the move: no shard serves them for now.
    pub(crate) moving: BTreeSet<u64>,
    /// Subscribe streams that were opened.
    pub(crate) streams: usize,
}

pub(crate) const SLOTS: u32 = 64;

impl Store {
    pub(crate) fn epoch(&self) -> u64 {
        self.moves + 1
    }

    pub(crate) fn shard_of(&self, owner: u64) -> u32 {
        let slot = xxhash_rust::xxh3::xxh3_64(&owner.to_be_bytes()) % u64::from(SLOTS);
        let second = self.split.is_some_and(|first| slot >= u64::from(first));
        if second { 2 } else { 1 }
    }

    /// Refuses a shard that is gone, as a node does whose map does not name it.
    pub(crate) fn check_there(&self, shard: u32) -> Result<(), v1::Error> {
        if self.retired != Some(shard) {
            return Ok(());
        }
        Err(v1::Error {
            code: ErrorCode::Unavailable as i32,
            message: format!("the map names no shard {shard}"),
            map_epoch: self.epoch(),
            ..v1::Error::default()
        })
    }

    /// Refuses what is in another shard.
    pub(crate) fn check_shard(&self, shard: u32, owner: u64) -> Result<(), v1::Error> {
        self.check_there(shard)?;
        let holder = self.shard_of(owner);
        let message = if self.moving.contains(&owner) {
            format!("the slot of {owner} is on the move")
        } else if holder == shard {
            return Ok(());
        } else {
            format!("{owner} is in shard {holder}, not in shard {shard}")
        };
        Err(v1::Error {
            code: ErrorCode::WrongShard as i32,
            message,
            map_epoch: self.epoch(),
            ..v1::Error::default()
        })
    }
}

pub(crate) struct Cluster {
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) addresses: Arc<Vec<SocketAddr>>,
    running: Vec<Option<Running>>,
}

/// A node's thread: its runtime holds listener and connections, so that both end with it.
struct Running {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Cluster {
    pub(crate) fn start(nodes: usize) -> Self {
        let listeners: Vec<_> = (0..nodes)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        let store = Store {
            term: 1,
            ..Store::default()
        };
        let mut cluster = Self {
            store: Arc::new(Mutex::new(store)),
            addresses: Arc::new(addresses),
            running: Vec::new(),
        };
        for (number, listener) in listeners.into_iter().enumerate() {
            let running = cluster.serve(number, listener);
            cluster.running.push(Some(running));
        }
        cluster
    }

    fn serve(&self, number: usize, listener: TcpListener) -> Running {
        let service = Service {
            number,
            store: Arc::clone(&self.store),
            addresses: Arc::clone(&self.addresses),
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = Server::builder()
                    .add_service(MailboxServer::new(service.clone()))
                    .add_service(AdminServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    result = server => result.unwrap(),
                    _ = ended => {}
                }
            });
        });
        Running { end, thread }
    }

    /// The node and all its connections are gone when it returns.
    pub(crate) fn kill(&mut self, number: usize) {
        let running = self.running[number].take().expect("the node runs");
        running.end.send(()).unwrap();
        running.thread.join().unwrap();
    }

    /// Starts a node again that was killed.
    pub(crate) fn restart(&mut self, number: usize) {
        let listener = TcpListener::bind(self.addresses[number]).unwrap();
        let running = self.serve(number, listener);
        assert!(self.running[number].replace(running).is_none());
    }

    pub(crate) fn lead(&self, number: usize) {
        let mut store = self.store.lock();
        store.leader = number;
        store.term += 1;
    }

    /// Slots from `first` on are in shard 2 from now on.
    pub(crate) fn split_at(&self, first: u32) {
        let mut store = self.store.lock();
        store.split = Some(first);
        store.moves += 1;
    }

    /// All slots are in shard 2 from now on, and shard 1 is gone.
    pub(crate) fn retire_first(&self) {
        self.split_at(0);
        self.store.lock().retired = Some(1);
    }

    /// The map names so many nodes from now on.
    pub(crate) fn name(&self, nodes: usize) {
        let mut store = self.store.lock();
        store.named = nodes;
        store.moves += 1;
    }

    pub(crate) fn options(&self) -> ClientOptions {
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        let auth = Auth::Secret {
            cluster_id: None,
            secret: b"secret".to_vec(),
        };
        let mut options = ClientOptions::new(addresses, auth);
        options.timeouts.heartbeat = HEARTBEAT;
        options.timeouts.deadline = Duration::from_secs(50);
        options
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.options()).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 0..self.running.len() {
            if self.running[number].is_some() {
                self.kill(number);
            }
        }
    }
}
