//! What a node is told when it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mailbox_engine::{MemoryDisk, ShardId, SlotId};

use crate::error::Error;

/// Raft's clocks, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a node tells each other one that it lives and what it leads. Below a third of `election_min_ms`.
    pub heartbeat_ms: u64,
    /// Shortest wait before a node stands again for a shard whose last election came to nothing.
    pub election_min_ms: u64,
    /// Longest such wait; also how long a node that is silent counts as alive, and how long a leader trusts its
    /// last quorum.
    pub election_max_ms: u64,
}

/// What a node is configured with unless told otherwise; the server's configuration takes these and says
/// what they were measured to give.
impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 200,
            election_min_ms: 700,
            election_max_ms: 1200,
        }
    }
}

/// How a node recognises its peers' certificates.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The authority that signed them.
    pub ca_pem: Vec<u8>,
    /// The name they carry; empty: the host of each address.
    pub domain: String,
}

/// What a node's directory says, before any of its replicas starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// As [`crate::Node::incarnation`].
    pub incarnation: u64,
    /// As [`crate::Node::log_batch`].
    pub log_batch: u64,
    /// The directory was made just now.
    pub is_new: bool,
}

/// Asked between the opening of a node's directory and the start of its replicas: an old copy of the directory must
/// not vote. `Err` says why the node must not start.
pub type Admit = Arc<dyn Fn(Admission) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Nodes that the meta shard begins on.
const META_FOUNDERS_MAX: usize = 3;

/// Everything that a node needs to start.
#[derive(Clone)]
pub struct NodeOptions {
    /// This node's id, a key of `members` unless it `joins`. Never reused after a disk is lost.
    pub node: u64,
    /// Chosen at bootstrap; never changes.
    pub cluster_id: String,
    /// Where `state`, `log`, `staging` and `IDENTITY` live; made if missing.
    pub dir: PathBuf,
    /// Rows are kept there and not in `state`, for [`crate::simulation`].
    pub disk: Option<MemoryDisk>,
    /// The nodes of a new cluster, this one included: id → `host:port` of its peer service. They make the shards
    /// and their first memberships, once. Later it is only what this node knows before [`crate::Node::set_nodes`]
    /// tells more.
    pub members: BTreeMap<u64, String>,
    /// This node is no founder: at its first start it makes an identity and no shards. It need not be a key of
    /// `members`, which may be empty. Means nothing at a later start.
    pub joins: bool,
    /// Who says whether this node may start; nobody is asked if absent.
    pub admit: Option<Admit>,
    /// Shards that all slots are split into: a cluster constant, stored at bootstrap. At most one a slot.
    pub shard_count: u16,
    /// Limits and budgets of the store of rows; those of a shard hold for each.
    pub engine: mailbox_engine::EngineOptions,
    /// What this node proposes as a new cluster's options when it is the first to lead. A cluster that has
    /// others does not let it in: see `cluster_options.rs`. One that is `None` here gets its default in a new
    /// cluster, and is left absent in an older one.
    pub cluster_options: mailbox_engine::ClusterOptions,
    /// Memory, files and batches of the log.
    pub log: crate::log::LogOptions,
    /// Raft's clocks.
    pub timing: Timing,
    /// This node promises its voice to leaders that ask, and reads by such promises when it leads: see `lease.rs`. May
    /// differ from node to node.
    pub lease_reads: bool,
    /// How far a node's clock may be from the median of all, in milliseconds.
    pub clock_skew_max_ms: u64,
    /// What peers prove their membership with. Never logged.
    pub secret: Arc<[u8]>,
    /// How peers' certificates are recognised; plaintext if absent.
    pub peer_tls: Option<ClientTls>,
    /// Sends are refused when fewer bytes are free under `dir`.
    pub disk_free_min_bytes: u64,
    /// Bytes of commands of one shard that may be proposed and not yet applied.
    pub queue_bytes_max: u64,
    /// Bytes of items in the outboxes of one shard above which what may add to them is refused.
    pub outbox_bytes_max: u64,
    /// Entries kept in the log behind the last flush, for followers that lag; fewer if they weigh much beside the rows.
    pub log_entries_kept: u64,
    /// Bytes per second of each snapshot, or copy of a slot, that is sent.
    pub snapshot_bytes_per_s: u64,
    /// Bytes a second that this node, as a leader, sends to all learners of its shards of entries already committed,
    /// beyond twice the entries that are committed meanwhile.
    pub learner_bytes_per_s: u64,
}

impl NodeOptions {
    /// Options with every limit at its default.
    pub fn new(
        node: u64,
        cluster_id: impl Into<String>,
        dir: impl Into<PathBuf>,
        members: BTreeMap<u64, String>,
        secret: impl Into<Arc<[u8]>>,
    ) -> Self {
        Self {
            node,
            cluster_id: cluster_id.into(),
            dir: dir.into(),
            disk: None,
            members,
            joins: false,
            admit: None,
            shard_count: 1,
            engine: mailbox_engine::EngineOptions::default(),
            cluster_options: mailbox_engine::ClusterOptions::default(),
            log: crate::log::LogOptions::default(),
            timing: Timing::default(),
            lease_reads: false,
            clock_skew_max_ms: 500,
            secret: secret.into(),
            peer_tls: None,
            disk_free_min_bytes: 1 << 30,
            queue_bytes_max: 64 << 20,
            outbox_bytes_max: 64 << 20,
            log_entries_kept: 4096,
            snapshot_bytes_per_s: 16 << 20,
            learner_bytes_per_s: 4 << 20,
        }
    }

    /// The shards of a new cluster, each with the slots that its rows are kept under: those of [`first_slots`], and
    /// the meta shard with the one of its own.
    pub(crate) fn first_shards(&self) -> impl Iterator<Item = (ShardId, RangeInclusive<u16>)> {
        let meta = (ShardId::META, SlotId::META.0..=SlotId::META.0);
        let others = spans(self.engine.slot_count, self.shard_count);
        std::iter::once(meta).chain(others)
    }

    /// The slots of a shard at bootstrap; `None` if the cluster has no such shard.
    pub(crate) fn first_slots(&self, shard: ShardId) -> Option<RangeInclusive<u16>> {
        let mut shards = self.first_shards();
        shards.find_map(|(id, slots)| (id == shard).then_some(slots))
    }

    /// The nodes that make a shard's first membership; none of them, if this node joins. Of the meta shard, the first
    /// three at most: it is asked by all, and more voters make it slower, not safer.
    pub(crate) fn founders(&self, shard: ShardId) -> BTreeSet<u64> {
        if self.joins || self.first_slots(shard).is_none() {
            return BTreeSet::new();
        }
        let count = if shard == ShardId::META {
            META_FOUNDERS_MAX
        } else {
            self.members.len()
        };
        self.members.keys().copied().take(count).collect()
    }

    /// Refuses options that cannot work, naming the first.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<(), Error> {
        let bound = |option, holds: bool, reason: &str| {
            if holds {
                return Ok(());
            }
            Err(Error::Option {
                option,
                reason: reason.to_owned(),
            })
        };
        let timing = &self.timing;
        bound("node", self.node > 0, "0 is not a node id")?;
        bound(
            "members",
            self.joins || self.members.contains_key(&self.node),
            "this node is not a member",
        )?;
        bound(
            "cluster_id",
            !self.cluster_id.is_empty() && self.cluster_id.lines().count() == 1,
            "one line, not empty",
        )?;
        if let Err(fault) = self.cluster_options.check() {
            bound("cluster_options", false, &fault.to_string())?;
        }
        bound(
            "timing.heartbeat_ms",
            timing.heartbeat_ms > 0 && timing.heartbeat_ms * 3 < timing.election_min_ms,
            "above 0 and below a third of election_min_ms",
        )?;
        bound(
            "timing.election_max_ms",
            timing.election_min_ms < timing.election_max_ms,
            "above election_min_ms",
        )?;
        bound(
            "shard_count",
            (1..=self.engine.slot_count).contains(&self.shard_count),
            &format!(
                "{} of {} slots: at least one shard, and a slot for each",
                self.shard_count, self.engine.slot_count
            ),
        )?;
        bound("clock_skew_max_ms", self.clock_skew_max_ms > 0, "above 0")?;
        bound("secret", !self.secret.is_empty(), "empty")?;
        bound(
            "queue_bytes_max",
            self.queue_bytes_max >= 1 << 20,
            "at least 1 MiB",
        )?;
        bound(
            "snapshot_bytes_per_s",
            self.snapshot_bytes_per_s >= 1 << 20,
            "at least 1 MiB/s",
        )?;
        bound(
            "learner_bytes_per_s",
            self.learner_bytes_per_s >= 64 << 10,
            "at least 64 KiB/s",
        )?;
        Ok(())
    }
}

/// Shard *k* of *n*, from 1, has the *k*-th of *n* spans.
fn spans(
    slot_count: u16,
    shard_count: u16,
) -> impl Iterator<Item = (ShardId, RangeInclusive<u16>)> {
    let (shards, slots) = (u32::from(shard_count), u32::from(slot_count));
    let begin = move |shard: u32| {
        u16::try_from((shard - 1) * slots / shards).expect("at most the slot count")
    };
    (1..=shards).map(move |shard| (ShardId(shard), begin(shard)..=begin(shard + 1) - 1))
}

/// The shards of a new cluster, each with its slots as spans, both ends included; the meta shard has none. Slots move
/// later, so nothing but bootstrap may ask this.
pub fn first_slots(
    slot_count: u16,
    shard_count: u16,
) -> impl Iterator<Item = (ShardId, Vec<(SlotId, SlotId)>)> {
    let others = spans(slot_count, shard_count);
    let others = others.map(|(shard, slots)| {
        let span = (SlotId(*slots.start()), SlotId(*slots.end()));
        (shard, vec![span])
    });
    std::iter::once((ShardId::META, Vec::new())).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(node: u64, shards: u16, slots: u16) -> NodeOptions {
        let members = (1..=3).map(|node| (node, format!("h:{node}"))).collect();
        let mut options = NodeOptions::new(node, "test", "/d", members, b"secret".to_vec());
        options.shard_count = shards;
        options.engine.slot_count = slots;
        options
    }

    #[test]
    fn every_slot_is_in_one_shard_and_no_shard_is_empty() {
        for (shards, slots) in [
            (1, 1),
            (1, 64),
            (4, 64),
            (3, 16),
            (16, 1024),
            (7, 16),
            (16, 16),
        ] {
            let options = options(1, shards, slots);
            options.validate().unwrap();
            let mut all: Vec<_> = options.first_shards().collect();
            assert_eq!(all.remove(0), (ShardId::META, 0..=0));
            assert_eq!(all.len(), usize::from(shards));
            let told: Vec<_> = first_slots(slots, shards).collect();
            assert_eq!(told[0], (ShardId::META, Vec::new()));
            let spans = told.into_iter().skip(1);
            let spans = spans.map(|(shard, spans)| match spans[..] {
                [(first, last)] => (shard, first.0..=last.0),
                _ => panic!("one span each"),
            });
            assert!(spans.eq(all.iter().cloned()));
            let ids = all.iter().map(|(shard, _)| shard.0);
            assert!(ids.eq(1..=u32::from(shards)));
            let held = all.into_iter().flat_map(|(_, slots)| {
                assert!(!slots.is_empty());
                slots
            });
            assert!(held.eq(0..slots), "{shards} shards of {slots} slots");
        }
    }

    #[test]
    fn more_shards_than_slots_are_refused_with_both_numbers() {
        for shards in [0, 17] {
            let error = options(1, shards, 16).validate().unwrap_err().to_string();
            assert!(error.contains(&format!("{shards} of 16 slots")), "{error}");
        }
    }
}
