//! Slots on their way between the shards of a cluster: a driver that takes any step at any time, again and
//! again, and dies in some. It keeps to what only a driver can know: it commits only what is frozen, drops
//! only what was committed, unfreezes only what was aborted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use mailbox_engine::{
    AckLanes, Applied, ApplyEntry, Command, Error, ExportMeta, ImportWait, IngestCrash, MessageId,
    MoveSlot, Refusal, Reply, SlotExport, SlotId, SlotStanding,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::cluster::{Cluster, Disk, lane};

/// Whole exports of frozen slots, by slot and epoch: what a peer would have.
pub(crate) type Archive = Rc<RefCell<BTreeMap<(SlotId, u64), Files>>>;

pub(crate) struct Files {
    _dir: TempDir,
    meta: ExportMeta,
    paths: Vec<PathBuf>,
}

/// One slot's way from one shard to another.
pub(crate) struct Move {
    slot: SlotId,
    from: usize,
    to: usize,
    epoch: u64,
    /// The last copy that was staged, for changes: gone with the source's process.
    export: Option<SlotExport>,
    begun: bool,
    frozen: Option<(u64, MessageId)>,
    digest: Option<u128>,
    committed: bool,
    aborted: bool,
    over: bool,
}

impl Move {
    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }
}

/// What a driver may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MoveStep {
    /// The first of the others that is due.
    Next,
    Begin,
    Copy,
    Freeze,
    Seal,
    Commit,
    Drop,
    Abort,
    Unfreeze,
}

impl MoveStep {
    pub(crate) fn any() -> impl Strategy<Value = MoveStep> {
        prop_oneof![
            20 => Just(MoveStep::Next),
            1 => Just(MoveStep::Begin),
            3 => Just(MoveStep::Copy),
            1 => Just(MoveStep::Freeze),
            2 => Just(MoveStep::Seal),
            1 => Just(MoveStep::Commit),
            1 => Just(MoveStep::Drop),
            2 => Just(MoveStep::Abort),
            3 => Just(MoveStep::Unfreeze),
        ]
    }
}

fn write(export: &SlotExport, since: Option<&SlotExport>) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let written = match since {
        Some(since) => export.write_changes(since, dir.path(), &mut |_| {}),
        None => export.write_files(dir.path(), &mut |_| {}),
    };
    let (meta, files) = written.unwrap();
    let meta = ExportMeta::decode(&meta.encode()).unwrap();
    let paths = files.into_iter().map(|file| file.path).collect();
    Files {
        _dir: dir,
        meta,
        paths,
    }
}

impl Cluster {
    /// Applies an entry, mending whatever it waits for.
    pub(crate) fn apply_whole(&mut self, number: usize, entry: &ApplyEntry) -> Applied {
        loop {
            let shard = self.shard(number);
            let before = shard.applied();
            let applied = shard.apply(std::slice::from_ref(entry)).unwrap();
            match applied.waits {
                None => return applied,
                Some(ImportWait::Flush { .. }) => self.flush(number),
                Some(ImportWait::Rows {
                    slot,
                    epoch,
                    digest,
                }) => {
                    let archive = self.archive.borrow();
                    let files = &archive[&(slot, epoch)];
                    assert_eq!(files.meta.digest, digest);
                    shard.stage_slot(epoch, &files.meta, &files.paths).unwrap();
                }
            }
            assert_eq!(applied.replies.len(), 0, "nothing of the entry");
            assert_eq!(shard.applied(), before, "nothing of the entry");
        }
    }

    /// A slot is between two shards.
    pub(crate) fn is_frozen(&self, slot: SlotId) -> bool {
        let open = |open: &&Move| open.slot == slot && !open.over;
        let found = self.moves.iter().find(open);
        found.is_some_and(|found| found.frozen.is_some() && !found.committed)
    }

    /// The process of a store ends.
    pub(crate) fn lose_exports(&mut self, store: usize) {
        for one in &mut self.moves {
            if self.replicas[one.from].store == store {
                one.export = None;
            }
        }
    }

    /// Plans a move, unless the slot is on one already.
    pub(crate) fn start_move(&mut self, slot: SlotId, to: usize) {
        let from = self.shard_of(slot);
        let open = self.moves.iter().any(|one| one.slot == slot && !one.over);
        if from == to || open {
            return;
        }
        let epoch = self.next_epoch();
        self.moves.push(Move {
            slot,
            from,
            to,
            epoch,
            export: None,
            begun: false,
            frozen: None,
            digest: None,
            committed: false,
            aborted: false,
            over: false,
        });
    }

    fn step_at(&mut self, number: usize, call: MoveSlot) -> Reply {
        let [reply] = self
            .apply(number, &[Command::MoveSlot(call)])
            .try_into()
            .unwrap();
        if matches!(reply, Reply::SlotMoved { .. }) {
            self.taken.push((number, call));
        }
        reply
    }

    fn must_at(&mut self, number: usize, call: MoveSlot) -> SlotStanding {
        match self.step_at(number, call) {
            Reply::SlotMoved { standing, .. } => standing,
            other => panic!("{call:?}: {other:?}"),
        }
    }

    /// What was taken once changes nothing when it comes again, however late.
    pub(crate) fn move_again(&mut self, which: usize) {
        let (number, call) = self.taken[which];
        let before = self.hash(number);
        match self.step_at(number, call) {
            Reply::SlotMoved { .. } | Reply::Refused(Refusal::SlotStands { .. }) => {}
            other => panic!("{call:?}: {other:?}"),
        }
        assert_eq!(self.hash(number), before, "{call:?}");
    }

    /// The moves that are not over.
    pub(crate) fn open_moves(&self) -> Vec<usize> {
        let open = |which: &usize| !self.moves[*which].over;
        (0..self.moves.len()).filter(open).collect()
    }

    fn next_step(&self, which: usize) -> MoveStep {
        let one = &self.moves[which];
        match () {
            () if one.aborted => MoveStep::Unfreeze,
            () if one.committed => MoveStep::Drop,
            () if !one.begun => MoveStep::Begin,
            () if one.export.is_none() && one.frozen.is_none() => MoveStep::Copy,
            () if one.frozen.is_none() => MoveStep::Freeze,
            () if one.digest.is_none() => MoveStep::Seal,
            () => MoveStep::Commit,
        }
    }

    /// Takes a step of a move if a driver may; says what happened.
    pub(crate) fn move_step(
        &mut self,
        which: usize,
        step: MoveStep,
        crash: Option<IngestCrash>,
    ) -> Option<&'static str> {
        let step = match step {
            MoveStep::Next => self.next_step(which),
            other => other,
        };
        let one = &self.moves[which];
        let open = !one.aborted && !one.over;
        let may_stage = one.begun && !one.committed && open;
        match step {
            MoveStep::Begin if open => self.begin(which),
            MoveStep::Copy if may_stage => self.copy(which, crash),
            MoveStep::Freeze if open => self.freeze_slot(which),
            MoveStep::Seal if may_stage && one.frozen.is_some() => self.seal(which, crash),
            MoveStep::Commit if open => self.commit(which),
            MoveStep::Drop if one.committed && !one.over => {
                let Move {
                    slot, epoch, from, ..
                } = *one;
                self.must_at(from, MoveSlot::Drop { slot, epoch });
                self.moves[which].over = true;
                Some("drop")
            }
            MoveStep::Abort if !one.committed && !one.over => {
                let Move {
                    slot, epoch, to, ..
                } = *one;
                let from = self.replicas[one.from].id;
                self.must_at(to, MoveSlot::AbortImport { slot, epoch, from });
                self.moves[which].aborted = true;
                Some("abort")
            }
            MoveStep::Unfreeze if one.aborted && !one.over => self.unfreeze(which),
            _ => None,
        }
    }

    fn begin(&mut self, which: usize) -> Option<&'static str> {
        let Move {
            slot, epoch, to, ..
        } = self.moves[which];
        let from = self.replicas[self.moves[which].from].id;
        self.must_at(to, MoveSlot::BeginImport { slot, epoch, from });
        self.moves[which].begun = true;
        Some("begin")
    }

    fn freeze_slot(&mut self, which: usize) -> Option<&'static str> {
        let Move {
            slot,
            epoch,
            from,
            frozen,
            ..
        } = self.moves[which];
        let to = self.replicas[self.moves[which].to].id;
        // A repeat after the drop finds the slot gone.
        if let SlotStanding::Frozen {
            time_ms,
            last_message_id,
            ..
        } = self.must_at(from, MoveSlot::Freeze { slot, epoch, to })
        {
            let found = (time_ms, last_message_id);
            assert!(frozen.is_none_or(|before| before == found));
            self.moves[which].frozen = Some(found);
        }
        Some("freeze")
    }

    fn commit(&mut self, which: usize) -> Option<&'static str> {
        let Move {
            slot, epoch, to, ..
        } = self.moves[which];
        let ((time_ms, last_message_id), digest) =
            self.moves[which].frozen.zip(self.moves[which].digest)?;
        let call = MoveSlot::CommitImport {
            slot,
            epoch,
            digest,
            time_ms,
            last_message_id,
        };
        assert_eq!(self.must_at(to, call), SlotStanding::Held);
        self.moves[which].committed = true;
        self.owners[usize::from(slot.0)] = to;
        Some("commit")
    }

    fn unfreeze(&mut self, which: usize) -> Option<&'static str> {
        let one = &mut self.moves[which];
        (one.over, one.export) = (true, None);
        // It may have been given up before it was frozen.
        one.frozen?;
        let (slot, epoch, from) = (one.slot, one.epoch + 1, one.from);
        let standing = self.must_at(from, MoveSlot::Unfreeze { slot, epoch });
        assert_eq!(standing, SlotStanding::Held);
        Some("unfreeze")
    }

    fn copy(&mut self, which: usize, crash: Option<IngestCrash>) -> Option<&'static str> {
        let (slot, from) = (self.moves[which].slot, self.moves[which].from);
        // Its rows may not have been flushed since it came.
        let export = self.shard(from).export_slot(slot).ok()?;
        let files = write(&export, None);
        self.moves[which].export = Some(export);
        self.stage(which, &files, crash)?;
        Some(crash.map_or("copy", |_| "crash in a copy"))
    }

    fn seal(&mut self, which: usize, crash: Option<IngestCrash>) -> Option<&'static str> {
        let Move {
            slot, from, epoch, ..
        } = self.moves[which];
        self.flush(from);
        let export = self.shard(from).export_slot(slot).unwrap();
        assert_eq!(export.frozen(), Some(epoch));
        let whole = write(&export, None);
        if let Some(before) = self.moves[which].digest {
            assert_eq!(before, whole.meta.digest, "frozen rows do not change");
        }
        let changes = self.moves[which].export.as_ref();
        let changes = changes.map(|since| write(&export, Some(since)));
        // Both shards may be in one store, and what is kept of it would keep a new process from opening it.
        drop(export);
        let staged = changes.is_some_and(|changes| {
            assert_eq!(changes.meta.digest, whole.meta.digest);
            self.stage(which, &changes, crash).is_some()
        });
        if !staged {
            self.stage(which, &whole, None).unwrap();
        }
        self.moves[which].digest = Some(whole.meta.digest);
        self.archive.borrow_mut().insert((slot, epoch), whole);
        Some(if staged {
            "seal with changes"
        } else {
            "seal with all"
        })
    }

    /// Nothing, if the destination has another copy than the changes are of. A crash is mended.
    fn stage(&mut self, which: usize, files: &Files, crash: Option<IngestCrash>) -> Option<()> {
        let Move {
            slot, to, epoch, ..
        } = self.moves[which];
        let shard = self.shard(to);
        let store = self.replicas[to].store;
        if let (Some(at), Disk::Memory(disk)) = (crash, &self.disks[store]) {
            disk.crash_next_ingest(at);
        }
        let staged = shard.stage_slot(epoch, &files.meta, &files.paths);
        drop(shard);
        if let Err(Error::OtherCopy { .. }) = staged {
            self.reopen(store);
            return None;
        }
        if crash.is_some() {
            self.reopen(store);
        }
        if staged.is_err() || crash.is_some() {
            // Its last drop here may not have been flushed.
            self.flush(to);
            let shard = self.shard(to);
            shard.stage_slot(epoch, &files.meta, &files.paths).ok()?;
        }
        let found = self.shard(to).staged_imports();
        let found = found.into_iter().find(|found| found.slot == slot);
        assert_eq!(
            found.map(|found| (found.epoch, found.digest)),
            Some((epoch, files.meta.digest))
        );
        Some(())
    }

    /// Brings every move to an end.
    pub(crate) fn finish_moves(&mut self) {
        for which in 0..self.moves.len() {
            for step in [
                MoveStep::Unfreeze,
                MoveStep::Begin,
                MoveStep::Freeze,
                MoveStep::Seal,
                MoveStep::Commit,
                MoveStep::Drop,
            ] {
                self.move_step(which, step, None);
            }
            assert!(self.moves[which].over);
        }
        for number in 0..self.replicas.len() {
            let shard = self.shard(number);
            shard.drop_stale_imports().unwrap();
            assert_eq!(shard.staged_imports(), []);
            let owned = |slot: &SlotId| self.shard_of(*slot) == number;
            let slots: Vec<SlotId> = (0..crate::cluster::SLOT_COUNT)
                .map(SlotId)
                .filter(owned)
                .collect();
            assert_eq!(shard.slots(), slots);
        }
    }
}

#[test]
fn acks_of_a_slot_that_moves_hold_up_no_others() {
    let mut cluster = Cluster::new(2, 2);
    let (alice, bob) = (cluster.user_in(0), cluster.user_in(1));
    let carol = loop {
        let carol = cluster.user_in(0);
        if lane(carol, bob) != lane(alice, bob) {
            break carol;
        }
    };
    let lanes = [lane(alice, bob), lane(carol, bob)];
    for user in [alice, carol] {
        cluster.send(user, bob, "hello");
    }
    let sent = lanes.map(|lane| cluster.sent[&lane].len() as u64);
    for (lane, sent) in lanes.into_iter().zip(sent) {
        let frame = cluster.frame(lane, sent, 1);
        cluster.deliver(frame);
    }
    cluster.start_move(lanes[0].source, 1);
    cluster.move_step(0, MoveStep::Begin, None);
    cluster.move_step(0, MoveStep::Freeze, None);
    let ack = |acks: Vec<_>| [Command::AckLanes(AckLanes { acks })];
    let both = ack(lanes.into_iter().zip(sent).collect());
    assert_eq!(cluster.apply(0, &both), [Reply::LanesAcked]);
    let acked = lanes.map(|lane| cluster.shard(0).lane_acked(lane));
    assert_eq!(acked, [sent[0] - 1, sent[1]]);
    let alone = ack(vec![(lanes[0], sent[0])]);
    let [reply] = cluster.apply(0, &alone).try_into().unwrap();
    assert!(
        matches!(reply, Reply::Refused(Refusal::WrongOwner { .. })),
        "{reply:?}"
    );
    // It lies in the files that move, and is acked where it arrives.
    cluster.finish_moves();
    assert_eq!(cluster.shard(1).lane_acked(lanes[0]), sent[0] - 1);
    cluster.drain();
    assert_eq!(cluster.shard(1).lane_acked(lanes[0]), sent[0]);
    assert_eq!(cluster.bodies(bob), ["hello", "hello"]);
}
