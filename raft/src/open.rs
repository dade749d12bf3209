//! Opening a node's files: what they say is what the node hosts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mailbox_engine::{ShardId, Store};
use openraft::storage::RaftLogStorage;

use crate::background;
use crate::children::begin_log;
use crate::cluster_options;
use crate::error::Error;
use crate::identity::{Identity, new_incarnation};
use crate::log::{ShardLog, SharedLog, Stage};
use crate::options::NodeOptions;
use crate::promise::Pledge;

/// What a node begins with.
pub(crate) struct Opened {
    pub(crate) incarnation: u64,
    /// The directory was made just now.
    pub(crate) is_new: bool,
    pub(crate) store: Arc<Store>,
    pub(crate) log: SharedLog,
    pub(crate) shards: Vec<(Arc<mailbox_engine::Shard>, ShardLog)>,
    pub(crate) pledge: Pledge,
}

/// Opens store and log, and makes them if this is a new node. Blocks between its waits.
pub(crate) async fn open(options: &NodeOptions) -> Result<Opened, Error> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::io("make", dir, error))?;
    let found = Identity::read(dir)?;
    let is_new = found.is_none();
    let incarnation = found.as_ref().map(|found| found.incarnation);
    let wanted = Identity {
        cluster_id: options.cluster_id.clone(),
        node: options.node,
        slot_count: options.engine.slot_count,
        shard_count: options.shard_count,
        incarnation: incarnation.unwrap_or_else(new_incarnation),
    };
    let log_dir = dir.join("log");
    if let Some(found) = &found {
        found.check(dir, &wanted)?;
        if options.disk.is_none() && !dir.join("state").exists() {
            return Err(lost(dir, "state"));
        }
        if !log_dir.join("CURRENT").exists() {
            return Err(lost(dir, "log"));
        }
    }
    let store = match &options.disk {
        None => Store::open(dir, options.engine.clone())?,
        Some(disk) => Store::open_in_memory(disk, options.engine.clone())?,
    };
    let store = Arc::new(store);
    let log = SharedLog::open(&log_dir, options.log.clone()).map_err(log_error)?;
    background::merges_give_way();
    if is_new {
        bootstrap(&store, options)?;
        wanted.write(dir)?;
    }
    finish_removals(dir, &store, &log).await?;
    let mut shards = Vec::new();
    for id in store.shards() {
        let engine = store.shard(id).ok_or_else(|| lost(dir, "shard"))?;
        let shard_log = log.shard_log(id).map_err(log_error)?;
        // It may have come by a split, whose flush was the last that this node did.
        begin_log(&engine, &shard_log, options.node).await?;
        check_log(&engine, &shard_log, &log_dir).await?;
        cluster_options::compare(&options.cluster_options, &engine)?;
        shards.push((engine, shard_log));
    }
    // Before any replica starts: what it is about to promise must be noted.
    let pledge = Pledge::open(options)?;
    Ok(Opened {
        incarnation: wanted.incarnation,
        is_new,
        store,
        log,
        shards,
        pledge,
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
async fn finish_removals(dir: &Path, store: &Store, log: &SharedLog) -> Result<(), Error> {
    for id in log.shards().map_err(log_error)? {
        let shard_log = log.shard_log(id).map_err(log_error)?;
        let stage = shard_log.life().map(|life| life.stage);
        match stage {
            Some(Stage::Leaving) => {
                tracing::info!(shard = id.0, "its removal is finished");
                store.drop_shard(id)?;
                log.wipe(id).await.map_err(log_error)?;
            }
            Some(Stage::Hosted | Stage::Gone) | None if store.shard(id).is_some() => {}
            Some(Stage::Hosted | Stage::Gone) | None => {
                if shard_log.is_used() {
                    return Err(lost(dir, "shard"));
                }
                log.release(id);
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
async fn check_log(
    engine: &mailbox_engine::Shard,
    log: &ShardLog,
    path: &Path,
) -> Result<(), Error> {
    let applied = engine.applied();
    let Some(id) = applied.log_id else {
        return Ok(());
    };
    let state = log.clone().get_log_state().await;
    let state = state.map_err(|error| Error::Log(error.to_string()))?;
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

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use openraft::raft::AppendEntriesRequest;
    use openraft::storage::IOFlushed;
    use openraft::type_config::TypeConfigExt;
    use openraft::{EntryPayload, RaftLogReader};

    use super::*;
    use crate::log::LogOptions;
    use crate::node::Node;
    use crate::options::Timing;
    use crate::types::{Entry, LogId, Membership, TypeConfig, Vote, log_id};

    pub(crate) const SHARD: ShardId = ShardId(1);

    pub(crate) fn options(dir: &Path) -> NodeOptions {
        // A cluster of one calls no peer.
        let members = BTreeMap::from([(1, "127.0.0.1:1".to_owned())]);
        let mut options = NodeOptions::new(1, "test", dir, members, b"secret".to_vec());
        options.engine.slot_count = 4;
        options.log.wal_ahead_bytes = 0;
        options.disk_free_min_bytes = 0;
        options.timing = Timing {
            heartbeat_ms: 50,
            election_min_ms: 200,
            election_max_ms: 400,
        };
        options
    }

    /// A node that has led its shard, stopped. Gives its vote, and its last log id.
    pub(crate) async fn used(dir: &Path) -> (Vote, LogId) {
        let node = Node::start(options(dir)).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        let cut = shard.propose(vec![mailbox_engine::Command::Cut]).await;
        cut.unwrap();
        stop(node, shard).await;
        let log = open_log(dir);
        let mut log = log.shard_log(SHARD).unwrap();
        (log.read_vote().await.unwrap().unwrap(), log.last().unwrap())
    }

    pub(crate) async fn stop(node: Arc<Node>, shard: crate::Shard) {
        drop(shard);
        node.shutdown().await.unwrap();
    }

    pub(crate) fn open_log(dir: &Path) -> SharedLog {
        let options = LogOptions {
            wal_ahead_bytes: 0,
            ..LogOptions::default()
        };
        SharedLog::open(&dir.join("log"), options).unwrap()
    }

    pub(crate) fn open_store(dir: &Path) -> Store {
        Store::open(dir, options(dir).engine).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removal_that_was_cut_short_is_finished_and_the_vote_stays() {
        // After the log has said so, after the rows have gone, after the entries have.
        for steps in 1..=3 {
            let dir = tempfile::tempdir().unwrap();
            let (vote, last) = used(dir.path()).await;
            {
                let log = open_log(dir.path());
                let shard = log.shard_log(SHARD).unwrap();
                shard.enter(Stage::Leaving).await.unwrap();
                if steps > 1 {
                    assert!(open_store(dir.path()).drop_shard(SHARD).unwrap());
                }
                if steps > 2 {
                    log.wipe(SHARD).await.unwrap();
                }
            }
            let node = Node::start(options(dir.path())).await.unwrap();
            assert!(node.shard(SHARD).is_none(), "{steps}");
            let shard = node.host(SHARD).await.unwrap();
            assert_eq!(shard.status().applied_index, 0);
            assert_eq!(shard.status().role, "learner");
            assert_eq!(shard.membership(), crate::Membership::default());
            stop(node, shard).await;
            let log = open_log(dir.path());
            let mut log = log.shard_log(SHARD).unwrap();
            assert_eq!(log.read_vote().await.unwrap(), Some(vote));
            assert_eq!(log.last(), None);
            let life = log.life().unwrap();
            assert_eq!((life.stage, life.former), (Stage::Hosted, Some(last)));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_has_lost_a_replica_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        used(dir.path()).await;
        std::fs::remove_dir_all(dir.path().join("state")).unwrap();
        drop(open_store(dir.path()));
        let refused = Node::start(options(dir.path())).await.err();
        assert!(
            matches!(refused, Some(Error::LostData { what: "shard", .. })),
            "{refused:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_directory_keeps_its_incarnation_and_one_without_a_meta_shard_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        used(dir.path()).await;
        let mut incarnations = Vec::new();
        for _ in 0..2 {
            let node = Node::start(options(dir.path())).await.unwrap();
            incarnations.push(node.incarnation());
            let shard = node.shard(SHARD).unwrap();
            stop(node, shard).await;
        }
        assert_eq!(incarnations[0], incarnations[1]);
        let path = Identity::path(dir.path());
        let text = std::fs::read_to_string(&path).unwrap();
        let old = text.replace("node_format = 4", "node_format = 3");
        std::fs::write(&path, old).unwrap();
        let refused = Node::start(options(dir.path())).await.err();
        assert!(
            matches!(refused, Some(Error::UnknownFormat { found: 3, .. })),
            "{refused:?}"
        );
    }

    /// Registers a user who writes to itself. Gives the body of the last message.
    async fn written(dir: &Path) -> Vec<u8> {
        let node = Node::start(options(dir)).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        let register = mailbox_engine::Command::RegisterUser(mailbox_engine::RegisterUser {
            request_id: uuid::Uuid::now_v7(),
            handle: "alice".to_owned(),
        });
        let replies = shard.propose(vec![register]).await.unwrap();
        let [mailbox_engine::Reply::UserRegistered { user }] = replies[..] else {
            panic!("{replies:?}");
        };
        let mut last = Vec::new();
        for _ in 0..200 {
            // No two alike.
            let parts = (0..20).flat_map(|_| uuid::Uuid::now_v7().into_bytes());
            last = parts.collect();
            let (id, kind) = (uuid::Uuid::now_v7(), mailbox_engine::MessageType::OPAQUE);
            let send = mailbox_engine::Command::Send(mailbox_engine::Send {
                sender: user,
                recipient: user,
                client_msg_id: id,
                message_id: mailbox_engine::MessageId::ZERO,
                kind,
                flags: mailbox_engine::Flags(0),
                content_crc: mailbox_engine::content_crc(id, kind, &last),
                body: last.clone().into(),
                shown: mailbox_engine::MessageId::ZERO,
            });
            let replies = shard.propose(vec![send]).await.unwrap();
            assert!(matches!(replies[..], [mailbox_engine::Reply::Sent { .. }]));
        }
        stop(node, shard).await;
        last
    }

    /// Turns a bit of these bytes in the file of rows that holds them; done again, it is as before.
    fn flip(dir: &Path, bytes: &[u8]) {
        for file in std::fs::read_dir(dir.join("state")).unwrap() {
            let path = file.unwrap().path();
            let mut content = std::fs::read(&path).unwrap();
            let found = content
                .windows(32)
                .position(|window| window == &bytes[bytes.len() - 32..]);
            if let (Some(at), true) = (found, path.extension().is_some_and(|it| it == "sst")) {
                content[at - 1] ^= 1;
                std::fs::write(&path, content).unwrap();
                return;
            }
        }
        panic!("no file has them");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_that_fails_leaves_nothing_running() {
        let dir = tempfile::tempdir().unwrap();
        let last = written(dir.path()).await;
        flip(dir.path(), &last);
        // The second one would be refused for the lock of the first, if any of it were still there.
        for _ in 0..2 {
            let refused = Node::start(options(dir.path())).await.err().unwrap();
            let refused = with_causes(&refused);
            assert!(refused.contains("is corrupt at or after key"), "{refused}");
        }
        flip(dir.path(), &last);
        let node = Node::start(options(dir.path())).await.unwrap();
        node.shutdown().await.unwrap();
    }

    /// An error with all its causes.
    fn with_causes(error: &dyn std::error::Error) -> String {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            words = format!("{words}: {next}");
            cause = next.source();
        }
        words
    }

    fn blank(term: u64, index: u64) -> Entry {
        Entry {
            log_id: log_id(term, index),
            payload: EntryPayload::Blank,
        }
    }

    /// As if the shard had come back and its leader had died when it had brought the first entry again: by that
    /// one this node is the only voter.
    async fn filled_with_one_entry(dir: &Path) {
        {
            let store = open_store(dir);
            store.drop_shard(SHARD).unwrap();
            store.create_shard(SHARD, 0..=3).unwrap();
        }
        let log = open_log(dir);
        log.wipe(SHARD).await.unwrap();
        let mut shard = log.shard_log(SHARD).unwrap();
        shard.enter(Stage::Hosted).await.unwrap();
        let first = Membership::new_with_defaults(vec![[1].into()], []);
        let first = Entry {
            log_id: log_id(0, 0),
            payload: EntryPayload::Membership(first),
        };
        let (done, synced) = TypeConfig::oneshot();
        shard
            .append([first], IOFlushed::signal(done))
            .await
            .unwrap();
        synced.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_that_is_being_filled_again_makes_nobody_a_leader() {
        let dir = tempfile::tempdir().unwrap();
        let (vote, former) = used(dir.path()).await;
        filled_with_one_entry(dir.path()).await;
        let node = Node::start(options(dir.path())).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        // Long enough for a follower to stand three times.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let status = shard.status();
        assert_eq!((status.role, status.leader), ("follower", 0));
        assert_eq!(status.term, vote.leader_id.term);
        assert!(!node.peer_service().takes_part(SHARD));
        // The shard's leader, which is another node by now, brings the rest.
        let term = vote.leader_id.term + 1;
        let append = |previous, entries| AppendEntriesRequest {
            vote: Vote::new_committed(term, 2),
            prev_log_id: Some(previous),
            entries,
            leader_commit: None,
        };
        let raft = &shard.replica().raft;
        let old = former.leader_id.term;
        let rest: Vec<Entry> = (1..former.index).map(|index| blank(old, index)).collect();
        let last = rest.last().map_or(log_id(0, 0), |entry| entry.log_id);
        raft.append_entries(append(log_id(0, 0), rest))
            .await
            .unwrap();
        assert!(!node.peer_service().takes_part(SHARD));
        let rest = vec![blank(old, former.index)];
        raft.append_entries(append(last, rest)).await.unwrap();
        assert!(node.peer_service().takes_part(SHARD));
        stop(node, shard).await;
    }
}
