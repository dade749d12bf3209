//! Carries splits of shards on.
//!
//! Runs on every node, and does something on the one that leads the meta shard, where a row says of each split that it
//! has begun (`engine/src/shard_splits.rs`). Nothing is kept here that must last: whoever leads the meta shard next
//! does all of it over, and every call does nothing the second time.
//!
//! ```text
//!  1  the shard's leader: SplitShard                from its apply on nobody serves what has gone
//!  2  every voter's node: flushes, and runs the new shard                       (raft/src/children.rs)
//!  3  the node that leads the old shard stands for the new one, as soon as a majority runs it
//!  4  meta: EndSplit, once the new shard has committed an entry                 both are in the map
//! ```
//!
//! An entry that the new shard has committed says that a majority has the rows, by the split or by a snapshot. The
//! map waits for that, and for nobody else: a node that has not come so far runs the new shard once it has, or is
//! given an empty replica of it, which a snapshot fills.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_api::CallError;
use mailbox_api::v1::{StepSplitRequest, StepSplitResponse};
use mailbox_engine::{MetaCommand, ShardId, ShardSplit};
use mailbox_raft::simulation;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::answers::of_enough;
use crate::cluster_service::change;
use crate::cluster_service::split_calls;
use crate::core::Core;
use crate::meta_leader::{leads, while_leading};
use crate::metrics::ShardSplitMetrics;
use crate::notes::{Note, Notes};
use crate::status;

/// Splits that are carried on at once; the others wait their turn.
const AT_ONCE: usize = 2;
/// How often the rows are looked at when nobody has said that there is something new.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before a step is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Between two looks while nobody serves what has gone.
const LOOK_UNSERVED: Duration = Duration::from_millis(20);
/// How long the leader may take to apply the split.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// How long a node may take to say how far it is.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// Between two tries to have the new shard led.
const HASTEN_AGAIN: Duration = Duration::from_secs(1);
/// After so long all is begun anew: whoever was asked may have become another.
const LED_WAIT: Duration = Duration::from_secs(10);

/// What the driver of one node has seen.
pub(crate) struct ShardSplits {
    metrics: ShardSplitMetrics,
    /// Of one stage, which has the split's epoch.
    notes: Notes<ShardId, u64>,
    wake: Notify,
    /// Children that are being hosted on this node because no part of them came by the split.
    hosting: Arc<Mutex<BTreeSet<ShardId>>>,
}

/// The turn of whoever hosts a child; others wait for it.
pub(crate) struct Turn {
    hosting: Arc<Mutex<BTreeSet<ShardId>>>,
    child: ShardId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hosting.lock().remove(&self.child);
    }
}

impl ShardSplits {
    pub(crate) fn new(metrics: ShardSplitMetrics) -> Self {
        Self {
            metrics,
            notes: Notes::default(),
            wake: Notify::new(),
            hosting: Arc::default(),
        }
    }

    /// A turn to host a child, if nobody has it.
    pub(crate) fn host(&self, child: ShardId) -> Option<Turn> {
        let first = self.hosting.lock().insert(child);
        first.then(|| Turn {
            hosting: Arc::clone(&self.hosting),
            child,
        })
    }

    /// There is a new row.
    pub(crate) fn look(&self) {
        self.wake.notify_one();
    }

    /// What was seen of a split, if it is carried on: it is done where the new shard runs.
    pub(crate) fn note_of(&self, shard: ShardId, row: &ShardSplit) -> Option<Note<u64>> {
        self.notes.of(shard, &row.epoch)
    }

    /// Nothing was noted of it yet: this node carries it for the first time in its leadership.
    fn is_new(&self, shard: ShardId, row: &ShardSplit) -> bool {
        self.note_of(shard, row).is_none()
    }
}

fn say_that_it_waits(shard: ShardId, row: &ShardSplit, waits_for: &str) {
    let epoch = row.epoch;
    tracing::info!(shard = shard.0, epoch, waits_for, "the split waits");
}

/// Carries on whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let carrying = || {
        let core = Arc::clone(&core);
        async move { carry_all(&core).await }
    };
    let ended = || {
        core.shard_splits.notes.clear();
        core.shard_splits.metrics.set_running(0);
    };
    while_leading(&core, carrying, ended).await;
}

/// All splits that are under way, some at once, for ever.
async fn carry_all(core: &Arc<Core>) {
    let mut tasks = JoinSet::new();
    let mut carried = BTreeSet::new();
    let mut last = ShardId::META;
    loop {
        match splits(core).await {
            Ok(mut rows) => {
                core.shard_splits.metrics.set_running(rows.len());
                // They take turns: one that cannot go on holds up no other.
                let next = rows.partition_point(|(shard, _)| *shard <= last);
                rows.rotate_left(next);
                for (shard, row) in rows {
                    if tasks.len() < AT_ONCE && carried.insert(shard) {
                        last = shard;
                        let core = Arc::clone(core);
                        tasks.spawn(async move {
                            carry(&core, shard, &row).await;
                            shard
                        });
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "splits of shards cannot be read"),
        }
        tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(shard) => {
                    carried.remove(&shard);
                }
                // A bug, told by the panic; the others go on.
                Err(_) => carried.clear(),
            },
            () = core.shard_splits.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The splits under way, on the leader of the meta shard.
///
/// # Errors
/// They cannot be read.
pub(crate) async fn splits(core: &Core) -> Result<Vec<(ShardId, ShardSplit)>, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    core.read(&meta, mailbox_engine::Shard::shard_splits).await
}

/// Tries to carry one split to its end.
async fn carry(core: &Core, shard: ShardId, row: &ShardSplit) {
    let (to, epoch) = (row.to.0, row.epoch);
    if core.shard_splits.is_new(shard, row) {
        let slots = row.each_slot().len();
        tracing::info!(shard = shard.0, to, epoch, slots, "a shard splits");
    }
    core.shard_splits.notes.begin(shard, epoch);
    let carrier = Carrier { core, shard, row };
    match carrier.carry().await {
        Ok(()) => {
            core.shard_splits.notes.forget(shard);
            tracing::info!(shard = shard.0, to, epoch, "a shard has split");
        }
        Err(error) => {
            let reason = error.to_string();
            if core.shard_splits.notes.fail(shard, epoch, &reason) {
                say_that_it_waits(shard, row, &reason);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// One split.
struct Carrier<'a> {
    core: &'a Core,
    shard: ShardId,
    row: &'a ShardSplit,
}

/// What a node said.
struct Answer {
    node: u64,
    said: Result<StepSplitResponse, CallError>,
}

impl Answer {
    fn silent(node: u64) -> Self {
        let said = Err(status::unavailable("no answer yet"));
        Self { node, said }
    }

    fn runs(&self) -> bool {
        self.said.as_ref().is_ok_and(|said| said.runs)
    }

    fn leads(&self) -> bool {
        self.said.as_ref().is_ok_and(|said| said.leads)
    }

    /// What it waits for, in words.
    fn waits(&self) -> String {
        let node = self.node;
        match &self.said {
            Ok(said) if said.applied => format!("node {node} does not run the new shard yet"),
            Ok(_) => format!("node {node} has not applied the split yet"),
            Err(error) => format!("node {node}: {error}"),
        }
    }
}

impl Carrier<'_> {
    async fn carry(&self) -> Result<(), CallError> {
        fail::fail_point!("shard_split_begun", |_| std::process::abort());
        let began = Instant::now();
        self.propose().await?;
        fail::fail_point!("shard_split_applied", |_| std::process::abort());
        self.wait_led().await?;
        // It may stand still here, which must hold up this task only, not the thread that others need; in a simulation
        // there is no other thread.
        if fail::has_failpoints() && !simulation::is_on() {
            tokio::task::block_in_place(|| {
                fail::fail_point!("shard_split_led", |_| std::process::abort());
            });
        }
        let (shard, epoch) = (self.shard, self.row.epoch);
        change(self.core, MetaCommand::EndSplit { shard, epoch }).await?;
        self.core.shard_splits.metrics.count_done(began.elapsed());
        fail::fail_point!("shard_split_in_map", |_| std::process::abort());
        Ok(())
    }

    /// Until the shard has the split in its log, and its leader has applied it.
    async fn propose(&self) -> Result<(), CallError> {
        let core = self.core;
        let call = StepSplitRequest {
            propose: true,
            ..split_calls::step_out(self.shard, self.row)
        };
        if leads(core, self.shard) {
            let here = split_calls::step_here(core, call);
            let unsaid = |_| status::unavailable("the split is not applied yet");
            let done = tokio::time::timeout(CALL_WAIT, here).await;
            return done.map_err(unsaid)?.map(|_| ());
        }
        let asked = core.ask(self.shard, async |address| {
            let mut request = core.own_call(call.clone())?;
            request.set_timeout(CALL_WAIT);
            core.peers.cluster(&address)?.step_split(request).await
        });
        let done = asked.await.map(|_| ());
        done.map_err(|status| CallError::from_status(&status))
    }

    /// Until the new shard has a leader that has committed an entry.
    async fn wait_led(&self) -> Result<(), CallError> {
        let voters = split_calls::voters(self.core, self.shard)?;
        let began = Instant::now();
        let mut hastened: Option<Instant> = None;
        let mut running = 0;
        loop {
            let due = hastened.is_none_or(|last| last.elapsed() >= HASTEN_AGAIN);
            let hasten = due && running * 2 > voters.len();
            if hasten {
                hastened = Some(Instant::now());
            }
            let answers = self.ask_all(&voters, hasten).await;
            let runs = answers.iter().filter(|answer| answer.runs());
            let runs: BTreeSet<u64> = runs.map(|answer| answer.node).collect();
            let waits = match answers.iter().find(|answer| !answer.runs()) {
                Some(answer) => answer.waits(),
                None => "nobody leads the new shard yet".to_owned(),
            };
            let led = answers.iter().any(Answer::leads);
            running = runs.len();
            let waits = if led { String::new() } else { waits };
            let notes = &self.core.shard_splits.notes;
            if notes.note(self.shard, self.row.epoch, runs, &waits) {
                say_that_it_waits(self.shard, self.row, &waits);
            }
            if led {
                return Ok(());
            }
            if began.elapsed() > LED_WAIT {
                return Err(status::unavailable(waits));
            }
            tokio::time::sleep(LOOK_UNSERVED).await;
        }
    }

    /// What the voters say. Once a majority has answered, the others are not waited for much longer.
    async fn ask_all(&self, voters: &[u64], hasten: bool) -> Vec<Answer> {
        let asked = voters.iter().map(|node| (*node, self.ask(*node, hasten)));
        let most = |answers: &[Answer]| {
            let said = answers.iter().filter(|answer| answer.said.is_ok());
            said.count() * 2 > voters.len()
        };
        of_enough(asked.collect(), most, Answer::silent).await
    }

    async fn ask(&self, node: u64, hasten: bool) -> Answer {
        let call = StepSplitRequest {
            hasten,
            ..split_calls::step_out(self.shard, self.row)
        };
        let said = tokio::time::timeout(ASK_WAIT, split_calls::ask_node(self.core, node, call));
        let said = said.await;
        let said = said.unwrap_or_else(|_| Err(status::unavailable("no answer")));
        Answer { node, said }
    }
}
