//! Carries moves of slots between shards on.
//!
//! Runs on every node, and does something on the one that leads the meta shard, where a row says of each move what
//! is decided (`engine/src/slot_moves.rs`). What the stage asks is done, again if need be; then the next decision is
//! taken, and so on. Nothing is kept here that must last: whoever leads the meta shard next does the stage over,
//! and every call of it does nothing the second time.
//!
//! ```text
//!  copying    destination: BeginImport     every voter of it: stage a copy
//!  freezing   source: Freeze               every voter: stage what has changed     destination: CommitImport
//!  dropping   every replica of the destination: settle                             source: Drop
//!  aborting   destination: AbortImport
//! ```
//!
//! Nobody serves the slot from the freeze to the commit: some milliseconds, since what is staged then is little. A
//! voter that does not answer holds the freeze up, not the commit: once a majority with the leader has the rows, the
//! others get them while their apply waits. The source keeps the frozen rows until every replica of the destination
//! has settled, so that there is somebody to get them from.
//!
//! A voter whose apply waits so may come to lead the destination, which serves nobody then and does not say either who
//! its members are: until it does, those that the map names get the rows.

mod due;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mailbox_api::CallError;
use mailbox_api::v1::{
    ErrorCode, MembershipRequest, MembershipResponse, SlotStands, StageSlotRequest,
    StageSlotResponse, StepSlotResponse,
};
use mailbox_engine::{
    MessageId, MetaCommand, MoveSlot, MoveStage, ReplicaRole, ShardId, SlotId, SlotMove,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::answers::of_enough;
use crate::cluster_service::slot_calls::{self, digest_in};
use crate::cluster_service::{self, change};
use crate::core::Core;
use crate::meta_leader::{leads, while_leading};
use crate::metrics::SlotMoveMetrics;
use crate::notes::{Note, Notes};
use crate::status;

use due::due;

/// How often the rows are looked at when nobody has said that there is something new.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses before a step is tried again.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_FROZEN: Duration = Duration::from_millis(20);
/// How long a node may take to answer one call.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// The same while nobody serves the slot.
const FROZEN_WAIT: Duration = Duration::from_secs(2);
/// How long the commit waits for all voters once a majority has the rows.
const ALL_VOTERS_WAIT: Duration = Duration::from_secs(1);
/// A copy that has not arrived everywhere in so long is given up: the destination cannot get complete.
const COPY_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How far a move is: its epoch, and what is decided.
type Stage = (u64, MoveStage);

/// What the driver of one node has seen.
pub(crate) struct SlotMoves {
    metrics: SlotMoveMetrics,
    notes: Notes<SlotId, Stage>,
    wake: Notify,
}

impl SlotMoves {
    pub(crate) fn new(metrics: SlotMoveMetrics) -> Self {
        Self {
            metrics,
            notes: Notes::default(),
            wake: Notify::new(),
        }
    }

    /// There is a new row, or a new decision.
    pub(crate) fn look(&self) {
        self.wake.notify_one();
    }

    /// What was seen of the stage of a move, if it is carried on.
    pub(crate) fn note_of(&self, slot: SlotId, row: &SlotMove) -> Option<Note<Stage>> {
        self.notes.of(slot, &(row.epoch, row.stage))
    }
}

fn say_that_it_waits(slot: SlotId, row: &SlotMove, waits_for: &str) {
    let (stage, epoch) = (row.stage, row.epoch);
    tracing::info!(slot = slot.0, epoch, %stage, waits_for, "the move waits");
}

/// Carries on whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let carrying = || {
        let core = Arc::clone(&core);
        async move { carry_all(&core).await }
    };
    let ended = || {
        core.slot_moves.notes.clear();
        core.slot_moves.metrics.set_running(0);
    };
    while_leading(&core, carrying, ended).await;
}

/// All moves that are under way, some at once, for ever.
async fn carry_all(core: &Arc<Core>) {
    let mut tasks = JoinSet::new();
    let mut carried = BTreeSet::new();
    loop {
        match moves(core).await {
            Ok(rows) => {
                core.slot_moves.metrics.set_running(rows.len());
                for slot in due(&rows, &carried) {
                    if carried.insert(slot) {
                        let core = Arc::clone(core);
                        tasks.spawn(async move {
                            carry(&core, slot).await;
                            slot
                        });
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "moves of slots cannot be read"),
        }
        tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(slot) => {
                    carried.remove(&slot);
                }
                // A bug, told by the panic; the others go on.
                Err(_) => carried.clear(),
            },
            () = core.slot_moves.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn moves(core: &Core) -> Result<Vec<(SlotId, SlotMove)>, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    core.read(&meta, mailbox_engine::Shard::slot_moves).await
}

/// Carries one move to its end.
async fn carry(core: &Core, slot: SlotId) {
    let mut began = (None, Instant::now());
    loop {
        let row = match moves(core).await {
            Ok(rows) => match rows.into_iter().find(|(moving, _)| *moving == slot) {
                Some((_, row)) => row,
                None => {
                    core.slot_moves.notes.forget(slot);
                    return;
                }
            },
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        if began.0 != Some((row.epoch, row.stage)) {
            began = (Some((row.epoch, row.stage)), Instant::now());
            core.slot_moves.notes.begin(slot, (row.epoch, row.stage));
            let (from, to, stage) = (row.from.0, row.to.0, row.stage);
            tracing::info!(slot = slot.0, epoch = row.epoch, from, to, %stage, "a slot moves");
        }
        let carrier = Carrier { core, slot, row };
        let done = match row.stage {
            MoveStage::Copying => carrier.copy(began.1).await,
            MoveStage::Freezing => carrier.freeze().await,
            MoveStage::Dropping => carrier.finish().await,
            MoveStage::Aborting => carrier.abort().await,
        };
        if let Err(error) = done {
            carrier.note_failure(&error);
            carrier.pause().await;
        }
    }
}

/// One stage of one move.
struct Carrier<'a> {
    core: &'a Core,
    slot: SlotId,
    row: SlotMove,
}

/// What a replica of the destination said.
struct Answer {
    node: u64,
    said: Result<StageSlotResponse, CallError>,
}

impl Answer {
    fn silent(node: u64) -> Self {
        let said = Err(status::unavailable("no answer yet"));
        Self { node, said }
    }

    fn digest(&self) -> Option<u128> {
        let said = self.said.as_ref().ok()?;
        digest_in(&said.digest)
    }

    /// The replica has applied the commit of the import.
    fn has_committed(&self, epoch: u64) -> bool {
        self.said.as_ref().is_ok_and(|said| {
            said.epoch > epoch || (said.epoch == epoch && said.stands() == SlotStands::Held)
        })
    }

    /// What it waits for, in words.
    fn waits(&self) -> String {
        let node = self.node;
        match &self.said {
            Ok(said) if said.fault.is_empty() => format!("node {node} has not got all yet"),
            Ok(said) => format!("node {node}: {}", said.fault),
            Err(error) => format!("node {node}: {error}"),
        }
    }
}

impl Carrier<'_> {
    fn note(&self, done: BTreeSet<u64>, waits_for: &str) {
        let (notes, stage) = (
            &self.core.slot_moves.notes,
            (self.row.epoch, self.row.stage),
        );
        if notes.note(self.slot, stage, done, waits_for) {
            say_that_it_waits(self.slot, &self.row, waits_for);
        }
    }

    /// A try has failed.
    fn note_failure(&self, error: &CallError) {
        let (notes, stage) = (
            &self.core.slot_moves.notes,
            (self.row.epoch, self.row.stage),
        );
        let reason = error.to_string();
        if notes.fail(self.slot, stage, &reason) {
            say_that_it_waits(self.slot, &self.row, &reason);
        }
    }

    /// Before the next try.
    async fn pause(&self) {
        let frozen = self.row.stage == MoveStage::Freezing;
        tokio::time::sleep(if frozen { AGAIN_FROZEN } else { AGAIN }).await;
    }

    async fn decide(&self, stage: MoveStage) -> Result<(), CallError> {
        let (slot, epoch) = (self.slot, self.row.epoch);
        let decision = MetaCommand::StepMove { slot, epoch, stage };
        change(self.core, decision).await.map(|_| ())
    }

    async fn end(&self) -> Result<(), CallError> {
        let (slot, epoch) = (self.slot, self.row.epoch);
        let end = MetaCommand::EndMove { slot, epoch };
        change(self.core, end).await.map(|_| ())
    }

    /// Takes a step in a shard, wherever its leader is.
    async fn step(&self, shard: ShardId, call: MoveSlot) -> Result<StepSlotResponse, CallError> {
        let core = self.core;
        let call = slot_calls::step_out(shard, &call);
        if leads(core, shard) {
            let here = slot_calls::step_here(core, call);
            let unsaid = |_| status::unavailable("the step is not applied yet");
            return tokio::time::timeout(CALL_WAIT, here)
                .await
                .map_err(unsaid)?;
        }
        let asked = core.ask(shard, async |address| {
            let mut request = core.own_call(call.clone())?;
            request.set_timeout(CALL_WAIT);
            core.peers.cluster(&address)?.step_slot(request).await
        });
        let answer = asked.await.map(tonic::Response::into_inner);
        answer.map_err(|status| CallError::from_status(&status))
    }

    /// Members of the destination, by its own log.
    async fn members(&self) -> Result<MembershipResponse, CallError> {
        let (core, shard) = (self.core, self.row.to);
        if leads(core, shard) {
            return cluster_service::members(core, shard.0).await;
        }
        let asked = core.ask(shard, async |address| {
            let mut request = core.own_call(MembershipRequest { shard: shard.0 })?;
            request.set_timeout(CALL_WAIT);
            core.peers.cluster(&address)?.membership(request).await
        });
        let answer = asked.await.map(tonic::Response::into_inner);
        answer.map_err(|status| CallError::from_status(&status))
    }

    /// A node with the slot's rows: the leader of the source if it is known; else its voters in turn.
    fn source_node(&self, turn: usize) -> Result<u64, CallError> {
        let view = self.core.maps.now();
        let row = view.cluster.shards.get(&self.row.from);
        let replicas = row.iter().flat_map(|row| &row.replicas);
        let voters = replicas.filter(|replica| replica.role == ReplicaRole::Voter);
        let leader = self.core.known_leader(self.row.from);
        let rest = voters.map(|replica| replica.node);
        let rest = rest.filter(|node| Some(*node) != leader);
        let nodes: Vec<u64> = leader.into_iter().chain(rest).collect();
        let node = nodes.get(turn % nodes.len().max(1)).copied();
        node.ok_or_else(|| status::unavailable("the source has no replica"))
    }

    /// Asks one replica of the destination.
    async fn ask(&self, node: u64, call: StageSlotRequest) -> Answer {
        let said = self.ask_node(node, call);
        let wait = if call.frozen { FROZEN_WAIT } else { CALL_WAIT };
        let said = match tokio::time::timeout(wait, said).await {
            Ok(said) => said,
            Err(_) => Err(status::unavailable("no answer")),
        };
        Answer { node, said }
    }

    async fn ask_node(
        &self,
        node: u64,
        call: StageSlotRequest,
    ) -> Result<StageSlotResponse, CallError> {
        let core = self.core;
        if node == core.node_id {
            return slot_calls::stage_here(core, call).await;
        }
        let view = core.maps.now();
        let place = view.cluster.nodes.get(&node);
        let place = place.ok_or_else(|| status::unavailable("it is not in the map"))?;
        let request = core.own_call(call)?;
        let mut client = core.peers.cluster(&place.address)?;
        let answer = client.stage_slot(request).await;
        let answer = answer.map(tonic::Response::into_inner);
        answer.map_err(|status| CallError::from_status(&status))
    }

    /// Has replicas of the destination stage rows. Nobody serves a frozen slot, and what most of them say may be enough if
    /// `leader` is among them: the others go on, and are asked again.
    async fn stage_all(
        &self,
        nodes: &[u64],
        leader: u64,
        frozen: bool,
        turn: usize,
    ) -> Result<Vec<Answer>, CallError> {
        let call = StageSlotRequest {
            shard: self.row.to.0,
            slot: self.slot.0.into(),
            epoch: self.row.epoch,
            from: self.row.from.0,
            node: self.source_node(turn)?,
            frozen,
            settle: false,
        };
        if !frozen {
            return Ok(join_all(nodes.iter().map(|node| self.ask(*node, call))).await);
        }
        let asked = nodes.iter().map(|node| (*node, self.ask(*node, call)));
        let are_enough = |answers: &[Answer]| {
            let said = answers.iter().filter(|answer| answer.said.is_ok());
            let said: BTreeSet<u64> = said.map(|answer| answer.node).collect();
            said.len() * 2 > nodes.len() && (said.contains(&leader) || !nodes.contains(&leader))
        };
        Ok(of_enough(asked.collect(), are_enough, Answer::silent).await)
    }

    /// The destination does not say who its members are: has the voters that the map names stage the frozen rows. Whoever
    /// leads it may be one whose apply waits for them.
    async fn stage_by_map(&self, error: &CallError, turn: usize) -> Result<Vec<Answer>, CallError> {
        self.note_failure(error);
        let voters = self.core.maps.now().voters(self.row.to);
        // Whether there is a leader, and which, is what is not known.
        let answers = self.stage_all(&voters, 0, true, turn).await;
        self.pause().await;
        answers
    }

    /// Until every voter of the destination has a copy.
    async fn copy(&self, began: Instant) -> Result<(), CallError> {
        let (slot, SlotMove { epoch, from, .. }) = (self.slot, self.row);
        let begin = MoveSlot::BeginImport { slot, epoch, from };
        if let Err(error) = self.step(self.row.to, begin).await {
            return match began.elapsed() > COPY_PATIENCE {
                true => self.give_up(&error.to_string()).await,
                false => Err(error),
            };
        }
        for turn in 0.. {
            let members = self.members().await?;
            let answers = self
                .stage_all(&members.voters, members.leader, false, turn)
                .await?;
            let staged = |answer: &&Answer| answer.digest().is_some();
            let done: BTreeSet<u64> = answers.iter().filter(staged).map(|it| it.node).collect();
            let waits = answers
                .iter()
                .find(|answer| !staged(answer))
                .map(Answer::waits);
            let Some(waits) = waits else {
                self.note(done, "");
                break;
            };
            self.note(done, &waits);
            if began.elapsed() > COPY_PATIENCE {
                return self.give_up(&waits).await;
            }
            // It may have been given up by hand.
            let rows = moves(self.core).await?;
            if !rows.contains(&(slot, self.row)) {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
        }
        fail::fail_point!("slot_move_copied", |_| std::process::abort());
        self.decide(MoveStage::Freezing).await?;
        fail::fail_point!("slot_move_freezing", |_| std::process::abort());
        Ok(())
    }

    /// The source still serves: nothing is lost but the copy.
    async fn give_up(&self, waits: &str) -> Result<(), CallError> {
        let (slot, epoch) = (self.slot.0, self.row.epoch);
        tracing::warn!(slot, epoch, waits, "the move is given up");
        self.decide(MoveStage::Aborting).await
    }

    /// From the freeze to the commit, and into the map.
    async fn freeze(&self) -> Result<(), CallError> {
        let (slot, SlotMove { epoch, to, .. }) = (self.slot, self.row);
        let began = Instant::now();
        let frozen = self.step(self.row.from, MoveSlot::Freeze { slot, epoch, to });
        let frozen = frozen.await?;
        fail::fail_point!("slot_move_frozen", |_| std::process::abort());
        if frozen.stands() != SlotStands::Frozen {
            let words = format!("slot {slot} is not frozen in its source");
            return Err(CallError::new(ErrorCode::Internal, words));
        }
        if let Some(digest) = self.seal(began).await? {
            fail::fail_point!("slot_move_sealed", |_| std::process::abort());
            let commit = MoveSlot::CommitImport {
                slot,
                epoch,
                digest,
                time_ms: frozen.time_ms,
                last_message_id: MessageId(frozen.last_message_id),
            };
            self.step(to, commit).await?;
        }
        fail::fail_point!("slot_move_committed", |_| std::process::abort());
        self.decide(MoveStage::Dropping).await?;
        self.core.slot_moves.metrics.count_moved(began.elapsed());
        fail::fail_point!("slot_move_in_map", |_| std::process::abort());
        Ok(())
    }

    /// Until enough of the destination have the frozen rows. Gives their digest; nothing if it has committed before.
    async fn seal(&self, began: Instant) -> Result<Option<u128>, CallError> {
        for turn in 0.. {
            let members = self.members().await;
            let answers = match &members {
                Ok(members) => {
                    self.stage_all(&members.voters, members.leader, true, turn)
                        .await?
                }
                Err(error) => self.stage_by_map(error, turn).await?,
            };
            if answers.iter().any(|it| it.has_committed(self.row.epoch)) {
                return Ok(None);
            }
            let Ok(members) = members else {
                continue;
            };
            let staged: BTreeMap<u64, u128> = answers
                .iter()
                .filter_map(|answer| Some((answer.node, answer.digest()?)))
                .collect();
            let digests: BTreeSet<u128> = staged.values().copied().collect();
            if digests.len() > 1 {
                let words = format!("the frozen rows of slot {} differ", self.slot);
                return Err(CallError::new(ErrorCode::Internal, words));
            }
            let waits = answers.iter().find(|it| it.digest().is_none());
            let waits = waits.map(Answer::waits);
            self.note(
                staged.keys().copied().collect(),
                waits.as_deref().unwrap_or(""),
            );
            let majority = staged.len() * 2 > members.voters.len();
            let enough = majority && staged.contains_key(&members.leader);
            let waited = began.elapsed() >= ALL_VOTERS_WAIT;
            if waits.is_none() || (enough && waited && !members.changing) {
                return Ok(digests.into_iter().next());
            }
            tokio::time::sleep(AGAIN_FROZEN).await;
        }
        Ok(None)
    }

    /// Until no replica of the destination can need the source's rows any more; then they go.
    async fn finish(&self) -> Result<(), CallError> {
        let (slot, epoch) = (self.slot, self.row.epoch);
        let mut settled = BTreeSet::new();
        for turn in 0.. {
            let members = match self.members().await {
                Ok(members) => members,
                Err(error) => {
                    self.stage_by_map(&error, turn).await?;
                    continue;
                }
            };
            let all: BTreeSet<u64> = [&members.voters, &members.learners]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            let call = StageSlotRequest {
                shard: self.row.to.0,
                slot: slot.0.into(),
                epoch,
                settle: true,
                ..StageSlotRequest::default()
            };
            let left: Vec<u64> = all.difference(&settled).copied().collect();
            let answers = join_all(left.iter().map(|node| self.ask(*node, call))).await;
            let mut waits = String::new();
            let mut without = Vec::new();
            for answer in answers {
                if answer.said.as_ref().is_ok_and(|said| said.settled) {
                    settled.insert(answer.node);
                    continue;
                }
                waits = answer.waits();
                if !answer.has_committed(epoch) {
                    without.push(answer.node);
                }
            }
            self.note(settled.clone(), &waits);
            if all.is_subset(&settled) && !members.changing {
                break;
            }
            if !without.is_empty() {
                // Its apply waits for them.
                self.stage_all(&without, members.leader, true, turn).await?;
            }
            tokio::time::sleep(AGAIN).await;
        }
        fail::fail_point!("slot_move_settled", |_| std::process::abort());
        self.step(self.row.from, MoveSlot::Drop { slot, epoch })
            .await?;
        fail::fail_point!("slot_move_dropped", |_| std::process::abort());
        self.end().await
    }

    async fn abort(&self) -> Result<(), CallError> {
        let (slot, SlotMove { epoch, from, .. }) = (self.slot, self.row);
        let abort = MoveSlot::AbortImport { slot, epoch, from };
        self.step(self.row.to, abort).await?;
        fail::fail_point!("slot_move_aborted", |_| std::process::abort());
        self.end().await?;
        self.core.slot_moves.metrics.given_up.inc();
        Ok(())
    }
}
