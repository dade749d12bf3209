//! Who holds replicas of a shard, and how its leader changes that.
//!
//! The truth is the membership in the shard's own log. Whatever else names the replicas of a shard, the shard
//! map above all, follows it.

use std::collections::BTreeSet;

use crate::error::LeaderHint;

/// Who holds replicas of a shard, as of the last membership that is known here to be committed. A leader knows it
/// at once, another replica a moment later; one that has nothing yet has an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those who vote. In a joint change the former voters and the new ones alike.
    pub voters: BTreeSet<u64>,
    /// Those who only receive entries.
    pub learners: BTreeSet<u64>,
    /// A change is under way: another membership is in the log but not committed, or the committed one is joint.
    pub changing: bool,
    /// Index of the entry that brought this membership; 0 for the first one, and for none.
    pub index: u64,
}

/// What a membership is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// This node receives entries.
    AddLearner(u64),
    /// This node, no voter, receives none any more.
    RemoveLearner(u64),
    /// In one joint change: learners become voters, and voters no members at all.
    Voters {
        /// Who comes.
        add: BTreeSet<u64>,
        /// Who goes.
        remove: BTreeSet<u64>,
    },
}

/// Why a membership did not change. A repeat of the same call is always safe, here or at another leader: what is
/// so already is not done again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Ask the leader; nothing was changed here.
    #[error("this node is not the leader of the shard")]
    NotLeader {
        /// Where it was last seen.
        leader: Option<LeaderHint>,
    },
    /// Another change is under way; nothing was changed.
    #[error("another change of the shard's membership is under way")]
    Changing,
    /// This node does not know such a node, so it could not reach it.
    #[error("node {node} is not known")]
    UnknownNode {
        /// The node asked for.
        node: u64,
    },
    /// A node becomes a voter only from a learner.
    #[error("node {node} is no learner of the shard")]
    NotLearner {
        /// The node asked for.
        node: u64,
    },
    /// A voter is removed by a change of the voters.
    #[error("node {node} is a voter of the shard")]
    IsVoter {
        /// The node asked for.
        node: u64,
    },
    /// Only a voter can lead.
    #[error("node {node} is no voter of the shard")]
    NotVoter {
        /// The node asked for.
        node: u64,
    },
    /// The membership is not the one that the change was decided on; nothing was changed.
    #[error(
        "the membership is that of index {found}, the change was decided on that of {expected}"
    )]
    Moved {
        /// The caller's.
        expected: u64,
        /// The shard's.
        found: u64,
    },
    /// Nobody would vote any more.
    #[error("the shard would have no voters")]
    NoVoters,
    /// No majority, leadership lost after proposing, or not committed in time: the outcome is unknown.
    #[error("the shard is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}
