//! Slots that move between shards of real processes, under sends, syncs and subscriptions, and processes that die on
//! the way.

mod kills;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailbox_client::v1::{self, ResolveUserRequest, SyncRange, SyncRequest};
use mailbox_client::{Client, SubscribeEvent, user_handle};
use mailbox_engine::slot_of_owner;
use rustix::process::Signal;

use crate::chat::mailbox;
use crate::cluster::Trio;
use crate::placement::{Acked, assert_nothing_lost, load, register};
use crate::process::Process;

/// Far more than any move here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const SLOTS: u16 = 16;
const SHARDS: u16 = 4;
/// Fewer sends of a sender would show nothing.
const SENDS_MIN: usize = 50;

/// Where the process that drives moves may die, in the order of a move.
const POINTS: [&str; 8] = [
    "slot_move_copied",
    "slot_move_freezing",
    "slot_move_frozen",
    "slot_move_sealed",
    "slot_move_committed",
    "slot_move_in_map",
    "slot_move_settled",
    "slot_move_dropped",
];

/// Waits until what it looks for is there.
pub(crate) async fn eventually<T, L: Future<Output = Option<T>>>(
    what: &str,
    look: impl Fn() -> L,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn holder(client: &Client, slot: u16) -> Option<u32> {
    let map = client.cluster_map().await.ok()?;
    let holds = |row: &&v1::MapShard| {
        let mut spans = row.slots.iter();
        spans.any(|span| (span.first..=span.last).contains(&u32::from(slot)))
    };
    map.shards.iter().find(holds).map(|row| row.shard)
}

/// Begins a move, again until somebody has taken it.
async fn begin(client: &Client, slot: u16, to: u32) {
    let call = v1::MoveSlotRequest {
        slot: slot.into(),
        to,
        dry_run: false,
    };
    eventually("the move begins", || async {
        match client.move_slot(call).await {
            Ok(_) => Some(()),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                None
            }
        }
    })
    .await;
}

/// Waits until a slot is where it should be, and its move is over.
async fn moved(client: &Client, slot: u16, to: u32) {
    let begun = Instant::now();
    loop {
        let moves = client.slot_moves().await;
        let over = moves.as_ref().is_ok_and(|moves| moves.is_empty());
        if over && holder(client, slot).await == Some(to) {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "slot {slot} does not come to shard {to}: {moves:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads a mailbox page by page as it grows, until it has been told to stop and finds nothing more. What comes is
/// dense and in order, or it panics.
async fn follow_by_sync(client: Client, user: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut last = 0;
    loop {
        let ending = stop.load(Ordering::Relaxed);
        let range = SyncRange {
            timeline: Some(mailbox(user)),
            after_seq: last,
        };
        let request = SyncRequest {
            ranges: vec![range],
            limit: 7,
            ..SyncRequest::default()
        };
        let answer = match client.sync(request).await {
            Ok(answer) => answer,
            Err(error) => {
                assert!(error.is_retryable(), "user {user}: {error}");
                continue;
            }
        };
        let [page] = &answer.pages[..] else {
            panic!("one page: {answer:?}");
        };
        assert!(page.head >= last, "user {user}: the head went back");
        for message in &page.messages {
            assert_eq!(message.seq, last + 1, "user {user}: skipped or repeated");
            last = message.seq;
        }
        if page.messages.is_empty() {
            if ending {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Asks whose a handle is until it has been told to stop. It is always that user's.
async fn ask_whose(client: Client, handle: String, user: u64, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let request = ResolveUserRequest {
            user: Some(user_handle(&handle)),
        };
        match client.resolve_user(request).await {
            Ok(answer) => assert_eq!(answer.user, user, "@{handle}"),
            Err(error) => assert!(error.is_retryable(), "@{handle}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The same by a subscription, until it has got so far.
async fn follow_by_subscription(
    client: Client,
    users: Vec<u64>,
    mut goal: tokio::sync::watch::Receiver<Option<BTreeMap<u64, u64>>>,
) {
    let (handle, mut events) = client.subscribe();
    for user in &users {
        handle.add(mailbox(*user), 1).expect("subscribe");
    }
    let mut last: BTreeMap<u64, u64> = users.iter().map(|user| (*user, 0)).collect();
    loop {
        if goal
            .borrow_and_update()
            .as_ref()
            .is_some_and(|goal| *goal == last)
        {
            return;
        }
        tokio::select! {
            event = events.recv() => match event.expect("open") {
                SubscribeEvent::Batch { timeline, messages } => {
                    let last = last.get_mut(&timeline.owner).expect("asked for");
                    for message in messages {
                        assert_eq!(message.seq, *last + 1, "{timeline:?}: skipped or repeated");
                        *last = message.seq;
                    }
                }
                SubscribeEvent::Heads(_) => {}
                SubscribeEvent::Ended { error, timeline } => panic!("{timeline:?} ended: {error}"),
            },
            _ = goal.changed() => {}
            () = tokio::time::sleep(PATIENCE) => panic!("got {last:?}, of {:?}", goal.borrow()),
        }
    }
}

/// Sends, syncs and subscriptions that go on while slots move.
pub(crate) struct Load {
    client: Client,
    users: Vec<u64>,
    stop: Arc<AtomicBool>,
    sending: Vec<tokio::task::JoinHandle<Vec<Acked>>>,
    syncing: Vec<tokio::task::JoinHandle<u64>>,
    asking: Vec<tokio::task::JoinHandle<()>>,
    subscribed: tokio::task::JoinHandle<()>,
    goal: tokio::sync::watch::Sender<Option<BTreeMap<u64, u64>>>,
}

impl Load {
    /// Users in as many slots as there are.
    pub(crate) async fn start(client: &Client) -> Load {
        let mut users = Vec::new();
        for number in 0..12 {
            users.push(register(client, format!("user{number}")).await);
        }
        let stop = Arc::new(AtomicBool::new(false));
        // Each sender has its own users, so that what a pair sent is in one order.
        let sending = users.chunks(4).map(|users| {
            let (client, users, stop) = (client.clone(), users.to_vec(), Arc::clone(&stop));
            tokio::spawn(load(client, users, stop, SENDS_MIN))
        });
        let sending = sending.collect();
        let syncing = users
            .iter()
            .map(|user| tokio::spawn(follow_by_sync(client.clone(), *user, Arc::clone(&stop))));
        let syncing = syncing.collect();
        let asking = users.iter().enumerate().map(|(number, user)| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(ask_whose(client, format!("user{number}"), *user, stop))
        });
        let asking = asking.collect();
        let (goal, watched) = tokio::sync::watch::channel(None);
        let following = follow_by_subscription(client.clone(), users.clone(), watched);
        let subscribed = tokio::spawn(following);
        Load {
            client: client.clone(),
            users,
            stop,
            sending,
            syncing,
            asking,
            subscribed,
            goal,
        }
    }

    /// Ends it, and checks all that was promised: what was acked is there once and in order, for every pair of
    /// users; syncs and subscriptions have seen every seq once.
    pub(crate) async fn check(self) {
        self.stop.store(true, Ordering::Relaxed);
        for sending in self.sending {
            let acked = tokio::time::timeout(PATIENCE, sending).await;
            let acked = acked.expect("sends go on").expect("the load ends");
            let mut users: Vec<u64> = acked.iter().map(|(from, ..)| *from).collect();
            users.sort_unstable();
            users.dedup();
            assert_nothing_lost(&self.client, &users, &acked).await;
        }
        for syncing in self.syncing {
            syncing.await.expect("syncs skip nothing");
        }
        for asking in self.asking {
            asking.await.expect("handles stay whose they are");
        }
        let ended = Arc::new(AtomicBool::new(true));
        let mut heads = BTreeMap::new();
        for user in self.users {
            let head = follow_by_sync(self.client.clone(), user, Arc::clone(&ended)).await;
            heads.insert(user, head);
        }
        self.goal.send_replace(Some(heads));
        self.subscribed.await.expect("subscriptions skip nothing");
    }
}

/// Nodes, each started with nothing in its way.
pub(crate) fn revive(trio: &mut Trio, dir: &Path, index: usize) {
    trio.nodes[index] = Some(trio.node(dir, index));
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_to_and_fro_under_load_while_nodes_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    let slots: Vec<u16> = {
        let mut slots: Vec<u16> = load
            .users
            .iter()
            .map(|user| slot_of_owner(*user, SLOTS).0)
            .collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    };
    for (turn, slot) in slots
        .iter()
        .copied()
        .cycle()
        .take(2 * slots.len())
        .enumerate()
    {
        let from = eventually("the map says", || holder(&client, slot)).await;
        let to = from % u32::from(SHARDS) + 1;
        begin(&client, slot, to).await;
        // Now and then a node is gone in the middle of it, whichever that is.
        let killed = (turn % 3 == 1)
            .then_some(turn % 3 + turn / 3 % 3)
            .map(|node| node % 3);
        if let Some(index) = killed {
            let process = trio.nodes[index].take().unwrap();
            process.stop(Signal::KILL);
            revive(&mut trio, dir.path(), index);
        }
        moved(&client, slot, to).await;
    }
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

/// Has a node drive what is moved, which dies at a point of it.
pub(crate) async fn drive_and_die(
    trio: &mut Trio,
    client: &Client,
    dir: &Path,
    index: usize,
    point: &str,
) {
    start_to_die(trio, dir, index, &format!("{point}=return"));
    give_lead(trio, client, index, 0).await;
}

/// Starts a node anew that dies at a point.
pub(crate) fn start_to_die(trio: &mut Trio, dir: &Path, index: usize, failpoints: &str) {
    let before = trio.nodes[index].take().unwrap();
    assert!(before.stop(Signal::TERM).success());
    let args = trio.node_args(dir, index);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = Process::start_failing(&args, failpoints);
    assert_eq!(process.says()["ready"]["role"], "server");
    trio.nodes[index] = Some(process);
}

/// Waits until a node leads a shard.
pub(crate) async fn give_lead(trio: &Trio, client: &Client, index: usize, shard: u32) {
    let (node, address) = (index as u64 + 1, trio.addresses()[index].clone());
    eventually("it leads the shard", || async {
        // It may lead already, or not be there yet.
        let _ = client.transfer_leader(shard, node).await;
        let status = client.status(Some(&address)).await.ok()?;
        let mut shards = status.shards.iter();
        shards
            .any(|found| found.shard == shard && found.role == "leader")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_at_any_step_leaves_a_move_that_others_finish() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    for (turn, point) in POINTS.into_iter().enumerate() {
        let slot = slot_of_owner(load.users[turn % load.users.len()], SLOTS).0;
        let from = eventually("the map says", || holder(&client, slot)).await;
        let to = from % u32::from(SHARDS) + 1;
        let index = turn % 3;
        drive_and_die(&mut trio, &client, dir.path(), index, point).await;
        begin(&client, slot, to).await;
        let died = trio.nodes[index].take().unwrap().wait();
        assert!(!died.success(), "{point}: {died}");
        // The two others finish it, or all three if what is left needs them all.
        revive(&mut trio, dir.path(), index);
        moved(&client, slot, to).await;
    }
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_given_up_while_a_voter_is_away_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let load = Load::start(&client).await;
    let slot = slot_of_owner(load.users[0], SLOTS).0;
    let from = eventually("the map says", || holder(&client, slot)).await;
    let to = from % u32::from(SHARDS) + 1;
    trio.nodes[2].take().unwrap().stop(Signal::KILL);
    begin(&client, slot, to).await;
    let waits = eventually("the move waits for the third node", || async {
        let moves = client.slot_moves().await.ok()?;
        let [found] = &moves[..] else { return None };
        let ready = found.done_nodes.len() == 2 && found.waits_for.starts_with("node 3");
        ready.then(|| found.clone())
    })
    .await;
    assert_eq!(waits.stage(), v1::SlotMoveStage::Copying);
    assert_eq!((waits.from, waits.to), (from, to));
    let call = v1::MoveSlotRequest {
        slot: slot.into(),
        to: to % u32::from(SHARDS) + 1,
        dry_run: true,
    };
    let refused = client.move_slot(call).await.expect_err("it is on its way");
    assert!(refused.0.message.contains("on its way"), "{refused}");
    client.abort_slot_move(slot.into()).await.expect("given up");
    moved(&client, slot, from).await;
    let refused = client.abort_slot_move(slot.into()).await;
    assert!(refused.is_err(), "there is none: {refused:?}");
    revive(&mut trio, dir.path(), 2);
    begin(&client, slot, to).await;
    moved(&client, slot, to).await;
    // What is done is done.
    begin(&client, slot, to).await;
    assert_eq!(client.slot_moves().await.expect("told"), []);
    load.check().await;
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}
