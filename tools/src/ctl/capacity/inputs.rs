//! What a capacity answer is made from: the load, the machines, and what a message costs.
//!
//! Tables, here and in `costs.rs`. They give the flags, their bounds and help, the names that formulas and JSON use, and
//! where each default comes from. A figure that nobody has measured says so: it is *assumed*, not measured.

use std::ops::RangeInclusive;

use super::costs::{ASSUMED, MEASURED};

/// One number that the answer depends on.
#[derive(Debug, PartialEq)]
pub(super) struct Input {
    /// What formulas and JSON call it.
    pub(super) name: &'static str,
    /// What the command line calls it: the same, with hyphens.
    pub(super) flag: &'static str,
    pub(super) unit: &'static str,
    pub(super) default: f64,
    /// Inclusive.
    pub(super) bounds: RangeInclusive<f64>,
    pub(super) kind: Kind,
    /// What it is, for the help.
    pub(super) what: &'static str,
    /// Where the default comes from; empty for what the operator knows better.
    pub(super) source: &'static str,
}

/// Who answers for a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// What users do.
    Load,
    /// What is bought, and how full it may get.
    Machine,
    /// This project's own figure.
    Measured,
    /// Nobody has measured it: taken from what is nearest to it, on the expensive side.
    Assumed,
}

impl Kind {
    /// Over the flags in the help, and over the inputs in the answer.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Kind::Load => "Load",
            Kind::Machine => "Machines",
            Kind::Measured => "Measured costs",
            Kind::Assumed => "Assumed costs",
        }
    }

    /// In the order in which they are shown.
    pub(super) const ALL: [Kind; 4] = [Kind::Load, Kind::Machine, Kind::Measured, Kind::Assumed];
}

/// A name, as in a formula and as a flag.
pub(super) type Name = (&'static str, &'static str);
/// What it is, and where its default comes from.
pub(super) type Words = (&'static str, &'static str);

const fn of_load(
    name: Name,
    unit: &'static str,
    default: f64,
    bounds: RangeInclusive<f64>,
    what: &'static str,
) -> Input {
    input(Kind::Load, name, unit, (default, bounds), (what, ""))
}

const fn of_machine(
    name: Name,
    unit: &'static str,
    default: f64,
    bounds: RangeInclusive<f64>,
    what: &'static str,
) -> Input {
    input(Kind::Machine, name, unit, (default, bounds), (what, ""))
}

pub(super) const fn input(
    kind: Kind,
    (name, flag): Name,
    unit: &'static str,
    (default, bounds): (f64, RangeInclusive<f64>),
    (what, source): Words,
) -> Input {
    Input {
        name,
        flag,
        unit,
        default,
        bounds,
        kind,
        what,
        source,
    }
}

/// What users do.
static LOAD: [Input; 16] = [
    of_load(
        ("users", "users"),
        "users",
        1e9,
        1.0..=1e12,
        "Users that have a mailbox",
    ),
    of_load(
        ("online", "online"),
        "connections",
        2e8,
        0.0..=1e12,
        "Connections at the peak; at most as many as --users",
    ),
    of_load(
        ("messages_per_day", "messages-per-day"),
        "messages",
        1e11,
        1.0..=1e15,
        "Messages sent on an average day",
    ),
    of_load(
        ("peak_factor", "peak-factor"),
        "",
        3.0,
        1.0..=100.0,
        "Sends in the busiest second of the day over those of the average second",
    ),
    of_load(
        ("body_bytes", "body-bytes"),
        "bytes",
        100.0,
        0.0..=16_384.0,
        "Bytes of a body; longer ones than 16 KiB are refused by default",
    ),
    of_load(
        ("group_share", "group-share"),
        "",
        0.3,
        0.0..=1.0,
        "Share of the messages that go to a group",
    ),
    of_load(
        ("group_members", "group-members"),
        "members",
        20.0,
        2.0..=100_000.0,
        "Members of the group that a group message goes to, on average",
    ),
    of_load(
        ("recipients_online", "recipients-online"),
        "",
        0.5,
        0.0..=1.0,
        "Share of the recipients that are connected when a message comes",
    ),
    of_load(
        ("syncs_per_message", "syncs-per-message"),
        "",
        0.11,
        0.0..=1_000.0,
        "Syncs for each message sent: 0.11 is nine writes to one read",
    ),
    of_load(
        ("sync_rows", "sync-rows"),
        "messages",
        25.0,
        0.0..=1_000.0,
        "Messages that a sync returns",
    ),
    of_load(
        ("connects_per_day", "connects-per-day"),
        "",
        10.0,
        0.0..=10_000.0,
        "Connections that a user opens in a day",
    ),
    of_load(
        ("heartbeat_s", "heartbeat-s"),
        "s",
        240.0,
        10.0..=3_600.0,
        "Between two heartbeats of an idle connection",
    ),
    of_load(
        ("retention_days", "retention-days"),
        "days",
        30.0,
        1.0..=36_500.0,
        "Days that a message stays in the hot store",
    ),
    of_load(
        ("dedup_days", "dedup-days"),
        "days",
        7.0,
        1.0..=365.0,
        "Days that a dedup row stays: the dedup window",
    ),
    of_load(
        ("burst_factor", "burst-factor"),
        "",
        2.0,
        1.0..=100.0,
        "Simulated only: sends in a burst of half a second over those around it",
    ),
    of_load(
        ("burst_share", "burst-share"),
        "",
        0.05,
        0.0..=0.5,
        "Simulated only: share of the time that is in a burst",
    ),
];

/// What is bought, and how full it may get.
static MACHINES: [Input; 19] = [
    of_machine(
        ("replicas", "replicas"),
        "replicas",
        3.0,
        1.0..=7.0,
        "Replicas of a shard: an odd number",
    ),
    of_machine(
        ("utilisation", "utilisation"),
        "",
        0.6,
        0.05..=0.95,
        "Ceiling for CPU, memory, network and disk writes when the spare ones are down",
    ),
    of_machine(
        ("disk_fill", "disk-fill"),
        "",
        0.5,
        0.05..=0.95,
        "Share of a disk that rows may take: the greatest merge needs as much again (engine/README.md)",
    ),
    of_machine(
        ("spare_nodes", "spare-nodes"),
        "nodes",
        1.0,
        0.0..=10_000.0,
        "Store nodes that may be down at the peak; a third of all for a zone of three",
    ),
    of_machine(
        ("spare_gateways", "spare-gateways"),
        "nodes",
        1.0,
        0.0..=10_000.0,
        "Gateway nodes that may be down at the peak",
    ),
    of_machine(
        ("shard_sends_per_s", "shard-sends-per-s"),
        "sends/s",
        10_000.0,
        1.0..=40_000.0,
        "Sends that one shard takes at the peak; one was measured at 44,800",
    ),
    of_machine(
        ("replicas_per_node", "replicas-per-node"),
        "replicas",
        16.0,
        1.0..=4_096.0,
        "Replicas that a node has at least, so that the load can be spread",
    ),
    of_machine(
        ("nodes_cores", "nodes-cores"),
        "cores",
        32.0,
        1.0..=4_096.0,
        "Cores of a store node",
    ),
    of_machine(
        ("nodes_memory_gib", "nodes-memory-gib"),
        "GiB",
        128.0,
        1.0..=65_536.0,
        "Memory of a store node",
    ),
    of_machine(
        ("nodes_disk_tb", "nodes-disk-tb"),
        "TB",
        16.0,
        0.01..=10_000.0,
        "Disk of a store node, in units of 10^12 bytes",
    ),
    of_machine(
        ("nodes_write_mb_per_s", "nodes-write-mb-per-s"),
        "MB/s",
        1_000.0,
        1.0..=1_000_000.0,
        "What that disk writes in the long run, in units of 10^6 bytes",
    ),
    of_machine(
        ("nodes_network_gbit", "nodes-network-gbit"),
        "Gbit/s",
        25.0,
        0.1..=10_000.0,
        "Network of a store node, each way",
    ),
    of_machine(
        ("gateways_cores", "gateways-cores"),
        "cores",
        16.0,
        1.0..=4_096.0,
        "Cores of a gateway node",
    ),
    of_machine(
        ("gateways_memory_gib", "gateways-memory-gib"),
        "GiB",
        32.0,
        1.0..=65_536.0,
        "Memory of a gateway node",
    ),
    of_machine(
        ("gateways_network_gbit", "gateways-network-gbit"),
        "Gbit/s",
        10.0,
        0.1..=10_000.0,
        "Network of a gateway node, each way",
    ),
    of_machine(
        ("gateways_connections", "gateways-connections"),
        "connections",
        1e6,
        1.0..=1e8,
        "Connections that one gateway may hold: all of them come back at once when it dies",
    ),
    of_machine(
        ("round_trip_us", "round-trip-us"),
        "us",
        500.0,
        0.0..=1e6,
        "Round trip between any two nodes",
    ),
    of_machine(
        ("fdatasync_us", "fdatasync-us"),
        "us",
        189.5,
        1.0..=1e6,
        "One fdatasync of a page; 189.5 is disk_fdatasync_per_s of \
         tools/bench-results/send-16-shards-cross.jsonl: measure your own disk",
    ),
    of_machine(
        ("target_p95_ms", "target-p95-ms"),
        "ms",
        200.0,
        1.0..=60_000.0,
        "Simulated only: p95 that acks and deliveries have to keep",
    ),
];

/// All inputs, in the order in which they are shown.
pub(super) fn all() -> impl Iterator<Item = &'static Input> {
    LOAD.iter()
        .chain(&MACHINES)
        .chain(&MEASURED)
        .chain(&ASSUMED)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_input_has_one_name_and_a_default_within_its_bounds() {
        let mut names = BTreeSet::new();
        for input in all() {
            assert!(names.insert(input.name), "{} is there twice", input.name);
            assert_eq!(input.name.replace('_', "-"), input.flag);
            assert!(input.bounds.contains(&input.default), "{}", input.name);
        }
    }

    #[test]
    fn a_cost_says_where_it_comes_from() {
        for input in all() {
            let is_cost = matches!(input.kind, Kind::Measured | Kind::Assumed);
            assert_eq!(!input.source.is_empty(), is_cost, "{}", input.name);
        }
    }
}
