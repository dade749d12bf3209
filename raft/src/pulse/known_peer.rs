//! What a node knows of one peer.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use mailbox_api::peer;

/// What is known of a peer.
pub(super) struct Peer {
    // As one that speaks.
    pub(super) boot: u64,
    pub(super) heard_at: Instant,
    pub(super) alive: bool,
    pub(super) vouches: HashMap<u32, u64>,
    pub(super) known: u64,
    // As one that answers.
    pub(super) answering_boot: u64,
    pub(super) reached_at: Option<Instant>,
    pub(super) reached: bool,
    /// Version of this node's vouches that it has.
    pub(super) told: u64,
    /// Shards led here that it follows in a later term, or does not hold, each with when it may be asked again. It
    /// speaks of what it is vouched for only: were it forgiven as soon as it is silent, each refusal would bring
    /// the next vouch, as fast as the two can talk.
    pub(super) refused: BTreeMap<u32, Instant>,
}

impl Peer {
    /// A peer counts as alive until the lease is over, though it was never heard.
    pub(super) fn new(now: Instant) -> Peer {
        Peer {
            boot: 0,
            heard_at: now,
            alive: true,
            vouches: HashMap::new(),
            known: 0,
            answering_boot: 0,
            reached_at: None,
            reached: false,
            told: 0,
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn supports(&self, shard: u32) -> bool {
        self.reached && !self.refused.contains_key(&shard)
    }

    /// Takes in what a reply refuses, to be asked again at `again_at`. `has_vouch` says of which shards it has this
    /// node's newest vouch: one that it does not refuse it supports. True if that changes anything.
    pub(super) fn refuses(
        &mut self,
        reply: &peer::PulseReply,
        again_at: Instant,
        has_vouch: impl Fn(u32) -> bool,
    ) -> bool {
        let mut changed = false;
        for vouch in &reply.refused {
            changed |= self.refused.insert(vouch.shard, again_at).is_none();
        }
        let before = self.refused.len();
        self.refused.retain(|shard, _| {
            let refused = reply.refused.iter().any(|vouch| vouch.shard == *shard);
            refused || !has_vouch(*shard)
        });
        changed || self.refused.len() != before
    }
}
