//! What the engine should do, written as simply as possible: everything is kept, in ordered maps,
//! as the commands themselves. Shares no code with the engine but its public types.

use std::collections::BTreeMap;

use mailbox_engine::{
    AckCursor, ClusterOptions, Command, Conversation, CreateGroup, Flags, GroupId, HandleFault,
    JoinGroup, LeaveGroup, MarkRead, MessageId, MessageType, OptionFault, Refusal, RefusalCode,
    RegisterUser, Reply, Row, Send, SendGroup, Seq, SetClusterOptions, SlotId, Span, TimelineId,
    TimelineKind, UserId, content_crc, slot_of_handle, slot_of_owner,
};
use uuid::Uuid;

use crate::letters::Letters;

pub(crate) const SLOT_COUNT: u16 = 8;
pub(crate) const HOUR_MS: u64 = 3_600_000;
pub(crate) const AHEAD_MAX_MS: u64 = 600_000;
/// Least and greatest dedup window.
const WINDOW_BOUNDS_MS: (u64, u64) = (HOUR_MS, 31 * 24 * HOUR_MS);

/// The caller's id, the caller, what it names, and the slot that answers: the row lives there, so
/// that one id in calls which different slots answer is not one call.
type Identity = (Uuid, u64, String, u16);

/// The whole state of one shard that holds every slot.
#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) time_ms: u64,
    pub(crate) last_message_id: MessageId,
    pub(crate) options: Option<ClusterOptions>,
    floor_ms: u64,
    pub(crate) users: BTreeMap<UserId, String>,
    users_made: BTreeMap<u16, u64>,
    groups_made: BTreeMap<u16, u64>,
    pub(crate) timelines: BTreeMap<TimelineId, Vec<Row>>,
    pub(crate) groups: BTreeMap<GroupId, BTreeMap<UserId, Vec<Span>>>,
    pub(crate) read_marks: BTreeMap<(UserId, TimelineId), Seq>,
    pub(crate) cursors: BTreeMap<(TimelineId, UserId, String), Seq>,
    pub(crate) letters: BTreeMap<SlotId, Letters>,
    accepted: BTreeMap<Identity, (Command, Reply)>,
}

type Outcome = Result<Reply, Refusal>;

impl Reference {
    pub(crate) fn begin_entry(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.max(time_ms);
        self.raise_floor();
    }

    /// Where the window would have the floor, were it not there already.
    pub(crate) fn window_end_ms(&self) -> u64 {
        let window_ms = self.options.map_or(0, |options| options.dedup_window_ms);
        self.time_ms.saturating_sub(window_ms) / HOUR_MS * HOUR_MS
    }

    fn raise_floor(&mut self) {
        if self.options.is_some() {
            self.floor_ms = self.floor_ms.max(self.window_end_ms());
        }
    }

    fn set_options(&mut self, call: &SetClusterOptions) -> Reply {
        let mut options = call.options;
        if let (true, Some(present)) = (call.if_absent, self.options) {
            options = ClusterOptions {
                user_limits: present.user_limits.or(options.user_limits),
                dead_letters_max: present.dead_letters_max.or(options.dead_letters_max),
                ..present
            };
        }
        let (min, max) = WINDOW_BOUNDS_MS;
        if !(min..=max).contains(&options.dedup_window_ms) {
            let fault = OptionFault {
                option: "dedup_window_ms",
                value: options.dedup_window_ms,
                min,
                max,
            };
            return Reply::Refused(Refusal::OptionOutOfBounds { fault });
        }
        self.options = Some(options);
        self.raise_floor();
        Reply::ClusterOptions { options }
    }

    pub(crate) fn apply(&mut self, command: &Command, index: u64) -> Reply {
        match command {
            Command::Cut => return Reply::Cut { index },
            Command::SetClusterOptions(call) => return self.set_options(call),
            _ => {}
        }
        self.judge(command).unwrap_or_else(Reply::Refused)
    }

    fn judge(&mut self, command: &Command) -> Outcome {
        let options = self.options.ok_or(Refusal::NotReady)?;
        intact(command)?;
        let identity = identity(command);
        let id_ms = u64::try_from(identity.0.as_u128() >> 80).unwrap();
        let floor_ms = self.floor_ms;
        if id_ms < floor_ms {
            return Err(Refusal::IdExpired { id_ms, floor_ms });
        }
        let asked = asked(command);
        if let Some((before, reply)) = self.accepted.get(&identity) {
            return if *before == asked {
                Ok(reply.clone())
            } else {
                Err(Refusal::IdReused)
            };
        }
        let now_ms = self.time_ms;
        if id_ms > now_ms + AHEAD_MAX_MS {
            return Err(Refusal::IdFromFuture {
                id_ms,
                now_ms,
                ahead_max_ms: AHEAD_MAX_MS,
            });
        }
        let reply = self.run(command, &options)?;
        self.accepted.insert(identity, (asked, reply.clone()));
        Ok(reply)
    }

    fn run(&mut self, command: &Command, options: &ClusterOptions) -> Outcome {
        match command {
            Command::Send(call) => self.send(call, options),
            Command::SendGroup(call) => self.send_group(call, options),
            Command::RegisterUser(call) => self.register(call),
            Command::CreateGroup(call) => self.create(call, options),
            Command::JoinGroup(call) => self.join(call, options),
            Command::LeaveGroup(call) => self.leave(call),
            Command::MarkRead(call) => self.mark_read(call),
            Command::AckCursor(call) => self.ack_cursor(call, options),
            Command::RequeueDeadLetter(call) => self.requeue(call),
            Command::DropDeadLetter(call) => self.drop_letter(call),
            Command::Deliver(_)
            | Command::AckLanes(_)
            | Command::SetClusterOptions(_)
            | Command::Meta(_)
            | Command::MoveSlot(_)
            | Command::SplitShard(_)
            | Command::Cut => unreachable!("has no id"),
        }
    }

    pub(crate) fn head(&self, timeline: TimelineId) -> Seq {
        Seq(self.timelines.get(&timeline).map_or(0, Vec::len) as u64)
    }

    pub(crate) fn append(&mut self, timeline: TimelineId, row: Row) -> Seq {
        let seq = self.head(timeline).next();
        self.timelines
            .entry(timeline)
            .or_default()
            .push(Row { seq, ..row });
        seq
    }

    /// Who would be made by registering a handle, if nobody had it.
    pub(crate) fn next_user(&self, handle: &str) -> UserId {
        let slot = slot_of_handle(handle, SLOT_COUNT).0;
        let made = self.users_made.get(&slot).copied().unwrap_or_default();
        UserId((made + 1) << 16 | u64::from(slot))
    }

    pub(crate) fn user(&self, user: UserId) -> Result<(), Refusal> {
        if self.users.contains_key(&user) {
            Ok(())
        } else {
            Err(Refusal::UnknownUser { user })
        }
    }

    pub(crate) fn claim(&mut self, message_id: MessageId) -> Result<(), Refusal> {
        if message_id <= self.last_message_id {
            return Err(Refusal::Retry);
        }
        self.last_message_id = message_id;
        Ok(())
    }

    fn send(&mut self, call: &Send, options: &ClusterOptions) -> Outcome {
        client_may_write(call.kind, call.body.len(), options)?;
        self.user(call.sender)?;
        self.claim(call.message_id)?;
        let row = Row {
            seq: Seq::ZERO,
            message_id: call.message_id,
            sender: call.sender,
            recipient: call.recipient,
            sent_at_ms: self.time_ms,
            kind: call.kind,
            flags: call.flags.only(Flags::CLIENT),
            client_msg_id: call.client_msg_id,
            body: call.body.clone(),
            refused: None,
        };
        let timeline = call.sender.mailbox();
        let flags = row.flags.with(Flags::OUTGOING);
        let seq = self.append(
            timeline,
            Row {
                flags,
                ..row.clone()
            },
        );
        if !self.users.contains_key(&call.recipient) {
            let refusal = Row {
                kind: MessageType::REFUSAL,
                flags: Flags::OUTGOING,
                client_msg_id: Uuid::nil(),
                body: bytes::Bytes::new(),
                refused: Some((seq, RefusalCode::UnknownUser)),
                ..row.clone()
            };
            self.append(timeline, refusal);
            self.keep_letter(row, seq, options);
        } else if call.recipient != call.sender {
            self.append(call.recipient.mailbox(), row);
        }
        Ok(Reply::Sent {
            timeline,
            seq,
            message_id: call.message_id,
        })
    }

    fn is_member(&self, group: GroupId, user: UserId) -> bool {
        let spans = self
            .groups
            .get(&group)
            .and_then(|members| members.get(&user));
        spans
            .and_then(|spans| spans.last())
            .is_some_and(|span| span.left == Seq::ZERO)
    }

    fn group(&self, group: GroupId) -> Result<(), Refusal> {
        if self.groups.contains_key(&group) {
            Ok(())
        } else {
            Err(Refusal::UnknownGroup { group })
        }
    }

    fn send_group(&mut self, call: &SendGroup, options: &ClusterOptions) -> Outcome {
        client_may_write(call.kind, call.body.len(), options)?;
        self.group(call.group)?;
        let timeline = call.group.timeline();
        if !self.is_member(call.group, call.sender) {
            return Err(Refusal::NotAMember {
                user: call.sender,
                timeline,
            });
        }
        self.claim(call.message_id)?;
        let row = Row {
            seq: Seq::ZERO,
            message_id: call.message_id,
            sender: call.sender,
            recipient: UserId(0),
            sent_at_ms: self.time_ms,
            kind: call.kind,
            flags: call.flags.only(Flags::CLIENT),
            client_msg_id: call.client_msg_id,
            body: call.body.clone(),
            refused: None,
        };
        let seq = self.append(timeline, row);
        Ok(Reply::Sent {
            timeline,
            seq,
            message_id: call.message_id,
        })
    }

    fn register(&mut self, call: &RegisterUser) -> Outcome {
        if let Some(fault) = handle_fault(&call.handle) {
            return Err(Refusal::InvalidHandle { fault });
        }
        let taken = self
            .users
            .iter()
            .find(|(_, handle)| **handle == call.handle);
        if let Some((user, _)) = taken {
            return Err(Refusal::HandleTaken { user: *user });
        }
        let slot = slot_of_handle(&call.handle, SLOT_COUNT).0;
        let made = self.users_made.entry(slot).or_default();
        *made += 1;
        let user = UserId(*made << 16 | u64::from(slot));
        self.users.insert(user, call.handle.clone());
        Ok(Reply::UserRegistered { user })
    }

    fn store_row(&self, message_id: MessageId, user: UserId, kind: MessageType) -> Row {
        Row {
            seq: Seq::ZERO,
            message_id,
            sender: user,
            recipient: UserId(0),
            sent_at_ms: self.time_ms,
            kind,
            flags: Flags::default(),
            client_msg_id: Uuid::nil(),
            body: bytes::Bytes::new(),
            refused: None,
        }
    }

    fn create(&mut self, call: &CreateGroup, options: &ClusterOptions) -> Outcome {
        client_may_write(MessageType::TEXT, call.name.len(), options)?;
        self.user(call.creator)?;
        self.room_for_group(call.creator, options)?;
        self.claim(call.message_id)?;
        let slot = slot_of_owner(call.creator.0, SLOT_COUNT).0;
        let made = self.groups_made.entry(slot).or_default();
        *made += 1;
        let group = GroupId(*made << 16 | u64::from(slot));
        let row = self.store_row(call.message_id, call.creator, MessageType::GROUP_CREATED);
        let body = call.name.clone().into();
        let seq = self.append(group.timeline(), Row { body, ..row });
        let spans = vec![Span {
            join: seq,
            left: Seq::ZERO,
        }];
        self.groups
            .insert(group, BTreeMap::from([(call.creator, spans)]));
        Ok(Reply::GroupCreated { group, seq })
    }

    fn join(&mut self, call: &JoinGroup, options: &ClusterOptions) -> Outcome {
        let (group, user) = (call.group, call.user);
        self.group(group)?;
        self.user(user)?;
        if self.is_member(group, user) {
            return Err(Refusal::AlreadyAMember { user, group });
        }
        let members = self.groups[&group]
            .keys()
            .filter(|user| self.is_member(group, **user));
        let max = options.group_members_max;
        if members.count() >= max as usize {
            return Err(Refusal::GroupFull { max });
        }
        if !self.groups[&group].contains_key(&user) {
            self.room_for_group(user, options)?;
        }
        self.claim(call.message_id)?;
        let row = self.store_row(call.message_id, user, MessageType::MEMBER_JOINED);
        let join = self.append(group.timeline(), row);
        let members = self.groups.get_mut(&group).unwrap();
        members.entry(user).or_default().push(Span {
            join,
            left: Seq::ZERO,
        });
        Ok(Reply::Joined { join_seq: join })
    }

    fn leave(&mut self, call: &LeaveGroup) -> Outcome {
        let (group, user) = (call.group, call.user);
        self.group(group)?;
        if !self.is_member(group, user) {
            return Err(Refusal::NotAMember {
                user,
                timeline: group.timeline(),
            });
        }
        self.claim(call.message_id)?;
        let row = self.store_row(call.message_id, user, MessageType::MEMBER_LEFT);
        let left = self.append(group.timeline(), row);
        let spans = self.groups.get_mut(&group).unwrap().get_mut(&user).unwrap();
        spans.last_mut().unwrap().left = left;
        Ok(Reply::Left { left_seq: left })
    }

    /// The user may read (some of) the timeline.
    fn reader(&self, user: UserId, timeline: TimelineId) -> Result<(), Refusal> {
        if timeline.kind == TimelineKind::Mailbox {
            return if timeline == user.mailbox() {
                self.user(user)
            } else {
                Err(Refusal::NotAMember { user, timeline })
            };
        }
        let group = GroupId(timeline.owner);
        self.group(group)?;
        if self.groups[&group].contains_key(&user) {
            return Ok(());
        }
        Err(Refusal::NotAMember { user, timeline })
    }

    fn within(&self, timeline: TimelineId, seq: Seq) -> Result<(), Refusal> {
        let head = self.head(timeline);
        if seq <= head {
            Ok(())
        } else {
            Err(Refusal::SeqBeyondHead { seq, head })
        }
    }

    fn mark_read(&mut self, call: &MarkRead) -> Outcome {
        let (timeline, named) = match call.conversation {
            Conversation::Peer(peer) => {
                self.user(call.user)?;
                self.user(peer)?;
                (call.user.mailbox(), peer.mailbox())
            }
            Conversation::Group(group) => {
                self.reader(call.user, group.timeline())?;
                (group.timeline(), group.timeline())
            }
        };
        self.within(timeline, call.seq)?;
        let mark = self.read_marks.entry((call.user, named)).or_default();
        *mark = call.seq.max(*mark);
        Ok(Reply::ReadMark { seq: *mark })
    }

    fn room_for_group(&self, user: UserId, options: &ClusterOptions) -> Result<(), Refusal> {
        let Some(limits) = options.user_limits else {
            return Ok(());
        };
        let max = limits.groups_max;
        let listed = self.groups.values();
        let listed = listed.filter(|members| members.contains_key(&user)).count();
        if listed < max as usize {
            Ok(())
        } else {
            Err(Refusal::TooManyGroups { user, max })
        }
    }

    fn ack_cursor(&mut self, call: &AckCursor, options: &ClusterOptions) -> Outcome {
        self.reader(call.user, call.timeline)?;
        self.within(call.timeline, call.seq)?;
        let key = (call.timeline, call.user, call.device.as_str().to_owned());
        if call.seq == Seq::ZERO && !self.cursors.contains_key(&key) {
            return Ok(Reply::Cursor { seq: Seq::ZERO });
        }
        if let (false, Some(limits)) = (self.cursors.contains_key(&key), options.user_limits) {
            let max = limits.devices_max;
            let begun = self.cursors.keys();
            let begun = begun.filter(|(of, user, _)| (*of, *user) == (call.timeline, call.user));
            if begun.count() >= max as usize {
                return Err(Refusal::TooManyDevices {
                    user: call.user,
                    timeline: call.timeline,
                    device: call.device.clone(),
                    max,
                });
            }
        }
        let cursor = self.cursors.entry(key).or_default();
        *cursor = call.seq.max(*cursor);
        Ok(Reply::Cursor { seq: *cursor })
    }
}

fn intact(command: &Command) -> Result<(), Refusal> {
    let (claimed, computed) = match command {
        Command::Send(call) => (
            call.content_crc,
            content_crc(call.client_msg_id, call.kind, &call.body),
        ),
        Command::SendGroup(call) => (
            call.content_crc,
            content_crc(call.client_msg_id, call.kind, &call.body),
        ),
        _ => return Ok(()),
    };
    if claimed == computed {
        Ok(())
    } else {
        Err(Refusal::Corrupt { claimed, computed })
    }
}

fn client_may_write(
    kind: MessageType,
    len: usize,
    options: &ClusterOptions,
) -> Result<(), Refusal> {
    if (16..32).contains(&kind.0) {
        return Err(Refusal::ReservedType { kind });
    }
    let max = options.body_bytes_max as usize;
    if len <= max {
        Ok(())
    } else {
        Err(Refusal::BodyTooLarge { len, max })
    }
}

fn handle_fault(handle: &str) -> Option<HandleFault> {
    match handle {
        "" => Some(HandleFault::Empty),
        _ if handle.len() > 64 => Some(HandleFault::TooLong {
            len: handle.len(),
            max: 64,
        }),
        _ if handle.contains('\n') => Some(HandleFault::Control),
        _ if handle.starts_with(' ') => Some(HandleFault::OuterSpace),
        _ if handle.contains('@') => Some(HandleFault::At),
        _ => None,
    }
}

fn letters_of(id: Uuid, slot: SlotId) -> Identity {
    (id, 0, "dead letters".to_owned(), slot.0)
}

/// What makes two calls the same one.
fn identity(command: &Command) -> Identity {
    let of = |id, user: UserId, named: TimelineId, home: TimelineId| {
        let slot = slot_of_owner(home.owner, SLOT_COUNT).0;
        (id, user.0, named.to_string(), slot)
    };
    match command {
        Command::Send(call) => {
            let (named, home) = (call.recipient.mailbox(), call.sender.mailbox());
            of(call.client_msg_id, call.sender, named, home)
        }
        Command::SendGroup(call) => {
            let group = call.group.timeline();
            of(call.client_msg_id, call.sender, group, group)
        }
        Command::RegisterUser(call) => {
            let slot = slot_of_handle(&call.handle, SLOT_COUNT).0;
            let handle = format!("handle:{}", call.handle);
            (call.request_id, 0, handle, slot)
        }
        Command::CreateGroup(call) => {
            let slot = slot_of_owner(call.creator.0, SLOT_COUNT).0;
            (call.request_id, call.creator.0, "new".to_owned(), slot)
        }
        Command::JoinGroup(call) => {
            let group = call.group.timeline();
            of(call.request_id, call.user, group, group)
        }
        Command::LeaveGroup(call) => {
            let group = call.group.timeline();
            of(call.request_id, call.user, group, group)
        }
        Command::MarkRead(call) => {
            let (named, home) = match call.conversation {
                Conversation::Peer(peer) => (peer.mailbox(), call.user.mailbox()),
                Conversation::Group(group) => (group.timeline(), group.timeline()),
            };
            of(call.request_id, call.user, named, home)
        }
        Command::AckCursor(call) => of(call.request_id, call.user, call.timeline, call.timeline),
        Command::RequeueDeadLetter(call) => letters_of(call.request_id, call.slot),
        Command::DropDeadLetter(call) => letters_of(call.request_id, call.slot),
        Command::Deliver(_)
        | Command::AckLanes(_)
        | Command::SetClusterOptions(_)
        | Command::Meta(_)
        | Command::MoveSlot(_)
        | Command::SplitShard(_)
        | Command::Cut => unreachable!("has no id"),
    }
}

/// The command without what a leader, a gateway or a retry adds or changes.
fn asked(command: &Command) -> Command {
    let mut asked = command.clone();
    match &mut asked {
        Command::Send(call) => {
            call.message_id = MessageId::ZERO;
            call.shown = MessageId::ZERO;
        }
        Command::SendGroup(call) => {
            call.message_id = MessageId::ZERO;
            call.shown = MessageId::ZERO;
        }
        Command::CreateGroup(call) => call.message_id = MessageId::ZERO,
        Command::JoinGroup(call) => call.message_id = MessageId::ZERO,
        Command::LeaveGroup(call) => call.message_id = MessageId::ZERO,
        Command::RequeueDeadLetter(call) => call.message_id = MessageId::ZERO,
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
    asked
}
