//! Between openraft's messages and `peer.proto`'s.

use bytes::Bytes;
use mailbox_api::peer;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::types::{
    Cmd, DecodeError, Entry, LogId, TypeConfig, Vote, decode_membership, encode_membership, log_id,
};

/// A peer's message that makes no sense: another build, or damage that TCP did not see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the message has no {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

pub(crate) fn vote_out(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn vote_in(vote: Option<peer::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed::Missing("vote"))?;
    Ok(match vote.committed {
        true => Vote::new_committed(vote.term, vote.node),
        false => Vote::new(vote.term, vote.node),
    })
}

pub(crate) fn log_id_out(id: LogId) -> peer::LogId {
    peer::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(crate) fn log_id_in(id: peer::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn vote_request_out(shard: u32, request: &VoteRequest<TypeConfig>) -> peer::VoteCall {
    peer::VoteCall {
        shard,
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_in(call: peer::VoteCall) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut request = VoteRequest::new(vote_in(call.vote)?, call.last.map(log_id_in));
    request.leadership_transfer = call.leadership_transfer;
    Ok(request)
}

pub(crate) fn vote_response_out(response: &VoteResponse<TypeConfig>) -> peer::VoteReply {
    peer::VoteReply {
        vote: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.map(log_id_out),
    }
}

pub(crate) fn vote_response_in(
    reply: peer::VoteReply,
) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(
        vote_in(reply.vote)?,
        reply.last.map(log_id_in),
        reply.granted,
    ))
}

pub(crate) fn append_out(request: AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
    peer::AppendRequest {
        hello: None,
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.map(log_id_out),
        committed: request.leader_commit.map(log_id_out),
        entries: request.entries.into_iter().map(entry_out).collect(),
    }
}

pub(crate) fn append_in(
    request: peer::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let entries: Result<Vec<Entry>, Malformed> =
        request.entries.into_iter().map(entry_in).collect();
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote)?,
        prev_log_id: request.previous.map(log_id_in),
        entries: entries?,
        leader_commit: request.committed.map(log_id_in),
    })
}

fn entry_out(entry: Entry) -> peer::Entry {
    use peer::entry::Payload;
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank(true),
        EntryPayload::Normal(cmd) => Payload::Commands(cmd.0),
        EntryPayload::Membership(membership) => {
            Payload::Membership(encode_membership(&membership).into())
        }
    };
    peer::Entry {
        term: entry.log_id.leader_id.term,
        index: entry.log_id.index,
        payload: Some(payload),
    }
}

fn entry_in(entry: peer::Entry) -> Result<Entry, Malformed> {
    use peer::entry::Payload;
    let payload = match entry.payload.ok_or(Malformed::Missing("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        // Copied once: the memtable keeps the entry, and must not keep the network's buffer with it.
        Payload::Commands(commands) => EntryPayload::Normal(Cmd(Bytes::copy_from_slice(&commands))),
        Payload::Membership(membership) => {
            EntryPayload::Membership(decode_membership(&membership)?)
        }
    };
    Ok(Entry {
        log_id: log_id(entry.term, entry.index),
        payload,
    })
}

pub(crate) fn result_out(result: StreamAppendResult<TypeConfig>) -> peer::AppendResponse {
    use peer::append_response::Result as Outcome;
    let outcome = match result {
        Ok(last) => Outcome::Matched(peer::Matched {
            last: last.map(log_id_out),
        }),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict(log_id_out(at)),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_out(&vote)),
    };
    peer::AppendResponse {
        result: Some(outcome),
        promise_ms: 0,
    }
}

pub(crate) fn result_in(
    response: peer::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use peer::append_response::Result as Outcome;
    Ok(match response.result.ok_or(Malformed::Missing("result"))? {
        Outcome::Matched(matched) => Ok(matched.last.map(log_id_in)),
        Outcome::Conflict(at) => Err(StreamAppendError::Conflict(log_id_in(at))),
        Outcome::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_in(Some(vote))?)),
    })
}

pub(crate) fn transfer_out(
    shard: u32,
    request: &TransferLeaderRequest<TypeConfig>,
) -> peer::Transfer {
    peer::Transfer {
        shard,
        from_leader: Some(vote_out(request.from_leader())),
        to_node: *request.to_node_id(),
        last: request.last_log_id().copied().map(log_id_out),
    }
}

pub(crate) fn transfer_in(
    request: peer::Transfer,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(
        vote_in(request.from_leader)?,
        request.to_node,
        request.last.map(log_id_in),
    ))
}

pub(crate) fn transfer_response_out(
    response: TransferLeaderResponse<TypeConfig>,
) -> peer::TransferReply {
    use peer::transfer_reply::Refused;
    let refused = match response {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            Some(Refused::VoteChanged(vote_out(&actual)))
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            Some(Refused::LogNotFlushed(peer::LogNotFlushed {
                expected: expected.map(log_id_out),
                actual: actual.map(log_id_out),
            }))
        }
    };
    peer::TransferReply { refused }
}

pub(crate) fn transfer_response_in(
    request: &TransferLeaderRequest<TypeConfig>,
    reply: peer::TransferReply,
) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    use peer::transfer_reply::Refused;
    Ok(match reply.refused {
        None => Ok(()),
        Some(Refused::VoteChanged(actual)) => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: vote_in(Some(actual))?,
        }),
        Some(Refused::LogNotFlushed(ids)) => Err(TransferLeaderError::LogNotFlushed {
            expected: ids.expected.map(log_id_in),
            actual: ids.actual.map(log_id_in),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_survives_the_wire() {
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(3, 2),
            prev_log_id: Some(log_id(2, 8)),
            entries: vec![
                Entry {
                    log_id: log_id(3, 9),
                    payload: EntryPayload::Blank,
                },
                Entry {
                    log_id: log_id(3, 10),
                    payload: EntryPayload::Normal(Cmd(Bytes::from_static(b"commands"))),
                },
            ],
            leader_commit: None,
        };
        let back = append_in(append_out(request.clone())).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
        assert_eq!(back.entries[1].payload, request.entries[1].payload);
    }

    #[test]
    fn answers_survive_the_wire() {
        for answer in [
            Ok(None),
            Ok(Some(log_id(4, 5))),
            Err(StreamAppendError::Conflict(log_id(1, 2))),
            Err(StreamAppendError::HigherVote(Vote::new(9, 1))),
        ] {
            assert_eq!(result_in(result_out(answer.clone())).unwrap(), answer);
        }
        assert!(result_in(peer::AppendResponse::default()).is_err());
    }
}
