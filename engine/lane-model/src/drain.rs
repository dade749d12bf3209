//! What happens when the faults stop: open moves are finished and every relay sends until it is heard.

use crate::cluster::{Cluster, LaneId};
use crate::scene::Scene;

impl Scene {
    /// The state that a faultless run from here ends in. The wire and all proposals are lost first: what a
    /// lane needs to drain must be in what is durable, or it can be lost.
    #[must_use]
    pub fn drained(&self, cluster: &Cluster) -> Cluster {
        let mut cluster = cluster.clone();
        cluster.wire = Default::default();
        for shard in &mut cluster.shards {
            shard.proposals.clear();
            shard.owed.clear();
        }
        self.finish_moves(&mut cluster);
        while self.relay_round(&mut cluster) {}
        cluster
    }

    /// Does the steps of all moves that are still owed, in order.
    fn finish_moves(&self, cluster: &mut Cluster) {
        for attempt in 0..cluster.attempts.len() {
            self.thaw(cluster, attempt);
        }
        for attempt in 0..cluster.attempts.len() {
            if cluster.attempts[attempt].is_open() {
                self.freeze(cluster, attempt);
                self.seal(cluster, attempt);
                self.import(cluster, attempt);
            }
            self.discard(cluster, attempt);
        }
    }

    /// Every relay ships every unacked row, and hears the mark. False: nothing moved.
    fn relay_round(&self, cluster: &mut Cluster) -> bool {
        let mut moved = false;
        for source in self.slots() {
            for destination in self.slots() {
                moved |= self.relay_lane(
                    cluster,
                    LaneId {
                        source,
                        destination,
                    },
                );
            }
        }
        moved
    }

    fn relay_lane(&self, cluster: &mut Cluster, lane: LaneId) -> bool {
        let Some(from) = self.owner(cluster, lane.source) else {
            return false;
        };
        let Some(to) = self.owner(cluster, lane.destination) else {
            return false;
        };
        let end = |cluster: &Cluster| {
            let slot = cluster.shards[from.index()].live(lane.source);
            slot.expect("the owner holds it").lanes[lane.destination.index()].clone()
        };
        let before = end(cluster);
        for seq in before.acked + 1..before.next() {
            let item = before.row(seq).expect("between acked and next");
            let reported = if self.lets_in(cluster, to, lane, seq) {
                self.deliver(cluster, to, lane, seq, item)
            } else {
                cluster.shards[to.index()]
                    .live(lane.destination)
                    .map(|slot| slot.marks[lane.source.index()])
            };
            if let Some(mark) = reported {
                self.ack(cluster, from, lane, mark);
            }
        }
        end(cluster).acked > before.acked
    }
}
