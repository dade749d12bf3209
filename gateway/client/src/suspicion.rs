//! A node that could not be reached, or fell silent, a moment ago.
//!
//! Followers name the leader that they knew until they have noticed its end, so for a while a hint to it is not
//! followed. A node that was restarted is back sooner than that, and may lead by then: whoever was gone is asked for
//! a sign of life, and is trusted again with the first. Who fell silent with its connections whole would give one:
//! it answers what needs neither peers nor a disk. There only time helps.

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::v1::ShardMapRequest;
use mailbox_api::v1::admin_client::AdminClient;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::channel::AuthChannel;
use crate::pending::Break;

/// Between two questions to a node that was gone.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// How long it may take to answer one.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// What is held against a node.
#[derive(Debug, Default)]
pub(crate) struct Suspicion(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    gone_until: Option<Instant>,
    silent_until: Option<Instant>,
    /// Somebody asks.
    asking: bool,
}

impl Held {
    fn is_gone(&self, now: Instant) -> bool {
        self.gone_until.is_some_and(|until| until > now)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent_until.is_some_and(|until| until > now)
    }

    /// True if somebody must begin to ask.
    fn raise(&mut self, why: Break, until: Instant) -> bool {
        match why {
            Break::Silent => {
                self.silent_until = Some(until);
                false
            }
            Break::Gone => {
                self.gone_until = Some(until);
                !std::mem::replace(&mut self.asking, true)
            }
        }
    }

    /// After a question; true if there is to be another.
    fn asked(&mut self, is_there: bool, now: Instant) -> bool {
        if is_there {
            self.gone_until = None;
        }
        self.asking = self.is_gone(now);
        self.asking
    }
}

impl Suspicion {
    /// Begins, or goes on, for `time` at most. Must be called inside a runtime.
    pub(crate) fn raise(
        self: &Arc<Self>,
        why: Break,
        time: Duration,
        node: impl FnOnce() -> AdminClient<AuthChannel>,
    ) {
        if self.0.lock().raise(why, Instant::now() + time) {
            tokio::spawn(Arc::clone(self).ask(node()));
        }
    }

    pub(crate) fn is_raised(&self) -> bool {
        let (held, now) = (self.0.lock(), Instant::now());
        held.is_gone(now) || held.is_silent(now)
    }

    /// Asks until there is an answer, or nothing of the kind is held against the node any more.
    async fn ask(self: Arc<Self>, mut node: AdminClient<AuthChannel>) {
        loop {
            sleep(ASK_PAUSE).await;
            // A node that stops, or something between, answers with an error.
            let answer = timeout(ANSWER_WITHIN, node.shard_map(ShardMapRequest {})).await;
            let is_there = matches!(answer, Ok(Ok(_)));
            if !self.0.lock().asked(is_there, Instant::now()) {
                tracing::debug!(is_there, "a node that was gone is asked no more");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_clears_a_node_that_was_gone_but_none_that_was_silent() {
        let (mut held, now) = (Held::default(), Instant::now());
        let later = now + Duration::from_secs(2);
        assert!(held.raise(Break::Gone, later), "somebody asks");
        assert!(!held.raise(Break::Gone, later), "one is enough");
        assert!(!held.raise(Break::Silent, later));
        assert!(held.asked(false, now), "it is asked again");
        assert!(!held.asked(true, now));
        assert!(!held.is_gone(now) && held.is_silent(now));
        assert!(held.raise(Break::Gone, later), "and asked anew");
    }

    #[tokio::test]
    async fn nobody_asks_for_ever() {
        let (mut held, now) = (Held::default(), Instant::now());
        assert!(held.raise(Break::Gone, now + Duration::from_secs(2)));
        assert!(held.asked(false, now + Duration::from_secs(1)));
        assert!(!held.asked(false, now + Duration::from_secs(2)));
        assert!(held.raise(Break::Gone, now + Duration::from_secs(9)));
    }
}
