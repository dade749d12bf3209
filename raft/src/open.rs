//! Opening a node's files: what they say is what the node hosts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mailbox_engine::{ShardId, Store};
use openraft::storage::RaftLogStorage;
use tokio::runtime::Handle;

use crate::cluster_options;
use crate::error::Error;
use crate::identity::{Identity, new_incarnation};
use crate::log::{ShardLog, SharedLog, Stage};
use crate::options::NodeOptions;

/// What a node begins with.
pub(crate) struct Opened {
    pub(crate) incarnation: u64,
    pub(crate) store: Arc<Store>,
    pub(crate) log: SharedLog,
    pub(crate) shards: Vec<(Arc<mailbox_engine::Shard>, ShardLog)>,
}

/// Opens store and log, and makes them if this is a new node. Blocks.
pub(crate) fn open(options: &NodeOptions, runtime: &Handle) -> Result<Opened, Error> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::io("make", dir, error))?;
    let wanted = Identity {
        cluster_id: options.cluster_id.clone(),
        node: options.node,
        slot_count: options.engine.slot_count,
        shard_count: options.shard_count,
        incarnation: None,
    };
    let found = Identity::read(dir)?;
    let log_dir = dir.join("log");
    if let Some(found) = &found {
        found.check(dir, &wanted)?;
        if !dir.join("state").exists() {
            return Err(lost(dir, "state"));
        }
        if !log_dir.join("CURRENT").exists() {
            return Err(lost(dir, "log"));
        }
    }
    let store = Arc::new(Store::open(dir, options.engine.clone())?);
    let log = SharedLog::open(&log_dir, options.log.clone()).map_err(log_error)?;
    if found.is_none() {
        bootstrap(&store, options)?;
    }
    let incarnation = found.and_then(|found| found.incarnation);
    let incarnation = match incarnation {
        Some(incarnation) => incarnation,
        // A new node, or one of a build before there were incarnations.
        None => {
            let incarnation = new_incarnation();
            let identity = Identity {
                incarnation: Some(incarnation),
                ..wanted
            };
            identity.write(dir)?;
            incarnation
        }
    };
    finish_removals(dir, &store, &log, runtime)?;
    let mut shards = Vec::new();
    for id in store.shards() {
        let engine = store.shard(id).ok_or_else(|| lost(dir, "shard"))?;
        let shard_log = log.shard_log(id).map_err(log_error)?;
        check_log(&engine, &shard_log, &log_dir, runtime)?;
        cluster_options::compare(&options.cluster_options, &engine)?;
        shards.push((engine, shard_log));
    }
    Ok(Opened {
        incarnation,
        store,
        log,
        shards,
    })
}

fn lost(dir: &Path, what: &'static str) -> Error {
    Error::LostData {
        path: Identity::path(dir),
        what,
    }
}

fn log_error(error: crate::log::Error) -> Error {
    Error::Log(error.to_string())
}

/// Finishes what a crash has cut short, see `hosting.rs`. Entries of a replica that is neither here nor on its way
/// out are what it has promised to hold: the store has lost it.
fn finish_removals(
    dir: &Path,
    store: &Store,
    log: &SharedLog,
    runtime: &Handle,
) -> Result<(), Error> {
    for id in log.shards().map_err(log_error)? {
        let shard_log = log.shard_log(id).map_err(log_error)?;
        let stage = shard_log.life().map(|life| life.stage);
        match stage {
            Some(Stage::Leaving) => {
                tracing::info!(shard = id.0, "its removal is finished");
                store.drop_shard(id)?;
                runtime.block_on(log.wipe(id)).map_err(log_error)?;
            }
            Some(Stage::Hosted | Stage::Gone) | None => {
                if store.shard(id).is_none() && shard_log.is_used() {
                    return Err(lost(dir, "shard"));
                }
            }
        }
    }
    Ok(())
}

/// Makes the shards of a new cluster. A bootstrap that a crash has cut short has made some of them; with other
/// options it has made others, and so has a node whose identity is lost.
fn bootstrap(store: &Store, options: &NodeOptions) -> Result<(), Error> {
    let wanted = options.first_shards();
    let wanted = wanted.filter(|(shard, _)| options.founders(*shard).contains(&options.node));
    let wanted: BTreeMap<ShardId, _> = wanted.collect();
    for id in store.shards() {
        let slots = store.shard(id).map(|shard| shard.slots());
        let slots = slots.into_iter().flatten().map(|slot| slot.0);
        if !wanted
            .get(&id)
            .is_some_and(|wanted| slots.eq(wanted.clone()))
        {
            return Err(Error::Leftover {
                path: options.dir.clone(),
                shard: id,
                shard_count: options.shard_count,
                slot_count: options.engine.slot_count,
            });
        }
    }
    for (shard, slots) in wanted {
        if store.shard(shard).is_none() {
            store.create_shard(shard, slots)?;
        }
    }
    Ok(())
}

/// A log may end below the applied state only where a snapshot was installed: openraft then purges it up to
/// there, silently. Anywhere else entries were lost that this node has promised to hold.
fn check_log(
    engine: &mailbox_engine::Shard,
    log: &ShardLog,
    path: &Path,
    runtime: &Handle,
) -> Result<(), Error> {
    let applied = engine.applied();
    let Some(id) = applied.log_id else {
        return Ok(());
    };
    let state = runtime
        .block_on(log.clone().get_log_state())
        .map_err(|error| Error::Log(error.to_string()))?;
    let last = state.last_log_id.map(|last| last.index);
    let reaches = last.is_some_and(|last| last >= id.index);
    if reaches || applied.last_install == Some(id) {
        return Ok(());
    }
    Err(Error::LostLog {
        shard: engine.id(),
        path: path.to_owned(),
        last: last.unwrap_or(0),
        applied: id.index,
    })
}
