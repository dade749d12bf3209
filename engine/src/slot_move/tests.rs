//! What each step makes of a slot's standing.

use proptest::prelude::*;

use super::*;

const HERE: ShardId = ShardId(1);
const THERE: ShardId = ShardId(2);
const SLOT: SlotId = SlotId(3);

fn at(index: u64, has_rows: bool) -> StepContext {
    StepContext {
        shard: HERE,
        slot_count: 8,
        index,
        time_ms: 1000 + index,
        last_message_id: MessageId(50 + index),
        has_rows,
    }
}

fn freeze(epoch: u64) -> MoveSlot {
    let (slot, to) = (SLOT, THERE);
    MoveSlot::Freeze { slot, epoch, to }
}

fn unfreeze(epoch: u64) -> MoveSlot {
    MoveSlot::Unfreeze { slot: SLOT, epoch }
}

fn drop_of(epoch: u64) -> MoveSlot {
    MoveSlot::Drop { slot: SLOT, epoch }
}

fn begin(epoch: u64) -> MoveSlot {
    let (slot, from) = (SLOT, THERE);
    MoveSlot::BeginImport { slot, epoch, from }
}

fn abort(epoch: u64) -> MoveSlot {
    let (slot, from) = (SLOT, THERE);
    MoveSlot::AbortImport { slot, epoch, from }
}

fn commit(epoch: u64) -> MoveSlot {
    MoveSlot::CommitImport {
        slot: SLOT,
        epoch,
        digest: 7,
        time_ms: 1,
        last_message_id: MessageId(1),
    }
}

/// Tables that steps can make.
pub(crate) fn slot_table() -> impl Strategy<Value = SlotTable> {
    let step = (0..6_u8, 0..8_u16, 1..6_u64, any::<bool>());
    proptest::collection::vec(step, 0..40).prop_map(|steps| {
        let mut table = SlotTable::default();
        for (index, (kind, slot, epoch, has_rows)) in (1..).zip(steps) {
            let slot = SlotId(slot);
            let call = match kind {
                0 => MoveSlot::Freeze {
                    slot,
                    epoch,
                    to: THERE,
                },
                1 => MoveSlot::Unfreeze { slot, epoch },
                2 => MoveSlot::Drop { slot, epoch },
                3 => MoveSlot::BeginImport {
                    slot,
                    epoch,
                    from: THERE,
                },
                4 => MoveSlot::AbortImport {
                    slot,
                    epoch,
                    from: THERE,
                },
                _ => MoveSlot::CommitImport {
                    slot,
                    epoch,
                    digest: 1,
                    time_ms: 2,
                    last_message_id: MessageId(3),
                },
            };
            let _ = table.step(&call, &at(index, has_rows));
        }
        table
    })
}

/// Takes steps; each that is due is repeated at once, and does nothing then.
fn take(table: &mut SlotTable, has_rows: bool, steps: &[(MoveSlot, bool)]) {
    for (index, (call, due)) in (1..).zip(steps) {
        let before = table.clone();
        let found = table.step(call, &at(10 * index, has_rows));
        if *due {
            assert_eq!(found, Ok(Step::Done), "{call:?}");
            let after = table.clone();
            assert_eq!(
                table.step(call, &at(10 * index + 5, has_rows)),
                Ok(Step::Repeat)
            );
            assert_eq!(*table, after, "{call:?}");
        } else {
            assert!(found.is_err(), "{call:?}: {found:?}");
            assert_eq!(*table, before, "{call:?}");
        }
    }
}

#[test]
fn a_source_freezes_then_drops_or_serves_again_under_a_later_epoch() {
    let mut table = SlotTable::default();
    take(
        &mut table,
        true,
        &[
            (drop_of(5), false),
            (unfreeze(5), false),
            (begin(5), false),
            (commit(5), false),
            (abort(5), false),
            (freeze(5), true),
            (freeze(4), false),
            (freeze(6), false),
            (unfreeze(5), false),
            (drop_of(4), false),
            (drop_of(6), false),
            (unfreeze(6), true),
            (drop_of(5), false),
            (freeze(5), false),
            (freeze(6), false),
            (freeze(7), true),
            (drop_of(7), true),
            (unfreeze(8), false),
        ],
    );
    assert_eq!(table.redirect(SLOT), Some((THERE, 7)));
    // A freeze that comes once more after its drop finds it done.
    let again = table.step(&freeze(7), &at(900, false));
    assert_eq!(again, Ok(Step::Repeat));
    let elsewhere = MoveSlot::Freeze {
        slot: SLOT,
        epoch: 7,
        to: ShardId(3),
    };
    assert!(table.step(&elsewhere, &at(901, false)).is_err());
}

#[test]
fn a_destination_commits_what_it_began_and_has_not_aborted() {
    let mut table = SlotTable::default();
    take(
        &mut table,
        false,
        &[
            (commit(5), false),
            (drop_of(5), false),
            (freeze(5), false),
            (begin(5), true),
            (begin(6), false),
            (commit(6), false),
            (commit(4), false),
            (abort(4), false),
            (freeze(9), false),
            (abort(5), true),
            (begin(5), false),
            (commit(5), false),
            (begin(7), true),
            (commit(7), true),
            (abort(7), false),
            (abort(8), false),
            (begin(8), false),
            (freeze(7), false),
            (freeze(9), true),
            (drop_of(9), true),
            (commit(7), false),
            (begin(9), false),
            (begin(11), true),
        ],
    );
    // A begin that comes late finds its import committed.
    let mut table = SlotTable::default();
    take(&mut table, false, &[(begin(3), true), (commit(3), true)]);
    assert_eq!(table.step(&begin(3), &at(99, true)), Ok(Step::Repeat));
}

#[test]
fn an_abort_that_comes_first_is_final() {
    let mut table = SlotTable::default();
    take(
        &mut table,
        false,
        &[
            (abort(5), true),
            (begin(5), false),
            (commit(5), false),
            (begin(4), false),
            (begin(6), true),
        ],
    );
}

#[test]
fn an_import_is_committed_in_a_later_entry_than_it_began() {
    let mut table = SlotTable::default();
    assert_eq!(table.step(&begin(5), &at(7, false)), Ok(Step::Done));
    assert!(table.step(&commit(5), &at(7, false)).is_err());
    assert_eq!(table.step(&commit(5), &at(8, false)), Ok(Step::Done));
}

#[test]
fn a_slot_stays_in_its_cluster_and_goes_to_another_shard() {
    let mut table = SlotTable::default();
    let (slot, epoch) = (SlotId(8), 1);
    let beyond = MoveSlot::Freeze {
        slot,
        epoch,
        to: THERE,
    };
    let refused = table.step(&beyond, &at(1, true));
    assert_eq!(refused, Err(Refusal::WrongShard { slot }));
    let (slot, shard) = (SLOT, HERE);
    let to_itself = MoveSlot::Freeze {
        slot,
        epoch,
        to: shard,
    };
    let refused = table.step(&to_itself, &at(1, true));
    assert_eq!(refused, Err(Refusal::MoveToItself { slot, shard }));
    assert!(table.is_empty());
}

#[test]
fn an_import_is_over_once_nothing_can_commit_it() {
    let mut table = SlotTable::default();
    assert!(!table.import_is_over(SLOT, 5));
    table.step(&begin(5), &at(1, false)).unwrap();
    assert!(!table.import_is_over(SLOT, 5) && table.import_is_over(SLOT, 4));
    assert!(
        !table.import_is_over(SLOT, 7),
        "one that a replay will begin"
    );
    table.step(&abort(5), &at(2, false)).unwrap();
    assert!(table.import_is_over(SLOT, 5) && !table.import_is_over(SLOT, 7));
    table.step(&begin(7), &at(3, false)).unwrap();
    table.step(&commit(7), &at(4, false)).unwrap();
    assert!(table.import_is_over(SLOT, 7));
}

proptest! {
    #[test]
    fn a_table_is_read_as_written(table in slot_table()) {
        let mut encoded = Vec::new();
        table.encode(&mut encoded);
        prop_assert_eq!(SlotTable::decode(&encoded), Ok(table));
    }

    #[test]
    fn any_bytes_are_a_table_or_refused(bytes: Vec<u8>) {
        let _ = SlotTable::decode(&bytes);
    }

    #[test]
    fn the_counts_are_those_of_the_slots(table in slot_table()) {
        let (mut frozen, mut importing) = (0, 0);
        for (slot, _, standing) in table.iter() {
            let is_frozen = matches!(standing, SlotStanding::Frozen { .. });
            prop_assert_eq!(table.is_frozen(slot), is_frozen);
            frozen += usize::from(is_frozen);
            importing += usize::from(matches!(standing, SlotStanding::Importing { .. }));
        }
        prop_assert_eq!((table.frozen, table.importing), (frozen, importing));
    }
}
