//! The planner: what is under way, then what must be, then what would be better.

use crate::balance;
use crate::fleet::{Fate, Fleet, Place};
use crate::goals::Goals;
use crate::leaders;
use crate::progress;
use crate::repair;
use crate::state::{Role, Shard, State};
use crate::step::Step;

/// The steps to take now: none if all goals are reached as far as the nodes allow, or if everything waits.
///
/// At most one step per shard. Order is by urgency; the steps do not depend on each other, so any of them may
/// be executed first, late or never.
#[must_use]
pub fn plan(state: &State, goals: &Goals) -> Vec<Step> {
    let mut draft = Draft::new(state, goals);
    progress::advance(&mut draft);
    draft.node_moves_max = goals.limits.repair_moves_max();
    repair::restore(&mut draft);
    draft.node_moves_max = goals.limits.node_moves_max;
    repair::drain(&mut draft);
    balance::spread(&mut draft);
    balance::even(&mut draft);
    leaders::even(&mut draft);
    draft.steps
}

/// A plan in the making.
pub(crate) struct Draft<'a> {
    pub(crate) state: &'a State,
    pub(crate) goals: &'a Goals,
    pub(crate) fleet: Fleet,
    pub(crate) steps: Vec<Step>,
    /// By place in the state's shards: nothing more is planned for this one.
    pub(crate) settled: Vec<bool>,
    transfers: usize,
    /// Moves that a node may take part in, for what is planned now.
    node_moves_max: usize,
    /// Moves that were under way before this plan.
    moves_begun: usize,
}

impl<'a> Draft<'a> {
    fn new(state: &'a State, goals: &'a Goals) -> Self {
        let fleet = Fleet::new(state, goals);
        let settled = state
            .shards
            .iter()
            .map(|shard| !is_changeable(&fleet, shard))
            .collect();
        Self {
            state,
            goals,
            moves_begun: fleet.moves,
            fleet,
            steps: Vec::new(),
            settled,
            transfers: 0,
            node_moves_max: goals.limits.node_moves_max,
        }
    }

    /// Shards of which nothing is planned yet and which have no move under way.
    pub(crate) fn idle(&self) -> impl Iterator<Item = usize> + use<'a> {
        let settled = self.settled.clone();
        let shards = &self.state.shards;
        (0..shards.len()).filter(move |index| !settled[*index] && !has_learner(&shards[*index]))
    }

    pub(crate) fn add_step(&mut self, index: usize, step: Step) {
        self.settled[index] = true;
        self.steps.push(step);
    }

    /// The nodes of a shard's voters.
    pub(crate) fn voters(&self, shard: &Shard) -> Vec<Place> {
        shard
            .voters()
            .map(|voter| self.fleet.place(voter.node))
            .collect()
    }

    /// How many more transfers this plan may hold.
    pub(crate) fn transfers_left(&self) -> usize {
        self.goals
            .limits
            .transfers_max
            .saturating_sub(self.transfers)
    }

    /// How many of them may be for evenness' sake, off a node: none while replicas move, unless one is hardly noticed
    /// among all shards. Who leads meanwhile is not who will, so it would lead to more transfers, and each takes several
    /// times as long while nodes are busy with copies. A node that should lead nothing does not wait.
    pub(crate) fn evening_left(&self, from: Place) -> usize {
        let node = &self.fleet.nodes[from];
        let may_wait = node.may_lead && node.is_open();
        let few = self.state.shards.len() < self.goals.limits.shards_per_transfer;
        if may_wait && few && self.moves_begun > 0 {
            return 0;
        }
        self.transfers_left()
    }

    /// Plans a transfer, if the limit leaves room.
    pub(crate) fn transfer(&mut self, index: usize, to: Place) {
        let shard = &self.state.shards[index];
        let Some(from) = shard.leader.filter(|_| self.transfers_left() > 0) else {
            return;
        };
        self.transfers += 1;
        let place = self.fleet.place(from);
        self.fleet.nodes[place].leaders = self.fleet.nodes[place].leaders.saturating_sub(1);
        self.fleet.nodes[to].leaders += 1;
        let to = self.fleet.nodes[to].id;
        self.add_step(
            index,
            Step::TransferLeader {
                shard: shard.id,
                epoch: shard.epoch,
                from,
                to,
            },
        );
    }

    /// Who could lead a shard instead of one of its voters: up, able to lead, caught up; the one that leads
    /// least for its capacity. Nodes that are being emptied are taken only if there is nobody else.
    pub(crate) fn heir(&self, shard: &Shard, instead_of: Place) -> Option<Place> {
        let able = shard
            .voters()
            .filter(|voter| is_caught_up(self.goals, voter.lag))
            .map(|voter| self.fleet.place(voter.node))
            .filter(|place| *place != instead_of && self.fleet.nodes[*place].up)
            .filter(|place| self.fleet.nodes[*place].may_lead);
        able.min_by_key(|place| {
            let node = &self.fleet.nodes[*place];
            let load = node.leaders as u64 * 1_000_000 / u64::from(node.weight.max(1));
            (!node.is_open(), load, *place)
        })
    }

    /// Begins a move, if the limits leave room: the first of `targets` that may receive it is the one.
    pub(crate) fn begin_move(
        &mut self,
        index: usize,
        targets: impl IntoIterator<Item = Place>,
        replaced: Option<Place>,
    ) -> bool {
        let shard = &self.state.shards[index];
        let Some(leader) = shard.leader.map(|node| self.fleet.place(node)) else {
            return false;
        };
        if !self.can_send(leader) {
            return false;
        }
        let Some(target) = targets
            .into_iter()
            .find(|place| self.can_receive(shard, *place))
        else {
            return false;
        };
        self.fleet.count_move(&[target], leader);
        self.fleet.nodes[target].held += 1;
        self.fleet.foresee(target, replaced);
        let step = Step::AddLearner {
            shard: shard.id,
            epoch: shard.epoch,
            node: self.fleet.nodes[target].id,
            // The state's own name for it: an unlisted node has none in the fleet.
            replaces: replaced.and_then(|place| {
                shard
                    .voters()
                    .map(|voter| voter.node)
                    .find(|node| self.fleet.place(*node) == place)
            }),
        };
        self.add_step(index, step);
        true
    }

    /// The cluster and the leader that would send have room for a move more.
    pub(crate) fn can_send(&self, leader: Place) -> bool {
        let limits = &self.goals.limits;
        self.fleet.moves < limits.moves_max && self.fleet.nodes[leader].moves < self.node_moves_max
    }

    /// A node may take a replica of the shard now.
    pub(crate) fn can_receive(&self, shard: &Shard, place: Place) -> bool {
        let node = &self.fleet.nodes[place];
        node.moves < self.node_moves_max
            && self.is_target(place)
            && shard.replica(node.id).is_none()
    }

    /// A node may take replicas at all.
    pub(crate) fn is_target(&self, place: Place) -> bool {
        let node = &self.fleet.nodes[place];
        node.is_open() && node.has_room && node.held < self.goals.limits.node_replicas_max
    }
}

/// A majority of its voters is live, one of them leads, and no change is under way.
fn is_changeable(fleet: &Fleet, shard: &Shard) -> bool {
    let voters = shard.voters().map(|voter| fleet.at(voter.node).up);
    let leads = shard
        .leader
        .is_some_and(|node| fleet.at(node).up && shard.voters().any(|voter| voter.node == node));
    !shard.changing && leads && margin(voters) >= 0
}

/// How many live voters there are beyond a majority; negative without one.
pub(crate) fn margin(voters: impl Iterator<Item = bool>) -> i64 {
    let (mut live, mut all) = (0, 0);
    for up in voters {
        all += 1;
        live += i64::from(up);
    }
    live - (all / 2 + 1)
}

pub(crate) fn has_learner(shard: &Shard) -> bool {
    shard
        .replicas
        .iter()
        .any(|replica| replica.role != Role::Voter)
}

pub(crate) fn is_caught_up(goals: &Goals, lag: Option<u64>) -> bool {
    lag.is_some_and(|lag| lag <= goals.lag_max)
}

/// The voter that should go first, of several that should: the worst fate, then the one not up.
pub(crate) fn worst(fleet: &Fleet, voters: &[Place]) -> Option<Place> {
    let bad = voters
        .iter()
        .copied()
        .filter(|place| fleet.nodes[*place].fate > Fate::Kept);
    bad.max_by_key(|place| {
        let node = &fleet.nodes[*place];
        (node.fate, !node.up, std::cmp::Reverse(*place))
    })
}
