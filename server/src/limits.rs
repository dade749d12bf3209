//! File descriptors and memory: what this process may use, and whether the configuration fits.

use crate::config::Config;

/// Descriptors for the log's files, listeners, the runtime, stdio and the process's own files.
const RESERVED_FILES: u64 = 256;
/// Connections that a pair of nodes holds: control, append, snapshot, in both directions.
const FILES_PER_PEER: u64 = 6;
/// Connections that a gateway holds to each store node.
const FILES_PER_STORE: u64 = 4;

/// Why a configuration does not fit this machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limit on open files could not be read or raised.
    #[error("raise the limit on open files: {0}")]
    Raise(std::io::Error),
    /// More descriptors are promised than the system gives.
    #[error(
        "config: {option} = {value}: with {rest} other files {needed} file descriptors are needed, \
         but the hard limit is {limit}; lower the option or raise the limit (ulimit -Hn)"
    )]
    Files {
        /// The option that asks for most.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What everything else needs.
        rest: u64,
        /// The sum.
        needed: u64,
        /// What the system gives.
        limit: u64,
    },
}

/// How many file descriptors the process may need, by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBudget {
    /// Sockets of clients.
    pub(crate) connections: u64,
    /// RocksDB's table files.
    pub(crate) table_files: u64,
    /// Sockets to and from other nodes.
    pub(crate) peers: u64,
    /// Everything else.
    pub(crate) reserved: u64,
}

impl FileBudget {
    /// What a store node needs.
    pub(crate) fn of_node(config: &Config) -> Self {
        let peers = config.cluster.nodes.len().saturating_sub(1);
        let peers = peers.max(config.cluster.join.len()) as u64;
        Self {
            connections: u64::from(config.node.connections_max),
            table_files: u64::from(config.storage.max_open_files),
            peers: peers * FILES_PER_PEER,
            reserved: RESERVED_FILES,
        }
    }

    /// What a gateway needs.
    pub(crate) fn of_gateway(config: &Config) -> Self {
        Self {
            connections: u64::from(config.gateway.connections_max),
            table_files: 0,
            peers: config.cluster.nodes.len() as u64 * FILES_PER_STORE,
            reserved: RESERVED_FILES,
        }
    }

    /// What one process needs that is both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            table_files: self.table_files + other.table_files,
            peers: self.peers + other.peers,
            reserved: self.reserved,
        }
    }

    /// All uses together.
    pub(crate) const fn total(&self) -> u64 {
        self.connections + self.table_files + self.peers + self.reserved
    }

    /// Refuses a budget over the limit, naming the option that asks for most.
    pub(crate) fn check(&self, limit: u64, connections_option: &'static str) -> Result<(), Error> {
        let needed = self.total();
        if needed <= limit {
            return Ok(());
        }
        let (option, value) = if self.connections >= self.table_files {
            (connections_option, self.connections)
        } else {
            ("storage.max_open_files", self.table_files)
        };
        Err(Error::Files {
            option,
            value,
            rest: needed - value,
            needed,
            limit,
        })
    }
}

/// Raises the soft limit on open files to the hard one and says what it is now.
pub(crate) fn raise_open_files() -> Result<u64, Error> {
    rlimit::increase_nofile_limit(u64::MAX).map_err(Error::Raise)
}

/// How the memory budget is shared out, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    /// Shards that share it, the meta shard included: what follows *of a shard* is there so many times.
    pub(crate) shards: u64,
    /// Size of all active memtables together at which they are flushed; as much may be frozen at the same
    /// time. One shard may take all of it.
    pub(crate) memtables: u64,
    /// RocksDB's block cache.
    pub(crate) block_cache: u64,
    /// Newest rows of busy timelines, of a shard.
    pub(crate) tails: u64,
    /// Proposals on their way, of a shard.
    pub(crate) queues: u64,
    /// Timelines of a shard whose heads are remembered. Not bytes, and beside the budget.
    pub(crate) heads: u64,
    /// One write buffer of the log; four may exist at once.
    pub(crate) log_buffer: u64,
    /// Entries that the log keeps in memory.
    pub(crate) log_cache: u64,
}

/// Active memtables and frozen ones exist at once.
const MEMTABLES: u64 = 2;

/// Write buffers of the log that exist at once.
const LOG_BUFFERS: u64 = 4;
/// Larger ones save no more writes.
const LOG_BUFFER_MAX: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
/// Heads remembered by a whole node, about 30 bytes each.
const HEADS: u64 = 1 << 20;
/// Beside those of `cluster.shards`.
const META_SHARDS: u64 = 1;

/// What a shard needs to work at all, however many share the budget: then the node uses more than that.
const TAILS_MIN: u64 = MIB / 16;
/// One entry is at most 1 MiB; the next must not be refused while it is on its way.
const QUEUES_MIN: u64 = 2 * MIB;
const HEADS_MIN: u64 = 1024;

impl MemoryBudget {
    /// The shares of `[memory]`.
    pub(crate) fn of(config: &Config) -> Self {
        let memory = &config.memory;
        let share = |percent: u32| memory.budget_bytes.0 / 100 * u64::from(percent);
        let shards = u64::from(config.cluster.shards.max(1)) + META_SHARDS;
        let of_shard = |percent: u32, min: u64| (share(percent) / shards).max(min);
        Self {
            shards,
            memtables: share(memory.memtables_percent) / MEMTABLES,
            block_cache: share(memory.block_cache_percent),
            tails: of_shard(memory.tails_percent, TAILS_MIN),
            queues: of_shard(memory.queues_percent, QUEUES_MIN),
            heads: (HEADS / shards).max(HEADS_MIN),
            log_buffer: (share(memory.log_percent) / 2 / LOG_BUFFERS).clamp(MIB, LOG_BUFFER_MAX),
            log_cache: (share(memory.log_percent) / 2).max(MIB),
        }
    }
}

/// Logs both budgets, for the operator who wonders where it goes.
pub(crate) fn log_budget(files: &FileBudget, limit: u64, memory: Option<&MemoryBudget>) {
    tracing::info!(
        limit,
        connections = files.connections,
        table_files = files.table_files,
        peers = files.peers,
        reserved = files.reserved,
        spare = limit.saturating_sub(files.total()),
        "file descriptor budget"
    );
    if let Some(memory) = memory {
        tracing::info!(
            shards = memory.shards,
            memtables_bytes = memory.memtables * MEMTABLES,
            block_cache_bytes = memory.block_cache,
            tails_bytes = memory.tails,
            queues_bytes = memory.queues,
            log_buffer_bytes = memory.log_buffer,
            log_buffers = LOG_BUFFERS,
            log_cache_bytes = memory.log_cache,
            "memory budget"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_thousand_files_do_for_fifteen_thousand_connections() {
        let mut config = Config::default();
        config.node.connections_max = 15_000;
        FileBudget::of_node(&config)
            .check(20_000, "node.connections_max")
            .expect("fits");
        config = Config::default();
        assert_eq!(config.gateway.connections_max, 15_000);
        FileBudget::of_gateway(&config)
            .check(20_000, "gateway.connections_max")
            .expect("fits");
    }

    #[test]
    fn a_budget_over_the_limit_names_the_option_and_both_numbers() {
        let config = Config::default();
        let error = FileBudget::of_node(&config)
            .check(1000, "node.connections_max")
            .expect_err("over");
        let text = error.to_string();
        assert!(
            text.contains("connections_max = 1024") && text.contains("is 1000"),
            "{text}"
        );
    }

    #[test]
    fn shares_stay_within_the_memory_budget() {
        for shards in [1, 4, 16, 64] {
            let mut config = Config::default();
            config.cluster.shards = shards;
            let memory = MemoryBudget::of(&config);
            assert_eq!(memory.shards, u64::from(shards) + 1, "the meta shard");
            let log = memory.log_buffer * LOG_BUFFERS + memory.log_cache;
            let of_shards = (memory.tails + memory.queues) * memory.shards;
            let sum = memory.memtables * MEMTABLES + of_shards + memory.block_cache + log;
            assert!(sum <= config.memory.budget_bytes.0, "{shards} shards");
            assert!(
                sum > config.memory.budget_bytes.0 * 9 / 10,
                "{shards} shards"
            );
            assert!(memory.heads * memory.shards <= HEADS);
        }
    }

    #[test]
    fn a_shard_has_what_it_needs_however_many_there_are() {
        let mut config = Config::default();
        config.cluster.shards = 1024;
        let memory = MemoryBudget::of(&config);
        assert_eq!(
            memory.memtables,
            MemoryBudget::of(&Config::default()).memtables,
            "what one does not need another may use"
        );
        assert_eq!(memory.queues, QUEUES_MIN);
        assert_eq!(memory.heads, HEADS_MIN);
    }
}
