//! Followers that a snapshot fills, and the entries behind it.
//!
//! A snapshot takes its time. If the log were purged up to each flush meanwhile, the entries behind the snapshot
//! would be gone when it is installed, and under load a follower would be sent one snapshot after the other and
//! never catch up. So a leader purges nothing while it sends one, nor until the follower that has installed it
//! has got as far as the files have since; but it waits for a follower that stands still a minute only.
//!
//! A snapshot that did not arrive keeps nothing: the next try sends a newer one. Or a node that is away, which is
//! tried again and again, would keep the log from ever being purged.

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

#[derive(Default)]
struct Follower {
    /// Snapshots on their way to it.
    sending: u32,
    /// The greatest index that it is known to have.
    matched: u64,
    /// When it installed a snapshot or got further; `None` if it has installed none.
    progress: Option<Instant>,
}

impl Filling {
    /// A snapshot is on its way to a follower as long as what this gives is held.
    pub(crate) fn begin(self: &Arc<Self>, node: NodeId) -> Sending {
        let mut followers = self.followers.lock();
        followers.entry(node).or_default().sending += 1;
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
            let (Some(mut progress), Some(matched)) = (follower.progress, matched(*node)) else {
                return false;
            };
            if matched > follower.matched {
                progress = Instant::now();
                (follower.matched, follower.progress) = (matched, Some(progress));
            }
            matched < upto && progress.elapsed() < PROGRESS_MAX
        });
        followers.is_empty()
    }
}

/// One snapshot on its way.
pub(crate) struct Sending {
    filling: Arc<Filling>,
    node: NodeId,
}

impl Sending {
    /// The follower has installed it.
    pub(crate) fn installed(self) {
        let mut followers = self.filling.followers.lock();
        if let Some(follower) = followers.get_mut(&self.node) {
            follower.progress = Some(Instant::now());
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut followers = self.filling.followers.lock();
        if let Some(follower) = followers.get_mut(&self.node) {
            follower.sending -= 1;
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
        first.installed();
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
    fn a_snapshot_that_does_not_arrive_keeps_nothing_afterwards() {
        let filling = Arc::new(Filling::default());
        let sending = filling.begin(4);
        assert!(!filling.lets_go(100, |_| Some(0)));
        drop(sending);
        assert!(filling.lets_go(100, |_| Some(0)));
        // Nor does it let go what the one before it keeps.
        filling.begin(4).installed();
        drop(filling.begin(4));
        assert!(!filling.lets_go(100, |_| Some(99)));
    }

    #[test]
    fn a_follower_that_is_none_any_more_keeps_nothing() {
        let filling = Arc::new(Filling::default());
        filling.begin(4).installed();
        assert!(!filling.lets_go(10, |_| Some(1)));
        assert!(filling.lets_go(10, |_| None));
    }
}
