//! Which moves are carried on at once.

use std::collections::BTreeSet;

use mailbox_engine::{MoveStage, SlotId, SlotMove};

/// Moves whose rows are on their way at once; the others wait their turn. A frozen slot does not: nobody serves it.
const AT_ONCE: usize = 2;
/// Moves that are in the map and wait for a replica of the destination: it may be away for long, and copies nothing.
const DROPPING_AT_ONCE: usize = 16;

/// The moves to begin to carry on now, beside those that are carried on.
pub(super) fn due(rows: &[(SlotId, SlotMove)], carried: &BTreeSet<SlotId>) -> Vec<SlotId> {
    // Carried on or not yet: a copy begins only beside few of them.
    let frozen = rows.iter().filter(|(_, row)| is_frozen(row)).count();
    let (mut copying, mut dropping) = (frozen, 0);
    for (_, row) in rows.iter().filter(|(slot, _)| carried.contains(slot)) {
        match row.stage {
            MoveStage::Dropping => dropping += 1,
            MoveStage::Copying | MoveStage::Aborting => copying += 1,
            MoveStage::Freezing => {}
        }
    }
    let waiting = rows.iter().filter(|(slot, _)| !carried.contains(slot));
    let due = waiting.filter(|(_, row)| {
        let (count, most) = match row.stage {
            MoveStage::Freezing => return true,
            MoveStage::Dropping => (&mut dropping, DROPPING_AT_ONCE),
            MoveStage::Copying | MoveStage::Aborting => (&mut copying, AT_ONCE),
        };
        *count += 1;
        *count <= most
    });
    due.map(|(slot, _)| *slot).collect()
}

fn is_frozen(row: &SlotMove) -> bool {
    row.stage == MoveStage::Freezing
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

    fn slots(slots: &[u16]) -> Vec<SlotId> {
        slots.iter().map(|slot| SlotId(*slot)).collect()
    }

    fn carried(carried: &[u16]) -> BTreeSet<SlotId> {
        slots(carried).into_iter().collect()
    }

    #[test]
    fn moves_that_wait_for_a_replica_hold_up_no_copy() {
        use MoveStage::{Copying, Dropping, Freezing};
        let stages = [Dropping, Copying, Dropping, Freezing, Dropping, Copying];
        let rows = rows(&stages);
        let first = due(&rows, &BTreeSet::new());
        assert_eq!(first, slots(&[0, 1, 2, 3, 4]));
        assert_eq!(due(&rows, &carried(&[0, 1, 2, 3, 4])), []);
        assert_eq!(due(&rows, &carried(&[0, 1])), slots(&[2, 3, 4]));
    }

    #[test]
    fn a_frozen_slot_waits_for_no_copy_and_copies_wait_for_it() {
        use MoveStage::{Copying, Freezing};
        let rows = rows(&[Copying, Copying, Copying, Freezing]);
        // Nothing is carried after a change of the leader.
        assert_eq!(due(&rows, &carried(&[])), slots(&[0, 3]));
        // Whoever led before had decided it, and nobody here was told.
        assert_eq!(due(&rows, &carried(&[0, 1])), slots(&[3]));
        assert_eq!(due(&rows, &carried(&[0, 3])), []);
        assert_eq!(due(&rows, &carried(&[3])), slots(&[0]));
        let rows = self::rows(&[Freezing, Freezing, Freezing, Copying]);
        assert_eq!(due(&rows, &carried(&[])), slots(&[0, 1, 2]));
    }
}
