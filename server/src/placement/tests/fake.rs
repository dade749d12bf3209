//! What the executor does, done to a pretended cluster: each call can be cut off before, in the midst of, or after
//! what it does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::ErrorCode;
use mailbox_engine::{ClusterMap, MapReplica, ShardId, Standing};
use mailbox_placement::Load;
use mailbox_raft::MembershipChange;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::world::{Call, World, members, no};
use crate::placement::effects::{Effects, Led, Members, Told};

/// Pauses that a call that comes late comes late by.
const LATE_BY: u64 = 4;
/// Turns of the other tasks in which any step comes to its end.
const TURNS: usize = 64;

/// What becomes of the call at which the executor is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It does nothing.
    Before,
    /// It does all, and nobody hears of it.
    After,
    /// It does all, while another executor is at work already.
    Late,
}

pub(super) const CUTS: [Cut; 3] = [Cut::Before, Cut::After, Cut::Late];

/// The executor's hands on the world; all clones are on the same one.
#[derive(Clone)]
pub(super) struct Fake {
    world: Arc<Mutex<World>>,
    pub(super) killed: Arc<Notify>,
    /// Transfers under way, and the most there have been.
    transferring: Arc<Mutex<(usize, usize)>>,
}

impl Fake {
    pub(super) fn new(nodes: u64, shards: u32, lag_max: u64, seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(World::new(nodes, shards, lag_max, seed))),
            killed: Arc::default(),
            transferring: Arc::default(),
        }
    }

    pub(super) fn set_standing(&self, node: u64, standing: Standing) {
        let mut world = self.world.lock();
        let row = world.map.nodes.get_mut(&node).expect("a node");
        row.standing = standing;
        world.map.epoch += 1;
    }

    pub(super) fn set_down(&self, node: u64, down: bool) {
        let mut world = self.world.lock();
        if down {
            world.down.insert(node);
        } else {
            world.down.remove(&node);
        }
    }

    /// The node gives every leadership away again, and does not say so.
    pub(super) fn set_shy(&self, node: u64) {
        self.world.lock().shy.insert(node);
    }

    /// The next change of members panics.
    pub(super) fn panic_once(&self) {
        self.world.lock().panics = true;
    }

    /// Calls end within any pause from now on, and replicas have nothing to catch up with.
    pub(super) fn set_quick(&self) {
        self.world.lock().quick = true;
    }

    /// The most transfers that were under way at once.
    pub(super) fn transfers_at_once(&self) -> usize {
        self.transferring.lock().1
    }

    /// When each transfer was called for.
    pub(super) fn transfers(&self) -> Vec<u64> {
        self.world.lock().transfers.clone()
    }

    /// The executor is killed at a later call, counted from now.
    pub(super) fn kill_at(&self, calls: u64, cut: Cut) {
        let mut world = self.world.lock();
        world.kill = Some((world.calls + calls, cut));
        world.killed = false;
    }

    /// Another executor begins.
    pub(super) fn begin(&self) {
        let mut world = self.world.lock();
        (world.kill, world.killed) = (None, false);
    }

    pub(super) fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// Changes that were made to map, members and leaders.
    pub(super) fn done(&self) -> u64 {
        self.world.lock().done
    }

    pub(super) fn map_now(&self) -> ClusterMap {
        self.world.lock().map.clone()
    }

    /// Calls are on their way, or a joint change is.
    pub(super) fn is_moving(&self) -> bool {
        let world = self.world.lock();
        !world.late.is_empty() || world.groups.values().any(|group| group.joint.is_some())
    }

    /// Replicas and leaders of a node, by the shards themselves.
    pub(super) fn held_by(&self, node: u64) -> (usize, usize) {
        self.world.lock().held_by(node)
    }

    /// These shards are splitting, and no others.
    pub(super) fn set_splitting(&self, shards: &[ShardId]) {
        self.world.lock().splitting = shards.iter().copied().collect();
    }

    pub(super) fn assert_at_rest(&self) {
        self.world.lock().assert_at_rest();
    }

    /// Waits a while, as calls do, or for ever if this is where the executor ends.
    async fn act(&self, call: Call) -> Result<u64, CallError> {
        self.wait().await;
        if matches!(call, Call::Change(..)) && std::mem::take(&mut self.world.lock().panics) {
            panic!("as a bug would");
        }
        let done = {
            let mut world = self.world.lock();
            world.calls += 1;
            let cut = world.kill.filter(|(at, _)| world.calls == *at);
            match cut.map(|(_, cut)| cut) {
                _ if world.killed => None,
                None => Some(world.call(&call)),
                Some(cut) => {
                    world.killed = true;
                    match cut {
                        Cut::Before => {}
                        Cut::After => _ = world.call(&call),
                        // What an old leader of the meta shard proposes is committed before the next one leads.
                        Cut::Late if matches!(call, Call::Replicas(..)) => {
                            let _ = world.call(&call);
                        }
                        Cut::Late => {
                            let at = world.pauses + LATE_BY;
                            world.late.push((at, call));
                        }
                    }
                    self.killed.notify_one();
                    None
                }
            }
        };
        match done {
            Some(done) => {
                self.wait().await;
                done
            }
            None => std::future::pending().await,
        }
    }

    /// Other tasks go first, now and then.
    async fn wait(&self) {
        let times = self.world.lock().chance(4);
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }
}

impl Effects for Fake {
    fn now_ms(&self) -> u64 {
        self.world.lock().now_ms
    }

    async fn pause(&self, time: Duration) {
        let turns = if self.world.lock().quick { TURNS } else { 0 };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        self.wait().await;
        let time_ms = u64::try_from(time.as_millis()).unwrap();
        self.world.lock().pass(time_ms);
    }

    async fn map(&self) -> Result<ClusterMap, CallError> {
        self.wait().await;
        Ok(self.map_now())
    }

    async fn splitting(&self) -> Result<BTreeSet<ShardId>, CallError> {
        self.wait().await;
        Ok(self.world.lock().splitting.clone())
    }

    async fn merging(&self) -> Result<BTreeSet<ShardId>, CallError> {
        self.wait().await;
        Ok(BTreeSet::new())
    }

    async fn told_by(&self, node: u64, _: &str) -> Result<Told, CallError> {
        self.wait().await;
        let world = self.world.lock();
        if world.down.contains(&node) {
            return Err(no(ErrorCode::Unavailable, "down"));
        }
        let groups = world.groups.iter();
        let led = groups.filter(|(_, group)| group.leader == node);
        let led = led.map(|(shard, group)| Led {
            shard: *shard,
            term: group.term,
            members: members(group),
            lags: group.lags.iter().map(|(node, lag)| (*node, *lag)).collect(),
            load: Load::default(),
        });
        Ok(Told {
            led: led.collect(),
            may_lead: true,
            has_room: true,
            up_for_ms: 3_600_000,
        })
    }

    async fn members(&self, shard: ShardId) -> Result<Members, CallError> {
        self.wait().await;
        let world = self.world.lock();
        let group = &world.groups[&shard];
        if world.down.contains(&group.leader) {
            return Err(no(ErrorCode::Unavailable, "no leader"));
        }
        Ok(members(group))
    }

    async fn set_replicas(
        &self,
        shard: ShardId,
        epoch: u64,
        replicas: Vec<MapReplica>,
    ) -> Result<u64, CallError> {
        self.act(Call::Replicas(shard, epoch, replicas)).await
    }

    async fn change(
        &self,
        shard: ShardId,
        from_index: u64,
        change: MembershipChange,
    ) -> Result<(), CallError> {
        let call = Call::Change(shard, from_index, change);
        self.act(call).await.map(|_| ())
    }

    async fn transfer(&self, shard: ShardId, to: u64) -> Result<(), CallError> {
        {
            let mut transferring = self.transferring.lock();
            transferring.0 += 1;
            transferring.1 = transferring.1.max(transferring.0);
        }
        let done = self.act(Call::Transfer(shard, to)).await.map(|_| ());
        self.transferring.lock().0 -= 1;
        done
    }
}
