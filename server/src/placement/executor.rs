//! Rounds: look, let the map follow, plan, begin steps.
//!
//! There is one after each pause, and one as soon as a step has ended that another may follow: a promotion, say, makes
//! room for the next move. Leaders are transferred in the former only: a shard serves nobody while its leader changes,
//! and limiting how many do at once helps clients only if there is a pause between.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use mailbox_engine::ShardId;
use mailbox_placement::{Goals, Role, State, Step, plan};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::brake::Brake;
use super::effects::Effects;
use super::follow::follow;
use super::journal::Journal;
use super::look::{Liveness, Sight, look};
use super::step::{StepFault, execute};

/// Steps and repairs of the map that are under way at once, each of another shard.
const TASKS_MAX: usize = 32;
/// From the beginning of one round to that of the next, at least, unless the pause is shorter: a round asks all nodes.
const ROUND_MS_MIN: u64 = 100;

/// Works until it is dropped, which it may be at any point.
pub(super) struct Executor<E> {
    pub(super) effects: Arc<E>,
    pub(super) goals: Goals,
    /// Plans by itself; else only what has begun is carried on, and nodes that operators drain are emptied.
    pub(super) automatic: bool,
    pub(super) pause_ms: u64,
    pub(super) journal: Arc<Journal>,
    pub(super) liveness: Arc<Mutex<Liveness>>,
    pub(super) brake: Arc<Brake>,
    /// What the last round saw, for questions.
    pub(super) seen: Arc<Mutex<Option<Arc<Sight>>>>,
}

impl<E: Effects> Executor<E> {
    pub(super) async fn run(self) {
        // Dropped with this, and its tasks with it. Each says whether another step may follow from what it did.
        let mut tasks = JoinSet::new();
        let mut transfers_from_ms = 0;
        loop {
            let began_ms = self.effects.now_ms();
            let may_transfer = began_ms >= transfers_from_ms;
            self.round(&mut tasks, may_transfer).await;
            if may_transfer {
                transfers_from_ms = self.effects.now_ms() + self.pause_ms;
            }
            self.pause_until(began_ms + ROUND_MS_MIN.min(self.pause_ms))
                .await;
            tokio::select! {
                biased;
                () = may_go_on(&mut tasks) => {}
                () = self.pause_until(transfers_from_ms) => {}
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn pause_until(&self, then_ms: u64) {
        let left_ms = then_ms.saturating_sub(self.effects.now_ms());
        if left_ms > 0 {
            let pause = self.effects.pause(Duration::from_millis(left_ms));
            pause.await;
        }
    }

    async fn round(&self, tasks: &mut JoinSet<bool>, may_transfer: bool) {
        // Taken before the look: what ends meanwhile may have been seen half-done.
        let busy = self.journal.busy();
        let mut liveness = self.liveness.lock().clone();
        let sight = match look(&*self.effects, &mut liveness, &busy).await {
            Ok(sight) => sight,
            Err(error) => {
                self.journal.rounds(Some(error.to_string()));
                return;
            }
        };
        *self.liveness.lock() = liveness;
        self.journal.rounds(None);
        let sight = Arc::new(sight);
        *self.seen.lock() = Some(Arc::clone(&sight));
        for &shard in &sight.unlike {
            if tasks.len() < TASKS_MAX && !busy.contains(&shard) {
                self.spawn_follow(tasks, shard);
            }
        }
        let at_once = self
            .goals
            .limits
            .transfers_at_once(sight.state.shards.len());
        // Here and not in the plan, which would name the same ones again though the brake holds them.
        let mut transfers_left = match may_transfer {
            true => at_once.saturating_sub(self.journal.transfers()),
            false => 0,
        };
        let mut goals = self.goals.clone();
        goals.limits.transfers_max = usize::MAX;
        for step in plan(&sight.state, &goals) {
            let is_transfer = is_transfer(&step);
            let wanted = self.automatic || is_asked_for(&sight.state, &step);
            let fits = tasks.len() < TASKS_MAX && (!is_transfer || transfers_left > 0);
            if wanted && fits && self.brake.allows(&step, sight.state.now_ms) {
                transfers_left -= usize::from(is_transfer);
                self.spawn_step(tasks, step);
            }
        }
    }

    fn spawn_follow(&self, tasks: &mut JoinSet<bool>, shard: ShardId) {
        self.journal.follows(shard);
        let (effects, journal) = (Arc::clone(&self.effects), Arc::clone(&self.journal));
        tasks.spawn(async move {
            // A bug must not leave its shard taken for busy for ever.
            let done = AssertUnwindSafe(follow(effects, shard))
                .catch_unwind()
                .await;
            let done = match done {
                Ok(done) => done.map_err(|error| error.to_string()),
                Err(_) => Err(StepFault::Panicked.to_string()),
            };
            journal.followed(shard, done.as_ref().map(|did| *did).map_err(String::as_str));
            matches!(done, Ok(true))
        });
    }

    fn spawn_step(&self, tasks: &mut JoinSet<bool>, step: Step) {
        self.journal.begins(step);
        let (effects, journal) = (Arc::clone(&self.effects), Arc::clone(&self.journal));
        let brake = Arc::clone(&self.brake);
        tasks.spawn(async move {
            let done = AssertUnwindSafe(execute(Arc::clone(&effects), step));
            let done = done.catch_unwind().await;
            let done = done.unwrap_or(Err(StepFault::Panicked));
            brake.ended(&step, done.is_ok(), effects.now_ms());
            journal.ended(step, &done);
            // What has failed would fail again at once.
            done.is_ok() && !is_transfer(&step)
        });
    }
}

/// Waits until a task has ended that another step may follow from.
async fn may_go_on(tasks: &mut JoinSet<bool>) {
    loop {
        match tasks.join_next().await {
            Some(Ok(true)) => return,
            // The other one is a bug, told by the panic.
            Some(Ok(false) | Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}

fn is_transfer(step: &Step) -> bool {
    matches!(step, Step::TransferLeader { .. })
}

/// The step carries on what has begun, or empties a node that an operator drains.
fn is_asked_for(state: &State, step: &Step) -> bool {
    let shard = state.shards.iter().find(|shard| shard.id == step.shard());
    let drained = |id| {
        let node = state.nodes.iter().find(|node| node.id == id);
        node.is_some_and(|node| node.standing == mailbox_placement::Standing::Draining)
    };
    shard.is_some_and(|shard| {
        let begun = shard.replicas.iter().any(|held| held.role != Role::Voter);
        begun || shard.replicas.iter().any(|held| drained(held.node))
    })
}
