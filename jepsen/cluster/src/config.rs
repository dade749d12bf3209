//! The TOML file of one node, read by its server and its gateway.

use std::path::Path;

use anyhow::Context as _;
use toml::{Table, Value};

use crate::host::Host;
use crate::layout::Ports;

/// Three nodes, their gateways and a load generator are to fit on a small machine.
const MEMORY_BUDGET: &str = "256 MiB";
const SLOT_COUNT: i64 = 64;

/// What a node's file says about files.
pub(crate) struct Files<'a> {
    pub(crate) secret: &'a Path,
    pub(crate) auth_key: &'a Path,
    pub(crate) dir: &'a Path,
}

/// What a node's file says about itself.
pub(crate) struct Own<'a> {
    pub(crate) cluster_id: &'a str,
    pub(crate) id: u64,
    pub(crate) host: &'a Host,
    pub(crate) ports: Ports,
    pub(crate) shards: u16,
}

/// What a node's file says about the others.
pub(crate) enum Company {
    /// The first nodes and their addresses, this one among them.
    Members(Vec<(u64, String)>),
    /// Addresses of nodes to ask.
    Joins(Vec<String>),
}

impl Company {
    /// The option of `cluster` that says it.
    fn option(&self) -> (&'static str, Value) {
        match self {
            Company::Members(nodes) => {
                let nodes = nodes.iter();
                let nodes: Table = nodes
                    .map(|(id, address)| (id.to_string(), Value::from(address.clone())))
                    .collect();
                ("nodes", Value::from(nodes))
            }
            Company::Joins(addresses) => ("join", Value::from(addresses.clone())),
        }
    }
}

/// Says in a file that is there who the others are now.
pub(crate) fn set_company(file: &Path, company: &Company) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("read {}", file.display()))?;
    let mut config: Table = text
        .parse()
        .with_context(|| format!("parse {}", file.display()))?;
    let cluster = config.get_mut("cluster").and_then(Value::as_table_mut);
    let cluster = cluster.with_context(|| format!("{} has no [cluster]", file.display()))?;
    let (key, value) = company.option();
    cluster.insert(key.to_owned(), value);
    let text = toml::to_string(&config).context("encode the config")?;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// The config of one node, with each of `over` merged over it in turn.
pub(crate) fn document(
    own: &Own<'_>,
    company: &Company,
    files: &Files<'_>,
    over: &[&str],
) -> anyhow::Result<String> {
    let address = |port: u16| Value::from(own.host.address(port));
    // A network of the harness' own leads nowhere else.
    let plaintext = Value::from(!own.host.ip.is_loopback());
    let path = |path: &Path| Value::from(path.to_string_lossy().into_owned());
    let id = i64::try_from(own.id).context("number the node")?;
    let mut config = Table::new();
    set(
        &mut config,
        "cluster",
        [
            ("id", Value::from(own.cluster_id)),
            ("secret_file", path(files.secret)),
            ("slot_count", Value::from(SLOT_COUNT)),
            ("shards", Value::from(i64::from(own.shards))),
            company.option(),
        ],
    );
    set(
        &mut config,
        "node",
        [
            ("id", Value::from(id)),
            ("dir", path(files.dir)),
            ("listen", address(own.ports.node)),
            ("metrics_listen", address(own.ports.metrics)),
            ("allow_plaintext", plaintext.clone()),
            // What a share of a disk is good for depends on the machine, and tests must not.
            ("disk_free_min_percent", Value::from(0)),
            ("disk_free_min_bytes", Value::from("256 MiB")),
        ],
    );
    set(
        &mut config,
        "gateway",
        [
            ("listen", address(own.ports.gateway)),
            ("allow_plaintext", plaintext),
        ],
    );
    set(
        &mut config,
        "auth",
        [("hs256_secret_file", path(files.auth_key))],
    );
    set(
        &mut config,
        "memory",
        [("budget_bytes", Value::from(MEMORY_BUDGET))],
    );
    for extra in over {
        let extra: Table = extra.parse().context("parse the extra config")?;
        merge(&mut config, extra);
    }
    toml::to_string(&config).context("encode the config")
}

fn set<const N: usize>(config: &mut Table, section: &str, options: [(&str, Value); N]) {
    let options: Table = options
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    config.insert(section.to_owned(), Value::from(options));
}

/// Tables are joined key by key; anything else is replaced.
fn merge(config: &mut Table, over: Table) {
    for (key, value) in over {
        match (config.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                config.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(company: &Company, extra: &str) -> anyhow::Result<Table> {
        let own = Own {
            cluster_id: "c",
            id: 2,
            host: &Host {
                ip: "198.18.0.2".parse()?,
                ..Host::default()
            },
            ports: Ports {
                node: 1,
                metrics: 2,
                gateway: 3,
            },
            shards: 4,
        };
        let secret = Path::new("/s");
        let files = Files {
            secret,
            auth_key: Path::new("/k"),
            dir: Path::new("/d"),
        };
        Ok(document(&own, company, &files, &[extra])?.parse()?)
    }

    fn members() -> Company {
        Company::Members(
            [1, 2, 3]
                .map(|id| (id, format!("198.18.0.{id}:1")))
                .to_vec(),
        )
    }

    #[test]
    fn a_gateway_is_told_who_is_there_now() {
        let first = Company::Members(vec![(1, "10.0.0.1:7".to_owned())]);
        let before = config(&first, "").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml::to_string(&before).unwrap()).unwrap();
        let now = Company::Members(vec![(4, "10.0.0.4:7".to_owned())]);
        set_company(file.path(), &now).unwrap();
        let after: Table = std::fs::read_to_string(file.path())
            .unwrap()
            .parse()
            .unwrap();
        let nodes = after["cluster"]["nodes"].as_table().unwrap();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["4"]);
        assert_eq!(after["cluster"]["id"], before["cluster"]["id"]);
        assert_eq!(after["gateway"], before["gateway"]);
    }

    #[test]
    fn a_node_that_joins_names_whom_it_asks() {
        let company = Company::Joins(vec!["127.0.0.1:9".to_owned()]);
        let config = config(&company, "").unwrap();
        assert_eq!(config["cluster"]["join"][0], Value::from("127.0.0.1:9"));
        assert!(config["cluster"].get("nodes").is_none());
    }

    #[test]
    fn extra_options_go_over_ours_and_leave_the_rest() {
        let config = config(&members(), "[cluster]\ngroup_members_max = 9\nid = \"x\"").unwrap();
        assert_eq!(config["cluster"]["group_members_max"], Value::from(9));
        assert_eq!(config["cluster"]["id"], Value::from("x"));
        assert_eq!(config["cluster"]["nodes"]["3"], Value::from("198.18.0.3:1"));
        assert_eq!(config["node"]["id"], Value::from(2));
        assert_eq!(config["node"]["listen"], Value::from("198.18.0.2:1"));
        assert_eq!(config["gateway"]["allow_plaintext"], Value::from(true));
        assert_eq!(config["cluster"]["shards"], Value::from(4));
    }

    #[test]
    fn extra_that_is_no_toml_is_refused() {
        assert!(config(&members(), "[cluster").is_err());
    }
}
