//! What is wanted.

/// What a shard's replicas are spread over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// As many zones as there are, whatever their regions.
    Zones,
    /// As many regions as there are, and then as many zones.
    Regions,
}

/// What the planner works towards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goals {
    /// Voters of a shard. Default 3.
    pub replication: usize,
    /// What they are spread over. Default zones.
    pub spread: Spread,
    /// For how long a node may be down before its replicas are made anew elsewhere. Default 10 minutes: more
    /// than a reboot takes.
    pub dead_after_ms: u64,
    /// For how long after its start a node neither gets nor loses leaders for evenness' sake, if others had been up
    /// for that long before it, and else for as long as the oldest of them had: it has to catch up first, and where
    /// nodes are restarted in turn the next one is about to go. Default 10 seconds.
    pub settle_ms: u64,
    /// A replica that is at most this many entries behind has caught up. Default 1000.
    pub lag_max: u64,
    /// How uneven replicas may be before evenness alone is worth a move, in percent of a node's fair share
    /// (but never less than one replica). Default 5.
    pub replica_slack_percent: u32,
    /// What may be under way at once.
    pub limits: Limits,
}

/// What may be under way at once. They bind what is begun; what has begun is always finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Moves in the cluster. Default 32.
    pub moves_max: usize,
    /// Moves that one node takes part in, as the receiver or as the leader that sends. Default 1: what is moved costs
    /// both CPU that clients feel. Measured while three nodes on two cores grew to five and shrank to three others at
    /// half of their capacity, p99 of sends was 2.3 to 2.9 and 1.7 to 2.1 times the quiet one in three runs with one;
    /// with two 1.6 to 7.3 and 2.4 to 6.9 in four earlier ones. Two at least where voters are lost or missing, see
    /// [`Limits::repair_moves_max`].
    pub node_moves_max: usize,
    /// Replicas that a node may hold. Default 512.
    pub node_replicas_max: usize,
    /// Leader transfers in one plan. Default 16.
    pub transfers_max: usize,
    /// Of so many shards at most one is to change its leader at a time (one, if there are fewer shards): it serves nobody
    /// for a moment, and with so few of them in that state a tail latency hardly shows it. That binds whoever executes the
    /// steps, see [`Limits::transfers_at_once`]. With fewer shards than this, leaders are not made even while replicas
    /// move. Default 64.
    pub shards_per_transfer: usize,
}

impl Default for Goals {
    fn default() -> Self {
        Self {
            replication: 3,
            spread: Spread::Zones,
            dead_after_ms: 600_000,
            settle_ms: 10_000,
            lag_max: 1000,
            replica_slack_percent: 5,
            limits: Limits::default(),
        }
    }
}

/// So many moves a node may take part in at least where voters are lost or missing: one that comes to no end must not
/// keep all others waiting.
const REPAIR_MOVES_MIN: usize = 2;

impl Limits {
    /// What [`Limits::node_moves_max`] is for shards that lack voters.
    #[must_use]
    pub fn repair_moves_max(&self) -> usize {
        self.node_moves_max.max(REPAIR_MOVES_MIN)
    }

    /// Leader transfers that may be under way at once among so many shards.
    #[must_use]
    pub fn transfers_at_once(&self, shards: usize) -> usize {
        let few = shards / self.shards_per_transfer.max(1);
        self.transfers_max.min(few.max(1))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            moves_max: 32,
            node_moves_max: 1,
            node_replicas_max: 512,
            transfers_max: 16,
            shards_per_transfer: 64,
        }
    }
}
