//! Checks of values: the bounds of the table of options, then what must go together.

use std::fmt::Display;
use std::path::Path;

use mailbox_engine::PLACE_BYTES_MAX;

use super::document::{describe, name_of, section_of, values};
use super::facts::{Bounds, OptionFacts};
use super::options::OPTIONS;
use super::{ByteSize, Config, Error};

/// What the configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// `mailboxd server`.
    Server,
    /// `mailboxd gateway`.
    Gateway,
}

/// Least `placement.split_bytes` but 0.
const SPLIT_BYTES_MIN: u64 = 64 * 1024;
/// Greatest `cluster.election_max_ms` of a node that reads by leases.
const LEASE_ELECTION_MS_MAX: u64 = 10_000;

impl Config {
    /// Checks every value; the error names option, value and limit. Looks at no file.
    pub fn validate(&self, role: Role) -> Result<(), Error> {
        let values = values(self);
        for option in OPTIONS {
            let value = values
                .get(section_of(option.path))
                .and_then(|section| section.get(name_of(option.path)));
            if let Some(value) = value {
                check_bounds(option, value)?;
            }
        }
        self.check_cluster(role)?;
        self.check_pairs()?;
        match role {
            Role::Server => self.check_node(),
            Role::Gateway => self.check_gateway(),
        }
    }

    fn check_cluster(&self, role: Role) -> Result<(), Error> {
        let cluster = &self.cluster;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if cluster.id.is_empty() || cluster.id.len() > 64 || !cluster.id.chars().all(fits) {
            return invalid(
                "cluster.id",
                &cluster.id,
                "must be 1 to 64 of a-z, 0-9, '-'",
            );
        }
        if cluster.shards > cluster.slot_count {
            return invalid(
                "cluster.shards",
                cluster.shards,
                &format!(
                    "at most one a slot: cluster.slot_count = {}",
                    cluster.slot_count
                ),
            );
        }
        for address in &cluster.join {
            check_address("cluster.join", address)?;
        }
        if !cluster.join.is_empty() && !cluster.nodes.is_empty() {
            return invalid(
                "cluster.join",
                cluster.join.join(", "),
                "a node is one of cluster.nodes or joins, not both: leave cluster.nodes out",
            );
        }
        // A gateway may be told of nodes that have joined since: the more it knows, the more may be down when it starts.
        let begins = cluster.nodes.len() == 1 || cluster.nodes.len() == 3;
        if role == Role::Server && cluster.join.is_empty() && !begins {
            return invalid(
                "cluster.nodes",
                format!("{} nodes", cluster.nodes.len()),
                "must be one or three",
            );
        }
        for (id, address) in &cluster.nodes {
            check_address(&format!("cluster.nodes.{id}"), address)?;
            if *id == 0 {
                return invalid("cluster.nodes", id, "a node id must be at least 1");
            }
        }
        self.check_timing()
    }

    fn check_timing(&self) -> Result<(), Error> {
        let cluster = &self.cluster;
        if cluster.heartbeat_ms.saturating_mul(3) >= cluster.election_min_ms {
            return invalid(
                "cluster.heartbeat_ms",
                cluster.heartbeat_ms,
                &format!(
                    "must be less than a third of election_min_ms = {}",
                    cluster.election_min_ms
                ),
            );
        }
        if cluster.election_max_ms <= cluster.election_min_ms {
            return invalid(
                "cluster.election_max_ms",
                cluster.election_max_ms,
                &format!(
                    "must be more than election_min_ms = {}",
                    cluster.election_min_ms
                ),
            );
        }
        if self.node.lease_reads && cluster.election_max_ms > LEASE_ELECTION_MS_MAX {
            return invalid(
                "node.lease_reads",
                true,
                &format!(
                    "a node that starts takes no part in elections for cluster.election_max_ms = {} and a tenth \
                     more: with lease reads it must be at most {LEASE_ELECTION_MS_MAX}",
                    cluster.election_max_ms
                ),
            );
        }
        Ok(())
    }

    fn check_splits(&self) -> Result<(), Error> {
        let (placement, shards) = (&self.placement, self.cluster.shards);
        if (1..SPLIT_BYTES_MIN).contains(&placement.split_bytes.0) {
            return invalid(
                "placement.split_bytes",
                placement.split_bytes,
                &format!(
                    "0 or at least {}: what a shard stores is known to a few blocks of its files only",
                    ByteSize(SPLIT_BYTES_MIN)
                ),
            );
        }
        if !placement.split_goals().are_off() && u64::from(placement.shards_max) < u64::from(shards)
        {
            return invalid(
                "placement.shards_max",
                placement.shards_max,
                &format!("at least cluster.shards = {shards}, or nothing is ever split"),
            );
        }
        Ok(())
    }

    fn check_pairs(&self) -> Result<(), Error> {
        let tls = &self.tls;
        if is_set(&tls.cert_file) != is_set(&tls.key_file) {
            return invalid(
                "tls.cert_file",
                tls.cert_file.display(),
                "goes with tls.key_file: set both or neither",
            );
        }
        let replication = self.placement.replication;
        if replication.is_multiple_of(2) {
            return invalid(
                "placement.replication",
                replication,
                "must be odd: one more voter than an odd number bears no more failures",
            );
        }
        self.check_splits()?;
        let memory = &self.memory;
        let shares = memory.memtables_percent
            + memory.block_cache_percent
            + memory.tails_percent
            + memory.queues_percent
            + memory.log_percent;
        if shares > 100 {
            return invalid(
                "memory",
                format!("{shares} percent in all"),
                "at most 100 percent",
            );
        }
        let limits = &self.limits;
        if limits.sync_messages_default > limits.sync_messages_max {
            return invalid(
                "limits.sync_messages_default",
                limits.sync_messages_default,
                &format!("at most sync_messages_max = {}", limits.sync_messages_max),
            );
        }
        if limits.sync_bytes_max.0 + self.cluster.body_bytes_max.0 * 2 > limits.frame_bytes_max.0 {
            return invalid(
                "limits.sync_bytes_max",
                limits.sync_bytes_max,
                &format!(
                    "with two bodies (cluster.body_bytes_max = {}) at most frame_bytes_max = {}",
                    self.cluster.body_bytes_max, limits.frame_bytes_max
                ),
            );
        }
        Ok(())
    }

    fn check_node(&self) -> Result<(), Error> {
        let joins = !self.cluster.join.is_empty();
        if !joins && !self.cluster.nodes.contains_key(&self.node.id) {
            let known: Vec<String> = self.cluster.nodes.keys().map(u64::to_string).collect();
            return invalid(
                "node.id",
                self.node.id,
                &format!("must be one of cluster.nodes ({})", known.join(", ")),
            );
        }
        for (option, address) in [
            ("node.address", &self.node.address),
            ("node.metrics_listen", &self.node.metrics_listen),
        ] {
            if !address.is_empty() {
                check_address(option, address)?;
            }
        }
        for (option, name) in [
            ("node.region", &self.node.region),
            ("node.zone", &self.node.zone),
        ] {
            if name.len() > PLACE_BYTES_MAX {
                let limit = format!("at most {PLACE_BYTES_MAX} bytes");
                return invalid(option, name, &limit);
            }
        }
        self.check_plaintext("node", &self.node.listen, self.node.allow_plaintext)
    }

    fn check_gateway(&self) -> Result<(), Error> {
        if !self.cluster.join.is_empty() {
            let limit = "a gateway does not join: name some nodes in cluster.nodes";
            return invalid("cluster.join", self.cluster.join.join(", "), limit);
        }
        if !is_set(&self.auth.hs256_secret_file) && !is_set(&self.auth.ed25519_public_key_file) {
            return invalid(
                "auth",
                "no key",
                "a gateway needs auth.hs256_secret_file or auth.ed25519_public_key_file",
            );
        }
        self.gateway.check_registration()?;
        self.check_plaintext(
            "gateway",
            &self.gateway.listen,
            self.gateway.allow_plaintext,
        )
    }

    /// A listener that others can reach needs TLS, or a word that none is wanted.
    fn check_plaintext(&self, section: &str, listen: &str, allowed: bool) -> Result<(), Error> {
        if allowed || is_set(&self.tls.cert_file) || is_loopback(listen) {
            return Ok(());
        }
        invalid(
            &format!("{section}.listen"),
            listen,
            &format!(
                "not a loopback address: set tls.cert_file and tls.key_file, or {section}.allow_plaintext = true"
            ),
        )
    }
}

/// Whether a path option was given.
pub(crate) fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// Whether `host:port` names this machine only.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn check_bounds(option: &OptionFacts, value: &toml::Value) -> Result<(), Error> {
    let inside = match option.bounds {
        Bounds::Number { min, max, .. } => value
            .as_integer()
            .and_then(|number| u64::try_from(number).ok())
            .is_some_and(|number| (min..=max).contains(&number)),
        Bounds::Bytes { min, max } => value
            .as_str()
            .and_then(|text| text.parse::<ByteSize>().ok())
            .is_some_and(|size| (min..=max).contains(&size)),
        Bounds::OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Bounds::Flag => value.is_bool(),
        Bounds::Text(_) => true,
        Bounds::Address => {
            return check_address(option.path, value.as_str().unwrap_or_default());
        }
    };
    if inside {
        return Ok(());
    }
    invalid(option.path, value, &describe(&option.bounds))
}

pub(super) fn check_address(option: &str, address: &str) -> Result<(), Error> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    });
    if good {
        Ok(())
    } else {
        invalid(option, address, "must be host:port")
    }
}

pub(super) fn invalid(option: &str, value: impl Display, limit: &str) -> Result<(), Error> {
    Err(Error::Invalid {
        option: option.to_owned(),
        value: value.to_string(),
        limit: limit.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Config), role: Role) -> String {
        let mut config = Config::default();
        config.auth.hs256_secret_file = "./key".into();
        config.validate(role).expect("the default is valid");
        change(&mut config);
        config
            .validate(role)
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn a_refusal_names_option_value_and_limit() {
        let text = refusal(|config| config.node.connections_max = 0, Role::Server);
        assert_eq!(
            text,
            "config: node.connections_max = 0: In connections, 8 to 100000"
        );
        let text = refusal(
            |config| config.cluster.body_bytes_max = ByteSize(0),
            Role::Server,
        );
        assert!(
            text.contains("cluster.body_bytes_max") && text.contains("1 MiB"),
            "{text}"
        );
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (change, named) in [
            (
                (|c| c.cluster.heartbeat_ms = 900) as fn(&mut Config),
                "heartbeat_ms",
            ),
            (
                |c| c.cluster.election_max_ms = c.cluster.election_min_ms,
                "election_max_ms",
            ),
            (
                |c| (c.node.lease_reads, c.cluster.election_max_ms) = (true, 10_001),
                "node.lease_reads",
            ),
            (
                |c| c.placement.split_bytes = ByteSize(65_535),
                "placement.split_bytes",
            ),
            (
                |c| (c.placement.split_writes_per_second, c.placement.shards_max) = (1, 15),
                "placement.shards_max",
            ),
            (|c| c.memory.tails_percent = 50, "memory"),
            (|c| c.tls.cert_file = "./cert".into(), "tls.cert_file"),
            (|c| c.node.id = 7, "node.id"),
            (
                |c| c.limits.sync_messages_default = 3000,
                "sync_messages_default",
            ),
            (|c| c.cluster.id = "My Cluster".into(), "cluster.id"),
            (|c| c.cluster.nodes.clear(), "cluster.nodes"),
            (|c| c.cluster.join = vec!["h:1".into()], "cluster.join"),
            (|c| c.node.zone = "z".repeat(65), "node.zone"),
            (|c| c.node.address = "nowhere".into(), "node.address"),
        ] {
            let text = refusal(change, Role::Server);
            assert!(text.contains(named), "{named}: {text}");
        }
        let text = refusal(|c| c.auth.hs256_secret_file = "".into(), Role::Gateway);
        assert!(text.contains("auth"), "{text}");
    }

    #[test]
    fn a_node_that_joins_names_nobody_it_begins_with() {
        let mut config = Config::default();
        config.cluster.nodes.clear();
        config.cluster.join = vec!["10.0.0.1:7700".into()];
        config.node.id = 7;
        config.validate(Role::Server).expect("it may join");
        assert_eq!(config.own_address(), config.node.listen);
        config.cluster.join = vec!["10.0.0.1".into()];
        let error = config.validate(Role::Server).expect_err("no port");
        assert!(error.to_string().contains("cluster.join"), "{error}");
    }

    #[test]
    fn a_gateway_may_name_as_many_nodes_as_there_are() {
        let many = |c: &mut Config| {
            c.cluster.nodes = (1..=5)
                .map(|id| (id, format!("10.0.0.{id}:7700")))
                .collect();
        };
        let text = refusal(many, Role::Server);
        assert!(text.contains("must be one or three"), "{text}");
        let mut config = Config::default();
        config.auth.hs256_secret_file = "./key".into();
        many(&mut config);
        config.validate(Role::Gateway).expect("any number");
        config.cluster.nodes.insert(0, "10.0.0.9:7700".to_owned());
        let error = config.validate(Role::Gateway).expect_err("no such id");
        assert!(error.to_string().contains("at least 1"), "{error}");
    }

    #[test]
    fn a_listener_that_others_reach_needs_tls_or_a_word() {
        let open = |c: &mut Config| c.node.listen = "0.0.0.0:7700".into();
        let text = refusal(open, Role::Server);
        assert!(text.contains("node.listen = 0.0.0.0:7700"), "{text}");
        assert!(text.contains("allow_plaintext"), "{text}");
        let mut config = Config::default();
        open(&mut config);
        config.node.allow_plaintext = true;
        config.validate(Role::Server).expect("allowed by name");
        for (address, loopback) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(is_loopback(address), loopback, "{address}");
        }
    }
}
