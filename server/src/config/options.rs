//! The facts about every option: the documented file, `config explain` and the bounds that are
//! checked all come from this one table.

use mailbox_engine::{ClusterOptions, GATEWAY_REFRESH_MS};

use super::facts::{Bounds, OptionFacts, address, bytes, flag, number, text};

const HOUR_MS: u64 = 3_600_000;
const GIB: u64 = 1 << 30;

/// What each section is about; in the order of the documented file.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "cluster",
        "The cluster. All nodes must have the same values here, but for `join` and `nodes`; \
         gateways use `id`, `secret_file` and `nodes`.",
    ),
    ("node", "This store node (`mailboxd server`)."),
    ("gateway", "This gateway (`mailboxd gateway`)."),
    (
        "auth",
        "Keys that users' tokens (JWT) are checked with, on nodes and gateways.",
    ),
    (
        "tls",
        "Certificates, PEM. Used by every listener and every call of this process.",
    ),
    (
        "memory",
        "Memory of a store node: one budget and how it is shared out.",
    ),
    ("storage", "Files of a store node."),
    (
        "limits",
        "Limits of the calls and streams that a store node serves.",
    ),
    (
        "placement",
        "Where replicas and leaders go. The node that leads the meta shard goes by its own values: \
         all nodes should have the same.",
    ),
    ("logging", "What is written to stderr."),
];

/// Every option, in the order of the documented file.
pub const OPTIONS: &[OptionFacts] = &[
    text(
        "cluster.id",
        "1 to 64 of a-z, 0-9, '-'",
        "Name of the cluster. Stored in every node's directory at bootstrap; never changes. \
         A node or gateway of another cluster is refused.",
    ),
    text(
        "cluster.secret_file",
        "path of a file with 16 to 1024 bytes",
        "The cluster secret: who has it may act for any user. White space at its end is ignored. \
         Keep the file readable by the process only (mode 0600).",
    ),
    number(
        "cluster.slot_count",
        (1, 16_384),
        "slots",
        "Hash buckets of owner ids. Stored at bootstrap; never changes.",
    ),
    number(
        "cluster.shards",
        (1, 4096),
        "shards",
        "Groups of slots that are replicated together, each with a leader of its own. At most one \
         a slot. Stored at bootstrap; never changes.",
    ),
    bytes(
        "cluster.body_bytes_max",
        ClusterOptions::BODY_BYTES_MAX,
        "Greatest body of one message. Media belongs into object storage and travels as a \
         reference. Replicated at bootstrap, from the first leader's configuration; a node that is \
         configured otherwise does not start.",
    ),
    number(
        "cluster.group_members_max",
        ClusterOptions::GROUP_MEMBERS_MAX,
        "members",
        "Greatest number of members of one group. Replicated at bootstrap, like body_bytes_max.",
    ),
    number(
        "cluster.user_groups_max",
        ClusterOptions::USER_GROUPS_MAX,
        "groups",
        "Greatest number of groups in one user's list, those that the user has left included. \
         Replicated at bootstrap, like body_bytes_max.",
    ),
    number(
        "cluster.user_devices_max",
        ClusterOptions::USER_DEVICES_MAX,
        "devices",
        "Greatest number of one user's devices with a cursor in one timeline. Replicated at \
         bootstrap, like body_bytes_max.",
    ),
    number(
        "cluster.dead_letters_max",
        ClusterOptions::DEAD_LETTERS_MAX,
        "letters",
        "Dead letters (refused 1:1 messages, for operators) that each slot keeps; each further one takes the place \
         of the oldest, whether or not that one still waits: letters that were requeued or dropped keep their \
         places. Replicated at bootstrap, like body_bytes_max. Not set: 1000 in a new cluster, and none are kept in \
         one that is older than dead letters. Such a cluster begins to keep them when this is set: on all nodes, and \
         not before each runs a build that knows the option, since an older one stops at what it cannot read.",
    ),
    number(
        "cluster.dedup_window_ms",
        ClusterOptions::DEDUP_WINDOW_MS,
        "ms",
        "How long a message id is remembered. A retry with an older id is refused (IdExpired), \
         never sent twice. Replicated at bootstrap, like body_bytes_max.",
    ),
    number(
        "cluster.clock_skew_max_ms",
        (1, 60_000),
        "ms",
        "How far a node's clock may be from the median of its peers' before it stops proposing.",
    ),
    number(
        "cluster.heartbeat_ms",
        (10, 10_000),
        "ms",
        "Time between two signs of life that a node gives to each other one, for all its shards together. Less than \
         a third of election_min_ms.",
    ),
    number(
        "cluster.election_min_ms",
        (50, 60_000),
        "ms",
        "Least time before a node stands again for a shard whose last election came to nothing.",
    ),
    number(
        "cluster.election_max_ms",
        (100, 120_000),
        "ms",
        "Greatest such time, how long a silent node counts as alive, and how long a leader trusts its last \
         majority. More than election_min_ms.",
    ),
    text(
        "cluster.join",
        "list of \"host:port\"",
        "For a node that is added to a cluster: nodes of that cluster, which are asked for the others. \
         Without cluster.nodes; empty on the nodes that the cluster began with, and on gateways. Not \
         asked any more once the node knows the cluster.",
    ),
    text(
        "cluster.nodes",
        "node id = \"host:port\"; one or three nodes, of a gateway any number",
        "The store nodes that the cluster begins with, and the addresses under which clients and the \
         other nodes reach them. A change after bootstrap has no effect on who votes.",
    ),
    number(
        "node.id",
        (1, 1 << 32),
        "node ids",
        "Which of cluster.nodes this one is, or with cluster.join an id that no node of the cluster \
         has ever had. Stored in the node's directory; never changes.",
    ),
    text(
        "node.dir",
        "path",
        "Where the node keeps everything. One process at a time.",
    ),
    address(
        "node.listen",
        "Where the node serves gRPC: clients, gateways and the other nodes. Port 0 takes a free \
         one.",
    ),
    text(
        "node.address",
        "host:port, or empty",
        "Under which clients and the other nodes reach this node. Empty: as in cluster.nodes, or if it \
         is not there, node.listen.",
    ),
    text(
        "node.region",
        "at most 64 bytes",
        "Region of this node, for placement.",
    ),
    text(
        "node.zone",
        "at most 64 bytes",
        "Zone of this node in its region: what fails together. Replicas of a shard are put into \
         different zones where there are enough.",
    ),
    number(
        "node.weight",
        (0, 1_000_000),
        "shares",
        "This node's share of replicas in comparison with the others'. With 0 it is given none.",
    ),
    text(
        "node.metrics_listen",
        "host:port, or empty for none",
        "Where the node serves /metrics, /healthz and /readyz over plain HTTP.",
    ),
    flag(
        "node.allow_plaintext",
        "Serve without TLS on addresses other than loopback. Everything, the cluster secret \
         included, is then readable on the network.",
    ),
    flag(
        "node.lease_reads",
        "Linearizable reads without asking a majority each time. This node promises the leaders it follows to \
         help no other to lead for cluster.election_max_ms, and reads by such promises where it leads. The \
         price: after each start it takes no part in elections for that time and a tenth more, so all nodes at \
         once come back so much later; cluster.election_max_ms is at most 10000 then. Not for machines that are \
         suspended or moved while they run: their clocks stand still meanwhile, and a read may then be stale. \
         Nodes may differ: whoever promises nothing is not counted on.",
    ),
    number(
        "node.connections_max",
        (8, 100_000),
        "connections",
        "Greatest number of gRPC connections; one file descriptor each. More wait in the \
         system's accept queue.",
    ),
    number(
        "node.disk_free_min_percent",
        (0, 50),
        "percent",
        "Below this share of free space (or disk_free_min_bytes, whichever is more) sends are \
         refused with DiskFull; reads go on.",
    ),
    bytes(
        "node.disk_free_min_bytes",
        (0, 16 * 1024 * GIB),
        "See disk_free_min_percent.",
    ),
    text(
        "gateway.id",
        "1 to 64 of a-z, 0-9, '-', '.', or empty",
        "Under which the cluster registers this gateway; no other one may have it. Empty: one that is random at \
         each start.",
    ),
    address(
        "gateway.listen",
        "Where the gateway serves HTTP and WebSocket. Port 0 takes a free one.",
    ),
    text(
        "gateway.address",
        "host:port, or empty; with ws:// or wss:// before it if something in front of the gateway speaks TLS, or \
         ends it",
        "Under which clients reach this gateway, for the registry. Empty: where it listens.",
    ),
    text(
        "gateway.region",
        "at most 64 bytes",
        "Region of this gateway, for the registry.",
    ),
    text(
        "gateway.zone",
        "at most 64 bytes",
        "Zone of this gateway, for the registry.",
    ),
    flag(
        "gateway.allow_plaintext",
        "Serve without TLS on addresses other than loopback. Tokens and messages are then \
         readable on the network.",
    ),
    number(
        "gateway.connections_max",
        (1, 1_000_000),
        "connections",
        "Greatest number of sockets; one file descriptor each.",
    ),
    number(
        "gateway.refresh_ms",
        (GATEWAY_REFRESH_MS.0 as u64, GATEWAY_REFRESH_MS.1 as u64),
        "milliseconds",
        "About how often the gateway tells the cluster that it is there. The cluster calls it silent after three \
         times as long, and forgets it after sixty.",
    ),
    text(
        "auth.hs256_secret_file",
        "path of a file with at least 32 bytes, or empty for none",
        "Secret that HS256 tokens are signed with.",
    ),
    text(
        "auth.ed25519_public_key_file",
        "path of a PEM file, or empty for none",
        "Public key that EdDSA tokens are checked with.",
    ),
    text(
        "tls.cert_file",
        "path of a PEM file, or empty for none",
        "Certificate chain of this process's listeners. Goes with key_file.",
    ),
    text(
        "tls.key_file",
        "path of a PEM file, or empty for none",
        "Private key of cert_file.",
    ),
    text(
        "tls.ca_file",
        "path of a PEM file, or empty for plaintext",
        "Certificates that this process trusts when it calls store nodes. If set, all calls to \
         nodes use TLS.",
    ),
    text(
        "tls.domain",
        "host name, or empty for the address's own",
        "Name that the nodes' certificates are checked against.",
    ),
    bytes(
        "memory.budget_bytes",
        (64 << 20, 1024 * GIB),
        "Memory for memtables, caches and queues together. The process needs some 200 MiB \
         besides.",
    ),
    number(
        "memory.memtables_percent",
        (10, 80),
        "percent",
        "Share of applied state that is not yet in files: active and frozen memtables.",
    ),
    number(
        "memory.block_cache_percent",
        (5, 80),
        "percent",
        "Share of RocksDB's block cache.",
    ),
    number(
        "memory.tails_percent",
        (1, 80),
        "percent",
        "Share of the newest rows of busy timelines, kept for reads and subscriptions.",
    ),
    number(
        "memory.queues_percent",
        (5, 80),
        "percent",
        "Share of proposals on their way. Over it, sends are refused with Busy.",
    ),
    number(
        "memory.log_percent",
        (5, 80),
        "percent",
        "Share of the log: half for its write buffers (each also sizes a file on disk), half for \
         recent entries that followers still need. The five shares together are at most 100.",
    ),
    number(
        "storage.max_open_files",
        (64, 1_000_000),
        "files",
        "Greatest number of table files that are open at once; one file descriptor each.",
    ),
    number(
        "storage.level0_files_max",
        (4, 256),
        "files",
        "With more level-0 files than this, apply waits for compaction.",
    ),
    number(
        "storage.flush_age_ms",
        (1000, HOUR_MS),
        "ms",
        "A memtable older than this is flushed though it is not full; bounds the log that a \
         restart replays.",
    ),
    number(
        "storage.log_entries_kept",
        (0, 10_000_000),
        "entries",
        "Entries that each shard keeps in the log behind what is in files, for replicas that lag; fewer if they \
         weigh much beside the rows. A replica that lags by more gets a snapshot.",
    ),
    bytes(
        "storage.snapshot_bytes_per_s",
        (1 << 20, 10 << 30),
        "Bytes a second of one snapshot, or copy of a slot, that goes to another node. Less is gentler to those who \
         chat meanwhile, and takes longer.",
    ),
    number(
        "limits.submit_frames_in_flight_max",
        (1, 4096),
        "frames",
        "Unanswered frames of one Submit stream; more are not read from the socket.",
    ),
    number(
        "limits.submit_calls_per_frame_max",
        (1, 65_536),
        "calls",
        "Sends in one Submit frame; a greater frame ends the stream with LimitExceeded.",
    ),
    number(
        "limits.sync_messages_default",
        (1, 100_000),
        "messages",
        "Messages in one Sync answer when the caller names no limit.",
    ),
    number(
        "limits.sync_messages_max",
        (1, 100_000),
        "messages",
        "Greatest number of messages in one Sync answer; a greater limit is cut to it.",
    ),
    bytes(
        "limits.sync_bytes_max",
        (64 << 10, 8 << 20),
        "Greatest size of the messages in one Sync answer, one message more than none always.",
    ),
    number(
        "limits.timelines_per_call_max",
        (1, 1_000_000),
        "timelines",
        "Timelines in one Sync or Heads call; more are refused with LimitExceeded.",
    ),
    number(
        "limits.subscriptions_per_stream_max",
        (1, 10_000_000),
        "subscriptions",
        "Subscriptions on one Subscribe stream; more are ended with LimitExceeded.",
    ),
    bytes(
        "limits.frame_bytes_max",
        (1 << 20, 64 << 20),
        "Greatest gRPC message that is read.",
    ),
    bytes(
        "limits.outbox_bytes_max",
        (1 << 20, 64 * GIB),
        "Messages of one shard that are on their way to other shards. Over it, calls that would \
         add to them are refused with Busy.",
    ),
    flag(
        "placement.enabled",
        "Move replicas and leaders by itself. If not, what has begun is still carried on: moves by \
         hand, and the emptying of nodes that are drained.",
    ),
    number(
        "placement.replication",
        (3, 7),
        "replicas",
        "Voters that a shard is to have, as far as there are nodes. An odd number; with 1 no replica \
         could be moved, since nobody else could lead meanwhile.",
    ),
    OptionFacts {
        path: "placement.spread",
        bounds: Bounds::OneOf(&["zones", "regions"]),
        doc: "What a shard's replicas are spread over: zones whatever their regions, or regions first.",
    },
    number(
        "placement.dead_after_ms",
        (1000, 7 * 24 * HOUR_MS),
        "ms",
        "After so long out of reach a node counts as dead, and what it holds is made anew \
         elsewhere. More than a reboot takes. Counted anew when another node leads the meta shard.",
    ),
    number(
        "placement.settle_ms",
        (0, 600_000),
        "ms",
        "So long after its start a node neither gets nor loses leaders to make them even, or for as long \
         as others were up before it, if less: nodes restarted in turn would pass them on and on.",
    ),
    number(
        "placement.lag_max",
        (1, 1_000_000),
        "entries",
        "A new replica that is at most this far behind may vote.",
    ),
    number(
        "placement.moves_max",
        (1, 1000),
        "moves",
        "Replicas that are on the move at once.",
    ),
    number(
        "placement.node_moves_max",
        (1, 100),
        "moves",
        "Moves that one node takes part in at once, as the one that sends or receives; two at \
         least where voters are lost or missing. More is faster, and those who chat meanwhile feel it more.",
    ),
    number(
        "placement.node_replicas_max",
        (1, 100_000),
        "replicas",
        "Replicas that one node may hold.",
    ),
    number(
        "placement.transfers_max",
        (1, 1000),
        "transfers",
        "Leaderships that are handed over at once; and never more than one for 64 shards, or one if there are fewer: \
         a shard serves nobody while it is.",
    ),
    number(
        "placement.pause_ms",
        (50, 60_000),
        "ms",
        "Pause between two rounds of looking at all nodes. A step that another may follow makes it shorter, but not that \
         between two rounds in which leaderships are handed over.",
    ),
    bytes(
        "placement.split_bytes",
        (0, 1024 * 1024 * GIB),
        "A shard whose flushed rows take about more in files is split by itself, so that both parts take about the same; \
         rows of deduplication do not count. 0: none is for that. At least 64 KiB else. A single slot is never split.",
    ),
    number(
        "placement.split_writes_per_second",
        (0, 1_000_000_000),
        "rows a second",
        "A shard with more rows appended per second, sends and deliveries alike, is split by itself, so that both parts \
         have about as many. 0: none is for that.",
    ),
    number(
        "placement.split_pause_ms",
        (100, 24 * HOUR_MS),
        "ms",
        "Least time between two splits that begin by themselves. A shard must be over a limit in six looks meanwhile.",
    ),
    number(
        "placement.shards_max",
        (1, 65_535),
        "shards",
        "With so many shards none is split by itself. At least cluster.shards, if any is to be.",
    ),
    OptionFacts {
        path: "logging.format",
        bounds: Bounds::OneOf(&["text", "json"]),
        doc: "Log lines for people, or one JSON object a line.",
    },
    text(
        "logging.filter",
        "level, or target=level list",
        "What is logged: error, warn, info, debug, trace; per module as in \
         \"info,mailbox_raft=debug\".",
    ),
];
