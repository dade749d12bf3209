//! One shard's log as its replica sees it: changed at once, while the disk follows through the queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::cache::Cache;
use super::core::{Core, Op};
use super::error::Error;
use super::life::{Life, Stage};
use super::stored::StoredShard;
use crate::types::{Entry, LogId, TypeConfig, Vote, entry_len};

#[derive(Debug)]
pub(super) struct ShardState {
    pub(super) shard: u32,
    pub(super) state: Mutex<State>,
}

/// Invariant: `purged.index < first`, and the entries `first ..= last.index` exist; those below the
/// cache's first are in RocksDB, which holds nothing else in that range.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) purged: Option<LogId>,
    /// The last entry, or the last purged one.
    pub(super) last: Option<LogId>,
    /// First index not purged.
    pub(super) first: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) life: Option<Life>,
    pub(super) cache: Cache,
    /// The entries below this index, as they are now, are in RocksDB.
    written_end: u64,
    /// Of entries, since the log was loaded: truncated and purged ones included.
    pub(super) appended_bytes: u64,
    /// Grows with every truncation: a write that completes later says nothing about the entries that
    /// took the place of the truncated ones.
    epoch: u64,
    /// The shard's rows were wiped: whoever still holds this log has nothing to say in the shard's next life.
    wiped: bool,
}

type Synced = oneshot::Receiver<Result<(), Error>>;

impl State {
    fn check(&self) -> Result<(), Error> {
        if self.wiped {
            return Err(Error::Stopped {
                reason: "the replica was removed from this node".to_owned(),
            });
        }
        Ok(())
    }

    /// The greatest log id ever held here, the present life included.
    fn greatest(&self) -> Option<LogId> {
        self.last.max(self.life.and_then(|life| life.former))
    }

    /// First index behind the log.
    pub(super) fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }
}

impl ShardState {
    /// Reads the shard's rows and checks the last entry.
    pub(super) fn load(core: &Core, shard: u32) -> Result<ShardState, Error> {
        let stored = StoredShard::read(&core.dir, &*core.db()?, shard)?;
        core.shards_open.fetch_add(1, Ordering::Relaxed);
        Ok(ShardState {
            shard,
            state: Mutex::new(State {
                purged: stored.purged,
                last: stored.last,
                first: stored.first,
                vote: stored.vote,
                committed: stored.committed,
                life: stored.life,
                written_end: stored.last.map_or(0, |last| last.index + 1),
                ..State::default()
            }),
        })
    }

    pub(super) fn append(
        self: &Arc<Self>,
        core: &Core,
        entries: Vec<Entry>,
        done: IOFlushed<TypeConfig>,
    ) -> Result<(), Error> {
        let Some(first) = entries.first() else {
            done.io_completed(Ok(()));
            return Ok(());
        };
        let mut state = self.state.lock();
        if let Err(error) = state.check() {
            done.io_completed(Err(error.clone().into()));
            return Err(error);
        }
        // openraft judges a log by its last id alone: a hole would stay unseen.
        if state.last.is_none() {
            state.first = first.log_id.index;
        }
        for (entry, index) in entries.iter().zip(state.end()..) {
            assert_eq!(entry.log_id.index, index, "appends leave no hole");
        }
        for entry in &entries {
            state.last = Some(entry.log_id);
            state.appended_bytes += entry_len(entry) as u64;
            state.cache.push(entry.clone());
        }
        core.push(Op::Append {
            shard: Arc::clone(self),
            epoch: state.epoch,
            entries,
            done,
        })
    }

    /// Called by the writer when the entries up to `last` are synced.
    pub(super) fn written(&self, core: &Core, epoch: u64, last: u64) {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            state.written_end = state.written_end.max(last + 1);
        }
        let shards = core.shards_open.load(Ordering::Relaxed).max(1);
        let bytes_max = core.options.cache_bytes as u64 / shards;
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let written_end = state.written_end;
        state.cache.evict(bytes_max, written_end);
    }

    pub(super) fn truncate_after(&self, core: &Core, last: Option<LogId>) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.check()?;
        let end = state.end();
        let last = last.max(state.purged);
        let from = last.map_or(state.first, |last| last.index + 1);
        if from >= end {
            return Ok(());
        }
        state.last = last;
        state.cache.truncate_after(from.checked_sub(1));
        state.written_end = state.written_end.min(from);
        state.epoch += 1;
        core.push(Op::Truncate {
            shard: self.shard,
            from,
            end,
        })
    }

    /// `upto` may lie behind the last entry: then a snapshot has taken the place of the whole log.
    pub(super) fn purge(&self, core: &Core, upto: LogId) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.check()?;
        if state
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return Ok(());
        }
        let from = state.first;
        state.purged = Some(upto);
        state.first = upto.index + 1;
        if state.last.is_none_or(|last| last.index <= upto.index) {
            state.last = Some(upto);
        }
        state.cache.purge(upto.index);
        state.written_end = state.written_end.max(upto.index + 1);
        core.push(Op::Purge {
            shard: self.shard,
            from,
            upto,
        })
    }

    /// The receiver tells when the vote is synced.
    pub(super) fn save_vote(&self, core: &Core, vote: Vote) -> Result<Synced, Error> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        state.vote = Some(vote);
        core.push(Op::Vote {
            shard: self.shard,
            vote,
            done,
        })?;
        Ok(receiver)
    }

    pub(super) fn save_committed(
        &self,
        core: &Core,
        committed: Option<LogId>,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.check()?;
        if state.committed == committed {
            return Ok(());
        }
        state.committed = committed;
        core.push(Op::Committed {
            shard: self.shard,
            committed,
        })
    }

    /// The receiver tells when the stage is synced. `Leaving` keeps the greatest log id for the next life; nothing
    /// may be appended any more.
    pub(super) fn enter(&self, core: &Core, stage: Stage) -> Result<Synced, Error> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        let former = match stage {
            Stage::Hosted => state.life.and_then(|life| life.former),
            Stage::Leaving | Stage::Gone => state.greatest(),
        };
        let life = Life { stage, former };
        state.life = Some(life);
        core.push(Op::Life {
            shard: self.shard,
            life,
            done,
        })?;
        Ok(receiver)
    }

    /// Begins an empty log behind an entry that its rows cover, in one batch with a vote in that entry's term: no
    /// leader of an earlier one may come. The receiver tells when that is synced.
    pub(super) fn seed(&self, core: &Core, upto: LogId, node: u64) -> Result<Synced, Error> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        assert!(state.last.is_none(), "a log that has begun goes on");
        let term = upto.leader_id.term;
        let cast = state.vote.filter(|vote| vote.leader_id.term >= term);
        let vote = cast.unwrap_or_else(|| Vote::new(term, node));
        // What the replica was made of stays known: what it has beyond that is its own.
        let life = state.life.unwrap_or(Life {
            stage: Stage::Hosted,
            former: Some(upto),
        });
        state.purged = Some(upto);
        state.last = Some(upto);
        state.first = upto.index + 1;
        state.written_end = upto.index + 1;
        state.vote = Some(vote);
        state.life = Some(life);
        core.push(Op::Seed {
            shard: self.shard,
            upto,
            vote,
            life,
            done,
        })?;
        Ok(receiver)
    }

    /// There is, or was, a replica of the shard here.
    pub(super) fn is_known(&self) -> bool {
        let state = self.state.lock();
        state.life.is_some() || state.last.is_some() || state.vote.is_some()
    }

    /// Forgets everything but the vote and what the next life must know. The receiver tells when that is synced.
    pub(super) fn wipe(&self, core: &Core) -> Result<Synced, Error> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        let life = Life {
            stage: Stage::Gone,
            former: state.greatest(),
        };
        let (vote, epoch) = (state.vote, state.epoch + 1);
        *state = State {
            vote,
            life: Some(life),
            epoch,
            wiped: true,
            ..State::default()
        };
        core.push(Op::Wipe {
            shard: self.shard,
            life,
            done,
        })?;
        Ok(receiver)
    }
}
