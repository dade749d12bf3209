//! Changes of a shard's membership, by its leader: one at a time, each finished or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::impls::EmptyNode;
use openraft::metrics::RaftServerMetrics;
use openraft::{ChangeMembers, Precondition, ServerState};

use crate::membership::{ChangeError, Membership, MembershipChange};
use crate::replica::Replica;
use crate::status::Leadership;
use crate::types::{self, LogId, NodeId, TypeConfig};

/// How long a change may take to be committed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transfer of the leadership may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a change looks again at what is being told.
const LOOK: Duration = Duration::from_millis(5);
/// How often a leader looks after its learners.
const TEND_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that waits for a follower so many entries behind would serve nobody meanwhile.
const TRANSFER_LAG_MAX: u64 = 4096;
/// So far behind it is hardly behind: what is under way at any moment of a busy shard.
const TRANSFER_LAG_NEAR: u64 = 64;
/// How long a transfer waits for a follower to come so near. A shard whose proposals never let up may keep more
/// than that under way, and its node must be able to go all the same.
const TRANSFER_NEAR_PATIENCE: Duration = Duration::from_secs(1);

type Change = ChangeMembers<NodeId, EmptyNode>;
type ServerMetrics = RaftServerMetrics<TypeConfig>;

impl MembershipChange {
    /// The step from a membership, which is not joint, to the goal; `None` if there is nothing to do.
    fn step(&self, now: &types::Membership) -> Result<Option<Change>, ChangeError> {
        let voters: BTreeSet<NodeId> = now.voter_ids().collect();
        match self {
            MembershipChange::AddLearner(node) => {
                let new = now.get_node(node).is_none();
                let nodes = BTreeMap::from([(*node, EmptyNode {})]);
                Ok(new.then_some(ChangeMembers::AddNodes(nodes)))
            }
            MembershipChange::RemoveLearner(node) => {
                if voters.contains(node) {
                    return Err(ChangeError::IsVoter { node: *node });
                }
                let there = now.get_node(node).is_some();
                Ok(there.then(|| ChangeMembers::RemoveNodes(BTreeSet::from([*node]))))
            }
            MembershipChange::Voters { add, remove } => {
                let stranger = add.iter().find(|node| now.get_node(node).is_none());
                if let Some(node) = stranger {
                    return Err(ChangeError::NotLearner { node: *node });
                }
                let wanted: BTreeSet<NodeId> = voters
                    .union(add)
                    .filter(|node| !remove.contains(node))
                    .copied()
                    .collect();
                if wanted.is_empty() {
                    return Err(ChangeError::NoVoters);
                }
                Ok((wanted != voters).then_some(ChangeMembers::ReplaceAllVoters(wanted)))
            }
        }
    }
}

fn is_settled(server: &ServerMetrics) -> bool {
    let committed = &server.committed_membership_config;
    server.membership_config.log_id() == committed.log_id()
}

fn is_joint(server: &ServerMetrics) -> bool {
    let membership = server.membership_config.membership();
    membership.get_joint_config().len() > 1
}

/// Refuses a change that was decided on another membership than this one.
fn require_from(server: &ServerMetrics, from: Option<u64>) -> Result<(), ChangeError> {
    let found = server.membership_config.log_id();
    let found = found.as_ref().map_or(0, |id| id.index);
    match from {
        Some(expected) if expected != found => Err(ChangeError::Moved { expected, found }),
        Some(_) | None => Ok(()),
    }
}

/// Whether a follower so far behind may be handed the leadership after so long a wait; an error, its lag, if it
/// is too far behind to be waited for.
fn is_near_enough(lag: u64, waited: Duration) -> Result<bool, u64> {
    if lag > TRANSFER_LAG_MAX {
        return Err(lag);
    }
    Ok(lag <= TRANSFER_LAG_NEAR || waited >= TRANSFER_NEAR_PATIENCE)
}

fn unavailable(reason: impl std::fmt::Display) -> ChangeError {
    ChangeError::Unavailable {
        reason: reason.to_string(),
    }
}

/// A change is over, however it ended.
struct Ended(Arc<Replica>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.changing.store(false, Ordering::Release);
    }
}

impl Replica {
    fn server_metrics(&self) -> ServerMetrics {
        self.raft.server_metrics().borrow_watched().clone()
    }

    pub(crate) fn membership(&self) -> Membership {
        let server = self.server_metrics();
        let stored = &server.committed_membership_config;
        let committed = stored.membership();
        Membership {
            voters: committed.voter_ids().collect(),
            learners: committed.learner_ids().collect(),
            changing: !is_settled(&server) || is_joint(&server),
            index: stored.log_id().as_ref().map_or(0, |id| id.index),
        }
    }

    /// Whether this node has a part in the shard, as far as it knows.
    pub(crate) fn is_member(&self) -> bool {
        let server = self.server_metrics();
        let memberships = [
            &server.committed_membership_config,
            &server.membership_config,
        ];
        let mut memberships = memberships.into_iter();
        memberships.any(|stored| stored.membership().get_node(&server.id).is_some())
    }

    /// Whether a later membership than that of `index`, known here to be committed, gives this node a part.
    pub(crate) fn is_member_since(&self, index: u64) -> bool {
        let server = self.server_metrics();
        let stored = &server.committed_membership_config;
        let is_later = stored.log_id().as_ref().is_some_and(|id| id.index > index);
        is_later && stored.membership().get_node(&server.id).is_some()
    }

    pub(crate) async fn change_from(
        self: &Arc<Self>,
        index: u64,
        change: MembershipChange,
    ) -> Result<(), ChangeError> {
        if let MembershipChange::AddLearner(node) = change
            && self.road.address(node).is_none()
        {
            return Err(ChangeError::UnknownNode { node });
        }
        self.change(change, Some(index)).await
    }

    pub(crate) async fn add_learner(self: &Arc<Self>, node: NodeId) -> Result<(), ChangeError> {
        if self.road.address(node).is_none() {
            return Err(ChangeError::UnknownNode { node });
        }
        self.change(MembershipChange::AddLearner(node), None).await
    }

    pub(crate) async fn remove_learner(self: &Arc<Self>, node: NodeId) -> Result<(), ChangeError> {
        self.change(MembershipChange::RemoveLearner(node), None)
            .await
    }

    pub(crate) async fn change_voters(
        self: &Arc<Self>,
        add: BTreeSet<NodeId>,
        remove: BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        self.change(MembershipChange::Voters { add, remove }, None)
            .await
    }

    /// A change that has begun goes on when its caller goes away: half of it would be a joint membership. With
    /// `from` it begins only where the membership is the one that the entry at that index brought.
    async fn change(
        self: &Arc<Self>,
        goal: MembershipChange,
        from: Option<u64>,
    ) -> Result<(), ChangeError> {
        if self.changing.swap(true, Ordering::AcqRel) {
            return Err(ChangeError::Changing);
        }
        let (replica, ended) = (self.clone(), Ended(self.clone()));
        let changed = tokio::spawn(async move {
            let _ended = ended;
            let changed = async {
                let _alone = replica.changes.lock().await;
                replica.change_alone(&goal, from).await
            };
            let changed = tokio::time::timeout(CHANGE_TIMEOUT, changed).await;
            changed.unwrap_or_else(|_| {
                Err(unavailable(format!(
                    "the change was not committed within {CHANGE_TIMEOUT:?}"
                )))
            })
        });
        changed
            .await
            .unwrap_or_else(|error| Err(unavailable(error)))
    }

    async fn change_alone(
        &self,
        goal: &MembershipChange,
        from: Option<u64>,
    ) -> Result<(), ChangeError> {
        loop {
            let term = self.wait_ready().await?;
            let server = self.server_metrics();
            if server.state != ServerState::Leader || server.vote.leader_id.term != term {
                // It changed in between, and is about to be told.
                tokio::time::sleep(LOOK).await;
                continue;
            }
            if !is_settled(&server) {
                return Err(ChangeError::Changing);
            }
            if is_joint(&server) {
                self.finish_joint(&server).await?;
                continue;
            }
            let now = server.membership_config.membership();
            if let Some(step) = goal.step(now)? {
                require_from(&server, from)?;
                if let MembershipChange::Voters { add, .. } = goal {
                    self.allow_lost_logs(add.iter().copied(), false).await?;
                }
                let committed = self.write_change(&server, step).await?;
                self.wait_settled(committed).await?;
            }
            if let MembershipChange::AddLearner(_) = goal {
                self.allow_learners_to_lose().await?;
            }
            return Ok(());
        }
    }

    /// The term in which this node leads, once it may propose.
    async fn wait_ready(&self) -> Result<u64, ChangeError> {
        let mut leadership = self.leadership.subscribe();
        let settled = leadership.wait_for(|now| match now {
            Leadership::Leader { ready, .. } => *ready,
            Leadership::Follower { .. } => true,
        });
        match &*settled.await.map_err(unavailable)? {
            Leadership::Leader { term, .. } => Ok(*term),
            Leadership::Follower { leader, .. } => Err(ChangeError::NotLeader {
                leader: leader.clone(),
            }),
        }
    }

    /// The second half of a joint change whose first half is committed.
    async fn finish_joint(&self, server: &ServerMetrics) -> Result<(), ChangeError> {
        let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
        let committed = self.write_change(server, nothing).await?;
        self.wait_settled(committed).await
    }

    /// Proposes a step from the membership that was looked at, and no other. Gives its log id once applied.
    async fn write_change(&self, seen: &ServerMetrics, step: Change) -> Result<LogId, ChangeError> {
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: *seen.membership_config.log_id(),
        };
        tracing::info!(shard = self.id.0, %step, "membership changes");
        let written = self.raft.change_membership_if(step, false, [unchanged]);
        match written.await {
            Ok(response) => Ok(response.log_id),
            Err(RaftError::Fatal(fatal)) => Err(unavailable(fatal)),
            Err(RaftError::APIError(error)) => Err(self.refused(error)),
        }
    }

    fn refused(&self, error: ClientWriteError<TypeConfig>) -> ChangeError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => ChangeError::NotLeader {
                leader: self.road.hint(forward.leader_id),
            },
            ClientWriteError::PreconditionFailed(_)
            | ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_),
            ) => ChangeError::Changing,
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::EmptyMembership(_)) => {
                ChangeError::NoVoters
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(
                error,
            )) => ChangeError::NotLearner {
                node: error.node_id,
            },
            ClientWriteError::LogEntryDiscarded(_)
            | ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_),
            ) => unavailable(error),
        }
    }

    /// Until [`Replica::membership`] shows a change that is committed.
    async fn wait_settled(&self, committed: LogId) -> Result<(), ChangeError> {
        let mut server = self.raft.server_metrics();
        loop {
            let known = *server.borrow_watched().committed_membership_config.log_id();
            if known >= Some(committed) {
                return Ok(());
            }
            server.changed().await.map_err(unavailable)?;
        }
    }

    /// Whether logs that turn out shorter than they were are filled again, or are a fault.
    async fn allow_lost_logs(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
        allow: bool,
    ) -> Result<(), ChangeError> {
        for node in nodes {
            let told = self.raft.trigger().allow_next_revert(&node, allow).await;
            // Inside: this node does not lead, or has no such follower, any more.
            let _ = told.map_err(unavailable)?;
        }
        Ok(())
    }

    /// A learner may come with an emptied log, as when its node has removed its replica and hosts it again: it
    /// counts in no majority. A voter may not. To be called with the lock on changes held.
    async fn allow_learners_to_lose(&self) -> Result<(), ChangeError> {
        let server = self.server_metrics();
        let learners: Vec<NodeId> = server
            .membership_config
            .membership()
            .learner_ids()
            .collect();
        self.allow_lost_logs(learners, true).await
    }

    /// Does what a leader owes to what it has found: finishes joint changes that a leader before has begun, or
    /// that were given up half-way.
    pub(crate) async fn tend_membership(self: Arc<Self>) {
        let mut server = self.raft.server_metrics();
        let (mut seen, mut again) = (None, false);
        loop {
            let now = server.borrow_watched().clone();
            let found = Some((now.vote, *now.membership_config.log_id()));
            let leads = now.state == ServerState::Leader;
            if leads && is_settled(&now) && found != seen {
                let alone = self.changes.lock().await;
                let tended = tokio::time::timeout(CHANGE_TIMEOUT, self.tend()).await;
                drop(alone);
                // Nothing that is watched here may change before it can be done.
                again = !matches!(tended, Ok(Ok(())));
                match tended {
                    Ok(Ok(())) => seen = found,
                    Ok(Err(error)) => {
                        tracing::info!(shard = self.id.0, %error, "the membership is not tended");
                    }
                    Err(_) => tracing::info!(shard = self.id.0, "the membership is not tended"),
                }
            }
            let learners = now.membership_config.membership().learner_ids().count();
            let ended = tokio::select! {
                changed = server.changed() => changed.is_err(),
                // What is allowed is allowed once.
                () = tokio::time::sleep(TEND_INTERVAL), if leads && (again || learners > 0) => {
                    seen = None;
                    false
                }
            };
            if ended {
                return;
            }
        }
    }

    async fn tend(&self) -> Result<(), ChangeError> {
        // Whoever held the lock may have finished it.
        let now = self.server_metrics();
        if now.state == ServerState::Leader && is_settled(&now) && is_joint(&now) {
            // A leader that nobody has answered yet is refused.
            self.wait_ready().await?;
            self.finish_joint(&now).await?;
        }
        self.allow_learners_to_lose().await
    }

    pub(crate) async fn transfer_leader(&self, to: NodeId) -> Result<(), ChangeError> {
        let transferred = tokio::time::timeout(TRANSFER_TIMEOUT, self.transfer(to));
        transferred.await.unwrap_or_else(|_| {
            Err(unavailable(format!(
                "node {to} does not lead after {TRANSFER_TIMEOUT:?}"
            )))
        })
    }

    async fn transfer(&self, to: NodeId) -> Result<(), ChangeError> {
        self.wait_ready().await?;
        let own = self.server_metrics();
        if to == own.id {
            return Ok(());
        }
        let mut voters = own.membership_config.membership().voter_ids();
        if !voters.any(|voter| voter == to) {
            return Err(ChangeError::NotVoter { node: to });
        }
        // From the moment it is handed over until the other one has all entries, nobody serves: so the lag comes
        // first, and so does the question.
        let began = Instant::now();
        while !is_near_enough(self.lag_of(to), began.elapsed())
            .map_err(|lag| unavailable(format!("node {to} is {lag} entries behind")))?
        {
            tokio::time::sleep(LOOK).await;
        }
        if let Some(refusal) = self.road.refusal_to_lead(self.id.0, to).await {
            return Err(unavailable(format!("node {to} would not lead: {refusal}")));
        }
        let asked = self.hand_over(to).await;
        asked.map_err(unavailable)?;
        let mut server = self.raft.server_metrics();
        loop {
            let leader = server.borrow_watched().current_leader;
            match leader {
                Some(leader) if leader == to => return Ok(()),
                Some(leader) if leader != own.id => {
                    return Err(unavailable(format!("node {leader} leads now")));
                }
                Some(_) | None => server.changed().await.map_err(unavailable)?,
            }
        }
    }

    /// Entries of this leader that `node` is not known to have.
    fn lag_of(&self, node: NodeId) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.iter().flatten();
        let matched = matched.filter(|(other, _)| **other == node);
        let matched = matched.filter_map(|(_, id)| *id).map(|id| id.index).max();
        let last = metrics.last_log_index.unwrap_or_default();
        last.saturating_sub(matched.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::ShardId;

    use super::*;
    use crate::node::Node;
    use crate::options::NodeOptions;

    fn membership(voters: &[NodeId], learners: &[NodeId]) -> types::Membership {
        let voters = voters.iter().copied().collect();
        types::Membership::new_with_defaults(vec![voters], learners.iter().copied())
    }

    fn voters(add: &[NodeId], remove: &[NodeId]) -> MembershipChange {
        MembershipChange::Voters {
            add: add.iter().copied().collect(),
            remove: remove.iter().copied().collect(),
        }
    }

    #[test]
    fn what_is_so_already_needs_no_step() {
        let now = membership(&[1, 2, 3], &[4]);
        for goal in [
            MembershipChange::AddLearner(4),
            MembershipChange::AddLearner(1),
            MembershipChange::RemoveLearner(5),
            voters(&[], &[]),
            voters(&[1], &[5]),
            voters(&[4], &[4]),
        ] {
            assert_eq!(goal.step(&now), Ok(None));
        }
    }

    #[test]
    fn a_replacement_is_one_step() {
        let now = membership(&[1, 2, 3], &[4]);
        let step = voters(&[4], &[1]).step(&now).unwrap();
        let wanted = BTreeSet::from([2, 3, 4]);
        assert_eq!(step, Some(ChangeMembers::ReplaceAllVoters(wanted)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_joint_membership_that_somebody_left_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let members = BTreeMap::from([(1, "127.0.0.1:1".to_owned())]);
        let mut options = NodeOptions::new(1, "test", dir.path(), members, b"secret".to_vec());
        options.engine.slot_count = 4;
        options.log.wal_ahead_bytes = 0;
        options.disk_free_min_bytes = 0;
        let node = Node::start(options).await.unwrap();
        let shard = node.shard(ShardId(1)).unwrap();
        let replica = shard.replica();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        // As if its leader had gone between the two halves.
        let voters = BTreeSet::from([1]);
        let joint = types::Membership::new_with_defaults(vec![voters.clone(), voters], []);
        let blank = openraft::EntryPayload::Blank;
        let written = replica.raft.append_membership(joint, blank, []).await;
        let joint = written.unwrap().log_id.index;
        let mut server = replica.raft.server_metrics();
        let finished = async {
            while shard.membership().changing || shard.membership().index <= joint {
                server.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(40), finished)
            .await
            .unwrap();
        assert_eq!(shard.membership().voters, BTreeSet::from([1]));
        drop(shard);
        node.shutdown().await.unwrap();
    }

    #[test]
    fn a_follower_that_never_comes_near_is_handed_the_leadership_in_the_end() {
        let second = Duration::from_secs(1);
        assert_eq!(is_near_enough(TRANSFER_LAG_NEAR, Duration::ZERO), Ok(true));
        assert_eq!(
            is_near_enough(TRANSFER_LAG_NEAR + 1, Duration::ZERO),
            Ok(false)
        );
        assert_eq!(is_near_enough(TRANSFER_LAG_MAX, second), Ok(true));
        let far = TRANSFER_LAG_MAX + 1;
        assert_eq!(is_near_enough(far, second), Err(far));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let now = membership(&[1, 2, 3], &[4]);
        assert_eq!(
            voters(&[5], &[1]).step(&now),
            Err(ChangeError::NotLearner { node: 5 })
        );
        assert_eq!(
            voters(&[], &[1, 2, 3]).step(&now),
            Err(ChangeError::NoVoters)
        );
        assert_eq!(
            MembershipChange::RemoveLearner(2).step(&now),
            Err(ChangeError::IsVoter { node: 2 })
        );
    }
}
