//! What can be done to a cluster, by name.

use std::process::ExitStatus;

use crate::ground::Need;

/// What a node ends with that cannot write its files.
const STORAGE_FAULT: i32 = 3;

/// Faults of one sort: what `--nemesis` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Processes of nodes end.
    Kill,
    /// Processes of nodes stand still.
    Pause,
    /// Some nodes do not reach some others.
    Partition,
    /// Networks lose, crawl and break off.
    Packet,
    /// Disks lose what was not synced.
    Power,
    /// Disks are full.
    Disk,
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
    /// One node loses its power.
    PowerOne,
    /// All nodes do at once.
    PowerAll,
    /// A node's disk is full.
    DiskFull,
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
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Partition,
        Self::Packet,
        Self::Power,
        Self::Disk,
        Self::Clock,
        Self::Gateway,
        Self::Transfer,
        Self::Slots,
        Self::Membership,
    ];

    /// As `--nemesis` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::Packet => "packet",
            Self::Power => "power",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Gateway => "gateway",
            Self::Transfer => "transfer",
            Self::Slots => "slots",
            Self::Membership => "membership",
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
            Self::Packet => "a third of all frames lost, a node that sends at 1 Mbit/s, resets",
            Self::Power => "what was not synced is lost, of one node and of all at once",
            Self::Disk => "a node's disk is full",
            Self::Clock => "wall clocks jump, go back and forth, and run faster",
            Self::Gateway => "kill -9 of gateways; restarts",
            Self::Transfer => "leaderships are handed over",
            Self::Slots => "slots move, shards are split and merged",
            Self::Membership => "a node joins, another is emptied and removed",
        }
    }

    /// What it needs beside processes.
    pub fn need(self) -> Option<Need> {
        match self {
            Self::Partition | Self::Packet => Some(Need::Network),
            Self::Power | Self::Disk => Some(Need::Disks),
            Self::Clock => Some(Need::Clocks),
            Self::Kill
            | Self::Pause
            | Self::Gateway
            | Self::Transfer
            | Self::Slots
            | Self::Membership => None,
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
            Self::Packet => &[Kind::Loss, Kind::Crawl, Kind::Reset],
            Self::Power => &[Kind::PowerOne, Kind::PowerAll],
            Self::Disk => &[Kind::DiskFull],
            Self::Clock => &[Kind::ClockJump, Kind::ClockStrobe, Kind::ClockDrift],
            Self::Gateway => &[Kind::KillGateway],
            Self::Transfer => &[Kind::TransferLeader],
            Self::Slots => &[Kind::MoveSlot, Kind::SplitMerge],
            Self::Membership => &[Kind::ReplaceNode],
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
            Self::PowerOne => "power-one",
            Self::PowerAll => "power-all",
            Self::DiskFull => "disk-full",
            Self::ClockJump => "clock-jump",
            Self::ClockStrobe => "clock-strobe",
            Self::ClockDrift => "clock-drift",
            Self::KillGateway => "kill-gateway",
            Self::TransferLeader => "transfer-leader",
            Self::MoveSlot => "move-slot",
            Self::SplitMerge => "split-merge",
            Self::ReplaceNode => "replace-node",
        }
    }

    /// Whose it is.
    pub fn family(self) -> Family {
        let owner = Family::ALL
            .into_iter()
            .find(|it| it.kinds().contains(&self));
        owner.unwrap_or(Family::Kill)
    }

    /// Whether a node that it was done to may have ended so because of it, by itself.
    pub(super) fn explains(self, status: ExitStatus) -> bool {
        self.family() == Family::Disk && status.code() == Some(STORAGE_FAULT)
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
            | Self::PowerAll => 100..1500,
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
            | Self::DiskFull
            | Self::ClockJump
            | Self::ClockStrobe
            | Self::ClockDrift => 3000..8000,
            Self::TransferLeader => 1000..5000,
            Self::MoveSlot => 15_000..15_001,
            Self::SplitMerge => 30_000..30_001,
            Self::ReplaceNode => 60_000..60_001,
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
        let error = "quake".parse::<Family>().unwrap_err();
        assert!(error.contains("kill, pause, partition"), "{error}");
    }
}
