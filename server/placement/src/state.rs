//! What the planner is told.

use std::fmt;

/// A server process's identity. Never given to another, not even after its disk was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

/// A shard's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What operators want of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It holds its share.
    Member,
    /// It is to be emptied.
    Draining,
    /// It will not come back. What it held counts as lost.
    Removed,
}

/// A node, as the meta shard knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its region.
    pub region: String,
    /// Its zone: what fails together. A zone's name need be unique in its region only.
    pub zone: String,
    /// Its capacity in comparison with the others'. With 0 it holds nothing.
    pub weight: u32,
    /// What operators want of it.
    pub standing: Standing,
    /// Since when it has been out of reach, on the clock of [`State::now_ms`]; nothing while it is up.
    pub down_since_ms: Option<u64>,
    /// It can serve as a leader. One whose clock is off gives leaderships away at once, and one whose disk is full
    /// refuses sends: neither is given any, and both are freed of what they lead.
    pub may_lead: bool,
    /// Its disk has room for replicas more.
    pub has_room: bool,
    /// For how long it has been running.
    pub up_for_ms: u64,
}

/// What a replica is to its shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It votes.
    Voter,
    /// It only receives. It was added to take the place of that voter, or of none where one is missing.
    Learner {
        /// The voter that is to go.
        replaces: Option<NodeId>,
    },
}

/// One replica of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Where it is.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// How many entries it is known to be behind the leader; nothing if that is not known.
    pub lag: Option<u64>,
}

/// A shard, as the meta shard knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Rises with every change of the replicas, so it tells a step planned before from one planned after.
    pub epoch: u64,
    /// Its replicas, at most one on a node.
    pub replicas: Vec<Replica>,
    /// Who leads it, if anybody is known to.
    pub leader: Option<NodeId>,
    /// A membership change has been proposed and is not over.
    pub changing: bool,
    /// Its slots move to another shard, and it goes then: it is kept sound, and not moved for looks.
    pub goes: bool,
}

impl Shard {
    /// The replica on a node.
    #[must_use]
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// The replicas that vote.
    pub fn voters(&self) -> impl Iterator<Item = &Replica> + Clone {
        self.replicas
            .iter()
            .filter(|replica| replica.role == Role::Voter)
    }
}

/// The cluster at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// The time, on the clock that [`Node::down_since_ms`] is on.
    pub now_ms: u64,
    /// All nodes. A replica on a node that is not listed counts as on a removed one.
    pub nodes: Vec<Node>,
    /// All shards.
    pub shards: Vec<Shard>,
}
