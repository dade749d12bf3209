//! Who leads a shard, as this node publishes it.

use std::sync::Arc;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::Fatal;
use tokio::sync::watch;

use crate::base_thread::report;
use crate::pulse::{Pulse, View};
use crate::replica::{Raft, Road};
use crate::state_machine::Applier;
use crate::status::Leadership;
use crate::types::LogId;

/// Before openraft has said who leads, and after it has stopped.
pub(crate) const NOBODY: Leadership = Leadership::Follower {
    leader: None,
    term: 0,
};

/// Publishes who leads: what openraft says, as far as the node's pulse bears it out.
pub(crate) struct LeadershipWatcher {
    pub(crate) shard: u32,
    pub(crate) raft: Raft,
    pub(crate) road: Road,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) applied: watch::Receiver<Option<LogId>>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) applier: Arc<Applier>,
}

impl LeadershipWatcher {
    pub(crate) async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        let mut pulse = self.pulse.subscribe();
        // A leader that was started again elsewhere leads on; where it is must not be told as it was.
        let mut nodes = self.road.peers.watch();
        loop {
            let now = self.look();
            self.publish(now);
            // What is applied matters only until the leader is ready.
            let waiting = matches!(
                *self.leadership.borrow(),
                Leadership::Leader { ready: false, .. }
            );
            let ended = tokio::select! {
                changed = server.changed() => changed.is_err(),
                changed = pulse.changed() => changed.is_err(),
                changed = nodes.changed() => changed.is_err(),
                changed = self.applied.changed(), if waiting => changed.is_err(),
            };
            if ended {
                self.pulse.forget(self.shard);
                self.publish(NOBODY);
                self.judge_end();
                return;
            }
        }
    }

    /// Who ends here without having been asked to has met a bug: in memory things may be as they must not be. The node
    /// starts again with what its disks hold, rather than be one voter short until somebody looks.
    fn judge_end(&self) {
        if *self.applier.stopping.borrow() {
            return;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if let Err(Fatal::Panicked) = &metrics.running_state {
            let reason = format!("shard {}: openraft panicked", self.shard);
            report(&self.applier.fault, &reason);
        }
    }

    fn publish(&self, now: Leadership) {
        self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            if before.is_ready() != now.is_ready() {
                self.tell(&now);
            }
            *before = now;
            changed
        });
    }

    /// A line for each time that this node begins or ceases to lead: what an operator looks for after a stall.
    fn tell(&self, now: &Leadership) {
        let shard = self.shard;
        match now {
            Leadership::Leader { term, .. } => tracing::info!(shard, term, "leads"),
            Leadership::Follower { leader, term } => {
                let leader = leader.as_ref().map(|leader| leader.node);
                tracing::info!(shard, term, leader, "leads no more");
            }
        }
    }

    fn look(&mut self) -> Leadership {
        let server = self.raft.server_metrics().borrow_watched().clone();
        let term = server.vote.leader_id.term;
        let membership = server.membership_config.membership();
        let leads = server.state == ServerState::Leader;
        let standing = self.pulse.note(
            self.shard,
            View {
                term,
                leads,
                leader: server.current_leader,
                voters: membership.get_joint_config().clone(),
                nodes: membership.nodes().map(|(node, _)| *node).collect(),
            },
        );
        if !leads {
            let leader = server.current_leader.filter(|_| standing.has_leader);
            return Leadership::Follower {
                leader: self.road.hint(leader),
                term,
            };
        }
        let has_quorum = standing.has_quorum;
        #[cfg(feature = "planted")]
        let has_quorum = has_quorum || mailbox_planted::is("read-without-barrier");
        if !has_quorum {
            return Leadership::Follower { leader: None, term };
        }
        let applied = *self.applied.borrow_and_update();
        Leadership::Leader {
            term,
            ready: applied.is_some_and(|id| id.leader_id.term == term),
        }
    }
}
