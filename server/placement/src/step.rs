//! What the planner asks for, and when it is too late to do it.

use crate::state::{NodeId, Role, Shard, ShardId};

/// One change of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Give the shard a learner, to be promoted in place of a voter (or of none) when it has caught up.
    AddLearner {
        /// Which shard.
        shard: ShardId,
        /// The shard's epoch at planning.
        epoch: u64,
        /// Where.
        node: NodeId,
        /// What [`Role::Learner`] is to keep.
        replaces: Option<NodeId>,
    },
    /// In one joint change make the learner a voter, and the voter no replica at all.
    PromoteReplace {
        /// Which shard.
        shard: ShardId,
        /// The shard's epoch at planning.
        epoch: u64,
        /// Who comes.
        learner: NodeId,
        /// Who goes.
        replaced: Option<NodeId>,
    },
    /// Let another voter lead.
    TransferLeader {
        /// Which shard.
        shard: ShardId,
        /// The shard's epoch at planning.
        epoch: u64,
        /// Who led at planning.
        from: NodeId,
        /// Who shall lead.
        to: NodeId,
    },
    /// Take a replica away: a learner that nothing needs, or a voter too many.
    RemoveReplica {
        /// Which shard.
        shard: ShardId,
        /// The shard's epoch at planning.
        epoch: u64,
        /// Where.
        node: NodeId,
    },
}

/// Why a step must not be executed any more. All of them mean: plan again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stale {
    /// The step is another shard's.
    #[error("the step is for shard {step}, not for shard {shard}")]
    OtherShard {
        /// The step's.
        step: ShardId,
        /// The one given.
        shard: ShardId,
    },
    /// The replicas have changed since.
    #[error("shard {shard} is at epoch {found}, the step was planned at {planned}")]
    Epoch {
        /// Which shard.
        shard: ShardId,
        /// The step's epoch.
        planned: u64,
        /// The shard's.
        found: u64,
    },
    /// A change is under way.
    #[error("shard {shard} has a membership change under way")]
    Changing {
        /// Which shard.
        shard: ShardId,
    },
    /// Somebody else leads by now.
    #[error("shard {shard} is led by {found:?}, the step expected {expected}")]
    Leader {
        /// Which shard.
        shard: ShardId,
        /// Who led at planning.
        expected: NodeId,
        /// Who leads.
        found: Option<NodeId>,
    },
    /// A replica that is to go leads by now.
    #[error("shard {shard} is led by node {node}, which the step removes")]
    Leads {
        /// Which shard.
        shard: ShardId,
        /// Who leads.
        node: NodeId,
    },
    /// A node does not hold the replica that the step is about, or holds one where it should not.
    #[error("shard {shard} has no such replica on node {node} as the step expects")]
    Replica {
        /// Which shard.
        shard: ShardId,
        /// Which node.
        node: NodeId,
    },
}

impl Step {
    /// Which shard it changes.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Self::AddLearner { shard, .. }
            | Self::PromoteReplace { shard, .. }
            | Self::TransferLeader { shard, .. }
            | Self::RemoveReplica { shard, .. } => *shard,
        }
    }

    /// The shard's epoch at planning.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self {
            Self::AddLearner { epoch, .. }
            | Self::PromoteReplace { epoch, .. }
            | Self::TransferLeader { epoch, .. }
            | Self::RemoveReplica { epoch, .. } => *epoch,
        }
    }

    /// Whether the step still fits the shard. It is the executor's to ask just before it acts, so a step
    /// that comes twice or late does nothing the second time.
    ///
    /// # Errors
    /// What has changed since the step was planned.
    pub fn check(&self, shard: &Shard) -> Result<(), Stale> {
        let id = shard.id;
        if self.shard() != id {
            return Err(Stale::OtherShard {
                step: self.shard(),
                shard: id,
            });
        }
        if self.epoch() != shard.epoch {
            return Err(Stale::Epoch {
                shard: id,
                planned: self.epoch(),
                found: shard.epoch,
            });
        }
        if shard.changing {
            return Err(Stale::Changing { shard: id });
        }
        let is_voter = |node| matches!(shard.replica(node), Some(held) if held.role == Role::Voter);
        let is_learner =
            |node| matches!(shard.replica(node), Some(held) if held.role != Role::Voter);
        let expect =
            |node, fits: bool| fits.then_some(()).ok_or(Stale::Replica { shard: id, node });
        let expect_not_leading = |node| match shard.leader {
            Some(leader) if leader == node => Err(Stale::Leads { shard: id, node }),
            _ => Ok(()),
        };
        match *self {
            Self::AddLearner { node, .. } => expect(node, shard.replica(node).is_none()),
            Self::PromoteReplace {
                learner, replaced, ..
            } => {
                expect(learner, is_learner(learner))?;
                replaced.map_or(Ok(()), |node| {
                    expect(node, is_voter(node))?;
                    expect_not_leading(node)
                })
            }
            Self::TransferLeader { from, to, .. } => {
                if shard.leader != Some(from) {
                    return Err(Stale::Leader {
                        shard: id,
                        expected: from,
                        found: shard.leader,
                    });
                }
                expect(to, is_voter(to))
            }
            Self::RemoveReplica { node, .. } => {
                expect(node, shard.replica(node).is_some())?;
                expect_not_leading(node)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Replica;

    fn shard() -> Shard {
        let replica = |node, role| Replica {
            node: NodeId(node),
            role,
            lag: Some(0),
        };
        Shard {
            id: ShardId(7),
            epoch: 5,
            replicas: vec![
                replica(1, Role::Voter),
                replica(2, Role::Voter),
                replica(
                    3,
                    Role::Learner {
                        replaces: Some(NodeId(2)),
                    },
                ),
            ],
            leader: Some(NodeId(1)),
            changing: false,
            goes: false,
        }
    }

    fn promote(replaced: u64) -> Step {
        Step::PromoteReplace {
            shard: ShardId(7),
            epoch: 5,
            learner: NodeId(3),
            replaced: Some(NodeId(replaced)),
        }
    }

    #[test]
    fn a_step_fits_the_shard_it_was_planned_for() {
        assert_eq!(promote(2).check(&shard()), Ok(()));
    }

    #[test]
    fn a_step_of_an_older_epoch_is_stale() {
        let later = Shard {
            epoch: 6,
            ..shard()
        };
        let stale = Stale::Epoch {
            shard: ShardId(7),
            planned: 5,
            found: 6,
        };
        assert_eq!(promote(2).check(&later), Err(stale));
    }

    #[test]
    fn a_step_waits_for_the_change_under_way() {
        let changing = Shard {
            changing: true,
            ..shard()
        };
        assert_eq!(
            promote(2).check(&changing),
            Err(Stale::Changing { shard: ShardId(7) })
        );
    }

    #[test]
    fn a_leader_is_never_replaced() {
        let leads = Stale::Leads {
            shard: ShardId(7),
            node: NodeId(1),
        };
        assert_eq!(promote(1).check(&shard()), Err(leads));
    }

    #[test]
    fn a_transfer_from_who_no_longer_leads_is_stale() {
        let step = Step::TransferLeader {
            shard: ShardId(7),
            epoch: 5,
            from: NodeId(2),
            to: NodeId(1),
        };
        let found = Some(NodeId(1));
        let stale = Stale::Leader {
            shard: ShardId(7),
            expected: NodeId(2),
            found,
        };
        assert_eq!(step.check(&shard()), Err(stale));
        let to_learner = Step::TransferLeader {
            shard: ShardId(7),
            epoch: 5,
            from: NodeId(1),
            to: NodeId(3),
        };
        assert!(to_learner.check(&shard()).is_err());
    }

    #[test]
    fn a_learner_is_added_once() {
        let add = |node| Step::AddLearner {
            shard: ShardId(7),
            epoch: 5,
            node: NodeId(node),
            replaces: None,
        };
        assert!(add(3).check(&shard()).is_err());
        assert!(add(4).check(&shard()).is_ok());
    }
}
