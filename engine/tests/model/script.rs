//! Random steps, and the commands that they stand for once the users and groups of a run are
//! known.

use bytes::Bytes;
use mailbox_engine::{
    AckCursor, ClusterOptions, Command, Conversation, CreateGroup, DeviceId, DropDeadLetter, Flags,
    GroupId, IngestCrash, JoinGroup, LeaveGroup, MarkRead, MessageId, MessageType, RegisterUser,
    RequeueDeadLetter, Send, SendGroup, Seq, SetClusterOptions, SlotId, TimelineId, UserId,
    UserLimits, content_crc,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::reference::{AHEAD_MAX_MS, HOUR_MS, Reference};

/// One thing that happens to a shard.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An entry of commands. The clock of its proposer has gone on, or back.
    Entry { clock_ms: i64, calls: Vec<Call> },
    /// An entry without commands.
    Blank,
    /// A membership entry.
    Membership(u8),
    /// Freeze, build and ingest.
    Flush,
    /// Freeze and build; ingest comes with the next flush, if no crash comes first.
    Build,
    /// The process ends and starts again.
    Reopen,
    /// It dies inside an ingest and starts again.
    Crash(Dying),
    /// The replica is taken off the node and hosted again from nothing; or the process dies inside
    /// the ingest that takes it off.
    Drop(Option<Dying>),
}

/// Where it dies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dying {
    Before,
    After,
}

impl From<Dying> for IngestCrash {
    fn from(dying: Dying) -> IngestCrash {
        match dying {
            Dying::Before => IngestCrash::Before,
            Dying::After => IngestCrash::After,
        }
    }
}

/// One call, its parts by number.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    what: What,
    who: u8,
    other: u8,
    body: u8,
    seq: u8,
    id: Id,
    /// Below 16: a fault of that kind.
    fault: u8,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Send,
    SendGroup,
    Register,
    Create,
    Join,
    Leave,
    MarkPeer,
    MarkGroup,
    AckMailbox,
    AckGroup,
    Requeue,
    DropLetter,
    Options,
    Cut,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    /// Made now.
    Fresh,
    /// Made this long before the end of the window; negative: after the limit ahead.
    Edge { ahead: bool, by_ms: i64 },
    /// As in an earlier call, which asked the same or something else.
    Again(prop::sample::Index),
}

fn dying() -> impl Strategy<Value = Dying> {
    prop_oneof![Just(Dying::Before), Just(Dying::After)]
}

/// Steps from an empty shard on. Its options come early, but not always first.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (clock(), prop::collection::vec(call(), 1..8))
            .prop_map(|(clock_ms, calls)| Step::Entry { clock_ms, calls }),
        1 => Just(Step::Blank),
        1 => any::<u8>().prop_map(Step::Membership),
        2 => Just(Step::Flush),
        1 => Just(Step::Build),
        1 => Just(Step::Reopen),
        1 => dying().prop_map(Step::Crash),
        1 => prop::option::of(dying()).prop_map(Step::Drop),
    ];
    let options = (any::<[u8; 4]>(), 0..4_usize);
    (prop::collection::vec(step, 1..60), options).prop_map(|(mut steps, (parts, at))| {
        let [who, other, body, seq] = parts;
        let call = Call {
            what: What::Options,
            who,
            other,
            body,
            seq,
            id: Id::Fresh,
            fault: 255,
        };
        let entry = Step::Entry {
            clock_ms: 0,
            calls: vec![call],
        };
        steps.insert(at.saturating_sub(1).min(steps.len()), entry);
        steps
    })
}

fn clock() -> impl Strategy<Value = i64> {
    let hour = i64::try_from(HOUR_MS).unwrap();
    prop_oneof![6 => 0..1000_i64, 1 => -1000..0_i64, 1 => 0..3 * hour]
}

fn call() -> impl Strategy<Value = Call> {
    let what = prop_oneof![
        8 => Just(What::Send),
        6 => Just(What::SendGroup),
        4 => Just(What::Register),
        2 => Just(What::Create),
        4 => Just(What::Join),
        2 => Just(What::Leave),
        1 => Just(What::MarkPeer),
        1 => Just(What::MarkGroup),
        4 => Just(What::AckMailbox),
        2 => Just(What::AckGroup),
        4 => Just(What::Requeue),
        1 => Just(What::DropLetter),
        1 => Just(What::Options),
        1 => Just(What::Cut),
    ];
    let id = prop_oneof![
        6 => Just(Id::Fresh),
        1 => (any::<bool>(), -1..2_i64).prop_map(|(ahead, by_ms)| Id::Edge { ahead, by_ms }),
        3 => any::<prop::sample::Index>().prop_map(Id::Again),
    ];
    (what, any::<[u8; 4]>(), id, any::<u8>()).prop_map(
        |(what, [who, other, body, seq], id, fault)| Call {
            what,
            who,
            other,
            body,
            seq,
            id,
            fault,
        },
    )
}

/// Makes the commands of one run.
#[derive(Default)]
pub(crate) struct Author {
    clock_ms: u64,
    ids_made: u128,
    made: Vec<(Call, Command)>,
}

impl Author {
    pub(crate) fn new() -> Author {
        // The time from which the window's end is at a whole hour.
        Author {
            clock_ms: 1_800_000 * 1_000_000,
            ..Author::default()
        }
    }

    /// Moves the proposer's clock.
    pub(crate) fn clock(&mut self, by_ms: i64) -> u64 {
        self.clock_ms = self.clock_ms.saturating_add_signed(by_ms);
        self.clock_ms
    }

    /// The command of a call, its message id above the last one or, as a fault, not.
    pub(crate) fn command(&mut self, call: &Call, state: &Reference) -> Command {
        if let (Id::Again(which), false) = (call.id, self.made.is_empty()) {
            let (before, command) = which.get(&self.made).clone();
            // Half of them ask the very same; the others the same of others, or else.
            if call.fault < 128 {
                return assigned(command, self.message_id(call, state));
            }
            let id = id_of(&command);
            let twisted = match call.who % 4 {
                0 => Call {
                    seq: call.seq,
                    ..before
                },
                1 => Call {
                    body: call.body,
                    ..before
                },
                2 => Call {
                    what: call.what,
                    ..before
                },
                _ => Call {
                    who: before.who,
                    other: before.other,
                    ..call.clone()
                },
            };
            return self.build(&twisted, id, state);
        }
        let id = self.id(call.id, state);
        let command = self.build(call, id, state);
        if !matches!(command, Command::Cut | Command::SetClusterOptions(_)) {
            self.made.push((call.clone(), command.clone()));
        }
        command
    }

    fn id(&mut self, id: Id, state: &Reference) -> Uuid {
        let now = state.time_ms;
        let at = match id {
            Id::Fresh | Id::Again(_) => now,
            Id::Edge { ahead: true, by_ms } => (now + AHEAD_MAX_MS).saturating_add_signed(by_ms),
            Id::Edge {
                ahead: false,
                by_ms,
            } => state.window_end_ms().saturating_add_signed(-by_ms),
        };
        self.ids_made += 1;
        Uuid::from_u128(u128::from(at) << 80 | 7 << 76 | 2 << 62 | self.ids_made)
    }

    fn message_id(&self, call: &Call, state: &Reference) -> MessageId {
        let next = MessageId((self.clock_ms << 16).max(state.last_message_id.0 + 1));
        if call.fault == 1 {
            state.last_message_id
        } else {
            next
        }
    }

    fn build(&self, call: &Call, id: Uuid, state: &Reference) -> Command {
        let message_id = self.message_id(call, state);
        let user = user(call.who, state);
        let group = group(call.other, state);
        let peer = self::user(call.other, state);
        match call.what {
            What::Send => Command::Send(self.send(call, id, user, peer, message_id)),
            What::SendGroup => {
                let send = self.send(call, id, user, peer, message_id);
                Command::SendGroup(to_group(send, group))
            }
            What::Register => {
                let (request_id, handle) = (id, handle(call.who));
                Command::RegisterUser(RegisterUser { request_id, handle })
            }
            What::Create => Command::CreateGroup(CreateGroup {
                request_id: id,
                creator: user,
                name: "x".repeat(usize::from(call.body % 26)),
                message_id,
            }),
            What::Join => Command::JoinGroup(JoinGroup {
                request_id: id,
                group,
                user,
                message_id,
            }),
            What::Leave => Command::LeaveGroup(LeaveGroup {
                request_id: id,
                group,
                user,
                message_id,
            }),
            What::MarkPeer => mark_read(call, id, user, Conversation::Peer(peer)),
            What::MarkGroup => mark_read(call, id, user, Conversation::Group(group)),
            What::AckMailbox if call.fault < 16 => ack_cursor(call, id, user, peer.mailbox()),
            What::AckMailbox => ack_cursor(call, id, user, user.mailbox()),
            What::AckGroup => ack_cursor(call, id, user, group.timeline()),
            What::Requeue => {
                let (slot, seq) = letter(call, state);
                Command::RequeueDeadLetter(RequeueDeadLetter {
                    request_id: id,
                    slot,
                    seq,
                    message_id,
                })
            }
            What::DropLetter => {
                let (slot, seq) = letter(call, state);
                Command::DropDeadLetter(DropDeadLetter {
                    request_id: id,
                    slot,
                    seq,
                })
            }
            What::Options => Command::SetClusterOptions(set_options(call)),
            What::Cut => Command::Cut,
        }
    }

    fn send(
        &self,
        call: &Call,
        id: Uuid,
        sender: UserId,
        recipient: UserId,
        message_id: MessageId,
    ) -> Send {
        let kind = if call.fault == 2 {
            MessageType::REFUSAL
        } else {
            MessageType::TEXT
        };
        let body = Bytes::from(vec![call.body; usize::from(call.body % 26)]);
        Send {
            sender,
            recipient,
            client_msg_id: id,
            message_id,
            kind,
            flags: Flags(call.seq & Flags::CLIENT.0),
            content_crc: content_crc(id, kind, &body) ^ u32::from(call.fault == 3),
            body,
            shown: MessageId::ZERO,
        }
    }
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

/// Values around which the other calls lie; now and then one that is out of bounds.
fn set_options(call: &Call) -> SetClusterOptions {
    let hours = if call.fault < 64 {
        0
    } else {
        4 + u64::from(call.other % 3)
    };
    SetClusterOptions {
        options: ClusterOptions {
            group_members_max: 2 + u32::from(call.body % 3),
            body_bytes_max: 22 + u32::from(call.seq % 3),
            dedup_window_ms: hours * HOUR_MS,
            user_limits: (call.who >= 64).then(|| UserLimits {
                devices_max: 1 + u32::from(call.other % 2),
                groups_max: 2 + u32::from(call.body % 4),
            }),
            dead_letters_max: (call.seq >= 32).then(|| 1 + u32::from(call.other % 5)),
        },
        if_absent: call.who.is_multiple_of(2),
    }
}

fn mark_read(call: &Call, request_id: Uuid, user: UserId, conversation: Conversation) -> Command {
    let seq = Seq(u64::from(call.seq % 8));
    Command::MarkRead(MarkRead {
        request_id,
        user,
        conversation,
        seq,
    })
}

fn ack_cursor(call: &Call, request_id: Uuid, user: UserId, timeline: TimelineId) -> Command {
    let device = ["phone", "desk", "watch"][usize::from(call.body % 3)];
    let device = DeviceId::new(device).unwrap();
    let seq = Seq(u64::from(call.seq % 8));
    Command::AckCursor(AckCursor {
        request_id,
        user,
        device,
        timeline,
        seq,
    })
}

fn handle(number: u8) -> String {
    match number {
        0..=9 => String::new(),
        10..=19 => "two\nlines".to_owned(),
        20..=29 => " space".to_owned(),
        30..=39 => "a@b".to_owned(),
        40..=49 => "x".repeat(65),
        _ => format!("user {}", number % 9),
    }
}

/// Mostly a letter that is there, now and then one that was trimmed or never written.
fn letter(call: &Call, state: &Reference) -> (SlotId, Seq) {
    let count = state.letters.len();
    if count == 0 {
        return (SlotId(u16::from(call.who % 8)), Seq(1));
    }
    let mut slots = state.letters.iter();
    let (slot, letters) = slots.nth(usize::from(call.who) % count).unwrap();
    let first = u64::try_from(letters.trimmed).unwrap();
    let kept = u64::try_from(letters.all.len()).unwrap() - first;
    let seq = match call.fault {
        0..16 => u64::from(call.seq % 8),
        _ => first + 1 + u64::from(call.seq) % kept,
    };
    (*slot, Seq(seq))
}

/// One of the users, or now and then nobody, or somebody who may be made later.
fn user(number: u8, state: &Reference) -> UserId {
    let count = state.users.len();
    if (200..240).contains(&number) {
        return state.next_user(&handle(number));
    }
    if number >= 240 || count == 0 {
        return UserId(u64::from(number % 4));
    }
    *state.users.keys().nth(usize::from(number) % count).unwrap()
}

fn group(number: u8, state: &Reference) -> GroupId {
    let count = state.groups.len().min(3);
    if number >= 240 || count == 0 {
        return GroupId(u64::from(number % 4));
    }
    *state
        .groups
        .keys()
        .nth(usize::from(number) % count)
        .unwrap()
}

fn assigned(mut command: Command, id: MessageId) -> Command {
    match &mut command {
        Command::Send(call) => call.message_id = id,
        Command::SendGroup(call) => call.message_id = id,
        Command::CreateGroup(call) => call.message_id = id,
        Command::JoinGroup(call) => call.message_id = id,
        Command::LeaveGroup(call) => call.message_id = id,
        Command::RequeueDeadLetter(call) => call.message_id = id,
        Command::RegisterUser(_)
        | Command::DropDeadLetter(_)
        | Command::MarkRead(_)
        | Command::AckCursor(_)
        | Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::Cut => {}
    }
    command
}

fn id_of(command: &Command) -> Uuid {
    match command {
        Command::Send(call) => call.client_msg_id,
        Command::SendGroup(call) => call.client_msg_id,
        Command::RegisterUser(call) => call.request_id,
        Command::CreateGroup(call) => call.request_id,
        Command::JoinGroup(call) => call.request_id,
        Command::LeaveGroup(call) => call.request_id,
        Command::MarkRead(call) => call.request_id,
        Command::AckCursor(call) => call.request_id,
        Command::RequeueDeadLetter(call) => call.request_id,
        Command::DropDeadLetter(call) => call.request_id,
        Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::Cut => Uuid::nil(),
    }
}
