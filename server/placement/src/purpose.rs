//! What learners are for, as far as each one's own shard tells.

use crate::fleet::{Fate, Fleet, Place};
use crate::goals::Goals;
use crate::plan::worst;
use crate::state::{Replica, Role, Shard};

/// What becomes of a learner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// It takes that voter's place: the voter has to go, or the shard is spread better without it.
    Replace(Place),
    /// It takes that voter's place, for evenness alone.
    Even(Place),
    /// It takes a missing voter's place.
    Fill,
    /// None: it goes.
    Nothing,
}

/// A shard's learners.
pub(crate) fn learners(shard: &Shard) -> impl Iterator<Item = &Replica> {
    shard
        .replicas
        .iter()
        .filter(|replica| replica.role != Role::Voter)
}

/// The one learner that may stay: the one that is nearest to its end. Others are left from an operator's hand.
pub(crate) fn nearest<'a>(fleet: &Fleet, shard: &'a Shard) -> Option<&'a Replica> {
    learners(shard).min_by_key(|replica| {
        let node = fleet.at(replica.node);
        (
            node.fate,
            !node.up,
            replica.lag.unwrap_or(u64::MAX),
            replica.node,
        )
    })
}

/// What the nearest learner is for. What other shards do has no say in it, so it stays as it is for as long
/// as the shard's replicas do and no node changes.
pub(crate) fn purpose(fleet: &Fleet, goals: &Goals, shard: &Shard, learner: &Replica) -> Purpose {
    if fleet.at(learner.node).fate != Fate::Kept {
        return Purpose::Nothing;
    }
    let voters: Vec<Place> = shard
        .voters()
        .map(|voter| fleet.place(voter.node))
        .collect();
    if voters.len() < goals.replication {
        return Purpose::Fill;
    }
    // The worst voter goes first, whatever the learner was begun for.
    if let Some(bad) = worst(fleet, &voters) {
        return Purpose::Replace(bad);
    }
    let Role::Learner {
        replaces: Some(replaced),
    } = learner.role
    else {
        return Purpose::Nothing;
    };
    let (from, to) = (fleet.place(replaced), fleet.place(learner.node));
    if !voters.contains(&from) || voters.len() > goals.replication {
        return Purpose::Nothing;
    }
    let before = fleet.diversity(voters.iter().copied());
    let after = fleet.diversity(
        voters
            .iter()
            .map(|place| if *place == from { to } else { *place }),
    );
    match after.cmp(&before) {
        std::cmp::Ordering::Greater => Purpose::Replace(from),
        std::cmp::Ordering::Equal => Purpose::Even(from),
        std::cmp::Ordering::Less => Purpose::Nothing,
    }
}
