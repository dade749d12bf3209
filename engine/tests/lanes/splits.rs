//! Shards that split in place: in the middle of an entry, with crashes around the flush that hands the ranges
//! over, and on a node that has no use for the new shard and gets it by a snapshot later.

use std::collections::BTreeSet;

use mailbox_engine::{Command, IngestCrash, Refusal, Reply, ShardId, SlotId, SplitShard};
use proptest::prelude::*;

use crate::cluster::{Cluster, Replica, lane};

/// What comes between the entry and the new shard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Flush,
    Reopen,
    Crash(bool),
    /// The node refuses it, or has it already; its rows come by a snapshot.
    Refused(bool),
}

impl Way {
    pub(crate) fn any() -> impl Strategy<Value = Way> {
        prop_oneof![
            2 => Just(Way::Flush),
            1 => Just(Way::Reopen),
            2 => any::<bool>().prop_map(Way::Crash),
            3 => any::<bool>().prop_map(Way::Refused),
        ]
    }

    fn name(self) -> &'static str {
        match self {
            Way::Flush => "split",
            Way::Reopen => "split and reopen",
            Way::Crash(false) => "split and crash before",
            Way::Crash(true) => "split and crash after",
            Way::Refused(false) => "split and refused",
            Way::Refused(true) => "split and there already",
        }
    }
}

impl Cluster {
    /// A split that may be due: not of slots on their way, and something stays.
    pub(crate) fn plan_split(&mut self, parent: usize, mask: u8) -> Option<SplitShard> {
        let held = self.shard(parent).slots();
        let moving = |slot: &SlotId| {
            let open = self.open_moves();
            open.into_iter()
                .any(|which| self.moves[which].slot() == *slot)
        };
        let wanted = |slot: &SlotId| mask >> slot.0 & 1 == 1 && !moving(slot);
        let mut slots: BTreeSet<SlotId> = held.iter().copied().filter(wanted).collect();
        if slots.len() == held.len() {
            slots.pop_last();
        }
        let to = ShardId(u32::try_from(self.replicas.len()).unwrap() + 1);
        let epoch = self.next_epoch();
        (!slots.is_empty()).then_some(SplitShard { to, epoch, slots })
    }

    /// After the entry: the new shard opens, sooner or later.
    pub(crate) fn finish_split(
        &mut self,
        parent: usize,
        call: SplitShard,
        way: Way,
    ) -> &'static str {
        let store = self.replicas[parent].store;
        let seed = self.last_index(parent);
        let child = self.replicas.len();
        match way {
            Way::Flush | Way::Refused(_) => {}
            Way::Reopen => self.reopen(store),
            Way::Crash(after) => {
                let at = match after {
                    true => IngestCrash::After,
                    false => IngestCrash::Before,
                };
                self.crash(parent, at);
            }
        }
        for slot in &call.slots {
            self.owners[usize::from(slot.0)] = child;
        }
        let (id, slots) = (call.to, call.slots.clone());
        self.splits.push((parent, call));
        let replica = Replica::seeded(store, id, parent, seed);
        if let Way::Refused(there) = way {
            self.flush_without(parent, id, there);
            self.replicas.push(replica);
            self.fill(child);
        } else {
            self.flush(parent);
            self.replicas.push(replica);
        }
        let (shard, before) = (self.shard(child).applied(), self.shard(parent).applied());
        assert!(self.shard(child).slots().into_iter().eq(slots));
        assert_eq!(shard.log_id.map(|id| id.index), Some(seed));
        assert_eq!(shard.last_install, shard.log_id);
        assert_eq!(shard.time_ms, before.time_ms);
        way.name()
    }

    /// Flushes a parent on a node that takes no part in its split.
    fn flush_without(&mut self, parent: usize, child: ShardId, there: bool) {
        let shard = self.shard(parent);
        // What was built before may have been built for the child.
        self.replicas[parent].forget_built();
        if there {
            self.store(parent).create_shard(child, []).unwrap();
        }
        while let Some(frozen) = shard.freeze() {
            if !there {
                frozen.refuse_child(child);
            }
            let built = shard.build(&frozen).unwrap();
            shard.ingest(built).unwrap();
        }
        self.store(parent).open_children();
        if !there {
            assert!(self.store(parent).shard(child).is_none());
            self.store(parent).create_shard(child, []).unwrap();
        }
    }

    /// A new and empty replica gets the rows of another one.
    fn fill(&mut self, number: usize) {
        let mut other = self.replay(number, 0, 3);
        other.flush(number);
        let dir = tempfile::tempdir().unwrap();
        let snapshot = other.shard(number).snapshot().unwrap();
        let files = snapshot.write_files(dir.path(), &mut |_| {}).unwrap();
        let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
        self.shard(number)
            .install_files(snapshot.meta(), &files)
            .unwrap();
    }

    /// A split that was taken changes nothing when it comes again, however late.
    pub(crate) fn split_again(&mut self, which: usize) {
        let (parent, call) = self.splits[which].clone();
        let before = self.hash(parent);
        let (to, epoch) = (call.to, call.epoch);
        let [reply] = self
            .apply(parent, &[Command::SplitShard(call)])
            .try_into()
            .unwrap();
        match reply {
            Reply::ShardSplit { .. } => assert_eq!(reply, Reply::ShardSplit { to, epoch }),
            Reply::Refused(Refusal::SlotStands { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(self.hash(parent), before);
    }

    /// Splits the slots of some users off.
    pub(crate) fn split(&mut self, parent: usize, slots: &[SlotId], way: Way) {
        let mask = slots.iter().fold(0, |mask, slot| mask | 1 << slot.0);
        let call = self.plan_split(parent, mask).unwrap();
        let (to, epoch) = (call.to, call.epoch);
        let replies = self.apply(parent, &[Command::SplitShard(call.clone())]);
        assert_eq!(replies, [Reply::ShardSplit { to, epoch }]);
        self.finish_split(parent, call, way);
    }
}

#[test]
fn what_arrived_at_once_rides_a_lane_after_a_split() {
    for way in [
        Way::Flush,
        Way::Reopen,
        Way::Crash(false),
        Way::Crash(true),
        Way::Refused(false),
        Way::Refused(true),
    ] {
        let mut cluster = Cluster::new(1, 1);
        let alice = cluster.user_in(0);
        let bob = loop {
            let bob = cluster.user_in(0);
            if lane(alice, bob).source != lane(alice, bob).destination {
                break bob;
            }
        };
        let lane = lane(alice, bob);
        cluster.send(alice, bob, "near");
        cluster.send(bob, alice, "and back");
        assert!(cluster.sent.is_empty());
        cluster.split(0, &[lane.destination], way);
        assert_eq!(cluster.shard_of_user(bob), 1);
        cluster.send(alice, bob, "far");
        assert_eq!(cluster.bodies(bob), ["near", "and back"]);
        cluster.send(bob, alice, "and back again");
        assert_eq!(cluster.sent.len(), 2);
        cluster.drain();
        let at_alice = ["near", "and back", "far", "and back again"];
        let at_bob = ["near", "and back", "and back again", "far"];
        for _ in 0..2 {
            assert_eq!(cluster.bodies(alice), at_alice, "{way:?}");
            assert_eq!(cluster.bodies(bob), at_bob, "{way:?}");
            cluster.reopen(0);
        }
    }
}
