//! The handle on this node's replica of a shard.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mailbox_engine::{Command, LaneId, Reply, ShardId, SlotId, StateHash, TimelineId};
use tokio::sync::{Notify, broadcast, watch};

use crate::base_thread::{BaseThread, error_chain};
use crate::error::{Error, ProposeError};
use crate::freshness::Fresh;
use crate::membership::{ChangeError, Membership, MembershipChange};
use crate::outbox::Outbox;
use crate::replica::Replica;
use crate::simulation;
use crate::status::{AppliedTail, Leadership, ReadCounts, RowsWait, ShardStatus};
use crate::traffic::{HotTimeline, TrafficCounts};

/// How long a state hash may wait for its cut to be applied and flushed here.
const CUT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one call waits for the log to let an import's commit go, and how often it looks.
const SETTLE_WAIT: Duration = Duration::from_secs(3);
const SETTLE_LOOK: Duration = Duration::from_millis(50);

/// This node's replica of a shard. Clones are the same replica.
#[derive(Clone)]
pub struct Shard {
    replica: Arc<Replica>,
    base: Arc<BaseThread>,
}

impl Shard {
    pub(crate) fn new(replica: Arc<Replica>, base: Arc<BaseThread>) -> Shard {
        Shard { replica, base }
    }

    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Which shard.
    pub fn id(&self) -> ShardId {
        self.replica.id
    }

    /// The rows. Read after [`Shard::read_barrier`] for the newest.
    pub fn engine(&self) -> &Arc<mailbox_engine::Shard> {
        &self.replica.engine
    }

    /// Who leads.
    pub fn leadership(&self) -> Leadership {
        self.replica.leadership.borrow().clone()
    }

    /// Every change of who leads.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.replica.leadership.subscribe()
    }

    /// Proposes commands and waits until they are applied here: one reply per command, in order. The
    /// commands of one call are in one entry. Message ids and time are set on the way.
    ///
    /// # Errors
    /// See [`ProposeError`]. After any of them the same commands may be proposed again, here or elsewhere.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Reply>, ProposeError> {
        self.replica.proposer.propose(commands).await
    }

    /// Proposes what lanes need, `Deliver` and `AckLanes`: as [`Shard::propose`], but never refused for space. Whoever
    /// calls this bounds what it has in flight.
    ///
    /// # Errors
    /// As [`Shard::propose`], without `Busy`, `OutboxFull` and `DiskFull`.
    pub async fn propose_lanes(&self, commands: Vec<Command>) -> Result<Vec<Reply>, ProposeError> {
        self.replica.proposer.propose_lanes(commands).await
    }

    /// Acks lanes that begin here, when it costs least: with the next entry, or in one of its own after 100 ms or
    /// once 4,096 wait. An ack that is lost with the leadership is no loss: the next leader gets the mark again.
    pub fn ack_lanes(&self, acks: impl IntoIterator<Item = (LaneId, u64)>) {
        self.replica.proposer.ack_lanes(acks);
    }

    /// What is put into outboxes from now on, for the relay of a leader; `wake` is told when something waits. What
    /// was there before is in `engine().unacked()`, to be read after this call.
    pub fn outbox(&self, wake: Arc<Notify>) -> Outbox {
        Outbox::open(&self.replica.outbox, wake)
    }

    /// Bytes of commands proposed and not yet applied.
    pub fn queued_bytes(&self) -> u64 {
        self.replica.proposer.queued_bytes()
    }

    /// Waits until a read here sees everything acknowledged before this call, anywhere.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::Unavailable`], or [`ProposeError::Busy`] if 65,536 reads wait.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.replica.barrier.pass().await.map(|_| ())
    }

    /// Makes sure that the rows here lack nothing that was acknowledged longer than `bound` ago, on any replica. On a
    /// leader this is a read barrier.
    ///
    /// # Errors
    /// [`ProposeError`]: it cannot be shown, mostly because no leader answers.
    pub async fn fresh_within(&self, bound: Duration) -> Result<Fresh, ProposeError> {
        self.replica.freshness.within(bound).await
    }

    /// How reads of this replica were made sure.
    pub fn read_counts(&self) -> ReadCounts {
        self.replica.barrier.tally.counts()
    }

    /// What is appended from now on. A receiver that lags gets `Lagged` and must read the rows instead.
    pub fn subscribe_applied(&self) -> broadcast::Receiver<Arc<AppliedTail>> {
        self.replica.tails.subscribe()
    }

    /// The hash of all rows at one index. With `cut` 0 the leader makes a new cut; else the hash of that
    /// cut is waited for here, as on every other replica.
    ///
    /// # Errors
    /// [`ProposeError`]; `Unavailable` also if a later cut has replaced this one.
    pub async fn state_hash(&self, cut: u64) -> Result<StateHash, ProposeError> {
        let cut = if cut == 0 {
            self.make_cut().await?
        } else {
            cut
        };
        let mut flushed = self.replica.flushed.subscribe();
        let hurry = self.base.hurry();
        self.base.look();
        let reached = flushed.wait_for(|id| id.is_some_and(|id| id.index >= cut));
        match tokio::time::timeout(CUT_TIMEOUT, reached).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(unavailable("the replica has stopped".to_owned())),
            Err(_) => {
                let reason = format!("cut {cut} was not flushed within {CUT_TIMEOUT:?}");
                return Err(unavailable(reason));
            }
        }
        drop(hurry);
        let engine = self.replica.engine.clone();
        let hash = simulation::blocking(move || engine.state_hash(Some(cut))).await;
        let hash = hash.map_err(|error| unavailable(error.to_string()))?;
        let hash = hash.map_err(|error| unavailable(error_chain(&error)))?;
        hash.ok_or_else(|| unavailable(format!("a later cut than {cut} was made")))
    }

    async fn make_cut(&self) -> Result<u64, ProposeError> {
        let replies = self.propose(vec![Command::Cut]).await?;
        match replies.first() {
            Some(Reply::Cut { index }) => Ok(*index),
            other => Err(unavailable(format!("the cut was answered with {other:?}"))),
        }
    }

    /// What apply waits for, if it waits for the rows of a slot that moves in.
    pub fn rows_wait(&self) -> Option<RowsWait> {
        self.replica.rows_wait()
    }

    /// Makes sure that the commit of an import that is applied here is replayed by nobody: it is in files, and no
    /// longer in this replica's log. What the commit needs may go once this is true of every replica. False: not
    /// yet; ask again.
    ///
    /// # Errors
    /// A fault of the storage, or the replica has stopped.
    pub async fn settle_import(&self, slot: SlotId, epoch: u64) -> Result<bool, Error> {
        let applied = self.replica.engine.applied();
        if !applied.slots.import_is_over(slot, epoch) {
            return Ok(false);
        }
        let index = applied.log_id.map_or(0, |id| id.index);
        self.base.flush(self.id()).await?;
        let deadline = tokio::time::Instant::now() + SETTLE_WAIT;
        let stopped = |error: &dyn std::fmt::Display| Error::Stopped {
            shard: self.id(),
            reason: error.to_string(),
        };
        while self.status().purged_index < index {
            if tokio::time::Instant::now() > deadline {
                return Ok(false);
            }
            let purged = self.replica.raft.trigger().purge_log(index).await;
            purged.map_err(|error| stopped(&error))?;
            tokio::time::sleep(SETTLE_LOOK).await;
        }
        Ok(true)
    }

    /// Entries that this replica's log holds and its readers do not see yet.
    pub fn apply_lag(&self) -> u64 {
        self.replica.apply_lag()
    }

    /// State of this replica.
    pub fn status(&self) -> ShardStatus {
        self.replica.status()
    }

    /// Counts that a call reads these timelines here.
    pub fn count_reads(&self, timelines: &[TimelineId]) {
        self.replica.traffic().read(timelines);
    }

    /// What has gone through this replica since it was opened.
    pub fn traffic(&self) -> TrafficCounts {
        self.replica.traffic().counts()
    }

    /// At most `count` timelines with the most traffic of late, the hottest first. From memory that is bounded and
    /// forgets: at most 64 are known.
    pub fn hot_timelines(&self, count: usize) -> Vec<HotTimeline> {
        self.replica.traffic().hottest(count)
    }

    /// Rows appended per second of late, by slot, of the slots that this replica serves: what its leader and its
    /// followers alike have to log and apply, sends and deliveries. Not of slots that had none.
    pub fn writes_by_slot(&self) -> Vec<(SlotId, f64)> {
        let mut writes = self.replica.traffic().writes_by_slot();
        if !writes.is_empty() {
            // A slot that has gone is remembered for a while.
            let served = self.replica.engine.slots();
            writes.retain(|(slot, _)| served.binary_search(slot).is_ok());
        }
        writes
    }

    /// Hands leadership to the follower that is furthest, if this node leads and another can take over. For a
    /// replica whose own rows are damaged.
    pub async fn give_leadership_away(&self) {
        self.replica.give_leadership_away(Duration::ZERO).await;
    }

    /// Has this replica stand for election now, if it votes and nobody is known to lead: for a new shard, which nobody
    /// has led yet.
    pub fn hasten_election(&self) {
        self.replica.pulse.hasten(self.id().0);
    }

    /// Who holds replicas, as far as this one knows.
    pub fn membership(&self) -> Membership {
        self.replica.membership()
    }

    /// Gives `node` a replica that receives entries and does not vote. On the leader. Returns once the membership
    /// is committed; how far the learner has caught up is in [`Shard::status`]. The node must host the shard
    /// ([`crate::Node::host`]), now or later: until then entries wait for it. A voter stays what it is.
    ///
    /// # Errors
    /// See [`ChangeError`]; `UnknownNode` before anything else is done.
    pub async fn add_learner(&self, node: u64) -> Result<(), ChangeError> {
        self.replica.add_learner(node).await
    }

    /// Makes learners of `add` into voters and removes the voters of `remove` altogether, in one joint change. On
    /// the leader. Returns once the last membership of the change is committed. A node of `add` that votes
    /// already, and one of `remove` that is not there, are no errors. A joint change that a leader before has
    /// begun is finished first. A leader that removes itself leads until the change is committed, and then hands
    /// its leadership over.
    ///
    /// How far learners are is not asked here: a voter that lags is no help to a majority.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_voters(
        &self,
        add: BTreeSet<u64>,
        remove: BTreeSet<u64>,
    ) -> Result<(), ChangeError> {
        self.replica.change_voters(add, remove).await
    }

    /// Takes a learner out. On the leader. Returns once the membership is committed. One that is not there is no
    /// error.
    ///
    /// # Errors
    /// See [`ChangeError`]; `IsVoter` if it votes.
    pub async fn remove_learner(&self, node: u64) -> Result<(), ChangeError> {
        self.replica.remove_learner(node).await
    }

    /// One of the three above, but only from the membership that the entry at `index` brought
    /// ([`Membership::index`]): for a caller whose call may come late, when others have changed what it decided
    /// on. What is so already is no error, whatever the index.
    ///
    /// # Errors
    /// See [`ChangeError`]; `Moved` if the membership is another one by now.
    pub async fn change_membership_from(
        &self,
        index: u64,
        change: MembershipChange,
    ) -> Result<(), ChangeError> {
        self.replica.change_from(index, change).await
    }

    /// Hands the leadership to `to`, a voter. On the leader. Returns once this node leads no more, which is nearly
    /// always because `to` does; no error if `to` is this node.
    ///
    /// # Errors
    /// See [`ChangeError`]; `Unavailable` if this node still leads after some seconds, as when `to` does not run.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ChangeError> {
        self.replica.transfer_leader(to).await
    }
}

fn unavailable(reason: String) -> ProposeError {
    ProposeError::Unavailable { reason }
}
