//! `mailbox-bench gateway`: 1:1 sends over WebSockets, through real gateways.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use mailbox_cluster::AuthKey;
use mailbox_sdk::{Body, Client, ConnectOptions, Destination, UserRef};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::cluster::{SpawnArgs, Spawned, register};
use super::load::Runners;
use super::report::Report;
use super::send::{LoadArgs, Measured};
use crate::node::NodeArgs;

/// How long users' tokens are valid: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);
/// WebSockets, unless told otherwise.
const CONNECTIONS: u16 = 64;
/// Connections begun at a time.
const CONNECTS: usize = 64;

/// 1:1 sends over WebSockets, through real gateways.
///
/// As `send`, but each send goes through the SDK, a WebSocket and a gateway. Every connection is one
/// user; recipients are drawn from all users. Connections do not receive.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["spawn", "gateway"]))]
pub(super) struct Args {
    #[command(flatten)]
    spawn: SpawnArgs,
    /// Load these gateways instead, as ws://host:port; the nodes at --address register the users
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "auth_key")]
    gateway: Vec<String>,
    /// The key with which the gateways at --gateway check tokens
    #[arg(long, value_name = "FILE", env = "MAILBOX_AUTH_KEY")]
    auth_key: Option<PathBuf>,
    /// WebSockets; the in-flight sends are spread over them
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl Args {
    /// What the command line would say to load a cluster of our own.
    pub(super) fn new(spawn: SpawnArgs, load: LoadArgs) -> Self {
        Self {
            spawn,
            gateway: Vec::new(),
            auth_key: None,
            connections: CONNECTIONS,
            load,
            node: NodeArgs {
                addresses: Vec::new(),
                secret_file: None,
                token: None,
                cluster_id: None,
                ca_file: None,
            },
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<Report> {
    let (spawned, store, gateways, key) = match args.spawn.spawn {
        Some(nodes) => {
            let spawned = Spawned::start(&args.spawn, nodes, true).await?;
            let store = spawned.cluster.client().await?;
            let gateways = spawned
                .cluster
                .nodes()
                .iter()
                .filter_map(|node| node.gateway_url());
            let gateways: Vec<_> = gateways.collect();
            let key = AuthKey::read(spawned.cluster.auth_key_file())?;
            (Some(spawned), store, gateways, key)
        }
        None => {
            let key = args.auth_key.as_deref().context("--auth-key is missing")?;
            (
                None,
                args.node.connect().await?,
                args.gateway.clone(),
                AuthKey::read(key)?,
            )
        }
    };
    if gateways.is_empty() {
        bail!("there is no gateway");
    }
    let nodes = store.shard_map().await?.nodes.len();
    let users = register(&store, args.load.users).await?;
    let clients = connect(&gateways, &users, &key, usize::from(args.connections)).await?;
    let clock = args.load.clock();
    let runners = Runners::start(&clock, args.load.shape(), |runner| {
        let mut source = Source {
            clients: Arc::clone(&clients),
            next: runner,
            users: Arc::clone(&users),
            body_bytes: args.load.body_bytes,
            rng: rand::make_rng(),
        };
        move || source.send()
    });
    let measured = Measured::take(&clock, spawned.as_ref(), &args.load, &args.spawn).await?;
    let latencies = runners.finish().await?.us;
    let report = measured.report(&args.load, nodes, &clock, &latencies, spawned.as_ref());
    for client in &*clients {
        client.close().await?;
    }
    if let Some(spawned) = spawned {
        spawned.stop().await?;
    }
    Ok(report)
}

async fn connect(
    gateways: &[String],
    users: &[u64],
    key: &AuthKey,
    connections: usize,
) -> anyhow::Result<Arc<[Client]>> {
    let connects = (0..connections).map(|number| {
        let url = &gateways[number % gateways.len()];
        let user = users[number % users.len()];
        async move {
            let (token, _) = key.issue(&user.to_string(), TOKEN_TTL)?;
            let options = ConnectOptions {
                receive: false,
                device: format!("bench-{number}"),
                ..ConnectOptions::new(url, token)
            };
            anyhow::Ok(Client::connect(options).await?)
        }
    });
    let clients: Vec<_> = futures_util::stream::iter(connects)
        .buffered(CONNECTS)
        .try_collect()
        .await?;
    Ok(clients.into())
}

/// Makes the sends of one runner, over all connections in turn.
struct Source {
    clients: Arc<[Client]>,
    next: usize,
    users: Arc<[u64]>,
    body_bytes: usize,
    rng: SmallRng,
}

impl Source {
    /// Hands one send over; resolves to whether it was acked.
    fn send(&mut self) -> impl Future<Output = bool> + use<> {
        self.next = (self.next + 1) % self.clients.len();
        let client = self.clients[self.next].clone();
        let user = self.users[self.rng.random_range(0..self.users.len())];
        let mut body = vec![0; self.body_bytes];
        self.rng.fill(body.as_mut_slice());
        async move {
            let to = Destination::User(UserRef::Id(user));
            match client.send(&to, Body::Opaque(Bytes::from(body))).await {
                Ok(_) => true,
                Err(error) => {
                    tracing::error!(%error, "send");
                    false
                }
            }
        }
    }
}
