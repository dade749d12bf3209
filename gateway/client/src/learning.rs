//! Reading the shard map because a node's *no* names a newer one than that held.
//!
//! One call reads and the others wait and see what came. A node may fall silent between its *no* and the question:
//! then the next one is asked, and for a while nobody asks again who was asked in vain, or each of those who wait
//! would wait for it anew, one after the other.

use std::collections::HashMap;
use std::time::Duration;

use mailbox_api::CallError;
use tokio::time::{Instant, timeout_at};

use crate::client::Inner;
use crate::map::ShardMap;
use crate::node::Node;

/// Nodes that one call asks at most.
const ASKED_MAX: usize = 3;
/// Until a node is asked again that has answered with an older map, or had no time to answer.
const LAGGING_PAUSE: Duration = Duration::from_millis(250);

/// Who was asked in vain, and for which map.
#[derive(Debug, Default)]
pub(crate) struct Asked(HashMap<String, Vain>);

#[derive(Debug)]
struct Vain {
    epoch: u64,
    until: Instant,
}

impl Asked {
    fn is_vain(&self, address: &str, epoch: u64, now: Instant) -> bool {
        let vain = self.0.get(address);
        vain.is_some_and(|vain| vain.epoch >= epoch && vain.until > now)
    }

    /// Holds nobody for longer than it says, so that nodes that are gone for good are forgotten.
    fn note(&mut self, address: &str, vain: Vain, now: Instant) {
        self.0.retain(|_, vain| vain.until > now);
        self.0.insert(address.to_owned(), vain);
    }
}

impl Inner {
    /// Reads the map of a node whose *no* names a newer one than that held, or of others if that node does not give
    /// it. Returns at `deadline` at the latest, whether or not a newer map is held by then.
    pub(crate) async fn learn_map(&self, node: &Node, wrong: &CallError, deadline: Instant) {
        let epoch = wrong.0.map_epoch;
        if self.holds_map(epoch) {
            return;
        }
        let Ok(mut asked) = timeout_at(deadline, self.learning.lock()).await else {
            return;
        };
        let nodes = self.router.nodes();
        let others = nodes.iter().map(|other| &**other);
        let others =
            others.filter(|other: &&Node| other.address() != node.address() && !other.is_suspect());
        let begun = Instant::now();
        let next = std::iter::once(node)
            .chain(others)
            .filter(|next| !asked.is_vain(next.address(), epoch, begun));
        let next: Vec<&Node> = next.take(ASKED_MAX).collect();
        let mut in_vain = Vec::with_capacity(ASKED_MAX);
        for node in next {
            if self.holds_map(epoch) || Instant::now() >= deadline {
                return;
            }
            let pause = Box::pin(self.read_map_of(node, deadline)).await;
            in_vain.push((node.address(), pause));
            // From now on for all of them: the next in line is to ask others, and not again who was silent first.
            let now = Instant::now();
            for (address, pause) in &in_vain {
                let until = now + *pause;
                asked.note(address, Vain { epoch, until }, now);
            }
        }
    }

    fn holds_map(&self, epoch: u64) -> bool {
        self.router.with_map(ShardMap::epoch) >= epoch
    }

    /// Tells for how long to ask the node no more, if what it gave is not enough.
    async fn read_map_of(&self, node: &Node, deadline: Instant) -> Duration {
        match timeout_at(deadline, self.shard_map_of(node)).await {
            Ok(Ok(_)) | Err(_) => LAGGING_PAUSE,
            Ok(Err(error)) => {
                tracing::debug!(node = node.address(), %error, "the shard map was not read");
                self.options.timeouts.attempt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_was_asked_in_vain_is_asked_again_for_a_newer_map_or_later() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let until = now + LAGGING_PAUSE;
        assert!(!asked.is_vain("h:1", 5, now));
        asked.note("h:1", Vain { epoch: 5, until }, now);
        assert!(asked.is_vain("h:1", 5, now) && asked.is_vain("h:1", 4, now));
        assert!(!asked.is_vain("h:1", 6, now), "it may have got that");
        assert!(!asked.is_vain("h:2", 5, now));
        assert!(!asked.is_vain("h:1", 5, until));
        let later = until + LAGGING_PAUSE;
        let vain = Vain {
            epoch: 5,
            until: later,
        };
        asked.note("h:2", vain, until);
        assert_eq!(asked.0.len(), 1, "what is over is forgotten");
    }
}
