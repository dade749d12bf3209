//! What is under way: each move's next step, or its end where it serves nothing any more.

use crate::fleet::Place;
use crate::plan::{Draft, has_learner, is_caught_up, margin};
use crate::purpose::{Purpose, learners, nearest, purpose};
use crate::state::{NodeId, Shard};
use crate::step::Step;

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
    let Some(learner) = nearest(&draft.fleet, shard) else {
        return;
    };
    if let Some(extra) = learners(shard).find(|replica| replica.node != learner.node) {
        remove(draft, index, extra.node);
        return;
    }
    let purpose = purpose(&draft.fleet, draft.goals, shard, learner);
    let to = draft.fleet.place(learner.node);
    let replaced = match purpose {
        Purpose::Nothing => {
            remove(draft, index, learner.node);
            return;
        }
        // The fleet counts the move as done. Worth finishing is what would not be worth undoing. One given up
        // counts as undone at once, or others would be begun or given up for what it never does.
        Purpose::Even(from) if draft.fleet.is_evener(to, from) => {
            draft.fleet.foresee(from, Some(to));
            remove(draft, index, learner.node);
            return;
        }
        Purpose::Fill => None,
        Purpose::Replace(voter) | Purpose::Even(voter) => Some(voter),
    };
    // A node that is away for a moment, or still copying: the move waits.
    if draft.fleet.nodes[to].up && is_caught_up(draft.goals, learner.lag) {
        promote(draft, index, learner.node, replaced);
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
