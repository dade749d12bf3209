//! How much a shard stores, by what its files say.

use std::collections::{BTreeMap, BTreeSet};

use super::installs::snapshot_of;
use super::moves::apply;
use super::{Disk, new_shard};
use crate::command::{Command, SplitShard};
use crate::id::{ShardId, SlotId, slot_of_owner};
use crate::shard::Shard;

const CHILD: ShardId = ShardId(9);
const BODY: usize = 4096;
/// An estimate may be off by a block at either end of each of the slots.
const COARSE: u64 = 8 * 2 * 16 * 1024;

/// One user of each slot.
fn users() -> BTreeMap<SlotId, u64> {
    let users = (1..200).map(|user| (slot_of_owner(user, 8), user));
    users.collect()
}

/// Letters that no compression makes fewer.
fn body(seed: u64) -> String {
    let mut random = seed | 1 << 63;
    let letters = (0..BODY).map(|_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        char::from(b'0' + (random >> 58) as u8)
    });
    letters.collect()
}

/// Writes, to the user of each slot, as many bodies as the slot's number says; gives the bytes of all.
fn fill(shard: &Shard) -> u64 {
    let mut bytes = 0;
    for (slot, user) in users() {
        for _ in 0..u64::from(slot.0) * 20 {
            shard.send(user, &body(bytes));
            bytes += BODY as u64;
        }
    }
    bytes
}

fn near(found: u64, wanted: u64) -> bool {
    found.abs_diff(wanted) <= wanted / 10 + COARSE
}

fn sum(sizes: &[(SlotId, u64)]) -> u64 {
    sizes.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn sizes_are_those_of_what_was_flushed() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        let written = fill(&shard);
        assert!(shard.stored_bytes() < COARSE, "nothing is in files yet");
        shard.flush();
        let kept = shard.stored_bytes();
        assert!(near(kept, written), "{kept} of {written}");
        let sizes = shard.slot_bytes();
        let slots: Vec<SlotId> = sizes.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, shard.slots());
        for (slot, bytes) in &sizes {
            let wanted = u64::from(slot.0) * 20 * BODY as u64;
            assert!(near(*bytes, wanted), "slot {slot}: {bytes} of {wanted}");
        }
        assert_eq!(
            shard.stored_bytes(),
            sum(&sizes),
            "it was measured with them"
        );
        assert!(near(shard.stored_bytes(), kept));
        assert_eq!(shard.metrics().stored_bytes, shard.stored_bytes());
        drop((shard, store));
        let store = disk.open();
        let again = store.shard(super::SHARD).unwrap().stored_bytes();
        assert!(near(again, written), "after a start: {again} of {written}");
    }
}

#[test]
fn a_split_shares_the_size_out() {
    for disk in Disk::all() {
        let store = disk.open();
        let shard = new_shard(&store);
        fill(&shard);
        shard.flush();
        let before = shard.slot_bytes();
        // In files that are not one piece: every other one goes.
        let slots: BTreeSet<SlotId> = [1, 3, 5, 7].map(SlotId).into();
        let gone: Vec<(SlotId, u64)> = before
            .iter()
            .copied()
            .filter(|(slot, _)| slots.contains(slot))
            .collect();
        let call = SplitShard {
            to: CHILD,
            epoch: 5,
            slots,
        };
        apply(&shard, &[Command::SplitShard(call)]);
        while shard.flush().is_some() {}
        store.open_children();
        let child = store.shard(CHILD).unwrap();
        assert!(near(child.stored_bytes(), sum(&gone)));
        assert!(near(shard.stored_bytes(), sum(&before) - sum(&gone)));
        assert_eq!(shard.slot_bytes().len(), 4);
    }
}

#[test]
fn an_install_is_measured() {
    for disk in Disk::all() {
        let source = disk.open();
        let shard = new_shard(&source);
        let written = fill(&shard);
        shard.flush();
        let dir = tempfile::tempdir().unwrap();
        let (meta, files) = snapshot_of(&shard, dir.path());
        let other = Disk::Dir(tempfile::tempdir().unwrap());
        let store = other.open();
        let target = new_shard(&store);
        target.install_files(&meta, &files).unwrap();
        let found = target.stored_bytes();
        assert!(near(found, written), "{found} of {written}");
    }
}
