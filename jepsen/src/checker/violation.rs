//! The ways in which a promise can be broken.

use crate::history::{Acked, SendId, Source, Timeline};
use crate::register::Register;

/// One broken promise, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// C1: an acked message is not in its home timeline.
    #[error("C1: {id} was acked at {timeline} {seq} and is not there")]
    Lost {
        /// The send.
        id: SendId,
        /// The home timeline.
        timeline: Timeline,
        /// The acked seq.
        seq: u64,
    },
    /// C1: an acked message is elsewhere in its home timeline.
    #[error("C1: {id} was acked at {timeline} {seq} and is at {found}")]
    Misplaced {
        /// The send.
        id: SendId,
        /// The home timeline.
        timeline: Timeline,
        /// The acked seq.
        seq: u64,
        /// Where it is.
        found: u64,
    },
    /// C1: the ack named another timeline than the message's home, or another message id.
    #[error("C1: the ack of {id} names {timeline} {seq}, which is not what was stored for it")]
    WrongAck {
        /// The send.
        id: SendId,
        /// The timeline of the ack.
        timeline: Timeline,
        /// The seq of the ack.
        seq: u64,
    },
    /// C2: a message is there more than once.
    #[error("C2: {id} is in {timeline} at {first} and again at {second}")]
    Doubled {
        /// The send.
        id: SendId,
        /// Where.
        timeline: Timeline,
        /// Once.
        first: u64,
        /// Twice.
        second: u64,
    },
    /// C2: a message that nobody sent there, or that was refused.
    #[error("C2: {id} is in {timeline} at {seq}, but nobody sent it there with success")]
    Phantom {
        /// The message.
        id: SendId,
        /// Where.
        timeline: Timeline,
        /// At which seq.
        seq: u64,
    },
    /// C2: an accepted 1:1 message reached its recipient neither as a row nor as a refusal.
    #[error("C2: {id} was accepted and never reached {recipient}")]
    NotDelivered {
        /// The send.
        id: SendId,
        /// The recipient's mailbox.
        recipient: Timeline,
    },
    /// C2: a delivered message was refused as well, or refused twice.
    #[error("C2: {id} of {timeline} {seq} was refused {refusals} times and delivered {deliveries}")]
    RefusedAndMore {
        /// The send.
        id: SendId,
        /// The home timeline.
        timeline: Timeline,
        /// The home seq.
        seq: u64,
        /// How often it was refused.
        refusals: usize,
        /// How often it was delivered.
        deliveries: usize,
    },
    /// C2: a message was delivered whose home timeline does not have it.
    #[error("C2: {id} reached {recipient} but is not in its sender's mailbox")]
    NotAtHome {
        /// The send.
        id: SendId,
        /// The recipient's mailbox.
        recipient: Timeline,
    },
    /// C2: a row does not say what was sent, by whom and to whom.
    #[error("C2: {id} in {timeline} at {seq} is not what was sent")]
    Changed {
        /// The send.
        id: SendId,
        /// Where.
        timeline: Timeline,
        /// At which seq.
        seq: u64,
    },
    /// C2: a repeat got another answer than the first.
    #[error("C2: {id} was acked as {first:?} and, repeated, as {repeat:?}")]
    RepeatDiffers {
        /// The send.
        id: SendId,
        /// The first answer.
        first: Acked,
        /// A later one.
        repeat: Acked,
    },
    /// C2: a repeat of an accepted send got no reply but a refusal.
    #[error("C2: {id} was accepted and, repeated, refused as {code}")]
    RepeatRefused {
        /// The send.
        id: SendId,
        /// The refusal.
        code: String,
    },
    /// C2: something else under the identity of an acked send was not refused as that.
    #[error(
        "C2: something else was sent under {id}, which was acked, and answered by {answer}, not IdReused"
    )]
    Reuse {
        /// The send.
        id: SendId,
        /// The answer: a code, or an ack.
        answer: String,
    },
    /// C3: rows do not follow each other.
    #[error("C3: a read of {timeline} shows {found} where {expected} was due")]
    NotDense {
        /// The timeline.
        timeline: Timeline,
        /// The seq due.
        expected: u64,
        /// The seq found, or the head where rows are missing below it.
        found: u64,
    },
    /// C3: a seq has held different messages.
    #[error("C3: {timeline} {seq} was read with different messages")]
    Reused {
        /// The timeline.
        timeline: Timeline,
        /// The seq.
        seq: u64,
    },
    /// C3: acked before the other began, and yet after it in the timeline.
    #[error("C3: in {timeline}, {later} began after seq {acked} had been acked and got {seq}")]
    AgainstRealTime {
        /// The timeline.
        timeline: Timeline,
        /// The send that got a seq too small.
        later: SendId,
        /// Its seq.
        seq: u64,
        /// The greatest seq acked before it began.
        acked: u64,
    },
    /// C6: a read through the leader does not show what was acked before it began.
    #[error("C6: a read of {timeline} ended at {head} though {acked} had been acked before")]
    StaleRead {
        /// The timeline.
        timeline: Timeline,
        /// The head read.
        head: u64,
        /// The greatest seq acked before.
        acked: u64,
    },
    /// C6: a read ended below an earlier one.
    #[error("C6: a read of {timeline} ended at {head} after one that ended at {before}")]
    ReadWentBack {
        /// The timeline.
        timeline: Timeline,
        /// The head read.
        head: u64,
        /// The head of a read that ended before this one began.
        before: u64,
    },
    /// C6: a read shows a message from the future.
    #[error("C6: a read of {timeline} shows {id}, which began after the read had ended")]
    ReadFromFuture {
        /// The timeline.
        timeline: Timeline,
        /// The send.
        id: SendId,
    },
    /// C4: two messages of one sender reached one recipient in the other order.
    #[error("C4: {later} stands before {earlier} in {recipient}, accepted in the other order")]
    OutOfOrder {
        /// Accepted first.
        earlier: SendId,
        /// Accepted later.
        later: SendId,
        /// The recipient's mailbox.
        recipient: Timeline,
    },
    /// C5: a device's pages left out a message, or gave one again.
    #[error("C5: {device} of {user} was given {timeline} {found} where {expected} was due")]
    SyncSkips {
        /// Whose device.
        user: u64,
        /// Which.
        device: String,
        /// The timeline.
        timeline: Timeline,
        /// The seq due.
        expected: u64,
        /// The seq given.
        found: u64,
    },
    /// C5: a device was told that there is no more before it had all that was there.
    #[error("C5: {device} of {user} was told to be done at {timeline} {at}, and {head} was there")]
    SyncEndsEarly {
        /// Whose device.
        user: u64,
        /// Which.
        device: String,
        /// The timeline.
        timeline: Timeline,
        /// The greatest seq given.
        at: u64,
        /// The greatest seq known to be there before it asked.
        head: u64,
    },
    /// C5: a device was given another message than is there.
    #[error("C5: {device} of {user} was given another message than {timeline} {seq}")]
    SyncDiffers {
        /// Whose device.
        user: u64,
        /// Which.
        device: String,
        /// The timeline.
        timeline: Timeline,
        /// The seq.
        seq: u64,
    },
    /// C5: a device was given a message that its user may not read.
    #[error("C5: {device} of {user} was given a message of {timeline}")]
    SyncedForeign {
        /// Whose device.
        user: u64,
        /// Which.
        device: String,
        /// The timeline.
        timeline: Timeline,
    },
    /// C5: a good sync key was called unusable.
    #[error("C5: {device} of {user} had to begin again, though its key was good")]
    NeedlessResync {
        /// Whose device.
        user: u64,
        /// Which.
        device: String,
    },
    /// C3: two replicas show different rows at the end.
    #[error("C3: {source_a:?} and {source_b:?} differ in {timeline} from seq {seq} on")]
    Disagree {
        /// The timeline.
        timeline: Timeline,
        /// One.
        source_a: Source,
        /// The other.
        source_b: Source,
        /// The first difference.
        seq: u64,
    },
    /// C3: two replicas of a shard have different state hashes at one index.
    #[error(
        "C3: at index {index} of shard {shard}, the state of node {node} differs from that of node {other}"
    )]
    HashesDiffer {
        /// The shard.
        shard: u32,
        /// The index.
        index: u64,
        /// One.
        node: u64,
        /// The other.
        other: u64,
    },
    /// C6: calls to a register fit no order.
    #[error("C6: the {calls} calls to {register} and their answers fit no order")]
    NoOrder {
        /// Which.
        register: Register,
        /// How many.
        calls: usize,
    },
    /// C2: two handles are one user's.
    #[error("C2: user {user} has {first} and {second}")]
    TwoHandles {
        /// Whose.
        user: u64,
        /// One.
        first: Register,
        /// The other.
        second: Register,
    },
    /// C6: a read lacked what was acked longer before it than it may.
    #[error(
        "C6: a read of {timeline} that may lack what was acked in the last {max_staleness_ms} ms showed head {head}, \
         though {acked} had been acked before"
    )]
    TooStale {
        /// The timeline.
        timeline: Timeline,
        /// What was asked for.
        max_staleness_ms: u32,
        /// What it showed.
        head: u64,
        /// What it had to show.
        acked: u64,
    },
}
