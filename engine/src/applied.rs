//! How far a shard's state goes: the applied row.

use bytes::Bytes;

use crate::cluster_options::ClusterOptions;
use crate::decode::{Malformed, Reader};
use crate::id::MessageId;
use crate::slot_move::SlotTable;

/// Without a slot that has ever moved.
const FORMAT: u8 = 2;
/// With the table of those that have.
const FORMAT_SLOTS: u8 = 3;

/// Names an entry of the Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term of the leader that made the entry.
    pub term: u64,
    /// That leader.
    pub node: u64,
    /// The entry's index.
    pub index: u64,
}

/// What a shard's state covers, and what moves with it. Stored as one row per shard in range 0,
/// in every file that a flush or an install brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last entry that is in the state.
    pub log_id: Option<LogId>,
    /// The last membership applied, in the encoding of whoever gave it.
    pub membership: Bytes,
    /// The entry that brought the membership.
    pub membership_log_id: Option<LogId>,
    /// Replicated time, in milliseconds since the Unix epoch: never goes back.
    pub time_ms: u64,
    /// The greatest message id newly assigned in this shard.
    pub last_message_id: MessageId,
    /// The last entry of the snapshot that was installed last: the only point at which the log
    /// may end below the applied one.
    pub last_install: Option<LogId>,
    /// What all replicas judge by; `None` until the first leader has set it.
    pub cluster_options: Option<ClusterOptions>,
    /// Where the slots stand that have ever moved to or from this shard.
    pub slots: SlotTable,
}

impl AppliedState {
    /// The row's value: `format u8 | log id | membership log id | last install | time ms u64 |
    /// last message id u64 | length of the cluster options u16 | cluster options | membership`,
    /// each log id as `0` or `1 | term | node | index`. A length of 0: there are none yet. In format 3
    /// `length of the slot table u32 | slot table` comes before the membership; it is written only if there
    /// is a table, so that a shard without one is read by builds that know none.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let has_table = !self.slots.is_empty();
        let mut out = vec![if has_table { FORMAT_SLOTS } else { FORMAT }];
        for log_id in [self.log_id, self.membership_log_id, self.last_install] {
            out.push(u8::from(log_id.is_some()));
            if let Some(LogId { term, node, index }) = log_id {
                for number in [term, node, index] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.extend_from_slice(&self.last_message_id.0.to_be_bytes());
        let mut options = Vec::new();
        if let Some(cluster) = &self.cluster_options {
            cluster.encode(&mut options);
        }
        let len = u16::try_from(options.len()).expect("a few numbers");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&options);
        if has_table {
            let mut table = Vec::new();
            self.slots.encode(&mut table);
            let len = u32::try_from(table.len()).expect("slots are few");
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&table);
        }
        out.extend_from_slice(&self.membership);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<AppliedState, Malformed> {
        let mut reader = Reader::new("applied row", bytes);
        let format = reader.u8()?;
        if ![FORMAT, FORMAT_SLOTS].contains(&format) {
            return Err(reader.unknown(format));
        }
        Ok(AppliedState {
            log_id: read_log_id(&mut reader)?,
            membership_log_id: read_log_id(&mut reader)?,
            last_install: read_log_id(&mut reader)?,
            time_ms: reader.u64()?,
            last_message_id: MessageId(reader.u64()?),
            cluster_options: read_cluster_options(&mut reader)?,
            slots: match format {
                FORMAT_SLOTS => SlotTable::decode(reader.sized()?)?,
                _ => SlotTable::default(),
            },
            membership: Bytes::copy_from_slice(reader.rest()),
        })
    }
}

fn read_cluster_options(reader: &mut Reader<'_>) -> Result<Option<ClusterOptions>, Malformed> {
    match reader.u16()? {
        0 => Ok(None),
        len => ClusterOptions::decode(reader.take(len.into())?).map(Some),
    }
}

fn read_log_id(reader: &mut Reader<'_>) -> Result<Option<LogId>, Malformed> {
    match reader.u8()? {
        0 => Ok(None),
        1 => {
            let (term, node, index) = (reader.u64()?, reader.u64()?, reader.u64()?);
            Ok(Some(LogId { term, node, index }))
        }
        number => Err(reader.unknown(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster_options::UserLimits;
    use crate::slot_move::tests::slot_table;

    fn log_id() -> impl Strategy<Value = Option<LogId>> {
        let numbers = proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>()));
        numbers.prop_map(|some| some.map(|(term, node, index)| LogId { term, node, index }))
    }

    fn cluster_options() -> impl Strategy<Value = ClusterOptions> {
        let younger = any::<(Option<(u32, u32)>, Option<u32>)>();
        (any::<(u32, u32, u64)>(), younger).prop_map(
            |((members, body, window), (limits, dead_letters_max))| ClusterOptions {
                group_members_max: members,
                body_bytes_max: body,
                dedup_window_ms: window,
                user_limits: limits.map(|(devices_max, groups_max)| UserLimits {
                    devices_max,
                    groups_max,
                }),
                dead_letters_max,
            },
        )
    }

    proptest! {
        #[test]
        fn the_applied_row_is_read_as_written(
            log_ids in (log_id(), log_id(), log_id()),
            time_ms: u64,
            last: u64,
            membership: Vec<u8>,
            cluster_options in proptest::option::of(cluster_options()),
            slots in slot_table(),
        ) {
            let applied = AppliedState {
                log_id: log_ids.0,
                membership: membership.into(),
                membership_log_id: log_ids.1,
                time_ms,
                last_message_id: MessageId(last),
                last_install: log_ids.2,
                cluster_options,
                slots,
            };
            let encoded = applied.encode();
            prop_assert_eq!(encoded[0] == FORMAT, applied.slots.is_empty());
            prop_assert_eq!(AppliedState::decode(&encoded), Ok(applied));
        }
    }

    #[test]
    fn an_unknown_format_is_refused() {
        assert!(AppliedState::decode(&[9]).is_err());
        assert!(AppliedState::decode(&[]).is_err());
    }
}
