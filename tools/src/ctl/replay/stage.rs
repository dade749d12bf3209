//! Everything that is there before the first line: the cluster, its users, the group.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use mailbox_client::Client;
use mailbox_cluster::{AuthKey, Cluster, ClusterOptions};
use mailbox_sdk::{Client as Device, ConnectOptions, Error, register_user};

use super::IrcArgs;
use super::report::Inspected;
use super::script::Script;
use crate::chaos;
use crate::ctl::inspect;

/// How long users' tokens are valid: longer than any replay.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
/// How long a cluster may take to serve again after the last kill.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A cluster whose users and group exist.
pub(super) struct Stage {
    /// Of a spawned cluster only.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Reads the nodes' own replicas, past the gateways; none if only gateways were named.
    pub(super) client: Option<Client>,
    pub(super) gateways: Vec<String>,
    /// User id of every nick.
    pub(super) users: Vec<u64>,
    pub(super) group: u64,
    key: AuthKey,
}

impl Stage {
    /// Starts or finds the cluster, registers every nick and lets it join the group.
    pub(super) async fn set(args: &IrcArgs, script: &Script) -> anyhow::Result<Self> {
        let (cluster, client, gateways, key) = match args.spawn {
            Some(nodes) => {
                let cluster = spawn(args, nodes, script.nicks.len()).await?;
                let client = Some(cluster.client().await?);
                let gateways = cluster.nodes().iter().filter_map(|node| node.gateway_url());
                let gateways: Vec<_> = gateways.collect();
                let key = AuthKey::read(cluster.auth_key_file())?;
                (Some(Arc::new(cluster)), client, gateways, key)
            }
            None => {
                let key = args.auth_key.as_deref().context("--auth-key is missing")?;
                let client = match args.node.secret_file {
                    Some(_) => Some(args.node.connect().await?),
                    None => None,
                };
                (None, client, args.gateway.clone(), AuthKey::read(key)?)
            }
        };
        if gateways.is_empty() {
            bail!("there is no gateway");
        }
        let connections = usize::from(args.connections);
        let users = register(&gateways, &key, script, connections).await?;
        let group = gather(&gateways, &key, &users, connections).await?;
        Ok(Self {
            cluster,
            client,
            gateways,
            users,
            group,
            key,
        })
    }

    /// A token for one user.
    pub(super) fn token(&self, user: u64) -> anyhow::Result<String> {
        Ok(self.key.issue(&user.to_string(), TOKEN_TTL)?.0)
    }

    /// Waits until every node of a spawned cluster serves again.
    pub(super) async fn wait_ready(&self) -> anyhow::Result<()> {
        let Some(cluster) = &self.cluster else {
            return Ok(());
        };
        cluster.wait_ready(READY_WITHIN).await?;
        // What is acked may still be on its way to a recipient in another shard.
        cluster.wait_lanes_drained(READY_WITHIN).await
    }

    /// Stops a spawned cluster as an operator would.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        match &self.cluster {
            Some(cluster) => chaos::stop_all(cluster).await,
            None => Ok(()),
        }
    }

    /// Stops a spawned cluster, verifies every node's files and compares the state hashes.
    pub(super) async fn stop_and_inspect(&self) -> anyhow::Result<Inspected> {
        self.stop().await?;
        let Some(cluster) = &self.cluster else {
            bail!("only a spawned cluster is inspected")
        };
        let dirs: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| node.data_dir().to_owned())
            .collect();
        eprintln!("verifying the files of {} nodes", dirs.len());
        let inspected = move || inspect::inspect_all(&dirs);
        let nodes = tokio::task::spawn_blocking(inspected).await?;
        Ok(Inspected {
            equal: inspect::all_equal(&nodes),
            nodes,
        })
    }
}

async fn spawn(args: &IrcArgs, nodes: usize, nicks: usize) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::start(ClusterOptions {
        nodes,
        shards: args.shards,
        dir: args.dir.clone(),
        binary: args.mailboxd.clone(),
        gateway: true,
        extra_config: format!("[cluster]\ngroup_members_max = {}\n", nicks.max(500)),
        ..ClusterOptions::default()
    })
    .await
    .context("start the cluster")?;
    if args.dir.is_some() {
        cluster.keep_files();
    }
    eprintln!(
        "{nodes} node(s) serve, files in {}",
        cluster.dir().display()
    );
    Ok(cluster)
}

/// Registers every nick as its app would: through a gateway, with a token for its handle.
async fn register(
    gateways: &[String],
    key: &AuthKey,
    script: &Script,
    connections: usize,
) -> anyhow::Result<Vec<u64>> {
    let bar = ProgressBar::new(script.nicks.len() as u64).with_message("users");
    bar.set_style(crate::output::bar_style());
    let users = futures_util::stream::iter(script.nicks.iter().enumerate())
        .map(|(number, nick)| {
            let (url, bar) = (&gateways[number % gateways.len()], bar.clone());
            async move {
                let (token, _) = key.issue(&format!("@{nick}"), TOKEN_TTL)?;
                let registered = register_user(&ConnectOptions::new(url, token), nick).await;
                bar.inc(1);
                registered.map_err(|error| refused(nick, error))
            }
        })
        .buffered(connections)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(users)
}

fn refused(nick: &str, error: Error) -> anyhow::Error {
    let taken = matches!(&error, Error::Refused(fault) if fault.code == "HandleTaken");
    let error = anyhow::Error::new(error);
    if taken {
        error.context(format!(
            "register @{nick}: a replay needs a cluster without these users"
        ))
    } else {
        error.context(format!("register @{nick}"))
    }
}

/// Creates the group and lets everyone join it, each on a WebSocket of its own.
async fn gather(
    gateways: &[String],
    key: &AuthKey,
    users: &[u64],
    connections: usize,
) -> anyhow::Result<u64> {
    let connect = |number: usize| {
        let (user, url) = (users[number], &gateways[number % gateways.len()]);
        async move {
            let (token, _) = key.issue(&user.to_string(), TOKEN_TTL)?;
            let options = ConnectOptions {
                receive: false,
                ..ConnectOptions::new(url, token)
            };
            let device = Device::connect(options).await;
            device.with_context(|| format!("connect user {user} to {url}"))
        }
    };
    if users.is_empty() {
        bail!("there is no nick")
    }
    let creator = connect(0).await?;
    let group = creator
        .create_group("replay")
        .await
        .context("create the group")?;
    creator.close().await?;
    let bar = ProgressBar::new(users.len() as u64 - 1).with_message("members");
    bar.set_style(crate::output::bar_style());
    futures_util::stream::iter(1..users.len())
        .map(|number| {
            let (member, bar) = (connect(number), bar.clone());
            async move {
                let member = member.await?;
                member.join_group(group).await.context(
                    "join the group (its greatest size is the option cluster.group_members_max)",
                )?;
                member.close().await?;
                bar.inc(1);
                anyhow::Ok(())
            }
        })
        .buffer_unordered(connections)
        .try_collect::<()>()
        .await?;
    bar.finish_and_clear();
    Ok(group)
}
