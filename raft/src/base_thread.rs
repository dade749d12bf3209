//! The one thread that changes the store of rows: flushes, installs, replicas that come and go, and checkpoints,
//! one at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mailbox_engine::{FrozenFlush, LogId, Shard, ShardId, StagedInstall, Store};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

use crate::background::Haste;
use crate::children::Children;
use crate::error::Error;
use crate::flush_due::{Due, Entry};
use crate::flush_pace::{FlushPace, Steps, Waits};
use crate::log::ShardLog;
use crate::simulation;
use crate::types::log_id;

/// How often ages are looked at when nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of memtables that go into one file, about.
const FILE_BYTES_FULL: u64 = 64 << 20;

/// What the thread knows of a shard.
pub(crate) struct FlushedShard {
    pub(crate) engine: Arc<Shard>,
    pub(crate) log: ShardLog,
    /// Told after every flush and install.
    pub(crate) flushed: watch::Sender<Option<LogId>>,
}

enum Job {
    /// Look which shards are due.
    Look,
    Add(FlushedShard),
    /// Flush this shard no more.
    Forget(ShardId),
    /// Make an empty replica with these slots, unless it is there.
    Create {
        shard: ShardId,
        slots: Vec<u16>,
        done: oneshot::Sender<Result<Arc<Shard>, Error>>,
    },
    /// Remove a replica with all its rows, if it is there.
    Drop {
        shard: ShardId,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Flush everything that was applied, due or not.
    FlushAll {
        haste: Haste,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Flush what one shard has applied by now.
    Flush {
        shard: ShardId,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Install {
        shard: ShardId,
        staged: Box<StagedInstall>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Checkpoint {
        dir: PathBuf,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Stop,
}

/// The handle on the thread.
pub(crate) struct BaseThread {
    jobs: mpsc::Sender<Job>,
    /// A look is queued already.
    looking: Arc<AtomicBool>,
    /// Notified after every change: whoever waits for room looks again.
    changed: Arc<Notify>,
    pace: Arc<FlushPace>,
    work: Mutex<Option<Work>>,
    /// Wakes the task of a simulated node.
    woken: Option<Arc<Notify>>,
}

/// Who does the jobs.
enum Work {
    Thread(JoinHandle<()>),
    /// Of a simulated node.
    Task(tokio::task::JoinHandle<()>),
}

impl BaseThread {
    /// Must be called in a tokio runtime: the thread waits for the log on it.
    pub(crate) fn spawn(
        store: Arc<Store>,
        children: Arc<Children>,
        fault: watch::Sender<Option<String>>,
    ) -> Result<Arc<BaseThread>, std::io::Error> {
        let (jobs, queue) = mpsc::channel();
        let changed = Arc::new(Notify::new());
        let looking = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(FlushPace::default());
        let mut run = Run {
            looking: looking.clone(),
            store,
            children,
            shards: Vec::new(),
            changed: changed.clone(),
            pace: pace.clone(),
            fault,
        };
        let (work, woken) = if simulation::is_on() {
            let woken = Arc::new(Notify::new());
            let task = tokio::spawn(run.run_simulated(queue, Arc::clone(&woken)));
            (Work::Task(task), Some(woken))
        } else {
            let runtime = Handle::current();
            let thread = std::thread::Builder::new()
                .name("base-store".to_owned())
                .spawn(move || run.run(&queue, &runtime))?;
            (Work::Thread(thread), None)
        };
        Ok(Arc::new(BaseThread {
            jobs,
            looking,
            changed,
            pace,
            work: Mutex::new(Some(work)),
            woken,
        }))
    }

    fn push(&self, job: Job) {
        let waits = job.is_waited_for();
        if waits {
            self.pace.begin_wait();
        }
        // After `stop` nothing is done any more; whoever waits for an answer sees its channel closed.
        if self.jobs.send(job).is_err() && waits {
            self.pace.end_wait();
        }
        if let Some(woken) = &self.woken {
            woken.notify_one();
        }
    }

    pub(crate) fn add(&self, shard: FlushedShard) {
        self.push(Job::Add(shard));
    }

    pub(crate) fn forget(&self, shard: ShardId) {
        self.push(Job::Forget(shard));
    }

    pub(crate) fn look(&self) {
        if !self.looking.swap(true, Ordering::AcqRel) {
            self.push(Job::Look);
        }
    }

    /// A change of the base store has happened since this future was made.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    /// Flushes hurry until what this gives is dropped.
    pub(crate) fn hurry(&self) -> Waits<'_> {
        self.pace.wait()
    }

    pub(crate) async fn flush_all(&self, haste: Haste) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.push(Job::FlushAll { haste, done });
        answered(answer).await
    }

    /// What a shard has applied by now is in files afterwards.
    pub(crate) async fn flush(&self, shard: ShardId) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.push(Job::Flush { shard, done });
        answered(answer).await
    }

    pub(crate) async fn create(
        &self,
        shard: ShardId,
        slots: Vec<u16>,
    ) -> Result<Arc<Shard>, Error> {
        let (done, answer) = oneshot::channel();
        self.push(Job::Create { shard, slots, done });
        answered(answer).await
    }

    /// Nothing may be applied to the shard any more.
    pub(crate) async fn drop_shard(&self, shard: ShardId) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.push(Job::Drop { shard, done });
        answered(answer).await
    }

    pub(crate) async fn install(&self, shard: ShardId, staged: StagedInstall) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let staged = Box::new(staged);
        self.push(Job::Install {
            shard,
            staged,
            done,
        });
        answered(answer).await
    }

    pub(crate) async fn checkpoint(&self, dir: PathBuf) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.push(Job::Checkpoint { dir, done });
        answered(answer).await
    }

    /// Ends the thread after the jobs before. Blocks.
    pub(crate) fn stop(&self) {
        self.push(Job::Stop);
        let ended = match self.work.lock().take() {
            Some(Work::Thread(thread)) => thread.join(),
            Some(Work::Task(task)) => {
                // Whoever waits for a job before has waited for it already.
                task.abort();
                Ok(())
            }
            None => Ok(()),
        };
        if ended.is_err() {
            tracing::error!("the base store's thread panicked");
        }
    }
}

impl Drop for BaseThread {
    fn drop(&mut self) {
        // Not joined: this may run on the thread's own waiting side.
        self.push(Job::Stop);
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
    answer
        .await
        .unwrap_or_else(|_| Err(Error::Log("the base store's thread has stopped".to_owned())))
}

impl Job {
    /// Somebody waits while it is in the queue who would notice, so that what is before it is to hurry. Nobody does
    /// for replicas that come and go: a flush that hurried for each of them would hold a core while clients wait. Who
    /// knows better asks for [`BaseThread::hurry`].
    fn is_waited_for(&self) -> bool {
        match self {
            Job::Look
            | Job::Add(_)
            | Job::Forget(_)
            | Job::Create { .. }
            | Job::Drop { .. }
            | Job::Install { .. }
            | Job::Checkpoint { .. }
            | Job::FlushAll {
                haste: Haste::None, ..
            } => false,
            Job::FlushAll {
                haste: Haste::Now, ..
            }
            | Job::Flush { .. }
            | Job::Stop => true,
        }
    }
}

struct Run {
    store: Arc<Store>,
    children: Arc<Children>,
    shards: Vec<Entry>,
    looking: Arc<AtomicBool>,
    changed: Arc<Notify>,
    pace: Arc<FlushPace>,
    fault: watch::Sender<Option<String>>,
}

impl Run {
    fn run(&mut self, queue: &mpsc::Receiver<Job>, runtime: &Handle) {
        loop {
            let job = match queue.recv_timeout(LOOK_INTERVAL) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => Job::Look,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if job.is_waited_for() {
                self.pace.end_wait();
            }
            if matches!(job, Job::Stop) {
                return;
            }
            runtime.block_on(self.job(job));
        }
    }

    /// As [`Run::run`], without a thread.
    async fn run_simulated(mut self, queue: mpsc::Receiver<Job>, woken: Arc<Notify>) {
        loop {
            let job = match queue.try_recv() {
                Ok(job) => job,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    if tokio::time::timeout(LOOK_INTERVAL, woken.notified())
                        .await
                        .is_ok()
                    {
                        continue;
                    }
                    Job::Look
                }
            };
            if job.is_waited_for() {
                self.pace.end_wait();
            }
            if matches!(job, Job::Stop) {
                return;
            }
            simulation::pause().await;
            self.job(job).await;
        }
    }

    async fn job(&mut self, job: Job) {
        match job {
            Job::Stop => {}
            Job::Add(shard) => self.shards.push(Entry {
                shard,
                dirty_since: None,
            }),
            Job::Look => {
                // Before the look: who asks while it goes on is heard.
                self.looking.store(false, Ordering::Release);
                let result = self.flush_due().await;
                self.note(&result);
            }
            Job::Forget(shard) => self.forget(shard),
            Job::Create { shard, slots, done } => {
                let result = self.create(shard, slots);
                self.note(&result);
                let _ = done.send(result);
            }
            Job::Drop { shard, done } => {
                let result = self.drop_shard(shard);
                self.note(&result);
                let _ = done.send(result);
            }
            Job::FlushAll { haste, done } => {
                let result = self.flush_all(haste).await;
                self.note(&result);
                let _ = done.send(result);
            }
            Job::Flush { shard, done } => {
                let result = self.flush_shard(shard).await;
                self.note(&result);
                let _ = done.send(result);
            }
            Job::Install {
                shard,
                staged,
                done,
            } => {
                let result = self.install(shard, *staged);
                let _ = done.send(result);
            }
            Job::Checkpoint { dir, done } => {
                let result = self.store.checkpoint(&dir).map_err(Error::from);
                let _ = done.send(result);
            }
        }
    }

    /// A change that failed half-way must not be built upon: the node stops.
    fn note<T>(&self, result: &Result<T, Error>) {
        if let Err(error) = result {
            report(&self.fault, &error_chain(error));
        }
        self.changed.notify_waiters();
    }

    async fn flush_due(&mut self) -> Result<(), Error> {
        let mut any = false;
        while self.fault.borrow().is_none() {
            let now = Instant::now();
            let due: Vec<Due> = self.shards.iter_mut().map(|entry| entry.due(now)).collect();
            if !due.contains(&Due::Now) {
                break;
            }
            // What will be due before long goes along: one file for all.
            let wanted: Vec<bool> = due.iter().map(|due| *due != Due::Later).collect();
            if !self.flush(&wanted, Haste::None).await? {
                break;
            }
            any = true;
        }
        if any {
            self.store.drop_hidden_hours()?;
        }
        for entry in &self.shards {
            let engine = &entry.shard.engine;
            if self.fault.borrow().is_none() && !engine.staged_imports().is_empty() {
                engine.drop_stale_imports()?;
            }
        }
        Ok(())
    }

    async fn flush_all(&mut self, haste: Haste) -> Result<(), Error> {
        let all = vec![true; self.shards.len()];
        // What is applied meanwhile is for the next flush, or this one would never end.
        if haste == Haste::None {
            return self.flush(&all, haste).await.map(|_| ());
        }
        while self.flush(&all, haste).await? {}
        Ok(())
    }

    async fn flush_shard(&mut self, shard: ShardId) -> Result<(), Error> {
        let is_it = |entry: &Entry| entry.shard.engine.id() == shard;
        let wanted: Vec<bool> = self.shards.iter().map(is_it).collect();
        let Some(engine) = self.shards.iter().find(|entry| is_it(entry)) else {
            // It was removed meanwhile.
            return Ok(());
        };
        let engine = engine.shard.engine.clone();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let goal = index(engine.applied().log_id);
        while index(engine.flushed()) < goal && self.flush(&wanted, Haste::Now).await? {}
        Ok(())
    }

    /// Flushes one memtable of each wanted shard that has something, in as few files as their sizes allow. False
    /// if none had. A file may only be ingested when this node's log has synced the entries in it: else, after a
    /// power cut, the log would end below the applied state.
    async fn flush(&mut self, wanted: &[bool], haste: Haste) -> Result<bool, Error> {
        // What a fault has touched is not written again.
        if let Some(reason) = self.fault.borrow().clone() {
            return Err(Error::Log(format!(
                "a fault has stopped the node: {reason}"
            )));
        }
        let (mut part, mut bytes, mut any) = (Vec::new(), 0, false);
        for (index, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            let engine = &self.shards[index].shard.engine;
            let Some(frozen) = engine.freeze() else {
                continue;
            };
            any = true;
            bytes += frozen.bytes();
            part.push((index, engine.clone(), frozen));
            if bytes >= FILE_BYTES_FULL {
                self.flush_part(std::mem::take(&mut part), haste).await?;
                bytes = 0;
            }
        }
        if !part.is_empty() {
            self.flush_part(part, haste).await?;
        }
        Ok(any)
    }

    async fn flush_part(
        &mut self,
        part: Vec<(usize, Arc<Shard>, FrozenFlush)>,
        haste: Haste,
    ) -> Result<(), Error> {
        let ids: Vec<_> = part
            .iter()
            .map(|(index, _, frozen)| (*index, frozen.log_id()))
            .collect();
        let mut has_children = false;
        for (_, _, frozen) in &part {
            has_children |= self.children.judge(frozen)?;
        }
        let flushes = part.into_iter().map(|(_, engine, frozen)| (engine, frozen));
        let flushes: Vec<_> = flushes.collect();
        let built = {
            let mut steps = Steps::new(|| {
                let mut engines = self.shards.iter().map(|entry| &entry.shard.engine);
                haste == Haste::Now
                    || self.pace.is_waited_for()
                    || engines.any(|engine| engine.flush_is_urgent())
            });
            self.store.build_in_steps(flushes, &mut || steps.rest())?
        };
        for (index, id) in &ids {
            if let Some(id) = id {
                let log = &self.shards[*index].shard.log;
                log.wait_synced(log_id(id.term, id.index))
                    .await
                    .map_err(|error| Error::Log(error.to_string()))?;
            }
        }
        let bytes = built.bytes();
        // Installs are made by this thread: none can have come in between.
        let ingested = self.store.ingest(built)?;
        if has_children && ingested {
            self.children.tell();
        }
        tracing::debug!(shards = ids.len(), bytes, ingested, "flushed");
        for (index, _) in ids {
            let entry = &mut self.shards[index];
            entry.dirty_since = None;
            let flushed = entry.shard.engine.flushed();
            entry.shard.flushed.send_replace(flushed);
        }
        self.changed.notify_waiters();
        Ok(())
    }

    fn install(&mut self, shard: ShardId, staged: StagedInstall) -> Result<(), Error> {
        let entry = self
            .shards
            .iter_mut()
            .find(|entry| entry.shard.engine.id() == shard);
        let Some(entry) = entry else {
            // It was removed while the snapshot was on its way: no fault.
            return Err(mailbox_engine::Error::UnknownShard { shard }.into());
        };
        let installed = entry.shard.engine.install(staged);
        if installed.is_ok() {
            entry.dirty_since = None;
            let flushed = entry.shard.engine.flushed();
            entry.shard.flushed.send_replace(flushed);
        }
        let installed = installed.map_err(Error::from);
        self.note(&installed);
        installed
    }

    fn create(&self, shard: ShardId, slots: Vec<u16>) -> Result<Arc<Shard>, Error> {
        if let Some(there) = self.store.shard(shard) {
            return Ok(there);
        }
        Ok(self.store.create_shard(shard, slots)?)
    }

    fn forget(&mut self, shard: ShardId) {
        self.shards.retain(|entry| entry.shard.engine.id() != shard);
    }

    fn drop_shard(&mut self, shard: ShardId) -> Result<(), Error> {
        self.forget(shard);
        self.store.drop_shard(shard)?;
        Ok(())
    }
}

/// Tells of a fault, unless one was told before: the first one explains the others.
pub(crate) fn report(fault: &watch::Sender<Option<String>>, reason: &str) {
    fault.send_if_modified(|first| {
        let new = first.is_none();
        if new {
            tracing::error!(reason, "storage fault: this node must stop");
            *first = Some(reason.to_owned());
        }
        new
    });
}

/// An error with its causes, in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
