//! openraft's own storage suite, over the log and a state machine that keeps everything in memory.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use mailbox_engine::ShardId;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageError};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::log::{LogOptions, ShardLog, SharedLog};
use crate::types::{LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, ()>;

#[derive(Default, Clone)]
struct Machine(Arc<Mutex<(Option<LogId>, StoredMembership)>>);

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (last_log_id, last_membership) = self.0.lock().clone();
        Ok(Snapshot {
            meta: SnapshotMeta {
                last_log_id,
                last_membership,
            },
            snapshot: (),
        })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.0.lock().clone())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.0.lock();
            state.0 = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                state.1 = StoredMembership::new(Some(entry.log_id), membership);
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Replies::default());
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> Result<(), io::Error> {
        *self.0.lock() = (meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshot = self.build_snapshot().await?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, ShardLog, Machine, (SharedLog, TempDir)> for Builder {
    async fn build(
        &self,
    ) -> Result<((SharedLog, TempDir), ShardLog, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            // Makes the reads go to the disk as soon as they can.
            cache_bytes: 0,
            wal_ahead_bytes: 0,
            ..LogOptions::default()
        };
        let log = SharedLog::open(dir.path(), options).unwrap();
        let shard = log.shard_log(ShardId(7)).unwrap();
        Ok(((log, dir), shard, Machine::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
