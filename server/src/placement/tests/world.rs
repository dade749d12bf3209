//! A pretended cluster: a map, shards with logs of their own, and nodes that host what the map names.

use std::collections::{BTreeMap, BTreeSet};

use mailbox_api::CallError;
use mailbox_api::v1::ErrorCode;
use mailbox_engine::{
    ClusterMap, MapNode, MapReplica, MapShard, ReplicaRole, ShardId, SlotId, Standing,
};
use mailbox_raft::MembershipChange;

use super::fake::Cut;
use crate::placement::effects::Members;

/// Entries that a new replica is behind, and those it catches up in one pause.
const FIRST_LAG: u64 = 2500;
const CAUGHT_UP_BY: u64 = 1500;

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) leader: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) voters: BTreeSet<u64>,
    pub(super) learners: BTreeSet<u64>,
    /// A joint change, with what it comes to: finished by the leader at the next pause.
    pub(super) joint: Option<(BTreeSet<u64>, u64)>,
    pub(super) lags: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Call {
    Replicas(ShardId, u64, Vec<MapReplica>),
    Change(ShardId, u64, MembershipChange),
    Transfer(ShardId, u64),
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) map: ClusterMap,
    pub(super) groups: BTreeMap<ShardId, Group>,
    pub(super) down: BTreeSet<u64>,
    /// Shards to be left alone.
    pub(super) splitting: BTreeSet<ShardId>,
    /// Nodes that give every leadership away again, and do not say so.
    pub(super) shy: BTreeSet<u64>,
    /// The next change of members is a bug's.
    pub(super) panics: bool,
    /// Calls end within any pause, and replicas have nothing to catch up with.
    pub(super) quick: bool,
    /// When each transfer was called for.
    pub(super) transfers: Vec<u64>,
    hosted: BTreeSet<(u64, ShardId)>,
    /// Calls so far, and the one at which the executor is killed.
    pub(super) calls: u64,
    pub(super) kill: Option<(u64, Cut)>,
    pub(super) killed: bool,
    pub(super) late: Vec<(u64, Call)>,
    pub(super) pauses: u64,
    chance: u64,
    lag_max: u64,
    pub(super) done: u64,
}

pub(super) fn no(code: ErrorCode, words: &str) -> CallError {
    CallError::new(code, words.to_owned())
}

impl World {
    /// So many nodes, the first three of which hold all shards, in zones of their own.
    pub(super) fn new(nodes: u64, shards: u32, lag_max: u64, seed: u64) -> Self {
        let row = |id: u64| MapNode {
            address: format!("n{id}:1"),
            region: String::new(),
            zone: format!("z{id}"),
            weight: 100,
            standing: Standing::Member,
            incarnation: id,
        };
        let voter = |node| MapReplica {
            node,
            role: ReplicaRole::Voter,
        };
        let last = u16::try_from(shards).unwrap();
        let shard = |id: u32| {
            let slot = u16::try_from(id).unwrap();
            let slots = if id == 0 {
                Vec::new()
            } else {
                vec![(SlotId(slot - 1), SlotId(slot - 1))]
            };
            let replicas = (1..=3).map(voter).collect();
            let row = MapShard {
                epoch: 1,
                slots,
                replicas,
            };
            (ShardId(id), row)
        };
        let map = ClusterMap {
            epoch: 1,
            slot_count: last,
            shard_count: last,
            nodes: (1..=nodes).map(|id| (id, row(id))).collect(),
            shards: (0..=shards).map(shard).collect(),
        };
        map.check().expect("a map");
        let group = Group {
            leader: 1,
            term: 1,
            index: 1,
            voters: BTreeSet::from([1, 2, 3]),
            learners: BTreeSet::new(),
            joint: None,
            lags: [1, 2, 3].map(|node| (node, 0)).into(),
        };
        let groups = map.shards.keys().map(|shard| (*shard, group.clone()));
        let mut world = Self {
            now_ms: 1,
            groups: groups.collect(),
            map,
            down: BTreeSet::new(),
            splitting: BTreeSet::new(),
            shy: BTreeSet::new(),
            panics: false,
            quick: false,
            transfers: Vec::new(),
            hosted: BTreeSet::new(),
            calls: 0,
            kill: None,
            killed: false,
            late: Vec::new(),
            pauses: 0,
            chance: seed,
            lag_max,
            done: 0,
        };
        world.host();
        world
    }

    pub(super) fn chance(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn live(&self, voters: &BTreeSet<u64>) -> i64 {
        let live = voters.difference(&self.down).count();
        i64::try_from(live).unwrap()
    }

    fn margin(&self, voters: &BTreeSet<u64>) -> i64 {
        self.live(voters) - i64::try_from(voters.len() / 2 + 1).unwrap()
    }

    pub(super) fn call(&mut self, call: &Call) -> Result<u64, CallError> {
        match call {
            Call::Replicas(shard, epoch, replicas) => self.set_replicas(*shard, *epoch, replicas),
            Call::Change(shard, index, change) => self.change(*shard, *index, change),
            Call::Transfer(shard, to) => self.transfer(*shard, *to),
        }
    }

    /// As the meta shard's procedure does it.
    fn set_replicas(
        &mut self,
        shard: ShardId,
        epoch: u64,
        replicas: &[MapReplica],
    ) -> Result<u64, CallError> {
        let row = self.map.shards.get_mut(&shard).expect("a shard");
        if row.replicas == replicas {
            return Ok(self.map.epoch);
        }
        if row.epoch != epoch {
            return Err(no(ErrorCode::StaleEpoch, "the row has changed"));
        }
        row.replicas = replicas.to_vec();
        row.epoch += 1;
        self.map.epoch += 1;
        self.map.check().expect("a map");
        self.done += 1;
        Ok(self.map.epoch)
    }

    /// As a shard's leader does it; and what must never be asked of it.
    fn change(
        &mut self,
        shard: ShardId,
        index: u64,
        change: &MembershipChange,
    ) -> Result<u64, CallError> {
        let group = self.groups[&shard].clone();
        if group.joint.is_some() || self.margin(&group.voters) < 0 {
            return Err(no(ErrorCode::Unavailable, "no majority, or changing"));
        }
        let (mut voters, mut learners) = (group.voters.clone(), group.learners.clone());
        match change {
            MembershipChange::AddLearner(node) if !voters.contains(node) => {
                learners.insert(*node);
            }
            MembershipChange::AddLearner(_) => {}
            MembershipChange::RemoveLearner(node) => {
                // A call that comes late was decided on another membership, and is refused for it.
                let late = group.index != index;
                assert!(late || !voters.contains(node), "{shard}: {node} votes");
                learners.remove(node);
            }
            MembershipChange::Voters { add, remove } => {
                voters.extend(add);
                voters.retain(|node| !remove.contains(node));
                learners.retain(|node| !voters.contains(node));
            }
        }
        if (&voters, &learners) == (&group.voters, &group.learners) {
            return Ok(0);
        }
        if group.index != index {
            return Err(no(ErrorCode::StaleEpoch, "the membership has changed"));
        }
        self.assert_may(shard, &group, &voters);
        let begins_joint = voters != group.voters && !self.quick && self.chance(3) == 0;
        let lag = if self.quick { 0 } else { FIRST_LAG };
        let first_lag = learners.difference(&group.learners);
        let first_lag = first_lag.map(|node| (*node, lag)).collect::<Vec<_>>();
        let group = self.groups.get_mut(&shard).expect("a shard");
        group.index += 1;
        group.lags.extend(first_lag);
        self.done += 1;
        if begins_joint {
            // The leader finishes it by itself; the caller has lost its patience.
            group.joint = Some((voters, group.index + 1));
            return Err(no(ErrorCode::Unavailable, "not committed in time"));
        }
        (group.voters, group.learners) = (voters, learners);
        Ok(0)
    }

    /// The planner's promises, kept by whoever executes.
    fn assert_may(&self, shard: ShardId, group: &Group, voters: &BTreeSet<u64>) {
        let (before, after) = (self.margin(&group.voters), self.margin(voters));
        let all_live = self.live(&group.voters) == i64::try_from(group.voters.len()).unwrap();
        let shrinks = group.voters.len() > voters.len() && group.voters.len() % 2 == 1 && all_live;
        assert!(after >= 0, "{shard}: {voters:?} have no live majority");
        assert!(
            after >= before || (shrinks && after + 1 == before),
            "{shard}: {:?} to {voters:?} bears fewer failures",
            group.voters
        );
        assert!(
            voters.contains(&group.leader),
            "{shard}: leader {} goes",
            group.leader
        );
        let goes: Vec<&u64> = group.voters.difference(voters).collect();
        let comes: Vec<&u64> = voters.difference(&group.voters).collect();
        assert!(
            goes.len() <= 1 && comes.len() <= 1,
            "{shard}: more than one change at once"
        );
        for node in comes {
            let lag = group.lags.get(node).copied().unwrap_or(FIRST_LAG);
            assert!(
                lag <= self.lag_max,
                "{shard}: node {node} votes {lag} entries behind"
            );
            let standing = self.map.nodes[node].standing;
            assert_eq!(
                standing,
                Standing::Member,
                "{shard}: node {node} comes to vote"
            );
        }
        assert!(
            voters.len() <= 3 || voters.len() <= group.voters.len(),
            "{shard}: {voters:?}"
        );
    }

    fn transfer(&mut self, shard: ShardId, to: u64) -> Result<u64, CallError> {
        self.transfers.push(self.now_ms);
        let down = self.down.contains(&to);
        let group = self.groups.get_mut(&shard).expect("a shard");
        if !group.voters.contains(&to) || down || group.joint.is_some() {
            return Err(no(ErrorCode::InvalidArgument, "no voter, or not there"));
        }
        if group.leader != to {
            (group.leader, group.term) = (to, group.term + 1);
            self.done += 1;
        }
        Ok(0)
    }

    /// What happens by itself while the executor pauses.
    pub(super) fn pass(&mut self, time_ms: u64) {
        self.now_ms += time_ms;
        self.pauses += 1;
        let pauses = self.pauses;
        let due = self.late.extract_if(.., |(at, _)| *at <= pauses);
        for (_, call) in due.collect::<Vec<_>>() {
            // Refused or not, nobody hears of it.
            let _ = self.call(&call);
        }
        let shards: Vec<ShardId> = self.groups.keys().copied().collect();
        for shard in shards {
            self.pass_in(shard);
        }
        self.host();
    }

    fn pass_in(&mut self, shard: ShardId) {
        let mut group = self.groups[&shard].clone();
        if let Some((voters, index)) = group.joint.take() {
            group.learners.retain(|node| !voters.contains(node));
            (group.voters, group.index) = (voters, index);
        }
        let leads = group.voters.contains(&group.leader) && !self.down.contains(&group.leader);
        if !leads && self.margin(&group.voters) >= 0 {
            let live = group.voters.difference(&self.down);
            let live: Vec<u64> = live.copied().collect();
            let chosen = self.chance(live.len() as u64);
            group.leader = live[usize::try_from(chosen).unwrap()];
            group.term += 1;
        }
        if self.shy.contains(&group.leader) {
            let others = group.voters.difference(&self.shy);
            group.leader = *others.min().expect("a voter that leads");
            group.term += 1;
        }
        let members: BTreeSet<u64> = group.voters.union(&group.learners).copied().collect();
        for node in &members {
            if self.hosted.contains(&(*node, shard)) && !self.down.contains(node) {
                let lag = group.lags.entry(*node).or_insert(FIRST_LAG);
                *lag = lag.saturating_sub(CAUGHT_UP_BY);
            }
        }
        group.lags.retain(|node, _| members.contains(node));
        self.groups.insert(shard, group);
    }

    /// Nodes follow the map: a replica goes when neither the map nor the shard knows it.
    fn host(&mut self) {
        let mut wanted = BTreeSet::new();
        for (shard, row) in &self.map.shards {
            wanted.extend(row.replicas.iter().map(|held| (held.node, *shard)));
        }
        self.hosted.extend(&wanted);
        let groups = &self.groups;
        self.hosted.retain(|(node, shard)| {
            let group = &groups[shard];
            let next = group.joint.iter().flat_map(|(voters, _)| voters);
            let mut members = group.voters.iter().chain(&group.learners).chain(next);
            wanted.contains(&(*node, *shard)) || members.any(|member| member == node)
        });
        for (shard, group) in groups {
            for node in &group.voters {
                let held = self.hosted.contains(&(*node, *shard));
                assert!(held, "node {node} votes in shard {shard} without a replica");
            }
        }
    }

    /// Replicas and leaders of a node, by the shards themselves.
    pub(super) fn held_by(&self, node: u64) -> (usize, usize) {
        let groups = self.groups.values();
        let votes = groups.clone().filter(|group| group.voters.contains(&node));
        let leads = groups.filter(|group| group.leader == node);
        (votes.count(), leads.count())
    }

    /// The map names the members of every shard, each shard has three voters that are there, no learner is left
    /// behind, and nodes hold what the map says and nothing else.
    pub(super) fn assert_at_rest(&self) {
        let mut wanted = BTreeSet::new();
        for (shard, group) in &self.groups {
            let members = members(group);
            let row = &self.map.shards[shard];
            assert!(members.are_those_of(row), "{shard}: {members:?}, {row:?}");
            assert!(group.learners.is_empty(), "{shard}: {members:?}");
            assert_eq!(group.voters.len(), 3, "{shard}: {members:?}");
            wanted.extend(group.voters.iter().map(|node| (*node, *shard)));
        }
        assert_eq!(self.hosted, wanted);
    }
}

pub(super) fn members(group: &Group) -> Members {
    Members {
        leader: group.leader,
        voters: group.voters.clone(),
        learners: group.learners.clone(),
        changing: group.joint.is_some(),
        index: group.index,
    }
}
