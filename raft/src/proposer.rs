//! From calls to entries: coalesces what waits, sets time and message ids in log order, and keeps a few
//! entries in flight.
//!
//! At low load a call becomes an entry at once. While an entry is in flight, the next one goes when it is worth its
//! cost ([`ENTRY_COMMANDS_WORTH`]) or when nothing is in flight any more, whichever comes first: what waits meanwhile
//! waits for the round trip of one entry. (The rule of Nagle, RFC 896, for entries. An entry costs its shard's replicas
//! some hundred microseconds together, whatever is in it.) Where several shards of a node are busy at the same time,
//! what is not worth an entry waits for their next common moment (`entry_tick.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mailbox_engine::{
    AckLanes, ClusterOptions, Command, EntryBuilder, Hlc, LaneId, Reply, SetClusterOptions,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::cluster_options;
use crate::commands::{len_bytes, may_ride_a_lane};
use crate::disk::DiskRoom;
use crate::entry_tick::Company;
use crate::error::ProposeError;
use crate::outbox::OutboxFeed;
use crate::pending_acks::PendingAcks;
use crate::replica::{Raft, Road};
use crate::status::Leadership;
use crate::types::{Cmd, LeaderId, OnComplete};

mod flight;

use flight::{Answer, Flight, Flights};

/// A call that is larger is refused.
pub(crate) const ENTRY_BYTES_MAX: u64 = 1 << 20;
/// The same of a call of lanes: an item is a few bytes longer than the call that made it, and must not be stuck.
pub(crate) const LANES_BYTES_MAX: u64 = 2 << 20;
/// An entry takes no further call once it has so many bytes or commands. What waits meanwhile makes the next.
pub(crate) const ENTRY_BYTES_FULL: u64 = 256 << 10;
const ENTRY_COMMANDS_FULL: usize = 4096;
/// Entries proposed and not yet applied. Few: what cannot be proposed yet waits together, in one entry.
const ENTRIES_IN_FLIGHT_MAX: usize = 8;
/// An entry of fewer commands and bytes waits while another one is in flight.
const ENTRY_COMMANDS_WORTH: usize = 32;
const ENTRY_BYTES_WORTH: u64 = 32 << 10;

/// How long a leader of a new cluster waits before it tries again to propose the cluster's options.
const OPTIONS_PAUSE: Duration = Duration::from_millis(50);

const _: () = assert!(ENTRY_BYTES_MAX < LANES_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_FULL + LANES_BYTES_MAX < 16 << 20);

const STOPPED: &str = "the replica has stopped";

struct Call {
    commands: Vec<Command>,
    bytes: u64,
    /// Of a relay, or a change of the map: not refused for space.
    lanes: bool,
    answer: Answer,
}

/// What a proposer needs to know before it proposes.
pub(crate) struct Guards {
    pub(crate) clock: Arc<Clock>,
    pub(crate) disk: Arc<DiskRoom>,
    pub(crate) road: Road,
    pub(crate) skew_max_ms: u64,
    /// Bytes of calls that may be proposed and not yet applied.
    pub(crate) queue_bytes_max: u64,
    /// What a shard without options gets, and an older one of what it lacks.
    pub(crate) cluster_options: ClusterOptions,
    /// Bytes of unacked items above which calls that may add to them are refused.
    pub(crate) outbox_bytes_max: u64,
    pub(crate) outbox: Arc<OutboxFeed>,
    /// This shard's among the node's.
    pub(crate) company: Company,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    acks: PendingAcks,
    /// The replica has stopped: nobody takes calls any more.
    closed: bool,
}

/// Where calls queue.
pub(crate) struct Proposer {
    queue: Mutex<Queue>,
    flights: Mutex<Flights>,
    /// Bytes in the queue and in flight.
    bytes: AtomicU64,
    wake: Notify,
    guards: Guards,
    leadership: watch::Receiver<Leadership>,
}

impl Proposer {
    pub(crate) fn spawn(
        raft: Raft,
        engine: Arc<mailbox_engine::Shard>,
        leadership: watch::Receiver<Leadership>,
        guards: Guards,
    ) -> (Arc<Proposer>, [JoinHandle<()>; 2]) {
        let proposer = Arc::new(Proposer {
            queue: Mutex::default(),
            flights: Mutex::default(),
            bytes: AtomicU64::new(0),
            wake: Notify::new(),
            guards,
            leadership,
        });
        let run = Run {
            leadership: proposer.leadership.clone(),
            proposer: proposer.clone(),
            raft,
            engine,
            in_flight: Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX)),
            ids: None,
            options_proposed_in: None,
            last_flight: 0,
        };
        let span = tracing::debug_span!("proposer", shard = run.engine.id().0);
        let tasks = [
            tokio::spawn(run.run().instrument(span)),
            tokio::spawn(give_up_with_leadership(proposer.clone())),
        ];
        (proposer, tasks)
    }

    pub(crate) async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Reply>, ProposeError> {
        if let Some(elsewhere) = self.guards.road.of(&self.leadership.borrow()) {
            return Err(elsewhere);
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = commands.iter().map(len_bytes).sum();
        if bytes > ENTRY_BYTES_MAX {
            return Err(ProposeError::EntryTooLarge {
                bytes,
                limit: ENTRY_BYTES_MAX,
            });
        }
        let (outbox_bytes, limit) = (self.guards.outbox.bytes(), self.guards.outbox_bytes_max);
        if outbox_bytes > limit && commands.iter().any(may_ride_a_lane) {
            return Err(ProposeError::OutboxFull {
                bytes: outbox_bytes,
                limit,
            });
        }
        let limit = self.guards.queue_bytes_max;
        let queued_bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if queued_bytes > limit {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ProposeError::Busy {
                queued_bytes: queued_bytes - bytes,
                limit,
            });
        }
        // A full disk is mended by moving replicas and slots: what does that is not refused for it.
        let spared = commands.iter().all(|command| {
            matches!(
                command,
                Command::Meta(_) | Command::MoveSlot(_) | Command::SplitShard(_)
            )
        });
        self.queue(commands, bytes, spared).await
    }

    /// As `propose`, for a relay: bounded by what relays have in flight, not by what waits here.
    pub(crate) async fn propose_lanes(
        &self,
        commands: Vec<Command>,
    ) -> Result<Vec<Reply>, ProposeError> {
        if let Some(elsewhere) = self.guards.road.of(&self.leadership.borrow()) {
            return Err(elsewhere);
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = commands.iter().map(len_bytes).sum();
        if bytes > LANES_BYTES_MAX {
            return Err(ProposeError::EntryTooLarge {
                bytes,
                limit: LANES_BYTES_MAX,
            });
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue(commands, bytes, true).await
    }

    /// Keeps acks for the next entry.
    pub(crate) fn ack_lanes(&self, acks: impl IntoIterator<Item = (LaneId, u64)>) {
        let first = {
            let mut queue = self.queue.lock();
            let before = queue.acks.is_due_at();
            queue.acks.extend(acks, Instant::now());
            before != queue.acks.is_due_at()
        };
        if first {
            self.wake.notify_one();
        }
    }

    async fn queue(
        &self,
        commands: Vec<Command>,
        bytes: u64,
        lanes: bool,
    ) -> Result<Vec<Reply>, ProposeError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(lost(STOPPED));
            }
            // What waits is refused once, when the leadership is lost. What comes after that would wait for room
            // among the entries in flight, which nobody answers without a majority.
            if let Some(elsewhere) = self.guards.road.of(&self.leadership.borrow()) {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(elsewhere);
            }
            if queue.calls.is_empty() {
                queue.since = Some(Instant::now());
            }
            self.guards.company.came(commands.len());
            queue.calls.push_back(Call {
                commands,
                bytes,
                lanes,
                answer,
            });
        }
        self.wake.notify_one();
        tracing::debug!(bytes, "waits to be proposed");
        answered.await.unwrap_or_else(|_| Err(lost(STOPPED)))
    }

    /// Refuses what waits and what comes. Entries in flight still answer, or drop their callers.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.refuse_all(&lost(STOPPED));
    }

    /// Bytes proposed and not yet applied.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The relay begins anew with another leadership, and brings all acks again.
    fn refuse_all(&self, error: &ProposeError) {
        self.queue.lock().acks = PendingAcks::default();
        self.refuse_calls(error);
    }

    /// Refuses what waits but acks: nobody would bring them again in this leadership.
    fn refuse_calls(&self, error: &ProposeError) {
        let calls = std::mem::take(&mut self.queue.lock().calls);
        self.refuse(calls, error);
    }

    fn has_acks(&self) -> bool {
        self.queue.lock().acks.is_due_at().is_some()
    }

    /// Refuses what is not a relay's.
    fn refuse_clients(&self, error: &ProposeError) {
        let calls = {
            let mut queue = self.queue.lock();
            let all = std::mem::take(&mut queue.calls);
            let (lanes, clients) = all.into_iter().partition(|call| call.lanes);
            queue.calls = lanes;
            clients
        };
        self.refuse(calls, error);
    }

    fn refuse(&self, calls: VecDeque<Call>, error: &ProposeError) {
        for call in calls {
            self.bytes.fetch_sub(call.bytes, Ordering::Relaxed);
            self.guards.company.left(call.commands.len());
            // A caller that has gone needs no answer.
            let _ = call.answer.send(Err(error.clone()));
        }
    }

    /// Answers those whose entries are in flight: without leadership nobody here learns soon what becomes of
    /// the entries, if a majority is out of reach.
    fn give_up_flights(&self) {
        let callers = self.flights.lock().take();
        for (commands, answer) in callers.into_iter().flatten() {
            self.guards.company.left(commands);
            // A caller that has gone will ask again with the same ids.
            let _ = answer.send(Err(lost(
                "leadership was lost before the entry was applied",
            )));
        }
        self.wake.notify_one();
    }

    /// Who waited for an entry, if they were not answered before it landed or was dropped.
    fn end_flight(&self, number: u64) -> Option<flight::Callers> {
        let callers = self.flights.lock().end(number)?;
        let commands = callers.iter().map(|(commands, _)| commands).sum();
        self.guards.company.left(commands);
        Some(callers)
    }

    /// When there is something to propose: at once, at the node's next tick, or when acks have waited long enough;
    /// `None`: not yet known, but whoever knows rings.
    fn due(&self) -> Option<Instant> {
        let queue = self.queue.lock();
        if queue.calls.is_empty() {
            return queue.acks.is_due_at();
        }
        let (mut commands, mut bytes) = (0, 0);
        let is_worth = queue.calls.iter().any(|call| {
            commands += call.commands.len();
            bytes += call.bytes;
            commands >= ENTRY_COMMANDS_WORTH || bytes >= ENTRY_BYTES_WORTH
        });
        let since = queue.since;
        drop(queue);
        if is_worth {
            return Some(Instant::now());
        }
        let last_landed = self.flights.lock().all_landed()?;
        let could_go = since.max(last_landed).unwrap_or_else(Instant::now);
        Some(self.guards.company.next(could_go))
    }

    /// What fits into one entry, at least one call if one waits; and all acks.
    fn take_entry(&self) -> (Vec<Call>, Vec<(LaneId, u64)>) {
        let mut queue = self.queue.lock();
        let (mut bytes, mut commands, mut calls) = (0, 0, 0);
        for call in &queue.calls {
            if calls > 0 && (bytes >= ENTRY_BYTES_FULL || commands >= ENTRY_COMMANDS_FULL) {
                break;
            }
            bytes += call.bytes;
            commands += call.commands.len();
            calls += 1;
        }
        let acks = queue.acks.take();
        let taken = queue.calls.drain(..calls).collect();
        queue.since = (!queue.calls.is_empty()).then(Instant::now);
        (taken, acks)
    }
}

fn lost(reason: &str) -> ProposeError {
    ProposeError::Unavailable {
        reason: reason.to_owned(),
    }
}

async fn give_up_with_leadership(proposer: Arc<Proposer>) {
    let mut leadership = proposer.leadership.clone();
    while leadership.changed().await.is_ok() {
        let elsewhere = proposer.guards.road.of(&leadership.borrow_and_update());
        if let Some(elsewhere) = elsewhere {
            proposer.refuse_all(&elsewhere);
            proposer.give_up_flights();
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

struct Run {
    proposer: Arc<Proposer>,
    raft: Raft,
    engine: Arc<mailbox_engine::Shard>,
    leadership: watch::Receiver<Leadership>,
    in_flight: Arc<Semaphore>,
    /// Of the term in which this node last proposed.
    ids: Option<(u64, Hlc)>,
    /// The term in which this node last proposed the cluster's options.
    options_proposed_in: Option<u64>,
    last_flight: u64,
}

impl Run {
    async fn run(mut self) {
        loop {
            while !self.must_set_options() {
                let due = self.proposer.due();
                if due.is_some_and(|due| due <= Instant::now()) {
                    break;
                }
                tokio::select! {
                    () = self.proposer.wake.notified() => {}
                    // The replica has stopped.
                    changed = self.leadership.changed() => if changed.is_err() { return },
                    () = sleep_until(due) => {}
                }
            }
            let Ok(permit) = self.in_flight.clone().acquire_owned().await else {
                return;
            };
            if !self.propose(permit).await {
                self.proposer.close();
                return;
            }
        }
    }

    /// Proposes one entry, or refuses what waits. False once the replica has stopped.
    async fn propose(&mut self, permit: OwnedSemaphorePermit) -> bool {
        let leadership = self.leadership.borrow_and_update().clone();
        let term = match leadership {
            Leadership::Leader { term, ready: true } => term,
            // Before it has applied its first entry this leader does not know the last message id.
            Leadership::Leader { ready: false, .. } => {
                return self.leadership.changed().await.is_ok();
            }
            Leadership::Follower { .. } => {
                if let Some(elsewhere) = self.proposer.guards.road.of(&leadership) {
                    self.proposer.refuse_all(&elsewhere);
                }
                return true;
            }
        };
        let clock_ms = match self.admit() {
            Ok(clock_ms) => clock_ms,
            Err(error) => {
                self.proposer.refuse_calls(&error);
                if self.must_set_options() || self.proposer.has_acks() {
                    // Nobody need call for these: without a pause they would be tried again at once.
                    tokio::time::sleep(OPTIONS_PAUSE).await;
                }
                return true;
            }
        };
        if self.must_set_options() {
            return self.set_options(term, clock_ms, permit).await;
        }
        let (calls, acks) = self.proposer.take_entry();
        if calls.is_empty() && acks.is_empty() {
            return true;
        }
        let (entry, flight) = self.build(calls, acks, term, clock_ms, permit);
        self.write(entry, term, flight).await
    }

    async fn write(&self, entry: bytes::Bytes, term: u64, flight: Flight) -> bool {
        let write = self
            .raft
            .write(Cmd(entry))
            // Ids belong to this term: a later leadership of this node must not take the entry over.
            .with_leader(LeaderId::new(term))
            .responder(OnComplete(Box::new(move |result| flight.land(result))));
        write.await.is_ok()
    }

    /// This node leads a shard that lacks cluster options, and has not proposed them in this term. The leader
    /// before may have: what it proposed is applied first, and then ours changes nothing.
    fn must_set_options(&self) -> bool {
        match *self.leadership.borrow() {
            Leadership::Leader { term, ready: true } => {
                self.options_proposed_in != Some(term)
                    && cluster_options::is_absent(
                        &self.proposer.guards.cluster_options,
                        &self.engine,
                    )
            }
            Leadership::Leader { ready: false, .. } | Leadership::Follower { .. } => false,
        }
    }

    /// Part of the bootstrap: the first command of a new cluster, before any client's.
    async fn set_options(
        &mut self,
        term: u64,
        clock_ms: u64,
        permit: OwnedSemaphorePermit,
    ) -> bool {
        self.options_proposed_in = Some(term);
        let mut builder = EntryBuilder::new(clock_ms);
        let configured = &self.proposer.guards.cluster_options;
        builder.push(&Command::SetClusterOptions(SetClusterOptions {
            options: cluster_options::to_propose(configured, &self.engine),
            if_absent: true,
        }));
        let flight = self.flight(permit);
        // Nobody waits for it.
        self.proposer
            .flights
            .lock()
            .begin(flight.number, Vec::new());
        self.write(builder.finish(), term, flight).await
    }

    fn flight(&mut self, permit: OwnedSemaphorePermit) -> Flight {
        self.last_flight += 1;
        Flight::new(self.proposer.clone(), self.last_flight, permit)
    }

    fn admit(&self) -> Result<u64, ProposeError> {
        if let Err(full) = self.proposer.guards.disk.check() {
            self.proposer.refuse_clients(&full);
        }
        Ok(self.proposer.guards.clock.now_ms()?)
    }

    fn build(
        &mut self,
        calls: Vec<Call>,
        acks: Vec<(LaneId, u64)>,
        term: u64,
        clock_ms: u64,
        permit: OwnedSemaphorePermit,
    ) -> (bytes::Bytes, Flight) {
        let skew_max_ms = self.proposer.guards.skew_max_ms;
        if self.ids.as_ref().is_none_or(|(of, _)| *of != term) {
            let last = self.engine.applied().last_message_id;
            self.ids = Some((term, Hlc::new(last, skew_max_ms)));
        }
        let mut flight = self.flight(permit);
        let (_, ids) = self.ids.as_mut().expect("set above");
        // A slot that has moved in may have brought later ones.
        ids.raise(self.engine.last_message_id());
        let mut builder = EntryBuilder::new(clock_ms);
        let mut callers = Vec::with_capacity(calls.len());
        for mut call in calls {
            for command in &mut call.commands {
                command.assign(ids, clock_ms);
                builder.push(command);
            }
            flight.bytes += call.bytes;
            callers.push((call.commands.len(), call.answer));
        }
        tracing::debug!(
            term,
            flight = flight.number,
            calls = callers.len(),
            bytes = flight.bytes,
            "propose an entry"
        );
        if !acks.is_empty() {
            builder.push(&Command::AckLanes(AckLanes { acks }));
        }
        self.proposer.flights.lock().begin(flight.number, callers);
        // Those in flight are given up once, too, and these may have come after that.
        if matches!(*self.leadership.borrow(), Leadership::Follower { .. }) {
            self.proposer.give_up_flights();
        }
        (builder.finish(), flight)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::leadership::NOBODY;
    use crate::node::Node;
    use crate::open::tests::{SHARD, options, stop};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_comes_when_the_leadership_is_just_lost_waits_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(options(dir.path())).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        let replica = shard.replica().clone();
        // Behind the look that a call takes before it queues.
        replica.leadership.send_replace(NOBODY);
        let queued = replica.proposer.queue(vec![Command::Cut], 0, false);
        let answer = queued.now_or_never();
        assert!(
            matches!(answer, Some(Err(ProposeError::NotLeader { .. }))),
            "{answer:?}"
        );
        drop(replica);
        stop(node, shard).await;
    }
}
