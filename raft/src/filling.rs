//! Followers that a snapshot fills, and the entries behind it.
//!
//! A snapshot takes its time. If the log were purged up to each flush meanwhile, the entries behind the snapshot
//! would be gone when it is installed, and under load a follower would be sent one snapshot after the other and
//! never catch up. So a leader purges nothing while it sends one, nor until the follower has got as far as the
//! files have since; but it waits for a follower that stands still a minute only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::NodeId;

/// How long a filled follower may take from one sign of progress to the next.
const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// The followers that one replica, as the leader, is filling.
#[derive(Default)]
pub(crate) struct Filling {
    followers: Mutex<BTreeMap<NodeId, Follower>>,
}

struct Follower {
    /// Snapshots on their way to it.
    sending: u32,
    /// The greatest index that it is known to have, and since when.
    matched: u64,
    since: Instant,
}

impl Filling {
    /// A snapshot is on its way to a follower as long as what this gives is held.
    pub(crate) fn begin(self: &Arc<Self>, node: NodeId) -> Sending {
        let mut followers = self.followers.lock();
        let follower = followers.entry(node).or_insert_with(|| Follower {
            sending: 0,
            matched: 0,
            since: Instant::now(),
        });
        follower.sending += 1;
        let filling = self.clone();
        Sending { filling, node }
    }

    /// Whether entries up to `upto` may go. `matched` gives the last index that a follower is known to have;
    /// `None` if this node does not lead it any more.
    pub(crate) fn lets_go(&self, upto: u64, matched: impl Fn(NodeId) -> Option<u64>) -> bool {
        let mut followers = self.followers.lock();
        followers.retain(|node, follower| {
            if follower.sending > 0 {
                return true;
            }
            let Some(matched) = matched(*node) else {
                return false;
            };
            if matched > follower.matched {
                (follower.matched, follower.since) = (matched, Instant::now());
            }
            matched < upto && follower.since.elapsed() < PROGRESS_MAX
        });
        followers.is_empty()
    }
}

/// One snapshot on its way.
pub(crate) struct Sending {
    filling: Arc<Filling>,
    node: NodeId,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut followers = self.filling.followers.lock();
        if let Some(follower) = followers.get_mut(&self.node) {
            follower.sending -= 1;
            follower.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_while_a_snapshot_is_sent_and_until_it_is_caught_up_with() {
        let filling = Arc::new(Filling::default());
        assert!(filling.lets_go(100, |_| Some(0)));
        let (first, second) = (filling.begin(4), filling.begin(4));
        drop(first);
        // One more is on its way: what was matched before says nothing.
        assert!(!filling.lets_go(100, |_| Some(200)));
        drop(second);
        assert!(!filling.lets_go(100, |_| Some(99)));
        assert!(!filling.lets_go(150, |_| Some(149)));
        assert!(filling.lets_go(150, |_| Some(150)));
        // It is not looked after any more.
        assert!(filling.lets_go(200, |_| Some(150)));
    }

    #[test]
    fn a_follower_that_is_none_any_more_keeps_nothing() {
        let filling = Arc::new(Filling::default());
        drop(filling.begin(4));
        assert!(!filling.lets_go(10, |_| Some(1)));
        assert!(filling.lets_go(10, |_| None));
    }
}
