//! What the entries of one shard do: send, deliver, ack.

use crate::cluster::{Cluster, Item, LaneId, Proposal, ShardId, SlotId};
use crate::flaw::Flaw;
use crate::scene::{Direct, Scene};

impl Scene {
    /// Accepts the `number`th send of a slot, unless the dedup rows know it. False: this shard does not
    /// hold the slot, or the send was a repeat.
    pub(crate) fn send(
        &self,
        cluster: &mut Cluster,
        at: ShardId,
        source: SlotId,
        number: u8,
    ) -> bool {
        let Some(slot) = self.serving(cluster, at, source) else {
            return false;
        };
        if number <= slot.accepted {
            return false;
        }
        slot.accepted = number;
        cluster.ledger.accepted[source.index()].push(number);
        let send = self.sent(source, number);
        let lane = LaneId {
            source,
            destination: send.to,
        };
        self.emit(
            cluster,
            at,
            lane,
            Item::Message {
                number,
                known: send.known,
            },
        );
        true
    }

    /// Sends an item on its lane: at once if both ends are here and nothing is ahead of it, else by the outbox.
    fn emit(&self, cluster: &mut Cluster, at: ShardId, lane: LaneId, item: Item) {
        let shard = &cluster.shards[at.index()];
        let mark = shard
            .live(lane.destination)
            .map(|slot| slot.marks[lane.source.index()]);
        let end = self
            .serving(cluster, at, lane.source)
            .map(|slot| &mut slot.lanes[lane.destination.index()])
            .expect("only a slot held here sends");
        let nothing_ahead = match self.direct {
            Direct::WhenAcked => end.rows.is_empty(),
            Direct::WhenDelivered | Direct::Numbered => mark == Some(end.next() - 1),
        };
        if mark.is_none() || !(nothing_ahead || self.has(Flaw::DirectPastUnacked)) {
            end.rows.push(item);
            return;
        }
        if self.direct == Direct::Numbered {
            let seq = end.next();
            end.rows.push(item);
            end.ack(seq);
            let slot = self.serving(cluster, at, lane.destination);
            slot.expect("looked up above").marks[lane.source.index()] = seq;
        }
        self.effect(cluster, at, lane, item);
    }

    /// What an item does at its destination. Content never blocks: what cannot be delivered is answered.
    pub(crate) fn effect(&self, cluster: &mut Cluster, at: ShardId, lane: LaneId, item: Item) {
        let LaneId {
            source,
            destination,
        } = lane;
        let Some(slot) = self.serving(cluster, at, destination) else {
            return;
        };
        match item {
            Item::Message {
                number,
                known: true,
            } => {
                slot.received[source.index()].push(number);
                cluster.ledger.delivered[destination.index()][source.index()].push(number);
            }
            Item::Message {
                number,
                known: false,
            } => {
                let back = LaneId {
                    source: destination,
                    destination: source,
                };
                self.emit(cluster, at, back, Item::Refusal { number });
            }
            Item::Refusal { number } => {
                slot.refused[source.index()].push(number);
                cluster.ledger.refused[destination.index()][source.index()].push(number);
            }
        }
    }

    /// Applies a delivery. Returns the mark to report, or nothing where the slot is not held (or where a
    /// flaw forgets to).
    pub(crate) fn deliver(
        &self,
        cluster: &mut Cluster,
        at: ShardId,
        lane: LaneId,
        seq: u8,
        item: Item,
    ) -> Option<u8> {
        let slot = self.serving(cluster, at, lane.destination)?;
        let mark = &mut slot.marks[lane.source.index()];
        let accepts = match self.flaw {
            Some(Flaw::NoContiguityCheck) => seq > *mark,
            // It was compared when it arrived.
            Some(Flaw::CheckOnArrival) => true,
            _ => seq == *mark + 1,
        };
        if !accepts {
            let silent = self.has(Flaw::DuplicateIsAnError) && seq <= *mark;
            return (!silent).then_some(*mark);
        }
        *mark = seq.max(*mark);
        let reported = *mark;
        if self.has(Flaw::MarkBeforeEffect) {
            cluster.shards[at.index()].owed.push((lane, item));
        } else {
            self.effect(cluster, at, lane, item);
        }
        Some(reported)
    }

    /// Applies an ack. One for more than was given out would mean that the source lost state: it is refused.
    pub(crate) fn ack(&self, cluster: &mut Cluster, at: ShardId, lane: LaneId, mark: u8) {
        if let Some(slot) = self.serving(cluster, at, lane.source) {
            let end = &mut slot.lanes[lane.destination.index()];
            if mark < end.next() {
                end.ack(mark);
            }
        }
    }

    /// Commits and applies a shard's oldest proposal.
    pub(crate) fn commit(&self, cluster: &mut Cluster, at: ShardId) {
        match cluster.shards[at.index()].proposals.remove(0) {
            Proposal::Deliver { lane, seq, item } => {
                if let Some(mark) = self.deliver(cluster, at, lane, seq, item) {
                    cluster.wire.marks.insert((lane, mark));
                }
            }
            Proposal::Ack { lane, mark } => self.ack(cluster, at, lane, mark),
        }
    }

    /// A slot's rows if this shard may change them.
    fn serving<'a>(
        &self,
        cluster: &'a mut Cluster,
        at: ShardId,
        slot: SlotId,
    ) -> Option<&'a mut crate::cluster::SlotState> {
        let shard = &mut cluster.shards[at.index()];
        if self.has(Flaw::FrozenServes) {
            return shard.holdings[slot.index()]
                .as_mut()
                .map(|holding| &mut holding.state);
        }
        shard.live_mut(slot)
    }
}
