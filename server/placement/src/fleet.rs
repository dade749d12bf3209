//! The nodes, by index, with what they hold: now, and once everything under way is done.

use std::collections::BTreeMap;

use crate::goals::{Goals, Spread};
use crate::plan::margin;
use crate::purpose::{Purpose, nearest, purpose};
use crate::state::{NodeId, Replica, Role, Shard, Standing, State};

/// A node's index in [`Fleet::nodes`].
pub(crate) type Place = usize;

/// What a voter's node says about the voter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fate {
    /// It stays.
    Kept,
    /// Its node is being drained.
    Leaving,
    /// Its node is removed or dead.
    Lost,
}

/// A node, as far as planning needs it.
#[derive(Debug)]
pub(crate) struct Berth {
    pub(crate) id: NodeId,
    /// Zones, numbered across regions.
    pub(crate) zone: usize,
    pub(crate) region: usize,
    pub(crate) weight: u32,
    /// It answers.
    pub(crate) up: bool,
    pub(crate) may_lead: bool,
    pub(crate) has_room: bool,
    /// It could lead, but has started a moment ago, and others well before it.
    pub(crate) settles: bool,
    pub(crate) fate: Fate,
    /// Replicas held, with every move that is under way taken as done.
    pub(crate) replicas: i64,
    /// The fewest and the most that it may come to, of all ways in which the open changes can end.
    replicas_min: i64,
    replicas_max: i64,
    /// Shards led.
    pub(crate) leaders: usize,
    /// Moves that it takes part in.
    pub(crate) moves: usize,
    /// Replicas on its disk at this moment, which the limit counts.
    pub(crate) held: usize,
}

impl Berth {
    /// It is to hold its share.
    pub(crate) fn is_open(&self) -> bool {
        self.up && self.fate == Fate::Kept && self.weight > 0
    }

    /// It may be given leaders, also to make them even.
    pub(crate) fn is_heir(&self) -> bool {
        self.is_open() && self.may_lead && !self.settles
    }
}

/// How sure it is that a replica comes or goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chance {
    /// It is there, or the move there has begun and nothing was proposed that could end it.
    Sure,
    /// It was proposed, or is a step of this plan: taken as done, but it may not happen.
    Likely,
    /// It may happen still, though what was proposed should be the contrary.
    Unlikely,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The listed ones, and behind them what a replica on an unlisted node is taken to be on.
    pub(crate) nodes: Vec<Berth>,
    by_id: BTreeMap<NodeId, Place>,
    pub(crate) zones: usize,
    pub(crate) spread: Spread,
    /// Moves under way in the cluster.
    pub(crate) moves: usize,
    /// Weights of the nodes that keep their replicas.
    pub(crate) weight_kept: i64,
    /// Replicas, with every move taken as done.
    pub(crate) replicas_total: i64,
}

impl Fleet {
    pub(crate) fn new(state: &State, goals: &Goals) -> Self {
        let mut regions = BTreeMap::new();
        let mut zones = BTreeMap::new();
        let mut by_id = BTreeMap::new();
        let mut nodes = Vec::with_capacity(state.nodes.len() + 1);
        let up_for_ms = state.nodes.iter().map(|node| node.up_for_ms);
        let longest_up_ms = up_for_ms.max().unwrap_or(0);
        for node in &state.nodes {
            let next = regions.len();
            let region = *regions.entry(node.region.as_str()).or_insert(next);
            let next = zones.len();
            let zone = *zones.entry((region, node.zone.as_str())).or_insert(next);
            by_id.insert(node.id, nodes.len());
            let dead = node
                .down_since_ms
                .is_some_and(|since| state.now_ms.saturating_sub(since) >= goals.dead_after_ms);
            let fate = match node.standing {
                Standing::Removed => Fate::Lost,
                _ if dead => Fate::Lost,
                Standing::Draining => Fate::Leaving,
                Standing::Member => Fate::Kept,
            };
            let up = node.down_since_ms.is_none() && node.standing != Standing::Removed;
            let mut berth = Berth::new(node.id, zone, region, node.weight, up, fate);
            (berth.may_lead, berth.has_room) = (node.may_lead, node.has_room);
            // Where all have started at one time, a few seconds apart, that is soon over.
            let behind_ms = longest_up_ms.saturating_sub(node.up_for_ms);
            let is_young = node.up_for_ms < goals.settle_ms.min(behind_ms);
            berth.settles = is_young && berth.is_open() && berth.may_lead;
            nodes.push(berth);
        }
        // No zone of a listed node has these numbers.
        let (zone, region) = (zones.len(), regions.len());
        nodes.push(Berth::new(
            NodeId(u64::MAX),
            zone,
            region,
            0,
            false,
            Fate::Lost,
        ));
        let kept = nodes.iter().filter(|node| node.fate == Fate::Kept);
        let weight_kept = kept.map(|node| i64::from(node.weight)).sum();
        let mut fleet = Self {
            nodes,
            by_id,
            zones: zones.len() + 1,
            spread: goals.spread,
            moves: 0,
            weight_kept,
            replicas_total: 0,
        };
        for shard in &state.shards {
            fleet.count(goals, shard);
        }
        fleet.replicas_total = fleet.nodes.iter().map(|node| node.replicas).sum();
        fleet
    }

    /// Adds what a shard's replicas come to.
    fn count(&mut self, goals: &Goals, shard: &Shard) {
        for replica in &shard.replicas {
            let place = self.place(replica.node);
            self.nodes[place].held += 1;
            if replica.role == Role::Voter {
                self.shift(place, 1, Chance::Sure);
            }
        }
        if let Some(learner) = nearest(self, shard) {
            let serves = purpose(self, goals, shard, learner);
            self.count_learner(shard, learner, serves);
        }
        let Some(leader) = shard.leader.map(|node| self.place(node)) else {
            return;
        };
        self.nodes[leader].leaders += 1;
        // A node that is away receives nothing, and takes nobody's turn. Nor does a change take it that waits
        // for such nodes.
        let live = |place: &Place| self.nodes[*place].up;
        let receiving: Vec<Place> = shard
            .replicas
            .iter()
            .filter(|replica| replica.role != Role::Voter)
            .map(|replica| self.place(replica.node))
            .filter(live)
            .collect();
        let voters = shard.voters().map(|voter| self.at(voter.node).up);
        if !receiving.is_empty() && live(&leader) && margin(voters) >= 0 {
            self.count_move(&receiving, leader);
        }
    }

    /// Adds what a learner's move comes to.
    fn count_learner(&mut self, shard: &Shard, learner: &Replica, serves: Purpose) {
        let to = self.place(learner.node);
        let named = match learner.role {
            Role::Learner { replaces } => replaces.filter(|node| is_voter(shard, *node)),
            Role::Voter => None,
        };
        let from = match serves {
            Purpose::Replace(voter) | Purpose::Even(voter) => Some(voter),
            Purpose::Fill => None,
            Purpose::Nothing => named.map(|node| self.place(node)),
        };
        // What was proposed may be either, the learner's promotion or its removal.
        let chance = match (serves, shard.changing) {
            (Purpose::Nothing, false) => return,
            (Purpose::Nothing, true) => Chance::Unlikely,
            (_, false) => Chance::Sure,
            (_, true) => Chance::Likely,
        };
        self.shift(to, 1, chance);
        if let Some(from) = from {
            self.shift(from, -1, chance);
        }
    }

    /// Counts what a step of this plan is to end in: a replica comes to one node, and goes from another or is
    /// one more.
    pub(crate) fn foresee(&mut self, to: Place, from: Option<Place>) {
        self.shift(to, 1, Chance::Likely);
        match from {
            Some(from) => self.shift(from, -1, Chance::Likely),
            None => self.replicas_total += 1,
        }
    }

    fn shift(&mut self, place: Place, by: i64, chance: Chance) {
        let node = &mut self.nodes[place];
        if chance != Chance::Unlikely {
            node.replicas += by;
        }
        if chance == Chance::Sure || by < 0 {
            node.replicas_min += by;
        }
        if chance == Chance::Sure || by > 0 {
            node.replicas_max += by;
        }
    }

    /// Counts one move more.
    pub(crate) fn count_move(&mut self, receiving: &[Place], leader: Place) {
        self.moves += 1;
        self.nodes[leader].moves += 1;
        for place in receiving {
            self.nodes[*place].moves += 1;
        }
    }

    pub(crate) fn place(&self, node: NodeId) -> Place {
        self.by_id
            .get(&node)
            .copied()
            .unwrap_or(self.nodes.len() - 1)
    }

    pub(crate) fn at(&self, node: NodeId) -> &Berth {
        &self.nodes[self.place(node)]
    }

    /// How well a set of nodes is spread. Greater is better.
    pub(crate) fn diversity(&self, places: impl Iterator<Item = Place> + Clone) -> usize {
        let distinct = |of: &dyn Fn(&Berth) -> usize| {
            let mut count = 0;
            for (nth, place) in places.clone().enumerate() {
                let mut earlier = places.clone().take(nth);
                count += usize::from(
                    earlier.all(|other| of(&self.nodes[other]) != of(&self.nodes[place])),
                );
            }
            count
        };
        let zones = distinct(&|node| node.zone);
        match self.spread {
            Spread::Zones => zones,
            // A region more outweighs any number of zones that a shard can have.
            Spread::Regions => distinct(&|node| node.region) * 64 + zones,
        }
    }

    /// What a node holds beyond its fair share, times the sum of weights.
    pub(crate) fn surplus(&self, place: Place) -> i64 {
        self.surplus_of(place, self.nodes[place].replicas)
    }

    /// The same at its least, of all ways in which the open changes can end: what it may give from.
    pub(crate) fn surplus_min(&self, place: Place) -> i64 {
        self.surplus_of(place, self.nodes[place].replicas_min)
    }

    /// The same at its greatest: what it would receive on top of.
    pub(crate) fn surplus_max(&self, place: Place) -> i64 {
        self.surplus_of(place, self.nodes[place].replicas_max)
    }

    fn surplus_of(&self, place: Place, replicas: i64) -> i64 {
        let node = &self.nodes[place];
        let weight = if node.fate == Fate::Kept {
            i64::from(node.weight)
        } else {
            0
        };
        replicas * self.weight_kept - self.replicas_total * weight
    }

    /// Whether a move for evenness from one node to another pays, however the open changes end.
    pub(crate) fn is_evener(&self, from: Place, to: Place) -> bool {
        self.surplus_min(from) - self.surplus_max(to) > self.weight_kept
    }
}

fn is_voter(shard: &Shard, node: NodeId) -> bool {
    shard.voters().any(|voter| voter.node == node)
}

impl Berth {
    fn new(id: NodeId, zone: usize, region: usize, weight: u32, up: bool, fate: Fate) -> Self {
        Self {
            id,
            zone,
            region,
            weight,
            up,
            may_lead: up,
            has_room: up,
            settles: false,
            fate,
            replicas: 0,
            replicas_min: 0,
            replicas_max: 0,
            leaders: 0,
            moves: 0,
            held: 0,
        }
    }
}
