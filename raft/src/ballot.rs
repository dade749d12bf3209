//! Whether a replica may take part in elections.
//!
//! A node that held the shard in a former life has acknowledged entries that its present log may lack. Until this
//! log reaches the last one of them again, a leader could be made by its vote that lacks them too: so it grants
//! none and stands for none. In the ordinary course of things it was a member of no group in between and nobody
//! asks: this holds where a replica was removed by mistake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::log::ShardLog;
use crate::types::LogId;

/// One replica's right to vote.
pub(crate) struct Ballot {
    log: ShardLog,
    /// What the log must have reached.
    former: Option<LogId>,
    /// It has. Entries that are cut off later are no loss: another leader's take their place.
    open: AtomicBool,
}

impl Ballot {
    pub(crate) fn new(log: ShardLog) -> Arc<Ballot> {
        let former = log.life().and_then(|life| life.former);
        let open = AtomicBool::new(log.last() >= former);
        Arc::new(Ballot { log, former, open })
    }

    pub(crate) fn is_open(&self) -> bool {
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
}
