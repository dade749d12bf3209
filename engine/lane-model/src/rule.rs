//! What must hold in every state.

use crate::cluster::{Cluster, SlotId};
use crate::scene::Scene;

/// One thing that must always be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A client's send is accepted once, and sends are accepted in the order of their numbers.
    AcceptedOnce,
    /// What was delivered from one slot to another is, in order, a beginning of what was accepted: nothing
    /// twice, nothing skipped, nothing overtaken. Refusals likewise.
    OnceAndInOrder,
    /// `acked <= mark < next` on every lane.
    MarksBounded,
    /// A slot is served by one shard at most.
    OneOwner,
    /// A slot's rows hold exactly what was delivered to it, wherever it has moved.
    NothingLost,
    /// When faults stop, every lane drains, and every accepted message has been delivered, or refused, once.
    Drains,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AcceptedOnce,
        Self::OnceAndInOrder,
        Self::MarksBounded,
        Self::OneOwner,
        Self::NothingLost,
        Self::Drains,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcceptedOnce => "accepted once",
            Self::OnceAndInOrder => "once and in order",
            Self::MarksBounded => "acked <= mark < next",
            Self::OneOwner => "one owner",
            Self::NothingLost => "nothing lost",
            Self::Drains => "drains",
        }
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(self, scene: &Scene, cluster: &Cluster) -> bool {
        match self {
            Self::AcceptedOnce => cluster
                .ledger
                .accepted
                .iter()
                .all(|numbers| numbers.iter().copied().eq(1..=numbers.len() as u8)),
            Self::OnceAndInOrder => every_pair(scene, |source, destination| {
                let due = Due::of(scene, cluster, source, destination);
                due.messages.starts_with(due.delivered) && due.refusals.starts_with(due.refused)
            }),
            Self::MarksBounded => every_pair(scene, |source, destination| {
                let (Some(from), Some(to)) = (cluster.slot(source), cluster.slot(destination))
                else {
                    return false;
                };
                let lane = &from.lanes[destination.index()];
                let mark = to.marks[source.index()];
                lane.acked <= mark && mark < lane.next()
            }),
            Self::OneOwner => scene.slots().all(|slot| cluster.owners(slot).count() <= 1),
            Self::NothingLost => scene.slots().all(|slot| {
                let ledger = &cluster.ledger;
                cluster.slot(slot).is_some_and(|state| {
                    state.received == ledger.delivered[slot.index()]
                        && state.refused == ledger.refused[slot.index()]
                })
            }),
            Self::Drains => is_drained(scene, &scene.drained(cluster)),
        }
    }
}

/// What one slot's sends to another come to, and what came of them so far.
struct Due<'a> {
    messages: Vec<u8>,
    refusals: Vec<u8>,
    delivered: &'a [u8],
    refused: &'a [u8],
}

impl<'a> Due<'a> {
    fn of(scene: &Scene, cluster: &'a Cluster, source: SlotId, destination: SlotId) -> Self {
        let ledger = &cluster.ledger;
        let sent = |known: bool| {
            let numbers = ledger.accepted[source.index()].iter().copied();
            numbers
                .filter(|number| {
                    let send = scene.sent(source, *number);
                    send.to == destination && send.known == known
                })
                .collect()
        };
        Self {
            messages: sent(true),
            refusals: sent(false),
            delivered: &ledger.delivered[destination.index()][source.index()],
            refused: &ledger.refused[source.index()][destination.index()],
        }
    }
}

/// Every lane is acked to its end, and everything accepted has arrived.
fn is_drained(scene: &Scene, cluster: &Cluster) -> bool {
    every_pair(scene, |source, destination| {
        let due = Due::of(scene, cluster, source, destination);
        let empty = cluster
            .slot(source)
            .is_some_and(|slot| slot.lanes[destination.index()].rows.is_empty());
        empty && due.messages == due.delivered && due.refusals == due.refused
    })
}

fn every_pair(scene: &Scene, mut holds: impl FnMut(SlotId, SlotId) -> bool) -> bool {
    scene
        .slots()
        .all(|source| scene.slots().all(|destination| holds(source, destination)))
}
