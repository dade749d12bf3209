//! A pretended cluster that executes steps: late, twice, in part, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use mailbox_placement::{
    Goals, Node, NodeId, Replica, Role, Shard, ShardId, Standing, State, Step, plan,
};

/// Repeatable chance (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// How unreliably steps are executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    /// Steps that are lost, in percent.
    pub(crate) lost: u64,
    /// Steps that come twice, in percent.
    pub(crate) doubled: u64,
    /// A step comes up to this many rounds late.
    pub(crate) late: usize,
    /// Changes that take a round more, each round, in percent.
    pub(crate) slow: u64,
}

pub(crate) const NO_TROUBLE: Trouble = Trouble {
    lost: 0,
    doubled: 0,
    late: 0,
    slow: 0,
};

/// What was done to the cluster so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Done {
    pub(crate) added: usize,
    pub(crate) promoted: usize,
    pub(crate) removed: usize,
    pub(crate) transferred: usize,
}

/// The cluster. One round is ten seconds.
pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) goals: Goals,
    pub(crate) trouble: Trouble,
    pub(crate) done: Done,
    pub(crate) chance: Chance,
    /// Steps on their way to the executor, with the round in which they arrive.
    late: Vec<(usize, Step)>,
    /// Joint changes under way: the shard, and what it comes to.
    joint: Vec<(usize, Step)>,
    round: usize,
}

pub(crate) const ROUND_MS: u64 = 10_000;

impl Cluster {
    pub(crate) fn new(state: State, goals: Goals, trouble: Trouble, seed: u64) -> Self {
        let (late, joint) = (Vec::new(), Vec::new());
        let (done, chance) = (Done::default(), Chance(seed));
        Self {
            state,
            goals,
            trouble,
            done,
            chance,
            late,
            joint,
            round: 0,
        }
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        let node = self
            .state
            .nodes
            .iter_mut()
            .find(|node| node.id == NodeId(id));
        node.expect("the node is listed")
    }

    pub(crate) fn set_down(&mut self, id: u64) {
        let now = self.state.now_ms;
        self.node(id).down_since_ms = Some(now);
    }

    pub(crate) fn set_up(&mut self, id: u64) {
        self.node(id).down_since_ms = None;
    }

    /// Plans, checks the plan's promises, executes what arrives. Returns how many steps were planned.
    pub(crate) fn round(&mut self) -> usize {
        self.round += 1;
        self.state.now_ms += ROUND_MS;
        self.elect();
        self.copy();
        self.finish_joint();
        let steps = plan(&self.state, &self.goals);
        assert_promises(&self.state, &self.goals, &steps);
        for step in &steps {
            let copies = 1 + usize::from(self.chance.percent(self.trouble.doubled));
            for _ in 0..copies {
                if !self.chance.percent(self.trouble.lost) {
                    let arrives = self.round + self.chance.below(self.trouble.late + 1);
                    self.late.push((arrives, *step));
                }
            }
        }
        let round = self.round;
        let due = self.late.extract_if(.., |(arrives, _)| *arrives <= round);
        for (_, step) in due.collect::<Vec<_>>() {
            self.execute(step);
        }
        steps.len()
    }

    /// Nothing is on its way or under way, but for changes that lost a majority of their voters and wait.
    fn is_quiet(&self) -> bool {
        let waits = |(index, step): &(usize, Step)| {
            let shard = &self.state.shards[*index];
            !self.has_majority(&voters(shard)) || !self.has_majority(&voters_after(shard, step))
        };
        self.late.is_empty() && self.joint.iter().all(waits)
    }

    /// Plays rounds until nothing is planned any more, for some rounds on end.
    pub(crate) fn settle(&mut self, rounds_max: usize) {
        let mut quiet = 0;
        for _ in 0..rounds_max {
            let planned = self.round();
            let rests = planned == 0 && self.is_quiet();
            quiet = if rests { quiet + 1 } else { 0 };
            if quiet > 3 {
                return;
            }
        }
        let steps = plan(&self.state, &self.goals);
        panic!(
            "still planning after {rounds_max} rounds, {:?}: {steps:?}",
            self.done
        );
    }

    fn is_up(&self, node: NodeId) -> bool {
        let node = self.state.nodes.iter().find(|listed| listed.id == node);
        node.is_some_and(is_up)
    }

    /// A shard whose leader is gone elects a live voter, if a majority is live.
    fn elect(&mut self) {
        let up = up_nodes(&self.state);
        for shard in &mut self.state.shards {
            let live: Vec<NodeId> = shard
                .voters()
                .map(|voter| voter.node)
                .filter(|node| up.contains(node))
                .collect();
            let leads = shard.leader.is_some_and(|leader| live.contains(&leader));
            if live.len() * 2 <= shard.voters().count() {
                shard.leader = None;
            } else if !leads {
                shard.leader = Some(live[self.chance.below(live.len())]);
            }
        }
    }

    /// Replicas on nodes that are up catch up with their leader.
    fn copy(&mut self) {
        let up = up_nodes(&self.state);
        for shard in self
            .state
            .shards
            .iter_mut()
            .filter(|shard| shard.leader.is_some())
        {
            for replica in shard
                .replicas
                .iter_mut()
                .filter(|held| up.contains(&held.node))
            {
                replica.lag = Some(replica.lag.map_or(2500, |lag| lag.saturating_sub(1000)));
            }
        }
    }

    /// Joint changes end when both majorities are live. Some take their time.
    fn finish_joint(&mut self) {
        let joint = std::mem::take(&mut self.joint);
        for (index, step) in joint {
            let after = voters_after(&self.state.shards[index], &step);
            let both =
                self.has_majority(&voters(&self.state.shards[index])) && self.has_majority(&after);
            if !both || (self.trouble.slow > 0 && self.chance.percent(self.trouble.slow)) {
                self.joint.push((index, step));
                continue;
            }
            finish(&mut self.state.shards[index], step);
        }
    }

    /// The state once everything under way is done: each change ends as it was proposed, and each learner takes
    /// its voter's place.
    pub(crate) fn outcome(&self) -> State {
        let mut state = self.state.clone();
        for (index, step) in &self.joint {
            finish(&mut state.shards[*index], *step);
        }
        for shard in &mut state.shards {
            let replaced = shard.replicas.iter().filter_map(|held| match held.role {
                Role::Learner { replaces } => replaces,
                Role::Voter => None,
            });
            let replaced: Vec<NodeId> = replaced.collect();
            shard.replicas.retain(|held| !replaced.contains(&held.node));
        }
        state
    }

    fn has_majority(&self, voters: &[NodeId]) -> bool {
        voters.iter().filter(|node| self.is_up(**node)).count() * 2 > voters.len()
    }

    fn execute(&mut self, step: Step) {
        let index = self
            .state
            .shards
            .iter()
            .position(|shard| shard.id == step.shard());
        let index = index.expect("the shard is listed");
        let shard = &mut self.state.shards[index];
        if step.check(shard).is_err() {
            return;
        }
        match step {
            Step::AddLearner { node, replaces, .. } => {
                let role = Role::Learner { replaces };
                shard.replicas.push(Replica {
                    node,
                    role,
                    lag: None,
                });
                shard.epoch += 1;
                self.done.added += 1;
            }
            Step::TransferLeader { to, .. } => {
                if self.is_up(to) {
                    self.state.shards[index].leader = Some(to);
                    self.done.transferred += 1;
                }
            }
            Step::PromoteReplace { .. } => {
                shard.changing = true;
                self.done.promoted += 1;
                self.joint.push((index, step));
            }
            Step::RemoveReplica { .. } => {
                shard.changing = true;
                self.done.removed += 1;
                self.joint.push((index, step));
            }
        }
    }
}

/// Ends a joint change.
fn finish(shard: &mut Shard, step: Step) {
    shard.changing = false;
    shard.epoch += 1;
    if let Step::PromoteReplace {
        learner, replaced, ..
    } = step
    {
        shard.replicas.retain(|held| Some(held.node) != replaced);
        let promoted = shard.replicas.iter_mut().find(|held| held.node == learner);
        promoted.expect("the learner stays").role = Role::Voter;
    }
    if let Step::RemoveReplica { node, .. } = step {
        shard.replicas.retain(|held| held.node != node);
    }
}

pub(crate) fn is_up(node: &Node) -> bool {
    node.down_since_ms.is_none() && node.standing != Standing::Removed
}

fn up_nodes(state: &State) -> BTreeSet<NodeId> {
    state
        .nodes
        .iter()
        .filter(|node| is_up(node))
        .map(|node| node.id)
        .collect()
}

pub(crate) fn voters(shard: &Shard) -> Vec<NodeId> {
    shard.voters().map(|voter| voter.node).collect()
}

fn voters_after(shard: &Shard, step: &Step) -> Vec<NodeId> {
    let mut voters = voters(shard);
    match *step {
        Step::PromoteReplace {
            learner, replaced, ..
        } => {
            voters.retain(|node| Some(*node) != replaced);
            voters.push(learner);
        }
        Step::RemoveReplica { node, .. } => voters.retain(|voter| *voter != node),
        _ => {}
    }
    voters
}

/// What every plan keeps, whatever the state.
fn assert_promises(state: &State, goals: &Goals, steps: &[Step]) {
    let up = up_nodes(state);
    let margin = |voters: &[NodeId]| {
        let live = voters.iter().filter(|node| up.contains(node)).count();
        live as i64 - (voters.len() / 2 + 1) as i64
    };
    let shards: BTreeMap<ShardId, &Shard> =
        state.shards.iter().map(|shard| (shard.id, shard)).collect();
    let mut touched = BTreeSet::new();
    let mut receiving: BTreeMap<NodeId, usize> = BTreeMap::new();
    for step in steps {
        assert!(
            touched.insert(step.shard()),
            "two steps of one shard: {steps:?}"
        );
        let shard = shards[&step.shard()];
        assert_eq!(step.check(shard), Ok(()), "{step:?} does not fit {shard:?}");
        let (before, after) = (margin(&voters(shard)), margin(&voters_after(shard, step)));
        assert!(before >= 0, "{step:?} of a shard that can commit nothing");
        assert!(after >= 0, "{step:?} takes the majority from {shard:?}");
        if let Step::PromoteReplace { learner, .. } = step {
            assert!(after >= before, "{step:?} weakens {shard:?}");
            let lag = shard.replica(*learner).and_then(|held| held.lag);
            assert!(
                lag.is_some_and(|lag| lag <= goals.lag_max),
                "{step:?} before {shard:?} caught up"
            );
        }
        if let Step::AddLearner { node, .. } = step {
            assert!(up.contains(node), "{step:?} to a node that is down");
            *receiving.entry(*node).or_default() += 1;
        }
    }
    let begun: usize = receiving.values().sum();
    let transfers = steps
        .iter()
        .filter(|step| matches!(step, Step::TransferLeader { .. }))
        .count();
    assert!(
        transfers <= goals.limits.transfers_max,
        "{transfers} transfers at once"
    );
    let is_moving = |shard: &Shard| {
        shard.leader.is_some_and(|leader| up.contains(&leader))
            && shard
                .replicas
                .iter()
                .any(|held| held.role != Role::Voter && up.contains(&held.node))
    };
    let moving = state.shards.iter().filter(|shard| is_moving(shard)).count();
    assert!(
        begun == 0 || begun + moving <= goals.limits.moves_max,
        "{begun} more than {moving} moves"
    );
    let mut learning: BTreeMap<NodeId, usize> = BTreeMap::new();
    for shard in state.shards.iter().filter(|shard| is_moving(shard)) {
        for held in shard
            .replicas
            .iter()
            .filter(|held| held.role != Role::Voter)
        {
            *learning.entry(held.node).or_default() += 1;
        }
    }
    for (node, more) in receiving {
        let now = learning.get(&node).copied().unwrap_or(0);
        assert!(
            now + more <= goals.limits.repair_moves_max(),
            "node {node} gets {more} more than {now}"
        );
    }
}

/// Nodes 1, 2, 3 …: by zone, how many there are.
pub(crate) fn nodes(zones: &[usize]) -> Vec<Node> {
    let zone_of = zones
        .iter()
        .enumerate()
        .flat_map(|(zone, count)| std::iter::repeat_n(zone, *count));
    let node = |(place, zone): (usize, usize)| Node {
        id: NodeId(place as u64 + 1),
        region: "here".to_owned(),
        zone: format!("z{zone}"),
        weight: 1,
        standing: Standing::Member,
        down_since_ms: None,
        may_lead: true,
        has_room: true,
        up_for_ms: 3_600_000,
    };
    zone_of.enumerate().map(node).collect()
}

/// A shard whose voters are these nodes, led by the first.
pub(crate) fn shard(id: u32, voters: &[u64]) -> Shard {
    let replica = |node: &u64| Replica {
        node: NodeId(*node),
        role: Role::Voter,
        lag: Some(0),
    };
    Shard {
        id: ShardId(id),
        epoch: 1,
        replicas: voters.iter().map(replica).collect(),
        leader: voters.first().map(|node| NodeId(*node)),
        changing: false,
        goes: false,
    }
}
