//! Everything that is there before the first line: the cluster, its users, the group.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use mailbox_client::v1::{
    CreateGroupRequest, ErrorCode, JoinGroupRequest, RegisterUserRequest, UserRef, user_ref,
};
use mailbox_client::{CallError, Client};
use mailbox_cluster::{Cluster, ClusterOptions};

use super::IrcArgs;
use super::report::Inspected;
use super::script::Script;
use crate::chaos;
use crate::ctl::inspect;
use crate::ctl::token::AuthKey;

/// Registrations and joins on the way at a time.
const CALLS: usize = 256;
/// How long users' tokens are valid: longer than any replay.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
/// How long a cluster may take to serve again after the last kill.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A cluster whose users and group exist.
pub(super) struct Stage {
    /// Of a spawned cluster only.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Acts for any user, past the gateways.
    pub(super) client: Client,
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
                let client = cluster.client().await?;
                let gateways = cluster.nodes().iter().filter_map(|node| node.gateway_url());
                let gateways: Vec<_> = gateways.collect();
                let key = AuthKey::read(cluster.auth_key_file())?;
                (Some(Arc::new(cluster)), client, gateways, key)
            }
            None => {
                let key = args.auth_key.as_deref().context("--auth-key is missing")?;
                let client = args.node.connect().await?;
                (None, client, args.gateway.clone(), AuthKey::read(key)?)
            }
        };
        if gateways.is_empty() {
            bail!("there is no gateway");
        }
        let users = register(&client, script).await?;
        let group = gather(&client, &users).await?;
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
        match &self.cluster {
            Some(cluster) => cluster.wait_ready(READY_WITHIN).await,
            None => Ok(()),
        }
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

async fn register(client: &Client, script: &Script) -> anyhow::Result<Vec<u64>> {
    let bar = ProgressBar::new(script.nicks.len() as u64).with_message("users");
    bar.set_style(crate::output::bar_style());
    let users = futures_util::stream::iter(&script.nicks)
        .map(|nick| {
            let request = RegisterUserRequest {
                handle: nick.clone(),
                ..Default::default()
            };
            let bar = bar.clone();
            async move {
                let registered = client.register_user(request).await;
                bar.inc(1);
                registered
                    .map(|registered| registered.user)
                    .map_err(|error| refused(nick, error))
            }
        })
        .buffered(CALLS)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(users)
}

fn refused(nick: &str, error: CallError) -> anyhow::Error {
    let taken = error.code() == ErrorCode::HandleTaken;
    let error = anyhow::Error::new(error);
    if taken {
        error.context(format!(
            "register @{nick}: a replay needs a cluster without these users"
        ))
    } else {
        error.context(format!("register @{nick}"))
    }
}

/// Creates the group and lets everyone join it.
async fn gather(client: &Client, users: &[u64]) -> anyhow::Result<u64> {
    let user_ref = |user: u64| {
        Some(UserRef {
            user: Some(user_ref::User::Id(user)),
        })
    };
    let Some((&creator, others)) = users.split_first() else {
        bail!("there is no nick")
    };
    let request = CreateGroupRequest {
        creator: user_ref(creator),
        name: "replay".to_owned(),
        ..CreateGroupRequest::default()
    };
    let group = client
        .create_group(request)
        .await
        .context("create the group")?
        .group;
    let bar = ProgressBar::new(others.len() as u64).with_message("members");
    bar.set_style(crate::output::bar_style());
    futures_util::stream::iter(others)
        .map(|&user| {
            let request = JoinGroupRequest {
                group,
                user: user_ref(user),
                ..JoinGroupRequest::default()
            };
            let bar = bar.clone();
            async move {
                client.join_group(request).await?;
                bar.inc(1);
                Ok::<_, CallError>(())
            }
        })
        .buffer_unordered(CALLS)
        .try_collect::<()>()
        .await
        .context("join the group (its greatest size is the option cluster.group_members_max)")?;
    bar.finish_and_clear();
    Ok(group)
}
