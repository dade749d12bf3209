//! A log without replicas, for benchmarks.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use mailbox_engine::ShardId;
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use super::{Error, LogMetrics, LogOptions, ShardLog, SharedLog};
use crate::types::{Cmd, Entry, TypeConfig, log_id};

/// One shard of a node's log, written to directly.
pub struct LogBench {
    log: SharedLog,
    shard: ShardLog,
    next: AtomicU64,
}

impl LogBench {
    /// Creates a log in the empty directory `dir`.
    ///
    /// # Errors
    /// As of the log itself.
    pub fn open(dir: &Path, options: LogOptions) -> Result<LogBench, Error> {
        let log = SharedLog::open(dir, options)?;
        let shard = log.shard_log(ShardId(0))?;
        Ok(LogBench {
            log,
            shard,
            next: AtomicU64::new(1),
        })
    }

    /// Appends one entry per item of `commands`; the future ends when they are synced. Calls must not
    /// overlap, their futures may.
    ///
    /// # Errors
    /// As of the log itself.
    pub fn append(
        &self,
        commands: Vec<Bytes>,
    ) -> Result<impl Future<Output = bool> + use<>, Error> {
        let first = self
            .next
            .fetch_add(commands.len() as u64, Ordering::Relaxed);
        let entries = (first..).zip(commands).map(|(index, commands)| Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Normal(Cmd(commands)),
        });
        let (done, synced) = TypeConfig::oneshot();
        let appended = self
            .shard
            .clone()
            .append(entries, IOFlushed::signal(done))
            .now_or_never();
        match appended {
            Some(Ok(())) => Ok(synced.map(|result| matches!(result, Ok(Ok(()))))),
            Some(Err(error)) => Err(Error::Stopped {
                reason: error.to_string(),
            }),
            None => Err(Error::Stopped {
                reason: "an append waited".to_owned(),
            }),
        }
    }

    /// Purges all but the last `kept` entries.
    ///
    /// # Errors
    /// As of the log itself.
    pub fn purge(&self, kept: u64) -> Result<(), Error> {
        let last = self.next.load(Ordering::Relaxed) - 1;
        match last.checked_sub(kept) {
            Some(upto) if upto > 0 => self
                .shard
                .shard
                .purge(&self.log.inner.core, log_id(1, upto)),
            _ => Ok(()),
        }
    }

    /// Counters since the log was opened.
    pub fn metrics(&self) -> LogMetrics {
        self.log.metrics()
    }
}
