//! What can be done to a cluster, by name.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::ground::Need;

/// What a node ends with that will not start on what it finds.
const ERROR: i32 = 1;
/// What a node ends with that cannot write or read its files.
const STORAGE_FAULT: i32 = 3;
/// The signal by which a node ends itself where it was told to: SIGABRT.
const ABORTED: i32 = 6;

/// Faults of one sort: what `--nemesis` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Processes of nodes end.
    Kill,
    /// Processes of nodes stand still.
    Pause,
    /// Some nodes do not reach some others.
    Partition,
    /// Networks lose, crawl, break off, are late, and send twice.
    Packet,
    /// Disks lose what was not synced.
    Power,
    /// Disks lose a part of what was not flushed, and have torn blocks.
    Blocks,
    /// Disks are full, slow or fail.
    Disk,
    /// Files are not what they were.
    Corruption,
    /// Wall clocks are wrong.
    Clock,
    /// Processes of gateways end.
    Gateway,
    /// Leaderships are handed over.
    Transfer,
    /// Slots and halves of shards move.
    Slots,
    /// Nodes come and go.
    Membership,
    /// Nodes lag so far that the log they need is gone.
    Snapshot,
    /// Nodes are restarted in turn, by another build.
    Upgrade,
    /// Nodes die between two steps that belong together.
    Failpoint,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `kill -9` of the leader of the first shard, and a restart.
    KillLeader,
    /// `kill -9` of any node, and a restart.
    KillRandom,
    /// `kill -9` of all nodes at once, and a restart of all.
    KillAll,
    /// SIGSTOP for less than an election timeout, and SIGCONT.
    PauseShort,
    /// The same for up to two election timeouts.
    Pause,
    /// The same for longer than anything waits.
    PauseLong,
    /// Any node apart from all others.
    CutOne,
    /// The leader of the first shard apart from all others.
    CutLeader,
    /// A majority and a minority.
    CutHalves,
    /// Each node reaches a majority, and no two the same.
    CutRing,
    /// Two halves that only one node reaches both of.
    CutBridge,
    /// A node that hears the others and is not heard.
    CutOneWay,
    /// A third of all frames is lost.
    Loss,
    /// What a node sends crawls.
    Crawl,
    /// Connections of a node are reset, again and again.
    Reset,
    /// What a node sends is late, and out of order.
    Delay,
    /// A third of all packets arrives twice.
    Duplicate,
    /// One node loses its power.
    PowerOne,
    /// All nodes do at once.
    PowerAll,
    /// One node loses its power in the middle of writing.
    BlocksOne,
    /// All nodes do at once.
    BlocksAll,
    /// A node's disk is full.
    DiskFull,
    /// Syncs of a node take long.
    DiskSlow,
    /// A sync of a node fails.
    SyncFails,
    /// Reads of a node fail.
    ReadsFail,
    /// A bit of a stopped node's file is another.
    FlipBit,
    /// A stopped node's file ends early.
    CutFile,
    /// A node finds its directory as it was before.
    Rollback,
    /// A node's wall clock jumps, ahead or back.
    ClockJump,
    /// A node's wall clock jumps ahead and back, again and again.
    ClockStrobe,
    /// A node's wall clock runs faster.
    ClockDrift,
    /// `kill -9` of a gateway, and a restart.
    KillGateway,
    /// A leadership is handed to another voter.
    TransferLeader,
    /// A slot moves to another shard.
    MoveSlot,
    /// Half of a shard becomes a shard, which is then merged again.
    SplitMerge,
    /// A node joins, and another is emptied and removed.
    ReplaceNode,
    /// `kill -9` of a node, and a restart when the others' logs have gone on without it.
    FallBehind,
    /// Each node in turn is stopped in order and started by the other of two builds.
    Upgrade,
    /// A node dies before or after its log is synced or purged.
    DieInLog,
    /// A node dies before or after entries are applied.
    DieInApply,
    /// A node dies while a memtable becomes a file.
    DieInFlush,
    /// A node dies while items go from shard to shard.
    DieInLane,
    /// A node dies while a slot moves.
    DieInMove,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Kill,
        Self::Pause,
        Self::Partition,
        Self::Packet,
        Self::Power,
        Self::Blocks,
        Self::Disk,
        Self::Corruption,
        Self::Clock,
        Self::Gateway,
        Self::Transfer,
        Self::Slots,
        Self::Membership,
        Self::Snapshot,
        Self::Upgrade,
        Self::Failpoint,
    ];

    /// As `--nemesis` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::Packet => "packet",
            Self::Power => "power",
            Self::Blocks => "blocks",
            Self::Disk => "disk",
            Self::Corruption => "corruption",
            Self::Clock => "clock",
            Self::Gateway => "gateway",
            Self::Transfer => "transfer",
            Self::Slots => "slots",
            Self::Membership => "membership",
            Self::Snapshot => "snapshot",
            Self::Upgrade => "upgrade",
            Self::Failpoint => "failpoint",
        }
    }

    /// One line for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Kill => "kill -9 of the leader, of any node, of all at once; restarts",
            Self::Pause => {
                "SIGSTOP for less than, as long as and much longer than an election timeout"
            }
            Self::Partition => {
                "one node, the leader, halves, a ring of majorities, a bridge, one-way"
            }
            Self::Packet => {
                "frames lost, late, out of order or doubled; a node that sends at 1 Mbit/s; resets"
            }
            Self::Power => "what was not synced is lost, of one node and of all at once",
            Self::Blocks => {
                "the power goes while disks write: blocks torn and out of order, of one node and of all"
            }
            Self::Disk => "a node's disk is full, its syncs are slow, a sync or reads fail",
            Self::Corruption => {
                "a bit flipped, a file cut, yesterday's directory; the node is then replaced"
            }
            Self::Clock => "wall clocks jump, go back and forth, and run faster",
            Self::Gateway => "kill -9 of gateways; restarts",
            Self::Transfer => "leaderships are handed over",
            Self::Slots => "slots move, shards are split and merged",
            Self::Membership => "a node joins, another is emptied and removed",
            Self::Snapshot => "a node lags until the log that it needs is purged",
            Self::Upgrade => "nodes are restarted in turn, by the other of two builds",
            Self::Failpoint => {
                "nodes die in the middle of a write, an apply, a flush, a delivery, a move"
            }
        }
    }

    /// What it needs beside processes.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Partition => &[Need::Network],
            Self::Packet => &[Need::Network, Need::Queues],
            Self::Power => &[Need::Disks],
            Self::Blocks => &[Need::Disks, Need::Blocks],
            Self::Disk => &[Need::Disks, Need::Calls],
            Self::Clock => &[Need::Clocks],
            Self::Kill
            | Self::Pause
            | Self::Corruption
            | Self::Gateway
            | Self::Transfer
            | Self::Slots
            | Self::Membership
            | Self::Snapshot
            | Self::Upgrade
            | Self::Failpoint => &[],
        }
    }

    /// Its faults.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Kill => &[Kind::KillLeader, Kind::KillRandom, Kind::KillAll],
            Self::Pause => &[Kind::PauseShort, Kind::Pause, Kind::PauseLong],
            Self::Partition => &[
                Kind::CutOne,
                Kind::CutLeader,
                Kind::CutHalves,
                Kind::CutRing,
                Kind::CutBridge,
                Kind::CutOneWay,
            ],
            Self::Packet => &[
                Kind::Loss,
                Kind::Crawl,
                Kind::Reset,
                Kind::Delay,
                Kind::Duplicate,
            ],
            Self::Power => &[Kind::PowerOne, Kind::PowerAll],
            Self::Blocks => &[Kind::BlocksOne, Kind::BlocksAll],
            Self::Disk => &[
                Kind::DiskFull,
                Kind::DiskSlow,
                Kind::SyncFails,
                Kind::ReadsFail,
            ],
            Self::Corruption => &[Kind::FlipBit, Kind::CutFile, Kind::Rollback],
            Self::Clock => &[Kind::ClockJump, Kind::ClockStrobe, Kind::ClockDrift],
            Self::Gateway => &[Kind::KillGateway],
            Self::Transfer => &[Kind::TransferLeader],
            Self::Slots => &[Kind::MoveSlot, Kind::SplitMerge],
            Self::Membership => &[Kind::ReplaceNode],
            Self::Snapshot => &[Kind::FallBehind],
            Self::Upgrade => &[Kind::Upgrade],
            Self::Failpoint => &[
                Kind::DieInLog,
                Kind::DieInApply,
                Kind::DieInFlush,
                Kind::DieInLane,
                Kind::DieInMove,
            ],
        }
    }
}

impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|family| family.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no nemesis {name}; there are {names}")
        })
    }
}

impl Kind {
    /// As histories call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
            Self::KillRandom => "kill-random",
            Self::KillAll => "kill-all",
            Self::PauseShort => "pause-short",
            Self::Pause => "pause",
            Self::PauseLong => "pause-long",
            Self::CutOne => "partition-one",
            Self::CutLeader => "partition-leader",
            Self::CutHalves => "partition-halves",
            Self::CutRing => "partition-majorities-ring",
            Self::CutBridge => "partition-bridge",
            Self::CutOneWay => "partition-one-way",
            Self::Loss => "packet-loss",
            Self::Crawl => "packet-crawl",
            Self::Reset => "packet-reset",
            Self::Delay => "packet-delay",
            Self::Duplicate => "packet-duplicate",
            Self::PowerOne => "power-one",
            Self::PowerAll => "power-all",
            Self::BlocksOne => "blocks-one",
            Self::BlocksAll => "blocks-all",
            Self::DiskFull => "disk-full",
            Self::DiskSlow => "disk-slow",
            Self::SyncFails => "sync-fails",
            Self::ReadsFail => "reads-fail",
            Self::FlipBit => "flip-bit",
            Self::CutFile => "cut-file",
            Self::Rollback => "rollback",
            Self::ClockJump => "clock-jump",
            Self::ClockStrobe => "clock-strobe",
            Self::ClockDrift => "clock-drift",
            Self::KillGateway => "kill-gateway",
            Self::TransferLeader => "transfer-leader",
            Self::MoveSlot => "move-slot",
            Self::SplitMerge => "split-merge",
            Self::ReplaceNode => "replace-node",
            Self::FallBehind => "fall-behind",
            Self::Upgrade => "upgrade",
            Self::DieInLog => "die-in-log",
            Self::DieInApply => "die-in-apply",
            Self::DieInFlush => "die-in-flush",
            Self::DieInLane => "die-in-lane",
            Self::DieInMove => "die-in-move",
        }
    }

    /// Whose it is.
    pub fn family(self) -> Family {
        let owner = Family::ALL
            .into_iter()
            .find(|it| it.kinds().contains(&self));
        owner.unwrap_or(Family::Kill)
    }

    /// Whether it is begun and then stands by itself, so that another can be done beside it.
    pub fn stands(self) -> bool {
        match self.family() {
            Family::Kill
            | Family::Pause
            | Family::Partition
            | Family::Power
            | Family::Blocks
            | Family::Disk
            | Family::Gateway
            | Family::Snapshot => true,
            Family::Packet => self != Self::Reset,
            Family::Clock => self == Self::ClockJump,
            Family::Corruption
            | Family::Transfer
            | Family::Slots
            | Family::Membership
            | Family::Upgrade
            | Family::Failpoint => false,
        }
    }

    /// Whether it can be done beside another fault: what an operator does who waits for the cluster in between cannot.
    pub fn bears_another(self) -> bool {
        !matches!(
            self.family(),
            Family::Corruption | Family::Membership | Family::Upgrade
        )
    }

    /// Whether an operator asks the cluster for it and waits until it has been done.
    pub fn is_operators(self) -> bool {
        matches!(
            self,
            Self::TransferLeader | Self::MoveSlot | Self::SplitMerge
        )
    }

    /// Whether it can stand beside that one: not if one of them would take the other's place, or leaves nothing to do
    /// that one to.
    pub fn goes_with(self, other: Self) -> bool {
        let is_of_bridge = |kind: Self| kind.family() == Family::Partition || kind == Self::Loss;
        let is_of_all = matches!(self, Self::KillAll | Self::PowerAll | Self::BlocksAll);
        let take_turns = is_of_bridge(self) && is_of_bridge(other);
        !(is_of_all || take_turns)
    }

    /// Whether a node that it was done to may have ended so because of it, by itself.
    pub(super) fn explains(self, status: ExitStatus) -> bool {
        match self.family() {
            // It may just be starting; or notice that nothing is written any more before it is killed.
            Family::Disk | Family::Blocks => matches!(status.code(), Some(ERROR | STORAGE_FAULT)),
            // It may find out when it starts, or when it reads.
            Family::Corruption => matches!(status.code(), Some(ERROR | STORAGE_FAULT)),
            Family::Failpoint => status.signal() == Some(ABORTED),
            _ => false,
        }
    }

    /// For how long the fault lasts, in milliseconds; of what ends by itself, how long it may take.
    pub fn hold_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::PauseShort => 50..500,
            Self::KillLeader
            | Self::KillRandom
            | Self::KillAll
            | Self::KillGateway
            | Self::PowerOne
            | Self::PowerAll
            | Self::BlocksOne
            | Self::BlocksAll => 100..1500,
            Self::Pause => 1000..4000,
            Self::PauseLong => 15_000..20_000,
            Self::CutOne
            | Self::CutLeader
            | Self::CutHalves
            | Self::CutRing
            | Self::CutBridge
            | Self::CutOneWay
            | Self::Loss
            | Self::Crawl
            | Self::Reset
            | Self::Delay
            | Self::Duplicate
            | Self::DiskFull
            | Self::DiskSlow
            | Self::SyncFails
            | Self::ReadsFail
            | Self::ClockJump
            | Self::ClockStrobe
            | Self::ClockDrift => 3000..8000,
            Self::FallBehind => 8000..12_000,
            Self::TransferLeader => 1000..5000,
            Self::MoveSlot => 15_000..15_001,
            Self::SplitMerge => 30_000..30_001,
            Self::DieInLog | Self::DieInApply | Self::DieInFlush | Self::DieInLane => {
                15_000..15_001
            }
            Self::DieInMove => 25_000..25_001,
            Self::ReplaceNode | Self::Upgrade => 60_000..60_001,
            Self::FlipBit | Self::CutFile | Self::Rollback => 90_000..90_001,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_all_different_and_lead_back() {
        let families = Family::ALL;
        let names: BTreeSet<_> = families.iter().map(|family| family.name()).collect();
        assert_eq!(names.len(), families.len());
        let mut kinds = BTreeSet::new();
        for family in families {
            assert_eq!(family.name().parse(), Ok(family));
            for kind in family.kinds() {
                assert_eq!(kind.family(), family);
                assert!(!kind.hold_ms().is_empty());
                assert!(kinds.insert(kind.name()), "{}", kind.name());
            }
        }
        for kind in Family::ALL.iter().flat_map(|family| family.kinds()) {
            // It is done beside one that stands, and is itself none.
            assert!(!kind.is_operators() || kind.bears_another() && !kind.stands());
        }
        let error = "quake".parse::<Family>().unwrap_err();
        assert!(error.contains("kill, pause, partition"), "{error}");
    }
}
