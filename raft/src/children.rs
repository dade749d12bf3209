//! Replicas that a split makes where their parents are.
//!
//! | step on each node | a crash behind it leaves |
//! |---|---|
//! | the parent applies the split | the parent, whose log has the split still to apply |
//! | one flush of the parent brings the child's rows | a child without a log, which the next start begins |
//! | the child's log begins behind the split, synced, with a vote in its term | a child that runs at the next start |
//! | the child starts, and may vote | |
//!
//! Nobody begins the child's membership: it is the parent's as of the split, in the rows. A node takes the child
//! only if that names it and it has never held the child before, be it that it replays an old log of the parent:
//! what it voted and acknowledged in a former life must not be forgotten. Else the child comes like any replica
//! that is put on a node: empty, by [`Node::host`], and filled by a snapshot. Such a one may vote before it is
//! filled. It has acknowledged nothing, and whoever stands for election has everything up to the split.
//!
//! A majority of the parent has the split in its logs, and with it all that the child's slots ever acknowledged; but
//! only who applies it has the child. A replica that is slow, and gets the parent by a snapshot from behind the
//! split, loses them. So nobody who has the child lets go of the parent's entries before the child has committed one
//! of its own: by then a majority has its rows. Until then followers get the split, not a snapshot.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use fail::fail_point;
use mailbox_engine::{FrozenFlush, LogId, ShardId, SlotStanding, SlotTable, Store};
use tokio::sync::watch;

use crate::base_thread::{error_chain, report};
use crate::error::Error;
use crate::log::{ShardLog, SharedLog};
use crate::node::Node;
use crate::types::{decode_stored_membership, log_id};

/// What the thread that flushes has to know about children.
pub(crate) struct Children {
    node: u64,
    log: SharedLog,
    /// Gone when the node has stopped.
    store: Weak<Store>,
    /// Moves when a flush has made some.
    made: watch::Sender<u64>,
}

impl Children {
    pub(crate) fn new(node: u64, log: SharedLog, store: &Arc<Store>) -> Arc<Children> {
        Arc::new(Children {
            node,
            log,
            store: Arc::downgrade(store),
            made: watch::Sender::new(0),
        })
    }

    /// Refuses the children of a flush that are none of this node's. True if there are others. Blocks.
    pub(crate) fn judge(&self, frozen: &FrozenFlush) -> Result<bool, Error> {
        let mut any = false;
        for (child, applied) in frozen.children() {
            let membership = decode_stored_membership(&applied.membership)
                .map_err(|error| Error::Log(error.to_string()))?;
            let mut members = membership.membership().nodes();
            let is_member = members.any(|(node, _)| *node == self.node);
            let known = self.log.knows(child);
            let wanted = is_member && !known.map_err(|error| Error::Log(error.to_string()))?;
            if wanted {
                any = true;
            } else {
                tracing::info!(shard = child.0, is_member, "a split's shard is not taken");
                frozen.refuse_child(child);
            }
        }
        if any {
            fail_point!("split_applied", |_| std::process::abort());
        }
        Ok(any)
    }

    /// Whether the log of a parent may be purged: no child of it that was made here waits for its first entry.
    pub(crate) fn let_go(&self, parent: &mailbox_engine::Shard) -> bool {
        let Some(store) = self.store.upgrade() else {
            return true;
        };
        let gone = gone_to(&parent.applied().slots);
        if gone != gone_to(&parent.flushed_slots()) {
            // The flush that makes the child may come between this look and the purge.
            return false;
        }
        let mut here = gone.into_iter().filter_map(|child| store.shard(child));
        !here.any(|child| self.is_unborn(&child))
    }

    /// It has applied nothing but the split that it was made of.
    fn is_unborn(&self, child: &mailbox_engine::Shard) -> bool {
        let Some(applied) = child.applied().log_id else {
            return false;
        };
        let Ok(log) = self.log.shard_log(child.id()) else {
            // Whoever needs this log will fail.
            return true;
        };
        match log.life() {
            // One of the cluster's first shards, or its log has not begun.
            None => log.last().is_none(),
            Some(life) => life.former == Some(log_id(applied.term, applied.index)),
        }
    }

    /// A flush has made some.
    pub(crate) fn tell(&self) {
        fail_point!("split_flushed", |_| std::process::abort());
        self.made.send_modify(|made| *made += 1);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }
}

/// The shards that slots have left for.
fn gone_to(slots: &SlotTable) -> BTreeSet<ShardId> {
    let to = |(_, _, standing)| match standing {
        SlotStanding::Gone { to } => Some(to),
        _ => None,
    };
    slots.iter().filter_map(to).collect()
}

/// Begins a log behind what its replica was made of, if that was a split or a snapshot and the log is empty.
pub(crate) async fn begin_log(
    engine: &mailbox_engine::Shard,
    log: &ShardLog,
    node: u64,
) -> Result<(), Error> {
    let applied = engine.applied();
    let Some(LogId { term, index, .. }) = applied.log_id else {
        return Ok(());
    };
    if log.last().is_some() || applied.last_install != applied.log_id {
        return Ok(());
    }
    let seeded = log.seed(log_id(term, index), node).await;
    seeded.map_err(|error| Error::Log(error.to_string()))?;
    fail_point!("split_seeded", |_| std::process::abort());
    Ok(())
}

/// Starts children as flushes make them.
pub(crate) async fn run(node: Weak<Node>, mut made: watch::Receiver<u64>) {
    while made.changed().await.is_ok() {
        let Some(node) = node.upgrade() else {
            return;
        };
        match node.host_children().await {
            Ok(()) | Err(Error::Stopping) => {}
            Err(error) => report(&node.shared.fault, &error_chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mailbox_engine::{
        ApplyEntry, ApplyPayload, Command, EntryBuilder, MoveSlot, ShardId, SlotId, SplitShard,
    };
    use openraft::EntryPayload;
    use openraft::storage::RaftLogStorageExt as _;

    use super::*;
    use crate::log::Stage;
    use crate::open::tests::{SHARD, open_log, open_store, options, stop, used};
    use crate::state_machine::engine_log_id;
    use crate::types::{Cmd, Entry};

    const CHILD: ShardId = ShardId(7);

    /// A stopped node whose parent has a split as the next entry of its log, in a term that is not the first.
    async fn with_split(dir: &Path) -> ApplyEntry {
        for _ in 0..3 {
            used(dir).await;
        }
        let log = open_log(dir);
        let mut shard = log.shard_log(SHARD).unwrap();
        let last = shard.last().unwrap();
        assert!(last.leader_id.term > 1);
        let mut builder = EntryBuilder::new(1);
        builder.push(&Command::SplitShard(SplitShard {
            to: CHILD,
            epoch: 1,
            slots: [SlotId(2), SlotId(3)].into(),
        }));
        let bytes = builder.finish();
        let id = log_id(last.leader_id.term, last.index + 1);
        let payload = EntryPayload::Normal(Cmd(bytes.clone()));
        let entry = Entry {
            log_id: id,
            payload,
        };
        shard.blocking_append([entry]).await.unwrap();
        ApplyEntry {
            log_id: engine_log_id(&id),
            payload: ApplyPayload::Commands(bytes),
        }
    }

    /// Waits until the child leads itself, and writes to it. Gives its term.
    async fn serves(node: &Node, seed: LogId) -> u64 {
        let mut changes = node.watch_shards();
        let child = loop {
            match node.shard(CHILD) {
                Some(child) => break child,
                None => changes.changed().await.unwrap(),
            }
        };
        let mut leadership = child.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        child.propose(vec![Command::Cut]).await.unwrap();
        let status = child.status();
        assert!(status.last_index > seed.index);
        assert!(status.purged_index >= seed.index);
        assert!(status.term > seed.term, "{} in {}", seed.term, status.term);
        assert_eq!(child.engine().slots(), [SlotId(2), SlotId(3)]);
        status.term
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_begins_behind_the_split_in_a_term_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let seed = with_split(dir.path()).await.log_id;
        let mut before = 0;
        for _ in 0..2 {
            let node = Node::start(options(dir.path())).await.unwrap();
            let term = serves(&node, seed).await;
            assert!(term > before);
            before = term;
            let shard = node.shard(SHARD).unwrap();
            stop(node, shard).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_whose_log_was_not_begun_is_begun_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let entry = with_split(dir.path()).await;
        {
            let store = open_store(dir.path());
            let parent = store.shard(SHARD).unwrap();
            parent.apply(std::slice::from_ref(&entry)).unwrap();
            let frozen = parent.freeze().unwrap();
            let built = store.build(vec![(parent, frozen)]).unwrap();
            assert!(store.ingest(built).unwrap());
            assert!(store.shard(CHILD).is_some());
            assert!(!open_log(dir.path()).knows(CHILD).unwrap());
        }
        let node = Node::start(options(dir.path())).await.unwrap();
        serves(&node, entry.log_id).await;
        let shard = node.shard(SHARD).unwrap();
        stop(node, shard).await;
        assert!(open_log(dir.path()).knows(CHILD).unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_parent_keeps_its_log_until_the_child_has_an_entry_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let entry = with_split(dir.path()).await;
        let (store, log) = (Arc::new(open_store(dir.path())), open_log(dir.path()));
        let children = Children::new(1, log.clone(), &store);
        let parent = store.shard(SHARD).unwrap();
        parent.apply(std::slice::from_ref(&entry)).unwrap();
        assert!(!children.let_go(&parent), "the child is not made yet");
        let frozen = parent.freeze().unwrap();
        let built = store.build(vec![(parent.clone(), frozen)]).unwrap();
        assert!(store.ingest(built).unwrap());
        let child = store.shard(CHILD).unwrap();
        assert!(!children.let_go(&parent), "its log has not begun");
        let child_log = log.shard_log(CHILD).unwrap();
        begin_log(&child, &child_log, 1).await.unwrap();
        assert!(!children.let_go(&parent), "it has nothing of its own");
        let index = entry.log_id.index + 1;
        let own = ApplyEntry {
            log_id: LogId {
                index,
                ..entry.log_id
            },
            payload: ApplyPayload::Blank,
        };
        child.apply(&[own]).unwrap();
        assert!(children.let_go(&parent));
    }

    /// A slot that has moved to one of the first shards is not waited for, however idle that shard is.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_that_no_split_has_made_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        with_split(dir.path()).await;
        let (store, log) = (Arc::new(open_store(dir.path())), open_log(dir.path()));
        let other = store.create_shard(CHILD, []).unwrap();
        let first = log_id(1, 1);
        let payload = EntryPayload::Blank;
        let entry = Entry {
            log_id: first,
            payload,
        };
        let mut other_log = log.shard_log(CHILD).unwrap();
        other_log.blocking_append([entry]).await.unwrap();
        let blank = ApplyEntry {
            log_id: engine_log_id(&first),
            payload: ApplyPayload::Blank,
        };
        other.apply(&[blank]).unwrap();
        let parent = store.shard(SHARD).unwrap();
        let (slot, epoch) = (SlotId(0), 1);
        let mut builder = EntryBuilder::new(1);
        let freeze = MoveSlot::Freeze {
            slot,
            epoch,
            to: CHILD,
        };
        builder.push(&Command::MoveSlot(freeze));
        builder.push(&Command::MoveSlot(MoveSlot::Drop { slot, epoch }));
        let last = parent.applied().log_id.unwrap();
        let log_id = LogId {
            index: last.index + 1,
            ..last
        };
        let payload = ApplyPayload::Commands(builder.finish());
        parent.apply(&[ApplyEntry { log_id, payload }]).unwrap();
        assert!(!parent.serves(slot));
        let children = Children::new(1, log, &store);
        let frozen = parent.freeze().unwrap();
        let built = store.build(vec![(parent.clone(), frozen)]).unwrap();
        assert!(store.ingest(built).unwrap());
        assert!(children.let_go(&parent));
    }

    /// An empty child would be taken for its part in the split when the entry is applied again.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_split_that_a_fault_keeps_from_its_flush_gets_no_empty_child() {
        let dir = tempfile::tempdir().unwrap();
        used(dir.path()).await;
        let node = Node::start(options(dir.path())).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        let engine = shard.engine();
        let mut log_id = engine.applied().log_id.unwrap();
        let mut builder = EntryBuilder::new(1);
        builder.push(&Command::SplitShard(SplitShard {
            to: CHILD,
            epoch: 1,
            slots: [SlotId(2), SlotId(3)].into(),
        }));
        let entries = [builder.finish(), "no command".into()].map(|bytes| {
            log_id.index += 1;
            let payload = ApplyPayload::Commands(bytes);
            ApplyEntry { log_id, payload }
        });
        assert!(engine.apply(&entries).is_err());
        let gone = (1, SlotStanding::Gone { to: CHILD });
        assert_eq!(engine.applied().slots.get(SlotId(2)), Some(gone));
        assert!(node.host(CHILD).await.is_err());
        assert!(!node.log.knows(CHILD).unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_that_this_node_has_held_before_is_not_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let seed = with_split(dir.path()).await.log_id;
        {
            let log = open_log(dir.path());
            let shard = log.shard_log(CHILD).unwrap();
            shard.enter(Stage::Hosted).await.unwrap();
            log.wipe(CHILD).await.unwrap();
        }
        let node = Node::start(options(dir.path())).await.unwrap();
        let shard = node.shard(SHARD).unwrap();
        let mut leadership = shard.watch_leadership();
        let ready = leadership.wait_for(|leadership| leadership.is_ready());
        ready.await.unwrap();
        assert_eq!(shard.engine().slots(), [SlotId(0), SlotId(1)]);
        drop(leadership);
        stop(node, shard).await;
        let store = open_store(dir.path());
        let parent = store.shard(SHARD).unwrap();
        assert!(parent.flushed().is_some_and(|flushed| flushed >= seed));
        assert!(!store.shards().contains(&CHILD));
    }
}
