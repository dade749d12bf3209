//! Everything that can happen next.

use crate::cluster::{Cluster, Item, LaneId, Proposal, ShardId, SlotId};
use crate::flaw::Flaw;
use crate::scene::Scene;

/// One thing that happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// The slot's leader accepts a send: a new one or a client's repeat.
    Send(SlotId, u8),
    /// The leader's relay ships an unacked row.
    Ship(LaneId, u8, Item),
    /// A shipped item reaches a shard's leader, which proposes its delivery.
    Arrive(ShardId, LaneId, u8, Item),
    /// A reported mark reaches the leader of the lane's source, which proposes an ack.
    Report(ShardId, LaneId, u8),
    /// The oldest proposal is committed and applied.
    Commit(ShardId),
    /// The leader falls. That many of its proposals survive in the log, the others are lost, and so is all
    /// that it held in memory.
    Fall(ShardId, usize),
    /// An effect whose mark is already raised follows ([`Flaw::MarkBeforeEffect`] only).
    Follow(ShardId),
    /// The meta shard records the next move.
    Begin,
    /// A step of a move, by its place among the moves.
    Move(usize, MoveStep),
}

/// A step of a slot move.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MoveStep {
    /// Copy the rows while the source serves.
    Stage,
    /// Stop the source.
    Freeze,
    /// Bring the copy up to the frozen source.
    Seal,
    /// Let the destination own the slot.
    Import,
    /// Let the destination give it up.
    Abort,
    /// Let the source serve again after an abort.
    Thaw,
    /// Drop the source's copy.
    Discard,
}

const MOVE_STEPS: [MoveStep; 7] = [
    MoveStep::Stage,
    MoveStep::Freeze,
    MoveStep::Seal,
    MoveStep::Import,
    MoveStep::Abort,
    MoveStep::Thaw,
    MoveStep::Discard,
];

impl Scene {
    /// What may happen next. Some of it may turn out to change nothing.
    pub fn actions(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        for slot in self.slots() {
            let sends =
                u8::try_from(self.sends[slot.index()].len()).expect("a scene has few sends");
            let accepted = cluster.ledger.accepted[slot.index()]
                .iter()
                .max()
                .copied()
                .unwrap_or(0);
            // The next send, and repeats of all that were accepted.
            actions.extend((1..=sends.min(accepted + 1)).map(|number| Action::Send(slot, number)));
        }
        for (id, shard) in self.shard_ids().zip(&cluster.shards) {
            self.leader_actions(cluster, id, actions);
            if !shard.proposals.is_empty() {
                actions.push(Action::Commit(id));
            }
            if !shard.owed.is_empty() {
                actions.push(Action::Follow(id));
            }
            // With nothing under way a leader that falls takes nothing along that the model knows of.
            let losses = shard.proposals.len() + usize::from(!shard.owed.is_empty());
            actions.extend((0..losses).map(|kept| Action::Fall(id, kept)));
        }
        actions.push(Action::Begin);
        for attempt in 0..cluster.attempts.len() {
            actions.extend(MOVE_STEPS.map(|step| Action::Move(attempt, step)));
        }
    }

    /// What a shard's leader may ship and propose.
    fn leader_actions(&self, cluster: &Cluster, id: ShardId, actions: &mut Vec<Action>) {
        let shard = &cluster.shards[id.index()];
        for source in self.slots() {
            let Some(state) = shard.live(source) else {
                continue;
            };
            for destination in self.slots() {
                let lane = LaneId {
                    source,
                    destination,
                };
                let end = &state.lanes[destination.index()];
                for (seq, item) in (end.acked + 1..).zip(end.rows.iter().copied()) {
                    if !cluster.wire.items.contains(&(lane, seq, item)) {
                        actions.push(Action::Ship(lane, seq, item));
                    }
                }
            }
        }
        if shard.proposals.len() >= self.proposals_max {
            return;
        }
        // A shard that holds nothing of the slot proposes in vain, so those arrivals are left out. One that
        // holds it frozen is kept: the proposal may be applied after the freeze, or after the thaw.
        for (lane, seq, item) in &cluster.wire.items {
            if shard.holdings[lane.destination.index()].is_some() {
                actions.push(Action::Arrive(id, *lane, *seq, *item));
            }
        }
        for (lane, mark) in &cluster.wire.marks {
            if shard.holdings[lane.source.index()].is_some() {
                actions.push(Action::Report(id, *lane, *mark));
            }
        }
    }

    /// The state after an action; nothing if it changes nothing.
    #[must_use]
    pub fn step(&self, before: &Cluster, action: &Action) -> Option<Cluster> {
        let mut cluster = before.clone();
        let after = &mut cluster;
        let changed = match action {
            Action::Send(slot, number) => self
                .owner(before, *slot)
                .is_some_and(|at| self.send(after, at, *slot, *number)),
            Action::Ship(lane, seq, item) => after.wire.items.insert((*lane, *seq, *item)),
            Action::Arrive(at, lane, seq, item) => self.arrive(after, *at, *lane, *seq, *item),
            Action::Report(at, lane, mark) => {
                let proposal = Proposal::Ack {
                    lane: *lane,
                    mark: *mark,
                };
                // The relay has the acked point before it and proposes nothing that would not raise it.
                let stale = before.shards[at.index()]
                    .live(lane.source)
                    .is_some_and(|slot| slot.lanes[lane.destination.index()].acked >= *mark);
                !stale && {
                    after.shards[at.index()].proposals.push(proposal);
                    true
                }
            }
            Action::Commit(at) => {
                self.commit(after, *at);
                true
            }
            Action::Follow(at) => {
                let (lane, item) = after.shards[at.index()].owed.remove(0);
                self.effect(after, *at, lane, item);
                true
            }
            Action::Fall(at, kept) => {
                let shard = &mut after.shards[at.index()];
                shard.proposals.truncate(*kept);
                shard.owed.clear();
                true
            }
            Action::Begin => self.begin(after),
            Action::Move(attempt, step) => self.move_step(after, *attempt, *step),
        };
        changed.then_some(cluster)
    }

    /// The destination's leader proposes an item that has reached it. False: a flaw makes it refuse.
    fn arrive(
        &self,
        cluster: &mut Cluster,
        at: ShardId,
        lane: LaneId,
        seq: u8,
        item: Item,
    ) -> bool {
        let mark = mark_at(cluster, at, lane);
        if !self.lets_in(cluster, at, lane, seq) {
            return false;
        }
        if self.has(Flaw::ReportBeforeCommit) && mark.is_some_and(|mark| seq == mark + 1) {
            cluster.wire.marks.insert((lane, seq));
        }
        let proposals = &mut cluster.shards[at.index()].proposals;
        proposals.push(Proposal::Deliver { lane, seq, item });
        true
    }

    /// Whether the destination's leader proposes what arrives: always, in the protocol.
    pub(crate) fn lets_in(&self, cluster: &Cluster, at: ShardId, lane: LaneId, seq: u8) -> bool {
        !self.has(Flaw::CheckOnArrival)
            || mark_at(cluster, at, lane).is_none_or(|mark| seq == mark + 1)
    }

    fn move_step(&self, cluster: &mut Cluster, attempt: usize, step: MoveStep) -> bool {
        match step {
            MoveStep::Stage => self.stage(cluster, attempt),
            MoveStep::Freeze => self.freeze(cluster, attempt),
            MoveStep::Seal => self.seal(cluster, attempt),
            MoveStep::Import => self.import(cluster, attempt),
            MoveStep::Abort => self.abort(cluster, attempt),
            MoveStep::Thaw => self.thaw(cluster, attempt),
            MoveStep::Discard => self.discard(cluster, attempt),
        }
    }
}

fn mark_at(cluster: &Cluster, at: ShardId, lane: LaneId) -> Option<u8> {
    let slot = cluster.shards[at.index()].live(lane.destination);
    slot.map(|slot| slot.marks[lane.source.index()])
}
