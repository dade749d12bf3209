//! What a message and a connection cost: this project's own figures, and what stands in where there is none.

use std::ops::RangeInclusive;

use super::inputs::{Input, Kind, Name, Words, input};

const fn measured(
    name: Name,
    unit: &'static str,
    default: f64,
    bounds: RangeInclusive<f64>,
    words: Words,
) -> Input {
    input(Kind::Measured, name, unit, (default, bounds), words)
}

const fn assumed(
    name: Name,
    unit: &'static str,
    default: f64,
    bounds: RangeInclusive<f64>,
    words: Words,
) -> Input {
    input(Kind::Assumed, name, unit, (default, bounds), words)
}

/// CPU of one message or frame: no bound that a figure of this century could meet.
const CPU_US: RangeInclusive<f64> = 0.0..=100_000.0;

/// This project's own figures.
pub(super) static MEASURED: [Input; 15] = [
    measured(
        ("send_cpu_us", "send-cpu-us"),
        "us",
        12.62,
        CPU_US,
        (
            "CPU of a send's leader, without other replicas",
            "tools/bench-results/send-1-node.jsonl: server_cpu_us_per_send, median of three",
        ),
    ),
    measured(
        ("replica_cpu_us", "replica-cpu-us"),
        "us",
        11.55,
        CPU_US,
        (
            "CPU of a send for each further replica, the leader's part of it included",
            "tools/bench-results/send-3-nodes.jsonl: (35.71, median of three, - 12.62) / 2",
        ),
    ),
    measured(
        ("shards_cpu_us", "shards-cpu-us"),
        "us",
        21.41,
        CPU_US,
        (
            "CPU of a send that many shards add on each replica: entries are smaller",
            "tools/bench-results/send-16-shards-same.jsonl, closed loop: (99.95 - 35.71) / 3",
        ),
    ),
    measured(
        ("lane_cpu_us", "lane-cpu-us"),
        "us",
        9.12,
        CPU_US,
        (
            "CPU of a send that a lane to another shard adds on each replica",
            "tools/bench-results/send-16-shards-cross.jsonl, closed loop: (127.31 - 99.95) / 3",
        ),
    ),
    measured(
        ("apply_us", "apply-us"),
        "us",
        4.1,
        CPU_US,
        (
            "Time of a command in the applying thread, of which a shard has one",
            "engine/README.md: 10 M messages, 1 M users; both rows of a message, and making it",
        ),
    ),
    measured(
        ("write_amplification", "write-amplification"),
        "",
        3.91,
        1.0..=1_000.0,
        (
            "Bytes written by a replica (log, flush, merges) over those of the rows",
            "tools/bench-results/send-16-shards-cross.jsonl, closed loop: bytes_per_send 4,770 / 3 replicas / 407 \
             bytes of rows; of 20 s, and longer runs merge more: benches/apply prints it for 10 M messages",
        ),
    ),
    measured(
        ("stored_over_rows", "stored-over-rows"),
        "",
        1.18,
        1.0..=100.0,
        (
            "Bytes on disk over those of the rows",
            "tools/bench-results/send-1-node.jsonl: stored_bytes_per_send 479, median of three, / 407 bytes of \
             rows; what the log had not purged yet is in it",
        ),
    ),
    measured(
        ("idle_node_mb", "idle-node-mb"),
        "MB",
        78.4,
        0.0..=1e6,
        (
            "Memory of a store node at rest",
            "tools/bench-results/idle-256-shards.json: rss_mb_per_node, the greatest",
        ),
    ),
    measured(
        ("idle_replica_cpu_us", "idle-replica-cpu-us"),
        "us/s",
        50.3,
        0.0..=1e6,
        (
            "CPU of a replica at rest, in a second",
            "tools/bench-results/idle-256-shards.json: cpu_us_per_replica_s",
        ),
    ),
    measured(
        ("log_share_1", "log-share-1"),
        "",
        0.88,
        0.01..=1.0,
        (
            "Synced writes of the shared log over bare fdatasyncs, one entry each",
            "raft/benches/log.rs, when the log was designed",
        ),
    ),
    measured(
        ("log_share_64", "log-share-64"),
        "",
        0.51,
        0.01..=1.0,
        (
            "The same with 64 entries each; at most --log-share-1",
            "raft/benches/log.rs, when the log was designed",
        ),
    ),
    measured(
        ("connection_kib", "connection-kib"),
        "KiB",
        4.27,
        0.0..=10_000.0,
        (
            "Memory of the gateway for an idle TLS connection",
            "a prototype of the gateway's connections, 19,000 of them on two cores",
        ),
    ),
    measured(
        ("connection_kernel_kib", "connection-kernel-kib"),
        "KiB",
        4.4,
        0.0..=10_000.0,
        (
            "Memory of the kernel for it",
            "the same prototype, from the kernel's slabs",
        ),
    ),
    measured(
        ("handshake_cpu_us", "handshake-cpu-us"),
        "us",
        147.0,
        CPU_US,
        (
            "CPU of a full TLS 1.3 handshake, accept included",
            "the same prototype: 127 to 147, ECDSA P-256",
        ),
    ),
    measured(
        ("push_cpu_us", "push-cpu-us"),
        "us",
        6.0,
        CPU_US,
        (
            "CPU of the gateway for a message pushed alone over TLS",
            "the same prototype, 200 bytes; 0.85 when eight leave together",
        ),
    ),
];

/// What nobody has measured.
pub(super) static ASSUMED: [Input; 8] = [
    assumed(
        ("frame_cpu_us", "frame-cpu-us"),
        "us",
        12.0,
        CPU_US,
        (
            "CPU of the gateway for a client's frame and the answer to it",
            "a heartbeat echoed over TLS by the prototype: 8.5 to 12",
        ),
    ),
    assumed(
        ("stream_cpu_us", "stream-cpu-us"),
        "us",
        0.6,
        CPU_US,
        (
            "CPU of either side for a message of a stream between store and gateway",
            "a bare gRPC stream: 0.4 to 0.6",
        ),
    ),
    assumed(
        ("sync_cpu_us", "sync-cpu-us"),
        "us",
        57.0,
        CPU_US,
        (
            "CPU of the store for a sync",
            "a bare unary gRPC call, 28 to 42, and 25 messages of a stream, 0.6 each",
        ),
    ),
    assumed(
        ("gateway_sync_cpu_us", "gateway-sync-cpu-us"),
        "us",
        20.0,
        CPU_US,
        (
            "CPU of the gateway for a sync",
            "a frame and its answer, 12, and 25 messages that leave together, 0.32 each",
        ),
    ),
    assumed(
        ("propose_us", "propose-us"),
        "us",
        2.0,
        CPU_US,
        (
            "Time of a command in the proposer, of which a shard has one",
            "half of what apply takes for it",
        ),
    ),
    assumed(
        ("hop_bytes", "hop-bytes"),
        "bytes",
        100.0,
        0.0..=10_000.0,
        (
            "What a message takes on the network beside its body, on each hop",
            "a command has 51 bytes beside its body; as much again for framing, TLS and TCP",
        ),
    ),
    assumed(
        ("head_bytes", "head-bytes"),
        "bytes",
        48.0,
        0.0..=10_000.0,
        (
            "Memory for the head of a timeline, on each replica",
            "engine/src/heads.rs: 24 bytes in a cache that is half full",
        ),
    ),
    assumed(
        ("subscription_bytes", "subscription-bytes"),
        "bytes",
        200.0,
        0.0..=100_000.0,
        (
            "Memory of the store for a connected user's subscription",
            "a timeline, a gateway and a position, in a map",
        ),
    ),
];
