//! Brings this node after the map: the nodes that it talks to, and the replicas that it holds.
//!
//! A replica is made when the map names it, which is before the shard's leader is told to add it. It goes when
//! the map no longer names it, which is after the shard's members were changed; but this node's map may be old,
//! and a voter that forgets what it has acknowledged loses it for all. So it goes only when the shard's leader,
//! behind a read barrier, says that it is no member, and if by the time that it goes neither a newer map nor what
//! the replica has learnt since speaks against it.
//!
//! A shard that the map does not name at all is nobody's to ask. It may have been retired by a merge: then the meta
//! shard has a row of that which stays for ever, and its leader, behind a read barrier, says so. It may also be one that
//! a split has just made here and that is in no map yet; or the map is older than the shard. Both have no such row, and
//! keep their replicas. The slots of a retired shard have moved before, and every replica of their new shard has them. A
//! node that hosts it once more, by an old map, takes no part in its elections (raft/src/ballot.rs): so nobody who is
//! behind the moves comes to lead it.
//!
//! A shard that a split has made may be named here before this node's replica of the old one has applied the split,
//! which makes the replica without copying a row. So it is waited for that, for some time: an empty replica would be
//! no fault, but have to be sent all of it. And one may come by a split after the map has placed the shard elsewhere:
//! what is held is compared with the map whenever either changes.
//!
//! Whoever is asked whether a replica may go may hang. So some are asked about at once, and no longer than until there
//! is a newer map, which may want the replica here again; those that are left are next when their turn comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mailbox_api::v1::MembershipRequest;
use mailbox_engine::{MapShard, ShardId, SlotId, Standing};
use tokio::sync::watch;
use tonic::Request;

use super::View;
use crate::cluster_service::merge_calls;
use crate::core::Core;
use crate::status;

/// When something that did not work is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a split that this node has not applied yet is waited for.
const SPLIT_WAIT: Duration = Duration::from_secs(30);
/// One question to a voter.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// Replicas whose going is asked about at once.
const ASKED_MAX: usize = 32;

/// What is remembered from one look at the map to the next.
#[derive(Default)]
struct Rounds {
    /// Since when splits that are to bring a replica are waited for.
    awaited: BTreeMap<ShardId, Instant>,
    /// The last shard that was asked about.
    asked: Option<ShardId>,
}

/// What is known of a replica that the map does not have here.
enum Fate {
    /// It may be a member's.
    Stays,
    /// The shard's leader says that this node is no member.
    Removed {
        /// Index of the membership that says so.
        index: u64,
    },
    /// The shard is gone for ever.
    Retired,
}

/// Follows the map until the node stops.
pub(super) async fn run(core: Arc<Core>) {
    let (mut maps, mut held) = (core.maps.watch(), core.node.watch_shards());
    let stopping = core.stopping.clone();
    let mut rounds = Rounds::default();
    let following = async {
        loop {
            // Before it is looked at: what comes or goes meanwhile is looked at again.
            held.mark_unchanged();
            let view = Arc::clone(&maps.borrow_and_update());
            let done = follow(&core, &view, &maps, &mut rounds).await;
            if !until_due(&mut maps, &mut held, done).await {
                return;
            }
        }
    };
    tokio::select! {
        () = name_nodes(&core) => {}
        () = following => {}
        () = stopping.cancelled() => {}
    }
}

/// Tells of every map where the nodes are, at once: replicas that come and go take their time, and meanwhile callers
/// are sent to leaders by it.
async fn name_nodes(core: &Core) {
    let mut maps = core.maps.watch();
    loop {
        let view = Arc::clone(&maps.borrow_and_update());
        if view.cluster.epoch > 0 {
            core.node.set_nodes(addresses(&view));
        }
        if maps.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until the map or what is held may call for something: if all was done, until one of them has changed. False
/// once the node has stopped.
async fn until_due<M, H>(
    maps: &mut watch::Receiver<M>,
    held: &mut watch::Receiver<H>,
    done: bool,
) -> bool {
    let again = async {
        if done {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(AGAIN).await;
    };
    tokio::select! {
        changed = maps.changed() => changed.is_ok(),
        changed = held.changed() => changed.is_ok(),
        () = again => true,
    }
}

/// True if all is as the map says. `maps` has seen this map, and tells when there is a newer one: then the rest is left.
async fn follow(
    core: &Arc<Core>,
    view: &View,
    maps: &watch::Receiver<Arc<View>>,
    rounds: &mut Rounds,
) -> bool {
    if view.cluster.epoch == 0 {
        // Nobody has told a map: what is here was made by the cluster's first start, and stays.
        return true;
    }
    core.node.set_nodes(addresses(view));
    let own = view.cluster.nodes.get(&core.node_id);
    if own.is_some_and(|own| own.standing == Standing::Removed) {
        core.evict(format!(
            "node {} was removed from the cluster",
            core.node_id
        ));
        return true;
    }
    let wanted: BTreeSet<ShardId> = view.cluster.shards_on(core.node_id).collect();
    let held: BTreeSet<ShardId> = core.node.shards().iter().map(|shard| shard.id()).collect();
    let mut done = true;
    let awaited = &mut rounds.awaited;
    awaited.retain(|shard, _| wanted.contains(shard) && !held.contains(shard));
    for shard in wanted.difference(&held) {
        done &= make_replica(core, view, *shard, awaited).await;
        if is_old(maps) {
            return false;
        }
    }
    let unwanted: Vec<ShardId> = held.difference(&wanted).copied().collect();
    let asked = in_turn(&unwanted, rounds.asked);
    rounds.asked = asked.last().copied();
    done &= asked.len() == unwanted.len();
    done & drop_replicas(core, view, maps, asked).await
}

/// There is a newer map.
fn is_old(maps: &watch::Receiver<Arc<View>>) -> bool {
    maps.has_changed().unwrap_or(true)
}

/// True if it is there.
async fn make_replica(
    core: &Core,
    view: &View,
    shard: ShardId,
    awaited: &mut BTreeMap<ShardId, Instant>,
) -> bool {
    if will_split_off(core, view, shard) {
        let since = awaited.entry(shard).or_insert_with(Instant::now);
        if since.elapsed() < SPLIT_WAIT {
            tracing::debug!(
                shard = shard.0,
                "comes by a split that is not applied here yet"
            );
            return false;
        }
    }
    match core.node.host(shard).await {
        Ok(_) => {
            tracing::info!(shard = shard.0, "a replica is made");
            true
        }
        Err(error) => {
            tracing::warn!(shard = shard.0, error = %status::with_causes(&error), "no replica");
            false
        }
    }
}

/// A replica here that is to stay still serves slots which the map gives to the shard: it has not come to their
/// leaving yet.
fn will_split_off(core: &Core, view: &View, shard: ShardId) -> bool {
    let row = view.cluster.shards.get(&shard);
    let held = core.node.shards();
    let mut held = held.iter().filter(|held| view.is_here(held.id()));
    row.is_some_and(|row| {
        held.any(|held| has_slots_of(row, held.id(), |slot| held.engine().serves(slot)))
    })
}

/// Whether a replica that is here has what a split gives to the shard of `row`.
fn has_slots_of(row: &MapShard, held: ShardId, serves: impl Fn(SlotId) -> bool) -> bool {
    // The meta shard's own rows are in a slot that the map gives to another: it has none to give away.
    held != ShardId::META && row.slots.iter().any(|(first, _)| serves(*first))
}

/// All nodes that may be talked to.
fn addresses(view: &View) -> BTreeMap<u64, String> {
    let nodes = view.cluster.nodes.iter();
    let present = nodes.filter(|(_, row)| row.standing != Standing::Removed);
    present
        .map(|(node, row)| (*node, row.address.clone()))
        .collect()
}

/// The shards that are asked about next, of those that are not wanted here, when `last` was asked about last.
fn in_turn(unwanted: &[ShardId], last: Option<ShardId>) -> Vec<ShardId> {
    let from = unwanted.partition_point(|shard| Some(*shard) <= last);
    let (before, after) = unwanted.split_at(from);
    let turns = after.iter().chain(before);
    turns.take(ASKED_MAX).copied().collect()
}

/// True if all of them have gone.
async fn drop_replicas(
    core: &Arc<Core>,
    view: &View,
    maps: &watch::Receiver<Arc<View>>,
    shards: Vec<ShardId>,
) -> bool {
    let mut maps = maps.clone();
    let asking = shards.into_iter().map(|shard| fate(core, view, shard));
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut done = true;
    loop {
        let answer = tokio::select! {
            biased;
            answer = asking.next() => answer,
            _ = maps.changed() => return false,
        };
        let Some((shard, fate)) = answer else {
            return done;
        };
        done &= drop_replica(core, shard, fate).await;
        if is_old(&maps) {
            return false;
        }
    }
}

/// A shard, and what is to become of the replica of it.
async fn fate(core: &Core, view: &View, shard: ShardId) -> (ShardId, Fate) {
    let fate = if view.cluster.shards.contains_key(&shard) {
        let removed = removed_at(core, view, shard).await;
        removed.map_or(Fate::Stays, |index| Fate::Removed { index })
    } else if is_retired(core, shard).await {
        Fate::Retired
    } else {
        Fate::Stays
    };
    (shard, fate)
}

/// True if it has gone.
async fn drop_replica(core: &Arc<Core>, shard: ShardId, fate: Fate) -> bool {
    // It may never learn that it was removed, and of a retired shard all are.
    let gone = match fate {
        Fate::Stays => {
            tracing::debug!(shard = shard.0, "the replica stays: it may be a member");
            return false;
        }
        Fate::Removed { index } => {
            let of = Arc::clone(core);
            let goes = move || !of.maps.now().is_here(shard);
            core.node.unhost_removed(shard, index, goes).await
        }
        Fate::Retired => core.node.unhost(shard, true).await,
    };
    match gone {
        Ok(()) => {
            tracing::info!(shard = shard.0, "the replica is gone");
            true
        }
        Err(error) => {
            tracing::warn!(shard = shard.0, error = %status::with_causes(&error), "it stays");
            false
        }
    }
}

/// Whether the shard is gone for ever.
async fn is_retired(core: &Core, shard: ShardId) -> bool {
    let asked = tokio::time::timeout(ASK_WAIT, merge_calls::is_retired(core, shard)).await;
    matches!(asked, Ok(Ok(true)))
}

/// The index of the membership by which the shard's leader knows this node neither as a voter nor as a learner;
/// nothing if it knows it, if something is changing, or if nobody says.
async fn removed_at(core: &Core, view: &View, shard: ShardId) -> Option<u64> {
    for node in view.voters(shard) {
        let Some(place) = view.place(node).filter(|place| place.node != core.node_id) else {
            continue;
        };
        let Ok(mut client) = core.peers.cluster(&place.address) else {
            continue;
        };
        let mut request = Request::new(MembershipRequest { shard: shard.0 });
        core.authority.prove(request.metadata_mut()).ok()?;
        let asked = tokio::time::timeout(ASK_WAIT, client.membership(request)).await;
        // Only the leader answers.
        if let Ok(Ok(answer)) = asked {
            let members = answer.into_inner();
            let own = core.node_id;
            let is_none = !members.changing
                && !members.voters.contains(&own)
                && !members.learners.contains(&own);
            return is_none.then_some(members.index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_waited_for_only_where_its_slots_are_and_those_of_the_meta_shard_are_its_own() {
        let row = |first, last| MapShard {
            epoch: 1,
            slots: vec![(SlotId(first), SlotId(last))],
            replicas: Vec::new(),
        };
        let serves_first_four = |slot: SlotId| slot.0 < 4;
        let is_waited_for =
            |row: &MapShard, held: u32| has_slots_of(row, ShardId(held), serves_first_four);
        assert!(is_waited_for(&row(2, 3), 1));
        assert!(!is_waited_for(&row(4, 7), 1));
        assert!(!is_waited_for(&row(0, 3), ShardId::META.0));
    }

    #[test]
    fn the_replicas_that_are_asked_about_take_turns() {
        let unwanted: Vec<ShardId> = (1..=40).map(ShardId).collect();
        let first = in_turn(&unwanted, None);
        assert_eq!(first, unwanted[..ASKED_MAX]);
        let next = in_turn(&unwanted, first.last().copied());
        assert_eq!(next.len(), ASKED_MAX);
        assert_eq!((next[0], next[8]), (ShardId(33), ShardId(1)));
        // The one that was asked about last has gone.
        assert_eq!(in_turn(&unwanted[33..], Some(ShardId(33)))[0], ShardId(34));
        assert!(in_turn(&[], Some(ShardId(33))).is_empty());
    }

    #[tokio::test]
    async fn a_replica_that_comes_is_compared_with_a_map_that_does_not_change() {
        let (map, mut maps) = watch::channel(1);
        let (shards, mut held) = watch::channel(0_u64);
        let soon = Duration::from_millis(50);
        let rests = tokio::time::timeout(soon, until_due(&mut maps, &mut held, true)).await;
        assert!(rests.is_err(), "nothing has changed");
        // As a split does that is applied late.
        shards.send_modify(|changes| *changes += 1);
        assert!(until_due(&mut maps, &mut held, true).await);
        map.send_replace(2);
        assert!(until_due(&mut maps, &mut held, true).await);
        assert!(
            until_due(&mut maps, &mut held, false).await,
            "it is tried again"
        );
        drop(shards);
        assert!(!until_due(&mut maps, &mut held, true).await);
    }
}
