//! The schema: every row that a node stores, by its key. Nothing else builds or reads a key.
//!
//! Two key spaces, big-endian throughout, so that byte order is the order of the numbers:
//!
//! ```text
//! state:  0x01 | range u32 | tag u8 | fields of the tag          (StateKey; range 0: NodeKey)
//! dedup:  0x02 | hour u32  | range u32 | id 16 | sender u64 | destination kind u8, owner u64
//! ```
//!
//! A range is node-local: it is put in front by the storage and is no part of what replicas
//! compare. Dedup keys begin with the hour of the id, so that whole hours are dropped by file.
//! Tags are for ever: a gap is a retired tag.

mod bytes;
mod dedup;
mod node;
mod stored;
#[cfg(test)]
mod tests;

pub use bytes::KeyBytes;
pub use dedup::{DedupKey, Destination};
pub(crate) use dedup::{HOUR_MS, hour_of};
pub use node::NodeKey;
pub use stored::StoredKey;

use crate::decode::{Malformed, Reader};
use crate::gateways::GatewayId;
use crate::id::{
    DeviceId, GroupId, Seq, ShardId, SlotId, TimelineId, TimelineKind, UserId, slot_of_handle,
};
use crate::item::LaneId;

/// A row of one slot, by its key without the range.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StateKey {
    /// One message of a timeline. Scope: the owner's slot. Written once by append; recall and
    /// edit overwrite it in place; trim removes it together with all before it.
    ///
    /// Key: `1 | kind u8 | owner u64 | seq u64`. Value: a message row, see `row.rs`.
    Message {
        /// The timeline.
        timeline: TimelineId,
        /// The position in it.
        seq: Seq,
    },
    /// Greatest seq that is no longer in the hot store, inclusive. Scope: the owner's slot. Only
    /// rises; kept for ever, so that no seq is issued twice.
    ///
    /// Key: `2 | kind u8 | owner u64`. Value: `seq u64`.
    TrimPoint {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Greatest seq that a device has acknowledged. Scope: the timeline owner's slot. Only rises.
    ///
    /// Key: `3 | kind u8 | owner u64 | user u64 | device (1 to 64 bytes)`. Value: `seq u64`.
    Cursor {
        /// The timeline read.
        timeline: TimelineId,
        /// Who reads it.
        user: UserId,
        /// On which device.
        device: DeviceId,
    },
    /// Greatest seq of the user's mailbox read in the conversation with `peer`. Scope: the
    /// user's slot. Only rises.
    ///
    /// Key: `4 | user u64 | peer u64`. Value: `seq u64`.
    PeerReadMark {
        /// Whose mark it is.
        user: UserId,
        /// The other side of the conversation.
        peer: UserId,
    },
    /// Greatest seq of the group's timeline that a user has read. Scope: the group's slot. Only
    /// rises.
    ///
    /// Key: `5 | group u64 | user u64`. Value: `seq u64`.
    GroupReadMark {
        /// The group.
        group: GroupId,
        /// Whose mark it is.
        user: UserId,
    },
    /// A group. Scope: the group's slot. Written at creation, overwritten when members change.
    ///
    /// Key: `6 | group u64`. Value: `creator u64 | members u32 | name`.
    Group {
        /// The group.
        group: GroupId,
    },
    /// A present or past member's spans. Scope: the group's slot. Written at each join and leave.
    ///
    /// Key: `7 | group u64 | user u64`. Value: spans, oldest first: `(join u64 | left u64)*`.
    Member {
        /// The group.
        group: GroupId,
        /// The member.
        user: UserId,
    },
    /// One entry of a user's own list of groups. Scope: the user's slot. Written by lane after
    /// each change of the member's row.
    ///
    /// Key: `8 | user u64 | group u64`. Value: like the member's row.
    UserGroup {
        /// The user.
        user: UserId,
        /// The group.
        group: GroupId,
    },
    /// A user. Scope: the user's slot. Written once, by lane from the handle's directory slot.
    ///
    /// Key: `9 | user u64`. Value: the handle.
    User {
        /// The user.
        user: UserId,
    },
    /// Who has a handle. Scope: the handle's directory slot. Written once.
    ///
    /// Key: `10 | handle (1 to 64 bytes)`. Value: `user u64`.
    Handle {
        /// The handle, without `@`.
        handle: Box<str>,
    },
    /// How many users this directory slot has made. Scope: a slot. Only rises.
    ///
    /// Key: `11 | slot u16`. Value: `u64`.
    UserCounter {
        /// The slot.
        slot: SlotId,
    },
    /// How many groups this slot has made. Scope: a slot. Only rises.
    ///
    /// Key: `12 | slot u16`. Value: `u64`.
    GroupCounter {
        /// The slot.
        slot: SlotId,
    },
    /// Dedup rows whose id is older than this time are absent, here or not. Scope: a slot. Only
    /// rises; moves with the slot.
    ///
    /// Key: `13 | slot u16`. Value: `milliseconds u64`, a whole hour.
    DedupFloor {
        /// The slot.
        slot: SlotId,
    },
    /// All lanes that begin in this slot: how far each was sent and acked. Scope: the source
    /// slot. Overwritten by a flush if one of its lanes has changed; moves with the slot.
    ///
    /// Key: `14 | slot u16`. Value: a lane table, see `lanes/rows.rs`.
    LaneTable {
        /// The source.
        slot: SlotId,
    },
    /// All lanes that end in this slot: how far each has taken effect. Scope: the destination
    /// slot. Overwritten by a flush if one of its lanes has changed; moves with the slot.
    ///
    /// Key: `15 | slot u16`. Value: a mark table, see `lanes/rows.rs`.
    MarkTable {
        /// The destination.
        slot: SlotId,
    },
    /// An item that was not acked when its memtable was frozen. Scope: the source slot. Written
    /// once, removed by the flush after its ack; moves with the slot.
    ///
    /// Key: `16 | source u16 | destination u16 | source incarnation u32 | destination
    /// incarnation u32 | lane seq u64`. Value: the item, see `item.rs`.
    Outbox {
        /// Its lane.
        lane: LaneId,
        /// Its lane seq.
        seq: u64,
    },
    /// The map of the cluster: what is in none of its other rows. Scope: the meta shard, like the three
    /// below. Written at the cluster's first start, overwritten with every change of the map.
    ///
    /// Key: `17 | 0`. Value: epoch and constants, see `cluster_map.rs`.
    MetaMap,
    /// A node. Written when it joins, overwritten when its standing or what it tells of itself changes.
    ///
    /// Key: `17 | 1 | node u64`. Value: see `cluster_map.rs`.
    MetaNode {
        /// The node.
        node: u64,
    },
    /// A shard's slots and replicas. Written at the cluster's first start, overwritten when they change.
    ///
    /// Key: `17 | 2 | shard u32`. Value: see `cluster_map.rs`.
    MetaShard {
        /// The shard.
        shard: ShardId,
    },
    /// The greatest synced batch that a node has told of its log. Only rises.
    ///
    /// Key: `17 | 3 | node u64`. Value: `batch u64`.
    MetaLog {
        /// The node.
        node: u64,
    },
    /// A slot's move that is under way. Written when it begins, overwritten at each decision, removed at its end.
    ///
    /// Key: `17 | 4 | slot u16`. Value: see `slot_moves.rs`.
    MetaMove {
        /// The slot that moves; no slot of the meta shard.
        slot: SlotId,
    },
    /// A shard's split that is under way. Written when it begins, removed at its end.
    ///
    /// Key: `17 | 5 | shard u32`. Value: see `shard_splits.rs`.
    MetaSplit {
        /// The shard that splits.
        shard: ShardId,
    },
    /// What stands beside a dead letter's message row: whom it was for, why they did not get it, and what
    /// became of it. Scope: the slot that owns the letter. Written with the message row, overwritten once
    /// when the letter is requeued or dropped; trim removes both.
    ///
    /// Key: `18 | slot u16 | seq u64`. Value: see `dead_letter.rs`.
    DeadLetter {
        /// The slot.
        slot: SlotId,
        /// The letter's seq in the slot's dead-letter timeline.
        seq: Seq,
    },
    /// How many dead letters a slot has had, and what became of them. Scope: the slot. Its numbers only rise;
    /// moves with the slot.
    ///
    /// Key: `19 | slot u16`. Value: see `dead_letter.rs`.
    DeadLetterTotals {
        /// The slot.
        slot: SlotId,
    },
    /// A gateway. Scope: the meta shard; no part of the map. Written when it first tells who it is, overwritten when
    /// what it tells or how it stands changes, removed when it has gone.
    ///
    /// Key: `20 | gateway (1 to 64 bytes)`. Value: see `gateways.rs`.
    MetaGateway {
        /// The gateway.
        gateway: GatewayId,
    },
    /// A shard's merge into another. Scope: the meta shard; no part of the map. Written when it begins, removed when
    /// it is given up, overwritten when the shard is retired; then kept for ever, so that no id comes twice.
    ///
    /// Key: `21 | shard u32`. Value: see `shard_merges.rs`.
    MetaMerge {
        /// The shard that goes.
        shard: ShardId,
    },
}

pub(crate) const TAG_MESSAGE: u8 = 1;
const TAG_TRIM_POINT: u8 = 2;
const TAG_CURSOR: u8 = 3;
const TAG_PEER_READ_MARK: u8 = 4;
const TAG_GROUP_READ_MARK: u8 = 5;
const TAG_GROUP: u8 = 6;
const TAG_MEMBER: u8 = 7;
const TAG_USER_GROUP: u8 = 8;
const TAG_USER: u8 = 9;
const TAG_HANDLE: u8 = 10;
const TAG_USER_COUNTER: u8 = 11;
const TAG_GROUP_COUNTER: u8 = 12;
const TAG_DEDUP_FLOOR: u8 = 13;
const TAG_LANE_TABLE: u8 = 14;
const TAG_MARK_TABLE: u8 = 15;
const TAG_OUTBOX: u8 = 16;
/// All rows of the map have one tag, so that one scan sees them at one moment.
const TAG_META: u8 = 17;
const TAG_DEAD_LETTER: u8 = 18;
const TAG_DEAD_LETTER_TOTALS: u8 = 19;
const TAG_GATEWAY: u8 = 20;
const TAG_MERGE: u8 = 21;
const META_MAP: u8 = 0;
const META_NODE: u8 = 1;
const META_SHARD: u8 = 2;
const META_LOG: u8 = 3;
const META_MOVE: u8 = 4;
const META_SPLIT: u8 = 5;

impl StateKey {
    /// What all trim points of a range begin with.
    pub(crate) const TRIM_POINT_TAG: u8 = TAG_TRIM_POINT;
    /// From the first to the last tag of the rows of lanes, tables before items.
    pub(crate) const LANE_TAGS: [u8; 2] = [TAG_LANE_TABLE, TAG_OUTBOX];

    /// The slot that holds this row.
    pub fn slot(&self, slot_count: u16) -> SlotId {
        match self {
            StateKey::Message { timeline, .. }
            | StateKey::TrimPoint { timeline }
            | StateKey::Cursor { timeline, .. } => timeline.slot(slot_count),
            StateKey::PeerReadMark { user, .. }
            | StateKey::UserGroup { user, .. }
            | StateKey::User { user } => user.mailbox().slot(slot_count),
            StateKey::GroupReadMark { group, .. }
            | StateKey::Group { group }
            | StateKey::Member { group, .. } => group.timeline().slot(slot_count),
            StateKey::Handle { handle } => slot_of_handle(handle, slot_count),
            StateKey::UserCounter { slot }
            | StateKey::GroupCounter { slot }
            | StateKey::DedupFloor { slot }
            | StateKey::LaneTable { slot }
            | StateKey::MarkTable { slot }
            | StateKey::DeadLetter { slot, .. }
            | StateKey::DeadLetterTotals { slot } => *slot,
            StateKey::Outbox { lane, .. } => lane.source,
            StateKey::MetaMap
            | StateKey::MetaNode { .. }
            | StateKey::MetaShard { .. }
            | StateKey::MetaLog { .. }
            | StateKey::MetaMove { .. }
            | StateKey::MetaSplit { .. }
            | StateKey::MetaGateway { .. }
            | StateKey::MetaMerge { .. } => SlotId::META,
        }
    }

    /// The key's bytes, without space and range.
    pub fn encode(&self) -> KeyBytes {
        match self {
            StateKey::Message { timeline, seq } => {
                KeyBytes::timeline(TAG_MESSAGE, *timeline).u64(seq.0)
            }
            StateKey::TrimPoint { timeline } => KeyBytes::timeline(TAG_TRIM_POINT, *timeline),
            StateKey::Cursor {
                timeline,
                user,
                device,
            } => KeyBytes::timeline(TAG_CURSOR, *timeline)
                .u64(user.0)
                .bytes(device.as_str().as_bytes()),
            StateKey::PeerReadMark { user, peer } => {
                KeyBytes::tag(TAG_PEER_READ_MARK).u64(user.0).u64(peer.0)
            }
            StateKey::GroupReadMark { group, user } => {
                KeyBytes::tag(TAG_GROUP_READ_MARK).u64(group.0).u64(user.0)
            }
            StateKey::Group { group } => KeyBytes::tag(TAG_GROUP).u64(group.0),
            StateKey::Member { group, user } => KeyBytes::tag(TAG_MEMBER).u64(group.0).u64(user.0),
            StateKey::UserGroup { user, group } => {
                KeyBytes::tag(TAG_USER_GROUP).u64(user.0).u64(group.0)
            }
            StateKey::User { user } => KeyBytes::tag(TAG_USER).u64(user.0),
            StateKey::Handle { handle } => KeyBytes::tag(TAG_HANDLE).bytes(handle.as_bytes()),
            StateKey::UserCounter { slot } => KeyBytes::tag(TAG_USER_COUNTER).u16(slot.0),
            StateKey::GroupCounter { slot } => KeyBytes::tag(TAG_GROUP_COUNTER).u16(slot.0),
            StateKey::DedupFloor { slot } => KeyBytes::tag(TAG_DEDUP_FLOOR).u16(slot.0),
            StateKey::LaneTable { slot } => KeyBytes::tag(TAG_LANE_TABLE).u16(slot.0),
            StateKey::MarkTable { slot } => KeyBytes::tag(TAG_MARK_TABLE).u16(slot.0),
            StateKey::Outbox { lane, seq } => KeyBytes::tag(TAG_OUTBOX)
                .u16(lane.source.0)
                .u16(lane.destination.0)
                .u32(lane.source_incarnation)
                .u32(lane.destination_incarnation)
                .u64(*seq),
            StateKey::MetaMap => KeyBytes::tag(TAG_META).bytes(&[META_MAP]),
            StateKey::MetaNode { node } => KeyBytes::tag(TAG_META).bytes(&[META_NODE]).u64(*node),
            StateKey::MetaShard { shard } => {
                KeyBytes::tag(TAG_META).bytes(&[META_SHARD]).u32(shard.0)
            }
            StateKey::MetaLog { node } => KeyBytes::tag(TAG_META).bytes(&[META_LOG]).u64(*node),
            StateKey::MetaMove { slot } => KeyBytes::tag(TAG_META).bytes(&[META_MOVE]).u16(slot.0),
            StateKey::MetaSplit { shard } => {
                KeyBytes::tag(TAG_META).bytes(&[META_SPLIT]).u32(shard.0)
            }
            StateKey::DeadLetter { slot, seq } => {
                KeyBytes::tag(TAG_DEAD_LETTER).u16(slot.0).u64(seq.0)
            }
            StateKey::DeadLetterTotals { slot } => {
                KeyBytes::tag(TAG_DEAD_LETTER_TOTALS).u16(slot.0)
            }
            StateKey::MetaGateway { gateway } => {
                KeyBytes::tag(TAG_GATEWAY).bytes(gateway.as_str().as_bytes())
            }
            StateKey::MetaMerge { shard } => KeyBytes::tag(TAG_MERGE).u32(shard.0),
        }
    }

    /// Reads what [`StateKey::encode`] made.
    ///
    /// # Errors
    /// An unknown tag, a wrong length, text that is not UTF-8.
    pub fn decode(bytes: &[u8]) -> Result<StateKey, Malformed> {
        let mut reader = Reader::new("state key", bytes);
        let reader = &mut reader;
        let key = match reader.u8()? {
            TAG_MESSAGE => StateKey::Message {
                timeline: read_timeline(reader)?,
                seq: Seq(reader.u64()?),
            },
            TAG_TRIM_POINT => StateKey::TrimPoint {
                timeline: read_timeline(reader)?,
            },
            TAG_CURSOR => StateKey::Cursor {
                timeline: read_timeline(reader)?,
                user: UserId(reader.u64()?),
                device: read_device(reader)?,
            },
            TAG_PEER_READ_MARK => StateKey::PeerReadMark {
                user: UserId(reader.u64()?),
                peer: UserId(reader.u64()?),
            },
            TAG_GROUP_READ_MARK => StateKey::GroupReadMark {
                group: GroupId(reader.u64()?),
                user: UserId(reader.u64()?),
            },
            TAG_GROUP => StateKey::Group {
                group: GroupId(reader.u64()?),
            },
            TAG_MEMBER => StateKey::Member {
                group: GroupId(reader.u64()?),
                user: UserId(reader.u64()?),
            },
            TAG_USER_GROUP => StateKey::UserGroup {
                user: UserId(reader.u64()?),
                group: GroupId(reader.u64()?),
            },
            TAG_USER => StateKey::User {
                user: UserId(reader.u64()?),
            },
            TAG_HANDLE => {
                let bytes = reader.rest();
                StateKey::Handle {
                    handle: reader.text(bytes)?.into(),
                }
            }
            TAG_USER_COUNTER => StateKey::UserCounter {
                slot: SlotId(reader.u16()?),
            },
            TAG_GROUP_COUNTER => StateKey::GroupCounter {
                slot: SlotId(reader.u16()?),
            },
            TAG_DEDUP_FLOOR => StateKey::DedupFloor {
                slot: SlotId(reader.u16()?),
            },
            TAG_LANE_TABLE => StateKey::LaneTable {
                slot: SlotId(reader.u16()?),
            },
            TAG_MARK_TABLE => StateKey::MarkTable {
                slot: SlotId(reader.u16()?),
            },
            TAG_OUTBOX => read_outbox(reader)?,
            TAG_META => read_meta(reader)?,
            TAG_DEAD_LETTER => read_dead_letter(reader)?,
            TAG_DEAD_LETTER_TOTALS => StateKey::DeadLetterTotals {
                slot: SlotId(reader.u16()?),
            },
            TAG_GATEWAY => read_gateway(reader)?,
            TAG_MERGE => read_merge(reader)?,
            tag => return Err(reader.unknown(tag)),
        };
        reader.end()?;
        Ok(key)
    }

    /// What all messages of a timeline begin with.
    pub fn messages_prefix(timeline: TimelineId) -> KeyBytes {
        KeyBytes::timeline(TAG_MESSAGE, timeline)
    }

    /// What all entries of a user's own list of groups begin with.
    pub fn user_groups_prefix(user: UserId) -> KeyBytes {
        KeyBytes::tag(TAG_USER_GROUP).u64(user.0)
    }

    /// What all cursors of a user's devices in a timeline begin with.
    pub fn cursors_prefix(timeline: TimelineId, user: UserId) -> KeyBytes {
        KeyBytes::timeline(TAG_CURSOR, timeline).u64(user.0)
    }

    /// What all rows of the map begin with.
    pub fn meta_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_META)
    }

    /// What all rows of shards in the map begin with.
    pub fn meta_shards_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_META).bytes(&[META_SHARD])
    }

    /// What the keys of all moves of slots begin with.
    pub fn meta_moves_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_META).bytes(&[META_MOVE])
    }

    /// What the keys of all splits of shards begin with.
    pub fn meta_splits_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_META).bytes(&[META_SPLIT])
    }

    /// What the keys of all gateways begin with.
    pub fn gateways_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_GATEWAY)
    }

    /// What the keys of all merges of shards begin with.
    pub fn merges_prefix() -> KeyBytes {
        KeyBytes::tag(TAG_MERGE)
    }

    /// What all members of a group begin with.
    pub fn members_prefix(group: GroupId) -> KeyBytes {
        KeyBytes::tag(TAG_MEMBER).u64(group.0)
    }
}

fn read_dead_letter(reader: &mut Reader<'_>) -> Result<StateKey, Malformed> {
    Ok(StateKey::DeadLetter {
        slot: SlotId(reader.u16()?),
        seq: Seq(reader.u64()?),
    })
}

fn read_gateway(reader: &mut Reader<'_>) -> Result<StateKey, Malformed> {
    let name = reader.rest();
    let gateway = GatewayId::new(reader.text(name)?);
    let gateway = gateway.map_err(|_| reader.unknown(TAG_GATEWAY))?;
    Ok(StateKey::MetaGateway { gateway })
}

fn read_merge(reader: &mut Reader<'_>) -> Result<StateKey, Malformed> {
    let shard = ShardId(reader.u32()?);
    Ok(StateKey::MetaMerge { shard })
}

fn read_outbox(reader: &mut Reader<'_>) -> Result<StateKey, Malformed> {
    let (source, destination) = (SlotId(reader.u16()?), SlotId(reader.u16()?));
    let lane = LaneId {
        source,
        destination,
        source_incarnation: reader.u32()?,
        destination_incarnation: reader.u32()?,
    };
    Ok(StateKey::Outbox {
        lane,
        seq: reader.u64()?,
    })
}

fn read_meta(reader: &mut Reader<'_>) -> Result<StateKey, Malformed> {
    match reader.u8()? {
        META_MAP => Ok(StateKey::MetaMap),
        META_NODE => Ok(StateKey::MetaNode {
            node: reader.u64()?,
        }),
        META_SHARD => Ok(StateKey::MetaShard {
            shard: ShardId(reader.u32()?),
        }),
        META_LOG => Ok(StateKey::MetaLog {
            node: reader.u64()?,
        }),
        META_MOVE => Ok(StateKey::MetaMove {
            slot: SlotId(reader.u16()?),
        }),
        META_SPLIT => Ok(StateKey::MetaSplit {
            shard: ShardId(reader.u32()?),
        }),
        kind => Err(reader.unknown(kind)),
    }
}

fn read_timeline(reader: &mut Reader<'_>) -> Result<TimelineId, Malformed> {
    let kind = reader.u8()?;
    let kind = TimelineKind::from_u8(kind).ok_or_else(|| reader.unknown(kind))?;
    Ok(TimelineId {
        kind,
        owner: reader.u64()?,
    })
}

fn read_device(reader: &mut Reader<'_>) -> Result<DeviceId, Malformed> {
    let bytes = reader.rest();
    let name = reader.text(bytes)?;
    DeviceId::new(name).map_err(|invalid| Malformed::TooLong {
        what: "device",
        left: invalid.len,
    })
}
