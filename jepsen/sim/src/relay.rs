//! What carries items between shards: late, twice, out of order, or not at all; by leaders, and by those who still believe
//! that they lead.

use std::collections::BTreeMap;

use mailbox_engine::{AckLanes, Command, Deliver, Item, Items, LaneId};

use crate::consensus::{Asker, NOBODY};
use crate::world::{Event, NODES, World};

/// Items of one lane that are shipped together.
const ITEMS_MAX: usize = 5;

/// On its way between shards.
#[derive(Debug, Clone)]
pub(crate) enum Shipment {
    /// To a destination.
    Items(Deliver),
    /// Back to the source.
    Ack { lane: LaneId, mark: u64 },
}

impl World {
    /// Ships what a replica has in its outboxes, if its node leads, or thinks so.
    pub(crate) fn relay(&mut self, node: usize, shard: usize) {
        let leads = self.leads(node, shard);
        // One that was deposed may go on for a while.
        if !leads && !self.goes_wrong(1.0 / (4 * NODES) as f64) {
            return;
        }
        let Some(replica) = self.replica(node, shard) else {
            return;
        };
        let mut lanes: BTreeMap<LaneId, (u64, Vec<Item>)> = BTreeMap::new();
        for it in replica.unacked() {
            let (first, items) = lanes.entry(it.lane).or_insert((it.seq, Vec::new()));
            if *first + items.len() as u64 == it.seq && items.len() < ITEMS_MAX {
                items.push(it.item);
            }
        }
        for (lane, (first_seq, items)) in lanes {
            let shipment = Shipment::Items(Deliver {
                lane,
                first_seq,
                items: Items::new(&items),
            });
            for _ in 0..1 + usize::from(self.goes_wrong(0.1)) {
                if !self.goes_wrong(0.1) {
                    let late = if self.goes_wrong(0.1) { 400 } else { 15 };
                    self.again(Event::Arrive(shipment.clone()), 1..late);
                }
            }
        }
    }

    /// Items, or an ack, reach the leader that they are for; without one they are lost.
    pub(crate) fn arrive(&mut self, shipment: Shipment) {
        match shipment {
            Shipment::Items(deliver) => {
                let shard = self.shard_of_slot(deliver.lane.destination.0);
                self.propose(shard, Command::Deliver(deliver), Asker::Relay);
            }
            Shipment::Ack { lane, mark } => {
                let shard = self.shard_of_slot(lane.source.0);
                let acks = vec![(lane, mark)];
                self.propose(shard, Command::AckLanes(AckLanes { acks }), NOBODY);
            }
        }
    }
}
