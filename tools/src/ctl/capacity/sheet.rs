//! The formulas, in the order in which they are worked: each is over inputs and the lines above it.
//!
//! Rates are those of the busiest second. The ceiling holds for what is left when the spare nodes are down. Where a
//! formula has to choose, it takes the more expensive way: every 1:1 message that can cross shards does, every push
//! leaves alone.

/// One line of the sheet: name, unit, formula, and why it is so.
pub(super) type Line = (&'static str, &'static str, &'static str, &'static str);

const LOAD: &[Line] = &[
    (
        "peak_sends_per_s",
        "/s",
        "messages_per_day / 86400 * peak_factor",
        "sends in the busiest second",
    ),
    (
        "direct_per_s",
        "/s",
        "peak_sends_per_s * (1 - group_share)",
        "of them 1:1",
    ),
    (
        "group_per_s",
        "/s",
        "peak_sends_per_s * group_share",
        "of them to a group",
    ),
    (
        "online_members",
        "members",
        "group_members * recipients_online",
        "to whom a group message is pushed",
    ),
    (
        "pushes_per_s",
        "/s",
        "direct_per_s * recipients_online + group_per_s * online_members",
        "messages that gateways push",
    ),
    (
        "syncs_per_s",
        "/s",
        "peak_sends_per_s * syncs_per_message",
        "syncs of devices",
    ),
    (
        "connects_per_s",
        "/s",
        "users * connects_per_day / 86400 * peak_factor",
        "connections opened",
    ),
    (
        "message_wire_bytes",
        "bytes",
        "body_bytes + hop_bytes",
        "a message on the network, on each hop",
    ),
];

const GATEWAYS: &[Line] = &[
    (
        "gateway_send_cores",
        "cores",
        "peak_sends_per_s * frame_cpu_us / 1e6",
        "sends and their acks",
    ),
    (
        "gateway_push_cores",
        "cores",
        "pushes_per_s * (push_cpu_us + stream_cpu_us) / 1e6",
        "messages from the store to sockets",
    ),
    (
        "gateway_sync_cores",
        "cores",
        "syncs_per_s * gateway_sync_cpu_us / 1e6",
        "syncs",
    ),
    (
        "gateway_idle_cores",
        "cores",
        "(online / heartbeat_s * frame_cpu_us + connects_per_s * handshake_cpu_us) / 1e6",
        "heartbeats and handshakes",
    ),
    (
        "gateway_cores",
        "cores",
        "gateway_send_cores + gateway_push_cores + gateway_sync_cores + gateway_idle_cores",
        "all of them",
    ),
    (
        "gateway_memory_bytes",
        "bytes",
        "online * (connection_kib + connection_kernel_kib) * 1024",
        "of all connections",
    ),
    (
        "gateway_out_bytes_per_s",
        "bytes/s",
        "(peak_sends_per_s + pushes_per_s + syncs_per_s * sync_rows) * message_wire_bytes + peak_sends_per_s * hop_bytes",
        "sends to the store; pushes, synced messages and acks to phones",
    ),
    (
        "gateways_by_cpu",
        "nodes",
        "ceil(gateway_cores / (gateways_cores * utilisation))",
        "",
    ),
    (
        "gateways_by_memory",
        "nodes",
        "ceil(gateway_memory_bytes / (gateways_memory_gib * 1073741824 * utilisation))",
        "",
    ),
    (
        "gateways_by_network",
        "nodes",
        "ceil(gateway_out_bytes_per_s * 8 / (gateways_network_gbit * 1e9 * utilisation))",
        "",
    ),
    (
        "gateways_by_connections",
        "nodes",
        "ceil(online / gateways_connections)",
        "so many lose their gateway at once",
    ),
    (
        "gateways_needed",
        "nodes",
        "max(1, gateways_by_cpu, gateways_by_memory, gateways_by_network, gateways_by_connections)",
        "what is needed most decides",
    ),
    (
        "gateways",
        "nodes",
        "gateways_needed + spare_gateways",
        "GATEWAY NODES",
    ),
    (
        "gateway_touches",
        "nodes",
        "gateways * (1 - (1 - 1 / gateways) ^ online_members)",
        "gateways that a group message goes to: members are spread at random",
    ),
];

const STORE: &[Line] = &[
    (
        "shards_by_rate",
        "shards",
        "ceil(peak_sends_per_s / shard_sends_per_s)",
        "",
    ),
    (
        "cross_share",
        "",
        "1 - 1 / max(shards_by_rate, replicas_per_node)",
        "of the 1:1 messages: users of a pair are in any two shards",
    ),
    (
        "direct_cpu_us",
        "us",
        "send_cpu_us + (replicas - 1) * replica_cpu_us + replicas * cross_share * (shards_cpu_us + lane_cpu_us)",
        "CPU of a 1:1 message, all replicas of both shards",
    ),
    (
        "group_cpu_us",
        "us",
        "send_cpu_us + (replicas - 1) * replica_cpu_us + replicas * cross_share * shards_cpu_us",
        "CPU of a group message: as a 1:1 message without a lane, though it is one row less",
    ),
    (
        "send_cores",
        "cores",
        "(direct_per_s * direct_cpu_us + group_per_s * group_cpu_us) / 1e6",
        "sends",
    ),
    (
        "stream_rows_per_s",
        "/s",
        "direct_per_s * recipients_online + group_per_s * gateway_touches",
        "messages that go to gateways: once to each that has a recipient",
    ),
    (
        "read_cores",
        "cores",
        "(stream_rows_per_s * stream_cpu_us + syncs_per_s * sync_cpu_us) / 1e6",
        "subscriptions and syncs",
    ),
    (
        "store_cores",
        "cores",
        "send_cores + read_cores",
        "all of them",
    ),
    (
        "nodes_by_cpu",
        "nodes",
        "ceil(store_cores / (nodes_cores * utilisation))",
        "",
    ),
];

const DISK: &[Line] = &[
    (
        "row_bytes",
        "bytes",
        "body_bytes + 70",
        "a row's key is 23 bytes, header and crc are 47 (engine/src/row.rs)",
    ),
    (
        "dedup_row_bytes",
        "bytes",
        "67",
        "a dedup row's key is 42 bytes, its value 25",
    ),
    (
        "message_bytes",
        "bytes",
        "row_bytes * (2 - group_share)",
        "a 1:1 message is in two mailboxes, a group message in one timeline",
    ),
    (
        "stored_bytes",
        "bytes",
        "messages_per_day * (message_bytes * retention_days + dedup_row_bytes * dedup_days) * stored_over_rows * replicas",
        "all nodes",
    ),
    (
        "nodes_by_disk",
        "nodes",
        "ceil(stored_bytes / (nodes_disk_tb * 1e12 * disk_fill))",
        "",
    ),
    (
        "written_bytes_per_s",
        "bytes/s",
        "peak_sends_per_s * (message_bytes + dedup_row_bytes) * write_amplification * replicas",
        "log, flush and merges, all nodes",
    ),
    (
        "nodes_by_writes",
        "nodes",
        "ceil(written_bytes_per_s / (nodes_write_mb_per_s * 1e6 * utilisation))",
        "",
    ),
];

const NETWORK: &[Line] = &[
    (
        "replicated_bytes_per_s",
        "bytes/s",
        "(direct_per_s * (1 + cross_share) + group_per_s) * message_wire_bytes * (replicas - 1)",
        "leaders to followers; a message that crosses is in an entry of either shard",
    ),
    (
        "lane_bytes_per_s",
        "bytes/s",
        "direct_per_s * cross_share * message_wire_bytes",
        "between shards",
    ),
    (
        "read_bytes_per_s",
        "bytes/s",
        "(stream_rows_per_s + syncs_per_s * sync_rows) * message_wire_bytes",
        "to gateways",
    ),
    (
        "store_out_bytes_per_s",
        "bytes/s",
        "replicated_bytes_per_s + lane_bytes_per_s + read_bytes_per_s + peak_sends_per_s * hop_bytes",
        "with the acks, all nodes",
    ),
    (
        "store_in_bytes_per_s",
        "bytes/s",
        "replicated_bytes_per_s + lane_bytes_per_s + peak_sends_per_s * message_wire_bytes",
        "with the sends, all nodes",
    ),
    (
        "nodes_by_network",
        "nodes",
        "ceil(max(store_out_bytes_per_s, store_in_bytes_per_s) * 8 / (nodes_network_gbit * 1e9 * utilisation))",
        "",
    ),
];

const MEMORY: &[Line] = &[
    (
        "node_fixed_bytes",
        "bytes",
        "idle_node_mb * 1e6 + (2 * 256 + 64 + 128 + 16 * replicas_per_node) * 1048576",
        "by the options' defaults: memtables up to twice their budget, block cache, the log's memtables and cache; a tail cache for each replica",
    ),
    (
        "node_room_bytes",
        "bytes",
        "nodes_memory_gib * 1073741824 * utilisation - node_fixed_bytes",
        "what a node has left for timelines; raise --nodes-memory-gib if it is nothing",
    ),
    (
        "timeline_bytes",
        "bytes",
        "users * replicas * head_bytes + online * subscription_bytes",
        "all heads and subscriptions, all nodes",
    ),
    (
        "nodes_by_memory",
        "nodes",
        "ceil(timeline_bytes / node_room_bytes)",
        "",
    ),
];

const NODES: &[Line] = &[
    (
        "nodes_needed",
        "nodes",
        "max(nodes_by_cpu, nodes_by_disk, nodes_by_writes, nodes_by_network, nodes_by_memory)",
        "what is needed most decides",
    ),
    (
        "nodes",
        "nodes",
        "max(replicas, nodes_needed + spare_nodes)",
        "STORE NODES",
    ),
    (
        "nodes_left",
        "nodes",
        "nodes - spare_nodes",
        "when the spare ones are down",
    ),
    (
        "shards",
        "shards",
        "max(shards_by_rate, ceil(nodes * replicas_per_node / replicas))",
        "SHARDS: cluster.slots of a new cluster has to be at least as many",
    ),
    (
        "node_replicas",
        "replicas",
        "shards * replicas / nodes_left",
        "on each node",
    ),
];

const EACH_NODE: &[Line] = &[
    (
        "node_cpu_share",
        "",
        "store_cores / (nodes_left * nodes_cores)",
        "of a store node's CPU",
    ),
    (
        "node_idle_share",
        "",
        "node_replicas * idle_replica_cpu_us / 1e6 / nodes_cores",
        "what its replicas take beside, whatever they do",
    ),
    (
        "node_disk_bytes",
        "bytes",
        "stored_bytes / nodes_left",
        "rows on a store node",
    ),
    (
        "node_disk_share",
        "",
        "node_disk_bytes / (nodes_disk_tb * 1e12)",
        "of its disk",
    ),
    (
        "node_write_bytes_per_s",
        "bytes/s",
        "written_bytes_per_s / nodes_left",
        "to its disk",
    ),
    (
        "node_out_bytes_per_s",
        "bytes/s",
        "store_out_bytes_per_s / nodes_left",
        "from it",
    ),
    (
        "node_in_bytes_per_s",
        "bytes/s",
        "store_in_bytes_per_s / nodes_left",
        "to it",
    ),
    (
        "node_memory_bytes",
        "bytes",
        "node_fixed_bytes + timeline_bytes / nodes_left + max(0, node_replicas - replicas_per_node) * 16 * 1048576",
        "",
    ),
    (
        "node_memory_share",
        "",
        "node_memory_bytes / (nodes_memory_gib * 1073741824)",
        "of its memory",
    ),
    (
        "gateway_cpu_share",
        "",
        "gateway_cores / (gateways_needed * gateways_cores)",
        "of a gateway's CPU",
    ),
    (
        "gateway_connections",
        "connections",
        "online / gateways_needed",
        "of a gateway",
    ),
    (
        "gateway_node_bytes",
        "bytes",
        "gateway_memory_bytes / gateways_needed",
        "memory of its connections",
    ),
    (
        "gateway_node_out_bytes_per_s",
        "bytes/s",
        "gateway_out_bytes_per_s / gateways_needed",
        "from it",
    ),
    (
        "gateway_reconnect_s",
        "s",
        "gateway_connections * handshake_cpu_us / 1e6 / (max(1, gateways - 1) * gateways_cores * (1 - gateway_cpu_share))",
        "what the others need at least to take the connections of one that died",
    ),
];

const QUEUES: &[Line] = &[
    (
        "shard_sends",
        "/s",
        "peak_sends_per_s / shards",
        "sends of a shard",
    ),
    (
        "shard_commands",
        "/s",
        "(direct_per_s * (1 + cross_share) + group_per_s) / shards",
        "its commands: sends, and deliveries of lanes",
    ),
    (
        "apply_share",
        "",
        "shard_commands * apply_us / 1e6",
        "of the time of its applying thread",
    ),
    (
        "entry_commands",
        "commands",
        "max(1, min(32, 32768 / (body_bytes + 51)))",
        "what is worth an entry, 32 commands or 32 KiB (raft/src/proposer.rs); less waits for a tick",
    ),
    (
        "log_sync_us",
        "us",
        "fdatasync_us / log_share_1",
        "a synced write of the log",
    ),
    (
        "log_entry_us",
        "us",
        "fdatasync_us * (1 / log_share_64 - 1 / log_share_1) / 63",
        "and what each entry in it adds",
    ),
    (
        "flight_us",
        "us",
        "round_trip_us + 1.5 * (log_sync_us + log_entry_us) + apply_us",
        "what an entry takes: to a follower and back, half a sync and a whole one, apply",
    ),
    (
        "tick_us",
        "us",
        "min(16000, 4 * flight_us)",
        "small entries of a node leave together, every four to eight of these, at most 16 ms (raft/src/entry_tick.rs)",
    ),
    (
        "shard_entries_per_s",
        "/s",
        "max(shard_commands / entry_commands, min(shard_commands, 1e6 / tick_us))",
        "its entries",
    ),
    (
        "node_entries_per_s",
        "/s",
        "shard_entries_per_s * node_replicas",
        "that the shared log of a node writes",
    ),
    (
        "log_share_used",
        "",
        "node_entries_per_s * log_entry_us / 1e6",
        "of the log writer's time, whatever the syncs take",
    ),
    (
        "fsyncs_per_s",
        "/s",
        "min(node_entries_per_s, (1 - min(1, log_share_used)) * 1e6 / log_sync_us)",
        "of a node: one for each entry, or as many as there is time for",
    ),
    (
        "entries_per_sync",
        "entries",
        "max(1, node_entries_per_s / max(fsyncs_per_s, 1))",
        "what waits for a sync goes with the next one together",
    ),
    (
        "batch_sync_us",
        "us",
        "log_sync_us + entries_per_sync * log_entry_us",
        "until such a sync is through",
    ),
    (
        "entry_apply_us",
        "us",
        "max(1, shard_commands / max(shard_entries_per_s, 1)) * apply_us",
        "until an entry is applied",
    ),
    (
        "apply_wait_us",
        "us",
        "apply_share * entry_apply_us / (2 * max(1 - apply_share, 0.001))",
        "M/D/1: before that",
    ),
    (
        "entry_wait_us",
        "us",
        "min(entry_commands * 1e6 / 2 / max(shard_commands, 1), tick_us / 2)",
        "half of what the commands of an entry take to come, at most half a tick",
    ),
    (
        "ack_us",
        "us",
        "frame_cpu_us + 2 * round_trip_us + entry_wait_us + 1.5 * batch_sync_us + apply_wait_us + entry_apply_us",
        "mean, by hand: gateway, both round trips, entry, half a sync and a whole one, apply",
    ),
];

/// In the order in which they are worked.
pub(super) const SHEET: [(&str, &[Line]); 9] = [
    ("Load at the peak", LOAD),
    ("Gateways", GATEWAYS),
    ("Store: CPU", STORE),
    ("Store: disk", DISK),
    ("Store: network", NETWORK),
    ("Store: memory", MEMORY),
    ("Store: nodes", NODES),
    ("Each node, when the spare ones are down", EACH_NODE),
    ("Queues", QUEUES),
];

/// What has to hold beside: a line, what it may come to, and what to do if it is more.
pub(super) const CHECKS: [(&str, &str, &str); 8] = [
    ("node_cpu_share", "utilisation", "raise --spare-nodes"),
    (
        "node_idle_share",
        "0.05",
        "replicas take CPU at rest, too: lower --replicas-per-node",
    ),
    (
        "node_disk_share",
        "disk_fill",
        "raise --spare-nodes or --nodes-disk-tb",
    ),
    (
        "node_memory_share",
        "utilisation",
        "raise --nodes-memory-gib or --shard-sends-per-s",
    ),
    ("gateway_cpu_share", "utilisation", "raise --gateways-cores"),
    (
        "apply_share",
        "utilisation",
        "a shard has one applying thread: lower --shard-sends-per-s",
    ),
    (
        "log_share_used",
        "utilisation",
        "a node has one log: raise --spare-nodes, lower --replicas-per-node, or take a disk with a lower --fdatasync-us",
    ),
    (
        "shards",
        "65535",
        "there are at most so many slots: raise --shard-sends-per-s or lower --replicas-per-node",
    ),
];
