//! Standing for election, and what a voter says to that.
//!
//! First the voters are asked whether they would vote (pre-vote): a node that cannot win must not raise its term,
//! for a leader that meets a greater term steps down. Then openraft holds the election.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use openraft::error::Fatal;
use openraft::raft::VoteRequest;
use tokio::time::Instant;

use crate::ballot::Ballot;
use crate::peer_link::Link;
use crate::peers::Peers;
use crate::pulse::is_quorum;
use crate::replica::Raft;
use crate::types::{LogId, TypeConfig, Vote};
use crate::wire;

/// A replica's vote and the last entry of its log.
async fn position(raft: &Raft) -> Result<(Vote, Option<LogId>), Fatal<TypeConfig>> {
    raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()))
        .await
}

/// What has become of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// An election has begun.
    Election,
    /// A majority answered, and some of it would not vote for this node; or this node has promised its own vote.
    Refused,
    /// Too few answered.
    Unheard,
}

/// How long the voters have to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until a majority has answered.
    pub(crate) majority: Duration,
    /// The others, from then on: one that was just started may accept a call long before it answers, and this node
    /// could ask again meanwhile.
    pub(crate) others: Duration,
}

/// Asks the voters, and begins an election if a majority of each set would vote for this node, and this node has
/// promised nothing else.
pub(crate) async fn stand(
    raft: &Raft,
    ballot: &Ballot,
    peers: &Peers,
    shard: u32,
    voters: &[BTreeSet<u64>],
    patience: Patience,
) -> Tried {
    let Ok((vote, last)) = position(raft).await else {
        return Tried::Unheard;
    };
    let own = peers.node();
    let request = VoteRequest::new(Vote::new(vote.leader_id.term + 1, own), last);
    let call = wire::vote_request_out(shard, &request);
    let others: BTreeSet<u64> = voters.iter().flatten().copied().collect();
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .filter(|node| *node != own)
        .map(|node| would_vote(node, peers.link(node), call, patience.majority))
        .collect();
    let (mut heard, mut granted) = (BTreeSet::from([own]), BTreeSet::from([own]));
    let mut until = None;
    while !is_quorum(voters, |node| granted.contains(&node)) {
        if until.is_none() && is_quorum(voters, |node| heard.contains(&node)) {
            until = Some(Instant::now() + patience.others);
        }
        let next = match until {
            Some(until) => tokio::time::timeout_at(until, answers.next()).await,
            None => Ok(answers.next().await),
        };
        let Ok(Some((node, answer))) = next else {
            return match until {
                Some(_) => Tried::Refused,
                None => Tried::Unheard,
            };
        };
        if let Some(grants) = answer {
            heard.insert(node);
            if grants {
                granted.insert(node);
            }
        }
    }
    let turn = ballot.turn().await;
    if turn.bars(own, vote.leader_id.term + 1, false) {
        return Tried::Refused;
    }
    tracing::debug!(shard, term = vote.leader_id.term + 1, "stands for election");
    // A replica that stops leads nothing. It stands, by its own vote, before it can promise anything again.
    let _ = raft.trigger().elect(false).await;
    let _ = position(raft).await;
    Tried::Election
}

async fn would_vote(
    node: u64,
    link: Option<Arc<Link>>,
    call: peer::VoteCall,
    timeout: Duration,
) -> (u64, Option<bool>) {
    let Some(link) = link else {
        return (node, None);
    };
    let answer = link.call(Ask::PreVote(call), timeout).await;
    match answer {
        Ok(Answer::Vote(reply)) => (node, Some(reply.granted)),
        Ok(_) | Err(_) => (node, None),
    }
}

/// Answers a pre-vote: changes nothing. `refuse` because the shard has a leader.
pub(crate) async fn answer_pre_vote(
    raft: &Raft,
    request: &VoteRequest<TypeConfig>,
    refuse: bool,
) -> Result<peer::VoteReply, Fatal<TypeConfig>> {
    let (vote, last) = position(raft).await?;
    // The term is not looked at: one that is too small is found out by the vote itself, which brings it up.
    let granted = !refuse && request.last_log_id >= last;
    Ok(peer::VoteReply {
        vote: Some(wire::vote_out(&vote)),
        granted,
        last: last.map(wire::log_id_out),
    })
}
