//! The configuration of `mailboxd server` and `mailboxd gateway`: one file format for both.
//!
//! Sources, a later one overriding an earlier: defaults, the TOML file, the environment
//! (`MAILBOX_<SECTION>__<OPTION>`, two underscores), flags. `options.rs` holds the facts about each
//! option (what it does, unit, bounds) from which the documented file is printed and against which
//! values are checked; an unknown key is refused.

mod byte_size;
mod document;
mod facts;
mod gateway;
mod options;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use mailbox_placement::{Goals, Limits, SplitGoals};
use mailbox_raft::Timing;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use byte_size::ByteSize;
pub use document::{default_document, explain};
pub use facts::{Bounds, OptionFacts};
pub use gateway::GatewayConfig;
pub use options::OPTIONS;
pub use validate::Role;
pub(crate) use validate::{is_loopback, is_set};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or cannot be read.
    #[error("read config file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the message names key and source.
    #[error("config: {0}")]
    Parse(Box<figment::Error>),
    /// A value outside its bounds, or one that does not go with another.
    #[error("config: {option} = {value}: {limit}")]
    Invalid {
        /// The option, as `section.option`.
        option: String,
        /// What it was set to.
        value: String,
        /// What it must be.
        limit: String,
    },
    /// `--set` without `=`.
    #[error("--set {0}: write section.option=value")]
    Override(String),
    /// `config explain` of an option that does not exist.
    #[error("no option or section is called `{0}`; `mailboxd config explain` lists all")]
    UnknownOption(String),
}

/// Everything a node or a gateway can be told.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What must be equal on all nodes, and what gateways need to reach them.
    pub cluster: ClusterConfig,
    /// This store node.
    pub node: NodeConfig,
    /// This gateway.
    pub gateway: GatewayConfig,
    /// Keys that users' tokens are checked with.
    pub auth: AuthConfig,
    /// Certificates.
    pub tls: TlsConfig,
    /// Memory and how it is shared out.
    pub memory: MemoryConfig,
    /// Files of the store and of the log.
    pub storage: StorageConfig,
    /// Limits of calls and streams.
    pub limits: LimitsConfig,
    /// Where replicas and leaders go.
    pub placement: PlacementConfig,
    /// What is written to stderr.
    pub logging: LoggingConfig,
}

/// `[cluster]`; the facts about each option are in `options.rs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct ClusterConfig {
    pub id: String,
    pub secret_file: PathBuf,
    pub slot_count: u16,
    pub shards: u16,
    pub body_bytes_max: ByteSize,
    pub group_members_max: u32,
    pub user_groups_max: u32,
    pub user_devices_max: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters_max: Option<u32>,
    pub dedup_window_ms: u64,
    pub clock_skew_max_ms: u64,
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    pub join: Vec<String>,
    #[serde(deserialize_with = "nodes_from_text", serialize_with = "nodes_to_text")]
    pub nodes: BTreeMap<u64, String>,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct NodeConfig {
    pub id: u64,
    pub dir: PathBuf,
    pub listen: String,
    pub address: String,
    pub region: String,
    pub zone: String,
    pub weight: u32,
    pub metrics_listen: String,
    pub allow_plaintext: bool,
    pub lease_reads: bool,
    pub connections_max: u32,
    pub disk_free_min_percent: u32,
    pub disk_free_min_bytes: ByteSize,
}

/// `[auth]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct AuthConfig {
    pub hs256_secret_file: PathBuf,
    pub ed25519_public_key_file: PathBuf,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct TlsConfig {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub ca_file: PathBuf,
    pub domain: String,
}

/// `[memory]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct MemoryConfig {
    pub budget_bytes: ByteSize,
    pub memtables_percent: u32,
    pub block_cache_percent: u32,
    pub tails_percent: u32,
    pub queues_percent: u32,
    pub log_percent: u32,
}

/// `[storage]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct StorageConfig {
    pub max_open_files: u32,
    pub level0_files_max: u32,
    pub flush_age_ms: u64,
    pub log_entries_kept: u64,
    pub snapshot_bytes_per_s: ByteSize,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct LimitsConfig {
    pub submit_frames_in_flight_max: u32,
    pub submit_calls_per_frame_max: u32,
    pub sync_messages_default: u32,
    pub sync_messages_max: u32,
    pub sync_bytes_max: ByteSize,
    pub timelines_per_call_max: u32,
    pub subscriptions_per_stream_max: u32,
    pub frame_bytes_max: ByteSize,
    pub outbox_bytes_max: ByteSize,
}

/// `[placement]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct PlacementConfig {
    pub enabled: bool,
    pub replication: u32,
    pub spread: Spread,
    pub dead_after_ms: u64,
    pub settle_ms: u64,
    pub lag_max: u64,
    pub moves_max: u32,
    pub node_moves_max: u32,
    pub node_replicas_max: u32,
    pub transfers_max: u32,
    pub pause_ms: u64,
    pub split_bytes: ByteSize,
    pub split_writes_per_second: u64,
    pub split_pause_ms: u64,
    pub shards_max: u32,
}

/// What a shard's replicas are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// As many zones as there are, whatever their regions.
    Zones,
    /// As many regions as there are, and then as many zones.
    Regions,
}

/// `[logging]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct LoggingConfig {
    pub format: LogFormat,
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        // A dead node's shards are stood for election_max after it was last heard, one follower after the other.
        // 3 s from kill -9 to the next ack is what a client should never see; of three nodes with 256 shards, one was
        // killed that led 83, and 1.5 s later the others led them all.
        let timing = Timing::default();
        Self {
            id: "mailbox".into(),
            secret_file: "./mailbox.secret".into(),
            slot_count: 1024,
            shards: 16,
            body_bytes_max: ByteSize(16 * 1024 - 1),
            group_members_max: 500,
            user_groups_max: 1000,
            user_devices_max: 100,
            dead_letters_max: None,
            dedup_window_ms: 7 * 24 * 3600 * 1000,
            clock_skew_max_ms: 500,
            heartbeat_ms: timing.heartbeat_ms,
            election_min_ms: timing.election_min_ms,
            election_max_ms: timing.election_max_ms,
            join: Vec::new(),
            nodes: BTreeMap::from([(1, "127.0.0.1:7700".to_owned())]),
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            id: 1,
            dir: "./mailbox-data".into(),
            listen: "127.0.0.1:7700".into(),
            address: String::new(),
            region: String::new(),
            zone: String::new(),
            weight: 100,
            metrics_listen: "127.0.0.1:7780".into(),
            allow_plaintext: false,
            lease_reads: false,
            connections_max: 1024,
            disk_free_min_percent: 5,
            disk_free_min_bytes: ByteSize::mib(1024),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            budget_bytes: ByteSize::mib(1024),
            memtables_percent: 35,
            block_cache_percent: 20,
            tails_percent: 10,
            queues_percent: 20,
            log_percent: 15,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            max_open_files: 1024,
            level0_files_max: 64,
            flush_age_ms: 60_000,
            log_entries_kept: 4096,
            snapshot_bytes_per_s: ByteSize(16 << 20),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            submit_frames_in_flight_max: 1024,
            submit_calls_per_frame_max: 4096,
            sync_messages_default: 200,
            sync_messages_max: 2000,
            sync_bytes_max: ByteSize::mib(2),
            timelines_per_call_max: 20_000,
            subscriptions_per_stream_max: 200_000,
            frame_bytes_max: ByteSize::mib(16),
            outbox_bytes_max: ByteSize::mib(64),
        }
    }
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            replication: 3,
            spread: Spread::Zones,
            dead_after_ms: 600_000,
            settle_ms: 10_000,
            lag_max: 1000,
            moves_max: 32,
            node_moves_max: 1,
            node_replicas_max: 512,
            transfers_max: 16,
            pause_ms: 1000,
            split_bytes: ByteSize(0),
            split_writes_per_second: 0,
            split_pause_ms: 60_000,
            shards_max: 256,
        }
    }
}

impl PlacementConfig {
    /// As the planner is told.
    pub(crate) fn goals(&self) -> Goals {
        let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        Goals {
            replication: size(self.replication),
            spread: match self.spread {
                Spread::Zones => mailbox_placement::Spread::Zones,
                Spread::Regions => mailbox_placement::Spread::Regions,
            },
            dead_after_ms: self.dead_after_ms,
            settle_ms: self.settle_ms,
            lag_max: self.lag_max,
            limits: Limits {
                moves_max: size(self.moves_max),
                node_moves_max: size(self.node_moves_max),
                node_replicas_max: size(self.node_replicas_max),
                transfers_max: size(self.transfers_max),
                ..Limits::default()
            },
            ..Goals::default()
        }
    }

    /// As shards are judged by that may have to be split.
    pub(crate) fn split_goals(&self) -> SplitGoals {
        let limit = |value: u64| (value > 0).then_some(value);
        SplitGoals {
            bytes_max: limit(self.split_bytes.0),
            writes_per_s_max: limit(self.split_writes_per_second),
            pause_ms: self.split_pause_ms,
            shards_max: usize::try_from(self.shards_max).unwrap_or(usize::MAX),
        }
    }
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            // What openraft warns of is told in the store's words, not at every attempt for every shard.
            filter: "info,openraft=error".into(),
        }
    }
}

impl Config {
    /// Reads the file (if any), the environment and the overrides (`section.option=value`), and
    /// checks what they give.
    pub fn load(file: Option<&Path>, overrides: &[String], role: Role) -> Result<Self, Error> {
        // Tables are joined key by key: a node of the default would stay beside the file's nodes.
        let mut defaults = Self::default();
        let default_nodes = std::mem::take(&mut defaults.cluster.nodes);
        let mut figment = Figment::from(Serialized::defaults(defaults));
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?;
            figment = figment.merge(Toml::string(&text));
        }
        let of_ours = |key: &figment::value::UncasedStr| key.as_str().contains("__");
        figment = figment.merge(Env::prefixed("MAILBOX_").filter(of_ours).split("__"));
        for text in overrides {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Error::Override(text.clone()))?;
            figment = merge_override(figment, key.trim(), value.trim());
        }
        let mut config: Self = figment
            .extract()
            .map_err(|error| Error::Parse(Box::new(error)))?;
        if config.cluster.nodes.is_empty() && config.cluster.join.is_empty() {
            config.cluster.nodes = default_nodes;
        }
        config.validate(role)?;
        Ok(config)
    }
}

impl Config {
    /// Where others reach this node: what it says itself, what the cluster's first nodes were told, or where it
    /// listens.
    pub(crate) fn own_address(&self) -> &str {
        if !self.node.address.is_empty() {
            return &self.node.address;
        }
        let named = self.cluster.nodes.get(&self.node.id);
        named.unwrap_or(&self.node.listen)
    }
}

/// `--set node.listen=127.0.0.1:7700` needs no quotes: what is not a TOML value is text.
fn merge_override(figment: Figment, key: &str, value: &str) -> Figment {
    match toml::from_str::<BTreeMap<String, toml::Value>>(&format!("value = {value}")) {
        Ok(mut parsed) if parsed.len() == 1 => figment.merge((key, parsed.remove("value"))),
        Ok(_) | Err(_) => figment.merge((key, value)),
    }
}

fn nodes_to_text<S: Serializer>(nodes: &BTreeMap<u64, String>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(nodes.iter().map(|(id, address)| (id.to_string(), address)))
}

fn nodes_from_text<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u64, String>, D::Error> {
    let text = BTreeMap::<String, String>::deserialize(from)?;
    text.into_iter()
        .map(|(id, address)| match id.parse() {
            Ok(id) => Ok((id, address)),
            Err(_) => Err(de::Error::custom(format!(
                "cluster.nodes: `{id}` is not a node id"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: &[&str]) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mailbox.toml");
        std::fs::write(&file, text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Config::load(Some(&file), &overrides, Role::Server)
    }

    #[test]
    fn the_documented_file_is_the_default() {
        let config = load(&default_document(), &[]).expect("the documented file is valid");
        assert_eq!(config, Config::default());
        assert_eq!(
            load("", &[]).expect("all options have a default"),
            Config::default()
        );
    }

    #[test]
    fn every_option_is_in_the_table_and_the_table_has_no_other() {
        let mut known = Vec::new();
        let mut config = Config::default();
        config.cluster.dead_letters_max = Some(1);
        for (section, table) in toml::Table::try_from(config).unwrap() {
            for name in table.as_table().unwrap().keys() {
                known.push(format!("{section}.{name}"));
            }
        }
        let mut documented: Vec<String> = OPTIONS.iter().map(|o| o.path.to_owned()).collect();
        known.sort();
        documented.sort();
        assert_eq!(known, documented);
    }

    #[test]
    fn the_committed_example_is_what_the_binary_prints() {
        let committed = include_str!("../mailbox.example.toml");
        assert!(
            committed == default_document(),
            "run: mailboxd config default > server/mailbox.example.toml"
        );
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = load("[node]\nspeed = 11\n", &[])
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("speed"), "{error}");
        let error = load("[nodes]\n", &[])
            .expect_err("unknown section")
            .to_string();
        assert!(error.contains("nodes"), "{error}");
    }

    #[test]
    fn a_flag_overrides_the_file_and_needs_no_quotes() {
        let text = "[node]\nlisten = \"127.0.0.1:1\"\nconnections_max = 100\n";
        let config = load(
            text,
            &["node.listen=127.0.0.1:2", "memory.budget_bytes=128 MiB"],
        )
        .unwrap();
        assert_eq!(config.node.listen, "127.0.0.1:2");
        assert_eq!(config.node.connections_max, 100);
        assert_eq!(config.memory.budget_bytes, ByteSize::mib(128));
        assert!(matches!(
            load("", &["node.listen"]),
            Err(Error::Override(_))
        ));
    }

    #[test]
    fn nodes_of_the_file_replace_the_default_ones() {
        let text = "[node]\nid = 3\n[cluster.nodes]\n3 = \"a:1\"\n4 = \"b:1\"\n5 = \"c:1\"\n";
        let config = load(text, &[]).unwrap();
        assert_eq!(
            config.cluster.nodes.keys().copied().collect::<Vec<_>>(),
            [3, 4, 5]
        );
        let error = load("[cluster.nodes]\none = \"a:1\"\n", &[]).expect_err("not an id");
        assert!(error.to_string().contains("one"), "{error}");
    }

    #[test]
    fn explain_knows_options_and_sections() {
        assert!(
            explain(Some("node.listen"))
                .unwrap()
                .contains("MAILBOX_NODE__LISTEN")
        );
        assert!(
            explain(Some("memory"))
                .unwrap()
                .contains("memory.tails_percent")
        );
        assert!(matches!(
            explain(Some("nope")),
            Err(Error::UnknownOption(_))
        ));
    }
}
