//! What the handles, the writer thread and the mark thread of one log share: the queue, the database and
//! the first fault.
//!
//! Lock order: a shard's state -> the queue. The order in which operations enter the queue is the order
//! in which the shard's state changed, since both happen under the state's lock.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, RwLock};
use rocksdb::DB;
use tokio::sync::{Notify, oneshot, watch};

use super::error::Error;
use super::life::Life;
use super::metrics::Counters;
use super::options::LogOptions;
use super::row::row_len;
use super::state::ShardState;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// How long an operation that nobody waits for may lie in the queue before it gets a batch of its own.
const LAZY_WAIT: Duration = Duration::from_secs(1);
/// Bytes that an operation costs beside its entries.
const OPERATION_BYTES: usize = 64;

/// One change of one shard's log.
pub(super) enum Op {
    Append {
        shard: Arc<ShardState>,
        /// [`super::state::State::epoch`] when the entries came.
        epoch: u64,
        entries: Vec<Entry>,
        done: IOFlushed<TypeConfig>,
    },
    /// Removes the entries `from..end`.
    Truncate { shard: u32, from: u64, end: u64 },
    /// Removes the entries from `from` up to `upto`, inclusive.
    Purge { shard: u32, from: u64, upto: LogId },
    Vote {
        shard: u32,
        vote: Vote,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Committed {
        shard: u32,
        committed: Option<LogId>,
    },
    Life {
        shard: u32,
        life: Life,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Begins the log behind an entry that it never held.
    Seed {
        shard: u32,
        upto: LogId,
        vote: Vote,
        life: Life,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Removes everything of the shard but its vote and its life.
    Wipe {
        shard: u32,
        life: Life,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

impl Op {
    pub(super) fn bytes(&self) -> usize {
        OPERATION_BYTES
            + match self {
                Op::Append { entries, .. } => entries.iter().map(row_len).sum(),
                Op::Truncate { .. }
                | Op::Purge { .. }
                | Op::Vote { .. }
                | Op::Committed { .. }
                | Op::Life { .. }
                | Op::Seed { .. }
                | Op::Wipe { .. } => 0,
            }
    }

    /// Whether anybody may wait for it, or for what comes after it.
    fn is_urgent(&self) -> bool {
        match self {
            Op::Append { .. }
            | Op::Truncate { .. }
            | Op::Vote { .. }
            | Op::Life { .. }
            | Op::Seed { .. }
            | Op::Wipe { .. } => true,
            Op::Purge { .. } | Op::Committed { .. } => false,
        }
    }

    pub(super) fn fail(self, error: &Error) {
        match self {
            Op::Append { done, .. } => done.io_completed(Err(error.clone().into())),
            Op::Vote { done, .. }
            | Op::Life { done, .. }
            | Op::Seed { done, .. }
            | Op::Wipe { done, .. } => {
                drop(done.send(Err(error.clone())));
            }
            Op::Truncate { .. } | Op::Purge { .. } | Op::Committed { .. } => {}
        }
    }
}

/// Operations in order. A ticket is the number of operations ever queued; it is synced when the
/// operation that took it is.
#[derive(Default)]
struct Queue {
    ops: VecDeque<(Op, usize)>,
    bytes: usize,
    ticket: u64,
    urgent: bool,
    closing: bool,
    stopped: Option<String>,
}

/// How far the log is synced.
#[derive(Debug, Clone, Default)]
struct Synced {
    ticket: u64,
    stopped: Option<String>,
}

pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) options: LogOptions,
    /// Random name of this log.
    pub(super) store: u64,
    pub(super) counters: Counters,
    /// Number of the last synced batch.
    pub(super) batch: AtomicU64,
    /// Shards that share the cache's bytes.
    pub(super) shards_open: AtomicU64,
    db: RwLock<Option<Arc<DB>>>,
    queue: Mutex<Queue>,
    queued: Condvar,
    /// As `queued`, for the task of a simulated node.
    woken: Notify,
    synced: watch::Sender<Synced>,
    fault: watch::Sender<Option<String>>,
}

/// What the writer takes out of the queue for one batch.
pub(super) struct Drained {
    pub(super) ops: Vec<Op>,
    pub(super) ticket: u64,
}

impl Core {
    pub(super) fn new(dir: PathBuf, options: LogOptions, store: u64, db: DB, batch: u64) -> Core {
        Core {
            dir,
            options,
            store,
            counters: Counters::default(),
            batch: AtomicU64::new(batch),
            shards_open: AtomicU64::new(0),
            db: RwLock::new(Some(Arc::new(db))),
            queue: Mutex::default(),
            queued: Condvar::new(),
            woken: Notify::new(),
            synced: watch::Sender::default(),
            fault: watch::Sender::default(),
        }
    }

    /// The database, unless the log was closed.
    pub(super) fn db(&self) -> Result<Arc<DB>, Error> {
        self.db.read().clone().ok_or_else(closed)
    }

    /// Closes the database once nobody reads it any more.
    pub(super) fn close_db(&self) {
        let Some(db) = self.db.write().take() else {
            return;
        };
        while Arc::strong_count(&db) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn last_batch(&self) -> u64 {
        self.batch.load(Ordering::Acquire)
    }

    pub(super) fn storage_error(&self, action: &'static str, error: rocksdb::Error) -> Error {
        Error::storage(&self.dir, action, error)
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    pub(super) fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// Queues an operation. The caller holds the lock of the shard's state. An operation that does not
    /// enter the queue is failed.
    pub(super) fn push(&self, op: Op) -> Result<(), Error> {
        let mut queue = self.queue.lock();
        if let Some(error) = queue.refusal() {
            drop(queue);
            op.fail(&error);
            return Err(error);
        }
        let urgent = op.is_urgent();
        let bytes = op.bytes();
        queue.ticket += 1;
        queue.bytes += bytes;
        queue.ops.push_back((op, bytes));
        if urgent && !queue.urgent {
            queue.urgent = true;
            self.wake();
        }
        Ok(())
    }

    /// Waits until everything that has been queued so far is synced.
    pub(super) async fn wait_queued(&self) -> Result<(), Error> {
        let ticket = {
            let mut queue = self.queue.lock();
            if !queue.ops.is_empty() && !queue.urgent {
                queue.urgent = true;
                self.wake();
            }
            queue.ticket
        };
        let mut synced = self.synced.subscribe();
        let reached = synced
            .wait_for(|synced| synced.ticket >= ticket || synced.stopped.is_some())
            .await;
        match reached {
            Ok(synced) if synced.ticket >= ticket => Ok(()),
            Ok(synced) => Err(Error::Stopped {
                reason: synced.stopped.clone().unwrap_or_default(),
            }),
            Err(_) => Err(closed()),
        }
    }

    /// The next operations to write, or `None` once the queue is empty and the log closes.
    pub(super) fn drain(&self) -> Option<Drained> {
        let mut queue = self.queue.lock();
        while !queue.urgent && !queue.closing {
            let waited = self.queued.wait_for(&mut queue, LAZY_WAIT);
            if waited.timed_out() && !queue.ops.is_empty() {
                break;
            }
        }
        self.take(&mut queue)
    }

    /// As [`Core::drain`], but what there is by now.
    pub(super) fn drain_now(&self) -> Option<Drained> {
        self.take(&mut self.queue.lock())
    }

    /// Returns when there is something to write, or the log closes. False: it closes, and nothing is left.
    pub(super) async fn is_due(&self) -> bool {
        loop {
            let woken = self.woken.notified();
            {
                let queue = self.queue.lock();
                if queue.urgent || queue.closing {
                    return !queue.ops.is_empty();
                }
            }
            let waited = tokio::time::timeout(LAZY_WAIT, woken).await;
            if waited.is_err() && !self.queue.lock().ops.is_empty() {
                return true;
            }
        }
    }

    fn wake(&self) {
        self.queued.notify_one();
        self.woken.notify_one();
    }

    fn take(&self, queue: &mut Queue) -> Option<Drained> {
        let (mut ops, mut bytes) = (Vec::with_capacity(queue.ops.len()), 0);
        while let Some((_, len)) = queue.ops.front()
            && (ops.is_empty() || bytes + len <= self.options.batch_bytes_max)
            && let Some((op, len)) = queue.ops.pop_front()
        {
            bytes += len;
            ops.push(op);
        }
        queue.urgent = !queue.ops.is_empty();
        queue.bytes -= bytes;
        let ticket = queue.ticket - queue.ops.len() as u64;
        (!ops.is_empty()).then_some(Drained { ops, ticket })
    }

    /// Tells the waiters that all operations up to `ticket` are synced.
    pub(super) fn publish(&self, ticket: u64) {
        self.synced.send_modify(|synced| synced.ticket = ticket);
    }

    /// Lets the writer finish what is queued, and refuses what comes later.
    pub(super) fn begin_close(&self) {
        self.queue.lock().closing = true;
        self.wake();
    }

    /// Stops the log for good. The first fault wins; everything queued fails.
    pub(super) fn stop(&self, error: &Error) {
        let reason = error.to_string();
        let ops = {
            let mut queue = self.queue.lock();
            queue.stopped.get_or_insert_with(|| reason.clone());
            queue.closing = true;
            queue.bytes = 0;
            std::mem::take(&mut queue.ops)
        };
        self.wake();
        for (op, _) in ops {
            op.fail(error);
        }
        self.synced.send_modify(|synced| {
            synced.stopped.get_or_insert_with(|| reason.clone());
        });
    }

    /// Like [`Core::stop`], for errors of the storage: reported to the node, which must stop.
    pub(super) fn fail(&self, error: &Error) {
        self.fault.send_if_modified(|fault| {
            let first = fault.is_none();
            fault.get_or_insert_with(|| error.to_string());
            first
        });
        self.stop(error);
    }

    /// The fault that stopped the log, if any did.
    pub(super) fn first_fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }
}

impl Queue {
    fn refusal(&self) -> Option<Error> {
        match &self.stopped {
            Some(reason) => Some(Error::Stopped {
                reason: reason.clone(),
            }),
            None => self.closing.then(closed),
        }
    }
}

pub(super) fn closed() -> Error {
    Error::Stopped {
        reason: "the log was closed".to_owned(),
    }
}
