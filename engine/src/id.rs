//! Ids and counters of the store, each its own type, so that none passes for another.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A user: `counter << 16 | directory slot of the handle`, unique in the cluster, never 0.
    UserId(u64)
}
number! {
    /// A group: `counter << 16 | slot of its creator`, unique in the cluster, never 0.
    GroupId(u64)
}
number! {
    /// A message's position in its timeline: dense from 1. `Seq::ZERO` means nothing yet.
    Seq(u64)
}
number! {
    /// Hybrid logical clock reading, `milliseconds << 16 | counter`: unique and rising in a shard.
    MessageId(u64)
}
number! {
    /// A fixed hash bucket of owner ids, below the cluster's slot count.
    SlotId(u16)
}
number! {
    /// A set of slots that is replicated together.
    ShardId(u32)
}
number! {
    /// Node-local name of one (shard, slot) replica's rows; never reused. 0 belongs to the node.
    RangeId(u32)
}

impl Seq {
    /// Before the first message.
    pub const ZERO: Seq = Seq(0);

    /// The position after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl MessageId {
    /// Not assigned yet.
    pub const ZERO: MessageId = MessageId(0);

    /// The clock part, in milliseconds since the Unix epoch.
    pub fn ms(self) -> u64 {
        self.0 >> 16
    }
}

impl ShardId {
    /// The meta shard: holds the map of the cluster, and no slot of any owner.
    pub const META: ShardId = ShardId(0);
}

impl SlotId {
    /// Under which the meta shard keeps its rows. No owner's slot: that one is in another shard.
    pub const META: SlotId = SlotId(0);

    /// What could not be delivered in this slot.
    pub fn dead_letters(self) -> TimelineId {
        TimelineId {
            kind: TimelineKind::DeadLetters,
            owner: u64::from(self.0),
        }
    }
}

impl RangeId {
    /// The rows of the node itself: they never travel and are not hashed.
    pub const NODE: RangeId = RangeId(0);
}

impl UserId {
    /// The id of the `counter`-th user of a directory slot.
    pub fn allocated(counter: u64, slot: SlotId) -> UserId {
        UserId(counter << 16 | u64::from(slot.0))
    }

    /// This user's mailbox.
    pub fn mailbox(self) -> TimelineId {
        TimelineId {
            kind: TimelineKind::Mailbox,
            owner: self.0,
        }
    }
}

impl GroupId {
    /// The id of the `counter`-th group of a creator's slot.
    pub fn allocated(counter: u64, slot: SlotId) -> GroupId {
        GroupId(counter << 16 | u64::from(slot.0))
    }

    /// This group's timeline.
    pub fn timeline(self) -> TimelineId {
        TimelineId {
            kind: TimelineKind::Group,
            owner: self.0,
        }
    }
}

/// What kind of owner a timeline has. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TimelineKind {
    /// A user's mailbox.
    Mailbox = 1,
    /// A group's timeline.
    Group = 2,
    /// What could not be delivered in a slot, which owns it; for operators only. (3 is what a handle has
    /// among the destinations of commands, see `key/dedup.rs`.)
    DeadLetters = 4,
}

impl TimelineKind {
    /// The kind with this stored number.
    pub fn from_u8(number: u8) -> Option<TimelineKind> {
        match number {
            1 => Some(TimelineKind::Mailbox),
            2 => Some(TimelineKind::Group),
            4 => Some(TimelineKind::DeadLetters),
            _ => None,
        }
    }
}

/// Names one timeline. Its text form is `mailbox:17`, `group:65` or `dead-letters:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId {
    /// What kind of owner it has.
    pub kind: TimelineKind,
    /// The owner's user or group id, or the slot's number.
    pub owner: u64,
}

impl TimelineId {
    /// The slot that holds this timeline.
    pub fn slot(self, slot_count: u16) -> SlotId {
        match self.kind {
            TimelineKind::Mailbox | TimelineKind::Group => slot_of_owner(self.owner, slot_count),
            // A slot is not hashed: what it owns is its own. One that cannot be is in no shard.
            TimelineKind::DeadLetters => SlotId(u16::try_from(self.owner).unwrap_or(u16::MAX)),
        }
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            TimelineKind::Mailbox => "mailbox",
            TimelineKind::Group => "group",
            TimelineKind::DeadLetters => "dead-letters",
        };
        write!(f, "{kind}:{}", self.owner)
    }
}

/// Text that names no timeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a timeline: expected `mailbox:<user id>`, `group:<group id>` or `dead-letters:<slot>`"
)]
pub struct NotATimeline {
    /// What was given.
    pub text: String,
}

impl FromStr for TimelineId {
    type Err = NotATimeline;

    fn from_str(text: &str) -> Result<TimelineId, NotATimeline> {
        let not_a_timeline = || NotATimeline {
            text: text.to_owned(),
        };
        let (kind, owner) = text.split_once(':').ok_or_else(not_a_timeline)?;
        let kind = match kind {
            "mailbox" => TimelineKind::Mailbox,
            "group" => TimelineKind::Group,
            "dead-letters" => TimelineKind::DeadLetters,
            _ => return Err(not_a_timeline()),
        };
        let owner = owner.parse().map_err(|_| not_a_timeline())?;
        Ok(TimelineId { kind, owner })
    }
}

/// A device name that is too short or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device name has 1 to {max} bytes, this one has {len}", max = DeviceId::BYTES_MAX)]
pub struct InvalidDevice {
    /// Bytes that were given.
    pub len: usize,
}

/// One of a user's devices, named by the user: 1 to 64 bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Box<str>);

impl DeviceId {
    /// Longest name, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks the length of a name.
    ///
    /// # Errors
    /// [`InvalidDevice`] for an empty name or one over [`DeviceId::BYTES_MAX`] bytes.
    pub fn new(name: &str) -> Result<DeviceId, InvalidDevice> {
        if name.is_empty() || name.len() > DeviceId::BYTES_MAX {
            return Err(InvalidDevice { len: name.len() });
        }
        Ok(DeviceId(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The slot of an owner (a user or group id). The formula is part of the format.
pub fn slot_of_owner(owner: u64, slot_count: u16) -> SlotId {
    slot_of_bytes(&owner.to_be_bytes(), slot_count)
}

/// The directory slot of a handle. The formula is part of the format.
pub fn slot_of_handle(handle: &str, slot_count: u16) -> SlotId {
    slot_of_bytes(handle.as_bytes(), slot_count)
}

fn slot_of_bytes(bytes: &[u8], slot_count: u16) -> SlotId {
    let slot = xxh3_64(bytes) % u64::from(slot_count);
    SlotId(u16::try_from(slot).expect("a remainder of a u16 is a u16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_have_a_text_form() {
        for (text, timeline) in [
            ("mailbox:17", UserId(17).mailbox()),
            ("group:65", GroupId(65).timeline()),
            ("dead-letters:3", SlotId(3).dead_letters()),
        ] {
            assert_eq!(timeline.to_string(), text);
            assert_eq!(text.parse(), Ok(timeline));
        }
        for text in [
            "",
            "mailbox",
            "mailbox:",
            "mailbox:-1",
            "feed:1",
            "group:1:2",
        ] {
            assert!(text.parse::<TimelineId>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_slot_formula_never_changes() {
        assert_eq!(slot_of_owner(65536, 1024), SlotId(118));
        assert_eq!(slot_of_handle("alice", 1024), SlotId(688));
        assert_eq!(SlotId(9).dead_letters().slot(1024), SlotId(9));
    }

    #[test]
    fn devices_are_bounded() {
        assert!(DeviceId::new("").is_err());
        assert!(DeviceId::new(&"x".repeat(65)).is_err());
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
    }
}
