//! openraft's view of one shard's log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::core::Core;
use super::error::Error;
use super::life::{Life, Stage};
use super::read::read;
use super::state::ShardState;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// The log of one shard. Clones are the same log.
///
/// Every change is visible to readers when its call returns, and is written by the log's writer thread
/// in the order of the calls. No call waits for the disk but `save_vote`.
#[derive(Clone)]
pub(crate) struct ShardLog {
    pub(super) core: Arc<Core>,
    pub(super) shard: Arc<ShardState>,
}

impl Debug for ShardLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardLog({})", self.shard.shard)
    }
}

impl ShardLog {
    pub(super) fn new(core: Arc<Core>, shard: Arc<ShardState>) -> Self {
        ShardLog { core, shard }
    }

    /// Waits until the log has synced all entries up to `upto`, and every truncation queued before this
    /// call: only then may a flush that covers `upto` be ingested.
    ///
    /// # Errors
    /// [`Error::Behind`] if the log has no entry `upto` and has not purged it; [`Error::Stopped`] after a
    /// fault.
    pub(crate) async fn wait_synced(&self, upto: LogId) -> Result<(), Error> {
        {
            let state = self.shard.state.lock();
            let last = state.last.map_or(0, |last| last.index);
            if state.last.is_none() || last < upto.index {
                return Err(Error::Behind {
                    shard: self.shard.shard,
                    wanted: upto.index,
                    last,
                });
            }
        }
        // Whatever is in the log was queued before now.
        self.core.wait_queued().await
    }

    /// Waits until every append, truncation and purge queued for the shard before this call is synced:
    /// only then may a snapshot be installed.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a fault.
    pub(crate) async fn drained(&self) -> Result<(), Error> {
        self.core.wait_queued().await
    }

    /// How the replica came here, and what it held before; `None` for one that the bootstrap made.
    pub(crate) fn life(&self) -> Option<Life> {
        self.shard.state.lock().life
    }

    /// The last log id, purged or not.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.shard.state.lock().last
    }

    /// Bytes of the entries appended since the log was loaded, whatever has become of them.
    pub(crate) fn appended_bytes(&self) -> u64 {
        self.shard.state.lock().appended_bytes
    }

    /// The greatest index that is noted as committed; may lag.
    pub(crate) fn committed_index(&self) -> u64 {
        let committed = self.shard.state.lock().committed;
        committed.map_or(0, |id| id.index)
    }

    /// Has less noted as committed, until more is: in memory only.
    pub(crate) fn note_committed(&self, committed: Option<LogId>) {
        self.shard.state.lock().committed = committed;
    }

    /// Whether there is anything of a replica: entries, or a vote that no life explains.
    pub(crate) fn is_used(&self) -> bool {
        let state = self.shard.state.lock();
        state.last.is_some() || (state.life.is_none() && state.vote.is_some())
    }

    /// Goes over to a stage, durably.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a fault, or if the log was wiped.
    pub(crate) async fn enter(&self, stage: Stage) -> Result<(), Error> {
        let synced = self.shard.enter(&self.core, stage)?;
        synced.await.unwrap_or_else(|_| Err(super::core::closed()))
    }

    /// Begins an empty log behind `upto`, durably: entries up to there are in the replica's rows, and this node never
    /// held them in this log.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a fault, or if the log was wiped.
    pub(crate) async fn seed(&self, upto: LogId, node: u64) -> Result<(), Error> {
        let synced = self.shard.seed(&self.core, upto, node)?;
        synced.await.unwrap_or_else(|_| Err(super::core::closed()))
    }

    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, io::Error> {
        read(&self.core, &self.shard, start, end, bytes_max).map_err(|error| {
            match &error {
                Error::Stopped { .. } | Error::Behind { .. } => {}
                Error::Storage { .. }
                | Error::File { .. }
                | Error::Format { .. }
                | Error::MarkDamaged { .. }
                | Error::BelowMark { .. }
                | Error::BatchLost { .. }
                | Error::Entry { .. }
                | Error::Row { .. }
                | Error::FileLost { .. }
                | Error::Option { .. } => self.core.fail(&error),
            }
            error.into()
        })
    }
}

/// `start..end` of any range of indexes.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for ShardLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shard.state.lock().vote)
    }

    /// Empty only if the log no longer has `start`: it was purged or truncated while the caller's
    /// replication ended, which openraft takes for a heartbeat; an error would stop the replica.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.read(start, end, self.core.options.read_bytes_max)?;
        if entries
            .first()
            .is_some_and(|first| first.log_id.index != start)
        {
            entries.clear();
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (next, end) = bounds(&range);
        let pages = Pages {
            log: self.clone(),
            page: Vec::new().into_iter(),
            next,
            end,
        };
        stream::unfold(pages, |mut pages| async move {
            let entry = pages.next_entry()?;
            Some((entry, pages))
        })
    }
}

/// A range of entries, read page by page as it is consumed.
struct Pages {
    log: ShardLog,
    page: std::vec::IntoIter<Entry>,
    next: u64,
    end: u64,
}

impl Pages {
    fn next_entry(&mut self) -> Option<Result<Entry, io::Error>> {
        if self.page.as_slice().is_empty() && self.next < self.end {
            let bytes_max = self.log.core.options.read_bytes_max;
            match self.log.read(self.next, self.end, bytes_max) {
                Ok(page) => self.page = page.into_iter(),
                Err(error) => {
                    self.end = self.next;
                    return Some(Err(error));
                }
            }
        }
        let entry = self.page.next()?;
        self.next = entry.log_id.index + 1;
        Some(Ok(entry))
    }
}

impl RaftLogStorage<TypeConfig> for ShardLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.shard.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let synced = self.shard.save_vote(&self.core, *vote)?;
        match synced.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(super::core::closed().into()),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.shard.save_committed(&self.core, committed)?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shard.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(self
            .shard
            .append(&self.core, entries.into_iter().collect(), done)?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.shard.truncate_after(&self.core, last)?)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        Ok(self.shard.purge(&self.core, upto)?)
    }
}
