//! What would be better: shards spread over more zones, replicas even over nodes.

use std::cmp::Reverse;

use crate::fleet::{Fate, Place};
use crate::plan::{Draft, is_caught_up};
use crate::state::{Replica, Shard};

/// Moves one voter of each shard that could be spread better.
pub(crate) fn spread(draft: &mut Draft<'_>) {
    let best = best_possible(draft);
    for index in draft.idle() {
        let shard = &draft.state.shards[index];
        let voters = draft.voters(shard);
        if draft.fleet.diversity(voters.iter().copied()) >= best
            || !may_improve(draft, shard, &voters)
        {
            continue;
        }
        if let Some((from, to)) = better_spread(draft, shard, &voters) {
            draft.begin_move(index, [to], Some(from));
        }
    }
}

/// The best spread that any shard can have, to leave the others alone quickly.
fn best_possible(draft: &Draft<'_>) -> usize {
    let fleet = &draft.fleet;
    let mut chosen: Vec<Place> = Vec::new();
    // One node of each further region, then one of each further zone, as far as voters go.
    for further_region in [true, false] {
        for place in 0..fleet.nodes.len() {
            let (node, seen) = (&fleet.nodes[place], &chosen);
            let new_region = seen
                .iter()
                .all(|other| fleet.nodes[*other].region != node.region);
            let new_zone = seen
                .iter()
                .all(|other| fleet.nodes[*other].zone != node.zone);
            let adds = new_zone && (new_region || !further_region);
            if adds && node.is_open() && chosen.len() < draft.goals.replication {
                chosen.push(place);
            }
        }
    }
    fleet.diversity(chosen.iter().copied())
}

/// Only a shard in full health is moved for its looks: it stays, and all voters stay, are up and have caught up.
fn may_improve(draft: &Draft<'_>, shard: &Shard, voters: &[Place]) -> bool {
    let sound = |place: &Place| {
        let node = &draft.fleet.nodes[*place];
        node.up && node.fate == Fate::Kept
    };
    let up_to_date =
        |voter: &Replica| Some(voter.node) == shard.leader || is_caught_up(draft.goals, voter.lag);
    !shard.goes
        && voters.len() == draft.goals.replication
        && voters.iter().all(sound)
        && shard.voters().all(up_to_date)
        && shard
            .leader
            .is_some_and(|node| draft.can_send(draft.fleet.place(node)))
}

/// The swap that spreads a shard best; of equals the one from the fullest voter to the emptiest node.
fn better_spread(draft: &Draft<'_>, shard: &Shard, voters: &[Place]) -> Option<(Place, Place)> {
    let fleet = &draft.fleet;
    let now = fleet.diversity(voters.iter().copied());
    let mut best = None;
    for from in voters {
        let stays = voters.iter().copied().filter(|place| place != from);
        for to in 0..fleet.nodes.len() {
            if !draft.can_receive(shard, to) {
                continue;
            }
            let then = fleet.diversity(stays.clone().chain([to]));
            let key = (then, fleet.surplus(*from) - fleet.surplus(to), Reverse(to));
            if then > now && best.is_none_or(|(found, _)| key > found) {
                best = Some((key, (*from, to)));
            }
        }
    }
    best.map(|(_, swap)| swap)
}

/// Moves replicas from nodes with a surplus to nodes with less, where spread allows it.
pub(crate) fn even(draft: &mut Draft<'_>) {
    let places = 0..draft.fleet.nodes.len();
    let Some(emptiest) = places
        .clone()
        .filter(|place| draft.is_target(*place))
        .min_by_key(|place| draft.fleet.surplus_max(*place))
    else {
        return;
    };
    let fleet = &draft.fleet;
    let mut full: Vec<Place> = places
        .filter(|place| fleet.nodes[*place].fate == Fate::Kept && fleet.is_evener(*place, emptiest))
        .collect();
    full.sort_unstable_by_key(|place| (Reverse(fleet.surplus_min(*place)), *place));
    if full.is_empty() {
        return;
    }
    let mut held = held_by(draft);
    let mut zones = Zones::new(draft);
    for from in full {
        relieve(draft, from, &std::mem::take(&mut held[from]), &mut zones);
        if draft.fleet.moves >= draft.goals.limits.moves_max {
            return;
        }
    }
}

/// By node: the idle shards with a voter there, those that it does not lead first.
fn held_by(draft: &Draft<'_>) -> Vec<Vec<usize>> {
    let mut held = vec![Vec::new(); draft.fleet.nodes.len()];
    let mut led = held.clone();
    for index in draft.idle() {
        let shard = &draft.state.shards[index];
        for voter in shard.voters() {
            let list = if shard.leader == Some(voter.node) {
                &mut led
            } else {
                &mut held
            };
            list[draft.fleet.place(voter.node)].push(index);
        }
    }
    for (held, led) in held.iter_mut().zip(led) {
        held.extend(led);
    }
    held
}

/// Moves shards off one node for as long as that makes the cluster evener.
fn relieve(draft: &mut Draft<'_>, from: Place, shards: &[usize], zones: &mut Zones) {
    for index in shards {
        if draft.settled[*index] {
            continue;
        }
        let Some(emptiest) = zones.emptiest(draft) else {
            return;
        };
        if !is_worth_a_move(draft, from, emptiest) {
            return;
        }
        let shard = &draft.state.shards[*index];
        let voters = draft.voters(shard);
        if !may_improve(draft, shard, &voters) {
            continue;
        }
        let now = draft.fleet.diversity(voters.iter().copied());
        let target = zones.nodes(draft, shard).filter(|to| {
            let then = voters
                .iter()
                .map(|place| if *place == from { *to } else { *place });
            is_worth_a_move(draft, from, *to) && draft.fleet.diversity(then) >= now
        });
        let target = target.min_by_key(|to| (draft.fleet.surplus_max(*to), *to));
        if target.is_some_and(|to| draft.begin_move(*index, [to], Some(from))) {
            zones.sort(draft);
        }
    }
}

/// The move makes the cluster evener, and one of its ends is further from its fair share than the slack.
fn is_worth_a_move(draft: &Draft<'_>, from: Place, to: Place) -> bool {
    let fleet = &draft.fleet;
    let slack = |place: Place| {
        let share = fleet.replicas_total * i64::from(fleet.nodes[place].weight);
        (share * i64::from(draft.goals.replica_slack_percent) / 100).max(fleet.weight_kept)
    };
    let beyond = fleet.surplus_min(from) > slack(from) || -fleet.surplus_max(to) > slack(to);
    fleet.is_evener(from, to) && beyond
}

/// The nodes that may receive, by zone, emptiest first.
struct Zones {
    by_zone: Vec<Vec<Place>>,
}

impl Zones {
    fn new(draft: &Draft<'_>) -> Self {
        let mut by_zone = vec![Vec::new(); draft.fleet.zones];
        for (place, node) in draft.fleet.nodes.iter().enumerate() {
            if draft.is_target(place) {
                by_zone[node.zone].push(place);
            }
        }
        let mut zones = Self { by_zone };
        zones.sort(draft);
        zones
    }

    fn sort(&mut self, draft: &Draft<'_>) {
        for zone in &mut self.by_zone {
            zone.sort_by_key(|place| (draft.fleet.surplus_max(*place), *place));
        }
    }

    fn emptiest(&self, draft: &Draft<'_>) -> Option<Place> {
        let firsts = self.by_zone.iter().filter_map(|zone| zone.first().copied());
        firsts.min_by_key(|place| (draft.fleet.surplus_max(*place), *place))
    }

    /// Of each zone, the emptiest node that could take the shard. It may be busy: then it is waited for,
    /// since a move to another would have to be followed by one more.
    fn nodes<'a>(
        &'a self,
        draft: &'a Draft<'_>,
        shard: &'a Shard,
    ) -> impl Iterator<Item = Place> + 'a {
        let could = move |place: &&Place| {
            let node = &draft.fleet.nodes[**place];
            draft.is_target(**place) && shard.replica(node.id).is_none()
        };
        self.by_zone
            .iter()
            .filter_map(move |zone| zone.iter().find(could).copied())
    }
}
