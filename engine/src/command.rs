//! Commands, the calls of procedures; and what they are answered with.

pub(crate) mod encoding;
mod group;
mod lane;
mod letters;
mod marks;
mod meta;
mod send;
mod slot;
mod split;

use uuid::Uuid;

use crate::cluster_map::MapFault;
use crate::cluster_options::{ClusterOptions, OptionFault};
use crate::dead_letter::LetterStanding;
use crate::gateways::{GatewayFault, GatewayId};
use crate::handle::HandleFault;
use crate::hlc::Hlc;
use crate::id::{DeviceId, GroupId, MessageId, Seq, ShardId, SlotId, TimelineId, UserId};
use crate::item::LaneId;
use crate::row::MessageType;
use crate::slot_move::SlotStanding;
use crate::slot_moves::MoveStage;

pub use group::{CreateGroup, JoinGroup, LeaveGroup};
pub use lane::{AckLanes, Deliver};
pub use letters::{DropDeadLetter, RequeueDeadLetter};
pub use marks::{AckCursor, Conversation, MarkRead};
pub use meta::{LogReport, MetaCommand, PutGateway, PutNode};
pub use send::{Send, SendGroup};
pub use slot::MoveSlot;
pub use split::SplitShard;

/// One call of one procedure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A 1:1 message.
    Send(Send),
    /// A message to a group.
    SendGroup(SendGroup),
    /// A new user.
    RegisterUser(RegisterUser),
    /// A new group.
    CreateGroup(CreateGroup),
    /// A user joins a group.
    JoinGroup(JoinGroup),
    /// A user leaves a group.
    LeaveGroup(LeaveGroup),
    /// A user has read a conversation up to a seq.
    MarkRead(MarkRead),
    /// A device holds a timeline up to a seq.
    AckCursor(AckCursor),
    /// Items of a lane, by the relay of its source.
    Deliver(Deliver),
    /// How far destinations have got, by the relay of their sources.
    AckLanes(AckLanes),
    /// The limits that all replicas judge by.
    SetClusterOptions(SetClusterOptions),
    /// A change of the map of the cluster; for the meta shard only.
    Meta(MetaCommand),
    /// A step of a slot's move between shards.
    MoveSlot(MoveSlot),
    /// Some of the shard's slots become a new shard.
    SplitShard(SplitShard),
    /// A dead letter goes to its recipient after all.
    RequeueDeadLetter(RequeueDeadLetter),
    /// A dead letter is done with.
    DropDeadLetter(DropDeadLetter),
    /// Ends the memtable with this entry, so that all replicas can hash the same state.
    Cut,
}

impl Command {
    /// Gives a command that appends a new message its message id. `clock_ms` is the leader's
    /// clock. Called once, in log order, by the shard's proposer.
    pub fn assign(&mut self, hlc: &mut Hlc, clock_ms: u64) {
        match self {
            Command::Send(send) => send.message_id = hlc.next(clock_ms, send.shown),
            Command::SendGroup(send) => send.message_id = hlc.next(clock_ms, send.shown),
            Command::CreateGroup(call) => call.message_id = hlc.next(clock_ms, MessageId::ZERO),
            Command::JoinGroup(call) => call.message_id = hlc.next(clock_ms, MessageId::ZERO),
            Command::LeaveGroup(call) => call.message_id = hlc.next(clock_ms, MessageId::ZERO),
            Command::RequeueDeadLetter(call) => call.assign(hlc, clock_ms),
            Command::RegisterUser(_)
            | Command::MarkRead(_)
            | Command::AckCursor(_)
            | Command::Deliver(_)
            | Command::AckLanes(_)
            | Command::SetClusterOptions(_)
            | Command::Meta(_)
            | Command::MoveSlot(_)
            | Command::SplitShard(_)
            | Command::DropDeadLetter(_)
            | Command::Cut => {}
        }
    }
}

/// A new user under a handle that nobody has yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterUser {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Without `@`; judged in apply, see `handle.rs`.
    pub handle: String,
}

/// Sets what all replicas judge by, from the next command on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetClusterOptions {
    /// Their values; judged in apply.
    pub options: ClusterOptions,
    /// Only those that are absent: what every new leader of a new cluster proposes, and of one
    /// that is older than some option.
    pub if_absent: bool,
}

/// What a command is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The message is in its home timeline.
    Sent {
        /// The home timeline.
        timeline: TimelineId,
        /// The message's seq in it.
        seq: Seq,
        /// The message's id.
        message_id: MessageId,
    },
    /// The handle is taken by this new user.
    UserRegistered {
        /// The new user.
        user: UserId,
    },
    /// The group exists.
    GroupCreated {
        /// The new group.
        group: GroupId,
        /// Where its creator joined.
        seq: Seq,
    },
    /// The user is a member.
    Joined {
        /// First seq that the user may read.
        join_seq: Seq,
    },
    /// The user is no longer a member.
    Left {
        /// Last seq that the user may read.
        left_seq: Seq,
    },
    /// The read mark after the call.
    ReadMark {
        /// Never below the mark before.
        seq: Seq,
    },
    /// The cursor after the call.
    Cursor {
        /// Never below the cursor before.
        seq: Seq,
    },
    /// The options after the call.
    ClusterOptions {
        /// With `if_absent`, those that were there before it.
        options: ClusterOptions,
    },
    /// The memtable ends with this entry.
    Cut {
        /// The entry's index.
        index: u64,
    },
    /// The items of a lane that were due have taken effect.
    Delivered {
        /// Which lane.
        lane: LaneId,
        /// Its high-water mark: everything up to it has taken effect. Below `first_seq - 1` of
        /// the command, items are missing before it: send from `mark + 1` on.
        mark: u64,
        /// The item at `mark + 1` is damaged and changed nothing. Compare it with the outbox row,
        /// and send it again from there.
        corrupt: Option<u64>,
    },
    /// What the destinations have is no longer in the outboxes.
    LanesAcked,
    /// The letter is in its recipient's mailbox.
    DeadLetterRequeued {
        /// Its seq there.
        seq: Seq,
        /// Its id as the message that it is now.
        message_id: MessageId,
    },
    /// The letter is done with.
    DeadLetterDropped,
    /// The map of the cluster is as was asked.
    Map {
        /// The map's, after the call.
        epoch: u64,
    },
    /// A slot's move has got as far as was asked, or further.
    SlotMoved {
        /// The slot.
        slot: SlotId,
        /// Under which epoch.
        epoch: u64,
        /// It stands here.
        standing: SlotStanding,
    },
    /// The shard has been split as was asked.
    ShardSplit {
        /// The new shard.
        to: ShardId,
        /// The split's.
        epoch: u64,
    },
    /// No; nothing has changed.
    Refused(Refusal),
}

/// A reply that says no. It leaves no trace: the same command is judged anew when it comes again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This id was used by the same sender for the same destination, to ask something else.
    #[error("this id was used for something else")]
    IdReused,
    /// The id is older than the dedup floor.
    #[error("the id's time {id_ms} is before {floor_ms}")]
    IdExpired {
        /// The id's time.
        id_ms: u64,
        /// Ids from here on are accepted.
        floor_ms: u64,
    },
    /// The id is too far ahead of replicated time.
    #[error("the id's time {id_ms} is more than {ahead_max_ms} ms ahead of {now_ms}")]
    IdFromFuture {
        /// The id's time.
        id_ms: u64,
        /// Replicated time.
        now_ms: u64,
        /// How far ahead an id may be.
        ahead_max_ms: u64,
    },
    /// The content does not fit its crc.
    #[error("the content has crc {computed:08x}, the call says {claimed:08x}")]
    Corrupt {
        /// In the command.
        claimed: u32,
        /// Of its content.
        computed: u32,
    },
    /// The assigned message id is not above the shard's last. Try again, with the same id.
    #[error("lost a race against another leader")]
    Retry,
    /// No such user.
    #[error("there is no user {user}")]
    UnknownUser {
        /// As asked.
        user: UserId,
    },
    /// No such group.
    #[error("there is no group {group}")]
    UnknownGroup {
        /// As asked.
        group: GroupId,
    },
    /// The user is not in the group, or the timeline is someone else's.
    #[error("user {user} is not a member of {timeline}")]
    NotAMember {
        /// As asked.
        user: UserId,
        /// As asked.
        timeline: TimelineId,
    },
    /// The user is in the group.
    #[error("user {user} is a member of group {group} already")]
    AlreadyAMember {
        /// As asked.
        user: UserId,
        /// As asked.
        group: GroupId,
    },
    /// Someone has the handle.
    #[error("the handle belongs to user {user}")]
    HandleTaken {
        /// Who.
        user: UserId,
    },
    /// The handle breaks a rule.
    #[error("the handle is not valid: {fault}")]
    InvalidHandle {
        /// Which one.
        fault: HandleFault,
    },
    /// The group has as many members as it may.
    #[error("the group has {max} members, the most allowed")]
    GroupFull {
        /// The limit.
        max: u32,
    },
    /// The user's own list has as many groups as it may.
    #[error(
        "user {user} has {max} groups in its list, those that it has left included, \
         the most allowed (user_groups_max); this would be one more"
    )]
    TooManyGroups {
        /// Who would create or join one.
        user: UserId,
        /// The limit.
        max: u32,
    },
    /// As many devices of the user as may have a cursor in the timeline.
    #[error(
        "user {user} has cursors of {max} devices in {timeline}, the most allowed \
         (user_devices_max); {device:?} would be one more"
    )]
    TooManyDevices {
        /// Whose device.
        user: UserId,
        /// As asked.
        timeline: TimelineId,
        /// As asked.
        device: DeviceId,
        /// The limit.
        max: u32,
    },
    /// The timeline does not reach that far.
    #[error("seq {seq} is beyond the head {head}")]
    SeqBeyondHead {
        /// As asked.
        seq: Seq,
        /// Greatest seq of the timeline.
        head: Seq,
    },
    /// The body, or a group's name, is too long.
    #[error("the body has {len} bytes, {max} at most")]
    BodyTooLarge {
        /// Bytes given.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The slot that answers this command is in another shard. Ask there, with the same id.
    #[error("slot {slot} is not in this shard")]
    WrongShard {
        /// The slot.
        slot: SlotId,
    },
    /// The slot that answers this command has left this shard, or is about to. Ask there, with the same
    /// id; it may not have arrived yet, and then answers likewise.
    #[error("slot {slot} is in shard {shard} from epoch {epoch} on")]
    WrongOwner {
        /// The slot.
        slot: SlotId,
        /// Who has it.
        shard: ShardId,
        /// The move's.
        epoch: u64,
    },
    /// A step of a slot's move that is out of turn, or of an epoch that is over.
    #[error("slot {slot} is {standing} under epoch {epoch}")]
    SlotStands {
        /// The slot.
        slot: SlotId,
        /// Under which epoch it stands.
        epoch: u64,
        /// How.
        standing: SlotStanding,
    },
    /// A move that begins where it ends.
    #[error("slot {slot} cannot move from shard {shard} to itself")]
    MoveToItself {
        /// As asked.
        slot: SlotId,
        /// As asked.
        shard: ShardId,
    },
    /// A split into a shard that there is already.
    #[error("there is a shard {shard} already")]
    ShardExists {
        /// As asked.
        shard: ShardId,
    },
    /// A split that takes nothing, or everything.
    #[error(
        "a split takes {taken} of the shard's {held} slots: at least one must go, and one stay"
    )]
    SplitSize {
        /// As asked.
        taken: usize,
        /// What the shard has.
        held: usize,
    },
    /// A lane between slots that do not exist, or of another incarnation of one.
    #[error("there is no lane {lane}")]
    UnknownLane {
        /// As asked.
        lane: LaneId,
    },
    /// The destination acked more than the source has ever sent: the source lost state.
    #[error("lane {lane} was acked up to {acked}, but its source sent {sent}")]
    LaneAhead {
        /// Which one.
        lane: LaneId,
        /// As asked.
        acked: u64,
        /// Greatest lane seq that the source has allocated.
        sent: u64,
    },
    /// The shard has no cluster options yet, so nothing can be judged. Try again: its leader is
    /// about to set them.
    #[error("the shard has no cluster options yet")]
    NotReady,
    /// A cluster option outside its bounds.
    #[error("{fault}")]
    OptionOutOfBounds {
        /// Which one.
        fault: OptionFault,
    },
    /// There is no map of the cluster yet. Try again: the meta shard's leader is about to make it.
    #[error("there is no map of the cluster yet")]
    NoMap,
    /// The map would be none with it.
    #[error("{fault}")]
    InvalidMap {
        /// Why.
        fault: MapFault,
    },
    /// The id belongs to another directory.
    #[error("node id {node} belongs to another data directory: give this node an id of its own")]
    NodeTaken {
        /// The id.
        node: u64,
    },
    /// The node was removed.
    #[error("node {node} was removed from the cluster: its id is never used again")]
    NodeRemoved {
        /// The node.
        node: u64,
    },
    /// The node's directory is older than what the node has told.
    #[error(
        "the data directory of node {node} is an old copy: its log ends at batch {log_batch}, but the node has \
         already synced batch {recorded}. Start it as a new node, with a new id and an empty directory"
    )]
    StaleDisk {
        /// The node.
        node: u64,
        /// What its directory has.
        log_batch: u64,
        /// What the node has told before.
        recorded: u64,
    },
    /// No such node.
    #[error("there is no node {node} in the map")]
    UnknownNode {
        /// As asked.
        node: u64,
    },
    /// A shard has a replica there.
    #[error("node {node} holds a replica of shard {shard}: drain it first")]
    NodeInUse {
        /// The node.
        node: u64,
        /// The first such shard.
        shard: ShardId,
    },
    /// No such shard.
    #[error("there is no shard {shard} in the map")]
    UnknownShard {
        /// As asked.
        shard: ShardId,
    },
    /// The shard's row has changed since.
    #[error("shard {shard} is at epoch {found}, the call was made for {expected}")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// As asked.
        expected: u64,
        /// The shard's.
        found: u64,
    },
    /// Another move of the slot is under way, or this one has got too far for what was asked.
    #[error("slot {slot} is on its way to shard {to} under epoch {epoch}: {stage}")]
    SlotMoves {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
        /// Where to.
        to: ShardId,
        /// How far it has got.
        stage: MoveStage,
    },
    /// No such move is under way.
    #[error("slot {slot} is on no move under epoch {epoch}")]
    NoSuchMove {
        /// The slot.
        slot: SlotId,
        /// As asked.
        epoch: u64,
    },
    /// A split of the shard is under way: it is left alone meanwhile.
    #[error("shard {shard} splits into itself and shard {to} under epoch {epoch}")]
    ShardSplits {
        /// The shard.
        shard: ShardId,
        /// The new one.
        to: ShardId,
        /// The split's.
        epoch: u64,
    },
    /// A merge of the shard is under way: no slot comes to it, and neither end of the merge splits or merges.
    #[error("shard {shard} merges into shard {into} under epoch {epoch}")]
    ShardMerges {
        /// The shard that goes.
        shard: ShardId,
        /// Who gets its slots.
        into: ShardId,
        /// The merge's.
        epoch: u64,
    },
    /// A merge that ends where it begins.
    #[error("shard {shard} cannot merge into itself")]
    MergeIntoItself {
        /// As asked.
        shard: ShardId,
    },
    /// A shard is retired only when it is empty.
    #[error("shard {shard} has {slots} slots")]
    ShardHasSlots {
        /// The shard.
        shard: ShardId,
        /// How many.
        slots: usize,
    },
    /// A split while the shard's members change.
    #[error("the members of shard {shard} are changing: it does not split meanwhile")]
    ShardChanges {
        /// The shard.
        shard: ShardId,
    },
    /// It is no gateway.
    #[error("{fault}")]
    InvalidGateway {
        /// Why.
        fault: GatewayFault,
    },
    /// A later process has the id.
    #[error(
        "a gateway that started later has the id {gateway} (run {run}): give each gateway an id of its own (gateway.id)"
    )]
    GatewayTaken {
        /// The id.
        gateway: GatewayId,
        /// Of the process that has it.
        run: u64,
    },
    /// The registry is full.
    #[error("the cluster has {max} gateways, the most allowed; this would be one more")]
    TooManyGateways {
        /// The limit.
        max: u32,
    },
    /// No such dead letter, or not any more.
    #[error("{}", letters::unknown(*slot, *seq, *trim_point, *head))]
    UnknownDeadLetter {
        /// As asked.
        slot: SlotId,
        /// As asked.
        seq: Seq,
        /// Letters at or below it are no longer there.
        trim_point: Seq,
        /// The newest one.
        head: Seq,
    },
    /// The letter was requeued before, so it cannot be dropped; or the other way round.
    #[error("dead letter {seq} of slot {slot} was {standing} before")]
    DeadLetterResolved {
        /// As asked.
        slot: SlotId,
        /// As asked.
        seq: Seq,
        /// What became of it.
        standing: LetterStanding,
    },
    /// Only the store writes messages of this type.
    #[error("message type {kind} is not for clients", kind = .kind.0)]
    ReservedType {
        /// As asked.
        kind: MessageType,
    },
}
