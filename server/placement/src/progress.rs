//! What is under way: each move's next step, or its end where it serves nothing any more.

use crate::fleet::{Fate, Place};
use crate::plan::{Draft, has_learner, is_caught_up, margin, worst};
use crate::state::{NodeId, Replica, Role, Shard};
use crate::step::Step;

/// What becomes of a learner.
enum Purpose {
    /// It takes that voter's place.
    Replace(Place),
    /// It takes a missing voter's place.
    Fill,
    /// None: it goes.
    Nothing,
}

/// Advances every shard that has a learner.
pub(crate) fn advance(draft: &mut Draft<'_>) {
    for index in 0..draft.state.shards.len() {
        let shard = &draft.state.shards[index];
        if !draft.settled[index] && has_learner(shard) {
            advance_shard(draft, index, shard);
        }
    }
}

fn advance_shard(draft: &mut Draft<'_>, index: usize, shard: &Shard) {
    let learners = || {
        shard
            .replicas
            .iter()
            .filter(|replica| replica.role != Role::Voter)
    };
    // One at a time: the one that is nearest to its end. Others are left from an operator's hand.
    let best = learners().min_by_key(|replica| {
        let node = draft.fleet.at(replica.node);
        (
            node.fate,
            !node.up,
            replica.lag.unwrap_or(u64::MAX),
            replica.node,
        )
    });
    let Some(learner) = best else {
        return;
    };
    if let Some(extra) = learners().find(|replica| replica.node != learner.node) {
        remove(draft, index, extra.node);
        return;
    }
    match purpose(draft, shard, learner) {
        Purpose::Nothing => remove(draft, index, learner.node),
        // A node that is away for a moment, or still copying: the move waits.
        _ if !draft.fleet.at(learner.node).up || !is_caught_up(draft.goals, learner.lag) => {}
        Purpose::Fill => promote(draft, index, learner.node, None),
        Purpose::Replace(voter) => promote(draft, index, learner.node, Some(voter)),
    }
}

fn purpose(draft: &Draft<'_>, shard: &Shard, learner: &Replica) -> Purpose {
    let fleet = &draft.fleet;
    if fleet.at(learner.node).fate != Fate::Kept {
        return Purpose::Nothing;
    }
    let voters = draft.voters(shard);
    if voters.len() < draft.goals.replication {
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
    if !voters.contains(&from) || voters.len() > draft.goals.replication {
        return Purpose::Nothing;
    }
    let before = fleet.diversity(voters.iter().copied());
    let after = fleet.diversity(
        voters
            .iter()
            .map(|place| if *place == from { to } else { *place }),
    );
    // The fleet counts the move as done. Worth finishing is what would not be worth undoing.
    let keeps = after > before || (after == before && !fleet.is_evener(to, from));
    if keeps {
        Purpose::Replace(from)
    } else {
        Purpose::Nothing
    }
}

fn promote(draft: &mut Draft<'_>, index: usize, learner: NodeId, replaced: Option<Place>) {
    let shard = &draft.state.shards[index];
    let fleet = &draft.fleet;
    let replaced_id = replaced.and_then(|place| {
        shard
            .voters()
            .map(|voter| voter.node)
            .find(|node| fleet.place(*node) == place)
    });
    if let (Some(place), true) = (replaced, replaced_id == shard.leader) {
        if let Some(heir) = draft.heir(shard, place) {
            draft.transfer(index, heir);
        }
        return;
    }
    let up = |node| fleet.at(node).up;
    let before = margin(shard.voters().map(|voter| up(voter.node)));
    let stays = shard
        .voters()
        .map(|voter| voter.node)
        .filter(|node| Some(*node) != replaced_id);
    let after = margin(stays.chain([learner]).map(up));
    if after < 0 || after < before {
        return;
    }
    let step = Step::PromoteReplace {
        shard: shard.id,
        epoch: shard.epoch,
        learner,
        replaced: replaced_id,
    };
    draft.add_step(index, step);
}

fn remove(draft: &mut Draft<'_>, index: usize, node: NodeId) {
    let shard = &draft.state.shards[index];
    let step = Step::RemoveReplica {
        shard: shard.id,
        epoch: shard.epoch,
        node,
    };
    draft.add_step(index, step);
}
