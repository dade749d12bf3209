//! Metrics of a store node. `METRICS.md` lists every one; a test keeps the page true.
//!
//! Counters of the hot path are plain atomics that are counted once a frame. What the engine and
//! the replicas count themselves is read when somebody asks, see `replica_metrics.rs`.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::SubmitResult;
use mailbox_api::v1::submit_result::Result as Outcome;
use mailbox_engine::{GatewayId, GatewayRow, GatewayStanding};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::Status;

/// How an answer ended: `Ok` or the name of the error code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    call: &'static str,
    code: &'static str,
}

/// Why sends were refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CodeLabel {
    code: &'static str,
}

/// How many of something there are now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Level(Gauge<i64, AtomicI64>);

impl Level {
    /// One more, until the guard is dropped.
    pub(crate) fn guard(&self) -> LevelGuard {
        self.guard_by(1)
    }

    /// So many more, until the guard is dropped.
    pub(crate) fn guard_by(&self, count: usize) -> LevelGuard {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.add(count);
        LevelGuard {
            level: self.clone(),
            count,
        }
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn dec(&self) {
        self.add(-1);
    }

    pub(crate) fn add(&self, count: i64) {
        self.0.inc_by(count);
    }
}

/// Takes its count back when dropped.
pub(crate) struct LevelGuard {
    level: Level,
    count: i64,
}

impl Drop for LevelGuard {
    fn drop(&mut self) {
        self.level.add(-self.count);
    }
}

/// What the services of a node count.
#[derive(Debug, Default)]
pub(crate) struct ServerMetrics {
    calls: Family<CallLabels, Counter>,
    pub(crate) connections: Level,
    pub(crate) submit_streams: Level,
    pub(crate) submit_frames: Counter,
    pub(crate) submit_sends: Counter,
    pub(crate) submit_in_flight: Level,
    submit_refusals: Family<CodeLabel, Counter>,
    pub(crate) feed_streams: Level,
    pub(crate) feed_subscriptions: Level,
    pub(crate) feed_rows: Counter,
    pub(crate) feed_rereads: Counter,
    pub(crate) sync_rows: Counter,
    pub(crate) lanes: LaneMetrics,
    pub(crate) placement: PlacementMetrics,
    pub(crate) slot_moves: SlotMoveMetrics,
    pub(crate) shard_splits: ShardSplitMetrics,
    pub(crate) auto_splits: AutoSplitMetrics,
    pub(crate) shard_merges: ShardMergeMetrics,
    pub(crate) gateways: GatewayMetrics,
}

/// A step of the placement, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StepLabels {
    step: &'static str,
    outcome: &'static str,
}

/// What the placement counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacementMetrics {
    steps: Family<StepLabels, Counter>,
    running: Level,
    pub(crate) map_repairs: Counter,
    pub(crate) faults: Counter,
}

impl PlacementMetrics {
    /// A step has ended.
    pub(crate) fn count_step(&self, step: &'static str, outcome: &'static str) {
        let labels = StepLabels { step, outcome };
        self.steps.get_or_create(&labels).inc();
    }

    /// So many steps are under way.
    pub(crate) fn set_running(&self, steps: usize) {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        self.running.0.set(steps);
    }

    fn register(&self, registry: &mut Registry) {
        let placement = registry.sub_registry_with_prefix("mailbox_placement");
        placement.register(
            "steps",
            "Steps of the placement that this node executed, by step and outcome",
            self.steps.clone(),
        );
        placement.register(
            "running_steps",
            "Steps that this node is executing",
            self.running.0.clone(),
        );
        placement.register(
            "map_repairs",
            "Times the map and a shard's members were brought together after a step had ended half-way",
            self.map_repairs.clone(),
        );
        placement.register(
            "faults",
            "Rounds in which nothing could be planned, as the map could not be read",
            self.faults.clone(),
        );
    }
}

/// What the moves of slots count. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct SlotMoveMetrics {
    running: Level,
    moved: Counter,
    pub(crate) given_up: Counter,
    frozen_seconds: Counter<f64, AtomicU64>,
    longest_freeze: Gauge<f64, AtomicU64>,
}

impl SlotMoveMetrics {
    /// So many moves are under way.
    pub(crate) fn set_running(&self, moves: usize) {
        self.running.0.set(i64::try_from(moves).unwrap_or(i64::MAX));
    }

    /// A slot is in its new shard. Nobody served it for so long.
    pub(crate) fn count_moved(&self, frozen: Duration) {
        self.moved.inc();
        self.frozen_seconds.inc_by(frozen.as_secs_f64());
        let longest = self.longest_freeze.get().max(frozen.as_secs_f64());
        self.longest_freeze.set(longest);
    }

    fn register(&self, registry: &mut Registry) {
        let moves = registry.sub_registry_with_prefix("mailbox_slot_moves");
        moves.register(
            "running",
            "Moves of slots between shards that are under way",
            self.running.0.clone(),
        );
        moves.register(
            "moved",
            "Slots that this node has brought into another shard",
            self.moved.clone(),
        );
        moves.register(
            "given_up",
            "Moves of slots that were given up",
            self.given_up.clone(),
        );
        moves.register(
            "frozen_seconds",
            "Time in which nobody served a slot that this node moved",
            self.frozen_seconds.clone(),
        );
        moves.register(
            "longest_freeze_seconds",
            "The longest of these times since the node started",
            self.longest_freeze.clone(),
        );
    }
}

/// What the splits of shards count. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardSplitMetrics {
    running: Level,
    done: Counter,
    unserved_seconds: Counter<f64, AtomicU64>,
    longest_unserved: Gauge<f64, AtomicU64>,
}

impl ShardSplitMetrics {
    /// So many splits are under way.
    pub(crate) fn set_running(&self, splits: usize) {
        let splits = i64::try_from(splits).unwrap_or(i64::MAX);
        self.running.0.set(splits);
    }

    /// Both shards are in the map. Nobody served what has gone for so long, at most.
    pub(crate) fn count_done(&self, unserved: Duration) {
        self.done.inc();
        self.unserved_seconds.inc_by(unserved.as_secs_f64());
        let longest = self.longest_unserved.get().max(unserved.as_secs_f64());
        self.longest_unserved.set(longest);
    }

    fn register(&self, registry: &mut Registry) {
        let splits = registry.sub_registry_with_prefix("mailbox_shard_splits");
        splits.register(
            "running",
            "Splits of shards that are under way",
            self.running.0.clone(),
        );
        splits.register(
            "done",
            "Splits of shards that this node has brought into the map",
            self.done.clone(),
        );
        splits.register(
            "unserved_seconds",
            "Time in which nobody served slots that a split carried on here had taken",
            self.unserved_seconds.clone(),
        );
        splits.register(
            "longest_unserved_seconds",
            "The longest of these times since the node started",
            self.longest_unserved.clone(),
        );
    }
}

/// What is counted of splits that begin by themselves. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct AutoSplitMetrics {
    pub(crate) looks: Counter,
    pub(crate) begun: Counter,
    pub(crate) put_off: Counter,
    unsplit: Level,
}

impl AutoSplitMetrics {
    /// So many shards cannot be split.
    pub(crate) fn set_unsplit(&self, shards: usize) {
        let shards = i64::try_from(shards).unwrap_or(i64::MAX);
        self.unsplit.0.set(shards);
    }

    fn register(&self, registry: &mut Registry) {
        let splits = registry.sub_registry_with_prefix("mailbox_auto_splits");
        splits.register(
            "looks",
            "Looks at all shards for one that is to be split by itself",
            self.looks.clone(),
        );
        splits.register(
            "begun",
            "Splits that this node has begun by itself",
            self.begun.clone(),
        );
        splits.register(
            "put_off",
            "Splits that this node would have begun by itself and could not",
            self.put_off.clone(),
        );
        splits.register(
            "unsplit_shards",
            "Shards over a limit that cannot be split; 0 where the meta shard is not led",
            self.unsplit.0.clone(),
        );
    }
}

/// What the merges of shards count. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardMergeMetrics {
    running: Level,
    slots_left: Level,
    pub(crate) done: Counter,
}

impl ShardMergeMetrics {
    /// So many merges are under way, and so many slots have still to move for them.
    pub(crate) fn set_running(&self, merges: usize, slots_left: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.0.set(number(merges));
        self.slots_left.0.set(number(slots_left));
    }

    fn register(&self, registry: &mut Registry) {
        let merges = registry.sub_registry_with_prefix("mailbox_shard_merges");
        merges.register(
            "running",
            "Merges of shards that are under way",
            self.running.0.clone(),
        );
        merges.register(
            "slots_left",
            "Slots that have still to move for them",
            self.slots_left.0.clone(),
        );
        merges.register(
            "done",
            "Merges of shards that this node has ended: the shard is retired",
            self.done.clone(),
        );
    }
}

/// How a gateway stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StandingLabel {
    standing: &'static str,
}

/// What the registry of gateways counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayMetrics {
    registered: Family<StandingLabel, Gauge>,
    pub(crate) refreshes: Counter,
}

impl GatewayMetrics {
    /// These are registered.
    pub(crate) fn set_rows(&self, rows: &[(GatewayId, GatewayRow)]) {
        for (standing, name) in [
            (GatewayStanding::Serving, "serving"),
            (GatewayStanding::Draining, "draining"),
            (GatewayStanding::Silent, "silent"),
        ] {
            let rows = rows.iter().filter(|(_, row)| row.standing == standing);
            let count = i64::try_from(rows.count()).unwrap_or(i64::MAX);
            let label = StandingLabel { standing: name };
            self.registered.get_or_create(&label).set(count);
        }
    }

    fn register(&self, registry: &mut Registry) {
        let gateways = registry.sub_registry_with_prefix("mailbox_gateways");
        gateways.register(
            "registered",
            "Gateways that are registered, by how they stand; 0 where the meta shard is not led",
            self.registered.clone(),
        );
        gateways.register(
            "refreshes",
            "Times a gateway told this node, as the leader of the meta shard, that it is there",
            self.refreshes.clone(),
        );
    }
}

/// What the relay counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneMetrics {
    pub(crate) items_shipped: Counter,
    pub(crate) items_acked: Counter,
    pub(crate) gaps: Counter,
    oldest_unacked: Gauge<f64, AtomicU64>,
}

impl LaneMetrics {
    /// How long the item has waited that waits longest.
    pub(crate) fn set_oldest(&self, age: Duration) {
        self.oldest_unacked.set(age.as_secs_f64());
    }

    /// As it was set last.
    pub(crate) fn oldest(&self) -> Duration {
        Duration::try_from_secs_f64(self.oldest_unacked.get()).unwrap_or_default()
    }

    fn register(&self, registry: &mut Registry) {
        let lanes = registry.sub_registry_with_prefix("mailbox_lane");
        lanes.register(
            "items_shipped",
            "Lane items sent to their destinations, those sent again included",
            self.items_shipped.clone(),
        );
        lanes.register(
            "items_acked",
            "Lane items that their destinations have taken in",
            self.items_acked.clone(),
        );
        lanes.register(
            "gaps",
            "Runs of lane items of which the ones before were lost on the way",
            self.gaps.clone(),
        );
        lanes.register(
            "oldest_unacked_seconds",
            "Age of the oldest lane item that waits here for its destination, as of the last second",
            self.oldest_unacked.clone(),
        );
    }
}

impl ServerMetrics {
    /// Registers every metric under `mailbox_server_…`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.lanes.register(registry);
        self.placement.register(registry);
        self.slot_moves.register(registry);
        self.shard_splits.register(registry);
        self.auto_splits.register(registry);
        self.shard_merges.register(registry);
        self.gateways.register(registry);
        let server = registry.sub_registry_with_prefix("mailbox_server");
        server.register("calls", "Calls by name and outcome", self.calls.clone());
        server.register(
            "connections_open",
            "gRPC connections",
            self.connections.0.clone(),
        );
        server.register(
            "submit_streams_open",
            "Submit streams",
            self.submit_streams.0.clone(),
        );
        server.register(
            "submit_frames",
            "Frames of sends received",
            self.submit_frames.clone(),
        );
        server.register(
            "submit_sends",
            "Sends received on streams",
            self.submit_sends.clone(),
        );
        server.register(
            "submit_in_flight_sends",
            "Sends received on streams and not yet answered",
            self.submit_in_flight.0.clone(),
        );
        server.register(
            "submit_refusals",
            "Sends on streams that were answered with an error, by code",
            self.submit_refusals.clone(),
        );
        server.register(
            "feed_streams_open",
            "Subscribe streams",
            self.feed_streams.0.clone(),
        );
        server.register(
            "feed_subscriptions_open",
            "Subscriptions on all streams",
            self.feed_subscriptions.0.clone(),
        );
        server.register(
            "feed_rows",
            "Messages given to subscriptions",
            self.feed_rows.clone(),
        );
        server.register(
            "feed_rereads",
            "Times a stream was too slow for the live tail and read the store",
            self.feed_rereads.clone(),
        );
        server.register(
            "sync_rows",
            "Messages returned by Sync",
            self.sync_rows.clone(),
        );
    }

    /// Counts a call by how it ended.
    pub(crate) fn count_call(&self, call: &'static str, error: Option<&Status>) {
        let code = error.map_or("Ok", |status| CallError::from_status(status).code().name());
        self.calls.get_or_create(&CallLabels { call, code }).inc();
    }

    /// Counts the refusals of a frame; what went well costs nothing here.
    pub(crate) fn count_results(&self, results: &[SubmitResult]) {
        for result in results {
            if let Some(Outcome::Error(error)) = &result.result {
                let code = CallError(error.clone()).code().name();
                self.submit_refusals
                    .get_or_create(&CodeLabel { code })
                    .inc();
            }
        }
    }
}
