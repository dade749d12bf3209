//! Moving a slot: begin, stage, freeze, seal, import, drop; or abort and thaw.
//!
//! Each step is idempotent by (slot, epoch) and may come late. What keeps two shards from serving one slot:
//! the import is applied only from the frozen source's rows, a shard freezes only under a greater epoch than
//! it holds the slot under, and after the freeze a move is given up by the *destination's* word alone.

use crate::cluster::{Attempt, Cluster, Holding, Lane, ShardId};
use crate::flaw::Flaw;
use crate::scene::Scene;

impl Scene {
    /// Records the next move, once no other of its slot is open. False: there is none to begin.
    pub(crate) fn begin(&self, cluster: &mut Cluster) -> bool {
        let count = cluster.attempts.len();
        let Some(wanted) = self.moves.get(count) else {
            return false;
        };
        let mut from = self.homes[wanted.slot.index()];
        for attempt in cluster
            .attempts
            .iter()
            .filter(|old| old.slot == wanted.slot)
        {
            if attempt.is_open() {
                return false;
            }
            if attempt.imported {
                from = attempt.to;
            }
        }
        if from == wanted.to {
            return false;
        }
        cluster.attempts.push(Attempt {
            slot: wanted.slot,
            from,
            to: wanted.to,
            epoch: 2 * u8::try_from(count + 1).expect("a scene has few moves"),
            staged: None,
            sealed: false,
            frozen: false,
            imported: false,
            aborted: false,
        });
        true
    }

    /// Copies the slot's rows to the destination while the source goes on serving.
    pub(crate) fn stage(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt { slot, from, .. } = cluster.attempts[attempt];
        let Some(state) = cluster.shards[from.index()].live(slot).cloned() else {
            return false;
        };
        let attempt = &mut cluster.attempts[attempt];
        if attempt.staged.is_some() || !attempt.is_open() {
            return false;
        }
        attempt.staged = Some(state);
        true
    }

    /// Stops the source. From its apply on, the source serves nothing of the slot.
    pub(crate) fn freeze(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt {
            slot, from, epoch, ..
        } = cluster.attempts[attempt];
        let Some(holding) = &mut cluster.shards[from.index()].holdings[slot.index()] else {
            return false;
        };
        if holding.frozen || epoch <= holding.epoch {
            return false;
        }
        holding.frozen = true;
        holding.epoch = epoch;
        cluster.attempts[attempt].frozen = true;
        true
    }

    /// Brings the staged copy up to the frozen source.
    pub(crate) fn seal(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt {
            slot,
            from,
            epoch,
            sealed,
            ..
        } = cluster.attempts[attempt];
        let frozen = cluster.shards[from.index()].holdings[slot.index()]
            .as_ref()
            .filter(|holding| holding.frozen && holding.epoch == epoch);
        let (Some(holding), false) = (frozen, sealed) else {
            return false;
        };
        let mut state = holding.state.clone();
        match self.flaw {
            Some(Flaw::MarksLeftBehind) => state.marks.fill(0),
            Some(Flaw::DedupLeftBehind) => state.accepted = 0,
            Some(Flaw::OutboxLeftBehind) => {
                for lane in &mut state.lanes {
                    *lane = Lane {
                        acked: lane.next() - 1,
                        rows: Vec::new(),
                    };
                }
            }
            _ => {}
        }
        let attempt = &mut cluster.attempts[attempt];
        attempt.staged = Some(state);
        attempt.sealed = true;
        true
    }

    /// Makes the destination the owner.
    pub(crate) fn import(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt {
            slot, to, epoch, ..
        } = cluster.attempts[attempt];
        let trial = &mut cluster.attempts[attempt];
        let complete = trial.sealed || self.has(Flaw::ImportBeforeFreeze);
        let given_up = trial.aborted && !self.has(Flaw::ImportAfterAbort);
        if trial.imported || given_up || !complete {
            return false;
        }
        let Some(state) = trial.staged.clone() else {
            return false;
        };
        trial.imported = true;
        cluster.shards[to.index()].holdings[slot.index()] = Some(Holding {
            epoch,
            frozen: false,
            state,
        });
        true
    }

    /// Gives a move up, by the destination's word: after it the destination never imports this epoch.
    pub(crate) fn abort(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let attempt = &mut cluster.attempts[attempt];
        if !self.aborts || !attempt.is_open() {
            return false;
        }
        attempt.aborted = true;
        true
    }

    /// Lets a frozen source serve again, once the destination has given the move up.
    pub(crate) fn thaw(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt {
            slot,
            from,
            epoch,
            aborted,
            ..
        } = cluster.attempts[attempt];
        let Some(holding) = &mut cluster.shards[from.index()].holdings[slot.index()] else {
            return false;
        };
        if !aborted || !holding.frozen || holding.epoch != epoch {
            return false;
        }
        holding.frozen = false;
        holding.epoch = epoch + 1;
        true
    }

    /// Drops what the source still holds, once the destination has imported.
    pub(crate) fn discard(&self, cluster: &mut Cluster, attempt: usize) -> bool {
        let Attempt {
            slot,
            from,
            epoch,
            imported,
            ..
        } = cluster.attempts[attempt];
        let held = &mut cluster.shards[from.index()].holdings[slot.index()];
        let stale = held
            .as_ref()
            .is_some_and(|holding| holding.frozen && holding.epoch == epoch);
        if !imported || !stale {
            return false;
        }
        *held = None;
        true
    }

    /// Where a slot is live, if anywhere.
    pub(crate) fn owner(&self, cluster: &Cluster, slot: crate::cluster::SlotId) -> Option<ShardId> {
        cluster.owners(slot).next()
    }
}
