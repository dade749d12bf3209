//! Keys of dedup rows: the identity of a command.

use uuid::Uuid;

use crate::decode::{Malformed, Reader};
use crate::id::{TimelineId, TimelineKind, UserId};

/// Milliseconds in the hour by which dedup keys begin.
pub(crate) const HOUR_MS: u64 = 3_600_000;

/// Where a command goes, as part of its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    kind: u8,
    owner: u64,
}

impl Destination {
    /// A new group: the command names none.
    pub const NEW_GROUP: Destination = Destination { kind: 0, owner: 0 };

    /// A user's mailbox, a group's timeline or a slot's dead letters.
    pub fn timeline(timeline: TimelineId) -> Destination {
        Destination {
            kind: timeline.kind as u8,
            owner: timeline.owner,
        }
    }

    /// The timeline, if it is one.
    pub fn as_timeline(self) -> Option<TimelineId> {
        let kind = TimelineKind::from_u8(self.kind)?;
        Some(TimelineId {
            kind,
            owner: self.owner,
        })
    }

    /// A handle, by its hash. Its number is no kind of timeline.
    pub fn handle(hash: u64) -> Destination {
        Destination {
            kind: 3,
            owner: hash,
        }
    }
}

/// The identity of a command: what a repeat has in common with its first. Scope: the slot that
/// answers the command (for a send, the one of its home timeline). Written once, by an accepted
/// command; absent once the slot's floor has passed the id's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedupKey {
    /// `client_msg_id` or `request_id`: a UUIDv7.
    pub id: Uuid,
    /// Who asks; 0 when nobody does yet.
    pub sender: UserId,
    /// Of whom or what.
    pub destination: Destination,
}

impl DedupKey {
    /// Bytes of an encoded key, without space, hour and range.
    pub const LEN: usize = 33;

    /// The id's own time: its first 48 bits, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        id_time_ms(self.id)
    }

    /// The id's whole hours since the Unix epoch.
    pub fn hour(&self) -> u32 {
        hour_of(self.time_ms())
    }

    /// `id 16 | sender u64 | destination kind u8, owner u64`.
    pub fn encode(&self) -> [u8; DedupKey::LEN] {
        let mut bytes = [0; DedupKey::LEN];
        bytes[..16].copy_from_slice(self.id.as_bytes());
        bytes[16..24].copy_from_slice(&self.sender.0.to_be_bytes());
        bytes[24] = self.destination.kind;
        bytes[25..].copy_from_slice(&self.destination.owner.to_be_bytes());
        bytes
    }

    /// Reads what [`DedupKey::encode`] made.
    ///
    /// # Errors
    /// A wrong length or an unknown kind of destination.
    pub fn decode(bytes: &[u8]) -> Result<DedupKey, Malformed> {
        let mut reader = Reader::new("dedup key", bytes);
        let id = Uuid::from_bytes(reader.array()?);
        let sender = UserId(reader.u64()?);
        let kind = reader.u8()?;
        if kind > TimelineKind::DeadLetters as u8 {
            return Err(reader.unknown(kind));
        }
        let owner = reader.u64()?;
        reader.end()?;
        Ok(DedupKey {
            id,
            sender,
            destination: Destination { kind, owner },
        })
    }
}

/// The time of a UUIDv7, in milliseconds since the Unix epoch.
pub(crate) fn id_time_ms(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> 80).expect("48 bits fit in 64")
}

/// Whole hours of a 48-bit time.
pub(crate) fn hour_of(time_ms: u64) -> u32 {
    u32::try_from(time_ms / HOUR_MS).unwrap_or(u32::MAX)
}
