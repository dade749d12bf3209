//! What could not be delivered: kept, told once, requeued once.

use std::sync::atomic::{AtomicBool, Ordering};

use mailbox_engine::{
    ClusterOptions, Command, DeadLetter, DeadLetterTotals, Error, Flags, IngestCrash, LaneId,
    LetterStanding, MessageType, Refusal, RefusalCode, Reply, Seq, SlotId, UserId, slot_of_handle,
    slot_of_owner,
};

use crate::cluster::{Cluster, SLOT_COUNT};
use crate::moves::MoveStep;
use crate::splits::Way;

/// Alice, and a handle whose user, once it is registered, is in the other shard; with that user's slot.
struct Scene {
    cluster: Cluster,
    alice: UserId,
    handle: String,
    /// Whose id is known before the handle is taken: the next one of its directory slot.
    expected: UserId,
    slot: SlotId,
}

fn scene(mut cluster: Cluster) -> Scene {
    let alice = cluster.user_in(0);
    for number in 0.. {
        // A directory slot gives out ids in turn: who comes after this one is known.
        let made = cluster.register_command(&format!("early {number}"));
        let Reply::UserRegistered { user } = cluster.call(made) else {
            panic!("the handle is new")
        };
        cluster.drain();
        let directory = SlotId(u16::try_from(user.0 & 0xFFFF).unwrap());
        let expected = UserId::allocated((user.0 >> 16) + 1, directory);
        if cluster.shard_of_user(expected) != 1 {
            continue;
        }
        let handles = (0..).map(|number| format!("late {number}"));
        let mut fitting = handles.filter(|handle| slot_of_handle(handle, SLOT_COUNT) == directory);
        let handle = fitting.next().unwrap();
        let slot = slot_of_owner(expected.0, SLOT_COUNT);
        return Scene {
            cluster,
            alice,
            handle,
            expected,
            slot,
        };
    }
    unreachable!("users are in all shards")
}

impl Scene {
    /// Sends to the user who is not there, and drains.
    fn refused(&mut self, body: &str) -> Seq {
        let seq = self.cluster.send(self.alice, self.expected, body);
        self.cluster.drain();
        seq
    }

    fn letters(&self) -> Vec<DeadLetter> {
        let shard = self.cluster.shard(1);
        let page = shard.dead_letters(self.slot, Seq(1), 1000, usize::MAX);
        let page = page.unwrap();
        assert_eq!(
            page.head.0 - page.trim_point.0,
            page.letters.len() as u64,
            "dense"
        );
        page.letters
    }

    fn bodies(&self) -> Vec<String> {
        let text = |letter: DeadLetter| String::from_utf8(letter.row.body.to_vec()).unwrap();
        self.letters().into_iter().map(text).collect()
    }

    fn totals(&self) -> DeadLetterTotals {
        let totals = self.cluster.shard(1).metrics().dead_letters;
        let slot = self.cluster.shard(1).dead_letter_totals(self.slot);
        assert_eq!(slot.unwrap(), totals, "no other slot has any");
        totals
    }

    /// The user comes into being.
    fn register(&mut self) {
        let command = self.cluster.register_command(&self.handle.clone());
        let user = self.expected;
        assert_eq!(self.cluster.call(command), Reply::UserRegistered { user });
        self.cluster.drain();
    }
}

fn pair() -> Scene {
    scene(Cluster::new(2, 2))
}

#[test]
fn a_refused_message_is_a_dead_letter_of_its_recipients_slot() {
    for cluster in [Cluster::new(2, 2), Cluster::on_rocksdb(2, 2)] {
        let mut scene = scene(cluster);
        let home_seq = scene.refused("who are you?");
        let own = scene.cluster.mailbox(scene.alice);
        let [sent, refusal] = &own[..] else {
            panic!("{own:?}")
        };
        assert_eq!(refusal.refused, Some((home_seq, RefusalCode::UnknownUser)));
        let [letter] = scene.letters().try_into().unwrap();
        assert_eq!(letter.home_seq, home_seq);
        assert_eq!(letter.code, RefusalCode::UnknownUser);
        assert_eq!(letter.standing, LetterStanding::Waiting);
        assert_eq!(letter.row.seq, Seq(1));
        assert_eq!(letter.row.sender, scene.alice);
        assert_eq!(letter.row.recipient, scene.expected);
        assert_eq!(letter.row.message_id, sent.message_id);
        assert_eq!(letter.row.client_msg_id, sent.client_msg_id);
        assert_eq!(letter.row.sent_at_ms, sent.sent_at_ms);
        assert_eq!(letter.row.body, sent.body);
        // The sender's shard has none, and no mailbox has one.
        let there = scene.cluster.shard(0).metrics().dead_letters;
        assert_eq!(there, DeadLetterTotals::default());
        assert!(scene.cluster.mailbox(scene.expected).is_empty());

        let (letters, totals) = (scene.letters(), scene.totals());
        let hash = scene.cluster.hash(1);
        scene.cluster.flush(1);
        assert_eq!((scene.letters(), scene.totals()), (letters.clone(), totals));
        assert_eq!(scene.cluster.hash(1), hash);
        scene.cluster.reopen(1);
        assert_eq!((scene.letters(), scene.totals()), (letters.clone(), totals));
        scene.cluster.install(1, 0);
        assert_eq!((scene.letters(), scene.totals()), (letters, totals));
        assert_eq!(scene.cluster.hash(1), hash);
        let report = scene.cluster.shard(1).verify(&mut |_| {}).unwrap();
        assert_eq!(report.fault_count, 0, "{:?}", report.faults);
    }
}

#[test]
fn what_a_relay_repeats_is_one_letter() {
    let mut scene = pair();
    scene.refused("once");
    let other = slot_of_owner(scene.alice.0, SLOT_COUNT);
    let lane = LaneId::between(other, scene.slot);
    let mark = u64::try_from(scene.cluster.sent[&lane].len()).unwrap();
    for _ in 0..3 {
        let frame = scene.cluster.frame(lane, mark, 1);
        let corrupt = None;
        let again = Reply::Delivered {
            lane,
            mark,
            corrupt,
        };
        assert_eq!(scene.cluster.deliver(frame), again);
    }
    scene.cluster.crash(1, IngestCrash::Before);
    scene.cluster.drain();
    assert_eq!(scene.bodies(), ["once"]);
    assert_eq!(scene.cluster.mailbox(scene.alice).len(), 2);
}

#[test]
fn a_requeued_letter_arrives_once_flagged_as_a_new_message() {
    // The letter's row is in the memtable, in a frozen one, or in a file.
    for place in 0..3 {
        let mut scene = pair();
        scene.refused("at last");
        match place {
            0 => {}
            1 => scene.cluster.build(1),
            _ => scene.cluster.flush(1),
        }
        let slot = scene.slot;
        let early = scene.cluster.requeue_command(slot, Seq(1));
        let user = scene.expected;
        assert_eq!(
            scene.cluster.call(early.clone()),
            Reply::Refused(Refusal::UnknownUser { user })
        );
        assert_eq!(scene.letters()[0].standing, LetterStanding::Waiting);

        scene.register();
        let own = scene.cluster.mailbox(scene.alice);
        let Command::RequeueDeadLetter(mut call) = early else {
            panic!()
        };
        // A refusal leaves no trace: the id is good for the try that succeeds. A repeat may get another
        // message id from its proposer.
        let bob = scene.cluster.user_in(1);
        scene.cluster.send(bob, bob, "a later id than the letter's");
        let mut late = call.clone();
        late.message_id = own[0].message_id;
        let late = Command::RequeueDeadLetter(late);
        assert_eq!(scene.cluster.call(late), Reply::Refused(Refusal::Retry));
        call.message_id = scene.cluster.message_id();
        let requeue = Command::RequeueDeadLetter(call.clone());
        let (seq, message_id) = (Seq(1), call.message_id);
        let requeued = Reply::DeadLetterRequeued { seq, message_id };
        assert_eq!(scene.cluster.call(requeue.clone()), requeued);
        call.message_id = scene.cluster.message_id();
        let again = Command::RequeueDeadLetter(call);
        assert_eq!(scene.cluster.call(again), requeued);
        let other = scene.cluster.requeue_command(slot, Seq(1));
        assert_eq!(scene.cluster.call(other), requeued);
        scene.cluster.flush(1);
        scene.cluster.reopen(1);
        assert_eq!(scene.cluster.call(requeue), requeued);

        let [row] = scene.cluster.mailbox(user).try_into().unwrap();
        assert_eq!(row.body, "at last");
        assert_eq!(row.message_id, message_id);
        assert!(row.message_id > own[0].message_id);
        assert_eq!(row.flags, Flags::REQUEUED);
        assert_eq!(row.client_msg_id, own[0].client_msg_id);
        assert_eq!((row.sender, row.recipient), (scene.alice, user));
        assert_eq!(row.sent_at_ms, own[0].sent_at_ms);
        // The sender was told once, and is told nothing more.
        scene.cluster.drain();
        assert_eq!(scene.cluster.mailbox(scene.alice), own);
        assert_eq!(scene.totals().requeued, 1);
        assert_eq!(scene.totals().waiting(), 0);
        let standing = scene.letters()[0].standing;
        assert!(matches!(
            standing,
            LetterStanding::Requeued { seq: Seq(1), .. }
        ));
        let dropping = scene.cluster.drop_command(slot, Seq(1));
        let resolved = Refusal::DeadLetterResolved {
            slot,
            seq,
            standing,
        };
        assert_eq!(scene.cluster.call(dropping), Reply::Refused(resolved));
        // What comes afterwards comes after it, and is no letter.
        scene.refused("next");
        assert_eq!(scene.cluster.bodies(user), ["at last", "next"]);
    }
}

#[test]
fn an_id_is_for_one_letter_and_one_purpose() {
    let mut scene = pair();
    scene.refused("a");
    scene.refused("b");
    scene.register();
    let slot = scene.slot;
    let first = scene.cluster.requeue_command(slot, Seq(1));
    let Command::RequeueDeadLetter(call) = &first else {
        panic!()
    };
    let mut other = call.clone();
    other.seq = Seq(2);
    let mut dropping = scene.cluster.drop_command(slot, Seq(1));
    let Command::DropDeadLetter(of_drop) = &mut dropping else {
        panic!()
    };
    of_drop.request_id = call.request_id;
    assert!(matches!(
        scene.cluster.call(first),
        Reply::DeadLetterRequeued { .. }
    ));
    let reused = Reply::Refused(Refusal::IdReused);
    assert_eq!(
        scene.cluster.call(Command::RequeueDeadLetter(other)),
        reused
    );
    assert_eq!(scene.cluster.call(dropping), reused);
    assert_eq!(scene.cluster.bodies(scene.expected), ["a"]);
}

#[test]
fn a_dropped_letter_stays_in_its_place_and_goes_nowhere() {
    let mut scene = pair();
    scene.refused("never mind");
    let (slot, seq) = (scene.slot, Seq(1));
    let dropping = scene.cluster.drop_command(slot, seq);
    for command in [
        dropping.clone(),
        scene.cluster.drop_command(slot, seq),
        dropping,
    ] {
        assert_eq!(scene.cluster.call(command), Reply::DeadLetterDropped);
    }
    scene.register();
    let standing = scene.letters()[0].standing;
    assert!(matches!(standing, LetterStanding::Dropped { .. }));
    let requeue = scene.cluster.requeue_command(slot, seq);
    let resolved = Refusal::DeadLetterResolved {
        slot,
        seq,
        standing,
    };
    assert_eq!(scene.cluster.call(requeue), Reply::Refused(resolved));
    assert!(scene.cluster.mailbox(scene.expected).is_empty());
    assert_eq!(scene.totals().dropped, 1);
    assert_eq!(scene.totals().waiting(), 0);
}

#[test]
fn a_letter_that_is_not_there_is_named_as_such() {
    let mut scene = pair();
    scene.refused("a");
    let slot = scene.slot;
    for seq in [Seq(0), Seq(2)] {
        let unknown = Refusal::UnknownDeadLetter {
            slot,
            seq,
            trim_point: Seq(0),
            head: Seq(1),
        };
        for command in [
            scene.cluster.requeue_command(slot, seq),
            scene.cluster.drop_command(slot, seq),
        ] {
            assert_eq!(scene.cluster.call(command), Reply::Refused(unknown.clone()));
        }
    }
    // Slots of the other shard, and such as no cluster has.
    for slot in [0, 9, u16::MAX].map(SlotId) {
        let command = scene.cluster.drop_command(slot, Seq(1));
        let [reply] = scene.cluster.apply(1, &[command]).try_into().unwrap();
        assert_eq!(reply, Reply::Refused(Refusal::WrongShard { slot }));
    }
}

fn letters_max(max: Option<u32>) -> ClusterOptions {
    ClusterOptions {
        dead_letters_max: max,
        ..ClusterOptions::default()
    }
}

#[test]
fn a_full_slot_trims_the_oldest_and_counts_those_that_nobody_saw() {
    for cluster in [Cluster::new(2, 2), Cluster::on_rocksdb(2, 2)] {
        let mut scene = scene(cluster);
        scene.cluster.set_options(letters_max(Some(3)));
        let slot = scene.slot;
        for body in ["a", "b", "c"] {
            scene.refused(body);
        }
        let dropping = scene.cluster.drop_command(slot, Seq(1));
        scene.cluster.call(dropping);
        let before = {
            scene.cluster.flush(1);
            scene.cluster.shard(1).verify(&mut |_| {}).unwrap()
        };
        for body in ["d", "e"] {
            scene.refused(body);
        }
        assert_eq!(scene.bodies(), ["c", "d", "e"]);
        let totals = scene.totals();
        assert_eq!((totals.written, totals.dropped), (5, 1));
        // "a" was dropped before it was trimmed, "b" waited.
        assert_eq!((totals.unseen, totals.waiting()), (1, 3));
        let (trim_point, head, seq) = (Seq(2), Seq(5), Seq(2));
        let unknown = Refusal::UnknownDeadLetter {
            slot,
            seq,
            trim_point,
            head,
        };
        let requeue = scene.cluster.requeue_command(slot, seq);
        assert_eq!(scene.cluster.call(requeue), Reply::Refused(unknown));

        let hash = scene.cluster.hash(1);
        scene.cluster.flush(1);
        assert_eq!(scene.cluster.hash(1), hash);
        // What was trimmed is in no file: neither the row of an older one, nor a row that came and went in
        // one memtable.
        let after = scene.cluster.shard(1).verify(&mut |_| {}).unwrap();
        assert_eq!(after.messages, before.messages);
        scene.cluster.set_options(letters_max(Some(1)));
        scene.refused("f");
        scene.refused("g");
        assert_eq!(scene.bodies(), ["g"]);
        scene.cluster.flush(1);
        scene.cluster.reopen(1);
        assert_eq!(scene.bodies(), ["g"]);
        assert_eq!(scene.totals().unseen, 5);
        let after = scene.cluster.shard(1).verify(&mut |_| {}).unwrap();
        assert_eq!(
            (after.messages, after.fault_count),
            (before.messages - 2, 0)
        );
        // The dedup row, the timeline's head and its seqs go on.
        scene.cluster.install(1, 0);
        scene.refused("h");
        assert_eq!(scene.letters()[0].row.seq, Seq(8));
    }
}

#[test]
fn letters_go_with_a_slot_that_is_split_off() {
    for cluster in [Cluster::new(2, 2), Cluster::on_rocksdb(2, 2)] {
        let mut scene = scene(cluster);
        scene.cluster.set_options(letters_max(Some(2)));
        let slot = scene.slot;
        // Some in files, some trimmed, some only in memory.
        for body in ["a", "b"] {
            scene.refused(body);
        }
        scene.cluster.flush(1);
        scene.refused("c");
        let dropping = scene.cluster.drop_command(slot, Seq(2));
        assert_eq!(
            scene.cluster.call(dropping.clone()),
            Reply::DeadLetterDropped
        );
        let (letters, totals) = (scene.letters(), scene.totals());
        scene.cluster.split(1, &[slot], Way::Flush);
        let stays = scene.cluster.shard(1).metrics().dead_letters;
        assert_eq!(stays, DeadLetterTotals::default());
        scene.cluster.reopen(1);
        let shard = scene.cluster.shard(2);
        let page = shard.dead_letters(slot, Seq(1), 10, usize::MAX).unwrap();
        assert_eq!((page.letters, page.trim_point), (letters, Seq(1)));
        assert_eq!(shard.metrics().dead_letters, totals);
        drop(shard);
        assert_eq!(scene.cluster.call(dropping), Reply::DeadLetterDropped);
        scene.register();
        let requeue = scene.cluster.requeue_command(slot, Seq(3));
        let requeued = scene.cluster.call(requeue);
        assert!(
            matches!(requeued, Reply::DeadLetterRequeued { .. }),
            "{requeued:?}"
        );
        assert_eq!(scene.cluster.bodies(scene.expected), ["c"]);
    }
}

#[test]
fn letters_move_with_their_slot() {
    for cluster in [Cluster::new(2, 2), Cluster::on_rocksdb(2, 2)] {
        let mut scene = scene(cluster);
        scene.cluster.set_options(letters_max(Some(3)));
        let slot = scene.slot;
        for body in ["a", "b", "c"] {
            scene.refused(body);
        }
        scene.cluster.flush(1);
        scene.cluster.start_move(slot, 0);
        for step in [MoveStep::Begin, MoveStep::Copy] {
            assert!(scene.cluster.move_step(0, step, None).is_some());
        }
        // What changes after the copy: a letter's standing, one that is trimmed, one that comes.
        let dropping = scene.cluster.drop_command(slot, Seq(2));
        assert_eq!(
            scene.cluster.call(dropping.clone()),
            Reply::DeadLetterDropped
        );
        scene.refused("d");
        let (letters, totals) = (scene.letters(), scene.totals());
        assert_eq!((totals.written, totals.unseen, totals.dropped), (4, 1, 1));
        let rows = |scene: &Scene, shard| {
            let report = scene.cluster.shard(shard).verify(&mut |_| {}).unwrap();
            assert_eq!(report.fault_count, 0, "{:?}", report.faults);
            report.messages
        };
        scene.cluster.flush(0);
        let before = rows(&scene, 0);
        let step = |scene: &mut Scene, step| scene.cluster.move_step(0, step, None);
        step(&mut scene, MoveStep::Freeze);
        let requeue = scene.cluster.requeue_command(slot, Seq(3));
        let frozen = scene.cluster.call(requeue);
        assert!(
            matches!(frozen, Reply::Refused(Refusal::WrongOwner { .. })),
            "{frozen:?}"
        );
        let frozen = scene.cluster.shard(1).dead_letter_totals(slot);
        assert!(
            matches!(frozen, Err(Error::WrongOwner { .. })),
            "{frozen:?}"
        );
        // What it has is counted until it has gone.
        assert_eq!(scene.cluster.shard(1).metrics().dead_letters, totals);
        assert_eq!(step(&mut scene, MoveStep::Seal), Some("seal with changes"));
        step(&mut scene, MoveStep::Commit);
        step(&mut scene, MoveStep::Drop);

        scene.register();
        scene.cluster.flush(0);
        assert_eq!(rows(&scene, 0), before + 3, "the trimmed one stays behind");
        scene.cluster.reopen(0);
        let shard = scene.cluster.shard(0);
        let page = shard.dead_letters(slot, Seq(1), 10, usize::MAX).unwrap();
        assert_eq!((page.letters, page.trim_point), (letters, Seq(1)));
        assert_eq!(shard.dead_letter_totals(slot).unwrap(), totals);
        assert_eq!(shard.metrics().dead_letters, totals);
        let left = scene.cluster.shard(1).metrics().dead_letters;
        assert_eq!(left, DeadLetterTotals::default());
        drop(shard);
        // The dedup rows of operators' calls came, too.
        assert_eq!(scene.cluster.call(dropping), Reply::DeadLetterDropped);
        let requeue = scene.cluster.requeue_command(slot, Seq(3));
        let requeued = scene.cluster.call(requeue);
        assert!(
            matches!(requeued, Reply::DeadLetterRequeued { .. }),
            "{requeued:?}"
        );
        assert_eq!(scene.cluster.bodies(scene.expected), ["c"]);
    }
}

#[test]
fn a_much_lower_limit_is_reached_step_by_step() {
    let mut scene = pair();
    for _ in 0..150 {
        scene.refused("x");
    }
    scene.cluster.set_options(letters_max(Some(10)));
    scene.refused("x");
    assert_eq!(scene.letters().len(), 151 - 64);
    scene.refused("x");
    assert_eq!(scene.letters().len(), 152 - 128);
    scene.refused("x");
    assert_eq!(scene.letters().len(), 10);
    assert_eq!(scene.totals().unseen, 143);
}

#[test]
fn a_cluster_that_is_older_than_dead_letters_keeps_none_until_it_has_the_option() {
    let mut scene = pair();
    scene.cluster.set_options(letters_max(None));
    scene.refused("a");
    assert!(scene.letters().is_empty());
    scene.cluster.set_options(letters_max(Some(5)));
    scene.refused("b");
    assert_eq!(scene.bodies(), ["b"]);
    let told = scene.cluster.mailbox(scene.alice);
    let told = told.iter().filter(|row| row.kind == MessageType::REFUSAL);
    assert_eq!(told.count(), 2);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the engine has no threads, its readers do"
)]
fn a_reader_sees_dense_pages_while_letters_come_and_go() {
    let mut scene = pair();
    scene.cluster.set_options(letters_max(Some(4)));
    let (shard, slot) = (scene.cluster.shard(1), scene.slot);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut pages = 0;
            let mut last = Seq(0);
            while !stop.load(Ordering::Relaxed) || pages < 100 {
                let page = shard.dead_letters(slot, Seq(1), 100, usize::MAX).unwrap();
                for pair in page.letters.windows(2) {
                    assert_eq!(pair[0].row.seq.next(), pair[1].row.seq);
                }
                let newest = page.letters.last().map_or(Seq(0), |letter| letter.row.seq);
                assert!(
                    newest == page.head || page.next.is_some() || page.trim_point >= page.head,
                    "there is more: {page:?}"
                );
                let newest = page.letters.last().map_or(last, |letter| letter.row.seq);
                assert!(newest >= last);
                last = newest;
                pages += 1;
            }
        });
        for number in 0..300 {
            scene.refused(&number.to_string());
            scene.cluster.flush(1);
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(scene.bodies(), ["296", "297", "298", "299"]);
}
