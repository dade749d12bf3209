//! What must be: every shard has its voters, on nodes that stay.

use std::cmp::Reverse;

use crate::fleet::{Fate, Place};
use crate::plan::{Draft, margin, worst};
use crate::state::{NodeId, Shard};
use crate::step::Step;

/// Gives shards the voters that they miss, those with the fewest live ones first, and takes away what is too
/// much.
pub(crate) fn restore(draft: &mut Draft<'_>) {
    let mut due: Vec<(usize, usize)> = Vec::new();
    for index in draft.idle() {
        let shard = &draft.state.shards[index];
        let voters = draft.voters(shard);
        if voters.len() > draft.goals.replication {
            shrink(draft, index, shard, &voters);
            continue;
        }
        let lost = voters
            .iter()
            .any(|place| draft.fleet.nodes[*place].fate == Fate::Lost);
        if lost || voters.len() < draft.goals.replication {
            let live = voters
                .iter()
                .filter(|place| draft.fleet.nodes[**place].up)
                .count();
            due.push((live, index));
        }
    }
    due.sort_unstable();
    for (_, index) in due {
        replace_worst(draft, index);
    }
}

/// Moves leaders off nodes that are being emptied, and replicas off those that lead nothing of the shard.
pub(crate) fn drain(draft: &mut Draft<'_>) {
    for index in draft.idle() {
        let shard = &draft.state.shards[index];
        let leader = shard.leader.map(|node| draft.fleet.place(node));
        let Some(leader) = leader.filter(|place| draft.fleet.nodes[*place].fate == Fate::Leaving)
        else {
            continue;
        };
        match draft.heir(shard, leader) {
            Some(heir) if draft.fleet.nodes[heir].is_open() => draft.transfer(index, heir),
            // All its voters leave: the replicas must come first.
            _ => {}
        }
    }
    for index in draft.idle() {
        let shard = &draft.state.shards[index];
        if worst(&draft.fleet, &draft.voters(shard)).is_some() {
            replace_worst(draft, index);
        }
    }
}

/// Begins the move of a shard's worst voter, or of one that is missing.
fn replace_worst(draft: &mut Draft<'_>, index: usize) {
    let leader = draft.state.shards[index]
        .leader
        .map(|node| draft.fleet.place(node));
    if !leader.is_some_and(|place| draft.can_send(place)) {
        return;
    }
    let shard = &draft.state.shards[index];
    let voters = draft.voters(shard);
    let missing = voters.len() < draft.goals.replication;
    let replaced = if missing {
        None
    } else {
        worst(&draft.fleet, &voters)
    };
    let stays: Vec<Place> = voters
        .into_iter()
        .filter(|place| Some(*place) != replaced)
        .collect();
    let targets = best_targets(draft, shard, &stays);
    draft.begin_move(index, targets, replaced);
}

/// Nodes that may join `stays` now: the best spread, and of those the emptiest for its capacity.
fn best_targets(draft: &Draft<'_>, shard: &Shard, stays: &[Place]) -> Option<Place> {
    let fleet = &draft.fleet;
    // What may be had at all sets the mark, so a busy node is waited for rather than a worse one taken and
    // left again.
    let ranked = (0..fleet.nodes.len())
        .filter(|place| draft.is_target(*place) && shard.replica(fleet.nodes[*place].id).is_none())
        .map(|place| (fleet.diversity(stays.iter().copied().chain([place])), place));
    let best = ranked.clone().map(|(diversity, _)| diversity).max()?;
    ranked
        .filter(|(diversity, place)| *diversity == best && draft.can_receive(shard, *place))
        .map(|(_, place)| place)
        .min_by_key(|place| (fleet.surplus(*place), *place))
}

/// Takes a voter too many away: of those without which a majority is live, the worst one, then one not up, then
/// the one least missed.
fn shrink(draft: &mut Draft<'_>, index: usize, shard: &Shard, voters: &[Place]) {
    let fleet = &draft.fleet;
    let leader = shard.leader.map(|node| fleet.place(node));
    let without = |gone: Place| voters.iter().copied().filter(move |place| *place != gone);
    // One that is not up may always go. One that is up may not while too many others are away, and must not
    // keep those from going.
    let up = |place: Place| fleet.nodes[place].up;
    let may_go = voters
        .iter()
        .copied()
        .filter(|place| margin(without(*place).map(up)) >= 0);
    let goes = may_go.max_by_key(|place| {
        let node = &fleet.nodes[*place];
        let spread = fleet.diversity(without(*place));
        let key = (node.fate, !node.up, spread, fleet.surplus(*place));
        (key, Some(*place) != leader, Reverse(*place))
    });
    let Some(goes) = goes else {
        return;
    };
    if Some(goes) == leader {
        if let Some(heir) = draft.heir(shard, goes) {
            draft.transfer(index, heir);
        }
        return;
    }
    let gone: Option<NodeId> = shard
        .voters()
        .map(|voter| voter.node)
        .find(|node| fleet.place(*node) == goes);
    if let Some(node) = gone {
        let step = Step::RemoveReplica {
            shard: shard.id,
            epoch: shard.epoch,
            node,
        };
        draft.add_step(index, step);
    }
}
