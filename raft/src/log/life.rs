//! Replicas that come to a node and leave it again.
//!
//! A replica that leaves takes its entries along, but not what it has promised to its shard's group: the vote row
//! stays, so that the node never votes twice in a term, and so does the greatest log id that it ever held. A node
//! that is given the shard again acknowledged entries up to there in a former life; until its log reaches so far
//! again it lets nobody become leader by its vote, since a leader without those entries might be made.
//!
//! The row also orders the steps of a removal. `Leaving` is synced first: from then on it is finished, at the
//! next start if need be. Then the rows of the replica leave the base store, then the entries leave the log and
//! the row says `Gone`. So entries without a replica are either those of a removal cut short, or the proof that
//! the base store has lost one.

use crate::types::{DecodeError, LOG_ID_LEN, LogId, decode_log_id, encode_log_id};

/// Where a replica is between coming and going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It was put here after the cluster's bootstrap: it never begins a membership by itself.
    Hosted,
    /// It is being removed.
    Leaving,
    /// It was removed.
    Gone,
}

/// The value of a life row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stage: Stage,
    /// The greatest log id that the node held of this shard before the present life.
    pub(crate) former: Option<LogId>,
}

impl Life {
    /// `stage u8`, then nothing or the log id.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let stage = match self.stage {
            Stage::Hosted => 1,
            Stage::Leaving => 2,
            Stage::Gone => 3,
        };
        let mut out = Vec::with_capacity(1 + LOG_ID_LEN);
        out.push(stage);
        if let Some(former) = &self.former {
            out.extend_from_slice(&encode_log_id(former));
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Life, DecodeError> {
        let what = "life";
        let Some((stage, former)) = bytes.split_first() else {
            return Err(DecodeError::Short { what, len: 0 });
        };
        let stage = match stage {
            1 => Stage::Hosted,
            2 => Stage::Leaving,
            3 => Stage::Gone,
            tag => return Err(DecodeError::Tag { what, tag: *tag }),
        };
        let former = match former {
            [] => None,
            bytes => Some(decode_log_id(bytes)?),
        };
        Ok(Life { stage, former })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::log_id;

    #[test]
    fn lives_are_read_as_written() {
        for stage in [Stage::Hosted, Stage::Leaving, Stage::Gone] {
            for former in [None, Some(log_id(3, 77))] {
                let life = Life { stage, former };
                assert_eq!(Life::decode(&life.encode()), Ok(life));
            }
        }
        assert!(Life::decode(&[]).is_err() && Life::decode(&[9]).is_err());
        assert!(Life::decode(&[1, 0, 0]).is_err());
    }
}
