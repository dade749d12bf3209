//! Whether a replica may take part in elections.
//!
//! A node that held the shard in a former life has acknowledged entries that its present log may lack. Until this
//! log reaches the last one of them again, a leader could be made by its vote that lacks them too: so it grants
//! none and stands for none. In the ordinary course of things it was a member of no group in between and nobody
//! asks: this holds where a replica was removed by mistake.
//!
//! The other reason is what was promised to a leader, see `promise.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use crate::log::ShardLog;
use crate::promise::{Pledge, Promise};
use crate::types::LogId;

/// One replica's right to vote.
pub(crate) struct Ballot {
    log: ShardLog,
    /// What the log must have reached.
    former: Option<LogId>,
    /// It has. Entries that are cut off later are no loss: another leader's take their place.
    open: AtomicBool,
    /// Until then, what was promised before this replica started may run.
    embargo_until: Option<Instant>,
    /// How long the replica's promises run, if it makes any.
    length: Option<Duration>,
    promise: tokio::sync::Mutex<Option<Promise>>,
}

impl Ballot {
    pub(crate) fn new(log: ShardLog, pledge: &Pledge) -> Arc<Ballot> {
        let former = log.life().and_then(|life| life.former);
        let log_lacks = log.last() < former;
        let open = AtomicBool::new(!log_lacks);
        Arc::new(Ballot {
            log,
            former,
            open,
            // A log that reaches what was held is this life's, or begins with a split: nothing is forgotten.
            embargo_until: pledge.embargo(log_lacks),
            length: pledge.length(),
            promise: tokio::sync::Mutex::default(),
        })
    }

    /// Why the replica takes no part in elections, if so.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        if !self.is_complete() {
            return Some("has not caught up with what this node held of it before");
        }
        let embargo = self
            .embargo_until
            .is_some_and(|until| Instant::now() < until);
        embargo.then_some("may have promised its vote to a leader before this node was restarted")
    }

    fn is_complete(&self) -> bool {
        if self.open.load(Ordering::Acquire) {
            return true;
        }
        // Entries that are queued count: a vote is synced behind them.
        let open = self.log.last() >= self.former;
        if open {
            self.open.store(true, Ordering::Release);
        }
        open
    }

    /// To be held by whoever answers a leader, votes, or stands, until openraft has taken note: one at a time.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let Some(length) = self.length else {
            return Turn { promise: None };
        };
        let promise = self.promise.lock().await;
        Turn {
            promise: Some((promise, length)),
        }
    }

    /// Until when this replica must not stand, for what it has promised to another leader.
    pub(crate) async fn promised_until(&self, own: u64) -> Option<Instant> {
        let turn = self.turn().await;
        let (promise, _) = turn.promise.as_ref()?;
        let promise = promise.as_ref().filter(|promise| promise.leader != own)?;
        Some(promise.until)
    }
}

/// One answer, vote or election of a replica that makes promises; of another one, nothing.
pub(crate) struct Turn<'a> {
    promise: Option<(MutexGuard<'a, Option<Promise>>, Duration)>,
}

impl Turn<'_> {
    /// Whether a promise forbids a vote. See [`Promise::bars`].
    pub(crate) fn bars(&self, candidate: u64, term: u64, transfer: bool) -> bool {
        let promise = self.promise.as_ref();
        let promise = promise.and_then(|(promise, _)| promise.as_ref());
        promise.is_some_and(|promise| promise.bars(candidate, term, transfer, Instant::now()))
    }

    /// Promises a leader that this replica has just followed. For how long, if at all.
    pub(crate) fn promise(&mut self, term: u64, leader: u64) -> Option<Duration> {
        let (promise, length) = self.promise.as_mut()?;
        let until = Instant::now() + *length;
        **promise = Some(Promise {
            term,
            leader,
            until,
        });
        Some(*length)
    }
}
