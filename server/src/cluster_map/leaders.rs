//! Who leads shards of which no replica here knows it: what answers have told, else a guess.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use mailbox_engine::ShardId;
use mailbox_raft::LeaderHint;
use parking_lot::Mutex;

use super::View;

/// Remembered leaders. A wrong one costs a round trip.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    seen: Mutex<HashMap<ShardId, u64>>,
    turn: AtomicUsize,
}

impl Leaders {
    /// Somebody who should know has said so.
    pub(crate) fn saw(&self, shard: ShardId, leader: u64) {
        self.seen.lock().insert(shard, leader);
    }

    /// A node does not lead the shard, or did not answer.
    pub(crate) fn forget(&self, shard: ShardId, node: u64) {
        let mut seen = self.seen.lock();
        if seen.get(&shard) == Some(&node) {
            seen.remove(&shard);
        }
    }

    /// Nothing is known of what a node leads any more.
    pub(crate) fn forget_node(&self, node: u64) {
        self.seen.lock().retain(|_, leader| *leader != node);
    }

    /// The leader that was seen last.
    pub(crate) fn seen(&self, shard: ShardId) -> Option<u64> {
        self.seen.lock().get(&shard).copied()
    }

    /// As [`Leaders::guess`], of a shard whose replica here knows no leader: there is most likely none. But one that the
    /// map has elsewhere is told nothing any more, and others know better.
    pub(crate) fn guess_beside(
        &self,
        view: &View,
        shard: ShardId,
        tried: &[u64],
    ) -> Option<LeaderHint> {
        if view.is_here(shard) {
            return None;
        }
        self.guess(view, shard, tried)
    }

    /// The leader that was seen last, else one voter after the other: whoever has a replica knows better. Not
    /// one of those that were tried already.
    pub(crate) fn guess(&self, view: &View, shard: ShardId, tried: &[u64]) -> Option<LeaderHint> {
        let seen = self.seen(shard).filter(|node| !tried.contains(node));
        if let Some(place) = seen.and_then(|node| view.place(node)) {
            return Some(place);
        }
        let voters = view.voters(shard).into_iter();
        let places = voters.filter(|node| !tried.contains(node));
        let places: Vec<LeaderHint> = places.filter_map(|node| view.place(node)).collect();
        if places.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % places.len();
        places.into_iter().nth(turn)
    }
}
