//! Random shards, commands, frames and failures. Whatever a relay may do wrong happens: it sends
//! anything that was ever sent, again and in any order, from any point on, damaged now and then,
//! two of them at once; acks are lost, late and repeated. When all has been drained, each message
//! is where it belongs, once and in order.

use std::collections::BTreeMap;

use mailbox_engine::{
    AckCursor, AckLanes, Command, Deliver, DeviceId, GroupId, IngestCrash, Items, LaneId, Refusal,
    Reply, Send, SendGroup, Seq, SlotId, UserId,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::checks::{check_hashes, check_messages, check_tables};
use crate::cluster::{Cluster, SLOT_COUNT, slot_of};
use crate::moves::MoveStep;
use crate::splits::Way;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Commands, each to its shard: those of one shard make one entry.
    Entries(Vec<Call>),
    Flush(Index),
    Build(Index),
    Reopen(Index),
    Crash(Index, bool),
    Install(Index, usize),
    /// A slot begins to move to a shard.
    StartMove(Index, Index),
    /// A move goes on by some step, due or not, and now and then dies in it.
    Move(Index, MoveStep, Option<bool>),
    /// A step that was taken at some time comes again.
    MoveAgain(Index),
    /// A shard splits, in an entry with commands before and behind.
    Split(Index, u8, Way, Vec<Call>),
    SplitAgain(Index),
}

#[derive(Clone, Debug)]
enum Call {
    Register(u8),
    Send(Index, Index),
    SendGroup(Index, Index),
    Create(Index),
    Join(Index, Index),
    Leave(Index, Index),
    AckCursor(Index),
    /// A command that was made before.
    Again(Index),
    /// Of a lane: from where, how many, and whether a bit is flipped on the way.
    Frame(Index, Index, usize, Option<Index>),
    /// A mark that was reported at some time.
    Ack(Index),
    /// To a shard that does not hold the slot.
    Misrouted(Index, Index),
}

fn call() -> impl Strategy<Value = Call> {
    let index = any::<Index>;
    let pair = || (any::<Index>(), any::<Index>());
    let damage = prop::option::weighted(0.1, any::<Index>());
    prop_oneof![
        3 => any::<u8>().prop_map(Call::Register),
        10 => pair().prop_map(|(from, to)| Call::Send(from, to)),
        2 => pair().prop_map(|(from, to)| Call::SendGroup(from, to)),
        1 => index().prop_map(Call::Create),
        2 => pair().prop_map(|(user, group)| Call::Join(user, group)),
        1 => pair().prop_map(|(user, group)| Call::Leave(user, group)),
        1 => index().prop_map(Call::AckCursor),
        2 => index().prop_map(Call::Again),
        12 => (index(), index(), 1..6_usize, damage)
            .prop_map(|(lane, from, count, damage)| Call::Frame(lane, from, count, damage)),
        4 => index().prop_map(Call::Ack),
        1 => pair().prop_map(|(call, shard)| Call::Misrouted(call, shard)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let step = prop_oneof![
        20 => prop::collection::vec(call(), 1..12).prop_map(Step::Entries),
        2 => index().prop_map(Step::Flush),
        1 => index().prop_map(Step::Build),
        1 => index().prop_map(Step::Reopen),
        1 => (index(), any::<bool>()).prop_map(|(shard, after)| Step::Crash(shard, after)),
        1 => (index(), 0..4_usize).prop_map(|(shard, behind)| Step::Install(shard, behind)),
        3 => (index(), index()).prop_map(|(slot, shard)| Step::StartMove(slot, shard)),
        20 => (index(), MoveStep::any(), prop::option::weighted(0.1, any::<bool>()))
            .prop_map(|(which, step, crash)| Step::Move(which, step, crash)),
        1 => index().prop_map(Step::MoveAgain),
        2 => (index(), any::<u8>(), Way::any(), prop::collection::vec(call(), 0..8))
            .prop_map(|(shard, mask, way, calls)| Step::Split(shard, mask, way, calls)),
        1 => index().prop_map(Step::SplitAgain),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a run has seen.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) users: BTreeMap<UserId, String>,
    pub(crate) groups: Vec<GroupId>,
    made: Vec<Command>,
    /// Sends in the order in which they were accepted.
    pub(crate) accepted: Vec<(Send, Seq)>,
    replies: BTreeMap<u128, Reply>,
    /// What destinations have reported, the newest and all.
    marks: BTreeMap<LaneId, u64>,
    reported: Vec<(LaneId, u64)>,
    /// What has happened, so that a script that never gets there is noticed.
    seen: BTreeMap<&'static str, usize>,
}

impl Run {
    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn user(&self, index: Index) -> UserId {
        // One in a dozen is nobody.
        let nobody = UserId(7 << 16 | 1);
        let count = self.users.len();
        let users = self.users.keys().copied();
        users.chain([nobody]).nth(index.index(count + 1)).unwrap()
    }

    fn group(&self, index: Index) -> GroupId {
        let nothing = GroupId(9 << 16 | 2);
        match self.groups.len() {
            0 => nothing,
            _ => *index.get(&self.groups),
        }
    }

    /// The command of a call, and where it goes.
    fn command(&mut self, cluster: &mut Cluster, call: &Call) -> Option<(usize, Command)> {
        let command = match call {
            Call::Register(number) => cluster.register_command(&format!("user {}", number % 12)),
            Call::Send(from, to) => {
                let body = self.made.len().to_string();
                Command::Send(cluster.send_command(self.user(*from), self.user(*to), &body))
            }
            Call::SendGroup(from, to) => {
                let user = self.user(*from);
                let send = cluster.send_command(user, user, "to all");
                Command::SendGroup(to_group(send, self.group(*to)))
            }
            Call::Create(user) => cluster.create_command(self.user(*user)),
            Call::Join(user, group) => cluster.join_command(self.group(*group), self.user(*user)),
            Call::Leave(user, group) => cluster.leave_command(self.group(*group), self.user(*user)),
            Call::AckCursor(user) => {
                let user = self.user(*user);
                Command::AckCursor(AckCursor {
                    request_id: cluster.send_command(user, user, "").client_msg_id,
                    user,
                    device: DeviceId::new("phone").unwrap(),
                    timeline: user.mailbox(),
                    seq: Seq(1),
                })
            }
            Call::Again(which) if self.made.is_empty() => return self.misrouted(*which, None),
            Call::Again(which) => {
                let message_id = cluster.message_id();
                return self.again(cluster, which.get(&self.made).clone(), message_id);
            }
            Call::Frame(lane, from, count, damage) => {
                return self.frame(cluster, *lane, *from, *count, *damage);
            }
            Call::Ack(_) if self.reported.is_empty() => return None,
            Call::Ack(which) => {
                let acks = vec![*which.get(&self.reported)];
                let command = Command::AckLanes(AckLanes { acks });
                return Some((cluster.shard_of(slot_of(&command)), command));
            }
            Call::Misrouted(which, shard) => {
                return self.misrouted(*which, Some((cluster.replicas.len(), *shard)));
            }
        };
        self.made.push(command.clone());
        Some((cluster.shard_of(slot_of(&command)), command))
    }

    fn misrouted(&self, which: Index, shards: Option<(usize, Index)>) -> Option<(usize, Command)> {
        let (count, shard) = shards?;
        if self.made.is_empty() {
            return None;
        }
        Some((shard.index(count), which.get(&self.made).clone()))
    }

    fn again(
        &self,
        cluster: &Cluster,
        mut command: Command,
        id: mailbox_engine::MessageId,
    ) -> Option<(usize, Command)> {
        match &mut command {
            Command::Send(call) => call.message_id = id,
            Command::SendGroup(call) => call.message_id = id,
            Command::CreateGroup(call) => call.message_id = id,
            Command::JoinGroup(call) => call.message_id = id,
            Command::LeaveGroup(call) => call.message_id = id,
            _ => {}
        }
        Some((cluster.shard_of(slot_of(&command)), command))
    }

    fn frame(
        &mut self,
        cluster: &Cluster,
        lane: Index,
        from: Index,
        count: usize,
        damage: Option<Index>,
    ) -> Option<(usize, Command)> {
        if cluster.sent.is_empty() {
            return None;
        }
        let lane = *cluster.sent.keys().nth(lane.index(cluster.sent.len()))?;
        let first_seq = from.index(cluster.sent[&lane].len()) as u64 + 1;
        let mut frame = cluster.frame(lane, first_seq, count);
        if let Some(bit) = damage {
            let mut bytes = frame.items.as_bytes().to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            frame.items = Items::from_bytes(bytes.into());
        }
        Some((cluster.shard_of(lane.destination), Command::Deliver(frame)))
    }

    fn entries(&mut self, cluster: &mut Cluster, calls: &[Call]) {
        let mut by_shard: BTreeMap<usize, Vec<Command>> = BTreeMap::new();
        for call in calls {
            if let Some((shard, command)) = self.command(cluster, call) {
                by_shard.entry(shard).or_default().push(command);
            }
        }
        for (shard, mut commands) in by_shard {
            sort_message_ids(&mut commands);
            let replies = cluster.apply(shard, &commands);
            assert_eq!(replies.len(), commands.len());
            for (command, reply) in commands.into_iter().zip(replies) {
                self.note(cluster, shard, command, reply);
            }
        }
    }

    fn split(&mut self, cluster: &mut Cluster, shard: usize, mask: u8, way: Way, calls: &[Call]) {
        let Some(call) = cluster.plan_split(shard, mask) else {
            return;
        };
        let mut commands = Vec::new();
        for call in calls {
            let command = self.command(cluster, call);
            commands.extend(command.and_then(|(at, command)| (at == shard).then_some(command)));
        }
        sort_message_ids(&mut commands);
        let (before, split) = (commands.len() / 2, Command::SplitShard(call.clone()));
        commands.insert(before, split.clone());
        let replies = cluster.apply(shard, &commands);
        let mut noted = Vec::new();
        for (command, reply) in commands.into_iter().zip(replies) {
            if command == split {
                let (to, epoch) = (call.to, call.epoch);
                assert_eq!(reply, Reply::ShardSplit { to, epoch });
                let what = cluster.finish_split(shard, call.clone(), way);
                self.saw(what);
            } else {
                noted.push(slot_of(&command));
                self.note(cluster, shard, command, reply);
            }
        }
        if noted.len() > before && noted[before..].iter().any(|slot| call.slots.contains(slot)) {
            self.saw("behind a split");
        }
    }

    fn note(&mut self, cluster: &Cluster, shard: usize, command: Command, reply: Reply) {
        if cluster.shard_of(slot_of(&command)) != shard {
            // Never do two shards accept.
            return match reply {
                Reply::Refused(Refusal::WrongShard { .. }) => self.saw("wrong shard"),
                Reply::Refused(Refusal::WrongOwner { .. }) => self.saw("wrong owner"),
                other => panic!("{other:?}"),
            };
        }
        if let Reply::Refused(Refusal::WrongOwner { slot, .. }) = reply {
            assert!(cluster.is_frozen(slot), "{command:?}");
            return self.saw("frozen");
        }
        match (&command, &reply) {
            (Command::Deliver(frame), Reply::Delivered { mark, corrupt, .. }) => {
                return self.note_mark(cluster, frame, *mark, *corrupt);
            }
            (Command::AckLanes(_), _) => return assert_eq!(reply, Reply::LanesAcked),
            (_, Reply::Refused(_)) => return self.saw("refused"),
            _ => {}
        }
        let id = id_of(&command);
        if let Some(first) = self.replies.get(&id) {
            assert_eq!(*first, reply, "a repeat gets the first reply");
            return self.saw("repeat");
        }
        match (command, &reply) {
            (Command::Send(send), Reply::Sent { seq, .. }) => self.accepted.push((send, *seq)),
            (Command::RegisterUser(call), Reply::UserRegistered { user }) => {
                assert_eq!(self.users.insert(*user, call.handle), None);
            }
            (_, Reply::GroupCreated { group, .. }) => self.groups.push(*group),
            _ => {}
        }
        self.replies.insert(id, reply);
    }

    /// The reply to a frame is what its seqs and the mark before decide, and nothing else.
    fn note_mark(&mut self, cluster: &Cluster, frame: &Deliver, mark: u64, corrupt: Option<u64>) {
        let lane = frame.lane;
        let before = self.marks.get(&lane).copied().unwrap_or_default();
        let whole = cluster.frame(lane, frame.first_seq, frame_count(cluster, frame));
        let last = frame.first_seq + frame_count(cluster, frame) as u64 - 1;
        let due = if frame.first_seq <= before + 1 {
            before.max(last)
        } else {
            before
        };
        if whole.items == frame.items {
            assert_eq!((mark, corrupt), (due, None), "{lane}");
            self.saw(match () {
                () if last <= before => "already here",
                () if due == before => "gap",
                () => "delivered",
            });
        } else {
            assert!((before..=due).contains(&mark), "{lane}");
            assert!(corrupt.is_none_or(|seq| seq == mark + 1));
            if corrupt.is_some() {
                self.saw("corrupt");
            }
        }
        self.marks.insert(lane, mark);
        self.reported.push((lane, mark));
    }

    /// acked ≤ mark ≤ sent, at all times.
    fn check_marks(&self, cluster: &Cluster) {
        for (lane, items) in &cluster.sent {
            let source = cluster.shard(cluster.shard_of(lane.source));
            let mark = self.marks.get(lane).copied().unwrap_or_default();
            assert!(source.lane_acked(*lane) <= mark, "{lane}");
            assert!(mark <= items.len() as u64, "{lane}");
        }
    }

    fn step(&mut self, cluster: &mut Cluster, step: &Step) {
        let shards = cluster.replicas.len();
        let unacked = |cluster: &Cluster, shard| !cluster.shard(shard).unacked().is_empty();
        match step {
            Step::Entries(calls) => self.entries(cluster, calls),
            Step::Flush(shard) => {
                let shard = shard.index(shards);
                if unacked(cluster, shard) {
                    self.saw("flush of an outbox");
                }
                cluster.flush(shard);
            }
            Step::Build(shard) => cluster.build(shard.index(shards)),
            Step::Reopen(store) => cluster.reopen(store.index(cluster.stores())),
            Step::Crash(shard, after) => {
                let shard = shard.index(shards);
                if unacked(cluster, shard) {
                    self.saw("crash with an outbox");
                }
                let at = if *after {
                    IngestCrash::After
                } else {
                    IngestCrash::Before
                };
                cluster.crash(shard, at);
            }
            Step::Install(shard, behind) => {
                let shard = shard.index(shards);
                if unacked(cluster, shard) {
                    self.saw("install with an outbox");
                }
                cluster.install(shard, *behind);
            }
            Step::StartMove(slot, to) => {
                let slot = u16::try_from(slot.index(SLOT_COUNT.into())).unwrap();
                cluster.start_move(SlotId(slot), to.index(shards));
            }
            Step::Move(which, step, crash) => {
                let open = cluster.open_moves();
                if open.is_empty() {
                    return;
                }
                let which = *which.get(&open);
                let crash = crash.map(|after| {
                    if after {
                        IngestCrash::After
                    } else {
                        IngestCrash::Before
                    }
                });
                if let Some(what) = cluster.move_step(which, *step, crash) {
                    self.saw(what);
                }
            }
            Step::MoveAgain(which) if !cluster.taken.is_empty() => {
                cluster.move_again(which.index(cluster.taken.len()));
                self.saw("move again");
            }
            Step::Split(shard, mask, way, calls) => {
                self.split(cluster, shard.index(shards), *mask, *way, calls);
            }
            Step::SplitAgain(which) if !cluster.splits.is_empty() => {
                cluster.split_again(which.index(cluster.splits.len()));
                self.saw("split again");
            }
            Step::MoveAgain(_) | Step::SplitAgain(_) => {}
        }
        self.check_marks(cluster);
    }
}

/// How many items a frame was made of: its damage may have changed a length.
fn frame_count(cluster: &Cluster, frame: &Deliver) -> usize {
    let mut count = 0;
    let left = cluster.sent[&frame.lane].len() as u64 - (frame.first_seq - 1);
    while count < usize::try_from(left).unwrap() {
        count += 1;
        let whole = cluster.frame(frame.lane, frame.first_seq, count);
        if whole.items.as_bytes().len() >= frame.items.as_bytes().len() {
            break;
        }
    }
    count
}

/// A proposer gives ids in log order.
fn sort_message_ids(commands: &mut [Command]) {
    let mut ids: Vec<_> = commands.iter().filter_map(message_id).collect();
    ids.sort_unstable();
    let mut ids = ids.into_iter();
    for command in commands {
        if message_id(command).is_none() {
            continue;
        }
        let id = ids.next().unwrap();
        match command {
            Command::Send(call) => call.message_id = id,
            Command::SendGroup(call) => call.message_id = id,
            Command::CreateGroup(call) => call.message_id = id,
            Command::JoinGroup(call) => call.message_id = id,
            Command::LeaveGroup(call) => call.message_id = id,
            _ => {}
        }
    }
}

fn message_id(command: &Command) -> Option<mailbox_engine::MessageId> {
    match command {
        Command::Send(call) => Some(call.message_id),
        Command::SendGroup(call) => Some(call.message_id),
        Command::CreateGroup(call) => Some(call.message_id),
        Command::JoinGroup(call) => Some(call.message_id),
        Command::LeaveGroup(call) => Some(call.message_id),
        _ => None,
    }
}

fn id_of(command: &Command) -> u128 {
    let id = match command {
        Command::Send(call) => call.client_msg_id,
        Command::SendGroup(call) => call.client_msg_id,
        Command::RegisterUser(call) => call.request_id,
        Command::CreateGroup(call) => call.request_id,
        Command::JoinGroup(call) => call.request_id,
        Command::LeaveGroup(call) => call.request_id,
        Command::AckCursor(call) => call.request_id,
        other => panic!("has no id: {other:?}"),
    };
    id.as_u128()
}

fn to_group(send: Send, group: GroupId) -> SendGroup {
    SendGroup {
        sender: send.sender,
        group,
        client_msg_id: send.client_msg_id,
        message_id: send.message_id,
        kind: send.kind,
        flags: send.flags,
        content_crc: send.content_crc,
        body: send.body,
        shown: send.shown,
    }
}

fn run(cluster: &mut Cluster, steps: &[Step]) -> Run {
    let mut run = Run::default();
    for step in steps {
        run.step(cluster, step);
    }
    check_hashes(cluster);
    cluster.finish_moves();
    check_hashes(cluster);
    cluster.drain();
    check_messages(cluster, &run);
    check_tables(cluster, &run);
    check_hashes(cluster);
    for store in 0..cluster.stores() {
        cluster.reopen(store);
    }
    check_messages(cluster, &run);
    run
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn a_hostile_relay_loses_doubles_and_reorders_nothing(
        shards in 1..=4_usize,
        stores in 1..=2_usize,
        steps in steps(),
    ) {
        run(&mut Cluster::new(shards, stores), &steps);
    }
}

proptest! {
    #![proptest_config(config(4))]

    #[test]
    fn nor_does_it_on_rocksdb(steps in steps()) {
        run(&mut Cluster::on_rocksdb(3, 2), &steps);
    }
}

/// A script that never gets to a fault would prove nothing about it.
#[test]
fn the_scripts_reach_every_interleaving() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..90 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let mut cluster = Cluster::new(3, 2);
        for (what, count) in run(&mut cluster, &steps).seen {
            *seen.entry(what).or_default() += count;
        }
        for row in cluster.sent.values().flatten() {
            let name = format!("{row:?}");
            let kinds = ["Message", "Refusal", "UserMade", "GroupMade", "Membership"];
            let kind = kinds.into_iter().find(|kind| name.starts_with(kind));
            *seen.entry(kind.unwrap()).or_default() += 1;
        }
    }
    for what in [
        "already here",
        "gap",
        "delivered",
        "corrupt",
        "wrong shard",
        "wrong owner",
        "frozen",
        "begin",
        "copy",
        "freeze",
        "seal with changes",
        "seal with all",
        "commit",
        "drop",
        "abort",
        "unfreeze",
        "crash in a copy",
        "move again",
        "split",
        "split and reopen",
        "split and crash before",
        "split and crash after",
        "split and refused",
        "split and there already",
        "split again",
        "behind a split",
        "refused",
        "repeat",
        "flush of an outbox",
        "crash with an outbox",
        "install with an outbox",
        "Message",
        "Refusal",
        "UserMade",
        "GroupMade",
        "Membership",
    ] {
        assert!(
            seen.get(what).is_some_and(|count| *count >= 3),
            "{what}: {seen:#?}"
        );
    }
}
