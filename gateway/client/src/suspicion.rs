//! A node that could not be reached, or fell silent, a moment ago.
//!
//! Followers name the leader that they knew until they have noticed its end, so for a while a hint to it is not
//! followed. A node that was restarted is back sooner than that, and may lead by then: whoever was gone is asked for
//! a sign of life, and is trusted again with the first. Who fell silent with its connections whole would give one:
//! it answers what needs no peers. There only time helps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mailbox_api::v1::ShardMapRequest;
use mailbox_api::v1::admin_client::AdminClient;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::channel::AuthChannel;
use crate::pending::{Break, Failure};

/// Between two questions to a node that was gone.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// How long it may take to answer one.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// What is held against a node.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    until: Mutex<Option<Instant>>,
    /// Somebody asks.
    asking: AtomicBool,
}

impl Suspicion {
    /// Begins, or goes on, for `time` at most. Must be called inside a runtime.
    pub(crate) fn raise(
        self: &Arc<Self>,
        why: Break,
        time: Duration,
        node: impl FnOnce() -> AdminClient<AuthChannel>,
    ) {
        *self.until.lock() = Some(Instant::now() + time);
        if why == Break::Gone && !self.asking.swap(true, Ordering::AcqRel) {
            tokio::spawn(Arc::clone(self).ask(node()));
        }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.until
            .lock()
            .is_some_and(|until| until > Instant::now())
    }

    /// Asks until there is an answer or nothing is held against the node any more.
    async fn ask(self: Arc<Self>, mut node: AdminClient<AuthChannel>) {
        loop {
            sleep(ASK_PAUSE).await;
            let asked = Instant::now();
            let answer = timeout(ANSWER_WITHIN, node.shard_map(ShardMapRequest {})).await;
            let is_there = match answer {
                Ok(Ok(_)) => true,
                Ok(Err(status)) => Failure::from_status(&status).broken.is_none(),
                Err(_) => false,
            };
            if is_there {
                *self.until.lock() = None;
            }
            if !self.is_raised() {
                tracing::debug!(is_there, took = ?asked.elapsed(), "a node is trusted again");
                self.asking.store(false, Ordering::Release);
                return;
            }
        }
    }
}
