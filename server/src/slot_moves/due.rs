//! Which moves are carried on at once.

use std::collections::BTreeSet;

use mailbox_engine::{MoveStage, SlotId, SlotMove};

/// Moves whose rows are on their way at once; the others wait their turn.
const AT_ONCE: usize = 2;
/// Moves that are in the map and wait for a replica of the destination: it may be away for long, and copies nothing.
const DROPPING_AT_ONCE: usize = 16;

/// The moves to begin to carry on now, beside those that are carried on.
pub(super) fn due(rows: &[(SlotId, SlotMove)], carried: &BTreeSet<SlotId>) -> Vec<SlotId> {
    let (mut copying, mut dropping) = (0, 0);
    for (_, row) in rows.iter().filter(|(slot, _)| carried.contains(slot)) {
        match row.stage {
            MoveStage::Dropping => dropping += 1,
            MoveStage::Copying | MoveStage::Freezing | MoveStage::Aborting => copying += 1,
        }
    }
    let waiting = rows.iter().filter(|(slot, _)| !carried.contains(slot));
    let due = waiting.filter(|(_, row)| {
        let (count, most) = match row.stage {
            MoveStage::Dropping => (&mut dropping, DROPPING_AT_ONCE),
            MoveStage::Copying | MoveStage::Freezing | MoveStage::Aborting => {
                (&mut copying, AT_ONCE)
            }
        };
        *count += 1;
        *count <= most
    });
    due.map(|(slot, _)| *slot).collect()
}

#[cfg(test)]
mod tests {
    use mailbox_engine::ShardId;

    use super::*;

    fn rows(stages: &[MoveStage]) -> Vec<(SlotId, SlotMove)> {
        let row = |stage| SlotMove {
            from: ShardId(1),
            to: ShardId(2),
            epoch: 1,
            stage,
        };
        let rows = stages.iter().enumerate();
        rows.map(|(slot, stage)| (SlotId(slot as u16), row(*stage)))
            .collect()
    }

    #[test]
    fn moves_that_wait_for_a_replica_hold_up_no_copy() {
        use MoveStage::{Copying, Dropping, Freezing};
        let stages = [Dropping, Copying, Dropping, Freezing, Dropping, Copying];
        let rows = rows(&stages);
        let slots = |slots: &[u16]| slots.iter().map(|slot| SlotId(*slot)).collect::<Vec<_>>();
        let first = due(&rows, &BTreeSet::new());
        assert_eq!(first, slots(&[0, 1, 2, 3, 4]));
        let carried: BTreeSet<SlotId> = first.into_iter().collect();
        assert_eq!(due(&rows, &carried), []);
        let carried: BTreeSet<SlotId> = slots(&[0, 1]).into_iter().collect();
        assert_eq!(due(&rows, &carried), slots(&[2, 3, 4]));
    }
}
