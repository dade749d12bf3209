//! Replicas that come to a running node and leave it.
//!
//! | step of a removal | a crash behind it leaves |
//! |---|---|
//! | the replica stops | a replica that runs again at the next start |
//! | the log says that it is leaving | a removal that the next start finishes, from here on |
//! | its rows leave the base store, in one ingest | entries that belong to no replica |
//! | its entries leave the log | the vote, and what the next life must know |

use std::sync::Arc;

use mailbox_engine::{ShardId, SlotStanding, SlotTable};

use crate::base_thread::BaseThread;
use crate::children::begin_log;
use crate::error::Error;
use crate::log::{ShardLog, SharedLog, Stage};
use crate::node::{HANDOVER_WAIT, Node};
use crate::replica::Replica;
use crate::shard::Shard;

/// Why a replica may go.
enum Leave {
    /// It knows itself that this node is no member.
    NoMember,
    /// Somebody knows better than it.
    Forced,
    /// The shard's leader has told a membership that does not name this node, and nothing speaks against it since.
    Told {
        /// Of the entry that brought that membership.
        index: u64,
        goes: Box<dyn Fn() -> bool + Send>,
    },
}

impl Leave {
    fn allows(&self, replica: &Replica) -> bool {
        match self {
            Leave::NoMember => !replica.is_member(),
            Leave::Forced => true,
            // Who votes again has learnt before that the membership is committed which made it a learner.
            Leave::Told { index, goes } => goes() && !replica.is_member_since(*index),
        }
    }
}

impl Node {
    /// Makes an empty replica of a shard, with the slots that the shard had at bootstrap, and starts it: entries
    /// or a snapshot bring it what it lacks once the shard's leader has it as a learner. One that a split has made
    /// later had none at bootstrap; if the split is applied here and about to bring it, that is what comes. It never
    /// begins a membership by itself. Durable; if the replica is here already it is given as it is.
    ///
    /// # Errors
    /// [`Error`]: a fault of the storage, of the replica that such a split is applied in, or the node is stopping.
    pub async fn host(self: &Arc<Self>, shard: ShardId) -> Result<Shard, Error> {
        let node = self.clone();
        // What has begun goes on when its caller goes away.
        let hosted = tokio::spawn(async move { node.host_now(shard).await });
        hosted.await.unwrap_or_else(|error| Err(stopped(error)))
    }

    /// Stops a replica and removes its rows and its entries. What it voted is kept, so that the shard may be
    /// hosted here again. Durable, and finished at the next start if a crash cuts it short; if there is no such
    /// replica, nothing is done. Handles on it stay valid and refuse everything.
    ///
    /// Without `force` it is refused while the membership that is known here names this node. A replica that was
    /// removed may never learn so: whoever knows that the removal is committed forces it.
    ///
    /// # Errors
    /// [`Error::StillMember`], a fault of the storage, or the node is stopping.
    pub async fn unhost(self: &Arc<Self>, shard: ShardId, force: bool) -> Result<(), Error> {
        let leave = if force {
            Leave::Forced
        } else {
            Leave::NoMember
        };
        self.unhost_as(shard, leave).await
    }

    /// The same for a replica of which the shard's leader has told that this node is no member, in the membership of
    /// that [`crate::Membership::index`]. What was told may be old by the time that nothing else comes or goes here,
    /// and then it would be a member's replica that goes: so it stays if it knows a later membership by then that
    /// names this node, or if `goes` says no.
    ///
    /// # Errors
    /// As [`Node::unhost`].
    pub async fn unhost_removed(
        self: &Arc<Self>,
        shard: ShardId,
        index: u64,
        goes: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let goes = Box::new(goes);
        self.unhost_as(shard, Leave::Told { index, goes }).await
    }

    async fn unhost_as(self: &Arc<Self>, shard: ShardId, leave: Leave) -> Result<(), Error> {
        let node = self.clone();
        let removed = tokio::spawn(async move { node.unhost_now(shard, leave).await });
        removed.await.unwrap_or_else(|error| Err(stopped(error)))
    }

    async fn host_now(&self, id: ShardId) -> Result<Shard, Error> {
        let hosting = self.hosting.lock().await;
        if hosting.stopping {
            return Err(Error::Stopping);
        }
        if let Some(there) = self.shards.get(id) {
            return Ok(there);
        }
        if let Some((engine, log)) = self.born_here(id).await? {
            return self.run_replica(engine, log).await;
        }
        // A shard that a split has made began with rows, which a snapshot brings, and the slots with them.
        let slots = self.shared.options.first_slots(id);
        let slots = slots.map_or_else(Vec::new, Iterator::collect);
        let base = &self.shared.base;
        let log = self.log.shard_log(id).map_err(log_error)?;
        let log = match log.life().map(|life| life.stage) {
            Some(Stage::Leaving) => {
                // A fault has cut its removal short, in this very process.
                remove_rows(base, &self.log, id).await?;
                self.log.shard_log(id).map_err(log_error)?
            }
            Some(Stage::Hosted | Stage::Gone) | None => log,
        };
        log.enter(Stage::Hosted).await.map_err(log_error)?;
        let engine = base.create(id, slots).await?;
        self.run_replica(engine, log).await
    }

    /// The rows of a replica that a split applied here has made, or makes once it is flushed.
    async fn born_here(
        &self,
        id: ShardId,
    ) -> Result<Option<(Arc<mailbox_engine::Shard>, ShardLog)>, Error> {
        let Some(store) = self.store.lock().clone() else {
            return Err(Error::Stopping);
        };
        let log = self.log.shard_log(id).map_err(log_error)?;
        if log.life().is_some() {
            // It has been here before, so that a split does not make it.
            return Ok(None);
        }
        for parent in store.shards() {
            let Some(parent) = store.shard(parent) else {
                continue;
            };
            if !has_gone(&parent.applied().slots, id) {
                continue;
            }
            let flushed = self.shared.base.flush(parent.id()).await;
            // An empty replica that took the place of this part would be taken for it ever after. A fault may have
            // stopped the flush, or apply, half way through.
            if !has_gone(&parent.flushed_slots(), id) {
                flushed?;
                return Err(Error::Stopped {
                    shard: parent.id(),
                    reason: format!("its split into shard {id} is applied and cannot be flushed"),
                });
            }
        }
        Ok(store.shard(id).map(|engine| (engine, log)))
    }

    /// Starts a replica whose rows are here.
    async fn run_replica(
        &self,
        engine: Arc<mailbox_engine::Shard>,
        log: ShardLog,
    ) -> Result<Shard, Error> {
        let (id, base) = (engine.id(), &self.shared.base);
        begin_log(&engine, &log, self.shared.options.node).await?;
        let replica = match Replica::start(&self.shared, engine, log).await {
            Ok(replica) => replica,
            Err(error) => {
                base.forget(id);
                return Err(error);
            }
        };
        self.peer_service.add(&replica);
        let shard = Shard::new(replica, base.clone());
        self.shards.insert(shard.clone());
        tracing::info!(shard = id.0, "hosted");
        Ok(shard)
    }

    /// Starts the replicas that splits have made and nobody has started.
    pub(crate) async fn host_children(&self) -> Result<(), Error> {
        // Nobody serves their slots until then, and who has the lock may wait for a flush.
        let _hurry = self.shared.base.hurry();
        let hosting = self.hosting.lock().await;
        if hosting.stopping {
            return Err(Error::Stopping);
        }
        let Some(store) = self.store.lock().clone() else {
            return Err(Error::Stopping);
        };
        for id in store.shards() {
            let engine = store.shard(id).filter(|_| self.shards.get(id).is_none());
            let Some(engine) = engine else {
                continue;
            };
            let log = self.log.shard_log(id).map_err(log_error)?;
            // One that the log knows has been started before, and did not come up.
            if log.life().is_none() {
                self.run_replica(engine, log).await?;
            }
        }
        Ok(())
    }

    async fn unhost_now(&self, id: ShardId, leave: Leave) -> Result<(), Error> {
        let hosting = self.hosting.lock().await;
        if hosting.stopping {
            return Err(Error::Stopping);
        }
        let Some(shard) = self.shards.get(id) else {
            return Ok(());
        };
        let (replica, node) = (shard.replica(), self.shared.options.node);
        if !leave.allows(replica) {
            return Err(Error::StillMember { shard: id, node });
        }
        replica.give_leadership_away(HANDOVER_WAIT).await;
        // That may have taken its time.
        if !leave.allows(replica) {
            return Err(Error::StillMember { shard: id, node });
        }
        self.peer_service.remove(id);
        self.shards.remove(id);
        replica.stop().await;
        let log = self.log.shard_log(id).map_err(log_error)?;
        log.enter(Stage::Leaving).await.map_err(log_error)?;
        remove_rows(&self.shared.base, &self.log, id).await?;
        tracing::info!(shard = id.0, "no longer hosted");
        Ok(())
    }
}

/// Slots have left for a shard, by a split or a move.
fn has_gone(slots: &SlotTable, to: ShardId) -> bool {
    let gone = |(_, _, standing)| standing == SlotStanding::Gone { to };
    slots.iter().any(gone)
}

/// The rest of a removal that the log knows of. Nothing of the replica runs.
async fn remove_rows(base: &BaseThread, log: &SharedLog, shard: ShardId) -> Result<(), Error> {
    base.drop_shard(shard).await?;
    log.wipe(shard).await.map_err(log_error)
}

fn log_error(error: crate::log::Error) -> Error {
    Error::Log(error.to_string())
}

/// Its task has panicked, or the runtime is going down.
fn stopped(error: tokio::task::JoinError) -> Error {
    tracing::error!(%error, "a replica did not come or go");
    Error::Stopping
}
