//! Node-level liveness: one small message per peer and interval, for all shards together.
//!
//! A shard that nobody writes to costs nothing: openraft's own clock stands still in every replica
//! (`enable_tick` is off), and what it was for is done once per node.
//!
//! ```text
//!   node A (leads 7 in term 3, 9 in term 5)            node B (follows both)
//!     Pulse { boot, vouches since what B knows }  ──▶    A lives; 7@3 and 9@5 have a leader
//!     A knows: B lives, and follows what A leads  ◀──    PulseReply { boot, refused: what B follows no more }
//! ```
//!
//! - A **vouch** is (shard, term): the sender leads it, with a majority. Only changes travel; a pulse without any
//!   is a few bytes, however many shards there are. A receiver that lacks what a pulse builds upon says so.
//! - A follower's shard has a leader while the leader's node was heard within the lease (`election_max_ms`) in the
//!   same process (`boot`), and vouches for the shard in the follower's own term. Else it is *vacant*: the
//!   survivors stand for election one after the other, in an order that depends on the shard (see
//!   `State::turn`), so that a dead node's shards are spread and rarely contested. Of a leader that was started
//!   again the first pulse says that.
//! - A replica refuses its vote while its shard has a leader (`peer_service.rs`). openraft's lease is made long
//!   and stands for nothing.
//! - A leader leads only while a majority of its voters has answered a pulse sent within the lease, none of them
//!   saying that it follows a later term. A leader that does not is not vouched for.
//!
//! **What this is not:** safety. Terms, votes and logs are openraft's, as they were: a wrong vouch or a lost pulse
//! costs an election or delays one. Nothing is read on the strength of a pulse: reads ask their quorum, or go by
//! what voters have promised in answer to the shard's own heartbeats (`lease.rs`).
//! Two things still go through every shard, rarely: a leader's own heartbeat (`QUIET`), which finds what a pulse
//! cannot see, and one to a node that came back.

mod known_peer;
mod run;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_api::peer;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::ballot::Ballot;
use crate::options::Timing;
use crate::replica::Raft;
use state::State;

pub(crate) use run::run;
pub(crate) use state::{Standing, View};

/// A leader speaks to every follower of a shard after so much silence, though nothing happens.
pub(crate) const QUIET: Duration = Duration::from_secs(15);

/// How often a node looks, and how long it trusts what it heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two pulses.
    pub(crate) interval: Duration,
    /// A node that was not heard for so long is gone; an answer to what was sent longer ago is none.
    pub(crate) lease: Duration,
    /// Shortest and longest wait before standing again for a shard where the last election led nowhere, or where others
    /// go on refusing (see [`State::stood`]).
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
}

impl Pace {
    pub(crate) fn new(timing: &Timing) -> Pace {
        Pace {
            interval: Duration::from_millis(timing.heartbeat_ms),
            lease: Duration::from_millis(timing.election_max_ms),
            retry_min: Duration::from_millis(timing.election_min_ms),
            retry_max: Duration::from_millis(timing.election_max_ms),
        }
    }
}

fn is_majority(voters: &BTreeSet<u64>, counts: impl Fn(u64) -> bool) -> bool {
    voters.iter().filter(|voter| counts(**voter)).count() * 2 > voters.len()
}

/// Whether those that `counts` says are a majority of every set.
pub(crate) fn is_quorum(sets: &[BTreeSet<u64>], counts: impl Fn(u64) -> bool) -> bool {
    !sets.is_empty() && sets.iter().all(|voters| is_majority(voters, &counts))
}

/// A number that no other start of a process has.
fn random() -> u64 {
    let state = std::hash::RandomState::new();
    state.build_hasher().finish() | 1
}

/// The node's liveness. What it knows is in [`State`]; here are its lock, its bells and the replicas.
pub(crate) struct Pulse {
    pace: Pace,
    state: Mutex<State>,
    replicas: RwLock<BTreeMap<u32, (Raft, Arc<Ballot>)>>,
    /// Moves when a shard may have gained or lost its leader or its quorum.
    changed: watch::Sender<u64>,
    /// Rung when there is something to tell peers before the next interval.
    news: Notify,
}

impl Pulse {
    pub(crate) fn new(node: u64, timing: &Timing) -> Arc<Pulse> {
        let pace = Pace::new(timing);
        let state = State::new(node, random(), random(), pace);
        Arc::new(Pulse {
            pace,
            state: Mutex::new(state),
            replicas: RwLock::default(),
            changed: watch::Sender::new(0),
            news: Notify::new(),
        })
    }

    /// Rings the bells that a change of the state asks for.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, news, epoch) = {
            let mut state = self.state.lock();
            let version = state.version();
            let result = change(&mut state);
            (result, state.version() != version, state.epoch())
        };
        self.changed.send_if_modified(|last| {
            let moved = *last != epoch;
            *last = epoch;
            moved
        });
        if news {
            self.news.notify_one();
        }
        result
    }

    pub(crate) fn add(&self, shard: u32, raft: Raft, ballot: Arc<Ballot>) {
        self.replicas.write().insert(shard, (raft, ballot));
    }

    /// The replica has stopped.
    pub(crate) fn forget(&self, shard: u32) {
        self.replicas.write().remove(&shard);
        self.with(|state| state.forget(shard));
    }

    /// Every change of what [`Pulse::note`] answers.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What openraft says of a shard now, and what follows.
    pub(crate) fn note(&self, shard: u32, view: View) -> Standing {
        self.with(|state| state.note(shard, view, Instant::now()))
    }

    /// Whether a node holds a replica of the shard that has no vote, as far as this node knows.
    pub(crate) fn has_learner(&self, shard: u32, node: u64) -> bool {
        self.state.lock().has_learner(shard, node)
    }

    /// This node is about to hand a leadership over: others may stand for it, whatever becomes of the try.
    pub(crate) fn resign(&self, shard: u32) {
        self.with(|state| state.resign(shard, Instant::now()));
    }

    /// This node stands for the shard at its next look, if nobody is known to lead it.
    pub(crate) fn hasten(&self, shard: u32) {
        self.with(|state| state.hasten(shard, Instant::now()));
    }

    /// Whether a vote for `candidate` would depose a leader that is alive as far as is known here.
    pub(crate) fn would_depose(&self, shard: u32, candidate: u64) -> bool {
        self.state
            .lock()
            .would_depose(shard, candidate, Instant::now())
    }

    /// Whether a peer has answered a pulse within the lease.
    pub(crate) fn is_reached(&self, node: u64) -> bool {
        self.state.lock().is_reached(node)
    }

    /// What a peer says, and the answer.
    pub(crate) fn take(&self, from: u64, pulse: peer::Pulse) -> peer::PulseReply {
        self.with(|state| state.take(from, pulse, Instant::now()))
    }

    fn raft(&self, shard: u32) -> Option<Raft> {
        let replicas = self.replicas.read();
        replicas.get(&shard).map(|(raft, _)| raft.clone())
    }

    /// Waits until what the replica has promised to the leader that is gone is over, and what the other voters
    /// have, who were asked at about the same time: the first try would come to nothing, and cost the pause before
    /// the next. Turns count from then: whose turn comes while they have promised would all stand at once.
    async fn outwait_promise(&self, shard: u32, own: u64) {
        let Some((_, ballot)) = self.elector(shard) else {
            return;
        };
        let now = Instant::now();
        let until = ballot.promised_until(own).await;
        if let Some(until) = until.filter(|until| now < *until) {
            let turn = self.state.lock().turn_of(shard);
            tokio::time::sleep_until((until + self.pace.interval / 4 + turn).into()).await;
        }
    }

    /// The replica, if it may take part in elections.
    fn elector(&self, shard: u32) -> Option<(Raft, Arc<Ballot>)> {
        let replicas = self.replicas.read();
        let elector = replicas.get(&shard);
        elector
            .filter(|(_, ballot)| ballot.refusal().is_none())
            .cloned()
    }
}
