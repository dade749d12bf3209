//! What openraft is told of timing, purges and snapshots: most of these it leaves to us.

use std::sync::Arc;

use openraft::{Config, SnapshotPolicy};

use crate::error::Error;
use crate::options::NodeOptions;

/// openraft's own lease: within it a leader may write, after it only once a heartbeat was answered. Who leads is
/// decided by the node's pulse long before; a leader that is quiet speaks a few times in it.
const OPENRAFT_LEASE_MS: u64 = 60_000;

pub(crate) fn raft_config(options: &NodeOptions) -> Result<Arc<Config>, Error> {
    let timing = &options.timing;
    let config = Config {
        cluster_name: options.cluster_id.clone(),
        // Nothing happens by openraft's clock: see `pulse`. So what it calls an interval bounds how long a
        // heartbeat may take, and the shorter election timeout how long a vote may.
        enable_tick: false,
        heartbeat_interval: (timing.election_max_ms / 3).max(1),
        election_timeout_min: timing.election_max_ms,
        election_timeout_max: OPENRAFT_LEASE_MS.max(timing.election_max_ms * 2),
        // A node that comes back must not lead on what it remembers: its commit mark is written lazily.
        enable_leader_restore: Some(false),
        // Our flushes are the snapshots; each one is announced as it happens, and so is each purge: what openraft would
        // purge by itself may lie before what it was asked for and has not done yet, which it takes for a bug.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 1024,
        // Only a follower behind the purge needs a snapshot.
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 600_000,
        // Commits that wait for apply. A replica whose apply waits for rows still takes entries.
        state_machine_channel_size: Some(64 << 10),
        // Of a peer that is there and refuses, as one does that starts or stops. For one that is away a stream waits:
        // a pause that has grown would go on after its return, and a shard that needs it would commit nothing.
        backoff: "50ms 100ms 200ms ...200ms".to_owned(),
        ..Config::default()
    };
    config
        .validate()
        .map(Arc::new)
        .map_err(|error| Error::Option {
            option: "timing",
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_that_was_away_for_long_is_not_left_alone_for_long() {
        let secret: [u8; 32] = [7; 32];
        let options = NodeOptions::new(1, "test", "unused", BTreeMap::new(), secret);
        let config = raft_config(&options).unwrap();
        let pauses: Vec<Duration> = config.build_backoff().take(100).collect();
        assert_eq!(
            pauses.len(),
            100,
            "after a last one openraft pauses for longer"
        );
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= Duration::from_millis(200))
        );
    }
}
