//! The Raft types of this crate and their stored form.
//!
//! | our word | openraft's |
//! |---|---|
//! | shard's replica | `Raft<TypeConfig, StateMachine>` |
//! | entry's commands | `D` = [`Cmd`]: the bytes that the proposer made once |
//! | replies of an entry | `R` = [`Replies`] |
//! | log id | `LogId<CommittedLeaderId>`: (term, index); one leader per term, so the node is not part of it |
//!
//! All numbers are big-endian. The same bytes go to the log, to peers and into the applied row, so a
//! change here is a change of the log's, the peer protocol's and the store's format number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use openraft::EntryPayload;
use openraft::impls::EmptyNode;

/// The commands of one entry, encoded by `mailbox_engine::EntryBuilder`. Opaque here.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Cmd(pub(crate) Bytes);

impl fmt::Debug for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cmd({} B)", self.0.len())
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying one entry answered: one reply per command, in the order of the entry's commands.
#[derive(Debug, Default)]
pub(crate) struct Replies(pub(crate) Vec<mailbox_engine::Reply>);

impl fmt::Display for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replies({})", self.0.len())
    }
}

pub(crate) type NodeId = u64;

/// One leader per term; node addresses live in the node options, not in the membership.
///
/// Written out, not made by `declare_raft_types!`: the macro cannot set the responder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Cmd;
    type R = Replies;
    type NodeId = NodeId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Cmd, NodeId, EmptyNode>;
    type Entry =
        openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = OnComplete<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// What runs, once, when an entry has been applied or will not be. Dropped unrun if the outcome is unknown.
pub(crate) struct OnComplete<T>(pub(crate) Box<dyn FnOnce(T) + Send>);

impl<T: openraft::OptionalSend + 'static> openraft::raft::responder::Responder<TypeConfig, T>
    for OnComplete<T>
{
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type LeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, EmptyNode>;

/// Bytes that do not decode: damaged, or written by a build with another format number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("{what}: {len} bytes are too few")]
    Short { what: &'static str, len: usize },
    #[error("{what}: {extra} bytes follow its end")]
    Long { what: &'static str, extra: usize },
    #[error("{what}: unknown tag {tag}")]
    Tag { what: &'static str, tag: u8 },
    #[error("membership does not hold together: {reason}")]
    Membership { reason: String },
}

/// Bytes of an encoded vote.
pub(crate) const VOTE_LEN: usize = 17;
/// Bytes of an encoded log id.
pub(crate) const LOG_ID_LEN: usize = 16;
/// Bytes that an entry adds to its commands.
pub(crate) const ENTRY_HEADER_LEN: usize = LOG_ID_LEN + 1;
/// Voters or learners that a membership may have; far above any cluster, a guard for decoding.
const MEMBERS_MAX: usize = 1024;

const TAG_BLANK: u8 = 0;
const TAG_COMMANDS: u8 = 1;
const TAG_MEMBERSHIP: u8 = 2;

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: LeaderId::new(term),
        index,
    }
}

/// `term u64 | node u64 | committed u8`
pub(crate) fn encode_vote(vote: &Vote) -> [u8; VOTE_LEN] {
    let mut out = [0; VOTE_LEN];
    out[..8].copy_from_slice(&vote.leader_id.term.to_be_bytes());
    out[8..16].copy_from_slice(&vote.leader_id.voted_for.to_be_bytes());
    out[16] = u8::from(vote.committed);
    out
}

pub(crate) fn decode_vote(mut bytes: &[u8]) -> Result<Vote, DecodeError> {
    let vote = get_vote(&mut bytes)?;
    ended("vote", bytes)?;
    Ok(vote)
}

fn get_vote(bytes: &mut &[u8]) -> Result<Vote, DecodeError> {
    need("vote", bytes, VOTE_LEN)?;
    let (term, node) = (bytes.get_u64(), bytes.get_u64());
    match bytes.get_u8() {
        0 => Ok(Vote::new(term, node)),
        1 => Ok(Vote::new_committed(term, node)),
        tag => Err(DecodeError::Tag { what: "vote", tag }),
    }
}

/// `term u64 | index u64`
pub(crate) fn encode_log_id(id: &LogId) -> [u8; LOG_ID_LEN] {
    let mut out = [0; LOG_ID_LEN];
    out[..8].copy_from_slice(&id.leader_id.term.to_be_bytes());
    out[8..].copy_from_slice(&id.index.to_be_bytes());
    out
}

pub(crate) fn decode_log_id(mut bytes: &[u8]) -> Result<LogId, DecodeError> {
    let id = get_log_id(&mut bytes)?;
    ended("log id", bytes)?;
    Ok(id)
}

fn get_log_id(bytes: &mut &[u8]) -> Result<LogId, DecodeError> {
    need("log id", bytes, LOG_ID_LEN)?;
    Ok(log_id(bytes.get_u64(), bytes.get_u64()))
}

/// `0`, or `1 | log id`
fn put_log_id_option(out: &mut Vec<u8>, id: Option<&LogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            out.put_slice(&encode_log_id(id));
        }
    }
}

fn get_log_id_option(bytes: &mut &[u8]) -> Result<Option<LogId>, DecodeError> {
    need("log id", bytes, 1)?;
    match bytes.get_u8() {
        0 => Ok(None),
        1 => get_log_id(bytes).map(Some),
        tag => Err(DecodeError::Tag {
            what: "optional log id",
            tag,
        }),
    }
}

/// `configs u16 | { voters u16 | node u64 … } … | nodes u16 | node u64 …`; nodes that are no voters are
/// learners.
pub(crate) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_membership(&mut out, membership);
    out
}

pub(crate) fn decode_membership(mut bytes: &[u8]) -> Result<Membership, DecodeError> {
    let membership = get_membership(&mut bytes)?;
    ended("membership", bytes)?;
    Ok(membership)
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    put_count(out, configs.len());
    for voters in configs {
        put_count(out, voters.len());
        voters.iter().for_each(|node| out.put_u64(*node));
    }
    let nodes: Vec<NodeId> = membership.nodes().map(|(node, _)| *node).collect();
    put_count(out, nodes.len());
    nodes.iter().for_each(|node| out.put_u64(*node));
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    assert!(count <= MEMBERS_MAX);
    out.put_u16(u16::try_from(count).expect("MEMBERS_MAX fits in 16 bits"));
}

fn get_membership(bytes: &mut &[u8]) -> Result<Membership, DecodeError> {
    let mut configs = Vec::new();
    for _ in 0..get_count(bytes)? {
        configs.push(get_nodes(bytes)?);
    }
    let nodes: BTreeMap<NodeId, EmptyNode> = get_nodes(bytes)?
        .into_iter()
        .map(|node| (node, EmptyNode {}))
        .collect();
    Membership::new(configs, nodes).map_err(|error| DecodeError::Membership {
        reason: error.to_string(),
    })
}

fn get_count(bytes: &mut &[u8]) -> Result<usize, DecodeError> {
    need("membership", bytes, 2)?;
    let count = usize::from(bytes.get_u16());
    if count > MEMBERS_MAX {
        return Err(DecodeError::Membership {
            reason: format!("{count} members, limit {MEMBERS_MAX}"),
        });
    }
    Ok(count)
}

fn get_nodes(bytes: &mut &[u8]) -> Result<BTreeSet<NodeId>, DecodeError> {
    let count = get_count(bytes)?;
    need("membership", bytes, count * 8)?;
    Ok((0..count).map(|_| bytes.get_u64()).collect())
}

/// `optional log id | membership`: the form in the applied row, opaque to the engine.
pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_log_id_option(&mut out, stored.log_id().as_ref());
    put_membership(&mut out, stored.membership());
    out
}

pub(crate) fn decode_stored_membership(mut bytes: &[u8]) -> Result<StoredMembership, DecodeError> {
    // Empty bytes are the state of a replica that has applied nothing.
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let log_id = get_log_id_option(&mut bytes)?;
    let membership = get_membership(&mut bytes)?;
    ended("stored membership", bytes)?;
    Ok(StoredMembership::new(log_id, membership))
}

/// Length of [`put_entry`]'s output for entries with commands; an upper guess for others.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(cmd) => ENTRY_HEADER_LEN + cmd.0.len(),
        EntryPayload::Blank => ENTRY_HEADER_LEN,
        EntryPayload::Membership(m) => {
            let voters: usize = m.get_joint_config().iter().map(|c| 2 + c.len() * 8).sum();
            ENTRY_HEADER_LEN + 4 + voters + m.nodes().count() * 8
        }
    }
}

/// `term u64 | index u64 | tag u8 | payload to the end`
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.put_slice(&encode_log_id(&entry.log_id));
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(TAG_BLANK),
        EntryPayload::Normal(cmd) => {
            out.put_u8(TAG_COMMANDS);
            out.put_slice(&cmd.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(TAG_MEMBERSHIP);
            put_membership(out, membership);
        }
    }
}

/// The commands stay a slice of `bytes`.
pub(crate) fn decode_entry(mut bytes: Bytes) -> Result<Entry, DecodeError> {
    need("entry", &bytes, ENTRY_HEADER_LEN)?;
    let log_id = log_id(bytes.get_u64(), bytes.get_u64());
    let payload = match bytes.get_u8() {
        TAG_BLANK => {
            ended("blank entry", &bytes)?;
            EntryPayload::Blank
        }
        TAG_COMMANDS => EntryPayload::Normal(Cmd(bytes)),
        TAG_MEMBERSHIP => EntryPayload::Membership(decode_membership(&bytes)?),
        tag => return Err(DecodeError::Tag { what: "entry", tag }),
    };
    Ok(Entry { log_id, payload })
}

fn need(what: &'static str, bytes: &[u8], len: usize) -> Result<(), DecodeError> {
    if bytes.len() < len {
        return Err(DecodeError::Short {
            what,
            len: bytes.len(),
        });
    }
    Ok(())
}

fn ended(what: &'static str, bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.is_empty() {
        return Ok(());
    }
    Err(DecodeError::Long {
        what,
        extra: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memberships() -> impl Strategy<Value = Membership> {
        let voters = prop::collection::btree_set(any::<u64>(), 1..5);
        (
            prop::collection::vec(voters, 1..3),
            prop::collection::btree_set(any::<u64>(), 0..4),
        )
            .prop_map(|(configs, learners)| Membership::new_with_defaults(configs, learners))
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            prop::collection::vec(any::<u8>(), 0..200)
                .prop_map(|bytes| EntryPayload::Normal(Cmd(bytes.into()))),
            memberships().prop_map(EntryPayload::Membership),
        ];
        (any::<u64>(), any::<u64>(), payload).prop_map(|(term, index, payload)| Entry {
            log_id: log_id(term, index),
            payload,
        })
    }

    proptest! {
        #[test]
        fn entries_survive_encoding(entry in entries()) {
            let mut bytes = Vec::new();
            put_entry(&mut bytes, &entry);
            prop_assert_eq!(bytes.len(), entry_len(&entry));
            let back = decode_entry(bytes.into()).unwrap();
            prop_assert_eq!(back.log_id, entry.log_id);
            prop_assert_eq!(back.payload, entry.payload);
        }

        #[test]
        fn votes_survive_encoding(term: u64, node: u64, committed: bool) {
            let mut vote = Vote::new(term, node);
            vote.committed = committed;
            prop_assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }

        #[test]
        fn stored_memberships_survive_encoding(id in any::<Option<(u64, u64)>>(), m in memberships()) {
            let stored = StoredMembership::new(id.map(|(t, i)| log_id(t, i)), m);
            let bytes = encode_stored_membership(&stored);
            prop_assert_eq!(decode_stored_membership(&bytes).unwrap(), stored);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_vote(&bytes);
            let _ = decode_log_id(&bytes);
            let _ = decode_stored_membership(&bytes);
            let _ = decode_entry(bytes.into());
        }
    }

    #[test]
    fn damaged_entries_are_refused() {
        let mut bytes = Vec::new();
        put_entry(
            &mut bytes,
            &Entry {
                log_id: log_id(3, 4),
                payload: EntryPayload::Blank,
            },
        );
        assert!(matches!(
            decode_entry(bytes[..16].to_vec().into()),
            Err(DecodeError::Short { .. })
        ));
        bytes[16] = 9;
        assert_eq!(
            decode_entry(bytes.into()),
            Err(DecodeError::Tag {
                what: "entry",
                tag: 9
            })
        );
    }
}
