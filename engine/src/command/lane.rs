//! Commands of lanes.

use crate::item::{Items, LaneId};

/// Items of one lane with dense lane seqs. Has no id: the lane's mark tells what is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// Which lane. Answered by the shard of its destination.
    pub lane: LaneId,
    /// Lane seq of the first item.
    pub first_seq: u64,
    /// The items, encoded where they were sent from.
    pub items: Items,
}

/// Raises the acked points of lanes whose sources are in this shard. All or none: one lane that
/// is refused refuses the call; but those whose source has moved to another shard are left out, unless
/// there are no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckLanes {
    /// Lanes, each with a mark that its destination has reported. A lower one changes nothing.
    pub acks: Vec<(LaneId, u64)>,
}
