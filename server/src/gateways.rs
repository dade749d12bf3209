//! Keeps watch over the gateways of the cluster.
//!
//! Runs on every node, and does something on the one that leads the meta shard. Gateways tell it every few seconds that
//! they are there, and it only remembers when it heard of each: a thousand that tell every ten seconds are a hundred
//! small calls a second to one node, and not one entry. It proposes what changes a row: that one tells something new,
//! or was missed for three of its periods, or has been silent for sixty (`engine/src/gateways.rs`).
//!
//! What is remembered goes with the leadership. The next leader gives every gateway its whole time from then on: one
//! that has died is told later, and none that serves is called silent since its leader has changed. The same when this
//! process finds that it was held up itself (a paused machine, a stalled disk): whoever slept has missed everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mailbox_api::CallError;
use mailbox_engine::{
    GATEWAYS_MAX, GATEWAYS_SWEPT_MAX, GatewayId, GatewayRow, MetaCommand, ShardId,
};
use parking_lot::Mutex;

use crate::cluster_service::change;
use crate::core::Core;
use crate::meta_leader::while_leading;
use crate::metrics::GatewayMetrics;
use crate::status;

/// How often it is looked who is missed.
const LOOK: Duration = Duration::from_secs(1);
/// A look that comes so much later than it should says nothing about the gateways.
const HELD_UP: Duration = Duration::from_secs(2);

/// When the leader heard of a gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    run: u64,
    pub(crate) at: Instant,
    /// Sockets open there.
    pub(crate) connections: u32,
}

/// What one node remembers of the gateways while it leads.
pub(crate) struct Gateways {
    metrics: GatewayMetrics,
    heard: Mutex<BTreeMap<GatewayId, Heard>>,
    /// One above the index of the membership of the meta shard whose members all know gateways.
    known_at: AtomicU64,
}

impl Gateways {
    pub(crate) fn new(metrics: GatewayMetrics) -> Self {
        Self {
            metrics,
            heard: Mutex::default(),
            known_at: AtomicU64::new(0),
        }
    }

    /// A gateway has told that it is there.
    pub(crate) fn heard(&self, gateway: GatewayId, run: u64, connections: u32) {
        self.metrics.refreshes.inc();
        let at = Instant::now();
        let now = Heard {
            run,
            at,
            connections,
        };
        let mut heard = self.heard.lock();
        // As many as have rows, and those whose rows have gone since the last look.
        if heard.len() < 2 * GATEWAYS_MAX as usize || heard.contains_key(&gateway) {
            heard.insert(gateway, now);
        }
    }

    /// When this run of a gateway was heard of, if that was since this node leads.
    pub(crate) fn heard_of(&self, gateway: &GatewayId, run: u64) -> Option<Heard> {
        let heard = self.heard.lock();
        heard.get(gateway).copied().filter(|heard| heard.run == run)
    }

    /// All members of the meta shard know the commands, as of this membership.
    pub(crate) fn known_by_members_at(&self, index: u64) -> bool {
        self.known_at.load(Ordering::Relaxed) == index + 1
    }

    pub(crate) fn note_known_by_members_at(&self, index: u64) {
        self.known_at.store(index + 1, Ordering::Relaxed);
    }

    /// Those that were missed: not heard of for their time up to `now`, nor since `begun`, when this node began to
    /// listen; and whose time since the row's last change is over at `time_ms`, too. Forgets what it heard of gateways
    /// that have no row.
    fn missed(
        &self,
        rows: &[(GatewayId, GatewayRow)],
        time_ms: u64,
        begun: Instant,
        now: Instant,
    ) -> Vec<(GatewayId, u64)> {
        let mut heard = self.heard.lock();
        heard.retain(|gateway, _| rows.binary_search_by(|(id, _)| id.cmp(gateway)).is_ok());
        let missed = rows.iter().filter(|(gateway, row)| {
            let last = heard.get(gateway).filter(|it| it.run == row.facts.run);
            let last = last.map_or(begun, |it| it.at.max(begun));
            let patience = Duration::from_millis(row.facts.silent_after_ms());
            row.may_be_silent(time_ms) && now.saturating_duration_since(last) >= patience
        });
        missed
            .take(GATEWAYS_SWEPT_MAX)
            .map(|(gateway, row)| (gateway.clone(), row.facts.run))
            .collect()
    }
}

/// Keeps watch whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let watching = || {
        let core = Arc::clone(&core);
        async move { watch(&core).await }
    };
    let ended = || {
        core.gateways.heard.lock().clear();
        core.gateways.metrics.set_rows(&[]);
    };
    while_leading(&core, watching, ended).await;
}

async fn watch(core: &Core) {
    let mut begun = Instant::now();
    let mut looked = begun;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Instant::now();
        if now.duration_since(looked) > LOOK + HELD_UP {
            begun = now;
        }
        looked = now;
        if let Err(error) = look(core, begun, now).await {
            tracing::debug!(%error, "gateways cannot be looked after");
        }
    }
}

async fn look(core: &Core, begun: Instant, now: Instant) -> Result<(), CallError> {
    let meta = core.shard(ShardId::META.0)?;
    let rows = core.read(&meta, mailbox_engine::Shard::gateways).await?;
    core.gateways.metrics.set_rows(&rows);
    if !rows.is_empty() {
        // Also for when the last one has gone and a member cannot be asked.
        let index = meta.membership().index;
        core.gateways.note_known_by_members_at(index);
    }
    let clock = core.node.clock_now_ms();
    let time_ms = clock.map_err(|fault| status::unavailable(fault.to_string()))?;
    let over = rows.iter().any(|(_, row)| row.is_over(time_ms));
    let missed = core.gateways.missed(&rows, time_ms, begun, now);
    if missed.is_empty() && !over {
        return Ok(());
    }
    for (gateway, run) in &missed {
        tracing::warn!(%gateway, run, "a gateway is silent");
    }
    change(core, MetaCommand::SweepGateways { missed }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use mailbox_engine::{GatewayFacts, GatewayStanding};

    use super::*;

    fn id(name: &str) -> GatewayId {
        GatewayId::new(name).unwrap()
    }

    fn row(name: &str, run: u64, changed_ms: u64) -> (GatewayId, GatewayRow) {
        let facts = GatewayFacts {
            run,
            refresh_ms: 1000,
            ..GatewayFacts::default()
        };
        let row = GatewayRow {
            facts,
            standing: GatewayStanding::Serving,
            changed_ms,
        };
        (id(name), row)
    }

    #[test]
    fn who_was_heard_of_in_time_is_not_missed() {
        let gateways = Gateways::new(GatewayMetrics::default());
        let rows = [row("a", 1, 0), row("b", 1, 0), row("c", 1, 9_000)];
        let begun = Instant::now();
        gateways.heard(id("a"), 1, 5);
        gateways.heard(id("b"), 2, 5);
        gateways.heard(id("gone"), 1, 5);
        let missed = |after_ms, begun| {
            let now = Instant::now() + Duration::from_millis(after_ms);
            let missed = gateways.missed(&rows, 10_000, begun, now);
            let names = missed.iter().map(|(id, _)| id.as_str().to_owned());
            names.collect::<Vec<_>>()
        };
        // Nobody within the time from the begin on.
        assert_eq!(missed(0, begun), [""; 0]);
        // Of b another run was heard; c has told something new, which is in the log, a second ago.
        assert_eq!(missed(4_000, begun), ["a", "b"]);
        gateways.heard(id("a"), 1, 5);
        {
            let mut heard = gateways.heard.lock();
            heard.get_mut(&id("a")).unwrap().at += Duration::from_millis(2_000);
        }
        assert_eq!(missed(4_000, begun), ["b"]);
        // Who was held up itself has missed nobody.
        let later = Instant::now() + Duration::from_millis(3_000);
        assert_eq!(missed(4_000, later), [""; 0]);
        assert!(gateways.heard_of(&id("gone"), 1).is_none());
        assert_eq!(gateways.heard_of(&id("a"), 1).unwrap().connections, 5);
        assert!(gateways.heard_of(&id("a"), 2).is_none());
    }

    #[test]
    fn what_members_know_is_remembered_for_their_membership_only() {
        let gateways = Gateways::new(GatewayMetrics::default());
        assert!(!gateways.known_by_members_at(0));
        gateways.note_known_by_members_at(0);
        assert!(gateways.known_by_members_at(0) && !gateways.known_by_members_at(1));
    }
}
