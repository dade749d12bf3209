//! Nodes that make one cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mailbox_client::{Auth, CallError, Client, ClientOptions, v1};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::door::{self, GatewayCertificate};
use crate::host::Host;
use crate::layout::{Layout, Ports, free_ports, key_file};
use crate::node::{Node, Places, data_dir};
use crate::process::Spawner;
use crate::usage::IoBytes;
use crate::{binary, config};

const READY_POLL: Duration = Duration::from_millis(50);
/// So many ids fall into all shards.
const OWNERS_LOOKED_AT: u64 = 10_000;
const OUTBOX_ITEMS: &str = "mailbox_lane_outbox_items";

/// What [`Cluster::start`] makes.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// 1 or 3.
    pub nodes: usize,
    /// Where data, configs and logs go; used before, it must hold as many nodes, which go on with
    /// their data. `None`: a temporary directory, removed at the end unless the thread panics or
    /// [`Cluster::keep_files`] was called.
    pub dir: Option<PathBuf>,
    /// The `mailboxd` to run. `None`: `$MAILBOXD`, else the file beside the running executable.
    pub binary: Option<PathBuf>,
    /// Shards that the cluster's slots are split into, 1 to 64; to have more, set `cluster.slot_count` too.
    pub shards: u16,
    /// Whether each node has a gateway beside it.
    pub gateway: bool,
    /// Whether gateways speak TLS; on loopback only, with a certificate that is made for them.
    pub gateway_tls: bool,
    /// Where nodes live, in the order of their ids; those beyond on loopback.
    pub hosts: Vec<Host>,
    /// TOML merged over the config that is written for each node.
    pub extra_config: String,
    /// How long the cluster may take until it serves.
    pub ready_within: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            dir: None,
            binary: None,
            shards: 1,
            gateway: false,
            gateway_tls: false,
            hosts: Vec::new(),
            extra_config: String::new(),
            ready_within: Duration::from_secs(60),
        }
    }
}

/// Running nodes; dropping it kills them all.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory, so that nothing runs in it any more when it is removed.
    nodes: Vec<Node>,
    /// Of the next node that joins: no id is ever used twice.
    next_id: u64,
    mould: Mould,
    dir: PathBuf,
    temporary: Option<TempDir>,
    secret_file: PathBuf,
    auth_key_file: PathBuf,
    cluster_id: String,
    /// For questions of our own.
    client: OnceCell<DebugClient>,
}

/// What all nodes are made by.
#[derive(Debug)]
struct Mould {
    binary: PathBuf,
    spawner: Spawner,
    shards: u16,
    gateway: bool,
    certificate: Option<GatewayCertificate>,
    hosts: Vec<Host>,
    extra_config: String,
}

impl Mould {
    fn host(&self, id: u64) -> Host {
        let place = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let host = place.and_then(|place| self.hosts.get(place));
        host.cloned().unwrap_or_default()
    }
}

/// A client has nothing to show.
struct DebugClient(Client);

impl std::fmt::Debug for DebugClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Cluster {
    /// Writes configs and keys, starts every node and waits until a leader serves.
    ///
    /// # Errors
    /// When the binary is missing, a node exits, or nothing serves in time; with the end of the
    /// nodes' logs.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        let ready_within = options.ready_within;
        let mut cluster = Self::prepare(options)?;
        for node in &cluster.nodes {
            node.start()?;
            node.start_gateway()?;
        }
        if let Err(error) = cluster.wait_ready(ready_within).await {
            cluster.keep_files();
            return Err(error);
        }
        Ok(cluster)
    }

    /// Everything but processes.
    fn prepare(options: ClusterOptions) -> anyhow::Result<Self> {
        if !matches!(options.nodes, 1 | 3) {
            bail!("a cluster has 1 or 3 nodes, not {}", options.nodes);
        }
        let binary = binary::find(options.binary.as_deref())?;
        let (dir, temporary) = match options.dir {
            Some(dir) => (dir, None),
            None => {
                let made = tempfile::Builder::new()
                    .prefix("mailbox-cluster-")
                    .tempdir();
                let made = made.context("make a temporary directory")?;
                (made.path().to_owned(), Some(made))
            }
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = std::path::absolute(&dir).with_context(|| format!("find {}", dir.display()))?;
        let layout = Layout::load_or_make(&dir, options.nodes)?;
        let secret_file = key_file(&dir, "mailbox.secret")?;
        let auth_key_file = key_file(&dir, "auth.key")?;
        if options.gateway_tls && options.hosts.iter().any(|host| !host.ip.is_loopback()) {
            bail!("the gateways' certificate is for loopback: leave out gateway_tls or the hosts");
        }
        let certificate = options
            .gateway_tls
            .then(|| GatewayCertificate::load_or_make(&dir));
        let mut cluster = Self {
            nodes: Vec::with_capacity(layout.nodes.len()),
            next_id: 1 + layout.nodes.len() as u64,
            mould: Mould {
                binary,
                spawner: Spawner::new()?,
                shards: options.shards,
                gateway: options.gateway,
                certificate: certificate.transpose()?,
                hosts: options.hosts,
                extra_config: options.extra_config,
            },
            dir,
            temporary,
            secret_file,
            auth_key_file,
            cluster_id: layout.cluster_id,
            client: OnceCell::new(),
        };
        let members = (1..).zip(&layout.nodes);
        let members = members.map(|(id, ports)| (id, cluster.mould.host(id).address(ports.node)));
        let members = config::Company::Members(members.collect());
        for (id, ports) in (1..).zip(layout.nodes) {
            let node = cluster.make_node(id, ports, &members)?;
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    /// Writes a node's config; starts nothing.
    fn make_node(&self, id: u64, ports: Ports, company: &config::Company) -> anyhow::Result<Node> {
        let dir = self.dir.join(format!("node{id}"));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let host = self.mould.host(id);
        let data = host.data.clone().unwrap_or_else(|| data_dir(&dir));
        let files = config::Files {
            secret: &self.secret_file,
            auth_key: &self.auth_key_file,
            dir: &data,
        };
        let own = config::Own {
            cluster_id: &self.cluster_id,
            id,
            host: &host,
            ports,
            shards: self.mould.shards,
        };
        let write = |name: &str, company: &config::Company, over: &[&str]| {
            let text = config::document(&own, company, &files, over)?;
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let extra = self.mould.extra_config.as_str();
        let tls = self.mould.certificate.as_ref();
        let tls_config = tls.map(GatewayCertificate::config).unwrap_or_default();
        let over = [extra, tls_config.as_str()];
        let config = write("mailbox.toml", company, &[extra])?;
        // A gateway does not join, it only has to know some nodes.
        let gateway_config = match company {
            config::Company::Members(_) => write("gateway.toml", company, &over)?,
            config::Company::Joins(_) => write("gateway.toml", &self.known_to_gateways(), &over)?,
        };
        let places = Places {
            binary: &self.mould.binary,
            dir: &dir,
            data: data.clone(),
            config,
            gateway_config,
            gateway_certificate: tls.map(|files| files.certificate.clone()),
        };
        let Mould {
            gateway, spawner, ..
        } = &self.mould;
        Ok(Node::new((id, &host), ports, places, *gateway, spawner))
    }

    /// Starts one more node, which asks the others to take it in, and waits until it serves. It gets an id that
    /// no node has had and comes last in [`Cluster::nodes`]. A directory with such nodes cannot be
    /// started again as a whole: each is known to the cluster only, not to `cluster.json`.
    ///
    /// # Errors
    /// When it does not start, or nothing serves in time; with the end of its log.
    pub async fn join(&mut self, within: Duration) -> anyhow::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        let [ports] = free_ports(1)?[..] else {
            bail!("one node has one set of ports");
        };
        let known = self.nodes.iter().map(|node| node.address().to_owned());
        let company = config::Company::Joins(known.collect());
        let node = self.make_node(id, ports, &company)?;
        node.start()?;
        node.start_gateway()?;
        self.nodes.push(node);
        self.tell_gateways()?;
        self.wait_ready(within).await
    }

    /// Nodes that a gateway is told of: as many as a server may be told of, of those that are there.
    fn known_to_gateways(&self) -> config::Company {
        let count = if self.nodes.len() < 3 { 1 } else { 3 };
        let known = self.nodes.iter().take(count);
        let known = known.map(|node| (node.id(), node.address().to_owned()));
        config::Company::Members(known.collect())
    }

    /// Writes into the gateways' configs, as an operator would, which nodes there are: one that starts when all that it
    /// was told of are gone finds nobody.
    fn tell_gateways(&self) -> anyhow::Result<()> {
        let known = self.known_to_gateways();
        for node in &self.nodes {
            config::set_company(node.gateway_config(), &known)?;
        }
        Ok(())
    }

    /// The id of the next node that joins.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Says where the next node that joins lives; without it, on loopback.
    pub fn set_host(&mut self, host: Host) {
        let place = usize::try_from(self.next_id - 1).unwrap_or(usize::MAX);
        self.mould.hosts.resize(place, Host::default());
        self.mould.hosts.push(host);
    }

    /// Which `mailboxd` nodes are made of that join from now on; see [`Node::set_binary`] for those that are there.
    pub fn set_binary(&mut self, binary: &Path) {
        self.mould.binary = binary.to_owned();
    }

    /// Which `mailboxd` nodes are made of that join.
    pub fn binary(&self) -> &Path {
        &self.mould.binary
    }

    /// Waits for the end of a node that the cluster was told to remove, and leaves it out from here on. Its
    /// files stay.
    ///
    /// # Errors
    /// There is no such node, or it still runs; it is then kept.
    pub async fn forget(&mut self, id: u64, within: Duration) -> anyhow::Result<()> {
        let found = self.nodes.iter().position(|node| node.id() == id);
        let found = found.with_context(|| format!("there is no node {id}"))?;
        let begun = Instant::now();
        while self.nodes[found].pid().is_some() {
            if begun.elapsed() >= within {
                bail!("node {id} still runs {within:?} after it was removed");
            }
            tokio::time::sleep(READY_POLL).await;
        }
        self.discard(id)
    }

    /// Kills a node and leaves it out from here on. Its files stay.
    ///
    /// # Errors
    /// There is no such node, or it cannot be killed; it is then kept.
    pub fn discard(&mut self, id: u64) -> anyhow::Result<()> {
        let found = self.nodes.iter().position(|node| node.id() == id);
        let found = found.with_context(|| format!("there is no node {id}"))?;
        self.nodes[found].kill()?;
        self.nodes[found].kill_gateway()?;
        self.nodes.remove(found);
        self.tell_gateways()
    }

    /// Node `i`, counted from 0.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, i: usize) -> &Node {
        &self.nodes[i]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where everything of this cluster lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster secret's file.
    pub fn secret_file(&self) -> &Path {
        &self.secret_file
    }

    /// The HS256 key with which nodes and gateways check tokens.
    pub fn auth_key_file(&self) -> &Path {
        &self.auth_key_file
    }

    /// The id in every node's config.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Keeps data and logs when the cluster ends; returns where.
    pub fn keep_files(&mut self) -> &Path {
        if let Some(temporary) = &mut self.temporary {
            temporary.disable_cleanup(true);
        }
        &self.dir
    }

    /// Options of a client with the cluster secret and all nodes' addresses, to be changed by whoever
    /// needs other limits or times.
    pub fn client_options(&self) -> anyhow::Result<ClientOptions> {
        let addresses = self
            .nodes
            .iter()
            .map(|node| node.address().to_owned())
            .collect();
        let auth = Auth::secret_file(&self.secret_file, Some(self.cluster_id.clone()))
            .with_context(|| format!("read {}", self.secret_file.display()))?;
        Ok(ClientOptions::new(addresses, auth))
    }

    /// A new client with the cluster secret, connections of its own and every default.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.client_options()?)
            .await
            .context("connect to the cluster")
    }

    /// The position in [`Cluster::nodes`] of the node that leads the first shard.
    pub async fn leader(&self) -> Option<usize> {
        self.leader_of(1).await
    }

    /// The position in [`Cluster::nodes`] of the node that leads a shard: of those that say they do,
    /// the one with the greatest term. `None` while there is none among the nodes that run.
    pub async fn leader_of(&self, shard: u32) -> Option<usize> {
        let client = self.own_client().await.ok()?;
        let mut found: Option<(u64, usize)> = None;
        for (i, node) in self.nodes.iter().enumerate() {
            if node.pid().is_none() || node.is_paused() {
                continue;
            }
            let Ok(status) = client.status(Some(node.address())).await else {
                continue;
            };
            let status = status.shards.iter().find(|status| status.shard == shard);
            if let Some(status) = status.filter(|status| status.leader == node.id()) {
                found = found.max(Some((status.term, i)));
            }
        }
        found.map(|(_, i)| i)
    }

    /// Waits until every running node (paused ones aside) answers, a leader serves reads and every
    /// running gateway is ready.
    ///
    /// # Errors
    /// When it takes longer, or a node ended by itself; with the end of its log.
    pub async fn wait_ready(&self, within: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let error = match self.check_ready().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            for node in &self.nodes {
                node.check_alive()?;
            }
            if begun.elapsed() >= within {
                let logs: String = self
                    .nodes
                    .iter()
                    .map(|node| format!("\n--- node {}\n{}", node.id(), node.log_tail()))
                    .collect();
                return Err(
                    error.context(format!("the cluster is not ready within {within:?}{logs}"))
                );
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    async fn check_ready(&self) -> anyhow::Result<()> {
        let client = self.own_client().await.context("ask for the shard map")?;
        for node in self
            .nodes
            .iter()
            .filter(|node| node.pid().is_some() && !node.is_paused())
        {
            client
                .status(Some(node.address()))
                .await
                .with_context(|| format!("ask node {} for its status", node.id()))?;
            if let Some(gateway) = node
                .gateway_address()
                .filter(|_| node.gateway_pid().is_some())
            {
                door::ask_ready(gateway, node.gateway_certificate())
                    .await
                    .with_context(|| format!("ask the gateway of node {}", node.id()))?;
            }
        }
        // Behind a read barrier: answered by leaders that have a majority.
        let request = v1::HeadsRequest {
            timelines: one_of_each_shard(client),
            ..v1::HeadsRequest::default()
        };
        client
            .heads(request)
            .await
            .context("read through the leaders")?;
        Ok(())
    }

    /// Waits until no node holds an item that is on its way to another shard: what was acked is then
    /// delivered, or its refusal is.
    ///
    /// # Errors
    /// When it takes longer, with what is still on its way.
    pub async fn wait_lanes_drained(&self, within: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let items = self.outbox_items().await;
            if matches!(items, Ok(0)) {
                return Ok(());
            }
            if begun.elapsed() >= within {
                // A node that does not answer in all that time may hold some.
                let items = items?;
                bail!("{items} items are still on their way after {within:?}");
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Items in outboxes that their destinations are not known to have: on the node that holds most of them.
    ///
    /// # Errors
    /// When a running node does not serve its metrics.
    pub async fn outbox_items(&self) -> anyhow::Result<u64> {
        let mut most = 0;
        let running = self.nodes.iter().filter(|node| node.pid().is_some());
        for node in running.filter(|node| !node.is_paused()) {
            most = most.max(node.metric(OUTBOX_ITEMS).await?.unwrap_or(0));
        }
        Ok(most)
    }

    async fn own_client(&self) -> Result<&Client, CallError> {
        let made = self.client.get_or_try_init(|| async {
            let mut options = self
                .client_options()
                .map_err(|error| CallError::new(v1::ErrorCode::Internal, format!("{error:#}")))?;
            // Questions are put again and again by who asks; each is to be answered soon.
            options.timeouts.deadline = Duration::from_secs(2);
            options.timeouts.attempt = Duration::from_secs(1);
            Client::connect(options).await.map(DebugClient)
        });
        made.await.map(|client| &client.0)
    }

    /// User and system time of all nodes, dead processes included.
    pub fn cpu_time(&self) -> Duration {
        self.nodes.iter().map(Node::cpu_time).sum()
    }

    /// Bytes moved by all nodes, dead processes included.
    pub fn io_bytes(&self) -> IoBytes {
        self.nodes
            .iter()
            .map(Node::io_bytes)
            .fold(IoBytes::default(), |sum, one| sum + one)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = self.keep_files();
            // A test that fails has no other way to say where to look.
            eprintln!("data and logs of the nodes are kept in {}", dir.display());
        }
        self.nodes.clear();
    }
}

/// Timelines, one in each shard that the client's map names.
fn one_of_each_shard(client: &Client) -> Vec<v1::Timeline> {
    let owners = (0..OWNERS_LOOKED_AT).map(|owner| (client.shard_of_owner(owner), owner));
    let owners: BTreeMap<u32, u64> = owners.collect();
    let kind = v1::TimelineKind::Mailbox as i32;
    let timelines = owners.into_values();
    timelines
        .map(|owner| v1::Timeline { kind, owner })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_exits_is_told_with_its_log() {
        let options = ClusterOptions {
            nodes: 1,
            binary: Some("/bin/false".into()),
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::prepare(options).unwrap();
        cluster.node(0).start().unwrap();
        let error = cluster
            .wait_ready(Duration::from_secs(60))
            .await
            .unwrap_err();
        assert!(
            error.to_string().starts_with("node 1 ended with"),
            "{error:#}"
        );
        let dir = cluster.keep_files().to_owned();
        drop(cluster);
        assert!(dir.join("node1/mailbox.toml").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn temporary_files_are_removed_and_given_directories_are_not() {
        let given = tempfile::tempdir().unwrap();
        for dir in [None, Some(given.path().to_owned())] {
            let binary = Some("/bin/true".into());
            let kept = dir.is_some();
            let options = ClusterOptions {
                binary,
                dir,
                ..ClusterOptions::default()
            };
            let cluster = Cluster::prepare(options).unwrap();
            let dir = cluster.dir().to_owned();
            drop(cluster);
            assert_eq!(dir.exists(), kept);
        }
    }

    #[test]
    fn two_nodes_are_refused() {
        let options = ClusterOptions {
            nodes: 2,
            ..ClusterOptions::default()
        };
        assert!(Cluster::prepare(options).is_err());
    }
}
